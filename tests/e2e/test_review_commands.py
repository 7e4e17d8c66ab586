"""The commands around an expert review: a run is scored, exported for review, and ratings are imported."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mentalglm.evaluation.review.dimensions import DIMENSIONS
from mentalglm.evaluation.review.ratings import checksum
from tests.e2e.conftest import Run

CANARY = "金丝雀正文"
pytestmark = pytest.mark.slow


def test_from_a_scored_run_to_agreement(run: Run, tmp_path: Path) -> None:
    texts = [f"{CANARY}{row}，第{row}句。" for row in range(30)]
    pq.write_table(pa.table({"id": [f"p{row}" for row in range(30)], "content": texts}), tmp_path / "posts.parquet")
    job = {
        "input": {"uri": "posts.parquet", "id_column": "id", "text_column": "content"},
        "output": {"uri": "scored"},
        "tasks": ["suicide_risk", "cognitive_distortion"],
        "model": {"adapters": {"one": None, "two": "/models/two"}},
        "engine": {"kind": "echo"},
    }
    review = {
        "runs": {name: {"uri": "scored", "adapter": name} for name in ("one", "two")},
        "sample": {"suicide_risk": {"high_risk": 2, "low_risk": 2}, "cognitive_distortion": 100},
        "experts": ["a", "b"],
        "output": {"uri": "review"},
        "num_bootstrap": 100,
    }
    for name, data in (("job", job), ("review", review)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(data, allow_unicode=True))
    assert run("mentalglm", "score", "job.yaml").returncode == 0

    exported = run("mentalglm", "review", "export", "review.yaml")
    assert exported.returncode == 0, exported.stderr
    assert "suicide_risk, high_risk: 2 of 2 posts" in exported.stdout
    assert "warning: cognitive_distortion: asked for 100 explained posts" in exported.stderr
    assert "warning: the pages hold the texts of posts" in exported.stderr
    assert (tmp_path / "review" / "pages" / "a.html").read_text(encoding="utf-8").count(CANARY) > 8

    early = run("mentalglm", "review", "import", "review.yaml")
    assert (early.returncode, early.stdout) == (3, "")
    assert "ratings: there are none" in early.stderr
    key = json.loads((tmp_path / "review" / "key.json").read_text(encoding="utf-8"))
    (tmp_path / "review" / "ratings").mkdir()
    for expert in ("a", "b"):
        ratings = {item["id"]: dict.fromkeys(DIMENSIONS, number % 4) for number, item in enumerate(key["items"])}
        ratings[key["items"][0]["id"]] |= {"comment": f"{CANARY}！"}
        content = {
            "format": key["format"],
            "sample": key["sample"],
            "expert": expert,
            "saved_at": "2026-01-31T12:00:00Z",
            "ratings": ratings,
        }
        content["checksum"] = checksum(key["sample"], expert, content["saved_at"], ratings)
        (tmp_path / "review" / "ratings" / f"{expert}.json").write_text(json.dumps(content))
    imported = run("mentalglm", "review", "import", "review.yaml")
    assert imported.returncode == 0, imported.stderr
    assert f"# Expert review of {len(key['items'])} explanations" in imported.stdout
    assert "1.000 [1.00, 1.00]" in imported.stdout
    result = json.loads(run("mentalglm", "review", "import", "review.yaml", "--json").stdout)
    assert [each["num_comments"] for each in result["experts"].values()] == [1, 1]
    assert result["provenance"]["runs"]["two"]["adapter"] == "two"

    said = "".join(each.stdout + each.stderr for each in (exported, early, imported))
    for path in [tmp_path / "review" / "key.json", *(tmp_path / "review" / "result").iterdir()]:
        said += path.read_bytes().decode("utf-8", "replace")
    assert CANARY not in said
