"""Probabilities: how they rank, and whether they mean what they say."""

from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import brier_score_loss

from mentalglm.errors import InputError
from mentalglm.evaluation import evaluate
from mentalglm.evaluation.calibration import calibrate, label_probabilities
from mentalglm.evaluation.reliability import reliability_diagram
from mentalglm.tasks import load_task
from tests.unit.evaluation.test_evaluate import table

RISK = load_task("suicide_risk")
PATHWAY = load_task("cognitive_pathway")

ROWS = st.lists(st.tuples(st.booleans(), st.floats(0, 1, width=32)), min_size=2, max_size=60)


@settings(deadline=None)
@given(rows=ROWS)
def test_scores_are_those_of_their_definitions(rows: list[tuple[bool, float]]) -> None:
    gold, score = np.array([each[0] for each in rows]), np.array([each[1] for each in rows])
    found = calibrate(gold, score)
    assert found is not None
    assert found.brier == pytest.approx(brier_score_loss(gold, score, labels=[False, True]))
    assert sum(each.num_rows for each in found.bins if each) == len(rows) == found.num_rows
    expected = 0.0
    for tenth in range(10):
        inside = (np.minimum((score * 10).astype(int), 9)) == tenth
        expected += abs(score[inside].sum() - gold[inside].sum()) / len(rows)
    assert found.ece == pytest.approx(expected)
    if gold.all() or not gold.any():
        assert (found.auroc, found.auprc, found.sensitivity_at_precision) == (None, None, {})
        return
    statistic = mannwhitneyu(score[gold], score[~gold]).statistic
    assert found.auroc == pytest.approx(statistic / (gold.sum() * (~gold).sum()))
    for wanted, best in found.sensitivity_at_precision.items():
        recalls = [
            (gold & (score >= at)).sum() / gold.sum()
            for at in score
            if (gold & (score >= at)).sum() >= float(wanted) * (score >= at).sum() - 1e-12
        ]
        assert (best["recall"] if best else None) == pytest.approx(max(recalls, default=None))


def test_probabilities_that_mean_what_they_say_have_no_calibration_error() -> None:
    generator = np.random.default_rng(0)
    score = generator.random(200_000)
    honest, boastful = (calibrate(generator.random(len(score)) < share, score) for share in (score, 0.5 + 0 * score))
    assert honest is not None
    assert boastful is not None
    assert honest.ece < 0.01
    assert boastful.ece == pytest.approx(0.25, abs=0.01)


def test_rows_without_a_probability_are_counted_out() -> None:
    gold = {f"r{row}": ["high_risk" if row % 2 else "low_risk"] for row in range(6)}
    predictions = table(
        [[gold[f"r{row}"][0]] for row in range(5)] + [None],
        probability=pa.array([0.1, 0.9, 0.2, 0.8, 0.3, None], pa.float32()),
    )
    found = evaluate(RISK, gold, predictions, num_bootstrap=0).to_json()["calibration"]
    assert list(found) == ["high_risk"]
    assert (found["high_risk"]["num_rows"], found["high_risk"]["auroc"]) == (5, 1.0)
    ElementTree.fromstring(reliability_diagram("high_risk", found["high_risk"]))


@pytest.mark.parametrize("wrong", [-0.1, 1.7, np.inf, -np.inf])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(InputError, match="1 probabilities are not from 0 to 1"):
        calibrate(np.array([True, False, True]), np.array([wrong, 0.5, np.nan]))
    assert calibrate(np.array([True]), np.array([np.float32(1) + np.float32(2e-7)])) is not None


def test_label_scores_are_judged_label_by_label_parents_too() -> None:
    gold = {"r0": ["daily_life"], "r1": ["labeling"], "r2": ["study_work"], "r3": []}
    maps = [
        [("daily_life", 0.9), ("activating_event", 0.9), ("none", 0.1)],
        [("daily_life", 0.2), ("activating_event", 0.3)],
        None,
        [("activating_event", 0.4), ("daily_life", 0.1)],
    ]
    scores = pa.array([None, *maps], pa.map_(pa.string(), pa.float32())).slice(1)
    predictions = table([["daily_life"], ["labeling"], None, []], label_scores=scores)
    found = evaluate(PATHWAY, gold, predictions, num_bootstrap=0).to_json()["calibration"]
    assert set(found) == {"activating_event", "daily_life"}
    assert (found["daily_life"]["num_rows"], found["daily_life"]["num_positive"]) == (3, 1)
    assert found["activating_event"]["brier"] == pytest.approx((0.1**2 + 0.3**2 + 0.4**2) / 3, abs=1e-6)


def test_a_slice_of_a_column_of_maps_is_read_from_its_own_beginning() -> None:
    maps = pa.array([[("a", 0.5)], [("b", 0.25)], None, [("b", 0.75), ("a", 1.0)]], pa.map_(pa.string(), pa.float32()))
    found = label_probabilities(pa.chunked_array([maps.slice(1)]), ("a", "b"))
    np.testing.assert_array_equal(found, [[np.nan, 0.25], [np.nan, np.nan], [1.0, 0.75]])
