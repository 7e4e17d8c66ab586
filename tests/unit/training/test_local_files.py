"""What a killed worker leaves on its machine's disk is swept by the next one."""

import tempfile
from pathlib import Path

import pytest

from mentalglm.training.local_files import empty_folder


def test_a_worker_finds_its_folder_empty_and_leaves_those_of_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    owners = [("s3://b/out/s1", "worker-0"), ("s3://b/out/s1", "worker-1"), ("s3://b/out/s2", "worker-0")]
    folders = [empty_folder(*owner) for owner in owners]
    for folder in folders:
        (folder / "checkpoint-abc").mkdir()
        (folder / "checkpoint-abc" / "model.safetensors").write_bytes(b"weights")
    assert empty_folder(*owners[0]) == folders[0]
    assert [len(list(folder.iterdir())) for folder in folders] == [0, 1, 1]
