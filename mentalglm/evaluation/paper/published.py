"""What the paper prints: a table is one YAML beside this file; a user's own is read from its path."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mentalglm.config.base import ConfigModel, load_yaml, validate
from mentalglm.errors import ConfigError
from mentalglm.evaluation.metrics import Average

_HERE = Path(__file__).parent
Metric = Literal["f1", "precision", "recall"]
LevelName = Literal["label", "parent", "child"]


class Column(ConfigModel):
    """A data set that methods are compared on; one evaluation of a method fills it."""

    title: str
    task: str
    """Name of the task whose evaluations belong here."""
    average: Average
    num_rows: int = Field(ge=1)
    """Of the paper's test set."""
    levels: list[LevelName] = Field(default=["label"], min_length=1)
    """Of the task's metrics, which of those are printed; each is a column by itself."""


class Row(ConfigModel):
    """A method."""

    title: str
    parameters: str = ""
    """How many, as printed."""
    num_rows: dict[str, int] = {}
    """Column -> rows of its test set, where they are not those of the column."""
    quoted: dict[str, list[float]] = {}
    """Leaf of a column -> its figures in per cent, as printed, in the order of `PaperTable.metrics`. Empty: the paper
    has no such row."""


class Group(ConfigModel):
    """Rows under one heading."""

    title: str
    rows: dict[str, Row]


class Note(ConfigModel):
    """What a reader of some printed figures must know."""

    text: str
    rows: list[str] = Field(min_length=1)
    columns: list[str] = []
    """Leaves; none: it is about the whole row."""


class Leaf(ConfigModel):
    """One level of a column: what has figures of its own."""

    name: str
    """`<column>`, or `<column>_<level>` where the column has several."""
    title: str
    column: str
    level: LevelName


class PaperTable(ConfigModel):
    """A table as printed."""

    title: str
    publication: str = "Zhai et al., MentalGLM Series, preprint of October 12, 2025"
    place: str
    """Where it stands there."""
    metrics: list[Metric] = Field(min_length=1)
    """In the order in which they are printed."""
    rows_share_gold: bool = True
    """The rows of a column are measured on the same posts."""
    columns: dict[str, Column] = Field(min_length=1)
    groups: list[Group] = Field(min_length=1)
    notes: list[Note] = Field(default=[], max_length=26)
    """Marked a, b, ..."""

    @cached_property
    def rows(self) -> dict[str, Row]:
        """Name -> row, of all groups."""
        return {name: row for group in self.groups for name, row in group.rows.items()}

    @cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Name -> leaf, in the order of columns."""
        return {leaf.name: leaf for leaf in self._leaves()}

    def _leaves(self) -> Iterator[Leaf]:
        for name, column in self.columns.items():
            for level in column.levels:
                is_one = len(column.levels) == 1
                yield Leaf(
                    name=name if is_one else f"{name}_{level}",
                    title=column.title if is_one else f"{column.title}, {level}",
                    column=name,
                    level=level,
                )

    def num_rows(self, row: str, column: str) -> int:
        """Of the paper's test set for this cell."""
        return self.rows[row].num_rows.get(column, self.columns[column].num_rows)

    @model_validator(mode="after")
    def _figures_are_whole(self) -> "PaperTable":
        if sum(len(group.rows) for group in self.groups) != len(self.rows):
            raise ValueError("groups: a row is named in two groups; name each once")
        for name, row in self.rows.items():
            for leaf, figures in row.quoted.items():
                if leaf not in self.leaves:
                    raise ValueError(f"{name}.quoted: {leaf!r} is no column; use {', '.join(self.leaves)}")
                if len(figures) != len(self.metrics):
                    raise ValueError(
                        f"{name}.quoted.{leaf}: give {', '.join(self.metrics)}, not {len(figures)} figures"
                    )
        for note in self.notes:
            for known, names in ((self.rows, note.rows), (self.leaves, note.columns)):
                if unknown := [each for each in names if each not in known]:
                    raise ValueError(f"notes: {unknown[0]!r} is neither a row nor a column of the table")
        return self


def table_names() -> list[str]:
    """Names of the paper's tables that are there."""
    return sorted(path.stem for path in _HERE.glob("*.yaml"))


def load_table(name: str) -> PaperTable:
    """A table of the paper by name, or the one in a YAML file. Raises: ConfigError."""
    if name.endswith((".yaml", ".yml")):
        return validate(PaperTable, load_yaml(name), name)
    if name not in table_names():
        raise ConfigError(
            f"tables.{name}: no such table; use {', '.join(table_names())}, or the path of a YAML of your own"
        )
    return validate(PaperTable, load_yaml(_HERE / f"{name}.yaml"), name)
