"""What is hidden stays hidden from whoever takes the sums apart: held against an attacker who solves for each cell."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from mentalglm.report.disclosure import Count, Disclosure, exact, merged

LIMIT = 10
RULES = Disclosure(LIMIT)
HIDDEN = Count(0, LIMIT - 1)
NUMBERS = st.one_of(st.integers(0, 12), st.integers(0, 400))


def possible(
    told: Sequence[Count], sums: Sequence[tuple[Sequence[int], Count]], wanted: Sequence[int]
) -> tuple[float, float]:
    """Least and most of the sum of the cells `wanted`, for someone who knows of each cell and of each sum of cells what
    is told. (Linear programming: of sums like these its ends are whole numbers that whole cells reach.)"""
    rows, ends = [], []
    for cells, count in sums:
        row = np.zeros(len(told))
        row[list(cells)] = 1
        rows += [row, -row]
        ends += [count.high, -count.low]
    target = np.zeros(len(told))
    target[list(wanted)] = 1
    found = []
    for sign in (1, -1):
        result = linprog(sign * target, A_ub=np.array(rows), b_ub=ends, bounds=[(each.low, each.high) for each in told])
        assert result.success, "what is told is true, so there is a solution"
        found.append(sign * result.fun)
    return found[0], found[1]


def assert_hidden(low: float, high: float) -> None:
    assert low <= 1e-6, f"at least {low} is known"
    assert high >= LIMIT - 1 - 1e-6, f"at most {high} is known"


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=7))
def test_parts_of_a_total(cells: list[int]) -> None:
    told = RULES.partition(dict(enumerate(cells)))
    total = sum(cells)
    if told is None:
        assert total < LIMIT * len(cells)
        return
    counts = [told[at] for at in range(len(cells))]
    for at, (cell, count) in enumerate(zip(cells, counts, strict=True)):
        assert count.low <= cell <= count.high
        if cell < LIMIT:
            assert count == HIDDEN
            assert_hidden(*possible(counts, [(range(len(cells)), exact(total))], [at]))
        others = [other for other in range(len(cells)) if other != at]
        if total - cell < LIMIT:
            assert_hidden(*possible(counts, [(range(len(cells)), exact(total))], others))
    if min(cells) >= LIMIT:
        assert all(count.is_exact for count in counts), "nothing is hidden without need"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=7))
def test_a_label_over_time(pairs: list[tuple[int, int]]) -> None:
    """Bins of (with the label, without it). All posts, those of each bin and those with the label are told."""
    cells, totals = [pair[0] for pair in pairs], [sum(pair) for pair in pairs]
    posts = RULES.partition(dict(enumerate(totals)))
    if posts is None:
        return
    whole = RULES.part(sum(cells), sum(totals))
    told = RULES.by_bin(cells, [[posts[at]] for at in range(len(cells))], whole)
    if told is None:
        assert not all(min(pair) >= LIMIT for pair in pairs)
        return
    for cell, count in zip(cells, told, strict=True):
        assert count.low <= cell <= count.high
    width = len(cells)
    known = [*told, *(Count(0, total) for total in totals)]
    sums = [([at, width + at], posts[at]) for at in range(width)]
    sums += [(range(width), whole), (range(2 * width), exact(sum(totals)))]
    for at, (cell, total) in enumerate(zip(cells, totals, strict=True)):
        if cell < LIMIT:
            assert_hidden(*possible(known, sums, [at]))
        if posts[at].is_exact and total - cell < LIMIT:
            assert_hidden(*possible(known, sums, [width + at]))
    if not whole.is_exact:
        low, high = possible(known, sums, range(width))
        assert low <= whole.low
        assert high >= whole.high


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(NUMBERS, min_size=4, max_size=4), min_size=2, max_size=5))
def test_labels_over_time_where_each_post_has_one(table: list[list[int]]) -> None:
    """Rows are bins; the last label is not shown: it is what the others leave of the posts of a bin."""
    totals, width = [sum(row) for row in table], len(table)
    posts = RULES.partition(dict(enumerate(totals)))
    labels = RULES.partition({label: sum(row[label] for row in table) for label in range(4)})
    if posts is None or labels is None:
        return
    series = {
        label: RULES.series([row[label] for row in table], [[posts[at]] for at in range(width)], labels[label])
        for label in range(3)
    }
    shown = RULES.columns(series, totals)
    known: list[Count] = []
    for label in range(3):
        known += series[label] if label in shown else [Count(0, posts[at].high) for at in range(width)]
    known += [Count(0, posts[at].high) for at in range(width)]
    sums = [([label * width + at for label in range(4)], posts[at]) for at in range(width)]
    sums += [(range(label * width, (label + 1) * width), labels[label]) for label in range(4)]
    for at, row in enumerate(table):
        for label in range(4):
            if row[label] < LIMIT:
                assert label not in shown
                low, high = possible(known, sums, [label * width + at])
                assert high - low >= 2, "posts by bin and posts by label bound it, as they do without this table"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 4), NUMBERS), min_size=1, max_size=20), st.booleans())
def test_bars_of_a_histogram(counts: list[int], is_total_hidden: bool) -> None:
    number = sum(counts)
    whole = Count(max(0, number - 3), number + 6) if is_total_hidden else exact(number)
    bars = RULES.bars(counts, whole)
    if number < LIMIT:
        assert bars == []
        return
    assert [bar[0] for bar in bars] == [0, *(bar[1] for bar in bars[:-1])]
    assert bars[-1][1] == len(counts)
    told = [bar[2] for bar in bars]
    for at, (start, stop, count) in enumerate(bars):
        cell = sum(counts[start:stop])
        assert count.low <= cell <= count.high
        if cell < LIMIT:
            assert_hidden(*possible(told, [(range(len(bars)), whole)], [at]))


def test_nearly_all_tells_as_much_as_nearly_none() -> None:
    assert RULES.part(297, 300) == (291, 300)
    assert RULES.part(3, 300) == HIDDEN
    assert RULES.part(0, 300) == HIDDEN
    assert RULES.part(300, 300) == (291, 300)
    assert RULES.part(290, 300) == (290, 290)
    assert RULES.part(6, 12) == (0, 12)


@settings(max_examples=150, deadline=None)
@given(st.lists(NUMBERS, min_size=4, max_size=4), st.sampled_from([(0,), (0, 1)]))
def test_a_count_within_others(cells: list[int], told_within: tuple[int, ...]) -> None:
    """Posts that failed; with a result and none of the labels; with the parent and not the child; with the child. What
    is told of each whole is what the count is told by, so none tells of the few that one of them has more."""
    total = sum(cells)
    with_result, parent, child = total - cells[0], cells[2] + cells[3], cells[3]
    statuses = RULES.partition({"ok": with_result, "failed": cells[0]})
    if statuses is None:
        return
    of_parent = RULES.part(parent, total, statuses["ok"])
    of_child = RULES.part(child, total, statuses["ok"], of_parent)
    assert of_parent.low <= parent <= of_parent.high
    assert of_child.low <= child <= of_child.high
    sums = [(range(4), exact(total)), ([0], statuses["failed"]), ([1, 2, 3], statuses["ok"])]
    sums += [([2, 3], of_parent), ([3], of_child)]
    known = [Count(0, total)] * 4
    for at, cell in enumerate(cells):
        if cell < LIMIT:
            assert_hidden(*possible(known, sums, [at]))
    if min(cells) >= LIMIT:
        assert of_child.is_exact, "nothing is hidden without need"


@settings(max_examples=150, deadline=None)
@given(NUMBERS, st.integers(-12, 30), st.integers(0, 30))
def test_a_count_that_is_nearly_another_one(number: int, more: int, left: int) -> None:
    """Of posts with a probability above one half, and those with the label: they are the same, or it is not told how
    many more the one or the other is. Nor is it told of all posts."""
    label, total = max(LIMIT, number + more), max(LIMIT, number + more, number) + left
    of_label = RULES.part(label, total)
    told = RULES.all_or_part(number, [(total, exact(total))], [(label, of_label)])
    assert told.low <= number <= told.high
    for other, of_other, is_within in ((label, of_label, False), (total, exact(total), True)):
        if number == other:
            assert told in (of_label, exact(total))
        elif abs(other - number) < LIMIT:
            low, high = of_other.low - told.high, of_other.high - told.low
            assert high - (max(0, low) if is_within else low) >= LIMIT - 1
    if min(number, total - number, abs(number - label)) > LIMIT and of_label.is_exact:
        assert told == exact(number), "nothing is hidden without need"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=2, max_size=4))
def test_a_child_over_time(table: list[list[int]]) -> None:
    """Bins of (without the parent, with it and not the child, with the child): the parent's bins are told as well."""
    posts = RULES.partition(dict(enumerate(sum(row) for row in table)))
    if posts is None:
        return
    total, parent, child = (sum(sum(row[at:]) for row in table) for at in range(3))
    of_parent = RULES.part(parent, total)
    of_child = RULES.part(child, total, of_parent)
    above = RULES.series([row[1] + row[2] for row in table], [[posts[at]] for at in range(len(table))], of_parent)
    if above is None:
        return
    below = RULES.series([row[2] for row in table], [[posts[at], above[at]] for at in range(len(table))], of_child)
    if below is None:
        return
    for at, row in enumerate(table):
        assert below[at].low <= row[2] <= below[at].high
        if row[1] < LIMIT:
            low, high = max(0, above[at].low - below[at].high), above[at].high - below[at].low
            assert high - low >= LIMIT - 1


def test_a_sum_of_more_than_there_are_posts_is_not_told() -> None:
    told = RULES.overlapping({"a": 9, "b": 9, "none": 290}, 320, exact(300))
    assert told == {"a": HIDDEN, "b": HIDDEN, "none": (282, 300)}, "and not to 308"
    told = RULES.overlapping({"a": 97, "b": 40}, 120, exact(100))
    assert told == {"a": (91, 100), "b": (37, 46)}, "3 of 100 with a result have not the first"


def test_labels_of_which_a_post_may_have_several_are_protected_as_if_it_had_one() -> None:
    told = RULES.overlapping({"a": 120, "b": 60, "c": 4, "none": 80}, 260)
    assert told == {"a": (115, 124), "b": (60, 60), "c": HIDDEN, "none": (80, 80)}
    assert RULES.overlapping({"a": 3}, 19) is None
    below = RULES.overlapping({"x": 30, "y": 40}, 500, whole=(70, Count(66, 75)))
    assert below == {"x": (30, 30), "y": (36, 45)}, "children do not tell a parent that is hidden"


@pytest.mark.parametrize(
    ("both", "here", "there", "total", "told"),
    [
        (20, 50, 60, 300, exact(20)),
        (4, 50, 60, 300, None),
        (45, 50, 60, 300, None),  # 5 have the first alone
        (50, 100, 60, 115, None),  # 5 have neither
    ],
)
def test_two_labels_together(both: int, here: int, there: int, total: int, told: Count | None) -> None:
    assert RULES.pair(both, ((here, exact(here)), (there, exact(there))), exact(total)) == told
    assert RULES.pair(20, ((50, Count(45, 54)), (60, exact(60))), exact(300)) is None
    assert RULES.pair(20, ((50, exact(50)), (60, exact(60))), exact(300), exact(95)) is None, "5 with a result"


def test_a_label_with_a_thin_month_is_told_but_for_that_and_the_largest() -> None:
    posts = [[exact(100)]] * 3
    assert RULES.series([40, 4, 20], posts, exact(64)) == [(35, 44), HIDDEN, (20, 20)]
    assert RULES.series([40, 14, 20], posts, exact(74)) == [exact(40), exact(14), exact(20)]
    assert RULES.columns({"a": [exact(40)], "b": [exact(30)], "c": [HIDDEN]}, [75]) == ["a"]


def test_bars_that_hold_enough_stay_alone() -> None:
    assert merged([500, 1, 2, 0, 3, 40, 4, 5, 6], 10) == [(0, 1), (1, 5), (5, 6), (6, 9)]
    assert merged([5, 5, 5, 5, 3], 10) == [(0, 2), (2, 5)]
    assert merged([], 10) == []
