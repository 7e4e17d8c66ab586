"""What MLflow is told of a stage, by a stand-in that notes its calls."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mentalglm.config.train import TrackingConfig
from mentalglm.errors import ConfigError
from mentalglm.training.metrics_log import MetricsLog, delete_metrics, read_metrics
from mentalglm.training.mlflow_run import MlflowRun, log_validation

CONFIG = TrackingConfig(mlflow_uri="http://host:5000")


class Mlflow(SimpleNamespace):
    """MLflow's functions that are used. Run ids are numbers, in order."""

    def __init__(self) -> None:
        self.is_away = False
        self.runs: list[dict[str, Any]] = []
        super().__init__(set_tracking_uri=lambda _: None, set_experiment=lambda _: None, MlflowClient=self.client)

    def start_run(self, run_id: str | None, run_name: str | None) -> Any:
        if run_id is None:
            self.runs.append({"name": run_name, "params": {}, "metrics": [], "ends": []})
            run_id = str(len(self.runs) - 1)
        self.run = self.runs[int(run_id)]
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def log_params(self, params: dict[str, str]) -> None:
        self.run["params"] |= params

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        if self.is_away:
            raise ConnectionError
        self.run["metrics"] += [(step, name, value) for name, value in metrics.items()]

    def end_run(self, status: str) -> None:
        self.run["ends"].append(status)

    def client(self, tracking_uri: str) -> Any:
        assert tracking_uri == CONFIG.mlflow_uri
        return SimpleNamespace(
            log_metric=lambda run, name, value, step: self.runs[int(run)]["metrics"].append((step, name, value))
        )


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    found = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", found)
    return found


def log(folder: Path, first_step: int = 0) -> MetricsLog:
    run = MlflowRun(str(folder), CONFIG, "s1-abc", {"seed": 4, "lora": {"r": 8}})
    return MetricsLog(str(folder), first_step=first_step, mlflow=run)


def test_a_stage_is_one_run_whatever_number_of_attempts_it_takes(tmp_path: Path, mlflow: Mlflow) -> None:
    with log(tmp_path) as first:
        first.add(1, {"loss": 2.0})
        first.has_failed = True
    log_validation(str(tmp_path), CONFIG, 1, {"suicide_risk": 0.5})
    with log(tmp_path, 1) as second:
        second.add(2, {"loss": 1.0})
    [run] = mlflow.runs
    assert run["name"] == "s1-abc"
    assert run["params"] == {"seed": "4", "lora.r": "8"}
    assert run["metrics"] == [(1, "train/loss", 2.0), (1, "validation/suicide_risk", 0.5), (2, "train/loss", 1.0)]
    assert run["ends"] == ["FAILED", "FINISHED"]
    delete_metrics(str(tmp_path))
    with log(tmp_path):
        assert len(mlflow.runs) == 2, "of a stage that is begun anew"


def test_an_error_ends_the_run_as_failed(tmp_path: Path, mlflow: Mlflow) -> None:
    with pytest.raises(ZeroDivisionError), log(tmp_path):
        _ = 1 / 0
    assert mlflow.runs[0]["ends"] == ["FAILED"]


def test_it_may_be_away_for_a_while(tmp_path: Path, mlflow: Mlflow) -> None:
    with log(tmp_path) as each:
        mlflow.is_away = True
        each.add(1, {"loss": 2.0})
        log_validation(str(tmp_path / "other"), CONFIG, 1, {"score": 0.5})
    assert mlflow.runs[0]["metrics"] == []
    assert len(read_metrics(str(tmp_path))) == 1


def test_without_mlflow_the_fix_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"tracking.mlflow_uri: MLflow is not installed .* mlflow-skinny"):
        log(tmp_path)
    log_validation(str(tmp_path), CONFIG, 1, {"score": 0.5})
