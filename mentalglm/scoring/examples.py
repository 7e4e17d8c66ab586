"""Few-shot: which labelled posts stand in the prompts of a run."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mentalglm.config import ExamplesConfig, PromptConfig
from mentalglm.corpus.records import Record, read_records
from mentalglm.errors import ConfigError, InputError
from mentalglm.tasks import NO_LABEL, Example, Task

_KEY = "prompt.examples"


def with_prompts(tasks: Sequence[Task], config: PromptConfig) -> tuple[Task, ...]:
    """The tasks as they are asked, with instruction and examples. Their digests tell both.

    Raises: ConfigError, InputError: the records cannot be read, or lack labels.
    """
    chosen: Mapping[str, tuple[Example, ...]] = {} if config.examples is None else _choose(tasks, config.examples)
    changes: dict[str, dict[str, Any]] = {task.name: {} for task in tasks}
    for task in tasks:
        if config.names_labels:
            changes[task.name]["names_labels"] = True
        if task.name in chosen:
            changes[task.name]["examples"] = chosen[task.name]
    return tuple(_copy(task, changes[task.name]) for task in tasks)


def describe_prompts(config: PromptConfig, tasks: Sequence[Task]) -> dict[str, Any]:
    """For fingerprint and manifest: no text of a post."""
    described: dict[str, Any] = {"names_labels": config.names_labels}
    if (examples := config.examples) is not None:
        described["examples"] = examples.model_dump(include={"per_label", "seed", "max_characters"}) | {
            "num": {task.name: len(task.examples) for task in tasks}
        }
    return described


def _copy(task: Task, changes: dict[str, Any]) -> Task:
    """Anew, since what was reckoned of the task is kept with it."""
    return Task.model_validate(task.model_dump() | changes) if changes else task


def _choose(tasks: Sequence[Task], config: ExamplesConfig) -> dict[str, tuple[Example, ...]]:
    records = read_records(config.train, f"{_KEY}.train")
    found = {}
    for task in tasks:
        known = records.tasks.get(task.name)
        if known is None:
            raise ConfigError(f"{_KEY}.train: has no records of {task.name}, which is asked for; name a file with some")
        if known.digest != task.digest:
            raise ConfigError(
                f"{_KEY}.train: {task.name} is another task there than in `tasks`; name one file for both"
            )
        found[task.name] = choose_examples(task, [row for row in records.rows if row.task.name == task.name], config)
    return found


def choose_examples(task: Task, records: Sequence[Record], config: ExamplesConfig) -> tuple[Example, ...]:
    """At least `per_label` of each label, in an order that has nothing to do with labels.

    A hash of seed and text decides, so what is chosen of a record depends on neither file nor row. Of equal texts the
    first alone counts: their labels may differ. Raises: InputError where a label has too few.
    """
    by_text: dict[str, Record] = {}
    for record in records:
        if len(record.text) <= config.max_characters:
            by_text.setdefault(record.text, record)
    drawn = sorted(by_text.values(), key=lambda record: _draw(config.seed, record.text))
    # The rare first: their posts often have another label, which then needs fewer of its own.
    support = Counter(slug for record in drawn for slug in _slugs(record))
    slugs = [*task.answerable, *([NO_LABEL] if task.none_allowed and support[NO_LABEL] else [])]
    chosen: dict[str, Record] = {}
    for slug in sorted(slugs, key=lambda slug: support[slug]):
        if support[slug] < config.per_label:
            raise InputError(
                f"{_KEY}.train: {support[slug]} records of {task.name} have the label {slug} (and at most "
                f"{config.max_characters} characters), per_label = {config.per_label} asks for more; lower it, or give "
                "more records"
            )
        has = sum(slug in _slugs(record) for record in chosen.values())
        for record in drawn:
            if has >= config.per_label:
                break
            if slug in _slugs(record) and record.text not in chosen:
                chosen[record.text] = record
                has += 1
    return tuple(
        Example(text=record.text, labels=tuple(record.labels), explanation=record.explanation)
        for record in sorted(chosen.values(), key=lambda record: _draw(config.seed, record.text))
    )


def _slugs(record: Record) -> Sequence[str]:
    return record.labels or [NO_LABEL]


def _draw(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed} {text}".encode(), digest_size=16).digest()
