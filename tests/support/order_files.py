"""Orders of customers as one view of Parquet files, and what a retrieval says of it."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.types import from_value_type
from views import CUSTOMER

if TYPE_CHECKING:
    from pathlib import Path

TIME = pa.timestamp("us", "UTC")


def day(number: int, hour: int = 0) -> dt.datetime:
    """A day of January 2026."""
    return dt.datetime(2026, 1, number, hour, tzinfo=dt.timezone.utc)


def orders(path: Path, entity: Entity = CUSTOMER, **features: Any) -> FeatureView:
    """A view `orders` of the Parquet files at a path, with event times in `t`."""
    key = {entity.join_key: from_value_type(entity.value_type)}
    return FeatureView(
        name="orders",
        entities=[entity],
        schema=[Field(name=name, dtype=dtype) for name, dtype in {**key, **features}.items()],
        source=FileSource(name="orders_files", path=str(path), timestamp_field="t"),
        ttl=dt.timedelta(0),
        online=False,
    )


def write(path: Path, **columns: Any) -> Path:
    """A file of rows of 1 January; the customers are numbered from 1 if not given."""
    rows = len(next(iter(columns.values())))
    given = {
        "cid": pa.array(range(1, rows + 1), pa.int64()),
        "t": pa.array([day(1)] * rows, TIME),
        **columns,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(given), path)
    return path


def customers(*cids: Any, day_number: int = 3, hour: int = 0, kind: Any = None) -> pa.Table:
    """Entity rows of one time; their keys are int64 unless a type is given."""
    times = pa.array([day(day_number, hour)] * len(cids), TIME)
    return pa.table({"cid": pa.array(cids, kind or pa.int64()), "event_timestamp": times})


def history(store: FeatureStore, entities: Any, *features: str) -> Any:
    """The values of a feature for each entity row; of several features, a tuple of lists."""
    refs = [f"orders:{name}" for name in features]
    answer = store.get_historical_features(entities, refs).to_arrow()
    values = tuple(answer.column(name).to_pylist() for name in features)
    return values[0] if len(features) == 1 else values
