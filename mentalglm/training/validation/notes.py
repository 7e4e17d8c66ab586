"""What validations have found: for each a file of ours, `_run/validation/<checkpoint>.json`, and nothing of Ray's.

Selection, early stopping and resuming read these.
"""

from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mentalglm import storage


class Validation(BaseModel):
    """What came of the validation of a checkpoint."""

    model_config = ConfigDict(frozen=True)

    checkpoint: str
    step: int
    score: float | None
    """Mean of the tasks' headline metrics; None: it failed."""
    metrics: dict[str, Any] = {}
    """Task -> what `metrics.json` of an evaluation holds, without intervals."""
    engines: list[dict[str, str]] = []
    """What answered."""
    seconds: float = 0.0
    error: str | None = None

    @property
    def scores(self) -> dict[str, float]:
        """Headline metric of each task, and their mean."""
        each = {task: metrics["f1"] for task, metrics in self.metrics.items()}
        return each | ({"score": self.score} if self.score is not None else {})


def write_validation(stage_uri: str, validation: Validation) -> None:
    """Puts it beside the others of the stage, in place of one of the same checkpoint."""
    uri = storage.join(stage_uri, "_run", "validation", f"{validation.checkpoint}.json")
    storage.put(uri, validation.model_dump_json(indent=2).encode())


def read_validations(stage_uri: str) -> list[Validation]:
    """All that have ended, by step. A damaged note counts as none: the validation is made up for."""
    folder = storage.join(stage_uri, "_run", "validation")
    found: list[Validation] = []
    for name in storage.list_names(folder):
        data = storage.read_bytes(storage.join(folder, name)) if name.endswith(".json") else None
        with suppress(ValidationError):
            found += [] if data is None else [Validation.model_validate_json(data)]
    return sorted(found, key=lambda validation: (validation.step, validation.checkpoint))


def delete_validations(stage_uri: str) -> None:
    """All that are noted."""
    folder = storage.join(stage_uri, "_run", "validation")
    for name in storage.list_names(folder):
        if name.endswith(".json"):
            storage.delete(storage.join(folder, name))
