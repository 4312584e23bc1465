"""Values and keys of every type, as messages of Feast and as columns of Parquet."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
from feast import ValueType
from feast.protos.feast.types.Value_pb2 import Null, Value
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    ImageBytes,
    Int32,
    Int64,
    Json,
    Map,
    PdfBytes,
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

BIG = 2**53 + 1  # no float holds it
ZEROS, LETTERS = "00000000-0000-0000-0000-000000000000", "12345678-9abc-def0-1234-56789abcdef0"
UTC = dt.timezone.utc
MOMENT = dt.datetime(2025, 3, 29, 1, 30, 0, 999_999, tzinfo=UTC)
EARLY = dt.datetime(1969, 12, 31, 23, 59, 58, 500_000, tzinfo=UTC)

SCALAR_CELLS: dict[str, list[Any]] = {
    "bytes": [b"", b"\xff\x00"],
    "string": ["", "ä€😀"],
    "int32": [0, -(2**31)],
    "int64": [BIG, -(2**63)],
    "double": [0.1, float("-inf")],
    "float": [0.5, -3.25],
    "bool": [False, True],
    "unix_timestamp": [0, -2],
}
TEXT_CELLS: dict[str, list[str]] = {
    "json": ['{"a": [1]}', "[]"],
    "uuid": [LETTERS, ZEROS],
    "time_uuid": [LETTERS, ZEROS],
    "decimal": ["0.10", "-1E-30"],
}


def _inner(name: str, cell: Any) -> Value:
    return Value(**{f"{name}_val": cell})


def _map(**cells: Any) -> Any:
    found = Value()
    found.map_val.SetInParent()
    for name, cell in cells.items():
        found.map_val.val[name].CopyFrom(cell)
    return found.map_val


def messages() -> dict[str, list[Value]]:
    """Field of Feast's Value message -> messages that hold it."""
    found: dict[str, list[Value]] = {"null_val": [Value(null_val=Null.NULL)]}
    for name, cells in SCALAR_CELLS.items():
        found[f"{name}_val"] = [_inner(name, cell) for cell in cells]
        for kind in ("list", "set"):
            field = f"{name}_{kind}_val"
            found[field] = [Value(), Value()]
            getattr(found[field][0], field).val.extend(cells)
            getattr(found[field][1], field).SetInParent()
    for name, texts in TEXT_CELLS.items():
        found[f"{name}_val"] = [_inner(name, text) for text in texts]
        for kind in ("list", "set"):
            field = f"{name}_{kind}_val"
            if field in Value.DESCRIPTOR.fields_by_name:
                found[field] = [Value()]
                getattr(found[field][0], field).val.extend(texts)
    # Of one entry each: protobuf serializes maps in the order of a hash table.
    cells = _map(a=Value(map_val=_map(b=Value(int64_val=BIG))))
    for name in ("map", "struct"):
        found[f"{name}_val"] = [
            _inner(name, cells),
            _inner(name, _map()),
            _inner(name, _map(a=Value())),
        ]
        field = f"{name}_list_val"
        found[field] = [Value()]
        getattr(found[field][0], field).val.extend([_map(a=Value(string_val="x")), _map()])
    nested = Value()
    nested.list_val.val.extend([found["int64_list_val"][0], found["int64_list_val"][1]])
    found["list_val"] = [nested]
    set_of_lists = Value()
    set_of_lists.set_val.val.extend([found["string_list_val"][0]])
    found["set_val"] = [set_of_lists]
    scalar_map = Value()
    scalar_map.scalar_map_val.SetInParent()
    entries = scalar_map.scalar_map_val.val
    for key, cell in ((BIG, "b"), (1, None)):
        entry = entries.add()
        entry.key.int64_key = key
        if cell is not None:
            entry.value.string_val = cell
    found["scalar_map_val"] = [scalar_map]
    zoned = Value()
    zoned.zoned_timestamp_val.SetInParent()
    for field in zoned.zoned_timestamp_val.DESCRIPTOR.fields:
        setattr(
            zoned.zoned_timestamp_val,
            field.name,
            "Europe/Berlin" if field.type == field.TYPE_STRING else 1_743_211_800,
        )
    found["zoned_timestamp_val"] = [zoned]
    return found


TYPE_OF_FIELD: dict[str, Any] = {
    "null_val": Int64,
    "bytes_val": Bytes,
    "string_val": String,
    "int32_val": Int32,
    "int64_val": Int64,
    "double_val": Float64,
    "float_val": Float32,
    "bool_val": Bool,
    "unix_timestamp_val": UnixTimestamp,
    "map_val": Map,
    "map_list_val": Array(Map),
    "json_val": Json,
    "json_list_val": Array(Json),
    "struct_val": Struct({"a": Int64}),
    "struct_list_val": Array(Struct({"a": String})),
    "uuid_val": Uuid,
    "time_uuid_val": TimeUuid,
    "decimal_val": DecimalType,
    "list_val": Array(Array(Int64)),
    "set_val": Set(Array(String)),
    "scalar_map_val": ScalarMap,
    "zoned_timestamp_val": ZonedTimestamp,
    **{
        f"{name}_{kind}_val": form(inner)
        for kind, form in (("list", Array), ("set", Set))
        for name, inner in (
            ("bytes", Bytes), ("string", String), ("int32", Int32), ("int64", Int64),
            ("double", Float64), ("float", Float32), ("bool", Bool),
            ("unix_timestamp", UnixTimestamp), ("uuid", Uuid), ("time_uuid", TimeUuid),
            ("decimal", DecimalType),
        )
    },
}  # fmt: skip


def _uuids(*cells: str | None) -> pa.Array:
    return pa.array([cell and uuid.UUID(cell).bytes for cell in cells], pa.uuid())


def _times(kind: pa.DataType) -> pa.Array:
    return pa.array([MOMENT, None, EARLY], pa.timestamp("us", "UTC")).cast(kind, safe=False)


def _dictionaries() -> pa.Array:
    cells = pa.array(["a", "b", "a"]).dictionary_encode()
    return pa.ListArray.from_arrays([0, 2, 2, 3], cells)


WIDE = Decimal("-" + "9" * 36 + ".99")
# Name -> declared type, and the column's values for three entities.
COLUMNS: dict[str, tuple[Any, pa.Array]] = {
    "int64": (Int64, pa.array([BIG, None, -(2**63)])),
    "int32": (Int32, pa.array([-(2**31), None, 0], pa.int32())),
    "int8": (Int32, pa.array([-128, None, 127], pa.int8())),
    "uint8": (Int32, pa.array([0, None, 255], pa.uint8())),
    "uint32": (Int64, pa.array([0, None, 2**32 - 1], pa.uint32())),
    "uint64": (Int64, pa.array([BIG, None, 2**63 - 1], pa.uint64())),
    "int_of_float": (Int64, pa.array([3.0, None, -0.0])),
    "int_of_decimal": (Int64, pa.array([Decimal(12), None, Decimal(BIG)])),
    "float64": (Float64, pa.array([0.1, None, float("nan")])),
    "float32": (Float32, pa.array([0.5, None, float("inf")], pa.float32())),
    "float16": (Float32, pa.array([0.5, None, 3.0]).cast(pa.float16())),
    "float_of_int": (Float64, pa.array([7, None, -7], pa.int16())),
    "bool": (Bool, pa.array([True, None, False])),
    "text": (String, pa.array(["", None, "ä€😀"])),
    "large_text": (String, pa.array(["x", None, "y"], pa.large_string())),
    "category": (String, pa.array(["a", None, "a"]).dictionary_encode()),
    "bytes": (Bytes, pa.array([b"", None, b"\xff\x00"])),
    "fixed": (Bytes, pa.array([b"ab", None, b"cd"], pa.binary(2))),
    "image": (ImageBytes, pa.array([b"ab", None, b""])),
    "pdf": (PdfBytes, pa.array([b"ab", None, b""])),
    "json": (Json, pa.array(['{"a": [1]}', None, "[]"])),
    "uuid": (Uuid, pa.array([LETTERS, None, ZEROS])),
    "uuid_type": (Uuid, _uuids(LETTERS, None, ZEROS)),
    "time_uuid": (TimeUuid, pa.array([LETTERS, None, ZEROS])),
    "decimal": (DecimalType, pa.array([Decimal("0.10"), None, WIDE], pa.decimal128(38, 2))),
    "decimal_of_text": (DecimalType, pa.array(["0.10", None, "-1E-30"])),
    **{
        f"utc_{unit}": (UnixTimestamp, _times(pa.timestamp(unit, "UTC")))
        for unit in ("s", "ms", "us", "ns")
    },
    **{
        f"zoneless_{unit}": (UnixTimestamp, _times(pa.timestamp(unit)))
        for unit in ("s", "ms", "us", "ns")
    },
    "berlin": (UnixTimestamp, _times(pa.timestamp("us", "Europe/Berlin"))),
    "time_of_int": (UnixTimestamp, pa.array([0, None, -2])),
    "date": (UnixTimestamp, pa.array([dt.date(2025, 3, 29), None, dt.date(1969, 12, 31)])),
    "zoned": (ZonedTimestamp, _times(pa.timestamp("ns", "Europe/Berlin"))),
    "int64s": (Array(Int64), pa.array([[BIG, 0], [], None])),
    "int8s": (Array(Int32), pa.array([[-128, 0], [], None], pa.list_(pa.int8()))),
    "uint64s": (Array(Int64), pa.array([[BIG], [], None], pa.list_(pa.uint64()))),
    "float64s": (Array(Float64), pa.array([[0.1, None], [], None])),
    "float32s": (
        Array(Float32),
        pa.array([[0.5, 2.0], [3.0, 4.0], None], pa.list_(pa.float32(), 2)),
    ),
    "bools": (Array(Bool), pa.array([[True, False], [], None])),
    "texts": (Array(String), pa.array([["ä", ""], [], None], pa.large_list(pa.string()))),
    "categories": (Array(String), _dictionaries()),
    "blobs": (Array(Bytes), pa.array([[b"\xff", b""], [], None])),
    "decimals": (Array(DecimalType), pa.array([[Decimal("0.10")], [], None])),
    "uuids": (Array(Uuid), pa.array([[LETTERS, ZEROS], [], None])),
    "moments": (
        Array(UnixTimestamp),
        pa.array([[MOMENT], [], None], pa.list_(pa.timestamp("ns", "UTC"))),
    ),
    "documents": (Array(Json), pa.array([['{"a": 1}'], [], None])),
    "set_of_int64": (Set(Int64), pa.array([[BIG, BIG, 1], [], None])),
    "set_of_text": (Set(String), pa.array([["b", "a", "b"], [], None])),
    "nested": (Array(Array(Int64)), pa.array([[[BIG], [1, 2]], [], None])),
    "deep": (Array(Array(Array(String))), pa.array([[[["a"], ["b"]]], [], None])),
    "map": (
        Map,
        pa.array([[("a", BIG), ("b", None)], [], None], pa.map_(pa.string(), pa.int64())),
    ),
    "map_of_lists": (
        Map,
        pa.array([[("a", [0.5, 1.5])], [], None], pa.map_(pa.string(), pa.list_(pa.float64()))),
    ),
    "map_of_text": (Map, pa.array(['{"a": {"b": [1.5]}}', "{}", None])),
    "maps": (
        Array(Map),
        pa.array([[[("a", "x")], []], [], None], pa.list_(pa.map_(pa.string(), pa.string()))),
    ),
    "struct": (
        Struct({"a": Int64, "b": String}),
        pa.array([{"a": BIG, "b": "x"}, {"a": None, "b": None}, None]),
    ),
    "structs": (Array(Struct({"a": Int64})), pa.array([[{"a": BIG}], [], None])),
    "scalar_map": (
        ScalarMap,
        pa.array([[(BIG, "b"), (1, None)], [], None], pa.map_(pa.int64(), pa.string())),
    ),
}

# What must be refused: name -> declared type, and a column of three values.
MISFITS: dict[str, tuple[Any, pa.Array]] = {
    "uint64_beyond_int64": (Int64, pa.array([1, 2, 2**63], pa.uint64())),
    "int64_beyond_int32": (Int32, pa.array([1, 2, 2**31])),
    "fraction": (Int64, pa.array([1.0, 2.0, 5.5])),
    "int_that_no_float_holds": (Float64, pa.array([1, 2, BIG])),
    "no_number": (Int64, pa.array(["1", "2", "five"])),
    "no_time": (UnixTimestamp, pa.array(["2025-01-01"] * 3)),
    "no_list": (Array(Int64), pa.array([1, 2, 3])),
    "no_map": (Map, pa.array(["{}", "{}", "[1]"])),
    "no_json": (Array(Json), pa.array([["{}"], None, ["{"]])),
    "duration": (Int64, pa.array([dt.timedelta(seconds=1)] * 3)),
}

# Join keys: name -> Feast's type, the entity's value type, and a column of three values.
KEY_COLUMNS: dict[str, tuple[Any, ValueType, pa.Array]] = {
    "int64": (Int64, ValueType.INT64, pa.array([BIG, 0, -(2**63)])),
    "int32": (Int32, ValueType.INT32, pa.array([1, 0, -(2**31)], pa.int32())),
    "int16_as_int64": (Int64, ValueType.INT64, pa.array([1, 0, -(2**15)], pa.int16())),
    "string": (String, ValueType.STRING, pa.array(["a", "", "ä€😀"])),
    "category": (String, ValueType.STRING, pa.array(["a", "b", "c"]).dictionary_encode()),
    "bytes": (Bytes, ValueType.BYTES, pa.array([b"a", b"", b"\xff\x00"])),
    "bool": (Bool, ValueType.BOOL, pa.array([True, False, None])),
    "unix_timestamp": (
        UnixTimestamp,
        ValueType.UNIX_TIMESTAMP,
        pa.array([0, 1_740_000_000, -2], pa.timestamp("s", "UTC")),
    ),
    "uuid": (Uuid, ValueType.UUID, pa.array([LETTERS, ZEROS, LETTERS[::-1].replace("-", "0")])),
    "double": (Float64, ValueType.DOUBLE, pa.array([0.5, 0.0, -1.5])),
    "float": (Float32, ValueType.FLOAT, pa.array([0.5, 0.0, -1.5], pa.float32())),
    "decimal": (DecimalType, ValueType.DECIMAL, pa.array([Decimal("0.10"), None, WIDE])),
    "nullable": (Int64, ValueType.INT64, pa.array([7, None, 8])),
}
