"""Any process may be killed at any moment: the table in the end equals the table without faults, each row once.

The commands run as a user types them. A kill schedule is drawn from a seed; its figures are printed as a line of JSON:
`KILL_SEED=1 pytest -m long -s tests/integration/test_random_kills.py`; KILLS changes the number of kills.
"""

import io
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import yaml

from mentalglm import storage
from mentalglm.corpus.synthetic import generate_posts
from mentalglm.scoring.gc import collect
from tests.integration.fault_proxy import FaultProxy

MENTALGLM = str(Path(sys.executable).parent / "mentalglm")
TASKS = ["suicide_risk", "cognitive_distortion"]
NUM_SHARDS, SHARDS_PER_GROUP, NUM_FILES = 60, 10, 2
INPUT_BYTES = 1 << 20
KILLS_PER_RUN = 10
# How the name of each process begins; the driver is the command itself.
PROCESSES = {
    "worker": "ray::MapWorker",
    "engine": "VLLM::Engine",
    "raylet": "raylet",
    "gcs": "gcs_server",
    "board": "ray::RunBoard",
}
# What the command may end with after a kill, beside 0. Ray's core ends the driver at once, with 1 and without a word,
# when its own node's raylet or GCS is gone. An engine that ends while it loads is one that cannot be started.
EXIT_CODES = {"driver": {-9}, "worker": set(), "engine": set(), "loading engine": {2, 75}}
EXIT_CODES |= {"board": {75}, "raylet": {75, 1}, "gcs": {75, 1}}
# Ray gives a lost GCS a minute to come back, and takes a raylet for lost when it has refused five calls, 3 s apart.
RAY_SETTINGS = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5", "RAY_health_check_period_ms": "1000"}
# More in one life of the command, and no system could tell the kills from those of a row that kills.
MOST_IN_A_LIFE = {"worker": 3, "engine": 1}

Row = tuple[Any, ...]
"""Task, post id, status, labels, explanation, original, and what the crawl had beside the text."""


@dataclass(frozen=True)
class Kind:
    """A kind of job to kill."""

    engine: dict[str, Any]
    shard_rows: int
    targets: list[str]
    """One of them is killed at each point but the last; the more often it stands here, the more often it is."""

    changes: dict[str, Any] = field(default_factory=dict)
    """Of the config."""

    @property
    def num_rows(self) -> int:
        return NUM_SHARDS * self.shard_rows


KINDS = {
    "echo": Kind(
        engine={"kind": "echo", "delay_s": 0.5},
        shard_rows=2,
        targets=["driver", "driver", "worker", "worker", "worker", "raylet", "gcs", "board"],
    ),
    "dedup": Kind(
        engine={"kind": "echo", "delay_s": 0.5},
        shard_rows=2,
        targets=["driver", "worker", "raylet"],
        changes={"dedup": "corpus"},
    ),
    "vllm": Kind(
        engine={"kind": "vllm", "max_num_seqs": 32},
        shard_rows=10,
        targets=["driver", "worker", "engine", "raylet"],
    ),
}


class KillPoint(NamedTuple):
    """When a process dies: a while after so many shards are committed, as soon as there is such a process."""

    target: str
    num_commits: int
    wait: float
    """Of the while, from 0 to 1: the time of a start, where this life of the command has committed nothing yet."""


def draw(schedule: random.Random, targets: list[str], num_kills: int) -> deque[KillPoint]:
    """Kills all over the life of one run; the last hits the driver when all is committed and not yet published."""
    names: list[str] = []
    while not names or not _is_told_from_a_bad_row(names) or (num_kills > len(targets) and {*names} != {*targets}):
        names = [*schedule.choices(targets, k=num_kills - 1), "driver"]
    # Not in the last third: a run that has lost its raylet goes on for seconds, and is not to end before the kills.
    places = sorted(schedule.choices(range(NUM_SHARDS * 2 // 3), k=num_kills - 1))
    return deque(
        KillPoint(name, place, schedule.random()) for name, place in zip(names, [*places, NUM_SHARDS], strict=True)
    )


def _is_told_from_a_bad_row(names: list[str]) -> bool:
    life: Counter[str] = Counter()
    for name in names:
        life[name] += 1
        if name not in MOST_IN_A_LIFE:
            life.clear()
        elif life[name] > MOST_IN_A_LIFE[name]:
            return False
    return True


@dataclass
class Figures:
    """What kill schedules did, and what it cost."""

    num_runs: int = 0
    """Outputs that were brought to their end."""
    num_starts: int = 0
    """Of the command."""
    killed: Counter[str] = field(default_factory=Counter)
    """Process -> kills."""
    killed_while: Counter[str] = field(default_factory=Counter)
    """`loading` (nothing committed since the start or the kill before), `scoring`, `publishing` (all is) -> kills."""
    num_rows: int = 0
    num_lost: int = 0
    num_duplicated: int = 0
    start_s: list[float] = field(default_factory=list)
    """From the first start of a command to its first commit."""
    resume_s: list[float] = field(default_factory=list)
    """The same of each later start that came so far."""
    left_behind: Counter[str] = field(default_factory=Counter)
    """Process -> how many were still there two minutes after their run."""
    num_bytes_read: int = 0
    """Of the input, by all processes."""


class Victim:
    """A score job that is run again and again into one output, and killed."""

    def __init__(self, folder: Path, output: str, config: dict[str, Any], start_s: float, figures: Figures) -> None:
        self._folder = folder
        self._start_s = start_s
        self._figures = figures
        self.output = output
        (folder / "job.yaml").write_text(yaml.safe_dump(config | {"output": {"uri": output, "target_file_mb": 0.1}}))

    def run(self, points: deque[KillPoint]) -> None:
        """Runs the job to its end through the kills. Points that it ends before are left."""
        is_over = self._live(points, self._figures.start_s)
        while not is_over:
            is_over = self._live(points, self._figures.resume_s)
        self._figures.num_runs += 1
        deadline = time.monotonic() + 120
        while (left := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                self._figures.left_behind[process.name()] += 1
                process.kill()

    def _live(self, points: deque[KillPoint], first_commit_s: list[float]) -> bool:
        """One start of the command, until it ends, by itself or of a kill. Whether the run is complete."""
        self._figures.num_starts += 1
        num_before = num_quiet = self._num_commits()  # at the start; at the start or the last kill
        is_new = False  # whether this life has committed anything
        due_s: float | None = None
        killed: list[str] = []
        exit_codes = {0}
        started = time.monotonic()
        with (self._folder / "log").open("wb") as log:
            process = psutil.Popen(
                [MENTALGLM, "score", "job.yaml"],
                cwd=self._folder,
                env=os.environ | RAY_SETTINGS,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            while process.poll() is None:
                time.sleep(0.05)
                num_commits, now_s = self._num_commits(), time.monotonic() - started
                if num_commits > num_before and not is_new:
                    # A worker outlives its driver for two seconds: what is committed before this life has one is its.
                    is_new = _find(process, "worker") is not None
                    if is_new:
                        first_commit_s.append(now_s)
                    else:
                        num_before = num_quiet = num_commits
                if not points:
                    continue
                # Without its raylet or GCS the life is as good as over: the next kill follows at once.
                is_dying = not {"raylet", "gcs"}.isdisjoint(killed) and points[0].num_commits < NUM_SHARDS
                if num_commits < points[0].num_commits and not is_dying:
                    continue
                if due_s is None:
                    is_starting = not (is_new or is_dying or num_commits == NUM_SHARDS)
                    due_s = now_s + points[0].wait * (self._start_s if is_starting else 0.5)
                if now_s < due_s or not _kill(process, points[0].target):
                    continue
                name, due_s = points.popleft().target, None
                at_rest = "publishing" if num_commits == NUM_SHARDS else "loading"
                self._figures.killed[name] += 1
                self._figures.killed_while[at_rest if num_commits in (NUM_SHARDS, num_quiet) else "scoring"] += 1
                may_be_loading = bool(killed) or not is_new
                exit_codes |= EXIT_CODES["loading engine" if may_be_loading and name == "engine" else name]
                killed.append(name)
                num_quiet = num_commits
                assert max(rows_by_id(self.output).values(), default=1) == 1, "a reader sees a row twice"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        exit_codes = EXIT_CODES["driver"] if "driver" in killed else exit_codes
        assert process.returncode in exit_codes, (killed, (self._folder / "log").read_text()[-2000:])
        return process.returncode == 0

    def _num_commits(self) -> int:
        return len(storage.list_names(storage.join(self.output, "_run", "commits")))

    def _processes(self) -> list[psutil.Process]:
        """Those of any start that are still there. Ray's agents, which stay for a minute, read and write nothing."""
        return [
            process
            for process in psutil.process_iter(["name", "cwd"])
            if process.info["cwd"] == str(self._folder) and process.info["name"].startswith(tuple(PROCESSES.values()))
        ]


def _find(process: psutil.Popen, target: str) -> psutil.Process | None:
    try:
        family = [process] if target == "driver" else process.children(recursive=True)
        names = [(each, each.name()) for each in family]
    except psutil.Error:  # one ended just now
        return None
    return next((each for each, name in names if target == "driver" or name.startswith(PROCESSES[target])), None)


def _kill(process: psutil.Popen, target: str) -> bool:
    """Whether there is such a process, and the kill has ended it."""
    victim = _find(process, target)
    if victim is None:
        return False
    try:
        victim.suspend()  # it cannot end by itself between the look and the kill
        while (status := victim.status()) != psutil.STATUS_STOPPED:
            if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return False
        victim.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def read(output: str) -> list[Row]:
    """Every row that a reader of `data/` sees, in the order of task and post."""
    filesystem, path = storage.filesystem(f"{output}/data")
    try:
        dataset = pads.dataset(path, format="parquet", partitioning="hive", filesystem=filesystem)
    except FileNotFoundError:
        return []
    if not dataset.files:
        return []
    table = dataset.to_table(["task", "post_id", "status", "labels", "explanation", "duplicate_of", "raw"])
    return sorted(tuple(row.values()) for row in table.to_pylist())


def rows_by_id(output: str) -> Counter[tuple[str, str]]:
    """(task, post id) -> how many rows a reader sees."""
    return Counter((task, post_id) for task, post_id, *_ in read(output))


@dataclass(frozen=True)
class Subject:
    """A job, and what it does when nobody disturbs it."""

    kind: Kind
    config: dict[str, Any]
    """But for the output."""
    input_key: str
    """What the keys of its input begin with."""
    num_input_bytes: int
    table: list[Row]
    figures: Figures


@pytest.fixture(scope="module")
def subject(
    request: pytest.FixtureRequest, fault_proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    kind = KINDS[request.param]
    input_key = f"{os.urandom(6).hex()}/posts/"
    num_input_bytes = write_input(f"s3://scored/{input_key}", kind)
    config = {
        "input": {"uri": f"s3://scored/{input_key}", "keep_columns": ["raw"]},
        "tasks": TASKS,
        "engine": kind.engine,
        "shard_rows": kind.shard_rows,
        "s3": {"endpoint": fault_proxy.url},
        **kind.changes,
    }
    figures = Figures()
    folder = tmp_path_factory.mktemp("undisturbed")
    fault_proxy.reset()
    engine = kind.engine | ({"delay_s": 0.0} if "delay_s" in kind.engine else {})
    Victim(folder, str(folder / "out"), config | {"engine": engine}, 0, figures).run(deque())
    figures.num_bytes_read = num_bytes_read(fault_proxy, input_key)
    table = read(str(folder / "out"))
    assert [row[:3] for row in table] == sorted((task, str(n), "ok") for task in TASKS for n in range(kind.num_rows))
    return Subject(kind, config, input_key, num_input_bytes, table, figures)


def write_input(uri: str, kind: Kind) -> int:
    """Posts with so much beside their text that what is read of a file can be told from its footer; returns bytes."""
    noise = random.Random(5)
    table = pa.table(
        {
            "post_id": [str(n) for n in range(kind.num_rows)],
            "text": [post.text for post in generate_posts(kind.num_rows // 2, seed=9)] * 2,  # each is posted again
            "raw": [noise.randbytes(INPUT_BYTES // kind.num_rows) for _ in range(kind.num_rows)],
        }
    )
    num_bytes = 0
    for file in range(NUM_FILES):
        sink = io.BytesIO()
        rows = table.slice(file * kind.num_rows // NUM_FILES, kind.num_rows // NUM_FILES)
        pq.write_table(rows, sink, row_group_size=SHARDS_PER_GROUP * kind.shard_rows)
        storage.put(storage.join(uri, f"{file}.parquet"), sink.getvalue())
        num_bytes += len(sink.getvalue())
    return num_bytes


def num_bytes_read(proxy: FaultProxy, input_key: str) -> int:
    """Of the input, since the proxy was reset."""
    return sum(num_bytes for key, num_bytes in proxy.reads if key.startswith(input_key))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("place", "seed"), [("disk", 14), pytest.param("s3", 41, marks=pytest.mark.long)]
)  # few starts of Ray
@pytest.mark.parametrize("subject", ["echo"], indirect=True)
def test_the_table_is_the_same_after_ten_kills(
    subject: Subject, place: str, seed: int, s3: str, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    check(subject, tmp_path, s3 if place == "s3" else str(tmp_path), fault_proxy, seed=seed, num_kills=10)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("place", ["disk", "s3"])
@pytest.mark.parametrize(("subject", "num_kills"), [("echo", 60), ("dedup", 10), ("vllm", 8)], indirect=["subject"])
def test_the_table_is_the_same_after_many_kills(
    subject: Subject, num_kills: int, place: str, s3: str, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    seed, num_kills = int(os.environ.get("KILL_SEED", "1")), int(os.environ.get("KILLS", num_kills))
    check(subject, tmp_path, s3 if place == "s3" else str(tmp_path), fault_proxy, seed=seed, num_kills=num_kills)


def check(subject: Subject, folder: Path, root: str, proxy: FaultProxy, *, seed: int, num_kills: int) -> None:
    """Runs the job through schedules of kills, in one output after the other; compares each table in the end."""
    schedule = random.Random(seed)
    figures = Figures()
    [start_s] = subject.figures.start_s
    proxy.reset()
    points: deque[KillPoint] = deque()  # those that a run has ended before are made in the next
    while (num_left := num_kills - figures.killed.total()) > 0:
        victim = Victim(folder, f"{root}/out-{figures.num_runs}", subject.config, start_s, figures)
        points = points or draw(schedule, subject.kind.targets, min(num_left, KILLS_PER_RUN))
        victim.run(points)
        rows, expected = rows_by_id(victim.output), {(task, post_id) for task, post_id, *_ in subject.table}
        figures.num_rows += rows.total()
        figures.num_lost += len(expected - rows.keys())
        figures.num_duplicated += rows.total() - len(rows)
        if read(victim.output) != subject.table:
            break
        collect(victim.output, min_age_s=0)  # a driver that dies while it publishes leaves shards that are in parts
        assert not any(storage.has_files(storage.join(victim.output, "_run", name)) for name in ("shards", "tmp"))
    figures.num_bytes_read = num_bytes_read(proxy, subject.input_key)
    print(json.dumps({"seed": seed, "output": "s3" if storage.is_s3(root) else "disk"} | shown(figures, subject)))
    assert (figures.num_lost, figures.num_duplicated) == (0, 0)
    assert not figures.left_behind
    assert read(victim.output) == subject.table
    assert num_kills <= len(subject.kind.targets) or set(figures.killed) == set(subject.kind.targets)


def shown(figures: Figures, subject: Subject) -> dict[str, Any]:
    """The figures as they are printed."""
    undisturbed = figures.num_runs * subject.figures.num_bytes_read
    return {
        "engine": subject.kind.engine["kind"],
        "num_kills": figures.killed.total(),
        "killed": dict(figures.killed.most_common()),
        "killed_while": dict(figures.killed_while.most_common()),
        "num_runs": figures.num_runs,
        "num_resumes": figures.num_starts - figures.num_runs,
        "num_rows": figures.num_rows,
        "num_lost": figures.num_lost,
        "num_duplicated": figures.num_duplicated,
        "left_behind": dict(figures.left_behind),
        "resume_s": {
            "median": round(statistics.median(figures.resume_s), 1) if figures.resume_s else None,
            "max": round(max(figures.resume_s), 1) if figures.resume_s else None,
        },
        "num_bytes_input": figures.num_runs * subject.num_input_bytes,
        "num_bytes_undisturbed": undisturbed,
        "num_bytes_read": figures.num_bytes_read,
        "num_bytes_read_again": figures.num_bytes_read - undisturbed,
    }
