"""URI in, bytes and filesystems out: the only place that knows S3 from a disk.

Input is read through `filesystem` (pyarrow's). What a run keeps is read and written by the functions here, which make
the same promises on both kinds of storage. Commits without rename need `put_if_absent`: on S3 a conditional write
(`If-None-Match: *`), which pyarrow cannot send, so boto3 does it; on a disk a hard link, which is atomic and fails when
the name exists.

On S3 every request is repeated with back-off while its failure may pass (`S3Config.max_attempts`). Whatever still fails
is a `StorageError`, one line; where the place itself is at fault, an `UnusableStorageError`.
"""

import errno
import math
import os
import random
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow.fs as pafs

from mentalglm.config import S3Config
from mentalglm.errors import ConfigError, StorageError, UnusableStorageError

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")

_settings = S3Config()


class StoredFile(NamedTuple):
    """A file or object below a folder."""

    path: str
    """Relative to the folder, with `/`."""
    size: int
    """Bytes."""
    age_s: float
    """Seconds since it was written, by the storage's clock."""


class UnfinishedUpload(NamedTuple):
    """What a writer began and has not ended: on S3 the parts of an upload, on a disk a half-written file."""

    uri: str
    """Where it would have appeared; on a disk, the half-written file."""
    upload_id: str
    age_s: float
    """Seconds since it was begun (on a disk: last written to), by the storage's clock."""


def configure(settings: S3Config) -> None:
    """Sets how this process reaches S3 from now on. Each process of a job calls it with the job's `s3` section."""
    global _settings
    _settings = settings


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


def join(uri: str, *parts: str) -> str:
    """The URI of something below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """pyarrow's filesystem for `uri`, and the path in it. Its errors are pyarrow's own."""
    if is_s3(uri):
        return _s3_filesystem(_resolved_settings()), "/".join(_bucket_and_key(uri)).rstrip("/")
    return pafs.LocalFileSystem(), str(local_path(uri).absolute())


def read_bytes(uri: str) -> bytes | None:
    """The whole of an object that fits in memory, or None where there is none."""
    return _store(uri).read_bytes(uri)


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


def put_file(uri: str, source: str | Path, staging: str | None = None) -> None:
    """Like `put`, of the local file `source`, which may be larger than memory and stays where it is."""
    _store(uri).put_file(uri, Path(source), replace=True, staging=staging)


def put_file_if_absent(uri: str, source: str | Path, staging: str | None = None) -> bool:
    """Like `put_if_absent`, of the local file `source`, which may be larger than memory and stays where it is."""
    return _store(uri).put_file(uri, Path(source), replace=False, staging=staging)


def delete(uri: str) -> None:
    """Removes the object at `uri`, if there is one. On a disk a link goes, not what it points to; a folder stays."""
    _store(uri).delete(uri)


def list_unfinished_uploads(uri: str) -> Iterator[UnfinishedUpload]:
    """What writers, dead or alive, have begun in the folder `uri` or below it and not ended."""
    return _store(uri).list_unfinished_uploads(uri)


def abort_upload(upload: UnfinishedUpload) -> None:
    """Removes it, if it is still there. A writer that lives fails by it."""
    _store(upload.uri).abort_upload(upload)


def _store(uri: str) -> "_S3 | _Disk":
    return _s3(_resolved_settings()) if is_s3(uri) else _Disk()


class _Disk:
    """Local disks and whatever is mounted like one."""

    # Half-written: no reader of the folder takes such a name for a result.
    _TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")

    def read_bytes(self, uri: str) -> bytes | None:
        with _disk_errors(uri):
            try:
                return local_path(uri).read_bytes()
            except FileNotFoundError:
                return None

    def exists(self, uri: str) -> bool:
        with _disk_errors(uri):
            return local_path(uri).is_file()

    def age_s(self, uri: str) -> float | None:
        path = local_path(uri)
        with _disk_errors(uri):
            try:
                now = self._now(path.parent)  # first: what is written meanwhile is not of the future
                return max(0.0, now - path.stat().st_mtime)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list_names(self, uri: str) -> list[str]:
        with _disk_errors(uri):
            try:
                with os.scandir(local_path(uri)) as entries:
                    return [entry.name for entry in entries if entry.is_file()]
            except FileNotFoundError:
                return []

    def list_files(self, uri: str) -> Iterator[StoredFile]:
        root = local_path(uri)
        with _disk_errors(uri):
            try:
                now = self._now(root)
            except (FileNotFoundError, NotADirectoryError):
                return
            folders = [root]
            while folders:
                try:
                    with os.scandir(folders.pop()) as entries:
                        found = list(entries)
                except FileNotFoundError:  # removed since it was listed
                    continue
                folders += [Path(entry) for entry in found if entry.is_dir(follow_symlinks=False)]
                for entry in found:
                    with suppress(FileNotFoundError):
                        if entry.is_file(follow_symlinks=False):
                            stat = entry.stat(follow_symlinks=False)
                            path = Path(entry).relative_to(root).as_posix()
                            yield StoredFile(path, stat.st_size, max(0.0, now - stat.st_mtime))

    def put(self, uri: str, data: bytes, *, replace: bool, staging: str | None) -> bool:
        with _disk_errors(uri), self._temporary(uri, staging) as (temporary, stream):
            stream.write(data)
            return self._publish(temporary, stream, local_path(uri), replace)

    def put_file(self, uri: str, source: Path, *, replace: bool, staging: str | None) -> bool:
        # A copy, not a link to `source`: it is synced, has the usual permissions, and no later write to `source`
        # shows in it.
        with source.open("rb") as data, _disk_errors(uri), self._temporary(uri, staging) as (temporary, stream):
            shutil.copyfileobj(data, stream, 8 << 20)
            return self._publish(temporary, stream, local_path(uri), replace)

    def delete(self, uri: str) -> None:
        with _disk_errors(uri):
            local_path(uri).unlink(missing_ok=True)

    def list_unfinished_uploads(self, uri: str) -> Iterator[UnfinishedUpload]:
        for file in self.list_files(uri):
            if self._TEMPORARY.fullmatch(file.path.rpartition("/")[2]):
                yield UnfinishedUpload(join(uri, file.path), "", file.age_s)

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        self.delete(upload.uri)

    @contextmanager
    def _temporary(self, uri: str, staging: str | None) -> Iterator[tuple[Path, BinaryIO]]:
        """A new file on the disk of `uri`; gone at the end, under this name."""
        path = local_path(uri)
        folder = local_path(staging) if staging else path.parent
        for each in (path.parent, folder):
            each.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{path.name}.{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("xb") as stream:
                yield temporary, stream
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(self, temporary: Path, stream: BinaryIO, path: Path, replace: bool) -> bool:
        stream.flush()
        os.fsync(stream.fileno())
        if replace:
            temporary.replace(path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                # Over NFS a link that was made is reported as failed when the first reply was lost.
                if not temporary.samefile(path):
                    return False
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return True

    def _now(self, folder: Path) -> float:
        """The time by the clock of the disk, which on NFS is another machine's: that of a file made just now."""
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                return os.fstat(probe.fileno()).st_mtime
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return time.time()  # who may only look cannot act on the answer either
            raise


# What a file system says when the address is wrong, rather than the hour.
_UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
_UNUSABLE |= {errno.ELOOP, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP}


@contextmanager
def _disk_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        what = os.strerror(error.errno) if error.errno else type(error).__name__
        if error.errno in _UNUSABLE:
            raise UnusableStorageError(
                f"{uri}: cannot be used ({what}); name a folder that this user, on every node, may write"
            ) from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            fix = "make room on that disk and run the same command again"
        else:
            fix = "see to that disk and run the same command again"
        raise StorageError(f"{uri}: {what.lower()}; {fix}") from None


def _resolved_settings() -> S3Config:
    """The settings, with what they leave open taken from the environment."""
    environment = os.environ.get
    endpoint = _settings.endpoint or environment("AWS_ENDPOINT_URL_S3") or environment("AWS_ENDPOINT_URL") or None
    region = _settings.region or environment("AWS_REGION") or environment("AWS_DEFAULT_REGION") or None
    return _settings.model_copy(update={"endpoint": endpoint, "region": region})


@cache
def _s3_filesystem(settings: S3Config) -> pafs.S3FileSystem:
    options: dict[str, Any] = {}
    if settings.endpoint:
        scheme, _, host = settings.endpoint.partition("://")
        options |= {"scheme": scheme, "endpoint_override": host.rstrip("/")}
    if settings.region:
        options["region"] = settings.region
    return pafs.S3FileSystem(
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=settings.max_attempts),
        request_timeout=settings.read_timeout_s,
        connect_timeout=settings.connect_timeout_s,
        force_virtual_addressing=settings.addressing_style == "virtual",
        **options,
    )


@cache
def _s3(settings: S3Config) -> "_S3":
    return _S3(settings)


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri[len("s3://") :].partition("/")
    if "@" in bucket:  # and the address is not quoted
        raise ConfigError(
            "an s3:// address holds a user name or password; take it out, and set AWS_ACCESS_KEY_ID or AWS_PROFILE"
        )
    return bucket, key


class _S3:
    """An object store, by its settings. Threads may share it."""

    _PART_BYTES = 16 << 20
    _MAX_PARTS = 10_000  # S3's
    _PARTS_AT_ONCE = 4

    def __init__(self, settings: S3Config) -> None:
        self._settings = settings
        self._client = self._new_client()
        key = settings.sse_kms_key
        self._encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def read_bytes(self, uri: str) -> bytes | None:
        reply = self._call("get_object", uri, expect={404}, with_body=True)
        data: bytes | None = reply["Body"] if _status(reply) == 200 else None
        return data

    def exists(self, uri: str) -> bool:
        return _status(self._call("head_object", uri, expect={404})) == 200

    def age_s(self, uri: str) -> float | None:
        reply = self._call("head_object", uri, expect={404})
        return _age_s(reply, reply["LastModified"]) if _status(reply) == 200 else None

    def list_names(self, uri: str) -> list[str]:
        return [file.path for file in self._list(uri, Delimiter="/")]

    def list_files(self, uri: str) -> Iterator[StoredFile]:
        return self._list(uri)

    def put(self, uri: str, data: bytes, *, replace: bool, staging: str | None) -> bool:
        write_id = uuid.uuid4().hex
        reply = self._call(
            "put_object", uri, expect={412}, Body=data, **self._object_options(write_id), **_condition(replace)
        )
        if _status(reply) == 412:
            return self._is_ours(uri, write_id)
        self._check_encryption(uri, reply)
        return True

    def put_file(self, uri: str, source: Path, *, replace: bool, staging: str | None) -> bool:
        if source.stat().st_size <= self._PART_BYTES:
            return self.put(uri, source.read_bytes(), replace=replace, staging=staging)
        for attempt in range(self._settings.max_attempts):
            _back_off(attempt)
            if (written := self._upload(uri, source, replace=replace)) is not None:
                return written
        raise StorageError(f"{uri}: other writers were in the way at every attempt; run the same command again")

    def delete(self, uri: str) -> None:
        self._call("delete_object", uri, expect={404})

    def list_unfinished_uploads(self, uri: str) -> Iterator[UnfinishedUpload]:
        bucket, prefix = _bucket_and_prefix(uri)
        position: dict[str, Any] = {}
        while True:
            reply = self._call("list_multipart_uploads", uri, with_key=False, Prefix=prefix, **position)
            for upload in reply.get("Uploads", []):
                yield UnfinishedUpload(
                    f"s3://{bucket}/{upload['Key']}", upload["UploadId"], _age_s(reply, upload["Initiated"])
                )
            if not reply.get("IsTruncated"):
                return
            position = {"KeyMarker": reply["NextKeyMarker"], "UploadIdMarker": reply["NextUploadIdMarker"]}

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        self._call("abort_multipart_upload", upload.uri, expect={404}, UploadId=upload.upload_id)

    def _list(self, uri: str, **options: Any) -> Iterator[StoredFile]:
        _, prefix = _bucket_and_prefix(uri)
        position: dict[str, Any] = {}
        while True:
            reply = self._call("list_objects_v2", uri, with_key=False, Prefix=prefix, **options, **position)
            for each in reply.get("Contents", []):
                if not each["Key"].endswith("/"):  # the empty objects that S3 tools make for folders
                    yield StoredFile(each["Key"][len(prefix) :], each["Size"], _age_s(reply, each["LastModified"]))
            if not reply.get("IsTruncated"):
                return
            position = {"ContinuationToken": reply["NextContinuationToken"]}

    def _upload(self, uri: str, source: Path, *, replace: bool) -> bool | None:
        """A multipart upload. Like `put`, but None where the server asks to begin again."""
        write_id = uuid.uuid4().hex
        size = source.stat().st_size
        part_bytes = max(self._PART_BYTES, math.ceil(size / self._MAX_PARTS))
        created = self._call(
            "create_multipart_upload", uri, ChecksumAlgorithm="CRC32", **self._object_options(write_id)
        )
        upload_id: str = created["UploadId"]

        def upload_part(number: int) -> dict[str, Any]:
            with source.open("rb") as stream:
                stream.seek((number - 1) * part_bytes)
                data = stream.read(part_bytes)
            part = self._call(
                "upload_part", uri, PartNumber=number, UploadId=upload_id, Body=data, ChecksumAlgorithm="CRC32"
            )
            checksum = {"ChecksumCRC32": part["ChecksumCRC32"]} if "ChecksumCRC32" in part else {}
            return {"PartNumber": number, "ETag": part["ETag"], **checksum}

        try:
            with ThreadPoolExecutor(self._PARTS_AT_ONCE) as pool:
                parts = list(pool.map(upload_part, range(1, math.ceil(size / part_bytes) + 1)))
            reply = self._call(
                "complete_multipart_upload",
                uri,
                expect={404, 409, 412},
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
                **_condition(replace),
            )
            status = _status(reply)
            if status == 200:
                # Not every server repeats it in the reply that ends an upload.
                self._check_encryption(uri, reply if "ServerSideEncryption" in reply else self._head(uri))
                return True
            if self._is_ours(uri, write_id):
                return True
            if status == 404 and (replace or not self.exists(uri)):
                raise StorageError(f"{uri}: its upload was removed while it went on; run the same command again")
        except BaseException:
            self._abort(uri, upload_id)
            raise
        self._abort(uri, upload_id)
        return None if status == 409 else False

    def _abort(self, uri: str, upload_id: str) -> None:
        """Frees the parts, if it can: the failure that led here is the one to tell, and gc finds what is left."""
        with suppress(StorageError):
            self._call("abort_multipart_upload", uri, expect={404}, max_attempts=2, UploadId=upload_id)

    def _object_options(self, write_id: str) -> dict[str, Any]:
        # The id tells our own object from another writer's when a reply was lost and the retry finds the key taken.
        return {"Metadata": {"write-id": write_id}, **self._encryption}

    def _head(self, uri: str) -> dict[str, Any]:
        return self._call("head_object", uri, expect={404})

    def _is_ours(self, uri: str, write_id: str) -> bool:
        head = self._head(uri)
        if head.get("Metadata", {}).get("write-id") != write_id:
            return False
        self._check_encryption(uri, head)
        return True

    def _check_encryption(self, uri: str, reply: dict[str, Any]) -> None:
        """Whether the server has encrypted what we wrote as we asked; if not, it must not stay there."""
        if self._encryption and reply.get("ServerSideEncryption") != "aws:kms":
            with suppress(StorageError):
                self.delete(uri)
            raise StorageError(
                f"{uri}: the server did not encrypt it with s3.sse_kms_key and was told to delete it; use a service "
                "with SSE-KMS, or take s3.sse_kms_key out of the config"
            )

    def _call(
        self,
        operation: str,
        uri: str,
        *,
        expect: Collection[int] = (),
        with_key: bool = True,
        with_body: bool = False,
        max_attempts: int | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """The server's reply, after as many attempts as it takes; also a refusal whose HTTP status is in `expect`.

        botocore's own retries are off: they share a budget over all threads of a client, which an outage of seconds
        uses up, and they do not cover a body that breaks off.
        """
        from botocore import exceptions as boto

        bucket, key = _bucket_and_key(uri)
        if with_key:
            arguments["Key"] = key
        attempts = max_attempts or self._settings.max_attempts
        renewed = False
        for attempt in range(attempts):
            _back_off(attempt)
            client = self._client
            try:
                reply: dict[str, Any] = getattr(client, operation)(Bucket=bucket, **arguments)
                if with_body:
                    reply["Body"] = reply["Body"].read()
                return reply
            except boto.ClientError as error:
                code, status = error.response["Error"].get("Code", ""), _status(error.response)
                if status in expect and code != "NoSuchBucket":
                    return dict(error.response)
                if code in _EXPIRED and not renewed:  # may have been renewed in the file that they are from
                    renewed = True
                    self._client = self._new_client()
                elif code not in _PASSING and status not in (429, 500, 502, 503, 504):
                    raise _refusal(uri, bucket, code, status, self._settings) from None
                problem = f"{code} (HTTP {status})"
            except (
                boto.HTTPClientError,
                boto.ConnectionError,
                boto.IncompleteReadError,
                boto.FlexibleChecksumError,
                ConnectionError,
                TimeoutError,
            ) as error:
                problem = type(error).__name__
            except boto.BotoCoreError as error:  # before anything was sent
                raise _refusal(uri, bucket, type(error).__name__, 0, self._settings) from None
        fix = f"see to {self._settings.endpoint or 'S3'} and the network"
        if self._encryption and operation in ("put_object", "create_multipart_upload", "upload_part"):
            fix += ", and whether the service has s3.sse_kms_key,"
        raise StorageError(
            f"{uri}: no success in {attempts} attempts ({problem}); {fix} and run the same command again"
        )

    def _new_client(self) -> Any:
        import boto3
        from botocore.config import Config

        settings = self._settings
        options = Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            max_pool_connections=64,
            s3={"addressing_style": settings.addressing_style},
        )
        # A session of its own: the default one is not safe to share, and keeps credentials once it has read them.
        session = boto3.session.Session(region_name=settings.region)
        return session.client("s3", endpoint_url=settings.endpoint, config=options)


_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_INVALID = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "NoCredentialsError"}
_INVALID |= {"PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound", "TokenRetrievalError"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
# 409: another conditional write was under way, and may yet fail; S3 asks to try again.
_PASSING = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown", "IncompleteBody"}
_PASSING |= {"BadDigest", "Throttling", "ThrottlingException", "RequestLimitExceeded"}


def _refusal(uri: str, bucket: str, code: str, status: int, settings: S3Config) -> StorageError:
    """The line for what no further attempt would mend. Its words are ours: the server's may hold a key's id."""
    kind: type[StorageError] = StorageError
    if code in _EXPIRED:
        what, fix = "the credentials have expired", "renew them and run the same command again"
    elif code in _INVALID:
        what = "there are no valid credentials"
        fix = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the role, on every node"
    elif code.startswith("KMS."):
        what, fix = "the server cannot encrypt it", "check s3.sse_kms_key and the permission to use that key"
    elif code in _DENIED or status == 403:
        kind, what = UnusableStorageError, "no permission"
        fix = "allow these credentials to list, read, write and delete there"
        if settings.sse_kms_key:
            fix += " and to use s3.sse_kms_key"
    elif code == "NoSuchBucket":
        kind, what = UnusableStorageError, f"there is no bucket {bucket}"
        fix = f"create it, or check the address and s3.endpoint ({settings.endpoint or 'AWS'})"
    elif code in _FULL or status == 507:
        what, fix = "the storage is full", "make room there and run the same command again"
    elif code == "RequestTimeTooSkewed":
        what, fix = "the clock of this machine is wrong", "set it and run the same command again"
    elif status in (301, 307, 308) or code in ("AuthorizationHeaderMalformed", "NoRegionError"):
        kind, what, fix = UnusableStorageError, "the bucket is of another region", "set s3.region or AWS_REGION to it"
    elif settings.sse_kms_key and status in (400, 501):
        what, fix = "refused, perhaps for its encryption", "check s3.sse_kms_key and that the service has SSE-KMS"
    else:
        what, fix = "refused", "check the address, s3.endpoint and the credentials"
    detail = f"{code}, HTTP {status}" if status and code != str(status) else code
    return kind(f"{uri}: {what} ({detail}); {fix}")


def _back_off(attempt: int) -> None:
    """Waits before attempt number `attempt`, from 0: not at all, then 0.1 to 0.2 s, doubling up to 20 s."""
    if attempt:
        time.sleep(min(20.0, 0.1 * 2.0**attempt) * random.uniform(0.5, 1.0))  # noqa: S311 - so that clients spread


def _condition(replace: bool) -> dict[str, Any]:
    return {} if replace else {"IfNoneMatch": "*"}


def _bucket_and_prefix(uri: str) -> tuple[str, str]:
    """The bucket, and what the keys below the folder `uri` begin with, and those of no neighbour named alike."""
    bucket, key = _bucket_and_key(uri)
    return bucket, f"{key.rstrip('/')}/" if key.rstrip("/") else ""


def _status(reply: dict[str, Any]) -> int:
    status: int = reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    # Ranges and empty replies (204, 206) are successes like any other.
    return 200 if 200 <= status < 300 else status


def _age_s(reply: dict[str, Any], then: datetime) -> float:
    """Seconds from `then` to the moment of the reply, both by the server's clock."""
    now = parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
    return max(0.0, (now - then).total_seconds())
