"""The rows that metrics are of: a source's columns within a range of time, read as often as asked.

Exact percentiles and histograms need more than one pass. What is small is kept in memory after
the first; what is not is read again, so that memory stays that of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from feast_dynamo_ext.offline.times import Axis

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from feast_dynamo_ext.offline.sources.source import ParquetSource

KEPT_BYTES = 64 << 20


class Rows:
    """Some columns of the rows with first <= event time <= last.

    Args:
        source: the files.
        columns: names of the columns.
        event_time: the column of event time; a row without one is in no range.
        first: the first of the range; None for no limit.
        last: the last of it.
        kept_bytes: what may stay in memory between passes.
    """

    def __init__(
        self,
        source: ParquetSource,
        columns: Sequence[str],
        event_time: str,
        first: datetime | None,
        last: datetime | None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._source = source
        self._columns = list(columns)
        self._event_time = event_time
        self._range = (first, last)
        self._kept_bytes = kept_bytes
        self._kept: list[pa.RecordBatch] | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The batches, the same in each pass.

        Raises:
            SourceReadError: a file cannot be read.
        """
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[pa.RecordBatch] = []
        size = 0
        for batch in self._read():
            size += batch.nbytes
            if size <= self._kept_bytes:
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        if size <= self._kept_bytes:
            self._kept = kept

    def _read(self) -> Iterator[pa.RecordBatch]:
        columns = list(dict.fromkeys([*self._columns, self._event_time]))
        for batch in self._source.scan(columns):
            wanted = self._within(batch.column(self._event_time))
            yield batch.select(self._columns).filter(wanted)

    def _within(self, times: pa.Array) -> pa.Array:
        first, last = self._range
        if first is None and last is None:
            return pa.array([True] * len(times), pa.bool_())
        axis = Axis.of(times.type)
        points = axis.cast(times)
        within = points.is_valid().to_numpy(zero_copy_only=False)
        values = points.fill_null(0).to_numpy()
        if first is not None:
            within = within & (values >= axis.first_at_or_after(first))
        if last is not None:
            within = within & (values <= axis.last_at_or_before(last))
        return pa.array(within, pa.bool_())
