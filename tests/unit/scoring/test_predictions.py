"""From completions to rows: labels only where they were read, every failure with a status and a reason."""

import math

import pytest

from mentalglm.engine.protocol import Completion
from mentalglm.scoring.predictions import STATUSES, interpret
from mentalglm.tasks import load_task, render_answer

RISK, PATHWAY = load_task("suicide_risk"), load_task("cognitive_pathway")
HIGH = render_answer(RISK, ["high_risk"], "帖子提到了计划。")


def test_an_answer_becomes_labels_explanation_and_probabilities() -> None:
    completion = Completion(HIGH, "stop", 30, 12, head_logprob=math.log(0.8), positive_probability=0.9)
    outcome = interpret(RISK, completion)
    assert outcome is not None
    assert (outcome.status, outcome.labels, outcome.parents) == ("ok", ("high_risk",), None)
    assert outcome.explanation == "帖子提到了计划。"
    assert outcome.confidence == pytest.approx(0.8)
    assert (outcome.probability, outcome.num_prompt_tokens, outcome.num_output_tokens) == (0.9, 30, 12)


def test_a_head_says_what_the_answer_will_say_or_nothing_yet() -> None:
    head = HIGH[: HIGH.index("理由") + 2]
    outcome = interpret(RISK, Completion(head, "stop", is_head=True))
    assert outcome is not None
    assert (outcome.status, outcome.labels, outcome.explanation) == ("ok", ("high_risk",), None)
    assert interpret(RISK, Completion("没有理由", "stop", is_head=True)) is None


def test_no_label_applies_is_ok_with_an_empty_list() -> None:
    outcome = interpret(PATHWAY, Completion(render_answer(PATHWAY, [], "没有。"), "stop"))
    assert outcome is not None
    assert (outcome.status, outcome.labels, outcome.parents) == ("ok", (), ())


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        (Completion("", "error", error="timeout"), "engine_error"),
        (Completion("", "too_long"), "too_long"),
        (Completion("", "refused", error="content_filter"), "refused"),
        (Completion("天气不错。", "stop"), "parse_failed"),
        (Completion("", "stop"), "parse_failed"),
        (Completion("我很抱歉，我无法协助处理这个请求。", "stop"), "refused"),
    ],
)
def test_a_failure_has_a_status_a_reason_and_no_label(completion: Completion, status: str) -> None:
    outcome = interpret(RISK, completion)
    assert outcome is not None
    assert outcome.status == status
    assert outcome.status in STATUSES
    assert outcome.reason
    assert outcome.labels is None
    assert outcome.confidence is None
    assert outcome.probability is None


def test_confidence_is_of_the_labels_alone_or_null() -> None:
    answer = "这篇帖子体现了高自杀风险。解释：帖子提到了计划。"  # a marker that the engine does not know
    outcome = interpret(RISK, Completion(answer, "stop", head_logprob=-9.0))
    assert outcome is not None
    assert (outcome.status, outcome.explanation, outcome.confidence) == ("ok", "帖子提到了计划。", None)


def test_flags_of_engine_and_parser_come_together() -> None:
    outcome = interpret(RISK, Completion(HIGH, "length", flags=("text_truncated",)))
    assert outcome is not None
    assert outcome.flags[0] == "text_truncated"
    assert "explanation_truncated" in outcome.flags
