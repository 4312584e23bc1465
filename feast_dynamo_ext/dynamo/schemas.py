"""What an item's packed values stand for, however old the item is.

A view may gain, lose, rename and retype features while old items stay in its table. Each item
carries the fingerprint of the schema it was written under, and the table holds that schema.
"""

from __future__ import annotations

import base64
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from feast.protos.feast.types.Value_pb2 import Value

from feast_dynamo_ext.arrow_types import VALUE_FIELD
from feast_dynamo_ext.dynamo.batch_get import TableKeys
from feast_dynamo_ext.dynamo.layouts.packed import (
    FINGERPRINT,
    SCHEMA,
    RowSchema,
    pack,
    schema_key,
    to_schema_item,
    unpack,
)
from feast_dynamo_ext.dynamo.layouts.series import to_series_schema_item
from feast_dynamo_ext.errors import ItemFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from feast_dynamo_ext.dynamo.batch_get import Found, Reader
    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.dynamo.write import Writer

logger = logging.getLogger(__name__)

MOST_REQUESTS = 10_000
"""Choices of features that are remembered, of all views and schemas."""

# Retypes that keep every value exactly: old field -> new field -> how to carry it over.
WIDENINGS: dict[tuple[str, str], Callable[[Value], Value]] = {
    ("int32_val", "int64_val"): lambda old: Value(int64_val=old.int32_val),
    ("int32_val", "double_val"): lambda old: Value(double_val=old.int32_val),
    ("float_val", "double_val"): lambda old: Value(double_val=old.float_val),
}


@dataclass(frozen=True)
class Column:
    """Where a requested feature is among an item's packed values.

    Attributes:
        position: index into the values.
        widen: carries a value of the old type over to the current type, or None.
    """

    position: int
    widen: Callable[[Value], Value] | None = None

    def cell_of(self, stored: Sequence[bytes]) -> bytes:
        """The feature among an item's entries; a null stays null under every type."""
        cell = stored[self.position]
        if self.widen is None:
            return cell
        (value,) = unpack(cell)
        return cell if value.WhichOneof("val") is None else pack([self.widen(value)])


@dataclass
class SchemaCache:
    """The schemas of one store's tables, each read once, and how they map to current views.

    Entries are added, never changed: threads share it safely.

    Attributes:
        known: what a fingerprint (base64) of a table stands for.
        written: tables and fingerprints whose schema item this process has written.
        columns: where requested features are, by fingerprint, current schema and request.
        warned: tables and what was said about items of theirs that cannot be explained.
    """

    known: dict[tuple[str, str], RowSchema] = field(default_factory=dict)
    written: set[tuple[str, str]] = field(default_factory=set)
    columns: dict[tuple[str, RowSchema, tuple[str, ...]], list[Column | None]] = field(
        default_factory=dict
    )
    warned: set[tuple[str, str]] = field(default_factory=set)

    def forget(self, table: str) -> None:
        """Forget what was written into a table that is new or gone."""
        self.written -= {entry for entry in self.written if entry[0] == table}

    async def declare(
        self, table: str, schema: RowSchema, writer: Writer, *, is_series: bool = False
    ) -> None:
        """Write the schema item of rows that are about to be written, once.

        Before the first row, so that no reader ever meets a fingerprint that nothing explains.

        Raises:
            IncompleteWriteError: it could not be written.
            AwsError: AWS refused.
        """
        if (table, schema.fingerprint_text) not in self.written:
            await self.write(table, schema, writer, is_series=is_series)

    async def write(
        self, table: str, schema: RowSchema, writer: Writer, *, is_series: bool = False
    ) -> None:
        """Write the schema item, whether or not this process has done so before.

        Others may have emptied the table since, or made it anew.

        Raises: as `declare`.
        """
        make = to_series_schema_item if is_series else to_schema_item
        await writer.write(table, [make(schema)])
        self.written.add((table, schema.fingerprint_text))

    def warn(self, table: str, error: ItemFormatError) -> None:
        """Say once what is wrong with items of a table; their entities are answered as unread."""
        if (table, str(error)) not in self.warned:
            self.warned.add((table, str(error)))
            logger.warning("%s Until then its entity is answered with status INVALID.", error)

    def learn(self, table: str, schema: RowSchema) -> None:
        """Keep the schema that a table's items are written under now."""
        self.known[table, schema.fingerprint_text] = schema

    async def fetch_missing(
        self, found: Found, reader: Reader, started_s: float | None = None
    ) -> None:
        """Read the schema items of fingerprints that this process has not seen yet.

        The reader's deadline counts from `started_s`, or from now.
        """
        missing = self._missing({table: items.values() for table, items in found.items()})
        if missing:
            await self._fetch(missing, reader, started_s)

    async def fetch_missing_of_series(
        self,
        found: Mapping[str, Collection[JsonItem]],
        reader: Reader,
        started_s: float | None = None,
    ) -> None:
        """The same of events, by table."""
        missing = self._missing(found)
        if missing:
            await self._fetch(missing, reader, started_s, is_series=True)

    def _missing(self, found: Mapping[str, Collection[JsonItem]]) -> list[tuple[str, str]]:
        return [
            (table, fingerprint)
            for table, items in found.items()
            for fingerprint in _fingerprints(items)
            if (table, fingerprint) not in self.known
        ]

    async def _fetch(
        self,
        missing: Iterable[tuple[str, str]],
        reader: Reader,
        started_s: float | None,
        *,
        is_series: bool = False,
    ) -> None:
        wanted: dict[str, list[str]] = {}
        for table, fingerprint in missing:
            key = schema_key(base64.b64decode(fingerprint))
            wanted.setdefault(table, []).append(key)
        keys = [
            TableKeys(table, tuple(keys), is_series=is_series) for table, keys in wanted.items()
        ]
        found = await reader.read(keys, started_s)
        for table, items in found.items():
            for item in items.values():
                if (schema := _parsed(item)) is not None:
                    self.learn(table, schema)

    def columns_of(
        self, table: str, item: JsonItem, now: RowSchema, requested: tuple[str, ...]
    ) -> list[Column | None]:
        """Where each requested feature is in an item; None where the item does not have it.

        Raises:
            ItemFormatError: nothing says what the item's values stand for.
        """
        fingerprint = item.get(FINGERPRINT, {}).get("B", "")
        stored = self.known.get((table, fingerprint))
        if stored is None:
            raise ItemFormatError(
                f"Table `{table}` holds an item whose schema fingerprint `{fingerprint}` no "
                "schema item explains. Write the view again with `feast materialize`."
            )
        # The fingerprint stands for the stored schema, so now's schema completes the cache key.
        cached = self.columns.get((fingerprint, now, requested))
        if cached is None:
            cached = [_column(stored, now, name) for name in requested]
            if len(self.columns) >= MOST_REQUESTS:
                self.columns.clear()
            self.columns[fingerprint, now, requested] = cached
        return cached


def _parsed(item: JsonItem) -> RowSchema | None:
    try:
        return RowSchema.parse(item[SCHEMA]["S"])
    except (KeyError, ValueError):
        # Not of our making: what it should explain is not explained, which is said of each row.
        return None


def _fingerprints(items: Collection[JsonItem]) -> set[str]:
    try:
        return {item[FINGERPRINT]["B"] for item in items}
    except KeyError:
        # Schema items have none, and somebody else's items may have anything.
        found = {item.get(FINGERPRINT, {}).get("B") for item in items}
        return {fingerprint for fingerprint in found if fingerprint is not None}


def _column(stored: RowSchema, now: RowSchema, name: str) -> Column | None:
    if name not in stored.names:
        return None
    position = stored.names.index(name)
    if name not in now.names:
        return Column(position)
    old = VALUE_FIELD.get(stored.types[position], "")
    new = VALUE_FIELD.get(now.types[now.names.index(name)], "")
    if old == new:
        return Column(position)
    if (old, new) in WIDENINGS:
        return Column(position, WIDENINGS[old, new])
    logger.warning(
        "feature %s was %s and is now %s: rows written before read as missing until the view is "
        "materialized again",
        name,
        stored.types[position],
        now.types[now.names.index(name)],
    )
    return None
