"""The plan of a corpus: its files, their identity, and the shards that a run scores, fixed before it begins."""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from mentalglm import storage
from mentalglm.config import InputConfig
from mentalglm.corpus import lines, parquet
from mentalglm.corpus.duplicates import find_repeated
from mentalglm.corpus.files import Format, ListedFile, list_files
from mentalglm.corpus.rows import CorruptShardError, UnreadableFileError
from mentalglm.errors import InputError

Int64Array = np.ndarray[tuple[int], np.dtype[np.int64]]

_NUM_THREADS = 16
_IDS_AT_ONCE = 65_536
_TAIL_BYTES = 64 * 1024
# The first line of a CSV without a header is a post: an id or a long text, which must not be shown.
_NOT_A_NAME = re.compile(r"\s*[0-9]{6,}\s*|.{65,}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A data file of the input. Quarantined files stand here too, with no rows: they are part of its identity."""

    path: str
    """Relative to the root of the input."""
    format: Format
    size: int
    """Bytes."""
    modified_ns: int
    """Time of the last change, ns since 1970. Not part of the identity: it only spares reading a file again."""
    num_rows: int
    digest: str
    """sha256 of the footer of a Parquet file, of the content of a text file; of the last 64 KiB of a file that is
    quarantined, unless it has a readable footer."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file that cannot be read; the others are scored."""

    file: str
    reason: str
    """A machine word: `truncated`, `missing_column`, ..."""
    detail: str
    """What is wrong, and the fix."""
    num_rows: int | None
    """None where the file does not tell."""

    def describe(self) -> str:
        """One line for people: file, what is wrong, reason and, where known, the number of its rows."""
        rows = "" if self.num_rows is None else f", {self.num_rows} row{'' if self.num_rows == 1 else 's'}"
        return f"{self.file} {self.detail} ({self.reason}{rows})"


@dataclass(frozen=True, slots=True)
class Shard:
    """A range of one file: the unit of work and of commit."""

    index: int
    file: str
    """Path of the `InputFile`."""
    format: Format
    start: int
    """First row of the file (Parquet), or first byte (JSONL, CSV)."""
    stop: int
    """Row or byte after the last."""
    num_rows: int
    first_row: int
    """Number of the first row in the whole corpus, counted over the planned files in their order."""


@dataclass(frozen=True)
class CorpusPlan:
    """Files and shards of a corpus. The same files give the same plan. Costs 28 bytes for each shard."""

    files: tuple[InputFile, ...]
    quarantined: tuple[Quarantined, ...]
    kept_schema: pa.Schema
    """Type of each kept column, over all files."""
    digest: str
    """sha256 of the input's identity: path, size and digest of each file."""
    shard_file: Int64Array
    """Of each shard, the index of its file."""
    shard_start: Int64Array
    shard_stop: Int64Array
    shard_num_rows: Int64Array
    repeated_rows: Int64Array
    """Sorted numbers, in the corpus, of the rows whose id occurs more than once."""
    later_rows: Int64Array
    """Those of them that are not the first with their id."""

    @property
    def num_shards(self) -> int:
        return len(self.shard_file)

    @cached_property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return int(self.shard_num_rows.sum())

    @cached_property
    def _first_rows(self) -> Int64Array:
        first_rows: Int64Array = np.concatenate([[0], np.cumsum(self.shard_num_rows)[:-1]])
        return first_rows

    @cached_property
    def _files_by_path(self) -> dict[str, InputFile]:
        return {file.path: file for file in self.files}

    def shard(self, index: int) -> Shard:
        """The shard with this number. Raises: IndexError."""
        if not 0 <= index < self.num_shards:
            raise IndexError(f"shard {index} of {self.num_shards}")
        file = self.files[self.shard_file[index]]
        return Shard(
            index=index,
            file=file.path,
            format=file.format,
            start=int(self.shard_start[index]),
            stop=int(self.shard_stop[index]),
            num_rows=int(self.shard_num_rows[index]),
            first_row=int(self._first_rows[index]),
        )

    def shards_of(self, rows: Int64Array) -> Int64Array:
        """Number of the shard that each row of the corpus is in."""
        shards: Int64Array = np.searchsorted(self._first_rows, rows, side="right") - 1
        return shards

    def shards(self) -> Iterator[Shard]:
        """All shards, in order."""
        return (self.shard(index) for index in range(self.num_shards))

    def shards_by_file(self) -> Iterator[tuple[InputFile, range]]:
        """Each file that has rows, and the numbers of its shards."""
        bounds = np.flatnonzero(np.diff(self.shard_file, prepend=-1, append=len(self.files))).tolist()
        for first, last in pairwise(bounds):
            yield self.files[self.shard_file[first]], range(first, last)

    def file(self, path: str) -> InputFile:
        """The file with this path. Raises: KeyError."""
        return self._files_by_path[path]

    def to_table(self) -> pa.Table:
        """The plan as a table of one row; `from_table` gives it back."""
        shards = pa.StructArray.from_arrays(
            [pa.array(getattr(self, f"shard_{name}")) for name in _SHARD_TYPE.names], type=_SHARD_TYPE
        )
        columns = {
            "version": pa.array([1], pa.int32()),
            "digest": pa.array([self.digest]),
            "kept_schema": pa.array([self.kept_schema.serialize().to_pybytes()]),
            "files": pa.array([[asdict(file) for file in self.files]], pa.list_(_FILE_TYPE)),
            "quarantined": pa.array([[asdict(each) for each in self.quarantined]], pa.list_(_QUARANTINED_TYPE)),
            "shards": _as_one_list(shards),
            "repeated_rows": _as_one_list(pa.array(self.repeated_rows, pa.int64())),
            "later_rows": _as_one_list(pa.array(self.later_rows, pa.int64())),
        }
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> "CorpusPlan":
        """The plan that `to_table` was called on."""
        version = table.column("version")[0].as_py()
        if version != 1:
            raise InputError(f"the plan of this run has version {version}, this code reads 1; begin a new run")
        row = {name: table.column(name)[0] for name in table.column_names}
        shards = row["shards"].values
        return cls(
            files=tuple(InputFile(**file) for file in row["files"].as_py()),
            quarantined=tuple(Quarantined(**each) for each in row["quarantined"].as_py()),
            kept_schema=pa.ipc.read_schema(pa.py_buffer(row["kept_schema"].as_py())),
            digest=row["digest"].as_py(),
            **{f"shard_{name}": shards.field(name).to_numpy() for name in _SHARD_TYPE.names},
            repeated_rows=row["repeated_rows"].values.to_numpy(),
            later_rows=row["later_rows"].values.to_numpy(),
        )


_FILE_TYPE = pa.struct(
    {
        "path": pa.string(),
        "format": pa.string(),
        "size": pa.int64(),
        "modified_ns": pa.int64(),
        "num_rows": pa.int64(),
        "digest": pa.string(),
    }
)
_QUARANTINED_TYPE = pa.struct(
    {"file": pa.string(), "reason": pa.string(), "detail": pa.string(), "num_rows": pa.int64()}
)
_SHARD_TYPE = pa.struct({"file": pa.int64(), "start": pa.int64(), "stop": pa.int64(), "num_rows": pa.int64()})


def _as_one_list(values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def plan_corpus(config: InputConfig, shard_rows: int) -> CorpusPlan:
    """Lists the files, reads their footers (Parquet) or finds their records (JSONL, CSV), and cuts them into shards.

    Files that cannot be read are quarantined and the others planned. Kept columns: a type that fits all files; null
    in a file that lacks one; strings from JSONL (numbers and nested values as JSON) and CSV. Repeated ids are looked
    for over the whole corpus, in bounded memory.
    Raises: InputError when there is nothing that can be scored, an id is a floating-point number, kept columns
    conflict, or ids repeat and `duplicate_ids` is `error`.
    """
    fs, _ = storage.filesystem(config.uri)
    root, listed = list_files(config)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        inspected = list(pool.map(lambda file: _inspect(fs, root, file, config, shard_rows), listed))
    files = tuple(each.file for each in inspected)
    quarantined = tuple(each.quarantined for each in inspected if each.quarantined is not None)
    readable = [each for each in inspected if each.quarantined is None]
    _check_any_rows(config, files, quarantined)
    identity = json.dumps([[file.path, file.size, file.digest] for file in files], ensure_ascii=True)
    ranges = [(index, *range_) for index, each in enumerate(inspected) for range_ in each.ranges]
    shard_file, shard_start, shard_stop, shard_num_rows = np.array(ranges, np.int64).T
    plan = CorpusPlan(
        files=files,
        quarantined=quarantined,
        kept_schema=_kept_schema(config, readable),
        digest=hashlib.sha256(identity.encode()).hexdigest(),
        shard_file=shard_file,
        shard_start=shard_start,
        shard_stop=shard_stop,
        shard_num_rows=shard_num_rows,
        repeated_rows=np.empty(0, np.int64),
        later_rows=np.empty(0, np.int64),
    )
    plan = _with_repeated(plan, config, fs, root)
    return plan if config.sample_rows is None else _sample(plan, config.sample_rows)


def _sample(plan: CorpusPlan, num_rows: int) -> CorpusPlan:
    """Whole shards of the plan, spread evenly, with at least so many rows; all where there are no more."""
    if num_rows >= plan.num_rows:
        return plan
    num_shards = 0
    chosen = np.empty(0, np.int64)
    while plan.shard_num_rows[chosen].sum() < num_rows:
        num_left = num_rows - int(plan.shard_num_rows[chosen].sum())
        num_shards = min(plan.num_shards, num_shards + max(1, num_left * plan.num_shards // plan.num_rows))
        chosen = ((np.arange(num_shards) + 0.5) * plan.num_shards / num_shards).astype(np.int64)
    first_rows = np.concatenate([[0], np.cumsum(plan.shard_num_rows[chosen])[:-1]])

    def renumbered(rows: Int64Array) -> Int64Array:
        shards = plan.shards_of(rows)
        is_chosen = np.isin(shards, chosen)
        rows, shards = rows[is_chosen], shards[is_chosen]
        new: Int64Array = rows - plan._first_rows[shards] + first_rows[np.searchsorted(chosen, shards)]
        return new

    return replace(
        plan,
        shard_file=plan.shard_file[chosen],
        shard_start=plan.shard_start[chosen],
        shard_stop=plan.shard_stop[chosen],
        shard_num_rows=plan.shard_num_rows[chosen],
        repeated_rows=renumbered(plan.repeated_rows),
        later_rows=renumbered(plan.later_rows),
    )


def check_unchanged(plan: CorpusPlan, config: InputConfig) -> int:
    """Checks that the files that were planned are as they were, from the listing alone. Returns how many there are
    besides: a crawler goes on writing, and a run is over what there was when it began.

    Only a file of the same size with another time of change is looked into (footer, or content of a text file).
    Raises: InputError naming the file and what to do.
    """
    fs, _ = storage.filesystem(config.uri)
    root, listed = list_files(config)
    found = {file.path: file for file in listed}
    planned = {file.path for file in plan.files}
    for path in sorted(planned - found.keys()):
        raise InputError(_changed(config, path, "is gone"))
    quarantined = {each.file for each in plan.quarantined}
    for file in plan.files:
        now = found[file.path]
        same = (now.size, now.format) == (file.size, file.format)
        if same and now.modified_ns != file.modified_ns:
            same = _digest(fs, f"{root}/{file.path}", file, file.path in quarantined) == file.digest
        if not same:
            raise InputError(_changed(config, file.path, "has changed"))
    return len(found.keys() - planned)


def _changed(config: InputConfig, path: str, problem: str) -> str:
    return (
        f"input.uri = {config.uri}: {path} {problem} since this run began; "
        "restore the input, or name another output.uri for a new run"
    )


def _digest(fs: pafs.FileSystem, path: str, file: InputFile, quarantined: bool) -> str:
    if file.format == "parquet":
        try:
            return parquet.read_footer(fs, path, file.size).digest
        except UnreadableFileError:
            return _tail_digest(fs, path, file.size)
    return _tail_digest(fs, path, file.size) if quarantined else lines.content_digest(fs, path)


def _tail_digest(fs: pafs.FileSystem, path: str, size: int) -> str:
    with fs.open_input_file(path) as source:
        return hashlib.sha256(source.read_at(min(size, _TAIL_BYTES), max(size - _TAIL_BYTES, 0))).hexdigest()


@dataclass(frozen=True, slots=True)
class _Inspected:
    """What one file adds to the plan."""

    file: InputFile
    ranges: list[tuple[int, int, int]]
    """(start, stop, number of rows) of each shard."""
    kept: dict[str, pa.DataType]
    quarantined: Quarantined | None = None


def _inspect(fs: pafs.FileSystem, root: str, listed: ListedFile, config: InputConfig, shard_rows: int) -> _Inspected:
    num_rows: int | None = None
    digest = ""
    path = f"{root}/{listed.path}"
    try:
        if listed.format == "parquet":
            footer = parquet.read_footer(fs, path, listed.size)
            num_rows, digest = footer.num_rows, footer.digest
            kept = _check_schema(config, listed.path, footer.schema) if num_rows else {}
            ranges = [(start, stop, stop - start) for start, stop in parquet.plan_ranges(footer.row_groups, shard_rows)]
        else:
            columns = [config.id_column, config.text_column, *config.keep_columns]
            text = lines.scan(fs, path, listed.format, columns, shard_rows)
            num_rows, ranges = text.num_rows, text.ranges
            # The header of a CSV is looked at without rows too: it may be the only row of a file that has no header.
            if num_rows or (listed.format == "csv" and text.available):
                _check_columns(config, text.columns, text.available)
            digest = text.digest
            kept = {name: pa.string() for name in config.keep_columns if name in text.columns}
    except UnreadableFileError as error:
        digest = digest or _tail_digest(fs, path, listed.size)
        quarantined = Quarantined(listed.path, error.reason, error.detail, num_rows)
        return _Inspected(_input_file(listed, 0, digest), [], {}, quarantined)
    except PermissionError:
        raise InputError(f"input.uri: {listed.path}: not allowed to read it; check the permissions") from None
    except FileNotFoundError:
        raise InputError(f"input.uri: {listed.path}: went away while it was planned; run the command again") from None
    return _Inspected(_input_file(listed, num_rows, digest), ranges, kept)


def _input_file(listed: ListedFile, num_rows: int, digest: str) -> InputFile:
    return InputFile(listed.path, listed.format, listed.size, listed.modified_ns, num_rows, digest)


def _check_columns(config: InputConfig, present: Collection[str], available: Sequence[str]) -> None:
    """Raises: UnreadableFileError when a column that every row needs is missing, or one that is asked for is double."""
    for column in (config.id_column, config.text_column, *config.keep_columns):
        if available.count(column) > 1:
            raise UnreadableFileError("duplicate_column", f"has two columns named {column!r}; rename one")
    for column in (config.id_column, config.text_column):
        if column not in present:
            if any(_NOT_A_NAME.fullmatch(name) for name in available):
                raise UnreadableFileError(
                    "missing_column", f"has no column {column!r}; where names belong it has what may be a post"
                )
            shown = ", ".join(available[:40]) + (", ..." if len(available) > 40 else "")
            raise UnreadableFileError("missing_column", f"has no column {column!r}; it has: {shown or 'none'}")


def _check_schema(config: InputConfig, path: str, schema: pa.Schema) -> dict[str, pa.DataType]:
    """Types of the kept columns in a Parquet file. Raises: UnreadableFileError; InputError for a float id."""
    _check_columns(config, schema.names, schema.names)
    id_type, text_type = schema.field(config.id_column).type, schema.field(config.text_column).type
    if pa.types.is_floating(parquet.plain_type(id_type)):
        raise InputError(
            f"input.id_column = {config.id_column}: is {id_type} in {path}, which has rounded long ids already; "
            "cast it to string where the data is made"
        )
    if not parquet.is_id(id_type):
        raise UnreadableFileError(
            "wrong_type", f"its column {config.id_column!r} is {id_type}; ids are strings or integers"
        )
    if not parquet.is_text(text_type):
        raise UnreadableFileError(
            "wrong_type", f"its column {config.text_column!r} is {text_type}; name a column of strings"
        )
    return {name: parquet.plain_type(schema.field(name).type) for name in config.keep_columns if name in schema.names}


def _check_any_rows(config: InputConfig, files: tuple[InputFile, ...], quarantined: tuple[Quarantined, ...]) -> None:
    if any(file.num_rows for file in files):
        return
    if not quarantined:
        raise InputError(f"input.uri = {config.uri}: its {len(files)} files hold no rows; give posts")
    first = quarantined[0]
    of_all = "" if len(quarantined) == 1 else f" (first of {len(quarantined)} files, none of which can be read)"
    if first.reason == "missing_column":
        key = "id_column" if repr(config.id_column) in first.detail.partition(";")[0] else "text_column"
        raise InputError(
            f"input.{key} = {getattr(config, key)}: {first.file} {first.detail}{of_all}; name one that is there"
        )
    raise InputError(f"input.uri = {config.uri}: {first.file} {first.detail}{of_all}")


def _kept_schema(config: InputConfig, inspected: list[_Inspected]) -> pa.Schema:
    """One type for each kept column. Raises: InputError when a column is in no file, or no type is exact for all."""
    fields: list[pa.Field] = []
    for name in config.keep_columns:
        type_: pa.DataType | None = None
        first = ""
        for each in inspected:
            if (other := each.kept.get(name)) is None:
                continue
            unified = other if type_ is None else _unify(type_, other)
            if unified is None:
                raise InputError(
                    f"input.keep_columns: {name!r} is {type_} in {first} but {other} in {each.file.path}; "
                    "cast it to one type, or leave it out"
                )
            if unified != type_:
                type_, first = unified, each.file.path
        if type_ is None:
            raise InputError(f"input.keep_columns: no file has a column {name!r}; leave it out or correct the name")
        # A column of nulls only has a type that many readers do not know.
        fields.append(pa.field(name, pa.string() if pa.types.is_null(type_) else type_))
    return pa.schema(fields)


def _unify(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type that holds every value of both exactly, or None."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        if pa.types.is_signed_integer(one) == pa.types.is_signed_integer(other):
            return one if one.bit_width >= other.bit_width else other
        unsigned = other if pa.types.is_signed_integer(one) else one
        return None if unsigned.bit_width == 64 else pa.int64()
    if pa.types.is_floating(one) and pa.types.is_floating(other):
        return one if one.bit_width >= other.bit_width else other
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other) and one.tz == other.tz:
        units = ("s", "ms", "us", "ns")
        return max(one, other, key=lambda type_: units.index(type_.unit))
    if {one, other} == {pa.string(), pa.large_string()}:
        return pa.large_string()
    return None


def _with_repeated(plan: CorpusPlan, config: InputConfig, fs: pafs.FileSystem, root: str) -> CorpusPlan:
    """The plan with the rows of repeated ids. Raises: InputError when there are some and the policy is `error`."""
    streams = (_ids(plan, file, shards, config, fs, root) for file, shards in plan.shards_by_file())
    try:
        repeated, later = find_repeated(streams, plan.num_rows)
    except CorruptShardError as error:
        raise InputError(f"input.uri: {error.file}: changed while it was planned; run the command again") from None
    if config.duplicate_ids == "error" and len(later):
        raise InputError(
            f"input.id_column = {config.id_column}: {len(later)} rows repeat the id of an earlier row, the first at "
            f"{_position(plan, int(later[0]))}; make ids unique, or set input.duplicate_ids to keep_first or keep_all"
        )
    return replace(plan, repeated_rows=repeated, later_rows=later)


def _ids(
    plan: CorpusPlan, file: InputFile, shards: range, config: InputConfig, fs: pafs.FileSystem, root: str
) -> Iterator[tuple[int, pa.Array]]:
    """(number in the corpus of the first row, ids) through a file; null where a row has no usable id."""
    path = f"{root}/{file.path}"
    if file.format == "parquet":
        source = parquet.ParquetRows(fs, path, [config.id_column], file.digest, file.path)
        for row, values in source.iter_column(config.id_column, _IDS_AT_ONCE):
            yield plan.shard(shards.start).first_row + row, parquet.id_strings(values)[0]
        return
    text = lines.TextRows(fs, path, file.format, config, file.size, file.path)
    for shard in map(plan.shard, shards):
        ids = text.read(shard.start, shard.stop, shard.num_rows, pa.schema([])).ids
        yield shard.first_row, pa.array(ids, pa.large_string())


def _position(plan: CorpusPlan, row: int) -> str:
    """Where a row of the corpus stands, for people: counted from 1."""
    for file, shards in plan.shards_by_file():
        first_row = plan.shard(shards.start).first_row
        if row < first_row + file.num_rows:
            return f"row {row - first_row + 1} of {file.path}"
    raise IndexError(f"row {row} of {plan.num_rows}")
