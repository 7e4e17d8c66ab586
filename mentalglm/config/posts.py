"""Where the posts are that a run has scored: for jobs that read its output and need the posts beside it."""

from typing import Literal

from pydantic import Field

from mentalglm.config.base import ConfigModel
from mentalglm.config.storage import StorageAddress


class PostsConfig(ConfigModel):
    """The posts of a run. What is not given is what the run was scored with, as its manifest says."""

    uri: StorageAddress | None = None
    """File, folder, glob or s3:// address of Parquet, JSONL or CSV."""
    format: Literal["auto", "parquet", "jsonl", "csv"] | None = None
    id_column: str | None = Field(default=None, min_length=1)
    text_column: str | None = Field(default=None, min_length=1)
