"""Config of a tables job: which evaluations stand beside the paper's figures."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from mentalglm.config.base import ConfigModel
from mentalglm.config.storage import S3Config, StorageAddress


def _is_a_row_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", name):
        raise ValueError("is no name for a row; use up to 64 letters, digits, dots, dashes and underscores")
    return name


def _is_a_pattern(address: str) -> str:
    if set(re.findall(r"{.*?}|[{}]", address)) != {"{row}", "{column}"}:
        raise ValueError("must hold {row} and {column}, and no other braces; write it like evaluated/{row}/{column}")
    return address


RowName = Annotated[str, AfterValidator(_is_a_row_name)]


class TableConfig(ConfigModel):
    """What fills one table."""

    rows: dict[RowName, dict[str, StorageAddress]] = {}
    """Row -> column -> the `output.uri` of an eval job, whose `metrics.json` fills the cell; a column with parents and
    children is filled by one evaluation. Rows and columns that are not named stay as the paper has them."""
    evaluations: Annotated[StorageAddress, AfterValidator(_is_a_pattern)] | None = None
    """Where the evaluations of all others are, with `{row}` and `{column}` in it; those that are there fill their cell.
    """
    more_rows: dict[RowName, Annotated[str, Field(min_length=1)]] = {}
    """Rows of your own: name -> title."""


class TablesOutputConfig(ConfigModel):
    """Where the tables go."""

    uri: StorageAddress
    """Folder or s3:// address for <table>.md, .tex, .html and .parquet; those of an earlier call are replaced."""


class TablesConfig(ConfigModel):
    """Fill the paper's tables by evaluations of runs, beside the figures that it prints."""

    tables: dict[str, TableConfig] = Field(min_length=1)
    """Name of a table (table_3, table_4, table_5, table_s1), or the path of a YAML of your own -> what fills it."""
    output: TablesOutputConfig
    s3: S3Config = S3Config()
