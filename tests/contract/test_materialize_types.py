"""Every type of value, from a Parquet file to what is served: exact, or refused as a whole."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.feature_view import FeatureViewState
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
    ScalarMap,
    Set,
    String,
    Struct,
    TimeUuid,
    UnixTimestamp,
    Uuid,
    ZonedTimestamp,
)
from feast.types import Decimal as DecimalType

from feast_dynamo_ext.errors import (
    ColumnTypeError,
    EntityKeyError,
    ItemTooLargeError,
    UnsupportedTypeError,
)

if TYPE_CHECKING:
    from pathlib import Path

UTC = dt.timezone.utc
START = dt.datetime(2025, 1, 1, tzinfo=UTC)
END = START + dt.timedelta(days=1)
CUSTOMER = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
SHOP = Entity(name="shop", join_keys=["sid"], value_type=ValueType.STRING)

BIG = 2**53 + 1  # no float holds it
ZEROS, LETTERS = "00000000-0000-0000-0000-000000000000", "12345678-9abc-def0-1234-56789abcdef0"
IDS = [uuid.UUID(ZEROS), uuid.UUID(LETTERS)]
# Feast's times are whole seconds, and a scalar before 1970 is rounded down.
MOMENT = dt.datetime(2026, 3, 29, 1, 30, 0, 999_999, tzinfo=UTC)
SECOND = dt.datetime(2026, 3, 29, 1, 30, 0, tzinfo=UTC)
EARLY = dt.datetime(1969, 12, 31, 23, 59, 58, 500_000, tzinfo=UTC)
EARLY_SECOND = dt.datetime(1969, 12, 31, 23, 59, 58, tzinfo=UTC)
NOON = dt.datetime(2026, 3, 29, 12, tzinfo=UTC)


def zoneless(*moments: dt.datetime) -> list[Any]:
    return [moment.replace(tzinfo=None) for moment in moments]


def uuids(cells: list[str | None]) -> pa.Array:
    return pa.array([cell and uuid.UUID(cell).bytes for cell in cells], pa.uuid())


# Name, declared type, the column of the newest rows of customers 1 to 3, and what is served.
SCALARS = [
    ("int64", Int64, pa.array([BIG, None, -(2**63)]), [BIG, None, -(2**63)]),
    ("int32", Int32, pa.array([-(2**31), None, 0], pa.int32()), [-(2**31), None, 0]),
    ("int8", Int32, pa.array([-128, None, 127], pa.int8()), [-128, None, 127]),
    ("uint8", Int32, pa.array([0, None, 255], pa.uint8()), [0, None, 255]),
    ("uint32", Int64, pa.array([0, None, 2**32 - 1], pa.uint32()), [0, None, 2**32 - 1]),
    ("uint64", Int64, pa.array([BIG, None, 2**63 - 1], pa.uint64()), [BIG, None, 2**63 - 1]),
    ("int_of_float", Int64, pa.array([3.0, None, -0.0]), [3, None, 0]),
    ("float64", Float64, pa.array([0.1, None, -1e300]), [0.1, None, -1e300]),
    ("float32", Float32, pa.array([0.5, None, 3.0], pa.float32()), [0.5, None, 3.0]),
    ("float_of_int", Float64, pa.array([7, None, -7], pa.int16()), [7.0, None, -7.0]),
    ("bool", Bool, pa.array([True, None, False]), [True, None, False]),
    ("text", String, pa.array(["", None, "ä€😀"]), ["", None, "ä€😀"]),
    ("large_text", String, pa.array(["x", None, "y"], pa.large_string()), ["x", None, "y"]),
    ("category", String, pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    ("bytes", Bytes, pa.array([b"", None, b"\xff\x00"]), [b"", None, b"\xff\x00"]),
    ("fixed", Bytes, pa.array([b"ab", None, b"cd"], pa.binary(2)), [b"ab", None, b"cd"]),
    (
        "decimal",
        DecimalType,
        pa.array([Decimal("0.10"), None, Decimal("-9" * 1 + "9" * 35 + ".99")], pa.decimal128(38, 2)),
        [Decimal("0.10"), None, Decimal("-" + "9" * 36 + ".99")],
    ),
    ("json", Json, pa.array(['{"a": [1]}', None, "[]"]), ['{"a": [1]}', None, "[]"]),
    ("json_type", Json, pa.array(['{"a":1}', None, "2"], pa.json_()), ['{"a":1}', None, "2"]),
    ("uuid", Uuid, pa.array([LETTERS, None, ZEROS]), [IDS[1], None, IDS[0]]),
    ("uuid_type", Uuid, uuids([LETTERS, None, ZEROS]), [IDS[1], None, IDS[0]]),
    ("time_uuid", TimeUuid, pa.array([LETTERS, None, ZEROS]), [IDS[1], None, IDS[0]]),
]
TIMES = [
    *(
        (
            f"utc_{unit}",
            UnixTimestamp,
            pa.array([SECOND, None, EARLY_SECOND], pa.timestamp(unit, "UTC")),
            [SECOND, None, EARLY_SECOND],
        )
        for unit in ("s", "ms", "us", "ns")
    ),
    *(
        (
            f"zoneless_{unit}",
            UnixTimestamp,
            pa.array([*zoneless(MOMENT), None, *zoneless(EARLY)], pa.timestamp("us")).cast(
                pa.timestamp(unit), safe=False
            ),
            [SECOND, None, EARLY_SECOND],
        )
        for unit in ("ms", "us", "ns")
    ),
    (
        "berlin",
        UnixTimestamp,
        pa.array([MOMENT, None, EARLY], pa.timestamp("us", "Europe/Berlin")),
        [SECOND, None, EARLY_SECOND],
    ),
]


@dataclass(frozen=True)
class Repo:
    store: FeatureStore
    client: Any
    folder: Path
