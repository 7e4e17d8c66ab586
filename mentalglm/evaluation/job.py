"""The eval job: predictions and gold labels in, `metrics.json` and a table out."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mentalglm import storage
from mentalglm.config import EvalConfig
from mentalglm.errors import InputError
from mentalglm.evaluation.compare import compare
from mentalglm.evaluation.evaluate import Evaluation, evaluate
from mentalglm.evaluation.explanations import count_explanations
from mentalglm.evaluation.gold import Gold, read_gold_file, read_text_hashes
from mentalglm.evaluation.predictions import Predictions, find_predictions
from mentalglm.evaluation.reliability import reliability_diagram
from mentalglm.evaluation.rows import row_table
from mentalglm.evaluation.table import markdown
from mentalglm.manifest import code_version
from mentalglm.tasks import Task, load_task


def evaluate_run(config: EvalConfig, *, dry_run: bool = False) -> dict[str, Any]:
    """Evaluates, writes to the output what `mentalglm eval` promises (not with `dry_run`), and returns what
    `metrics.json` holds.

    Raises: ConfigError, InputError.
    """
    storage.configure(config.s3)
    task = load_task(config.task)
    job = _Job(config, task, read_gold_file(task, config.gold))
    predictions = job.read(config.predictions, config.adapter)
    evaluation = job.evaluate(predictions)
    _check_task(evaluation)

    metrics = evaluation.to_json() | {"num_without_gold": predictions.num_rows - len(job.gold.labels)}
    if config.training is not None:
        metrics["without_training_texts"] = job.without_training_texts(predictions)
    if explained := job.explanations(predictions):
        metrics["explanations"] = explained
    if config.repeats:
        metrics["over_runs"] = job.over_runs(evaluation)
    if config.against is not None or config.against_adapter is not None:
        metrics["comparison"] = job.compare(evaluation)
    metrics["provenance"] = job.provenance(predictions)
    if not dry_run:
        _write(config.output.uri, metrics, row_table(evaluation))
    return metrics


@dataclass(frozen=True, slots=True)
class _Job:
    config: EvalConfig
    task: Task
    gold: Gold

    def read(self, uri: str, adapter: str | None) -> Predictions:
        """The predictions there, or those of them that have gold labels."""
        only = self.gold.labels if self.config.extra_predictions == "ignore" else None
        return find_predictions(uri, self.task, adapter, only).read()

    def evaluate(self, predictions: Predictions) -> Evaluation:
        """Against all gold labels."""
        return evaluate(
            self.task,
            self.gold.labels,
            predictions.table,
            clusters=self.gold.clusters,
            num_bootstrap=self.config.num_bootstrap,
            seed=self.config.seed,
            tells_form=predictions.tells_form,
        )

    def without_training_texts(self, predictions: Predictions) -> dict[str, Any]:
        """The metrics of the rows whose text the model was not trained on, and how many were left out for that."""
        assert self.config.training is not None
        if "text_hash" not in predictions.table.column_names:
            raise InputError("training: the predictions have no column text_hash to find their texts by; leave it out")
        hashes = pa.array(sorted(read_text_hashes(self.config.training)), pa.string())
        is_seen = pc.is_in(predictions.table["text_hash"].cast(pa.string()), value_set=hashes)
        seen = set(predictions.table.filter(is_seen)["post_id"].cast(pa.string()).to_pylist())
        labels = {post_id: slugs for post_id, slugs in self.gold.labels.items() if post_id not in seen}
        found: dict[str, Any] = {"num_in_training": len(seen)}
        if not seen or not labels:
            return found
        rest = _Job(self.config, self.task, Gold(labels, self.gold.clusters, self.gold.source))
        table = predictions.table.filter(pc.invert(is_seen))
        return found | rest.evaluate(Predictions(table, len(table), {}, predictions.tells_form)).to_json()

    def explanations(self, predictions: Predictions) -> dict[str, Any] | None:
        """What is counted of the explanations, if there are some."""
        config = self.config
        found = count_explanations(
            self.task,
            predictions,
            config.posts,
            clusters=self.gold.clusters,
            num_bootstrap=config.num_bootstrap,
            seed=config.seed,
        )
        return found if found and (found["num_explained"] or config.posts is not None) else None

    def over_runs(self, evaluation: Evaluation) -> dict[str, Any]:
        """Level -> score -> its values, mean and standard deviation (n - 1) over the runs: what another seed changes,
        which an interval over posts does not tell."""
        others = [self.evaluate(self.read(uri, self.config.adapter)) for uri in self.config.repeats]
        return {
            level.name: {
                score: _spread([float(getattr(_scores_of(each, number), score)) for each in [evaluation, *others]])
                for score in ("precision", "recall", "f1")
            }
            for number, level in enumerate(evaluation.levels)
        }

    def compare(self, evaluation: Evaluation) -> dict[str, Any]:
        """The predictions and those of `against`, row by row."""
        config = self.config
        other = self.read(config.against or config.predictions, config.against_adapter)
        levels = compare(evaluation, self.evaluate(other))
        return {"against": other.provenance, "levels": {name: asdict(each) for name, each in levels.items()}}

    def provenance(self, predictions: Predictions) -> dict[str, Any]:
        """What made the numbers."""
        return {
            "predictions": predictions.provenance,
            "gold": {**self.config.gold.model_dump(), **self.gold.source},
            "training": self.config.training.model_dump() if self.config.training else None,
            "posts": self.config.posts.model_dump() if self.config.posts else None,
            "repeats": self.config.repeats,
            "task": {"name": self.task.name, "version": self.task.version, "digest": self.task.digest},
            "versions": code_version() | {"numpy": np.__version__},
            "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _check_task(evaluation: Evaluation) -> None:
    """Raises: InputError for predictions of another task, or labels that are no slugs: all of them would be wrong."""
    num_out_of_set, slugs = evaluation.rows.num_out_of_set.sum(), evaluation.task.answerable
    if num_out_of_set and not evaluation.rows.predicted.any():
        raise InputError(
            f"predictions: none of their {num_out_of_set} labels is one of {evaluation.task.name}; name the task that "
            f"they answer, or give slugs: {', '.join(slugs[:5])}{', ...' if len(slugs) > 5 else ''}"
        )


def _scores_of(evaluation: Evaluation, number: int) -> Any:
    level = evaluation.levels[number]
    return level.scores(level.counts)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "standard_deviation": float(np.std(values, ddof=1)), "values": [*values]}


def _write(uri: str, metrics: dict[str, Any], rows: pa.Table) -> None:
    told = json.dumps(metrics["provenance"], ensure_ascii=False).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata({b"mentalglm": told}), sink, compression="zstd")
    storage.put(storage.join(uri, "rows.parquet"), sink.getvalue().to_pybytes())
    files = {
        "metrics.json": json.dumps(metrics, ensure_ascii=False, indent=2),
        "metrics.md": markdown(metrics),
        **{
            f"reliability-{slug}.svg": reliability_diagram(slug, of)
            for slug, of in metrics.get("calibration", {}).items()
        },
    }
    for name, text in files.items():
        storage.put(storage.join(uri, name), text.encode())
    for name in storage.list_names(uri):  # an evaluation before this one may have had other labels
        if fnmatch(name, "reliability-*.svg") and name not in files:
            storage.delete(storage.join(uri, name))
