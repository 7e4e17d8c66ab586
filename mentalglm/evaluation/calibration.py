"""How well probabilities rank rows, and whether they mean what they say."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from mentalglm.errors import InputError
from mentalglm.evaluation.align import Rows, parents_of
from mentalglm.evaluation.metrics import Bits, Floats
from mentalglm.tasks import Task
from mentalglm.tasks.task import Slug

NUM_BINS = 10
FIXED_PRECISIONS = (0.7, 0.8, 0.9)
_ROUNDING = 1e-5
"""So far beyond 0 and 1 may a sum of float32 be."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows whose probability is of one tenth."""

    num_rows: int
    mean_probability: float
    share_positive: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of the probability of one label. What needs both classes is None where gold has one alone."""

    num_rows: int
    """Rows with a probability; the others have none to judge, and are not in here."""
    num_positive: int
    auroc: float | None
    """Area under the ROC curve: the chance that a positive row has a higher probability than a negative one."""
    auprc: float | None
    """Average precision; of a ranking by chance, the share of positive rows."""
    brier: float
    """Mean squared distance of probability and gold (Brier, 1950)."""
    ece: float
    """Expected calibration error: mean distance of probability and share of positive rows over ten bins of equal width,
    weighted by rows (Naeini, Cooper and Hauskrecht, 2015)."""
    sensitivity_at_precision: dict[str, dict[str, float] | None]
    """Precision -> the highest recall of a threshold with at least that precision, and that threshold; None where no
    threshold has it."""
    bins: tuple[Bin | None, ...]
    """From 0 to 1, for a reliability diagram; None where there are no rows."""


def calibrations(task: Task, rows: Rows) -> dict[Slug, Calibration]:
    """label -> its calibration, of the labels whose probabilities the predictions have: the positive label's in
    `probability`, else every label's in `label_scores`, parents too."""
    found = {slug: calibrate(*pair) for slug, pair in _probabilities(task, rows).items()}
    return {slug: each for slug, each in found.items() if each is not None}


def calibrate(is_positive: Bits, probability: Floats) -> Calibration | None:
    """Both (num_rows,); NaN where a row has no probability. None where none has.

    Raises: InputError where one is no probability.
    """
    is_known = ~np.isnan(probability)
    if not is_known.any():
        return None
    if num_wrong := int((np.abs(probability[is_known] - 0.5) > 0.5 + _ROUNDING).sum()):
        raise InputError(f"predictions: {num_wrong} probabilities are not from 0 to 1; mend them, or leave them out")
    gold, score = is_positive[is_known].astype(float), probability[is_known]
    has_both = 0 < gold.sum() < len(gold)
    bins = _bins(gold, score)
    gaps = [each.num_rows * abs(each.mean_probability - each.share_positive) for each in bins if each]
    return Calibration(
        num_rows=len(gold),
        num_positive=int(gold.sum()),
        auroc=float(roc_auc_score(gold, score)) if has_both else None,
        auprc=float(average_precision_score(gold, score)) if has_both else None,
        brier=float(np.mean((score - gold) ** 2)),
        ece=float(sum(gaps) / len(gold)),
        sensitivity_at_precision=_sensitivities(gold, score) if has_both else {},
        bins=bins,
    )


def _probabilities(task: Task, rows: Rows) -> dict[Slug, tuple[Bits, Floats]]:
    """label -> (whether gold has it, its probability), each (num_rows,); NaN where there is none."""
    names = rows.table.column_names
    if task.positive is not None and "probability" in names and rows.table["probability"].null_count < len(rows.gold):
        column = task.answerable.index(task.positive)
        return {task.positive: (rows.gold[:, column], _floats(rows.table["probability"]))}
    if "label_scores" not in names:
        return {}
    slugs = (*parents_of(task), *task.answerable)
    gold = np.concatenate([rows.gold_parents, rows.gold], axis=1)
    scores = label_probabilities(rows.table["label_scores"], slugs)
    told = slugs if task.positive is None else (task.positive,)  # the other one's are the rest
    return {slug: (gold[:, at], scores[:, at]) for at, slug in enumerate(slugs) if slug in told}


def label_probabilities(column: pa.ChunkedArray, slugs: Sequence[Slug]) -> Floats:
    """(num_rows, num_slugs) of a column of maps; NaN where a label is not in the map."""
    maps = column.combine_chunks()  # a copy, whose keys and items begin with those of its first row
    rows = np.repeat(np.arange(len(maps)), np.diff(maps.offsets.to_numpy()))
    columns = pc.index_in(maps.keys.cast(pa.string()), value_set=pa.array(slugs, pa.string()))
    is_known = columns.is_valid().to_numpy(zero_copy_only=False)
    found = np.full((len(maps), len(slugs)), np.nan)
    found[rows[is_known], columns.drop_null().to_numpy()] = _floats(maps.items)[is_known]
    return found


def _floats(values: pa.Array | pa.ChunkedArray) -> Floats:
    return np.asarray(pc.cast(values, pa.float64()).fill_null(np.nan).to_numpy(), dtype=np.float64)


def _bins(gold: Floats, score: Floats) -> tuple[Bin | None, ...]:
    number = np.minimum((score * NUM_BINS).astype(int), NUM_BINS - 1)
    sizes = np.bincount(number, minlength=NUM_BINS)
    score_sums, gold_sums = (np.bincount(number, weights=each, minlength=NUM_BINS) for each in (score, gold))
    return tuple(
        Bin(int(size), float(score_sum / size), float(gold_sum / size)) if size else None
        for size, score_sum, gold_sum in zip(sizes, score_sums, gold_sums, strict=True)
    )


def _sensitivities(gold: Floats, score: Floats) -> dict[str, dict[str, float] | None]:
    precision, recall, threshold = precision_recall_curve(gold, score)
    found: dict[str, dict[str, float] | None] = {}
    for wanted in FIXED_PRECISIONS:
        is_enough = precision[:-1] >= wanted
        best = int(np.argmax(np.where(is_enough, recall[:-1], -1.0)))
        at_best = {"recall": float(recall[best]), "threshold": float(threshold[best])}
        found[f"{wanted:g}"] = at_best if is_enough.any() else None
    return found
