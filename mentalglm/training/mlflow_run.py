"""A stage as a run of MLflow, where one is asked for; after a resume it is the same run.

A tracker that is away for a while is no reason to stop training: what is logged meanwhile is not there.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from mentalglm import storage
from mentalglm.config.train import TrackingConfig
from mentalglm.errors import ConfigError

RUN = "_run/mlflow_run"
"""Holds the id that MLflow has given to the stage's run."""
_MAX_PARAM_CHARS = 500  # MLflow's own limit was this until 2.8, and longer ones help nobody


class MlflowRun:
    """Of a worker: the metrics of its steps."""

    def __init__(self, stage_uri: str, config: TrackingConfig, name: str, params: Mapping[str, Any]) -> None:
        """Begins the run, or goes on with that of an earlier attempt. `params`: settings, nested.

        Raises: ConfigError where MLflow is not installed or does not answer.
        """
        self._mlflow = _mlflow()
        known = (storage.read_bytes(storage.join(stage_uri, RUN)) or b"").decode() or None
        try:
            self._mlflow.set_tracking_uri(config.mlflow_uri)
            self._mlflow.set_experiment(config.mlflow_experiment)
            run = self._mlflow.start_run(run_id=known, run_name=None if known else name)
            if known is None:
                self._mlflow.log_params(dict(_flat(params)))
        except Exception as error:  # theirs, of many kinds
            raise ConfigError(
                f"tracking.mlflow_uri = {config.mlflow_uri}: no run can be begun there ({type(error).__name__}); check "
                "the address, or leave it out"
            ) from None
        storage.put(storage.join(stage_uri, RUN), run.info.run_id.encode())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step."""
        with suppress(Exception):
            self._mlflow.log_metrics({f"train/{name}": value for name, value in metrics.items()}, step=step)

    def end(self, *, has_failed: bool) -> None:
        """Closes the run."""
        with suppress(Exception):
            self._mlflow.end_run("FAILED" if has_failed else "FINISHED")


def log_validation(stage_uri: str, config: TrackingConfig, step: int, scores: Mapping[str, float]) -> None:
    """Adds a validation to the stage's run, from the driver. Without one, or without MLflow, nothing."""
    with suppress(Exception):
        run = storage.read_bytes(storage.join(stage_uri, RUN))
        client = _mlflow().MlflowClient(tracking_uri=config.mlflow_uri)
        for name, value in scores.items():
            client.log_metric(run.decode() if run else "", f"validation/{name}", value, step=step)


def _mlflow() -> Any:
    try:
        import mlflow
    except ImportError:
        raise ConfigError(
            "tracking.mlflow_uri: MLflow is not installed where the worker runs; install mlflow-skinny, or leave it out"
        ) from None
    return mlflow


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)[:_MAX_PARAM_CHARS]
