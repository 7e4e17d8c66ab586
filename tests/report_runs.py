"""Finished score runs made of rows, as small as a test needs them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mentalglm import manifest
from mentalglm.config import ScoreConfig
from mentalglm.scoring.predictions import SCHEMA_VERSION, prediction_schema
from mentalglm.tasks import Task, load_task

THROUGHPUT = {
    "num_predictions": 900,
    "num_engines": 2,
    "wall_s": 60.0,
    "rows_per_s": 15.0,
    "rows_per_s_steady": 31.5,
    "output_tokens_per_s": 410.0,
    "cpu_ms_per_row": {"client": 1.2, "driver": 0.4},
    "engine_s": {"cold_start": 40.0, "busy": 70.0, "ramp": 1.0, "starved": 2.0, "tail": 5.0, "finish": 2.0},
    "slots_busy": 0.58,
}

Row = dict[str, Any]


def row(number: int, labels: Sequence[str] | None, **more: Any) -> Row:
    """A prediction; without labels a failure."""
    status = "ok" if labels is not None else "parse_failed"
    return {"post_id": f"p{number:07d}", "status": status, "labels": labels, "flags": [], **more}


def write_run(
    folder: Path,
    rows: Mapping[str, Sequence[Row]],
    *,
    tasks: Mapping[str, str] | None = None,
    kept: pa.Schema | None = None,
    adapters: Sequence[str] = (),
    keep_text: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """`rows`: key of a question -> its predictions. `tasks`: name -> path, of those that are not built in. `changes`:
    of the manifest, by key."""
    names = list(dict.fromkeys(key.split("/")[0] for key in rows))
    paths = dict(tasks or {})
    loaded: list[Task] = [load_task(paths.get(name, name)) for name in names]
    kept = kept if kept is not None else pa.schema([])
    config = ScoreConfig.model_validate(
        {
            "input": {"uri": "posts.parquet", "keep_columns": kept.names},
            "output": {"uri": str(folder), "keep_text": keep_text},
            "tasks": [paths.get(name, name) for name in names],
            "model": {"adapters": dict.fromkeys(adapters)} if adapters else {},
            "engine": {"kind": "vllm"},
        }
    )
    schema = prediction_schema(config, kept)
    for key, of in rows.items():
        path = folder / "data" / f"task={key}" / "part-00000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {field.name: [each.get(field.name) for each in of] for field in schema}
        pq.write_table(
            pa.table({name: pa.array(column, schema.field(name).type) for name, column in columns.items()}),
            path,
            row_group_size=64,
        )
    told = {
        name: {"name": name, "version": task.version, "digest": task.digest}
        for name, task in zip(names, loaded, strict=True)
    }
    footer = manifest.footer(
        run_id=folder.name,
        model={"engine": "vllm", "name": "demo", "digest": "d" * 64, "revision": None, "adapter": None}
        | (
            {"adapters": {name: {"path": f"adapters/{name}", "digest": "a" * 64} for name in adapters}}
            if adapters
            else {}
        ),
        tasks=list(told.values()),
        generation={},
        explain="all",
        cascade=None,
        label_scores="off",
    )
    whole = manifest.manifest(
        footer=footer,
        fingerprint={
            "parser": "4",
            "schema": SCHEMA_VERSION,
            "input": {"keep_columns": kept.names},
            "keep_text": keep_text,
            "partition_by": [],
        },
        input={"digest": "e" * 64, "num_files": 1, "num_rows": len(next(iter(rows.values()))), "quarantined": []},
        output={
            "statuses": {key: dict(Counter(each["status"] for each in of)) for key, of in rows.items()},
            "labels": {key: dict(Counter(s for each in of for s in each["labels"] or ())) for key, of in rows.items()},
            "explained": {},
            "engines": [{"engine": "vllm", "vllm": "0.32.0", "device": "cpu", "dtype": "bfloat16"}],
            "num_copied": 0,
            "num_unreadable_rows": 0,
            "num_engine_restarts": 0,
            "num_prompt_tokens": 1000,
            "num_output_tokens": 100,
            "files": [],
        },
        throughput=THROUGHPUT,
        seconds=60.0,
    )
    (folder / "manifest.json").write_text(json.dumps(whole | dict(changes or {})), encoding="utf-8")
    (folder / "_run").mkdir(exist_ok=True)
    (folder / "_run" / "run.json").write_text(json.dumps({"config": config.model_dump(mode="json")}), encoding="utf-8")
    (folder / "_SUCCESS").touch()
    return folder
