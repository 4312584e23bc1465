"""Every type of value, from a Parquet file to what is served: exact, or refused as a whole."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, ValueType
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
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.errors import (
    ColumnTypeError,
    EntityKeyError,
    ItemTooLargeError,
    UnsupportedTypeError,
    ViewsFailedError,
)

if TYPE_CHECKING:
    from pathlib import Path

UTC = dt.timezone.utc
START = dt.datetime(2025, 1, 1, tzinfo=UTC)
END = START + dt.timedelta(days=1)
SHOP = Entity(name="shop", join_keys=["sid"], value_type=ValueType.STRING)

BIG = 2**53 + 1  # no float holds it
ZEROS, LETTERS = "00000000-0000-0000-0000-000000000000", "12345678-9abc-def0-1234-56789abcdef0"
IDS = [uuid.UUID(ZEROS), uuid.UUID(LETTERS)]
# Feast's times are whole seconds: a time is the second that it is in.
MOMENT = dt.datetime(2026, 3, 29, 1, 30, 0, 999_999, tzinfo=UTC)
SECOND = dt.datetime(2026, 3, 29, 1, 30, 0, tzinfo=UTC)
EARLY = dt.datetime(1969, 12, 31, 23, 59, 58, 500_000, tzinfo=UTC)
EARLY_SECOND = dt.datetime(1969, 12, 31, 23, 59, 58, tzinfo=UTC)


WIDE = Decimal("-" + "9" * 36 + ".99")


def uuids(*cells: str | None) -> pa.Array:
    return pa.array([cell and uuid.UUID(cell).bytes for cell in cells], pa.uuid())


# Name, declared type, the columns of the newest rows of customers 1 to 3, and what is served.
SCALARS = [
    ("int64", Int64, pa.array([BIG, None, -(2**63)]), [BIG, None, -(2**63)]),
    ("int32", Int32, pa.array([-(2**31), None, 0], pa.int32()), [-(2**31), None, 0]),
    ("int8", Int32, pa.array([-128, None, 127], pa.int8()), [-128, None, 127]),
    ("uint8", Int32, pa.array([0, None, 255], pa.uint8()), [0, None, 255]),
    ("uint32", Int64, pa.array([0, None, 2**32 - 1], pa.uint32()), [0, None, 2**32 - 1]),
    ("uint64", Int64, pa.array([BIG, None, 2**63 - 1], pa.uint64()), [BIG, None, 2**63 - 1]),
    ("int_of_float", Int64, pa.array([3.0, None, -0.0]), [3, None, 0]),
    ("int_of_decimal", Int64, pa.array([Decimal(12), None, Decimal(BIG)]), [12, None, BIG]),
    ("float64", Float64, pa.array([0.1, None, -1e300]), [0.1, None, -1e300]),
    ("float32", Float32, pa.array([0.5, None, 3.0], pa.float32()), [0.5, None, 3.0]),
    ("float16", Float32, pa.array([0.5, None, 3.0]).cast(pa.float16()), [0.5, None, 3.0]),
    ("float_of_int", Float64, pa.array([7, None, -7], pa.int16()), [7.0, None, -7.0]),
    ("bool", Bool, pa.array([True, None, False]), [True, None, False]),
    ("text", String, pa.array(["", None, "ä€😀"]), ["", None, "ä€😀"]),
    ("large_text", String, pa.array(["x", None, "y"], pa.large_string()), ["x", None, "y"]),
    ("category", String, pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    ("bytes", Bytes, pa.array([b"", None, b"\xff\x00"]), [b"", None, b"\xff\x00"]),
    ("fixed", Bytes, pa.array([b"ab", None, b"cd"], pa.binary(2)), [b"ab", None, b"cd"]),
    ("json", Json, pa.array(['{"a": [1]}', None, "[]"]), [{"a": [1]}, None, []]),
    ("json_type", Json, pa.array(['{"a":1}', None, "2"], pa.json_()), [{"a": 1}, None, 2]),
    ("uuid", Uuid, pa.array([LETTERS, None, ZEROS]), [IDS[1], None, IDS[0]]),
    ("uuid_type", Uuid, uuids(LETTERS, None, ZEROS), [IDS[1], None, IDS[0]]),
    ("time_uuid", TimeUuid, pa.array([LETTERS, None, ZEROS]), [IDS[1], None, IDS[0]]),
    (
        "decimal",
        DecimalType,
        pa.array([Decimal("0.10"), None, WIDE], pa.decimal128(38, 2)),
        [Decimal("0.10"), None, WIDE],
    ),
    (
        "decimal_of_text",
        DecimalType,
        pa.array(["0.10", None, "-1E-30"]),
        [Decimal("0.10"), None, Decimal("-1E-30")],
    ),
]


def times(kind: pa.DataType) -> pa.Array:
    """Of a unit and zone; what a unit cannot tell is cut off."""
    finest = pa.array([MOMENT, None, EARLY], pa.timestamp("us", "UTC"))
    if kind.unit == "s":
        finest = pa.array([SECOND, None, EARLY_SECOND], pa.timestamp("us", "UTC"))
    return finest.cast(kind, safe=False)


MOMENTS = [
    *(
        (name, UnixTimestamp, times(kind), [SECOND, None, EARLY_SECOND])
        for unit in ("s", "ms", "us", "ns")
        for name, kind in (
            (f"utc_{unit}", pa.timestamp(unit, "UTC")), (f"zoneless_{unit}", pa.timestamp(unit))
        )
    ),
    ("berlin", UnixTimestamp, times(pa.timestamp("us", "Europe/Berlin")),
     [SECOND, None, EARLY_SECOND]),
    ("time_of_int", UnixTimestamp, pa.array([0, None, -2]),
     [dt.datetime(1970, 1, 1, tzinfo=UTC), None, EARLY_SECOND]),
    ("date", UnixTimestamp, pa.array([dt.date(2026, 3, 29), None, dt.date(1969, 12, 31)]),
     [dt.datetime(2026, 3, 29, tzinfo=UTC), None, dt.datetime(1969, 12, 31, tzinfo=UTC)]),
    # The zone is kept.
    ("zoned", ZonedTimestamp, times(pa.timestamp("ns", "Europe/Berlin")),
     [SECOND, None, EARLY_SECOND]),
]  # fmt: skip
# Feast's lists have no nulls: it makes them 0, empty or False.
LISTS = [
    ("int64s", Array(Int64), pa.array([[BIG, 0], [], None]), [[BIG, 0], [], None]),
    ("int8s", Array(Int32), pa.array([[-128, 0], [], None], pa.list_(pa.int8())),
     [[-128, 0], [], None]),
    ("uint64s", Array(Int64), pa.array([[BIG], [], None], pa.list_(pa.uint64())),
     [[BIG], [], None]),
    ("float64s", Array(Float64), pa.array([[0.1, 0.0], [], None]), [[0.1, 0.0], [], None]),
    ("float32s", Array(Float32),
     pa.array([[0.5, 2.0], [3.0, 4.0], None], pa.list_(pa.float32(), 2)),
     [[0.5, 2.0], [3.0, 4.0], None]),
    ("bools", Array(Bool), pa.array([[True, False], [], None]), [[True, False], [], None]),
    ("texts", Array(String), pa.array([["ä", ""], [], None], pa.large_list(pa.string())),
     [["ä", ""], [], None]),
    ("categories", Array(String),
     pa.ListArray.from_arrays([0, 2, 2, 3], pa.array(["a", "b", "a"]).dictionary_encode()),
     [["a", "b"], [], ["a"]]),
    ("blobs", Array(Bytes), pa.array([[b"\xff", b""], [], None]), [[b"\xff", b""], [], None]),
    ("decimals", Array(DecimalType), pa.array([[Decimal("0.10")], [], None]),
     [[Decimal("0.10")], [], None]),
    ("uuids", Array(Uuid), pa.array([[LETTERS, ZEROS], [], None]), [IDS[::-1], [], None]),
    ("moments", Array(UnixTimestamp),
     pa.array([[MOMENT], [], None], pa.list_(pa.timestamp("ns", "UTC"))),
     [[SECOND], [], None]),
    ("documents", Array(Json), pa.array([['{"a": 1}'], [], None]), [[{"a": 1}], [], None]),
    ("set", Set(Int64), pa.array([[BIG, BIG, 1], [], None]), [{BIG, 1}, set(), None]),
    ("nested", Array(Array(Int64)), pa.array([[[BIG], [1, 2]], [], None]),
     [[[BIG], [1, 2]], [], None]),
    ("deep", Array(Array(Array(String))), pa.array([[[["a"], ["b"]]], [], None]),
     [[[["a"], ["b"]]], [], None]),
]  # fmt: skip
MAPS = [
    ("map", Map, pa.array([[("a", BIG), ("b", None)], [], None], pa.map_(pa.string(), pa.int64())),
     [{"a": BIG, "b": None}, {}, None]),
    ("map_of_lists", Map,
     pa.array([[("a", [0.5, 1.5])], [], None], pa.map_(pa.string(), pa.list_(pa.float64()))),
     [{"a": [0.5, 1.5]}, {}, None]),
    ("map_of_text", Map, pa.array(['{"a": {"b": [1.5]}}', "{}", None]),
     [{"a": {"b": [1.5]}}, {}, None]),
    ("maps", Array(Map),
     pa.array([[[("a", "x")], []], [], None], pa.list_(pa.map_(pa.string(), pa.string()))),
     [[{"a": "x"}, {}], [], None]),
    ("struct", Struct({"a": Int64, "b": String}),
     pa.array([{"a": BIG, "b": "x"}, {"a": None, "b": None}, None]),
     [{"a": BIG, "b": "x"}, {"a": None, "b": None}, None]),
    ("structs", Array(Struct({"a": Int64})), pa.array([[{"a": BIG}], [], None]),
     [[{"a": BIG}], [], None]),
    ("scalar_map", ScalarMap,
     pa.array([[(BIG, "b"), (1, None)], [], None], pa.map_(pa.int64(), pa.string())),
     [{BIG: "b", 1: None}, {}, None]),
]  # fmt: skip


@dataclass(frozen=True)
class Repo:
    """A store without views, and where its tables and its history are."""

    store: FeatureStore
    client: Any
    folder: Path

    def keep(self, name: str, **columns: Any) -> None:
        """Write the history of a view, in row groups so small that there are several."""
        pq.write_table(pa.table(columns), self.folder / f"{name}.parquet", row_group_size=2)

    def view(self, name: str, entity: Entity = CUSTOMER, **features: Any) -> FeatureView:
        """A view of that history."""
        source = parquet_files(self.folder / f"{name}.parquet", "t")
        return customer_view(name, source, entities=[entity], **features)

    def materialize(self, *views: FeatureView) -> None:
        """Declare views, and materialize them."""
        self.store.apply([CUSTOMER, SHOP, *views])
        self.store.materialize(START, END)

    def served(self, *features: str) -> dict[str, list[Any]]:
        """Features of customers 1 to 3, and of one who is not known."""
        response = self.store.get_online_features(
            features=list(features), entity_rows=[{"cid": cid} for cid in (1, 2, 3, 4)]
        )
        return response.to_dict()

    def assert_untouched(self, name: str) -> None:
        """Nothing of a view is in its table, and it may be read or run again."""
        found = self.client.scan(TableName=f"{self.store.project}.{name}", ConsistentRead=True)
        assert (name, found["Items"]) == (name, [])
        view = self.store.get_feature_view(name)
        assert view.state != FeatureViewState.MATERIALIZING
        assert view.materialization_intervals == []


@pytest.fixture
def repo(open_store, dynamodb, tmp_path, request):
    """With the engine that a test's parameter says, or that of the provider."""
    engine = getattr(request, "param", None)
    online = {"region": "us-east-1", "endpoint_url": dynamodb.endpoint}
    if dynamodb.name == "moto":  # it takes no binary values in PartiQL
        online["newest_wins_with"] = "put_item"
    more = {"batch_engine": engine} if engine else {}
    store = open_store(f"t{uuid.uuid4().hex[:12]}", online=online, **more)
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb.endpoint)
    yield Repo(store, client, tmp_path)
    store.teardown()
    asyncio.run(store.close())
    client.close()


def hours(*after: float) -> pa.Array:
    moments = [START + dt.timedelta(hours=hour) for hour in after]
    return pa.array(moments, pa.timestamp("us", "UTC"))


@pytest.mark.parametrize(
    "cases", [SCALARS, MOMENTS, LISTS, MAPS], ids=["scalars", "times", "lists", "maps"]
)
def test_values_are_served_as_they_were(repo, cases):
    # Older rows have the values the other way round, and share a row group with newer ones.
    columns = {
        name: pa.chunked_array([column.take(pa.array([2, 1, 0])), column])
        for name, _, column, _ in cases
    }
    repo.keep("orders", cid=[1, 2, 3, 1, 2, 3], t=hours(1, 2, 3, 4, 5, 6), **columns)
    repo.materialize(repo.view("orders", **{name: kind for name, kind, _, _ in cases}))
    found = repo.served(*(f"orders:{name}" for name, *_ in cases))
    for name, _, _, expected in cases:
        assert (name, found[name]) == (name, [*expected, None])
        kinds = [type(cell) for cell in expected]
        assert (name, [type(cell) for cell in found[name][:3]]) == (name, kinds)


def test_not_a_number_and_infinity_stay_apart_from_nothing(repo):
    repo.keep("orders", cid=[1, 2, 3], t=hours(1, 2, 3), ratio=[float("nan"), float("inf"), None])
    repo.materialize(repo.view("orders", ratio=Float64))
    assert str(repo.served("orders:ratio")["ratio"]) == "[nan, inf, None, None]"


# What does not fit

FITS = [1, 2, 3, 4]
MISFITS = {
    "uint64_beyond_int64": (Int64, pa.array([*FITS, 2**63], pa.uint64())),
    "int64_beyond_int32": (Int32, pa.array([*FITS, 2**31])),
    "fraction": (Int64, pa.array([1.0, 2.0, 3.0, 4.0, 5.5])),
    "fraction_of_a_bool": (Bool, pa.array([1.0, 0.0, 1.0, 0.0, 0.5])),
    "infinity_of_a_double": (Float32, pa.array([1.0, 2.0, 3.0, 4.0, 1e300])),
    "null_in_a_list": (Array(Int64), pa.array([[1], [2], [], None, [1, None]])),
    "no_json_text": (Json, pa.array(["1", "2", "3", "4", "{"])),
    "no_uuid": (Uuid, pa.array([*[LETTERS] * 4, "x"])),
    "fraction_of_a_decimal": (Int64, pa.array([Decimal(1)] * 4 + [Decimal("5.5")])),
    "int_that_no_float_holds": (Float64, pa.array([*FITS, BIG])),
    "no_number": (Int64, pa.array(["1", "2", "3", "4", "five"])),
    "no_utf8": (String, pa.array([b"a", b"b", b"c", b"d", b"\xff"])),
    "no_time": (UnixTimestamp, pa.array(["2026-01-01"] * 5)),
    "no_list": (Array(Int64), pa.array([1, 2, 3, 4, 5])),
    "no_map": (Map, pa.array(["{}", "{}", "{}", "{}", "[1]"])),
    "no_json": (Array(Json), pa.array([["{}"], [], None, ["1"], ["{"]])),
    "list_of_int64_beyond_int32": (Array(Int32), pa.array([[1], [2], [], None, [1, 2**31]])),
    "list_of_uint64_beyond_int64": (
        Array(Int64),
        pa.array([[1], [2], [], None, [2**63]], pa.list_(pa.uint64())),
    ),
    "list_of_fractions": (Array(Int64), pa.array([[1.0], [2.0], [], None, [0.5]])),
    "nested_uint64_beyond_int64": (
        Array(Array(Int64)),
        pa.array([[[1]], [[2]], [], None, [[2**63]]], pa.list_(pa.list_(pa.uint64()))),
    ),
    "key_twice": (
        Map,
        pa.array([[("a", 1)]] * 4 + [[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64())),
    ),
}


def test_a_value_that_does_not_fit_fails_its_view_before_anything_is_written(repo):
    # The last of three row groups has it, and another feature's values are all well.
    rest = {"cid": [1, 2, 3, 4, 5], "t": hours(1, 2, 3, 4, 5), "good": [1.0] * 5}
    for name, (_, column) in MISFITS.items():
        repo.keep(name, **rest, **{f"bad_{name}": column})
    views = [
        repo.view(name, good=Float64, **{f"bad_{name}": kind})
        for name, (kind, _) in MISFITS.items()
    ]
    with pytest.raises(ViewsFailedError, match="21 of 21 feature views failed") as caught:
        repo.materialize(*views)
    for name, (kind, _) in MISFITS.items():
        error = caught.value.failures[name]
        assert (name, type(error)) == (name, ColumnTypeError)
        # A nested type's value type does not say what is inside.
        declared = str(kind) if name.startswith("nested") else kind.to_value_type().name
        start = f"Feature view `{name}`: `bad_{name}` is declared as {declared}, but its "
        assert str(error).startswith(start)
        assert str(error).count("Feature view `") == 1
        repo.assert_untouched(name)


def test_one_value_that_does_not_fit_is_the_error_of_the_call(repo):
    repo.keep(
        "orders", cid=[1, 2, 3], t=hours(1, 2, 3), count=pa.array([1, 2, 2**63], pa.uint64())
    )
    with pytest.raises(ColumnTypeError, match=r"`count` is declared as INT64.*type uint64"):
        repo.materialize(repo.view("orders", count=Int64))
    repo.assert_untouched("orders")


def test_a_type_that_feast_has_none_for_is_refused(repo):
    spent = pa.array([dt.timedelta(seconds=1)] * 3)
    repo.keep("orders", cid=[1, 2, 3], t=hours(1, 2, 3), good=[1.0] * 3, spent=spent)
    with pytest.raises(UnsupportedTypeError, match="column `spent` is a duration"):
        repo.materialize(repo.view("orders", good=Float64, spent=Int64))
    repo.assert_untouched("orders")


def test_what_does_not_fit_is_no_matter_in_rows_that_are_not_written(repo):
    number = pa.array([2**63, 2**63, 7, 8], pa.uint64())
    after = hours(1, 30, 2, 3)  # the second one is after the end
    repo.keep("orders", cid=[1, 2, 1, 2], t=after, number=number)
    repo.materialize(repo.view("orders", number=Int64))
    assert repo.served("orders:number")["number"] == [7, 8, None, None]


def test_a_row_over_400_kb_fails_the_view_before_anything_is_written(repo):
    texts = ["a", "b", "c", "d", "x" * 410_000]
    repo.keep("orders", cid=[1, 2, 3, 4, 5], t=hours(1, 2, 3, 4, 5), text=texts)
    with pytest.raises(ItemTooLargeError, match=r"`orders`.*\['cid'\].* takes 410,"):
        repo.materialize(repo.view("orders", text=String))
    repo.assert_untouched("orders")


def test_a_key_over_2048_bytes_fails_the_view_before_anything_is_written(repo):
    keys = ["a", "b", "c", "d", "x" * 2_048]
    repo.keep("orders", sid=keys, t=hours(1, 2, 3, 4, 5), total=[1.0] * 5)
    with pytest.raises(EntityKeyError, match=r"`orders`.*\['sid'\].* takes 2,\d\d\d bytes"):
        repo.materialize(repo.view("orders", SHOP, total=Float64))
    repo.assert_untouched("orders")


# Feast's own engine over our stores, which converts values itself

ROUNDED = {
    "nulls_beside_2_to_the_53": (Int64, pa.array([1, 2, 3, None, BIG])),
    "nulls_in_structs": (Struct({"a": Int64}), pa.array([{"a": BIG}, {"a": None}, *[None] * 3])),
    "two_as_bool": (Bool, pa.array([0, 1, 0, 1, 2])),
}
"""What Feast would write as something else, where the engine of the provider is exact."""

CUT = (
    *("fraction", "infinity_of_a_double", "int_that_no_float_holds", "list_of_fractions"),
    "no_uuid",
)


@pytest.mark.parametrize("repo", [{"type": "local"}], indirect=True)
def test_feasts_engine_writes_the_declared_types_or_nothing(repo):
    rest = {"cid": [1, 2, 3, 4, 5], "t": hours(1, 2, 3, 4, 5)}
    refused = ROUNDED | {name: MISFITS[name] for name in CUT}
    fits = {
        "whole": (Int64, pa.array([1.0, float("nan"), None, 4.0, -0.0])),
        "large": (Int64, pa.array([BIG, -BIG, 1, 2, 3])),
        "ratio": (Float32, pa.array([0.1, None, 1.0, 2.0, 3.0])),
    }
    declared = refused | fits
    for name, (_, column) in declared.items():
        repo.keep(name, **rest, **{f"x_{name}": column})
    keys = {"cut_keys": 1.5, "large_keys": 2.0**53 + 2}
    for name, key in keys.items():
        repo.keep(name, cid=[1.0, key], t=hours(1, 2), x=[1, 2])
    views = [repo.view(name, **{f"x_{name}": kind}) for name, (kind, _) in declared.items()]
    repo.store.apply([CUSTOMER, *views, *(repo.view(name, x=Int64) for name in keys)])
    columns = {name: f"x_{name}" for name in refused} | dict.fromkeys(keys, "cid")
    for name, column in columns.items():
        with pytest.raises(ColumnTypeError, match=f"Feature view `{name}`: `{column}`"):
            repo.store.materialize(START, END, [name])
        found = repo.client.scan(TableName=f"{repo.store.project}.{name}", ConsistentRead=True)
        assert (name, found["Items"]) == (name, [])
    repo.store.materialize(START, END, list(fits))
    assert repo.served(*(f"{name}:x_{name}" for name in fits)) == {
        "cid": [1, 2, 3, 4],
        "x_whole": [1, None, None, 4],
        "x_large": [BIG, -BIG, 1, 2],
        "x_ratio": [pytest.approx(0.1), None, 1.0, 2.0],
    }
