"""The sample of an estimate, on corpora made up for it: who is drawn, and whether the intervals hold."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.scoring.forecast.meter import engine_rate
from mentalglm.scoring.forecast.sample import (
    FloatArray,
    Sample,
    average,
    draw_rows,
    draw_sample,
    sample_size,
    share_interval,
    t_value,
)


class Corpus:
    """Shards of very different sizes, each with a manner of its own: some hold long posts, some are talkative."""

    def __init__(self, num_shards: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.num_rows = random.integers(1, 300, num_shards)
        self.lengths = [random.lognormal(3 + random.normal() / 2, 1, size).astype(int) for size in self.num_rows]
        self.tokens: list[FloatArray] = [
            20 + 0.3 * lengths + 10 * random.normal() + random.exponential(15, len(lengths)) for lengths in self.lengths
        ]
        self.fails = [random.random(size) < 0.05 * random.random() for size in self.num_rows]

    def lengths_of(self, shard: int) -> Sequence[int]:
        return self.lengths[shard].tolist()

    def sample(self, num_draws: int, rows_per_draw: int, seed: int) -> Sample:
        return draw_sample(self.num_rows, num_draws, rows_per_draw, self.lengths_of, seed)

    def averages(self, sample: Sample) -> tuple[FloatArray, FloatArray]:
        """Tokens of a row, and the share of rows that fail: as estimated, and the standard errors."""
        values = [
            [self.tokens[draw.shard][list(draw.rows)].mean(), self.fails[draw.shard][list(draw.rows)].mean()]
            for draw in sample.draws
        ]
        weights = np.array([draw.weight for draw in sample.draws])
        return average(np.array(values), weights, sample.fraction)


CORPUS = Corpus(200, seed=1)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=80),
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
)
def test_each_stratum_of_length_gives_one_row_and_no_row_is_drawn_twice(
    lengths: list[int], num_draws: int, rows_per_draw: int, seed: int
) -> None:
    hands = draw_rows(lengths, num_draws, rows_per_draw, np.random.default_rng(seed))
    rows = [row for hand in hands for row in hand]
    num_strata = min(num_draws * rows_per_draw, len(lengths))
    assert len(rows) == len(set(rows)) == num_strata
    ranks = np.argsort(np.argsort(lengths, kind="stable"), kind="stable")
    strata = [int((ranks[row] + 1) * num_strata / len(lengths) - 1e-9) for row in rows]
    # A row on the border of two strata may stand for either.
    assert all(abs(stratum - wanted) <= 1 for stratum, wanted in zip(sorted(strata), range(num_strata), strict=True))
    assert max(map(len, hands)) - min(map(len, hands)) <= 1


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=40).filter(any),
    st.integers(1, 30),
    st.integers(1, 10),
    st.integers(0, 2**32 - 1),
)
def test_a_sample_stands_for_the_whole_corpus_and_is_the_same_again(
    sizes: list[int], num_draws: int, rows_per_draw: int, seed: int
) -> None:
    num_rows = np.array(sizes)

    def draw() -> Sample:
        return draw_sample(num_rows, num_draws, rows_per_draw, lambda shard: list(range(sizes[shard])), seed)

    sample = draw()
    assert sample == draw()
    assert sum(each.weight for each in sample.draws) == pytest.approx(1)
    assert all(each.rows for each in sample.draws)
    pairs = [(each.shard, row) for each in sample.draws for row in each.rows]
    assert len(pairs) == len(set(pairs)) == sample.num_rows <= sum(sizes)
    assert all(0 <= row < sizes[shard] for shard, row in pairs)
    assert {shard: len(rows) for shard, rows in sample.by_shard().items()} == {
        shard: sum(each == shard for each, _ in pairs) for shard in sorted({shard for shard, _ in pairs})
    }
    if num_draws * rows_per_draw >= sum(sizes):
        assert sample.num_rows == sum(sizes)
        assert sample.fraction == 1


def test_every_row_has_the_same_chance() -> None:
    sizes = [5, 40, 1, 14]
    counts = [np.zeros(size) for size in sizes]
    for seed in range(3000):
        sample = draw_sample(np.array(sizes), 4, 3, lambda shard: [7] * sizes[shard], seed)
        for draw in sample.draws:  # what it counts for, where a shard has too few rows for its draw
            counts[draw.shard][list(draw.rows)] += draw.weight / len(draw.rows)
    chances = np.concatenate(counts) * sum(sizes) / 3000
    assert abs(chances - 1).max() < 0.25


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    tokens = np.concatenate(CORPUS.tokens).mean()
    fails = np.concatenate(CORPUS.fails).mean()
    held = np.zeros(2)
    errors = []
    for seed in range(400):
        sample = CORPUS.sample(40, 12, seed)
        mean, error = CORPUS.averages(sample)
        errors.append(mean[0] - tokens)
        held[0] += abs(mean[0] - tokens) <= t_value(len(sample.draws)) * error[0]
        low, high = share_interval(mean[1], error[1], sample.num_rows, len(sample.draws))
        held[1] += low <= fails <= high
    assert abs(np.mean(errors)) < 0.01 * tokens  # no bias
    assert 0.91 <= held[0] / 400 <= 0.99
    assert 0.91 <= held[1] / 400 <= 1


def test_rows_of_one_shard_alone_promise_less_than_rows_of_many() -> None:
    _, few = CORPUS.averages(CORPUS.sample(8, 60, 3))
    _, many = CORPUS.averages(CORPUS.sample(80, 6, 3))
    assert few[0] > 1.5 * many[0]


def test_a_corpus_that_is_asked_for_as_a_whole_leaves_nothing_open() -> None:
    small = Corpus(5, seed=2)
    mean, error = small.averages(small.sample(1000, 10, 0))
    assert mean[0] == pytest.approx(np.concatenate(small.tokens).mean())
    assert error.tolist() == [0, 0]


def test_a_share_that_was_not_seen_may_still_be_there() -> None:
    low, high = share_interval(0.0, 0.0, 500, 40)
    assert low == 0
    assert 0.005 < high < 0.01  # the rule of three says 0.006
    assert share_interval(1 - 1e-15, 1e-17, 500, 40) == pytest.approx((1 - high, 1), abs=1e-9)
    clustered, independent = (share_interval(0.1, error, 500, 40) for error in (0.05, 0.0134))
    assert clustered[0] < independent[0] < 0.1 < independent[1] < clustered[1]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 64), st.integers(1, 9), st.none() | st.integers(20, 5000))
def test_a_sample_is_large_enough(num_slots: int, num_engines: int, num_questions: int, wanted: int | None) -> None:
    num_draws, rows_per_draw = sample_size(
        wanted, num_slots=num_slots, num_engines=num_engines, num_questions=num_questions
    )
    assert num_draws >= 20
    assert num_draws * rows_per_draw >= (wanted or 500)
    assert num_draws * rows_per_draw < (wanted or 500) + max(rows_per_draw, 6 * num_slots * num_engines)


def simulated_engine(num_answers: int, num_slots: int, *, per_s: float, seed: int = 0) -> FloatArray:
    """Answers of an engine whose slots get an equal share of `per_s` tokens a second each, all asked for at once."""
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 200, num_answers)
    free = np.zeros(num_slots)
    finished = []
    for each in tokens:
        slot = int(free.argmin())
        free[slot] += each * num_slots / per_s
        finished.append(free[slot])
    return np.stack([np.zeros(num_answers), finished, tokens], axis=1)


def test_the_rate_is_that_of_a_full_engine_and_not_of_one_that_runs_dry() -> None:
    answers = simulated_engine(600, 64, per_s=1000)
    rate = engine_rate(answers, 64)
    assert rate.is_saturated
    assert rate.per_s == pytest.approx(1000, rel=0.001)
    assert rate.error < 1
    whole = answers[:, 2].sum() / answers[:, 1].max()
    assert whole < 960  # what a stop-watch would say


def test_time_without_requests_does_not_count() -> None:
    first = simulated_engine(300, 32, per_s=500)
    gap = first[:, 1].max() + 60
    later = simulated_engine(300, 32, per_s=500, seed=1) + np.array([gap, gap, 0])
    rate = engine_rate(np.concatenate([first, later]), 32)
    assert rate.per_s == pytest.approx(500, rel=0.001)


def test_an_engine_that_was_never_full_may_be_faster() -> None:
    rate = engine_rate(simulated_engine(20, 32, per_s=500), 32)
    assert not rate.is_saturated
    assert rate.per_s < 500


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 16))
def test_the_error_of_a_rate_is_about_what_it_varies_by(seed: int, num_slots: int) -> None:
    random = np.random.default_rng(seed)
    spans = random.exponential(1.0, 2000)
    finished = np.cumsum(spans)
    answers = np.stack([np.zeros(2000), finished, np.full(2000, 10.0)], axis=1)
    rate = engine_rate(answers, num_slots)
    assert abs(rate.per_s - 10) < 6 * max(rate.error, 0.1)
    assert 0.02 < rate.error < 1.5
