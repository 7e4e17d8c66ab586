"""The draw: how many, whom, and that it depends on nothing but seed and candidates."""

import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from mentalglm.errors import ConfigError
from mentalglm.evaluation.review.sample import Candidate, draw, rank, shortfalls
from mentalglm.tasks import load_task

DISTORTION = load_task("cognitive_distortion")
LABELS = [("labeling",)] * 40 + [("labeling", "magnification")] * 6 + [("none",)] * 10
CANDIDATES = [Candidate(f"p{row}", f"hash{row // 2}", labels) for row, labels in enumerate(LABELS)]  # each text twice


def ids(strata: list) -> list[str]:  # type: ignore[type-arg]
    return [each.post_id for stratum in strata for each in stratum.drawn]


@given(st.integers(0, 100), st.integers(1, 28), st.randoms(use_true_random=False))
def test_the_order_of_candidates_changes_nothing_and_a_larger_sample_holds_the_smaller(
    seed: int, size: int, shuffler: random.Random
) -> None:
    shuffled = shuffler.sample(CANDIDATES, len(CANDIDATES))
    drawn = ids(draw(DISTORTION, CANDIDATES, size, name="x", seed=seed))
    assert ids(draw(DISTORTION, shuffled, size, name="x", seed=seed)) == drawn
    assert len(drawn) == len({CANDIDATES[int(each[1:])].text_hash for each in drawn}) == size
    assert ids(draw(DISTORTION, shuffled, size + 1, name="x", seed=seed))[:size] == drawn


def test_another_seed_draws_others_and_each_as_often() -> None:
    counts = Counter(each for seed in range(400) for each in ids(draw(DISTORTION, CANDIDATES, 14, name="x", seed=seed)))
    assert len(counts) == len(CANDIDATES)
    assert 60 < min(counts.values()) <= max(counts.values()) < 145  # 100 each, if all is fair


def test_rare_labels_are_not_used_up_by_common_ones() -> None:
    size = {"labeling": 20, "magnification": 3, "none": 2}
    for seed in range(20):
        strata = draw(DISTORTION, CANDIDATES, size, name="x", seed=seed)
        assert [(each.label, len(each.drawn)) for each in strata] == list(size.items())
        assert all(each.label in candidate.labels for each in strata for candidate in each.drawn)
        assert len(set(ids(strata))) == 25


DRAWN_FROM = ("labeling", "mental_filter", "magnification")


@given(
    st.lists(st.tuples(st.integers(0, 7), st.sets(st.sampled_from(DRAWN_FROM))), max_size=12),
    st.dictionaries(st.sampled_from(DRAWN_FROM), st.integers(1, 4), min_size=1),
    st.integers(0, 50),
)
def test_no_larger_sample_exists(posts: list[tuple[int, set[str]]], size: dict[str, int], seed: int) -> None:
    candidates = [Candidate(f"p{row}", f"hash{text}", tuple(labels)) for row, (text, labels) in enumerate(posts)]
    strata = draw(DISTORTION, candidates, size, name="x", seed=seed)
    found = [each for stratum in strata for each in stratum.drawn]
    assert len({each.text_hash for each in found}) == len(found)
    assert all(stratum.label in each.labels for stratum in strata for each in stratum.drawn)
    assert all(len(stratum.drawn) <= stratum.num_asked for stratum in strata)
    places = [label for label, number in size.items() for _ in range(number)]
    fits = np.zeros((8, len(places)), dtype=int)
    for text, labels in posts:
        fits[text] |= [label in labels for label in places]
    most = maximum_bipartite_matching(csr_matrix(fits), perm_type="column")
    assert len(found) == (most >= 0).sum()


def test_a_post_moves_to_another_label_where_that_frees_a_place() -> None:
    labels = {"x": ("labeling", "mental_filter"), "y": ("labeling", "mental_filter"), "v": ("labeling",)}
    candidates = [Candidate(name, name, of) for name, of in (labels | {"w": ("mental_filter",)}).items()]
    for seed in range(12):
        strata = draw(DISTORTION, candidates, {"labeling": 2, "mental_filter": 2}, name="x", seed=seed)
        assert [len(each.drawn) for each in strata] == [2, 2]


def drawn_from_all(candidates: list[Candidate], size: dict[str, int], seed: int) -> list[list[str]]:
    """By the rule itself, with every candidate in memory: where all labels find enough."""
    order = sorted(candidates, key=lambda each: rank(seed, DISTORTION.name, each.post_id))
    found: dict[str, list[str]] = {label: [] for label in size}
    texts: set[str] = set()
    for label in sorted(size, key=lambda label: sum(label in each.labels for each in order)):
        for each in order:
            if label in each.labels and each.text_hash not in texts and len(found[label]) < size[label]:
                texts.add(each.text_hash)
                found[label].append(each.post_id)
    return list(found.values())


def stream(number: int, seed: int = 0) -> Iterator[Candidate]:
    chance = random.Random(seed)
    for row in range(number):
        labels = [label for label in DRAWN_FROM if chance.random() < 0.4]
        yield Candidate(f"p{row}", f"hash{chance.randrange(1 + number // 2)}", tuple(labels))


@pytest.mark.parametrize("seed", range(8))
def test_a_stream_gives_the_sample_that_all_candidates_give(seed: int) -> None:
    size = {"labeling": 7, "mental_filter": 5, "magnification": 3}
    strata = draw(DISTORTION, stream(3000, seed), size, name="x", seed=seed)
    expected = drawn_from_all(list(stream(3000, seed)), size, seed)
    assert [[each.post_id for each in stratum.drawn] for stratum in strata] == expected


def test_memory_does_not_grow_with_the_candidates() -> None:
    tracemalloc.start()
    draw(DISTORTION, stream(30_000), {"labeling": 7, "none": 5}, name="x", seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300_000


def test_what_is_not_there_is_told() -> None:
    strata = draw(DISTORTION, CANDIDATES, {"magnification": 5, "mind_reading": 1}, name="x", seed=0)
    assert list(shortfalls(strata)) == [
        "cognitive_distortion, magnification: asked for 5 explained posts with different texts, found 3",
        "cognitive_distortion, mind_reading: asked for 1 explained posts with different texts, found 0",
    ]
    with pytest.raises(ConfigError, match=r"sample\.x: 'sad' is no label of cognitive_distortion"):
        draw(DISTORTION, CANDIDATES, {"sad": 1}, name="x", seed=0)
