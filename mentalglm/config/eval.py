"""Config of an eval job: which predictions are held against which gold labels."""

from typing import Literal

from pydantic import Field, model_validator

from mentalglm.config.base import ConfigModel
from mentalglm.config.posts import PostsConfig
from mentalglm.config.storage import S3Config, StorageAddress, place_of

_FILES = (".jsonl", ".ndjson", ".csv", ".parquet", ".parq", ".pq")
"""Ends of names of gold files, whose columns `gold` names."""


class GoldConfig(ConfigModel):
    """Where the gold labels are, and in which columns."""

    uri: StorageAddress
    """File or s3:// address of JSONL, CSV or Parquet; the name tells which. Or the folder of a finished score run: the
    labels that it gave, in its rows that are ok, stand in the place of people's (the keys for columns do not count)."""
    adapter: str | None = None
    """Of a run with several adapters: whose labels."""
    only_explained: bool = False
    """Of a run: only the rows that have an explanation. The others are then neither right nor wrong, and left out."""
    id_column: str = "post_id"
    label_column: str = "label"
    """A list of labels, or one text that names them as an answer does; slugs, names or, of a binary task, 0 and 1. An
    empty list, or `none`, says that no label applies."""
    cluster_column: str | None = None
    """What depends on each other and is resampled together, such as the post that a sentence is of. Null: each row is
    by itself."""


class EvalOutputConfig(ConfigModel):
    """Where the result goes."""

    uri: StorageAddress
    """Folder or s3:// address for `metrics.json`, `metrics.md` and `rows.parquet` (gold against predicted); those of
    an earlier evaluation are replaced."""


class TrainingTextsConfig(ConfigModel):
    """What the model was trained on."""

    uri: StorageAddress
    """File or s3:// address of JSONL, CSV or Parquet."""
    text_column: str = "text"


class EvalConfig(ConfigModel):
    """Hold the predictions of a score run, or of anything else, against gold labels."""

    task: str = Field(min_length=1)
    """Name of a built-in task, or path of a task file."""
    predictions: StorageAddress
    """Folder of a finished score run, or a Parquet file or folder with the columns post_id, status and labels (and
    parents, flags, probability, label_scores, text_hash, where there are some)."""
    adapter: str | None = None
    """Of a run with several adapters: whose predictions."""
    gold: GoldConfig
    output: EvalOutputConfig
    extra_predictions: Literal["error", "ignore"] = "error"
    """What to do with predictions that have no gold label. A gold label without a prediction is always an error."""
    against: StorageAddress | None = None
    """Another run, or Parquet, to compare with on the same rows: paired bootstrap, and McNemar's test."""
    against_adapter: str | None = None
    """Of `against`, or where that is null, of `predictions`."""
    repeats: list[StorageAddress] = []
    """Runs, or Parquet, of the same set-up with other seeds: mean and standard deviation over these and `predictions`.
    """
    training: TrainingTextsConfig | None = None
    """Rows whose text is in there are counted, and the metrics given without them too."""
    posts: PostsConfig | None = None
    """Where the posts are, to count what explanations quote that no post says. `{}`: the input of the run, read once
    more. Null: the column `text` of the predictions (`output.keep_text`), or else quotes are not counted."""
    num_bootstrap: int = Field(default=10_000, ge=0, le=1_000_000)
    """Replicates of the 95 % intervals; 0: no intervals."""
    seed: int = Field(default=0, ge=0)
    s3: S3Config = S3Config()

    @model_validator(mode="after")
    def _repeats_are_other_runs(self) -> "EvalConfig":
        if len({place_of(each) for each in (self.predictions, *self.repeats)}) <= len(self.repeats):
            raise ValueError("repeats names a run twice, or the predictions themselves; name each run once")
        return self

    @model_validator(mode="after")
    def _differs_from_what_it_is_compared_with(self) -> "EvalConfig":
        if self._compared is not None and self._compared == (place_of(self.predictions), self.adapter):
            raise ValueError("against names the predictions themselves; name other ones, or another against_adapter")
        return self

    @model_validator(mode="after")
    def _gold_is_no_evaluated_run(self) -> "EvalConfig":
        """What is held against itself is right in every row."""
        if self.gold.uri.lower().endswith(_FILES) and self.gold.label_column != "labels":
            return self  # a file may hold people's labels beside the predictions
        gold = (place_of(self.gold.uri), self.gold.adapter)
        if gold in {(place_of(each), self.adapter) for each in (self.predictions, *self.repeats)} | {self._compared}:
            raise ValueError(
                f"gold.uri = {self.gold.uri} names predictions that are evaluated, which always agree with themselves; "
                "name a gold file, another run, or another gold.adapter"
            )
        return self

    @property
    def _compared(self) -> tuple[tuple[str, ...], str | None] | None:
        """Place and adapter of what the predictions are compared with, if they are."""
        if self.against is None and self.against_adapter is None:
            return None
        return place_of(self.against or self.predictions), self.against_adapter
