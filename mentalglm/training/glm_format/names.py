"""Names of modules in both formats. chatglm keeps queries, keys and values in one matrix, in this order of its rows."""

import re

_OUTSIDE = {
    "model.embed_tokens": "transformer.embedding.word_embeddings",
    "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer",
}
_IN_LAYER = {
    "input_layernorm": "input_layernorm",
    "self_attn.q_proj": "self_attention.query_key_value",
    "self_attn.k_proj": "self_attention.query_key_value",
    "self_attn.v_proj": "self_attention.query_key_value",
    "self_attn.o_proj": "self_attention.dense",
    "post_attention_layernorm": "post_attention_layernorm",
    "mlp.gate_up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}
_NATIVE = re.compile(r"model\.layers\.(\d+)\.(.+)")
_CHATGLM = re.compile(r"transformer\.encoder\.layers\.(\d+)\.(.+)")

UNUSED = "transformer.rotary_pos_emb.inv_freq"
"""A tensor of chatglm checkpoints that its code computes anew."""


def chatglm_module(native: str) -> str | None:
    """`transformer.encoder.layers.0.mlp.dense_4h_to_h` of `model.layers.0.mlp.down_proj`; None for an unknown one."""
    if native in _OUTSIDE:
        return _OUTSIDE[native]
    match = _NATIVE.fullmatch(native)
    name = _IN_LAYER.get(match[2]) if match else None
    return f"transformer.encoder.layers.{match[1]}.{name}" if match and name else None


def native_modules(chatglm: str) -> list[str]:
    """The other way: three modules of a fused one, in the order of its rows; none of an unknown one."""
    if match := _CHATGLM.fullmatch(chatglm):
        return [f"model.layers.{match[1]}.{native}" for native, fused in _IN_LAYER.items() if fused == match[2]]
    return [native for native, name in _OUTSIDE.items() if name == chatglm]
