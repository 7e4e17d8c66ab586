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
        never = math.prod(1 - step.get(slug, 0.0) for step in steps)
        assert scores[slug] == pytest.approx(1 - never, abs=1e-9)
    if task.kind in ("binary", "multiclass"):
        assert len(steps) == 1
        assert sum(scores.values()) == pytest.approx(1)
    if task.kind == "hierarchical":
        for label in task.labels:
            children = [scores[child.slug] for child in task.labels if child.parent == label.slug]
            if children:
                assert max(children) - 1e-9 <= scores[label.slug] <= sum(children) + 1e-9
    assert 1 <= len(steps) <= 6
    assert len({len(step) for step in steps[1:]}) == len(steps[1:])  # what is named is not asked for again


def test_a_label_that_stands_behind_another_is_as_likely_as_it_is_there() -> None:
    likely = LikelyLabels(PATHWAY)
    first, second = PATHWAY.answerable[:2]
    for likeliest in (first, second, NO_LABEL):
        others = len(likely.candidates) - 1
        goes_on = likely.take([0.9 if label == likeliest else 0.1 / others for label in likely.candidates])
    assert not goes_on
    scores = dict(likely.scores())
    assert scores[first] == pytest.approx(0.9)
    assert scores[second] == pytest.approx(0.9, abs=0.01)
    assert max(score for slug, score in scores.items() if PATHWAY.by_slug.get(slug) is None) < 0.01


def test_scores_far_below_one_keep_their_order() -> None:
    likely = LikelyLabels(PATHWAY)
    tiny = {slug: 10.0 ** -(20 + number) for number, slug in enumerate(PATHWAY.answerable[1:])}
    assert likely.take([tiny.get(label, 1.0 if label == PATHWAY.answerable[0] else 0.0) for label in likely.candidates])
    assert not likely.take([tiny.get(label, 1.0) for label in likely.candidates])
    scores = dict(likely.scores())
    assert [scores[slug] for slug in tiny] == pytest.approx([2 * each for each in tiny.values()], rel=1e-9)
    assert scores[PATHWAY.answerable[0]] == 1.0


def test_a_label_that_is_called_none_is_a_label() -> None:
    cams = load_task("imhi_cams_en")
    likely = LikelyLabels(cams)
    assert not likely.take([float(label == "none") for label in likely.candidates])
    assert dict(likely.scores())["none"] == 1.0
