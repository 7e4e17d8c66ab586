"""Whether settings of the engine leave the labels as they are: two runs over the same rows, compared row by row.

Each side is an ordinary run, over rows spread evenly over the input, in a folder of its own beside the job's output:

    <output.uri>-gate/<name>/               a side; its name follows from its settings, so it is scored once for many
    <output.uri>-gate/<name>-<name>.json    the report: settings that differ, counts, every row whose labels differ
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import pyarrow.dataset as pads

from mentalglm import storage
from mentalglm.config import ScoreConfig, VllmEngineConfig
from mentalglm.errors import ConfigError, LabelsDifferError
from mentalglm.manifest import code_version, differences
from mentalglm.scoring.job import Job
from mentalglm.scoring.pipeline import score
from mentalglm.scoring.questions import question_key

_SHARD_ROWS = 32
_SHOWN = 20
# Without these the plain engine might not fit where the other one does. They say where it runs, not what it computes.
_PLACE_ARGUMENTS = frozenset(
    {"gpu_memory_utilization", "cpu_offload_gb", "pipeline_parallel_size", "distributed_executor_backend"}
)

Answer = dict[str, Any]
"""Status, labels, parents, confidence of a row."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The answers of both sides to a row."""

    post_id: str | None
    plain: Answer
    changed: Answer

    @property
    def is_equal(self) -> bool:
        """Whether status, labels and parents are the same."""
        return all(self.plain[name] == self.changed[name] for name in ("status", "labels", "parents"))

    def describe(self) -> str:
        """One line for a person."""
        sides = (", ".join(each["labels"] or []) or each["status"] for each in (self.plain, self.changed))
        return f"{self.post_id}: {' -> '.join(sides)}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the two sides agree on a task (of an adapter)."""

    num_rows: int
    num_compared: int
    """Rows with labels on either side: what neither could answer says nothing."""
    different: list[Pair]
    """Those of them whose status, labels or parents are not equal."""
    max_confidence_difference: float | None
    """Of rows with equal labels."""

    @property
    def num_equal(self) -> int:
        """Compared rows with equal labels."""
        return self.num_compared - len(self.different)

    @property
    def share(self) -> float:
        """Of the compared rows, those with equal labels."""
        return self.num_equal / self.num_compared if self.num_compared else 0.0

    @property
    def most_different(self) -> float:
        """Upper end of the one-sided 95 % confidence interval (Clopper and Pearson, 1934) of the share that differs, as
        if rows were drawn one by one."""
        from scipy.stats import beta

        num_different = len(self.different)
        if num_different == self.num_compared:
            return 1.0
        return float(beta.ppf(0.95, num_different + 1, self.num_compared - num_different))

    def describe(self) -> str:
        """One line for a person."""
        text = f"{self.num_equal} of {self.num_compared} labelled rows have equal labels ({self.share:.2%})"
        text += f"; at 95 % confidence, at most {self.most_different:.2%} of all rows differ"
        if self.max_confidence_difference is not None:
            text += f"; confidence by {self.max_confidence_difference:.4f} at most"
        if num_failed := self.num_rows - self.num_compared:
            text += f"; {num_failed} rows have labels on neither side"
        return text


@dataclass(frozen=True, slots=True)
class GateReport:
    """What came of a gate."""

    uri: str
    """Where it is written, as JSON."""
    changes: list[str]
    """`key: plain value, now value`."""
    agreements: dict[str, Agreement]
    """Task (and adapter) -> agreement."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        tasks = {
            key: {"num_equal": each.num_equal, "most_different": each.most_different, **asdict(each)}
            for key, each in self.agreements.items()
        }
        return {"changes": self.changes, "tasks": tasks, "versions": code_version()}

    def describe(self) -> list[str]:
        """Lines for a person."""
        lines = [*self.changes, *(f"{key}: {each.describe()}" for key, each in self.agreements.items())]
        rows = [f"{key}, {each.describe()}" for key, found in self.agreements.items() for each in found.different]
        more = [f"{len(rows) - _SHOWN} more in {self.uri}"] if len(rows) > _SHOWN else []
        return [*lines, *rows[:_SHOWN], *more]

    def check(self, min_agreement: float) -> None:
        """Raises: LabelsDifferError where a task's share of equal labels is lower."""
        for key, each in self.agreements.items():
            if each.share < min_agreement:
                raise LabelsDifferError(
                    f"--min-agreement = {min_agreement:g}: {key}: labels of {len(each.different)} of "
                    f"{each.num_compared} rows differ from those of the plain engine; {self.uri} lists them. Leave the "
                    "settings out, or allow it"
                )


def gate(config: ScoreConfig, num_rows: int, against: ScoreConfig | None = None) -> GateReport:
    """Scores about `num_rows` rows of the input with the config's engine and with a plain one, and compares labels.

    `against`: the other side; by default the same job on vLLM as it comes: no quantisation, no engine_args, dtype
    `auto`, the adapter beside the weights. Raises: ConfigError where the two do not differ or have other posts or
    tasks; what `score` raises.
    """
    if not isinstance(config.engine, VllmEngineConfig):
        raise ConfigError(f"engine.kind = {config.engine.kind}: a gate compares settings of the vllm engine; use vllm")
    sides = [_trial(side, num_rows) for side in (against or plain(config), config)]
    for key in ("input", "tasks", "dedup", "shard_rows"):
        if getattr(sides[0], key) != getattr(sides[1], key):
            raise ConfigError(f"--against: has another {key}; the two must differ in engine, model or generation alone")
    if sides[0].model.adapters.keys() != sides[1].model.adapters.keys():
        raise ConfigError("--against: has other model.adapters; both sides need the same names")
    changes = differences(sides[0].model_dump(mode="json"), sides[1].model_dump(mode="json"))
    if not changes:
        raise ConfigError(
            "engine: is plain vLLM, so there is nothing to gate; set engine.quantization, engine_args, dtype or "
            "model.merge, or name the other side with --against"
        )
    folder = f"{config.output.uri.rstrip('/')}-gate"
    names = [_name(_at(folder, side)) for side in sides]
    answers = [_read(score(_at(storage.join(folder, name), side)).uri) for side, name in zip(sides, names, strict=True)]
    report = GateReport(storage.join(folder, f"{'-'.join(names)}.json"), changes, _compare(*answers))
    storage.put(report.uri, json.dumps(report.to_json(), ensure_ascii=False, indent=2).encode())
    return report


def plain(config: ScoreConfig) -> ScoreConfig:
    """The same job on vLLM as it comes."""
    assert isinstance(config.engine, VllmEngineConfig)
    arguments = {name: value for name, value in config.engine.engine_args.items() if name in _PLACE_ARGUMENTS}
    engine = config.engine.model_copy(update={"quantization": None, "dtype": "auto", "engine_args": arguments})
    return config.model_copy(update={"engine": engine, "model": config.model.model_copy(update={"merge": False})})


def _trial(config: ScoreConfig, num_rows: int) -> ScoreConfig:
    """The config over a sample, with nothing in its output but what is compared."""
    return config.model_copy(
        update={
            "input": config.input.model_copy(update={"sample_rows": num_rows, "keep_columns": []}),
            "output": config.output.model_copy(update={"uri": "-", "partition_by": [], "keep_text": False}),
            "label_scores": "off",
            "shard_rows": min(config.shard_rows, _SHARD_ROWS),
            "max_error_rate": 1.0,
        }
    )


def _at(uri: str, side: ScoreConfig) -> ScoreConfig:
    return side.model_copy(update={"output": side.output.model_copy(update={"uri": uri})})


def _name(side: ScoreConfig) -> str:
    """Of everything that may change an answer: posts, model, resources and versions too."""
    job = Job.resolve(side)
    made_of = {"fingerprint": job.fingerprint(job.plan()), "versions": code_version()}
    settings = side.model_dump(mode="json", exclude={"s3", "output"}) | made_of
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _read(uri: str) -> dict[str, dict[tuple[Any, ...], list[Answer]]]:
    """Question -> (id, hash of the text) -> answers: more than one where an id and its text are there twice."""
    fs, path = storage.filesystem(f"{uri}/data")
    dataset = pads.dataset(path, format="parquet", partitioning="hive", filesystem=fs)
    names = {"post_id", "text_hash", "status", "labels", "parents", "confidence", "task", "adapter"}
    found: dict[str, dict[tuple[Any, ...], list[Answer]]] = {}
    for row in dataset.to_table(columns=[name for name in dataset.schema.names if name in names]).to_pylist():
        key = question_key(row.pop("task"), row.pop("adapter", None))
        found.setdefault(key, {}).setdefault((row.pop("post_id"), row.pop("text_hash")), []).append(row)
    for answers in chain.from_iterable(rows.values() for rows in found.values()):
        answers.sort(key=str)
    return found


def _compare(
    plain: Mapping[str, Mapping[tuple[Any, ...], list[Answer]]],
    changed: Mapping[str, Mapping[tuple[Any, ...], list[Answer]]],
) -> dict[str, Agreement]:
    agreements = {}
    for key, rows in sorted(plain.items()):
        pairs = [
            Pair(post_id, *pair)
            for (post_id, text_hash), answers in rows.items()
            for pair in zip(answers, changed[key][post_id, text_hash], strict=True)
        ]
        compared = [each for each in pairs if "ok" in (each.plain["status"], each.changed["status"])]
        both = [(each.plain["confidence"], each.changed["confidence"]) for each in compared if each.is_equal]
        changes = [abs(one - other) for one, other in both if one is not None and other is not None]
        agreements[key] = Agreement(
            num_rows=len(pairs),
            num_compared=len(compared),
            different=[each for each in compared if not each.is_equal],
            max_confidence_difference=max(changes, default=None),
        )
    return agreements
