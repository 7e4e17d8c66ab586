"""Posts and labels over time, each bin as it may be told."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np
from markupsafe import Markup

from mentalglm.report import charts, dates
from mentalglm.report.dates import Unit
from mentalglm.report.disclosure import Count, Disclosure
from mentalglm.report.scan import Counts
from mentalglm.report.sources import LabelName, LabelSet, Side
from mentalglm.report.told import Cell, Told

_OUTSIDE = -1
_AMPLE = 10
"""Posts of a bin, on average and in limits, that let labels of a tenth of the posts be told."""


@dataclass(frozen=True, slots=True)
class TimeChart:
    """A label over time."""

    label: LabelName | None
    """None: all posts."""
    svg: Markup
    narrow: Markup | None
    """For a small screen, where the other one is wide."""
    rows: list[list[Cell]]
    """Of each bin, of each side."""
    is_withheld: list[bool]
    """Of each side."""


@dataclass(frozen=True, slots=True)
class TimeLine:
    """Charts over the same bins."""

    bins: dates.Bins
    charts: list[TimeChart]


@dataclass(frozen=True)
class PostLine:
    """The posts of each side over time, and what is told of them."""

    bins: dates.Bins
    numbers: list[list[int] | None]
    """Of each side, of each bin."""
    told: list[list[Count] | None]
    chart: TimeChart
    """Of each run: its adapters have the same posts."""
    outside: list[tuple[str, Count]]
    """Name of a run, and its posts that are in no bin, if there are any."""


def post_line(
    sides: Sequence[Side], counts: Sequence[Counts | None], rules: Disclosure, unit: Unit | Literal["auto"]
) -> PostLine | None:
    """`counts`: of one task for each side, all tasks have the same posts. None where posts have no dates, or are too
    few."""
    posts: Counter[int] = Counter()
    for each in counts:
        posts.update({day: int(row[0]) for day, row in each.by_day.items()} if each is not None else {})
    if not posts:
        return None
    first, last = dates.usual_span(posts)
    units = [unit] if unit != "auto" else dates.units_for(first, last)
    choices = [dates.bins(first, last, each) for each in units]
    most = max(each.num_dated for each in counts if each is not None)
    # Enough for the labels to be told bin by bin too; else what there is.
    ample = [bins for bins in choices if most >= _AMPLE * rules.limit * len(bins.starts)]
    for bins in [*ample[:1], *choices]:
        found = [None if each is None else _posts(each, bins, rules) for each in counts]
        if any(told is not None for told in found):
            numbers = [None if each is None else _numbers(each, bins, 0) for each in counts]
            of_runs = [at for at, side in enumerate(sides) if side.adapter == side.run.adapters[0]]
            shown = [_in_bins(found[at]) for at in of_runs]
            totals = [each.num_rows if (each := counts[at]) else 0 for at in of_runs]
            chart = _time_chart(None, bins, shown, [None] * len(shown), totals, is_wide=True)
            outside = [(sides[at].run.name, told[_OUTSIDE]) for at in of_runs if _OUTSIDE in (told := found[at] or {})]
            return PostLine(bins, numbers, [_in_bins(each) for each in found], chart, outside)
    return None


def _posts(counts: Counts, bins: dates.Bins, rules: Disclosure) -> dict[int, Count] | None:
    """Of each bin, and outside."""
    if not counts.by_day:
        return None
    numbers = _numbers(counts, bins, 0)
    outside = counts.num_rows - sum(numbers)
    return rules.partition(dict(enumerate(numbers)) | ({_OUTSIDE: outside} if outside else {}))


def _in_bins(told: Mapping[int, Count] | None) -> list[Count] | None:
    return None if told is None else [count for at, count in told.items() if at != _OUTSIDE]


def _numbers(counts: Counts, bins: dates.Bins, column: int) -> list[int]:
    numbers: list[int] = bins.sums(counts.by_day, len(counts.labels) + 1)[:, column].tolist()
    return numbers


def time_line(task: LabelSet, told: Sequence[Told | None], line: PostLine | None, rules: Disclosure) -> TimeLine | None:
    if line is None:
        return None
    shown = _shown_over_time(task, told)
    found: dict[str, list[list[Count] | None]] = {label.slug: [] for label in shown}
    for side, each in enumerate(told):
        of_side: dict[str, list[Count] | None] = {}
        for label in shown:  # parents before their children
            of_side[label.slug] = _series(label, of_side.get(label.parent or ""), each, told, line, side, rules)
        if task.is_exclusive and len(shown) > 1:
            numbers = line.numbers[side] or []
            kept = rules.columns(of_side, numbers)
            of_side = {slug: series if slug in kept else None for slug, series in of_side.items()}
        for slug, series in of_side.items():
            found[slug].append(series)
    charts_of = [
        _time_chart(label, line.bins, found[label.slug], line.told, [0] * len(told), is_wide=len(shown) == 1)
        for label in shown
        if any(series is not None for series in found[label.slug])
    ]
    return TimeLine(line.bins, charts_of) if charts_of else None


def _series(
    label: LabelName,
    parent: Sequence[Count] | None,
    told: Told | None,
    beside: Sequence[Told | None],
    line: PostLine,
    side: int,
    rules: Disclosure,
) -> list[Count] | None:
    """`parent`: what is told of the label above over the same bins."""
    posts = line.told[side]
    whole = told.label(label.slug) if told else None
    if told is None or posts is None or whole is None:
        return None
    column = 1 + told.task.slugs.index(label.slug)
    cells = _numbers(told.counts, line.bins, column)
    sides = [_numbers(each.counts, line.bins, column) for each in beside if each is not None]
    weights = [sum(bin_of_sides) for bin_of_sides in zip(*sides, strict=True)]
    whole = _dated(told, label.slug, sum(cells), whole, rules)
    return rules.series(
        cells, list(zip(*([posts] if parent is None else [posts, parent]), strict=True)), whole, weights
    )


def _dated(told: Told, slug: str, number: int, whole: Count, rules: Disclosure) -> Count:
    """Of the posts with a label, those that have a date. The others, the label's number less these, may be few."""
    undated = told.number(slug) - number
    if undated == 0 or undated >= rules.limit:
        return Count(whole.low - undated, whole.high - undated)
    return Count(max(0, whole.low - rules.limit + 1), whole.high)


def _shown_over_time(task: LabelSet, told: Sequence[Told | None]) -> list[LabelName]:
    """All but, where each post has one label, the commonest: it is what the others leave."""
    if not task.is_exclusive:
        return [*task.parents, *task.answerable]
    if task.positive is not None:
        return [each for each in task.labels if each.slug == task.positive]
    totals = sum((each.counts.labels for each in told if each is not None), np.zeros(len(task.slugs), np.int64))
    commonest = task.slugs[int(np.argmax(totals))]
    return [each for each in task.labels if each.slug != commonest]


def _time_chart(
    label: LabelName | None,
    bins: dates.Bins,
    series: Sequence[list[Count] | None],
    posts: Sequence[list[Count] | None],
    totals: Sequence[int],
    *,
    is_wide: bool,
) -> TimeChart:
    curves, columns = [], []
    for side, each in enumerate(series):
        told = posts[side]
        points: list[tuple[date, float, float] | None] = []
        cells = []
        for at, start in enumerate(bins.starts):
            count = each[at] if each is not None else None
            number = told[at] if told is not None else None
            total = totals[side] if label is None else number.low if number is not None and number.is_exact else 0
            cells.append(Cell(count, total))
            if count is None or (label is not None and total == 0):
                points.append(None)
            else:
                low, high = count.shares(total) if label is not None else (float(count.low), float(count.high))
                points.append((start, low, min(high, 1.0) if label is not None else high))
        curves.append(charts.Curve(points))
        columns.append(cells)
    names = bins.names()
    what = "posts" if label is None else "share of posts"
    words = f"{what} by {bins.unit}, {names[0]} to {names[-1]}; the numbers are in the table below the chart"
    is_share = label is not None
    svg = charts.over_time(curves, words, is_share=is_share, **({"width": 860, "height": 170} if is_wide else {}))
    narrow = charts.over_time(curves, words, is_share=is_share) if is_wide else None
    rows = [list(cells) for cells in zip(*columns, strict=True)]
    return TimeChart(label, svg, narrow, rows, [each is None for each in series])
