"""Explanations that are added later: the table is then the one of a run that asked for them from the start."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from mentalglm import storage
from mentalglm.cli import main
from mentalglm.config import ScoreConfig
from mentalglm.errors import ConfigError, InterruptedRunError
from mentalglm.scoring import explain, retry, score
from mentalglm.scoring.rounds.explain import ExplainRound
from mentalglm.scoring.status import print_status, read_status

pytestmark = pytest.mark.usefixtures("ray_session")

NUM_ROWS = 90
TASKS = ["suicide_risk", "cognitive_distortion", "cognitive_pathway"]
POSITIVE = ["explain=positive", "cascade.sample={low_risk: 0.3}"]
AT_ONCE = {"explain": "positive", "cascade": {"sample": {"low_risk": 0.3}}}
SAME = ["post_id", "task", "status", "labels", "parents", "explanation", "confidence", "probability", "finish_reason"]
SAME += ["text_hash", "duplicate_of", "flags", "day"]


def write_posts(folder: Path) -> str:
    """Some texts are posted several times, near and far; some rows have none, some no day."""
    table = pa.table(
        {
            "post_id": [str(n) for n in range(NUM_ROWS)],
            "text": [None if n % 29 == 5 else f"第{n if n % 4 else n % 16}条：今天很累。" for n in range(NUM_ROWS)],
            "day": [None if n % 7 == 3 else f"2026-11-{1 + n % 2:02d}" for n in range(NUM_ROWS)],
        }
    )
    pq.write_table(table, folder / "posts.parquet", row_group_size=20)
    return str(folder / "posts.parquet")


def config(posts: str, output: str, **changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {
            "input": {"uri": posts, "keep_columns": ["day"]},
            "output": {"uri": output, "partition_by": ["day"], "target_file_mb": 0.02},
            "tasks": TASKS,
            "engine": {"kind": "echo", "num_engines": 2},
            "explain": "none",
            "shard_rows": 8,
        }
        | changes
    )


def read(uri: str) -> pa.Table:
    filesystem, path = storage.filesystem(f"{uri}/data")
    table = pads.dataset(path, format="parquet", partitioning="hive", filesystem=filesystem).to_table()
    return table.sort_by([(name, "ascending") for name in ("post_id", "task", "adapter") if name in table.column_names])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without explanations, and its posts."""
    folder = tmp_path_factory.mktemp("finished")
    job = config(write_posts(folder), str(folder / "out"))
    many_files = job.output.model_copy(update={"target_file_mb": 0.001})
    score(job.model_copy(update={"output": many_files}))
    return folder


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> str:
    """One of a test's own."""
    shutil.copytree(finished / "out", tmp_path / "out")
    return str(tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("disk", {"dedup": "shard"}),
        ("s3", {"tasks": TASKS[:1], "model": {"adapters": {"S1": None, "S2": None}}}),
        pytest.param("disk", {"tasks": TASKS[:1], "dedup": "corpus"}, marks=pytest.mark.slow),
    ],
    ids=["dedup shard", "adapters on s3", "dedup corpus"],
)
def test_the_table_is_the_one_of_a_run_that_asked_for_explanations(
    place: str, changes: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    output = f"{request.getfixturevalue('s3')}/out" if place == "s3" else str(tmp_path / "out")
    posts = write_posts(tmp_path)
    job = config(posts, output, **changes)
    before = score(job)
    labels_only = read(output)
    assert labels_only["explanation"].null_count == labels_only.num_rows

    summary = explain(output, POSITIVE)
    table = read(output)
    explained = score(config(posts, str(tmp_path / "direct"), **changes, **AT_ONCE))
    wanted = read(str(tmp_path / "direct"))
    names = [name for name in table.column_names if name in (*SAME, "adapter")]
    assert table.schema.equals(wanted.schema)
    assert table.select(names).to_pylist() == wanted.select(names).to_pylist()
    num_explained = table.num_rows - table["explanation"].null_count
    assert 0 < num_explained < table.num_rows
    assert "explanation_sampled" in {flag for flags in table["flags"].to_pylist() for flag in flags}
    assert summary.num_wanted == summary.now["explained"] == num_explained
    assert summary.totals.explained == explained.totals.explained
    assert summary.totals.statuses == before.totals.statuses

    # Only what the policy chose has changed, and tokens add up.
    changed = [
        old["post_id"] for old, new in zip(labels_only.to_pylist(), table.to_pylist(), strict=True) if old != new
    ]
    assert len(changed) == num_explained
    num_paid = pc.sum(table["num_output_tokens"]).as_py()
    assert num_paid == summary.totals.num_output_tokens > before.totals.num_output_tokens

    again = explain(output, POSITIVE)
    assert again.num_wanted == 0
    assert "nothing to explain" in again.describe()
    assert read(output).equals(table)
    manifest = json.loads(storage.read_bytes(f"{output}/manifest.json") or b"")
    assert manifest["output"]["explained"] == dict(summary.totals.explained)
    [entry] = manifest["explanations"]
    assert (entry["explain"], entry["now"]["explained"]) == ("positive", num_explained)
    assert "Explanations added" in (storage.read_bytes(f"{output}/README.md") or b"").decode()
    assert score(job).totals.explained == summary.totals.explained


def test_what_an_interrupted_call_has_committed_is_not_asked_again(
    output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise InterruptedRunError("here")

    before = read(output)
    with monkeypatch.context() as patch:
        patch.setattr(ExplainRound, "finish", interrupt)
        with pytest.raises(InterruptedRunError):
            explain(output, POSITIVE)
    assert read(output).equals(before)
    status = read_status(output)
    assert (status.command, status.state) == ("explain", "interrupted")
    assert status.num_wanted
    assert status.num_committed_shards_of_round
    print_status(status)
    assert "the same `mentalglm explain` command goes on" in capsys.readouterr().out
    with pytest.raises(ConfigError) as refused:
        retry(output)
    command = re.search(r"finish it first: mentalglm (.*?); or end it with what it has: ", str(refused.value))
    assert command is not None
    with pytest.raises(ConfigError, match="a `mentalglm explain` was interrupted"):
        explain(output, ["explain=all"])
    commits = Path(output) / "_run" / "retries" / "000" / "commits"
    times = {path.name: path.stat().st_mtime_ns for path in commits.iterdir()}
    (commits / "00000001.json").unlink()  # died before its record

    with pytest.raises(SystemExit) as exit_:
        main(shlex.split(command[1]))
    assert exit_.value.code == 0
    assert "predictions explained" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in commits.iterdir()}.keys() == times.keys()
    assert [name for name in times if (commits / name).stat().st_mtime_ns != times[name]] == ["00000001.json"]
    assert read_status(output).command == "score"
    assert read_status(output).state == "complete"
    assert retry(output).num_retried == 0


def test_a_call_that_was_interrupted_can_be_ended_with_what_it_has(
    output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(current: ExplainRound, *_: object) -> None:
        (Path(output) / "_run" / "retries" / "000" / "commits" / "00000001.json").unlink()  # died before its record
        raise InterruptedRunError("here")

    before = read(output)
    with monkeypatch.context() as patch:
        patch.setattr(ExplainRound, "finish", interrupt)
        with pytest.raises(InterruptedRunError):
            explain(output, ["explain=all"])
    for code in (0, 2):  # done, and nothing to stop
        with pytest.raises(SystemExit) as exit_:
            main(["explain", output, "--stop"])
        assert exit_.value.code == code
    assert "left for another call" in capsys.readouterr().out
    table, unchanged = read(output), ["post_id", "task", "status", "labels", "text_hash"]
    num_ok = table["status"].to_pylist().count("ok")
    assert 0 < table.num_rows - table["explanation"].null_count < num_ok
    assert table.select(unchanged).equals(before.select(unchanged))
    explain(output, ["explain=all"])
    table = read(output)
    assert table.num_rows - table["explanation"].null_count == num_ok


@pytest.mark.slow
def test_every_row_is_there_once_whenever_the_command_is_killed(output: str, finished: Path, tmp_path: Path) -> None:
    before = read(output)
    plain = [name for name in before.column_names if name not in ("explanation", "num_output_tokens", "flags")]
    files = list((tmp_path / "out" / "data").rglob("*.parquet"))
    times = {path: path.stat().st_mtime_ns for path in files}
    commits = tmp_path / "out" / "_run" / "retries" / "000" / "commits"

    def has_commits() -> bool:
        return commits.exists() and len(list(commits.iterdir())) >= 2

    def has_rewritten() -> bool:
        return any(path.stat().st_mtime_ns != times[path] for path in files)

    for is_time in (has_commits, has_rewritten):
        command = [str(Path(sys.executable).parent / "mentalglm"), "explain", output]
        process = subprocess.Popen(
            [*command, *(word for each in [*POSITIVE, "engine.delay_s=0.3"] for word in ("--set", each))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 90
        while process.poll() is None and not is_time() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert is_time()
        assert process.returncode < 0
        assert read(output).select(plain).equals(before.select(plain))
    done = tmp_path / "out" / "_run" / "retries" / "000.done.json"
    assert not done.exists()
    summary = explain(output, POSITIVE)
    assert done.exists()
    table = read(output)
    assert table.select(plain).equals(before.select(plain))
    assert summary.num_wanted == summary.now["explained"] == table.num_rows - table["explanation"].null_count
    score(config(str(finished / "posts.parquet"), str(tmp_path / "direct"), **AT_ONCE))
    assert table.select(SAME).to_pylist() == read(str(tmp_path / "direct")).select(SAME).to_pylist()


def test_what_would_be_another_run_is_refused(output: str) -> None:
    with pytest.raises(ConfigError, match="explain = none: adds nothing"):
        explain(output, [])
    with pytest.raises(ConfigError, match=r"generation\.max_tokens: 256, now 64"):
        explain(output, ["explain=all", "generation.max_tokens=64"])
    with pytest.raises(ConfigError, match="holds no run"):
        explain(str(Path(output).parent), ["explain=all"])
    (Path(output) / "_SUCCESS").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        explain(output, ["explain=all"])
    assert not (Path(output) / "_run" / "retries").exists()
