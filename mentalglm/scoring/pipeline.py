"""The score job: posts in, scored Parquet out."""

import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mentalglm import errors, manifest, storage
from mentalglm.config import EchoEngineConfig, OpenAIEngineConfig, S3Config, ScoreConfig, VllmEngineConfig, validate
from mentalglm.config.base import apply_override
from mentalglm.corpus import CorpusPlan, check_unchanged, plan_corpus
from mentalglm.engine.model import ResolvedModel, resolve_model
from mentalglm.errors import (
    ConfigError,
    ErrorBudgetExceededError,
    InputError,
    InternalError,
    InterruptedRunError,
    UserError,
)
from mentalglm.scoring.lease import Lease
from mentalglm.scoring.ledger import Ledger, ShardCommit, Totals
from mentalglm.scoring.parts import PartWriter
from mentalglm.scoring.predictions import SCHEMA_VERSION, prediction_schema
from mentalglm.scoring.progress import RunProgress
from mentalglm.scoring.retry import RetrySummary, check_statuses, effective_commits, open_round
from mentalglm.scoring.worker import News, RunBoard, RunSpec, ShardScorer, unreadable_now
from mentalglm.tasks import PARSER_VERSION, Task, builtin_tasks, load_task

_POLL_INTERVAL_S = 0.25
_BOARD_TIMEOUT_S = 120

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
    storage.configure(config.s3)
    config = _at_fixed_places(config)
    tasks = _load_tasks(config)
    model = resolve_model(config.model) if isinstance(config.engine, VllmEngineConfig) else None
    ledger = Ledger(config.output.uri)
    plan = _open_run(ledger, config, tasks, model)
    if not (complete := ledger.is_complete()):
        with Lease.acquire(ledger.uri) as lease:
            if not (complete := ledger.is_complete()):  # by the job whose lease was waited for
                totals = _run(Ledger(config.output.uri, lease.check), lease, config, tasks, model, plan)
    if complete:
        totals = Totals(effective_commits(ledger))
    return RunSummary(
        uri=ledger.uri,
        totals=totals,
        num_unreadable_files=len(plan.quarantined),
        num_unreadable_rows=_num_unreadable_rows(plan, totals),
        seconds=time.monotonic() - started,
        already_complete=complete,
    )


def _run(
    ledger: Ledger,
    lease: Lease,
    config: ScoreConfig,
    tasks: tuple[Task, ...],
    model: ResolvedModel | None,
    plan: CorpusPlan,
) -> Totals:
    """Scores what is not committed yet, writes the parts, checks that rows add up, publishes."""
    started = time.monotonic()
    totals = Totals(commits := ledger.read_commits())
    parts = PartWriter(
        ledger,
        commits,
        target_bytes=int(config.output.target_file_mb * 1e6),
        partition_by=config.output.partition_by,
    )
    footer = _footer(config, tasks, model, ledger.run_id())
    spec = RunSpec(config, tasks, model, footer, lease.epoch)
    budget = _ErrorBudget(config.max_error_rate, plan.num_rows * len(tasks))
    try:
        budget.check(totals)
        pending = _pending_shards(plan, commits)
        for commit in _score_shards(spec, pending, budget.num_predictions, totals, budget, lease):
            totals.add(commit)
            parts.add(commit)
        budget.num_predictions = totals.num_predictions - totals.num_unusable
        budget.check(totals)
    except ErrorBudgetExceededError:
        parts.flush()  # errors/ shows what went wrong
        raise
    parts.flush()
    _check_conservation(plan, totals, tasks, parts)
    record = _manifest(ledger, plan, totals, parts, footer, seconds=time.monotonic() - started)
    ledger.publish(record, manifest.readme(record))
    return totals


def retry(run_uri: str, statuses: Sequence[str] = (), overrides: Sequence[str] = ()) -> RetrySummary:
    """Scores the failed rows of a finished run again, and puts the results in their place.

    `statuses`: which; by default every failure but those of unusable input. `overrides`: `a.b=value`, of the config
    that the run was begun with. The same call goes on with an interrupted retry. No error budget: the run is complete.
    Raises: ConfigError where there is no finished run, or the job would be another than the run's; InputError;
    InterruptedRunError.
    """
    chosen = check_statuses(statuses)
    config = _standing_config(run_uri, overrides)
    storage.configure(config.s3)
    tasks = _load_tasks(config)
    model = resolve_model(config.model) if isinstance(config.engine, VllmEngineConfig) else None
    ledger = Ledger(config.output.uri)
    if not ledger.is_complete():
        raise ConfigError(f"RUN_URI = {run_uri}: the run is not finished; finish it with `mentalglm score` first")
    _check_standing_run(ledger, config, tasks, model)
    with Lease.acquire(ledger.uri) as lease:
        ledger = Ledger(config.output.uri, lease.check)
        current = open_round(ledger, chosen)
        if current is None:
            return RetrySummary(ledger.uri, sorted(chosen), 0, {}, Totals(effective_commits(ledger)))
        footer = _footer(config, tasks, model, ledger.run_id())
        rows = current.pending()
        spec = RunSpec(config, tasks, model, footer, lease.epoch, current.ledger.folder, rows)
        totals = Totals(current.ledger.read_commits())
        for commit in _score_shards(spec, list(rows), current.num_predictions, totals, None, lease):
            totals.add(commit)
        return current.finish(config.output.partition_by)


def _standing_config(run_uri: str, overrides: Sequence[str]) -> ScoreConfig:
    """The config that the run was begun with, with changes. Raises: ConfigError where there is none."""
    changes: dict[str, Any] = {}
    for override in overrides:
        apply_override(changes, override)
    storage.configure(validate(S3Config, changes.get("s3") or {}, "--set"))  # the config is on the other side
    uri = _absolute(run_uri)
    ledger = Ledger(uri)
    if ledger.read_fingerprint() is None:
        raise ConfigError(f"RUN_URI = {run_uri}: holds no run; give the output.uri of a score job")
    data = ledger.read_config()
    if data is None:
        raise ConfigError(f"RUN_URI = {run_uri}: was begun by a version that kept no config; score it anew")
    data["output"]["uri"] = uri  # the folder may have been moved
    for override in overrides:
        apply_override(data, override)
    config = validate(ScoreConfig, data, f"{uri}/_run/run.json")
    if config.output.uri != uri:
        raise ConfigError(f"--set output.uri={config.output.uri}: rows are retried where they are; leave it out")
    return config


def _at_fixed_places(config: ScoreConfig) -> ScoreConfig:
    """Input and output as absolute addresses: workers may have another working directory.

    Raises: ConfigError for a relative output of a submitted job, which would vanish with Ray's copy of the folder.
    """
    output = _absolute(config.output.uri)
    if output != config.output.uri.removeprefix("file://") and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise ConfigError(
            f"output.uri = {config.output.uri}: is relative, and a submitted job runs in a copy of its folder that Ray "
            "deletes; give a path from the root that every node sees, or s3://"
        )
    return config.model_copy(
        update={
            "input": config.input.model_copy(update={"uri": _absolute(config.input.uri)}),
            "output": config.output.model_copy(update={"uri": output}),
        }
    )


def _lasting(config: ScoreConfig) -> dict[str, Any]:
    """The config as it can be read back from any working directory."""
    data = config.model_dump(mode="json")
    if config.model.path != "demo" and Path(config.model.path).expanduser().is_dir():
        data["model"]["path"] = _absolute(config.model.path)
    if config.model.adapter is not None:
        data["model"]["adapter"] = _absolute(config.model.adapter)
    data["tasks"] = [name if name in builtin_tasks() else str(Path(name).absolute()) for name in config.tasks]
    return data


def _absolute(uri: str) -> str:
    return uri if storage.is_s3(uri) else str(storage.local_path(uri).absolute())


def plan_run(config: ScoreConfig) -> tuple[CorpusPlan, tuple[Task, ...]]:
    """The dry run: everything that can be checked without a model or a cluster; writes nothing."""
    storage.configure(config.s3)
    config = _at_fixed_places(config)
    tasks = _load_tasks(config)
    model = resolve_model(config.model) if isinstance(config.engine, VllmEngineConfig) else None
    ledger = Ledger(config.output.uri)
    if ledger.read_fingerprint() is not None:
        return _check_standing_run(ledger, config, tasks, model), tasks
    return _plan(config), tasks


def _plan(config: ScoreConfig) -> CorpusPlan:
    with _reading(config):
        plan = plan_corpus(config.input, config.shard_rows)
    prediction_schema(config, plan.kept_schema)
    return plan


@contextmanager
def _reading(config: ScoreConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unreadable_now(config.input.uri, error) from None


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
        plan = _plan(config)
        if ledger.create(_fingerprint(config, tasks, model, plan), plan, _lasting(config)):
            return plan
    return _check_standing_run(ledger, config, tasks, model)


def _check_standing_run(
    ledger: Ledger, config: ScoreConfig, tasks: tuple[Task, ...], model: ResolvedModel | None
) -> CorpusPlan:
    """The plan of the run in the folder. Raises: ConfigError or InputError when this job is another one."""
    standing = ledger.read_fingerprint()
    assert standing is not None
    plan = ledger.read_plan()
    with _reading(config):
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
        "partition_by": config.output.partition_by,
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
    spec: RunSpec,
    pending: list[int],
    num_predictions: int,
    totals: Totals,
    budget: "_ErrorBudget | None",
    lease: Lease,
) -> Iterator[ShardCommit]:
    """Scores the pending shards on a pool of engines and yields each commit as it comes in.

    `num_predictions`: those to be made, and those in `totals`, which are made.
    """
    if not pending:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    _connect()
    num_engines = min(spec.config.engine.num_engines, len(pending))
    num_gpus, num_cpus = _resources(spec.config, num_engines)
    shards_in_flight = _shards_in_flight(spec.config, len(spec.tasks))
    spec = replace(spec, num_gpus=num_gpus, shards_in_flight=shards_in_flight)
    # Beside the driver: it must not die with a node that the run could do without.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, scheduling_strategy=here)(RunBoard).remote(pending)
    # Shards come from the board and not from the dataset: a crawl has hundreds of thousands, and Ray Data would begin
    # by making a block of each. It keeps the pool of engines, and starts those anew that die.
    lanes = ray.data.from_items(
        [{"lane": lane} for lane in range(num_engines * shards_in_flight)],
        override_num_blocks=num_engines * shards_in_flight,
    ).map_batches(
        ShardScorer,
        fn_constructor_args=(spec, board),
        batch_size=1,
        # A fixed pool: Ray's growing one starts its actors one by one, each a model load later.
        compute=ray.data.ActorPoolStrategy(
            size=num_engines,
            max_concurrent_calls_per_actor=shards_in_flight,
            max_tasks_in_flight_per_actor=shards_in_flight,
        ),
        num_gpus=num_gpus,
        num_cpus=num_cpus,
    )
    execution = _Execution(lanes)
    stop: UserError | None = None
    num_left = len(pending)
    with RunProgress(num_predictions, totals.num_predictions) as progress:
        while num_left:
            is_over = execution.is_over()  # asked first: what the lanes said last is then on the board
            news = _ask(board)
            for commit in news.commits:
                num_left -= 1
                yield ShardCommit.model_validate_json(commit)
            counts = totals.by_status + Counter(news.running)
            progress.update(counts)
            lease.progress({"rows_per_s": round(progress.rate(), 2), "statuses": dict(counts)})
            stop = stop or _error(news.error) or lease.error() or (budget.error(totals) if budget else None)
            if stop is not None:
                # What the engines have begun they finish and commit; they begin nothing more.
                board.stop.remote()
                if is_over or not news.num_working:
                    raise stop
            elif is_over and not news.commits:
                raise execution.error()
            time.sleep(_POLL_INTERVAL_S)
    board.stop.remote()
    execution.join()


class _Execution:
    """Runs a dataset in a thread, for what it does and not for what it returns."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="lanes", daemon=True)
        self._thread.start()

    def is_over(self) -> bool:
        """Whether every lane has ended, or Ray has failed."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Waits a little for lanes that are about to end, so that their engines are free for what comes next."""
        self._thread.join(10)

    def error(self) -> InterruptedRunError:
        """Why it ended before the work was done. Not in Ray's words: they may quote what a process was working on."""
        return _ray_failed(self._error or RuntimeError())

    def _run(self) -> None:
        try:
            for _ in self._dataset.iter_rows():
                pass
        except Exception as error:
            self._error = error


def _ask(board: Any) -> News:
    import ray

    try:
        news: News = ray.get(board.news.remote(), timeout=_BOARD_TIMEOUT_S)
        return news
    except ray.exceptions.RayError as error:
        raise _ray_failed(error) from None


def _ray_failed(error: Exception) -> InterruptedRunError:
    return InterruptedRunError(
        f"the Ray cluster failed ({type(error).__name__}); what is scored is kept: run the same command again"
    )


def _error(failure: tuple[str, str] | None) -> UserError | None:
    if failure is None:
        return None
    kind, message = failure
    error: UserError = getattr(errors, kind, InterruptedRunError)(message)
    return error


class _ErrorBudget:
    """Ends a run as soon as more predictions have failed than the whole run may have."""

    def __init__(self, max_error_rate: float, num_predictions: int) -> None:
        self._rate = max_error_rate
        self.num_predictions = num_predictions
        """The most there can be; at the end those that a model was asked for."""

    def check(self, totals: Totals) -> None:
        """Raises: ErrorBudgetExceededError once the budget is spent."""
        if error := self.error(totals):
            raise error

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


def _check_conservation(plan: CorpusPlan, totals: Totals, tasks: tuple[Task, ...], parts: PartWriter) -> None:
    """Every row of the input has one prediction for each task in `data/`, or is counted as unreadable.

    Rows are compared by number, ids as multisets by their hashes; memory grows with the shards, not with the rows.
    """
    written = parts.id_hashes()
    for task in tasks:
        num_predictions = sum(totals.statuses.get(task.name, Counter()).values())
        if num_predictions + totals.num_quarantined != plan.num_rows:
            raise InternalError(
                f"rows do not add up: task {task.name} has {num_predictions} predictions + {totals.num_quarantined} "
                f"unreadable rows for {plan.num_rows} rows of input; the run is not published, please report it"
            )
        num_written = sum(file.num_rows for file in parts.files if file.kind == f"task={task.name}")
        if num_written != num_predictions or (num_written and written[f"task={task.name}"] != totals.id_hash):
            raise InternalError(
                f"rows do not add up: data/task={task.name} has {num_written} rows where {num_predictions} are "
                "committed, or other ids; the run is not published, please report it"
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
    ledger: Ledger, plan: CorpusPlan, totals: Totals, parts: PartWriter, footer: dict[str, Any], *, seconds: float
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
            "files": [file.model_dump(include={"path", "num_rows", "num_bytes"}) for file in parts.files],
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
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A lane gives back nothing until all is done; engines that hang are the engine room's to notice.
    context.execution_no_progress_timeout_s = -1


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
