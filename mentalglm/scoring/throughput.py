"""How fast a run was, and what each second went into in which its engines were not at work."""

import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mentalglm.engine.flops import mfu, peak_flops
from mentalglm.scoring.run.commit import NO_EFFORT, Effort, ShardCommit


class EffortMeter:
    """What one engine and the process that feeds it do, in pieces: each goes into one commit.

    CPU is counted by step, for the threads that do them. What no step names is the engine's client: tokenising, sending
    prompts, receiving tokens.
    """

    def __init__(self, run_started: float) -> None:
        """`run_started`: s since 1970. To be made before the engine."""
        self._run_started, self._made, self._up = run_started, time.time(), 0.0
        self._lock = threading.Lock()
        self._steps: defaultdict[str, float] = defaultdict(float)
        self._tokens: Counter[str] = Counter()
        self._cpu_before = time.process_time()
        self._given = NO_EFFORT

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Counts the CPU time of this thread inside, for `name`. Nothing may be awaited inside."""
        started = time.thread_time()
        try:
            yield
        finally:
            with self._lock:
                self._steps[name] += time.thread_time() - started

    def engine_started(self) -> None:
        """The engine is up: all since the run began was its cold start."""
        self._up = time.time()
        self._cpu_before = time.process_time()

    def is_a_replacement(self) -> None:
        """The worker before this one has died: the cold start of this one began later."""
        if self._given is NO_EFFORT:  # else it has long been there, and gets work of the one that died
            self._run_started = max(self._run_started, self._made)

    def count(self, *, num_prefill_tokens: int, num_cached_tokens: int, num_wasted_tokens: int) -> None:
        """Tokens of one row."""
        self._tokens["num_prefill_tokens"] += num_prefill_tokens
        self._tokens["num_cached_tokens"] += num_cached_tokens
        self._tokens["num_wasted_tokens"] += num_wasted_tokens

    def take(self, engine_seconds: Mapping[str, float]) -> Effort:
        """All that was not in a piece yet. `engine_seconds`: as `Engine.seconds`."""
        with self._lock:
            steps = dict(self._steps)
        steps["client"] = max(time.process_time() - self._cpu_before - sum(steps.values()), 0.0)
        engine_s = {"cold_start": max(self._up - self._run_started, 0.0), **engine_seconds} if engine_seconds else {}
        so_far = Effort(engine_s=engine_s, cpu_s=steps, **self._tokens)
        piece, self._given = so_far - self._given, so_far
        return piece


class Throughput:
    """Of one attempt at a run: the time from its start to now, and the commits that were made in it."""

    def __init__(self, started: float, num_engines: int) -> None:
        """`started`: s since 1970."""
        self._started = started
        self._cpu_before = time.process_time()
        self._num_engines = num_engines
        # Of each commit; a run has hundreds of thousands.
        self._times, self._counts = array("d"), array("q")
        self._effort = NO_EFFORT
        self._num_output_tokens = 0
        self._engine: dict[str, str] = {}

    def add(self, commit: ShardCommit) -> None:
        """Counts one more shard."""
        self._times.append(commit.finished_at)
        self._counts.append(commit.num_predictions)
        self._effort += commit.effort
        self._num_output_tokens += commit.num_output_tokens
        self._engine = self._engine or commit.engine

    def report(self) -> dict[str, Any] | None:
        """For the manifest; None where nothing was scored.

        A row is one of the output: a prediction. `wall_s`; `num_predictions` of this attempt; `rows_per_s`: of the
        whole time; `rows_per_s_steady`: between the first 10 % and the last 10 % of the rows, null where all came at
        once. `engine_s`: engines x wall time by what it went into; adds up to it: `cold_start` (Ray's start, loading),
        the keys of `Occupancy`, and `finish` (after the last commit). What is known of no engine is `tail`: it was
        waiting for the others. `slots_busy`: share of `busy`. `wasted_tokens`: share of the output tokens that are in
        no result. `prefix_cache_hits`: share of the prompt tokens. `mfu`: model FLOPs utilisation in the steady state,
        on a known GPU. `cpu_ms_per_row`: of the processes that feed the engines, by step, and of `driver`, this one.
        """
        num_rows = sum(self._counts)
        if not num_rows:
            return None
        now = time.time()
        wall_s = max(now - self._started, 1e-9)
        effort = self._effort
        cpu_s = {**effort.cpu_s, "driver": time.process_time() - self._cpu_before}
        report: dict[str, Any] = {
            "num_predictions": num_rows,
            "num_engines": self._num_engines,
            "wall_s": round(wall_s, 2),
            "rows_per_s": round(num_rows / wall_s, 2),
            "rows_per_s_steady": _rounded(steady_rate(zip(self._times, self._counts, strict=True)), 2),
            "output_tokens_per_s": round(self._num_output_tokens / wall_s, 1),
            "cpu_ms_per_row": {step: round(1000 * s / num_rows, 3) for step, s in sorted(cpu_s.items())},
        }
        if effort.engine_s:
            engine_s = {**effort.engine_s, "finish": self._num_engines * max(now - max(self._times), 0.0)}
            # Clocks of other machines may differ: what they cannot have spent was no cold start.
            engine_s["cold_start"] = min(engine_s["cold_start"], self._num_engines * wall_s)
            engine_s["tail"] = max(engine_s["tail"] + self._num_engines * wall_s - sum(engine_s.values()), 0.0)
            report["engine_s"] = {name: round(s, 2) for name, s in engine_s.items()}
            report["slots_busy"] = round(engine_s["busy"] / (self._num_engines * wall_s), 4)
        if effort.num_prefill_tokens:
            if self._engine.get("engine") == "vllm":
                report["prefix_cache_hits"] = round(effort.num_cached_tokens / effort.num_prefill_tokens, 4)
            utilisation = self._mfu(effort, num_rows, report["rows_per_s_steady"])
            report |= {"mfu": round(utilisation, 4)} if utilisation is not None else {}
        if self._num_output_tokens:
            report["wasted_tokens"] = round(effort.num_wasted_tokens / self._num_output_tokens, 4)
        return report

    def _mfu(self, effort: Effort, num_rows: int, rows_per_s: float | None) -> float | None:
        """Of the first engine's model and device; None where they, or the rate, are not known."""
        peak = peak_flops(self._engine.get("device", ""))
        num_parameters = self._engine.get("num_parameters")
        if peak is None or num_parameters is None or rows_per_s is None:
            return None
        num_tokens = effort.num_prefill_tokens - effort.num_cached_tokens + self._num_output_tokens
        tokens_per_s = num_tokens / num_rows * rows_per_s
        return mfu(num_parameters=int(num_parameters), tokens_per_s=tokens_per_s, peak=peak * self._num_engines)


def steady_rate(finished: Iterator[tuple[float, int]]) -> float | None:
    """Rows per second between the first 10 % and the last 10 % of the rows: without start and tail.

    `finished`: (time in s, rows that came in at that time). None with fewer than ten entries, too few to tell.
    """
    entries = sorted(finished)
    if len(entries) < 10:
        return None
    num_rows = sum(rows for _, rows in entries)
    done, low, high = 0, None, None
    for at, rows in entries:
        done += rows
        if low is None and done >= 0.1 * num_rows:
            low = (at, done)
        if done >= 0.9 * num_rows:
            high = (at, done)
            break
    if low is None or high is None or high[0] <= low[0]:
        return None
    return (high[1] - low[1]) / (high[0] - low[0])


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
