"""Commands as a user types them: each in its own process, in a folder of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command of the environment in the test's folder; returns what it printed and its exit code."""

    def run(
        *command: str, stdin: str = "", timeout_s: float = 400, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=timeout_s,
            env={**os.environ, "COLUMNS": "200", "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
        )

    return run
