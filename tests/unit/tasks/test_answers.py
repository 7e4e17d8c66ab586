"""Reading answers: known cases, hand-written ones, and properties that hold for any text."""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentalglm.tasks import (
    ParsedAnswer,
    Task,
    builtin_tasks,
    label_rows,
    load_task,
    parse_answer,
    parse_row,
    render_answer,
)
from tests.unit.tasks.answer_cases import ALL, Case

_VARIANTS = Path(__file__).parents[3] / "../shared/data/parser_variants.synthetic.jsonl"
_VARIANT_TASKS = {"sos_hl_1k": "suicide_risk", "socialcd_3k": "cognitive_distortion", "cp": "cognitive_pathway"}
_VARIANT_STATUS = {
    **dict.fromkeys(("ok", "alias", "none", "parent_only", "hierarchy_conflict"), "ok"),
    **dict.fromkeys(("ambiguous", "no_label", "empty", "invalid_label", "suspicious"), "parse_failed"),
    "truncated": "truncated",
    "refusal": "refused",
}
_MAIN = ("suicide_risk", "cognitive_distortion", "cognitive_pathway")
_TRADITIONAL = str.maketrans(
    "这体现认读术乱贴标签应该错误风险杀触发归学习业态绪释由", "這體現認讀術亂貼標籤應該錯誤風險殺觸發歸學習業態緒釋由"
)


def _variants() -> list[dict[str, object]]:
    if not _VARIANTS.is_file():
        return []
    return [json.loads(line) for line in _VARIANTS.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("variant", _variants(), ids=lambda row: f"{row['task']}-{row['kind']}")
def test_known_variants_are_read_as_expected(variant: dict[str, object]) -> None:
    row = parse_row(load_task(_VARIANT_TASKS[str(variant["task"])]), str(variant["raw"]))
    assert (row["status"], row["labels_zh"]) == (
        _VARIANT_STATUS[str(variant["expect_status"])],
        variant["expect_labels"],
    )


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.task}-{case.raw[:24]!r}")
def test_hand_written_answers(case: Case) -> None:
    answer = parse_answer(load_task(case.task), case.raw, finish_reason=case.finish_reason)
    assert (answer.status, " ".join(answer.labels)) == (case.status, case.labels), answer
    assert case.reason is None or answer.reason == case.reason, answer
    assert case.flag is None or case.flag in answer.flags, answer
    assert case.parents is None or " ".join(answer.parents) == case.parents, answer
    assert case.explanation is None or answer.explanation == case.explanation, answer


def _subsets(task: Task) -> st.SearchStrategy[tuple[str, ...]]:
    """Label sets that an answer of `task` may have: fewer than would read as the list echoed."""
    if task.kind in ("binary", "multiclass"):
        return st.sampled_from(task.answerable).map(lambda slug: (slug,))
    most = (3 * len(task.answerable) - 1) // 4
    chosen = st.sets(st.sampled_from(task.answerable), min_size=0 if task.none_allowed else 1, max_size=most)
    return chosen.map(lambda slugs: tuple(slug for slug in task.answerable if slug in slugs))


@st.composite
def _rendered(draw: st.DrawFn, names: tuple[str, ...] = _MAIN) -> tuple[Task, tuple[str, ...], str]:
    task = load_task(draw(st.sampled_from(names)))
    labels = draw(_subsets(task))
    return task, labels, render_answer(task, labels, None)


@given(task=st.sampled_from([*_MAIN, "imhi_dr_en", "imhi_sad_zh"]).map(load_task), raw=st.text(), cut=st.booleans())
def test_any_text_has_a_status(task: Task, raw: str, cut: bool) -> None:
    answer = parse_answer(task, raw, finish_reason="length" if cut else "stop")
    assert answer.status in ("ok", "parse_failed", "truncated", "refused")
    assert (answer.reason is None) == (answer.status == "ok")
    assert set(answer.labels) <= set(task.answerable)
    assert list(answer.labels) == [slug for slug in task.answerable if slug in answer.labels]


_PIECES = [
    "高自杀风险", "低", "读心术", "放大", "认知歪曲", "妄下结论", "情感", "没有", "不是", "而是", "理由：",
    "##", "、", ", ", "。", "\n", "{", "}", '"labels": [',
    "]", '"', "“", "”", "|", "0", "1", "<|user|>", "<think>", "A.", "B5", "not ", "- ", "**", "：", "？",
    "（", "）", "☐", "[ ]", "[x]", "是否", "中", "偏", "a ", "</think>", "[/INST]", "\t",
    "抱歉", "\u200b", "\ud800", "\ue000", "无",
]  # fmt: skip


@given(task=st.sampled_from(_MAIN).map(load_task), raw=st.lists(st.sampled_from(_PIECES), max_size=24).map("".join))
def test_any_mixture_of_answer_pieces_has_a_status(task: Task, raw: str) -> None:
    answer = parse_answer(task, raw)
    assert set(answer.labels) <= set(task.answerable)
    assert answer == parse_answer(task, raw)


@given(rendered=_rendered(tuple(builtin_tasks())), explanation=st.none() | st.text(min_size=1))
def test_rendered_answers_parse_back(rendered: tuple[Task, tuple[str, ...], str], explanation: str | None) -> None:
    task, labels, _ = rendered
    answer = parse_answer(task, render_answer(task, labels, explanation))
    assert (answer.status, answer.labels) == ("ok", labels)


@given(rendered=_rendered(), blanks=st.sampled_from(["", " ", "\n", "\n\n  ", "\t"]), data=st.data())
def test_width_script_blanks_and_invisible_characters_do_not_matter(
    rendered: tuple[Task, tuple[str, ...], str], blanks: str, data: st.DataObject
) -> None:
    task, labels, head = rendered
    place = data.draw(st.integers(0, len(head)))
    wide = head.replace(", ", "，").replace("##", "＃＃").replace("/", "／")
    for variant in (
        blanks + head + blanks,
        wide,
        head.translate(_TRADITIONAL),
        head[:place] + data.draw(st.sampled_from("\u200b\u200d\u2060\ufeff\u202e\ufe0f")) + head[place:],
        head.replace("。", ""),
    ):
        answer = parse_answer(task, variant)
        assert (answer.status, answer.labels) == ("ok", labels), variant


@given(rendered=_rendered(), explanation=st.lists(st.sampled_from(_PIECES), max_size=12).map("".join))
def test_the_explanation_never_changes_labels(rendered: tuple[Task, tuple[str, ...], str], explanation: str) -> None:
    task, labels, head = rendered
    for marker in ("理由：", "\n解释:", "Reasoning: "):
        answer = parse_answer(task, head.replace("这篇", "该") + marker + re.sub(r"[{|]|</think>", "", explanation))
        assert (answer.status, answer.labels) == ("ok", labels)


@given(rendered=_rendered(), data=st.data())
def test_a_cut_head_never_yields_labels_that_were_not_there(
    rendered: tuple[Task, tuple[str, ...], str], data: st.DataObject
) -> None:
    task, labels, head = rendered
    answer = parse_answer(task, head[: data.draw(st.integers(0, len(head) - 1))], finish_reason="length")
    assert set(answer.labels) <= set(labels)


def test_the_two_names_of_a_label_lead_to_it_alone() -> None:
    for name in _MAIN:
        task = load_task(name)
        for label in task.labels:
            if label.slug not in task.answerable:
                continue
            for spelling in (
                label.zh,
                label.en,
                *label.aliases,
                *label.narrower,
                *([label.code] if label.code else []),
            ):
                assert parse_answer(task, spelling).labels == (label.slug,), (name, spelling)


@pytest.mark.parametrize(
    "junk",
    [
        "读心术",
        "a ",
        "[",
        '{"a":',
        "“",
        "\n",
        "理由",
        "因为",
        "|0",
        "没有",
        "不读心术,",
        '{"labels": ["高',
        "<|",
        "**",
        "# ",
        " ",
        "（",
        "☐放大",
        "放大:\n",
        "[INST]",
        "</think>",
        '{"label": "放大"}',
        "高",
        "是否",
        "不",
        "I do not think that",
    ],
)
def test_long_junk_is_read_in_linear_time(junk: str) -> None:
    for name in ("suicide_risk", "cognitive_distortion", "imhi_dr_zh"):
        task = load_task(name)
        parse_answer(task, "x")
        seconds = []
        while len(seconds) < 3 and min(seconds, default=1.0) >= 1.0:  # a whole suite's garbage may be collected in one
            started = time.process_time()
            parse_answer(task, "x" + junk * (100_000 // len(junk)) + "x")
            seconds.append(time.process_time() - started)
        assert min(seconds) < 1.0  # about 0.1 s; quadratic steps took minutes


def test_parse_row_names_labels_in_chinese() -> None:
    task = load_task("cognitive_pathway")
    row = parse_row(task, "触发性事件, 认知歪曲##妄下结论。理由：他没有证据。")
    assert row == {
        "status": "ok",
        "labels": ["jumping_to_conclusions"],
        "labels_zh": ["触发性事件", "认知歪曲##妄下结论"],
        "parents": ["activating_event", "belief"],
        "explanation": "他没有证据。",
        "reason": None,
        "flags": ["free_form", "parent_only"],
    }
    assert {row["slug"]: row["parent"] for row in label_rows(task)}["daily_life"] == "activating_event"


def test_a_failure_carries_no_labels() -> None:
    for case in ALL:
        if case.status in ("parse_failed", "refused"):
            answer: ParsedAnswer = parse_answer(load_task(case.task), case.raw, finish_reason=case.finish_reason)
            assert answer.labels == answer.parents == ()


@pytest.mark.parametrize("name", builtin_tasks())
def test_an_answer_in_another_form_than_the_task_s_says_so(name: str) -> None:
    task = load_task(name)
    for slug in task.answerable:
        for explanation in (None, "因为如此。"):
            assert "free_form" not in parse_answer(task, render_answer(task, [slug], explanation)).flags
        listed = parse_answer(task, f'{{"label": "{slug}"}}')
        assert (listed.status, listed.labels) == ("ok", (slug,))
        assert "free_form" in listed.flags
