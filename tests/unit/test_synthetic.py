"""Synthetic posts: the same everywhere, labelled consistently, explained by their own words, held out for certain."""

import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.corpus.synthetic import (
    COMMON_CHARACTERS,
    PATHWAY_OF_DISTORTION,
    TASKS,
    SyntheticPost,
    generate_posts,
    phrase_fragments,
    unfamiliar_posts,
    write_corpus,
)
from mentalglm.tasks import load_task, parse_answer, render_answer

SEEDS = st.integers(0, 2**32)
LOADED = {name: load_task(name) for name in TASKS}


def fingerprint(posts: list[SyntheticPost]) -> str:
    return hashlib.sha256(
        repr([(p.post_id, p.text, p.created_at, p.labels, p.explanations) for p in posts]).encode()
    ).hexdigest()


def quotations(explanation: str) -> list[str]:
    return [part.partition("”")[0] for part in explanation.split("“")[1:]]


def test_posts_are_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from mentalglm.corpus.synthetic import *;"
        "posts = [*generate_posts(50, 3), *generate_posts(50, 3, held_out=True), *unfamiliar_posts(50, 3)];"
        "print(hashlib.sha256(''.join(p.post_id + p.text for p in posts).encode()).hexdigest())"
    )
    environments: list[dict[str, str]] = [{"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"}]
    digests = {
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        for env in environments
    }
    assert digests == {"d9302ec7685348ec845fc7491111f8b7e89d58058d7400173391a8d8b8f98097\n"}


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_a_shorter_corpus_is_the_beginning_of_a_longer_one(seed: int) -> None:
    assert fingerprint(list(generate_posts(20, seed))) == fingerprint(
        list(itertools.islice(generate_posts(60, seed), 20))
    )


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.booleans())
def test_labels_agree_across_tasks(seed: int, held_out: bool) -> None:
    known = {name: {label.slug for label in LOADED[name].labels} for name in TASKS}
    for post in generate_posts(40, seed, held_out=held_out):
        assert set(post.labels) == set(post.explanations) == set(TASKS)
        for name in TASKS:
            slugs = post.labels[name]
            assert set(slugs) <= known[name]
            assert sorted(slugs, key=list(LOADED[name].by_slug).index) == list(slugs)
            assert len(set(slugs)) == len(slugs)
        (risk,) = post.labels["suicide_risk"]
        assert risk in ("high_risk", "low_risk")
        beliefs = {PATHWAY_OF_DISTORTION[slug] for slug in post.labels["cognitive_distortion"]}
        parents = LOADED["cognitive_pathway"].by_slug
        assert beliefs == {slug for slug in post.labels["cognitive_pathway"] if parents[slug].parent == "belief"}


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.booleans())
def test_explanations_quote_the_post_and_are_short(seed: int, held_out: bool) -> None:
    for post in generate_posts(40, seed, held_out=held_out):
        assert all(cue in post.text for cue in post.cues)
        for name in TASKS:
            explanation = post.explanations[name]
            quoted = quotations(explanation)
            assert all(quotation in post.cues for quotation in quoted)
            assert len(explanation) - sum(map(len, quoted)) <= 30 * max(len(quoted), 1)
            assert all(2 < len(quotation) < 30 for quotation in quoted)
            if post.labels[name] and post.labels[name] != ("low_risk",):
                assert len(quoted) >= len(post.labels[name])


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_gold_answers_parse_to_their_labels(seed: int) -> None:
    for post in [*generate_posts(15, seed, held_out=True), *unfamiliar_posts(5, seed)]:
        for task in LOADED.values():
            answer = parse_answer(task, render_answer(task, list(post.labels[task.name]), post.explanations[task.name]))
            assert (answer.status, answer.labels) == ("ok", post.labels[task.name])
            assert answer.explanation == post.explanations[task.name]


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_held_out_posts_never_occur_among_training_posts(seed: int) -> None:
    training = {post.text for post in generate_posts(300, seed)}
    held_out = [post.text for post in generate_posts(300, seed, held_out=True)]
    assert len(training) == len(set(held_out)) == 300
    assert training.isdisjoint(held_out)


def test_held_out_values_stand_in_no_training_post() -> None:
    training = "\n".join(post.text for post in generate_posts(3000, 5))
    for value in ("仓鼠", "荨麻疹", "煲仔饭", "身份证", "投标书"):
        assert value not in training
        assert value not in set(phrase_fragments())
        assert any(value in post.text for post in generate_posts(3000, 5, held_out=True))


def test_every_label_occurs_and_most_posts_have_one_step() -> None:
    posts = list(generate_posts(3000, 11))
    for name in TASKS:
        found = {slug for post in posts for slug in post.labels[name]}
        assert found == set(LOADED[name].answerable)
    num_steps = [len(post.labels["cognitive_pathway"]) for post in posts]
    assert max(set(num_steps), key=num_steps.count) == 1
    assert 0 in num_steps
    assert {len(post.labels["cognitive_distortion"]) for post in posts} == {0, 1, 2, 3}
    high = sum(post.labels["suicide_risk"] == ("high_risk",) for post in posts)
    assert 0.3 < high / len(posts) < 0.45
    assert len({len(post.text) for post in posts}) > 100


def test_ids_and_times_rise_and_look_like_weibo() -> None:
    posts = list(generate_posts(200, 2))
    assert all(len(post.post_id) == 16 and post.post_id.isdigit() for post in posts)
    assert [post.post_id for post in posts] == sorted({post.post_id for post in posts})
    assert [post.created_at for post in posts] == sorted(post.created_at for post in posts)
    assert {post.post_id for post in posts}.isdisjoint(post.post_id for post in generate_posts(200, 3))


def test_unfamiliar_posts_have_no_labels_and_all_sizes() -> None:
    posts = list(unfamiliar_posts(500, 4))
    assert {post.labels["suicide_risk"] for post in posts} == {("low_risk",)}
    assert not any(post.labels["cognitive_distortion"] or post.labels["cognitive_pathway"] for post in posts)
    lengths = sorted(len(post.text) for post in posts)
    assert lengths[0] <= 2
    assert 700 < lengths[-1] <= 1000


def test_the_common_characters_are_distinct_and_of_the_plane_of_han() -> None:
    assert len(COMMON_CHARACTERS) == len(set(COMMON_CHARACTERS)) == 3755
    assert set("的一是不了人我在有他") <= set(COMMON_CHARACTERS)


def test_a_corpus_is_parquet_with_its_gold_apart(tmp_path: Path) -> None:
    paths = {"gold_path": tmp_path / "gold.parquet", "records_path": tmp_path / "records.parquet"}
    write_corpus(tmp_path / "new" / "posts.parquet", num_posts=30, seed=1, **paths)
    posts, gold = pq.read_table(tmp_path / "new" / "posts.parquet"), pq.read_table(tmp_path / "gold.parquet")
    assert posts.column_names == ["post_id", "text", "created_at"]
    assert str(posts.schema.field("post_id").type) == "string"
    assert posts["post_id"].to_pylist() == gold["post_id"].to_pylist()
    both = pq.read_table(tmp_path / "records.parquet")
    assert both.column_names == [*posts.column_names, *gold.column_names[1:]]
    assert both["text"].to_pylist() == posts["text"].to_pylist()
    expected = list(generate_posts(30, 1, held_out=True))
    assert posts["text"].to_pylist() == [post.text for post in expected]
    for name in TASKS:
        assert gold[name].to_pylist() == [list(post.labels[name]) for post in expected]
        assert gold[f"{name}_explanation"].to_pylist() == [post.explanations[name] for post in expected]


def test_the_command_writes_the_same_file_each_time(tmp_path: Path) -> None:
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path in paths:
        command = [sys.executable, "-m", "mentalglm.corpus.synthetic", "--num-posts", "20", "--seed", "6", "--output"]
        subprocess.run([*command, str(path)], check=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_wrong_argument_is_refused(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mentalglm.corpus.synthetic",
        "--num-posts",
        "many",
        "--output",
        str(tmp_path / "a"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "many" in result.stderr
    with pytest.raises(StopIteration):
        next(generate_posts(0, 1))
