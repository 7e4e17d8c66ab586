"""Checkpoints that are whole or none, early stopping, the config's refusals, the card."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mentalglm.config import TrainConfig, validate
from mentalglm.config.train import SelectionConfig
from mentalglm.errors import ConfigError
from mentalglm.training.checkpoint import is_whole, list_checkpoints, local_copy, newest, upload
from mentalglm.training.models.language_model import copy_tokenizer
from mentalglm.training.validation.early_stopping import EarlyStopping, forget_decisions
from mentalglm.training.validation.notes import Validation, read_validations, write_validation

MINIMAL: dict[str, Any] = {"output": {"uri": "out"}, "stages": {"s1": {"train": [{"uri": "r.jsonl"}]}}}


def make(folder: Path, target: Path, step: int, fingerprint: str = "f") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(100) + bytes([step]))
    (folder / "optimizer.pt").write_bytes(b"moments")
    name = f"step-{step:08d}-{step:08x}"
    upload(folder, str(target / name), step=step, is_candidate=step % 2 == 0, fingerprint=fingerprint)


def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints"
    assert newest(str(target), "f") is None
    for step in (2, 3, 10):
        make(tmp_path / "local", target, step)
    found = list_checkpoints(str(target))
    assert [(each.step, each.is_candidate) for each in found] == [(2, True), (3, False), (10, True)]
    assert all(is_whole(each) for each in found)
    (target / found[2].name / "optimizer.pt").write_bytes(b"momenta")  # rotten
    assert newest(str(target), "f") == found[1]
    (target / found[1].name / "adapter_model.safetensors").unlink()  # deleted in part
    assert newest(str(target), "f") == found[0]
    (target / found[0].name / "manifest.json").unlink()  # an upload that never ended
    assert newest(str(target), "f") is None
    for damaged in ('{"version": 1, "st', "[]", '{"version": 1}', "\x00"):
        (target / found[0].name / "manifest.json").write_text(damaged)
        assert newest(str(target), "f") is None
    with local_copy(found[2].uri) as folder:
        assert (folder / "adapter_model.safetensors").read_bytes()[-1] == 10


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "local", tmp_path / "checkpoints", 2, fingerprint="other")
    with pytest.raises(ConfigError, match=r"other settings .* give the stage another name"):
        newest(str(tmp_path / "checkpoints"), "f")


def test_a_model_with_a_manifest_of_its_own_does_not_pass_it_on_to_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    for name in ("manifest.json", "tokenizer.json", "config.json", "model.safetensors.index.json"):
        (tmp_path / "base" / name).write_text("{}")
    (tmp_path / "local").mkdir()
    copy_tokenizer(tmp_path / "base", tmp_path / "local")
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["tokenizer.json"]
    make(tmp_path / "local", tmp_path / "checkpoints", 2)
    assert [each.step for each in list_checkpoints(str(tmp_path / "checkpoints"))] == [2]


@pytest.mark.parametrize(
    ("scores", "patience", "is_over"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),  # no better is not better
        ([0.5, 0.4], 2, False),
        ([0.5, 0.4, 0.45], 2, True),
        ([0.5, 0.4, 0.6], 2, False),
        ([0.5, None, 0.4], 2, False),  # failed: says nothing
        ([0.5, 0.4, 0.3, 0.2], None, False),
    ],
)
def test_early_stopping_follows_from_what_is_written_down(
    scores: list[float | None], patience: int | None, is_over: bool, tmp_path: Path
) -> None:
    for number, score in enumerate(scores, 1):
        error = "lost" if score is None else None
        write_validation(
            str(tmp_path), Validation(checkpoint=f"step-{number:08d}-a", step=number, score=score, error=error)
        )
    stopping = EarlyStopping(str(tmp_path), SelectionConfig(patience=patience))
    assert stopping.is_over(len(scores) + 1, range(1, len(scores) + 1)) is is_over
    assert [each.step for each in read_validations(str(tmp_path))] == list(range(1, len(scores) + 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lora": {"use_dora": True}}, ["use_dora", "vLLM cannot load DoRA"]),
        ({"lora": {"modules_to_save": ["lm_head"]}}, ["modules_to_save", "vLLM cannot load"]),
        ({"lora": {"bias": "all"}}, ["bias", "vLLM cannot load"]),
        ({"lora": {"init_lora_weights": "pissa"}}, ["init_lora_weights", "pissa", "gaussian"]),
        ({"lora": {"init_lora_weights": "olora"}}, ["init_lora_weights", "olora"]),
        ({"lora": {"init_lora_weights": "eva"}}, ["init_lora_weights = eva", "does not do", "use true"]),
        ({"lora": {"init_lora_weights": "orthogonal", "r": 7}}, ["lora", "r = 7", "orthogonal", "use 8"]),
        ({"lora": {"use_qalora": True}}, ["use_qalora", "vLLM cannot load QALoRA"]),
        ({"lora": {"r": 0}}, ["lora.r", "0"]),
        ({"micro_batch_size": 64}, ["micro_batch_size = 64", "batch_size = 32"]),
        ({"stages": {}}, ["stages"]),
        ({"stages": {"base": MINIMAL["stages"]["s1"]}}, ["stages", "base"]),
        ({"stages": {"s 1": MINIMAL["stages"]["s1"]}}, ["stages", "s 1", "name for a stage"]),
        ({"stages": {"s2": MINIMAL["stages"]["s1"] | {"start_from": "s1"}}}, ["s2.start_from", "s1", "above it"]),
        ({"stages": {"s1": {"train": []}}}, ["stages.s1.train"]),
        ({"stages": {"s1": {"train": [{"uri": "a", "weight": 0}]}}}, ["weight", "0"]),
        ({"selection": {"engine": {"kind": "openai", "base_url": "https://h/v1", "model": "m"}}}, ["cannot load"]),
        ({"workers": {"num_workers": [3, 2]}}, ["num_workers", "least"]),
        ({"workers": {"strategy": "fsdp"}, "dtype": "float16"}, ["float16", "bfloat16"]),
        ({"learning_rate": 1}, ["learning_rate", "unknown key"]),
    ],
)
def test_what_cannot_be_trained_or_served_is_refused_at_once(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        validate(TrainConfig, MINIMAL | change, "train.yaml")
    assert all(word in str(raised.value) for word in words), raised.value


def test_what_the_paper_tells_is_the_default() -> None:
    config = TrainConfig.model_validate(MINIMAL)
    assert (config.optimizer.learning_rate, config.optimizer.warmup_ratio) == (1e-4, 0.01)
    assert (config.batch_size, config.micro_batch_size, config.max_prompt_tokens) == (32, 4, 1024)
    assert config.stages["s1"].num_epochs == 5
    assert json.loads(config.model_dump_json()) == TrainConfig.model_validate(config.model_dump()).model_dump(
        mode="json"
    )


def test_of_two_validations_of_one_step_the_better_counts(tmp_path: Path) -> None:
    for name, score in (("a", None), ("b", 0.6), ("c", None)):
        error = "lost" if score is None else None
        write_validation(
            str(tmp_path), Validation(checkpoint=f"step-00000001-{name}", step=1, score=score, error=error)
        )
    write_validation(str(tmp_path), Validation(checkpoint="step-00000002-a", step=2, score=0.5))
    assert EarlyStopping(str(tmp_path), SelectionConfig(patience=1)).is_over(3, [1, 2])


def test_a_damaged_note_of_a_validation_counts_as_none(tmp_path: Path) -> None:
    for step in (1, 2):
        write_validation(str(tmp_path), Validation(checkpoint=f"step-{step:08d}-a", step=step, score=0.5))
    (tmp_path / "_run/validation/step-00000001-a.json").write_text('{"checkpoint": "st')
    assert [each.step for each in read_validations(str(tmp_path))] == [2]


def test_a_validation_that_never_comes_is_waited_for_once(tmp_path: Path) -> None:
    write_validation(str(tmp_path), Validation(checkpoint="step-00000001-a", step=1, score=0.5))
    stopping = EarlyStopping(str(tmp_path), SelectionConfig(patience=1, timeout_s=2))
    started = time.monotonic()
    assert not stopping.is_over(3, [1, 2])
    assert time.monotonic() - started >= 2
    write_validation(str(tmp_path), Validation(checkpoint="step-00000003-a", step=3, score=0.6))
    started = time.monotonic()
    assert not stopping.is_over(4, [1, 2, 3])
    assert time.monotonic() - started < 1


def test_what_was_decided_without_a_validation_stands_though_it_has_ended_since(tmp_path: Path) -> None:
    uri, config = str(tmp_path), SelectionConfig(patience=1, timeout_s=0.01)
    write_validation(uri, Validation(checkpoint="step-00000001-a", step=1, score=0.5))
    assert not EarlyStopping(uri, config).is_over(3, [1, 2])
    write_validation(uri, Validation(checkpoint="step-00000002-a", step=2, score=0.4))
    resumed = EarlyStopping(uri, config)
    assert not resumed.is_over(3, [1, 2])
    assert not resumed.is_over(4, [1, 2])  # given up is given up: else it would be over here
    forget_decisions(uri)
    assert EarlyStopping(uri, config).is_over(3, [1, 2])
    (tmp_path / "_run/early_stopping.json").write_text('{"is_o')
    assert EarlyStopping(uri, config).is_over(3, [1, 2])
