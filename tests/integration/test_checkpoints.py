"""Checkpoints of any size, on a disk and on a real S3 server."""

import errno
import os
import tracemalloc
from pathlib import Path

import pytest

from mentalglm import storage
from mentalglm.errors import StorageError
from mentalglm.training.checkpoint import is_whole, list_checkpoints, local_copy, upload

NUM_MB = 200


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("s3") if request.param == "s3" else str(tmp_path / "out")


def test_a_checkpoint_is_checked_and_copied_in_little_memory(root: str, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    (local / "model.safetensors").write_bytes(os.urandom(1 << 20) * NUM_MB)
    upload(local, f"{root}/step-00000001-aa", step=1, is_candidate=True, fingerprint="f")
    [checkpoint] = list_checkpoints(root)
    tracemalloc.start()
    assert is_whole(checkpoint)
    with local_copy(checkpoint.uri) as copy:
        assert (copy / "model.safetensors").stat().st_size == NUM_MB << 20
        assert (copy == Path(root) / checkpoint.name) == (not storage.is_s3(root))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
    assert storage.is_s3(root) != copy.exists()
    name = f"{checkpoint.uri}/model.safetensors"
    storage.put(name, (local / "model.safetensors").read_bytes()[:-1] + b"\0")
    assert not is_whole(checkpoint)


def test_a_copy_that_cannot_be_made_is_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put(f"{s3}/step-00000001-aa/model.safetensors", b"weights")

    def is_full(uri: str, target: Path) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "download", is_full)
    with (
        pytest.raises(
            StorageError, match=r"cannot hold a copy of s3://.* \(No space left on device\); make room there"
        ),
        local_copy(f"{s3}/step-00000001-aa"),
    ):
        pass
    monkeypatch.setattr(storage, "download", lambda uri, target: False)
    with (
        pytest.raises(StorageError, match=r"step-00000001-aa: model\.safetensors went while it was read"),
        local_copy(f"{s3}/step-00000001-aa"),
    ):
        pass
