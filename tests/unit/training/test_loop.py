"""What ends a training loop, without Ray."""

import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode

from mentalglm.config import TrainConfig
from mentalglm.config.train import OptimizerConfig
from mentalglm.errors import ConfigError, InterruptedRunError
from mentalglm.scoring.run.lease import Lease
from mentalglm.training.checkpoint import list_checkpoints, upload
from mentalglm.training.loop import lease_watch
from mentalglm.training.loop.lease_watch import LeaseWatch
from mentalglm.training.loop.worker import LoopSpec, Outcome, _Loop
from mentalglm.training.validation.notes import Validation, write_validation


class Steep(torch.nn.Module):
    """Its loss is 0 and its gradient infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def collate(self, examples: list[Any]) -> tuple[torch.Tensor]:
        return (torch.ones(len(examples), dtype=torch.bool),)

    def forward(self, is_learned: torch.Tensor) -> torch.Tensor:
        return self.weight.sqrt().sum()


def loop_of(model: Steep, dtype: torch.dtype) -> Any:
    loop: Any = object.__new__(_Loop)
    loop.config = TrainConfig.model_validate(
        {"output": {"uri": "out"}, "stages": {"s1": {"train": [{"uri": "r"}]}}, "batch_size": 4, "dtype": "float32"}
    )
    loop.spec = SimpleNamespace(stage="s1")
    loop.examples = _Examples()
    loop.lengths = loop.num_learned = np.ones(4, dtype=np.int64)
    loop.optimizer_config, loop.timeline = OptimizerConfig(), SimpleNamespace(num_steps=100)
    loop.rank, loop.num_workers, loop.device = 0, 1, torch.device("cpu")
    loop.step = loop.num_left_out = 0
    loop.lease = loop.log = None
    loop.last_step_s = loop.shared_s = 0.0
    loop.dtype = dtype
    loop.scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    loop.model = loop.module = model
    loop.trained = list(model.parameters())
    loop.optimizer = torch.optim.AdamW(loop.trained, lr=1e-3)
    return loop


class _Examples:
    ids = ("r0", "r1", "r2", "r3")

    def __getitem__(self, index: int) -> int:
        return index


def test_loss_scaling_that_never_finds_a_scale_is_a_failure_and_one_step_left_out_is_none() -> None:
    loop = loop_of(Steep(), torch.float16)
    batch = np.arange(4, dtype=np.int64)
    for _ in range(20):
        loss, _, bad_ids = loop._learn(batch)
        assert (loss, bad_ids) == (0.0, [])
    assert loop.trained[0].tolist() == [0.0, 0.0]  # left out
    loss, _, bad_ids = loop._learn(batch)
    assert bad_ids == ["r0", "r1", "r2", "r3"]
    assert "the gradient is not finite at step 1" in loop._not_finite(loss, bad_ids)
    assert "use dtype: bfloat16" in loop._not_finite(loss, bad_ids)


def test_without_loss_scaling_a_gradient_that_is_not_finite_is_a_failure_at_once() -> None:
    _, _, bad_ids = loop_of(Steep(), torch.float32)._learn(np.arange(4, dtype=np.int64))
    assert bad_ids == ["r0", "r1", "r2", "r3"]


def _worker(rank: int, store: str, told: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    loop: Any = object.__new__(_Loop)
    loop.num_workers, loop.rank = 2, rank

    def read() -> tuple[None, str, None]:
        if rank == 1:
            raise ConfigError("model.path: is not on this node")
        return None, "model", None

    loop._read_here = read
    try:
        loop._read()
    except ConfigError as error:
        told.put((rank, str(error)))
    dist.destroy_process_group()


def test_what_one_worker_cannot_read_ends_all_of_them(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    workers = [context.Process(target=_worker, args=(rank, str(tmp_path / "store"), told)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = {told.get(timeout=300) for _ in workers}
    for worker in workers:
        worker.join(300)
    assert found == {(rank, "model.path: is not on this node") for rank in range(2)}


@pytest.mark.parametrize(("score", "is_validated"), [(None, True), (0.75, False)])
def test_a_checkpoint_that_was_uploaded_as_its_worker_died_is_told_to_ray_and_validated_once(
    score: float | None, is_validated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig.model_validate(
        {"output": {"uri": str(tmp_path)}, "stages": {"s1": {"train": [{"uri": "r"}]}}, "method": "full"}
    )
    loop: Any = object.__new__(_Loop)
    loop.config, loop.rank, loop.step = config, 0, 6
    loop.spec = LoopSpec(config, "s1", str(tmp_path / "s1"), "model", None, "f", (1.0,), 1)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for name in ("step-00000004-aa", "step-00000006-bb"):
        upload(
            tmp_path, f"{loop.spec.checkpoints_uri}/{name}", step=int(name[5:13]), is_candidate=True, fingerprint="f"
        )
    if score is not None:
        write_validation(loop.spec.stage_uri, Validation(checkpoint="step-00000006-bb", step=6, score=score))
    reported: list[tuple[dict[str, Any], dict[str, Any]]] = []
    monkeypatch.setattr(ray.train, "report", lambda metrics, **more: reported.append((metrics, more)))
    monkeypatch.setattr(
        ray.train, "get_checkpoint", lambda: Checkpoint(f"{loop.spec.checkpoints_uri}/step-00000004-aa")
    )
    files = SimpleNamespace(
        build_checkpoint_path_from_name=lambda name: f"{loop.spec.checkpoints_uri}/{name}", storage_filesystem=None
    )
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: files))
    before, uploaded = list_checkpoints(loop.spec.checkpoints_uri)
    loop._register(before)
    assert reported == []  # Ray knows it
    loop._register(uploaded)
    [(metrics, more)] = reported
    assert metrics == {"step": 6, "score": -1.0 if score is None else score}
    assert (more["checkpoint"].path, more["checkpoint_dir_name"]) == (uploaded.uri, "step-00000006-bb")
    assert more["checkpoint_upload_mode"] == CheckpointUploadMode.NO_UPLOAD
    assert bool(more["validation"]) == is_validated


def _fenced(rank: int, store: str, told: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = Steep()
    torch.nn.init.ones_(model.weight)
    loop = loop_of(model, torch.float32)
    loop.num_workers, loop.rank = 2, rank
    loop.sampler = SimpleNamespace(batch=lambda step: np.arange(4, dtype=np.int64))
    loop.is_saved_for_preemption = False
    loop.timeline = SimpleNamespace(num_steps=100, is_saved=lambda step: False)
    loop.lease = SimpleNamespace(error=None) if rank == 0 else None

    def learn(batch: Any, learn: Any = loop._learn) -> Any:
        if rank == 0 and loop.step == 3:
            loop.lease.error = InterruptedRunError("out/s1: taken over")
        return learn(batch)

    loop._learn = learn
    told.put((rank, loop._train()))
    dist.destroy_process_group()


def test_a_stage_that_another_job_has_taken_over_is_left_by_all_workers_at_the_same_step(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    workers = [context.Process(target=_fenced, args=(rank, str(tmp_path / "store"), told)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(told.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(60)
    assert found[0] == Outcome("failed", 3, "out/s1: taken over", "InterruptedRunError")
    assert (found[1].status, found[1].step) == ("failed", 3)


def test_a_takeover_is_seen_by_the_store_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_watch, "_INTERVAL_S", 0.01)
    with Lease.acquire(str(tmp_path)) as lease, LeaseWatch(str(tmp_path), lease.epoch) as watch:
        time.sleep(0.2)
        assert watch.error is None
        (tmp_path / f"_run/leases/{lease.epoch + 1:08d}.json").write_text("{}")
        deadline = time.monotonic() + 60
        while watch.error is None and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "taken over" in str(watch.error)


def _finder(rank: int, store: str, checkpoints: str, told: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    loop: Any = object.__new__(_Loop)
    loop.num_workers, loop.rank = 2, rank
    # What the second one would find by itself is nothing: its storage is late.
    loop.spec = SimpleNamespace(checkpoints_uri=checkpoints if rank == 0 else f"{checkpoints}-late", fingerprint="f")
    found = loop._newest()
    told.put((rank, found.step))
    loop.spec.fingerprint = "other"
    try:
        loop._newest()
    except ConfigError as error:
        told.put((rank, "other settings" in str(error)))
    dist.destroy_process_group()


def test_all_workers_go_on_from_the_checkpoint_that_the_first_has_found(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "optimizer.pt").write_bytes(b"moments")
    checkpoints = tmp_path / "checkpoints"
    upload(tmp_path / "local", str(checkpoints / "step-00000007-aa"), step=7, is_candidate=False, fingerprint="f")
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    arguments = (str(tmp_path / "store"), str(checkpoints), told)
    workers = [context.Process(target=_finder, args=(rank, *arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = {told.get(timeout=300) for _ in range(4)}
    for worker in workers:
        worker.join(60)
    assert found == {(0, 7), (1, 7), (0, True), (1, True)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_step_with_good_gradients_changes_the_weights(dtype: torch.dtype) -> None:
    model = Steep()
    torch.nn.init.ones_(model.weight)
    loop = loop_of(model, dtype)
    for _ in range(2):
        assert loop._learn(np.arange(4, dtype=np.int64))[2] == []
        loop.step += 1
    assert model.weight.tolist() != [1.0, 1.0]
