"""LoRA adapters in both formats."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mentalglm.engine.adapter import SETTINGS, WEIGHTS, beyond_plain_lora
from mentalglm.engine.files import read_json
from mentalglm.errors import ConfigError
from mentalglm.training.glm_format.names import chatglm_module, native_modules
from mentalglm.training.glm_format.weights import Tensors

_PREFIX = "base_model.model."
_FACTOR = re.compile(re.escape(_PREFIX) + r"(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
# They name modules of the old format, or hold only there.
_DROPPED = ("auto_mapping", "base_model_name_or_path", "exclude_modules", "layers_pattern", "layers_to_transform")


@dataclass(frozen=True, slots=True)
class _Lora:
    """What is added to a weight: `scaling` · B · A."""

    a: Tensor
    """(rank, inputs)"""
    b: Tensor
    """(outputs, rank)"""
    alpha: float
    is_rank_stabilised: bool
    """rsLoRA: alpha is divided by the root of the rank."""

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.is_rank_stabilised else self.rank)

    def with_factors(self, a: Tensor, b: Tensor) -> "_Lora":
        """Others, perhaps of another rank, scaled as these are."""
        change = len(a) / self.rank
        alpha = self.alpha * (math.sqrt(change) if self.is_rank_stabilised else change)
        return _Lora(a, b, round(alpha) if alpha == round(alpha) else alpha, self.is_rank_stabilised)


def native_adapter(shown: str, source: Path, target: Path) -> list[str]:
    """Writes a chatglm's adapter as that of the converted model. Exact: queries, keys and values share A and each has
    its rows of B; rank and scaling stay. Returns what there is to say."""
    settings, fused = _read(shown, source)
    parts: dict[str, _Lora] = {}
    for module, lora in fused.items():
        names = native_modules(module)
        if not names:
            raise ConfigError(f"{shown}: {module} is no module of a chatglm; is it a chatglm's adapter?")
        num_rows = [len(lora.b)] if len(names) == 1 else _query_key_value_rows(shown, module, lora)
        for name, rows in zip(names, torch.split(lora.b, num_rows), strict=True):
            parts[name] = lora.with_factors(lora.a.clone(), rows.clone())
    _write(settings, parts, target)
    return [f"{len(fused)} modules -> {len(parts)}, rank and scaling unchanged"]


def chatglm_adapter(shown: str, source: Path, target: Path) -> list[str]:
    """Writes a glm's adapter as that of the converted chatglm. Returns what there is to say.

    Where queries, keys and values have an A of their own, the fused module gets them one below the other and a
    block-diagonal B: exact, with the sum of their ranks. Raises: ConfigError where their scalings differ, or the
    number of rows is unknown.
    """
    settings, parts = _read(shown, source)
    groups: dict[str, list[str]] = {}
    for name in parts:
        module = chatglm_module(name)
        if module is None:
            raise ConfigError(f"{shown}: {name} is no module of a glm; is it a glm's adapter?")
        groups.setdefault(module, []).append(name)
    fused = {
        module: parts[names[0]] if len(native_modules(module)) == 1 else _fused(shown, module, parts)
        for module, names in groups.items()
    }
    _write(settings, fused, target)
    ranks = [lora.rank for module, lora in fused.items() if len(native_modules(module)) > 1]
    said = [f"{len(parts)} modules -> {len(fused)}"]
    if ranks and max(ranks) > max(lora.rank for lora in parts.values()):
        said.append(f"queries, keys and values have an A of their own: the fused modules' rank is {max(ranks)}")
    return said


def _fused(shown: str, module: str, parts: dict[str, _Lora]) -> _Lora:
    names = native_modules(module)
    present = [parts[name] for name in names if name in parts]
    scalings = {lora.scaling for lora in present}
    if len(scalings) > 1:
        raise ConfigError(
            f"{shown}: queries, keys and values of {names[0].rpartition('.')[0]} are scaled by "
            f"{', '.join(f'{each:g}' for each in sorted(scalings))}, and one module has one scaling; merge it first: "
            "mentalglm convert merge"
        )
    num_inputs = present[0].a.shape[1]
    num_values = [len(parts[name].b) for name in names[1:] if name in parts]
    if not num_values:
        raise ConfigError(
            f"{shown}: of {names[0].rpartition('.')[0]} only the queries have an adapter, which does not tell how many "
            "rows keys and values have; merge it first: mentalglm convert merge"
        )
    num_rows = [num_inputs, num_values[0], num_values[0]]
    if len(present) == len(names) and all(torch.equal(lora.a, present[0].a) for lora in present):
        return present[0].with_factors(present[0].a, torch.cat([lora.b for lora in present]))
    blocks = [
        parts[name].b if name in parts else present[0].b.new_zeros(rows, 0)
        for name, rows in zip(names, num_rows, strict=True)
    ]
    diagonal: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return present[0].with_factors(torch.cat([lora.a for lora in present]), diagonal)


def _query_key_value_rows(shown: str, module: str, lora: _Lora) -> list[int]:
    """Queries are as many as the inputs (config.py sees to that); keys and values are the rest, in equal parts."""
    num_queries = lora.a.shape[1]
    num_values, odd = divmod(len(lora.b) - num_queries, 2)
    if odd or num_values <= 0:
        raise ConfigError(
            f"{shown}: {module} is {[len(lora.b), num_queries]}, which queries, keys and values cannot share; is it "
            "a GLM-4's adapter?"
        )
    return [num_queries, num_values, num_values]


def _read(shown: str, source: Path) -> tuple[dict[str, Any], dict[str, _Lora]]:
    settings = read_json(source / SETTINGS)
    if settings.get("peft_type") != "LORA":
        raise ConfigError(f"{shown}: its peft_type is {settings.get('peft_type')}; only LORA can be converted")
    tensors = Tensors(shown, source, WEIGHTS)
    modules: dict[str, set[str]] = {}
    for name in tensors.unread:
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise ConfigError(
                f"{shown}: the tensor {name} is not of a plain LoRA; merge the adapter where it was trained"
            )
        modules.setdefault(match["module"], set()).add(match["factor"])
    if problem := beyond_plain_lora(settings):
        raise ConfigError(f"{shown}: has {problem}, which is no plain LoRA; merge the adapter where it was trained")
    loras = {}
    for module in modules:
        a, b = (tensors.read(f"{_PREFIX}{module}.lora_{factor}.weight") for factor in "AB")
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ConfigError(f"{shown}: {module}: A is {list(a.shape)} and B {list(b.shape)}, which do not multiply")
        loras[module] = _Lora(a, b, _alpha(shown, settings, module), bool(settings.get("use_rslora")))
    if not loras:
        raise ConfigError(f"{shown}: no LoRA weights in {WEIGHTS}; give the folder of a PEFT adapter")
    return settings, loras


def _alpha(shown: str, settings: dict[str, Any], module: str) -> float:
    """By PEFT's rule: of the first pattern that the module's name ends with."""
    from peft.utils.other import get_pattern_key

    pattern = settings.get("alpha_pattern") or {}
    alpha = pattern.get(get_pattern_key(list(pattern), module), settings.get("lora_alpha"))
    if not isinstance(alpha, int | float):
        raise ConfigError(f"{shown}: lora_alpha = {alpha!r} in {SETTINGS}; give a number")
    return alpha


def _write(settings: dict[str, Any], loras: dict[str, _Lora], target: Path) -> None:
    ranks = {module: lora.rank for module, lora in loras.items()}
    alphas = {module: lora.alpha for module, lora in loras.items()}
    [(rank, _)], [(alpha, _)] = Counter(ranks.values()).most_common(1), Counter(alphas.values()).most_common(1)
    changed = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": _pattern(alphas, alpha),
        "target_modules": _targets(settings, loras),
    }
    content = {**settings, **{name: None for name in _DROPPED if name in settings}, **changed}
    (target / SETTINGS).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    weights = {}
    for module, lora in loras.items():
        weights[f"{_PREFIX}{module}.lora_A.weight"] = lora.a.contiguous()
        weights[f"{_PREFIX}{module}.lora_B.weight"] = lora.b.contiguous()
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})


def _pattern(values: dict[str, Any], usual: Any) -> dict[str, Any]:
    """PEFT's pattern for what differs from the usual: by the last part of a name where all of that name agree."""
    by_leaf: dict[str, set[Any]] = {}
    for module, value in values.items():
        by_leaf.setdefault(_leaf(module), set()).add(value)
    return {
        (_leaf(module) if len(by_leaf[_leaf(module)]) == 1 else module): value
        for module, value in values.items()
        if value != usual
    }


def _targets(settings: dict[str, Any], loras: dict[str, _Lora]) -> list[str]:
    """Last parts of names where the adapter names its modules so; else, it may be on some layers alone, whole names."""
    found = settings.get("target_modules")
    is_short = isinstance(found, list) and not any("." in name for name in found)
    if is_short and not settings.get("layers_to_transform") and not settings.get("exclude_modules"):
        return sorted({_leaf(module) for module in loras})
    return sorted(loras)


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]
