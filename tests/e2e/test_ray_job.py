"""`ray job submit` to a cluster of our own, with token authentication on."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import yaml

from mentalglm.scoring.run.lease import read_lease
from mentalglm.scoring.status import read_status
from tests.e2e.conftest import BIN, REPOSITORY
from tests.integration.conftest import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node on its own ports and in its own folder; yields the environment that reaches it."""
    # Ray puts sockets into its folder, and a socket's path may have 107 characters at most.
    folder = tmp_path_factory.getbasetemp().parent / f"ray{os.getpid()}"
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", "PATH": f"{BIN}:{os.environ['PATH']}"}
    subprocess.run(
        [BIN / "ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True, umask=0o077
    )
    port, dashboard = free_port(), free_port()
    head = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1",
            f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
            f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
            f"--temp-dir={folder}", "--disable-usage-stats", "--object-store-memory=200000000",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(address, head)
        yield environment | {"RAY_ADDRESS": address}
    finally:
        # --block ends its own Ray processes on SIGTERM, and only those.
        head.terminate()
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


def _wait_for(address: str, head: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert head.poll() is None, "ray start ended at once"
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return  # up, and it wants a token
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError("the cluster was not up in 120 s")


def test_a_submitted_job_scores_and_a_caller_without_a_token_is_refused(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"post_id": ["1", "2", "3"], "text": ["一", "二", "三"]}), tmp_path / "posts.parquet")
    job = {
        "input": {"uri": str(tmp_path / "posts.parquet")},
        "output": {"uri": str(tmp_path / "out")},
        "tasks": ["suicide_risk", "cognitive_distortion"],
        "engine": {"kind": "echo"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    result = subprocess.run(
        [REPOSITORY / "cluster" / "submit.sh", str(tmp_path / "job.yaml")],
        cwd=REPOSITORY, env=cluster, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 predictions" in result.stdout
    assert pads.dataset(tmp_path / "out" / "data", partitioning="hive").to_table().num_rows == 6
    relative = subprocess.run(
        [REPOSITORY / "cluster" / "submit.sh", str(tmp_path / "job.yaml"), "--set", "output.uri=out"],
        cwd=REPOSITORY, env=cluster, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert relative.returncode != 0
    assert "output.uri = out: is relative" in relative.stdout
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{cluster['RAY_ADDRESS']}/api/jobs/", timeout=10)
    assert caught.value.code == 401


def test_a_stopped_job_gives_its_run_back(cluster: dict[str, str], tmp_path: Path) -> None:
    num_rows = 200
    table = pa.table({"post_id": [str(n) for n in range(num_rows)], "text": [f"第{n}条" for n in range(num_rows)]})
    pq.write_table(table, tmp_path / "posts.parquet")
    job = {
        "input": {"uri": str(tmp_path / "posts.parquet")},
        "output": {"uri": str(tmp_path / "out")},
        "tasks": ["suicide_risk"],
        "engine": {"kind": "echo", "delay_s": 1.0},
        "shard_rows": 2,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))

    def ray_job(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [BIN / "ray", "job", *arguments], cwd=REPOSITORY, env=cluster, capture_output=True, text=True, timeout=300
        )

    command = ["--working-dir", ".", "--runtime-env", "cluster/runtime-env.yaml", "--submission-id", "stopme"]
    result = ray_job("submit", "--no-wait", *command, "--", "python", "-m", "jobs.score", str(tmp_path / "job.yaml"))
    assert result.returncode == 0, result.stdout + result.stderr
    commits = tmp_path / "out" / "_run" / "commits"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (commits.is_dir() and len(list(commits.iterdir())) >= 3):
        time.sleep(0.2)
    lease = read_lease(str(tmp_path / "out"))
    assert lease is not None
    assert lease.owner.job == "stopme"

    ray_job("stop", "stopme")

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (lease := read_lease(str(tmp_path / "out"))).released:  # type: ignore[union-attr]
        time.sleep(0.2)
    assert lease.released
    assert "mentalglm score" in ray_job("logs", "stopme").stdout  # how to go on
    status = read_status(str(tmp_path / "out"))
    assert (status.state, status.num_expected) == ("interrupted", num_rows)
