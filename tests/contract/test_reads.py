"""How reads are run: on event loops and threads, in forked children, in part, past their ttl."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import math
import multiprocessing
import re
import socket
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from feast import FeatureService
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64
from views import CUSTOMER, customer_view

from feast_dynamo_ext import ViewSettings
from feast_dynamo_ext.errors import (
    EntityKeyError,
    FeatureNotFoundError,
    IncompleteReadError,
    RequestTooLargeError,
)

NOW = dt.datetime.now(tz=dt.timezone.utc)
PRESENT, NOT_FOUND = FieldStatus.PRESENT, FieldStatus.NOT_FOUND
OUTSIDE_MAX_AGE, INVALID = FieldStatus.OUTSIDE_MAX_AGE, FieldStatus.INVALID


def key(number: int) -> EntityKey:
    return EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=number)])


def write(store, feature_view, rows, at=NOW):
    data = [(key(n), {"total": Value(double_val=value)}, at, None) for n, value in rows.items()]
    store.provider.online_write_batch(store.config, feature_view, data, None)


@pytest.fixture
def empty_store(open_store, dynamodb):
    """Opens a store on an empty project of its own."""
    opened = []

    def empty_store(registry=None, **online):
        project = f"p{uuid.uuid4().hex[:12]}"
        online = {"region": "us-east-1", "endpoint_url": dynamodb.endpoint, **online}
        more = {"registry": registry} if registry else {}
        online = {"write_mode": "overwrite", **online}
        opened.append(open_store(project, online=online, **more))
        return opened[-1]

    yield empty_store
    for store in opened:
        store.teardown()


@pytest.fixture
def store(empty_store):
    """A store with two views of 300 customers; `total` is a tenth and a fifth of their number."""
    opened = empty_store()
    views = [customer_view("one"), customer_view("two")]
    opened.apply([CUSTOMER, *views])
    write(opened, views[0], {n: n / 10 for n in range(300)})
    write(opened, views[1], {n: n / 5 for n in range(300)})
    return opened


@pytest.fixture
def unwritten(open_store):
    """A store whose view has no table: nothing is read."""
    nobody = {"region": "us-east-1", "endpoint_url": "http://127.0.0.1:1"}
    store = open_store(online={**nobody, "manage_tables": "never"})
    store.apply([CUSTOMER, customer_view("one")])
    return store


REFS = ["one:total", "two:total"]


def ask(numbers) -> dict:
    return {
        "features": REFS,
        "entity_rows": [{"cid": n} for n in numbers],
        "full_feature_names": True,
    }


def expected(numbers) -> dict:
    return {
        "cid": list(numbers),
        "one__total": [n / 10 if n < 300 else None for n in numbers],
        "two__total": [n / 5 if n < 300 else None for n in numbers],
    }


# Keys that Feast would make another key of, or refuses in words of its own

BAD_KEYS = [
    (1.5, "a fraction"),
    (np.float32(1.5), "a fraction"),
    (Decimal("1.5"), "a fraction"),
    (True, "a Bool"),
    (np.bool_(True), "a Bool"),
    ("abc", "text that is no whole number"),
    ("1.5", "text that is no whole number"),
    ("", "text that is no whole number"),
    (math.nan, r"a missing value \(NaN\)"),
    (math.inf, "an infinite number"),
    (b"1", "of type bytes"),
    (NOW, "a time"),
    (NOW.replace(microsecond=0), "a time"),
    (pd.Timestamp("2026-01-01"), "a time"),
    (np.datetime64("2026-01-01"), "a time"),
    (NOW.date(), "a time"),
    (uuid.UUID(int=7), "of type UUID"),
    (2**63, "a number of more than 64 bits"),
    (-(2**63) - 1, "a number of more than 64 bits"),
    (str(2**64), "a number of more than 64 bits"),
    (2.0**53, "a float so large that it stands for several integers"),
    (np.float32(2**24), "a float so large that it stands for several integers"),
    ([1], "several values"),
    (object(), "of type object"),
]
GOOD_KEYS = [7, 7.0, "7", " 7 ", np.int64(7), np.float32(7), Decimal(7), Value(int64_val=7)]


@pytest.mark.filterwarnings("ignore:Using entity name is deprecated")
def test_a_key_that_feast_would_change_is_refused(store):
    views = [store.get_feature_view(name) for name in ("one", "two")]
    services = [
        FeatureService(name=name, features=views[:1], precompute_online=name == "precomputed")
        for name in ("plain", "precomputed")
    ]
    store.apply(services)
    requests = [
        ["one:total", "two:total"],
        store.get_feature_service("plain"),
        store.get_feature_service("precomputed"),
    ]
    for features in requests:
        one, given = requests.index(features), {"features": features, "full_feature_names": True}

        def ask_async(rows, given=given):
            return asyncio.run(store.get_online_features_async(**given, entity_rows=rows))

        for value in GOOD_KEYS:
            for rows in ([{"cid": value}, {"cid": None}], {"cid": [value, None]}):
                found = store.get_online_features(**given, entity_rows=rows).to_dict()
                assert found["cid"] == [7, None]
                assert found["one__total"] == [0.7, None]
        for value, what in BAD_KEYS:
            words = rf"`cid` is declared as INT64, but in row 1 .* it is {what}.*Nothing was read"
            for rows in ([{"cid": 1}, {"cid": value}], {"cid": [1, value]}):
                with pytest.raises(EntityKeyError, match=words):
                    store.get_online_features(**given, entity_rows=rows)
            if one == 0:
                with pytest.raises(EntityKeyError, match=words):
                    ask_async([{"cid": 1}, {"cid": value}])
                with pytest.raises(EntityKeyError, match=words):
                    # Feast's name for the join key of before
                    ask_async([{"customer": 1}, {"customer": value}])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "entity rows are None. Pass a list of dictionaries"),
        (7, "entity rows are of type int. Pass a list of dictionaries"),
        ([1], r"Row 0 of the request .* is of type int. Pass a list of dictionaries"),
        ([{"cid": 1}, None], r"Row 1 of the request .* is None. Pass a list of dictionaries"),
        # Feast would read the customers 1 and 2.
        ({"cid": "12"}, "columns of the request's entity rows must be lists"),
        ([], "has no entity rows"),
        ({}, "has no entity rows"),
        ([{}], "has no entity rows"),
        ({"cid": []}, "has no entity rows"),
        ([{"cid": 1}, {}, {"cid": 3}], "rows with different columns"),
        ([{"cid": 1}, {"cid": 2, "x": 1}], "rows with different columns|same keys"),
        ({"cid": [1, 2], "x": [1]}, "columns of 1 and 2 rows"),
        ({"cid": np.array([1])}, r"pass `tolist\(\)`"),
        (pd.DataFrame({"cid": [1]}), r"`to_dict\('records'\)`"),
    ],
)
def test_entity_rows_of_another_shape_are_refused(unwritten, rows, words):
    with pytest.raises(EntityKeyError, match=words):
        unwritten.get_online_features(["one:total"], rows)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (["one:totla"], "`one` has no feature `totla`. Did you mean `total`?"),
        (["one:x", "one:total"], "`one` has no feature `x`. It has: total."),
        (["total"], "names a feature `total`. Name each as `view:feature`."),
        ([], "names no feature. Name each as `view:feature`."),
        ("one:total", "features are a str. Pass a list that names each as `view:feature`"),
        (("one:total",), "features are a tuple. Pass a list that names each"),
    ],
)
def test_a_feature_that_there_is_not_is_named(unwritten, features, words):
    with pytest.raises(FeatureNotFoundError, match=re.escape(words)) as caught:
        unwritten.get_online_features(features, [{"cid": 1}])
    assert isinstance(caught.value, KeyError)  # as which Feast raises it


def test_many_reads_at_once_on_one_event_loop(store):
    async def read_all():
        requests = [range(start, start + 130) for start in range(0, 300, 60)]
        answers = await asyncio.gather(
            *(store.get_online_features_async(**ask(numbers)) for numbers in requests)
        )
        one_view = await store.provider.online_read_async(
            store.config, store.get_feature_view("one"), [key(7), key(999)]
        )
        await store.provider.online_store.close()
        return requests, answers, one_view

    requests, answers, one_view = asyncio.run(read_all())
    for numbers, answer in zip(requests, answers, strict=True):
        assert answer.to_dict() == expected(numbers)
    assert one_view == [
        (NOW.replace(microsecond=NOW.microsecond), {"total": Value(double_val=0.7)}),
        (None, None),
    ]
    assert store.provider.async_supported.online.read is True
    assert store.provider.async_supported.online.write is True


def test_reads_on_one_event_loop_after_another(store):
    for _ in range(2):

        async def read_one():
            answer = await store.get_online_features_async(**ask([1, 2]))
            await store.provider.online_store.close()
            return answer

        assert asyncio.run(read_one()).to_dict() == expected([1, 2])


def test_a_read_that_is_called_inside_an_event_loop_as_in_a_notebook(store):
    async def cell():
        return store.get_online_features(**ask([3, 4]))

    assert asyncio.run(cell()).to_dict() == expected([3, 4])


def test_threads_share_a_store(store):
    def read(start):
        numbers = range(start, start + 30)
        return store.get_online_features(**ask(numbers)).to_dict() == expected(numbers)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(200)))


def _read_in_child(store, queue):
    queue.put(store.get_online_features(**ask([5])).to_dict())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_and_its_parent_both_read_on(store):
    fork = multiprocessing.get_context("fork")
    assert store.get_online_features(**ask([4])).to_dict() == expected([4])
    for _ in range(2):
        queue = fork.Queue()
        child = fork.Process(target=_read_in_child, args=(store, queue))
        child.start()
        assert queue.get(timeout=60) == expected([5])
        child.join(timeout=60)
        assert child.exitcode == 0
        assert store.get_online_features(**ask([6])).to_dict() == expected([6])


def ages(store):
    """Values and statuses of rows 1 hour and 3 days old under a ttl of 1 day."""
    orders = customer_view("orders", ttl=dt.timedelta(days=1))
    store.apply([CUSTOMER, orders])
    write(store, orders, {1: 1.5}, NOW - dt.timedelta(hours=1))
    # Written under no ttl, so that the server does not delete it: the view's ttl of now decides.
    write(store, customer_view("orders"), {2: 2.5}, NOW - dt.timedelta(days=3))
    answer = store.get_online_features(
        features=["orders:total"], entity_rows=[{"cid": 1}, {"cid": 2}, {"cid": 3}]
    )
    (vector,) = [
        vector
        for name, vector in zip(
            answer.proto.metadata.feature_names.val, answer.proto.results, strict=True
        )
        if name == "total"
    ]
    return answer.to_dict()["total"], list(vector.statuses)


def test_rows_past_the_views_ttl_answer_null_and_their_status(empty_store):
    values, statuses = ages(empty_store())
    assert values == [1.5, None, None]
    assert statuses == [PRESENT, OUTSIDE_MAX_AGE, NOT_FOUND]


def test_rows_past_the_views_ttl_answer_their_value_too_where_that_is_asked_for(empty_store):
    values, statuses = ages(empty_store(expired="value"))
    assert values == [1.5, 2.5, None]
    assert statuses == [PRESENT, OUTSIDE_MAX_AGE, NOT_FOUND]


def partial_store(open_store, scripted_http, **online):
    """A store whose reads get one of two rows, then nothing but throttling."""
    feature_view = customer_view("orders")
    row = {"k": {"B": ""}, "v": {"B": ""}}
    answers = [
        (200, {"Responses": {"p.orders": [row]}, "UnprocessedKeys": {}}),
        *[(400, {"__type": "x#ThrottlingException", "message": "slow down"})] * 50,
    ]
    endpoint = scripted_http(answers)
    store = open_store(
        online={
            "region": "us-east-1",
            "endpoint_url": endpoint,
            "read_deadline_ms": 300,
            "manage_tables": "never",
            **online,
        }
    )
    store.apply([CUSTOMER, feature_view])
    connection = store.provider.online_store.connection(store.config)
    known = connection.views.known(feature_view, store.config)
    encoded = [base64.b64encode(known.encode([Value(int64_val=n)])).decode() for n in (1, 2)]
    row.update(
        k={"B": encoded[0]},
        v={"B": base64.b64encode(bytes.fromhex("0a0929000000000000f83f")).decode()},
        t={"N": str(int(NOW.timestamp() * 1_000_000))},
        f={"B": known.schema.fingerprint_text},
    )
    answers[0][1]["UnprocessedKeys"] = {"p.orders": {"Keys": [{"k": {"B": encoded[1]}}]}}
    return store


ASKED = {"features": ["orders:total"], "entity_rows": [{"cid": 1}, {"cid": 2}]}


def test_keys_left_unread_are_an_error_that_names_view_and_count(open_store, scripted_http):
    store = partial_store(open_store, scripted_http)
    with pytest.raises(
        IncompleteReadError, match=r"1 keys of feature view orders \(table p\.orders\)"
    ):
        store.get_online_features(**ASKED)


def test_keys_left_unread_are_marked_where_that_is_asked_for(open_store, scripted_http, caplog):
    store = partial_store(open_store, scripted_http, on_partial="mark")
    answer = store.get_online_features(**ASKED)
    assert answer.to_dict()["total"] == [1.5, None]
    statuses = [list(vector.statuses) for vector in answer.proto.results]
    assert statuses[-1] == [PRESENT, INVALID]
    assert "1 keys of feature view orders" in caplog.text


def test_a_server_that_is_down_is_no_matter_of_capacity(open_store):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        online = {"region": "us-east-1", "endpoint_url": endpoint, "manage_tables": "never"}
        store = open_store(online={**online, "read_deadline_ms": 300})
        store.apply([CUSTOMER, customer_view("orders")])
        with pytest.raises(IncompleteReadError) as refused:
            store.get_online_features(["orders:total"], [{"cid": 1}])
    assert str(refused.value).endswith(
        "Check that the endpoint can be reached from here: `endpoint_url` and `region` in "
        "feature_store.yaml, network, proxy and DNS."
    )
    assert "capacity" not in str(refused.value)


@pytest.mark.parametrize("precompute", [False, True])
def test_a_misspelt_join_key_is_named_on_an_event_loop_too(open_store, precompute):
    online = {"region": "us-east-1", "endpoint_url": "http://127.0.0.1:1"}
    store = open_store(online={**online, "manage_tables": "never"})
    orders = customer_view("orders")
    service = FeatureService(name="s", features=[orders], precompute_online=precompute)
    store.apply([CUSTOMER, orders, service])
    held = store.get_feature_service("s")
    with pytest.raises(EntityKeyError, match=r"`orders` needs `cid`.*it has `cit`\."):
        asyncio.run(store.get_online_features_async(held, [{"cit": 1}]))
    with pytest.raises(EntityKeyError, match=r"`orders` needs `cid`.*it has `cit`\."):
        store.get_online_features(held, [{"cit": 1}])


def test_views_and_store_say_which_reads_are_strongly_consistent(open_store, scripted_http):
    views = [
        customer_view("plain"),
        customer_view("strong", tags=ViewSettings(consistent_reads=True).tags()),
        customer_view("weak", tags=ViewSettings(consistent_reads=False).tags()),
    ]
    empty = {name: [] for name in ("p.plain", "p.strong", "p.weak")}
    endpoint = scripted_http([(200, {"Responses": empty})] * 2)
    for whole_store, consistent in ((False, {"p.strong"}), (True, {"p.plain", "p.strong"})):
        store = open_store(
            online={
                "region": "us-east-1",
                "endpoint_url": endpoint,
                "manage_tables": "never",
                "consistent_reads": whole_store,
            }
        )
        store.apply([CUSTOMER, *views])
        store.get_online_features(
            features=[f"{one.name}:total" for one in views],
            entity_rows=[{"cid": 1}],
            full_feature_names=True,
        )
        asked = json.loads(scripted_http.requests[-1])["RequestItems"]
        assert set(asked) == set(empty)
        assert {name for name in asked if asked[name].get("ConsistentRead")} == consistent


def test_a_request_of_more_rows_than_allowed_is_refused_before_anything_is_read(
    open_store, scripted_http
):
    store = partial_store(open_store, scripted_http, max_rows_per_request=2)
    with pytest.raises(RequestTooLargeError, match=r"3 entity rows: .* allows 2"):
        store.get_online_features(["orders:total"], [{"cid": cid} for cid in (1, 2, 3)])
    assert scripted_http.requests == []


def test_versions_of_a_view_are_read_side_by_side(empty_store):
    store = empty_store(registry={"enable_online_feature_view_versioning": True})
    old = customer_view("orders")
    store.apply([CUSTOMER, old])
    write(store, store.get_feature_view("orders"), {1: 1.5})
    new = customer_view("orders", total=Float64, count=Int64)
    store.apply([CUSTOMER, new])
    data = [(key(1), {"total": Value(double_val=2.5), "count": Value(int64_val=4)}, NOW, None)]
    applied = store.get_feature_view("orders")
    store.provider.online_write_batch(store.config, applied, data, None)

    def read(*features):
        answer = store.get_online_features(
            features=list(features), entity_rows=[{"cid": 1}], full_feature_names=True
        )
        return {name: values[0] for name, values in answer.to_dict().items() if name != "cid"}

    assert read("orders:total", "orders:count") == {"orders__total": 2.5, "orders__count": 4}
    assert read("orders@v0:total", "orders@v1:total", "orders@v1:count") == {
        "orders@v0__total": 1.5,
        "orders@v1__total": 2.5,
        "orders@v1__count": 4,
    }
