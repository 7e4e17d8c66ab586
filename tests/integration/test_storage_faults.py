"""Storage while networks break, servers refuse and disks fill up: a real S3 server behind a proxy with faults."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mentalglm import storage
from mentalglm.config import S3Config
from mentalglm.errors import ConfigError, InterruptedRunError, StorageError, UnusableStorageError
from tests.integration.conftest import (
    ACCESS_KEY,
    NUM_UPLOADS_AT_ONCE,
    READER_ACCESS_KEY,
    READER_SECRET_KEY,
    SECRET_KEY,
    run_s3_server,
)
from tests.integration.fault_proxy import FaultKind, FaultProxy

LARGE = os.urandom(17 << 20)  # two parts


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


def puts(root: str, large: Path) -> bool:
    storage.put(f"{root}/there", b"x")
    return storage.read_bytes(f"{root}/there") == b"x"


def puts_if_absent(root: str, large: Path) -> bool:
    return storage.put_if_absent(f"{root}/new", b"x") and storage.read_bytes(f"{root}/new") == b"x"


def puts_file_if_unchanged(root: str, large: Path) -> bool:
    return replaces(f"{root}/there", large) and storage.read_bytes(f"{root}/there") == LARGE


def replaces(uri: str, source: Path) -> bool:
    found = storage.read_versioned(uri)
    assert found is not None
    return storage.put_file_if_unchanged(uri, source, found[1], "")


def puts_file_if_absent(root: str, large: Path) -> bool:
    return storage.put_file_if_absent(f"{root}/new", large) and storage.read_bytes(f"{root}/new") == LARGE


def downloads(root: str, large: Path) -> bool:
    target = large.with_name("downloaded")
    return storage.download(f"{root}/there", target) and target.read_bytes() == b"there"


def deletes(root: str, large: Path) -> bool:
    storage.delete(f"{root}/there")
    return not storage.has_files(root)


def aborts(root: str, large: Path) -> bool:
    uploads = list(storage.list_unfinished_uploads(root))
    for upload in uploads:
        storage.abort_upload(upload)
    return len(uploads) == 1 and not list(storage.list_unfinished_uploads(root))


# What each function asks the server for, and whether it did what it says. `there` is in the folder, and an upload that
# nobody ended; `new` is not.
Action = Callable[[str, Path], bool]
ACTIONS: dict[tuple[str, str], Action] = {
    ("read_bytes", "GetObject"): lambda root, _: storage.read_bytes(f"{root}/there") == b"there",
    ("download", "GetObject"): downloads,
    ("exists", "HeadObject"): lambda root, _: storage.exists(f"{root}/there") and not storage.exists(f"{root}/new"),
    ("age_s", "HeadObject"): lambda root, _: 0 <= (storage.age_s(f"{root}/there") or 0) < 60,
    ("list_names", "ListObjectsV2"): lambda root, _: storage.list_names(root) == ["there"],
    ("list_files", "ListObjectsV2"): lambda root, _: [each.path for each in storage.list_files(root)] == ["there"],
    ("has_files", "ListObjectsV2"): lambda root, _: storage.has_files(root),
    ("put", "PutObject"): puts,
    ("put_if_absent", "PutObject"): puts_if_absent,
    ("put_file_if_unchanged", "CompleteMultipartUpload"): puts_file_if_unchanged,
    ("put_file_if_absent", "CreateMultipartUpload"): puts_file_if_absent,
    ("put_file_if_absent", "UploadPart"): puts_file_if_absent,
    ("put_file_if_absent", "CompleteMultipartUpload"): puts_file_if_absent,
    ("delete", "DeleteObject"): deletes,
    ("abort_upload", "ListMultipartUploads"): aborts,
    ("abort_upload", "AbortMultipartUpload"): aborts,
}
# Operations whose reply has no body.
WITHOUT_BODY = ("HeadObject", "PutObject", "UploadPart", "DeleteObject", "AbortMultipartUpload")
OF_ACTIONS = pytest.mark.parametrize(
    ("operation", "action"), [(key[1], each) for key, each in ACTIONS.items()], ids=["-".join(key) for key in ACTIONS]
)


@pytest.fixture
def root(s3: str) -> str:
    """A folder with the object `there` and an upload that nobody ended."""
    storage.put(f"{s3}/there", b"there")
    bucket, _, key = s3.removeprefix("s3://").partition("/")
    raw_client().create_multipart_upload(Bucket=bucket, Key=f"{key}/dead")
    return s3


@cache
def raw_client() -> Any:
    """The server as others see it, without what we make of it."""
    import boto3

    return boto3.client("s3")


@pytest.mark.parametrize(
    ("kind", "operation", "action"),
    [
        pytest.param(kind, operation, action, id=f"{kind}-{name}-{operation}")
        for kind in ("slow_down", "reset", "lost_reply", "delay", "truncated")
        for (name, operation), action in ACTIONS.items()
        if kind != "truncated" or operation not in WITHOUT_BODY
    ],
)
def test_what_passes_is_waited_for(
    root: str, large: Path, s3_proxy: FaultProxy, operation: str, action: Action, kind: FaultKind
) -> None:
    storage.configure(S3Config(endpoint=s3_proxy.url, read_timeout_s=1.5))
    fault = s3_proxy.inject(kind, operation, seconds=2)
    again = s3_proxy.inject("internal_error", operation)
    assert action(root, large)
    assert fault.num_done == again.num_done == 1
    # An upload whose begin was not heard of is another writer's to us: gc finds it.
    is_unheard = operation == "CreateMultipartUpload" and kind in ("lost_reply", "delay", "truncated")
    begun = {upload.uri for upload in storage.list_unfinished_uploads(root)} - {f"{root}/dead"}
    assert begun == ({f"{root}/new"} if is_unheard else set())


@OF_ACTIONS
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("slow_down", r"no success in 2 attempts \((SlowDown \(|503 \()"),
        ("reset", "no success in 2 attempts"),
        ("expired_token", "credentials have expired|400"),  # the reply to a HEAD has no body to say why
    ],
    ids=["slow_down", "reset", "expired_token"],
)
def test_what_does_not_pass_is_told_in_a_line_and_interrupts_the_run(
    root: str, large: Path, s3_proxy: FaultProxy, operation: str, action: Action, kind: FaultKind, message: str
) -> None:
    storage.configure(S3Config(endpoint=s3_proxy.url, max_attempts=2))
    fault = s3_proxy.inject(kind, operation, times=1000)
    with pytest.raises(StorageError, match=message) as caught:
        action(root, large)
    assert fault.num_done >= 1
    assert isinstance(caught.value, InterruptedRunError)
    assert not isinstance(caught.value, OSError)  # which a run's start takes for a wrong address
    assert_can_be_shown(caught.value, root)
    if operation in ("UploadPart", "CompleteMultipartUpload"):
        assert [upload.uri for upload in storage.list_unfinished_uploads(root)] == [f"{root}/dead"]


def assert_can_be_shown(error: Exception, uri: str) -> None:
    line = str(error)
    assert line.startswith(uri)
    assert "\n" not in line
    assert ";" in line  # what happened; the fix
    for secret in (ACCESS_KEY, SECRET_KEY, READER_ACCESS_KEY, READER_SECRET_KEY):
        assert secret not in line.replace(uri, "")


def test_an_outage_of_seconds_is_outlasted_by_many_threads_at_once(s3: str, s3_proxy: FaultProxy) -> None:
    storage.put(f"{s3}/there", b"there")
    s3_proxy.go_down(12)
    started = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(lambda _: storage.read_bytes(f"{s3}/there"), range(64))) == {b"there"}
        assert time.monotonic() - started > 11
        assert all(pool.map(lambda n: storage.put_if_absent(f"{s3}/{n}", b""), range(32)))


def test_a_server_that_is_not_there_is_told_with_its_address(s3: str) -> None:
    storage.configure(S3Config(endpoint="http://127.0.0.1:9", max_attempts=2))
    try:
        with pytest.raises(StorageError, match=r"EndpointConnectionError.*http://127\.0\.0\.1:9") as caught:
            storage.put(f"{s3}/x", b"")
        assert_can_be_shown(caught.value, s3)
    finally:
        storage.configure(S3Config())


@pytest.mark.parametrize("kind", ["lost_reply", "conflict", "slow_down"])
def test_exactly_one_of_many_writers_wins_whatever_they_hear(s3: str, s3_proxy: FaultProxy, kind: FaultKind) -> None:
    fault = s3_proxy.inject(kind, "PutObject", times=10)
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda n: storage.put_if_absent(f"{s3}/one", f"writer {n}".encode()), range(16)))
    assert fault.num_done == 10
    assert won.count(True) == 1
    assert storage.read_bytes(f"{s3}/one") == f"writer {won.index(True)}".encode()


@pytest.mark.parametrize("kind", ["lost_reply", "conflict"])
def test_exactly_one_of_many_uploads_wins_whatever_they_hear(
    s3: str, s3_proxy: FaultProxy, tmp_path: Path, kind: FaultKind
) -> None:
    for number in range(4):
        (tmp_path / str(number)).write_bytes(bytes([number]) * len(LARGE))
    fault = s3_proxy.inject(kind, "CompleteMultipartUpload", times=3)
    with ThreadPoolExecutor(NUM_UPLOADS_AT_ONCE) as pool:
        won = list(pool.map(lambda number: storage.put_file_if_absent(f"{s3}/one", tmp_path / str(number)), range(4)))
    assert fault.num_done == 3
    assert won.count(True) == 1
    assert storage.read_bytes(f"{s3}/one") == bytes([won.index(True)]) * len(LARGE)
    assert not list(storage.list_unfinished_uploads(s3))


@pytest.mark.parametrize("kind", ["lost_reply", "conflict"])
@pytest.mark.parametrize("num_bytes", [1000, len(LARGE)], ids=["small", "parts"])
def test_exactly_one_of_many_who_replace_a_version_wins_whatever_they_hear(
    s3: str, s3_proxy: FaultProxy, tmp_path: Path, num_bytes: int, kind: FaultKind
) -> None:
    storage.put(f"{s3}/one", b"old")
    _, version = storage.read_versioned(f"{s3}/one") or (b"", "")
    for number in range(4):
        (tmp_path / str(number)).write_bytes(bytes([number]) * num_bytes)
    fault = s3_proxy.inject(kind, "PutObject" if num_bytes == 1000 else "CompleteMultipartUpload", times=3)

    def replace(number: int) -> bool:
        return storage.put_file_if_unchanged(f"{s3}/one", tmp_path / str(number), version, "")

    with ThreadPoolExecutor(4 if num_bytes == 1000 else NUM_UPLOADS_AT_ONCE) as pool:
        won = list(pool.map(replace, range(4)))
    assert fault.num_done == 3
    assert won.count(True) == 1
    assert storage.read_bytes(f"{s3}/one") == bytes([won.index(True)]) * num_bytes
    assert not list(storage.list_unfinished_uploads(s3))


def test_an_error_in_the_body_of_a_good_reply_is_no_success(s3: str, s3_proxy: FaultProxy, large: Path) -> None:
    fault = s3_proxy.inject("late_error", "CompleteMultipartUpload", times=2)
    assert storage.put_file_if_absent(f"{s3}/new", large)
    assert fault.num_done == 2
    assert storage.read_bytes(f"{s3}/new") == LARGE


def test_an_upload_that_someone_removes_is_an_error_and_no_success(s3: str, s3_proxy: FaultProxy, large: Path) -> None:
    fault = s3_proxy.inject("delay", "UploadPart", times=2, seconds=2)
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(storage.put_file_if_absent, f"{s3}/new", large)
        wait_until(lambda: fault.num_done == 2)
        for each in storage.list_unfinished_uploads(s3):
            storage.abort_upload(each)
        with pytest.raises(StorageError, match="its upload was removed while it went on"):
            upload.result()
    assert not storage.exists(f"{s3}/new")


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_replaced_while_an_upload_goes_on_stays(s3: str, s3_proxy: FaultProxy, large: Path) -> None:
    storage.put(f"{s3}/there", b"old")
    fault = s3_proxy.inject("delay", "UploadPart", times=2, seconds=2)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(replaces, f"{s3}/there", large)
        wait_until(lambda: fault.num_done == 2)
        storage.put(f"{s3}/there", b"new")
        assert late.result() is False
    assert storage.read_bytes(f"{s3}/there") == b"new"
    assert not list(storage.list_unfinished_uploads(s3))


def test_a_large_file_is_downloaded_although_a_piece_breaks_off(
    s3: str, s3_proxy: FaultProxy, large: Path, tmp_path: Path
) -> None:
    storage.put_file_if_absent(f"{s3}/large", large)
    fault = s3_proxy.inject("truncated", "GetObject")
    assert storage.download(f"{s3}/large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LARGE
    assert fault.num_done == 1


def test_a_file_that_is_replaced_while_it_is_downloaded_is_no_mixture(s3: str, large: Path, tmp_path: Path) -> None:
    storage.put_file_if_absent(f"{s3}/large", large)
    chunks = storage.read_chunks(f"{s3}/large")
    assert chunks is not None
    assert next(chunks) == LARGE[: 16 << 20]
    storage.put(f"{s3}/large", LARGE[::-1])
    with pytest.raises(StorageError, match="was replaced while it was read; run the same command again"):
        next(chunks)


def test_a_killed_upload_leaves_no_object_and_parts_that_can_be_removed(
    s3: str, s3_proxy: FaultProxy, large: Path
) -> None:
    fault = s3_proxy.inject("delay", "UploadPart", times=2, seconds=60)
    program = f"from mentalglm import storage; storage.put_file_if_absent('{s3}/new', '{large}')"
    environment = {**os.environ, "AWS_ENDPOINT_URL": s3_proxy.url}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as process:
        wait_until(lambda: fault.num_done == 2)
        process.send_signal(signal.SIGKILL)
    assert not storage.exists(f"{s3}/new")
    assert not storage.has_files(s3)
    [upload] = storage.list_unfinished_uploads(s3)
    assert upload.uri == f"{s3}/new"
    assert 0 <= upload.age_s < 60
    assert not list(storage.list_unfinished_uploads(f"{s3}/ne"))  # no folder of that name
    storage.abort_upload(upload)
    storage.abort_upload(upload)
    assert not list(storage.list_unfinished_uploads(s3))


def test_a_killed_copy_leaves_no_file_and_a_rest_that_can_be_removed(tmp_path: Path) -> None:
    pipe, run = tmp_path / "pipe", tmp_path / "run"
    os.mkfifo(pipe)
    program = f"from mentalglm import storage; storage.put_file_if_absent('{run}/data/new', '{pipe}')"
    with subprocess.Popen([sys.executable, "-c", program]) as process, pipe.open("wb", buffering=0) as source:
        source.write(b"x" * 1000)
        wait_until(lambda: any(run.rglob("*.tmp")))
        process.send_signal(signal.SIGKILL)
    assert not storage.exists(f"{run}/data/new")
    [upload] = storage.list_unfinished_uploads(str(run))
    assert 0 <= upload.age_s < 60
    storage.abort_upload(upload)
    assert not storage.has_files(str(run))


def test_ages_are_told_by_the_clock_of_the_server(root: str, s3_proxy: FaultProxy) -> None:
    fault = s3_proxy.inject("other_clock", times=3, seconds=3600)
    [upload] = storage.list_unfinished_uploads(root)
    [file] = storage.list_files(root)
    for age in (storage.age_s(f"{root}/there"), file.age_s, upload.age_s):
        assert age is not None
        assert 3600 <= age < 3700
    assert fault.num_done == 3


def test_what_is_written_is_encrypted_with_the_key_of_the_config(s3: str, large: Path) -> None:
    storage.configure(S3Config(sse_kms_key="posts"))
    try:
        storage.put(f"{s3}/put", b"x")
        assert storage.put_if_absent(f"{s3}/put_if_absent", b"x")
        assert storage.put_file_if_absent(f"{s3}/put_file", large)
    finally:
        storage.configure(S3Config())
    bucket, _, key = s3.removeprefix("s3://").partition("/")
    for name in ("put", "put_if_absent", "put_file"):
        head = raw_client().head_object(Bucket=bucket, Key=f"{key}/{name}")
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "posts")
    assert storage.read_bytes(f"{s3}/put_file") == LARGE


@pytest.mark.parametrize("name", ["put", "put_if_absent", "put_file_if_absent"])
def test_a_write_that_the_server_does_not_encrypt_is_an_error_and_does_not_stay(
    s3: str, s3_proxy: FaultProxy, large: Path, name: str
) -> None:
    storage.configure(S3Config(endpoint=s3_proxy.url, sse_kms_key="posts"))
    fault = s3_proxy.inject("no_encryption", times=1000)
    with pytest.raises(StorageError, match=r"did not encrypt.*s3\.sse_kms_key") as caught:
        getattr(storage, name)(f"{s3}/x", large if "file" in name else b"x")
    assert fault.num_done >= 1
    assert_can_be_shown(caught.value, s3)
    assert not storage.has_files(s3)
    assert not list(storage.list_unfinished_uploads(s3))


def test_a_server_without_kms_refuses_and_nothing_is_written_plain(s3: str, tmp_path: Path, large: Path) -> None:
    (tmp_path / "weed").mkdir()
    writes: list[Callable[[], object]] = [
        lambda: storage.put(f"{s3}/x", b"x"),
        lambda: storage.put_file_if_absent(f"{s3}/y", large),
    ]
    with run_s3_server(tmp_path / "weed", has_kms=False) as endpoint:
        try:
            storage.configure(S3Config(endpoint=endpoint, sse_kms_key="posts", max_attempts=2))
            for write in writes:
                with pytest.raises(StorageError, match=r"whether the service has s3\.sse_kms_key") as caught:
                    write()
                assert_can_be_shown(caught.value, s3)
            storage.configure(S3Config(endpoint=endpoint))
            assert not storage.has_files(s3)
        finally:
            storage.configure(S3Config())


@pytest.fixture
def new_client(s3_proxy: FaultProxy) -> None:
    """The test's client reads the credentials anew: clients are kept by settings, and these nobody had before."""
    storage.configure(S3Config(endpoint=s3_proxy.url, read_timeout_s=60 + time.monotonic(), max_attempts=3))


def test_who_may_only_read_is_told_so_and_the_start_of_a_run_takes_it_for_a_wrong_address(
    root: str, large: Path, new_client: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET_KEY)
    assert storage.read_bytes(f"{root}/there") == b"there"
    writes: list[Callable[[], object]] = [
        lambda: storage.put(f"{root}/x", b"x"),
        lambda: storage.put_if_absent(f"{root}/x", b"x"),
        lambda: storage.put_file_if_absent(f"{root}/x", large),
        lambda: storage.delete(f"{root}/there"),
    ]
    for write in writes:
        with pytest.raises(UnusableStorageError, match=r"no permission \(AccessDenied, HTTP 403\); allow") as caught:
            write()
        assert isinstance(caught.value, OSError)
        assert_can_be_shown(caught.value, root)
    assert storage.list_names(root) == ["there"]


@pytest.mark.parametrize(
    ("key", "secret", "code"),
    [
        ("nobody-of-that-name", SECRET_KEY, "InvalidAccessKeyId"),
        (ACCESS_KEY, "anothersecret", "SignatureDoesNotMatch"),
        (None, None, "NoCredentialsError"),
    ],
    ids=["unknown", "wrong", "none"],
)
def test_wrong_credentials_are_told_without_quoting_them(
    root: str, new_client: None, monkeypatch: pytest.MonkeyPatch, key: str | None, secret: str | None, code: str
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in (("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(StorageError, match=rf"no valid credentials \({code}.*; check AWS_ACCESS_KEY_ID") as caught:
        storage.read_bytes(f"{root}/there")
    assert not isinstance(caught.value, OSError)
    for value in (key, secret):
        assert value is None or value not in str(caught.value)


def test_credentials_that_are_renewed_in_their_file_are_read_again_when_the_old_ones_expire(
    s3: str, s3_proxy: FaultProxy, new_client: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(key: str, secret: str) -> None:
        lines = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        (tmp_path / "credentials").write_text(lines)

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    write(READER_ACCESS_KEY, READER_SECRET_KEY)
    assert storage.read_bytes(f"{s3}/x") is None
    write(ACCESS_KEY, SECRET_KEY)
    with pytest.raises(UnusableStorageError):
        storage.put(f"{s3}/x", b"x")
    fault = s3_proxy.inject("expired_token", "PutObject")
    storage.put(f"{s3}/x", b"x")
    assert fault.num_done == 1


def test_a_bucket_that_is_not_there_is_named(s3: str, s3_proxy: FaultProxy, large: Path) -> None:
    reads: list[Callable[[str], object]] = [
        storage.read_bytes,
        storage.list_names,
        lambda uri: list(storage.list_files(uri)),
        lambda uri: list(storage.list_unfinished_uploads(uri)),
    ]
    for read in reads:
        with pytest.raises(UnusableStorageError, match=r"no bucket no-such-bucket-here .*s3\.endpoint"):
            read("s3://no-such-bucket-here/run/x")
    # This server makes the bucket of a write, if it may; AWS answers as to a read.
    fault = s3_proxy.inject("no_bucket", times=3)
    writes: list[Callable[[str], object]] = [
        lambda uri: storage.put(uri, b""),
        lambda uri: storage.put_if_absent(uri, b""),
        lambda uri: storage.put_file_if_absent(uri, large),
    ]
    for write in writes:
        with pytest.raises(UnusableStorageError, match=r"no bucket scored .*s3\.endpoint"):
            write(f"{s3}/x")
    assert fault.num_done == 3


def test_pyarrow_and_boto3_go_to_the_configured_service(
    root: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    filesystem, path = storage.filesystem(f"{root}/there")
    with filesystem.open_input_stream(path) as stream:
        assert stream.read() == b"there"
    assert s3_proxy.num_requests["GetObject"] == 1
    assert storage.read_bytes(f"{root}/there") == b"there"
    assert s3_proxy.num_requests["GetObject"] == 2


FULL_DISK = """
import sys
from pathlib import Path
from typing import Any
from mentalglm import storage
from mentalglm.errors import StorageError
root = sys.argv[1]
Path(sys.argv[2]).write_bytes(bytes(3_000_000))
storage.put_if_absent(f"{root}/small", b"kept")
for write in (
    lambda: storage.put(f"{root}/x", bytes(3_000_000)),
    lambda: storage.put(f"{root}/small", bytes(3_000_000)),
    lambda: storage.put_if_absent(f"{root}/x", bytes(3_000_000)),
    lambda: storage.put_file_if_absent(f"{root}/x", sys.argv[2], f"{root}/staging"),
):
    try:
        write()
    except StorageError as error:
        assert not isinstance(error, OSError)
        print(error)
assert [file.path for file in storage.list_files(root)] == ["small"]
assert storage.read_bytes(f"{root}/small") == b"kept"
"""


def test_a_full_disk_interrupts_the_run_and_keeps_what_was_there(tmp_path: Path) -> None:
    """A file system of 2 MB, in a mount namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=2m none "$0" && exec "$@"', str(disk)]
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no mounts in namespaces here")
    command = [*mount, sys.executable, "-c", FULL_DISK, f"{disk}/run", f"{tmp_path}/source"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    for line in lines:
        assert line.startswith(f"{disk}/run/")
        assert line.endswith("no space left on device; make room on that disk and run the same command again")


def test_a_file_size_limit_interrupts_the_run_and_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(3_000_000))
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000,) * 2)\n"
    program = limited + FULL_DISK.replace("Path(sys.argv[2]).write_bytes(bytes(3_000_000))", "")
    command = [sys.executable, "-c", program, f"{tmp_path}/run", f"{tmp_path}/source"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("file too large; make room on that disk") == 4, done.stderr


@pytest.mark.parametrize("name", ["put", "put_if_absent", "read_bytes", "list_names", "put_file_if_absent"])
def test_a_file_where_a_folder_should_be_is_an_unusable_place(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    uri = f"{tmp_path}/file/x"
    data = {"put": (b"",), "put_if_absent": (b"",), "put_file_if_absent": (f"{tmp_path}/file",)}.get(name, ())
    with pytest.raises(UnusableStorageError, match=r"file/x: cannot be used \(.*; name a folder"):
        getattr(storage, name)(uri, *data)


def test_an_address_with_credentials_is_refused_and_not_quoted() -> None:
    for call in (storage.read_bytes, storage.filesystem, storage.list_names):
        with pytest.raises(ConfigError, match="holds a user name or password") as caught:
            call("s3://AKIAKEY:secret@bucket/run")
        assert "secret@" not in str(caught.value)
