"""Features come out of the point-in-time join as they are in the files, of every type."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Int64, Invalid
from pit_cases import of_every_plan

MOMENT = dt.datetime(2026, 3, 29, 1, 30, tzinfo=dt.timezone.utc)
FIRST, LAST = pa.timestamp("us"), pa.timestamp("ns", "Europe/Berlin")
EARLIEST = dt.datetime.min.replace(tzinfo=dt.timezone.utc)
LATEST = dt.datetime.max.replace(tzinfo=dt.timezone.utc)

# Two rows of history each; there is a third, all of nulls, between them.
COLUMNS = {
    "int8": (pa.int8(), -128, 127),
    "int32": (pa.int32(), -(2**31), 2**31 - 1),
    "int64": (pa.int64(), 2**53 + 1, -(2**63)),
    "uint8": (pa.uint8(), 0, 255),
    "uint64": (pa.uint64(), 2**64 - 1, 0),
    "float32": (pa.float32(), 0.5, float("-inf")),
    "float64": (pa.float64(), 0.1, -0.0),
    "text": (pa.string(), "", "\U0001f600\x00"),
    "large_text": (pa.large_string(), "ä", "a"),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), "a", "b"),
    "raw": (pa.binary(), b"", b"\x00\xff"),
    "fixed": (pa.binary(2), b"\x00\x00", b"ab"),
    "boolean": (pa.bool_(), True, False),
    "naive": (FIRST, EARLIEST.replace(tzinfo=None), LATEST.replace(tzinfo=None)),
    "aware": (LAST, pd.Timestamp(1, tz="Europe/Berlin"), pd.Timestamp(-1, tz="Europe/Berlin")),
    "millis": (pa.timestamp("ms", "UTC"), MOMENT, dt.datetime(1969, 1, 1, tzinfo=dt.timezone.utc)),
    "date": (pa.date32(), dt.date(1969, 12, 31), dt.date(9999, 12, 31)),
    "decimal": (pa.decimal128(38, 2), Decimal("12345678901234567890.12"), Decimal("-0.01")),
    "numbers": (pa.list_(pa.int64()), [], [1, None, 2**53 + 1]),
    "floats": (pa.list_(pa.float32()), [0.5, float("inf")], [None]),
    "texts": (pa.list_(pa.string()), ["", None, "a"], [""]),
    "flags": (pa.list_(pa.bool_()), [True, False, None], []),
    "raws": (pa.list_(pa.binary()), [b"", b"\x00"], [None]),
    "moments": (pa.list_(pa.timestamp("us", "UTC")), [MOMENT, None], []),
    "nested": (pa.list_(pa.list_(pa.int64())), [[1], None, []], [[None]]),
    "fixed_list": (pa.list_(pa.float32(), 2), [1.0, 2.0], [0.0, None]),
    "map": (pa.map_(pa.string(), pa.int64()), [("a", 1), ("b", None)], []),
    "struct": (
        pa.struct({"lat": pa.float64(), "tags": pa.list_(pa.string())}),
        {"lat": None, "tags": ["a"]},
        {"lat": 1.5, "tags": None},
    ),
}


# Row groups of one row without nulls are plain, others are not.
WRITTEN = {
    "packed": {"row_group_size": 1},
    "plain": {"row_group_size": 1, "compression": "none", "use_dictionary": False},
    "together": {"compression": "none", "use_dictionary": False},
}


@pytest.fixture(scope="module", params=WRITTEN.values(), ids=WRITTEN)
def view(request, tmp_path_factory) -> FeatureView:
    path = tmp_path_factory.mktemp("types") / "history.parquet"
    columns = {name: pa.array([a, None, b], kind) for name, (kind, a, b) in COLUMNS.items()}
    columns["cid"] = pa.array([1, 2, 3])
    columns["at"] = pa.array([MOMENT] * 3, pa.timestamp("us", "UTC"))
    pq.write_table(pa.table(columns), path, **request.param)
    return FeatureView(
        name="types",
        entities=[Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)],
        schema=[
            Field(name="cid", dtype=Int64),
            *(Field(name=name, dtype=Invalid) for name in COLUMNS),
        ],
        source=FileSource(path=str(path), timestamp_field="at"),
        ttl=dt.timedelta(0),
    )


@pytest.mark.slow
@pytest.mark.parametrize("asked", [[3, 1, 9, 2, 1, 3], [2], [9, 9], [1] * 5], ids=str)
def test_values_and_types_are_those_of_the_file(view, asked):
    """Seen by several entity rows, seen as a null, and not seen at all."""
    frame = pd.DataFrame({"cid": asked, "event_timestamp": [pd.Timestamp(MOMENT)] * len(asked)})
    refs = [f"types:{name}" for name in COLUMNS]
    for plan, result in of_every_plan([view], refs, frame):
        for name, (kind, first, last) in COLUMNS.items():
            expected = [{1: first, 3: last}.get(cid) for cid in asked]
            assert result.schema.field(name).type == kind, (plan, name)
            assert result.column(name).to_pylist() == expected, (plan, name)
