"""Rows on the local disk by bin: written once, in any order, then read bin by bin."""

from __future__ import annotations

import contextlib
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.errors import OfflineStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import TracebackType

    from numpy.typing import NDArray


@contextlib.contextmanager
def disk_errors(rows: str, folder: str) -> Iterator[None]:
    """Errors of a disk where rows are kept, in words: which rows, where, and what to do.

    Raises:
        OfflineStoreError: in place of OSError.
    """
    try:
        yield
    except OSError as error:
        raise OfflineStoreError(
            f"{rows} cannot be kept in {folder}: {error}. Free space there, or point "
            "`spill_folder` of the offline store to a larger disk."
        ) from error


class BinSpool:
    """A context manager, whose end deletes the rows; so does the end of the process.

    Attributes:
        schema: of the rows.
        rows: that were added.
        counts: of these, rows of each bin that are not in memory any more, kept or not.
    """

    def __init__(
        self,
        schema: pa.Schema,
        bins: int,
        bin_of: Callable[[pa.RecordBatch], NDArray[np.int64]],
        held_bytes: int,
        folder: str | None = None,
        *,
        purpose: str,
        dropped: Collection[int] = (),
    ) -> None:
        """Nothing is on the disk yet.

        Args:
            schema: of the rows; without dictionaries, which differ from batch to batch.
            bins: number of bins.
            bin_of: the bin of each row of a batch; not called where there is one bin.
            held_bytes: of rows that are in memory before they are written.
            folder: of the disk; default: the system's folder for temporary files.
            purpose: what is done with the rows, for messages.
            dropped: bins whose rows are counted and not kept.
        """
        self.rows = 0
        self.counts = np.zeros(bins, dtype=np.int64)
        self._spilled_bytes = 0
        self.schema, self._bin_of = schema, bin_of
        self._is_kept = ~np.isin(np.arange(bins), list(dropped))
        self._most_held = held_bytes
        self._folder, self._purpose = folder or tempfile.gettempdir(), purpose
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        self._parts: dict[int, list[tuple[int, int]]] = {}
        with disk_errors(f"The rows to {self._purpose}", self._folder):
            # Without a name: nothing is left of it after a kill -9. Unbuffered: closing it never
            # writes what a full disk has not taken.
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115

    def add(self, batch: pa.RecordBatch) -> None:
        """Keep rows.

        Raises:
            OfflineStoreError: the disk is full.
        """
        self.rows += batch.num_rows
        self._held.append(batch)
        self._held_bytes += batch.nbytes
        if self._held_bytes >= self._most_held:
            self.flush()

    def finish(self) -> None:
        """All rows are there.

        Raises: as `add`.
        """
        # The rows of one bin that fit in memory need no disk.
        if len(self.counts) > 1 or self._parts:
            self.flush()

    def flush(self) -> None:
        """Write all rows that are in memory.

        Raises: as `add`.
        """
        if not self._held:
            return
        table = pa.Table.from_batches(self._held, self.schema).combine_chunks()
        self._held, self._held_bytes = [], 0
        with disk_errors(f"The rows to {self._purpose}", self._folder):
            for found, rows in self._by_bin(table):
                for batch in rows.to_batches():
                    self._parts.setdefault(found, []).append(self._append(batch.serialize()))

    def read(self, found: int) -> Iterator[pa.RecordBatch]:
        """The rows of a bin, in the order in which they were added."""
        for start, length in self._parts.get(found, []):
            self._file.seek(start)
            data = self._file.read(length)
            if data is None or len(data) < length:
                raise OfflineStoreError(
                    f"Rows that were kept in {self._folder} are gone. Run it again."
                )
            yield pa.ipc.read_record_batch(pa.py_buffer(data), self.schema)
        yield from self._held

    def close(self) -> None:
        """Delete the rows."""
        self._file.close()

    def _by_bin(self, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        if len(self.counts) == 1:
            self.counts += table.num_rows
            if self._is_kept[0]:
                yield 0, table
            return
        if not table.num_rows:
            return
        bins = np.concatenate([self._bin_of(batch) for batch in table.to_batches()])
        counts = np.bincount(bins, minlength=len(self.counts))
        self.counts += counts
        ends = counts.cumsum()
        ordered = table.take(pa.array(np.argsort(bins, kind="stable")))
        for found in np.flatnonzero((counts > 0) & self._is_kept):
            yield int(found), ordered.slice(ends[found] - counts[found], counts[found])

    def _append(self, data: pa.Buffer) -> tuple[int, int]:
        """Where in the file the data is now: first byte and length."""
        start, rest = self._spilled_bytes, memoryview(data)
        # Reading moved to another place.
        self._file.seek(start)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._spilled_bytes += data.size
        return start, data.size

    def __enter__(self) -> BinSpool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
