"""Time and peak memory of a report of many posts: `python -m mentalglm.measure.report --num-posts 2000000`.

Writes runs of random labels, as large as asked for, and makes a page of one of them and of two beside each other, each
in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mentalglm import manifest
from mentalglm.config import ReportConfig
from mentalglm.scoring.predictions import PARQUET_OPTIONS, ROW_GROUP_SIZE
from mentalglm.tasks import load_task

TASKS = ("suicide_risk", "cognitive_distortion")
_FILE_ROWS = 4 * ROW_GROUP_SIZE
_FIRST_SECOND, _SECONDS = 1_577_836_800, 5 * 366 * 86_400  # from 2020 on, five years


def write_random_run(folder: Path, num_posts: int, seed: int) -> None:
    """A finished run over the same posts for every seed, with other labels: those columns that a report reads, and an
    explanation of some length, which it does not."""
    rng = np.random.default_rng(seed)
    statuses: dict[str, Counter[str]] = {}
    labels: dict[str, Counter[str]] = {}
    for name in TASKS:
        statuses[name], labels[name] = Counter(), Counter()
        (folder / "data" / f"task={name}").mkdir(parents=True, exist_ok=True)
        for number, start in enumerate(range(0, num_posts, _FILE_ROWS)):
            table = _random_table(name, start, min(_FILE_ROWS, num_posts - start), rng)
            path = folder / "data" / f"task={name}" / f"part-{number:05d}.parquet"
            pq.write_table(table, path, row_group_size=ROW_GROUP_SIZE, **PARQUET_OPTIONS)
            statuses[name].update(table["status"].to_pylist())
            labels[name].update(table["labels"].combine_chunks().flatten().to_pylist())
    tasks = [load_task(name) for name in TASKS]
    footer = manifest.footer(
        run_id=f"random{seed}",
        model={"engine": "random", "name": "random", "digest": "0" * 64, "revision": None, "adapter": None},
        tasks=[{"name": task.name, "version": task.version, "digest": task.digest} for task in tasks],
        generation={},
        explain="all",
        cascade=None,
        label_scores="off",
    )
    fingerprint = {"parser": "0", "schema": "1", "input": {"keep_columns": ["created_at"]}}
    output: dict[str, Any] = {"statuses": statuses, "labels": labels, "engines": []}
    output |= dict.fromkeys(("num_copied", "num_unreadable_rows", "num_engine_restarts"), 0)
    output |= {"num_prompt_tokens": 0, "num_output_tokens": 0}
    source = {"digest": "0" * 64, "num_files": 1, "num_rows": num_posts, "quarantined": []}
    told = manifest.manifest(
        footer=footer, fingerprint=fingerprint, input=source, output=output, throughput=None, seconds=0.0
    )
    (folder / "manifest.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "_SUCCESS").touch()


def _random_table(name: str, start: int, num_rows: int, rng: np.random.Generator) -> pa.Table:
    task = load_task(name)
    slugs = pa.array(task.answerable, pa.string())
    is_ok = rng.random(num_rows) < 0.99
    sizes = np.where(is_ok, 1 if task.kind == "binary" else rng.integers(0, 3, num_rows), 0)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    chosen = rng.integers(0, len(slugs), int(offsets[-1]))
    lists = pa.ListArray.from_arrays(pa.array(offsets), slugs.take(pa.array(chosen)), mask=pa.array(~is_ok))
    ids = np.arange(start, start + num_rows) * 7919 + 5_110_000_000_000_000
    moments = _FIRST_SECOND + np.arange(start, start + num_rows) * 97 % _SECONDS
    # Failed rows have no result, the others a confidence.
    confidence = pa.array(rng.beta(8, 1, num_rows).astype(np.float32), mask=~is_ok)
    words = pa.array([f"因为{number}" * 12 for number in range(64)])
    return pa.table(
        {
            "post_id": pa.array(ids).cast(pa.string()),
            "status": pa.array(np.where(is_ok, "ok", "truncated")).dictionary_encode(),
            "labels": lists,
            "explanation": words.take(pa.array(rng.integers(0, 64, num_rows))),
            "confidence": confidence,
            "flags": pa.array([[]], pa.list_(pa.string())).take(pa.array(np.zeros(num_rows, np.int64))),
            "created_at": pa.array(moments).cast(pa.timestamp("s")),
        }
    )


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m mentalglm.measure.report", description="Times the report job.")
    parser.add_argument("--num-posts", type=int, default=2_000_000)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/report"))
    parser.add_argument(
        "--only", nargs="*", help="Makes the page of these runs in this process, and tells what it took"
    )
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(_measure(arguments.only, arguments.output / "report.html")))
        return
    runs = [arguments.output / f"{arguments.num_posts}-{seed}" for seed in (1, 2)]
    for seed, run in enumerate(runs, 1):
        if not (run / "_SUCCESS").exists():
            write_random_run(run, arguments.num_posts, seed)
    command = [sys.executable, "-m", "mentalglm.measure.report", "--output", str(arguments.output), "--only"]
    for shown in (runs[:1], runs):
        done = subprocess.run([*command, *map(str, shown)], capture_output=True, text=True, check=True)  # noqa: S603
        took = json.loads(done.stdout)
        num_rows = len(shown) * len(TASKS) * arguments.num_posts
        print(
            f"{len(shown)} run(s), {num_rows:,} predictions: {took['seconds']:.1f} s, "
            f"{num_rows / took['seconds']:,.0f} rows/s, peak memory {took['peak_mb']:,.0f} MB "
            f"(of this, {took['base_mb']:,.0f} before the first row)"
        )


def _measure(runs: list[str], target: Path) -> dict[str, float]:
    from mentalglm.report.job import write_report

    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    write_report(ReportConfig.model_validate({"runs": runs, "output": {"uri": str(target)}}))
    seconds = time.monotonic() - started
    return {
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "base_mb": base / 1024,
    }


if __name__ == "__main__":
    main()
