"""A classifier as `mentalglm train` makes it with `method: encoder`: what its folder says of itself, how it reads a
text, and how its probabilities become an answer. Shared by training and scoring, so that both do the same. A baseline's
(tfidf.py) has a `Classifier` too, and answers alike.

    config.json, model.safetensors, tokenizer.json    a Hugging Face sequence-classification model; `id2label` holds the
                                                      task's answerable labels, as slugs in label-set order
    classifier.json                                   the `Classifier` below
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mentalglm.engine.chat import without_special_tokens
from mentalglm.engine.files import read_json
from mentalglm.engine.protocol import Completion
from mentalglm.errors import ConfigError
from mentalglm.tasks import NO_LABEL, Task, mask_labels, render_answer
from mentalglm.tasks.task import Slug

SETTINGS = "classifier.json"


class Classifier(BaseModel):
    """What a classifier was trained for."""

    model_config = ConfigDict(frozen=True)

    task: str
    task_version: str
    task_digest: str
    input: Literal["post", "explanation"]
    """What it reads."""
    mask_labels: bool
    """The names of labels are masked in what it reads (`tasks.mask_labels`)."""
    max_tokens: int
    """Of its input, special tokens too; the end of longer ones is cut."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """A label applies from this probability on; of a binary task, the positive one."""

    def fits(self, task: Task) -> bool:
        """Whether it was trained for this task, as it is now."""
        return (self.task, self.task_digest) == (task.name, task.digest)

    def write(self, folder: Path) -> None:
        """Puts it beside the model."""
        (folder / SETTINGS).write_text(self.model_dump_json(indent=2), encoding="utf-8")


def has_one_answer(task: Task) -> bool:
    """Whether exactly one label applies (softmax), or each for itself (sigmoid)."""
    return task.kind in ("binary", "multiclass")


def read_classifier(folder: Path) -> Classifier:
    """What the folder says. Raises: ConfigError where it is no classifier's."""
    if not (folder / SETTINGS).is_file():
        raise ConfigError(
            f"model.path = {str(folder)!r}: no {SETTINGS}; give the folder `model` of a stage with method: encoder, or "
            "of a baseline"
        )
    try:
        return Classifier.model_validate(read_json(folder / SETTINGS))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise ConfigError(f"model.path = {str(folder)!r}: {SETTINGS} has no good {key}; train it again") from None


def check_classifier(folder: Path, tasks: Sequence[Task]) -> None:
    """Raises: ConfigError where it was not made for what is asked."""
    found = read_classifier(folder)
    for task in tasks:
        if not found.fits(task):
            which = "another version" if found.task == task.name else f"the task {found.task}"
            raise ConfigError(
                f"tasks: {task.name} {task.version} ({task.digest[:12]}): model.path is a classifier for {which} "
                f"({found.task_version}, {found.task_digest[:12]}); name its task alone, or train one for this"
            )
        names = read_json(folder / "config.json").get("id2label", {})
        if tuple(names.get(str(number)) for number in range(len(names))) != task.answerable:
            raise ConfigError(
                f"model.path = {str(folder)!r}: id2label in config.json are not the labels of {task.name} in their "
                "order; put back the file that training wrote"
            )


_COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")
"""Models whose first position is the one after `pad_token_id`: of 514 positions, 512 are of tokens."""


def longest_input(tokenizer: Any, model_settings: Any, wanted: int) -> int:
    """Tokens: `wanted`, or what tokenizer and model can take, if that is less."""
    positions = getattr(model_settings, "max_position_embeddings", None) or wanted
    if getattr(model_settings, "model_type", "") in _COUNT_FROM_PADDING:
        positions -= model_settings.pad_token_id + 1
    return min(wanted, int(tokenizer.model_max_length), int(positions))


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text as a classifier reads it."""

    token_ids: list[int]
    is_truncated: bool


class TextEncoder:
    """Texts to token ids: [CLS] text [SEP], the end of long ones cut. A special token inside a text is ordinary text.

    Raises: ConfigError for a tokenizer that is no fast one, has no [CLS], as that of a causal language model, or knows
    no words.
    """

    def __init__(self, tokenizer: Any, classifier: Classifier, task: Task) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or tokenizer.cls_token is None:
            what = "is not a fast one" if backend is None else "has no [CLS] token, which an encoder is read off"
            raise ConfigError(
                f"model.path: its tokenizer ({type(tokenizer).__name__}) {what}; give an encoder such as BERT with "
                "its tokenizer.json or vocab.txt"
            )
        if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):  # transformers makes one of nothing
            raise ConfigError(
                "model.path: its tokenizer knows no words; put its tokenizer.json or vocab.txt into the model's folder"
            )
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self._task = task if classifier.mask_labels else None
        self._tokenizer = without_special_tokens(backend)
        self._tokenizer.enable_truncation(classifier.max_tokens)

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """One for each text. Tokenises in the tokenizer's threads."""
        if self._task is not None:
            texts = [mask_labels(self._task, text) for text in texts]
        return [
            EncodedText(encoding.ids, bool(encoding.overflowing))
            for encoding in self._tokenizer.encode_batch_fast(list(texts))
        ]


def completion_of(
    task: Task, threshold: float, probabilities: Sequence[float], *, num_tokens: int, flags: tuple[str, ...] = ()
) -> Completion:
    """The answer in the task's own words, with the probabilities that the engine protocol asks for. The parser reads it
    as any other; one that names nearly all of many labels is none to it.

    `probabilities`: of each of `task.answerable`; they add up to 1 where one label applies, else each is its own. The
    probability of a set of labels is then the product over all labels, as if they were independent.
    """
    if not all(map(math.isfinite, probabilities)):
        return Completion("", "error", num_tokens, 0, error="not_finite", flags=flags)
    chances = dict(zip(task.answerable, probabilities, strict=True))
    labels = chosen_labels(task, threshold, chances)
    if has_one_answer(task):
        likely = [chances[labels[0]]]
    else:
        likely = [each if slug in labels else 1 - each for slug, each in chances.items()]
    logprob = math.fsum(math.log(max(each, sys.float_info.min)) for each in likely)  # 0 where a sigmoid underflows
    return Completion(
        text=render_answer(task, labels, None),
        finish_reason="stop",
        num_prompt_tokens=num_tokens,
        num_output_tokens=0,
        head_logprob=logprob,
        positive_probability=chances[task.positive] if task.positive is not None else None,
        label_scores=_label_scores(task, chances),
        flags=flags,
    )


def chosen_labels(task: Task, threshold: float, chances: dict[Slug, float]) -> list[Slug]:
    """Those that apply. A task that always has a label gets its likeliest where none reaches the threshold."""
    likeliest = max(chances, key=chances.__getitem__)
    if task.positive is not None and task.negative is not None:
        return [task.positive if chances[task.positive] >= threshold else task.negative]
    if has_one_answer(task):
        return [likeliest]
    found = [slug for slug, each in chances.items() if each >= threshold]
    return found or ([] if task.none_allowed else [likeliest])


def _label_scores(task: Task, chances: dict[Slug, float]) -> tuple[tuple[Slug, float], ...]:
    found = []
    for label in task.labels:
        children = [chances[child.slug] for child in task.labels if child.parent == label.slug]
        found.append((label.slug, chances.get(label.slug, 1 - math.prod(1 - each for each in children))))
    if task.none_allowed:
        found.append((NO_LABEL, math.prod(1 - each for each in chances.values())))
    return tuple(found)
