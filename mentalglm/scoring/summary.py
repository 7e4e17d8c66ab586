"""What a person reads when a score run, or a dry run, is over."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mentalglm.config import ScoreConfig
from mentalglm.corpus import CorpusPlan
from mentalglm.scoring.pipeline import RunSummary
from mentalglm.scoring.progress import duration
from mentalglm.scoring.questions import Question


def print_summary(summary: RunSummary, console: Console | None = None) -> None:
    """Where the Parquet is, what it took, and a table of statuses, explanations and labels by task."""
    console = console or Console()
    totals = summary.totals
    table = Table(title=None, header_style="bold")
    for name in ("task", "rows", "ok", "explained", "not ok", "labels"):
        table.add_column(name, justify="right" if name in ("rows", "ok", "explained") else "left")
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
    took = "complete already" if summary.already_complete else f"in {duration(summary.seconds)}"
    tokens = f"{totals.num_prompt_tokens} prompt and {totals.num_output_tokens} output tokens"
    console.print(
        f"{totals.num_predictions} predictions {took}, {tokens}: {summary.uri}/data/**/*.parquet", soft_wrap=True
    )


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
