"""A shard in, its posts out: what runs inside a worker."""

import errno
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mentalglm import storage
from mentalglm.config import InputConfig
from mentalglm.corpus import parquet
from mentalglm.corpus.files import root_of
from mentalglm.corpus.lines import TextRows
from mentalglm.corpus.plan import CorpusPlan, Shard
from mentalglm.corpus.rows import CorruptShardError, RawRows
from mentalglm.corpus.text import normalise, text_hash
from mentalglm.errors import InterruptedRunError


@dataclass(frozen=True, slots=True)
class Posts:
    """The rows of a shard, in the order of the file: lists of equal length, one value for each row."""

    ids: list[str | None]
    texts: list[str]
    """Normalised; empty where there is nothing to score."""
    statuses: list[str | None]
    """None: to be scored. Else `empty_text` or `invalid_input`."""
    reasons: list[str | None]
    """Why a row has a status, as a machine word."""
    flags: list[list[str]]
    """What was found in a row or repaired."""
    text_hashes: list[str]
    """`text_hash` of each text."""
    kept: pa.Table
    """The columns to copy, by the plan's `kept_schema`."""

    def __len__(self) -> int:
        return len(self.ids)


class ShardReader:
    """Reads shards of a plan. Keeps the last file open: reading in increasing order is cheapest, any order works."""

    def __init__(self, config: InputConfig, plan: CorpusPlan) -> None:
        self._config = config
        self._plan = plan
        self._fs, _ = storage.filesystem(config.uri)
        self._root = root_of(config)
        self._open: tuple[str, parquet.ParquetRows | TextRows] | None = None

    def read(self, shard: Shard) -> Posts:
        """The posts of a shard: always `shard.num_rows` of them.

        Raises: CorruptShardError when none of its rows can be read. Where some columns or rows can, they are given
        and the others are `invalid_input`, reason `corrupt_page`.
        """
        source = self._source(shard)
        if isinstance(source, TextRows):
            rows = source.read(shard.start, shard.stop, shard.num_rows, self._plan.kept_schema)
        else:
            arrays, unreadable = source.read(shard.start, shard.stop)
            columns = (self._config.id_column, self._config.text_column)
            if all(len(unreadable[column]) == shard.num_rows for column in columns):
                raise CorruptShardError(shard.file, "corrupt_page")
            rows = parquet.raw_rows(self._config, self._plan.kept_schema, arrays, unreadable, shard.num_rows)
        return self._posts(rows, shard)

    def _source(self, shard: Shard) -> parquet.ParquetRows | TextRows:
        if self._open is not None and self._open[0] == shard.file:
            return self._open[1]
        self._open = None
        file = self._plan.file(shard.file)
        path = f"{self._root}/{file.path}"
        source: parquet.ParquetRows | TextRows
        if shard.format == "parquet":
            columns = [self._config.id_column, self._config.text_column, *self._plan.kept_schema.names]
            source = parquet.ParquetRows(self._fs, path, columns, file.digest, file.path)
        else:
            source = TextRows(self._fs, path, shard.format, self._config, file.size, file.path)
        self._open = (shard.file, source)
        return source

    def _posts(self, rows: RawRows, shard: Shard) -> Posts:
        """Normalises, and gives a status to every row that is not to be scored."""
        rows.flag(_rows_within(self._plan.repeated_rows, shard), "duplicate_id")
        for row in _rows_within(self._plan.later_rows, shard) if self._config.duplicate_ids == "keep_first" else ():
            rows.problems.setdefault(row, "duplicate_id")
        texts: list[str] = []
        for row, raw in enumerate(rows.texts):
            text, flags = normalise(raw) if raw else ("", ())
            texts.append(text)
            for flag in flags:
                rows.flag((row,), flag)
        num_rows = len(texts)
        statuses: list[str | None] = [None] * num_rows
        reasons: list[str | None] = [None] * num_rows
        for row, (post_id, text) in enumerate(zip(rows.ids, texts, strict=True)):
            if post_id and text and not rows.problems:
                continue
            if reason := rows.problems.get(row) or (None if post_id else "null_id"):
                statuses[row], reasons[row] = "invalid_input", reason
            elif not text:
                statuses[row], reasons[row] = "empty_text", "null_text" if rows.texts[row] is None else "empty_text"
        return Posts(
            ids=[post_id or None for post_id in rows.ids],
            texts=texts,
            statuses=statuses,
            reasons=reasons,
            flags=[rows.flags.get(row, []) for row in range(num_rows)],
            text_hashes=[text_hash(text) for text in texts],
            kept=rows.kept,
        )


def unreadable_now(uri: str, error: OSError) -> InterruptedRunError:
    """What to tell of an input that S3 or the system does not give: it may pass, so no row is given up for it."""
    code = re.search(r"AWS Error (\w+)", str(error))
    what = code[1] if code else errno.errorcode.get(error.errno or 0, type(error).__name__)
    return InterruptedRunError(
        f"input.uri = {uri}: cannot be read for now ({what}); see to credentials, network and storage, then run the "
        "same command again"
    )


def _rows_within(global_rows: "np.ndarray[tuple[int], np.dtype[np.int64]]", shard: Shard) -> list[int]:
    """Of sorted row numbers of the corpus, those in the shard, counted from its first row."""
    first, last = np.searchsorted(global_rows, [shard.first_row, shard.first_row + shard.num_rows])
    found: list[int] = (global_rows[first:last] - shard.first_row).tolist()
    return found
