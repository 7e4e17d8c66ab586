"""The report job: runs, evaluations and stages in, one page out."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mentalglm import storage
from mentalglm.config import ReportConfig
from mentalglm.errors import ConfigError, InputError
from mentalglm.manifest import code_version
from mentalglm.report import dates
from mentalglm.report.agreement import Agreement, agreement
from mentalglm.report.disclosure import Disclosure
from mentalglm.report.evaluated import evaluation_view, label_set_of
from mentalglm.report.over_time import post_line
from mentalglm.report.page import EvaluatedTask, Examples, Page, examples_of, render, run_view, stage_view
from mentalglm.report.scan import MAX_JOINED_LABELS, Buckets, Counts, count, join
from mentalglm.report.scored import task_view
from mentalglm.report.sources import LabelSet, Run, Side, read_evaluations, read_runs, read_stages, sides_of
from mentalglm.report.together import Matrix, across_tasks
from mentalglm.report.told import Told
from mentalglm.report.told_evaluation import by_label

Key = tuple[int, str]
"""Number of a side, name of a task."""


def write_report(config: ReportConfig) -> str:
    """Writes the page and returns its address. The predictions are read once, in batches; where sides or tasks are
    joined, 16 bytes for each prediction lie in the folder for temporary files meanwhile.

    Raises: ConfigError, InputError.
    """
    storage.configure(config.s3)
    runs = read_runs(config)
    sides = sides_of(runs)
    evaluations, stages = read_evaluations(config.evaluations), read_stages(config.training)
    columns = [_date_column(config, run) for run in runs]
    _check_examples(config, runs)
    rules = Disclosure(config.min_cell)
    tasks = _tasks(runs)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mentalglm-report-")))
        counts, buckets = _read(config, sides, dict(zip((run.name for run in runs), columns, strict=True)), folder)
        told = {
            (at, task.name): Told.of(
                task,
                counts[at, task.name],
                _beside(counts, task.name),
                rules,
                gold=_gold(evaluations, task, counts),
            )
            for task in tasks
            for at in range(len(sides))
            if (at, task.name) in counts
        }
        across = _across(sides, told, buckets)
        agreements = _agreements(sides, tasks, told, buckets, rules)

    by_side = [next((counts[at, task.name] for task in tasks if (at, task.name) in counts), None)
               for at in range(len(sides))]  # fmt: skip
    line = post_line(sides, by_side, rules, config.time_bins)
    views = [
        task_view(
            task,
            sides,
            [told.get((at, task.name)) for at in range(len(sides))],
            rules,
            line,
            across.get(task.name, []),
        )
        for task in tasks
    ]
    names = list(dict.fromkeys(str(each["task"]) for each in evaluations))
    page = Page(
        title=config.title or _title(sides),
        sides=sides,
        runs=[run_view(run, rules) for run in runs],
        posts=line,
        tasks=views,
        evaluations=[
            EvaluatedTask(
                name,
                [
                    evaluation_view(
                        each,
                        label_set_of(each, tasks),
                        sides,
                        [told.get((at, name)) for at in range(len(sides))],
                        rules,
                    )
                    for each in evaluations
                    if each["task"] == name
                ],
            )
            for name in names
        ],
        agreements=agreements,
        stages=[stage_view(stage, rules) for stage in stages],
        examples=_examples(sides, counts),
        rules=rules,
        date_columns=[(run.name, column) for run, column in zip(runs, columns, strict=True) if column is not None],
        versions=code_version(),
    )
    storage.put(config.output.uri, render(page).encode("utf-8", "replace"))
    return config.output.uri


def _gold(
    evaluations: Sequence[Mapping[str, Any]], task: LabelSet, counts: Mapping[Key, Counts]
) -> dict[str, int] | None:
    """Label -> posts that have it, of an evaluation of all posts of a side; None: there is none of the task."""
    sizes = {each.num_rows for each in _beside(counts, task.name)}
    whole = [each for each in evaluations if each["task"] == task.name and each["n"] in sizes]
    return by_label(whole[0], "support") if whole else None


def _title(sides: Sequence[Side]) -> str:
    names = [side.name for side in sides]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _date_column(config: ReportConfig, run: Run) -> str | None:
    found = dates.date_column(run.kept_columns, config.date_column)
    if config.date_column is not None and found is None:
        kept = ", ".join(run.kept_columns) or "none"
        raise ConfigError(
            f"date_column = {config.date_column}: is no kept column of {run.uri} (it has {kept}); name one of them, or "
            "score with it in input.keep_columns"
        )
    return found


def _check_examples(config: ReportConfig, runs: Sequence[Run]) -> None:
    for run in runs:
        if config.num_examples and not run.manifest["fingerprint"].get("keep_text"):
            raise ConfigError(
                f"num_examples = {config.num_examples}: {run.uri} holds no text of posts; set it to 0, or score with "
                "output.keep_text"
            )


def _tasks(runs: Sequence[Run]) -> list[LabelSet]:
    """Of all runs. Raises: ConfigError where two have other labels under the same name."""
    found: dict[str, LabelSet] = {}
    for run in runs:
        for task in run.tasks:
            if found.setdefault(task.name, task).slugs != task.slugs:
                raise ConfigError(
                    f"runs = {run.uri}: {task.name} has other labels there than in {runs[0].uri}; make a page of each"
                )
    return list(found.values())


def _beside(counts: Mapping[Key, Counts], task: str) -> list[Counts]:
    """Of all sides that have the task."""
    return [each for (_, name), each in counts.items() if name == task]


def _read(
    config: ReportConfig, sides: Sequence[Side], columns: Mapping[str, str | None], folder: Path
) -> tuple[dict[Key, Counts], dict[Key, Buckets]]:
    counts: dict[Key, Counts] = {}
    buckets: dict[Key, Buckets] = {}
    for at, side in enumerate(sides):
        has_positive = any(task.positive is not None for task in side.run.tasks)
        for task in side.run.tasks:
            is_joined = len(sides) > 1 or (has_positive and len(side.run.tasks) > 1)
            if is_joined and len(task.slugs) <= MAX_JOINED_LABELS:
                buckets[at, task.name] = Buckets(folder / f"{at}-{task.name}")
            counts[at, task.name] = count(
                side.dataset(task.name),
                task,
                columns[side.run.name],
                num_examples=config.num_examples,
                seed=config.seed,
                buckets=buckets.get((at, task.name)),
            )
            if (at, task.name) in buckets:
                buckets[at, task.name].close()
            _check_days(config, side.run, counts[at, task.name])
    return counts, buckets


def _check_days(config: ReportConfig, run: Run, counts: Counts) -> None:
    """A column that was asked for tells something. What it holds instead is not quoted: it may be text of posts."""
    if config.date_column is not None and counts.num_rows and not counts.num_dated:
        raise InputError(
            f"date_column = {config.date_column}: no value of it in {run.uri} can be read as a day; name a column that "
            f"holds {dates.ACCEPTED}"
        )


def _across(sides: Sequence[Side], told: Mapping[Key, Told], buckets: Mapping[Key, Buckets]) -> dict[str, list[Matrix]]:
    """Task -> its labels together with the positive label of each binary task of the same run."""
    found: dict[str, list[Matrix]] = {}
    for at, side in enumerate(sides):
        binary = [task for task in side.run.tasks if task.positive is not None and (at, task.name) in buckets]
        for task in side.run.tasks:
            if task.is_exclusive or (at, task.name) not in buckets:
                continue
            for other in binary:
                joined = join(buckets[at, task.name], buckets[at, other.name], len(task.slugs), len(other.slugs))
                matrix = across_tasks(at, joined, told[at, task.name], told[at, other.name])
                if matrix is not None:
                    found.setdefault(task.name, []).append(matrix)
    return found


def _agreements(
    sides: Sequence[Side],
    tasks: Sequence[LabelSet],
    told: Mapping[Key, Told],
    buckets: Mapping[Key, Buckets],
    rules: Disclosure,
) -> list[tuple[str, list[Agreement]]]:
    """Of each task, the first side with each other one that has the same labels."""
    found = []
    for task in tasks:
        here = (0, task.name)
        rows = []
        for at in range(1, len(sides)):
            there = (at, task.name)
            if here in buckets and there in buckets:
                width = len(task.slugs)
                joined = join(buckets[here], buckets[there], width, width)
                names = (sides[0].name, sides[at].name)
                rows.append(agreement(names, joined, (told[here], told[there]), rules))
        if rows:
            found.append((task.name, rows))
    return found


def _examples(sides: Sequence[Side], counts: Mapping[Key, Counts]) -> list[Examples]:
    found = [examples_of(sides[at], name, each) for (at, name), each in counts.items()]
    return [each for each in found if each is not None]
