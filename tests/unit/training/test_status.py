"""How far a train job is, read from its folder alone."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mentalglm.cli import app
from mentalglm.errors import ConfigError
from mentalglm.scoring.run.lease import Lease
from mentalglm.training.progress import describe
from mentalglm.training.status import read_train_status
from mentalglm.training.validation.notes import Validation, write_validation


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job whose second stage has done 20 of 60 steps."""
    for name in ("first", "second"):
        (tmp_path / name / "_run").mkdir(parents=True)
        timeline = {"num_steps": 60, "steps_per_epoch": 30}
        (tmp_path / name / "_run" / "timeline.json").write_text(json.dumps(timeline))
        lines = [
            {"step": step, "loss": 0.5, "tokens_per_s": 100.0, "step_s": 2.0, "epoch": step / 30} for step in (10, 20)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_a_running_an_interrupted_and_a_lost_stage_are_told_apart(job: Path) -> None:
    with Lease.acquire(str(job / "second")):
        first, second = read_train_status(str(job))
        assert (first.state, second.state) == ("interrupted", "running")
        shown = CliRunner().invoke(app, ["status", str(job)]).stdout
    assert "step 20 of 60, loss 0.5000 · 100 tokens/s · epoch 0.67 · 1 min 20 s left" in shown
    assert "the same `mentalglm train` command goes on" in shown
    assert [stage.state for stage in read_train_status(str(job))] == ["interrupted", "interrupted"]


def test_the_best_validation_and_those_that_failed_are_told(job: Path) -> None:
    uri = str(job / "second")
    metrics = {"suicide_risk": {"f1": 0.8}}
    write_validation(uri, Validation(checkpoint="step-00000010-aa", step=10, score=0.8, metrics=metrics))
    write_validation(
        uri, Validation(checkpoint="step-00000020-bb", step=20, score=None, error="no room for the engine")
    )
    told = CliRunner().invoke(app, ["status", str(job)]).stdout
    assert "best validation: F1 suicide_risk 0.8000, mean F1 0.8000" in told
    assert "validation after step 20 failed: no room for the engine" in told
    machine = json.loads(CliRunner().invoke(app, ["status", str(job), "--json"]).stdout)
    assert machine[1]["failed_validations"] == {"20": "no room for the engine"}


@pytest.mark.parametrize("name", ["stage.json", "_run/timeline.json"])
def test_a_note_that_is_damaged_is_one_line(name: str, job: Path) -> None:
    (job / "second" / name).write_text('{"num_st')
    refused = CliRunner().invoke(app, ["status", str(job)])
    assert isinstance(refused.exception, ConfigError)
    assert f"second/{name}: is " in str(refused.exception)


def test_a_folder_of_neither_kind_is_refused(job: Path, tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["status", str(tmp_path / "absent")])
    assert isinstance(refused.exception, ConfigError)
    assert "holds no run and no train job; give the output.uri of a score or train job" in str(refused.exception)
    of_a_stage = CliRunner().invoke(app, ["status", f"{job}/second/"])
    assert isinstance(of_a_stage.exception, ConfigError)
    assert str(of_a_stage.exception).endswith(f"is one stage of a train job; give the job's output.uri, {job}")


def test_time_left_has_the_saves_in_it() -> None:
    """20 steps of 2 s with a save of 10 s, 40 to come: 80 s, and 20 s for saves, however long ago the last one was."""
    lines = [
        {"step": step, "loss": 0.5, "tokens_per_s": 100.0, "step_s": 2.0, "save_s": 10.0 * (step == 1), "epoch": 0.5}
        for step in range(1, 21)
    ]
    assert describe(lines, 60).endswith("1 min 40 s left")
