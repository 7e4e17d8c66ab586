"""Which counts a page may show, so that it tells of groups of posts and never of a handful.

A cell is a number of posts with something in common. One under the limit, 0 included, is shown as "under the limit" and
nothing more. That alone protects little: a total less its other parts is the missing part. So where a cell is hidden,
another one of the same sum, the largest, is shown as a range, exactly as wide as what is hidden leaves it: whoever
takes the sum apart finds for each hidden cell all values from 0 to the limit less 1, as before. Promised for every sum
that holds exactly between shown counts:

- a total and its parts: statuses and labels of a task, bars of a histogram, rows of a confusion matrix
- a count and its complement: 297 of 300 tells of 3, so it is shown as 291 to 300
- a label over time: its bins, its total, and the posts of each bin
- two labels, or two runs: both, one alone, neither

Not promised: that a range stays as wide for someone who knows more than the page, such as an earlier report of some of
these posts or the run itself; nor where sums hold only nearly (posts with several labels); nor what two models' answers
to the same posts, or runs of which one has a few posts more, tell of each other. Scores (precision, recall, F1,
calibration) are of the model, not of a group, and are shown with three digits where both groups that they are shares of
reach the limit; how often the model was wrong can be worked out from them.
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

    def part(self, number: int, total: int) -> Count:
        """A count of some of `total`, which is shown: neither it nor its complement tells of a few."""
        if number >= self.limit and total - number >= self.limit:
            return exact(number)
        if total - number >= self.limit:
            return self.hidden
        return Count(0 if number < self.limit else max(0, total - self.limit + 1), total)

    def partition(
        self, cells: Mapping[KeyT, int], weights: Mapping[KeyT, int] | None = None
    ) -> dict[KeyT, Count] | None:
        """The parts of a total that is shown. None where the total is too small to be taken apart into so many: that
        depends on the total alone, so it tells nothing of the parts. `weights`, here and below: what the largest part
        is by, if not by the cells. Sides that are shown beside each other have the same: two models say nearly the same
        of the same posts, so the part that is a range on one side must not be exact on the other."""
        if sum(cells.values()) < self.limit * len(cells):
            return None
        hidden = {key: self.hidden for key, number in cells.items() if number < self.limit}
        return _absorbed(cells, hidden, None, weights)

    def overlapping(
        self,
        cells: Mapping[KeyT, int],
        total: int,
        whole: tuple[int, Count] | None = None,
        weights: Mapping[KeyT, int] | None = None,
    ) -> dict[KeyT, Count] | None:
        """Labels of which a post may have several, and of which nearly each may have one: complements are protected as
        in `part`, sums as in `partition`. None where `total`, which is shown, is too small. `whole`: what the cells add
        up to if no post has several of them, such as a parent of these labels, and what is told of that."""
        if total < 2 * self.limit:
            return None
        parts = {key: self.part(number, total) for key, number in cells.items()}
        return _absorbed(cells, {key: count for key, count in parts.items() if not count.is_exact}, whole, weights)

    def series(
        self,
        cells: Sequence[int],
        totals: Sequence[tuple[int, Count]],
        told: Count,
        weights: Sequence[int] | None = None,
    ) -> list[Count] | None:
        """One label over bins: `cells` add up to a number of which `told` is shown. `totals`: of each bin its posts,
        and what is told of them. None where there are too few to be told bin by bin."""
        if len(cells) < 2 or sum(cells) < self.limit * len(cells):
            return None
        parts = {at: self._in_bin(cell, *totals[at]) for at, cell in enumerate(cells)}
        uncertain = {at: count for at, count in parts.items() if not count.is_exact}
        if len(uncertain) == len(cells):
            return list(parts.values()) if _is_open(list(parts.values()), told) else None
        found = _absorbed(dict(enumerate(cells)), uncertain, (sum(cells), told), dict(enumerate(weights or cells)))
        return [found[at] for at in range(len(cells))]

    def _in_bin(self, cell: int, total: int, told: Count) -> Count:
        if told.is_exact:
            return self.part(cell, total)
        if cell < self.limit:
            return self.hidden
        return exact(cell) if told.low - cell >= self.limit else Count(0, told.high)

    def pair(self, both: int, sides: tuple[tuple[int, Count], tuple[int, Count]], total: int) -> Count | None:
        """Posts of `total` with two labels. `sides`: of each label its number of posts, and what is told of that. None:
        withheld, since with what is told of the labels it would tell of those with one alone, or with neither."""
        if both < self.limit:
            return self.hidden
        (here, _), (there, _) = sides
        rest = (here - both, there - both, total - here - there + both)
        if min(rest) < self.limit or not all(told.is_exact for _, told in sides):
            return None
        return exact(both)

    def bars(self, counts: Sequence[int], told: Count) -> list[tuple[int, int, Count]]:
        """A part of a histogram whose bars add up to a number of which `told` is shown, as (start, stop, what is told).
        Neighbours under the limit are joined until they hold it, if they do. None where all hold less together."""
        number = sum(counts)
        if number < self.limit:
            return []
        cells = {(start, stop): sum(counts[start:stop]) for start, stop in merged(counts, self.limit)}
        if all(cell < self.limit for cell in cells.values()):
            cells = {(0, len(counts)): number}
        hidden = {edge: self.hidden for edge, cell in cells.items() if cell < self.limit}
        return [(*edge, count) for edge, count in _absorbed(cells, hidden, (number, told)).items()]

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


def _is_open(parts: Sequence[Count], told: Count) -> bool:
    """Whether each of the parts may be all that is told of it, for someone who knows what is told of their sum."""
    low, high = sum(part.low for part in parts), sum(part.high for part in parts)
    return all(
        told.low - (high - part.high) <= part.low and told.high - (low - part.low) >= part.high for part in parts
    )


def _absorbed(
    cells: Mapping[KeyT, int],
    uncertain: Mapping[KeyT, Count],
    whole: tuple[int, Count] | None = None,
    weights: Mapping[KeyT, int] | None = None,
) -> dict[KeyT, Count]:
    """All cells: those that are not exact as told, and the largest other one as what these leave of the sum, which is
    `whole[0]` and of which `whole[1]` is told."""
    shown = {key: uncertain.get(key, exact(number)) for key, number in cells.items()}
    slack = (whole[1].low - whole[0], whole[1].high - whole[0]) if whole else (0, 0)
    weights = weights or cells
    largest = max(cells, key=lambda key: (key not in uncertain, weights.get(key, cells[key])))
    others = [key for key in uncertain if key != largest]
    if not others and slack == (0, 0):
        return shown
    low = cells[largest] + slack[0] + sum(cells[key] - uncertain[key].high for key in others)
    high = cells[largest] + slack[1] + sum(cells[key] - uncertain[key].low for key in others)
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
