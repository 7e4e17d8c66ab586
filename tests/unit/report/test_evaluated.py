"""What a page tells of an evaluation, held against what the page tells elsewhere."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.report.disclosure import Count, Disclosure, exact
from mentalglm.report.evaluated import CalibrationView, calibration_view
from mentalglm.report.sources import LabelName, LabelSet
from mentalglm.report.told_evaluation import ToldEvaluation
from mentalglm.tasks import load_task
from tests.report_runs import row, write_run
from tests.unit.report.test_disclosure import LIMIT, assert_hidden, possible
from tests.unit.report.test_page import cells, distortion_rows, line_of, metrics_of, page_of, risk_rows

HIGH = LabelName("high_risk", "high suicide risk", "", None)


def calibration(*bins: tuple[int, int], wholes: Sequence[int] = (), said: int | None = None) -> CalibrationView | None:
    """Of bins of (rows, positive rows), half of them over one half. `wholes`: all rows that are evaluated, those that
    could be read. `said`: answers with the label, if not those of the upper half. None where its scores are not
    shown."""
    total, positive = (sum(each[at] for each in bins) for at in (0, 1))
    told = {"num_rows": total, "num_positive": positive, "auroc": 0.9, "auprc": 0.9, "brier": 0.1, "ece": 0.1}
    told |= {"sensitivity_at_precision": {}, "bins": [
        {"num_rows": each[0], "mean_probability": (at + 0.5) / len(bins), "share_positive": each[1] / each[0]}
        for at, each in enumerate(bins)
    ]}  # fmt: skip
    n, num_parsed = (*wholes, *(wholes or [total] * 2))[:2]
    if said is None:
        said = sum(rows for at, (rows, _) in enumerate(bins) if (at + 0.5) / len(bins) >= 0.5)
    per_label = {
        "high_risk": {"support": positive, "num_predicted": said},
        "low_risk": {"support": n - positive, "num_predicted": num_parsed - said},
    }
    failed = {"parse_failed": n - num_parsed} if n > num_parsed else {}
    metrics = {"n": n, "num_parsed": num_parsed, "num_failed_by_status": failed, "num_without_label": 0}
    task = LabelSet.of(load_task("suicide_risk"))
    evaluation = ToldEvaluation(metrics | {"per_label": per_label}, task, None, Disclosure(LIMIT))
    return calibration_view(HIGH, told, evaluation) if evaluation.has_scores("high_risk") else None


def test_points_are_as_large_as_the_table_tells() -> None:
    """One bin has 3 posts, or 7: the point of the other one is the same."""
    assert calibration((197, 98), (3, 0)) == calibration((193, 98), (7, 0))


def test_points_do_not_tell_how_many_rows_have_a_probability() -> None:
    """297 of 300, or 294."""
    views = [calibration((100, 40), (other, 90), wholes=[300], said=200) for other in (197, 194)]
    assert [view and view.num_rows for view in views] == [Count(290, 300)] * 2
    points = [str(view and view.svg).split("<path")[1:2] or str(view.svg).split("<circle")[1:2] for view in views]
    assert points[0] == points[1]


def test_answers_without_a_probability_are_not_told_by_those_that_could_be_read() -> None:
    view = calibration((100, 40), (183, 90), wholes=[300, 285])
    assert view is not None
    assert view.num_rows == Count(275, 285)


def test_there_are_no_points_where_there_is_no_table() -> None:
    view = calibration((15, 10), (5, 1), (6, 2))
    assert view is not None
    assert (view.bins, view.svg) == ([], None)


def test_positive_rows_of_a_bin_are_not_what_the_others_leave_of_all() -> None:
    view = calibration((200, 15), (50, 3), (60, 20), (90, 70))
    assert view is not None
    assert view.num_positive == exact(108)
    shares = [ends for _, _, ends in view.bins]
    assert shares == [(15 / 200, 15 / 200), (0.0, 9 / 50), (20 / 60, 20 / 60), (64 / 90, 73 / 90)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).filter(any), min_size=2, max_size=5))
def test_shares_of_bins_leave_the_limit_of_numbers(pairs: list[tuple[int, int]]) -> None:
    """Bins of (positive rows, other rows): each cell under the limit may be all of 0 to the limit less 1."""
    view = calibration(*((sum(each), each[0]) for each in pairs))
    if view is None or not view.bins:
        return
    told = {round(mean * len(pairs) - 0.5): (cell.count, ends) for mean, cell, ends in view.bins}
    known: list[Count] = []
    for at, each in enumerate(pairs):
        count, ends = told.get(at, (Count(0, LIMIT - 1), None))
        if ends is None or count is None:
            known.append(Count(0, LIMIT - 1 if at not in told else sum(map(sum, pairs))))
        else:
            known.append(Count(round(ends[0] * count.high), round(ends[1] * count.low)))
            assert known[-1].low <= each[0] <= known[-1].high or not count.is_exact
    if any(count is not None and not count.is_exact for count, _ in told.values()):
        return  # a bin that is a range: its share is wider still
    for at, each in enumerate(pairs):
        if at in told and each[0] < LIMIT:
            assert_hidden(*possible(known, [(range(len(pairs)), view.num_positive)], [at]))


def evaluated(folder: Path, metrics: dict[str, Any]) -> list[str]:
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return [str(folder)]


@pytest.mark.parametrize(("only_other", "told"), [(30, ["0.125", "0.250"]), (7, ["–", "–"])])
def test_a_test_of_two_numbers_is_not_told_where_one_is_hidden(
    tmp_path: Path, only_other: int, told: list[str]
) -> None:
    rows = risk_rows(124, 126, 0)
    metrics = metrics_of("suicide_risk", {each["post_id"]: each["labels"] for each in rows}, rows, "scored")
    level = {"difference": 0.1, "ci95": None, "p_bootstrap": 0.5, "p_bootstrap_holm": 0.5, "num_only_this": 40}
    level |= {"num_only_other": only_other, "p_mcnemar": 0.125, "p_mcnemar_holm": 0.25}
    metrics["comparison"] = {"against": {"run_id": "b", "adapter": None, "uri": "y"}, "levels": {"label": level}}
    html = page_of(write_run(tmp_path / "scored", {"suicide_risk": rows}), evaluations=evaluated(tmp_path, metrics))
    assert line_of(html[html.index("p, McNemar") :], "label")[-2:] == told


def test_a_label_that_a_few_posts_more_have_in_the_run_has_no_scores(tmp_path: Path) -> None:
    """103 posts of the run have it, 100 of those with a gold label: with precision and recall these 100 are told, and
    with the sum over the labels they are what the others leave of it."""
    rows = distortion_rows({"labeling": 103, "mental_filter": 90, "magnification": 60}, 150)
    left_out = {*range(3), *range(103, 123), *range(193, 213), *range(373, 403)}
    gold = {each["post_id"]: each["labels"] for at, each in enumerate(rows) if at not in left_out}
    metrics = metrics_of("cognitive_distortion", gold, rows, "scored")
    run = write_run(tmp_path / "scored", {"cognitive_distortion": rows})
    html = page_of(run, evaluations=evaluated(tmp_path, metrics))
    evaluation = html[html.index('id="evaluation"') :]
    assert line_of(html, "labeling")[0] == "103"
    assert line_of(evaluation, "labeling") == ["–", "–", "–", "94 – 103", "94 – 103"]
    assert line_of(evaluation, "mental filter") == ["100.0", "100.0", "100.0", "70", "70"]
    assert line_of(evaluation, "magnification")[:3] == ["–", "–", "–"]
    assert "–" not in line_of(evaluation, "micro")[:3]
    assert line_of(evaluation, "micro")[3] == "–"
    assert "macro" not in evaluation


def test_one_rare_label_costs_no_headline(tmp_path: Path) -> None:
    """All posts of the run are evaluated: on the whole page the range beside the rare label is that of one label, since
    the average over the labels tells their sum."""
    slugs = [label.slug for label in load_task("cognitive_distortion").labels]
    sizes = {slug: 20 + number for number, slug in enumerate(slugs)} | {slugs[3]: 4}
    rows = distortion_rows(sizes, 100)
    metrics = metrics_of("cognitive_distortion", {each["post_id"]: each["labels"] for each in rows}, rows, "scored")
    run = write_run(tmp_path / "scored", {"cognitive_distortion": rows})
    html = page_of(run, evaluations=evaluated(tmp_path, metrics))
    evaluation = html[html.index('id="evaluation"') :]
    assert [cell.split()[0] for cell in line_of(evaluation, "micro")] == ["100.0", "100.0", "100.0", "–"]
    names = {label.slug: label.en for label in load_task("cognitive_distortion").labels}
    told = {slug: line_of(evaluation, names[slug]) for slug in slugs}
    assert [slug for slug in slugs if told[slug][0] == "–"] == [slugs[0], slugs[3]], "it, and the smallest other one"
    for slug in slugs:
        assert line_of(html, names[slug])[0] == told[slug][-1], "the run says the same"


@pytest.mark.parametrize("what", ["none", "free_form"])
def test_flags_and_posts_without_a_label_are_not_told_where_a_few_more_are_in_the_run(
    tmp_path: Path, what: str
) -> None:
    """Of 50 posts without a gold label 3 have no label, or not the form."""
    rows = distortion_rows({"labeling": 150, "mental_filter": 150}, 120 if what == "none" else 150)
    if what == "free_form":
        for at in (*range(3), *range(200, 260)):
            rows[at]["flags"] = ["free_form"]
    left_out = [*range(47), *range(len(rows) - 3, len(rows))] if what == "none" else range(50)
    gold = {each["post_id"]: each["labels"] for at, each in enumerate(rows) if at not in set(left_out)}
    metrics = metrics_of("cognitive_distortion", gold, rows, "scored")
    number = metrics["num_without_label" if what == "none" else "num_free_form"]
    assert number == (117 if what == "none" else 60)
    run = write_run(tmp_path / "scored", {"cognitive_distortion": rows})
    evaluation = page_of(run, evaluations=evaluated(tmp_path, metrics)).split('id="evaluation"')[1]
    assert str(number) not in cells(evaluation)
    assert f"{number} read" not in evaluation


def test_an_evaluation_against_the_labels_of_a_run_has_a_page(tmp_path: Path) -> None:
    rows = risk_rows(100, 200, 0)
    metrics = metrics_of("suicide_risk", {each["post_id"]: each["labels"] for each in rows}, rows, "scored")
    del metrics["provenance"]["gold"]["sha256"]
    metrics["provenance"]["gold"]["run"] = {"run_id": "the-other-run", "uri": "x"}
    run = write_run(tmp_path / "scored", {"suicide_risk": rows})
    assert "run the-other-run" in page_of(run, evaluations=evaluated(tmp_path, metrics))


def test_labels_of_a_built_in_task_that_no_run_has_keep_their_names(tmp_path: Path) -> None:
    rows = [row(at, ["labeling"] if at < 60 else ["mental_filter"]) for at in range(120)]
    metrics = metrics_of("cognitive_distortion", {each["post_id"]: each["labels"] for each in rows}, rows, "other")
    run = write_run(tmp_path / "scored", {"suicide_risk": risk_rows(100, 200, 0)})
    label = LabelSet.of(load_task("cognitive_distortion")).labels[0]
    evaluation = page_of(run, evaluations=evaluated(tmp_path, metrics)).split('id="evaluation"')[1]
    assert f"<bdi>{label.en}</bdi>" in evaluation
    assert label.zh in evaluation
    assert f"<bdi>{label.slug}</bdi>" not in evaluation


def test_few_posts_that_are_not_evaluated_are_told_by_no_score_of_a_task_with_one_label_a_post(tmp_path: Path) -> None:
    """Of 33 posts without a gold label 3 have a high risk."""
    rows = risk_rows(103, 230, 0)
    gold = {each["post_id"]: each["labels"] for each in rows[3:303]}
    gold["p0000200"] = ["high_risk"]
    metrics = metrics_of("suicide_risk", gold, rows, "scored")
    assert metrics["per_label"]["high_risk"]["num_predicted"] == 100
    run = write_run(tmp_path / "scored", {"suicide_risk": rows})
    html = page_of(run, evaluations=evaluated(tmp_path, metrics))
    evaluation = html[html.index('id="evaluation"') :]
    assert line_of(evaluation, "binary") == ["–", "–", "–", "–"]
    assert f"{100 * metrics['f1']:.1f}" not in evaluation
    assert "Confusion" not in evaluation
    assert "Calibration of" not in evaluation
    assert "100" not in cells(evaluation.split("<section")[0])
    assert line_of(evaluation, "high suicide risk")[:3] == ["–", "–", "–"]


def test_what_is_hidden_in_the_run_hides_nothing_of_its_evaluation(tmp_path: Path) -> None:
    """7 failed, 4 of those with a gold label."""
    rows = risk_rows(130, 230, 7)
    gold = {each["post_id"]: each["labels"] or ["low_risk"] for each in [*rows[20:330], *rows[343:364]]}
    metrics = metrics_of("suicide_risk", gold, rows, "scored")
    run = write_run(tmp_path / "scored", {"suicide_risk": rows})
    evaluation = page_of(run, evaluations=evaluated(tmp_path, metrics)).split('id="evaluation"')[1]
    assert "–" not in line_of(evaluation, "binary")[:3]
    # With it the failed ones of those with a low risk would be what is left.
    assert line_of(evaluation, "binary")[3] == "–"


def test_failed_posts_that_are_not_evaluated_are_not_told_where_they_are_few(tmp_path: Path) -> None:
    """23 failed, and 20 of those with a gold label."""
    rows = [*distortion_rows({"labeling": 150, "mental_filter": 100}, 60), *(row(400 + at, None) for at in range(23))]
    gold = {each["post_id"]: each["labels"] or [] for each in [*rows[30:310], *rows[313:]]}
    metrics = metrics_of("cognitive_distortion", gold, rows, "scored")
    assert metrics["num_failed_by_status"]["parse_failed"] == 20
    run = write_run(tmp_path / "scored", {"cognitive_distortion": rows})
    html = page_of(run, evaluations=evaluated(tmp_path, metrics))
    assert "23" in cells(html)
    assert "14&hairsp;–&hairsp;23</span> status parse_failed" in html
