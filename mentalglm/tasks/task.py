"""What a task is: a label set, a prompt template and an answer template. Tasks are data; this is their shape."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from pydantic import Field

from mentalglm.config.base import ConfigModel

Slug = str
Metric = Literal["binary_f1", "micro_f1", "macro_f1", "weighted_f1"]

SLUG_PATTERN = r"^[a-z0-9_]+$"
NO_LABEL = "none"
"""In the place of a slug, where an answer may have several labels: none (more)."""


class Label(ConfigModel):
    """One answer of a task."""

    slug: Slug = Field(pattern=SLUG_PATTERN)
    """Stable English name, the value in every output."""
    zh: str = Field(min_length=1)
    """Name that a Chinese answer uses."""
    en: str = Field(min_length=1)
    """Name that an English answer uses."""
    parent: Slug | None = None
    """Hierarchical tasks: the label that this one belongs to; null for a top-level label."""
    aliases: tuple[str, ...] = ()
    """Other spellings and synonyms, in any language. Traditional characters, width and case need no alias."""
    narrower: tuple[str, ...] = ()
    """Labels of other label sets that this one covers; read as this label, with the flag `alias_label`."""
    ordinary: tuple[str, ...] = ()
    """Those of the names above that are also everyday words (放大, 生活, work): they count only where they stand as an
    item of the answer, never inside a sentence. Names of one or two Chinese characters, or of up to four letters,
    always count as such."""
    code: str | None = None
    """Code of the annotation scheme, such as B5."""
    answer: str | None = None
    """The whole answer for this label, where the task's `answer` template does not fit."""


class Example(ConfigModel):
    """An answered post."""

    text: str
    labels: tuple[Slug, ...]
    explanation: str | None = None


class Source(ConfigModel):
    """Where a template comes from."""

    status: Literal["attested", "assumed"]
    """attested: published models or data use this wording; assumed: ours."""
    source: str
    """Publication, repository and commit, or why this wording was chosen."""


class Provenance(ConfigModel):
    """Where each template of a task comes from."""

    prompt: Source
    answer: Source
    none_answer: Source | None = None
    labels: Source | None = None


class Task(ConfigModel):
    """A label set with the templates that ask for it and answer it."""

    name: str = Field(pattern=SLUG_PATTERN)
    version: str = Field(min_length=1)
    """Raised whenever a change can change a label."""
    language: Literal["zh", "en"]
    kind: Literal["binary", "multiclass", "multilabel", "hierarchical"]
    """binary: one of two; multiclass: one of many; multilabel: any number; hierarchical: any number of children,
    each of which implies its parent."""
    description: str = ""
    labels: tuple[Label, ...] = Field(min_length=2)
    """In label-set order, which is the order of labels in answers and outputs."""
    positive: Slug | None = None
    """Binary tasks: the label whose probability, precision and recall are reported."""
    nothing: tuple[Slug, ...] = ()
    """Multiclass tasks: labels that say that nothing was found (no cause, no disorder)."""
    topics: tuple[str, ...] = ()
    """What the labels are kinds of (认知歪曲, cognitive distortion). An answer that denies the topic says `none`."""
    foreign: tuple[str, ...] = ()
    """Labels of related label sets that are no label here and map to none: found and reported, never guessed."""
    system: str | None = None
    """System turn, for models that were trained with one."""
    prompt: str
    """User turn, with `{text}` once."""
    names_labels: bool = False
    """The prompt begins with the labels there are and the form of an answer: for models that were not trained on it."""
    examples: tuple[Example, ...] = ()
    """Answered posts that stand before the post, each as prompt and answer (few-shot)."""
    answer: str | None = None
    """Answer without explanation, with `{labels}` once. May be left out where every label has its own `answer`."""
    none_answer: str | None = None
    """Answer where no label applies. Null: the task always has a label, and an answer without one is a failure."""
    separator: str = Field(default=", ", min_length=1)
    """Between the labels of an answer."""
    explanation: str
    """What follows the answer, with `{explanation}` once, such as `理由：{explanation}`."""
    markers: tuple[str, ...] = Field(min_length=1)
    """Strings that end the head of an answer; a label-only pass stops at the first."""
    metric: Metric
    """Headline metric of the evaluation."""
    provenance: Provenance

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the canonical JSON of the task: equal digests, equal prompts and equal parsing."""
        plain = {name for name in ("names_labels", "examples") if not getattr(self, name)}
        told = self.model_dump(mode="json", exclude=plain)  # digests of before these fields stay what they were
        data = json.dumps(told, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(data.encode()).hexdigest()

    @cached_property
    def by_slug(self) -> dict[Slug, Label]:
        """slug -> label."""
        return {label.slug: label for label in self.labels}

    @cached_property
    def answerable(self) -> tuple[Slug, ...]:
        """Slugs that an answer can consist of, in label-set order: the children of a hierarchical task, else all."""
        if self.kind != "hierarchical":
            return tuple(label.slug for label in self.labels)
        return tuple(label.slug for label in self.labels if label.parent is not None)

    @property
    def none_allowed(self) -> bool:
        """Whether an answer may say that no label applies."""
        return self.none_answer is not None

    @property
    def negative(self) -> Slug | None:
        """Binary tasks: the label that is not `positive`."""
        return (
            next((label.slug for label in self.labels if label.slug != self.positive), None) if self.positive else None
        )

    def finds(self, labels: Sequence[Slug], parents: Sequence[Slug] = ()) -> bool:
        """Whether an answer with these labels says that something was found: the positive label; any label or parent;
        of a multiclass task, a label that is not one of `nothing`."""
        if self.positive is not None:
            return self.positive in labels
        return bool({*labels, *parents} - set(self.nothing))

    def name_of(self, slug: Slug) -> str:
        """How an answer of this task writes a label; a child of a hierarchical task as `parent##child`."""
        label = self.by_slug[slug]
        name = label.zh if self.language == "zh" else label.en
        return name if label.parent is None else f"{self.name_of(label.parent)}{HIERARCHY_SEPARATOR}{name}"


HIERARCHY_SEPARATOR = "##"
