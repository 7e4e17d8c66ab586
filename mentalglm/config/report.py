"""Config of a report job: which runs, evaluations and train stages are on the page, and what the page may tell."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mentalglm.config.base import ConfigModel
from mentalglm.config.storage import S3Config, StorageAddress, place_of

SMALL_CELL = 10
_MOST_RUNS = 6


class ReportedRunConfig(ConfigModel):
    """A finished score run."""

    uri: StorageAddress
    """Its folder or s3:// address."""
    name: str | None = Field(default=None, min_length=1, max_length=60)
    """What the page calls it; null: the last part of the address."""


class ReportOutputConfig(ConfigModel):
    """Where the page goes."""

    uri: StorageAddress = "report.html"
    """File or s3:// address of the page; that of an earlier report is replaced."""

    @field_validator("uri")
    @classmethod
    def _is_a_page(cls, value: str) -> str:
        if not value.lower().endswith((".html", ".htm")):
            raise ValueError("is no page; give an address that ends in .html")
        return value


class ReportConfig(ConfigModel):
    """One self-contained HTML page about a score run, or about several side by side."""

    runs: list[ReportedRunConfig] = Field(min_length=1, max_length=_MOST_RUNS)
    """Addresses, or {uri, name}. The first is the one that the others are compared with."""
    evaluations: list[StorageAddress] = []
    """Folders that `mentalglm eval` has written metrics.json to."""
    training: list[StorageAddress] = []
    """Outputs of train jobs, or folders of single stages."""
    output: ReportOutputConfig = ReportOutputConfig()
    title: str | None = Field(default=None, max_length=120)
    date_column: str | None = None
    """The kept column that says when a post was written; null: one with a usual name, like created_at or 发布时间."""
    time_bins: Literal["auto", "day", "week", "month", "year"] = "auto"
    """auto: by the time that the posts span, and coarser where there are few posts."""
    min_cell: int = Field(default=SMALL_CELL, ge=1)
    """Counts of fewer posts than this are not shown, nor what they could be worked out from. To go below 10,
    `allow_small_cells` must be set."""
    allow_small_cells: bool = False
    """For posts that nobody can be harmed by, such as synthetic ones."""
    num_examples: int = Field(default=0, ge=0, le=50)
    """Posts with their labels and explanations, for each task of each run: only for eyes that may read the posts. The
    run must have been made with `output.keep_text`."""
    seed: int = Field(default=0, ge=0)
    """Of the draw of examples."""
    s3: S3Config = S3Config()

    @field_validator("runs", mode="before")
    @classmethod
    def _addresses_are_runs(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if not 1 <= len(value) <= _MOST_RUNS:
            raise ValueError(f"are {len(value)}; name the folders of one to {_MOST_RUNS} finished score runs")
        return [{"uri": each} if isinstance(each, str) else each for each in value]

    @field_validator("runs")
    @classmethod
    def _runs_differ(cls, value: list[ReportedRunConfig]) -> list[ReportedRunConfig]:
        if len({place_of(each.uri) for each in value}) < len(value):
            raise ValueError("names a run twice, which always agrees with itself; name each run once")
        return value

    @model_validator(mode="after")
    def _small_cells_are_meant(self) -> "ReportConfig":
        if self.min_cell < SMALL_CELL and not self.allow_small_cells:
            raise ValueError(
                f"min_cell = {self.min_cell}: counts of fewer than {SMALL_CELL} posts can point to persons; set "
                "allow_small_cells: true if nobody can be harmed by it"
            )
        return self
