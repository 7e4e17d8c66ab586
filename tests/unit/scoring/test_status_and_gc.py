"""What other machines see of a run, and what they may clear away."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm.config import InputConfig
from mentalglm.corpus import plan_corpus
from mentalglm.errors import ConfigError, InterruptedRunError
from mentalglm.scoring.gc import collect
from mentalglm.scoring.run.lease import Lease, LeasedRunError
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import PartWriter
from mentalglm.scoring.status import read_status
from tests.unit.scoring.test_parts import commit, rows
from tests.unit.scoring.test_retry import MANIFEST


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A run over four shards of five posts, of which two are committed."""
    table = pa.table({"post_id": [str(n) for n in range(20)], "text": ["x"] * 20})
    pq.write_table(table, tmp_path / "posts.parquet")
    ledger = Ledger(str(tmp_path / "run"))
    plan = plan_corpus(InputConfig(uri=str(tmp_path / "posts.parquet")), 5)
    ledger.create({"tasks": {"suicide_risk": "1", "cognitive_distortion": "1"}}, plan, {})
    commit(ledger, 0)
    commit(ledger, 2)
    return ledger


def test_status_of_a_run_that_goes_on(ledger: Ledger) -> None:
    lease = Lease.acquire(ledger.uri, beat_interval_s=0.05, stale_after_s=30)
    with lease:
        lease.progress({"rows_per_s": 4.0, "statuses": {"ok": 20, "truncated": 2}})
        while not (status := read_status(ledger.uri)).rows_per_s:
            pass
    assert (status.state, status.num_predictions, status.num_in_progress, status.num_expected) == ("running", 20, 2, 40)
    assert status.eta_s == pytest.approx((40 - 22) / 4)
    assert status.statuses["suicide_risk"] == {"ok": 8, "parse_failed": 2}
    assert status.failed == {"parse_failed": 4}
    assert f"pid {os.getpid()}" in (status.owner or "")


def test_status_of_a_run_that_was_stopped_then_finished(ledger: Ledger) -> None:
    assert read_status(ledger.uri).state == "interrupted"
    with Lease.acquire(ledger.uri):
        pass
    status = read_status(ledger.uri)
    assert (status.state, status.rows_per_s, status.num_committed_shards, status.num_shards) == (
        "interrupted",
        None,
        2,
        4,
    )
    ledger.publish(MANIFEST)
    assert read_status(ledger.uri).state == "complete"


def test_status_of_a_run_whose_job_is_dead(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease.acquire(ledger.uri)
    monkeypatch.setattr(type(lease._record.owner), "is_gone", lambda _: True)
    assert read_status(ledger.uri).state == "lost"


def test_a_folder_without_a_run_has_no_status(tmp_path: Path) -> None:
    for function in (read_status, collect):
        with pytest.raises(ConfigError, match="holds no run"):
            function(str(tmp_path / "nothing"))


def test_gc_takes_what_nothing_needs_and_nothing_else(ledger: Ledger, tmp_path: Path) -> None:
    run = Path(ledger.uri)
    parts = PartWriter(ledger, target_bytes=10**9)
    parts.flush()
    late = commit(ledger, 1)  # committed, in no part
    (run / "_run" / "tmp").mkdir(exist_ok=True)
    rubbish = {
        run / "_run" / "tmp" / ".half.tmp",
        run / "_run" / "plan-0000000000000000.parquet",
        Path(ledger.staged_path("task=suicide_risk", 0)),  # in a part already
    }
    for path in rubbish:
        path.write_bytes(b"rubbish")
    Path(ledger.staged_path("task=suicide_risk", 3)).write_bytes(b"of an attempt that may be about to commit it")
    before = {path for path in run.rglob("*") if path.is_file()} - rubbish

    assert collect(ledger.uri) == []  # all of it is young: a worker whose driver is dead may be about to commit it
    assert {run / each.path for each in collect(ledger.uri, dry_run=True, min_age_s=0)} == rubbish
    assert all(path.exists() for path in rubbish)
    assert {run / each.path for each in collect(ledger.uri, min_age_s=0)} == rubbish

    left = {path for path in run.rglob("*") if path.is_file()}
    assert before <= left
    assert {path.parent.name for path in left - before} == {"leases"}
    # The run goes on as if nothing had been there.
    PartWriter(ledger, target_bytes=10**9).flush()
    assert late.num_rows == 5
    assert rows(run).total() == 30


def test_gc_keeps_away_from_a_run_that_goes_on(ledger: Ledger) -> None:
    with Lease.acquire(ledger.uri), pytest.raises(LeasedRunError, match=f"pid {os.getpid()}"):
        collect(ledger.uri)


def test_gc_and_a_listing_that_is_old_leave_a_run_that_can_be_finished(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mentalglm.storage.list_names", lambda _: [])
        assert collect(ledger.uri, min_age_s=0) == []
    PartWriter(ledger, target_bytes=10**9).flush()
    assert rows(Path(ledger.uri)).total() == 20


def test_gc_that_was_taken_for_dead_deletes_nothing_more(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    rubbish = [Path(ledger.path("_run", "tmp", name)) for name in "ab"]
    for path in rubbish:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"rubbish")

    def taken_over(_: Lease) -> None:
        raise InterruptedRunError("taken over")

    monkeypatch.setattr(Lease, "check", taken_over)
    with pytest.raises(InterruptedRunError, match="taken over"):
        collect(ledger.uri, min_age_s=0)
    assert all(path.exists() for path in rubbish)
