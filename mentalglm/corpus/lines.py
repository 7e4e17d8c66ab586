"""JSONL and CSV: finding the records in one pass, and reading ranges of them.

Both passes use the same code to tell records apart, so that a range holds the same rows when it is read as when it was
planned. Bytes that are not UTF-8 do not move a boundary: CSV is parsed as Latin-1 and each value decoded after.
"""

import csv
import hashlib
import io
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from mentalglm.config import InputConfig
from mentalglm.corpus.files import Format
from mentalglm.corpus.rows import CorruptShardError, RawRows, UnreadableFileError
from mentalglm.corpus.text import REPLACEMENT, replace_surrogates

_BLOCK_BYTES = 4 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
# An opening quote that is never closed swallows the lines after it, up to this size.
_MAX_CSV_FIELD = 64 * 1024 * 1024
_NUM_SAMPLE_LINES = 1000
_MAX_KEY_BYTES = 4096  # of a column's name as JSON
# Two Chinese characters of GB2312 side by side. A cut UTF-8 character leaves at most three such bytes.
_GBK_RUN = re.compile(rb"(?:[\xa1-\xf7][\xa1-\xfe]){2}")
# How spreadsheets and data frames write a whole number that they hold as floating point.
_FLOAT_ID = re.compile(r"[+-]?(?:[0-9]+\.0*|[0-9]+(?:[.,][0-9]*)?[eE][+-][0-9]+|[0-9]+\.[0-9]*[eE][0-9]+)")


@dataclass(frozen=True, slots=True)
class TextFile:
    """What a plan needs to know of a JSONL or CSV file."""

    ranges: list[tuple[int, int, int]]
    """(first byte, byte after the last, number of records) of each shard."""
    digest: str
    """sha256 of the content."""
    columns: frozenset[str]
    """Of the columns asked for, those that the file has."""
    available: tuple[str, ...]
    """Columns of the header, or keys of the first record."""

    @property
    def num_rows(self) -> int:
        """Records of the file."""
        return sum(num_rows for _, _, num_rows in self.ranges)


def scan(fs: pafs.FileSystem, path: str, format_: Format, columns: Iterable[str], shard_rows: int) -> TextFile:
    """One pass over the file. Raises: UnreadableFileError for what is not such text."""
    digest = hashlib.sha256()
    present: set[str] = set()
    forms = {column: _json_forms(column) for column in columns} if format_ == "jsonl" else {}

    def blocks() -> Iterator[bytes]:
        tail = b""
        with fs.open_input_stream(path) as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
                missing = forms.keys() - present
                if missing:  # a key may lie across the border of two blocks
                    tail += block
                    present.update(name for name in missing if any(form in tail for form in forms[name]))
                    tail = tail[-_MAX_KEY_BYTES:]
                yield block

    position = 0
    header: list[str] | None = None
    first_record: bytes | None = None
    ranges: list[tuple[int, int, int]] = []
    start, num_rows, any_parsed = 0, 0, False
    lines = _sampled(_lines(blocks()))
    if format_ == "csv":
        records: Iterator[tuple[Any, int]] = _csv_records(lines)
        while header is None and (record := next(records, None)) is not None:
            fields, start = record
            if fields is None:
                raise _not_csv(fs, path)
            header = _header(fields) if fields else None
        position = start
    else:
        records = _jsonl_records(lines)
    for record, end in records:
        if not record and record is not None:
            position = end  # a blank line belongs to the range before it
            continue
        if format_ == "jsonl" and first_record is None:
            first_record = record
            if record.removeprefix(_BOM).lstrip().startswith(b"["):
                raise UnreadableFileError("json_array", "is a JSON array, not one object a line; convert it to JSONL")
        if num_rows == shard_rows:
            ranges.append((start, position, num_rows))
            start, num_rows = position, 0
        num_rows += 1
        position = end
        any_parsed |= record is not None
    if num_rows:
        ranges.append((start, position, num_rows))
    if ranges and not any_parsed and _has_cr_line_ends(fs, path):
        raise _not_csv(fs, path)
    if header is not None:
        present, available = set(header) & set(columns), header
    else:
        available = _keys(first_record)
    return TextFile(ranges, digest.hexdigest(), frozenset(present), tuple(available))


def content_digest(fs: pafs.FileSystem, path: str) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with fs.open_input_stream(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines with their LF; the last may have none."""
    pending: list[bytes] = []
    for block in blocks:
        first, *rest = block.split(b"\n")
        if not rest:
            pending.append(first)
            continue
        yield b"".join([*pending, first, b"\n"])
        for line in rest[:-1]:
            yield line + b"\n"
        pending = [rest[-1]] if rest[-1] else []
    if pending:
        yield b"".join(pending)


def _sampled(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The lines, after a look at the first ones. Raises: UnreadableFileError where they are of another encoding."""
    sample = list(islice(lines, _NUM_SAMPLE_LINES))
    if sample and sample[0][:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UnreadableFileError("not_utf8", "is UTF-16; convert it to UTF-8 (iconv -f utf-16 -t utf-8)")
    if _is_gbk([line for line in sample if not line.isascii()]):
        raise UnreadableFileError("not_utf8", "looks like GBK; convert it to UTF-8 (iconv -f gb18030 -t utf-8)")
    yield from sample
    yield from lines


def _is_gbk(lines: list[bytes]) -> bool:
    """Whether these lines with bytes beyond ASCII are GBK, and not UTF-8 with some damage.

    Read as UTF-8, GBK gives mostly errors: about two for each Chinese character, and a stray valid one for every three.
    """
    foreign = [line for line in lines if not _decodes(line, "utf-8")]
    as_gbk = [line for line in foreign if _decodes(line, "gb18030")]
    if len(as_gbk) * 2 <= len(foreign) or not any(_GBK_RUN.search(line) for line in as_gbk):
        return False
    num_errors = num_valid = 0
    for line in lines:
        text = line.decode(errors="replace")
        errors = text.count(REPLACEMENT)
        num_errors += errors
        num_valid += len(text) - len(text.encode("ascii", "ignore")) - errors
    return num_errors > num_valid


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _jsonl_records(lines: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """(record, its end in bytes); the record of a blank line is empty."""
    end = 0
    for line in lines:
        end += len(line)
        yield (b"" if line[0] <= 32 and not line.strip() else line), end


def _csv_records(lines: Iterable[bytes]) -> Iterator[tuple[list[str] | None, int]]:
    """(fields as Latin-1, end in bytes); no fields for a blank line, None where the line is not CSV.

    A record that is not CSV costs its first line only: reading goes on at the next one. A stray quote would else
    swallow the lines up to the next quote. So a range that ends within such a record holds the same rows too.
    """
    source = iter(lines)
    again: deque[bytes] = deque()
    taken: list[bytes] = []
    end = 0

    def text() -> Iterator[str]:
        while (line := again.popleft() if again else next(source, None)) is not None:
            taken.append(line)
            yield line.decode("latin-1")

    csv.field_size_limit(_MAX_CSV_FIELD)
    reader = csv.reader(text(), strict=True)
    while True:
        taken.clear()
        try:
            fields = next(reader, None)
        except csv.Error:
            again.extendleft(reversed(taken[1:]))
            end += len(taken[0])
            yield None, end
            reader = csv.reader(text(), strict=True)  # one that has met the end of the text stays there
            continue
        if fields is None:
            return
        end += sum(map(len, taken))
        yield ([] if len(fields) == 1 and not fields[0].strip() else fields), end


def _not_csv(fs: pafs.FileSystem, path: str) -> UnreadableFileError:
    """The error for a file whose header is not CSV, or none of whose records is since its lines end with CR."""
    if _has_cr_line_ends(fs, path):
        return UnreadableFileError("not_csv", "is not CSV: its line ends are CR; convert them to LF (tr '\\r' '\\n')")
    return UnreadableFileError(
        "not_csv", 'is not CSV: a quote in its header is stray or not closed; double a " in a field'
    )


def _has_cr_line_ends(fs: pafs.FileSystem, path: str) -> bool:
    with fs.open_input_stream(path) as stream:
        block = stream.read(_BLOCK_BYTES)
    return bool(block.count(b"\r") - block.count(b"\r\n") > block.count(b"\n"))


def _header(fields: list[str]) -> list[str]:
    names = [_decode(field)[0].strip() for field in fields]
    names[0] = names[0].removeprefix("\ufeff").strip().strip('"')
    return names


def _decode(field: str) -> tuple[str, bool]:
    """The value of a field read as Latin-1, and whether bytes had to be replaced."""
    if field.isascii():
        return field, False
    raw = field.encode("latin-1")
    try:
        return raw.decode(), False
    except UnicodeDecodeError:
        return raw.decode(errors="replace"), True


def _json_forms(name: str) -> tuple[bytes, ...]:
    """How a key may be written in a file."""
    escaped = json.dumps(name)
    capitals = re.sub(r"\\u[0-9a-f]{4}", lambda match: f"\\u{match[0][2:].upper()}", escaped)
    return json.dumps(name, ensure_ascii=False).encode(), escaped.encode(), capitals.encode()


def _keys(record: bytes | None) -> list[str]:
    try:
        value = json.loads((record or b"").removeprefix(_BOM))
    except (ValueError, RecursionError):
        return []
    return list(value) if isinstance(value, dict) else []


class TextRows:
    """One JSONL or CSV file, read by ranges of bytes."""

    def __init__(
        self, fs: pafs.FileSystem, path: str, format_: Format, config: InputConfig, size: int, name: str
    ) -> None:
        """`size` is the file's when it was planned; `name` stands in errors.

        Raises: CorruptShardError when the file is gone or of another size.
        """
        self._name = name
        self._config = config
        self._format = format_
        try:
            self._source = fs.open_input_file(path)
        except FileNotFoundError:
            raise CorruptShardError(name, "input_missing") from None
        if self._source.size() != size:
            raise CorruptShardError(name, "input_changed")
        self._header = self._read_header() if format_ == "csv" else []

    def read(self, start: int, stop: int, num_rows: int, kept_schema: pa.Schema) -> RawRows:
        """The records in the bytes [start, stop). Raises: CorruptShardError when there are not `num_rows` of them."""
        data = self._source.read_at(stop - start, start)
        rows = _RowBuilder(self._config, kept_schema.names)
        lines = io.BytesIO(data)
        if self._format == "jsonl":
            for record, _ in _jsonl_records(lines):
                if record:
                    rows.add_json(record)
        else:
            index = {name: position for position, name in reversed(list(enumerate(self._header)))}
            for fields, _ in _csv_records(lines):
                if fields or fields is None:
                    rows.add_csv(fields, self._header, index)
        if len(rows.ids) != num_rows:
            raise CorruptShardError(self._name, "input_changed")
        return rows.build(kept_schema)

    def _read_header(self) -> list[str]:
        self._source.seek(0)

        def blocks() -> Iterator[bytes]:
            while block := self._source.read(64 * 1024):
                yield block

        for fields, _ in _csv_records(_lines(blocks())):
            if fields:
                return _header(fields)
        return []


class _RowBuilder:
    """Gathers rows; each value is read as strictly as an exact id and an honest text need."""

    def __init__(self, config: InputConfig, kept: list[str]) -> None:
        self._config = config
        self.ids: list[str | None] = []
        self._texts: list[str | None] = []
        self._kept: dict[str, list[str | None]] = {name: [] for name in kept}
        self._problems: dict[int, str] = {}
        self._replaced: list[int] = []

    def build(self, kept_schema: pa.Schema) -> RawRows:
        kept = pa.table({name: pa.array(values, pa.string()) for name, values in self._kept.items()}, kept_schema)
        rows = RawRows(self.ids, self._texts, kept, self._problems)
        rows.flag(self._replaced, "invalid_utf8_replaced")
        return rows

    def add_json(self, record: bytes) -> None:
        """One line of JSONL."""
        record = record.removeprefix(_BOM)
        try:
            line = record.decode()
        except UnicodeDecodeError:
            line = record.decode(errors="replace")
            self._replaced.append(len(self.ids))
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            self._add(None, None, {}, "invalid_json")
            return
        if not isinstance(value, dict):
            self._add(None, None, {}, "not_an_object")
            return
        post_id, problem = self._json_id(value, line_replaced=self._replaced[-1:] == [len(self.ids)])
        text = value.get(self._config.text_column)
        if problem is None and self._config.text_column not in value:
            problem = "missing_field"
        if text is not None and not isinstance(text, str):
            text, problem = None, problem or "not_a_string"
        self._add(post_id, text, {name: _json_text(value.get(name)) for name in self._kept}, problem)

    def add_csv(self, fields: list[str] | None, header: list[str], index: dict[str, int]) -> None:
        """One record of CSV; None for one that is not CSV."""
        if fields is None or len(fields) != len(header):
            # The cells that are there may belong to other columns: none of them can be trusted.
            self._add(None, None, {}, "invalid_csv" if fields is None else "ragged_row")
            return
        row = len(self.ids)
        post_id, broken = _decode(fields[index[self._config.id_column]])
        text, replaced = _decode(fields[index[self._config.text_column]])
        kept: dict[str, str | None] = {}
        for name in self._kept:
            if name in index:
                kept[name], kept_replaced = _decode(fields[index[name]])
                replaced |= kept_replaced
        if replaced:
            self._replaced.append(row)
        if post_id == self._config.id_column and text == self._config.text_column:
            self._add(None, None, {}, "repeated_header")  # some crawlers write it again on every run
            return
        # Crawlers append a TAB to keep spreadsheets from rounding the number.
        post_id = post_id.strip("\t")
        problem = "id_not_utf8" if broken else "float_id" if _FLOAT_ID.fullmatch(post_id.strip()) else None
        self._add(None if problem else post_id, text, kept, problem)

    def _json_id(self, value: dict[str, Any], *, line_replaced: bool) -> tuple[str | None, str | None]:
        post_id = value.get(self._config.id_column)
        if isinstance(post_id, str):
            if replace_surrogates(post_id) != post_id or (line_replaced and REPLACEMENT in post_id):
                return None, "id_not_utf8"
            return post_id, None
        if isinstance(post_id, float):
            return None, "float_id"
        if isinstance(post_id, int) and not isinstance(post_id, bool):
            return str(post_id), None
        if post_id is None:
            return None, None if self._config.id_column in value else "missing_field"
        return None, "id_not_a_string"

    def _add(self, post_id: str | None, text: str | None, kept: dict[str, str | None], problem: str | None) -> None:
        if problem is not None:
            self._problems[len(self.ids)] = problem
        self.ids.append(post_id)
        self._texts.append(text)
        for name, values in self._kept.items():
            values.append(kept.get(name))


def _json_text(value: Any) -> str | None:
    """A kept value as a string: text as it is, anything else as JSON."""
    if value is None:
        return None
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    return replace_surrogates(value)
