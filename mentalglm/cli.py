"""The `mentalglm` command. Heavy packages are imported by the command that needs them: --help answers at once."""

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel
from rich.console import Console

from mentalglm.config import (
    BaselineConfig,
    BenchConfig,
    EvalConfig,
    ModelConfig,
    ReportConfig,
    ReviewConfig,
    S3Config,
    ScoreConfig,
    TablesConfig,
    TrainConfig,
    load_config,
    validate,
)
from mentalglm.config.base import apply_override, is_config_path, json_schema
from mentalglm.errors import ConfigError, InterruptedRunError, UserError

app = typer.Typer(
    name="mentalglm",
    help="Explainable mental-health analysis of Chinese social-media posts, by the million.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

JOBS: dict[str, type[BaseModel]] = {
    "score": ScoreConfig,
    "train": TrainConfig,
    "baseline": BaselineConfig,
    "eval": EvalConfig,
    "report": ReportConfig,
    "tables": TablesConfig,
    "bench": BenchConfig,
    "review": ReviewConfig,
}

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The job's config.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key: a.b=value.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN_URI", help="The output.uri of a score job.")]
S3Option = Annotated[
    list[str] | None, typer.Option("--set", metavar="s3.KEY=VALUE", help="How to reach the run's storage.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and show the plan; score nothing (a sample: `estimate`).")
]


@app.command()
def score(config: ConfigArgument, set_: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Score posts: Parquet, JSONL or CSV in, labelled Parquet out. The same command resumes an interrupted run."""
    with _resumable("score", str(config), *(["--dry-run"] if dry_run else []), set=set_):
        settings = load_config(ScoreConfig, config, set_)
        from mentalglm.scoring import plan_run
        from mentalglm.scoring import score as score_posts
        from mentalglm.scoring.summary import print_plan, print_summary

        if dry_run:
            plan, questions = plan_run(settings)
            print_plan(settings, plan, questions)
        else:
            print_summary(score_posts(settings))


@app.command()
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
    with _resumable("estimate", str(config), kept="the run is as it was", **options, set=set_):
        settings = load_config(ScoreConfig, config, set_)
        from mentalglm.scoring.estimate import estimate as estimate_run
        from mentalglm.scoring.summary import print_estimate

        found = estimate_run(settings, num_rows=rows, price_per_gpu_hour=price)
        if json_:
            print(found.model_dump_json(indent=2))
        else:
            print_estimate(found)


@app.command()
def train(
    config: ConfigArgument,
    set_: SetOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Read and check the records; show steps, tokens and memory; train nothing."),
    ] = False,
) -> None:
    """Fine-tune in stages, each chosen by its F1 on validation records. The same command does only what is missing."""
    with _resumable("train", str(config), *(["--dry-run"] if dry_run else []), kept="checkpoints are kept", set=set_):
        settings = load_config(TrainConfig, config, set_)
        from mentalglm.training.pipeline import train as train_stages
        from mentalglm.training.plan import plan as plan_stages
        from mentalglm.training.summary import print_plan, print_summary

        if dry_run:
            print_plan(plan_stages(settings))
        else:
            print_summary(settings, train_stages(settings))


@app.command()
def baseline(config: ConfigArgument, set_: SetOption = None) -> None:
    """Train a logistic regression over character n-grams, in seconds: what a language model should be better than.

    Score with it as engine.kind: tfidf.
    """
    with _resumable("baseline", str(config), kept="nothing was written", set=set_):
        settings = load_config(BaselineConfig, config, set_)
        from mentalglm.training.tfidf import train_baseline

        record = train_baseline(settings)
        print("\n".join([*record.describe(), f"  {settings.output.uri.rstrip('/')}/model"]))


@app.command()
def retry(
    run_uri: RunArgument,
    status: Annotated[
        list[str] | None, typer.Option("--status", help="Only rows with this status; may be given several times.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Score the failed rows of a finished run again, and only they. The same command resumes an interrupted retry."""
    with _resumable("retry", run_uri, status=status, set=set_):
        from mentalglm.scoring import retry as retry_rows

        print(retry_rows(run_uri, status or [], set_ or []).describe())


@app.command()
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
    with _resumable("explain", run_uri, *(["--stop"] if stop else []), set=set_):
        from mentalglm.scoring import explain as add_explanations

        print(add_explanations(run_uri, set_ or [], is_to_stop=stop).describe())


@app.command()
def status(run_uri: RunArgument, json_: JsonOption = False, set_: S3Option = None) -> None:
    """How far a score run or a train job is, at what rate, what failed; from any machine that can read its folder."""
    from mentalglm.scoring.ledger import Ledger
    from mentalglm.scoring.status import print_status, read_status

    _configure_storage(set_)
    if Ledger(run_uri).find() is None:
        from mentalglm.training.status import print_train_status, read_train_status, to_json

        if stages := read_train_status(run_uri):
            print(json.dumps(to_json(stages), indent=2)) if json_ else print_train_status(run_uri, stages)
            return
    found = read_status(run_uri)
    if json_:
        print(json.dumps(found.to_json(), ensure_ascii=False, indent=2))
    else:
        print_status(found)


@app.command()
def gc(
    run_uri: RunArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    set_: S3Option = None,
) -> None:
    """Delete what dead attempts have left in a run's folder and what it needs no more, if it is older than an hour.

    Results are not touched.
    """
    with _resumable("gc", run_uri, *(["--dry-run"] if dry_run else []), set=set_):
        from mentalglm.scoring.gc import collect

        _configure_storage(set_)
        found = collect(run_uri, dry_run=dry_run)
        for each in found:
            print(f"{each.kind}\t{each.num_bytes}\t{each.path}")
        verb = "would be deleted" if dry_run else "deleted"
        num_bytes = sum(each.num_bytes for each in found)
        print(f"{len(found)} objects, {num_bytes} bytes {verb}; what is younger than an hour stays", file=sys.stderr)


@app.command(name="eval")
def eval_(
    config: ConfigArgument,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compute everything and write nothing.")] = False,
    json_: JsonOption = False,
) -> None:
    """Hold predictions against gold labels: metrics with 95 % intervals, as metrics.json and as a table."""
    with _resumable("eval", str(config), kept="nothing is written before the end", set=set_):
        settings = load_config(EvalConfig, config, set_)
        from mentalglm.evaluation.job import evaluate_run
        from mentalglm.evaluation.table import markdown

        metrics = evaluate_run(settings, dry_run=dry_run)
        print(json.dumps(metrics, ensure_ascii=False, indent=2) if json_ else markdown(metrics))


review = typer.Typer(
    help="Experts rate explanations: their pages out, their scores in, and how far they agree.", no_args_is_help=True
)
app.add_typer(review, name="review")


@review.command("export")
def review_export(
    config: ConfigArgument,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Draw the sample and write nothing.")] = False,
) -> None:
    """Draw a sample of finished runs and write a page for each expert, and the key that stays with you."""
    with _resumable("review", "export", str(config), kept="the same command writes the same pages", set=set_):
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
    with _resumable(
        "review", "import", str(config), *(files or []), kept="nothing is written before the end", set=set_
    ):
        settings = load_config(ReviewConfig, config, set_)
        from mentalglm.evaluation.review import import_ratings, markdown

        result = import_ratings(settings, files or [], partial=partial, edited=edited)
        print(json.dumps(result, ensure_ascii=False, indent=2) if json_ else markdown(result))


@app.command()
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
    with _resumable("report", *targets, kept="the page is as it was", **options):
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


@app.command()
def tables(
    config: ConfigArgument,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fill and print the tables; write nothing.")] = False,
) -> None:
    """Fill the paper's tables by evaluations of runs, beside what it prints: Markdown, LaTeX, HTML, Parquet."""
    with _resumable("tables", str(config), kept="the same command writes all of them anew", set=set_):
        settings = load_config(TablesConfig, config, set_)
        from mentalglm.evaluation.paper import write_tables
        from mentalglm.evaluation.paper.render import Sheet, markdown

        print("\n".join(markdown(Sheet(filled)) for filled in write_tables(settings, dry_run=dry_run)), end="")


@app.command()
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
    with _resumable("gate", str(config), *options, set=set_):
        settings = load_config(ScoreConfig, config, set_)
        other = None if against is None else load_config(ScoreConfig, against)
        from mentalglm.measure.gate import gate as compare

        report = compare(settings, rows, other)
        print(json.dumps(report.to_json(), ensure_ascii=False, indent=2) if json_ else "\n".join(report.describe()))
        report.check(min_agreement)


@app.command()
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


convert = typer.Typer(
    help="GLM's weight formats, models and adapters; and an adapter merged into its model.", no_args_is_help=True
)
app.add_typer(convert, name="convert")

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
    with _resumable("convert", "merge", model, str(target), kept="nothing was written", **options):
        from mentalglm.engine.model import resolve_model
        from mentalglm.training.merged_model import export_merged

        check = export_merged(
            resolve_model(ModelConfig(path=model, revision=revision, adapter=adapter, merge=True)), target
        )
    print("\n".join([*check.describe(), f"written: {target}"]))


def _convert(to: Literal["glm", "chatglm"], source: str, target: Path, revision: str | None) -> None:
    options = {} if revision is None else {"revision": [revision]}
    with _resumable("convert", to, source, str(target), kept="nothing was written", **options):
        from mentalglm.training.glm_format import convert_format

        said = convert_format(source, target, to, revision)
    print("\n".join([*said, f"written: {target}"]))


@app.command()
def parse(
    task: Annotated[str, typer.Option("--task", help="Name of a built-in task, or path of a task file.")],
    file: Annotated[Path | None, typer.Argument(help='JSON lines {"raw": ...}; standard input where left out.')] = None,
) -> None:
    """Read labels out of raw model answers: JSON lines in, JSON lines out."""
    from mentalglm.tasks import load_task, parse_row

    settings = load_task(task)
    try:
        text = (file.read_bytes() if file else sys.stdin.buffer.read()).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({type(error).__name__}); name a file of JSON lines") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file or 'standard input'}: not UTF-8; convert it") from None
    for number, line in enumerate(text.split("\n"), 1):  # and nowhere else: JSON may hold other line separators
        if not line.strip():
            continue
        try:
            raw = json.loads(line)["raw"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ConfigError(f'line {number}: not a JSON object with a key "raw"; write {{"raw": "..."}}') from None
        if not isinstance(raw, str):
            raise ConfigError(f'line {number}: "raw" is {type(raw).__name__}; give the answer as a string')
        print(json.dumps(parse_row(settings, raw), ensure_ascii=False))


@app.command()
def labels(task: Annotated[str, typer.Argument(help="Name of a built-in task, or path of a task file.")]) -> None:
    """The label set of a task as JSON."""
    from mentalglm.tasks import label_rows, load_task

    print(json.dumps(label_rows(load_task(task)), ensure_ascii=False, indent=2))


@app.command()
def schema(job: Annotated[str, typer.Argument(help=f"One of: {', '.join(JOBS)}.")]) -> None:
    """The JSON Schema of a job's config, for editors and for checking."""
    if job not in JOBS:
        raise ConfigError(f"job = {job!r}: not known; use one of {', '.join(JOBS)}")
    print(json.dumps(json_schema(JOBS[job]), ensure_ascii=False, indent=2))


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with the code that DESIGN lists."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):  # a container without a locale still prints Chinese
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        app(args=arguments, standalone_mode=True)
    except UserError as error:
        _fail(error)


@contextmanager
def _resumable(*command: str, kept: str = "what is done is kept", **options: list[str] | None) -> Iterator[None]:
    """Turns SIGTERM and Ctrl-C into the exit code for them, with the command to go on."""
    try:
        yield
    except KeyboardInterrupt:
        words = [word for name, values in options.items() for value in values or [] for word in (f"--{name}", value)]
        again = shlex.join(["mentalglm", *command, *words])
        raise InterruptedRunError(f"interrupted; {kept}. To go on: {again}") from None


def _configure_storage(overrides: list[str] | None) -> None:
    from mentalglm import storage

    changes: dict[str, Any] = {}
    for override in overrides or []:
        apply_override(changes, override)
    for key in changes.keys() - {"s3"}:
        raise ConfigError(f"--set {key}: is no setting of this command; it takes those of s3, like s3.endpoint=...")
    storage.configure(validate(S3Config, changes.get("s3") or {}, "--set"))


def _interrupt(*_: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # what ends a job takes seconds; to be impatient would spoil it
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _fail(error: UserError) -> None:
    Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
    sys.exit(error.exit_code)
