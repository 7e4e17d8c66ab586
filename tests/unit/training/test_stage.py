"""A stage that is finished is known by its own record, whatever has become of its private folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from mentalglm.config import TrainConfig, validate
from mentalglm.engine.model import ResolvedModel
from mentalglm.errors import ConfigError
from mentalglm.training.stage import RECORD, Stage, StageRecord
from tests.unit.training.test_checkpoints import MINIMAL


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
