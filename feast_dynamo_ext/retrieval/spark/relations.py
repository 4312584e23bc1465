"""Arrow's rows as relations of Spark, and back: whole batches, packed, go either way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext.retrieval.spark.carried import carry, spark_type
from feast_dynamo_ext.retrieval.spark.failures import raised_again, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHUNK_ROWS = 1 << 16
"""Rows that go to Spark together."""

PACKED = "rows"
"""The column of packed batches."""


def read_by_executors(
    spark: Any,
    parts: int,
    work: Callable[[int], Iterator[pa.RecordBatch]],
    columns: Sequence[tuple[str, str]],
) -> Any:
    """A relation of which each part is made by a task of its own.

    Args:
        spark: the session.
        parts: how many.
        work: makes a part, given its number.
        columns: names and Spark's types.
    """

    @told
    def made(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from work(number)

    return spark.range(0, parts, 1, max(1, parts)).mapInArrow(made, ddl(columns))


def ddl(columns: Sequence[tuple[str, str]]) -> str:
    """A schema as Spark reads it, of names of our own."""
    return ", ".join(f"{name} {kind}" for name, kind in columns)


def in_chunks(spark: Any, table: pa.Table) -> Any:
    """Rows of this process as a relation, in the types in which they travel."""
    carried = pa.table({name: carry(table.column(name)) for name in table.column_names})
    chunks = [
        (_packed(carried, start, CHUNK_ROWS),) for start in range(0, carried.num_rows, CHUNK_ROWS)
    ]
    columns = [(field.name, spark_type(field.type)) for field in carried.schema]

    @told
    def unpacked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for chunk in batch.column(0):
                yield from pa.ipc.open_stream(chunk.as_buffer())

    relation = spark.createDataFrame(chunks, "chunk binary")
    return relation.mapInArrow(unpacked, ddl(columns))


def _packed(table: pa.Table, start: int = 0, rows: int | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.slice(start, rows).combine_chunks())
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def packed_batches(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch as one value of the column `PACKED`."""
    packed = _packed(pa.Table.from_batches([batch]))
    return pa.RecordBatch.from_arrays([pa.array([packed], pa.binary())], [PACKED])


def streamed(
    relation: Any, made: Callable[[pa.RecordBatch], pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """What executors make of a relation's batches, partition by partition.

    Args:
        relation: of Spark.
        made: makes a batch, in any of Arrow's types.

    Raises:
        FeastDynamoError: `made` raised it.
        OfflineStoreError: Spark failed.
    """

    @told
    def packed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield packed_batches(made(batch))

    rows = relation.mapInArrow(packed, f"{PACKED} binary")
    for row in raised_again(lambda: rows.toLocalIterator(prefetchPartitions=True)):
        yield from pa.ipc.open_stream(pa.py_buffer(row[0]))


def is_spark_frame(frame: Any) -> bool:
    """Whether an object is a DataFrame of Spark, without importing Spark."""
    return type(frame).__module__.startswith("pyspark.") and hasattr(frame, "mapInArrow")


def collected(frame: Any) -> pa.Table:
    """The rows of a DataFrame of Spark, in Arrow's types.

    Raises:
        OfflineStoreError: Spark failed.
    """
    from pyspark.sql.pandas.types import to_arrow_schema

    batches = list(streamed(frame, _as_it_is))
    schema = batches[0].schema if batches else to_arrow_schema(frame.schema)
    return pa.Table.from_batches(batches, schema)


def _as_it_is(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch
