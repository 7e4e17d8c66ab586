"""Ids that occur more than once, found over a corpus of any size in bounded memory."""

import errno
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from mentalglm.errors import InputError

_BUCKET_ROWS = 4_000_000
_NUM_STREAMS = 4
_ENTRY = np.dtype([("low", "<u8"), ("high", "<u8"), ("row", "<i8")])

Int64Array = np.ndarray[tuple[int], np.dtype[np.int64]]
UInt64Array = np.ndarray[tuple[int], np.dtype[np.uint64]]
Entries = np.ndarray[tuple[int], np.dtype[np.void]]


def find_repeated(streams: Iterable[Iterable[tuple[int, pa.Array]]], num_rows: int) -> tuple[Int64Array, Int64Array]:
    """Sorted numbers of the rows whose id occurs more than once, and of those that are not the first with it.

    `streams`: (number of the first row, large_string ids), about `num_rows` rows in all; several streams are read at
    once. Nulls and empty ids do not count. Ids are compared by hashes of 128 bits: among 10^9 ids the chance that two
    that differ are taken for equal is below 10^-20. Takes 24 bytes of memory for each row up to 4 million rows; beyond
    that, 24 bytes each in a temporary folder and memory for 4 million.
    Raises: InputError when the disk of that folder is full.
    """
    num_buckets = max(1, -(-num_rows // _BUCKET_ROWS))
    if num_buckets == 1:
        with ThreadPoolExecutor(_NUM_STREAMS) as pool:
            found = pool.map(lambda stream: [_entries(first, ids) for first, ids in stream], streams)
            parts = [entries for entries_of_stream in found for entries in entries_of_stream]
        return _repeated_in(np.concatenate([np.empty(0, _ENTRY), *parts]))
    try:
        with tempfile.TemporaryDirectory(prefix="mentalglm-ids-") as folder:
            paths = [Path(folder, str(bucket)) for bucket in range(num_buckets)]
            with ExitStack() as stack, ThreadPoolExecutor(_NUM_STREAMS) as pool:
                buckets = [_Bucket(stack.enter_context(path.open("wb"))) for path in paths]
                for _ in pool.map(lambda stream: _distribute(stream, buckets), streams):
                    pass
            repeated, later = zip(*(_repeated_in(np.fromfile(path, _ENTRY)) for path in paths), strict=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"TMPDIR = {tempfile.gettempdir()}: no space left for the ids of {num_rows} rows "
            f"({num_rows * _ENTRY.itemsize / 1e9:.1f} GB); set TMPDIR to a folder with that much room"
        ) from None
    return np.sort(np.concatenate(repeated)), np.sort(np.concatenate(later))


class _Bucket:
    """A file of entries that several threads add to."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = Lock()

    def add(self, entries: Entries) -> None:
        with self._lock:
            self._file.write(entries.tobytes())


def _distribute(stream: Iterable[tuple[int, pa.Array]], buckets: Sequence[_Bucket]) -> None:
    """Adds the ids of a stream to the buckets by their hash: equal ids to the same bucket."""
    for first_row, ids in stream:
        entries = _entries(first_row, ids)
        numbers = (entries["high"] % np.uint64(len(buckets))).astype(np.int64)
        entries = entries[np.argsort(numbers, kind="stable")]
        stops = np.cumsum(np.bincount(numbers, minlength=len(buckets)))
        for bucket, part in zip(buckets, np.split(entries, stops[:-1]), strict=True):
            if len(part):
                bucket.add(part)


def _repeated_in(entries: Entries) -> tuple[Int64Array, Int64Array]:
    low = np.sort(entries["low"])
    candidates = entries[np.isin(entries["low"], np.unique(low[1:][low[1:] == low[:-1]]))]
    candidates = candidates[np.lexsort((candidates["row"], candidates["high"], candidates["low"]))]
    same = np.zeros(len(candidates) + 1, bool)  # as the one before
    same[1:-1] = (candidates["low"][1:] == candidates["low"][:-1]) & (candidates["high"][1:] == candidates["high"][:-1])
    rows: Int64Array = candidates["row"]
    return np.sort(rows[same[:-1] | same[1:]]), np.sort(rows[same[:-1]])


def _entries(first_row: int, ids: pa.Array) -> Entries:
    lengths = np.diff(_offsets(ids))
    if ids.null_count:
        lengths = np.where(ids.is_valid().to_numpy(zero_copy_only=False), lengths, 0)
    rows = np.flatnonzero(lengths)
    entries = np.empty(len(rows), _ENTRY)
    entries["row"] = rows + first_row
    entries["low"], entries["high"] = _hashes(ids, rows, lengths[rows])
    return entries


def _offsets(ids: pa.Array) -> Int64Array:
    offsets: Int64Array = np.frombuffer(ids.buffers()[1], np.int64)[ids.offset : ids.offset + len(ids) + 1]
    return offsets


def _hashes(ids: pa.Array, rows: Int64Array, lengths: Int64Array) -> tuple[UInt64Array, UInt64Array]:
    """Two hashes of 64 bits of each id: the words of 8 bytes are mixed in one after the other, the length at the end.

    The finaliser and its constants are those of MurmurHash3 (64 bits).
    """
    starts = _offsets(ids)[rows]
    data = np.frombuffer(ids.buffers()[2], np.uint8) if len(rows) else np.empty(0, np.uint8)
    low = np.full(len(rows), 0x9E3779B97F4A7C15, np.uint64)
    high = np.full(len(rows), 0xC2B2AE3D27D4EB4F, np.uint64)
    left = np.arange(len(rows))  # ids that have another word
    word = 0
    while len(left):
        positions = starts[left, None] + np.arange(word * 8, word * 8 + 8)
        valid = np.arange(word * 8, word * 8 + 8) < lengths[left, None]
        octets = np.where(valid, data[np.where(valid, positions, 0)], np.uint8(0))
        value = np.ascontiguousarray(octets).view("<u8")[:, 0]
        low[left] = _mix(low[left] ^ value, 0xFF51AFD7ED558CCD)
        high[left] = _mix(high[left] + value, 0x9FB21C651E98DF25)
        word += 1
        left = left[lengths[left] > word * 8]
    size = lengths.astype(np.uint64)
    return _mix(low ^ size, 0xC4CEB9FE1A85EC53), _mix(high + size, 0xD6E8FEB86659FD93)


def _mix(value: UInt64Array, multiplier: int) -> UInt64Array:
    value = (value ^ (value >> np.uint64(33))) * np.uint64(multiplier)
    value = (value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return value ^ (value >> np.uint64(32))
