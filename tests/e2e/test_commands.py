"""The small commands, and the exit codes and one-line errors of the big one. No model is loaded."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.e2e.conftest import Run


def write_job(folder: Path, **changes: object) -> str:
    job = {
        "input": {"uri": "posts.parquet"},
        "output": {"uri": "out"},
        "tasks": ["suicide_risk"],
        "engine": {"kind": "echo"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job | changes, allow_unicode=True))
    return "job.yaml"


@pytest.fixture
def posts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"post_id": ["1", "2"], "text": ["好的", "不好"]}), tmp_path / "posts.parquet")


def test_parse_reads_json_lines_and_writes_json_lines(run: Run) -> None:
    raw = "这篇帖子体现了高自杀风险。理由：有计划。"
    result = run("mentalglm", "parse", "--task", "suicide_risk", stdin=json.dumps({"raw": raw}) + "\n\n")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["status"], answer["labels"], answer["labels_zh"]) == ("ok", ["high_risk"], ["高自杀风险"])
    assert answer["explanation"] == "有计划。"


def test_labels_lists_the_label_set(run: Run) -> None:
    rows = json.loads(run("mentalglm", "labels", "cognitive_pathway").stdout)
    assert len(rows) == 23
    assert {row["parent"] for row in rows if row["parent"]} == {row["slug"] for row in rows if not row["parent"]}


def test_schema_is_json(run: Run) -> None:
    assert "shard_rows" in json.loads(run("mentalglm", "schema", "score").stdout)["properties"]


@pytest.mark.usefixtures("posts")
def test_score_by_either_name_prints_where_the_parquet_is(run: Run, tmp_path: Path) -> None:
    result = run("mentalglm", "score", write_job(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "out/data/**/*.parquet" in result.stdout
    assert "suicide_risk" in result.stdout
    again = run("python", "-m", "jobs.score", "job.yaml")
    assert again.returncode == 0, again.stderr
    assert "complete already" in again.stdout


@pytest.mark.usefixtures("posts")
def test_dry_run_shows_the_plan_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    result = run("mentalglm", "score", write_job(tmp_path), "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "2 rows in 1 files" in result.stdout
    assert "mentalglm estimate" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("posts")
def test_estimate_predicts_and_score_says_how_wrong_it_was(run: Run, tmp_path: Path) -> None:
    result = run("mentalglm", "estimate", write_job(tmp_path), "--rows", "20", "--price-per-gpu-hour", "2.5")
    assert result.returncode == 0, result.stderr
    for words in ("output tokens", "95 % interval", "suicide_risk", "the sample is the whole input", "no cost"):
        assert words in result.stdout
    assert not (tmp_path / "out" / "data").exists()
    scored = run("mentalglm", "score", "job.yaml")
    assert scored.returncode == 0, scored.stderr
    assert "+0.0%" in scored.stdout
    again = run("python", "-m", "jobs.estimate", "job.yaml", "--json")
    assert again.returncode == 2
    assert "this run is finished" in again.stderr


@pytest.mark.usefixtures("posts")
@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"tasks": ["suicide"]}, 2, ["task", "suicide"]),
        ({"engine": {"kind": "vllm"}, "model": {"path": "./nowhere"}}, 2, ["model.path", "./nowhere"]),
        ({"input": {"uri": "nothing.parquet"}}, 3, ["nothing.parquet"]),
        ({"input": {"uri": "posts.parquet", "text_column": "content"}}, 3, ["content", "text"]),
    ],
)
def test_user_errors_are_one_line_with_their_exit_code(
    run: Run, tmp_path: Path, changes: dict[str, object], code: int, words: list[str]
) -> None:
    result = run("mentalglm", "score", write_job(tmp_path, **changes))
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in result.stderr


def test_a_missing_config_is_an_error_of_the_config(run: Run) -> None:
    result = run("mentalglm", "score", "nowhere.yaml")
    assert result.returncode == 2
    assert "nowhere.yaml" in result.stderr


def test_eval_prints_a_table_and_names_what_does_not_fit(run: Run, tmp_path: Path) -> None:
    labels = pa.array([["high_risk"], ["low_risk"], None], pa.list_(pa.string()))
    predictions = {"post_id": ["a", "b", "c"], "status": ["ok", "ok", "refused"], "labels": labels}
    pq.write_table(pa.table(predictions), tmp_path / "predictions.parquet")
    (tmp_path / "gold.csv").write_text("post_id,label\na,high_risk\nb,0\nc,高\n")
    job = {
        "task": "suicide_risk",
        "predictions": "predictions.parquet",
        "gold": {"uri": "gold.csv"},
        "output": {"uri": "metrics"},
    }
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(job))
    result = run("python", "-m", "jobs.eval", "eval.yaml")
    assert result.returncode == 0, result.stderr
    assert "n = 3, 2 parsed, 0 parse_failed, 1 refused" in result.stdout
    metrics = json.loads((tmp_path / "metrics" / "metrics.json").read_text())
    assert (metrics["precision"], metrics["recall"]) == (1.0, 0.5)
    (tmp_path / "gold.csv").write_text("post_id,label\na,1\nb,0\nd,1\n")
    result = run("mentalglm", "eval", "eval.yaml")
    assert (result.returncode, result.stderr.count("\n")) == (3, 1)
    assert "1 gold ids have no prediction (d); 1 predictions have no gold label (c)" in result.stderr
    assert run("mentalglm", "eval", "eval.yaml", "--set", "golden=1").returncode == 2
