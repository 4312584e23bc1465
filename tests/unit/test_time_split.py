from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker import TimeSplit
from feast_dynamo_ext.sagemaker.split_by_time import event_range


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=timezone.utc)


SPLIT = TimeSplit(utc(2026, 3, 1), utc(2026, 4, 1))
MARCH_NS = 1_772_323_200 * 10**9
APRIL_NS = 1_775_001_600 * 10**9


def assigned(split: TimeSplit, times: pa.Array) -> list[str]:
    masks = {name: mask.to_pylist() for name, mask in split.masks(times).items()}
    assert all(sum(mask[row] for mask in masks.values()) == 1 for row in range(len(times)))
    return [next(name for name in masks if masks[name][row]) for row in range(len(times))]


def test_a_row_on_a_boundary_belongs_to_the_later_split_and_order_is_kept():
    times = pa.array(
        [APRIL_NS, MARCH_NS - 1, APRIL_NS - 1, MARCH_NS, 0, 2**63 - 1, -(2**63)],
        pa.timestamp("ns"),
    )
    assert assigned(SPLIT, times) == [
        "test",
        "train",
        "validation",
        "validation",
        "train",
        "test",
        "train",
    ]


@pytest.mark.parametrize("tz", [None, "UTC", "Europe/Berlin", "+05:30"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_every_unit_and_time_zone_means_the_same_instants(unit, tz):
    seconds = [MARCH_NS // 10**9 - 1, MARCH_NS // 10**9, APRIL_NS // 10**9]
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    ticks = pa.array([second * per_second for second in seconds])
    assert assigned(SPLIT, ticks.cast(pa.timestamp(unit, tz))) == ["train", "validation", "test"]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()], ids=str)
def test_a_date_is_its_midnight(kind):
    days = pa.array([utc(2026, 2, 28).date(), utc(2026, 3, 1).date(), utc(2026, 4, 1).date()])
    assert assigned(SPLIT, days.cast(kind)) == ["train", "validation", "test"]
    assert event_range(days.cast(kind)) == (
        "2026-02-28T00:00:00+00:00",
        "2026-04-01T00:00:00+00:00",
    )


def test_a_boundary_between_two_ticks_is_not_rounded():
    half = TimeSplit(utc(2026, 3, 1, 0, 0, 0, 500_000), utc(2026, 3, 1, 0, 0, 1, 1))
    march = MARCH_NS // 10**9
    times = pa.array([march, march + 1, march + 2], pa.timestamp("s"))
    assert assigned(half, times) == ["train", "validation", "test"]


def test_a_boundary_before_1970_rounds_up_too():
    split = TimeSplit(utc(1969, 12, 31, 23, 59, 58, 1), utc(1970, 1, 1))
    times = pa.array([-2, -1, 0], pa.timestamp("s"))
    assert assigned(split, times) == ["train", "validation", "test"]


def test_boundaries_with_a_time_zone_are_kept_as_utc():
    berlin = timezone(timedelta(hours=1))
    split = TimeSplit(datetime(2026, 3, 1, 1, tzinfo=berlin), utc(2026, 4, 1))
    assert split == SPLIT
    naive = datetime(2026, 3, 1)  # noqa: DTZ001 - the case
    assert TimeSplit(naive, utc(2026, 4, 1)) == SPLIT
    assert split.as_manifest() == {
        "rule": "event_time",
        "validation_from": "2026-03-01T00:00:00+00:00",
        "test_from": "2026-04-01T00:00:00+00:00",
    }
    assert TimeSplit.from_manifest(split.as_manifest()) == split


def test_boundaries_beyond_the_range_of_nanoseconds_do_not_overflow():
    times = pa.array([-(2**63), 0, 2**63 - 1], pa.timestamp("ns"))
    with pytest.raises(TrainingSetError, match="validation and test empty"):
        TimeSplit(utc(2300, 1, 1), utc(2400, 1, 1)).masks(times)
    with pytest.raises(TrainingSetError, match="train and validation empty"):
        TimeSplit(utc(1500, 1, 1), utc(1600, 1, 1)).masks(times)


def test_an_empty_split_is_named_with_the_range_of_the_rows():
    times = pa.chunked_array([[MARCH_NS], [MARCH_NS + 1]], pa.timestamp("ns", "UTC"))
    with pytest.raises(TrainingSetError) as error:
        SPLIT.masks(times)
    assert str(error.value) == (
        "The split leaves train and test empty: 2 rows run from "
        "2026-03-01T00:00:00.000000000+00:00 to 2026-03-01T00:00:00.000000001+00:00, validation "
        "starts at 2026-03-01T00:00:00+00:00 and test at 2026-04-01T00:00:00+00:00. Move the "
        "boundaries into the range of the rows, or bring rows of that time."
    )


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (pa.array([], pa.timestamp("us")), "there are no rows"),
        (pa.chunked_array([], pa.timestamp("us")), "there are no rows"),
        (pa.array([1, None, None], pa.timestamp("us")), "missing in 2 of 3 rows"),
        (pa.array(["2026-01-01"]), "holds string, not timestamps"),
        (pa.array([1], pa.time32("s")), r"holds time32\[s\], not timestamps or dates"),
    ],
)
def test_times_that_cannot_be_split_are_refused(times, message):
    with pytest.raises(TrainingSetError, match=message):
        SPLIT.masks(times)


def test_boundaries_must_be_datetimes_in_order():
    with pytest.raises(TrainingSetError, match="must be later"):
        TimeSplit(utc(2026, 3, 1), utc(2026, 3, 1))
    with pytest.raises(TrainingSetError, match="`test_from` is '2026-04-01'"):
        TimeSplit(utc(2026, 3, 1), "2026-04-01")


UNITS = {"s": 10**6, "ms": 10**3, "us": 1}


@given(
    micros=st.lists(st.integers(-(10**12), 10**12), max_size=60),
    first=st.integers(-(10**12), 10**12 - 1),
    length=st.integers(1, 10**12),
    unit=st.sampled_from(sorted(UNITS)),
    cut=st.integers(0, 60),
)
def test_masks_agree_with_comparing_datetimes_however_the_rows_are_chunked(
    micros, first, length, unit, cut
):
    epoch = utc(1970, 1, 1)
    split = TimeSplit(
        epoch + timedelta(microseconds=first), epoch + timedelta(microseconds=first + length)
    )
    # Far rows at both ends and one on the boundary, so that no split is empty.
    far = 4 * 10**12
    ticks = [value // UNITS[unit] for value in [*micros, -far, far]]
    boundary = -(-first // UNITS[unit])
    values = [epoch + timedelta(microseconds=tick * UNITS[unit]) for tick in [*ticks, boundary]]
    expected = [
        "train"
        if value < split.validation_from
        else "validation"
        if value < split.test_from
        else "test"
        for value in values
    ]
    times = pa.array([*ticks, boundary], pa.timestamp(unit, "UTC"))
    chunked = pa.chunked_array([times[:cut], times[cut:]])
    if "validation" not in expected:
        with pytest.raises(TrainingSetError, match="leaves validation empty"):
            split.masks(chunked)
    else:
        assert assigned(split, chunked) == expected
        assert assigned(split, times) == expected
