"""A table's cells: the printed figures, and those of evaluations that were made here."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal

from mentalglm import storage
from mentalglm.config.tables import TableConfig
from mentalglm.errors import ConfigError, InputError
from mentalglm.evaluation.compare import holm
from mentalglm.evaluation.paper.published import Column, Group, Leaf, PaperTable, Row
from mentalglm.evaluation.table import levels_of

Source = Literal["quoted", "measured"]
_OWN = "Added here"


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure, in per cent."""

    row: str
    column: str
    """Name of a leaf."""
    metric: str
    source: Source
    value: float | None
    """None: not printed, or not measured."""
    low: float | None = None
    """Of the 95 % interval."""
    high: float | None = None
    num_rows: int | None = None
    """It is measured on."""
    run: str | None = None
    """Id of the run whose predictions were evaluated; where they are no run's, their address."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """An evaluation that fills a column of a row."""

    row: str
    column: str
    uri: str
    where: str
    """The key of the config that names it."""
    metrics: Mapping[str, Any]
    """Of its `metrics.json`."""

    @property
    def run(self) -> str:
        """What was evaluated."""
        return _name_of(self.metrics["provenance"]["predictions"])


@dataclass(frozen=True, slots=True)
class Difference:
    """A comparison of an evaluation with another run, as `against` of its eval job asked for."""

    row: str
    column: str
    """Name of a leaf."""
    against: str
    difference: float
    """Of F1, in per cent points."""
    low: float | None
    high: float | None
    p_bootstrap: float | None
    p_mcnemar: float
    p_bootstrap_holm: float | None = None
    """Adjusted for all columns of the row that have a comparison (Holm, 1979)."""
    p_mcnemar_holm: float | None = None


@dataclass(frozen=True)
class FilledTable:
    """A table of the paper with what was measured."""

    name: str
    table: PaperTable
    """With the rows that the config has added."""
    measurements: tuple[Measurement, ...]
    warnings: tuple[str, ...] = ()
    """What its config asks for and is not there."""

    @cached_property
    def _by_cell(self) -> dict[tuple[str, str], Measurement]:
        return {(each.row, each.column): each for each in self.measurements}

    def cells(self) -> Iterator[Cell]:
        """Every cell, row by row: first as quoted, then as measured."""
        for row in self.table.rows:
            for source in ("quoted", "measured"):
                for leaf in self.table.leaves.values():
                    yield from self.cells_of(row, leaf, source)

    def cells_of(self, row: str, leaf: Leaf, source: Source) -> Iterator[Cell]:
        """One for each metric of the table."""
        for number, metric in enumerate(self.table.metrics):
            empty = Cell(row, leaf.name, metric, source, None)
            if source == "quoted":
                figures = self.table.rows[row].quoted.get(leaf.name)
                yield empty if figures is None else replace(empty, value=figures[number])
            else:
                measurement = self._by_cell.get((row, leaf.column))
                yield empty if measurement is None else _measured(empty, leaf, measurement)

    def is_measured(self, row: str) -> bool:
        """Whether at least one cell of the row is."""
        return any(each.row == row for each in self.measurements)

    def measured_notes(self) -> Iterator[str]:
        """What keeps measured figures from being set beside the printed ones, or beside each other."""
        for each in self.measurements:
            where = f"{self.table.rows[each.row].title}, {self.table.columns[each.column].title}"
            num_rows = each.metrics["n"]
            if num_rows != (printed := self.table.num_rows(each.row, each.column)):
                yield f"{where}: measured on {num_rows} rows, the paper's test set has {printed}: other posts."
            if _gold(each) is None:
                yield f"{where}: held against the labels of a run, not of people."
            seen = (each.metrics.get("without_training_texts") or {}).get("num_in_training")
            if seen:
                yield (
                    f"{where}: texts that are in the training file of its eval job: {seen}; metrics.json has the "
                    "figures without them."
                )
        for column in self.table.columns:
            of_column = [each.metrics["provenance"] for each in self.measurements if each.column == column]
            title = self.table.columns[column].title
            if len({each["task"]["digest"] for each in of_column}) > 1:
                yield f"{title}: evaluated by task files that differ; evaluate again, all by one."
            if len({each["predictions"].get("parser") for each in of_column} - {None}) > 1:
                yield f"{title}: answers were read by versions of the parser that differ."

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """All comparisons there are, with p-values adjusted over the columns of each row."""
        found: list[Difference] = []
        for row in self.table.rows:
            of_row = [
                _difference(row, leaf, measurement.metrics["comparison"])
                for leaf in self.table.leaves.values()
                if (measurement := self._by_cell.get((row, leaf.column))) and "comparison" in measurement.metrics
            ]
            mcnemar = holm({each.column: each.p_mcnemar for each in of_row})
            bootstrap = holm({each.column: each.p_bootstrap for each in of_row if each.p_bootstrap is not None})
            found += [
                replace(each, p_bootstrap_holm=bootstrap.get(each.column), p_mcnemar_holm=mcnemar[each.column])
                for each in of_row
            ]
        return tuple(found)


def fill(name: str, table: PaperTable, config: TableConfig) -> FilledTable:
    """The table with the evaluations that the config names, read from storage. `name`: the config's for it.

    Raises: ConfigError for a row or column that the table does not have, an evaluation of another task, or one that
    fills two cells; InputError where there is no evaluation, or those of a column are of different gold labels, or of
    the same predictions.
    """
    key = f"tables.{name}"
    table = _with_rows(key, table, config.more_rows)
    measurements: list[Measurement] = []
    for row, evaluations in config.rows.items():
        if row not in table.rows:
            raise ConfigError(
                f"{key}.rows = {row!r}: no such row; use {', '.join(table.rows)}, or name it in more_rows"
            )
        for column, uri in evaluations.items():
            where = f"{key}.rows.{row}.{column}"
            if column not in table.columns:
                raise ConfigError(f"{where}: no such column; use {', '.join(table.columns)}")
            measurements.append(_read(where, row, column, table.columns[column], uri))
    warnings = []
    if config.evaluations is not None:
        num_named = len(measurements)
        named = {(each.row, each.column) for each in measurements}
        for row, column in product(table.rows, table.columns):
            uri = config.evaluations.replace("{row}", row).replace("{column}", column)
            if (row, column) not in named and storage.exists(storage.join(uri, "metrics.json")):
                measurements.append(_read(f"{key}.evaluations", row, column, table.columns[column], uri))
        if len(measurements) == num_named:
            warnings.append(
                f"{key}.evaluations = {config.evaluations}: no evaluation is there; run `mentalglm eval` first"
            )
    _check_each_is_used_once(measurements)
    if table.rows_share_gold:
        _check_gold(measurements)
        _check_methods_differ(measurements)
    return FilledTable(name, table, tuple(measurements), tuple(warnings))


def _with_rows(key: str, table: PaperTable, titles: Mapping[str, str]) -> PaperTable:
    for row in titles:
        if row in table.rows:
            raise ConfigError(f"{key}.more_rows.{row}: the table has a row of this name; choose another")
    if not titles:
        return table
    own = Group(title=_OWN, rows={name: Row(title=title) for name, title in titles.items()})
    printed = {name: getattr(table, name) for name in PaperTable.model_fields}
    return PaperTable(**{**printed, "groups": [*table.groups, own]})


def _read(where: str, row: str, column: str, wanted: Column, uri: str) -> Measurement:
    data = storage.read_bytes(storage.join(uri, "metrics.json"))
    if data is None:
        raise InputError(f"{where} = {uri}: no metrics.json there; name the output.uri of an eval job")
    try:
        metrics = json.loads(data)
        found, levels, provenance = metrics["task"], levels_of(metrics), metrics["provenance"]
        _ = provenance["gold"], provenance["task"]["digest"], metrics["n"], metrics["num_parsed"]
        _ = provenance["predictions"]["run_id"], provenance["predictions"]["adapter"]
        averages = {name: level["average"] for name, level in levels.items()}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{where} = {uri}: its metrics.json is not one of `mentalglm eval`; evaluate again") from None
    if found != wanted.task:
        raise ConfigError(f"{where} = {uri}: evaluates {found}; the column is of {wanted.task}: name one of that task")
    for level in wanted.levels:
        average = averages.get(level)
        if average != wanted.average:
            raise ConfigError(
                f"{where} = {uri}: has the {average} average of level {level}; the column is of {wanted.average}: "
                "evaluate with the built-in task"
            )
    return Measurement(row, column, uri, where, metrics)


def _check_each_is_used_once(measurements: list[Measurement]) -> None:
    used: dict[str, Measurement] = {}
    for each in measurements:
        place = storage.absolute(each.uri).rstrip("/")
        other = used.setdefault(place, each)
        if other is not each:
            raise ConfigError(
                f"{each.where} = {each.uri}: fills {other.row}.{other.column} too; an "
                "evaluation is of one method: name each once"
            )


def _check_gold(measurements: list[Measurement]) -> None:
    first: dict[str, Measurement] = {}
    for each in measurements:
        other = first.setdefault(each.column, each)
        if _gold(each) is None:
            raise InputError(
                f"{each.where} = {each.uri}: is held against the labels of a run, not of "
                "people; evaluate against a gold file"
            )
        mine, theirs = _gold(each, "labels_sha256"), _gold(other, "labels_sha256")
        if mine is None or theirs is None:  # of an earlier version, which tells the file alone
            mine, theirs = _gold(each), _gold(other)
        if mine != theirs:
            raise InputError(
                f"{each.where} = {each.uri}: its gold labels are not those of "
                f"{other.row}.{other.column} ({str(mine)[:12]}, {str(theirs)[:12]}); methods are compared "
                "on the same ones: evaluate both with one gold file"
            )


def _check_methods_differ(measurements: list[Measurement]) -> None:
    """An evaluation that was copied, or made twice, would stand for two methods. Predictions that are no run's may have
    been others at the same address: they are the same where their figures are."""
    first: dict[Any, Measurement] = {}
    for each in measurements:
        levels = levels_of(each.metrics).values()
        figures = [(level["f1"], level["precision"], level["recall"]) for level in levels]
        is_run = each.metrics["provenance"]["predictions"]["run_id"] is not None
        other = first.setdefault((each.column, each.run, None if is_run else tuple(figures)), each)
        if other is not each:
            raise InputError(
                f"{each.where} = {each.uri}: evaluates the predictions of {other.row}.{other.column} ({each.run}); a "
                "row is of one method: name an evaluation of its own predictions"
            )


def _gold(measurement: Measurement, digest: str = "sha256") -> str | None:
    """A digest of the gold file, or of the labels in it; None where the labels of a run stand for gold."""
    found: str | None = measurement.metrics["provenance"]["gold"].get(digest)
    return found


def _measured(empty: Cell, leaf: Leaf, measurement: Measurement) -> Cell:
    level = levels_of(measurement.metrics)[leaf.level]
    low, high = (level["ci95"] or {}).get(empty.metric) or (None, None)
    return replace(
        empty,
        value=100 * level[empty.metric],
        low=None if low is None else 100 * low,
        high=None if high is None else 100 * high,
        num_rows=measurement.metrics["n"],
        run=measurement.run,
    )


def _difference(row: str, leaf: Leaf, comparison: Mapping[str, Any]) -> Difference:
    level = comparison["levels"][leaf.level]
    low, high = level["ci95"] or (None, None)
    return Difference(
        row=row,
        column=leaf.name,
        against=_name_of(comparison["against"]),
        difference=100 * level["difference"],
        low=None if low is None else 100 * low,
        high=None if high is None else 100 * high,
        p_bootstrap=level["p_bootstrap"],
        p_mcnemar=level["p_mcnemar"],
    )


def _name_of(predictions: Mapping[str, Any]) -> str:
    """By their provenance: the run's id, or where they are no run's, their address; and the adapter, if it has some."""
    name = str(predictions["run_id"] or predictions["uri"])
    return f"{name}, {predictions['adapter']}" if predictions["adapter"] else name
