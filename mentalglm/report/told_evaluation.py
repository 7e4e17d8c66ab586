"""The counts of one evaluation, each as it may be told, and which scores may stand beside them.

Gold labels and answers are told by the rules of a run: of the posts that are evaluated, of those that could be read, of
a parent label; and of what the run itself, on the same page, tells of all its posts.

A score is a share of such counts, so with one of them it tells the other:

- of a label: shown where the posts that have it and those that were given it are both told as they are
- micro precision, recall and F1: shares of sums over the labels, so these sums count as told. Where a label is hidden,
  another one beside it is a range; and both are so in gold labels as well as in answers, as of a good model the one
  tells the other. Where this cannot be had, such averages are not shown
- weighted F1 and accuracy of a task with more than two labels: as micro
- all others (accuracy of two labels, macro, answers in strict form, McNemar's counts): shown where nothing of the
  evaluation is hidden
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mentalglm.evaluation.evaluate import FREE_FORM, OUT_OF_SET
from mentalglm.evaluation.table import levels_of
from mentalglm.report.disclosure import Count, Disclosure, exact
from mentalglm.report.sources import LabelSet
from mentalglm.report.told import NONE, STATUS, Told, beside_hidden, evaluated_weights, overlapping_labels

OK = "ok"
TRAINED_ON = "trained_on"
SCORES = ("f1", "precision", "recall", "accuracy")


@dataclass(frozen=True)
class ToldEvaluation:
    """What may be told of an evaluation. Labels, statuses and flags of which nothing is told are missing."""

    metrics: Mapping[str, Any]
    """What metrics.json holds."""
    task: LabelSet
    run: Told | None
    """What is told of the run whose posts are evaluated, where it is on the page."""
    rules: Disclosure

    @property
    def is_enough(self) -> bool:
        """Whether there is anything to tell."""
        return int(self.metrics["n"]) >= self.rules.limit

    @cached_property
    def is_whole(self) -> bool:
        """Whether all posts of the run are evaluated."""
        return self.run is not None and self.metrics["n"] == self.run.counts.num_rows

    @cached_property
    def n(self) -> Count:
        """Of the posts that are evaluated."""
        number = self.metrics["n"]
        if not self.is_enough or self.run is None or self.is_whole:
            return self.rules.alone(number)
        return self.rules.part(number, self.run.counts.num_rows)

    @cached_property
    def statuses(self) -> dict[str, Count]:
        """Of OK, answers that could be read, and of each status of the others."""
        numbers = {OK: self.metrics["num_parsed"], **self._failed}
        if not self.is_enough:
            return {}
        if self.is_whole and self.run is not None:
            return {name: count for name, count in (self.run.statuses or {}).items() if name in numbers}
        if self._answers is not None:
            failed = [self._answers[STATUS + name] for name in self._failed]
            low, high = (sum(each[end] for each in failed) for end in (0, 1))
            of_failed = {name: self._answers[STATUS + name] for name in self._failed}
            return {OK: Count(max(0, self.n.low - high), self.n.high - low), **of_failed}
        at_most = {name: self._beside(STATUS + name, number) for name, number in numbers.items()}
        return self.rules.partition(numbers, told=self.n, at_most=at_most) or {}

    @cached_property
    def gold(self) -> dict[str, Count]:
        """By label: posts that have it."""
        numbers = self._by_label("support")
        if not self.is_enough:
            return {}
        said = self._by_label("num_predicted")
        beside = beside_hidden(numbers, said, self.rules)
        for slug, number in ({} if self.is_whole else said).items():
            told = self._beside(slug, number)  # a range, then one as wide here
            as_wide = Count(max(0, numbers[slug] + told.low - number), numbers[slug] + told.high - number)
            beside[slug] = _joined(as_wide, beside.get(slug, as_wide))
        if self.task.is_exclusive:
            return self.rules.partition(numbers, self._weights, self.n, None if len(numbers) == 2 else beside) or {}
        n, wholes, weights = self.metrics["n"], [self.n], self._weights
        found = overlapping_labels(self.task, numbers, n, wholes, self.rules, weights=weights, at_most=beside)
        return found or {}

    @cached_property
    def said(self) -> dict[str, Count]:
        """By label: posts that were given it."""
        numbers = self._by_label("num_predicted")
        if not self.is_enough:
            return {}
        if self.is_whole and self.run is not None:
            return {slug: count for slug, count in (self.run.labels or {}).items() if slug in numbers}
        if self.task.is_exclusive:
            return {slug: self._answers[slug] for slug in numbers} if self._answers is not None else {}
        read = [self.statuses[OK]] if OK in self.statuses else []
        beside = beside_hidden(numbers, self._by_label("support"), self.rules)
        at_most = {
            slug: _joined(self._beside(slug, number), beside.get(slug, exact(number)))
            for slug, number in numbers.items()
        }
        n, wholes = self.metrics["n"], [self.n, *read]
        found = overlapping_labels(self.task, numbers, n, wholes, self.rules, weights=self._weights, at_most=at_most)
        return found or {}

    @cached_property
    def others(self) -> dict[str, Count]:
        """Of flags and of answers that no label applies, where there are any; posts whose text was trained on."""
        numbers = {
            FREE_FORM: self.metrics["num_free_form"],
            NONE: self.metrics["num_without_label"],
            OUT_OF_SET: self.metrics["num_with_out_of_set_label"],
            TRAINED_ON: self.metrics.get("without_training_texts", {}).get("num_in_training"),
        }
        read = [self.statuses[OK]] if OK in self.statuses else []
        found = {}
        for name, number in numbers.items():
            if number and self.is_enough:
                wholes = [self.n] if name == TRAINED_ON else [self.n, *read]
                found[name] = _joined(self.rules.part(number, *wholes), self._beside(name, number))
        return found

    @cached_property
    def is_open(self) -> bool:
        """Whether nothing is hidden."""
        labels = self._by_label("support").keys()
        counts = [self.n, *self.statuses.values(), *self.gold.values(), *self.said.values(), *self.others.values()]
        is_told = labels <= self.gold.keys() and labels <= self.said.keys() and OK in self.statuses
        return self.is_enough and is_told and all(count.is_exact for count in counts)

    def has_scores(self, slug: str) -> bool:
        """Whether scores of a label are shown."""
        return all(slug in told and told[slug].is_exact for told in (self.gold, self.said))

    def scores_of(self, level: Mapping[str, Any]) -> tuple[str, ...]:
        """Which of SCORES are shown, of the average that counts."""
        if self.is_open:
            return SCORES
        if not self.is_enough:
            return ()
        if level["average"] == "binary":
            return SCORES[:3] if self.task.positive is not None and self.has_scores(self.task.positive) else ()
        hidden = [{slug for slug in level["per_label"] if slug not in told or not told[slug].is_exact}
                  for told in (self.gold, self.said)]  # fmt: skip
        if hidden[0] != hidden[1]:  # a good model gives nearly as many posts a label as have it
            return ()
        for key, told in (("support", self.gold), ("num_predicted", self.said)):
            if not _sum_tells_nothing({slug: each[key] for slug, each in level["per_label"].items()}, told):
                return ()
        if level["average"] == "micro":
            return SCORES[:3]
        is_of_many = level["average"] == "weighted" and self.task.is_exclusive and len(level["per_label"]) > 2
        return ("f1", "accuracy") if is_of_many else ()

    @property
    def _failed(self) -> dict[str, int]:
        return {name: number for name, number in self.metrics["num_failed_by_status"].items() if number}

    @cached_property
    def _answers(self) -> dict[str, Count] | None:
        """Of a task with one label a post: labels and failures, which are the parts of all posts. None: nothing."""
        if not self.task.is_exclusive:
            return None
        said = self._by_label("num_predicted")
        numbers = said | {STATUS + name: number for name, number in self._failed.items()}
        if self.metrics["num_without_label"]:
            numbers[NONE] = self.metrics["num_without_label"]
        beside = beside_hidden(said, self._by_label("support"), self.rules) if len(said) > 2 else {}
        at_most = {
            name: _joined(self._beside(name, number), beside.get(name, exact(number)))
            for name, number in numbers.items()
        }
        return self.rules.partition(numbers, self._weights, told=self.n, at_most=at_most)

    @cached_property
    def _weights(self) -> dict[str, int]:
        return evaluated_weights(self.task, self._by_label("support"))

    def _by_label(self, what: str) -> dict[str, int]:
        return by_label(self.metrics, what)

    def _beside(self, name: str, number: int) -> Count:
        """What may be told of a number of evaluated posts beside what the run tells of all its posts: neither of the
        posts that are not evaluated, nor of those of them that are of another kind."""
        told = self.run.told_of(name) if self.run is not None else None
        if self.run is None or told is None:
            return exact(number)
        if self.is_whole:
            return told
        left = Count(self.run.counts.num_rows - self.n.high, self.run.counts.num_rows - self.n.low)
        return self.rules.part(number, told, holds=[Count(told.low - left.high, told.high - left.low)])


def by_label(metrics: Mapping[str, Any], what: str) -> dict[str, int]:
    """Label -> its `support`, or `num_predicted`."""
    levels = levels_of(metrics).values()
    return {slug: each[what] for level in levels for slug, each in level["per_label"].items()}


def _sum_tells_nothing(numbers: Mapping[str, int], told: Mapping[str, Count]) -> bool:
    """Whether who knows what these numbers add up to knows no more of any of them."""
    if not numbers.keys() <= told.keys():
        return False
    total = sum(numbers.values())
    low, high = (sum(told[name][end] for name in numbers) for end in (0, 1))
    ends = [(told[name], total - (high - told[name].high), total - (low - told[name].low)) for name in numbers]
    return all(least <= count.low and count.high <= most for count, least, most in ends)


def _joined(one: Count, other: Count) -> Count:
    return Count(min(one.low, other.low), max(one.high, other.high))
