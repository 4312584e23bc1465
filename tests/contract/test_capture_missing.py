"""Full exports, and tables made anew: what a table has no more is deleted in its history."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import time
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from capture_shop import BEGUN, Shop, item, read
from export_writer import items_after
from feast import Entity, FeatureView, Field, ValueType
from feast.types import Float64, Int32, Int64, UnixTimestamp
from followed import until

from feast_dynamo_ext import DynamoDBTableSource, ViewSettings
from feast_dynamo_ext.capture.captured import columns_of
from feast_dynamo_ext.capture.exports.export_jobs import Exports
from feast_dynamo_ext.capture.exports.table_scan import scan
from feast_dynamo_ext.capture.exports.windows import Window
from feast_dynamo_ext.capture.quarantine import retry
from feast_dynamo_ext.parquet.iceberg.optimize import optimize

DAY = dt.timedelta(days=1)


def key_of(customer: int, day: int) -> dict[str, Any]:
    return {key: item(customer, day)[key] for key in ("customer", "at")}


def alive(shop: Shop) -> dict[tuple[int, str], float]:
    """What the history says that the table holds: its rows, carried out in order."""
    held: dict[tuple[int, str], float] = {}
    rows = read(shop.history.handle)
    for row in sorted(rows, key=lambda row: (row["_feast_written_at"], row["_feast_sequence"])):
        key = (row["customer"], row["at"].isoformat())
        if row["_feast_change"] == "put":
            held[key] = row["amount"]
        elif row["_feast_change"] == "delete":
            held.pop(key, None)
    return held


def there(shop: Shop) -> dict[tuple[int, str], float]:
    """What the table holds, by the log of who wrote it."""
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    return {
        (
            int(each["customer"]["N"]),
            (epoch + dt.timedelta(milliseconds=int(each["at"]["N"]))).isoformat(),
        ): float(each["amount"]["N"])
        for each in items_after(shop.service.log, shop.service.clock.now)
    }


def test_what_a_full_export_lacks_is_deleted_at_its_moment(shop: Shop):
    for customer, day in itertools.product(range(3), range(2)):
        shop.service.put(item(customer, day))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    shop.service.delete(key_of(0, 0))
    shop.service.put(item(1, 1, "9"))
    # What does not fit any more is there all the same.
    shop.service.put({**item(2, 0), "amount": {"S": "a lot"}})
    # Its changes were lost to increments.
    shop.service.clock.forward(days=36)
    before = len(shop.rows())
    (window,) = shop.sync(full=True).captured
    assert (window.counts.records, window.counts.quarantined) == (5, 1)
    assert window.counts.rows == 4 + 1
    (gone,) = [row for row in read(shop.history.handle) if row["_feast_change"] != "put"]
    assert (gone["customer"], gone["at"], gone["amount"]) == (0, BEGUN, 1.5)
    # Just before the second that the export shows.
    assert gone["_feast_written_at"] == window.window.end - dt.timedelta(microseconds=1)
    assert gone["_feast_change"] == "delete"
    assert len(shop.rows()) == before + 5
    # Once more it is gone already.
    shop.service.clock.forward(hours=1)
    shop.sync(full=True)
    assert sum(change == "delete" for *_, change in shop.rows()) == 1


def test_a_table_made_anew_ends_what_the_old_one_had(shop: Shop):
    for customer in range(4):
        shop.service.put(item(customer, 1))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    for customer in range(4):
        shop.service.delete(key_of(customer, 1))
    shop.service.put(item(1, 1, "5"))
    shop.service.put(item(7, 1))
    shop.service.clock.forward(hours=1)
    service = shop.service
    service.table = replace(service.table, table_id="another-table-of-the-name")
    shop.sync(full=True)
    assert alive(shop) == there(shop)
    assert sorted(row[0] for row in shop.rows() if row[3] == "delete") == [0, 2, 3]


def test_random_changes_and_full_exports_agree_with_the_table(shop: Shop):
    dice = random.Random(5)  # noqa: S311 - no secret
    for round_ in range(6):
        for _ in range(25):
            customer, day = dice.randrange(6), dice.randrange(4)
            if dice.random() < 0.4:
                shop.service.delete(key_of(customer, day))
            else:
                shop.service.put(item(customer, day, str(dice.randrange(100))))
        shop.service.clock.forward(days=40 if round_ % 2 else 0, hours=1)
        shop.sync(full=round_ % 2 == 1)
        if round_ == 3:
            optimize(shop.history.handle)
        assert alive(shop) == there(shop)
    # Some were ended by exports alone: those with the moment of one.
    ends = {row["_feast_written_at"] for row in read(shop.history.handle)}
    state = shop.history.state()
    assert state is not None
    assert state.until - dt.timedelta(microseconds=1) in ends


def test_training_and_online_answers_agree_with_the_table(shop: Shop):
    name = shop.source.name
    entities = [
        Entity(name=f"{key}_{name}", join_keys=[key], value_type=kind)
        for key, kind in (("customer", ValueType.INT64), ("at", ValueType.UNIX_TIMESTAMP))
    ]
    view = FeatureView(
        name=f"amount_{name}",
        entities=entities,
        schema=[
            Field(name="amount", dtype=Float64),
            Field(name="customer", dtype=Int64),
            Field(name="at", dtype=UnixTimestamp),
        ],
        source=shop.source,
        ttl=dt.timedelta(0),
        tags=ViewSettings().tags(),
    )
    for customer in range(3):
        shop.service.put(item(customer, 1))
    shop.service.clock.forward(minutes=1)
    shop.sync()
    shop.store.apply([*entities, view])
    moment = BEGUN + dt.timedelta(days=1)
    shop.store.materialize(BEGUN - dt.timedelta(days=1), BEGUN + dt.timedelta(days=9))

    def answers(day: int) -> list[Any]:
        rows = pd.DataFrame(
            {
                "customer": range(3),
                "at": [moment] * 3,
                "event_timestamp": [BEGUN + dt.timedelta(days=day)] * 3,
            }
        )
        found = shop.store.get_historical_features(rows, [f"{view.name}:amount"]).to_df()
        return found.sort_values("customer")["amount"].fillna(-1).tolist()

    def online() -> list[Any]:
        rows = [{"customer": customer, "at": moment} for customer in range(3)]
        return shop.store.get_online_features([f"{view.name}:amount"], rows).to_dict()["amount"]

    assert (answers(100), online()) == ([1.5] * 3, [1.5] * 3)
    shop.service.delete(key_of(1, 1))
    shop.service.clock.forward(days=36)
    shop.sync(full=True)
    shop.store.materialize(BEGUN + dt.timedelta(days=9), BEGUN + dt.timedelta(days=60))
    assert (answers(100), online()) == ([1.5, -1, 1.5], [1.5, None, 1.5])
    # Of the time before nobody knew, and nothing is said otherwise.
    assert answers(20) == [1.5] * 3


# What is in quarantine


def declared(shop: Shop, **kinds: Any) -> DynamoDBTableSource:
    """The source with other types of some columns, or with further ones."""
    fields = {field.name: field for field in shop.source.schema}
    for name, kind in kinds.items():
        fields[name] = kind if isinstance(kind, Field) else Field(name=name, dtype=kind)
    return DynamoDBTableSource(
        name=shop.source.name,
        table=shop.source.table,
        event_time="at",
        event_time_unit="ms",
        history=shop.source.history,
        schema=list(fields.values()),
    )


def scanned(shop: Shop) -> Any:
    shop.service.clock.forward(hours=1)  # of the log; a scan looks at the real time
    columns, history = columns_of(shop.source, shop.table()), shop.capture().history
    state = history.state()
    if state is not None:
        # Of two scans of one second the order counts, which the quarantine does not know.
        ends = state.until.timestamp() + 1
        until(lambda: time.time() >= ends)
    return scan(shop.client, shop.table(), columns, history)


def retried(shop: Shop) -> int:
    columns = columns_of(shop.source, shop.table())
    shop.history.evolve(columns.history_schema)
    return retry(shop.history, columns).taken


def full(shop: Shop) -> Any:
    shop.service.clock.forward(hours=1)
    return shop.sync(full=True)


BIG = "3000000000"


@pytest.mark.parametrize("capture", [full, scanned])
def test_what_went_while_it_was_in_quarantine_stays_gone_once_it_fits(shop: Shop, capture: Any):
    shop.source = declared(shop, amount=Int32)
    for customer, amount in ((1, BIG), (2, "5"), (3, "6"), (4, BIG)):
        shop.service.put(item(customer, 1, amount))
    capture(shop)
    puts = [(2, 1, 5, "put"), (3, 1, 6, "put")]
    assert (shop.history.quarantined(), shop.rows()) == (2, puts)
    shop.service.delete(key_of(1, 1))
    shop.service.put(item(2, 1, BIG))
    shop.service.delete(key_of(3, 1))
    capture(shop)
    # Of the second, what fitted last is ended; the third is put anew, and goes again.
    shop.service.delete(key_of(2, 1))
    shop.service.put(item(3, 1, BIG))
    capture(shop)
    shop.service.delete(key_of(3, 1))
    capture(shop)
    rows = [row for row in read(shop.history.handle) if row["_feast_change"] == "delete"]
    assert sorted((row["customer"], row["at"], str(row["amount"])) for row in rows) == [
        (1, BEGUN + DAY, "None"),
        (2, BEGUN + DAY, "5"),
        (3, BEGUN + DAY, "6"),
        (3, BEGUN + DAY, "None"),
    ]
    capture(shop)
    assert shop.history.rows() == len(puts) + len(rows)
    shop.source = declared(shop, amount=Int64)
    taken = shop.history.quarantined()
    assert retried(shop) == taken >= 4
    assert alive(shop) == there(shop) == {(4, (BEGUN + DAY).isoformat()): 3e9}


# What expired


def expiring(shop: Shop, kind: Any = None) -> None:
    """Give the table the TTL attribute `gone_at`; with a type it is a column."""
    shop.client.update_time_to_live(
        TableName=shop.source.table,
        TimeToLiveSpecification={"Enabled": True, "AttributeName": "gone_at"},
    )
    if kind is not None:
        shop.source = declared(shop, **{kind.name: kind})


PASSED, TO_COME = "1772400000", "4102444800"
"""In 2026-03-01 and 2100-01-01."""


@pytest.mark.parametrize("capture", [full, scanned])
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Field(name="until", dtype=Int64, tags={"attribute": "gone_at"}), "expire"),
        (Field(name="gone_at", dtype=UnixTimestamp, tags={"unit": "s"}), "expire"),
        # It is no column, so it is not known.
        (None, "delete"),
    ],
)
def test_what_is_gone_after_its_own_ttl_has_expired(
    shop: Shop, capture: Any, kind: Any, change: str
):
    expiring(shop, kind)
    shop.service.put({**item(1, 1), "gone_at": {"N": PASSED}})
    shop.service.put({**item(2, 1), "gone_at": {"N": TO_COME}})
    shop.service.put(item(3, 1))
    shop.service.clock.forward(days=2)
    capture(shop)
    for customer in (1, 2, 3):
        shop.service.delete(key_of(customer, 1))
    capture(shop)
    assert [row for row in shop.rows() if row[3] != "put"] == [
        (1, 1, 1.5, change),
        (2, 1, 1.5, "delete"),
        (3, 1, 1.5, "delete"),
    ]


@pytest.mark.parametrize("capture", [full, scanned])
def test_of_an_item_in_quarantine_its_own_ttl_says_how_it_ended(shop: Shop, capture: Any):
    expiring(shop)
    for customer, gone_at in ((1, PASSED), (2, TO_COME)):
        wrong = {**item(customer, 1), "amount": {"S": "?"}, "gone_at": {"N": gone_at}}
        shop.service.put(wrong)
    shop.service.clock.forward(days=2)
    capture(shop)
    for customer in (1, 2):
        shop.service.delete(key_of(customer, 1))
    capture(shop)
    assert shop.rows() == [(1, 1, None, "expire"), (2, 1, None, "delete")]


# What is exported


def test_only_attributes_that_are_looked_at_are_exported(shop: Shop):
    shop.service.put({**item(1, 1), "note": {"S": "long" * 1_000}})
    shop.service.clock.forward(minutes=1)
    (full,) = shop.sync().captured
    shop.service.put({**item(1, 1, "9"), "note": {"S": "long" * 1_000}})
    shop.service.clock.forward(hours=1)
    (increment,) = shop.sync().captured
    assert (full.billed_bytes < 400, increment.billed_bytes < 800) == (True, True)
    assert shop.rows() == [(1, 1, 1.5, "put"), (1, 1, 9, "put")]
    asked = [given for name, given in shop.service.calls if name == "ExportTableToPointInTime"]
    for given in asked:
        names = given["FilterSpecification"]["ExpressionAttributeNames"]
        assert {*names.values()} == {"customer", "at", "amount", "shop"}
        assert {*given["FilterSpecification"]} == {
            "ProjectionExpression",
            "ExpressionAttributeNames",
        }


def test_a_schema_that_was_changed_is_another_export(shop: Shop):
    window = Window(None, BEGUN)
    exports = Exports(shop.client, shop.table(), shop.target, projection=("customer", "at"))
    tokens = {
        replace(exports, projection=names).request(window)["ClientToken"]
        for names in ((), ("customer", "at"), ("customer", "at", "amount"))
    }
    assert len(tokens) == 3
    again = replace(exports).request(window)["ClientToken"]
    assert again in tokens


@pytest.mark.parametrize(("count", "is_asked"), [(1, True), (700, True), (1_200, False)])
def test_more_attributes_than_an_expression_takes_are_all_exported(
    shop: Shop, count: int, is_asked: bool
):
    names = tuple(f"attribute {at}" for at in range(count))
    exports = Exports(shop.client, shop.table(), shop.target, projection=names)
    given = exports.request(Window(None, BEGUN))
    assert ("FilterSpecification" in given) == is_asked
    if is_asked:
        expression = given["FilterSpecification"]["ProjectionExpression"]
        assert len(expression) <= 4_096
        named = given["FilterSpecification"]["ExpressionAttributeNames"]
        assert [named[each] for each in expression.split(",")] == list(names)
