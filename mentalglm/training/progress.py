"""What a person sees while a stage is trained: read from what its workers write, so it needs nothing of Ray."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mentalglm.errors import StorageError
from mentalglm.scoring.progress import duration
from mentalglm.training.metrics_log import read_metrics
from mentalglm.training.scores import describe_scores
from mentalglm.training.validation.notes import Validation, read_validations

_POLL_INTERVAL_S = 2.0
_PLAIN_INTERVAL_S = 10.0


class StageProgress:
    """Steps done, loss, tokens per second, time left, and each validation as it ends."""

    def __init__(
        self,
        name: str,
        stage_uri: str,
        num_steps: int,
        console: Console | None = None,
        on_validation: Callable[[Validation], None] = lambda _: None,
    ) -> None:
        """`on_validation`: called with each that ends meanwhile."""
        self._name, self._uri, self._num_steps = name, stage_uri, num_steps
        self._console = console or Console(stderr=True, soft_wrap=True)
        self._on_validation = on_validation
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._validated = {validation.checkpoint for validation in read_validations(stage_uri)}
        self._last_step = -1
        self._last_line_s = 0.0
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("starting the workers", total=num_steps)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        else:
            self._console.print(
                f"{self._name}: {self._num_steps} steps; starting the workers", highlight=False, markup=False
            )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        if kind is None:
            self._show(is_last=True)
        if self._bar:
            self._bar.stop()

    def _watch(self) -> None:
        while not self._is_over.wait(_POLL_INTERVAL_S):
            with suppress(StorageError):  # for now; the workers tell of it, if it lasts
                self._show()

    def _show(self, *, is_last: bool = False) -> None:
        for validation in read_validations(self._uri):
            if validation.checkpoint not in self._validated:
                self._validated.add(validation.checkpoint)
                self._on_validation(validation)
                found = describe_scores(validation.scores)
                said = found if validation.error is None else f"failed: {validation.error}"
                self._console.print(
                    f"{self._name}: validation after step {validation.step}: {said}", highlight=False, markup=False
                )
        lines = read_metrics(self._uri)
        if not lines or lines[-1]["step"] == self._last_step:
            return
        step = lines[-1]["step"]
        text = describe(lines, self._num_steps)
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        elif is_last or time.monotonic() - self._last_line_s >= _PLAIN_INTERVAL_S:
            self._last_line_s = time.monotonic()
            self._console.print(f"{self._name}: step {step}/{self._num_steps} {text}", highlight=False, markup=False)
        self._last_step = step


def describe(lines: list[dict[str, Any]], num_steps: int) -> str:
    """One line of the last of the logged metrics: loss, tokens per second, time left.

    A step is taken to need what the last ones did, and its share of all the saves so far: these are rare.
    """
    last, recent = lines[-1], lines[-10:]
    step_s = sum(line["step_s"] for line in recent) / len(recent)
    step_s += sum(line.get("save_s", 0.0) for line in lines) / last["step"]
    left = duration((num_steps - last["step"]) * step_s)
    return f"loss {last['loss']:.4f} · {last['tokens_per_s']:.0f} tokens/s · epoch {last['epoch']:.2f} · {left} left"
