"""Which files an input address means, and the format of each."""

import re
from dataclasses import dataclass
from typing import Literal

import pyarrow.fs as pafs

from mentalglm import storage
from mentalglm.config import InputConfig
from mentalglm.errors import InputError

Format = Literal["parquet", "jsonl", "csv"]

_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
}
# Names that look like data and must not be passed over in silence: how to make them readable.
_REFUSED = dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), "unpack it, or convert it to Parquet")
_REFUSED |= dict.fromkeys((".xlsx", ".xls", ".tsv"), "convert it to Parquet or comma-separated CSV")
_REFUSED[".json"] = "if every line is an object, name it .jsonl or set input.format: jsonl; else convert it to JSONL"

_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A data file as the listing shows it."""

    path: str
    """Relative to the root of the input, with `/`."""
    format: Format
    size: int
    """Bytes."""
    modified_ns: int
    """Time of the last change, ns since 1970; 0 where the storage does not say."""


def list_files(config: InputConfig) -> tuple[str, list[ListedFile]]:
    """The root (a path of `storage.filesystem`) and the data files below it, sorted by path.

    Names that begin with `_` or `.` and checksum files are not data; nor are the empty objects that S3 tools make for
    folders. Raises: InputError when there is no data, or data that cannot be told apart or read.
    """
    fs, path = storage.filesystem(config.uri)
    try:
        root, infos = _find(fs, path)
    except FileNotFoundError:
        raise InputError(f"input.uri = {config.uri}: no such file or folder; check the address") from None
    except PermissionError:
        raise InputError(f"input.uri = {config.uri}: not allowed to read it; check the permissions") from None
    except OSError as error:  # of S3
        if not re.search("NO_SUCH_BUCKET|ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH", str(error)):
            raise  # may pass
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"input.uri = {config.uri}: cannot be listed; check address and credentials ({reason})"
        ) from None
    found: list[ListedFile] = []
    for info in infos:
        relative = info.path[len(root) :].lstrip("/")
        if _is_hidden(relative) and not (len(infos) == 1 and info.path == path):
            continue
        if (format_ := _format_of(config, relative)) is not None:
            found.append(ListedFile(relative, format_, info.size or 0, info.mtime_ns or 0))
    if not found:
        raise InputError(
            f"input.uri = {config.uri}: holds no data file; give Parquet, JSONL or CSV files, "
            "or set input.format where their names do not tell"
        )
    formats = sorted({file.format for file in found})
    if len(formats) > 1:
        raise InputError(
            f"input.uri = {config.uri}: holds files of different formats ({', '.join(formats)}); "
            f"give a glob such as {config.uri.rstrip('/')}/*.{formats[0]}"
        )
    return root, sorted(found, key=lambda file: file.path)


def root_of(config: InputConfig) -> str:
    """The folder that the paths of the input's files are relative to, as a path of `storage.filesystem`."""
    fs, path = storage.filesystem(config.uri)
    return _root(fs.get_file_info(path))


def _root(info: pafs.FileInfo) -> str:
    """Of a file its folder, of a folder itself, of a glob the folders before the first wildcard."""
    path: str = info.path
    if info.type == pafs.FileType.Directory:
        return path
    wildcard = _WILDCARD.search(path) if info.type == pafs.FileType.NotFound else None
    return path[: wildcard.start() if wildcard else None].rpartition("/")[0]


def _find(fs: pafs.FileSystem, path: str) -> tuple[str, list[pafs.FileInfo]]:
    info = fs.get_file_info(path)
    root = _root(info)
    if info.type == pafs.FileType.File:
        return root, [info]
    if info.type == pafs.FileType.Directory:
        return root, _files_below(fs, root)
    if not _WILDCARD.search(path):
        raise FileNotFoundError(path)
    pattern = _glob_pattern(path[len(root) :].lstrip("/"))
    return root, [
        each for each in _files_below(fs, root) if pattern.fullmatch(each.path[len(root) :].lstrip("/")) is not None
    ]


def _files_below(fs: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    return [
        info
        for info in fs.get_file_info(pafs.FileSelector(path, recursive=True))
        if info.type == pafs.FileType.File and not info.path.endswith("/")
    ]


def _glob_pattern(glob: str) -> re.Pattern[str]:
    """`*` and `?` stay within a folder's level, `**/` is any number of levels, `[...]` one of some characters."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[!^]?\]?[^\]]*\])", glob)
    expression = ""
    for part in parts:
        if part in tokens:
            expression += tokens[part]
        elif part.startswith("[") and part.endswith("]") and len(part) > 2:
            negated = part[1] in "!^"
            characters = part[2 if negated else 1 : -1].replace("\\", r"\\")
            expression += f"[{'^' if negated else ''}{characters}]"
        else:
            expression += re.escape(part)
    return re.compile(expression, re.DOTALL)


def _is_hidden(relative: str) -> bool:
    parts = relative.split("/")
    return any(part.startswith(("_", ".")) for part in parts) or relative.endswith((".crc", "_$folder$"))


def _format_of(config: InputConfig, relative: str) -> Format | None:
    """The format by name or by the config. Raises: InputError for data that we do not read."""
    name = relative.rpartition("/")[2].lower()
    suffix = f".{name.rpartition('.')[2]}" if "." in name else ""
    refused = suffix in _REFUSED and (config.format == "auto" or suffix != ".json")
    if config.format == "parquet":
        refused = False  # what is not Parquet shows in its footer
    if refused:
        raise InputError(f"input.uri: {relative}: {suffix} files are not read; {_REFUSED[suffix]}")
    return _FORMATS.get(suffix) if config.format == "auto" else config.format
