"""Commands as a user types them: each in its own process, in a folder of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run_in(
    folder: Path, *command: str, stdin: str = "", timeout_s: float = 400, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs a command of the environment in `folder`; returns what it printed and its exit code."""
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=timeout_s,
        env={**os.environ, "COLUMNS": "200", "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run_in` the test's own folder."""
    return partial(run_in, tmp_path)
