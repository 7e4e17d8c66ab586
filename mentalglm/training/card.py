"""The model card of a stage: what it is made of, how good it is, and which of its settings are the paper's."""

from collections.abc import Iterator
from typing import Any

from mentalglm.config import StageConfig
from mentalglm.config.train import BASE
from mentalglm.manifest import INTENDED_USE
from mentalglm.training.scores import scores_by_name
from mentalglm.training.stage import Stage, StageRecord

# Paper, section 4.1; LoRA and the epochs: sections 2.2 and 2.3. What it does not tell has no entry.
_PUBLISHED: dict[str, Any] = {
    "method": "lora",
    "optimizer": "AdamW",
    "optimizer.learning_rate": 1e-4,
    "optimizer.warmup_ratio": 0.01,
    "batch_size": 32,
    "micro_batch_size": 4,
    "max_prompt_tokens": 1024,
    "dtype": "float16",
}
_EPOCHS_FROM_BASE, _EPOCHS_FROM_A_STAGE = 5, 10
# Paper, appendix C, of the classifier of explanations. It tells nothing of how its encoder baselines were trained.
_PUBLISHED_OF_ENCODERS: dict[str, Any] = {
    "method": "encoder",
    "optimizer": "Adam",
    "optimizer.learning_rate": 2e-5,
    "batch_size": 16,
    "num_epochs": 10,
}
_NOT_TOLD = "assumed: the paper does not say"
_NOT_WEIGHED = "assumed: the paper does not weigh"
_KINDS = {"lora": "LoRA adapter", "full": "Model, all weights trained", "encoder": "Classifier"}
_LIBRARIES = {
    "lora": ["library_name: peft"],
    "full": [],
    "encoder": ["library_name: transformers", "pipeline_tag: text-classification"],
}


def model_card(stage: Stage, record: StageRecord) -> str:
    """`README.md` of the adapter or model, in Hugging Face's form. Holds no post."""
    base = stage.config.model.path
    kind = _KINDS[stage.config.method]
    data = record.data
    explained = "" if stage.config.method == "encoder" else f" ({data['num_explained_records']} with an explanation)"
    num_validated = sum(each["error"] is None for each in record.validations)
    lines = [
        "---",
        f"base_model: {base}",
        *_LIBRARIES[stage.config.method],
        "tags: [mentalglm]",
        "---",
        "",
        f"# {stage.name}",
        "",
        f"{kind} for {', '.join(sorted(record.fingerprint['tasks']))}, made {record.finished_at} from "
        f"{'the base model' if record.start_from == BASE else f'stage `{record.start_from}`'} "
        f"(`{base}`, digest `{record.fingerprint['model'][:16]}`). {INTENDED_USE}",
        "",
        "## How good it is",
        "",
        f"Step {record.best_step}, the best of {num_validated} validated checkpoints by the headline metric (F1) of "
        f"its answers on {data['num_validated_records']} validation records. That is the number it was chosen by, so "
        "it is flattering; report one of a test split.",
        "",
        "| task | F1 |",
        "|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in scores_by_name(record.best_scores).items()),
        "",
        *_warnings(record),
        "## Training",
        "",
        f"{data['num_train_records']} records{explained}, {record.num_steps} steps of {stage.config.batch_size} "
        f"({record.steps_per_epoch} to an epoch). {_loss(stage)}",
        "",
        "| setting | value | where it is from |",
        "|---|---|---|",
        *(f"| {name} | {value} | {origin} |" for name, value, origin in _settings(stage)),
        "",
        "## Provenance",
        "",
        f"- exported files: digest `{record.digest}`",
        f"- training data: digest `{record.fingerprint['train']['digest']}`",
        f"- tasks: {', '.join(f'{name} `{digest[:12]}`' for name, digest in record.fingerprint['tasks'].items())}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in record.versions.items())}",
        "",
    ]
    return "\n".join(lines)


def _warnings(record: StageRecord) -> Iterator[str]:
    if record.unvalidated_tasks:
        yield f"Chosen without a look at {', '.join(record.unvalidated_tasks)}: no record of theirs was held out."
        yield ""
    failed = [each for each in record.validations if each["error"] is not None]
    if failed:
        yield f"{len(failed)} validations failed (steps {', '.join(str(each['step']) for each in failed)})."
        yield ""
    if shared := record.data["num_validation_texts_in_train"]:
        yield f"{shared} validation records have a post that is learned from too: the figures above are too high."
        yield ""


def _loss(stage: Stage) -> str:
    if stage.config.method != "encoder":
        return "Loss on the answer alone, mean over its tokens in the whole batch."
    encoder = stage.config.encoder
    masked = ", with the names of labels masked" if encoder.mask_labels else ""
    return (
        f"It reads {encoder.input}s{masked}. Loss: cross-entropy, where a record may have several labels that of each, "
        "binary, and their mean; then the mean over the batch."
    )


def _settings(stage: Stage) -> Iterator[tuple[str, Any, str]]:
    """(setting, value, origin) of all that shapes the result."""
    config, optimizer = stage.config, stage.config.optimizer_of(stage.name)
    published, paper = _PUBLISHED, "paper"
    values: dict[str, Any] = {"method": config.method, "optimizer": "AdamW"}
    if config.method == "encoder":
        of_another = "" if config.encoder.input == "explanation" else ": of its classifier of explanations"
        published, paper = _PUBLISHED_OF_ENCODERS, f"paper, appendix C{of_another}"
        values["optimizer"] = "AdamW" if optimizer.weight_decay else "Adam"  # without decay they are the same
        values["num_epochs"] = stage.settings.num_epochs
    values |= {f"optimizer.{name}": value for name, value in optimizer.model_dump().items()}
    if config.method == "lora":
        values |= {f"lora.{name}": value for name, value in config.lora.model_dump().items()}
    values |= {"batch_size": config.batch_size, "micro_batch_size": config.micro_batch_size}
    values |= {"max_prompt_tokens": config.max_prompt_tokens, "dtype": config.dtype, "seed": config.seed}
    for name, value in values.items():
        if name not in published:
            yield name, value, _NOT_TOLD
        elif value == published[name]:
            yield name, value, paper
        else:
            yield name, value, f"changed: the paper has {published[name]}"
    if "num_epochs" not in values:
        yield "num_epochs", stage.settings.num_epochs, _origin_of_epochs(stage.settings)
    if stage.settings.max_steps is not None:
        yield "max_steps", stage.settings.max_steps, "yours: ends the stage before its epochs"
    for number, source in enumerate(stage.settings.train):
        if source.weight != 1:
            yield f"train[{number}].weight", source.weight, _NOT_WEIGHED
        for task, weight in source.task_weights.items():
            yield f"train[{number}].task_weights.{task}", weight, _NOT_WEIGHED
    yield from _selection(stage)
    if stage.settings.start_from != BASE:
        yield "start_from", stage.settings.start_from, "assumed: the same weights are trained further"


def _origin_of_epochs(settings: StageConfig) -> str:
    is_first = settings.start_from == BASE
    published = _EPOCHS_FROM_BASE if is_first else _EPOCHS_FROM_A_STAGE
    if is_first and settings.num_epochs == _EPOCHS_FROM_A_STAGE:  # ablation S2
        return "assumed: of the paper's second stage, which is not told to be shorter without the first"
    of_what = "from the base model" if is_first else "that goes on from another"
    return "paper" if settings.num_epochs == published else f"changed: the paper has {published} for a stage {of_what}"


def _selection(stage: Stage) -> Iterator[tuple[str, Any, str]]:
    """How the best checkpoint was found. The paper says that it is the best on validation records, and no more."""
    selection = stage.config.selection
    yield "selection.metric", "F1, mean of the tasks'", "assumed: the paper has the best in validation, not by what"
    every = "every_epochs" if selection.every_steps is None else "every_steps"
    yield f"selection.{every}", getattr(selection, every), _NOT_TOLD
    yield "selection.patience", selection.patience or "none", _NOT_TOLD
    yield "selection.max_rows", selection.max_rows or "all", _NOT_TOLD
    yield "selection.max_tokens", selection.max_tokens, _NOT_TOLD
    engine = selection.engine.kind
    yield "selection.engine", engine, "a test: it does not look at the model" if engine == "echo" else "ours"
    if not stage.settings.validation:
        fraction = stage.settings.validation_fraction
        yield "validation_fraction", fraction, "assumed: the paper has validation records of its own"
