"""How long an evaluation takes: `python -m mentalglm.measure.evaluation`.

A million predictions of each task that the paper has, from Parquet to `metrics.json` and `rows.parquet`, as `mentalglm
eval` makes them, with 10,000 bootstrap replicates; and the replicates of the paper's four columns alone, at the sizes
of its test sets.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mentalglm.config import EvalConfig
from mentalglm.evaluation import Evaluation, evaluate
from mentalglm.evaluation.job import evaluate_run
from mentalglm.tasks import Task, load_task

_TEST_SETS = {"suicide_risk": 250, "cognitive_distortion": 682, "cognitive_pathway": 945}
"""Rows of the paper's, table 2."""
_SHARE_RIGHT = 0.7
_NUM_LABELS = (0.85, 0.12, 0.03)
"""Share of rows with one label, two and three, where a task may have several: 1.18 a row, as SocialCD-3K has."""


def main() -> None:
    """Prints a line for each measurement."""
    parser = argparse.ArgumentParser(description="Time evaluations.")
    parser.add_argument("--num-rows", type=int, default=1_000_000)
    parser.add_argument("--num-bootstrap", type=int, default=10_000)
    options = parser.parse_args()
    for line in measure(options.num_rows, options.num_bootstrap):
        print(line, flush=True)


def measure(num_rows: int, num_bootstrap: int) -> Iterator[str]:
    """Wall and processor seconds of each, for people."""
    with tempfile.TemporaryDirectory(prefix="mentalglm-evaluation-") as temporary:
        for name in _TEST_SETS:
            config = _write(Path(temporary) / name, load_task(name), num_rows, num_bootstrap)
            wall, processor = time.monotonic(), time.process_time()
            metrics = evaluate_run(config)
            yield (
                f"{name}: {metrics['n']:,} predictions evaluated with {num_bootstrap:,} replicates in "
                f"{time.monotonic() - wall:.1f} s, {time.process_time() - processor:.1f} s of processor time"
            )
    evaluations = [_evaluation(load_task(name), size, num_bootstrap) for name, size in _TEST_SETS.items()]
    wall, processor = time.monotonic(), time.process_time()
    num_columns = sum(len(evaluation.ci95) for evaluation in evaluations)
    yield (
        f"{num_columns} columns of the paper's sizes: intervals of {num_bootstrap:,} replicates in "
        f"{time.monotonic() - wall:.1f} s, {time.process_time() - processor:.1f} s of processor time"
    )


def _write(folder: Path, task: Task, num_rows: int, num_bootstrap: int) -> EvalConfig:
    """Gold labels and predictions as files, and the config that holds them against each other."""
    folder.mkdir()
    ids, gold, predicted = _rows(task, num_rows)
    pq.write_table(pa.table({"post_id": ids, "label": gold}), folder / "gold.parquet")
    pq.write_table(_predictions(ids, predicted), folder / "predictions.parquet")
    return EvalConfig.model_validate(
        {
            "task": task.name,
            "predictions": str(folder / "predictions.parquet"),
            "gold": {"uri": str(folder / "gold.parquet")},
            "output": {"uri": str(folder / "out")},
            "num_bootstrap": num_bootstrap,
        }
    )


def _evaluation(task: Task, num_rows: int, num_bootstrap: int) -> Evaluation:
    ids, gold, predicted = _rows(task, num_rows)
    labels = dict(zip(ids.to_pylist(), gold.to_pylist(), strict=True))
    return evaluate(task, labels, _predictions(ids, predicted), num_bootstrap=num_bootstrap)


def _predictions(ids: pa.Array, predicted: pa.Array) -> pa.Table:
    """Every 50th answer could not be read."""
    statuses = ["truncated" if row % 50 == 49 else "ok" for row in range(len(ids))]
    flags = pa.array([[]] * len(ids), pa.list_(pa.string()))
    status = pa.array(statuses).dictionary_encode()
    return pa.table({"post_id": ids, "status": status, "labels": predicted, "flags": flags})


def _rows(task: Task, num_rows: int) -> tuple[pa.Array, pa.Array, pa.Array]:
    """(ids, gold labels, predicted ones), random from a seed."""
    random = np.random.default_rng(0)
    gold, other = (_labels(task, random, num_rows) for _ in range(2))
    is_right = random.random(num_rows) < _SHARE_RIGHT
    predicted = [mine if right else wrong for mine, wrong, right in zip(gold, other, is_right, strict=True)]
    ids = pa.array([f"{row:016d}" for row in range(num_rows)])
    kind = pa.list_(pa.string())
    return ids, pa.array(gold, kind), pa.array(predicted, kind)


def _labels(task: Task, random: np.random.Generator, num_rows: int) -> list[list[str]]:
    slugs = task.answerable
    shares = (1.0,) if task.kind in ("binary", "multiclass") else _NUM_LABELS
    counts = random.choice(np.arange(1, len(shares) + 1), num_rows, p=shares).tolist()
    starts = random.integers(0, len(slugs), num_rows).tolist()
    steps = random.integers(1, max(2, len(slugs) // len(shares)), num_rows).tolist()  # no label twice
    return [
        [slugs[(start + step * number) % len(slugs)] for number in range(count)]
        for start, step, count in zip(starts, steps, counts, strict=True)
    ]


if __name__ == "__main__":
    main()
