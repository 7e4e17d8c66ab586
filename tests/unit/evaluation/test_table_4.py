"""Table 4 of the paper, every number of it, from the counts that stand behind it."""

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest

from mentalglm.evaluation import Evaluation, evaluate
from mentalglm.evaluation.paper import load_table
from mentalglm.tasks import Task, load_task

RISK = load_task("suicide_risk")
# (task, level) -> (rows of the test set, its gold labels).
COLUMNS = {
    ("suicide_risk", None): (250, 124),
    ("cognitive_distortion", None): (682, 803),
    ("cognitive_pathway", "parent"): (945, 951),
    ("cognitive_pathway", "child"): (945, 975),
}
# row -> for each column (true positives, predicted labels); None: the printed values belong to no counts, or none are
# known. docs: searching all numbers of gold labels, these alone make every row whole numbers.
COUNTS = {
    "bert": [(97, 125), (529, 668), None, None],
    "chinese_bert_wwm": [(94, 113), (518, 615), (720, 896), (300, 421)],
    "roberta_wwm": [(97, 119), (537, 650), (717, 916), (353, 644)],
    "chinese_mentalbert": [(100, 122), (548, 660), (749, 940), (437, 862)],
    "glm_4_plus_zs": [(120, 233), None, None, None],
    "glm_4_plus_fs": [(115, 211), None, None, None],
    "llama_3_chinese": [(92, 112), (544, 730), (750, 945), (463, 945)],
    "llama_3_chinese_instruct": [(94, 113), (553, 757), (756, 964), (473, 943)],
    "mentalglm": [(99, 126), (560, 730), (752, 943), (489, 946)],
    "mentalglm_chat": [(103, 118), (547, 737), (764, 946), (461, 952)],
}
PAPER = load_table("table_4")
ENCODERS = ("bert", "chinese_bert_wwm", "roberta_wwm", "chinese_mentalbert")
CELLS = [
    pytest.param(task, level, *counts, PAPER.rows[row].quoted[leaf], id=f"{row}-{leaf}")
    for row, columns in COUNTS.items()
    for (task, level), leaf, counts in zip(COLUMNS, PAPER.leaves, columns, strict=True)
    if counts is not None
]


@pytest.mark.parametrize(("name", "level", "num_hits", "num_predicted", "printed"), CELLS)
def test_every_cell_is_the_paper_s(
    name: str, level: str | None, num_hits: int, num_predicted: int, printed: list[float]
) -> None:
    task = load_task(name)
    num_rows, num_gold = COLUMNS[name, level]
    found = evaluation_with(task, level, num_rows, num_gold, num_hits, num_predicted).to_json()
    scores = found if level is None else found[level]
    assert found["n"] == num_rows
    support = [each["support"] for slug, each in scores["per_label"].items() if task.positive in (None, slug)]
    assert sum(support) == num_gold
    for metric, figure in zip(PAPER.metrics, printed, strict=True):
        assert 100 * scores[metric] == pytest.approx(figure, abs=0.01)


def evaluation_with(
    task: Task,
    level: str | None,
    num_rows: int,
    num_gold: int,
    num_hits: int,
    num_predicted: int,
    num_bootstrap: int = 0,
) -> Evaluation:
    """Gold labels and predictions with these counts at a level."""
    if task.kind == "binary":
        negative, positive = task.answerable
        assert positive == task.positive
        gold = {(row,) for row in range(num_gold)}
        hits = {(row,) for row in range(num_hits)}
        predicted = hits | {(num_gold + row,) for row in range(num_predicted - num_hits)}
        labels = [[[positive if (row,) in side else negative] for row in range(num_rows)] for side in (gold, predicted)]
    else:
        # One child stands for each parent, so that counts of parents can be asked for.
        slugs = one_child_of_each(task) if level == "parent" else list(task.answerable)
        pairs = list(islice(spread(num_rows, len(slugs)), num_gold + num_predicted - num_hits))
        gold, predicted = set(pairs[:num_gold]), {*pairs[:num_hits], *pairs[num_gold:]}
        labels = [
            [[slug for at, slug in enumerate(slugs) if (row, at) in side] for row in range(num_rows)]
            for side in (gold, predicted)
        ]
    ids = [f"r{row}" for row in range(num_rows)]
    order = np.random.default_rng(0).permutation(num_rows)
    table = pa.table(
        {
            "post_id": [ids[row] for row in order],
            "status": ["ok"] * num_rows,
            "labels": pa.array([labels[1][row] for row in order], pa.list_(pa.string())),
        }
    )
    return evaluate(task, dict(zip(ids, labels[0], strict=True)), table, num_bootstrap=num_bootstrap)


def spread(num_rows: int, num_labels: int) -> Iterator[tuple[int, int]]:
    """(row, label) pairs, none twice, over the rows again and again."""
    for turn in range(num_labels):
        yield from ((row, (row + turn) % num_labels) for row in range(num_rows))


def one_child_of_each(task: Task) -> list[str]:
    children: dict[str | None, str] = {}
    for slug in task.answerable:
        children.setdefault(task.by_slug[slug].parent, slug)
    return list(children.values())


@pytest.mark.parametrize(("num_hits", "num_predicted", "low", "high"), [(103, 118, 80.2, 89.6), (100, 122, 75.5, 86.3)])
def test_claims_of_the_paper_have_wide_intervals(num_hits: int, num_predicted: int, low: float, high: float) -> None:
    """MentalGLM-chat and Chinese MentalBERT on suicide risk, by a bootstrap of the counts that was made before this."""
    found = evaluation_with(RISK, None, 250, 124, num_hits, num_predicted, num_bootstrap=10_000).ci95["label"]["f1"]
    assert [100 * end for end in found] == pytest.approx([low, high], abs=0.5)


def test_a_note_says_which_cells_are_cut_off_and_which_are_rounded() -> None:
    [note] = [note for note in PAPER.notes if "Cut off" in note.text]
    found = {"cut off": set(), "rounded": set()}  # type: dict[str, set[tuple[str, str]]]
    for row, columns in COUNTS.items():
        for (num_gold, counts), leaf in zip(
            zip([each[1] for each in COLUMNS.values()], columns, strict=True), PAPER.leaves, strict=True
        ):
            if counts is None or row not in PAPER.rows:
                continue
            hits, num_predicted = counts
            exact = (200 * hits / (num_predicted + num_gold), 100 * hits / num_predicted, 100 * hits / num_gold)
            for value, printed in zip(exact, PAPER.rows[row].quoted[leaf], strict=True):
                if round(value, 2) != math.floor(value * 100 + 1e-9) / 100:  # one that can tell
                    found["rounded" if abs(round(value, 2) - printed) < 1e-9 else "cut off"].add((row, leaf))
    assert found["cut off"] <= {(row, leaf) for row in note.rows for leaf in note.columns}
    assert not found["rounded"] & {(row, leaf) for row in ENCODERS for leaf in note.columns}
    assert {leaf for row, leaf in found["rounded"] if row in ENCODERS} == {"cp_parent", "cp_child"}
