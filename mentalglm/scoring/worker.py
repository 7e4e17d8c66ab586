"""One engine and the shards it scores: what runs inside each actor of the pool."""

import asyncio
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mentalglm.config import EchoEngineConfig, OpenAIEngineConfig, ScoreConfig
from mentalglm.corpus import CorruptShardError, Posts, ShardReader
from mentalglm.engine.echo import EchoEngine
from mentalglm.engine.model import ResolvedModel, resolve_model
from mentalglm.engine.protocol import Engine, Request
from mentalglm.errors import ConfigError, InputError, InternalError, UserError
from mentalglm.scoring.ledger import Ledger, ShardCommit
from mentalglm.scoring.predictions import Outcome, interpret, prediction_schema, prediction_table
from mentalglm.tasks import Task, answer_heads, render_prompt

_REPORT_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a worker must know. Small: it goes to every actor; the plan is read from the run's folder."""

    config: ScoreConfig
    tasks: tuple[Task, ...]
    model: ResolvedModel | None
    num_gpus: int
    provenance: dict[str, Any]
    shards_in_flight: int


class ShardScorer:
    """A callable for Ray Data's `map_batches`: numbers of shards in, their commit records out.

    Several calls run at once in the event loop of the actor, so that the engine does not drain at a shard's end.
    """

    def __init__(self, spec: RunSpec, board: Any) -> None:
        self._spec = spec
        self._board = board
        self._ledger = Ledger(spec.config.output.uri)
        self._engine: Engine | None = None
        self._error: UserError | None = None
        self._slots = asyncio.Semaphore(spec.shards_in_flight)
        self._reading = ThreadPoolExecutor(1)  # in order: the reader goes forward through a row group
        self._writing = ThreadPoolExecutor(2)
        try:
            self._plan = self._ledger.read_plan()
            self._reader = ShardReader(spec.config.input, self._plan)
            self._schema = prediction_schema(spec.config, self._plan.kept_schema)
            self._engine = _build_engine(spec)
        except UserError as error:
            # Told with the first shard: an actor that fails to start is only started again.
            self._error = error
        except Exception as error:
            self._error = InternalError.withholding(error)

    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """{"shard": [number]} -> {"commit": [its record as JSON], "error": [what ends the run, as JSON]}.

        A UserError goes to the driver as data: Ray would hand over its traceback, and not the error.
        """
        [shard] = batch["shard"]
        async with self._slots:
            if self._error is None and not await self._board.is_stopped.remote():
                try:
                    commit = await self._score(int(shard))
                    return {"commit": [commit.model_dump_json()], "error": [""]}
                except UserError as error:
                    self._error = error
                except Exception as error:  # its message may quote a post, and Ray would log it
                    self._error = InternalError.withholding(error)
        told = json.dumps([type(self._error).__name__, str(self._error)]) if self._error else ""
        return {"commit": [""], "error": [told]}

    async def _score(self, shard: int) -> ShardCommit:
        """Reads, renders, generates, parses, commits."""
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            posts = await loop.run_in_executor(self._reading, self._reader.read, self._plan.shard(shard))
        except CorruptShardError as error:
            if error.reason in ("input_missing", "input_changed"):  # may pass; a verdict would stand for ever
                raise InputError(
                    f"input.uri: {error.file} is gone or has changed while it was scored ({error.reason}); "
                    "put it back and run the same command again, or begin a new run in another folder"
                ) from None
            num_rows = self._plan.shard(shard).num_rows
            return await loop.run_in_executor(
                self._writing, self._ledger.commit_quarantined, shard, num_rows, error.reason
            )
        outcomes = await self._outcomes(shard, posts)
        commit = await loop.run_in_executor(self._writing, self._commit, shard, posts, outcomes, started)
        self._report(shard, Counter())  # from here on the commit counts
        return commit

    async def _outcomes(self, shard: int, posts: Posts) -> dict[str, list[Outcome]]:
        """task -> one outcome for each post."""
        assert self._engine is not None
        tasks = self._spec.tasks
        explain = self._spec.config.explain == "all"
        slots: list[tuple[int, Task]] = []
        requests: list[Request] = []
        outcomes: dict[str, list[Outcome]] = {}
        for task in tasks:
            outcomes[task.name] = [
                Outcome(status or "engine_error", reason)
                for status, reason in zip(posts.statuses, posts.reasons, strict=True)
            ]
        # A post's tasks together: templates that begin with the post share its prefix in the engine's cache.
        for row, (status, text) in enumerate(zip(posts.statuses, posts.texts, strict=True)):
            if status is None:
                for task in tasks:
                    slots.append((row, task))
                    requests.append(_request(task, text, head_only=not explain))
        counts: Counter[str] = Counter(each.status for task in tasks for each in outcomes[task.name])
        counts["engine_error"] -= len(requests)  # not failed: not asked yet
        reported = time.monotonic()
        async for index, completion in self._engine.complete(requests):
            row, task = slots[index]
            outcome = interpret(task, completion, explain=explain)
            outcomes[task.name][row] = outcome
            counts[outcome.status] += 1
            if time.monotonic() - reported >= _REPORT_INTERVAL_S:
                reported = time.monotonic()
                self._report(shard, counts)
        return outcomes

    def _commit(self, shard: int, posts: Posts, outcomes: dict[str, list[Outcome]], started: float) -> ShardCommit:
        assert self._engine is not None
        tables: dict[str, pa.Table] = {
            task: prediction_table(self._schema, posts, each) for task, each in outcomes.items()
        }
        return self._ledger.commit(
            shard,
            tables,
            outcomes,
            self._spec.provenance,
            engine=self._engine.description,
            seconds=time.monotonic() - started,
        )

    def _report(self, shard: int, counts: Counter[str]) -> None:
        self._board.report.remote(shard, {status: n for status, n in counts.items() if n > 0})


class RunBoard:
    """What driver and workers tell each other while a run goes on; a Ray actor.

    Predictions of shards that are not committed yet, by shard and status; and whether to begin another shard.
    """

    def __init__(self) -> None:
        self._shards: dict[int, dict[str, int]] = {}
        self._stopped = False

    def stop(self) -> None:
        """No worker begins another shard."""
        self._stopped = True

    def is_stopped(self) -> bool:
        """Whether to begin no other shard."""
        return self._stopped

    def report(self, shard: int, counts: dict[str, int]) -> None:
        """The last word on a shard counts, so a shard that is scored again is not counted twice."""
        if counts:
            self._shards[shard] = counts
        else:
            self._shards.pop(shard, None)

    def read(self) -> dict[int, dict[str, int]]:
        """shard -> status -> number."""
        return self._shards


def _request(task: Task, text: str, *, head_only: bool) -> Request:
    return Request(
        task=task.name,
        prompt=render_prompt(task, text),
        markers=tuple(task.markers),
        head_only=head_only,
        alternatives=answer_heads(task) if task.kind == "binary" else None,
    )


def _build_engine(spec: RunSpec) -> Engine:
    config, generation = spec.config.engine, spec.config.generation
    if isinstance(config, EchoEngineConfig):
        return EchoEngine(config, spec.tasks)
    if isinstance(config, OpenAIEngineConfig):
        from mentalglm.engine.openai import OpenAIEngine

        return OpenAIEngine(config, generation)
    from mentalglm.engine.vllm import VllmEngine

    assert spec.model is not None
    model = spec.model
    if not Path(model.path).is_dir():  # another node than the driver's, which found the model for itself
        model = resolve_model(spec.config.model)
        if model.digest != spec.model.digest:
            raise ConfigError(
                f"model.path = {model.name!r}: this node has other files under that name than the driver's node; "
                "put the same model on every node, or pin model.revision"
            )
    return VllmEngine(config, generation, model, num_gpus=spec.num_gpus)
