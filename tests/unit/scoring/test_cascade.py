"""Label first: whatever an engine answers, labels and status are those of the plain path; explanations are asked for
where `explain` says so, from the same tokens, and paid for once."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.config import ScoreConfig
from mentalglm.engine.protocol import Completion, Request
from mentalglm.scoring.cascade import Inquiry
from mentalglm.scoring.predictions import Outcome
from mentalglm.scoring.questions import Question
from mentalglm.tasks import (
    Task,
    builtin_tasks,
    candidate_answers,
    find_marker,
    head_pattern,
    load_task,
    parse_answer,
    parse_head,
    render_answer,
)
from tests.unit.tasks.answer_cases import ALL, Case

RISK, PATHWAY = load_task("suicide_risk"), load_task("cognitive_pathway")
HIGH = render_answer(RISK, ["high_risk"], "写到了计划。")
LOW = render_answer(RISK, ["low_risk"], "只是累。")
SAME = ("status", "labels", "parents", "confidence", "probability", "reason")


def config(explain: str, **changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {"input": {"uri": "a"}, "output": {"uri": "b"}, "tasks": ["suicide_risk"], "explain": explain} | changes
    )


def complete(request: Request, answer: str, finish_reason: str = "stop", logprob: float | None = -0.01) -> Completion:
    """An engine that has one answer, a token for each character."""
    marker = find_marker(request.markers, answer)
    if request.head_only and marker is not None:
        return Completion(answer[: marker[1]], "stop", 9, marker[1], head_logprob=logprob, is_head=True)
    so_far = len(request.head.text) if request.head else 0
    head_logprob = request.head.head_logprob if request.head else logprob
    return Completion(answer, finish_reason, 9, len(answer) - so_far, head_logprob=head_logprob)  # type: ignore[arg-type]


def ask(
    settings: ScoreConfig, answer: str, task: str = "suicide_risk", finish_reason: str = "stop", **more: Any
) -> tuple[Outcome, list[Request]]:
    """The outcome, and every request that it took."""
    inquiry = Inquiry(settings, Question(load_task(task)), "一条帖子", more.pop("text_hash", "00"))
    requests = [inquiry.request]
    while (following := inquiry.take(complete(requests[-1], answer, finish_reason, **more))) is not None:
        requests.append(following)
    assert inquiry.outcome is not None
    return inquiry.outcome, requests


@pytest.mark.parametrize("explain", ["none", "positive", "uncertain"])
def test_every_answer_gets_the_labels_of_the_plain_path(explain: str) -> None:
    num_spared = 0
    for case in ALL:
        reason = case.finish_reason or "stop"
        for answer in (case.raw, f"{case.raw}\n理由：写了很多别的，没有再说什么。"):
            plain, _ = ask(config("all"), answer, case.task, reason)
            outcome, _ = ask(config(explain), answer, case.task, reason)
            assert [getattr(outcome, name) for name in SAME] == [getattr(plain, name) for name in SAME], case
            assert outcome.explanation in (None, plain.explanation), case
            assert (outcome.num_output_tokens or 0) <= (plain.num_output_tokens or 0), case
            num_spared += outcome.num_output_tokens != plain.num_output_tokens
    assert num_spared > 50


@given(st.sampled_from([case for case in ALL if find_marker(load_task(case.task).markers, case.raw)]), st.text())
@settings(max_examples=300, deadline=None)
def test_a_head_that_is_an_answer_stays_one_whatever_follows(case: Case, tail: str) -> None:
    task = load_task(case.task)
    marker = find_marker(task.markers, case.raw)
    assert marker is not None
    beginning = case.raw[: marker[1]]
    if (head := parse_head(task, beginning)) is None:
        return
    for end in (
        tail,
        f"：{tail}",
        '\n```json\n{"label": "高自杀风险"}\n```',
        "</think>低自杀风险",
        "\n低自杀风险。高自杀风险。",
    ):
        whole = parse_answer(task, beginning + end)
        assert (whole.status, whole.labels, whole.parents) == (head.status, head.labels, head.parents)


def test_explanations_are_asked_for_where_something_is_found_or_uncertain() -> None:
    for explain, answer, logprob, is_explained in (
        ("positive", HIGH, -0.01, True),
        ("positive", LOW, -9.0, False),
        ("uncertain", HIGH, -0.01, False),
        ("uncertain", LOW, -0.5, True),
        ("uncertain", LOW, None, True),
        ("none", HIGH, None, False),
    ):
        outcome, requests = ask(config(explain), answer, logprob=logprob)
        assert len(requests) == 1 + is_explained
        assert (outcome.explanation is not None) == is_explained
        assert outcome.num_output_tokens == (len(answer) if is_explained else answer.index("理由") + 2)
    outcome, requests = ask(config("all"), HIGH)
    assert len(requests) == 1
    none = render_answer(PATHWAY, [], "没有。")
    assert ask(config("positive"), none, "cognitive_pathway")[0].explanation is None
    labelled = render_answer(PATHWAY, [PATHWAY.answerable[0]], "有。")
    assert ask(config("positive"), labelled, "cognitive_pathway")[0].explanation == "有。"


def test_what_follows_up_goes_on_from_what_was_answered() -> None:
    _, (first, second) = ask(config("positive"), HIGH)
    assert (first.head_only, second.head_only) == (True, False)
    assert second.head is not None
    assert HIGH.startswith(second.head.text)
    assert second.prompt == first.prompt


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_a_sample_is_a_share_of_the_others_the_same_each_time_and_grows_with_its_rate(one: float, other: float) -> None:
    def sampled(rate: float) -> set[int]:
        chosen = config("positive", cascade={"sample": {"low_risk": rate}})
        found = set()
        for n in range(200):
            outcome, _ = ask(chosen, LOW, text_hash=f"{n:032x}")
            if outcome.explanation:
                assert "explanation_sampled" in outcome.flags
                found.add(n)
        return found

    low, high = sorted((one, other))
    assert sampled(low) <= sampled(high)
    assert abs(len(sampled(high)) - 200 * high) < 45  # six standard deviations
    assert not sampled(0.0)


def test_an_engine_that_answers_anew_changes_no_label() -> None:
    inquiry = Inquiry(config("positive"), Question(RISK), "一条帖子", "00")
    head = Completion(HIGH[: HIGH.index("理由") + 2], "stop", 9, 5, head_logprob=-0.1, is_head=True)
    for second, flag in (
        (Completion(LOW, "stop", 9, 20), "explanation_disagrees"),
        (Completion("", "error", error="timeout"), "explanation_failed"),
    ):
        inquiry = Inquiry(config("positive"), Question(RISK), "一条帖子", "00")
        assert inquiry.take(head) is not None
        assert inquiry.take(second) is None
        outcome = inquiry.outcome
        assert outcome is not None
        assert (outcome.status, outcome.labels, outcome.explanation) == ("ok", ("high_risk",), None)
        assert flag in outcome.flags


def test_an_answer_that_was_cut_off_is_asked_for_once_more_also_where_only_heads_are() -> None:
    generation = {"max_tokens": 4, "retry_max_tokens": 64}
    for explain in ("all", "none", "positive"):
        inquiry = Inquiry(config(explain, generation=generation), Question(RISK), "一条帖子", "00")
        again = inquiry.take(Completion("这篇帖子", "length", 9, 4))
        assert again is not None
        assert again.max_tokens == 64
        following: Request | None = again
        while following is not None:
            following = inquiry.take(complete(following, HIGH))
        assert inquiry.outcome is not None
        assert inquiry.outcome.labels == ("high_risk",)
        assert Counter(inquiry.outcome.flags)["asked_again"] == 1
        assert (inquiry.outcome.explanation is None) == (explain == "none")


def test_an_answer_that_was_cut_off_where_the_model_ends_is_not_asked_for_again() -> None:
    generation = {"max_tokens": 4, "retry_max_tokens": 64}
    for most_tokens, is_asked in ((4, False), (5, True), (None, True)):
        inquiry = Inquiry(config("all", generation=generation), Question(RISK), "一条帖子", "00")
        again = inquiry.take(Completion("这篇帖子", "length", 9, 4, most_tokens=most_tokens))
        assert (again is not None) == is_asked
        if not is_asked:
            assert inquiry.outcome is not None
            assert (inquiry.outcome.status, inquiry.outcome.flags) == ("truncated", ())


TASK_NAMES = sorted(builtin_tasks())


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_the_form_that_answers_can_be_held_to_holds_all_of_them_and_nothing_that_cannot_be_read(
    data: st.DataObject,
) -> None:
    task = load_task(data.draw(st.sampled_from(TASK_NAMES)))
    most = 1 if task.kind in ("binary", "multiclass") else 3
    least = 0 if task.none_allowed else 1
    labels = data.draw(st.lists(st.sampled_from(task.answerable), min_size=least, max_size=most, unique=True))
    pattern = head_pattern(task)
    whole = render_answer(task, labels, "因为。")
    marker = find_marker(task.markers, whole)
    assert marker is not None
    assert re.fullmatch(pattern, whole[: marker[1]])
    held = data.draw(st.from_regex(pattern, fullmatch=True))
    answer = parse_answer(task, held)
    assert answer.status == "ok" or answer.reason == "label_list_echoed", held


def test_an_answer_without_a_label_is_asked_for_once_more_held_to_the_form() -> None:
    for explain in ("all", "none", "positive"):
        settings = config(explain, generation={"retry_unparsed": True})
        inquiry = Inquiry(settings, Question(RISK), "一条帖子", "00")
        again = inquiry.take(Completion("今天天气不错。", "stop", 9, 6, head_logprob=-0.1))
        assert again is not None
        assert (again.pattern, again.head_only) == (head_pattern(RISK), True)
        following: Request | None = again
        while following is not None:
            last = following
            following = inquiry.take(complete(following, HIGH))
        assert (last.pattern is None) == (explain != "none")  # the explanation is free
        outcome = inquiry.outcome
        assert outcome is not None
        assert (outcome.status, outcome.labels, outcome.confidence) == ("ok", ("high_risk",), None)
        assert "constrained" in outcome.flags
        assert (outcome.explanation is None) == (explain == "none")


def test_an_answer_that_cannot_be_read_twice_has_failed() -> None:
    inquiry = Inquiry(config("all", generation={"retry_unparsed": True}), Question(RISK), "一条帖子", "00")
    assert inquiry.take(Completion("天气", "stop", 9, 2)) is not None
    assert inquiry.take(Completion("天气", "stop", 9, 2)) is None
    assert inquiry.outcome is not None
    assert (inquiry.outcome.status, inquiry.outcome.num_output_tokens) == ("parse_failed", 4)


def explain_later(settings: ScoreConfig, labelled: Outcome, second: Completion) -> tuple[Outcome, Request]:
    """What comes of a row whose labels are known, and what was asked about it."""
    inquiry = Inquiry(settings, Question(RISK), "一条帖子", "00", labelled)
    request = inquiry.request
    assert inquiry.take(second) is None
    assert inquiry.outcome is not None
    return inquiry.outcome, request


def test_known_labels_stay_and_get_the_explanation_of_an_answer_that_has_them() -> None:
    labelled = Outcome("ok", labels=("high_risk",), finish_reason="stop", flags=("explanation_sampled",))
    unexplained = render_answer(RISK, ["high_risk"], "")
    for second, explanation, flags in (
        (Completion(HIGH, "stop", 9, 20, flags=("text_truncated",)), "写到了计划。", ["text_truncated"]),
        (Completion(LOW, "stop", 9, 20), None, ["explanation_disagrees"]),
        (Completion("", "error", error="timeout"), None, ["explanation_failed"]),
        (Completion(unexplained, "stop", 9, 20), None, ["explanation_missing"]),
    ):
        outcome, request = explain_later(config("positive", label_scores="forced"), labelled, second)
        assert outcome.label_scores is None  # in `data/` they stay what they are
        assert (request.head_only, request.head, request.pattern, request.max_tokens) == (False, None, None, None)
        assert (outcome.status, outcome.labels, outcome.explanation) == ("ok", ("high_risk",), explanation)
        assert list(outcome.flags) == [*flags, "explanation_sampled"]
        assert (outcome.num_prompt_tokens, outcome.num_output_tokens) == (
            second.num_prompt_tokens,
            second.num_output_tokens,
        )


def test_known_labels_are_asked_about_as_they_were_found() -> None:
    settings = config("all", generation={"max_tokens": 4, "retry_max_tokens": 64, "retry_unparsed": True})
    labelled = Outcome("ok", labels=("high_risk",), flags=("asked_again",))
    outcome, request = explain_later(settings, labelled, Completion(HIGH, "stop", 9, 20))
    assert request.max_tokens == 64
    assert (outcome.explanation, outcome.flags) == ("写到了计划。", ("asked_again",))

    inquiry = Inquiry(
        settings, Question(RISK), "一条帖子", "00", Outcome("ok", labels=("high_risk",), flags=("constrained",))
    )
    assert (inquiry.request.pattern, inquiry.request.head_only) == (head_pattern(RISK), True)
    following = inquiry.take(complete(inquiry.request, HIGH))
    assert following is not None
    assert (following.pattern, following.head_only) == (None, False)
    assert inquiry.take(complete(following, HIGH)) is None
    assert inquiry.outcome is not None
    assert (inquiry.outcome.explanation, inquiry.outcome.flags) == ("写到了计划。", ("constrained",))
    assert inquiry.outcome.num_output_tokens == len(HIGH)


def obey(request: Request, answer: str, max_tokens: int, task: Task) -> Completion:
    """An engine that has one answer, a token for each character, and keeps to `max_tokens` and to the pattern."""
    if request.pattern is not None:
        answer = render_answer(task, [task.answerable[len(answer) % len(task.answerable)]], "")
        marker = find_marker(task.markers, answer)
        assert marker is not None
        answer = answer[: marker[1]]
        assert re.fullmatch(request.pattern, answer)
    elif request.head is not None and not answer.startswith(request.head.text):
        answer = f"{request.head.text}：接着说。"  # behind the head that it was held to
    limit = request.max_tokens or max_tokens
    return complete(request, answer[:limit], "length" if len(answer) > limit else "stop")


def ask_obeying(explain: str, generation: dict[str, Any], answer: str, task: Task) -> Outcome:
    inquiry = Inquiry(config(explain, generation=generation, cascade={"sample": 0.3}), Question(task), "一条帖子", "00")
    request: Request | None = inquiry.request
    for _ in range(8):
        if request is None:
            break
        request = inquiry.take(obey(request, answer, generation["max_tokens"], task))
    assert inquiry.outcome is not None
    return inquiry.outcome


@given(
    case=st.sampled_from(ALL),
    lead=st.sampled_from(["", "我想想。", "理由", "<think>理由"]),
    tail=st.sampled_from(["", "\n理由：写了很多。", "\n理由：高自杀风险", "\n理由：没有"]),
    max_tokens=st.sampled_from([5, 12, 20, 40, 200]),
    more=st.sampled_from([None, 8, 100]),
    retry_unparsed=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_what_is_cut_off_or_cannot_be_read_gets_the_labels_and_explanations_of_the_plain_path(
    case: Case, lead: str, tail: str, max_tokens: int, more: int | None, retry_unparsed: bool
) -> None:
    task = load_task(case.task)
    generation = {"max_tokens": max_tokens, "retry_unparsed": retry_unparsed}
    generation["retry_max_tokens"] = None if more is None else max_tokens + more  # type: ignore[assignment]
    answer = f"{lead}{case.raw}{tail}"
    plain = ask_obeying("all", generation, answer, task)
    for explain in ("none", "positive", "uncertain"):
        outcome = ask_obeying(explain, generation, answer, task)
        assert [getattr(outcome, name) for name in SAME] == [getattr(plain, name) for name in SAME]
        assert outcome.explanation in (None, plain.explanation)


@pytest.mark.parametrize("explain", ["all", "positive"])
def test_an_answer_held_to_the_form_that_is_cut_off_is_explained_too(explain: str) -> None:
    generation = {"max_tokens": 5, "retry_max_tokens": 64, "retry_unparsed": True}
    outcome = ask_obeying(explain, generation, "今天", RISK)
    assert (outcome.status, outcome.labels) == ("ok", ("low_risk",))
    assert {"constrained", "asked_again"} <= {*outcome.flags}
    assert outcome.explanation == ("接着说。" if explain == "all" else None)


def weigh(request: Request) -> Completion:
    """What an engine returns for candidates: the last, which is none where that may be, is nearly sure."""
    num = len(request.candidates)
    scores = (*[0.03 / (num - 1)] * (num - 1), 0.97)
    return Completion("", "stop", 90, num - 1, candidate_probabilities=scores, num_cached_tokens=70)


def ask_for_scores(settings: ScoreConfig, task: Task, *completions: Completion) -> tuple[Outcome, list[Request]]:
    """The outcome, and every request that it took; the last completion is given to whatever is asked after it."""
    inquiry = Inquiry(settings, Question(task), "一条帖子", "00")
    requests = [inquiry.request]
    left = list(completions)
    following = inquiry.take(left.pop(0))
    while following is not None:
        requests.append(following)
        following = inquiry.take(left.pop(0) if left else weigh(following))
    assert inquiry.outcome is not None
    return inquiry.outcome, requests


@pytest.mark.parametrize("explain", ["all", "none", "positive"])
def test_every_answer_gets_scores_and_is_otherwise_what_it_was(explain: str) -> None:
    num_failed = 0
    for case in ALL:
        task = load_task(case.task)
        completion = complete(Inquiry(config(explain), Question(task), "", "").request, case.raw)
        if completion.is_head and parse_head(task, completion.text) is None:
            continue  # it is gone on from
        if explain == "positive":
            completion = replace(completion, is_head=False)
        plain, _ = ask_for_scores(config(explain), task, completion)
        outcome, requests = ask_for_scores(config(explain, label_scores="forced"), task, completion)
        if case.raw.lstrip().startswith("<think>"):  # its answer comes after a thought, and not at once
            assert (outcome, len(requests)) == (plain, 1)
            continue
        assert replace(outcome, label_scores=None, num_output_tokens=plain.num_output_tokens) == plain
        assert outcome.label_scores is not None
        labels = [label for label, _ in outcome.label_scores]
        assert labels == [*task.by_slug, *(["none"] if task.none_allowed else [])]
        num_failed += outcome.status != "ok"
    assert num_failed > 50


def test_scores_are_asked_for_last_and_once_behind_the_models_own_white_space() -> None:
    settings = config("positive", label_scores="forced", generation={"retry_max_tokens": 300})
    answer = f"\n{render_answer(PATHWAY, PATHWAY.answerable[:1], '有。')}"
    cut = Completion("\n这篇", "length", 9, 4)
    head = Completion(answer[: answer.index("理由") + 2], "stop", 9, 6, is_head=True, token_ids=(1, 2, 3))
    whole = Completion(answer, "stop", 9, 8)
    outcome, requests = ask_for_scores(settings, PATHWAY, cut, head, whole)
    assert [bool(request.candidates) for request in requests] == [False, False, False, True]
    last = requests[-1]
    assert (last.lead, last.prompt, last.head, last.pattern) == ("\n", requests[0].prompt, None, None)
    assert last.candidates == tuple(candidate_answers(PATHWAY).values())
    assert (outcome.status, outcome.explanation, outcome.flags) == ("ok", "有。", ("asked_again",))
    assert outcome.num_output_tokens == 4 + 6 + 8 + 19
    assert outcome.label_scores is not None


def test_an_answer_is_followed_from_label_to_label_until_there_is_none_more() -> None:
    inquiry = Inquiry(config("none", label_scores="forced"), Question(PATHWAY), "一条帖子", "00")
    following = inquiry.take(Completion("今天天气不错。", "stop", 9, 5))  # what it answers is no matter
    one, other = PATHWAY.answerable[3], PATHWAY.answerable[1]
    for named, likeliest, share in (([], one, 0.5), ([one], other, 0.6), ([one, other], "none", 0.97)):
        candidates = candidate_answers(PATHWAY, named)
        assert following is not None
        assert following.candidates == tuple(candidates.values())
        rest = (1 - share) / (len(candidates) - 1)
        scores = tuple(share if label == likeliest else rest for label in candidates)
        following = inquiry.take(Completion("", "stop", 90, 6, candidate_probabilities=scores))
    assert following is None
    assert inquiry.outcome is not None
    found = dict(inquiry.outcome.label_scores or ())
    assert inquiry.outcome.status == "parse_failed"
    assert found[one] == pytest.approx(0.5)  # named, it does not come again
    assert found[other] == pytest.approx(0.5 / 19 + (1 - 2 * 0.5 / 19) * 0.6)
    assert found["none"] == pytest.approx(0.5 / 19)


def test_what_the_scores_cost_is_counted_and_is_no_waste() -> None:
    inquiry = Inquiry(config("none", label_scores="forced"), Question(PATHWAY), "一条帖子", "00")
    following = inquiry.take(Completion(render_answer(PATHWAY, [], None), "stop", 9, 5))
    assert following is not None
    assert inquiry.take(weigh(following)) is None
    assert (inquiry.num_prefill_tokens, inquiry.num_cached_tokens, inquiry.num_wasted_tokens) == (99, 70, 0)
    assert inquiry.outcome is not None
    assert inquiry.outcome.num_prompt_tokens == 9


def test_of_a_binary_task_they_are_its_probability_for_nothing_more() -> None:
    settings = config("none", label_scores="forced")
    outcome, requests = ask_for_scores(settings, RISK, Completion(HIGH, "stop", 9, 5, positive_probability=0.75))
    assert len(requests) == 1
    assert outcome.label_scores == (("low_risk", 0.25), ("high_risk", 0.75))
    # Held to a form, an answer has no probability of its own; its labels have.
    settings = config("none", label_scores="forced", generation={"retry_unparsed": True})
    held = Completion(HIGH, "stop", 9, 5, positive_probability=0.75)
    outcome, requests = ask_for_scores(settings, RISK, Completion(" 天气", "stop", 9, 2), held)
    assert (outcome.probability, len(requests), requests[-1].lead) == (None, 3, " ")
    assert outcome.label_scores == (("low_risk", 0.03), ("high_risk", 0.97))


@pytest.mark.parametrize(
    "completion",
    [Completion("", "too_long"), Completion("", "error", error="timeout"), Completion("", "refused", error="filter")],
)
def test_what_no_engine_answers_has_no_scores_and_is_not_asked_again(completion: Completion) -> None:
    outcome, requests = ask_for_scores(config("none", label_scores="forced"), PATHWAY, completion)
    assert (len(requests), outcome.label_scores) == (1, None)


def test_scores_that_fail_leave_the_answer_as_it_is() -> None:
    answer = Completion(render_answer(PATHWAY, [], None), "stop", 9, 5)
    failed = Completion("", "error", error="engine_crash")
    outcome, _ = ask_for_scores(config("none", label_scores="forced"), PATHWAY, answer, failed)
    assert (outcome.status, outcome.labels, outcome.label_scores) == ("ok", (), None)
    assert outcome.flags == ("label_scores_failed",)


def test_what_was_said_before_the_scores_failed_counts() -> None:
    answer = Completion(render_answer(PATHWAY, [], None), "stop", 9, 5)
    failed = Completion("", "error", error="engine_crash")
    num = len(candidate_answers(PATHWAY))
    first = Completion("", "stop", 90, 9, candidate_probabilities=(0.9, *[0.1 / (num - 1)] * (num - 1)))
    outcome, _ = ask_for_scores(config("none", label_scores="forced"), PATHWAY, answer, first, failed)
    assert outcome.flags == ("label_scores_failed",)
    assert dict(outcome.label_scores or ())[PATHWAY.answerable[0]] == pytest.approx(0.9)


def test_what_is_known_of_the_scores_of_known_labels_is_kept() -> None:
    labelled = Outcome("ok", labels=("high_risk",), finish_reason="stop", flags=("label_scores_failed",))
    outcome, _ = explain_later(config("positive"), labelled, Completion(HIGH, "stop", 9, 20))
    assert (outcome.explanation, outcome.flags) == ("写到了计划。", ("label_scores_failed",))
