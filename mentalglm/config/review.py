"""Config of an expert review: which explanations are rated, by whom, and where pages and results go."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from mentalglm.config.base import ConfigModel
from mentalglm.config.posts import PostsConfig
from mentalglm.config.score import AdapterName
from mentalglm.config.storage import S3Config, StorageAddress


def _is_a_file_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w-]{0,39}", name):
        raise ValueError("is no name for an expert; use up to 40 letters, digits, underscores and dashes")
    return name


ExpertName = Annotated[str, AfterValidator(_is_a_file_name)]
RunName = AdapterName
Size = Annotated[int, Field(ge=1, le=10_000)]


class ReviewedRunConfig(ConfigModel):
    """Whose explanations are rated."""

    uri: StorageAddress
    """Folder of a finished score run, or a Parquet file or folder with its columns."""
    adapter: str | None = None
    """Of a run with several adapters: whose predictions."""


class ReviewOutputConfig(ConfigModel):
    """Where everything of this review goes."""

    uri: StorageAddress
    """Folder or s3:// address: `pages/` holds posts and is for the experts, `key.json` tells which explanation is
    whose and stays with the researcher, `ratings/` is where `review import` looks for what comes back, `result/` is
    what it writes."""
    keep_comments: bool = False
    """Copy the experts' comments into `result/ratings.parquet`. Off by default, since they may quote posts."""


class ReviewConfig(ConfigModel):
    """Have experts rate explanations: `mentalglm review export` makes their pages, `review import` reads them back."""

    runs: dict[RunName, ReviewedRunConfig] = Field(min_length=1)
    """Name -> run. Of several, the same posts are rated for each, and no expert is told whose explanation is whose."""
    posts: PostsConfig | None = None
    """Where the posts are. Null: the column `text` of the first run (`output.keep_text`), else, like `posts: {}`, the
    input that its manifest names."""
    sample: dict[str, Size | dict[str, Size]] = Field(min_length=1)
    """Task -> how many posts of it are drawn, or label -> how many (parents too; `none`: no label applies), by the
    labels of the first run. The paper: {suicide_risk: 14, cognitive_distortion: 36, cognitive_pathway: 50}."""
    seed: int = Field(default=0, ge=0)
    """Decides what is drawn and, with an expert's name, the order of the items in that expert's page."""
    experts: list[ExpertName] = Field(min_length=1)
    output: ReviewOutputConfig
    language: Literal["zh", "en"] = "zh"
    """Of the pages when they are first opened; a reader may change it."""
    contact: str | None = Field(default=None, max_length=300)
    """Whom an expert turns to, with questions or when the posts weigh on them; shown in the pages."""
    num_bootstrap: int = Field(default=10_000, ge=0, le=1_000_000)
    """Replicates of the 95 % intervals of `review import`; 0: no intervals."""
    s3: S3Config = S3Config()

    @model_validator(mode="after")
    def _distinct(self) -> "ReviewConfig":
        folded = [name.casefold() for name in self.experts]
        if len(set(folded)) < len(folded):
            raise ValueError("experts: two have the same name, but for case; their pages would be one file")
        places = [(run.uri, run.adapter) for run in self.runs.values()]
        if len(set(places)) < len(places):
            raise ValueError("runs: two names are of the same run and adapter; name each once")
        return self
