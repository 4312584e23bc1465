"""Rows on a local disk, parted into bins, so that no more than a bin is in memory at once.

The types are the files' own. Rows of a bin keep the order in which they were added.
"""

from __future__ import annotations

import contextlib
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.errors import OfflineStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from numpy.typing import NDArray


class BinSpool:
    """A context manager, whose end deletes the rows; so does the end of the process."""

    def __init__(
        self,
        schema: pa.Schema,
        bins: int,
        bin_of: Callable[[pa.RecordBatch], NDArray[np.int64]],
        held_bytes: int,
        folder: str | None = None,
    ) -> None:
        """Nothing is on the disk yet.

        Args:
            schema: of the rows; without dictionaries, see `plain_types.plain`.
            bins: how many.
            bin_of: the bin of each row of a batch.
            held_bytes: of rows that are in memory before they are written.
            folder: of the disk; default: the system's folder for temporary files.
        """
        self.rows = 0
        self.spilled_bytes = 0
        self._schema, self._bins, self._bin_of = schema, bins, bin_of
        self._most_held = held_bytes
        self._folder = folder or tempfile.gettempdir()
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        self._parts: dict[int, list[tuple[int, int]]] = {}
        with self._disk_errors():
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
            self._flush()

    def finish(self) -> None:
        """All rows are there.

        Raises: as `add`.
        """
        # The rows of one bin that fit in memory need no disk.
        if self._bins > 1 or self._parts:
            self._flush()

    def read(self, found: int) -> Iterator[pa.RecordBatch]:
        """The rows of a bin, in the order in which they were added."""
        for start, length in self._parts.get(found, []):
            self._file.seek(start)
            data = self._file.read(length)
            if data is None or len(data) < length:
                raise OfflineStoreError(
                    f"Rows that were kept in {self._folder} are gone. Run it again."
                )
            yield pa.ipc.read_record_batch(pa.py_buffer(data), self._schema)
        yield from self._held

    def _flush(self) -> None:
        if not self._held:
            return
        table = pa.Table.from_batches(self._held, self._schema).combine_chunks()
        bins = np.concatenate([self._bin_of(batch) for batch in self._held])
        self._held, self._held_bytes = [], 0
        with self._disk_errors():
            for found, rows in _parted(table, bins, self._bins):
                for batch in rows.to_batches():
                    self._parts.setdefault(found, []).append(self._append(batch.serialize()))

    def _append(self, data: pa.Buffer) -> tuple[int, int]:
        start, rest = self.spilled_bytes, memoryview(data)
        # Reading moved to another place.
        self._file.seek(start)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.spilled_bytes += data.size
        return start, data.size

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OfflineStoreError(
                f"The rows to sort cannot be kept in {self._folder}: {error}. Free space there, "
                "or point `spill_folder` of the offline store to a larger disk."
            ) from error

    def __enter__(self) -> BinSpool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def _parted(
    table: pa.Table, bins: NDArray[np.int64], count: int
) -> Iterator[tuple[int, pa.Table]]:
    if count == 1:
        yield 0, table
        return
    counts = np.bincount(bins, minlength=count)
    ends = counts.cumsum()
    ordered = table.take(pa.array(np.argsort(bins, kind="stable")))
    for found in np.flatnonzero(counts):
        yield int(found), ordered.slice(ends[found] - counts[found], counts[found])
