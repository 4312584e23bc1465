"""A Feast plugin for teams on AWS: DynamoDB online, Parquet on S3 offline, SageMaker training.

`feature_store.yaml` names these classes; they are loaded when first used, so that importing the
package is cheap and pulls in neither duckdb, pyspark nor sagemaker.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource
    from feast_dynamo_ext.derived import recent, windows
    from feast_dynamo_ext.materialize.engine import DynamoComputeEngine, DynamoComputeEngineConfig
    from feast_dynamo_ext.offline_store import S3ParquetOfflineStore, S3ParquetOfflineStoreConfig
    from feast_dynamo_ext.online_store import DynamoOnlineStore, DynamoOnlineStoreConfig
    from feast_dynamo_ext.parquet.iceberg.destinations import (
        IcebergLoggingDestination,
        SavedDatasetIcebergStorage,
    )
    from feast_dynamo_ext.parquet.s3_parquet_source import S3ParquetSource
    from feast_dynamo_ext.provider import DynamoProvider
    from feast_dynamo_ext.series_settings import Series
    from feast_dynamo_ext.view_settings import TableSettings, ViewSettings

__version__ = "0.1.0"

__all__ = [
    "DynamoComputeEngine",
    "DynamoComputeEngineConfig",
    "DynamoDBTableSource",
    "DynamoOnlineStore",
    "DynamoOnlineStoreConfig",
    "DynamoProvider",
    "IcebergLoggingDestination",
    "S3ParquetOfflineStore",
    "S3ParquetOfflineStoreConfig",
    "S3ParquetSource",
    "SavedDatasetIcebergStorage",
    "Series",
    "TableSettings",
    "ViewSettings",
    "recent",
    "windows",
]

_MODULE_OF = {
    "DynamoComputeEngine": "materialize.engine",
    "DynamoComputeEngineConfig": "materialize.engine",
    "DynamoDBTableSource": "capture.table_source",
    "DynamoOnlineStore": "online_store",
    "DynamoOnlineStoreConfig": "online_store",
    "DynamoProvider": "provider",
    "IcebergLoggingDestination": "parquet.iceberg.destinations",
    "S3ParquetOfflineStore": "offline_store",
    "S3ParquetOfflineStoreConfig": "offline_store",
    "S3ParquetSource": "parquet.s3_parquet_source",
    "SavedDatasetIcebergStorage": "parquet.iceberg.destinations",
    "Series": "series_settings",
    "TableSettings": "view_settings",
    "ViewSettings": "view_settings",
    "recent": "derived",
    "windows": "derived",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        _refuse_misspelt(name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def _refuse_misspelt(name: str) -> None:
    """Name the class that feature_store.yaml means: of an AttributeError, Feast says less.

    Raises:
        ConfigError: there is a class of nearly this name.
    """
    close = difflib.get_close_matches(name, _MODULE_OF, n=1, cutoff=0.85)
    if close and name[:1].isupper():  # modules are looked up here too before they are imported
        from feast_dynamo_ext.errors import ConfigError

        meant, given = (one.removesuffix("Config") for one in (close[0], name))
        raise ConfigError(f"{__name__} has no class `{given}`. Did you mean `{meant}`?")


def __dir__() -> list[str]:
    return sorted(__all__)
