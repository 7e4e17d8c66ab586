"""Labelled posts: read from files, checked with the parser that will read the model's answers, and split."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mentalglm import storage
from mentalglm.config import RecordsConfig
from mentalglm.config.records import EXPLANATION_COLUMN
from mentalglm.corpus import normalise, replace_surrogates
from mentalglm.errors import ConfigError, InputError
from mentalglm.tasks import Task, load_task, parse_answer, read_gold, render_answer
from mentalglm.tasks.task import Slug

_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Record:
    """One post, one task and the answer to learn."""

    task: Task
    text: str
    """In its normal form, as scoring sees posts."""
    labels: Sequence[Slug]
    """None where no label applies."""
    explanation: str | None
    id: str = ""
    """Unique among the records of a stage's training, and of its validation."""
    source: int = 0
    """Which of the stage's files it is from, counted from 0."""
    part: int = 0
    """Which part of the mixture it belongs to: its file or, where tasks have weights of their own, its task in it."""


@dataclass(frozen=True)
class Records:
    """Records of one or more files."""

    rows: Sequence[Record]
    references: dict[str, str] = field(default_factory=dict)
    """Name of a task -> what `load_task` takes for it: a built-in name, or the path of a file."""
    weights: Sequence[float] = (1.0,)
    """Of each part of the mixture: how often its rows are seen in an epoch."""

    @property
    def tasks(self) -> dict[str, Task]:
        """Name -> task, of those that occur."""
        return {record.task.name: record.task for record in self.rows}

    @cached_property
    def digest(self) -> str:
        """sha256 over all that is learned from them, whatever file and columns it was read from."""
        digest = hashlib.sha256()
        for row in self.rows:
            told = [row.id, row.source, row.task.digest, row.text, list(row.labels), row.explanation]
            digest.update(json.dumps(told, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()


def read_records(sources: Sequence[RecordsConfig], key: str) -> Records:
    """All rows of the files, in order. `key`: where the config names them, for messages.

    Raises: ConfigError for a task that is not known, or weighs and does not occur; InputError for a file that cannot be
    read, is empty or lacks the explanations that the config names, and for rows that are no records or whose answer the
    task's parser does not read back as their labels: how many, with the first ones and what is wrong with each.
    Messages name rows by id and quote no text.
    """
    rows: list[Record] = []
    references: dict[str, str] = {}
    parts: dict[tuple[int, str | None], float] = {}
    for number, source in enumerate(sources):
        where = f"{key}[{number}] = {source.uri}"
        data = storage.read_bytes(source.uri)
        if data is None:
            raise InputError(f"{where}: no such file; give a JSONL or Parquet file")
        rows += _read_source(_Reader(source, number, where, references, parts), _table_rows(where, data))
    return Records(rows, references, list(parts.values()))


def split(records: Records, fraction: float, seed: int) -> tuple[Records, Records]:
    """(training, validation), with about `fraction` of the texts in the second.

    A hash of seed and text decides: equal texts lie on one side, and where a record lies depends on no other record.
    Raises: InputError where a side would be empty.
    """
    threshold = int(fraction * 2**64)
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in records.rows:
        value = hashlib.blake2b(f"{seed} {record.text}".encode(), digest_size=8).digest()
        sides[int.from_bytes(value) < threshold].append(record)
    if not all(sides):
        raise InputError(
            f"validation_fraction = {fraction}: of {len(records.rows)} records {len(sides[1])} would be held out and "
            f"{len(sides[0])} learned; change it, or name a file of records under validation"
        )
    train, validation = sides
    return replace(records, rows=train), replace(records, rows=validation)


def mixture(sources: Sequence[RecordsConfig]) -> dict[str, Any]:
    """What a fingerprint tells of how they are mixed. Weights of tasks are in it only where there are any, so that what
    was made before they could be given is still known."""
    by_task = [source.task_weights for source in sources]
    return {"weights": [source.weight for source in sources], **({"task_weights": by_task} if any(by_task) else {})}


def num_shared_texts(train: Records, validation: Records) -> int:
    """Validation records whose post is trained on too, on whatever task: they flatter the result."""
    seen = {record.text for record in train.rows}
    return sum(record.text in seen for record in validation.rows)


@dataclass(frozen=True, slots=True)
class _Reader:
    config: RecordsConfig
    number: int
    where: str
    references: dict[str, str]
    """Filled with those of the tasks that are met."""
    parts: dict[tuple[int, str | None], float]
    """Filled with the parts of the mixture as they are met: (file, task or None) -> weight."""

    def part(self, task: Task) -> int:
        """Number of the part that records of this task belong to."""
        config = self.config
        key = (self.number, task.name if config.task_weights else None)
        if key not in self.parts:
            self.parts[key] = config.weight * config.task_weights.get(task.name, 1.0)
        return list(self.parts).index(key)


def _read_source(reader: _Reader, rows: Iterable[dict[str, Any]]) -> list[Record]:
    records: list[Record] = []
    problems: list[str] = []
    ids: Counter[str] = Counter()
    explained_by = reader.config.explanation_column
    has_explanations = explained_by in (None, EXPLANATION_COLUMN)
    num_rows = 0
    for index, row in enumerate(rows):
        num_rows += 1
        name = f"row {index + 1}"
        has_explanations = has_explanations or explained_by in row
        try:
            if reader.config.id_column is not None:
                name = _id(row, reader.config.id_column)
            ids[name] += 1
            if ids[name] == 2:
                raise ValueError("its id occurs twice; ids must differ")
            records.append(_record(reader, name, row))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if not num_rows:
        raise InputError(f"{reader.where}: holds no rows; give a file with records")
    if not has_explanations:
        raise InputError(
            f"{reader.where}: explanation_column = {explained_by}: none of its {num_rows} rows has it; name the column "
            "of the explanations, or null to learn labels alone"
        )
    if problems:
        more = f"; and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else ""
        raise InputError(
            f"{reader.where}: {len(problems)} of {num_rows} rows cannot be learned from: "
            f"{'; '.join(problems[:_MOST_SHOWN])}{more}. Mend or remove them"
        )
    known = {record.task.name for record in records}
    if unknown := sorted(reader.config.task_weights.keys() - known):
        raise ConfigError(
            f"{reader.where}: task_weights: no row has the task {', '.join(unknown)}; name those it has: "
            f"{', '.join(sorted(known))}"
        )
    return records


def _record(reader: _Reader, name: str, row: dict[str, Any]) -> Record:
    """Raises: ValueError, in words that quote nothing of the row."""
    config = reader.config
    task = _task(reader, row)
    text, _ = normalise(_text(row, config.text_column))
    if not text:
        raise ValueError(f"{config.text_column} is empty")
    if config.labels_column not in row:
        raise ValueError(f"no column {config.labels_column}")
    try:
        labels = read_gold(task, row[config.labels_column])
    except ValueError as error:
        raise ValueError(f"{config.labels_column} {error}") from None
    explanation = _explanation(row, config.explanation_column)
    answer = parse_answer(task, render_answer(task, labels, explanation))
    if answer.status != "ok" or answer.labels != labels:
        read = answer.reason or ("other labels" if answer.status == "ok" else answer.status)
        raise ValueError(
            f"the answer made of {config.labels_column} and explanation is not read back as it is ({read})"
        )
    return Record(task, text, labels, explanation, f"{reader.number}:{name}", reader.number, reader.part(task))


def _task(reader: _Reader, row: dict[str, Any]) -> Task:
    config = reader.config
    reference = config.task
    if reference is None:
        name = _text(row, config.task_column)
        reference = config.task_names.get(name, name)
    task = load_task(reference)
    if reader.references.setdefault(task.name, reference) != reference:
        raise ValueError(f"two tasks are named {task.name}; give each task file its own name")
    return task


def _explanation(row: dict[str, Any], column: str | None) -> str | None:
    value = None if column is None else row.get(column)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{column} is {type(value).__name__}, not text")
    return normalise(value)[0] or None


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if column not in row:
        raise ValueError(f"no column {column}")
    if not isinstance(value, str):
        raise ValueError(f"{column} is {type(value).__name__}, not text")
    return value


def _id(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(row, column)
    if not text:
        raise ValueError(f"{column} is empty")
    if replace_surrogates(text) != text:
        raise ValueError(f"{column} is no text in Unicode (a lone surrogate)")
    return text


def _table_rows(where: str, data: bytes) -> Iterator[dict[str, Any]]:
    if data[:4] == b"PAR1":
        try:
            for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(1024):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError):
            raise InputError(f"{where}: is a damaged Parquet file; write it again") from None
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}: is neither Parquet nor UTF-8 text; convert it") from None
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):  # JSON may hold other line separators
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{where}: line {number} is not JSON; write one object in each line") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: line {number} is {type(row).__name__}, not an object; write one in each line")
        yield row
