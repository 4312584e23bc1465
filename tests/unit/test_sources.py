"""What files a source means, what its folders' names say, and what is told of bad files."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FileSource, PushSource
from feast.data_source import DataSource
from repos import repo_config
from source_cases import opened, put, rows_of

from feast_dynamo_ext import S3ParquetSource
from feast_dynamo_ext.errors import (
    ColumnTypeError,
    ConfigError,
    OfflineStoreError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.source import ParquetSource

FILES = (
    "a.parquet",
    "b.parquet",
    "2025/01/c.parquet",
    "2025/02/d.parquet",
    "dt=2025-01-31/e.parquet",
    "dt=2025-02-01/deep/f.parquet",
    "_hidden.parquet",
    ".crc/g.parquet",
    "2025/_tmp/h.parquet",
)
MARKERS = ("2025_$folder$", "2025/01_$folder$", "c.parquet._COPYING_", "2025/01/d._COPYING_")
"""Empty files that EMR, Glue and `hdfs dfs -put` leave."""


@pytest.fixture
def tree(tmp_path):
    for name in FILES:
        put(tmp_path / "data" / name, x=[1])
    for name in MARKERS:
        (tmp_path / "data" / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("data/a.parquet", ["a.parquet"]),
        ("data/2025", ["01/c.parquet", "02/d.parquet"]),
        ("data/2025/", ["01/c.parquet", "02/d.parquet"]),
        ("data/?.parquet", ["a.parquet", "b.parquet"]),
        ("data/*.parquet", ["a.parquet", "b.parquet"]),
        ("data/2025/*/*.parquet", ["01/c.parquet", "02/d.parquet"]),
        ("data/2025/0?", ["01/c.parquet", "02/d.parquet"]),
        ("data/dt=2025-0?-*", ["dt=2025-01-31/e.parquet", "dt=2025-02-01/deep/f.parquet"]),
        ("data/**/f.parquet", ["dt=2025-02-01/deep/f.parquet"]),
        (
            "data/**/?.parquet",
            [
                "2025/01/c.parquet",
                "2025/02/d.parquet",
                "a.parquet",
                "b.parquet",
                "dt=2025-01-31/e.parquet",
                "dt=2025-02-01/deep/f.parquet",
            ],
        ),
        ("da*/2025/0[1]/*", None),  # brackets are no glob
    ],
)
@pytest.mark.parametrize("form", ["relative", "absolute", "file://"])
def test_which_files_a_path_means(tree, path, names, form):
    given = {"relative": path, "absolute": str(tree / path), "file://": f"file://{tree / path}"}
    if names is None:
        with pytest.raises(SourceNotFoundError, match=r"there is no file at .*0\[1\]"):
            opened(tree, given[form])
        return
    found = [file.path for file in opened(tree, given[form]).files]
    fixed = str(tree / "data/2025") if path.startswith("data/2025") else str(tree / "data")
    assert [name.removeprefix(f"{fixed}/") for name in found] == names


def test_a_folder_that_is_not_there_or_empty_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("empty", "nowhere", "nowhere/*.parquet"):
        with pytest.raises(SourceNotFoundError, match=rf"`orders`: .*{path[:7]}"):
            opened(tmp_path, path)


def test_other_kinds_of_sources_and_formats_are_refused(tmp_path):
    batch = FileSource(path="x", timestamp_field="event")
    with pytest.raises(OfflineStoreError, match=r"`pushed` is a PushSource.*S3ParquetSource"):
        ParquetSource.open(PushSource(name="pushed", batch_source=batch), repo_config(tmp_path))


# Folders' names


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1", "2"], pa.int64(), [1, 2]),
        (["01", "12"], pa.int64(), [1, 12]),
        (["-3", "4"], pa.int64(), [-3, 4]),
        (["007", "7"], pa.string(), ["007", "7"]),
        (["1", "x"], pa.string(), ["1", "x"]),
        (["2025-01-31", "2025-02-01"], pa.string(), ["2025-01-31", "2025-02-01"]),
        (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int64(), [1, None]),
        (["12345678901234567890", "2"], pa.string(), ["12345678901234567890", "2"]),
        (["a%2Fb", "c%20d"], pa.string(), ["a/b", "c d"]),
    ],
)
def test_a_column_of_folders_has_one_type_for_all(tmp_path, values, kind, expected):
    for at, value in enumerate(values):
        put(tmp_path / f"n={at}" / f"k={value}" / "a.parquet", x=[at])
    source = opened(tmp_path)
    assert source.schema.field("k").type == kind
    assert rows_of(source, "x", "k", "n") == {"x": [0, 1], "k": expected, "n": [0, 1]}


def test_what_files_have_themselves_wins_over_folders_of_the_name(tmp_path):
    put(tmp_path / "k=1" / "a.parquet", k=pa.array([10], pa.int32()))
    put(tmp_path / "k=2" / "b.parquet", k=pa.array([20], pa.int32()))
    put(tmp_path / "k=3" / "c.parquet", k=pa.array([30], pa.int32()))
    assert rows_of(opened(tmp_path), "k") == {"k": [10, 20, 30]}
    put(tmp_path / "k=2" / "b.parquet", x=[1])
    with pytest.raises(SourceReadError, match=r"k=2/b\.parquet has no column `k`"):
        rows_of(opened(tmp_path), "k")


# Bad files


def spoilt(path):
    whole = path.read_bytes()
    return {
        "empty": b"",
        "text": b"one,two\n1,2\n",
        "truncated": whole[: len(whole) // 2],
        "pages": whole[:4] + b"\xff" * 40 + whole[44:],
        "footer": whole[:-60] + b"\xff" * 52 + whole[-8:],
    }


@pytest.mark.parametrize("form", ["empty", "text", "truncated", "pages", "footer"])
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_bad_file_is_named(tmp_path, form, name):
    for each in "abc":
        put(tmp_path / f"{each}.parquet", x=list(range(100)))
    path = tmp_path / f"{name}.parquet"
    path.write_bytes(spoilt(path)[form])
    with pytest.raises(
        SourceReadError, match=rf"{name}\.parquet cannot be read.*Parquet, and whole"
    ):
        rows_of(opened(tmp_path), "x")


def test_a_file_that_cannot_be_listed_or_read_is_named(tmp_path):
    put(tmp_path / "a.parquet", x=[1])
    (tmp_path / "b.parquet").symlink_to(tmp_path / "gone")
    assert rows_of(opened(tmp_path), "x") == {"x": [1]}  # a dead link is no file


@pytest.mark.parametrize("change", ["replaced", "shorter", "removed"])
def test_a_file_that_changes_before_it_is_read_is_named(tmp_path, change):
    for name in "abc":
        put(tmp_path / f"{name}.parquet", x=list(range(50)))
    source = opened(tmp_path)
    if change == "removed":
        (tmp_path / "b.parquet").unlink()
    else:
        put(tmp_path / "b.parquet", x=[1] if change == "shorter" else list(range(9999)))
    with pytest.raises(
        SourceReadError, match=r"b\.parquet changed while .* removed\. Run it again"
    ):
        list(source.fetch(["x"], pa.array([0]).to_numpy()))


# Our own source


def shop(**more):
    return S3ParquetSource(
        name="shop",
        path="s3://bucket/shop",
        timestamp_field="event",
        created_timestamp_column="created",
        field_mapping={"old": "new"},
        description="d",
        tags={"team": "growth"},
        owner="o",
        s3_endpoint_override="http://127.0.0.1:1",
        **more,
    )


def test_it_comes_back_from_a_registry_as_it_was():
    source = shop(date_partition_column="dt", date_partition_column_format="%Y%m%d")
    proto = type(source.to_proto())()
    proto.ParseFromString(source.to_proto().SerializeToString())
    found = DataSource.from_proto(proto)
    assert isinstance(found, S3ParquetSource)
    assert found == source
    assert hash(found) == hash(source)
    assert (found.path, found.date_partition_column) == ("s3://bucket/shop", "dt")
    assert found.date_partition_column_format == "%Y%m%d"
    assert found.s3_endpoint_override == "http://127.0.0.1:1"
    assert found != shop()
    assert found != FileSource(name="shop", path="s3://bucket/shop", timestamp_field="event")


def test_its_name_is_its_path_and_days_are_the_default_format():
    source = S3ParquetSource(path="shop", timestamp_field="event", date_partition_column="day")
    assert source.name == "shop"
    assert source.folder_format == "day=%Y-%m-%d"
    assert S3ParquetSource(path="shop").folder_format == ""


@pytest.mark.parametrize(
    ("column", "form"),
    [
        ("dt", "%d"),
        ("dt", "%Y-%d"),
        ("dt", "%m-%d"),
        ("dt", "day"),
        ("dt", "%Y-%W"),
        ("dt", "dt=%Y"),
        ("dt", "%Y/%m"),
        ("", "year=%Y/%m"),
        ("", "year/month"),
    ],
)
def test_a_format_that_names_no_periods_is_refused(column, form):
    with pytest.raises(ConfigError, match=r"`date_partition_column_format`.*%"):
        S3ParquetSource(path="x", date_partition_column=column, date_partition_column_format=form)


def test_validation_names_what_is_missing(tmp_path):
    put(tmp_path / "shop" / "a.parquet", event=[1], cid=[1])
    config = repo_config(tmp_path)
    S3ParquetSource(path="shop", timestamp_field="event").validate(config)
    mapped = {"event": "event_time"}
    S3ParquetSource(path="shop", timestamp_field="event_time", field_mapping=mapped).validate(
        config
    )
    with pytest.raises(OfflineStoreError, match=r"`shop` names the columns \['when'\]"):
        S3ParquetSource(path="shop", timestamp_field="when").validate(config)
    with pytest.raises(SourceNotFoundError, match="`gone`"):
        S3ParquetSource(path="gone", timestamp_field="event").validate(config)


def test_inferred_types_are_those_that_hold_all_files(tmp_path):
    put(tmp_path / "shop" / "k=1" / "a.parquet", x=pa.array([1], pa.int32()))
    put(tmp_path / "shop" / "k=2" / "b.parquet", x=pa.array([1.5]), late=["t"])
    put(tmp_path / "shop" / "k=3" / "c.parquet", x=pa.array([1], pa.int32()))
    found = S3ParquetSource(path="shop").get_table_column_names_and_types(repo_config(tmp_path))
    assert list(found) == [("x", "double"), ("k", "int64"), ("late", "string")]
    put(tmp_path / "shop" / "k=2" / "b.parquet", x=["1.5"])
    with pytest.raises(ColumnTypeError, match=r"`x` is string in .*k=2/b\.parquet, but int32"):
        S3ParquetSource(path="shop").get_table_column_names_and_types(repo_config(tmp_path))


def test_columns_that_follow_from_event_time_are_not_inferred(tmp_path):
    put(tmp_path / "shop" / "dt=2026-01-31" / "region=eu" / "a.parquet", x=[1])
    source = S3ParquetSource(path="shop", date_partition_column="dt")
    found = source.get_table_column_names_and_types(repo_config(tmp_path))
    assert list(found) == [("x", "int64"), ("region", "string")]
    whole = S3ParquetSource(path="shop", date_partition_column_format="dt=%Y-%m-%d/region=%y")
    assert list(whole.get_table_column_names_and_types(repo_config(tmp_path))) == [("x", "int64")]
    plain = S3ParquetSource(path="shop").get_table_column_names_and_types(repo_config(tmp_path))
    assert [name for name, _ in plain] == ["x", "dt", "region"]


def test_a_file_without_rows_has_none(tmp_path):
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    put(tmp_path / "b.parquet", x=[7])
    assert rows_of(opened(tmp_path), "x") == {"x": [7]}
