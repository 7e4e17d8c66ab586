"""The plan: which files, their identity, what is refused and what is quarantined."""

import base64
import io
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.config import InputConfig
from mentalglm.corpus import CorpusPlan, CorruptShardError, ShardReader, check_unchanged, plan_corpus
from mentalglm.corpus import plan as planning
from mentalglm.errors import InputError


def posts(folder: Path, name: str, num_rows: int = 3, **columns: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"post_id": [f"{name}-{row}" for row in range(num_rows)], "text": ["文"] * num_rows} | columns
    pq.write_table(pa.table({key: value for key, value in table.items() if value is not None}), path)
    return path


def plan_of(uri: object, shard_rows: int = 2, **settings: object) -> CorpusPlan:
    return plan_corpus(InputConfig(uri=str(uri), **settings), shard_rows)


def read_ids(uri: object, plan: CorpusPlan, **settings: object) -> list[str | None]:
    reader = ShardReader(InputConfig(uri=str(uri), **settings), plan)
    return [post_id for shard in plan.shards() for post_id in reader.read(shard).ids]


def refused(uri: object, **settings: object) -> str:
    with pytest.raises(InputError) as error:
        plan_of(uri, **settings)
    message = str(error.value)
    assert "\n" not in message
    return message


# Which files


def test_a_folder_is_read_whole_but_for_what_is_not_data(tmp_path: Path) -> None:
    posts(tmp_path, "b.parquet")
    posts(tmp_path, "a/逗号, 空格.PARQUET")
    for name in (
        "_SUCCESS",
        "_metadata",
        ".hidden.parquet",
        "_tmp/x.parquet",
        "a/.b.parquet.crc",
        "README.md",
        "x.crc",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    plan = plan_of(tmp_path)
    assert [file.path for file in plan.files] == ["a/逗号, 空格.PARQUET", "b.parquet"]
    assert read_ids(tmp_path, plan)[0] == "a/逗号, 空格.PARQUET-0"


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.parquet", ["a1.parquet", "a2.parquet"]),
        ("a[1]*", ["a1.parquet"]),
        ("a[!1].parquet", ["a2.parquet"]),
        ("a?.parquet", ["a1.parquet", "a2.parquet"]),
        ("*/*.parquet", ["x/a3.parquet"]),
        ("**/*.parquet", ["a1.parquet", "a2.parquet", "x/a3.parquet", "x/y/a4.parquet"]),
        ("x/*/a*", ["y/a4.parquet"]),
    ],
)
def test_globs(tmp_path: Path, glob: str, expected: list[str]) -> None:
    for name in ("a1.parquet", "a2.parquet", "x/a3.parquet", "x/y/a4.parquet"):
        posts(tmp_path, name)
    plan = plan_of(tmp_path / glob)
    assert [file.path.removeprefix("x/") if glob == "x/*/a*" else file.path for file in plan.files] == expected
    assert len(read_ids(tmp_path / glob, plan)) == plan.num_rows


def test_a_file_whose_name_has_wildcards_is_that_file(tmp_path: Path) -> None:
    path = posts(tmp_path, "posts[1].parquet")
    posts(tmp_path, "posts1.parquet")
    assert [file.path for file in plan_of(path).files] == ["posts[1].parquet"]


def test_a_file_url_and_a_hidden_file_that_is_named_are_read(tmp_path: Path) -> None:
    path = posts(tmp_path, "_posts.parquet")
    assert plan_of(f"file://{path}").num_rows == 3


def test_no_such_place_is_refused(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(tmp_path / "none.parquet")
    assert "no data file" in refused(tmp_path)
    assert "no data file" in refused(tmp_path / "*.parquet")
    assert "no data file" in refused(posts(tmp_path, "posts").rename(tmp_path / "posts.dat"))


def test_mixed_formats_are_refused_and_a_glob_helps(tmp_path: Path) -> None:
    posts(tmp_path, "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"post_id": "b", "text": "t"}')
    message = refused(tmp_path)
    assert "jsonl, parquet" in message
    assert "*.jsonl" in message
    assert plan_of(tmp_path / "*.jsonl").num_rows == 1


def test_a_named_format_overrules_file_names(tmp_path: Path) -> None:
    posts(tmp_path, "part-0")
    posts(tmp_path, "part-1.gz.parquet")
    assert plan_of(tmp_path, format="parquet").num_rows == 6


def test_data_that_is_not_read_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    posts(tmp_path, "a.parquet")
    (tmp_path / "b.jsonl.gz").write_bytes(b"x")
    message = refused(tmp_path)
    assert "b.jsonl.gz" in message
    assert "unpack" in message


# What is refused as a whole


def test_missing_columns_are_named_with_those_there_are(tmp_path: Path) -> None:
    posts(tmp_path, "a.parquet", post_id=None, 正文=["x"] * 3)
    message = refused(tmp_path)
    assert "input.id_column = post_id" in message
    assert "a.parquet" in message
    assert "text, 正文" in message
    assert "input.text_column = content" in refused(tmp_path, id_column="正文", text_column="content")


@pytest.mark.parametrize("text", [pa.array([1, 2, 3]), pa.array([["x"]] * 3), pa.array([b"abc"] * 3, pa.binary(3))])
def test_a_text_column_that_is_not_text_is_refused(tmp_path: Path, text: pa.Array) -> None:
    message = refused(posts(tmp_path, "a.parquet", text=text))
    assert "'text'" in message
    assert str(text.type).split("<")[0] in message


@pytest.mark.parametrize("type_", [pa.float16(), pa.float32(), pa.float64()])
def test_float_ids_are_refused_and_never_rounded_even_in_one_file(tmp_path: Path, type_: pa.DataType) -> None:
    posts(tmp_path, "a.parquet")
    posts(tmp_path, "b.parquet", post_id=pa.array([1, 2, 3]).cast(type_))
    message = refused(tmp_path)
    assert "input.id_column = post_id" in message
    assert "b.parquet" in message
    assert "cast it to string where the data is made" in message


def test_ids_of_other_types_are_refused(tmp_path: Path) -> None:
    assert "bool" in refused(posts(tmp_path, "a.parquet", post_id=[True, False, True]))
    scaled = pa.array([1, 2, 3]).cast(pa.decimal128(22, 2))
    assert "decimal128(22, 2)" in refused(posts(tmp_path, "a.parquet", post_id=scaled))


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    posts(tmp_path, "a.parquet", 0)
    posts(tmp_path, "b.parquet", 0)
    assert "2 files hold no rows" in refused(tmp_path)


def test_when_no_file_can_be_read_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"<html>")
    (tmp_path / "b.parquet").write_bytes(b"")
    message = refused(tmp_path)
    assert "a.parquet is not a Parquet file" in message
    assert "2 files" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    posts(tmp_path, "a.parquet").chmod(0)
    assert "permissions" in refused(tmp_path)


# What is quarantined


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def cut_footer(path: Path) -> None:
    path.write_bytes(b"PAR1" + path.read_bytes()[-100:])


def encrypt(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4] + b"PARE")


def garble_footer(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-200] + bytes(192) + data[-8:])


def lzo(path: Path) -> None:
    """Says LZO (codec 3) where the footer says SNAPPY (1) for its first column chunk."""
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    marker = data.index(b"post_id", data.index(b"post_id", footer) + 1) + len(b"post_id")
    assert data[marker : marker + 2] == b"\x15\x02"  # the field after the path: i32, zigzag of 1
    data[marker + 1] = 6
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "truncated"),
        (cut_footer, "truncated"),
        (encrypt, "encrypted"),
        (garble_footer, "corrupt_footer"),
        (lzo, "unsupported_codec"),
        (lambda path: path.write_bytes(b""), "empty_file"),
        (lambda path: path.write_bytes(b"<html>no such page</html>"), "not_parquet"),
        (lambda path: path.write_bytes(b"PAR1"), "truncated"),
        (lambda path: posts(path.parent, path.name, text=None), "missing_column"),
        (lambda path: posts(path.parent, path.name, post_id=None), "missing_column"),
        (lambda path: posts(path.parent, path.name, text=[1, 2, 3]), "wrong_type"),
        (lambda path: posts(path.parent, path.name, post_id=[True, True, False]), "wrong_type"),
    ],
)
def test_a_bad_file_is_quarantined_and_the_others_are_read(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    posts(tmp_path, "a.parquet")
    bad = posts(tmp_path, "b.parquet")
    posts(tmp_path, "c.parquet")
    damage(bad)
    plan = plan_of(tmp_path)
    (quarantined,) = plan.quarantined
    assert (quarantined.file, quarantined.reason) == ("b.parquet", reason)
    described = quarantined.describe()
    assert described.startswith("b.parquet ")
    assert reason in described
    if reason in ("missing_column", "wrong_type"):
        assert quarantined.num_rows == 3
    assert ("3 rows" in described) == (quarantined.num_rows == 3)
    assert [post_id[0] for post_id in read_ids(tmp_path, plan)] == ["a"] * 3 + ["c"] * 3
    assert [file.num_rows for file in plan.files] == [3, 0, 3]
    check_unchanged(plan, InputConfig(uri=str(tmp_path)))
    os.utime(bad)
    check_unchanged(plan, InputConfig(uri=str(tmp_path)))


class PlainKms(encryption.KmsClient):
    """Wraps keys in nothing: enough to write an encrypted file."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_an_encrypted_file_is_quarantined(tmp_path: Path, plaintext_footer: bool) -> None:
    posts(tmp_path, "a.parquet")
    properties = encryption.CryptoFactory(lambda _: PlainKms()).file_encryption_properties(
        encryption.KmsConnectionConfig(),
        encryption.EncryptionConfiguration(
            footer_key="footer", column_keys={"text": ["text"]}, plaintext_footer=plaintext_footer
        ),
    )
    pq.write_table(
        pa.table({"post_id": ["1"], "text": ["x"]}), tmp_path / "b.parquet", encryption_properties=properties
    )
    plan = plan_of(tmp_path)
    assert [(each.file, each.reason) for each in plan.quarantined] == [("b.parquet", "encrypted")]
    assert plan.num_rows == 3


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_file_that_goes_while_it_is_planned_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = posts(tmp_path, "a.parquet")
    if name == "a.jsonl":
        path.unlink()
        path = tmp_path / name
        path.write_text('{"post_id": "a", "text": "t"}')
    find = planning.find_repeated

    def late(*arguments: object) -> object:
        path.unlink()
        return find(*arguments)

    monkeypatch.setattr(planning, "find_repeated", late)
    assert f"{name}: changed while it was planned" in refused(path)


def test_two_columns_of_one_name_are_quarantined(tmp_path: Path) -> None:
    posts(tmp_path, "a.parquet")
    schema = pa.schema([("post_id", pa.string()), ("text", pa.string()), ("text", pa.string())])
    pq.write_table(pa.Table.from_arrays([pa.array(["x"])] * 3, schema=schema), tmp_path / "b.parquet")
    assert [each.reason for each in plan_of(tmp_path).quarantined] == ["duplicate_column"]


def test_a_file_without_rows_adds_no_shard(tmp_path: Path) -> None:
    posts(tmp_path, "a.parquet", 0)
    posts(tmp_path, "b.parquet", 5)
    pq.write_table(pa.table({"other": pa.array([], pa.float64())}), tmp_path / "c.parquet")
    plan = plan_of(tmp_path)
    assert plan.quarantined == ()
    assert [(shard.file, shard.num_rows) for shard in plan.shards()] == [
        ("b.parquet", 2),
        ("b.parquet", 2),
        ("b.parquet", 1),
    ]


def test_text_files_are_quarantined_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("post_id,text\n1,x\n")
    (tmp_path / "b.csv").write_text("id,text\n1,x\n")
    (tmp_path / "c.csv").write_text("")
    plan = plan_of(tmp_path)
    assert [(each.file, each.reason, each.num_rows) for each in plan.quarantined] == [("b.csv", "missing_column", 1)]
    os.utime(tmp_path / "b.csv")
    check_unchanged(plan, InputConfig(uri=str(tmp_path)))


GOOD = io.BytesIO()
pq.write_table(
    pa.table({"post_id": [f"p{i}" for i in range(50)], "text": [f"今天{i}" for i in range(50)], "kept": range(50)}),
    GOOD,
    row_group_size=20,
    compression="zstd",
)


@given(st.lists(st.tuples(st.integers(0, len(GOOD.getvalue()) - 1), st.integers(1, 255)), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_flipped_bytes_end_in_rows_or_in_a_named_failure(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(GOOD.getvalue())
    for position, flip in flips:
        data[position] ^= flip
    path = tmp_path_factory.mktemp("flipped") / "p.parquet"
    path.write_bytes(data)
    config = InputConfig(uri=str(path), keep_columns=["kept"], duplicate_ids="keep_all")
    try:
        plan = plan_corpus(config, 8)
    except InputError:
        return
    reader = ShardReader(config, plan)
    for shard in plan.shards():
        try:
            posts = reader.read(shard)
        except CorruptShardError:
            continue
        assert len(posts) == len(posts.texts) == len(posts.flags) == posts.kept.num_rows == shard.num_rows


# Types over files


def test_integer_ids_in_one_file_and_strings_in_the_next_are_strings(tmp_path: Path) -> None:
    posts(tmp_path, "a.parquet", post_id=[2**53 + 1, 2, 3])
    posts(tmp_path, "b.parquet", post_id=["x", "y", "z"])
    assert read_ids(tmp_path, plan_of(tmp_path)) == [str(2**53 + 1), "2", "3", "x", "y", "z"]


def test_an_integer_and_its_digits_are_the_same_id(tmp_path: Path) -> None:
    posts(tmp_path, "a.parquet", post_id=[1, 2, 3])
    posts(tmp_path, "b.parquet", post_id=["3", "4", "5"])
    assert "1 rows repeat" in refused(tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "unified"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.uint32(), pa.int8(), pa.int64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.string(), pa.dictionary(pa.int8(), pa.string()), pa.string()),
        (pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("us")),
        (pa.null(), pa.int64(), pa.int64()),
        (pa.null(), pa.null(), pa.string()),
        (pa.int64(), pa.float64(), None),  # would round
        (pa.uint64(), pa.int64(), None),  # no type holds both
        (pa.int64(), pa.string(), None),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
    ],
    ids=str,
)
def test_kept_columns_have_one_exact_type_or_are_refused(
    tmp_path: Path, one: pa.DataType, other: pa.DataType, unified: pa.DataType | None
) -> None:
    def values(type_: pa.DataType) -> pa.Array:
        return pa.nulls(3, type_)

    for first, second in ((one, other), (other, one)):
        posts(tmp_path, "a.parquet", kept=values(first))
        posts(tmp_path, "b.parquet", kept=values(second))
        posts(tmp_path, "c.parquet")  # without it: null
        if unified is None:
            message = refused(tmp_path, keep_columns=["kept"])
            assert all(word in message for word in ("'kept'", "a.parquet", "b.parquet", "cast"))
            continue
        plan = plan_of(tmp_path, keep_columns=["kept"])
        assert plan.kept_schema == pa.schema({"kept": unified})
        reader = ShardReader(InputConfig(uri=str(tmp_path), keep_columns=["kept"]), plan)
        assert all(reader.read(shard).kept.schema == plan.kept_schema for shard in plan.shards())


def test_a_kept_column_that_no_file_has_is_refused(tmp_path: Path) -> None:
    posts(tmp_path, "a.parquet")
    message = refused(tmp_path, keep_columns=["kept"])
    assert "input.keep_columns" in message
    assert "'kept'" in message


# Repeated ids


@pytest.fixture
def repeating(tmp_path: Path) -> Path:
    posts(tmp_path, "a.parquet", post_id=["a", "秘密", "c"])
    posts(tmp_path, "b.parquet", post_id=["秘密", None, None])
    posts(tmp_path, "c.parquet", post_id=["秘密", "a", "d"])
    return tmp_path


def test_repeated_ids_are_refused_with_a_place_but_without_the_id(repeating: Path) -> None:
    message = refused(repeating)
    assert "3 rows repeat" in message
    assert "row 1 of b.parquet" in message
    assert "keep_first" in message
    assert "秘密" not in message


def test_keep_first_scores_the_first_alone(repeating: Path) -> None:
    config = InputConfig(uri=str(repeating), duplicate_ids="keep_first")
    plan = plan_corpus(config, 2)
    assert plan.repeated_rows.tolist() == [0, 1, 3, 6, 7]
    assert plan.later_rows.tolist() == [3, 6, 7]
    reader = ShardReader(config, plan)
    read = [reader.read(shard) for shard in plan.shards()]
    reasons = [reason for each in read for reason in each.reasons]
    assert reasons == [None, None, None, "duplicate_id", "null_id", "null_id", "duplicate_id", "duplicate_id", None]
    flagged = [bool(flags) for each in read for flags in each.flags]
    assert flagged == [True, True, False, True, False, False, True, True, False]


def test_keep_all_scores_all_and_flags_them(repeating: Path) -> None:
    config = InputConfig(uri=str(repeating), duplicate_ids="keep_all")
    plan = plan_corpus(config, 2)
    reader = ShardReader(config, plan)
    read = [reader.read(shard) for shard in plan.shards()]
    assert [reason for each in read for reason in each.reasons if reason] == ["null_id", "null_id"]
    flags = [flags for each in read for flags in each.flags]
    assert [row for row, each in enumerate(flags) if each == ["duplicate_id"]] == [0, 1, 3, 6, 7]


def test_repeated_ids_are_found_in_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("post_id,text\n1\t,x\n2\t,y\n")
    (tmp_path / "b.csv").write_text("post_id,text\n3,x\n1,y\npost_id,text\npost_id,text\n")
    message = refused(tmp_path, shard_rows=1)
    assert "1 rows repeat" in message
    assert "row 2 of b.csv" in message


# Identity


def test_the_same_files_give_the_same_plan_wherever_they_lie(tmp_path: Path) -> None:
    for index in range(5):
        posts(tmp_path / "one", f"{index}.parquet", 7)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = plan_of(tmp_path / "one"), plan_of(tmp_path / "two")
    assert one.digest == two.digest
    assert list(one.shards()) == list(two.shards())
    posts(tmp_path / "two", "0.parquet", 7, text=["字"] * 7)
    assert plan_of(tmp_path / "two").digest != one.digest


def test_a_plan_survives_writing_and_pickling(repeating: Path, tmp_path: Path) -> None:
    (repeating / "bad.parquet").write_bytes(b"")
    posts(repeating, "k.parquet", at=pa.array([1, 2, 3], pa.timestamp("us", "Asia/Shanghai")))
    plan = plan_of(repeating, duplicate_ids="keep_all", keep_columns=["at"])
    sink = pa.BufferOutputStream()
    pq.write_table(plan.to_table(), sink, compression="zstd")
    read = CorpusPlan.from_table(pq.read_table(pa.BufferReader(sink.getvalue())))
    for other in (read, pickle.loads(pickle.dumps(plan))):
        assert list(other.shards()) == list(plan.shards())
        assert (other.files, other.quarantined, other.digest) == (plan.files, plan.quarantined, plan.digest)
        assert other.kept_schema == plan.kept_schema
        assert other.repeated_rows.tolist() == plan.repeated_rows.tolist()
        assert other.later_rows.tolist() == plan.later_rows.tolist()
    assert len(pickle.dumps(plan.shard(0))) < 300


def test_a_plan_of_a_billion_rows_is_small() -> None:
    num_shards = 1_000_000_000 // 2048
    starts = np.arange(num_shards, dtype=np.int64) * 2048
    empty = np.empty(0, np.int64)
    one = np.zeros(num_shards, np.int64)
    plan = CorpusPlan((), (), pa.schema([]), "", one, starts, starts + 2048, one + 2048, empty, empty)
    assert plan.to_table().nbytes < 20 * 2**20


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_changed_input_is_refused_and_a_touched_one_is_not(tmp_path: Path, suffix: str) -> None:
    def write(name: str, text: str) -> None:
        if suffix == "parquet":
            posts(tmp_path, f"{name}.parquet", 1, text=[text])
        else:
            (tmp_path / f"{name}.jsonl").write_text(f'{{"post_id": "{name}", "text": "{text}"}}')

    write("a", "x")
    write("b", "x")
    config = InputConfig(uri=str(tmp_path))
    plan = plan_corpus(config, 2)
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    check_unchanged(plan, config)
    write("b", "y")
    with pytest.raises(InputError, match=f"b.{suffix} has changed"):
        check_unchanged(plan, config)
    write("b", "x")
    check_unchanged(plan, config)
    write("c", "x")
    assert check_unchanged(plan, config) == 1  # a crawler goes on; the run is over the others
    (tmp_path / f"c.{suffix}").unlink()
    (tmp_path / f"a.{suffix}").unlink()
    with pytest.raises(InputError, match=f"a.{suffix} is gone"):
        check_unchanged(plan, config)


# A sample


@given(
    num_rows=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    shard_rows=st.integers(1, 9),
    sample_rows=st.integers(1, 260),
)
@settings(max_examples=40, deadline=None)
def test_a_sample_is_enough_whole_shards_and_knows_which_ids_repeat(
    num_rows: list[int], shard_rows: int, sample_rows: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, rows in enumerate(num_rows):
            # The ids of later files repeat those of the first.
            posts(folder, f"{number}.parquet", rows, post_id=[str(row) for row in range(rows)])
        keep_all = {"duplicate_ids": "keep_all"}
        whole = plan_of(folder, shard_rows, **keep_all)
        plan = plan_of(folder, shard_rows, sample_rows=sample_rows, **keep_all)
        wanted = min(sample_rows, whole.num_rows)
        assert wanted <= plan.num_rows < wanted + max(whole.shard_num_rows) * 2
        places = [(shard.file, shard.start, shard.stop) for shard in plan.shards()]
        assert places == sorted(set(places) & {(shard.file, shard.start, shard.stop) for shard in whole.shards()})
        assert plan.digest == whole.digest
        reader, sampled = (ShardReader(InputConfig(uri=name, **keep_all), each) for each in (whole, plan))
        by_place = {(shard.file, shard.start): reader.read(shard) for shard in whole.shards()}
        for shard in plan.shards():
            found, same = sampled.read(shard), by_place[shard.file, shard.start]
            assert (found.ids, found.flags) == (same.ids, same.flags)
