"""Metrics over a stream of files are those of Feast's calculator over the table in memory."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import cases
from feast import FileSource
from feast.monitoring.metrics_calculator import MetricsCalculator
from hypothesis import given
from hypothesis import strategies as st
from repos import repo_config

from feast_dynamo_ext import S3ParquetOfflineStore
from feast_dynamo_ext.errors import ColumnTypeError, SourceReadError

UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)
HOUR = dt.timedelta(hours=1)


def source(**options) -> FileSource:
    return FileSource(name="h", path="history", timestamp_field="at", **options)


def write(folder, columns: dict, name="a", **options) -> None:
    """A file with a row an hour, from `START` on, unless the columns say otherwise."""
    rows = len(next(iter(columns.values())))
    hours = pa.array([START + HOUR * at for at in range(rows)], pa.timestamp("us", "UTC"))
    path = folder / "history" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"at": hours, **columns}), path, **options)


def metrics(folder, features, first=None, last=None, offline=None, **options):
    found = S3ParquetOfflineStore.compute_monitoring_metrics(
        repo_config(folder, **offline or {}), source(**options), features, "at", first, last
    )
    return {each["feature_name"]: each for each in found}


def in_little_memory(folder, features) -> list[dict]:
    return list(metrics(folder, features, offline={"memory_limit": "32MB"}).values())


def close(ours: dict, theirs: dict) -> None:
    """Equal; sums of doubles in another order may differ in their last digits."""
    sums = ("mean", "stddev")
    assert {k: v for k, v in ours.items() if k not in sums} == {
        k: v for k, v in theirs.items() if k not in sums
    }
    for name in sums:
        expected = theirs[name]
        near = None if expected is None else pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert ours[name] == near


numbers = st.one_of(
    st.none(),
    # Not so close together that numpy, and so Feast, fails to make bins of them.
    st.integers(-(10**8), 10**8).map(lambda number: number / 64),
    st.sampled_from([0.0, -0.0, 1.0, 0.1, -3.5]),
)
KINDS = {
    "double": (pa.float64(), "numeric", numbers),
    "float": (pa.float32(), "numeric", st.one_of(st.none(), st.floats(-100, 100, width=32))),
    "long": (pa.int64(), "numeric", st.one_of(st.none(), st.integers(-(2**40), 2**40))),
    "byte": (pa.uint8(), "numeric", st.one_of(st.none(), st.integers(0, 3))),
    "decimal": (pa.decimal128(9, 2), "numeric", st.decimals(-1000, 1000, places=2)),
    "constant": (pa.float64(), "numeric", st.just(7.5)),
    "nulls": (pa.float64(), "numeric", st.none()),
    "text": (
        pa.string(),
        "categorical",
        st.sampled_from([None, "", "a", "b", "é", *"cdefghijklm"]),
    ),
    "flag": (pa.bool_(), "categorical", st.sampled_from([None, True, False])),
    "code": (pa.int32(), "categorical", st.one_of(st.none(), st.integers(-20, 20))),
    "no text": (pa.string(), "categorical", st.none()),
}
FEATURES = [(name, kind) for name, (_, kind, _) in KINDS.items()]


@pytest.mark.slow
@cases(12)
@given(data=st.data(), rows=st.integers(0, 25), group=st.integers(1, 20))
def test_metrics_are_those_of_feasts_calculator(tmp_path_factory, data, rows, group):
    folder = tmp_path_factory.mktemp("repo")
    table = pa.table(
        {
            name: pa.array(data.draw(st.lists(values, min_size=rows, max_size=rows)), kind)
            for name, (kind, _, values) in KINDS.items()
        }
    )
    cut = data.draw(st.integers(0, rows))
    write(folder, dict(zip(table.column_names, table.slice(0, cut).columns, strict=True)), "a")
    rest = dict(zip(table.column_names, table.slice(cut).columns, strict=True))
    write(folder, rest, "b", row_group_size=group)
    theirs = MetricsCalculator().compute_all(table, FEATURES)
    for ours in (list(metrics(folder, FEATURES).values()), in_little_memory(folder, FEATURES)):
        assert [found["feature_name"] for found in ours] == [name for name, _ in FEATURES]
        for mine, feasts in zip(ours, theirs, strict=True):
            close(mine, feasts)


def test_a_hundred_thousand_values_in_several_passes(tmp_path):
    # Enough for each kind of pass: none of the ranges of equal leading bits is small at first.
    values = [((at * 7919) % 100_003) / 1e9 + 1.0 for at in range(200_000)]
    equal = [1.0 if at % 2 else -2.5 for at in range(200_000)]
    table = pa.table({"near": values, "equal": equal})
    at = pa.array([START] * 200_000, pa.timestamp("us", "UTC"))
    (tmp_path / "history").mkdir()
    pq.write_table(table.add_column(0, "at", at), tmp_path / "history" / "a.parquet")
    features = [("near", "numeric"), ("equal", "numeric")]
    theirs = MetricsCalculator().compute_all(table, features)
    for mine, feasts in zip(in_little_memory(tmp_path, features), theirs, strict=True):
        close(mine, feasts)


def test_what_is_not_a_number_and_infinity(tmp_path):
    # Feast's calculator fails for these: numpy makes no histogram of them.
    inf, nan = math.inf, math.nan
    write(
        tmp_path,
        {
            "some": [1.0, nan, 3.0, None],
            "only": [nan, nan, nan, None],
            "endless": [1.0, 2.0, 5.0, inf],
            "both": [-inf, 2.0, inf, nan],
        },
    )
    found = metrics(tmp_path, [(name, "numeric") for name in ("some", "only", "endless", "both")])
    kept = ("row_count", "null_count", "mean", "stddev", "min_val", "max_val", "p50", "p75")
    assert {name: [each[key] for key in kept] for name, each in found.items()} == {
        "some": [4, 1, None, None, 1.0, 3.0, 2.0, 2.5],
        "only": [4, 1, None, None, None, None, None, None],
        "endless": [4, 0, None, None, 1.0, None, 3.5, None],
        "both": [4, 0, None, None, None, None, 2.0, None],
    }
    assert [sum(each["histogram"]["counts"]) for each in found.values() if each["histogram"]] == [
        *(2, 3, 1)
    ]
    assert found["only"]["histogram"] is None


@pytest.mark.parametrize(
    ("values", "histogram"),
    [
        ([1e300, 1e300], {"bins": [1e300, 1e300], "counts": [2], "bin_width": 0.0}),
        ([-1e308, 1e308], {"bins": [-1e308, 1e308], "counts": [2], "bin_width": None}),
        ([2**62, 2**62 + 1], {"bins": [2.0**62, 2.0**62], "counts": [2], "bin_width": 0.0}),
    ],
)
def test_values_that_numpy_makes_no_bins_of_are_in_one(tmp_path, values, histogram):
    write(tmp_path, {"x": values})
    assert metrics(tmp_path, [("x", "numeric")])["x"]["histogram"] == histogram


def test_only_rows_of_the_range_count_both_bounds_included(tmp_path):
    write(tmp_path, {"x": [float(at) for at in range(10)], "c": [*"aabbbccccc"]})
    found = metrics(
        tmp_path, [("x", "numeric"), ("c", "categorical")], START + HOUR, START + 4 * HOUR
    )
    x, c = found["x"], found["c"]
    assert (x["row_count"], x["min_val"], x["max_val"], x["p50"]) == (4, 1.0, 4.0, 2.5)
    assert c["histogram"] == {
        "values": [{"value": "b", "count": 3}, {"value": "a", "count": 1}],
        "other_count": 0,
        "unique_count": 2,
    }


def test_a_range_without_rows(tmp_path):
    write(tmp_path, {"x": [1.0], "c": ["a"]})
    features = [("x", "numeric"), ("c", "categorical")]
    late = START + 1000 * HOUR
    table = pa.table({"x": pa.array([], pa.float64()), "c": pa.array([], pa.string())})
    assert list(metrics(tmp_path, features, late, late).values()) == (
        MetricsCalculator().compute_all(table, features)
    )


def test_rows_without_event_time_count_only_without_a_range(tmp_path):
    at = pa.array([START, None], pa.timestamp("ns"))
    write(tmp_path, {"at": at, "x": [1.0, 2.0]})
    asked = [("x", "numeric")]
    assert metrics(tmp_path, asked)["x"]["row_count"] == 2
    assert metrics(tmp_path, asked, START - HOUR)["x"]["row_count"] == 1


def test_dates_are_categories_as_text_but_no_numbers(tmp_path):
    write(tmp_path, {"d": pa.array([dt.date(2026, 1, 2)] * 2 + [None], pa.date32())})
    assert metrics(tmp_path, [("d", "categorical")])["d"]["histogram"]["values"] == [
        {"value": "2026-01-02", "count": 2}
    ]
    with pytest.raises(ColumnTypeError, match=r"column `d` .* has type date32\[day\]"):
        metrics(tmp_path, [("d", "numeric")])


def test_names_of_the_view_are_those_of_the_field_mapping(tmp_path):
    write(tmp_path, {"x_": [1.0, 2.0]})
    found = metrics(tmp_path, [("x", "numeric")], field_mapping={"x_": "x"})
    assert found["x"]["mean"] == 1.5


def test_a_feature_that_no_file_has_is_left_out_with_a_warning(tmp_path, caplog):
    write(tmp_path, {"x": [1.0]}, "a")
    write(tmp_path, {"x": [2.0], "y": [3.0]}, "b")
    found = metrics(tmp_path, [("z", "numeric"), ("y", "numeric"), ("x", "numeric")])
    assert [(name, each["null_count"]) for name, each in found.items()] == [("y", 1), ("x", 0)]
    assert "`z`" in caplog.text


def test_only_files_of_the_range_and_columns_that_are_asked_for_are_read(tmp_path):
    write(tmp_path, {"x": [1.0], "y": [1.0]}, "a")
    late = pa.array([START + 100 * HOUR], pa.timestamp("us", "UTC"))
    write(tmp_path, {"at": late, "x": [2.0], "y": [1.0]}, "b")
    _spoil(tmp_path / "history" / "b.parquet", "x")
    _spoil(tmp_path / "history" / "a.parquet", "y")
    assert metrics(tmp_path, [("x", "numeric")], START, START + HOUR)["x"]["mean"] == 1.0
    with pytest.raises(SourceReadError, match=r"b\.parquet"):
        metrics(tmp_path, [("x", "numeric")])


def _spoil(path, column: str) -> None:
    """Overwrite a column's pages."""
    group = pq.read_metadata(path).row_group(0)
    chunks = [group.column(at) for at in range(group.num_columns)]
    (chunk,) = [chunk for chunk in chunks if chunk.path_in_schema == column]
    with path.open("r+b") as file:
        file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        file.write(b"\xff" * chunk.total_compressed_size)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    ("kind", "newest"),
    [
        (pa.timestamp("us", "UTC"), START + 2 * HOUR),
        (pa.timestamp("s"), START + 2 * HOUR),
        (pa.date32(), START),
    ],
)
def test_the_newest_event_time(tmp_path, kind, newest, statistics):
    times = pa.array([START + HOUR, START + 2 * HOUR, None], pa.timestamp("us", "UTC"))
    write(tmp_path, {"at": times.cast(kind, safe=False)}, write_statistics=statistics)
    store = S3ParquetOfflineStore
    assert store.get_monitoring_max_timestamp(repo_config(tmp_path), source(), "at") == newest


def test_a_newest_event_time_between_microseconds_is_rounded_up(tmp_path):
    nanoseconds = pa.array([1_767_225_600_000_000_001], pa.timestamp("ns", "UTC"))
    write(tmp_path, {"at": nanoseconds, "x": [1.0]})
    newest = S3ParquetOfflineStore.get_monitoring_max_timestamp(
        repo_config(tmp_path), source(), "at"
    )
    assert newest == START + dt.timedelta(microseconds=1)
    assert metrics(tmp_path, [("x", "numeric")], START, newest)["x"]["row_count"] == 1


def test_a_source_without_rows_or_files_has_no_newest_event_time(tmp_path):
    store = S3ParquetOfflineStore
    assert store.get_monitoring_max_timestamp(repo_config(tmp_path), source(), "at") is None
    write(tmp_path, {"at": pa.array([None], pa.timestamp("us"))})
    assert store.get_monitoring_max_timestamp(repo_config(tmp_path), source(), "at") is None


def test_numbers_that_are_written_otherwise(tmp_path):
    write(tmp_path, {"d": pa.array([Decimal("1.50"), Decimal("2.50")]), "b": [True, False]})
    found = metrics(tmp_path, [("d", "numeric"), ("b", "numeric")])
    assert (found["d"]["mean"], found["b"]["mean"]) == (2.0, 0.5)


def test_a_feature_that_is_named_twice_is_measured_each_time(tmp_path):
    write(tmp_path, {"x": pa.array([3, 1, 3], pa.int64())})
    numeric, categorical = S3ParquetOfflineStore.compute_monitoring_metrics(
        repo_config(tmp_path), source(), [("x", "numeric"), ("x", "categorical")], "at"
    )
    assert (numeric["feature_type"], numeric["p50"]) == ("numeric", 3.0)
    assert categorical["feature_type"] == "categorical"
    assert categorical["histogram"]["values"] == [
        {"value": 3, "count": 2},
        {"value": 1, "count": 1},
    ]


@pytest.mark.slow
def test_more_columns_than_are_held_at_a_time_come_in_their_order(tmp_path):
    write(tmp_path, {f"x{at}": [float(at), at + 1.0] for at in range(70)})
    found = metrics(tmp_path, [(f"x{at}", "numeric") for at in range(70)])
    assert {name: each["mean"] for name, each in found.items()} == {
        f"x{at}": at + 0.5 for at in range(70)
    }
