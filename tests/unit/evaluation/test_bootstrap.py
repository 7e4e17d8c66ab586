"""Intervals: those of a plain bootstrap, row by row, at a fraction of its time."""

import time

import numpy as np
import pytest
from scipy.stats import binom

from mentalglm.evaluation.bootstrap import interval, resampled_sums
from mentalglm.evaluation.metrics import Counts, Floats, contributions


def random_rows(
    num_rows: int, num_labels: int = 12, seed: int = 0
) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    generator = np.random.default_rng(seed)
    gold = generator.random((num_rows, num_labels)) < 0.15
    predicted = gold ^ (generator.random((num_rows, num_labels)) < 0.08)
    return contributions(gold, predicted, np.zeros(num_rows, dtype=np.int64), np.ones(num_rows, dtype=np.bool_))


def micro_f1(sums: Floats) -> Floats:
    return Counts.from_sums(sums).average("micro").f1


def test_intervals_are_those_of_drawing_row_by_row() -> None:
    rows = random_rows(300)
    generator = np.random.default_rng(1)
    drawn = generator.integers(0, len(rows), (4000, len(rows)))
    plain = interval(micro_f1(np.stack([rows[each].sum(axis=0, dtype=float) for each in drawn])))
    assert interval(micro_f1(resampled_sums(rows, None, 10_000, 0))) == pytest.approx(plain, abs=0.006)


def test_replicates_of_a_share_are_binomial() -> None:
    rows = random_rows(250)
    share = rows[:, -2].mean()
    replicates = resampled_sums(rows, None, 20_000, 0)[:, -2] / len(rows)
    expected = binom.ppf([0.025, 0.975], len(rows), share) / len(rows)
    assert interval(replicates) == pytest.approx(tuple(expected), abs=1.01 / len(rows))
    assert replicates.std() == pytest.approx(np.sqrt(share * (1 - share) / len(rows)), rel=0.03)


def test_every_replicate_has_as_many_rows() -> None:
    assert set(resampled_sums(random_rows(70), None, 100, 0)[:, -1]) == {70.0}


def test_the_order_of_rows_is_of_no_consequence_and_the_seed_is() -> None:
    rows = random_rows(400)
    shuffled = rows[np.random.default_rng(2).permutation(len(rows))]
    first = resampled_sums(rows, None, 50, 3)
    np.testing.assert_array_equal(first, resampled_sums(shuffled, None, 50, 3))
    assert (first != resampled_sums(rows, None, 50, 4)).any()


def test_sentences_of_a_post_are_drawn_together() -> None:
    """Each post has five equal sentences: they tell as much as one, and taken one by one pretend to tell more."""
    posts = random_rows(100)
    sentences = np.repeat(posts, 5, axis=0)
    clusters = np.repeat(np.arange(100), 5)
    of_posts = interval(micro_f1(resampled_sums(posts, None, 4000, 0)))
    together = interval(micro_f1(resampled_sums(sentences, clusters, 4000, 0)))
    one_by_one = interval(micro_f1(resampled_sums(sentences, None, 4000, 0)))
    assert together == pytest.approx(of_posts, abs=0.01)
    assert np.diff(one_by_one) < 0.6 * np.diff(together)


def test_ten_thousand_replicates_take_seconds() -> None:
    began = time.process_time()
    resampled_sums(random_rows(3000, num_labels=23), None, 10_000, 0)
    assert time.process_time() - began < 10  # about 1 s; of the processor: the machine may be busy
