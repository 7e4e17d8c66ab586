"""What comes when: nothing is lost, the smallest comes last, and where it must not, nothing changes."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.config import ScoreConfig
from mentalglm.corpus import CorpusPlan, ShardReader, plan_corpus
from mentalglm.scoring.order import asking_order, cut_for_engines, handing_order, shards_in_flight
from mentalglm.scoring.questions import Question
from mentalglm.tasks import load_task

TASKS = ("suicide_risk", "cognitive_distortion")


def config(uri: object = "posts", **changes: Any) -> ScoreConfig:
    data = {"input": {"uri": str(uri)}, "output": {"uri": "scored"}, "tasks": TASKS, "shard_rows": 64}
    return ScoreConfig.model_validate(data | {"engine": {"kind": "echo", "num_engines": 2}} | changes)


@given(st.sets(st.integers(0, 500)), st.sets(st.integers(0, 500)))
def test_a_posts_tasks_are_asked_together_and_everything_is_asked_once(risk: set[int], distortion: set[int]) -> None:
    picked = {"suicide_risk": sorted(risk), "cognitive_distortion": sorted(distortion)}
    asked = asking_order(picked, [Question(load_task(name)) for name in TASKS])
    assert set(asked) == {(row, 0) for row in risk} | {(row, 1) for row in distortion}
    assert len(asked) == len(risk) + len(distortion)
    assert [row for row, _ in asked] == sorted(row for row, _ in asked)


@given(st.dictionaries(st.integers(0, 1000), st.integers(1, 64), max_size=60), st.integers(1, 4))
def test_every_shard_is_handed_out_and_the_smallest_last(num_rows: dict[int, int], num_engines: int) -> None:
    pending = sorted(num_rows)
    changes: dict[str, Any] = {"engine": {"kind": "echo", "num_engines": num_engines}}
    order = handing_order(config(**changes), pending, num_rows, 2)
    assert sorted(order) == pending
    num_last = min(len(order), 3 * num_engines * 2)
    first, last = order[: len(order) - num_last], order[len(order) - num_last :]
    assert first == sorted(first)
    sizes = [num_rows[shard] for shard in last]
    assert sizes == sorted(sizes, reverse=True)
    assert not first or max(sizes) <= min(num_rows[shard] for shard in first)
    for fixed in ({"order": "input"}, {"dedup": "corpus"}):
        assert handing_order(config(**changes, **fixed), pending, num_rows, 2) == pending


def test_shards_of_one_size_stay_in_order() -> None:
    assert handing_order(config(), range(40), dict.fromkeys(range(40), 64), 2) == list(range(40))


def write(folder: Path, num_rows: int, row_group_size: int = 1000) -> None:
    table = pa.table({"post_id": [str(n) for n in range(num_rows)], "text": [f"第{n}条" for n in range(num_rows)]})
    half = num_rows // 2
    pq.write_table(table.slice(0, half), folder / "a.parquet", row_group_size=row_group_size)
    pq.write_table(table.slice(half), folder / "b.parquet", row_group_size=row_group_size)


def sizes(plan: CorpusPlan) -> list[int]:
    return list(map(int, plan.shard_num_rows))


@given(st.integers(2, 700), st.integers(1, 300), st.integers(1, 100), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_a_plan_that_is_cut_finer_has_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, num_rows: int, row_group_size: int, shard_rows: int, num_engines: int
) -> None:
    folder = tmp_path_factory.mktemp("posts")
    write(folder, num_rows, row_group_size)
    changed = config(folder, shard_rows=shard_rows, engine={"kind": "echo", "num_engines": num_engines})
    plan = plan_corpus(changed.input, shard_rows)
    finer = CorpusPlan.from_table(cut_for_engines(plan, changed).to_table())
    assert finer.num_rows == plan.num_rows
    assert 0 < min(sizes(finer)) <= max(sizes(finer)) <= shard_rows
    old_ends = {(shard.file, shard.stop) for shard in plan.shards()}
    assert old_ends <= {(shard.file, shard.stop) for shard in finer.shards()}
    reader = ShardReader(changed.input, finer)
    ids = [post_id for shard in finer.shards() for post_id in reader.read(shard).ids]
    assert ids == [str(n) for n in range(num_rows)]


def test_shards_get_smaller_towards_the_end_down_to_an_eighth(tmp_path: Path) -> None:
    write(tmp_path, 1024)
    plan = plan_corpus(config(tmp_path).input, 64)
    assert sizes(plan) == [64] * 16
    # Two engines: a shard has about a sixth of what is left, which is 256 rows, 192, 128 and 64.
    finer = sizes(cut_for_engines(plan, config(tmp_path)))
    assert finer == [64] * 12 + [32] * 4 + [21, 21, 22] + [10, 11, 11, 10, 11, 11]
    many = {"kind": "echo", "num_engines": 64}
    assert sizes(cut_for_engines(plan, config(tmp_path, engine=many))) == [8] * 128


@pytest.mark.parametrize(("max_num_seqs", "smallest"), [(8, 8), (40, 21), (64, 32), (100, 21)])
def test_the_last_shards_still_about_fill_the_slots_of_an_engine(
    tmp_path: Path, max_num_seqs: int, smallest: int
) -> None:
    write(tmp_path, 1024)
    engine = {"kind": "vllm", "num_engines": 9, "max_num_seqs": max_num_seqs}
    changed = config(tmp_path, engine=engine)
    finer = cut_for_engines(plan_corpus(changed.input, 64), changed)
    assert min(sizes(finer)) == smallest
    assert shards_in_flight(changed, len(TASKS)) * smallest * len(TASKS) > max_num_seqs


@pytest.mark.parametrize(
    "changes",
    [{"order": "input"}, {"dedup": "corpus"}, {"dedup": "shard"}, {"engine": {"kind": "echo", "num_engines": 1}}],
    ids=["input order", "corpus duplicates", "shard duplicates", "one engine"],
)
def test_where_it_has_no_use_or_would_change_results_the_plan_stays(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path, 300)
    plan = plan_corpus(config(tmp_path).input, 64)
    assert cut_for_engines(plan, config(tmp_path, **changes)) is plan


def test_text_files_stay_as_they_were_cut(tmp_path: Path) -> None:
    lines = "".join(f'{{"post_id": "{n}", "text": "好"}}\n' for n in range(200))
    (tmp_path / "posts.jsonl").write_text(lines, encoding="utf-8")
    plan = plan_corpus(config(tmp_path).input, 64)
    assert list(cut_for_engines(plan, config(tmp_path)).shards()) == list(plan.shards())
