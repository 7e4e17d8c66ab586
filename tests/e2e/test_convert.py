"""`mentalglm convert` as typed."""

from pathlib import Path

import pytest

from tests.adapters import save_adapter
from tests.e2e.conftest import Run

pytestmark = pytest.mark.slow  # each command loads torch


def test_convert_there_and_back_and_merge(run: Run, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", seed=6, std=0.15)
    for command, said in (
        ("chatglm demo new/chatglm", "written: new/chatglm"),
        ("glm new/chatglm new/glm", "58 tensors, 5 layers, bfloat16"),
        ("merge new/glm new/merged --adapter adapter", "checked: logits are the adapter's within"),
    ):
        result = run("mentalglm", "convert", *command.split())
        assert result.returncode == 0, result.stderr
        assert said in result.stdout
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"chatglm", "glm", "merged"}
    result = run("mentalglm", "convert", "glm", "new/chatglm", "new/glm")
    assert result.returncode == 2
    assert result.stderr == "error: TARGET = 'new/glm': is there already; name a new folder, or remove it\n"
