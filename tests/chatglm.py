"""Small chatglm models of random weights, as GLM-4 is published, and what such a model computes, written anew."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import embedding, linear, silu, softmax

from mentalglm.training.demo.tokenizer import tokenizer_texts
from mentalglm.training.glm_format.special_tokens import SPECIAL_TOKENS

NUM_RANKS = 1500
NUM_TOKENS = NUM_RANKS + 14
SPECIALS = [*SPECIAL_TOKENS, *(f"<|{place}_of_{of}|>" for of in ("image", "video") for place in ("begin", "end"))]

# In the words of GLM-4's own config.json. head_dim 32 is the smallest that vLLM's CPU attention supports.
CONFIG: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "ffn_hidden_size": 160,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 128,
    "kv_channels": 32,
    "layernorm_epsilon": 1.5625e-07,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_layers": 3,
    "rope_ratio": 500,
    "original_rope": True,
    "padded_vocab_size": 1536,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 1024,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": [NUM_RANKS, NUM_RANKS + 7, NUM_RANKS + 9],
    "pad_token_id": NUM_RANKS,
}
PAT_STR = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""GLM-4's, as published."""
FUSED = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


def save_chatglm(folder: Path, *, seed: int = 0, num_shards: int = 2, std: float = 0.15, **config: Any) -> Path:
    """Writes weights, config and tokenizer. Names, shapes and shards as published."""
    folder.mkdir(parents=True)
    settings = {**CONFIG, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    weights = random_weights(settings, seed, std)
    names = list(weights)
    for number in range(num_shards):
        shard = {name: weights[name] for name in names[number::num_shards]}
        file = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
    save_ranks(folder)
    return folder


def random_weights(config: dict[str, Any], seed: int, std: float) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    hidden, inner, vocab = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    rows = (config["num_attention_heads"] + 2 * config["multi_query_group_num"]) * config["kv_channels"]
    weights = {"transformer.embedding.word_embeddings.weight": torch.randn(vocab, hidden)}
    for layer in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{layer}."
        weights[prefix + "input_layernorm.weight"] = 1 + 0.2 * torch.randn(hidden)
        weights[prefix + "self_attention.query_key_value.weight"] = std * torch.randn(rows, hidden)
        if config["add_qkv_bias"]:
            weights[prefix + "self_attention.query_key_value.bias"] = 0.5 * torch.randn(rows)
        weights[prefix + "self_attention.dense.weight"] = std * torch.randn(hidden, hidden)
        weights[prefix + "post_attention_layernorm.weight"] = 1 + 0.2 * torch.randn(hidden)
        weights[prefix + "mlp.dense_h_to_4h.weight"] = std * torch.randn(2 * inner, hidden)
        weights[prefix + "mlp.dense_4h_to_h.weight"] = std * torch.randn(hidden, inner)
    weights["transformer.encoder.final_layernorm.weight"] = 1 + 0.2 * torch.randn(hidden)
    weights["transformer.output_layer.weight"] = std * torch.randn(vocab, hidden)
    dtype = getattr(torch, config["torch_dtype"])
    channels = config["kv_channels"] // 2
    powers = torch.arange(0, channels, 2).to(dtype) / channels
    weights["transformer.rotary_pos_emb.inv_freq"] = 1.0 / (10_000**powers)
    return {name: weight.to(dtype) for name, weight in weights.items()}


def save_ranks(folder: Path) -> None:
    """tokenizer.model of a byte-level BPE learned from the built-in tasks, and tokenizer_config.json."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PAT_STR), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_RANKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = [
        *tokenizer_texts(),
        "哈哈哈哈哈哈",
        "1234 365 2024 999 100",
        "！！！！！！！",
        "。。。。。。",
        "hahahahaha",
        "the same thing, over and over",
    ]
    tokenizer.train_from_iterator(texts * 3, trainer)
    to_byte = {character: byte for byte, character in bytes_to_unicode().items()}
    vocab = tokenizer.get_vocab()
    assert len(vocab) == NUM_RANKS
    with (folder / "tokenizer.model").open("wb") as file:
        for token, rank in sorted(vocab.items(), key=lambda item: item[1]):
            file.write(b"%s %d\n" % (base64.b64encode(bytes(to_byte[character] for character in token)), rank))
    added = {str(NUM_RANKS + number): {"content": token, "special": True} for number, token in enumerate(SPECIALS)}
    settings = {"tokenizer_class": "ChatGLM4Tokenizer", "added_tokens_decoder": added, "model_max_length": 1024}
    settings |= {"auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLM4Tokenizer", None]}}
    settings |= {"chat_template": "{% for message in messages %}[gMASK]sop<|{{ message['role'] }}|>\n {% endfor %}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_chatglm_adapter(folder: Path, model: Path, *, seed: int = 1, std: float = 0.3, **settings: Any) -> Path:
    """Writes an adapter of random weights as PEFT saves one of ChatGLM's own code."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    rank = settings.setdefault("r", 4)
    settings = {"peft_type": "LORA", "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": [*FUSED]} | settings
    settings |= {"base_model_name_or_path": "THUDM/glm-4-9b", "auto_mapping": None, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {}
    for name, weight in load_chatglm(model).items():
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        if name.endswith(".weight") and leaf in settings["target_modules"]:
            own = settings.get("rank_pattern", {}).get(leaf, rank)
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(own, weight.shape[1]) / weight.shape[1] ** 0.5
            tensors[f"{prefix}.lora_B.weight"] = std * torch.randn(weight.shape[0], own)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def load_chatglm(folder: Path) -> dict[str, Tensor]:
    return {name: weight for file in sorted(folder.glob("*.safetensors")) for name, weight in load_file(file).items()}


def chatglm_logits(folder: Path, token_ids: Sequence[int], adapter: Path | None = None) -> Tensor:
    """Logits (tokens, vocabulary) of a chatglm, and of its adapter, from the description of the architecture: written
    without a look at transformers' or vLLM's."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_chatglm(folder)
    if adapter is not None:
        settings, factors = json.loads((adapter / "adapter_config.json").read_text()), load_chatglm(adapter)
        for name in (name for name in factors if name.endswith(".lora_A.weight")):
            a, b = factors[name], factors[name.replace("lora_A", "lora_B")]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            alpha = settings.get("alpha_pattern", {}).get(module.rpartition(".")[2], settings["lora_alpha"])
            scaling = alpha / (len(a) ** 0.5 if settings.get("use_rslora") else len(a))
            weights[f"{module}.weight"] = weights[f"{module}.weight"] + scaling * b @ a
    heads, groups, size = config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"]
    num_tokens = len(token_ids)

    def norm(x: Tensor, name: str) -> Tensor:
        return weights[name] * x / (x.square().mean(-1, keepdim=True) + config["layernorm_epsilon"]).sqrt()

    # The first half of a head's channels, as pairs of neighbours: complex numbers, turned by their frequency.
    turned = size // 2
    frequencies = (10_000.0 * config["rope_ratio"]) ** -(torch.arange(0, turned, 2) / turned)
    turns = torch.polar(torch.ones(1), torch.arange(num_tokens)[:, None] * frequencies)[:, None]

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x[..., :turned].unflatten(-1, (-1, 2)).contiguous())
        return torch.cat([torch.view_as_real(pairs * turns).flatten(-2), x[..., turned:]], dim=-1)

    x = embedding(torch.tensor(token_ids), weights["transformer.embedding.word_embeddings.weight"])
    future = torch.full((num_tokens, num_tokens), -torch.inf).triu(1)
    for layer in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{layer}."
        attention, mlp = f"{prefix}self_attention.", f"{prefix}mlp."
        mixed = linear(
            norm(x, prefix + "input_layernorm.weight"),
            weights[attention + "query_key_value.weight"],
            weights.get(attention + "query_key_value.bias"),
        ).unflatten(-1, (heads + 2 * groups, size))
        q, k, v = mixed.split([heads, groups, groups], dim=1)
        q, k, v = rotate(q), *(each.repeat_interleave(heads // groups, dim=1) for each in (rotate(k), v))
        scores = torch.einsum("qhc,khc->hqk", q, k) / size**0.5 + future
        seen = torch.einsum("hqk,khc->qhc", softmax(scores, dim=-1), v).flatten(1)
        x = x + seen @ weights[attention + "dense.weight"].T
        both = norm(x, prefix + "post_attention_layernorm.weight") @ weights[mlp + "dense_h_to_4h.weight"].T
        gate, up = both.chunk(2, dim=-1)
        x = x + (silu(gate) * up) @ weights[mlp + "dense_4h_to_h.weight"].T
    return norm(x, "transformer.encoder.final_layernorm.weight") @ weights["transformer.output_layer.weight"].T
