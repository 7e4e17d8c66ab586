"""Days out of the columns that crawlers leave, and bins of days."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.report import dates

DAY = date(2025, 1, 31)
NOON = datetime(2025, 1, 31, 12)
EPOCH_S = int(NOON.replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    "column",
    [
        pa.array([DAY], pa.date32()),
        pa.array([NOON], pa.timestamp("ms")),
        pa.array([NOON.replace(tzinfo=UTC)], pa.timestamp("us", "UTC")),
        pa.array([datetime(2025, 1, 30, 23, tzinfo=UTC)], pa.timestamp("us", "Asia/Shanghai")),
        pa.array(["2025-01-31 12:30"]),
        pa.array(["2025/1/31"]),
        pa.array(["2025年1月31日 08:00"], pa.large_string()),
        pa.array(["2025-01-31T12:30:00+08:00"]).dictionary_encode(),
        pa.array(["Fri Jan 31 17:46:55 +0800 2025"]),
        *(pa.array([EPOCH_S * per_second]) for per_second in (1, 10**3, 10**6, 10**9)),
        *(pa.array([float(EPOCH_S * per_second) + 0.25]) for per_second in (1, 10**3)),
        *(pa.array([str(EPOCH_S * per_second)]) for per_second in (1, 10**3, 10**6, 10**9)),
        pa.array([EPOCH_S], pa.decimal128(20, 0)),
        pa.array([f" {EPOCH_S}.0"], pa.large_string()),
        pa.array([20250131]),
        pa.array([20250131123000.0]),
        pa.array(["20250131"]),
        pa.array(["20250131123000"]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_a_day_is_read_as_it_is_written(column: pa.Array) -> None:
    assert dates.days(column).tolist() == [DAY.toordinal()]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(
            ["5分钟前", "", "2025-13-01", "2025-02-30", "0001-01-01", "3025-01-01", "Fri Foo 31 1:1:1 +0800 2025"]
        ),
        pa.array([None, None], pa.string()),
        pa.array([None], pa.timestamp("s")),
        pa.array([-5, 0, 10**17]),
        pa.array([0.5, float("nan"), float("inf"), -1.7e9, 1e300, None]),
        pa.array([19891231, 20250230, 20251301, 21000101, 2025013, 20250131250000 * 10]),
        pa.array(["1234567", "1700000000x", "20250230", "99999999", "-1700000000", "1.7e9", "9" * 19, "9" * 40]),
        pa.array([1985, 2025], pa.uint64()),
        pa.array([], pa.string()),
    ],
    ids=lambda column: str(column.type),
)
def test_what_is_no_day_is_none(column: pa.Array) -> None:
    assert (dates.days(column) == dates.NO_DAY).all()
    assert len(dates.days(column)) == len(column)


@settings(deadline=None)
@given(st.dates(date(1990, 1, 1), date(2099, 12, 31)), st.sampled_from([1, 10**3, 10**6, 10**9]))
def test_a_number_is_one_day_however_it_is_meant(day: date, per_second: int) -> None:
    seconds = (day.toordinal() - date(1970, 1, 1).toordinal()) * 86_400
    written = [seconds * per_second, (seconds + 86_399) * per_second, int(f"{day:%Y%m%d}"), int(f"{day:%Y%m%d}235959")]
    for column in (pa.array(written), pa.array([str(each) for each in written])):
        assert dates.days(column).tolist() == [day.toordinal()] * 4


@settings(deadline=None)
@given(st.dates(date(1995, 1, 1), date(2090, 1, 1)), st.integers(0, 3000), st.sampled_from(dates.UNITS))
def test_every_day_is_in_one_bin(first: date, span: int, unit: dates.Unit) -> None:
    bins = dates.bins(first.toordinal(), (first + timedelta(days=span)).toordinal(), unit)
    by_day = {(first + timedelta(days=at)).toordinal(): np.array([1]) for at in {0, span // 2, span}}
    sums = bins.sums(by_day, 1)
    assert sums.sum() == len(by_day)
    assert sums[0, 0] >= 1
    assert sums[-1, 0] >= 1
    assert len(set(bins.names())) == len(bins.starts)


def test_the_column_is_the_one_asked_for_or_has_a_usual_name() -> None:
    assert dates.date_column(["likes", "发布时间"], None) == "发布时间"
    assert dates.date_column(["Date", "created_at"], None) == "created_at"
    assert dates.date_column(["likes"], None) is None
    assert dates.date_column(["likes", "seen"], "seen") == "seen"
    assert dates.date_column(["created_at"], "seen") is None


def test_a_thousandth_of_the_posts_does_not_make_units_coarser() -> None:
    posts = dict.fromkeys(range(738000, 738030), 10)
    assert dates.usual_span(posts) == (738_000, 738_029)
    assert dates.usual_span(posts | {737_990: 10}) == (737_990, 738_029)
    many = dict.fromkeys(posts, 1000)
    assert dates.usual_span(many | {727_000: 20, 740_000: 20}) == (738_000, 738_029)
    assert dates.usual_span(many | {727_000: 2000}) == (727_000, 738_029), "too many to leave out"
    assert dates.usual_span(many | {738_031: 1}) == (738_000, 738_031), "as days either way"


def test_days_outside_of_the_bins_are_in_none() -> None:
    by_day = {day: np.array([1]) for day in (5, 738_000, 738_001, 740_000)}
    assert dates.bins(738_000, 738_001, "day").sums(by_day, 1).tolist() == [[1], [1]]
