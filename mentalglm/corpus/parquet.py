"""Parquet: what the footer tells, and reading ranges of rows in bounded memory.

A footer is read without building an Arrow schema from it until its extension types are known to be harmless: Arrow
calls the class that a process has registered for a type's name, and some of those unpickle what the file holds.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mentalglm.config import InputConfig
from mentalglm.corpus.rows import CorruptShardError, RawRows, UnreadableFileError

_TAIL_BYTES = 64 * 1024
_STREAM_BUFFER_BYTES = 1024 * 1024
_BATCH_BYTES = 8 * 1024 * 1024
_MAX_BATCH_ROWS = 4096
_MIN_BATCH_ROWS = 16
_SALVAGE_BATCH_ROWS = 16
# parquet.thrift, enum CompressionCodec; all that are known but LZO, which Arrow does not have.
_CODECS = {0, 1, 2, 4, 5, 6, 7}
# Extension types that Arrow itself or pandas defines; they restore nothing but plain parameters.
_HARMLESS_EXTENSIONS = (
    b"arrow.bool8",
    b"arrow.fixed_shape_tensor",
    b"arrow.json",
    b"arrow.opaque",
    b"arrow.timestamp_with_offset",
    b"arrow.uuid",
    b"arrow.variable_shape_tensor",
    b"pandas.interval",
    b"pandas.period",
    b"parquet.variant",
)


@dataclass(frozen=True, slots=True)
class ParquetFooter:
    """What a plan needs to know of a file, from its last bytes alone."""

    row_groups: tuple[int, ...]
    """Rows of each row group."""
    schema: pa.Schema
    digest: str
    """sha256 of the footer, which holds sizes, offsets and statistics of every column chunk."""

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(self.row_groups)


def read_footer(fs: pafs.FileSystem, path: str, size: int) -> ParquetFooter:
    """The footer of a file of `size` bytes. Raises: UnreadableFileError."""
    with fs.open_input_file(path) as source:
        return _parse_footer(_footer_bytes(source, size))[0]


def _footer_bytes(source: pa.NativeFile, size: int) -> bytes:
    if size == 0:
        raise UnreadableFileError("empty_file", "has no bytes; write it again")
    tail: bytes = source.read_at(min(size, _TAIL_BYTES), max(size - _TAIL_BYTES, 0))
    magic = tail[-4:]
    if magic == b"PARE":
        raise UnreadableFileError("encrypted", "is encrypted; decrypt it where the keys are")
    if magic != b"PAR1" or len(tail) < 12:
        if source.read_at(4, 0) == b"PAR1":
            raise UnreadableFileError("truncated", "ends before its footer; copy or write it again")
        raise UnreadableFileError("not_parquet", "is not a Parquet file")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > size:
        raise UnreadableFileError("truncated", "its footer is cut; copy or write it again")
    return tail[-length:] if length <= len(tail) else source.read_at(length, size - length)


def _parse_footer(footer: bytes) -> tuple[ParquetFooter, pq.FileMetaData]:
    try:
        _check_chunks(footer)
        _refuse_foreign_extensions(footer)
        metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer))
        schema = metadata.schema.to_arrow_schema()
        rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        if sum(rows) != metadata.num_rows or min(rows, default=0) < 0:
            raise ValueError("row counts that do not fit")
    except (pa.ArrowException, OSError, ValueError, IndexError, RecursionError):
        raise UnreadableFileError("corrupt_footer", "its footer cannot be parsed; copy or write it again") from None
    return ParquetFooter(rows, schema, hashlib.sha256(footer).hexdigest()), metadata


def _check_chunks(footer: bytes) -> None:
    """Looks at the column chunks of the first row group.

    Done without pyarrow: what it tells of a chunk goes through calls that end the process (C++ `terminate`) on values
    that they do not know. Raises: UnreadableFileError for an encrypted column or an unknown codec; ValueError,
    IndexError or RecursionError where the footer is damaged.
    """
    thrift = _Thrift(footer)
    for field, type_ in thrift.fields():
        if field != 4:  # FileMetaData.row_groups
            thrift.skip(type_)
            continue
        num_groups, _ = thrift.list_header()
        for group_field, group_type in thrift.fields() if num_groups else ():
            if group_field != 1:  # RowGroup.columns
                thrift.skip(group_type)
                continue
            for _ in range(thrift.list_header()[0]):
                _check_chunk(thrift)
            return
        return


def _check_chunk(thrift: "_Thrift") -> None:
    for field, type_ in thrift.fields():
        if field in (8, 9):  # ColumnChunk.crypto_metadata, encrypted_column_metadata
            raise UnreadableFileError("encrypted", "has encrypted columns; decrypt it where the keys are")
        if field != 3:  # ColumnChunk.meta_data
            thrift.skip(type_)
            continue
        for meta_field, meta_type in thrift.fields():
            if meta_field != 4:  # ColumnMetaData.codec
                thrift.skip(meta_type)
            elif (codec := thrift.varint() >> 1) not in _CODECS:
                raise UnreadableFileError("unsupported_codec", f"is compressed with codec {codec}; write it with zstd")


class _Thrift:
    """Reads the compact protocol of Apache Thrift as far as a footer needs it."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self._data = data
        self._position = position

    def byte(self) -> int:
        """The next byte. Raises: IndexError at the end."""
        self._position += 1
        return self._data[self._position - 1]

    def varint(self) -> int:
        """A number of 7 bits a byte, lowest first; signed ones are zigzag on top of that."""
        value = shift = 0
        while (byte := self.byte()) >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def binary(self) -> bytes:
        """A string."""
        length = self.varint()
        self._position += length
        return self._data[self._position - length : self._position]

    def fields(self) -> Iterator[tuple[int, int]]:
        """(id, type) of each field of a struct; the caller reads or skips its value before the next."""
        field = 0
        while header := self.byte():
            if delta := header >> 4:
                field += delta
            else:
                number = self.varint()
                field = (number >> 1) ^ -(number & 1)
            yield field, header & 0x0F

    def list_header(self) -> tuple[int, int]:
        """(number, type) of the elements of a list or set."""
        header = self.byte()
        size = header >> 4
        return (self.varint() if size == 15 else size), header & 0x0F

    def skip(self, type_: int, *, in_list: bool = False) -> None:
        """Passes over a value."""
        if type_ in (1, 2):  # a bool is in the type of its field, but a byte of its own in a list
            self._position += in_list
        elif type_ == 3:
            self._position += 1
        elif type_ in (4, 5, 6):
            self.varint()
        elif type_ == 7:
            self._position += 8
        elif type_ == 8:
            self.binary()
        elif type_ in (9, 10):
            size, element = self.list_header()
            for _ in range(size):
                self.skip(element, in_list=True)
                if self._position > len(self._data):
                    raise IndexError("a list that does not end")
        elif type_ == 12:
            for _, field_type in self.fields():
                self.skip(field_type)
        else:
            raise ValueError(f"type {type_}")


def _refuse_foreign_extensions(footer: bytes) -> None:
    """Raises: UnreadableFileError when the Arrow schema in the footer names an extension type not known as harmless."""
    for match in re.finditer(rb"ARROW:schema", footer):
        names = _extension_names_and_harmless(footer, match.end())
        if names is None:
            raise ValueError("no Arrow schema")
        if names[0] != names[1]:
            raise UnreadableFileError(
                "extension_type", "holds an Arrow extension type that could run code; write plain column types"
            )


def _extension_names_and_harmless(footer: bytes, position: int) -> tuple[int, int] | None:
    """How many extension types the schema after its key names, and how many are harmless; None if it is not one.

    The value is a Thrift compact string (field header 0x18, length as varint) of base64 of a flatbuffer, where each
    string stands as its length in 4 bytes, its bytes and a zero.
    """
    thrift = _Thrift(footer, position)
    if thrift.byte() != 0x18:
        return None
    try:
        schema = base64.b64decode(thrift.binary(), validate=True)
    except binascii.Error:
        return None

    def count(string: bytes) -> int:
        return schema.count(len(string).to_bytes(4, "little") + string + b"\0")

    return schema.count(b"ARROW:extension:name"), sum(count(name) for name in _HARMLESS_EXTENSIONS)


def plain_type(type_: pa.DataType) -> pa.DataType:
    """The type of the values themselves: without dictionary, extension and view encodings."""
    if isinstance(type_, pa.BaseExtensionType):
        return plain_type(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return plain_type(type_.value_type)
    if pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_binary_view(type_):
        return pa.binary()
    return type_


def is_text(type_: pa.DataType) -> bool:
    """Whether a column of this type can hold text; a column that is all null can."""
    plain = plain_type(type_)
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(plain) for check in checks) or pa.types.is_null(plain)


def is_id(type_: pa.DataType) -> bool:
    """Whether every value of this type has one exact form as a string of digits or characters."""
    plain = plain_type(type_)
    return is_text(plain) or pa.types.is_integer(plain) or (pa.types.is_decimal(plain) and plain.scale == 0)


def plan_ranges(row_groups: Sequence[int], shard_rows: int) -> list[tuple[int, int]]:
    """Cuts a file into row ranges of at most `shard_rows` rows.

    A range lies within one row group, or is several whole ones that are small together: so a shard never makes a
    reader decode more than it needs of two large row groups.
    """
    ranges: list[tuple[int, int]] = []
    start = stop = 0  # of the small row groups gathered so far
    for num_rows in row_groups:
        if stop + num_rows - start <= shard_rows:
            stop += num_rows
            continue
        if stop > start:
            ranges.append((start, stop))
        start, end = stop, stop + num_rows
        while end - start > shard_rows:
            ranges.append((start, start + shard_rows))
            start += shard_rows
        if num_rows > shard_rows:
            ranges.append((start, end))
            start = end
        stop = end
    if stop > start:
        ranges.append((start, stop))
    return ranges


class ParquetRows:
    """One open Parquet file; ranges read in increasing order cost one pass over a row group, however large it is."""

    def __init__(self, fs: pafs.FileSystem, path: str, columns: Sequence[str], digest: str, name: str) -> None:
        """`digest` is the footer's when the file was planned; `name` stands in errors.

        Raises: CorruptShardError when the file is gone or another.
        """
        self._name = name
        try:
            source = fs.open_input_file(path)
        except FileNotFoundError:
            raise CorruptShardError(name, "input_missing") from None
        try:
            footer, metadata = _parse_footer(_footer_bytes(source, source.size()))
        except UnreadableFileError:
            raise CorruptShardError(name, "input_changed") from None
        if footer.digest != digest:
            raise CorruptShardError(name, "input_changed")
        self._file = pq.ParquetFile(
            source,
            metadata=metadata,
            pre_buffer=False,  # with a buffer size: column chunks are streamed, not read whole
            buffer_size=_STREAM_BUFFER_BYTES,
            page_checksum_verification=True,
        )
        self._schema = footer.schema
        self._columns = tuple(name for name in columns if name in footer.schema.names)
        self._bounds = [0, *accumulate(footer.row_groups)]
        self._cursors: dict[tuple[str, ...], _Cursor] = {}

    def read(self, start: int, stop: int) -> tuple[dict[str, pa.Array], dict[str, list[int]]]:
        """Columns of the rows [start, stop), and for each the rows, counted from `start`, that cannot be read.

        A damaged page ends what can be read of its column in that row group; those rows are null.
        """
        table = self._take(self._columns, start, stop)
        if table.num_rows == stop - start:
            return self._arrays(table), {column: [] for column in self._columns}
        arrays: dict[str, pa.Array] = {}
        unreadable: dict[str, list[int]] = {}
        for column in self._columns:
            arrays[column], unreadable[column] = self._salvage(column, start, stop)
        return arrays, unreadable

    def _salvage(self, column: str, start: int, stop: int) -> tuple[pa.Array, list[int]]:
        """What can be read of a column, row group by row group, and the rows that cannot."""
        parts: list[pa.Array] = []
        unreadable: list[int] = []
        for first, last in pairwise(self._bounds):
            first, last = max(first, start), min(last, stop)
            if first < last:
                table = self._take((column,), first, last, _SALVAGE_BATCH_ROWS)
                array = self._arrays(table)[column]
                parts += [array, pa.nulls(last - first - len(array), array.type)]
                unreadable += range(first + len(array) - start, last - start)
        return pa.concat_arrays(parts), unreadable

    def iter_column(self, column: str, num_rows: int) -> Iterator[tuple[int, pa.Array]]:
        """(first row, values) of a column through the file, `num_rows` at a time; damaged pages are left out."""
        for first, last in pairwise(self._bounds):
            for start in range(first, last, num_rows):
                table = self._take((column,), start, min(start + num_rows, last))
                if table.num_rows:
                    yield start, self._arrays(table)[column]
                if table.num_rows < min(start + num_rows, last) - start:
                    break

    def _take(self, columns: tuple[str, ...], start: int, stop: int, batch_rows: int | None = None) -> pa.Table:
        """The rows [start, stop), or fewer where a page is damaged."""
        cursor = self._cursors.get(columns)
        if cursor is None or not cursor.covers(start, stop):
            first = max(i for i, bound in enumerate(self._bounds[:-1]) if bound <= start)
            last = max(i for i, bound in enumerate(self._bounds[:-1]) if bound < stop)
            batches = self._file.iter_batches(
                batch_size=batch_rows or self._batch_rows(first),
                row_groups=list(range(first, last + 1)),
                columns=list(columns),
                use_threads=False,
            )
            cursor = _Cursor(batches, self._bounds[first], self._bounds[last + 1])
            self._cursors[columns] = cursor
        batches = cursor.take(start, stop)
        schema = pa.schema([self._schema.field(column) for column in columns])
        if not batches:
            return schema.empty_table()
        return pa.Table.from_batches([batch.select(list(columns)) for batch in batches])

    def _arrays(self, table: pa.Table) -> dict[str, pa.Array]:
        """One plain array for each column."""
        return {name: _plain(table.column(name)) for name in table.column_names}

    def _batch_rows(self, group: int) -> int:
        """Rows of a batch of about `_BATCH_BYTES`, so that memory does not grow with the row group."""
        row_group = self._file.metadata.row_group(group)
        size: int = row_group.total_byte_size  # of all columns, those not asked for too: an upper bound
        num_rows: int = row_group.num_rows
        return min(_MAX_BATCH_ROWS, max(_MIN_BATCH_ROWS, _BATCH_BYTES * num_rows // max(size, 1)))


class _Cursor:
    """Goes forward through the rows of some row groups."""

    def __init__(self, batches: Iterator[pa.RecordBatch], start: int, end: int) -> None:
        self._batches = batches
        self._position = start  # of the first row of `_rest`
        self._end = end
        self._rest: pa.RecordBatch | None = None
        self._broken_at: int | None = None

    def covers(self, start: int, stop: int) -> bool:
        """Whether the rows are still ahead, or known to be unreadable."""
        return self._position <= start and stop <= self._end

    def take(self, start: int, stop: int) -> list[pa.RecordBatch]:
        """The batches of the rows [start, stop), fewer where a page is damaged."""
        taken: list[pa.RecordBatch] = []
        while self._position < stop:
            if self._rest is None:
                self._rest = self._next()
                if self._rest is None:
                    break
            skip = min(max(start - self._position, 0), self._rest.num_rows)
            take = min(stop - self._position, self._rest.num_rows) - skip
            if take > 0:
                taken.append(self._rest.slice(skip, take))
            used = skip + max(take, 0)
            self._position += used
            self._rest = self._rest.slice(used) if used < self._rest.num_rows else None
        return taken

    def _next(self) -> pa.RecordBatch | None:
        if self._broken_at is not None:
            return None
        try:
            while (batch := next(self._batches, None)) is not None:
                if batch.num_rows:
                    return batch
        except (pa.ArrowException, OSError) as error:
            # What the system or S3 reports is of the way to the file, which may pass; pyarrow's own words are of the
            # file. A shard that is taken for damaged stays so for ever.
            if getattr(error, "errno", None) is not None or "AWS Error" in str(error):
                raise
        self._broken_at = self._position
        return None


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One array of the values themselves; text types are large, so that no batch is too big for them."""
    chunks = [_plain_chunk(chunk) for chunk in column.chunks]
    return pa.concat_arrays(chunks) if chunks else _plain_chunk(pa.array([], column.type))


def _plain_chunk(array: Any) -> pa.Array:
    if isinstance(array.type, pa.BaseExtensionType):
        return _plain_chunk(array.storage)
    if pa.types.is_dictionary(array.type):
        return _plain_chunk(array.dictionary_decode())
    if pa.types.is_string(array.type) or pa.types.is_string_view(array.type):
        return array.cast(pa.large_string())
    if pa.types.is_binary(array.type) or pa.types.is_binary_view(array.type):
        return array.cast(pa.large_binary())
    return array


def strings(array: pa.Array) -> tuple[pa.Array, list[int]]:
    """A text array as valid large_string, and the rows where bytes that are not UTF-8 became U+FFFD."""
    if pa.types.is_null(array.type):
        return array.cast(pa.large_string()), []
    try:
        if pa.types.is_large_string(array.type):
            array.validate(full=True)
            return array, []
        return array.cast(pa.large_string()), []  # of binary: checks UTF-8
    except pa.ArrowInvalid:
        pass
    values: list[str | None] = []
    repaired: list[int] = []
    for row, value in enumerate(array.cast(pa.large_binary()).to_pylist()):
        if value is None:
            values.append(None)
            continue
        try:
            values.append(value.decode())
        except UnicodeDecodeError:
            values.append(value.decode(errors="replace"))
            repaired.append(row)
    return pa.array(values, pa.large_string()), repaired


def id_strings(array: pa.Array) -> tuple[pa.Array, list[int]]:
    """Ids as large_string, and the rows whose id is not UTF-8 (null there: a repaired id could be another's)."""
    if not is_text(array.type):
        return array.cast(pa.large_string()), []
    ids, broken = strings(array)
    if broken:
        mask = pa.array([row in set(broken) for row in range(len(ids))])
        ids = pc.if_else(mask, pa.scalar(None, pa.large_string()), ids)
    return ids, broken


def raw_rows(
    config: InputConfig,
    kept_schema: pa.Schema,
    arrays: dict[str, pa.Array],
    unreadable: dict[str, list[int]],
    num_rows: int,
) -> RawRows:
    """The rows of `ParquetRows.read`. Kept columns that the file does not have are null."""
    ids, bad_ids = id_strings(arrays[config.id_column])
    texts, repaired = strings(arrays[config.text_column])
    kept: list[pa.Array] = []
    repaired_kept: set[int] = set()
    for field in kept_schema:
        array = arrays.get(field.name)
        if array is None:
            kept.append(pa.nulls(num_rows, field.type))
        elif pa.types.is_large_string(array.type):
            array, repaired_here = strings(array)
            repaired_kept.update(repaired_here)
            kept.append(array.cast(field.type))
        else:
            kept.append(array.cast(field.type))
    rows = RawRows(
        ids=ids.to_numpy(zero_copy_only=False).tolist(),
        texts=texts.to_numpy(zero_copy_only=False).tolist(),
        kept=pa.Table.from_arrays(kept, schema=kept_schema),
        problems=dict.fromkeys(bad_ids, "id_not_utf8"),
    )
    rows.flag(repaired, "invalid_utf8_replaced")
    rows.flag(sorted(repaired_kept), "invalid_utf8_replaced")
    for column in (config.id_column, config.text_column):
        rows.problems |= dict.fromkeys(unreadable[column], "corrupt_page")
    for column in kept_schema.names:
        rows.flag(unreadable.get(column, ()), "kept_column_unreadable")
    return rows
