"""The `mentalglm` command. Heavy packages are imported by the command that needs them: --help answers at once."""

import signal
import sys
from typing import Any

import typer
from rich.console import Console

from mentalglm.cli import evaluation, measure, scoring, tasks, training
from mentalglm.errors import UserError

app = typer.Typer(
    name="mentalglm",
    help="Explainable mental-health analysis of Chinese social-media posts, by the million.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for room in (scoring, training, evaluation, measure, tasks):  # the order of --help
    app.add_typer(room.commands)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with the code that DESIGN lists."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):  # a container without a locale still prints Chinese
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        app(args=arguments, standalone_mode=True)
    except UserError as error:
        _fail(error)


def _interrupt(*_: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # what ends a job takes seconds; to be impatient would spoil it
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _fail(error: UserError) -> None:
    Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
    sys.exit(error.exit_code)
