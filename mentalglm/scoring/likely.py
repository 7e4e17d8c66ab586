"""Label scores: how likely a model names each label, whether or not its answer does.

An answer is followed from label to label, held to the forms of the task's answers. At each step the model says how
likely each label comes next, or none more; the likeliest is gone on with, until it is none. So the score of a label is

    1 - product over the steps of (1 - probability that it comes next),

the probability that it is named at any of them, were they independent. The first step alone would not do where answers
have several labels: a label that mostly stands behind another is hardly ever the first. Binary and multiclass tasks
have one step: their scores are its probabilities, and add up to 1.
"""

import math
from collections.abc import Sequence

from mentalglm.tasks import NO_LABEL, Task, candidate_answers

_MAX_STEPS = 6  # no post of the data sets has more than five labels


class LikelyLabels:
    """The scores of one (post, question) in the making."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._named: list[str] = []
        self._steps: list[dict[str, float]] = []
        self.candidates = candidate_answers(task)
        """What may come next: slug or `NO_LABEL` -> how an answer goes on so."""

    def take(self, probabilities: Sequence[float]) -> bool:
        """The probabilities of `candidates`, in order. Returns whether there is a step more."""
        step = dict(zip(self.candidates, probabilities, strict=True))
        self._steps.append(step)
        likeliest = max(step, key=step.__getitem__)
        has_one_step = self._task.kind in ("binary", "multiclass")
        if has_one_step or likeliest == NO_LABEL or len(self._steps) == _MAX_STEPS:
            return False
        self._named.append(likeliest)
        self.candidates = candidate_answers(self._task, self._named)
        return True

    def scores(self) -> tuple[tuple[str, float], ...]:
        """(slug, score) for every label of the task in label-set order, parents too: that any of its children is named;
        then `NO_LABEL` where the task may answer so."""
        found = []
        for label in self._task.labels:
            slugs = [label.slug]
            if self._task.kind == "hierarchical" and label.parent is None:
                slugs = [child.slug for child in self._task.labels if child.parent == label.slug]
            found.append(
                (label.slug, _at_any([sum((step.get(slug, 0.0) for slug in slugs), 0.0) for step in self._steps]))
            )
        if self._task.none_allowed:
            found.append((NO_LABEL, self._steps[0][NO_LABEL]))
        return tuple(found)


def _at_any(probabilities: Sequence[float]) -> float:
    """1 - product of (1 - p), exact for small ones too: scores are for ranking."""
    if len(probabilities) == 1:
        return probabilities[0]
    if max(probabilities) >= 1.0:
        return 1.0
    return -math.expm1(math.fsum(math.log1p(-each) for each in probabilities))
