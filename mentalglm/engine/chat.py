"""Prompts to token ids by the model's own chat template, the same for training, scoring and evaluation.

A post is data: whatever it contains, it cannot end its turn or open another. The frame of the chat template (its
special tokens) is encoded once; the run of plain text around and with the post is encoded by a copy of the tokenizer
to which every special token is ordinary text. `<|assistant|>` inside a post thus stays the characters that it is.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mentalglm.errors import ConfigError
from mentalglm.tasks import Prompt

_CONTENT = "\ue000content\ue001"  # private use: occurs in no template
_PROBE = "你好，世界 hello"
_LEAST_SHARE = 4
"""A post has at least one of so many parts of the prompt."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Token ids of one prompt, from the template's first special token to the one that opens the answer."""

    token_ids: list[int]
    flags: tuple[str, ...] = ()
    in_thought: bool = False
    """The template opens a thought (`<think>`), which the answer begins with."""


class ChatEncoder:
    """Encodes prompts for one tokenizer.

    `tokenizer` is a fast Hugging Face tokenizer. One without a chat template (a base model) gets the plain prompt and
    a line break. Raises: ConfigError for a slow tokenizer or a template that cannot hold a system prompt.
    """

    def __init__(
        self, tokenizer: Any, *, max_prompt_tokens: int, overlong: Literal["truncate", "fail"] = "truncate"
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"model.path: its tokenizer ({type(tokenizer).__name__}) is not a fast one; "
                "convert the model to Hugging Face's native format (tokenizer.json)"
            )
        self._tokenizer = tokenizer
        self._max_prompt_tokens = max_prompt_tokens
        self._overlong = overlong
        self._special_ids, self._special_pattern = _special_tokens(tokenizer)
        self._full = backend
        self._plain = without_special_tokens(backend)
        self._frames: dict[str | None, _Frame] = {}
        self._checked: set[tuple[_Frame, str]] = set()
        self._lock = threading.Lock()

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt | None]:
        """One entry for each prompt, in order; None where it does not fit (`overlong: fail`, or nothing is left of
        the post after cutting). Tokenises in batches, in the tokenizer's threads."""
        entries = [_Entry(prompt, self._frame(prompt.system)) for prompt in prompts]
        for entry in entries:
            if self._special_pattern is not None and self._special_pattern.search(entry.prompt.text):
                entry.flags = ("special_token_in_text",)
            if not entry.frame.piecewise:
                self._break_special_tokens(entry)
        for entry in entries:
            self._check_preamble(entry)
        for frame in {entry.frame for entry in entries}:
            batch = [entry for entry in entries if entry.frame is frame]
            encoder = self._plain if frame.piecewise else self._full
            encodings = encoder.encode_batch_fast([entry.run() for entry in batch], add_special_tokens=False)
            for entry, encoding in zip(batch, encodings, strict=True):
                entry.ids = encoding.ids
        return [self._finish(entry) for entry in entries]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text, special tokens as text, nothing added."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def _finish(self, entry: "_Entry") -> EncodedPrompt | None:
        frame = entry.frame
        budget = self._max_prompt_tokens - len(frame.head_ids) - len(frame.tail_ids)
        if len(entry.ids) > budget:
            if self._overlong == "fail" or not self._truncate(entry, budget):
                return None
            entry.flags = (*entry.flags, "text_truncated")
        if frame.piecewise and not self._special_ids.isdisjoint(entry.ids):
            # A vocabulary that holds a special token's characters as an ordinary piece.
            self._break_special_tokens(entry)
            entry.ids = self._encode_run(entry, entry.prompt.text)
            if not self._special_ids.isdisjoint(entry.ids) or len(entry.ids) > budget:
                return None
        return EncodedPrompt([*frame.head_ids, *entry.ids, *frame.tail_ids], entry.flags, frame.in_thought)

    def _check_preamble(self, entry: "_Entry") -> None:
        """Raises: ConfigError where what stands first in every prompt leaves a post less than a quarter of it: a model
        that reads the beginnings of posts alone would look worse than it is."""
        preamble, frame = entry.prompt.preamble, entry.frame
        if not preamble or (frame, preamble) in self._checked:  # of which there are as many as examples, and one more
            return
        num_tokens = len(frame.head_ids) + len(self._encode_run(entry, "")) + len(frame.tail_ids)
        if _LEAST_SHARE * (self._max_prompt_tokens - num_tokens) < self._max_prompt_tokens:
            raise ConfigError(
                f"generation.max_prompt_tokens = {self._max_prompt_tokens}: the prompt without its post has "
                f"{num_tokens} tokens, its instruction and examples included, which leaves less than a quarter for the "
                f"post; set it to {-(-num_tokens * _LEAST_SHARE // (_LEAST_SHARE - 1))} or more, or lower "
                "prompt.examples.per_label"
            )
        self._checked.add((frame, preamble))

    def _truncate(self, entry: "_Entry", budget: int) -> bool:
        """Cuts the post to its longest beginning with which the run fits; False where nothing would be left."""
        text = entry.prompt.text
        # A token is hardly ever more than 16 characters: where to begin.
        low, high = 0, min(len(text), 16 * max(budget, 0))
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._encode_run(entry, text[:middle])) <= budget:
                low = middle
            else:
                high = middle - 1
        if low == 0:
            return False
        entry.prompt = replace(entry.prompt, text=text[:low])
        entry.ids = self._encode_run(entry, text[:low])
        return True

    def _encode_run(self, entry: "_Entry", text: str) -> list[int]:
        encoder = self._plain if entry.frame.piecewise else self._full
        ids: list[int] = encoder.encode(entry.run(text), add_special_tokens=False).ids
        return ids

    def _break_special_tokens(self, entry: "_Entry") -> None:
        if self._special_pattern is None:
            return
        text, preamble = (
            self._special_pattern.sub(lambda match: f"{match[0][0]}\u200b{match[0][1:]}", each)
            for each in (entry.prompt.text, entry.prompt.preamble)
        )
        entry.prompt = replace(entry.prompt, text=text, preamble=preamble)

    def _frame(self, system: str | None) -> "_Frame":
        with self._lock:  # several shards are encoded at once, each in a thread
            if system not in self._frames:
                self._frames[system] = self._build_frame(system)
            return self._frames[system]

    def _build_frame(self, system: str | None) -> "_Frame":
        if not self._tokenizer.chat_template:
            lead = f"{system}\n\n" if system else ""
            return _Frame([], lead, "\n", [])
        messages = [{"role": "system", "content": system}] if system else []
        try:
            text = self._render([*messages, {"role": "user", "content": _CONTENT}])
        except Exception as error:  # jinja2 raises what the template's author chose
            raise ConfigError(
                f"model.path: its chat template refuses the prompt ({type(error).__name__}); "
                "use a task without a system prompt, or another model"
            ) from None
        head, separator, tail = text.partition(_CONTENT)
        if not separator or _CONTENT in tail:
            raise ConfigError("model.path: its chat template does not put the message into the prompt once, as it is")
        head_special, lead = self._split(head, last=True)
        tail_special, trail = self._split(tail, last=False)
        in_thought = tail.rfind("<think>") > tail.rfind("</think>")
        frame = _Frame(
            self._encode_template(head_special), lead, trail, self._encode_template(tail_special), in_thought=in_thought
        )
        whole = self._encode_template(self._render([*messages, {"role": "user", "content": _PROBE}]))
        if [*frame.head_ids, *self.encode_text(lead + _PROBE + trail), *frame.tail_ids] != whole:
            # Tokenizers that mark the beginning of a text (SentencePiece) encode pieces unlike the whole: encode the
            # whole, with the special tokens that a post contains broken up.
            return _Frame([], head, tail, [], piecewise=False, in_thought=in_thought)
        return frame

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _encode_template(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _split(self, text: str, *, last: bool) -> tuple[str, str]:
        """(the part with special tokens, the plain text between it and the content)."""
        matches = list(self._special_pattern.finditer(text)) if self._special_pattern else []
        if not matches:
            return "", text
        if last:
            return text[: matches[-1].end()], text[matches[-1].end() :]
        return text[matches[0].start() :], text[: matches[0].start()]


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """What stands around the user's message: ids with special tokens, and plain text that joins the message."""

    head_ids: list[int]
    lead: str
    trail: str
    tail_ids: list[int]
    piecewise: bool = True
    in_thought: bool = False


@dataclass(slots=True)
class _Entry:
    """One prompt on its way to token ids."""

    prompt: Prompt
    frame: _Frame
    ids: list[int] = field(default_factory=list)
    flags: tuple[str, ...] = ()

    def run(self, text: str | None = None) -> str:
        """The text between the frame's ids, with `text` in the place of the post."""
        prompt = self.prompt if text is None else replace(self.prompt, text=text)
        return f"{self.frame.lead}{prompt.user}{self.frame.trail}"


def _special_tokens(tokenizer: Any) -> tuple[frozenset[int], re.Pattern[str] | None]:
    added = tokenizer.added_tokens_decoder
    strings = sorted({str(token) for token in added.values() if str(token)}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, strings))) if strings else None
    return frozenset(added), pattern


def without_special_tokens(backend: Any) -> Any:
    """A copy of a `tokenizers.Tokenizer` that reads every added token as ordinary text."""
    import json

    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    for token in state.get("added_tokens", []):
        token["special"] = True  # only special ones can be switched off
    state["truncation"] = state["padding"] = None
    plain = Tokenizer.from_str(json.dumps(state))
    plain.encode_special_tokens = True
    return plain
