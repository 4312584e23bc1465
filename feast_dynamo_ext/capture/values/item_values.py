"""One item, as DynamoDB JSON, becomes the values of a row, or the reason why it does not.

For streams, for what is tried again, and for those items of an export that `export_rows` leaves
to it: it decides, value by value and without a rounding, what fits. Reasons show no values.
"""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Context, Decimal, localcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson
import pyarrow as pa

from feast_dynamo_ext.capture.values.attribute_types import PER_UNIT_NS, TYPES
from feast_dynamo_ext.timestamps import EARLIEST_US, LATEST_US, micros_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from feast_dynamo_ext.capture.values.attribute_types import (
        CapturedColumn,
        CapturedColumns,
        ValueKind,
    )

Item: TypeAlias = Mapping[str, Mapping[str, Any]]
Values: TypeAlias = tuple[Any, ...]

NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
"""The texts that DynamoDB takes as numbers."""

JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)

ISO = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]([0-9]{2})(?::?([0-9]{2})(?::?([0-9]{2})(?:[.,]([0-9]{1,18}))?)?)?"
    r" ?([Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)?)?",
    re.ASCII,
)

WITH_ALL_DIGITS = Context(prec=400)
DIGITS_OF_A_DOUBLE = 15
"""Each number of so many digits comes back from a double."""


@dataclass(frozen=True)
class Misfit:
    """Why an item is no row.

    Attributes:
        reason: in words; without values.
        attribute: which one, with the names in maps after dots.
    """

    reason: str
    attribute: str


class _MisfitError(Exception):
    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason, self.path = reason, path


class ItemReader:
    """Makes rows of items.

    Args:
        columns: those of the history.
    """

    def __init__(self, columns: CapturedColumns) -> None:
        self.columns = columns
        self._readers = [(column, _reader(column.kind)) for column in columns.columns]
        self._known = _known(columns)

    def values(self, item: Any) -> Values | Misfit:
        """The values of all columns, in their order; or what does not fit.

        Times are microseconds since 1970 UTC, decimals `Decimal`, maps lists of pairs: as
        `arrays` takes them.

        Args:
            item: DynamoDB JSON; bytes may be base64 or, as boto3 gives them, bytes.
        """
        row = []
        column = None
        try:
            for column, read in self._readers:
                row.append(_value(item, column, read))
        except _MisfitError as error:
            return Misfit(error.reason, column.attribute + error.path if column else "")
        return tuple(row)

    def value(self, place: int, item: Any) -> Any:
        """The value of one column, by its place; or what does not fit."""
        column, read = self._readers[place]
        try:
            return _value(item, column, read)
        except _MisfitError as error:
            return Misfit(error.reason, column.attribute + error.path)

    def values_that_fit(self, item: Any) -> Values:
        """As `values`, with null for what does not fit: of images before a change."""
        found = (self.value(place, item) for place in range(len(self._readers)))
        return tuple(None if isinstance(value, Misfit) else value for value in found)

    def arrays(self, rows: Sequence[Values]) -> list[pa.Array]:
        """Rows of `values` as columns."""
        cells = zip(*rows, strict=True) if rows else ([] for _ in self.columns.columns)
        return [
            pa.array(list(column), declared.kind.arrow)
            for column, declared in zip(cells, self.columns.columns, strict=True)
        ]

    def undeclared(self, item: Any) -> Iterator[str]:
        """The attributes of an item that no column takes, and such names in structs."""
        return _undeclared(item, self._known, "")


def _value(item: Any, column: CapturedColumn, read: Callable[[Any], Any]) -> Any:
    if not isinstance(item, Mapping):
        raise _MisfitError("the item is not a map of attributes")
    attribute = item.get(column.path[0])
    for name in column.path[1:]:
        if attribute is None or (isinstance(attribute, Mapping) and "NULL" in attribute):
            attribute = None
            break
        fields = attribute.get("M") if isinstance(attribute, Mapping) else None
        if not isinstance(fields, Mapping):
            raise _MisfitError(f"{_type_of(attribute)}, where a map (M) is declared")
        attribute = fields.get(name)
    value = None if attribute is None else read(attribute)
    if value is None and column.required:
        raise _MisfitError("is missing")
    return value


def _type_of(attribute: Any) -> str:
    """The type of a value of DynamoDB JSON, for messages: names are kept apart from values."""
    if isinstance(attribute, Mapping) and len(attribute) == 1:
        (name,) = attribute
        if name in TYPES:
            return f"type {name}"
    return "no value of DynamoDB JSON"


def _known(columns: CapturedColumns) -> dict[str, Any]:
    """What is declared, by name; None where all that is inside is."""
    known: dict[str, Any] = {}
    for column in columns.columns:
        inside = known
        for name in column.path[:-1]:
            inside = inside.setdefault(name, {})
            if inside is None:
                break
        else:
            inside[column.path[-1]] = _known_inside(column.kind)
    if columns.expiry is not None:  # it says of a deletion what it was
        known.setdefault(columns.expiry, None)
    return known


def _known_inside(kind: ValueKind) -> dict[str, Any] | None:
    if kind.name != "struct":
        return None
    return {name: _known_inside(part) for name, part in kind.fields}


def _undeclared(item: Any, known: dict[str, Any], before: str) -> Iterator[str]:
    if not isinstance(item, Mapping):
        return
    for name, value in item.items():
        inside = known.get(name, ...)
        if inside is ...:
            yield before + name
        elif inside is not None and isinstance(value, Mapping):
            yield from _undeclared(value.get("M"), inside, f"{before}{name}.")


# How a value of each kind is read: given what stands under its type's name.


def _reader(kind: ValueKind) -> Callable[[Any], Any]:
    if kind.name == "json":
        return _dynamodb_json if kind.unit == "dynamodb" else _plain_json
    read = _maker(kind)
    wanted = " or ".join(kind.accepts)

    def value(attribute: Any) -> Any:
        if not isinstance(attribute, Mapping) or not attribute:
            raise _MisfitError("no value of DynamoDB JSON")
        for name in kind.accepts:
            if name in attribute:
                return read(attribute[name], name)
        if "NULL" in attribute:
            return None
        raise _MisfitError(f"{_type_of(attribute)}, where {kind.label} takes {wanted}")

    return value


def _maker(kind: ValueKind) -> Callable[[Any, str], Any]:
    if kind.name in {"list", "set"}:
        return _list(kind)
    if kind.name == "struct":
        return _struct(kind)
    if kind.name == "time":
        read = _iso_time if kind.unit == "iso8601" else _epoch_time(kind.unit)
        return _spelled(read, kind.spelling) if kind.spelling else read
    if kind.name == "decimal":
        return _decimal(kind.arrow.precision, kind.arrow.scale)
    return MAKERS[kind.name]


def _text(value: Any, _name: str = "S") -> str:
    if not isinstance(value, str):
        raise _MisfitError("no text under its type's name")
    return value


def _bytes(value: Any, _name: str = "B") -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if hasattr(value, "value"):  # boto3's Binary
        return bytes(value.value)
    try:
        return base64.b64decode(_text(value), validate=True)
    except (binascii.Error, ValueError):
        raise _MisfitError("bytes that are not base64") from None


def _bool(value: Any, _name: str) -> bool:
    if not isinstance(value, bool):
        raise _MisfitError("neither true nor false")
    return value


def _number(value: Any) -> Decimal:
    text = _text(value)
    if NUMBER.fullmatch(text) is None:
        raise _MisfitError("a text that is not a number")
    return Decimal(text)


def _whole(bits: int) -> Callable[[Any, str], int]:
    most = 1 << (bits - 1)

    def read(value: Any, _name: str) -> int:
        number = _number(value)
        # An integer of 10**9999 would take long to write out.
        if number.adjusted() > MOST_ADJUSTED or not -most <= number < most:
            raise _MisfitError(f"a number out of the range of Int{bits}")
        if number != number.to_integral_value():
            raise _MisfitError("not a whole number")
        return int(number)

    return read


MOST_ADJUSTED = 30


def _float64(value: Any, _name: str) -> float:
    number = _number(value)
    made = float(value)
    if made in {float("inf"), float("-inf")}:
        raise _MisfitError("a number out of the range of Float64")
    if Decimal(repr(made)) != number:
        raise _MisfitError("more digits than Float64 keeps")
    return made


def _float32(value: Any, _name: str) -> float:
    number = _number(value)
    # Arrow goes from the text to the nearest single; by a double it would be rounded twice.
    made: float = pa.scalar(str(number)).cast(pa.float32()).as_py()
    if made in {float("inf"), float("-inf")}:
        raise _MisfitError("a number out of the range of Float32")
    return made


def _decimal(precision: int, scale: int) -> Callable[[Any, str], Decimal]:
    def read(value: Any, _name: str) -> Decimal:
        number = _number(value)
        if number and number.adjusted() >= precision - scale:
            raise _MisfitError(f"more than {precision - scale} digits before the point")
        with localcontext(WITH_ALL_DIGITS):
            if number and number.adjusted() < -scale:
                raise _MisfitError(f"more than {scale} decimals")
            made = number.quantize(Decimal(1).scaleb(-scale))
            if made != number:
                raise _MisfitError(f"more than {scale} decimals")
        return made if made else abs(made)

    return read


def _decimal_text(value: Any, _name: str) -> str:
    return str(_number(value))


def _epoch_time(unit: str) -> Callable[[Any, str], int]:
    per_unit = PER_UNIT_NS[unit]

    def read(value: Any, _name: str) -> int:
        number = _number(value)
        if number.adjusted() > MOST_ADJUSTED:
            raise _MisfitError("a time outside the years 1 to 9999; check its unit")
        with localcontext(WITH_ALL_DIGITS):
            micros = number * per_unit / 1_000
            if micros != micros.to_integral_value():
                raise _MisfitError("a time with a part below a microsecond")
        return _checked(int(micros))

    return read


def _spelled(read: Callable[[Any, str], int], spelling: str) -> Callable[[Any, str], int]:
    wanted = re.compile(spelling, re.ASCII)

    def value(text: Any, name: str) -> int:
        made = read(text, name)
        if wanted.fullmatch(_text(text)) is None:
            raise _MisfitError(
                "a time in another spelling than it is written in; see the tag `spelling`"
            )
        return made

    return value


def _checked(micros: int) -> int:
    if not EARLIEST_US <= micros <= LATEST_US:
        raise _MisfitError("a time outside the years 1 to 9999; check its unit")
    return micros


def _iso_time(value: Any, _name: str) -> int:
    found = ISO.fullmatch(_text(value))
    if found is None:
        raise _MisfitError("a text that is not a time of ISO 8601")
    day, hour, minute, second, fraction, zone = found.groups()
    try:
        moment = datetime.fromisoformat(
            f"{day}T{hour or '00'}:{minute or '00'}:{second or '00'}+00:00"
        )
    except ValueError:
        raise _MisfitError("a text that is not a time of ISO 8601") from None
    fraction = (fraction or "").ljust(6, "0")
    if fraction[6:].strip("0"):
        raise _MisfitError("a time with a part below a microsecond")
    return _checked(micros_of(moment) + int(fraction[:6]) - _offset(zone) // MICROSECOND)


MICROSECOND = timedelta(microseconds=1)
HOURS, MINUTES = 24, 60


def _offset(zone: str | None) -> timedelta:
    """Of a zone; a time without one is UTC."""
    if zone is None or zone in "Zz":
        return timedelta()
    digits = zone[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    if hours >= HOURS or minutes >= MINUTES:
        raise _MisfitError("a text that is not a time of ISO 8601")
    size = timedelta(hours=hours, minutes=minutes)
    return -size if zone[0] == "-" else size


def _uuid(value: Any, _name: str) -> str:
    try:
        return str(uuid.UUID(_text(value)))
    except ValueError:
        raise _MisfitError("a text that is not a UUID") from None


def _map(value: Any, _name: str) -> list[tuple[str, str | None]]:
    if not isinstance(value, Mapping):
        raise _MisfitError("no map under its type's name")
    found: list[tuple[str, str | None]] = []
    for name, inner in value.items():
        if isinstance(inner, Mapping) and "S" in inner:
            found.append((name, _text(inner["S"])))
        elif isinstance(inner, Mapping) and "NULL" in inner:
            found.append((name, None))
        else:
            raise _MisfitError(f"{_type_of(inner)} in a map, where Map takes S; declare Json")
    return found


def _list(kind: ValueKind) -> Callable[[Any, str], list[Any]]:
    assert kind.element is not None  # noqa: S101 - lists and sets have
    if kind.name == "list":
        read = _reader(kind.element)
    else:
        make = _maker(kind.element)

        def read(value: Any) -> Any:
            return make(value, "")

    def values(value: Any, _name: str) -> list[Any]:
        # A set of boto3's is Python's.
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise _MisfitError("no list under its type's name")
        return [read(element) for element in value]

    return values


def _struct(kind: ValueKind) -> Callable[[Any, str], dict[str, Any]]:
    readers = [(name, _reader(part)) for name, part in kind.fields]

    def values(value: Any, _name: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _MisfitError("no map under its type's name")
        found = {}
        name = ""
        try:
            for name, read in readers:
                inner = value.get(name)
                found[name] = None if inner is None else read(inner)
        except _MisfitError as error:
            error.path = f".{name}{error.path}"
            raise
        return found

    return values


def _plain_json(attribute: Any) -> str | None:
    """JSON as others write it; what would lose its type in it is a misfit."""
    made = _plain(attribute)
    return None if made is None else orjson.dumps(made).decode()


def _plain(attribute: Any) -> Any:
    if not isinstance(attribute, Mapping) or len(attribute) != 1:
        raise _MisfitError("no value of DynamoDB JSON")
    ((name, value),) = attribute.items()
    if name == "S":
        return _text(value)
    if name == "N":
        number = _number(value)
        return orjson.Fragment(value if JSON_NUMBER.fullmatch(value) else str(number))
    if name == "BOOL":
        return _bool(value, name)
    if name == "NULL":
        return None
    if name == "M" and isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if name == "L" and isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(inner) for inner in value]
    if name in TYPES:
        raise _MisfitError(
            f"type {name}, which plain JSON does not keep; declare tags={{'json': 'dynamodb'}}"
        )
    raise _MisfitError("no value of DynamoDB JSON")


def _dynamodb_json(attribute: Any) -> str | None:
    if not isinstance(attribute, Mapping) or len(attribute) != 1 or {*attribute} - {*TYPES}:
        raise _MisfitError("no value of DynamoDB JSON")
    return None if "NULL" in attribute else item_text(attribute)


def item_text(item: Any) -> str:
    """DynamoDB JSON of an item, with bytes as base64."""
    return orjson.dumps(item, default=_in_base64).decode()


def _in_base64(value: Any) -> str:
    return base64.b64encode(_bytes(value)).decode()


MAKERS: dict[str, Callable[[Any, str], Any]] = {
    "text": _text,
    "bytes": _bytes,
    "bool": _bool,
    "int32": _whole(32),
    "int64": _whole(64),
    "float32": _float32,
    "float64": _float64,
    "decimal_text": _decimal_text,
    "uuid": _uuid,
    "map": _map,
}
