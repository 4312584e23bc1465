"""What a history table is made as: columns, partitions, order, and properties.

Tables that we make have a **sequence column**: the number of the commit in its upper 31 bits, a
number of the row in its lower 32. It decides between rows that are equal in keys, event time and
created time, so that no rewrite of files, by whatever engine, changes an answer.
"""

from __future__ import annotations

import itertools
import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext.arrow_types import map_schema, without_dictionary
from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.parquet.iceberg.catalog import ensure_namespace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SEQUENCE = "_feast_sequence"
"""Name of the sequence column of tables that we make."""

KEYS_PROPERTY = "feast-dynamo.number-of-join-keys"
"""Property of tables that we make: so many columns of their sort order are join keys."""

ROW_BITS = 32

ITEM_KEYS_PROPERTY = "feast-dynamo.item-keys"
"""Property of histories of captured tables: the names of their key attributes, as JSON. One that
is the event time is no join key of the sort order."""

PARTITIONS = ("day", "month", "none")

TARGET_FILE_BYTES = 128 << 20

TABLE_PROPERTIES = {
    "format-version": "2",
    # A commit is tried again by `commit`, which looks first whether it is there already.
    "commit.retry.num-retries": "0",
    # Of appends: the manifests of a hundred are merged into one, and old metadata is removed.
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "20",
    # About four thousand files: merging more takes a second, for an append of a moment.
    "commit.manifest.target-size-bytes": str(1 << 20),
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    "write.parquet.compression-codec": "zstd",
    "write.target-file-size-bytes": str(TARGET_FILE_BYTES),
}
"""Of every table that we make, also of logs and of saved datasets."""


@dataclass(frozen=True)
class TableLayout:
    """How a history table is laid out.

    Attributes:
        keys: join keys, in the order of their importance.
        event_time: the column of event time.
        created_time: the column of created time, or None.
        partition: ``day`` or ``month`` of the event time, or ``none``.
        sequence: the sequence column.
    """

    keys: tuple[str, ...]
    event_time: str
    created_time: str | None
    partition: str
    sequence: str = SEQUENCE

    @property
    def order(self) -> tuple[str, ...]:
        """Columns by which the rows of a file are sorted, all ascending, nulls first."""
        created = [self.created_time] if self.created_time else []
        return (*self.keys, self.event_time, *created, self.sequence)

    @classmethod
    def item_keys(cls, table: Any) -> tuple[str, ...]:
        """Columns by which rows are of one item, or of one entity; none of tables of others."""
        said = table.properties.get(ITEM_KEYS_PROPERTY)
        if said is not None:
            return tuple(json.loads(said))
        layout = cls.from_table(table)
        return layout.keys if layout else ()

    @classmethod
    def from_table(cls, table: Any) -> TableLayout | None:
        """The layout of a table that we made; None for tables of others.

        The table's own sort order says it: columns may have been renamed since.
        """
        order = [
            table.schema().find_column_name(part.source_id) for part in table.sort_order().fields
        ]
        keys = int(table.properties.get(KEYS_PROPERTY, "-1"))
        if keys < 0 or None in order or len(order) not in (keys + 2, keys + 3):
            return None
        *between, sequence = order
        event_time, *created = between[keys:]
        transforms = [str(part.transform) for part in table.spec().fields]
        partition = transforms[0] if transforms in (["day"], ["month"]) else "none"
        return cls(
            tuple(order[:keys]), event_time, created[0] if created else None, partition, sequence
        )


def create_table(
    catalog: Any,
    name: str,
    columns: pa.Schema,
    layout: TableLayout,
    *,
    location: str | None = None,
    further: Mapping[str, str] | None = None,
) -> Any:
    """Make a history table; see `TABLE_PROPERTIES`.

    Args:
        catalog: pyiceberg's.
        name: namespace and table.
        columns: names and types of all columns but the sequence.
        layout: how rows are laid out.
        location: where its files are put; by default where the catalog says.
        further: properties of the table, beside those of all.

    Raises:
        OfflineStoreError: a column has the sequence's name.
    """
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.schema import assign_fresh_schema_ids
    from pyiceberg.table.sorting import NullOrder, SortField, SortOrder
    from pyiceberg.transforms import DayTransform, IdentityTransform, MonthTransform

    if SEQUENCE in columns.names:
        raise OfflineStoreError(
            f"A column is named `{SEQUENCE}`, as the one by which history tables keep the order "
            "of their rows. Rename it."
        )
    unnumbered = catalog._convert_schema_if_needed(columns.append(pa.field(SEQUENCE, pa.int64())))
    schema = assign_fresh_schema_ids(unnumbered)
    ids = {field.name: field.field_id for field in schema.fields}
    transform = {"day": DayTransform, "month": MonthTransform}.get(layout.partition)
    parts = []
    if transform is not None:
        named = _free_name(f"{layout.event_time}_{layout.partition}", columns.names)
        parts.append(PartitionField(ids[layout.event_time], 1000, transform(), named))
    order = [
        SortField(ids[column], IdentityTransform(), null_order=NullOrder.NULLS_FIRST)
        for column in layout.order
    ]
    properties = {
        **TABLE_PROPERTIES,
        KEYS_PROPERTY: str(len(layout.keys)),
        # By which files are left out, whole: by default only the first 16 characters are kept.
        **{f"write.metadata.metrics.column.{column}": "full" for column in layout.order},
        **(further or {}),
    }
    ensure_namespace(catalog, name.rpartition(".")[0])
    return catalog.create_table(
        name,
        schema,
        location=location,
        partition_spec=PartitionSpec(*parts),
        sort_order=SortOrder(*order),
        properties=properties,
    )


def _free_name(wanted: str, taken: Iterable[str]) -> str:
    """A name that no column has, whatever its case."""
    there = {name.lower() for name in taken}
    others = (f"{wanted}_{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([wanted], others) if name.lower() not in there)


WIDER = {
    pa.int8(): pa.int32(),
    pa.int16(): pa.int32(),
    pa.uint8(): pa.int32(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.int64(),
    pa.float16(): pa.float32(),
    pa.date64(): pa.date32(),
    pa.time64("ns"): pa.time64("us"),
    pa.time32("s"): pa.time64("us"),
    pa.time32("ms"): pa.time64("us"),
}
"""Types that Iceberg has not -> those that hold their values; a value that is not held is refused
when it is written."""


def storable(schema: pa.Schema) -> pa.Schema:
    """Columns in types that Iceberg has, nested ones included."""
    plain = map_schema(schema.remove_metadata(), without_dictionary)
    return map_schema(plain, _storable)


def _storable(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", None if kind.tz is None else "UTC")
    if pa.types.is_null(kind):
        return pa.string()
    return WIDER.get(kind, kind)


def first_sequence(last_sequence_number: int, rows: int) -> int:
    """The first value of the sequence column for rows of a commit; they ascend from it.

    Two commits that begin from the same table have the same number. So that their rows are all the
    same in one order, each begins somewhere: of 1,000 rows each, one in four million times they
    overlap, and then what the rows hold decides.

    Args:
        last_sequence_number: Iceberg's, of the table that the commit begins from.
        rows: how many, at most.
    """
    most = 1 << ROW_BITS
    if rows >= most:
        raise OfflineStoreError(f"{rows:,} rows are more than one commit takes, {most:,}.")
    return ((last_sequence_number + 1) << ROW_BITS) + secrets.randbelow(most - rows)
