"""When posts were written: days out of the columns that crawlers leave, and bins of days."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Unit = Literal["day", "week", "month", "year"]
UNITS: tuple[Unit, ...] = ("day", "week", "month", "year")

# In the order in which they are looked for. Names of the usual Weibo crawlers and of Chinese exports.
USUAL_NAMES = (
    *("created_at", "full_created_at", "publish_time", "published_at", "posting_time", "post_time", "create_time"),
    *("完整日期", "发布时间", "微博发布时间", "日期", "时间", "date", "datetime", "timestamp", "time"),
)
_FIRST, _LAST = date(1990, 1, 1).toordinal(), date(2100, 1, 1).toordinal()
_EPOCH = date(1970, 1, 1).toordinal()
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_NUMBERS = r"^\s*(?P<y>\d{4})\s?[-/.年]\s?(?P<m>\d{1,2})\s?[-/.月]\s?(?P<d>\d{1,2})"
_API = r"^\w{3} (?P<m>\w{3}) (?P<d>\d{1,2}) .*(?P<y>\d{4})\s*$"  # Tue May 31 17:46:55 +0800 2011
_NUMBER = r"^\s*\d{8,19}(\.\d*)?\s*$"
# None of these can be meant by a number that another one makes a day from 1990 to 2099 of.
_PER_SECOND = (1, 10**3, 10**6, 10**9)
_PER_DATE = (1, 10**6)  # 20250131, 20250131123000
_DAY_S = 86_400

NO_DAY = 0
ACCEPTED = (
    "dates, timestamps, seconds, milli-, micro- or nanoseconds since 1970, 20250131 (123000 may follow), 2025-01-31 "
    "with whatever follows (also with / or . or 年 and 月), or Fri Jan 31 17:46:55 +0800 2025; from 1990 to 2099"
)
"""What `days` reads, in words."""
_RARE = 0.001


def date_column(names: Sequence[str], wanted: str | None) -> str | None:
    """The column of `names` that says when: `wanted`, if it is there, or the first with a usual name."""
    if wanted is not None:
        return wanted if wanted in names else None
    by_name = {name.casefold(): name for name in names}
    return next((by_name[name] for name in USUAL_NAMES if name in by_name), None)


def days(column: pa.Array) -> npt.NDArray[np.int64]:
    """Proleptic day numbers (`date.toordinal`) as the column writes them, in its own zone; NO_DAY where it says none,
    or one before 1990 or after 2099. Takes what `ACCEPTED` says, numbers also as text; epochs are in UTC."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        column = pc.local_timestamp(column)
    if pa.types.is_temporal(kind) and not pa.types.is_time(kind):
        since_epoch = column.cast(pa.date32(), safe=False).cast(pa.int32()).fill_null(-_EPOCH)
        found = since_epoch.to_numpy(zero_copy_only=False).astype(np.int64) + _EPOCH
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        found = _of_numbers(column.cast(pa.float64(), safe=False))
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        found = _of_texts(column)
    else:
        found = np.full(len(column), NO_DAY, np.int64)
    return np.where((found >= _FIRST) & (found < _LAST), found, NO_DAY)


def _of_numbers(column: pa.Array) -> npt.NDArray[np.int64]:
    numbers = np.nan_to_num(column.fill_null(0).to_numpy(zero_copy_only=False), nan=0, posinf=0, neginf=0)
    found = np.full(len(numbers), NO_DAY, np.int64)
    for per_second in _PER_SECOND:
        day = np.floor(numbers / per_second / _DAY_S) + _EPOCH
        found = np.where((day >= _FIRST) & (day < _LAST), day, found).astype(np.int64)
    for per_date in _PER_DATE:
        written = np.floor(numbers / per_date)
        is_date = (written >= 1990_00_00) & (written < 2100_00_00)
        as_date = written[is_date].astype(np.int64)
        found[is_date] = _ordinals(as_date // 10_000, as_date // 100 % 100, as_date % 100)
    return found


def _of_texts(column: pa.Array) -> npt.NDArray[np.int64]:
    is_number = pc.fill_null(pc.match_substring_regex(column, _NUMBER), False)
    numbers = pc.if_else(is_number, pc.utf8_trim_whitespace(column), None).cast(pa.float64())
    found = _of_numbers(numbers)
    for pattern in (_NUMBERS, _API):
        groups = pc.extract_regex(column, pattern)
        is_match = groups.is_valid().to_numpy(zero_copy_only=False)
        if not is_match.any():
            continue
        groups = groups.drop_null()
        year, day = (groups.field(name).cast(pa.int64()).to_numpy() for name in ("y", "d"))
        month = groups.field("m")
        if pattern == _API:
            month = pc.add(pc.index_in(month, pa.array(_MONTHS)), 1).fill_null(0)
        found[is_match] = _ordinals(year, month.cast(pa.int64()).to_numpy(), day)
    return found


def _ordinals(
    year: npt.NDArray[np.int64], month: npt.NDArray[np.int64], day: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """NO_DAY where the calendar has no such day."""
    is_month = (month >= 1) & (month <= 12)
    months = (year - 1970).astype("datetime64[Y]").astype("datetime64[M]") + np.where(is_month, month - 1, 0)
    exact = months.astype("datetime64[D]") + (day - 1)
    is_day = is_month & (day >= 1) & (exact.astype("datetime64[M]") == months)
    return np.where(is_day, exact.astype(np.int64) + _EPOCH, NO_DAY)


@dataclass(frozen=True, slots=True)
class Bins:
    """Neighbouring spans of days."""

    unit: Unit
    starts: tuple[date, ...]

    def names(self) -> list[str]:
        """As tables write them."""
        if self.unit == "year":
            return [str(start.year) for start in self.starts]
        return [f"{start:%Y-%m}" if self.unit == "month" else start.isoformat() for start in self.starts]

    def sums(self, by_day: Mapping[int, npt.NDArray[np.int64]], width: int) -> npt.NDArray[np.int64]:
        """(num_bins, width) out of day -> (width,). Days outside are left out."""
        found = np.zeros((len(self.starts), width), np.int64)
        edges = [start.toordinal() for start in self.starts]
        end = _next(self.starts[-1], self.unit).toordinal()
        inside = {day: row for day, row in by_day.items() if edges[0] <= day < end}
        if inside:
            at = np.searchsorted(edges, list(inside), side="right") - 1
            np.add.at(found, at, np.stack(list(inside.values())))
        return found


def bins(first: int, last: int, unit: Unit) -> Bins:
    """All bins from the day `first` to the day `last`. Weeks begin on Mondays."""
    start = _floor(date.fromordinal(first), unit)
    starts = [start]
    while (following := _next(starts[-1], unit)).toordinal() <= last:
        starts.append(following)
    return Bins(unit, tuple(starts))


def usual_span(posts: Mapping[int, int]) -> tuple[int, int]:
    """First and last day, of day -> posts; without the first and the last thousandth of the posts where that makes the
    units finer: one post of another decade would else make years of the days of all others."""
    known = sorted(posts)
    reached = np.cumsum([posts[day] for day in known])
    usual = (
        known[int(np.searchsorted(reached, _RARE * reached[-1], side="right"))],
        known[int(np.searchsorted(reached, (1 - _RARE) * reached[-1], side="left"))],
    )
    whole = known[0], known[-1]
    return whole if units_for(*whole) == units_for(*usual) else usual


def units_for(first: int, last: int) -> Sequence[Unit]:
    """What leaves a curve with a shape, and what is coarser: days up to six weeks, weeks up to ten months, months up to
    six years."""
    span = last - first + 1
    return UNITS[0 if span <= 42 else 1 if span <= 300 else 2 if span <= 2200 else 3 :]


def _floor(day: date, unit: Unit) -> date:
    if unit == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=day.day if unit == "day" else 1, month=1 if unit == "year" else day.month)


def _next(start: date, unit: Unit) -> date:
    if unit in ("day", "week"):
        return start + timedelta(days=1 if unit == "day" else 7)
    if unit == "year" or start.month == 12:
        return date(start.year + 1, 1, 1)
    return date(start.year, start.month + 1, 1)
