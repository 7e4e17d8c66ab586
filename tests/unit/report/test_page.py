"""The page as a file: what is in it, and above all what is not."""

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mentalglm.config import ReportConfig, validate
from mentalglm.errors import ConfigError, InputError
from mentalglm.evaluation import evaluate
from mentalglm.report.job import write_report
from mentalglm.tasks import load_task
from tests.report_runs import Row, row, write_run

KEPT = pa.schema([pa.field("created_at", pa.timestamp("ms"))])
ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>"


def day(number: int) -> datetime:
    return datetime(2025, 1, 1) + timedelta(days=number % 90)


def risk_rows(num_high: int, num_low: int, num_failed: int) -> list[Row]:
    kinds = ["high_risk"] * num_high + ["low_risk"] * num_low + [None] * num_failed
    return [
        row(at, [kind] if kind else None, created_at=day(at * 7), probability=0.97 if kind == "high_risk" else 0.02,
            confidence=0.5 + (at % 50) / 100)
        for at, kind in enumerate(kinds)
    ]  # fmt: skip


def distortion_rows(counts: dict[str, int], num_none: int) -> list[Row]:
    labels = [[slug] for slug, number in counts.items() for _ in range(number)] + [[]] * num_none
    return [row(at, each, created_at=day(at * 7), confidence=0.9) for at, each in enumerate(labels)]


def page_of(*runs: Path, **config: Any) -> str:
    target = runs[0].parent / "report.html"
    data = {"runs": [str(run) for run in runs], "output": {"uri": str(target)}} | config
    assert write_report(ReportConfig.model_validate(data)) == str(target)
    return target.read_text(encoding="utf-8")


def cells(html: str) -> list[str]:
    """Texts of the cells of tables that are numbers."""
    found = re.findall(r'<td class="n[^"]*">(.*?)</td>', html, flags=re.DOTALL)
    return [re.sub(r"<[^>]*>|&\w+;", " ", each).strip() for each in found]


def metrics_of(task: str, gold: dict[str, list[str]], rows: list[Row], run_id: str) -> dict[str, Any]:
    names = ("post_id", "status", "labels", "flags", "probability")
    table = pa.Table.from_pylist([{name: each.get(name) for name in names} for each in rows])
    found = evaluate(load_task(task), gold, table, num_bootstrap=200, extra_predictions="ignore").to_json()
    made = {"run_id": run_id, "adapter": None, "uri": "x"}
    gold_file = {"uri": "gold.jsonl", "label_column": "label", "sha256": "f" * 64}
    task_of = {"version": "1", "digest": "0" * 64}
    provenance = {"predictions": made, "gold": gold_file, "task": task_of, "evaluated_at": "2026-11-27T00:00:00+00:00"}
    return json.loads(json.dumps(found | {"num_without_gold": 0, "provenance": provenance}))


def test_a_page_tells_labels_failures_time_speed_and_provenance(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "scored",
        {
            "suicide_risk": risk_rows(300, 687, 13),
            "cognitive_distortion": distortion_rows({"labeling": 400, "mental_filter": 200, "magnification": 100}, 300),
        },
        kept=KEPT,
    )
    html = page_of(run)
    for words in (
        "high suicide risk",
        "高自杀风险",
        "parse_failed",
        "Posts over time",
        "created_at",
        "Loss budget",
        "d" * 64,
    ):
        assert words in html, words
    assert {"300", "687", "13", "200", "100", "1,000"} <= set(cells(html))
    assert "2026" in html
    assert "31.5" in html, "steady predictions/s"
    assert "p0000001" not in html


def test_few_failures_are_hidden_and_so_is_what_they_could_be_worked_out_from(tmp_path: Path) -> None:
    """1,237 posts, 7 of them failed: neither 7, nor 1,230, nor a share of it is anywhere in the source."""
    run = write_run(tmp_path / "scored", {"suicide_risk": risk_rows(411, 819, 7)}, kept=KEPT)
    html = page_of(run)
    assert "1,237" in html
    assert "1,228&hairsp;–&hairsp;1,237" in html
    html = re.sub(r"<svg.*?</svg>|<code>.*?</code>", "", html, flags=re.DOTALL)  # coordinates, digests
    for secret in ("1,230", "1230", "819", "99.4", "66.2", ">7<"):
        assert secret not in html, secret
    assert "411" in html
    assert not [each for each in cells(html) if each.isdigit() and int(each) < 10]


@pytest.mark.parametrize("num_rare", [0, 1, 9])
def test_a_rare_label_is_hidden_whatever_it_is(tmp_path: Path, num_rare: int) -> None:
    """Pages of runs with 0, 1 and 9 posts of a label say the same of it."""
    rows = distortion_rows({"labeling": 400, "mental_filter": 200, "magnification": num_rare}, 300 - num_rare)
    html = page_of(write_run(tmp_path / "scored", {"cognitive_distortion": rows}, kept=KEPT))
    line = re.search(r"<bdi>magnification</bdi>.*?</tr>", html, flags=re.DOTALL)
    assert line is not None
    assert next(iter(cells(line[0]))).endswith("10")
    assert ">400<" not in html, "the largest is a range: with all posts having one label it would tell"
    assert not [each for each in cells(html) if each.isdigit() and int(each) < 10]


def line_of(html: str, words: str) -> list[str]:
    """Numbers of the first row of a table that begins with these words."""
    found = re.search(rf'<th scope="row"[^>]*>(?:<bdi>|<code>)?{words}<.*?</tr>', html, flags=re.DOTALL)
    assert found is not None, words
    return cells(found[0])


def test_posts_with_a_result_of_which_a_few_have_no_explanation_or_confidence_are_not_told(tmp_path: Path) -> None:
    """300 posts, 10 failed: 287 of 290 explained, and 284 with a confidence."""
    rows = risk_rows(90, 200, 10)
    for at, each in enumerate(rows[:290]):
        each |= {"explanation": "x" if at < 287 else None, "confidence": 0.905 if at < 284 else None}
        each |= {"probability": None}
    html = page_of(write_run(tmp_path / "scored", {"suicide_risk": rows}))
    assert line_of(html, "with an explanation")[0] == "281 – 290"
    assert "262 – 290" in cells(html), "with those below and above, of which each may be 9; and not to 284"
    assert not {"287", "284"} & set(cells(html))


def test_the_posts_above_one_half_and_those_with_the_label_do_not_tell_of_the_few_that_differ(tmp_path: Path) -> None:
    """100 have the label, 103 a probability above one half."""
    rows = risk_rows(100, 200, 0)
    for each in rows[100:103]:
        each["probability"] = 0.97
    html = page_of(write_run(tmp_path / "scored", {"suicide_risk": rows}))
    assert line_of(html, "high suicide risk")[0] == "100"
    assert not {"103", "197"} & set(cells(html))
    assert "72 – 110" in cells(html), "with those below and above, of which each may be 9; and not to 103"


def test_a_parent_does_not_tell_how_few_of_its_posts_a_child_has_not(tmp_path: Path) -> None:
    """Of 100 with a parent, 97 have the one child; of 140 with another parent, 100, but all but 3 of those with a high
    risk, and all but 3 on the first day."""
    labels = [["emotional_effect"] if at < 97 or 100 <= at < 103 else ["behavioural_effect"] for at in range(140)]
    labels += [["labeling"] if at < 97 else ["mental_filter"] for at in range(100)] + [[]] * 260
    days = [at % 4 for at in range(500)]
    days[97:100], days[103:140] = [0] * 3, [1 + at % 3 for at in range(37)]
    rows = [
        row(at, each, parents=["consequence"] if at < 140 else ["belief"] if each else [], created_at=day(days[at]))
        for at, each in enumerate(labels)
    ]
    risk = [row(at, ["high_risk" if at < 60 or 97 <= at < 100 or at >= 450 else "low_risk"]) for at in range(500)]
    html = page_of(write_run(tmp_path / "scored", {"cognitive_pathway": rows, "suicide_risk": risk}, kept=KEPT))
    assert line_of(html, "belief")[0] == "100"
    assert line_of(html, "labeling")[0].endswith("– 100")
    assert line_of(html, "consequence")[0] == "140"
    assert line_of(html, "emotional effect")[0] == "100"
    together = html[html.index("Labels together with") :]
    assert line_of(together, "consequence") == ["45.0 %"]
    assert line_of(together, "emotional effect") == ["·"]
    by_day = line_of(html[html.index('id="task-1-time"') :], "2025-01-01")
    assert "29" in by_day
    assert "26" not in by_day


def test_labels_do_not_tell_of_the_few_with_a_result_that_have_them_not(tmp_path: Path) -> None:
    """120 posts, 20 failed, and of the other 100 all but 3 have one of two labels."""
    labels = [["labeling", "mental_filter"]] * 97 + [["mental_filter"]] * 3 + [None] * 20
    html = page_of(write_run(tmp_path / "scored", {"cognitive_distortion": [row(*each) for each in enumerate(labels)]}))
    assert line_of(html, "labeling")[0] == "91 – 100"


def test_flags_are_in_an_order_that_tells_nothing(tmp_path: Path) -> None:
    rows = risk_rows(150, 150, 0)
    for at in range(300):
        rows[at]["flags"] = ["many"] * (at < 50) + ["b_rare"] * (at < 9) + ["a_rare"] * (at < 2)
    html = page_of(write_run(tmp_path / "scored", {"suicide_risk": rows}))
    assert "of none too" not in html, "no status but ok is on the page, which tells that none failed"
    assert html.index("<code>many") < html.index("<code>a_rare") < html.index("<code>b_rare")


def test_two_labels_that_are_not_told_together_have_one_sign(tmp_path: Path) -> None:
    """10 have the one, all of them the other: of another pair it is none. Whoever reads the page cannot tell which."""
    labels = [["labeling", "mental_filter"]] * 10 + [["mental_filter"]] * 40 + [["magnification"]] * 50
    pairs = [
        *labels,
        *([["personalization", "mind_reading"]] * 30),
        *([["personalization"]] * 30),
        *([["mind_reading"]] * 30),
        *([[]] * 200),
    ]
    rows = [row(at, each) for at, each in enumerate(pairs)]
    html = page_of(write_run(tmp_path / "scored", {"cognitive_distortion": rows}))
    together = html[html.index("-together") :]
    signs = re.findall(r'<td class="withheld">(.*?)</td>', together[: together.index("</table>")])
    assert signs
    assert set(signs) == {"·"}


def test_nothing_is_told_of_a_handful_of_posts(tmp_path: Path) -> None:
    rows = risk_rows(3, 5, 0)
    html = page_of(write_run(tmp_path / "scored", {"suicide_risk": rows}, kept=KEPT))
    assert "too few posts" in html.lower()
    assert not [each for each in cells(html) if each.isdigit() and int(each) < 10]
    assert "2025" not in html, "no bins of time"


def test_evaluations_hide_small_cells_too(tmp_path: Path) -> None:
    rows = risk_rows(124, 126, 0)
    run = write_run(tmp_path / "scored", {"suicide_risk": rows}, kept=KEPT)
    gold = {each["post_id"]: each["labels"] for each in rows}
    for at in range(4):  # four false positives, and 120 that are right
        gold[f"p{at:07d}"] = ["low_risk"]
    metrics = metrics_of("suicide_risk", gold, rows, "scored")
    assert metrics["confusion"]["low_risk"] == {"low_risk": 126, "high_risk": 4, "no_result": 0}
    metrics["explanations"] = {"num_explained": 250, "num_characters": {"p50": 41.0}}
    metrics["explanations"]["quotes"] = {"num_with_quote": 200, "share_not_in_post": 0.125, "ci95": [0.08, 0.17]}
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "metrics.json").write_text(json.dumps(metrics))
    html = page_of(run, evaluations=[str(tmp_path / "metrics")])
    assert "AUROC" in html
    assert "41 characters (median)" in html
    assert "12.5 <span" in html
    assert "121&hairsp;–&hairsp;130" in html, "of 130 low, those that were right"
    assert not [each for each in cells(html) if each.isdigit() and int(each) < 10]
    assert f"{100 * metrics['f1']:.1f}" in html


def test_scores_of_a_label_with_few_posts_are_left_out(tmp_path: Path) -> None:
    rows = distortion_rows({"labeling": 100, "mental_filter": 60, "magnification": 4}, 136)
    gold = {each["post_id"]: each["labels"] for each in rows}
    metrics = metrics_of("cognitive_distortion", gold, rows, "scored")
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    run = write_run(tmp_path / "scored", {"cognitive_distortion": rows})
    html = page_of(run, evaluations=[str(tmp_path)])
    evaluation = html[html.index('id="evaluation"') :]
    line = re.search(r"<bdi>magnification</bdi>.*?</tr>", evaluation, flags=re.DOTALL)
    assert line is not None
    assert cells(line[0])[:3] == ["–", "–", "–"]


def test_the_limit_goes_up_and_only_with_a_word_down(tmp_path: Path) -> None:
    run = write_run(tmp_path / "scored", {"suicide_risk": risk_rows(45, 55, 0)})
    assert "45" in cells(page_of(run))
    assert "45" not in cells(page_of(run, min_cell=50))
    with pytest.raises(ValueError, match="allow_small_cells"):
        ReportConfig.model_validate({"runs": [str(run)], "min_cell": 5})
    rare = write_run(tmp_path / "rare", {"suicide_risk": risk_rows(5, 95, 0)})
    html = page_of(rare, min_cell=2, allow_small_cells=True)
    assert "5" in cells(html)
    assert "Small groups are shown" in html


def test_two_runs_side_by_side_with_their_agreement(tmp_path: Path) -> None:
    rows = risk_rows(300, 700, 0)
    others = [dict(each, labels=["low_risk"]) if at % 10 == 0 else each for at, each in enumerate(rows)]
    runs = [write_run(tmp_path / name, {"suicide_risk": each}) for name, each in (("a", rows), ("b", others))]
    html = page_of(*runs)
    agreement = html[html.index('id="agreement"') :]
    assert "97.0&thinsp;%" in agreement
    assert "30" not in cells(agreement), "30 here alone and none there: what both say of the label is not told"
    others = [dict(each, labels=["high_risk"]) if at >= 950 else each for at, each in enumerate(others)]
    run = write_run(tmp_path / "c", {"suicide_risk": others})
    html = page_of(runs[0], run)
    assert cells(html[html.index("by label</h3>") :])[:3] == ["270", "30", "50"]


def test_equal_labels_do_not_tell_of_the_few_that_failed_on_one_side(tmp_path: Path) -> None:
    """Of 600 posts 30 differ: 15 are of high risk here alone, 12 there alone, and 3 that are low there failed here."""
    rows = risk_rows(200, 400, 0)
    others = [dict(each) for each in rows]
    for at in range(30):
        if at < 15:
            others[at]["labels"] = ["low_risk"]
        elif at < 27:
            others[585 - at]["labels"] = ["high_risk"]
        else:
            rows[550 + at] |= {"status": "parse_failed", "labels": None}
    html = page_of(*(write_run(tmp_path / n, {"suicide_risk": each}) for n, each in (("a", rows), ("b", others))))
    agreement = html[html.index('id="agreement"') :]
    assert cells(agreement[agreement.index("by label</h3>") :])[1:3] == ["15", "12"]
    assert line_of(agreement, "suicide risk")[1] == "93.8 – 95.5 %"


def test_posts_of_one_run_alone_are_not_told_by_those_in_common(tmp_path: Path) -> None:
    """3 are in the first run alone, 20 in the second."""
    rows = risk_rows(200, 420, 0)
    others = [{**each, "labels": ["low_risk"]} if 20 <= at < 35 else each for at, each in enumerate(rows)]
    others = [{**each, "labels": ["high_risk"]} if 300 <= at < 315 else each for at, each in enumerate(others)]
    runs = [write_run(tmp_path / name, {"suicide_risk": each}) for name, each in (("a", rows[:600]), ("b", others[3:]))]
    agreement = page_of(*runs).split('id="agreement"')[1]
    assert line_of(agreement, "suicide risk") == ["590 – 600", "too few posts"]
    assert "by label" not in agreement


def test_nearly_all_results_of_a_post_with_equal_text_are_a_range(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"suicide_risk": risk_rows(100, 200, 0)})
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["output"]["num_copied"] = 297
    (run / "manifest.json").write_text(json.dumps(manifest))
    html = page_of(run)
    assert "291&hairsp;–&hairsp;300" in html
    assert "297" not in html


@pytest.mark.parametrize(("number", "is_told"), [(7, False), (60, True)])
def test_scores_and_numbers_of_few_validation_records_are_hidden(tmp_path: Path, number: int, is_told: bool) -> None:
    fingerprint = {
        "tasks": {"suicide_risk": "0" * 64}, "train": {"digest": "1" * 64, "num_records": 500}, "model": "2" * 64,
        "validation": {"digest": "4" * 64, "num_records": number},
    }  # fmt: skip
    scores = {"suicide_risk": 0.735, "score": 0.614}
    record = {
        "name": "s1", "start_from": "base", "best_step": 40, "best_score": 0.614, "num_steps": 50, "seconds": 80.0,
        "fingerprint": fingerprint, "validations": [{"step": 40, "scores": scores, "seconds": 3.0, "error": None}],
        "data": {"num_train_records": 500, "num_validation_records": number, "num_validated_records": number},
        "unvalidated_tasks": [], "finished_at": "2026-11-27T00:00:00+00:00", "digest": "3" * 64, "versions": {},
    }  # fmt: skip
    (tmp_path / "stage.json").write_text(json.dumps(record))
    run = write_run(tmp_path / "run", {"suicide_risk": risk_rows(100, 200, 0)})
    training = page_of(run, training=[str(tmp_path)]).split('id="training"')[1].split("<section")[0]
    assert ("73.5" in cells(training), "61.4" in training) == (is_told, is_told)
    assert ("Validation F1" in training, "by step; the numbers" in training) == (True, is_told)
    assert "num_records" not in training
    assert "7" not in cells(training)
    assert "<bdi>7</bdi>" not in training


def test_one_post_of_another_decade_leaves_the_others_their_days(tmp_path: Path) -> None:
    rows = risk_rows(1000, 2000, 0)
    for at, each in enumerate(rows):
        each["created_at"] = datetime(2024, 3, 1) + timedelta(days=at % 30)
    rows[0]["created_at"] = datetime(1991, 5, 4)
    html = page_of(write_run(tmp_path / "run", {"suicide_risk": rows}, kept=KEPT))
    time = html.split('id="time"')[1].split("</section>")[0]
    assert "Posts by day" in time
    assert line_of(time, "2024-03-03") == ["100"]
    assert "1991" not in time
    assert "Not drawn, with no day or one far from the others: <span" in time, "it is one, which is not told"
    assert "92 – 101" in cells(time), "nor by the sum of the others"
    without = page_of(write_run(tmp_path / "without", {"suicide_risk": rows[1:]}, kept=KEPT))
    assert "Not drawn" not in without


def test_the_column_of_days_is_told_of_each_run(tmp_path: Path) -> None:
    rows = risk_rows(100, 200, 0)
    others = [each | {"date": each["created_at"]} for each in rows]
    runs = [
        write_run(tmp_path / "a", {"suicide_risk": rows}, kept=KEPT),
        write_run(tmp_path / "b", {"suicide_risk": others}, kept=pa.schema([pa.field("date", pa.timestamp("ms"))])),
    ]
    words = "columns <code>created_at</code> of <bdi>a</bdi>, <code>date</code> of <bdi>b</bdi> in the zone"
    assert words in page_of(*runs)
    assert "the column <code>created_at</code> in the zone" in page_of(runs[0])


def test_a_column_of_days_that_tells_none_is_refused_where_it_was_asked_for(tmp_path: Path) -> None:
    rows = [each | {"time": "canary"} for each in risk_rows(100, 200, 0)]
    kept = pa.schema([pa.field("time", pa.string())])
    run = write_run(tmp_path / "run", {"suicide_risk": rows}, kept=kept)
    with pytest.raises(
        InputError, match=r"date_column = time: no value of it in .*; name a column that holds dates, .*"
    ) as caught:
        page_of(run, date_column="time")
    assert "canary" not in str(caught.value)
    assert 'id="time"' not in page_of(run), "its usual name is no promise"
    some = write_run(tmp_path / "some", {"suicide_risk": [*rows, row(300, ["low_risk"], time="1700000000")]}, kept=kept)
    page_of(some, date_column="time")


def test_tables_can_be_scrolled_with_keys(tmp_path: Path) -> None:
    html = page_of(write_run(tmp_path / "run", {"suicide_risk": risk_rows(100, 200, 0)}, kept=KEPT))
    areas = re.findall(r'<div class="scroll"[^>]*>', html)
    assert len(areas) > 5
    for each in areas:
        assert re.fullmatch(r'<div class="scroll" tabindex="0" role="region" aria-label="Table: [\w\' ]+">', each), each


def test_adapters_of_a_run_are_compared(tmp_path: Path) -> None:
    rows = {
        f"suicide_risk/adapter={name}": risk_rows(number, 500 - number, 0)
        for name, number in (("s1", 100), ("base", 160))
    }
    html = page_of(write_run(tmp_path / "scored", rows, kept=KEPT, adapters=["s1", "base"]))
    assert {"100", "160", "400", "340"} <= set(cells(html))
    assert "s1" in html
    assert 'id="agreement"' in html


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A run in which everything that may be named is an attack."""
    task = yaml.safe_load(
        (Path(__file__).parents[3] / "mentalglm/tasks/builtin/cognitive_distortion.yaml").read_text(encoding="utf-8")
    )
    task["name"] = "hostile"
    for label in task["labels"]:
        label |= {"zh": f"{ATTACK}{label['zh']}", "en": f"{ATTACK}{label['en']}", "aliases": [], "ordinary": []}
    path = tmp_path / "hostile.yaml"
    path.write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")
    rows = [
        row(at, ["labeling"] if at % 2 else ["magnification", "labeling"], text=ATTACK, explanation=ATTACK)
        | {"flags": [ATTACK], "status": "ok", "confidence": 0.9, "created_at": day(at)}
        for at in range(400)
    ]
    return write_run(
        tmp_path / "run",
        {"hostile": rows},
        tasks={"hostile": str(path)},
        kept=KEPT,
        keep_text=True,
        changes={
            "model": dict.fromkeys(("engine", "name", "digest", "revision", "adapter"), ATTACK),
            "run_id": ATTACK,
            "explain": ATTACK,
            "versions": {ATTACK: ATTACK},
            "finished_at": ATTACK,
        },
    )  # fmt: skip


def test_names_of_every_kind_are_text_and_never_markup(hostile: Path) -> None:
    record = hostile / "_run" / "run.json"
    config = json.loads(record.read_text(encoding="utf-8"))
    config["config"]["input"]["uri"] = ATTACK
    config["config"][ATTACK] = [ATTACK, {"a": ATTACK}]
    record.write_text(json.dumps(config), encoding="utf-8")
    html = page_of(hostile, title=ATTACK, runs=[{"uri": str(hostile), "name": ATTACK[:60]}], num_examples=3)
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("&lt;script&gt;alert(1)") > 30
    attributes = re.findall(r'(?:aria-label|title|style|id|href)="([^"]*)"', html)
    assert not [each for each in attributes if "alert" in each]


def test_a_page_needs_nothing_from_elsewhere(hostile: Path) -> None:
    html = page_of(hostile)
    assert "default-src 'none'" in html
    assert not re.findall(r"(?:src|href)=\"(?!#|data:,)", html)
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(#" not in html.split("</style>")[0]


def test_text_is_there_only_where_it_is_asked_for(tmp_path: Path) -> None:
    rows = [row(at, ["labeling"], text=f"canary {at}", explanation=f"because canary {at}") for at in range(50)]
    run = write_run(tmp_path / "run", {"cognitive_distortion": rows}, keep_text=True)
    assert "canary" not in page_of(run)
    html = page_of(run, num_examples=2)
    assert html.count("<blockquote") == 2
    assert "This page holds posts" in html
    assert "p00000" not in html
    without = write_run(tmp_path / "without", {"cognitive_distortion": rows})
    with pytest.raises(ConfigError, match=r"num_examples = 2: .*keep_text"):
        page_of(without, num_examples=2)


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"suicide_risk": risk_rows(50, 50, 0)}, kept=KEPT)
    with pytest.raises(InputError, match="holds no run of a score job; give the folder"):
        page_of(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"evaluations = .*metrics.json"):
        page_of(run, evaluations=[str(tmp_path)])
    with pytest.raises(InputError, match=r"training = .*no finished stage"):
        page_of(run, training=[str(tmp_path)])
    with pytest.raises(ConfigError, match=r"date_column = when: .*created_at"):
        page_of(run, date_column="when")
    (run / "_SUCCESS").unlink()
    with pytest.raises(InputError, match="not finished"):
        page_of(run)
    (run / "_SUCCESS").touch()
    for path in (run / "data").rglob("*.parquet"):
        path.unlink()
    with pytest.raises(InputError, match="restore data/"):
        page_of(run)
    with pytest.raises(ValueError, match=r"ends in \.html"):
        ReportConfig.model_validate({"runs": [str(run)], "output": {"uri": "report.pdf"}})


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], "report: runs = []: are 0; name the folders of one to 6 finished score runs"),
        (list("abcdefg"), "are 7; name the folders of one to 6"),
        (["a", {"uri": "./a/", "name": "b"}], "names a run twice, which always agrees with itself; name each run once"),
    ],
)
def test_runs_that_make_no_page_are_one_line(runs: list[Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        validate(ReportConfig, {"runs": runs}, "report")


@pytest.mark.parametrize("num_posts", [1, 2, 30])
def test_small_runs_have_pages(tmp_path: Path, num_posts: int) -> None:
    """Of two runs, and of two tasks that are joined."""
    rows = {"suicide_risk": risk_rows(num_posts, 0, 0), "cognitive_distortion": distortion_rows({}, num_posts)}
    runs = [write_run(tmp_path / name, rows) for name in ("a", "b")]
    assert 'id="agreement"' in page_of(*runs)


@pytest.mark.parametrize("text", ["{}", "[1]", "{", '{"task": 3, "tasks": 4, "data": [], "provenance": null}'])
def test_files_that_are_damaged_or_foreign_are_one_line(tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path / "run", {"suicide_risk": risk_rows(50, 50, 0)})
    for name in ("metrics.json", "stage.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"evaluations = .*metrics\.json.*; give a folder"):
        page_of(run, evaluations=[str(tmp_path)])
    with pytest.raises(InputError, match=r"training = .*stage\.json.*; give the output"):
        page_of(run, training=[str(tmp_path)])
    for name, fix in (("_run/run.json", "delete it"), ("manifest.json", "restore it")):
        (run / name).write_text(text)
        with pytest.raises(InputError, match=rf"runs = .*{name}.*{fix}"):
            page_of(run)
        (run / "_run" / "run.json").unlink(missing_ok=True)


def test_metrics_without_a_level_are_one_line(tmp_path: Path) -> None:
    rows = risk_rows(50, 50, 0)
    run = write_run(tmp_path / "run", {"suicide_risk": rows})
    metrics = metrics_of("suicide_risk", {each["post_id"]: each["labels"] for each in rows}, rows, "run")
    del metrics["per_label"]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(InputError, match=r"evaluations = .*has no per_label; give a folder"):
        page_of(run, evaluations=[str(tmp_path)])


def test_predictions_that_are_damaged_or_foreign_are_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"suicide_risk": risk_rows(500, 500, 0)})
    (file,) = (run / "data").rglob("*.parquet")
    whole = file.read_bytes()
    table = pa.table({"a": [1, 2]})
    pages_gone = whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :]
    for data in (b"garbage", b"PAR1" + b"garbage" * 100 + b"PAR1", whole[: len(whole) // 2], pages_gone, b""):
        file.write_bytes(data)
        with pytest.raises(InputError, match=r"restore data/|restore the file"):
            page_of(run)
    pq.write_table(table, file)
    with pytest.raises(InputError, match="restore data/"):
        page_of(run)


def test_tasks_and_configs_that_are_gone_leave_their_slugs(tmp_path: Path) -> None:
    rows = distortion_rows({"labeling": 100, "mental_filter": 60}, 40)
    run = write_run(tmp_path / "run", {"cognitive_distortion": rows})
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["tasks"][0]["name"] = "mine"
    manifest["output"] = json.loads(json.dumps(manifest["output"]).replace("cognitive_distortion", "mine"))
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "data" / "task=cognitive_distortion").rename(run / "data" / "task=mine")
    (run / "_run" / "run.json").unlink()
    html = page_of(run)
    assert "<bdi>mental_filter</bdi>" in html
    assert "the config was not kept" in html


def test_engines_that_tell_little_leave_gaps(tmp_path: Path) -> None:
    """An endpoint, and the echo engine: no digest, no revision, no engine time."""
    rows = {"suicide_risk": risk_rows(50, 150, 0)}
    changes: dict[str, Any] = {"model": {"engine": "openai", "name": "glm", "endpoint": "https-host/v1"}}
    html = page_of(write_run(tmp_path / "a", rows, changes=changes | {"throughput": None}))
    assert "https-host/v1" in html
    assert "Nothing was scored in the attempt" in html
    html = page_of(write_run(tmp_path / "b", rows, changes={"model": {"engine": "echo", "name": "echo"}}))
    assert "Loss budget" in html
