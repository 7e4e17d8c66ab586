"""A gate: which rows count, how sure it is, and what it says."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.config import ScoreConfig
from mentalglm.errors import ConfigError, LabelsDifferError
from mentalglm.measure import gate as gate_room
from mentalglm.measure.gate import Agreement, Pair, gate, plain
from mentalglm.scoring.pipeline import RunSummary
from mentalglm.scoring.predictions import _COLUMNS
from mentalglm.scoring.run.commit import Totals

SCHEMA = pa.schema(_COLUMNS)
ROW: dict[str, Any] = {"status": "ok", "labels": ["low_risk"], "confidence": 0.9, "text_hash": "h", "flags": []}
FAILED = ROW | {"status": "parse_failed", "labels": None, "confidence": None}


def config(**engine: Any) -> ScoreConfig:
    data = {"input": {"uri": "posts"}, "output": {"uri": "out"}, "tasks": ["suicide_risk"], "engine": engine}
    return ScoreConfig.model_validate(data)


def write_posts(num_posts: int) -> None:
    Path("posts").mkdir(exist_ok=True)
    posts = pa.table({"post_id": [str(n) for n in range(num_posts)], "text": ["今天很好"] * num_posts})
    pq.write_table(posts, "posts/0.parquet")


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[dict[str, Any]]]:
    """What the two runs of a gate answer: plain, then changed."""
    monkeypatch.chdir(tmp_path)
    write_posts(3)
    found: list[list[dict[str, Any]]] = []

    def score(settings: ScoreConfig) -> RunSummary:
        folder = Path(settings.output.uri) / "data" / "task=suicide_risk"
        folder.mkdir(parents=True, exist_ok=True)
        rows = found[settings.engine.quantization is not None]  # type: ignore[union-attr]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "part-00000.parquet")
        return RunSummary(settings.output.uri, Totals(), 0, 0, 0, 0.0)

    monkeypatch.setattr(gate_room, "score", score)
    return found


def test_rows_are_compared_by_id_and_what_neither_could_answer_does_not_count(
    tmp_path: Path, sides: list[list[dict[str, Any]]]
) -> None:
    first = [ROW | {"post_id": str(n)} for n in range(6)]
    second = [ROW | {"post_id": str(n), "confidence": 0.88} for n in range(6)]
    first[0] = second[0] = FAILED | {"post_id": "0"}
    second[2] = FAILED | {"post_id": "2"}
    second[4] = ROW | {"post_id": "4", "labels": ["high_risk"]}
    sides += [first, second[::-1]]
    report = gate(config(quantization="fp8"), 6)
    [(task, agreement)] = report.agreements.items()
    assert (task, agreement.num_rows, agreement.num_compared, agreement.share) == ("suicide_risk", 6, 5, 0.6)
    assert agreement.max_confidence_difference == pytest.approx(0.02)
    assert [each.describe() for each in agreement.different] == [
        "2: low_risk -> parse_failed",
        "4: low_risk -> high_risk",
    ]
    assert report.changes == ["engine.quantization: None, now fp8"]
    written = json.loads(Path(report.uri).read_text())
    assert [each["post_id"] for each in written["tasks"]["suicide_risk"]["different"]] == ["2", "4"]
    report.check(0.6)
    with pytest.raises(LabelsDifferError, match=r"min-agreement = 0\.61: suicide_risk: labels of 2 of 5") as caught:
        report.check(0.61)
    assert caught.value.exit_code == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-gate", "posts"]


def test_nothing_to_compare_is_no_agreement(sides: list[list[dict[str, Any]]]) -> None:
    sides += [[FAILED | {"post_id": "1"}]] * 2
    with pytest.raises(LabelsDifferError):
        gate(config(quantization="fp8"), 1).check(1.0)


def test_a_post_that_is_there_twice_is_compared_twice(sides: list[list[dict[str, Any]]]) -> None:
    twice = [ROW | {"post_id": "1"}, ROW | {"post_id": "1", "labels": ["high_risk"]}]
    sides += [twice, twice[::-1]]
    assert gate(config(quantization="fp8"), 2).agreements["suicide_risk"].num_compared == 2


@given(num_compared=st.integers(1, 400), data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_bound_holds_what_was_seen_and_shrinks_with_more_rows(num_compared: int, data: st.DataObject) -> None:
    num_different = data.draw(st.integers(0, num_compared))
    different = [Pair("1", {}, {})] * num_different
    each = Agreement(num_compared, num_compared, different, None)
    more = Agreement(2 * num_compared, 2 * num_compared, different * 2, None)
    assert num_different / num_compared <= each.most_different <= 1
    assert more.most_different <= each.most_different


def test_no_difference_in_two_hundred_rows_is_at_most_one_and_a_half_percent() -> None:
    assert Agreement(200, 200, [], None).most_different == pytest.approx(1 - 0.05 ** (1 / 200))


def test_the_plain_engine_is_vllm_as_it_comes_where_it_was() -> None:
    changed = config(
        dtype="float16", quantization="fp8", engine_args={"kv_cache_dtype": "fp8", "gpu_memory_utilization": 0.8}
    )
    assert plain(changed).engine == config(engine_args={"gpu_memory_utilization": 0.8}).engine


def test_what_does_not_differ_or_is_not_comparable_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to gate"):
        gate(config(), 5)
    with pytest.raises(ConfigError, match="use vllm"):
        gate(config(kind="echo"), 5)
    other = config(quantization="fp8").model_copy(update={"tasks": ["cognitive_distortion"]})
    with pytest.raises(ConfigError, match="has another tasks"):
        gate(config(), 5, against=other)


def test_posts_that_have_changed_are_scored_anew_on_both_sides(sides: list[list[dict[str, Any]]]) -> None:
    sides += [[ROW | {"post_id": "0"}], [ROW | {"post_id": "0"}]]
    for num_posts in (3, 3, 4):
        write_posts(num_posts)
        gate(config(quantization="fp8"), 3)
    assert len([each for each in Path("out-gate").iterdir() if each.is_dir()]) == 4
