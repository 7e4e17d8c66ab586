"""LoRA adapters of the demo model that change its answers, made by PEFT."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mentalglm.engine.model import DEMO_MODEL

EVERY_MODULE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


def save_adapter(
    folder: Path, *, seed: int, modules: Sequence[str] = EVERY_MODULE, std: float = 0.3, **settings: Any
) -> Any:
    """Saves an adapter of random weights, none of them zero. Returns the demo model with it, in float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(modules), task_type="CAUSAL_LM", **settings)
    model = get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=std)
    model.save_pretrained(folder)
    return model.eval()
