"""Commands about tasks and configs."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from mentalglm.config import (
    BaselineConfig,
    BenchConfig,
    EvalConfig,
    ReportConfig,
    ReviewConfig,
    ScoreConfig,
    TablesConfig,
    TrainConfig,
)
from mentalglm.config.base import json_schema
from mentalglm.errors import ConfigError

JOBS: dict[str, type[BaseModel]] = {
    "score": ScoreConfig,
    "train": TrainConfig,
    "baseline": BaselineConfig,
    "eval": EvalConfig,
    "report": ReportConfig,
    "tables": TablesConfig,
    "bench": BenchConfig,
    "review": ReviewConfig,
}

_PANEL = "Tasks and configs"

commands = typer.Typer()


@commands.command(rich_help_panel=_PANEL)
def parse(
    task: Annotated[str, typer.Option("--task", help="Name of a built-in task, or path of a task file.")],
    file: Annotated[Path | None, typer.Argument(help='JSON lines {"raw": ...}; standard input where left out.')] = None,
) -> None:
    """Read labels out of raw model answers: JSON lines in, JSON lines out."""
    from mentalglm.tasks import load_task, parse_row

    settings = load_task(task)
    try:
        text = (file.read_bytes() if file else sys.stdin.buffer.read()).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({type(error).__name__}); name a file of JSON lines") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file or 'standard input'}: not UTF-8; convert it") from None
    for number, line in enumerate(text.split("\n"), 1):  # and nowhere else: JSON may hold other line separators
        if not line.strip():
            continue
        try:
            raw = json.loads(line)["raw"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ConfigError(f'line {number}: not a JSON object with a key "raw"; write {{"raw": "..."}}') from None
        if not isinstance(raw, str):
            raise ConfigError(f'line {number}: "raw" is {type(raw).__name__}; give the answer as a string')
        print(json.dumps(parse_row(settings, raw), ensure_ascii=False))


@commands.command(rich_help_panel=_PANEL)
def labels(task: Annotated[str, typer.Argument(help="Name of a built-in task, or path of a task file.")]) -> None:
    """The label set of a task as JSON."""
    from mentalglm.tasks import label_rows, load_task

    print(json.dumps(label_rows(load_task(task)), ensure_ascii=False, indent=2))


@commands.command(rich_help_panel=_PANEL)
def schema(job: Annotated[str, typer.Argument(help=f"One of: {', '.join(JOBS)}.")]) -> None:
    """The JSON Schema of a job's config, for editors and for checking."""
    if job not in JOBS:
        raise ConfigError(f"job = {job!r}: not known; use one of {', '.join(JOBS)}")
    print(json.dumps(json_schema(JOBS[job]), ensure_ascii=False, indent=2))
