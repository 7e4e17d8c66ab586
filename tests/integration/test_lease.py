"""Jobs as processes of their own that want the same run, on a disk and on a real S3 server."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mentalglm.errors import InterruptedRunError
from mentalglm.scoring.run.lease import Lease, LeasedRunError, is_fenced, read_lease

BEAT_S, STALE_S = 0.5, 4.0

# Reads commands, one a line, and answers each with one line.
JOB = """
import sys
from mentalglm.errors import InterruptedRunError
from mentalglm.scoring.run.lease import Lease, LeasedRunError

uri, beat_interval_s, stale_after_s = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
print("ready", flush=True)
for line in sys.stdin:
    try:
        with Lease.acquire(uri, beat_interval_s=beat_interval_s, stale_after_s=stale_after_s) as lease:
            print("held", lease.epoch, flush=True)
            while (line := sys.stdin.readline()) == "check\\n":
                lease.check()
                print("mine", flush=True)
        print("released", flush=True)
    except LeasedRunError as error:
        print("refused", error, flush=True)
    except InterruptedRunError as error:
        print("lost", error, flush=True)
"""


class Job:
    def __init__(self, uri: str, beat_interval_s: float, stale_after_s: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB, uri, str(beat_interval_s), str(stale_after_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def send(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, command: str) -> str:
        self.send(command)
        return self.answer()

    def end(self) -> None:
        self.process.kill()  # ends a stopped process too
        self.process.communicate()


StartJobs = Callable[..., list[Job]]


@pytest.fixture
def start(root: str) -> Iterator[StartJobs]:
    """Starts jobs that want the run, and ends them after the test."""
    started: list[Job] = []

    def start(num_jobs: int = 1, *, beat_interval_s: float = BEAT_S, stale_after_s: float = STALE_S) -> list[Job]:
        jobs = [Job(root, beat_interval_s, stale_after_s) for _ in range(num_jobs)]
        started.extend(jobs)
        assert [job.answer() for job in jobs] == ["ready"] * num_jobs
        return jobs

    yield start
    for job in started:
        job.end()


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest) -> str:
    if request.param == "s3":
        uri: str = request.getfixturevalue("s3")
        return uri
    return str(request.getfixturevalue("tmp_path") / "run")


def winner_of(jobs: list[Job]) -> tuple[Job, str]:
    """The one job that got the lease of those that all ask at once, and its answer; the others were refused."""
    for job in jobs:
        job.send("acquire")
    answers = {job: job.answer() for job in jobs}
    winners = [job for job, answer in answers.items() if answer.startswith("held")]
    assert len(winners) == 1, answers
    assert all(f"pid {winners[0].process.pid}, " in answers[job] for job in jobs if job is not winners[0]), answers
    return winners[0], answers[winners[0]]


def test_of_many_jobs_one_gets_the_run_and_one_of_the_others_when_that_dies(root: str, start: StartJobs) -> None:
    jobs = start(8, beat_interval_s=10, stale_after_s=60)
    first, answer = winner_of(jobs)
    assert answer == "held 1"
    os.kill(first.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, first.process.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie until someone looks
    jobs.remove(first)
    began = time.monotonic()
    second, answer = winner_of(jobs)
    assert answer == "held 2"
    assert time.monotonic() - began < 30, "a dead process of this machine is not waited for"
    assert second.ask("check") == "mine"
    assert second.ask("release") == "released"
    jobs.remove(second)
    _, answer = winner_of(jobs)
    assert answer == "held 3"


def test_a_suspended_job_finds_its_run_taken_when_it_wakes_up(root: str, start: StartJobs) -> None:
    [old] = start()
    assert old.ask("acquire") == "held 1"
    assert old.ask("check") == "mine"
    os.kill(old.process.pid, signal.SIGSTOP)
    silent_since = time.monotonic()
    contenders = start(3)
    while not (state := read_lease(root)) or not state.is_late:
        assert time.monotonic() - silent_since < 30
        time.sleep(0.1)
    new, answer = winner_of(contenders)
    assert answer == "held 2"
    assert time.monotonic() - silent_since > STALE_S - 2, "alive as far as anyone can tell, until its time is up"
    assert is_fenced(root, 1)
    assert not is_fenced(root, 2)
    os.kill(old.process.pid, signal.SIGCONT)
    answer = old.ask("check")
    assert answer.startswith("lost"), answer
    assert f"taken over by host {os.uname().nodename}, pid {new.process.pid}" in answer or "not be renewed" in answer
    assert new.ask("check") == "mine"
    assert old.ask("acquire").startswith("refused")
    state = read_lease(root)
    assert state is not None
    assert (state.epoch, state.released, state.owner.pid) == (2, False, new.process.pid)


def test_a_job_that_wakes_up_before_anyone_took_over_goes_on(root: str, start: StartJobs) -> None:
    [job] = start(beat_interval_s=0.2, stale_after_s=1)
    assert job.ask("acquire") == "held 1"
    os.kill(job.process.pid, signal.SIGSTOP)
    time.sleep(1.5)  # longer than its time, but nobody took over
    os.kill(job.process.pid, signal.SIGCONT)
    assert job.ask("check") == "mine"
    assert job.ask("release") == "released"


def test_a_lease_is_renewed_as_long_as_the_job_lasts(root: str) -> None:
    with Lease.acquire(root, beat_interval_s=BEAT_S, stale_after_s=STALE_S) as lease:
        lease.progress({"statuses": {"ok": 7}})
        deadline = time.monotonic() + STALE_S + 2
        while time.monotonic() < deadline:
            state = read_lease(root)
            assert state is not None
            assert not state.is_stale
            time.sleep(0.25)
        assert state is not None
        assert state.progress == {"statuses": {"ok": 7}}
        with pytest.raises(LeasedRunError):
            Lease.acquire(root, tell=lambda line: None)
        lease.check()
    state = read_lease(root)
    assert state is not None
    assert state.released
    assert "lease" not in {thread.name for thread in threading.enumerate()}


def test_a_lost_lease_stays_as_the_new_holder_left_it(root: str) -> None:
    with Lease.acquire(root, beat_interval_s=60, stale_after_s=0.5) as old:
        time.sleep(2.5)  # S3 counts whole seconds
        with Lease.acquire(root, tell=lambda line: None) as new:
            with pytest.raises(InterruptedRunError, match="taken over"):
                old.check()
            new.check()
    state = read_lease(root)
    assert state is not None
    assert (state.epoch, state.released) == (2, True)
