"""Evaluation of a real run, on a disk and on S3: its files, adapters and manifest."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm import storage
from mentalglm.config import EvalConfig, ScoreConfig
from mentalglm.errors import ConfigError
from mentalglm.evaluation.job import evaluate_run
from mentalglm.evaluation.predictions import find_predictions
from mentalglm.scoring import score
from mentalglm.tasks import PARSER_VERSION, load_task

NUM_ROWS = 30
PATHWAY = load_task("cognitive_pathway")

pytestmark = pytest.mark.usefixtures("ray_session")


def config(run: str, gold: str, output: str, **changes: Any) -> EvalConfig:
    data = {
        "task": "cognitive_pathway",
        "predictions": run,
        "adapter": "one",
        "gold": {"uri": gold, "label_column": "labels"},
        "output": {"uri": output},
        "num_bootstrap": 100,
    }
    return EvalConfig.model_validate(data | changes)


def test_a_run_on_s3_is_evaluated_from_its_address(s3: str, tmp_path: Path) -> None:
    ids = [f"p{row}" for row in range(NUM_ROWS)]
    texts = [f"第{row}句话。" if row else "" for row in range(NUM_ROWS)]  # the first has nothing to score
    days = [f"2026-11-0{1 + row % 2}" for row in range(NUM_ROWS)]
    pq.write_table(pa.table({"post_id": ids, "text": texts, "day": days}), tmp_path / "posts.parquet")
    run = f"{s3}/run"
    score(
        ScoreConfig.model_validate(
            {
                "input": {"uri": str(tmp_path / "posts.parquet"), "keep_columns": ["day"]},
                "output": {"uri": run, "partition_by": ["day"]},
                "tasks": ["suicide_risk", "cognitive_pathway"],
                "model": {"adapters": {"one": None, "two": "/models/two"}},
                "engine": {"kind": "echo"},
            }
        )
    )
    labels = [[slug] for slug in (PATHWAY.answerable * 2)[:NUM_ROWS]]
    gold = [{"post_id": post_id, "labels": each} for post_id, each in zip(ids, labels, strict=True)]
    storage.put(f"{s3}/gold.jsonl", "\n".join(map(json.dumps, gold)).encode())

    metrics = evaluate_run(config(run, f"{s3}/gold.jsonl", f"{s3}/metrics", against_adapter="two"))
    assert json.loads(storage.read_bytes(f"{s3}/metrics/metrics.json") or b"") == json.loads(json.dumps(metrics))
    assert (metrics["n"], metrics["num_failed_by_status"]) == (NUM_ROWS, {"empty_text": 1})
    assert metrics["num_free_form"] == 0
    assert metrics["child"]["strict"] == {name: metrics["child"][name] for name in ("precision", "recall", "f1")}
    other = evaluate_run(config(run, f"{s3}/gold.jsonl", f"{s3}/metrics", adapter="two"), dry_run=True)
    assert other["child"]["f1"] != metrics["child"]["f1"]  # echo answers by text and adapter
    difference = metrics["child"]["f1"] - other["child"]["f1"]
    assert metrics["comparison"]["levels"]["child"]["difference"] == pytest.approx(difference)
    made_by = metrics["provenance"]["predictions"]
    assert made_by["run_id"]
    assert (made_by["parser"], made_by["adapter"]) == (PARSER_VERSION, "one")
    assert made_by["task"]["digest"] == PATHWAY.digest
    with pytest.raises(ConfigError, match="has the adapters one, two"):
        evaluate_run(config(run, f"{s3}/gold.jsonl", f"{s3}/metrics", adapter=None))
    with pytest.raises(ConfigError, match="has suicide_risk, cognitive_pathway"):
        find_predictions(run, load_task("cognitive_distortion"), "one").read()
