"""Whether one set of predictions is better than another on the same rows, or only luckier."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest

from mentalglm.evaluation.bootstrap import interval, resampled_sums
from mentalglm.evaluation.evaluate import Evaluation, Level
from mentalglm.evaluation.metrics import Counts, Floats


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of one level: this side minus the other."""

    difference: float
    """Of the F1 that the task's metric names."""
    ci95: tuple[float, float] | None
    """Of the difference, by a paired bootstrap: each replicate draws the same posts for both sides."""
    p_bootstrap: float | None
    """Two-sided: twice the share of replicates on the other side of 0, their number and this one counted (Davison and
    Hinkley, 1997, sec. 4.4); ties with 0 count for both sides."""
    num_only_this: int
    """Rows that this side alone has exactly right."""
    num_only_other: int
    p_mcnemar: float
    """Exact test of McNemar (1947) that each side is as often the one that is right: two-sided binomial."""
    p_bootstrap_holm: float | None = None
    """Adjusted for all comparisons of this evaluation (Holm, 1979)."""
    p_mcnemar_holm: float | None = None


def compare(this: Evaluation, other: Evaluation) -> dict[str, Comparison]:
    """Level -> comparison, of two evaluations of the same gold labels. Replicates, seed and clusters are those of
    `this`."""
    found = {name: _compare(this, *sides) for name, *sides in _sides(this, other)}
    adjusted = holm({name: each.p_mcnemar for name, each in found.items()})
    found = {name: replace(each, p_mcnemar_holm=adjusted[name]) for name, each in found.items()}
    if not this.num_bootstrap:
        return found
    adjusted = holm({name: each.p_bootstrap for name, each in found.items() if each.p_bootstrap is not None})
    return {name: replace(each, p_bootstrap_holm=adjusted[name]) for name, each in found.items()}


def _sides(this: Evaluation, other: Evaluation) -> Iterator[tuple[str, Level, Level]]:
    for mine, theirs in zip(this.levels, other.levels, strict=True):
        assert np.array_equal(mine.gold, theirs.gold), "both sides are in the order of the same gold labels"
        yield mine.name, mine, theirs


def _compare(this: Evaluation, mine: Level, theirs: Level) -> Comparison:
    blocks = [mine.contributions(), theirs.contributions()]
    both = np.concatenate(blocks, axis=1)

    def difference(sums: Floats) -> Floats:
        sides = np.split(sums, 2, axis=-1)
        one, other = (mine.scores(Counts.from_sums(each)).f1 for each in sides)
        return one - other

    replicates = difference(resampled_sums(both, this.clusters, this.num_bootstrap, this.seed))
    is_mine, is_theirs = (level.is_exact for level in (mine, theirs))
    only_this, only_other = int((is_mine & ~is_theirs).sum()), int((is_theirs & ~is_mine).sum())
    return Comparison(
        difference=float(difference(both.sum(axis=0, dtype=np.float64))),
        ci95=interval(replicates) if this.num_bootstrap else None,
        p_bootstrap=_two_sided(replicates) if this.num_bootstrap else None,
        num_only_this=only_this,
        num_only_other=only_other,
        p_mcnemar=float(binomtest(only_this, only_this + only_other).pvalue) if only_this + only_other else 1.0,
    )


def _two_sided(replicates: Floats) -> float:
    beyond = min(int((replicates <= 0).sum()), int((replicates >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(replicates) + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values of several tests, so that the chance of any false alarm among them is bounded (Holm, 1979)."""
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}
