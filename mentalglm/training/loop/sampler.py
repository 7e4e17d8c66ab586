"""Which examples a step learns from: a function of seed and step, so that there is no state to save."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


class Sampler:
    """The batches of all epochs.

    A source is a file or, where tasks have weights of their own, a task in it. In each epoch, an example of a source
    with weight w is seen w times; of a fractional part, examples are drawn anew in each epoch, at least one of a
    source. The order is random, and the last batch of an epoch may be smaller. Random numbers are numpy's (PCG64),
    seeded by (seed, epoch).
    """

    def __init__(self, sources: npt.NDArray[np.int32], weights: Sequence[float], *, batch_size: int, seed: int) -> None:
        """`sources`: of each example, the index of its weight."""
        members = [np.flatnonzero(sources == number).astype(np.int64) for number in range(len(weights))]
        self._members = [rows for rows in members if len(rows)]
        self._num_drawn = [
            max(1, round(weight * len(rows))) for weight, rows in zip(weights, members, strict=True) if len(rows)
        ]
        self._batch_size = batch_size
        self._seed = seed
        self._order = lru_cache(maxsize=1)(self._draw)

    @property
    def num_rows(self) -> int:
        """Of an epoch."""
        return sum(self._num_drawn)

    @property
    def num_steps(self) -> int:
        """Of an epoch."""
        return -(-self.num_rows // self._batch_size)

    def batch(self, step: int) -> Indices:
        """The examples of a step; steps count from 0 and go on from epoch to epoch."""
        epoch, index = divmod(step, self.num_steps)
        return self._order(epoch)[index * self._batch_size : (index + 1) * self._batch_size]

    def _draw(self, epoch: int) -> Indices:
        rng = np.random.default_rng([self._seed, epoch])
        drawn: list[Indices] = []
        for num_drawn, rows in zip(self._num_drawn, self._members, strict=True):
            whole, num_more = divmod(num_drawn, len(rows))
            drawn += [rows] * whole + [rng.choice(rows, num_more, replace=False)]
        return rng.permutation(np.concatenate(drawn))


def micro_batches(
    batch: Indices, lengths: npt.NDArray[np.int64], *, num_workers: int, micro_batch_size: int
) -> list[list[Indices]]:
    """A batch dealt to workers: for each, its micro-batches, as many for one as for another; some may be empty.

    Examples of like length lie together, so that little is padding: their gradients are added up, and the order in a
    batch is free. Long and short micro-batches are dealt in turns.
    """
    num_each = -(-len(batch) // (num_workers * micro_batch_size))
    by_length = batch[np.argsort(-lengths[batch], kind="stable")]
    dealt = np.array_split(by_length, num_each * num_workers)
    return [
        [
            dealt[turn * num_workers + (worker if turn % 2 == 0 else num_workers - 1 - worker)]
            for turn in range(num_each)
        ]
        for worker in range(num_workers)
    ]
