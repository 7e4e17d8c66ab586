"""Which counts a page may show, so that it tells of groups of posts and never of a handful.

A cell is a number of posts with something in common. One under the limit is shown as "under the limit" and nothing
more, and so is 0 where a cell is there whatever its number, as that of a label is; that there is none at all, of a
status or a flag, or of posts without a confidence, is told. That alone protects little: a total less its other parts is
the missing part. So where a cell is hidden, another one of the same sum, the largest, is shown as a range, exactly as
wide as what is hidden leaves it: whoever takes the sum apart finds for each hidden cell all values from 0 to the limit
less 1, as before. Promised for every sum that holds exactly between shown counts:

- a total and its parts: statuses and labels of a task, bars of a histogram, rows of a confusion matrix
- a count and its complement in each count that holds it and is shown, which may be all posts, those with a result, or
  those of a parent label: 297 of 300 tells of 3, so it is shown as 291 to 300
- a label over time: its bins, its total, and the posts of each bin
- two labels, or two runs: both, one alone, neither

Not promised: that a range stays as wide for someone who knows more than the page, such as an earlier report of some of
these posts or the run itself; nor where sums hold only nearly (posts with several labels); nor what two models' answers
to the same posts (also by the difference of their F1), several evaluations of a run, labels of tasks whose file is gone
and with it what their parents are, or runs of which one has a few posts more, tell of each other. Scores
(precision, recall, F1, calibration) are of the model, not of a group: how often it was wrong, or failed, can be worked
out from them, or nearly. `told_evaluation` says which of them are shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

KeyT = TypeVar("KeyT")


class Count(NamedTuple):
    """What is told of a number: that it is one of [low, high]."""

    low: int
    high: int

    @property
    def is_exact(self) -> bool:
        """Whether the number itself is told."""
        return self.low == self.high

    def shares(self, total: int) -> tuple[float, float]:
        """(low, high) as shares of `total`."""
        return (self.low / total, self.high / total) if total else (0.0, 0.0)


Known = tuple[int, Count]
"""A number, and what is told of it."""


def exact(number: int) -> Count:
    """A number that may be told."""
    return Count(number, number)


@dataclass(frozen=True, slots=True)
class Disclosure:
    """The rules, for one limit."""

    limit: int

    @property
    def hidden(self) -> Count:
        """What is told of a cell under the limit."""
        return Count(0, self.limit - 1)

    def alone(self, number: int) -> Count:
        """A count that is part of no sum on the page."""
        return exact(number) if number >= self.limit else self.hidden

    def part(
        self, number: int, *wholes: int | Count, beside: Sequence[Count] = (), holds: Sequence[Count] = ()
    ) -> Count:
        """A count of some of each of `wholes`, which are shown, as the number or as what is told of it: neither the
        count nor what it leaves of one of them tells of a few. `beside`: shown counts that it may hold nearly, or
        nearly be held by. `holds`: counts that follow from what is shown and that it has at least: nor does what it has
        beyond these tell of a few."""
        told = [exact(each) if isinstance(each, int) else each for each in wholes]
        spans = [self.hidden] if number < self.limit else []
        spans += [Count(each.low - self.limit + 1, each.high) for each in told if each.low - number < self.limit]
        spans += [Count(each.low, each.high + self.limit - 1) for each in holds if number - each.high < self.limit]
        spans += [
            Count(each.low - self.limit + 1, each.high + self.limit - 1)
            for each in beside
            if each.low - self.limit < number < each.high + self.limit
        ]
        if not spans:
            return exact(number)
        high = min([max(span.high for span in spans), *(each.high for each in told)])
        return Count(max(0, min(span.low for span in spans)), high)

    def all_or_part(self, number: int, wholes: Sequence[Known], beside: Sequence[Known] = ()) -> Count:
        """As `part`, where being a whole, or the same as what is beside, is told: no post is left then. Of those that
        are left, never 0, one more may be meant, so that the limit of values is possible all the same."""
        for known, told in (*wholes, *beside):
            if number == known:
                return told
        wider = Disclosure(self.limit + 1)
        return wider.part(number, *(told for _, told in wholes), beside=[told for _, told in beside])

    def partition(
        self,
        cells: Mapping[KeyT, int],
        weights: Mapping[KeyT, int] | None = None,
        told: Count | None = None,
        at_most: Mapping[KeyT, Count] | None = None,
    ) -> dict[KeyT, Count] | None:
        """The parts of a total that is shown, or of which `told` is. None where the total is too small to be taken
        apart into so many: that depends on the total alone, so it tells nothing of the parts. `weights`, here and
        below: what the largest part is by, if not by the cells. Sides that are shown beside each other have the same:
        two models say nearly the same of the same posts, so the part that is a range on one side must not be exact on
        the other. `at_most`: of some parts, here and below: what may be told of them in any case."""
        if sum(cells.values()) < self.limit * len(cells):
            return None
        return self.parts(cells, (sum(cells.values()), told) if told else None, weights, at_most)

    def parts(
        self,
        cells: Mapping[KeyT, int],
        whole: Known | None = None,
        weights: Mapping[KeyT, int] | None = None,
        at_most: Mapping[KeyT, Count] | None = None,
    ) -> dict[KeyT, Count]:
        """As `partition`, of a total that is large enough, or part of one that is."""
        uncertain = _uncertain({key: self.alone(number) for key, number in cells.items()}, at_most)
        return _absorbed(cells, uncertain, whole, weights)

    def overlapping(
        self,
        cells: Mapping[KeyT, int],
        total: int,
        *wholes: Count,
        whole: Known | None = None,
        weights: Mapping[KeyT, int] | None = None,
        at_most: Mapping[KeyT, Count] | None = None,
    ) -> dict[KeyT, Count] | None:
        """Labels of which a post may have several, and of which nearly each may have one: complements in `wholes`
        (without any: in `total`) are protected as in `part`, sums as in `partition`. None where `total` is too small.
        `whole`: what the cells add up to if no post has several of them, such as a parent of these labels, and what is
        told of that."""
        if total < 2 * self.limit:
            return None
        within = wholes or (exact(total),)
        uncertain = _uncertain({key: self.part(number, *within) for key, number in cells.items()}, at_most)
        most = min(each.high for each in within)
        # A sum of more than there are posts would tell how many have several labels: moved down, it has the same width.
        return {
            key: Count(max(0, count.low - max(0, count.high - most)), min(count.high, most))
            for key, count in _absorbed(cells, uncertain, whole, weights).items()
        }

    def series(
        self,
        cells: Sequence[int],
        wholes: Sequence[Sequence[Count]],
        told: Count,
        weights: Sequence[int] | None = None,
    ) -> list[Count] | None:
        """One label over bins: `cells` add up to a number of which `told` is shown. `wholes`: what is told of each
        bin's posts, and of those of its posts that a parent label has. None where there are too few to be told bin by
        bin."""
        if len(cells) < 2 or sum(cells) < self.limit * len(cells):
            return None
        return self.by_bin(cells, wholes, told, weights)

    def by_bin(
        self,
        cells: Sequence[int],
        wholes: Sequence[Sequence[Count]],
        told: Count,
        weights: Sequence[int] | None = None,
    ) -> list[Count] | None:
        """As `series`, however few there are. None where there is no bin to tell as it is: then what is told of the
        posts would narrow the ranges down."""
        parts = {at: self.part(cell, *wholes[at]) for at, cell in enumerate(cells)}
        uncertain = {at: count for at, count in parts.items() if not count.is_exact}
        if len(uncertain) == len(cells):
            return None
        found = _absorbed(dict(enumerate(cells)), uncertain, (sum(cells), told), dict(enumerate(weights or cells)))
        return [found[at] for at in range(len(cells))]

    def pair(self, both: int, sides: tuple[Known, Known], *wholes: Count) -> Count | None:
        """Posts with two labels, of `wholes`, which are shown: all posts, those with a result. `sides`: of each label.
        None: withheld, since with what is told of the labels it would tell of few with both, with one alone, or with
        neither; which of these is not told either, since of a label with hardly more posts than the limit that would
        tell the number."""
        (here, _), (there, _) = sides
        rest = (both, here - both, there - both, *(each.low - here - there + both for each in wholes))
        if min(rest) < self.limit or not all(told.is_exact for _, told in sides):
            return None
        return exact(both)

    def bars(self, counts: Sequence[int], told: Count) -> list[tuple[int, int, Count]]:
        """A part of a histogram whose bars add up to a number of which `told` is shown, as (start, stop, what is told).
        Neighbours under the limit are joined until they hold it, if they do, and told in steps of the limit: of two,
        18 would be 9 of each. None where all hold less together."""
        number = sum(counts)
        if number < self.limit:
            return []
        cells = {(start, stop): sum(counts[start:stop]) for start, stop in merged(counts, self.limit)}
        if all(cell < self.limit for cell in cells.values()):
            cells = {(0, len(counts)): number}
        steps = {(start, stop): cell // self.limit * self.limit for (start, stop), cell in cells.items()}
        uncertain = {
            (start, stop): Count(steps[start, stop], steps[start, stop] + self.limit - 1)
            for (start, stop), cell in cells.items()
            if cell < self.limit or (stop - start > 1 and len(cells) > 1)
        }
        return [(*edge, count) for edge, count in _absorbed(cells, uncertain, (number, told)).items()]

    def columns(self, series: Mapping[KeyT, Sequence[Count] | None], totals: Sequence[int]) -> list[KeyT]:
        """Which of several labels may be told over the same bins where each post has one of these, or another that is
        not among them: with the posts of a bin, labels told there tell of the others. So those alone of which every bin
        is exact, and of these as many of the largest as leave the limit in each bin."""
        exact_ones = [
            key for key, cells in series.items() if cells is not None and all(cell.is_exact for cell in cells)
        ]
        left = {key: [cell.low for cell in series[key] or ()] for key in exact_ones}
        while left:
            rest = [total - sum(cells) for total, cells in zip(totals, zip(*left.values(), strict=True), strict=True)]
            if min(rest) >= self.limit:
                break
            del left[min(left, key=lambda key: sum(left[key]))]
        return list(left)


def _uncertain(found: Mapping[KeyT, Count], at_most: Mapping[KeyT, Count] | None) -> dict[KeyT, Count]:
    """Those that are not exact, as wide as both ask for."""
    both = {key: (count, (at_most or {}).get(key, count)) for key, count in found.items()}
    wider = {key: Count(min(each.low for each in two), max(each.high for each in two)) for key, two in both.items()}
    return {key: count for key, count in wider.items() if not count.is_exact}


def _absorbed(
    cells: Mapping[KeyT, int],
    uncertain: Mapping[KeyT, Count],
    whole: Known | None = None,
    weights: Mapping[KeyT, int] | None = None,
) -> dict[KeyT, Count]:
    """All cells: those that are not exact as told, and the largest other one as what these leave of the sum, which is
    `whole[0]` and of which `whole[1]` is told; where no other one is exact, the largest as both allow."""
    shown = {key: uncertain.get(key, exact(number)) for key, number in cells.items()}
    slack = (whole[1].low - whole[0], whole[1].high - whole[0]) if whole else (0, 0)
    weights = weights or cells
    largest = max(cells, key=lambda key: (key not in uncertain, weights.get(key, cells[key])))
    others = [key for key in uncertain if key != largest]
    if not others and slack == (0, 0):
        return shown
    low = cells[largest] + slack[0] + sum(cells[key] - uncertain[key].high for key in others)
    high = cells[largest] + slack[1] + sum(cells[key] - uncertain[key].low for key in others)
    if largest in uncertain:
        low, high = min(low, uncertain[largest].low), max(high, uncertain[largest].high)
    return shown | {largest: Count(max(0, low), high)}


def merged(counts: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Bars [start, stop) that are one each where they hold `limit`; those between them joined until they do. What is
    left of these goes to the one before, if that was joined too, and else holds less."""
    found: list[tuple[int, int]] = []
    begin, is_joined = 0, False
    for at in range(len(counts) + 1):
        if at < len(counts) and counts[at] < limit:
            if sum(counts[begin : at + 1]) >= limit:
                found.append((begin, at + 1))
                begin, is_joined = at + 1, True
            continue
        if begin < at:
            found[-1 if is_joined else len(found) :] = [(found[-1][0] if is_joined else begin, at)]
        if at < len(counts):
            found.append((at, at + 1))
        begin, is_joined = at + 1, False
    return found
