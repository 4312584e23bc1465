"""A schema from items of a table or an export: what they hold, and a declaration that keeps it.

What is written is what the items need: a type that takes every value seen. Where a text always is
a time or a UUID that is a proposal, never a guess; where an attribute has several types it becomes
Json, and the report names it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO

from feast_dynamo_ext import aws
from feast_dynamo_ext.capture.exports.export_files import (
    DataStream,
    exports_below,
    read_export,
)
from feast_dynamo_ext.capture.exports.export_rows import export_records
from feast_dynamo_ext.capture.values.attribute_types import MOST_DIGITS
from feast_dynamo_ext.capture.values.item_values import ISO, NUMBER
from feast_dynamo_ext.columns import RESERVED
from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.errors import CaptureError, ResourceNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from feast_dynamo_ext.aws import AwsSettings

LEAST_INT64, MOST_INT64 = -(2**63), 2**63 - 1
MOST_FIELDS = 100
"""Names in a map of which a struct is made; one with more has names that are values."""

UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
EPOCHS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
FIRST_EPOCH_S, LAST_EPOCH_S = 946_684_800, 4_102_444_800
"""The years 2000 to 2099: numbers of other times are not proposed as times."""

PLAIN_JSON = {"S", "N", "BOOL", "NULL", "M", "L"}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass
class _Numbers:
    """What all numbers of an attribute have in common."""

    are_int64: bool = True
    are_float64: bool = True
    are_numbers: bool = True
    before: int = 1
    after: int = 0
    units: set[str] = field(default_factory=lambda: set(EPOCHS))

    def add(self, text: Any) -> None:
        if not isinstance(text, str) or NUMBER.fullmatch(text) is None:
            self.are_numbers = False
            self.units = set()
            return
        number = Decimal(text)
        exponent = int(number.as_tuple().exponent)
        if number:
            self.before = max(self.before, number.adjusted() + 1)
            digits = number.as_tuple().digits
            zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
            self.after = max(self.after, -(exponent + zeros))
        within = LEAST_INT64 <= number <= MOST_INT64
        self.are_int64 &= within and number == number.to_integral_value()
        made = float(text)
        self.are_float64 &= abs(made) != float("inf") and Decimal(repr(made)) == number
        for unit in [*self.units]:
            if not FIRST_EPOCH_S <= number / EPOCHS[unit] <= LAST_EPOCH_S:
                self.units.discard(unit)


@dataclass
class _Texts:
    """What all texts of an attribute have in common."""

    are_times: bool = True
    are_uuids: bool = True
    digits: _Numbers = field(default_factory=_Numbers)

    def add(self, text: Any) -> None:
        text = text if isinstance(text, str) else ""
        self.are_times = self.are_times and ISO.fullmatch(text) is not None
        self.are_uuids = self.are_uuids and UUID.fullmatch(text) is not None
        if self.digits.units:
            self.digits.add(text if text.isascii() and text.isdigit() else None)


@dataclass
class _Seen:
    """What an attribute, an element or a name in a map was seen to hold."""

    types: Counter[str] = field(default_factory=Counter)
    numbers: _Numbers = field(default_factory=_Numbers)
    texts: _Texts = field(default_factory=_Texts)
    inside: dict[str, _Seen] = field(default_factory=dict)
    elements: _Seen | None = None

    @property
    def count(self) -> int:
        """Values that are there and not NULL."""
        return sum(self.types.values()) - self.types["NULL"]

    def add(self, value: Mapping[str, Any]) -> None:
        for kind, held in value.items():
            self.types[kind] += 1
            if kind == "S":
                self.texts.add(held)
            elif kind == "N":
                self.numbers.add(held)
            elif kind == "NS":
                for each in held:
                    self.numbers.add(each)
            elif kind == "M":
                for name, each in held.items():
                    self.inside.setdefault(name, _Seen()).add(each)
            elif kind == "L":
                self.elements = self.elements or _Seen()
                for each in held:
                    self.elements.add(each)

    @property
    def kinds(self) -> list[str]:
        """DynamoDB's types, the most frequent first, NULL left out."""
        return [kind for kind, _ in self.types.most_common() if kind != "NULL"]

    def parts(self) -> Iterator[_Seen]:
        yield from self.inside.values()
        if self.elements is not None:
            yield self.elements

    def is_plain_json(self) -> bool:
        """Whether JSON without types says all of it."""
        own = set(self.types) <= PLAIN_JSON and self.numbers.are_numbers
        return own and all(part.is_plain_json() for part in self.parts())


@dataclass(frozen=True)
class InferredColumn:
    """One attribute, or a value in a map, and what it is declared as.

    Attributes:
        name: of the column.
        path: the attribute, or the attribute and names in the maps inside of it.
        dtype: Feast's type, as Python.
        tags: of the field.
        missing: share of the items that have none, or NULL.
        types: DynamoDB's types, each with how often it was seen.
        proposals: what it could be declared as besides, with more meaning.
    """

    name: str
    path: tuple[str, ...]
    dtype: str
    tags: dict[str, str]
    missing: float
    types: dict[str, int]
    proposals: tuple[str, ...]

    @property
    def has_conflict(self) -> bool:
        """Whether it was seen with several types."""
        return len(set(self.types) - {"NULL"}) > 1

    def field(self) -> str:
        """The field as Python."""
        tags = f", tags={self.tags!r}" if self.tags else ""
        return f"Field(name={self.name!r}, dtype={self.dtype}{tags})"


@dataclass(frozen=True)
class InferredSchema:
    """A schema that takes all items it was inferred of.

    Attributes:
        items: how many they were.
        columns: in the order of their attributes; the event time is a UnixTimestamp, whose unit
            the source says.
    """

    items: int
    columns: tuple[InferredColumn, ...]

    def declaration(self) -> str:
        """Python that makes `schema`, a list of fields."""
        fields = "".join(f"    {column.field()},\n" for column in self.columns)
        used = set(re.findall(r"\b[A-Z]\w+", " ".join(column.dtype for column in self.columns)))
        types = ", ".join(sorted(used & TYPE_NAMES))
        imports = f"from feast.types import {types}\n" if types else ""
        return f"from feast import Field\n{imports}\nschema = [\n{fields}]\n"

    def report(self) -> str:
        """A table of attributes, for people."""
        from tabulate import tabulate

        rows = [
            [
                ".".join(column.path),
                f"{column.missing:.1%}",
                ", ".join(f"{kind} {count:,}" for kind, count in column.types.items()),
                column.dtype + "".join(f" {key}={tag}" for key, tag in column.tags.items()
                                       if key != "attribute"),
                "several types" if column.has_conflict else "; ".join(column.proposals),
            ]
            for column in self.columns
        ]  # fmt: skip
        headers = ["attribute", "missing", "types seen", "declared as", "note"]
        table = tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
        conflicts = sum(column.has_conflict for column in self.columns)
        return (
            f"{self.items:,} items, {len(self.columns)} columns, {conflicts} of several types.\n"
            f"\n{table}"
        )


TYPE_NAMES = {
    *("Array", "Bool", "Bytes", "Decimal", "Float64", "Int64", "Json", "Map", "Set", "String"),
    *("Struct", "UnixTimestamp"),
}


class SchemaInference:
    """Looks at items and says what they need.

    ::

        inference = SchemaInference()
        for stream in data_files:
            inference.add_export(stream, most=100_000)
        schema = inference.schema(event_time="purchased_at")
        print(schema.report(), schema.declaration())
    """

    def __init__(self) -> None:
        self.items = 0
        self._seen: dict[str, _Seen] = {}

    def add(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Look at items of DynamoDB JSON."""
        for item in items:
            self.items += 1
            for name, value in item.items():
                self._seen.setdefault(name, _Seen()).add(value)

    def add_export(self, stream: BinaryIO, name: str = "", most: int | None = None) -> int:
        """Look at the items of a data file of an export; of increments at all images.

        Args:
            stream: the file's bytes, gzip or plain.
            name: of the file, for messages.
            most: so many items, at most.

        Returns:
            How many there were.

        Raises:
            SourceReadError: a line that is no record.
        """
        before = self.items
        for record in export_records(stream, name):
            for image in ("Item", "OldImage", "NewImage"):
                if image in record:
                    self.add([record[image]])
            if most is not None and self.items - before >= most:
                break
        return self.items - before

    def schema(self, event_time: str | None = None, *, flatten: bool = False) -> InferredSchema:
        """What takes all items that were looked at.

        Args:
            event_time: the attribute of the event time, if it is known.
            flatten: a column for each value inside of maps, in place of one struct a map.

        Raises:
            CaptureError: no item has the event time.
        """
        if event_time is not None and event_time not in self._seen:
            raise CaptureError(
                f"No item that was looked at has the event time `{event_time}`. "
                f"{did_you_mean(event_time, self._seen, 'There are')}"
            )
        columns: list[InferredColumn] = []
        taken: set[str] = set()
        for name in sorted(self._seen):
            is_time = name == event_time
            found = self._columns(
                (name,), self._seen[name], taken, flatten=flatten and not is_time
            )
            # Its unit is the source's; values that are no times go to quarantine.
            columns += (
                (replace(each, dtype="UnixTimestamp", tags=_named(each.tags)) for each in found)
                if is_time
                else found
            )
        return InferredSchema(self.items, tuple(columns))

    def _columns(
        self, path: tuple[str, ...], seen: _Seen, taken: set[str], *, flatten: bool
    ) -> Iterator[InferredColumn]:
        if flatten and seen.kinds == ["M"] and 0 < len(seen.inside) <= MOST_FIELDS:
            for name in sorted(seen.inside):
                yield from self._columns((*path, name), seen.inside[name], taken, flatten=True)
            return
        name = _column_name(path, taken)
        dtype, tags = _declared(seen)
        if path != (name,):
            tags["attribute"] = path[0] if len(path) == 1 else json.dumps(path)
            if path[0].startswith("["):
                tags["attribute"] = json.dumps(path)
        yield InferredColumn(
            name,
            path,
            dtype,
            tags,
            1 - seen.count / self.items,
            dict(seen.types.most_common()),
            tuple(_proposals(seen)),
        )


def _named(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that say which attribute a column is of."""
    return {key: tag for key, tag in tags.items() if key == "attribute"}


def _column_name(path: tuple[str, ...], taken: set[str]) -> str:
    """A name that no other column has to readers that know no case."""
    wanted = path[0] if len(path) == 1 and NAME.fullmatch(path[0]) else _as_name("_".join(path))
    if wanted.lower().startswith(RESERVED):
        wanted = f"a{wanted}"
    name, number = wanted, 1
    while name.lower() in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name.lower())
    return name


def _as_name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_]+", "_", text)
    return name if NAME.fullmatch(name) else f"a_{name}"


def _declared(seen: _Seen) -> tuple[str, dict[str, str]]:
    """A type that takes all values, and its field's tags."""
    dtype = _dtype(seen)
    if dtype is None:
        form = {} if seen.is_plain_json() else {"json": "dynamodb"}
        return "Json", form
    tags = {}
    if dtype == "Decimal" and (digits := _precision(seen.numbers)) is not None:
        tags = {"precision": str(digits[0]), "scale": str(digits[1])}
    return dtype, tags


def _dtype(seen: _Seen) -> str | None:
    """A type that takes all values; None where there is none but Json."""
    kinds = seen.kinds
    if len(kinds) != 1:
        return None
    kind = kinds[0]
    if kind in SIMPLE:
        return SIMPLE[kind]
    if kind in {"N", "NS"}:
        number = _number_type(seen.numbers)
        return number if kind == "N" or number is None else f"Set({number})"
    if kind == "L":
        return _array_type(seen)
    return _map_type(seen) if kind == "M" else None


SIMPLE = {
    "S": "String",
    "B": "Bytes",
    "BOOL": "Bool",
    "SS": "Set(String)",
    "BS": "Set(Bytes)",
}


def _number_type(numbers: _Numbers) -> str | None:
    if not numbers.are_numbers:
        return None
    if numbers.are_int64:
        return "Int64"
    return "Float64" if numbers.are_float64 else "Decimal"


def _precision(numbers: _Numbers) -> tuple[int, int] | None:
    """Digits in all and after the point; None where no decimal column holds them."""
    scale = max(0, numbers.after)
    precision = max(1, numbers.before) + scale
    return (precision, scale) if precision <= MOST_DIGITS else None


def _array_type(seen: _Seen) -> str | None:
    elements = seen.elements
    if elements is None or not elements.types:
        return "Array(String)"
    inner = _dtype(elements)
    return None if inner is None else f"Array({inner})"


def _map_type(seen: _Seen) -> str | None:
    inside = seen.inside
    if not inside:
        return "Map"
    if len(inside) > MOST_FIELDS:
        is_map = all(part.kinds in ([], ["S"]) for part in inside.values())
        return "Map" if is_map else None
    parts = {name: _dtype(part) for name, part in sorted(inside.items())}
    if None in parts.values():
        return None
    return "Struct({" + ", ".join(f"{name!r}: {dtype}" for name, dtype in parts.items()) + "})"


def _proposals(seen: _Seen) -> Iterator[str]:
    kinds = seen.kinds
    if kinds == ["S"]:
        if seen.texts.are_times:
            yield "UnixTimestamp unit=iso8601"
        if seen.texts.are_uuids:
            yield "Uuid"
        units = seen.texts.digits.units
    elif kinds == ["N"]:
        units = seen.numbers.units
    else:
        return
    for unit in EPOCHS:
        if unit in units:
            yield f"UnixTimestamp unit={unit}"


# Items to look at


def add_scanned(inference: SchemaInference, client: Any, table: str, most: int) -> None:
    """Look at the first items of a table.

    Args:
        inference: looks at them.
        client: boto3's of DynamoDB.
        table: its name.
        most: so many items, at most.

    Raises:
        CaptureError: there is no such table, or it has no items.
        AwsError: DynamoDB refuses.
    """
    try:
        inference.add(itertools.islice(_items(client, table), most))
    except ResourceNotFoundError as error:
        raise CaptureError(
            f"There is no DynamoDB table {table} in {client.meta.region_name}. Name one, or set "
            "`region` in feature_store.yaml."
        ) from error
    _refuse_none(inference, f"Table {table}")


def _items(client: Any, table: str) -> Iterator[dict[str, Any]]:
    with aws.translated("dynamodb", f"table {table}"):
        for page in client.get_paginator("scan").paginate(TableName=table):
            yield from page["Items"]


def add_exported(
    inference: SchemaInference, uri: str, table: str, settings: AwsSettings, most: int
) -> None:
    """Look at the first items of exports.

    Args:
        inference: looks at them.
        uri: of an export, or of a folder with several.
        table: the table that they must be of.
        settings: how S3 is reached.
        most: so many items, at most.

    Raises:
        CaptureError: there is none, one is of another table, or they have no items.
        SourceReadError: a line that is no record. AwsError: S3 refuses.
    """
    arns: set[str] = set()
    for folder in exports_below(uri, settings):
        export = read_export(folder, settings)
        arns.add(export.table_arn)
        if export.table != table:
            raise CaptureError(f"{folder} is an export of {export.table}, and not of {table}.")
        if len(arns) > 1:
            raise CaptureError(
                f"{uri} has exports of several tables {table}: {', '.join(sorted(arns))}. Name a "
                "folder with those of one."
            )
        for file in export.files:
            if inference.items < most:
                with DataStream(file, settings) as stream:
                    inference.add_export(stream, file.uri, most - inference.items)  # type: ignore[arg-type]
    _refuse_none(inference, uri)


def _refuse_none(inference: SchemaInference, what: str) -> None:
    if not inference.items:
        raise CaptureError(f"{what} has no items, so nothing says which attributes there are.")
