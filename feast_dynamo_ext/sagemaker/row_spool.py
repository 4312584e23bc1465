"""The rows of a join, kept on the local disk: written once, read as often as a build needs.

A file without a name, in Arrow's IPC stream, which only this process can reach: nothing is left
of it when it ends, by whatever means. Rows come back in blocks of one size, so that what is made
of them does not depend on how the join cut its batches. Columns of categories are kept with a
dictionary per block, so that they are hashed once and not in each pass.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import pyarrow as pa

from feast_dynamo_ext.arrow_types import VIEW_TO_PLAIN, map_type, plain, plain_type
from feast_dynamo_ext.exact import without_nan
from feast_dynamo_ext.parquet.spill import disk_errors
from feast_dynamo_ext.sagemaker.fitting import TrainRows

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

BATCH_ROWS = 65_536
"""Rows of a block, and of a row group of Parquet. Fixed, as it shows in the bytes."""


class Blocks:
    """Cuts batches of any size into blocks of BATCH_ROWS."""

    def __init__(self, schema: pa.Schema) -> None:
        """Nothing was added yet.

        Args:
            schema: of the batches; without dictionaries, which differ from batch to batch.
        """
        self._schema, self._rows = schema, 0
        self._held: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Add rows; the blocks that are full with them."""
        start = 0
        while self._rows + batch.num_rows - start >= BATCH_ROWS:
            taken = BATCH_ROWS - self._rows
            self._held.append(batch.slice(start, taken))
            yield self._block()
            start += taken
        if start < batch.num_rows:
            self._held.append(batch.slice(start))
            self._rows += batch.num_rows - start

    def rest(self) -> Iterator[pa.RecordBatch]:
        """The last block, if any rows are left."""
        if self._rows:
            yield self._block()

    def _block(self) -> pa.RecordBatch:
        table = pa.Table.from_batches(self._held, self._schema).combine_chunks()
        self._held, self._rows = [], 0
        return table.to_batches()[0]


class RowSpool:
    """A context manager, whose end deletes the rows; so does the end of the process.

    Attributes:
        schema: of the rows as they were given, without dictionaries and pandas' metadata.
        rows: number of rows that were added.
    """

    def __init__(
        self, schema: pa.Schema, categories: Collection[str] = (), folder: str | None = None
    ) -> None:
        """Nothing is on the disk yet.

        Args:
            schema: of the rows.
            categories: columns that are kept with a dictionary.
            folder: of the disk; default: the system's folder for temporary files.
        """
        self.schema = pa.schema([pa.field(each.name, _kept_type(each.type)) for each in schema])
        self.rows = 0
        self._categories = frozenset(categories)
        self._stored = pa.schema(
            [
                pa.field(each.name, pa.dictionary(pa.int32(), each.type))
                if each.name in self._categories
                else each
                for each in self.schema
            ]
        )
        self._folder = folder or tempfile.gettempdir()
        with disk_errors("The rows of a training set", self._folder):
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - see `close`

    def fill(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Keep all rows; each block of them as it is kept, which the caller may look at.

        Raises:
            OfflineStoreError: the disk is full.
        """
        blocks = Blocks(self.schema)
        options = pa.ipc.IpcWriteOptions(unify_dictionaries=False)
        sink = pa.PythonFile(self._file, mode="w")
        writer = pa.ipc.new_stream(sink, self._stored, options=options)
        for batch in batches:
            yield from self._written(writer, blocks.add(self._plain(batch)))
        yield from self._written(writer, blocks.rest())
        with disk_errors("The rows of a training set", self._folder):
            writer.close()
            self._file.flush()

    def _written(
        self, writer: pa.RecordBatchWriter, blocks: Iterator[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        for block in blocks:
            with disk_errors("The rows of a training set", self._folder):
                writer.write_batch(self._encoded(block))
            self.rows += block.num_rows
            yield block

    def read(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows from the first on, block by block, with the place of each block's first row.

        Args:
            columns: names of the columns, in any order; None for all of them.
        """
        fields = sorted(self._stored.get_field_index(name) for name in columns or ())
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        self._file.seek(0)
        first = 0
        with pa.ipc.open_stream(pa.PythonFile(self._file, mode="r"), options=options) as reader:
            for block in reader:
                yield first, block
                first += block.num_rows

    def train_rows(
        self, columns: Sequence[str], assigned: NDArray[np.int8]
    ) -> Iterator[TrainRows]:
        """The rows that train, of some columns.

        Args:
            columns: names of the columns.
            assigned: what the split assigned to each row.
        """
        for first, block in self.read(columns):
            yield TrainRows(block, assigned[first : first + block.num_rows])

    def close(self) -> None:
        """Delete the rows."""
        self._file.close()

    def _plain(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = [
            without_nan(plain(batch.column(each.name))).cast(each.type) for each in self.schema
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _encoded(self, block: pa.RecordBatch) -> pa.RecordBatch:
        if not self._categories:
            return block
        columns = [
            column.dictionary_encode() if name in self._categories else column
            for name, column in zip(block.schema.names, block.columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._stored)

    def __enter__(self) -> RowSpool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _kept_type(kind: pa.DataType) -> pa.DataType:
    kind = plain_type(kind)
    # Arrow sums no float16, and a float32 holds each of them.
    return map_type(
        kind,
        lambda each: pa.float32() if pa.types.is_float16(each) else VIEW_TO_PLAIN.get(each, each),
    )
