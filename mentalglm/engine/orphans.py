"""No process of an engine outlives the process that asks it, however that ends.

vLLM's processes do not notice that the one which started them is gone: where Ray's raylet dies with it, nobody is left
to end them, and they hold a GPU's memory for ever. So a small process waits for the end, and ends what it leaves.
"""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil  # type: ignore[import-untyped]

_MARK = "MENTALGLM_ENGINE"


class Reaper:
    """Ends the processes that were started under its mark, once this process is gone or `end` is called."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(16)
        # In a session of its own: what ends this process's group must not end it first.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "mentalglm.engine.orphans", self.mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end(self) -> None:
        """Ends what is left of those processes, and waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(30)


@contextmanager
def reaped() -> Iterator[Reaper]:
    """What is started meanwhile, by any thread, and what that starts later, bears the mark of a new reaper."""
    reaper = Reaper()
    before = os.environ.get(_MARK)
    os.environ[_MARK] = reaper.mark
    try:
        yield reaper
    finally:
        if before is None:
            del os.environ[_MARK]
        else:
            os.environ[_MARK] = before


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _main(mark: str) -> None:
    sys.stdin.buffer.read()  # until the other end is closed, which the system does for who is killed
    while victims := list(_marked(mark)):  # again: one may have started another meanwhile
        for process in victims:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(victims, timeout=1)


if __name__ == "__main__":
    _main(sys.argv[1])
