"""What a person sees while a run goes on: a bar on a terminal, a plain line now and then elsewhere."""

import time
from collections import Counter, deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_PLAIN_INTERVAL_S = 10.0
_RATE_WINDOW_S = 60.0


class RunProgress:
    """Predictions done out of `total`, rows per second over the last minute, time left, failures by status.

    `num_done`: predictions that an earlier, interrupted attempt has committed.
    """

    def __init__(self, total: int, num_done: int, console: Console | None = None) -> None:
        self._total = total
        self._num_done = num_done
        self._console = console or Console(stderr=True)
        self._history: deque[tuple[float, int]] = deque([(time.monotonic(), num_done)])
        self._last_line_s = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("scoring"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._bar.add_task("starting the engine", total=total, completed=num_done)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        else:
            self._console.print(f"scoring {self._total} predictions, {self._num_done} done before; starting the engine")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, statuses: Mapping[str, int]) -> None:
        """Shows the state: all predictions of the run so far, by status."""
        now = time.monotonic()
        num_done = sum(statuses.values())
        if num_done != self._history[-1][1]:
            self._history.append((now, num_done))
        while len(self._history) > 2 and now - self._history[0][0] > _RATE_WINDOW_S:
            self._history.popleft()
        text = describe(statuses, self._total, self.rate())
        if self._bar:
            if num_done > self._num_done:
                self._bar.update(self._task, completed=num_done, description=text)
        elif now - self._last_line_s >= _PLAIN_INTERVAL_S:
            self._last_line_s = now
            self._console.print(f"{num_done}/{self._total} {text}", highlight=False)

    def rate(self) -> float:
        """Predictions per second over the last minute."""
        (first_s, first), (last_s, last) = self._history[0], self._history[-1]
        silence_s = time.monotonic() - last_s  # an engine that stands still has no rate
        elapsed_s = last_s - first_s + (silence_s if silence_s > _RATE_WINDOW_S else 0.0)
        return (last - first) / elapsed_s if elapsed_s > 0 else 0.0


def describe(statuses: Mapping[str, int], total: int, rate: float) -> str:
    """One line: rows per second, time left, failures by status."""
    failed = Counter({status: n for status, n in statuses.items() if status != "ok" and n})
    parts = [f"{rate:.1f} rows/s"]
    if rate > 0:
        parts.append(f"{duration((total - sum(statuses.values())) / rate)} left")
    parts += [f"{status} {n}" for status, n in failed.most_common()]
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 42 s, 3 min 05 s, 7 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
