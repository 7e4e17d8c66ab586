"""What an engine has started ends with the process that started it, also with one that is killed; nothing else does."""

import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from mentalglm.engine.orphans import reaped

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
# An engine that starts another process later, when nobody listens any more.
ENGINE = f"""
import subprocess, time
time.sleep(0.5)
print(subprocess.Popen({SLEEPER!r}, stdout=subprocess.DEVNULL).pid, flush=True)
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys
from mentalglm.engine.orphans import reaped
before = subprocess.Popen({SLEEPER!r}, stdout=subprocess.DEVNULL)
with reaped() as reaper:
    engine = subprocess.Popen([sys.executable, "-c", {ENGINE!r}], stdout=subprocess.PIPE, text=True)
after = subprocess.Popen({SLEEPER!r}, stdout=subprocess.DEVNULL)
print(before.pid, after.pid, engine.pid, engine.stdout.readline().strip(), flush=True)
sys.stdin.read()
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.mark.timeout(90)
@pytest.mark.parametrize("is_killed", [True, False])
def test_an_engine_ends_with_the_process_that_asks_it_and_nothing_else_does(is_killed: bool) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    *others, engine, worker = map(int, parent.stdout.readline().split())
    try:
        assert not any(map(is_gone, [*others, engine, worker]))
        if is_killed:
            parent.kill()
        assert parent.stdin is not None
        parent.stdin.close()
        parent.wait(30)
        wait_until(lambda: is_gone(engine) and is_gone(worker))
        assert not any(map(is_gone, others))
    finally:
        for pid in others:
            psutil.Process(pid).kill()


def test_an_engine_that_was_ended_leaves_nothing() -> None:
    with reaped() as reaper:
        process = subprocess.Popen(SLEEPER)
    other = subprocess.Popen(SLEEPER)
    reaper.end()
    assert process.wait(10) == -9
    assert other.poll() is None
    other.kill()
    other.wait()
    reaper.end()
