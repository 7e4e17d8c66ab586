"""From posts to a page as a user types it; and the whole chain of `make demo`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mentalglm.corpus.synthetic import write_corpus
from tests.conftest import REPOSITORY
from tests.e2e.conftest import Run


@pytest.fixture
def scored(run: Run, tmp_path: Path) -> Path:
    """400 posts, scored without a model."""
    write_corpus(tmp_path / "posts.parquet", num_posts=400, seed=5, gold_path=tmp_path / "gold.parquet", spacing=60)
    job = {
        "input": {"uri": "posts.parquet", "keep_columns": ["created_at"]},
        "output": {"uri": "scored"},
        "tasks": ["suicide_risk", "cognitive_pathway"],
        "engine": {"kind": "echo"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    done = run("mentalglm", "score", "job.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    return tmp_path / "scored"


@pytest.mark.slow
def test_a_page_is_one_command_away_from_a_run(scored: Path, run: Run, tmp_path: Path) -> None:
    evaluation = {
        "task": "suicide_risk",
        "predictions": "scored",
        "gold": {"uri": "gold.parquet", "label_column": "suicide_risk"},
        "output": {"uri": "metrics"},
        "num_bootstrap": 100,
    }
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(evaluation))
    assert run("mentalglm", "eval", "eval.yaml").returncode == 0
    done = run("mentalglm", "report", "scored", "--eval", "metrics", "--output", "page.html")
    assert (done.returncode, done.stdout.strip()) == (0, "page.html"), done.stderr
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in ("Posts over time", "高自杀风险", "Throughput", "Precision"):
        assert words in html, words
    assert str(tmp_path) not in html.split("<main")[0]

    config = {"runs": ["scored"], "output": {"uri": "other.html"}, "title": "Ours"}
    (tmp_path / "report.yaml").write_text(yaml.safe_dump(config))
    done = run("python", "-m", "jobs.report", "report.yaml", "--set", "min_cell=50", PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    assert "<title>Ours</title>" in (tmp_path / "other.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing"], 3, "holds no run"),
        (["report.yaml", "--eval", "metrics"], 2, "use --set"),
        (["a", "b", "c", "d", "e", "f", "g"], 2, "runs"),
        (["a", "--set", "min_cell=3"], 2, "allow_small_cells"),
        (["a", "--output", "page.txt"], 2, "ends in .html"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: list[str], code: int, words: str) -> None:
    done = run("mentalglm", "report", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_whole_chain_is_one_command(tmp_path: Path) -> None:
    """`make demo`: train, score, eval, report, in a copy of the repository without its runs."""
    environment = Path(sys.executable).parents[1]
    shutil.copytree(
        REPOSITORY, tmp_path / "copy", ignore=shutil.ignore_patterns("runs", ".venv", ".git", "__pycache__")
    )
    made = ["-o", str(environment / ".installed"), f"VENV={environment}"]
    done = subprocess.run(
        ["make", "demo", *made], cwd=tmp_path / "copy", capture_output=True, text=True, timeout=1700, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    html = (tmp_path / "copy" / "runs" / "demo" / "report.html").read_text(encoding="utf-8")
    for words in ("stage1", "stage2", "trained", "Agreement", "AUROC", "Validation F1", "Labels together"):
        assert words in html, words
