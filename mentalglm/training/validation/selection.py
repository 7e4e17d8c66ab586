"""Which checkpoint a stage gives out, by the validations that are written down; lost ones are made up for."""

import json
from collections.abc import Sequence
from contextlib import suppress

from mentalglm import storage
from mentalglm.errors import InterruptedRunError
from mentalglm.training.checkpoint import StoredCheckpoint, is_whole, list_checkpoints
from mentalglm.training.stage import Stage
from mentalglm.training.validation.measure import validate_checkpoint
from mentalglm.training.validation.notes import Validation, read_validations


def select(stage: Stage, tasks: Sequence[str]) -> tuple[StoredCheckpoint, Validation]:
    """The checkpoint with the best score; of equal ones the last. Validations that failed, or never ran, are made up
    for here. Raises: InterruptedRunError where there is none to choose from."""
    candidates = {each.name: each for each in _candidates(stage) if is_whole(each)}
    done = {each.checkpoint: each for each in read_validations(stage.uri) if each.score is not None}
    for name in candidates.keys() - done.keys():
        with suppress(Exception):  # written down with its reason
            done[name] = validate_checkpoint(stage.config, stage.uri, name, tasks)
    found = [(each.score or 0.0, each.step, name) for name, each in done.items() if name in candidates]
    if not found:
        reasons = {each.error for each in read_validations(stage.uri) if each.error}
        raise InterruptedRunError(
            f"stages.{stage.name}: no checkpoint could be validated ({'; '.join(sorted(reasons)) or 'there is none'}); "
            "see to it and run the same command again"
        )
    _, _, name = max(found)
    return candidates[name], done[name]


def _candidates(stage: Stage) -> list[StoredCheckpoint]:
    return [each for each in list_checkpoints(stage.checkpoints_uri) if each.is_candidate]


def make_up_for_lost_validations(stage: Stage, tasks: Sequence[str]) -> None:
    """Validates what an interrupted attempt has left without a validation and Ray does not know of any more."""
    uri = storage.join(stage.checkpoints_uri, "checkpoint_manager_snapshot.json")
    known = storage.read_bytes(uri) or b""
    done = {each.checkpoint for each in read_validations(stage.uri)}
    for each in _candidates(stage):
        if each.name not in done and each.name.encode() not in known and is_whole(each):
            with suppress(Exception):  # written down with its reason
                validate_checkpoint(stage.config, stage.uri, each.name, tasks)


def drop_damaged_notes(checkpoints_uri: str) -> None:
    """Removes Ray Train's list of checkpoints where it was cut off by a kill: Ray would not start with it. What is gone
    on from, and what has been validated, our own files tell."""
    uri = storage.join(checkpoints_uri, "checkpoint_manager_snapshot.json")
    data = storage.read_bytes(uri)
    try:
        json.loads(data or b"{}")
    except ValueError:
        storage.delete(uri)
