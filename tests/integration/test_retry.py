"""Retries on a local Ray: the failed rows alone are asked again, and the table is then one without failures."""

import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import yaml

from mentalglm import storage, tasks
from mentalglm.cli import main
from mentalglm.config import ScoreConfig
from mentalglm.errors import ConfigError, InputError, InterruptedRunError
from mentalglm.scoring import retry, score
from mentalglm.scoring.rounds.retry import RetryRound
from mentalglm.scoring.status import read_status

pytestmark = pytest.mark.usefixtures("ray_session")

NUM_ROWS = 48
NUM_BAD = 12


class Moody(BaseHTTPRequestHandler):
    """An endpoint that answers every fourth post badly, as long as it is out of sorts."""

    asked: list[int] = []
    is_out_of_sorts = True
    delay_s = 0.0

    def do_POST(self) -> None:
        prompt = self.rfile.read(int(self.headers["Content-Length"])).decode()
        time.sleep(Moody.delay_s)
        number = int(re.search(r"第(\d+)条", json.loads(prompt)["messages"][-1]["content"])[1])  # type: ignore[index]
        Moody.asked.append(number)
        bad = Moody.is_out_of_sorts and number % 4 == 0
        answer = "今天天气不错。" if bad else f"这篇帖子体现了低自杀风险。理由：第{number}条没有计划。"
        choice = {
            "index": 0,
            "finish_reason": "length" if bad and number % 8 == 0 else "stop",
            "message": {"role": "assistant", "content": answer},
        }
        body = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def engine() -> Iterator[dict[str, Any]]:
    """The config of an engine at an endpoint out of sorts."""
    Moody.asked, Moody.is_out_of_sorts, Moody.delay_s = [], True, 0.0
    with ThreadingHTTPServer(("127.0.0.1", 0), Moody) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        yield {"kind": "openai", "base_url": url, "model": "m", "api_key_env": None, "max_concurrency": 4}
        server.shutdown()


def write_posts(folder: Path) -> str:
    table = pa.table(
        {
            "post_id": [str(n) for n in range(NUM_ROWS)],
            "text": [f"第{n}条：今天很累。" for n in range(NUM_ROWS)],
            "day": [f"2026-11-{1 + n % 3:02d}" for n in range(NUM_ROWS)],
        }
    )
    pq.write_table(table, folder / "posts.parquet", row_group_size=16)
    return str(folder / "posts.parquet")


def config(posts: str, output: str, engine: dict[str, Any], **changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {
            "input": {"uri": posts, "keep_columns": ["day"]},
            "output": {"uri": output, "partition_by": ["day"], "target_file_mb": 0.01},
            "tasks": ["suicide_risk"],
            "engine": engine,
            "shard_rows": 8,
            "max_error_rate": 1.0,
        }
        | changes
    )


@pytest.fixture
def failed(tmp_path: Path, engine: dict[str, Any]) -> Path:
    """The folder of a finished run in which a quarter of the rows failed; the endpoint is well again."""
    summary = score(config(write_posts(tmp_path), str(tmp_path / "out"), engine))
    assert summary.totals.num_failed == NUM_BAD
    Moody.asked, Moody.is_out_of_sorts = [], False
    return tmp_path


def read(uri: str, folder: str = "data") -> pa.Table:
    filesystem, path = storage.filesystem(f"{uri}/{folder}")
    partitioning = "hive" if folder == "data" else None
    return pads.dataset(path, format="parquet", partitioning=partitioning, filesystem=filesystem).to_table()


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_failed_rows_alone_are_asked_and_the_table_is_then_one_without_failures(
    place: str, tmp_path: Path, engine: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    output = f"{request.getfixturevalue('s3')}/out" if place == "s3" else str(tmp_path / "out")
    job = config(write_posts(tmp_path), output, engine)
    score(job)
    assert read_status(output).failed == {"truncated": 6, "parse_failed": 6}
    Moody.asked, Moody.is_out_of_sorts = [], False

    summary = retry(output, ["truncated"])
    assert sorted(Moody.asked) == list(range(0, NUM_ROWS, 8))
    assert (summary.num_retried, summary.retried) == (6, {"ok": 6})
    assert read_status(output).failed == {"parse_failed": 6}

    summary = retry(output)
    assert sorted(Moody.asked) == list(range(0, NUM_ROWS, 4))
    assert summary.totals.by_status == {"ok": NUM_ROWS}
    assert read_status(output).failed == {}
    assert read(output, "errors").num_rows == 0
    assert score(job).totals.by_status == {"ok": NUM_ROWS}
    assert retry(output).num_retried == 0
    assert len(Moody.asked) == NUM_BAD

    score(config(str(tmp_path / "posts.parquet"), str(tmp_path / "flawless"), engine))
    table, flawless = (read(uri).sort_by("post_id") for uri in (output, str(tmp_path / "flawless")))
    assert table.schema.equals(flawless.schema)
    assert table.to_pylist() == flawless.to_pylist()
    manifest = json.loads(storage.read_bytes(f"{output}/manifest.json") or b"")
    assert manifest["output"]["statuses"] == {"suicide_risk": {"ok": NUM_ROWS}}
    assert [entry["num_retried"] for entry in manifest["retries"]] == [6, 6]
    assert storage.exists(f"{output}/_SUCCESS")


def test_rows_that_fail_again_stay_failed_and_the_command_succeeds(
    failed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Moody.is_out_of_sorts = True
    with pytest.raises(SystemExit) as exit_:
        main(["retry", str(failed / "out"), "--status", "parse_failed", "--set", "engine.max_concurrency=1"])
    assert exit_.value.code == 0
    assert len(Moody.asked) == 6
    assert "6 predictions retried, 0 ok now, 6 still failed" in capsys.readouterr().out
    assert read(str(failed / "out")).num_rows == NUM_ROWS
    assert read(str(failed / "out"), "errors").num_rows == NUM_BAD


def test_what_an_interrupted_retry_has_committed_is_not_asked_again(
    failed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise InterruptedRunError("here")

    before = read(str(failed / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(RetryRound, "finish", interrupt)
        with pytest.raises(InterruptedRunError):
            retry(str(failed / "out"))
    assert len(Moody.asked) == NUM_BAD
    assert read(str(failed / "out")).equals(before)
    assert read_status(str(failed / "out")).failed == {"truncated": 6, "parse_failed": 6}
    (failed / "out" / "_run" / "retries" / "000" / "commits" / "00000001.json").unlink()  # died before its record
    Moody.asked.clear()
    assert retry(str(failed / "out")).totals.by_status == {"ok": NUM_ROWS}
    assert sorted(Moody.asked) == [8, 12]


def test_a_run_begun_with_relative_paths_is_retried_from_elsewhere(tmp_path: Path, engine: dict[str, Any]) -> None:
    def run(*arguments: str, folder: Path) -> str:
        command = [str(Path(sys.executable).parent / "mentalglm"), *arguments]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    write_posts(tmp_path)
    task = (Path(tasks.__file__).parent / "builtin").rglob("suicide_risk.yaml")
    (tmp_path / "mine.yaml").write_bytes(next(task).read_bytes())
    job = config("posts.parquet", "out", engine, tasks=["mine.yaml"]).model_dump(mode="json")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    run("score", "job.yaml", folder=tmp_path)
    Moody.is_out_of_sorts = False
    (tmp_path / "elsewhere").mkdir()
    assert "12 predictions retried, 12 ok now" in run("retry", "../out", folder=tmp_path / "elsewhere")
    assert set(read(str(tmp_path / "out"))["status"].to_pylist()) == {"ok"}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_the_table_is_the_same_after_kills_of_the_command(
    place: str, tmp_path: Path, engine: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    output = f"{request.getfixturevalue('s3')}/out" if place == "s3" else str(tmp_path / "out")
    score(config(write_posts(tmp_path), output, engine | {"max_concurrency": 1}))
    expected = sorted(read(output)["post_id"].to_pylist())
    Moody.is_out_of_sorts, Moody.delay_s = False, 0.1
    schedule = random.Random(place)

    def num_commits() -> int:
        return len(storage.list_names(f"{output}/_run/retries/000/commits"))

    for _ in range(5):
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "mentalglm"), "retry", output],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # After the first new commit, or, where all are there, while the rows are put in their places.
        deadline = time.monotonic() + schedule.uniform(4, 12)
        before = num_commits()
        while process.poll() is None and num_commits() == before and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(schedule.uniform(0, 0.5))
        process.kill()
        process.wait()
        assert sorted(read(output)["post_id"].to_pylist()) == expected
    assert retry(output).totals.by_status == {"ok": NUM_ROWS}
    assert sorted(read(output)["post_id"].to_pylist()) == expected
    assert set(read(output)["status"].to_pylist()) == {"ok"}
    assert read(output, "errors").num_rows == 0


def test_what_would_be_another_run_is_refused(failed: Path) -> None:
    out = str(failed / "out")
    with pytest.raises(ConfigError, match=r"generation\.max_tokens: 256, now 64"):
        retry(out, overrides=["generation.max_tokens=64"])
    with pytest.raises(ConfigError, match=r"--set output\.uri"):
        retry(out, overrides=[f"output.uri={failed}/other"])
    with pytest.raises(ConfigError, match=r"--status wrong: .*parse_failed"):
        retry(out, ["wrong"])
    with pytest.raises(ConfigError, match="holds no run"):
        retry(str(failed))
    pq.write_table(pq.read_table(failed / "posts.parquet").slice(1), failed / "posts.parquet")
    with pytest.raises(InputError, match="has changed"):
        retry(out)
    (failed / "out" / "_SUCCESS").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        retry(out)
    assert not (failed / "out" / "_run" / "retries").exists()
    assert Moody.asked == []
