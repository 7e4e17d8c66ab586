"""Repeated ids over a corpus."""

import errno
import os
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.corpus import duplicates
from mentalglm.corpus.duplicates import find_repeated
from mentalglm.errors import InputError

ids = st.one_of(
    st.none(),
    st.sampled_from(["", "a", "b", "a\0", "\0", "12345678", "123456789", "1234567890123456", "12345678901234567"]),
    st.text(st.sampled_from("01"), max_size=20),
)


@given(st.lists(st.lists(ids, max_size=20), max_size=6), st.sampled_from([3, 4_000_000]))
@settings(deadline=None)
def test_repeated_rows_are_those_that_a_dictionary_finds(parts: list[list[str | None]], bucket_rows: int) -> None:
    everything = [each for part in parts for each in part]
    counts = Counter(each for each in everything if each)
    expected = [row for row, each in enumerate(everything) if counts[each] > 1]
    expected_later = [row for row, each in enumerate(everything) if each and each in everything[:row]]
    streams, first = [], 0
    for part in parts:
        padded = pa.array(["pad", *part], pa.large_string()).slice(1)  # an array that does not begin at its buffer
        streams.append([(first, padded)])
        first += len(part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_BUCKET_ROWS", bucket_rows)
        repeated, later = find_repeated(streams, len(everything))
    assert repeated.tolist() == expected
    assert later.tolist() == expected_later


def test_a_million_ids_that_differ_little_are_all_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BUCKET_ROWS", 200_000)
    numbers = pa.array(np.arange(5_000_000_000_000_000, 5_000_000_001_000_000)).cast(pa.large_string())
    repeated, later = find_repeated(
        [[(0, numbers)], [(1_000_000, pa.array(["5000000000999999"], pa.large_string()))]], 10**6
    )
    assert repeated.tolist() == [999_999, 1_000_000]
    assert later.tolist() == [1_000_000]


def test_a_full_disk_is_an_error_that_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(bucket: duplicates._Bucket, entries: duplicates.Entries) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(duplicates, "_BUCKET_ROWS", 1)
    monkeypatch.setattr(duplicates._Bucket, "add", full)
    with pytest.raises(InputError, match=r"TMPDIR.*no space left.*set TMPDIR") as error:
        find_repeated([[(0, pa.array(["a", "b"], pa.large_string()))]], 2)
    assert "\n" not in str(error.value)


def test_another_error_of_the_spill_is_not_taken_for_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bucket: duplicates._Bucket, entries: duplicates.Entries) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(duplicates, "_BUCKET_ROWS", 1)
    monkeypatch.setattr(duplicates._Bucket, "add", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        find_repeated([[(0, pa.array(["a", "b"], pa.large_string()))]], 2)


def test_only_one_half_of_the_hash_being_equal_is_no_repetition() -> None:
    entries = np.array([(1, 2, 0), (1, 3, 1), (1, 2, 2)], duplicates._ENTRY)
    repeated, later = duplicates._repeated_in(entries)
    assert (repeated.tolist(), later.tolist()) == ([0, 2], [2])
