"""What must be the same for the finished parts of a killed run to count in the next one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb

from feast_dynamo_ext.dynamo.entity_keys import join_keys
from feast_dynamo_ext.dynamo.item import RowSchema
from feast_dynamo_ext.dynamo.views import ttl_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

BUCKETING = 1
"""Raise it when keys fall into other buckets than before, or rows are packed differently: the
buckets that an older version finished would be others. DuckDB's hash may change with its
version."""


@dataclass(frozen=True)
class RunIdentity:
    """One window of one view, as it is now.

    Attributes:
        start_us: first event time, microseconds since 1970 UTC.
        end_us: last event time, the same.
        source: fingerprint of the source's files, see `source_fingerprint`.
        view: fingerprint of the view's definition, see `view_fingerprint`.
        write_mode: `newest_wins` or `overwrite`.
    """

    start_us: int
    end_us: int
    source: str
    view: str
    write_mode: str


def source_fingerprint(files: Iterable[tuple[str, int, str | int]]) -> str:
    """The SHA-256 of a source's files, whatever their order.

    Args:
        files: (path, bytes, version) of each: S3's ETag, or the time of the last change in
            nanoseconds, which S3 tells in whole seconds.
    """
    return _sha256(sorted(files))


def view_fingerprint(view: Any) -> str:
    """The SHA-256 of what a view's definition says of its rows and items."""
    source = view.batch_source
    kinds = {column.name: column.dtype.to_value_type().name for column in view.entity_columns}
    return _sha256(
        {
            "bucketing": [BUCKETING, duckdb.__version__],
            "schema": RowSchema.of(view).text,
            "keys": [(name, kinds[name]) for name in join_keys(view)],
            "ttl_s": ttl_seconds(view),
            "event_time": source.timestamp_field,
            "created_time": source.created_timestamp_column,
            "field_mapping": source.field_mapping,
        }
    )


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
