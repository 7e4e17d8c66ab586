"""The train job: records in, for each stage the best checkpoint out."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mentalglm import errors, manifest, storage
from mentalglm.cluster import connect, lasting_output
from mentalglm.config import ModelConfig, TrainConfig
from mentalglm.config.train import BASE
from mentalglm.corpus.records import Records, num_shared_texts, read_records, split
from mentalglm.engine.model import resolve_model
from mentalglm.errors import InterruptedRunError, UserError
from mentalglm.scoring.run.lease import Lease
from mentalglm.tasks import Task, builtin_tasks
from mentalglm.training.export import export, write_card
from mentalglm.training.loop.sampler import Sampler
from mentalglm.training.loop.timeline import Timeline
from mentalglm.training.metrics_log import write_validation_scalars
from mentalglm.training.mlflow_run import log_validation
from mentalglm.training.models.learner import Examples
from mentalglm.training.models.method import check_tasks, record_encoder
from mentalglm.training.resources import gpus_of_a_worker
from mentalglm.training.stage import RECORD, Stage, StageRecord, sha256_of
from mentalglm.training.validation.measure import ValidationSet, validate
from mentalglm.training.validation.notes import Validation, read_validations
from mentalglm.training.validation.selection import drop_damaged_snapshot, make_up_for_lost_validations, select


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
    def validated_tasks(self) -> list[str]:
        """What `load_task` takes for the tasks of the validation records."""
        return [self.validation.references[name] for name in sorted(self.validation.tasks)]

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
        "num_explained_records": sum(record.explanation is not None for record in data.train.rows),
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
        stage.check_finished(finished, fingerprint)
        return finished
    with Lease.acquire(stage.uri) as lease:
        if (finished := stage.read_record()) is not None:  # by the job whose lease was waited for
            stage.check_finished(finished, fingerprint)
            return finished
        examples = encode(stage, data)
        stage.open(fingerprint)
        posts = ValidationSet(stage.uri)
        num_validated_rows = posts.write(data.validation.rows, stage.config.selection.max_rows)
        num_steps, steps_per_epoch = _fit(stage, data, examples, fingerprint, lease.epoch)
        best, validation = select(stage, data.validated_tasks)
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
        _show_validations(stage)
        posts.delete()
        lease.check()
        storage.put(storage.join(stage.uri, RECORD), record.model_dump_json(indent=2).encode())
    return record


def _fit(
    stage: Stage, data: StageData, examples: Examples, fingerprint: dict[str, Any], lease_epoch: int
) -> tuple[int, int]:
    """Trains to the end, or until validation stops getting better; goes on from the last checkpoint.

    Returns (steps done, steps of an epoch). Raises: InterruptedRunError also where another job takes the lease over.
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

    from mentalglm.training.loop.worker import LoopSpec, Outcome, train_worker
    from mentalglm.training.progress import StageProgress

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ctrl-C stays ours: Ray Train's own answer ends the process with 1."""

    config = stage.config
    weights = tuple(data.train.weights)
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
        lease_epoch=lease_epoch,
    )
    filesystem, path = storage.filesystem(storage.join(stage.uri, "_run"))
    workers = config.workers
    num_gpus = gpus_of_a_worker(config)
    stage.write_timeline(timeline.num_steps, timeline.steps_per_epoch)
    drop_damaged_snapshot(stage.checkpoints_uri)
    make_up_for_lost_validations(stage, data.validated_tasks)
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
                    "tasks": data.validated_tasks,
                }
            ),
            ray_remote_kwargs={"num_cpus": 0},
        ),
    )

    def publish(validation: Validation) -> None:
        _show_validations(stage)
        if config.tracking.mlflow_uri is not None:
            log_validation(stage.uri, config.tracking, validation.step, validation.scores)

    with StageProgress(stage.name, stage.uri, timeline.num_steps, on_validation=publish):
        try:
            outcome: Outcome = trainer.fit().return_value
        except TrainingFailedError as error:
            raise _failure(stage, error) from None
    if outcome.status == "failed":
        raise errors.told(outcome.error, outcome.message)
    return outcome.step, timeline.steps_per_epoch


def _show_validations(stage: Stage) -> None:
    """As TensorBoard's curves."""
    write_validation_scalars(stage.uri, {each.step: each.scores for each in read_validations(stage.uri)})


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
