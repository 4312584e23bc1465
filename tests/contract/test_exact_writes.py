"""Every entrance to the table writes the same exact values, or refuses the same rows by name."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import uuid
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_source import PushMode
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import (
    Array,
    Bool,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    Set,
    String,
    Struct,
    UnixTimestamp,
    Uuid,
    ZonedTimestamp,
)
from feast.types import Decimal as DecimalType
from views import CUSTOMER

from feast_dynamo_ext.dynamo.row_batch import Outcome
from feast_dynamo_ext.errors import (
    ColumnTypeError,
    EntityKeyError,
    EntityRowsError,
    WindowError,
)
from feast_dynamo_ext.materialize.newest_rows import ViewReading, Window

UTC = dt.timezone.utc
NOW = dt.datetime.now(UTC).replace(microsecond=0)
YESTERDAY = NOW - dt.timedelta(days=1)
START, END = NOW - dt.timedelta(days=9), NOW + dt.timedelta(days=9)
FAR = dt.datetime(9999, 12, 31, tzinfo=UTC)
TIME = pa.timestamp("us", "UTC")
TWO_TO_60 = 2**60
UUID = uuid.UUID("12345678-9abc-def0-1234-56789abcdef0")


@pytest.fixture
def open_repo(open_store, dynamodb):
    """Opens a store of a new project; its tables are deleted afterwards."""
    opened = []

    def open_repo(**more: Any):
        online = {"region": "us-east-1", "endpoint_url": dynamodb.endpoint, **more}
        if dynamodb.name == "moto":  # it takes no binary values in PartiQL
            online["newest_wins_with"] = "put_item"
        opened.append(open_store(f"x{uuid.uuid4().hex[:12]}", online=online))
        return opened[-1]

    yield open_repo
    for store in opened:
        store.teardown()


def view(folder, name="orders", times=(YESTERDAY,), **columns) -> FeatureView:
    """A view of one file, a column a pair of its type and its values; pushed to `<name>_push`."""
    rows = len(times)
    path = folder / name / "part.parquet"
    path.parent.mkdir()
    given = {"cid": list(range(1, rows + 1)), "t": pa.array(times, TIME)}
    pq.write_table(
        pa.table({**given, **{key: cells for key, (_, cells) in columns.items()}}), path
    )
    source = FileSource(name=f"{name}_files", path=str(path.parent), timestamp_field="t")
    fields = {"cid": Int64, **{key: dtype for key, (dtype, _) in columns.items()}}
    return FeatureView(
        name=name,
        entities=[CUSTOMER],
        schema=[Field(name=key, dtype=dtype) for key, dtype in fields.items()],
        source=PushSource(name=f"{name}_push", batch_source=source),
        ttl=dt.timedelta(0),
    )


def frame(times=(NOW,), **columns) -> pd.DataFrame:
    return pd.DataFrame({"cid": range(1, len(times) + 1), "t": times, **columns})


def answer(store, feature: str, *cids: int) -> list:
    rows = [{"cid": cid} for cid in cids or (1,)]
    return store.get_online_features([feature], rows).to_dict()[feature.partition(":")[2]]


def history(store, feature: str) -> list:
    entities = pd.DataFrame({"cid": [1], "event_timestamp": [NOW]})
    job = store.get_historical_features(entities, [feature])
    return job.to_arrow().column(feature.partition(":")[2]).to_pylist()


# Declared type, what a file has, what a push has, and what is served of both and retrieved.
EXACT = [
    pytest.param(Bool, pa.array([1.0]), [1.0], True, id="1.0 as Bool"),
    pytest.param(Bool, pa.array([float("nan")]), [np.nan], None, id="NaN as Bool"),
    pytest.param(Int64, pa.array([float("nan")]), [np.nan], None, id="NaN as Int64"),
    pytest.param(Int64, pa.array([5.0]), [5.0], 5, id="5.0 as Int64"),
    pytest.param(Float64, pa.array([TWO_TO_60]), [TWO_TO_60], 2.0**60, id="2**60 as Float64"),
    pytest.param(Float32, pa.array([20_000_000]), [20_000_000], 2e7, id="20 million as Float32"),
    pytest.param(Float32, pa.array([0.1]), [0.1], float(np.float32(0.1)), id="0.1 as Float32"),
    pytest.param(String, pa.array([7]), [7], "7", id="7 as String"),
    pytest.param(
        UnixTimestamp, pa.array([86_400.0]), [86_400.0], dt.datetime(1970, 1, 2, tzinfo=UTC),
        id="seconds as UnixTimestamp",
    ),
    pytest.param(Array(Array(Int64)), pa.array([[[1.0]]]), [[[1.0]]], [[1]], id="nested lists"),
    pytest.param(Struct({"a": Bool}), pa.array([{"a": 1}]), [{"a": 1}], {"a": True}, id="struct"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "stored", "pushed", "expected"), EXACT)
def test_push_materialize_and_retrieval_answer_alike(
    open_repo, tmp_path, dtype, stored, pushed, expected
):
    store = open_repo()
    declared = view(tmp_path, x=(dtype, stored), n=(Int64, [1]))
    store.apply([CUSTOMER, declared])
    store.materialize(START, NOW)
    assert answer(store, "orders:x") == [expected]
    assert history(store, "orders:x") == [expected]
    store.push("orders_push", frame(x=pushed, n=[2]))
    assert answer(store, "orders:n") == [2]
    assert answer(store, "orders:x") == [expected]


# Declared type, what a file and a push have, what is served, and what history has of it.
FORMS = [
    (Uuid, [str(UUID).upper()], UUID, str(UUID)),
    (Uuid, [UUID.hex], UUID, str(UUID)),
    (Array(Uuid), [[UUID.hex]], [UUID], [str(UUID)]),
    (DecimalType, [" 1.10 "], Decimal("1.10"), "1.10"),
    (Set(Int64), [[2, 1, 2]], {1, 2}, [2, 1]),
    (Set(DecimalType), [["1.1", "1.10"]], {Decimal("1.1")}, ["1.1"]),
]


@pytest.mark.parametrize(("dtype", "cells", "served", "retrieved"), FORMS, ids=str)
def test_each_value_has_one_form_online_and_in_history(
    open_repo, tmp_path, dtype, cells, served, retrieved
):
    store = open_repo()
    store.apply([CUSTOMER, view(tmp_path, x=(dtype, pa.array(cells)), n=(Int64, [1]))])
    store.materialize(START, NOW)
    assert answer(store, "orders:x") == [served]
    assert history(store, "orders:x") == [retrieved]
    store.push("orders_push", frame(x=cells, n=[2]), to=PushMode.ONLINE_AND_OFFLINE)
    assert answer(store, "orders:n", 1) == [2]
    assert answer(store, "orders:x") == [served]
    assert history(store, "orders:x") == [retrieved]
    source = store.get_feature_view("orders").batch_source
    latest = store._get_provider().offline_store.pull_latest_from_table_or_query(
        store.config, source, ["cid"], ["x"], "t", None, START, END
    )
    assert latest.to_arrow().column("x").to_pylist() == [retrieved]


def test_a_key_out_of_its_declared_range_is_an_error_online_and_in_history(open_repo, tmp_path):
    customer = Entity(name="small", join_keys=["small"], value_type=ValueType.INT32)
    path = tmp_path / "small" / "part.parquet"
    path.parent.mkdir()
    pq.write_table(
        pa.table({"small": pa.array([1], pa.int32()), "t": pa.array([YESTERDAY], TIME), "n": [7]}),
        path,
    )
    declared = FeatureView(
        name="small",
        entities=[customer],
        schema=[Field(name="small", dtype=Int32), Field(name="n", dtype=Int64)],
        source=FileSource(path=str(path.parent), timestamp_field="t"),
        ttl=dt.timedelta(0),
    )
    store = open_repo()
    store.apply([customer, declared])
    store.materialize(START, NOW)
    far = 2**31
    with pytest.raises(EntityKeyError, match="`small`"):
        store.get_online_features(["small:n"], [{"small": 1}, {"small": far}])
    rows = pd.DataFrame({"small": [1, far], "event_timestamp": [NOW] * 2})
    with pytest.raises(
        EntityRowsError, match=r"`small` of the entity rows .* INT32.*1 of 2 values"
    ):
        store.get_historical_features(rows, ["small:n"]).to_arrow()


def test_rows_of_a_field_mapping_are_pushed_to_one_store_after_the_other(open_repo, tmp_path):
    """Feast wants the view's names online, the source's offline, before the provider is called."""
    path = tmp_path / "renamed" / "part.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"cid": [1], "t": pa.array([YESTERDAY], TIME), "raw": [7]}), path)
    source = FileSource(
        name="renamed_files",
        path=str(path.parent),
        timestamp_field="t",
        field_mapping={"raw": "n"},
    )
    declared = FeatureView(
        name="renamed",
        entities=[CUSTOMER],
        schema=[Field(name="cid", dtype=Int64), Field(name="n", dtype=Int64)],
        source=PushSource(name="renamed_push", batch_source=source),
        ttl=dt.timedelta(0),
    )
    store = open_repo()
    store.apply([CUSTOMER, declared])
    with pytest.raises(KeyError, match="'n'"):
        store.push("renamed_push", frame(raw=[8]), to=PushMode.ONLINE)
    store.push("renamed_push", frame(n=[8]), to=PushMode.ONLINE)
    store.push("renamed_push", frame(raw=[8]), to=PushMode.OFFLINE)
    assert answer(store, "renamed:n") == history(store, "renamed:n") == [8]
    with pytest.raises(ValueError, match=r"missing_expected_columns: \['raw'\]"):
        store.push("renamed_push", frame(n=[9]), to=PushMode.OFFLINE)


def test_a_zone_stays_online_and_the_moment_in_history(open_repo, tmp_path):
    moment = NOW.astimezone(ZoneInfo("Europe/Berlin"))
    store = open_repo()
    store.apply(
        [CUSTOMER, view(tmp_path, x=(ZonedTimestamp, pa.array([YESTERDAY], TIME)), n=(Int64, [1]))]
    )
    cells = pd.Series([moment])
    assert str(cells.dt.tz) == "Europe/Berlin"
    store.push("orders_push", frame(x=cells, n=[2]), to=PushMode.ONLINE_AND_OFFLINE)
    (served,), (retrieved,) = answer(store, "orders:x"), history(store, "orders:x")
    assert served == retrieved == moment
    assert (served.utcoffset(), retrieved.utcoffset()) == (moment.utcoffset(), dt.timedelta(0))


def test_16_bytes_are_a_uuid_and_views_of_texts_are_texts(open_repo, tmp_path):
    store = open_repo()
    columns = {
        "id": (Uuid, pa.array([UUID.bytes], pa.binary(16))),
        "text": (String, pa.array(["x"], pa.string_view())),
    }
    store.apply([CUSTOMER, view(tmp_path, **columns)])
    store.materialize(START, NOW)
    assert answer(store, "orders:id") == [UUID]
    assert answer(store, "orders:text") == ["x"]
    assert history(store, "orders:id") == [str(UUID)]
    assert history(store, "orders:text") == ["x"]


# Type of the entity, what a file has, what is requested, and what entity rows have.
KEYS = [
    pytest.param(ValueType.INT64, pa.array([Decimal(2**53 + 1)], pa.decimal128(38, 0)),
                 2**53 + 1, pa.array([2**53 + 1]), id="decimal"),
    pytest.param(ValueType.STRING, pa.array(["a"], pa.string_view()), "a", pa.array(["a"]),
                 id="string_view"),
    pytest.param(ValueType.STRING, pa.array([UUID.bytes], pa.uuid()), str(UUID),
                 pa.array([str(UUID)]), id="uuid"),
    pytest.param(ValueType.BYTES, pa.array([b"ab"], pa.binary_view()), b"ab", pa.array([b"ab"]),
                 id="binary_view"),
    pytest.param(ValueType.BYTES, pa.array([b"ab"], pa.binary(2)), b"ab",
                 pa.array([b"ab"], pa.binary(2)), id="fixed-size binary"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "stored", "requested", "given"), KEYS)
def test_keys_of_other_layouts(open_repo, tmp_path, kind, stored, requested, given):
    store = open_repo()
    path = tmp_path / "orders" / "part.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"key": stored, "t": pa.array([YESTERDAY], TIME), "n": [5]}), path)
    entity = Entity(name="thing", join_keys=["key"], value_type=kind)
    declared = FeatureView(
        name="orders",
        entities=[entity],
        schema=[Field(name="n", dtype=Int64)],
        source=FileSource(name="files", path=str(path.parent), timestamp_field="t"),
        ttl=dt.timedelta(0),
    )
    store.apply([entity, declared])
    store.materialize(START, NOW)
    answered = store.get_online_features(["orders:n"], [{"key": requested}]).to_dict()
    assert answered["n"] == [5]
    entities = pa.table({"key": given, "event_timestamp": pa.array([NOW], TIME)})
    job = store.get_historical_features(entities, ["orders:n"])
    assert job.to_arrow().column("n").to_pylist() == [5]


WHOLE, FINER = (dt.datetime(2026, 1, 1, 0, 0, 0, micros, tzinfo=UTC) for micros in (0, 1))
NANOSECONDS = pa.timestamp("ns", "UTC")


def test_times_that_are_keys_are_whole_seconds_everywhere(open_repo, tmp_path):
    """Feast's keys hold seconds: two times of one would be two entities in history alone."""
    store = open_repo()
    entity = Entity(name="hour", join_keys=["cid"], value_type=ValueType.UNIX_TIMESTAMP)
    views = []
    for name, times in (("orders", [WHOLE]), ("finer", [WHOLE, FINER])):
        path = tmp_path / name / "part.parquet"
        path.parent.mkdir()
        given = {"cid": pa.array(times, TIME), "t": pa.array([YESTERDAY] * len(times), TIME)}
        pq.write_table(pa.table({**given, "n": pa.array(range(len(times)))}), path)
        source = FileSource(name=f"{name}_files", path=str(path.parent), timestamp_field="t")
        schema = [Field(name="cid", dtype=UnixTimestamp), Field(name="n", dtype=Int64)]
        source = PushSource(name=f"{name}_push", batch_source=source)
        views.append(FeatureView(name=name, entities=[entity], schema=schema, source=source))
    store.apply([entity, *views])
    store.materialize(START, NOW, feature_views=["orders"])

    def retrieved(view: str, *times: Any) -> list:
        rows = pd.DataFrame({"cid": times, "event_timestamp": [NOW] * len(times)})
        return store.get_historical_features(rows, [f"{view}:n"]).to_arrow()["n"].to_pylist()

    for same in (WHOLE, pd.Timestamp(WHOLE), np.datetime64("2026-01-01", "s"), 1_767_225_600):
        rows = [{"cid": same}]
        assert store.get_online_features(["orders:n"], rows).to_dict()["n"] == [0]
    assert retrieved("orders", WHOLE, WHOLE + dt.timedelta(seconds=1)) == [0, None]

    rows = pd.DataFrame({"cid": [WHOLE, FINER], "t": [NOW, NOW], "n": [3, 4]})
    below = "1 of 2 times have a part below a second, which Feast's keys do not hold"
    for mode in (PushMode.ONLINE, PushMode.OFFLINE):
        with pytest.raises(ColumnTypeError, match=f"`orders`.*`cid`.*{below}"):
            store.push("orders_push", rows, to=mode)
    with pytest.raises(ColumnTypeError, match=f"`finer`.*`cid`.*{below}"):
        store.materialize(START, NOW, feature_views=["finer"])
    with pytest.raises(ColumnTypeError, match=f"`finer`.*`cid`.*{below}"):
        retrieved("finer", WHOLE)
    with pytest.raises(EntityRowsError, match=f"`cid`.*`orders`.*{below}"):
        retrieved("orders", WHOLE, FINER)
    with pytest.raises(EntityKeyError, match=r"`cid` .*UNIX_TIMESTAMP.*row 0 .*below a second"):
        store.get_online_features(["orders:n"], [{"cid": FINER}])
    assert retrieved("orders", WHOLE) == [0]


def test_event_times_that_items_do_not_hold_are_refused(open_repo, tmp_path):
    """An item has microseconds: an older row of the same one would replace a newer one."""
    store = open_repo()
    declared = view(tmp_path, n=(Int64, [1]))
    store.apply([CUSTOMER, declared])
    stored = tmp_path / "orders" / "part.parquet"
    table = pq.read_table(stored)
    nanos = int(YESTERDAY.timestamp()) * 10**9
    for more, fits in ((1_001, False), (1_000, True)):
        times = pa.array([nanos + more], pa.int64()).cast(NANOSECONDS)
        pq.write_table(table.set_column(1, "t", times), stored)
        if fits:
            store.materialize(START, NOW)
            continue
        below = r"`orders`: 1 of 1 times in `t` have a part below a microsecond"
        with pytest.raises(ColumnTypeError, match=below):
            store.materialize(START, NOW)
        with pytest.raises(ColumnTypeError, match=below):
            store.push("orders_push", frame([pd.Timestamp(nanos + more, tz="UTC")], n=[2]))
        entity = EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=1)])
        rows = [(entity, {"n": Value(int64_val=5)}, pd.Timestamp(nanos + more, tz="UTC"), None)]
        with pytest.raises(ColumnTypeError, match=r"`orders`: a time of row 0 .* microsecond"):
            store.provider.online_write_batch(store.config, declared, rows, None)
        assert answer(store, "orders:n") == [None]
    assert answer(store, "orders:n") == [1]


REFUSED = [
    pytest.param(Int64, pa.array([5.5]), [5.5], id="5.5 as Int64"),
    pytest.param(Int64, pa.array(["7"]), ["7"], id="text as Int64"),
    pytest.param(Bool, pa.array([0.5]), [0.5], id="0.5 as Bool"),
    pytest.param(Float64, pa.array([2**53 + 1]), [2**53 + 1], id="2**53+1 as Float64"),
    pytest.param(Float32, pa.array([1e300]), [1e300], id="1e300 as Float32"),
    pytest.param(Uuid, pa.array(["x"]), ["x"], id="text as Uuid"),
    pytest.param(Json, pa.array(["{"]), ["{"], id="text as Json"),
    pytest.param(DecimalType, pa.array(["x"]), ["x"], id="text as Decimal"),
    pytest.param(Array(Uuid), pa.array([["x"]]), [["x"]], id="text as Uuid in a list"),
    pytest.param(Array(Array(Int64)), pa.array([[[1.5]]]), [[[1.5]]], id="nested lists"),
    pytest.param(Struct({"a": Int64}), pa.array([{"a": 1.5}]), [{"a": 1.5}], id="struct"),
    pytest.param(Array(Struct({"a": Uuid})), pa.array([[{"a": "x"}]]), [[{"a": "x"}]],
                 id="text as Uuid in a struct"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "stored", "pushed"), REFUSED)
def test_push_materialize_and_retrieval_refuse_alike(open_repo, tmp_path, dtype, stored, pushed):
    store = open_repo()
    store.apply([CUSTOMER, view(tmp_path, x=(dtype, stored))])
    message = r"`orders`: `x` is declared as .*: 1 of 1 values of type .* without a change"
    with pytest.raises(ColumnTypeError, match=message):
        store.materialize(START, NOW)
    with pytest.raises(ColumnTypeError, match=message):
        store.push("orders_push", frame(x=pushed))
    with pytest.raises(ColumnTypeError, match=message):
        history(store, "orders:x")
    assert answer(store, "orders:x") == [None]


def test_a_set_of_floats_holds_nan(open_repo, tmp_path):
    store = open_repo()
    store.apply([CUSTOMER, view(tmp_path, sizes=(Set(Float64), [[float("nan")]]))])
    store.materialize(START, NOW)
    ((number,),) = answer(store, "orders:sizes")
    assert math.isnan(number)
    store.push("orders_push", frame(sizes=[{2.5, float("nan")}]))
    (found,) = answer(store, "orders:sizes")
    assert sorted(map(str, found)) == ["2.5", "nan"]


def test_nulls_inside_of_lists(open_repo, tmp_path):
    store = open_repo()
    lists = {"sizes": (Array(Float64), [[1.5, None]]), "tags": (Array(String), [["a", "b"]])}
    store.apply([CUSTOMER, view(tmp_path, **lists)])
    store.materialize(START, NOW)
    ((first, second),) = answer(store, "orders:sizes")
    assert first == 1.5
    assert math.isnan(second)
    assert history(store, "orders:sizes") == [[1.5, None]]
    with pytest.raises(ColumnTypeError, match=r"`orders`: `tags`.*1 nulls inside of its lists"):
        store.push("orders_push", frame(sizes=[[2.5, None]], tags=[["a", None]]))
    store.push("orders_push", frame(sizes=[[2.5, None]], tags=[["a"]]))
    ((first, second),) = answer(store, "orders:sizes")
    assert first == 2.5
    assert math.isnan(second)


def test_json_is_json_in_a_push(open_repo, tmp_path):
    store = open_repo()
    store.apply([CUSTOMER, view(tmp_path, document=(Json, ['{"a": 1}']))])
    with pytest.raises(ColumnTypeError, match=r"`orders`: `document`.*cannot be JSON"):
        store.push("orders_push", frame(document=["{"]))
    store.push("orders_push", frame(document=[{"a": [1, None]}]))
    assert answer(store, "orders:document") == [{"a": [1, None]}]


# Declared type, what a file has, what a push to both stores has, and what both then answer.
BOTH = [
    (DecimalType, pa.array(["1.5"]), [Decimal("2.50")], Decimal("2.50"), "2.50"),
    (DecimalType, pa.array([Decimal("1.50")]), [Decimal("2.50")], Decimal("2.50"),
     Decimal("2.50")),
    (Json, pa.array(["{}"]), [{"a": [1, 2]}], {"a": [1, 2]}, '{"a": [1, 2]}'),
    (Json, pa.array(["{}"]), [[1, 2]], [1, 2], "[1, 2]"),
    (UnixTimestamp, pa.array([YESTERDAY], TIME), [86_400], dt.datetime(1970, 1, 2, tzinfo=UTC),
     dt.datetime(1970, 1, 2, tzinfo=UTC)),
    (Uuid, pa.array([uuid.UUID(int=7).bytes], pa.binary(16)), [UUID], UUID, str(UUID)),
    (Uuid, pa.array([str(uuid.UUID(int=7))]), [UUID.bytes], UUID, str(UUID)),
    (Set(Int64), pa.array([[1]]), [{3}], {3}, [3]),
    (String, pa.array(["x"]), [np.nan], None, None),
    (String, pa.array(["x"]), [None], None, None),
    (String, pa.array(["x"]), [7], "7", "7"),
    (Map, pa.array([{"a": 1}]), [{"a": 2}], {"a": 2}, {"a": 2}),
    (Array(Array(Int64)), pa.array([[[1]]]), [[[2.0]]], [[2]], [[2]]),
    (Array(Array(Int64)), pa.array([[[1]]]), [[[2], []]], [[2], []], [[2], []]),
    (Array(Array(Int64)), pa.array([[[1]]]), ["[[2], []]"], [[2], []], [[2], []]),
    (Map, pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), ['{"b": 2}'], {"b": 2},
     [("b", 2)]),
    (Struct({"a": Int64, "b": Int64}), pa.array([{"a": 1}]), [{"a": 2}], {"a": 2, "b": None},
     {"a": 2, "b": None}),
    (Json, pa.array(["{}"]), [{"a": None}], {"a": None}, '{"a": null}'),
    (Json, pa.array(["{}"]), [b'{"a": 2}'], {"a": 2}, '{"a": 2}'),
    (Json, pa.array(["{}"]), [Decimal("2.50")], 2.5, "2.50"),
]  # fmt: skip


def test_a_push_to_both_stores_is_written_to_both(open_repo, tmp_path):
    store = open_repo()
    columns = {f"x{at}": case[:2] for at, case in enumerate(BOTH)}
    store.apply([CUSTOMER, view(tmp_path, **columns)])
    pushed = {f"x{at}": pd.Series(case[2]) for at, case in enumerate(BOTH)}
    store.push("orders_push", frame(**pushed), to=PushMode.ONLINE_AND_OFFLINE)
    refs = [f"orders:{name}" for name in columns]
    online = store.get_online_features(refs, [{"cid": 1}]).to_dict()
    entities = pd.DataFrame({"cid": [1], "event_timestamp": [NOW]})
    offline = store.get_historical_features(entities, refs).to_arrow().to_pydict()
    for at, (*_, served, stored) in enumerate(BOTH):
        assert (at, online[f"x{at}"], offline[f"x{at}"]) == (at, [served], [stored])


def test_a_push_that_history_refused_is_whole_once_it_is_pushed_again(open_repo, tmp_path):
    store = open_repo()
    store.apply([CUSTOMER, view(tmp_path, a=(Int64, [1]), b=(Int64, [1]))])
    # Feast writes online first, and the files need what the view's features do not.
    declared = store.get_feature_view("orders")
    declared.features = [each for each in declared.features if each.name == "a"]
    store.apply([declared])
    with pytest.raises(ValueError, match=r"missing_expected_columns: ..b"):
        store.push("orders_push", frame(a=[2]), to=PushMode.ONLINE_AND_OFFLINE)
    assert (answer(store, "orders:a"), history(store, "orders:a")) == ([2], [1])
    for _ in range(2):
        store.push("orders_push", frame(a=[2], b=[3]), to=PushMode.ONLINE_AND_OFFLINE)
        assert (answer(store, "orders:a"), history(store, "orders:a")) == ([2], [2])


def test_history_may_judge_a_push_first(open_repo, tmp_path):
    store = open_repo()
    store.apply([CUSTOMER, view(tmp_path, x=(Map, pa.array([{"a": 1, "b": 1}])))])
    times = (NOW, NOW)
    # Arrow makes {"a": 2, "b": None} of the first.
    with pytest.raises(ColumnTypeError, match=r"json\.dumps"):
        store.push("orders_push", frame(times, x=[{"a": 2}, {"b": 3}]), to=PushMode.OFFLINE)
    assert answer(store, "orders:x", 1, 2) == [None, None]
    for to in (PushMode.OFFLINE, PushMode.ONLINE):
        store.push("orders_push", frame(times, x=[{"a": 2, "b": 3}] * 2), to=to)
    assert answer(store, "orders:x", 1, 2) == [{"a": 2, "b": 3}] * 2
    assert history(store, "orders:x") == [{"a": 2, "b": 3}]


# Times


def test_texts_without_a_zone_are_utc_in_both_stores(open_repo, tmp_path):
    store = open_repo()
    store.apply([CUSTOMER, view(tmp_path, n=(Int64, [1]))])
    text = NOW.replace(tzinfo=None).isoformat(sep=" ")
    store.push("orders_push", frame(times=[text], n=[2]), to=PushMode.ONLINE_AND_OFFLINE)
    assert answer(store, "orders:n") == [2]
    assert history(store, "orders:n") == [2]
    (read,) = store.get_online_features(["orders:n"], [{"cid": 1}]).proto.results[1:]
    assert read.event_timestamps[0].ToDatetime(UTC) == NOW


@pytest.mark.parametrize("null", [None, pd.NaT], ids=str)
def test_rows_of_feast_without_times(open_repo, tmp_path, null):
    store = open_repo()
    declared = view(tmp_path, n=(Int64, [1]))
    store.apply([CUSTOMER, declared])
    key = EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=1)])
    values = {"n": Value(int64_val=5)}
    write = store.provider.online_write_batch
    with pytest.raises(ColumnTypeError, match=r"`orders`: row 1 .* has no event time"):
        write(store.config, declared, [(key, values, NOW, None), (key, values, null, None)], None)
    assert answer(store, "orders:n") == [None]
    write(store.config, declared, [(key, values, NOW, null)], None)
    assert answer(store, "orders:n") == [5]


# Rows from the future


AHEAD = r"`orders`: 1 of 2 rows have event times further in the future.*`max_future`"


def write_feast_rows(store) -> None:
    keys = [EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=at)]) for at in (1, 2)]
    rows = [
        (key, {"n": Value(int64_val=5)}, time, None)
        for key, time in zip(keys, (NOW, FAR), strict=True)
    ]
    view = store.get_feature_view("orders")
    store.provider.online_write_batch(store.config, view, rows, None)


ENTRANCES = {
    "push": lambda store, rows: store.push("orders_push", rows),
    "push_async": lambda store, rows: asyncio.run(store.push_async("orders_push", rows)),
    "write": lambda store, rows: store.write_to_online_store("orders", rows),
    "rows of Feast": lambda store, _: write_feast_rows(store),
}


@pytest.mark.parametrize("entrance", ENTRANCES.values(), ids=ENTRANCES)
@pytest.mark.parametrize("far", [FAR, NOW + dt.timedelta(days=1, hours=6)], ids=["9999", "day"])
def test_a_row_from_the_future_is_refused_before_anything_is_sent(
    open_repo, tmp_path, entrance, far
):
    store = open_repo()
    store.apply([CUSTOMER, view(tmp_path, n=(Int64, [1]))])
    with pytest.raises(WindowError, match=AHEAD):
        entrance(store, frame(times=[NOW, far], n=[5, 6]))
    assert answer(store, "orders:n", 1, 2) == [None, None]
    asyncio.run(store.provider.online_store.close())


def test_materialize_fails_the_view_and_the_others_go_on(open_repo, tmp_path):
    store = open_repo()
    days = (YESTERDAY, NOW + dt.timedelta(days=3))
    bad, good = view(tmp_path, times=days, n=(Int64, [1, 2])), view(tmp_path, "ok", m=(Int64, [7]))
    store.apply([CUSTOMER, bad, good])
    with pytest.raises(WindowError, match=AHEAD):
        store.materialize(START, END)
    assert answer(store, "orders:n", 1, 2) == [None, None]
    assert answer(store, "ok:m") == [7]
    # A window that ends now does not reach it.
    store.materialize(START, NOW, feature_views=["orders"])
    assert answer(store, "orders:n", 1, 2) == [1, None]


def test_files_of_a_bulk_load_are_refused_too(open_repo, tmp_path):
    store = open_repo()
    declared = view(tmp_path, times=(YESTERDAY, FAR), n=(Int64, [1, 2]))
    store.apply([CUSTOMER, declared])
    reading = ViewReading.from_task(
        store.config,
        store.provider.offline_store,
        declared,
        Window(START, FAR),
        memory_limit="128MB",
        rows_per_bucket=10,
    )
    with pytest.raises(WindowError, match=AHEAD):
        list(reading.rows(lambda _newest: None))


@pytest.mark.parametrize("max_future", [None, 864_000], ids=str)
def test_forecasts_are_written_where_the_setting_says_so(open_repo, tmp_path, max_future):
    store = open_repo(max_future=max_future)
    times = (YESTERDAY, NOW + dt.timedelta(days=3))
    store.apply([CUSTOMER, view(tmp_path, times=times, n=(Int64, [1, 2]))])
    store.materialize(START, END)
    assert answer(store, "orders:n", 1, 2) == [1, 2]
    store.push("orders_push", frame(times=[NOW + dt.timedelta(days=5)], n=[9]))
    assert answer(store, "orders:n") == [9]


def test_rows_that_are_older_are_counted(open_repo, tmp_path, caplog):
    store = open_repo()
    declared = view(tmp_path, n=(Int64, [1]))
    store.apply([CUSTOMER, declared])
    store.push("orders_push", frame(times=[NOW], n=[5]))
    caplog.set_level(logging.INFO, "feast_dynamo_ext")
    older = frame(times=[YESTERDAY, YESTERDAY], n=[6, 7])
    assert store.provider.ingest_df(declared, older) == Outcome(written=1, older=1)
    assert "push to orders: 1 rows written, 1 dropped as older" in caplog.text
    assert answer(store, "orders:n", 1, 2) == [5, 7]


def test_a_key_that_a_row_from_the_future_froze_is_mended(open_repo, tmp_path):
    store = open_repo(max_future=None)
    store.apply([CUSTOMER, view(tmp_path, n=(Int64, [1]))])
    store.push("orders_push", frame(times=[FAR], n=[6]))
    store.materialize(START, NOW)
    assert answer(store, "orders:n") == [6]
    store.config.online_store.write_mode = "overwrite"
    store.materialize(START, NOW)
    assert answer(store, "orders:n") == [1]
