"""A LoRA adapter added to the weights of its model: vLLM then runs without the cost of applying one to each row.

Done once on each machine, under a lock, and kept under the digest of both; a merged model is in its place by a rename,
whole or not at all.

    $MENTALGLM_CACHE or ~/.cache/mentalglm/merged/<digest>/
"""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from mentalglm.engine.adapter import Adapter
from mentalglm.engine.cache import cached_folder
from mentalglm.engine.model import ResolvedModel
from mentalglm.engine.weights import load_whole
from mentalglm.errors import ConfigError

_VERSION = 1  # raised whenever the same model and adapter give other weights


def merged(model: ResolvedModel) -> ResolvedModel:
    """The model with its adapter in its weights, where `model.merge` asks for that; else the model as it is.

    Raises: ConfigError when they cannot be merged, or the cache cannot hold the result.
    """
    [adapter, *_] = model.adapters.values()
    if not model.is_to_be_merged or adapter is None:
        return model
    name = f"{model.digest[:32]}-{_VERSION}"
    folder = cached_folder("model.merge", "merged", name, partial(merge_adapter, model, adapter))
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
        base = load_whole(AutoModelForCausalLM, source, dtype="auto")
        dtype = base.dtype
        both = PeftModel.from_pretrained(base.float(), adapter.path)
        whole = both.merge_and_unload(safe_merge=True)
        whole.to(dtype).save_pretrained(target)
    except (OSError, ConfigError):
        raise
    except Exception as error:  # theirs, of many kinds
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"model.merge: {model.name} and its adapter cannot be merged ({type(error).__name__}: {cause}); leave "
            "merge out, or merge them where the adapter was made"
        ) from error
