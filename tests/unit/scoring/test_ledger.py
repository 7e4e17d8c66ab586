"""Commits: the first writer wins, and the record says what stands."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm import storage
from mentalglm.config import InputConfig, ScoreConfig
from mentalglm.corpus import CorpusPlan, Posts, plan_corpus
from mentalglm.errors import ConfigError, InputError
from mentalglm.manifest import differences
from mentalglm.scoring.pipeline import _ErrorBudget
from mentalglm.scoring.predictions import Outcome, prediction_schema, prediction_table
from mentalglm.scoring.run.commit import Totals
from mentalglm.scoring.run.ledger import Ledger

CONFIG = ScoreConfig.model_validate({"input": {"uri": "a"}, "output": {"uri": "b"}, "tasks": ["suicide_risk"]})
SCHEMA = prediction_schema(CONFIG, pa.schema([]))
OK = Outcome("ok", labels=("low_risk",), num_output_tokens=5)
FAILED = Outcome("parse_failed", "no_label")


@pytest.fixture
def plan(tmp_path_factory: pytest.TempPathFactory) -> CorpusPlan:
    path = tmp_path_factory.mktemp("posts") / "posts.parquet"
    pq.write_table(pa.table({"post_id": ["1"], "text": ["x"]}), path)
    return plan_corpus(InputConfig(uri=str(path)), 10)


def commit(ledger: Ledger, outcomes: list[Outcome], shard: int = 0, run: str = "run") -> Any:
    n = len(outcomes)
    posts = Posts(
        ids=[str(i) for i in range(n)],
        texts=["x"] * n,
        statuses=[None] * n,
        reasons=[None] * n,
        flags=[[] for _ in range(n)],
        text_hashes=["h"] * n,
        kept=pa.table({}),
    )
    table = prediction_table(SCHEMA, posts, outcomes)
    return ledger.commit(
        shard, {"suicide_risk": table}, {"suicide_risk": outcomes}, {"run_id": run}, engine={}, seconds=1.0
    )


def test_a_commit_counts_what_it_wrote(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    record = commit(ledger, [OK, FAILED, OK])
    assert record.statuses == {"suicide_risk": {"ok": 2, "parse_failed": 1}}
    assert record.labels == {"suicide_risk": {"low_risk": 2}}
    assert ledger.read_commits() == [record]
    [error] = pq.read_table(tmp_path / "_run" / "shards" / "errors").to_pylist()
    assert error == {"post_id": "1", "task": "suicide_risk", "status": "parse_failed", "reason": "no_label"}


def test_a_second_commit_of_a_shard_changes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    first = commit(ledger, [OK, FAILED])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert commit(ledger, [FAILED, FAILED]) == first
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_after_a_death_before_the_record_the_rows_that_stand_are_counted(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    commit(ledger, [OK, FAILED])
    (tmp_path / "_run" / "commits" / "00000000.json").unlink()
    for path in (tmp_path / "_run" / "shards" / "errors").iterdir():
        path.unlink()
    record = commit(ledger, [FAILED, OK])
    assert record.statuses == {"suicide_risk": {"ok": 1, "parse_failed": 1}}
    [error] = pq.read_table(tmp_path / "_run" / "shards" / "errors").to_pylist()
    assert (error["post_id"], error["reason"]) == ("1", None)  # the row that stands; its reason died with its writer


def test_an_output_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data" / "task=suicide_risk").mkdir(parents=True)
    (tmp_path / "data" / "task=suicide_risk" / "shard-00000000.parquet").write_bytes(b"x")
    with pytest.raises(ConfigError, match="empty folder"):
        Ledger(str(tmp_path)).find()
    assert Ledger(str(tmp_path / "new")).find() is None


def test_an_output_place_that_is_a_file_is_refused(tmp_path: Path, plan: CorpusPlan) -> None:
    (tmp_path / "file").write_bytes(b"x")
    ledger = Ledger(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"file/_run/run\.json: cannot be used \(Not a directory\)"):
        ledger.find() or ledger.create({}, plan, {})


def test_of_two_first_submissions_one_lays_down_the_run(tmp_path: Path, plan: CorpusPlan) -> None:
    first, second = Ledger(str(tmp_path)), Ledger(str(tmp_path))
    assert first.create({"explain": "all"}, plan, {})
    assert not second.create({"explain": "none"}, plan, {})
    assert second.record.fingerprint == {"explain": "all"}


def test_a_data_file_of_another_run_is_never_taken_for_ours(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    commit(ledger, [OK], run="a")
    (tmp_path / "_run" / "commits" / "00000000.json").unlink()
    with pytest.raises(ConfigError, match="of another run"):
        commit(ledger, [OK], run="b")


def test_totals_add_up_over_shards_and_quarantine(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    totals = Totals.of([commit(ledger, [OK, FAILED], shard=0), commit(ledger, [OK], shard=1)])
    totals.add(ledger.commit_quarantined(2, 7, "corrupt_page"))
    assert (totals.num_rows, totals.num_predictions, totals.num_failed, totals.num_quarantined) == (3, 3, 1, 7)
    assert totals.by_status == {"ok": 2, "parse_failed": 1}
    assert json.loads((tmp_path / "_run" / "commits" / "00000002.json").read_text())["quarantined"] == "corrupt_page"


def test_the_error_budget_is_a_share_of_the_whole_run_and_leaves_unusable_input_out(tmp_path: Path) -> None:
    totals = Totals.of([commit(Ledger(str(tmp_path)), [OK, FAILED, FAILED, Outcome("empty_text", "null_text")])])
    assert _ErrorBudget(0.5, 4, 1).error(totals) is None
    error = _ErrorBudget(0.49, 4, 1).error(totals)
    assert error is not None
    assert "2 of 4" in str(error)
    assert "parse_failed 2" in str(error)


def test_rows_that_cannot_be_read_spend_the_error_budget_on_every_task(tmp_path: Path) -> None:
    totals = Totals.of([Ledger(str(tmp_path)).commit_quarantined(0, 7, "worker_crash")])
    error = _ErrorBudget(0.1, 100, 2).error(totals)
    assert error is None
    error = _ErrorBudget(0.05, 100, 2).error(totals)
    assert error is not None
    assert "14 of 200 predictions failed (in unreadable rows 14)" in str(error)


def test_a_run_whose_record_is_gone_is_not_taken_for_no_run(tmp_path: Path) -> None:
    commit(Ledger(str(tmp_path)), [OK])
    with pytest.raises(ConfigError, match="belong to no run"):
        Ledger(str(tmp_path)).find()


def test_a_storage_that_overwrites_is_refused(
    tmp_path: Path, plan: CorpusPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "put_if_absent", lambda uri, data, staging=None: (storage.put(uri, data), True)[1])
    with pytest.raises(ConfigError, match="overwrites where it is asked not to"):
        Ledger(str(tmp_path)).create({}, plan, {})


def test_a_difference_names_key_old_and_new_value() -> None:
    old = {"a": {"b": 1, "c": 2}, "d": "x"}
    assert differences(old, {"a": {"b": 1, "c": 3}, "e": None}) == ["a.c: 2, now 3", "d: x, now None"]
    assert differences(old, old) == []


@pytest.mark.parametrize("name", ["manifest.json", "README.md", "_SUCCESS"])
def test_what_another_run_has_left_is_not_published_as_ours(tmp_path: Path, plan: CorpusPlan, name: str) -> None:
    (tmp_path / name).write_text('{"run_id": "another"}')
    with pytest.raises(ConfigError, match="belong to no run"):
        Ledger(str(tmp_path)).find()


def test_a_manifest_of_another_run_is_neither_replaced_nor_taken_for_ours(tmp_path: Path) -> None:
    for content in ('{"run_id": "another"}', "[1]", "{"):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ConfigError, match=r"manifest\.json: is not of this run"):
            Ledger(str(tmp_path)).publish({"run_id": "ours"})
        assert (tmp_path / "manifest.json").read_text() == content
    assert not (tmp_path / "_SUCCESS").exists()


def test_damaged_records_are_told_in_a_line(tmp_path: Path, plan: CorpusPlan) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.create({}, plan, {})
    commit(ledger, [OK])
    for path in (tmp_path / "_run" / "commits" / "00000000.json", tmp_path / "_run" / "run.json"):
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(InputError, match=f"{path}: is damaged; put it back"):
            Ledger(str(tmp_path)).find() and ledger.read_commits()
        assert path.exists()
