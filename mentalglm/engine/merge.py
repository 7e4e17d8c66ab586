"""A LoRA adapter added to the weights of its model: vLLM then runs without the cost of applying one to each row.

Done once on each machine, under a lock, and kept under the digest of both; a merged model is in its place by a rename,
whole or not at all.

    $MENTALGLM_CACHE or ~/.cache/mentalglm/merged/<digest>/
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mentalglm.engine.adapter import Adapter
from mentalglm.engine.model import ResolvedModel
from mentalglm.errors import ConfigError

_VERSION = 1  # raised whenever the same model and adapter give other weights


def merged(model: ResolvedModel) -> ResolvedModel:
    """The model with its adapter in its weights, where `model.merge` asks for that; else the model as it is.

    Raises: ConfigError when they cannot be merged, or the cache cannot hold the result.
    """
    [adapter, *_] = model.adapters.values()
    if not model.is_to_be_merged or adapter is None:
        return model
    folder = _cache() / "merged" / f"{model.digest[:32]}-{_VERSION}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                unfinished = folder.with_suffix(".unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)  # of a dead attempt
                merge_adapter(model, adapter, unfinished)
                unfinished.rename(folder)
    except OSError as error:
        raise ConfigError(
            f"model.merge: {folder.parent} cannot hold the merged model ({error.strerror or type(error).__name__}); "
            "make room, or set MENTALGLM_CACHE to another folder"
        ) from None
    return replace(model, path=str(folder), adapters={None: None}, is_to_be_merged=False)


def merge_adapter(model: ResolvedModel, adapter: Adapter, target: Path) -> None:
    """Writes the model with the adapter in its weights, and its tokenizer, to the folder `target`.

    In float32 by PEFT, on the CPU; saved in the model's own dtype. Takes about six bytes of memory for each parameter.
    Raises: ConfigError when they cannot be merged; OSError when the result cannot be written.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source = Path(model.path)
    weights = shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", ".*")
    shutil.copytree(source, target, ignore=weights, dirs_exist_ok=True)  # tokenizer, chat template, ...
    try:
        base = AutoModelForCausalLM.from_pretrained(source, dtype="auto", local_files_only=True)
        dtype = base.dtype
        both = PeftModel.from_pretrained(base.float(), adapter.path)
        whole = both.merge_and_unload(safe_merge=True)
        whole.to(dtype).save_pretrained(target)
    except OSError:
        raise
    except Exception as error:  # theirs, of many kinds
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"model.merge: {model.name} and its adapter cannot be merged ({type(error).__name__}: {cause}); leave "
            "merge out, or merge them where the adapter was made"
        ) from error


def _cache() -> Path:
    folder = os.environ.get("MENTALGLM_CACHE")
    return Path(folder).expanduser() if folder else Path("~/.cache/mentalglm").expanduser()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for whoever merges the same. The system lets go of the lock when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
