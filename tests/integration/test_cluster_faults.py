"""Several nodes on one machine: one dies and another joins while a run goes on."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import yaml

from tests.integration.cluster import Cluster

pytestmark = pytest.mark.slow

NUM_ROWS = 120


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of our own."""
    each = Cluster({**os.environ, "RAY_AUTH_MODE": "disabled"})
    yield each
    each.close()


def test_a_node_that_dies_and_one_that_joins_change_nothing_in_the_table(cluster: Cluster, tmp_path: Path) -> None:
    texts = [f"第{n}条" for n in range(NUM_ROWS)]
    pq.write_table(pa.table({"post_id": [str(n) for n in range(NUM_ROWS)], "text": texts}), tmp_path / "posts.parquet")
    job: dict[str, Any] = {
        "input": {"uri": str(tmp_path / "posts.parquet")},
        "output": {"uri": str(tmp_path / "out")},
        "tasks": ["suicide_risk", "cognitive_distortion"],
        "engine": {"kind": "echo", "num_engines": 3, "delay_s": 1.0},
        "shard_rows": 2,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    commits = tmp_path / "out" / "_run" / "commits"
    driver = subprocess.Popen(
        [str(Path(sys.executable).parent / "mentalglm"), "score", "job.yaml"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster.environment | {"RAY_ADDRESS": cluster.address},
    )
    try:
        _wait_for(commits, 4, driver)
        cluster.tell("kill")
        _wait_for(commits, len(list(commits.iterdir())) + 4, driver)
        cluster.tell("add")
        _, errors = driver.communicate(timeout=300)
    finally:
        driver.kill()
    assert driver.returncode == 0, errors[-2000:]
    table = pads.dataset(tmp_path / "out" / "data", partitioning="hive").to_table()
    rows = sorted(zip(table["task"].to_pylist(), table["post_id"].to_pylist(), strict=True))
    assert rows == sorted((task, str(n)) for task in job["tasks"] for n in range(NUM_ROWS))
    assert set(table["status"].to_pylist()) == {"ok"}


def _wait_for(commits: Path, num_commits: int, driver: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and driver.poll() is None:
        if commits.is_dir() and len(list(commits.iterdir())) >= num_commits:
            return
        time.sleep(0.1)
    raise AssertionError(f"fewer than {num_commits} commits")
