"""MFU: the device's peak by its name, the model's parameters by its files."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mentalglm.engine.flops import mfu, num_parameters, peak_flops


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("2 x NVIDIA H200", 2 * 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA L40S", 362e12),
        ("cpu", None),
    ],
)
def test_peak_of_known_devices(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak


def test_an_embedding_is_only_looked_up_unless_it_is_the_head_too(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": np.zeros((100, 8), np.float32), "w": np.zeros((8, 8), np.float32)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert num_parameters(tmp_path) == 864
    save_file({"lm_head.weight": np.zeros((100, 8), np.float32)}, tmp_path / "b.safetensors")
    assert num_parameters(tmp_path) == 864  # now the head's, and not the embedding's
    save_file({"packed": np.zeros((4, 4), np.int32)}, tmp_path / "c.safetensors")
    assert num_parameters(tmp_path) is None


def test_mfu_of_nine_billion_parameters() -> None:
    assert mfu(num_parameters=9_000_000_000, tokens_per_s=11_000, peak=989e12) == pytest.approx(0.2, abs=0.001)
