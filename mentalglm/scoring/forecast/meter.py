"""How fast engines answer, measured on a sample of the corpus while they do."""

import heapq
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel

from mentalglm import storage
from mentalglm.corpus import Posts
from mentalglm.engine.protocol import Completion, Engine, FollowUp, Request
from mentalglm.errors import InputError
from mentalglm.scoring.forecast.sample import FloatArray
from mentalglm.scoring.predictions import Outcome
from mentalglm.scoring.run.commit import ShardCommit
from mentalglm.scoring.run.ledger import Ledger, read_record
from mentalglm.scoring.worker import RunSpec, ShardScorer

NUM_SLICES = 8
"""Of the time that a rate is measured in; its error is what these differ by."""


class SampledShard(BaseModel):
    """What a worker wrote down with the commit of a shard."""

    engine: str
    """Which of them, and no other."""
    num_gpus: float
    answers: list[tuple[float, float, int]]
    """(asked for, finished, tokens) of the engine's answers since its last commit; s, a clock of the engine's own."""
    rows: dict[str, dict[int, tuple[str, int, int]]]
    """task -> row -> (status, prompt tokens, output tokens)."""


class SampleScorer(ShardScorer):
    """A worker that writes down, with each commit, what its engine has answered and when."""

    def __init__(self, spec: RunSpec, board: Any) -> None:
        super().__init__(spec, board)
        self._token = secrets.token_hex(8)
        if self._engine is not None:
            self._timed = self._engine = _TimedEngine(self._engine)

    def _commit(
        self, shard: int, posts: Posts, outcomes: dict[str, dict[int, Outcome]], *rest: Any, **more: Any
    ) -> ShardCommit:
        rows = {
            task: {
                row: (outcome.status, outcome.num_prompt_tokens or 0, outcome.num_output_tokens or 0)
                for row, outcome in each.items()
            }
            for task, each in outcomes.items()
        }
        sampled = SampledShard(engine=self._token, num_gpus=self._spec.num_gpus, answers=self._timed.take(), rows=rows)
        storage.put(_sampled_path(self._ledger, shard), sampled.model_dump_json().encode())
        return super()._commit(shard, posts, outcomes, *rest, **more)


class _TimedEngine:
    """An `Engine` that notes when each request was made and answered, with what followed it up."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._answers: deque[tuple[float, float, int]] = deque()
        self._taking = threading.Lock()

    @property
    def description(self) -> dict[str, str]:
        """See `Engine.description`."""
        return self._engine.description

    @property
    def num_restarts(self) -> int:
        """See `Engine.num_restarts`."""
        return self._engine.num_restarts

    @property
    def seconds(self) -> dict[str, float]:
        """See `Engine.seconds`."""
        return self._engine.seconds

    async def complete(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> AsyncIterator[tuple[int, Completion]]:
        """See `Engine.complete`."""
        asked = time.monotonic()
        num_tokens = [0] * len(requests)

        def count(index: int, completion: Completion) -> Request | None:
            num_tokens[index] += completion.num_output_tokens or 0
            return follow_up(index, completion) if follow_up is not None else None

        async for index, completion in self._engine.complete(requests, count):
            self._answers.append((asked, time.monotonic(), max(1, num_tokens[index])))
            yield index, completion

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._engine.close()

    def take(self) -> list[tuple[float, float, int]]:
        """(asked for, finished, tokens) of the answers since the last call. For any thread."""
        with self._taking:
            return [self._answers.popleft() for _ in range(len(self._answers))]


def read_sampled(ledger: Ledger, shard: int) -> SampledShard:
    """What was written down with the commit of a shard that could be read."""
    found = read_record(SampledShard, _sampled_path(ledger, shard))
    assert found is not None, "it is written before the commit"
    return found


def _sampled_path(ledger: Ledger, shard: int) -> str:
    return ledger.path("sampled", f"{shard:08d}.json")


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast one engine works."""

    per_s: float
    error: float
    """Standard error."""
    is_saturated: bool
    """Whether it was full for long enough; else it may be able to do more."""


def average_rate(shards: Sequence[SampledShard], num_slots: int) -> tuple[Rate, int]:
    """(the rate of an engine, on average over those that were full, else over all; number of engines)."""
    answers: dict[str, list[tuple[float, float, int]]] = {}
    for shard in shards:
        answers.setdefault(shard.engine, []).extend(shard.answers)
    rates = [engine_rate(np.array(each, float), num_slots) for each in answers.values() if each]
    if not rates:
        raise InputError(
            "input.uri: no row of the sample holds a post; see to the input, or give --rows a larger number"
        )
    chosen = [rate for rate in rates if rate.is_saturated] or rates
    error = math.sqrt(sum(rate.error**2 for rate in chosen)) / len(chosen)
    per_s = sum(rate.per_s for rate in chosen) / len(chosen)
    return Rate(per_s, error, chosen[0].is_saturated), len(rates)


def engine_rate(answers: FloatArray, num_slots: int) -> Rate:
    """The rate of one engine while it is full: as many requests as it has slots, or more, wait or run.

    `answers`: (asked for, finished, tokens) of each, times in s. Requests get slots in the order of asking; the tokens
    of one are spread evenly over its time in the slot, so that those count that are half done when the engine begins
    to run dry. The error is that of the average of equal slices of the time.
    """
    asked, finished, tokens = answers[np.argsort(answers[:, 0], kind="stable")].T
    started = _slot_times(asked, finished, num_slots)
    finished = np.maximum(finished, started + 1e-9)
    speed = tokens / (finished - started)
    none = np.zeros_like(speed)
    times = np.concatenate([asked, started, finished])
    order = np.argsort(times, kind="stable")
    num_there = np.cumsum(np.concatenate([none + 1, none, none - 1])[order])[:-1]
    speeds = np.cumsum(np.concatenate([none, speed, -speed])[order])[:-1]
    spans = np.diff(times[order])
    is_full = num_there > num_slots - 0.5
    is_saturated = bool((spans * speeds)[is_full].sum() >= num_slots * tokens.mean())
    counts = is_full if is_saturated else num_there > 0.5
    clock = np.concatenate([[0.0], np.cumsum(spans[counts])])
    done = np.concatenate([[0.0], np.cumsum((spans * speeds)[counts])])
    slices = np.diff(np.interp(np.linspace(0, clock[-1], NUM_SLICES + 1), clock, done)) * (NUM_SLICES / clock[-1])
    return Rate(float(slices.mean()), float(slices.std(ddof=1) / math.sqrt(NUM_SLICES)), is_saturated)


def _slot_times(asked: FloatArray, finished: FloatArray, num_slots: int) -> FloatArray:
    """When each request, in order of asking, got a slot."""
    running: list[float] = []
    started = np.empty_like(asked)
    for number, (begin, end) in enumerate(zip(asked.tolist(), finished.tolist(), strict=True)):
        if len(running) == num_slots:
            begin = max(begin, heapq.heappop(running))
        started[number] = min(begin, end)
        heapq.heappush(running, end)
    return started
