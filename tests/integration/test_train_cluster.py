"""Training on several nodes: one is taken away, with notice, and training goes on with those that are left."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mentalglm.training.checkpoint import list_checkpoints
from mentalglm.training.metrics_log import read_metrics
from tests.integration.cluster import Cluster
from tests.training_jobs import write_model, write_records

pytestmark = pytest.mark.long


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """The driver's node has no CPU for a worker."""
    each = Cluster({**os.environ, "RAY_AUTH_MODE": "disabled"}, num_head_cpus=0)
    yield each
    each.close()


def test_a_preempted_node_loses_no_more_than_a_few_steps(cluster: Cluster, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_records(tmp_path / "records.jsonl", 200)
    job: dict[str, Any] = {
        "output": {"uri": str(tmp_path / "out")},
        "model": {"path": str(tmp_path / "model")},
        "stages": {"s1": {"train": [{"uri": str(tmp_path / "records.jsonl")}], "num_epochs": 80}},
        "dtype": "float32",
        "micro_batch_size": 1,
        "checkpoints": {"every_steps": 100_000},
        "tracking": {"log_every_steps": 1},
        "selection": {"engine": {"kind": "echo"}, "every_epochs": 80},
        "workers": {"num_workers": [1, 2], "max_failures": 0},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    stage = str(tmp_path / "out" / "s1")
    driver = subprocess.Popen(
        [str(Path(sys.executable).parent / "mentalglm"), "train", "job.yaml"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster.environment | {"RAY_ADDRESS": cluster.address},
    )

    def wait_until(condition: Any) -> None:
        deadline = time.monotonic() + 200
        while not condition():
            assert driver.poll() is None, driver.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)

    try:
        wait_until(lambda: read_metrics(stage))
        cluster.tell("drain")
        wait_until(lambda: list_checkpoints(f"{stage}/_run/checkpoints"))
        [saved] = list_checkpoints(f"{stage}/_run/checkpoints")
        cluster.tell("kill")
        last_before = read_metrics(stage)[-1]["step"]
        _, errors = driver.communicate(timeout=900)
    finally:
        driver.kill()
    assert driver.returncode == 0, errors[-3000:]
    lines = read_metrics(stage)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "each step once, in order"
    assert not saved.is_candidate
    assert 0 < saved.step < len(lines)
    print(f"notice at a step before {saved.step}, killed at {last_before}: {last_before - saved.step} steps done again")
    assert lines[-1]["loss"] < lines[0]["loss"]
