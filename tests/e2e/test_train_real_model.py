"""A real, small language model learns a real task: LoRA on SmolLM2-135M with IMHI's SAD, by the commands alone."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.e2e.conftest import Run

pytestmark = pytest.mark.long

NUM_STEPS = 60


@pytest.mark.timeout(3600)
def test_f1_before_and_after(run: Run, tmp_path: Path, smollm2: Path, shared_data: Path) -> None:
    source = {"task": "imhi_sad_en", "id_column": "id", "text_column": "post", "labels_column": "label"}
    validation = shared_data / "imhi.SAD.val.jsonl"
    engine = {"kind": "vllm", "dtype": "float32", "max_num_seqs": 64}
    jobs: dict[str, dict[str, Any]] = {
        "train": {
            "output": {"uri": "out"},
            "model": {"path": str(smollm2)},
            "stages": {
                "sad": {
                    "train": [{"uri": str(shared_data / "imhi.SAD.train.jsonl"), **source}],
                    "validation": [{"uri": str(validation), **source}],
                    "num_epochs": 1,
                    "max_steps": NUM_STEPS,
                }
            },
            "optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.1},
            "batch_size": 16,
            "micro_batch_size": 8,
            "dtype": "float32",
            "selection": {"engine": engine, "every_steps": NUM_STEPS // 2, "max_tokens": 24},
        },
        "score": {
            "input": {"uri": "posts.parquet"},
            "output": {"uri": "scored"},
            "tasks": ["imhi_sad_en"],
            "model": {"path": str(smollm2), "adapters": {"before": None, "after": "out/sad/adapter"}},
            "engine": engine,
            "generation": {"max_tokens": 24},
            "explain": "none",
            "max_error_rate": 1.0,
        },
        "eval": {
            "task": "imhi_sad_en",
            "predictions": "scored",
            "gold": {"uri": str(validation), "id_column": "id", "label_column": "label"},
            "output": {"uri": "metrics"},
        },
    }
    for name, job in jobs.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(job))
    rows = [json.loads(line) for line in validation.read_text(encoding="utf-8").splitlines()]
    table = {"post_id": [str(row["id"]) for row in rows], "text": [row["post"] for row in rows]}
    pq.write_table(pa.table(table), tmp_path / "posts.parquet")
    for command in ("train", "score"):
        done = run("mentalglm", command, f"{command}.yaml", timeout_s=3000)
        assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for adapter in ("before", "after"):
        options = ["--set", f"adapter={adapter}", "--set", f"output.uri={adapter}"]
        done = run("mentalglm", "eval", "eval.yaml", *options)
        assert done.returncode == 0, done.stderr[-3000:]
        found[adapter] = json.loads((tmp_path / adapter / "metrics.json").read_text())
        kept = ("n", "num_parsed", "f1", "ci95")
        print(adapter, {name: found[adapter][name] for name in kept if name in found[adapter]})
    record = json.loads((tmp_path / "out/sad/stage.json").read_text())
    print("validations", [(each["step"], each["scores"], each["seconds"]) for each in record["validations"]])
    print("seconds", record["seconds"])
    assert found["after"]["f1"] == pytest.approx(record["best_score"], abs=1e-6)
    assert found["after"]["f1"] > found["before"]["f1"] + 0.2
