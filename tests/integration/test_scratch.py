"""Rows that are each for a task of their own, scored outside any run, on a local Ray with the echo engine."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from mentalglm import storage
from mentalglm.config import ScoreConfig
from mentalglm.corpus.synthetic import generate_posts
from mentalglm.errors import InputError
from mentalglm.scoring import score
from mentalglm.scoring.scratch import score_rows

pytestmark = pytest.mark.usefixtures("ray_session")

ROWS = {"suicide_risk": [0, 3, 4, 29], "cognitive_distortion": [3, 10, 11, 12, 13], "cognitive_pathway": [29]}


def config(uri: str, output: str, **changes: Any) -> ScoreConfig:
    """Shards of 10 rows; of the second one only one task is asked."""
    data: dict[str, Any] = {
        "input": {"uri": uri},
        "output": {"uri": output},
        "tasks": list(ROWS),
        "engine": {"kind": "echo"},
        "shard_rows": 10,
    }
    return ScoreConfig.model_validate(data | changes)


@pytest.fixture
def posts(tmp_path: Path) -> str:
    """30 posts."""
    generated = list(generate_posts(30, seed=5))
    table = pa.table({"post_id": [f"p{n}" for n in range(30)], "text": [post.text for post in generated]})
    pq.write_table(table, tmp_path / "posts.parquet", row_group_size=10)
    return str(tmp_path / "posts.parquet")


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_each_task_has_the_predictions_of_its_rows_and_nothing_stays(
    place: str, posts: str, s3: str, tmp_path: Path
) -> None:
    folder = s3 if place == "s3" else str(tmp_path / "scratch")
    found = score_rows(config(posts, folder), ROWS)
    assert found.totals.num_predictions == sum(map(len, ROWS.values()))
    assert {key: table["post_id"].to_pylist() for key, table in found.tables.items()} == {
        key: [f"p{row}" for row in rows] for key, rows in ROWS.items()
    }
    assert not storage.has_files(folder)
    if place == "disk":
        run = score(config(posts, str(tmp_path / "run")))
        for key, rows in ROWS.items():
            whole = pads.dataset(f"{run.uri}/data/task={key}").to_table().sort_by("post_id")
            wanted = whole.filter(pa.compute.is_in(whole["post_id"], pa.array([f"p{row}" for row in rows])))
            assert found.tables[key].sort_by("post_id").to_pylist() == wanted.to_pylist()


def test_equal_texts_are_asked_once_for_each_task(tmp_path: Path) -> None:
    table = pa.table({"post_id": ["a", "b", "c"], "text": ["今天很累"] * 3})
    pq.write_table(table, tmp_path / "posts.parquet")
    rows = {"suicide_risk": [0, 1], "cognitive_distortion": [1, 2]}
    job = config(str(tmp_path / "posts.parquet"), str(tmp_path / "scratch"), tasks=list(rows), dedup="shard")
    found = score_rows(job, rows)
    assert [table["duplicate_of"].to_pylist() for table in found.tables.values()] == [[None, "a"], [None, "b"]]


def test_rows_that_are_not_there_are_no_empty_result(posts: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"input\.uri: 1 of 2 rows for suicide_risk cannot be read \(not in the input"):
        score_rows(config(posts, str(tmp_path / "scratch")), {"suicide_risk": [7, 30]})
    damaged = bytearray(Path(posts).read_bytes())
    second = pq.read_metadata(posts).row_group(1)
    for column in range(second.num_columns):
        chunk = second.column(column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        damaged[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    Path(posts).write_bytes(damaged)
    with pytest.raises(InputError, match=r"4 of 5 rows for cognitive_distortion cannot be read \(corrupt_page\)"):
        score_rows(config(posts, str(tmp_path / "scratch")), ROWS)
    assert not storage.has_files(str(tmp_path / "scratch"))
