"""The job's orders in virtual time: what the default gains, and that it never costs much."""

from dataclasses import replace

import pytest

from mentalglm.engine.simulated import EngineModel
from mentalglm.measure.simulation import VARIANTS, Simulated, SimulatedCorpus, simulate, table

MODEL = EngineModel(max_num_seqs=64)
SPEEDS = {"alike": (1.0,) * 6, "mixed": (1.0, 0.5) * 3}


@pytest.fixture(scope="module")
def corpora() -> list[SimulatedCorpus]:
    return [SimulatedCorpus(num_rows=6 * 500, shard_rows=64, seed=seed) for seed in range(4)]


def run(corpus: SimulatedCorpus, speeds: tuple[float, ...], variant: str, model: EngineModel = MODEL) -> Simulated:
    order, sorter = VARIANTS[variant]
    return simulate(corpus, [replace(model, speed=speed) for speed in speeds], order, sorter)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_row_is_scored_once_and_the_same_each_time(variant: str) -> None:
    first, again = (run(SimulatedCorpus(num_rows=500, shard_rows=32), SPEEDS["mixed"], variant) for _ in range(2))
    assert first == again
    assert sum(first.rows_by_engine) == 500
    assert 0 <= first.idle_share < 1
    assert 0 <= first.tail_s <= first.seconds


@pytest.mark.parametrize("speeds", SPEEDS.values(), ids=SPEEDS)
def test_the_default_order_ends_more_evenly_and_not_later(
    corpora: list[SimulatedCorpus], speeds: tuple[float, ...]
) -> None:
    before, after = ([run(corpus, speeds, variant) for corpus in corpora] for variant in ("input", "smallest_last"))
    assert sum(each.idle_share for each in after) < 0.6 * sum(each.idle_share for each in before)
    assert sum(each.tail_s for each in after) < 0.6 * sum(each.tail_s for each in before)
    assert sum(each.rows_per_s for each in after) > sum(each.rows_per_s for each in before)
    assert all(new.seconds < 1.03 * old.seconds for old, new in zip(before, after, strict=True))


def test_a_slow_engine_takes_fewer_rows(corpora: list[SimulatedCorpus]) -> None:
    rows = run(corpora[0], SPEEDS["mixed"], "smallest_last").rows_by_engine
    assert max(rows[1::2]) < min(rows[::2])
    assert sum(rows[1::2]) / sum(rows[::2]) == pytest.approx(0.5, abs=0.12)


def test_one_engine_is_always_busy(corpora: list[SimulatedCorpus]) -> None:
    result = run(corpora[0], (1.0,), "smallest_last")
    assert (result.tail_s, result.rows_by_engine) == (0.0, [corpora[0].num_rows])
    assert result.idle_share < 0.001


def test_a_posts_tasks_together_are_what_a_small_cache_needs() -> None:
    corpus = SimulatedCorpus(num_rows=512, shard_rows=256)
    small, large = (replace(MODEL, max_num_seqs=32, num_blocks=num_blocks) for num_blocks in (700, 76_000))
    hits = {variant: run(corpus, (1.0,), variant, small).hit_rate for variant in VARIANTS}
    apart = hits.pop("input, a shard task by task, longest first")
    assert min(hits.values()) > 4 * apart
    assert min(hits.values()) == pytest.approx(run(corpus, (1.0,), "input", large).hit_rate)


def test_the_table_has_a_line_for_each_order_and_number_of_engines() -> None:
    lines = list(table([1, 2], rows_per_engine=40, shard_rows=8, model=MODEL))
    assert len(lines) == 2 + 3 * len(VARIANTS)
    assert len({line.count("|") for line in lines}) == 1
