"""Checkpoints: folders that say themselves whether they are whole, on a disk or on S3.

    <stage>/_run/checkpoints/step-<number>-<attempt>/
        adapter_model.safetensors, adapter_config.json    what is trained, as PEFT loads it (`method: full`: a model)
        optimizer.pt                                      its moments, loss scaling
        manifest.json                                     written last: step, fingerprint, sha256 of every file

A file is never written twice. What has no manifest, or is not what its manifest says, is no checkpoint.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentalglm import storage
from mentalglm.errors import ConfigError, StorageError, UserError

OPTIMIZER = "optimizer.pt"
MANIFEST = "manifest.json"
_NAME = re.compile(r"(step-(\d+)-[0-9a-f]+)/manifest\.json")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint that is whole, as far as its manifest tells."""

    uri: str
    step: int
    """Steps done by then."""
    is_candidate: bool
    """Whether the best is chosen among this and others."""
    files: dict[str, dict[str, Any]]
    """Name -> sha256 and size."""
    fingerprint: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.uri.rpartition("/")[2]


def upload(folder: Path, uri: str, *, step: int, is_candidate: bool, fingerprint: str) -> None:
    """Copies the files of `folder` to `uri`, and their manifest last. Raises: StorageError."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        with path.open("rb") as stream:
            files[name] = {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "size": path.stat().st_size}
        storage.put_file_if_absent(storage.join(uri, name), path)
    manifest = {
        "version": _VERSION,
        "step": step,
        "is_candidate": is_candidate,
        "fingerprint": fingerprint,
        "files": files,
    }
    storage.put_if_absent(storage.join(uri, MANIFEST), json.dumps(manifest, indent=2).encode())


def list_checkpoints(uri: str) -> list[StoredCheckpoint]:
    """Those in the folder `uri` that have a manifest which can be read, by step."""
    found: list[StoredCheckpoint] = []
    for file in storage.list_files(uri):
        match = _NAME.fullmatch(file.path)
        data = storage.read_bytes(storage.join(uri, file.path)) if match else None
        if match is None or data is None:  # deleted since it was listed
            continue
        checkpoint = _read_manifest(storage.join(uri, match[1]), data)
        if checkpoint is not None:
            found.append(checkpoint)
    return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.name))


def _read_manifest(uri: str, data: bytes) -> StoredCheckpoint | None:
    """None where it is damaged, or of another version: then there is no checkpoint."""
    try:
        manifest = json.loads(data)
        if manifest["version"] != _VERSION:
            return None
        files = {
            str(name): {"sha256": each["sha256"], "size": each["size"]} for name, each in manifest["files"].items()
        }
        return StoredCheckpoint(
            uri, int(manifest["step"]), bool(manifest["is_candidate"]), files, str(manifest["fingerprint"])
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def newest(uri: str, fingerprint: str) -> StoredCheckpoint | None:
    """The one to go on from: the last of the folder `uri` whose files are what its manifest says.

    Raises: ConfigError where it is of a stage with other settings.
    """
    for checkpoint in reversed(list_checkpoints(uri)):
        if checkpoint.fingerprint != fingerprint:
            raise ConfigError(
                f"{checkpoint.uri}: is of a stage with other settings (fingerprint {checkpoint.fingerprint[:12]}, this "
                f"stage has {fingerprint[:12]}); give the stage another name or output"
            )
        if is_whole(checkpoint):
            return checkpoint
    return None


def is_whole(checkpoint: StoredCheckpoint) -> bool:
    """Whether every file is there and has the sha256 of the manifest."""
    for name, expected in checkpoint.files.items():
        chunks = storage.read_chunks(storage.join(checkpoint.uri, name))
        if chunks is None:
            return False
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        if digest.hexdigest() != expected["sha256"]:
            return False
    return True


@contextmanager
def local_copy(checkpoint_uri: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder on this machine with the checkpoint's files: itself, or a temporary copy, in `parent`, of what is on S3.

    Raises: StorageError where the copy cannot be made.
    """
    if not storage.is_s3(checkpoint_uri):
        yield storage.local_path(checkpoint_uri)
        return
    with tempfile.TemporaryDirectory(prefix="mentalglm-checkpoint-", dir=parent) as folder:
        _fetch(checkpoint_uri, Path(folder))
        yield Path(folder)


def _fetch(uri: str, folder: Path) -> None:
    try:
        for file in storage.list_files(uri):
            if not storage.download(storage.join(uri, file.path), folder / file.path):
                raise StorageError(f"{uri}: {file.path} went while it was read; run the same command again")
    except UserError:
        raise
    except OSError as error:
        raise StorageError(
            f"{folder.parent}: cannot hold a copy of {uri} ({error.strerror or type(error).__name__}); make room there "
            "or set TMPDIR to another folder, and run the same command again"
        ) from None
