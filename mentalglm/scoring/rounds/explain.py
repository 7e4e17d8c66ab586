"""Explanations are added to a finished run: labels, status and confidence of every row stay what they are.

A round (rounds.py) of the rows that have labels and no explanation and that a policy, `explain` and `cascade`, chooses.
Which ones those are, no commit says: so the driver counts them in `data/`, part by part, and each worker looks for
those of its shards (unexplained.py). They are the same all through the round: `data/` changes when all its shards are
committed, and then its record and its commits say all.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mentalglm.config import ScoreConfig
from mentalglm.errors import ConfigError
from mentalglm.scoring.cascade import DISAGREES, FAILED, MISSING
from mentalglm.scoring.questions import question_columns
from mentalglm.scoring.rounds.round import (
    ExplainRecord,
    FinishedRound,
    OtherRowsError,
    Rewritten,
    Round,
    begin,
    clear_last,
    other_round,
    read_rounds,
    stop_round,
    stopped_shards,
    unfinished_round,
    with_rows,
)
from mentalglm.scoring.rounds.unexplained import CHOSEN_BY, RowIndex, choose, count_wanted, same_labels
from mentalglm.scoring.run.commit import ShardCommit, Totals
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import PartFile, finished_parts, numbers_of, part_path, read_staged, split, to_ranges
from mentalglm.tasks import Task

_REPLACED = ["explanation", "finish_reason", "num_output_tokens", "flags"]
_NEEDED = ["post_id", "text_hash", "labels", "parents", *_REPLACED]


@dataclass(frozen=True, slots=True)
class ExplainSummary:
    """What came of adding explanations."""

    uri: str
    explain: str
    num_wanted: int
    """Rows without an explanation that `explain` chose."""
    now: dict[str, int]
    """How many of them are `explained`; how many have which flag that says why they are not."""
    totals: Totals
    """Of the whole run, as it is now."""

    def describe(self) -> str:
        """One line for a person."""
        whole = f"{self.totals.explained.total()} of {self.totals.num_predictions} predictions have an explanation"
        if not self.num_wanted:
            return f"{self.uri}: nothing to explain, explain: {self.explain} chooses no row without one; {whole}"
        parts = [f"{self.now['explained']} of {self.num_wanted} predictions explained"]
        for flag, what in (
            (FAILED, "failed (the same command asks for these again)"),
            (DISAGREES, "without, since the answer had other labels this time"),
            (MISSING, "without, since the answer gives none"),
        ):
            parts += [f"{self.now[flag]} {what}"] if self.now[flag] else []
        num_left = self.num_wanted - sum(self.now.values())
        left = f"{num_left} left for another call"
        parts += [left] if num_left else []
        return f"{self.uri}: {', '.join(parts)}; {whole}"


def check_policy(config: ScoreConfig) -> None:
    """Raises: ConfigError where nothing is to be explained."""
    if config.explain == "none":
        raise ConfigError(
            "explain = none: adds nothing; say what to explain: --set explain=positive (or uncertain, all)"
        )


def with_room(config: ScoreConfig, ledger: Ledger) -> ScoreConfig:
    """The config, in which an answer that was cut off gets as many tokens as any retry of the run has given it: with
    fewer it would be cut off again."""
    given = [round_.entry.get("retry_max_tokens") for round_ in read_rounds(ledger)]
    most = max((each for each in (*given, config.generation.retry_max_tokens) if each is not None), default=None)
    return config.model_copy(update={"generation": config.generation.model_copy(update={"retry_max_tokens": most})})


def open_explanations(
    ledger: Ledger, config: ScoreConfig, tasks: Sequence[Task], check: Callable[[], None]
) -> "ExplainRound | None":
    """The round that was begun and not finished, else a new one; None where there is nothing to explain.

    `check`: raises what would keep a round from being made, called before one is begun: it would stand in the way of
    others. To be called by the holder of the lease. Raises: ConfigError where the unfinished round is another one.
    """
    done = read_rounds(ledger)
    clear_last(ledger, done)
    policy: dict[str, Any] = {
        "explain": config.explain,
        "cascade": config.explained_by(),
        "retry_max_tokens": config.generation.retry_max_tokens,
    }
    standing = unfinished_round(ledger, len(done))
    if standing is None:
        shards, num_wanted = _count_wanted(ledger, config, tasks)
        if not num_wanted:
            return None
        check()
        record = ExplainRecord(**policy, shards=to_ranges(sorted(shards)), num_wanted=num_wanted)
        begin(ledger, len(done), record)
    elif isinstance(standing, ExplainRecord) and standing.described() == policy:
        record = standing
    else:
        raise other_round(ledger, standing)
    return ExplainRound(ledger, record, config, tasks, done)


def stop_explanations(ledger: Ledger, config: ScoreConfig, tasks: Sequence[Task]) -> "ExplainRound":
    """The round that was begun and not finished, to be finished with the shards that it has committed.

    To be called by the holder of the lease. Raises: ConfigError where there is none.
    """
    done = read_rounds(ledger)
    record = unfinished_round(ledger, len(done))
    if not isinstance(record, ExplainRecord):
        raise ConfigError(f"--stop: no `mentalglm explain` of {ledger.uri} was interrupted; leave it out")
    policy = config.model_copy(update={"explain": record.explain, "cascade": record.cascade_of(config.cascade)})
    begun = ExplainRound(ledger, record, policy, tasks, done)
    stop_round(ledger, len(done), (commit.shard for commit in begun.committed()))
    return ExplainRound(ledger, record, policy, tasks, done)


def _count_wanted(ledger: Ledger, config: ScoreConfig, tasks: Sequence[Task]) -> tuple[list[int], int]:
    """(shards of the parts in which rows are to be explained, how many rows those are)."""
    shards: list[int] = []
    total = 0
    for part, finished in finished_parts(ledger):
        if num_wanted := count_wanted(ledger, config, tasks, finished):
            total += num_wanted
            unreadable = {each.shard for each in finished.totals.unreadable}
            shards += [shard for shard in part.numbers() if shard not in unreadable]
    return shards, total


class ExplainRound(Round):
    """The rows of a run that the record's policy chooses, on their way to an explanation."""

    def __init__(
        self,
        ledger: Ledger,
        record: ExplainRecord,
        config: ScoreConfig,
        tasks: Sequence[Task],
        done: Sequence[FinishedRound],
    ) -> None:
        shards = stopped_shards(ledger, len(done))
        super().__init__(ledger, record, list(numbers_of(record.shards if shards is None else shards)), done)
        self._record = record
        self._config = config
        self._tasks = {task.name: task for task in tasks}
        self.num_predictions = record.num_wanted

    def pending(self) -> list[int]:
        """The shards that the round has not committed, in order."""
        done = {commit.shard for commit in self.committed()}
        return [shard for shard in self._shards if shard not in done]

    def parts(self) -> list[tuple[int, int, int]]:
        """For `UnexplainedRows`: in which part the rows of which shards are."""
        return sorted(
            (start, stop, number)
            for number, (part, _) in enumerate(finished_parts(self._run))
            for start, stop in part.shards
        )

    def finish(self, partition_by: Sequence[str]) -> ExplainSummary:
        """Brings the explanations into `data/`, then publishes the new counts. Safe to repeat."""
        finished = self._finish(partition_by)
        return ExplainSummary(
            self._run.uri, self._record.explain, self._record.num_wanted, finished.entry["now"], finished.totals
        )

    def _replace(
        self, number: int, commits: Sequence[ShardCommit], standing: Mapping[str, PartFile], partition_by: Sequence[str]
    ) -> Iterator[Rewritten]:
        for kind in sorted({kind for commit in commits for kind in commit.files}):
            task = self._tasks[question_columns(kind.removeprefix("task="))["task"]]
            having = [commit for commit in commits if kind in commit.files]
            tables = [_needed(table, partition_by) for table in read_staged(self.ledger, kind, having)]
            for place, rows in split(pa.concat_tables(tables), partition_by):
                file = standing[part_path(kind, place, number)]
                yield self._rewrite(file, partial(_with_explanations, rows=rows, config=self._config, task=task))

    def _count(
        self, totals: Totals, commits: Mapping[int, ShardCommit], rewritten: Sequence[Rewritten]
    ) -> dict[str, Any]:
        now = Counter(dict.fromkeys(("explained", FAILED, DISAGREES, MISSING), 0))
        for each in rewritten:
            now.update(each.footer["now"])
            totals.explained[each.file.kind.removeprefix("task=")] += each.footer["now"]["explained"]
        spent = Totals.of(commits.values())
        totals.num_prompt_tokens += spent.num_prompt_tokens
        totals.num_output_tokens += spent.num_output_tokens
        totals.num_engine_restarts += spent.num_engine_restarts
        totals.effort += spent.effort
        return {"num_wanted": self._record.num_wanted, "now": dict(now)}


def _needed(table: pa.Table, partition_by: Sequence[str]) -> pa.Table:
    needed = table.select([*_NEEDED, *partition_by])
    column = needed.schema.get_field_index("explanation")  # those of a part may be more than 2 GiB
    return needed.set_column(column, "explanation", needed["explanation"].cast(pa.large_string()))


def _with_explanations(
    source: pq.ParquetFile, rows: pa.Table, config: ScoreConfig, task: Task
) -> tuple[dict[str, Any], Iterator[pa.Table]]:
    """What came of the rows of a file that are to be explained; the file, group by group, in its own order, with that.

    Found by id and text: rows that are equal in these stand for each other, where they have the same labels.
    """
    rows = rows.combine_chunks()
    index, taken = RowIndex(rows), np.zeros(rows.num_rows, bool)
    picks = []
    for group in range(source.num_row_groups):
        table = source.read_row_group(group, columns=CHOSEN_BY)
        places, _ = choose(config, task, table)
        found = index.find(table.take(places), taken)
        places, found = places[found >= 0], found[found >= 0]
        # One post, twice in the input and labelled differently: what is left gets its turn with the next call.
        is_same = same_labels(table.take(places), rows.take(found))
        picks.append((places[is_same], found[is_same]))
    if not taken.all():  # what is left may only be another answer for a post that is twice in the input
        left = {*_ids(rows.filter(pa.array(~taken)))}
        if left - {each for each in _ids(rows.filter(pa.array(taken))) if each in left}:
            raise OtherRowsError
    asked = np.concatenate([found for _, found in picks])
    flags = Counter(rows["flags"].take(asked).combine_chunks().flatten().to_pylist())
    now = {"explained": int(rows["explanation"].is_valid().to_numpy()[asked].sum())}
    now |= {flag: flags[flag] for flag in (FAILED, DISAGREES, MISSING)}

    def tables() -> Iterator[pa.Table]:
        for group, (places, found) in enumerate(picks):
            table = source.read_row_group(group)
            answers = rows.select(_REPLACED).take(found)
            before = table["num_output_tokens"].take(places)
            paid = pc.add(pc.fill_null(before, 0), answers["num_output_tokens"])
            paid = pc.if_else(pc.is_null(paid), before, paid)
            column = answers.schema.get_field_index("num_output_tokens")
            answers = answers.set_column(column, "num_output_tokens", paid)
            yield with_rows(table, places, answers.cast(pa.schema([table.schema.field(name) for name in _REPLACED])))

    return {"now": now}, tables()


def _ids(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(table["post_id"].to_pylist(), table["text_hash"].to_pylist(), strict=True)
