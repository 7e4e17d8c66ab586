"""A sample of a corpus, and what follows from it for the whole.

Two stages. Draws fall on shards with probability proportional to their rows, evenly through the corpus (systematic
sampling), so that files of every time and source are met. Within a shard the rows are ordered by length and cut into as
many strata of equal size as rows are wanted, one row of each. Every row of the corpus has the same chance.

Rows of one shard resemble each other (one source, one day), so the draw is what is counted, not the row: an average
over the corpus is that of the draws' averages, and its error is theirs (Hansen and Hurwitz, On the theory of sampling
from finite populations, Annals of Mathematical Statistics 14, 1943), times the part of the corpus that was not seen.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

CONFIDENCE = 0.95
_MIN_ROWS = 500
_MIN_DRAWS = 20
_MIN_ROWS_PER_DRAW = 8
_MAX_LANES = 15  # shards of the sample that one engine works on at once (pool.py: 16), one of which is being read
_NUM_WAVES = 6


@dataclass(frozen=True, slots=True)
class Draw:
    """Rows of one shard that stand for a part of the corpus."""

    shard: int
    rows: tuple[int, ...]
    """In order, from 0."""
    weight: float
    """Share of the corpus that they stand for; over all draws it sums to 1."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Which rows are asked for. A shard may have several draws; no row is in two."""

    draws: tuple[Draw, ...]
    fraction: float
    """Rows of the sample over rows of the corpus."""

    @property
    def num_rows(self) -> int:
        """Rows of the corpus that are in it."""
        return sum(len(draw.rows) for draw in self.draws)

    def by_shard(self) -> dict[int, list[int]]:
        """shard -> its rows, both in order."""
        rows: dict[int, list[int]] = {}
        for draw in self.draws:
            rows.setdefault(draw.shard, []).extend(draw.rows)
        return {shard: sorted(rows[shard]) for shard in sorted(rows)}


def sample_size(wanted: int | None, *, num_slots: int, num_engines: int, num_questions: int) -> tuple[int, int]:
    """(draws, rows of each). Default: 500 rows, or as many as fill every slot of every engine six times over.

    Draws are as large as it takes to fill an engine from the shards that it works on at once, but there are at least 20
    of them.
    """
    if wanted is None:
        wanted = max(_MIN_ROWS, math.ceil(_NUM_WAVES * num_slots * num_engines / num_questions))
    wanted = max(wanted, _MIN_DRAWS)
    num_rows = max(_MIN_ROWS_PER_DRAW, math.ceil(2 * num_slots / (_MAX_LANES * num_questions)))
    num_rows = min(num_rows, max(1, wanted // _MIN_DRAWS))
    return math.ceil(wanted / num_rows), num_rows


def draw_sample(
    shard_num_rows: IntArray, num_draws: int, rows_per_draw: int, lengths: Callable[[int], Sequence[int]], seed: int
) -> Sample:
    """Draws rows of a corpus; the whole of it where it has no more than are wanted.

    `lengths`: number of a shard -> length of each of its rows, in any unit.
    """
    num_rows = int(shard_num_rows.sum())
    if num_draws * rows_per_draw >= num_rows:
        sizes = [(shard, int(size)) for shard, size in enumerate(shard_num_rows) if size]
        return Sample(tuple(Draw(shard, tuple(range(size)), size / num_rows) for shard, size in sizes), 1.0)
    random = np.random.default_rng(seed)
    draws: list[Draw] = []
    shards, counts = np.unique(draw_shards(shard_num_rows, num_draws, random), return_counts=True)
    for shard, count in zip(shards.tolist(), counts.tolist(), strict=True):
        for rows in draw_rows(lengths(shard), count, rows_per_draw, random):
            draws.append(Draw(shard, tuple(rows), 1 / num_draws))
    return Sample(tuple(draws), sum(len(draw.rows) for draw in draws) / num_rows)


def draw_shards(num_rows: IntArray, num_draws: int, random: np.random.Generator) -> IntArray:
    """A shard for each draw, in order: evenly spaced points in the rows of the corpus, from a random first one."""
    ends = np.cumsum(num_rows)
    points = (random.random() + np.arange(num_draws)) * (ends[-1] / num_draws)
    shards: IntArray = np.searchsorted(ends, np.minimum(points, ends[-1] - 0.5), side="right")
    return shards


def draw_rows(
    lengths: Sequence[int], num_draws: int, rows_per_draw: int, random: np.random.Generator
) -> list[list[int]]:
    """Rows of one shard for each of its draws: one of each stratum of length, dealt out at random."""
    num_rows = min(num_draws * rows_per_draw, len(lengths))
    strata = (random.random() + np.arange(num_rows)) * (len(lengths) / num_rows)
    picked = np.argsort(np.asarray(lengths), kind="stable")[np.minimum(strata.astype(np.int64), len(lengths) - 1)]
    hands: list[list[int]] = [[] for _ in range(num_draws)]
    for first in range(0, num_rows, num_draws):
        neighbours = picked[first : first + num_draws].tolist()
        for hand, row in zip(random.permutation(num_draws).tolist(), neighbours, strict=False):
            hands[hand].append(row)
    return [sorted(hand) for hand in hands if hand]


def average(values: FloatArray, weights: FloatArray, fraction: float) -> tuple[FloatArray, FloatArray]:
    """(average over the corpus, its standard error), for each column of `values`, one row of it for each draw."""
    mean: FloatArray = weights @ values
    if len(weights) == 1 and fraction < 1:
        return mean, np.full_like(mean, np.inf)
    spread = (weights**2) @ (values - mean) ** 2 * (len(weights) / max(len(weights) - 1, 1))
    return mean, np.sqrt(spread * (1 - fraction))


def t_value(num_values: int) -> float:
    """How many standard errors the interval reaches to either side, where the error is that of so many values."""
    return float(stdtrit(max(num_values - 1, 1), (1 + CONFIDENCE) / 2))


def share_interval(share: float, error: float, num_rows: int, num_draws: int) -> tuple[float, float]:
    """Interval of a share, Wilson's, for as many independent rows as would have this standard error: one that was not
    seen may still be there."""
    if num_draws < 2 or num_rows == 0:
        return (share, share)
    share = round(share, 9)  # what is all or nothing is so in spite of rounding
    num_effective = share * (1 - share) / error**2 if error > 0 and 0 < share < 1 else num_rows
    z2 = t_value(num_draws) ** 2 / num_effective
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(share * (1 - share) * z2 + z2**2 / 4) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)
