"""Config of labelled posts: what is learned from, or shown as examples."""

from typing import Annotated

from pydantic import Field

from mentalglm.config.base import ConfigModel
from mentalglm.config.storage import StorageAddress

EXPLANATION_COLUMN = "explanation"


class RecordsConfig(ConfigModel):
    """Instruction records, one row each: a post, a task, the labels to learn and, maybe, the explanation."""

    uri: StorageAddress
    """JSONL or Parquet file, or s3:// address."""
    task: str | None = None
    """Task of all rows: a built-in name or a task file. Null: `task_column` says it."""
    task_column: str = "task"
    task_names: dict[str, str] = {}
    """What `task_column` calls a task -> our name for it, where they differ."""
    id_column: str | None = None
    """Names the rows in messages and in the validation's predictions; null: they are numbered."""
    text_column: str = "text"
    labels_column: str = "labels"
    """A list of labels, or a text that names them, such as the answer itself; slugs, names, or 0 and 1."""
    explanation_column: str | None = EXPLANATION_COLUMN
    """Null, or an empty value: the answer ends after its labels. A file without explanations may lack the column of the
    default name, and of no other."""
    weight: float = Field(default=1.0, gt=0, le=100)
    """How often each row is seen in an epoch: 2 twice, 0.5 half of the rows, drawn anew in each epoch."""
    task_weights: dict[str, Annotated[float, Field(gt=0, le=100)]] = {}
    """Name of a task in this file -> what `weight` is multiplied by for its rows; rows are then drawn task by task."""
