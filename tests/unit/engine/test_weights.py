"""A model that lacks a weight is refused; transformers would draw random numbers and go on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from mentalglm.config import EncoderEngineConfig, GenerationConfig, ModelConfig
from mentalglm.engine.encoder import EncoderEngine
from mentalglm.engine.merge import merge_adapter
from mentalglm.engine.model import DEMO_MODEL, resolve_model
from mentalglm.engine.weights import load_whole
from mentalglm.errors import ConfigError
from mentalglm.tasks import load_task
from mentalglm.training.models.encoder_model import EncoderModel
from tests.adapters import save_adapter
from tests.encoders import labelled_texts, record, tiny_bert, tiny_classifier, train_config

RISK = load_task("suicide_risk")


def change(folder: Path, changed: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(changed(load_file(path)), path, metadata={"format": "pt"})


def without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {name: each for name, each in weights.items() if part not in name}


def train_on(base: Path) -> Any:
    return EncoderModel.load(train_config(base, RISK), labelled_texts(base, RISK, [record(RISK, "好累。")]), base, None)


def test_an_encoder_gets_a_new_head_and_pooler_and_nothing_else(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "bert")
    change(base, without("pooler"))
    train_on(base)
    change(base, without("layer.1.output"))
    with pytest.raises(ConfigError, match=r"bert: bert\.encoder\.layer\.1\.output\S+ \(4 in all\) is not among"):
        train_on(base)


def test_an_encoder_under_other_names_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "bert")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"vocab_size": 5}))
    with pytest.raises(
        ConfigError, match=r"word_embeddings\.weight \(1 in all\) is not among its weights, or of anoth"
    ):
        train_on(base)
    (base / "config.json").write_text(json.dumps(settings))
    change(base, lambda weights: {f"wrapped.{name}": each for name, each in weights.items()})
    with pytest.raises(ConfigError, match=r"\(\d\d in all\) is not among its weights"):
        train_on(base)


def test_a_classifier_without_its_head_does_not_guess(tmp_path: Path) -> None:
    folder = tiny_classifier(tmp_path / "classifier", tiny_bert(tmp_path / "bert"), RISK)
    load_whole(AutoModelForSequenceClassification, folder)
    change(folder, without("classifier"))
    model = resolve_model(ModelConfig(path=str(folder)))
    with pytest.raises(ConfigError, match=r"classifier\.bias \(2 in all\)"):
        EncoderEngine(EncoderEngineConfig(kind="encoder"), GenerationConfig(), model, RISK, num_gpus=0)


def test_a_language_model_is_whole_or_not_merged(tmp_path: Path) -> None:
    """Tied embeddings are there once, which is enough."""
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder)
    assert load_whole(AutoModelForCausalLM, folder).config.tie_word_embeddings
    save_adapter(tmp_path / "adapter", seed=1, modules=["q_proj"])
    model = resolve_model(ModelConfig(path=str(folder), adapter=str(tmp_path / "adapter"), merge=True))
    change(folder, without("o_proj"))
    with pytest.raises(ConfigError, match=r"model: model\.layers\.0\.self_attn\.o_proj\.weight \(5 in all\)"):
        merge_adapter(model, model.adapters[None], tmp_path / "merged")  # type: ignore[arg-type]
