"""The demo model's tokenizer: byte-level BPE with GLM-4's special tokens, as ids 0 to 9, and chat template."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mentalglm.corpus.synthetic import COMMON_CHARACTERS, TASKS, phrase_fragments
from mentalglm.tasks import load_task, render_answer, render_prompt
from mentalglm.training.glm_format.special_tokens import CHAT_TEMPLATE, SPECIAL_TOKENS

_PUNCTUATION = "，。！？：；、“”‘’（）《》【】「」…—～·￥％＃＠＆０１２３４５６７８９"
# Runs of Chinese characters and of letters; all else stands alone, so that no token joins the post to its frame, a
# label to a separator, or a quotation mark to what it quotes.
_WORDS = r"\p{Han}+| ?[A-Za-z]+|[^\p{Han}A-Za-z]"
_MAX_TOKEN_CHARACTERS = 6


def tokenizer_texts() -> Iterator[str]:
    """What the tokenizer's words come from. Phrases are cut at their slots and templates at their labels: no token
    joins a phrase to what fills it, and a label is the same tokens in every place."""
    yield from phrase_fragments()
    for task in map(load_task, TASKS):
        names = sorted({label.zh for label in task.labels}, key=len, reverse=True)
        prompt = render_prompt(task, "")
        answers = [render_answer(task, [slug], "。") for slug in task.answerable]
        for template in (prompt.before, prompt.after, *answers):
            yield from re.split("(" + "|".join(map(re.escape, names)) + ")", template)


def train_tokenizer(texts: Iterable[str], max_vocab_size: int) -> Any:
    """A `PreTrainedTokenizerFast` whose merges come from `texts`.

    Every character of GB 2312 level 1, and every one in `texts`, is a token, so that an unfamiliar post costs at
    most about one token a character. Nothing is normalised: decoding gives back any text unchanged.
    """
    from transformers import PreTrainedTokenizerFast

    texts = list(texts)
    alphabet = sorted(
        {*COMMON_CHARACTERS, *_PUNCTUATION, *(character for text in texts for character in text if character > "\x7f")}
    )
    merges = _character_merges(alphabet)
    num_merges = max_vocab_size - len(SPECIAL_TOKENS) - 256 - len(merges)
    merges += [(_to_bytes(left), _to_bytes(right)) for left, right in _word_merges(texts, alphabet, num_merges)]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    vocab = {piece: index for index, piece in enumerate([*SPECIAL_TOKENS, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [_split_words(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL_TOKENS[0],
        pad_token=SPECIAL_TOKENS[0],
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        chat_template=CHAT_TEMPLATE,
    )


def _character_merges(characters: Iterable[str]) -> list[tuple[str, str]]:
    """Merges that make each character, three bytes of UTF-8 say, one token. They rank before the merges of words, and
    each begins at the first byte of a character, so the words are then merged as if characters were the alphabet."""
    merges: dict[tuple[str, str], None] = {}
    for character in characters:
        symbols = _to_bytes(character)
        for end in range(1, len(symbols)):
            merges[symbols[:end], symbols[end]] = None
    return list(merges)


def _word_merges(texts: Iterable[str], alphabet: list[str], num_merges: int) -> list[tuple[str, str]]:
    """The `num_merges` best merges of characters of the alphabet, best first."""
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 128 + num_merges,  # 128: ASCII
        initial_alphabet=alphabet + [chr(code) for code in range(128)],
        limit_alphabet=len(alphabet) + 128,
        max_token_length=_MAX_TOKEN_CHARACTERS,
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _split_words()
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]


def _split_words() -> Any:
    return pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")


def _to_bytes(text: str) -> str:
    """The characters by which byte-level BPE stands for the bytes of `text`."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in level.pre_tokenize_str(text))
