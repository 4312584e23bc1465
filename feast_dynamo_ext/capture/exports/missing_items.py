"""Which items of a history a full export does not have any more: deletions that nobody saw.

A full export shows what a table holds at one moment. What its history has alive and it does not
hold was deleted since the last increment, or before the table was made anew: such an item gets a
deletion at that moment, in the commit of the export's rows. Keys and candidates are kept by
DuckDB, which spills what does not fit in memory::

    rows of the export -> keys that are there
    history -> items of no such key -> the newest row of each -> where it is a put: a deletion
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext.capture.values.attribute_types import MOMENT, CapturedColumns
from feast_dynamo_ext.capture.values.change_rows import QUARANTINE, Converted, joined
from feast_dynamo_ext.capture.values.item_values import ItemReader, Misfit
from feast_dynamo_ext.columns import CHANGE, DELETE, MOVE, PUT, WRITTEN
from feast_dynamo_ext.duckdb_connection import Limits, connected, registered
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors
from feast_dynamo_ext.parquet.iceberg.commits import planned
from feast_dynamo_ext.parquet.iceberg.file_rows import FileRows
from feast_dynamo_ext.parquet.iceberg.table_schema import SEQUENCE
from feast_dynamo_ext.retrieval.engines.sql_dialects import DUCKDB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import duckdb

    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle


MEMORY = "512MB"
"""That keys may take before they are spilled."""


@dataclass(frozen=True)
class MissingItems:
    """Finds them for one full export.

    Attributes:
        history: of the history table.
        columns: of the history.
        moment: as of when the export's items count as written, microseconds since 1970.
        spill_folder: where keys are spilled; None for the system's folder for temporary files.
        memory_limit: of DuckDB.
    """

    history: TableHandle
    columns: CapturedColumns
    moment: int
    spill_folder: str | None = None
    memory_limit: str = MEMORY

    def added_to(self, parts: Iterable[Converted]) -> Iterator[Converted]:
        """The records of the export, and then the deletions of what it does not have.

        Raises:
            OfflineStoreError: the history cannot be read, or memory and disk were not enough.
            AwsError: S3 refused.
        """
        if not self._plans(self.history.load()):
            yield from parts
            return
        limits = Limits(self.memory_limit, None, self.spill_folder)
        with connected(limits, "Finding items that are gone") as duck:
            duck.execute("SET TimeZone = 'UTC'")
            with registered(duck, "none_yet", self.columns.of_keys.schema.empty_table()):
                duck.execute("CREATE TEMP TABLE there AS FROM none_yet")
            for part in parts:
                self._note(duck, part)
                yield part
            # As it is by now: reading an export takes long.
            table = self.history.load()
            rows, plans = FileRows(table), self._plans(table)
            with catalog_errors(self.history.address, self.history.name):
                self._find(duck, rows, plans)
                ((count,),) = duck.execute("SELECT count(*) FROM gone").fetchall()
                if count:
                    yield from self._deletions(duck, rows, plans)

    def _plans(self, table: Any) -> list[Any]:
        """Of the files that have rows."""
        with catalog_errors(self.history.address, self.history.name):
            return [plan for plan in planned(table).values() if plan.file.record_count]

    # What is there

    def _note(self, duck: duckdb.DuckDBPyConnection, part: Converted) -> None:
        keys = self.columns.of_keys.schema
        seen = [pa.Table.from_batches([part.rows.select(keys.names)]).cast(keys)]
        if part.quarantine.num_rows:
            # They do not fit, but they are there.
            reader = ItemReader(self.columns.of_keys)
            records = map(json.loads, part.quarantine.column("item").to_pylist())
            found = (reader.values(record.get("Item")) for record in records)
            known = [values for values in found if not isinstance(values, Misfit)]
            seen.append(pa.Table.from_arrays(reader.arrays(known), schema=keys))
        with registered(duck, "seen", pa.concat_tables(seen)):
            duck.execute("INSERT INTO there FROM seen")

    # What is gone

    def _find(self, duck: duckdb.DuckDBPyConnection, rows: FileRows, plans: Iterable[Any]) -> None:
        """Make the table of the puts that are ended: their keys and their sequence."""
        keys = [*self.columns.of_keys.schema.names]
        listed = ", ".join(map(DUCKDB.quoted, keys))
        columns = list(dict.fromkeys([*keys, self.columns.event_time, WRITTEN, CHANGE, SEQUENCE]))
        time_ = DUCKDB.quoted(self.columns.event_time)
        wanted = (
            f"SELECT {listed}, epoch_us({WRITTEN}) AS w, {SEQUENCE} AS q, "  # noqa: S608 - quoted
            f"{CHANGE} = '{PUT}' AS p, epoch_us({time_}) AS t FROM batch "
            f"ANTI JOIN there USING ({listed}) WHERE {CHANGE} <> '{MOVE}'"
        )
        is_first = True
        for plan in plans:
            for batch in rows.batches(plan, columns):
                with registered(duck, "batch", pa.Table.from_batches([batch])):
                    into = (
                        "CREATE TEMP TABLE candidates AS" if is_first else "INSERT INTO candidates"
                    )
                    duck.execute(f"{into} {wanted}")
                is_first = False
        if is_first:
            duck.execute("CREATE TEMP TABLE gone AS FROM there WITH NO DATA")
            return
        # By the order of writing, as readers of the history have it.
        duck.execute(
            f"CREATE TEMP TABLE gone AS SELECT {listed}, max_by(w, row(w, q, p, t)) AS w, "  # noqa: S608 - quoted
            f"max_by(q, row(w, q, p, t)) AS q, max_by(t, row(w, q, p, t)) AS t "
            f"FROM candidates GROUP BY {listed} "
            # What was written since the moment says more than the export does.
            f"HAVING max_by(p, row(w, q, p, t)) AND max(w) <= {self.moment}"
        )

    def _deletions(
        self, duck: duckdb.DuckDBPyConnection, rows: FileRows, plans: Iterable[Any]
    ) -> Iterator[Converted]:
        keys = [*self.columns.of_keys.schema.names]
        same = " AND ".join(f"b.{DUCKDB.quoted(key)} = g.{DUCKDB.quoted(key)}" for key in keys)
        time_ = DUCKDB.quoted(self.columns.event_time)
        ended = (
            f"SELECT b.* FROM batch AS b SEMI JOIN gone AS g ON {same} AND b.{SEQUENCE} = g.q "  # noqa: S608 - quoted
            f"AND epoch_us(b.{WRITTEN}) = g.w AND epoch_us(b.{time_}) = g.t "
            f"AND b.{CHANGE} = '{PUT}'"
        )
        schema = self.columns.history_schema
        for plan in plans:
            for batch in rows.batches(plan):
                with registered(duck, "batch", pa.Table.from_batches([batch])):
                    found = duck.sql(ended).to_arrow_table()
                if not found.num_rows:
                    continue
                arrays = []
                for field in schema:
                    if field.name == WRITTEN:
                        moments = pa.array([self.moment] * found.num_rows, pa.int64())
                        arrays.append(moments.cast(MOMENT))
                    elif field.name == CHANGE:
                        arrays.append(pa.array([DELETE] * found.num_rows))
                    elif field.name in found.column_names and not field.name.startswith("_feast"):
                        arrays.append(found.column(field.name).combine_chunks().cast(field.type))
                    else:
                        arrays.append(pa.nulls(found.num_rows, field.type))
                made = pa.Table.from_arrays(arrays, schema=schema).combine_chunks()
                yield Converted(joined(made.to_batches(), schema), joined([], QUARANTINE), 0)
