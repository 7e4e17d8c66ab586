"""Which checkpoint a stage gives out, by the validations that are written down; lost ones are made up for."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mentalglm import storage
from mentalglm.errors import InterruptedRunError
from mentalglm.training.checkpoint import StoredCheckpoint, is_whole, list_checkpoints
from mentalglm.training.stage import Stage
from mentalglm.training.validation.measure import validate_checkpoint
from mentalglm.training.validation.notes import Validation, read_validations

_SNAPSHOT = "checkpoint_manager_snapshot.json"


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
    """Validates what an interrupted attempt has left without a validation and Ray will not validate any more: what it
    does not know of, and what it takes for done although our note of it is lost."""
    snapshot = _read_snapshot(stage.checkpoints_uri)
    known = _named(snapshot) - set(snapshot.get("validated_checkpoint_dir_names", ())) if snapshot else set()
    done = {each.checkpoint for each in read_validations(stage.uri)}
    for each in _candidates(stage):
        if each.name not in done | known and is_whole(each):
            with suppress(Exception):  # written down with its reason
                validate_checkpoint(stage.config, stage.uri, each.name, tasks)


def drop_damaged_snapshot(checkpoints_uri: str) -> None:
    """Removes Ray Train's list of checkpoints where a kill has cut it off, or where one that it names is gone: Ray
    would not start with it. What is gone on from, and what has been validated, our own files tell."""
    snapshot = _read_snapshot(checkpoints_uri)
    if snapshot is None or not _named(snapshot) <= {each.name for each in list_checkpoints(checkpoints_uri)}:
        storage.delete(storage.join(checkpoints_uri, _SNAPSHOT))


def _read_snapshot(checkpoints_uri: str) -> dict[str, Any] | None:
    """Ray Train's list of checkpoints; None where there is none that can be read."""
    try:
        snapshot = json.loads(storage.read_bytes(storage.join(checkpoints_uri, _SNAPSHOT)) or b"")
        _named(snapshot)
    except (ValueError, LookupError, TypeError):
        return None
    return dict(snapshot)


def _named(snapshot: dict[str, Any]) -> set[str]:
    return {each["checkpoint_dir_name"] for each in snapshot["checkpoint_results"]}
