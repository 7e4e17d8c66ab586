"""GLM-4's tokenizer: from tiktoken's ranks (tokenizer.model) to a tokenizer.json that needs no code, and back."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

from mentalglm.engine.files import read_json
from mentalglm.errors import ConfigError
from mentalglm.training.glm_format.special_tokens import CHAT_TEMPLATE, SPECIAL_TOKENS

RANKS = "tokenizer.model"
NATIVE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
_FILES = (NATIVE, SETTINGS, "chat_template.jinja", "special_tokens_map.json", "added_tokens.json")

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""Where GLM-4's tokenizer cuts a text into words (`pat_str` of its tokenization_chatglm.py)."""

_END = SPECIAL_TOKENS[0]
_PREFIX = ("[gMASK]", "<sop>")


def convert_tokenizer(shown: str, source: Path, target: Path, *, vocab_size: int) -> None:
    """Writes the tokenizer of the chatglm folder `source` to `target` in tokenizers' format.

    A tokenizer.json that is there is kept, unless its settings ask for chatglm's own code. Special tokens have the ids
    that tokenizer_config.json gives them, or those after the last rank. A text that is no conversation begins with
    [gMASK]<sop>, as under chatglm's own code. So does the chat template; another, which that code does not use, is
    replaced. Raises: ConfigError for ranks that are not tiktoken's or not GLM-4's.
    """
    settings = read_json(source / SETTINGS) if (source / SETTINGS).is_file() else {}
    if (source / NATIVE).is_file() and not str(settings.get("tokenizer_class")).startswith("ChatGLM"):
        copy_tokenizer(source, target)
        return
    ranks = read_ranks(shown, source / RANKS)
    specials = _special_ids(shown, settings, ranks, vocab_size)
    _tokenizer(ranks, specials, settings, _chat_template(source, settings)).save_pretrained(target)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies a tokenizer that needs no code."""
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def restore_ranks(source: Path, target: Path) -> bool:
    """Writes tokenizer.model, as chatglm's own code reads it, for the tokenizer.json in `source`.

    False where no ranks can say what it does: its words are cut in another way, or its merges are not all those, and
    in the order, that ranks stand for.
    """
    state = read_json(source / NATIVE)
    model, pre_tokenizer = state.get("model") or {}, json.dumps(state.get("pre_tokenizer"), ensure_ascii=False)
    if model.get("type") != "BPE" or json.dumps(PATTERN)[1:-1] not in pre_tokenizer:
        return False
    to_byte = {character: byte for byte, character in _byte_characters().items()}
    added = {token["content"] for token in state.get("added_tokens", [])}
    try:
        ranks = {
            bytes(to_byte[character] for character in token): rank
            for token, rank in model["vocab"].items()
            if token not in added
        }
    except KeyError:  # no byte's character
        return False
    if json.loads(_bpe(ranks).to_str())["model"]["merges"] != [
        list(merge) for merge in map(_halves, model.get("merges", []))
    ]:
        return False
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in sorted(ranks.items(), key=lambda r: r[1])]
    (target / RANKS).write_bytes(b"".join(lines))
    return True


def read_ranks(shown: str, path: Path) -> dict[bytes, int]:
    """Token -> rank, which is its id, of a file in tiktoken's format: a token in base64 and its rank in each line."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        raise ConfigError(f"{shown}: no {path.name} in the folder; fetch it from where the model is") from None
    ranks: dict[bytes, int] = {}
    try:
        for line in filter(bytes.strip, lines):
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except ValueError:
        raise ConfigError(
            f"{shown}: {path.name} is not in tiktoken's format; only GLM-4's tokenizer can be converted, and those of "
            "ChatGLM2 and ChatGLM3 are SentencePiece's"
        ) from None
    if missing := {bytes([byte]) for byte in range(256)} - ranks.keys():
        raise ConfigError(f"{shown}: {path.name} lacks {len(missing)} of the 256 bytes; fetch it again")
    if len(set(ranks.values())) != len(ranks):
        raise ConfigError(f"{shown}: {path.name} gives two tokens one rank; fetch it again")
    return ranks


def _special_ids(shown: str, settings: dict[str, Any], ranks: dict[bytes, int], vocab_size: int) -> dict[str, int]:
    found = settings.get("added_tokens_decoder")
    if found:
        try:
            ids = {str(token["content"]): int(index) for index, token in found.items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ConfigError(f"{shown}: added_tokens_decoder in {SETTINGS} is no mapping of ids to tokens") from None
    else:
        ids = {token: max(ranks.values()) + 1 + number for number, token in enumerate(SPECIAL_TOKENS)}
    if missing := [token for token in SPECIAL_TOKENS if token not in ids]:
        raise ConfigError(f"{shown}: {SETTINGS} has no token {missing[0]}; take the tokenizer of a GLM-4 model")
    taken = set(ranks.values())
    for token, index in ids.items():
        if index in taken or index >= vocab_size:
            why = "is taken" if index in taken else f"is beyond padded_vocab_size = {vocab_size}"
            raise ConfigError(f"{shown}: the id {index} of {token} {why}; are {SETTINGS} and {RANKS} of one model?")
        taken.add(index)
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def _chat_template(source: Path, settings: dict[str, Any]) -> str:
    path = source / "chat_template.jinja"
    template = path.read_text(encoding="utf-8") if path.is_file() else settings.get("chat_template")
    # The first releases have one in ChatGLM3's style, which their code leaves unused.
    return template if isinstance(template, str) and template.startswith("".join(_PREFIX)) else CHAT_TEMPLATE


def _tokenizer(ranks: dict[bytes, int], specials: dict[str, int], settings: dict[str, Any], chat_template: str) -> Any:
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = _bpe(ranks)
    state = json.loads(tokenizer.to_str())
    # With their ids: to the library's method, added tokens are the next ids, whatever they are.
    state["added_tokens"] = [
        {"id": index, "content": token, "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for token, index in specials.items()
    ]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    prefix = " ".join(_PREFIX)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{prefix} $A",
        pair=f"{prefix} $A $B",
        special_tokens=[(token, specials[token]) for token in _PREFIX],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=AddedToken(_END, special=True, normalized=False),
        pad_token=AddedToken(_END, special=True, normalized=False),
        additional_special_tokens=[token for token in specials if token != _END],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=chat_template,
        **({"model_max_length": settings["model_max_length"]} if "model_max_length" in settings else {}),
    )


def _bpe(ranks: dict[bytes, int]) -> Any:
    """A `tokenizers.Tokenizer` that does what tiktoken does with the ranks: of all neighbours that are a token
    together, the pair whose token has the lowest rank is merged first."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter = TikTokenConverter(pattern=PATTERN)
    converter.load_tiktoken_bpe = lambda _: ranks  # read and checked by us; theirs needs tiktoken for it
    return converter.converted()


def _byte_characters() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters: dict[int, str] = bytes_to_unicode()
    return characters


def _halves(merge: Any) -> Any:
    """A merge is a pair, in older files a text with a blank."""
    return merge.split(" ") if isinstance(merge, str) else merge
