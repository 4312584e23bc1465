"""How items that are gone have ended: what their TTL says, however it was declared."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal as Number
from typing import Any

import captured
import pyarrow as pa
import pytest
from feast import Field
from feast.types import Decimal, Float32, Float64, Int32, Int64, Json, String, UnixTimestamp
from repos import repo_config

from feast_dynamo_ext.capture.apply_checks import make_history
from feast_dynamo_ext.capture.exports.ended_items import ends, quarantined_ends
from feast_dynamo_ext.capture.exports.missing_items import MissingItems
from feast_dynamo_ext.capture.history import CapturedHistory
from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns
from feast_dynamo_ext.capture.values.change_rows import RecordReader

UTC = dt.timezone.utc
GONE_S = 1_772_400_000
MOMENT = GONE_S * 1_000_000 + 999_999
SECONDS = (GONE_S - 1, GONE_S, GONE_S + 1)
EXPIRED = ["expire", "expire", "delete"]
DELETED = ["delete"] * 3


def columns_of(ttl: Field | None) -> CapturedColumns:
    return CapturedColumns.from_fields(
        [Field(name="v", dtype=String), *([ttl] if ttl else [])],
        keys={"id": "S"},
        event_time="at",
        event_time_unit="s",
        expiry="gone_at",
    )


def field(dtype: Any, name: str = "gone_at", **tags: str) -> Field:
    return Field(name=name, dtype=dtype, tags=tags)


def micros(unit_s: float) -> list[Any]:
    return [dt.datetime.fromtimestamp(each * unit_s, UTC) for each in SECONDS]


@pytest.mark.parametrize(
    ("ttl", "values", "changes"),
    [
        (field(Int64), [*SECONDS], EXPIRED),
        (field(Int32), [*SECONDS], EXPIRED),
        (field(Int64, "until", attribute="gone_at"), [*SECONDS], EXPIRED),
        (field(Int64), [None, None, GONE_S], ["delete", "delete", "expire"]),
        (field(Float64), [*map(float, SECONDS)], EXPIRED),
        # To DynamoDB a fraction is no TTL.
        (field(Float64), [GONE_S - 0.5] * 3, DELETED),
        (field(Decimal), ["1772399999", "1.7724E+9", "1772400001.0"], EXPIRED),
        (field(Decimal, precision="20", scale="2"), [*map(Number, SECONDS)], EXPIRED),
        (field(UnixTimestamp, unit="s"), micros(1), EXPIRED),
        # DynamoDB reads seconds, whatever the declaration takes them for.
        (field(UnixTimestamp, unit="ms"), micros(1e-3), EXPIRED),
        (field(UnixTimestamp, unit="iso8601"), micros(1), DELETED),
        (field(Float32), [*map(float, SECONDS)], DELETED),
        (field(Json), ["1"] * 3, DELETED),
        # It is no column, or one inside of a map is named so.
        (None, [], DELETED),
        (field(Int64, attribute='["map", "gone_at"]'), [*SECONDS], DELETED),
    ],
)
def test_what_is_gone_after_its_ttl_has_expired(ttl: Field | None, values: Any, changes: Any):
    columns = columns_of(ttl)
    at = dt.datetime(2026, 1, 1, tzinfo=UTC)
    given = {"id": ["a", "b", "c"], "at": [at] * 3, "v": ["x", None, "z"]}
    names = columns.schema.names
    arrays = [
        pa.array(given.get(each.name, values), each.type)
        for each in map(columns.schema.field, names)
    ]
    rows = pa.Table.from_arrays(arrays, names=names)
    made = ends(columns, rows, MOMENT)
    assert made.schema == columns.history_schema
    assert made["_feast_change"].to_pylist() == changes
    written = dt.datetime.fromtimestamp(GONE_S, UTC) + dt.timedelta(microseconds=999_999)
    assert made["_feast_written_at"].to_pylist() == [written] * 3
    assert made.select(names).to_pylist() == rows.to_pylist()
    assert ends(columns, rows.slice(0, 0), MOMENT).num_rows == 0


def test_of_a_record_in_quarantine_what_fits_is_kept():
    records = [
        '{"Item": {"id": {"S": "a"}, "at": {"N": "1767225600"}, "v": {"N": "1"}}}',
        '{"Keys": {"id": {"S": "b"}}, "NewImage": {"id": {"S": "b"}, "at": {"S": "?"}, '
        '"v": {"S": "y"}, "gone_at": {"N": "1772400000"}}}',
    ]
    made = quarantined_ends(columns_of(None), records, MOMENT).to_pylist()
    found = [(row["id"], row["at"].isoformat(), row["v"], row["_feast_change"]) for row in made]
    assert found == [
        ("a", "2026-01-01T00:00:00+00:00", None, "delete"),
        ("b", "2026-03-01T21:20:00.999999+00:00", "y", "expire"),
    ]


def test_names_of_helper_columns_are_no_names_of_keys(tmp_path: Any):
    """Keys, event time and attribute are named as columns of the queries could be."""
    fields = [
        Field(name="w", dtype=String),
        Field(name="q", dtype=String),
        Field(name="t", dtype=UnixTimestamp),
        Field(name="p", dtype=Int64),
    ]
    source = captured.source_of(event_time="t", event_time_unit="s", schema=fields)
    columns = CapturedColumns.from_fields(
        source.fields, keys={"w": "S", "q": "S"}, event_time="t", event_time_unit="s"
    )
    config = repo_config(tmp_path, catalog=captured.CATALOG)
    make_history(source, columns.history_schema, columns.keys, config)
    history = CapturedHistory.from_source(source, config)
    reader = RecordReader(columns)

    def item(key: str, amount: str) -> dict[str, Any]:
        values = {"w": {"S": key}, "q": {"S": "2"}, "t": {"N": "1767225600"}}
        return {"Item": {**values, "p": {"N": amount}}}

    old = [item("z", "1"), item("a", "2"), item("m", "1.5")]
    before = reader.converted(old, [MOMENT - 9, MOMENT - 9, MOMENT - 9], ["1", "2", "3"])
    assert before.quarantine.num_rows == 1
    tables = (pa.Table.from_batches([each]) for each in (before.rows, before.quarantine))
    history.add(*tables, None, None, "before")
    now = reader.converted([item("a", "2")], [MOMENT], ["4"])
    missing = MissingItems(history.handle, history.quarantine, columns, MOMENT)
    found = [row for part in missing.added_to([now]) for row in part.rows.to_pylist()]
    assert [(row["w"], row["q"], row["p"], row["_feast_change"]) for row in found] == [
        ("a", "2", 2, "put"),
        ("z", "2", 1, "delete"),
        ("m", "2", None, "delete"),
    ]
