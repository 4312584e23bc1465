"""DynamoDB JSON as typed columns: item by item and by the file, beside boto3's own reading."""

from __future__ import annotations

import gzip
import io
import json
from decimal import Decimal
from fractions import Fraction

import pyarrow as pa
import pytest
from dynamo_items import exact, line_of, values
from examples import cases
from feast import Field
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    Set,
    String,
    Struct,
    TimeUuid,
    UnixTimestamp,
    Uuid,
    ZonedTimestamp,
)
from feast.types import Decimal as FeastDecimal
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.capture.exports.export_rows import DataFile
from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns
from feast_dynamo_ext.capture.values.change_rows import RecordReader, joined
from feast_dynamo_ext.capture.values.item_values import ItemReader, Misfit
from feast_dynamo_ext.errors import ConfigError, SourceReadError, UnsupportedTypeError
from feast_dynamo_ext.timestamps import moment_of

KEYS = {"id": "S", "at": "N"}
MOMENT = 1_760_000_000_000_000


def field(name, dtype, **tags):
    return Field(name=name, dtype=dtype, tags=tags)


def columns_of(*fields, keys=KEYS, unit="ms", **more):
    return CapturedColumns.from_fields(
        fields, keys=keys, event_time="at", event_time_unit=unit, **more
    )


def item(**attributes):
    return {"id": {"S": "k"}, "at": {"N": "1700000000000"}, **attributes}


def by_file(columns, items, **options):
    """What `export_rows` makes of a file of items."""
    data = b"".join(line_of({"Item": each}) for each in items)
    file = DataFile(io.BytesIO(data), columns, "f", exported_at=MOMENT, **options)
    found = list(file.batches())
    rows = joined([each.rows for each in found], columns.history_schema)
    return file, rows, [row for each in found for row in each.quarantine.to_pylist()]


def cells(columns, items, name):
    _, rows, bad = by_file(columns, items)
    assert bad == []
    return rows.column(name).to_pylist()


# Each type of DynamoDB, and what it is kept as.

KEPT = [
    (String, {}, {"S": 'a"b\\c é😀\x00'}, 'a"b\\c é😀\x00'),
    (String, {}, {"S": ""}, ""),
    (Bytes, {}, {"B": "AP8="}, b"\x00\xff"),
    (Bool, {}, {"BOOL": False}, False),
    (Int32, {}, {"N": "-2147483648"}, -(2**31)),
    (Int64, {}, {"N": "9223372036854775807"}, 2**63 - 1),
    (Int64, {}, {"N": "1E+3"}, 1000),
    (Int64, {}, {"N": "7.00"}, 7),
    (Float32, {}, {"N": "0.1"}, 0.10000000149011612),
    (Float64, {}, {"N": "0.1"}, 0.1),
    (Float64, {}, {"N": "1E-130"}, 1e-130),
    (Float64, {}, {"N": "9.9E+125"}, 9.9e125),
    (
        FeastDecimal,
        {},
        {"N": "12345678901234567890.123456789012345678"},
        "12345678901234567890.123456789012345678",
    ),
    (FeastDecimal, {"precision": "38", "scale": "2"}, {"N": "1.5"}, Decimal("1.50")),
    (FeastDecimal, {"precision": "38", "scale": "0"}, {"N": "9" * 38}, Decimal("9" * 38)),
    (UnixTimestamp, {"unit": "s"}, {"N": "1700000000"}, moment_of(1_700_000_000_000_000)),
    (UnixTimestamp, {"unit": "s"}, {"N": "1700000000.123456"}, moment_of(1_700_000_000_123_456)),
    (UnixTimestamp, {"unit": "us"}, {"S": "1700000000123456"}, moment_of(1_700_000_000_123_456)),
    (
        UnixTimestamp,
        {"unit": "ns"},
        {"N": "1700000000123456000"},
        moment_of(1_700_000_000_123_456),
    ),
    (
        UnixTimestamp,
        {"unit": "iso8601"},
        {"S": "2026-01-05T10:00:00.5+02:00"},
        moment_of(1_767_600_000_500_000),
    ),
    (UnixTimestamp, {"unit": "iso8601"}, {"S": "2026-01-05"}, moment_of(1_767_571_200_000_000)),
    (
        Uuid,
        {},
        {"S": "123E4567-E89B-12D3-A456-426614174000"},
        "123e4567-e89b-12d3-a456-426614174000",
    ),
    (Set(String), {}, {"SS": ["b", "a"]}, ["b", "a"]),
    (Set(Int64), {}, {"NS": ["3", "-1"]}, [3, -1]),
    (Set(Bytes), {}, {"BS": ["AA=="]}, [b"\x00"]),
    (Set(String), {}, {"SS": []}, []),
    (Array(String), {}, {"L": [{"S": "a"}, {"NULL": True}]}, ["a", None]),
    (Array(Float64), {}, {"L": []}, []),
    (Array(Array(Int64)), {}, {"L": [{"L": [{"N": "1"}]}, {"L": []}]}, [[1], []]),
    (Array(Set(Int64)), {}, {"L": [{"NS": ["1"]}]}, [[1]]),
    (Map, {}, {"M": {"a": {"S": "x"}, "b": {"NULL": True}}}, [("a", "x"), ("b", None)]),
    (
        Struct({"x": Int64, "X": String}),
        {},
        {"M": {"x": {"N": "1"}, "z": {"S": "?"}}},
        {"x": 1, "X": None},
    ),
    (
        Struct({"x": Array(Struct({"y": Bool}))}),
        {},
        {"M": {"x": {"L": [{"M": {"y": {"BOOL": True}}}]}}},
        {"x": [{"y": True}]},
    ),
    (
        Json,
        {},
        {"M": {"a": {"N": "1E+2"}, "b": {"L": [{"N": "0." + "1" * 38}, {"NULL": True}]}}},
        '{"a":1E+2,"b":[0.' + "1" * 38 + ",null]}",
    ),
    (Json, {"json": "dynamodb"}, {"SS": ["a"]}, '{"SS":["a"]}'),
    *((kind, {}, {"NULL": True}, None) for kind in (String, Int64, Bool, Json, Map, Set(String))),
]


@pytest.mark.parametrize(("dtype", "tags", "value", "kept"), KEPT)
def test_a_value_is_kept_exactly(dtype, tags, value, kept):
    columns = columns_of(field("v", dtype, **tags))
    # What is read one by one comes last.
    found = cells(columns, [item(v=value), item()], "v")
    assert sorted(found, key=lambda cell: cell is None) == [kept, None]
    assert cells(columns, [item(v=value)] * 3, "v") == [kept] * 3
    made = RecordReader(columns).converted([{"Item": item(v=value)}], [MOMENT], ["o"])
    assert made.rows.column("v").to_pylist() == [kept]


MISFITS = [
    (String, {}, {"N": "1"}, "type N, where String takes S"),
    (Int64, {}, {"S": "1"}, "type S, where Int64 takes N"),
    (Int64, {}, {"N": "1.005"}, "not a whole number"),
    (Int64, {}, {"N": "9223372036854775808"}, "out of the range of Int64"),
    (Int64, {}, {"N": "9.9E+125"}, "out of the range of Int64"),
    (Int32, {}, {"N": "2147483648"}, "out of the range of Int32"),
    (Int64, {}, {"N": "1_000"}, "not a number"),
    (Float64, {}, {"N": "0.12345678901234567890"}, "more digits than Float64"),
    (Float64, {}, {"N": "9007199254740993"}, "more digits than Float64"),
    (Float64, {}, {"N": "NaN"}, "not a number"),
    (Float32, {}, {"N": "3.5E+38"}, "out of the range of Float32"),
    (FeastDecimal, {"precision": "38", "scale": "2"}, {"N": "1.005"}, "more than 2 decimals"),
    (
        FeastDecimal,
        {"precision": "38", "scale": "0"},
        {"N": "1" + "0" * 38},
        "more than 38 digits",
    ),
    (FeastDecimal, {"precision": "38", "scale": "10"}, {"N": "1E-130"}, "more than 10 decimals"),
    # With the digits of their scale these are more than 128 bits, and would come out as others.
    *(
        (FeastDecimal, {"precision": "38", "scale": "38"}, {"N": text}, "more than 0 digits")
        for text in ("7.5", "123.456", "-4.25")
    ),
    (
        FeastDecimal,
        {"precision": "30", "scale": "25"},
        {"N": "680564733841.5"},
        "more than 5 digits",
    ),
    (UnixTimestamp, {"unit": "s"}, {"N": "1700000000000000"}, "outside the years"),
    (UnixTimestamp, {"unit": "s"}, {"N": "1.1234567"}, "below a microsecond"),
    (UnixTimestamp, {"unit": "ns"}, {"N": "1700000000123456789"}, "below a microsecond"),
    (UnixTimestamp, {"unit": "iso8601"}, {"S": "5 January"}, "not a time of ISO 8601"),
    (UnixTimestamp, {"unit": "iso8601"}, {"S": "2026-02-30"}, "not a time of ISO 8601"),
    (Uuid, {}, {"S": "none"}, "not a UUID"),
    (Bytes, {}, {"B": "A"}, "not base64"),
    (Set(String), {}, {"L": [{"S": "a"}]}, "type L, where Set(String) takes SS"),
    (Array(String), {}, {"SS": ["a"]}, "type SS, where Array(String) takes L"),
    (Array(String), {}, {"L": [{"N": "1"}]}, "type N, where String takes S"),
    (Set(Int64), {}, {"NS": ["1", "1.5"]}, "not a whole number"),
    (Map, {}, {"M": {"a": {"N": "1"}}}, "type N in a map, where Map takes S"),
    (Json, {}, {"L": [{"SS": ["a"]}]}, "type SS, which plain JSON does not keep"),
    (Bool, {}, {"N": "1"}, "type N, where Bool takes BOOL"),
]


@pytest.mark.parametrize(("dtype", "tags", "value", "reason"), MISFITS)
def test_what_does_not_fit_goes_to_quarantine_with_its_reason(dtype, tags, value, reason):
    columns = columns_of(field("v", dtype, **tags))
    file, rows, bad = by_file(columns, [item(), item(v=value), item(v={"NULL": True})])
    assert rows.column("v").to_pylist() == [None, None]
    (found,) = bad
    assert reason in found["reason"]
    assert (found["attribute"], found["origin"]) == ("v", "f:2")
    assert json.loads(found["item"]) == {"Item": item(v=value)}
    assert (file.totals.captured, file.totals.quarantined, file.totals.records) == (2, 1, 3)


def test_a_misfit_in_a_struct_is_named_by_its_path():
    columns = columns_of(field("v", Struct({"a": Struct({"b": Int64})})))
    wrong = item(v={"M": {"a": {"M": {"b": {"S": "x"}}}}})
    assert by_file(columns, [wrong])[2][0]["attribute"] == "v.a.b"


def test_an_item_without_key_or_event_time_is_no_row():
    columns = columns_of()
    items = [
        {"id": {"S": "k"}},
        {"at": {"N": "5"}},
        {**item(), "at": {"NULL": True}},
        {**item(), "at": {"S": "soon"}},
    ]
    bad = by_file(columns, items)[2]
    assert [(row["attribute"], row["reason"]) for row in bad] == [
        ("at", "is missing"),
        ("id", "is missing"),
        ("at", "is missing"),
        ("at", "a text that is not a number"),
    ]


# Declarations


@pytest.mark.parametrize(
    ("fields", "options", "error", "words"),
    [
        (
            [field("v", ZonedTimestamp)],
            {},
            UnsupportedTypeError,
            "`v` is declared as ZonedTimestamp",
        ),
        ([field("v", Set(Bool))], {}, UnsupportedTypeError, "sets are of texts"),
        ([field("v", Set(Json))], {}, UnsupportedTypeError, "sets are of texts"),
        ([field("v", UnixTimestamp)], {}, ConfigError, "has no unit"),
        ([field("v", UnixTimestamp, unit="h")], {}, ConfigError, "the unit `h`"),
        ([field("v", FeastDecimal, precision="9")], {}, ConfigError, "both tags"),
        ([field("v", FeastDecimal, precision="39", scale="1")], {}, ConfigError, "from 1 to 38"),
        ([field("v", Json, json="yes")], {}, ConfigError, "`plain` or `dynamodb`"),
        ([field("v", String, attribute="[1]")], {}, ConfigError, "a JSON list of names"),
        (
            [field("v", String, attribute="id")],
            {"keys": {"id": "N", "at": "N"}},
            UnsupportedTypeError,
            "`id` is of type N",
        ),
        (
            [field("a", String), field("b", String, attribute="a")],
            {},
            ConfigError,
            "the attribute of `a`",
        ),
        *(
            (
                [field("key", dtype, attribute="id", **tags)],
                {"keys": {"id": kind, "at": "N"}},
                UnsupportedTypeError,
                f"`key` is declared as {said}, which does not keep each key as it is, so that two "
                f"items could become one; the table's key attribute `id` is of type {kind}. "
                f"Declare it as {instead}.",
            )
            for kind, dtype, tags, said, instead in (
                ("S", Uuid, {}, "Uuid", "String"),
                ("S", TimeUuid, {}, "TimeUuid", "String"),
                ("S", Json, {}, "Json", "String"),
                ("S", UnixTimestamp, {"unit": "s"}, "UnixTimestamp of unit s", "String"),
                ("N", Float32, {}, "Float32", "Int64. Or as Decimal, which keeps all digits"),
                ("N", Json, {}, "Json", "Int64. Or as Decimal, which keeps all digits"),
                ("B", Json, {"json": "dynamodb"}, "Json", "Bytes"),
            )
        ),
        ([field("v", String), field("V", String)], {}, ConfigError, "know no case"),
        ([field("_feast_change", String)], {}, ConfigError, "may not be named"),
        ([field("at", Int64)], {}, ConfigError, "the event time, is declared as Int64"),
        ([field("at", UnixTimestamp, unit="s")], {}, ConfigError, "Let both say the same"),
        ([], {"unit": "iso8601"}, ConfigError, "is of type N in the table's key"),
        ([], {"unit": "days"}, ConfigError, "`event_time_unit` is `days`"),
        (
            [field("v", UnixTimestamp, unit="s", spelling="2026-03-01")],
            {},
            ConfigError,
            "tag `spelling` is of times of unit `iso8601`",
        ),
        *(
            (
                [field("v", UnixTimestamp, unit="iso8601", spelling=example)],
                {},
                ConfigError,
                f"tag `spelling` is `{example}`, and not a time as they are written",
            )
            for example in ("yyyy-mm-dd", "", "2026-03-01T00:00.5", "2026-03-01T00:00:00[.5")
        ),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(fields, options, error, words):
    with pytest.raises(error, match="DynamoDBTableSource") as caught:
        columns_of(*fields, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "dtype", "tags", "one", "other"),
    [
        ("S", String, {}, "A0EEBC99", "a0eebc99"),
        ("N", Int64, {}, "16777216", "16777217"),
        ("N", Int32, {}, "16777216", "16777217"),
        ("N", Float64, {}, "0.1", "0.10000000000000001"),
        ("N", FeastDecimal, {}, "0.1", "0.10000000000000000000000000000000000001"),
        ("N", FeastDecimal, {"precision": "9", "scale": "2"}, "0.1", "0.101"),
        ("N", UnixTimestamp, {"unit": "us"}, "1", "1.1"),
        ("B", Bytes, {}, "AP8=", "AP4="),
    ],
)
def test_different_keys_stay_different_or_go_to_quarantine(kind, dtype, tags, one, other):
    columns = columns_of(field("id", dtype, **tags), keys={"id": kind})
    items = [{"id": {kind: key}, "at": {"N": "5"}} for key in (one, other)]
    _, rows, bad = by_file(columns, items)
    kept = rows.column("id").to_pylist()
    assert len(set(kept)) == len(kept) == 2 - len(bad)
    assert [row["attribute"] for row in bad] in ([], ["id"])


UTC, ZULU = "2026-03-01T00:00:00", "2026-03-01T00:00:00Z"
SPELLED = [
    # Without a word, times of UTC, and numbers in their shortest text.
    ("iso8601", None, [ZULU, "2026-03-01T00:00:00.000Z", f"{UTC}+00:00", UTC, "2026-03-01"]),
    ("ms", None, ["1772323200000", "-1", "0", "0.5"]),
    # With it, those that are written as the example is.
    ("iso8601", "2020-01-02T03:04:05Z", [ZULU, "2026-02-28T23:59:59Z"]),
    ("iso8601", "2020-01-02T03:04:05.678Z", ["2026-03-01T00:00:00.000Z"]),
    ("iso8601", "2020-01-02 03:04", ["2026-03-01 00:00"]),
    ("iso8601", "2020-01-02", ["2026-03-01"]),
    ("iso8601", "2020-01-02T03:04:05+09:00", ["2026-03-01T09:00:00+09:00"]),
    (
        "iso8601",
        "2020-01-02T03:04:05[.000000]+00:00",
        [f"{UTC}+00:00", f"{UTC}.000100+00:00", f"{UTC}.100000+00:00", f"{UTC}.000001+00:00"],
    ),
]
OTHERWISE = {
    "iso8601": [
        "2026-03-01T01:00:00+01:00",
        "2026-02-28T23:00:00-01:00",
        "2026-03-01T00:00:00z",
        "2026-03-01T00Z",
        "2026-03-01T00:00:00,000Z",
        "2026-03-01T000000Z",
        f"{UTC}.000000+00:00",
    ],
    "ms": [
        "01772323200000",
        "1772323200000.0",
        "+1772323200000",
        "1.7723232E12",
        "1772323200000.",
        "-0",
        "00",
        ".5",
    ],
}


@pytest.mark.parametrize(("unit", "spelling", "written"), SPELLED)
def test_a_time_that_is_a_key_in_a_text_has_one_spelling(unit, spelling, written):
    tags = {"unit": unit} if spelling is None else {"unit": unit, "spelling": spelling}
    columns = columns_of(
        field("at", UnixTimestamp, **tags), keys={"id": "S", "at": "S"}, unit=unit
    )
    others = OTHERWISE[unit]
    if unit == "iso8601":
        of_others = {text for each, _, texts in SPELLED if each == unit for text in texts}
        others = sorted({*others, *of_others} - {*written})
    if unit == "iso8601" and spelling is None:
        others = [text for text in others if not text.endswith(("Z", "+00:00")) or "," in text]
        others = [text for text in others if text not in ("2026-03-01 00:00", UTC)]
    items = [{"id": {"S": "k"}, "at": {"S": text}} for text in (*written, *others)]
    _, rows, bad = by_file(columns, items)
    assert rows.num_rows == len(written)
    assert len(bad) == len(others)
    assert {(row["attribute"], row["reason"]) for row in bad} == {
        ("at", "a time in another spelling than it is written in; see the tag `spelling`")
    }
    one_by_one = RecordReader(columns).converted(
        [{"Item": each} for each in items], [MOMENT] * len(items), [""] * len(items)
    )
    assert one_by_one.rows.equals(rows)
    if spelling is not None or unit != "iso8601":
        assert len(set(rows.column("at").to_pylist())) == len(written)


def test_columns_of_keys_and_event_time_come_first_and_by_themselves():
    columns = columns_of(field("v", Int64), keys={"id": "B", "sort": "N"}, unit="iso8601")
    assert columns.schema.names == ["id", "sort", "at", "v"]
    assert columns.schema.types[:2] == [pa.binary(), pa.int64()]
    assert columns.keys == ("id", "sort")
    added = ["_feast_written_at", "_feast_change", "_feast_change_id"]
    assert columns.history_schema.names[-3:] == added


def test_attributes_under_other_names_and_in_maps():
    columns = columns_of(
        field("upper", String, attribute="ID"),
        field("city", String, attribute='["address", "city"]'),
        field("number", Int64, attribute='["address", "street", "number"]'),
        field("odd", String, attribute='a "b".c d'),
    )
    street = {"M": {"number": {"N": "5"}}}
    items = [
        item(ID={"S": "U"}, address={"M": {"city": {"S": "B"}, "street": street}}),
        item(address={"M": {}}),
        item(address={"NULL": True}, **{'a "b".c d': {"S": "x"}}),
        item(address={"S": "B"}),
        item(address={"M": {"street": {"S": "x"}}}),
    ]
    _, rows, bad = by_file(columns, items)
    assert [list(row.values())[2:6] for row in rows.to_pylist()] == [
        ["U", "B", 5, None],
        [None, None, None, None],
        [None, None, None, "x"],
    ]
    assert [(row["attribute"], row["reason"]) for row in bad] == [
        ("address.city", "type S, where a map (M) is declared"),
        ("address.street.number", "type S, where a map (M) is declared"),
    ]


# Both paths, on anything

DTYPES = st.sampled_from(
    [
        (String, {}), (Bytes, {}), (Bool, {}), (Int32, {}), (Int64, {}), (Float32, {}),
        (Float64, {}), (FeastDecimal, {}), (FeastDecimal, {"precision": "20", "scale": "6"}),
        (FeastDecimal, {"precision": "38", "scale": "38"}), (Uuid, {}), (Map, {}), (Json, {}),
        (Json, {"json": "dynamodb"}), (Set(String), {}), (Set(Int64), {}), (Set(Bytes), {}),
        (Set(FeastDecimal), {}), (Array(String), {}), (Array(Int64), {}), (Array(Json), {}),
        (Array(Array(String)), {}), (Struct({"x": Int64, "X": String, "y": Set(String)}), {}),
        (Array(Struct({"x": Float64})), {}), (Struct({"x": Map}), {}),
        *((UnixTimestamp, {"unit": unit}) for unit in ("s", "ms", "us", "ns", "iso8601")),
        (Array(UnixTimestamp), {"unit": "s"}), (Set(UnixTimestamp), {"unit": "ms"}),
    ]
)  # fmt: skip
NAMES = ["v", "V", 'q"u.o t', "é", "ID", "x"]


@st.composite
def tables(draw):
    """A declaration, and items: some fit it."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    fields = [
        field(f"c{at}", dtype, attribute=name, **tags)
        for at, (name, (dtype, tags)) in enumerate((name, draw(DTYPES)) for name in names)
    ]
    one = st.fixed_dictionaries(
        {"id": st.just({"S": "k"}), "at": st.just({"N": "1"})},
        optional={name: values() for name in (*names, "undeclared")},
    )
    likely = st.fixed_dictionaries(
        {"id": st.just({"S": "k"}), "at": st.just({"N": "1"})},
        optional=dict.fromkeys(names, values()),
    )
    return fields, draw(st.lists(one | likely, min_size=1, max_size=6))


@pytest.mark.slow
@given(tables(), st.booleans(), st.integers(1, 400))
@cases(400)
def test_a_file_says_what_its_items_say_one_by_one(table, ascii_only, chunk_bytes):
    fields, items = table
    columns = columns_of(*fields)
    lines = [line_of({"Item": each}, ascii_only=ascii_only) for each in items]
    stream = io.BytesIO(b"".join(lines))
    file = DataFile(stream, columns, "f", exported_at=MOMENT, chunk_bytes=chunk_bytes)
    found = list(file.batches())
    rows = joined([each.rows for each in found], columns.history_schema).to_pylist()
    bad = {
        row["origin"]: (row["reason"], row["attribute"])
        for each in found
        for row in each.quarantine.to_pylist()
    }
    reader = RecordReader(columns)
    single = [
        reader.converted([{"Item": each}], [MOMENT], [f"f:{at + 1}"])
        for at, each in enumerate(items)
    ]
    wanted = [row for each in single for row in each.rows.to_pylist()]
    assert sorted(rows, key=repr) == sorted(wanted, key=repr)
    assert bad == {
        row["origin"]: (row["reason"], row["attribute"])
        for each in single
        for row in each.quarantine.to_pylist()
    }
    assert file.totals.captured + file.totals.quarantined == len(items)
    undeclared = [name for each in items for name in reader.after.undeclared(each)]
    assert +file.totals.undeclared == {name: undeclared.count(name) for name in set(undeclared)}


@pytest.mark.slow
@given(values(), DTYPES)
@cases(600)
def test_a_kept_value_is_the_one_that_boto3_reads(value, declared):
    dtype, tags = declared
    columns = columns_of(field("v", dtype, **tags))
    found = ItemReader(columns).values(item(v=value))
    if isinstance(found, Misfit):
        assert found.attribute.split(".")[0] == "v"
        return
    kept = RecordReader(columns).converted([{"Item": item(v=value)}], [MOMENT], [""]).rows
    assert_same(kept.column("v")[0].as_py(), exact(value), dtype, tags)


def assert_same(kept, wanted, dtype, tags):
    """A kept value and boto3's; times by their unit, which boto3 knows nothing of."""
    if wanted is None:
        assert kept is None
    elif isinstance(dtype, Struct):
        for name, part in dtype.fields.items():
            assert_same(kept[name], wanted.get(name), part, tags)
    elif isinstance(dtype, Set):
        assert len(kept) == len(wanted)
        for each in kept:
            assert any(is_same(each, other, dtype.base_type, tags) for other in wanted)
    elif isinstance(dtype, Array):
        assert len(kept) == len(wanted)
        for each, other in zip(kept, wanted, strict=True):
            assert_same(each, other, dtype.base_type, tags)
    else:
        assert is_same(kept, wanted, dtype, tags)


def is_same(kept, wanted, dtype, tags) -> bool:  # noqa: PLR0911 - a case a type
    if dtype == Json:
        if tags:
            return plain(exact(json.loads(kept, parse_float=Decimal))) == plain(wanted)
        return json.loads(kept, parse_float=Decimal, parse_int=Decimal) == wanted
    if dtype == Map:
        return dict(kept) == wanted
    if dtype == FeastDecimal:
        return Decimal(kept) == wanted
    if dtype == Float64:
        return Decimal(repr(kept)) == wanted
    if dtype == Float32:
        ulp = Fraction(2) ** -149 if kept == 0 else abs(Fraction(kept)) * Fraction(2) ** -23
        return abs(Fraction(kept) - Fraction(wanted)) <= ulp
    if dtype == Uuid:
        return kept.replace("-", "") == wanted.lower().replace("-", "")
    if dtype == Bytes:
        return kept == bytes(wanted)
    if dtype == UnixTimestamp and tags["unit"] != "iso8601":
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[tags["unit"]]
        seconds = Fraction(Decimal(wanted)) / per_second
        return Fraction((kept - moment_of(0)) // (moment_of(1) - moment_of(0)), 10**6) == seconds
    if dtype == UnixTimestamp:
        import datetime as dt

        moment = dt.datetime.fromisoformat(wanted.replace("Z", "+00:00"))
        return kept == (moment if moment.tzinfo else moment.replace(tzinfo=dt.timezone.utc))
    return kept == wanted


def plain(value):
    """Comparable: boto3's Binary is no bytes, and NaN is not equal to itself."""
    if isinstance(value, Decimal) and value.is_nan():
        return str(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, set)):
        made = [plain(inner) for inner in value]
        return made if isinstance(value, list) else {"set": sorted(map(repr, made))}
    return bytes(value) if hasattr(value, "value") else value


# Files


def test_compressed_files_of_several_members_and_any_chunk_size():
    columns = columns_of(field("v", Int64))
    items = [item(v={"N": str(at)}) for at in range(500)]
    lines = [line_of({"Item": each}) for each in items]
    packed = gzip.compress(b"".join(lines[:200])) + gzip.compress(b"".join(lines[200:]))
    for data, size in ((packed, 100), (packed, 1 << 20), (b"".join(lines)[:-1], 999)):
        file = DataFile(io.BytesIO(data), columns, "f", exported_at=MOMENT, chunk_bytes=size)
        rows = joined([each.rows for each in file.batches()], columns.history_schema)
        assert rows.column("v").to_pylist() == list(range(500))
        assert file.totals.records == 500


@pytest.mark.parametrize("data", [b"", gzip.compress(b"")], ids=["plain", "gzip"])
def test_an_empty_file_has_no_items(data):
    file = DataFile(io.BytesIO(data), columns_of(), "f", exported_at=MOMENT, records=0)
    assert list(file.batches()) == []
    assert file.totals.records == 0


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([b'{"Item":{}}', b"null"], "line 2: is no record"),
        ([b'{"Item":{}}', b'{"Item":null}'], "line 2: is no record"),
        ([b'{"Item":{"a":{"S":"\\ud800"}}}'], "line 1: is not JSON"),
        ([b'{"Item":{"id":{"S":"\xff"},"at":{"N":"1"}}}'], "line 1: is not JSON"),
        ([b'{"Item":{}}', b'{"Item":{}'], "line 2: is not JSON"),
        ([b'{"Item":{}} {"Item":{}}'], "line 1: is not JSON"),
        ([b'{"Keys":{}}'], "line 1: is no record"),
        ([b"[]"], "line 1: is no record"),
    ],
)
def test_a_line_that_is_no_record_is_named(lines, words):
    file = DataFile(io.BytesIO(b"\n".join(lines) + b"\n"), columns_of(), "f", exported_at=1)
    with pytest.raises(SourceReadError, match=words):
        list(file.batches())


def test_counts_and_checksums_of_the_manifest_are_held():
    data = line_of({"Item": item()})
    for options, words in (
        ({"records": 2}, "has 1 items, the manifest says 2"),
        ({"md5": "AAAAAAAAAAAAAAAAAAAAAA=="}, "is damaged: the MD5"),
    ):
        file = DataFile(io.BytesIO(data), columns_of(), "f", exported_at=1, **options)
        with pytest.raises(SourceReadError, match=words):
            list(file.batches())


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_each_corrupt_byte_is_found(packed):
    data = line_of({"Item": item(v={"N": "1"})}) + line_of({"Item": item(v={"S": "x"})})
    data = gzip.compress(data) if packed else data
    columns = columns_of(field("v", Int64))
    file = DataFile(io.BytesIO(data), columns, "f", exported_at=1)
    list(file.batches())
    for at in range(len(data)):
        for change in (0x01, 0x80):
            bad = bytearray(data)
            bad[at] ^= change
            damaged = DataFile(
                io.BytesIO(bytes(bad)), columns, "f", exported_at=1, md5=file.totals.md5
            )
            with pytest.raises(SourceReadError, match="is damaged"):
                list(damaged.batches())
    for end in range(len(data)):
        short = DataFile(io.BytesIO(data[:end]), columns, "f", exported_at=1, md5=file.totals.md5)
        with pytest.raises(SourceReadError, match="is damaged"):
            list(short.batches())


def test_nulls_and_undeclared_attributes_of_many_chunks_are_counted():
    columns = columns_of(field("v", Int64))
    items = [
        item(v={"NULL": True} if at % 2 else {"N": "1"}, u={"S": "x"}, w={"M": {"a": {"S": "x"}}})
        for at in range(300)
    ]
    file, rows, bad = by_file(columns, items, chunk_bytes=2_000)
    assert rows.column("v").null_count == 150
    assert bad == []
    assert file.totals.undeclared == {"u": 300, "w": 300}
