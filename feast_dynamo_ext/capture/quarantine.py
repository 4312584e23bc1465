"""Records in quarantine, tried again after the schema was mended."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.capture.history import Look, without
from feast_dynamo_ext.capture.values.change_rows import QUARANTINE, RecordReader
from feast_dynamo_ext.columns import CHANGE_ID, WRITTEN
from feast_dynamo_ext.errors import SourceNotFoundError
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors
from feast_dynamo_ext.parquet.iceberg.ledger import COMMIT_ID
from feast_dynamo_ext.timestamps import EPOCH, MICROSECOND

if TYPE_CHECKING:
    from feast_dynamo_ext.capture.history import CapturedHistory
    from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns


AT_ONCE = 50_000
"""Records that are tried and committed together."""


@dataclass(frozen=True)
class Retried:
    """What became of records in quarantine.

    Attributes:
        taken: that fit now, and are in the history.
        left: that still do not fit.
        reasons: why, by (attribute, reason), with their number.
    """

    taken: int
    left: int
    reasons: dict[tuple[str, str], int]


def retry(history: CapturedHistory, columns: CapturedColumns) -> Retried:
    """Try records in quarantine again; those that fit now become rows of the history.

    Rows are committed first, then the records are taken out of quarantine: where a run ends
    between, the next one knows the commit by its id.

    Args:
        history: of the source.
        columns: as they are declared now.

    Raises:
        CaptureError: the table was made anew with another key.
        OfflineStoreError: a table cannot be read or changed.
    """
    taken = left = 0
    reasons: dict[tuple[str, str], int] = {}
    try:
        history.check_key(columns.keys)
        state = history.state()
        table = history.quarantine.load()
    except SourceNotFoundError:
        return Retried(0, 0, {})
    reader = RecordReader(columns)
    with catalog_errors(history.quarantine.address, history.quarantine.name):
        there = [name for name in QUARANTINE.names if name in table.schema().column_names]
        found = table.scan(selected_fields=tuple(there)).to_arrow()
    found = _in_order(found)
    for batch in found.to_batches(AT_ONCE):
        rows = batch.to_pylist()
        origins = [row["origin"] for row in rows]
        converted = reader.converted(
            [orjson.loads(row["item"]) for row in rows],
            [(row[WRITTEN] - EPOCH) // MICROSECOND for row in rows],
            origins,
            [row.get(CHANGE_ID) for row in rows],
        )
        still = {row["origin"] for row in converted.quarantine.to_pylist()}
        for row in converted.quarantine.to_pylist():
            key = (row["attribute"], row["reason"])
            reasons[key] = reasons.get(key, 0) + 1
        fit = [origin for origin in origins if origin not in still]
        left += len(still)
        if fit:
            commit_id = hashlib.sha256("\n".join(fit).encode()).hexdigest()
            rows, none = _not_there(history, converted.rows), QUARANTINE.empty_table()
            # The state stays; where somebody was erased since it was read, this is refused.
            history.add(rows, none, state, state, f"retry/{commit_id}")
            _take_out(history, fit, commit_id)
            taken += len(fit)
    return Retried(taken, left, reasons)


def _in_order(found: pa.Table) -> pa.Table:
    """Records as they were written: numbers of a stream at the end of an origin ascend."""
    lengths = pc.utf8_length(found["origin"])
    order = [(WRITTEN, "ascending"), ("_length", "ascending"), ("origin", "ascending")]
    return found.append_column("_length", lengths).sort_by(order).drop_columns("_length")


def _not_there(history: CapturedHistory, rows: pa.RecordBatch) -> pa.Table:
    """Rows but for those of changes that a stream brought once more, after the schema fitted."""
    table = pa.Table.from_batches([rows])
    look = Look.from_changes(table)
    if look is None:
        return table
    with catalog_errors(history.handle.address, history.handle.name):
        known = look.ids_in(history.handle.load())
    return without(known, table)


def _take_out(history: CapturedHistory, origins: list[str], commit_id: str) -> None:
    """Delete records from quarantine."""
    from pyiceberg.expressions import In

    are_taken: Any = In("origin", origins)  # type: ignore[call-arg,arg-type]

    def work(table: Any) -> None:
        table.delete(are_taken, snapshot_properties={COMMIT_ID: commit_id})

    history.quarantine.attempt(work, commit_id)
