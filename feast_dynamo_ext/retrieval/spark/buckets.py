"""What a window of Spark does not say, on Spark: each bucket of keys by the code of one machine.

That are lists and windows of events, items of captured tables that were deleted, and tables in
which what rows hold decides between equal ones. Rows and entity rows of a key meet in one
partition, entity rows first. A task writes its rows to its own disk as they come, in the order of
the history, and then joins its entity rows with them as with a small history::

    parts --> keys, 0, n, columns --+
    entity rows --> keys, 1, n, ----+--> by keys --> a file of the task --> a join of one machine

So lists, aggregates, late rows and ties are those of one machine, and a task holds in memory what
`TASK_BYTES` says.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feast_dynamo_ext.arrow_types import one_array, without_dictionary
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.parquet.listing import Place, TableFiles
from feast_dynamo_ext.retrieval.engines.one_pass import OnePassEngine
from feast_dynamo_ext.retrieval.inputs import EntityRows
from feast_dynamo_ext.retrieval.join import read_features
from feast_dynamo_ext.retrieval.spark.carried import carried_type, carry, restore, spark_type
from feast_dynamo_ext.retrieval.spark.failures import told
from feast_dynamo_ext.retrieval.spark.relations import ddl, in_chunks, read_by_executors
from feast_dynamo_ext.retrieval.spark.source_parts import SourceHead, SourcePart
from feast_dynamo_ext.retrieval.spark.spark_view import NUMBER, OF_ENTITY, OF_HISTORY
from feast_dynamo_ext.retrieval.windows.windows_join import derived_features

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.plan import ViewPlan
    from feast_dynamo_ext.retrieval.spark.spark_view import Parts, ViewOnSpark

TASK_BYTES = 256 << 20
"""Of events that a task holds in memory; of more it makes several passes over its file."""

BATCH_ROWS = 1 << 14
"""Rows of a task's result that go on together."""

GROUP_ROWS = 1 << 17
"""Rows of a row group of a task's file."""


@dataclass(frozen=True)
class Bucketed:
    """A view of a join whose keys are joined bucket by bucket.

    Attributes:
        one: the view.
        entities: the entity rows.
    """

    one: ViewOnSpark
    entities: EntityRows

    @property
    def _columns(self) -> list[str]:
        """Columns of the source that are needed."""
        view, source = self.one.view, self.one.history.source
        wanted = [*view.narrow_columns, *view.feature_columns, *sorted(source.internal)]
        if view.tombstones is not None:
            wanted.append(view.tombstones.written)
        if not self.one.is_decided:  # by what rows hold
            wanted += source.schema.names
        return list(dict.fromkeys(wanted))

    def found(self, spark: Any) -> Any:
        """Each entity row's number, and the columns v0_0, v0_1 ... of what is computed for it."""
        from pyspark.sql import functions as f

        keys = [(f"k{at}", spark_type(kind)) for at, kind in enumerate(self.one.key_types)]
        schema = self.one.history.source.schema
        kinds = [without_dictionary(schema.field(name).type) for name in self._columns]
        columns = [*keys, ("s", "tinyint"), (NUMBER, "bigint")]
        columns += [(f"h{at}", spark_type(carried_type(kind))) for at, kind in enumerate(kinds)]
        parts, names = self.one.for_executors(), tuple(self._columns)
        rows = read_by_executors(spark, len(parts.parts), RowReader(parts, names), columns)
        met = rows.unionByName(self._questions(spark), True)
        met = met.repartition(*[f.col(name) for name, _ in keys])
        met = met.sortWithinPartitions(f.col("s").desc(), f.col(NUMBER))
        task = BucketTask(
            self.one.view,
            pa.schema(list(zip(names, kinds, strict=True))),
            self._table(),
            self._own.schema,
            self.entities.event_time,
            is_known=self.one.match.known is not None,
        )
        made = [(NUMBER, "bigint")]
        made += [
            (f"v{self.one.at}_{place}", spark_type(carried_type(kind)))
            for place, kind in enumerate(self.one.outputs)
        ]
        names_made = [name for name, _ in made]
        return met.mapInArrow(told(partial(_named, task, names_made)), ddl(made))

    def _table(self) -> TableFiles | None:
        """What a table's log says of which row wins; of a task's file there is no more to say."""
        table = self.one.head.table
        if table is None:
            return None
        return TableFiles(
            (), pa.schema([]), {}, ties=table.ties, internal=table.internal, keys=table.keys
        )

    @property
    def _own(self) -> pa.Table:
        """The entity rows' columns that the view needs."""
        names = [ours for ours, _ in self.one.view.keys]
        return self.entities.table.select(list(dict.fromkeys([*names, self.entities.event_time])))

    def _questions(self, spark: Any) -> Any:
        match, own = self.one.match, self._own
        rows = len(match.latest)
        columns: dict[str, Any] = {f"k{at}": key for at, key in enumerate(match.keys)}
        columns["s"] = pa.array(np.full(rows, OF_ENTITY, dtype=np.int8))
        columns[NUMBER] = pa.array(np.arange(rows))
        columns |= {f"e{at}": column for at, column in enumerate(own.columns)}
        return in_chunks(spark, pa.table(columns))


@dataclass(frozen=True)
class RowReader:
    """Makes rows of a view's parts, in all columns that are needed, on executors.

    Attributes:
        parts: the view's history.
        columns: of the source.
    """

    parts: Parts
    columns: tuple[str, ...]

    def __call__(self, number: int) -> Iterator[pa.RecordBatch]:
        """The rows of a part that have keys.

        Raises: as `Parts.each`.
        """
        return self.parts.each(number, self._made, self.columns)

    def _made(self, narrow: pa.RecordBatch, start: int) -> pa.RecordBatch:
        keys, rows = max(1, len(self.parts.view.keys)), narrow.num_rows
        columns = {f"k{at}": carry(narrow.column(f"k{at}")) for at in range(keys)}
        counts = reduce(pc.and_, (each.is_valid() for each in columns.values()))
        columns["s"] = pa.array(np.full(rows, OF_HISTORY, dtype=np.int8))
        columns[NUMBER] = pa.array(np.arange(start, start + rows))
        for at in range(len(self.columns)):
            columns[f"h{at}"] = carry(narrow.column(f"v{at}"))
        made = pa.RecordBatch.from_arrays([*columns.values()], names=[*columns])
        return made if pc.all(counts).as_py() else made.filter(counts)


@dataclass(frozen=True)
class BucketTask:
    """Joins the entity rows of some keys with a view, on executors.

    Attributes:
        view: its plan.
        schema: of the rows of history.
        table: see `Bucketed._table`.
        own: schema of the entity rows.
        event_time: name of the entity rows' time.
        is_known: whether only what was created by the entity row's time counts.
    """

    view: ViewPlan
    schema: pa.Schema
    table: TableFiles | None
    own: pa.Schema
    event_time: str
    is_known: bool

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[list[pa.Array]]:
        """The entity rows' numbers and the columns of their features, in the types that travel.

        Raises:
            ColumnTypeError: a value does not fit, or a sum is beyond 64 bits.
        """
        questions: list[pa.RecordBatch] = []
        with tempfile.TemporaryDirectory(prefix="feast-dynamo-") as folder:
            rows = self._written(batches, questions, Path(folder) / "rows.parquet")
            if not questions:
                return
            asked = pa.Table.from_batches(questions)
            entities = self._entities(asked)
            found = self._joined(self._source(folder, rows), entities, folder)
            numbers = one_array(asked.column(NUMBER))
            for start in range(0, asked.num_rows, BATCH_ROWS):
                columns = [carry(column.slice(start, BATCH_ROWS)) for column in found]
                yield [numbers.slice(start, BATCH_ROWS), *columns]

    def _joined(
        self, source: ParquetSource, entities: EntityRows, folder: str
    ) -> list[pa.Array | pa.ChunkedArray]:
        view, limits = self.view, Limits(None, 1, folder)
        if view.derived is not None:
            return derived_features(
                view,
                source,
                entities,
                limits,
                read_features,
                known=self.is_known,
                threads=1,
                most_bytes=TASK_BYTES,
            )
        engine = OnePassEngine(limits.memory_limit, limits.threads, limits.spill_folder)
        match = engine.matcher(entities, created_by_entity_time=self.is_known)
        names = view.feature_columns
        found = read_features(source, names, match(view, source, 1), 1)
        return [found[name] for name in names]

    def _written(
        self, batches: Iterator[pa.RecordBatch], questions: list[pa.RecordBatch], path: Path
    ) -> int:
        """Write the rows of history, and keep the entity rows; the number of the first."""
        held: list[pa.RecordBatch] = []
        count = written = 0
        with pq.ParquetWriter(path, self.schema, compression="lz4") as writer:
            for batch in batches:
                is_question = pc.equal(batch.column("s"), OF_ENTITY)
                asked = batch.filter(is_question)
                if asked.num_rows:
                    questions.append(asked)
                rows = batch.filter(pc.invert(is_question))
                if rows.num_rows and questions:  # without entity rows nobody asks
                    held.append(self._row_batch(rows))
                    count += rows.num_rows
                if count >= GROUP_ROWS:
                    writer.write_table(pa.Table.from_batches(held, self.schema))
                    held, count, written = [], 0, written + count
            writer.write_table(pa.Table.from_batches(held, self.schema))
        return written + count

    def _row_batch(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        arrays = [restore(rows.column(f"h{at}"), each.type) for at, each in enumerate(self.schema)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _entities(self, asked: pa.Table) -> EntityRows:
        columns = [
            restore(one_array(asked.column(f"e{at}")), each.type)
            for at, each in enumerate(self.own)
        ]
        return EntityRows.of_checked(pa.table(columns, names=self.own.names), self.event_time)

    def _source(self, folder: str, rows: int) -> ParquetSource:
        files = Place.from_uri(folder, AwsSettings()).files(self.view.view)
        groups = pq.read_metadata(Path(folder) / "rows.parquet").num_row_groups
        part = SourcePart(files, (None,), (tuple(range(groups)),), 0, rows)
        return part.open(
            SourceHead(folder, AwsSettings(), self.schema, {}, self.table, frozenset())
        )


def _named(
    task: BucketTask, names: list[str], batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    for columns in task(batches):
        yield pa.RecordBatch.from_arrays(columns, names=names)
