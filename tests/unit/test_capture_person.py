"""Whose rows are erased: the same person in columns, in DynamoDB JSON, and as a digest."""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from decimal import Context, Decimal, localcontext
from typing import Any

import boto3.dynamodb.types as boto
import numpy as np
import pyarrow as pa
import pytest
from feast import Field
from feast.types import Bytes, Float64, Int64, String, UnixTimestamp, Uuid
from feast.types import Decimal as FeastDecimal
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext import DynamoDBTableSource
from feast_dynamo_ext.capture.erasure.erased_keys import ErasedKeys, ErasedLately
from feast_dynamo_ext.capture.erasure.person import Person, canonical, digest
from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns
from feast_dynamo_ext.capture.values.change_rows import QUARANTINE, RecordReader
from feast_dynamo_ext.errors import CaptureError, OfflineStoreError

ID = uuid.UUID("5f2e9a31-0000-4000-8000-00000000abcd")
SOURCE = DynamoDBTableSource(
    name="people",
    table="people",
    event_time="at",
    event_time_unit="ms",
    history="history",
    schema=[
        Field(name="at", dtype=UnixTimestamp),
        Field(name="number", dtype=Int64),
        Field(name="text", dtype=String),
        Field(name="data", dtype=Bytes),
        Field(name="who", dtype=Uuid),
        Field(name="sum", dtype=FeastDecimal, tags={"precision": "9", "scale": "2"}),
        Field(name="city", dtype=String, tags={"attribute": '["address", "city"]'}),
        Field(name="weight", dtype=Float64),
    ],
)
COLUMNS = CapturedColumns.from_fields(
    SOURCE.fields,
    keys={"number": "N", "at": "N"},
    event_time="at",
    event_time_unit="ms",
)
WHOLE = {
    "number": {"N": "5"},
    "at": {"N": "1767608400250"},
    "text": {"S": 'Zoë "4711"'},
    "data": {"B": base64.b64encode(b"\x00\xff").decode()},
    "who": {"S": str(ID).upper()},
    "sum": {"N": "1.5"},
    "address": {"M": {"city": {"S": "Ulm"}}},
}


def person(**texts: str) -> Person:
    return Person.from_texts(SOURCE, COLUMNS, texts)


# What a person writes, and other items that are not of them.
CASES = [
    ({"number": "5"}, {"number": {"N": "50"}}),
    ({"number": "5.0"}, {"number": {"N": "-5"}}),
    ({"number": "5", "at": "1767608400250"}, {"at": {"N": "1767608400251"}}),
    ({"text": 'Zoë "4711"'}, {"text": {"S": "Zoe"}}),
    ({"data": "AP8="}, {"data": {"B": "AP4="}}),
    ({"who": str(ID)}, {"who": {"S": str(uuid.UUID(int=1))}}),
    ({"sum": "1.50"}, {"sum": {"N": "1.51"}}),
    ({"address.city": "Ulm"}, {"address": {"M": {"city": {"S": "Bonn"}}}}),
    ({"city": "Ulm"}, {"address": {"M": {}}}),
]


@pytest.mark.parametrize(("texts", "another"), CASES)
def test_the_same_person_in_rows_and_in_records(texts: dict[str, str], another: dict[str, Any]):
    wanted = person(**texts)
    converted = RecordReader(COLUMNS).converted(
        [{"Item": WHOLE}, {"Item": {**WHOLE, **another}}], [1, 1], ["", ""]
    )
    assert converted.rows.num_rows == 2
    assert wanted.are_in(converted.rows).tolist() == [True, False]
    for name in ("Item", "OldImage", "NewImage"):
        assert wanted.is_in({name: WHOLE})
        assert not wanted.is_in({name: {**WHOLE, **another}})
    assert wanted.is_in({"OldImage": {**WHOLE, **another}, "NewImage": WHOLE})
    (value,) = converted.rows.select(list(wanted.names)).slice(0, 1).to_pylist()
    assert tuple(map(canonical, value.values())) == wanted.texts


@pytest.mark.parametrize(
    "image",
    [
        {"number": {"S": "5"}},
        {"number": {"N": "5"}, "at": {"S": "?"}},
        {"number": {"N": "5.00"}, "weight": {"S": "heavy"}},
    ],
)
def test_records_that_do_not_fit_are_theirs_too(image: dict[str, Any]):
    assert person(number="5").is_in({"Item": image})


@pytest.mark.parametrize(
    "record",
    [
        {},
        *({"Item": image} for image in (None, {}, [], {"number": None}, {"number": {}})),
        *({"Item": {"number": each}} for each in ({"L": []}, {"N": "five"}, {"N": 5})),
    ],
)
def test_records_without_a_value_are_nobodys(record: dict[str, Any]):
    assert not person(number="5").is_in(record)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_whole_numbers_as_boto_writes_them(one: int, other: int):
    wanted = person(number=str(one))
    for value in (one, other):
        record = {"Item": {"number": boto.TypeSerializer().serialize(value)}}
        assert wanted.is_in(record) == (one == value)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4))
def test_a_number_is_one_text_however_it_is_written(number: Decimal):
    text = canonical(number)
    assert Decimal(text) == number
    assert "E" not in text
    with localcontext(Context(prec=60)):
        assert canonical(number * Decimal("1.000")) == canonical(number.normalize()) == text


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"nmber": "5"}, "no attribute `nmber`. Did you mean `number`"),
        ({"number": "5.5"}, "no value of it"),
        ({"number": ""}, "no value of it"),
        ({"data": "?"}, "bytes that are not base64"),
        ({"weight": "1"}, "`weight` is Float64, by which nobody is known"),
    ],
)
def test_what_is_no_value_is_refused(texts: dict[str, str], said: str):
    with pytest.raises(CaptureError) as refused:
        person(**texts)
    assert said in str(refused.value)


def test_a_query_of_their_items_names_the_key_alone():
    assert person(number="5", at="17").query() == {
        "KeyConditionExpression": "#k0 = :k0 AND #k1 = :k1",
        "ExpressionAttributeNames": {"#k0": "number", "#k1": "at"},
        "ExpressionAttributeValues": {":k0": {"N": "5"}, ":k1": {"N": "17"}},
    }
    assert person(text="a").query() is None
    assert person(number="5", text="a").query() is None


def test_digests_say_who_and_not_their_name():
    salt, other = b"a" * 16, b"b" * 16
    one = digest(salt, ["number", "text"], ["5", "zoe"])
    assert one == digest(salt, ["text", "number"], ["zoe", "5"])
    different = [
        digest(other, ["number", "text"], ["5", "zoe"]),
        digest(salt, ["number", "text"], ["5", "zoë"]),
        digest(salt, ["number"], ["5"]),
    ]
    assert len({one, *different}) == 4
    assert "zoe" not in one


def test_what_was_written_before_is_dropped_of_any_size():
    salt, moment = b"a" * 16, 1_000
    known = {
        ("number",): {digest(salt, ["number"], [str(number)]): moment for number in (3, 7)},
        ("text",): {digest(salt, ["text"], ["zoe"]): 10 * moment},
    }
    items = [
        {**WHOLE, "number": {"N": str(number)}, "text": {"S": "zoe" if number == 5 else "a"}}
        for number in range(9)
    ]
    misfits = [{**each, "sum": {"N": "1.234"}} for each in items]
    for written, gone in ((moment - 1, {3, 5, 7}), (moment, {5}), (10 * moment, set())):
        part = RecordReader(COLUMNS).converted(
            [{"Item": each} for each in (*items, *misfits)],
            [written] * 18,
            [str(at) for at in range(18)],
        )
        assert (part.rows.num_rows, part.quarantine.num_rows) == (9, 9)
        # Puts alone need no look into a history.
        erased: Any = ErasedKeys(None, COLUMNS, salt, known)  # type: ignore[arg-type]
        kept, dropped = erased.without(part)
        left = set(range(9)) - gone
        assert set(kept.rows.column("number").to_pylist()) == left
        assert {int(each) - 9 for each in kept.quarantine.column("origin").to_pylist()} == left
        assert (dropped, kept.records) == (2 * len(gone), 18)
        assert kept.rows.schema.equals(part.rows.schema)
        assert kept.quarantine.schema.equals(QUARANTINE)


def test_times_are_theirs_by_their_moment():
    moment = dt.datetime(2026, 1, 5, 10, 20, 0, 250_000, dt.timezone.utc)
    rows = pa.record_batch(
        {
            "at": pa.array(
                [moment, moment + dt.timedelta(milliseconds=1)], pa.timestamp("us", "UTC")
            )
        }
    )
    assert np.array_equal(person(at="1767608400250").are_in(rows), [True, False])


def test_what_goes_online_is_looked_up_once_a_minute(caplog: pytest.LogCaptureFixture):
    salt, now, reads = b"a" * 16, [0.0], []
    known = {("number",): {digest(salt, ["number"], ["5"]): 1_000}}
    answers: list[Any] = [None, ErasedKeys(None, COLUMNS, salt, known)]  # type: ignore[arg-type]

    def read() -> Any:
        reads.append(now[0])
        if not answers:
            raise OfflineStoreError("the catalog is away")
        return answers.pop(0)

    lately = ErasedLately(read, clock=lambda: now[0])
    items = [{"Item": {**WHOLE, "number": {"N": str(number)}}} for number in (5, 6)]
    before, since = (
        RecordReader(COLUMNS).converted(items, [at] * 2, ["a", "b"]).rows for at in (999, 1_000)
    )

    def left(rows: pa.RecordBatch) -> list[int]:
        found: list[int] = lately.without_old_puts(rows).column("number").to_pylist()
        return found

    assert left(before) == [5, 6]
    now[0] = 59.0
    assert left(before) == [5, 6]
    now[0] = 60.0
    assert (left(before), left(since)) == ([6], [5, 6])
    # Where it cannot be read, it is as it was, and that is said.
    now[0] = 120.0
    assert left(before) == [6]
    assert "the catalog is away" in caplog.text
    assert reads == [0.0, 60.0, 120.0]
