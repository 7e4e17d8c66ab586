"""The engines of a run as actors of Ray Data, and the shards that they pull."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mentalglm import errors
from mentalglm.cluster import connect
from mentalglm.config import EncoderEngineConfig, EngineConfig, ScoreConfig, VllmEngineConfig
from mentalglm.errors import ConfigError, InterruptedRunError, UserError
from mentalglm.scoring.board import News, RunBoard
from mentalglm.scoring.order import shards_in_flight
from mentalglm.scoring.progress import RunProgress, duration
from mentalglm.scoring.run.commit import ShardCommit, Totals
from mentalglm.scoring.run.lease import Lease
from mentalglm.scoring.worker import RunSpec, ShardScorer

_POLL_INTERVAL_S = 1.0
_SHORT_POLL_INTERVAL_S = 0.1  # at the beginning and at the end
_BOARD_TIMEOUT_S = 120
_SILENCE_S = 3600.0  # loading a large model from a slow disk takes many minutes


def score_shards(
    spec: RunSpec,
    pending: list[int],
    num_predictions: int,
    totals: Totals,
    lease: Lease,
    find_error: Callable[[], UserError | None],
    *,
    scorer: type[ShardScorer] = ShardScorer,
    on_start: Callable[[], None] = lambda: None,
) -> Iterator[ShardCommit]:
    """Scores the pending shards, in this order, on a pool of engines and yields each commit as it comes in.

    `num_predictions`: those to be made, and those in `totals`, which are made. `find_error`: asked again and again for
    what ends the run; what the engines have begun by then is committed first. `on_start`: called once, when the first
    engine is there.
    """
    if not pending:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from mentalglm.scoring.execution import Execution

    connect()
    num_engines = min(spec.config.engine.num_engines, len(pending))
    num_gpus, num_cpus = _resources(spec.config, num_engines)
    lanes_each = shards_in_flight(spec.config, len(spec.questions))
    spec = replace(spec, num_gpus=num_gpus, shards_in_flight=lanes_each)
    # Beside the driver: it must not die with a node that the run could do without.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, scheduling_strategy=here)(RunBoard).remote(pending)
    # Shards come from the board and not from the dataset: a crawl has hundreds of thousands, and Ray Data would begin
    # by making a block of each. It keeps the pool of engines, and starts those anew that die.
    lanes = ray.data.from_items(
        [{"lane": lane} for lane in range(num_engines * lanes_each)],
        override_num_blocks=num_engines * lanes_each,
    ).map_batches(
        scorer,
        fn_constructor_args=(spec, board),
        batch_size=1,
        # A fixed pool: Ray's growing one starts its actors one by one, each a model load later.
        compute=ray.data.ActorPoolStrategy(
            size=num_engines,
            max_concurrent_calls_per_actor=lanes_each,
            max_tasks_in_flight_per_actor=lanes_each,
        ),
        num_gpus=num_gpus,
        num_cpus=num_cpus,
    )
    stop: UserError | None = None
    num_left = len(pending)
    is_started = False
    heard_of = time.monotonic()
    with Execution(lanes) as execution, RunProgress(num_predictions, totals.num_predictions) as progress:
        while num_left:
            is_over = execution.is_over()  # asked first: what the lanes said last is then on the board
            news = _ask(board)
            if not is_started and (news.num_working or news.commits):
                is_started = True
                on_start()
            for commit in news.commits:
                num_left -= 1
                yield ShardCommit.model_validate_json(commit)
            counts = totals.by_status + Counter(news.running)
            progress.update(counts)
            lease.progress({"rows_per_s": round(progress.rate(), 2), "statuses": dict(counts)})
            stop = stop or _error(news.error) or lease.error() or find_error()
            if stop is not None:
                # What the engines have begun they finish and commit; they begin nothing more.
                board.stop.remote()
                if is_over or not news.num_working:
                    raise stop
            elif is_over and not news.commits:
                raise _ray_failed(execution.error())
            heard_of = time.monotonic() if news.num_working else heard_of
            if time.monotonic() - heard_of > _SILENCE_S:
                raise InterruptedRunError(
                    f"no engine has been heard of for {duration(_SILENCE_S)}: lost nodes, or a model that does not "
                    "load; what is scored is kept: see to the cluster and run the same command again"
                )
            is_soon_other = not is_started or num_left <= num_engines * lanes_each
            time.sleep(_SHORT_POLL_INTERVAL_S if is_soon_other else _POLL_INTERVAL_S)
        board.stop.remote()
        execution.join()


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
    return None if failure is None else errors.told(*failure)


def check_resources(config: ScoreConfig) -> None:
    """Joins the cluster. Raises: as `connect`; ConfigError when it cannot hold the engines."""
    connect()
    _resources(config, config.engine.num_engines)


def _resources(config: ScoreConfig, num_engines: int) -> tuple[float, float]:
    """(GPUs, CPUs) of one engine. Raises: ConfigError when the cluster cannot hold the engines."""
    import ray

    available = ray.cluster_resources()
    num_gpus, num_cpus = resources_of_an_engine(config.engine, num_engines, available)
    for name, each in (("GPU", num_gpus), ("CPU", num_cpus)):
        wanted = each * num_engines
        if wanted > available.get(name, 0):
            raise ConfigError(
                f"engine.num_engines = {config.engine.num_engines}: needs {wanted:g} {name}s, the cluster has "
                f"{available.get(name, 0):g}; lower num_engines, or num_{name.lower()}s of an engine"
            )
    return num_gpus, num_cpus


def resources_of_an_engine(
    engine: EngineConfig, num_engines: int, available: Mapping[str, float]
) -> tuple[float, float]:
    """(GPUs, CPUs) of each engine in a cluster with these resources; those without a model take what is there."""
    if not isinstance(engine, VllmEngineConfig | EncoderEngineConfig):
        return 0, 1 if available.get("CPU", 0) >= num_engines else 0
    num_gpus = engine.num_gpus
    if num_gpus is None:
        num_gpus = 1 if available.get("GPU") else 0
    return num_gpus, engine.num_cpus
