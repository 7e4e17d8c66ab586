"""The eval job over files: what it reads, what it writes, what it refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm.config import EvalConfig
from mentalglm.corpus import normalise, text_hash
from mentalglm.errors import ConfigError, InputError
from mentalglm.evaluation.job import evaluate_run
from mentalglm.evaluation.table import markdown

NUM_ROWS = 40
TEXTS = [f"a canary text, number {row}" for row in range(NUM_ROWS)]
GOLD = ["high_risk" if row % 2 else "low_risk" for row in range(NUM_ROWS)]
PREDICTED = ["high_risk" if row % 3 else "low_risk" for row in range(NUM_ROWS)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Gold labels as JSONL, and predictions of them and of ten more posts, with a failure."""
    rows = zip(TEXTS, GOLD, strict=True)
    lines = [json.dumps({"id": row, "text": text, "label": label}) for row, (text, label) in enumerate(rows)]
    (tmp_path / "gold.jsonl").write_text("\n".join(lines) + "\n")
    write_predictions(tmp_path / "predictions.parquet", PREDICTED)
    return tmp_path


def write_predictions(path: Path, labels: list[str], num_extra: int = 0) -> None:
    num_rows = NUM_ROWS + num_extra
    labels = labels + ["low_risk"] * num_extra
    statuses = ["truncated" if row == 1 else "ok" for row in range(num_rows)]
    columns = {
        "post_id": [str(row) for row in range(num_rows)],
        "status": pa.array(statuses).dictionary_encode(),
        "labels": pa.array([None if row == 1 else [each] for row, each in enumerate(labels)], pa.list_(pa.string())),
        "flags": pa.array([["free_form"] if row == 3 else [] for row in range(num_rows)], pa.list_(pa.string())),
        "probability": pa.array([0.9 if each == "high_risk" else 0.1 for each in labels], pa.float32()),
        "text_hash": [text_hash(normalise(text)[0]) for text in TEXTS] + ["00"] * num_extra,
    }
    pq.write_table(pa.table(columns), path, row_group_size=16)


def config(folder: Path, **changes: Any) -> EvalConfig:
    data: dict[str, Any] = {
        "task": "suicide_risk",
        "predictions": str(folder / "predictions.parquet"),
        "gold": {"uri": str(folder / "gold.jsonl"), "id_column": "id"},
        "output": {"uri": str(folder / "out")},
        "num_bootstrap": 200,
    }
    return EvalConfig.model_validate(data | changes)


def test_it_writes_what_design_promises(folder: Path) -> None:
    metrics = evaluate_run(config(folder))
    assert json.loads((folder / "out" / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    names = ["task", "n", "precision", "recall", "f1", "per_label", "num_parsed", "num_failed_by_status", "ci95"]
    assert set(names) <= metrics.keys()
    assert (metrics["n"], metrics["num_parsed"], metrics["num_failed_by_status"]) == (40, 39, {"truncated": 1})
    hits = sum(
        gold == each == "high_risk" for row, (gold, each) in enumerate(zip(GOLD, PREDICTED, strict=True)) if row != 1
    )
    assert metrics["recall"] == hits / 20
    low, high = metrics["ci95"]["f1"]
    assert 0 < low < metrics["f1"] < high < 1
    table = (folder / "out" / "metrics.md").read_text()
    assert table == markdown(metrics)
    assert f"{100 * metrics['f1']:.2f} [{100 * low:.1f}, {100 * high:.1f}]" in table
    assert "n = 40, 39 parsed, 0 parse_failed, 0 refused, 1 truncated, 1 parsed but not in the task's form" in table
    assert (folder / "out" / "reliability-high_risk.svg").exists()
    provenance = metrics["provenance"]
    assert provenance["predictions"]["uri"].endswith("predictions.parquet")
    assert len(provenance["gold"]["sha256"]) == len(provenance["task"]["digest"]) == 64
    assert not any(b"canary" in path.read_bytes() for path in (folder / "out").iterdir())


def test_every_row_is_told_gold_against_predicted(folder: Path) -> None:
    metrics = evaluate_run(config(folder))
    table = pq.read_table(folder / "out" / "rows.parquet")
    assert table.column_names == ["post_id", "status", "gold", "predicted", "hit"]
    rows = {row["post_id"]: row for row in table.to_pylist()}
    assert [rows[str(number)]["gold"] for number in range(NUM_ROWS)] == [[label] for label in GOLD]
    assert rows["1"] == {"post_id": "1", "status": "truncated", "gold": ["high_risk"], "predicted": None, "hit": False}
    others = [number for number in range(NUM_ROWS) if number != 1]
    assert [rows[str(number)]["predicted"] for number in others] == [[PREDICTED[number]] for number in others]
    assert sum(row["hit"] for row in rows.values()) / NUM_ROWS == metrics["accuracy"]
    footer = json.loads(table.schema.metadata[b"mentalglm"])
    assert footer == metrics["provenance"]


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    assert evaluate_run(config(folder), dry_run=True)["n"] == NUM_ROWS
    assert not (folder / "out").exists()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_gold_may_be_csv_or_parquet(folder: Path, suffix: str) -> None:
    path = folder / f"gold.{suffix}"
    bits = [int(each == "high_risk") for each in GOLD]
    if suffix == "parquet":
        pq.write_table(pa.table({"id": list(range(NUM_ROWS)), "label": bits}), path)
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([("id", "label"), *enumerate(bits)])
    gold = {"uri": str(path), "id_column": "id"}
    assert evaluate_run(config(folder, gold=gold))["f1"] == evaluate_run(config(folder))["f1"]


def test_a_text_of_any_length_may_stand_beside_the_gold_labels_in_csv(folder: Path) -> None:
    path = folder / "gold.csv"
    rows = [(row, "长" * 140_000 if row == 7 else "短", label) for row, label in enumerate(GOLD)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "text", "label"), *rows])
    gold = {"uri": str(path), "id_column": "id"}
    assert evaluate_run(config(folder, gold=gold))["f1"] == evaluate_run(config(folder))["f1"]


def test_optional_columns_that_hold_nothing_are_as_if_they_were_not_there(folder: Path) -> None:
    path = folder / "predictions.parquet"
    table = pq.read_table(path).drop_columns(["flags", "probability"])
    pq.write_table(table, path)
    without = evaluate_run(config(folder))
    void = pa.nulls(NUM_ROWS)
    for name in ("parents", "flags", "probability", "label_scores"):
        table = table.append_column(name, void)
    pq.write_table(table, path)
    found = evaluate_run(config(folder))
    assert {**found, "provenance": None} == {**without, "provenance": None}


def test_predictions_of_another_task_are_refused_and_not_scored_as_all_wrong(folder: Path) -> None:
    path = folder / "predictions.parquet"
    write_predictions(path, ["filtering"] * NUM_ROWS)
    with pytest.raises(InputError, match="none of their 39 labels is one of suicide_risk; name the task"):
        evaluate_run(config(folder))
    told = {b"mentalglm": json.dumps({"tasks": [{"name": "cognitive_distortion"}]}).encode()}
    pq.write_table(pq.read_table(path).replace_schema_metadata(told), path)
    with pytest.raises(ConfigError, match=r"task = suicide_risk: .* answers cognitive_distortion; name the task"):
        evaluate_run(config(folder))


def test_diagrams_of_an_earlier_evaluation_do_not_stay(folder: Path) -> None:
    evaluate_run(config(folder))
    diagrams = sorted(path.name for path in (folder / "out").glob("*.svg"))
    assert diagrams
    (folder / "out" / "reliability-filtering.svg").write_text("<svg/>")
    (folder / "out" / "mine.svg").write_text("<svg/>")
    evaluate_run(config(folder))
    assert sorted(path.name for path in (folder / "out").glob("*.svg")) == sorted([*diagrams, "mine.svg"])


def test_more_predictions_than_gold_labels_are_left_out_when_asked(folder: Path) -> None:
    plain = evaluate_run(config(folder))
    write_predictions(folder / "predictions.parquet", PREDICTED, num_extra=10)
    with pytest.raises(InputError, match="10 predictions have no gold label"):
        evaluate_run(config(folder))
    found = evaluate_run(config(folder, extra_predictions="ignore"))
    assert found["num_without_gold"] == 10
    assert (found["f1"], found["ci95"]) == (plain["f1"], plain["ci95"])
    assert "10 predictions without a gold label left out" in markdown(found)


def test_rows_that_were_trained_on_are_left_out_once(folder: Path) -> None:
    """Texts are equal when their normal forms are: here the first has white space around it."""
    lines = [f"  {TEXTS[0]}\n", TEXTS[5], "another text", None]
    training = folder / "train.jsonl"
    training.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    found = evaluate_run(config(folder, training={"uri": str(training)}))
    rest = found["without_training_texts"]
    assert (found["n"], rest["num_in_training"], rest["n"]) == (40, 2, 38)
    assert rest["f1"] != found["f1"]
    assert "without 2 rows whose text was trained on" in markdown(found)
    training.write_text(json.dumps({"text": "another text"}))
    assert evaluate_run(config(folder, training={"uri": str(training)}))["without_training_texts"] == {
        "num_in_training": 0
    }


def test_sentences_of_a_post_are_resampled_together(folder: Path) -> None:
    gold = [{"id": row, "label": label, "post": row // 10} for row, label in enumerate(GOLD)]
    (folder / "gold.jsonl").write_text("\n".join(map(json.dumps, gold)))
    columns = {"uri": str(folder / "gold.jsonl"), "id_column": "id"}
    plain, clustered = (evaluate_run(config(folder, gold=columns | more)) for more in ({}, {"cluster_column": "post"}))
    assert plain["f1"] == clustered["f1"]
    assert plain["ci95"]["f1"] != clustered["ci95"]["f1"]


def test_another_run_and_other_seeds(folder: Path) -> None:
    write_predictions(folder / "other.parquet", GOLD)
    other = str(folder / "other.parquet")
    found = evaluate_run(config(folder, against=other, repeats=[other]))
    level = found["comparison"]["levels"]["label"]
    perfect = evaluate_run(config(folder, predictions=other))
    assert level["difference"] == pytest.approx(found["f1"] - perfect["f1"])
    assert level["p_mcnemar"] < 0.01
    spread = found["over_runs"]["label"]["f1"]
    assert spread["values"] == [found["f1"], perfect["f1"]]
    assert spread["standard_deviation"] == pytest.approx(abs(level["difference"]) / 2**0.5)
    assert "2 |" in markdown(found)
    for found_or_plain in (found, evaluate_run(config(folder, against=other, num_bootstrap=0))):
        block = next(each for each in markdown(found_or_plain).split("\n\n") if "p, McNemar" in each)
        assert {line.count(" | ") for line in block.splitlines() if "---" not in line} == {4}
        assert "()" not in block


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"id": 1, "label": "canary"}'], ["1 rows", "1: cannot be read as labels", "low_risk"]),
        (['{"id": 1, "label": 1}', '{"id": 1, "label": 1}'], ["1: the id comes twice"]),
        (['{"id": 1.5, "label": 1}'], ["row 1: id is a float"]),
        (['{"id": null, "label": 1}'], ["row 1: id is empty"]),
        (['{"id": 1}'], ["no column 'label'"]),
        (["[1]"], ["no column 'id'"]),
        (["canary"], ["cannot be read as jsonl"]),
        (["[" * 100_000], ["cannot be read as jsonl"]),
        (['{"id": "\\ud800", "label": 1}'], ["row 1: id is no text in Unicode"]),
        ([], ["holds no rows"]),
    ],
)
def test_gold_that_is_no_gold_is_refused(folder: Path, lines: list[str], words: list[str]) -> None:
    (folder / "gold.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError) as caught:
        evaluate_run(config(folder))
    assert "gold.uri" in str(caught.value)
    assert "canary" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_what_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"gold\.uri = .*: no such file"):
        evaluate_run(config(folder, gold={"uri": str(folder / "none.jsonl")}))
    (folder / "gold.txt").write_text("1 high")
    with pytest.raises(InputError, match=r"gold\.uri = .*name it \.jsonl"):
        evaluate_run(config(folder, gold={"uri": str(folder / "gold.txt")}))
    with pytest.raises(InputError, match="no Parquet there"):
        evaluate_run(config(folder, predictions=str(folder / "nothing")))
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        evaluate_run(config(folder, predictions=str(folder / "gold.jsonl")))
    with pytest.raises(ConfigError, match="is no run, which alone has adapters"):
        evaluate_run(config(folder, adapter="mine"))
    pq.write_table(pa.table({"id": [1]}), folder / "foreign.parquet")
    for extra in ("error", "ignore"):
        with pytest.raises(InputError, match="no column post_id, status, labels"):
            evaluate_run(config(folder, predictions=str(folder / "foreign.parquet"), extra_predictions=extra))
    (folder / "run" / "_run").mkdir(parents=True)
    (folder / "run" / "_run" / "run.json").write_text("{}")
    with pytest.raises(InputError, match="not finished"):
        evaluate_run(config(folder, predictions=str(folder / "run")))
    with pytest.raises(ConfigError, match="no_such_task"):
        evaluate_run(config(folder, task="no_such_task"))


@pytest.mark.parametrize("repeats", [["x/predictions.parquet"], ["a", "a"]])
def test_a_run_counted_twice_is_no_repeat(repeats: list[str]) -> None:
    with pytest.raises(ValueError, match="names a run twice, or the predictions themselves"):
        config(Path("x"), repeats=repeats)


@pytest.mark.parametrize("against", ["x/predictions.parquet", "./x//predictions.parquet"])
def test_predictions_are_not_compared_with_themselves(against: str) -> None:
    with pytest.raises(ValueError, match="the predictions themselves"):
        config(Path("x"), against=against)


@pytest.mark.parametrize(
    ("gold", "changes"),
    [
        ({"uri": "x/run"}, {}),
        ({"uri": "./x/../x/run/"}, {}),
        ({"uri": "x/run", "adapter": "s1"}, {"adapter": "s1"}),
        ({"uri": "x/other"}, {"repeats": ["x/other"]}),
        ({"uri": "x/other"}, {"against": "x/other"}),
        ({"uri": "x/run", "adapter": "s2"}, {"against_adapter": "s2"}),
        ({"uri": "x/p.parquet", "label_column": "labels"}, {"predictions": "x/p.parquet"}),
    ],
)
def test_predictions_are_not_held_against_themselves(gold: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"gold\.uri = .* names predictions that are evaluated.*; name a gold file"):
        config(Path("x"), **({"predictions": "x/run", "gold": gold} | changes))


def test_another_adapter_or_another_column_may_be_gold() -> None:
    config(Path("x"), predictions="x/run", adapter="s1", gold={"uri": "x/run", "adapter": "s2"})
    config(Path("x"), predictions="x/p.parquet", gold={"uri": "x/p.parquet"})
