"""Histories as Parquet files, for tests of what reads them. Times are nanoseconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FileSource
from repos import repo_config

from feast_dynamo_ext.parquet.source import ParquetSource
from feast_dynamo_ext.retrieval.plan import plan_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from feast_dynamo_ext.retrieval.plan import ViewPlan

US = 1_000
HOUR = 3_600 * 10**9
DAY = 24 * HOUR
START_NS = 1_767_225_600 * 10**9
"""2026-01-01 00:00 UTC."""

MICROSECONDS, INTEGER = pa.timestamp("us", "UTC"), pa.int64()


@dataclass(frozen=True)
class Row:
    """One row: join keys, event time and created time in ns, and a value that tells it apart."""

    keys: tuple[Any, ...]
    event: int | None
    created: int | None
    value: int


@dataclass(frozen=True)
class Form:
    """How a file keeps its rows."""

    event: pa.DataType = MICROSECONDS
    created: pa.DataType | None = MICROSECONDS
    keys: tuple[pa.DataType, ...] = (INTEGER,)
    options: tuple[tuple[str, Any], ...] = ()


def write(path: Path, rows: Sequence[Row], form: Form) -> None:
    """Rows as a file with the columns k0, k1 ..., event, created and value."""
    columns = {
        f"k{at}": pa.array([row.keys[at] for row in rows], kind)
        for at, kind in enumerate(form.keys)
    }
    columns["event"] = _times([row.event for row in rows], form.event)
    if form.created is not None:
        columns["created"] = _times([row.created for row in rows], form.created)
    columns["value"] = pa.array([row.value for row in rows], pa.int64())
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **{"row_group_size": 4, **dict(form.options)})


def _times(nanoseconds: list[int | None], kind: pa.DataType) -> pa.Array:
    zone = getattr(kind, "tz", None)
    return pa.array(nanoseconds, pa.int64()).cast(pa.timestamp("ns", zone)).cast(kind)


def open_source(folder: Path) -> ParquetSource:
    """What is there now."""
    return ParquetSource.open(
        FileSource(path=str(folder), timestamp_field="event"), repo_config(folder.parent)
    )


def plan(keys: Sequence[str] = ("k0",), created: str | None = "created") -> ViewPlan:
    """The plan of a view of these columns."""
    source = FileSource(name="history", path="history", timestamp_field="event")
    return plan_rows(source, keys, ["value"], "event", created)
