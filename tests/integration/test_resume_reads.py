"""What a resume reads of its input, counted by a proxy in front of the S3 server that holds the input."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm import storage
from mentalglm.config import ScoreConfig
from mentalglm.errors import InterruptedRunError
from mentalglm.scoring import score
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import PartWriter
from tests.integration.fault_proxy import FaultProxy

pytestmark = pytest.mark.usefixtures("ray_session")

# Each shard is a row group: however two shards in flight overtake each other, a row group is read for one of them.
NUM_FILES, SHARDS_PER_FILE, SHARD_ROWS = 3, 4, 10
NUM_SHARDS = NUM_FILES * SHARDS_PER_FILE
NUM_ROWS = NUM_SHARDS * SHARD_ROWS
FOOTER_BYTES = 64 * 1024  # read at the end of a Parquet file, where the footer is


def write_input(folder: Path, suffix: str) -> None:
    """Posts of 6 kB that do not compress."""
    folder.mkdir()
    characters = random.Random(3)
    for file in range(NUM_FILES):
        posts = [
            {"post_id": f"{file}-{row}", "text": "".join(map(chr, characters.choices(range(0x4E00, 0x9FA5), k=2000)))}
            for row in range(NUM_ROWS // NUM_FILES)
        ]
        path = folder / f"{file}.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(posts), path, row_group_size=SHARD_ROWS)
        else:
            path.write_text("".join(json.dumps(post, ensure_ascii=False) + "\n" for post in posts))


def expected_reads(path: Path, first_shard: int) -> Counter[int]:
    """Bytes of each read that gets the shards of a file from `first_shard` on."""
    if path.suffix == ".parquet":
        footer = pq.read_metadata(path)
        groups = [footer.row_group(shard) for shard in range(first_shard, SHARDS_PER_FILE)]
        return Counter(group.column(n).total_compressed_size for group in groups for n in range(group.num_columns))
    lines = [len(line) for line in path.read_bytes().splitlines(keepends=True)]
    first_rows = range(first_shard * SHARD_ROWS, len(lines), SHARD_ROWS)
    return Counter(sum(lines[row : row + SHARD_ROWS]) for row in first_rows)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_resume_reads_what_is_not_committed_and_nothing_else(
    suffix: str, s3: str, s3_proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input(tmp_path / "input", suffix)
    files = sorted((tmp_path / "input").iterdir())
    for path in files:
        assert path.stat().st_size > 2 * FOOTER_BYTES
        storage.put(f"{s3}/{path.name}", path.read_bytes())

    def resume(output: str) -> dict[str, Counter[int]]:
        """Scores what is missing; file -> bytes of a read -> number of such reads."""
        s3_proxy.reset()
        config = {
            "input": {"uri": s3},
            "output": {"uri": str(tmp_path / output)},
            "tasks": ["suicide_risk"],
            "engine": {"kind": "echo"},
            "shard_rows": SHARD_ROWS,
            "s3": {"endpoint": s3_proxy.url},
        }
        assert score(ScoreConfig.model_validate(config)).totals.num_predictions == NUM_ROWS
        assert s3_proxy.num_requests["ListObjectsV2"] > 0  # it came this way
        reads: dict[str, Counter[int]] = {}
        for key, num_bytes in s3_proxy.reads:
            reads.setdefault(key.rpartition("/")[2], Counter())[num_bytes] += 1
        return reads

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "flush", interrupt)
        with pytest.raises(InterruptedRunError, match="here"):
            resume("all")
    committed = {commit.shard for commit in Ledger(str(tmp_path / "all")).read_commits()}
    assert committed == set(range(NUM_SHARDS))
    shutil.copytree(tmp_path / "all", tmp_path / "half")
    for shard in range(NUM_SHARDS // 2, NUM_SHARDS):  # the first file is done, and half of the second
        (tmp_path / "half" / "_run" / "commits" / f"{shard:08d}.json").unlink()

    assert resume("all") == {}
    assert resume("all") == {}  # it is published by now

    reads = resume("half")
    if suffix == "parquet":
        # The footer of each file that is opened; once more where two shards in flight are of two files.
        footers = [reads[path.name].pop(FOOTER_BYTES) for path in files[1:]]
        assert min(footers) >= 1
        assert sum(footers) <= 4
    assert reads == {
        files[1].name: expected_reads(files[1], SHARDS_PER_FILE // 2),
        files[2].name: expected_reads(files[2], 0),
    }


def interrupt(_: PartWriter) -> None:
    raise InterruptedRunError("here")
