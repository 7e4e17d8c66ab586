"""Evaluations as a page shows them: scores with intervals, labels, confusion, calibration, comparisons.

Scores are given in per cent with one digit: `metrics.json` has them all.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from mentalglm.evaluation.evaluate import FREE_FORM, OUT_OF_SET
from mentalglm.evaluation.table import levels_of
from mentalglm.report import charts
from mentalglm.report.disclosure import Count, Disclosure, exact
from mentalglm.report.sources import LabelName, LabelSet, Side
from mentalglm.report.told import NONE, Cell, Told
from mentalglm.report.told_evaluation import OK, SCORES, TRAINED_ON, ToldEvaluation
from mentalglm.tasks import builtin_tasks, load_task

SCORE_NAMES = {"f1": "F1", "precision": "Precision", "recall": "Recall", "accuracy": "Accuracy"}


@dataclass(frozen=True, slots=True)
class Score:
    """From 0 to 1; low and high: the 95 % interval, if there is one."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Scores of one reading, level or average."""

    name: str
    is_headline: bool
    scores: list[Score]
    """As in SCORES."""


@dataclass(frozen=True, slots=True)
class LabelScores:
    """Of one label; scores are None where the numbers that they are shares of are not told."""

    label: LabelName
    f1: float | None
    precision: float | None
    recall: float | None
    support: Count | None
    num_predicted: Count | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """Rows by gold label, columns by predicted label."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True, slots=True)
class CalibrationView:
    """Of the probability of one label."""

    label: LabelName
    num_rows: Count
    num_positive: Count
    auroc: float | None
    auprc: float | None
    brier: float
    ece: float
    sensitivities: list[tuple[str, float | None]]
    svg: Markup | None
    bins: list[tuple[float, Cell, tuple[float, float] | None]]
    """Mean probability, rows, lowest and highest share of positive rows."""


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """This side's F1 less the other's."""

    level: str
    difference: Score
    p_bootstrap: float | None
    p_bootstrap_holm: float | None
    only_this: Count | None
    only_other: Count | None
    p_mcnemar: float | None
    """None where it would tell a number that is hidden."""
    p_mcnemar_holm: float | None


@dataclass(frozen=True, slots=True)
class EvaluationView:
    """One metrics.json."""

    name: str
    side: int | None
    """Number of the side on the page that it is of; None: of other predictions."""
    n: Count
    gold: str | None
    """The run whose labels are held to be right; None: people's."""
    denominators: list[tuple[str, Cell]]
    rows: list[ScoreRow]
    levels: list[tuple[str, list[LabelScores]]]
    confusion: Confusion | None
    calibration: list[CalibrationView]
    comparison: tuple[str, list[ComparisonRow]] | None
    """Name of the other side, and the levels."""
    over_runs: list[tuple[str, str, int, float, float]]
    """Level, score, number of runs, mean, standard deviation."""
    explanation_length: float | None = None
    """Median, in characters."""
    quotes_not_in_post: Score | None = None
    """Share of what explanations quote that the post does not have."""
    hierarchical: list[Score] = field(default_factory=list)
    """F1, precision, recall."""
    is_whole_run: bool = False
    """Whether all posts of the run are evaluated."""
    is_partly_hidden: bool = False
    is_too_small: bool = False
    """Whether so few posts are evaluated that nothing is told."""
    leaves_few: bool = False
    """Whether so few posts of the run are not evaluated that their number is not told."""
    provenance: Mapping[str, Any] = field(default_factory=dict)


def evaluation_view(
    metrics: Mapping[str, Any],
    task: LabelSet,
    sides: Sequence[Side],
    runs: Sequence[Told | None],
    rules: Disclosure,
) -> EvaluationView:
    """`metrics`: what metrics.json holds. `runs`: what the page tells of the task on each side."""
    of = metrics["provenance"]["predictions"]
    number = next((at for at, side in enumerate(sides) if _is_of(of, side)), None)
    told = ToldEvaluation(metrics, task, runs[number] if number is not None else None, rules)
    names = {label.slug: label for label in task.labels}
    levels = levels_of(metrics)
    explained = metrics.get("explanations") or {}
    is_explained = explained.get("num_explained", 0) >= rules.limit
    shown = {name: told.scores_of(level) for name, level in levels.items()}
    return EvaluationView(
        name=sides[number].name if number is not None else _named(of),
        side=number,
        n=told.n,
        gold=_gold(metrics),
        denominators=list(_denominators(told)),
        rows=list(_score_rows(told)),
        levels=[(name, _per_label(level, told, names)) for name, level in levels.items()],
        confusion=_confusion(told),
        calibration=[
            calibration_view(names[slug], each, told)
            for slug, each in metrics.get("calibration", {}).items()
            if each["num_rows"] >= rules.limit and told.has_scores(slug)
        ],
        comparison=_comparison(told, sides),
        over_runs=[
            (level, score, len(each["values"]), each["mean"], each["standard_deviation"])
            for level, scores in metrics.get("over_runs", {}).items()
            for score, each in scores.items()
            if score in shown.get(level, ())
        ],
        explanation_length=explained["num_characters"]["p50"] if is_explained else None,
        quotes_not_in_post=_quotes(explained, rules),
        hierarchical=[Score(metrics["hierarchical"][name]) for name in ("f1", "precision", "recall")]
        if "hierarchical" in metrics and all("precision" in scores for scores in shown.values())
        else [],
        is_whole_run=told.is_whole,
        is_too_small=not told.is_enough,
        is_partly_hidden=told.is_enough and not told.is_open,
        leaves_few=told.run is not None and told.is_enough and not told.n.is_exact,
        provenance=metrics["provenance"],
    )


def _gold(metrics: Mapping[str, Any]) -> str | None:
    """The run whose labels are held to be right; None: labels that people gave."""
    run = metrics["provenance"]["gold"].get("run")
    return str(run["run_id"] or run["uri"]) if run else None


def _quotes(explained: Mapping[str, Any], rules: Disclosure) -> Score | None:
    quotes = explained.get("quotes")
    if not quotes or quotes["num_with_quote"] < rules.limit:
        return None
    return Score(quotes["share_not_in_post"], *(quotes["ci95"] or (None, None)))


def _is_of(predictions: Mapping[str, Any], side: Side) -> bool:
    return bool(predictions["run_id"] == side.run.manifest["run_id"] and predictions["adapter"] == side.adapter)


def _named(predictions: Mapping[str, Any]) -> str:
    name = str(predictions["run_id"] or predictions["uri"])
    return f"{name}, {predictions['adapter']}" if predictions["adapter"] else name


def _denominators(told: ToldEvaluation) -> Iterator[tuple[str, Cell]]:
    words = {
        FREE_FORM: "read, but not in the task's own form",
        NONE: "read as: no label applies",
        OUT_OF_SET: "name a label that the task does not have",
        TRAINED_ON: "posts whose text was trained on",
    }
    n = told.metrics["n"]
    for name, count in told.statuses.items():
        yield "answers that could be read" if name == OK else f"status {name}", Cell(count, n)
    for name, count in told.others.items():
        yield words[name], Cell(count, n)


def _score_rows(told: ToldEvaluation) -> Iterator[ScoreRow]:
    headline = told.metrics["headline"]["level"]
    for name, level in levels_of(told.metrics).items():
        prefix = "" if name == "label" else f"{name}: "
        shown = told.scores_of(level)
        yield ScoreRow(prefix + level["average"], name == headline, _scores(level, shown))
        if level["strict"] and told.is_open:
            yield ScoreRow(f"{prefix}{level['average']}, strict form", False, _scores(level["strict"], SCORES))
        for how in ("micro", "macro", "weighted"):
            if how in level and how != level["average"] and told.is_open:
                yield ScoreRow(prefix + how, False, _scores(level[how], SCORES))
    rest = told.metrics.get("without_training_texts", {})
    if rest.get("n", 0) >= told.rules.limit and told.others.get(TRAINED_ON, told.rules.hidden).is_exact:
        for name, level in levels_of(rest).items():
            words = f"{'' if name == 'label' else f'{name}: '}{level['average']}, without posts that were trained on"
            # With precision and recall, too, it would tell of the posts that were trained on.
            yield ScoreRow(words, False, _scores(level, told.scores_of(levels_of(told.metrics)[name])[:1]))


def _scores(level: Mapping[str, Any], shown: Container[str]) -> list[Score]:
    """As in SCORES."""
    ends = level.get("ci95") or {}
    return [Score(level.get(key), *ends.get(key, (None, None))) if key in shown else Score(None) for key in SCORES]


def _per_label(level: Mapping[str, Any], told: ToldEvaluation, names: Mapping[str, LabelName]) -> list[LabelScores]:
    rows = []
    for slug, each in level["per_label"].items():
        scores = {key: each[key] if told.has_scores(slug) else None for key in ("f1", "precision", "recall")}
        rows.append(LabelScores(names[slug], **scores, support=told.gold.get(slug), num_predicted=told.said.get(slug)))
    return rows


def _confusion(told: ToldEvaluation) -> Confusion | None:
    """Each row is taken apart by itself: a column's sum is told as it is. Failures of a row are told where there are
    none, or many."""
    table = told.metrics.get("confusion", {})
    failed = [row["no_result"] for row in table.values()]
    if not table or not all(map(told.has_scores, table)) or any(0 < number < told.rules.limit for number in failed):
        return None
    columns = [*table, *(["no_result"] if any(failed) else [])]
    rows = []
    for slug, row in table.items():
        cells = told.rules.partition({name: row[name] for name in columns})
        if cells is None:
            return None
        rows.append((slug, [Cell(cells[name], sum(row.values())) for name in columns]))
    return Confusion(columns, rows)


def calibration_view(label: LabelName, each: Mapping[str, Any], told: ToldEvaluation) -> CalibrationView:
    """Rows and positive rows are each one sum over the bins. Bins over one half are, or nearly are, those that were
    given the label, so each half is a sum as well."""
    rules, wholes = told.rules, [(told.metrics["n"], told.n)]
    if OK in told.statuses:
        wholes.append((told.metrics["num_parsed"], told.statuses[OK]))
    support = told.gold[label.slug]
    bins = [one for one in each["bins"] if one]
    rows = [one["num_rows"] for one in bins]
    positives = [round(one["share_positive"] * one["num_rows"]) for one in bins]
    num_rows = rules.all_or_part(each["num_rows"], wholes)
    is_support = num_rows == told.n and support == exact(each["num_positive"])
    num_positive = rules.part(each["num_positive"], num_rows, *([] if is_support else [support]))
    of_rows = _of_rows(rows, [one["mean_probability"] >= 0.5 for one in bins], num_rows, told.said[label.slug], rules)
    of_bins = rules.by_bin(positives, [[count] for count in of_rows], num_positive) if of_rows else None
    shown, points = [], []
    for at, one in enumerate(bins):
        if of_rows is None or one["num_rows"] < rules.limit:
            continue
        ends = _ends(of_bins[at], of_rows[at]) if of_bins else None
        shown.append((one["mean_probability"], Cell(of_rows[at], each["num_rows"]), ends))
        if ends is not None:
            weight = (of_rows[at].low + of_rows[at].high) / (num_rows.low + num_rows.high)
            points.append((one["mean_probability"], *ends, weight))
    words = "share of positive rows by mean probability, in tenths; the numbers are in the table below the chart"
    at_precision = each["sensitivity_at_precision"] if num_positive.is_exact else {}
    return CalibrationView(
        label,
        num_rows,
        num_positive,
        each["auroc"],
        each["auprc"],
        each["brier"],
        each["ece"],
        [(at, found["recall"] if found else None) for at, found in at_precision.items()],
        charts.reliability(points, words) if points else None,
        shown,
    )


def _of_rows(
    rows: Sequence[int], is_over: Sequence[bool], num_rows: Count, said: Count, rules: Disclosure
) -> list[Count] | None:
    """What is told of the rows of each bin. None where there are too few."""
    if sum(rows) < rules.limit * len(rows):
        return None
    halves = [{at: number for at, number in enumerate(rows) if is_over[at] is half} for half in (True, False)]
    over = sum(halves[0].values())
    told_over = told_under = num_rows
    if all(halves):
        told_over = rules.part(over, num_rows, beside=[] if said == exact(over) else [said])
        told_under = Count(max(0, num_rows.low - told_over.high), num_rows.high - told_over.low)
    found: dict[int, Count] = {}
    for half, told in zip(halves, (told_over, told_under), strict=True):
        found |= rules.parts(half, (sum(half.values()), told)) if half else {}
    return [found[at] for at in range(len(rows))]


def _ends(part: Count, whole: Count) -> tuple[float, float]:
    """Least and most that the one may be of the other."""
    return part.low / whole.high, min(1.0, part.high / whole.low) if whole.low else 1.0


def _comparison(told: ToldEvaluation, sides: Sequence[Side]) -> tuple[str, list[ComparisonRow]] | None:
    """Numbers of posts only where nothing is hidden: with the other side's accuracy they give this one's."""
    comparison = told.metrics.get("comparison")
    levels = levels_of(told.metrics)
    if comparison is None or not told.is_enough:
        return None
    of = comparison["against"]
    name = next((side.name for side in sides if _is_of(of, side)), None) or _named(of)
    rows = []
    for level, each in comparison["levels"].items():
        if "f1" not in told.scores_of(levels[level]):
            continue
        only_this, only_other = (told.rules.alone(each[key]) for key in ("num_only_this", "num_only_other"))
        # The test is of these two numbers alone.
        tells = only_this.is_exact and only_other.is_exact and told.is_open
        rows.append(
            ComparisonRow(
                level,
                Score(each["difference"], *(each["ci95"] or (None, None))),
                each["p_bootstrap"],
                each["p_bootstrap_holm"],
                only_this if told.is_open else None,
                only_other if told.is_open else None,
                each["p_mcnemar"] if tells else None,
                each["p_mcnemar_holm"] if tells else None,
            )
        )
    return (name, rows) if rows else None


def label_set_of(metrics: Mapping[str, Any], known: Sequence[LabelSet]) -> LabelSet:
    """Of an evaluation's task: the one on the page or the built-in one, if it has these labels; else what the labels
    say of themselves."""
    slugs = [slug for level in levels_of(metrics).values() for slug in level["per_label"]]
    builtin = [LabelSet.of(load_task(name)) for name in builtin_tasks() if name == metrics["task"]]
    for task in (*known, *builtin):
        if task.name == metrics["task"] and set(task.slugs) == set(slugs):
            return task
    names = tuple(LabelName(slug, slug, "", None) for slug in slugs)
    kind = ("binary" if len(slugs) == 2 else "multiclass") if "confusion" in metrics else "multilabel"
    return LabelSet(metrics["task"], "", kind, names)
