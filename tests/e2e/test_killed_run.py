"""A run that is killed goes on where it stopped: every row once."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import yaml

from tests.e2e.conftest import BIN, Run

NUM_ROWS = 200


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    pq.write_table(
        pa.table({"post_id": [str(n) for n in range(NUM_ROWS)], "text": [f"第{n}条" for n in range(NUM_ROWS)]}),
        tmp_path / "posts.parquet",
    )
    job = {
        "input": {"uri": "posts.parquet"},
        "output": {"uri": "out"},
        "tasks": ["suicide_risk", "cognitive_distortion"],
        "engine": {"kind": "echo", "delay_s": 0.5},
        "shard_rows": 5,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    return [str(BIN / "mentalglm"), "score", "job.yaml"]


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_where_it_stopped(
    command: list[str], run: Run, tmp_path: Path, signal_number: signal.Signals
) -> None:
    commits = tmp_path / "out" / "_run" / "commits"
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (commits.is_dir() and len(list(commits.glob("*.json"))) >= 3):
        time.sleep(0.1)
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=120)
    if signal_number == signal.SIGTERM:
        assert process.returncode == 75
        assert "mentalglm score job.yaml" in errors
    done = {path: path.stat().st_mtime_ns for path in commits.glob("*.json")}
    assert 3 <= len(done) < NUM_ROWS / 5
    assert not (tmp_path / "out" / "_SUCCESS").exists()

    result = run("mentalglm", "score", "job.yaml")

    assert result.returncode == 0, result.stderr
    table = pads.dataset(tmp_path / "out" / "data", partitioning="hive").to_table()
    assert table.num_rows == 2 * NUM_ROWS
    assert len(set(zip(table["post_id"].to_pylist(), table["task"].to_pylist(), strict=True))) == 2 * NUM_ROWS
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in done.items())


@pytest.mark.parametrize("words", ["score job.yaml --dry-run", "estimate job.yaml --rows 100 --set shard_rows=8"])
def test_a_run_that_is_stopped_before_its_config_is_read_says_how_to_go_on(tmp_path: Path, words: str) -> None:
    os.mkfifo(tmp_path / "job.yaml")
    command = [str(BIN / "mentalglm"), *words.split()]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ})
    with (tmp_path / "job.yaml").open("w"):  # opens when the command waits for its config
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"mentalglm {words}" in errors


def test_a_run_that_is_stopped_while_ray_starts_says_how_to_go_on(command: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ})
    while not any("gcs_server" in each.name() for each in psutil.Process(process.pid).children(recursive=True)):
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "mentalglm score job.yaml" in errors
    assert "Traceback" not in errors
