"""What an engine is: prompts in, completions out as they finish. One failed row never fails the others."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mentalglm.tasks import Prompt

USUAL_LEAD = "\n"
"""What GLM-4 begins its answers with."""

FinishReason = Literal["stop", "length", "too_long", "refused", "error"]


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted."""

    task: str
    """Name of the task."""
    prompt: Prompt
    adapter: str | None = None
    """Which of `model.adapters` is to answer; None where there is no choice."""
    markers: tuple[str, ...] = ()
    """Strings that end the head of the answer (理由, Reasoning, ...)."""
    head_only: bool = False
    """Stop at the first marker: labels without an explanation."""
    head: "Completion | None" = None
    """What the engine has answered with `head_only`: it goes on from there, to the whole answer. One that cannot go on
    from its tokens answers anew."""
    pattern: str | None = None
    """Regular expression that the answer is held to. Its probabilities are then not those of the model alone."""
    max_tokens: int | None = None
    """Most tokens of the answer, its head included; None: as configured."""
    alternatives: tuple[str, str] | None = None
    """Heads of the negative and of the positive answer of a binary task, for `Completion.positive_probability`."""
    candidates: tuple[tuple[str, ...], ...] = ()
    """No answer is wanted, but how likely each of these is against the others (`Completion.candidate_probabilities`),
    whatever was or would be answered. Each as an answer in full, then as beginnings of longer ones, all of which count
    as this candidate. Of the model itself, also where decoding has a temperature."""
    lead: str = ""
    """White space that this model begins an answer to this prompt with; the candidates are taken to begin so too."""
    post: str = ""
    """The post as it is, for an engine that reads no prompt (encoder)."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine returned for a request."""

    text: str
    """Special tokens left out; of a head, up to and with the marker."""
    finish_reason: FinishReason
    """stop · length (cut at `max_tokens`) · too_long (prompt over the limit; not asked) · refused (the endpoint's
    content filter) · error (the engine failed on this row)."""
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    """Generated for this request; those of `Request.head` are not counted again."""
    head_logprob: float | None = None
    """Natural log of the probability of the answer's head as generated: sum over its tokens up to the marker."""
    positive_probability: float | None = None
    """Binary tasks: P(positive) / (P(positive) + P(negative)) at the token where the two answers part."""
    candidate_probabilities: tuple[float, ...] | None = None
    """Of `Request.candidates`; they add up to 1. Prompt, cached and output tokens are then those of all that was asked
    for them."""
    label_scores: tuple[tuple[str, float], ...] | None = None
    """From an engine that knows them with its answer, as `LikelyLabels.scores` has them: (slug, probability) of every
    label in label-set order, parents too, then of none where the task allows that."""
    is_head: bool = False
    """It stopped at a marker, because of `head_only`: there may be more behind it."""
    token_ids: tuple[int, ...] = ()
    """Of a head, where the engine can go on from them."""
    flags: tuple[str, ...] = ()
    """text_truncated, special_token_in_text."""
    error: str | None = None
    """With finish_reason error or refused: what failed, as a class or code; never the text."""
    most_tokens: int | None = None
    """The longest answer that the model has room for behind this prompt, in tokens; None: not known."""
    num_cached_tokens: int | None = None
    """Of the prompt, and of the head that it went on from: taken from the engine's prefix cache."""


FollowUp = Callable[[int, Completion], Request | None]
"""Given the index of a request and its completion: what to ask in its place, with the same prompt; None: nothing."""


class Engine(Protocol):
    """A started engine. Closed by its owner."""

    @property
    def description(self) -> dict[str, str]:
        """What answers, for the manifest: engine, version, model, device."""
        ...

    @property
    def num_restarts(self) -> int:
        """How often what answers has died or hung, and was replaced."""
        return 0

    @property
    def seconds(self) -> dict[str, float]:
        """What its time went into, from the moment on that it was first up; see `Occupancy`. Empty where slots are not
        known."""
        return {}

    def complete(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> AsyncIterator[tuple[int, Completion]]:
        """Yields (index of the request, completion) once for each request, in order of finishing.

        With `follow_up`, a completion that it answers with another request is not yielded, and that one is asked at
        once, before what still waits: its prompt is in the engine's cache then.
        """
        ...

    async def close(self) -> None:
        """Frees what the engine holds."""
        ...
