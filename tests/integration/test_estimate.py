"""An estimate, then the run that it is about, on a local Ray with the echo engine."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm.config import ScoreConfig
from mentalglm.errors import ConfigError, InterruptedRunError
from mentalglm.scoring import score
from mentalglm.scoring.forecast.estimate import Estimate, estimate
from mentalglm.scoring.gc import collect
from mentalglm.scoring.run.lease import Lease, LeasedRunError
from mentalglm.scoring.run.ledger import Ledger

pytestmark = pytest.mark.usefixtures("ray_session")

TASKS = ["suicide_risk", "cognitive_distortion"]


def config(folder: Path, **changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {
            "input": {"uri": str(folder / "posts.parquet")},
            "output": {"uri": str(folder / "out")},
            "tasks": TASKS,
            "engine": {"kind": "echo"},
            "shard_rows": 50,
        }
        | changes
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """1,000 posts of very different lengths, each tenth one empty."""
    texts = ["" if i % 10 == 3 else f"第{i}条：" + "今天天气不错。" * (i * 37 % 41) for i in range(1000)]
    table = pa.table({"post_id": [str(i) for i in range(1000)], "text": texts})
    pq.write_table(table, tmp_path / "posts.parquet", row_group_size=250)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "manifest.json").read_text())
    return found


def test_an_estimate_leaves_itself_alone_and_the_finished_run_says_how_wrong_it_was(folder: Path) -> None:
    made = estimate(config(folder), num_rows=200, price_per_gpu_hour=2.5)
    assert files(folder / "out") == {"_run/estimate.json"}
    assert list((folder / "out" / "_run" / "tmp").iterdir()) == []
    text = (folder / "out" / "_run" / "estimate.json").read_text()
    assert "今天" not in text
    assert Estimate.model_validate_json(text) == made
    assert 200 <= made.num_sampled_rows <= 210
    assert made.num_sampled_shards == 20  # of each shard a part
    for task in TASKS:
        assert made.statuses[task]["empty_text"].low < 0.1 < made.statuses[task]["empty_text"].high
    assert made.hours.low < made.hours.value < made.hours.high
    assert made.hours.value * 3600 > made.start_s > 0
    assert made.cost is None
    assert any("no GPU" in note for note in made.notes)

    again = estimate(config(folder), num_rows=200)
    assert again.num_output_tokens == made.num_output_tokens  # the same sample
    assert again.made_at >= made.made_at

    summary = score(config(folder))
    assert summary.estimate is not None
    checks = manifest(folder)["estimate"]["figures"]
    assert checks.keys() == {"posts_per_s", "hours", "num_prompt_tokens", "num_output_tokens"}
    for name in ("num_prompt_tokens", "num_output_tokens"):
        assert checks[name]["actual"] == manifest(folder)["output"][name]
        assert abs(checks[name]["error"]) < 0.1
        assert checks[name]["is_inside"]
        assert checks[name]["predicted"] == getattr(again, name).model_dump()
    assert checks["posts_per_s"]["actual"] > 1000 / summary.seconds  # which counts the start
    assert checks["hours"]["actual"] * 3600 < summary.seconds
    assert "| output tokens |" in (folder / "out" / "README.md").read_text()
    # The manifest has it from then on, whatever becomes of the estimate.
    (folder / "out" / "_run" / "estimate.json").unlink()
    assert score(config(folder)).estimate == summary.estimate
    with pytest.raises(ConfigError, match="this run is finished"):
        estimate(config(folder))


def test_a_small_input_is_scored_as_a_whole_and_its_tokens_are_known(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "posts.parquet").slice(0, 120), folder / "posts.parquet")
    made = estimate(config(folder, explain="positive", dedup="shard"))
    assert made.num_sampled_rows == 120
    assert "the sample is the whole input" in made.notes
    assert any("dedup: shard" in note for note in made.notes)
    assert made.num_output_tokens.low == made.num_output_tokens.high
    assert made.statuses["suicide_risk"]["empty_text"].value == pytest.approx(0.1)
    accuracy = score(config(folder, explain="positive", dedup="shard")).estimate
    assert accuracy is not None
    check = accuracy.figures["num_output_tokens"]
    assert math.isclose(check.predicted.value, check.actual)
    assert check.is_inside


def test_of_a_run_in_several_attempts_no_hours_are_claimed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "publish", lambda *_: (_ for _ in ()).throw(InterruptedRunError("interrupted")))
    with pytest.raises(InterruptedRunError):
        score(config(folder))
    monkeypatch.undo()
    made = estimate(config(folder), num_rows=100)
    assert "of the whole input; 20 of 20 shards are scored already" in made.notes
    accuracy = score(config(folder)).estimate
    assert accuracy is not None
    assert accuracy.figures.keys() == {"num_prompt_tokens", "num_output_tokens"}
    assert any("earlier attempts" in note for note in accuracy.notes)


def test_a_damaged_estimate_harms_no_run(folder: Path) -> None:
    path = folder / "out" / "_run" / "estimate.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"run_id": ')
    assert score(config(folder)).estimate is None
    assert collect(str(folder / "out"), min_age_s=0) == []
    assert path.exists()


def test_it_keeps_away_from_a_run_that_goes_on(folder: Path) -> None:
    with Lease.acquire(str(folder / "out")), pytest.raises(LeasedRunError, match="another job works on this run"):
        estimate(config(folder))
    assert not (folder / "out" / "_run" / "estimate.json").exists()


def test_one_that_fails_leaves_nothing(folder: Path) -> None:
    engine = {
        "kind": "openai",
        "base_url": "http://127.0.0.1:9/v1",
        "model": "m",
        "api_key_env": None,
        "max_retries": 0,
    }
    with pytest.raises(ConfigError, match="no connection"):
        estimate(config(folder, engine=engine), num_rows=20)
    assert files(folder / "out") == set()


def test_rows_that_cannot_be_read_are_foreseen(folder: Path) -> None:
    made = estimate(config(folder), num_rows=400)
    path = folder / "posts.parquet"
    group = pq.ParquetFile(path).metadata.row_group(1)
    data = bytearray(path.read_bytes())
    for column in (0, 1):  # rows 250 to 499: neither ids nor texts
        start = group.column(column).dictionary_page_offset or group.column(column).data_page_offset
        data[start : start + group.column(column).total_compressed_size] = b"\xff" * (
            group.column(column).total_compressed_size
        )
    path.write_bytes(data)
    broken = estimate(config(folder, output={"uri": str(folder / "broken")}), num_rows=400)
    for task in TASKS:
        assert broken.statuses[task]["unreadable"].low < 0.25 < broken.statuses[task]["unreadable"].high
    assert broken.num_output_tokens.value < 0.85 * made.num_output_tokens.value
