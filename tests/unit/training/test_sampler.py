"""Batches as a function of seed and step, and how they are dealt to workers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentalglm.training.loop.sampler import Sampler, micro_batches

SIZES = st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0])), min_size=1, max_size=4)


def sampler(sizes: list[tuple[int, float]], batch_size: int, seed: int = 0) -> Sampler:
    sources = np.repeat(np.arange(len(sizes)), [size for size, _ in sizes]).astype(np.int32)
    return Sampler(sources, [weight for _, weight in sizes], batch_size=batch_size, seed=seed)


@given(SIZES, st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_has_each_example_as_often_as_its_source_weighs(
    sizes: list[tuple[int, float]], batch_size: int, epoch: int
) -> None:
    found = sampler(sizes, batch_size)
    steps = range(epoch * found.num_steps, (epoch + 1) * found.num_steps)
    batches = [found.batch(step) for step in steps]
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 0 < len(batches[-1]) <= batch_size
    counts = np.bincount(np.concatenate(batches), minlength=sum(size for size, _ in sizes))
    start = 0
    for size, weight in sizes:
        each = counts[start : start + size]
        assert each.sum() == max(1, round(size * weight))
        assert each.max() - each.min() <= 1
        start += size


def test_a_batch_follows_from_seed_and_step_alone() -> None:
    forwards, backwards = sampler([(40, 1.0), (10, 0.5)], 8), sampler([(40, 1.0), (10, 0.5)], 8)
    steps = range(3 * forwards.num_steps)
    expected = [forwards.batch(step).tolist() for step in steps]
    assert [backwards.batch(step).tolist() for step in reversed(steps)] == expected[::-1]
    other = sampler([(40, 1.0), (10, 0.5)], 8, seed=1)
    assert [other.batch(step).tolist() for step in steps] != expected
    assert expected[: forwards.num_steps] != expected[forwards.num_steps : 2 * forwards.num_steps]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=70), st.integers(1, 5), st.integers(1, 9))
def test_micro_batches_deal_a_batch_out(lengths: list[int], num_workers: int, size: int) -> None:
    batch = np.random.default_rng(0).permutation(len(lengths)).astype(np.int64)
    dealt = micro_batches(batch, np.array(lengths), num_workers=num_workers, micro_batch_size=size)
    assert len(dealt) == num_workers
    assert len({len(mine) for mine in dealt}) == 1, "as many for one worker as for another"
    assert all(len(each) <= size for mine in dealt for each in mine)
    assert sorted(np.concatenate([each for mine in dealt for each in mine]).tolist()) == sorted(batch.tolist())


def test_examples_of_like_length_lie_together() -> None:
    lengths = np.array([900, 10, 11, 800, 12, 850, 13, 700])
    [[long, short]] = micro_batches(np.arange(8), lengths, num_workers=1, micro_batch_size=4)
    assert sorted(long.tolist()) == [0, 3, 5, 7]
    assert sorted(short.tolist()) == [1, 2, 4, 6]


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_the_paper_s_steps(weight: float) -> None:
    """46,758 records in batches of 32: 1,462 steps; twice as many records, 2,923."""
    found = sampler([(46_758, weight)], 32)
    assert found.num_steps == {1.0: 1_462, 2.0: 2_923}[weight]
