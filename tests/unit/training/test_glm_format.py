"""chatglm <-> glm: the same numbers, tokens and adapters in both formats, and what is refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from mentalglm.config import ModelConfig
from mentalglm.engine.chat import ChatEncoder
from mentalglm.engine.model import DEMO_MODEL, resolve_model
from mentalglm.errors import ConfigError
from mentalglm.tasks import load_task, render_prompt
from mentalglm.training.glm_format import convert_format
from mentalglm.training.glm_format.tokenizer import read_ranks
from mentalglm.training.glm_format.weights import Tensors, write_shards
from tests.adapters import EVERY_MODULE
from tests.chatglm import (
    NUM_RANKS,
    PAT_STR,
    SPECIALS,
    chatglm_logits,
    load_chatglm,
    save_chatglm,
    save_chatglm_adapter,
)

TOKEN_IDS = torch.randint(NUM_RANKS, (48,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(scope="module")
def chatglm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chatglm(tmp_path_factory.mktemp("models") / "chatglm")


@pytest.fixture(scope="module")
def glm(chatglm: Path) -> Path:
    convert_format(str(chatglm), chatglm.parent / "glm", "glm")
    return chatglm.parent / "glm"


def logits_of(model: Any) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model.eval()(torch.tensor([TOKEN_IDS])).logits[0]
    return logits


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def assert_equal_files(one: Path, other: Path) -> None:
    first, second = load_chatglm(one), load_chatglm(other)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert weight.dtype == second[name].dtype
        assert torch.equal(weight, second[name]), name


# Logits are up to about 8; in float32 they differ by the order of sums.
@pytest.mark.parametrize("config", [{}, {"multi_query_group_num": 4, "rope_ratio": 1, "add_qkv_bias": False}])
def test_the_converted_model_computes_what_a_chatglm_does(tmp_path: Path, config: dict[str, Any]) -> None:
    source = save_chatglm(tmp_path / "chatglm", seed=4, std=0.08, **config)
    convert_format(str(source), tmp_path / "glm", "glm")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "glm")
    assert model.config.rope_parameters["rope_theta"] == 10_000 * config.get("rope_ratio", 500)
    wanted = chatglm_logits(source, TOKEN_IDS)
    assert wanted.std() > 0.3
    torch.testing.assert_close(logits_of(model), wanted, rtol=0, atol=1e-5)
    assert model.generation_config.eos_token_id == [NUM_RANKS, NUM_RANKS + 7, NUM_RANKS + 9]


@pytest.mark.parametrize(("dtype", "num_shards"), [("float32", 1), ("bfloat16", 3)])
def test_weights_ranks_and_settings_come_back_bit_by_bit(tmp_path: Path, dtype: str, num_shards: int) -> None:
    source = save_chatglm(tmp_path / "chatglm", torch_dtype=dtype, num_shards=num_shards, rope_ratio=10_000)
    convert_format(str(source), tmp_path / "glm", "glm")
    convert_format(str(tmp_path / "glm"), tmp_path / "back", "chatglm")
    assert_equal_files(source, tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back"))
    assert {name: after.get(name) for name in before} == {**before, "auto_map": None}
    again = convert_format(str(tmp_path / "back"), tmp_path / "again", "glm")
    assert again == [f"36 tensors, 3 layers, {dtype}"]
    assert_equal_files(tmp_path / "glm", tmp_path / "again")
    assert {path.name for path in tmp_path.iterdir()} == {"chatglm", "glm", "back", "again"}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "glm").iterdir()} == {0o666 & ~umask()}


def test_the_demo_model_and_its_tied_embeddings(tmp_path: Path) -> None:
    said = convert_format("demo", tmp_path / "chatglm", "chatglm")
    assert any("no tokenizer.model" in line for line in said)
    convert_format(str(tmp_path / "chatglm"), tmp_path / "glm", "glm")
    before, after = load_chatglm(DEMO_MODEL), load_chatglm(tmp_path / "glm")
    assert torch.equal(after.pop("lm_head.weight"), before["model.embed_tokens.weight"])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], weight) for name, weight in after.items())
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "glm" / name).read_bytes() == (DEMO_MODEL / name).read_bytes()


def test_shards_hold_everything_once_and_their_index_says_where(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.full((10,), float(number)) for number in range(7)}  # 40 bytes each
    assert write_shards(tensors.items(), tmp_path, shard_bytes=100) == 7
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 280
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)
    ]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
    assert Tensors("x", tmp_path).unread == sorted(tensors)


def test_a_model_without_an_output_layer_is_one_that_ties_it(tmp_path: Path) -> None:
    source = save_chatglm(tmp_path / "chatglm", num_shards=1, tie_word_embeddings=True)
    weights = load_file(source / "model-00001-of-00001.safetensors")
    head = weights.pop("transformer.output_layer.weight")
    save_file(weights, source / "model-00001-of-00001.safetensors")
    convert_format(str(source), tmp_path / "tied", "glm")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    assert model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, weights["transformer.embedding.word_embeddings.weight"])
    # One that says so and has its own layer uses it, under chatglm's code as under vLLM.
    save_file({**weights, "transformer.output_layer.weight": head}, source / "model-00001-of-00001.safetensors")
    convert_format(str(source), tmp_path / "untied", "glm")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "untied").lm_head.weight, head)


# What is added to a glm: every kind of module, or some; ranks and scalings of their own.
ADAPTERS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True, "r": 6, "rank_pattern": {"dense": 3}, "alpha_pattern": {"query_key_value": 5}},
    {"target_modules": ["query_key_value"], "lora_alpha": 16.5},
]


@pytest.mark.parametrize("changes", ADAPTERS)
def test_an_adapter_of_a_chatglm_works_on_the_converted_model(
    tmp_path: Path, chatglm: Path, glm: Path, changes: dict[str, Any]
) -> None:
    source = save_chatglm_adapter(tmp_path / "a", chatglm, std=0.05, **changes)
    convert_format(str(source), tmp_path / "native", "glm")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(glm), tmp_path / "native")
    wanted = chatglm_logits(chatglm, TOKEN_IDS, source)
    assert (wanted - chatglm_logits(chatglm, TOKEN_IDS)).abs().max() > 0.1
    torch.testing.assert_close(logits_of(model), wanted, rtol=0, atol=5e-5)  # logits up to 8
    # The product of the factors, row by row, is the very same.
    convert_format(str(tmp_path / "native"), tmp_path / "back", "chatglm")
    assert_equal_files(source, tmp_path / "back")
    settings = [json.loads((each / "adapter_config.json").read_text()) for each in (source, tmp_path / "back")]
    for name in ("r", "lora_alpha", "use_rslora"):
        assert settings[0].get(name) == settings[1].get(name)
    for name in ("rank_pattern", "alpha_pattern"):
        assert settings[0].get(name, {}) == settings[1][name]
    assert sorted(settings[0]["target_modules"]) == settings[1]["target_modules"]
    assert settings[1]["base_model_name_or_path"] is None
    resolve_model(ModelConfig(path=str(glm), adapter=str(tmp_path / "native")))  # and vLLM may load it


@pytest.mark.parametrize(
    ("changes", "rank"),
    [
        ({"target_modules": list(EVERY_MODULE)}, 12),
        ({"target_modules": list(EVERY_MODULE), "use_rslora": True, "rank_pattern": {"o_proj": 7}}, 12),
        ({"target_modules": ["q_proj", "v_proj"]}, 8),
        ({"target_modules": ["o_proj", "down_proj"], "rank_pattern": {r"layers\.[02]\.mlp\.down_proj": 2}}, 4),
        ({"target_modules": r".*\.1\.self_attn\.(k|o)_proj"}, 4),
        # Another rank and the same scaling.
        ({"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 4}}, 6),
    ],
)
def test_an_adapter_trained_on_the_converted_model_works_on_the_chatglm(
    tmp_path: Path, chatglm: Path, glm: Path, changes: dict[str, Any], rank: int
) -> None:
    torch.manual_seed(5)
    lora = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **changes)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(glm), lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(tmp_path / "native")
    said = convert_format(str(tmp_path / "native"), tmp_path / "fused", "chatglm")
    assert any(f"rank is {rank}" in line for line in said) == (rank > 4)
    wanted = logits_of(model)
    assert (wanted - chatglm_logits(chatglm, TOKEN_IDS)).abs().max() > 0.05
    torch.testing.assert_close(chatglm_logits(chatglm, TOKEN_IDS, tmp_path / "fused"), wanted, rtol=0, atol=5e-5)
    # And back: the same, of the fused rank.
    convert_format(str(tmp_path / "fused"), tmp_path / "again", "glm")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(glm), tmp_path / "again")
    torch.testing.assert_close(logits_of(again), wanted, rtol=0, atol=5e-5)
    # On the same layers, and no others.
    names = {name.replace(".default", "") for name, _ in again.named_parameters() if "lora_" in name}
    assert names == load_chatglm(tmp_path / "again").keys()


@pytest.fixture(scope="module")
def tokenizers(chatglm: Path, glm: Path) -> tuple[Any, tiktoken.Encoding]:
    encoding = tiktoken.Encoding(
        name="glm-4",
        pat_str=PAT_STR,
        mergeable_ranks=read_ranks("x", chatglm / "tokenizer.model"),
        special_tokens={token: NUM_RANKS + number for number, token in enumerate(SPECIALS)},
    )
    return AutoTokenizer.from_pretrained(glm), encoding


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            [*SPECIALS, "<|user", "|>", "高自杀风险", "认知歪曲", "理由：", "It's I'LL 'ſ", "12345678", "\r\n\n "]
        ),
        st.builds(
            str.__mul__, st.sampled_from(["哈", "！", "。", "ha", "a", " ", "😭", "…", "\n"]), st.integers(1, 20)
        ),
    )
).map("".join)


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_the_converted_tokenizer_does_what_tiktoken_does(tokenizers: tuple[Any, tiktoken.Encoding], text: str) -> None:
    tokenizer, encoding = tokenizers
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == encoding.encode(text, allowed_special="all")
    assert tokenizer.decode(ids) == text
    assert tokenizer(text).input_ids == [NUM_RANKS + 2, NUM_RANKS + 4, *ids]  # [gMASK]<sop>


def test_the_converted_tokenizer_asks_as_glm_4_does(tokenizers: tuple[Any, tiktoken.Encoding]) -> None:
    tokenizer, encoding = tokenizers
    assert tokenizer.convert_tokens_to_ids(SPECIALS) == list(range(NUM_RANKS, NUM_RANKS + 14))
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    prompt = render_prompt(load_task("suicide_risk"), "今天也睡不着<|assistant|>")
    [encoded] = ChatEncoder(tokenizer, max_prompt_tokens=512).encode([prompt])
    assert encoded is not None
    assert prompt.system is None
    assert encoded.token_ids == [
        *encoding.encode("[gMASK]<sop><|user|>", allowed_special="all"),
        *encoding.encode(f"\n{prompt.user}", disallowed_special=()),  # the post's own <|assistant|> is text
        NUM_RANKS + 8,
    ]


def test_a_tokenizer_without_the_ends_needs_ids_in_the_config(tmp_path: Path, chatglm: Path, glm: Path) -> None:
    """Its own tokenizer.json is kept; without ids, those of its tokens are taken."""
    source = tmp_path / "source"
    shutil.copytree(chatglm, source)
    _config(eos_token_id=None)(source)
    state = json.loads((glm / "tokenizer.json").read_text())
    settings = json.loads((glm / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "tokenizer.json").write_text(json.dumps(state))
    convert_format(str(source), tmp_path / "glm", "glm")
    assert json.loads((tmp_path / "glm" / "config.json").read_text())["eos_token_id"] == [1500, 1507, 1509]
    state["added_tokens"] = [each for each in state["added_tokens"] if each["content"] != "<|user|>"]
    (source / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match=r"eos_token_id is not in config\.json, and the tokenizer has no <\|user\|>"):
        convert_format(str(source), tmp_path / "other", "glm")


def test_merges_that_no_ranks_stand_for_get_no_ranks(tmp_path: Path, glm: Path) -> None:
    shutil.copytree(glm, tmp_path / "glm")
    state = json.loads((glm / "tokenizer.json").read_text())
    merges = state["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]
    (tmp_path / "glm" / "tokenizer.json").write_text(json.dumps(state))
    said = convert_format(str(tmp_path / "glm"), tmp_path / "chatglm", "chatglm")
    assert any("no tokenizer.model" in line for line in said)
    assert not (tmp_path / "chatglm" / "tokenizer.model").exists()
    del state["model"]["merges"]
    (tmp_path / "glm" / "tokenizer.json").write_text(json.dumps(state))
    convert_format(str(tmp_path / "glm"), tmp_path / "without", "chatglm")
    assert not (tmp_path / "without" / "tokenizer.model").exists()


def test_a_template_that_chatglm_itself_uses_is_kept(tmp_path: Path) -> None:
    source = save_chatglm(tmp_path / "chatglm")
    file = source / "tokenizer_config.json"
    template = "[gMASK]<sop>{% for item in messages %}<|{{ item['role'] }}|>\n{{ item['content'] }}{% endfor %}tools"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    convert_format(str(source), tmp_path / "glm", "glm")
    assert AutoTokenizer.from_pretrained(tmp_path / "glm").chat_template == template


def test_without_ids_in_its_settings_special_tokens_follow_the_ranks(tmp_path: Path) -> None:
    source = save_chatglm(tmp_path / "chatglm")
    (source / "tokenizer_config.json").unlink()
    settings = json.loads((source / "config.json").read_text())
    for name in ("eos_token_id", "pad_token_id"):
        del settings[name]
    (source / "config.json").write_text(json.dumps(settings))
    convert_format(str(source), tmp_path / "glm", "glm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "glm")
    assert tokenizer.convert_tokens_to_ids(SPECIALS[:10]) == list(range(NUM_RANKS, NUM_RANKS + 10))
    config = json.loads((tmp_path / "glm" / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == ([1500, 1507, 1509], 1500)


def _config(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        settings = {**json.loads((folder / "config.json").read_text()), **changes}
        (folder / "config.json").write_text(json.dumps(settings))

    return change


def _tensors(change: Any) -> Any:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "model-00001-of-00002.safetensors")
        change(weights)
        save_file(weights, folder / "model-00001-of-00002.safetensors")

    return rewrite


def _ranks(change: Any) -> Any:
    def rewrite(folder: Path) -> None:
        file = folder / "tokenizer.model"
        file.write_bytes(change(file.read_bytes()))

    return rewrite


def _to_bin(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))


def _two_copies(folder: Path) -> None:
    shutil.copyfile(folder / "model-00001-of-00002.safetensors", folder / "other.safetensors")


FIRST = "transformer.embedding.word_embeddings.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_to_bin, r"no \*\.safetensors .*\.bin and \.pt files can run code"),
        (_config(model_type="llama"), r"model_type = 'llama'.*give the folder of a chatglm"),
        (_config(model_type="glm"), r"model_type = 'glm'.*in this format already"),
        (_config(vision_config={}), r"GLM-4V"),
        (_config(multi_query_attention=False), r"multi_query_attention = False .* a glm has True"),
        (_config(quantization_bit=4), r"quantization_bit = 4"),
        (_config(original_rope=False), r"original_rope = False"),
        (_config(kv_channels=64), r"4 heads of 64 are not hidden_size = 128"),
        (_config(num_layers="three"), r"config\.json cannot be read as a GLM's \(.*num_hidden_layers"),
        (_config(rope_ratio="500"), r"rope_ratio = '500' .* is no number above 0"),
        (_config(num_layers=4), r"tensor transformer\.encoder\.layers\.3\..* is missing"),
        (_config(num_layers=2), r"tensor transformer\.encoder\.layers\.2\..* has no place in a GLM"),
        (_config(padded_vocab_size=2048), r"word_embeddings.* has the shape \[1536, 128\], and by config\.json \[2048"),
        (_config(padded_vocab_size=1510), r"id 1510 of <\|begin_of_image\|> is beyond padded_vocab_size = 1510"),
        (_tensors(lambda each: each.pop(FIRST)), rf"tensor {FIRST} is missing"),
        (_tensors(lambda each: each.update({FIRST: each[FIRST].to(torch.int8)})), r"is torch\.int8; .* not quantised"),
        (_two_copies, r"is in two files, one of them other\.safetensors"),
        (lambda folder: (folder / "tokenizer.model").unlink(), r"no tokenizer\.model"),
        (_ranks(lambda content: b"\x0a\x0e<unk>" + content), r"not in tiktoken's format.*SentencePiece"),
        (_ranks(lambda content: content.split(b"\n", 1)[1]), r"lacks 1 of the 256 bytes"),
        (_ranks(lambda content: content + b"5q+U5q+U5q+U5q+U 1499\n"), r"gives two tokens one rank"),
        (_ranks(lambda content: content + b"5q+U5q+U5q+U5q+U 1503\n"), r"the id 1503 of \[sMASK\] is taken"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(
    tmp_path: Path, chatglm: Path, spoil: Any, message: str
) -> None:
    shutil.copytree(chatglm, tmp_path / "source")
    spoil(tmp_path / "source")
    with pytest.raises(ConfigError, match=message) as caught:
        convert_format(str(tmp_path / "source"), tmp_path / "target", "glm")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "source") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, r"hidden_act = 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}},
            r"rotary_factor",
        ),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, r"rope_type = 'linear'"),
        ({"model_type": "glm4"}, r"model_type = 'glm4'"),
    ],
)
def test_what_a_chatglm_cannot_be_is_refused(tmp_path: Path, glm: Path, changes: dict[str, Any], message: str) -> None:
    shutil.copytree(glm, tmp_path / "source")
    _config(**changes)(tmp_path / "source")
    with pytest.raises(ConfigError, match=message):
        convert_format(str(tmp_path / "source"), tmp_path / "target", "chatglm")


def test_a_target_that_is_there_and_one_that_cannot_be_written(tmp_path: Path, chatglm: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match=r"TARGET = .*there'.*already"):
        convert_format(str(chatglm), tmp_path / "there", "glm")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"TARGET = .*cannot be written"):
        convert_format(str(chatglm), tmp_path / "file" / "target", "glm")
    with pytest.raises(ConfigError, match=r"SOURCE = .*no such folder"):
        convert_format(str(tmp_path / "nowhere"), tmp_path / "target", "glm")


def _native_adapter(folder: Path, *modules: str, **settings: Any) -> str:
    """With factors of rank 2 for 128 inputs and 64 outputs (queries: 128)."""
    folder.mkdir()
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [*modules], **settings}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    tensors = {}
    for module in modules:
        name = f"base_model.model.model.layers.0.self_attn.{module}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, 128)
        tensors[f"{name}.lora_B.weight"] = torch.randn(128 if module == "q_proj" else 64, 2)
    tensors |= {name: torch.zeros(1) for name in settings.get("extra", [])}
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    ("modules", "changes", "message"),
    [
        (("q_proj",), {}, r"only the queries have an adapter.*mentalglm convert merge"),
        (("q_proj", "v_proj"), {"alpha_pattern": {"v_proj": 3}}, r"are scaled by 1\.5, 2, .*mentalglm convert merge"),
        (("q_proj", "v_proj"), {"use_dora": True}, r"has use_dora, which is no plain LoRA"),
        (("v_proj",), {"extra": ["base_model.model.lm_head.weight"]}, r"the tensor base_model\.model\.lm_head\.weight"),
        (("v_proj",), {"peft_type": "IA3"}, r"peft_type is IA3"),
        (("gate_proj", "v_proj"), {}, r"self_attn\.gate_proj is no module of a glm"),
        (("v_proj",), {"lora_alpha": None}, r"lora_alpha = None"),
    ],
)
def test_adapters_that_one_module_cannot_hold_are_refused(
    tmp_path: Path, modules: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    source = _native_adapter(tmp_path / "a", *modules, **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        convert_format(source, tmp_path / "target", "chatglm")
    assert "\n" not in str(caught.value)


def test_an_adapter_of_the_other_format_is_refused(tmp_path: Path, chatglm: Path, glm: Path) -> None:
    save_chatglm_adapter(tmp_path / "a", chatglm)
    with pytest.raises(ConfigError, match=r"no module of a glm"):
        convert_format(str(tmp_path / "a"), tmp_path / "target", "chatglm")
    with pytest.raises(ConfigError, match=r"no module transformer\..*mentalglm convert glm"):
        resolve_model(ModelConfig(path=str(glm), adapter=str(tmp_path / "a")))


def test_a_chatglm_is_scored_only_where_it_needs_none_of_its_code(tmp_path: Path, chatglm: Path, glm: Path) -> None:
    for changes in ({}, {"merge": True, "adapter": "somewhere"}):
        with pytest.raises(ConfigError, match=r"model\.path = .*is a chatglm.*mentalglm convert glm"):
            resolve_model(ModelConfig(path=str(chatglm), **changes))
    convert_format(str(glm), tmp_path / "chatglm", "chatglm")
    assert resolve_model(ModelConfig(path=str(tmp_path / "chatglm"))).path == str(tmp_path / "chatglm")
