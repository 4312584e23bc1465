"""Area `wire`: the requests that reach DynamoDB, and what the store answers beside them."""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import time
from typing import TYPE_CHECKING, Any

import boto3
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_source import PushSource
from feast.repo_contents import RepoContents
from feast.types import Float64, Int64, String
from golden_items import at, parquet_view, scan
from golden_record import outcome, replaced

from feast_dynamo_ext import TableSettings, ViewSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast import FeatureStore
    from golden_proxy import RecordingProxy

UTC = dt.timezone.utc
START = dt.datetime(2025, 1, 1, tzinfo=UTC)
DAY = dt.timedelta(days=1)
CUSTOMER = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
SHOP = Entity(name="shop", join_keys=["sid"], value_type=ValueType.STRING)

# Attributes of control items that differ from run to run, and what stands for them.
VOLATILE = frozenset({
    "source",  # the fingerprint of files has their absolute path
    "owner", "beat", "beat_at", "host", "pid", "command", "kernel", "born", "started_at", "run",
    "updated_at",
})  # fmt: skip


def view(
    name: str,
    entities: tuple[Entity, ...] = (CUSTOMER,),
    *,
    ttl: dt.timedelta | None = None,
    created: bool = False,
    settings: ViewSettings | None = None,
    **features: Any,
) -> FeatureView:
    keys = {"customer": Field(name="cid", dtype=Int64), "shop": Field(name="sid", dtype=String)}
    source = FileSource(
        name=f"{name}_source",
        path="nowhere",
        timestamp_field="t",
        created_timestamp_column="made" if created else "",
    )
    return FeatureView(
        name=name,
        entities=list(entities),
        schema=[
            *(keys[one.name] for one in entities),
            *(Field(name=feature, dtype=kind) for feature, kind in features.items()),
        ],
        source=PushSource(name=f"{name}_push", batch_source=source),
        ttl=ttl or dt.timedelta(0),
        tags=(settings or ViewSettings()).tags(),
    )


def moments(*hours: float) -> Any:
    """Hours after START as a pandas array, which no index is aligned with."""
    return at(*hours).to_pandas().array


def frame(first: int, last: int, hours: float = 0, **more: Any) -> pd.DataFrame:
    """A row for each customer; with `made` where that is given, hours after START too."""
    count = last - first
    columns = {"cid": range(first, last), "t": moments(*[hours] * count)}
    if "made" in more:
        columns["made"] = moments(*[more.pop("made")] * count)
    return pd.DataFrame({**columns, **more})


def steady(value: Any, volatile: frozenset[str] = VOLATILE) -> Any:
    """A request without what differs from run to run: control items' ids and times."""
    if isinstance(value, list):
        return [steady(one, volatile) for one in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"N"} and _is_soon(value["N"]):
        # Until when a row is kept that was past its ttl when it was written.
        return {"N": "<a day from now>"}
    names = value.get("ExpressionAttributeNames", {})
    held = _volatile_values(value, names, volatile) if names else set()
    found = {}
    for name, one in value.items():
        if name == "ExpressionAttributeValues":
            one = {  # noqa: PLW2901 - the same, made steady
                at: "<varies>" if at in held else cell for at, cell in one.items()
            }
        in_item = name in volatile and isinstance(one, dict)
        is_control = "beat" in value or "updated_at" in value
        found[name] = (
            "<varies>" if in_item or (name == "x" and is_control) else steady(one, volatile)
        )
    return found


def _is_soon(number: str) -> bool:
    return number.isdigit() and abs(int(number) - 86_400 - time.time()) < 3_600


def compact(value: Any) -> Any:
    """A request with its attribute values as texts, and equal statements in one.

    `{"N": "1"}` becomes `N 1`. Nothing is left out, so that a line of a diff is a row.
    """
    if isinstance(value, list):
        return [compact(one) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and set(value) <= {"B", "N", "S", "BOOL"}:
        ((kind, cell),) = value.items()
        return f"{kind} {cell}"
    found = {name: compact(one) for name, one in value.items()}
    if "Statements" in found:
        groups: list[Any] = []
        for one in found["Statements"]:
            rest = {name: cell for name, cell in one.items() if name != "Parameters"}
            if not groups or groups[-1]["statement"] != rest:
                groups.append({"statement": rest, "parameters": []})
            groups[-1]["parameters"].append(one.get("Parameters"))
        found["Statements"] = groups
    return found


def _volatile_values(
    request: dict[str, Any], names: dict[str, str], volatile: frozenset[str]
) -> set[str]:
    """Names of values that an expression compares with or sets to a volatile attribute."""
    import re

    text = " ".join(request.get(one, "") for one in ("UpdateExpression", "ConditionExpression"))
    held = set()
    for place, value in re.findall(r"(#?\w+) *= *(:\w+)", text):
        attribute = names.get(place, place)
        if attribute in volatile or (attribute == "x" and "SET" in text):
            held.add(value)
    return held


class Recording:
    """Scenarios by name: what was asked of DynamoDB in each, and what came of it."""

    def __init__(self, proxy: RecordingProxy) -> None:
        self._proxy = proxy
        self.volatile = VOLATILE
        self.found: dict[str, Any] = {}

    def of(self, name: str, call: Callable[[], Any], *, in_order: bool = True) -> None:
        self._proxy.take(in_order=True)
        answer = outcome(call)
        requests = self._proxy.take(in_order=in_order)
        self.found[name] = {
            "requests in order" if in_order else "requests, sorted": compact(
                steady(requests, self.volatile)
            )
        }
        if answer is not None:
            self.found[name]["answer"] = answer


def served(response: Any) -> dict[str, Any]:
    """Values, statuses and event times of a response."""
    proto = response.proto
    return {
        name: [
            [str(value).strip(), status, moment.ToJsonString()]
            for value, status, moment in zip(
                vector.values, vector.statuses, vector.event_timestamps, strict=True
            )
        ]
        for name, vector in zip(proto.metadata.feature_names.val, proto.results, strict=True)
    }


def writes_record(open_store: Any, proxy: RecordingProxy, client: Any) -> dict[str, Any]:
    """Writes in each mode, one request at a time, and many at once."""
    recording = Recording(proxy)
    for way in ("partiql", "put_item", "auto"):
        online = {
            "region": "us-east-1", "endpoint_url": proxy.endpoint,
            "newest_wins_with": way, "max_write_workers": 1,
        }  # fmt: skip
        store: FeatureStore = open_store(f"writes_{way}", online=online)
        orders = view("orders", created=True, total=Float64, note=String, ttl=DAY * 36_500)
        loads = view(
            "loads", settings=ViewSettings(write_mode="overwrite"), total=Float64, note=String
        )
        store.apply([CUSTOMER, orders, loads])

        def write(name: str, rows: pd.DataFrame, store: FeatureStore = store) -> Callable[[], Any]:
            return lambda: store.push(f"{name}_push", rows)

        new = frame(0, 30, 1, made=1, total=1.5, note="n")
        # `auto` is `partiql` here; its requests are recorded for a few rows.
        first = new.head(7) if way == "auto" else new
        recording.of(f"{way}: {len(first)} new rows", write("orders", first))
        recording.of(f"{way}: newer rows of 3", write("orders", new.head(3).assign(
            t=moments(2, 2, 2), total=2.5)))  # fmt: skip
        recording.of(f"{way}: older rows of 3", write("orders", new.head(3).assign(
            t=moments(0, 0, 0), total=3.5)))  # fmt: skip
        mixed = new.iloc[[3, 4, 5, 5, 6]].assign(
            t=moments(1, 1, 3, 4, 0), made=moments(0, 2, 2, 2, 9), total=4.5
        )
        mixed = pd.concat([mixed, frame(40, 42, 1, made=1, total=1.5, note=None)])
        recording.of(f"{way}: mixed rows, one key twice, two new", write("orders", mixed))
        if way == "partiql":
            rows = frame(0, 30, 1, total=1.5, note="n")
            recording.of("overwrite: 30 rows", write("loads", rows))
            older = frame(0, 2, 0, total=9.5, note="older")
            recording.of("overwrite: older rows", write("loads", older))
        items = [item for item in scan(client, f"writes_{way}.orders") if "v" in item]
        known = recording.found.setdefault("items after all", compact(items))
        if way == "put_item":
            recording.found["put_item: items are those of partiql"] = compact(items) == known
        store.teardown()
        asyncio.run(store.close())
    many = {"region": "us-east-1", "endpoint_url": proxy.endpoint, "newest_wins_with": "partiql"}
    store = open_store("writes_many", online=many)
    store.apply([CUSTOMER, view("orders", total=Float64)])
    rows = frame(0, 30, 1, total=1.5)
    recording.of("many at once: 30 rows", lambda: store.push("orders_push", rows), in_order=False)

    async def push() -> None:
        await store.push_async("orders_push", rows.assign(t=moments(*[2] * 30)))
        await store.close()

    recording.of("many at once, on a loop: 30 rows", lambda: asyncio.run(push()), in_order=False)
    store.teardown()
    asyncio.run(store.close())
    return recording.found


def reads_record(open_store: Any, proxy: RecordingProxy) -> dict[str, Any]:
    """Tables of a repo, reads of its views, and its precomputed service."""
    recording = Recording(proxy)
    online = {
        "region": "us-east-1", "endpoint_url": proxy.endpoint, "newest_wins_with": "partiql",
        "max_write_workers": 1, "on_remove": "delete",
    }  # fmt: skip
    store: FeatureStore = open_store("reads", online=online)
    # Rows of January 2025 have expired, and DynamoDB Local deletes expired items within the run.
    no_deletion = TableSettings(ttl=False)
    orders = view(
        "orders",
        created=True,
        settings=ViewSettings(table=no_deletion),
        total=Float64,
        count=Int64,
    )
    visits = view(
        "visits", ttl=DAY, settings=ViewSettings(table=no_deletion), pages=Int64, note=String
    )
    late = view(
        "late",
        ttl=DAY,
        settings=ViewSettings(expired="value", consistent_reads=True, table=no_deletion),
        pages=Int64,
    )
    sales = view("sales", (CUSTOMER, SHOP), total=Float64)
    world = view("world", (), rate=Float64)
    gone = view("gone", rate=Float64)
    plain = FeatureService(name="plain", features=[orders, visits[["pages"]]])
    churn = FeatureService(name="churn", features=[orders, visits], precompute_online=True)
    objects = [CUSTOMER, SHOP, orders, visits, late, sales, world, gone, plain, churn]
    recording.of("plan", lambda: planned(store, objects), in_order=False)
    recording.of("apply", lambda: store.apply(objects), in_order=False)
    recording.of("apply again", lambda: store.apply(objects), in_order=False)
    recording.of("plan without a view", lambda: planned(
        store, [one for one in objects if one is not gone]), in_order=False)  # fmt: skip
    recording.of("apply without a view", lambda: store.apply(
        [one for one in objects if one is not gone], objects_to_delete=[gone], partial=False
    ), in_order=False)  # fmt: skip

    recording.of("push of a view of a service", lambda: store.push(
        "orders_push", frame(1, 4, 1, made=1, total=1.5, count=2)))  # fmt: skip
    recording.of("push of another one", lambda: store.push(
        "visits_push", frame(2, 6, 1, pages=3, note="n")))  # fmt: skip
    recording.of("push that is older", lambda: store.push(
        "visits_push", frame(2, 4, 0, pages=4, note="older")))  # fmt: skip
    store.push("late_push", frame(1, 4, 1, pages=9))
    store.push("sales_push", frame(1, 4, 1, sid="s", total=5.0))
    store.push("world_push", pd.DataFrame({"t": moments(1), "rate": [0.5]}))

    rows = [{"cid": cid, "sid": "s"} for cid in (1, 2, 3, 9, 2)]
    features = ["orders:total", "visits:note", "visits:pages", "late:pages", "sales:total",
                "orders:count", "world:rate"]  # fmt: skip

    def read(features: Any, rows: list[dict[str, Any]], **more: Any) -> Callable[[], Any]:
        return lambda: served(store.get_online_features(features, rows, **more))

    recording.of("read one view", read(["orders:total"], [{"cid": 1}, {"cid": 9}]))
    recording.of("read all views", read(features, rows, full_feature_names=True), in_order=False)
    recording.of("read 150 entities", read(
        ["orders:total", "orders:count"], [{"cid": cid} for cid in range(150)]
    ), in_order=False)  # fmt: skip
    recording.of("read a plain service", read(store.get_feature_service("plain"), rows[:4]))
    recording.of("read a precomputed service", read(store.get_feature_service("churn"), [
        {"cid": cid} for cid in (1, 2, 5, 9)
    ]))  # fmt: skip
    recording.of("read without a join key", read(["sales:total"], [{"cid": 1}]))

    async def read_async(features: Any) -> Any:
        found = served(await store.get_online_features_async(features, rows[:3]))
        await store.close()
        return found

    recording.of("read on a loop", lambda: asyncio.run(read_async(features[:2])), in_order=False)
    churn_service = store.get_feature_service("churn")
    recording.of("read a service on a loop", lambda: asyncio.run(read_async(churn_service)))
    recording.of("online_read of the store", lambda: [
        [str(moment), {name: str(value).strip() for name, value in (values or {}).items()}]
        for moment, values in store.provider.online_read(
            store.config, store.get_feature_view("orders"), _keys(1, 9), ["count"]
        )
    ])  # fmt: skip
    recording.of("precompute again", lambda: store.provider.precompute_feature_service("churn"))
    wider = view(
        "orders",
        created=True,
        settings=ViewSettings(table=no_deletion),
        total=Float64,
        count=Int64,
        extra=String,
    )
    recording.of("apply a wider view", lambda: store.apply([wider]), in_order=False)
    recording.of("read the wider view", read(["orders:extra", "orders:total"], rows[:2]))
    recording.of(
        "push of the wider view",
        lambda: store.push("orders_push", frame(1, 2, 2, made=2, total=7.5, count=3, extra="x")),
    )
    recording.of("teardown", store.teardown, in_order=False)
    asyncio.run(store.close())
    return recording.found


def planned(store: FeatureStore, objects: list[Any]) -> dict[str, Any]:
    """What `feast plan` shows: differences of the registry, and of the infrastructure."""

    objects = copy.deepcopy(objects)  # Feast changes views that it plans with

    def of(kind: type) -> list[Any]:
        return [one for one in objects if type(one) is kind]

    contents = RepoContents(
        projects=[],
        data_sources=[one.batch_source for one in of(FeatureView)],
        feature_views=of(FeatureView),
        on_demand_feature_views=[],
        stream_feature_views=[],
        label_views=[],
        entities=of(Entity),
        feature_services=of(FeatureService),
        permissions=[],
    )
    registry, infra, _ = store.plan(contents)
    # Feast goes over sets there.
    return {
        "registry": sorted(registry.to_string().split("\n")),
        "infra": infra.to_string().split("\n"),
    }


def _keys(*customers: int) -> list[Any]:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    return [
        EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=one)]) for one in customers
    ]


def materialize_record(
    open_store: Any, proxy: RecordingProxy, client: Any, s3_endpoint: str
) -> dict[str, Any]:
    """Requests of materializations, a view at a time; sorted, as buckets are written at once."""
    recording = Recording(proxy)
    online = {
        "region": "us-east-1", "endpoint_url": proxy.endpoint, "newest_wins_with": "partiql",
    }  # fmt: skip
    engine = {
        "type": "feast_dynamo_ext.DynamoComputeEngine", "max_write_workers": 1,
        "views_at_once": 1,  # and no beat of a lease within the test
        "rows_per_bucket": 20, "lease_s": 600,
    }  # fmt: skip
    offline = {"endpoint_url": s3_endpoint}
    store: FeatureStore = open_store(
        "material", online=online, offline=offline, batch_engine=engine
    )
    columns = {
        "cid": [*range(40)] * 2,
        "t": at(*[1] * 40, *[2] * 40),
        "total": [float(row) for row in range(80)],
    }
    kinds = {"cid": Int64, "total": Float64}
    orders = parquet_view(store, "orders", columns, kinds, entities=[CUSTOMER])
    few = {name: cells[37:43] for name, cells in columns.items()}
    small = parquet_view(store, "small", few, kinds, entities=[CUSTOMER])
    visits = parquet_view(store, "visits", few, kinds, entities=[CUSTOMER])
    loads = parquet_view(store, "loads", columns, kinds, entities=[CUSTOMER])
    loads.tags = ViewSettings(write_mode="overwrite").tags()
    both = FeatureService(
        name="both", features=[visits, small[["total"]].with_name("o")], precompute_online=True
    )
    store.apply([CUSTOMER, orders, small, visits, loads])

    def run(*views: str, hours: float = 1.5) -> Callable[[], Any]:
        end = START + dt.timedelta(hours=hours)
        return lambda: store.materialize(START, end, feature_views=list(views))

    recording.of("first, newest_wins", run("orders"), in_order=False)
    recording.of("again with newer rows", run("orders", hours=3), in_order=False)
    recording.of("overwrite", run("loads"), in_order=False)
    store.apply([both])
    recording.of("first of a service", run("small"), in_order=False)
    recording.of("second of a service", run("visits"), in_order=False)
    recording.of(
        "incremental",
        lambda: store.materialize_incremental(
            START + dt.timedelta(hours=5), feature_views=["small"]
        ),
        in_order=False,
    )
    # On S3 the fingerprint of files is of their URIs, sizes and ETags, which do not vary.
    s3 = boto3.client("s3", region_name="us-east-1", endpoint_url=s3_endpoint)
    s3.create_bucket(Bucket="golden-wire")
    s3.upload_file(str(store.config.repo_path / "small.parquet"), "golden-wire", "far/a.parquet")
    s3.close()
    far = copy.deepcopy(small)
    far.name = "far"
    far.batch_source = FileSource(name="far", path="s3://golden-wire/far", timestamp_field="t")
    store.apply([far])
    recording.volatile = VOLATILE - {"source"}
    recording.of("from S3", run("far"), in_order=False)
    recording.found["items after all"] = {
        name: compact(scan(client, f"material.{name}"))[-8:]
        for name in ("orders", "small", "visits", "loads")
    }
    store.teardown()
    asyncio.run(store.close())
    return recording.found


def names_of(tmp_path: Any, proxy: RecordingProxy) -> dict[str, str]:
    return {str(tmp_path): "<folder>", proxy.endpoint: "<dynamodb>"}


def finished(record: dict[str, Any], tmp_path: Any, proxy: RecordingProxy) -> dict[str, Any]:
    found: dict[str, Any] = replaced(record, names_of(tmp_path, proxy))
    return found
