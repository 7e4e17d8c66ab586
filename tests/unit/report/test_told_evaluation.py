"""Evaluations as a page tells them, held against an attacker who tries all tables of counts that fit the whole page."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mentalglm.evaluation.evaluate import evaluate
from mentalglm.report.disclosure import Count, Disclosure, exact
from mentalglm.report.evaluated import EvaluationView, evaluation_view
from mentalglm.report.scan import Counts
from mentalglm.report.sources import LabelName, LabelSet, Run, Side
from mentalglm.report.told import Cell, Told
from mentalglm.report.told_evaluation import ToldEvaluation
from mentalglm.tasks import load_task
from tests.unit.report.test_disclosure import LIMIT, RULES

RISK = LabelSet.of(load_task("suicide_risk"))
Numbers = npt.NDArray[np.int64]
HIGH, LOW, FAILED = "high_risk", "low_risk", None


def view_of(
    gold: Sequence[str], said: Sequence[str | None], run: Told | None = None, rules: Disclosure = RULES
) -> EvaluationView:
    """Of an evaluation of the risk; an answer of None has failed. `run`: that the answers are of."""
    table = pa.table(
        {
            "post_id": [str(at) for at in range(len(said))],
            "status": ["parse_failed" if each is None else "ok" for each in said],
            "labels": pa.array([None if each is None else [each] for each in said], pa.list_(pa.string())),
        }
    )
    labels = {str(at): [label] for at, label in enumerate(gold)}
    metrics = evaluate(load_task("suicide_risk"), labels, table, num_bootstrap=0).to_json()
    provenance = {"predictions": {"run_id": "a", "adapter": None, "uri": "x"}, "gold": {}}
    side = Side(Run("x", "a", {"run_id": "a"}, None), None, "a")
    return evaluation_view(metrics | {"provenance": provenance}, RISK, [side] if run else [], [run], rules)


def risk_view(table: Mapping[tuple[str, str | None], int], run: Told | None = None) -> EvaluationView:
    """`table`: (gold label, answer) -> posts."""
    pairs = [pair for pair, number in table.items() for _ in range(number)]
    return view_of([gold for gold, _ in pairs], [said for _, said in pairs], run)


def run_of(high: int, low: int, failed: int) -> Told:
    """What a page tells of a run of so many posts."""
    counts = Counts(
        num_rows=high + low + failed,
        statuses=Counter({"ok": high + low} | ({"parse_failed": failed} if failed else {})),
        flags=Counter(),
        labels=np.array([{HIGH: high, LOW: low}[slug] for slug in RISK.slugs]),
        pairs=np.zeros((2, 2), np.int64),
        num_none=0,
        num_explained=0,
        histograms={},
        by_day={},
        date_column=None,
    )
    return Told.of(RISK, counts, [counts], RULES)


def fits(count: Count | None, numbers: Numbers) -> npt.NDArray[np.bool_]:
    return np.ones(numbers.shape, bool) if count is None else (count.low <= numbers) & (numbers <= count.high)


def is_shown_as(value: float | None, parts: Numbers, wholes: Numbers) -> npt.NDArray[np.bool_]:
    """Whether the page shows these shares as it shows `value`: in per cent with one digit."""
    if value is None:
        return np.ones(np.broadcast(parts, wholes).shape, bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(wholes > 0, parts / wholes, 0.0)
    return np.abs(100 * shares - round(100 * value, 1)) <= 0.05 + 1e-9


def tables_that_fit(view: EvaluationView) -> dict[str, set[int]]:
    """What each count can be, of all tables of a task with two labels that fit everything on the page."""
    [(_, rows)] = view.levels
    gold = {row.label.slug: row.support for row in rows}
    said = {row.label.slug: row.num_predicted for row in rows}
    told = dict(view.denominators)
    n = view.n.low
    failed = told.get("status parse_failed", Cell(None if told == {} else exact(0), n)).count
    high, answered, lost = gold[HIGH], said[HIGH], failed
    axes = [
        np.arange(max(0, count.low), min(n, count.high) + 1) if count else np.arange(n + 1)
        for count in (high, answered, lost)
    ]
    g, s, f = (
        each.reshape(shape) for each, shape in zip(axes, ((-1, 1, 1, 1, 1), (-1, 1, 1, 1), (-1, 1, 1)), strict=True)
    )
    tp, fh = np.arange(n + 1).reshape(-1, 1), np.arange(axes[2].max() + 1)
    hl, lh, ln = g - tp - fh, s - tp, f - fh
    ll = n - g - lh - ln
    ok = (hl >= 0) & (lh >= 0) & (ln >= 0) & (ll >= 0) & (tp <= np.minimum(g, s))
    ok = ok & fits(gold[LOW], n - g) & fits(said[LOW], n - f - s)
    for row in rows:
        hits, given, has = (tp, s, g) if row.label.slug == HIGH else (ll, n - f - s, n - g)
        for value, parts, wholes in (
            (row.precision, hits, given),
            (row.recall, hits, has),
            (row.f1, 2 * hits, given + has),
        ):
            ok = ok & is_shown_as(value, parts, wholes)
    for row in view.rows:
        assert row.name in ("binary", "binary, strict form", "macro", "weighted"), "else the attacker misses something"
        if row.name.startswith("binary"):
            f1, precision, recall, accuracy = (score.value for score in row.scores)
            for value, parts, wholes in (
                (f1, 2 * tp, s + g),
                (precision, tp, s),
                (recall, tp, g),
                (accuracy, tp + ll, np.array(n)),
            ):
                ok = ok & is_shown_as(value, parts, wholes)
    if view.confusion is not None:
        numbers = {HIGH: {HIGH: tp, LOW: hl, "no_result": fh}, LOW: {HIGH: lh, LOW: ll, "no_result": ln}}
        for slug, cells in view.confusion.rows:
            for name, cell in zip(view.confusion.columns, cells, strict=True):
                ok = ok & fits(cell.count, numbers[slug][name])
    counts = {"gold high": g, "gold low": n - g, "said high": s, "said low": n - f - s, "failed": f}
    return {name: set(np.broadcast_to(each, ok.shape)[ok].tolist()) for name, each in counts.items()}


FEW = st.one_of(st.integers(0, 12), st.integers(0, 60))
PAIRS = [(gold, said) for gold in (HIGH, LOW) for said in (HIGH, LOW, FAILED)]


@settings(max_examples=200, deadline=None)
@given(st.lists(FEW, min_size=6, max_size=6).filter(lambda cells: sum(cells) >= LIMIT))
def test_a_label_of_two_that_few_have_or_were_given_stays_hidden(cells: list[int]) -> None:
    found = tables_that_fit(risk_view(dict(zip(PAIRS, cells, strict=True))))
    sums = {
        "gold high": sum(cells[:3]),
        "gold low": sum(cells[3:]),
        "said high": cells[0] + cells[3],
        "said low": cells[1] + cells[4],
        "failed": cells[2] + cells[5],
    }
    for name, number in sums.items():
        assert number in found[name]
        if 0 < number < LIMIT:
            assert set(range(1, LIMIT)) <= found[name], (name, number)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=6, max_size=6), st.lists(FEW, min_size=3, max_size=3))
def test_few_posts_of_the_run_that_are_not_evaluated_stay_hidden(cells: list[int], left_out: list[int]) -> None:
    """`left_out`: high, low, failed; the run has these more."""
    evaluated = [cells[0] + cells[3], cells[1] + cells[4], cells[2] + cells[5]]
    assume(sum(evaluated) >= LIMIT)
    assume(sum(left_out) > 0)
    run = run_of(*(here + more for here, more in zip(evaluated, left_out, strict=True)))
    view = risk_view(dict(zip(PAIRS, cells, strict=True)), run)
    if not view.n.is_exact:
        assert all(score.value is None for row in view.rows for score in row.scores), "all counts are ranges then"
        return
    found = tables_that_fit(view)
    total = sum(left_out)
    for at, (slug, name) in enumerate([(HIGH, "said high"), (LOW, "said low")]):
        told = run.label(slug)
        if told is None or not told.is_exact:
            continue
        more = {told.low - number for number in found[name]}
        if 0 < left_out[at] < LIMIT or 0 < total - left_out[at] < LIMIT:
            assert len(more) >= LIMIT, (name, left_out)


LABELS = LabelSet("any", "1", "multilabel", tuple(LabelName(slug, slug, "", None) for slug in "abcd"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(FEW, FEW, FEW), min_size=4, max_size=4), st.integers(60, 250))
def test_sums_over_labels_leave_those_that_few_have_or_were_given_hidden(
    cells: list[tuple[int, int, int]], n: int
) -> None:
    """`cells`: of each label, posts that have it and were given it; have it alone; were given it alone."""
    hits = np.array([each[0] for each in cells])
    numbers = {"support": hits + [each[1] for each in cells], "num_predicted": hits + [each[2] for each in cells]}
    assume(all(count <= n for each in numbers.values() for count in each))
    per_label = {slug: {key: int(each[at]) for key, each in numbers.items()} for at, slug in enumerate(LABELS.slugs)}
    level = {"average": "micro", "per_label": per_label}
    metrics = {"n": n, "num_parsed": n, "num_failed_by_status": {}, "num_free_form": 0, "num_without_label": 0}
    told = ToldEvaluation(metrics | level | {"num_with_out_of_set_label": 0}, LABELS, None, RULES)
    shown = told.scores_of(level)
    if told.is_open or not shown:
        return
    assert shown == ("f1", "precision", "recall")
    assert_nothing_follows(cells, told)


def assert_nothing_follows(cells: Sequence[tuple[int, int, int]], told: ToldEvaluation) -> None:
    """`cells`: of each label, posts that have it and were given it; have it alone; were given it alone. The attacker
    knows the sums of all three over the hidden labels: no more follows from the averages and the others' scores."""
    sides = [{slug: sum(each[at] for at in (0, which)) for slug, each in zip(LABELS.slugs, cells, strict=True)}
             for which in (1, 2)]  # fmt: skip
    hidden = [slug for slug in LABELS.slugs if not told.has_scores(slug)]
    hits = sum(each[0] for slug, each in zip(LABELS.slugs, cells, strict=True) if slug in hidden)
    sums = [sum(each[slug] for slug in hidden) for each in sides]
    ranges = [told.gold, told.said]
    for slug in hidden:
        others = [slug_ for slug_ in hidden if slug_ != slug]
        ends = [[sum(each[other][end] for other in others) for end in (0, 1)] for each in ranges]
        possible = [
            (gold, said)
            for gold in range(ranges[0][slug].low, ranges[0][slug].high + 1)
            for said in range(ranges[1][slug].low, ranges[1][slug].high + 1)
            if all(
                low <= total - number <= high
                for (low, high), total, number in zip(ends, sums, (gold, said), strict=True)
            )
            and hits <= min(gold, said) + min(sums[0] - gold, sums[1] - said)
        ]
        for which, side in enumerate(sides):
            values = {pair[which] for pair in possible}
            assert side[slug] in values
            if 0 < side[slug] < LIMIT:
                assert len(values) >= LIMIT - 1, (slug, which, values)
