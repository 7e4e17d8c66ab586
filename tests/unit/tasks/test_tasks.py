"""Task files: the built-in ones, a user's own, and what is said about a wrong one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mentalglm.errors import ConfigError
from mentalglm.tasks import (
    NO_LABEL,
    answer_heads,
    builtin_tasks,
    candidate_answers,
    load_task,
    parse_answer,
    render_answer,
    render_prompt,
)

_SHARED = Path(__file__).parents[3] / "../shared/data"


@pytest.mark.parametrize("name", builtin_tasks())
def test_built_in_tasks_load_and_say_where_their_templates_come_from(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert task.prompt.count("{text}") == 1
    assert task.provenance.prompt.source
    assert task.provenance.answer.source
    if task.kind == "binary":
        negative, positive = answer_heads(task)
        assert negative != positive
        assert parse_answer(task, positive).labels == (task.positive,)
        assert parse_answer(task, negative).labels == (task.negative,)


@pytest.mark.parametrize("name", builtin_tasks())
def test_each_label_has_an_answer_of_its_own_in_every_form_that_it_may_take(name: str) -> None:
    task = load_task(name)
    candidates = candidate_answers(task)
    assert list(candidates) == [*task.answerable, *([NO_LABEL] if task.none_allowed else [])]
    for slug, (whole, explained, *more) in candidates.items():
        labels = () if slug == NO_LABEL and task.none_allowed else (slug,)
        assert whole == render_answer(task, labels, None)
        assert parse_answer(task, f"{explained}写到了。").labels == labels
        assert len(more) == (task.kind in ("multilabel", "hierarchical") and labels != ())
        for beginning in more:
            named = parse_answer(task, render_answer(task, labels, None).replace(whole, beginning)).labels
            assert slug in named
            assert len(named) == 2


def test_what_may_come_behind_a_label_is_another_one_or_the_end() -> None:
    task = load_task("cognitive_distortion")
    named = ["labeling", "mind_reading"]  # in the order that they were named in
    candidates = candidate_answers(task, named)
    assert list(candidates) == [*(slug for slug in task.answerable if slug not in named), NO_LABEL]
    assert candidates[NO_LABEL] == (
        "这篇帖子体现了乱贴标签, 读心术的认知歪曲。",
        "这篇帖子体现了乱贴标签, 读心术的认知歪曲。理由：",
    )
    for slug, (whole, *_) in candidates.items():
        assert set(parse_answer(task, whole).labels) == {*named, slug} - {NO_LABEL}
    assert list(candidate_answers(task, task.answerable)) == [NO_LABEL]


def test_the_built_in_set_is_complete() -> None:
    names = builtin_tasks()
    imhi = ["dr", "dreaddit", "loneliness", "swmh", "tsid", "sad", "cams"]
    imhi += [
        f"multiwd_{each}" for each in ("spiritual", "physical", "intellectual", "social", "vocational", "emotional")
    ]
    imhi += ["irf_thwarted_belongingness", "irf_perceived_burdensomeness"]
    assert {f"imhi_{name}_{language}" for name in imhi for language in ("en", "zh")} < set(names)
    assert [len(load_task(name).labels) for name in ("suicide_risk", "cognitive_distortion", "cognitive_pathway")] == [
        2,
        12,
        23,
    ]


def test_prompts_and_answers_keep_the_published_wording() -> None:
    distortion, pathway = load_task("cognitive_distortion"), load_task("cognitive_pathway")
    assert render_prompt(distortion, "累").user == "考虑一下这个帖子：“累”问题：这个帖子体现了什么认知歪曲？"
    assert render_prompt(pathway, "累").user == "考虑以下这个帖子,帖子体现了什么认知路径?累"
    assert (
        render_answer(distortion, ["labeling", "mind_reading"], "因")
        == "这篇帖子体现了读心术, 乱贴标签的认知歪曲。理由：因"
    )
    assert render_answer(distortion, [], None) == "这篇帖子没有体现认知歪曲。"
    assert render_answer(pathway, ["jumping_to_conclusions"], None) == "这篇帖子体现了认知歪曲##妄下结论的认知路径。"
    assert answer_heads(load_task("suicide_risk")) == ("这篇帖子体现了低自杀风险。", "这篇帖子体现了高自杀风险。")
    prompt = render_prompt(load_task("imhi_multiwd_spiritual_en"), "hi").user
    assert prompt == 'Consider this post: "hi" Question: Does the spiritual wellness dimension exist in the post?'


@given(text=st.text())
def test_a_post_goes_into_the_prompt_literally_and_cannot_close_its_quotation(text: str) -> None:
    for name, marks in (("suicide_risk", "“”"), ("imhi_dr_en", '"'), ("cognitive_pathway", "")):
        prompt = render_prompt(load_task(name), text)
        assert not any(mark in prompt.text for mark in marks)
        assert len(prompt.text) == len(text)
        assert prompt.user == prompt.before + prompt.text + prompt.after
        assert all(mine == theirs for mine, theirs in zip(prompt.text, text, strict=True) if theirs not in marks)


def test_placeholders_and_questions_in_a_post_stay_text() -> None:
    text = '{text} {0} 问题：Question: {"a": 1}\n%s'
    assert render_prompt(load_task("suicide_risk"), text).text == text


def test_render_answer_refuses_labels_that_are_no_answer() -> None:
    with pytest.raises(ValueError, match="no answers"):
        render_answer(load_task("cognitive_pathway"), ["belief"], None)
    with pytest.raises(ValueError, match="one label"):
        render_answer(load_task("suicide_risk"), [], None)
    with pytest.raises(ValueError, match="needs a label"):
        render_answer(_own_multilabel_without_none(), [], None)
    with pytest.raises(ValueError, match="only a binary task"):
        answer_heads(load_task("cognitive_distortion"))


def _own_multilabel_without_none() -> Any:
    task = load_task("cognitive_distortion")
    return task.model_copy(update={"none_answer": None})


def test_imhi_training_data_is_what_the_tasks_render() -> None:
    if not _SHARED.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    for stem, name in (("DR", "imhi_dr_en"), ("dreaddit", "imhi_dreaddit_en"), ("SAD", "imhi_sad_en")):
        task = load_task(name)
        rows = [json.loads(line) for line in (_SHARED / f"imhi.{stem}.train.jsonl").read_text("utf-8").splitlines()]
        for index, row in enumerate(rows):
            slug = row["label"].replace(" ", "_")
            before_answer = f"Question: {row['question']}"
            answer = parse_answer(task, f"{row['answer']} Reasoning: {row['explanation']}")
            # Plain booleans: a failing test must not print a post.
            same_prompt = render_prompt(task, "").after.endswith(before_answer)
            same_answer = render_answer(task, [slug], None) == row["answer"]
            same_label = answer.labels == (slug,)
            assert same_prompt, f"question of row {index}"
            assert same_answer, f"answer of row {index}"
            assert same_label, f"label of row {index}"


def _own() -> dict[str, Any]:
    source = {"status": "assumed", "source": "a test"}
    return {
        "name": "mood",
        "version": "1",
        "language": "zh",
        "kind": "multilabel",
        "metric": "micro_f1",
        "prompt": "{text}\n这是什么情绪？",
        "answer": "情绪是{labels}。",
        "none_answer": "没有情绪。",
        "separator": "、",
        "explanation": "理由：{explanation}",
        "markers": ["理由"],
        "labels": [
            {"slug": "joy", "zh": "喜悦", "en": "joy", "aliases": ["高兴"]},
            {"slug": "anger", "zh": "愤怒", "en": "anger"},
            {"slug": "grief", "zh": "悲伤", "en": "grief"},
        ],
        "provenance": {"prompt": source, "answer": source},
    }


def _write(folder: Path, data: Any) -> str:
    path = folder / "mood.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return str(path)


def test_a_task_of_ones_own_works_like_a_built_in_one(tmp_path: Path) -> None:
    task = load_task(_write(tmp_path, _own()))
    assert render_prompt(task, "好").user == "好\n这是什么情绪？"
    assert parse_answer(task, "情绪是喜悦、悲伤。理由：愤怒").labels == ("joy", "grief")
    assert parse_answer(task, "高兴和憤怒").labels == ("joy", "anger")
    assert parse_answer(task, "没有情绪。").status == "ok"


def test_a_file_with_variants_holds_several_tasks(tmp_path: Path) -> None:
    data = _own() | {"name": "mood_{variant}", "prompt": "{text}\n{who}是什么情绪？"}
    path = _write(tmp_path, data | {"variants": {"author": {"who": "作者"}, "reader": {"who": "读者"}}})
    task = load_task(f"{path}#reader")
    assert (task.name, render_prompt(task, "x").user) == ("mood_reader", "x\n读者是什么情绪？")
    with pytest.raises(ConfigError, match=r"name one of .*#author"):
        load_task(path)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    first = load_task(_write(tmp_path, _own()))
    second = load_task(_write(tmp_path, _own() | {"version": "2"}))
    assert (first.version, second.version) == ("1", "2")
    assert first.digest != second.digest


def test_the_digest_depends_on_every_part_and_on_nothing_else(tmp_path: Path) -> None:
    digest = load_task(_write(tmp_path, _own())).digest
    reordered = dict(reversed(_own().items()))
    assert load_task(_write(tmp_path, reordered)).digest == digest
    changed = _own()
    changed["labels"][0]["aliases"] = ["欢喜"]
    assert load_task(_write(tmp_path, changed)).digest != digest
    assert len(digest) == 64


_LABELS = _own()["labels"]
_BAD = [
    ({"prompt": "这是什么情绪？"}, "prompt = .*{text} 0 times"),
    ({"prompt": "{text}{text}"}, "prompt = .*{text} 2 times"),
    ({"answer": "情绪。"}, "answer = .*{labels} 0 times"),
    ({"explanation": "理由："}, "explanation = .*{explanation} 0 times"),
    ({"explanation": "{explanation}"}, "explanation = .*begin it with a marker"),
    ({"markers": ["Reasoning"]}, "markers = .*none is in explanation"),
    ({"answer": None}, "answer: missing"),
    ({"kind": "binary", "none_answer": None}, "a binary task has two labels, here are 3"),
    ({"kind": "binary", "none_answer": None, "labels": _LABELS[:2]}, "positive = None: name one of the two labels"),
    ({"kind": "multiclass"}, "none_answer: only for multilabel"),
    ({"labels": [*_LABELS[:2], {**_LABELS[2], "slug": "none"}]}, "slug 'none' stands for no label at all"),
    ({"positive": "joy"}, "positive = 'joy': only for binary"),
    ({"labels": [*_LABELS, _LABELS[0]]}, "slug 'joy' is given twice"),
    ({"labels": [*_LABELS, {"slug": "glad", "zh": "高兴", "en": "glad"}]}, "'高兴' names both joy and glad"),
    ({"labels": [*_LABELS, {"slug": "rage", "zh": "憤怒", "en": "rage"}]}, "'憤怒' names both anger and rage"),
    ({"labels": [{**_LABELS[0], "aliases": [" "]}, *_LABELS[1:]]}, "an empty name or alias"),
    ({"labels": [{**_LABELS[0], "aliases": ["---"]}, *_LABELS[1:]]}, "labels.joy: '---' is an empty name"),
    ({"topics": ["《》"]}, "topics: '《》' is an empty name"),
    ({"foreign": ["“”"]}, "foreign: '“”' is an empty name"),
    ({"markers": ["理由", ""]}, "markers = .*'' marks nothing"),
    ({"markers": ["理由", "："]}, "markers = .*'：' marks nothing"),
    ({"labels": [{**_LABELS[0], "slug": "Joy!"}, *_LABELS[1:]]}, r"labels\.0\.slug = \"Joy!\""),
    ({"labels": [{**_LABELS[0], "parent": "grief"}, *_LABELS[1:]]}, "only a task of kind hierarchical"),
    ({"labels": [{**_LABELS[0], "ordinary": ["乐"]}, *_LABELS[1:]]}, "ordinary: '乐' is none of the label's names"),
    (
        {"kind": "hierarchical", "labels": [{**_LABELS[0], "parent": "mood"}, *_LABELS[1:]]},
        "parent = 'mood': no such label",
    ),
    ({"kind": "hierarchical"}, "needs labels with a parent"),
    (
        {
            "kind": "hierarchical",
            "labels": [{**_LABELS[0], "parent": "anger"}, {**_LABELS[1], "parent": "grief"}, _LABELS[2]],
        },
        "has a parent itself",
    ),
    ({"answer": "理由：{labels}。"}, "reads back as"),
    (
        {"kind": "multiclass", "none_answer": None, "labels": [{**each, "answer": "情绪。"} for each in _LABELS]},
        "reads back as",
    ),
    ({"unknown_key": 1}, "unknown_key: unknown key"),
    ({"language": "fr"}, 'language = "fr"'),
    ({"variants": []}, "variants: write"),
]


@pytest.mark.parametrize(("change", "message"), _BAD, ids=lambda each: each if isinstance(each, str) else "")
def test_a_wrong_task_file_is_refused_in_one_line_that_names_the_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = _write(tmp_path, _own() | change)
    with pytest.raises(ConfigError, match=message) as caught:
        load_task(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(path)


def test_unknown_names_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such built-in task; near names: .*suicide_risk"):
        load_task("suicide_rsk")
    with pytest.raises(ConfigError, match="no such file"):
        load_task(str(tmp_path / "absent.yaml"))
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="a task is a mapping"):
        load_task(str(tmp_path / "list.yaml"))
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match=r"broken\.yaml:\d"):
        load_task(str(tmp_path / "broken.yaml"))
    (tmp_path / "python.yaml").write_text("name: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="without Python tags"):
        load_task(str(tmp_path / "python.yaml"))


def test_parsing_and_rendering_import_nothing_heavy() -> None:
    code = (
        "import sys, json; from mentalglm.tasks import load_task, parse_answer; import mentalglm.config;"
        "task = load_task('cognitive_distortion'); parse_answer(task, '{\\'labels\\': [\\'讀心術\\'');"
        "heavy = ('ray', 'torch', 'vllm', 'transformers', 'pyarrow', 'numpy', 'openai');"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []
