"""What a score run has found: statuses, labels, labels over time and together, confidence; each count as it may be
told."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np
from markupsafe import Markup

from mentalglm.report import charts, dates
from mentalglm.report.dates import Unit
from mentalglm.report.disclosure import Count, Disclosure, Known, exact
from mentalglm.report.scan import NUM_BARS, Counts, Joined
from mentalglm.report.sources import LabelName, LabelSet, Side

NONE = "no label applies"
STATUS = "status: "
_OUTSIDE = -1
_AMPLE = 10
"""Posts of a bin, on average and in limits, that let labels of a tenth of the posts be told."""


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


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A label with its cell for each side."""

    label: LabelName
    cells: list[Cell]
    kind: str = "label"
    """label · parent · child · rest: no label, no result."""


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


@dataclass(frozen=True, slots=True)
class Bar:
    """Of a histogram: from `start` to `stop`, of 0 to 1; `height` as a share of the highest."""

    start: float
    stop: float
    cell: Cell
    height: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Of one side."""

    side: int
    bars: list[Bar]
    gaps: list[tuple[float, float]]
    """Where fewer posts lie than may be told."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Labels that posts have together: of the posts with the row's label, the share that has the column's too."""

    side: int
    rows: list[tuple[LabelName, Count | None, list[Cell | None]]]
    columns: list[LabelName]

    @property
    def tells(self) -> bool:
        """Whether there is a number in it."""
        return any(
            cell is not None and cell.count is not None and cell.count.is_exact
            for _, _, cells in self.rows
            for cell in cells
        )


@dataclass(frozen=True, slots=True)
class TaskView:
    """All that is shown of a task."""

    labels: LabelSet
    num_posts: list[Count]
    """Of each side; None where it has not the task."""
    statuses: list[dict[str, Cell] | None]
    rows: list[LabelRow]
    is_too_small: bool
    time: TimeLine | None
    matrices: list[Matrix]
    histograms: dict[str, list[Histogram]]
    explained: list[Cell]
    flags: list[dict[str, Cell]]
    across: list[Matrix]


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


def task_view(
    task: LabelSet,
    sides: Sequence[Side],
    told: Sequence[Told | None],
    rules: Disclosure,
    line: "PostLine | None",
    across: Sequence[Matrix],
) -> TaskView:
    """Everything about a task. `told`: of each side, None where it has not the task."""
    counts = [None if each is None else each.counts for each in told]
    return TaskView(
        labels=task,
        num_posts=[rules.alone(each.num_rows) if each else exact(0) for each in counts],
        statuses=[_statuses(each) for each in told],
        rows=_rows(task, told),
        is_too_small=all(each is None or each.labels is None for each in told),
        time=_time_line(task, told, line, rules),
        matrices=[
            matrix for side, each in enumerate(told) if each is not None and (matrix := _matrix(side, each)) is not None
        ],
        histograms=_histograms(told, rules),
        explained=[_explained(each) if each else Cell(None, 0) for each in told],
        flags=[_flags(each) if each else {} for each in told],
        across=list(across),
    )


def _explained(told: Told) -> Cell:
    total = told.counts.num_rows
    if total < told.rules.limit:
        return Cell(None, 0)
    return Cell(told.rules.part(told.counts.num_explained, *told.wholes, beside=told.with_labels), total)


def _flags(told: Told) -> dict[str, Cell]:
    """Of posts with a result and without one. In an order that tells nothing of those that are hidden."""
    total = told.counts.num_rows
    if total < told.rules.limit:
        return {name: Cell(None, 0) for name in sorted(told.counts.flags)}
    statuses = [count for count in (told.statuses or {}).values() if count != told.rules.hidden]
    found = {name: told.rules.part(number, total, beside=statuses) for name, number in told.counts.flags.items()}
    return {name: Cell(found[name], total) for name in sorted(found, key=lambda name: (-found[name].high, name))}


def _statuses(told: Told | None) -> dict[str, Cell] | None:
    if told is None or told.statuses is None:
        return None
    order = sorted(told.statuses, key=lambda status: (status != "ok", -told.statuses[status].high))  # type: ignore[index]
    return {status: Cell(told.statuses[status], told.counts.num_rows) for status in order}


def _rows(task: LabelSet, told: Sequence[Told | None]) -> list[LabelRow]:
    def cells(slug: str) -> list[Cell]:
        return [Cell(each.label(slug), each.counts.num_rows) if each else Cell(None, 0) for each in told]

    rows: list[LabelRow] = []
    if task.parents:
        for parent in task.parents:
            rows.append(LabelRow(parent, cells(parent.slug), "parent"))
            children = (each for each in task.answerable if each.parent == parent.slug)
            rows += [LabelRow(child, cells(child.slug), "child") for child in children]
    else:
        rows += [LabelRow(each, cells(each.slug)) for each in task.labels]
    if any(each is not None and each.labels is not None and NONE in each.labels for each in told):
        rows.append(LabelRow(LabelName(NONE, NONE, "无", None), cells(NONE), "rest"))
    failed = [_no_result(each) for each in told]
    if any(cell.count is not None and cell.count != exact(0) for cell in failed):
        rows.append(LabelRow(LabelName("no result", "no result", "无结果", None), failed, "rest"))
    return rows


def _no_result(told: Told | None) -> Cell:
    if told is None or told.statuses is None:
        return Cell(None, 0)
    total, ok = told.counts.num_rows, told.statuses.get("ok", exact(0))
    return Cell(Count(total - ok.high, total - ok.low), total)


# Over time


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


def _time_line(
    task: LabelSet, told: Sequence[Told | None], line: PostLine | None, rules: Disclosure
) -> TimeLine | None:
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


# Confidence


def _histograms(told: Sequence[Told | None], rules: Disclosure) -> dict[str, list[Histogram]]:
    found: dict[str, list[Histogram]] = {}
    for side, each in enumerate(told):
        if each is None or each.counts.num_rows < 2 * rules.limit:
            continue
        for name, bars in each.counts.histograms.items():
            if (histogram := _histogram(side, name, bars.tolist(), each, rules)) is not None:
                found.setdefault(name, []).append(histogram)
    return found


def _histogram(side: int, name: str, counts: Sequence[int], told: Told, rules: Disclosure) -> Histogram | None:
    total = told.counts.num_rows
    positive = told.task.positive
    if name == "probability" and positive is not None and told.labels is not None:
        # Below one half the answer was one label, above it the other: two sums that are told elsewhere.
        negative = next(slug for slug in told.task.slugs if slug != positive)
        halves = [(0, NUM_BARS // 2, negative), (NUM_BARS // 2, NUM_BARS, positive)]
    else:
        halves = [(0, NUM_BARS, "")]
    bars: list[tuple[int, int, Count]] = []
    gaps: list[tuple[float, float]] = []
    for start, stop, slug in halves:
        part = counts[start:stop]
        whole = _with_value(sum(part), slug, told, rules)
        found = rules.bars(part, whole)
        bars += [(start + low, start + high, count) for low, high, count in found]
        gaps += [] if found else [(start / NUM_BARS, stop / NUM_BARS)]
    if not bars:
        return None
    heights = [(count.low + count.high) / 2 / (stop - start) for start, stop, count in bars]
    drawn = [
        Bar(start / NUM_BARS, stop / NUM_BARS, Cell(count, total), height / max(heights))
        for (start, stop, count), height in zip(bars, heights, strict=True)
    ]
    return Histogram(side, drawn, gaps)


def _with_value(number: int, slug: str, told: Told, rules: Disclosure) -> Count:
    """What is told of the number of posts that the bars add up to."""
    total = told.counts.num_rows
    label = told.label(slug) if slug else None
    beside = [(told.number(slug), label)] if label is not None else []
    return rules.all_or_part(number, [*told.with_result, (total, exact(total))], beside)


# Together


def _matrix(side: int, told: Told) -> Matrix | None:
    """Of labels of which a post may have several, on one level."""
    if told.task.is_exclusive or told.labels is None:
        return None
    labels = told.task.answerable
    at = [told.task.slugs.index(each.slug) for each in labels]
    rows = []
    for row, label in zip(at, labels, strict=True):
        cells = [
            None if row == column else _pair(told, int(told.counts.pairs[row, column]), label, other)
            for column, other in zip(at, labels, strict=True)
        ]
        rows.append((label, told.label(label.slug), cells))
    return Matrix(side, rows, list(labels))


def _pair(told: Told, both: int, label: LabelName, other: LabelName) -> Cell:
    sides = [(told.number(each.slug), told.label(each.slug)) for each in (label, other)]
    if sides[0][1] is None or sides[1][1] is None or not sides[0][1].is_exact:
        return Cell(None, 0)
    count = told.rules.pair(both, ((sides[0][0], sides[0][1]), (sides[1][0], sides[1][1])), *told.wholes)
    return Cell(count, sides[0][0])


def across_tasks(side: int, joined: Joined, rows: Told, columns: Told) -> Matrix | None:
    """Labels of one task together with the positive one of another, of the same posts."""
    positive = columns.task.positive
    if positive is None or rows.labels is None or columns.labels is None or rows.task.is_exclusive:
        return None
    at = columns.task.slugs.index(positive)
    target, other = columns.task.labels[at], columns.label(positive)
    numbers = {label.slug: int(joined.both[number, at]) for number, label in enumerate(rows.task.labels)}
    cells: dict[str, Cell] = {}
    for number, label in enumerate(rows.task.labels):  # parents before their children
        told, here = rows.label(label.slug), rows.number(label.slug)
        is_same = joined.here[number] == here and joined.there[at] == columns.number(positive)
        cells[label.slug] = Cell(None, 0)
        if told is None or other is None or not is_same:
            continue
        sides = ((here, told), (columns.number(positive), other))
        both = rows.rules.pair(numbers[label.slug], sides, exact(joined.num_rows))
        if label.parent is not None and cells[label.parent].count is not None:
            # What the child leaves of its parent is taken apart as well.
            left = numbers[label.parent] - numbers[label.slug]
            if min(left, rows.number(label.parent) - here - left) < rows.rules.limit:
                both = None
        cells[label.slug] = Cell(both, here)
    return Matrix(side, [(label, rows.label(label.slug), [cells[label.slug]]) for label in rows.task.labels], [target])
