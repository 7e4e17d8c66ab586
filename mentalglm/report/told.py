"""The counts of one task of one run, each as it may be told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mentalglm.report.disclosure import Count, Disclosure, Known, exact
from mentalglm.report.scan import Counts
from mentalglm.report.sources import LabelName, LabelSet

NONE = "no label applies"
STATUS = "status: "


@dataclass(frozen=True, slots=True)
class Cell:
    """A count of some of `total` posts; None where nothing is told."""

    count: Count | None
    total: int

    @property
    def low(self) -> float:
        """Share of which at least is told."""
        return self.count.shares(self.total)[0] if self.count else 0.0

    @property
    def high(self) -> float:
        """Share of which at most is told."""
        return self.count.shares(self.total)[1] if self.count else 0.0


@dataclass(frozen=True)
class Told:
    """What may be told of the labels and statuses of a task on one side."""

    task: LabelSet
    counts: Counts
    rules: Disclosure
    labels: dict[str, Count] | None
    statuses: dict[str, Count] | None

    @classmethod
    def of(cls, task: LabelSet, counts: Counts, beside: Sequence[Counts], rules: Disclosure) -> "Told":
        """Each sum that is on the page, protected. `beside`: the counts of all sides, this one too."""
        total = counts.num_rows
        numbers = dict(zip(task.slugs, counts.labels.tolist(), strict=True))
        weights = dict(zip(task.slugs, np.sum([each.labels for each in beside], axis=0).tolist(), strict=True))
        weights[NONE] = sum(each.num_none for each in beside)
        failed = {status: n for status, n in counts.statuses.items() if status != "ok"}
        if total < rules.limit:
            return cls(task, counts, rules, None, None)
        if task.is_exclusive:
            # Labels and failures are the parts of one total: what is told of the first tells of the second.
            cells = numbers | {STATUS + status: n for status, n in failed.items()}
            cells |= {NONE: counts.num_none} if counts.num_none else {}
            found = rules.partition(cells, weights)
            if found is not None:
                told = {status: found[STATUS + status] for status in failed}
                low, high = (sum(each[end] for each in told.values()) for end in (0, 1))
                statuses = {"ok": Count(total - high, total - low), **told}
                return cls(task, counts, rules, {k: v for k, v in found.items() if k in numbers or k == NONE}, statuses)
            return cls(task, counts, rules, None, rules.partition(dict(counts.statuses)))
        parts = rules.partition(counts.statuses)
        with_result = [parts["ok"]] if parts and "ok" in parts else []
        return cls(task, counts, rules, _overlapping(task, numbers, counts, with_result, weights, rules), parts)

    def label(self, slug: str) -> Count | None:
        """Of a label, or of NONE."""
        return self.labels.get(slug) if self.labels else None

    def number(self, slug: str) -> int:
        """What is not told as it is."""
        return int(self.counts.labels[self.task.slugs.index(slug)])

    @property
    def with_result(self) -> list[Known]:
        """Posts with a result, if something is told of them: all posts with a label, a confidence, an explanation are
        of these."""
        told = self.statuses.get("ok") if self.statuses else None
        return [(self.counts.statuses["ok"], told)] if told is not None else []

    @property
    def wholes(self) -> list[Count]:
        """What is told of the posts, and of those of them with a result."""
        return [exact(self.counts.num_rows), *(told for _, told in self.with_result)]

    @property
    def with_labels(self) -> list[Count]:
        """What is told of the posts with each label, and of those with any: a run may explain just these."""
        labels = self.labels or {}
        found = [count for count in labels.values() if count != self.rules.hidden]
        if NONE in labels:
            none = labels[NONE]
            found += [Count(told.low - none.high, told.high - none.low) for _, told in self.with_result]
        return found


def _overlapping(
    task: LabelSet,
    numbers: Mapping[str, int],
    counts: Counts,
    with_result: Sequence[Count],
    weights: Mapping[str, int],
    rules: Disclosure,
) -> dict[str, Count] | None:
    total = counts.num_rows
    if not task.parents:
        return rules.overlapping({**numbers, NONE: counts.num_none}, total, *with_result, weights=weights)
    upper = {each.slug: numbers[each.slug] for each in task.parents} | {NONE: counts.num_none}
    top = rules.overlapping(upper, total, *with_result, weights=weights)
    if top is None:
        return None
    found = dict(top)
    for parent in task.parents:
        children = {each.slug: numbers[each.slug] for each in task.answerable if each.parent == parent.slug}
        whole = (sum(children.values()), _of_whole(children, parent, numbers, top))
        below = rules.overlapping(children, total, *with_result, top[parent.slug], whole=whole, weights=weights)
        found |= below or {}
    return found


def _of_whole(
    children: Mapping[str, int], parent: LabelName, numbers: Mapping[str, int], top: Mapping[str, Count]
) -> Count:
    """What is told of the sum of the children, if each post of the parent has one."""
    told, number, total = top[parent.slug], numbers[parent.slug], sum(children.values())
    return Count(total + told.low - number, total + told.high - number)
