"""URI in, bytes and filesystems out: the only room that knows S3 from a disk.

Input is read through `filesystem` (pyarrow's). What a run keeps is read and written by the functions here, which make
the same promises on both kinds of storage. Commits need `put_if_absent`: on S3 a conditional write (`If-None-Match:
*`), which pyarrow cannot send, so boto3 does it (s3.py); on a disk a hard link, which is atomic and fails when the name
exists (disk.py). What later takes the place of an older file needs `put_file_if_unchanged`.

On S3 every request is repeated with back-off while its failure may pass (`S3Config.max_attempts`). Whatever still fails
is a `StorageError`, one line, which quotes no value that a folder of `data/` is named by (`shown`); where the place
itself is at fault, an `UnusableStorageError`.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

from mentalglm.storage import s3
from mentalglm.storage.disk import Disk
from mentalglm.storage.places import StoredFile, UnfinishedUpload, absolute, is_s3, join, local_path, shown
from mentalglm.storage.s3 import S3, configure

__all__ = [
    "StoredFile",
    "UnfinishedUpload",
    "abort_upload",
    "absolute",
    "age_s",
    "configure",
    "delete",
    "download",
    "exists",
    "filesystem",
    "has_files",
    "is_s3",
    "join",
    "list_files",
    "list_names",
    "list_unfinished_uploads",
    "local_path",
    "put",
    "put_file_if_absent",
    "put_file_if_unchanged",
    "put_if_absent",
    "read_bytes",
    "read_chunks",
    "read_versioned",
    "shown",
]


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """pyarrow's filesystem for `uri`, and the path in it. Its errors are pyarrow's own."""
    if is_s3(uri):
        return s3.filesystem(uri)
    return pafs.LocalFileSystem(), str(local_path(uri).absolute())


def read_bytes(uri: str) -> bytes | None:
    """The whole of an object that fits in memory, or None where there is none."""
    return _store(uri).read_bytes(uri)


def read_versioned(uri: str) -> tuple[bytes, str] | None:
    """Like `read_bytes`, with what tells this version from those before and after it, for `put_file_if_unchanged`."""
    return _store(uri).read_versioned(uri)


def read_chunks(uri: str) -> Iterator[bytes] | None:
    """The content of an object that may be larger than memory, piece by piece (16 MiB at most), or None where there is
    none. All pieces are of one version: on S3 a `StorageError` where another takes its place meanwhile."""
    return _store(uri).read_chunks(uri)


def download(uri: str, target: Path) -> bool:
    """Copies an object, which may be larger than memory, to the local file `target`. False: there is none."""
    chunks = read_chunks(uri)
    if chunks is None:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as stream:
        stream.writelines(chunks)
    return True


def exists(uri: str) -> bool:
    """Whether there is an object or file at `uri`."""
    return _store(uri).exists(uri)


def age_s(uri: str) -> float | None:
    """Seconds since the object at `uri` was last written, or None where there is none.

    By the storage's clock, so that machines whose clocks differ agree on it. S3 tells whole seconds.
    """
    return _store(uri).age_s(uri)


def list_names(uri: str) -> list[str]:
    """Names of the files directly in the folder `uri`, sorted; empty where there is no such folder."""
    return sorted(_store(uri).list_names(uri))


def list_files(uri: str) -> Iterator[StoredFile]:
    """Every file in the folder `uri` or below it, in no order; on a disk also half-written ones.

    On a disk links are neither followed nor listed: what they point to is not the folder's.
    """
    return _store(uri).list_files(uri)


def has_files(uri: str) -> bool:
    """Whether there is any file in the folder `uri` or below it."""
    return any(True for _ in list_files(uri))


def put(uri: str, data: bytes) -> None:
    """Writes `data`, in the place of what was there. Readers see the old or the new whole."""
    _store(uri).put(uri, data, replace=True, staging=None)


def put_if_absent(uri: str, data: bytes, staging: str | None = None) -> bool:
    """Writes `data` unless there is something already: True if this call wrote it, False if another was first.

    Readers see nothing or the whole. A retry of our own write whose reply was lost counts as written.
    `staging`: on a disk, a folder on the same file system for the half-written file, so that the folder of `uri`
    never shows one; default is a hidden name beside it.
    """
    return _store(uri).put(uri, data, replace=False, staging=staging)


def put_file_if_absent(uri: str, source: str | Path, staging: str | None = None) -> bool:
    """Like `put_if_absent`, of the local file `source`, which may be larger than memory and stays where it is."""
    return _store(uri).put_file(uri, Path(source), version=None, staging=staging)


def put_file_if_unchanged(uri: str, source: str | Path, version: str, staging: str) -> bool:
    """Replaces the `version` of `read_versioned` by the local file `source`, which may be larger than memory.

    True if this call did it. False, and nothing written, where another version is there by now, or nothing; on a disk
    also where another writer was about to replace the same one, and then maybe neither did. Readers see the old or the
    new whole. A retry of our own write whose reply was lost counts as written.
    `staging`: as in `put_if_absent`, and the same for all who replace this file: on a disk they find each other there.
    On a network disk this needs a listing that shows a file that another machine has made before.
    """
    return _store(uri).put_file(uri, Path(source), version=version, staging=staging)


def delete(uri: str) -> None:
    """Removes the object at `uri`, if there is one. On a disk a link goes, not what it points to; a folder stays."""
    _store(uri).delete(uri)


def list_unfinished_uploads(uri: str) -> Iterator[UnfinishedUpload]:
    """What writers, dead or alive, have begun in the folder `uri` or below it and not ended."""
    return _store(uri).list_unfinished_uploads(uri)


def abort_upload(upload: UnfinishedUpload) -> None:
    """Removes it, if it is still there. A writer that lives fails by it."""
    _store(upload.uri).abort_upload(upload)


def _store(uri: str) -> S3 | Disk:
    return s3.store() if is_s3(uri) else Disk()
