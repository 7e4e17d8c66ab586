"""Failed rows are scored again, they alone, and take the place of the old ones: in `data/` each row stays there once.

A round is decided by its record, created by whoever is first: the rows that have one of its statuses when it begins.
They are scored and committed like the shards of a run, in a folder of the round. Then each file of `data/` and
`errors/` that holds some of them is written anew under its own name, so that a reader sees the old file or the new
one, whole. The footer of a file says which rounds are in it; whoever comes after a death changes only the others.

    _run/retries/<round>.json                    which statuses
    _run/retries/<round>/{shards,commits}/...    as in _run/
    _run/retries/<round>.done.json               what came of it; written last, after manifest.json and README.md

A file takes the place of the very one that it was made of, or is not written: a job that was taken for dead and wakes
up in the middle of a write puts there what the round decided, or nothing, where another job has been there since.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from mentalglm import manifest, storage
from mentalglm.errors import ConfigError, InternalError, InterruptedRunError
from mentalglm.scoring.commit import ShardCommit, Totals
from mentalglm.scoring.ledger import Ledger, read_record
from mentalglm.scoring.parts import (
    PartFile,
    StagedFileError,
    finished_parts,
    part_path,
    read_staged,
    read_totals,
    split,
)
from mentalglm.scoring.predictions import INPUT_STATUSES, PARQUET_OPTIONS, STATUSES, Outcome, hash_ids
from mentalglm.scoring.questions import question_columns

# The input decides the other columns; those may differ between rows that are interchangeable here.
_REPLACED = frozenset(field.name for field in fields(Outcome)) - {"reason"}
_OLD_STATUS = "\0old status"  # a name that no kept column has


@dataclass(frozen=True, slots=True)
class RetrySummary:
    """What came of a retry."""

    uri: str
    statuses: list[str]
    """Rows with one of these were scored again."""
    num_retried: int
    retried: dict[str, int]
    """Their statuses now."""
    totals: Totals
    """Of the whole run, as it is now."""

    def describe(self) -> str:
        """One line for a person."""
        left = ", ".join(f"{status} {n}" for status, n in self.totals.by_status.most_common() if status != "ok")
        left = f"without a result in the whole run: {left or 'none'}"
        if not self.num_retried:
            return f"{self.uri}: nothing to retry, no row is {' or '.join(self.statuses)}; {left}"
        num_ok = self.retried.get("ok", 0)
        return (
            f"{self.uri}: {self.num_retried} predictions retried, {num_ok} ok now, "
            f"{self.num_retried - num_ok} still failed; {left}"
        )


class _Round(BaseModel):
    """What a round is about."""

    statuses: list[str]
    retry_max_tokens: int | None
    """How many tokens answers that were cut off got in it."""


class _FinishedRound(BaseModel):
    """A finished round."""

    entry: dict[str, Any]
    """What the manifest says of it."""
    files: list[PartFile]
    """The files that it has replaced, as they are after it."""
    totals: Totals
    """Of the whole run after it."""


def check_statuses(statuses: Sequence[str]) -> frozenset[str]:
    """The statuses to retry; by default all that another attempt can mend.

    Raises: ConfigError for one that no failed row can have.
    """
    known = [status for status in STATUSES if status != "ok"]
    for status in statuses:
        if status not in known:
            raise ConfigError(f"--status {status}: no failed row can have it; use one of {', '.join(known)}")
    return frozenset(statuses) or frozenset(known) - INPUT_STATUSES


def effective_totals(ledger: Ledger) -> Totals:
    """Counts over the output as it is now, after the retries that are finished."""
    rounds = _read_rounds(ledger)
    return rounds[-1].totals if rounds else read_totals(ledger)


def open_round(ledger: Ledger, statuses: frozenset[str], retry_max_tokens: int | None = None) -> "RetryRound | None":
    """The round that was begun and not finished, else a new one; None where no row has one of `statuses`.

    To be called by the holder of the lease. Raises: ConfigError where the unfinished round is about other statuses, or
    was begun with other `retry_max_tokens`.
    """
    done = _read_rounds(ledger)
    commits = _read_failed(ledger, done)
    if done:
        _delete_staged(_round_ledger(ledger, len(done) - 1))  # what a death after the last word has left
    path = _record_path(ledger, len(done))
    standing = read_record(_Round, path)
    if standing is None:
        if not any(commit.rows_with(statuses) for commit in commits.values()):
            return None
        standing = _Round(statuses=sorted(statuses), retry_max_tokens=retry_max_tokens)
        ledger.check_fence()
        if not storage.put_if_absent(path, standing.model_dump_json().encode(), ledger.staging):
            raise InterruptedRunError(f"{ledger.uri}: another job works on this run; wait for it, or stop it")
    if standing != _Round(statuses=sorted(statuses), retry_max_tokens=retry_max_tokens):
        options = " ".join(f"--status {status}" for status in standing.statuses)
        if standing.retry_max_tokens is not None:
            options += f" --set generation.retry_max_tokens={standing.retry_max_tokens}"
        raise ConfigError(
            f"--status, --set: a retry with others was interrupted; finish it first: mentalglm retry {ledger.uri} "
            f"{options}"
        )
    return RetryRound(ledger, standing, commits, done)


class RetryRound:
    """The failed rows of a run that have one of the record's statuses, on their way to another result.

    `commits`: at least the shards with such rows, as they are before the round, by number; `done`: the rounds
    before it.
    """

    def __init__(
        self,
        ledger: Ledger,
        record: _Round,
        commits: Mapping[int, ShardCommit],
        done: Sequence[_FinishedRound],
    ) -> None:
        self._run = ledger
        self._record = record
        self._done = list(done)
        self._commits = dict(commits)
        self._statuses = frozenset(record.statuses)
        self._rows = {
            shard: rows for shard, commit in sorted(commits.items()) if (rows := commit.rows_with(self._statuses))
        }
        self.number = len(done)
        self.ledger = _round_ledger(ledger, self.number)
        """Where the rows are committed."""
        self.num_predictions = sum(len(rows) for tasks in self._rows.values() for rows in tasks.values())

    def committed(self) -> list[ShardCommit]:
        """The shards of the round that are done."""
        return self.ledger.read_commits(self._rows)

    def pending(self) -> dict[int, dict[str, list[int]]]:
        """shard -> task -> rows of it, for the shards that the round has not committed."""
        done = {commit.shard for commit in self.committed()}
        return {
            shard: {task: list(rows) for task, rows in tasks.items()}
            for shard, tasks in self._rows.items()
            if shard not in done
        }

    def finish(self, partition_by: Sequence[str]) -> RetrySummary:
        """Brings the committed rows into `data/` and `errors/`, then publishes the new counts. Safe to repeat."""
        retried = {commit.shard: commit for commit in self.committed()}
        if retried.keys() != self._rows.keys():
            raise InternalError(f"{self._run.uri}: shards of retry {self.number} are missing; please report it")
        try:
            replaced, written = self._replace_all(retried, partition_by)
        except StagedFileError:
            # Whoever took the run over may have finished the round, and deleted them.
            self._run.check_fence()
            finished = read_record(_FinishedRound, _record_path(self._run, self.number, ".done"))
            if finished is None:
                raise
            return self._summary(finished)
        # Not `effective_totals`: a job that was taken for dead may have finished this very round meanwhile.
        totals = self._done[-1].totals if self._done else read_totals(self._run)
        for shard, commit in retried.items():
            before = self._commits[shard]
            totals.replace(before, before.after_retry(self._statuses, commit))
        finished = _FinishedRound(entry=self._entry(Totals.of(retried.values())), files=replaced, totals=totals)
        self._publish(finished, written)
        self._run.check_fence()
        path = _record_path(self._run, self.number, ".done")
        storage.put_if_absent(path, finished.model_dump_json().encode(), self._run.staging)
        self._run.check_fence()
        _delete_staged(self.ledger)
        return self._summary(finished)

    def _summary(self, finished: _FinishedRound) -> RetrySummary:
        return RetrySummary(
            uri=self._run.uri,
            statuses=sorted(self._statuses),
            num_retried=finished.entry["num_retried"],
            retried=finished.entry["now"],
            totals=finished.totals,
        )

    def _replace_all(
        self, retried: Mapping[int, ShardCommit], partition_by: Sequence[str]
    ) -> tuple[list[PartFile], list[PartFile]]:
        """(the files that were written anew, every file of the output), as they are now."""
        files = {file.path: file for each in self._done for file in each.files}
        replaced: list[PartFile] = []
        written: list[PartFile] = []
        for number, (part, first) in enumerate(finished_parts(self._run)):
            standing = {file.path: files.get(file.path, file) for file in first.files}
            commits = [retried[shard] for shard in part.numbers() if shard in retried and retried[shard].files]
            changed = {file.path: file for file in self._replace(number, commits, standing, partition_by)}
            replaced += changed.values()
            written += [changed.get(path, file) for path, file in standing.items()]
        return replaced, written

    def _replace(
        self, number: int, commits: Sequence[ShardCommit], standing: Mapping[str, PartFile], partition_by: Sequence[str]
    ) -> Iterator[PartFile]:
        """Writes the files of a part that hold rows of these shards anew."""
        gone: Counter[tuple[Any, ...]] = Counter()
        for kind in sorted({kind for commit in commits for kind in commit.files} - {"errors"}):
            task = kind.removeprefix("task=")
            having = [commit for commit in commits if kind in commit.files]
            tables: list[pa.Table] = []
            for commit, table in zip(having, read_staged(self.ledger, kind, having), strict=True):
                statuses = list(self._rows[commit.shard][task].values())
                columns = question_columns(task).values()
                gone.update(
                    (post_id, *columns, status)
                    for post_id, status in zip(table["post_id"].to_pylist(), statuses, strict=True)
                )
                tables.append(table.append_column(_OLD_STATUS, pa.array(statuses, pa.string())))
            for place, rows in split(pa.concat_tables(tables), partition_by):
                file = standing[part_path(kind, place, number)]
                yield self._rewrite(file, partial(_with_rows, rows=rows, statuses=self._statuses))
        if gone:
            having = [commit for commit in commits if "errors" in commit.files]
            errors = list(read_staged(self.ledger, "errors", having))
            file = standing[part_path("errors", "", number)]
            yield self._rewrite(file, partial(_with_errors, gone=gone, errors=errors))

    def _rewrite(self, file: PartFile, change: Callable[[pq.ParquetFile], Iterator[pa.Table]]) -> PartFile:
        """Puts the changed file in the place of the old one, unless that is done; returns what is there then."""
        uri = self._run.path(file.path)
        found = storage.read_versioned(uri)
        if found is None:
            raise InternalError(f"{storage.shown(uri)} is gone since it was written; begin a new run in another folder")
        data, version = found
        source = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        schema = source.schema_arrow
        footer = json.loads(schema.metadata[b"mentalglm"])
        rounds = footer.get("retries", [])
        if any(each["round"] == self.number for each in rounds):
            return _described(file, source, len(data))
        footer["retries"] = [*rounds, {"round": self.number, **self._record.model_dump(), "versions": self._versions}]
        metadata = {**schema.metadata, b"mentalglm": json.dumps(footer, ensure_ascii=False).encode()}
        with self._run.scratch() as folder:
            local = folder / "part.parquet"
            try:
                with pq.ParquetWriter(local, schema.with_metadata(metadata), **PARQUET_OPTIONS) as writer:
                    for table in change(source):
                        writer.write_table(table)
            except _OtherRowsError:
                where = storage.shown(uri)
                raise InternalError(f"{where}: does not hold the rows that were retried; please report it") from None
            with pq.ParquetFile(local) as target:
                described = _described(file, target, local.stat().st_size)
            self._run.check_fence()
            if not storage.put_file_if_unchanged(uri, local, version, self._run.staging):
                raise InterruptedRunError(f"{self._run.uri}: another job works on this run; wait for it, or stop it")
        return described

    @cached_property
    def _versions(self) -> dict[str, str]:
        return manifest.code_version()

    def _entry(self, retried: Totals) -> dict[str, Any]:
        return {
            "round": self.number,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **self._record.model_dump(),
            "num_retried": retried.num_predictions,
            "now": dict(retried.by_status),
            "engines": retried.engines,
            "versions": self._versions,
        }

    def _publish(self, done: _FinishedRound, files: Sequence[PartFile]) -> None:
        """The manifest as the run wrote it, with the numbers of now."""
        totals = done.totals
        data = storage.read_bytes(self._run.path("manifest.json"))
        if data is None:
            raise InternalError(f"{self._run.uri}: manifest.json is gone; put it back and run the same command again")
        record: dict[str, Any] = json.loads(data)
        record["retries"] = [each.entry for each in [*self._done, done]]
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


class _OtherRowsError(Exception):
    """A file does not hold rows that it should."""


def _with_rows(source: pq.ParquetFile, rows: pa.Table, statuses: frozenset[str]) -> Iterator[pa.Table]:
    """The file, group by group, in its own order, where each of `rows` has replaced the failed row that it was made of.

    Found by id, text and old status: rows that are equal in these stand for each other.
    """
    waiting: dict[tuple[Any, ...], list[int]] = {}
    keys = zip(*(rows[name].to_pylist() for name in ("post_id", "text_hash", _OLD_STATUS)), strict=True)
    for number, key in enumerate(keys):
        waiting.setdefault(key, []).append(number)
    num_left = rows.num_rows
    for group in range(source.num_row_groups):
        table = source.read_row_group(group)
        is_failed = pc.is_in(table["status"].cast(pa.string()), pa.array(sorted(statuses)))
        places = np.flatnonzero(is_failed.to_numpy())
        failed = table.select(["post_id", "text_hash", "status"]).take(places).to_pydict()
        order = np.arange(table.num_rows)
        picked: list[int] = []
        for place, key in zip(places, zip(*failed.values(), strict=True), strict=True):
            if numbers := waiting.get(key):
                order[place] = table.num_rows + len(picked)
                picked.append(numbers.pop())
        if picked:
            names = [name for name in table.column_names if name in _REPLACED]
            both = pa.concat_tables([table.select(names), rows.select(names).take(picked)])
            mixed = both.unify_dictionaries().take(order)
            columns = [mixed[name] if name in _REPLACED else table[name] for name in table.column_names]
            table = pa.Table.from_arrays(columns, schema=table.schema)
        num_left -= len(picked)
        yield table
    if num_left:
        raise _OtherRowsError


def _with_errors(
    source: pq.ParquetFile, gone: Mapping[tuple[Any, ...], int], errors: Sequence[pa.Table]
) -> Iterator[pa.Table]:
    """The file without as many rows of each (post id, task, status, and adapter) as `gone` says, and with `errors`."""
    left = Counter(gone)
    for group in range(source.num_row_groups):
        table = source.read_row_group(group)
        stays = []
        names = [name for name in table.column_names if name != "reason"]
        for key in zip(*(table[name].to_pylist() for name in names), strict=True):
            stays.append(not left[key])
            left[key] -= 0 if stays[-1] else 1
        yield table.filter(pa.array(stays, pa.bool_()))
    if left.total():
        raise _OtherRowsError
    yield from errors


def _described(file: PartFile, source: pq.ParquetFile, num_bytes: int) -> PartFile:
    """The record of a file as it is now. Raises: InternalError where a retry may not have changed it so."""
    ids = chain.from_iterable(batch.column(0).to_pylist() for batch in source.iter_batches(columns=["post_id"]))
    now = file.model_copy(
        update={"num_rows": source.metadata.num_rows, "num_bytes": num_bytes, "id_hash": hash_ids(ids)}
    )
    if file.kind != "errors" and (now.num_rows, now.id_hash) != (file.num_rows, file.id_hash):
        raise InternalError(f"{file.kind}: a file holds other rows than the run has; begin a new run in another folder")
    return now


def finished_rounds(ledger: Ledger) -> set[str]:
    """Names of the folders of the rounds that are finished."""
    return {_name(number) for number, _ in enumerate(_read_rounds(ledger))}


def has_unfinished_round(ledger: Ledger) -> bool:
    """Whether a retry was begun and not finished."""
    return storage.exists(_record_path(ledger, len(_read_rounds(ledger))))


def _read_rounds(ledger: Ledger) -> list[_FinishedRound]:
    rounds: list[_FinishedRound] = []
    while (done := read_record(_FinishedRound, _record_path(ledger, len(rounds), ".done"))) is not None:
        rounds.append(done)
    return rounds


def _read_failed(ledger: Ledger, rounds: Sequence[_FinishedRound]) -> dict[int, ShardCommit]:
    """The shards that had rows without a result when the run was finished, by number, as they are after `rounds`."""
    failed = (shard for _, part in finished_parts(ledger) for shard in part.failed_shards())
    commits = {commit.shard: commit for commit in ledger.read_commits(failed)}
    for number, done in enumerate(rounds):
        statuses = frozenset(done.entry["statuses"])
        shards = [shard for shard, commit in commits.items() if commit.rows_with(statuses)]
        for retried in _round_ledger(ledger, number).read_commits(shards):
            commits[retried.shard] = commits[retried.shard].after_retry(statuses, retried)
    return commits


def _name(number: int) -> str:
    return f"{number:03d}"


def _round_ledger(ledger: Ledger, number: int) -> Ledger:
    return Ledger(ledger.uri, ledger.check_fence, folder=f"_run/retries/{_name(number)}")


def _record_path(ledger: Ledger, number: int, suffix: str = "") -> str:
    return ledger.path("_run", "retries", f"{_name(number)}{suffix}.json")


def _delete_staged(ledger: Ledger) -> None:
    """Deletes the shards' own files of a round whose rows are in `data/`."""
    folder = ledger.path(ledger.folder, "shards")
    for file in list(storage.list_files(folder)):
        storage.delete(storage.join(folder, file.path))
