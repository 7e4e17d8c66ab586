"""Gold labels and predictions side by side: by id, never by position, and nobody left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mentalglm.errors import InputError
from mentalglm.evaluation.metrics import Bits, Integers, multi_hot
from mentalglm.tasks import Task
from mentalglm.tasks.task import Slug

Extra = Literal["error", "ignore"]

NEEDED = ("post_id", "status", "labels")
"""Columns that predictions must have; `parents`, `flags`, `probability`, ... are read where they are there."""
_SHOWN = 5


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or (pa.types.is_dictionary(kind) and _is_text(kind.value_type))
    )


def _is_list(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    return _is_text(kind.value_type) or pa.types.is_null(kind.value_type)  # empty lists alone


_NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_null)
_LIST = ("a list of text", _is_list)
_TYPES: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    # A float has rounded long numbers already.
    "post_id": ("text or whole numbers", lambda kind: _is_text(kind) or pa.types.is_integer(kind)),
    "status": ("text", _is_text),
    "labels": _LIST,
    "parents": _LIST,
    "flags": _LIST,
    "probability": ("a number", lambda kind: any(is_kind(kind) for is_kind in _NUMBERS)),
    "label_scores": ("a map of text to numbers", pa.types.is_map),
}
"""Column -> what it holds, in words, and whether a type is that."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The evaluated rows, in the order of the gold labels. Arrays have one row for each."""

    table: pa.Table
    """The predictions."""
    gold: Bits
    """(num_rows, num_answerable), columns as in `Task.answerable`."""
    predicted: Bits
    """The same of the predictions; a row whose status is not ok predicts nothing."""
    gold_parents: Bits
    """(num_rows, num_parents); hierarchical tasks, else no columns. A parent counts once, however many children."""
    predicted_parents: Bits
    num_out_of_set: Integers
    """Predicted labels that the task does not have."""

    @property
    def is_ok(self) -> Bits:
        """Whether the answer could be read."""
        return _bits(pc.equal(self.table["status"].cast(pa.string()), "ok"))

    def has_flag(self, *names: str) -> Bits:
        """Whether a row has one of the flags."""
        if "flags" not in self.table.column_names:
            return np.zeros(len(self.gold), dtype=np.bool_)
        rows, values = _items(self.table["flags"])
        found = np.zeros(len(self.gold), dtype=np.bool_)
        found[rows[_bits(pc.is_in(values, pa.array(names, pa.string())))]] = True
        return found


def align(
    task: Task, gold: Mapping[str, Sequence[Slug]], predictions: pa.Table, extra_predictions: Extra = "error"
) -> Rows:
    """Joins gold labels (id -> slugs) and predictions (columns of a run) by id.

    `extra_predictions`: what to do with predictions whose id has no gold label.
    Raises: InputError where ids are missing on either side or come twice, the gold labels are not the task's, or a
    column is missing or of another type.
    """
    check_columns(predictions.schema)
    if not gold:
        raise InputError("gold: names no row; give a file with at least one label")
    gold_ids = pa.array(list(gold), pa.string())
    predictions = _join(gold_ids, predictions, extra_predictions)
    true, unknown = _labels(pa.array(list(gold.values()), pa.list_(pa.string())), task.answerable)
    _refuse(gold_ids, unknown > 0, f"gold: {{}} have labels that {task.name} does not have")
    is_single = task.kind in ("binary", "multiclass")
    if is_single or not task.none_allowed:
        wanted = "exactly one label" if is_single else "at least one label"
        count = true.sum(axis=1)
        _refuse(gold_ids, (count != 1) if is_single else (count == 0), f"gold: {{}} have not {wanted} ({task.kind})")

    is_ok = pc.equal(predictions["status"].cast(pa.string()), "ok")
    _refuse(gold_ids, _bits(is_ok.is_null()), "predictions: {} have no status")
    _refuse(gold_ids, _bits(pc.and_(is_ok, predictions["labels"].is_null())), "predictions: {} are ok without labels")
    labels = pc.if_else(is_ok, predictions["labels"], pa.scalar(None, predictions.schema.field("labels").type))
    predicted, num_out_of_set = _labels(labels, task.answerable)
    if is_single:
        several = predicted.sum(axis=1) + num_out_of_set > 1
        _refuse(gold_ids, several, f"predictions: {{}} have several labels, and {task.name} ({task.kind}) has one")
    parents = parents_of(task)
    predicted_parents = implied_parents(task, predicted)
    if parents and "parents" in predictions.column_names:
        named = pc.if_else(is_ok, predictions["parents"], pa.scalar(None, predictions.schema.field("parents").type))
        given, unknown_parents = _labels(named, parents)
        _refuse(gold_ids, unknown_parents > 0, f"predictions: {{}} have parents that {task.name} does not have")
        is_given = _bits(named.is_valid())
        predicted_parents = np.where(is_given[:, None], given, predicted_parents)
    return Rows(predictions, true, predicted, implied_parents(task, true), predicted_parents, num_out_of_set)


def check_columns(schema: pa.Schema) -> None:
    """Raises: InputError where predictions lack a column that is needed, or one that is read has another type."""
    if missing := [name for name in NEEDED if name not in schema.names]:
        raise InputError(f"predictions: have no column {', '.join(missing)}; give a run, or Parquet with its columns")
    for name, (wanted, fits) in _TYPES.items():
        if name not in schema.names:
            continue
        found = schema.field(name).type
        is_void = pa.types.is_null(found) and name not in NEEDED
        if not (is_void or fits(found)):
            raise InputError(f"predictions: {name} is {found}, not {wanted}; give the columns of a run")


def parents_of(task: Task) -> tuple[Slug, ...]:
    """The top-level labels of a hierarchical task, in label-set order; none of another task."""
    return tuple(label.slug for label in task.labels if label.parent is None) if task.kind == "hierarchical" else ()


def implied_parents(task: Task, children: Bits) -> Bits:
    """(num_rows, num_children) -> (num_rows, num_parents): the parents of the children."""
    parents = parents_of(task)
    links = np.zeros((len(task.answerable), len(parents)), dtype=np.bool_)
    for number, slug in enumerate(task.answerable if parents else ()):
        parent = task.by_slug[slug].parent
        assert parent is not None
        links[number, parents.index(parent)] = True
    return (children.astype(np.uint8) @ links.astype(np.uint8)) > 0


def _join(gold_ids: pa.Array, predictions: pa.Table, extra: Extra) -> pa.Table:
    """The predictions in the order of `gold_ids`, one for each."""
    ids = predictions["post_id"].cast(pa.string()).combine_chunks()
    has_gold = pc.is_in(ids, value_set=gold_ids)
    num_extra = len(ids) - pc.sum(has_gold).as_py() if len(ids) else 0
    is_missing = pc.invert(pc.is_in(gold_ids, value_set=ids))
    problems = []
    if num_missing := pc.sum(is_missing).as_py():
        problems.append(f"{num_missing} gold ids have no prediction ({_some(gold_ids.filter(is_missing))})")
    if num_extra and extra == "error":
        problems.append(f"{num_extra} predictions have no gold label ({_some(ids.filter(pc.invert(has_gold)))})")
    counts = pc.value_counts(ids.filter(has_gold))
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        problems.append(f"{len(repeated)} ids have several predictions ({_some(repeated)})")
    if problems:
        fix = "evaluate predictions of exactly the rows that have gold labels"
        if num_extra and extra == "error" and len(problems) == 1:
            fix += ", or leave the others out with extra_predictions: ignore"
        raise InputError(f"predictions: {'; '.join(problems)}; {fix}")
    return predictions.take(pc.index_in(gold_ids, value_set=ids))


def _labels(lists: pa.Array | pa.ChunkedArray, slugs: Sequence[Slug]) -> tuple[Bits, Integers]:
    """Which of `slugs` each list holds, (num_rows, num_slugs), and how many other items."""
    rows, values = _items(lists)
    columns = pc.index_in(values, value_set=pa.array(slugs, pa.string()))
    is_known = _bits(columns.is_valid())
    known = multi_hot(rows[is_known], columns.drop_null().to_numpy(), (len(lists), len(slugs)))
    return known, np.bincount(rows[~is_known], minlength=len(lists))


def _items(lists: pa.Array | pa.ChunkedArray) -> tuple[Integers, pa.Array]:
    """(row, item) of every item of a column of lists of strings."""
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    return pc.list_parent_indices(lists).to_numpy().astype(np.int64), pc.list_flatten(lists).cast(pa.string())


def _refuse(ids: pa.Array, is_bad: Bits, message: str) -> None:
    """Raises: InputError that counts and names the bad rows, if there are some; `{}` in `message` is their number."""
    if is_bad.any():
        raise InputError(f"{message.format(f'{is_bad.sum()} rows')} ({_some(ids.filter(pa.array(is_bad)))}); mend them")


def _some(ids: pa.Array) -> str:
    shown = ", ".join(str(each) for each in ids.slice(0, _SHOWN).to_pylist())
    return f"{shown}, ..." if len(ids) > _SHOWN else shown


def _bits(values: pa.Array | pa.ChunkedArray) -> Bits:
    bits: Bits = values.to_numpy() if isinstance(values, pa.ChunkedArray) else values.to_numpy(zero_copy_only=False)
    return bits.astype(np.bool_)
