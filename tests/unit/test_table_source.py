"""Tables of an application, declared as sources: what is taken, kept and refused."""

from __future__ import annotations

import pytest
from captured import source_of, view_of
from feast import Field
from feast.data_source import DataSource
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from feast.types import Array, Float64, Int64, Map, String, Struct, UnixTimestamp
from feast.value_type import ValueType
from repos import open_repo_config, repo_config

from feast_dynamo_ext import DynamoDBTableSource
from feast_dynamo_ext.capture.apply_checks import check_captured
from feast_dynamo_ext.columns import Tombstones
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.parquet.iceberg.catalog import CatalogAddress, is_iceberg, table_name

KEPT = DynamoDBTableSource(
    name="purchases",
    table="shop.purchases-v2",
    event_time="purchased_at",
    event_time_unit="iso8601",
    history="s3://bucket/history/purchases",
    schema=[
        Field(name="customer_id", dtype=Int64, description="who", tags={"team": "growth"}),
        Field(name="bought", dtype=UnixTimestamp, tags={"attribute": "purchased_at"}),
        Field(name="amounts", dtype=Array(Float64)),
        Field(name="address", dtype=Struct({"city": String, "zip": Int64})),
        Field(name="extra", dtype=Map),
    ],
    expiry="delete",
    partition="month",
    field_mapping={"customer_id": "customer"},
    description="what customers bought",
    tags={"team": "growth"},
    owner="me@shop",
)


def test_the_registry_gives_back_what_was_declared():
    found = DataSource.from_proto(KEPT.to_proto())
    assert type(found) is DynamoDBTableSource
    assert found == KEPT
    assert hash(found) == hash(KEPT)
    assert repr(found) == repr(KEPT)
    assert found.schema == KEPT.schema
    assert [field.tags for field in found.schema] == [field.tags for field in KEPT.schema]
    assert (found.event_time, found.timestamp_field) == ("purchased_at", "bought")
    assert found.created_timestamp_column == "_feast_written_at"
    assert found.to_proto().custom_options == KEPT.to_proto().custom_options


def test_readers_of_history_take_it_for_their_own():
    assert isinstance(KEPT, IcebergSource)
    assert is_iceberg(KEPT)
    assert KEPT.tombstones == Tombstones(ends=frozenset({"delete", "expire"}))
    assert source_of().tombstones == Tombstones(ends=frozenset({"delete"}))


def test_its_table_is_in_the_catalog_of_the_offline_store_with_files_of_its_own_place(tmp_path):
    config = repo_config(tmp_path, catalog={"type": "sql", "namespace": "captured"})
    address = CatalogAddress.from_source(source_of(), config)
    assert address.kind == "sql"
    assert address.uri.startswith(f"sqlite:///{tmp_path}/data/iceberg.db")
    assert address.warehouse == f"file://{tmp_path}/data/history/purchases"
    assert table_name(source_of(), config) == "captured.purchases"
    plain = open_repo_config(tmp_path, project="shop", offline={"catalog": {"type": "sql"}})
    assert table_name(source_of(), plain) == "shop.purchases"
    assert CatalogAddress.from_source(KEPT, plain).warehouse == "s3://bucket/history/purchases"
    glue = {"type": "glue", "warehouse": "s3://warehouse/tables"}
    found = CatalogAddress.from_source(KEPT, repo_config(tmp_path, catalog=glue))
    assert (found.kind, found.warehouse) == ("glue", "s3://bucket/history/purchases")
    rest = {"type": "rest", "uri": "https://catalog", "warehouse": "main"}
    found = CatalogAddress.from_source(KEPT, repo_config(tmp_path, catalog=rest))
    assert (found.kind, found.warehouse) == ("rest", "main")


@pytest.mark.parametrize(
    "change",
    [
        {"table": "others"},
        {"event_time_unit": "ms"},
        {"history": "data/elsewhere"},
        {"expiry": "delete"},
        {"partition": "none"},
        {"schema": None},
        {"tags": {"a": "b"}},
        {"name": "others"},
    ],
)
def test_what_differs_is_not_equal(change):
    assert source_of() == source_of()
    assert source_of(**change) != source_of()
    assert source_of() != IcebergSource(warehouse="w", namespace="n", table="purchases")


def test_it_shows_what_it_was_declared_as():
    assert repr(source_of(schema=[Field(name="bought", dtype=UnixTimestamp)])) == (
        "DynamoDBTableSource(name='purchases', table='purchases', event_time='bought', "
        "event_time_unit='us', schema=['bought: UnixTimestamp'], "
        "history='data/history/purchases', expiry='keep', partition='day')"
    )


TIME = Field(name="bought", dtype=UnixTimestamp)
WRONG = {
    "event_time_unit='hours'": (
        {"event_time_unit": "hours"},
        "there is no `event_time_unit` `hours`. Choose one of: iso8601, ms, ns, s, us.",
    ),
    "event_time_unit='iso'": (
        {"event_time_unit": "iso8601Z"},
        "there is no `event_time_unit` `iso8601Z`. Did you mean `iso8601`?",
    ),
    "expiry": (
        {"expiry": "keeps"},
        "there is no `expiry` `keeps`. Did you mean `keep`?",
    ),
    "partition": (
        {"partition": "months"},
        "there is no `partition` `months`. Did you mean `month`?",
    ),
    "table": (
        {"table": "arn:aws:dynamodb:eu-west-1:1:table/purchases"},
        "`table` is `arn:aws:dynamodb:eu-west-1:1:table/purchases`, which is no name of a "
        "DynamoDB table: 3 to 255 letters, digits, `_`, `-` and `.`. Give the name alone, without "
        "ARN or region.",
    ),
    "event time not there": (
        {"event_time": "bougth"},
        "its `event_time` `bougth` is not in `schema`. Did you mean `bought`? Or add "
        '`Field(name="bougth", dtype=UnixTimestamp)`.',
    ),
    "event time of another type": (
        {"schema": [Field(name="bought", dtype=Int64)]},
        "its `event_time` `bought` is declared as Int64. Declare it as UnixTimestamp: "
        "`event_time_unit` says how the attribute has it.",
    ),
    "case": (
        {"schema": [TIME, Field(name="Value", dtype=Int64), Field(name="value", dtype=Int64)]},
        "`schema` has `Value` and `value`, whose names differ in case only. To DynamoDB these "
        "are two attributes, to most catalogs one column: leave one out.",
    ),
    "twice": (
        {"schema": [TIME, Field(name="value", dtype=Int64), Field(name="value", dtype=Int64)]},
        "`schema` has `value` 2 times. Declare it once.",
    ),
    "reserved": (
        {"schema": [TIME, Field(name="_Feast_change", dtype=String)]},
        "the attribute `_Feast_change` begins as columns do that capture adds to a history "
        "(`_feast_...`). It cannot be captured under this name; leave it out.",
    ),
    "reserved event time": (
        {"event_time": "_feast_written_at", "schema": None},
        "the attribute `_feast_written_at` begins as columns do that capture adds to a history "
        "(`_feast_...`). It cannot be captured under this name; leave it out.",
    ),
    "history nowhere": (
        {"history": ""},
        "`history` is ``. Write where the history's files lie as `s3://bucket/prefix`, or as a "
        "folder.",
    ),
    "history mistyped": (
        {"history": "s3:/bucket/prefix"},
        "`history` is `s3:/bucket/prefix`. Write where the history's files lie as "
        "`s3://bucket/prefix`, or as a folder.",
    ),
    "history of a whole bucket": (
        {"history": "s3://bucket"},
        "`history` is `s3://bucket`. Write where the history's files lie as "
        "`s3://bucket/prefix`, or as a folder.",
    ),
    "history elsewhere": (
        {"history": "gs://bucket/prefix"},
        "`history` is `gs://bucket/prefix`, which is neither on S3 (`s3://bucket/prefix`) nor a "
        "folder. A history lies in one of these.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_clear_error(case):
    given, said = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        source_of(**given)
    assert str(caught.value) == f"DynamoDBTableSource `purchases`: {said}"


@pytest.mark.parametrize("history", ["data/history", "/data/history", "file:///data/history", "h"])
def test_folders_and_places_on_s3_are_taken(history):
    assert source_of(history=history).history == history


def test_views_infer_declared_types_and_a_source_without_schema_says_what_to_do(tmp_path):
    config = repo_config(tmp_path, catalog={"type": "sql"})
    to_value_type = DynamoDBTableSource.source_datatype_to_feast_value_type()
    named = KEPT.get_table_column_names_and_types(config)
    assert {name: to_value_type(kind) for name, kind in named} == {
        "customer_id": ValueType.INT64,
        "bought": ValueType.UNIX_TIMESTAMP,
        "amounts": ValueType.DOUBLE_LIST,
        "address": ValueType.STRUCT,
        "extra": ValueType.MAP,
    }
    with pytest.raises(ConfigError, match=r"no `schema` and no history yet.*capture infer"):
        source_of(schema=None).get_table_column_names_and_types(config)


def test_another_offline_store_reads_no_history_of_captured_tables(tmp_path):
    config = open_repo_config(tmp_path, offline={"type": "duckdb"})
    with pytest.raises(ConfigError, match="are read by S3ParquetOfflineStore"):
        check_captured([view_of(source_of())], config)
