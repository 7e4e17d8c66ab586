"""The train job on a local Ray: stages, resuming to the bit, workers that die, several workers, selection."""

import hashlib
import json
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from mentalglm import storage
from mentalglm.config import ModelConfig, TrainConfig
from mentalglm.engine import cache
from mentalglm.engine.model import resolve_model
from mentalglm.errors import ConfigError, InputError, InterruptedRunError
from mentalglm.training.checkpoint import list_checkpoints
from mentalglm.training.metrics_log import read_metrics
from mentalglm.training.pipeline import train
from tests.training_jobs import CANARY, write_model, write_records

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]

NUM_RECORDS = 72


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records") / "records.jsonl", NUM_RECORDS)


def settings(model: Path, records: Path, folder: Path, **changes: Any) -> TrainConfig:
    """12 steps of 12 records, a checkpoint every 3."""
    data: dict[str, Any] = {
        "output": {"uri": str(folder)},
        "model": {"path": str(model)},
        "stages": {"s1": {"train": [{"uri": str(records), "id_column": "id"}], "num_epochs": 2}},
        "dtype": "float32",
        "lora": {"lora_dropout": 0.1},
        "optimizer": {"learning_rate": 1e-2},
        "batch_size": 12,
        "micro_batch_size": 4,
        "checkpoints": {"every_steps": 3},
        "tracking": {"log_every_steps": 1},
        "selection": {"engine": {"kind": "echo"}},
    }
    return TrainConfig.model_validate(data | changes)


def adapter(output: Path, stage: str = "s1") -> str:
    return hashlib.sha256((output / stage / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing has happened to."""
    output = tmp_path_factory.mktemp("undisturbed")
    train(settings(model, records, output))
    return output


def test_a_stage_leaves_what_its_readers_need(undisturbed: Path) -> None:
    stage = undisturbed / "s1"
    steps = [line["step"] for line in read_metrics(str(stage))]
    assert steps == list(range(1, len(steps) + 1))
    record = json.loads((stage / "stage.json").read_text(encoding="utf-8"))
    assert record["num_steps"] == len(steps)
    assert [each["step"] for each in record["validations"]] == [len(steps) // 2, len(steps)]
    validation = json.loads((stage / f"_run/validation/{record['best_checkpoint']}.json").read_text(encoding="utf-8"))
    # Each record is asked its own task.
    assert sum(each["n"] for each in validation["metrics"].values()) == record["data"]["num_validated_records"]
    assert validation["metrics"].keys() == {"suicide_risk", "cognitive_distortion"}
    assert validation["engines"][0]["engine"] == "echo"
    assert not (stage / "_run" / "validation" / "records.parquet").exists()  # it held posts
    assert not list((stage / "_run" / "tmp").iterdir())
    card = (stage / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "optimizer.warmup_ratio | 0.01 | paper" in card
    assert "lora.r | 8 | assumed" in card
    names = {path.name for path in (stage / "tensorboard").iterdir()}
    assert names == {"events.out.tfevents.0000000000", "events.out.tfevents.validation"}


class Killer(threading.Thread):
    """Kills the training workers once so many steps are logged."""

    def __init__(self, stage: Path, step: int) -> None:
        super().__init__(daemon=True)
        self.stage, self.step, self.num_killed = stage, step, 0

    def run(self) -> None:
        while not any(line["step"] >= self.step for line in read_metrics(str(self.stage))):
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in process.name():
                process.send_signal(signal.SIGKILL)
                self.num_killed += 1


def is_in_the_cache(uri: str) -> bool:
    return (cache._root() / "fetched" / cache._name_of(uri, cache._model_files(uri))).exists()


def losses(output: Path, stage: str = "s1") -> list[float]:
    return [line["loss"] for line in read_metrics(str(output / stage))]


def test_a_killed_worker_ends_in_the_same_adapter_bit_by_bit(
    model: Path, records: Path, undisturbed: Path, tmp_path: Path
) -> None:
    killer = Killer(tmp_path / "s1", step=5)
    killer.start()
    train(settings(model, records, tmp_path))
    assert killer.num_killed == 1
    # The second attempt's events begin at the checkpoint that it went on from.
    attempts = sorted(int(path.name.rpartition(".")[2]) for path in (tmp_path / "s1/tensorboard").glob("events.*.0*"))
    assert attempts[0] == 0
    assert attempts[1] % 3 == 0
    assert 5 - 3 < attempts[1] < 12, "a save interval before the kill at most"
    assert adapter(tmp_path) == adapter(undisturbed)
    assert losses(tmp_path) == losses(undisturbed)


def test_a_finished_stage_is_not_trained_again_and_not_taken_for_another(
    model: Path, records: Path, undisturbed: Path
) -> None:
    before = (undisturbed / "s1" / "stage.json").read_bytes()
    [record] = train(settings(model, records, undisturbed))
    assert (undisturbed / "s1" / "stage.json").read_bytes() == before
    assert record.best_scores["score"] == record.best_score
    columns = {"train": [{"uri": str(records), "id_column": "id", "explanation_column": None}], "num_epochs": 2}
    with pytest.raises(ConfigError, match=r"train.digest"):
        train(settings(model, records, undisturbed, stages={"s1": columns}))
    with pytest.raises(ConfigError, match=r"selection.engine.kind: echo, now vllm"):
        train(settings(model, records, undisturbed, selection={"engine": {"kind": "vllm"}}))
    other = settings(model, records, undisturbed, seed=43)
    with pytest.raises(ConfigError, match=r"stages.s1: .* holds a stage with other settings .*seed: 42, now 43"):
        train(other)


def test_it_goes_on_although_a_checkpoint_is_gone_that_ray_has_listed(
    model: Path, records: Path, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed / "s1", tmp_path / "s1")
    (tmp_path / "s1" / "stage.json").unlink()
    last = list_checkpoints(str(tmp_path / "s1/_run/checkpoints"))[-1]
    shutil.rmtree(last.uri)
    train(settings(model, records, tmp_path))
    assert adapter(tmp_path) == adapter(undisturbed)
    assert losses(tmp_path) == losses(undisturbed)


def test_a_job_whose_stage_is_taken_over_ends_before_its_end(model: Path, records: Path, tmp_path: Path) -> None:
    def take_over() -> None:
        while not read_metrics(str(tmp_path / "s1")):
            time.sleep(0.1)
        (tmp_path / "s1/_run/leases/00000002.json").write_text("{}")

    threading.Thread(target=take_over, daemon=True).start()
    stage = {"train": [{"uri": str(records), "id_column": "id"}], "num_epochs": 1000}
    with pytest.raises(InterruptedRunError, match=r"s1: taken over, since this job gave no sign of life"):
        train(settings(model, records, tmp_path, stages={"s1": stage}, checkpoints={"every_steps": 1000}))
    assert read_metrics(str(tmp_path / "s1"))[-1]["step"] < 1000


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_two_workers_learn_what_one_learns(
    strategy: str, model: Path, records: Path, one_worker: Path, tmp_path: Path
) -> None:
    """Batches of 12 over two workers: 2 micro-batches each, none full; the last batch is smaller still."""
    train(few_steps(model, records, tmp_path, workers={"num_workers": 2, "num_cpus": 0.5, "strategy": strategy}))
    assert losses(tmp_path) == pytest.approx(losses(one_worker), rel=1e-4)
    assert same_weights(tmp_path, one_worker, atol=1e-4)


@pytest.fixture(scope="module")
def one_worker(model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one-worker")
    train(few_steps(model, records, output))
    return output


def few_steps(model: Path, records: Path, output: Path, **changes: Any) -> TrainConfig:
    """An epoch, without dropout, whose last batch has a few records."""
    stage = {"train": [{"uri": str(records), "id_column": "id"}], "num_epochs": 1}
    return settings(model, records, output, **({"stages": {"s1": stage}, "lora": {}} | changes))


def same_weights(output: Path, other: Path, *, atol: float) -> bool:
    ours, theirs = (load_file(each / "s1" / "adapter" / "adapter_model.safetensors") for each in (output, other))
    return ours.keys() == theirs.keys() and all(torch.allclose(ours[name], theirs[name], atol=atol) for name in ours)


def test_it_stops_where_validation_gets_no_better(model: Path, records: Path, tmp_path: Path) -> None:
    """The echo engine does not look at the checkpoint. After steps 2, 4: no better; seen one validation later, at 6."""
    selection = {"engine": {"kind": "echo"}, "every_steps": 2, "patience": 1}
    held_out = tmp_path / "held_out.jsonl"
    lines = records.read_text(encoding="utf-8").splitlines()
    held_out.write_text("\n".join(line for line in lines if "suicide_risk" in line), encoding="utf-8")
    sources = {"train": [{"uri": str(records), "id_column": "id"}], "validation": [{"uri": str(held_out)}]}
    stages = {"s1": {**sources, "num_epochs": 2}}
    [record] = train(settings(model, records, tmp_path, selection=selection, stages=stages))
    assert record.num_steps == 6
    assert [each["step"] for each in record.validations] == [2, 4, 6]
    assert len({each["scores"]["score"] for each in record.validations}) == 1
    assert record.best_step == 6  # of equal ones the last
    assert json.loads((tmp_path / "s1/stage.json").read_text())["unvalidated_tasks"] == ["cognitive_distortion"]
    card = (tmp_path / "s1/adapter/README.md").read_text(encoding="utf-8")
    assert "Chosen without a look at cognitive_distortion: no record of theirs was held out." in card
    assert "validation records have a post that is learned from too" in card


def test_a_loss_that_is_not_finite_ends_the_job_and_names_the_records(
    model: Path, records: Path, tmp_path: Path
) -> None:
    optimizer = {"learning_rate": 1e30, "max_grad_norm": 1e30, "schedule": "constant", "warmup_ratio": 0}
    with pytest.raises(
        InputError, match=r"stages.s1: the (loss|gradient) is not finite at step \d+, .* 0:r\d+"
    ) as raised:
        train(settings(model, records, tmp_path, optimizer=optimizer))
    assert "lower optimizer.learning_rate" in str(raised.value)


def test_two_stages_on_s3(model: Path, records: Path, s3: str) -> None:
    """The second goes on from the first; validations that are given up are made up for; what is lost is made again."""
    sources = [{"uri": str(records), "id_column": "id"}]
    stages = {
        "s1": {"train": sources, "max_steps": 3},
        "both": {"start_from": "s1", "train": sources, "max_steps": 4},
    }
    selection = {"engine": {"kind": "echo"}, "timeout_s": 0.01}
    config = settings(model, records, Path("unused"), stages=stages, selection=selection, output={"uri": s3})
    first, second = train(config)
    assert second.fingerprint["start_from"] == first.digest
    assert (first.best_step, second.best_step) == (3, 4)
    assert all(each["error"] is None for each in (*first.validations, *second.validations))
    for each in list_checkpoints(f"{s3}/s1/_run/checkpoints"):  # engines had fetched them
        assert not is_in_the_cache(each.uri)
    assert is_in_the_cache(f"{s3}/s1/adapter")
    before = {file.path: file for file in storage.list_files(s3)}
    assert {"both/adapter/adapter_model.safetensors", "both/adapter/README.md", "both/stage.json"} <= before.keys()
    for name in ("both/stage.json", "both/_run/checkpoints/checkpoint_manager_snapshot.json"):
        storage.delete(f"{s3}/{name}")  # as if it had died at the very end, and Ray's own notes were lost
    assert train(config)[1].digest == second.digest


def test_all_weights_are_trained_and_the_next_stage_goes_on_from_them(
    model: Path, records: Path, tmp_path: Path
) -> None:
    sources = [{"uri": str(records), "id_column": "id"}]
    stages = {
        "first": {"train": sources, "max_steps": 3},
        "second": {"start_from": "first", "train": sources, "max_steps": 3},
    }
    optimizer = {"learning_rate": 1e-3, "warmup_ratio": 0}
    changes = {"stages": stages, "method": "full", "dtype": "bfloat16", "optimizer": optimizer}
    first, second = train(settings(model, records, tmp_path, **changes))
    assert second.fingerprint["start_from"] == first.digest
    assert losses(tmp_path, "second")[0] < losses(tmp_path, "first")[0]
    folder = tmp_path / "second" / "model"
    [checkpoint] = (tmp_path / "second" / "_run" / "checkpoints").glob(f"{second.best_checkpoint}*")
    exact, rounded, before = (load_file(each / "model.safetensors") for each in (checkpoint, folder, model))
    assert {weight.dtype for weight in exact.values()} == {torch.float32}
    assert all(torch.equal(rounded[name], weight.bfloat16()) for name, weight in exact.items())
    assert not torch.equal(exact["model.layers.0.mlp.down_proj.weight"], before["model.layers.0.mlp.down_proj.weight"])
    assert {path.name for path in folder.iterdir()} == {path.name for path in model.iterdir()} | {"README.md"}
    assert json.loads((folder / "config.json").read_text())["use_cache"]  # generates as fast as the one it is made of
    resolved = resolve_model(ModelConfig(path=str(folder)))  # as a score job takes it
    assert resolved.digest == second.digest
    assert (folder / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert json.loads((Path(resolved.path) / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((checkpoint / "config.json").read_text())["dtype"] == "bfloat16"  # what engines round it to


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_learns_nearly_the_same(
    dtype: str, model: Path, records: Path, one_worker: Path, tmp_path: Path
) -> None:
    train(few_steps(model, records, tmp_path, dtype=dtype))
    assert losses(tmp_path) == pytest.approx(losses(one_worker), rel=0.02)
    weights = load_file(tmp_path / "s1" / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_early_stopping_wants_room_for_validations_beside_training(model: Path, records: Path, tmp_path: Path) -> None:
    selection = {"engine": {"kind": "vllm", "num_cpus": 2}, "patience": 1}
    with pytest.raises(ConfigError, match=r"selection\.patience = 1: validations need 2 CPUs beside the 1 of training"):
        train(settings(model, records, tmp_path, selection=selection))


def test_a_mistake_before_the_first_step_pins_nothing(model: Path, records: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora\.target_modules = \['nope'\]"):
        train(settings(model, records, tmp_path, lora={"target_modules": ["nope"]}))
    stages = {"s1": {"train": [{"uri": str(records), "id_column": "id"}], "max_steps": 1}}
    [record] = train(settings(model, records, tmp_path, lora={"target_modules": ["q_proj"]}, stages=stages))
    assert record.num_steps == 1
    weights = tmp_path / "s1" / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    stages["s2"] = {"start_from": "s1", **stages["s1"]}
    with pytest.raises(ConfigError, match=r"stages.s1: .* is not what the stage has made"):
        train(settings(model, records, tmp_path, lora={"target_modules": ["q_proj"]}, stages=stages))
    weights.unlink()
    (tmp_path / "s1" / "stage.json").unlink()
    [again] = train(
        settings(model, records, tmp_path, lora={"target_modules": ["q_proj"]}, stages={"s1": stages["s1"]})
    )
    assert (weights.read_bytes(), again.digest) == (before, record.digest)


def test_no_text_of_a_record_is_left_behind(undisturbed: Path) -> None:
    """Neither in the stage's folder nor in Ray's logs, of this run and of all that have failed above."""
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    files = [path for folder in (undisturbed, session / "logs") for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path.name for path in files if CANARY.encode() in path.read_bytes()] == []
