"""The rows that a bulk load takes: those that `feast materialize` would write.

The one place where bulk load meets the reading side of materialization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.materialize.engine import DynamoComputeEngine
from feast_dynamo_ext.materialize.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from feast import FeatureStore

    from feast_dynamo_ext.dynamo.encoding.items import EncodedRows
    from feast_dynamo_ext.materialize.reading import ViewReading


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
