"""A later round over a finished run: some rows are asked for again, and `data/` then holds each row once, as it is now.

What a round is about is decided by its record, created by whoever is first. Its rows are scored and committed like the
shards of a run, in a folder of the round. Then each file of the output that holds some of them is written anew under
its own name, so that a reader sees the old file or the new one, whole. The footer of a file says which rounds are in
it; whoever comes after a death changes only the others. Which rows are of a round, and what becomes of them, is in
retry.py and explain.py.

    _run/retries/<round>.json                    what it is about
    _run/retries/<round>.stopped.json            with which shards it ends, where it was stopped before all were done
    _run/retries/<round>/{shards,commits}/...    as in _run/
    _run/retries/<round>.done.json               what came of it; written last, after manifest.json and README.md

A file takes the place of the very one that it was made of, or is not written: a job that was taken for dead and wakes
up in the middle of a write puts there what the round decided, or nothing, where another job has been there since.
"""

import json
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, RootModel

from mentalglm import manifest, storage
from mentalglm.config import CascadeConfig
from mentalglm.errors import ConfigError, InternalError, InterruptedRunError
from mentalglm.scoring.predictions import PARQUET_OPTIONS, hash_ids
from mentalglm.scoring.run.commit import ShardCommit, Totals
from mentalglm.scoring.run.ledger import Ledger, read_record
from mentalglm.scoring.run.parts import PartFile, StagedFileError, finished_parts, read_totals, to_ranges

Change = Callable[[pq.ParquetFile], tuple[dict[str, Any], Iterator[pa.Table]]]
"""Of a file as it is: (what its footer is to say of the round, its rows after the round)."""


class RetryRecord(BaseModel):
    """A round that scores failed rows again."""

    command: ClassVar = "retry"
    listed_as: ClassVar = "retries"
    """Where the manifest and the footers of files tell of it."""
    statuses: list[str]
    retry_max_tokens: int | None
    """How many tokens answers that were cut off got in it."""

    def described(self) -> dict[str, Any]:
        """What it is about, for the manifest and the footers of files."""
        return self.model_dump()

    def options(self) -> list[str]:
        """Of the command that goes on with it."""
        options = [word for status in self.statuses for word in ("--status", status)]
        return options + _set("generation.retry_max_tokens", self.retry_max_tokens)


class ExplainRecord(BaseModel):
    """A round that adds explanations."""

    command: ClassVar = "explain"
    listed_as: ClassVar = "explanations"
    explain: str
    cascade: dict[str, Any] | None
    """The keys of `cascade` that decide which rows are explained."""
    retry_max_tokens: int | None
    """How many tokens the answers get that had been cut off once."""
    shards: list[tuple[int, int]]
    """Ranges [start, stop), in order; no row of another shard is to be explained."""
    num_wanted: int
    """Rows that are to be explained."""

    def described(self) -> dict[str, Any]:
        """See `RetryRecord.described`."""
        return self.model_dump(exclude={"shards", "num_wanted"})

    def cascade_of(self, config: CascadeConfig) -> CascadeConfig:
        """The `cascade` of its policy; the keys that decide nothing are those of `config`."""
        return CascadeConfig.model_validate(config.model_dump() | (self.cascade or {}))

    def options(self) -> list[str]:
        """See `RetryRecord.options`."""
        settings = {"explain": self.explain, **{f"cascade.{key}": each for key, each in (self.cascade or {}).items()}}
        options = [word for key, value in settings.items() for word in _set(key, value)]
        return options + _set("generation.retry_max_tokens", self.retry_max_tokens)


def _set(key: str, value: Any) -> list[str]:
    return ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]


Record = RetryRecord | ExplainRecord


class _Record(RootModel[Record]):
    """Either, as it stands in the run's folder."""


class FinishedRound(BaseModel):
    """A finished round."""

    listed_as: str = RetryRecord.listed_as
    entry: dict[str, Any]
    """What the manifest says of it."""
    files: list[PartFile]
    """The files that it has replaced, as they are after it."""
    totals: Totals
    """Of the whole run after it."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A file that a round has replaced, as it is now, and what its footer says of the round."""

    file: PartFile
    footer: dict[str, Any]


class OtherRowsError(Exception):
    """A file does not hold rows that it should."""


class Round(ABC):
    """Some rows of a finished run, on their way to something else.

    `shards`: those that they are in; `done`: the rounds before it.
    """

    def __init__(self, ledger: Ledger, record: Record, shards: Collection[int], done: Sequence[FinishedRound]) -> None:
        self._run = ledger
        self._about = record
        self._shards = sorted(shards)
        self._done = list(done)
        self.number = len(done)
        self.ledger = round_ledger(ledger, self.number)
        """Where the rows are committed."""

    def committed(self) -> list[ShardCommit]:
        """The shards of the round that are done."""
        return self.ledger.read_commits(self._shards)

    @abstractmethod
    def _replace(
        self, number: int, commits: Sequence[ShardCommit], standing: Mapping[str, PartFile], partition_by: Sequence[str]
    ) -> Iterator[Rewritten]:
        """Writes the files of a part that hold rows of these shards anew. `standing`: all its files, by path."""

    @abstractmethod
    def _count(
        self, totals: Totals, commits: Mapping[int, ShardCommit], rewritten: Sequence[Rewritten]
    ) -> dict[str, Any]:
        """Brings the counts over the run to what they are after the round; returns what the manifest says of it."""

    def _finish(self, partition_by: Sequence[str]) -> FinishedRound:
        """Brings the committed rows into the output, then publishes the new counts. Safe to repeat."""
        commits = {commit.shard: commit for commit in self.committed()}
        if list(commits) != self._shards:
            raise InternalError(
                f"{self._run.uri}: shards of {self._about.command} {self.number} are missing; please report it"
            )
        try:
            rewritten, files = self._replace_all(commits, partition_by)
        except StagedFileError:
            # Whoever took the run over may have finished the round, and deleted them.
            self._run.check_fence()
            by_another = read_record(FinishedRound, _record_path(self._run, self.number, ".done"))
            if by_another is None:
                raise
            return by_another
        # Not `effective_totals`: a job that was taken for dead may have finished this very round meanwhile.
        totals = self._done[-1].totals.model_copy(deep=True) if self._done else read_totals(self._run)
        counts = self._count(totals, commits, rewritten)
        entry = {
            "round": self.number,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **self._about.described(),
            **counts,
            "engines": Totals.of(commits.values()).engines,
            "versions": self._versions,
        }
        replaced = [each.file for each in rewritten]
        finished = FinishedRound(listed_as=self._about.listed_as, entry=entry, files=replaced, totals=totals)
        self._publish(finished, files)
        self._run.check_fence()
        path = _record_path(self._run, self.number, ".done")
        storage.put_if_absent(path, finished.model_dump_json().encode(), self._run.staging)
        self._run.check_fence()
        _delete_staged(self.ledger)
        return finished

    def _replace_all(
        self, commits: Mapping[int, ShardCommit], partition_by: Sequence[str]
    ) -> tuple[list[Rewritten], list[PartFile]]:
        """(the files that were written anew, every file of the output), as they are now."""
        files = {file.path: file for each in self._done for file in each.files}
        rewritten: list[Rewritten] = []
        written: list[PartFile] = []
        for number, (part, first) in enumerate(finished_parts(self._run)):
            standing = {file.path: files.get(file.path, file) for file in first.files}
            having = [commits[shard] for shard in part.numbers() if shard in commits and commits[shard].files]
            changed = {each.file.path: each for each in self._replace(number, having, standing, partition_by)}
            rewritten += changed.values()
            written += [changed[path].file if path in changed else file for path, file in standing.items()]
        return rewritten, written

    def _rewrite(self, file: PartFile, change: Change) -> Rewritten:
        """Puts the changed file in the place of the old one, unless that is done; returns what is there then."""
        uri = self._run.path(file.path)
        found = storage.read_versioned(uri)
        if found is None:
            raise InternalError(f"{storage.shown(uri)} is gone since it was written; begin a new run in another folder")
        data, version = found
        source = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        schema = source.schema_arrow
        footer = json.loads(schema.metadata[b"mentalglm"])
        rounds = footer.get(self._about.listed_as, [])
        for each in rounds:
            if each["round"] == self.number:
                return Rewritten(_described(file, source, len(data)), each)
        with self._run.scratch() as folder:
            local = folder / "part.parquet"
            try:
                told, tables = change(source)
                entry = {"round": self.number, **self._about.described(), **told, "versions": self._versions}
                footer[self._about.listed_as] = [*rounds, entry]
                metadata = {**schema.metadata, b"mentalglm": json.dumps(footer, ensure_ascii=False).encode()}
                with pq.ParquetWriter(local, schema.with_metadata(metadata), **PARQUET_OPTIONS) as writer:
                    for table in tables:
                        writer.write_table(table)
            except OtherRowsError:
                where = storage.shown(uri)
                raise InternalError(f"{where}: does not hold the rows that were asked for; please report it") from None
            with pq.ParquetFile(local) as target:
                described = _described(file, target, local.stat().st_size)
            self._run.check_fence()
            if not storage.put_file_if_unchanged(uri, local, version, self._run.staging):
                raise InterruptedRunError(f"{self._run.uri}: another job works on this run; wait for it, or stop it")
        return Rewritten(described, entry)

    @cached_property
    def _versions(self) -> dict[str, str]:
        return manifest.code_version()

    def _publish(self, done: FinishedRound, files: Sequence[PartFile]) -> None:
        """The manifest as the run wrote it, with the numbers of now."""
        totals = done.totals
        data = storage.read_bytes(self._run.path("manifest.json"))
        if data is None:
            raise InternalError(f"{self._run.uri}: manifest.json is gone; put it back and run the same command again")
        record: dict[str, Any] = json.loads(data)
        for each in (RetryRecord, ExplainRecord):
            entries = [round_.entry for round_ in [*self._done, done] if round_.listed_as == each.listed_as]
            record |= {each.listed_as: entries} if entries else {}
        record["output"] |= {
            "statuses": {task: dict(counts) for task, counts in totals.statuses.items()},
            "labels": {task: dict(counts) for task, counts in totals.labels.items()},
            "explained": dict(totals.explained),
            "num_copied": totals.num_copied,
            "num_prompt_tokens": totals.num_prompt_tokens,
            "num_engine_restarts": totals.num_engine_restarts,
            "num_output_tokens": totals.num_output_tokens,
            "files": [file.model_dump(include={"path", "num_rows", "num_bytes"}) for file in files],
        }
        self._run.republish(record)


def with_rows(table: pa.Table, places: Sequence[int] | np.ndarray[Any, Any], rows: pa.Table) -> pa.Table:
    """The table, where the columns of `rows` have replaced what stood at `places`."""
    if not rows.num_rows:
        return table
    names = rows.column_names
    order = np.arange(table.num_rows)
    order[places] = table.num_rows + np.arange(rows.num_rows)
    mixed = pa.concat_tables([table.select(names), rows]).unify_dictionaries().take(order)
    columns = [mixed[name] if name in names else table[name] for name in table.column_names]
    return pa.Table.from_arrays(columns, schema=table.schema)


def begin(ledger: Ledger, number: int, record: Record) -> None:
    """Lays down what a new round is about: from then on it exists. To be called by the holder of the lease."""
    ledger.check_fence()
    if not storage.put_if_absent(_record_path(ledger, number), record.model_dump_json().encode(), ledger.staging):
        raise InterruptedRunError(f"{ledger.uri}: another job works on this run; wait for it, or stop it")


def unfinished_round(ledger: Ledger, number: int | None = None) -> Record | None:
    """What the round is about that was begun and not finished. `number`: of the finished ones, where it is known."""
    number = len(read_rounds(ledger)) if number is None else number
    record = read_record(_Record, _record_path(ledger, number))
    return None if record is None else record.root


class _StoppedRound(BaseModel):
    """A round that ends with the shards that were committed when it was stopped."""

    shards: list[tuple[int, int]]
    """Ranges [start, stop), in order."""


def stop_round(ledger: Ledger, number: int, committed: Iterable[int]) -> None:
    """Lays down that the round ends with the shards that are committed. To be called by the holder of the lease."""
    ledger.check_fence()
    record = _StoppedRound(shards=to_ranges(sorted(committed)))
    path = _record_path(ledger, number, ".stopped")
    storage.put_if_absent(path, record.model_dump_json().encode(), ledger.staging)  # or stopped before


def stopped_shards(ledger: Ledger, number: int) -> list[tuple[int, int]] | None:
    """The shards that a stopped round ends with, as ranges; None where it was not stopped."""
    record = read_record(_StoppedRound, _record_path(ledger, number, ".stopped"))
    return None if record is None else record.shards


def other_round(ledger: Ledger, standing: Record) -> ConfigError:
    """What to say where another round than the wanted one was begun and not finished."""
    begin = ["mentalglm", standing.command, ledger.uri]
    stop = f"; or end it with what it has: {shlex.join([*begin, '--stop'])}" if standing.command == "explain" else ""
    return ConfigError(
        f"RUN_URI = {ledger.uri}: a `mentalglm {standing.command}` was interrupted; finish it first: "
        f"{shlex.join([*begin, *standing.options()])}{stop}"
    )


def read_rounds(ledger: Ledger) -> list[FinishedRound]:
    """The finished rounds, in order."""
    rounds: list[FinishedRound] = []
    while (done := read_record(FinishedRound, _record_path(ledger, len(rounds), ".done"))) is not None:
        rounds.append(done)
    return rounds


def clear_last(ledger: Ledger, done: Sequence[FinishedRound]) -> None:
    """Deletes what a death after the last word of a round has left. `done`: the finished rounds."""
    if done:
        _delete_staged(round_ledger(ledger, len(done) - 1))


def finished_rounds(ledger: Ledger) -> set[str]:
    """Names of the folders of the rounds that are finished."""
    return {_name(number) for number, _ in enumerate(read_rounds(ledger))}


def effective_totals(ledger: Ledger) -> Totals:
    """Counts over the output as it is now, after the rounds that are finished."""
    rounds = read_rounds(ledger)
    return rounds[-1].totals if rounds else read_totals(ledger)


def round_ledger(ledger: Ledger, number: int) -> Ledger:
    """Where the rows of a round are committed."""
    return Ledger(ledger.uri, ledger.check_fence, folder=f"_run/retries/{_name(number)}")


def _described(file: PartFile, source: pq.ParquetFile, num_bytes: int) -> PartFile:
    """The record of a file as it is now. Raises: InternalError where a round may not have changed it so."""
    ids = chain.from_iterable(batch.column(0).to_pylist() for batch in source.iter_batches(columns=["post_id"]))
    now = file.model_copy(
        update={"num_rows": source.metadata.num_rows, "num_bytes": num_bytes, "id_hash": hash_ids(ids)}
    )
    if file.kind != "errors" and (now.num_rows, now.id_hash) != (file.num_rows, file.id_hash):
        raise InternalError(f"{file.kind}: a file holds other rows than the run has; begin a new run in another folder")
    return now


def _name(number: int) -> str:
    return f"{number:03d}"


def _record_path(ledger: Ledger, number: int, suffix: str = "") -> str:
    return ledger.path("_run", "retries", f"{_name(number)}{suffix}.json")


def _delete_staged(ledger: Ledger) -> None:
    """Deletes the shards' own files of a round whose rows are in `data/`."""
    folder = ledger.path(ledger.folder, "shards")
    for file in list(storage.list_files(folder)):
        storage.delete(storage.join(folder, file.path))
