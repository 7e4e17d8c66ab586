"""The table that a score run writes: one row for each (post, question)."""

import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mentalglm.config import ScoreConfig
from mentalglm.corpus import Posts
from mentalglm.engine.protocol import Completion
from mentalglm.errors import ConfigError
from mentalglm.scoring.questions import question_columns
from mentalglm.tasks import Task, parse_answer, parse_head

SCHEMA_VERSION = "1"

ROW_GROUP_SIZE = 131_072
PARQUET_OPTIONS: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}

_HASH_RANGE = 1 << 128

STATUSES = (
    "ok",
    "parse_failed",
    "truncated",
    "refused",
    "too_long",
    "empty_text",
    "invalid_input",
    "engine_error",
)
"""ok: answered and understood (no label applies: `labels` is empty) · parse_failed: no label could be read from the
answer · truncated: the answer was cut before its labels ended · refused: the model declined · too_long: the prompt does
not fit · empty_text: nothing to score · invalid_input: the row is not a post · engine_error: the engine failed."""

INPUT_STATUSES = frozenset({"empty_text", "invalid_input"})
"""Failures of the input, not of the scoring: no model is asked, and the error budget does not count them."""

_COLUMNS = [
    pa.field("post_id", pa.string()),
    pa.field("status", pa.dictionary(pa.int8(), pa.string()), nullable=False),
    pa.field("labels", pa.list_(pa.string())),
    pa.field("parents", pa.list_(pa.string())),
    pa.field("explanation", pa.string()),
    pa.field("confidence", pa.float32()),
    pa.field("probability", pa.float32()),
    pa.field("finish_reason", pa.string()),
    pa.field("num_prompt_tokens", pa.int32()),
    pa.field("num_output_tokens", pa.int32()),
    pa.field("text_hash", pa.string()),
    pa.field("duplicate_of", pa.string()),
    pa.field("flags", pa.list_(pa.string()), nullable=False),
]

# A map is looked up by label in one expression by DuckDB, Spark, polars and pyarrow, and is a dict's items in pandas; a
# struct would be another type for each task, and a list of structs is to be searched.
_LABEL_SCORES = pa.field("label_scores", pa.map_(pa.string(), pa.float32()))

_ERROR_COLUMNS = [
    pa.field("post_id", pa.string()),
    pa.field("task", pa.string(), nullable=False),
    pa.field("adapter", pa.string(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("reason", pa.string()),
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one (post, question)."""

    status: str
    reason: str | None = None
    labels: tuple[str, ...] | None = None
    parents: tuple[str, ...] | None = None
    explanation: str | None = None
    confidence: float | None = None
    probability: float | None = None
    label_scores: tuple[tuple[str, float], ...] | None = None
    """With `label_scores: forced`: see `LikelyLabels.scores`. Not only where `status` is ok."""
    finish_reason: str | None = None
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    flags: tuple[str, ...] = ()
    duplicate_of: str | None = None
    """Id of the post whose result this is, since it has the same text."""


def interpret(task: Task, completion: Completion) -> Outcome | None:
    """The completion of a prompt as an outcome. Labels only where they could be read: failure is data.

    None for a head that does not say enough by itself. Else the whole answer has the same status, labels, confidence
    and probability.
    """
    usage: dict[str, Any] = {
        "finish_reason": completion.finish_reason,
        "num_prompt_tokens": completion.num_prompt_tokens,
        "num_output_tokens": completion.num_output_tokens,
    }
    if completion.finish_reason == "error":
        return Outcome("engine_error", completion.error, flags=completion.flags, **usage)
    if completion.finish_reason == "too_long":
        return Outcome("too_long", "prompt_too_long", flags=completion.flags, **usage)
    if completion.finish_reason == "refused":
        return Outcome("refused", completion.error or "content_filter", flags=completion.flags, **usage)
    if completion.is_head:
        answer = parse_head(task, completion.text)
        if answer is None:
            return None
    else:
        answer = parse_answer(task, completion.text, finish_reason=completion.finish_reason)
    flags = (*completion.flags, *answer.flags)
    if answer.status != "ok":
        return Outcome(answer.status, answer.reason, flags=flags, **usage)
    return Outcome(
        "ok",
        labels=answer.labels,
        parents=answer.parents if task.kind == "hierarchical" else None,
        explanation=answer.explanation,
        confidence=_confidence(completion, explains_in_head=answer.explains_in_head),
        probability=completion.positive_probability,
        flags=flags,
        **usage,
    )


def prediction_schema(config: ScoreConfig, kept: pa.Schema) -> pa.Schema:
    """Schema of a shard's predictions.

    Raises: ConfigError when a kept column has the name of one of ours, or one to partition by has no name for a folder.
    """
    ours = {field.name for field in [*_COLUMNS, _LABEL_SCORES]} | {"task"}
    ours |= {"text"} if config.output.keep_text else set()
    ours |= {"adapter"} if config.model.adapters else set()
    for name in kept.names:
        if name.casefold() in ours:  # most SQL engines do not tell Labels from labels
            raise ConfigError(f"input.keep_columns names {name!r}, which is a column of the output; rename it")
    for name in config.output.partition_by:
        kind = kept.field(name).type
        if not any(
            test(kind)
            for test in (
                pa.types.is_string,
                pa.types.is_large_string,
                pa.types.is_integer,
                pa.types.is_date,
                pa.types.is_boolean,
            )
        ):
            raise ConfigError(
                f"output.partition_by names {name!r}, whose type is {kind}; name a column of text, whole numbers, "
                "dates or booleans"
            )
    text = [pa.field("text", pa.string())] if config.output.keep_text else []
    scores = [_LABEL_SCORES] if config.label_scores != "off" else []
    return pa.schema([*_COLUMNS, *scores, *text, *kept])


def prediction_table(schema: pa.Schema, posts: Posts, outcomes: Sequence[Outcome]) -> pa.Table:
    """One row for each post of the shard, in the order of the input."""
    assert len(outcomes) == len(posts.ids)
    columns: dict[str, Any] = {
        "post_id": posts.ids,
        "status": pa.array([outcome.status for outcome in outcomes])
        .dictionary_encode()
        .cast(schema.field("status").type),
        "text_hash": posts.text_hashes,
        "flags": [[*flags, *outcome.flags] for flags, outcome in zip(posts.flags, outcomes, strict=True)],
        "text": posts.texts,
    }
    for name in posts.kept.column_names:
        columns[name] = posts.kept.column(name)
    arrays = []
    for field in schema:
        values = columns.get(field.name)
        if values is None:
            values = [getattr(outcome, field.name) for outcome in outcomes]
        arrays.append(values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def error_rows(key: str, table: pa.Table, reasons: Sequence[str | None]) -> list[dict[str, Any]]:
    """The rows of a question's prediction table that have no result, as rows of `errors/`."""
    statuses = table.column("status").to_pylist()
    ids = table.column("post_id").to_pylist()
    columns = question_columns(key)
    return [
        {"post_id": post_id, **columns, "status": status, "reason": reason}
        for post_id, status, reason in zip(ids, statuses, reasons, strict=True)
        if status != "ok"
    ]


def error_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of `errors/`, at least one, as a table; with the column `adapter` where they have it."""
    schema = pa.schema([field for field in _ERROR_COLUMNS if field.name in rows[0]])
    return pa.Table.from_pylist(rows, schema)


def failed_rows(table: pa.Table) -> dict[str, list[int]]:
    """Row numbers of a prediction table by status, for every status but ok."""
    rows: dict[str, list[int]] = {}
    for row, status in enumerate(table.column("status").to_pylist()):
        if status != "ok":
            rows.setdefault(status, []).append(row)
    return rows


def failed_copy_rows(table: pa.Table) -> list[int]:
    """Row numbers of those without a result that are copies of another post's failure."""
    columns = zip(table.column("status").to_pylist(), table.column("duplicate_of").to_pylist(), strict=True)
    return [row for row, (status, of) in enumerate(columns) if status != "ok" and of is not None]


def hash_ids(ids: Iterable[Any]) -> str:
    """Hash of a multiset of post ids: equal for equal ids in any order, each as often. `add_hashes` joins two sets."""
    total = 0
    for post_id in ids.to_pylist() if isinstance(ids, pa.Array | pa.ChunkedArray) else ids:
        data = b"\0null" if post_id is None else post_id.encode("utf-8", "surrogatepass")
        total += int.from_bytes(hashlib.blake2b(data, digest_size=16).digest())
    return f"{total % _HASH_RANGE:032x}"


def add_hashes(hashes: Iterable[str]) -> str:
    """`hash_ids` of all the sets together."""
    return f"{sum(int(each, 16) for each in hashes) % _HASH_RANGE:032x}"


def count_statuses(table: pa.Table) -> dict[str, int]:
    """Rows by status."""
    return dict(Counter(table.column("status").to_pylist()))


def count_labels(table: pa.Table) -> dict[str, int]:
    """Rows by label; a row counts for each label that it has."""
    return dict(Counter(table.column("labels").combine_chunks().flatten().to_pylist()))


def to_parquet(table: pa.Table, provenance: dict[str, Any]) -> bytes:
    """A Parquet file with page checksums and the provenance in its footer (key `mentalglm`, JSON)."""
    metadata = {**(table.schema.metadata or {}), b"mentalglm": json.dumps(provenance, ensure_ascii=False).encode()}
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        buffer,
        row_group_size=ROW_GROUP_SIZE,
        **PARQUET_OPTIONS,
    )
    return buffer.getvalue()


def _confidence(completion: Completion, *, explains_in_head: bool) -> float | None:
    """Probability of the answer's head as generated.

    None where the head, which ends at the task's own markers alone, holds a part of the explanation: the figure would
    be of that too, and small because it is long.
    """
    if completion.head_logprob is None or explains_in_head:
        return None
    return math.exp(min(completion.head_logprob, 0.0))
