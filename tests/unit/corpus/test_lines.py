"""JSONL and CSV: records, bad lines, shards that tile a file."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.config import InputConfig
from mentalglm.corpus import CorruptShardError, Posts, ShardReader, lines, plan_corpus
from mentalglm.errors import InputError

cells = st.text(st.sampled_from("ab文\"',\n\r\t ;é\u2028\x85😀\x00"), max_size=12)


def read_all(path: Path, shard_rows: int = 3, **settings: object) -> list[Posts]:
    config = InputConfig(uri=str(path), duplicate_ids="keep_all", **settings)
    plan = plan_corpus(config, shard_rows)
    shards = list(plan.shards())
    assert [shard.start for shard in shards[1:]] == [shard.stop for shard in shards[:-1]]
    assert shards[-1].stop <= path.stat().st_size
    assert all(shard.num_rows == shard_rows for shard in shards[:-1])
    reader = ShardReader(config, plan)
    posts = [reader.read(shard) for shard in shards]
    assert [len(each) for each in posts] == [shard.num_rows for shard in shards]
    return posts


def joined(posts: list[Posts], name: str) -> list[object]:
    return [value for each in posts for value in getattr(each, name)]


@given(
    st.lists(st.tuples(cells, cells), min_size=1, max_size=12),
    st.integers(1, 5),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 40),
)
@settings(max_examples=100, deadline=None)
def test_csv_shards_joined_are_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    shard_rows: int,
    line_end: str,
    bom: bool,
    block_bytes: int,
) -> None:
    path = tmp_path_factory.mktemp("csv") / "posts.csv"
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "编号", "kept"])
    writer.writerows([text, str(number), kept] for number, (text, kept) in enumerate(rows))
    path.write_bytes(sink.getvalue().encode("utf-8-sig" if bom else "utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK_BYTES", block_bytes)
        patch.setattr(lines, "_NUM_SAMPLE_LINES", 2)
        posts = read_all(path, shard_rows, id_column="编号", keep_columns=["kept"])
    assert joined(posts, "ids") == [str(number) for number in range(len(rows))]
    assert [value for each in posts for value in each.kept.column("kept").to_pylist()] == [kept for _, kept in rows]
    for text, status in zip((text for text, _ in rows), joined(posts, "statuses"), strict=True):
        assert status == (None if text.strip("\x00\x85 \n\r\t\u2028") else "empty_text")


@given(
    st.lists(st.one_of(cells, st.none()), min_size=1, max_size=12),
    st.integers(1, 5),
    st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"]),
    st.booleans(),
    st.integers(1, 40),
)
@settings(max_examples=100, deadline=None)
def test_jsonl_shards_joined_are_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str | None],
    shard_rows: int,
    line_end: str,
    ends_with_line_end: bool,
    block_bytes: int,
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "posts.jsonl"
    records = [
        json.dumps({"post_id": number, "text": text, "kept": text}, ensure_ascii=False)
        for number, text in enumerate(texts)
    ]
    path.write_bytes((line_end.join(records) + (line_end if ends_with_line_end else "")).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK_BYTES", block_bytes)
        patch.setattr(lines, "_NUM_SAMPLE_LINES", 2)
        posts = read_all(path, shard_rows, keep_columns=["kept"])
    assert joined(posts, "ids") == [str(number) for number in range(len(texts))]
    assert [value for each in posts for value in each.kept.column("kept").to_pylist()] == texts


@pytest.mark.parametrize(
    ("line", "post_id", "text", "status", "reason", "flags"),
    [
        (b'{"post_id": "a", "text": "t"}', "a", "t", None, None, []),
        (b'{"post_id": 9007199254740993, "text": "t"}', "9007199254740993", "t", None, None, []),
        (
            b'{"post_id": 123456789012345678901234567890, "text": "t"}',
            "123456789012345678901234567890",
            "t",
            None,
            None,
            [],
        ),
        (b'{"post_id": 5e18, "text": "t"}', None, "t", "invalid_input", "float_id", []),
        (b'{"post_id": true, "text": "t"}', None, "t", "invalid_input", "id_not_a_string", []),
        (b'{"post_id": ["a"], "text": "t"}', None, "t", "invalid_input", "id_not_a_string", []),
        (b'{"post_id": null, "text": "t"}', None, "t", "invalid_input", "null_id", []),
        (b'{"post_id": "", "text": "t"}', None, "t", "invalid_input", "null_id", []),
        (b'{"text": "t"}', None, "t", "invalid_input", "missing_field", []),
        (b'{"post_id": "a"}', "a", "", "invalid_input", "missing_field", []),
        (b'{"post_id": "a", "text": null}', "a", "", "empty_text", "null_text", []),
        (b'{"post_id": "a", "text": ""}', "a", "", "empty_text", "empty_text", []),
        (
            b'{"post_id": "a", "text": " \\u200b"}',
            "a",
            "",
            "empty_text",
            "empty_text",
            ["invisible_characters_removed"],
        ),
        (b'{"post_id": "a", "text": 5}', "a", "", "invalid_input", "not_a_string", []),
        (b'{"post_id": "a", "text": ["t"]}', "a", "", "invalid_input", "not_a_string", []),
        (b'{"post_id": "a", "text": "t', None, "", "invalid_input", "invalid_json", []),
        (b"[" * 100_000, None, "", "invalid_input", "invalid_json", []),
        (b'"a"', None, "", "invalid_input", "not_an_object", []),
        (b'{"post_id": "a", "text": "\\ud83d!"}', "a", "\ufffd!", None, None, ["lone_surrogate_replaced"]),
        (b'{"post_id": "a", "text": "\\ud83d\\ude00"}', "a", "😀", None, None, []),
        (b'{"post_id": "a\\ud83d", "text": "t"}', None, "t", "invalid_input", "id_not_utf8", []),
        (b'{"post_id": "a", "text": "\xff!"}', "a", "\ufffd!", None, None, ["invalid_utf8_replaced"]),
        (b'{"post_id": "\xff", "text": "t"}', None, "t", "invalid_input", "id_not_utf8", ["invalid_utf8_replaced"]),
        (b'{"post_id": "a", "text": "x\\u0000y"}', "a", "xy", None, None, ["control_characters_removed"]),
    ],
)
def test_each_jsonl_line_is_one_row(
    tmp_path: Path,
    line: bytes,
    post_id: str | None,
    text: str,
    status: str | None,
    reason: str | None,
    flags: list[str],
) -> None:
    good = b'{"post_id": "good", "text": "good"}'
    path = tmp_path / "posts.jsonl"
    path.write_bytes(b"\n".join([good, line, good.replace(b"good", b"more")]))
    (posts,) = read_all(path)
    assert (posts.ids[1], posts.texts[1], posts.statuses[1]) == (post_id, text, status)
    assert (posts.reasons[1], posts.flags[1]) == (reason, flags)
    assert (posts.ids[0], posts.ids[2]) == ("good", "more")


def test_nested_and_other_kept_values_of_jsonl_are_json_text(tmp_path: Path) -> None:
    path = tmp_path / "posts.jsonl"
    kept = ["文", 9007199254740993, {"a": ["文"]}, None, True, "\ud800"]
    rows = [{"post_id": str(i), "text": "t", "值": value} for i, value in enumerate(kept)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    (posts,) = read_all(path, 10, keep_columns=["值"])
    assert posts.kept.column("值").to_pylist() == ["文", "9007199254740993", '{"a": ["文"]}', None, "true", "\ufffd"]


def test_csv_rows_of_crawlers(tmp_path: Path) -> None:
    path = tmp_path / "微博 a,b.csv"
    rows = [
        b"id,\xe6\xad\xa3\xe6\x96\x87,likes",
        b"4900000000000001\t,plain,1",
        b'4900000000000002\t,"two\nlines, ""quoted""",2',
        b"",
        b"4900000000000003\t,ragged",
        b"id,\xe6\xad\xa3\xe6\x96\x87,likes",
        b"4900000000000004\t,half \xe6\xad,4",
        b',"no id",5',
        b'4900000000000006\t,5" screen,6',
        b"\xff,bad id,7",
        b"4900000000000008\t,bare\rreturn,8",
        b"4900000000000009\t,,9",
    ]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows))
    posts = read_all(path, 4, id_column="id", text_column="正文", keep_columns=["likes"])
    first = "490000000000000"
    assert joined(posts, "ids") == [
        f"{first}1",
        f"{first}2",
        None,
        None,
        f"{first}4",
        None,
        f"{first}6",
        None,
        None,
        f"{first}9",
    ]
    assert joined(posts, "texts")[:2] == ["plain", 'two\nlines, "quoted"']
    assert joined(posts, "texts")[6] == '5" screen'
    assert joined(posts, "reasons") == [
        None, None, "ragged_row", "repeated_header", None, "null_id", None, "id_not_utf8", "invalid_csv", "empty_text",
    ]  # fmt: skip
    assert joined(posts, "flags")[4] == ["invalid_utf8_replaced"]
    assert [value for each in posts for value in each.kept.column("likes").to_pylist()] == [
        "1", "2", None, None, "4", "5", "6", "7", None, "9",
    ]  # fmt: skip


def test_an_unclosed_quote_costs_rows_up_to_a_limit_but_none_is_lost_from_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_MAX_CSV_FIELD", 100)
    path = tmp_path / "posts.csv"
    path.write_text('post_id,text\na,"never closed\n' + "".join(f"{i},text number {i}\n" for i in range(40)))
    posts = read_all(path, 5)
    assert joined(posts, "reasons") == ["invalid_csv", *[None] * 40]
    assert joined(posts, "ids") == [None, *map(str, range(40))]


@pytest.mark.parametrize("shard_rows", [1, 2, 3, 10])
def test_a_stray_quote_costs_its_own_line_and_joins_no_posts(tmp_path: Path, shard_rows: int) -> None:
    path = tmp_path / "posts.csv"
    path.write_text('post_id,text\n1,a\n2,"he said\n3,foo\n4,"bar"\n5,b\n6,"a \\"q\\" b"\n7,"two\nlines"\n8,"open\n')
    posts = read_all(path, shard_rows)
    assert joined(posts, "ids") == ["1", None, "3", "4", "5", None, "7", None]
    assert joined(posts, "texts") == ["a", "", "foo", "bar", "b", "", "two\nlines", ""]
    bad = [None, "invalid_csv", None, None, None, "invalid_csv", None, "invalid_csv"]
    assert joined(posts, "reasons") == bad
    assert joined(posts, "statuses") == [reason and "invalid_input" for reason in bad]


@given(st.text(st.sampled_from('ab",\n\r\\'), max_size=60), st.integers(1, 4), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_any_csv_gives_the_same_rows_in_shards_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, content: str, shard_rows: int, block_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("csv") / "posts.csv"
    path.write_bytes(b"post_id,text\nfirst,t\n" + content.encode())
    (whole,) = read_all(path, 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK_BYTES", block_bytes)
        posts = read_all(path, shard_rows)
    for name in ("ids", "texts", "reasons"):
        assert joined(posts, name) == getattr(whole, name)


@pytest.mark.parametrize(
    ("post_id", "rounded"),
    [
        ("4.5E+15", True),
        ("4.50000000000000E+15", True),
        ("4,5E+15", True),
        ("4.9e15", True),
        ("5E+15", True),
        ("1.0", True),
        ("4900000000000001.", True),
        ("1.0\t", True),
        ("1", False),
        ("4900000000000001\t", False),
        ("45e15", False),
        ("user.1.0", False),
        ("1.5", False),
        ("0x1E+5", False),
    ],
)
def test_an_id_of_csv_that_a_spreadsheet_rounded_is_no_id(tmp_path: Path, post_id: str, rounded: bool) -> None:
    path = tmp_path / "posts.csv"
    path.write_text(f'post_id,text\n"{post_id}",t\nok,t\n')
    (posts,) = read_all(path)
    assert posts.reasons == ["float_id" if rounded else None, None]
    assert posts.ids == [None if rounded else post_id.strip("\t"), "ok"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", b"post_id,text\r1,a\r2,b\r", "not_csv"),
        ("t.csv", b"post_id,text\n1,a\r2,b\r", "not_csv"),
        ("t.csv", "post_id,text\n1,今天好累，睡不着\n2,没有力气\n".encode("gb18030"), "not_utf8"),
        ("t.csv", "post_id,text\n1,今天好累，睡不着".encode("gb18030"), "not_utf8"),
        ("t.csv", b"1,a", "missing_column"),
    ],
)
def test_a_bad_csv_beside_good_files_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "u.csv").write_text("post_id,text\n9,z\n")
    plan = plan_corpus(InputConfig(uri=str(tmp_path)), 10)
    assert [(each.file, each.reason) for each in plan.quarantined] == [(name, reason)]
    assert plan.num_rows == 1


@pytest.mark.parametrize(
    "content",
    [
        "post_id,text\n1,今天好累，睡不着\n2,".encode() + "没有力气".encode()[:-1] + b"\n",
        "post_id,text\n1,今天好累，睡不着".encode()[:-2],
        "post_id,text\n1,今天".encode() + b"\xb2" + "好累，睡不着\n".encode(),
        b"post_id,text\n1,na\xefve words\n2,caf\xe9s\n3,\xe9t\xe9\n",
        b"post_id,text\n1,half \xe6\xad,\n",
    ],
)
def test_a_few_bad_bytes_are_no_other_encoding(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "posts.csv"
    path.write_bytes(content)
    plan = plan_corpus(InputConfig(uri=str(path)), 10)
    assert not plan.quarantined
    assert plan.num_rows == content.strip().count(b"\n")


def test_a_huge_field_is_read(tmp_path: Path) -> None:
    path = tmp_path / "posts.csv"
    path.write_text(f'post_id,text\n1,"{"长" * 300_000}"\n')
    (posts,) = read_all(path)
    assert posts.texts == ["长" * 300_000]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("posts.csv", "id,正文\n1,x\n", ["input.id_column = post_id", "posts.csv", "id, 正文"]),
        ("posts.csv", "post_id,正文\n1,x\n", ["input.text_column = text", "posts.csv", "post_id, 正文"]),
        ("posts.csv", "post_id,text,text\n1,x,y\n", ["posts.csv", "two columns named 'text'"]),
        ("posts.jsonl", '{"_id": 1, "text": "x"}\n', ["input.id_column = post_id", "posts.jsonl", "_id, text"]),
        ("posts.jsonl", '[\n{"post_id": 1, "text": "x"}\n]', ["posts.jsonl", "JSON array", "JSONL"]),
        ("posts.jsonl", "\n\n", ["no rows"]),
        ("posts.csv", "", ["no rows"]),
        ("posts.csv", "post_id,text\n", ["no rows"]),
        ("posts.csv", "post_id,text\r1,x\r2,y\r", ["posts.csv", "line ends are CR", "LF"]),
        ("posts.csv", '"post_id","text"\r"1","x"\r', ["posts.csv", "line ends are CR", "LF"]),
        ("posts.csv", 'post_id,"text" \n1,x\n', ["posts.csv", "quote in its header"]),
        ("posts.csv", "1,x", ["input.id_column = post_id", "posts.csv"]),
        ("posts.csv", "4900000000000001,secret\n4900000000000002,x\n", ["input.id_column = post_id", "may be a post"]),
        ("posts.jsonl.gz", "x", ["posts.jsonl.gz", ".gz", "unpack"]),
        ("posts.json", "{}", ["posts.json", "input.format: jsonl"]),
        ("posts.xlsx", "x", ["posts.xlsx", "Parquet"]),
    ],
)
def test_text_files_that_cannot_be_scored_are_refused_with_the_fix(
    tmp_path: Path, name: str, content: str, words: list[str]
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError) as error:
        plan_corpus(InputConfig(uri=str(path)), 10)
    assert all(word in str(error.value) for word in words), error.value
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16"])
def test_another_encoding_is_refused_and_not_scored_as_garbage(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "posts.csv"
    path.write_bytes(("post_id,text\n" + "".join(f"{i},今天好累\n" for i in range(5))).encode(encoding))
    with pytest.raises(InputError, match=f"iconv -f {encoding}"):
        plan_corpus(InputConfig(uri=str(path)), 10)


def test_a_file_that_changed_after_it_was_planned_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "posts.jsonl"
    path.write_text('{"post_id": "a", "text": "t"}\n{"post_id": "b", "text": "t"}\n')
    config = InputConfig(uri=str(path))
    plan = plan_corpus(config, 10)
    size = path.stat().st_size
    path.write_text("\n" * size)
    with pytest.raises(CorruptShardError, match="input_changed"):
        ShardReader(config, plan).read(plan.shard(0))
    path.write_text("longer" * size)
    with pytest.raises(CorruptShardError, match="input_changed"):
        ShardReader(config, plan).read(plan.shard(0))
    path.unlink()
    with pytest.raises(CorruptShardError, match="input_missing"):
        ShardReader(config, plan).read(plan.shard(0))
