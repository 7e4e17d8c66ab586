"""Several adapters in one run, with the echo engine: each post has a row for each task and adapter."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm.config import ScoreConfig
from mentalglm.errors import ConfigError, InterruptedRunError
from mentalglm.scoring import plan_run, retry, score
from mentalglm.scoring.gc import collect
from mentalglm.scoring.parts import PartWriter
from mentalglm.scoring.status import read_status
from mentalglm.scoring.summary import print_plan
from tests.integration.test_score_pipeline import interrupt, read

pytestmark = pytest.mark.usefixtures("ray_session")

TASKS = ["suicide_risk", "cognitive_distortion"]
ADAPTERS: dict[str, str | None] = {"base": None, "S1": "/models/s1", "S2": "/models/s2"}
NUM_ROWS, NUM_EMPTY = 40, 3
KEY = [("post_id", "ascending"), ("task", "ascending")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Posts of which some have no text, and some the text of another."""
    texts = [None if row < NUM_EMPTY else f"第{row % 30}条：今天很累。" for row in range(NUM_ROWS)]
    days = [f"2026-11-{1 + row % 3:02d}" for row in range(NUM_ROWS)]
    table = pa.table({"post_id": [str(row) for row in range(NUM_ROWS)], "text": texts, "day": days})
    pq.write_table(table, tmp_path / "posts.parquet", row_group_size=20)
    return tmp_path


def config(folder: Path, output: str, adapters: dict[str, str | None], **changes: Any) -> ScoreConfig:
    data = {
        "input": {"uri": str(folder / "posts.parquet"), "keep_columns": ["day"]},
        "output": {"uri": str(folder / output), "partition_by": ["day"]},
        "tasks": TASKS,
        "model": {"adapters": adapters},
        "engine": {"kind": "echo"},
        "dedup": "corpus",
        "shard_rows": 10,
    }
    return ScoreConfig.model_validate(data | changes)


def test_a_run_of_several_adapters_is_the_runs_of_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(folder, "out", ADAPTERS)
    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "flush", interrupt)
        with pytest.raises(InterruptedRunError):
            score(settings)
    # One shard had died before its record, one after the first of its files.
    staged = folder / "out" / "_run" / "shards"
    for shard in (1, 3):
        (folder / "out" / "_run" / "commits" / f"{shard:08d}.json").unlink()
    (staged / "task=suicide_risk" / "adapter=S2" / "00000003.parquet").unlink()
    summary = score(settings)
    num_expected = NUM_ROWS * len(TASKS) * len(ADAPTERS)
    assert summary.totals.num_predictions == num_expected
    keys = {f"{task}/adapter={adapter}" for task in TASKS for adapter in ADAPTERS}
    assert summary.totals.statuses == {key: Counter(ok=NUM_ROWS - NUM_EMPTY, empty_text=NUM_EMPTY) for key in keys}

    table = read(folder / "out")
    columns = (table[name].to_pylist() for name in ("post_id", "task", "adapter"))
    assert Counter(zip(*columns, strict=True)) == Counter(
        (str(row), task, adapter) for row in range(NUM_ROWS) for task in TASKS for adapter in ADAPTERS
    )
    answers = set()
    for adapter, path in ADAPTERS.items():
        score(config(folder, f"alone-{adapter}", {adapter: path}))
        rows = table.filter(pa.compute.equal(table["adapter"], adapter)).sort_by(KEY)
        alone = read(folder / f"alone-{adapter}").sort_by(KEY)
        assert rows.select(alone.column_names).to_pylist() == alone.to_pylist()
        answers.add(str(rows["labels"].to_pylist()))
    assert len(answers) == len(ADAPTERS), "each adapter answers in its own way"
    assert 0 < table["duplicate_of"].null_count < table.num_rows

    errors = pq.read_table(folder / "out" / "errors")
    assert errors.column_names == ["post_id", "task", "adapter", "status", "reason"]
    assert Counter(zip(*(errors[name].to_pylist() for name in ("task", "adapter")), strict=True)) == Counter(
        {(task, adapter): NUM_EMPTY for task in TASKS for adapter in ADAPTERS}
    )
    status = read_status(str(folder / "out"))
    assert (status.state, status.num_predictions, status.num_expected) == ("complete", num_expected, num_expected)
    [path, *_] = (folder / "out" / "data" / "task=suicide_risk" / "adapter=S1").rglob("*.parquet")
    footer = json.loads(pq.read_schema(path).metadata[b"mentalglm"])
    assert (footer["task"], footer["adapter"]) == ("suicide_risk", "S1")


def test_whoever_opens_the_folder_sees_the_adapters(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(folder, "out", ADAPTERS)
    print_plan(settings, *plan_run(settings))
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "x 2 tasks (suicide_risk, cognitive_distortion) x 3 adapters (base, S1, S2) = 240 predictions" in printed
    score(settings)
    readme = (folder / "out" / "README.md").read_text()
    assert "data/task=<task>/adapter=<adapter>/" in readme
    assert "| suicide_risk/adapter=S1 | ok | 37 |" in readme
    [query] = re.findall(r"```sql\n(.*?)\n```", readme, re.DOTALL)
    found = duckdb.sql(query.replace("data/", f"{folder}/out/data/")).fetchall()
    assert len(found) == len(TASKS) * len(ADAPTERS) * 2
    assert {row[1] for row in found} == set(ADAPTERS)
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest["fingerprint"]["adapters"] == dict.fromkeys(ADAPTERS)


def test_retry_and_gc_know_the_adapters(folder: Path) -> None:
    score(config(folder, "out", ADAPTERS))
    before = read(folder / "out").sort_by([*KEY, ("adapter", "ascending")])
    summary = retry(str(folder / "out"), ["empty_text"])
    assert summary.num_retried == NUM_EMPTY * len(TASKS) * len(ADAPTERS)
    assert summary.retried == {"empty_text": summary.num_retried}
    assert read(folder / "out").sort_by([*KEY, ("adapter", "ascending")]).equals(before)
    left = folder / "out" / "_run" / "shards" / "task=suicide_risk" / "adapter=S1" / "00000000.parquet"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"of a dead attempt")
    os.utime(left, (0, 0))
    assert left.relative_to(folder / "out").as_posix() in {each.path for each in collect(str(folder / "out"))}
    assert not left.exists()


def test_other_adapters_are_another_run(folder: Path) -> None:
    score(config(folder, "out", {"S1": "/models/s1"}))
    with pytest.raises(ConfigError, match=r"adapters.*S2"):
        score(config(folder, "out", {"S1": "/models/s1", "S2": "/models/s2"}))
    with pytest.raises(ConfigError, match="adapters"):
        score(config(folder, "out", {}))
    kept = {"uri": str(folder / "posts.parquet"), "keep_columns": ["adapter"]}
    table = pq.read_table(folder / "posts.parquet").rename_columns(["post_id", "text", "adapter"])
    pq.write_table(table, folder / "posts.parquet")
    with pytest.raises(ConfigError, match="column of the output"):
        plan_run(config(folder, "other", ADAPTERS, input=kept, output={"uri": str(folder / "other")}))
