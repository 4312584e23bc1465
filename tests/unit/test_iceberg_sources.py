"""Iceberg tables are read as their metadata says they are, against pyiceberg's own reading."""

from __future__ import annotations

import datetime as dt
import sys
from decimal import Decimal

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from feast.types import Float64, Int64, UnixTimestamp
from pyiceberg.catalog import load_catalog
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.schema import Schema
from pyiceberg.types import DoubleType, LongType, NestedField
from repos import NoRegistry, repo_config
from source_cases import rows_of

from feast_dynamo_ext.errors import (
    ConfigError,
    DependencyError,
    OfflineStoreError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.parquet import iceberg
from feast_dynamo_ext.parquet.append import append_rows
from feast_dynamo_ext.parquet.compaction.snapshot import Target, folder_of
from feast_dynamo_ext.parquet.source import ParquetSource, columns_of

UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def catalog(tmp_path):
    found = load_catalog("feast_iceberg", type="sql", **places(tmp_path))
    found.create_namespace("shop")
    return found


def places(folder) -> dict[str, str]:
    return {"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}


def source_of(folder, table="orders", **more) -> IcebergSource:
    at = places(folder)
    settings = {
        "name": "orders",
        "catalog_type": "sql",
        "endpoint": at["uri"],
        "warehouse": at["warehouse"],
        "namespace": "shop",
        "table": table,
        "timestamp_field": "event",
    }
    return IcebergSource(**{**settings, **more})


def opened(folder, **more) -> ParquetSource:
    return ParquetSource.open(source_of(folder, **more), repo_config(folder))


def rows(*values, day=None, **more):
    moments = [START + value * HOUR for value in values]
    return pa.table(
        {
            "cid": pa.array(values, pa.int64()),
            "event": pa.array(moments, pa.timestamp("us", "UTC")),
            "day": pa.array([day or moment.date() for moment in moments], pa.date32()),
            **more,
        }
    )


def sorted_rows(source, names):
    found = rows_of(source, *names)
    return sorted(zip(*(map(repr, found[name]) for name in names), strict=True))


def same_as_pyiceberg(folder, catalog, table="orders"):
    """Rows as the library itself reads them."""
    theirs = catalog.load_table(f"shop.{table}").scan().to_arrow()
    names = theirs.column_names
    expected = zip(*(map(repr, theirs.column(name).to_pylist()) for name in names), strict=True)
    assert sorted_rows(opened(folder, table=table), names) == sorted(expected)


def test_the_files_of_the_snapshot_are_read(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1, 2))
    table.append(rows(3, 30))
    same_as_pyiceberg(tmp_path, catalog)
    table.delete("cid = 1")  # copies on write
    same_as_pyiceberg(tmp_path, catalog)
    table.overwrite(rows(7))
    assert rows_of(opened(tmp_path), "cid") == {"cid": [7]}


def test_a_table_is_not_read_as_a_folder_of_files(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1, 2))
    files = FileSource(name="orders", path=table.location(), timestamp_field="event")
    words = r"orders is an Iceberg table, or has one .*metadata\.json\).*`IcebergSource`"
    with pytest.raises(SourceReadError, match=words):
        ParquetSource.open(files, repo_config(tmp_path))


def test_types_are_those_of_parquet(tmp_path, catalog):
    more = {
        "n": pa.array([1, None], pa.int32()),
        "text": ["a", None],
        "raw": pa.array([b"a", None]),
        "floats": pa.array([[0.5, None], None], pa.list_(pa.float64())),
        "nested": pa.array([{"texts": ["a"]}, None]),
        "map": pa.array([[("k", "v")], None], pa.map_(pa.string(), pa.string())),
        "price": pa.array([Decimal("1.10"), None], pa.decimal128(9, 2)),
        "naive": pa.array([START.replace(tzinfo=None), None], pa.timestamp("us")),
        "flag": [True, None],
    }
    table = catalog.create_table("shop.orders", schema=rows(1, 2, **more).schema)
    table.append(rows(1, 2, **more))
    source = opened(tmp_path)
    assert {name: source.schema.field(name).type for name in more} == {
        name: rows(1, 2, **more).schema.field(name).type for name in more
    }
    found = rows_of(source, *more)
    assert found == {name: rows(1, 2, **more).column(name).to_pylist() for name in more}


def test_partitions_are_pruned_also_after_the_table_is_partitioned_anew(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1, 25))
    with table.update_spec() as spec:
        spec.add_field("day", "identity", "by_day")
    table.append(rows(2, 26, 50))
    with table.update_spec() as spec:
        spec.remove_field("by_day")
        spec.add_field("cid", "identity", "one")
    table.append(rows(3, 27))
    same_as_pyiceberg(tmp_path, catalog)
    source = opened(tmp_path)
    day = dt.datetime(2026, 1, 3, tzinfo=UTC)
    assert rows_of(source.within("day", day, None), "cid") == {"cid": [50]}
    within = source.within("event", day, None)
    assert rows_of(within, "cid") == {"cid": [50]}
    assert len(within.files) == 1


def test_a_value_that_only_the_partition_tells(tmp_path, catalog):
    """Files that were not written by Iceberg may lack the columns of their folders."""
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    with table.update_spec() as spec:
        spec.add_field("day", "identity", "day")
    table.append(rows(1))
    (file,) = (task.file for task in table.scan().plan_files())
    path = file.file_path.removeprefix("file://")
    state = ParquetSource.open(source_of(tmp_path), repo_config(tmp_path)).files[0]
    assert state.partition == (("day", "2026-01-01"),)
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["day"]), path)
    size = (tmp_path / path).stat().st_size
    with pytest.raises(SourceReadError, match=rf"not of {file.file_size_in_bytes} bytes"):
        opened(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(file), "file_size_in_bytes", property(lambda _: size))
        assert rows_of(opened(tmp_path), "cid", "day") == {
            "cid": [1],
            "day": [dt.date(2026, 1, 1)],
        }


def test_columns_that_came_later_and_wider_ones(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1, n=pa.array([1], pa.int32())).schema)
    table.append(rows(1, n=pa.array([1], pa.int32())))
    with table.update_schema() as schema:
        schema.update_column("n", LongType())
        schema.add_column("late", DoubleType())
    table.append(rows(2, n=[2**40], late=[0.5]))
    same_as_pyiceberg(tmp_path, catalog)
    assert opened(tmp_path).schema.field("n").type == pa.int64()


def test_a_renamed_column_is_refused_until_no_file_has_the_old_name(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1, n=[1]).schema)
    table.append(rows(1, n=[1]))
    with table.update_schema() as schema:
        schema.rename_column("n", "number")
    with pytest.raises(SourceReadError, match=r"`number` under another name in .*\.parquet"):
        opened(tmp_path)
    table.overwrite(rows(2, number=[2]))
    assert rows_of(opened(tmp_path), "number") == {"number": [2]}


def test_a_column_that_was_dropped_and_added_again_is_another(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1, n=[1]).schema)
    table.append(rows(1, n=[1]))
    with table.update_schema() as schema:
        schema.delete_column("n")
    with table.update_schema() as schema:
        schema.add_column("n", LongType())
    with pytest.raises(SourceReadError, match=r"`n` under another name in .*\.parquet"):
        opened(tmp_path)


def test_a_nested_column_that_was_renamed(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1, at=[{"x": 1}]).schema)
    table.append(rows(1, at=[{"x": 1}]))
    with table.update_schema() as schema:
        schema.rename_column("at.x", "y")
    with pytest.raises(SourceReadError, match=r"`at\.y` under another name in .*\.parquet"):
        opened(tmp_path)


def test_names_that_files_may_write_in_other_words(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1, **{"n 1": [1]}).schema)
    table.append(rows(1, **{"n 1": [5]}))
    (file,) = (task.file for task in table.scan().plan_files())
    stored = pq.read_schema(file.file_path.removeprefix("file://")).names
    if "n 1" in stored:
        same_as_pyiceberg(tmp_path, catalog)
    else:
        with pytest.raises(SourceReadError, match=r"`n 1` under another name"):
            opened(tmp_path)


def test_a_table_without_rows_has_its_columns(tmp_path, catalog):
    catalog.create_table("shop.orders", schema=rows(1, n=[0.5]).schema)
    source = opened(tmp_path)
    assert source.schema.field("n").type == pa.float64()
    assert rows_of(source, "cid", "n") == {"cid": [], "n": []}


class Deleted:
    """A task of a table with rows that are deleted in files of their own."""

    delete_files = ("deletes.parquet",)


class Orc:
    """A task of a table of another format."""

    delete_files = ()

    class file:  # noqa: N801 - as the library has it
        class file_format:  # noqa: N801
            name = "ORC"


@pytest.mark.parametrize(
    ("task", "why"), [(Deleted, "deleted in files of their own"), (Orc, "are not Parquet")]
)
def test_what_is_not_supported_is_refused(tmp_path, catalog, monkeypatch, task, why):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1))
    monkeypatch.setattr("pyiceberg.table.DataScan.plan_files", lambda _: [task])
    with pytest.raises(SourceReadError, match=rf"`orders`: .* shop\.orders .*{why}"):
        opened(tmp_path)


def test_default_values_are_refused(tmp_path, catalog, monkeypatch):
    """Which the library does not write yet."""
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1))
    with_default = Schema(
        *table.schema().fields, NestedField(9, "n", LongType(), initial_default=7)
    )
    monkeypatch.setattr("pyiceberg.table.Table.schema", lambda _: with_default)
    with pytest.raises(SourceReadError, match=r"default values, of the columns \['n'\]"):
        opened(tmp_path)


def test_a_file_that_is_gone_is_named(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1))
    (file,) = tmp_path.glob("warehouse/shop/orders/data/*.parquet")
    file.unlink()
    with pytest.raises(SourceReadError, match=rf"{file.name}, which the Iceberg table"):
        opened(tmp_path)


class Overwritten(PyArrowFileIO):
    """Files of a table that another writer overwrites and cleans once its manifests are read."""

    writes = ()
    """What it does, at first."""

    def new_input(self, location):
        if location.endswith(".avro") and type(self).writes:
            write, type(self).writes = type(self).writes, ()
            write()
        return super().new_input(location)


def test_files_that_a_newer_snapshot_replaced_meanwhile(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1))

    def overwrite() -> None:
        table.overwrite(rows(7))
        gone = min(
            tmp_path.glob("warehouse/shop/orders/data/*"), key=lambda at: at.stat().st_mtime
        )
        gone.unlink()

    Overwritten.writes = overwrite
    io = {"py-io-impl": f"{__name__}.{Overwritten.__name__}"}
    assert rows_of(opened(tmp_path, catalog_properties=io), "cid") == {"cid": [7]}


def test_metadata_that_cannot_be_read(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1).schema)
    table.append(rows(1))
    for file in tmp_path.glob("warehouse/shop/orders/metadata/*.avro"):
        file.write_bytes(b"broken")
    with pytest.raises(SourceReadError, match=r"`orders`: .*shop\.orders cannot be loaded"):
        opened(tmp_path)


def test_no_table_and_no_catalog(tmp_path, catalog):
    with pytest.raises(
        SourceNotFoundError, match=r"`orders`: the catalog has no table shop\.gone"
    ):
        opened(tmp_path, table="gone")
    with pytest.raises(SourceNotFoundError, match=r"no table none\.orders"):
        opened(tmp_path, namespace="none")
    with pytest.raises(SourceReadError, match=r"`orders`: .* cannot be loaded"):
        opened(tmp_path, endpoint="sqlite:////nowhere/at/all.db")
    with pytest.raises(SourceReadError, match=r"`orders`: .* cannot be loaded"):
        opened(tmp_path, catalog_type="rest", endpoint="http://127.0.0.1:1")


def test_a_token_is_taken_from_the_environment_and_never_shown(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="`ICE_TOKEN`, which is not set"):
        opened(tmp_path, token_env_var="ICE_TOKEN")
    monkeypatch.setenv("ICE_TOKEN", "hush-hush")
    with pytest.raises(SourceReadError) as caught:
        opened(
            tmp_path,
            catalog_type="rest",
            endpoint="http://127.0.0.1:1",
            token_env_var="ICE_TOKEN",
        )
    assert "hush" not in str(caught.value)


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiceberg.catalog", None)
    with pytest.raises(DependencyError, match=r"`pip install 'pyiceberg>=0\.10'`"):
        opened(tmp_path)


def test_credentials_of_the_config_are_given_to_catalogs_that_need_them(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-ours")
    settings = repo_config(
        tmp_path, region="eu-west-1", endpoint_url="http://127.0.0.1:1"
    ).offline_store.aws()
    source = source_of(
        tmp_path,
        catalog_type="glue",
        endpoint=None,
        warehouse="s3://lake/warehouse",
        catalog_properties={"client.region": "us-west-2"},
    )
    found = iceberg._properties(source, settings)
    assert found["client.region"] == "us-west-2"
    assert found["py-io-impl"] == "feast_dynamo_ext.parquet.iceberg.file_io"
    keys = found["botocore_session"].get_credentials().get_frozen_credentials()
    assert (keys.access_key, keys.secret_key) == ("AKIA-ours", "secret-ours")


def test_a_source_may_say_itself_how_pyiceberg_reaches_s3(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-ours")
    settings = repo_config(tmp_path, region="eu-west-1").offline_store.aws()
    own = {"s3.endpoint": "http://127.0.0.1:2", "s3.path-style-access": "true"}
    source = source_of(tmp_path, warehouse="s3://lake/warehouse", catalog_properties=own)
    assert iceberg._properties(source, settings) == {
        "type": "sql",
        "uri": places(tmp_path)["uri"],
        "warehouse": "s3://lake/warehouse",
        "client.region": "eu-west-1",
        "client.access-key-id": "AKIA-ours",
        "client.secret-access-key": "secret-ours",
        **own,
    }


VIEW = {
    "name": "orders",
    "entities": [Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)],
    "schema": [Field(name="cid", dtype=Int64), Field(name="n", dtype=Float64)],
    "ttl": dt.timedelta(hours=2),
}


def test_features_are_joined_point_in_time(tmp_path, catalog):
    table = catalog.create_table("shop.orders", schema=rows(1, n=[0.5]).schema)
    table.append(rows(1, 2, n=[0.5, 1.5]))
    table.append(rows(2, n=[2.5]))
    view = FeatureView(source=source_of(tmp_path), **VIEW)
    asked = pd.DataFrame(
        {"cid": [1, 2, 2, 3], "event_timestamp": [START + at * HOUR for at in (3, 4, 9, 3)]}
    )
    job = S3ParquetOfflineStore.get_historical_features(
        repo_config(tmp_path), [view], ["orders:n"], asked, NoRegistry(), "p"
    )
    found = job.to_arrow().column("n").to_pylist()
    assert found[0] == 0.5
    assert found[1] in (1.5, 2.5)  # equal times: the later path wins
    assert found[2:] == [None, None]


def test_the_statement_reads_what_partitions_tell_from_the_files(tmp_path, catalog):
    """Their folders are `day=null` where the day is null, which DuckDB would take for text."""
    table = catalog.create_table("shop.orders", schema=rows(1, n=[0.5]).schema)
    with table.update_spec() as spec:
        spec.add_field("day", "identity", "day")
    none = pa.array([None], pa.date32())
    table.append(rows(1, n=[0.5]))
    table.append(rows(2, n=[1.5]).set_column(2, "day", none))
    fields = [Field(name="cid", dtype=Int64), Field(name="day", dtype=UnixTimestamp)]
    view = FeatureView(source=source_of(tmp_path), **{**VIEW, "schema": fields, "ttl": None})
    entity_df = pd.DataFrame({"cid": [2, 1], "event_timestamp": [START + 9 * HOUR] * 2})
    job = S3ParquetOfflineStore.get_historical_features(
        repo_config(tmp_path), [view], ["orders:day"], entity_df, NoRegistry(), "p"
    )
    expected = [None, START.date()]
    assert job.to_arrow().column("day").to_pylist() == expected
    with duckdb.connect(":memory:") as duck:
        assert duck.sql(job.to_sql()).to_arrow_table().column("day").to_pylist() == expected


def test_feast_is_told_iceberg_s_types(tmp_path, catalog):
    catalog.create_table("shop.orders", schema=rows(1, n=[0.5]).schema)
    source = source_of(tmp_path)
    assert columns_of(source, repo_config(tmp_path)) == list(
        source.get_table_column_names_and_types(repo_config(tmp_path))
    )


def test_its_own_writers_append_to_it_and_compact_it(tmp_path, catalog):
    catalog.create_table("shop.orders", schema=rows(1, n=[0.5]).schema)
    view = FeatureView(source=source_of(tmp_path), **VIEW)
    config = repo_config(tmp_path)
    with pytest.raises(OfflineStoreError, match=r"`orders`: its source is an Iceberg table"):
        append_rows(view, config, rows(1, n=[0.5]))
    with pytest.raises(OfflineStoreError, match=r"is an Iceberg table.*rewrite_data_files"):
        folder_of(Target(view.batch_source, "event", None, (), ()), config)


def test_a_path_is_taken_literally(tmp_path, catalog):
    """pyiceberg quotes a partition's value in its path, and does not unquote it to read."""
    table = catalog.create_table("shop.orders", schema=rows(1, name=["a"]).schema)
    with table.update_spec() as update:
        update.add_identity("name")
    values = ["100%", "a b/c", "x%20y", "what?*"]
    table.append(rows(1, 2, 3, 4, name=values))
    same_as_pyiceberg(tmp_path, catalog)
    assert any("%" in file.path for file in opened(tmp_path).files)
    assert sorted(rows_of(opened(tmp_path), "name")["name"]) == sorted(values)
