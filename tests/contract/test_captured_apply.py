"""What `feast apply` checks of captured tables, and makes; registries give the source back."""

from __future__ import annotations

import itertools
import logging
import runpy
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import captured
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int32, Int64, String, UnixTimestamp, Uuid
from repos import REGION, write_repo_yaml

from feast_dynamo_ext import DynamoDBTableSource, ViewSettings
from feast_dynamo_ext.errors import (
    CaptureError,
    ConfigError,
    ResourceNotFoundError,
    UnsupportedTypeError,
)
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).parents[2] / "docs"
NUMBERS = itertools.count()
IMAGES = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}


@pytest.fixture
def make_table(moto_endpoint) -> Callable[..., str]:
    """Makes a table of the application on moto; its name."""

    def make(
        keys: dict[str, str] | None = None, *, stream: Any = IMAGES, recovery: bool = True
    ) -> str:
        name = f"table-{next(NUMBERS)}"
        keys = keys or {"customer": "N"}
        client = boto3.client("dynamodb", region_name=REGION, endpoint_url=moto_endpoint)
        client.create_table(
            TableName=name,
            KeySchema=[
                {"AttributeName": key, "KeyType": how}
                for key, how in zip(keys, ("HASH", "RANGE"), strict=False)
            ],
            AttributeDefinitions=[
                {"AttributeName": key, "AttributeType": kind} for key, kind in keys.items()
            ],
            BillingMode="PAY_PER_REQUEST",
            **({"StreamSpecification": stream} if stream else {}),
        )
        if recovery:
            client.update_continuous_backups(
                TableName=name,
                PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
            )
        return name

    return make


@pytest.fixture
def apply(open_store, moto_endpoint, caplog) -> Callable[..., Any]:
    """Applies views; the store, and what was warned of."""

    def apply(
        *views: Any, registry: Any = None, entities: Any = (captured.CUSTOMER, ORDER)
    ) -> tuple[Any, list[str]]:
        number = next(NUMBERS)
        store = open_store(
            f"a{number}",
            online={"endpoint_url": moto_endpoint, "region": REGION},
            offline={"catalog": captured.CATALOG},
            **({"registry": registry} if registry else {}),
        )
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            store.apply(
                [
                    *{view.batch_source.name: view.batch_source for view in views}.values(),
                    *entities,
                    *views,
                ]
            )
        ours = [r.getMessage() for r in caplog.records if "DynamoDBTableSource" in r.getMessage()]
        return store, ours

    return apply


@pytest.mark.parametrize(
    ("suffix", "what"),
    [("_quarantine", "what does not fit"), ("_erased", "who was erased")],
)
def test_names_of_tables_that_are_kept_beside_a_history_are_refused(
    make_table, apply, tmp_path, suffix, what
):
    table = make_table()
    first, taken = captured.source_of(table=table), f"purchases{suffix}"
    second = captured.source_of(table=table, name=taken)
    with pytest.raises(ConfigError) as caught:
        apply(captured.view_of(second))
    assert str(caught.value) == (
        f"DynamoDBTableSource `{taken}`: its history would be a table of this name, and "
        f"`...{suffix}` is the table of {what} of another captured source. Give the source a "
        "name that does not end so."
    )
    files = FileSource(path=str(tmp_path / "rows.parquet"), timestamp_field="at")
    other = FeatureView(
        name=taken,
        entities=[captured.CUSTOMER],
        schema=[Field(name=name, dtype=Int64) for name in ("customer", "value")],
        source=files,
    )
    with pytest.raises(ConfigError) as caught:
        apply(captured.view_of(first), other)
    assert str(caught.value) == (
        f"Feature view `{taken}`: its history table would have this name, under which the table "
        f"of {what} of DynamoDBTableSource `purchases` is kept. Give the view another name."
    )
    # Nothing was made; and a name that has the word elsewhere is free.
    free = captured.source_of(table=table, name=f"{taken}_of_shops")
    store, warned = apply(captured.view_of(free))
    assert warned == []
    assert TableHandle.from_source(free, store.config).load().schema().column_names


ORDER = Entity(name="number", join_keys=["number"], value_type=ValueType.INT64)


def test_a_table_with_all_that_capture_needs_gets_its_history(make_table, apply, tmp_path):
    source = captured.source_of(table=make_table())
    store, warned = apply(captured.view_of(source))
    assert warned == []
    table = TableHandle.from_source(source, store.config).load()
    assert table.location() == f"file://{tmp_path}/data/history/purchases"
    assert TableLayout.from_table(table) == TableLayout(
        ("customer",), "bought", "_feast_written_at", "day"
    )
    assert TableLayout.item_keys(table) == ("customer",)
    columns = {field.name: str(field.field_type) for field in table.schema().fields}
    assert columns == {
        "customer": "long",
        "bought": "timestamptz",
        "value": "long",
        "_feast_written_at": "timestamptz",
        "_feast_change": "string",
        "_feast_change_id": "string",
        "_feast_sequence": "long",
    }
    # Again it is there already.
    again, warned = apply(captured.view_of(captured.source_of(table=source.table, name="again")))
    assert warned == []
    assert again is not store


@pytest.mark.parametrize("partition", ["month", "none"])
def test_a_history_is_cut_by_event_time_as_declared(make_table, apply, partition):
    source = captured.source_of(table=make_table(), name=f"by_{partition}", partition=partition)
    store, _ = apply(captured.view_of(source))
    table = TableHandle.from_source(source, store.config).load()
    transforms = [str(part.transform) for part in table.spec().fields]
    assert transforms == ([] if partition == "none" else [partition])
    assert TableLayout.from_table(table).partition == partition


@pytest.mark.parametrize("kind", ["file", "sql"])
def test_a_registry_gives_it_back_with_its_views(make_table, apply, tmp_path, kind):
    path = f"sqlite:///{tmp_path}/registry_sql.db" if kind == "sql" else f"{tmp_path}/other.db"
    source = captured.source_of(table=make_table(), tags={"team": "growth"})
    store, _ = apply(captured.view_of(source), registry={"registry_type": kind, "path": path})
    store.refresh_registry()
    assert store.get_data_source("purchases") == source
    found = store.get_feature_view("purchases_view").batch_source
    assert type(found) is DynamoDBTableSource
    assert found == source
    assert found.tombstones == source.tombstones


WARNINGS = {
    "recovery": (
        {"recovery": False},
        "point-in-time recovery of the table `{table}` is off, so it cannot be exported: capture "
        "would have to scan it. Turn it on: aws dynamodb update-continuous-backups --region "
        "us-east-1 --table-name {table} --point-in-time-recovery-specification "
        "PointInTimeRecoveryEnabled=true",
    ),
    "no stream": (
        {"stream": None},
        "the table `{table}` has no stream, so its changes cannot be followed; exports can be "
        "read all the same. Turn it on: aws dynamodb update-table --region us-east-1 --table-name "
        "{table} --stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES",
    ),
    "new images": (
        {"stream": {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"}},
        "the stream of the table `{table}` shows NEW_IMAGE, but what a deletion or a change of "
        "event time ends is in NEW_AND_OLD_IMAGES alone. A stream's view cannot be changed: turn "
        "it off, which ends what reads it now, and on again: aws dynamodb update-table --region "
        "us-east-1 --table-name {table} --stream-specification StreamEnabled=false && aws "
        "dynamodb update-table --region us-east-1 --table-name {table} --stream-specification "
        "StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES",
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_is_missing_is_said_with_the_command_that_mends_it(make_table, apply, case):
    made, said = WARNINGS[case]
    table = make_table(**made)
    _, warned = apply(captured.view_of(captured.source_of(table=table)))
    assert warned == [f"DynamoDBTableSource `purchases`: {said.format(table=table)}"]


@pytest.mark.parametrize("case", ["recovery", "no stream"])
def test_the_command_mends_it(make_table, apply, case, moto_endpoint):
    """By AWS's own command line's parser of arguments, as far as botocore has it."""
    made, _ = WARNINGS[case]
    table = make_table(**made)
    source = captured.source_of(table=table)
    _, (warned,) = apply(captured.view_of(source))
    command = warned.rpartition(": ")[2].split()
    assert command[:2] == ["aws", "dynamodb"]
    operation, arguments = command[2], dict(zip(command[3::2], command[4::2], strict=True))
    structure = "".join(part.title() for part in operation.split("-"))
    client = boto3.client(
        "dynamodb", region_name=arguments.pop("--region"), endpoint_url=moto_endpoint
    )
    given = {
        "".join(part.title() for part in name.removeprefix("--").split("-")): shorthand(value)
        for name, value in arguments.items()
    }
    getattr(client, operation.replace("-", "_"))(**given)
    assert structure in client.meta.service_model.operation_names
    _, warned = apply(captured.view_of(captured.source_of(table=table, name="mended")))
    assert warned == []


def shorthand(value: str) -> Any:
    """The shorthand of AWS's command line: `A=b,C=d`."""
    if "=" not in value:
        return value
    pairs = dict(pair.split("=") for pair in value.split(","))
    return {name: {"true": True, "false": False}.get(text, text) for name, text in pairs.items()}


@pytest.mark.parametrize("spelling", [None, "2026-03-01T00:00:00.000Z"])
def test_a_key_that_is_a_time_in_a_text_wants_its_spelling(make_table, apply, spelling):
    tags = {"unit": "iso8601"} | ({"spelling": spelling} if spelling else {})
    key = [Field(name="customer", dtype=Int64), Field(name="value", dtype=Int64)]
    source = captured.source_of(
        table=make_table({"customer": "N", "at": "S"}),
        event_time="at",
        event_time_unit="iso8601",
        schema=[*key, Field(name="at", dtype=UnixTimestamp, tags=tags)],
    )
    _, warned = apply(captured.view_of(source, deletes="ignore"))
    said = (
        "DynamoDBTableSource `purchases`: the event time `at` is of the table's key, as a text. "
        "Two items of one time that is written in two ways, as with Z and +00:00, would be one in "
        "the history. Say how it is written: Field(name='at', dtype=UnixTimestamp, "
        "tags={'unit': 'iso8601', 'spelling': '2026-03-01T00:00:00.000Z'})"
    )
    assert warned == ([] if spelling else [said])


def test_an_expiry_that_cannot_be_told_is_said(make_table, apply, moto_endpoint):
    table = make_table()
    _, warned = apply(captured.view_of(captured.source_of(table=table, expiry="delete")))
    assert warned == [
        'DynamoDBTableSource `purchases` has `expiry="delete"`, but the TTL attribute of the '
        f"table `{table}` is not set: no deletion can be told to be an expiry. Set it, or allow "
        "`dynamodb:DescribeTimeToLive`."
    ]
    client = boto3.client("dynamodb", region_name=REGION, endpoint_url=moto_endpoint)
    client.update_time_to_live(
        TableName=table, TimeToLiveSpecification={"Enabled": True, "AttributeName": "until"}
    )
    of_ttl = captured.source_of(table=table, expiry="delete", name="second")
    assert apply(captured.view_of(of_ttl))[1] == []


def test_without_a_schema_there_is_no_history_yet(make_table, apply):
    source = captured.source_of(table=make_table(), schema=None)
    store, warned = apply(captured.view_of(source))
    assert warned == [
        "DynamoDBTableSource `purchases` has no `schema`, so it has no history yet. "
        "`feast-dynamo capture infer purchases` reads items of the table, and writes one"
    ]
    from feast_dynamo_ext.errors import SourceNotFoundError

    with pytest.raises(SourceNotFoundError):
        TableHandle.from_source(source, store.config).load()


def by_number(source: Any, deletes: str | None = None) -> FeatureView:
    return FeatureView(
        name="by_number",
        entities=[captured.CUSTOMER, ORDER],
        schema=[Field(name=name, dtype=Int64) for name in ("customer", "number", "value")],
        source=source,
        tags=ViewSettings(deletes=deletes).tags(),
    )


def test_join_keys_that_are_not_the_tables_need_a_word(make_table, apply):
    table = make_table({"customer": "N", "number": "N"})
    source = captured.source_of(table=table)
    with pytest.raises(ConfigError) as caught:
        apply(captured.view_of(source))
    assert str(caught.value) == (
        "Feature view `purchases_view` is known by `customer`, but an item of the table "
        f"`{table}`, which its source captures, by `customer`, `number`: deleting one of several "
        "items would end the features of their entity. Say that deletions change nothing: "
        '`tags=ViewSettings(deletes="ignore").tags()`. Or give the entity the key of the table.'
    )
    store, warned = apply(captured.view_of(source, deletes="ignore"), by_number(source))
    assert warned == []
    made = TableHandle.from_source(source, store.config).load()
    assert TableLayout.item_keys(made) == ("customer", "number")


def test_a_key_that_is_the_event_time_is_kept_as_one_of_the_items(make_table, apply):
    source = captured.source_of(table=make_table({"customer": "N", "bought": "N"}))
    store, _ = apply(captured.view_of(source, deletes="ignore"))
    made = TableHandle.from_source(source, store.config).load()
    assert TableLayout.item_keys(made) == ("customer", "bought")
    layout = TableLayout.from_table(made)
    assert layout is not None
    assert layout.order == ("customer", "bought", "_feast_written_at", "_feast_sequence")


REFUSED = {
    "no table": (
        lambda make: captured.source_of(table="nowhere"),
        "there is no DynamoDB table `nowhere` in us-east-1",
    ),
    "type of a key": (
        lambda make: captured.source_of(table=make({"customer": "S"})),
        "`customer` is declared as Int64, which takes N; the table's key attribute `customer` is "
        "of type S. Declare it as String.",
    ),
    "a key that is not kept as it is": (
        lambda make: captured.source_of(
            table=make({"customer": "S"}),
            schema=[
                Field(name="customer", dtype=Uuid),
                *(each for each in captured.source_of().schema if each.name != "customer"),
            ],
        ),
        "`customer` is declared as Uuid, which does not keep each key as it is, so that two items "
        "could become one; the table's key attribute `customer` is of type S. Declare it as "
        "String.",
    ),
    "case of a key": (
        lambda make: captured.source_of(table=make({"Customer": "N"})),
        "the key attribute of the table is `Customer`, and `schema` has `customer`. Names of "
        "attributes are told apart by their case: correct it.",
    ),
    "unit of a key": (
        lambda make: captured.source_of(
            table=make({"customer": "N", "bought": "N"}), event_time_unit="iso8601"
        ),
        "the event time `bought` is of type N in the table's key, and times of unit `iso8601` are "
        "of type S. Correct `event_time_unit`.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_nothing_could_work_with_is_refused(make_table, apply, case):
    source, said = REFUSED[case][0](make_table), REFUSED[case][1]
    with pytest.raises((ConfigError, UnsupportedTypeError)) as caught:
        apply(captured.view_of(source, deletes="ignore"))
    assert str(caught.value).startswith(f"DynamoDBTableSource `purchases`: {said}")


def test_a_feature_that_no_attribute_has_is_refused(make_table, apply):
    source = captured.source_of(table=make_table())
    view = FeatureView(
        name="v",
        entities=[captured.CUSTOMER],
        schema=[Field(name="customer", dtype=Int64), Field(name="vaule", dtype=Int64)],
        source=source,
    )
    with pytest.raises(ConfigError, match=r"`vaule` is no attribute.*Did you mean `value`"):
        apply(view)


def test_a_table_whose_keys_changed_is_another_table(make_table, apply):
    first = captured.source_of(table=make_table())
    store, _ = apply(captured.view_of(first))
    second = captured.source_of(table=make_table({"customer": "N", "number": "N"}))
    from feast_dynamo_ext.capture.apply_checks import check_captured
    from feast_dynamo_ext.capture.dynamo_table import dynamodb_client

    views = [captured.view_of(second, deletes="ignore")]
    with pytest.raises(ConfigError, match="other items: capture it under another name"):
        check_captured(views, store.config, client=dynamodb_client(store.config))


def test_deletes_is_a_setting_of_captured_tables_alone(open_store, moto_endpoint):
    from views import customer_view

    store = open_store(online={"endpoint_url": moto_endpoint, "region": REGION})
    view = customer_view(tags=ViewSettings(deletes="ignore").tags())
    with pytest.raises(ConfigError, match="`deletes` is a setting of views over a"):
        store.apply([captured.CUSTOMER, view.batch_source, view])


def test_attributes_may_have_columns_of_other_names(make_table, apply):
    source = captured.source_of(
        table=make_table({"CustomerId": "S"}),
        event_time="PurchasedAt",
        schema=[
            Field(name="customer", dtype=String, tags={"attribute": "CustomerId"}),
            Field(name="bought", dtype=UnixTimestamp, tags={"attribute": "PurchasedAt"}),
            Field(name="value", dtype=Int64),
        ],
    )
    view = FeatureView(
        name="v",
        entities=[Entity(name="who", join_keys=["customer"], value_type=ValueType.STRING)],
        schema=[Field(name="customer", dtype=String), Field(name="value", dtype=Int64)],
        source=source,
    )
    store, warned = apply(view)
    assert warned == []
    made = TableHandle.from_source(source, store.config).load()
    layout = TableLayout.from_table(made)
    assert layout is not None
    assert (layout.keys, layout.event_time) == (("customer",), "bought")


DEFINITIONS = """
from feast import Entity, FeatureView, Field, ValueType
from feast.types import Int64, UnixTimestamp
from feast_dynamo_ext import DynamoDBTableSource

customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.INT64)
purchases = DynamoDBTableSource(
    name="purchases",
    table="{table}",
    event_time="bought",
    event_time_unit="ms",
    history="data/history",
    schema=[
        Field(name="customer", dtype=Int64),
        Field(name="bought", dtype=UnixTimestamp),
        Field(name="value", dtype=Int64),
    ],
)
view = FeatureView(
    name="values",
    entities=[customer],
    schema=[Field(name="customer", dtype=Int64), Field(name="value", dtype=Int64)],
    source=purchases,
)
"""


def test_feast_apply_and_a_fresh_process(make_table, tmp_path, moto_endpoint, fork_server):
    online = {"endpoint_url": moto_endpoint, "region": REGION}
    write_repo_yaml(
        tmp_path, project="fresh", online=online, offline={"catalog": captured.CATALOG}
    )
    table = make_table(recovery=False)
    (tmp_path / "definitions.py").write_text(DEFINITIONS.format(table=table))
    for run in ("first", "again"):
        done = fork_server.run("feast", "apply", cwd=tmp_path)
        assert done.returncode == 0, (run, done.stderr)
        assert f"update-continuous-backups --region us-east-1 --table-name {table}" in (
            done.stdout + done.stderr
        )
    code = textwrap.dedent(
        """
        from feast import FeatureStore
        found = FeatureStore(".").get_feature_view("values").batch_source
        print(type(found).__module__, found.event_time_unit, found.tombstones.ends)
        """
    )
    done = fork_server.run("-c", code, cwd=tmp_path)
    assert done.stdout.strip() == (
        "feast_dynamo_ext.capture.table_source ms frozenset({'delete'})"
    ), done.stderr
    (tmp_path / "definitions.py").write_text(DEFINITIONS.format(table="nowhere"))
    done = fork_server.run("feast", "plan", cwd=tmp_path)
    assert done.returncode != 0
    assert "there is no DynamoDB table `nowhere`" in done.stdout + done.stderr


def test_the_declaration_of_the_docs_is_taken(make_table, apply, tmp_path):
    shown = runpy.run_path(str(DOCS / "snippets" / "captured_table.py"))
    view, source = shown["last_purchase"], shown["purchases"]
    # The table of this test's own, and its files in a folder.
    source.table = make_table({"customer_id": "N", "purchased_at": "N"})
    source.warehouse = f"{tmp_path}/history/purchases"
    store, warned = apply(view, entities=[shown["customer"]])
    assert warned == []
    found = store.get_feature_view("last_purchase").batch_source
    assert found.tombstones is not None
    assert ViewSettings.from_view(store.get_feature_view("last_purchase")).deletes == "ignore"


def test_a_bucket_of_the_history_that_is_not_there_is_named(make_table, open_store, moto_endpoint):
    place = "s3://no-such-bucket-here/history/purchases"
    source = captured.source_of(table=make_table(), history=place)
    store = open_store(
        "no_bucket",
        online={"endpoint_url": moto_endpoint, "region": REGION},
        offline={"catalog": captured.CATALOG, "endpoint_url": moto_endpoint},
    )
    with pytest.raises(ResourceNotFoundError) as error:
        store.apply([captured.CUSTOMER, source, captured.view_of(source)])
    said = str(error.value)
    assert said.startswith(
        f"DynamoDBTableSource `purchases` has `history={place}`: s3 PutObject on {place}/metadata/"
    )
    assert " (no_bucket.purchases): NoSuchBucket: The specified bucket does not exist" in said
    assert said.endswith("or make the bucket: `aws s3 mb s3://no-such-bucket-here`.")


@pytest.mark.parametrize(
    ("there", "declared", "refused"),
    [
        (Float64, Int32, ("int32", "double")),
        (Int64, Int32, ("int32", "int64")),
        (Int64, String, ("string", "int64")),
        (Int32, Int64, None),
        (Float64, Float64, None),
    ],
)
def test_a_type_that_the_history_does_not_become_is_refused(
    make_table, apply, there, declared, refused
):
    def view(kind: Any) -> FeatureView:
        source = captured.source_of(
            table=table,
            schema=[
                Field(name="customer", dtype=Int64),
                Field(name="bought", dtype=UnixTimestamp),
                Field(name="value", dtype=kind),
            ],
        )
        made = captured.view_of(source)
        made.features[0].dtype = kind
        return made

    table = make_table()
    store, _ = apply(view(there))  # there is no history yet, and nothing to compare
    other = view(declared)
    handle = TableHandle.from_source(other.batch_source, store.config)
    before = handle.load().schema()
    if refused is None:
        store.apply([captured.CUSTOMER, other.batch_source, other])
    else:
        wanted, kept = refused
        with pytest.raises(CaptureError) as error:
            store.apply([captured.CUSTOMER, other.batch_source, other])
        assert str(error.value) == (
            f"Source `purchases`: `schema` declares `value` as {wanted}, but its history has it "
            f"as {kept}, which no value of it fits for certain. Declare it as it was; or give the "
            "new column another name: `Field(..., tags={'attribute': 'value'})`."
        )
        found = {field.name: field.dtype for field in store.get_data_source("purchases").schema}
        assert found["value"] == there
    # The history gets what is declared with the next capture.
    assert handle.load().schema() == before
