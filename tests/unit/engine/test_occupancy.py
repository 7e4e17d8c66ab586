"""Where an engine's time went: each second counted once, whatever happened in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentalglm.engine.occupancy import Occupancy


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_idle_slots_are_ramp_then_starved_then_tail() -> None:
    clock = Clock()
    occupancy = Occupancy(4, clock)
    for passed, num_rows in ((2, 2), (1, 6), (3, 1), (4, 4), (5, 3), (8, 0)):
        clock.now += passed
        occupancy.note(num_rows)
    clock.now += 1
    # 2 s of nothing, 1 s half full, 3 s full (two more wait), 4 s with one, 5 s full, 8 s with three, 1 s of nothing.
    assert occupancy.seconds() == {
        "busy": 0.5 + 3 + 1 + 5 + 6,
        "ramp": 2 + 0.5,
        "starved": 3,
        "recovery": 0,
        "tail": 2 + 1,
    }


def test_what_looked_like_the_tail_was_waiting_once_the_engine_is_full_again() -> None:
    clock = Clock()
    occupancy = Occupancy(1, clock)
    occupancy.note(1)
    occupancy.note(0)
    clock.now += 7
    assert occupancy.seconds()["tail"] == 7
    occupancy.note(1)
    assert (occupancy.seconds()["tail"], occupancy.seconds()["starved"]) == (0, 7)


def test_an_engine_that_is_down_or_tries_suspects_is_recovering() -> None:
    clock = Clock()
    occupancy = Occupancy(4, clock)
    occupancy.note(4)
    occupancy.note(0, is_recovering=True)
    clock.now += 60
    occupancy.note(1, is_recovering=True)  # a suspect alone
    clock.now += 4
    occupancy.note(4)
    assert occupancy.seconds() == {"busy": 1, "ramp": 0, "starved": 0, "recovery": 63, "tail": 0}


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 12), st.booleans()), max_size=30),
)
def test_the_seconds_add_up_to_the_time_that_has_passed(num_slots: int, events: list[tuple[float, int, bool]]) -> None:
    clock = Clock()
    occupancy = Occupancy(num_slots, clock)
    for passed, num_rows, is_recovering in events:
        clock.now += passed
        occupancy.note(num_rows, is_recovering=is_recovering)
        seconds = occupancy.seconds()
        assert min(seconds.values()) >= 0
        assert sum(seconds.values()) == pytest.approx(clock.now - 100.0)
