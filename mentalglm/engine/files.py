"""The files that a model or an adapter is made of."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mentalglm.errors import ConfigError

MODEL_FILES = frozenset({".json", ".safetensors", ".jinja", ".model", ".txt"})
"""Suffixes of the files that decide what a model answers."""


def read_json(path: Path) -> dict[str, Any]:
    """A model's JSON file. Raises: ConfigError when it is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{path.parent}: {path.name} is missing or not JSON; is this the folder you mean?") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path.parent}: {path.name} is not a JSON object; is this the folder you mean?")
    return data


def digest_of(*folders: Path) -> str:
    """sha256 over the names and contents of the files in the folders that decide what a model answers."""
    total = hashlib.sha256()
    for root in folders:
        for path in _files(root):
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
        total.update(b"\n")
    return total.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Those files; a README may change."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix in MODEL_FILES:
            yield path


@contextmanager
def whole_folder(target: Path, key: str) -> Iterator[Path]:
    """A new folder beside `target`, which takes its name at the end: what is there is whole.

    `key`: how the user named it. Raises: ConfigError where something is there already, it cannot be written, or what
    it is made from cannot be read.
    """
    shown = f"{key} = {str(target)!r}"
    unfinished = target.parent / f".{target.name}.{os.getpid()}.unfinished"
    try:
        if target.exists():
            raise ConfigError(f"{shown}: is there already; name a new folder, or remove it")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        yield unfinished
        for path in unfinished.glob("*.safetensors"):  # which that library writes for their owner alone
            path.chmod(unfinished.stat().st_mode & 0o666)
        unfinished.rename(target)
    except OSError as error:
        cause = f"{error.strerror or type(error).__name__}{f', {error.filename}' if error.filename else ''}"
        place, of = unfinished.absolute(), Path(error.filename or unfinished).absolute()
        if not (of.is_relative_to(place) or place.is_relative_to(of)):
            raise ConfigError(f"{shown}: cannot be made from what is read ({cause}); see to that file") from None
        raise ConfigError(f"{shown}: cannot be written ({cause}); make room, or name another folder") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
