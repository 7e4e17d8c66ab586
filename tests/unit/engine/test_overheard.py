"""The cause of a failed start is found in what processes say, and nothing of that is kept from the log."""

import os
import subprocess
import sys
import time

import pytest

from mentalglm.engine.overheard import overhear

LOG = """\
(EngineCore pid=7) INFO 11-26 08:05:20 [core.py:1] loading
(Worker pid=8) ERROR 11-26 08:05:24 [multiproc_executor.py:1063]     raise ValueError(
(Worker pid=8) ERROR 11-26 08:05:24 [multiproc_executor.py:1063] torch.OutOfMemoryError: CUDA out of memory: 9 GiB
(EngineCore pid=7) ERROR 11-26 08:05:24 [core.py:1510] RuntimeError: Worker failed with error 'CUDA out of memory'
"""


def test_the_first_error_of_any_process_is_the_cause_and_all_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    with overhear() as overheard:
        code = f"import sys; sys.stdout.write({LOG!r}); sys.stderr.write('and this\\n')"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert overheard.cause() == "torch.OutOfMemoryError: CUDA out of memory: 9 GiB"
    print("afterwards", flush=True)
    out, errors = capfd.readouterr()
    assert out == LOG + "afterwards\n"
    assert errors == "and this\n"


def test_where_nobody_speaks_of_an_error_there_is_no_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mentalglm.engine.overheard._PATIENCE_S", 0.1)
    with overhear() as overheard:
        subprocess.run([sys.executable, "-c", "print('loading 3 errors')"], check=True)
        assert overheard.cause() is None


def test_a_process_that_outlives_the_listening_can_go_on_writing(capfd: pytest.CaptureFixture[str]) -> None:
    with overhear():
        code = "import sys, time; sys.stdin.read(); print('late', flush=True)"
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    process.communicate()
    assert process.returncode == 0
    seen = ""
    for _ in range(100):
        seen += capfd.readouterr().out
        if seen:
            break
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.02)"], check=True)
    assert seen == "late\n"


def test_a_process_goes_on_also_where_nobody_takes_what_it_writes() -> None:
    stdout = os.dup(1)
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(writing)
    try:
        with overhear() as overheard:
            code = "import sys; [print(line, end='', flush=True) for line in sys.stdin]; print('end: Error: x')"
            process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True)
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
    os.close(reading)  # a full disk, or a terminal that is gone
    assert process.stdin is not None
    for _ in range(3):
        process.stdin.write("loading\n")
        process.stdin.flush()
        time.sleep(0.05)  # each line by itself
    process.stdin.close()
    assert process.wait(30) == 0
    assert overheard.cause() == "Error: x"
