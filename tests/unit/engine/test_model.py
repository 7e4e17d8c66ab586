"""Which model a name stands for, and which are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from mentalglm.config import GenerationConfig, ModelConfig, VllmEngineConfig
from mentalglm.engine.chat import EncodedPrompt
from mentalglm.engine.model import ResolvedModel, resolve_model
from mentalglm.engine.protocol import Request
from mentalglm.engine.vllm import VllmEngine, engine_arguments, prompt_limit
from mentalglm.errors import ConfigError
from mentalglm.tasks import Prompt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def adapter(folder: Path, **settings: Any) -> str:
    path = folder / "adapter"
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, **settings}))
    (path / "adapter_model.safetensors").write_bytes(b"lora")
    return str(path)


def test_the_digest_follows_what_decides_the_answers(folder: Path) -> None:
    first = resolve_model(ModelConfig(path=str(folder))).digest
    (folder / "README.md").write_text("words")
    assert resolve_model(ModelConfig(path=str(folder))).digest == first
    (folder / "model.safetensors").write_bytes(b"Weights")
    assert resolve_model(ModelConfig(path=str(folder))).digest != first


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere"])
def test_a_folder_that_is_not_there_is_refused_with_its_name(path: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.path = .*nowhere.*no such folder"):
        resolve_model(ModelConfig(path=path))


def test_a_hub_id_that_cannot_be_had_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="the hub does not give it") as caught:
        resolve_model(ModelConfig(path="zwzzz/MentalGLM", revision="0" * 40))
    assert "\n" not in str(caught.value)


def test_weights_that_can_run_code_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        resolve_model(ModelConfig(path=str(folder)))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        resolve_model(ModelConfig(path=str(tmp_path)))


def test_an_adapter_is_part_of_the_digest_and_brings_its_rank(folder: Path) -> None:
    plain = resolve_model(ModelConfig(path=str(folder)))
    model = resolve_model(ModelConfig(path=str(folder), adapter=adapter(folder)))
    assert model.digest != plain.digest
    assert model.adapter_rank == 8
    arguments = engine_arguments(VllmEngineConfig(), GenerationConfig(max_tokens=64), model, num_gpus=0)
    assert (arguments["enable_lora"], arguments["max_lora_rank"]) == (True, 8)


@pytest.mark.parametrize("settings", [{"peft_type": "IA3"}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_that_vllm_cannot_load_is_refused(folder: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="plain LoRA"):
        resolve_model(ModelConfig(path=str(folder), adapter=adapter(folder, **settings)))


def test_prompt_and_answer_fit_into_the_model(folder: Path) -> None:
    model = ResolvedModel("x", str(folder), "digest")
    arguments = engine_arguments(VllmEngineConfig(), GenerationConfig(max_tokens=64), model, num_gpus=0)
    assert arguments["max_model_len"] == 512
    with pytest.raises(ConfigError, match=r"generation\.max_tokens = 500"):
        engine_arguments(VllmEngineConfig(), GenerationConfig(max_tokens=500), model, num_gpus=0)


def test_what_cut_off_answers_get_the_second_time_cuts_no_prompt(folder: Path) -> None:
    model = ResolvedModel("x", str(folder), "digest")
    for length in (None, 300):
        config = VllmEngineConfig(max_model_len=length)
        limits = []
        for second in (None, 100, 5000):
            generation = GenerationConfig(max_tokens=64, retry_max_tokens=second)
            arguments = engine_arguments(config, generation, model, num_gpus=0)
            limits.append(prompt_limit(generation, arguments["max_model_len"]))
        assert limits == [(length or 512) - 64] * 3
    with pytest.raises(ConfigError, match=r"generation\.max_tokens = 500"):
        engine_arguments(VllmEngineConfig(), GenerationConfig(max_tokens=500, retry_max_tokens=501), model, num_gpus=0)


def test_an_answer_gets_the_tokens_that_its_prompt_leaves(folder: Path) -> None:
    engine = VllmEngine.__new__(VllmEngine)  # without a model
    engine._generation, engine._max_model_len = GenerationConfig(max_tokens=64), 300
    for num_prompt_tokens, asked, most in ((236, None, 64), (236, 100, 64), (210, 100, 90), (100, 100, 100)):
        request = Request(task="t", prompt=Prompt(None, "", "", ""), max_tokens=asked)
        assert engine._max_tokens(request, EncodedPrompt([0] * num_prompt_tokens)) == most


def test_engine_arguments_are_passed_on_as_they_are(folder: Path) -> None:
    config = VllmEngineConfig(engine_args={"quantization": "fp8", "enforce_eager": True})
    model = ResolvedModel("x", str(folder), "digest")
    arguments = engine_arguments(config, GenerationConfig(), model, num_gpus=2)
    assert (arguments["quantization"], arguments["enforce_eager"], arguments["tensor_parallel_size"]) == (
        "fp8",
        True,
        2,
    )
