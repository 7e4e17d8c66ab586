"""A train job that is killed and interrupted ends as one that nothing happens to."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mentalglm.training.checkpoint import list_checkpoints
from mentalglm.training.metrics_log import read_metrics
from tests.e2e.conftest import BIN, Run
from tests.training_jobs import write_model, write_records

pytestmark = pytest.mark.long

SAVE_EVERY = 20


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    write_model(tmp_path / "model")
    write_records(tmp_path / "records.jsonl", 120)
    job: dict[str, Any] = {
        "output": {"uri": "out"},
        "model": {"path": "model"},
        "stages": {"s1": {"train": [{"uri": "records.jsonl"}], "num_epochs": 40}},
        "dtype": "float32",
        "lora": {"lora_dropout": 0.1},
        "batch_size": 16,
        "checkpoints": {"every_steps": SAVE_EVERY},
        "tracking": {"log_every_steps": 1},
        "selection": {"engine": {"kind": "echo"}, "every_epochs": 40},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(job))
    return [str(BIN / "mentalglm"), "train", "train.yaml"]


def stop_after(
    command: list[str], folder: Path, step: int, number: signal.Signals
) -> "subprocess.CompletedProcess[str]":
    """Runs the command, and sends it the signal once there is a checkpoint of this step or a later one."""
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env={**os.environ})
    while max((each.step for each in list_checkpoints(str(folder / "out/s1/_run/checkpoints"))), default=0) < step:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, "", errors)


def test_it_ends_in_the_same_adapter_bit_by_bit(command: list[str], run: Run, tmp_path: Path) -> None:
    killed = stop_after(command, tmp_path, SAVE_EVERY, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    (tmp_path / "out/s1/_run/checkpoints/checkpoint_manager_snapshot.json").write_text('{"cut o')
    interrupted = stop_after(command, tmp_path, 5 * SAVE_EVERY, signal.SIGINT)
    assert (interrupted.returncode, "mentalglm train train.yaml" in interrupted.stderr) == (75, True)
    assert not (tmp_path / "out/s1/stage.json").exists()
    done = run("mentalglm", "train", "train.yaml")
    assert (done.returncode, "best after step" in done.stdout) == (0, True), done.stderr
    undisturbed = run("mentalglm", "train", "train.yaml", "--set", "output.uri=undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    weights = "s1/adapter/adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "undisturbed" / weights).read_bytes()
    ours, theirs = (
        [(line["step"], line["loss"]) for line in read_metrics(str(tmp_path / name / "s1"))]
        for name in ("out", "undisturbed")
    )
    assert ours == theirs
    assert run("mentalglm", "train", "train.yaml").returncode == 0


def test_a_full_disk_interrupts_it_and_with_room_it_goes_on(command: list[str], tmp_path: Path) -> None:
    """The output is a file system of 600 kB, and then of 100 MB, in a mount namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    namespace = ["unshare", "-rm", "sh", "-c"]
    if subprocess.run([*namespace, f"mount -t tmpfs -o size=600k none {disk}"], capture_output=True).returncode:
        pytest.skip("no mounts in namespaces here")
    once = f"{shlex.join([*command, '--set', f'output.uri={disk}/out'])}; echo exit code $?;"
    script = f"mount -t tmpfs -o size=600k none {disk}; {once} mount -o remount,size=100m {disk}; {once}"
    done = subprocess.run([*namespace, script], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert "no space left on device; make room on that disk and run the same command again" in done.stderr
    assert [line for line in done.stdout.splitlines() if "exit code" in line] == ["exit code 75", "exit code 0"]
