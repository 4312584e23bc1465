"""Files whose folders put them outside a range of time are not opened, others not read."""

from __future__ import annotations

import datetime as dt

import pandas as pd
import pyarrow as pa
import pytest
from feast import FileSource
from feast.types import Int64
from repos import NoRegistry, repo_config
from source_cases import opened, put, rows_of
from views import customer_view

from feast_dynamo_ext import S3ParquetSource
from feast_dynamo_ext.errors import SourceReadError
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.parquet.source import ParquetSource

UTC = dt.timezone.utc
START = dt.datetime(2024, 1, 1, tzinfo=UTC)
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)


def times(*moments: dt.datetime) -> pa.Array:
    return pa.array(moments, pa.timestamp("us", "UTC"))


def source_of(folder, column="", form="", **more) -> S3ParquetSource:
    return S3ParquetSource(
        name="orders",
        path=str(folder),
        timestamp_field="event",
        date_partition_column=column,
        date_partition_column_format=form,
        **more,
    )


def kept(source, first, last) -> list[int]:
    """The values of the column `x` that are left of a range."""
    found = ParquetSource.open(source, repo_config(source_folder(source)))
    return rows_of(found.within("event", first, last), "x")["x"]


def source_folder(source):
    from pathlib import Path

    return Path(source.path)


@pytest.mark.parametrize(
    ("column", "form", "names"),
    [
        ("dt", "", ["dt=2025-01-30", "dt=2025-01-31", "dt=2025-02-01"]),
        ("dt", "%Y%m%d", ["dt=20250130", "dt=20250131", "dt=20250201"]),
        ("dt", "%Y-%j", ["dt=2025-030", "dt=2025-031", "dt=2025-032"]),
        (
            "",
            "year=%Y/month=%m/day=%d",
            [
                "year=2025/month=01/day=30",
                "year=2025/month=01/day=31",
                "year=2025/month=02/day=01",
            ],
        ),
        ("", "%Y/%m/%d", ["2025/01/30", "2025/01/31", "2025/02/01"]),
        (
            "dt",
            "%Y-%m-%d",
            ["shop=a/dt=2025-01-30", "shop=a/dt=2025-01-31", "dt=2025-02-01/shop=b"],
        ),
    ],
)
def test_a_folder_holds_a_day_of_utc(tmp_path, column, form, names):
    moment = dt.datetime(2025, 1, 30, 23, tzinfo=UTC)
    for at, name in enumerate(names):
        put(tmp_path / name / "a.parquet", x=[at], event=times(moment + at * DAY))
        # What says nothing in its footer is known by its folder alone.
        put(tmp_path / name / "b.parquet", x=[at + 10], event=times(None))
    source = source_of(tmp_path, column, form)
    second = dt.timedelta(seconds=1)
    noon = dt.datetime(2025, 1, 31, tzinfo=UTC)
    folders = ParquetSource.open(source, repo_config(tmp_path)).parts.periods
    files = ParquetSource.open(source, repo_config(tmp_path)).files

    def held(first, last):
        return [file.path.split("/")[-1] for file in files if folders.may_hold(file, first, last)]

    assert len(held(noon, noon + DAY - second)) == 2
    assert len(held(noon - second, noon + DAY - second)) == 4
    assert len(held(noon, noon + DAY)) == 4
    assert len(held(None, noon)) == 4
    assert len(held(noon + DAY, None)) == 2
    assert len(held(None, None)) == 6
    zone = dt.timezone(dt.timedelta(hours=9))
    assert len(held(noon.astimezone(zone), (noon + HOUR).astimezone(zone))) == 2
    assert len(held(noon.replace(tzinfo=None), (noon + HOUR).replace(tzinfo=None))) == 2
    first = moment + DAY
    assert kept(source, first, first) == [1]


@pytest.mark.parametrize(
    ("form", "names", "within"),
    [
        ("%Y", ["2024", "2025"], [START + 365 * DAY, START + 366 * DAY]),
        ("%Y-%m", ["2024-01", "2024-02"], [START + 30 * DAY, START + 31 * DAY]),
        ("%Y-%m", ["2024-12", "2025-01"], [START + 365 * DAY, START + 366 * DAY]),
        ("%Y-%m-%d-%H", ["2024-01-01-05", "2024-01-01-06"], [START + 5 * HOUR, START + 6 * HOUR]),
    ],
)
def test_a_folder_holds_as_long_as_its_finest_directive(tmp_path, form, names, within):
    inside, after = within
    for name in names:
        put(tmp_path / f"dt={name}" / "a.parquet", x=[1], event=times(START))
    found = ParquetSource.open(source_of(tmp_path, "dt", form), repo_config(tmp_path))
    first, second = found.files
    periods = found.parts.periods
    assert periods.may_hold(first, inside, inside)
    assert not periods.may_hold(second, inside, inside)
    assert not periods.may_hold(first, after, after)
    assert periods.may_hold(second, after, after)


def test_a_folder_that_is_not_of_the_format_is_named(tmp_path):
    put(tmp_path / "dt=2025-01-31" / "a.parquet", x=[1], event=times(START))
    put(tmp_path / "dt=latest" / "a.parquet", x=[1], event=times(START))
    with pytest.raises(SourceReadError, match=r"dt=latest/a\.parquet: .*`dt=latest`.*dt=%Y-%m-%d"):
        kept(source_of(tmp_path, "dt"), START, START)


def test_what_has_no_period_is_never_left_out_by_it(tmp_path):
    moment = dt.datetime(2025, 1, 31, tzinfo=UTC)
    put(tmp_path / "dt=2025-01-31" / "a.parquet", x=[1], event=times(moment))
    put(tmp_path / "dt=__HIVE_DEFAULT_PARTITION__" / "a.parquet", x=[2], event=times(START))
    put(tmp_path / "a.parquet", x=[3], event=times(START))
    assert kept(source_of(tmp_path, "dt"), START, START) == [3, 2]


def test_only_the_event_time_is_what_folders_say(tmp_path):
    put(tmp_path / "dt=2025-01-31" / "a.parquet", x=[1], event=times(START), created=times(START))
    found = ParquetSource.open(source_of(tmp_path, "dt"), repo_config(tmp_path))
    assert found.within("created", START, START).rows == 1
    assert found.within("event", START, START).rows == 0


def test_the_event_time_is_known_by_its_name_in_the_files(tmp_path):
    put(tmp_path / "dt=2025-01-31" / "a.parquet", x=[1], ts=times(START))
    source = S3ParquetSource(
        path=str(tmp_path),
        timestamp_field="event",
        field_mapping={"ts": "event"},
        date_partition_column="dt",
    )
    assert ParquetSource.open(source, repo_config(tmp_path)).within("ts", START, START).rows == 0


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_dates_are_pruned_as_their_midnights(tmp_path, kind):
    for at in range(4):
        day = pa.array([START.date() + at * DAY]).cast(kind)
        put(tmp_path / f"{at}.parquet", x=[at], event=day)

    def left(first, last):
        return rows_of(opened(tmp_path).within("event", first, last), "x")["x"]

    assert left(START + DAY, START + 2 * DAY) == [1, 2]
    assert left(START + DAY + HOUR, START + 3 * DAY - HOUR) == [2]
    assert left(START + HOUR, START + DAY - HOUR) == []
    assert left(None, START) == [0]
    assert left(START + 3 * DAY, None) == [3]


# Retrieval


def write_days(folder, days: int) -> None:
    """A file a day, in which customers 0 to 3 have the number of the day."""
    for day in range(days):
        moment = START + day * DAY
        put(
            folder / f"dt={moment:%Y-%m-%d}" / "part.parquet",
            cid=[0, 1, 2, 3],
            event=times(*[moment + customer * HOUR for customer in range(4)]),
            n=[day * 10 + customer for customer in range(4)],
        )


def retrieved(folder, source, ttl, rows: pd.DataFrame) -> list:
    job = S3ParquetOfflineStore.get_historical_features(
        repo_config(folder),
        [customer_view(source=source, ttl=ttl, n=Int64)],
        ["orders:n"],
        rows,
        NoRegistry(),
        "p",
    )
    return job.to_arrow().column("n").to_pylist()


def a_week(first_day: int) -> pd.DataFrame:
    moments = [START + (first_day + day) * DAY + 2 * HOUR for day in range(7) for _ in range(4)]
    return pd.DataFrame({"cid": [0, 1, 2, 3] * 7, "event_timestamp": pd.to_datetime(moments)})


@pytest.mark.slow
def test_one_week_of_two_years_opens_only_the_files_it_needs(tmp_path):
    history = tmp_path / "history"
    write_days(history, 731)
    rows = a_week(400)
    plain = FileSource(path=str(history), timestamp_field="event")
    ttl = 3 * DAY
    # At 02:00, customers 0 to 2 have the row of the day, 3 that of the day before.
    expected = [day * 10 + cid - 10 * (cid == 3) for day in range(400, 407) for cid in range(4)]
    assert retrieved(tmp_path, plain, ttl, rows) == expected

    # What is not Parquet any more cannot have been opened: all but ten days and the two that the
    # schema is of.
    needed = {START + day * DAY for day in [0, *range(397, 407), 730]}
    unread = [
        path
        for path in history.glob("*/*")
        if path.parent.name not in {f"dt={moment:%Y-%m-%d}" for moment in needed}
    ]
    assert len(unread) == 731 - 12
    for path in unread:
        path.write_bytes(b"x" * path.stat().st_size)
    assert retrieved(tmp_path, source_of(history, "dt"), ttl, rows) == expected
    with pytest.raises(SourceReadError, match=r"dt=2024-01-02/part\.parquet cannot be read"):
        retrieved(tmp_path, plain, ttl, rows)

    found = ParquetSource.open(source_of(history, "dt"), repo_config(tmp_path))
    assert len(found.files) == 731
    pruned = found.within("event", START + 397 * DAY + 2 * HOUR, START + 406 * DAY + 2 * HOUR)
    assert len(pruned.files) == 10
    assert pruned.rows == 40


@pytest.mark.slow
@pytest.mark.parametrize("ttl", [dt.timedelta(0), 5 * HOUR, 2 * DAY])
@pytest.mark.parametrize("first_day", [-3, 4, 9])
def test_what_is_retrieved_does_not_depend_on_pruning(tmp_path, ttl, first_day):
    write_days(tmp_path / "history", 10)
    rows = a_week(first_day)
    sources = [
        FileSource(path=str(tmp_path / "history"), timestamp_field="event"),
        source_of(tmp_path / "history", "dt"),
        source_of(f"{tmp_path}/history/*/*.parquet", "dt"),
    ]
    found = [retrieved(tmp_path, source, ttl, rows) for source in sources]
    assert found[1:] == [found[0]] * 2
    by_hand = []
    for cid, moment in rows.itertuples(index=False):
        seen = [
            day * 10 + cid
            for day in range(10)
            for at in [START + day * DAY + cid * HOUR]
            if at <= moment and (not ttl or at >= moment - ttl)
        ]
        by_hand.append(seen[-1] if seen else None)
    assert found[0] == by_hand


def test_pull_all_and_pull_latest_open_only_what_they_need(tmp_path):
    history = tmp_path / "history"
    write_days(history, 30)
    for path in history.glob("*/*"):
        if path.parent.name not in ("dt=2024-01-01", "dt=2024-01-11", "dt=2024-01-30"):
            path.write_bytes(b"x" * path.stat().st_size)
    arguments = {
        "config": repo_config(tmp_path),
        "data_source": source_of(history, "dt"),
        "join_key_columns": ["cid"],
        "feature_name_columns": ["n"],
        "timestamp_field": "event",
        "created_timestamp_column": None,
        "start_date": START + 10 * DAY + HOUR,
        "end_date": START + 10 * DAY + 2 * HOUR,
    }
    for pull in (
        S3ParquetOfflineStore.pull_latest_from_table_or_query,
        S3ParquetOfflineStore.pull_all_from_table_or_query,
    ):
        assert pull(**arguments).to_arrow().column("n").to_pylist() == [101, 102]
