"""The predictions of a score run, or of a Parquet file that looks like one, and what made them."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from mentalglm import storage
from mentalglm.errors import ConfigError, InputError
from mentalglm.evaluation.align import NEEDED, check_columns
from mentalglm.tasks import Task

Which = Literal["all", "ok", "explained"]

READ = (*NEEDED, "parents", "flags", "probability", "label_scores", "text_hash", "explanation", "text")
"""What an evaluation reads, where it is there."""
_FIRST_WITH_FORM = 4
"""Parser version."""
_BATCH_ROWS = 65_536
_OF_RUN = re.compile(r"(?<=/)(?:task|adapter)=[^/]*(?=/)")
"""Folders of a run's `data` that are no partitions."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions of one task, of one adapter."""

    table: pa.Table
    """Those columns that were asked for and are there."""
    num_rows: int
    """All that there are, also those that were not asked for."""
    provenance: dict[str, Any]
    """What made them, as their manifest or footer says: run_id, model, task, parser, versions, input; and `uri`."""
    tells_form: bool
    """Whether answers that had not the task's form are flagged."""


@dataclass(frozen=True, slots=True)
class StoredPredictions:
    """Predictions of one task, of one adapter, that are not read yet."""

    dataset: pads.Dataset
    columns: list[str]
    """Those that were asked for and are there."""
    condition: pads.Expression | None
    """Of the rows that were asked for."""
    provenance: dict[str, Any]
    """See `Predictions`."""
    tells_form: bool
    """See `Predictions`."""

    def read(self) -> Predictions:
        """All of them. Raises: InputError for a file that is damaged."""
        schema = self.dataset.scanner(columns=self.columns).projected_schema
        table = pa.Table.from_batches(self.batches(), schema)
        num_rows = len(table) if self.condition is None else self.dataset.count_rows()
        return Predictions(table, num_rows, self.provenance, self.tells_form)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All of them, in memory that does not grow with the run. Raises: InputError for a file that is damaged."""
        return scan(self.dataset, self.columns, self.condition, field="predictions")


def find_predictions(
    uri: str,
    task: Task,
    adapter: str | None,
    only: Iterable[str] | None = None,
    *,
    columns: Sequence[str] = READ,
    which: Which = "all",
) -> StoredPredictions:
    """`uri`: folder of a finished run, or a Parquet file or folder. `only`: the ids to read; null: all. `which`: rows
    whose status is ok, or of these those that have an explanation that is more than white space.

    Raises: ConfigError where the run has no such task or adapter; InputError where it is not finished, or there is
    nothing to read, or not these columns.
    """
    manifest = _manifest(uri)
    if manifest is None:
        if adapter is not None:
            raise ConfigError(f"adapter = {adapter}: {uri} is no run, which alone has adapters; leave it out")
        dataset = _open(uri, uri)
        _check_is_of_one_task(uri, dataset)
        provenance = _footer(dataset)
        if (told := [each["name"] for each in provenance.get("tasks", [])]) and task.name not in told:
            raise ConfigError(f"task = {task.name}: {uri} answers {', '.join(told)}; name the task, or its own file")
    else:
        provenance = manifest
        dataset = _open(uri, storage.join(uri, "data", *_folders(uri, manifest, task, adapter)))
    check_columns(dataset.schema)
    columns = [name for name in columns if name in dataset.schema.names and not _is_void(dataset.schema, name)]
    conditions = list(_conditions(uri, dataset.schema, only, which))
    parser = provenance.get("fingerprint", {}).get("parser")
    return StoredPredictions(
        dataset,
        columns,
        reduce(and_, conditions) if conditions else None,
        _told(provenance, task) | {"uri": uri, "adapter": adapter, "parser": parser},
        tells_form="flags" in columns and (parser is None or int(parser) >= _FIRST_WITH_FORM),
    )


def scan(
    dataset: pads.Dataset,
    columns: Sequence[str] | Mapping[str, pads.Expression],
    condition: pads.Expression | None = None,
    *,
    field: str,
) -> Iterator[pa.RecordBatch]:
    """The rows, some thousands at a time, file by file: a scanner of the whole data set reads ahead the further, the
    more files there are. `field`: of the config, which errors name. Raises: InputError for a file that is damaged."""
    for fragment in dataset.get_fragments():
        try:
            scanner = fragment.scanner(
                schema=dataset.schema,
                columns=columns,
                filter=condition,
                batch_size=_BATCH_ROWS,
                batch_readahead=2,
                cache_metadata=False,
            )
            for batch in scanner.to_batches():
                if batch.num_rows:
                    yield batch
        except (OSError, pa.ArrowException):
            raise InputError(f"{field} = {fragment.path}: cannot be read as Parquet; restore the file") from None


def _conditions(uri: str, schema: pa.Schema, only: Iterable[str] | None, which: Which) -> Iterator[pads.Expression]:
    if only is not None:
        yield pads.field("post_id").cast(pa.string()).isin(pa.array(only, pa.string()))
    if which != "all":
        yield pads.field("status").cast(pa.string()) == "ok"
    if which == "explained":
        if "explanation" not in schema.names:
            raise InputError(f"predictions = {uri}: have no column explanation; give a run that explains its answers")
        yield pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(pads.field("explanation").cast(pa.string()))), 0)


def _manifest(uri: str) -> dict[str, Any] | None:
    """Of the run in the folder `uri`; None where it is no run. Raises: InputError where the run is not finished."""
    fs, path = storage.filesystem(uri)
    if fs.get_file_info(path).is_file:
        return None
    if storage.exists(storage.join(uri, "_SUCCESS")):
        data = storage.read_bytes(storage.join(uri, "manifest.json"))
        found: dict[str, Any] | None = json.loads(data) if data is not None else None
        return found
    if storage.exists(storage.join(uri, "_run", "run.json")):
        raise InputError(f"predictions = {uri}: the run is not finished; run its score command to the end")
    return None


def _folders(uri: str, manifest: dict[str, Any], task: Task, adapter: str | None) -> list[str]:
    names = [each["name"] for each in manifest["tasks"]]
    if task.name not in names:
        raise ConfigError(f"task = {task.name}: the run {uri} has {', '.join(names)}; name one of them")
    adapters = list(manifest["model"].get("adapters") or {})
    if adapter not in (adapters or [None]):
        has = f"has the adapters {', '.join(adapters)}; name one" if adapters else "has no adapters; leave it out"
        raise ConfigError(f"adapter = {adapter}: the run {uri} {has}")
    return [f"task={task.name}", *([f"adapter={adapter}"] if adapter else [])]


def _open(uri: str, folder: str) -> pads.Dataset:
    fs, path = storage.filesystem(folder)
    try:
        dataset = pads.dataset(path, format="parquet", filesystem=fs)
        if not dataset.files:
            raise FileNotFoundError
    except FileNotFoundError:
        raise InputError(f"predictions = {uri}: no Parquet there; name a run's folder, or Parquet") from None
    except pa.ArrowException as error:
        raise InputError(f"predictions = {uri}: cannot be read as Parquet ({type(error).__name__})") from None
    return dataset


def _check_is_of_one_task(uri: str, dataset: pads.Dataset) -> None:
    """Raises: InputError for a run's folder `data`, or one in it, that holds several tasks or adapters."""
    folders = {tuple(_OF_RUN.findall(file)) for file in dataset.files}
    if len(folders) > 1:
        found = ", ".join(sorted("/".join(each) or "." for each in folders))
        raise InputError(
            f"predictions = {uri}: holds those of {found}; name the run's folder, in which task and adapter choose"
        )


def _is_void(schema: pa.Schema, name: str) -> bool:
    """Whether nothing is in the column but nulls, as other programs write an optional one that they do not have."""
    return name not in NEEDED and pa.types.is_null(schema.field(name).type)


def _footer(dataset: pads.Dataset) -> dict[str, Any]:
    """What a file of ours says of itself; nothing where it is another's."""
    found = (dataset.schema.metadata or {}).get(b"mentalglm")
    told: dict[str, Any] = json.loads(found) if found else {}
    return told


def _told(provenance: dict[str, Any], task: Task) -> dict[str, Any]:
    kept = {
        name: provenance.get(name) for name in ("run_id", "finished_at", "model", "generation", "versions", "input")
    }
    of_task = [each for each in provenance.get("tasks", []) if each["name"] == task.name]
    return kept | {"task": of_task[0] if of_task else None}
