"""Changes of a real stream go online: what views answer is what `feast materialize` writes of the
same history, on both DynamoDBs."""

from __future__ import annotations

import datetime as dt
import itertools
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import boto3
import pytest
import stream_events
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, PushSource, ValueType
from feast.types import Array, Bool, Bytes, Float64, Int64, Json, Map, Set, String, UnixTimestamp
from feast.types import Decimal as FeastDecimal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repos import REGION, table_names

from feast_dynamo_ext import DynamoDBTableSource, ViewSettings, cohort
from feast_dynamo_ext.capture.captured import columns_of, worker_of
from feast_dynamo_ext.capture.dynamo_table import DynamoTable
from feast_dynamo_ext.capture.history import CapturedHistory
from feast_dynamo_ext.capture.stream.online_changes import OnlineChanges
from feast_dynamo_ext.capture.stream.stream_records import converted, stream_records
from feast_dynamo_ext.capture.stream.stream_worker import StreamSettings
from feast_dynamo_ext.capture.values.change_rows import RecordReader
from feast_dynamo_ext.errors import ConfigError, ResourceNotFoundError

UTC = dt.timezone.utc
BOTH = ("customer", "order")
SCHEMA = [
    Field(name="customer", dtype=String),
    Field(name="order", dtype=Int64),
    Field(name="at", dtype=UnixTimestamp),
    Field(name="amount", dtype=Int64),
    Field(name="shop", dtype=String, tags={"attribute": "Shop name"}),
    Field(name="price", dtype=FeastDecimal),
    Field(name="share", dtype=Float64),
    Field(name="photo", dtype=Bytes),
    Field(name="paid", dtype=Bool),
    Field(name="colours", dtype=Set(String)),
    Field(name="sizes", dtype=Array(Int64)),
    Field(name="labels", dtype=Map),
    Field(name="raw", dtype=Json),
]
FEATURES = [each for each in SCHEMA if each.name not in {*BOTH, "at"}]


def views_of(source: DynamoDBTableSource) -> list[FeatureView]:
    """One known by the table's key, with another name of a column; coarser; with a ttl; pushed."""
    order = Entity(name="order", join_keys=["order"], value_type=ValueType.INT64)
    customer = Entity(name="customer", join_keys=["buyer"], value_type=ValueType.STRING)
    keys = [Field(name="buyer", dtype=String), Field(name="order", dtype=Int64)]
    ignores = ViewSettings(deletes="ignore").tags()
    more = {"schema": [*keys, *FEATURES], "source": source}
    hour = dt.timedelta(hours=1)
    return [
        order,
        customer,
        FeatureView(name="items", entities=[customer, order], **more),
        FeatureView(name="items_ttl", entities=[customer, order], ttl=hour, **more),
        FeatureView(
            name="customers",
            entities=[customer],
            schema=[keys[0], *FEATURES],
            source=source,
            tags=ViewSettings(deletes="ignore", cohorts=("amount", "paid")).tags(),
        ),
        FeatureView(
            name="pushed",
            entities=[customer],
            schema=[keys[0], *FEATURES],
            source=PushSource(name=f"{source.name}_push", batch_source=source),
            tags=ignores,
            ttl=hour,
        ),
        FeatureView(name="all", entities=[], schema=FEATURES, source=source, tags=ignores),
    ]


VIEWS = ("items", "items_ttl", "customers", "pushed", "all")


@dataclass
class Shop:
    """A repo, its application's table, and what follows the stream; another repo materializes."""

    store: FeatureStore
    other: FeatureStore
    client: Any
    streams: Any
    source: DynamoDBTableSource
    seen: int = 0
    log: list[Any] = field(default_factory=list)

    @property
    def table(self) -> str:
        return self.source.table

    def put(self, customer: str, order: int, at: float, **more: Any) -> None:
        item = {
            "customer": {"S": customer},
            "order": {"N": str(order)},
            "at": {"N": f"{at:.3f}"},
            **more,
        }
        self.client.put_item(TableName=self.table, Item=item)

    def delete(self, customer: str, order: int) -> None:
        key = {"customer": {"S": customer}, "order": {"N": str(order)}}
        self.client.delete_item(TableName=self.table, Key=key)

    def records(self) -> list[Any]:
        """Those of the stream that were not looked at."""
        found = stream_events.stream_of(self.client, self.streams, self.table)
        new, self.seen = found[self.seen :], len(found)
        return new

    def rows(self, records: list[Any]) -> Any:
        columns = columns_of(self.source, DynamoTable.from_table(self.client, self.source))
        return converted(RecordReader(columns), stream_records(records, "shard"))

    def follow(self, *, cuts: tuple[int, ...] = ()) -> None:
        """Bring what is new online in batches; into the history at once."""
        records = self.records()
        online = OnlineChanges.from_store(self.store, self.source)
        for start, end in itertools.pairwise([0, *cuts, len(records)]):
            applied = online.apply(self.rows(records[start:end]).rows)
            applied.checked()
        history = CapturedHistory.from_source(self.source, self.other.config)
        history.add_changes(self.rows(records))

    def answers(self, store: FeatureStore, view: str) -> list[dict[str, Any]]:
        """What all entities of the tests are answered."""
        rows = [{"buyer": name, "order": order} for name in "abc" for order in (1, 2)]
        refs = [f"{view}:{each.name}" for each in FEATURES]
        found = store.get_online_features(refs, rows).to_dict()
        return [
            dict(zip(found, cells, strict=True)) for cells in zip(*found.values(), strict=True)
        ]

    def agree(self, views: tuple[str, ...] = VIEWS) -> dict[str, list[dict[str, Any]]]:
        """What the stream brought online is what a materialization of the history does."""
        now = dt.datetime.now(UTC)
        self.other.materialize(dt.datetime(2000, 1, 1, tzinfo=UTC), now + dt.timedelta(hours=1))
        found = {view: self.answers(self.store, view) for view in views}
        for view in views:
            assert found[view] == self.answers(self.other, view), view
        return found


@pytest.fixture
def shop(open_store: Any, dynamodb: Any, tmp_path: Any) -> Any:
    """Two repos over one captured table: one follows its stream, the other materializes."""

    def open_shop() -> Shop:
        number = uuid.uuid4().hex[:12]
        name = f"orders{number}"
        places = {"region_name": REGION, "endpoint_url": dynamodb.endpoint}
        client = boto3.client("dynamodb", **places)
        client.create_table(
            TableName=name,
            KeySchema=[
                {"AttributeName": "customer", "KeyType": "HASH"},
                {"AttributeName": "order", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[
                {"AttributeName": "customer", "AttributeType": "S"},
                {"AttributeName": "order", "AttributeType": "N"},
            ],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )
        source = DynamoDBTableSource(
            name=name,
            table=name,
            event_time="at",
            event_time_unit="s",
            schema=SCHEMA,
            history=f"{tmp_path}/history/{name}",
            field_mapping={"customer": "buyer"},
        )
        stores = []
        for kind in ("stream", "batch"):
            store = open_store(
                f"{kind}{number}",
                online={"endpoint_url": dynamodb.endpoint, "region": REGION},
                offline={"catalog": {"type": "sql", "uri": f"sqlite:///{tmp_path}/{name}.db"}},
            )
            store.apply(views_of(source))
            stores.append(store)
        streams = boto3.client("dynamodbstreams", **places)
        return Shop(*stores, client, streams, source)

    return open_shop


NOW = dt.datetime.now(UTC).timestamp()
ALL_TYPES = {
    "amount": {"N": "9007199254740993"},
    "Shop name": {"S": "é\n"},
    "price": {"N": "12345678901234567890.123456789012345678"},
    "share": {"N": "0.1"},
    "photo": {"B": b"\x00\xff"},
    "paid": {"BOOL": True},
    "colours": {"SS": ["red", "blue"]},
    "sizes": {"L": [{"N": "1"}, {"N": "2"}]},
    "labels": {"M": {"k": {"S": "v"}}},
    "raw": {"M": {"a": {"L": [{"N": "1.50"}, {"NULL": True}]}}},
}


def test_values_of_all_types_are_those_of_a_materialization(shop):
    here = shop()
    here.put("a", 1, NOW - 60, **ALL_TYPES)
    here.put("b", 2, NOW - 60)
    here.follow()
    (found, *_) = here.agree()["items"]
    assert found["amount"] == 9007199254740993
    assert found["price"] == Decimal("12345678901234567890.123456789012345678")
    assert (found["shop"], found["photo"], found["paid"]) == ("é\n", b"\x00\xff", True)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from([1, 2]),
        # Seconds before now: moved back and forth; past the ttl; none is a deletion.
        st.sampled_from([None, 10, 50, 100, 5_000, 6_000]),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS, st.lists(st.integers(0, 10), max_size=3))
def test_after_any_changes_in_any_batches_views_answer_as_materialized(shop, actions, cuts):
    here = shop()
    for number, (customer, order, ago) in enumerate(actions):
        if ago is None:
            here.delete(customer, order)
        else:
            here.put(customer, order, NOW - ago, amount={"N": str(number)})
    # Deletions of what is not there, and puts of what is, are no changes.
    here.follow(cuts=tuple(sorted(min(cut, len(actions)) for cut in cuts)))
    answers = here.agree(("items", "customers", "all"))
    there = {(row["buyer"], row["order"]): row["amount"] for row in answers["items"]}
    for customer, order in itertools.product("abc", (1, 2)):
        key = {"customer": {"S": customer}, "order": {"N": str(order)}}
        item = here.client.get_item(TableName=here.table, Key=key).get("Item")
        assert there[customer, order] == (item and int(item["amount"]["N"]))


def test_a_deletion_deletes_but_not_of_a_coarser_view(shop):
    here = shop()
    here.put("a", 1, NOW - 60, amount={"N": "1"})
    here.put("a", 2, NOW - 50, amount={"N": "2"})
    here.follow()
    here.delete("a", 2)
    here.follow()
    answers = here.agree()
    assert [row["amount"] for row in answers["items"][:2]] == [1, None]
    assert [row["amount"] for row in answers["customers"][:2]] == [2, 2]
    assert [row["amount"] for row in answers["pushed"][:2]] == [2, 2]


def test_rows_are_in_the_cohorts_that_a_materialization_puts_them_in(shop):
    here = shop()
    here.put("a", 1, NOW - 60, amount={"N": "7"}, paid={"BOOL": False})
    here.put("b", 1, NOW - 50, amount={"N": "7"}, paid={"BOOL": True})
    here.put("c", 1, NOW - 40, amount={"N": "7"})
    here.follow()
    here.put("b", 2, NOW - 30, paid={"BOOL": True})
    here.follow()
    here.agree()
    for store in (here.store, here.other):
        cohorts = [
            [each["buyer"] for each in cohort(store, "customers", **by)]
            for by in ({"amount": 7}, {"paid": True}, {"paid": False}, {"amount": 8})
        ]
        assert cohorts == [["c", "a"], ["b"], ["a"], []]


def test_an_event_that_moves_back_replaces_but_not_in_a_coarser_view(shop):
    here = shop()
    here.put("a", 1, NOW - 50, amount={"N": "1"})
    here.follow()
    here.put("a", 1, NOW - 90, amount={"N": "2"})
    here.follow()
    answers = here.agree()
    assert answers["items"][0]["amount"] == 2
    assert answers["items_ttl"][0]["amount"] == 2
    assert answers["customers"][0]["amount"] == 1


def test_an_event_that_moves_out_of_the_ttl_is_no_more(shop):
    here = shop()
    here.put("a", 1, NOW - 50, amount={"N": "1"})
    here.put("b", 1, NOW - 5_000, amount={"N": "3"})
    here.follow()
    here.put("a", 1, NOW - 5_000, amount={"N": "2"})
    here.follow()
    answers = here.agree()
    assert answers["items"][0]["amount"] == 2
    assert [row["amount"] for row in answers["items_ttl"]] == [None] * 6
    assert answers["items_ttl"] == here.answers(here.other, "items_ttl")


def test_a_batch_that_comes_again_changes_nothing_and_deletes_stay(shop):
    here = shop()
    here.put("a", 1, NOW - 60, amount={"N": "1"})
    here.put("b", 1, NOW - 60, amount={"N": "1"})
    here.delete("a", 1)
    records = here.records()
    online = OnlineChanges.from_store(here.store, here.source)
    rows = here.rows(records).rows
    first, again = online.apply(rows), online.apply(rows)
    assert [each.deleted for each in first.views][:2] == [1, 1]
    assert [row["amount"] for row in here.answers(here.store, "items")] == [
        None, None, 1, None, None, None,
    ]  # fmt: skip
    assert again.checked() is again


def test_what_is_too_far_ahead_or_too_large_holds_up_nothing_else(shop, caplog):
    here = shop()
    here.put("a", 1, NOW - 60, amount={"N": "1"})
    here.put("b", 1, NOW + 10 * 86_400, amount={"N": "2"})
    here.put("c", 1, NOW - 60, amount={"N": "3"})
    records = here.records()
    # An item of DynamoDB's is no larger than ours: it takes a key of ours that is.
    long = "x" * 2_040
    here.put(long, 1, NOW - 60, amount={"N": "4"})
    records += here.records()
    online = OnlineChanges.from_store(here.store, here.source)
    applied = online.apply(here.rows(records).rows)
    by_view = {each.view: each for each in applied.views}
    assert applied.checked().total.failed == frozenset()
    assert by_view["items"].passed_over == 2
    assert by_view["items"].written == 2
    assert "EntityKeyError" in caplog.text
    assert long not in caplog.text
    answers = here.answers(here.store, "items")
    assert [row["amount"] for row in answers] == [1, None, None, None, 3, None]


def test_which_changes_failed_is_said_where_a_table_is_gone(shop):
    here = shop()
    here.put("a", 1, NOW - 60, amount={"N": "1"})
    here.delete("a", 1)
    here.put("b", 1, NOW - 60, amount={"N": "1"})
    records = here.records()
    online = OnlineChanges.from_store(here.store, here.source)
    (table,) = {view.table for view in online.views if view.view.name == "items"}
    here.client.delete_table(TableName=table)
    rows = here.rows(records).rows
    applied = online.apply(rows)
    with pytest.raises(ResourceNotFoundError):
        applied.checked()
    assert applied.total.failed == {record["eventID"] for record in records}
    assert applied.total.written == sum(each.written for each in applied.views)
    by_view = {each.view: each for each in applied.views}
    assert by_view["items_ttl"].failed == frozenset()
    assert by_view["items_ttl"].written == 1
    nothing = online.apply(rows.slice(0, 0)).checked()
    assert [each.view for each in nothing.views] == [view.view.name for view in online.views]


def test_vectors_of_precomputed_services_are_renewed(shop):
    here = shop()
    service = FeatureService(
        name="fast",
        features=[here.store.get_feature_view("items")[["amount"]]],
        precompute_online=True,
    )
    here.store.apply([service])
    here.put("a", 1, NOW - 60, amount={"N": "1"})
    here.follow()
    here.store.materialize(dt.datetime(2000, 1, 1, tzinfo=UTC), dt.datetime.now(UTC))

    def answer() -> Any:
        rows = [{"buyer": "a", "order": 1}]
        service = here.store.get_feature_service("fast")
        return here.store.get_online_features(service, rows).to_dict()["amount"]

    assert answer() == [1]
    here.put("a", 1, NOW - 50, amount={"N": "2"})
    here.follow()
    assert answer() == [2]
    here.delete("a", 1)
    here.follow()
    assert answer() == [None]


def test_another_online_store_is_refused_and_a_worker_takes_history_alone(
    open_store, tmp_path, shop
):
    here = shop()
    other = open_store(
        "other",
        online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
        offline={
            "endpoint_url": here.client.meta.endpoint_url,
            "catalog": {"type": "sql", "uri": f"sqlite:///{tmp_path}/other.db"},
        },
    )
    with pytest.raises(ConfigError, match=r"is SqliteOnlineStore\..*set `online_store`"):
        OnlineChanges.from_store(other, here.source)
    table = DynamoTable.from_table(here.client, here.source)
    worker = worker_of(here.source, table, other, StreamSettings())
    here.put("a", 1, NOW - 60, amount={"N": "1"})
    made = worker.convert(here.records(), "shard")
    assert made.rows.num_rows == 1
    tables = table_names(here.client)
    worker.write_online(made)
    assert table_names(here.client) == tables
    assert not (tmp_path / "online.db").exists()
