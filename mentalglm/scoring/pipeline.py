"""The score job: posts in, scored Parquet out."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mentalglm import manifest
from mentalglm.cluster import connect
from mentalglm.config import ScoreConfig
from mentalglm.corpus import CorpusPlan
from mentalglm.errors import ConfigError, ErrorBudgetExceededError, InputError, InternalError
from mentalglm.scoring.duplicates import find_duplicates
from mentalglm.scoring.forecast.estimate import Accuracy, Attempt, check_estimate, read_accuracy
from mentalglm.scoring.job import Job, standing_config
from mentalglm.scoring.order import handing_order
from mentalglm.scoring.pool import check_resources, score_shards
from mentalglm.scoring.questions import Question
from mentalglm.scoring.rounds.explain import (
    ExplainSummary,
    check_policy,
    open_explanations,
    stop_explanations,
    with_room,
)
from mentalglm.scoring.rounds.retry import RetrySummary, check_statuses, open_round
from mentalglm.scoring.rounds.round import effective_totals
from mentalglm.scoring.run.commit import Totals
from mentalglm.scoring.run.lease import Lease
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import PartWriter
from mentalglm.scoring.throughput import Throughput
from mentalglm.scoring.worker import RunSpec


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A finished run."""

    uri: str
    totals: Totals
    num_unreadable_files: int
    num_unreadable_rows: int
    """Rows of unreadable files whose number is known, and of unreadable parts of the others."""
    num_new_files: int
    """Files of the input that came since the run began, and are not in it."""
    seconds: float
    throughput: dict[str, Any] | None = None
    """Of this attempt; see `Throughput.report`."""
    already_complete: bool = False
    estimate: Accuracy | None = None
    """How wrong the estimate was, where one was made before."""


def score(config: ScoreConfig) -> RunSummary:
    """Scores every post of the input on every task. The same call resumes an interrupted run.

    Raises: ConfigError, InputError; ErrorBudgetExceededError when too many rows fail; InterruptedRunError when storage,
    cluster or engines fail, or another job works on the run. What is committed by then is kept.
    """
    started, began = time.monotonic(), time.time()
    job = Job.resolve(config)
    ledger = Ledger(job.config.output.uri)
    plan = job.open_run(ledger)
    num_new_files = job.check_input(plan)
    throughput = None
    if not (complete := ledger.is_complete()):
        with Lease.acquire(ledger.uri) as lease:
            if not (complete := ledger.is_complete()):  # by the job whose lease was waited for
                totals, throughput = _run(job, plan, Ledger(ledger.uri, lease.check), lease, began)
    if complete:
        totals = effective_totals(ledger)
    return RunSummary(
        uri=ledger.uri,
        totals=totals,
        num_unreadable_files=len(plan.quarantined),
        num_unreadable_rows=_num_unreadable_rows(plan, totals),
        num_new_files=num_new_files,
        seconds=time.monotonic() - started,
        throughput=throughput,
        already_complete=complete,
        estimate=read_accuracy(ledger),
    )


def _run(
    job: Job, plan: CorpusPlan, ledger: Ledger, lease: Lease, began: float
) -> tuple[Totals, dict[str, Any] | None]:
    """Scores what is not committed yet, writes the parts, checks that rows add up, publishes.

    `began`: s since 1970. Returns counts, and the `Throughput` report of this attempt.
    """
    output = job.config.output
    parts = PartWriter(ledger, target_bytes=int(output.target_file_mb * 1e6), partition_by=output.partition_by)
    pending, totals = parts.missing(plan.num_shards), parts.totals
    spec = RunSpec(job.config, job.tasks, job.model, job.footer(ledger.record.run_id), lease.epoch, started=began)
    throughput = Throughput(began, min(job.config.engine.num_engines, len(pending)))
    budget = _ErrorBudget(job.config.max_error_rate, plan.num_rows, len(job.questions))
    try:
        budget.check(totals)
        if job.config.dedup == "corpus" and pending:
            connect()
            find_duplicates(job.config, plan, ledger)
        pending = handing_order(job.config, pending, plan.shard_num_rows, len(job.questions))
        attempt = Attempt(plan.num_rows - totals.num_rows - totals.num_quarantined)
        for commit in score_shards(
            spec, pending, budget.num_predictions, totals, lease, lambda: budget.error(totals), on_start=attempt.start
        ):
            parts.add(commit)
            throughput.add(commit)
        attempt.end()
        budget.num_predictions -= totals.num_unusable
        budget.check(totals)
    except ErrorBudgetExceededError:
        parts.flush()  # errors/ shows what went wrong
        raise
    parts.flush()
    job.check_input(plan)
    _check_conservation(plan, totals, job.questions, parts)
    parts.check_files()
    report = throughput.report()
    record = _manifest(ledger, plan, totals, parts, spec.provenance, report, seconds=time.time() - began)
    accuracy = check_estimate(ledger, job.config.engine.model_dump(mode="json"), totals, attempt)
    ledger.publish(record | ({"estimate": accuracy.model_dump()} if accuracy else {}))
    return totals, report


def retry(run_uri: str, statuses: Sequence[str] = (), overrides: Sequence[str] = ()) -> RetrySummary:
    """Scores the failed rows of a finished run again, and puts the results in their place.

    `statuses`: which; by default every failure but those of unusable input. `overrides`: `a.b=value`, of the config
    that the run was begun with. The same call goes on with an interrupted retry. No error budget: the run is complete.
    Raises: ConfigError where there is no finished run, or the job would be another than the run's; InputError;
    InterruptedRunError.
    """
    chosen = check_statuses(statuses)
    job, ledger = _finished_run(run_uri, overrides, may_differ=["generation.retry_max_tokens"])
    with Lease.acquire(ledger.uri) as lease:
        ledger = Ledger(ledger.uri, lease.check)
        current = open_round(ledger, chosen, job.config.generation.retry_max_tokens)
        if current is None:
            return RetrySummary(ledger.uri, sorted(chosen), 0, {}, effective_totals(ledger))
        rows = current.pending()
        footer = job.footer(ledger.record.run_id)
        spec = RunSpec(job.config, job.tasks, job.model, footer, lease.epoch, current.ledger.folder, rows)
        totals = Totals.of(current.committed())
        num_rows = {shard: sum(map(len, tasks.values())) for shard, tasks in rows.items()}
        pending = handing_order(job.config, list(rows), num_rows, len(job.questions))
        for commit in score_shards(spec, pending, current.num_predictions, totals, lease, lambda: None):
            totals.add(commit)
        return current.finish(job.config.output.partition_by)


def explain(run_uri: str, overrides: Sequence[str] = (), *, is_to_stop: bool = False) -> ExplainSummary:
    """Adds explanations to a finished run, where `explain` and `cascade` choose rows that have none.

    `overrides`: `a.b=value`, of the config that the run was begun with; `explain` and `cascade` may be others. The same
    call goes on with an interrupted one. No error budget: labels stay what they are.
    `is_to_stop`: end an interrupted call, whatever it was about, with the explanations that it has.
    Raises: as `retry`.
    """
    may_differ = ["explain", "cascade", "generation.retry_max_tokens"]
    job, ledger = _finished_run(run_uri, overrides, may_differ)
    job = replace(job, config=with_room(job.config, ledger))
    if not is_to_stop:
        check_policy(job.config)
    with Lease.acquire(ledger.uri) as lease:
        ledger = Ledger(ledger.uri, lease.check)
        if is_to_stop:
            return stop_explanations(ledger, job.config, job.tasks).finish(job.config.output.partition_by)
        had_all = ledger.record.fingerprint["explain"] == "all"  # asked for with every answer: where none is, none came
        check = partial(check_resources, job.config)
        current = None if had_all else open_explanations(ledger, job.config, job.tasks, check)
        if current is None:
            return ExplainSummary(ledger.uri, job.config.explain, 0, {}, effective_totals(ledger))
        footer = job.footer(ledger.record.run_id)
        spec = RunSpec(
            job.config, job.tasks, job.model, footer, lease.epoch, current.ledger.folder, explains=current.parts()
        )
        totals = Totals.of(current.committed())
        # In order: a worker keeps what it has read of the last parts.
        for commit in score_shards(spec, current.pending(), current.num_predictions, totals, lease, lambda: None):
            totals.add(commit)
        return current.finish(job.config.output.partition_by)


def _finished_run(run_uri: str, overrides: Sequence[str], may_differ: Sequence[str]) -> tuple[Job, Ledger]:
    """The job that a finished run was made by, with changes. Raises: ConfigError, InputError."""
    job = Job.resolve(standing_config(run_uri, overrides))
    ledger = Ledger(job.config.output.uri)
    if not ledger.is_complete():
        raise ConfigError(f"RUN_URI = {run_uri}: the run is not finished; finish it with `mentalglm score` first")
    job.check_standing_run(ledger, may_differ=may_differ)
    return job, ledger


def plan_run(config: ScoreConfig) -> tuple[CorpusPlan, tuple[Question, ...]]:
    """The dry run: everything that can be checked without a model or a cluster; writes nothing."""
    job = Job.resolve(config)
    ledger = Ledger(job.config.output.uri)
    return job.plan_for(ledger), job.questions


class _ErrorBudget:
    """Ends a run as soon as more predictions have failed than the whole run may have."""

    def __init__(self, max_error_rate: float, num_rows: int, num_questions: int) -> None:
        self._rate = max_error_rate
        self._num_questions = num_questions
        self.num_predictions = num_rows * num_questions
        """The most there can be; at the end those that a model was asked for."""

    def check(self, totals: Totals) -> None:
        """Raises: ErrorBudgetExceededError once the budget is spent."""
        if error := self.error(totals):
            raise error

    def error(self, totals: Totals) -> ErrorBudgetExceededError | None:
        """What to end the run with, once the budget is spent."""
        num_unreadable = totals.num_quarantined * self._num_questions
        num_failed = totals.num_failed + num_unreadable
        if num_failed <= self._rate * self.num_predictions:
            return None
        counts = Counter({status: n for status, n in totals.by_status.items() if status != "ok"})
        counts["in unreadable rows"] = num_unreadable
        failed = ", ".join(f"{status} {n}" for status, n in counts.most_common() if n)
        return ErrorBudgetExceededError(
            f"max_error_rate = {self._rate}: {num_failed} of {self.num_predictions} predictions failed "
            f"({failed}); errors/ lists them, _run/commits the unreadable. Mend the cause; then raise max_error_rate "
            "and run the same command, which goes on where this stopped, and `mentalglm retry` for the rows in errors/"
            "; unreadable rows need a new run"
        )


def _check_conservation(plan: CorpusPlan, totals: Totals, questions: Sequence[Question], parts: PartWriter) -> None:
    """Every row of the input has one prediction for each question in `data/`, or is counted as unreadable.

    Rows are compared by number, ids as multisets by their hashes; memory grows with the shards, not with the rows.
    """
    if totals.num_shards != plan.num_shards:
        raise InternalError(
            f"{totals.num_shards} of {plan.num_shards} shards are committed; the run is not published, please report it"
        )
    written = parts.id_hashes()
    for task in [question.key for question in questions]:
        num_predictions = sum(totals.statuses.get(task, Counter()).values())
        if num_predictions + totals.num_quarantined != plan.num_rows:
            raise InternalError(
                f"rows do not add up: task {task} has {num_predictions} predictions + {totals.num_quarantined} "
                f"unreadable rows for {plan.num_rows} rows of input; the run is not published, please report it"
            )
        num_written = sum(file.num_rows for file in parts.files if file.kind == f"task={task}")
        if num_written != num_predictions or (num_written and written[f"task={task}"] != totals.id_hash):
            raise InternalError(
                f"rows do not add up: data/task={task} has {num_written} rows where {num_predictions} are "
                "committed, or other ids; the run is not published, please report it"
            )
    num_listed = sum(file.num_rows for file in parts.files if file.kind == "errors")
    if num_listed != (num_failed := totals.num_predictions - totals.by_status["ok"]):
        raise InternalError(
            f"rows do not add up: errors/ lists {num_listed} rows where {num_failed} have no result; the run is not "
            "published, please report it"
        )
    if plan.num_rows == totals.num_quarantined:
        raise InputError("input.uri: not one row of the input can be read; _run/commits has the reasons")


def _manifest(
    ledger: Ledger,
    plan: CorpusPlan,
    totals: Totals,
    parts: PartWriter,
    footer: dict[str, Any],
    throughput: dict[str, Any] | None,
    *,
    seconds: float,
) -> dict[str, Any]:
    return manifest.manifest(
        footer=footer,
        fingerprint=ledger.record.fingerprint,
        input={
            **{name: ledger.record.config["input"][name] for name in ("uri", "format", "id_column", "text_column")},
            "digest": plan.digest,
            "num_files": len(plan.files),
            "num_rows": plan.num_rows,
            "quarantined": [each.describe() for each in plan.quarantined]
            + [f"{plan.shard(each.shard).file}: {each.num_rows} rows: {each.reason}" for each in totals.unreadable],
        },
        output={
            "num_predictions": totals.num_predictions,
            "num_unreadable_rows": _num_unreadable_rows(plan, totals),
            "statuses": {task: dict(counts) for task, counts in totals.statuses.items()},
            "labels": {task: dict(counts) for task, counts in totals.labels.items()},
            "explained": dict(totals.explained),
            "engines": totals.engines,
            "num_copied": totals.num_copied,
            "num_engine_restarts": totals.num_engine_restarts,
            "num_prompt_tokens": totals.num_prompt_tokens,
            "num_output_tokens": totals.num_output_tokens,
            "files": [file.model_dump(include={"path", "num_rows", "num_bytes"}) for file in parts.files],
        },
        throughput=throughput,
        seconds=seconds,
    )


def _num_unreadable_rows(plan: CorpusPlan, totals: Totals) -> int:
    return totals.num_quarantined + sum(each.num_rows or 0 for each in plan.quarantined)
