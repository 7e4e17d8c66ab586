"""Config of a baseline job: the model that a language model should be better than, trained in seconds."""

from typing import Annotated

from pydantic import Field, field_validator

from mentalglm.config.base import ConfigModel
from mentalglm.config.records import RecordsConfig
from mentalglm.config.storage import S3Config, StorageAddress


class BaselineOutputConfig(ConfigModel):
    """Where the model goes."""

    uri: StorageAddress
    """Folder or s3:// address; `model/` in it is for `model.path` of a score job."""


class BaselineConfig(ConfigModel):
    """Train a logistic regression over character n-grams (TF-IDF) for one task. It reads the post alone."""

    train: list[RecordsConfig] = Field(min_length=1)
    """As in a train job, all of one task. Strength of regularisation and threshold are chosen on these records by
    cross-validation, so there is nothing to hold out: validation records may be named here too."""
    output: BaselineOutputConfig
    ngrams: tuple[int, int] | None = None
    """Shortest and longest, in characters. Default: 1 to 3 of Chinese; 2 to 5 of English, within words."""
    min_count: int = Field(default=2, ge=1)
    """Records that an n-gram must occur in to count."""
    inverse_regularization: list[Annotated[float, Field(gt=0)]] = Field(
        default=[0.3, 1.0, 3.0, 10.0, 30.0], min_length=1
    )
    """scikit-learn's C. Of several, the best by the task's own metric on records that a model has not seen."""
    num_folds: int = Field(default=3, ge=2, le=20)
    """Of that cross-validation. Equal texts lie in one fold."""
    max_characters: int = Field(default=20_000, ge=1)
    """Longest post that is read whole, in training and in scoring; the end of longer ones is cut."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    s3: S3Config = S3Config()

    @field_validator("ngrams")
    @classmethod
    def _is_a_range(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 1 <= value[0] <= value[1] <= 10:
            raise ValueError("must be [shortest, longest], from 1 to 10 and in this order")
        return value
