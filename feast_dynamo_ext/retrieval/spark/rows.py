"""What a join on Spark found, in its order: block by block to the driver, or as a relation.

Rows are numbered, so where each goes is known beforehand: a block of numbers is one partition, in
which rows are sorted. No pass over them is needed to find bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext.arrow_types import naming
from feast_dynamo_ext.declared import name_of
from feast_dynamo_ext.declared_values import as_declared
from feast_dynamo_ext.parquet.writer import write_file
from feast_dynamo_ext.retrieval.spark.carried import restore
from feast_dynamo_ext.retrieval.spark.failures import raised_again, told
from feast_dynamo_ext.retrieval.spark.relations import streamed
from feast_dynamo_ext.retrieval.spark.spark_view import NUMBER
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.declared import Declared

BLOCK_ROWS = 1 << 20
"""Rows of a partition of the result."""


@dataclass(frozen=True)
class ResultColumn:
    """A column of the result.

    Attributes:
        name: in the result.
        carried: in the relation.
        stored: the type that it had before it travelled.
        declared: what the view declares; None for a column of the entity rows.
        view: the view's name, for errors.
    """

    name: str
    carried: str
    stored: pa.DataType
    declared: Declared | None = None
    view: str = ""

    def made(self, values: pa.Array) -> pa.Array:
        """Values as the result has them.

        Raises:
            ColumnTypeError: a value does not fit the declared type.
        """
        array = restore(values, self.stored)
        if self.declared is None:
            return array
        with naming(self.name, name_of(self.declared), array.type, self.view):
            return as_declared(array, self.declared)


@dataclass(frozen=True)
class Finish:
    """Makes batches of the result of the relation's, on executors.

    Attributes:
        columns: of the result.
        schema: of the result.
    """

    columns: tuple[ResultColumn, ...]
    schema: pa.Schema

    def batch(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """A batch of the result."""
        made = [each.made(rows.column(each.carried)) for each in self.columns]
        arrays = [_cast(array, field.type) for array, field in zip(made, self.schema, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind:
        return array
    if pa.types.is_dictionary(kind):
        array = array.dictionary_encode()
    return array.cast(kind)


def blocks_of(rows: int) -> int:
    """How many partitions `in_blocks` makes of so many rows."""
    return max(1, -(-rows // BLOCK_ROWS))


def in_blocks(spark: Any, relation: Any, rows: int) -> Any:
    """The relation in partitions of `BLOCK_ROWS` rows, each sorted by number, in this order."""
    from pyspark.sql import functions as f

    blocks = blocks_of(rows)
    if blocks == 1:
        return relation.repartition(1).sortWithinPartitions(NUMBER)
    marks = f.array(*[f.lit(mark) for mark in _marks(spark, blocks)])
    block = (f.floor(f.col(NUMBER) / BLOCK_ROWS) + 1).cast("int")
    placed = relation.repartition(blocks, f.element_at(marks, block))
    return placed.sortWithinPartitions(NUMBER)


def _marks(spark: Any, blocks: int) -> Sequence[int]:
    """Of each partition a number that Spark's hash puts there."""
    found: dict[int, int] = {}
    upto = 16 * blocks
    while len(found) < blocks:
        placed = spark.range(0, upto).selectExpr(
            "CAST(id AS INT) AS mark", f"pmod(hash(CAST(id AS INT)), {blocks}) AS block"
        )
        found = {row.block: row.mark for row in placed.collect()}
        upto *= 2
    return [found[block] for block in range(blocks)]


def batches_of(relation: Any, finish: Finish) -> Iterator[pa.RecordBatch]:
    """The rows of `in_blocks`, batch by batch, in order; what executors raise is raised.

    Raises:
        OfflineStoreError: see its subclasses.
    """
    return streamed(relation, finish.batch)


def written_by_executors(
    relation: Any, finish: Finish, blocks: int, folder: str, settings: AwsSettings
) -> list[str]:
    """Write each block of `in_blocks` as a file; a task that is run again writes the same one.

    Args:
        relation: in blocks.
        finish: makes the result's rows.
        blocks: how many there are.
        folder: URI of a new folder, which executors reach.
        settings: how to reach AWS; executors have credentials of their own.

    Returns:
        The files' URIs, whose order is that of the rows.

    Raises:
        OfflineStoreError: see its subclasses; nothing remains of what was written.
        AwsError: S3 refused, likewise.
    """
    names = [f"{folder}/part-{number:06d}.parquet" for number in range(blocks)]
    reach = replace(settings, credentials=None)

    @told
    def written(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        if context is None:
            raise AssertionError("a task has a context")
        name = names[context.partitionId()]
        made = map(finish.batch, batches)
        write_file(files_of(folder, reach), name, finish.schema, made)
        yield pa.RecordBatch.from_pydict({"name": [name]})

    try:
        rows = relation.mapInArrow(written, "name string")
        done = {row.name for row in raised_again(rows.collect)}
    except BaseException:
        files_of(folder, settings).delete(names)
        raise
    return [name for name in names if name in done]
