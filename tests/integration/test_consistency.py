"""Consistency of explanations (appendix C) by the shipped configs: train on explanations, score those of a run, hold
the result against the labels of that run."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mentalglm.config import EvalConfig, ScoreConfig, TrainConfig, load_config
from mentalglm.corpus.synthetic import SyntheticPost, generate_posts
from mentalglm.evaluation.job import evaluate_run
from mentalglm.scoring import score
from mentalglm.tasks import LABEL_MASK, load_task
from mentalglm.training.pipeline import train
from tests.encoders import tiny_bert
from tests.reviews import RUNS, write_runs

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]

RISK = load_task("suicide_risk")
CONFIGS = Path(__file__).parents[2] / "configs"


def naming_posts(num_posts: int, seed: int) -> list[SyntheticPost]:
    """Posts whose explanations name their label and say nothing else that tells it."""
    rng = random.Random(seed)
    posts = []
    for post in generate_posts(num_posts, seed):
        [slug] = post.labels[RISK.name]
        said = rng.sample("今天天气很好我们去公园看花", 6)
        posts.append(
            replace(post, explanations=post.explanations | {RISK.name: f"{''.join(said)}，{RISK.by_slug[slug].zh}。"})
        )
    return posts


def records(path: Path, posts: list[SyntheticPost]) -> dict[str, Any]:
    rows = [{"e": post.explanations[RISK.name], "c": list(post.labels[RISK.name])} for post in posts]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return {"uri": str(path), "task": RISK.name, "text_column": "e", "labels_column": "c", "explanation_column": None}


def test_explanations_that_merely_name_their_label_are_found_out(tmp_path: Path) -> None:
    known, run = naming_posts(400, seed=1), naming_posts(120, seed=2)
    run[0] = replace(run[0], explanations=run[0].explanations | {RISK.name: " "})
    write_runs(tmp_path, run)
    stage = {
        "train": [records(tmp_path / "train.jsonl", known[:320])],
        "validation": [records(tmp_path / "validation.jsonl", known[320:])],
        "num_epochs": 6,
    }
    bert = tiny_bert(tmp_path / "bert", more="".join(label.zh for label in RISK.labels) + LABEL_MASK)
    scored: dict[str, str] = {}
    for name, masks in (("masked", "true"), ("plain", "false")):
        changes = {
            "output.uri": str(tmp_path / name),
            "model.path": str(bert),
            "encoder.mask_labels": masks,
            "stages": json.dumps({RISK.name: stage}),
            "optimizer": "{learning_rate: 0.003}",
            "selection": "{every_epochs: 3}",
            "workers": "{num_gpus: 0}",
        }
        overrides = [f"{key}={value}" for key, value in changes.items()]
        train(load_config(TrainConfig, CONFIGS / "train" / "consistency.yaml", overrides))
        scored[name] = str(tmp_path / "consistency" / name)
        changes = {
            "input.uri": str(tmp_path / RUNS[0] / "data" / f"task={RISK.name}"),
            "output.uri": scored[name],
            "model.path": str(tmp_path / name / RISK.name / "model"),
        }
        overrides = [f"{key}={value}" for key, value in changes.items()]
        score(load_config(ScoreConfig, CONFIGS / "score" / "consistency.yaml", overrides))
    changes = {
        "predictions": scored["plain"],
        "against": scored["masked"],
        "gold.uri": str(tmp_path / RUNS[0]),
        "output.uri": str(tmp_path / "metrics"),
        "num_bootstrap": "500",
    }
    overrides = [f"{key}={value}" for key, value in changes.items()]
    config = load_config(EvalConfig, CONFIGS / "eval" / "consistency.yaml", overrides)
    metrics = evaluate_run(config)
    assert (metrics["n"], metrics["num_without_gold"]) == (119, 1)
    assert metrics["num_parsed"] == 119
    assert metrics["f1"] > 0.99
    [comparison] = metrics["comparison"]["levels"].values()
    assert comparison["difference"] > 0.2
    assert comparison["ci95"][0] > 0
    gold = metrics["provenance"]["gold"]
    assert (gold["run"]["run_id"], gold["num_left_out"]) == (f"{RUNS[0]}-1", 1)
    everything = config.gold.model_copy(update={"only_explained": False})
    assert evaluate_run(config.model_copy(update={"gold": everything}), dry_run=True)["num_failed_by_status"] == {
        "empty_text": 1
    }
