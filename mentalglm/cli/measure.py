"""Commands that hold engines and settings against others."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mentalglm.cli.shared import ConfigArgument, JsonOption, SetOption, resumable
from mentalglm.config import BenchConfig, ScoreConfig, load_config

_PANEL = "Measure"

commands = typer.Typer()


@commands.command(rich_help_panel=_PANEL)
def gate(
    config: ConfigArgument,
    set_: SetOption = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows of the input to try, at least.")] = 200,
    min_agreement: Annotated[
        float, typer.Option("--min-agreement", min=0, max=1, help="Exit code 4 where fewer labels are equal.")
    ] = 1.0,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="OTHER.yaml", help="The other side, if not plain vLLM.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Score some rows with the config's engine settings and with plain vLLM, and compare the labels row by row.

    For quantisation, engine_args, dtype, model.merge. Nothing of this goes into the job's own output.
    """
    options = [f"--rows={rows}", f"--min-agreement={min_agreement}", *([f"--against={against}"] if against else [])]
    with resumable("gate", str(config), *options, set=set_):
        settings = load_config(ScoreConfig, config, set_)
        other = None if against is None else load_config(ScoreConfig, against)
        from mentalglm.measure.gate import gate as compare

        report = compare(settings, rows, other)
        print(json.dumps(report.to_json(), ensure_ascii=False, indent=2) if json_ else "\n".join(report.describe()))
        report.check(min_agreement)


@commands.command(rich_help_panel=_PANEL)
def bench(config: ConfigArgument, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Time the score job against vLLM alone and against ray.data.llm, in turns."""
    settings = load_config(BenchConfig, config, set_)
    from mentalglm.measure.bench import bench as run_bench
    from mentalglm.measure.bench import print_bench

    report = run_bench(settings)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        print_bench(report)
