"""What a train job would do: its steps, tokens and memory, without a GPU and without loading weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentalglm.config import TrainConfig
from mentalglm.training.loop.sampler import Sampler
from mentalglm.training.loop.schedule import num_warmup_steps
from mentalglm.training.loop.timeline import Timeline
from mentalglm.training.models.language_model import DTYPES
from mentalglm.training.models.method import outline
from mentalglm.training.pipeline import counts_of, encode, fingerprint_of, prepare, resolve_stages
from mentalglm.training.stage import Stage, StageRecord

_OPTIMIZER_BYTES = 16  # of each trained parameter: itself, its gradient and two moments, in float32


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one worker, in bytes. A lower bound: what the framework itself and its kernels take is not in it, nor, with
    FSDP, the one layer that is whole on every worker while it is computed."""

    weights: int
    """Frozen ones, in the config's dtype; with FSDP, its share of them among as few workers as there may be."""
    trained: int
    """Trained weights, their gradients and the optimizer's moments; shared likewise."""
    activations: int
    """Of a micro-batch of the longest examples: 34 bytes for each token, hidden unit and layer (Korthikanti et al.,
    2022, equation 2, without the attention matrix, which is not kept); 2 with activation checkpointing, and one whole
    layer."""
    logits: int
    """Of a chunk of the loss, with their gradient, in float32."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.trained + self.activations + self.logits


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage."""

    name: str
    finished: StageRecord | None
    """Nothing is left to do."""
    counts: dict[str, int]
    timeline: Timeline
    num_warmup_steps: int
    num_tokens: int
    """Of all steps, without padding."""
    num_parameters: int
    num_trained_parameters: int
    memory: Memory


def plan(config: TrainConfig) -> list[StagePlan]:
    """Reads and checks the records of all stages. Raises: ConfigError, InputError."""
    return [_plan_stage(stage) for stage in resolve_stages(config)]


def _plan_stage(stage: Stage) -> StagePlan:
    config, data = stage.config, prepare(stage)
    examples = encode(stage, data)
    if (finished := stage.read_record()) is not None:
        stage.check_finished(finished, fingerprint_of(stage, data))
    sampler = Sampler(examples.sources, data.train.weights, batch_size=config.batch_size, seed=config.seed)
    timeline = Timeline.of(config, stage.name, sampler)
    lengths = examples.lengths
    model = outline(config, examples, Path(stage.model.path))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return StagePlan(
        name=stage.name,
        finished=finished,
        counts=counts_of(data, examples),
        timeline=timeline,
        num_warmup_steps=num_warmup_steps(config.optimizer_of(stage.name), timeline.num_steps),
        num_tokens=sum(int(lengths[sampler.batch(step)].sum()) for step in range(timeline.num_steps)),
        num_parameters=num_parameters - (num_trained if config.method == "lora" else 0),
        num_trained_parameters=num_trained,
        memory=_memory(config, model, num_parameters, num_trained, int(lengths.max())),
    )


def _memory(config: TrainConfig, model: Any, num_parameters: int, num_trained: int, longest: int) -> Memory:
    settings = model.config
    num_layers, hidden_size = settings.num_hidden_layers, settings.hidden_size
    num_tokens = longest * min(config.micro_batch_size, config.batch_size)
    layer = 34 * num_tokens * hidden_size
    kept = num_layers * 2 * num_tokens * hidden_size + layer if config.activation_checkpointing else num_layers * layer
    num_shares = config.workers.bounds[0] if config.workers.strategy == "fsdp" else 1
    return Memory(
        weights=-(-(num_parameters - num_trained) // num_shares) * DTYPES[config.dtype].itemsize,
        trained=-(-num_trained // num_shares) * _OPTIMIZER_BYTES,
        activations=kept * (2 if config.dtype == "float32" else 1),
        logits=_num_logits(config, model, num_tokens) * 8,
    )


def _num_logits(config: TrainConfig, model: Any, num_tokens: int) -> int:
    if config.method == "encoder":
        return config.micro_batch_size * int(model.config.num_labels)
    return min(config.loss_chunk_tokens, num_tokens) * int(model.config.vocab_size)
