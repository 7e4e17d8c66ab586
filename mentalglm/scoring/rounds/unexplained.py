"""Which rows of a finished run are to be explained, told from `data/` alone.

They are those that have labels and no explanation and that `explain` and `cascade` choose. A row whose explanation was
asked for before and did not come (flag `explanation_failed`) is one of them; one whose answer had other labels, or no
explanation, is not: it would again.

What the row of a shard is in `data/`, its post id and text tell. Rows that are equal in these stand for each other.
"""

import bisect
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mentalglm import storage
from mentalglm.config import ScoreConfig
from mentalglm.corpus import Posts
from mentalglm.errors import InterruptedRunError
from mentalglm.scoring.cascade import DISAGREES, FAILED, MISSING, SAMPLED, is_chosen, is_sampled, sample_rate
from mentalglm.scoring.predictions import Outcome
from mentalglm.scoring.questions import Question, questions_of
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import FinishedPart, PartFile, part_path, read_finished_part, split
from mentalglm.tasks import Task

_NUM_READERS = 8
_CACHED_PARTS = 2
_SEPARATOR, _HALVES = "\x1f", "\x1e"  # not in labels
_ROW = "\0row"  # a name that no kept column has
_ROWS = pa.schema([("post_id", pa.string()), ("text_hash", pa.string()), (_ROW, pa.int64())])
_KNOWN_BY = ["post_id", "text_hash"]
_KNOWN = [*_KNOWN_BY, "labels", "parents", "finish_reason", "flags"]
CHOSEN_BY = [*_KNOWN, "status", "explanation", "confidence"]
"""Columns of `data/` that say which rows are to be explained, and what is known of them."""

BoolArray = np.ndarray[tuple[int], np.dtype[np.bool_]]
Int64Array = np.ndarray[tuple[int], np.dtype[np.int64]]

Labelled = Mapping[str, Mapping[int, Outcome]]
"""Key of a question -> row of a shard, in order -> what is known of it, without tokens, confidence and probability."""


def choose(config: ScoreConfig, task: Task, table: pa.Table) -> tuple[Int64Array, BoolArray]:
    """(rows of a table of predictions that are to be explained, whether each only fell into the sample)."""
    flags = table["flags"].combine_chunks()
    is_settled = pc.is_in(flags.flatten(), pa.array([DISAGREES, MISSING])).to_numpy(zero_copy_only=False)
    settled = np.zeros(table.num_rows, bool)
    settled[pc.list_parent_indices(flags).to_numpy()[is_settled]] = True
    is_open = pc.and_(pc.equal(table["status"].cast(pa.string()), "ok"), pc.is_null(table["explanation"]))
    rows = np.flatnonzero(is_open.to_numpy() & ~settled)
    # Labels repeat: each set of them is looked at once.
    found = _found(table.select(["labels", "parents"]).take(rows)).dictionary_encode()
    sets = [_labels(text) for text in found.dictionary.to_pylist()]
    of = found.indices.to_numpy()
    if config.explain == "uncertain":
        confidence = table["confidence"].take(rows).cast(pa.float64())
        chosen = pc.fill_null(pc.less(confidence, config.cascade.uncertain_below), True).to_numpy()
    else:
        chosen = np.array([is_chosen(config, task, *each, None) for each in sets], bool)[of]
    rates = np.array([sample_rate(config, *each) for each in sets], float)[of]
    others = np.flatnonzero(~chosen & (rates > 0))
    drawn = zip(table["text_hash"].take(rows[others]).to_pylist(), rates[others].tolist(), strict=True)
    sampled = np.zeros(len(rows), bool)
    sampled[others] = [is_sampled(task, text_hash, rate) for text_hash, rate in drawn]
    return rows[chosen | sampled], sampled[chosen | sampled]


def same_labels(one: pa.Table, other: pa.Table) -> BoolArray:
    """Which rows of two tables of as many predictions have the same labels."""
    is_same: BoolArray = pc.equal(_found(one), _found(other)).to_numpy(zero_copy_only=False)
    return is_same


def _found(table: pa.Table) -> pa.StringArray:
    """Labels and parents of each row as one text."""
    texts = [pc.binary_join(table[name].combine_chunks(), _SEPARATOR) for name in ("labels", "parents")]
    return pc.binary_join_element_wise(*texts, _HALVES, null_handling="replace")


def _labels(found: str) -> tuple[list[str], list[str]]:
    """The labels and parents that a text of `_found` was made of."""
    labels, parents = (half.split(_SEPARATOR) if half else [] for half in found.split(_HALVES))
    return labels, parents


class RowIndex:
    """Rows of a table, which has one chunk, by post id and text; it holds 16 bytes for each."""

    def __init__(self, table: pa.Table) -> None:
        self._known = table.select(_KNOWN_BY)
        keys = _keys(self._known)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, wanted: pa.Table, taken: BoolArray | None = None) -> Int64Array:
        """The row that is known by the same, for each row of `wanted`; -1 where there is none.

        Each is found once, those that are equal in order. `taken`: which ones are found, kept from call to call.
        """
        wanted = wanted.select(_KNOWN_BY)
        keys = _keys(wanted)
        taken = np.zeros(len(self._keys), bool) if taken is None else taken
        found = np.full(len(keys), -1)
        first, after = (np.searchsorted(self._keys, keys, side=side).tolist() for side in ("left", "right"))
        next_at: dict[int, int] = {}  # where the equal ones begin -> the first of them that may be left
        for number, (start, stop) in enumerate(zip(first, after, strict=True)):
            at = next_at.get(start, start)
            while at < stop and taken[self._order[at]]:
                at += 1
            if at < stop:
                row = self._order[at]
                taken[row], found[number] = True, row
            next_at[start] = at
        hits = np.flatnonzero(found >= 0)  # keys of 64 bits may be equal by chance
        for name in _KNOWN_BY:
            is_same = pc.equal(self._known[name].take(found[hits]), wanted[name].take(hits))
            hits = hits[pc.fill_null(is_same, False).to_numpy()]
        return np.where(np.isin(np.arange(len(found)), hits), found, -1)


def _keys(table: pa.Table) -> Int64Array:
    columns = (table[name].to_pylist() for name in _KNOWN_BY)
    return np.fromiter((hash(key) for key in zip(*columns, strict=True)), np.int64, table.num_rows)


class UnexplainedRows:
    """The rows of a shard that are to be explained, as the workers of a run look for them. Threads may share it.

    `parts`: (first shard, shard behind the last, number of the part), in order: where the shards' rows are.
    """

    def __init__(
        self, ledger: Ledger, config: ScoreConfig, questions: Sequence[Question], parts: Sequence[tuple[int, int, int]]
    ) -> None:
        self._ledger = ledger
        self._config = config
        self._questions = questions
        self._parts = list(parts)
        self._lock = Lock()
        self._kept: OrderedDict[int, dict[str, _WantedRows | None]] = OrderedDict()
        """Part -> what is wanted of each file; None: not read yet. Shards come in order: the last parts are enough."""

    def of(self, shard: int, posts: Posts) -> Labelled:
        """What is known of them, by question; without the questions of which there are none."""
        position = bisect.bisect_right(self._parts, shard, key=lambda part: part[0]) - 1
        number = self._parts[position][2]
        kept = posts.kept.select(self._config.output.partition_by)
        rows = pa.table({"post_id": posts.ids, "text_hash": posts.text_hashes, _ROW: np.arange(len(posts))}, _ROWS)
        for name in kept.column_names:
            rows = rows.append_column(name, kept[name])
        labelled: dict[str, dict[int, Outcome]] = {}
        with self._lock:
            files = self._files(number)
            for place, those in split(rows, kept.column_names):
                for question in self._questions:
                    path = part_path(f"task={question.key}", place, number)
                    if path in files:
                        wanted = files[path] = files[path] or _WantedRows(
                            self._ledger.path(path), self._config, question
                        )
                        labelled.setdefault(question.key, {}).update(wanted.of(those, posts))
        return {key: dict(sorted(each.items())) for key, each in labelled.items() if each}

    def _files(self, number: int) -> dict[str, "_WantedRows | None"]:
        files = self._kept.pop(number, None)
        if files is None:
            part = read_finished_part(self._ledger, number)
            files = dict.fromkeys(file.path for file in part.files)
        self._kept[number] = files
        if len(self._kept) > _CACHED_PARTS:
            self._kept.popitem(last=False)
        return files


class _WantedRows:
    """Those of a file."""

    def __init__(self, uri: str, config: ScoreConfig, question: Question) -> None:
        self._table = pa.concat_tables(wanted_rows(uri, config, question.task)).combine_chunks()
        self._index = RowIndex(self._table)

    def of(self, rows: pa.Table, posts: Posts) -> dict[int, Outcome]:
        """Row of the shard -> what is known of it, for those of these rows that are wanted."""
        found = self._index.find(rows)
        is_found = found >= 0
        numbers = rows[_ROW].to_numpy()[is_found].tolist()
        known = self._table.take(found[is_found]).to_pylist()
        return {row: _outcome(each, posts.flags[row]) for row, each in zip(numbers, known, strict=True)}


def _outcome(known: Mapping[str, Any], flags_of_post: Sequence[str]) -> Outcome:
    flags = [flag for flag in known["flags"] if flag not in (*flags_of_post, FAILED, SAMPLED)]
    is_sampled = known[SAMPLED] or SAMPLED in known["flags"]
    return Outcome(
        "ok",
        labels=tuple(known["labels"]),
        parents=None if known["parents"] is None else tuple(known["parents"]),
        finish_reason=known["finish_reason"],
        flags=(*flags, *([SAMPLED] if is_sampled else [])),
    )


def wanted_rows(uri: str, config: ScoreConfig, task: Task) -> Iterator[pa.Table]:
    """What is known of the rows of a file of predictions that are to be explained, group by group.

    Raises: InterruptedRunError where it cannot be read.
    """
    for table in _row_groups(uri):
        rows, sampled = choose(config, task, table)
        yield table.select(_KNOWN).take(rows).append_column(SAMPLED, pa.array(sampled))


def _row_groups(uri: str) -> Iterator[pa.Table]:
    fs, path = storage.filesystem(uri)
    try:
        with fs.open_input_file(path) as data:
            source = pq.ParquetFile(data, page_checksum_verification=True)
            for group in range(source.num_row_groups):
                yield source.read_row_group(group, columns=CHOSEN_BY)
    except (OSError, pa.ArrowException) as error:
        raise InterruptedRunError(
            f"{storage.shown(uri)}: cannot be read ({type(error).__name__}); see to it and run the same command again"
        ) from None


def count_wanted(ledger: Ledger, config: ScoreConfig, tasks: Sequence[Task], part: FinishedPart) -> int:
    """How many rows of a part are to be explained."""
    by_key = {f"task={question.key}": question.task for question in questions_of(config, tasks)}

    def count(file: PartFile) -> int:
        return sum(table.num_rows for table in wanted_rows(ledger.path(file.path), config, by_key[file.kind]))

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return sum(pool.map(count, (file for file in part.files if file.kind in by_key)))
