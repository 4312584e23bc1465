"""Writing rows as the CSV and Parquet files that training jobs read."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from feast_dynamo_ext.sagemaker.manifest import OutputFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from feast_dynamo_ext.sagemaker.output import OutputFolder


# Rows written at a time, and rows of a Parquet row group. Fixed, as it shows in the bytes.
BATCH_ROWS = 65_536


class TableFile:
    """A CSV (no header, missing = empty cell) or Parquet file being written.

    Its bytes depend on the rows and on the sizes of the tables given to `write`, not on how their
    memory is laid out.
    """

    def __init__(self, folder: OutputFolder, path: str, schema: pa.Schema) -> None:
        self._path = path
        self._rows = 0
        self._resources = contextlib.ExitStack()
        self._file = self._resources.enter_context(folder.create(path))
        sink = pa.PythonFile(self._file, mode="w")
        self._writer = self._resources.enter_context(_writer(path, sink, schema))

    def write(self, table: pa.Table) -> None:
        """Append rows: at most BATCH_ROWS of them."""
        self._writer.write_table(table.combine_chunks())
        self._rows += table.num_rows

    def __enter__(self) -> TableFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.__exit__(kind, error, trace)

    def written(self) -> OutputFile:
        """What the closed file holds."""
        return OutputFile(self._path, self._file.bytes, self._rows, self._file.sha256)


def _writer(path: str, sink: pa.PythonFile, schema: pa.Schema) -> csv.CSVWriter | pq.ParquetWriter:
    if path.endswith(".csv"):
        return csv.CSVWriter(sink, schema, write_options=csv.WriteOptions(include_header=False))
    # Every choice that shows in the bytes is spelled out: a default may change with pyarrow.
    return pq.ParquetWriter(
        sink,
        schema,
        version="2.6",
        data_page_version="1.0",
        compression="snappy",
        use_dictionary=True,
        write_statistics=True,
    )


def part_sizes(rows: int, parts: int) -> list[list[int]]:
    """Sizes of the batches of each part, where the parts share the rows as evenly as they can."""
    bounds = [rows * part // parts for part in range(parts + 1)]
    return [
        [min(BATCH_ROWS, end - at) for at in range(start, end, BATCH_ROWS)]
        for start, end in itertools.pairwise(bounds)
    ]


def filtered(table: pa.Table, mask: pa.BooleanArray, sizes: Iterable[int]) -> Iterator[pa.Table]:
    """The rows of a mask in tables of the given sizes, which add up to the rows of the mask."""
    windows = _windows(table, mask)
    pending = table.slice(0, 0)
    for size in sizes:
        while pending.num_rows < size:
            pending = pa.concat_tables([pending, next(windows)])
        yield pending.slice(0, size)
        pending = pending.slice(size)


def _windows(table: pa.Table, mask: pa.BooleanArray) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, BATCH_ROWS):
        yield table.slice(start, BATCH_ROWS).filter(mask.slice(start, BATCH_ROWS))
