"""Config of a score job: the YAML that a researcher writes."""

import re
from ipaddress import ip_address
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from mentalglm.config.base import ConfigModel
from mentalglm.config.records import RecordsConfig
from mentalglm.config.storage import S3Config, StorageAddress, place_of

Share = Annotated[float, Field(ge=0, le=1)]


def _is_a_column_value(name: str) -> str:
    # A folder of the output, and a value of its column `adapter`, which readers must not take for a number or a date.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", name):
        raise ValueError(
            "is no name for an adapter; use up to 64 letters, digits, dots, dashes and underscores (ASCII), a letter "
            "first"
        )
    return name


AdapterName = Annotated[str, AfterValidator(_is_a_column_value)]

# Arguments of vLLM's engine that the config has under its own names, or that are not the user's to set.
_OUR_ENGINE_ARGUMENTS = frozenset(
    {"model", "tokenizer", "revision", "dtype", "max_model_len", "max_num_seqs", "tensor_parallel_size"}
    | {"trust_remote_code", "load_format", "enable_lora", "max_loras", "max_lora_rank", "disable_log_stats"}
    | {"hf_token", "enable_log_requests"}
)


class InputConfig(ConfigModel):
    """Where the posts are and which columns to read."""

    uri: StorageAddress
    """File, folder, glob or s3:// address of Parquet, JSONL or CSV."""
    format: Literal["auto", "parquet", "jsonl", "csv"] = "auto"
    """`auto` goes by the file name."""
    id_column: str = "post_id"
    text_column: str = "text"
    keep_columns: list[str] = []
    """Columns copied unchanged into the output (those of JSONL and CSV as strings)."""
    duplicate_ids: Literal["error", "keep_first", "keep_all"] = "error"
    """What to do when an id occurs twice: refuse the input, score only the first (the others become
    `invalid_input`), or score all and flag them `duplicate_id`. Reads the ids of the whole input first."""
    sample_rows: int | None = Field(default=None, ge=1)
    """Score only about so many rows, to try something: whole shards (`shard_rows`), spread evenly over the input."""
    local_only: bool = False
    """The posts may not leave the cluster: an endpoint elsewhere (engine openai) is refused. Here are localhost,
    private addresses, names without a dot, and those that end in `.local` or `.internal`."""

    @model_validator(mode="after")
    def _distinct_columns(self) -> "InputConfig":
        if self.id_column == self.text_column:
            raise ValueError(f"id_column and text_column are both {self.id_column!r}; name two columns")
        for column in self.keep_columns:
            if column == self.text_column:
                raise ValueError("keep_columns names the text column; set output.keep_text: true instead")
            if column == self.id_column or self.keep_columns.count(column) > 1:
                raise ValueError(f"keep_columns names {column!r} twice, or it is the id column; remove it")
        return self


class OutputConfig(ConfigModel):
    """Where the scored Parquet goes."""

    uri: StorageAddress
    """Folder or s3:// address of this run; one run, one folder."""
    partition_by: list[str] = []
    """Kept columns (text, whole numbers, dates, booleans) that become folders: data/task=<task>/<column>=<value>/."""
    target_file_mb: float = Field(default=256, gt=0, le=4096)
    """Size of a data file, in MB, before it is split by `partition_by`; smaller ones where a run stops or ends."""
    keep_text: bool = False
    """Copy the post text into the output. Off by default, since the output is shared more widely than the crawl."""

    @field_validator("uri")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        path = rest if separator else value
        if not path.strip("/ ") or (separator and scheme == "file" and not rest.startswith("/")):
            raise ValueError("names no folder; write a path, file:///path or s3://bucket/path")
        return value


class ModelConfig(ConfigModel):
    """Which model scores."""

    path: str = Field(default="demo", min_length=1)
    """`demo` (the small model in the package), a folder, an s3:// address, or a Hugging Face hub id."""
    revision: str | None = None
    """Commit of a hub model. Pin it (40 hex digits) for numbers that go into a paper."""
    adapter: str | None = None
    """Folder or s3:// address of a LoRA adapter (PEFT format) that is applied to the model."""
    adapters: dict[AdapterName, Annotated[str, Field(min_length=1)] | None] = {}
    """Several adapters in one run, to compare them: name -> folder, or null for the model without one. Every post is
    asked for each, by the same loaded model. The output has a column of their names, `adapter`, which is a folder:
    data/task=<task>/adapter=<name>/."""

    merge: bool = False
    """Add `adapter` to the weights before they are loaded: as fast as a model without one, where vLLM is slower with an
    adapter beside the weights; and adapters that vLLM cannot load (DoRA, modules_to_save) work. Kept in
    ~/.cache/mentalglm, or $MENTALGLM_CACHE, of each node. The sum is rounded to the model's dtype, so probabilities may
    differ a little: `mentalglm gate` tells whether labels do."""

    @model_validator(mode="after")
    def _something_to_merge(self) -> "ModelConfig":
        if self.merge and self.adapter is None:
            raise ValueError("merge is for one adapter, model.adapter; name it there, or leave merge out")
        return self

    @model_validator(mode="after")
    def _adapter_or_adapters(self) -> "ModelConfig":
        if self.adapters and self.adapter is not None:
            raise ValueError("adapter and adapters are both given; put the one among the others, under a name")
        folded = [name.casefold() for name in self.adapters]
        for name in self.adapters:
            if folded.count(name.casefold()) > 1:
                raise ValueError(
                    f"adapters: two names differ from {name!r} in case alone; some disks take them for one"
                )
        return self


class GenerationConfig(ConfigModel):
    """Decoding. The defaults are greedy, so a run can be repeated."""

    max_tokens: int = Field(default=256, ge=1)
    """Most tokens of an answer; longer ones are cut off."""
    retry_max_tokens: int | None = Field(default=None, ge=2)
    """An answer that was cut off before its labels ended is asked for once more with this many tokens, or as many as
    the model has room for behind its prompt; null: never."""
    retry_unparsed: bool = False
    """An answer in which no label can be read is asked for once more, held to the form of the task's answers (flag
    `constrained`; without confidence). For the vllm engine."""
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int = 0
    max_prompt_tokens: int = Field(default=1024, ge=32)
    """Most tokens of a prompt. 1024 is what MentalGLM was trained with (paper, section 4.3)."""
    overlong: Literal["truncate", "fail"] = "truncate"
    """A prompt over `max_prompt_tokens`: cut the end of the post (flag `text_truncated`; the question is never cut),
    or give the row the status `too_long`."""

    @property
    def most_tokens(self) -> int:
        """Of any answer, retries included."""
        return self.retry_max_tokens or self.max_tokens

    @model_validator(mode="after")
    def _more_the_second_time(self) -> "GenerationConfig":
        if self.retry_max_tokens is not None and self.retry_max_tokens <= self.max_tokens:
            raise ValueError(
                f"retry_max_tokens = {self.retry_max_tokens} is not more than max_tokens = {self.max_tokens}; raise "
                "it, or leave it out"
            )
        return self


class ExamplesConfig(ConfigModel):
    """Answered posts that stand in every prompt, before the post (few-shot)."""

    train: list[RecordsConfig] = Field(min_length=1)
    """Records to choose from, of every task that is asked for. A post is never shown its own text: a row whose text is
    one of the examples is asked without that one (flag `example_left_out`)."""
    per_label: int = Field(default=1, ge=1, le=32)
    """At least so many of each label, and of none where the task allows that. One post may count for several labels."""
    seed: int = Field(default=0, ge=0)
    """Which ones, and in which order."""
    max_characters: int = Field(default=300, ge=1)
    """Longer posts are passed over."""


class PromptConfig(ConfigModel):
    """What stands before a task's own prompt, for models that were not trained on it. It is never cut."""

    names_labels: bool = False
    """Tell which labels there are and what an answer looks like."""
    examples: ExamplesConfig | None = None


class CascadeConfig(ConfigModel):
    """With `explain: positive` or `uncertain`: which answers are gone on with behind their labels."""

    uncertain_below: float = Field(default=0.9, gt=0, le=1)
    """`explain: uncertain` explains the rows whose confidence is lower, and those without one."""
    sample: Share | dict[str, Share] = 0.0
    """Share of the other rows that is explained too (flag `explanation_sampled`): one for all, or by label, as in
    `{low_risk: 0.02, none: 0.05}`, where `none` is for rows to which no label applies and what is not named is 0. A
    row with several labels has the largest share of them. A hash of text and task decides, so equal texts are
    explained alike."""


class VllmEngineConfig(ConfigModel):
    """vLLM inside this job: one engine per actor, on GPUs or on the CPU."""

    kind: Literal["vllm"] = "vllm"
    num_engines: int = Field(default=1, ge=1)
    num_gpus: int | None = Field(default=None, ge=0)
    """GPUs of one engine (tensor parallel). Default: 1 where the cluster has GPUs, else 0 for the CPU build."""
    num_cpus: float = Field(default=1, ge=0)
    """CPUs that Ray reserves for one engine."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences that vLLM runs at once."""
    max_model_len: int | None = Field(default=None, ge=64)
    """Longest prompt plus answer, in tokens. Default: `max_prompt_tokens` + `max_tokens` (or `retry_max_tokens`), if
    the model allows it."""
    dtype: str = "auto"
    quantization: str | None = None
    """Quantisation that vLLM does while it loads the weights, such as `fp8`; null: as the model comes. It may change
    labels: `mentalglm gate` tells."""
    row_timeout_s: float = Field(default=600, gt=0)
    """A row without an answer after this long becomes `engine_error`. An engine in which no row at all finishes for
    this long hangs, and is replaced."""
    max_restarts: int = Field(default=20, ge=0)
    """How often in a row an engine is replaced without finding the row that ends it, or without an answer from the new
    one, before the run stops (exit code 75)."""
    engine_args: dict[str, Any] = {}
    """More arguments of vLLM's `AsyncEngineArgs`, passed as they are. `mentalglm gate` tells whether they change
    labels."""

    @field_validator("engine_args")
    @classmethod
    def _leave_ours_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "quantization" in value:
            raise ValueError("'quantization' is engine.quantization now; move it there")
        if value.get("speculative_config") is not None:
            raise ValueError(
                "'speculative_config': with drafts vLLM does not tell the probabilities that confidence is made of; "
                "remove it"
            )
        for key in sorted(_OUR_ENGINE_ARGUMENTS & value.keys()):
            raise ValueError(f"{key!r} has a key of its own in this config, or is fixed for safety; remove it here")
        return value


def _is_near(host: str) -> bool:
    """Whether a host is on this machine or in a private network, by its name or address alone."""
    try:
        return ip_address(host).is_private  # 127.0.0.1 and ::1 too
    except ValueError:
        # A number is an address as well, as resolvers read it.
        return re.fullmatch(r"[a-z][a-z0-9_-]*", host) is not None or host.endswith(
            (".local", ".internal", ".localhost")
        )


class OpenAIEngineConfig(ConfigModel):
    """Any endpoint that speaks the OpenAI chat API: GLM-4-plus, GPT-4, a vLLM server."""

    kind: Literal["openai"]
    base_url: str
    """Address up to and with `/v1`."""
    model: str
    """Name of the model at the endpoint."""

    @field_validator("base_url")
    @classmethod
    def _holds_no_secret(cls, value: str) -> str:
        address = urlsplit(value)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("is no http(s) address; write it like https://api.openai.com/v1")
        if "@" in address.netloc or address.query or address.fragment:
            # Raised here, before the address is written into the run's folder, and without quoting it.
            raise ValueError(
                "must hold no user name, password or query; the key goes into the variable api_key_env names"
            )
        return value

    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; null for an endpoint without keys. The key itself never stands here."""
    num_engines: int = Field(default=1, ge=1)
    max_concurrency: int = Field(default=64, ge=1)
    """Requests in flight at once, per engine."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Limit over all engines of the run."""
    request_timeout_s: float = Field(default=120, gt=0)
    max_retries: int = Field(default=6, ge=0)
    """Retries of a request after a time-out, a connection error, 408, 409, 429 or 5xx, with back-off."""
    logprobs: bool = True
    """Ask for log-probabilities (for `confidence`); turn off where the endpoint refuses them."""


class EchoEngineConfig(ConfigModel):
    """No model: answers are derived from the text, to test and time everything else."""

    kind: Literal["echo"]
    num_engines: int = Field(default=1, ge=1)
    delay_s: float = Field(default=0.0, ge=0)
    """Seconds that each answer takes."""
    tokenize: bool = False
    """Encode every prompt with the tokenizer of `model.path`, as the vllm engine does: its cost is then in what is
    timed."""


class EncoderEngineConfig(ConfigModel):
    """A classifier that `mentalglm train` has made with `method: encoder` (BERT and its kin): labels and their
    probabilities, and no explanations. `model.path` is its folder; it answers the one task that it was trained for."""

    kind: Literal["encoder"]
    num_engines: int = Field(default=1, ge=1)
    num_gpus: float | None = Field(default=None, ge=0, le=1)
    """Share of a GPU for one engine. Default: 1 where the cluster has GPUs, else 0 for the CPU."""
    num_cpus: float = Field(default=1, gt=0)
    """CPUs that Ray reserves for one engine; without a GPU also its number of threads."""
    batch_size: int = Field(default=64, ge=1)
    """Posts that go through the model at once."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and arithmetic. The shorter ones are faster on a GPU, and move posts near a threshold to its other
    side."""


class TfidfEngineConfig(ConfigModel):
    """The baseline that `mentalglm baseline` has trained (character n-grams, logistic regression): labels and their
    probabilities, and no explanations. `model.path` is its folder `model`; it answers the one task that it was trained
    for."""

    kind: Literal["tfidf"]
    num_engines: int = Field(default=1, ge=1)
    """Each on one CPU."""


ClassifierEngineConfig = EncoderEngineConfig | TfidfEngineConfig
"""Engines that know the labels of one task and nothing else."""

EngineConfig = Annotated[
    VllmEngineConfig | OpenAIEngineConfig | EchoEngineConfig | ClassifierEngineConfig, Field(discriminator="kind")
]


class ScoreConfig(ConfigModel):
    """Score every post of the input on every task."""

    input: InputConfig
    output: OutputConfig
    tasks: list[str] = Field(min_length=1)
    """Names of built-in tasks, or paths of task files of your own."""
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = VllmEngineConfig()
    prompt: PromptConfig = PromptConfig()
    generation: GenerationConfig = GenerationConfig()
    explain: Literal["all", "none", "positive", "uncertain"] = "all"
    """Which answers are explained: none · positive: those that found something (the positive label of a binary task;
    of others any label, but for those that say that there is nothing) · uncertain: those of low confidence. What is not
    explained stops at the explanation marker. Labels are the same with each. The encoder and tfidf engines explain
    nothing: with them, none is the default and all there is."""
    cascade: CascadeConfig = CascadeConfig()
    label_scores: Literal["off", "forced"] = "off"
    """forced: a column `label_scores`, a map from each label (parents too, and `none` where no label may apply) to its
    score, whether or not the answer names it: for AUROC, thresholds and calibration. A score is the probability that an
    answer held to the task's form names the label: the model is asked how likely each label comes next, or none, and
    goes on with the likeliest label while one more has a probability of 5 % or more. What would follow the others is
    taken to be what follows that one. Of a binary or multiclass task, with one step, scores add up to 1; of a binary
    one they are `probability` and the rest. Nothing is
    taken from the answer that the row has, so rows whose answer was cut off, refused or could not be read have scores
    too; null where the engine gave no answer, or a model thinks first (flag `label_scores_failed`: asking failed).
    Costs a request of one token at each place where answers part, which finds the prompt in the engine's cache. For the
    vllm engine; echo makes them up. The encoder and tfidf engines have the probabilities of their labels anyway:
    each label's own, which of a binary or multiclass task add up to 1; a parent and `none` as if labels were
    independent."""
    dedup: Literal["off", "shard", "corpus"] = "off"
    """Posts with equal texts (after normalising) are scored once, and their rows say so in `duplicate_of`: those of one
    shard, or those of the whole corpus, for which every text is read once before scoring begins."""
    shard_rows: int = Field(default=2048, ge=1)
    """Rows of a shard: the unit of work and of commit."""
    order: Literal["input", "smallest_last"] = "smallest_last"
    """smallest_last: shards are cut ever smaller towards the end of the input (Parquet, without `dedup`), and the
    smallest are scored last, so that all engines end at the same time · input: shards of `shard_rows`, as they stand
    in the input, which `dedup: corpus` always does. Changes no result, so a run may go on with the other."""
    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    """The run ends with exit code 4 when a larger share of the predictions has failed."""
    s3: S3Config = S3Config()
    """How s3:// addresses are reached. Changes no number, so a run may go on with other settings."""

    @model_validator(mode="after")
    def _apart(self) -> "ScoreConfig":
        source, output = (place_of(uri) for uri in (self.input.uri, self.output.uri))
        if source == output[: len(source)] or output == source[: len(output)]:
            raise ValueError(
                f"output.uri {self.output.uri!r} lies inside input.uri {self.input.uri!r}, or the other way round: the "
                "results would be read as posts; name a folder beside it"
            )
        return self

    @model_validator(mode="after")
    def _stays_here(self) -> "ScoreConfig":
        if self.input.local_only and isinstance(self.engine, OpenAIEngineConfig):
            host = str(urlsplit(self.engine.base_url).hostname)
            if not _is_near(host):
                raise ValueError(
                    f"engine.base_url is at {host}, and input.local_only = true: these posts may not leave the "
                    "cluster; name a server in it, or another engine"
                )
        return self

    @model_validator(mode="after")
    def _can_be_held_to_a_form(self) -> "ScoreConfig":
        if self.generation.retry_unparsed and not isinstance(self.engine, VllmEngineConfig):
            raise ValueError(
                f"generation.retry_unparsed = true: the {self.engine.kind} engine cannot hold answers to a form; leave "
                "it out, or use vllm"
            )
        return self

    @model_validator(mode="after")
    def _can_force_answers(self) -> "ScoreConfig":
        if self.label_scores != "off" and isinstance(self.engine, OpenAIEngineConfig):
            raise ValueError(
                f"label_scores = {self.label_scores}: an endpoint does not tell how likely a given answer is; leave it "
                "out, or use vllm"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _labels_alone(cls, data: Any) -> Any:
        """A classifier explains nothing, so nobody has to say so."""
        engine = data.get("engine") if isinstance(data, dict) else None
        kind = engine.get("kind") if isinstance(engine, dict) else getattr(engine, "kind", None)
        return {"explain": "none", **data} if kind in ("encoder", "tfidf") else data

    @model_validator(mode="after")
    def _can_explain(self) -> "ScoreConfig":
        if self.explain != "none" and isinstance(self.engine, ClassifierEngineConfig):
            raise ValueError(
                f"explain = {self.explain}: the {self.engine.kind} engine gives labels alone; leave it out, or use vllm"
            )
        return self

    @model_validator(mode="after")
    def _reads_prompts(self) -> "ScoreConfig":
        if isinstance(self.engine, ClassifierEngineConfig) and self.prompt != PromptConfig():
            raise ValueError(f"prompt: the {self.engine.kind} engine reads the post alone; leave it out, or use vllm")
        return self

    @model_validator(mode="after")
    def _classifier_is_its_own_model(self) -> "ScoreConfig":
        if isinstance(self.engine, ClassifierEngineConfig) and (self.model.adapter or self.model.adapters):
            raise ValueError(
                f"model.adapter: the {self.engine.kind} engine loads a classifier, model.path, and no adapter; leave "
                "it out"
            )
        return self

    @model_validator(mode="after")
    def _can_load_adapters(self) -> "ScoreConfig":
        if self.model.adapters and isinstance(self.engine, OpenAIEngineConfig):
            raise ValueError(
                "model.adapters: an endpoint is asked for one model, engine.model; leave them out, and make a run for "
                "each, or use vllm"
            )
        return self

    @model_validator(mode="after")
    def _partitions_are_kept(self) -> "ScoreConfig":
        for column in self.output.partition_by:
            if column not in self.input.keep_columns or self.output.partition_by.count(column) > 1:
                raise ValueError(
                    f"output.partition_by names {column!r}, which input.keep_columns does not name, or names it twice; "
                    "add it there"
                )
        return self

    def explained_by(self) -> dict[str, Any] | None:
        """The keys of `cascade` that decide which rows are explained; None where `explain` says it all."""
        if self.explain not in ("positive", "uncertain"):
            return None
        return self.cascade.model_dump(exclude={"uncertain_below"} if self.explain == "positive" else None)

    @field_validator("engine", mode="before")
    @classmethod
    def _default_kind(cls, value: Any) -> Any:
        return {"kind": "vllm", **value} if isinstance(value, dict) else value

    @field_validator("dedup", "label_scores", mode="before")
    @classmethod
    def _off_is_no_boolean(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false

    @field_validator("tasks")
    @classmethod
    def _distinct_tasks(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("a task is named twice; name each once")
        return value
