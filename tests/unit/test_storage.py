"""How S3 is configured, and what only a mock shows of a disk."""

import errno
import os
import re
import threading
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from mentalglm import storage
from mentalglm.config import S3Config, ScoreConfig, load_config, validate
from mentalglm.errors import ConfigError, StorageError, UnusableStorageError
from mentalglm.storage import disk, s3

SECRET = "canary-secret-83"
SCORE = {"input": {"uri": "posts.csv"}, "output": {"uri": "scored"}, "tasks": ["suicide_risk"]}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"s3": {"endpoint": f"https://user:{SECRET}@minio.lab:9000"}}, "s3.endpoint"),
        ({"s3": {"endpoint": f"https://minio.lab:9000/?key={SECRET}@"}}, "s3.endpoint"),
        ({"input": {"uri": f"s3://AKIAKEY:{SECRET}@bucket/posts"}}, "input.uri"),
        ({"output": {"uri": f"S3://AKIAKEY:{SECRET}@bucket/run"}}, "output.uri"),
    ],
)
def test_credentials_in_an_address_are_refused_and_not_quoted(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"score\.yaml: {field}") as caught:
        validate(ScoreConfig, {**SCORE, **changes}, "score.yaml")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["minio.lab:9000", "ftp://minio.lab", "https://", "https://minio.lab/bucket", ""])
def test_an_endpoint_is_a_host_and_a_port(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"endpoint = .*(https://minio|at least 1 character|buckets are named)"):
        validate(S3Config, {"endpoint": endpoint}, "score.yaml")


def test_an_address_may_hold_an_at_sign_where_no_credentials_stand(tmp_path: Path) -> None:
    config = {**SCORE, "input": {"uri": "s3://bucket/posts@2026"}, "output": {"uri": "/data/me@lab"}}
    assert validate(ScoreConfig, config, "score.yaml").input.uri == "s3://bucket/posts@2026"
    (tmp_path / "score.yaml").write_text(
        "input: {uri: a}\noutput: {uri: b}\ntasks: [suicide_risk]\ns3: {sse_kms_key: alias/posts}\n"
    )
    overrides = ["s3.max_attempts=3", "s3.endpoint=https://minio.lab:9000/"]
    settings = load_config(ScoreConfig, tmp_path / "score.yaml", overrides).s3
    assert settings == S3Config(sse_kms_key="alias/posts", max_attempts=3, endpoint="https://minio.lab:9000")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/out/data/task=t/author=u1/day=2/part-0.parquet", "/out/data/task=t/author=.../day=.../part-0.parquet"),
        ("s3://b/out/data/task=t/author=u1", "s3://b/out/data/task=t/author=..."),
        ("file:///out/data/task=t/part-0.parquet", "file:///out/data/task=t/part-0.parquet"),
        ("/data/run=7/_run/shards/task=t/0.parquet", "/data/run=7/_run/shards/task=t/0.parquet"),
    ],
)
def test_a_message_names_a_place_without_the_values_that_its_folders_are_named_by(uri: str, message: str) -> None:
    assert storage.shown(uri) == message


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_no_error_quotes_a_value_that_a_folder_of_the_data_is_named_by(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    storage.configure(S3Config(endpoint="http://127.0.0.1:9", region="us-east-1", max_attempts=1))
    root = "s3://scored/run" if place == "s3" else str(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "task=t").write_bytes(b"")
    folder = f"{root}/data/task=t/author={SECRET}"
    calls: list[Callable[[], object]] = [
        lambda: storage.read_bytes(f"{folder}/part"),
        lambda: storage.read_versioned(f"{folder}/part"),
        lambda: storage.put(f"{folder}/part", b""),
        lambda: storage.put_if_absent(f"{folder}/part", b""),
        lambda: storage.put_file_if_absent(f"{folder}/part", tmp_path / "data" / "task=t"),
        lambda: storage.put_file_if_unchanged(f"{folder}/part", tmp_path / "data" / "task=t", "1", root),
        lambda: storage.delete(f"{folder}/part"),
        lambda: storage.list_names(folder),
    ]
    try:
        for call in calls:
            with pytest.raises(StorageError, match=r"data/task=t/author=\.\.\.") as caught:
                call()
            assert SECRET not in str(caught.value)
    finally:
        storage.configure(S3Config())


class NotSentError(Exception):
    """The address that a request would have gone to."""


def refuse_to_send(request: Any, **_: object) -> None:
    raise NotSentError(request.url)


@pytest.mark.parametrize(
    ("settings", "environment", "host"),
    [
        ({}, {}, "scored.s3.amazonaws.com/run"),
        ({"region": "eu-north-1"}, {}, "scored.s3.eu-north-1.amazonaws.com/run"),
        ({}, {"AWS_REGION": "eu-north-1"}, "scored.s3.eu-north-1.amazonaws.com/run"),
        ({"region": "cn-north-1"}, {"AWS_REGION": "eu-north-1"}, "scored.s3.cn-north-1.amazonaws.com.cn/run"),
        ({"addressing_style": "path", "region": "eu-north-1"}, {}, "s3.eu-north-1.amazonaws.com/scored/run"),
        ({"endpoint": "https://minio.lab:9000"}, {}, "minio.lab:9000/scored/run"),
        ({}, {"AWS_ENDPOINT_URL": "https://minio.lab:9000"}, "minio.lab:9000/scored/run"),
        ({}, {"AWS_ENDPOINT_URL": "https://no.lab", "AWS_ENDPOINT_URL_S3": "https://s3.lab"}, "s3.lab/scored/run"),
        ({"endpoint": "https://oss.lab"}, {"AWS_ENDPOINT_URL": "https://no.lab"}, "oss.lab/scored/run"),
        ({"endpoint": "https://oss.lab", "addressing_style": "virtual"}, {}, "scored.oss.lab/run"),
    ],
)
def test_the_config_says_where_s3_is_and_the_environment_what_it_leaves_open(
    settings: dict[str, Any], environment: dict[str, str], host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    storage.configure(S3Config(**settings))
    try:
        resolved = s3.resolved_settings()
        client = s3.store()._client
        client.meta.events.register("before-send.s3.GetObject", refuse_to_send)
        with pytest.raises(NotSentError, match=rf"^https://{re.escape(host)}$"):
            client.get_object(Bucket="scored", Key="run")
        filesystem, path = storage.filesystem("s3://scored/run/")
        options = filesystem.__reduce__()[1][0]
        assert path == "scored/run"
        assert options["endpoint_override"] == (resolved.endpoint or "").removeprefix("https://")
        assert options["force_virtual_addressing"] == (resolved.addressing_style == "virtual")
        assert resolved.region is None or options["region"] == resolved.region
    finally:
        storage.configure(S3Config())


def test_clients_are_kept_by_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://minio.lab:9000")
    first = s3.store()
    assert s3.store() is first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://oss.lab")
    assert s3.store() is not first


def test_a_link_that_was_made_and_reported_as_failed_counts_as_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As NFS does when the reply is lost and the request repeated."""
    link = os.link

    def link_and_lose_the_reply(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_and_lose_the_reply)
    assert storage.put_if_absent(f"{tmp_path}/commit.json", b"ours")
    assert not storage.put_if_absent(f"{tmp_path}/commit.json", b"theirs")
    assert storage.read_bytes(f"{tmp_path}/commit.json") == b"ours"


def test_a_rename_that_was_done_and_reported_as_failed_counts_as_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As NFS does when the reply is lost and the request repeated."""
    rename = Path.replace

    def rename_and_lose_the_reply(source: Path, target: Path) -> None:
        rename(source, target)
        rename(source, target)

    (tmp_path / "new").write_bytes(b"new")
    storage.put(f"{tmp_path}/part", b"old")
    _, version = storage.read_versioned(f"{tmp_path}/part") or (b"", "")
    monkeypatch.setattr(Path, "replace", rename_and_lose_the_reply)
    assert storage.put_file_if_unchanged(f"{tmp_path}/part", tmp_path / "new", version, f"{tmp_path}/staging")
    assert storage.read_bytes(f"{tmp_path}/part") == b"new"


def test_new_folders_are_on_the_disk_before_the_name_of_a_file_in_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    synced: list[Path] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    run, staging = tmp_path / "a" / "run", tmp_path / "a" / "run" / "tmp"
    assert storage.put_if_absent(f"{run}/commits/1", b"x", str(staging))
    *folders, file, last = synced
    assert folders == [tmp_path, tmp_path / "a", run, run]
    assert file.parent == staging
    assert last == run / "commits"
    synced.clear()
    assert storage.put_if_absent(f"{run}/commits/2", b"x", str(staging))
    assert [path.parent for path in synced] == [staging, run]


class Writer(threading.Thread):
    """Replaces a version of a file, and pauses before each of the steps that others can see."""

    STEPS = ((disk.uuid, "uuid4"), (Path, "iterdir"), (Path, "unlink"), (disk, "_standing_version"), (Path, "replace"))

    def __init__(self, folder: Path, version: str, content: bytes) -> None:
        super().__init__(daemon=True)
        self._folder, self._version, self._content = folder, version, content
        self._turn, self._pause = threading.Semaphore(0), threading.Semaphore(0)
        self.has_won: bool | None = None

    @classmethod
    def pausing(cls, step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if isinstance(writer := threading.current_thread(), cls):
                writer._pause.release()
                writer._turn.acquire()
            return step(*arguments, **options)

        return call

    def go_on(self) -> None:
        """Takes the step that it paused before, and whatever follows up to the next."""
        if self.has_won is None:
            self._turn.release()
            assert self._pause.acquire(timeout=10)

    def start(self) -> None:
        super().start()
        assert self._pause.acquire(timeout=10)

    def run(self) -> None:
        source = self._folder.parent / self._content.decode()
        self.has_won = storage.put_file_if_unchanged(
            str(self._folder / "part"), source, self._version, str(self._folder / "staging")
        )
        self._pause.release()


def test_of_two_who_replace_the_same_version_never_both_succeed_whichever_sleeps_when(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every order of their steps. The disk is real, but not waited for."""
    folder, num_steps = tmp_path / "run", len(Writer.STEPS) + 1
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for where, name in Writer.STEPS:
        monkeypatch.setattr(where, name, Writer.pausing(getattr(where, name)))
    winners = set()
    for turns in combinations(range(2 * num_steps), num_steps):
        storage.put(f"{folder}/part", b"old")
        _, version = storage.read_versioned(f"{folder}/part") or (b"", "")
        writers = [Writer(folder, version, name) for name in (b"first", b"second")]
        for writer in writers:
            writer.start()
        for turn in range(2 * num_steps):
            writers[turn in turns].go_on()
        for writer in writers:
            while writer.has_won is None:
                writer.go_on()
        won = [writer._content for writer in writers if writer.has_won]
        assert [storage.read_bytes(f"{folder}/part")] == (won or [b"old"]), turns
        assert sorted(file.path for file in storage.list_files(str(folder))) == ["part"]
        winners.update(won)
    assert winners == {b"first", b"second"}


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EDQUOT, StorageError, "make room on that disk"),
        (errno.EIO, StorageError, "see to that disk and run the same command again"),
        (errno.EROFS, UnusableStorageError, "name a folder that this user, on every node, may write"),
        (errno.EOPNOTSUPP, UnusableStorageError, "name a folder"),
    ],
)
def test_what_a_disk_says_is_told_with_the_place_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, kind: type[StorageError], words: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=rf"^{tmp_path}/x: .*; {words}") as caught:
        storage.put(f"{tmp_path}/x", b"")
    assert type(caught.value) is kind
    assert caught.value.exit_code == 75
    assert list(tmp_path.iterdir()) == []
