"""Storage on a disk and on a real S3 server: the same promises on both."""

import os
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mentalglm import storage
from mentalglm.errors import ConfigError, UnusableStorageError
from tests.integration.conftest import NUM_UPLOADS_AT_ONCE


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        uri: str = request.getfixturevalue("s3")
        return uri
    return str(tmp_path / "run")


def test_exactly_one_of_many_writers_wins(root: str) -> None:
    uri = storage.join(root, "commits", "1.json")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda n: storage.put_if_absent(uri, f"writer {n}".encode()), range(16)))
    assert won.count(True) == 1
    assert storage.read_bytes(uri) == f"writer {won.index(True)}".encode()


def test_put_replaces_and_missing_reads_as_none(root: str) -> None:
    uri = storage.join(root, "manifest.json")
    assert storage.read_bytes(uri) is None
    assert not storage.exists(uri)
    storage.put(uri, b"old")
    storage.put(uri, b"new")
    assert storage.read_bytes(uri) == b"new"
    assert storage.exists(uri)


@pytest.mark.parametrize("size", [0, 5, 40 << 20])
def test_a_file_of_any_size_is_downloaded_in_little_memory(root: str, size: int, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "folder" / "copy"
    source.write_bytes(os.urandom(1 << 20) * (size >> 20) or bytes(size))
    storage.put_file_if_absent(storage.join(root, "model"), source)
    assert not storage.download(storage.join(root, "other"), copy)
    assert not copy.exists()
    storage.exists(storage.join(root, "model"))  # the client is there
    tracemalloc.start()
    assert storage.download(storage.join(root, "model"), copy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert copy.read_bytes() == source.read_bytes()
    assert peak < 36 << 20  # a piece of 16 MiB, once as it is received and once as it is given on


def test_names_are_listed_sorted_and_without_folders(root: str) -> None:
    assert storage.list_names(root) == []
    for name in ("b", "a", "sub/c"):
        storage.put(storage.join(root, name), b"x")
    assert storage.list_names(root) == ["a", "b"]


def test_a_disk_folder_never_shows_a_half_written_file(tmp_path: Path) -> None:
    data, staging = tmp_path / "data", tmp_path / "staging"
    assert storage.put_if_absent(str(data / "x.parquet"), b"1", str(staging))
    assert not storage.put_if_absent(str(data / "x.parquet"), b"2", str(staging))
    assert [path.name for path in data.iterdir()] == ["x.parquet"]
    assert list(staging.iterdir()) == []


def test_an_unknown_scheme_is_refused_with_what_is_known() -> None:
    with pytest.raises(ConfigError, match=r"gs://.*s3://"):
        storage.filesystem("gs://bucket/posts")


def test_age_counts_from_the_last_write_by_the_clock_of_the_storage(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = storage.join(root, "lease.json")
    assert storage.age_s(uri) is None
    storage.put(uri, b"1")
    with monkeypatch.context() as patch:  # a machine whose clock is a day ahead
        patch.setattr(time, "time", lambda: 86_400 + 1.8e9)
        assert 0 <= (storage.age_s(uri) or 0) < 2
    time.sleep(2.1)
    age = storage.age_s(uri)
    assert age is not None
    assert 1 <= age < 10
    storage.put(uri, b"2")
    assert (storage.age_s(uri) or 0) < age


def test_the_age_of_a_file_in_a_folder_that_may_only_be_read_is_told(tmp_path: Path) -> None:
    """root may write anywhere, so another user asks."""
    (tmp_path / "lease.json").write_bytes(b"")
    os.utime(tmp_path / "lease.json", (time.time() - 50,) * 2)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and "pytest" in str(folder):
            folder.chmod(0o755)
    ask = f"from mentalglm import storage; import os; os.setuid(65534); print(storage.age_s('{tmp_path}/lease.json'))"
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert 50 <= float(done.stdout) < 80


def test_delete_takes_one_file_and_does_not_mind_that_there_is_none(root: str) -> None:
    storage.put(storage.join(root, "a", "1"), b"x")
    storage.put(storage.join(root, "a", "1.json"), b"x")
    storage.delete(storage.join(root, "a", "1"))
    storage.delete(storage.join(root, "a", "1"))
    storage.delete(storage.join(root, "none", "1"))
    assert [file.path for file in storage.list_files(root)] == ["a/1.json"]


def test_on_a_disk_nothing_outside_the_folder_is_listed_or_deleted(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    (outside / "posts.parquet").write_bytes(b"x")
    storage.put(str(run / "own"), b"x")
    (run / "folder").symlink_to(outside)
    (run / "file").symlink_to(outside / "posts.parquet")
    assert [file.path for file in storage.list_files(str(run))] == ["own"]
    storage.delete(str(run / "file"))
    assert not (run / "file").is_symlink()
    with pytest.raises(UnusableStorageError, match="run: cannot be used"):
        storage.delete(str(run))
    assert (outside / "posts.parquet").read_bytes() == b"x"


def test_files_are_listed_with_size_and_age_and_without_folders_or_neighbours(root: str) -> None:
    assert list(storage.list_files(root)) == []
    assert not storage.has_files(root)
    names = ["a", "b/c d/微博,1.parquet", "b/e%2F+.json"]
    for number, name in enumerate(names):
        storage.put(storage.join(root, name), b"x" * number)
    storage.put(f"{root}-neighbour/z", b"x")
    if storage.is_s3(root):
        storage.put(storage.join(root, "marker/"), b"")
    found = sorted(storage.list_files(root))
    assert [(file.path, file.size) for file in found] == [(name, number) for number, name in enumerate(names)]
    assert all(0 <= file.age_s < 10 for file in found)
    assert [file.path for file in storage.list_files(storage.join(root, "b"))] != []
    assert storage.has_files(storage.join(root, "b"))


def test_more_files_than_a_page_of_the_listing_are_all_listed(root: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: storage.put(storage.join(root, f"{n % 3}", f"{n}"), b""), range(1_100)))
    assert len(set(storage.list_files(root))) == 1_100
    assert len(storage.list_names(storage.join(root, "0"))) == 367


@pytest.fixture(params=[1000, 40 << 20], ids=["small", "parts"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(request.param))
    return path


def test_a_local_file_is_written_whole_by_the_first_alone(root: str, source: Path, tmp_path: Path) -> None:
    uri, data = storage.join(root, "data", "part.parquet"), source.read_bytes()
    staging = storage.join(root, "staging")
    assert storage.put_file_if_absent(uri, source, staging)
    other = tmp_path / "other"
    other.write_bytes(data[::-1])
    assert not storage.put_file_if_absent(uri, str(other), staging)
    assert storage.read_bytes(uri) == source.read_bytes() == data
    assert [file.path for file in storage.list_files(root)] == ["data/part.parquet"]
    assert list(storage.list_unfinished_uploads(root)) == []


def test_of_many_writers_of_a_large_file_one_wins(root: str, tmp_path: Path) -> None:
    uri = storage.join(root, "part.parquet")
    for number in range(4):
        (tmp_path / str(number)).write_bytes(bytes([number]) * (17 << 20))
    with ThreadPoolExecutor(NUM_UPLOADS_AT_ONCE if uri.startswith("s3://") else 4) as pool:
        won = list(pool.map(lambda number: storage.put_file_if_absent(uri, tmp_path / str(number)), range(4)))
    assert won.count(True) == 1
    data = storage.read_bytes(uri)
    assert data is not None
    assert data == bytes([won.index(True)]) * (17 << 20)
    assert list(storage.list_unfinished_uploads(root)) == []


def test_a_file_is_replaced_by_who_has_read_it_as_it_is_and_by_nobody_else(
    root: str, source: Path, tmp_path: Path
) -> None:
    uri, staging = storage.join(root, "data", "part.parquet"), storage.join(root, "staging")
    assert storage.read_versioned(uri) is None
    storage.put_file_if_absent(uri, source, staging)
    data, version = storage.read_versioned(uri) or (b"", "")
    assert data == source.read_bytes()
    other = tmp_path / "other"
    other.write_bytes(data[::-1])
    assert storage.put_file_if_unchanged(uri, other, version, staging)
    assert not storage.put_file_if_unchanged(uri, source, version, staging)
    assert storage.read_bytes(uri) == other.read_bytes()
    _, version = storage.read_versioned(uri) or (b"", "")
    storage.delete(uri)
    assert not storage.put_file_if_unchanged(uri, source, version, staging)
    assert not storage.has_files(root)
    assert list(storage.list_unfinished_uploads(root)) == []


def test_of_many_who_have_read_the_same_version_one_replaces_it(root: str, tmp_path: Path) -> None:
    uri, staging = storage.join(root, "part.parquet"), storage.join(root, "staging")
    storage.put(uri, b"old")
    _, version = storage.read_versioned(uri) or (b"", "")
    for number in range(8):
        (tmp_path / str(number)).write_bytes(b"%d" % number)

    def replace(number: int) -> bool:
        return storage.put_file_if_unchanged(uri, tmp_path / str(number), version, staging)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(replace, range(8)))
    # On a disk maybe none, each by another; S3 lets one pass.
    assert won.count(True) == 1 or (won.count(True) == 0 and not storage.is_s3(root))
    assert storage.read_bytes(uri) == (b"%d" % won.index(True) if any(won) else b"old")
