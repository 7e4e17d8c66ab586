"""Labels that people gave, as a column of a file holds them: for training and for evaluation."""

from collections.abc import Iterable, Mapping
from typing import Any

from mentalglm.tasks.answer import ParsedAnswer, parse_answer
from mentalglm.tasks.task import NO_LABEL, Slug, Task

_MISSING = frozenset({"null", "n/a", "na", "nan"})
"""Texts that programs write where a value is missing. Of a model, some of them mean that no label applies."""
_NOT_IN_SET = frozenset({"out_of_set_label", "parent_only", "hierarchy_conflict", "third_level", "hedged"})


def read_gold(task: Task, value: Any) -> tuple[Slug, ...]:
    """The labels in `value`, in label-set order: a list of labels, or one text that names them as an answer does.

    A label may be its slug, any of its names, or, of a binary task, 0 or 1. An empty list says that none applies, as
    `none` does. Unlike an answer of a model, gold that is doubtful in any way is an error.

    Raises: ValueError, in words that do not quote `value`, which may be the wrong column.
    """
    if isinstance(value, Mapping | bytes):
        raise ValueError(f"is a {type(value).__name__}; give labels of {task.name} as a list, or one text")
    if isinstance(value, str) or not isinstance(value, Iterable):
        return _one_text(task, value)
    found: list[Slug] = []
    for each in value:
        labels = _one_text(task, each)
        if len(labels) != 1:
            raise ValueError(f"an item of the list names {len(labels)} labels of {task.name}; write one in each")
        found += labels
    if not found and not task.none_allowed:
        raise ValueError(f"names no label, and {task.name} always has one of {', '.join(task.answerable)}")
    if len(found) > 1 and task.kind in ("binary", "multiclass"):
        raise ValueError(f"names {len(found)} labels, and {task.name} ({task.kind}) has one")
    return tuple(slug for slug in task.answerable if slug in found)


def _one_text(task: Task, value: Any) -> tuple[Slug, ...]:
    text = value if isinstance(value, str) else "" if value is None else str(int(value) if _is_whole(value) else value)
    if text.strip().lower() in _MISSING:
        raise ValueError(f"says that a value is missing; leave the row out, or give labels of {task.name}")
    if text in task.answerable:
        return (text,)
    if text == NO_LABEL and task.none_allowed:
        return ()
    answer = parse_answer(task, text)
    if problem := _problem(answer):
        raise ValueError(f"{problem}; {task.name} has {', '.join(task.answerable)}, by slug or by name")
    return answer.labels


def _problem(answer: ParsedAnswer) -> str | None:
    if answer.status != "ok":
        return f"cannot be read as labels ({answer.reason or answer.status})"
    doubts = _NOT_IN_SET.intersection(answer.flags)
    return f"names something that is no label of the set ({', '.join(sorted(doubts))})" if doubts else None


def _is_whole(value: Any) -> bool:
    """1.0 and numpy's numbers are 1: a reader of Parquet or CSV may have made them of it."""
    try:
        return float(value) == int(value)
    except (TypeError, ValueError, OverflowError):
        return False
