"""Any process may be killed at any moment: the table in the end equals the table without faults, each row once.

The commands run as a user types them. A kill schedule is drawn from a seed; the long test's figures are printed:
`pytest -m long -s tests/integration/test_random_kills.py`.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import yaml

from mentalglm import storage

NUM_ROWS = 400
SHARD_ROWS = 2
TASKS = ["suicide_risk", "cognitive_distortion"]
MENTALGLM = str(Path(sys.executable).parent / "mentalglm")
# What each process is called, in words; the driver is the command itself.
TARGETS = {
    "driver": "",
    "worker": "ray::MapWorker",
    "raylet": "raylet/raylet",
    "gcs": "gcs/gcs_server",
    "board": "ray::RunBoard",
    "engine": "VLLM::EngineCore",
}


@dataclass
class Figures:
    """What a kill schedule did."""

    num_runs: int = 0
    num_kills: int = 0
    num_resumes: int = 0
    num_rows: int = 0
    num_lost: int = 0
    num_duplicated: int = 0
    resume_s: list[float] = field(default_factory=list)
    """From each start of the command to its first new commit."""
    killed: dict[str, int] = field(default_factory=dict)


class Victim:
    """A score job that is run again and again, and killed."""

    def __init__(self, folder: Path, output: str, job: dict[str, Any]) -> None:
        self._folder = folder
        self.output = output
        self.figures = Figures()
        self._resume_s: list[float] = []
        self._killed: Counter[str] = Counter()
        (folder / "job.yaml").write_text(yaml.safe_dump(job | {"output": {"uri": output, "target_file_mb": 0.02}}))

    def run(self, schedule: random.Random, targets: list[str], num_kills: int) -> Figures:
        """Runs the job to its end through `num_kills` kills; checks after each what a reader of `data/` sees."""
        name = ""
        while True:
            left = num_kills - self.figures.num_kills
            before = self._num_commits()
            started = time.monotonic()
            process = psutil.Popen(
                [MENTALGLM, "score", "job.yaml"],
                cwd=self._folder,
                stdout=subprocess.DEVNULL,
                stderr=(log := (self._folder / "log").open("wb")),
            )
            with log:
                if left:
                    self._wait_for_commit(process, before, started)
                while left and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    time.sleep(schedule.uniform(0, 1.5))
                    name = schedule.choice(targets)
                    if not _kill(process, name):
                        continue
                    self._killed[name] += 1
                    self.figures.num_kills += 1
                    left -= 1
                    self._check_once()
                    if name != "worker":
                        break
                if left or _is_dying(process):
                    process.wait(240)
                else:
                    process.wait(600)
            self.figures.num_resumes += 1
            if process.returncode == 0:
                return self._finish()
            # Ray's core ends the driver at once, with 1 and without a word, when its own node's raylet or GCS is gone.
            allowed = {75, -9} | ({1} if name in ("raylet", "gcs") else set())
            assert process.returncode in allowed, (name, (self._folder / "log").read_text()[-2000:])

    def _wait_for_commit(self, process: psutil.Popen, before: int, started: float) -> None:
        while process.poll() is None and time.monotonic() - started < 200:
            if self._num_commits() > before:
                self._resume_s.append(time.monotonic() - started)
                return
            time.sleep(0.05)

    def _num_commits(self) -> int:
        return len(storage.list_names(storage.join(self.output, "_run", "commits")))

    def _check_once(self) -> None:
        rows = Counter(read(self.output))
        assert not [key for key, n in rows.items() if n > 1], "a reader sees a row twice"

    def _finish(self) -> Figures:
        rows = Counter((task, post_id) for task, post_id, *_ in read(self.output))
        expected = {(task, str(row)) for task in TASKS for row in range(NUM_ROWS)}
        self.figures.num_rows = sum(rows.values())
        self.figures.num_lost = len(expected - rows.keys())
        self.figures.num_duplicated = sum(n - 1 for n in rows.values())
        self.figures.resume_s = self._resume_s
        self.figures.killed = dict(self._killed)
        assert not storage.list_names(storage.join(self.output, "_run", "shards", f"task={TASKS[0]}"))
        return self.figures


def _kill(process: psutil.Popen, name: str) -> bool:
    try:
        victims = [process] if name == "driver" else process.children(recursive=True)
        victims = [each for each in victims if TARGETS[name] in " ".join(each.cmdline())]
        if not victims:
            return False
        victims[0].kill()
        return True
    except psutil.Error:
        return False


def _is_dying(process: psutil.Popen) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def read(output: str) -> list[tuple[Any, ...]]:
    """(task, post id, status, labels, explanation) of every row that a reader of `data/` sees."""
    filesystem, path = storage.filesystem(f"{output}/data")
    try:
        table = pads.dataset(path, format="parquet", partitioning="hive", filesystem=filesystem).to_table()
    except FileNotFoundError:
        return []
    if not table.num_rows:
        return []
    columns = ["task", "post_id", "status", "labels", "explanation"]
    return [
        (row["task"], row["post_id"], row["status"], tuple(row["labels"] or ()), row["explanation"])
        for row in table.select(columns).to_pylist()
    ]


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    texts = [f"第{n}条：今天{'很' * (n % 7)}累，不想说话。" for n in range(NUM_ROWS)]
    table = pa.table({"post_id": [str(n) for n in range(NUM_ROWS)], "text": texts})
    pq.write_table(table, tmp_path / "posts.parquet", row_group_size=64)
    return {
        "input": {"uri": "posts.parquet"},
        "tasks": TASKS,
        "engine": {"kind": "echo", "delay_s": 0.5},
        "shard_rows": SHARD_ROWS,
    }


@pytest.fixture
def undisturbed(tmp_path: Path, job: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table without faults."""
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    changes = {"input": {"uri": str(tmp_path / "posts.parquet")}, "engine": {"kind": "echo"}}
    Victim(folder, str(folder / "out"), job | changes).run(random.Random(0), [], 0)
    return sorted(read(str(folder / "out")))


TARGETS_HERE = ["driver", "driver", "worker", "worker", "raylet", "gcs", "board"]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_the_table_is_the_same_after_ten_kills(
    place: str, tmp_path: Path, job: dict[str, Any], undisturbed: list[tuple[Any, ...]], request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue("s3") if place == "s3" else str(tmp_path)
    check(tmp_path, root, job, undisturbed, seed=len(place), num_kills=10)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_the_table_is_the_same_after_many_kills(
    place: str, tmp_path: Path, job: dict[str, Any], undisturbed: list[tuple[Any, ...]], request: pytest.FixtureRequest
) -> None:
    job["shard_rows"] = 1
    root = request.getfixturevalue("s3") if place == "s3" else str(tmp_path)
    check(tmp_path, root, job, undisturbed, seed=int(os.environ.get("KILL_SEED", "1")), num_kills=60)


def check(
    folder: Path, root: str, job: dict[str, Any], undisturbed: list[tuple[Any, ...]], *, seed: int, num_kills: int
) -> None:
    """Runs the job, again and again into new outputs, through a schedule of kills; compares each table in the end."""
    schedule = random.Random(seed)
    total = Figures()
    killed: Counter[str] = Counter()
    while total.num_kills < num_kills:
        victim = Victim(folder, f"{root}/out-{total.num_runs}", job)
        figures = victim.run(schedule, TARGETS_HERE, num_kills - total.num_kills)
        killed.update(figures.killed)
        total = Figures(
            num_runs=total.num_runs + 1,
            num_kills=total.num_kills + figures.num_kills,
            num_resumes=total.num_resumes + figures.num_resumes,
            num_rows=total.num_rows + figures.num_rows,
            num_lost=total.num_lost + figures.num_lost,
            num_duplicated=total.num_duplicated + figures.num_duplicated,
            resume_s=total.resume_s + figures.resume_s,
            killed=dict(killed),
        )
        assert (figures.num_lost, figures.num_duplicated) == (0, 0)
        assert sorted(read(victim.output)) == undisturbed
    shown = asdict(total) | {
        "resume_s": f"median {statistics.median(total.resume_s):.1f}, max {max(total.resume_s):.1f}"
    }
    print(json.dumps(shown), flush=True)
    assert set(killed) >= {"driver", "worker"}
