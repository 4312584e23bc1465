"""Histories, entity rows and views whose retrievals are recorded."""

from __future__ import annotations

import datetime as dt
import os
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    RepoConfig,
    RequestSource,
    ValueType,
)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bytes, Float64, Int64, Map, String, UnixTimestamp
from golden_values import BIG

from feast_dynamo_ext import S3ParquetSource

if TYPE_CHECKING:
    from pathlib import Path

UTC = dt.timezone.utc
START = dt.datetime(2025, 1, 10, tzinfo=UTC)
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
CUSTOMER = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
SHOP = Entity(name="shop", join_keys=["sid"], value_type=ValueType.STRING)
DEVICE = Entity(name="device", join_keys=["did"], value_type=ValueType.BYTES)
CENTURY = dt.timedelta(days=36_500)
PLANS: dict[str, dict[str, Any]] = {
    "stream": {"join_plan": "stream", "memory_limit": "256MB", "threads": 2},
    # Entity rows are joined in blocks of a few.
    "stream in blocks": {"join_plan": "stream", "memory_limit": "2KB", "threads": 1},
    "duckdb": {"join_plan": "duckdb", "memory_limit": "256MB", "threads": 2},
}


def hours(*after: float | None, unit: str = "us", zone: str | None = "UTC") -> pa.Array:
    moments = [None if hour is None else START + hour * HOUR for hour in after]
    return pa.array(moments, pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, zone))


def put(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    os.utime(path, (1_735_689_600, 1_735_689_600))


def write_histories(folder: Path) -> None:
    # Ties of event times, of created times, a row of the future, nulls of keys and times.
    put(
        folder / "ties" / "a.parquet",
        cid=pa.array([1, 1, 1, 2, None, 2, 3, 1], pa.int64()),
        t=hours(0, 1, 1, 1, 1, None, 2, 30),
        made=hours(0, 3, 2, 1, 1, 1, 5, 30),
        total=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        note=["a", None, "c", "", "e", "f", "ä", "h"],
    )
    put(
        folder / "ties" / "b.parquet",
        cid=pa.array([2, 2, 4, 1], pa.int64()),
        t=hours(1, 1, 0, 2),
        made=hours(None, 1, 9, 4),
        total=[9.0, 10.0, None, 11.0],
        note=["i", "j", "k", "l"],
    )
    put(
        folder / "pairs.parquet",
        cid=pa.array([1, 1, 2, BIG], pa.int64()),
        sid=pa.array(["a", "b", "a", ""]).dictionary_encode(),
        t=hours(0, 1, 2, 0, unit="ns", zone=None),
        amount=pa.array([BIG, None, -1, 4], pa.int64()),
        many=[[1, 2], [], None, [3]],
        exact=[Decimal("0.10"), None, Decimal("-9999.99"), Decimal("1.00")],
        moment=hours(0, None, 2.5, 3, unit="ms", zone="Europe/Berlin"),
        record=[{"x": 1, "y": "a"}, None, {"x": None, "y": "b"}, {"x": 2, "y": None}],
    )
    put(folder / "world.parquet", t=hours(0, 2, 4, unit="s"), rate=[0.5, None, 1.5])
    put(
        folder / "bytes.parquet",
        did=pa.array([b"\xff", b"", b"\x00a"]),
        t=pa.array([dt.date(2025, 1, 9), dt.date(2025, 1, 10), dt.date(2025, 1, 11)]),
        seen=pa.array([1, 2, 3], pa.int8()),
    )
    for day, region, values in (
        ("2025-01-09", "eu", [1, 2]),
        ("2025-01-10", "eu", [3, 4]),
        ("2025-01-10", "us", [5, 6]),
        ("2025-01-11", "__HIVE_DEFAULT_PARTITION__", [7, 8]),
    ):
        start = dt.datetime.fromisoformat(f"{day}T00:00:00+00:00")
        put(
            folder / "hive" / f"dt={day}" / f"region={region}" / "part-0.parquet",
            cid=[1, 2],
            t=pa.array([start + values[0] * HOUR] * 2, pa.timestamp("us", "UTC")),
            value=pa.array(values, pa.int64()),
        )
    for month, value in (("01", 1), ("02", 2)):
        put(
            folder / "months" / "2025" / month / "part-0.parquet",
            customer_number=[1, 2],
            t=pa.array([dt.datetime(2025, int(month), 3, tzinfo=UTC)] * 2),
            VALUE=[value, 10 * value],
        )
    put(
        folder / "widening" / "a.parquet",
        cid=[1, 2],
        t=hours(0, 0),
        count=pa.array([1, 2], pa.int32()),
    )
    put(
        folder / "widening" / "b.parquet",
        cid=[2, 3],
        t=hours(1, 1),
        count=pa.array([3, BIG], pa.int64()),
        extra=["x", "y"],
    )


def _view(name: str, source: Any, entities: list[Entity], ttl: Any = None, **kinds: Any) -> Any:
    keys = {"customer": ("cid", Int64), "shop": ("sid", String), "device": ("did", Bytes)}
    fields = [Field(name=keys[one.name][0], dtype=keys[one.name][1]) for one in entities]
    return FeatureView(
        name=name,
        entities=entities,
        schema=[*fields, *(Field(name=field, dtype=kind) for field, kind in kinds.items())],
        source=source,
        ttl=ttl or dt.timedelta(0),
    )


def views() -> list[FeatureView]:
    def files(name: str, path: str, made: str = "", **more: Any) -> FileSource:
        return FileSource(
            name=name, path=path, timestamp_field="t", created_timestamp_column=made, **more
        )

    return [
        _view("ties", files("ties", "ties", "made"), [CUSTOMER], total=Float64, note=String),
        _view("recent", files("recent", "ties", "made"), [CUSTOMER], HOUR, total=Float64),
        _view(
            "pairs",
            files("pairs", "pairs.parquet"),
            [CUSTOMER, SHOP],
            amount=Int64,
            many=Array(Int64),
            exact=Float64,
            moment=UnixTimestamp,
            record=Map,
        ),
        _view("world", files("world", "world.parquet"), [], 3 * HOUR, rate=Float64),
        _view("bytes", files("bytes", "bytes.parquet"), [DEVICE], seen=Int64),
        _view("hive", files("hive", "hive"), [CUSTOMER], DAY, value=Int64, region=String),
        _view(
            "daily",
            S3ParquetSource(
                name="daily", path="hive", timestamp_field="t", date_partition_column="dt"
            ),
            [CUSTOMER],
            DAY,
            value=Int64,
            dt=String,
        ),
        _view(
            "monthly",
            S3ParquetSource(
                name="monthly",
                path="months",
                timestamp_field="t",
                date_partition_column_format="%Y/%m",
                field_mapping={"customer_number": "cid", "VALUE": "worth"},
            ),
            [CUSTOMER],
            worth=Int64,
        ),
        _view("widening", files("widening", "widening"), [CUSTOMER], count=Int64, extra=String),
        _view(
            "lost", files("lost", "nowhere"), [CUSTOMER], value=Int64
        ),
        _view("lacking", files("lacking", "ties", "made"), [CUSTOMER], missing=Int64),
    ]  # fmt: skip


def open_stores(folder: Path) -> dict[str, FeatureStore]:
    """A store of each plan over one registry, in which all views stand."""
    stores = {}
    for name, plan in PLANS.items():
        config = RepoConfig(
            project="p",
            provider="feast_dynamo_ext.DynamoProvider",
            registry=str(folder / "registry.db"),
            online_store={
                "type": "feast_dynamo_ext.DynamoOnlineStore",
                "region": "us-east-1",
                "endpoint_url": "http://127.0.0.1:9",
                "manage_tables": "never",
            },
            offline_store={
                "type": "feast_dynamo_ext.S3ParquetOfflineStore",
                "region": "us-east-1",
                "staging_location": "staging",
                "spill_folder": str(folder),
                **plan,
            },
            entity_key_serialization_version=3,
        )
        config.repo_path = folder
        stores[name] = FeatureStore(config=config)
    registry = stores["stream"].registry
    known = {view.name: view for view in views()}
    ties, world = known["ties"], known["world"]
    basket = RequestSource(name="basket", schema=[Field(name="price", dtype=Float64)])

    @on_demand_feature_view(
        sources=[ties[["total"]], world, basket],
        schema=[Field(name="priced", dtype=Float64), Field(name="mean", dtype=Float64)],
    )
    def priced(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "priced": inputs["total"] * inputs["rate"] + inputs["price"],
                "mean": inputs["total"].fillna(inputs["total"].mean()),
            }
        )

    one = ties[["total"]].with_name("one")
    other = ties[["total"]].with_name("friend").with_join_key_map({"cid": "friend_id"})
    service = FeatureService(name="friends", features=[one, other, known["world"]])
    without_files = ("lost", "lacking")
    usable = [view for view in known.values() if view.name not in without_files]
    stores["stream"].apply([CUSTOMER, SHOP, DEVICE, *usable, priced, service])
    for name in without_files:
        registry.apply_feature_view(known[name], "p")
    for store in stores.values():
        store.refresh_registry()
    return stores


def customers(unit: str = "us", zone: str | None = "UTC") -> pa.Table:
    """Entity rows: exact bounds, the same key twice, unknown and null keys."""
    return pa.table(
        {
            "cid": pa.array([1, 1, 2, 3, 4, None, 9, 1, 2, 1], pa.int64()),
            "sid": ["a", "b", "a", None, "", "a", "a", "a", "a", "b"],
            "label": pa.array([1, 0, 1, 0, 1, 0, 1, 0, None, 1], pa.int8()),
            "event_timestamp": hours(1, 0, 1, 1.5, 24, 3, 3, 50, 2, -1, unit=unit, zone=zone),
        }
    )
