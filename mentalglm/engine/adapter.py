"""LoRA adapters, as PEFT saves them: whether one is there, fits the model, and is what vLLM can load."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentalglm import storage
from mentalglm.config.lora import PLAIN_INITS, beyond_vllm
from mentalglm.engine.cache import fetched
from mentalglm.engine.files import digest_of, read_json
from mentalglm.errors import ConfigError

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"

_MAX_RANK = 512
_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_PLAIN_TENSOR = re.compile(r".*\.(?:lora_[AB]\.weight|lora_embedding_[AB]|base_layer\.weight)")
# The same layer has other leading names in other wrappings of a model (model., transformer.encoder., ...).
_LAYER = re.compile(r"(?:.*?\.)?(\w+\.\d+\..+)")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that is there and fits."""

    path: str
    """Its folder, on this machine."""
    rank: int
    """The largest of its modules."""
    digest: str
    """sha256 over the names and contents of its files."""


def resolve_adapter(key: str, folder: str, model: Path, *, for_vllm: bool = True) -> Adapter:
    """The adapter in `folder`, named by the config's `key`, for the model in the folder `model`.

    `for_vllm`: vLLM is to load it; PEFT, which merges, can do more.
    Raises: ConfigError where it is not there, is no LoRA, was made for another model, or is beyond vLLM.
    """
    shown = f"{key} = {folder!r}"
    path = fetched(key, folder) if storage.is_s3(folder) else Path(folder).expanduser()
    if not path.is_dir():
        raise ConfigError(f"{shown}: no such folder; give the folder of a PEFT adapter")
    if not (path / SETTINGS).is_file():
        raise ConfigError(f"{shown}: no {SETTINGS}; give the folder of a PEFT adapter")
    settings = read_json(path / SETTINGS)
    if not (path / WEIGHTS).is_file():
        raise ConfigError(f"{shown}: no {WEIGHTS}; save it as safetensors")
    if settings.get("peft_type") != "LORA":
        raise ConfigError(f"{shown}: its peft_type is {settings.get('peft_type')}; only LORA can be used")
    shapes = dict(_shapes(path / WEIGHTS))
    if for_vllm and (problem := beyond_plain_lora(settings, shapes)):
        raise ConfigError(f"{shown}: vLLM loads plain LoRA only, and this has {problem}; set model.merge: true")
    if problem := _misfit(shapes, _modules(model)):
        base = settings.get("base_model_name_or_path")
        made_for = f" (its base model: {base})" if base else ""
        raise ConfigError(f"{shown}: does not fit model.path: {problem}{made_for}; name the model that it was made for")
    return Adapter(str(path.resolve()), _rank(shown, settings), digest_of(path))


def _rank(shown: str, settings: dict[str, Any]) -> int:
    pattern = settings.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise ConfigError(f"{shown}: rank_pattern in {SETTINGS} is no mapping of modules to ranks; save it again")
    found = [settings.get("r"), *pattern.values()]
    ranks = [rank for rank in found if isinstance(rank, int) and 0 < rank <= _MAX_RANK]
    if ranks != found:
        raise ConfigError(f"{shown}: {SETTINGS} has ranks {found}; they are whole numbers from 1 to {_MAX_RANK}")
    return max(ranks)


def beyond_plain_lora(settings: dict[str, Any], shapes: Iterable[str] = ()) -> str | None:
    """What an adapter has beside two factors for each module, in words; vLLM loads none of it. `shapes`: by name."""
    if key := beyond_vllm(settings):
        return f"bias = {settings[key]}" if key == "bias" else key
    init = settings.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        return f"init_lora_weights = {init}, which changes the model's own weights"
    return next((f"the tensor {name}" for name in shapes if not _PLAIN_TENSOR.fullmatch(name)), None)


def _misfit(shapes: dict[str, Shape], modules: dict[str, set[Shape | None]]) -> str | None:
    """A module of the adapter that the model does not have, or has in another shape, in words."""
    factors: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        if (match := _FACTOR.fullmatch(name)) and ".experts" not in name:  # many experts may be one tensor
            factors.setdefault(match["module"], {})[match["factor"]] = shape
    if not factors and not any("lora_" in name for name in shapes):
        return f"no LoRA weights in {WEIGHTS}"
    for module, each in factors.items():
        found = modules.get(_layer(module))
        if found is None:
            is_chatglm = module.startswith("transformer.encoder.layers.")
            hint = ", which is chatglm's: convert the adapter with `mentalglm convert glm`" if is_chatglm else ""
            return f"the model has no module {module}{hint}"
        if each.keys() != {"A", "B"}:
            return f"{module} has one of two factors"
        shape = (each["B"][0], each["A"][-1])
        if None not in found and shape not in found:
            theirs = " or ".join(str(list(other)) for other in found if other)
            return f"{module} is {list(shape)}, the model's {theirs}"
    return None


def _modules(model: Path) -> dict[str, set[Shape | None]]:
    """Module of the model -> shapes (out, in) of the weights under that name; None where they are packed."""
    modules: dict[str, set[Shape | None]] = {}
    for path in sorted(model.glob("*.safetensors")):
        for name, shape in _shapes(path):
            module, _, leaf = name.rpartition(".")
            if leaf != "bias":
                modules.setdefault(_layer(module), set()).add(shape if leaf == "weight" else None)
    return modules


def _layer(module: str) -> str:
    """`layers.0.self_attn.q_proj` of a name in whatever wrapping; the last part of a name without a number."""
    match = _LAYER.fullmatch(module)
    return match[1] if match else module.rpartition(".")[2]


def _shapes(path: Path) -> Iterator[tuple[str, Shape]]:
    """(name, shape) of each tensor, from the header alone. Raises: ConfigError for a file that is not safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                yield name, tuple(tensors.get_slice(name).get_shape())
    except SafetensorError as error:
        raise ConfigError(f"{path}: is not a safetensors file ({error}); save it again") from None
