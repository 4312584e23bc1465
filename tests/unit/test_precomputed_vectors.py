"""Vectors of precomputed services: bytes against protobuf, and writers that meet."""

from __future__ import annotations

import asyncio
import base64
import logging
import struct
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from feast.errors import FeastExtrasDependencyImportError
from feast.protos.feast.serving.ServingService_pb2 import (
    FieldStatus,
    GetOnlineFeaturesResponse,
)
from feast.protos.feast.types.Value_pb2 import DoubleList, RepeatedValue, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext._feast import hide_feasts_warnings
from feast_dynamo_ext.dynamo.batch_get import Reader
from feast_dynamo_ext.dynamo.layouts.packed import (
    MAX_KEY_BYTES,
    Row,
    RowSchema,
    pack,
    schema_key,
    to_item,
    to_schema_item,
)
from feast_dynamo_ext.dynamo.precomputed import maintain
from feast_dynamo_ext.dynamo.precomputed.lookup import RequestedView, add_vectors
from feast_dynamo_ext.dynamo.precomputed.vectors import (
    SERVICES_KEY,
    UNREAD_ROW,
    ServiceSpec,
    ServiceView,
    Vector,
    VectorRead,
    from_item,
    is_reserved,
    vector_of,
)
from feast_dynamo_ext.dynamo.precomputed.vectors import to_item as to_vector_item
from feast_dynamo_ext.dynamo.retry import RetryPolicy
from feast_dynamo_ext.dynamo.schemas import SchemaCache
from feast_dynamo_ext.dynamo.write import Writer
from feast_dynamo_ext.errors import IncompleteReadError, StaleVectorsError, ThrottledError

if TYPE_CHECKING:
    from collections.abc import Callable

ORDERS = RowSchema(("total", "note"), ("DOUBLE", "STRING"))
VISITS = RowSchema(("pages",), ("INT64",))
SPEC = ServiceSpec(
    "churn",
    (ServiceView("orders", "p.orders", ORDERS), ServiceView("visits", "p.visits", VISITS)),
)
PRESENT, NOT_FOUND = FieldStatus.PRESENT, FieldStatus.NOT_FOUND
OUTSIDE_MAX_AGE, INVALID = FieldStatus.OUTSIDE_MAX_AGE, FieldStatus.INVALID


def key(entity: int) -> str:
    return base64.b64encode(b"key-%06d" % entity).decode()


def serialized(*keys: str) -> Callable[[], list[bytes]]:
    return lambda: [base64.b64decode(each) for each in keys]


def row(entity: int, schema: RowSchema, values: list[Value], event_us: int, ttl_s=None) -> dict:
    raw = Row(base64.b64decode(key(entity)), pack(values), event_us, None)
    return to_item(raw, schema, ttl_s, "view")


def book() -> SchemaCache:
    known = SchemaCache()
    known.learn("p.orders", ORDERS)
    known.learn("p.visits", VISITS)
    return known


# Assembly

VALUES = st.one_of(
    st.just(Value()),
    st.floats(allow_nan=False).map(lambda number: Value(double_val=number)),
    st.text(max_size=200).map(lambda text: Value(string_val=text)),
    st.lists(st.floats(allow_nan=False), max_size=20).map(
        lambda numbers: Value(double_list_val=DoubleList(val=numbers))
    ),
)
DOUBLES = st.floats(allow_nan=False).map(lambda number: Value(double_val=number))
MICROS = st.integers(-(10**15), 4 * 10**15)


@st.composite
def entities(draw) -> list[tuple]:
    """For each row of a request: its rows of the two views, or None; as (values, event time)."""
    values = draw(st.sampled_from([VALUES, DOUBLES]))
    orders = st.none() | st.tuples(st.lists(values, min_size=2, max_size=2), MICROS)
    visits = st.none() | st.tuples(st.lists(values, min_size=1, max_size=1), MICROS)
    if draw(st.booleans()):
        orders = st.tuples(st.lists(values, min_size=2, max_size=2), MICROS)
        visits = st.tuples(st.lists(values, min_size=1, max_size=1), MICROS)
    return draw(st.lists(st.tuples(orders, visits), min_size=1, max_size=20))


def expected(found: list, position: int, oldest_us: float, with_expired: bool):
    """One feature vector, put together by protobuf alone."""
    vector = GetOnlineFeaturesResponse.FeatureVector()
    for entry in found:
        seconds, micros = divmod(entry[1], 1_000_000) if entry else (0, 0)
        vector.event_timestamps.append(Timestamp(seconds=seconds, nanos=micros * 1_000))
        expired = entry is not None and entry[1] < oldest_us
        hidden = entry is None or (expired and not with_expired)
        vector.values.append(Value() if hidden else entry[0][position])
        status = NOT_FOUND if entry is None else OUTSIDE_MAX_AGE if expired else PRESENT
        vector.statuses.append(status)
    return vector


@pytest.mark.slow
@given(found=entities(), oldest_us=MICROS | st.just(float("-inf")), with_expired=st.booleans())
def test_vectors_become_the_answer_that_protobuf_would_build(found, oldest_us, with_expired):
    vectors = []
    for orders, visits in found:
        rows = (
            row(1, ORDERS, *orders) if orders else None,
            row(1, VISITS, *visits) if visits else None,
        )
        item = to_vector_item(SPEC, SPEC.vector_key(key(1)), rows, book())
        vectors.append(from_item(SPEC, item))
    response = GetOnlineFeaturesResponse()
    asked = [
        RequestedView("visits", ["pages"], oldest_us, with_expired),
        RequestedView("orders", ["note", "total"]),
    ]
    add_vectors(response, SPEC, vectors, asked, full_names=True)
    assert list(response.metadata.feature_names.val) == [
        "visits__pages",
        "orders__note",
        "orders__total",
    ]
    orders, visits = zip(*found, strict=True)
    never = float("-inf")
    assert list(response.results) == [
        expected(visits, 0, oldest_us, with_expired),
        expected(orders, 1, never, False),
        expected(orders, 0, never, False),
    ]


def test_a_feature_that_a_row_was_written_without_is_not_found():
    narrow = RowSchema(("total",), ("DOUBLE",))
    known = book()
    known.learn("p.orders", narrow)
    old = row(1, narrow, [Value(double_val=1.0)], 5)
    new = row(1, ORDERS, [Value(double_val=2.0), Value(string_val="n")], 6)
    vectors = [vector_of(SPEC, (each, None), known) for each in (old, new)]
    response = GetOnlineFeaturesResponse()
    add_vectors(
        response, SPEC, vectors, [RequestedView("orders", ["total", "note"])], full_names=False
    )
    total, note = response.results
    assert [value.double_val for value in total.values] == [1.0, 2.0]
    assert list(total.statuses) == [PRESENT, PRESENT]
    assert [value.string_val for value in note.values] == ["", "n"]
    assert list(note.statuses) == [NOT_FOUND, PRESENT]
    # Past its ttl, the row says so of the feature too, as a plain read does.
    response = GetOnlineFeaturesResponse()
    add_vectors(response, SPEC, vectors, [RequestedView("orders", ["note"], 6)], full_names=False)
    assert list(response.results[0].statuses) == [OUTSIDE_MAX_AGE, PRESENT]


def test_a_vector_expires_with_the_last_of_its_rows_and_never_with_one_that_stays():
    orders = row(1, ORDERS, [Value(), Value()], 10_000_000, ttl_s=60)
    visits = row(1, VISITS, [Value()], 20_000_000, ttl_s=5)
    forever = row(1, VISITS, [Value()], 20_000_000)
    vector_key = SPEC.vector_key(key(1))
    assert to_vector_item(SPEC, vector_key, (orders, visits), book())["x"] == {"N": "71"}
    assert to_vector_item(SPEC, vector_key, (None, visits), book())["x"] == {"N": "26"}
    assert "x" not in to_vector_item(SPEC, vector_key, (orders, forever), book())


def test_a_vector_over_400_kb_is_not_read_as_one():
    large = row(1, ORDERS, [Value(), Value(string_val="x" * 300_000)], 1)
    other = row(1, VISITS, [Value(string_val="y" * 200_000)], 1)
    item = to_vector_item(SPEC, SPEC.vector_key(key(1)), (large, other), book())
    assert set(item) == {"k", "f"}
    assert from_item(SPEC, item) is None


# Specs and keys


def test_a_spec_survives_its_text_and_changes_with_everything_it_says():
    assert ServiceSpec.parse(SPEC.text) == SPEC
    assert SPEC.text == (
        '["churn",[["orders","p.orders","[[\\"total\\",\\"DOUBLE\\"],[\\"note\\",\\"STRING\\"]]"],'
        '["visits","p.visits","[[\\"pages\\",\\"INT64\\"]]"]]]'
    )
    others = [
        ServiceSpec("other", SPEC.views),
        ServiceSpec("churn", SPEC.views[:1]),
        ServiceSpec("churn", (ServiceView("orders", "q.orders", ORDERS), SPEC.views[1])),
        ServiceSpec("churn", (ServiceView("orders", "p.orders", VISITS), SPEC.views[1])),
    ]
    assert len({SPEC.fingerprint_text, *(other.fingerprint_text for other in others)}) == 5


@given(st.binary(min_size=8, max_size=100))
def test_the_key_of_a_vector_is_reserved_and_holds_the_entity_key(entity_key):
    text = base64.b64encode(entity_key).decode()
    vector_key = SPEC.vector_key(text)
    raw = base64.b64decode(vector_key)
    assert raw[:11] == b"\xff\xff\xff\xffvector:"
    assert raw[18:] == entity_key
    assert is_reserved(vector_key)
    assert is_reserved(text) == entity_key.startswith(b"\xff\xff\xff\xff")


def test_an_entity_key_that_leaves_no_room_has_no_vector():
    fits = base64.b64encode(bytes(MAX_KEY_BYTES - 18)).decode()
    too_long = base64.b64encode(bytes(MAX_KEY_BYTES - 17)).decode()
    assert len(base64.b64decode(SPEC.vector_key(fits))) == MAX_KEY_BYTES
    assert SPEC.vector_key(too_long) is None


# Writers that meet


class Tables:
    """DynamoDB in memory, as far as reading and overwriting go; `before` runs first."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, dict]] = {"p.orders": {}, "p.visits": {}}
        self.before = lambda operation: None
        self.reads: list[list[str]] = []

    async def call(self, operation, body, resource, timeout_s=float("inf")):
        self.before(operation)
        requests = body["RequestItems"]
        if operation == "BatchGetItem":
            self.reads.append([k["k"]["B"] for entry in requests.values() for k in entry["Keys"]])
            return {
                "Responses": {
                    table: [
                        self.items[table][one["k"]["B"]]
                        for one in entry["Keys"]
                        if one["k"]["B"] in self.items[table]
                    ]
                    for table, entry in requests.items()
                }
            }
        for table, puts in requests.items():
            for put in puts:
                item = put["PutRequest"]["Item"]
                self.items[table][item["k"]["B"]] = item
        return {}

    def put(self, table: str, item: dict) -> None:
        self.items[table][item["k"]["B"]] = item

    def vector(self, entity: int) -> Vector | None:
        item = self.items["p.orders"].get(SPEC.vector_key(key(entity)))
        return from_item(SPEC, item) if item else None


async def no_pause(seconds: float) -> None:
    """Waits for nobody."""


@pytest.fixture
def tables() -> Tables:
    held = Tables()
    held.put("p.orders", to_schema_item(ORDERS))
    held.put("p.visits", to_schema_item(VISITS))
    for table in held.items:
        held.put(table, {"k": {"B": SERVICES_KEY}, "p:churn": {"S": SPEC.text}})
    return held


def connect(tables: Tables, deadline_s: float = 60.0):
    policy = RetryPolicy(deadline_s, sleep=no_pause)
    return SimpleNamespace(
        transport=tables,
        reader=Reader(tables, policy),
        writer=Writer(tables, policy),
        schemas=book(),
    )


def orders_row(number: float, event_us: int = 1) -> dict:
    return row(1, ORDERS, [Value(double_val=number), Value()], event_us)


def visits_row(number: int, event_us: int = 1) -> dict:
    return row(1, VISITS, [Value(int64_val=number)], event_us)


def numbers(vector: Vector) -> tuple[float, int]:
    values = RepeatedValue.FromString(vector.packed).val
    return values[0].double_val, values[2].int64_val


def test_a_row_that_another_writer_changes_meanwhile_ends_up_in_the_vector(tables):
    tables.put("p.orders", orders_row(1.0))
    tables.put("p.visits", visits_row(1))

    def another_writer(operation):
        # It wrote its row after ours was read, and its vector before ours is written.
        if operation == "BatchWriteItem":
            tables.before = lambda operation: None
            tables.put("p.visits", visits_row(2))
            rows = (orders_row(1.0), visits_row(2))
            tables.put("p.orders", to_vector_item(SPEC, SPEC.vector_key(key(1)), rows, book()))

    tables.before = another_writer
    asyncio.run(maintain.renew(connect(tables), "p.orders", ORDERS, serialized(key(1))))
    assert numbers(tables.vector(1)) == (1.0, 2)


def test_rows_that_change_all_the_time_end_in_an_error(tables):
    tables.put("p.orders", orders_row(1.0))
    moments = iter(range(2, sys.maxsize))

    def another_writer(operation):
        if operation == "BatchWriteItem":
            tables.put("p.visits", visits_row(2, event_us=next(moments)))

    tables.before = another_writer
    connection = connect(tables)
    ticks = iter(range(sys.maxsize))
    policy = RetryPolicy(20.0, sleep=no_pause, clock=lambda: float(next(ticks)))
    connection.writer = Writer(tables, policy)
    with pytest.raises(StaleVectorsError, match="rows of 1 entities are written, but the vectors"):
        asyncio.run(maintain.renew(connection, "p.orders", ORDERS, serialized(key(1))))


def test_a_service_that_its_home_does_not_name_gets_no_vectors(tables):
    tables.put("p.visits", visits_row(1))
    tables.put("p.orders", {"k": {"B": SERVICES_KEY}})
    asyncio.run(maintain.renew(connect(tables), "p.visits", VISITS, serialized(key(1))))
    assert tables.vector(1) is None


def test_a_table_without_services_costs_two_keys(tables):
    tables.put("p.orders", {"k": {"B": SERVICES_KEY}})
    tables.put("p.orders", to_schema_item(ORDERS))
    asyncio.run(maintain.renew(connect(tables), "p.orders", ORDERS, serialized(key(1), key(2))))
    assert tables.reads == [[SERVICES_KEY, schema_key(ORDERS.fingerprint)]]


def test_a_schema_item_that_is_gone_is_written_again(tables):
    tables.items["p.orders"].clear()
    asyncio.run(maintain.renew(connect(tables), "p.orders", ORDERS, serialized(key(1))))
    assert to_schema_item(ORDERS) in tables.items["p.orders"].values()


def test_a_row_that_nobody_can_explain_makes_no_vector_and_is_marked_in_its_view(tables):
    strange = {**orders_row(1.0), "f": {"B": "c3RyYW5nZSE="}}
    tables.put("p.orders", strange)
    tables.put("p.visits", visits_row(2))
    asyncio.run(maintain.renew(connect(tables), "p.visits", VISITS, serialized(key(1))))
    assert tables.vector(1) is None
    found = asyncio.run(
        VectorRead(SPEC, (key(1),)).run(connect(tables).reader, connect(tables).schemas)
    )
    ((vector,), from_views) = found
    assert from_views == 1
    assert struct.unpack("<2q", vector.head) == (UNREAD_ROW, 1)
    assert RepeatedValue.FromString(vector.packed).val[2] == Value(int64_val=2)


def test_vectors_that_cannot_be_renewed_are_an_error_that_says_so(tables):
    def throttled(operation):
        if operation == "BatchWriteItem":
            raise ThrottledError("slow down.")

    tables.put("p.orders", orders_row(1.0))
    tables.before = throttled
    connected = connect(tables)
    connected.writer = connect(tables, 0.0).writer
    with pytest.raises(StaleVectorsError, match=r"Write the same rows again\.$") as caught:
        asyncio.run(maintain.renew(connected, "p.orders", ORDERS, serialized(key(1))))
    assert "feature service churn" in str(caught.value)


def test_what_cannot_be_read_is_an_error_or_marked(tables):
    tables.put("p.orders", to_vector_item(SPEC, SPEC.vector_key(key(1)), (None, None), book()))

    def throttled(operation):
        raise ThrottledError("slow down.")

    tables.before = throttled
    connection = connect(tables, 0.0)
    read = VectorRead(SPEC, (key(1), None))
    with pytest.raises(IncompleteReadError):
        asyncio.run(read.run(connection.reader, connection.schemas))
    marked = VectorRead(SPEC, (key(1), None), mark=True)
    vectors, without = asyncio.run(marked.run(connection.reader, connection.schemas))
    response = GetOnlineFeaturesResponse()
    add_vectors(response, SPEC, vectors, [RequestedView("visits", ["pages"])], full_names=False)
    assert list(response.results[0].statuses) == [INVALID, NOT_FOUND]
    assert without == 0


# Feast's warnings


def test_of_feasts_messages_only_those_that_are_wrong_here_are_hidden(caplog):
    logger, registrys = map(logging.getLogger, ("feast.feature_store", "feast.repo_config"))
    hide_feasts_warnings()
    hide_feasts_warnings()
    with caplog.at_level(logging.WARNING, "feast.feature_store"):
        logger.warning("Entity scanning not supported for '%s' — ...", "DynamoOnlineStore")
        logger.warning("Entity scanning not supported for '%s' — ...", "SqliteOnlineStore")
        for error in (FeastExtrasDependencyImportError("redis", "no redis"), KeyError("x")):
            logger.warning("Failed to precompute vectors for '%s'", "churn", exc_info=error)
        registrys.warning("`serve_features_while_materializing` is enabled but ... no effect.")
        registrys.warning("`serve_features_while_materializing` is enabled together with ...")
    assert [record.getMessage() for record in caplog.records] == [
        "Entity scanning not supported for 'SqliteOnlineStore' — ...",
        "Failed to precompute vectors for 'churn'",
        "`serve_features_while_materializing` is enabled together with ...",
    ]
