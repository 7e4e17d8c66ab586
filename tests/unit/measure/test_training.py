"""What the measures of training make of what a job has written."""

import pytest

from mentalglm.measure.training_kills import Kill, steps_done
from mentalglm.measure.training_overlap import Overlap, Span


def test_the_share_of_a_validation_is_what_steps_take_of_it() -> None:
    steps = [Span(0, 1), Span(1, 2), Span(3, 4)]  # a save from 2 to 3
    assert Span(0.5, 3.5).shared_with(steps) == pytest.approx(2)
    assert Span(4, 9).shared_with(steps) == 0
    overlap = Overlap(steps, [Span(0.5, 3.5), Span(4, 5)])
    assert overlap.describe() == [
        "validation 1: 3 s, 67% beside training",
        "validation 2: 1 s, 0% beside training",
        "all: 50% of 4 s beside training",
        "all but the last: 67% of 3 s beside training",
        "a step beside a validation: 1000 ms (median of 3)",
    ]


def test_the_steps_of_a_killed_worker_are_told_from_its_pace() -> None:
    lines = [{"step": 41 + n, "time": 100.0 + 2 * n} for n in range(5)]
    assert steps_done(lines, now=108.0) == pytest.approx(45)
    assert steps_done(lines, now=113.0) == pytest.approx(47.5)
    assert steps_done(lines[:1], now=113.0) is None
    assert Kill(47.5, 40).num_again == 7.5
