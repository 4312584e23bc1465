"""Entity rows in memory: pandas, Arrow, Polars; what comes back untouched, and what is refused."""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from entity_shop import ORDERS, START, UTC, baskets, day, days, open_shop, orders, rates
from feast import Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

from feast_dynamo_ext.errors import ColumnTypeError, EntityRowsError
from feast_dynamo_ext.retrieval.inputs import EntityRows

ROWS = pa.table(
    {
        "cid": [2, 1, 1, 9],
        "event_timestamp": days([5, 1, 2, 2]),
        "note": ["a", "b", None, "d"],
    }
)
TOTALS = [3.0, 1.0, 2.0, None]


@pytest.fixture
def shop(open_store, tmp_path):
    return open_shop(open_store(), tmp_path)


def table_of(store, rows, features=("orders:total",), **kwargs) -> pa.Table:
    return store.get_historical_features(rows, list(features), **kwargs).to_arrow()


def in_files(rows: pa.Table, folder) -> ds.Dataset:
    pq.write_table(rows, folder / "rows.parquet")
    return ds.dataset(folder / "rows.parquet")


class Exported:
    """Rows of a library that has nothing but Arrow's PyCapsule interface."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows

    def __arrow_c_stream__(self, requested_schema=None):
        return self.rows.__arrow_c_stream__(requested_schema)


# Forms


@pytest.mark.parametrize(
    "form",
    [
        lambda rows, _: rows,
        lambda rows, _: rows.combine_chunks().to_batches()[0],
        lambda rows, _: rows.to_reader(max_chunksize=2),
        in_files,
        lambda rows, _: Exported(rows),
        lambda rows, _: rows.to_pandas(types_mapper=pd.ArrowDtype),
    ],
    ids=["table", "batch", "reader", "dataset", "capsule", "pandas on Arrow"],
)
def test_rows_come_back_as_they_were_given(shop, form, tmp_path):
    got = table_of(shop, form(ROWS, tmp_path))
    assert got.drop_columns("total").equals(ROWS)
    assert got.column("total").to_pylist() == TOTALS


@pytest.mark.parametrize("lazy", [False, True])
def test_polars_frames(shop, lazy):
    frame = pl.DataFrame(
        {
            "cid": [2, 1, 1, 9],
            "event_timestamp": [day(5), day(1), day(2), day(2)],
            "note": ["a", "b", None, "d"],
            "tags": [["p"], [], None, ["q"]],
            "kind": pl.Series(["u", "v", "u", None], dtype=pl.Categorical),
        }
    )
    got = table_of(shop, frame.lazy() if lazy else frame)
    assert got.column("total").to_pylist() == TOTALS
    assert got.select(["cid", "event_timestamp", "note", "tags", "kind"]).to_pylist() == (
        frame.to_dicts()
    )
    assert [column.type for column in got.columns][:4] == [
        pa.int64(),
        UTC,
        pa.string(),
        pa.large_list(pa.string()),
    ]
    assert got.column("kind").type.value_type == pa.string()


def test_pandas_extension_types_and_the_index(shop):
    frame = pd.DataFrame(
        {
            "note": pd.array(["a", None, "c"], dtype="string[pyarrow]"),
            "cid": pd.array([2, None, 1], dtype="Int64"),
            "kind": pd.Categorical(["u", "v", "u"]),
            "event_timestamp": pd.to_datetime([day(5)] * 3, utc=True),
        },
        index=[7, 3, 5],
    )
    got = table_of(shop, frame)
    assert got.column_names == ["note", "cid", "kind", "event_timestamp", "total"]
    assert got.column("note").to_pylist() == ["a", None, "c"]
    assert got.column("cid").to_pylist() == [2, None, 1]
    assert pa.types.is_dictionary(got.column("kind").type)
    assert got.column("total").to_pylist() == [3.0, None, 2.0]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_every_unit_and_zone_is_the_same_moment(shop, unit, zone):
    times = days([2, 1, 2, 2], pa.timestamp(unit, tz="UTC"))
    rows = ROWS.set_column(1, "event_timestamp", times.cast(pa.timestamp(unit, tz=zone)))
    got = table_of(shop, rows)
    assert got.column("total").to_pylist() == TOTALS
    assert got.schema.field("event_timestamp").type == pa.timestamp(unit, tz=zone)


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_a_date_is_its_first_moment_in_utc(shop, kind):
    rows = ROWS.set_column(1, "event_timestamp", days([1, 1, 2, 2]).cast(kind))
    got = table_of(shop, rows)
    assert got.column("total").to_pylist() == TOTALS
    assert got.schema.field("event_timestamp").type == kind


def test_the_hour_that_a_change_of_clocks_repeats_is_two_moments(shop, tmp_path):
    # On 2026-10-25 at 01:00 UTC clocks in Berlin go back from 03:00 to 02:00.
    first, second = (
        dt.datetime(2026, 10, 25, hour, 30, tzinfo=dt.timezone.utc) for hour in (0, 1)
    )
    pq.write_table(
        pa.table({**ORDERS, "event_timestamp": pa.array([START, START, second, START], UTC)}),
        tmp_path / "orders" / "part-0.parquet",
    )
    times = pa.array([first, second], UTC).cast(pa.timestamp("us", tz="Europe/Berlin"))
    got = table_of(shop, pa.table({"cid": [2, 2], "event_timestamp": times}))
    assert [time.hour for time in got.column("event_timestamp").to_pylist()] == [2, 2]
    assert got.column("total").to_pylist() == [None, 3.0]


def test_the_event_time_may_be_the_one_column_of_timestamps(shop):
    rows = ROWS.rename_columns(["cid", "asked_at", "note"])
    job = shop.get_historical_features(rows, ["orders:total"])
    assert job.to_arrow().column("total").to_pylist() == TOTALS
    assert (job.entities.event_time, job.metadata.keys) == ("asked_at", ["cid", "note"])
    assert job.metadata.min_event_timestamp == day(1)
    assert job.metadata.max_event_timestamp == day(5)


def test_the_range_holds_nanoseconds():
    rows = EntityRows.from_frame(
        pa.table({"event_timestamp": pa.array([1_500], pa.timestamp("ns"))})
    )
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    assert rows.range() == (
        epoch + dt.timedelta(microseconds=1),
        epoch + dt.timedelta(microseconds=2),
    )


# What is refused


def refused(rows, message: str, error: type[Exception] = EntityRowsError) -> None:
    with pytest.raises(error, match=message):
        EntityRows.from_frame(rows)


@pytest.mark.parametrize("rows", [[{"cid": 1}], {"cid": [1]}, 7, pd.DataFrame, np.zeros(3)])
def test_what_is_no_rows(rows):
    refused(rows, "must be a pandas DataFrame, an Arrow table.* not ")


@pytest.mark.parametrize("rows", [ROWS.slice(0, 0), ROWS.slice(0, 0).to_pandas(), pl.DataFrame()])
def test_no_rows(rows):
    refused(rows, "The entity rows are empty, .* Check how they were made")


def test_no_event_time():
    refused(
        ROWS.drop_columns("event_timestamp"), r"need a column `event_timestamp`.*of which \[\]"
    )


def test_several_candidates():
    rows = pa.table({"a": days([1]), "b": days([1])})
    refused(rows, r"exactly one other column of timestamps.*\['a', 'b'\] are timestamps")


def test_the_event_time_as_an_index():
    refused(ROWS.to_pandas().set_index("event_timestamp"), "reset_index")


def test_null_times():
    rows = pa.table({"event_timestamp": pa.array([None, START], UTC)})
    refused(rows, "1 rows have no `event_timestamp`")


@pytest.mark.parametrize(
    ("times", "advice"),
    [
        (["2026-01-01"], "utc=True)`);"),
        ([1_767_225_600], "unit='s', utc=True)` for seconds since 1970, `unit='ms'` for milli"),
        ([1.5], "unit='s', utc=True)` for seconds since 1970, `unit='ms'` for milli"),
    ],
)
def test_times_that_are_text_or_numbers(times, advice):
    """Without a unit pandas takes numbers as nanoseconds: all of them are of 1970 then."""
    rows = pa.table({"event_timestamp": times})
    parse = "Parse it first (pandas: `pd.to_datetime(frame['event_timestamp'], "
    refused(rows, re.escape(parse + advice), ColumnTypeError)


@pytest.mark.parametrize("other", [1_767_225_600, dt.date(2026, 1, 1), "2026-01-01"])
def test_times_beside_other_objects(other):
    """Arrow would make 1970 of the number, and cut off the hour beside a date."""
    moment = dt.datetime(2026, 1, 2, 5, tzinfo=dt.timezone.utc)
    for cells in ([moment, other], [other, moment]):
        rows = pd.DataFrame({"cid": [1, 2]})
        rows["event_timestamp"] = pd.Series(cells, dtype=object)
        refused(rows, "column `event_timestamp` holds times beside other objects")


def test_times_of_numpy_and_nanoseconds_in_a_column_of_objects():
    """Arrow takes no days of NumPy's, and cuts off the nanoseconds of pandas' times."""
    fine = pd.Timestamp("2026-01-02T00:00:00.000000001", tz="Europe/Berlin")
    for cells, kind, ticks in (
        ([np.datetime64("2026-01-02"), dt.datetime(2026, 1, 3)], pa.timestamp("us"),  # noqa: DTZ001
         [1_767_312_000_000_000, 1_767_398_400_000_000]),
        ([fine, fine], pa.timestamp("ns", "Europe/Berlin"), [1_767_308_400_000_000_001] * 2),
    ):  # fmt: skip
        rows = pd.DataFrame({"cid": [1, 2]}, index=[5, 7])
        rows["event_timestamp"] = pd.Series(cells, dtype=object, index=rows.index)
        found = EntityRows.from_frame(rows)
        assert found.table.column("event_timestamp").type == kind
        assert found.times.tolist() == ticks
    rows["event_timestamp"] = [np.datetime64("2026-01-01"), np.datetime64("12026-01-01")]
    refused(rows.astype(object), "column `event_timestamp` holds a time beyond the years 1 to")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([1, "2"], "column `cid` cannot be held by Arrow: it has int and str"),
        ([Decimal(1), "2"], "column `cid` cannot be held by Arrow: it has Decimal and str"),
        ([2**64, 1], "column `cid` cannot be held by Arrow: it has int"),
        ([2**63, 1], "`cid` .*1 of 2 values of type uint64 cannot be int64"),
        ([1.5, 2.0], "`cid` .*1 of 2 values of type double cannot be int64"),
        ([Decimal("1.5"), 2], r"`cid` .*1 of 2 values of type decimal128\(.*\) cannot be int64"),
        (["", "a"], "`cid` is string in the entity rows"),
    ],
    ids=str,
)
def test_keys_that_are_no_integers_are_refused_without_their_values(shop, keys, words):
    frame = pd.DataFrame({"cid": pd.Series(keys, dtype=object), "event_timestamp": [day(3)] * 2})
    with pytest.raises(EntityRowsError, match=words) as refusal:
        table_of(shop, frame.infer_objects())
    assert not re.search(r"1\.5|9223372036854775808", str(refusal.value))


def test_decimals_and_integers_of_one_column_are_keys(shop):
    frame = pd.DataFrame({"cid": [Decimal("1.0"), 2, -1], "event_timestamp": [day(3)] * 3})
    assert table_of(shop, frame).column("total").to_pylist() == [2.0, 3.0, None]


def test_several_columns_of_one_name():
    refused(pa.table([[1], [2]], names=["cid", "cid"]), r"several columns named \['cid'\]")
    refused(pd.DataFrame([[1, 2]], columns=["cid", "cid"]), r"several columns named \['cid'\]")


def test_a_pandas_column_of_several_types():
    refused(pd.DataFrame({"cid": [1, "x"]}), "column `cid` cannot be held by Arrow")


def test_a_reader_that_fails():
    def batches():
        yield ROWS.to_batches()[0]
        raise OSError("the disk is gone")

    reader = pa.RecordBatchReader.from_batches(ROWS.schema, batches())
    refused(reader, "reading the RecordBatchReader failed: .*the disk is gone")


def test_a_time_beyond_the_calendar():
    rows = EntityRows.from_frame(
        pa.table({"event_timestamp": pa.array([10**15], pa.timestamp("s"))})
    )
    with pytest.raises(EntityRowsError, match="outside the years 1 to 9999"):
        rows.range()


def test_a_missing_join_key_is_refused_before_the_job_runs(shop):
    with pytest.raises(EntityRowsError, match=r"lack the join key \['sku'\] of feature view"):
        shop.get_historical_features(ROWS, ["baskets:items"])


def test_a_join_key_of_another_type(shop):
    rows = ROWS.set_column(0, "cid", pa.array(["2", "1", "1", "9"]))
    job = shop.get_historical_features(rows, ["orders:total"])
    with pytest.raises(EntityRowsError, match=r"`cid` is string in the entity rows.* int32"):
        job.to_arrow()


def test_a_feature_that_has_the_name_of_a_column(shop):
    rows = ROWS.append_column("total", pa.array([1, 2, 3, 4]))
    job = shop.get_historical_features(rows, ["orders:total"])
    with pytest.raises(EntityRowsError, match=r"the features \['total'\] have names that"):
        job.to_arrow()
    full = table_of(shop, rows, full_feature_names=True)
    assert full.column("orders__total").to_pylist() == TOTALS


# On-demand views


@pytest.fixture
def priced(open_store, tmp_path):
    """The shop with a price that takes a discount from the entity rows."""
    view = orders()

    @on_demand_feature_view(
        sources=[
            view,
            RequestSource(name="asked", schema=[Field(name="discount", dtype=Float64)]),
        ],
        schema=[Field(name="price", dtype=Float64)],
        mode="pandas",
    )
    def price(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"price": frame["total"] - frame["discount"]})

    store = open_shop(open_store(), tmp_path, view, baskets(), rates())
    store.registry.apply_feature_view(price, store.project)
    return store


def test_request_data_comes_from_any_form(priced):
    rows = ROWS.append_column("discount", pa.array([0.5, 0.5, 0.5, 0.5]))
    got = table_of(priced, rows.to_reader(), ["price:price"])
    assert got.column("price").to_pylist() == [2.5, 0.5, 1.5, None]


def test_missing_request_data_is_refused(priced):
    with pytest.raises(EntityRowsError, match=r"lack the request data \['discount'\].*`price`"):
        priced.get_historical_features(ROWS, ["price:price"])
    with pytest.raises(EntityRowsError, match=r"lack the request data \['discount'\].*`price`"):
        priced.get_historical_features(None, ["price:price"], start_date=day(0), end_date=day(1))
