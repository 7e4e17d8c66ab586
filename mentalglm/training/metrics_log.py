"""The metrics of a stage: a JSON line for each logged step, TensorBoard's files, and MLflow where it is asked for."""

import json
import math
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mentalglm import storage
from mentalglm.training.mlflow_run import RUN, MlflowRun

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
_WRITE_INTERVAL_S = 5.0


class MetricsLog:
    """Keeps the metrics of a stage and writes them to its folder now and then, so that they can be watched.

    Of an attempt that was killed, what came after the checkpoint that is gone on from is left out.
    """

    def __init__(
        self, stage_uri: str, *, first_step: int, mlflow: MlflowRun | None = None, local: Path | None = None
    ) -> None:
        """`first_step`: steps done before; `local`: where TensorBoard's files are written first, by default a temporary
        folder."""
        self._uri = stage_uri
        self._exit = ExitStack()
        self._lines = [json.dumps(line) for line in read_metrics(stage_uri) if line["step"] <= first_step]
        self._folder = Path(
            self._exit.enter_context(tempfile.TemporaryDirectory(prefix="mentalglm-metrics-", dir=local))
        )
        self._first_step = first_step
        self._writer = _tensorboard(self._folder, first_step)
        self._exit.callback(self._writer.close)
        self._mlflow = mlflow
        self.has_failed = False
        """Set where training ends without an error and is not done."""
        self._is_changed = threading.Event()
        self._is_closing = threading.Event()
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._write_now_and_then, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closing.set()
        self._thread.join()
        with self._write_lock:
            self._writer.close()  # which waits for what is in its queue; its flush does not
        self.write()
        with self._write_lock:
            self._is_closed = True
            self._exit.close()
        if self._mlflow is not None:
            self._mlflow.end(has_failed=self.has_failed or kind is not None)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes the metrics of a step (the number of steps done with it), and `time`, s since 1970. Those that are no
        number are left out."""
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        with self._lock:
            self._lines.append(json.dumps({"step": step, "time": round(time.time(), 3), **metrics}))
        for name, value in metrics.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        if self._mlflow is not None:
            self._mlflow.log(step, metrics)
        self._is_changed.set()

    def _write_now_and_then(self) -> None:
        while not self._is_closing.wait(_WRITE_INTERVAL_S):
            if self._is_changed.is_set():
                self.write()

    def write(self) -> None:
        """Writes what has been added so far; done before a checkpoint is there to go on from. From any thread, and to
        no effect after the end, when all is written."""
        with self._write_lock:
            if self._is_closed:
                return
            self._is_changed.clear()
            with self._lock:
                data = "".join(f"{line}\n" for line in self._lines).encode()
            storage.put(storage.join(self._uri, METRICS), data)
            self._writer.flush()
            for path in self._folder.iterdir():
                # Named by the step, not by the machine; a later attempt that begins there takes its place.
                name = f"events.out.tfevents.{self._first_step:010d}"
                storage.put(storage.join(self._uri, TENSORBOARD, name), path.read_bytes())


def read_metrics(stage_uri: str) -> list[dict[str, Any]]:
    """What has been logged so far, without lines that are damaged."""
    found: list[dict[str, Any]] = []
    for line in (storage.read_bytes(storage.join(stage_uri, METRICS)) or b"").splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def delete_metrics(stage_uri: str) -> None:
    """All that has been logged; MLflow keeps its run and gets another."""
    for name in (METRICS, RUN):
        storage.delete(storage.join(stage_uri, name))
    folder = storage.join(stage_uri, TENSORBOARD)
    for name in storage.list_names(folder):
        storage.delete(storage.join(folder, name))


def write_validation_scalars(stage_uri: str, scores: Mapping[int, Mapping[str, float]]) -> None:
    """TensorBoard's curves of the validations: step -> name -> value."""
    with tempfile.TemporaryDirectory(prefix="mentalglm-metrics-") as folder:
        writer = _tensorboard(Path(folder), 0)
        for step, metrics in sorted(scores.items()):
            for name, value in metrics.items():
                writer.add_scalar(f"validation/{name}", value, step)
        writer.close()
        for path in Path(folder).iterdir():
            storage.put(storage.join(stage_uri, TENSORBOARD, "events.out.tfevents.validation"), path.read_bytes())


def _tensorboard(folder: Path, first_step: int) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(logdir=str(folder), purge_step=first_step or None, write_to_disk=True)
