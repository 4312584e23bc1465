"""Whose rows are erased: all items of a key, of a partition key, or of another attribute's value.

A person is known by attributes of the table. The same values are looked for in rows of the
history, which have them in the columns' types, and in records of the quarantine and of exports,
which have DynamoDB JSON: also where there a value is of another type than the column.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.capture.table_source import attribute_of
from feast_dynamo_ext.capture.values.attribute_types import (
    CapturedColumn,
    CapturedColumns,
    ValueKind,
    kind_of,
)
from feast_dynamo_ext.capture.values.item_values import ItemReader, Misfit
from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.errors import CaptureError
from feast_dynamo_ext.parquet.iceberg.data_files import table_columns
from feast_dynamo_ext.parquet.iceberg.erase import Keys
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout
from feast_dynamo_ext.timestamps import EPOCH, MICROSECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource
    from feast_dynamo_ext.parquet.iceberg.table_files import ManifestBounds


IMAGES = ("Item", "NewImage", "OldImage", "Keys")
"""Parts of a record that have attributes."""

AS_THEY_ARE = {"text", "bytes", "int32", "int64", "float64", "decimal", "decimal_text"}
"""Kinds whose values are the same where their texts in DynamoDB JSON are."""

COMPARED = AS_THEY_ARE | {"uuid", "time"}
"""Kinds of columns whose values are somebody's; what is rounded, as a Float32, is of nobody."""


def columns_of_history(
    source: DynamoDBTableSource, table: Any, known: Iterable[tuple[str, str]] = ()
) -> CapturedColumns:
    """The columns of a history as its table has them: DynamoDB is not asked.

    Args:
        source: the declaration.
        table: pyiceberg's.
        known: names and types of the key attributes, as far as capture noted them.

    Raises:
        ConfigError, UnsupportedTypeError: as `CapturedColumns.from_fields`.
    """
    subject = f"DynamoDBTableSource `{source.name}`"
    declared = {field.name: field for field in source.fields}
    types = {column.name: column.type for column in table_columns(table.schema())}
    keys = {}
    for name in TableLayout.item_keys(table):
        if name in declared:
            field = declared[name]
            kind = kind_of(field.dtype, field.tags or {}, subject).accepts[0]
            keys[attribute_of(field)] = kind
        elif name == source.event_time:
            keys[name] = "S" if source.event_time_unit == "iso8601" else "N"
        else:
            keys[name] = _type_of(types[name])
    keys |= {name: kind for name, kind in known if name in keys}
    return CapturedColumns.from_fields(
        source.fields,
        keys=keys,
        event_time=source.event_time,
        event_time_unit=source.event_time_unit,
        subject=subject,
    )


def _type_of(kind: pa.DataType) -> str:
    if pa.types.is_string(kind):
        return "S"
    return "B" if pa.types.is_binary(kind) else "N"


@dataclass(frozen=True)
class Person:
    """Whose rows are meant.

    Attributes:
        columns: those by which they are known; all are compared.
        values: of these columns, as `ItemReader.values` has them.
        items: the columns of all key attributes.
        given: the values as attributes of an item, in DynamoDB JSON.
    """

    columns: CapturedColumns
    values: tuple[Any, ...]
    items: tuple[str, ...]
    given: Mapping[str, Mapping[str, Any]]

    @classmethod
    def from_texts(
        cls, source: DynamoDBTableSource, columns: CapturedColumns, given: Mapping[str, str]
    ) -> Person:
        """That of values as they are written.

        Args:
            source: the declaration, for messages.
            columns: of the history.
            given: by attribute, or by column: numbers and texts as they are, bytes as base64.

        Raises:
            CaptureError: there is no such attribute, or the text is no value of it.
        """
        name = f"Source `{source.name}`"
        found: dict[str, CapturedColumn] = {}
        for attribute in given:
            wanted = next(
                (each for each in columns.columns if attribute in (each.attribute, each.name)),
                None,
            )
            if wanted is None:
                known = [each.attribute for each in columns.columns]
                raise CaptureError(
                    f"{name} has no attribute `{attribute}`. "
                    f"{did_you_mean(attribute, known, 'There are')}"
                )
            if wanted.kind.name not in COMPARED:
                raise CaptureError(
                    f"{name}: `{attribute}` is {wanted.kind.label}, by which nobody is known. "
                    "Name the table's key, or another attribute of type text or number."
                )
            found[attribute] = wanted
        own = CapturedColumns(tuple(found.values()), columns.keys, columns.event_time)
        item: dict[str, Any] = {}
        for attribute, column in found.items():
            kind, text = column.kind.accepts[0], given[attribute]
            if kind == "N":
                text = _number(text) or text
            _put(item, column.path, {kind: text})
        values = ItemReader(own).values(item)
        if isinstance(values, Misfit):
            raise CaptureError(
                f"{name}: what is to be erased of `{values.attribute}` is no value of it: "
                f"{values.reason}."
            )
        return cls(own, values, columns.keys, item)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns by which they are known."""
        return tuple(column.name for column in self.columns.columns)

    @property
    def has_partition_key(self) -> bool:
        """Whether the table's partition key is among them."""
        return self.items[0] in self.names

    @property
    def table(self) -> pa.Table:
        """The values as one row, in the columns' types."""
        arrays = ItemReader(self.columns).arrays([self.values])
        return pa.Table.from_arrays(arrays, names=list(self.names))

    @property
    def texts(self) -> tuple[str, ...]:
        """The values as texts, the same of whichever type they are kept as."""
        values = self.table.to_pylist()[0].values()
        return tuple(map(text_of, values, (each.kind for each in self.columns.columns)))

    def are_in(self, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which rows have all of the values."""
        found = np.ones(rows.num_rows, dtype=bool)
        for own, (value,), text in zip(
            self.columns.columns, self.table.columns, self.texts, strict=True
        ):
            column = rows.column(own.name)
            if own.kind.name == "decimal_text":
                # Of one number 1E+30 and 1000... are two texts.
                known = [each for each in column.unique().to_pylist() if each is not None]
                alike = [each for each in known if text_of(each, own.kind) == text]
                same = pc.is_in(column, value_set=pa.array(alike, column.type))
            else:
                same = pc.equal(column, value.cast(column.type))
            found &= np.asarray(pc.fill_null(same, False))
        return found

    def may_be_in(self, bounds: ManifestBounds, path: str) -> bool:
        """Whether a file may hold all of the values, as manifests say."""
        # Of texts of numbers the order says nothing.
        ordered = [each.name for each in self.columns.columns if each.kind.name != "decimal_text"]
        return not any(bounds.is_all_null(path, name) for name in self.names) and Keys(
            self.table.select(ordered)
        ).may_be_in(bounds, path)

    @cached_property
    def is_in(self) -> Callable[[Mapping[str, Any]], bool]:
        """Whether a record of DynamoDB JSON has an image with all of the values."""
        wanted, reader = self.texts, ItemReader(self.columns)

        def is_in(record: Mapping[str, Any]) -> bool:
            return any(
                _texts_in(record[name], reader) == wanted for name in IMAGES if name in record
            )

        return is_in

    def query(self) -> dict[str, Any] | None:
        """DynamoDB's Query of their items; None where the table's key does not say which."""
        own = {column.name: column for column in self.columns.columns}
        if not self.has_partition_key or not set(own) <= set(self.items):
            return None
        names, values = {}, {}
        for at, name in enumerate(own):
            ((kind, value),) = self.given[own[name].path[0]].items()
            names[f"#k{at}"] = own[name].path[0]
            values[f":k{at}"] = {kind: base64.b64decode(value) if kind == "B" else value}
        return {
            "KeyConditionExpression": " AND ".join(f"#k{at} = :k{at}" for at in range(len(own))),
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
        }

    def words(self) -> str:
        """For people."""
        pairs = zip(self.columns.columns, self.texts, strict=True)
        return ", ".join(f"{column.attribute}={text}" for column, text in pairs)


def text_of(value: Any, kind: ValueKind) -> str:
    """A value of a column as a text, as `canonical`."""
    if kind.name == "decimal_text":
        return _number(value) or str(value)
    return canonical(value)


def _texts_in(image: Any, reader: ItemReader) -> tuple[str, ...] | None:
    """The values of an image in a reader's columns; None where one is not there."""
    texts = []
    for column in reader.columns.columns:
        attribute = attribute_at(image, column.path)
        text = None if attribute is None else text_as(attribute, column.kind)
        if text is None:
            return None
        texts.append(text)
    return tuple(texts)


def attribute_at(image: Any, path: Sequence[str]) -> Mapping[str, Any] | None:
    """What an image has at a path, of whatever type; None for nothing."""
    for name in path[:-1]:
        image = image.get(name) if isinstance(image, Mapping) else None
        image = image.get("M") if isinstance(image, Mapping) else None
    found = image.get(path[-1]) if isinstance(image, Mapping) else None
    return found if isinstance(found, Mapping) and len(found) == 1 else None


def text_as(attribute: Mapping[str, Any], kind: ValueKind) -> str | None:
    """A text, number or bytes of DynamoDB JSON as `canonical`, read as a kind where it is one."""
    if kind.name not in AS_THEY_ARE:
        value = _reader(kind).value(0, {"": attribute})
        if value is not None and not isinstance(value, Misfit):
            (made,) = pa.array([value], kind.arrow).to_pylist()
            return canonical(made)
    return _raw(attribute)


@cache
def _reader(kind: ValueKind) -> ItemReader:
    return ItemReader(CapturedColumns((CapturedColumn("", ("",), kind),), (), ""))


def _raw(attribute: Mapping[str, Any]) -> str | None:
    """The text, whatever the column's type is."""
    ((kind, value),) = attribute.items()
    if kind == "B" and isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if not isinstance(value, str):
        return None
    return _number(value) if kind == "N" else value


def canonical(value: Any) -> str:
    """A value as a text: 5, 5.0, Decimal("5.00") and "5" are the same."""
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return f"{(value - EPOCH) // MICROSECOND} us"
    if isinstance(value, (int, float, Decimal)):
        return _number(str(value)) or str(value)
    return str(value)


def _number(text: str) -> str | None:
    """The shortest text of a number without an exponent; None for what is none."""
    if text.isdigit() and text.isascii() and (text[0] != "0" or text == "0"):
        return text
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite():
        return None
    sign, digits, exponent = number.as_tuple()
    shown = "".join(map(str, digits)).lstrip("0")
    while shown.endswith("0") and int(exponent) < 0:
        shown, exponent = shown[:-1], int(exponent) + 1
    if not shown:
        return "0"
    plain = Decimal((sign, tuple(map(int, shown)), int(exponent)))
    return format(plain, "f")


def _put(item: dict[str, Any], path: Sequence[str], attribute: Mapping[str, Any]) -> None:
    for name in path[:-1]:
        item = item.setdefault(name, {"M": {}})["M"]
    item[path[-1]] = attribute


def digest(salt: bytes, names: Sequence[str], texts: Sequence[str]) -> str:
    """Who somebody is, so that they are known again but not named."""
    pairs = json.dumps(sorted(zip(names, texts, strict=True)))
    return hmac.new(salt, pairs.encode(), hashlib.sha256).hexdigest()[:32]


@dataclass(frozen=True)
class PersonRows:
    """The rows of somebody in a history: see `parquet.iceberg.erase.Chosen`.

    Attributes:
        person: whose.
        items: keys of items that have such a row: their rows without the attributes, such as
            deletions of which only the key is known, are theirs too. None where the key says it.
    """

    person: Person
    items: Keys | None = None

    @property
    def names(self) -> Sequence[str]:
        """The columns that are compared."""
        return list(dict.fromkeys([*self.person.names, *(self.items.names if self.items else ())]))

    def may_be_in(self, bounds: ManifestBounds, path: str) -> bool:
        """Whether a file may hold such a row."""
        if self.person.may_be_in(bounds, path):
            return True
        return (
            self.items is not None
            and all(bounds.may_hold_null(path, name) for name in self.person.names)
            and self.items.may_be_in(bounds, path)
        )

    def are_in(self, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which rows are theirs."""
        found = self.person.are_in(rows)
        if self.items is not None:
            nothing = np.ones(rows.num_rows, dtype=bool)
            for name in self.person.names:
                nothing &= np.asarray(rows.column(name).is_null())
            if nothing.any():
                found |= nothing & self.items.are_in(rows)
        return found


@dataclass(frozen=True)
class PersonRecords:
    """The records of somebody in a quarantine: see `parquet.iceberg.erase.Chosen`."""

    person: Person

    @property
    def names(self) -> Sequence[str]:
        """The column that has the records."""
        return ["item"]

    def may_be_in(self, _bounds: ManifestBounds, _path: str) -> bool:
        """Whether a file may hold such a record; what is in the texts no manifest says."""
        return True

    def are_in(self, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which records are theirs."""
        return np.array(
            [self.person.is_in(json.loads(text)) for text in _texts(rows.column("item"))], bool
        )


def _texts(column: pa.Array) -> Iterable[str]:
    texts: list[str] = column.to_pylist()
    return texts
