"""GLM-4's two formats: chatglm, published with code of its own, and glm, which transformers knows.

The published MentalGLM is a chatglm. Its weights are rows of the same matrices; its tokenizer breaks under today's
transformers. The conversion runs none of its code.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from mentalglm.engine.adapter import SETTINGS as ADAPTER_SETTINGS
from mentalglm.engine.files import read_json, whole_folder
from mentalglm.engine.model import find_folder
from mentalglm.errors import ConfigError
from mentalglm.training.glm_format.adapter import chatglm_adapter, native_adapter
from mentalglm.training.glm_format.config import chatglm_config, native_config, read_native_config
from mentalglm.training.glm_format.special_tokens import SPECIAL_TOKENS
from mentalglm.training.glm_format.tokenizer import convert_tokenizer, copy_tokenizer, restore_ranks
from mentalglm.training.glm_format.weights import Tensors, chatglm_weights, native_weights, write_shards

Format = Literal["glm", "chatglm"]

_GENERATION = "generation_config.json"
_ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")


def convert_format(source: str, target: Path, to: Format, revision: str | None = None) -> list[str]:
    """Writes a model or adapter to the new folder `target` in the format `to`. `source`: a folder, or a hub id, of
    which `revision` is a commit.

    Shard by shard; `target` is there whole or not at all. Returns what there is to say about it, in lines.
    Raises: ConfigError, one line, for what cannot be converted or written.
    """
    shown, folder = f"SOURCE = {source!r}", find_folder("SOURCE", source, revision)
    is_adapter = (folder / ADAPTER_SETTINGS).is_file()
    with whole_folder(target, "TARGET") as unfinished:
        match to, is_adapter:
            case "glm", True:
                return native_adapter(shown, folder, unfinished)
            case "glm", False:
                return _native(shown, folder, unfinished)
            case _, True:
                return chatglm_adapter(shown, folder, unfinished)
            case _:
                return _chatglm(shown, folder, unfinished)


def _native(shown: str, source: Path, target: Path) -> list[str]:
    settings = read_json(source / "config.json")
    config = native_config(shown, settings)
    tensors = Tensors(shown, source)
    _check_head(shown, config, tensors)
    convert_tokenizer(shown, source, target, vocab_size=config.vocab_size)
    if settings.get("eos_token_id") is None:
        ids = _ids(target)
        if missing := [token for token in _ENDS if token not in ids]:
            raise ConfigError(
                f"{shown}: eos_token_id is not in config.json, and the tokenizer has no {missing[0]}; write the ids "
                "that end an answer into config.json"
            )
        config.eos_token_id, config.pad_token_id = [ids[token] for token in _ENDS], ids[SPECIAL_TOKENS[0]]
    num_tensors = write_shards(native_weights(config, tensors), target)
    config.dtype = _dtype(tensors, "transformer.embedding.word_embeddings.weight")
    config.save_pretrained(target)
    _write_generation(source, target, config)
    return [f"{num_tensors} tensors, {config.num_hidden_layers} layers, {config.dtype}".replace("torch.", "")]


def _chatglm(shown: str, source: Path, target: Path) -> list[str]:
    config = read_native_config(shown, read_json(source / "config.json"))
    tensors = Tensors(shown, source)
    num_tensors = write_shards(chatglm_weights(config, tensors), target)
    dtype = str(_dtype(tensors, "model.embed_tokens.weight")).removeprefix("torch.")
    content = json.dumps(chatglm_config(config, dtype), indent=2)
    (target / "config.json").write_text(content + "\n", encoding="utf-8")
    _write_generation(source, target, config)
    said = [f"{num_tensors} tensors, {config.num_hidden_layers} layers, {dtype}"]
    if not (source / "tokenizer.json").is_file():
        return [*said, "no tokenizer: there is no tokenizer.json in SOURCE"]
    copy_tokenizer(source, target)
    if not restore_ranks(source, target):
        said.append("no tokenizer.model: the tokenizer is not GLM-4's; tokenizer.json is there, which vLLM reads")
    return [*said, "for use with trust_remote_code, add config.json, tokenizer_config.json and *.py of the base model"]


def _check_head(shown: str, config: Any, tensors: Tensors) -> None:
    """Whatever config.json says: a chatglm with an output layer uses it, and without one ties it."""
    has_head = "transformer.output_layer.weight" in tensors
    if not has_head and not config.tie_word_embeddings:
        raise ConfigError(f"{shown}: tensor transformer.output_layer.weight is missing; is every shard there?")
    config.tie_word_embeddings = not has_head


def _ids(folder: Path) -> dict[str, int]:
    added = read_json(folder / "tokenizer.json").get("added_tokens", [])
    return {token["content"]: token["id"] for token in added}


def _dtype(tensors: Tensors, name: str) -> Any:
    return tensors.read(name).dtype


def _write_generation(source: Path, target: Path, config: Any) -> None:
    from transformers import GenerationConfig

    if (source / _GENERATION).is_file():
        shutil.copyfile(source / _GENERATION, target / _GENERATION)
    else:
        GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id).save_pretrained(target)
