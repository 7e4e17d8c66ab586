"""Posts whose text an earlier post of the corpus has: scored once, and the result copied to each of them.

The original of a text is its first row in the corpus, so that no result depends on who scores what when, and a shard
waits for earlier shards alone: the first one that is not committed waits for none.

    _run/duplicates.parquet            which rows are copies of which; found once, before scoring begins
    _run/originals/<shard>.parquet     results of a shard's rows that later shards copy; written before its commit
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mentalglm import storage
from mentalglm.config import ScoreConfig
from mentalglm.corpus import CorpusPlan, CorruptShardError, Posts, Shard, ShardReader, unreadable_now
from mentalglm.errors import InternalError, InterruptedRunError, UserError, told
from mentalglm.scoring.board import RunBoard
from mentalglm.scoring.predictions import PARQUET_OPTIONS, Outcome
from mentalglm.scoring.run.ledger import Ledger

_FILE = "duplicates.parquet"
_ENTRY_BYTES = 24
_PARTITION_BYTES = 32 << 20
_ROW_GROUP_SIZE = 65_536
_CACHED_SHARDS = 256
_PAIRS = pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("original", pa.int64(), nullable=False)])
_HASHES = pa.schema([("low", pa.uint64()), ("high", pa.uint64()), ("row", pa.int64())])
Reasons = Mapping[str, Sequence[str | None]]
# Of an original, what its copies get; tokens are not theirs.
_COPIED = [
    field.name for field in fields(Outcome) if not field.name.startswith("num_") and field.name != "duplicate_of"
]


@dataclass(frozen=True, slots=True)
class ShardDuplicates:
    """What a shard has to do with equal texts."""

    copies: Mapping[int, int]
    """Row of the shard, from 0 -> row of the corpus whose result it gets; always an earlier one."""
    originals: Sequence[int]
    """Rows of the shard whose results later shards copy."""


NO_DUPLICATES = ShardDuplicates({}, ())


def duplicates_within(posts: Posts, shard: Shard) -> ShardDuplicates:
    """The rows whose text an earlier row of the same shard has."""
    copies = copies_among(posts, range(len(posts)))
    return ShardDuplicates({row: shard.first_row + original for row, original in copies.items()}, ())


def copies_among(posts: Posts, rows: Iterable[int]) -> dict[int, int]:
    """Row -> the first of `rows` that has the same text, where that is an earlier one. Rows of a shard, from 0."""
    first: dict[str, int] = {}
    originals = {row: first.setdefault(posts.text_hashes[row], row) for row in rows if posts.statuses[row] is None}
    return {row: original for row, original in originals.items() if original != row}


def find_duplicates(config: ScoreConfig, plan: CorpusPlan, ledger: Ledger) -> None:
    """Finds the copies in the whole corpus, unless that is done: reads every text once, on all nodes.

    Texts are compared by their hashes of 128 bits, which a shuffle of Ray Data brings together. Ray must be connected.
    Raises: InterruptedRunError when Ray, storage or the input fails; what else a worker has met, as it told it.
    """
    path = ledger.path("_run", _FILE)
    if storage.exists(path):
        return
    import ray

    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    num_blocks = min(plan.num_shards, 4 * num_cpus)
    num_partitions = max(num_cpus, plan.num_rows * _ENTRY_BYTES // _PARTITION_BYTES)
    bounds = np.linspace(0, plan.num_shards, num_blocks + 1).astype(int).tolist()
    board = ray.remote(num_cpus=0)(RunBoard).remote([])  # no shards: for what the workers meet
    pairs = (
        ray.data.from_items(
            [{"start": start, "stop": stop} for start, stop in pairwise(bounds)],
            override_num_blocks=num_blocks,
        )
        .map_batches(_hashes, fn_args=(config, board), batch_size=1)
        .repartition(num_partitions, keys=["low", "high"])
        .map_batches(_pairs, fn_args=(config, board), batch_size=None, batch_format="pyarrow")
        .sort(["row", "original"])
    )
    try:
        with ledger.scratch() as folder:
            with pq.ParquetWriter(folder / _FILE, _PAIRS, **PARQUET_OPTIONS) as writer:
                for batch in pairs.iter_batches(batch_size=_ROW_GROUP_SIZE, batch_format="pyarrow"):
                    if batch.num_rows:
                        writer.write_table(batch.select(_PAIRS.names).cast(_PAIRS))
            if error := ray.get(board.news.remote()).error:
                raise told(*error)
            storage.put_file_if_absent(path, folder / _FILE, ledger.staging)
    except UserError:
        raise
    except Exception as failure:  # Ray's own words may quote what a task was working on
        raise InterruptedRunError(
            f"dedup = corpus: looking for equal texts failed ({type(failure).__name__}); see to the cluster and to "
            "input.uri, and run the same command again"
        ) from None


@contextmanager
def _telling(board: Any, config: ScoreConfig) -> Iterator[None]:
    """What goes wrong in a worker ends here and is told to the board as data: Ray would log it, on the terminal too,
    and its words may quote a post."""
    import ray

    error: UserError
    try:
        yield
        return
    except UserError as caught:
        error = caught
    except OSError as caught:  # of reading: storage.py has words of its own
        error = unreadable_now(config.input.uri, caught)
    except Exception as caught:
        error = InternalError.withholding(caught)
    ray.get(board.fail.remote(type(error).__name__, str(error)))


def _hashes(ranges: Mapping[str, Any], config: ScoreConfig, board: Any) -> Iterator[pa.Table]:
    """(hash, row of the corpus) of each text of a range of shards; of those that are to be scored."""
    import ray

    yield _HASHES.empty_table()
    with _telling(board, config):
        storage.configure(config.s3)
        plan = Ledger(config.output.uri).read_plan()
        reader = ShardReader(config.input, plan)
        for start, stop in zip(ranges["start"], ranges["stop"], strict=True):
            for shard in map(plan.shard, range(start, stop)):
                if ray.get(board.is_stopped.remote()):
                    return
                try:
                    posts = reader.read(shard)
                except CorruptShardError:
                    continue  # whoever scores it will find the same
                rows = np.array([row for row, status in enumerate(posts.statuses) if status is None], np.int64)
                digests = b"".join(bytes.fromhex(posts.text_hashes[row]) for row in rows)
                words = np.frombuffer(digests, "<u8").reshape(-1, 2)
                columns = [pa.array(words[:, 0].copy()), pa.array(words[:, 1].copy()), pa.array(rows + shard.first_row)]
                yield pa.Table.from_arrays(columns, schema=_HASHES)


def _pairs(entries: pa.Table, config: ScoreConfig, board: Any) -> pa.Table:
    """(row, its original) of each copy; (row, itself) of each original that a later shard copies."""
    pairs = _PAIRS.empty_table()
    with _telling(board, config):
        storage.configure(config.s3)
        plan = Ledger(config.output.uri).read_plan()
        low, high, row = (entries.column(name).to_numpy() for name in _HASHES.names)
        order = np.lexsort((row, high, low))
        low, high, row = low[order], high[order], row[order]
        is_first = np.ones(len(row), bool)
        is_first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
        original = row[np.maximum.accumulate(np.where(is_first, np.arange(len(row)), 0))]
        copies, of = row[~is_first], original[~is_first]
        wanted = np.unique(of[plan.shards_of(copies) != plan.shards_of(of)])
        columns = [pa.array(np.r_[copies, wanted]), pa.array(np.r_[of, wanted])]
        pairs = pa.Table.from_arrays(columns, schema=_PAIRS)
    return pairs


class CorpusDuplicates:
    """The copies of a run, as its workers use them. Threads may share it."""

    def __init__(self, ledger: Ledger, plan: CorpusPlan) -> None:
        self._ledger = ledger
        self._plan = plan
        self._lock = Lock()
        self._kept: OrderedDict[int, dict[str, dict[str, Any]]] = OrderedDict()
        fs, path = storage.filesystem(ledger.path("_run", _FILE))
        self._file = pq.ParquetFile(fs.open_input_file(path), page_checksum_verification=True)
        groups = [
            self._file.metadata.row_group(number).column(0).statistics for number in range(self._file.num_row_groups)
        ]
        self._group_max = np.array([group.max for group in groups], np.int64)
        self._group_min = np.array([group.min for group in groups], np.int64)

    def of(self, shard: Shard) -> ShardDuplicates:
        """What the shard has to do with equal texts in the corpus."""
        first, stop = shard.first_row, shard.first_row + shard.num_rows
        groups = np.flatnonzero((self._group_max >= first) & (self._group_min < stop)).tolist()
        if not groups:
            return NO_DUPLICATES
        with self._lock:
            table = self._file.read_row_groups(groups)
        row, original = (table.column(name).to_numpy() for name in _PAIRS.names)
        inside = (row >= first) & (row < stop)
        pairs = list(zip((row[inside] - first).tolist(), original[inside].tolist(), strict=True))
        return ShardDuplicates(
            copies={each: of for each, of in pairs if of != first + each},
            originals=[each for each, of in pairs if of == first + each],
        )

    def keep(
        self, shard: Shard, rows: Sequence[int], posts: Posts, tables: Mapping[str, pa.Table], reasons: Reasons
    ) -> None:
        """Keeps the results of these rows of a shard for later shards. `tables`: task -> predictions, as they stand."""
        results = {
            str(shard.first_row + row): {
                task: _described(table, row, posts, reasons[task][row]) for task, table in tables.items()
            }
            for row in rows
        }
        storage.put_if_absent(self._path(shard.index), json.dumps(results).encode(), self._ledger.staging)

    def by_shard(self, originals: Iterable[int]) -> dict[int, list[int]]:
        """These rows of the corpus by the shard that they are in."""
        rows = np.unique(np.array(list(originals), np.int64))
        found: dict[int, list[int]] = {}
        for shard, row in zip(self._plan.shards_of(rows).tolist(), rows.tolist(), strict=True):
            found.setdefault(shard, []).append(row)
        return found

    def results(self, shard: int, originals: Iterable[int]) -> dict[int, dict[str, Outcome]] | None:
        """Row of the corpus -> task -> result for its copies, as the shard has kept them.

        None: it has kept nothing yet. Without the rows that it never will keep: they cannot be read, or their shard
        was given up before they were asked for.
        """
        with self._lock:
            kept = self._kept.pop(shard, None)
        if kept is None:
            kept = self._read(shard)
            if kept is None:
                if self._ledger.read_commit(shard) is None:
                    return None
                if (kept := self._read(shard)) is None:  # what it keeps is there before its commit
                    return {}
        with self._lock:
            self._kept[shard] = kept
            if len(self._kept) > _CACHED_SHARDS:
                self._kept.popitem(last=False)
        return {
            row: {task: _outcome(each) for task, each in kept[str(row)].items()}
            for row in originals
            if str(row) in kept
        }

    def _read(self, shard: int) -> dict[str, dict[str, Any]] | None:
        data = storage.read_bytes(self._path(shard))
        return None if data is None else json.loads(data)

    def _path(self, shard: int) -> str:
        return self._ledger.path("_run", "originals", f"{shard:08d}.json")


def copy_of(outcome: Outcome, post_id: str | None) -> Outcome:
    """The result of a copy: that of its original, whose id is `post_id`. No tokens: they are paid for once."""
    return replace(outcome, duplicate_of=post_id, num_prompt_tokens=None, num_output_tokens=None)


def _described(table: pa.Table, row: int, posts: Posts, reason: str | None) -> dict[str, Any]:
    copied = [name for name in _COPIED if name in table.column_names]  # without `reason`, and what is not asked for
    record: dict[str, Any] = table.select(copied).slice(row, 1).to_pylist()[0]
    flags = [flag for flag in record["flags"] if flag not in posts.flags[row]]  # those are of the row, not of its text
    return record | {"flags": flags, "reason": reason, "duplicate_of": posts.ids[row]}


def _outcome(record: Mapping[str, Any]) -> Outcome:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
    }
    if values.get("label_scores") is not None:
        values["label_scores"] = tuple((label, score) for label, score in values["label_scores"])
    return Outcome(**values)
