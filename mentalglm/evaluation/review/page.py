"""The page that one expert rates explanations in: a single file without a network, a run's name or a post's id."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mentalglm.config import load_yaml
from mentalglm.evaluation.review.dimensions import DIMENSIONS, SCORES
from mentalglm.tasks import Task
from mentalglm.tasks.task import Label, Slug

FORMAT = "mentalglm-review/2"
"""Of pages, rating files and keys."""

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Item:
    """One explanation to rate."""

    id: str
    """Tells nothing: a number in an order of chance."""
    task: Task
    run: str
    """Whose explanation it is. Never in a page."""
    post_id: str
    """Never in a page."""
    labels: tuple[Slug, ...]
    parents: tuple[Slug, ...]
    explanation: str
    text: str


def render_page(digest: str, expert: str, items: Sequence[Item], *, language: str, contact: str | None) -> str:
    """HTML. `items`: in the order in which this expert sees them.

    Style and script stand in the page and are named by their hashes in its Content-Security-Policy, which forbids all
    other code and every connection. Texts stand in it as data alone and are put on the screen as text.
    """
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    tasks = {item.task.name: item.task for item in items}
    data = {
        "format": FORMAT,
        "sample": digest,
        "expert": expert,
        "language": language,
        "contact": contact,
        "dimensions": DIMENSIONS,
        "scores": SCORES,
        "tasks": {name: _names(task) for name, task in tasks.items()},
        "items": [_shown(item) for item in items],
        "words": load_yaml(_HERE / "words.yaml"),
    }
    hashes = {"style_hash": _hash(style), "script_hash": _hash(script)}
    return str(_template().render(data=data, style=style, script=script, language=language, **hashes))


@cache
def _template() -> Any:
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}  # Chinese at half the size; <, >, & are escaped
    return environment.get_template("page.html.jinja")


def _shown(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "task": item.task.name,
        "language": "zh-Hans" if item.task.language == "zh" else "en",
        "post": item.text,
        "labels": list(_labels(item)),
        "explanation": item.explanation,
    }


def _labels(item: Item) -> list[dict[str, list[str]]]:
    """language -> the name of each label, after that of its parent if it has one; parents without a child too."""
    by_slug = item.task.by_slug
    paths: list[list[Label]] = []
    for slug in item.labels:
        label = by_slug[slug]
        paths.append([label] if label.parent is None else [by_slug[label.parent], label])
    with_child = {path[0].slug for path in paths}
    paths += [[by_slug[slug]] for slug in item.parents if slug not in with_child]
    return [{"zh": [label.zh for label in path], "en": [label.en for label in path]} for path in paths]


def _names(task: Task) -> dict[str, str]:
    """language -> what the task is about, in the words of its first topics."""
    name = task.name.replace("_", " ")
    names = {"zh": name, "en": name}
    for topic in reversed(task.topics):
        names["en" if topic.isascii() else "zh"] = topic
    return {language: name[0].upper() + name[1:] for language, name in names.items()}


def _hash(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
