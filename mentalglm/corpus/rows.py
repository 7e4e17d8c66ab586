"""What every format's reader gives, and how it says that it cannot."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa


class UnreadableFileError(Exception):
    """A file that cannot be read at all; the plan quarantines it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        """A machine word: `truncated`, `missing_column`, ..."""
        self.detail = detail
        """For people: what is wrong, and the fix."""


class CorruptShardError(Exception):
    """No row of a shard can be read: its file is damaged there, has changed since it was planned, or is gone."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)  # both, so that it can be pickled
        self.file = file
        self.reason = reason
        """`corrupt_page`, `input_changed` or `input_missing`."""

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@dataclass(slots=True)
class RawRows:
    """Rows as they stand in the file, before the text is normalised. Lists of equal length."""

    ids: list[str | None]
    texts: list[str | None]
    kept: pa.Table
    problems: dict[int, str] = field(default_factory=dict)
    """Row -> reason why it is not a post."""
    flags: dict[int, list[str]] = field(default_factory=dict)
    """Row -> what was repaired in it."""

    def flag(self, rows: Iterable[int], flag: str) -> None:
        """Adds `flag` to each of `rows`, once."""
        for row in rows:
            flags = self.flags.setdefault(row, [])
            if flag not in flags:
                flags.append(flag)
