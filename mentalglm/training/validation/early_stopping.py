"""Whether training goes on, by what validations have found."""

import math
import time
from collections.abc import Sequence

from mentalglm.config.train import SelectionConfig
from mentalglm.training.validation.notes import Validation, read_validations

_POLL_INTERVAL_S = 1.0
_LONGEST_WAIT_S = 3600.0


class EarlyStopping:
    """Whether training goes on, as a function of what is written down: so it is the same after a resume."""

    def __init__(self, stage_uri: str, config: SelectionConfig) -> None:
        self.stage_uri, self.config = stage_uri, config
        self._given_up: set[int] = set()
        """Steps whose validation was waited for in vain: not again."""

    def is_over(self, candidates: Sequence[int]) -> bool:
        """Whether the last `patience` of these validations (by step, ascending) were no better than one before.

        Waits for those that have not ended. Failed ones do not count.
        """
        best, num_worse = -math.inf, 0
        for validation in self._wait_for(candidates):
            if validation.score is None:
                continue
            num_worse = 0 if validation.score > best else num_worse + 1
            best = max(best, validation.score)
        return self.config.patience is not None and num_worse >= self.config.patience

    def _wait_for(self, steps: Sequence[int]) -> list[Validation]:
        deadline = time.monotonic() + (self.config.timeout_s or _LONGEST_WAIT_S)
        while True:
            found: dict[int, Validation] = {}
            for each in read_validations(self.stage_uri):  # of two of one step, the better
                known = found.get(each.step)
                if known is None or known.score is None or (each.score is not None and each.score > known.score):
                    found[each.step] = each
            missing = {step for step in steps if step not in found} - self._given_up
            if missing and time.monotonic() > deadline:
                self._given_up |= missing
            elif not missing:
                return [found[step] for step in steps if step in found]
            time.sleep(_POLL_INTERVAL_S)
