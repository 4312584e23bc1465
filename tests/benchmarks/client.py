"""A measured client: Feast with our store or with its own, on tables of its own.

Runs in either environment, so it imports nothing of feast_dynamo_ext: Feast loads the store that
the settings name. `client.py load SETTINGS` creates and fills the tables and ends;
`client.py serve SETTINGS` does what `protocol.py` says, so that memory counts reading alone.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64
from protocol import serve
from workload import JOIN_KEY, Workload

STORES = {"ours": "feast_dynamo_ext.DynamoOnlineStore", "feast": "dynamodb"}
CUSTOMER = Entity(name=JOIN_KEY, join_keys=[JOIN_KEY], value_type=ValueType.INT64)
EVENT_TIME = dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)


def open_store(settings: dict) -> FeatureStore:
    folder = Path(settings["folder"])
    config = RepoConfig(
        project=f"bench_{settings['store']}",
        provider="local",
        # Read once: what is measured is the store, not the registry.
        registry={"path": str(folder / "registry.db"), "cache_ttl_seconds": 86_400},
        online_store={
            "type": STORES[settings["store"]],
            "region": settings["region"],
            "endpoint_url": settings["endpoint"],
        },
        entity_key_serialization_version=3,
    )
    config.repo_path = folder
    return FeatureStore(config=config)


def views_of(workload: Workload) -> list[FeatureView]:
    return [
        FeatureView(
            name=view,
            entities=[CUSTOMER],
            schema=[Field(name=JOIN_KEY, dtype=Int64)]
            + [Field(name=name, dtype=Float64) for name in names],
            source=FileSource(name=f"{view}_source", path="nowhere", timestamp_field="t"),
            ttl=dt.timedelta(0),
        )
        for view, names in workload.names().items()
    ]


def load(store: FeatureStore, workload: Workload) -> None:
    """Create and fill the tables: once, or Feast's store fails on DynamoDB Local."""
    views = views_of(workload)
    store.apply([CUSTOMER, *views])
    for view, (name, features) in zip(views, workload.names().items(), strict=True):
        rows = [
            (
                EntityKey(join_keys=[JOIN_KEY], entity_values=[Value(int64_val=entity)]),
                {
                    feature: Value(double_val=value)
                    for feature, value in zip(features, workload.values(name, entity), strict=True)
                },
                EVENT_TIME + dt.timedelta(minutes=entity),
                None,
            )
            for entity in range(workload.entities)
        ]
        store._get_provider().online_write_batch(store.config, view, rows, None)


class Reads:
    """The operations that are measured."""

    def __init__(self, store: FeatureStore, workload: Workload) -> None:
        self.store = store
        self.references = workload.references()

    def request_of(self, entities: list[int]) -> list[dict[str, int]]:
        return [{JOIN_KEY: entity} for entity in entities]

    def run(self, request: list[dict[str, int]]):
        return self.store.get_online_features(features=self.references, entity_rows=request)

    def answer(self, entities: list[int]) -> dict:
        return self.run(self.request_of(entities)).to_dict()


def main() -> None:
    settings = json.loads(sys.argv[2])
    store, workload = open_store(settings), Workload(**settings["workload"])
    if sys.argv[1] == "load":
        load(store, workload)
    else:
        serve(Reads(store, workload), workload)


if __name__ == "__main__":
    main()
