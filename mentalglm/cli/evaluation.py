"""Commands that hold what was scored against people and against the paper."""

import json
import sys
from typing import Annotated, Any

import typer

from mentalglm.cli.shared import ConfigArgument, JsonOption, SetOption, resumable
from mentalglm.config import EvalConfig, ReportConfig, ReviewConfig, TablesConfig, load_config, validate
from mentalglm.config.base import apply_override, is_config_path
from mentalglm.errors import ConfigError

_PANEL = "Evaluate and report"

commands = typer.Typer()


@commands.command(name="eval", rich_help_panel=_PANEL)
def eval_(
    config: ConfigArgument,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compute everything and write nothing.")] = False,
    json_: JsonOption = False,
) -> None:
    """Hold predictions against gold labels: metrics with 95 % intervals, as metrics.json and as a table."""
    with resumable("eval", str(config), kept="nothing is written before the end", set=set_):
        settings = load_config(EvalConfig, config, set_)
        from mentalglm.evaluation.job import evaluate_run
        from mentalglm.evaluation.table import markdown

        metrics = evaluate_run(settings, dry_run=dry_run)
        print(json.dumps(metrics, ensure_ascii=False, indent=2) if json_ else markdown(metrics))


@commands.command(rich_help_panel=_PANEL)
def tables(
    config: ConfigArgument,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fill and print the tables; write nothing.")] = False,
) -> None:
    """Fill the paper's tables by evaluations of runs, beside what it prints: Markdown, LaTeX, HTML, Parquet."""
    with resumable("tables", str(config), kept="the same command writes all of them anew", set=set_):
        settings = load_config(TablesConfig, config, set_)
        from mentalglm.evaluation.paper import write_tables
        from mentalglm.evaluation.paper.render import Sheet, markdown

        filled = write_tables(settings, dry_run=dry_run)
        print("\n".join(markdown(Sheet(each)) for each in filled), end="")
        for each in filled:
            for warning in each.warnings:
                print(f"warning: {warning}", file=sys.stderr)


@commands.command(rich_help_panel=_PANEL)
def report(
    targets: Annotated[
        list[str], typer.Argument(metavar="CONFIG.yaml | RUN_URI...", help="The job's config, or finished score runs.")
    ],
    evaluations: Annotated[
        list[str] | None,
        typer.Option("--eval", metavar="URI", help="Output of an eval job; several times for several."),
    ] = None,
    training: Annotated[
        list[str] | None, typer.Option("--train", metavar="URI", help="Output of a train job, or one stage of it.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", metavar="PAGE.html", help="Where the page goes: report.html.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """One HTML page about score runs: labels, failures, scores, speed, provenance. Never of fewer than ten posts."""
    options = {"eval": evaluations, "train": training, "output": [output] if output else None, "set": set_}
    with resumable("report", *targets, kept="the page is as it was", **options):
        if len(targets) == 1 and is_config_path(targets[0]):
            if evaluations or training or output:
                raise ConfigError(f"{targets[0]}: a config says all; leave --eval, --train and --output out, use --set")
            settings = load_config(ReportConfig, targets[0], set_)
        else:
            data: dict[str, Any] = {"runs": targets, "evaluations": evaluations or [], "training": training or []}
            data |= {"output": {"uri": output}} if output else {}
            for override in set_ or []:
                apply_override(data, override)
            settings = validate(ReportConfig, data, "report")
        from mentalglm.report.job import write_report

        print(write_report(settings))


review = typer.Typer(
    help="Experts rate explanations: their pages out, their scores in, and how far they agree.", no_args_is_help=True
)
commands.add_typer(review, name="review", rich_help_panel=_PANEL)


@review.command("export")
def review_export(
    config: ConfigArgument,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Draw the sample and write nothing.")] = False,
) -> None:
    """Draw a sample of finished runs and write a page for each expert, and the key that stays with you."""
    with resumable("review", "export", str(config), kept="the same command writes the same pages", set=set_):
        settings = load_config(ReviewConfig, config, set_)
        from mentalglm.evaluation.review import export

        found = export(settings, dry_run=dry_run)
        print("\n".join(found.describe()))
        for warning in found.warnings():
            print(f"warning: {warning}", file=sys.stderr)


@review.command("import")
def review_import(
    config: ConfigArgument,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILES]", help="What the pages have saved. Default: all in the review's folder ratings."
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take files that are not complete, and do without those that are missing.")
    ] = False,
    edited: Annotated[
        bool, typer.Option("--edited", help="Take files that were changed after they were saved.")
    ] = False,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Check what the experts have saved, and tell their scores and their agreement, as review.json and as tables."""
    with resumable("review", "import", str(config), *(files or []), kept="nothing is written before the end", set=set_):
        settings = load_config(ReviewConfig, config, set_)
        from mentalglm.evaluation.review import import_ratings, markdown

        result = import_ratings(settings, files or [], partial=partial, edited=edited)
        print(json.dumps(result, ensure_ascii=False, indent=2) if json_ else markdown(result))
