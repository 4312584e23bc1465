"""A workload as a Feast project: declared, filled, opened."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    RepoConfig,
    ValueType,
)
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float32, Float64, Int64
from workload import JOIN_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workload import Workload

STORES = {"ours": "feast_dynamo_ext.DynamoOnlineStore", "feast": "dynamodb"}
WRITE_MODES = ("overwrite", "newest_wins")
PROVIDERS = {"ours": "feast_dynamo_ext.DynamoProvider", "feast": "local"}
SERVICE = "service"  # the workload that has one, and the service
CUSTOMER = Entity(name=JOIN_KEY, join_keys=[JOIN_KEY], value_type=ValueType.INT64)
KINDS = {"float64": (Float64, "double_val"), "float32": (Float32, "float_val")}

# Not a round number: DynamoDB drops a number's trailing zeros, and ours keeps times as numbers.
EVENT_TIME = dt.datetime(2024, 1, 1, 1, 23, 45, 678_901, tzinfo=dt.timezone.utc)


def open_store(
    settings: dict,
    workload: Workload,
    offline: dict[str, Any] | None = None,
    online: dict[str, Any] | None = None,
) -> FeatureStore:
    """The project's store with its default settings; one that is named for a mode, with that.

    Args:
        settings: the client's.
        workload: names the project, and maybe the mode.
        offline: the block of the offline store; default: Feast's default.
        online: more of the block of the online store.
    """
    folder = Path(settings["folder"])
    config = RepoConfig(
        project=workload.project(settings["store"]),
        provider=PROVIDERS[settings["store"]],
        # Read once: what is measured is the store, not the registry.
        registry={"path": str(folder / f"{workload.name}.db"), "cache_ttl_seconds": 86_400},
        online_store={
            "type": STORES[settings["store"]],
            "region": settings["region"],
            "endpoint_url": settings["endpoint"],
            **(_write_mode(workload) if settings["store"] == "ours" else {}),
            **(online or {}),
        },
        entity_key_serialization_version=3,
        **({"offline_store": offline} if offline else {}),
    )
    config.repo_path = folder
    return FeatureStore(config=config)


def _write_mode(workload: Workload) -> dict[str, str]:
    mode = workload.name.removesuffix("_new")
    return {"write_mode": mode} if mode in WRITE_MODES else {}


def views_of(workload: Workload) -> list[FeatureView]:
    dtype, _ = KINDS[workload.kind]
    return [
        FeatureView(
            name=view,
            entities=[CUSTOMER],
            schema=[Field(name=JOIN_KEY, dtype=Int64)]
            + [Field(name=name, dtype=dtype) for name in names],
            source=FileSource(name=f"{view}_source", path="nowhere", timestamp_field="t"),
            ttl=dt.timedelta(0),
        )
        for view, names in workload.names().items()
    ]


def declare(store: FeatureStore, workload: Workload, *, precomputed: bool) -> None:
    """Create the tables: once, or Feast's store fails on DynamoDB Local."""
    views = views_of(workload)
    objects: list[Any] = [CUSTOMER, *views]
    if workload.name == SERVICE:
        objects.append(FeatureService(name=SERVICE, features=views, precompute_online=precomputed))
    store.apply(objects)


def fill(store: FeatureStore, workload: Workload) -> None:
    for view in views_of(workload):
        rows = rows_of(workload, view.name, range(workload.entities), EVENT_TIME)
        store._get_provider().online_write_batch(store.config, view, rows, None)


def rows_of(
    workload: Workload,
    view: str,
    entities: Iterable[int],
    event_time: dt.datetime,
    version: int = 0,
) -> list[tuple[EntityKey, dict[str, Value], dt.datetime, None]]:
    """Rows as Feast's `online_write_batch` takes them."""
    names, (_, field) = workload.names()[view], KINDS[workload.kind]
    return [
        (
            EntityKey(join_keys=[JOIN_KEY], entity_values=[Value(int64_val=entity)]),
            {
                name: Value(**{field: value})
                for name, value in zip(names, workload.values(view, entity, version), strict=True)
            },
            event_time,
            None,
        )
        for entity in entities
    ]
