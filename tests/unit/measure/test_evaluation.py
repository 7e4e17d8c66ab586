"""The measurement of evaluations: it evaluates what it says, and small ones take moments."""

import numpy as np

from mentalglm.measure.evaluation import _labels, measure
from mentalglm.tasks import load_task


def test_it_tells_a_figure_for_each_task_and_for_the_intervals() -> None:
    lines = list(measure(num_rows=300, num_bootstrap=50))
    assert [line.split(":")[0] for line in lines[:3]] == ["suicide_risk", "cognitive_distortion", "cognitive_pathway"]
    assert all("300 predictions evaluated with 50 replicates" in line for line in lines[:3])
    assert lines[3].startswith("4 columns of the paper's sizes: intervals of 50 replicates")


def test_its_rows_have_as_many_labels_as_the_paper_s() -> None:
    rows = _labels(load_task("cognitive_distortion"), np.random.default_rng(0), 5000)
    assert all(len(set(row)) == len(row) for row in rows)
    assert 1.15 < sum(map(len, rows)) / len(rows) < 1.22
