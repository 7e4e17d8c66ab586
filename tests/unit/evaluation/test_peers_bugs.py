"""What the scripts of others get wrong (docs: training-and-evaluation, 3.2), and is right here.

Some have their tests elsewhere: predictions held against themselves, rows that shifted, the NaN hole in predictions,
micro of a binary task, labels that contain each other, labels out of the set, leaked texts.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score

from mentalglm.config import EvalConfig
from mentalglm.errors import InputError
from mentalglm.evaluation import Evaluation, evaluate
from mentalglm.evaluation.job import evaluate_run
from mentalglm.tasks import load_task, parse_answer

RISK, DISTORTION = load_task("suicide_risk"), load_task("cognitive_distortion")
ALL_OR_NOTHING, MENTAL_FILTER = DISTORTION.answerable[0], DISTORTION.answerable[2]


def answered(gold: list[list[str]], answers: list[str]) -> Evaluation:
    """The answers as the parser reads them, against gold labels of distortions."""
    read = [parse_answer(DISTORTION, answer) for answer in answers]
    table = {
        "post_id": [str(row) for row in range(len(gold))],
        "status": [each.status for each in read],
        "labels": pa.array([each.labels if each.status == "ok" else None for each in read], pa.list_(pa.string())),
    }
    return evaluate(DISTORTION, {str(row): each for row, each in enumerate(gold)}, pa.table(table), num_bootstrap=0)


def test_no_prediction_at_all_is_a_score_of_nothing() -> None:
    """Theirs divides by zero."""
    found = answered([[ALL_OR_NOTHING]] * 3, ["", "无法回答", "%%%"]).to_json()
    assert (found["precision"], found["recall"], found["f1"]) == (0.0, 0.0, 0.0)
    assert (found["n"], found["num_parsed"]) == (3, 0)


def test_a_full_width_comma_separates_labels_as_any_other() -> None:
    """Theirs splits at one kind of comma, and writes with the other."""
    gold = [[ALL_OR_NOTHING, MENTAL_FILTER]]
    for comma in (", ", "，", "、", ","):
        assert answered(gold, [f"这篇帖子体现了非此即彼{comma}心理过滤的认知歪曲。"]).headline == 1.0


def test_labels_that_the_explanation_names_are_no_answer() -> None:
    """Theirs looks for them anywhere in the text."""
    found = answered([[ALL_OR_NOTHING]], ["这篇帖子体现了非此即彼的认知歪曲。理由：不是心理过滤，还体现了以偏概全。"])
    assert found.headline == 1.0


def test_an_answer_without_a_label_is_a_miss_of_every_gold_label() -> None:
    """SocialCD has no post without one, and theirs never asks what an empty answer counts."""
    found = answered(
        [[ALL_OR_NOTHING], [MENTAL_FILTER]], ["这篇帖子没有体现认知歪曲。", "这篇帖子体现了心理过滤的认知歪曲。"]
    )
    scores = found.to_json()
    assert (scores["precision"], scores["recall"], scores["num_without_label"]) == (1.0, 0.5, 1)


def test_what_is_chosen_by_is_what_is_reported() -> None:
    """Theirs chooses checkpoints by macro F1 and reports micro F1: the two rank these differently."""
    rare = DISTORTION.answerable[5]
    gold = [[ALL_OR_NOTHING]] * 8 + [[rare]]
    often, seldom = "这篇帖子体现了非此即彼的认知歪曲。", "这篇帖子体现了先知错误的认知歪曲。"
    good_at_the_rare = answered(gold, [often] * 5 + [seldom] * 3 + [seldom])
    good_at_the_many = answered(gold, [often] * 9)
    macro = [each.to_json()["macro"]["f1"] for each in (good_at_the_rare, good_at_the_many)]
    assert macro[0] > macro[1]
    assert good_at_the_rare.headline < good_at_the_many.headline
    for each in (good_at_the_rare, good_at_the_many):
        theirs = f1_score(each.rows.gold, each.rows.predicted, average="micro", zero_division=0)
        assert each.headline == each.to_json()["f1"] == pytest.approx(theirs)


@pytest.mark.parametrize("hole", [None, np.nan, "", "nan", -1, 2])
def test_gold_with_a_hole_is_refused(tmp_path: Path, hole: Any) -> None:
    """In theirs NaN is neither right nor wrong, and what matches no label shifts all rows below."""
    labels = [0, 1, hole, 1]
    column = labels if not isinstance(hole, str) else [str(each) for each in labels]
    pq.write_table(pa.table({"post_id": list("abcd"), "label": column}), tmp_path / "gold.parquet")
    table = {"post_id": list("abcd"), "status": ["ok"] * 4, "labels": [["low_risk"]] * 4}
    pq.write_table(pa.table(table), tmp_path / "predictions.parquet")
    with pytest.raises(InputError, match=r"gold\.uri = .*: 1 rows are no gold labels \(c: "):
        evaluate_run(config(tmp_path, "gold.parquet"))


def test_a_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    """Theirs are GBK and UTF-8, mixed."""
    line = json.dumps({"post_id": "a", "label": "高自杀风险"}, ensure_ascii=False)
    (tmp_path / "gold.jsonl").write_bytes(line.encode("gbk"))
    pq.write_table(
        pa.table({"post_id": ["a"], "status": ["ok"], "labels": [["low_risk"]]}), tmp_path / "predictions.parquet"
    )
    with pytest.raises(InputError, match="cannot be read as jsonl in UTF-8"):
        evaluate_run(config(tmp_path, "gold.jsonl"))
    (tmp_path / "gold.jsonl").write_text(line, encoding="utf-8-sig")
    assert evaluate_run(config(tmp_path, "gold.jsonl"))["n"] == 1


def config(folder: Path, gold: str) -> EvalConfig:
    return EvalConfig.model_validate(
        {
            "task": RISK.name,
            "predictions": str(folder / "predictions.parquet"),
            "gold": {"uri": str(folder / gold)},
            "output": {"uri": str(folder / "out")},
            "num_bootstrap": 0,
        }
    )
