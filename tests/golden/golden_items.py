"""Area `items`: the bytes of rows, schemas and vectors as they lie in DynamoDB's tables."""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_source import PushSource
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float64, Int64, String
from golden_record import outcome
from golden_values import (
    COLUMNS,
    KEY_COLUMNS,
    MISFITS,
    SCALAR_CELLS,
    TEXT_CELLS,
    TYPE_OF_FIELD,
    messages,
)
from repos import table_names

if TYPE_CHECKING:
    from feast import FeatureStore

UTC = dt.timezone.utc
START = dt.datetime(2025, 1, 1, tzinfo=UTC)
END = START + dt.timedelta(days=2)
CUSTOMER = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
WRITTEN_AT_S = 1_735_689_600
CENTURY = dt.timedelta(days=36_500)  # a ttl whose rows DynamoDB does not delete during the test


def at(*hours: float) -> pa.Array:
    moments = [START + dt.timedelta(hours=hour) for hour in hours]
    return pa.array(moments, pa.timestamp("us", "UTC"))


def scan(client: Any, table: str) -> list[dict[str, Any]]:
    """All items of a table by key; bytes in hex."""
    items = [
        item
        for page in client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        for item in page["Items"]
    ]
    told = [
        {name: {kind: _told(cell) for kind, cell in attribute.items()}
         for name, attribute in item.items()}
        for item in items
    ]  # fmt: skip
    return sorted(told, key=lambda item: item["k"]["B"])


def _told(cell: Any) -> Any:
    if isinstance(cell, (bytes, bytearray)):
        return bytes(cell).hex()
    if isinstance(cell, dict):
        return {name: _told(one) for name, one in cell.items()}
    if isinstance(cell, list):
        return [_told(one) for one in cell]
    return cell


def parquet_view(
    store: FeatureStore, name: str, columns: dict[str, Any], kinds: dict[str, Any], **more: Any
) -> FeatureView:
    """A view over one file in the repo's folder, written in row groups of two rows."""
    folder = store.config.repo_path
    path = folder / f"{name}.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2)
    os.utime(path, (WRITTEN_AT_S, WRITTEN_AT_S))  # a checkpoint's fingerprint of files has it
    return FeatureView(
        name=name,
        schema=[Field(name=field, dtype=kind) for field, kind in kinds.items()],
        source=FileSource(
            name=f"{name}_source",
            path=f"{name}.parquet",
            timestamp_field="t",
            created_timestamp_column=more.pop("created", ""),
        ),
        ttl=more.pop("ttl", dt.timedelta(0)),
        **more,
    )


def items_record(store: FeatureStore, client: Any) -> dict[str, Any]:
    project = store.project
    return {
        "values of messages": _of_messages(store, client),
        "keys of messages": _of_key_messages(store, client),
        "materialized values": _materialized_values(store, client),
        "materialized misfits": _materialized_misfits(store),
        "materialized keys": _materialized_keys(store, client),
        "pushed": _pushed(store, client),
        "table names": sorted(name for name in table_names(client) if name.startswith(project)),
    }


def _of_messages(store: FeatureStore, client: Any) -> dict[str, Any]:
    """Each field of Feast's Value message, written through the online store; a row a field."""
    fields = [field.name for field in Value.DESCRIPTOR.oneofs_by_name["val"].fields]
    found = messages()
    view = FeatureView(
        name="messages",
        entities=[CUSTOMER],
        schema=[
            Field(name="cid", dtype=Int64),
            *(Field(name=field, dtype=TYPE_OF_FIELD[field]) for field in fields),
        ],
        source=FileSource(name="messages_source", path="nowhere", timestamp_field="t"),
        ttl=CENTURY,
    )
    store.apply([CUSTOMER, view])
    view = store.get_feature_view("messages")
    rows, names = [], {}
    for number, field in enumerate(fields):
        for variant, message in enumerate(found[field]):
            key = EntityKey(
                join_keys=["cid"], entity_values=[Value(int64_val=100 * number + variant)]
            )
            created = START + dt.timedelta(hours=1) if variant else None
            rows.append(
                (key, {field: message}, START + dt.timedelta(microseconds=number), created)
            )
            names[f"{100 * number + variant:5}"] = field
    every = {field: found[field][0] for field in fields}
    key = EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=-1)])
    rows.append((key, every, START, None))
    store.provider.online_write_batch(store.config, view, rows, None)
    keys = [key for key, *_ in rows]
    read = store.provider.online_read(store.config, view, keys, None)
    return {
        "fields": fields,
        "field of cid": names,
        "items": scan(client, f"{store.project}.messages"),
        "read back": [
            [str(moment), {
                name: value.SerializeToString(deterministic=True).hex()
                for name, value in (values or {}).items()
                if value.WhichOneof("val")
            }]
            for moment, values in read
        ],
    }  # fmt: skip


def _of_key_messages(store: FeatureStore, client: Any) -> dict[str, Any]:
    """Each scalar type as a join key; several keys; no key."""
    view = FeatureView(
        name="keys",
        entities=[CUSTOMER],
        schema=[Field(name="cid", dtype=Int64), Field(name="total", dtype=Float64)],
        source=FileSource(name="keys_source", path="nowhere", timestamp_field="t"),
        ttl=dt.timedelta(0),
    )
    store.apply([CUSTOMER, view])
    view = store.get_feature_view("keys")
    given: dict[str, EntityKey] = {
        f"{name} {cell!r}": EntityKey(
            join_keys=["cid"], entity_values=[Value(**{f"{name}_val": cell})]
        )
        for name, cells in {**SCALAR_CELLS, **TEXT_CELLS}.items()
        for cell in cells
    }
    pair = [Value(string_val="b"), Value(int64_val=1)]
    given["two keys"] = EntityKey(join_keys=["shop", "cid"], entity_values=pair)
    given["two keys in order"] = EntityKey(join_keys=["cid", "shop"], entity_values=pair[::-1])
    given["no key"] = EntityKey()
    given["null"] = EntityKey(join_keys=["cid"], entity_values=[Value()])
    given["too long"] = EntityKey(join_keys=["cid"], entity_values=[Value(string_val="x" * 2_048)])
    answers: dict[str, Any] = {}
    for name, key in given.items():
        row = (key, {"total": Value(double_val=len(answers))}, START, None)
        answers[name] = outcome(
            lambda row=row: store.provider.online_write_batch(store.config, view, [row], None)
        )
    return {"answers": answers, "items": scan(client, f"{store.project}.keys")}


def _materialized_values(store: FeatureStore, client: Any) -> Any:
    order = pa.array([2, 1, 0])
    columns = {
        "cid": [1, 2, 3, 1, 2, 3],
        "t": at(1, 2, 3, 4, 5, 6),
        "made": at(2, 2, 3, 5, 5, 6),
        # Older rows have the values the other way round.
        **{
            name: pa.chunked_array([column.take(order), column])
            for name, (_, column) in COLUMNS.items()
        },
    }
    kinds = {"cid": Int64, **{name: kind for name, (kind, _) in COLUMNS.items()}}
    view = parquet_view(
        store, "columns", columns, kinds, entities=[CUSTOMER], created="made", ttl=CENTURY
    )
    store.apply([CUSTOMER, view])
    store.materialize(START, END, feature_views=["columns"])
    return scan(client, f"{store.project}.columns")


def _materialized_misfits(store: FeatureStore) -> dict[str, Any]:
    views = {}
    for name, (kind, column) in MISFITS.items():
        columns = {"cid": [1, 2, 3], "t": at(1, 2, 3), "value": column}
        views[name] = parquet_view(
            store, f"bad_{name}", columns, {"cid": Int64, "value": kind}, entities=[CUSTOMER]
        )
    store.apply([CUSTOMER, *views.values()])
    return {
        name: outcome(lambda view=view: store.materialize(START, END, feature_views=[view.name]))
        for name, view in views.items()
    }


def _materialized_keys(store: FeatureStore, client: Any) -> dict[str, Any]:
    entities, views = [], {}
    for name, (kind, value_type, column) in KEY_COLUMNS.items():
        entity = Entity(name=f"e_{name}", join_keys=[f"k_{name}"], value_type=value_type)
        columns = {f"k_{name}": column, "t": at(1, 2, 3), "total": [1.0, 2.0, 3.0]}
        kinds = {f"k_{name}": kind, "total": Float64}
        entities.append(entity)
        views[name] = parquet_view(store, f"by_{name}", columns, kinds, entities=[entity])
    store.apply([*entities, *views.values()])

    def run(view: FeatureView) -> Any:
        store.materialize(START, END, feature_views=[view.name])
        return [item for item in scan(client, f"{store.project}.{view.name}") if "v" in item]

    answers = {name: outcome(lambda view=view: run(view)) for name, view in views.items()}
    shop = Entity(name="shop", join_keys=["sid"], value_type=ValueType.STRING)
    both = parquet_view(
        store,
        "by_both",
        {"cid": [1, 1, 2], "sid": ["a", "b", "a"], "t": at(1, 2, 3), "total": [1.0, 2.0, 3.0]},
        {"cid": Int64, "sid": String, "total": Float64},
        entities=[shop, CUSTOMER],
    )
    none = parquet_view(
        store,
        "by_none",
        {"t": at(1, 2, 3), "total": [1.0, 2.0, 3.0]},
        {"total": Float64},
        entities=[],
    )
    store.apply([shop, CUSTOMER, both, none])
    store.materialize(START, END, feature_views=["by_both", "by_none"])
    for name in ("by_both", "by_none"):
        answers[name] = scan(client, f"{store.project}.{name}")
    return answers


def _pushed(store: FeatureStore, client: Any) -> dict[str, Any]:
    """Rows of `push` and `write_to_online_store`, and vectors of a precomputed service."""

    def view(name: str, ttl: dt.timedelta, **features: Any) -> FeatureView:
        source = FileSource(
            name=f"{name}_source", path="nowhere", timestamp_field="t",
            created_timestamp_column="made" if name == "orders" else "",
        )  # fmt: skip
        return FeatureView(
            name=name,
            entities=[CUSTOMER],
            schema=[
                Field(name="cid", dtype=Int64),
                *(Field(name=feature, dtype=kind) for feature, kind in features.items()),
            ],
            source=PushSource(name=f"{name}_push", batch_source=source),
            ttl=ttl,
        )

    orders = view("orders", CENTURY, total=Float64, tags=Array(String))
    visits = view("visits", dt.timedelta(0), pages=Int64, note=String)
    churn = FeatureService(name="churn", features=[orders, visits], precompute_online=True)
    store.apply([CUSTOMER, orders, visits, churn])
    moments = pd.to_datetime(at(0, 0, 1, -1).to_pandas())
    rows = pd.DataFrame(
        {
            "cid": [1, 2, 1, 3],
            "t": moments,
            "made": moments,
            "total": [1.0, None, 2.0, 3.0],
            "tags": [["a", ""], [], ["b"], None],
        }
    )
    store.push("orders_push", rows)
    store.push("orders_push", rows.assign(total=9.0, t=moments - pd.Timedelta("1h")).head(2))
    late = pd.DataFrame(
        {"cid": [1, 4], "t": moments[:2], "pages": [2**53, 0], "note": ["n", None]}
    )
    store.write_to_online_store("visits", late)
    store.write_to_online_store(
        "visits", pd.DataFrame({"cid": [5], "t": moments[:1], "pages": [7], "note": [""]})
    )
    return {name: scan(client, f"{store.project}.{name}") for name in ("orders", "visits")}
