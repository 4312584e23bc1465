"""Series over a captured table: what the stream and `feast materialize` leave online is what the
table's own log says, and what training has."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import boto3
import captured
import pandas as pd
import pyarrow as pa
import pytest
from captured import CUSTOMER, Change, Table, events_of
from feast import FeatureView, Field
from feast.aggregation import Aggregation
from feast.types import Int64, UnixTimestamp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from repos import REGION

from feast_dynamo_ext import Series, ViewSettings, online_series, recent, windows
from feast_dynamo_ext.capture.captured import columns_of, history_of, with_event_columns
from feast_dynamo_ext.capture.dynamo_table import DynamoTable
from feast_dynamo_ext.capture.erasure.erase_online import OnlineViews
from feast_dynamo_ext.capture.erasure.person import Person, PersonRows, columns_of_history
from feast_dynamo_ext.capture.stream.online_changes import OnlineChanges
from feast_dynamo_ext.capture.stream.stream_records import converted, stream_records
from feast_dynamo_ext.capture.values.change_rows import RecordReader
from feast_dynamo_ext.dynamo.series_read import as_of
from feast_dynamo_ext.dynamo.write import NOTED_S
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.online_store import DynamoOnlineStore
from feast_dynamo_ext.timestamps import micros_of

if TYPE_CHECKING:
    from feast import FeatureStore

pytestmark = pytest.mark.server

NUMBERS = itertools.count()
SECOND = dt.timedelta(seconds=1)
BEGUN = dt.datetime.now(dt.timezone.utc).replace(microsecond=0) - dt.timedelta(hours=1)
SCHEMA = [
    Field(name="order", dtype=Int64),
    Field(name="customer", dtype=Int64),
    Field(name="bought", dtype=UnixTimestamp),
    Field(name="value", dtype=Int64),
]
KEYS = {"both": ("customer", "order"), "order": ("order",), "time": ("customer", "bought")}


def make_table(dynamodb: Any, name: str, keys: tuple[str, ...]) -> Any:
    """A table of the application, whose items expire by `until`."""
    client = boto3.client("dynamodb", region_name=REGION, endpoint_url=dynamodb.endpoint)
    client.create_table(
        TableName=name,
        KeySchema=[
            {"AttributeName": key, "KeyType": how}
            for key, how in zip(keys, ("HASH", "RANGE"), strict=False)
        ],
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "N"} for key in keys],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    client.update_time_to_live(
        TableName=name, TimeToLiveSpecification={"Enabled": True, "AttributeName": "until"}
    )
    return client


def view_of(source: Any, name: str, *, deletes: str | None = None, **series: Any) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[CUSTOMER],
        schema=[
            Field(name="customer", dtype=Int64),
            Field(name="order", dtype=Int64),
            Field(name="value", dtype=Int64),
        ],
        source=source,
        ttl=dt.timedelta(0),
        tags=ViewSettings(series=Series(**series), deletes=deletes).tags(),
    )


def derived_of(base: FeatureView) -> list[FeatureView]:
    day = dt.timedelta(days=1)
    functions = [("count", ""), ("sum", "value"), ("last", "value"), ("max", "value")]
    return [
        windows(
            base,
            name=f"{base.name}_windows",
            aggregations=[
                Aggregation(column=column, function=function, time_window=day)
                for function, column in functions
            ],
        ),
        recent(base, name=f"{base.name}_last", last=3, features=["order", "value"]),
    ]


@dataclass
class Shop:
    """A store with series over a captured table: `applies`, and `ignores` deletions."""

    store: FeatureStore
    client: Any
    source: Any
    facts: DynamoTable
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def online(self) -> OnlineChanges:
        return OnlineChanges.from_store(self.store, self.source)

    def converted(self, records: list[dict[str, Any]]) -> Any:
        columns = with_event_columns(columns_of(self.source, self.facts), self.source, self.store)
        return converted(RecordReader(columns), stream_records(records, "shard"))

    def rows(self, view: str, *customers: int) -> dict[int, list[tuple[Any, int, int]]]:
        """(event time, order, value) of the events of customers."""
        with as_of(BEGUN + dt.timedelta(days=1)):
            found = online_series(
                self.store,
                [f"{view}:order", f"{view}:value"],
                [{"customer": customer} for customer in customers],
                last=1_000,
            ).to_dict()
        columns = zip(found["event_time"], found["order"], found["value"], strict=True)
        rows = (list(zip(*each, strict=True)) for each in columns)
        return dict(zip(customers, rows, strict=True))

    def events(self, view: str, *customers: int) -> dict[int, list[tuple[int, int, int]]]:
        """(seconds, order, value) of the events of customers, the oldest first."""
        return {
            customer: sorted(((time - BEGUN) // SECOND, *rest) for time, *rest in rows)
            for customer, rows in self.rows(view, *customers).items()
        }

    def items(self, view: str) -> list[dict[str, Any]]:
        found = self.client.scan(TableName=f"{self.store.project}.{view}")["Items"]
        return [item for item in found if "t" in item]


@pytest.fixture
def open_shop(open_store, dynamodb, tmp_path_factory):
    def open_shop(keys: str, **source: Any) -> Shop:
        number = next(NUMBERS)
        name, folder = f"events{number}", tmp_path_factory.mktemp("events")
        client = make_table(dynamodb, name, KEYS[keys])
        online = {"endpoint_url": dynamodb.endpoint, "region": REGION, "max_future": None}
        if dynamodb.name == "moto":  # it takes no binary values in PartiQL
            online["newest_wins_with"] = "put_item"
        store = open_store(f"e{number}", online=online, offline={"catalog": captured.CATALOG})
        made = captured.source_of(
            name=name,
            table=name,
            history=f"{folder}/history",
            event_time_unit="s",
            schema=SCHEMA,
            **source,
        )
        applies, ignores = view_of(made, "applies"), view_of(made, "ignores", deletes="ignore")
        store.apply([CUSTOMER, made, applies, ignores, *derived_of(applies), *derived_of(ignores)])
        return Shop(store, client, made, DynamoTable.from_table(client, made))

    return open_shop


# The application's table


@dataclass
class Application:
    """Items of a table, the records of its stream, and by definition what is an event.

    Attributes:
        keys: the table's key attributes.
        ends: what ends events: `delete`, `expire`.
        kept: items that were removed, and whose event stays.
    """

    keys: tuple[str, ...]
    ends: frozenset[str]
    items: dict[tuple[int, ...], dict[str, int]] = field(default_factory=dict)
    events: dict[tuple[int, int, int], int] = field(default_factory=dict)
    kept: set[tuple[int, ...]] = field(default_factory=set)
    records: list[dict[str, Any]] = field(default_factory=list)

    def put(self, item: dict[str, int]) -> None:
        """Write an item. One that comes again after its event was kept is left out: the stream
        does not say which event it was."""
        key = tuple(item[name] for name in self.keys)
        old = self.items.get(key)
        if key in self.kept or item == old:
            return
        if old is not None:
            del self.events[self._event(old)]
        self.items[key] = item
        self.events[self._event(item)] = item["value"]
        self._record("INSERT" if old is None else "MODIFY", key, old, item)

    def remove(self, key: tuple[int, ...], *, expired: bool) -> None:
        """Delete an item, or have it expire."""
        old = self.items.pop(key, None)
        if old is None:
            return
        if expired:
            old = {**old, "until": int(BEGUN.timestamp()) - 1}
        if ("expire" if expired else "delete") in self.ends:
            del self.events[self._event(old)]
        else:
            self.kept.add(key)
        self._record("REMOVE", key, old, None)

    def _event(self, item: dict[str, int]) -> tuple[int, int, int]:
        return item["customer"], item["bought"], item["order"]

    def _record(self, name: str, key: Any, old: Any, new: Any) -> None:
        number = len(self.records)
        body: dict[str, Any] = {
            "ApproximateCreationDateTime": BEGUN + (number + 1) * SECOND,
            "SequenceNumber": str(10**20 + number),
            "StreamViewType": "NEW_AND_OLD_IMAGES",
            "Keys": image(dict(zip(self.keys, key, strict=True))),
        }
        body |= {"OldImage": image(old)} if old else {}
        body |= {"NewImage": image(new)} if new else {}
        self.records.append({"eventID": f"c{number}", "eventName": name, "dynamodb": body})

    def by_customer(self, customers: tuple[int, ...]) -> dict[int, list[tuple[int, int, int]]]:
        """The events of customers as `Shop.events` answers them."""
        return {
            each: sorted(
                (bought - int(BEGUN.timestamp()), order, value)
                for (customer, bought, order), value in self.events.items()
                if customer == each
            )
            for each in customers
        }


def image(item: dict[str, int]) -> dict[str, Any]:
    return {name: {"N": str(value)} for name, value in item.items()}


CUSTOMERS = (1, 2)
QUICK = settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.generate],  # each example makes tables: none is tried again to be made smaller
    suppress_health_check=list(HealthCheck),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "delete", "expire"]),
        st.integers(1, 2),  # customer
        st.integers(1, 3),  # order
        st.sampled_from([-50, -40, -40, -30, -20]),  # seconds
    ),
    min_size=1,
    max_size=25,
)


def application(keys: tuple[str, ...], ends: frozenset[str], steps: Any) -> Application:
    made = Application(keys, ends)
    for value, (what, customer, order, at) in enumerate(steps):
        bought = int(BEGUN.timestamp()) + at
        item = {"customer": customer, "order": order, "bought": bought, "value": value}
        if what == "put":
            made.put(item)
        else:
            key = tuple(item[name] for name in keys)
            made.remove(key, expired=what == "expire")
    return made


@QUICK
@given(
    steps=STEPS,
    keys=st.sampled_from(sorted(KEYS)),
    how=st.sampled_from([("applies", "keep"), ("applies", "delete"), ("ignores", "keep")]),
    cuts=st.lists(st.integers(0, 25), max_size=3),
    again=st.lists(st.integers(0, 25), max_size=4),
)
def test_the_stream_leaves_the_events_of_the_log(open_shop, steps, keys, how, cuts, again):
    view, expiry = how
    shop = open_shop(keys, expiry=expiry)
    online = shop.online
    ends = {"applies": {"delete", *(["expire"] if expiry == "delete" else [])}, "ignores": set()}
    made = application(KEYS[keys], frozenset(ends[view]), steps)
    records, expected = made.records, made.by_customer(CUSTOMERS)
    edges = sorted({0, len(records), *(cut for cut in cuts if cut < len(records))})
    batches = [records[start:end] for start, end in itertools.pairwise(edges)]
    for at, batch in enumerate(batches):
        online.apply(shop.converted(batch).rows).checked()
        if at % 2:  # all again from the one before, as after a kill
            for each in batches[at - 1 : at + 1]:
                online.apply(shop.converted(each).rows).checked()
    assert shop.events(view, *CUSTOMERS) == expected
    # Alone and late, in any order: what is older undoes nothing.
    for number in again:
        for record in records[number : number + 1]:
            online.apply(shop.converted([record]).rows).checked()
    assert shop.events(view, *CUSTOMERS) == expected

    # The same in training, and after materialization of the history.
    _, history = history_of(shop.source, shop.facts, shop.store.config)
    history.add_changes(shop.converted(records))
    compare(shop, view)
    shop.store.materialize(BEGUN - 100 * SECOND, BEGUN + 100 * SECOND, feature_views=[view])
    assert shop.events(view, *CUSTOMERS) == expected
    compare(shop, view)


def compare(shop: Shop, view: str) -> None:
    """Requests and training answer alike."""
    moment = BEGUN + 60 * SECOND
    refs = [
        f"{each}:{one.name}"
        for each in (f"{view}_windows", f"{view}_last")
        for one in shop.store.get_feature_view(each).features
    ]
    rows = [{"customer": customer} for customer in CUSTOMERS]
    with as_of(moment):
        online = shop.store.get_online_features(refs, rows).to_dict()
    entities = pd.DataFrame({"customer": CUSTOMERS, "event_timestamp": [moment] * len(rows)})
    offline = shop.store.get_historical_features(
        entities, refs, filter_by_created_timestamp=True
    ).to_arrow()
    for name, answered in online.items():
        assert answered == offline.column(name).to_pylist(), name


# By the history alone


@st.composite
def logs(draw) -> list[tuple[int, list[Change]]]:
    """Commits of a log, each with the moment at which it is materialized."""
    table, written, commits = Table(), 10, []
    values = itertools.count()
    for _ in range(draw(st.integers(1, 4))):
        begun = len(table.log)
        for _ in range(draw(st.integers(1, 6))):
            written += draw(st.sampled_from([0, 1, 3]))
            item = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
            what = draw(st.sampled_from(["put", "put", "put", "delete", "expire"]))
            if what == "put":
                event = written + draw(st.sampled_from([-9, -4, -1, 0, 4]))
                table.put(item, event, written, next(values))
            else:
                table.delete(item, written, expired=what == "expire")
        commits.append((written, table.log[begun:]))
        written += 1
    return commits


@QUICK
@given(commits=logs(), expiry=st.sampled_from(["keep", "delete"]), is_wide=st.booleans())
def test_materialization_leaves_the_living_events(open_shop, commits, expiry, is_wide):
    """Also those of an item that is known by its order alone, and goes over to a customer."""
    keys = "order" if is_wide else "both"
    shop = open_shop(keys, expiry=expiry)
    handle = captured.TableHandle.from_source(shop.source, shop.store.config)
    ends = frozenset({"delete", "expire"} if expiry == "delete" else {"delete"})
    log: list[Change] = []
    start = 0
    for moment, changes in commits:
        if changes:
            append(handle, changes, is_wide=is_wide)
        log += [alone(each) if is_wide else each for each in changes]
        shop.store.materialize(captured.at(start), captured.at(moment))
        start = moment
        for view in ("applies", "ignores"):
            found = events_of(log, moment, ends=ends, known=False, applies=view == "applies")
            expected: dict[int, list[Any]] = {customer: [] for customer in CUSTOMERS}
            for row in found:
                if row.event <= moment:
                    customer = 1 + (row.value or 0) % 2 if is_wide else row.item[0]
                    expected[customer].append((row.event, row.item[-1], row.value))
            answered = {
                customer: sorted(
                    (micros_of(time) - micros_of(captured.START), order, value)
                    for time, order, value in rows
                )
                for customer, rows in shop.rows(view, *CUSTOMERS).items()
            }
            assert answered == {each: sorted(rows) for each, rows in expected.items()}


def alone(change: Change) -> Change:
    """Of a table whose key is the order's number alone."""
    return dataclasses.replace(change, item=(10 * change.item[0] + change.item[1],))


def append(handle: Any, changes: list[Change], *, is_wide: bool) -> None:
    """Append changes to the history; the customer of an order goes by its value."""
    if not is_wide:
        captured.append(handle, changes, ("customer", "order"))
        return
    changes = [alone(each) for each in changes]
    rows = captured.rows_of_changes(handle, changes, ("order",))
    customers = pa.array([1 + (each.value or 0) % 2 for each in changes], pa.int64())
    rows = rows.append_column("customer", customers)
    handle.append(
        rows.select([name for name in handle.columns().names if name in rows.schema.names])
    )


def test_what_a_series_over_a_table_lacks_is_said_before_anything_is_made(open_shop):
    shop = open_shop("both")
    no_order = FeatureView(
        name="short",
        entities=[CUSTOMER],
        schema=[Field(name="customer", dtype=Int64), Field(name="value", dtype=Int64)],
        source=shop.source,
        tags=ViewSettings(series=Series()).tags(),
    )
    with pytest.raises(ConfigError, match="told apart by `order` of the table's key"):
        shop.store.apply([no_order])
    coarse = view_of(shop.source, "coarse", tie_breaker="value")
    with pytest.raises(ConfigError, match="leaves out `order` of the table's key"):
        shop.store.apply([coarse])
    tables = shop.client.list_tables()["TableNames"]
    assert not any(name.endswith((".short", ".coarse")) for name in tables)


def test_where_an_event_was_deleted_nothing_older_comes_for_two_days(open_shop):
    shop = open_shop("both")
    item = {"customer": 1, "order": 1, "bought": int(BEGUN.timestamp()), "value": 7}
    made = Application(KEYS["both"], frozenset({"delete"}))
    made.put(item)
    made.remove((1, 1), expired=False)
    now_s = int(dt.datetime.now(dt.timezone.utc).timestamp())
    shop.online.apply(shop.converted(made.records).rows).checked()
    (left,) = shop.items("applies")
    assert set(left) == {"k", "s", "t", "c", "x"}
    assert int(left["x"]["N"]) - now_s - NOTED_S in range(60)
    assert shop.events("applies", 1) == {1: []}
    shop.online.apply(shop.converted(made.records[:1]).rows).checked()
    assert shop.events("applies", 1) == {1: []}
    # A newer one does, and takes its place.
    made.put({**item, "value": 8})
    shop.online.apply(shop.converted(made.records[2:]).rows).checked()
    assert shop.events("applies", 1) == {1: [(0, 1, 8)]}
    assert len(shop.items("applies")) == 1


def test_the_newest_events_are_found_behind_deleted_ones(open_shop):
    shop = open_shop("both")
    made = Application(KEYS["both"], frozenset({"delete"}))
    begun = int(BEGUN.timestamp())
    for order in range(1, 31):
        made.put({"customer": 1, "order": order, "bought": begun + order, "value": order})
    for order in range(11, 31):
        made.remove((1, order), expired=False)
    shop.online.apply(shop.converted(made.records).rows).checked()
    with as_of(BEGUN + 60 * SECOND):
        found = shop.store.get_online_features(
            ["applies:value", "applies_last:value_last_3"], [{"customer": 1}]
        ).to_dict()
    assert (found["value"], found["value_last_3"]) == ([10], [[10, 9, 8]])


def test_erasure_leaves_no_event_of_somebody_nor_where_one_was(open_shop):
    shop = open_shop("both")
    made = Application(KEYS["both"], frozenset({"delete"}))
    begun = int(BEGUN.timestamp())
    for customer, order in [(1, 1), (1, 2), (2, 2), (2, 3)]:
        made.put({"customer": customer, "order": order, "bought": begun + order, "value": order})
    made.remove((1, 1), expired=False)
    changes = shop.converted(made.records)
    shop.online.apply(changes.rows).checked()
    _, history = history_of(shop.source, shop.facts, shop.store.config)
    history.add_changes(changes)
    assert len(shop.items("applies")) == 4

    def erased(**given: str) -> OnlineViews:
        columns = columns_of_history(shop.source, history.handle.load(), shop.facts.keys)
        person = Person.from_texts(shop.source, columns, given)
        views = [shop.store.get_feature_view("applies")]
        online = OnlineViews(shop.store.config, DynamoOnlineStore(), views)
        with online.held():
            (found,) = online.find(history.handle, PersonRows(person), person)
            assert found.entities == 1
            now = dt.datetime.now(dt.timezone.utc) + dt.timedelta(hours=1)
            assert online.delete(micros_of(now)) == {"applies": 0}
        return online

    erased(customer="1")
    assert shop.events("applies", 1, 2) == {1: [], 2: [(2, 2, 2), (3, 3, 3)]}
    assert len(shop.items("applies")) == 2  # not the place of a deleted event either
    # Somebody who is known by what is not all of the entity: their events alone.
    erased(order="3")
    assert shop.events("applies", 2) == {2: [(2, 2, 2)]}
