"""Resampling of posts, all replicates at once.

A replicate draws as many clusters (posts, or groups of dependent ones) as there are, with replacement. Its statistics
depend on nothing but the sums of what the drawn clusters contribute to the counts, so clusters that contribute the same
are one kind, and how often each kind is drawn is multinomial: exact, and as cheap for a million rows as for the few
thousand kinds that they are of.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mentalglm.evaluation.metrics import Floats, Integers

_BLOCK = 4_000_000
"""Draws in memory at once."""
_TAILS = (2.5, 97.5)


def resampled_sums(
    contributions: npt.NDArray[np.number], clusters: Integers | None, num_bootstrap: int, seed: int
) -> Floats:
    """(num_bootstrap, num_columns): what the rows of each replicate sum up to.

    `contributions`: (num_rows, num_columns). `clusters`: a number from 0 for each row, of the cluster that it is drawn
    with; None: each row is one. The result depends on which rows there are, not on their order.
    """
    per_cluster: npt.NDArray[np.generic] = contributions
    if clusters is not None:
        kind = np.float64 if contributions.dtype.kind == "f" else np.int64
        sums = np.zeros((int(clusters.max()) + 1, contributions.shape[1]), dtype=kind)
        np.add.at(sums, clusters, contributions)
        per_cluster = sums
    kinds, sizes = _kinds(per_cluster)
    generator = np.random.default_rng(seed)
    shares = sizes / sizes.sum()
    found = np.empty((num_bootstrap, kinds.shape[1]))
    step = max(1, _BLOCK // len(kinds))
    for start in range(0, num_bootstrap, step):
        drawn = generator.multinomial(sizes.sum(), shares, size=min(step, num_bootstrap - start))
        found[start : start + len(drawn)] = drawn.astype(float) @ kinds
    return found


def interval(values: Floats) -> tuple[float, float]:
    """95 % percentile interval (Efron and Tibshirani, 1993, ch. 13) of the replicates of one statistic."""
    low, high = np.percentile(values, _TAILS)
    return float(low), float(high)


def _kinds(rows: npt.NDArray[np.generic]) -> tuple[Floats, Integers]:
    """The rows that differ, in an order that depends on them alone, and how often each is there."""
    rows = np.ascontiguousarray(rows)
    width = rows.shape[1] * rows.itemsize
    packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(rows)])
    encoded = packed.dictionary_encode()
    numbers = np.bincount(encoded.indices.to_numpy(), minlength=len(encoded.dictionary))
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    kinds = np.frombuffer(b"".join(names[number] for number in order), dtype=rows.dtype).reshape(-1, rows.shape[1])
    return kinds.astype(float), numbers[order].astype(np.int64)
