"""The newest row of each key against a plain loop, and cases written out."""

from __future__ import annotations

import datetime as dt
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import cases
from hypothesis import example, given
from hypothesis import strategies as st
from parquet_history import DAY, HOUR, START_NS, US, Form, Row, open_source, plan, write

from feast_dynamo_ext.errors import ColumnTypeError, OfflineStoreError
from feast_dynamo_ext.retrieval.engines.duckdb import DuckDbEngine

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
FAR = (START - dt.timedelta(days=3_650), START + dt.timedelta(days=3_650))
ENGINE = DuckDbEngine("128MB", 2)
NO_STATISTICS = (("write_statistics", False),)


@dataclass(frozen=True)
class Found:
    """What `newest` answers.

    Attributes:
        read: rows of the window.
        expired: newest rows that are too old.
        values: the values of the others, in the order in which they come.
    """

    read: int
    expired: int
    values: list[int]


def newest(folder, window=FAR, not_before=None, view=None, engine=ENGINE) -> Found:
    """Ask for the newest rows, and read them."""
    with engine.newest(view or plan(), open_source(folder), *window, not_before) as found:
        batches = list(found.source.fetch_each(["value"], found.positions))
        values = [value for batch in batches for value in batch.column("value").to_pylist()]
        assert found.rows == len(values)
        return Found(found.read, found.expired, values)


def ns(moment: dt.datetime) -> int:
    return (moment - EPOCH) // dt.timedelta(microseconds=1) * US


def by_loop(rows, window, not_before, has_created=True) -> Found:
    """The definition, row by row, in the order of the files."""
    start, end = map(ns, window)
    best: dict[tuple, tuple] = {}
    read = 0
    for position, row in enumerate(rows):
        if row.event is None or None in row.keys or not start <= row.event <= end:
            continue
        read += 1
        created = row.created if has_created else None
        age = (row.event, created is not None, created or 0, position)
        if row.keys not in best or age > best[row.keys][0]:
            best[row.keys] = (age, position, row.value)
    kept = sorted(
        (position, value)
        for age, position, value in best.values()
        if not_before is None or age[0] >= ns(not_before)
    )
    return Found(read, len(best) - len(kept), [value for _, value in kept])


# Few distinct moments and keys, so that ties, nulls and exact bounds are common.
hours = st.integers(-3, 12).map(lambda hour: START_NS + hour * HOUR)
moments = st.integers(-4, 13).map(lambda hour: START + dt.timedelta(hours=hour))
key_columns = {
    "one": (st.tuples(st.none() | st.integers(0, 3)), (pa.int64(),)),
    "small": (st.tuples(st.none() | st.integers(0, 3)), (pa.int8(),)),
    "text": (st.tuples(st.none() | st.sampled_from(["", "a", "A", "é", "a "])), (pa.string(),)),
    "dictionary": (
        st.tuples(st.none() | st.sampled_from(["", "a", "b"])),
        (pa.dictionary(pa.int32(), pa.string()),),
    ),
    "two": (
        st.tuples(st.none() | st.integers(0, 2), st.none() | st.sampled_from(["a", "b"])),
        (pa.int64(), pa.string()),
    ),
    "none": (st.just(()), ()),
}
time_types = st.builds(
    pa.timestamp,
    st.sampled_from(["s", "ms", "us", "ns"]),
    st.sampled_from([None, "UTC", "Asia/Kolkata", "America/New_York"]),
)


@st.composite
def histories(draw):
    """Files of one source: (form, rows) each."""
    keys, types = key_columns[draw(st.sampled_from(sorted(key_columns)))]
    has_created = draw(st.booleans())
    files = []
    for number in range(draw(st.integers(1, 3))):
        options = {
            "row_group_size": draw(st.integers(1, 5)),
            "write_statistics": draw(st.sampled_from([True, True, True, False])),
        }
        created = draw(time_types) if has_created else None
        form = Form(draw(time_types), created, types, tuple(options.items()))
        rows = draw(st.lists(st.tuples(keys, st.none() | hours, st.none() | hours), max_size=12))
        files.append((form, [Row(*row, number * 100 + at) for at, row in enumerate(rows)]))
    return files


@cases(60)
@given(
    files=histories(),
    window=st.tuples(moments, moments).map(sorted),
    not_before=st.none() | moments,
)
@example(
    files=[
        (Form(pa.timestamp("us")), [Row((1,), START_NS, None, 0)]),
        (Form(pa.timestamp("us", "UTC")), [Row((1,), START_NS, START_NS, 100)]),
    ],
    window=(START, START),
    not_before=START,
)
def test_it_equals_a_plain_loop(files, window, not_before):
    form = files[0][0]
    rows = [row for _, of_file in files for row in of_file]
    has_created = form.created is not None
    view = plan([f"k{at}" for at in range(len(form.keys))], "created" if has_created else None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "history"
        for number, (form, of_file) in enumerate(files):
            write(folder / f"part-{number}.parquet", of_file, form)
        found = newest(folder, window, not_before, view)
    assert found == by_loop(rows, window, not_before, has_created)


ticks = st.integers(-2_500, 2_500).map(lambda tick: START_NS + tick)
near = st.integers(-2, 2).map(lambda step: START + dt.timedelta(microseconds=step))


@cases(30)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2).map(lambda key: (key,)), ticks, st.none() | ticks)),
    window=st.tuples(near, near).map(sorted),
    not_before=st.none() | near,
    statistics=st.booleans(),
)
def test_nanoseconds_are_compared_exactly(rows, window, not_before, statistics):
    kind = pa.timestamp("ns", "UTC")
    form = Form(kind, kind, options=(("write_statistics", statistics),))
    kept = [Row(*row, at) for at, row in enumerate(rows)]
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / "part.parquet", kept, form)
        found = newest(Path(name), window, not_before)
    assert found == by_loop(kept, window, not_before)


# Written out


def keep(folder: Path, *rows: Row, form=None, name: str = "part-0") -> Path:
    write(folder / f"{name}.parquet", rows, form or Form())
    return folder


STATISTICS = pytest.mark.parametrize("options", [(), NO_STATISTICS], ids=["said", "not said"])


@STATISTICS
def test_the_newest_event_time_wins_then_created_time_then_the_later_row(tmp_path, options):
    form = Form(options=options)
    keep(
        tmp_path,
        Row((1,), START_NS + HOUR, START_NS, 10),
        Row((1,), START_NS, START_NS + 9 * HOUR, 11),
        Row((2,), START_NS, START_NS + HOUR, 20),
        Row((2,), START_NS, START_NS, 21),
        Row((2,), START_NS, None, 22),
        Row((3,), START_NS, None, 30),
        Row((4,), START_NS, START_NS, 40),
        Row((5,), START_NS, -HOUR, 50),
        Row((5,), START_NS, None, 51),
        form=form,
    )
    keep(
        tmp_path,
        Row((3,), START_NS, None, 31),
        Row((4,), START_NS, START_NS, 41),
        form=form,
        name="part-1",
    )
    assert newest(tmp_path) == Found(11, 0, [10, 20, 50, 31, 41])


@STATISTICS
def test_without_a_created_time_the_later_row_wins(tmp_path, options):
    keep(
        tmp_path,
        Row((1,), START_NS, START_NS + HOUR, 10),
        Row((1,), START_NS, START_NS, 11),
        form=Form(options=options),
    )
    assert newest(tmp_path, view=plan(created=None)) == Found(2, 0, [11])


def test_rows_without_a_key_or_event_time_do_not_count(tmp_path):
    keep(
        tmp_path,
        Row((None,), START_NS, START_NS, 1),
        Row((1,), None, START_NS, 2),
        Row((1,), START_NS, None, 3),
    )
    assert newest(tmp_path) == Found(1, 0, [3])


def test_both_bounds_of_the_window_count_and_the_bound_of_age_too(tmp_path):
    keep(
        tmp_path,
        Row((1,), START_NS - US, None, 1),
        Row((2,), START_NS, None, 2),
        Row((3,), START_NS + HOUR - US, None, 3),
        Row((4,), START_NS + HOUR, None, 4),
        Row((5,), START_NS + 2 * HOUR, None, 5),
        Row((6,), START_NS + 2 * HOUR + US, None, 6),
    )
    window = (START, START + dt.timedelta(hours=2))
    assert newest(tmp_path, window) == Found(4, 0, [2, 3, 4, 5])
    assert newest(tmp_path, window, START + dt.timedelta(hours=1)) == Found(4, 2, [4, 5])


def test_an_old_row_does_not_hide_behind_the_window(tmp_path):
    """The newest row of the window counts, though the key has a newer one after it."""
    keep(tmp_path, Row((1,), START_NS, None, 1), Row((1,), START_NS + HOUR, None, 2))
    assert newest(tmp_path, (START, START)) == Found(1, 0, [1])


@pytest.mark.slow
@pytest.mark.parametrize("event", [pa.date32(), pa.date64()])
@pytest.mark.parametrize("created", [pa.date32(), pa.timestamp("us")])
def test_dates_are_the_starts_of_their_days(tmp_path, event, created):
    keep(
        tmp_path,
        Row((1,), START_NS, START_NS, 1),
        Row((1,), START_NS + DAY, START_NS, 2),
        Row((1,), START_NS + DAY, START_NS + DAY, 3),
        Row((1,), START_NS + DAY, START_NS, 4),
        Row((1,), START_NS + 2 * DAY, START_NS, 5),
        form=Form(event, created),
    )
    a_second = dt.timedelta(seconds=1)
    day = dt.timedelta(days=1)
    assert newest(tmp_path, (START, START + 2 * day - a_second)) == Found(4, 0, [3])
    assert newest(tmp_path, (START + a_second, START + 2 * day)) == Found(4, 0, [5])
    assert newest(tmp_path, (START + a_second, START + day - a_second)) == Found(0, 0, [])


def test_times_as_spark_once_wrote_them(tmp_path):
    """INT96 has no statistics that can be relied on."""
    form = Form(
        pa.timestamp("ns"),
        pa.timestamp("ns"),
        options=(("use_deprecated_int96_timestamps", True),),
    )
    keep(
        tmp_path,
        Row((1,), START_NS + HOUR + 1_000, START_NS, 1),
        Row((1,), START_NS + HOUR, START_NS, 2),
        Row((2,), START_NS - HOUR, START_NS, 3),
        form=form,
    )
    assert newest(tmp_path, (START, FAR[1])) == Found(2, 0, [1])


def test_times_too_far_apart_for_one_wide_number(tmp_path):
    """Nanoseconds over 250 years twice, and positions, take more than 127 bits."""
    kind = pa.timestamp("ns")
    low, high = -(2**62), 2**62
    keep(
        tmp_path,
        Row((1,), high, low, 1),
        Row((1,), high, high, 2),
        Row((1,), high, None, 3),
        Row((1,), low, high, 4),
        Row((2,), low, low, 5),
        Row((2,), low, None, 6),
        form=Form(kind, kind),
    )
    window = (EPOCH - dt.timedelta(days=60_000), EPOCH + dt.timedelta(days=60_000))
    assert newest(tmp_path, window) == Found(6, 0, [2, 5])


def test_a_window_before_all_that_nanoseconds_can_say_is_empty(tmp_path):
    kind = pa.timestamp("ns")
    keep(tmp_path, Row((1,), START_NS, START_NS, 1), form=Form(kind, kind))
    long_ago = dt.datetime(1, 1, 1, tzinfo=dt.timezone.utc)
    assert newest(tmp_path, (long_ago, long_ago.replace(year=1500))) == Found(0, 0, [])
    assert newest(tmp_path, (long_ago, START)) == Found(1, 0, [1])


def test_nanoseconds_of_one_file_are_not_rounded_to_microseconds_of_another(tmp_path):
    """The created times are 0 to 1,023 ns: one more bit than 0 to 1 us would say."""
    ns_kind, us_kind = pa.timestamp("ns"), pa.timestamp("us")
    keep(
        tmp_path,
        Row((1,), START_NS + 1, None, 1),
        Row((1,), START_NS, 1_023, 2),
        form=Form(ns_kind, ns_kind),
    )
    keep(tmp_path, Row((2,), START_NS, 0, 3), form=Form(ns_kind, us_kind), name="part-1")
    assert newest(tmp_path) == Found(3, 0, [1, 3])


@pytest.mark.parametrize("zone", [None, "Asia/Kolkata", "America/New_York"])
def test_times_that_python_does_not_know(tmp_path, zone):
    """The last moment of the year 9999, by which sources say `for ever`, and the last of all."""
    kind = pa.timestamp("us", zone)
    last = pa.array([253_402_300_799_999_999, 2**63 - 1], pa.int64()).cast(kind)
    table = pa.table(
        {
            "k0": pa.array([1, 1], pa.int64()),
            "event": pa.array([START, START]).cast(pa.timestamp("us", "UTC")),
            "created": last,
            "valid_until": last,
            "value": pa.array([1, 2], pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "part-0.parquet")
    assert newest(tmp_path) == Found(2, 0, [2])
    assert newest(tmp_path, view=plan(created=None)) == Found(2, 0, [2])


def test_a_file_without_the_created_time_has_rows_without_it(tmp_path):
    keep(tmp_path, Row((1,), START_NS, START_NS, 1))
    keep(
        tmp_path,
        Row((1,), START_NS, None, 2),
        Row((2,), START_NS, None, 3),
        form=Form(created=None),
        name="part-1",
    )
    assert newest(tmp_path) == Found(3, 0, [1, 3])


def test_a_key_may_be_a_folder(tmp_path):
    for key, value in ((7, 1), (8, 2)):
        row = Row((key,), START_NS, None, value)
        keep(tmp_path / f"shop={key}", row, Row((key,), START_NS + HOUR, None, value * 10))
    assert newest(tmp_path, view=plan(["shop"])) == Found(4, 0, [10, 20])
    assert newest(tmp_path, view=plan(["shop", "k0"])) == Found(4, 0, [10, 20])


def test_a_history_without_rows_has_no_newest_ones(tmp_path):
    keep(tmp_path)
    assert newest(tmp_path) == Found(0, 0, [])


def test_a_view_without_keys_has_one_newest_row(tmp_path):
    keep(
        tmp_path,
        Row((None,), START_NS + HOUR, None, 1),
        Row((2,), START_NS, None, 2),
    )
    assert newest(tmp_path, view=plan([])) == Found(2, 0, [1])


def test_a_key_that_is_no_key_is_refused_by_name(tmp_path):
    keep(tmp_path, Row((1.5,), START_NS, None, 1), form=Form(keys=(pa.float64(),)))
    with pytest.raises(ColumnTypeError, match=r"`history`.*`k0`.*compared exactly"):
        newest(tmp_path)


# Progress and memory


def test_it_tells_how_many_rows_it_looks_at(tmp_path):
    keep(tmp_path, *(Row((at,), START_NS, None, at) for at in range(10)))
    looked_at: list[int] = []
    with ENGINE.newest(plan(), open_source(tmp_path), *FAR, scanned=looked_at.append):
        assert sum(looked_at) == 10


def test_what_the_one_that_is_told_raises_ends_it(tmp_path):
    keep(tmp_path, Row((1,), START_NS, None, 1))

    def refuse(rows):
        raise LookupError("enough")

    with (
        pytest.raises(LookupError, match="enough"),
        ENGINE.newest(plan(), open_source(tmp_path), *FAR, scanned=refuse),
    ):
        pytest.fail("it went on")


@pytest.fixture(scope="module")
def many_keys(tmp_path_factory) -> Path:
    """600,000 rows of 300,000 keys, of which the second half is newer for every third key."""
    folder = tmp_path_factory.mktemp("many") / "history"
    folder.mkdir()
    count = 300_000
    key = np.arange(count)
    for number in range(2):
        event = START_NS // US + np.where(key % 3 == 0, number, -number)
        table = pa.table(
            {
                "k0": key,
                "event": pa.array(event, pa.timestamp("us", "UTC")),
                "created": pa.array(event, pa.timestamp("us", "UTC")),
                "value": key + number * count,
            }
        )
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=100_000)
    return folder


@pytest.mark.slow
def test_with_little_memory_it_spills_and_is_right(many_keys, tmp_path):
    engine = DuckDbEngine("24MB", 1, str(tmp_path))
    with engine.newest(plan(), open_source(many_keys), *FAR) as found:
        assert [path for path in tmp_path.rglob("*") if path.is_file()]
        assert (found.read, found.expired, found.rows) == (600_000, 0, 300_000)
        batches = list(found.source.fetch_each(["k0", "value"], found.positions))
    table = pa.Table.from_batches(batches).sort_by("k0")
    key = np.arange(300_000)
    assert np.array_equal(table["k0"].to_numpy(), key)
    assert np.array_equal(table["value"].to_numpy(), np.where(key % 3, key, key + 300_000))
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_said_so(many_keys, tmp_path):
    engine = DuckDbEngine("2MB", 1, str(tmp_path))
    with pytest.raises(OfflineStoreError, match=r"(?s)ran out of memory.*Raise `memory_limit`"):
        newest(many_keys, engine=engine)
    assert list(tmp_path.iterdir()) == []


def test_a_spill_folder_that_is_not_there_is_named(tmp_path):
    keep(tmp_path / "history", Row((1,), START_NS, None, 1))
    engine = DuckDbEngine("128MB", 1, str(tmp_path / "nowhere"))
    with pytest.raises(OfflineStoreError, match=r"nowhere.*`spill_folder`"):
        newest(tmp_path / "history", engine=engine)
