"""Files and row groups outside of a range of time are not read; positions give their rows."""

from __future__ import annotations

import datetime as dt
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st
from parquet_history import DAY, HOUR, START_NS, US, Form, Row, open_source, plan, write

from feast_dynamo_ext.errors import SourceReadError
from feast_dynamo_ext.parquet.scan import check_columns
from feast_dynamo_ext.retrieval.engines.duckdb import DuckDbEngine

if TYPE_CHECKING:
    from feast_dynamo_ext.parquet.source import ParquetSource

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
AN_HOUR, A_DAY = dt.timedelta(hours=1), dt.timedelta(days=1)


def hourly(first: int, count: int, key: int = 0) -> list[Row]:
    """A row an hour, whose value is the hour."""
    hours = range(first, first + count)
    return [Row((key + hour,), START_NS + hour * HOUR, None, hour) for hour in hours]


def spoil(path: Path, groups=None) -> None:
    """Overwrite the pages of row groups (of all): only the footer can be read any more."""
    footer = pq.read_metadata(path)
    with path.open("r+b") as file:
        for number in range(footer.num_row_groups) if groups is None else groups:
            group = footer.row_group(number)
            for column in (group.column(at) for at in range(group.num_columns)):
                starts = [column.data_page_offset, column.dictionary_page_offset]
                file.seek(min(start for start in starts if start is not None))
                file.write(b"\xff" * column.total_compressed_size)


def values(folder: Path, first, last) -> list[int]:
    """The values of the newest rows of a window, none of which share a key."""
    engine = DuckDbEngine("128MB", 1)
    with engine.newest(plan(), open_source(folder), first, last) as found:
        batches = list(found.source.fetch_each(["value"], found.positions))
        return [value for batch in batches for value in batch.column("value").to_pylist()]


def test_files_outside_of_the_window_are_not_read(tmp_path):
    for day in range(4):
        write(tmp_path / f"day-{day}.parquet", hourly(24 * day, 24), Form())
    for day in (0, 1, 3):
        spoil(tmp_path / f"day-{day}.parquet")
    start, end = START + 2 * A_DAY, START + 3 * A_DAY - AN_HOUR
    assert values(tmp_path, start, end) == list(range(48, 72))
    assert values(tmp_path, start - AN_HOUR / 2, end + AN_HOUR / 2) == list(range(48, 72))
    with pytest.raises(SourceReadError, match=r"day-1\.parquet"):
        values(tmp_path, start - AN_HOUR, end)
    with pytest.raises(SourceReadError, match=r"day-3\.parquet"):
        values(tmp_path, start, end + AN_HOUR)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_row_groups_outside_of_the_window_are_not_read(tmp_path, unit):
    path = tmp_path / "all.parquet"
    form = Form(pa.timestamp(unit, "UTC"), options=(("row_group_size", 6),))
    write(path, hourly(0, 24), form)
    spoil(path, [0, 1, 3])
    start, end = START + 12 * AN_HOUR, START + 17 * AN_HOUR
    assert values(tmp_path, start, end) == [12, 13, 14, 15, 16, 17]
    assert values(tmp_path, start + AN_HOUR, end - AN_HOUR) == [13, 14, 15, 16]
    for window in ((start - AN_HOUR, end), (start, end + AN_HOUR)):
        with pytest.raises(SourceReadError, match=r"all\.parquet"):
            values(tmp_path, *window)


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("ns", "Asia/Kolkata")])
def test_each_file_is_asked_in_its_own_unit_and_zone(tmp_path, kind):
    write(tmp_path / "a.parquet", hourly(0, 4), Form())
    write(tmp_path / "b.parquet", hourly(4, 4), Form(kind))
    write(tmp_path / "c.parquet", hourly(8, 4), Form(kind))
    spoil(tmp_path / "a.parquet")
    spoil(tmp_path / "c.parquet")
    assert values(tmp_path, START + 4 * AN_HOUR, START + 7 * AN_HOUR) == [4, 5, 6, 7]


def test_a_window_without_rows_reads_nothing(tmp_path):
    write(tmp_path / "a.parquet", hourly(0, 4), Form())
    spoil(tmp_path / "a.parquet")
    assert values(tmp_path, START + A_DAY, START + 2 * A_DAY) == []


def test_hive_partitions_hold_files_and_keys(tmp_path):
    for day in range(3):
        for shop in ("oslo", "rome"):
            folder = tmp_path / f"day={day}" / f"shop={shop}"
            write(folder / "part-0.parquet", hourly(24 * day, 24), Form())
    for day in (0, 2):
        for path in (tmp_path / f"day={day}").rglob("*.parquet"):
            spoil(path)
    source = open_source(tmp_path).within("event", START + A_DAY, START + A_DAY + AN_HOUR)
    assert source.rows == 8  # the first row group of each of the two files
    rows = pa.Table.from_batches(source.fetch(["shop", "day", "value"], np.arange(2, 7)))
    assert rows.to_pydict() == {
        "shop": ["oslo", "oslo", "rome", "rome", "rome"],
        "day": [1] * 5,
        "value": [26, 27, 24, 25, 26],
    }


@pytest.mark.parametrize(
    "form",
    [
        Form(options=(("write_statistics", False),)),
        Form(pa.timestamp("ns"), options=(("use_deprecated_int96_timestamps", True),)),
    ],
    ids=["no statistics", "int96"],
)
def test_what_does_not_say_its_times_is_read_whole(tmp_path, form):
    days = [Row((day,), START_NS + day * DAY, None, day) for day in range(4)]
    write(tmp_path / "a.parquet", days, form)
    assert open_source(tmp_path).within("event", START, START).rows == 4
    assert values(tmp_path, START + A_DAY, START + 2 * A_DAY) == [1, 2]


def test_no_range_leaves_out_nothing(tmp_path):
    write(tmp_path / "a.parquet", [*hourly(0, 4), Row((1,), None, None, 9)], Form())
    assert open_source(tmp_path).within("event", None, None).rows == 5
    assert open_source(tmp_path).within("event", START + 2 * AN_HOUR, None).rows == 4
    assert open_source(tmp_path).within("event", None, START - AN_HOUR).rows == 0


# Limits


def limits(folder: Path, column: str) -> list[int] | None:
    found = open_source(folder).limits(column)
    return None if found is None else found.cast(pa.timestamp("ns")).cast(pa.int64()).to_pylist()


def test_limits_are_those_of_row_groups_in_the_source_s_type(tmp_path):
    events = [3, None, 1, 2, None, None, None, None, 9]
    rows = [Row((0,), hour and START_NS + hour * HOUR, None, 0) for hour in events]
    write(tmp_path / "a.parquet", rows, Form(pa.timestamp("us")))
    more = [Row((0,), START_NS - 7 * US, None, 0)]
    write(tmp_path / "b.parquet", more, Form(pa.timestamp("ns")))
    assert limits(tmp_path, "event") == [
        START_NS + HOUR,
        START_NS + 3 * HOUR,
        START_NS + 9 * HOUR,
        START_NS + 9 * HOUR,
        START_NS - 7 * US,
        START_NS - 7 * US,
    ]
    assert limits(tmp_path, "created") == []


def test_limits_are_not_known_where_a_file_does_not_say(tmp_path):
    write(tmp_path / "a.parquet", hourly(0, 4), Form())
    write(tmp_path / "b.parquet", hourly(0, 4), Form(options=(("write_statistics", False),)))
    assert limits(tmp_path, "event") is None


def test_limits_are_not_known_where_a_file_says_more_than_the_source_s_type(tmp_path):
    for name in ("a", "c"):
        write(tmp_path / f"{name}.parquet", hourly(0, 4), Form(pa.timestamp("us")))
    write(tmp_path / "b.parquet", [Row((0,), START_NS + 1, None, 0)], Form(pa.timestamp("ns")))
    assert limits(tmp_path, "event") is None
    # The first and the last file make the schema.
    write(tmp_path / "d.parquet", hourly(0, 4), Form(pa.timestamp("ns")))
    assert START_NS + 1 in limits(tmp_path, "event")


def test_limits_are_not_known_where_a_file_lacks_the_column(tmp_path):
    write(tmp_path / "a.parquet", hourly(0, 4), Form())
    write(tmp_path / "b.parquet", hourly(0, 4), Form(created=None))
    assert limits(tmp_path, "created") is None


# Rows by position


@cases(40)
@given(data=st.data(), sizes=st.lists(st.integers(0, 15), min_size=1, max_size=3))
def test_positions_in_parts_give_exactly_these_rows(data, sizes):
    total = sum(sizes)
    chosen = data.draw(st.sets(st.integers(0, total - 1)).map(sorted)) if total else []
    cuts = sorted(data.draw(st.lists(st.integers(0, len(chosen)), max_size=4)))
    parts = np.split(np.array(chosen, dtype=np.int64), cuts)
    with tempfile.TemporaryDirectory() as name:
        for number, size in enumerate(sizes):
            rows = hourly(sum(sizes[:number]), size)
            form = Form(options=(("row_group_size", data.draw(st.integers(1, 6))),))
            write(Path(name) / f"{number}.parquet", rows, form)
        source = open_source(Path(name))
        batches = list(source.fetch_each(["value", "k0"], iter(parts)))
    assert [value for batch in batches for value in batch.column("value").to_pylist()] == chosen
    assert [key for batch in batches for key in batch.column("k0").to_pylist()] == chosen


def test_no_positions_give_no_rows(tmp_path):
    write(tmp_path / "a.parquet", hourly(0, 4), Form())
    assert list(open_source(tmp_path).fetch_each(["value"], iter([]))) == []


def test_a_file_that_changed_meanwhile_is_named(tmp_path):
    write(tmp_path / "a.parquet", hourly(0, 4), Form())
    source = open_source(tmp_path)
    write(tmp_path / "a.parquet", hourly(0, 5), Form())
    with pytest.raises(SourceReadError, match=r"a\.parquet changed while"):
        list(source.fetch(["value"], np.array([0])))


def of_other_columns(path: Path) -> None:
    pq.write_table(pa.table({"other": [1]}), path)


def of_other_types(path: Path) -> None:
    columns = {"k0": ["a"], "event": ["b"], "created": ["c"], "value": ["d"]}
    pq.write_table(pa.table(columns), path)


CHANGES = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "no Parquet": lambda path: path.write_bytes(b"x" * 5_000),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "fewer rows": lambda path: write(path, hourly(100, 1), Form()),
    "more rows": lambda path: write(path, hourly(100, 300), Form()),
    "other columns": of_other_columns,
    "other types": of_other_types,
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_at_any_moment_is_one_error(tmp_path, change):
    paths = [tmp_path / f"{name}.parquet" for name in "abc"]

    def opened() -> ParquetSource:
        for number, path in enumerate(paths):
            write(path, hourly(4 * number, 4), Form())
        return open_source(tmp_path)

    def after_opening() -> None:
        source = opened()
        change(paths[1])
        with DuckDbEngine("128MB", 1).newest(plan(), source, START, START + A_DAY) as found:
            list(found.source.fetch_each(["value"], found.positions))

    def after_matching() -> None:
        source = opened()
        with DuckDbEngine("128MB", 1).newest(plan(), source, START, START + A_DAY) as found:
            change(paths[1])
            list(found.source.fetch_each(["value"], found.positions))

    def before_all_rows_are_read() -> None:
        source = opened()
        rows = source.fetch(["value"], np.arange(12))
        next(rows)
        change(paths[1])
        list(rows)

    for use in (after_opening, after_matching, before_all_rows_are_read):
        with pytest.raises(SourceReadError, match=r"b\.parquet changed while"):
            use()


class Held:
    """Something that a caller has."""


def test_a_check_of_a_footer_keeps_nothing_of_its_callers(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"cid": [1, 2]}), path)
    (fragment,) = ds.dataset(path, format="parquet").get_fragments()

    def check() -> weakref.ref[Held]:
        held = Held()
        check_columns(fragment, path.stat().st_size, ["cid"])
        return weakref.ref(held)

    assert check()() is None


def test_footers_that_were_checked_for_the_range_are_not_for_their_limits(tmp_path):
    write(tmp_path / "a.parquet", hourly(0, 3), Form())
    source = open_source(tmp_path)
    within = source.within("event", START, START + A_DAY)
    assert (source.parts.checked, within.parts.checked) == (set(), {"event"})
    assert source.within("event", None, None).parts.checked == set()  # no statistics were needed
