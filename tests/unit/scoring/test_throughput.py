"""How fast a run was, from what its commits say."""

import time
from collections.abc import Iterator

import pytest

from mentalglm.scoring.predictions import hash_ids
from mentalglm.scoring.run.commit import Effort, ShardCommit, Totals
from mentalglm.scoring.summary import describe_throughput
from mentalglm.scoring.throughput import EffortMeter, Throughput, steady_rate

ENGINE_S = {"cold_start": 10.0, "busy": 20.0, "ramp": 1.0, "starved": 2.0, "recovery": 3.0, "tail": 4.0}


def commit(shard: int, finished_at: float, effort: Effort, num_rows: int = 50) -> ShardCommit:
    return ShardCommit(
        shard=shard,
        num_rows=num_rows,
        statuses={"suicide_risk": {"ok": num_rows}},
        labels={"suicide_risk": {}},
        files={},
        id_hash=hash_ids([]),
        engine={"engine": "vllm"},
        num_prompt_tokens=0,
        num_output_tokens=1000,
        seconds=1.0,
        finished_at=finished_at,
        effort=effort,
    )


def test_loading_and_tail_do_not_count_for_the_steady_rate() -> None:
    steady = [(100.0 + n / 50, 1) for n in range(100)]  # 50 rows/s
    finished = [*steady[:95], (300.0, 5)]
    assert steady_rate(iter(finished)) == pytest.approx(50.0)


@pytest.mark.parametrize("finished", [[], [(1.0, 7)], [(float(n), 7) for n in range(9)], [(1.0, 7)] * 10])
def test_rows_that_came_at_few_moments_have_no_rate(finished: list[tuple[float, int]]) -> None:
    def entries() -> Iterator[tuple[float, int]]:
        yield from finished

    assert steady_rate(entries()) is None


def test_engine_seconds_add_up_to_engines_times_wall_time() -> None:
    started = time.time() - 100
    throughput = Throughput(started, num_engines=2)
    effort = Effort(
        engine_s=ENGINE_S, cpu_s={"read": 0.1}, num_prefill_tokens=400, num_cached_tokens=100, num_wasted_tokens=200
    )
    throughput.add(commit(0, started + 50, effort))
    throughput.add(commit(1, started + 90, effort))
    report = throughput.report()
    assert report is not None
    assert (report["num_predictions"], report["wall_s"]) == (100, pytest.approx(100, abs=2))
    assert report["rows_per_s"] == pytest.approx(1, abs=0.05)
    assert sum(report["engine_s"].values()) == pytest.approx(2 * report["wall_s"], abs=0.1)
    assert report["engine_s"]["finish"] == pytest.approx(20, abs=2)
    assert report["engine_s"]["busy"] == 40
    assert report["slots_busy"] == pytest.approx(0.2, abs=0.01)
    assert (report["prefix_cache_hits"], report["wasted_tokens"]) == (0.25, 0.2)
    assert report["cpu_ms_per_row"] == {"driver": pytest.approx(0, abs=100), "read": 2.0}


def test_mfu_counts_the_tokens_that_were_computed() -> None:
    throughput = Throughput(time.time() - 100, num_engines=2)
    for shard in range(20):  # 50 rows and 1,000 output tokens each second
        done = commit(shard, time.time() - 50 + shard, Effort(num_prefill_tokens=5000, num_cached_tokens=1000))
        throughput.add(done.model_copy(update={"engine": {"device": "NVIDIA A100", "num_parameters": str(10**9)}}))
    report = throughput.report()
    assert report is not None
    assert report["mfu"] == pytest.approx(2e9 * 5000 / (2 * 312e12), abs=1e-4)


def test_a_run_that_scored_nothing_has_no_throughput() -> None:
    assert Throughput(time.time(), 1).report() is None


def test_an_engine_without_slots_has_no_engine_seconds() -> None:
    throughput = Throughput(time.time() - 10, 1)
    meter = EffortMeter(time.time() - 10)
    throughput.add(commit(0, time.time(), meter.take({})))
    report = throughput.report()
    assert report is not None
    assert "engine_s" not in report


def test_the_pieces_of_an_effort_add_up_and_none_is_given_twice() -> None:
    meter = EffortMeter(run_started=time.time() - 5)
    meter.engine_started()
    with meter.step("parse"):
        sum(range(200_000))
    meter.count(num_prefill_tokens=10, num_cached_tokens=4, num_wasted_tokens=1)
    first = meter.take({"busy": 2.0, "tail": 3.0})
    meter.count(num_prefill_tokens=5, num_cached_tokens=0, num_wasted_tokens=0)
    second = meter.take({"busy": 6.0, "tail": 0.0})  # what looked like the tail was none
    assert first.engine_s["cold_start"] == pytest.approx(5, abs=0.5)
    assert (second.engine_s["cold_start"], second.engine_s["tail"]) == (0, -3.0)
    both = first + second
    assert (both.engine_s["busy"], both.engine_s["tail"]) == (6.0, 0.0)
    assert (both.num_prefill_tokens, both.num_cached_tokens, both.num_wasted_tokens) == (15, 4, 1)
    assert both.cpu_s["parse"] == pytest.approx(first.cpu_s["parse"])
    assert 0 < both.cpu_s["parse"] < 5


def test_a_worker_that_replaces_a_dead_one_started_when_that_died() -> None:
    meter = EffortMeter(run_started=time.time() - 1000)
    meter.engine_started()
    meter.is_a_replacement()
    assert meter.take({"busy": 0.0, "tail": 0.0}).engine_s["cold_start"] < 1
    old = EffortMeter(run_started=time.time() - 1000)
    old.engine_started()
    old.take({"busy": 0.0, "tail": 0.0})
    old.is_a_replacement()  # a lane of another worker that died: it has itself been there for long
    assert old.take({"busy": 1.0, "tail": 0.0}).engine_s["cold_start"] == 0


def test_totals_hold_the_effort_of_all_shards_and_of_retries() -> None:
    effort = Effort(engine_s=ENGINE_S, num_wasted_tokens=7)
    totals = Totals.of([commit(0, 1.0, effort), commit(1, 2.0, effort)])
    assert totals.effort.num_wasted_tokens == 14
    assert totals.effort.engine_s["busy"] == 40
    totals.replace(commit(0, 1.0, effort), commit(0, 1.0, effort + effort))
    assert totals.effort.num_wasted_tokens == 21


def test_a_person_reads_the_losses_worst_first() -> None:
    report = {
        "num_predictions": 70,
        "rows_per_s": 5.0,
        "rows_per_s_steady": 12.34,
        "engine_s": {"cold_start": 30.0, "busy": 50.0, "ramp": 0.1, "starved": 0.0, "tail": 19.9},
        "slots_busy": 0.5,
        "prefix_cache_hits": 0.336,
        "wasted_tokens": 0.012,
        "mfu": 0.21,
    }
    assert describe_throughput(report) == (
        "this attempt made 70 predictions · 12.3 predictions/s in the steady state · "
        "engines busy 50% of the time (cold_start 30%, tail 20%) · 34% of the prompts from the prefix cache · "
        "1.2% of the output tokens in no result · MFU 21%"
    )
    assert describe_throughput({"num_predictions": 7, "rows_per_s": 5.0, "rows_per_s_steady": None}) == (
        "this attempt made 7 predictions · 5.0 predictions/s"
    )
