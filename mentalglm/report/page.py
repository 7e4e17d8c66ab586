"""The page: what is shown of everything, and how numbers and names are written."""

import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jinja2
from markupsafe import Markup, escape

from mentalglm.manifest import INTENDED_USE, number, prediction_rows, shown_name
from mentalglm.report import charts
from mentalglm.report.agreement import Agreement
from mentalglm.report.disclosure import Count, Disclosure
from mentalglm.report.evaluated import SCORE_NAMES, EvaluationView
from mentalglm.report.over_time import PostLine
from mentalglm.report.scan import Counts
from mentalglm.report.scored import TaskView
from mentalglm.report.sources import Run, Side, Stage
from mentalglm.report.told import Cell

# What an engine's time went into, in the order of a run, and what that means.
ENGINE_TIME = {
    "busy": "answering",
    "cold_start": "starting up and loading the model",
    "ramp": "first rows coming in",
    "starved": "waiting for rows",
    "recovery": "recovering from a dead engine",
    "tail": "waiting for the last rows of others",
    "finish": "writing after the last row",
}


@dataclass(frozen=True, slots=True)
class TimeShare:
    """What engines' time went into."""

    name: str
    meaning: str
    seconds: float
    share: float


@dataclass(frozen=True, slots=True)
class RunView:
    """What was run, and what it took."""

    run: Run
    num_posts: Count
    num_unreadable: Count | None
    num_copied: Count | None
    engine_time: list[TimeShare]
    estimate: list[tuple[str, str, str, str, str]]
    settings: list[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class StageView:
    """A train stage."""

    stage: Stage
    loss: Markup | None
    validations: Markup | None
    tells_scores: bool
    """Whether they are of enough validation records."""
    score_names: list[str]
    data: list[tuple[str, Count]]
    settings: list[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class EvaluatedTask:
    """Evaluations of one task."""

    name: str
    views: list[EvaluationView]


@dataclass(frozen=True, slots=True)
class Examples:
    """Posts of one side and task, for eyes that may read them."""

    side: str
    task: str
    posts: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that is on a page."""

    title: str
    sides: Sequence[Side]
    runs: list[RunView]
    posts: PostLine | None
    tasks: list[TaskView]
    evaluations: list[EvaluatedTask]
    agreements: list[tuple[str, list[Agreement]]]
    stages: list[StageView]
    examples: list[Examples]
    rules: Disclosure
    date_columns: list[tuple[str, str]]
    """Name of a run, and of its column of days."""
    versions: Mapping[str, str]


def render(page: Page) -> str:
    """As one HTML document that needs nothing else."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mentalglm.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "told": told,
        "percent": percent,
        "share": share,
        "score": score,
        "plain": plain,
        "words": shown_name,
        "duration": duration,
        "figure": number,
        "p": p_value,
        "when": when,
    }
    style = (importlib.resources.files("mentalglm.report") / "templates" / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        page=page,
        style=Markup(style),  # noqa: S704 - ours
        intended_use=INTENDED_USE,
        score_names=SCORE_NAMES,
        made_at=datetime.now(UTC).isoformat(timespec="minutes"),
    )


# What is shown of the sources


def run_view(run: Run, rules: Disclosure) -> RunView:
    """`run` as its manifest tells of it."""
    output, throughput = run.manifest["output"], run.manifest.get("throughput") or {}
    engine_s = throughput.get("engine_s", {})
    total = sum(engine_s.values()) or 1.0
    num_predictions = sum(sum(counts.values()) for counts in output["statuses"].values())
    names = [*(name for name in ENGINE_TIME if name in engine_s), *(engine_s.keys() - ENGINE_TIME.keys())]
    return RunView(
        run=run,
        num_posts=rules.alone(run.num_posts),
        num_unreadable=rules.alone(output["num_unreadable_rows"]) if output["num_unreadable_rows"] else None,
        # A post is copied with its answer to each question.
        num_copied=rules.part(round(output["num_copied"] * run.num_posts / num_predictions), run.num_posts)
        if output["num_copied"]
        else None,
        engine_time=[
            TimeShare(name, ENGINE_TIME.get(name, ""), engine_s[name], engine_s[name] / total) for name in names
        ],
        estimate=prediction_rows(run.manifest["estimate"]["figures"]) if run.manifest.get("estimate") else [],
        settings=list(flattened(run.config if run.config is not None else run.manifest["fingerprint"])),
    )


def stage_view(stage: Stage, rules: Disclosure) -> StageView:
    """Curves and settings of a stage."""
    record = stage.record
    # Scores of a few records are of single posts.
    is_told = record["data"].get("num_validated_records", 0) >= rules.limit
    scored = [each for each in record["validations"] if each["error"] is None and is_told]
    names = list(dict.fromkeys(name for each in scored for name in each["scores"] if name != "score"))
    steps = [(float(each["step"]), float(each["loss"])) for each in stage.steps if "loss" in each]
    curves = [
        [(float(each["step"]), float(each["scores"][name])) for each in scored if name in each["scores"]]
        for name in names
    ]
    marks, last = [float(record["best_step"])], float(record["num_steps"])
    loss = validations = None
    if steps:
        words = f"training loss by step, from {steps[0][1]:.3g} to {steps[-1][1]:.3g}"
        loss = charts.lines([steps], words, x="step", is_log=_spans_decades(steps), x_max=last, marks=marks)
    if any(curves):
        words = "F1 on the validation records by step; the numbers are in the table below the chart"
        validations = charts.lines(curves, words, x="step", is_share=True, x_max=last, marks=marks)
    # The numbers of records are among the data, as they may be told.
    settings = {name: value for name, value in record["fingerprint"].items() if name != "tasks"}
    shown = [(name, value) for name, value in flattened(settings) if not name.endswith(".num_records")]
    return StageView(stage, loss, validations, is_told, names, list(_told_data(record["data"], rules)), shown)


def _told_data(data: Mapping[str, int], rules: Disclosure) -> Iterator[tuple[str, Count]]:
    """Some are parts of the validation records."""
    whole = data.get("num_validation_records", 0)
    for name, n in data.items():
        if name in ("num_validated_records", "num_validation_texts_in_train") and whole and n:
            yield name, rules.all_or_part(n, [(whole, rules.alone(whole))])
        elif n:
            yield name, rules.alone(n)


def _spans_decades(points: Sequence[tuple[float, float]]) -> bool:
    values = [value for _, value in points]
    return min(values) > 0 and max(values) > 30 * min(values)


def flattened(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """`a.b` -> value, of nested settings that are set."""
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            found += flattened(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            found.append((f"{prefix}{key}", value))
    return found


def examples_of(side: Side, task: str, counts: Counts) -> Examples | None:
    """Those that were drawn."""
    return Examples(side.name, task, counts.examples) if counts.examples else None


# How numbers are written


def told(count: Count | None, rules_limit: int) -> Markup:
    """A count as it is told: exact, under the limit, a range, or withheld."""
    if count is None:
        return Markup('<span class="withheld" title="withheld">·</span>')
    if count.is_exact:
        return Markup(f"{count.low:,}")  # noqa: S704
    if count == (0, rules_limit - 1):
        return Markup(f'<span class="withheld">&lt;&thinsp;{rules_limit}</span>')  # noqa: S704
    return Markup(f'<span class="range">{count.low:,}&hairsp;–&hairsp;{count.high:,}</span>')  # noqa: S704


def share(cell: Cell | None, digits: int = 1) -> Markup:
    """A cell's share of its total, in per cent."""
    if cell is None or cell.count is None or not cell.total:
        return Markup('<span class="withheld" title="withheld">·</span>')
    if cell.count.is_exact:
        return Markup(f"{100 * cell.low:.{digits}f}&thinsp;%")  # noqa: S704
    if cell.count.low == 0:
        return Markup(f'<span class="withheld">≤&thinsp;{100 * cell.high:.{digits}f}&thinsp;%</span>')  # noqa: S704
    ends = f"{100 * cell.low:.{digits}f}&hairsp;–&hairsp;{min(100.0, 100 * cell.high):.{digits}f}"
    return Markup(f'<span class="range">{ends}&thinsp;%</span>')  # noqa: S704


def percent(value: float | None, digits: int = 1) -> Markup:
    """A share from 0 to 1."""
    return Markup("–") if value is None else Markup(f"{100 * value:.{digits}f}&thinsp;%")  # noqa: S704


def score(value: float | None, digits: int = 1) -> str:
    """A score from 0 to 1 in per cent, without the sign, as tables of papers have it."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def p_value(value: float | None) -> str:
    """Three digits."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def plain(value: Any) -> Markup:
    """A setting, as YAML would have it, on one line."""
    if isinstance(value, bool):
        return Markup("true") if value else Markup("false")
    if isinstance(value, list):
        return Markup(", ").join(plain(each) for each in value)
    return escape(f"{value:g}" if isinstance(value, float) else str(value))


def when(value: Any) -> str:
    """A moment as manifests write it, to the minute."""
    text = str(value)
    return f"{text[:10]} {text[11:16]} UTC" if text[10:11] == "T" and text.endswith("+00:00") else text


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600):,} h {int(seconds % 3600 // 60)} min"
