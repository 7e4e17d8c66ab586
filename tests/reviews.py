"""Finished runs with explanations of invented posts, as a score job leaves them, and the review of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mentalglm.config import ReviewConfig
from mentalglm.corpus import normalise, text_hash
from mentalglm.corpus.synthetic import TASKS, SyntheticPost, generate_posts
from mentalglm.tasks import Task, load_task

RUNS = ("alpha_system", "beta_system")
"""Names that no page may hold."""


def write_runs(folder: Path, posts: Sequence[SyntheticPost]) -> None:
    """posts.parquet, and `RUNS`; the second one says something more in every explanation."""
    texts = {"post_id": [post.post_id for post in posts], "text": [post.text for post in posts]}
    pq.write_table(pa.table(texts), folder / "posts.parquet")
    for number, run in enumerate(RUNS):
        for task in map(load_task, TASKS):
            place = folder / run / "data" / f"task={task.name}"
            place.mkdir(parents=True)
            pq.write_table(_predictions(task, posts, "由此可以推断。" * number), place / "part-0.parquet")
        manifest = {
            "run_id": f"{run}-1",
            "tasks": [{"name": name} for name in TASKS],
            "model": {"name": f"{run}-9b"},
            "input": {"uri": str(folder / "posts.parquet"), "format": "auto"},
        }
        (folder / run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        (folder / run / "_SUCCESS").touch()


def _predictions(task: Task, posts: Sequence[SyntheticPost], more: str) -> pa.Table:
    labels = [list(post.labels[task.name]) for post in posts]
    parents = [list(dict.fromkeys(task.by_slug[slug].parent for slug in slugs)) for slugs in labels]
    columns = {
        "post_id": [post.post_id for post in posts],
        "status": pa.array(["ok"] * len(posts)).dictionary_encode(),
        "labels": pa.array(labels, pa.list_(pa.string())),
        "parents": pa.array(parents if task.kind == "hierarchical" else [None] * len(posts), pa.list_(pa.string())),
        "explanation": [post.explanations[task.name] + more for post in posts],
        "confidence": pa.array([0.87654] * len(posts), pa.float32()),
        "text_hash": [text_hash(normalise(post.text)[0]) for post in posts],
    }
    return pa.table(columns)


def review_config(folder: Path, runs: Sequence[str] = RUNS, **changes: Any) -> ReviewConfig:
    """A review of two items of each run."""
    data: dict[str, Any] = {
        "runs": {run: {"uri": str(folder / run)} for run in runs},
        "sample": {"suicide_risk": 2},
        "experts": ["expert_a", "expert_b"],
        "output": {"uri": str(folder / "review")},
        "num_bootstrap": 200,
    }
    return ReviewConfig.model_validate(data | changes)


def write_demo_runs(folder: Path, num_posts: int = 40) -> None:
    """`write_runs` of posts that are the same on every machine."""
    write_runs(folder, list(generate_posts(num_posts, seed=7)))
