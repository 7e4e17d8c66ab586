"""The model card of a stage: what it is made of, how good it is, and which of its settings are the paper's."""

from collections.abc import Iterator
from typing import Any

from mentalglm.manifest import INTENDED_USE
from mentalglm.training.stage import Stage, StageRecord

# Paper, section 4.3 (docs: training-and-evaluation, section 2). What it does not tell has no entry.
_PUBLISHED: dict[str, Any] = {
    "optimizer": "AdamW",
    "optimizer.learning_rate": 1e-4,
    "optimizer.warmup_ratio": 0.01,
    "batch_size": 32,
    "micro_batch_size": 4,
    "max_prompt_tokens": 1024,
    "dtype": "float16",
}
_EPOCHS = (5, 10)  # of stage 1 and of stage 2


def model_card(stage: Stage, record: StageRecord) -> str:
    """`README.md` of the adapter or model, in Hugging Face's form. Holds no post."""
    base = stage.config.model.path
    kind = "LoRA adapter" if stage.config.method == "lora" else "Model, all weights trained"
    data = record.data
    num_validated = sum(each["error"] is None for each in record.validations)
    lines = [
        "---",
        f"base_model: {base}",
        *(["library_name: peft"] if stage.config.method == "lora" else []),
        "tags: [mentalglm]",
        "---",
        "",
        f"# {stage.name}",
        "",
        f"{kind} for {', '.join(sorted(record.fingerprint['tasks']))}, made {record.finished_at} from "
        f"{'the base model' if record.start_from == 'base' else f'stage `{record.start_from}`'} "
        f"(`{base}`, digest `{record.fingerprint['model'][:16]}`). {INTENDED_USE}",
        "",
        "## How good it is",
        "",
        f"Step {record.best_step}, the best of {num_validated} validated checkpoints by the headline metric (F1) of "
        f"its answers on {data['num_validation_records']} validation records. That is the number it was chosen by, so "
        "it is flattering; report one of a test split.",
        "",
        "| task | F1 |",
        "|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in record.best_scores.items()),
        "",
        *_warnings(record),
        "## Training",
        "",
        f"{data['num_train_records']} records, {record.num_steps} steps of {stage.config.batch_size} "
        f"({record.steps_per_epoch} to an epoch). Loss on the answer alone, mean over its tokens in the whole batch.",
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
    failed = [each for each in record.validations if each["error"] is not None]
    if failed:
        yield f"{len(failed)} validations failed (steps {', '.join(str(each['step']) for each in failed)})."
        yield ""
    if shared := record.data["num_validation_texts_in_train"]:
        yield f"{shared} validation records have a post that is learned from too: the figures above are too high."
        yield ""


def _settings(stage: Stage) -> Iterator[tuple[str, Any, str]]:
    """(setting, value, origin) of all that shapes the result."""
    config, optimizer = stage.config, stage.config.optimizer_of(stage.name)
    values: dict[str, Any] = {"method": config.method, "optimizer": "AdamW"}
    values |= {f"optimizer.{name}": value for name, value in optimizer.model_dump().items()}
    if config.method == "lora":
        values |= {f"lora.{name}": value for name, value in config.lora.model_dump().items()}
    values |= {"batch_size": config.batch_size, "micro_batch_size": config.micro_batch_size}
    values |= {"max_prompt_tokens": config.max_prompt_tokens, "dtype": config.dtype, "seed": config.seed}
    for name, value in values.items():
        if name not in _PUBLISHED:
            yield name, value, "assumed: the paper does not say"
        elif value == _PUBLISHED[name]:
            yield name, value, "paper"
        else:
            yield name, value, f"changed: the paper has {_PUBLISHED[name]}"
    epochs = stage.settings.num_epochs
    yield "num_epochs", epochs, "paper" if epochs in _EPOCHS else "changed: the paper has 5 (stage 1) and 10 (stage 2)"
    if stage.settings.start_from != "base":
        yield "start_from", stage.settings.start_from, "assumed: the same adapter is trained further"
