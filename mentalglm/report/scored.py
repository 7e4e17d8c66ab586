"""What a score run has found of a task: statuses, labels, labels over time and together, confidence; each count as it
may be told."""

from collections.abc import Sequence
from dataclasses import dataclass

from mentalglm.report.disclosure import Count, Disclosure, exact
from mentalglm.report.over_time import PostLine, TimeLine, time_line
from mentalglm.report.scan import NUM_BARS
from mentalglm.report.sources import LabelName, LabelSet, Side
from mentalglm.report.together import Matrix, within_task
from mentalglm.report.told import NONE, Cell, Told


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A label with its cell for each side."""

    label: LabelName
    cells: list[Cell]
    kind: str = "label"
    """label · parent · child · rest: no label, no result."""


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
class TaskView:
    """All that is shown of a task."""

    labels: LabelSet
    num_posts: list[Count | None]
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


def task_view(
    task: LabelSet,
    sides: Sequence[Side],
    told: Sequence[Told | None],
    rules: Disclosure,
    line: PostLine | None,
    across: Sequence[Matrix],
) -> TaskView:
    """Everything about a task. `told`: of each side, None where it has not the task."""
    counts = [None if each is None else each.counts for each in told]
    return TaskView(
        labels=task,
        num_posts=[rules.alone(each.num_rows) if each else None for each in counts],
        statuses=[_statuses(each) for each in told],
        rows=_rows(task, told),
        is_too_small=all(each is None or each.labels is None for each in told),
        time=time_line(task, told, line, rules),
        matrices=[
            matrix
            for side, each in enumerate(told)
            if each is not None and (matrix := within_task(side, each)) is not None
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
    total, found = told.counts.num_rows, told.flags
    if found is None:
        return {name: Cell(None, 0) for name in sorted(told.counts.flags)}
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
