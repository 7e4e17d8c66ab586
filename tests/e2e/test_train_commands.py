"""The train job as it is typed, with the demo model: what it would do and refuses, and a stage with real vLLM."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mentalglm.corpus.synthetic import write_corpus
from tests.e2e.conftest import Run


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    write_corpus(tmp_path / "posts.parquet", num_posts=160, seed=5, records_path=tmp_path / "records.parquet")
    columns = {"labels_column": "suicide_risk", "explanation_column": "suicide_risk_explanation"}
    source = {"uri": "records.parquet", "task": "suicide_risk", "id_column": "post_id", **columns}
    return {
        "output": {"uri": "out"},
        "stages": {"risk": {"train": [source], "num_epochs": 1, "validation_fraction": 0.2}},
        "dtype": "float32",
    }


def write(folder: Path, job: dict[str, Any]) -> str:
    (folder / "train.yaml").write_text(yaml.safe_dump(job))
    return "train.yaml"


def test_a_dry_run_shows_steps_tokens_and_memory_and_writes_nothing(
    job: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    done = run("mentalglm", "train", write(tmp_path, job), "--dry-run")
    assert done.returncode == 0, done.stderr
    for words in ("to learn", "of warm-up", "of prompts", "128,000 trained", "GB of each worker"):
        assert words in done.stdout, done.stdout
    assert {path.name for path in tmp_path.iterdir()} == before | {"train.yaml"}


def test_what_cannot_be_learned_from_is_one_line(job: dict[str, Any], run: Run, tmp_path: Path) -> None:
    wrong = run("mentalglm", "train", write(tmp_path, job), "--set", "lora.use_dora=true")
    assert (wrong.returncode, "vLLM cannot load DoRA" in wrong.stderr) == (2, True)
    job["stages"]["risk"]["train"][0]["labels_column"] = "text"
    refused = run("mentalglm", "train", write(tmp_path, job))
    assert refused.returncode == 3
    assert "160 of 160 rows cannot be learned from" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_stage_is_chosen_by_real_vllm(job: dict[str, Any], run: Run, tmp_path: Path) -> None:
    done = run("mentalglm", "train", write(tmp_path, job))
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "out/risk/stage.json").read_text(encoding="utf-8"))
    assert record["best_scores"]["suicide_risk"] > 0.9, "the demo model knows such posts"
    assert record["validations"][0]["error"] is None
    told = run("mentalglm", "status", "out")
    assert "out, risk: complete" in told.stdout
    assert f"step {record['num_steps']} of {record['num_steps']}" in told.stdout
    validation = tmp_path / f"out/risk/_run/validation/{record['best_checkpoint']}.json"
    [answered] = json.loads(validation.read_text(encoding="utf-8"))["engines"]
    assert answered["engine"] == "vllm"
    assert (tmp_path / "out/risk/adapter/adapter_model.safetensors").is_file()
