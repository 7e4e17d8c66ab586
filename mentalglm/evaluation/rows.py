"""Gold against predicted, row by row, for whoever wants to see where a model is wrong. No text of a post."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mentalglm.evaluation.evaluate import Evaluation
from mentalglm.evaluation.metrics import Bits


def row_table(evaluation: Evaluation) -> pa.Table:
    """One row for each gold label, in their order: post_id, status, then what is gold and what was predicted (null
    unless the status is ok), and whether they are the same, no more and no less.

    `gold`, `predicted`, `hit`; of a hierarchical task, where these are the children, also `gold_parents`,
    `predicted_parents`, `hit_parents`.
    """
    rows = evaluation.rows
    is_ok = rows.is_ok
    columns: dict[str, Any] = {
        "post_id": rows.table["post_id"].cast(pa.string()),
        "status": rows.table["status"].cast(pa.string()),
    }
    for level in evaluation.levels[::-1]:  # children first
        ending = "_parents" if level.name == "parent" else ""
        columns[f"gold{ending}"] = _lists(level.gold, level.slugs)
        if level.name == "parent":
            predicted = _lists(level.predicted, level.slugs)
        else:  # as it stands there: with labels that the task does not have
            predicted = rows.table["labels"].cast(pa.list_(pa.string()))
        columns[f"predicted{ending}"] = pc.if_else(pa.array(is_ok), predicted, pa.scalar(None, pa.list_(pa.string())))
        columns[f"hit{ending}"] = pa.array(level.is_exact)
    return pa.table(columns)


def _lists(bits: Bits, slugs: tuple[str, ...]) -> pa.Array:
    """(num_rows, num_slugs) -> lists of slugs, in their order."""
    offsets = np.concatenate([[0], np.cumsum(bits.sum(axis=1))]).astype(np.int32)
    names = pa.array(slugs, pa.string()).take(pa.array(np.nonzero(bits)[1]))
    return pa.ListArray.from_arrays(pa.array(offsets), names)
