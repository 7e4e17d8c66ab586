"""The simulated engine against what can be said about it by hand."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.engine.simulated import EngineModel, SimulatedEngine, SimulatedRequest

MODEL = EngineModel(max_num_seqs=4, max_num_batched_tokens=64, num_blocks=40)


def request(num_prompt_tokens: int, num_output_tokens: int, prefix: str = "") -> SimulatedRequest:
    """Requests with equal prefixes share every full block of them: block n is named by the first n characters."""
    blocks = tuple(prefix[: number + 1] for number in range(min(len(prefix), num_prompt_tokens // 16)))
    return SimulatedRequest(num_prompt_tokens, num_output_tokens, blocks)


def finish(engine: SimulatedEngine) -> list[SimulatedRequest]:
    finished: list[SimulatedRequest] = []
    cache = engine._cache
    while not engine.is_idle:
        before = engine.now
        finished += engine.step()
        assert engine.now > before
        assert len(cache._uses) + cache._num_unknown + len(cache._free) <= engine.model.num_blocks
        assert len(engine._ends) + len(engine._prefilling) <= engine.model.max_num_seqs
    assert not cache._uses
    assert cache._num_unknown == engine._num_context_tokens == 0
    return finished


def run(model: EngineModel, *requests: SimulatedRequest) -> SimulatedEngine:
    engine = SimulatedEngine(model)
    engine.submit(requests, 0.0)
    finish(engine)
    return engine


requests = st.lists(
    st.builds(request, st.integers(1, 300), st.integers(1, 60), st.text("ab", max_size=18)), min_size=1, max_size=40
)


@given(requests, st.integers(0, 40))
@settings(max_examples=80, deadline=None)
def test_every_request_is_answered_once_and_the_same_each_time(all_: list[SimulatedRequest], first: int) -> None:
    def go() -> tuple[list[SimulatedRequest], float, int]:
        engine = SimulatedEngine(MODEL)
        engine.submit(all_[:first], 0.0)
        finished = [] if engine.is_idle else engine.step()
        engine.submit(all_[first:], 1.5)
        finished += finish(engine)
        assert engine.num_prompt_tokens == sum(each.num_prompt_tokens for each in all_)
        return finished, engine.now, engine.num_cached_tokens

    finished, now, num_cached = go()
    assert Counter(map(id, finished)) == Counter(map(id, all_))
    assert go() == (finished, now, num_cached)


@given(st.lists(st.builds(request, st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=10))
@settings(max_examples=50, deadline=None)
def test_one_slot_is_serial(all_: list[SimulatedRequest]) -> None:
    model = replace(MODEL, max_num_seqs=1)
    engine = SimulatedEngine(model)
    engine.submit(all_, 0.0)
    assert finish(engine) == all_
    assert engine.now == pytest.approx(sum(run(model, each).now for each in all_))
    assert engine.busy_s == pytest.approx(engine.now)


def test_a_step_takes_as_long_as_the_roofline_says() -> None:
    model = EngineModel()
    weights = 18.8e9 / (3.35e12 * 0.8)
    assert model.step_s(1, 0) == pytest.approx(weights + 0.002)
    assert model.step_s(8192, 0) == pytest.approx(8192 * 17.6e9 / (989e12 * 0.5) + 0.002)
    assert model.step_s(1, 1000) == pytest.approx(weights + 1000 * 40960 / (3.35e12 * 0.8) + 0.002)
    assert replace(model, speed=0.5).step_s(1, 0) == pytest.approx(2 * model.step_s(1, 0))


def test_a_long_prompt_is_computed_in_chunks_and_the_last_gives_the_first_token() -> None:
    engine = SimulatedEngine(MODEL)
    engine.submit([request(129, 2)], 10.0)
    steps = [engine.step() for _ in range(4)]
    assert [len(finished) for finished in steps] == [0, 0, 0, 1]
    seconds = [MODEL.step_s(64, 0), MODEL.step_s(64, 0), MODEL.step_s(1, 0), MODEL.step_s(1, 130)]
    assert engine.now == pytest.approx(10 + sum(seconds))
    assert engine.busy_s == pytest.approx(sum(seconds))


def test_slots_run_side_by_side() -> None:
    assert run(MODEL, *[request(1, 50)] * 4).now < 1.1 * run(MODEL, request(1, 50)).now
    assert run(MODEL, *[request(1, 50)] * 5).now > 1.9 * run(MODEL, request(1, 50)).now


@pytest.mark.parametrize(
    ("all_", "num_cached"),
    [
        ([request(33, 1, "ab"), request(33, 1, "ab")], 32),
        ([request(32, 1, "ab"), request(32, 1, "ab")], 16),  # the last token is always computed
        ([request(48, 1, "abc"), request(48, 1, "abd")], 32),
        ([request(48, 1, "abc"), request(48, 1, "xbc")], 0),  # the same block behind another
        ([request(15, 1, ""), request(15, 1, "")], 0),
        ([request(33, 1, "ab")] * 6, 5 * 32),  # in one step, and after it
    ],
)
def test_prefixes_are_shared_by_full_blocks(all_: list[SimulatedRequest], num_cached: int) -> None:
    assert run(MODEL, *all_).num_cached_tokens == num_cached


@pytest.mark.parametrize(("num_between", "num_cached"), [(3, 32), (4, 16), (5, 0)])
def test_the_blocks_that_were_used_longest_ago_go_first_and_from_the_prompts_end(
    num_between: int, num_cached: int
) -> None:
    # Each needs 3 blocks while it runs, alone, and leaves 2 of 10: the fifth evicts one, the sixth two.
    model = replace(MODEL, num_blocks=10, max_num_seqs=1)
    all_ = [request(33, 1, prefix) for prefix in ("ab", "cd", "ef", "gh", "ij", "kl")[: 1 + num_between]]
    assert run(model, *all_, request(33, 1, "ab")).num_cached_tokens == num_cached


def test_a_request_waits_until_its_blocks_are_free() -> None:
    large = request(300, 20)  # 20 of 40 blocks
    assert run(MODEL, large, large).now < run(MODEL, large, large, large).now / 1.4


@pytest.mark.parametrize("bad", [request(0, 1), request(1, 0), request(640, 1)])
def test_what_can_never_run_is_refused(bad: SimulatedRequest) -> None:
    with pytest.raises(ValueError):
        SimulatedEngine(MODEL).submit([bad], 0.0)
