"""Files that people made: gold labels, and the texts that a model was trained on."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mentalglm import storage
from mentalglm.config import GoldConfig, TrainingTextsConfig
from mentalglm.corpus import normalise, replace_surrogates, text_hash
from mentalglm.errors import InputError
from mentalglm.evaluation.align import NEEDED
from mentalglm.evaluation.predictions import Which, find_predictions
from mentalglm.tasks import Task, read_gold
from mentalglm.tasks.task import Slug

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Gold:
    """The labels that people gave."""

    labels: dict[str, tuple[Slug, ...]]
    """Post id -> slugs in label-set order; none where no label applies."""
    clusters: dict[str, str] | None
    """Post id -> what it is resampled with."""
    source: dict[str, Any]
    """What they are from: `sha256` of the file, and `labels_sha256` of the ids and labels in it; or what made the run
    whose labels they are."""


def read_gold_file(task: Task, config: GoldConfig) -> Gold:
    """Raises: InputError for a file that cannot be read, an id that is missing or comes twice, or labels that are not
    the task's: how many rows, the first of them, and what is wrong. Values are not quoted: the column may be wrong.
    Of a run, what `find_predictions` raises, and where it has no such row.
    """
    fs, path = storage.filesystem(config.uri)
    if fs.get_file_info(path).type == pafs.FileType.Directory:
        return _labels_of_run(task, config)
    where = f"gold.uri = {config.uri}"
    columns = [config.id_column, config.label_column, *([config.cluster_column] if config.cluster_column else [])]
    data = _read(where, config.uri)
    labels: dict[str, tuple[Slug, ...]] = {}
    clusters: dict[str, str] = {}
    known: dict[str, tuple[Slug, ...]] = {}
    problems: list[str] = []
    for number, values in enumerate(_rows(where, config.uri, data, columns), 1):
        name = f"row {number}"
        try:
            name = _id(values[0], config.id_column)
            if name in labels:
                raise ValueError("the id comes twice")
            key = repr(values[1])
            if key not in known:
                known[key] = read_gold(task, values[1])
            labels[name] = known[key]
            if config.cluster_column:
                clusters[name] = _id(values[2], config.cluster_column)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise InputError(
            f"{where}: {len(problems)} rows are no gold labels ({'; '.join(problems[:_SHOWN])}); mend them"
        )
    if not labels:
        raise InputError(f"{where}: holds no rows; give a file with at least one label")
    source = {"sha256": hashlib.sha256(data).hexdigest(), "labels_sha256": _digest(labels)}
    return Gold(labels, clusters or None, source)


def _digest(labels: dict[str, tuple[Slug, ...]]) -> str:
    """sha256 of ids and labels, in whatever file, column and order they stand."""
    return hashlib.sha256(json.dumps(sorted(labels.items())).encode()).hexdigest()


def _labels_of_run(task: Task, config: GoldConfig) -> Gold:
    """The labels that a run gave, as if they were true."""
    which: Which = "explained" if config.only_explained else "ok"
    run = find_predictions(config.uri, task, config.adapter, columns=NEEDED, which=which).read()
    if num_missing := run.table["labels"].null_count:
        raise InputError(f"gold.uri = {config.uri}: {num_missing} rows are ok without labels; mend them")
    columns = (run.table["post_id"].cast(pa.string()).to_pylist(), run.table["labels"].to_pylist())
    labels = {post_id: tuple(slugs) for post_id, slugs in zip(*columns, strict=True)}
    if len(labels) < len(run.table):
        raise InputError(
            f"gold.uri = {config.uri}: {len(run.table) - len(labels)} ids come twice; make a run of each once"
        )
    if not labels:
        what = "is ok and has an explanation" if config.only_explained else "is ok"
        raise InputError(f"gold.uri = {config.uri}: no row {what}; name another run")
    return Gold(labels, None, {"run": run.provenance, "num_left_out": run.num_rows - len(labels)})


def read_text_hashes(config: TrainingTextsConfig) -> set[str]:
    """`text_hash` of every text, as a score run makes it. Raises: InputError for a file that cannot be read."""
    where = f"training.uri = {config.uri}"
    rows = _rows(where, config.uri, _read(where, config.uri), [config.text_column])
    return {text_hash(normalise(str(text))[0]) for (text,) in rows if text is not None}


def _id(value: Any, column: str) -> str:
    if value is None or value == "":
        raise ValueError(f"{column} is empty")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{column} is a {type(value).__name__}; ids are text or whole numbers")
    if replace_surrogates(str(value)) != str(value):
        raise ValueError(f"{column} is no text in Unicode (a lone surrogate)")
    return str(value)


def _read(where: str, uri: str) -> bytes:
    data = storage.read_bytes(uri)
    if data is None:
        raise InputError(f"{where}: no such file; give a file of JSONL, CSV or Parquet")
    return data


def _rows(where: str, uri: str, data: bytes, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of `columns`, row by row; of CSV, texts."""
    suffix = uri.rpartition(".")[2].lower()
    try:
        if suffix in ("parquet", "parq", "pq"):
            yield from _parquet_rows(where, data, columns)
        elif suffix in ("jsonl", "ndjson"):
            lines = data.decode("utf-8-sig").split("\n")
            yield from (_values(where, json.loads(line), columns) for line in lines if line.strip())
        elif suffix == "csv":
            csv.field_size_limit(max(len(data), csv.field_size_limit()))  # a text may be longer than its 131,072
            reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
            yield from (_values(where, row, columns) for row in reader)
        else:
            raise InputError(f"{where}: the name does not tell what it is; name it .jsonl, .csv or .parquet")
    except (ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{where}: cannot be read as {suffix} in UTF-8 ({type(error).__name__})") from None


def _parquet_rows(where: str, data: bytes, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    file = pq.ParquetFile(pa.BufferReader(data))
    _check(where, file.schema_arrow.names, columns)
    for batch in file.iter_batches(columns=list(columns)):
        yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def _values(where: str, row: Any, columns: Sequence[str]) -> tuple[Any, ...]:
    _check(where, row if isinstance(row, dict) else {}, columns)
    return tuple(row[name] for name in columns)


def _check(where: str, names: Any, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in names:
            raise InputError(f"{where}: has no column {name!r} (in every row); name another one")
