"""From labels to the answer that a model is trained to give, and the exact reading of such an answer."""

import re
from collections.abc import Sequence

from mentalglm.tasks.task import NO_LABEL, Slug, Task

_LABELS = "{labels}"
_EXPLANATION = "{explanation}"


def render_answer(task: Task, labels: Sequence[Slug], explanation: str | None) -> str:
    """The training target: the labels in label-set order, then the explanation where there is one.

    Raises: ValueError for labels that the task cannot answer with.
    """
    unknown = [slug for slug in labels if slug not in task.answerable]
    if unknown:
        raise ValueError(f"task {task.name}: {unknown} are no answers; use {list(task.answerable)}")
    chosen = [slug for slug in task.answerable if slug in labels]
    if len(chosen) != 1 and task.kind in ("binary", "multiclass"):
        raise ValueError(f"task {task.name} ({task.kind}): an answer has one label, not {len(chosen)}")
    head = _render_head(task, chosen)
    return head if explanation is None else head + task.explanation.replace(_EXPLANATION, explanation)


def answer_heads(task: Task) -> tuple[str, str]:
    """The negative and the positive answer of a binary task, without explanation."""
    if task.positive is None or task.negative is None:
        raise ValueError(f"task {task.name} is {task.kind}; only a binary task has two heads")
    return render_answer(task, [task.negative], None), render_answer(task, [task.positive], None)


def head_pattern(task: Task) -> str:
    """A regular expression for every head that `render_answer` writes, up to and with the marker of its explanation.

    Several labels may stand in any order, and more than once: what is wrong with that the parser says.
    """
    own = [label.answer for slug in task.answerable if (label := task.by_slug[slug]).answer is not None]
    heads = [re.escape(head) for head in [*own, *([task.none_answer] if task.none_answer is not None else [])]]
    if task.answer is not None:
        before, _, after = task.answer.partition(_LABELS)
        names = "|".join(re.escape(task.name_of(slug)) for slug in task.answerable if task.by_slug[slug].answer is None)
        more = "" if task.kind in ("binary", "multiclass") else f"(?:{re.escape(task.separator)}(?:{names}))*"
        heads.append(f"{re.escape(before)}(?:{names}){more}{re.escape(after)}")
    lead = task.explanation.partition(_EXPLANATION)[0]
    marker = next(marker for marker in task.markers if marker in lead)
    return f"(?:{'|'.join(heads)}){re.escape(lead[: lead.index(marker) + len(marker)])}"


def candidate_answers(task: Task, named: Sequence[Slug] = ()) -> dict[Slug, tuple[str, ...]]:
    """The ways that an answer may take which has named these labels so far, in this order: another label, by its slug
    in label-set order, or none, by `NO_LABEL`, where the task allows that.

    Each as the head of an answer that ends so, which may be the whole answer, and then as beginnings of longer ones:
    with an explanation, and with one more label, where an answer may have several.
    """
    lead = task.explanation.partition(_EXPLANATION)[0]
    after = "" if task.answer is None else task.answer.partition(_LABELS)[2]
    left = [slug for slug in task.answerable if slug not in named]
    found: dict[Slug, tuple[str, ...]] = {}
    for number, slug in enumerate(left):
        head = _render_head(task, [*named, slug])
        more: tuple[str, ...] = ()
        if task.kind in ("multilabel", "hierarchical") and len(left) > 1:
            other = left[(number + 1) % len(left)]
            more = (_render_head(task, [*named, slug, other]).removesuffix(after),)
        found[slug] = (head, head + lead, *more)
    if named or task.none_answer is not None:
        head = _render_head(task, named)
        found[NO_LABEL] = (head, head + lead)
    return found


def read_canonical_head(task: Task, head: str) -> tuple[Slug, ...] | None:
    """The labels of a head exactly as `render_answer` writes it, in label-set order; None for any other text."""
    single = _single_heads(task.digest, task).get(head)
    if single is not None:
        return single
    if task.kind in ("binary", "multiclass") or task.answer is None:
        return None
    before, _, after = task.answer.partition(_LABELS)
    if not (head.startswith(before) and head.endswith(after) and len(head) > len(before) + len(after)):
        return None
    names = head[len(before) : len(head) - len(after)].split(task.separator)
    slugs = _names(task.digest, task)
    if len(set(names)) < len(names) or not all(name in slugs for name in names):
        return None
    found = {slugs[name] for name in names}
    return tuple(slug for slug in task.answerable if slug in found)


def split_canonical(task: Task, text: str) -> tuple[str, str | None]:
    """Head and explanation at the first occurrence of the explanation's own opening words."""
    lead, _, tail = task.explanation.partition(_EXPLANATION)
    head, found, explanation = text.partition(lead.strip())
    if not found:
        return text.strip(), None
    return head.strip(), explanation.strip().removesuffix(tail.strip()).strip() or None


def _render_head(task: Task, labels: Sequence[Slug]) -> str:
    if not labels:
        if task.none_answer is None:
            raise ValueError(f"task {task.name}: an answer needs a label")
        return task.none_answer
    own = task.by_slug[labels[0]].answer
    if own is not None:
        return own
    assert task.answer is not None  # checked on loading
    return task.answer.replace(_LABELS, task.separator.join(task.name_of(slug) for slug in labels))


def _single_heads(digest: str, task: Task) -> dict[str, tuple[Slug, ...]]:
    if digest not in _SINGLE_HEADS:
        heads: dict[str, tuple[Slug, ...]] = {_render_head(task, [slug]): (slug,) for slug in reversed(task.answerable)}
        if task.none_answer is not None:
            heads[task.none_answer] = ()
        _SINGLE_HEADS[digest] = heads
    return _SINGLE_HEADS[digest]


def _names(digest: str, task: Task) -> dict[str, Slug]:
    if digest not in _NAMES:
        _NAMES[digest] = {task.name_of(slug): slug for slug in task.answerable}
    return _NAMES[digest]


_SINGLE_HEADS: dict[str, dict[str, tuple[Slug, ...]]] = {}
_NAMES: dict[str, dict[str, Slug]] = {}
