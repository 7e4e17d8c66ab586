"""What is counted of explanations, and what of a quote must stand in the post."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentalglm.config import EvalConfig
from mentalglm.corpus import normalise, text_hash
from mentalglm.corpus.synthetic import TASKS, generate_posts
from mentalglm.errors import InputError
from mentalglm.evaluation.explanations import count_quotes, quotes
from mentalglm.evaluation.job import evaluate_run
from mentalglm.evaluation.table import markdown
from mentalglm.tasks import load_task
from tests.reviews import RUNS, write_demo_runs

RISK = load_task("suicide_risk")
DISTORTION = load_task("cognitive_distortion")


@pytest.mark.parametrize(
    ("explanation", "found"),
    [
        ('“我很累”和「没人」、『懂』、"me"、＂他＂、‘你’、«who»', ["我很累", "没人", "懂", "me", "他", "你", "who"]),
        ("“他说‘没用’”", ["他说‘没用’"]),
        ("“我累“，”你也是”", ["我累", "你也是"]),  # curly marks the wrong way round
        ("She says ‘I can’t go on’ and doesn't 'mean' it", ["I can’t go on"]),
        ("说“很累。又写“没有希望”", ["没有希望"]),  # the first is never closed
        ("说“很累。又写“没有希望”，“不想活”", ["没有希望", "不想活"]),
        ("“我累“和”你也是”", ["我累", "你也是"]),
        ("他说“妈妈讲“没用””", ["没用"]),
        ("说「很累。又写「没有希望」", ["没有希望"]),
        ("〝我很累〞〝没人〟‹懂›", ["我很累", "没人", "懂"]),
        ("《活着》是书名", []),
        ("没有闭合“的引号", []),
        ("“”空的“ ”", []),
        ("", []),
    ],
)
def test_quotes_are_found_by_their_marks(explanation: str, found: list[str]) -> None:
    assert quotes(explanation) == found


@pytest.mark.parametrize(
    ("quote", "post", "is_there"),
    [
        ("我什么都不想做", "今天，我什么都不想做了。", True),
        ("我什么都不想做。", "我什么都不想做了", True),  # the mark at its end is the explanation's own
        ("我很累，想睡", "我很累,想睡", True),
        ("我 很累", "我很\n累", True),
        ("Ｉ ＡＭ tired", "i am tired", True),
        ("沒有人懂我", "没有人懂我", True),
        ("他说没用", "他说“没用”", True),
        ("我很累……想睡", "我很累，明天再说，想睡", True),
        ("想睡……我很累", "我很累，明天再说，想睡", False),
        ("我[...]想睡", "我很累，想睡", True),
        ("我不想活", "我想活", False),
        ("\u200b我很累", "我很累", True),
    ],
)
def test_a_quote_is_in_the_post_in_whatever_spelling(quote: str, post: str, is_there: bool) -> None:
    counted = count_quotes(RISK, f"说“{quote}”。", post)
    assert (counted.num_quotes, counted.num_not_in_post) == (1, int(not is_there))


@pytest.mark.parametrize("quote", ["，", "……", "？！", "。 —", "[...]"])
def test_punctuation_alone_is_no_quote(quote: str) -> None:
    assert count_quotes(RISK, f"说“{quote}”，又说“很累”", "我很累，……？！").num_quotes == 1


def test_names_of_labels_in_quotation_marks_are_no_quotes() -> None:
    counted = count_quotes(
        DISTORTION, "“先知错误”是“认知歪曲”的一种，如“明天一定更糟”和“没说过的话”。", "明天一定更糟。"
    )
    assert (counted.num_quotes, counted.num_not_in_post, counted.num_names) == (2, 1, 2)


@given(st.text(alphabet="我你他很不想累睡。，!a b", min_size=1), st.data())
def test_what_is_cut_out_of_a_post_is_in_it(post: str, data: st.DataObject) -> None:
    post = normalise(post)[0]
    start = data.draw(st.integers(0, len(post)))
    stop = data.draw(st.integers(start, len(post)))
    assert count_quotes(RISK, f"“{post[start:stop]}”", post).num_not_in_post == 0


@given(st.text(), st.text())
def test_no_text_is_too_odd(explanation: str, post: str) -> None:
    counted = count_quotes(RISK, explanation, post)
    assert 0 <= counted.num_not_in_post <= counted.num_quotes


def test_explanations_of_the_synthetic_posts_quote_what_is_there() -> None:
    posts = list(generate_posts(60, seed=4))
    for name in TASKS:
        counted = [count_quotes(load_task(name), post.explanations[name], post.text) for post in posts]
        assert sum(each.num_not_in_post for each in counted) == 0 < sum(each.num_quotes for each in counted)


TEXTS = [f"金丝雀{row}号，我很累" for row in range(10)]
EXPLANATIONS = [
    "“我很累”",
    "“我很好”，“累”",
    "没有引用",
    "",
    None,
    "  ",
    "“高自杀风险”",
    "“我很累”",
    "“我很累”",
    "“别的”",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten predictions with their posts beside them; the last post has changed since, the last but one has failed."""
    ids = [str(row) for row in range(10)]
    columns = {
        "post_id": ids,
        "status": ["ok"] * 8 + ["truncated", "ok"],
        "labels": pa.array([["high_risk"]] * 8 + [None, ["low_risk"]], pa.list_(pa.string())),
        "explanation": pa.array(EXPLANATIONS, pa.string()),
        "text_hash": [text_hash(normalise(text)[0]) for text in TEXTS],
    }
    pq.write_table(pa.table(columns), tmp_path / "predictions.parquet")
    rows = [{"id": row, "content": text} for row, text in enumerate([*TEXTS[:9], "改过的"])]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "posts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    gold = [json.dumps({"post_id": post_id, "label": "high_risk"}) for post_id in ids]
    (tmp_path / "gold.jsonl").write_text("\n".join(gold))
    return tmp_path


def config(folder: Path, **changes: Any) -> EvalConfig:
    data: dict[str, Any] = {
        "task": "suicide_risk",
        "predictions": str(folder / "predictions.parquet"),
        "gold": {"uri": str(folder / "gold.jsonl")},
        "output": {"uri": str(folder / "out")},
        "num_bootstrap": 100,
    }
    return EvalConfig.model_validate(data | changes)


def test_eval_counts_them_with_the_posts_beside(folder: Path) -> None:
    posts = {"uri": str(folder / "posts.jsonl"), "id_column": "id", "text_column": "content"}
    metrics = evaluate_run(config(folder, posts=posts))
    found = metrics["explanations"]
    assert (found["num_ok"], found["num_explained"], found["share_empty"]) == (9, 6, pytest.approx(3 / 9))
    assert found["num_characters"]["p50"] == 5
    told = found["quotes"]
    assert (told["num_checked"], told["num_without_post"]) == (5, 1)
    assert (told["num_quotes"], told["num_not_in_post"], told["num_names_of_labels"]) == (4, 1, 1)
    assert (told["num_with_quote"], told["num_with_quote_not_in_post"]) == (3, 1)
    low, high = told["ci95"]
    assert 0 <= low <= told["share_not_in_post"] == 0.25 <= high <= 1
    table = markdown(metrics)
    assert "Explanations: 6 of 9 answers have one" in table
    assert "Of 4 quotes in 3 of them, 1 (25.00 %" in table
    assert "1 explanations whose post was not found are left out" in table
    assert not any("金丝雀".encode() in path.read_bytes() for path in (folder / "out").iterdir())


def test_the_interval_is_over_the_clusters_of_the_gold_labels(folder: Path) -> None:
    rows = [{"post_id": str(row), "label": "high_risk", "of": "a"} for row in range(10)]
    (folder / "gold.jsonl").write_text("\n".join(map(json.dumps, rows)))
    gold = {"uri": str(folder / "gold.jsonl"), "cluster_column": "of"}
    posts = {"uri": str(folder / "posts.jsonl"), "id_column": "id", "text_column": "content"}
    told = evaluate_run(config(folder, posts=posts, gold=gold))["explanations"]["quotes"]
    assert told["ci95"] == [0.25, 0.25]  # all are drawn together


def test_without_the_posts_quotes_are_not_counted_and_a_missing_address_is_told(folder: Path) -> None:
    metrics = evaluate_run(config(folder))
    assert metrics["explanations"]["quotes"] is None
    assert "Quotes were not looked up" in markdown(metrics)
    with pytest.raises(InputError, match=r"posts\.uri: .* does not tell its input"):
        evaluate_run(config(folder, posts={}))
    table = pq.read_table(folder / "predictions.parquet")
    kept = table.append_column("text", pa.array(TEXTS))
    pq.write_table(kept, folder / "predictions.parquet")
    assert evaluate_run(config(folder))["explanations"]["quotes"]["num_quotes"] == 5
    run = config(folder, predictions=str(folder / RUNS[0]), gold={"uri": str(folder / RUNS[1])}, posts={})
    write_demo_runs(folder, 10)
    assert evaluate_run(run)["explanations"]["quotes"]["num_checked"] == 10  # by the input that the manifest names
    pq.write_table(table.drop(["explanation"]), folder / "predictions.parquet")
    assert "explanations" not in evaluate_run(config(folder))
