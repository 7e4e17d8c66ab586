"""Few-shot: which posts are shown, where they stand, and that no post is shown its own answer."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mentalglm.config import ExamplesConfig, PromptConfig, ScoreConfig, load_config
from mentalglm.corpus.records import Record
from mentalglm.engine.protocol import Completion
from mentalglm.errors import ConfigError, InputError
from mentalglm.scoring.cascade import EXAMPLE_LEFT_OUT, Inquiry
from mentalglm.scoring.examples import choose_examples, describe_prompts, with_prompts
from mentalglm.scoring.questions import Question
from mentalglm.tasks import Task, builtin_tasks, load_task, parse_answer, render_answer, render_prompt

RISK, DISTORTION = load_task("suicide_risk"), load_task("cognitive_distortion")


def config(path: Path | None = None, **changes: Any) -> ExamplesConfig:
    return ExamplesConfig.model_validate(
        {"train": [{"uri": str(path or "records.jsonl"), "task": "suicide_risk"}]} | changes
    )


def records(task: Task, num_each: int = 5) -> list[Record]:
    """Some of each label; every third has the next label too, where a record may have two."""
    slugs = task.answerable
    found = []
    for number, slug in enumerate(slugs * num_each):
        more = [slugs[(number + 1) % len(slugs)]] if task.kind == "multilabel" and number % 3 == 0 else []
        labels = [each for each in slugs if each in (slug, *more)]
        found.append(Record(task, f"第{number}条帖子", labels, None, id=str(number)))
    return found + [Record(task, f"没有{number}", [], None) for number in range(num_each) if task.none_allowed]


def write(path: Path, task: Task, rows: list[Record]) -> Path:
    told = [{"text": row.text, "labels": list(row.labels), "explanation": "因为。"} for row in rows]
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in told), encoding="utf-8")
    return path


@pytest.mark.parametrize("task", [RISK, DISTORTION], ids=lambda task: task.name)
def test_of_each_label_there_are_enough_whatever_the_order_of_the_file(task: Task) -> None:
    rows = records(task)
    chosen = choose_examples(task, rows, config(per_label=2))
    for slug in task.answerable:
        assert sum(slug in each.labels for each in chosen) >= 2
    assert sum(not each.labels for each in chosen) == (2 if task.none_allowed else 0)
    assert len({each.text for each in chosen}) == len(chosen) <= 2 * (len(task.answerable) + 1)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert choose_examples(task, shuffled, config(per_label=2)) == chosen
    assert choose_examples(task, rows, config(per_label=2, seed=1)) != chosen
    one = choose_examples(task, rows, config(per_label=1))
    assert len(one) < len(chosen)
    if task is RISK:  # one label each: exactly so many, not one label after the other
        assert len(chosen) == 4
        many = [each.labels[0] for each in choose_examples(task, rows, config(per_label=5))]
        assert many not in (sorted(many), sorted(many, reverse=True))


def test_equal_texts_count_once_and_long_ones_not_at_all() -> None:
    rows = [Record(RISK, "同样", [slug], None) for slug in RISK.answerable] + records(RISK, 1)
    assert sum(each.text == "同样" for each in choose_examples(RISK, rows, config(per_label=1, seed=3))) <= 1
    long = [Record(RISK, "长" * 301, ["high_risk"], None), *records(RISK, 1)]
    with pytest.raises(InputError, match=r"1 records of suicide_risk have the label .* per_label = 2"):
        choose_examples(RISK, long, config(per_label=2))


def test_records_that_do_not_fit_the_tasks_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "records.jsonl", RISK, records(RISK))
    with pytest.raises(ConfigError, match="has no records of cognitive_distortion"):
        with_prompts([DISTORTION], PromptConfig(examples=config(path)))
    own = RISK.model_copy(update={"version": "2"})
    own = Task.model_validate(own.model_dump())
    with pytest.raises(ConfigError, match="suicide_risk is another task there"):
        with_prompts([own], PromptConfig(examples=config(path)))
    with pytest.raises(InputError, match=r"prompt\.examples\.train\[0\] = .*no such file"):
        with_prompts([RISK], PromptConfig(examples=config(tmp_path / "none.jsonl")))


def test_examples_stand_before_the_post_in_the_words_of_the_task(tmp_path: Path) -> None:
    path = write(tmp_path / "records.jsonl", RISK, records(RISK))
    settings = PromptConfig(names_labels=True, examples=config(path))
    [task] = with_prompts([RISK], settings)
    prompt = render_prompt(task, "新的“帖子”")
    plain = render_prompt(RISK, "新的“帖子”")
    assert (prompt.before, prompt.text, prompt.after) == (plain.before, plain.text, plain.after)
    assert prompt.user == prompt.preamble + plain.user
    assert prompt.preamble.index("低自杀风险、高自杀风险") < prompt.preamble.index("考虑一下这个帖子")
    for each in task.examples:
        answer = render_answer(RISK, each.labels, "因为。")
        assert f"{render_prompt(RISK, each.text).user}\n{answer}\n\n" in prompt.preamble
    assert prompt.preamble == render_prompt(task, "另一条").preamble
    assert describe_prompts(settings, [task]) == {
        "names_labels": True,
        "examples": {"per_label": 1, "seed": 0, "max_characters": 300, "num": {"suicide_risk": 2}},
    }
    assert "帖子" not in json.dumps(describe_prompts(settings, [task]), ensure_ascii=False)


def test_a_task_that_is_asked_otherwise_is_another_and_one_that_is_not_is_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "records.jsonl", RISK, records(RISK))
    assert with_prompts([RISK], PromptConfig()) == (RISK,)
    others = [{"names_labels": True}, {"examples": config(path)}, {"examples": config(path, seed=1)}]
    digests = {with_prompts([RISK], PromptConfig(**each))[0].digest for each in others}
    assert len(digests | {RISK.digest}) == 4
    assert RISK.digest == "eb470eb1a9055629b759b988d11e4c9f91138c152140fe8b95dfd0dc0768d6aa"  # since version 1


def test_a_post_is_not_shown_its_own_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "records.jsonl", RISK, records(RISK))
    [task] = with_prompts([RISK], PromptConfig(examples=config(path)))
    settings = ScoreConfig.model_validate({"input": {"uri": "a"}, "output": {"uri": "b"}, "tasks": ["suicide_risk"]})
    answer = Completion(render_answer(RISK, ["high_risk"], "因为。"), "stop", 9, 9)
    for text, is_shown in ((task.examples[0].text, True), ("新的", False)):
        inquiry = Inquiry(settings, Question(task), text, "00")
        others = [each.text for each in task.examples if each.text != text]
        assert all(each in inquiry.request.prompt.preamble for each in others)
        assert text not in inquiry.request.prompt.preamble
        assert inquiry.take(answer) is None
        assert inquiry.outcome is not None
        assert (EXAMPLE_LEFT_OUT in inquiry.outcome.flags) == is_shown


@pytest.mark.parametrize("name", builtin_tasks())
def test_the_form_that_is_told_is_read_back(name: str) -> None:
    """What the instruction calls the form of an answer, filled in, is what the parser reads."""
    task = Task.model_validate(load_task(name).model_dump() | {"names_labels": True})
    instruction = render_prompt(task, "x").preamble
    for slug in task.answerable:
        own = task.by_slug[slug].answer
        assert (own or task.name_of(slug)) in instruction
    if task.answer is not None:
        before, _, after = task.answer.partition("{labels}")
        line = next(each for each in instruction.splitlines() if before in each and "<" in each)
        form = line[line.index(before) :]
        for slot in ("<标签>, <标签>", "<标签>", "<label>, <label>", "<label>"):
            form = form.replace(slot, task.name_of(next(s for s in task.answerable if not task.by_slug[s].answer)))
        assert parse_answer(task, form).status == "ok"
        assert after in form


@pytest.mark.parametrize("explanation", [None, "没有计划"])
def test_the_form_has_a_reason_where_the_examples_have_one(explanation: str | None) -> None:
    example = {"text": "短", "labels": ("low_risk",), "explanation": explanation}
    task = Task.model_validate(RISK.model_dump() | {"names_labels": True, "examples": [example]})
    instruction = render_prompt(task, "x").preamble.partition("\n\n")[0]
    assert ("理由" in instruction) == (explanation is not None)


@pytest.mark.parametrize("kind", ["tfidf", "encoder"])
def test_what_reads_the_post_alone_has_no_prompt(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "score.yaml"
    path.write_text(f"{{input: {{uri: a}}, output: {{uri: b}}, tasks: [suicide_risk], engine: {{kind: {kind}}}}}")
    load_config(ScoreConfig, path)
    with pytest.raises(ConfigError, match=f"prompt: the {kind} engine reads the post alone"):
        load_config(ScoreConfig, path, ["prompt.names_labels=true"])
