"""Which items of a history a full export does not have any more: deletions that nobody saw.

A full export shows what a table holds at one moment. What its history has alive and it does not
hold was deleted since the last increment, or before the table was made anew: such an item gets a
deletion at that moment, in the commit of the export's rows. Keys and candidates are kept by
DuckDB, which spills what does not fit in memory::

    rows of the export -> keys that are there
    history -> items of no such key -> the newest row of each -> where it is a put: a deletion
    quarantine -> items of no such key -> where no row is newer: a deletion of what may be mended
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext.capture.exports.ended_items import (
    ITEM,
    WHEN,
    ends,
    quarantined_ends,
    quarantined_puts,
)
from feast_dynamo_ext.capture.values.change_rows import QUARANTINE, Converted, joined
from feast_dynamo_ext.capture.values.item_values import ItemReader, Misfit
from feast_dynamo_ext.columns import CHANGE, MOVE, PUT, WRITTEN
from feast_dynamo_ext.duckdb_connection import Limits, connected, registered
from feast_dynamo_ext.errors import SourceNotFoundError
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors
from feast_dynamo_ext.parquet.iceberg.commits import planned
from feast_dynamo_ext.parquet.iceberg.file_rows import FileRows
from feast_dynamo_ext.parquet.iceberg.table_schema import SEQUENCE
from feast_dynamo_ext.retrieval.engines.sql_dialects import DUCKDB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import duckdb

    from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns
    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle


MEMORY = "512MB"
"""That keys may take before they are spilled."""

RECORDS = 10_000
"""Of the quarantine, of which rows are made at once."""


@dataclass(frozen=True)
class MissingItems:
    """Finds them for one full export.

    Attributes:
        history: of the history table.
        quarantine: of the table of what did not fit; it need not be there.
        columns: of the history.
        moment: as of when the export's items count as written, microseconds since 1970.
        spill_folder: where keys are spilled; None for the system's folder for temporary files.
        memory_limit: of DuckDB.
    """

    history: TableHandle
    quarantine: TableHandle
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
        if not self._plans(self.history.load()) and not self._has_quarantine():
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
            yield from self._deletions_of_misfits(duck)

    def _has_quarantine(self) -> bool:
        try:
            self.quarantine.load()
        except SourceNotFoundError:
            return False
        return True

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
        listed = self._listed
        columns = list(
            dict.fromkeys([*self._keys, self.columns.event_time, WRITTEN, CHANGE, SEQUENCE])
        )
        time_ = DUCKDB.quoted(self.columns.event_time)
        # Names that no key has.
        duck.execute(
            f"CREATE TEMP TABLE candidates AS SELECT {listed}, 0::BIGINT AS _feast_w, "  # noqa: S608 - quoted
            "0::BIGINT AS _feast_q, false AS _feast_p, 0::BIGINT AS _feast_t FROM there LIMIT 0"
        )
        wanted = (
            f"SELECT {listed}, epoch_us({WRITTEN}), {SEQUENCE}, {CHANGE} = '{PUT}', "  # noqa: S608 - quoted
            f"epoch_us({time_}) FROM batch ANTI JOIN there USING ({listed}) "
            f"WHERE {CHANGE} <> '{MOVE}'"
        )
        for plan in plans:
            for batch in rows.batches(plan, columns):
                with registered(duck, "batch", pa.Table.from_batches([batch])):
                    duck.execute(f"INSERT INTO candidates {wanted}")
        # By the order of writing, as readers of the history have it.
        order = "row(_feast_w, _feast_q, _feast_p, _feast_t)"
        duck.execute(
            f"CREATE TEMP TABLE gone AS SELECT {listed}, max_by(_feast_w, {order}) AS _feast_w, "  # noqa: S608 - quoted
            f"max_by(_feast_q, {order}) AS _feast_q, max_by(_feast_t, {order}) AS _feast_t "
            f"FROM candidates GROUP BY {listed} "
            # What was written since the moment says more than the export does.
            f"HAVING max_by(_feast_p, {order}) AND max(_feast_w) <= {self.moment}"
        )

    def _deletions(
        self, duck: duckdb.DuckDBPyConnection, rows: FileRows, plans: Iterable[Any]
    ) -> Iterator[Converted]:
        same = " AND ".join(f"b.{key} = g.{key}" for key in map(DUCKDB.quoted, self._keys))
        time_ = DUCKDB.quoted(self.columns.event_time)
        ended = (
            f"SELECT b.* FROM batch AS b SEMI JOIN gone AS g ON {same} "  # noqa: S608 - quoted
            f"AND b.{SEQUENCE} = g._feast_q AND epoch_us(b.{WRITTEN}) = g._feast_w "
            f"AND epoch_us(b.{time_}) = g._feast_t AND b.{CHANGE} = '{PUT}'"
        )
        for plan in plans:
            for batch in rows.batches(plan):
                with registered(duck, "batch", pa.Table.from_batches([batch])):
                    found = duck.sql(ended).to_arrow_table()
                if found.num_rows:
                    made = ends(self.columns, found, self.moment).combine_chunks()
                    yield _converted(joined(made.to_batches(), self.columns.history_schema))

    def _deletions_of_misfits(self, duck: duckdb.DuckDBPyConnection) -> Iterator[Converted]:
        """Ends of items in quarantine, where the history has no row that was written later."""
        listed = self._listed
        duck.execute(
            f"CREATE TEMP TABLE aside AS SELECT {listed}, 0::BIGINT AS {WHEN}, '' AS {ITEM} "  # noqa: S608 - quoted
            "FROM there LIMIT 0"
        )
        for part in quarantined_puts(self.quarantine, self.columns, self.moment):
            with registered(duck, "part", part):
                duck.execute(f"INSERT INTO aside FROM part ANTI JOIN there USING ({listed})")
        found = duck.execute(
            f"SELECT a.item FROM (SELECT {listed}, max({WHEN}) AS w, max_by({ITEM}, {WHEN}) AS "  # noqa: S608 - quoted
            f"item FROM aside GROUP BY {listed}) AS a ANTI JOIN gone USING ({listed}) LEFT JOIN "
            f"(SELECT {listed}, max(_feast_w) AS w FROM candidates GROUP BY {listed}) AS h "
            f"USING ({listed}) WHERE h.w IS NULL OR h.w <= a.w"
        )
        while records := found.fetchmany(RECORDS):
            items = [item for (item,) in records]
            yield _converted(quarantined_ends(self.columns, items, self.moment))

    @property
    def _keys(self) -> list[str]:
        return list(self.columns.of_keys.schema.names)

    @property
    def _listed(self) -> str:
        return ", ".join(map(DUCKDB.quoted, self._keys))


def _converted(rows: pa.RecordBatch) -> Converted:
    """Rows that are of no record."""
    return Converted(rows, joined([], QUARANTINE), 0)
