"""Reading a task from its YAML: a built-in one by name, one of your own by path. What is wrong is said here."""

from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from mentalglm.config.base import load_yaml, validate
from mentalglm.errors import ConfigError
from mentalglm.tasks.answer import parse_answer, render_answer
from mentalglm.tasks.task import NO_LABEL, Task
from mentalglm.tasks.text import fold
from mentalglm.tasks.vocabulary import spelling_key, vocabulary_of

_BUILTIN = Path(__file__).parent / "builtin"
_VARIANT_MARK = "#"


def builtin_tasks() -> list[str]:
    """Names of the tasks that come with the package."""
    return sorted(_builtin_index())


def load_task(name_or_path: str) -> Task:
    """A built-in task by name, or the task in a YAML file; one variant of a file with several as `file.yaml#variant`.

    Raises: ConfigError, one line that names the file, the field and the fix.
    """
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path or f".yaml{_VARIANT_MARK}" in name_or_path:
        path, _, variant = name_or_path.partition(_VARIANT_MARK)
        return _load(str(Path(path)), variant or None)
    return _load_builtin(name_or_path)


@lru_cache(maxsize=256)
def _load_builtin(name: str) -> Task:
    if name.isidentifier():  # most files are named after their task: no need to read all of them
        for direct in _BUILTIN.rglob(f"{name}.yaml"):
            if "variants" not in load_yaml(direct):
                return _load(str(direct), None)
    index = _builtin_index()
    if name not in index:
        near = get_close_matches(name, index, n=3, cutoff=0.4) or sorted(index)[:3]
        raise ConfigError(
            f"task {name!r}: no such built-in task; near names: {', '.join(near)}; "
            "a task file of your own is named by its path, such as ./task.yaml"
        )
    return _load(*index[name])


@lru_cache(maxsize=1)
def _builtin_index() -> dict[str, tuple[str, str | None]]:
    """Name of a task -> its file, and which variant of it."""
    index: dict[str, tuple[str, str | None]] = {}
    for path in sorted(_BUILTIN.rglob("*.yaml")):
        data = load_yaml(path)
        for variant in _variants(data, str(path)):
            index[_fill(data, variant, data)["name"] if variant else data["name"]] = (str(path), variant)
    return index


def _load(path: str, variant: str | None) -> Task:
    modified = Path(path).stat().st_mtime_ns if Path(path).is_file() else 0
    return _load_unchanged(path, variant, modified)


@lru_cache(maxsize=256)
def _load_unchanged(path: str, variant: str | None, modified: int) -> Task:
    data = load_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a task is a mapping of keys, this is {type(data).__name__}")
    variants = _variants(data, path)
    if variant not in variants:
        names = ", ".join(f"{path}{_VARIANT_MARK}{each}" for each in variants if each) or path
        raise ConfigError(f"{path}: variants: this file has no variant {variant or '(none)'}; name one of {names}")
    filled = _fill({key: value for key, value in data.items() if key != "variants"}, variant, data)
    task = validate(Task, filled, path)
    _check(task, path)
    return task


def _variants(data: Any, path: str) -> tuple[str | None, ...]:
    """Names of the variants in a task file; (None,) where it holds one task."""
    if not isinstance(data, dict) or "variants" not in data:
        return (None,)
    variants = data["variants"]
    if (
        not isinstance(variants, dict)
        or not variants
        or not all(
            isinstance(table, dict) and all(isinstance(value, str) for value in table.values())
            for table in variants.values()
        )
    ):
        raise ConfigError(f"{path}: variants: write `name: {{placeholder: text}}` for each variant")
    return tuple(str(name) for name in variants)


def _fill(value: Any, variant: str | None, data: dict[str, Any]) -> Any:
    """`value` with `{placeholder}` replaced by the variant's text, in every string; `{variant}` is its name."""
    if variant is None:
        return value
    table = {"variant": variant, **data["variants"][variant]}

    def fill(each: Any) -> Any:
        if isinstance(each, str):
            for key, text in table.items():
                each = each.replace("{" + key + "}", text)
            return each
        if isinstance(each, list):
            return [fill(item) for item in each]
        if isinstance(each, dict):
            return {key: fill(item) for key, item in each.items()}
        return each

    return fill(value)


def _check(task: Task, path: str) -> None:
    """What the types cannot say: templates have their placeholders, names are unique, answers parse back."""
    _check_templates(task, path)
    _check_labels(task, path)
    _check_names(task, path)
    vocabulary_of(task)  # compiles
    _check_answers(task, path)


def _check_templates(task: Task, path: str) -> None:
    templates = [("prompt", task.prompt, "{text}"), ("explanation", task.explanation, "{explanation}")]
    if task.answer is not None:
        templates.append(("answer", task.answer, "{labels}"))
    for field, template, placeholder in templates:
        count = template.count(placeholder)
        if count != 1:
            raise ConfigError(f"{path}: {field} = {template!r}: has {placeholder} {count} times; write it exactly once")
    for marker in task.markers:
        if not fold(marker).strip(" :\n"):
            raise ConfigError(f"{path}: markers = {list(task.markers)}: {marker!r} marks nothing; remove it")
    if not task.explanation.partition("{explanation}")[0].strip():
        raise ConfigError(f"{path}: explanation = {task.explanation!r}: begin it with a marker, such as 理由：")
    lead = task.explanation.partition("{explanation}")[0]
    if not any(marker in lead for marker in task.markers):
        raise ConfigError(
            f"{path}: markers = {list(task.markers)}: none is in explanation = {lead!r}; name the one it uses"
        )


def _check_labels(task: Task, path: str) -> None:
    slugs = [label.slug for label in task.labels]
    for slug in slugs:
        if slugs.count(slug) > 1:
            raise ConfigError(f"{path}: labels: slug {slug!r} is given twice; give each label its own")
    for label in task.labels:
        if label.parent is not None and task.kind != "hierarchical":
            raise ConfigError(
                f"{path}: labels.{label.slug}.parent: only a task of kind hierarchical has parents; remove it"
            )
        if label.parent is not None and label.parent not in slugs:
            raise ConfigError(
                f"{path}: labels.{label.slug}.parent = {label.parent!r}: no such label; name one of the slugs"
            )
        if label.parent is not None and task.by_slug[label.parent].parent is not None:
            raise ConfigError(
                f"{path}: labels.{label.slug}.parent = {label.parent!r}: has a parent itself; two levels are the most"
            )
        if label.answer is None and task.answer is None:
            raise ConfigError(
                f"{path}: answer: missing, and label {label.slug!r} has no answer of its own; write either"
            )
        if label.answer is not None and task.kind not in ("binary", "multiclass"):
            raise ConfigError(f"{path}: labels.{label.slug}.answer: only for binary and multiclass tasks; use `answer`")
    if task.kind == "hierarchical" and not task.answerable:
        raise ConfigError(f"{path}: labels: a hierarchical task needs labels with a parent")
    if task.kind == "binary":
        if len(slugs) != 2:
            raise ConfigError(f"{path}: labels: a binary task has two labels, here are {len(slugs)}; or use multiclass")
        if task.positive not in slugs:
            raise ConfigError(f"{path}: positive = {task.positive!r}: name one of the two labels: {', '.join(slugs)}")
    elif task.positive is not None:
        raise ConfigError(f"{path}: positive = {task.positive!r}: only for binary tasks; remove it")
    if task.kind in ("multilabel", "hierarchical") and NO_LABEL in slugs:
        raise ConfigError(f"{path}: labels: slug {NO_LABEL!r} stands for no label at all in outputs; use another")
    if task.nothing and (task.kind != "multiclass" or not set(task.nothing) < set(slugs)):
        raise ConfigError(
            f"{path}: nothing = {list(task.nothing)}: is for a multiclass task, and names some of its labels; do so, "
            "or remove it"
        )
    if task.none_answer is not None and task.kind in ("binary", "multiclass"):
        raise ConfigError(
            f"{path}: none_answer: only for multilabel and hierarchical tasks; add a label for none instead"
        )


def _check_names(task: Task, path: str) -> None:
    """A name that two labels share could not be read back."""
    owner: dict[str, str] = {}
    names = [
        (name, label.slug)
        for label in task.labels
        for name in (label.zh, label.en, *label.aliases, *label.narrower, *([label.code] if label.code else []))
    ]
    names += [(name, "foreign") for name in task.foreign] + [(name, "topics") for name in task.topics]
    for name, slug in names:
        key = spelling_key(name)
        if not key:
            field = slug if slug in ("foreign", "topics") else f"labels.{slug}"
            raise ConfigError(f"{path}: {field}: {name!r} is an empty name or alias (no letters to match); remove it")
        if owner.setdefault(key, slug) != slug:
            raise ConfigError(f"{path}: labels: {name!r} names both {owner[key]} and {slug}; keep it in one place")
    for label in task.labels:
        known = {fold(name) for name in (label.zh, label.en, *label.aliases, *label.narrower)}
        for name in label.ordinary:
            if fold(name) not in known:
                raise ConfigError(
                    f"{path}: labels.{label.slug}.ordinary: {name!r} is none of the label's names; add it there"
                )


def _check_answers(task: Task, path: str) -> None:
    """Every label, alone and with its neighbour, must come back from the answer that it is rendered to."""
    slugs = task.answerable
    subsets: list[tuple[str, ...]] = [(slug,) for slug in slugs]
    if task.kind in ("multilabel", "hierarchical"):
        subsets += list(pairwise(slugs)) if len(slugs) > 2 else []
        if task.none_allowed:
            subsets.append(())
    for subset in subsets:
        for explanation in (None, "x"):
            parsed = parse_answer(task, render_answer(task, subset, explanation))
            if parsed.status != "ok" or parsed.labels != subset or parsed.explanation != explanation:
                raise ConfigError(
                    f"{path}: answer: the answer for {', '.join(subset) or 'none'} reads back as "
                    f"{', '.join(parsed.labels) or parsed.reason or 'none'}; "
                    "make label names, separator and answers distinct"
                )
