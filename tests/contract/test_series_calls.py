"""Series are read by call: the last events, stretches of time, and other orders."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import math
import operator
import random

import pyarrow as pa
import pytest
from feast.errors import FeatureViewNotFoundException
from feast.types import Int64
from series_shop import (
    DAY,
    SeriesShop,
    ShortPages,
    ThrottledQueries,
    customers_view,
    purchases_view,
)

from feast_dynamo_ext import online_series, online_series_async
from feast_dynamo_ext.derived import recent
from feast_dynamo_ext.errors import (
    ConfigError,
    EntityKeyError,
    FeatureNotFoundError,
    IncompleteReadError,
    RequestTooLargeError,
)
from feast_dynamo_ext.timestamps import moment_of

ROWS = [{"customer_id": 1}]


@pytest.fixture
def open_shop(open_store, dynamodb, tmp_path):
    """Opens shops with one view, `purchases`."""
    shops = []

    def opened(*, online=None, ttl=dt.timedelta(0), **series):
        shop = SeriesShop.open(open_store, dynamodb, tmp_path, **(online or {}))
        shops.append(shop)
        shop.apply(purchases_view("purchases", tmp_path, ttl, **series))
        return shop

    yield opened
    for shop in shops:
        shop.store.teardown()


def amounts(shop, rows=ROWS, **bounds):
    answer = online_series(shop.store, ["purchases:amount"], rows, **bounds)
    return answer.features["amount"]


def test_the_last_events_and_their_times(open_shop):
    shop = open_shop()
    shop.buy("purchases", *[(1, day, day, 10.0 + day, f"c{day}") for day in range(6)])
    shop.buy("purchases", (2, 3, 1, None, "x"), (2, 3, 2, 7.5, None))
    rows = [{"customer_id": each} for each in (2, 1, 3, None, 1)]
    answer = online_series(shop.store, ["purchases:category", "purchases:amount"], rows, last=3)
    assert answer.entities == {"customer_id": [2, 1, 3, None, 1]}
    assert answer.features == {
        "category": [[None, "x"], ["c0", "c1", "c2"], [], [], ["c0", "c1", "c2"]],
        "amount": [[7.5, None], [10.0, 11.0, 12.0], [], [], [10.0, 11.0, 12.0]],
    }
    assert answer.event_us == [
        shop.micros(3, 3), shop.micros(0, 1, 2), [], [], shop.micros(0, 1, 2),
    ]  # fmt: skip
    assert answer.statuses == ["found", "found", "none", "none", "found"]
    assert answer.truncated == [False] * 5
    assert len(answer) == 5
    oldest_first = online_series(shop.store, ["purchases:amount"], rows, last=3, descending=False)
    assert oldest_first.features["amount"][1] == [12.0, 11.0, 10.0]
    assert oldest_first.event_us[1] == shop.micros(2, 1, 0)


def test_dict_arrow_and_data_frame(open_shop):
    shop = open_shop()
    shop.buy("purchases", (1, 1, 1, 1.5, "a"), (1, 2, 2, None, None))
    columns = {"customer_id": [1, 9]}
    refs = ["purchases:amount", "purchases:category", "purchases:purchase_id"]
    answer = online_series(shop.store, refs, columns)
    assert answer.to_dict() == {
        "customer_id": [1, 9],
        "amount": [[1.5, None], []],
        "category": [["a", None], []],
        "purchase_id": [[1, 2], []],
        "event_time": [[shop.time(1), shop.time(2)], []],
        "status": ["found", "none"],
        "truncated": [False, False],
    }
    table = answer.to_arrow()
    assert table.schema == pa.schema(
        [
            ("customer_id", pa.int64()),
            ("amount", pa.list_(pa.float64())),
            ("category", pa.list_(pa.string())),
            ("purchase_id", pa.list_(pa.int64())),
            ("event_time", pa.list_(pa.timestamp("us", "UTC"))),
            ("status", pa.string()),
            ("truncated", pa.bool_()),
        ]
    )
    assert table.to_pydict() == answer.to_dict()
    frame = answer.to_df()
    assert list(frame.columns) == table.column_names
    assert frame["amount"].tolist() == [[1.5, None], []]
    # Types hold of no events, too.
    empty = online_series(shop.store, refs, [{"customer_id": 8}]).to_arrow()
    assert empty.schema == table.schema


def test_bounds_of_time_are_both_included(open_shop):
    shop = open_shop()
    shop.buy("purchases", *[(1, day, day, float(day)) for day in (-1, 0, 1, 2, 3, 4)])
    assert amounts(shop) == [[0.0, 1.0, 2.0, 3.0, 4.0]]  # none that are yet to come
    assert amounts(shop, end=shop.time(-1))[0][0] == -1.0
    assert amounts(shop, start=shop.time(3), end=shop.time(1)) == [[1.0, 2.0, 3.0]]
    assert amounts(shop, start=shop.time(3).replace(tzinfo=None)) == [[0.0, 1.0, 2.0, 3.0]]
    microsecond = dt.timedelta(microseconds=1)
    assert amounts(shop, start=shop.time(3) + microsecond, end=shop.time(1) - microsecond) == [
        [2.0]
    ]
    assert amounts(shop, within=2 * DAY, end=shop.time(1)) == [[1.0, 2.0, 3.0]]
    assert amounts(shop, within=1.5 * DAY) == [[0.0, 1.0]]
    assert amounts(shop, last=2, end=shop.time(2)) == [[2.0, 3.0]]
    assert amounts(shop, start=shop.time(-8), end=shop.time(-9)) == [[]]


def test_a_limit_cuts_and_says_so(open_shop):
    shop = open_shop()
    shop.buy("purchases", *[(1, day, day, float(day)) for day in range(4)], (2, 0, 0, 9.0))
    rows = {"customer_id": [1, 2]}
    refs = ["purchases:amount"]
    answer = online_series(shop.store, refs, rows, limit=3, descending=False)
    assert answer.features["amount"] == [[3.0, 2.0, 1.0], [9.0]]
    assert answer.truncated == [True, False]
    assert online_series(shop.store, refs, rows, limit=4).truncated == [False, False]
    assert online_series(shop.store, refs, rows, last=3).truncated == [False, False]


def test_ttl_and_keep_for_are_enforced_as_of_derived_views(open_shop, tmp_path):
    shop = open_shop(ttl=5 * DAY, keep_for=3 * DAY)
    shop.buy("purchases", *[(1, day + 0.5, day, float(day)) for day in range(8)])
    assert amounts(shop) == [[0.0, 1.0, 2.0]]
    assert amounts(shop, start=shop.time(90)) == [[0.0, 1.0, 2.0]]
    gone = online_series(shop.store, ["purchases:amount"], ROWS, end=shop.time(6))
    assert (gone.statuses, gone.features["amount"]) == (["none"], [[]])
    base = shop.store.get_feature_view("purchases")
    shop.apply(base, recent(base, name="lately", last=9, features=["amount"]))
    derived = shop.store.get_online_features(["lately:amount_last_9"], ROWS).to_dict()
    assert derived["amount_last_9"] == amounts(shop)


def test_another_order_and_conditions_on_it(open_shop):
    shop = open_shop(orders=("amount", "category", "purchase_id"))
    prices = [5.0, -1.0, 0.0, 5.0, 100.0, None, math.inf]
    shop.buy(
        "purchases",
        *[(1, day, 10 + day, price, f"c{day % 2}") for day, price in enumerate(prices)],
        (2, 0, 1, 50.0, "c1"),
    )

    def ordered(**more):
        return amounts(shop, order="amount", **more)[0]

    assert ordered() == [math.inf, 100.0, 5.0, 5.0, 0.0, -1.0]
    assert ordered(descending=False) == [-1.0, 0.0, 5.0, 5.0, 100.0, math.inf]
    for condition, expected in {
        ("=", 5.0): [5.0, 5.0],
        ("=", 6): [],
        ("<", 5.0): [0.0, -1.0],
        ("<=", 5): [5.0, 5.0, 0.0, -1.0],
        (">", 5.0): [math.inf, 100.0],
        (">=", 5.0): [math.inf, 100.0, 5.0, 5.0],
        ("between", (-1.0, 5.0)): [5.0, 5.0, 0.0, -1.0],
        ("between", (6.0, 99.0)): [],
    }.items():
        assert ordered(where={"amount": condition}) == expected, condition
    answer = online_series(
        shop.store, ["purchases:purchase_id"], ROWS, order="amount", where={"amount": ("=", 5.0)}
    )
    # Of equal values the newest first, as of all.
    assert answer.features["purchase_id"] == [[10, 13]]
    assert answer.event_us == [shop.micros(0, 3)]
    assert ordered(start=shop.time(3), end=shop.time(1)) == [5.0, 0.0, -1.0]
    assert ordered(start=shop.time(3), limit=2) == [5.0, 5.0]
    assert ordered(limit=2) == [math.inf, 100.0]
    assert ordered(limit=1, end=shop.time(5), descending=False) == [math.inf]
    texts = {"order": "category", "where": {"category": ("=", "c1")}}
    assert amounts(shop, **texts) == [[-1.0, 5.0, None]]
    numbers = {"order": "purchase_id", "where": {"purchase_id": (">", 2**62)}}
    assert amounts(shop, **numbers) == [[]]
    above_all = {"order": "purchase_id", "where": {"purchase_id": (">", 2**63 - 1)}}
    assert amounts(shop, **above_all) == [[]]


def test_pages_are_read_to_the_end(open_shop):
    shop = open_shop(orders=("amount",))
    note = "x" * 60_000
    # 3 MB of one entity, its pages end within it; the first days are full price.
    shop.buy("purchases", *[(1, day / 100, day, float(day % 7), "a", note) for day in range(50)])
    every = online_series(shop.store, ["purchases:purchase_id"], ROWS)
    assert every.features["purchase_id"] == [list(range(50))]
    assert amounts(shop, limit=40)[0] == [float(day % 7) for day in range(40)]
    assert sorted(amounts(shop, order="amount")[0]) == sorted(float(day % 7) for day in range(50))
    late = online_series(
        shop.store, ["purchases:purchase_id"], ROWS, order="amount", limit=5, end=shop.time(0.3)
    )
    assert late.features["purchase_id"] == [[34, 41, 48, 33, 40]]
    assert late.truncated == [True]


def test_on_an_event_loop(open_shop):
    shop = open_shop()
    shop.buy("purchases", (1, 1, 1, 1.5, "a"))

    async def read():
        # Inside of a loop the sync call is made beside it.
        refs = ["purchases:amount"]
        return await online_series_async(shop.store, refs, ROWS), online_series(
            shop.store, refs, ROWS
        )

    one, other = asyncio.run(read())
    assert one == other
    assert one.features == {"amount": [[1.5]]}


def test_consistent_reads_are_those_of_the_view(open_shop):
    shop = open_shop(online={"consistent_reads": True}, orders=("amount",))
    shop.buy("purchases", (1, 1, 1, 1.5, "a"))
    assert amounts(shop) == amounts(shop, order="amount") == [[1.5]]


def refused(shop, kind, said, refs=("purchases:amount",), rows=ROWS, **bounds):
    with pytest.raises(kind, match=said):
        online_series(shop.store, list(refs), rows, **bounds)


def test_what_cannot_be_read_is_refused_in_words(open_shop, tmp_path):
    shop = open_shop(orders=("category",), online={"max_rows_per_request": 2})
    base = shop.store.get_feature_view("purchases")
    shop.apply(
        base,
        customers_view("customers", tmp_path),
        recent(base, name="lately", last=3, features=["amount"]),
    )
    several = ["purchases:amount", "customers:visits"]
    refused(shop, ConfigError, "`purchases`, `customers`.*once for each view", several)
    refused(shop, ConfigError, "`customers` keeps no series. Have it keep", ["customers:visits"])
    refused(shop, ConfigError, "`lately` is derived from `purchases`", ["lately:amount_last_3"])
    refused(shop, FeatureNotFoundError, "Did you mean `amount`", ["purchases:amuont"])
    refused(shop, FeatureNotFoundError, "names a feature `amount`. Name each", ["amount"])
    refused(shop, FeatureNotFoundError, "names no feature", [])
    refused(shop, FeatureViewNotFoundException, "purchase", ["purchase:amount"])
    with pytest.raises(ConfigError, match="by a list of references"):
        online_series(shop.store, "purchases:amount", ROWS)
    refused(shop, EntityKeyError, "needs `customer_id`.*it has `cust`", rows=[{"cust": 1}])
    refused(shop, EntityKeyError, "has no entity rows", rows=[])
    refused(shop, EntityKeyError, "customer_id", rows=[{"customer_id": 1.5}])
    refused(shop, RequestTooLargeError, "3 entity rows", rows={"customer_id": [1, 2, 3]})
    by_amount = r'no order by `amount` \(only by `category`\).*Series\(orders=\["category", "amou'
    refused(shop, ConfigError, by_amount, order="amount")
    refused(shop, ConfigError, "Did you mean `category`", order="categroy")
    refused(shop, ConfigError, 'Pass order="amount"', where={"amount": (">", 1.0)})
    on_other = {"order": "category", "where": {"amount": (">", 1.0)}}
    refused(shop, ConfigError, "Here that is `category`", **on_other)
    of_type = {"order": "category", "where": {"category": ("=", 1)}}
    refused(shop, ConfigError, "Python's type int, and no value of STRING", **of_type)
    refused(shop, ConfigError, "`last` must be a whole number of at least 1", last=0)
    refused(shop, ConfigError, "`limit` must be a whole number of at least 1", limit=True)
    refused(shop, ConfigError, "`last` and `limit` both", last=1, limit=1)
    refused(shop, ConfigError, "Pass `limit` for the first", last=1, order="category")
    refused(shop, ConfigError, "`within` and `start` both", within=DAY, start=shop.now)
    refused(shop, ConfigError, "`within` must be a timedelta", within=-DAY)
    refused(shop, ConfigError, "`start` must be a datetime", start=5)
    refused(shop, ConfigError, "`start` is after `end`", start=shop.now, end=shop.time(1))


@pytest.mark.parametrize("on_partial", ["error", "mark"])
def test_entities_left_unread_at_the_deadline(open_shop, on_partial, caplog):
    shop = open_shop(online={"on_partial": on_partial, "read_deadline_ms": 300})
    shop.buy("purchases", (1, 1, 1, 1.5, "a"), (2, 1, 1, 2.5, "a"))
    throttled = itertools.chain([False], itertools.repeat(True))
    shop.read_through(lambda transport: ThrottledQueries(transport, throttled))
    rows, refs = {"customer_id": [1, 2]}, ["purchases:amount"]
    if on_partial == "error":
        with pytest.raises(IncompleteReadError, match="events of 1 entities of feature view pur"):
            online_series(shop.store, refs, rows)
        return
    answer = online_series(shop.store, refs, rows)
    assert answer.statuses == ["found", "unread"]
    assert answer.features["amount"] == [[1.5], None]
    assert answer.event_us[1] is None
    assert answer.to_arrow().column("amount").to_pylist() == [[1.5], None]
    assert answer.to_arrow().column("event_time").to_pylist()[1] is None
    assert answer.to_dict()["event_time"][1] is None
    assert "marked INVALID" in caplog.text


def test_of_an_entity_whose_second_page_fails_nothing_is_answered(open_shop):
    shop = open_shop(online={"on_partial": "mark", "read_deadline_ms": 300})
    shop.buy("purchases", *[(1, day, day, 1.5, "a") for day in range(5)])
    throttled = itertools.chain([False], itertools.repeat(True))
    shop.read_through(lambda transport: ThrottledQueries(ShortPages(transport, 2), throttled))
    answer = online_series(shop.store, ["purchases:amount"], ROWS)
    assert (answer.statuses, answer.features["amount"]) == (["unread"], [None])


COMPARED = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def by_python(events, *, last, first_us, last_us, order, descending, where, limit):
    """Places of the events that are answered, and whether there are more."""
    found = [(at, moment, value) for at, (moment, value) in enumerate(events)
             if (first_us is None or first_us <= moment) and moment <= last_us]  # fmt: skip
    found.sort(key=lambda event: event[1], reverse=True)
    if order:
        found = [event for event in found if event[2] is not None]
        if where:
            found = [event for event in found if COMPARED[where[0]](event[2], where[1])]
        found.sort(key=lambda event: (event[2], event[1]), reverse=True)
    found = found[:last]
    if not descending:
        found.reverse()
    places = [at for at, *_ in found]
    return places[:limit], limit is not None and len(places) > limit


def test_random_bounds_are_answered_as_python_does(open_shop):
    shop, draw = open_shop(orders=("amount",)), random.Random(7)  # noqa: S311
    bought = [
        (1, draw.randrange(2_000) / 100 + at / 1e6, at, draw.choice([None, -2.5, 0.0, 1.0, 7.0]))
        for at in range(60)
    ]
    shop.buy("purchases", *bought)
    events = [(shop.micros(days)[0], amount) for _, days, _, amount in bought]
    shop.read_through(lambda transport: ShortPages(transport, 7))
    for _ in range(60):
        start, end = sorted(draw.sample(events, 2))
        start, end = draw.choice([None, start[0]]), draw.choice([None, end[0]])
        order = draw.choice([None, "amount"])
        last = draw.choice([None, 1, 5, 99]) if order is None else None
        limit = draw.choice([None, 1, 6, 99]) if last is None else None
        where = (draw.choice([*COMPARED]), draw.choice([-3.0, -2.5, 1.0, 7.0])) if order else None
        descending = draw.random() < 0.5
        answer = online_series(
            shop.store,
            ["purchases:purchase_id", "purchases:amount"],
            ROWS,
            last=last,
            start=start and moment_of(start),
            end=end and moment_of(end),
            order=order,
            descending=descending,
            where=where and {"amount": where},
            limit=limit,
        )
        places, is_cut = by_python(
            events,
            last=last,
            first_us=start,
            last_us=end or shop.micros(0)[0],
            order=order,
            descending=descending,
            where=where,
            limit=limit,
        )
        assert answer.features["purchase_id"] == [places]
        assert answer.features["amount"] == [[events[at][1] for at in places]]
        assert answer.event_us == [[events[at][0] for at in places]]
        assert answer.truncated == [is_cut]


def test_an_event_that_nobody_can_explain_is_unread(open_shop, caplog):
    shop = open_shop()
    shop.buy("purchases", (1, 1, 1, 1.5, "a"), (2, 1, 1, 2.5, "a"))
    (item,) = [each for each in shop.items("purchases") if b"\x02" in each["k"]["B"][-8:]]
    shop.client.put_item(
        TableName=f"{shop.store.project}.purchases", Item={**item, "f": {"B": b"another!"}}
    )
    answer = online_series(shop.store, ["purchases:amount"], {"customer_id": [1, 2]})
    assert answer.statuses == ["found", "unread"]
    assert answer.features["amount"] == [[1.5], None]
    assert "no schema item explains" in caplog.text


def test_names_of_the_answer_give_way_to_features(open_store, dynamodb, tmp_path):
    from feast import FeatureView, Field, PushSource
    from series_shop import CUSTOMER, source_of

    from feast_dynamo_ext import ViewSettings
    from feast_dynamo_ext.series_settings import Series

    shop = SeriesShop.open(open_store, dynamodb, tmp_path)
    names = ("status", "truncated", "event_time")
    view = FeatureView(
        name="odd",
        entities=[CUSTOMER],
        schema=[Field(name=name, dtype=Int64) for name in ("customer_id", *names)],
        source=PushSource(name="odd_push", batch_source=source_of("odd", tmp_path)),
        tags=ViewSettings(series=Series(tie_breaker="status")).tags(),
    )
    shop.apply(view)
    shop._push("odd", names, [(1, 1, 5, 6, 7)])
    answer = online_series(shop.store, [f"odd:{name}" for name in names], ROWS)
    assert answer.to_dict() == {
        "customer_id": [1],
        "status": [[5]],
        "truncated": [[6]],
        "event_time": [[7]],
        "_event_time": [[shop.time(1)]],
        "_status": ["found"],
        "_truncated": [False],
    }
    shop.store.teardown()
