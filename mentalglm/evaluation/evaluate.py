"""One set of predictions against gold labels: counts, then scores, then how sure they are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mentalglm.errors import InputError
from mentalglm.evaluation.align import Extra, Rows, align, implied_parents, parents_of
from mentalglm.evaluation.bootstrap import interval, resampled_sums
from mentalglm.evaluation.calibration import calibrations
from mentalglm.evaluation.metrics import (
    Average,
    Bits,
    Counts,
    Floats,
    Integers,
    Scores,
    confusion,
    contributions,
    exact_rows,
)
from mentalglm.tasks import Task
from mentalglm.tasks.task import Slug

FREE_FORM, OUT_OF_SET = "free_form", "out_of_set_label"
"""Flags of the parser: the answer had not the task's own form · it named a label that the task does not have."""


@dataclass(frozen=True)
class Level:
    """A label set that is counted: that of the task, or one level of a hierarchical task's."""

    name: str
    """`label`; of a hierarchical task `parent` or `child`."""
    slugs: tuple[Slug, ...]
    average: Average
    positive: int | None
    """Column of the positive label of a binary task."""
    gold: Bits
    """(num_rows, num_labels)."""
    predicted: Bits
    num_out_of_set: Integers
    """(num_rows,)."""
    is_read: Bits
    """(num_rows,): whether anything was taken from the answer."""

    def contributions(self) -> npt.NDArray[np.uint8]:
        """See `metrics.contributions`."""
        return contributions(self.gold, self.predicted, self.num_out_of_set, self.is_read)

    @property
    def is_exact(self) -> Bits:
        """See `metrics.exact_rows`."""
        return exact_rows(self.gold, self.predicted, self.num_out_of_set, self.is_read)

    @cached_property
    def counts(self) -> Counts:
        """Over all rows."""
        return Counts.from_sums(self.contributions().sum(axis=0, dtype=np.float64))

    def scores(self, counts: Counts) -> Scores:
        """By the average that the task's metric names."""
        return counts.average(self.average, self.positive)

    def statistics(self, counts: Counts) -> dict[str, Floats]:
        """Everything that gets an interval, by name."""
        scores = self.scores(counts)
        return {**scores._asdict(), "macro_f1": counts.average("macro").f1, "accuracy": counts.accuracy}

    def held_to_form(self, has_form: Bits, names_others: Bits) -> "Level":
        """The same with nothing predicted where `has_form` is false, and one more label out of the set where
        `names_others`."""
        others = np.maximum(self.num_out_of_set, names_others) if self.name != "parent" else self.num_out_of_set
        predicted = self.predicted & has_form[:, None]
        return replace(self, predicted=predicted, num_out_of_set=others, is_read=self.is_read & has_form)


@dataclass(frozen=True)
class Evaluation:
    """What predictions are worth against gold labels.

    Two readings. The first (lenient) takes what the parser could read, which is what the column `labels` holds. The
    strict one takes only answers in exactly the task's own form (no flag `free_form`); each row that named a label the
    task does not have (flag `out_of_set_label`) is a wrong prediction there, in the micro average. Rows that a reading
    takes nothing from predict nothing: they are misses, never a class, and stay in the denominator.
    """

    task: Task
    rows: Rows
    num_bootstrap: int
    seed: int
    clusters: Integers | None
    """(num_rows,): which rows are resampled together; None: each by itself."""
    tells_form: bool
    """Whether flags tell the form of answers; else there is no strict reading."""

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """One, or parents and children."""
        average = cast(Average, self.task.metric.removesuffix("_f1"))
        rows, positive = self.rows, None
        if self.task.positive is not None:
            positive = self.task.answerable.index(self.task.positive)
        name = "child" if self.task.kind == "hierarchical" else "label"
        slugs, others = self.task.answerable, rows.num_out_of_set
        lowest = Level(name, slugs, average, positive, rows.gold, rows.predicted, others, rows.is_ok)
        if self.task.kind != "hierarchical":
            return (lowest,)
        gold, predicted, none = rows.gold_parents, rows.predicted_parents, np.zeros_like(others)
        return (Level("parent", parents_of(self.task), average, None, gold, predicted, none, rows.is_ok), lowest)

    @property
    def headline(self) -> float:
        """F1 by the task's metric; of a hierarchical task, of the children."""
        level = self.levels[-1]
        return float(level.scores(level.counts).f1)

    @cached_property
    def strict_levels(self) -> tuple[Level, ...] | None:
        """`levels` of the strict reading, if there is one."""
        if not self.tells_form:
            return None
        has_form = self.rows.is_ok & ~self.rows.has_flag(FREE_FORM)
        names_others = self.rows.has_flag(OUT_OF_SET)
        return tuple(level.held_to_form(has_form, names_others) for level in self.levels)

    @cached_property
    def ci95(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Level -> statistic -> 95 % interval of a bootstrap over posts; empty without replicates."""
        if not self.num_bootstrap:
            return {}
        blocks = [level.contributions() for level in self.levels]
        sums = resampled_sums(np.concatenate(blocks, axis=1), self.clusters, self.num_bootstrap, self.seed)
        found, start = {}, 0
        for level, block in zip(self.levels, blocks, strict=True):
            counts = Counts.from_sums(sums[:, start : start + block.shape[1]])
            start += block.shape[1]
            found[level.name] = {name: interval(values) for name, values in level.statistics(counts).items()}
        return found

    def hierarchical(self) -> Scores:
        """Hierarchical precision, recall and F of Kiritchenko et al. as in Silla and Freitas (2011), sec. 6: labels of
        each row together with their ancestors, pooled over rows. A right parent of a wrong child counts."""
        rows = self.rows
        parents = rows.predicted_parents | implied_parents(self.task, rows.predicted)
        gold = np.concatenate([rows.gold_parents, rows.gold], axis=1)
        predicted = np.concatenate([parents, rows.predicted], axis=1)
        each = contributions(gold, predicted, rows.num_out_of_set, rows.is_ok)
        return Counts.from_sums(each.sum(axis=0, dtype=np.float64)).average("micro")

    def consistency(self) -> dict[str, int]:
        """How the two levels of the predictions fit: rows with a child whose parent is not among `parents`; rows whose
        answer put a child under a wrong parent (the child was believed), or named a parent without a child."""
        is_orphan = (implied_parents(self.task, self.rows.predicted) & ~self.rows.predicted_parents).any(axis=1)
        return {
            "num_with_child": int(self.rows.predicted.any(axis=1).sum()),
            "num_child_without_parent": int(is_orphan.sum()),
            "num_child_under_wrong_parent": int(self.rows.has_flag("hierarchy_conflict").sum()),
            "num_parent_without_child": int(self.rows.has_flag("parent_only").sum()),
        }

    def denominators(self) -> dict[str, Any]:
        """What the shares are shares of, and what is not in their numerators."""
        statuses = Counter(self.rows.table["status"].cast(pa.string()).to_pylist())
        is_ok = self.rows.is_ok
        says_none = is_ok & ~self.rows.predicted.any(axis=1) & ~self.rows.predicted_parents.any(axis=1)
        names_others = self.rows.has_flag(OUT_OF_SET) | (self.rows.num_out_of_set > 0)
        return {
            "n": len(is_ok),
            "num_parsed": statuses.pop("ok", 0),
            "num_failed_by_status": dict(sorted(statuses.items())),
            "num_free_form": int((is_ok & self.rows.has_flag(FREE_FORM)).sum()) if self.strict_levels else None,
            "num_without_label": int((says_none & (self.rows.num_out_of_set == 0)).sum()),
            "num_with_out_of_set_label": int(names_others.sum()),
        }

    def to_json(self) -> dict[str, Any]:
        """What `metrics.json` holds of it. Shares from 0 to 1."""
        level = self.levels[-1]
        headline = {"metric": self.task.metric, "level": level.name, "value": self.headline}
        found = {"task": self.task.name, "headline": headline, **self.denominators()}
        strict = self.strict_levels or [None] * len(self.levels)
        by_level = {
            level.name: self._level_to_json(level, form) for level, form in zip(self.levels, strict, strict=True)
        }
        found |= by_level if len(by_level) > 1 else by_level["label"]
        if self.task.kind in ("binary", "multiclass"):
            found["confusion"] = self._confusion()
        if self.task.kind == "hierarchical":
            found["hierarchical"] = _plain(self.hierarchical())
            found["consistency"] = self.consistency()
        if probable := calibrations(self.task, self.rows):
            found["calibration"] = {slug: asdict(each) for slug, each in probable.items()}
        return found | {"num_bootstrap": self.num_bootstrap, "seed": self.seed}

    def _level_to_json(self, level: Level, strict: Level | None) -> dict[str, Any]:
        counts = level.counts
        averages: list[Average] = ["macro", "weighted"]
        if self.task.kind not in ("binary", "multiclass"):
            averages.insert(0, "micro")
        return {
            **_plain(level.scores(counts)),
            "average": level.average,
            "ci95": {name: list(ends) for name, ends in self.ci95[level.name].items()} if self.ci95 else None,
            "strict": _plain(strict.scores(strict.counts)) if strict else None,
            **{how: _plain(counts.average(how)) for how in averages},
            "accuracy": float(counts.accuracy),
            "hamming_loss": float(counts.hamming_loss),
            "per_label": _per_label(level.slugs, counts),
        }

    def _confusion(self) -> dict[Slug, dict[str, int]]:
        """gold label -> predicted label -> rows; `no_result` where nothing is predicted."""
        slugs = self.task.answerable
        table = confusion(self.rows.gold, self.rows.predicted).tolist()
        names = (*slugs, "no_result")
        return {slug: dict(zip(names, row, strict=True)) for slug, row in zip(slugs, table, strict=True)}


def evaluate(
    task: Task,
    gold: Mapping[str, Sequence[Slug]],
    predictions: pa.Table,
    *,
    extra_predictions: Extra = "error",
    clusters: Mapping[str, str] | None = None,
    num_bootstrap: int = 10_000,
    seed: int = 0,
    tells_form: bool = True,
) -> Evaluation:
    """Evaluates the predictions of one task (of one adapter) on the rows that have gold labels.

    `gold`: post id -> slugs of `task.answerable`; empty where no label applies.
    `predictions`: columns `post_id`, `status`, `labels` and, where they are there, `parents`, `flags`, of a run.
    `extra_predictions`: `ignore` leaves out predictions without a gold label.
    `clusters`: post id -> what is resampled together, such as the post that a sentence is of.
    `num_bootstrap`: replicates of the intervals, made when they are first asked for (`ci95`, `to_json`); 0: none.
    `tells_form`: whether answers that had not the task's form have the flag `free_form`; those of parser 4 on have.
    Raises: InputError, which counts and names ids: missing on either side, twice, with impossible labels.
    """
    rows = align(task, gold, predictions, extra_predictions)
    numbers = None if clusters is None else _numbers(gold, clusters)
    return Evaluation(task, rows, num_bootstrap, seed, numbers, tells_form and "flags" in predictions.column_names)


def _numbers(gold: Mapping[str, Sequence[Slug]], clusters: Mapping[str, str]) -> Integers:
    if missing := [post_id for post_id in gold if post_id not in clusters]:
        raise InputError(f"gold: {len(missing)} rows have no cluster ({', '.join(missing[:5])}); give each one")
    names = pa.array([clusters[post_id] for post_id in gold], pa.string())
    numbers: Integers = names.dictionary_encode().indices.to_numpy().astype(np.int64)
    return numbers


def _plain(scores: Scores) -> dict[str, float]:
    return {name: float(value) for name, value in scores._asdict().items()}


def _per_label(slugs: Sequence[Slug], counts: Counts) -> dict[Slug, dict[str, float | int]]:
    scores = counts.per_label()
    return {
        slug: {
            "precision": float(scores.precision[at]),
            "recall": float(scores.recall[at]),
            "f1": float(scores.f1[at]),
            "support": int(counts.support[at]),
            "num_predicted": int(counts.num_predicted[at]),
            "num_true_positives": int(counts.true_positives[at]),
        }
        for at, slug in enumerate(slugs)
    }
