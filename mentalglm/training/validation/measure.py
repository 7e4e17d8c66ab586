"""Validation of a checkpoint: the workers of the score job answer the validation records with it, each record its own
task, and the evaluation counts.

It runs as a task of Ray Train's beside the training, on engines of its own.
"""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mentalglm import storage
from mentalglm.config import S3Config, ScoreConfig, TrainConfig
from mentalglm.corpus.records import Record
from mentalglm.engine.cache import forget_fetched
from mentalglm.errors import InterruptedRunError, UserError
from mentalglm.evaluation import evaluate
from mentalglm.scoring.scratch import score_rows
from mentalglm.tasks import load_task
from mentalglm.training.validation.notes import Validation, write_validation

_LONGEST_CLEANING_S = 60.0


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """The validation records of a stage as a file: posts to score, with their gold labels beside them."""

    stage_uri: str

    @property
    def uri(self) -> str:
        """Holds post text, so it goes when the stage is done."""
        return storage.join(self.stage_uri, "_run", "validation", "records.parquet")

    def write(self, records: Sequence[Record], max_rows: int | None) -> int:
        """Writes the records, or a sample of them: of each task its share, evenly spread. Returns how many."""
        if max_rows is not None and max_rows < len(records):
            records = _sample(records, max_rows)
        table = pa.table(
            {
                "post_id": [record.id for record in records],
                "text": [record.text for record in records],
                "task": [record.task.name for record in records],
                "labels": pa.array([list(record.labels) for record in records], pa.list_(pa.string())),
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        storage.put(self.uri, sink.getvalue().to_pybytes())
        return len(records)

    def rows(self) -> dict[str, list[int]]:
        """Task -> numbers of its records in the file."""
        rows: dict[str, list[int]] = {}
        for number, task in enumerate(self._read("task")["task"].to_pylist()):
            rows.setdefault(task, []).append(number)
        return rows

    def gold(self, task: str) -> dict[str, list[str]]:
        """Post id -> labels, of the records of one task."""
        table = self._read("post_id", "labels", "task").filter(pc.field("task") == task)
        return dict(zip(table["post_id"].to_pylist(), table["labels"].to_pylist(), strict=True))

    def delete(self) -> None:
        """Removes the posts, and what validations that died have left."""
        storage.delete(self.uri)
        scratch = self.scratch_uri
        for file in list(storage.list_files(scratch)):
            storage.delete(storage.join(scratch, file.path))

    @property
    def scratch_uri(self) -> str:
        """Folder for the answers, while they are being counted."""
        return storage.join(self.stage_uri, "_run", "tmp")

    def _read(self, *columns: str) -> pa.Table:
        data = storage.read_bytes(self.uri)
        assert data is not None, "written before training begins"
        return pq.read_table(pa.BufferReader(data), columns=list(columns))


def validate(checkpoint: Any, *, stage_uri: str, config: dict[str, Any], tasks: list[str]) -> dict[str, float]:
    """`ValidationConfig.fn` of Ray Train: validates its checkpoint. Arguments are JSON, as Ray wants them.

    Writes the `Validation` and returns its scores. Whatever fails is written too, and raised.
    """
    settings = TrainConfig.model_validate(config)
    storage.configure(settings.s3)
    name = Path(checkpoint.path).name
    try:
        return validate_checkpoint(settings, stage_uri, name, tasks).scores
    except Exception:  # once more: Ray takes a checkpoint without a score for the worst, and may delete it
        return validate_checkpoint(settings, stage_uri, name, tasks).scores


def validate_checkpoint(config: TrainConfig, stage_uri: str, name: str, tasks: Sequence[str]) -> Validation:
    """Scores and evaluates the checkpoint of this name, and writes down what was found, or why not."""
    started = time.monotonic()
    step = int(name.split("-")[1])
    try:
        metrics, engines = _measure(config, stage_uri, name, tasks)
    except BaseException as error:
        said = str(error) if isinstance(error, UserError) else type(error).__name__
        write_validation(stage_uri, Validation(checkpoint=name, step=step, score=None, error=said))
        raise
    mean = math.fsum(each["f1"] for each in metrics.values()) / len(metrics)
    seconds = round(time.monotonic() - started, 1)
    found = Validation(checkpoint=name, step=step, score=mean, metrics=metrics, engines=engines, seconds=seconds)
    write_validation(stage_uri, found)
    return found


def _sample(records: Sequence[Record], num_rows: int) -> list[Record]:
    found: list[Record] = []
    for task in {record.task.name: None for record in records}:
        rows = [record for record in records if record.task.name == task]
        size = max(1, round(num_rows * len(rows) / len(records)))
        found += [rows[index * len(rows) // size] for index in range(size)]
    return found


def _measure(
    config: TrainConfig, stage_uri: str, name: str, tasks: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """(task -> metrics, what answered)."""
    checkpoint = storage.join(stage_uri, "_run", "checkpoints", name)
    posts = ValidationSet(stage_uri)
    try:
        answers = score_rows(_score_config(config, posts, checkpoint, tasks), posts.rows())
    finally:
        if storage.is_s3(checkpoint):
            _forget_copies(checkpoint, config)
    failed = sum(answers.totals.by_status[status] for status in ("engine_error", "too_long"))
    if failed:
        raise InterruptedRunError(
            f"{failed} answers did not come from selection.engine (engine_error, too_long); what it is worth is not "
            "known"
        )
    metrics: dict[str, Any] = {}
    for task in map(load_task, tasks):
        found = evaluate(task, posts.gold(task.name), answers.tables[task.name], num_bootstrap=0)
        metrics[task.name] = found.to_json() | {"f1": found.headline}
    return metrics, answers.totals.engines


def _forget_copies(checkpoint: str, config: TrainConfig) -> None:
    """Removes what engines have fetched of it, on every node: the next one is as large."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def forget() -> None:
        storage.configure(config.s3)
        forget_fetched(checkpoint)

    on = [
        NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        for node in (ray.nodes() if ray.is_initialized() else [])
        if node["Alive"]
    ]
    task = ray.remote(num_cpus=0, max_retries=0)(forget)
    for copy in [task.options(scheduling_strategy=each).remote() for each in on]:
        with suppress(Exception):  # a node that goes takes its copies along
            ray.get(copy, timeout=_LONGEST_CLEANING_S)


def _score_config(config: TrainConfig, posts: ValidationSet, checkpoint: str, tasks: Sequence[str]) -> ScoreConfig:
    """Labels alone: explanations come after them and change nothing. An answer that cannot be read is a miss."""
    model: dict[str, Any] = {"path": checkpoint}
    if config.method == "lora":
        model = {"path": config.model.path, "revision": config.model.revision, "adapter": checkpoint}
    selection = config.selection
    return ScoreConfig(
        input={"uri": posts.uri},  # type: ignore[arg-type]
        output={"uri": posts.scratch_uri},  # type: ignore[arg-type]
        tasks=list(tasks),
        model=model,  # type: ignore[arg-type]
        engine=selection.engine,
        generation={"max_tokens": selection.max_tokens, "max_prompt_tokens": config.max_prompt_tokens},  # type: ignore[arg-type]
        explain="none",
        s3=S3Config.model_validate(config.s3.model_dump()),
    )
