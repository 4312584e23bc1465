"""Series through a proxy that fails: events, windows and cohorts are right, or an error says.

`-s` shows what each run came to; `FAULT_TIMES=10` makes it ten times as much.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
import uuid

import boto3
import pandas as pd
import pytest
from fault_kinds import Plain, refusal
from feast.data_source import PushMode
from rule_proxy import RESET, THROTTLED, RuleProxy
from series_run import NOW, SeriesFaults, definitions, frame_of, run
from series_shop import DAY
from test_fault_runs import TOGETHER

from feast_dynamo_ext import cohort, online_series, score_cohort
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsUnavailableError,
    IncompleteReadError,
)

TIMES = int(os.environ.get("FAULT_TIMES", "1"))

pytestmark = [pytest.mark.dynamodb_local, pytest.mark.timeout(300 * TIMES)]

ALONE = {
    "throttling": {"throttled": 0.3},
    "short pages and unprocessed items": {"unprocessed": 0.5},
    "resets": {"reset": 0.15, "refused": 0.05},
    "slow answers": {"slow": 0.03},
    "damaged bodies": {"truncated": 0.1, "corrupted": 0.1},
    "500, 502 and 503": {"failed": 0.15},
}
INCOMPLETE = {"IncompleteReadError", "IncompleteWriteError", "AwsUnavailableError"}


@pytest.fixture
def shop(open_store, fault_proxy, dynamodb_local, tmp_path):
    fault_proxy.plan()
    project = f"s{uuid.uuid4().hex[:12]}"
    near = {"region": "us-east-1", "endpoint_url": dynamodb_local}
    direct = open_store(project, online=near)
    direct.apply(definitions(tmp_path))
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb_local)
    yield SeriesFaults(direct, project, fault_proxy, client, open_store)
    direct.teardown()
    asyncio.run(direct.close())
    client.close()


@pytest.fixture
def faulty(shop):
    """Does a run and checks what holds of each."""

    def faulty(plan, **online):
        events, reads = 1_200 * TIMES, 1_200 * TIMES
        online = {"read_timeout": 2, **online}
        totals = run(shop, plan, events, reads, len(str(plan)), **online)
        print(f"\n{totals}")
        assert totals.wrong == []
        assert totals.writes >= events
        assert totals.reads >= reads * 0.8
        return totals

    return faulty


@pytest.mark.parametrize("fault", ALONE)
def test_one_fault_alone(faulty, fault):
    slow = {"read_timeout": 0.4} if fault == "slow answers" else {}
    totals = faulty({"chances": ALONE[fault], "slow_s": 0.6}, **slow)
    assert set(totals.faults) == set(ALONE[fault])
    assert set(totals.errors) <= INCOMPLETE
    if fault in ("throttling", "short pages and unprocessed items"):
        # Asked again until it is there: only the deadline, which is far off, would end that.
        assert totals.errors == {}


def test_all_together(faulty):
    totals = faulty({"chances": TOGETHER, "slow_s": 0.8}, read_timeout=0.5)
    assert set(totals.faults) == set(TOGETHER)
    assert set(totals.errors) <= INCOMPLETE


def test_short_deadlines_and_marks(faulty):
    totals = faulty(
        {"chances": {**TOGETHER, "throttled": 0.3, "delayed": 0.2}, "slow_s": 0.3},
        read_timeout=0.2,
        read_deadline_ms=150,
        write_deadline_ms=250,
        on_partial="mark",
    )
    # Both happened, how often depends on what else the machine does.
    assert totals.marked > 0
    assert totals.lists > 0
    assert set(totals.errors) <= INCOMPLETE | {"ThrottledError"}


# A materialization


def test_a_throttled_materialization_writes_each_event_once_and_counts_it(shop, tmp_path):
    events = list(range(2_000))
    frame_of(events).to_parquet(tmp_path / "purchases.parquet")
    # botocore's adaptive mode slows all calls about leases down after one is throttled.
    store = shop.store(retry_mode="standard")
    shop.proxy.plan(seed=7, chances={"throttled": 0.15, "unprocessed": 0.15})
    store.materialize(NOW - 10 * DAY, NOW, feature_views=["purchases"])
    faults = shop.proxy.report().faults
    shop.proxy.plan()
    (report,) = store.provider.batch_engine.report.views
    assert (report.written, report.older, report.failed) == (2_000, 0, 0)
    assert 5 <= report.throttles <= faults.total()
    assert shop.events() == events
    asyncio.run(store.close())


# Faults at a chosen request


ROWS = [{"customer_id": number} for number in range(100)]
BIG = 15
# Two of each moment, the later number first.
AMOUNTS = [
    *(24.5, 0.5, 72.5, 48.5, 120.5, 96.5, 168.5, 144.5),
    *(216.5, 192.5, 264.5, 240.5, 312.5, 288.5, 336.5),
]
FAILED = refusal("com.amazonaws.dynamodb.v20120810#InternalServerError", "error", 500)


@pytest.fixture
def rule_proxy(dynamodb_local):
    proxy = RuleProxy(dynamodb_local)
    yield proxy
    proxy.stop()


@pytest.fixture
def open_ruled(shop, rule_proxy):
    """Opens stores through the proxy of rules, of a table with one event of all but customer 0.

    Customer 0 has fifteen events of 190 KB: three pages.
    """
    frame = frame_of(range(1, 24))
    large = frame_of(24 * number for number in range(BIG)).assign(note="x" * 190_000)
    shop.direct.push("purchases_push", pd.concat([frame, large]), to=PushMode.ONLINE)
    opened = []

    def open_ruled(**online):
        near = {"region": "us-east-1", "endpoint_url": rule_proxy.endpoint}
        opened.append(shop.open_store(shop.project, online={**near, **online}))
        return opened[-1]

    yield open_ruled
    for store in opened:
        asyncio.run(store.close())


def queries(proxy):
    return [asked for asked in proxy.asked if asked.operation == "Query"]


def nth_query(number, answer):
    """A rule: the query of this number, counted from 0, is answered so."""
    counted = itertools.count()

    def rule(asked):
        return answer if asked.operation == "Query" and next(counted) == number else None

    return rule


@pytest.mark.parametrize("answer", [THROTTLED, RESET, FAILED], ids=["throttled", "reset", "500"])
@pytest.mark.parametrize("page", [0, 1, 2])
def test_pages_are_read_to_the_end_though_one_in_the_middle_fails(
    open_ruled, rule_proxy, answer, page
):
    store = open_ruled()
    rule_proxy.rule = nth_query(page, answer)
    found = online_series(store, ["purchases:amount"], ROWS[:1])

    assert found.features["amount"] == [AMOUNTS]
    assert len(queries(rule_proxy)) == 4
    starts = ["ExclusiveStartKey" in asked.parts for asked in queries(rule_proxy)]
    assert starts == [False] * (2 if page == 0 else 1) + [True] * (2 if page == 0 else 3)


@pytest.mark.parametrize("on_partial", ["error", "mark"])
def test_a_page_that_stays_throttled_leaves_its_entity_unread_at_the_deadline(
    open_ruled, rule_proxy, on_partial
):
    store = open_ruled(read_deadline_ms=700, on_partial=on_partial)
    rule_proxy.rule = lambda asked: THROTTLED if "ExclusiveStartKey" in asked.body else None
    refs = ["spend:count_30d", "customers:visits"]
    began = time.monotonic()
    if on_partial == "mark":
        found = store.get_online_features(refs, ROWS[:3]).to_dict()
        assert found["count_30d"] == [None, 1, 1]
    else:
        with pytest.raises(IncompleteReadError, match=r"events of 1 entities of .* spend") as said:
            store.get_online_features(refs, ROWS[:3])
        assert said.value.unread == {f"{store.project}.purchases": 1}
    assert time.monotonic() - began < 5


def test_one_error_names_what_is_missing_of_series_and_of_newest_rows(open_ruled, rule_proxy):
    store = open_ruled(read_deadline_ms=500)
    reads = {"Query", "BatchGetItem"}
    rule_proxy.rule = lambda asked: THROTTLED if asked.operation in reads else None
    refs = ["spend:count_30d", "lately:amount_last_5", "customers:visits"]
    began = time.monotonic()
    with pytest.raises(IncompleteReadError) as said:
        store.get_online_features(refs, ROWS)
    assert time.monotonic() - began < 5
    tables = {f"{store.project}.{view}": 100 for view in ("purchases", "customers")}
    assert said.value.unread == tables
    assert all(f"table {table}" in str(said.value) for table in tables)
    # What was not sent any more is no reason: the service throttles.
    assert "Slow down." in str(said.value)


def test_slow_pages_end_at_the_deadline(open_ruled, shop, fault_proxy):
    store = shop.store(read_deadline_ms=600)
    fault_proxy.plan(chances={"slow": 1.0}, slow_s=0.25)
    began = time.monotonic()
    with pytest.raises(IncompleteReadError, match="events of 1 entities") as said:
        online_series(store, ["purchases:amount"], ROWS[:1])
    taken_s = time.monotonic() - began
    fault_proxy.plan()
    assert 0.5 < taken_s < 5
    assert said.value.unread == {f"{store.project}.purchases": 1}
    asyncio.run(store.close())


def test_what_aws_refuses_is_not_asked_of_every_entity(open_ruled, rule_proxy):
    store = open_ruled(max_read_workers=4)
    denied = refusal("com.amazon.coral.service#AccessDeniedException", "not allowed")
    rule_proxy.rule = lambda asked: denied if asked.operation == "Query" else None
    with pytest.raises(AccessDeniedError, match="purchases"):
        store.get_online_features(["spend:count_30d", "customers:visits"], ROWS)
    assert 1 <= len(queries(rule_proxy)) <= 4


MIXED_UP = [
    {"Items": [{"k": {"B": "AAAA"}, "s": {"B": "AAAA"}}], "Count": 1},
    {"Responses": {}},
    {"Items": None},
    {"Items": [{"k": {"B": "AAAA"}}]},
]


@pytest.mark.parametrize("other", MIXED_UP)
def test_the_answer_to_another_request_is_refused(open_ruled, rule_proxy, other):
    store = open_ruled()
    answer = Plain(200, json.dumps(other).encode())
    rule_proxy.rule = lambda asked: answer if asked.operation == "Query" else None
    with pytest.raises(IncompleteReadError, match="is not the one to this request"):
        online_series(store, ["purchases:amount"], ROWS[:1])
    if other != MIXED_UP[0]:  # a cohort's items are of any entity
        with pytest.raises(AwsUnavailableError, match="is not the one to this request"):
            next(cohort(store, "purchases", category="category 0"))


def test_a_score_of_a_cohort_goes_on_after_its_read_has_failed(open_ruled, rule_proxy):
    store = open_ruled(read_deadline_ms=400)
    scores = score_cohort(
        store,
        "purchases",
        ["spend:count_30d"],
        lambda frame: frame["count_30d"],
        chunk=10,
        category="category 0",
    )
    first = next(scores)
    rule_proxy.rule = lambda asked: THROTTLED if "IndexName" not in asked.body else None
    with pytest.raises(IncompleteReadError, match="events of 10 entities"):
        next(scores)
    rule_proxy.rule = lambda asked: None
    found = [*first["customer_id"].to_pylist()]
    found += [key for table in scores for key in table["customer_id"].to_pylist()]
    assert len(found) == len(set(found))
    assert set(found) == set(range(24))
