"""What is told of the posts that two sides share, and of those that they do not."""

from pathlib import Path

import pytest

from mentalglm.report.agreement import Agreement, agreement
from mentalglm.report.disclosure import Disclosure, exact
from mentalglm.report.scan import Buckets, count, join
from mentalglm.report.sources import LabelSet, Run, Side
from mentalglm.report.told import Told
from mentalglm.tasks import load_task
from tests.report_runs import write_run
from tests.unit.report.test_page import risk_rows

RISK = LabelSet.of(load_task("suicide_risk"))
NUM_ROWS = 600


def agreement_of(folder: Path, num_shared: int, rules: Disclosure) -> Agreement:
    """Of two sides of `NUM_ROWS` posts."""
    rows = risk_rows(NUM_ROWS, NUM_ROWS, 0)
    start = NUM_ROWS - num_shared
    told, buckets = [], []
    for name, each in (("a", rows[:NUM_ROWS]), ("b", rows[start : start + NUM_ROWS])):
        run = write_run(folder / name, {RISK.name: each})
        side = Side(Run(str(run), name, {"fingerprint": {}}, None), None, name)
        buckets.append(Buckets(folder / f"{name}-buckets"))
        counts = count(side.dataset(RISK.name), RISK, None, buckets=buckets[-1])
        buckets[-1].close()
        told.append(Told.of(RISK, counts, [counts], rules))
    joined = join(*buckets, len(RISK.slugs), len(RISK.slugs))
    return agreement(("a", "b"), joined, (told[0], told[1]), rules)


@pytest.mark.parametrize(("num_shared", "limit"), [(0, 10), (99, 10), (119, 60), (595, 10)])
def test_nothing_is_told_where_too_few_posts_are_shared_or_a_few_are_not(
    tmp_path: Path, num_shared: int, limit: int
) -> None:
    found = agreement_of(tmp_path, num_shared, Disclosure(limit))
    assert (found.num_only_here, found.num_only_there, found.same, found.labels) == (None, None, None, [])


def test_posts_of_one_side_alone_are_told_beside_enough_that_are_shared(tmp_path: Path) -> None:
    found = agreement_of(tmp_path, 100, Disclosure(10))
    assert (found.num_posts, found.num_only_here, found.num_only_there) == (exact(100), exact(500), exact(500))
    assert found.same is not None
