"""Events of a series are kept each, and lists and aggregates are computed of them at the request.

The table is looked at by boto3; what is answered, by Python over the events that were written.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math

import pandas as pd
import pytest
from feast import FeatureService, Field
from feast.aggregation import Aggregation
from feast.data_source import PushMode
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bytes, Float64, Int64, UnixTimestamp
from series_shop import CUSTOMER, DAY, SeriesShop, lists_and_sums, purchases_view, view_of

from feast_dynamo_ext import Series, ViewSettings, recent, windows
from feast_dynamo_ext.dynamo.series_read import as_of
from feast_dynamo_ext.errors import ConfigError, ItemTooLargeError

pytestmark = pytest.mark.server


NAME = "purchases"


def opened(open_store, dynamodb, folder, **series):
    """A shop with purchases, and views of lists and windows over them."""
    shop = SeriesShop.open(open_store, dynamodb, folder)
    base = purchases_view(NAME, folder, keep_for=90 * DAY, **series)
    shop.apply(base, *lists_and_sums(base))
    return shop


@pytest.fixture
def repo(open_store, dynamodb, tmp_path):
    made = opened(open_store, dynamodb, tmp_path)
    yield made
    made.store.teardown()


def test_events_are_kept_and_listed(repo):
    repo.buy(NAME, *[(1, day, day, 10.0 + day, f"c{day % 2}") for day in range(5)])
    repo.buy(NAME, (2, 40, 1, 5.5, None), (2, 40, 2, 6.5, "b"))
    assert len(repo.items(NAME)) == 7
    name = NAME
    found = repo.read(
        [
            f"{name}_last:amount_last_3",
            f"{name}_last:category_last_3",
            f"{name}_last:event_time_last_3",
            f"{name}_spend:sum_amount_30d",
            f"{name}_spend:mean_amount_30d",
            f"{name}_spend:count_distinct_category_30d",
            f"{name}_spend:count_7d",
            f"{name}_spend:max_amount_90d",
            f"{name}_spend:time_since_last_90d",
        ],
        1,
        2,
        3,
        None,
    )
    micros = [int((repo.now - day * DAY).timestamp() * 1e6) for day in (0, 1, 2, 40)]
    assert found == {
        "customer_id": [1, 2, 3, None],
        "amount_last_3": [[10.0, 11.0, 12.0], [6.5, 5.5], [], None],
        "category_last_3": [["c0", "c1", "c0"], ["b", "?"], [], None],
        "event_time_last_3": [micros[:3], [micros[3]] * 2, [], None],
        "sum_amount_30d": [60.0, None, None, None],
        "mean_amount_30d": [12.0, None, None, None],
        "count_distinct_category_30d": [2, 0, 0, None],
        "count_7d": [5, 0, 0, None],
        "max_amount_90d": [14.0, 6.5, None, None],
        "time_since_last_90d": [0.0, 40 * 86400.0, None, None],
    }


def test_an_event_is_one_item_however_often_it_is_written(repo):
    for amount in (1.0, 2.0):
        repo.buy(NAME, (1, 1, 7, amount, "a"), (1, 1, 8, amount, "a"))
    assert len(repo.items(NAME)) == 2
    name = NAME
    assert repo.read([f"{name}_last:amount_last_3"], 1)["amount_last_3"] == [[2.0, 2.0]]
    assert repo.read([f"{name}:amount", f"{name}:purchase_id"], 1) == {
        "customer_id": [1],
        "amount": [2.0],
        "purchase_id": [8],
    }


def test_late_events_stand_in_their_place(repo):
    repo.buy(NAME, (1, 1, 2, 2.0, "a"))
    repo.buy(NAME, (1, 3, 1, 1.0, "b"))
    name = NAME
    assert repo.read([f"{name}_last:amount_last_3"], 1)["amount_last_3"] == [[2.0, 1.0]]
    assert math.isclose(repo.read([f"{name}_spend:sum_amount_30d"], 1)["sum_amount_30d"][0], 3.0)


def test_all_events_of_a_window_are_materialized_once_each(repo):
    rows = [
        (customer, day, number, float(100 * customer + number), "ab"[number % 2], 0)
        for customer in range(1, 8)
        for day in (0, 3, 50)
        for number in range(4)
    ]
    corrected = [(1, 3, 2, -1.0, None, 2), (1, 3, 2, -2.0, None, 1)]
    gone = (1, 95, 1, 1.0, "a", 0)
    for _ in range(2):
        repo.materialize(NAME, *rows, *corrected, gone)
        assert len(repo.items(NAME)) == len(rows)
    name = NAME
    found = repo.read([f"{name}_spend:count_7d", f"{name}_spend:sum_amount_30d"], 1, 7)
    assert found["count_7d"] == [8, 8]
    assert found["sum_amount_30d"] == [2 * 406.0 - 102.0 - 1.0, 5612.0]


def test_times_are_listed_in_microseconds_and_bytes_are_filled_as_in_training(
    open_store, dynamodb, tmp_path
):
    shop = SeriesShop.open(open_store, dynamodb, tmp_path)
    tags = ViewSettings(series=Series(tie_breaker="number")).tags()
    base = view_of(
        "letters", tmp_path, tags, dt.timedelta(0), number=Int64, sent=UnixTimestamp, seal=Bytes
    )
    lists = recent(
        base, name="last", last=2, features=["sent", "seal"], fill={"sent": -1, "seal": "?"}
    )
    ends = windows(
        base,
        name="ends",
        aggregations=[Aggregation(column="sent", function="max", time_window=2 * DAY)],
    )
    shop.apply(base, lists, ends)
    sent = dt.datetime(1960, 5, 1, tzinfo=dt.timezone.utc)
    rows = shop.rows(("number", "sent", "seal"), [(1, 0, 1, sent, None), (1, 1, 2, None, b"s")])
    frame = pd.DataFrame(rows)
    frame.to_parquet(f"{tmp_path}/letters.parquet")
    shop.store.push("letters_push", frame, to=PushMode.ONLINE)
    names = ["last:sent_last_2", "last:seal_last_2", "ends:max_sent_2d"]
    expected = {
        "sent_last_2": [int(sent.timestamp()) * 10**6, -1],
        "seal_last_2": [b"?", b"s"],
        "max_sent_2d": sent,
    }
    online = shop.read(names, 1)
    entities = pd.DataFrame({"customer_id": [1], "event_timestamp": [shop.now]})
    training = shop.store.get_historical_features(entities, names).to_arrow().to_pylist()[0]
    for name, value in expected.items():
        assert online[name] == [value]
        assert training[name] == value
    shop.store.teardown()


def test_rows_are_not_written_to_derived_views(repo):
    path = repo.folder / f"{NAME}.parquet"
    repo.materialize(NAME, (1, 1, 1, 10.0, "a", 0))
    event = pd.read_parquet(path)
    spend = f"{NAME}_spend"
    refused = f"`{spend}` is computed of the events of `{NAME}`"
    with pytest.raises(ConfigError, match=refused):
        repo.store.write_to_offline_store(spend, event)
    assert len(pd.read_parquet(path)) == 1
    sums = {field.name: 1 for field in repo.store.get_feature_view(spend).features}
    with pytest.raises(ConfigError, match=refused):
        repo.store.write_to_online_store(spend, event.assign(**sums))


def test_services_and_on_demand_views_take_them_as_any_other(repo):
    name, store = NAME, repo.store
    repo.buy(NAME, (1, 1, 1, 10.0, "a"), (1, 2, 2, 20.0, "b"))
    base, spend = store.get_feature_view(name), store.get_feature_view(f"{name}_spend")

    @on_demand_feature_view(
        sources=[spend], schema=[Field(name="doubled", dtype=Float64)], mode="python"
    )
    def computed(inputs):
        return {"doubled": [2 * each for each in inputs["sum_amount_30d"]]}

    service = FeatureService(name="scores", features=[base[["amount"]], spend, computed])
    store.apply([CUSTOMER, base, spend, computed, service])
    wanted = store.get_feature_service("scores")
    rows = [{"customer_id": 1}]
    with as_of(repo.now):
        found = store.get_online_features(wanted, rows)
        same = asyncio.run(store.get_online_features_async(wanted, rows))
        full = store.get_online_features(wanted, rows, full_feature_names=True).to_dict()
    assert found.to_dict() == same.to_dict()
    answered = found.to_dict()
    assert answered["doubled"] == [60.0]
    assert answered["amount"] == full[f"{name}__amount"] == [10.0]
    assert answered["count_7d"] == full[f"{name}_spend__count_7d"] == [2]
    names = list(found.proto.metadata.feature_names.val)
    for feature in ("amount", "count_7d"):
        (stamp,) = found.proto.results[names.index(feature)].event_timestamps
        assert stamp.ToDatetime(dt.timezone.utc) == repo.now - DAY


def test_materialized_and_pushed_events_have_the_same_orders_and_cohorts(
    open_store, dynamodb, tmp_path
):
    repo = opened(
        open_store, dynamodb, tmp_path, orders=("amount", "category"), cohorts=("category",)
    )
    rows = [(1, 1, 1, 5.0, "b"), (1, 2, 2, -3.5, "a"), (1, 3, 3, 4.0, None), (2, 1, 4, 1.0, "a")]
    repo.materialize(NAME, *((*row, 0) for row in rows))
    made = sorted(repo.items(NAME), key=repr)
    for item in made:
        repo.client.delete_item(
            TableName=repo.table(NAME), Key={name: item[name] for name in "ks"}
        )
    repo.buy(NAME, *rows)
    pushed = sorted(repo.items(NAME), key=repr)
    # A push keeps rows a day at least; when a row may go is all that differs.
    assert [{**item, "x": 0} for item in made] == [{**item, "x": 0} for item in pushed]
    found = repo.client.query(
        TableName=repo.table(NAME),
        IndexName="cohort_category",
        KeyConditionExpression="g_category = :a",
        ExpressionAttributeValues={":a": {"S": "=a"}},
    )
    assert found["Count"] == 2
    ordered = repo.client.query(
        TableName=repo.table(NAME),
        IndexName="order_amount",
        KeyConditionExpression="k = :k",
        ExpressionAttributeValues={":k": next(i["k"] for i in made if len(i["s"]["B"]) > 8)},
    )
    assert ordered["Count"] in (1, 3)
    # An event whose category is taken back leaves the cohort and the order.
    repo.buy(NAME, (1, 1, 1, 5.0, None))
    (item,) = [each for each in repo.items(NAME) if each.get("o_amount") == made_of(made, 5.0)]
    assert not {"g_category", "o_category"} & item.keys()
    repo.store.teardown()


def test_an_event_that_is_too_large_with_its_orders_is_refused_before_any_is_written(
    open_store, dynamodb, tmp_path
):
    repo = opened(open_store, dynamodb, tmp_path, orders=("amount", "purchase_id"))
    fits, small = (1, 1, 1, 5.0, "x" * 135_000), (2, 1, 1, 5.0, "x")
    repo.buy(NAME, fits)
    (item,) = repo.items(NAME)
    repo.client.delete_item(TableName=repo.table(NAME), Key={name: item[name] for name in "ks"})
    if dynamodb.name == "dynamodb_local":  # moto has no such limit
        item["v"]["B"] += b"x" * 2_000
        with pytest.raises(repo.client.exceptions.ClientError, match="Item size"):
            repo.client.put_item(TableName=repo.table(NAME), Item=item)
    large = (1, 1, 2, 5.0, "x" * 137_000)
    with pytest.raises(ItemTooLargeError, match="as much for each of its 2 orders"):
        repo.buy(NAME, small, large)
    with pytest.raises(ItemTooLargeError, match="as much for each of its 2 orders"):
        repo.materialize(NAME, (*small, 0), (*large, 0))
    assert repo.items(NAME) == []
    # What has no value in an order is not in its index.
    repo.buy(NAME, (1, 1, 2, None, "x" * 137_000))
    assert len(repo.items(NAME)) == 1
    repo.store.teardown()


def test_an_entity_that_sets_the_pace_of_a_run_is_said(repo, capsys):
    large = "x" * 390_000  # 381 write units
    days = [number / 8 for number in range(160)]
    repo.materialize(NAME, *((1, day, at, 1.0, large, 0) for at, day in enumerate(days)))
    (report,) = repo.store.provider.batch_engine.report.views
    assert report.written == 160
    assert list(report.hot) == [""]
    assert 160 * 381 <= report.hot[""] <= 160 * 382
    assert f"{NAME}: one entity took {report.hot['']:,} write units" in capsys.readouterr().out


def made_of(items, amount):
    """The order attribute of the event of an amount."""
    from feast_dynamo_ext.dynamo.layouts.series import float_bytes

    return next(
        each["o_amount"] for each in items if each["o_amount"]["B"].startswith(float_bytes(amount))
    )
