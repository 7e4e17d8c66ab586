"""The counts of one task of one run, each as it may be told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mentalglm.report.disclosure import Count, Disclosure, Known, exact
from mentalglm.report.scan import Counts
from mentalglm.report.sources import LabelSet

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
    def of(
        cls,
        task: LabelSet,
        counts: Counts,
        beside: Sequence[Counts],
        rules: Disclosure,
        *,
        gold: Mapping[str, int] | None = None,
    ) -> "Told":
        """Each sum that is on the page, protected. `beside`: the counts of all sides, this one too. `gold`: label ->
        posts that have it, of an evaluation of all posts of a side that is on the page: see `evaluated_weights`."""
        total = counts.num_rows
        numbers = dict(zip(task.slugs, counts.labels.tolist(), strict=True))
        weights = dict(zip(task.slugs, np.sum([each.labels for each in beside], axis=0).tolist(), strict=True))
        weights[NONE] = sum(each.num_none for each in beside)
        weights |= evaluated_weights(task, gold) if gold is not None else {}
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
        labels = overlapping_labels(
            task,
            numbers | {NONE: counts.num_none},
            total,
            [exact(total), *with_result],
            rules,
            weights=weights,
            at_most=beside_hidden(numbers, gold or {}, rules),
        )
        return cls(task, counts, rules, labels, parts)

    def label(self, slug: str) -> Count | None:
        """Of a label, or of NONE."""
        return self.labels.get(slug) if self.labels else None

    def told_of(self, name: str) -> Count | None:
        """Of a label, of NONE, of a flag, of STATUS and a status: what is told on the page; None: nothing."""
        found = {**(self.flags or {}), **(self.labels or {})}
        return found.get(name) or (self.statuses or {}).get(name.removeprefix(STATUS))

    @cached_property
    def flags(self) -> dict[str, Count] | None:
        """Of posts with a result and without one. None where there are too few posts."""
        total = self.counts.num_rows
        if total < self.rules.limit:
            return None
        beside = [count for count in (self.statuses or {}).values() if count != self.rules.hidden]
        with_explanation = self.rules.part(self.counts.num_explained, *self.wholes, beside=self.with_labels)
        if with_explanation.is_exact:
            beside.append(with_explanation)
        return {name: self.rules.part(number, total, beside=beside) for name, number in self.counts.flags.items()}

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


def evaluated_weights(task: LabelSet, gold: Mapping[str, int]) -> dict[str, int]:
    """Which label is a range beside one that is hidden, where scores tell the sum over the labels: that of the fewest
    posts, since its own scores are not shown then, and never the one that the scores are about; the same one in gold
    labels and in answers, and not NONE, which is in no such sum."""
    least = -sum(gold.values()) - 1
    return {slug: -number for slug, number in gold.items()} | {NONE: least, task.positive or NONE: least}


def beside_hidden(numbers: Mapping[str, int], others: Mapping[str, int], rules: Disclosure) -> dict[str, Count]:
    """Of labels that are hidden in `others` (gold labels, if `numbers` are of answers, or the other way round): as many
    values as there, since scores tell how far the two can be apart."""
    hidden = {slug: number for slug, number in others.items() if number < rules.limit <= numbers.get(slug, 0)}
    return {
        slug: Count(max(0, numbers[slug] - number), numbers[slug] - number + rules.limit - 1)
        for slug, number in hidden.items()
    }


def overlapping_labels(
    task: LabelSet,
    numbers: Mapping[str, int],
    total: int,
    wholes: Sequence[Count],
    rules: Disclosure,
    *,
    weights: Mapping[str, int] | None = None,
    at_most: Mapping[str, Count] | None = None,
) -> dict[str, Count] | None:
    """Of labels of which a post may have several, and of NONE if it is among `numbers`: of `total` posts and of the
    `wholes`, and children as parts of their parent. `weights`, `at_most`: see `Disclosure.partition`. None where
    nothing is told."""
    parents = [each.slug for each in task.parents]
    top = {slug: number for slug, number in numbers.items() if not parents or slug in parents or slug == NONE}
    found = rules.overlapping(top, total, *wholes, weights=weights, at_most=at_most)
    if found is None:
        return None
    for parent in parents:
        children = {each.slug: numbers[each.slug] for each in task.answerable if each.parent == parent}
        # What is told of the sum of the children, if each post of the parent has one.
        told, number, size = found[parent], numbers[parent], sum(children.values())
        whole = (size, Count(size + told.low - number, size + told.high - number))
        below = rules.overlapping(children, total, *wholes, told, whole=whole, weights=weights, at_most=at_most)
        found = found | (below or {})
    return found
