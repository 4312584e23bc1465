"""From views of a feature store to bulk loads of their tables.

The one place where bulk load meets the reading side of materialization.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.config import Config

from feast_dynamo_ext import aws
from feast_dynamo_ext.cost.estimate import Cost, Recommendation, Sizes, costs, recommend
from feast_dynamo_ext.dynamo.encoding.requests import EncodedRows
from feast_dynamo_ext.dynamo.layouts.packed import RowSchema
from feast_dynamo_ext.dynamo.precomputed.vectors import precomputed_services
from feast_dynamo_ext.dynamo.tables.apply import table_spec
from feast_dynamo_ext.dynamo.tables.describe import TableClients
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.materialize.bulk_import.bulk_put import is_supported
from feast_dynamo_ext.materialize.bulk_import.import_table import POLL
from feast_dynamo_ext.materialize.bulk_import.load import BulkAws, Target, load, table_exists
from feast_dynamo_ext.materialize.engine import DynamoComputeEngine
from feast_dynamo_ext.materialize.newest_rows import Window
from feast_dynamo_ext.offline_store import S3ParquetOfflineStoreConfig
from feast_dynamo_ext.online_store import DynamoOnlineStoreConfig, how_written

if TYPE_CHECKING:
    from datetime import datetime

    from feast import FeatureStore

    from feast_dynamo_ext.materialize.bulk_import.files import Progress
    from feast_dynamo_ext.materialize.bulk_import.import_table import Poll
    from feast_dynamo_ext.materialize.bulk_import.load import BulkResult, BulkSettings
    from feast_dynamo_ext.materialize.newest_rows import ViewReading


def newest_rows(
    store: FeatureStore, view: Any, start: datetime, end: datetime
) -> Iterator[EncodedRows]:
    """The newest row of each key, those past their ttl left out, by key bucket.

    All rows are encoded, onto a local disk, before the first one is given.

    Args:
        store: the feature store.
        view: a feature view whose rows go into its table as they are.
        start: first event time.
        end: last event time.

    Raises:
        ConfigError: another engine materializes the repo.
        OfflineStoreError: the source cannot be read.
        EntityKeyError: a row without key, or with one that DynamoDB cannot hold.
        ItemTooLargeError: a row over DynamoDB's 400 KB an item.
    """
    reading = _reading(store, view, start, end)
    with reading.spooled(None, frozenset(), _unheard, lambda _rows: None) as spool:
        for bucket in spool.todo:
            yield from spool.blocks(bucket)


def counted_rows(
    store: FeatureStore, view: Any, start: datetime, end: datetime
) -> Iterator[EncodedRows]:
    """The same rows in the order of the files, without going over a disk.

    Raises: as `newest_rows`.
    """
    yield from _reading(store, view, start, end).rows(_unheard)


def _reading(store: FeatureStore, view: Any, start: datetime, end: datetime) -> ViewReading:
    engine: Any = getattr(store.provider, "batch_engine", None)
    if not isinstance(engine, DynamoComputeEngine):
        raise ConfigError(
            "Another engine materializes this repo. In feature_store.yaml, set `provider: "
            "feast_dynamo_ext.DynamoProvider` and no other engine's `type` in batch_engine."
        )
    return engine.reading(view, Window(start, end))


def _unheard(_newest: object) -> None:
    """Counts that nobody asked for."""


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
            RowSchema.from_view(view),
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
        sizes = Sizes.from_batches(
            rows.sizes() for rows in counted_rows(self._store, view, start, end)
        )
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
