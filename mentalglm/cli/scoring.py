"""Commands over score runs."""

import json
import sys
from typing import Annotated

import typer

from mentalglm.cli.shared import ConfigArgument, JsonOption, SetOption, configure_storage, resumable
from mentalglm.config import ScoreConfig, load_config
from mentalglm.errors import ConfigError

RunArgument = Annotated[str, typer.Argument(metavar="RUN_URI", help="The output.uri of a score job.")]
JobArgument = Annotated[str, typer.Argument(metavar="RUN_URI", help="The output.uri of a score or train job.")]
S3Option = Annotated[
    list[str] | None, typer.Option("--set", metavar="s3.KEY=VALUE", help="How to reach the run's storage.")
]

_PANEL = "Score"

commands = typer.Typer()


@commands.command(rich_help_panel=_PANEL)
def score(
    config: ConfigArgument,
    set_: SetOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything and show the plan; score nothing (a sample: `estimate`)."),
    ] = False,
) -> None:
    """Score posts: Parquet, JSONL or CSV in, labelled Parquet out. The same command resumes an interrupted run."""
    with resumable("score", str(config), *(["--dry-run"] if dry_run else []), set=set_):
        settings = load_config(ScoreConfig, config, set_)
        from mentalglm.scoring import plan_run
        from mentalglm.scoring import score as score_posts
        from mentalglm.scoring.summary import print_plan, print_summary

        if dry_run:
            plan, questions = plan_run(settings)
            print_plan(settings, plan, questions)
        else:
            print_summary(score_posts(settings))


@commands.command(rich_help_panel=_PANEL)
def estimate(
    config: ConfigArgument,
    rows: Annotated[
        int | None, typer.Option("--rows", min=20, help="Size of the sample. Default: 500, or what fills the engines.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price-per-gpu-hour", min=0, help="For the cost, in any currency.")
    ] = None,
    json_: JsonOption = False,
    set_: SetOption = None,
) -> None:
    """Dry run on a sample: score a few hundred rows, predict rows/s, hours, tokens, cost and failures of the whole run.

    Writes no results. The finished run says how wrong the prediction was.
    """
    numbers = {"rows": rows, "price-per-gpu-hour": price}
    options = {name: [f"{value:g}"] for name, value in numbers.items() if value is not None}
    with resumable("estimate", str(config), kept="the run is as it was", **options, set=set_):
        settings = load_config(ScoreConfig, config, set_)
        from mentalglm.scoring.forecast.estimate import estimate as estimate_run
        from mentalglm.scoring.summary import print_estimate

        found = estimate_run(settings, num_rows=rows, price_per_gpu_hour=price)
        if json_:
            print(found.model_dump_json(indent=2))
        else:
            print_estimate(found)


@commands.command(rich_help_panel=_PANEL)
def status(run_uri: JobArgument, json_: JsonOption = False, set_: S3Option = None) -> None:
    """How far a score run or a train job is, at what rate, what failed; from any machine that can read its folder."""
    from mentalglm.scoring.run.ledger import Ledger
    from mentalglm.scoring.status import print_status, read_status

    configure_storage(set_)
    if Ledger(run_uri).find() is None:
        from mentalglm.training.status import print_train_status, read_train_status, to_json, what_to_name

        if stages := read_train_status(run_uri):
            print(json.dumps(to_json(stages), indent=2)) if json_ else print_train_status(run_uri, stages)
            return
        raise ConfigError(f"RUN_URI = {run_uri}: {what_to_name(run_uri)}")
    found = read_status(run_uri)
    if json_:
        print(json.dumps(found.to_json(), ensure_ascii=False, indent=2))
    else:
        print_status(found)


@commands.command(rich_help_panel=_PANEL)
def retry(
    run_uri: RunArgument,
    status: Annotated[
        list[str] | None, typer.Option("--status", help="Only rows with this status; may be given several times.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Score the failed rows of a finished run again, and only they. The same command resumes an interrupted retry."""
    with resumable("retry", run_uri, status=status, set=set_):
        from mentalglm.scoring import retry as retry_rows

        print(retry_rows(run_uri, status or [], set_ or []).describe())


@commands.command(rich_help_panel=_PANEL)
def explain(
    run_uri: RunArgument,
    stop: Annotated[
        bool, typer.Option("--stop", help="End an interrupted call with the explanations that it has.")
    ] = False,
    set_: SetOption = None,
) -> None:
    """Add explanations to a finished run: --set explain=positive (uncertain, all), --set cascade.sample=0.02.

    For rows that have labels and no explanation. Labels stay as they are. The same command resumes an interrupted call.
    """
    with resumable("explain", run_uri, *(["--stop"] if stop else []), set=set_):
        from mentalglm.scoring import explain as add_explanations

        print(add_explanations(run_uri, set_ or [], is_to_stop=stop).describe())


@commands.command(rich_help_panel=_PANEL)
def gc(
    run_uri: RunArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    set_: S3Option = None,
) -> None:
    """Delete what dead attempts have left in a run's folder and what it needs no more, if it is older than an hour.

    Results are not touched.
    """
    with resumable("gc", run_uri, *(["--dry-run"] if dry_run else []), set=set_):
        from mentalglm.scoring.gc import collect

        configure_storage(set_)
        found = collect(run_uri, dry_run=dry_run)
        for each in found:
            print(f"{each.kind}\t{each.num_bytes}\t{each.path}")
        verb = "would be deleted" if dry_run else "deleted"
        num_bytes = sum(each.num_bytes for each in found)
        print(f"{len(found)} objects, {num_bytes} bytes {verb}; what is younger than an hour stays", file=sys.stderr)
