"""What a person reads when a score run, a dry run or an estimate is over."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mentalglm.config import ScoreConfig
from mentalglm.corpus import CorpusPlan
from mentalglm.manifest import number, prediction_rows, shown_name
from mentalglm.scoring.forecast.estimate import Estimate
from mentalglm.scoring.pipeline import RunSummary
from mentalglm.scoring.progress import duration
from mentalglm.scoring.questions import Question


def print_summary(summary: RunSummary, console: Console | None = None) -> None:
    """Where the Parquet is, what it took, and a table of statuses, explanations and labels by task."""
    console = console or Console()
    totals = summary.totals
    table = Table(title=None, header_style="bold")
    for name in ("task", "rows", "ok", "explained", "not ok", "labels"):
        is_number = name in ("rows", "ok", "explained")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for task, statuses in totals.statuses.items():
        failed = {status: n for status, n in statuses.most_common() if status != "ok"}
        table.add_row(
            task,
            str(statuses.total()),
            f"{100 * statuses['ok'] / statuses.total():.1f} %" if statuses else "-",
            str(totals.explained[task]),
            ", ".join(f"{status} {n}" for status, n in failed.items()) or "-",
            ", ".join(f"{label} {n}" for label, n in totals.labels[task].most_common(5)) or "-",
        )
    console.print(table)
    if summary.num_unreadable_rows or summary.num_unreadable_files:
        console.print(
            f"unreadable: {summary.num_unreadable_files} files, {summary.num_unreadable_rows} rows; "
            "manifest.json has the reasons under input.quarantined",
            style="yellow",
        )
    if totals.num_copied:
        console.print(
            f"{totals.num_copied} predictions ({totals.num_copied / totals.num_predictions:.1%}) are those of another "
            "post with the same text (duplicate_of)"
        )
    if summary.num_new_files:
        console.print(
            f"{summary.num_new_files} files came into the input since this run began and are not in it; score them "
            "into another folder",
            style="yellow",
        )
    if summary.estimate is not None:
        table = Table("estimate", "predicted", "95 % interval", "actual", "error", header_style="bold")
        for cells in prediction_rows(summary.estimate.model_dump()["figures"]):
            table.add_row(*cells)
        console.print(table)
        for note in summary.estimate.notes:
            console.print(note, soft_wrap=True)
    if summary.throughput is not None:
        console.print(describe_throughput(summary.throughput), soft_wrap=True)
    took = "complete already" if summary.already_complete else f"in {duration(summary.seconds)}"
    tokens = f"{totals.num_prompt_tokens} prompt and {totals.num_output_tokens} output tokens"
    console.print(
        f"{totals.num_predictions} predictions {took}, {tokens}: {summary.uri}/data/**/*.parquet", soft_wrap=True
    )


def describe_throughput(report: Mapping[str, Any]) -> str:
    """One line: how fast, and how much of the engines' time was not spent on rows."""
    steady = report["rows_per_s_steady"]
    of_this = f"this attempt made {report['num_predictions']} predictions"
    parts = [
        of_this,
        f"{steady:.1f} predictions/s in the steady state" if steady else f"{report['rows_per_s']:.1f} predictions/s",
    ]
    if "slots_busy" in report:
        total = sum(report["engine_s"].values())
        lost = {name: s / total for name, s in report["engine_s"].items() if name != "busy" and s >= 0.005 * total}
        worst = sorted(lost.items(), key=lambda item: -item[1])
        told = f" ({', '.join(f'{name} {share:.0%}' for name, share in worst)})" if worst else ""
        parts.append(f"engines busy {report['slots_busy']:.0%} of the time{told}")
    if report.get("prefix_cache_hits", 0.0) >= 0.005:
        parts.append(f"{report['prefix_cache_hits']:.0%} of the prompts from the prefix cache")
    if report.get("wasted_tokens"):
        parts.append(f"{report['wasted_tokens']:.1%} of the output tokens in no result")
    if "mfu" in report:
        parts.append(f"MFU {report['mfu']:.0%}")
    return " · ".join(parts)


def print_estimate(estimate: Estimate, console: Console | None = None) -> None:
    """What a run will take, and what came of the sample."""
    console = console or Console()
    gpus = f" x {estimate.num_gpus:g} GPUs" if estimate.num_gpus else ""
    console.print(
        f"{estimate.num_rows} rows x {estimate.num_questions} predictions on {estimate.num_engines} engines{gpus}, "
        f"from a sample of {estimate.num_sampled_rows} rows in {estimate.num_sampled_shards} shards",
        soft_wrap=True,
    )
    figures = {
        **{
            name: getattr(estimate, name) for name in ("num_prompt_tokens", "num_output_tokens", "posts_per_s", "hours")
        },
        **({"gpu_hours": estimate.gpu_hours} if estimate.num_gpus else {}),
        **({f"cost at {estimate.price_per_gpu_hour:g} per GPU hour": estimate.cost} if estimate.cost else {}),
    }
    table = Table("the whole run", "predicted", "95 % interval", header_style="bold")
    for name, figure in figures.items():
        show = _clock if name == "hours" else number
        label = "time" if name == "hours" else shown_name(name)
        table.add_row(label, show(figure.value), f"{show(figure.low)} to {show(figure.high)}")
    console.print(table)
    table = Table("task", "status", "share", "95 % interval", header_style="bold")
    for task, statuses in estimate.statuses.items():
        for status, share in sorted(statuses.items(), key=lambda item: (item[0] != "ok", -item[1].value)):
            table.add_row(task, status, f"{share.value:.1%}", f"{share.low:.1%} to {share.high:.1%}")
    console.print(table)
    for note in estimate.notes:
        console.print(note, soft_wrap=True)
    console.print(f"time includes {duration(estimate.start_s)} until the first engine was there", soft_wrap=True)


def print_plan(
    config: ScoreConfig, plan: CorpusPlan, questions: Sequence[Question], console: Console | None = None
) -> None:
    """What a run would do."""
    console = console or Console()
    tasks = list(dict.fromkeys(question.task.name for question in questions))
    adapters = list(config.model.adapters)
    of_adapters = f" x {len(adapters)} adapters ({', '.join(adapters)})" if adapters else ""
    console.print(
        f"{plan.num_rows} rows in {len(plan.files)} files, {plan.num_shards} shards x {len(tasks)} tasks "
        f"({', '.join(tasks)}){of_adapters} = {plan.num_rows * len(questions)} predictions, "
        f"engine {config.engine.kind}, into {config.output.uri}",
        soft_wrap=True,
    )
    for each in plan.quarantined:
        console.print(f"unreadable: {each.describe()}", style="yellow", soft_wrap=True)
    console.print("what it will take, from a sample: mentalglm estimate, with the same arguments", soft_wrap=True)


def _clock(hours: float) -> str:
    return duration(hours * 3600)
