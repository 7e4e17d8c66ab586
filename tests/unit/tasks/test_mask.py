"""Masked explanations: no name of a label is left, and everything else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentalglm.corpus.synthetic import generate_posts
from mentalglm.tasks import LABEL_MASK, builtin_tasks, load_task, mask_labels
from mentalglm.tasks.text import fold
from mentalglm.tasks.vocabulary import QUOTES, vocabulary_of


@pytest.mark.parametrize(
    ("task", "text", "masked"),
    [
        ("suicide_risk", "帖子写了计划，自杀风险高。", "帖子写了计划，自杀风险□。"),
        ("suicide_risk", "属于高自杀风险，不是低風險", "属于□，不是□"),
        ("suicide_risk", "HIGH_RISK / High Risk/ｈｉｇｈ", "□ / □/□"),
        ("suicide_risk", "2021年没有写到计划。", "2021年没有写到计划。"),
        ("cognitive_distortion", "是典型的先知错误，也是“应该”式的想法。", "是典型的□，也是“□的想法。"),
        ("cognitive_distortion", "他把小事放大，认知歪曲明显", "他把小事□，认知歪曲明显"),
        ("cognitive_distortion", "这是妄下结论", "这是□"),
        ("cognitive_pathway", "触发性事件##学习工作：被公司辞退", "□##□：被公司辞退"),
        ("cognitive_distortion", "没有。", "没有。"),
        ("cognitive_distortion", "", ""),
    ],
)
def test_names_go_and_the_rest_stays(task: str, text: str, masked: str) -> None:
    assert mask_labels(load_task(task), text) == masked


@pytest.mark.parametrize("name", builtin_tasks())
def test_every_name_of_every_label_goes(name: str) -> None:
    task = load_task(name)
    for label in task.labels:
        for each in (label.slug, label.zh, label.en, *label.aliases, *label.narrower):
            assert mask_labels(task, f"，{each}，").replace("“", "") == f"，{LABEL_MASK}，", each


NAMES = [each for label in load_task("cognitive_pathway").labels for each in (label.zh, label.en, *label.aliases)]


@given(
    st.lists(st.sampled_from([*NAMES, *"高低式“”。 a1-_", "認知", "自杀风险"]), max_size=12).map("".join) | st.text()
)
def test_nothing_is_left_to_find_and_what_was_no_name_stays(text: str) -> None:
    task = load_task("cognitive_pathway")
    masked = mask_labels(task, text)
    bare = "".join(each for each in fold(masked) if each not in QUOTES)
    assert {token.entry.kind for token in vocabulary_of(task).tokens(bare)} <= {"topic"}
    assert mask_labels(task, masked) == masked
    position = 0
    for part in masked.split(LABEL_MASK):
        position = text.index(part, position) + len(part)


def test_an_explanation_without_its_label_keeps_what_it_quotes() -> None:
    for post in generate_posts(100, seed=5):
        explanation = post.explanations["cognitive_distortion"]
        masked = mask_labels(load_task("cognitive_distortion"), explanation)
        assert all(quote in masked for quote in post.cues if quote in explanation)
