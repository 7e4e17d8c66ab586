"""Training on several nodes: one is taken away, with notice, or comes, and training goes on with those there are."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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


class Job:
    """A train job of one or two workers, as many as there are nodes, as a user starts it."""

    def __init__(self, cluster: Cluster, folder: Path, *, save_every: int) -> None:
        write_model(folder / "model")
        write_records(folder / "records.jsonl", 200)
        job: dict[str, Any] = {
            "output": {"uri": str(folder / "out")},
            "model": {"path": str(folder / "model")},
            "stages": {"s1": {"train": [{"uri": str(folder / "records.jsonl")}], "num_epochs": 80}},
            "dtype": "float32",
            "micro_batch_size": 1,
            "checkpoints": {"every_steps": save_every},
            "tracking": {"log_every_steps": 1},
            "selection": {"engine": {"kind": "echo"}, "every_epochs": 80},
            "workers": {"num_workers": [1, 2], "max_failures": 0},
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(job))
        self.stage = str(folder / "out" / "s1")
        self.driver = subprocess.Popen(
            [str(Path(sys.executable).parent / "mentalglm"), "train", "job.yaml"],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            env=cluster.environment | {"RAY_ADDRESS": cluster.address},
        )

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 200
        while not condition():
            assert self.driver.poll() is None, self.driver.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def end(self) -> list[dict[str, Any]]:
        """Lets it end. Returns its metrics."""
        _, errors = self.driver.communicate(timeout=900)
        assert self.driver.returncode == 0, errors[-3000:]
        lines = read_metrics(self.stage)
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "each step once, in order"
        assert lines[-1]["loss"] < lines[0]["loss"]
        return lines


def test_a_preempted_node_loses_no_more_than_a_few_steps(cluster: Cluster, tmp_path: Path) -> None:
    job = Job(cluster, tmp_path, save_every=100_000)
    try:
        job.wait_until(lambda: read_metrics(job.stage))
        cluster.tell("drain")
        job.wait_until(lambda: list_checkpoints(f"{job.stage}/_run/checkpoints"))
        [saved] = list_checkpoints(f"{job.stage}/_run/checkpoints")
        cluster.tell("kill")
        last_before = read_metrics(job.stage)[-1]["step"]
        lines = job.end()
    finally:
        job.driver.kill()
    assert not saved.is_candidate
    assert 0 < saved.step < len(lines)
    print(f"notice at a step before {saved.step}, killed at {last_before}: {last_before - saved.step} steps done again")
    assert (lines[0]["num_workers"], lines[-1]["num_workers"]) == (2, 1)


def test_a_node_that_comes_is_trained_on_too(cluster: Cluster, tmp_path: Path) -> None:
    """Ray Train looks for new nodes once a minute; then all workers go on from the last checkpoint."""
    cluster.tell("kill")
    job = Job(cluster, tmp_path, save_every=10)
    try:
        job.wait_until(lambda: len(read_metrics(job.stage)) > 10)
        cluster.tell("add")
        lines = job.end()
    finally:
        job.driver.kill()
    counts = [line["num_workers"] for line in lines]
    assert (counts[0], counts[-1]) == (1, 2)
    grown = counts.index(2)
    assert counts == [1] * grown + [2] * (len(counts) - grown)
    print(f"two workers from step {grown + 1} of {len(counts)}")
    assert grown % 10 == 0
