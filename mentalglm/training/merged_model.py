"""A model with its adapter in its weights, checked before it is given out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mentalglm.engine.files import whole_folder
from mentalglm.engine.merge import merge_adapter
from mentalglm.engine.model import ResolvedModel
from mentalglm.errors import ConfigError

_NUM_TOKENS = 64
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.02}
"""Largest ‖merged - adapter's‖ / ‖adapter's‖ over the logits, for weights that were rounded to this type once."""


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """Logits of the merged model against those of model and adapter under PEFT, in float32, on random tokens."""

    dtype: str
    """Of the merged weights."""
    error: float
    """‖merged - adapter's‖ / ‖adapter's‖: what rounding does."""
    effect: float
    """‖adapter's - base's‖ / ‖adapter's‖: what the adapter does."""

    def describe(self) -> list[str]:
        """Lines for the terminal."""
        found = (
            f"checked: logits are the adapter's within {self.error:.2g} of their size ({self.dtype} weights); the "
            f"adapter itself changes them by {self.effect:.2g}"
        )
        warning = f"rounding to {self.dtype} does half as much as the adapter, or more: use it beside the model"
        return [found, *([warning] if self.error > self.effect / 2 else [])]


def export_merged(model: ResolvedModel, target: Path) -> MergeCheck:
    """Writes `model` with its adapter in its weights to the new folder `target`, loads it and compares its logits.

    `target` is there whole and checked, or not at all. Raises: ConfigError for what cannot be merged or written, and
    for a result that answers otherwise.
    """
    adapter = model.adapters[None]
    assert adapter is not None
    with whole_folder(target, "TARGET") as folder, _without_bars():
        merge_adapter(model, adapter, folder)
        check = _check(Path(model.path), Path(adapter.path), folder)
    return check


def _check(base: Path, adapter: Path, merged: Path) -> MergeCheck:
    from peft import PeftModel

    model = _load(base)
    token_ids = torch.randint(model.config.vocab_size, (1, _NUM_TOKENS), generator=torch.Generator().manual_seed(0))
    before = _logits(model, token_ids)
    wanted = _logits(PeftModel.from_pretrained(model.float(), adapter), token_ids)
    del model
    model = _load(merged)
    dtype = model.dtype
    found = _logits(model, token_ids)
    check = MergeCheck(
        str(dtype).removeprefix("torch."),
        error=float((found - wanted).norm() / wanted.norm()),
        effect=float((wanted - before).norm() / wanted.norm()),
    )
    if not check.error <= _TOLERANCE.get(dtype, 0.05):  # also where it is no number
        raise ConfigError(
            f"TARGET: the merged model's logits differ by {check.error:.2g} of their size from the adapter's own, more "
            f"than rounding to {check.dtype} explains; use the adapter beside the model"
        )
    return check


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws one for each model that it loads or writes."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True).eval()


def _logits(model: Any, token_ids: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model.float().eval()(input_ids=token_ids).logits
    return logits.double()
