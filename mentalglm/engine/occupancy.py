"""What an engine's time went into: how many of its slots had work, and why the others had none."""

import time
from collections.abc import Callable


class Occupancy:
    """Seconds of one engine by what its slots did, from the moment on that it was first up.

    An engine has `num_slots` places for rows. A second in which n of them are taken counts as n / num_slots s of
    `busy`; the rest of it, by when it was, as

    - `ramp`: before all slots were first taken
    - `starved`: between two moments in which all were taken: it was waiting for us
    - `tail`: after the last moment in which all were taken: no rows were left for it
    - `recovery`: while the engine was down, or tried out suspects after its end

    so that the five add up to the time that has passed.
    """

    def __init__(self, num_slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_slots = num_slots
        self._clock = clock
        self._at = clock()
        self._num_taken = 0
        self._is_recovering = False
        self._was_full = False
        self._seconds = dict.fromkeys(("busy", "ramp", "starved", "recovery"), 0.0)
        self._idle_since_full = 0.0
        """Starved if all slots are taken once more, else the tail."""

    def note(self, num_rows: int, *, is_recovering: bool = False) -> None:
        """From now on `num_rows` are with the engine; those beyond its slots wait in it."""
        self._pass()
        self._num_taken = min(num_rows, self._num_slots)
        self._is_recovering = is_recovering
        if self._num_taken == self._num_slots and not is_recovering:
            self._was_full = True
            self._seconds["starved"] += self._idle_since_full
            self._idle_since_full = 0.0

    def seconds(self) -> dict[str, float]:
        """Until now. `tail` shrinks when all slots are taken again."""
        self._pass()
        return {**self._seconds, "tail": self._idle_since_full}

    def _pass(self) -> None:
        now = self._clock()
        passed, self._at = now - self._at, now
        idle = passed * (self._num_slots - self._num_taken) / self._num_slots
        self._seconds["busy"] += passed * self._num_taken / self._num_slots
        if self._is_recovering:
            self._seconds["recovery"] += idle
        elif not self._was_full:
            self._seconds["ramp"] += idle
        else:
            self._idle_since_full += idle
