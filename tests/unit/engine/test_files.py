"""Folders that are there whole or not at all."""

from pathlib import Path

import pytest

from mentalglm.engine.files import whole_folder
from mentalglm.errors import ConfigError


def test_a_source_that_cannot_be_read_is_not_called_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    message = r"TARGET = .*from what is read \(No such file or directory, .*weights"
    with pytest.raises(ConfigError, match=message), whole_folder(tmp_path / "target", "TARGET"):
        (tmp_path / "source" / "weights").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_called_so(tmp_path: Path) -> None:
    message = r"TARGET = .*cannot be written"
    with pytest.raises(ConfigError, match=message), whole_folder(tmp_path / "target", "TARGET") as folder:
        (folder / "no such folder" / "weights").write_bytes(b"")
    assert list(tmp_path.iterdir()) == []
