"""What counts as what: scikit-learn's numbers, and the mistakes of other scorers, none of which may happen here."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, hamming_loss, precision_recall_fscore_support

from mentalglm.errors import InputError
from mentalglm.evaluation import Evaluation, evaluate
from mentalglm.evaluation.compare import compare
from mentalglm.evaluation.rows import row_table
from mentalglm.tasks import Task, load_task, parse_answer

RISK = load_task("suicide_risk")
DISTORTION = load_task("cognitive_distortion")
PATHWAY = load_task("cognitive_pathway")
SAD = load_task("imhi_sad_en")


def table(labels: Sequence[Sequence[str] | None], **columns: Any) -> pa.Table:
    """Predictions r0, r1, ...; null labels: the answer could not be read."""
    return pa.table(
        {
            "post_id": [f"r{row}" for row in range(len(labels))],
            "status": ["parse_failed" if each is None else "ok" for each in labels],
            "labels": pa.array(labels, pa.list_(pa.string())),
            **columns,
        }
    )


def flags(*of_rows: Sequence[str]) -> pa.Array:
    return pa.array(of_rows, pa.list_(pa.string()))


def evaluate_lists(
    task: Task, gold: Sequence[Sequence[str]], labels: Sequence[Sequence[str] | None], **columns: Any
) -> Evaluation:
    return evaluate(task, {f"r{row}": each for row, each in enumerate(gold)}, table(labels, **columns), num_bootstrap=0)


def bits(task: Task, lists: Sequence[Sequence[str] | None]) -> "np.ndarray[Any, Any]":
    return np.array([[slug in (each or ()) for slug in task.answerable] for each in lists], dtype=int)


def sets_of(task: Task) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(task.answerable), max_size=4, unique=True)


PAIRS = {
    task.name: st.lists(st.tuples(gold, st.none() | gold), min_size=1, max_size=40)
    for task, gold in (
        (RISK, st.sampled_from(RISK.answerable).map(lambda slug: [slug])),
        (SAD, st.sampled_from(SAD.answerable).map(lambda slug: [slug])),
        (DISTORTION, sets_of(DISTORTION)),
        (PATHWAY, sets_of(PATHWAY)),
    )
}


@pytest.mark.parametrize("task", [RISK, SAD, DISTORTION, PATHWAY], ids=lambda task: task.name)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_scores_are_scikit_learn_s(task: Task, data: st.DataObject) -> None:
    gold, labels = zip(*data.draw(PAIRS[task.name]), strict=True)
    evaluation = evaluate_lists(task, gold, labels)
    level, (true, predicted) = evaluation.levels[-1], (bits(task, gold), bits(task, labels))
    for average in ("micro", "macro", "weighted"):
        occurring = np.flatnonzero((true | predicted).any(axis=0)) if average == "macro" else None
        expected = (0.0, 0.0, 0.0)
        if occurring is None or len(occurring):
            expected = precision_recall_fscore_support(
                true, predicted, labels=occurring, average=average, zero_division=0
            )[:3]
        assert tuple(map(float, level.counts.average(average))) == pytest.approx(expected)
    per_label = precision_recall_fscore_support(true, predicted, average=None, zero_division=0)
    for mine, theirs in zip((*level.counts.per_label(), level.counts.support), per_label, strict=True):
        np.testing.assert_allclose(mine, theirs)
    is_unread = np.array([[each is None] for each in labels], dtype=int)  # as if it were a label that is never gold
    unread = (
        np.concatenate([side, column], axis=1) for side, column in ((true, 0 * is_unread), (predicted, is_unread))
    )
    assert float(level.counts.accuracy) == pytest.approx(accuracy_score(*unread))
    assert float(level.counts.hamming_loss) == pytest.approx(hamming_loss(true, predicted))


@settings(max_examples=40, deadline=None)
@given(pairs=PAIRS["suicide_risk"])
def test_a_binary_task_is_scored_by_its_positive_label_and_what_is_not_read_is_a_miss(pairs: Any) -> None:
    gold, labels = zip(*pairs, strict=True)
    found = evaluate_lists(RISK, gold, labels).to_json()
    true = [each[0] for each in gold]
    predicted = ["not read" if each is None else each[0] for each in labels]
    expected = precision_recall_fscore_support(
        true, predicted, labels=["high_risk"], average="micro", zero_division=0
    )  # of one label alone: precision, recall and F1 of that label
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(expected[:3])
    assert found["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert found["headline"] == {"metric": "binary_f1", "level": "label", "value": found["f1"]}


def test_what_could_not_be_read_is_neither_dropped_nor_a_class() -> None:
    """NaN holes of other scorers: such a row is no false positive, and must be a false negative."""
    found = evaluate_lists(
        RISK, [["high_risk"]] * 4 + [["low_risk"]] * 2, [["high_risk"]] * 2 + [None] * 3 + [["low_risk"]]
    )
    scores = found.to_json()
    assert (scores["n"], scores["num_parsed"], scores["num_failed_by_status"]) == (6, 3, {"parse_failed": 3})
    assert (scores["precision"], scores["recall"]) == (1.0, 0.5)
    assert scores["per_label"]["low_risk"]["recall"] == 0.5
    assert scores["confusion"]["high_risk"] == {"low_risk": 0, "high_risk": 2, "no_result": 2}


def test_what_could_not_be_read_is_not_right_where_no_label_is_gold() -> None:
    gold: dict[str, list[str]] = {f"r{row}": [] for row in range(4)}
    read = table([[], [], None, None], flags=flags([], [], [], []))
    found = evaluate(DISTORTION, gold, read, num_bootstrap=200)
    assert found.to_json()["accuracy"] == 0.5
    assert row_table(found)["hit"].to_pylist() == [True, True, False, False]
    assert compare(found, evaluate(DISTORTION, gold, table([[]] * 4), num_bootstrap=0))["label"].num_only_other == 2


def test_labels_of_a_row_that_is_not_ok_do_not_count() -> None:
    predictions = pa.table(
        {
            "post_id": ["a"],
            "status": ["truncated"],
            "labels": pa.array([["labeling"]], pa.list_(pa.string())),
        }
    )
    assert evaluate(DISTORTION, {"a": ["labeling"]}, predictions).headline == 0.0


def test_predictions_are_not_compared_with_themselves() -> None:
    """CrossLinCD's script reads both sides from one file, so that its micro F1 is always 1."""
    assert (
        evaluate_lists(DISTORTION, [["labeling"], ["mind_reading"]], [["mind_reading"], ["labeling"]]).headline == 0.0
    )
    assert (
        evaluate_lists(DISTORTION, [["labeling"], ["mind_reading"]], [["labeling"], ["mind_reading"]]).headline == 1.0
    )


def test_rows_are_joined_by_id_in_any_order() -> None:
    gold = {"b": ["labeling"], "a": ["mind_reading"], "10": []}
    predictions = pa.table(
        {
            "post_id": pa.chunked_array([["10", "a"], ["b"]]),
            "status": pa.array(["ok"] * 3).dictionary_encode(),
            "labels": pa.array([[], ["mind_reading"], ["labeling"]], pa.large_list(pa.large_string())),
        }
    )
    evaluation = evaluate(DISTORTION, gold, predictions)
    assert evaluation.headline == 1.0
    assert evaluation.to_json()["accuracy"] == 1.0
    assert evaluation.to_json()["num_without_label"] == 1


@pytest.mark.parametrize(
    ("gold", "ids", "words"),
    [
        (["a", "b", "c"], ["a"], ["2 gold ids have no prediction", "b, c"]),
        (["a"], ["a", "b", None], ["2 predictions have no gold label", "b, None", "extra_predictions: ignore"]),
        (["a", "b"], ["a", "b", "a"], ["1 ids have several predictions", "(a)"]),
        (["a", "b"], ["b", "c"], ["1 gold ids", "1 predictions"]),
        ([f"{n}" for n in range(9)], [], ["9 gold ids", "0, 1, 2, 3, 4, ..."]),
        ([], ["a"], ["gold", "no row"]),
    ],
)
def test_ids_that_differ_are_an_error_that_lists_them(gold: list[str], ids: list[str], words: list[str]) -> None:
    predictions = pa.table(
        {
            "post_id": pa.array(ids, pa.string()),
            "status": pa.array(["ok"] * len(ids), pa.string()),
            "labels": pa.array([["low_risk"]] * len(ids), pa.list_(pa.string())),
        }
    )
    with pytest.raises(InputError) as caught:
        evaluate(RISK, {each: ["low_risk"] for each in gold}, predictions)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_extra_predictions_may_be_left_out_and_missing_ones_never() -> None:
    predictions = table([["low_risk"], ["high_risk"], ["high_risk"]])
    found = evaluate(RISK, {"r1": ["high_risk"]}, predictions, extra_predictions="ignore")
    assert (found.headline, found.to_json()["n"]) == (1.0, 1)
    with pytest.raises(InputError, match="1 gold ids have no prediction"):
        evaluate(RISK, {"r1": ["high_risk"], "r9": ["high_risk"]}, predictions, extra_predictions="ignore")


@pytest.mark.parametrize(
    ("task", "gold", "labels", "words"),
    [
        (RISK, [], ["low_risk"], "have not exactly one label"),
        (RISK, ["low_risk", "high_risk"], ["low_risk"], "have not exactly one label"),
        (RISK, ["labeling"], ["low_risk"], "labels that suicide_risk does not have"),
        (RISK, ["low_risk"], ["low_risk", "high_risk"], "have several labels"),
        (PATHWAY, ["belief"], [], "labels that cognitive_pathway does not have"),
    ],
)
def test_impossible_labels_are_an_error(task: Task, gold: list[str], labels: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        evaluate_lists(task, [gold], [labels])
    assert "r0" in str(caught.value)


def test_missing_columns_and_wrong_types_are_named() -> None:
    with pytest.raises(InputError, match="status"):
        evaluate(RISK, {"r0": ["low_risk"]}, table([["low_risk"]]).drop_columns(["status"]))
    whole = {"post_id": ["a"], "status": ["ok"], "labels": [["low_risk"]]}
    for name, values, told in [
        ("labels", ["low_risk"], "labels is string, not a list of text"),
        ("labels", [[1]], "labels is list"),
        ("post_id", [1.0], "post_id is double, not text or whole numbers"),
        ("status", [1], "status is int64"),
        ("flags", [[{"a": 1}]], "flags is list"),
        ("probability", ["0.5"], "probability is string, not a number"),
        ("label_scores", [{"low_risk": 0.5}], "label_scores is struct"),
    ]:
        with pytest.raises(InputError, match=told):
            evaluate(RISK, {"a": ["low_risk"]}, pa.table(whole | {name: values}))
    with pytest.raises(InputError, match=r"1 rows have no status \(a\)"):
        evaluate(RISK, {"a": ["low_risk"]}, pa.table(whole | {"status": pa.array([None], pa.string())}))
    empty = {"flags": [[]], "probability": [None]}  # list<null> and null
    assert evaluate(RISK, {"a": ["low_risk"]}, pa.table(whole | empty)).to_json()["n"] == 1


def test_micro_of_a_binary_task_is_not_reported_since_it_is_the_accuracy() -> None:
    found = evaluate_lists(RISK, [["high_risk"], ["low_risk"], ["low_risk"]], [["low_risk"]] * 3).to_json()
    assert "micro" not in found
    assert (found["accuracy"], found["f1"]) == (pytest.approx(2 / 3), 0.0)


def test_labels_that_contain_each_other_are_different_labels() -> None:
    """情感 lies in 情感效应, 驳斥 in 有效驳斥: found as parts of a string, one would be the other."""
    for one, other in (("romantic_affection", "emotional_effect"), ("habitual_disputation", "effective_disputation")):
        assert evaluate_lists(PATHWAY, [[one]], [[other]]).headline == 0.0


def test_a_label_that_the_task_does_not_have_is_a_wrong_prediction() -> None:
    """Dropped, as by other scorers, made-up labels would never hurt precision."""
    found = evaluate_lists(DISTORTION, [["labeling"]], [["labeling", "invented"]]).to_json()
    assert (found["precision"], found["recall"], found["accuracy"]) == (0.5, 1.0, 0.0)
    assert found["num_with_out_of_set_label"] == 1
    single = evaluate_lists(SAD, [["school"]], [["invented"]]).to_json()
    assert single["confusion"]["school"]["no_result"] == 1


def test_parents_count_once_in_a_row_and_right_ones_of_wrong_children_count() -> None:
    gold = [["daily_life", "study_work"], ["labeling"]]
    labels = [["daily_life", "illness_symptoms"], ["labeling", "emotional_effect"]]
    found = evaluate_lists(PATHWAY, gold, labels).to_json()
    assert {slug: each["support"] for slug, each in found["parent"]["per_label"].items() if each["support"]} == {
        "activating_event": 1,
        "belief": 1,
    }
    assert (found["parent"]["precision"], found["parent"]["recall"]) == (pytest.approx(2 / 3), 1.0)
    assert (found["child"]["precision"], found["child"]["recall"]) == (0.5, pytest.approx(2 / 3))
    assert found["headline"] == {"metric": "micro_f1", "level": "child", "value": found["child"]["f1"]}
    # Both levels pooled: 4 of 7 predicted, 4 of 5 gold.
    assert (found["hierarchical"]["precision"], found["hierarchical"]["recall"]) == (pytest.approx(4 / 7), 0.8)


def test_parents_are_those_that_the_predictions_name() -> None:
    parents = pa.array([["belief"], ["belief"], None], pa.list_(pa.string()))
    found = evaluate_lists(
        PATHWAY,
        [["labeling"], ["labeling"], ["labeling"]],
        [[], ["emotional_effect"], ["labeling"]],
        parents=parents,
        flags=flags(["parent_only"], ["hierarchy_conflict"], []),
    ).to_json()
    assert found["parent"]["recall"] == 1.0  # null: those of the children
    assert found["num_without_label"] == 0
    # With all ancestors: {belief}, {emotional_effect, consequence, belief}, {labeling, belief}; 4 of these 6 are right.
    assert found["hierarchical"]["precision"] == found["hierarchical"]["recall"] == pytest.approx(4 / 6)
    assert found["consistency"] == {
        "num_with_child": 2,
        "num_child_without_parent": 1,
        "num_child_under_wrong_parent": 1,
        "num_parent_without_child": 1,
    }


def test_the_strict_reading_takes_answers_in_the_task_s_form_alone() -> None:
    answers = ["这篇帖子体现了乱贴标签的认知歪曲。", "我觉得是乱贴标签。", "乱贴标签，以及外星思维", "今天天气不错。"]
    read = [parse_answer(DISTORTION, answer) for answer in answers]
    predictions = table(
        [each.labels if each.status == "ok" else None for each in read], flags=flags(*(each.flags for each in read))
    )
    gold = {f"r{row}": ["labeling"] for row in range(4)}
    found = evaluate(DISTORTION, gold, predictions).to_json()
    assert (found["num_parsed"], found["num_free_form"], found["num_with_out_of_set_label"]) == (3, 2, 1)
    assert (found["precision"], found["recall"]) == (1.0, 0.75)
    assert (found["strict"]["precision"], found["strict"]["recall"]) == (0.5, 0.25)
    without = evaluate(DISTORTION, gold, predictions, tells_form=False).to_json()
    assert (without["strict"], without["num_free_form"]) == (None, None)


def test_without_replicates_there_are_no_intervals() -> None:
    assert evaluate_lists(RISK, [["low_risk"]], [["low_risk"]]).to_json()["ci95"] is None


def test_rows_of_two_levels_are_told_by_level() -> None:
    """A right parent of a wrong child is a hit of one level; a label out of the set is shown and is none."""
    found = row_table(
        evaluate(
            PATHWAY,
            {"a": ["illness_symptoms"], "b": ["illness_symptoms", "social_relationships"], "c": []},
            pa.table(
                {
                    "post_id": ["c", "b", "a"],
                    "status": ["ok", "parse_failed", "ok"],
                    "labels": pa.array([["unknown"], None, ["social_relationships"]], pa.list_(pa.string())),
                }
            ),
            num_bootstrap=0,
        )
    )
    parent = PATHWAY.by_slug["illness_symptoms"].parent
    one, other = "illness_symptoms", "social_relationships"
    assert found.select(["post_id", "status", "gold", "predicted", "hit"]).to_pylist() == [
        {"post_id": "a", "status": "ok", "gold": [one], "predicted": [other], "hit": False},
        {"post_id": "b", "status": "parse_failed", "gold": [one, other], "predicted": None, "hit": False},
        {"post_id": "c", "status": "ok", "gold": [], "predicted": ["unknown"], "hit": False},
    ]
    assert found["gold_parents"].to_pylist() == [[parent], [parent], []]
    assert found["predicted_parents"].to_pylist() == [[parent], None, []]
    assert found["hit_parents"].to_pylist() == [True, False, True]
