"""The execution of a dataset that is run for what it does and not for what it returns."""

import threading
from typing import Any, ClassVar, Self

import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

_END_S = 10.0


class Execution:
    """Runs a dataset in a thread, and ends with the `with` at the latest. One at a time in a process.

    Ray's core ends the process with 1 and without a word where a thread still speaks to a raylet that is gone: nothing
    of an execution may be left when Ray is shut down.
    """

    def __init__(self, dataset: ray.data.Dataset) -> None:
        self._dataset = dataset
        self._error: Exception | None = None
        _Stop.is_wanted.clear()
        context = dataset.context
        context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Stop]
        self._thread = threading.Thread(target=self._run, name="lanes", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _Stop.is_wanted.set()
        self.join()

    def is_over(self) -> bool:
        """Whether the dataset has been run, or Ray has failed."""
        return not self._thread.is_alive()

    def error(self) -> Exception:
        """Why it ended before its work was done."""
        return self._error or RuntimeError()

    def join(self) -> None:
        """Waits a little for its end, so that its engines are free for what comes next."""
        self._thread.join(_END_S)

    def _run(self) -> None:
        try:
            for _ in self._dataset.iter_rows():
                pass
        except Exception as error:
            self._error = error


class _Stop(ExecutionCallback):  # type: ignore[misc]  # Ray's is untyped
    """Ends the loop of an execution at its next step. Ray makes an instance of the class for each execution."""

    is_wanted: ClassVar = threading.Event()

    def on_execution_step(self, executor: Any) -> None:
        if self.is_wanted.is_set():
            raise RuntimeError("stopped")
