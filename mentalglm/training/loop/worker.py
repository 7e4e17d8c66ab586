"""The training loop, as each worker of Ray Train runs it."""

import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode, ValidationTaskConfig
from ray.train.collective import broadcast_from_rank_zero
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from mentalglm import storage
from mentalglm.config import TrainConfig
from mentalglm.engine.model import find_folder
from mentalglm.errors import InterruptedRunError, UserError
from mentalglm.training.checkpoint import OPTIMIZER, StoredCheckpoint, local_copy, newest, upload
from mentalglm.training.local_files import empty_folder
from mentalglm.training.loop.lease_watch import LeaseWatch
from mentalglm.training.loop.sampler import Indices, Sampler, micro_batches
from mentalglm.training.loop.schedule import learning_rate
from mentalglm.training.loop.timeline import Timeline
from mentalglm.training.metrics_log import MetricsLog
from mentalglm.training.mlflow_run import MlflowRun
from mentalglm.training.models.language_model import DTYPES
from mentalglm.training.models.learner import Examples, Learner
from mentalglm.training.models.method import load_learner
from mentalglm.training.validation.early_stopping import EarlyStopping
from mentalglm.training.validation.notes import read_validations

_PREEMPTION_CHECK_S = 5.0
_MOST_SHOWN = 5
_MOST_LEFT_OUT = 20  # the scale, 65,536 at first, is halved each time
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


@dataclass(frozen=True, slots=True)
class LoopSpec:
    """What a worker has to know of its stage."""

    config: TrainConfig
    stage: str
    stage_uri: str
    model_path: str
    """Folder of the base model, on the driver's node."""
    start_uri: str | None
    """What the stage before has made, or None to start from the base model."""
    fingerprint: str
    weights: tuple[float, ...]
    """Of each part of the mixture."""
    lease_epoch: int
    """Of the lease under which the job works on the stage."""

    @property
    def checkpoints_uri(self) -> str:
        """Folder of the checkpoints."""
        return storage.join(self.stage_uri, "_run", "checkpoints")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the loop ended. A failure that another attempt would meet again is an outcome, not an error that Ray Train
    would start the workers anew for."""

    status: Literal["finished", "stopped_early", "failed"]
    step: int
    message: str = ""
    error: str = ""
    """Of a failure: the class of the `UserError` that tells of it."""


def train_worker(given: dict[str, Any]) -> Outcome:
    """`train_loop_per_worker`: `spec` is a LoopSpec, `examples` a reference to Examples in Ray's object store."""
    spec: LoopSpec = given["spec"]
    storage.configure(spec.config.s3)
    try:
        return _Loop(spec, ray.get(given["examples"])).run()
    except UserError as error:
        if error.exit_code == 75:  # storage that fails for now: worth another attempt
            raise
        return Outcome("failed", 0, str(error), type(error).__name__)


class _Loop:
    def __init__(self, spec: LoopSpec, examples: Examples) -> None:
        self.spec, self.examples = spec, examples
        self.config = config = spec.config
        self.optimizer_config = config.optimizer_of(spec.stage)
        context = ray.train.get_context()
        self.rank, self.num_workers = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        sampler = Sampler(examples.sources, spec.weights, batch_size=config.batch_size, seed=config.seed)
        self.sampler = sampler
        self.timeline = Timeline.of(config, spec.stage, sampler)
        self.local = empty_folder(spec.stage_uri, f"worker-{self.rank}")
        self.lengths, self.num_learned = examples.lengths, examples.num_learned
        self.early_stopping = EarlyStopping(spec.stage_uri, config.selection)
        self.dtype = DTYPES[config.dtype]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.log: MetricsLog | None = None
        """Of the first worker alone, as is `lease`."""
        self.lease: LeaseWatch | None = None
        self.is_taken_over = False
        """By another job, as the first worker has told all of them with their gradients."""
        self.num_left_out = 0
        """Steps in a row that loss scaling has left out."""
        self.step = 0
        self.started = 0.0
        self.is_saved_for_preemption = False
        self.last_step_s = 0.0
        self.shared_s = 0.0
        """Of the workers' mean, since preemption was last asked for: the same for all of them."""
        self.save_s = 0.0

    def run(self) -> Outcome:
        checkpoint, model, state = self._read()
        self._set_up(model, state)
        self._register(checkpoint)
        if self.rank != 0:
            return self._train()
        with (
            LeaseWatch(self.spec.stage_uri, self.spec.lease_epoch) as self.lease,
            MetricsLog(
                self.spec.stage_uri, first_step=self.step, mlflow=self._mlflow_run(), local=self.local
            ) as self.log,
        ):
            outcome = self._train()
            self.log.has_failed = outcome.status == "failed"
            return outcome

    def _mlflow_run(self) -> MlflowRun | None:
        spec, tracking = self.spec, self.config.tracking
        if tracking.mlflow_uri is None:
            return None
        shared = self.config.model_dump(mode="json", exclude={"s3", "stages"})
        params = shared | {"stage": self.config.stages[spec.stage].model_dump(mode="json")}
        return MlflowRun(spec.stage_uri, tracking, f"{spec.stage}-{spec.fingerprint[:8]}", params)

    def _train(self) -> Outcome:
        window = _Window()
        self.started = time.perf_counter()
        while self.step < self.timeline.num_steps:
            if self._is_to_stop():
                return Outcome("stopped_early", self.step)
            started = time.perf_counter()
            batch = self.sampler.batch(self.step)
            loss, grad_norm, bad_ids = self._learn(batch)
            if self.is_taken_over:
                return Outcome("failed", self.step, *self._takeover())
            if bad_ids:
                return Outcome("failed", self.step, self._not_finite(loss, bad_ids), "InputError")
            self.step += 1
            self.last_step_s = time.perf_counter() - started
            window.add(loss, self.last_step_s, int(self.lengths[batch].sum()), int(self.num_learned[batch].sum()))
            is_logged = self.step % self.config.tracking.log_every_steps == 0 or self.step == self.timeline.num_steps
            if self.log is not None and is_logged:
                self.log.add(self.step, self._metrics(window, grad_norm))
                window, self.save_s = _Window(), 0.0
            is_last_chance = not self.is_saved_for_preemption and self._is_preempted()
            if self.timeline.is_saved(self.step) or is_last_chance:
                self._save(is_candidate=self.timeline.is_candidate(self.step))
                self.is_saved_for_preemption |= is_last_chance
        return Outcome("finished", self.step)

    def _learn(self, batch: Indices) -> tuple[float, float, list[str]]:
        """One optimizer step: (mean loss, norm of the gradient, ids where they are not finite).

        The loss is divided by the learned tokens (or texts) of the whole batch, over all micro-batches and workers, so
        it is the same however the batch is cut. Random numbers (dropout) follow from seed, step and rank.
        """
        config = self.config
        torch.manual_seed((config.seed * 1_000_003 + self.step) * 4_096 + self.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optimizer_config, self.step, self.timeline.num_steps)
        mine = micro_batches(
            batch, self.lengths, num_workers=self.num_workers, micro_batch_size=config.micro_batch_size
        )[self.rank]
        # DDP and FSDP average gradients over the workers; what is wanted is their sum.
        scale = self.num_workers / float(self.num_learned[batch].sum())
        losses: list[Tensor] = []
        for number, indices in enumerate(mine):
            with self._synchronised(number == len(mine) - 1):
                loss = self._loss(indices if len(indices) else batch[:1], is_counted=len(indices) > 0)
                losses.append(loss.detach())
                self.scaler.scale(loss * scale).backward()
        total = torch.stack(losses).sum()
        mine_too = [self.last_step_s, float(self.lease is not None and self.lease.error is not None)]
        shared = torch.cat([total.double().reshape(1), torch.tensor(mine_too, dtype=torch.float64, device=self.device)])
        if self.num_workers > 1:
            dist.all_reduce(shared)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, self.optimizer_config.max_grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        loss_sum, seconds, is_taken_over, grad_norm = torch.cat([shared, norm.double().reshape(1)]).tolist()
        self.shared_s += seconds / self.num_workers
        self.is_taken_over = is_taken_over > 0
        # With loss scaling, gradients that overflow now and then are expected: the scaler leaves such a step out.
        is_left_out = self.scaler.is_enabled() and not math.isfinite(grad_norm)
        self.num_left_out = self.num_left_out + 1 if is_left_out else 0
        is_finite = math.isfinite(loss_sum) and (
            math.isfinite(grad_norm) or (is_left_out and self.num_left_out <= _MOST_LEFT_OUT)
        )
        bad_ids = [] if is_finite else self._bad_ids(batch, mine, losses)
        if is_finite:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss_sum / float(self.num_learned[batch].sum()), grad_norm, bad_ids

    def _loss(self, indices: Indices, *, is_counted: bool) -> Tensor:
        *inputs, is_learned = self.model.collate([self.examples[int(index)] for index in indices])
        if not is_counted:  # a worker without rows takes part in the exchange of gradients all the same
            is_learned[:] = False
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss: Tensor = self.module(*(each.to(self.device, non_blocking=True) for each in (*inputs, is_learned)))
        return loss

    def _synchronised(self, is_last: bool) -> Any:
        """Gradients are exchanged with the last micro-batch alone."""
        if self.config.workers.strategy == "fsdp":
            self.module.set_requires_gradient_sync(is_last)
        elif self.num_workers > 1 and not is_last:
            return self.module.no_sync()
        return nullcontext()

    def _bad_ids(self, batch: Indices, mine: list[Indices], losses: list[Tensor]) -> list[str]:
        """Ids of the records whose loss is not finite, of all workers; of the batch, where only its gradient is not."""
        here = [
            self.examples.ids[int(index)]
            for indices, loss in zip(mine, losses, strict=True)
            if not torch.isfinite(loss)
            for index in indices
        ]
        everywhere: list[list[str]] = [here]
        if self.num_workers > 1:
            everywhere = [[] for _ in range(self.num_workers)]
            dist.all_gather_object(everywhere, here)
        found = [each for ids in everywhere for each in ids]
        return found or [self.examples.ids[int(index)] for index in batch]

    def _not_finite(self, loss: float, ids: list[str]) -> str:
        what = "the loss" if not math.isfinite(loss) else "the gradient"
        more = f" and {len(ids) - _MOST_SHOWN} more" if len(ids) > _MOST_SHOWN else ""
        fix = "use dtype: bfloat16" if self.dtype == torch.float16 else "lower optimizer.learning_rate"
        return (
            f"stages.{self.spec.stage}: {what} is not finite at step {self.step + 1}, in the micro-batch with "
            f"the records {', '.join(ids[:_MOST_SHOWN])}{more}; look at them, or {fix}, and give the stage another name"
        )

    def _takeover(self) -> tuple[str, str]:
        """(message, class of the error). Of all workers' outcomes the first one's is told."""
        error = self.lease.error if self.lease is not None else None
        return str(error or f"stages.{self.spec.stage}: taken over by another job"), InterruptedRunError.__name__

    def _metrics(self, window: "_Window", grad_norm: float) -> dict[str, float]:
        return {
            "epoch": round(self.step / self.timeline.steps_per_epoch, 4),
            "loss": window.mean_loss,
            "grad_norm": grad_norm,
            **({"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "num_tokens": window.num_tokens,
            "tokens_per_s": window.num_tokens / window.seconds,
            "num_workers": self.num_workers,
            "step_s": window.seconds / window.num_steps,
            "save_s": self.save_s,
            "elapsed_s": time.perf_counter() - self.started,
        } | ({"peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9} if self.device.type == "cuda" else {})

    def _read(self) -> tuple[StoredCheckpoint | None, Learner, dict[str, Any] | None]:
        """(checkpoint to go on from, model, state of its optimizer). Raises: what any of the workers has met."""
        found: tuple[StoredCheckpoint | None, Learner, dict[str, Any] | None] | UserError
        try:
            found = self._read_here()
        except UserError as error:
            found = error
        failures = [found if isinstance(found, UserError) else None]
        if self.num_workers > 1:  # else the others would wait for this one
            failures = [None] * self.num_workers
            dist.all_gather_object(failures, found if isinstance(found, UserError) else None)
        for failure in failures:
            if failure is not None:
                raise failure
        assert not isinstance(found, UserError)
        return found

    def _read_here(self) -> tuple[StoredCheckpoint | None, Learner, dict[str, Any] | None]:
        checkpoint = self._newest()
        start = checkpoint.uri if checkpoint else self.spec.start_uri
        state = None
        with local_copy(start, self.local) if start else nullcontext() as folder:
            model = load_learner(self.config, self.examples, self._base_folder(), folder)
            if checkpoint is not None and folder is not None:
                self.step = checkpoint.step
                state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        return checkpoint, model, state

    def _newest(self) -> StoredCheckpoint | None:
        """The checkpoint that all go on from: the first worker looks for it, so they cannot find different ones."""
        found: list[StoredCheckpoint | UserError | None] = [None]
        if self.rank == 0:
            try:
                found = [newest(self.spec.checkpoints_uri, self.spec.fingerprint)]
            except UserError as error:
                found = [error]
        if self.num_workers > 1:
            dist.broadcast_object_list(found)
        if isinstance(found[0], UserError):
            raise found[0]
        return found[0]

    def _register(self, checkpoint: StoredCheckpoint | None) -> None:
        """Tells Ray of a checkpoint that was uploaded as its worker died, so that it is validated, if it is not yet."""
        registered = ray.train.get_checkpoint()
        is_known = registered is not None and Path(registered.path).name == checkpoint.name if checkpoint else True
        if checkpoint is None or is_known:
            return
        files = ray.train.get_context().get_storage()
        stored = Checkpoint(files.build_checkpoint_path_from_name(checkpoint.name), files.storage_filesystem)
        scores = {each.checkpoint: each.score for each in read_validations(self.spec.stage_uri)}
        self._report(
            stored if self.rank == 0 else None,
            checkpoint.name,
            is_candidate=checkpoint.is_candidate,
            score=scores.get(checkpoint.name),
        )

    def _set_up(self, model: Learner, state: dict[str, Any] | None) -> None:
        self.model = model
        if self.config.workers.strategy == "ddp":
            model.to(self.device)
        model.check(self.examples[0])
        self.module: Any = _distributed(model, self.config, self.num_workers, self.device)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        decayed = [parameter for parameter in self.trained if parameter.ndim > 1]
        others = [parameter for parameter in self.trained if parameter.ndim <= 1]
        settings = self.optimizer_config
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )
        if state is not None:
            set_optimizer_state_dict(self.module, self.optimizer, state["optimizer"], options=_FULL)
            self.scaler.load_state_dict(state["scaler"])

    def _base_folder(self) -> Path:
        """Of the base model on this node, which may be another than the driver's, which found it."""
        folder = Path(self.spec.model_path)
        return (
            folder if folder.is_dir() else find_folder("model.path", self.config.model.path, self.config.model.revision)
        )

    def _save(self, *, is_candidate: bool) -> None:
        """A checkpoint of this moment. Training waits until it is written to this machine's disk: what it is made of
        changes with the next step. Uploading goes on beside the training."""
        started = time.perf_counter()
        trained = get_model_state_dict(self.module, options=_FULL)
        optimizer = get_optimizer_state_dict(self.module, self.optimizer, options=_FULL)
        step, spec = self.step, self.spec
        checkpoint = None
        if self.rank == 0:
            folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=self.local))
            self.model.save(folder, cast(dict[str, Tensor], trained), self.config, self._base_folder())
            torch.save({"optimizer": optimizer, "scaler": self.scaler.state_dict()}, folder / OPTIMIZER)
            checkpoint = Checkpoint.from_directory(str(folder))
        files = ray.train.get_context().get_storage()

        def put(local: Checkpoint, name: str) -> Checkpoint:
            if self.log is not None:
                self.log.write()
            upload(
                Path(local.path),
                storage.join(spec.checkpoints_uri, name),
                step=step,
                is_candidate=is_candidate,
                fingerprint=spec.fingerprint,
            )
            return Checkpoint(files.build_checkpoint_path_from_name(name), files.storage_filesystem)

        self._report(checkpoint, f"step-{step:08d}-{os.urandom(4).hex()}", is_candidate=is_candidate, upload_fn=put)
        self.save_s += time.perf_counter() - started

    def _report(
        self,
        checkpoint: Checkpoint | None,
        name: str,
        *,
        is_candidate: bool,
        score: float | None = None,
        upload_fn: Callable[[Checkpoint, str], Checkpoint] | None = None,
    ) -> None:
        """Called by all workers at the same step; the first one has the checkpoint. Without `upload_fn` it is there.

        `score`: of its validation; None: it is still to be made, if the checkpoint is a candidate.
        """
        is_to_be_validated = is_candidate and checkpoint is not None and score is None
        ray.train.report(
            {"step": self.step, "score": -1.0 if score is None else score},
            checkpoint=checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC if upload_fn else CheckpointUploadMode.NO_UPLOAD,
            checkpoint_upload_fn=upload_fn,
            validation=is_to_be_validated and ValidationTaskConfig(timeout_s=self.config.selection.timeout_s),
        )

    def _is_preempted(self) -> bool:
        """Whether a node is about to be taken away; asked now and then, by all workers at the same step."""
        if self.shared_s < _PREEMPTION_CHECK_S:
            return False
        self.shared_s = 0.0
        return ray.train.get_preemption_info() is not None

    def _is_to_stop(self) -> bool:
        """Whether validation has stopped getting better; the same answer for all workers, and after a resume."""
        if self.config.selection.patience is None or not self.step or not self.timeline.is_candidate(self.step):
            return False
        candidates = [step for step in range(1, self.step) if self.timeline.is_candidate(step)]
        is_over = self.early_stopping.is_over(self.step, candidates) if self.rank == 0 else None
        return bool(broadcast_from_rank_zero(is_over))


class _Window:
    """What is averaged between two lines of the log."""

    def __init__(self) -> None:
        self.num_steps = self.num_tokens = self.num_learned = 0
        self.seconds = self._loss_sum = 0.0

    def add(self, loss: float, seconds: float, num_tokens: int, num_learned: int) -> None:
        self.num_steps += 1
        self.seconds += seconds
        self.num_tokens += num_tokens
        self.num_learned += num_learned
        self._loss_sum += loss * num_learned

    @property
    def mean_loss(self) -> float:
        """Nats per learned token, or text."""
        return self._loss_sum / self.num_learned


def _distributed(model: Learner, config: TrainConfig, num_workers: int, device: torch.device) -> nn.Module:
    if config.workers.strategy == "fsdp":
        from torch.distributed.fsdp import fully_shard

        # Layer by layer from the CPU: the device never holds more than its share and one layer.
        for layer in model.layers:
            fully_shard(layer)
        return cast(nn.Module, fully_shard(model))
    if num_workers == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
