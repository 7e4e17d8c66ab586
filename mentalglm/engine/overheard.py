"""What an engine's processes say while they start: the cause of a failure is only there, not in the exception."""

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CAUSE = re.compile(r"(?:^|[\s\]])((?:\w+\.)*\w*(?:Error|Exception)): (\S.*)")
_MAX_LINES = 2000
_PATIENCE_S = 1.0


class Overheard:
    """The last lines that were written to stdout and stderr."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)

    def note(self, line: str) -> None:
        """Keeps one more line."""
        self._lines.append(line)

    def cause(self) -> str | None:
        """The first error among the lines, as `Class: message`; None where there is none. What was written just now
        is waited for a little."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            for line in list(self._lines):
                if match := _CAUSE.search(line):
                    return f"{match[1]}: {match[2]}".strip()
            time.sleep(0.05)
        return None


@contextmanager
def overhear() -> Iterator[Overheard]:
    """Listens to stdout and stderr of this process and of those that are started meanwhile, and passes all of it on.

    What is started meanwhile goes on writing through here until it ends. Not for code that has posts in hand.
    """
    overheard = Overheard()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    originals = {number: os.dup(number) for number in (1, 2)}
    try:
        for number, original in originals.items():
            reading, writing = os.pipe()
            os.dup2(writing, number)
            os.close(writing)
            threading.Thread(target=_pass_on, args=(reading, os.dup(original), overheard), daemon=True).start()
        yield overheard
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, original in originals.items():
            os.dup2(original, number)
            os.close(original)


def _pass_on(reading: int, writing: int, overheard: Overheard) -> None:
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as target:
        for line in source:
            overheard.note(line.decode("utf-8", "replace").rstrip())
            with suppress(OSError):  # a full disk, a closed terminal: who writes through here must not die of it
                target.write(line)
