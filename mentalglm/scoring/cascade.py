"""Label first: what is asked about one (post, question), one step after the other, until its outcome is known.

Unless every answer is to be explained, the head alone is asked for. It is gone on from where `explain` wants the
explanation, and where the head does not say enough by itself (`tasks.parse_head`): so labels, status, confidence and
probability are those of the plain path, `explain: all`, which asks for whole answers. An answer that was cut off before
its labels ended may be asked for once more, with more tokens; one in which no label can be read, held to the form of
the task's answers.

Labels that are known already, from a run that did not ask for explanations, stay what they are: the whole answer is
asked for, as they were asked for, and gives its explanation where it has the same labels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mentalglm.config import ScoreConfig
from mentalglm.engine.protocol import Completion, Request
from mentalglm.scoring.predictions import Outcome, interpret
from mentalglm.scoring.questions import Question
from mentalglm.tasks import Task, answer_heads, head_pattern, render_prompt

NO_LABEL = "none"
"""In `cascade.sample`: the rows to which no label applies."""

SAMPLED = "explanation_sampled"
"""Flag of a row whose explanation was asked for because it fell into the sample."""
FAILED, DISAGREES, MISSING = "explanation_failed", "explanation_disagrees", "explanation_missing"
"""Flags of a row whose explanation was asked for in vain: no answer came · one with other labels · one without an
explanation."""
_ASKED_AGAIN, _CONSTRAINED = "asked_again", "constrained"


class Inquiry:
    """One (post, question) on its way to an outcome.

    `request` is what to ask first; every completion goes to `take`, which says what to ask next. Once it says nothing,
    `outcome` is there.
    `labelled`: the outcome that is known, of a row that is to be explained; its tokens are not counted again.
    """

    def __init__(
        self, config: ScoreConfig, question: Question, text: str, text_hash: str, labelled: Outcome | None = None
    ) -> None:
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
        if labelled is not None:
            self._go_on_from(labelled)

    def take(self, completion: Completion) -> Request | None:
        """Reads a completion of the last request. Returns the next one, or None when the outcome is there."""
        if completion.num_output_tokens is not None:
            self._num_output_tokens = (self._num_output_tokens or 0) + completion.num_output_tokens
        head_ids = self.request.head.token_ids if self.request.head else ()
        self.num_prefill_tokens += (completion.num_prompt_tokens or 0) + len(head_ids)
        self.num_cached_tokens += completion.num_cached_tokens or 0
        outcome = interpret(self._task, completion)
        if outcome is not None and _CONSTRAINED in self._done:
            outcome = replace(outcome, confidence=None, probability=None)  # of a few answers, not of all there are
        if outcome is None:
            return self._go_on(completion)
        if self._unexplained is not None:
            if completion.is_head:  # of labels that were known before, held to the form once more
                return self._go_on(completion)
            outcome = explained(self._unexplained, outcome)
            if outcome.explanation is None:
                self.num_wasted_tokens += completion.num_output_tokens or 0
        elif self._is_to_ask_again(outcome, completion):
            self._done += (_ASKED_AGAIN,)
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
            self._done += (_CONSTRAINED,)
            self.num_wasted_tokens = self._num_output_tokens or 0
            self.request = replace(self.request, pattern=head_pattern(self._task), head_only=True, head=None)
            return self.request
        elif self._is_to_explain(outcome):
            if completion.is_head:
                self._unexplained = outcome
                return self._go_on(completion)
            if outcome.explanation is None and self._config.explain != "all":
                outcome = replace(outcome, flags=(*outcome.flags, MISSING))
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
        may_ask = self._config.generation.retry_unparsed and _CONSTRAINED not in self._done
        return may_ask and outcome.status == "parse_failed"

    def _go_on_from(self, labelled: Outcome) -> None:
        """Asks for the whole answer of a row whose labels are known, as its labels were asked for."""
        self._done = tuple(flag for flag in labelled.flags if flag in (_ASKED_AGAIN, _CONSTRAINED, SAMPLED))
        others = tuple(flag for flag in labelled.flags if flag not in self._done)
        self._unexplained = replace(labelled, flags=others)
        self.request = replace(self.request, head_only=False)
        if _ASKED_AGAIN in self._done:
            self.request = replace(self.request, max_tokens=self._config.generation.retry_max_tokens)
        if _CONSTRAINED in self._done:
            self.request = replace(self.request, pattern=head_pattern(self._task), head_only=True)

    def _is_to_explain(self, outcome: Outcome) -> bool:
        if outcome.labels is None:
            return False
        labels, parents = outcome.labels, outcome.parents or ()
        if is_chosen(self._config, self._task, labels, parents, outcome.confidence):
            return True
        is_sampled_ = is_sampled(self._task, self._text_hash, sample_rate(self._config, labels, parents))
        self._done += (SAMPLED,) if is_sampled_ else ()
        return is_sampled_


def is_chosen(
    config: ScoreConfig, task: Task, labels: Sequence[str], parents: Sequence[str], confidence: float | None
) -> bool:
    """Whether `explain` wants an explanation of these labels."""
    if config.explain == "positive":
        return task.finds(labels, parents)
    if config.explain == "uncertain":
        # As exact as in `data/`, so that a later run chooses the same rows.
        return confidence is None or float(np.float32(confidence)) < config.cascade.uncertain_below
    return config.explain == "all"


def sample_rate(config: ScoreConfig, labels: Sequence[str], parents: Sequence[str]) -> float:
    """Share of the rows with these labels that is explained though `explain` does not choose them."""
    if config.explain not in ("positive", "uncertain"):
        return 0.0
    rates = config.cascade.sample
    if not isinstance(rates, dict):
        return rates
    return max(rates.get(name, 0.0) for name in {*labels, *parents} or {NO_LABEL})


def is_sampled(task: Task, text_hash: str, rate: float) -> bool:
    """Whether the row falls into a sample of this rate. Equal texts do together, for every adapter, and again on
    resuming; a larger rate takes the rows of a smaller one and more."""
    if not rate:
        return False
    digest = hashlib.blake2b(f"{text_hash} {task.name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < rate * 2**64


def explained(labelled: Outcome, whole: Outcome) -> Outcome:
    """The labels of the head with the explanation of the whole answer. Where that one failed, has no explanation, or an
    engine that had to answer anew gives other labels, they stay without one."""
    if labelled.num_prompt_tokens is None:
        labelled = replace(labelled, num_prompt_tokens=whole.num_prompt_tokens)
    if whole.finish_reason not in ("stop", "length"):
        return replace(labelled, flags=(*labelled.flags, FAILED))
    if (whole.status, whole.labels, whole.parents) != ("ok", labelled.labels, labelled.parents):
        return replace(labelled, flags=(*labelled.flags, DISAGREES))
    missing = () if whole.explanation else (MISSING,)
    return replace(
        labelled,
        explanation=whole.explanation,
        finish_reason=whole.finish_reason,
        flags=(*whole.flags, *missing),
    )
