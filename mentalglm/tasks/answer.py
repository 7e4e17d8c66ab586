"""TEMPORARY CORE: canonical reading; the full parser follows."""

from dataclasses import dataclass
from typing import Any, Literal

from mentalglm.tasks.render import answer_heads, read_canonical_head, render_answer, split_canonical
from mentalglm.tasks.task import HIERARCHY_SEPARATOR, Slug, Task

PARSER_VERSION = "1"

Status = Literal["ok", "parse_failed", "truncated", "refused"]


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    status: Status
    labels: tuple[Slug, ...] = ()
    parents: tuple[Slug, ...] = ()
    explanation: str | None = None
    flags: tuple[str, ...] = ()
    reason: str | None = None


def parse_answer(task: Task, raw: str, *, finish_reason: str | None = None) -> ParsedAnswer:
    head, explanation = split_canonical(task, raw)
    labels = read_canonical_head(task, head)
    if labels is None:
        return ParsedAnswer("parse_failed", reason="no_label" if head else "empty_answer")
    parents = {task.by_slug[slug].parent for slug in labels}
    ordered = tuple(label.slug for label in task.labels if label.slug in parents)
    flags = ("explanation_truncated",) if finish_reason == "length" else ()
    return ParsedAnswer("ok", labels, ordered, explanation, flags)


def label_rows(task: Task) -> list[dict[str, Any]]:
    return [
        {
            "slug": label.slug,
            "zh": label.zh,
            "en": label.en,
            "parent": label.parent,
            "aliases": [*label.aliases, *label.narrower],
        }
        for label in task.labels
    ]


def parse_row(task: Task, raw: str) -> dict[str, Any]:
    answer = parse_answer(task, raw)
    covered = {task.by_slug[slug].parent for slug in answer.labels}
    alone = [slug for slug in answer.parents if slug not in covered]
    names = []
    for label in task.labels:
        if label.slug in answer.labels:
            parent = f"{task.by_slug[label.parent].zh}{HIERARCHY_SEPARATOR}" if label.parent else ""
            names.append(f"{parent}{label.zh}")
        elif label.slug in alone:
            names.append(label.zh)
    return {
        "status": answer.status,
        "labels": list(answer.labels),
        "labels_zh": names,
        "parents": list(answer.parents),
        "explanation": answer.explanation,
        "reason": answer.reason,
        "flags": list(answer.flags),
    }


__all__ = ["PARSER_VERSION", "ParsedAnswer", "answer_heads", "label_rows", "parse_answer", "parse_row", "render_answer"]
