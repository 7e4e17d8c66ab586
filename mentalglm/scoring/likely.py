"""Label scores: how likely a model names each label, whether or not its answer does.

An answer is followed from label to label, held to the forms of the task's answers. At each step the model says how
likely each label comes next, or none more, and the likeliest label is gone on with, as long as a further label is at
all likely. From the last step back, the score of a label at a step is

    p + (1 - p - none) * its score at the next step,

where p is the probability that it comes next, and none that no label does: it is named here, or later. Taken for
granted is that what follows another label than the likeliest is what follows that one. The first step alone would not
do where answers have several labels: a label that mostly stands behind another is hardly ever the first. Binary and
multiclass tasks have one step: their scores are its probabilities, and add up to 1.
"""

from collections.abc import Sequence

from mentalglm.tasks import NO_LABEL, Task, candidate_answers

LABEL_SCORES_VERSION = "1"
"""Changes with what a score is: scores of two versions do not belong in one table."""

_LEAST_LIKELY = 0.05
"""With a smaller probability of one more label, none is asked for: no score can change by more."""


class LikelyLabels:
    """The scores of one (post, question) in the making."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._named: list[str] = []
        self._steps: list[dict[str, float]] = []
        self._goes_on = 1.0
        """The probability of one more label."""
        self.candidates = candidate_answers(task)
        """What may come next: slug or `NO_LABEL` -> how an answer goes on so."""

    def take(self, probabilities: Sequence[float]) -> bool:
        """The probabilities of `candidates`, in order. Returns whether there is a step more."""
        step = dict(zip(self.candidates, probabilities, strict=True))
        self._steps.append(step)
        if self._task.kind in ("binary", "multiclass"):
            return False
        labels = [slug for slug in step if slug != NO_LABEL]
        self._goes_on *= 1.0 - step.get(NO_LABEL, 0.0)
        if self._goes_on < _LEAST_LIKELY or len(labels) == 1:
            return False
        self._named.append(max(labels, key=step.__getitem__))
        self.candidates = candidate_answers(self._task, self._named)
        return True

    def scores(self) -> tuple[tuple[str, float], ...] | None:
        """(slug, score) for every label of the task in label-set order, parents too: that any of its children is named;
        then `NO_LABEL` where the task may answer so. Of the steps that there are; None without any."""
        if not self._steps:
            return None
        found = []
        for label in self._task.labels:
            slugs = [label.slug]
            if self._task.kind == "hierarchical" and label.parent is None:
                slugs = [child.slug for child in self._task.labels if child.parent == label.slug]
            found.append((label.slug, self._score(slugs)))
        if self._task.none_allowed:
            found.append((NO_LABEL, self._steps[0][NO_LABEL]))
        return tuple(found)

    def _score(self, slugs: Sequence[str]) -> float:
        """Probability that any of these labels is named."""
        score = 0.0
        for step in reversed(self._steps):
            here = sum(step.get(slug, 0.0) for slug in slugs)
            score = here + max(0.0, 1.0 - here - step.get(NO_LABEL, 0.0)) * score
        return score
