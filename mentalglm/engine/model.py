"""Which model a name stands for: the demo model in the package, a folder, or a hub id."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentalglm.config import ModelConfig
from mentalglm.errors import ConfigError

DEMO_MODEL = Path(__file__).parents[1] / "demo" / "model"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that is there."""

    name: str
    """As the config names it."""
    path: str
    """Folder of the weights, on this machine."""
    digest: str
    """sha256 over the names and contents of its files, and of the adapter's."""
    adapter: str | None = None
    """Folder of the LoRA adapter."""
    adapter_rank: int | None = None


def resolve_model(config: ModelConfig) -> ResolvedModel:
    """Finds the model (downloading a hub id where the hub can be reached) and takes its digest.

    Raises: ConfigError for a folder that is not there or is no model, weights that are not safetensors (others can
    run code when they are loaded), a hub id that cannot be had, an adapter that vLLM cannot load.
    """
    if config.path == "demo":
        folder = DEMO_MODEL
    elif Path(config.path).expanduser().is_dir():
        folder = Path(config.path).expanduser().resolve()
    elif config.path.startswith((".", "/", "~")) or config.path.count("/") != 1:
        raise ConfigError(f"model.path = {config.path!r}: no such folder; give a model folder, a hub id or demo")
    else:
        folder = _download(config.path, config.revision)
    _check_model(folder, config.path)
    adapter = rank = None
    if config.adapter is not None:
        adapter, rank = _check_adapter(config.adapter)
    return ResolvedModel(config.path, str(folder), _digest(folder, adapter), str(adapter) if adapter else None, rank)


def read_json(path: Path) -> dict[str, Any]:
    """A model's JSON file. Raises: ConfigError when it is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{path.parent}: {path.name} is missing or not JSON; is this the folder you mean?") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path.parent}: {path.name} is not a JSON object; is this the folder you mean?")
    return data


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf"]))
    except Exception as error:  # the hub's client raises many kinds; none of them is ours
        raise ConfigError(
            f"model.path = {name!r}: no such folder, and the hub does not give it ({type(error).__name__}); "
            "check the name, the revision and the network, or give a folder"
        ) from None


def _check_model(folder: Path, name: str) -> None:
    read_json(folder / "config.json")
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model.path = {name!r}: no *.safetensors in the folder; "
            "convert the weights (.bin and .pt files can run code when loaded and are not read)"
        )


def _check_adapter(adapter: str) -> tuple[Path, int]:
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"model.adapter = {adapter!r}: no such folder; give the folder of a PEFT adapter")
    settings = read_json(folder / "adapter_config.json")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ConfigError(f"model.adapter = {adapter!r}: no adapter_model.safetensors; save it as safetensors")
    if settings.get("peft_type") != "LORA" or settings.get("use_dora") or settings.get("modules_to_save"):
        raise ConfigError(
            f"model.adapter = {adapter!r}: vLLM loads plain LoRA only (no DoRA, no modules_to_save); merge it instead"
        )
    return folder.resolve(), int(settings["r"])


def _digest(folder: Path, adapter: Path | None) -> str:
    total = hashlib.sha256()
    for root in [folder, *([adapter] if adapter else [])]:
        for path in _files(root):
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
        total.update(b"\n")
    return total.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """The files that decide what a model answers; a README may change."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix in {".json", ".safetensors", ".jinja", ".model", ".txt"}:
            yield path
