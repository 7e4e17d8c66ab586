"""Label first: what is asked about one (post, question), one step after the other, until its outcome is known.

Unless every answer is to be explained, the head alone is asked for. It is gone on from where `explain` wants the
explanation, and where the head does not say enough by itself (`tasks.parse_head`): so labels, status, confidence and
probability are those of the plain path, `explain: all`, which asks for whole answers. An answer that was cut off before
its labels ended may be asked for once more, with more tokens; one in which no label can be read, held to the form of
the task's answers.

With `label_scores: forced`, how likely each label is comes last (`LikelyLabels`), by requests of its own: it depends on
nothing that was answered, and the prompt is in the engine's cache.

Labels that are known already, from a run that did not ask for explanations, stay what they are: the whole answer is
asked for, as they were asked for, and gives its explanation where it has the same labels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mentalglm.config import ScoreConfig
from mentalglm.engine.protocol import USUAL_LEAD, Completion, Request
from mentalglm.scoring.likely import LikelyLabels
from mentalglm.scoring.predictions import Outcome, interpret
from mentalglm.scoring.questions import Question
from mentalglm.tasks import NO_LABEL, Task, answer_heads, head_pattern, is_example, render_prompt

SAMPLED = "explanation_sampled"
"""Flag of a row whose explanation was asked for because it fell into the sample."""
FAILED, DISAGREES, MISSING = "explanation_failed", "explanation_disagrees", "explanation_missing"
"""Flags of a row whose explanation was asked for in vain: no answer came, or none that can be read · one with other
labels · one without an explanation."""
EXAMPLE_LEFT_OUT = "example_left_out"
"""Flag of a row whose text is one of the prompt's examples: it was asked without that one."""
_ASKED_AGAIN, _CONSTRAINED = "asked_again", "constrained"
_SCORES_FAILED = "label_scores_failed"
_OF_LABELS = frozenset({_ASKED_AGAIN, _CONSTRAINED, _SCORES_FAILED, SAMPLED})
"""Flags that no later answer changes."""


class Inquiry:
    """One (post, question) on its way to an outcome.

    `request` is what to ask first; every completion goes to `take`, which says what to ask next. Once it says nothing,
    `outcome` is there.
    `labelled`: the outcome that is known, of a row that is to be explained; its tokens are not counted again, and its
    label scores stay what they are.
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
            post=text,
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
        self._is_to_score = config.label_scores == "forced" and labelled is None
        self._likely: LikelyLabels | None = None
        """The label scores, while they are asked for."""
        self._lead: str | None = None
        """White space that the model began its first answer with; None where it began a thought, or gave none."""
        self._done: tuple[str, ...] = ()
        """Flags of what was done."""
        self._of_prompt = (EXAMPLE_LEFT_OUT,) if is_example(task, text) else ()
        if labelled is not None:
            self._go_on_from(labelled)

    def take(self, completion: Completion) -> Request | None:
        """Reads a completion of the last request. Returns the next one, or None when the outcome is there."""
        if completion.num_output_tokens is not None:
            self._num_output_tokens = (self._num_output_tokens or 0) + completion.num_output_tokens
        head_ids = self.request.head.token_ids if self.request.head else ()
        self.num_prefill_tokens += (completion.num_prompt_tokens or 0) + len(head_ids)
        self.num_cached_tokens += completion.num_cached_tokens or 0
        if self.outcome is not None:
            return self._take_scores(self.outcome, completion)
        if self._lead is None and not self._done:
            self._lead = _lead(completion)
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
        flags = (*outcome.flags, *self._of_prompt, *self._done)
        self.outcome = replace(outcome, num_output_tokens=self._num_output_tokens, flags=flags)
        if self._is_to_score and completion.label_scores is not None:
            self.outcome = replace(self.outcome, label_scores=completion.label_scores)
            return None
        return self._ask_for_scores() if self._is_to_score else None

    def _ask_for_scores(self) -> Request | None:
        """The first request for the label scores of the outcome; None where it can have none, or has them without."""
        assert self.outcome is not None
        probability = self.outcome.probability
        if probability is not None:  # of a binary task: what would be asked is known
            shares = {self._task.positive: probability, self._task.negative: 1.0 - probability}
            scores = tuple((slug, shares[slug]) for slug in self._task.answerable)
            self.outcome = replace(self.outcome, label_scores=scores)
            return None
        # What thinks first, or fails on the row, has no probability for an answer that comes at once.
        if self.outcome.finish_reason not in ("stop", "length") or self._lead is None:
            return None
        self._likely = LikelyLabels(self._task)
        self.request = Request(
            task=self._task.name, prompt=self.request.prompt, adapter=self.request.adapter, lead=self._lead
        )
        return self._ask_for_next_label()

    def _ask_for_next_label(self) -> Request:
        assert self._likely is not None
        self.request = replace(self.request, candidates=tuple(self._likely.candidates.values()))
        return self.request

    def _take_scores(self, outcome: Outcome, completion: Completion) -> Request | None:
        assert self._likely is not None
        self.outcome = replace(outcome, num_output_tokens=self._num_output_tokens)
        if completion.candidate_probabilities is None:  # a later step, behind several labels, may not fit any more
            self.outcome = replace(self.outcome, flags=(*outcome.flags, _SCORES_FAILED))
        elif self._likely.take(completion.candidate_probabilities):
            return self._ask_for_next_label()
        self.outcome = replace(self.outcome, label_scores=self._likely.scores())
        # They are large, and the other rows of the shard are not done.
        self._likely, self.request = None, replace(self.request, candidates=())
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
        self._done = tuple(flag for flag in labelled.flags if flag in _OF_LABELS)
        others = tuple(flag for flag in labelled.flags if flag not in (*self._done, *self._of_prompt))
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


def _lead(completion: Completion) -> str | None:
    """White space that the model's own answer begins with, or mostly does where it is blank; None where it is a
    thought, or there is none."""
    answer = completion.text.lstrip()
    if completion.finish_reason not in ("stop", "length") or answer.startswith("<think"):
        return None
    return USUAL_LEAD if not answer else completion.text[: len(completion.text) - len(answer)]


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
    """The labels of the head with the explanation of the whole answer. Where that one failed or cannot be read, has no
    explanation, or an engine that had to answer anew gives other labels, they stay without one."""
    if labelled.num_prompt_tokens is None:
        labelled = replace(labelled, num_prompt_tokens=whole.num_prompt_tokens)
    if whole.finish_reason not in ("stop", "length") or whole.status != "ok":
        return replace(labelled, flags=(*labelled.flags, FAILED))
    if (whole.labels, whole.parents) != (labelled.labels, labelled.parents):
        return replace(labelled, flags=(*labelled.flags, DISAGREES))
    missing = () if whole.explanation else (MISSING,)
    return replace(
        labelled,
        explanation=whole.explanation,
        finish_reason=whole.finish_reason,
        flags=(*whole.flags, *missing),
    )
