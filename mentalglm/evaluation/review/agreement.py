"""How far experts agree: quadratic-weighted kappa, ICC and Krippendorff's alpha, with intervals over posts.

Each of the three depends on nothing but sums of what the items contribute, so the replicates of a bootstrap are
computed all at once from resampled sums (`evaluation.bootstrap`), by the same formula as the statistic itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from mentalglm.evaluation.bootstrap import interval, resampled_sums
from mentalglm.evaluation.metrics import Bits, Floats, Integers

Level = Literal["ordinal", "interval"]

_MOST_UNDEFINED = 0.05
"""Share of replicates without a value from which on the others would be a biased selection."""
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Statistic:
    """One figure of agreement."""

    value: float | None
    """1: perfect; 0: as by chance (ICC: no more alike than scores of different items)."""
    ci95: tuple[float, float] | None
    num_items: int
    """Items that it is of: those that every expert has rated (ICC), or two or more of them (kappa, alpha)."""
    reason: str | None = None
    """Why there is no value, or no interval."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made."""

    num_replicates: int
    """0: none are made."""
    seed: int
    clusters: Integers
    """(num_items,): items with one number, those of one post, are drawn together."""

    def of(self, contributions: Floats) -> Floats:
        """(num_replicates, num_columns) sums."""
        return resampled_sums(contributions, self.clusters, self.num_replicates, self.seed)


def weighted_kappa(scores: Floats, num_scores: int, resampling: Resampling) -> Statistic:
    """Cohen's kappa (1968) with quadratic weights; of more than two experts its mean over the pairs (Light, 1971).

    `scores`: (num_experts, num_items), whole numbers from 0 to below `num_scores`, NaN where one is missing. Each pair
    is compared on the items that both have rated; where one has none, there is no mean. Of one pair it is
    scikit-learn's `cohen_kappa_score` with `weights="quadratic"`.
    """
    is_rated = ~np.isnan(scores)
    pairs = list(combinations(range(len(scores)), 2))
    is_used = is_rated.sum(axis=0) > 1
    have_common = [(is_rated[first] & is_rated[second]).any() for first, second in pairs]
    if any(have_common) and not all(have_common):
        return Statistic(None, None, int(is_used.sum()), "two of the experts have rated no item in common")
    cells = np.zeros((scores.shape[1], len(pairs), num_scores, num_scores))
    for number, (first, second) in enumerate(pairs):
        items = np.flatnonzero(is_rated[first] & is_rated[second])
        cells[items, number, scores[first, items].astype(int), scores[second, items].astype(int)] = 1
    weights = (np.arange(num_scores)[:, None] - np.arange(num_scores)) ** 2

    def kappa(sums: Floats) -> Floats:
        table = sums.reshape(*sums.shape[:-1], *cells.shape[1:])
        by_chance = table.sum(-1)[..., :, None] * table.sum(-2)[..., None, :]
        observed, expected = (np.sum(each * weights, (-2, -1)) for each in (table, by_chance))
        found: Floats = np.mean(1 - _divide(observed * table.sum((-2, -1)), expected), axis=-1)
        return found

    return _statistic(kappa, cells, is_used, resampling)


def intraclass_correlation(scores: Floats, resampling: Resampling) -> dict[Literal["single", "average"], Statistic]:
    """ICC of a two-way random model, absolute agreement: of a single expert's score, and of the mean over the experts.

    ICC(2,1) and ICC(2,k) of Shrout and Fleiss (1979), by mean squares of an analysis of variance without replication,
    of the items that every expert has rated. `scores`: (num_experts, num_items), NaN where one is missing.
    """
    num_experts = len(scores)
    is_complete: Bits = np.isnan(scores).sum(axis=0) == 0
    complete = np.where(is_complete, scores, 0)
    squares = [np.square(complete).sum(axis=0), np.square(complete.sum(axis=0))]
    contributions = np.stack([is_complete.astype(float), *complete, *squares], axis=1)

    def mean_squares(sums: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Number of items; mean squares between items, between experts, of the rest."""
        num_items, by_expert, squares, squared_sums = (
            sums[..., 0],
            sums[..., 1:-2],
            sums[..., -2],
            sums[..., -1],
        )
        correction = _divide(by_expert.sum(-1) ** 2, num_items * num_experts)
        items = squared_sums / num_experts - correction
        experts = _divide(np.square(by_expert).sum(-1), num_items) - correction
        rest = squares - correction - items - experts
        items, experts, rest = (np.where(each < _TOLERANCE, 0, each) for each in (items, experts, rest))
        freedom = num_items - 1
        between_items = _divide(items, freedom)
        between_experts = _divide(experts, num_experts - 1)
        return num_items, between_items, between_experts, _divide(rest, freedom * (num_experts - 1))

    def single(sums: Floats) -> Floats:
        num_items, items, experts, rest = mean_squares(sums)
        return _divide(
            items - rest, items + (num_experts - 1) * rest + _divide(num_experts * (experts - rest), num_items)
        )

    def average(sums: Floats) -> Floats:
        num_items, items, experts, rest = mean_squares(sums)
        variance = items + _divide(experts - rest, num_items)
        return _divide(items - rest, np.maximum(variance, 0))  # of an estimate below 0 there is no share

    return {
        "single": _statistic(single, contributions, is_complete, resampling),
        "average": _statistic(average, contributions, is_complete, resampling),
    }


def krippendorff_alpha(scores: Floats, num_scores: int, level: Level, resampling: Resampling) -> Statistic:
    """Krippendorff's alpha (Krippendorff, 2011, sec. E), with missing scores. `scores`: (num_experts, num_items), whole
    numbers from 0 to below `num_scores`, NaN where one is missing. Equal to the package krippendorff's `alpha`."""
    counts = (scores[:, :, None] == np.arange(num_scores)).sum(axis=0).astype(float)
    num_rated = counts.sum(axis=1)
    is_paired = num_rated > 1
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(num_scores)
    coincidences = pairs / np.where(is_paired, num_rated - 1, 1)[:, None, None]
    ranks = np.arange(num_scores)

    def alpha(sums: Floats) -> Floats:
        table = sums.reshape(*sums.shape[:-1], num_scores, num_scores)
        marginal = table.sum(-1)
        places = (
            np.cumsum(marginal, -1) - marginal / 2 if level == "ordinal" else np.broadcast_to(ranks, marginal.shape)
        )
        distance = (places[..., :, None] - places[..., None, :]) ** 2
        observed = (table * distance).sum((-2, -1))
        expected = (marginal[..., :, None] * marginal[..., None, :] * distance).sum((-2, -1))
        return 1 - _divide((marginal.sum(-1) - 1) * observed, expected)

    return _statistic(alpha, coincidences, is_paired, resampling)


def _statistic(
    of: Callable[[Floats], Floats], contributions: Floats, is_used: Bits, resampling: Resampling
) -> Statistic:
    """`of`: sums of what the items contribute -> the figure, NaN where it is not defined."""
    num_items = int(is_used.sum())
    if num_items < 2:
        return Statistic(None, None, num_items, "fewer than two items have scores to compare")
    contributions = contributions.reshape(len(contributions), -1)
    value = float(of(contributions.sum(axis=0)))
    if np.isnan(value):
        return Statistic(None, None, num_items, "the scores vary too little to tell agreement from chance")
    if not resampling.num_replicates:
        return Statistic(value, None, num_items, "no replicates were asked for")
    if len(np.unique(resampling.clusters[is_used])) < 2:
        return Statistic(value, None, num_items, "all items are of one post, so there is nothing to draw from")
    replicates = of(resampling.of(contributions))
    is_defined = ~np.isnan(replicates)
    if (share := 1 - is_defined.mean()) > _MOST_UNDEFINED:
        return Statistic(value, None, num_items, f"the scores vary too little in {share:.0%} of the replicates")
    return Statistic(value, interval(replicates[is_defined]), num_items)


def _divide(numerator: Floats, denominator: Floats | int) -> Floats:
    """Element by element; NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, dtype=float), denominator)
    is_zero = np.abs(denominator) < _TOLERANCE
    found: Floats = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=~is_zero)
    return found
