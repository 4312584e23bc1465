"""Schemas from items: what is declared of them captures them all."""

from __future__ import annotations

import gzip
import io
import runpy
from pathlib import Path

import pytest
from dynamo_items import line_of, values
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext import DynamoDBTableSource
from feast_dynamo_ext.capture.exports.export_rows import DataFile
from feast_dynamo_ext.capture.inference import SchemaInference
from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns
from feast_dynamo_ext.errors import CaptureError, SourceReadError

KEY = {"id": {"S": "k"}, "at": {"N": "1700000000"}}


def inferred(items, **options):
    inference = SchemaInference()
    inference.add(items)
    return inference.schema("at", **options)


def declared(schema, event_time="at"):
    """The fields of a source with the declaration, pasted as it is."""
    names: dict = {}
    exec(schema.declaration(), names)  # noqa: S102 - it is what the user is given to run
    source = DynamoDBTableSource(
        name="source",
        table="table",
        event_time=event_time,
        event_time_unit="s",
        history="/history",
        schema=names["schema"],
    )
    return source.fields


def captured(items, fields):
    columns = CapturedColumns.from_fields(
        fields, keys={"id": "S"}, event_time="at", event_time_unit="s"
    )
    data = b"".join(line_of({"Item": each}) for each in items)
    file = DataFile(io.BytesIO(data), columns, "f", exported_at=1)
    reasons = [row for each in file.batches() for row in each.quarantine.to_pylist()]
    return file, reasons


NUMBERS = [
    (["1", "-5", "1E+3"], "Int64", {}),
    (["1", "9223372036854775808"], "Decimal", {"precision": "19", "scale": "0"}),
    (["1", "0.5", "1E-130"], "Float64", {}),
    (["0.12345678901234567890"], "Decimal", {"precision": "20", "scale": "19"}),
    (["0.12345678901234567891"], "Decimal", {"precision": "21", "scale": "20"}),
    (["12345678901234567890.5"], "Decimal", {"precision": "21", "scale": "1"}),
    (["1E-130", "12345678901234567890"], "Decimal", {}),
]


@pytest.mark.parametrize(("numbers", "dtype", "tags"), NUMBERS)
def test_numbers_become_the_type_that_keeps_their_digits(numbers, dtype, tags):
    items = [{**KEY, "v": {"N": number}} for number in numbers]
    schema = inferred(items)
    (column,) = [each for each in schema.columns if each.name == "v"]
    assert (column.dtype, column.tags) == (dtype, tags)
    assert captured(items, declared(schema))[1] == []


@pytest.mark.parametrize(
    ("seen", "dtype", "tags"),
    [
        ([{"S": "a"}], "String", {}),
        ([{"B": "AA=="}], "Bytes", {}),
        ([{"BOOL": True}, {"NULL": True}], "Bool", {}),
        ([{"NULL": True}], "Json", {}),
        ([{"S": "a"}, {"N": "1"}], "Json", {}),
        ([{"S": "a"}, {"SS": ["a"]}], "Json", {"json": "dynamodb"}),
        ([{"SS": ["a"]}], "Set(String)", {}),
        ([{"NS": ["1", "1.5"]}], "Set(Float64)", {}),
        ([{"BS": ["AA=="]}], "Set(Bytes)", {}),
        ([{"L": []}], "Array(String)", {}),
        ([{"L": [{"N": "1"}, {"NULL": True}]}], "Array(Int64)", {}),
        ([{"L": [{"N": "1"}, {"S": "a"}]}], "Json", {}),
        ([{"L": [{"SS": ["a"]}]}], "Array(Set(String))", {}),
        ([{"M": {}}], "Map", {}),
        (
            [{"M": {"b": {"N": "1"}}}, {"M": {"a": {"S": "x"}}}],
            "Struct({'a': String, 'b': Int64})",
            {},
        ),
        ([{"M": {f"k{at}": {"S": "x"} for at in range(101)}}], "Map", {}),
        ([{"M": {f"k{at}": {"N": "1"} for at in range(101)}}], "Json", {}),
        (
            [{"L": [{"M": {"x": {"L": [{"BOOL": True}]}}}]}],
            "Array(Struct({'x': Array(Bool)}))",
            {},
        ),
    ],
)
def test_each_type_becomes_one_that_keeps_it(seen, dtype, tags):
    items = [{**KEY, "v": value} for value in seen]
    schema = inferred(items)
    (column,) = [each for each in schema.columns if each.name == "v"]
    assert (column.dtype, column.tags) == (dtype, tags)
    assert captured(items, declared(schema))[1] == []


def test_the_report_names_missing_values_conflicts_and_proposals():
    items = [
        {
            **KEY,
            "when": {"S": "2026-01-05T10:00:00Z"},
            "epoch": {"S": "1700000000123"},
            "ttl": {"N": "1700000000"},
            "uid": {"S": "123e4567-e89b-12d3-a456-426614174000"},
            "mixed": {"S": "a"} if at else {"N": "1"},
            **({"half": {"N": "1.5"}} if at % 2 else {}),
        }
        for at in range(4)
    ]
    schema = inferred(items)
    notes = {line.split()[0]: line for line in schema.report().splitlines()[4:]}
    assert schema.report().startswith("4 items, 8 columns, 1 of several types.\n")
    assert "50.0%" in notes["half"]
    assert "Float64" in notes["half"]
    assert "S 3, N 1" in notes["mixed"]
    assert "several types" in notes["mixed"]
    # Proposals alone: what is declared takes the texts and numbers as they are.
    assert notes["when"].split()[-3:] == ["String", "UnixTimestamp", "unit=iso8601"]
    assert notes["epoch"].split()[-3:] == ["String", "UnixTimestamp", "unit=ms"]
    assert notes["ttl"].split()[-3:] == ["Int64", "UnixTimestamp", "unit=s"]
    # The event time says what its unit may be.
    assert notes["at"].split()[-3:] == ["UnixTimestamp", "UnixTimestamp", "unit=s"]
    assert notes["uid"].split()[-2:] == ["String", "Uuid"]


def test_maps_are_kept_or_flattened():
    items = [
        {**KEY, "address": {"M": {"city": {"S": "B"}, "at": {"M": {"x": {"N": "1"}}}}}},
        {**KEY, "address": {"M": {"city": {"S": "C"}}}},
        KEY,
    ]
    kept, flat = inferred(items), inferred(items, flatten=True)
    assert [(each.name, each.dtype) for each in kept.columns] == [
        ("address", "Struct({'at': Struct({'x': Int64}), 'city': String})"),
        ("at", "UnixTimestamp"),
        ("id", "String"),
    ]
    assert [(each.name, each.path, each.missing) for each in flat.columns] == [
        ("address_at_x", ("address", "at", "x"), pytest.approx(2 / 3)),
        ("address_city", ("address", "city"), pytest.approx(1 / 3)),
        ("at", ("at",), 0),
        ("id", ("id",), 0),
    ]
    for schema in (kept, flat):
        file, reasons = captured(items, declared(schema))
        assert reasons == []
        assert file.totals.undeclared == {}


def test_names_that_differ_in_case_or_are_none_of_python():
    items = [KEY | {name: {"S": "x"} for name in ("ID", 'q"t', "a b", "a_b", "1st", "[x")}]
    schema = inferred(items)
    assert [(each.name, each.tags) for each in schema.columns] == [
        ("a_1st", {"attribute": "1st"}),
        ("ID", {}),
        ("_x", {"attribute": '["[x"]'}),
        ("a_b", {"attribute": "a b"}),
        ("a_b_2", {"attribute": "a_b"}),
        ("at", {}),
        ("id_2", {"attribute": "id"}),
        ("q_t", {"attribute": 'q"t'}),
    ]
    file, reasons = captured(items, declared(schema))
    assert reasons == []
    assert file.totals.undeclared == {}


def test_the_declaration_has_the_event_time_and_can_be_pasted():
    items = [{"id": {"S": "a"}, "when at": {"N": "1700000000"}, "amount": {"N": "12.50"}}]
    inference = SchemaInference()
    inference.add(items)
    schema = inference.schema("when at")
    assert schema.declaration() == (
        "from feast import Field\n"
        "from feast.types import Float64, String, UnixTimestamp\n\n"
        "schema = [\n"
        "    Field(name='amount', dtype=Float64),\n"
        "    Field(name='id', dtype=String),\n"
        "    Field(name='when_at', dtype=UnixTimestamp, tags={'attribute': 'when at'}),\n"
        "]\n"
    )
    units = {field.name: (field.tags or {}).get("unit") for field in declared(schema, "when at")}
    assert units == {"amount": None, "id": None, "when_at": "s"}
    # A map is no time: it is declared as one all the same, and in the report.
    maps = inferred([{**KEY, "at": {"M": {"x": {"N": "1"}}}}], flatten=True)
    assert [(each.name, each.dtype) for each in maps.columns if each.name != "id"] == [
        ("at", "UnixTimestamp")
    ]
    with pytest.raises(CaptureError, match=r"event time `whenat`\. Did you mean `when at`"):
        inference.schema("whenat")


def test_attributes_that_are_named_as_columns_of_capture_get_other_names():
    names = ("_feast_", "_feast_change", "_FEAST_x", "a_feast_x", "_feasts")
    items = [KEY | {name: {"S": "x"} for name in names} | {"_feast_m": {"M": {"y": {"S": "x"}}}}]
    schema = inferred(items, flatten=True)
    assert [(each.name, each.tags) for each in schema.columns] == [
        ("a_FEAST_x", {"attribute": "_FEAST_x"}),
        ("a_feast_", {"attribute": "_feast_"}),
        ("a_feast_change", {"attribute": "_feast_change"}),
        ("a_feast_m_y", {"attribute": '["_feast_m", "y"]'}),
        ("_feasts", {}),
        ("a_feast_x_2", {"attribute": "a_feast_x"}),
        ("at", {}),
        ("id", {}),
    ]
    file, reasons = captured(items, declared(schema))
    assert (reasons, file.totals.undeclared) == ([], {})


@pytest.mark.slow
@given(
    st.lists(
        st.fixed_dictionaries(
            {name: st.just(value) for name, value in KEY.items()},
            optional={name: values() for name in ("v", "V", 'q"u.o t', "é", "_feast_change")},
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
@cases(250)
def test_a_declaration_captures_the_items_it_was_inferred_of(items, flatten):
    schema = inferred(items, flatten=flatten)
    file, reasons = captured(items, declared(schema))
    assert reasons == []
    assert file.totals.captured == len(items)
    assert file.totals.undeclared == {}


def test_files_of_full_and_incremental_exports_are_looked_at():
    full = gzip.compress(b"".join(line_of({"Item": {**KEY, "v": {"N": "1"}}}) for _ in range(9)))
    change = {"Keys": {"id": KEY["id"]}, "OldImage": {**KEY, "v": {"S": "x"}}, "NewImage": KEY}
    inference = SchemaInference()
    assert inference.add_export(io.BytesIO(full), most=4) == 4
    assert inference.add_export(io.BytesIO(line_of(change))) == 2
    (column,) = [each for each in inference.schema("at").columns if each.name == "v"]
    assert (column.types, column.dtype) == ({"N": 4, "S": 1}, "Json")
    for bad in (b"{}\n", b"nonsense\n", gzip.compress(b"{}")[:-4]):
        with pytest.raises(SourceReadError, match=r"^f"):
            inference.add_export(io.BytesIO(bad), "f")


def test_the_page_shows_what_it_says(capsys):
    path = Path(__file__).parents[2] / "docs" / "snippets" / "infer_schema.py"
    schema = runpy.run_path(str(path))["schema"]
    shown = capsys.readouterr().out
    assert schema.report() in shown
    assert schema.declaration() in shown
    assert [(column.name, column.dtype) for column in schema.columns] == [
        ("amount", "Json"),
        ("at", "UnixTimestamp"),
        ("id", "String"),
    ]
