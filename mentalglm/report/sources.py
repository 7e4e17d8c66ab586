"""What a page is made from: finished runs, evaluations and stages, as they lie on a disk or on S3."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from mentalglm import storage
from mentalglm.config import ReportConfig, ReportedRunConfig
from mentalglm.errors import ConfigError, InputError
from mentalglm.evaluation.table import levels_of
from mentalglm.tasks import Task, builtin_tasks, load_task

# What a page needs of each file, so that a damaged or foreign one is told by its name.
_OF_MANIFEST = (
    *("run_id", "model", "tasks", "explain", "versions", "finished_at", "seconds"),
    *("input.digest", "input.num_files", "fingerprint.input", "fingerprint.parser", "fingerprint.schema"),
    *("output.statuses", "output.labels", "output.engines", "output.num_unreadable_rows", "output.num_copied"),
    *("output.num_prompt_tokens", "output.num_output_tokens"),
)
_OF_METRICS = (
    *("task", "n", "num_parsed", "num_failed_by_status", "num_free_form", "num_without_label", "headline.level"),
    *("num_with_out_of_set_label", "provenance.predictions.run_id", "provenance.predictions.adapter"),
    *("provenance.predictions.uri", "provenance.gold.uri", "provenance.gold.label_column"),
    *("provenance.task.version", "provenance.task.digest", "provenance.evaluated_at"),
)
_OF_LEVEL = ("average", "f1", "precision", "recall", "accuracy", "ci95", "strict", "per_label")
_OF_STAGE = (
    *("name", "start_from", "best_step", "best_score", "num_steps", "seconds", "finished_at", "digest", "versions"),
    *("validations", "data", "unvalidated_tasks"),
    *("fingerprint.tasks", "fingerprint.train.digest", "fingerprint.model"),
)


@dataclass(frozen=True, slots=True)
class LabelName:
    """How a page calls a label."""

    slug: str
    en: str
    zh: str
    parent: str | None


@dataclass(frozen=True, slots=True)
class LabelSet:
    """What a page must know of a task. Tasks of other people's files may be gone: then the slugs are all there is."""

    name: str
    version: str
    kind: str
    labels: tuple[LabelName, ...]
    """In label-set order; of a hierarchical task the parents too."""
    positive: str | None = None
    nothing: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Task) -> "LabelSet":
        """Of a task that is known."""
        names = tuple(LabelName(each.slug, each.en, each.zh, each.parent) for each in task.labels)
        return cls(task.name, task.version, task.kind, names, task.positive, task.nothing)

    @property
    def slugs(self) -> tuple[str, ...]:
        """Of all labels."""
        return tuple(each.slug for each in self.labels)

    @property
    def parents(self) -> tuple[LabelName, ...]:
        """The upper level of a hierarchical task."""
        return tuple(each for each in self.labels if each.parent is None) if self.kind == "hierarchical" else ()

    @property
    def answerable(self) -> tuple[LabelName, ...]:
        """What an answer consists of: the lower level, or all."""
        return tuple(each for each in self.labels if each not in self.parents)

    @property
    def is_exclusive(self) -> bool:
        """Whether each post has one label."""
        return self.kind in ("binary", "multiclass")


@dataclass(frozen=True)
class Run:
    """A finished score run."""

    uri: str
    name: str
    manifest: dict[str, Any]
    config: dict[str, Any] | None
    """As the run was begun with it; None where its `_run/` was not kept."""

    @cached_property
    def tasks(self) -> tuple[LabelSet, ...]:
        """In the order of the run."""
        return tuple(self._label_set(told) for told in self.manifest["tasks"])

    @property
    def adapters(self) -> list[str | None]:
        """Those that the run compares; [None] where it has none to compare."""
        return list(self.manifest["model"].get("adapters") or [None])

    @property
    def model(self) -> dict[str, Any]:
        """What answered; None where its kind of engine does not tell."""
        told: dict[str, Any] = self.manifest["model"]
        known = dict.fromkeys(("name", "engine", "digest", "revision", "adapter", "endpoint"))
        return known | told | {"adapters": told.get("adapters") or {}}

    @property
    def num_posts(self) -> int:
        """With a prediction for each task: what could be read of the input."""
        return max((sum(counts.values()) for counts in self.manifest["output"]["statuses"].values()), default=0)

    @property
    def kept_columns(self) -> list[str]:
        """Columns of the input that the output has."""
        return list(self.manifest["fingerprint"]["input"].get("keep_columns", ()))

    def _label_set(self, told: Mapping[str, Any]) -> LabelSet:
        for task in self._candidates():
            if task.name == told["name"]:
                return LabelSet.of(task)
        counts = self.manifest["output"]["labels"]
        found = {slug for key, of in counts.items() if key.split("/")[0] == told["name"] for slug in of}
        names = tuple(LabelName(slug, slug, "", None) for slug in sorted(found))
        return LabelSet(told["name"], told.get("version", ""), "multilabel", names)

    def _candidates(self) -> Iterator[Task]:
        """The tasks that the config names, then the built-in ones."""
        for name in (self.config or {}).get("tasks", ()):
            try:
                yield load_task(name)
            except ConfigError:
                continue
        for name in builtin_tasks():
            yield load_task(name)


@dataclass(frozen=True, slots=True)
class Side:
    """What is shown beside others: a run, or one adapter of a run."""

    run: Run
    adapter: str | None
    name: str

    def key(self, task: str) -> str:
        """Under which the run's manifest counts the task."""
        return task if self.adapter is None else f"{task}/adapter={self.adapter}"

    def dataset(self, task: str) -> pads.Dataset:
        """Its predictions of a task. Raises: InputError where they are not there."""
        folder = storage.join(self.run.uri, "data", *f"task={self.key(task)}".split("/"))
        fs, path = storage.filesystem(folder)
        try:
            found = pads.dataset(path, format="parquet", filesystem=fs, partitioning=_partitioning(self.run))
            if found.files and _is_of_predictions(found.schema):
                return found
        except (OSError, pa.ArrowException):
            pass
        raise InputError(f"runs = {self.run.uri}: the predictions of {task} are not there or damaged; restore data/")


def _is_of_predictions(schema: pa.Schema) -> bool:
    return {"post_id", "status", "labels"} <= set(schema.names) and pa.types.is_list(schema.field("labels").type)


def _partitioning(run: Run) -> pads.Partitioning | None:
    names = run.manifest["fingerprint"].get("partition_by") or []
    if not names:
        return None
    schema = pa.schema([pa.field(name, pa.string()) for name in names])
    return pads.partitioning(schema, flavor="hive")


def read_runs(config: ReportConfig) -> list[Run]:
    """The runs, each under a name of its own. Raises: InputError where one is not there or not finished."""
    runs: list[Run] = []
    taken: set[str] = set()
    for each in config.runs:
        parts = each.uri.rstrip("/").split("/")
        short, long = parts[-1], "/".join(parts[-2:])
        name = _unique(each.name or (long if short in taken else short), taken)
        runs.append(_read_run(each, name))
    return runs


def sides_of(runs: Sequence[Run]) -> list[Side]:
    """Every run, or every adapter of it."""
    found = []
    for run in runs:
        for adapter in run.adapters:
            name = run.name if adapter is None else adapter if len(runs) == 1 else f"{run.name}, {adapter}"
            found.append(Side(run, adapter, name))
    return found


def read_evaluations(uris: Sequence[str]) -> list[dict[str, Any]]:
    """What their `metrics.json` hold. Raises: InputError."""
    fix = "give a folder that `mentalglm eval` has written"
    found = [_json(uri, "metrics.json", "evaluations", fix, _OF_METRICS) for uri in uris]
    for uri, metrics in zip(uris, found, strict=True):
        for name, level in levels_of(metrics).items():
            _check(level, _OF_LEVEL, f"evaluations = {uri}: its metrics.json, level {name},", fix)
    return found


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage of a train job."""

    record: dict[str, Any]
    steps: list[dict[str, Any]]
    """Of `metrics.jsonl`."""


def read_stages(uris: Sequence[str]) -> list[Stage]:
    """The finished stages in these folders, parents before children. Raises: InputError where a folder has none."""
    found: list[Stage] = []
    for uri in uris:
        folders = [uri, *(storage.join(uri, name) for name in _folders(uri))]
        here = [folder for folder in folders if storage.exists(storage.join(folder, "stage.json"))]
        if not here:
            raise InputError(f"training = {uri}: holds no finished stage; give the output of a train job, or a stage")
        found += [_read_stage(folder) for folder in here]
    return sorted(found, key=lambda stage: str(stage.record["finished_at"]))


def _read_stage(folder: str) -> Stage:
    record = _json(folder, "stage.json", "training", "give the output of a train job", _OF_STAGE)
    data = storage.read_bytes(storage.join(folder, "metrics.jsonl")) or b""
    try:
        return Stage(record, [json.loads(line) for line in data.decode().splitlines() if line.strip()])
    except ValueError:
        raise InputError(f"training = {folder}: its metrics.jsonl is damaged; restore it, or delete it") from None


def _folders(uri: str) -> list[str]:
    """Names of what may be stages."""
    names = {each.path.split("/")[0] for each in storage.list_files(uri) if each.path.count("/") == 1}
    return sorted(names - {"_run", "adapter", "model", "tensorboard"})


def _read_run(each: ReportedRunConfig, name: str) -> Run:
    uri = each.uri.rstrip("/")
    if not storage.exists(storage.join(uri, "_SUCCESS")):
        begun = storage.exists(storage.join(uri, "_run", "run.json"))
        fix = (
            "the run is not finished; run its score command to the end"
            if begun
            else "holds no run of a score job; give the folder that its output.uri names"
        )
        raise InputError(f"runs = {each.uri}: {fix}")
    manifest = _json(uri, "manifest.json", "runs", "restore it from the run's storage", _OF_MANIFEST)
    if not storage.exists(storage.join(uri, "_run", "run.json")):
        return Run(uri, name, manifest, None)
    fix = "restore it, or delete it: the page then tells the run's fingerprint in its place"
    return Run(uri, name, manifest, _json(uri, "_run/run.json", "runs", fix, ("config.input.uri",))["config"])


def _json(uri: str, name: str, field: str, fix: str, required: Sequence[str]) -> dict[str, Any]:
    """`required`: `a.b`, what a page needs of it. Raises: InputError where it cannot be read, or is another file."""
    data = storage.read_bytes(storage.join(uri, name))
    try:
        found = json.loads(data) if data is not None else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{field} = {uri}: has no {name} that can be read; {fix}")
    _check(found, required, f"{field} = {uri}: its {name}", fix)
    return found


def _check(found: Mapping[str, Any], required: Sequence[str], what: str, fix: str) -> None:
    for path in required:
        value: Any = found
        for key in path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise InputError(f"{what} has no {path}; {fix}")
            value = value[key]


def _unique(name: str, taken: set[str]) -> str:
    found, number = name, 2
    while found in taken:
        found, number = f"{name} ({number})", number + 1
    taken.add(found)
    return found
