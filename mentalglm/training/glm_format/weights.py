"""Weights of both formats: read tensor by tensor, written shard by shard, so that memory holds one shard."""

import errno
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mentalglm.errors import ConfigError
from mentalglm.training.glm_format.names import UNUSED, chatglm_module

_SHARD_BYTES = 2 << 30


class Tensors:
    """The tensors of a folder's safetensors by name, each read from the disk when it is asked for.

    Raises: ConfigError, one line, for a folder without any, a name in two files, and whatever is asked for in vain.
    """

    def __init__(self, shown: str, folder: Path, pattern: str = "*.safetensors") -> None:
        self._shown = shown
        self._files: dict[str, Any] = {}
        self._unread: set[str] = set()
        paths = sorted(folder.glob(pattern))
        if not paths:
            raise ConfigError(
                f"{shown}: no {pattern} in the folder; save the weights as safetensors (.bin and .pt files can run "
                "code when loaded and are not read)"
            )
        for path in paths:
            try:
                file: Any = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise ConfigError(f"{path}: is not a safetensors file ({error}); fetch it again") from None
            for name in file.keys():  # noqa: SIM118 - no mapping
                if name in self._files:
                    raise ConfigError(f"{shown}: tensor {name} is in two files, one of them {path.name}; leave one")
                self._files[name] = file
        self._unread = set(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def unread(self) -> list[str]:
        """Names that nobody has asked for."""
        return sorted(self._unread)

    def read(self, name: str, shape: Iterable[int] | None = None) -> Tensor:
        """A tensor of floating-point numbers, of `shape` where one is given."""
        if name not in self._files:
            raise ConfigError(f"{self._shown}: tensor {name} is missing; is every shard there?")
        self._unread.discard(name)
        tensor: Tensor = self._files[name].get_tensor(name)
        if not tensor.is_floating_point():
            raise ConfigError(f"{self._shown}: {name} is {tensor.dtype}; take weights that are not quantised")
        if shape is not None and tensor.shape != torch.Size(shape):
            raise ConfigError(
                f"{self._shown}: {name} has the shape {list(tensor.shape)}, and by config.json {list(shape)}"
            )
        return tensor


def native_weights(config: Any, source: Tensors) -> Iterator[tuple[str, Tensor]]:
    """The weights of a `GlmForCausalLM` with this config, from those of a chatglm; bit by bit the same."""
    for chatglm, parts in _pairs(config).items():
        if chatglm not in source and config.tie_word_embeddings and list(parts) == ["lm_head.weight"]:
            continue
        num_rows = [shape[0] for shape in parts.values()]
        [(_, *rest), *_] = parts.values()
        fused = source.read(chatglm, [sum(num_rows), *rest])
        for name, part in zip(parts, torch.split(fused, num_rows), strict=True):
            yield name, part.clone()
    _check_all_read(source, allowed=UNUSED)


def chatglm_weights(config: Any, source: Tensors) -> Iterator[tuple[str, Tensor]]:
    """The weights of a chatglm, from those of a `GlmForCausalLM` with this config. Tied embeddings become two."""
    dtype = None
    for chatglm, parts in _pairs(config).items():
        tied = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_word_embeddings else {}
        tensors = [source.read(tied.get(name, name), shape) for name, shape in parts.items()]
        dtype = dtype or tensors[0].dtype
        yield chatglm, torch.cat(tensors) if len(tensors) > 1 else tensors[0].clone()
    num_channels = config.head_dim // 2
    powers = torch.arange(0, num_channels, 2).to(dtype) / num_channels
    yield UNUSED, 1.0 / (10_000**powers)
    _check_all_read(source, allowed="lm_head.weight" if config.tie_word_embeddings else None)


def _pairs(config: Any) -> dict[str, dict[str, tuple[int, ...]]]:
    """Name of each chatglm tensor -> native tensors that are its rows, in their order -> shape."""
    from transformers import GlmForCausalLM

    with torch.device("meta"):
        model = GlmForCausalLM(config)
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        pairs.setdefault(f"{chatglm_module(module)}.{leaf}", {})[name] = tuple(tensor.shape)
    return pairs


def _check_all_read(source: Tensors, allowed: str | None) -> None:
    if unknown := [name for name in source.unread if name != allowed]:
        raise ConfigError(
            f"{source._shown}: tensor {unknown[0]} ({len(unknown)} in all) has no place in a GLM with this "
            "config.json; is it the model's own?"
        )


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = _SHARD_BYTES) -> int:
    """Writes model.safetensors, or several with their index. Returns the number of tensors."""
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    num_bytes = total = 0

    def write() -> None:
        try:
            save_file(waiting, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        except SafetensorError as error:  # theirs for a full disk, too
            raise OSError(errno.EIO, " ".join(str(error).split())[:200]) from None
        shards.append(list(waiting))
        waiting.clear()

    for name, tensor in tensors:
        if waiting and num_bytes + tensor.nbytes > shard_bytes:
            write()
            num_bytes = 0
        waiting[name] = tensor
        num_bytes += tensor.nbytes
        total += tensor.nbytes
    write()
    if len(shards) == 1:
        (folder / "0.part").rename(folder / "model.safetensors")
        return len(shards[0])
    index: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        index |= dict.fromkeys(names, file)
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")
    return len(index)
