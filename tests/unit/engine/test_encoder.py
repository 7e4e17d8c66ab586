"""The encoder engine: what transformers itself would say, in the words of the task's template."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mentalglm.config import EncoderEngineConfig, GenerationConfig, ModelConfig, ScoreConfig
from mentalglm.corpus.synthetic import generate_posts
from mentalglm.engine.classifier import (
    Classifier,
    check_classifier,
    completion_of,
    has_one_answer,
    longest_input,
    read_classifier,
)
from mentalglm.engine.encoder import EncoderEngine
from mentalglm.engine.model import resolve_model
from mentalglm.engine.protocol import Completion, Request
from mentalglm.errors import ConfigError
from mentalglm.scoring.cascade import Inquiry
from mentalglm.scoring.predictions import interpret
from mentalglm.scoring.questions import Question
from mentalglm.tasks import LABEL_MASK, NO_LABEL, Task, builtin_tasks, load_task, mask_labels, render_prompt
from tests.encoders import tiny_bert, tiny_classifier

RISK, DISTORTION, PATHWAY = map(load_task, ("suicide_risk", "cognitive_distortion", "cognitive_pathway"))
POSTS = [post.text for post in generate_posts(40, seed=3)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("encoder") / "bert", max_tokens=64, spread=0.5)


@pytest.fixture(scope="module", params=[RISK, DISTORTION, PATHWAY], ids=lambda task: task.name)
def classifier(request: pytest.FixtureRequest, base: Path) -> tuple[Task, Path]:
    task = request.param
    return task, tiny_classifier(base.parent / task.name, base, task)


def other(task: Task, **changes: Any) -> Task:
    return Task.model_validate(task.model_dump() | changes)


def engine(task: Task, folder: Path, *, generation: dict[str, Any] | None = None, **changes: Any) -> EncoderEngine:
    config = EncoderEngineConfig(kind="encoder", **changes)
    model = resolve_model(ModelConfig(path=str(folder)))
    return EncoderEngine(config, GenerationConfig(**(generation or {})), model, task, num_gpus=0)


async def answers(asked: EncoderEngine, task: Task, posts: list[str]) -> list[Completion]:
    requests = [Request(task.name, render_prompt(task, post), post=post) for post in posts]
    found = {index: completion async for index, completion in asked.complete(requests)}
    assert len(found) == len(posts)
    await asked.close()
    return [found[index] for index in range(len(posts))]


def said_by_transformers(folder: Path, post: str) -> dict[str, float]:
    """Label -> probability, by nothing of ours."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(**tokenizer(post, truncation=True, max_length=64, return_tensors="pt")).logits[0]
    is_single = model.config.problem_type == "single_label_classification"
    probabilities = logits.softmax(-1) if is_single else logits.sigmoid()
    return {model.config.id2label[number]: float(each) for number, each in enumerate(probabilities)}


async def test_labels_and_probabilities_are_those_of_transformers(classifier: tuple[Task, Path]) -> None:
    task, folder = classifier
    seen = set()
    for post, completion in zip(POSTS, await answers(engine(task, folder, batch_size=7), task, POSTS), strict=True):
        wanted = said_by_transformers(folder, post)
        outcome = interpret(task, completion)
        assert outcome is not None
        assert outcome.status == "ok"
        if has_one_answer(task):
            assert outcome.labels == (max(wanted, key=wanted.__getitem__),)
            assert outcome.confidence == pytest.approx(max(wanted.values()), abs=1e-5)
        else:
            assert outcome.labels == tuple(slug for slug, each in wanted.items() if each >= 0.5)
            both = math.prod(each if each >= 0.5 else 1 - each for each in wanted.values())
            assert outcome.confidence == pytest.approx(both, rel=1e-3)
        assert outcome.probability == (pytest.approx(wanted["high_risk"], abs=1e-5) if task is RISK else None)
        assert "free_form" not in outcome.flags
        assert (outcome.explanation, outcome.num_output_tokens) == (None, 0)
        assert ("text_truncated" in outcome.flags) == (len(AutoTokenizer.from_pretrained(folder)(post).input_ids) > 64)
        scores = dict(completion.label_scores or ())
        assert {slug: scores[slug] for slug in task.answerable} == pytest.approx(wanted, abs=1e-5)
        seen.add(outcome.labels)
    assert len(seen) > 1


async def test_a_batch_changes_nothing(classifier: tuple[Task, Path]) -> None:
    task, folder = classifier
    alone = await answers(engine(task, folder, batch_size=1), task, POSTS)
    together = await answers(engine(task, folder, batch_size=64), task, POSTS)
    for one, other in zip(alone, together, strict=True):
        assert one.text == other.text
        assert one.head_logprob == pytest.approx(other.head_logprob, abs=1e-4)


@pytest.fixture(scope="module")
def distortion(base: Path) -> Path:
    return tiny_classifier(base.parent / "one-more", base, DISTORTION)


async def test_what_is_too_long_is_cut_or_refused(distortion: Path) -> None:
    long, short = "好累" * 60, "好累"
    cut = await answers(engine(DISTORTION, distortion), DISTORTION, [long, short])
    assert [each.flags for each in cut] == [("text_truncated",), ()]
    assert [each.num_prompt_tokens for each in cut] == [64, 4]
    shorter = engine(DISTORTION, distortion, generation={"max_prompt_tokens": 32})
    assert [each.num_prompt_tokens for each in await answers(shorter, DISTORTION, [long, short])] == [32, 4]
    refusing = engine(DISTORTION, distortion, generation={"overlong": "fail"})
    refused = await answers(refusing, DISTORTION, [long, short])
    assert [each.finish_reason for each in refused] == ["too_long", "stop"]


async def test_a_special_token_in_a_post_is_text(distortion: Path) -> None:
    [plain, hostile] = await answers(engine(DISTORTION, distortion), DISTORTION, ["好累", "好[SEP]累"])
    assert (plain.num_prompt_tokens, hostile.num_prompt_tokens) == (4, 7)  # [ sep ] are three pieces


async def test_labels_are_masked_where_training_masked_them(base: Path) -> None:
    folder = tiny_classifier(base.parent / "masked", base, DISTORTION, mask_labels=True)
    asked = ["这是先知错误。", f"这是{LABEL_MASK}。", "这是读心术。", "这是别的。"]
    one, other, third, different = await answers(engine(DISTORTION, folder), DISTORTION, asked)
    assert one.label_scores == other.label_scores == third.label_scores != different.label_scores
    assert mask_labels(DISTORTION, asked[0]) == asked[1]


async def test_what_is_no_number_fails_its_rows_alone(distortion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = engine(DISTORTION, distortion, batch_size=2)
    plain = asked._probabilities
    monkeypatch.setattr(
        asked, "_probabilities", lambda ids: [[math.nan] * 12 if len(each) > 4 else plain([each])[0] for each in ids]
    )
    found = await answers(asked, DISTORTION, ["好累好累", "好累"])
    assert [(each.finish_reason, each.error) for each in found] == [("error", "not_finite"), ("stop", None)]


@given(st.data())
def test_every_answer_is_read_back_as_its_labels(data: st.DataObject) -> None:
    task = load_task(data.draw(st.sampled_from(builtin_tasks())))
    number = len(task.answerable)
    raw = data.draw(st.lists(st.floats(0.001, 0.999), min_size=number, max_size=number))
    chances = [each / sum(raw) for each in raw] if has_one_answer(task) else raw
    completion = completion_of(task, 0.5, chances, num_tokens=9)
    outcome = interpret(task, completion)
    assert outcome is not None
    if sum(each >= 0.5 for each in chances) >= 0.75 * number >= 4:  # nobody has nine of twelve distortions
        assert (outcome.status, outcome.reason) == ("parse_failed", "label_list_echoed")
        return
    assert outcome.status == "ok"
    assert outcome.labels is not None
    if has_one_answer(task):
        assert chances[task.answerable.index(outcome.labels[0])] == max(chances)
    elif task.none_allowed or any(each >= 0.5 for each in chances):
        assert outcome.labels == tuple(s for s, each in zip(task.answerable, chances, strict=True) if each >= 0.5)
    scores = dict(completion.label_scores or ())
    assert list(scores) == [*task.by_slug, *([NO_LABEL] if task.none_allowed else [])]
    for label in task.labels:
        if task.kind == "hierarchical" and label.parent is None:
            children = [scores[child.slug] for child in task.labels if child.parent == label.slug]
            assert max(children) <= scores[label.slug] <= min(1.0, sum(children)) + 1e-12


def test_the_threshold_is_that_of_the_folder() -> None:
    for threshold, label in ((0.5, "low_risk"), (0.2, "high_risk")):
        completion = completion_of(RISK, threshold, [0.7, 0.3], num_tokens=9)
        assert interpret(RISK, completion).labels == (label,)  # type: ignore[union-attr]
        assert completion.head_logprob == pytest.approx(math.log(0.7 if label == "low_risk" else 0.3))


def test_a_task_that_always_has_a_label_gets_the_likeliest() -> None:
    always = other(DISTORTION, none_answer=None)
    chances = [0.1] * 11 + [0.4]
    assert interpret(always, completion_of(always, 0.5, chances, num_tokens=9)).labels == ("blaming_others",)  # type: ignore[union-attr]


def score_config(**changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {"input": {"uri": "a"}, "output": {"uri": "b"}, "tasks": ["suicide_risk"], "engine": {"kind": "encoder"}}
        | changes
    )


def test_label_scores_cost_no_further_request() -> None:
    inquiry = Inquiry(score_config(label_scores="forced"), Question(DISTORTION), "好累", "00")
    assert inquiry.request.post == "好累"
    assert inquiry.take(completion_of(DISTORTION, 0.5, [0.25] * 12, num_tokens=9)) is None
    assert inquiry.outcome is not None
    assert dict(inquiry.outcome.label_scores or ())["mind_reading"] == 0.25
    assert (inquiry.outcome.labels, inquiry.outcome.flags) == ((), ())


def test_nothing_is_explained_and_nobody_has_to_say_so() -> None:
    assert score_config().explain == "none"
    assert ScoreConfig.model_validate(score_config().model_dump(mode="json")) == score_config()
    for explain in ("all", "positive", "uncertain"):
        with pytest.raises(ValueError, match=f"explain = {explain}: the encoder engine"):
            score_config(explain=explain)


def test_a_classifier_for_something_else_is_refused(base: Path, distortion: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks: suicide_risk .* the task cognitive_distortion"):
        check_classifier(distortion, [RISK])
    with pytest.raises(ConfigError, match="name its task alone"):
        check_classifier(distortion, [DISTORTION, RISK])
    with pytest.raises(ConfigError, match="another version"):
        check_classifier(distortion, [other(DISTORTION, version="0")])
    with pytest.raises(ConfigError, match=re.escape("no classifier.json")):
        check_classifier(base, [DISTORTION])
    check_classifier(distortion, [DISTORTION])


def test_labels_in_another_order_are_refused(base: Path) -> None:
    folder = tiny_classifier(base.parent / "turned", base, RISK)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["id2label"] == {"0": "low_risk", "1": "high_risk"}
    settings["id2label"] = {"0": "high_risk", "1": "low_risk"}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="id2label"):
        check_classifier(folder, [RISK])


def test_a_threshold_that_is_none_is_refused(base: Path) -> None:
    folder = tiny_classifier(base.parent / "threshold", base, RISK)
    replaced = read_classifier(folder).model_copy(update={"threshold": 1.5})
    replaced.write(folder)
    with pytest.raises(ConfigError, match="threshold"):
        read_classifier(folder)
    assert isinstance(replaced, Classifier)


async def test_asked_again_it_says_the_same(distortion: Path) -> None:
    said: list[Completion] = []

    def follow_up(_: int, completion: Completion) -> Request | None:
        said.append(completion)
        return request if len(said) == 1 else None

    request = Request(DISTORTION.name, render_prompt(DISTORTION, "好累"), post="好累")
    asked = engine(DISTORTION, distortion)
    found = [completion async for _, completion in asked.complete([replace(request, head_only=True)], follow_up)]
    await asked.close()
    assert [*said, *found] == [said[0]] * 3


def test_a_probability_that_underflows_has_a_finite_logarithm() -> None:
    task = load_task("cognitive_distortion")
    found = completion_of(task, 0.5, [0.0] * len(task.answerable), num_tokens=3)
    assert found.head_logprob is not None
    assert math.isfinite(found.head_logprob)


def test_roberta_has_fewer_places_for_tokens_than_positions() -> None:
    tokenizer = SimpleNamespace(model_max_length=10**30)
    roberta = SimpleNamespace(model_type="roberta", max_position_embeddings=514, pad_token_id=1)
    bert = SimpleNamespace(model_type="bert", max_position_embeddings=512, pad_token_id=0)
    assert [longest_input(tokenizer, each, 600) for each in (roberta, bert)] == [512, 512]
