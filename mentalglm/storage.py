"""URI in, bytes and filesystems out: the only place that knows S3 from a disk.

Reading goes through pyarrow's filesystems. Writing is `put_if_absent` and `put`, since those are what a commit
without rename needs: on S3 a conditional PUT (`If-None-Match: *`), which pyarrow cannot send, so boto3 does it; on a
disk a hard link, which is atomic and fails when the name exists.
"""

import os
import re
import time
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from mentalglm.errors import ConfigError

_MAX_CONFLICTS = 6
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")


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


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """pyarrow's filesystem for `uri`, and the path in it."""
    if is_s3(uri):
        return _s3_filesystem(), uri[len("s3://") :].rstrip("/")
    return pafs.LocalFileSystem(), str(local_path(uri).absolute())


def join(uri: str, *parts: str) -> str:
    """The URI of something below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


def read_bytes(uri: str) -> bytes | None:
    """The whole of a small object, or None where there is none."""
    fs, path = filesystem(uri)
    try:
        with fs.open_input_stream(path) as stream:
            data: bytes = stream.read()
            return data
    except FileNotFoundError:
        return None


def exists(uri: str) -> bool:
    """Whether there is an object or file at `uri`."""
    fs, path = filesystem(uri)
    return bool(fs.get_file_info(path).type == pafs.FileType.File)


def list_names(uri: str) -> list[str]:
    """Names of the files directly in the folder `uri`, sorted; empty where there is no such folder."""
    fs, path = filesystem(uri)
    infos = fs.get_file_info(pafs.FileSelector(path, recursive=False, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.File)


def has_files(uri: str) -> bool:
    """Whether there is any file in the folder `uri` or below it."""
    fs, path = filesystem(uri)
    infos = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return any(info.type == pafs.FileType.File for info in infos)


def put_if_absent(uri: str, data: bytes, staging: str | None = None) -> bool:
    """Writes `data` unless there is something already: True if this call wrote it, False if another was first.

    Readers see nothing or the whole. A retry of our own write whose reply was lost counts as written.
    `staging`: on a disk, a folder on the same file system for the half-written file, so that the folder of `uri`
    never shows one; default is a hidden name beside it.
    """
    if is_s3(uri):
        return _s3_put(uri, data, IfNoneMatch="*")
    path = local_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _write_temporary(local_path(staging) / path.name if staging else path, data)
    try:
        os.link(temporary, path)
        _sync_folder(path.parent)
        return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink()


def put(uri: str, data: bytes) -> None:
    """Writes `data`, in the place of what was there. Readers see the old or the new whole."""
    if is_s3(uri):
        _s3_put(uri, data)
        return
    path = local_path(uri)
    _write_temporary(path, data).replace(path)
    _sync_folder(path.parent)


def _write_temporary(path: Path, data: bytes) -> Path:
    """A synced file that is on the same disk as `path` and that no reader of the folder takes for a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@cache
def _s3_filesystem() -> pafs.S3FileSystem:
    endpoint = _endpoint()
    options: dict[str, Any] = {"request_timeout": 60, "connect_timeout": 10}
    if endpoint:
        scheme, _, host = endpoint.partition("://")
        options |= {"scheme": scheme, "endpoint_override": host.rstrip("/")}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    return pafs.S3FileSystem(retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=10), **options)


@cache
def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    retries = Config(retries={"mode": "standard", "max_attempts": 10}, connect_timeout=10, read_timeout=60)
    return boto3.client("s3", config=retries)  # endpoint, region, credentials: the usual AWS variables and files


def _s3_put(uri: str, data: bytes, **conditions: str) -> bool:
    from botocore.exceptions import ClientError

    bucket, _, key = uri[len("s3://") :].partition("/")
    # Tells our own object from another writer's when a reply was lost and the retry finds the key taken.
    write_id = uuid.uuid4().hex
    for attempt in range(_MAX_CONFLICTS):
        try:
            _s3_client().put_object(Bucket=bucket, Key=key, Body=data, Metadata={"write-id": write_id}, **conditions)
            return True
        except ClientError as error:
            status = error.response["ResponseMetadata"].get("HTTPStatusCode")
            if status == 412:
                break
            # 409: another conditional write was under way, and may yet fail; S3 asks to try again.
            if status != 409 or attempt == _MAX_CONFLICTS - 1:
                raise
            time.sleep(0.1 * 2**attempt)
    head = _s3_client().head_object(Bucket=bucket, Key=key)
    return bool(head["Metadata"].get("write-id") == write_id)
