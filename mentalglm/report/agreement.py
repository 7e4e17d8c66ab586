"""Whether two sides say the same of the same posts."""

from collections.abc import Sequence
from dataclasses import dataclass

from mentalglm.report.disclosure import Count, Disclosure, exact
from mentalglm.report.scan import Joined
from mentalglm.report.sources import LabelName
from mentalglm.report.told import Cell, Told

_MIN_POSTS = 100
"""Fewer shared posts are not compared: each of them would be more than a per cent."""


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """Of one label: posts that have it on both sides, or on one alone; and kappa. All are told, or none."""

    label: LabelName
    both: Count | None
    only_here: Count | None
    only_there: Count | None
    kappa: float | None
    """Of Cohen (1960): agreement beyond that of two sides that give the label as often, by chance."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of two sides in one task."""

    here: str
    there: str
    num_posts: Count
    num_only_here: Count | None
    num_only_there: Count | None
    same: Cell | None
    """Posts with equal labels, or no result on both sides. None where nothing but `num_posts` is told."""
    labels: list[LabelAgreement]


def agreement(names: tuple[str, str], joined: Joined, told: tuple[Told, Told], rules: Disclosure) -> Agreement:
    """Counts of shared posts. The labels of each side are told elsewhere, of all its posts: where posts are not shared,
    what is told of the shared ones stands for itself."""
    wholes = [(side.counts.num_rows, exact(side.counts.num_rows)) for side in told]
    num_posts = rules.all_or_part(joined.num_rows, wholes)
    # Where a few posts are of one side alone, a share of the others tells how many these are. Fewer shared ones than
    # twice the limit cannot be taken apart.
    enough = joined.num_rows >= max(_MIN_POSTS, 2 * rules.limit) and num_posts.is_exact
    labels = [_of_label(label, joined, told, rules) for label in _shown(told[0])] if enough else []
    return Agreement(
        *names,
        num_posts=num_posts,
        num_only_here=rules.part(joined.num_alone[0], told[0].counts.num_rows) if enough else None,
        num_only_there=rules.part(joined.num_alone[1], told[1].counts.num_rows) if enough else None,
        same=Cell(_same(joined, labels, rules), joined.num_rows) if enough else None,
        labels=labels,
    )


def _same(joined: Joined, labels: Sequence[LabelAgreement], rules: Disclosure) -> Count:
    """Posts that are equal in a label, which can be worked out where it is told, may be a few more: those of which one
    side has no result, or another label."""
    found = rules.part(joined.num_same, joined.num_rows)
    for each in labels:
        if each.only_here is None or each.only_there is None:
            continue
        equal = joined.num_rows - each.only_here.low - each.only_there.low
        told = rules.all_or_part(joined.num_same, [(equal, exact(equal))])
        found = Count(min(found.low, told.low), max(found.high, told.high))
    return found


def _shown(told: Told) -> Sequence[LabelName]:
    if told.task.positive is not None:
        return [label for label in told.task.labels if label.slug == told.task.positive]
    return told.task.labels


def _of_label(label: LabelName, joined: Joined, told: tuple[Told, Told], rules: Disclosure) -> LabelAgreement:
    """With both totals known each of the four cells gives the others: none is told where one is under the limit, beyond
    that it is."""
    at = told[0].task.slugs.index(label.slug)
    both, here, there = (int(each) for each in (joined.both[at, at], joined.here[at], joined.there[at]))
    cells = {"both": both, "here": here - both, "there": there - both, "neither": joined.num_rows - here - there + both}
    # Shown of all posts of a side, and so of the shared ones and the others: those must not be a few either.
    others = [side.number(label.slug) - number for side, number in zip(told, (here, there), strict=True)]
    is_told = all(each is not None and each.is_exact for each in (side.label(label.slug) for side in told))
    if is_told and min(cells.values()) >= rules.limit and all(each == 0 or each >= rules.limit for each in others):
        chance = (here * there + (joined.num_rows - here) * (joined.num_rows - there)) / joined.num_rows**2
        same = (cells["both"] + cells["neither"]) / joined.num_rows
        kappa = (same - chance) / (1 - chance) if chance < 1 else None
        return LabelAgreement(label, exact(cells["both"]), exact(cells["here"]), exact(cells["there"]), kappa)
    return LabelAgreement(label, None, None, None, None)
