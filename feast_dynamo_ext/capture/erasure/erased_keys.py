"""Who was erased, so that no export of before brings them back; as salted digests, not by name.

A table beside the history, `<name>_erased`, has a row for each erasure. It outlives the history,
where that is dropped and made anew from old exports. Of somebody who was erased at an instant::

    record                                  rows
    ------                                  ----
    written before it                       none: dropped, and counted
    put, written since                      kept: the item is in the table anew
    tombstone, written since                kept where the history has a put that it ends; else it
                                            holds what was erased, and is dropped
    quarantined, written since              kept without its image from before the change

They are known by attributes of the table, as these were read then: a column may get another name
or another type. Where a declaration does not have what they are known by, nothing is captured.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import logging
import secrets
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.capture.erasure.person import (
    AS_THEY_ARE,
    COMPARED,
    IMAGES,
    attribute_at,
    columns_of_history,
    digest,
    text_as,
    text_of,
)
from feast_dynamo_ext.capture.values.attribute_types import (
    KINDS,
    MOMENT,
    TIME_UNITS,
    CapturedColumn,
    CapturedColumns,
    time_kind,
)
from feast_dynamo_ext.capture.values.change_rows import QUARANTINE, Converted
from feast_dynamo_ext.capture.values.item_values import item_text
from feast_dynamo_ext.columns import CHANGE, PUT, WRITTEN
from feast_dynamo_ext.errors import (
    CaptureError,
    ConfigError,
    FeastDynamoError,
    SourceNotFoundError,
)
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors, opened
from feast_dynamo_ext.parquet.iceberg.erase import Keys, rows_of
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout, create_table

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.capture.erasure.person import Person
    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource
    from feast_dynamo_ext.capture.values.attribute_types import ValueKind
    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle


logger = logging.getLogger(__name__)

ERASED_SUFFIX = "_erased"
"""How the name of the table of who was erased ends."""

SALT = "feast-dynamo.salt"
"""Property of that table, by which its digests are made."""

ERASED = pa.schema(
    [
        pa.field("erased_at", MOMENT, nullable=False),
        pa.field("columns", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
    ]
)


def note_erased(handle: TableHandle, person: Person, at: dt.datetime) -> None:
    """Note that somebody is erased, before anything of them is.

    Args:
        handle: of the table, which is made where there is none.
        person: who.
        at: what was written before is not captured any more.

    Raises:
        OfflineStoreError: the catalog refuses. AwsError: AWS did.
    """
    from pyiceberg.exceptions import TableAlreadyExistsError

    try:
        table = handle.load()
    except SourceNotFoundError:
        layout = TableLayout(("digest",), "erased_at", None, "none")
        with catalog_errors(handle.address, handle.name):
            catalog = opened(handle.address, handle.settings)
            # Another process may make it at the same time.
            with contextlib.suppress(TableAlreadyExistsError):
                create_table(
                    catalog, handle.name, ERASED, layout, further={SALT: secrets.token_hex(16)}
                )
        table = handle.load()
    by = [KnownBy.from_column(column) for column in person.columns.columns]
    who = digest(_salt(table), [each.label for each in by], person.texts)
    said = json.dumps([each.to_json() for each in sorted(by, key=lambda each: each.label)])
    row = {"erased_at": [at], "columns": [said], "digest": [who]}
    # One of the same second is the same erasure, tried again.
    handle.append(pa.table(row, schema=ERASED), f"erase/{who}/{at.isoformat()}")


def _salt(table: Any) -> bytes:
    return bytes.fromhex(table.properties[SALT])


@dataclass(frozen=True)
class KnownBy:
    """An attribute by which somebody is known.

    Attributes:
        path: its names.
        form: how its text was made: `value` of what is as it is, `uuid`, or a time's unit. Empty
            in what was noted before attributes were: then the path is the name of a column.
    """

    path: tuple[str, ...]
    form: str = ""

    @classmethod
    def from_column(cls, column: CapturedColumn) -> KnownBy:
        """That of a column."""
        kind = column.kind
        form = kind.unit if kind.name == "time" else kind.name
        return cls(column.path, "value" if kind.name in AS_THEY_ARE else form)

    @classmethod
    def from_json(cls, said: Any) -> KnownBy:
        """As `to_json` has it, or the name of a column."""
        if isinstance(said, str):
            return cls((said,))
        return cls(tuple(said["attribute"]), said["form"])

    def to_json(self) -> dict[str, Any]:
        """For the table."""
        return {"attribute": self.path, "form": self.form}

    @property
    def label(self) -> str:
        """What stands for it in a digest."""
        return json.dumps(self.path) if self.form else self.path[0]

    def column(self, columns: CapturedColumns) -> CapturedColumn:
        """The column that has it.

        Raises:
            CaptureError: none has, or not so that they can be known by it.
        """
        found = None
        if not self.form:
            found = next((each for each in columns.columns if each.name == self.path[0]), None)
        if found is None:
            found = next((each for each in columns.columns if each.path == self.path), None)
        if found is None:
            raise CaptureError(self._words("has no column of it any more"))
        kind = found.kind
        is_read_so = kind.name in COMPARED and (
            not self.form
            or kind.name in AS_THEY_ARE
            or self.form == KnownBy.from_column(found).form
        )
        if not is_read_so:
            raise CaptureError(self._words(f"declares it as {kind.label}"))
        return found

    def _words(self, what: str) -> str:
        attribute = ".".join(self.path)
        dtype = {
            "value": "the type that it had",
            "uuid": "Uuid",
            "": "the type that it had, under this name",
        }.get(self.form, f"UnixTimestamp, unit `{self.form}`")
        return (
            f"Somebody who was erased is known by `{attribute}`, and `schema` {what}: what an "
            "export or a stream has of them could not be told from what others have, and nothing "
            f"is captured. Declare it as {dtype}; the column may have another name: "
            "`Field(..., tags={'attribute': ...})`."
        )

    def texts_of_value(self, value: Any, kind: ValueKind) -> list[str]:
        """What a digest may have of a column's value."""
        if kind.name not in AS_THEY_ARE or self.form == "value":
            return [text_of(value, kind)]
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        return self.texts_of_attribute({kind.accepts[0]: str(value)}, kind)

    def texts_of_attribute(self, attribute: Mapping[str, Any], kind: ValueKind) -> list[str]:
        """What a digest may have of an attribute of DynamoDB JSON, declared as a kind."""
        if self.form:
            kinds: list[ValueKind] = [FORMS[self.form]]
        elif kind.name in AS_THEY_ARE:
            # Nobody noted what the column was then.
            kinds = list(FORMS.values())
        else:
            kinds = [kind]
        texts = (text_as(attribute, each) for each in kinds)
        return [each for each in dict.fromkeys(texts) if each is not None]


FORMS = {"value": KINDS["STRING"]({}, ""), "uuid": KINDS["UUID"]({}, "")} | {
    unit: time_kind(unit) for unit in TIME_UNITS
}
"""By what `KnownBy.form` says, what reads an attribute so."""


@dataclass(frozen=True)
class _Erased:
    """Who was erased that is known by the same attributes.

    Attributes:
        by: these.
        columns: that have them.
        known: digest -> when, microseconds since 1970.
        salt: of the digests.
    """

    by: tuple[KnownBy, ...]
    columns: tuple[CapturedColumn, ...]
    known: Mapping[str, int]
    salt: bytes

    @cached_property
    def last(self) -> int:
        """When the last of them was erased."""
        return max(self.known.values())

    def moments_of_rows(self, rows: pa.RecordBatch) -> NDArray[np.int64]:
        """When who a row is of was erased; -1 for nobody who was."""
        seen: dict[tuple[Any, ...], int] = {}
        found = []
        values = (rows.column(each.name).to_pylist() for each in self.columns)
        for row in zip(*values, strict=True):
            moment = seen.get(row)
            if moment is None:
                moment = seen[row] = self._moment(
                    [
                        [] if value is None else by.texts_of_value(value, column.kind)
                        for value, by, column in zip(row, self.by, self.columns, strict=True)
                    ]
                )
            found.append(moment)
        return np.array(found, np.int64)

    def moment_of_record(self, record: Mapping[str, Any]) -> int:
        """When who is in an image of a record was erased; -1 for nobody who was."""
        moments = [-1]
        for image in (record[name] for name in IMAGES if name in record):
            attributes = [attribute_at(image, column.path) for column in self.columns]
            texts = [
                [] if attribute is None else by.texts_of_attribute(attribute, column.kind)
                for attribute, by, column in zip(attributes, self.by, self.columns, strict=True)
            ]
            moments.append(self._moment(texts))
        return max(moments)

    def _moment(self, texts: Sequence[Sequence[str]]) -> int:
        labels = [each.label for each in self.by]
        people = (digest(self.salt, labels, each) for each in itertools.product(*texts))
        return max((self.known.get(who, -1) for who in people), default=-1)


@dataclass(frozen=True)
class ErasedKeys:
    """Who was erased from a history.

    Attributes:
        history: of the history table.
        columns: of the history.
        salt: of the digests.
        known: by what they are known by: digest -> when, microseconds since 1970.
    """

    history: TableHandle
    columns: CapturedColumns
    salt: bytes
    known: Mapping[tuple[KnownBy, ...], Mapping[str, int]] = field(repr=False)

    @cached_property
    def _erased(self) -> tuple[_Erased, ...]:
        """Those who are known by the same attributes.

        Raises:
            CaptureError: a column of these is not declared any more.
        """
        return tuple(
            _Erased(by, tuple(each.column(self.columns) for each in by), known, self.salt)
            for by, known in self.known.items()
        )

    @classmethod
    def read(
        cls, handle: TableHandle, history: TableHandle, source: DynamoDBTableSource
    ) -> ErasedKeys | None:
        """Those of a source; None where nobody was ever erased.

        Raises:
            OfflineStoreError: the table cannot be read. AwsError: AWS refused.
            CaptureError: the declaration has not what somebody is known by.
        """
        try:
            table = handle.load()
        except SourceNotFoundError:
            return None
        with catalog_errors(handle.address, handle.name):
            rows = table.scan(selected_fields=tuple(ERASED.names)).to_arrow()
        known: dict[tuple[KnownBy, ...], dict[str, int]] = {}
        moments = rows["erased_at"].cast(pa.int64()).to_pylist()
        for said, who, moment in zip(
            rows["columns"].to_pylist(), rows["digest"].to_pylist(), moments, strict=True
        ):
            by = known.setdefault(tuple(map(KnownBy.from_json, json.loads(said))), {})
            by[who] = max(moment, by.get(who, moment))
        columns = columns_of_history(source, history.load())
        found = cls(history, columns, _salt(table), known)
        try:
            _ = found._erased
        except CaptureError as error:
            raise CaptureError(f"Source `{source.name}`: {error}") from error
        return found

    def has(self, person: Person) -> bool:
        """Whether somebody was erased, or begun to be."""
        (row,) = person.table.to_batches()
        return any(
            erased.moments_of_rows(row)[0] >= 0
            for erased in self._erased
            if {column.name for column in erased.columns} == set(person.names)
        )

    def without(self, part: Converted) -> tuple[Converted, int]:
        """Records without what was erased, and how many rows and records that were."""
        rows, quarantine = part.rows, part.quarantine
        for erased in self._erased:
            rows = self._kept_rows(rows, erased)
            quarantine = self._kept_records(quarantine, erased)
        dropped = part.rows.num_rows - rows.num_rows
        dropped += part.quarantine.num_rows - quarantine.num_rows
        return Converted(rows, quarantine, part.records), dropped

    def without_old_puts(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows without puts of before an erasure; what ends an item is kept."""
        for erased in self._erased:
            written = _micros(rows.column(WRITTEN))
            is_put = np.asarray(pc.equal(rows.column(CHANGE), PUT))
            places = np.flatnonzero((written < erased.last) & is_put)
            if len(places):
                moments = erased.moments_of_rows(rows.take(pa.array(places)))
                kept = np.ones(rows.num_rows, dtype=bool)
                kept[places] = written[places] >= moments
                rows = rows.filter(pa.array(kept))
        return rows

    # Rows

    def _kept_rows(self, rows: pa.RecordBatch, erased: _Erased) -> pa.RecordBatch:
        written = _micros(rows.column(WRITTEN))
        is_put = np.asarray(pc.equal(rows.column(CHANGE), PUT))
        places = np.flatnonzero((written < erased.last) | ~is_put)
        if not len(places):
            return rows
        moments = erased.moments_of_rows(rows.take(pa.array(places)))
        theirs, moments = places[moments >= 0], moments[moments >= 0]
        before = written[theirs] < moments
        gone = list(theirs[before])
        later = theirs[~before]  # tombstones, and puts of another who was erased before
        tombstones = later[~is_put[later]]
        if len(tombstones):
            ended = rows.take(pa.array(tombstones))
            gone += list(tombstones[~self._end_puts(ended, rows)])
        kept = np.ones(rows.num_rows, dtype=bool)
        kept[gone] = False
        return rows if kept.all() else rows.filter(pa.array(kept))

    def _end_puts(self, tombstones: pa.RecordBatch, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which tombstones end a put that is in the history, or comes with them."""
        keys, time = list(self.columns.keys), self.columns.event_time
        items = Keys(pa.Table.from_batches([tombstones.select(keys)]).group_by(keys).aggregate([]))
        names = list(dict.fromkeys([*keys, time, WRITTEN, CHANGE]))
        there = [batch.filter(pa.array(items.are_in(batch))).select(names)]
        there += [*rows_of(self.history, items, names)]
        puts: dict[tuple[Any, ...], list[tuple[Any, Any]]] = {}
        for some in there:
            for row in some.to_pylist():
                if row[CHANGE] == PUT:
                    key = tuple(row[name] for name in keys)
                    puts.setdefault(key, []).append((row[WRITTEN], row[time]))
        # Of one moment an update has a put of its own, of another event time.
        return np.array(
            [
                any(
                    written < row[WRITTEN] or (written == row[WRITTEN] and event == row[time])
                    for written, event in puts.get(tuple(row[name] for name in keys), ())
                )
                for row in tombstones.select(names).to_pylist()
            ],
            bool,
        )

    # Quarantine

    def _kept_records(self, quarantine: pa.RecordBatch, erased: _Erased) -> pa.RecordBatch:
        if not quarantine.num_rows:
            return quarantine
        kept = []
        for row, written in zip(
            quarantine.to_pylist(), _micros(quarantine.column(WRITTEN)).tolist(), strict=True
        ):
            record = json.loads(row["item"])
            moment = erased.moment_of_record(record)
            if moment >= 0 and (written < moment or row[CHANGE] != PUT):
                continue
            if moment >= 0 and record.pop("OldImage", None) is not None:
                row["item"] = item_text(record)
            kept.append(row)
        return pa.RecordBatch.from_pylist(kept, QUARANTINE)


def _micros(column: pa.Array) -> NDArray[np.int64]:
    return np.asarray(column.cast(MOMENT).cast(pa.int64()))


@dataclass
class ErasedLately:
    """Who was erased, read once a minute: for who brings changes online at once.

    A stream delivers changes for a day: one of before an erasure must not go online after it.

    Attributes:
        read: reads who was erased; None for nobody.
        every_s: how long that is taken to be so.
        clock: seconds of a monotonic clock.
    """

    read: Callable[[], ErasedKeys | None]
    every_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _known: ErasedKeys | None = None
    _until_s: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def without_old_puts(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """See `ErasedKeys.without_old_puts`. What cannot be read is taken to be as it was.

        Raises:
            CaptureError, ConfigError: the declaration has not what somebody is known by.
        """
        with self._lock:
            if self._until_s is None or self.clock() >= self._until_s:
                try:
                    self._known = self.read()
                except (CaptureError, ConfigError):
                    raise  # the declaration does not say who is meant
                except FeastDynamoError as error:
                    logger.warning("who was erased cannot be read, and may go online: %s", error)
                self._until_s = self.clock() + self.every_s
            known = self._known
        return rows if known is None else known.without_old_puts(rows)
