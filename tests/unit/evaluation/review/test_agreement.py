"""Agreement against published examples and independent packages, and what it must be whatever the scores."""

from itertools import combinations, permutations
from typing import Any

import krippendorff
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import cohens_kappa

from mentalglm.evaluation.metrics import Floats
from mentalglm.evaluation.review.agreement import (
    Resampling,
    Statistic,
    intraclass_correlation,
    krippendorff_alpha,
    weighted_kappa,
)

SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float).T
"""Table 2 of Shrout and Fleiss (1979): four judges, six targets."""
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, np.nan, np.nan, np.nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, np.nan, 3],
        [np.nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, np.nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, np.nan],
    ]
)
"""Krippendorff (2011), sec. C: four observers, twelve units."""


def point(scores: Floats) -> Resampling:
    return Resampling(0, 0, np.arange(scores.shape[1]))


def every(scores: Floats, resampling: Resampling | None = None) -> dict[str, Statistic]:
    how = resampling or point(scores)
    return {
        "kappa": weighted_kappa(scores, 4, how),
        "alpha": krippendorff_alpha(scores, 4, "ordinal", how),
        **{f"icc_{name}": each for name, each in intraclass_correlation(scores, how).items()},
    }


def test_icc_is_that_of_the_paper_that_defines_it() -> None:
    found = intraclass_correlation(SHROUT_FLEISS, point(SHROUT_FLEISS))
    assert found["single"].value == pytest.approx(0.29, abs=0.005)
    assert found["average"].value == pytest.approx(0.62, abs=0.005)


def test_alpha_is_that_of_the_paper_that_defines_it() -> None:
    for level, value in (("ordinal", 0.815), ("interval", 0.849)):
        found = krippendorff_alpha(KRIPPENDORFF - 1, 5, level, point(KRIPPENDORFF))  # type: ignore[arg-type]
        assert found.value == pytest.approx(value, abs=0.0005)
        assert found.num_items == 11


@pytest.mark.parametrize("seed", range(6))
def test_they_are_what_independent_packages_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, 70)
    scores = np.clip(truth + rng.integers(-1, 2, (2 + seed % 4, 70)), 0, 3).astype(float)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    kappas = []
    for one, other in combinations(scores, 2):
        both = ~np.isnan(one) & ~np.isnan(other)
        kappas.append(cohen_kappa_score(one[both], other[both], labels=range(4), weights="quadratic"))
        table = np.zeros((4, 4))
        np.add.at(table, (one[both].astype(int), other[both].astype(int)), 1)
        assert cohens_kappa(table, wt="quadratic").kappa == pytest.approx(kappas[-1])
    assert weighted_kappa(scores, 4, point(scores)).value == pytest.approx(np.mean(kappas))
    theirs = krippendorff.alpha(scores, level_of_measurement="ordinal", value_domain=range(4))
    assert krippendorff_alpha(scores, 4, "ordinal", point(scores)).value == pytest.approx(theirs)


@pytest.mark.parametrize("seed", range(3))
def test_icc_is_what_an_analysis_of_variance_says(seed: int) -> None:
    """The mean squares by a linear model of statsmodels instead of by sums."""
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    scores = np.random.default_rng(seed).integers(0, 4, (3, 25)).astype(float)
    rows = [(item, expert, scores[expert, item]) for expert in range(3) for item in range(25)]
    frame = pd.DataFrame(rows, columns=["item", "expert", "score"])
    squares = anova_lm(ols("score ~ C(item) + C(expert)", frame).fit())["mean_sq"]
    items, experts, rest = squares["C(item)"], squares["C(expert)"], squares["Residual"]
    found = intraclass_correlation(scores, point(scores))
    assert found["single"].value == pytest.approx((items - rest) / (items + 2 * rest + 3 * (experts - rest) / 25))
    assert found["average"].value == pytest.approx((items - rest) / (items + (experts - rest) / 25))


SCORES: Any = st.integers(2, 4).flatmap(
    lambda experts: arrays.arrays(float, (experts, 12), elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan]))
)


@given(SCORES, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_order_of_items_and_experts_changes_nothing(scores: Floats, random: Any) -> None:
    expected = every(scores)
    items = list(range(scores.shape[1]))
    random.shuffle(items)
    for experts in permutations(range(len(scores))):
        for name, found in every(scores[list(experts)][:, items]).items():
            assert found.value == pytest.approx(expected[name].value), name
            assert found.num_items == expected[name].num_items


@given(SCORES)
@settings(max_examples=60)
def test_no_figure_is_out_of_range_or_not_a_number(scores: Floats) -> None:
    for name, found in every(scores).items():
        if found.value is None:
            assert found.reason, name
        else:
            assert np.isfinite(found.value)
            assert found.value <= 1 + 1e-9


@given(arrays.arrays(float, 12, elements=st.sampled_from([0.0, 1.0, 2.0, 3.0])))
@settings(max_examples=40)
def test_experts_who_agree_in_everything_agree_perfectly(scores: Floats) -> None:
    assume(len(set(scores)) > 1)
    for name, found in every(np.stack([scores] * 3), Resampling(50, 0, np.arange(12) // 2)).items():
        assert found.value == pytest.approx(1), name
        assert found.ci95 is None or found.ci95 == pytest.approx((1, 1))


@pytest.mark.parametrize(
    "scores",
    [
        np.full((2, 6), 3.0),
        np.full((3, 6), np.nan),
        np.array([[1.0] + [np.nan] * 5, [np.nan] + [2.0] * 5]),
        np.array([[1.0, np.nan], [2.0, np.nan]]),
    ],
)
def test_what_cannot_be_told_is_null_with_a_reason(scores: Floats) -> None:
    for name, found in every(scores, Resampling(20, 0, np.arange(scores.shape[1]))).items():
        assert (found.value, found.ci95) == (None, None), name
        assert found.reason


def test_a_pair_of_experts_without_an_item_in_common_is_the_reason_that_is_told() -> None:
    scores = np.array([[0, 1, 2, 3, np.nan, np.nan], [0, 1, 2, 3, 2, 0], [np.nan] * 4 + [2, 0]])
    found = weighted_kappa(scores, 4, point(scores))
    assert (found.value, found.num_items) == (None, 6)
    assert found.reason == "two of the experts have rated no item in common"
    assert weighted_kappa(scores[:2], 4, point(scores)).value == pytest.approx(1)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Experts whose scores are right with a known chance: the intervals of small samples against a very large one."""

    def sample(num_items: int, seed: int) -> Floats:
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 4, num_items)
        noise = rng.choice([-1, 0, 0, 1], (2, num_items))
        return np.clip(truth + noise, 0, 3).astype(float)

    large = {name: each.value for name, each in every(sample(100_000, 0)).items()}
    hits = dict.fromkeys(large, 0)
    for seed in range(100):
        for name, found in every(sample(80, seed + 1), Resampling(400, seed, np.arange(80))).items():
            assert found.ci95
            value = large[name]
            assert value is not None
            hits[name] += found.ci95[0] <= value <= found.ci95[1]
    assert all(85 <= each <= 100 for each in hits.values()), hits


def test_a_mean_of_experts_that_varies_less_than_chance_has_no_icc() -> None:
    scores = np.ones((2, 12))
    scores[:, 2], scores[:, 5] = (2, 0), (0, 2)  # the items' means are all the same: the formula would say 12
    found = intraclass_correlation(scores, point(scores))
    assert found["average"].value is None
    assert found["single"].value is not None
    assert found["single"].value < 0


def test_items_of_one_post_are_drawn_together() -> None:
    rng = np.random.default_rng(1)
    scores = np.repeat(rng.integers(0, 4, (2, 30)).astype(float), 4, axis=1)  # each post four times, rated alike
    apart = every(scores, Resampling(2000, 0, np.arange(120)))
    together = every(scores, Resampling(2000, 0, np.arange(120) // 4))
    for name, found in together.items():
        other = apart[name].ci95
        assert found.ci95
        assert other
        assert found.ci95[1] - found.ci95[0] > 1.5 * (other[1] - other[0])
