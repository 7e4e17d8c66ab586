"""The whole job on a local Ray with the echo engine: conservation, resume, refusals, readers."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from mentalglm import storage
from mentalglm.config import ScoreConfig
from mentalglm.errors import ConfigError, ErrorBudgetExceededError, InputError, InternalError, InterruptedRunError
from mentalglm.scoring import score
from mentalglm.scoring.run.commit import Totals
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import PartWriter
from mentalglm.tasks import load_task

pytestmark = pytest.mark.usefixtures("ray_session")

COLUMNS = {
    "post_id": "string",
    "status": "dictionary<values=string, indices=int8, ordered=0>",
    "labels": "list<element: string>",
    "parents": "list<element: string>",
    "explanation": "string",
    "confidence": "float",
    "probability": "float",
    "finish_reason": "string",
    "num_prompt_tokens": "int32",
    "num_output_tokens": "int32",
    "text_hash": "string",
    "duplicate_of": "string",
    "flags": "list<element: string>",
}


def posts(num_rows: int) -> pa.Table:
    return pa.table(
        {
            "post_id": pa.array([5_000_000_000_000_000_001 + i for i in range(num_rows)], pa.int64()),
            "text": [f"第{i}条：今天天气不错。" for i in range(num_rows)],
            "created_at": [f"2026-11-{1 + i % 28:02d}" for i in range(num_rows)],
        }
    )


def config(folder: Path | str, **changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {
            "input": {"uri": str(Path(folder) / "posts"), "keep_columns": ["created_at"]},
            "output": {"uri": str(Path(folder) / "out")},
            "tasks": ["suicide_risk", "cognitive_distortion", "cognitive_pathway"],
            "engine": {"kind": "echo"},
            "shard_rows": 16,
        }
        | changes
    )


def write_posts(folder: Path) -> Path:
    (folder / "posts").mkdir()
    pq.write_table(posts(50), folder / "posts" / "a.parquet", row_group_size=20)
    pq.write_table(posts(80).slice(50), folder / "posts" / "b.parquet")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Posts that no test has scored yet."""
    return write_posts(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_session: object) -> Path:
    """A finished run, for the tests that only look at it."""
    folder = write_posts(tmp_path_factory.mktemp("finished"))
    summary = score(config(folder))
    assert summary.totals.num_predictions == 240
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the output of the finished run, over the same input, for the tests that damage it."""
    shutil.copytree(finished / "out", tmp_path / "out")
    return tmp_path


def resume(finished: Path, copied: Path, **changes: Any) -> ScoreConfig:
    return config(finished, output={"uri": str(copied / "out")}, **changes)


def read(uri: Path | str) -> pa.Table:
    filesystem, path = storage.filesystem(str(uri) + "/data")
    return pads.dataset(path, format="parquet", partitioning="hive", filesystem=filesystem).to_table()


def test_every_post_has_one_row_for_each_task(finished: Path) -> None:
    table = read(finished / "out")
    wanted = {(str(post_id), task) for post_id in posts(80)["post_id"].to_pylist() for task in config(finished).tasks}
    assert table.num_rows == len(wanted) == 240
    assert set(zip(table["post_id"].to_pylist(), table["task"].to_pylist(), strict=True)) == wanted
    assert set(table["status"].to_pylist()) == {"ok"}


def test_columns_are_those_of_the_contract_then_the_kept_ones(finished: Path) -> None:
    for path in (finished / "out" / "data").glob("*/*.parquet"):
        schema = pq.read_schema(path)
        assert {field.name: str(field.type) for field in schema} == COLUMNS | {"created_at": "string"}
        footer = json.loads(schema.metadata[b"mentalglm"])
        assert footer["task"] == path.parent.name.removeprefix("task=")
        assert footer["versions"]["mentalglm"]
        assert footer["model"]["engine"] == "echo"


def test_folder_holds_what_the_contract_says_and_no_text(finished: Path) -> None:
    out = finished / "out"
    assert {path.name for path in out.iterdir()} == {"data", "manifest.json", "README.md", "_SUCCESS", "_run"}
    assert {path.suffix for path in (out / "data").rglob("*") if path.is_file()} == {".parquet"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["output"]["statuses"]["suicide_risk"] == {"ok": 80}
    assert manifest["input"]["num_rows"] == 80
    throughput = manifest["throughput"]
    assert (throughput["num_predictions"], throughput["num_engines"]) == (240, 1)
    assert throughput["cpu_ms_per_row"].keys() >= {"read", "render", "parse", "write", "client", "driver"}
    for path in out.rglob("*"):
        if path.is_file():
            assert "今天天气".encode() not in path.read_bytes()


def test_a_second_call_changes_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "out").rglob("*") if path.is_file()}
    assert score(config(finished)).already_complete
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "out").rglob("*") if path.is_file()}


def test_resume_scores_only_what_is_missing_and_ends_in_the_same_table(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "flush", interrupt)
        with pytest.raises(InterruptedRunError):
            score(resume(finished, tmp_path))
    assert not (out / "data").exists()
    # Shard 1 had died before its record, shard 3 after the first of its files.
    for path in ("commits/00000001.json", "commits/00000003.json"):
        (out / "_run" / path).unlink()
    for task in ("cognitive_distortion", "cognitive_pathway"):
        (out / "_run" / "shards" / f"task={task}" / "00000003.parquet").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "_run" / "commits").iterdir()}
    # What does not define the numbers may change.
    changes: dict[str, Any] = {"engine": {"kind": "echo", "num_engines": 2}, "max_error_rate": 0.5, "shard_rows": 7}
    changes |= {"order": "input"}
    summary = score(resume(finished, tmp_path, **changes))
    assert summary.totals.num_predictions == 240
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in kept.items())
    key = [("post_id", "ascending"), ("task", "ascending")]
    assert read(out).sort_by(key).equals(read(finished / "out").sort_by(key))
    assert (out / "_SUCCESS").exists()
    assert not list((out / "_run" / "shards").rglob("*.parquet"))


def test_the_order_of_the_work_changes_no_result(folder: Path) -> None:
    tables, num_shards = {}, {}
    for order in ("input", "smallest_last"):
        uri = str(folder / order)
        score(config(folder, output={"uri": uri}, engine={"kind": "echo", "num_engines": 2}, order=order))
        num_shards[order] = Ledger(uri).read_plan().num_shards
        tables[order] = {
            path.parent.name: pq.read_table(path, partitioning=None)
            for path in sorted((folder / order / "data").rglob("*.parquet"))
        }
    assert num_shards["smallest_last"] > num_shards["input"] == 7
    assert len(tables["input"]) == 3
    for task, table in tables["smallest_last"].items():
        assert table["post_id"].to_pylist() == [str(post_id) for post_id in posts(80)["post_id"].to_pylist()]
        assert table.equals(tables["input"][task])


def interrupt(_: PartWriter) -> None:
    raise InterruptedRunError("here")


def test_rows_that_went_missing_are_not_published(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PartWriter, "flush", lambda _: None)
    with pytest.raises(InternalError, match="rows do not add up: data/task=suicide_risk has 0 rows where 80"):
        score(resume(finished, tmp_path))
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_input_that_changes_in_mid_run_is_not_published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush = PartWriter.flush

    def change_input(parts: PartWriter) -> None:
        flush(parts)
        pq.write_table(posts(3), folder / "posts" / "new.parquet")  # what a crawler adds does not matter
        pq.write_table(posts(90).slice(50), folder / "posts" / "b.parquet")

    monkeypatch.setattr(PartWriter, "flush", change_input)
    with pytest.raises(InputError, match=r"b\.parquet has changed"):
        score(config(folder))
    assert not (folder / "out" / "_SUCCESS").exists()


def test_output_is_partitioned_by_a_kept_column(folder: Path) -> None:
    changes: dict[str, Any] = {"output": {"uri": str(folder / "out"), "partition_by": ["created_at"]}}
    score(config(folder, **changes))
    table = read(folder / "out")
    assert table.num_rows == 240
    assert {path.parent.name.split("=")[0] for path in (folder / "out" / "data").rglob("*.parquet")} == {"created_at"}


def test_changed_settings_refuse_to_resume_and_show_the_difference(finished: Path, copied: Path) -> None:
    with pytest.raises(ConfigError, match=r"generation\.max_tokens: 256, now 64"):
        score(resume(finished, copied, generation={"max_tokens": 64}))
    with pytest.raises(ConfigError, match="label_scores: None, now forced"):
        score(resume(finished, copied, label_scores="forced"))
    with pytest.raises(ConfigError, match="explain: all, now none"):
        score(resume(finished, copied, explain="none"))


def test_changed_input_refuses_to_resume(folder: Path, finished: Path) -> None:
    shutil.copytree(finished / "out", folder / "out")
    pq.write_table(posts(90).slice(50), folder / "posts" / "b.parquet")
    with pytest.raises((ConfigError, InputError), match="input"):
        score(config(folder))


def test_files_that_came_since_the_run_began_are_counted_and_not_in_it(folder: Path, finished: Path) -> None:
    shutil.copytree(finished / "out", folder / "out")
    for path in ("_SUCCESS", "manifest.json", "README.md"):
        (folder / "out" / path).unlink()  # it was interrupted right before its end
    pq.write_table(posts(90).slice(80), folder / "posts" / "c.parquet")
    summary = score(config(folder))
    assert (summary.num_new_files, summary.totals.num_predictions) == (1, 240)
    assert score(config(folder)).num_new_files == 1


def test_a_folder_with_other_files_is_not_written_into(folder: Path) -> None:
    (folder / "out" / "data").mkdir(parents=True)
    pq.write_table(posts(1), folder / "out" / "data" / "mine.parquet")
    with pytest.raises(ConfigError, match="empty folder"):
        score(config(folder))


def test_explanations_are_left_out_and_text_is_kept_when_asked_for(finished: Path, tmp_path: Path) -> None:
    score(config(finished, output={"uri": str(tmp_path / "out"), "keep_text": True}, explain="none"))
    full, heads = read(finished / "out"), read(tmp_path / "out")
    assert heads["explanation"].null_count == heads.num_rows
    assert full["explanation"].null_count == 0
    key = [("post_id", "ascending"), ("task", "ascending")]
    assert full.sort_by(key)["labels"].to_pylist() == heads.sort_by(key)["labels"].to_pylist()
    for row in heads.to_pylist():
        assert row["text_hash"] == hashlib.blake2b(row["text"].encode(), digest_size=16).hexdigest()


def test_each_label_gets_a_score_that_every_reader_can_look_up(finished: Path, tmp_path: Path) -> None:
    import duckdb
    import pandas as pd
    import polars as pl

    score(config(finished, output={"uri": str(tmp_path / "out")}, label_scores="forced"))
    key = [("post_id", "ascending"), ("task", "ascending")]
    plain, scored = read(finished / "out").sort_by(key), read(tmp_path / "out").sort_by(key)
    assert scored.schema.field("label_scores").type == pa.map_(pa.string(), pa.float32())
    same = [name for name in plain.column_names if name != "num_output_tokens"]
    assert scored.select(same).equals(plain.select(same))
    for row in scored.to_pylist():
        task, scores = load_task(row["task"]), dict(row["label_scores"])
        assert list(scores) == [*task.by_slug, *(["none"] if task.none_allowed else [])]
        assert max(task.answerable, key=scores.__getitem__) == row["labels"][0]
        if task.kind == "binary":
            assert sum(scores.values()) == pytest.approx(1, abs=1e-6)
    assert "`label_scores` maps each label" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["label_scores"] == "forced"

    data = tmp_path / "out" / "data" / "task=suicide_risk"
    wanted = [dict(row["label_scores"])["high_risk"] for row in pq.read_table(data).to_pylist()]
    found = duckdb.sql(f"SELECT label_scores['high_risk'] FROM '{data}/*.parquet'").fetchall()
    assert [each for (each,) in found] == wanted
    frame = pd.read_parquet(data)
    assert pd.DataFrame(frame["label_scores"].map(dict).tolist())["high_risk"].tolist() == wanted
    entries = pl.read_parquet(data / "*.parquet")["label_scores"].to_list()
    assert [dict(each)["high_risk"] for each in entries] == wanted


def test_unusable_rows_get_a_status_and_do_not_spend_the_budget(tmp_path: Path) -> None:
    (tmp_path / "posts").mkdir()
    table = pa.table(
        {"post_id": ["a", None, "c", "d"], "text": ["好", "好", None, " \u200b "], "created_at": ["x"] * 4}
    )
    pq.write_table(table, tmp_path / "posts" / "a.parquet")
    score(config(tmp_path, tasks=["suicide_risk"], max_error_rate=0.0))
    rows = read(tmp_path / "out").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "invalid_input", "empty_text", "empty_text"]
    assert [row["labels"] is None for row in rows] == [False, True, True, True]
    errors = pq.read_table(tmp_path / "out" / "errors").to_pylist()
    assert [(row["post_id"], row["status"]) for row in errors] == [
        (None, "invalid_input"),
        ("c", "empty_text"),
        ("d", "empty_text"),
    ]
    assert all(row["reason"] and row["task"] == "suicide_risk" for row in errors)


def test_unreadable_files_are_named_and_the_rest_is_scored(folder: Path) -> None:
    bad = folder / "posts" / "c.parquet"
    bad.write_bytes((folder / "posts" / "a.parquet").read_bytes()[:300])
    summary = score(config(folder))
    assert summary.totals.num_predictions == 240
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert "c.parquet" in json.dumps(manifest["input"]["quarantined"])


def test_kept_columns_that_clash_with_ours_are_refused(folder: Path) -> None:
    path = folder / "posts"
    for each in path.iterdir():
        each.unlink()
    pq.write_table(posts(3).append_column("status", pa.array(["x"] * 3)), path / "a.parquet")
    with pytest.raises(ConfigError, match="status"):
        score(config(folder, input={"uri": str(path), "keep_columns": ["status"]}))


def test_the_same_on_s3(finished: Path, s3: str) -> None:
    for name in ("a", "b"):
        storage.put(f"{s3}/posts/{name}.parquet", (finished / "posts" / f"{name}.parquet").read_bytes())
    changes: dict[str, Any] = {
        "input": {"uri": f"{s3}/posts", "keep_columns": ["created_at"]},
        "output": {"uri": f"{s3}/out"},
    }
    score(config(finished, **changes))
    key = [("post_id", "ascending"), ("task", "ascending")]
    assert read(f"{s3}/out").sort_by(key).equals(read(finished / "out").sort_by(key))
    assert storage.exists(f"{s3}/out/_SUCCESS")
    assert len(Ledger(f"{s3}/out").read_commits()) == len(Ledger(str(finished / "out")).read_commits())


def test_pandas_polars_and_duckdb_read_the_output(finished: Path) -> None:
    import duckdb
    import pandas as pd
    import polars as pl

    data = finished / "out" / "data"
    assert len(pd.read_parquet(data)) == 240
    frame = pl.read_parquet(data / "**" / "*.parquet", hive_partitioning=True)
    assert frame.filter(pl.col("labels").list.contains("high_risk")).height > 0
    assert pl.scan_parquet(data).collect().height == 240
    query = f"SELECT task, count(*), count(DISTINCT post_id) FROM '{data}/*/*.parquet' GROUP BY task ORDER BY task"
    assert [row[1:] for row in duckdb.sql(query).fetchall()] == [(80, 80)] * 3


class Babbler(BaseHTTPRequestHandler):
    """An endpoint that answers the first questions well and then talks about the weather."""

    num_answers = 0
    num_good_answers = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Babbler.num_answers += 1
        good = Babbler.num_answers <= Babbler.num_good_answers
        answer = "这篇帖子体现了低自杀风险。理由：没有计划。" if good else "今天天气不错。"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}
        body = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def babbler() -> Iterator[dict[str, Any]]:
    """The config of an engine that fails more and more rows."""
    Babbler.num_answers, Babbler.num_good_answers = 0, 20
    with ThreadingHTTPServer(("127.0.0.1", 0), Babbler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        yield {"kind": "openai", "base_url": url, "model": "m", "api_key_env": None, "max_concurrency": 1}
        server.shutdown()


def test_a_spent_error_budget_ends_the_run_and_a_larger_one_goes_on(folder: Path, babbler: dict[str, Any]) -> None:
    changes: dict[str, Any] = {"tasks": ["suicide_risk"], "engine": babbler, "shard_rows": 8}
    with pytest.raises(ErrorBudgetExceededError, match=r"max_error_rate = 0\.1: .*parse_failed"):
        score(config(folder, max_error_rate=0.1, **changes))
    assert not (folder / "out" / "_SUCCESS").exists()
    num_committed = Totals.of(Ledger(str(folder / "out")).read_commits()).num_predictions
    assert 20 < num_committed <= 80
    num_asked = Babbler.num_answers
    summary = score(config(folder, max_error_rate=1.0, **changes))
    assert summary.totals.by_status == {"ok": 20, "parse_failed": 60}
    assert Babbler.num_answers == num_asked + 80 - num_committed  # nothing is asked, and paid for, twice
    assert pq.read_table(folder / "out" / "errors").num_rows == 60


def test_an_endpoint_that_is_not_there_ends_the_run_in_one_line(folder: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    engine = {"kind": "openai", "base_url": url, "model": "m", "api_key_env": None, "max_retries": 0}
    with pytest.raises(ConfigError, match=r"engine\.base_url: no connection"):
        score(config(folder, engine=engine))
    assert not (folder / "out" / "_SUCCESS").exists()
