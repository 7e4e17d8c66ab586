"""Commands that make models."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mentalglm.cli.shared import ConfigArgument, SetOption, resumable
from mentalglm.config import BaselineConfig, ModelConfig, TrainConfig, load_config

_PANEL = "Train"

commands = typer.Typer()


@commands.command(rich_help_panel=_PANEL)
def train(
    config: ConfigArgument,
    set_: SetOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Read and check the records; show steps, tokens and memory; train nothing."),
    ] = False,
) -> None:
    """Fine-tune in stages, each chosen by its F1 on validation records. The same command does only what is missing."""
    with resumable("train", str(config), *(["--dry-run"] if dry_run else []), kept="checkpoints are kept", set=set_):
        settings = load_config(TrainConfig, config, set_)
        from mentalglm.training.pipeline import train as train_stages
        from mentalglm.training.plan import plan as plan_stages
        from mentalglm.training.summary import print_plan, print_summary

        if dry_run:
            print_plan(plan_stages(settings))
        else:
            print_summary(settings, train_stages(settings))


@commands.command(rich_help_panel=_PANEL)
def baseline(
    config: ConfigArgument,
    set_: SetOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Read and check the records; show how many have each label; train nothing."),
    ] = False,
) -> None:
    """Train a logistic regression over character n-grams, in seconds: what a language model should be better than.

    Score with it as engine.kind: tfidf.
    """
    again = [str(config), *(["--dry-run"] if dry_run else [])]
    with resumable("baseline", *again, kept="nothing was written", set=set_):
        settings = load_config(BaselineConfig, config, set_)
        from mentalglm.training.tfidf import plan_baseline, train_baseline

        if dry_run:
            print("\n".join(plan_baseline(settings)))
            return
        record = train_baseline(settings)
        print("\n".join([*record.describe(), f"  {settings.output.uri.rstrip('/')}/model"]))


def _convert(to: Literal["glm", "chatglm"], source: str, target: Path, revision: str | None) -> None:
    options = {} if revision is None else {"revision": [revision]}
    with resumable("convert", to, source, str(target), kept="nothing was written", **options):
        from mentalglm.training.glm_format import convert_format

        said = convert_format(source, target, to, revision)
    print("\n".join([*said, f"written: {target}"]))


convert = typer.Typer(
    help="GLM's weight formats, models and adapters; and an adapter merged into its model.", no_args_is_help=True
)
commands.add_typer(convert, name="convert", rich_help_panel=_PANEL)

SourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help="Folder or hub id of a model or an adapter.")]
TargetArgument = Annotated[Path, typer.Argument(metavar="TARGET", help="A folder that is not there yet.")]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Commit of a hub id.")]


@convert.command("glm")
def convert_glm(source: SourceArgument, target: TargetArgument, revision: RevisionOption = None) -> None:
    """From chatglm, GLM-4's format with code of its own (MentalGLM's, too), to glm, which transformers knows."""
    _convert("glm", source, target, revision)


@convert.command("chatglm")
def convert_chatglm(source: SourceArgument, target: TargetArgument, revision: RevisionOption = None) -> None:
    """From glm back to chatglm."""
    _convert("chatglm", source, target, revision)


@convert.command()
def merge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="demo, a folder, or a hub id.")],
    target: TargetArgument,
    adapter: Annotated[str, typer.Option("--adapter", metavar="FOLDER", help="A LoRA adapter, as PEFT saves it.")],
    revision: RevisionOption = None,
) -> None:
    """A model with an adapter in its weights, and its logits checked against the adapter's own."""
    options = {"adapter": [adapter], **({} if revision is None else {"revision": [revision]})}
    with resumable("convert", "merge", model, str(target), kept="nothing was written", **options):
        from mentalglm.engine.model import resolve_model
        from mentalglm.training.merged_model import export_merged

        check = export_merged(
            resolve_model(ModelConfig(path=model, revision=revision, adapter=adapter, merge=True)), target
        )
    print("\n".join([*check.describe(), f"written: {target}"]))
