"""How much of a GPU's arithmetic a model uses (MFU), as Chowdhery et al. define it (PaLM, arXiv:2204.02311)."""

import re
from pathlib import Path

_PEAK_TFLOPS = {
    "H200": 989,
    "H100 PCIE": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H800": 989,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "L20": 119.5,
    "L4": 121,
    "A10": 125,
    "4090": 165,
    "3090": 71,
    "V100": 125,
}
"""Dense 16-bit matrix arithmetic with 32-bit sums, without sparsity; NVIDIA's data sheets. The first name that a
device's name holds is meant."""


def peak_flops(device: str) -> float | None:
    """Floating-point operations per second of `device` ("2 x NVIDIA H100 80GB HBM3"); None where it is not known."""
    count = re.match(r"(\d+) x ", device)
    name = device.upper()
    for known, tera in _PEAK_TFLOPS.items():
        if re.search(rf"\b{re.escape(known)}\b", name):
            return tera * 1e12 * (int(count[1]) if count else 1)
    return None


def num_parameters(folder: Path) -> int | None:
    """Parameters that every token is multiplied with: all but the input embedding, unless it is the output's, too.

    `folder`: of a model's safetensors, of which the headers are read. None for quantised weights, whose shapes say
    something else.
    """
    from safetensors import safe_open

    total, embedding, has_head = 0, 0, False
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                tensor = tensors.get_slice(name)
                if tensor.get_dtype() not in ("F32", "F16", "BF16"):
                    return None
                size = 1
                for length in tensor.get_shape():
                    size *= length
                total += size
                embedding += size if re.search(r"embed_tokens|word_embeddings", name) else 0
                has_head = has_head or "lm_head" in name or "output_layer" in name
    return total - embedding if has_head else total


def mfu(*, num_parameters: int, tokens_per_s: float, peak: float) -> float:
    """Share of the peak: 2 operations for each parameter and token, forward only, attention left out."""
    return 2 * num_parameters * tokens_per_s / peak
