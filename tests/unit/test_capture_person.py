"""Whose rows are erased: the same person in columns, in DynamoDB JSON, and as a digest."""

from __future__ import annotations

import base64
import datetime as dt
import json
import uuid
from decimal import Context, Decimal, localcontext
from typing import Any

import boto3.dynamodb.types as boto
import numpy as np
import pyarrow as pa
import pytest
from feast import Field
from feast.types import Bytes, Float32, Float64, Int64, Json, String, UnixTimestamp, Uuid
from feast.types import Decimal as FeastDecimal
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext import DynamoDBTableSource
from feast_dynamo_ext.capture.erasure.erased_keys import ErasedKeys, ErasedLately, KnownBy
from feast_dynamo_ext.capture.erasure.person import Person, canonical, digest, text_of
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
        Field(name="rough", dtype=Float32),
        Field(name="digits", dtype=FeastDecimal),
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
    "weight": {"N": "72.5"},
    "digits": {"N": "1E30"},
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
    ({"weight": "7.250E1"}, {"weight": {"N": "72.50000000000001"}}),
    ({"digits": "1000000000000000000000000000000"}, {"digits": {"N": "1E31"}}),
    ({"digits": "1E+30"}, {"digits": {"N": "1000000000000000000000000000001"}}),
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
    kinds = [column.kind for column in wanted.columns.columns]
    assert tuple(map(text_of, value.values(), kinds)) == wanted.texts


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
        ({"rough": "1"}, "`rough` is Float32, by which nobody is known"),
        ({"weight": "1.0000000000000000001"}, "more digits than Float64 keeps"),
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
        (KnownBy(("number",)),): {
            digest(salt, ["number"], [str(number)]): moment for number in (3, 7)
        },
        (KnownBy(("text",)),): {digest(salt, ["text"], ["zoe"]): 10 * moment},
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
    known = {(KnownBy(("number",)),): {digest(salt, ["number"], ["5"]): 1_000}}
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


# Who was erased under one declaration, and what another makes of their item.

UPPER = str(ID).upper()
ERASED_AS = [
    ("email", String, {}, "bob@x.de", {"S": "bob@x.de"}),
    ("email", Uuid, {}, str(ID), {"S": UPPER}),
    ("email", Int64, {}, "5", {"N": "5.0"}),
    ("email", Float64, {}, "0.5", {"N": "5E-1"}),
    ("email", FeastDecimal, {}, "1E+30", {"N": "1E30"}),
    ("email", Bytes, {}, "AP8=", {"B": "AP8="}),
    ("email", UnixTimestamp, {"unit": "s"}, "1700000000", {"N": "1700000000"}),
    ("email", UnixTimestamp, {"unit": "iso8601"}, "2026-03-01", {"S": "2026-03-01T00:00Z"}),
]


def declared(*fields: Field) -> CapturedColumns:
    return CapturedColumns.from_fields(
        fields, keys={"number": "N"}, event_time="at", event_time_unit="ms"
    )


def noted(columns: CapturedColumns, text: str, *, is_old: bool) -> dict[Any, Any]:
    """As it lies in the table: by attributes, or, before these were, by names of columns."""
    wanted = Person.from_texts(SOURCE, columns, {"email": text})
    (column,) = wanted.columns.columns
    by = KnownBy((column.name,)) if is_old else KnownBy.from_column(column)
    said = json.loads(json.dumps(column.name if is_old else by.to_json()))
    return {(KnownBy.from_json(said),): {digest(b"a" * 16, [by.label], wanted.texts): 1_000}}


def left_under(columns: CapturedColumns, known: Any, attribute: dict[str, Any]) -> list[int]:
    """Numbers of the items, in rows and in quarantine, that are kept; 1 is theirs, 2 another's."""
    times = {"at": {"N": "1767608400250"}}
    items = [
        {"number": {"N": "1"}, "email": attribute, **times},
        {"number": {"N": "2"}, "email": {next(iter(attribute)): "7"}, **times},
        {"number": {"N": "3"}, "email": attribute},  # without event time: misfit
    ]
    part = RecordReader(columns).converted([{"Item": each} for each in items], [1] * 3, [""] * 3)
    erased: Any = ErasedKeys(None, columns, b"a" * 16, known)  # type: ignore[arg-type]
    kept, _ = erased.without(part)
    records = [json.loads(each)["Item"] for each in kept.quarantine.column("item").to_pylist()]
    return sorted(
        [*kept.rows.column("number").to_pylist(), *(int(each["number"]["N"]) for each in records)]
    )


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize(("name", "dtype", "tags", "text", "attribute"), ERASED_AS)
def test_a_column_that_is_renamed_or_of_another_type_brings_nobody_back(
    is_old, name, dtype, tags, text, attribute
):
    known = noted(declared(Field(name=name, dtype=dtype, tags=tags)), text, is_old=is_old)
    plain = {"S": String, "N": FeastDecimal, "B": Bytes}[next(iter(attribute))]
    for again in (
        Field(name=name, dtype=dtype, tags=tags),
        Field(name="mail", dtype=dtype, tags={**tags, "attribute": name}),
        Field(name=name, dtype=plain),
        Field(name="mail", dtype=plain, tags={"attribute": name}),
    ):
        assert left_under(declared(again), known, attribute) == [2]


@pytest.mark.parametrize(
    ("dtype", "tags", "text", "now", "said"),
    [
        (
            String,
            {},
            "bob@x.de",
            [],
            "by `email`, and `schema` has no column of it any more",
        ),
        (String, {}, UPPER, [Field(name="email", dtype=Uuid)], "declares it as Uuid"),
        (String, {}, "5", [Field(name="email", dtype=Json)], "declares it as Json"),
        (Int64, {}, "5", [Field(name="email", dtype=Float32)], "declares it as Float32"),
        (
            UnixTimestamp,
            {"unit": "s"},
            "1700000000",
            [Field(name="email", dtype=UnixTimestamp, tags={"unit": "ms"})],
            "declares it as UnixTimestamp of unit ms.*Declare it as UnixTimestamp, unit `s`",
        ),
    ],
)
def test_where_nobody_can_be_told_any_more_nothing_is_captured(dtype, tags, text, now, said):
    known = noted(declared(Field(name="email", dtype=dtype, tags=tags)), text, is_old=False)
    with pytest.raises(CaptureError, match=said):
        left_under(declared(*now), known, {"S": text})


def test_what_a_declaration_lacks_stops_what_goes_online():
    known = noted(declared(Field(name="email", dtype=String)), "bob@x.de", is_old=False)
    columns = declared(Field(name="other", dtype=String))
    lately = ErasedLately(lambda: ErasedKeys(None, columns, b"a" * 16, known))  # type: ignore[arg-type]
    rows = RecordReader(columns).converted([], [], []).rows
    with pytest.raises(CaptureError, match="`email`"):
        lately.without_old_puts(rows)
