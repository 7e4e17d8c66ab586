"""`mentalglm gate`: a merged adapter has the labels of the one beside the weights; one that changes labels is told."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mentalglm.corpus.synthetic import generate_posts
from tests.adapters import save_adapter
from tests.e2e.conftest import run_in

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

NUM_POSTS = 120


def test_a_merged_adapter_passes_and_another_adapter_does_not(tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", seed=6, std=0.15)
    posts = list(generate_posts(NUM_POSTS, seed=11))
    table = pa.table({"post_id": [str(n) for n in range(NUM_POSTS)], "text": [post.text for post in posts]})
    pq.write_table(table, tmp_path / "posts.parquet")
    job = {
        "input": {"uri": "posts.parquet"},
        "output": {"uri": "out"},
        "tasks": ["suicide_risk", "cognitive_distortion"],
        "model": {"adapter": "adapter", "merge": True},
        "engine": {"kind": "vllm", "max_num_seqs": 64},
        "explain": "none",
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(job | {"model": {}}))

    def gate(*options: str) -> tuple[int, str, str]:
        command = ("mentalglm", "gate", "job.yaml", "--rows", "60", *options)
        result = run_in(tmp_path, *command, timeout_s=900, MENTALGLM_CACHE=str(tmp_path / "cache"))
        return result.returncode, result.stdout, result.stderr

    code, printed, errors = gate("--json")
    assert code == 0, errors[-3000:]
    found = json.loads(printed)
    assert found["changes"] == ["model.merge: False, now True"]
    for task in job["tasks"]:  # type: ignore[attr-defined]
        assert found["tasks"][task]["different"] == []
        assert found["tasks"][task]["num_compared"] >= 50
    code, printed, errors = gate("--against", "bare.yaml")
    assert code == 4, errors[-3000:]
    assert "min-agreement" in errors.splitlines()[-1]
    assert " -> " in printed
    # The job's own output is not touched, and each side was scored once.
    assert not (tmp_path / "out").exists()
    assert len([each for each in os.scandir(tmp_path / "out-gate") if each.is_dir()]) == 3
