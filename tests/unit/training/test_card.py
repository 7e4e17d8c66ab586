"""The model card: all that shapes the result, and where each setting is from."""

from typing import Any

import pytest

from mentalglm.config import TrainConfig
from mentalglm.engine.model import ResolvedModel
from mentalglm.training.card import model_card
from mentalglm.training.stage import Stage, StageRecord

SOURCE = {"uri": "r.jsonl"}


def card(stage: dict[str, Any], **changes: Any) -> dict[str, tuple[str, str]]:
    """Setting -> (value, where it is from), of a stage named `told` that stands on one named `first`."""
    return dict(rows(text(stage, **changes)))


def rows(card: str) -> list[tuple[str, tuple[str, str]]]:
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return [(name, (value, origin)) for name, value, origin in (line for line in lines if len(line) == 3)]


def text(stage: dict[str, Any], **changes: Any) -> str:
    stages = {"first": {"train": [SOURCE]}, "told": {"train": [SOURCE]} | stage}
    config = TrainConfig.model_validate({"output": {"uri": "out"}, "stages": stages} | changes)
    record = StageRecord(
        name="told",
        start_from=config.stages["told"].start_from,
        fingerprint={"tasks": {"suicide_risk": "0" * 64}, "model": "0" * 64, "train": {"digest": "0" * 64}},
        best_checkpoint="step-00000001-00000000",
        best_step=1,
        best_score=0.22,
        best_scores={"suicide_risk": 0.22, "score": 0.22},
        digest="0" * 64,
        num_steps=1,
        steps_per_epoch=1,
        validations=[],
        data={
            "num_train_records": 90,
            "num_explained_records": 7,
            "num_validated_records": 10,
            "num_validation_texts_in_train": 0,
        },
        finished_at="2025-01-01T00:00:00+00:00",
        seconds=1.0,
        versions={},
    )
    return model_card(Stage("told", config, ResolvedModel("demo", "demo", "0" * 64)), record)


@pytest.mark.parametrize(
    ("stage", "origin"),
    [
        ({"num_epochs": 5}, "paper"),
        ({"num_epochs": 3}, "changed: the paper has 5 for a stage from the base model"),
        (
            {"num_epochs": 10},
            "assumed: of the paper's second stage, which is not told to be shorter without the first",
        ),
        ({"num_epochs": 10, "start_from": "first"}, "paper"),
        ({"num_epochs": 5, "start_from": "first"}, "changed: the paper has 10 for a stage that goes on from another"),
    ],
)
def test_the_paper_s_epochs_are_those_of_the_same_step(stage: dict[str, Any], origin: str) -> None:
    assert card(stage)["num_epochs"] == (str(stage["num_epochs"]), origin)


def test_how_the_best_checkpoint_is_found_is_told_and_assumed() -> None:
    found = card({}, selection={"patience": 3, "max_rows": 50})
    expected = {"every_epochs": "1", "patience": "3", "max_rows": "50", "max_tokens": "256"}
    assert {name: found[f"selection.{name}"][0] for name in expected} == expected
    assert found["validation_fraction"][0] == "0.1"
    for name in (*(f"selection.{each}" for each in expected), "selection.metric", "validation_fraction"):
        assert found[name][1].startswith("assumed"), name
    other = card({"validation": [SOURCE]}, selection={"every_steps": 7})
    assert other["selection.every_steps"][0] == "7"
    assert (other["selection.patience"][0], other["selection.max_rows"][0]) == ("none", "all")
    assert not {"selection.every_epochs", "validation_fraction"} & other.keys()


def test_weights_of_files_and_of_tasks_are_told() -> None:
    found = card({"train": [SOURCE, SOURCE | {"weight": 2, "task_weights": {"suicide_risk": 3}}]})
    assert [(name, value) for name, (value, _) in found.items() if "weight" in name and "decay" not in name] == [
        ("lora.init_lora_weights", "True"), ("train[1].weight", "2.0"), ("train[1].task_weights.suicide_risk", "3.0"),
    ]  # fmt: skip


def test_the_mean_of_the_tasks_is_no_task() -> None:
    assert "| suicide_risk | 0.2200 |\n| mean F1 | 0.2200 |" in text({})


def test_it_tells_how_many_records_had_an_explanation_to_learn() -> None:
    assert "90 records (7 with an explanation), 1 steps" in text({})
    assert "90 records, 1 steps" in text({}, method="encoder")
