"""Parquet: types, damage, memory, shards that tile a file."""

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.config import InputConfig
from mentalglm.corpus import CorruptShardError, Posts, ShardReader, plan_corpus
from mentalglm.corpus.parquet import plan_ranges
from mentalglm.errors import InputError


def read_all(path: Path, shard_rows: int = 4, order: int = 1, **settings: object) -> list[Posts]:
    config = InputConfig(uri=str(path), **settings)
    plan = plan_corpus(config, shard_rows)
    reader = ShardReader(config, plan)
    posts = [reader.read(shard) for shard in list(plan.shards())[::order]][::order]
    assert [len(each) for each in posts] == [shard.num_rows for shard in plan.shards()]
    return posts


def joined(posts: list[Posts], name: str) -> list[object]:
    return [value for each in posts for value in getattr(each, name)]


def write(path: Path, columns: dict[str, object], **options: object) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 12))
def test_ranges_tile_a_file_within_row_groups(row_groups: list[int], shard_rows: int) -> None:
    ranges = plan_ranges(row_groups, shard_rows)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(sum(row_groups)))
    assert all(0 < stop - start <= shard_rows for start, stop in ranges)
    first = 0
    for num_rows in row_groups:
        touching = [(start, stop) for start, stop in ranges if start < first + num_rows and first < stop]
        if num_rows > shard_rows:  # a large group shares no shard with another, and is cut at multiples
            assert touching[0][0] == first
            assert touching[-1][1] == first + num_rows
            assert all((start - first) % shard_rows == 0 for start, _ in touching)
        elif num_rows:
            assert len(touching) == 1  # a small one is in one shard
        first += num_rows


@given(
    st.lists(st.tuples(st.integers(0, 25), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 10),
    st.sampled_from([1, -1]),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_shards_joined_are_the_files_whatever_their_sizes_and_the_order_of_reading(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[int, int]],
    shard_rows: int,
    order: int,
    dictionary: bool,
) -> None:
    folder = tmp_path_factory.mktemp("posts")
    expected: list[tuple[str, str, int | None]] = []
    for index, (num_rows, row_group_size) in enumerate(files):
        rows = [(f"{index}-{row}", f"文{row}", row if row % 3 else None) for row in range(num_rows)]
        expected += rows
        ids, texts, kept = ([row[column] for row in rows] for column in range(3))
        text_array = pa.array(texts, pa.string())
        table = {
            "text": text_array.dictionary_encode() if dictionary else text_array,
            "kept": pa.array(kept, pa.int32()),
            "post_id": pa.array(ids, pa.string()),
        }
        write(folder / f"{index}.parquet", table, row_group_size=row_group_size)
    if not expected:
        with pytest.raises(InputError, match="no rows"):
            read_all(folder, shard_rows, order, keep_columns=["kept"])
        return
    posts = read_all(folder, shard_rows, order, keep_columns=["kept"])
    kept = [value for each in posts for value in each.kept.column("kept").to_pylist()]
    assert list(zip(joined(posts, "ids"), joined(posts, "texts"), kept, strict=True)) == expected


LARGE = 9_007_199_254_740_993  # 2^53 + 1: the first integer that a double cannot hold


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([LARGE, 5_000_000_000_000_000_001, -1]),
        pa.array([LARGE, 2**64 - 1, 0], pa.uint64()),
        pa.array([Decimal(LARGE), Decimal(10**37), Decimal(-100)], pa.decimal128(38, 0)),
        pa.array(["000123", "一", " x\t"]),
        pa.array(["000123", "一", " x\t"], pa.large_string()),
        pa.array(["000123", "一", " x\t"], pa.string_view()),
        pa.array(["000123", "一", " x\t"]).dictionary_encode(),
        pa.array([b"000123", "一".encode(), b" x\t"]),
    ],
    ids=str,
)
def test_ids_are_exact(tmp_path: Path, ids: pa.Array) -> None:
    (posts,) = read_all(write(tmp_path / "p.parquet", {"post_id": ids, "text": ["a", "b", "c"]}))
    plain = ids.to_pylist()
    assert posts.ids == [each.decode() if isinstance(each, bytes) else str(each) for each in plain]
    assert posts.statuses == [None] * 3


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()], ids=str
)
def test_texts_of_any_string_type_are_read(tmp_path: Path, type_: pa.DataType) -> None:
    texts = pa.array(["今天", None, ""], pa.string()).cast(type_)
    (posts,) = read_all(write(tmp_path / "p.parquet", {"post_id": ["a", "b", "c"], "text": texts}))
    assert posts.texts == ["今天", "", ""]
    assert posts.statuses == [None, "empty_text", "empty_text"]
    assert posts.reasons == [None, "null_text", "empty_text"]


def test_a_text_column_of_nulls_only_is_empty_text(tmp_path: Path) -> None:
    (posts,) = read_all(write(tmp_path / "p.parquet", {"post_id": ["a", "b"], "text": pa.nulls(2)}))
    assert posts.reasons == ["null_text", "null_text"]


def invalid_strings(values: list[bytes]) -> pa.Array:
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


def test_invalid_utf8_is_replaced_in_its_row_alone(tmp_path: Path) -> None:
    columns = {
        "post_id": invalid_strings([b"a", b"b", b"c\xff", b"d"]),
        "text": invalid_strings([b"plain", b"bad \xe6\x97", b"x", "好".encode()]),
        "kept": invalid_strings([b"k", b"k", b"k", b"\xfe"]),
    }
    (posts,) = read_all(write(tmp_path / "p.parquet", columns), keep_columns=["kept"])
    assert posts.ids == ["a", "b", None, "d"]
    assert posts.texts == ["plain", "bad \ufffd", "x", "好"]
    assert posts.reasons == [None, None, "id_not_utf8", None]
    assert posts.flags == [[], ["invalid_utf8_replaced"], [], ["invalid_utf8_replaced"]]
    assert posts.kept.column("kept").to_pylist() == ["k", "k", "k", "\ufffd"]
    posts.kept.validate(full=True)


def test_every_odd_text_is_a_row(tmp_path: Path) -> None:
    texts = ["😀", "http://t.cn/x", "x" * 100_000, "a\x00b", "\u200b \u3000", "@某人"]
    (posts,) = read_all(write(tmp_path / "p.parquet", {"post_id": range(6), "text": texts}), 10)
    assert posts.texts == ["😀", "http://t.cn/x", "x" * 100_000, "ab", "", "@某人"]
    assert posts.statuses == [None, None, None, None, "empty_text", None]


def test_null_and_empty_ids_are_invalid_rows_that_keep_their_text(tmp_path: Path) -> None:
    (posts,) = read_all(write(tmp_path / "p.parquet", {"post_id": ["a", None, "", None], "text": ["x", "y", "z", ""]}))
    assert posts.ids == ["a", None, None, None]
    assert posts.statuses == [None, "invalid_input", "invalid_input", "invalid_input"]
    assert set(posts.reasons[1:]) == {"null_id"}


def test_nested_and_typed_kept_columns_are_copied_as_they_are(tmp_path: Path) -> None:
    columns = {
        "post_id": ["a", "b"],
        "text": ["x", "y"],
        "user": pa.array([{"name": "n", "tags": ["t"]}, None]),
        "at": pa.array([1, None], pa.timestamp("us", tz="Asia/Shanghai")),
        "source": pa.array(["web", "app"]).dictionary_encode(),
    }
    names = ["at", "user", "source"]
    (posts,) = read_all(write(tmp_path / "p.parquet", columns), keep_columns=names)
    assert posts.kept.column_names == names
    assert posts.kept.column("user").to_pylist() == [{"name": "n", "tags": ["t"]}, None]
    assert posts.kept.column("at").type == pa.timestamp("us", tz="Asia/Shanghai")
    assert posts.kept.column("source").type == pa.string()


# Damage


def corrupt_page(path: Path, column: str, group: int, *, last: bool = True) -> None:
    """Flips a byte inside the last (or first) data page of a column chunk."""
    index = pq.read_schema(path).names.index(column)
    chunk = pq.read_metadata(path).row_group(group).column(index)
    data = bytearray(path.read_bytes())
    offset = chunk.data_page_offset
    data[offset + (chunk.total_compressed_size - 3 if last else 200)] ^= 0x40
    path.write_bytes(data)


def damaged(path: Path, column: str, group: int, *, last: bool = True, **options: object) -> Path:
    columns = {
        "post_id": [f"{row:06}" for row in range(3000)],
        "text": [f"text number {row:06}" for row in range(3000)],
    }
    columns["kept"] = [f"kept {row:06}" for row in range(3000)]
    options = {
        "row_group_size": 1500,
        "use_dictionary": False,
        "data_page_size": 2000,
        "write_batch_size": 100,
    } | options
    write(path, columns, write_page_checksum=True, compression="none", **options)
    corrupt_page(path, column, group, last=last)
    return path


def test_a_corrupt_text_page_costs_the_rows_after_it_in_its_row_group(tmp_path: Path) -> None:
    posts = read_all(damaged(tmp_path / "p.parquet", "text", 0), 400, keep_columns=["kept"])
    reasons = joined(posts, "reasons")
    first_bad = reasons.index("corrupt_page")
    assert 1200 < first_bad < 1500
    assert reasons == [None] * first_bad + ["corrupt_page"] * (1500 - first_bad) + [None] * 1500
    assert joined(posts, "ids") == [f"{row:06}" for row in range(3000)]  # the ids can be read
    texts = joined(posts, "texts")
    assert texts == [f"text number {row:06}" if reasons[row] is None else "" for row in range(3000)]
    assert set(joined(posts, "statuses")) == {None, "invalid_input"}


def test_reading_a_damaged_file_backwards_gives_the_same_rows(tmp_path: Path) -> None:
    path = damaged(tmp_path / "p.parquet", "text", 0)
    forward, backward = read_all(path, 400), read_all(path, 400, order=-1)
    assert [each.texts for each in forward] == [each.texts for each in backward]
    assert [each.reasons for each in forward] == [each.reasons for each in backward]


def test_damage_in_a_small_row_group_does_not_reach_the_others_of_its_shard(tmp_path: Path) -> None:
    path = damaged(tmp_path / "p.parquet", "text", 0, last=False, row_group_size=500)
    (posts,) = read_all(path, 3000)
    assert posts.reasons == ["corrupt_page"] * 500 + [None] * 2500


def test_a_corrupt_id_page_costs_the_ids_and_no_more(tmp_path: Path) -> None:
    posts = read_all(damaged(tmp_path / "p.parquet", "post_id", 1, last=False), 400)
    reasons = joined(posts, "reasons")
    assert reasons == [None] * 1500 + ["corrupt_page"] * 1500
    assert joined(posts, "ids")[1499:1501] == ["001499", None]
    assert joined(posts, "texts")[1500] == "text number 001500"


def test_a_corrupt_kept_page_is_null_and_the_post_is_scored(tmp_path: Path) -> None:
    posts = read_all(damaged(tmp_path / "p.parquet", "kept", 0), 400, keep_columns=["kept"])
    assert set(joined(posts, "statuses")) == {None}
    kept = [value for each in posts for value in each.kept.column("kept").to_pylist()]
    assert [value is None for value in kept] == [
        flags == ["kept_column_unreadable"] for flags in joined(posts, "flags")
    ]
    assert 0 < kept.count(None) < 300


def test_a_shard_without_a_readable_row_is_named(tmp_path: Path) -> None:
    path = damaged(tmp_path / "p.parquet", "text", 1, last=False)
    corrupt_page(path, "post_id", 1, last=False)
    config = InputConfig(uri=str(path))
    plan = plan_corpus(config, 500)
    reader = ShardReader(config, plan)
    for shard in plan.shards():
        if shard.start < 1500:
            assert set(reader.read(shard).statuses) == {None}
        else:
            with pytest.raises(CorruptShardError, match="corrupt_page") as error:
                reader.read(shard)
            assert error.value.file == "p.parquet"


def test_a_file_that_was_replaced_or_deleted_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", {"post_id": ["a", "b"], "text": ["x", "y"]})
    config = InputConfig(uri=str(path))
    plan = plan_corpus(config, 10)
    write(path, {"post_id": ["c", "d"], "text": ["x", "y"]})
    with pytest.raises(CorruptShardError, match="input_changed"):
        ShardReader(config, plan).read(plan.shard(0))
    path.write_bytes(b"no longer Parquet")
    with pytest.raises(CorruptShardError, match="input_changed"):
        ShardReader(config, plan).read(plan.shard(0))
    path.unlink()
    with pytest.raises(CorruptShardError, match="input_missing"):
        ShardReader(config, plan).read(plan.shard(0))


def test_a_pickle_in_an_extension_type_is_never_opened(tmp_path: Path) -> None:
    class Trap(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.string(), "tests.trap")

        def __arrow_ext_serialize__(self) -> bytes:
            return b"payload"

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Trap":
            opened.append(serialized)
            return Trap()

    opened: list[bytes] = []
    pa.register_extension_type(Trap())
    try:
        trap = pa.ExtensionArray.from_storage(Trap(), pa.array(["x"]))
        write(tmp_path / "a.parquet", {"post_id": ["1"], "text": ["x"], "extra": trap})
        write(tmp_path / "b.parquet", {"post_id": ["2"], "text": ["y"], "extra": pa.array(["{}"], pa.json_())})
        opened.clear()
        config = InputConfig(uri=str(tmp_path), keep_columns=["extra"])
        plan = plan_corpus(config, 10)
        (posts,) = (ShardReader(config, plan).read(shard) for shard in plan.shards())
    finally:
        pa.unregister_extension_type("tests.trap")
    assert opened == []
    assert [(each.file, each.reason) for each in plan.quarantined] == [("a.parquet", "extension_type")]
    assert posts.kept.column("extra").to_pylist() == ["{}"]


MEMORY_PROBE = """
import json, resource, sys
import pyarrow as pa
from mentalglm.config import InputConfig
from mentalglm.corpus import ShardReader, plan_corpus
config = InputConfig(uri=sys.argv[1])
plan = plan_corpus(config, 500)
shards = list(plan.shards())
reader = ShardReader(config, plan)
reader.read(shards[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for shard in shards:
    reader.read(shard)
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, pa.default_memory_pool().max_memory()]))
"""


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    texts = [chr(0x4E00 + i) * 2 + "".join(chr(0x4E00 + i * j % 20_000) for j in range(1_000)) for i in range(500)]
    num_rows = 40_000  # about 120 MB of text in one row group, 3 MB in a shard
    path = write(
        tmp_path / "p.parquet",
        {"post_id": range(num_rows), "text": [texts[row % 500] for row in range(num_rows)]},
        row_group_size=num_rows,
        use_dictionary=False,
    )
    assert pq.read_metadata(path).row_group(0).total_byte_size > 100 * 2**20
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE, str(path)], capture_output=True, check=True, timeout=120
    )
    growth_kib, arrow_peak = json.loads(result.stdout)
    assert arrow_peak < 48 * 2**20
    assert growth_kib < 48 * 2**10
