"""config.json of both formats: the same model in other words, and what of chatglm's choices a glm cannot be."""

from typing import Any

from mentalglm.errors import ConfigError

# chatglm's word -> glm's.
_WORDS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "multi_query_group_num": "num_key_value_heads",
    "kv_channels": "head_dim",
    "padded_vocab_size": "vocab_size",
    "seq_length": "max_position_embeddings",
    "layernorm_epsilon": "rms_norm_eps",
}
_OPTIONAL_WORDS = {
    "add_qkv_bias": "attention_bias",
    "attention_dropout": "attention_dropout",
    "tie_word_embeddings": "tie_word_embeddings",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
    "use_cache": "use_cache",
}
# What GlmForCausalLM always does. chatglm's own default is the same, but for multi_query_attention.
_ALWAYS: dict[str, Any] = {
    "multi_query_attention": True,
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "add_bias_linear": False,
    "interleaved_qkv": False,
    "original_rope": True,
    "quantization_bit": 0,
    "pre_seq_len": None,
}
_ROPE_BASE = 10_000.0
_PARTIAL_ROTARY_FACTOR = 0.5


def native_config(shown: str, settings: dict[str, Any]) -> Any:
    """The `GlmConfig` of a chatglm config.json. `shown` names the folder in messages.

    Both formats turn the first half of each head's channels, in pairs of neighbours, so no row of a weight moves.
    `rope_ratio` (500 in glm-4-9b-chat, 10000 in its 1M variant) multiplies the base of 10000.
    Raises: ConfigError for another architecture, or one that `GlmForCausalLM` has no switch for.
    """
    _check_type(shown, settings, "chatglm")
    if "vision_config" in settings:
        raise ConfigError(f"{shown}: has a vision_config (GLM-4V); only models of text can be converted")
    for name, value in {**_ALWAYS, "quantization_config": None}.items():
        found = settings.get(name, False if name == "multi_query_attention" else value)
        if found != value:
            raise ConfigError(f"{shown}: {name} = {found!r} in config.json, and a glm has {value!r}; not convertible")
    for name in _WORDS:
        if name not in settings:
            raise ConfigError(f"{shown}: {name} is missing in config.json; take the folder of a GLM-4 model")
    ratio = settings.get("rope_ratio", 1)
    if not isinstance(ratio, int | float) or not ratio > 0:
        raise ConfigError(f"{shown}: rope_ratio = {ratio!r} in config.json is no number above 0; mend it")
    words = {**_WORDS, **{name: word for name, word in _OPTIONAL_WORDS.items() if name in settings}}
    config = _glm_config(
        shown,
        {
            "attention_bias": False,
            **{word: settings[name] for name, word in words.items()},
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": _ROPE_BASE * ratio,
                "partial_rotary_factor": _PARTIAL_ROTARY_FACTOR,
            },
        },
    )
    config.architectures = ["GlmForCausalLM"]
    return _checked(shown, config)


def read_native_config(shown: str, settings: dict[str, Any]) -> Any:
    """The `GlmConfig` of a glm config.json. Raises: ConfigError for what chatglm has no words for."""
    _check_type(shown, settings, "glm")
    config = _checked(shown, _glm_config(shown, settings))
    rope = config.rope_parameters
    for name, found, wanted in (
        ("hidden_act", config.hidden_act, "silu"),
        ("rope_parameters.rope_type", rope["rope_type"], "default"),
        ("rope_parameters.partial_rotary_factor", rope["partial_rotary_factor"], _PARTIAL_ROTARY_FACTOR),
    ):
        if found != wanted:
            raise ConfigError(f"{shown}: {name} = {found!r} in config.json, and a chatglm has {wanted!r}")
    return config


def chatglm_config(config: Any, dtype: str) -> dict[str, Any]:
    """config.json of the chatglm model that `config`, a `GlmConfig`, describes; without `auto_map`: it names no code.

    The embeddings are never tied: chatglm's own code has no such switch.
    """
    ratio = config.rope_parameters["rope_theta"] / _ROPE_BASE
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        **{name: getattr(config, word) for name, word in {**_WORDS, **_OPTIONAL_WORDS}.items()},
        **_ALWAYS,
        "rope_ratio": int(ratio) if ratio.is_integer() else ratio,
        "hidden_dropout": 0.0,
        "apply_query_key_layer_scaling": True,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "num_hidden_layers": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }


def _check_type(shown: str, settings: dict[str, Any], wanted: str) -> None:
    found = settings.get("model_type")
    if found == wanted:
        return
    is_done = found == {"chatglm": "glm", "glm": "chatglm"}[wanted]
    hint = "it is in this format already" if is_done else f"give the folder of a {wanted} model, GLM-4-9B say"
    raise ConfigError(f"{shown}: model_type = {found!r} in config.json; {hint}")


def _glm_config(shown: str, settings: dict[str, Any]) -> Any:
    from transformers import GlmConfig

    try:
        return GlmConfig.from_dict(settings)
    except Exception as error:  # a wrong type, of which each field has its own kind
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(f"{shown}: config.json cannot be read as a GLM's ({cause}); mend it") from None


def _checked(shown: str, config: Any) -> Any:
    if config.num_attention_heads * config.head_dim != config.hidden_size:
        raise ConfigError(
            f"{shown}: {config.num_attention_heads} heads of {config.head_dim} are not hidden_size = "
            f"{config.hidden_size}; vLLM's chatglm takes it for granted that they are"
        )
    return config
