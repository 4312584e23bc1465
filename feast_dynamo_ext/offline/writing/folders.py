"""Which folder of a source a row belongs to: hive columns, and periods of event time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.offline.sources.partitions import HIVE_NULL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from feast_dynamo_ext.offline.sources.files import FileState


@dataclass(frozen=True)
class Folders:
    """The folders of a source.

    Attributes:
        columns: hive columns whose values rows bring, in the order of the folders.
        derived: hive columns that are made of the event time -> their format.
        plain: format of folders without ``=``, made of the event time; empty where there are none.
        order: all hive columns, from the outermost folder.
        event_time: the source's event time, in the names of its files.
        texts: per column, how values are written in the folders that are there.
    """

    columns: tuple[str, ...]
    derived: Mapping[str, str]
    plain: str
    order: tuple[str, ...]
    event_time: str
    texts: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, data_source: Any, files: Sequence[FileState]) -> Folders:
        """The folders of a source, from its settings and the files that are there."""
        pattern: str = getattr(data_source, "folder_format", "")
        derived: Mapping[str, str] = getattr(data_source, "derived_columns", {})
        # Files that `compact` wrote may say less in their folders' names.
        deepest = max((file.partition for file in files), key=len, default=())
        there = [name for name, _ in deepest] if files else list(derived)
        original = {new: old for old, new in (data_source.field_mapping or {}).items()}
        texts: dict[str, set[str]] = {name: set() for name in there}
        for file in files:
            for name, text in file.partition:
                texts.setdefault(name, set()).add(text or HIVE_NULL)
        return cls(
            columns=tuple(name for name in there if name not in derived),
            derived=derived,
            plain="" if derived else pattern,
            order=tuple(there),
            event_time=original.get(data_source.timestamp_field, data_source.timestamp_field),
            texts={name: frozenset(found) for name, found in texts.items()},
        )

    def without(self, schema: pa.Schema) -> pa.Schema:
        """The columns that are in files."""
        return pa.schema(column for column in schema if column.name not in self.order)

    def split(self, table: pa.Table, rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """Rows by folder.

        Args:
            table: the rows with the columns of the folders.
            rows: the same rows as they are written.

        Raises:
            OfflineStoreError: a row has no event time, so its folder is not known.
        """
        levels = [self._level(table, rows, name) for name in self.order]
        if self.plain:
            levels.insert(0, self._period(rows, self.plain))
        if not levels:
            yield "", rows
            return
        folders = pc.binary_join_element_wise(*levels, "/")
        for folder in pc.unique(folders).to_pylist():
            yield folder, rows.filter(pc.equal(folders, folder))

    def _level(self, table: pa.Table, rows: pa.Table, name: str) -> pa.Array:
        if name in self.derived:
            values = self._period(rows, self.derived[name])
        else:
            values = _one_piece(table.column(name))
        # Each distinct value once: a folder has many rows.
        coded = values.dictionary_encode()
        known = self.texts.get(name, frozenset())
        names = [
            f"{quote(name)}={self._text(value, known)}" for value in coded.dictionary.to_pylist()
        ]
        missing = f"{quote(name)}={HIVE_NULL}"
        return pc.fill_null(pa.array(names, pa.string()).take(coded.indices), missing)

    def _text(self, value: Any, known: frozenset[str]) -> str:
        """A value as in the folders that are there: 7 as ``07`` where they have leading zeros."""
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if isinstance(value, int) and value >= 0:
            padded = next((each for each in known if each.startswith("0") and len(each) > 1), "")
            text = text.zfill(len(padded))
        return quote(text, safe="")

    def _period(self, rows: pa.Table, form: str) -> pa.Array:
        times = _one_piece(rows.column(self.event_time))
        if times.null_count:
            raise OfflineStoreError(
                f"{times.null_count:,} of the rows to append have no `{self.event_time}`, which "
                "says which folder they belong to. Drop or fill them."
            )
        zone = times.type.tz if pa.types.is_timestamp(times.type) else None
        seconds = pc.floor_temporal(times.cast(pa.timestamp("us", tz=zone)), unit="second")
        utc = seconds.cast(pa.int64()).cast(pa.timestamp("us")).cast(pa.timestamp("s"))
        return pc.strftime(utc, format=form)


def _one_piece(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
