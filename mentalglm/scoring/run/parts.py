"""Committed shards become the files that analysts open: `data/` only ever grows, by whole files, each row in one.

A part takes the shards that are committed and in no part yet. Which ones is decided by its record, created by whoever
is first under the next number; its files follow from the record alone, so whoever comes after a death writes the same
ones. When all are there the record is marked done and the shards' own files are deleted. No file of `data/` is ever
merged with another, so a reader sees no row twice at any moment.

    _run/parts/<number>.json         which shards
    _run/parts/<number>.done.json    which files, with rows and bytes; counts over the shards

A finished part stands for its shards: whoever resumes a run, or asks for its status, reads the records of the parts
and of the shards that are in none yet, not one for each shard.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from mentalglm import storage
from mentalglm.errors import ConfigError, InputError, InternalError, InterruptedRunError
from mentalglm.scoring.predictions import PARQUET_OPTIONS, ROW_GROUP_SIZE, add_hashes, hash_ids
from mentalglm.scoring.run.commit import ShardCommit, Totals
from mentalglm.scoring.run.ledger import Ledger, read_record

_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_MAX_OPEN_FILES = 500
_MAX_NAME = 180
_NUM_READERS = 16


class StagedFileError(InternalError):
    """A committed shard's own file is not what it was."""


class PartFile(BaseModel):
    """A file of `data/` or `errors/`."""

    model_config = ConfigDict(frozen=True)

    path: str
    """Below the run's folder."""
    kind: str
    """`task=<task>` or `errors`."""
    num_rows: int
    num_bytes: int
    id_hash: str


class Part(BaseModel):
    """Shards whose rows stand in the files of this number."""

    shards: list[tuple[int, int]]
    """Ranges [start, stop), in order."""

    def numbers(self) -> Iterator[int]:
        """Every shard, in order."""
        return numbers_of(self.shards)


class FinishedPart(BaseModel):
    """A part whose files are all written."""

    files: list[PartFile]
    totals: Totals
    """Over its shards."""
    failed: list[tuple[int, int]]
    """Those of its shards in which a row has no result, as ranges [start, stop)."""

    def failed_shards(self) -> Iterator[int]:
        """Those shards, in order."""
        return numbers_of(self.failed)


class PartWriter:
    """Turns the commits of a run into parts, and counts over all of them.

    Begins with what the run's folder holds. A part that was begun and is not finished is finished first. A new one is
    written when the waiting shards of a task hold `target_bytes` on average, or at `flush`.
    """

    def __init__(self, ledger: Ledger, *, target_bytes: int, partition_by: Sequence[str] = ()) -> None:
        self._ledger = ledger
        self._target_bytes = target_bytes
        self._partition_by = list(partition_by)
        self._waiting: dict[int, ShardCommit] = {}
        self._in_parts: set[int] = set()
        self._num_parts = 0
        self.files: list[PartFile] = []
        """Every file of the output so far."""
        self.totals = Totals()
        """Over every committed shard, in a part or not."""
        begun = list(read_parts(ledger))
        for part, finished in begun:
            if finished is not None:
                self._note(part, finished)
                self.totals.merge(finished.totals)
        for commit in ledger.read_commits(ledger.committed_shards() - self._in_parts):
            self._waiting[commit.shard] = commit
            self.totals.add(commit)
        for part, finished in begun[-1:]:  # a death leaves something to do only there
            if finished is None:
                self._finish(part)
            else:
                self._delete_staged(list(part.numbers()), finished)
        self._num_waiting_bytes = sum(map(_bytes_per_task, self._waiting.values()))

    def missing(self, num_shards: int) -> list[int]:
        """Those of the first `num_shards` shards that are not committed, in order."""
        return [shard for shard in range(num_shards) if shard not in self._in_parts and shard not in self._waiting]

    def add(self, commit: ShardCommit) -> None:
        """Takes one more shard; writes a part when there is enough for one."""
        if commit.shard in self._waiting or commit.shard in self._in_parts:
            return
        self._waiting[commit.shard] = commit
        self.totals.add(commit)
        self._num_waiting_bytes += _bytes_per_task(commit)
        if self._num_waiting_bytes >= self._target_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes what is committed and in no part yet, so that `data/` and `errors/` show all of it."""
        if not self._waiting:
            return
        part = Part(shards=to_ranges(sorted(self._waiting)))
        self._ledger.check_fence()
        path = _record_path(self._ledger, self._num_parts)
        if not storage.put_if_absent(path, part.model_dump_json().encode(), self._ledger.staging):
            raise InterruptedRunError(f"{self._ledger.uri}: another job works on this run; wait for it, or stop it")
        self._finish(part)
        self._num_waiting_bytes = 0.0

    def check_files(self) -> None:
        """Raises: InternalError where a file of the output is gone or has another size; ConfigError where `data/` or
        `errors/` holds files that are not the run's, which a reader would take for results."""
        sizes = {
            f"{folder}/{file.path}": file.size
            for folder in ("data", "errors")
            for file in storage.list_files(self._ledger.path(folder))
        }
        if any(path.endswith(".parquet") for path in sizes.keys() - {file.path for file in self.files}):
            raise ConfigError(
                f"output.uri = {self._ledger.uri}: data/ or errors/ holds Parquet files that this run has not written; "
                "move them elsewhere and run the same command again"
            )
        for file in self.files:
            size = sizes.get(file.path)
            if size != file.num_bytes and not (size is None and storage.exists(self._ledger.path(file.path))):
                raise InternalError(
                    f"{self._ledger.uri}: a file of {file.kind} is gone or has changed since it was written; put it "
                    "back, or begin a new run in another folder"
                )

    def id_hashes(self) -> dict[str, str]:
        """Kind of file -> `hash_ids` of all its rows."""
        kinds = {file.kind for file in self.files}
        return {kind: add_hashes(file.id_hash for file in self.files if file.kind == kind) for kind in kinds}

    def _note(self, part: Part, finished: FinishedPart) -> None:
        self.files += finished.files
        self._in_parts.update(part.numbers())
        self._num_parts += 1

    def _finish(self, part: Part) -> None:
        """Writes the files of the part that are not there, its record, and deletes what it was made of."""
        commits = [self._take(shard) for shard in part.numbers()]
        path = _record_path(self._ledger, self._num_parts, ".done")
        kinds = sorted({kind for commit in commits for kind in commit.files})
        try:
            finished = FinishedPart(
                files=[file for kind in kinds for file in self._write(kind, commits)],
                totals=Totals.of(commits),
                failed=to_ranges([commit.shard for commit in commits if any(commit.failed.values())]),
            )
        except StagedFileError:
            # Whoever took the run over may have finished the part, and deleted them.
            self._ledger.check_fence()
            by_another = read_record(FinishedPart, path)
            if by_another is None:
                raise
            finished = by_another
        storage.put_if_absent(path, finished.model_dump_json().encode(), self._ledger.staging)
        self._ledger.check_fence()
        self._delete_staged(list(part.numbers()), finished)
        self._note(part, finished)

    def _delete_staged(self, shards: Sequence[int], finished: FinishedPart) -> None:
        kinds = {file.kind for file in finished.files}
        having = {kind: finished.failed_shards() if kind == "errors" else shards for kind in kinds}
        paths = [self._ledger.staged_path(kind, shard) for kind, each in having.items() for shard in each]
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            list(pool.map(storage.delete, paths))

    def _take(self, shard: int) -> ShardCommit:
        commit = self._waiting.pop(shard, None)
        if commit is None:  # the listing was old
            commit = self._ledger.read_commit(shard)
            if commit is None:
                raise InternalError(
                    f"{self._ledger.uri}: part {self._num_parts} names shard {shard}, whose commit record is gone; put "
                    "it back, or begin a new run in another folder"
                )
            self.totals.add(commit)
        return commit

    def _write(self, kind: str, commits: Sequence[ShardCommit]) -> list[PartFile]:
        """The files of one kind: one for each value of the partition columns."""
        commits = [commit for commit in commits if kind in commit.files]
        columns = [] if kind == "errors" else self._partition_by
        written: dict[str, PartFile] = {}
        is_over = False
        while not is_over:  # once, but for very many partitions
            is_over = True
            writers: dict[str, _FileWriter] = {}
            with self._ledger.scratch() as folder:
                for table in read_staged(self._ledger, kind, commits):
                    for place, rows in split(table, columns):
                        if place in written:
                            continue
                        if place not in writers:
                            if len(writers) == _MAX_OPEN_FILES:
                                is_over = False
                                continue
                            writers[place] = _FileWriter(folder / f"{len(writers)}.parquet", rows.schema)
                        writers[place].write(rows)
                for place, writer in writers.items():
                    writer.close()
                    file = PartFile(
                        path=part_path(kind, place, self._num_parts),
                        kind=kind,
                        num_rows=writer.num_rows,
                        num_bytes=writer.path.stat().st_size,
                        id_hash=add_hashes(writer.id_hashes),
                    )
                    written[place] = self._put(file, writer.path)
        if kind != "errors" and _total(written.values()) != _total(commits):
            raise InternalError(f"{self._ledger.uri}: part {self._num_parts} of {kind} has other ids than its shards")
        return list(written.values())

    def _put(self, file: PartFile, local: Path) -> PartFile:
        """Writes the file unless there is one; returns the one that stands."""
        uri = self._ledger.path(file.path)
        self._ledger.check_fence()
        if storage.put_file_if_absent(uri, local, self._ledger.staging):
            return file
        # A dead attempt was first: the same rows, maybe by another version of the Parquet writer.
        fs, path = storage.filesystem(uri)
        with fs.open_input_file(path) as source:
            num_bytes = source.size()
            ids = pq.ParquetFile(source).read(columns=["post_id"]).column("post_id")
        if len(ids) != file.num_rows or hash_ids(ids) != file.id_hash:
            where = self._ledger.path(file.kind)  # folders below it may be named by values of the posts
            raise InternalError(f"{where}: a file holds other rows than the run has; begin a new run in another folder")
        return file.model_copy(update={"num_bytes": num_bytes})


def read_staged(ledger: Ledger, kind: str, commits: Sequence[ShardCommit]) -> Iterator[pa.Table]:
    """The rows of each of these shards, as they were committed. Raises: StagedFileError where they are not there."""
    paths = [ledger.staged_path(kind, commit.shard) for commit in commits]
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for start in range(0, len(paths), _NUM_READERS):
            window = slice(start, start + _NUM_READERS)
            contents = pool.map(storage.read_bytes, paths[window])
            for commit, path, data in zip(commits[window], paths[window], contents, strict=True):
                if data is None or hashlib.sha256(data).hexdigest() != commit.files[kind].sha256:
                    what = "is gone" if data is None else "has changed"
                    raise StagedFileError(f"{path} {what} since it was committed; begin a new run in another folder")
                yield pq.ParquetFile(pa.BufferReader(data)).read()


def part_path(kind: str, place: str, number: int) -> str:
    """Path of a part's file below the run's folder. `place`: the folders of its partition."""
    root = "errors" if kind == "errors" else f"data/{kind}"
    return "/".join(each for each in (root, place, f"part-{number:05d}.parquet") if each)


def read_parts(ledger: Ledger) -> Iterator[tuple[Part, FinishedPart | None]]:
    """Each part that was begun, by number; the last one may not be finished."""
    number = 0
    while (part := read_record(Part, _record_path(ledger, number))) is not None:
        yield part, read_record(FinishedPart, _record_path(ledger, number, ".done"))
        number += 1


def finished_parts(ledger: Ledger) -> Iterator[tuple[Part, FinishedPart]]:
    """Each finished part, by number."""
    return ((part, finished) for part, finished in read_parts(ledger) if finished is not None)


def read_finished_part(ledger: Ledger, number: int) -> FinishedPart:
    """A part that is known to be finished. Raises: InputError where its record is gone."""
    path = _record_path(ledger, number, ".done")
    finished = read_record(FinishedPart, path)
    if finished is None:
        raise InputError(f"{path}: is gone; put it back, or begin a new run in another folder")
    return finished


def read_totals(ledger: Ledger) -> Totals:
    """Counts over every committed shard, as it was first scored."""
    totals, in_parts = Totals(), set[int]()
    for part, finished in finished_parts(ledger):
        totals.merge(finished.totals)
        in_parts.update(part.numbers())
    for commit in ledger.read_commits(ledger.committed_shards() - in_parts):
        totals.add(commit)
    return totals


def shards_in_parts(ledger: Ledger) -> set[int]:
    """Shards whose rows are in a finished part: their own files are not needed any more."""
    return {shard for part, _ in finished_parts(ledger) for shard in part.numbers()}


def _record_path(ledger: Ledger, number: int, suffix: str = "") -> str:
    return ledger.path("_run", "parts", f"{number:05d}{suffix}.json")


class _FileWriter:
    """A Parquet file in row groups of the size that analysts' engines like, fed by small tables."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.num_rows = 0
        self.id_hashes: list[str] = []
        self._writer = pq.ParquetWriter(path, schema, **PARQUET_OPTIONS)
        self._buffered: list[pa.Table] = []
        self._num_buffered = 0

    def write(self, table: pa.Table) -> None:
        self.num_rows += table.num_rows
        self.id_hashes.append(hash_ids(table.column("post_id")))
        self._buffered.append(table)
        self._num_buffered += table.num_rows
        if self._num_buffered >= ROW_GROUP_SIZE:
            self._write_row_group()

    def close(self) -> None:
        self._write_row_group()
        self._writer.close()

    def _write_row_group(self) -> None:
        if self._buffered:
            self._writer.write_table(pa.concat_tables(self._buffered).unify_dictionaries())
        self._buffered, self._num_buffered = [], 0


def split(table: pa.Table, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """(folder as Hive names it, rows without the columns that the folder says) for each value that occurs."""
    if not columns:
        yield "", table
        return
    for values in table.select(columns).group_by(columns).aggregate([]).to_pylist():
        mask = None
        for column, value in values.items():
            each = pc.is_null(table[column]) if value is None else pc.fill_null(pc.equal(table[column], value), False)
            mask = each if mask is None else pc.and_(mask, each)
        place = "/".join(f"{quote(name, safe='')}={_folder(value)}" for name, value in values.items())
        yield place, table.filter(mask).drop_columns(list(columns))


def _folder(value: Any) -> str:
    if value is None:
        return _NULL_PARTITION
    name = quote(str(value).lower() if isinstance(value, bool) else str(value), safe="")
    if name == _NULL_PARTITION:  # a text, and not a null
        name = name.replace("_", "%5F")
    if len(name) > _MAX_NAME:  # no file system could hold it, and the rows must go somewhere
        name = f"{name[: _MAX_NAME // 2].rpartition('%')[0]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


def numbers_of(ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
    """The numbers in ranges [start, stop), in order."""
    return chain.from_iterable(range(start, stop) for start, stop in ranges)


def to_ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Increasing numbers as ranges [start, stop)."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return ranges


def _bytes_per_task(commit: ShardCommit) -> float:
    return sum(file.num_bytes for kind, file in commit.files.items() if kind != "errors") / max(1, len(commit.statuses))


def _total(records: Iterable[PartFile | ShardCommit]) -> tuple[int, str]:
    records = list(records)
    return sum(each.num_rows for each in records), add_hashes(each.id_hash for each in records)
