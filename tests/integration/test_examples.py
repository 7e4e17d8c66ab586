"""Few-shot runs: what they are made from is part of what they are, and posts that are shown leave nothing behind."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm.config import ScoreConfig
from mentalglm.errors import ConfigError
from mentalglm.scoring import retry, score

pytestmark = pytest.mark.usefixtures("ray_session")

CANARY = "金丝雀例子"


def config(folder: Path, **examples: Any) -> ScoreConfig:
    train = [{"uri": str(folder / "records.jsonl"), "task": "suicide_risk"}]
    return ScoreConfig.model_validate(
        {
            "input": {"uri": str(folder / "posts.parquet")},
            "output": {"uri": str(folder / "out")},
            "tasks": ["suicide_risk"],
            "engine": {"kind": "echo"},
            "prompt": {"names_labels": True, "examples": {"train": train, "per_label": 2} | examples},
        }
    )


def test_a_run_with_examples(tmp_path: Path) -> None:
    texts = [f"{CANARY}{number}" for number in range(12)]
    rows = [{"text": text, "labels": number % 2} for number, text in enumerate(texts)]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    posts = {"post_id": [str(number) for number in range(20)], "text": [*texts, *(f"别的{n}" for n in range(7)), ""]}
    pq.write_table(pa.table(posts), tmp_path / "posts.parquet")
    run = score(config(tmp_path))
    table = pa.concat_tables(pq.read_table(path) for path in Path(run.uri).glob("data/*/*.parquet"))
    flagged = [
        post_id
        for post_id, flags in zip(table["post_id"].to_pylist(), table["flags"].to_pylist(), strict=True)
        if "example_left_out" in flags
    ]
    assert len(flagged) == 4
    assert {int(post_id) % 2 for post_id in flagged} == {0, 1}
    assert set(flagged) < {str(number) for number in range(12)}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    told = {"per_label": 2, "seed": 0, "max_characters": 300, "num": {"suicide_risk": 4}}
    assert manifest["prompt"] == manifest["fingerprint"]["prompt"] == {"names_labels": True, "examples": told}

    assert score(config(tmp_path)).already_complete
    with pytest.raises(ConfigError, match=r"prompt\.examples\.seed: 0, now 1"):
        score(config(tmp_path, seed=1))
    assert retry(run.uri, ["empty_text"]).num_retried == 1
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(ConfigError, match=r"tasks\.suicide_risk"):  # other records, other examples
        score(config(tmp_path))
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert left == []
