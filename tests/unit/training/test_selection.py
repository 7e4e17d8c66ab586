"""Which checkpoint is given out, and what a validation is that could not be made."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mentalglm.config import ModelConfig, TrainConfig
from mentalglm.corpus.records import Records
from mentalglm.engine.model import resolve_model
from mentalglm.errors import InterruptedRunError
from mentalglm.scoring.run.commit import Totals
from mentalglm.scoring.scratch import ScoredRows
from mentalglm.training.checkpoint import upload
from mentalglm.training.pipeline import StageData
from mentalglm.training.stage import Stage
from mentalglm.training.validation import measure, selection
from mentalglm.training.validation.measure import ValidationSet, validate_checkpoint
from mentalglm.training.validation.notes import Validation, read_validations, write_validation
from mentalglm.training.validation.selection import drop_damaged_snapshot, make_up_for_lost_validations, select


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """With three validated checkpoints, the second of them the best."""
    config = TrainConfig.model_validate(
        {
            "output": {"uri": str(tmp_path / "out")},
            "stages": {"s1": {"train": [{"uri": "r.jsonl"}]}},
            "selection": {"engine": {"kind": "echo"}},
        }
    )
    stage = Stage("s1", config, resolve_model(ModelConfig(path="demo")))
    local = tmp_path / "local"
    local.mkdir()
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.7)):
        (local / "adapter_model.safetensors").write_bytes(bytes([step]))
        uri = f"{stage.checkpoints_uri}/{name(step)}"
        upload(local, uri, step=step, is_candidate=True, fingerprint="f")
        write_validation(stage.uri, Validation(checkpoint=name(step), step=step, score=score))
    return stage


def name(step: int) -> str:
    return f"step-{step:08d}-{step:08x}"


def weights(stage: Stage, step: int) -> Path:
    return Path(stage.checkpoints_uri) / name(step) / "adapter_model.safetensors"


def test_the_best_is_chosen_and_of_equal_ones_the_last(stage: Stage) -> None:
    assert select(stage, ["suicide_risk"])[0].step == 2
    write_validation(stage.uri, Validation(checkpoint=name(3), step=3, score=0.9))
    assert select(stage, ["suicide_risk"])[0].step == 3


def test_a_damaged_checkpoint_is_not_chosen_however_good_it_was(stage: Stage) -> None:
    weights(stage, 2).write_bytes(b"rotten")
    assert select(stage, ["suicide_risk"])[0].step == 3
    weights(stage, 3).unlink()
    assert select(stage, ["suicide_risk"])[0].step == 1
    weights(stage, 1).write_bytes(b"")
    with pytest.raises(InterruptedRunError, match=r"stages\.s1: no checkpoint could be validated"):
        select(stage, ["suicide_risk"])


def test_a_validation_that_failed_is_made_again_and_may_win(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    write_validation(stage.uri, Validation(checkpoint=name(1), step=1, score=None, error="no room"))
    found = Validation(checkpoint=name(1), step=1, score=0.95)
    monkeypatch.setattr(selection, "validate_checkpoint", lambda *_: found)
    assert select(stage, ["suicide_risk"]) == (select(stage, ["suicide_risk"])[0], found)
    assert select(stage, ["suicide_risk"])[0].step == 1


def snapshot_of(stage: Stage, *steps: int, validated: tuple[int, ...] = ()) -> Path:
    """Ray Train's list of these checkpoints."""
    path = Path(stage.checkpoints_uri) / "checkpoint_manager_snapshot.json"
    results = [{"version": 0, "checkpoint_dir_name": name(step), "metrics": {}} for step in steps]
    path.write_text(
        json.dumps(
            {"checkpoint_results": results, "validated_checkpoint_dir_names": [name(step) for step in validated]}
        )
    )
    return path


def test_rays_list_goes_where_it_is_cut_off_or_names_a_checkpoint_that_is_gone(stage: Stage) -> None:
    path = snapshot_of(stage, 1, 2, 3)
    drop_damaged_snapshot(stage.checkpoints_uri)
    assert path.exists()
    path.write_text(path.read_text()[:-5])
    drop_damaged_snapshot(stage.checkpoints_uri)
    assert not path.exists()
    snapshot_of(stage, 1, 2, 3)
    shutil.rmtree(weights(stage, 2).parent)
    drop_damaged_snapshot(stage.checkpoints_uri)
    assert not path.exists()
    snapshot_of(stage, 1, 3)
    drop_damaged_snapshot(stage.checkpoints_uri)
    assert path.exists()


def test_validations_are_made_up_for_that_ray_does_not_know_of_or_whose_note_is_lost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(selection, "validate_checkpoint", lambda config, uri, name, tasks: made.append(name))
    for note in (Path(stage.uri) / "_run/validation").iterdir():
        note.write_text('{"cut o')
    snapshot_of(stage, 1, 2, validated=(1,))  # the second is still to be made, by Ray
    make_up_for_lost_validations(stage, ["suicide_risk"])
    assert made == [name(1), name(3)]


@pytest.mark.parametrize("status", ["engine_error", "too_long"])
def test_answers_that_no_model_gave_are_no_score(stage: Stage, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    totals = Totals(statuses={"suicide_risk": Counter({"ok": 7, status: 1})})
    monkeypatch.setattr(measure, "score_rows", lambda *_: ScoredRows({}, totals))
    monkeypatch.setattr(ValidationSet, "rows", lambda _: {"suicide_risk": list(range(8))})
    with pytest.raises(InterruptedRunError, match=r"1 answers did not come from selection\.engine"):
        validate_checkpoint(stage.config, stage.uri, name(2), ["suicide_risk"])
    [found] = [each for each in read_validations(stage.uri) if each.step == 2]
    assert found.score is None
    assert "did not come from selection.engine" in (found.error or "")


def test_tasks_of_which_nothing_is_held_out_are_told() -> None:
    def records(*tasks: str) -> Any:
        return Records(
            [SimpleNamespace(task=SimpleNamespace(name=task)) for task in tasks], {task: task for task in tasks}
        )

    data = StageData(records("b", "a", "c"), records("b"))
    assert data.unvalidated_tasks == ["a", "c"]
    assert data.validated_tasks == ["b"]
