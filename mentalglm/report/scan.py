"""The predictions of a task counted in one pass, batch by batch: memory does not grow with the rows.

What is kept is small: counts by status, label, pair of labels, hundredth of a probability, and day. Where predictions
are to be joined later, each row is written to a temporary file as 16 bytes, a hash of its id and its labels as bits.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from mentalglm.evaluation.predictions import scan
from mentalglm.report import dates
from mentalglm.report.sources import LabelSet

Integers = npt.NDArray[np.int64]
Bits = npt.NDArray[np.bool_]

NUM_BARS = 100
"""Of a histogram, from 0 to 1, before bars are joined."""
MAX_JOINED_LABELS = 62
_BUCKETS_BITS = 6
ROW = np.dtype([("id", "<u8"), ("labels", "<i8")])
"""What is written of a row: a hash of its id, and a bit for each label, -1 without a result."""


@dataclass
class Counts:
    """Over the predictions of one task."""

    num_rows: int
    statuses: Counter[str]
    flags: Counter[str]
    labels: Integers
    """(num_labels,), of rows with a result."""
    pairs: Integers
    """(num_labels, num_labels)."""
    num_none: int
    """Rows with a result to which no label applies."""
    num_explained: int
    """Rows with a result and an explanation."""
    histograms: dict[str, Integers]
    """`confidence`, `probability` -> (NUM_BARS,); rows with a result that have one."""
    by_day: dict[int, Integers]
    """Day -> rows of it, then rows of each label."""
    date_column: str | None
    examples: list[dict[str, Any]] = field(default_factory=list)
    """text, labels, explanation, confidence."""

    @property
    def num_dated(self) -> int:
        """Rows that say when."""
        return sum(int(each[0]) for each in self.by_day.values())


class Buckets:
    """Rows on disk, by the first bits of the hash of their id, for joining one bucket at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._paths = [folder / f"{number:02d}" for number in range(1 << _BUCKETS_BITS)]
        self._files = [path.open("wb") for path in self._paths]

    def add(self, ids: npt.NDArray[np.uint64], labels: Integers) -> None:
        """Appends rows."""
        rows = np.empty(len(ids), ROW)
        rows["id"], rows["labels"] = ids, labels
        number = (ids >> np.uint64(64 - _BUCKETS_BITS)).astype(np.int64)
        rows = rows[np.argsort(number, kind="stable")]
        ends = np.cumsum(np.bincount(number, minlength=len(self._files)))
        for file, part in zip(self._files, np.split(rows, ends[:-1]), strict=True):
            file.write(part.tobytes())

    def close(self) -> None:
        """All is written."""
        for file in self._files:
            file.close()

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """The rows of each bucket, sorted by id; ids that occur more than once are left out."""
        for path in self._paths:
            rows = np.fromfile(path, ROW)
            rows = rows[np.argsort(rows["id"], kind="stable")]
            is_new = rows["id"][1:] != rows["id"][:-1]
            keep = np.ones(len(rows), np.bool_)
            keep[1:] &= is_new
            keep[:-1] &= is_new
            yield rows[keep]


def count(
    dataset: pads.Dataset,
    task: LabelSet,
    date_column: str | None,
    *,
    num_examples: int = 0,
    seed: int = 0,
    buckets: Buckets | None = None,
) -> Counts:
    """Reads only the columns that are needed, each once. Raises: InputError where a file cannot be read."""
    names = ["status", "labels", "parents", "explanation", "flags", "confidence", "probability"]
    names += [date_column] if date_column else []
    names += ["post_id"] if buckets is not None else []
    names += ["text"] if num_examples else []
    columns = [name for name in dict.fromkeys(names) if name in dataset.schema.names]
    counter = _Counter(task, date_column, num_examples, seed, buckets)
    for batch in scan(dataset, _projection(columns, num_examples), field="runs"):
        counter.add(batch)
    return counter.counts


def _projection(columns: Sequence[str], num_examples: int) -> dict[str, pads.Expression]:
    """Of an explanation, whether there is one: their texts are most of the bytes."""
    found = {name: pads.field(name) for name in columns}
    if "explanation" in found and not num_examples:
        found["explanation"] = pads.field("explanation").is_valid()
    return found


class _Counter:
    def __init__(
        self, task: LabelSet, date_column: str | None, num_examples: int, seed: int, buckets: Buckets | None
    ) -> None:
        self._slugs = pa.array(task.slugs, pa.string())
        self._num_examples, self._random = num_examples, random.Random(seed)  # noqa: S311 - a draw that can be repeated
        self._num_drawn_from = 0
        self._buckets = buckets
        width = len(task.slugs)
        self.counts = Counts(
            num_rows=0,
            statuses=Counter(),
            flags=Counter(),
            labels=np.zeros(width, np.int64),
            pairs=np.zeros((width, width), np.int64),
            num_none=0,
            num_explained=0,
            histograms={},
            by_day={},
            date_column=date_column,
        )

    def add(self, batch: pa.RecordBatch) -> None:
        counts, names = self.counts, batch.schema.names
        status = batch["status"].cast(pa.string())
        has_result = pc.fill_null(pc.equal(status, "ok"), False)
        is_ok = has_result.to_numpy(zero_copy_only=False)
        counts.num_rows += batch.num_rows
        counts.statuses.update(_tally(status))
        hot = self._labels(batch)
        hot[~is_ok] = False
        ones = hot.astype(np.float32)  # exact: a batch has fewer rows than float32 counts exactly
        counts.labels += hot.sum(axis=0)
        counts.pairs += (ones.T @ ones).astype(np.int64)
        counts.num_none += int((is_ok & ~hot.any(axis=1)).sum())
        if "flags" in names:
            counts.flags.update(_tally(pc.list_flatten(batch["flags"])))
        if "explanation" in names:
            explained = batch["explanation"]
            is_there = explained if pa.types.is_boolean(explained.type) else explained.is_valid()
            counts.num_explained += int(pc.sum(pc.and_(is_there, has_result)).as_py() or 0)
        for name in ("confidence", "probability"):
            if name in names:
                self._add_to_histogram(name, batch[name].filter(has_result))
        if counts.date_column in names:
            self._add_days(dates.days(batch[counts.date_column]), hot)
        if self._buckets is not None:
            bits = hot.astype(np.int64) @ (np.int64(1) << np.arange(hot.shape[1], dtype=np.int64))
            self._buckets.add(hash_texts(batch["post_id"]), np.where(is_ok, bits, -1))
        if self._num_examples and "text" in names:
            self._draw(batch, is_ok)

    def _labels(self, batch: pa.RecordBatch) -> Bits:
        hot = np.zeros((batch.num_rows, len(self._slugs)), np.bool_)
        for name in ("labels", "parents"):
            if name not in batch.schema.names:
                continue
            rows = pc.list_parent_indices(batch[name]).to_numpy()
            columns = pc.index_in(pc.list_flatten(batch[name]).cast(pa.string()), value_set=self._slugs)
            is_known = columns.is_valid().to_numpy(zero_copy_only=False)
            hot[rows[is_known], columns.drop_null().to_numpy()] = True
        return hot

    def _add_to_histogram(self, name: str, column: pa.Array) -> None:
        values = column.drop_null().to_numpy()
        values = values[~np.isnan(values)]  # as missing as null, to an evaluation too
        if len(values):
            bars = np.clip((values * NUM_BARS).astype(np.int64), 0, NUM_BARS - 1)
            found = self.counts.histograms.setdefault(name, np.zeros(NUM_BARS, np.int64))
            found += np.bincount(bars, minlength=NUM_BARS)

    def _add_days(self, days: Integers, hot: Bits) -> None:
        found, at = np.unique(days, return_inverse=True)
        sums = np.zeros((len(found), hot.shape[1] + 1), np.int64)
        sums[:, 0] = np.bincount(at, minlength=len(found))
        for column in range(hot.shape[1]):
            sums[:, column + 1] = np.bincount(at[hot[:, column]], minlength=len(found))
        for day, row in zip(found.tolist(), sums, strict=True):
            if day != dates.NO_DAY:
                known = self.counts.by_day.get(day)
                self.counts.by_day[day] = row.copy() if known is None else known + row

    def _draw(self, batch: pa.RecordBatch, is_ok: Bits) -> None:
        """Algorithm R (Vitter, 1985): each row with a result is as likely as any other."""
        for row in np.flatnonzero(is_ok).tolist():
            self._num_drawn_from += 1
            place = len(self.counts.examples)
            if place == self._num_examples:
                place = self._random.randrange(self._num_drawn_from)
                if place >= self._num_examples:
                    continue
                del self.counts.examples[place]
            names = ("text", "labels", "explanation", "confidence")
            example = {name: batch[name][row].as_py() for name in names if name in batch.schema.names}
            self.counts.examples.insert(place, example)


def hash_texts(column: pa.Array) -> npt.NDArray[np.uint64]:
    """64 bits of each text, equal for equal texts on every machine (FNV-1a over bytes, then the finaliser of
    SplitMix64). Among 100 M ids two collide with a chance of 0.03 %."""
    column = column.cast(pa.large_binary())
    data = np.frombuffer(column.buffers()[2] or b"", np.uint8)
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    starts, lengths = offsets[:-1], np.diff(offsets)
    found = np.full(len(column), 0xCBF29CE484222325, np.uint64)
    order = np.argsort(-lengths, kind="stable")
    for position in range(int(lengths.max(initial=0))):
        rows = order[: int((lengths > position).sum())]
        found[rows] = (found[rows] ^ data[starts[rows] + position]) * np.uint64(0x100000001B3)
    found ^= found >> np.uint64(30)
    found *= np.uint64(0xBF58476D1CE4E5B9)
    found ^= found >> np.uint64(27)
    found *= np.uint64(0x94D049BB133111EB)
    return found ^ (found >> np.uint64(31))


def _tally(values: pa.Array) -> dict[str, int]:
    counted = pc.value_counts(values)
    return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


@dataclass(frozen=True, slots=True)
class Joined:
    """Rows of two sides with the same id."""

    num_rows: int
    num_same: int
    """Whose labels are equal, or which both have no result."""
    num_alone: tuple[int, int]
    """Rows of each side that the other has not."""
    both: Integers
    """(num_labels, num_other_labels): rows with a label here and a label there."""
    here: Integers
    """(num_labels,), of the joined rows."""
    there: Integers


def join(here: Buckets, there: Buckets, num_labels: int, num_other_labels: int) -> Joined:
    """Row by row, bucket by bucket."""
    num_rows = num_same = 0
    alone = [0, 0]
    both = np.zeros((num_labels, num_other_labels), np.int64)
    sums = [np.zeros(num_labels, np.int64), np.zeros(num_other_labels, np.int64)]
    for mine, theirs in zip(here, there, strict=True):
        _, at, other = np.intersect1d(mine["id"], theirs["id"], assume_unique=True, return_indices=True)
        num_rows += len(at)
        alone = [alone[0] + len(mine) - len(at), alone[1] + len(theirs) - len(at)]
        pair = mine["labels"][at], theirs["labels"][other]
        num_same += int((pair[0] == pair[1]).sum())
        # Far fewer combinations of labels than rows.
        combinations, times = np.unique(np.stack(pair, axis=1), axis=0, return_counts=True)
        hot = [_unpacked(combinations[:, side], len(sums[side])) for side in (0, 1)]
        both += (hot[0] * times[:, None]).T @ hot[1]
        for side in (0, 1):
            sums[side] += times @ hot[side]
    return Joined(num_rows, num_same, (alone[0], alone[1]), both, sums[0], sums[1])


def _unpacked(bits: Integers, num_labels: int) -> Integers:
    """(num_rows,) -> (num_rows, num_labels) of 0 and 1; nothing without a result."""
    found: Integers = (bits[:, None] >> np.arange(num_labels)) & 1
    return np.where(bits[:, None] >= 0, found, 0)
