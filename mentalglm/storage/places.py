"""Addresses, and what is told of that which lies there: the words that a disk and S3 share."""

import re
from pathlib import Path
from typing import NamedTuple

from mentalglm.errors import ConfigError, StorageError

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")
_PARTITIONS = re.compile(r"(?<=/data/task=).*")


class StoredFile(NamedTuple):
    """A file or object below a folder."""

    path: str
    """Relative to the folder, with `/`."""
    size: int
    """Bytes."""
    age_s: float
    """Seconds since it was written, by the storage's clock."""
    version: str = ""
    """Another one where the content is another: the ETag on S3; time of writing, size and inode on a disk."""


class UnfinishedUpload(NamedTuple):
    """What a writer began and has not ended: on S3 the parts of an upload, on a disk a half-written file."""

    uri: str
    """Where it would have appeared; on a disk, the half-written file."""
    upload_id: str
    age_s: float
    """Seconds since it was begun (on a disk: last written to), by the storage's clock."""


def is_s3(uri: str) -> bool:
    """Whether `uri` names an object store rather than a disk. Raises: ConfigError for other schemes."""
    match = _SCHEME.match(uri)
    if match is None:
        return False
    scheme = match.group(1).lower()
    if scheme == "s3":
        return True
    if scheme == "file":
        return False
    raise ConfigError(f"{uri}: scheme {scheme}:// is not known; use a path, file:// or s3://")


def local_path(uri: str) -> Path:
    """The path on disk of a URI that is not on S3."""
    return Path(uri.removeprefix("file://")).expanduser()


def absolute(uri: str) -> str:
    """`uri` as it means the same from any working directory."""
    return uri if is_s3(uri) else str(local_path(uri).absolute())


def join(uri: str, *parts: str) -> str:
    """The URI of something below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


def shown(uri: str) -> str:
    """`uri` as a message may name it: folders of `data/` are named by values of the posts, which stay out.

    The rule: below `data/task=<task>/`, what a folder's name says after its `=` is left out.
    """
    return _PARTITIONS.sub(lambda match: re.sub("=[^/]*", "=...", match[0]), uri)


def failure(uri: str, what: str, fix: str, kind: type[StorageError] = StorageError) -> StorageError:
    """The error of this room: one line that names the place, what happened, and what to see to."""
    return kind(f"{shown(uri)}: {what}; {fix}")
