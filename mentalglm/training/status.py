"""How far is a train job, from any machine: read from its folder alone."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from mentalglm import storage
from mentalglm.scoring.run.lease import read_lease, state_of
from mentalglm.training.metrics_log import read_metrics
from mentalglm.training.progress import describe
from mentalglm.training.scores import describe_scores
from mentalglm.training.stage import RECORD, TIMELINE, read_num_steps, read_record
from mentalglm.training.validation.notes import read_validations


@dataclass(frozen=True, slots=True)
class StageStatus:
    """The state of a stage that has begun."""

    name: str
    state: str
    """complete · running · interrupted (run the same command again) · lost (the same, its job ended without a word)"""
    owner: str | None
    """Who works on it, or did last, since when, and when it gave the last sign of life."""
    num_steps: int
    """Of the whole stage."""
    step: int
    """Last one in the log."""
    last: str | None
    """Loss, tokens per second, time left; None before the first logged step."""
    best: dict[str, float]
    """Headline metric (F1) of each task and their mean: of the best validation so far, or of what was given out."""
    failed_validations: dict[int, str]
    """Step -> why."""


def read_train_status(uri: str) -> list[StageStatus]:
    """The stages that have begun, in the order in which they did; none where the folder is of no train job.

    Raises: ConfigError where the notes of one cannot be read.
    """
    return [_read_stage(uri, name) for name in _stages(uri)]


def what_to_name(uri: str) -> str:
    """Which address has a status, where this one has none, in words."""
    if storage.exists(storage.join(uri, TIMELINE)) or storage.exists(storage.join(uri, RECORD)):
        job = storage.absolute(uri).rstrip("/").rpartition("/")[0]
        return f"is one stage of a train job; give the job's output.uri, {job}"
    return "holds no run and no train job; give the output.uri of a score or train job"


def _stages(uri: str) -> list[str]:
    ages = {
        file.path.removesuffix(f"/{TIMELINE}"): file.age_s
        for file in storage.list_files(uri)
        if file.path.endswith(f"/{TIMELINE}")
    }
    return sorted((name for name in ages if "/" not in name), key=lambda name: -ages[name])


def _read_stage(job_uri: str, name: str) -> StageStatus:
    uri = storage.join(job_uri, name)
    record = read_record(uri)
    num_steps = record.num_steps if record else read_num_steps(uri)
    lease = read_lease(uri)
    lines = read_metrics(uri)
    validations = read_validations(uri)
    scored = [each for each in validations if each.score is not None]
    best = max(scored, key=lambda each: each.score or 0.0, default=None)
    return StageStatus(
        name=name,
        state=state_of(record is not None, lease),
        owner=lease.describe() if lease else None,
        num_steps=num_steps,
        step=lines[-1]["step"] if lines else 0,
        last=describe(lines, num_steps) if lines and record is None else None,
        best=record.best_scores if record else best.scores if best else {},
        failed_validations={each.step: each.error for each in validations if each.error is not None},
    )


def to_json(stages: list[StageStatus]) -> list[dict[str, Any]]:
    """For programs."""
    return [asdict(stage) for stage in stages]


def print_train_status(uri: str, stages: list[StageStatus]) -> None:
    """For a person."""
    console = Console(soft_wrap=True)
    for stage in stages:
        lines = [f"{uri}, {stage.name}: {stage.state}", f"step {stage.step} of {stage.num_steps}"]
        if stage.last:
            lines[1] += f", {stage.last}"
        if stage.best:
            lines.append(f"best validation: {describe_scores(stage.best)}")
        lines += [f"validation after step {step} failed: {why}" for step, why in stage.failed_validations.items()]
        if stage.state == "running":
            lines.append(f"by {stage.owner}")
        elif stage.state != "complete":
            by = f"last worked on by {stage.owner}; " if stage.owner else ""
            lines.append(f"{by}the same `mentalglm train` command goes on")
        for line in lines:
            console.print(line, markup=False, highlight=False)
