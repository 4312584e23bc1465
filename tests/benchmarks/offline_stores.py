"""Training sets through Feast: our offline store, or one of Feast's own."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float64, Int64
from offline_client import REGION
from offline_data import CREATED_TIME, EVENT_TIME, TTL_DAYS, Dataset
from workload import JOIN_KEY

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from feast.data_source import DataSource
    from offline_client import Run, Task

OURS = "feast_dynamo_ext.S3ParquetOfflineStore"
CUSTOMER = Entity(name=JOIN_KEY, join_keys=[JOIN_KEY], value_type=ValueType.INT64)


def retrieval(store: str, task: Task) -> Run:
    """`FeatureStore.get_historical_features` with an offline store of this type."""
    opened = declared(store, task)
    if task.out and store == OURS:
        return lambda: streamed(opened, task)

    def retrieve() -> pa.Table | None:
        # Feast's stores take nothing else.
        entities = pd.read_parquet(task.entities)
        table = opened.get_historical_features(entities, task.references).to_arrow()
        return table if task.out is None else write(table, task.out)

    return retrieve


def streamed(store: FeatureStore, task: Task) -> None:
    store.get_historical_features(str(task.entities), task.references).to_remote_storage()


def write(table: pa.Table, folder: Path) -> None:
    import pyarrow.parquet as pq

    folder.mkdir()
    pq.write_table(table, folder / "all.parquet")


def declared(store: str, task: Task) -> FeatureStore:
    """A project whose views have the task's files."""
    # DuckDB takes no folders.
    files = "" if store == OURS else "/*.parquet"
    more = {"region": REGION} if task.endpoint and store == OURS else {}
    opened = FeatureStore(config=config(store, task.scratch, task.out, more))
    views = [
        view_of(
            task.dataset,
            name,
            file_source(name, task.files_of(name, files), task.endpoint)
            if task.tables is None
            else table_source(name, task.tables),
        )
        for name in task.dataset.view_names()
    ]
    opened.apply([CUSTOMER, *views])
    return opened


def config(
    store: str, folder: Path, out: Path | None = None, more: dict[str, Any] | None = None
) -> RepoConfig:
    made = RepoConfig(
        project="bench",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
        offline_store={
            "type": store,
            **({"staging_location": str(out)} if out and store == OURS else {}),
            **(more or {}),
        },
    )
    made.repo_path = folder
    return made


def view_of(
    dataset: Dataset, name: str, source: DataSource, ttl_days: int = TTL_DAYS
) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[CUSTOMER],
        schema=[Field(name=JOIN_KEY, dtype=Int64)]
        + [Field(name=feature, dtype=Float64) for feature in dataset.features_of(name)],
        source=source,
        ttl=dt.timedelta(days=ttl_days),
    )


def file_source(view: str, path: str, endpoint: str | None = None) -> FileSource:
    return FileSource(
        name=f"{view}_source",
        path=path,
        s3_endpoint_override=endpoint or "",
        file_format=ParquetFormat(),
        timestamp_field=EVENT_TIME,
        created_timestamp_column=CREATED_TIME,
    )


def table_source(view: str, folder: Path) -> DataSource:
    """A history table of the SQL catalog in a folder."""
    from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource

    return IcebergSource(
        name=f"{view}_source",
        catalog_type="sql",
        endpoint=f"sqlite:///{folder}/catalog.db",
        warehouse=f"file://{folder}/warehouse",
        namespace="bench",
        table=view,
        timestamp_field=EVENT_TIME,
        created_timestamp_column=CREATED_TIME,
    )
