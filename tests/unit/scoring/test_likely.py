"""Label scores: from how likely each label comes next to how likely it is named."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentalglm.scoring.likely import LikelyLabels
from mentalglm.tasks import NO_LABEL, Task, builtin_tasks, load_task

RISK, PATHWAY = load_task("suicide_risk"), load_task("cognitive_pathway")


def follow(task: Task, weights: st.DataObject) -> tuple[dict[str, float], list[dict[str, float]]]:
    """The scores of a model that says anything, and what it said at each step."""
    likely = LikelyLabels(task)
    steps: list[dict[str, float]] = []
    goes_on = True
    while goes_on:
        drawn = [weights.draw(st.integers(1, 10_000)) ** 3 for _ in likely.candidates]
        steps.append({label: each / sum(drawn) for label, each in zip(likely.candidates, drawn, strict=True)})
        goes_on = likely.take(list(steps[-1].values()))
    return dict(likely.scores()), steps


@given(st.sampled_from(builtin_tasks()), st.data())
def test_scores_are_probabilities_of_every_label_in_order(name: str, data: st.DataObject) -> None:
    task = load_task(name)
    scores, steps = follow(task, data)
    assert list(scores) == [*task.by_slug, *([NO_LABEL] if task.none_allowed else [])]
    assert all(0 <= score <= 1 + 1e-12 for score in scores.values())
    for slug in task.answerable:
        if task.none_allowed and slug != NO_LABEL:  # one of the two, at most
            assert scores[slug] + scores[NO_LABEL] <= 1 + 1e-9
        assert scores[slug] >= steps[0][slug] - 1e-12
    if task.kind in ("binary", "multiclass"):
        assert len(steps) == 1
        assert sum(scores.values()) == pytest.approx(1)
    if task.kind == "hierarchical":
        for label in task.labels:
            children = [scores[child.slug] for child in task.labels if child.parent == label.slug]
            if children:
                assert max(children) - 1e-9 <= scores[label.slug] <= sum(children) + 1e-9
    assert 1 <= len(steps) <= len(task.answerable)
    goes_on = [math.prod(1 - step.get(NO_LABEL, 0.0) for step in steps[:number]) for number in range(1, len(steps))]
    assert len(steps) == 1 or min(goes_on) >= 0.05
    assert len({len(step) for step in steps[1:]}) == len(steps[1:])  # what is named is not asked for again


class Toy:
    """A model that names labels of a task by a rule: so far named -> how likely each is next; else none."""

    def __init__(self, **rule: dict[str, float]) -> None:
        self._rule = {tuple(filter(None, named.split("_"))): next_ for named, next_ in rule.items()}
        self._slugs = dict(zip("ABC", PATHWAY.answerable, strict=False))

    def scores(self) -> dict[str, float]:
        """By the code: a letter for each label."""
        likely, named, goes_on = LikelyLabels(PATHWAY), list[str](), True
        while goes_on:
            next_ = self._rule.get(tuple(named), {})
            given = {self._slugs[letter]: each for letter, each in next_.items()}
            given[NO_LABEL] = 1.0 - sum(given.values())
            goes_on = likely.take([given.get(label, 0.0) for label in likely.candidates])
            named += [
                letter for letter, slug in self._slugs.items() if letter not in named and slug not in likely.candidates
            ]
        found = dict(likely.scores() or ())
        return {letter: found[slug] for letter, slug in self._slugs.items()} | {NO_LABEL: found[NO_LABEL]}

    def exact(self) -> dict[str, float]:
        """By going through every answer that it may give."""
        found = dict.fromkeys([*self._slugs, NO_LABEL], 0.0)
        answers: list[tuple[tuple[str, ...], float]] = [((), 1.0)]
        for named, likelihood in answers:
            next_ = self._rule.get(named, {})
            answers += [((*named, letter), likelihood * each) for letter, each in next_.items()]
            ends = likelihood * (1.0 - sum(next_.values()))
            for letter in named or (NO_LABEL,):
                found[letter] += ends
        return found


@pytest.mark.parametrize(
    "toy",
    [
        Toy(_={"A": 0.51}, A={"B": 0.95}),
        Toy(_={"A": 0.49}, A={"B": 0.95}),  # that none is likelier changes nothing
        Toy(_={"A": 0.9}, A={"B": 0.9}, A_B={"C": 0.9}),
        Toy(_={"A": 0.6, "B": 0.3}, A={"C": 0.7}, B={"C": 0.7}),
        Toy(_={"C": 0.2, "B": 0.1}),
    ],
)
def test_scores_are_how_likely_a_label_is_named_by_any_answer(toy: Toy) -> None:
    assert toy.scores() == pytest.approx(toy.exact(), abs=0.05)  # what is not followed


def test_scores_far_below_one_keep_their_order() -> None:
    likely = LikelyLabels(PATHWAY)
    tiny = {slug: 10.0 ** -(20 + number) for number, slug in enumerate(PATHWAY.answerable[1:])}
    assert likely.take([tiny.get(label, 1.0 if label == PATHWAY.answerable[0] else 0.0) for label in likely.candidates])
    assert not likely.take([tiny.get(label, 1.0 if label == NO_LABEL else 0.0) for label in likely.candidates])
    scores = dict(likely.scores())
    assert [scores[slug] for slug in tiny] == pytest.approx([2 * each for each in tiny.values()], rel=1e-9)
    assert scores[PATHWAY.answerable[0]] == 1.0


def test_a_label_that_is_called_none_is_a_label() -> None:
    cams = load_task("imhi_cams_en")
    likely = LikelyLabels(cams)
    assert not likely.take([float(label == "none") for label in likely.candidates])
    assert dict(likely.scores())["none"] == 1.0
