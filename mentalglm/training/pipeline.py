"""The train job: records in, for each stage the best checkpoint out."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mentalglm import errors, manifest, storage
from mentalglm.cluster import connect, lasting_output
from mentalglm.config import ModelConfig, TrainConfig
from mentalglm.config.train import BASE
from mentalglm.engine.model import resolve_model
from mentalglm.errors import ConfigError, InterruptedRunError, UserError
from mentalglm.scoring.lease import Lease
from mentalglm.scoring.pool import resources_of_an_engine
from mentalglm.tasks import Task, builtin_tasks
from mentalglm.training.checkpoint import StoredCheckpoint, is_whole, list_checkpoints
from mentalglm.training.export import export, write_card
from mentalglm.training.learner import Examples
from mentalglm.training.method import check_tasks, record_encoder
from mentalglm.training.metrics_log import write_validation_scalars
from mentalglm.training.records import Records, num_shared_texts, read_records, split
from mentalglm.training.stage import RECORD, Stage, StageRecord, sha256_of
from mentalglm.training.validation import Validation, ValidationSet, read_validations, validate_checkpoint


@dataclass(frozen=True, slots=True)
class StageData:
    """What a stage learns from and is chosen by."""

    train: Records
    validation: Records

    @property
    def tasks(self) -> dict[str, Task]:
        """Name -> task."""
        return self.train.tasks | self.validation.tasks

    @property
    def unvalidated_tasks(self) -> list[str]:
        """Tasks that are learned and of which no record is held out: the best checkpoint is chosen without them."""
        return sorted(self.train.tasks.keys() - self.validation.tasks.keys())


def train(config: TrainConfig) -> list[StageRecord]:
    """Trains the stages of the config, in order. The same call does only what is missing.

    Raises: ConfigError, InputError; InterruptedRunError when workers, storage or the cluster fail, or another job
    works on the stage. Checkpoints are kept, and the same call goes on from the last one.
    """
    stages = resolve_stages(config)
    data = [prepare(stage) for stage in stages]  # all of it first: a mistake in the last stage is not for the last day
    return [_train_stage(stage, each) for stage, each in zip(stages, data, strict=True)]


def resolve_stages(config: TrainConfig) -> list[Stage]:
    """The stages, with all addresses absolute and the model found. Raises: ConfigError."""
    storage.configure(config.s3)
    config = _at_fixed_places(config)
    model = resolve_model(ModelConfig(path=config.model.path, revision=config.model.revision))
    return [Stage(name, config, model) for name in config.stages]


def prepare(stage: Stage) -> StageData:
    """Reads, checks and splits the records. Raises: ConfigError, InputError."""
    settings = stage.settings
    key = f"stages.{stage.name}"
    train = read_records(settings.train, f"{key}.train")
    if settings.validation:
        validation = read_records(settings.validation, f"{key}.validation")
    else:
        train, validation = split(train, settings.validation_fraction, stage.config.seed)
    check_tasks(stage.config, train.tasks | validation.tasks, key)
    return StageData(train, validation)


def encode(stage: Stage, data: StageData) -> Examples:
    """The training records as token ids. Raises: ConfigError, InputError."""
    encoder = record_encoder(stage.config, Path(stage.model.path))
    return encoder.encode_set(data.train.rows, f"stages.{stage.name}.train")


def counts_of(data: StageData, examples: Examples) -> dict[str, int]:
    """What a stage is made of, for its record and for people."""
    return {
        "num_train_records": len(data.train.rows),
        "num_validation_records": len(data.validation.rows),
        "num_validation_texts_in_train": num_shared_texts(data.train, data.validation),
        "num_truncated_posts": examples.num_truncated,
        "num_prompt_tokens": int(examples.num_prompt_tokens.sum()),
        "num_answer_tokens": int((examples.lengths - examples.num_prompt_tokens).sum()),
    }


def fingerprint_of(stage: Stage, data: StageData) -> dict[str, Any]:
    """Of the stage with these records. Raises: ConfigError where what it starts from has changed."""
    name = stage.settings.start_from
    parent = None if name == BASE else Stage(name, stage.config, stage.model)
    record = parent.read_record() if parent else None
    if parent and record:
        parent.check_product(record)
    return stage.fingerprint(data.train, data.validation, data.tasks, record)


def _train_stage(stage: Stage, data: StageData) -> StageRecord:
    started = time.monotonic()
    fingerprint = fingerprint_of(stage, data)
    if (finished := stage.read_record()) is not None:
        stage.check(fingerprint)
        return finished
    with Lease.acquire(stage.uri) as lease:
        if (finished := stage.read_record()) is not None:  # by the job whose lease was waited for
            stage.check(fingerprint)
            return finished
        examples = encode(stage, data)
        stage.open(fingerprint)
        posts = ValidationSet(stage.uri)
        num_validated_rows = posts.write(data.validation.rows, stage.config.selection.max_rows)
        num_steps, steps_per_epoch = _fit(stage, data, examples, fingerprint)
        best, validation = _select(stage, data)
        lease.check()
        digest = export(stage, best)
        record = StageRecord(
            name=stage.name,
            start_from=stage.settings.start_from,
            fingerprint=fingerprint,
            best_checkpoint=best.name,
            best_step=best.step,
            best_score=validation.score or 0.0,
            best_scores=validation.scores,
            digest=digest,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
            validations=[
                {"step": each.step, "scores": each.scores, "seconds": each.seconds, "error": each.error}
                for each in read_validations(stage.uri)
            ],
            data=counts_of(data, examples) | {"num_validated_records": num_validated_rows},
            unvalidated_tasks=data.unvalidated_tasks,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 1),
            versions=manifest.code_version(),
        )
        write_card(stage, record)
        write_validation_scalars(stage.uri, {each.step: each.scores for each in read_validations(stage.uri)})
        posts.delete()
        lease.check()
        storage.put(storage.join(stage.uri, RECORD), record.model_dump_json(indent=2).encode())
    return record


def _fit(stage: Stage, data: StageData, examples: Examples, fingerprint: dict[str, Any]) -> tuple[int, int]:
    """Trains to the end, or until validation stops getting better; goes on from the last checkpoint.

    Returns (steps done, steps of an epoch).
    """
    connect()
    import ray
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
        ValidationConfig,
        ValidationTaskConfig,
    )
    from ray.train.torch import TorchTrainer

    from mentalglm.training.loop import LoopSpec, Outcome, Timeline, train_worker
    from mentalglm.training.progress import StageProgress
    from mentalglm.training.sampler import Sampler
    from mentalglm.training.validation import validate

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ctrl-C stays ours: Ray Train's own answer ends the process with 1."""

    config = stage.config
    weights = tuple(source.weight for source in stage.settings.train)
    sampler = Sampler(examples.sources, weights, batch_size=config.batch_size, seed=config.seed)
    timeline = Timeline.of(config, stage.name, sampler)
    parent = config.stages[stage.name].start_from
    spec = LoopSpec(
        config=config,
        stage=stage.name,
        stage_uri=stage.uri,
        model_path=stage.model.path,
        start_uri=None if parent == BASE else Stage(parent, config, stage.model).product_uri,
        fingerprint=sha256_of(fingerprint),
        weights=weights,
    )
    filesystem, path = storage.filesystem(storage.join(stage.uri, "_run"))
    workers = config.workers
    num_gpus = _gpus_of_a_worker(config)
    _drop_damaged_notes(stage.checkpoints_uri)
    _make_up_for_lost_validations(stage, data)
    trainer = Trainer(
        train_worker,
        train_loop_config={"spec": spec, "examples": ray.put(examples)},
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=num_gpus > 0,
            resources_per_worker={"CPU": workers.num_cpus, **({"GPU": num_gpus} if num_gpus else {})},
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.checkpoints.num_to_keep,
                checkpoint_score_attribute="score",
                checkpoint_score_order="max",
            ),
        ),
        validation_config=ValidationConfig(
            validate,
            task_config=ValidationTaskConfig(
                fn_kwargs={
                    "stage_uri": stage.uri,
                    "config": config.model_dump(mode="json"),
                    "tasks": _task_names(data),
                }
            ),
            ray_remote_kwargs={"num_cpus": 0},
        ),
    )
    with StageProgress(stage.name, stage.uri, timeline.num_steps):
        try:
            outcome: Outcome = trainer.fit().return_value
        except TrainingFailedError as error:
            raise _failure(stage, error) from None
    if outcome.status == "failed":
        raise errors.told(outcome.error, outcome.message)
    return outcome.step, timeline.steps_per_epoch


def _select(stage: Stage, data: StageData) -> tuple[StoredCheckpoint, Validation]:
    """The checkpoint with the best score; of equal ones the last. Validations that failed, or never ran, are made up
    for here. Raises: InterruptedRunError where there is none to choose from."""
    candidates = {each.name: each for each in _candidates(stage) if is_whole(each)}
    done = {each.checkpoint: each for each in read_validations(stage.uri) if each.score is not None}
    for name in candidates.keys() - done.keys():
        with suppress(Exception):  # written down with its reason
            done[name] = validate_checkpoint(stage.config, stage.uri, name, _task_names(data))
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


def _make_up_for_lost_validations(stage: Stage, data: StageData) -> None:
    """Validates what an interrupted attempt has left without a validation and Ray does not know of any more."""
    uri = storage.join(stage.checkpoints_uri, "checkpoint_manager_snapshot.json")
    known = storage.read_bytes(uri) or b""
    done = {each.checkpoint for each in read_validations(stage.uri)}
    for each in _candidates(stage):
        if each.name not in done and each.name.encode() not in known and is_whole(each):
            with suppress(Exception):  # written down with its reason
                validate_checkpoint(stage.config, stage.uri, each.name, _task_names(data))


def _drop_damaged_notes(checkpoints_uri: str) -> None:
    """Removes Ray Train's list of checkpoints where it was cut off by a kill: Ray would not start with it. What is gone
    on from, and what has been validated, our own files tell."""
    uri = storage.join(checkpoints_uri, "checkpoint_manager_snapshot.json")
    data = storage.read_bytes(uri)
    try:
        json.loads(data or b"{}")
    except ValueError:
        storage.delete(uri)


def _gpus_of_a_worker(config: TrainConfig) -> float:
    """Raises: ConfigError where the cluster cannot hold the workers."""
    import ray

    workers, available = config.workers, ray.cluster_resources()
    num_gpus = workers.num_gpus
    if num_gpus is None:
        num_gpus = 1.0 if available.get("GPU") else 0.0
    number = workers.num_workers
    least, most = (number, number) if isinstance(number, int) else number
    for name, each in (("GPU", num_gpus), ("CPU", workers.num_cpus)):
        if each * least > available.get(name, 0):
            raise ConfigError(
                f"workers.num_workers = {least}: needs {each * least:g} {name}s, the cluster has "
                f"{available.get(name, 0):g}; lower it, or num_{name.lower()}s of a worker"
            )
    _check_room_beside(config, {"GPU": num_gpus * most, "CPU": workers.num_cpus * most}, available)
    return num_gpus


def _check_room_beside(config: TrainConfig, taken: dict[str, float], available: dict[str, float]) -> None:
    """Raises: ConfigError where the engine of validations has no room at all, or where early stopping would wait for
    validations that wait for training to end."""
    engine = config.selection.engine
    num_gpus, num_cpus = resources_of_an_engine(engine, engine.num_engines, available)
    for name, each in (("GPU", num_gpus), ("CPU", num_cpus)):
        wanted = each * engine.num_engines
        if wanted > available.get(name, 0):
            raise ConfigError(
                f"selection.engine: needs {wanted:g} {name}s, the cluster has {available.get(name, 0):g}; lower "
                f"num_engines or num_{name.lower()}s"
            )
        if config.selection.patience is not None and taken[name] + wanted > available.get(name, 0):
            raise ConfigError(
                f"selection.patience = {config.selection.patience}: validations need {wanted:g} {name}s beside the "
                f"{taken[name]:g} of training, the cluster has {available.get(name, 0):g}; leave patience out, or "
                f"lower num_{name.lower()}s of selection.engine or workers"
            )


def _failure(stage: Stage, error: Exception) -> UserError:
    """What a person is told of a training that Ray Train has given up."""
    failures = getattr(error, "worker_failures", {}) or {0: getattr(error, "controller_failure", error)}
    causes = [getattr(failure, "_base_exc", failure) for failure in failures.values()]
    for cause in causes:
        if isinstance(cause, UserError):
            return cause
    cause = causes[0]
    said = f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
    fix = "see to it"
    if "OutOfMemory" in said or "out of memory" in said:
        fix = "lower micro_batch_size or loss_chunk_tokens, or set activation_checkpointing: true"
    return InterruptedRunError(
        f"stages.{stage.name}: training failed ({said}); checkpoints are kept: {fix}, and run the same command again"
    )


def _task_names(data: StageData) -> list[str]:
    """The tasks that are validated, as `load_task` takes them."""
    return [data.validation.references[name] for name in sorted(data.validation.tasks)]


def _at_fixed_places(config: TrainConfig) -> TrainConfig:
    """All addresses absolute: workers may have another working directory."""
    data = config.model_dump(mode="json")
    data["output"]["uri"] = lasting_output(config.output.uri)
    if Path(config.model.path).expanduser().is_dir():
        data["model"]["path"] = storage.absolute(config.model.path)
    for stage in data["stages"].values():
        for source in [*stage["train"], *stage["validation"]]:
            source["uri"] = storage.absolute(source["uri"])
            source["task"] = None if source["task"] is None else _lasting_task(source["task"])
            source["task_names"] = {name: _lasting_task(task) for name, task in source["task_names"].items()}
    return TrainConfig.model_validate(data)


def _lasting_task(name: str) -> str:
    return name if name in builtin_tasks() else str(Path(name).absolute())
