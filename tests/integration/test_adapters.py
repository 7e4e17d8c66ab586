"""Several adapters in one run, with the echo engine: each post has a row for each task and adapter."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mentalglm.config import ScoreConfig
from mentalglm.errors import ConfigError, InterruptedRunError
from mentalglm.scoring import plan_run, retry, score
from mentalglm.scoring.gc import collect
from mentalglm.scoring.run.parts import PartWriter
from mentalglm.scoring.status import read_status
from mentalglm.scoring.summary import print_plan
from tests.integration.test_score_pipeline import interrupt, read

pytestmark = pytest.mark.usefixtures("ray_session")

TASKS = ["suicide_risk", "cognitive_distortion"]
ADAPTERS: dict[str, str | None] = {"base": None, "S1": "/models/s1", "S2": "/models/s2"}
NUM_ROWS, NUM_EMPTY = 40, 3
KEY = [("post_id", "ascending"), ("task", "ascending")]


def config(folder: Path, name: str, adapters: dict[str, str | None], **changes: Any) -> ScoreConfig:
    data = {
        "input": {"uri": str(folder / "posts.parquet"), "keep_columns": ["day"]},
        "output": {"uri": str(folder / name), "partition_by": ["day"]},
        "tasks": TASKS,
        "model": {"adapters": adapters},
        "engine": {"kind": "echo"},
        "shard_rows": 10,
    }
    return ScoreConfig.model_validate(data | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_session: object) -> Path:
    """Posts of which some have no text, and some the text of another; in `out` the run over them, which was stopped in
    the middle and went on."""
    folder = tmp_path_factory.mktemp("adapters")
    texts = [None if row < NUM_EMPTY else f"第{row % 30}条：今天很累。" for row in range(NUM_ROWS)]
    days = [f"2026-11-{1 + row % 3:02d}" for row in range(NUM_ROWS)]
    table = pa.table({"post_id": [str(row) for row in range(NUM_ROWS)], "text": texts, "day": days})
    pq.write_table(table, folder / "posts.parquet", row_group_size=20)
    settings = config(folder, "out", ADAPTERS, dedup="corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartWriter, "flush", interrupt)
        with pytest.raises(InterruptedRunError):
            score(settings)
    # One shard had died before its record, one after the first of its files.
    run = folder / "out" / "_run"
    for shard in (1, 3):
        (run / "commits" / f"{shard:08d}.json").unlink()
    (run / "shards" / "task=suicide_risk" / "adapter=S2" / "00000003.parquet").unlink()
    assert score(settings).totals.num_predictions == NUM_ROWS * len(TASKS) * len(ADAPTERS)
    return folder


def test_a_run_of_several_adapters_is_the_runs_of_each(folder: Path) -> None:
    table = read(folder / "out")
    columns = (table[name].to_pylist() for name in ("post_id", "task", "adapter"))
    assert Counter(zip(*columns, strict=True)) == Counter(
        (str(row), task, adapter) for row in range(NUM_ROWS) for task in TASKS for adapter in ADAPTERS
    )
    assert 0 < table["duplicate_of"].null_count < table.num_rows
    score(config(folder, "alone", {"S1": ADAPTERS["S1"]}))
    alone = read(folder / "alone").sort_by(KEY)
    names = [
        name for name in alone.column_names if name not in ("duplicate_of", "num_prompt_tokens", "num_output_tokens")
    ]
    of = {name: table.filter(pc.equal(table["adapter"], name)).sort_by(KEY) for name in ADAPTERS}
    assert of["S1"].select(names).to_pylist() == alone.select(names).to_pylist()
    assert len({str(rows["labels"].to_pylist()) for rows in of.values()}) == len(ADAPTERS), "each in its own way"

    errors = pq.read_table(folder / "out" / "errors")
    assert errors.column_names == ["post_id", "task", "adapter", "status", "reason"]
    assert Counter(zip(*(errors[name].to_pylist() for name in ("task", "adapter")), strict=True)) == Counter(
        {(task, adapter): NUM_EMPTY for task in TASKS for adapter in ADAPTERS}
    )
    [path, *_] = (folder / "out" / "data" / "task=suicide_risk" / "adapter=S1").rglob("*.parquet")
    footer = json.loads(pq.read_schema(path).metadata[b"mentalglm"])
    assert (footer["task"], footer["adapter"]) == ("suicide_risk", "S1")


def test_whoever_opens_the_folder_sees_the_adapters(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(folder, "other", ADAPTERS)
    print_plan(settings, *plan_run(settings))
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "x 2 tasks (suicide_risk, cognitive_distortion) x 3 adapters (base, S1, S2) = 240 predictions" in printed
    status = read_status(str(folder / "out"))
    assert (status.state, status.num_predictions, status.num_expected) == ("complete", 240, 240)
    counts = {"ok": NUM_ROWS - NUM_EMPTY, "empty_text": NUM_EMPTY}
    assert status.statuses == {f"{task}/adapter={adapter}": counts for task in TASKS for adapter in ADAPTERS}
    readme = (folder / "out" / "README.md").read_text()
    assert "data/task=<task>/adapter=<adapter>/" in readme
    assert "| suicide_risk/adapter=S1 | ok | 37 |" in readme
    [query] = re.findall(r"```sql\n(.*?)\n```", readme, re.DOTALL)
    found = duckdb.sql(query.replace("data/", f"{folder}/out/data/")).fetchall()
    assert len(found) == len(TASKS) * len(ADAPTERS) * 2
    assert {row[1] for row in found} == set(ADAPTERS)
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert list(manifest["fingerprint"]["adapters"]) == list(manifest["model"]["adapters"]) == list(ADAPTERS)


def test_other_adapters_are_another_run(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapters\.S2"):
        plan_run(config(folder, "out", {"base": None, "S1": "/models/s1", "S3": "/models/s2"}, dedup="corpus"))
    with pytest.raises(ConfigError, match="adapters"):
        plan_run(config(folder, "out", {}, dedup="corpus"))
    with pytest.raises(ConfigError, match=r"adapters\.more: None, now none"):
        plan_run(config(folder, "out", {**ADAPTERS, "more": None}, dedup="corpus"))


def test_a_kept_column_named_adapter_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"post_id": ["1"], "text": ["x"], "adapter": ["y"]}), tmp_path / "posts.parquet")
    kept = {"uri": str(tmp_path / "posts.parquet"), "keep_columns": ["adapter"]}
    output = {"uri": str(tmp_path / "out")}
    plan_run(config(tmp_path, "out", {}, input=kept, output=output))
    with pytest.raises(ConfigError, match="column of the output"):
        plan_run(config(tmp_path, "out", ADAPTERS, input=kept, output=output))


def test_retry_and_gc_know_the_adapters(folder: Path) -> None:
    key = [*KEY, ("adapter", "ascending")]
    before = read(folder / "out").sort_by(key)
    summary = retry(str(folder / "out"), ["empty_text"])
    assert summary.num_retried == NUM_EMPTY * len(TASKS) * len(ADAPTERS)
    assert summary.retried == {"empty_text": summary.num_retried}
    assert read(folder / "out").sort_by(key).to_pylist() == before.to_pylist()
    left = folder / "out" / "_run" / "shards" / "task=suicide_risk" / "adapter=S1" / "00000000.parquet"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"of a dead attempt")
    os.utime(left, (0, 0))
    assert left.relative_to(folder / "out").as_posix() in {each.path for each in collect(str(folder / "out"))}
    assert not left.exists()
