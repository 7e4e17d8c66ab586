"""An encoder is trained, chosen by validations that its own engine makes, scored and evaluated: one chain."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm.config import ScoreConfig, TrainConfig
from mentalglm.corpus.synthetic import SyntheticPost, generate_posts
from mentalglm.errors import ConfigError
from mentalglm.evaluation import evaluate
from mentalglm.scoring import score
from mentalglm.tasks import load_task
from mentalglm.training.pipeline import train
from tests.encoders import tiny_bert, tiny_classifier

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]

RISK = load_task("suicide_risk")


def records(path: Path, posts: Sequence[SyntheticPost]) -> dict[str, Any]:
    """The posts as a file of records, as a source of a stage."""
    rows = [{"id": post.post_id, "text": post.text, "labels": list(post.labels[RISK.name])} for post in posts]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {"uri": str(path), "task": RISK.name, "id_column": "id"}


def score_config(folder: Path, model: Path, **changes: Any) -> ScoreConfig:
    data = {
        "input": {"uri": str(folder / "posts.parquet")},
        "output": {"uri": str(folder / "scored")},
        "tasks": [RISK.name],
        "model": {"path": str(model)},
        "engine": {"kind": "encoder"},
    }
    return ScoreConfig.model_validate(data | changes)


def predictions(uri: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in Path(uri).glob("data/*/*.parquet"))


def test_it_learns_and_scores_as_its_best_checkpoint_did(tmp_path: Path) -> None:
    posts = list(generate_posts(900, seed=1))
    known, held_out = posts[:600], posts[600:]
    stage = {
        "train": [records(tmp_path / "train.jsonl", known)],
        "validation": [records(tmp_path / "validation.jsonl", held_out)],
        "num_epochs": 6,
    }
    config = {
        "output": {"uri": str(tmp_path / "trained")},
        "method": "encoder",
        "model": {"path": str(tiny_bert(tmp_path / "bert"))},
        "stages": {"S1": stage},
        "optimizer": {"learning_rate": 3e-3},
        "batch_size": 32,
        "selection": {"every_epochs": 3},
        "workers": {"num_gpus": 0},
    }
    [record] = train(TrainConfig.model_validate(config))
    gold = {post.post_id: post.labels[RISK.name] for post in held_out}
    share = sum(labels == ("high_risk",) for labels in gold.values()) / len(gold)
    always_high = 2 * share / (1 + share)  # F1 of who calls every post high
    assert record.best_scores[RISK.name] > 0.85 > always_high + 0.2
    assert [each["error"] for each in record.validations] == [None, None]

    model = tmp_path / "trained" / "S1" / "model"
    assert "of its classifier of explanations" in (model / "README.md").read_text(encoding="utf-8")
    text = pa.table({"post_id": [post.post_id for post in held_out], "text": [post.text for post in held_out]})
    pq.write_table(text, tmp_path / "posts.parquet")
    run = score(score_config(tmp_path, model, label_scores="forced"))
    table = predictions(run.uri)
    found = evaluate(RISK, gold, table, num_bootstrap=0)
    assert found.headline == pytest.approx(record.best_scores[RISK.name])
    scores = [dict(each)["high_risk"] for each in table["label_scores"].to_pylist()]
    assert scores == pytest.approx(table["probability"].to_pylist())
    manifest = json.loads((tmp_path / "scored" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["digest"] == manifest["fingerprint"]["model"]
    assert manifest["fingerprint"]["engine"] == {"kind": "encoder", "dtype": "float32"}
    assert table["explanation"].null_count == table.num_rows


def test_explanations_are_scored_and_rows_without_one_are_empty(tmp_path: Path) -> None:
    """The column `explanation` of a finished run as the input of a run: here with a classifier that knows nothing."""
    posts = list(generate_posts(30, seed=2))
    explanations = [None if number % 3 == 0 else post.explanations[RISK.name] for number, post in enumerate(posts)]
    finished = {"post_id": [post.post_id for post in posts], "explanation": explanations}
    pq.write_table(pa.table(finished), tmp_path / "posts.parquet")
    base = tiny_bert(tmp_path / "bert", spread=0.5)
    model = tiny_classifier(tmp_path / "model", base, RISK, input="explanation", mask_labels=True)
    source = {"uri": str(tmp_path / "posts.parquet"), "text_column": "explanation"}
    run = score(score_config(tmp_path, model, input=source))
    assert dict(run.totals.by_status) == {"ok": 20, "empty_text": 10}
    found = evaluate(RISK, {post.post_id: post.labels[RISK.name] for post in posts}, predictions(run.uri))
    assert found.denominators()["num_failed_by_status"] == {"empty_text": 10}
    assert math.isfinite(found.headline)
    with pytest.raises(ConfigError, match="classifier for the task suicide_risk"):
        score(score_config(tmp_path, model, input=source, tasks=["cognitive_distortion"]))
    changed = score_config(tmp_path, model, input=source, engine={"kind": "encoder", "dtype": "bfloat16"})
    with pytest.raises(ConfigError, match=r"engine\.dtype"):
        score(changed)
