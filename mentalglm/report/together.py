"""Posts with two labels, of one task or of two."""

from dataclasses import dataclass

from mentalglm.report.disclosure import Count, exact
from mentalglm.report.scan import Joined
from mentalglm.report.sources import LabelName
from mentalglm.report.told import Cell, Told


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


def within_task(side: int, told: Told) -> Matrix | None:
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
    parent = told.label(label.parent) if label.parent is not None and label.parent == other.parent else None
    wholes = [*told.wholes, *([parent] if parent is not None else [])]
    count = told.rules.pair(both, ((sides[0][0], sides[0][1]), (sides[1][0], sides[1][1])), *wholes)
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
