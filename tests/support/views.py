"""Feature views of customers, as most tests need them."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.data_source import PushSource
from feast.types import Float64, Int64, String

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from feast.data_source import DataSource

CUSTOMER = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
KEY_TYPES = {ValueType.INT64: Int64, ValueType.STRING: String}


def customer_view(
    name: str = "orders",
    source: DataSource | None = None,
    *,
    entities: Sequence[Entity] = (CUSTOMER,),
    ttl: dt.timedelta | None = dt.timedelta(0),
    tags: dict[str, str] | None = None,
    schema: dict[str, Any] | None = None,
    **features: Any,
) -> FeatureView:
    """A view of one feature `total` unless features and their types are given.

    Its source is `no_files` of its name by default. Features whose names are parameters here are
    given as `schema`, with all others.
    """
    types = {entity.join_key: KEY_TYPES[entity.value_type] for entity in entities}
    types |= schema or features or {"total": Float64}
    return FeatureView(
        name=name,
        entities=list(entities),
        schema=[Field(name=column, dtype=dtype) for column, dtype in types.items()],
        source=no_files(name) if source is None else source,
        ttl=ttl,
        tags=tags,
    )


def parquet_files(path: str | Path, time: str = "event_timestamp", **options: Any) -> FileSource:
    """The Parquet files at a path."""
    return FileSource(path=str(path), timestamp_field=time, **options)


def no_files(name: str, **options: Any) -> FileSource:
    """The source of a view that is written to online alone: no file is read."""
    return FileSource(name=f"{name}_source", path="nowhere", timestamp_field="t", **options)


def pushed(name: str, source: DataSource | None = None) -> PushSource:
    """The source `<name>_push` over another, by default over `no_files`."""
    return PushSource(name=f"{name}_push", batch_source=source or no_files(name))
