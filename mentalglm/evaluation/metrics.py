"""Precision, recall and F1 of counted labels, for one evaluation or for many resampled ones at once.

Definitions are scikit-learn's, with `zero_division=0`. A row that predicts nothing, since its answer could not be read,
is a miss of what it should have said and no prediction of anything: it is never dropped and never a class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Average = Literal["binary", "micro", "macro", "weighted"]
Floats = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


class Scores(NamedTuple):
    """Each a share from 0 to 1, of the shape that the counts have without their last axis."""

    precision: Floats
    recall: Floats
    f1: Floats


@dataclass(frozen=True, slots=True)
class Counts:
    """What there is to count of a label set; arrays (..., num_labels) but for the last three, which are (...)."""

    true_positives: Floats
    num_predicted: Floats
    support: Floats
    """Gold labels."""
    num_out_of_set: Floats
    """Predicted labels that the label set does not have: wrong, whatever the row's gold is."""
    num_exact: Floats
    """Rows whose predicted labels are the gold ones, no more and no less."""
    num_rows: Floats

    @classmethod
    def from_sums(cls, sums: Floats) -> "Counts":
        """`sums` (..., 3 * num_labels + 3) of the rows of `contributions`."""
        num_labels = sums.shape[-1] // 3 - 1
        hits, predicted, support = (sums[..., at * num_labels : (at + 1) * num_labels] for at in range(3))
        return cls(hits, predicted, support, sums[..., -3], sums[..., -2], sums[..., -1])

    @property
    def accuracy(self) -> Floats:
        """Share of rows whose predicted labels are the gold ones: of several labels, all of them (subset accuracy)."""
        return divide(self.num_exact, self.num_rows)

    @property
    def hamming_loss(self) -> Floats:
        """Share of (row, label) pairs that are wrong."""
        wrong = (self.num_predicted + self.support - 2 * self.true_positives).sum(-1)
        return divide(wrong, self.num_rows * self.support.shape[-1])

    def per_label(self) -> Scores:
        """Of each label by itself, (..., num_labels)."""
        return _scores(self.true_positives, self.num_predicted, self.support)

    def average(self, how: Average, positive: int | None = None) -> Scores:
        """binary: of the label in column `positive` · micro: labels pooled, those out of the set too · macro: mean over
        the labels that occur, in gold or predictions · weighted: mean by support.

        Micro is for tasks with any number of labels: of one label a row it is the accuracy, whatever it is called.
        """
        if how == "binary":
            if positive is None:
                raise ValueError("a binary average is of the positive label; say which column that is")
            columns = (self.true_positives, self.num_predicted, self.support)
            return _scores(*(column[..., positive] for column in columns))
        if how == "micro":
            num_predicted = self.num_predicted.sum(-1) + self.num_out_of_set
            return _scores(self.true_positives.sum(-1), num_predicted, self.support.sum(-1))
        weights = self.support if how == "weighted" else ((self.support + self.num_predicted) > 0).astype(float)
        return Scores(*(divide((each * weights).sum(-1), weights.sum(-1)) for each in self.per_label()))


def contributions(gold: Bits, predicted: Bits, num_out_of_set: Integers, is_read: Bits) -> npt.NDArray[np.uint8]:
    """What each row adds to `Counts`: (num_rows, 3 * num_labels + 3), from (num_rows, num_labels) twice and
    (num_rows,) twice."""
    is_exact = exact_rows(gold, predicted, num_out_of_set, is_read)
    others = np.stack([np.minimum(num_out_of_set, 255), is_exact, np.ones_like(is_exact)], axis=1)
    found: npt.NDArray[np.uint8] = np.concatenate([gold & predicted, predicted, gold, others], axis=1).astype(np.uint8)
    return found


def exact_rows(gold: Bits, predicted: Bits, num_out_of_set: Integers, is_read: Bits) -> Bits:
    """(num_rows,): whether the predicted labels are the gold ones, no more and no less. What could not be read never
    is: where no label is gold, it would be right for having said nothing."""
    is_exact: Bits = (gold == predicted).all(axis=1) & (num_out_of_set == 0) & is_read
    return is_exact


def confusion(gold: Bits, predicted: Bits) -> Integers:
    """Rows by gold label and predicted label, (num_labels, num_labels + 1), of tasks with one label a row; the last
    column holds rows that predict nothing."""
    columns = np.concatenate([predicted, ~predicted.any(axis=1, keepdims=True)], axis=1)
    return gold.T.astype(np.int64) @ columns.astype(np.int64)


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """Element by element; 0 where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator != 0)


def _scores(true_positives: Floats, num_predicted: Floats, support: Floats) -> Scores:
    return Scores(
        divide(true_positives, num_predicted),
        divide(true_positives, support),
        divide(2 * true_positives, num_predicted + support),
    )


def multi_hot(rows: Integers, columns: Integers, shape: Sequence[int]) -> Bits:
    """True at (row, column) of each pair; a pair may come more than once."""
    bits = np.zeros(tuple(shape), dtype=np.bool_)
    bits[rows, columns] = True
    return bits
