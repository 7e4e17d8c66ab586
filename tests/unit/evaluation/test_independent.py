"""Agreement with what others have written, on random data: hiclass and statsmodels (scikit-learn: test_evaluate.py and
test_calibration.py, krippendorff: the review's tests)."""

import warnings

import numpy as np
import pyarrow as pa
import pytest
from hiclass import metrics as hiclass
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from mentalglm.evaluation import Evaluation, evaluate
from mentalglm.evaluation.compare import compare, holm
from mentalglm.tasks import load_task

DISTORTION, PATHWAY = load_task("cognitive_distortion"), load_task("cognitive_pathway")


def evaluated(task_name: str, gold: list[list[str]], labels: list[list[str]]) -> Evaluation:
    table = {
        "post_id": [str(row) for row in range(len(gold))],
        "status": ["ok"] * len(gold),
        "labels": pa.array(labels, pa.list_(pa.string())),
    }
    named = {str(row): each for row, each in enumerate(gold)}
    return evaluate(load_task(task_name), named, pa.table(table), num_bootstrap=0)


def paths(rows: list[list[str]]) -> np.ndarray:
    """(rows, paths, levels), as hiclass has several labels; "" where a row has fewer."""
    most = max(map(len, rows))
    return np.array(
        [[[PATHWAY.by_slug[slug].parent or "", slug] for slug in row] + [["", ""]] * (most - len(row)) for row in rows]
    )


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_hierarchical_f_is_hiclass_s(most: int, seed: int) -> None:
    """Of rows with one child, and of rows with up to three."""
    random = np.random.default_rng(seed)
    gold, labels = (
        [sorted(random.choice(PATHWAY.answerable, random.integers(1, most + 1), replace=False)) for _ in range(200)]
        for _ in range(2)
    )
    mine = evaluated("cognitive_pathway", gold, labels).hierarchical()
    true, predicted = paths(gold), paths(labels)
    if most == 1:
        true, predicted = true[:, 0], predicted[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = [of(true, predicted, average="micro") for of in (hiclass.precision, hiclass.recall, hiclass.f1)]
    assert list(map(float, mine)) == pytest.approx(theirs)


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_is_statsmodels_s(seed: int) -> None:
    random = np.random.default_rng(seed)
    gold, one, other = (
        [sorted(random.choice(DISTORTION.answerable[:3], random.integers(1, 3), replace=False)) for _ in range(150)]
        for _ in range(3)
    )
    found = compare(*(evaluated("cognitive_distortion", gold, each) for each in (one, other)))["label"]
    is_right = np.array([[mine == true for mine, true in zip(each, gold, strict=True)] for each in (one, other)])
    counts = [[int(((is_right[0] == a) & (is_right[1] == b)).sum()) for b in (True, False)] for a in (True, False)]
    assert found.p_mcnemar == pytest.approx(mcnemar(counts, exact=True).pvalue)


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_statsmodels_s(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.random(random.integers(1, 12)) ** 3
    p_values = {str(number): float(value) for number, value in enumerate(values)}
    assert list(holm(p_values).values()) == pytest.approx(multipletests(values, method="holm")[1])
