"""A stage of a train job: where it lies, what it is, and what has come of it."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mentalglm import storage
from mentalglm.config import StageConfig, TrainConfig
from mentalglm.corpus import NORMAL_FORM_VERSION
from mentalglm.corpus.records import Records, mixture
from mentalglm.engine.cache import fetched
from mentalglm.engine.files import digest_of
from mentalglm.engine.model import ResolvedModel
from mentalglm.errors import ConfigError
from mentalglm.manifest import differences
from mentalglm.tasks import PARSER_VERSION, Task
from mentalglm.training.checkpoint import list_checkpoints
from mentalglm.training.metrics_log import delete_metrics
from mentalglm.training.validation.early_stopping import forget_decisions
from mentalglm.training.validation.notes import delete_validations

RECORD = "stage.json"
TIMELINE = "_run/timeline.json"
EXAMPLES_VERSION = 1
"""Raised with every change in how records become token ids and a loss."""


class StageRecord(BaseModel):
    """What a finished stage is: `stage.json`, written last."""

    model_config = ConfigDict(frozen=True)

    name: str
    start_from: str
    fingerprint: dict[str, Any]
    best_checkpoint: str
    best_step: int
    best_score: float
    """Mean of the tasks' headline metrics on the validation records."""
    best_scores: dict[str, float]
    digest: str
    """Of the exported files, as a score run's manifest tells it of its adapter or model."""
    num_steps: int
    """Done; fewer than planned where it stopped early."""
    steps_per_epoch: int
    validations: list[dict[str, Any]]
    """Of each validated checkpoint: step, scores, seconds, error."""
    data: dict[str, int]
    unvalidated_tasks: list[str] = []
    """Learned, and not looked at in choosing the best checkpoint: no record of theirs is held out."""
    finished_at: str
    seconds: float
    """From the start of the attempt that finished it."""
    versions: dict[str, str]


@dataclass(frozen=True)
class Stage:
    """One fine-tuning step of a job.

    <output>/<stage>/adapter/ or model/      what it has made, with a model card
    <output>/<stage>/stage.json              written last
    <output>/<stage>/metrics.jsonl, tensorboard/
    <output>/<stage>/_run/                   private: fingerprint, checkpoints, validations
    """

    name: str
    config: TrainConfig
    model: ResolvedModel

    @property
    def settings(self) -> StageConfig:
        """Its part of the config."""
        return self.config.stages[self.name]

    @property
    def uri(self) -> str:
        """Its folder."""
        return storage.join(self.config.output.uri, self.name)

    @property
    def product_uri(self) -> str:
        """The folder of the adapter, or of the model, that it makes."""
        return storage.join(self.uri, self.config.product)

    def read_record(self) -> StageRecord | None:
        """What it is; None while it is not finished. Raises: ConfigError where that cannot be read."""
        return read_record(self.uri)

    def fingerprint(
        self, train: Records, validation: Records, tasks: dict[str, Task], parent: StageRecord | None
    ) -> dict[str, Any]:
        """What defines the numbers that it learns. Parallelism, micro-batches and checkpoints do not."""
        config, settings = self.config, self.settings
        selection = config.selection.model_dump(mode="json", exclude={"timeout_s", "engine"})
        selection["engine"] = config.selection.engine.model_dump(include={"kind", "dtype", "quantization"})
        return {
            "examples": EXAMPLES_VERSION,
            "parser": PARSER_VERSION,
            "normal_form": NORMAL_FORM_VERSION,
            "model": self.model.digest,
            "start_from": parent.digest if parent else None,
            "tasks": {name: task.digest for name, task in sorted(tasks.items())},
            "train": {
                "digest": train.digest,
                "num_records": len(train.rows),
                **mixture(settings.train),
            },
            "validation": {"digest": validation.digest, "num_records": len(validation.rows)},
            "method": config.method,
            **({"lora": config.lora.model_dump()} if config.method == "lora" else {}),
            **({"encoder": config.encoder.model_dump()} if config.method == "encoder" else {}),
            "optimizer": config.optimizer_of(self.name).model_dump(mode="json"),
            "num_epochs": settings.num_epochs,
            "max_steps": settings.max_steps,
            "batch_size": config.batch_size,
            "max_prompt_tokens": config.max_prompt_tokens,
            "dtype": config.dtype,
            "seed": config.seed,
            "selection": selection,
        }

    @property
    def checkpoints_uri(self) -> str:
        """Folder of its checkpoints."""
        return storage.join(self.uri, "_run", "checkpoints")

    def open(self, fingerprint: dict[str, Any]) -> None:
        """Begins the stage, or goes on with the same one. For the holder of its lease.

        Raises: ConfigError where its folder holds another, of which something is done.
        """
        uri = storage.join(self.uri, "_run", "fingerprint.json")
        if not list_checkpoints(self.checkpoints_uri):
            # Of a training that is not gone on with: they would be taken for this one's.
            delete_validations(self.uri)
            delete_metrics(self.uri)
            forget_decisions(self.uri)
            storage.put(uri, json.dumps(fingerprint, indent=2).encode())
        elif (data := storage.read_bytes(uri)) is not None:
            try:
                found = json.loads(data)
            except ValueError:  # it would name the settings; whether they are the same, checkpoints tell too
                return
            self._check_same(found, fingerprint)

    def write_timeline(self, num_steps: int, steps_per_epoch: int) -> None:
        """Notes how long it is, for `mentalglm status`."""
        uri = storage.join(self.uri, TIMELINE)
        storage.put(uri, json.dumps({"num_steps": num_steps, "steps_per_epoch": steps_per_epoch}).encode())

    def check_finished(self, record: StageRecord, fingerprint: dict[str, Any]) -> None:
        """Raises: ConfigError where what is finished is a stage with other settings, or what it has made is gone.

        Whether that is as it was, only a stage that goes on from it has to know: it may be a large model on S3.
        """
        self._check_same(record.fingerprint, fingerprint)
        if not any(storage.list_files(self.product_uri)):
            raise ConfigError(
                f"stages.{self.name}: {self.product_uri}, which the stage has made, is gone; put it back, or remove "
                f"{self.uri}/{RECORD} to have it made again"
            )

    def _check_same(self, found: dict[str, Any], fingerprint: dict[str, Any]) -> None:
        wanted = json.loads(json.dumps(fingerprint))  # tuples become lists, as they are read back
        if changes := differences(found, wanted):
            raise ConfigError(
                f"stages.{self.name}: {self.uri} holds a stage with other settings ({'; '.join(changes)}); give the "
                "stage another name or the job another output, or undo the change to go on with it"
            )

    def check_product(self, record: StageRecord) -> None:
        """Raises: ConfigError where what the finished stage has made is not there any more as it was."""
        if storage.is_s3(self.product_uri):
            folder = fetched(f"stages.{self.name}", self.product_uri)
        else:
            folder = storage.local_path(self.product_uri)
        if digest_of(folder) != record.digest:
            raise ConfigError(
                f"stages.{self.name}: {self.product_uri} is not what the stage has made (digest); put it back, or "
                f"remove {self.uri}/{RECORD} to have it made again"
            )


def read_record(stage_uri: str) -> StageRecord | None:
    """What the stage in this folder is; None while it is not finished. Raises: ConfigError where it cannot be read."""
    uri = storage.join(stage_uri, RECORD)
    data = storage.read_bytes(uri)
    try:
        return None if data is None else StageRecord.model_validate_json(data)
    except ValidationError:
        raise ConfigError(
            f"{uri}: is not the record of a stage that this version understands (damaged, or written by another "
            "version); put it back, or remove it and run the same command again: checkpoints are kept"
        ) from None


def read_num_steps(stage_uri: str) -> int:
    """How many steps the stage in this folder is to have. Raises: ConfigError where it cannot be read."""
    uri = storage.join(stage_uri, TIMELINE)
    try:
        return int(json.loads(storage.read_bytes(uri) or b"")["num_steps"])
    except (ValueError, LookupError, TypeError):
        raise ConfigError(f"{uri}: is damaged; the same `mentalglm train` command writes it anew") from None


def sha256_of(fingerprint: dict[str, Any]) -> str:
    """sha256 over the canonical JSON of a fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
