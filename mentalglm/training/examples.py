"""Instruction records to token ids, with the loss on the answer alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mentalglm.corpus import normalise
from mentalglm.engine.chat import ChatEncoder
from mentalglm.errors import ConfigError
from mentalglm.tasks import Task, render_answer, render_prompt

ANSWER_LEAD = "\n"
"""GLM-4 writes a line break between `<|assistant|>` and its answer."""
END_OF_ANSWER = "<|user|>"
"""GLM-4 ends its turn by opening the user's."""


@dataclass(frozen=True, slots=True)
class Record:
    """One post, one task and the answer to learn."""

    task: Task
    text: str
    labels: Sequence[str]
    """Slugs; none where no label applies."""
    explanation: str | None


@dataclass(frozen=True, slots=True)
class Example:
    """Prompt and answer as token ids.

    The loss is on `token_ids[num_prompt_tokens:]`: the line break after `<|assistant|>`, the answer, and the token
    that ends it. The prompt, up to and with `<|assistant|>`, is context only. (GLM-4's own demo leaves the line break
    out of the loss, LLaMA-Factory puts it in; a model that decodes from `<|assistant|>` has to write it, so it is in.)
    """

    token_ids: list[int]
    num_prompt_tokens: int


class ExampleEncoder:
    """Encodes records for a tokenizer with GLM-4's chat tokens, prompts exactly as scoring encodes them.

    Raises: ConfigError when the tokenizer has no `<|user|>` token.
    """

    def __init__(self, tokenizer: Any, *, max_prompt_tokens: int = 1024) -> None:
        end_id = tokenizer.get_vocab().get(END_OF_ANSWER)
        if end_id is None:
            raise ConfigError(f"model.path: its tokenizer has no {END_OF_ANSWER} token; train a GLM-4 model")
        self._end_id = int(end_id)
        self._chat = ChatEncoder(tokenizer, max_prompt_tokens=max_prompt_tokens)

    def encode(self, records: Sequence[Record]) -> list[Example | None]:
        """One example for each record, in order; None where nothing of the post would fit."""
        # Normalised as scoring normalises posts, so that the prompts are the same.
        texts = [normalise(record.text)[0] for record in records]
        prompts = self._chat.encode(
            [render_prompt(record.task, text) for record, text in zip(records, texts, strict=True)]
        )
        return [
            Example([*prompt.token_ids, *self._encode_answer(record)], len(prompt.token_ids)) if prompt else None
            for record, prompt in zip(records, prompts, strict=True)
        ]

    def _encode_answer(self, record: Record) -> list[int]:
        answer = render_answer(record.task, list(record.labels), record.explanation)
        return [*self._chat.encode_text(ANSWER_LEAD + answer), self._end_id]
