"""Forced continuation: probabilities of given answers, asked for at the tokens where they part."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mentalglm.engine.chat import ChatEncoder
from mentalglm.engine.forced import AnswerTree, Fork, IndistinctError, tree_of
from mentalglm.engine.model import DEMO_MODEL
from mentalglm.errors import ConfigError
from mentalglm.tasks import Task, builtin_tasks, candidate_answers, load_task

END = 99


def logprob(prefix: Sequence[int], token_id: int) -> float:
    """A model: some log-probability of each token behind each prefix."""
    return -(hash((tuple(prefix), token_id)) % 1000) / 100


def ask(tree: AnswerTree) -> tuple[float, ...]:
    return tree.probabilities(
        [{token_id: logprob(fork.prefix, token_id) for token_id in fork.next_ids} for fork in tree.forks]
    )


def held(answers: Sequence[Sequence[Sequence[int]]]) -> list[float]:
    """The same in the long way: decoding held to all wordings, token by token to their ends."""
    every = [tuple(ids) for wordings in answers for ids in wordings]

    def probability(ids: Sequence[int]) -> float:
        product = 1.0
        for at, token_id in enumerate(ids):
            ways = {each[at] for each in every if each[:at] == tuple(ids[:at]) and len(each) > at}
            product *= math.exp(logprob(ids[:at], token_id)) / sum(math.exp(logprob(ids[:at], way)) for way in ways)
        return product

    return [sum(probability(ids) for ids in set(map(tuple, wordings))) for wordings in answers]


# Few token ids, so that wordings share beginnings, and one often begins another.
_IDS = st.lists(st.integers(0, 2), max_size=5).map(lambda ids: (*ids, END))


@given(st.lists(_IDS, min_size=1, max_size=12, unique=True), st.data())
def test_scores_are_those_of_decoding_held_to_the_answers_and_add_up_to_one(
    wordings: list[tuple[int, ...]], data: st.DataObject
) -> None:
    num_answers = data.draw(st.integers(1, len(wordings)))
    answers: list[list[tuple[int, ...]]] = [[] for _ in range(num_answers)]
    for number, ids in enumerate(wordings):
        answers[number % num_answers].append(ids)
    tree = AnswerTree(answers)
    found = ask(tree)
    assert sum(found) == pytest.approx(1)
    assert found == pytest.approx(held(answers))
    assert len(tree.forks) < max(2, len(wordings))
    assert all(len(fork.next_ids) > 1 for fork in tree.forks)


def test_what_answers_have_in_common_costs_nothing() -> None:
    tree = AnswerTree([[[7, 7, 1, 5]], [[7, 7, 2, 5]], [[7, 7, 3, 3, 1, 5]], [[7, 7, 3, 3, 2, 5]]])
    assert tree.forks == [Fork((7, 7), (1, 2, 3)), Fork((7, 7, 3, 3), (1, 2))]


def test_one_answer_alone_is_certain_without_being_asked_for() -> None:
    tree = AnswerTree([[[1, 2], [1, 3]]])
    assert tree.forks == []
    assert tree.probabilities([]) == (1.0,)


def test_an_answer_in_several_wordings_has_the_probability_of_all_of_them() -> None:
    tree = AnswerTree([[[1, 4], [1, 5]], [[1, 6]]])
    assert tree.forks == [Fork((1,), (4, 5, 6))]
    assert tree.probabilities([{4: math.log(0.1), 5: math.log(0.2), 6: math.log(0.1)}]) == pytest.approx((0.75, 0.25))


def test_probabilities_far_below_what_a_float_holds_divide_by_nothing() -> None:
    tree = AnswerTree([[[1]], [[2]]])
    assert tree.probabilities([{1: -2000.0, 2: -2000.0}]) == (0.5, 0.5)
    assert tree.probabilities([{1: -2000.0, 2: 0.0}]) == (0.0, 1.0)


@pytest.mark.parametrize("answers", [[[[1, 2]], [[1, 2]]], [[[1]], [[1, 2]]]])
def test_answers_that_tokens_do_not_tell_apart_are_refused(answers: list[list[list[int]]]) -> None:
    with pytest.raises(IndistinctError) as caught:
        AnswerTree(answers)
    assert set(caught.value.pair) == {0, 1}


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(AutoTokenizer.from_pretrained(DEMO_MODEL), max_prompt_tokens=1024)


@pytest.mark.parametrize("lead", ["\n", "", " "])
@pytest.mark.parametrize("name", builtin_tasks())
def test_the_labels_of_every_task_can_be_told_apart(encoder: ChatEncoder, name: str, lead: str) -> None:
    candidates = candidate_answers(load_task(name))
    tree = tree_of(tuple(candidates.values()), lead, encoder.encode_text, [0])
    assert sum(ask(tree)) == pytest.approx(1)
    assert 1 <= len(tree.forks) < len(candidates)


def test_a_label_that_another_one_begins_with_is_told_from_it_by_what_follows(encoder: ChatEncoder) -> None:
    data = load_task("cognitive_distortion").model_dump()
    names = {"all_or_nothing_thinking": "放大", "overgeneralization": "放大读心术"}
    labels = [{**label, "zh": names.get(label["slug"], label["zh"])} for label in data["labels"][:3]]
    candidates = candidate_answers(Task.model_validate({**data, "labels": labels, "answer": "{labels}"}))
    assert candidates["all_or_nothing_thinking"] == ("放大", "放大理由：", "放大, 放大读心术")
    tree = tree_of(tuple(candidates.values()), "\n", encoder.encode_text, [END])
    outer, inner = (tuple(encoder.encode_text(text)) for text in ("\n", "\n放大"))
    forks = {fork.prefix: set(fork.next_ids) for fork in tree.forks}
    assert forks.keys() == {outer, inner}
    following = {encoder.encode_text(f"\n放大{more}")[len(inner)] for more in ("理由：", ", 放大", "读心术")}
    assert forks[inner] == {END, *following}
    assert sum(ask(tree)) == pytest.approx(1)


def test_labels_that_the_tokenizer_writes_alike_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"label_scores = forced: '(高|低)' and '(高|低)' cannot be told apart"):
        tree_of([("高", "高理"), ("低", "低理")], "", lambda text: [3] * len(text), [0])
