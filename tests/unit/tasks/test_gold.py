"""Labels that people gave."""

import numpy as np
import pytest

from mentalglm.tasks import builtin_tasks, load_task, read_gold


@pytest.mark.parametrize("name", builtin_tasks())
def test_every_label_is_read_by_slug_and_by_both_names(name: str) -> None:
    task = load_task(name)
    for slug in task.answerable:
        label = task.by_slug[slug]
        assert read_gold(task, slug) == read_gold(task, [slug]) == (slug,)
        assert read_gold(task, [label.zh]) == (slug,)
        assert read_gold(task, [label.en]) == (slug,)
        assert read_gold(task, task.name_of(slug)) == (slug,)


@pytest.mark.parametrize("one", ["1", 1, 1.0, True, np.int64(1), np.float32(1), "high_risk", "高自杀风险", ["高"]])
def test_a_binary_label_may_be_a_bit(one: object) -> None:
    assert read_gold(load_task("suicide_risk"), one) == ("high_risk",)


def test_labels_come_in_label_set_order_and_once() -> None:
    task = load_task("cognitive_distortion")
    expected = ("mind_reading", "labeling")
    assert read_gold(task, ["labeling", "mind_reading", "读心术"]) == expected
    assert read_gold(task, np.array(["乱贴标签", "读心术"], dtype=object)) == expected
    assert read_gold(task, "乱贴标签, 读心术") == expected


def test_none_is_a_list_without_labels() -> None:
    task = load_task("cognitive_distortion")
    assert read_gold(task, []) == read_gold(task, "none") == ()
    with pytest.raises(ValueError, match="always has one of"):
        read_gold(load_task("suicide_risk"), [])


@pytest.mark.parametrize("value", ["NULL", "N/A", "nan", float("nan"), " null ", ["N/A"], {"labeling": 0}, b"labeling"])
def test_a_missing_value_does_not_say_that_no_label_applies(value: object) -> None:
    with pytest.raises(ValueError, match="cognitive_distortion"):
        read_gold(load_task("cognitive_distortion"), value)


@pytest.mark.parametrize("value", [None, "", "2", "a secret post", ["high_risk", "low_risk"], ["高", None], 0.5, {}])
def test_what_is_no_label_is_an_error_that_does_not_quote_it(value: object) -> None:
    with pytest.raises(ValueError, match="suicide_risk") as raised:
        read_gold(load_task("suicide_risk"), value)
    assert "secret" not in str(raised.value)


def test_a_parent_alone_is_no_label() -> None:
    with pytest.raises(ValueError, match="no label of the set"):
        read_gold(load_task("cognitive_pathway"), ["触发性事件"])
