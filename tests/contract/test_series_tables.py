"""Tables of series: their keys and indexes, and what `feast apply` changes and refuses of them."""

from __future__ import annotations

import datetime as dt
import itertools
import logging
from typing import Any

import boto3
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.aggregation import Aggregation
from feast.types import Array, Float64, Int64, String
from repos import table_names

from feast_dynamo_ext import ViewSettings
from feast_dynamo_ext.derived import recent, windows
from feast_dynamo_ext.errors import ConfigError, TableLayoutError
from feast_dynamo_ext.series_settings import Series

pytestmark = pytest.mark.server

NUMBERS = itertools.count()
CUSTOMER = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
DAY = dt.timedelta(days=1)


def view(name: str = "purchases", *, settings: ViewSettings | None = None, **series: Any):
    given = {"tie_breaker": "purchase_id", **series}
    own = settings if settings is not None else ViewSettings(series=Series(**given))
    source = FileSource(name="history", path="history.parquet", timestamp_field="ts")
    return FeatureView(
        name=name,
        entities=[CUSTOMER],
        schema=[
            Field(name="customer_id", dtype=Int64),
            Field(name="purchase_id", dtype=Int64),
            Field(name="amount", dtype=Float64),
            Field(name="category", dtype=String),
            Field(name="vector", dtype=Array(Float64)),
            Field(name="größe", dtype=Int64),
        ],
        source=source,
        ttl=dt.timedelta(0),
        tags=own.tags(),
    )


def opened(open_store, endpoint):
    online = {"region": "us-east-1", "endpoint_url": endpoint}
    made = open_store(f"tables{next(NUMBERS)}", online=online)
    made.client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=endpoint)
    yield made
    made.teardown()


@pytest.fixture
def store(open_store, dynamodb):
    yield from opened(open_store, dynamodb.endpoint)


@pytest.fixture(
    params=[
        "moto_endpoint",
        pytest.param("new_dynamodb_local", marks=pytest.mark.dynamodb_local),
    ]
)
def lone_store(request, open_store):
    """On a DynamoDB whose tables are this test's alone, or on moto."""
    yield from opened(open_store, request.getfixturevalue(request.param))


def described(store: Any, name: str = "purchases") -> dict[str, Any]:
    return store.client.describe_table(TableName=f"{store.project}.{name}")["Table"]


def indexes(store: Any) -> dict[str, list[tuple[str, str]]]:
    table = described(store)
    found = (*table.get("LocalSecondaryIndexes", ()), *table.get("GlobalSecondaryIndexes", ()))
    return {
        index["IndexName"]: [(key["AttributeName"], key["KeyType"]) for key in index["KeySchema"]]
        for index in found
    }


def test_a_table_is_made_with_its_indexes(store):
    store.apply([CUSTOMER, view(orders=("amount",), cohorts=("category",), keep_for=90 * DAY)])
    table = described(store)
    assert [(key["AttributeName"], key["KeyType"]) for key in table["KeySchema"]] == [
        ("k", "HASH"),
        ("s", "RANGE"),
    ]
    assert indexes(store) == {
        "order_amount": [("k", "HASH"), ("o_amount", "RANGE")],
        "cohort_category": [("g_category", "HASH"), ("s", "RANGE")],
    }
    # A second time there is nothing to do.
    store.apply([CUSTOMER, view(orders=("amount",), cohorts=("category",), keep_for=90 * DAY)])


def test_cohorts_come_and_go_on_a_living_table(lone_store, caplog):
    caplog.set_level(logging.INFO)
    lone_store.apply([CUSTOMER, view()])
    assert indexes(lone_store) == {}
    lone_store.apply([CUSTOMER, view(cohorts=("category", "purchase_id"))])
    assert set(indexes(lone_store)) == {"cohort_category", "cohort_purchase_id"}
    assert "cohorts: none -> category, purchase_id" in caplog.text
    lone_store.apply([CUSTOMER, view(cohorts=("purchase_id",))])
    assert set(indexes(lone_store)) == {"cohort_purchase_id"}


def test_newest_rows_have_cohorts_too(store):
    store.apply([CUSTOMER, view(settings=ViewSettings(cohorts=("category",)))])
    assert indexes(store) == {"cohort_category": [("g_category", "HASH"), ("t", "RANGE")]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"orders": ("amount", "purchase_id")}, "the order by `purchase_id` needs a local index"),
        ({"tie_breaker": "amount"}, "the tie-breaker is declared as amount, and the events of"),
        ({"settings": ViewSettings()}, "is declared to keep the newest rows, and DynamoDB table"),
    ],
    ids=["order", "tie_breaker", "layout"],
)
def test_what_no_table_changes_is_refused_with_the_way_out(store, changed, said):
    store.apply([CUSTOMER, view(orders=("amount",))])
    before = described(store)["KeySchema"], indexes(store)
    given = {"orders": ("amount",), **changed}
    settings = given.pop("settings", None)
    with pytest.raises(TableLayoutError, match=said) as caught:
        store.apply([CUSTOMER, view(settings=settings, **given)])
    assert "iew another name" in str(caught.value)
    assert "delete the table" in str(caught.value)
    assert (described(store)["KeySchema"], indexes(store)) == before


def test_a_table_of_newest_rows_does_not_become_a_series(store):
    store.apply([CUSTOMER, view(settings=ViewSettings())])
    with pytest.raises(TableLayoutError, match="is declared to keep every event"):
        store.apply([CUSTOMER, view()])


@pytest.mark.parametrize(
    ("series", "said"),
    [
        ({"tie_breaker": ()}, "has no `tie_breaker`: of two events of one entity"),
        ({"tie_breaker": "purchase"}, "`tie_breaker` names `purchase`, which is no feature"),
        ({"tie_breaker": "vector"}, "`tie_breaker` names `vector`, a DOUBLE_LIST; it takes"),
        ({"orders": ("vector",)}, "`orders` names `vector`, a DOUBLE_LIST; it takes"),
        ({"cohorts": ("amount",)}, "`cohorts` names `amount`, a DOUBLE; it takes BOOL, INT32"),
        ({"cohorts": ("größe",)}, "`cohorts` names `größe`, of which DynamoDB makes no index"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(store, series, said):
    with pytest.raises(ConfigError, match=said):
        store.apply([CUSTOMER, view(**series)])
    assert table_names(store.client).count(f"{store.project}.purchases") == 0


def test_derived_views_have_no_table(store):
    base = view(keep_for=30 * DAY)
    spend = windows(
        base,
        name="spend",
        aggregations=[Aggregation(column="amount", function="sum", time_window=30 * DAY)],
    )
    last = recent(base, name="last", last=2, features=["amount"])
    store.apply([CUSTOMER, base, spend, last])
    tables = table_names(store.client)
    assert [name for name in tables if name.startswith(f"{store.project}.")] == [
        f"{store.project}.purchases"
    ]
    shorter = view(keep_for=7 * DAY)
    with pytest.raises(ConfigError, match=r"of 30d is longer than the `keep_for` of .*, 7d"):
        store.apply([CUSTOMER, shorter, spend])
    with pytest.raises(ConfigError, match="which keeps the newest row of each entity alone"):
        store.apply([CUSTOMER, view(settings=ViewSettings()), spend])
    # Views of an earlier apply count as well, but for those that are removed.
    for changed in (shorter, view(settings=ViewSettings())):
        with pytest.raises(ConfigError, match=r"Feature view `(spend|last)`"):
            store.apply([CUSTOMER, changed])
    store.apply([CUSTOMER, shorter], objects_to_delete=[spend, last], partial=False)
    assert described(store)["TableStatus"] == "ACTIVE"


def test_a_precomputed_service_with_features_of_a_series_is_read_from_its_views(store, caplog):
    base = view(keep_for=30 * DAY)
    last = recent(base, name="last", last=2, features=["amount"])
    service = FeatureService(name="scores", features=[last], precompute_online=True)
    store.apply([CUSTOMER, base, last, service])
    found = store.get_online_features(store.get_feature_service("scores"), [{"customer_id": 1}])
    assert found.to_dict()["amount_last_2"] == [[]]
    assert (
        "feature service scores is read from its views: features of ['last'] are computed of "
        "events at each request"
    ) in caplog.text


def test_a_table_of_a_series_that_no_registry_knows_is_looked_at_by_its_own_keys(
    store, open_store, dynamodb, tmp_path, caplog
):
    store.apply([CUSTOMER, view()])
    online = {"region": "us-east-1", "endpoint_url": dynamodb.endpoint}
    other = open_store(store.project, online=online, registry={"path": str(tmp_path / "other.db")})
    other.teardown()
    left = [name for name in store.client.list_tables()["TableNames"] if store.project in name]
    if dynamodb.has_tags:
        assert left == []
    else:
        assert left == [f"{store.project}.purchases"]
        assert "nothing says which project made it" in caplog.text
