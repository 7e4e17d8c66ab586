"""Object stores: boto3, repeated with back-off while a failure may pass, and a line of ours for what does not.

`configure` says for the whole process how S3 is reached; what it leaves open comes from the environment.
"""

import math
import os
import random
import time
import uuid
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from mentalglm.config import S3Config
from mentalglm.errors import ConfigError, StorageError, UnusableStorageError
from mentalglm.storage.places import StoredFile, UnfinishedUpload, failure

_settings = S3Config()


def configure(settings: S3Config) -> None:
    """Sets how this process reaches S3 from now on. Each process of a job calls it with the job's `s3` section."""
    global _settings
    _settings = settings


def store() -> "S3":
    """The object store as it is configured now; one for each configuration."""
    return _store(resolved_settings())


def filesystem(uri: str) -> tuple[pafs.S3FileSystem, str]:
    """pyarrow's filesystem for an s3:// address, and the path in it. Its errors are pyarrow's own."""
    return _filesystem(resolved_settings()), "/".join(_bucket_and_key(uri)).rstrip("/")


def resolved_settings() -> S3Config:
    """The settings, with what they leave open taken from the environment."""
    environment = os.environ.get
    endpoint = _settings.endpoint or environment("AWS_ENDPOINT_URL_S3") or environment("AWS_ENDPOINT_URL") or None
    region = _settings.region or environment("AWS_REGION") or environment("AWS_DEFAULT_REGION") or None
    return _settings.model_copy(update={"endpoint": endpoint, "region": region})


@cache
def _filesystem(settings: S3Config) -> pafs.S3FileSystem:
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
def _store(settings: S3Config) -> "S3":
    return S3(settings)


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri[len("s3://") :].partition("/")
    if "@" in bucket:  # and the address is not quoted
        raise ConfigError(
            "an s3:// address holds a user name or password; take it out, and set AWS_ACCESS_KEY_ID or AWS_PROFILE"
        )
    return bucket, key


class S3:
    """What the functions of `mentalglm.storage` promise, by their names, for s3:// addresses. Threads may share it."""

    _PART_BYTES = 16 << 20
    _MAX_PARTS = 10_000  # S3's
    _PARTS_AT_ONCE = 4

    def __init__(self, settings: S3Config) -> None:
        self._settings = settings
        self._client = self._new_client()
        key = settings.sse_kms_key
        self._encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def read_bytes(self, uri: str) -> bytes | None:
        found = self.read_versioned(uri)
        return found and found[0]

    def read_versioned(self, uri: str) -> tuple[bytes, str] | None:
        reply = self._call("get_object", uri, expect={404}, with_body=True)
        return (reply["Body"], reply["ETag"]) if _status(reply) == 200 else None

    def read_chunks(self, uri: str) -> Iterator[bytes] | None:
        head = self._head(uri)
        if _status(head) != 200:
            return None
        return self._chunks(uri, head["ContentLength"], head["ETag"])

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
        return self._put(uri, data, {} if replace else _condition(None))

    def put_file(self, uri: str, source: Path, *, version: str | None, staging: str | None) -> bool:
        if source.stat().st_size <= self._PART_BYTES:
            return self._put(uri, source.read_bytes(), _condition(version))
        for attempt in range(self._settings.max_attempts):
            _back_off(attempt)
            if (written := self._upload(uri, source, version)) is not None:
                return written
        raise failure(uri, "other writers were in the way at every attempt", "run the same command again")

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
                    age_s = _age_s(reply, each["LastModified"])
                    yield StoredFile(each["Key"][len(prefix) :], each["Size"], age_s, each["ETag"])
            if not reply.get("IsTruncated"):
                return
            position = {"ContinuationToken": reply["NextContinuationToken"]}

    def _chunks(self, uri: str, size: int, version: str) -> Iterator[bytes]:
        for start in range(0, size, self._PART_BYTES):
            end = min(start + self._PART_BYTES, size) - 1
            reply = self._call(
                "get_object", uri, expect={404, 412}, with_body=True, Range=f"bytes={start}-{end}", IfMatch=version
            )
            if _status(reply) != 200:
                raise failure(uri, "it was replaced while it was read", "run the same command again")
            yield reply["Body"]

    def _put(self, uri: str, data: bytes, condition: dict[str, Any]) -> bool:
        write_id = uuid.uuid4().hex
        refusals = {404, 412} if "IfMatch" in condition else {412}
        reply = self._call("put_object", uri, expect=refusals, Body=data, **self._object_options(write_id), **condition)
        if _status(reply) in refusals:
            return self._is_ours(uri, write_id)
        self._check_encryption(uri, reply)
        return True

    def _upload(self, uri: str, source: Path, version: str | None) -> bool | None:
        """A multipart upload. Like `put_file`, but None where the server asks to begin again."""
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
                **_condition(version),
            )
            status = _status(reply)
            if status == 200:
                # Not every server repeats it in the reply that ends an upload.
                self._check_encryption(uri, reply if "ServerSideEncryption" in reply else self._head(uri))
                return True
            if self._is_ours(uri, write_id):
                return True
            if status == 404 and self._head(uri).get("ETag") == version:  # nothing but the upload has changed
                raise failure(uri, "its upload was removed while it went on", "run the same command again")
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
            raise failure(
                uri,
                "the server did not encrypt it with s3.sse_kms_key and was told to delete it",
                "use a service with SSE-KMS, or take s3.sse_kms_key out of the config",
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
        raise failure(uri, f"no success in {attempts} attempts ({problem})", f"{fix} and run the same command again")

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
    elif code == "NoSuchUpload":
        what, fix = "its upload was removed while it went on", "run the same command again"
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
    return failure(uri, f"{what} ({detail})", fix, kind)


def _back_off(attempt: int) -> None:
    """Waits before attempt number `attempt`, from 0: not at all, then 0.1 to 0.2 s, doubling up to 20 s."""
    if attempt:
        time.sleep(min(20.0, 0.1 * 2.0**attempt) * random.uniform(0.5, 1.0))  # noqa: S311 - so that clients spread


def _condition(version: str | None) -> dict[str, Any]:
    """What a write sends to take the place of this version alone; None: of nothing."""
    return {"IfMatch": version} if version is not None else {"IfNoneMatch": "*"}


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
