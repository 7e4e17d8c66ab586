"""Evaluations as a page shows them: scores with intervals, labels, confusion, calibration, comparisons.

Scores are given in per cent with one digit: `metrics.json` has them all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from mentalglm.evaluation.evaluate import FREE_FORM, OUT_OF_SET
from mentalglm.evaluation.table import levels_of
from mentalglm.report import charts
from mentalglm.report.disclosure import Count, Disclosure, Known, exact
from mentalglm.report.scan import Counts
from mentalglm.report.sources import LabelName, LabelSet, Side
from mentalglm.report.told import NONE, STATUS, Cell

_PARSED = "answers that could be read"
SCORES = {"f1": "F1", "precision": "Precision", "recall": "Recall", "accuracy": "Accuracy"}


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
    """Of one label; scores are None where they are shares of fewer posts than may be told."""

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
    leaves_few: bool = False
    """Whether so few posts of the run are not evaluated that what would tell their answers is left out."""
    provenance: Mapping[str, Any] = field(default_factory=dict)


def evaluation_view(
    metrics: Mapping[str, Any],
    task: LabelSet,
    sides: Sequence[Side],
    scored: Sequence[Counts | None],
    rules: Disclosure,
) -> EvaluationView:
    """`metrics`: what metrics.json holds. `scored`: the counts of each side, which are on the page as well: the posts
    without a gold label are what these have more."""
    of = metrics["provenance"]["predictions"]
    number = next((at for at, side in enumerate(sides) if _is_of(of, side)), None)
    names = {label.slug: label for label in task.labels}
    counts = scored[number] if number is not None else None
    n = rules.alone(metrics["n"])
    if counts is not None:
        n = rules.all_or_part(metrics["n"], [(counts.num_rows, exact(counts.num_rows))])
    explained = metrics.get("explanations") or {}
    is_explained = explained.get("num_explained", 0) >= rules.limit
    few = _left_few(metrics, task, counts, n, rules)
    # The answers to the other labels, the scores and the bins of probabilities tell what is left out of one.
    leaves_few = bool(few)
    parts = None if leaves_few else _parsed_and_failed(metrics, n, rules)
    parsed = [(metrics["num_parsed"], parts[_PARSED])] if parts else []
    levels = [(name, _per_label(level, metrics, names, few, n, rules)) for name, level in levels_of(metrics).items()]
    supports = {row.label.slug: row.support for _, rows in levels for row in rows}
    return EvaluationView(
        name=sides[number].name if number is not None else _named(of),
        side=number,
        n=n,
        denominators=[] if leaves_few else list(_denominators(metrics, parts, n, rules)),
        rows=_f1_alone(_score_rows(metrics, rules)) if leaves_few else list(_score_rows(metrics, rules)),
        levels=levels,
        confusion=None if leaves_few else _confusion(metrics, rules),
        calibration=[
            calibration_view(
                names.get(slug) or LabelName(slug, slug, "", None),
                each,
                supports.get(slug),
                [(metrics["n"], n), *parsed],
                rules,
            )
            for slug, each in metrics.get("calibration", {}).items()
            if each["num_rows"] >= rules.limit and not leaves_few
        ],
        comparison=_comparison(metrics, sides, leaves_few, rules),
        over_runs=[
            (level, score, len(each["values"]), each["mean"], each["standard_deviation"])
            for level, scores in metrics.get("over_runs", {}).items()
            for score, each in scores.items()
            if metrics["n"] >= rules.limit and (score == "f1" or not leaves_few)
        ],
        explanation_length=explained["num_characters"]["p50"] if is_explained else None,
        quotes_not_in_post=_quotes(explained, rules),
        hierarchical=[Score(metrics["hierarchical"][name]) for name in ("f1", "precision", "recall")]
        if "hierarchical" in metrics and metrics["n"] >= rules.limit and not leaves_few
        else [],
        leaves_few=leaves_few,
        provenance=metrics["provenance"],
    )


def _left_few(
    metrics: Mapping[str, Any], task: LabelSet, counts: Counts | None, n: Count, rules: Disclosure
) -> set[str]:
    """Labels, statuses and flags of which the run, whose counts are on the page, has a few posts more than are
    evaluated: with the number that is evaluated they would be told."""
    if counts is None:
        return set()
    here = {
        slug: each["num_predicted"]
        for level in levels_of(metrics).values()
        for slug, each in level["per_label"].items()
    }
    here |= {STATUS + name: number for name, number in metrics["num_failed_by_status"].items()}
    here |= {f"{STATUS}ok": metrics["num_parsed"], NONE: metrics["num_without_label"]}
    here |= {FREE_FORM: metrics["num_free_form"] or 0, OUT_OF_SET: metrics["num_with_out_of_set_label"]}
    there = dict(zip(task.slugs, counts.labels.tolist(), strict=True))
    there |= {STATUS + name: number for name, number in counts.statuses.items()} | {NONE: counts.num_none}
    there |= {flag: counts.flags.get(flag, 0) for flag in (FREE_FORM, OUT_OF_SET)}
    shown = {name: number for name, number in there.items() if number >= rules.limit}
    found = {name for name, number in shown.items() if 0 < number - here.get(name, 0) < rules.limit}
    return found if n.is_exact else found | {f"{STATUS}ok"}


def _f1_alone(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
    """Of the headline: with precision, recall or accuracy it would tell how many rows were given the label."""
    nothing = [Score(None)] * (len(SCORES) - 1)
    return [ScoreRow(row.name, True, [row.scores[0], *nothing]) for row in rows if row.is_headline]


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


def _parsed_and_failed(metrics: Mapping[str, Any], told: Count, rules: Disclosure) -> dict[str, Count] | None:
    """What is told of the parts of n, of which `told` is."""
    failed = {f"status {name}": number for name, number in metrics["num_failed_by_status"].items() if number}
    return rules.partition({_PARSED: metrics["num_parsed"], **failed}, told=told)


def _denominators(
    metrics: Mapping[str, Any], parts: Mapping[str, Count] | None, told: Count, rules: Disclosure
) -> Iterator[tuple[str, Cell]]:
    """`told`: of n."""
    n = metrics["n"]
    for name, count in (parts or {}).items():
        yield name, Cell(count, n)
    if n < 2 * rules.limit:
        return
    others = {
        "read, but not in the task's own form": metrics["num_free_form"],
        "read as: no label applies": metrics["num_without_label"],
        "name a label that the task does not have": metrics["num_with_out_of_set_label"],
        "posts whose text was trained on": metrics.get("without_training_texts", {}).get("num_in_training"),
    }
    for name, number in others.items():
        if number:
            parsed = [parts[_PARSED]] if parts and "trained" not in name else []
            yield name, Cell(rules.part(number, told, *parsed), n)


def _score_rows(metrics: Mapping[str, Any], rules: Disclosure) -> Iterator[ScoreRow]:
    if metrics["n"] < rules.limit:
        return
    headline = metrics["headline"]["level"]
    for name, level in levels_of(metrics).items():
        prefix = "" if name == "label" else f"{name}: "
        yield ScoreRow(prefix + level["average"], name == headline, [_score(level, key) for key in SCORES])
        if level["strict"]:
            strict = [Score(level["strict"].get(key)) for key in SCORES]
            yield ScoreRow(f"{prefix}{level['average']}, strict form", False, strict)
        for how in ("micro", "macro", "weighted"):
            if how in level and how != level["average"]:
                yield ScoreRow(prefix + how, False, [Score(level[how].get(key)) for key in SCORES])
    rest = metrics.get("without_training_texts", {})
    if rest.get("n", 0) >= rules.limit:
        for name, level in levels_of(rest).items():
            words = f"{'' if name == 'label' else f'{name}: '}{level['average']}, without posts that were trained on"
            yield ScoreRow(words, False, [_score(level, key) for key in SCORES])


def _score(level: Mapping[str, Any], key: str) -> Score:
    low, high = (level["ci95"] or {}).get(key, (None, None))
    return Score(level[key], low, high)


def _per_label(
    level: Mapping[str, Any],
    metrics: Mapping[str, Any],
    names: Mapping[str, LabelName],
    few: set[str],
    told_n: Count,
    rules: Disclosure,
) -> list[LabelScores]:
    """`few`: see `_left_few`. With the number of posts that have a label, its scores tell how many were given it."""
    found = level["per_label"]
    supports, predicted = ({slug: each[key] for slug, each in found.items()} for key in ("support", "num_predicted"))
    if "confusion" in metrics:  # one label a row: the rows, and with failures the answers, are taken apart by label
        told = rules.partition(supports, told=told_n) or {}
        told_predicted = {} if few else _columns(metrics, rules)
    else:
        told = rules.overlapping(supports, metrics["n"], told_n) or {}
        told_predicted = rules.overlapping(predicted, metrics["n"], told_n) or {}
        told_predicted = {slug: count for slug, count in told_predicted.items() if slug not in few}
    rows = []
    for slug, each in found.items():
        is_enough = min(supports[slug], predicted[slug]) >= rules.limit and slug in told and slug in told_predicted
        scores = {key: each[key] if is_enough else None for key in ("f1", "precision", "recall")}
        label = names.get(slug) or LabelName(slug, slug, "", None)
        rows.append(LabelScores(label, **scores, support=told.get(slug), num_predicted=told_predicted.get(slug)))
    return rows


def _told_confusion(metrics: Mapping[str, Any], rules: Disclosure) -> dict[str, dict[str, Count]] | None:
    """Each row is taken apart by itself; a column's sum is told as what its cells leave it."""
    table = metrics["confusion"]
    if rules.partition({slug: sum(row.values()) for slug, row in table.items()}) is None:
        return None
    supports = {slug: sum(row.values()) for slug, row in table.items()}
    if any(number < rules.limit for number in supports.values()):
        return None
    has_failures = any(row["no_result"] for row in table.values())
    found = {}
    for slug, row in table.items():
        cells = {name: number for name, number in row.items() if name != "no_result" or has_failures}
        told = rules.partition(cells)
        if told is None:
            return None
        found[slug] = told
    return found


def _columns(metrics: Mapping[str, Any], rules: Disclosure) -> dict[str, Count]:
    told = _told_confusion(metrics, rules)
    if told is None:
        return {}
    return {
        slug: Count(sum(row[slug].low for row in told.values()), sum(row[slug].high for row in told.values()))
        for slug in metrics["confusion"]
    }


def _confusion(metrics: Mapping[str, Any], rules: Disclosure) -> Confusion | None:
    if "confusion" not in metrics or (told := _told_confusion(metrics, rules)) is None:
        return None
    columns = list(next(iter(told.values())))
    rows = []
    for slug, row in told.items():
        total = sum(metrics["confusion"][slug].values())
        rows.append((slug, [Cell(row[name], total) for name in columns]))
    return Confusion(columns, rows)


def calibration_view(
    label: LabelName, each: Mapping[str, Any], support: Count | None, wholes: Sequence[Known], rules: Disclosure
) -> CalibrationView:
    """Rows and positive rows are each one sum over the bins. `support`: told of all rows of the label; `wholes`: all
    rows, and those that could be read if they are told."""
    n = wholes[0][1]
    bins = [one for one in each["bins"] if one]
    rows = [one["num_rows"] for one in bins]
    positives = [round(one["share_positive"] * one["num_rows"]) for one in bins]
    num_rows = rules.all_or_part(each["num_rows"], wholes)
    is_support = num_rows == n and support is not None and support == exact(each["num_positive"])
    num_positive = rules.part(each["num_positive"], num_rows, *([support] if support and not is_support else []))
    told = rules.partition(dict(enumerate(rows)), told=num_rows)
    of_bins = rules.by_bin(positives, [[told[at]] for at in range(len(bins))], num_positive) if told else None
    shown, points = [], []
    for at, one in enumerate(bins):
        if told is None or one["num_rows"] < rules.limit:
            continue
        ends = _ends(of_bins[at], told[at]) if of_bins else None
        shown.append((one["mean_probability"], Cell(told[at], each["num_rows"]), ends))
        if ends is not None:
            weight = (told[at].low + told[at].high) / (num_rows.low + num_rows.high)
            points.append((one["mean_probability"], *ends, weight))
    words = "share of positive rows by mean probability, in tenths; the numbers are in the table below the chart"
    return CalibrationView(
        label,
        num_rows,
        num_positive,
        each["auroc"],
        each["auprc"],
        each["brier"],
        each["ece"],
        [(at, found["recall"] if found else None) for at, found in each["sensitivity_at_precision"].items()],
        charts.reliability(points, words) if points else None,
        shown,
    )


def _ends(part: Count, whole: Count) -> tuple[float, float]:
    """Least and most that the one may be of the other."""
    return part.low / whole.high, min(1.0, part.high / whole.low) if whole.low else 1.0


def _comparison(
    metrics: Mapping[str, Any], sides: Sequence[Side], leaves_few: bool, rules: Disclosure
) -> tuple[str, list[ComparisonRow]] | None:
    """Without the numbers of rows where `leaves_few`: with the other side's accuracy they give this one's."""
    comparison = metrics.get("comparison")
    if comparison is None or metrics["n"] < rules.limit:
        return None
    of = comparison["against"]
    name = next((side.name for side in sides if _is_of(of, side)), None) or _named(of)
    rows = []
    for level, each in comparison["levels"].items():
        only_this, only_other = rules.alone(each["num_only_this"]), rules.alone(each["num_only_other"])
        # The test is of these two numbers alone.
        tells = only_this.is_exact and only_other.is_exact and not leaves_few
        rows.append(
            ComparisonRow(
                level,
                Score(each["difference"], *(each["ci95"] or (None, None))),
                each["p_bootstrap"],
                each["p_bootstrap_holm"],
                None if leaves_few else only_this,
                None if leaves_few else only_other,
                each["p_mcnemar"] if tells else None,
                each["p_mcnemar_holm"] if tells else None,
            )
        )
    return name, rows


def label_set_of(metrics: Mapping[str, Any], known: Sequence[LabelSet]) -> LabelSet:
    """Of an evaluation's task: the one on the page, or what its own labels say."""
    for task in known:
        if task.name == metrics["task"]:
            return task
    slugs = [slug for level in levels_of(metrics).values() for slug in level["per_label"]]
    names = tuple(LabelName(slug, slug, "", None) for slug in slugs)
    return LabelSet(metrics["task"], "", "binary" if "confusion" in metrics else "multilabel", names)
