"""Records to token ids, with the loss on the answer alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mentalglm.corpus.records import Record
from mentalglm.engine.chat import ChatEncoder
from mentalglm.errors import ConfigError, InputError
from mentalglm.tasks import render_answer, render_prompt

ANSWER_LEAD = "\n"
"""GLM-4 writes a line break between `<|assistant|>` and its answer."""
_END_OF_ANSWER = "<|user|>"
"""GLM-4 ends its turn by opening the user's."""
_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Example:
    """Prompt and answer as token ids.

    The loss is on `token_ids[num_prompt_tokens:]`: the line break after `<|assistant|>`, the answer, and the token
    that ends it. The prompt, up to and with `<|assistant|>`, is context only. (GLM-4's own demo leaves the line break
    out of the loss, LLaMA-Factory puts it in; a model that decodes from `<|assistant|>` has to write it, so it is in.)
    """

    token_ids: list[int]
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """Many examples in a few arrays, which Ray's object store shares among the workers of a node without a copy."""

    token_ids: npt.NDArray[np.int32]
    """Of all examples, one after the other."""
    offsets: npt.NDArray[np.int64]
    """Example i is `token_ids[offsets[i]:offsets[i + 1]]`."""
    num_prompt_tokens: npt.NDArray[np.int32]
    ids: list[str]
    """Of their records, for messages."""
    sources: npt.NDArray[np.int32]
    """Which part of the mixture each belongs to."""
    num_truncated: int = 0
    """Examples whose post was cut."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each, prompt and answer."""
        return np.diff(self.offsets)

    @property
    def num_learned(self) -> npt.NDArray[np.int64]:
        """Tokens of each that have a loss."""
        return self.lengths - self.num_prompt_tokens

    def __getitem__(self, index: int) -> Example:
        ids = self.token_ids[self.offsets[index] : self.offsets[index + 1]]
        return Example(ids.tolist(), int(self.num_prompt_tokens[index]))


class ExampleEncoder:
    """Encodes records for a tokenizer, prompts exactly as scoring encodes them.

    An answer ends with `<|user|>` where the tokenizer has it (GLM-4), else with its end-of-sequence token.
    Raises: ConfigError when the tokenizer has neither.
    """

    def __init__(self, tokenizer: Any, *, max_prompt_tokens: int = 1024, max_tokens: int | None = None) -> None:
        """`max_tokens`: longest sequence of the model, prompt and answer."""
        end_id = tokenizer.get_vocab().get(_END_OF_ANSWER, tokenizer.eos_token_id)
        if end_id is None:
            raise ConfigError(
                f"model.path: its tokenizer has neither {_END_OF_ANSWER} nor an end-of-sequence token, so answers "
                "could not end; use a GLM-4 model or another chat model"
            )
        self._end_id = int(end_id)
        self._max_tokens, self._max_prompt_tokens = max_tokens, max_prompt_tokens
        self._chat = ChatEncoder(tokenizer, max_prompt_tokens=max_prompt_tokens)

    def encode(self, records: Sequence[Record]) -> list[Example | None]:
        """One example for each record, in order; None where nothing of the post, or not the whole answer, would fit."""
        return [example for example, _ in self._encode(records)]

    def encode_set(self, records: Sequence[Record], key: str) -> ExampleSet:
        """All records. Raises: InputError, naming some of those that do not fit; `key`: where the config names them."""
        examples, cut = zip(*self._encode(records), strict=True)
        unfit = [record.id for record, example in zip(records, examples, strict=True) if example is None]
        if unfit:
            more = f" and {len(unfit) - _MOST_SHOWN} more" if len(unfit) > _MOST_SHOWN else ""
            raise InputError(
                f"{key}: {len(unfit)} of {len(records)} records leave no room for the post or for the answer "
                f"({', '.join(unfit[:_MOST_SHOWN])}{more}): a prompt may have {self._max_prompt_tokens} tokens "
                f"(max_prompt_tokens), and with its answer {self._max_tokens or 'any number'} (the model's window); "
                "change max_prompt_tokens, shorten their explanations, or remove them"
            )
        return ExampleSet(
            token_ids=np.fromiter(_joined(examples), dtype=np.int32),
            offsets=np.cumsum([0, *(len(example.token_ids) for example in examples)], dtype=np.int64),
            num_prompt_tokens=np.array([example.num_prompt_tokens for example in examples], dtype=np.int32),
            ids=[record.id for record in records],
            sources=np.array([record.part for record in records], dtype=np.int32),
            num_truncated=sum(cut),
        )

    def _encode(self, records: Sequence[Record]) -> list[tuple[Example | None, bool]]:
        """(example, whether the post was cut) for each record."""
        prompts = self._chat.encode([render_prompt(record.task, record.text) for record in records])
        found: list[tuple[Example | None, bool]] = []
        for record, prompt in zip(records, prompts, strict=True):
            example = None
            if prompt is not None:
                answer = self._encode_answer(record)
                length = len(prompt.token_ids) + len(answer)
                if self._max_tokens is None or length <= self._max_tokens:
                    example = Example([*prompt.token_ids, *answer], len(prompt.token_ids))
            found.append((example, prompt is not None and "text_truncated" in prompt.flags))
        return found

    def _encode_answer(self, record: Record) -> list[int]:
        answer = render_answer(record.task, list(record.labels), record.explanation)
        return [*self._chat.encode_text(ANSWER_LEAD + answer), self._end_id]


def _joined(examples: Iterable[Example]) -> Iterable[int]:
    return (token_id for example in examples for token_id in example.token_ids)
