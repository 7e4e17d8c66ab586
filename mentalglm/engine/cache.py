"""What is made or fetched once on each machine: folders under a name of their content, whole or not there.

$MENTALGLM_CACHE or ~/.cache/mentalglm/<kind>/<name>/
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from mentalglm import storage
from mentalglm.engine.files import MODEL_FILES
from mentalglm.errors import ConfigError

_FETCHED = "fetched"


def cached_folder(key: str, kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """The folder of this name; where there is none, `make` fills a new one, which then takes the name.

    Whoever else makes the same on this machine is waited for. `key`: what the config calls it, for messages.
    Raises: ConfigError where the cache cannot hold it.
    """
    folder = _root() / kind / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when its holder dies
            if not folder.is_dir():
                unfinished = folder.with_suffix(".unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)  # of a dead attempt
                make(unfinished)
                unfinished.rename(folder)
    except OSError as error:
        raise ConfigError(
            f"{key}: {folder.parent} cannot hold the model ({error.strerror or type(error).__name__}); make room, or "
            "set MENTALGLM_CACHE to another folder"
        ) from None
    return folder


def fetched(key: str, uri: str) -> Path:
    """A copy on this machine of a model or an adapter on S3. Raises: ConfigError where nothing is there."""
    files = _model_files(uri)
    if not files:
        raise ConfigError(f"{key} = {uri!r}: holds no model; give the folder of a model or of a PEFT adapter")

    def make(folder: Path) -> None:
        for file in files:
            if not storage.download(storage.join(uri, file.path), folder / file.path):
                raise ConfigError(f"{key} = {uri!r}: {file.path} is gone; is the folder still written?")

    return cached_folder(key, _FETCHED, _name_of(uri, files), make)


def forget_fetched(uri: str) -> None:
    """Removes this machine's copy of a model or an adapter on S3 that nobody here uses any more."""
    folder = _root() / _FETCHED / _name_of(uri, _model_files(uri))
    if folder.is_dir():
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(folder, ignore_errors=True)


def _model_files(uri: str) -> list[storage.StoredFile]:
    return sorted(file for file in storage.list_files(uri) if Path(file.path).suffix in MODEL_FILES)


def _name_of(uri: str, files: Sequence[storage.StoredFile]) -> str:
    content = "".join(f"{file.path}\0{file.version}\n" for file in files)
    return hashlib.sha256(f"{uri}\n{content}".encode()).hexdigest()[:32]


def _root() -> Path:
    folder = os.environ.get("MENTALGLM_CACHE")
    return Path(folder).expanduser() if folder else Path("~/.cache/mentalglm").expanduser()
