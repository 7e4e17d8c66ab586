"""Config of a train job: the stages of fine-tuning, what each starts from, and how its best checkpoint is chosen."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from mentalglm.config.base import ConfigModel
from mentalglm.config.lora import NOT_IN_VLLM, PLAIN_INITS, beyond_vllm
from mentalglm.config.records import RecordsConfig
from mentalglm.config.score import EchoEngineConfig, EncoderEngineConfig, EngineConfig, VllmEngineConfig
from mentalglm.config.storage import S3Config, StorageAddress

BASE = "base"
"""What a stage starts from that starts from `model.path` itself."""

_OUR_INITS = ("gaussian", "orthogonal")

# With `method: encoder`, where a config says nothing. Paper, appendix C: 10 epochs, batches of 16, Adam, 2e-5; it tells
# of no warm-up, schedule, weight decay or precision, so there is none of them, and float32.
_ENCODER_EPOCHS = 10
_ENCODER_OPTIMIZER = {"learning_rate": 2e-5, "warmup_ratio": 0.0, "schedule": "constant"}
_ENCODER_BATCH_SIZE = 16
_ENCODER_DEFAULTS = {"batch_size": _ENCODER_BATCH_SIZE, "max_prompt_tokens": 512, "dtype": "float32"}


def _is_a_stage_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name):
        raise ValueError("is no name for a stage; use up to 64 letters, digits, dashes and underscores, a letter first")
    if name == BASE:
        raise ValueError(f"{BASE} is the name of the model that stages start from; choose another")
    return name


StageName = Annotated[str, AfterValidator(_is_a_stage_name)]


class BaseModelConfig(ConfigModel):
    """The model that is fine-tuned."""

    path: str = Field(default="demo", min_length=1)
    """`demo`, a folder, or a Hugging Face hub id; every node must be able to read it."""
    revision: str | None = None
    """Commit of a hub model."""


class LoraConfig(ConfigModel):
    """LoRA by PEFT, of the kinds that vLLM can load beside a model."""

    r: int = Field(default=8, ge=1, le=512)
    lora_alpha: float = Field(default=16, gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of modules; all-linear: every linear layer but the head."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead of lora_alpha / r."""
    init_lora_weights: Literal[True, "gaussian", "orthogonal"] = True

    @model_validator(mode="before")
    @classmethod
    def _is_loadable(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if key := beyond_vllm(data):
            raise ValueError(f"{key} = {data[key]}: vLLM cannot load {NOT_IN_VLLM[key]}; leave it out")
        init = data.get("init_lora_weights", True)
        if init is not True and init not in _OUR_INITS:
            why = "changes the model's own weights, or vLLM cannot load it"
            if init in PLAIN_INITS:
                why = "takes more than drawing numbers, which this job does not do"
            raise ValueError(f"init_lora_weights = {init}: {why}; use true, {' or '.join(_OUR_INITS)}")
        return {key: value for key, value in data.items() if key not in NOT_IN_VLLM}

    @model_validator(mode="after")
    def _rank_suits_its_init(self) -> "LoraConfig":
        if self.init_lora_weights == "orthogonal" and self.r % 2:
            raise ValueError(
                f"r = {self.r}: is odd, and init_lora_weights: orthogonal takes even ranks; use {self.r + 1}"
            )
        return self


class OptimizerConfig(ConfigModel):
    """AdamW with warm-up. Learning rate and warm-up are the paper's; what it does not tell is LLaMA-Factory's default
    of that time. With `method: encoder`, other defaults: plain Adam, as in the paper's appendix C."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """The highest, at the end of the warm-up. With `method: encoder`: 2e-5."""
    warmup_ratio: float = Field(default=0.01, ge=0, lt=1)
    """Share of the steps in which it grows from 0. With `method: encoder`: 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How it falls to 0 afterwards, if at all. With `method: encoder`: constant."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of matrices; vectors have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)


class StageConfig(ConfigModel):
    """One fine-tuning step."""

    start_from: str = BASE
    """`base`, or the name of a stage, whose best checkpoint is trained further: the same adapter (or model), with a new
    optimizer and schedule."""
    train: list[RecordsConfig] = Field(min_length=1)
    validation: list[RecordsConfig] = []
    """Records that the best checkpoint is chosen by. Empty: a part of `train`, see `validation_fraction`."""
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of `train` that is held out where `validation` is empty. A hash of the text decides, so equal texts lie on
    one side, and a record stays on its side when others are added."""
    num_epochs: int = Field(default=5, ge=1)
    """With `method: encoder` the default is 10."""
    max_steps: int | None = Field(default=None, ge=1)
    """Ends the stage early; the schedule then has this length."""
    optimizer: OptimizerConfig | None = None
    """Null: that of the job."""


class SelectionConfig(ConfigModel):
    """How the best checkpoint is found: by the benchmark's own metric (F1) of its answers on the validation records.

    Each is scored by the score job and counted by the eval job while training goes on. With several tasks: the mean of
    their headline metrics.
    """

    every_epochs: int = Field(default=1, ge=1)
    every_steps: int | None = Field(default=None, ge=1)
    """In place of `every_epochs`."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many validations in a row without a better one; null: never. A decision is made one validation
    late, so that training does not wait for it."""
    max_rows: int | None = Field(default=None, ge=1)
    """Validate on a sample of this many records, the same each time; null: on all."""
    max_tokens: int = Field(default=256, ge=1)
    """Most tokens of an answer; it ends after its labels anyway."""
    timeout_s: float | None = Field(default=None, gt=0)
    """A validation that takes longer is given up."""
    engine: EngineConfig = VllmEngineConfig()
    """What scores: vllm, or encoder with `method: encoder`. It needs room beside training; where there is none,
    validations wait until training has ended."""

    @field_validator("engine", mode="before")
    @classmethod
    def _default_kind(cls, value: Any) -> Any:
        return {"kind": "vllm", **value} if isinstance(value, dict) else value


class CheckpointConfig(ConfigModel):
    """What an interrupted stage goes on from."""

    every_steps: int = Field(default=200, ge=1)
    """Beside those that are validated. A killed worker loses at most this many steps, and those of one upload: what was
    being uploaded as it died is not gone on from."""
    num_to_keep: int | None = Field(default=3, ge=1)
    """The best so many, and the latest; null: all."""


class EncoderConfig(ConfigModel):
    """A classifier (BERT and its kin): an encoder with a linear layer over its first token, one output for each label.

    Its loss is the cross-entropy of binary and multiclass tasks, and the binary cross-entropy of each label, averaged
    over labels, of the others. It reads the post alone and learns the labels of one task; explanations are not used.
    """

    input: Literal["post", "explanation"] = "post"
    """What the records' `text_column` holds, for the model card and `classifier.json`. A classifier of explanations
    tells how consistent these are with their labels: score a run's `explanation` column with it."""
    mask_labels: bool = False
    """Put □ in the place of every name of a label in what is read, in training and in scoring. Explanations that name
    their label are classified well whatever else they say."""


class WorkersConfig(ConfigModel):
    """The training workers of Ray Train, each with one model."""

    num_workers: int | tuple[int, int] = 1
    """A number, or [least, most]: then training shrinks and grows with the cluster. The batch stays the same."""
    num_gpus: float | None = Field(default=None, ge=0)
    """Of each. Default: 1 where the cluster has GPUs, else 0."""
    num_cpus: float = Field(default=1, gt=0)
    """Of each; on the CPU also its number of threads."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each worker holds the model · fsdp: they share it (FSDP2), for models that do not fit on one."""
    max_failures: int = Field(default=3, ge=0)
    """How often workers may die before the job ends (exit code 75). Preempted nodes do not count."""

    @field_validator("num_workers")
    @classmethod
    def _is_a_range(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        least, most = value if isinstance(value, tuple) else (value, value)
        if not 1 <= least <= most:
            raise ValueError("must be at least 1, and [least, most] in this order")
        return value

    @property
    def bounds(self) -> tuple[int, int]:
        """(least, most) of them."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)


class TrackingConfig(ConfigModel):
    """Where the metrics of training go, beside `metrics.jsonl` and `tensorboard/`, which are always written."""

    log_every_steps: int = Field(default=10, ge=1)
    mlflow_uri: StorageAddress | None = None
    """Address of an MLflow tracking server, such as http://host:5000; needs `mlflow-skinny` (extra `mlflow`)."""
    mlflow_experiment: str = "mentalglm"


class TrainOutputConfig(ConfigModel):
    """Where the stages go."""

    uri: StorageAddress
    """Folder or s3:// address; each stage has a folder of its name in it."""


class TrainConfig(ConfigModel):
    """Fine-tunes a model in one or more stages. Published values are defaults, but for dtype; README of each stage
    tells which are."""

    output: TrainOutputConfig
    model: BaseModelConfig = BaseModelConfig()
    stages: dict[StageName, StageConfig] = Field(min_length=1)
    """Name -> stage; each has its own folder in the output."""
    method: Literal["lora", "full", "encoder"] = "lora"
    """lora: an adapter of a language model · full: all its weights · encoder: a classifier for one task, made of an
    encoder such as BERT; some keys then have other defaults, which they tell."""
    lora: LoraConfig = LoraConfig()
    encoder: EncoderConfig = EncoderConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch_size: int = Field(default=32, ge=1)
    """Records of a step, over all workers. With `method: encoder`: 16."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Records that go through the model at once in a worker; gradients of the others are added up. Changes no result
    but for rounding, and for where dropout falls. With `method: encoder`: 16, or the whole batch."""
    max_prompt_tokens: int = Field(default=1024, ge=32)
    """Longest prompt; the end of longer posts is cut, never the question. As in scoring. With `method: encoder`, the
    longest input: 512, or less where the model can take less."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the frozen weights and of the arithmetic; what is trained is kept in float32. The paper used float16. With
    `method: encoder`: float32."""
    activation_checkpointing: bool = False
    """Compute activations anew in the backward pass: less memory, a third more time."""
    loss_chunk_tokens: int = Field(default=512, ge=1)
    """The loss is taken of so many tokens at a time: the logits of a whole batch are the largest tensor of all."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    selection: SelectionConfig = SelectionConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    workers: WorkersConfig = WorkersConfig()
    tracking: TrackingConfig = TrackingConfig()
    s3: S3Config = S3Config()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("method") != "encoder":
            return data
        filled = {**_ENCODER_DEFAULTS, **data}
        if "micro_batch_size" not in data and isinstance(filled["batch_size"], int):
            filled["micro_batch_size"] = min(filled["batch_size"], _ENCODER_BATCH_SIZE)
        filled["optimizer"] = _filled(data.get("optimizer", {}), _ENCODER_OPTIMIZER)
        selection = _filled(data.get("selection", {}), {"engine": {}})
        if isinstance(selection, dict):
            filled["selection"] = {**selection, "engine": _filled(selection["engine"], {"kind": "encoder"})}
        if isinstance(data.get("stages"), dict):
            filled["stages"] = {name: _filled_stage(stage) for name, stage in data["stages"].items()}
        return filled

    @model_validator(mode="after")
    def _engine_loads_what_is_made(self) -> "TrainConfig":
        ours = EncoderEngineConfig if self.method == "encoder" else VllmEngineConfig
        if not isinstance(self.selection.engine, ours | EchoEngineConfig):
            raise ValueError(
                f"selection.engine.kind = {self.selection.engine.kind}: cannot load a checkpoint of method: "
                f"{self.method}; use {'encoder' if self.method == 'encoder' else 'vllm'}"
            )
        return self

    @model_validator(mode="after")
    def _encoder_is_whole(self) -> "TrainConfig":
        if self.method == "encoder" and self.workers.strategy == "fsdp":
            raise ValueError("workers.strategy = fsdp: an encoder fits on every worker; use ddp")
        return self

    @model_validator(mode="after")
    def _stages_stand_on_those_before(self) -> "TrainConfig":
        known = [BASE]
        for name, stage in self.stages.items():
            if stage.start_from not in known:
                raise ValueError(
                    f"stages.{name}.start_from = {stage.start_from!r}: is neither {BASE} nor a stage above it "
                    f"({', '.join(known[1:]) or 'there is none'})"
                )
            known.append(name)
        return self

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> "TrainConfig":
        if self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} is more than batch_size = {self.batch_size}; lower it"
            )
        return self

    @model_validator(mode="after")
    def _fsdp_has_a_plan(self) -> "TrainConfig":
        if self.workers.strategy == "fsdp" and self.dtype == "float16":
            raise ValueError(
                "dtype = float16: its loss scaling does not work with workers.strategy: fsdp; use bfloat16"
            )
        return self

    @property
    def product(self) -> Literal["adapter", "model"]:
        """What a stage makes, and the name of its folder."""
        return "adapter" if self.method == "lora" else "model"

    def optimizer_of(self, stage: str) -> OptimizerConfig:
        """The settings of a stage: its own, or the job's."""
        return self.stages[stage].optimizer or self.optimizer


def _filled(given: Any, defaults: dict[str, Any]) -> Any:
    """A section as it is given, with defaults of its own."""
    if isinstance(given, BaseModel):
        given = given.model_dump(exclude_unset=True)
    return {**defaults, **given} if isinstance(given, dict) else given


def _filled_stage(given: Any) -> Any:
    stage = _filled(given, {"num_epochs": _ENCODER_EPOCHS})
    if isinstance(stage, dict) and stage.get("optimizer") is not None:
        stage["optimizer"] = _filled(stage["optimizer"], _ENCODER_OPTIMIZER)
    return stage
