"""Failed rows are scored again, they alone, and take the place of the old ones: in `data/` each row stays there once.

A round (rounds.py) of the rows that have one of its statuses when it begins. Which ones those are, the commits say.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mentalglm.errors import ConfigError
from mentalglm.scoring.predictions import INPUT_STATUSES, STATUSES, Outcome
from mentalglm.scoring.questions import question_columns
from mentalglm.scoring.rounds.round import (
    FinishedRound,
    OtherRowsError,
    RetryRecord,
    Rewritten,
    Round,
    begin,
    clear_last,
    other_round,
    read_rounds,
    round_ledger,
    unfinished_round,
    with_rows,
)
from mentalglm.scoring.run.commit import ShardCommit, Totals
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import PartFile, finished_parts, part_path, read_staged, split

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


def check_statuses(statuses: Sequence[str]) -> frozenset[str]:
    """The statuses to retry; by default all that another attempt can mend.

    Raises: ConfigError for one that no failed row can have.
    """
    known = [status for status in STATUSES if status != "ok"]
    for status in statuses:
        if status not in known:
            raise ConfigError(f"--status {status}: no failed row can have it; use one of {', '.join(known)}")
    return frozenset(statuses) or frozenset(known) - INPUT_STATUSES


def open_round(ledger: Ledger, statuses: frozenset[str], retry_max_tokens: int | None = None) -> "RetryRound | None":
    """The round that was begun and not finished, else a new one; None where no row has one of `statuses`.

    To be called by the holder of the lease. Raises: ConfigError where the unfinished round is about something else, or
    was begun with other `retry_max_tokens`.
    """
    done = read_rounds(ledger)
    commits = _read_failed(ledger, done)
    clear_last(ledger, done)
    record = RetryRecord(statuses=sorted(statuses), retry_max_tokens=retry_max_tokens)
    standing = unfinished_round(ledger, len(done))
    if standing is None:
        if not any(commit.rows_with(statuses) for commit in commits.values()):
            return None
        begin(ledger, len(done), record)
    elif standing != record:
        raise other_round(ledger, standing)
    return RetryRound(ledger, record, commits, done)


class RetryRound(Round):
    """The failed rows of a run that have one of the record's statuses, on their way to another result.

    `commits`: at least the shards with such rows, as they are before the round, by number; `done`: the rounds
    before it.
    """

    def __init__(
        self,
        ledger: Ledger,
        record: RetryRecord,
        commits: Mapping[int, ShardCommit],
        done: Sequence[FinishedRound],
    ) -> None:
        self._commits = dict(commits)
        self._statuses = frozenset(record.statuses)
        self._rows = {shard: rows for shard, commit in commits.items() if (rows := commit.rows_with(self._statuses))}
        super().__init__(ledger, record, self._rows, done)
        self.num_predictions = sum(len(rows) for tasks in self._rows.values() for rows in tasks.values())

    def pending(self) -> dict[int, dict[str, list[int]]]:
        """shard -> task -> rows of it, for the shards that the round has not committed."""
        done = {commit.shard for commit in self.committed()}
        return {
            shard: {task: list(rows) for task, rows in tasks.items()}
            for shard, tasks in sorted(self._rows.items())
            if shard not in done
        }

    def finish(self, partition_by: Sequence[str]) -> RetrySummary:
        """Brings the committed rows into `data/` and `errors/`, then publishes the new counts. Safe to repeat."""
        finished = self._finish(partition_by)
        return RetrySummary(
            uri=self._run.uri,
            statuses=sorted(self._statuses),
            num_retried=finished.entry["num_retried"],
            retried=finished.entry["now"],
            totals=finished.totals,
        )

    def _count(
        self, totals: Totals, commits: Mapping[int, ShardCommit], rewritten: Sequence[Rewritten]
    ) -> dict[str, Any]:
        for shard, commit in commits.items():
            before = self._commits[shard]
            totals.replace(before, before.after_retry(self._statuses, commit))
        retried = Totals.of(commits.values())
        return {"num_retried": retried.num_predictions, "now": dict(retried.by_status)}

    def _replace(
        self, number: int, commits: Sequence[ShardCommit], standing: Mapping[str, PartFile], partition_by: Sequence[str]
    ) -> Iterator[Rewritten]:
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


def _with_rows(
    source: pq.ParquetFile, rows: pa.Table, statuses: frozenset[str]
) -> tuple[dict[str, Any], Iterator[pa.Table]]:
    """The file, group by group, in its own order, where each of `rows` has replaced the failed row that it was made of.

    Found by id, text and old status: rows that are equal in these stand for each other.
    """
    waiting: dict[tuple[Any, ...], list[int]] = {}
    keys = zip(*(rows[name].to_pylist() for name in ("post_id", "text_hash", _OLD_STATUS)), strict=True)
    for number, key in enumerate(keys):
        waiting.setdefault(key, []).append(number)

    def tables() -> Iterator[pa.Table]:
        num_left = rows.num_rows
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            is_failed = pc.is_in(table["status"].cast(pa.string()), pa.array(sorted(statuses)))
            failed = np.flatnonzero(is_failed.to_numpy())
            keys = table.select(["post_id", "text_hash", "status"]).take(failed).to_pydict()
            places: list[int] = []
            picked: list[int] = []
            for place, key in zip(failed.tolist(), zip(*keys.values(), strict=True), strict=True):
                if numbers := waiting.get(key):
                    places.append(place)
                    picked.append(numbers.pop())
            num_left -= len(picked)
            names = [name for name in table.column_names if name in _REPLACED]
            yield with_rows(table, places, rows.select(names).take(picked))
        if num_left:
            raise OtherRowsError

    return {}, tables()


def _with_errors(
    source: pq.ParquetFile, gone: Mapping[tuple[Any, ...], int], errors: Sequence[pa.Table]
) -> tuple[dict[str, Any], Iterator[pa.Table]]:
    """The file without as many rows of each (post id, task, status, and adapter) as `gone` says, and with `errors`."""

    def tables() -> Iterator[pa.Table]:
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
            raise OtherRowsError
        yield from errors

    return {}, tables()


def _read_failed(ledger: Ledger, rounds: Sequence[FinishedRound]) -> dict[int, ShardCommit]:
    """The shards that had rows without a result when the run was finished, by number, as they are after `rounds`."""
    failed = (shard for _, part in finished_parts(ledger) for shard in part.failed_shards())
    commits = {commit.shard: commit for commit in ledger.read_commits(failed)}
    for number, done in enumerate(rounds):
        if done.listed_as != RetryRecord.listed_as:
            continue
        statuses = frozenset(done.entry["statuses"])
        shards = [shard for shard, commit in commits.items() if commit.rows_with(statuses)]
        for retried in round_ledger(ledger, number).read_commits(shards):
            commits[retried.shard] = commits[retried.shard].after_retry(statuses, retried)
    return commits
