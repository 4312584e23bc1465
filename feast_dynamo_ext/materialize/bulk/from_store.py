"""From views of a feature store to bulk loads of their tables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.config import Config

from feast_dynamo_ext import aws
from feast_dynamo_ext.dynamo.encoding.items import EncodedRows
from feast_dynamo_ext.dynamo.item import RowSchema
from feast_dynamo_ext.dynamo.services.spec import precomputed_services
from feast_dynamo_ext.dynamo.tables.apply import table_spec
from feast_dynamo_ext.dynamo.tables.clients import TableClients
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.materialize.bulk.bulk_put import is_supported
from feast_dynamo_ext.materialize.bulk.cost import (
    Cost,
    Recommendation,
    Sizes,
    costs,
    recommend,
)
from feast_dynamo_ext.materialize.bulk.follow import POLL
from feast_dynamo_ext.materialize.bulk.items import counted_rows, newest_rows
from feast_dynamo_ext.materialize.bulk.load import load
from feast_dynamo_ext.materialize.bulk.values import BulkAws, Target
from feast_dynamo_ext.materialize.bulk.way import table_exists
from feast_dynamo_ext.offline_store import S3ParquetOfflineStoreConfig
from feast_dynamo_ext.online_store import DynamoOnlineStoreConfig, how_written

if TYPE_CHECKING:
    from datetime import datetime

    from feast import FeatureStore

    from feast_dynamo_ext.materialize.bulk.follow import Poll
    from feast_dynamo_ext.materialize.bulk.progress import Progress
    from feast_dynamo_ext.materialize.bulk.values import BulkResult, BulkSettings

RowsOf = Callable[["FeatureStore", Any, "datetime", "datetime"], Iterator[EncodedRows]]
"""Gives the rows of a view in a window: the newest of each key, in random key order."""

# Many requests of hours, some of which meet throttling: botocore sends these again.
PATIENT = Config(retries={"mode": "standard", "total_max_attempts": 5}, max_pool_connections=10)


@dataclass(frozen=True)
class Comparison:
    """What loading one view costs.

    Attributes:
        view: name of the feature view.
        table: its table.
        exists: whether the table is there.
        sizes: what is to be loaded.
        costs: of each way.
        recommendation: which to take, and why.
    """

    view: str
    table: str
    exists: bool
    sizes: Sizes
    costs: tuple[Cost, ...]
    recommendation: Recommendation


class BulkLoader:
    """Loads and compares views of one feature store. A context manager: it closes its clients.

    Args:
        store: the feature store; its online store must be DynamoOnlineStore.
        rows_of: where rows come from.
        poll: how often DynamoDB is asked how far it is.

    Raises:
        ConfigError: the online store is another.
    """

    def __init__(
        self, store: FeatureStore, rows_of: RowsOf = newest_rows, poll: Poll = POLL
    ) -> None:
        config = store.config
        if not isinstance(config.online_store, DynamoOnlineStoreConfig):
            raise ConfigError(
                f"The online store of this repo is `{config.online_store.type}`. Set `type: "
                "feast_dynamo_ext.DynamoOnlineStore` in online_store of feature_store.yaml."
            )
        self._store, self._rows_of = store, rows_of
        settings = config.online_store.aws()
        self._dynamodb = aws.client("dynamodb", settings, config=PATIENT)
        self._tables = TableClients(self._dynamodb, settings)
        self._s3 = aws.client("s3", _s3_settings(config), config=PATIENT)
        self._aws = BulkAws(self._tables, self._s3, poll)

    def __enter__(self) -> BulkLoader:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.ExitStack() as stack:
            for client in (self._dynamodb, self._s3, self._tables):
                stack.callback(client.close)

    def target(self, view: Any) -> Target:
        """What is loaded of a view.

        Raises:
            ConfigError: a view that cannot be bulk loaded, or settings that cannot be.
        """
        self._refuse(view)
        config = self._store.config
        return Target(
            table_spec(config, view),
            RowSchema.of(view),
            newest_wins=how_written(config, view) != "overwrite",
            may_create=config.online_store.manage_tables == "create",
        )

    def load(
        self,
        view: Any,
        start: datetime,
        end: datetime,
        settings: BulkSettings,
        progress: Progress | None = None,
    ) -> BulkResult:
        """Load the newest rows of a window, and tell the registry that they are there.

        Raises: as `load.load`, and as `items.newest_rows`.
        """
        target = self.target(view)
        result = load(
            self._aws,
            target,
            lambda: (rows.item_json() for rows in self._rows_of(self._store, view, start, end)),
            settings,
            progress,
        )
        # So that an incremental materialization goes on from there.
        self._store.registry.apply_materialization(view, self._store.project, start, end)
        return result

    def compare(self, view: Any, start: datetime, end: datetime) -> Comparison:
        """What each way would cost for a view; reads its rows, writes nothing.

        Raises: as `items.newest_rows`.
        """
        target = self.target(view)
        sizes = Sizes.of(rows.sizes() for rows in counted_rows(self._store, view, start, end))
        found = costs(sizes, newest_wins=target.newest_wins)
        exists = table_exists(self._tables, target)
        advice = recommend(
            found, table_exists=exists, bulk_put_supported=is_supported(self._dynamodb)
        )
        return Comparison(view.name, target.spec.name, exists, sizes, found, advice)

    def _refuse(self, view: Any) -> None:
        if _is_transformed(view):
            raise ConfigError(
                f"Feature view `{view.name}` is transformed on its way into the table, which "
                "`feast materialize` does and a bulk load does not."
            )
        services = precomputed_services(self._store.registry, self._store.project, view=view.name)
        if services:
            raise ConfigError(
                f"Feature view `{view.name}` is part of the precomputed services "
                f"{sorted(services)}, whose vectors a bulk load would leave as they are. Use "
                "`feast materialize`, or load before you set `precompute_online`."
            )


def _is_transformed(view: Any) -> bool:
    return (
        bool(getattr(view, "source_views", None))
        or getattr(view, "feature_transformation", None) is not None
        or bool(getattr(view, "aggregations", None))
        or getattr(view, "batch_source", None) is None
    )


def _s3_settings(config: Any) -> aws.AwsSettings:
    if isinstance(config.offline_store, S3ParquetOfflineStoreConfig):
        return config.offline_store.aws()
    online = config.online_store.aws()
    # That block's endpoint is DynamoDB's.
    return aws.AwsSettings(online.region, None, online.profile, online.role_arn)
