"""Label first: what is asked about one (post, question), one step after the other, until its outcome is known.

Unless every answer is to be explained, the head alone is asked for. It is gone on from where `explain` wants the
explanation, and where the head does not say enough by itself (`tasks.parse_head`): so labels, status, confidence and
probability are those of the plain path, `explain: all`, which asks for whole answers. An answer that was cut off before
its labels ended may be asked for once more, with more tokens; one in which no label can be read, held to the form of
the task's answers.
"""

import hashlib
from dataclasses import replace

from mentalglm.config import ScoreConfig
from mentalglm.engine.protocol import Completion, Request
from mentalglm.scoring.predictions import Outcome, interpret
from mentalglm.scoring.questions import Question
from mentalglm.tasks import answer_heads, head_pattern, render_prompt

NO_LABEL = "none"
"""In `cascade.sample`: the rows to which no label applies."""


class Inquiry:
    """One (post, question) on its way to an outcome.

    `request` is what to ask first; every completion goes to `take`, which says what to ask next. Once it says nothing,
    `outcome` is there.
    """

    def __init__(self, config: ScoreConfig, question: Question, text: str, text_hash: str) -> None:
        self._config = config
        self._task = task = question.task
        self._text_hash = text_hash
        self.request = Request(
            task=task.name,
            prompt=render_prompt(task, text),
            adapter=question.adapter,
            markers=tuple(task.markers),
            head_only=config.explain != "all",
            alternatives=answer_heads(task) if task.kind == "binary" else None,
        )
        self.outcome: Outcome | None = None
        self._unexplained: Outcome | None = None
        """What the head said, while its explanation is asked for."""
        self.num_prefill_tokens = 0
        """Prompts given to the engine, with the heads that it went on from."""
        self.num_cached_tokens = 0
        """Of those, taken from its prefix cache."""
        self.num_wasted_tokens = 0
        """Output tokens that are in no result: of answers that were asked for anew."""
        self._num_output_tokens: int | None = None
        self._done: tuple[str, ...] = ()
        """Flags of what was done."""

    def take(self, completion: Completion) -> Request | None:
        """Reads a completion of the last request. Returns the next one, or None when the outcome is there."""
        if completion.num_output_tokens is not None:
            self._num_output_tokens = (self._num_output_tokens or 0) + completion.num_output_tokens
        head_ids = self.request.head.token_ids if self.request.head else ()
        self.num_prefill_tokens += (completion.num_prompt_tokens or 0) + len(head_ids)
        self.num_cached_tokens += completion.num_cached_tokens or 0
        outcome = interpret(self._task, completion)
        if outcome is not None and "constrained" in self._done:
            outcome = replace(outcome, confidence=None, probability=None)  # of a few answers, not of all there are
        if outcome is None:
            return self._go_on(completion)
        if self._unexplained is not None:
            outcome = _explained(self._unexplained, outcome)
            if outcome.explanation is None:
                self.num_wasted_tokens += completion.num_output_tokens or 0
        elif self._is_to_ask_again(outcome, completion):
            self._done += ("asked_again",)
            self.num_wasted_tokens = self._num_output_tokens or 0
            self.request = replace(
                self.request,
                max_tokens=self._config.generation.retry_max_tokens,
                # What is held to a form ends where its head does, and is gone on with without it.
                head_only=self._config.explain != "all" or self.request.pattern is not None,
                head=None,
            )
            return self.request
        elif self._is_to_constrain(outcome):
            self._done += ("constrained",)
            self.num_wasted_tokens = self._num_output_tokens or 0
            self.request = replace(self.request, pattern=head_pattern(self._task), head_only=True, head=None)
            return self.request
        elif self._is_to_explain(outcome):
            if completion.is_head:
                self._unexplained = outcome
                return self._go_on(completion)
        else:
            outcome = replace(outcome, explanation=None)
        self.outcome = replace(outcome, num_output_tokens=self._num_output_tokens, flags=(*outcome.flags, *self._done))
        return None

    def _go_on(self, head: Completion) -> Request:
        self.request = replace(self.request, head_only=False, head=head, pattern=None)
        return self.request

    def _is_to_ask_again(self, outcome: Outcome, completion: Completion) -> bool:
        generation = self._config.generation
        may_ask = generation.retry_max_tokens is not None and self.request.max_tokens is None
        has_room = completion.most_tokens is None or completion.most_tokens > generation.max_tokens
        return may_ask and has_room and outcome.status == "truncated"

    def _is_to_constrain(self, outcome: Outcome) -> bool:
        may_ask = self._config.generation.retry_unparsed and "constrained" not in self._done
        return may_ask and outcome.status == "parse_failed"

    def _is_to_explain(self, outcome: Outcome) -> bool:
        if outcome.labels is None or self._config.explain == "none":
            return False
        if self._config.explain == "all":
            return True
        if self._config.explain == "positive":
            is_chosen = self._task.finds(outcome.labels, outcome.parents or ())
        else:
            is_chosen = outcome.confidence is None or outcome.confidence < self._config.cascade.uncertain_below
        if not is_chosen and self._is_sampled(outcome):
            self._done += ("explanation_sampled",)
            return True
        return is_chosen

    def _is_sampled(self, outcome: Outcome) -> bool:
        """Whether the row falls into the sample of its labels. Equal texts do together, for every adapter, and again
        on resuming; a larger rate takes the rows of a smaller one and more."""
        rates = self._config.cascade.sample
        if isinstance(rates, dict):
            names = {*(outcome.labels or ()), *(outcome.parents or ())} or {NO_LABEL}
            rate = max(rates.get(name, 0.0) for name in names)
        else:
            rate = rates
        digest = hashlib.blake2b(f"{self._text_hash} {self._task.name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < rate * 2**64


def _explained(labelled: Outcome, whole: Outcome) -> Outcome:
    """The labels of the head with the explanation of the whole answer. Where that one failed, or an engine that had to
    answer anew gives other labels, they stay without one."""
    if whole.finish_reason not in ("stop", "length"):
        return replace(labelled, flags=(*labelled.flags, "explanation_failed"))
    if (whole.status, whole.labels, whole.parents) != ("ok", labelled.labels, labelled.parents):
        return replace(labelled, flags=(*labelled.flags, "explanation_disagrees"))
    return replace(labelled, explanation=whole.explanation, finish_reason=whole.finish_reason, flags=whole.flags)
