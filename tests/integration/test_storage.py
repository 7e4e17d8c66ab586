"""Storage on a disk and on a real S3 server: the same promises on both."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mentalglm import storage
from mentalglm.errors import ConfigError


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
