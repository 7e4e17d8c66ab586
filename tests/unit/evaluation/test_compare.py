"""Two sets of predictions of the same rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from mentalglm.evaluation import Evaluation, evaluate
from mentalglm.evaluation.compare import compare, holm
from mentalglm.tasks import load_task
from tests.unit.evaluation.test_evaluate import table

RISK = load_task("suicide_risk")
PATHWAY = load_task("cognitive_pathway")
NAMES = np.array(["low_risk", "high_risk"])


def risk(gold: "np.ndarray", predicted: "np.ndarray", num_bootstrap: int = 2000) -> Evaluation:  # type: ignore[type-arg]
    labels = {f"r{row}": [name] for row, name in enumerate(NAMES[gold])}
    return evaluate(RISK, labels, table([[name] for name in NAMES[predicted]]), num_bootstrap=num_bootstrap)


def test_nothing_differs_from_itself() -> None:
    gold = np.arange(50) % 2
    same = risk(gold, gold[::-1])
    found = compare(same, same)["label"]
    assert (found.difference, found.ci95, found.p_bootstrap, found.p_mcnemar) == (0.0, (0.0, 0.0), 1.0, 1.0)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    gold = np.ones(100, dtype=int)
    one, other = gold.copy(), gold.copy()
    one[:2], other[2:12] = 0, 0
    found = compare(risk(gold, one), risk(gold, other))["label"]
    assert (found.num_only_this, found.num_only_other) == (10, 2)
    assert found.p_mcnemar == pytest.approx(0.03857421875)  # 2 * P(X <= 2), X ~ Binomial(12, 1/2)


def test_pairs_tell_more_than_two_intervals() -> None:
    """Two runs that differ in few rows: each interval is wide, that of the difference is not."""
    generator = np.random.default_rng(0)
    gold = generator.integers(0, 2, 250)
    one = np.where(generator.random(250) < 0.8, gold, 1 - gold)
    other = one.copy()
    worse = np.flatnonzero(one == gold)[:12]
    other[worse] = 1 - other[worse]
    better = risk(gold, one)
    found = compare(better, risk(gold, other))["label"]
    low, high = better.ci95["label"]["f1"]
    assert found.ci95 is not None
    assert found.p_bootstrap is not None
    assert 0 < found.ci95[0] < found.difference < found.ci95[1]
    assert found.ci95[1] - found.ci95[0] < 0.6 * (high - low)
    assert max(found.p_bootstrap, found.p_mcnemar) < 0.01
    reverse = compare(risk(gold, other), better)["label"]
    assert reverse.difference == pytest.approx(-found.difference)


def test_the_p_value_is_two_sided() -> None:
    """About that of a normal difference with the spread of the interval."""
    generator = np.random.default_rng(4)
    gold = generator.integers(0, 2, 400)
    sides = [np.where(generator.random(400) < share, gold, 1 - gold) for share in (0.80, 0.77)]
    found = compare(*(risk(gold, each, 10_000) for each in sides))["label"]
    assert found.ci95 is not None
    expected = 2 * norm.sf(abs(found.difference) / ((found.ci95[1] - found.ci95[0]) / 3.92))
    assert 0.05 < expected < 0.8
    assert found.p_bootstrap == pytest.approx(expected, abs=0.03)


def test_runs_that_are_equally_good_seldom_seem_to_differ() -> None:
    generator = np.random.default_rng(1)
    p_values = []
    for _ in range(150):
        gold = generator.integers(0, 2, 120)
        sides = [np.where(generator.random(120) < 0.75, gold, 1 - gold) for _ in range(2)]
        found = compare(risk(gold, sides[0], 300), risk(gold, sides[1], 300))["label"]
        assert found.p_bootstrap is not None
        p_values.append((found.p_bootstrap, found.p_mcnemar))
    false_alarms = (np.array(p_values) < 0.05).mean(axis=0)
    assert (false_alarms < 0.1).all()  # 5 % expected of the bootstrap, fewer of an exact test


def test_each_level_is_compared_and_adjusted() -> None:
    gold = {f"r{row}": ["daily_life"] for row in range(30)}
    right = evaluate(PATHWAY, gold, table([["daily_life"]] * 30), num_bootstrap=200)
    half = evaluate(PATHWAY, gold, table([["study_work"]] * 10 + [["daily_life"]] * 20), num_bootstrap=200)
    found = compare(right, half)
    assert (found["parent"].difference, found["parent"].p_mcnemar) == (0.0, 1.0)
    assert found["child"].p_mcnemar == pytest.approx(2 / 2**10)
    assert found["child"].p_mcnemar_holm == pytest.approx(4 / 2**10)
    assert compare(evaluate(PATHWAY, gold, table([["daily_life"]] * 30), num_bootstrap=0), half)["child"].ci95 is None


def test_holm_s_example() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_lowers_nothing(p_values: dict[str, float]) -> None:
    adjusted = holm(p_values)
    assert all(p_values[name] <= adjusted[name] <= 1 for name in p_values)
    ranked = sorted(p_values, key=lambda name: (p_values[name], adjusted[name]))
    assert [adjusted[name] for name in ranked] == sorted(adjusted.values())
