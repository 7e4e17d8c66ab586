"""A stage that is finished is known by its own record, whatever has become of its private folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from mentalglm.config import TrainConfig, validate
from mentalglm.engine.model import ResolvedModel
from mentalglm.errors import ConfigError
from mentalglm.training.checkpoint import list_checkpoints
from mentalglm.training.metrics_log import read_metrics
from mentalglm.training.stage import RECORD, Stage, StageRecord
from mentalglm.training.validation.notes import Validation, read_validations, write_validation
from tests.unit.training.test_checkpoints import MINIMAL, make


def stage(folder: Path) -> Stage:
    config = validate(TrainConfig, MINIMAL | {"output": {"uri": str(folder)}}, "train.yaml")
    return Stage("s1", config, ResolvedModel("demo", "demo", "0" * 64))


def finish(made: Stage, fingerprint: dict[str, Any]) -> StageRecord:
    product = Path(made.product_uri)
    product.mkdir(parents=True)
    (product / "adapter_config.json").write_text("{}")
    record = StageRecord(
        name=made.name,
        start_from="base",
        fingerprint=fingerprint,
        best_checkpoint="step-00000001-00000000",
        best_step=1,
        best_score=0.5,
        best_scores={"score": 0.5},
        digest="0" * 64,
        num_steps=1,
        steps_per_epoch=1,
        validations=[],
        data={},
        finished_at="2025-01-01T00:00:00+00:00",
        seconds=1.0,
        versions={},
    )
    (Path(made.uri) / RECORD).write_text(record.model_dump_json())
    found = made.read_record()
    assert found is not None
    return found


def test_a_finished_stage_is_known_without_its_private_folder(tmp_path: Path) -> None:
    made = stage(tmp_path)
    record = finish(made, {"seed": 42, "optimizer": {"betas": (0.9, 0.999)}})
    made.check_finished(record, {"seed": 42, "optimizer": {"betas": (0.9, 0.999)}})
    with pytest.raises(ConfigError, match=r"other settings .*seed: 42, now 43"):
        made.check_finished(record, {"seed": 43, "optimizer": {"betas": (0.9, 0.999)}})


def test_a_finished_stage_whose_product_is_gone_is_not_taken_for_done(tmp_path: Path) -> None:
    made = stage(tmp_path)
    record = finish(made, {})
    (Path(made.product_uri) / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match=r"stages.s1: .*adapter, .* is gone; put it back, or remove .*stage.json"):
        made.check_finished(record, {})


def test_settings_may_change_while_nothing_is_done(tmp_path: Path) -> None:
    made = stage(tmp_path)
    made.open({"seed": 42})
    made.open({"seed": 43})
    assert json.loads((tmp_path / "s1/_run/fingerprint.json").read_text()) == {"seed": 43}


def leave_notes(folder: Path) -> None:
    """Of a training that has done something."""
    write_validation(str(folder), Validation(checkpoint="step-00000002-aa", step=2, score=0.9))
    (folder / "_run/early_stopping.json").write_text('{"is_over": {"4": true}}')
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard/events.out.tfevents.0000000000").write_bytes(b"curve")
    (folder / "metrics.jsonl").write_text('{"step": 2, "loss": 0.5}\n')


def test_what_is_begun_anew_has_nothing_of_another_training(tmp_path: Path) -> None:
    made = stage(tmp_path)
    leave_notes(tmp_path / "s1")
    make(tmp_path / "local", tmp_path / "s1/_run/checkpoints", 2)
    made.open({"seed": 42})
    assert [each.step for each in read_validations(made.uri)] == [2]
    assert [line["step"] for line in read_metrics(made.uri)] == [2]
    for path in (tmp_path / "s1/_run/checkpoints").rglob("manifest.json"):
        path.unlink()
    made.open({"seed": 43})
    assert read_validations(made.uri) == read_metrics(made.uri) == []
    assert list((tmp_path / "s1/tensorboard").iterdir()) == []
    assert not (tmp_path / "s1/_run/early_stopping.json").exists()


def test_a_record_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    made = stage(tmp_path)
    finish(made, {})
    (tmp_path / "s1" / RECORD).write_text('{"name": "s1", "cut o')
    with pytest.raises(ConfigError, match=r"s1/stage\.json: is not the record .* put it back, or remove it"):
        made.read_record()


def test_a_fingerprint_that_is_damaged_leaves_it_to_the_checkpoints(tmp_path: Path) -> None:
    made = stage(tmp_path)
    make(tmp_path / "local", tmp_path / "s1/_run/checkpoints", 2)
    made.open({"seed": 42})
    (tmp_path / "s1/_run/fingerprint.json").write_text('{"se')
    made.open({"seed": 42})
    assert [each.step for each in list_checkpoints(f"{tmp_path}/s1/_run/checkpoints")] == [2]
