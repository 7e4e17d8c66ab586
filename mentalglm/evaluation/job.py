"""The eval job: predictions and gold labels in, `metrics.json` and a table out."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mentalglm import storage
from mentalglm.config import EvalConfig
from mentalglm.errors import InputError
from mentalglm.evaluation.evaluate import Evaluation, evaluate
from mentalglm.evaluation.gold import Gold, read_gold_file, read_text_hashes
from mentalglm.evaluation.predictions import Predictions, read_predictions
from mentalglm.evaluation.table import markdown
from mentalglm.manifest import code_version
from mentalglm.tasks import Task, load_task


def evaluate_run(config: EvalConfig, *, dry_run: bool = False) -> dict[str, Any]:
    """Evaluates, writes `metrics.json` and `metrics.md` to the output (not with `dry_run`), and returns what the first
    one holds.

    Raises: ConfigError, InputError.
    """
    storage.configure(config.s3)
    task = load_task(config.task)
    gold = read_gold_file(task, config.gold)
    only = gold.labels if config.extra_predictions == "ignore" else None
    predictions = read_predictions(config.predictions, task, config.adapter, only)
    evaluation = _evaluate(config, task, gold, predictions)

    metrics = evaluation.to_json() | {"num_without_gold": predictions.num_rows - len(gold.labels)}
    if config.training is not None:
        metrics["without_training_texts"] = _without_training_texts(config, task, gold, predictions, evaluation)
    metrics["provenance"] = _provenance(config, task, gold, predictions)
    if not dry_run:
        text = json.dumps(metrics, ensure_ascii=False, indent=2)
        storage.put(storage.join(config.output.uri, "metrics.json"), text.encode())
        storage.put(storage.join(config.output.uri, "metrics.md"), markdown(metrics).encode())
    return metrics


def _evaluate(config: EvalConfig, task: Task, gold: Gold, predictions: Predictions) -> Evaluation:
    return evaluate(
        task,
        gold.labels,
        predictions.table,
        clusters=gold.clusters,
        num_bootstrap=config.num_bootstrap,
        seed=config.seed,
        tells_form=predictions.tells_form,
    )


def _without_training_texts(
    config: EvalConfig, task: Task, gold: Gold, predictions: Predictions, evaluation: Evaluation
) -> dict[str, Any]:
    """The metrics of the rows whose text the model was not trained on, and how many were left out for that."""
    assert config.training is not None
    if "text_hash" not in predictions.table.column_names:
        raise InputError("training: the predictions have no column text_hash, so texts cannot be found; leave it out")
    hashes = pa.array(sorted(read_text_hashes(config.training)), pa.string())
    is_seen = pc.is_in(evaluation.rows.table["text_hash"].cast(pa.string()), value_set=hashes)
    seen = set(evaluation.rows.table.filter(is_seen)["post_id"].cast(pa.string()).to_pylist())
    unseen = {post_id: labels for post_id, labels in gold.labels.items() if post_id not in seen}
    found: dict[str, Any] = {"num_rows_in_training": len(seen)}
    if seen and unseen:
        table = evaluation.rows.table.filter(pc.invert(is_seen))
        rest = evaluate(
            task,
            unseen,
            table,
            clusters=gold.clusters,
            num_bootstrap=config.num_bootstrap,
            seed=config.seed,
            tells_form=predictions.tells_form,
        )
        found |= rest.to_json()
    return found


def _provenance(config: EvalConfig, task: Task, gold: Gold, predictions: Predictions) -> dict[str, Any]:
    """What made the numbers."""
    return {
        "predictions": predictions.provenance,
        "gold": {**config.gold.model_dump(), "sha256": gold.sha256},
        "task": {"name": task.name, "version": task.version, "digest": task.digest},
        "versions": code_version() | {"numpy": np.__version__},
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
