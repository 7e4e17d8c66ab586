"""What a job is, before anything runs: config, tasks, model, and whether a run in the folder is the same job."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from mentalglm import manifest, storage
from mentalglm.cluster import lasting_output
from mentalglm.config import (
    ClassifierEngineConfig,
    EncoderEngineConfig,
    OpenAIEngineConfig,
    PromptConfig,
    S3Config,
    ScoreConfig,
    VllmEngineConfig,
    validate,
)
from mentalglm.config.base import apply_override
from mentalglm.corpus import NORMAL_FORM_VERSION, CorpusPlan, check_unchanged, plan_corpus, unreadable_now
from mentalglm.engine.classifier import check_classifier
from mentalglm.engine.model import ResolvedModel, resolve_model
from mentalglm.errors import ConfigError
from mentalglm.scoring.examples import describe_prompts, with_prompts
from mentalglm.scoring.likely import LABEL_SCORES_VERSION
from mentalglm.scoring.order import cut_for_engines
from mentalglm.scoring.predictions import SCHEMA_VERSION, prediction_schema
from mentalglm.scoring.questions import Question, questions_of
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.tasks import NO_LABEL, PARSER_VERSION, Task, builtin_tasks, load_task

# vLLM arguments that decide how fast and where, not what: they may change on resume.
_RESOURCE_ARGUMENTS = frozenset(
    {"gpu_memory_utilization", "swap_space", "cpu_offload_gb", "max_num_batched_tokens", "enforce_eager", "block_size"}
    | {"pipeline_parallel_size", "distributed_executor_backend", "enable_prefix_caching", "async_scheduling"}
)


@dataclass(frozen=True, slots=True)
class Job:
    """A score job whose tasks and model are found."""

    config: ScoreConfig
    """Input and output are absolute addresses."""
    tasks: tuple[Task, ...]
    model: ResolvedModel | None
    """None where the engine loads none here."""

    @property
    def questions(self) -> tuple[Question, ...]:
        """What is asked about each post."""
        return questions_of(self.config, self.tasks)

    @classmethod
    def resolve(cls, config: ScoreConfig) -> "Job":
        """Finds tasks and model, and points this process at the job's storage. Raises: ConfigError."""
        storage.configure(config.s3)
        config = _at_fixed_places(config)
        loads_model = isinstance(config.engine, VllmEngineConfig | ClassifierEngineConfig)
        model = resolve_model(config.model) if loads_model else None
        tasks = with_prompts(_load_tasks(config), config.prompt)
        if isinstance(config.engine, ClassifierEngineConfig) and model is not None:
            check_classifier(Path(model.path), tasks)
        _check_sample(config, tasks)
        return cls(config, tasks, model)

    def plan(self) -> CorpusPlan:
        """The shards of the input. Raises: ConfigError, InputError; InterruptedRunError: it cannot be read for now."""
        with reading(self.config):
            plan = cut_for_engines(plan_corpus(self.config.input, self.config.shard_rows), self.config)
        prediction_schema(self.config, plan.kept_schema)
        return plan

    def open_run(self, ledger: Ledger) -> CorpusPlan:
        """The run's plan: a new one, or the one that an interrupted run has laid down, if it is the same run."""
        if ledger.find() is None:
            plan = self.plan()
            if ledger.create(self.fingerprint(plan), plan, _lasting(self.config)):
                return plan
        return self.check_standing_run(ledger)

    def plan_for(self, ledger: Ledger) -> CorpusPlan:
        """The plan of the run in the folder, or of the one that would be begun there. Writes nothing."""
        return self.plan() if ledger.find() is None else self.check_standing_run(ledger)

    def check_standing_run(self, ledger: Ledger, *, may_differ: Sequence[str] | None = None) -> CorpusPlan:
        """The plan of the run in the folder. Raises: ConfigError or InputError when this job is another one.

        `may_differ`: keys in which a later round over the finished run may differ from it.
        """
        standing = ledger.record.fingerprint
        plan = ledger.read_plan()
        self.check_input(plan)
        now = self.fingerprint(plan)
        free = frozenset(may_differ or ())
        difference = [
            line for line in manifest.differences(standing, now) if not free & {*_prefixes(line.partition(":")[0])}
        ]
        if difference and may_differ is not None:
            raise ConfigError(
                f"--set: {'; '.join(difference)}: rows are asked for again as the run was made; leave it out, or score "
                "all posts anew in another folder"
            )
        if difference:
            raise ConfigError(
                f"output.uri = {ledger.uri}: holds a run with other settings ({'; '.join(difference)}); "
                "name another folder, or undo the change to go on with that run"
            )
        return plan

    def check_input(self, plan: CorpusPlan) -> int:
        """How many files of the input came since it was planned: they are not of this run.

        Raises: InputError where it is not what was planned; InterruptedRunError: it cannot be read for now.
        """
        with reading(self.config):
            return check_unchanged(plan, self.config.input)

    def fingerprint(self, plan: CorpusPlan) -> dict[str, Any]:
        """What defines the numbers of a run. Parallelism, batch sizes and the error budget do not."""
        config = self.config
        engine: dict[str, Any] = {"kind": config.engine.kind}
        if isinstance(config.engine, VllmEngineConfig):
            engine |= {"dtype": config.engine.dtype, "max_model_len": config.engine.max_model_len}
            numeric = {key: value for key, value in config.engine.engine_args.items() if key not in _RESOURCE_ARGUMENTS}
            engine |= {"engine_args": numeric}
            if config.engine.quantization is not None:
                engine |= {"quantization": config.engine.quantization}
        elif isinstance(config.engine, EncoderEngineConfig):
            engine |= {"dtype": config.engine.dtype}
        elif isinstance(config.engine, OpenAIEngineConfig):
            engine |= {"base_url": config.engine.base_url, "model": config.engine.model}
        # Only where there are some: the fingerprints of other runs stay what they were.
        adapters: dict[str, Any] = {"adapters": self._adapter_digests()} if config.model.adapters else {}
        if config.model.merge:  # rounded otherwise: a probability near a threshold may fall on its other side
            adapters["merged"] = True
        return {
            "schema": SCHEMA_VERSION,
            "parser": PARSER_VERSION,
            "normal_form": NORMAL_FORM_VERSION,
            "tasks": {task.name: task.digest for task in self.tasks},
            "model": self.model.digest if self.model else None,
            **adapters,
            "engine": engine,
            **self._prompts(),
            "generation": config.generation.model_dump(),
            "explain": config.explain,
            "dedup": config.dedup,
            "cascade": config.explained_by(),
            **({} if config.label_scores == "off" else {"label_scores": f"forced, version {LABEL_SCORES_VERSION}"}),
            "input": {
                "digest": plan.digest,
                "id_column": config.input.id_column,
                "text_column": config.input.text_column,
                "keep_columns": config.input.keep_columns,
                "duplicate_ids": config.input.duplicate_ids,
                **({} if config.input.sample_rows is None else {"sample_rows": config.input.sample_rows}),
            },
            "keep_text": config.output.keep_text,
            "partition_by": config.output.partition_by,
        }

    def _prompts(self) -> dict[str, Any]:
        if self.config.prompt == PromptConfig():
            return {}
        return {"prompt": describe_prompts(self.config.prompt, self.tasks)}

    def _adapter_digests(self) -> dict[str, str]:
        """Of each of `model.adapters`; `none` for the bare model, and where no model is loaded. Not null: that would be
        no difference from a run without the name."""
        found = self.model.adapter_digests if self.model else {}
        return {name: found.get(name) or "none" for name in self.config.model.adapters}

    def footer(self, run_id: str) -> dict[str, Any]:
        """What made the numbers, for the footer of every file and the manifest."""
        config, model = self.config, self.model
        if model is not None:
            named: dict[str, Any] = {"name": model.name, "digest": model.digest, "revision": config.model.revision}
            named |= {"adapter": config.model.adapter} | ({"merged": True} if config.model.merge else {})
        elif isinstance(config.engine, OpenAIEngineConfig):
            named = {"name": config.engine.model, "endpoint": config.engine.base_url}
        else:
            named = {"name": config.engine.kind}
        if config.model.adapters:
            digests = self._adapter_digests()
            named["adapters"] = {
                name: {"path": path, "digest": digests[name]} for name, path in config.model.adapters.items()
            }
        return (
            manifest.footer(
                run_id=run_id,
                model={"engine": config.engine.kind, **named},
                tasks=[{"name": task.name, "version": task.version, "digest": task.digest} for task in self.tasks],
                generation=config.generation.model_dump(),
                explain=config.explain,
                cascade=config.explained_by(),
                label_scores=config.label_scores,
            )
            | self._prompts()
        )


def standing_config(run_uri: str, overrides: Sequence[str]) -> ScoreConfig:
    """The config that the run was begun with, with changes. Raises: ConfigError where there is none."""
    changes: dict[str, Any] = {}
    for override in overrides:
        apply_override(changes, override)
    storage.configure(validate(S3Config, changes.get("s3") or {}, "--set"))  # the config is on the other side
    uri = storage.absolute(run_uri)
    data = copy.deepcopy(Ledger(uri).record.config)
    data["output"]["uri"] = uri  # the folder may have been moved
    for override in overrides:
        apply_override(data, override)
    config = validate(ScoreConfig, data, f"{uri}/_run/run.json")
    if config.output.uri != uri:
        raise ConfigError(f"--set output.uri={config.output.uri}: the run stays where it is; leave it out")
    return config


def _at_fixed_places(config: ScoreConfig) -> ScoreConfig:
    """Input and output as absolute addresses: workers may have another working directory."""
    output = lasting_output(config.output.uri)
    changes: dict[str, Any] = {
        "input": config.input.model_copy(update={"uri": storage.absolute(config.input.uri)}),
        "output": config.output.model_copy(update={"uri": output}),
    }
    if (examples := config.prompt.examples) is not None:
        train = [each.model_copy(update={"uri": storage.absolute(each.uri)}) for each in examples.train]
        examples = examples.model_copy(update={"train": train})
        changes["prompt"] = config.prompt.model_copy(update={"examples": examples})
    return config.model_copy(update=changes)


def _lasting(config: ScoreConfig) -> dict[str, Any]:
    """The config as it can be read back from any working directory."""
    data = config.model_dump(mode="json")
    if config.model.path != "demo" and Path(config.model.path).expanduser().is_dir():
        data["model"]["path"] = storage.absolute(config.model.path)
    if config.model.adapter is not None:
        data["model"]["adapter"] = storage.absolute(config.model.adapter)
    data["model"]["adapters"] = {
        name: None if path is None else storage.absolute(path) for name, path in config.model.adapters.items()
    }
    data["tasks"] = [_lasting_task(name) for name in config.tasks]
    for source in (data["prompt"]["examples"] or {"train": []})["train"]:
        source["task"] = None if source["task"] is None else _lasting_task(source["task"])
        source["task_names"] = {name: _lasting_task(task) for name, task in source["task_names"].items()}
    return data


def _lasting_task(name: str) -> str:
    return name if name in builtin_tasks() else str(Path(name).absolute())


@contextmanager
def reading(config: ScoreConfig) -> Iterator[None]:
    """Raises: InterruptedRunError where the input cannot be read for now."""
    try:
        yield
    except OSError as error:
        raise unreadable_now(config.input.uri, error) from None


def _load_tasks(config: ScoreConfig) -> tuple[Task, ...]:
    tasks = tuple(load_task(name) for name in config.tasks)
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"tasks: two of them are named {name!r}; give each task file its own name")
    return tasks


def _check_sample(config: ScoreConfig, tasks: Sequence[Task]) -> None:
    """Raises: ConfigError for a share of a label that no task has."""
    known = {NO_LABEL, *(label.slug for task in tasks for label in task.labels)}
    for name in config.cascade.sample if isinstance(config.cascade.sample, dict) else ():
        if name not in known:
            raise ConfigError(f"cascade.sample: {name!r} is no label of the tasks; use {', '.join(sorted(known))}")


def _prefixes(key: str) -> Iterator[str]:
    """`a.b.c` -> a, a.b, a.b.c."""
    return accumulate(key.split("."), "{}.{}".format)
