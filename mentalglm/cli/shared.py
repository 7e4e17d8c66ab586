"""What the commands share: their arguments, and what is said where they are interrupted."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mentalglm.config import S3Config, validate
from mentalglm.config.base import apply_override
from mentalglm.errors import ConfigError, InterruptedRunError

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The job's config.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key: a.b=value.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


@contextmanager
def resumable(*command: str, kept: str = "what is done is kept", **options: list[str] | None) -> Iterator[None]:
    """Turns SIGTERM and Ctrl-C into the exit code for them, with the command to go on."""
    try:
        yield
    except KeyboardInterrupt:
        words = [word for name, values in options.items() for value in values or [] for word in (f"--{name}", value)]
        again = shlex.join(["mentalglm", *command, *words])
        raise InterruptedRunError(f"interrupted; {kept}. To go on: {again}") from None


def configure_storage(overrides: list[str] | None) -> None:
    """For commands that take a run and no config. Raises: ConfigError for keys that are not of s3."""
    from mentalglm import storage

    changes: dict[str, Any] = {}
    for override in overrides or []:
        apply_override(changes, override)
    for key in changes.keys() - {"s3"}:
        raise ConfigError(f"--set {key}: is no setting of this command; it takes those of s3, like s3.endpoint=...")
    storage.configure(validate(S3Config, changes.get("s3") or {}, "--set"))
