"""What PEFT can do with LoRA and vLLM 0.32 cannot load (its lora/peft_helper.py): it would say so only with the first
row, and die of it."""

from collections.abc import Mapping
from typing import Any

NOT_IN_VLLM = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules beside the adapter",
    "lora_bias": "biases in the adapter",
    "bias": "biases in the adapter",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "trainable_token_indices": "trained tokens",
}
"""Key of PEFT's settings -> what it asks for."""

PLAIN_INITS = ("gaussian", "orthogonal", "eva", "mica", "lora_ga")
"""Of `init_lora_weights`, beside true and false: those after which the model's own weights are as they were."""


def beyond_vllm(settings: Mapping[str, Any]) -> str | None:
    """The first key that vLLM cannot load an adapter with; None where there is none."""
    return next((key for key in NOT_IN_VLLM if settings.get(key) and settings[key] != "none"), None)
