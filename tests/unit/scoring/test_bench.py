"""The rate of the steady state: rows between 10 % and 90 %, whatever loading and the tail cost."""

import pytest

from mentalglm.scoring.bench import _rate


def test_loading_and_tail_do_not_count() -> None:
    steady = [[100.0 + n / 50, 1] for n in range(100)]  # 50 rows/s
    times = {"started": 0.0, "wall_s": 500.0, "finished": [*steady[:95], [300.0, 5]]}
    rate = _rate(times)
    assert rate["rows_per_s"] == pytest.approx(50.0)
    assert (rate["num_rows"], rate["wall_s"], rate["start_s"]) == (100, 500.0, 100.0)
