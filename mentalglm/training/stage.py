"""A stage of a train job: where it lies, what it is, and what has come of it."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict

from mentalglm import storage
from mentalglm.config import StageConfig, TrainConfig
from mentalglm.corpus import NORMAL_FORM_VERSION
from mentalglm.engine.model import ResolvedModel
from mentalglm.errors import ConfigError
from mentalglm.manifest import differences
from mentalglm.tasks import PARSER_VERSION, Task
from mentalglm.training.records import Records

RECORD = "stage.json"
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
    """sha256 over the exported files: what a stage that starts from this one, and a score run, are named by."""
    num_steps: int
    """Done; fewer than planned where it stopped early."""
    steps_per_epoch: int
    validations: list[dict[str, Any]]
    """Of each validated checkpoint: step, scores, seconds, error."""
    data: dict[str, int]
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
        return storage.join(self.uri, "adapter" if self.config.method == "lora" else "model")

    def read_record(self) -> StageRecord | None:
        """What it is; None while it is not finished."""
        data = storage.read_bytes(storage.join(self.uri, RECORD))
        return None if data is None else StageRecord.model_validate_json(data)

    def fingerprint(
        self, train: Records, validation: Records, tasks: dict[str, Task], parent: StageRecord | None
    ) -> dict[str, Any]:
        """What defines the numbers that it learns. Parallelism, micro-batches and checkpoints do not."""
        config, settings = self.config, self.settings
        selection = config.selection.model_dump(mode="json", exclude={"timeout_s", "engine"})
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
                "weights": [source.weight for source in settings.train],
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

    def open(self, fingerprint: dict[str, Any]) -> None:
        """Begins the stage, or goes on with the same one. Raises: ConfigError where its folder holds another."""
        uri = storage.join(self.uri, "_run", "fingerprint.json")
        fingerprint = json.loads(json.dumps(fingerprint))  # tuples become lists, as they are read back
        if storage.put_if_absent(uri, json.dumps(fingerprint, indent=2).encode()):
            return
        data = storage.read_bytes(uri)
        if changes := differences(json.loads(data or b"{}"), fingerprint):
            raise ConfigError(
                f"stages.{self.name}: {self.uri} holds a stage with other settings ({'; '.join(changes)}); give the "
                "stage another name or the job another output, or undo the change to go on with it"
            )

    @cached_property
    def validations_uri(self) -> str:
        """Folder of what validations have found."""
        return storage.join(self.uri, "_run", "validation")


def sha256_of(fingerprint: dict[str, Any]) -> str:
    """sha256 over the canonical JSON of a fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
