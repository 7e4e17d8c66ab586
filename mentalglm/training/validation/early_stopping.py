"""Whether training goes on, by what validations have found."""

import math
import time
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError

from mentalglm import storage
from mentalglm.config.train import SelectionConfig
from mentalglm.training.validation.notes import Validation, read_validations

_DECISIONS = "_run/early_stopping.json"
_POLL_INTERVAL_S = 1.0
_LONGEST_WAIT_S = 3600.0


class _Decisions(BaseModel):
    is_over: dict[int, bool] = {}
    """Step -> what was decided there."""
    given_up: set[int] = set()
    """Steps whose validation was waited for in vain: not again."""


class EarlyStopping:
    """Whether training goes on. What is decided once is written down, so that it is the same after a resume, whatever
    validations have ended or were made up for meanwhile."""

    def __init__(self, stage_uri: str, config: SelectionConfig) -> None:
        self.stage_uri, self.config = stage_uri, config
        self._decisions = _read_decisions(stage_uri)

    def is_over(self, step: int, candidates: Sequence[int]) -> bool:
        """Whether, before this step, the last `patience` of these validations (by step, ascending) were no better than
        one before.

        Waits for those that have not ended: `timeout_s`, or an hour. Those that were waited for in vain do not count,
        nor do failed ones.
        """
        decided = self._decisions.is_over
        if step not in decided:
            decided[step] = self._is_over(candidates)
            storage.put(storage.join(self.stage_uri, _DECISIONS), self._decisions.model_dump_json(indent=2).encode())
        return decided[step]

    def _is_over(self, candidates: Sequence[int]) -> bool:
        best, num_worse = -math.inf, 0
        for validation in self._wait_for(candidates):
            if validation.score is None:
                continue
            num_worse = 0 if validation.score > best else num_worse + 1
            best = max(best, validation.score)
        return self.config.patience is not None and num_worse >= self.config.patience

    def _wait_for(self, steps: Sequence[int]) -> list[Validation]:
        deadline = time.monotonic() + (self.config.timeout_s or _LONGEST_WAIT_S)
        given_up = self._decisions.given_up
        while True:
            found: dict[int, Validation] = {}
            for each in read_validations(self.stage_uri):  # of two of one step, the better
                known = found.get(each.step)
                if known is None or known.score is None or (each.score is not None and each.score > known.score):
                    found[each.step] = each
            missing = {step for step in steps if step not in found} - given_up
            if missing and time.monotonic() > deadline:
                given_up |= missing
            elif not missing:
                return [found[step] for step in steps if step in found and step not in given_up]
            time.sleep(_POLL_INTERVAL_S)


def forget_decisions(stage_uri: str) -> None:
    """Of a training that is begun anew."""
    storage.delete(storage.join(stage_uri, _DECISIONS))


def _read_decisions(stage_uri: str) -> _Decisions:
    """What has been decided so far; nothing, where the note is damaged."""
    data = storage.read_bytes(storage.join(stage_uri, _DECISIONS))
    try:
        return _Decisions() if data is None else _Decisions.model_validate_json(data)
    except ValidationError:
        return _Decisions()
