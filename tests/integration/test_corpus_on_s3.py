"""A corpus on a real S3 server reads like one on a disk."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm import storage
from mentalglm.config import InputConfig
from mentalglm.corpus import ShardReader, check_unchanged, plan_corpus
from mentalglm.errors import InputError


def upload(folder: Path, uri: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.put(storage.join(uri, path.relative_to(folder).as_posix()), path.read_bytes())


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_a_corpus_on_s3_has_the_plan_and_the_posts_of_the_same_files_on_disk(
    s3: str, tmp_path: Path, suffix: str
) -> None:
    for name in ("a b", "x/微博,1"):
        path = tmp_path / f"{name}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        if suffix == "parquet":
            pq.write_table(pa.table({"post_id": [f"{name}{i}" for i in range(9)], "text": ["文"] * 9}), path)
        elif suffix == "jsonl":
            path.write_text("".join(f'{{"post_id": "{name}{i}", "text": "文"}}\n' for i in range(9)))
        else:
            path.write_text("post_id,text\n" + "".join(f'"{name}{i}",文\n' for i in range(9)))
    upload(tmp_path, s3)
    storage.put(storage.join(s3, "_SUCCESS"), b"")
    storage.put(storage.join(s3, "marker/"), b"")
    local, remote = InputConfig(uri=str(tmp_path)), InputConfig(uri=s3 + "/")
    plans = plan_corpus(local, 4), plan_corpus(remote, 4)
    assert plans[0].digest == plans[1].digest
    assert list(plans[0].shards()) == list(plans[1].shards())
    readers = ShardReader(local, plans[0]), ShardReader(remote, plans[1])
    for shard in plans[0].shards():
        assert readers[0].read(shard).ids == readers[1].read(shard).ids
    check_unchanged(plans[1], remote)
    assert plan_corpus(InputConfig(uri=f"{s3}/**/*.{suffix}"), 4).digest == plans[1].digest
    storage.put(storage.join(s3, f"a b.{suffix}"), (tmp_path / "x" / f"微博,1.{suffix}").read_bytes())
    with pytest.raises(InputError, match=r"a b\..* has changed"):
        check_unchanged(plans[1], remote)


def test_what_is_not_on_s3_is_refused(s3: str) -> None:
    for uri in (s3, f"{s3}/posts.parquet", "s3://no-such-bucket-here/x"):
        with pytest.raises(InputError, match=r"input\.uri"):
            plan_corpus(InputConfig(uri=uri), 4)
