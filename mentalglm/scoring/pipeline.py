"""The score job: posts in, scored Parquet out."""

import json
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mentalglm import errors, manifest
from mentalglm.config import EchoEngineConfig, OpenAIEngineConfig, ScoreConfig, VllmEngineConfig
from mentalglm.corpus import CorpusPlan, check_unchanged, plan_corpus
from mentalglm.engine.model import ResolvedModel, resolve_model
from mentalglm.errors import ConfigError, ErrorBudgetExceededError, InputError, InternalError, UserError
from mentalglm.scoring.ledger import Ledger, ShardCommit, Totals, run_id
from mentalglm.scoring.predictions import SCHEMA_VERSION, prediction_schema
from mentalglm.scoring.progress import RunProgress
from mentalglm.scoring.worker import RunBoard, RunSpec, ShardScorer
from mentalglm.tasks import PARSER_VERSION, Task, load_task

_POLL_INTERVAL_S = 0.5

# vLLM arguments that decide how fast and where, not what: they may change on resume.
_RESOURCE_ARGUMENTS = frozenset(
    {"gpu_memory_utilization", "swap_space", "cpu_offload_gb", "max_num_batched_tokens", "enforce_eager", "block_size"}
    | {"pipeline_parallel_size", "distributed_executor_backend", "enable_prefix_caching", "async_scheduling"}
)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A finished run."""

    uri: str
    totals: Totals
    num_unreadable_files: int
    num_unreadable_rows: int
    """Rows of unreadable files whose number is known, and of unreadable parts of the others."""
    seconds: float
    already_complete: bool = False


def score(config: ScoreConfig) -> RunSummary:
    """Scores every post of the input on every task. The same call resumes an interrupted run.

    Raises: ConfigError, InputError; ErrorBudgetExceededError when too many rows fail; InterruptedRunError when an
    engine dies. What is committed by then is kept.
    """
    started = time.monotonic()
    tasks = _load_tasks(config)
    model = resolve_model(config.model) if isinstance(config.engine, VllmEngineConfig) else None
    ledger = Ledger(config.output.uri)
    plan = _open_run(ledger, config, tasks, model)
    totals = Totals(commits := ledger.read_commits())
    pending = _pending_shards(plan, commits)
    complete = not pending and ledger.is_complete()
    if not complete:
        footer = _footer(config, tasks, model, run_id(ledger.read_fingerprint() or {}))
        budget = _ErrorBudget(config.max_error_rate, plan.num_rows * len(tasks))
        if error := budget.error(totals):
            raise error
        for commit in _score_shards(config, tasks, model, pending, plan, totals, budget, footer):
            totals.add(commit)
        budget.num_predictions = totals.num_predictions - totals.num_unusable
        if error := budget.error(totals):
            raise error
        _check_conservation(plan, totals, tasks)
        record = _manifest(ledger, plan, totals, footer, seconds=time.monotonic() - started)
        ledger.publish(record, manifest.readme(record))
    return RunSummary(
        uri=ledger.uri,
        totals=totals,
        num_unreadable_files=len(plan.quarantined),
        num_unreadable_rows=_num_unreadable_rows(plan, totals),
        seconds=time.monotonic() - started,
        already_complete=complete,
    )


def plan_run(config: ScoreConfig) -> tuple[CorpusPlan, tuple[Task, ...]]:
    """The dry run: everything that can be checked without a model or a cluster; writes nothing."""
    tasks = _load_tasks(config)
    model = resolve_model(config.model) if isinstance(config.engine, VllmEngineConfig) else None
    ledger = Ledger(config.output.uri)
    if ledger.read_fingerprint() is not None:
        return _check_standing_run(ledger, config, tasks, model), tasks
    plan = plan_corpus(config.input, config.shard_rows)
    prediction_schema(config, plan.kept_schema)
    return plan, tasks


def _load_tasks(config: ScoreConfig) -> tuple[Task, ...]:
    tasks = tuple(load_task(name) for name in config.tasks)
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"tasks: two of them are named {name!r}; give each task file its own name")
    return tasks


def _open_run(ledger: Ledger, config: ScoreConfig, tasks: tuple[Task, ...], model: ResolvedModel | None) -> CorpusPlan:
    """The run's plan: a new one, or the one that an interrupted run has laid down, if it is the same run."""
    if ledger.read_fingerprint() is None:
        plan = plan_corpus(config.input, config.shard_rows)
        prediction_schema(config, plan.kept_schema)
        if ledger.create(_fingerprint(config, tasks, model, plan), plan):
            return plan
    return _check_standing_run(ledger, config, tasks, model)


def _check_standing_run(
    ledger: Ledger, config: ScoreConfig, tasks: tuple[Task, ...], model: ResolvedModel | None
) -> CorpusPlan:
    """The plan of the run in the folder. Raises: ConfigError or InputError when this job is another one."""
    standing = ledger.read_fingerprint()
    assert standing is not None
    plan = ledger.read_plan()
    check_unchanged(plan, config.input)
    difference = _difference(standing, _fingerprint(config, tasks, model, plan))
    if difference:
        raise ConfigError(
            f"output.uri = {ledger.uri}: holds a run with other settings ({'; '.join(difference)}); "
            "name another folder, or undo the change to go on with that run"
        )
    return plan


def _fingerprint(
    config: ScoreConfig, tasks: tuple[Task, ...], model: ResolvedModel | None, plan: CorpusPlan
) -> dict[str, Any]:
    """What defines the numbers of a run. Parallelism, batch sizes and the error budget do not."""
    engine: dict[str, Any] = {"kind": config.engine.kind}
    if isinstance(config.engine, VllmEngineConfig):
        engine |= {"dtype": config.engine.dtype, "max_model_len": config.engine.max_model_len}
        numeric = {key: value for key, value in config.engine.engine_args.items() if key not in _RESOURCE_ARGUMENTS}
        engine |= {"engine_args": numeric}
    elif isinstance(config.engine, OpenAIEngineConfig):
        engine |= {"base_url": config.engine.base_url, "model": config.engine.model}
    return {
        "schema": SCHEMA_VERSION,
        "parser": PARSER_VERSION,
        "tasks": {task.name: task.digest for task in tasks},
        "model": model.digest if model else None,
        "engine": engine,
        "generation": config.generation.model_dump(),
        "explain": config.explain,
        "input": {
            "digest": plan.digest,
            "id_column": config.input.id_column,
            "text_column": config.input.text_column,
            "keep_columns": config.input.keep_columns,
            "duplicate_ids": config.input.duplicate_ids,
        },
        "keep_text": config.output.keep_text,
    }


def _difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old value, now new value`, for every value that differs."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _difference(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {_short(before)}, now {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 else text


def _pending_shards(plan: CorpusPlan, commits: list[ShardCommit]) -> list[int]:
    done = {commit.shard for commit in commits}
    return [shard for shard in range(plan.num_shards) if shard not in done]


def _score_shards(
    config: ScoreConfig,
    tasks: tuple[Task, ...],
    model: ResolvedModel | None,
    pending: list[int],
    plan: CorpusPlan,
    totals: Totals,
    budget: "_ErrorBudget",
    footer: dict[str, Any],
) -> Iterator[ShardCommit]:
    """Scores the pending shards on a pool of engines and yields each commit as it comes in."""
    if not pending:
        return
    import ray

    _connect()
    num_engines = min(config.engine.num_engines, len(pending))
    num_gpus, num_cpus = _resources(config, num_engines)
    shards_in_flight = _shards_in_flight(config, len(tasks))
    spec = RunSpec(config, tasks, model, num_gpus, footer, shards_in_flight)
    board = ray.remote(num_cpus=0)(RunBoard).remote()
    commits = (
        ray.data.from_items([{"shard": shard} for shard in pending], override_num_blocks=len(pending))
        .map_batches(
            ShardScorer,
            fn_constructor_args=(spec, board),
            batch_size=1,
            # A fixed pool: Ray's growing one starts its actors one by one, each a model load later.
            compute=ray.data.ActorPoolStrategy(
                size=num_engines,
                max_concurrent_calls_per_actor=shards_in_flight + 1,
                max_tasks_in_flight_per_actor=shards_in_flight + 1,
            ),
            num_gpus=num_gpus,
            num_cpus=num_cpus,
        )
        .iter_rows()
    )
    stop: UserError | None = None
    with RunProgress(plan.num_rows * len(tasks), totals.num_predictions) as progress, _watch(progress, board, totals):
        for row in commits:
            if row["commit"]:
                yield ShardCommit.model_validate_json(row["commit"])
            error = _worker_error(row["error"]) or budget.error(totals)
            if error is not None and stop is None:
                # What the engines have begun they finish and commit; they begin nothing more.
                stop = error
                board.stop.remote()
    if stop is not None:
        raise stop


def _worker_error(record: str) -> UserError | None:
    if not record:
        return None
    kind, message = json.loads(record)
    error: UserError = getattr(errors, kind)(message)
    return error


class _watch:  # noqa: N801 - reads as a statement
    """Keeps the progress display up to date, from a thread of its own, with what is committed and what is not yet."""

    def __init__(self, progress: RunProgress, board: Any, totals: Totals) -> None:
        self._progress, self._board, self._totals = progress, board, totals
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._progress.update(self._totals.by_status)

    def _run(self) -> None:
        import ray

        while not self._stop.wait(_POLL_INTERVAL_S):
            try:
                running = ray.get(self._board.read.remote(), timeout=5)
                counts = Counter(self._totals.by_status)
            except (ray.exceptions.RayError, RuntimeError):  # RuntimeError: a commit was counted meanwhile
                continue  # the display is not worth a run
            for each in running.values():
                counts.update(each)
            self._progress.update(counts)


class _ErrorBudget:
    """Ends a run as soon as more predictions have failed than the whole run may have."""

    def __init__(self, max_error_rate: float, num_predictions: int) -> None:
        self._rate = max_error_rate
        self.num_predictions = num_predictions
        """The most there can be; at the end those that a model was asked for."""

    def error(self, totals: Totals) -> ErrorBudgetExceededError | None:
        """What to end the run with, once the budget is spent."""
        if totals.num_failed <= self._rate * self.num_predictions:
            return None
        failed = ", ".join(f"{status} {n}" for status, n in totals.by_status.most_common() if status != "ok")
        return ErrorBudgetExceededError(
            f"max_error_rate = {self._rate}: {totals.num_failed} of {self.num_predictions} predictions failed "
            f"({failed}); errors/ lists them. Mend the cause, or raise max_error_rate, and run the same command again: "
            "it goes on where this stopped"
        )


def _check_conservation(plan: CorpusPlan, totals: Totals, tasks: tuple[Task, ...]) -> None:
    """Every row of the input has one prediction for each task, or is counted as unreadable."""
    for task in tasks:
        num_predictions = sum(totals.statuses.get(task.name, Counter()).values())
        if num_predictions + totals.num_quarantined != plan.num_rows:
            raise InternalError(
                f"rows do not add up: task {task.name} has {num_predictions} predictions + {totals.num_quarantined} "
                f"unreadable rows for {plan.num_rows} rows of input; the run is not published, please report it"
            )
    if plan.num_rows == totals.num_quarantined:
        raise InputError("input.uri: not one row of the input can be read; _run/commits has the reasons")


def _footer(config: ScoreConfig, tasks: tuple[Task, ...], model: ResolvedModel | None, run: str) -> dict[str, Any]:
    if model is not None:
        named = {"name": model.name, "digest": model.digest, "revision": config.model.revision}
        named |= {"adapter": config.model.adapter}
    elif isinstance(config.engine, OpenAIEngineConfig):
        named = {"name": config.engine.model, "endpoint": config.engine.base_url}
    else:
        named = {"name": config.engine.kind}
    return manifest.footer(
        run_id=run,
        model={"engine": config.engine.kind, **named},
        tasks=[{"name": task.name, "version": task.version, "digest": task.digest} for task in tasks],
        generation=config.generation.model_dump(),
        explain=config.explain,
    )


def _manifest(
    ledger: Ledger, plan: CorpusPlan, totals: Totals, footer: dict[str, Any], *, seconds: float
) -> dict[str, Any]:
    return manifest.manifest(
        footer=footer,
        fingerprint=ledger.read_fingerprint() or {},
        input={
            "digest": plan.digest,
            "num_files": len(plan.files),
            "num_rows": plan.num_rows,
            "quarantined": [each.describe() for each in plan.quarantined]
            + [
                f"{plan.shard(each.shard).file}: {each.num_quarantined} rows: {each.quarantined}"
                for each in totals.quarantined
            ],
        },
        output={
            "num_predictions": totals.num_predictions,
            "num_unreadable_rows": _num_unreadable_rows(plan, totals),
            "statuses": {task: dict(counts) for task, counts in totals.statuses.items()},
            "labels": {task: dict(counts) for task, counts in totals.labels.items()},
            "engines": totals.engines,
            "num_prompt_tokens": totals.num_prompt_tokens,
            "num_output_tokens": totals.num_output_tokens,
        },
        seconds=seconds,
    )


def _num_unreadable_rows(plan: CorpusPlan, totals: Totals) -> int:
    return totals.num_quarantined + sum(each.num_rows or 0 for each in plan.quarantined)


def _connect() -> None:
    """Joins the cluster that RAY_ADDRESS names (a submitted job has it), else starts one on this machine."""
    import logging

    # Ray's core writes notes for its developers to the terminal; the session's log files keep what matters.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the terminal is ours; the log files stay as they are
            handler.setLevel(logging.ERROR)
    if not ray.is_initialized():
        # Without an address ray.init() would join whatever cluster happens to run on this machine.
        address = os.environ.get("RAY_ADDRESS", "local")
        if address.startswith("http"):
            raise ConfigError(
                f"RAY_ADDRESS = {address}: is the address for submitting jobs; use cluster/submit.sh, or unset it"
            )
        local = {"include_dashboard": False} if address == "local" else {}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        in_main_thread = threading.current_thread() is threading.main_thread()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        if in_main_thread:
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own exits at once, with a code of its own
    ray.data.DataContext.get_current().enable_progress_bars = False


def _resources(config: ScoreConfig, num_engines: int) -> tuple[int, float]:
    """(GPUs, CPUs) of one engine. Raises: ConfigError when the cluster cannot hold the engines."""
    import ray

    available = ray.cluster_resources()
    if not isinstance(config.engine, VllmEngineConfig):
        return 0, 1 if available.get("CPU", 0) >= num_engines else 0
    num_gpus = config.engine.num_gpus
    if num_gpus is None:
        num_gpus = 1 if available.get("GPU") else 0
    for name, each in (("GPU", num_gpus), ("CPU", config.engine.num_cpus)):
        wanted = each * num_engines
        if wanted > available.get(name, 0):
            raise ConfigError(
                f"engine.num_engines = {config.engine.num_engines}: needs {wanted:g} {name}s, the cluster has "
                f"{available.get(name, 0):g}; lower num_engines, or num_{name.lower()}s of an engine"
            )
    return num_gpus, config.engine.num_cpus


def _shards_in_flight(config: ScoreConfig, num_tasks: int) -> int:
    """Shards that one engine works on at once: enough that the next ones fill it while one drains."""
    if isinstance(config.engine, EchoEngineConfig):
        return 2
    slots = (
        config.engine.max_concurrency if isinstance(config.engine, OpenAIEngineConfig) else config.engine.max_num_seqs
    )
    return min(16, 1 + max(1, math.ceil(2 * slots / (config.shard_rows * num_tasks))))
