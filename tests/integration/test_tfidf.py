"""The baseline is trained, scored and evaluated as any other model: one chain, on a disk and on S3."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm import storage
from mentalglm.config import BaselineConfig, EvalConfig, ScoreConfig
from mentalglm.corpus.synthetic import generate_posts
from mentalglm.errors import ConfigError
from mentalglm.evaluation.job import evaluate_run
from mentalglm.scoring import score
from mentalglm.scoring.predictions import prediction_schema
from mentalglm.tasks import load_task
from mentalglm.training.tfidf import train_baseline

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.parametrize(
    ("name", "least"), [("suicide_risk", 0.9), ("cognitive_distortion", 0.8), ("cognitive_pathway", 0.8)]
)
def test_it_is_trained_scored_and_evaluated_as_any_other(name: str, least: float, s3: str, tmp_path: Path) -> None:
    task = load_task(name)
    posts = list(generate_posts(900, seed=1))
    known, held_out = posts[:600], posts[600:]
    rows = [{"text": post.text, "labels": list(post.labels[name])} for post in known]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = train_baseline(
        BaselineConfig.model_validate(
            {
                "train": [{"uri": str(tmp_path / "train.jsonl"), "task": name}],
                "output": {"uri": f"{s3}/baseline-{name}"},
                "inverse_regularization": [10.0],
            }
        )
    )
    ids, texts = [post.post_id for post in held_out], [post.text for post in held_out]
    pq.write_table(pa.table({"post_id": [*ids, "empty"], "text": [*texts, ""]}), tmp_path / "posts.parquet")
    data: dict[str, Any] = {
        "input": {"uri": str(tmp_path / "posts.parquet")},
        "output": {"uri": str(tmp_path / "scored")},
        "tasks": [name],
        "model": {"path": f"{s3}/baseline-{name}/model"},
        "engine": {"kind": "tfidf"},
        "label_scores": "forced",
    }
    run = score(ScoreConfig.model_validate(data))
    table = pa.concat_tables(pq.read_table(path) for path in Path(run.uri).glob("data/*/*.parquet"))
    config = ScoreConfig.model_validate(data)
    assert set(table.column_names) == set(prediction_schema(config, pa.schema([])).names)
    statuses = dict(zip(table["post_id"].to_pylist(), table["status"].to_pylist(), strict=True))
    assert statuses == {**dict.fromkeys(ids, "ok"), "empty": "empty_text"}
    scores = [dict(each) for each in table["label_scores"].drop_null().to_pylist()]
    labels = [label.slug for label in task.labels] + (["none"] if task.none_allowed else [])
    assert all(list(each) == labels for each in scores)
    manifest = json.loads((Path(run.uri) / "manifest.json").read_text())
    assert manifest["model"]["digest"] == record.digest
    assert manifest["output"]["engines"][0]["engine"] == "tfidf"

    gold = [{"post_id": post.post_id, "label": list(post.labels[name])} for post in held_out]
    storage.put(f"{s3}/gold-{name}.jsonl", "".join(json.dumps(row) + "\n" for row in gold).encode())
    found = evaluate_run(
        EvalConfig.model_validate(
            {
                "task": name,
                "predictions": run.uri,
                "gold": {"uri": f"{s3}/gold-{name}.jsonl"},
                "output": {"uri": str(tmp_path / "metrics")},
                "extra_predictions": "ignore",
                "num_bootstrap": 100,
            }
        )
    )
    assert found["headline"]["value"] > least
    positive = task.positive or task.answerable[0]
    assert found["calibration"][positive]["auroc"] > 0.9
    if name == "suicide_risk":
        with pytest.raises(ConfigError, match="cannot be loaded as a classifier"):
            score(
                ScoreConfig.model_validate(data | {"engine": {"kind": "encoder"}, "output": {"uri": f"{s3}/encoder"}})
            )
