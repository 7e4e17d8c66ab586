"""Models of transformers, with weights that are all their own."""

from pathlib import Path
from typing import Any

from mentalglm.errors import ConfigError


def load_whole(kind: Any, folder: Path, *, new_head: bool = False, **settings: Any) -> Any:
    """`kind.from_pretrained` of a folder that holds every weight of the model, in its shape.

    For what is not there transformers draws random numbers, and says so in a log alone. `new_head`: that is wanted for
    what stands on top of the encoder, the pooler (which models of masked words do not have) too.
    Raises: ConfigError where a weight is not there; what `from_pretrained` raises.
    """
    model, found = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **settings)
    drawn = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if new_head:
        drawn = {name for name in drawn if name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name}
    if drawn:
        raise ConfigError(
            f"{folder}: {min(drawn)} ({len(drawn)} in all) is not among its weights, or of another shape, and a "
            f"{type(model).__name__} needs it; are they the model's own, and all of them?"
        )
    return model
