"""Which model a name stands for: the demo model in the package, a folder, or a hub id."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mentalglm import storage
from mentalglm.config import ModelConfig
from mentalglm.engine.adapter import Adapter, resolve_adapter
from mentalglm.engine.cache import fetched
from mentalglm.engine.files import digest_of, read_json
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
    """sha256 over the names and contents of its files, and of those of `model.adapter`."""
    adapters: Mapping[str | None, Adapter | None] = field(default_factory=lambda: {None: None})
    """Name -> adapter of `model.adapters`; `model.adapter` has the name None. Without an adapter: the bare model."""
    is_to_be_merged: bool = False
    """`model.merge`: the adapter goes into the weights before they are loaded (merge.py)."""

    @property
    def adapter_digests(self) -> dict[str | None, str | None]:
        """Name -> digest of each adapter."""
        return {name: None if adapter is None else adapter.digest for name, adapter in self.adapters.items()}


def resolve_model(config: ModelConfig) -> ResolvedModel:
    """Finds the model (downloading a hub id where the hub can be reached) and takes its digest.

    Raises: ConfigError for a folder that is not there or is no model, weights that are not safetensors (others can
    run code when they are loaded), a hub id that cannot be had, an adapter that does not fit or vLLM cannot load.
    """
    folder = find_folder("model.path", config.path, config.revision)
    _check_model(folder, config)
    if config.adapter is not None:
        adapter = resolve_adapter("model.adapter", config.adapter, folder, for_vllm=not config.merge)
        digest = digest_of(folder, Path(adapter.path))
        return ResolvedModel(config.path, str(folder), digest, {None: adapter}, is_to_be_merged=config.merge)
    adapters: dict[str | None, Adapter | None] = {
        name: None if path is None else resolve_adapter(f"model.adapters.{name}", path, folder)
        for name, path in config.adapters.items()
    }
    return ResolvedModel(config.path, str(folder), digest_of(folder), adapters or {None: None})


def find_folder(key: str, name: str, revision: str | None = None) -> Path:
    """The folder of what the config's `key` names: the demo model, a folder, or an s3:// address or hub id,
    which is downloaded.

    Raises: ConfigError where there is none.
    """
    if name == "demo":
        return DEMO_MODEL
    if storage.is_s3(name):
        return fetched(key, name)
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser().resolve()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(f"{key} = {name!r}: no such folder; give a model folder, an s3:// address, a hub id or demo")
    return _download(key, name, revision)


def _download(key: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf"]))
    except Exception as error:  # the hub's client raises many kinds; none of them is ours
        raise ConfigError(
            f"{key} = {name!r}: no such folder, and the hub does not give it ({type(error).__name__}); "
            "check the name, the revision and the network, or give a folder"
        ) from None


def _check_model(folder: Path, config: ModelConfig) -> None:
    settings = read_json(folder / "config.json")
    if settings.get("model_type") == "chatglm" and (config.merge or _needs_own_tokenizer(folder)):
        raise ConfigError(
            f"model.path = {config.path!r}: is a chatglm, whose own code is not run here; convert it with "
            f"`mentalglm convert glm {config.path} TARGET`, and its adapters as well"
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model.path = {config.path!r}: no *.safetensors in the folder; "
            "convert the weights (.bin and .pt files can run code when loaded and are not read)"
        )


def _needs_own_tokenizer(folder: Path) -> bool:
    """vLLM has chatglm's weights built in; its tokenizer as published is code."""
    if not (folder / "tokenizer.json").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and "auto_map" in read_json(settings)
