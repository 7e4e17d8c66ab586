"""Which model a name stands for, and which are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mentalglm.config import GenerationConfig, ModelConfig, VllmEngineConfig
from mentalglm.engine.chat import EncodedPrompt
from mentalglm.engine.model import ResolvedModel, resolve_model
from mentalglm.engine.protocol import Request
from mentalglm.engine.vllm import VllmEngine, engine_arguments, prompt_limit
from mentalglm.errors import ConfigError
from mentalglm.tasks import Prompt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model(tmp_path / "model")


def model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    weights = {"model.layers.0.self_attn.q_proj.weight": (12, 6), "model.embed_tokens.weight": (9, 6)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in weights.items()}, folder / "model.safetensors")
    return folder


def adapter(
    folder: Path, *, module: str = "layers.0.self_attn.q_proj", num_outputs: int = 12, extra: str = "", **settings: Any
) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, **settings}))
    name = f"base_model.model.model.{module}"
    weights = {f"{name}.lora_A.weight": (8, 6), f"{name}.lora_B.weight": (num_outputs, 8)}
    weights |= {f"{name}.{extra}": (1, 1)} if extra else {}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in weights.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


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


def test_an_adapter_is_part_of_the_digest_and_brings_its_rank(folder: Path, tmp_path: Path) -> None:
    plain = resolve_model(ModelConfig(path=str(folder)))
    found = resolve_model(ModelConfig(path=str(folder), adapter=adapter(tmp_path / "a", rank_pattern={"k_proj": 12})))
    assert found.digest != plain.digest
    arguments = engine_arguments(VllmEngineConfig(), GenerationConfig(max_tokens=64), found, num_gpus=0)
    assert (arguments["enable_lora"], arguments["max_lora_rank"], arguments["max_loras"]) == (True, 16, 1)


def test_several_adapters_have_a_digest_each_and_share_the_model(folder: Path, tmp_path: Path) -> None:
    plain = resolve_model(ModelConfig(path=str(folder)))
    adapters = {"base": None, "S1": adapter(tmp_path / "a"), "S2": adapter(tmp_path / "b", lora_alpha=3)}
    found = resolve_model(ModelConfig(path=str(folder), adapters=adapters))
    assert found.digest == plain.digest
    assert list(found.adapters) == ["base", "S1", "S2"]
    assert len({found.digest, *found.adapter_digests.values()}) == 4
    for num_gpus, num_slots in ((0, 3), (1, 2)):
        arguments = engine_arguments(VllmEngineConfig(), GenerationConfig(max_tokens=64), found, num_gpus=num_gpus)
        assert (arguments["max_loras"], arguments["max_lora_rank"]) == (num_slots, 8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"use_dora": True}, "use_dora; set model.merge"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save; set model.merge"),
        ({"bias": "all"}, "bias = all"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa"),
        ({"extra": "lora_magnitude_vector"}, "the tensor .*lora_magnitude_vector"),
        ({"r": 1024}, r"ranks \[1024\]"),
        ({"r": "8"}, "ranks"),
        ({"rank_pattern": [12]}, "rank_pattern in .* is no mapping"),
        ({"module": "layers.0.self_attn.query_key_value"}, "the model has no module .*query_key_value"),
        ({"module": "layers.1.self_attn.q_proj"}, r"the model has no module .*layers\.1"),
        ({"num_outputs": 24, "base_model_name_or_path": "x/y"}, r"\[24, 6\], the model's \[12, 6\] .*x/y"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(
    folder: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"model\.adapters\.S1 = .*{words}") as caught:
        resolve_model(ModelConfig(path=str(folder), adapters={"S1": adapter(tmp_path / "a", **settings)}))
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_wrapping_of_the_model_fits(folder: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "a", module="language_model.layers.0.self_attn.q_proj")
    assert resolve_model(ModelConfig(path=str(folder), adapter=path)).adapters[None] is not None


def test_weights_that_are_cut_off_are_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    adapter(path)
    (path / "adapter_model.safetensors").write_bytes(b"lora")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        resolve_model(ModelConfig(path=str(folder), adapter=str(path)))


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
    config = VllmEngineConfig(quantization="fp8", engine_args={"enforce_eager": True})
    model = ResolvedModel("x", str(folder), "digest")
    arguments = engine_arguments(config, GenerationConfig(), model, num_gpus=2)
    assert (arguments["quantization"], arguments["enforce_eager"], arguments["tensor_parallel_size"]) == (
        "fp8",
        True,
        2,
    )
