"""Which attribute of a DynamoDB item becomes which column of history, and as what.

A declared Feast type says which of DynamoDB's types a column takes (`KINDS`); what is of another
type, or does not fit, is a misfit: nothing is converted by guess, rounded or wrapped. A field's
tags say what its type leaves open:

- ``unit``: of times, ``s``, ``ms``, ``us``, ``ns`` (a number, or digits in a text) or ``iso8601``;
- ``spelling``: of times of unit ``iso8601`` an example, as which all are written;
- ``precision`` and ``scale``: of decimals, which are texts without them;
- ``json``: ``plain``, or ``dynamodb`` for DynamoDB's own JSON, which keeps the type of each value;
- ``attribute``: the attribute's name where the column has another, or, as a JSON list, the names
  that lead to a value inside of maps: ``'["address", "city"]'``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext.columns import CHANGE, CHANGE_ID, WRITTEN
from feast_dynamo_ext.errors import ConfigError, UnsupportedTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

TYPES = ("S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS")
"""DynamoDB's types of attributes."""

MOMENT = pa.timestamp("us", "UTC")
TIME_UNITS = ("s", "ms", "us", "ns", "iso8601")
PER_UNIT_NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
MOST_DIGITS = 38
DEPTH = 32
"""DynamoDB's own limit of lists and maps in each other."""


@dataclass(frozen=True)
class ValueKind:
    """What a value is, and how it is kept.

    Attributes:
        name: what converts it: ``text``, ``bytes``, ``bool``, ``int32``, ``int64``, ``float32``,
            ``float64``, ``decimal``, ``decimal_text``, ``time``, ``uuid``, ``json``, ``map``,
            ``list``, ``set`` or ``struct``.
        arrow: type of the column.
        accepts: DynamoDB's types that it is made of.
        label: the declared type, for messages.
        unit: of times; of JSON its form.
        spelling: of times, an expression that the whole text is of; empty for any text.
        element: of lists and sets.
        fields: of structs: name and kind.
    """

    name: str
    arrow: pa.DataType
    accepts: tuple[str, ...]
    label: str
    unit: str = ""
    spelling: str = ""
    element: ValueKind | None = None
    fields: tuple[tuple[str, ValueKind], ...] = ()

    @property
    def parts(self) -> tuple[ValueKind, ...]:
        """The kinds inside it."""
        inner = tuple(kind for _, kind in self.fields)
        return inner if self.element is None else (*inner, self.element)


@dataclass(frozen=True)
class CapturedColumn:
    """A column and where its values are.

    Attributes:
        name: of the column.
        path: the attribute, or the attribute and names in the maps inside of it.
        kind: what its values are.
        required: an item without it is no row: key attributes and the event time.
    """

    name: str
    path: tuple[str, ...]
    kind: ValueKind
    required: bool = False

    @property
    def attribute(self) -> str:
        """Its path in messages and in the quarantine."""
        return ".".join(self.path)


@dataclass(frozen=True)
class CapturedColumns:
    """The columns of a table's history.

    Attributes:
        columns: key attributes first, then the event time, then the others.
        keys: names of the key attributes' columns: partition key, sort key.
        event_time: name of the event time's column.
        expiry: the table's TTL attribute, or None.
        event_columns: further columns by which readers tell events apart: an update that changes
            one ends an event, as one that changes the event time does.
    """

    columns: tuple[CapturedColumn, ...]
    keys: tuple[str, ...]
    event_time: str
    expiry: str | None = None
    event_columns: frozenset[str] = frozenset()

    @property
    def schema(self) -> pa.Schema:
        """The columns that items fill."""
        return pa.schema(
            [
                pa.field(column.name, column.kind.arrow, nullable=not column.required)
                for column in self.columns
            ]
        )

    @property
    def history_schema(self) -> pa.Schema:
        """The columns of history, without the sequence column, which is the table's."""
        schema = self.schema.append(pa.field(WRITTEN, MOMENT, nullable=False))
        schema = schema.append(pa.field(CHANGE, pa.string(), nullable=False))
        return schema.append(pa.field(CHANGE_ID, pa.string()))

    @property
    def projection(self) -> tuple[str, ...]:
        """The attributes that are looked at: of the columns, of the key, and the TTL."""
        names = [column.path[0] for column in self.columns]
        return tuple(dict.fromkeys([*names, *([self.expiry] if self.expiry else [])]))

    @property
    def of_keys(self) -> CapturedColumns:
        """The key attributes alone, as deletions have them."""
        own = tuple(column for column in self.columns if column.name in self.keys)
        return CapturedColumns(own, self.keys, self.event_time)

    @classmethod
    def from_fields(
        cls,
        fields: Iterable[Any],
        *,
        keys: Mapping[str, str],
        event_time: str,
        event_time_unit: str,
        expiry: str | None = None,
        subject: str = "DynamoDBTableSource",
    ) -> CapturedColumns:
        """The columns that Feast's fields declare.

        Args:
            fields: of the source's schema; keys and event time may be left out.
            keys: the table's key attributes in their order, each with its type, ``S``, ``N`` or
                ``B``. Those that no field declares are String, Int64 and Bytes.
            event_time: the attribute of the event time.
            event_time_unit: see ``unit``.
            expiry: the table's TTL attribute.
            subject: what declares them, for messages.

        Raises:
            ConfigError: a tag, a unit or a name that cannot be.
            UnsupportedTypeError: a declared type that no value of DynamoDB can be kept as.
        """
        declared = _declared(fields, subject)
        if event_time_unit not in TIME_UNITS:
            raise ConfigError(
                f"{subject}: `event_time_unit` is `{event_time_unit}`, not one of "
                f"{', '.join(TIME_UNITS)}."
            )
        found = {column.path: column for column in declared}
        columns: dict[tuple[str, ...], CapturedColumn] = {}
        for name, kind in keys.items():
            column = found.get((name,)) or CapturedColumn(name, (name,), _key_kind(kind, subject))
            if name != event_time:
                _check_key(column, name, kind, subject)
            columns[column.path] = _required(column)
        columns[event_time,] = _event_time(
            found.get((event_time,)), event_time, event_time_unit, keys.get(event_time), subject
        )
        for path, column in found.items():
            columns.setdefault(path, column)
        _refuse_same_names(columns.values(), subject)
        key_columns = tuple(columns[name,].name for name in keys)
        return cls(tuple(columns.values()), key_columns, columns[event_time,].name, expiry)


def _required(column: CapturedColumn) -> CapturedColumn:
    return CapturedColumn(column.name, column.path, column.kind, required=True)


def _key_kind(kind: str, subject: str) -> ValueKind:
    from feast.types import Bytes, Int64, String

    types = {"S": String, "N": Int64, "B": Bytes}
    if kind not in types:
        raise ConfigError(f"{subject}: key attributes are of type S, N or B, not `{kind}`.")
    return kind_of(types[kind], {}, subject)


KEY_KINDS = {
    "S": {"text"},
    "N": {"int32", "int64", "float64", "decimal", "decimal_text", "time"},
    "B": {"bytes"},
}
"""By type of a key attribute, the kinds that tell all its values apart, or refuse them."""


def _check_key(column: CapturedColumn, attribute: str, kind: str, subject: str) -> None:
    """Refuse a type in which two keys of the table could be one, or one could be two.

    Raises:
        UnsupportedTypeError: names the type to declare.
    """
    label, correct = column.kind.label, f"Declare it as {_key_kind(kind, subject).label}."
    about = f"the table's key attribute `{attribute}` is of type {kind}"
    if kind not in column.kind.accepts:
        raise UnsupportedTypeError(
            f"{subject}: `{column.name}` is declared as {label}, which takes "
            f"{' or '.join(column.kind.accepts)}; {about}. {correct}"
        )
    if column.kind.name not in KEY_KINDS[kind]:
        also = " Or as Decimal, which keeps all digits." if kind == "N" else ""
        raise UnsupportedTypeError(
            f"{subject}: `{column.name}` is declared as {label}, which does not keep each key as "
            f"it is, so that two items could become one; {about}. {correct}{also}"
        )


def _event_time(
    declared: CapturedColumn | None, name: str, unit: str, key_type: str | None, subject: str
) -> CapturedColumn:
    kind = time_kind(unit) if declared is None else declared.kind
    if declared is not None and declared.kind.name != "time":
        raise ConfigError(
            f"{subject}: `{declared.name}`, the event time, is declared as {declared.kind.label}. "
            "Leave it out of the schema, or declare it as UnixTimestamp."
        )
    if declared is not None and kind.unit != unit:
        raise ConfigError(
            f"{subject}: `{declared.name}` has the unit `{kind.unit}` and is the event "
            f"time, whose `event_time_unit` is `{unit}`. Let both say the same."
        )
    if key_type is not None and key_type not in kind.accepts:
        raise ConfigError(
            f"{subject}: the event time `{name}` is of type {key_type} in the table's key, and "
            f"times of unit `{unit}` are of type {' or '.join(kind.accepts)}. Correct "
            "`event_time_unit`."
        )
    if key_type == "S":
        # Of one time in two spellings there are two items in the table, and one in the history.
        usual = IN_UTC if unit == "iso8601" else SHORTEST
        kind = replace(kind, accepts=("S",), spelling=kind.spelling or usual)
    return CapturedColumn(declared.name if declared else name, (name,), kind, required=True)


def _declared(fields: Iterable[Any], subject: str) -> list[CapturedColumn]:
    found: dict[tuple[str, ...], CapturedColumn] = {}
    for field in fields:
        where = f"{subject}: field `{field.name}`"
        tags = field.tags or {}
        path = _path(field.name, tags.get("attribute"), where)
        if path in found:
            raise ConfigError(
                f"{where} has the attribute of `{found[path].name}`. Declare it once."
            )
        found[path] = CapturedColumn(field.name, path, kind_of(field.dtype, tags, where))
    return list(found.values())


def _path(name: str, tag: str | None, where: str) -> tuple[str, ...]:
    if tag is None:
        return (name,)
    if not tag.startswith("["):
        return (tag,)
    try:
        path = json.loads(tag)
    except ValueError:
        path = None
    if not isinstance(path, list) or not path or not all(isinstance(p, str) for p in path):
        raise ConfigError(
            f"{where}: tag `attribute` is neither the name of an attribute nor a JSON list of "
            'names, as \'["address", "city"]\'.'
        )
    return tuple(path)


OURS = {WRITTEN, CHANGE, CHANGE_ID, "_feast_sequence"}


def _refuse_same_names(columns: Iterable[CapturedColumn], subject: str) -> None:
    seen: dict[str, str] = {}
    for column in columns:
        # Most readers of Iceberg and Parquet tables know no case in names.
        lower = column.name.lower()
        if lower in OURS:
            raise ConfigError(
                f"{subject}: a column may not be named `{column.name}`, as one that every history "
                f"has. Name it otherwise: Field(..., tags={{'attribute': '{column.name}'}})."
            )
        if lower in seen:
            raise ConfigError(
                f"{subject}: `{seen[lower]}` and `{column.name}` are one name to readers of "
                "tables that know no case. Name one of them otherwise: "
                f"Field(..., tags={{'attribute': '{column.name}'}})."
            )
        seen[lower] = column.name


def kind_of(dtype: Any, tags: Mapping[str, str], where: str) -> ValueKind:
    """What values of a declared Feast type are.

    Args:
        dtype: Feast's type.
        tags: of its field.
        where: the field, for messages.

    Raises:
        ConfigError: a tag is missing, or says what cannot be.
        UnsupportedTypeError: no value of DynamoDB can be of the type.
    """
    from feast.types import Array, Set, Struct

    if isinstance(dtype, Struct):
        fields = tuple((name, kind_of(kind, tags, where)) for name, kind in dtype.fields.items())
        arrow = pa.struct([pa.field(name, kind.arrow) for name, kind in fields])
        return ValueKind("struct", arrow, ("M",), str(dtype), fields=fields)
    if isinstance(dtype, Array):
        element = kind_of(dtype.base_type, tags, where)
        return ValueKind("list", pa.list_(element.arrow), ("L",), str(dtype), element=element)
    if isinstance(dtype, Set):
        return _set_kind(dtype, tags, where)
    try:
        make = KINDS[dtype.name]
    except (KeyError, AttributeError):
        raise UnsupportedTypeError(
            f"{where} is declared as {dtype}, which {_why_not(dtype)}."
        ) from None
    return make(tags, where)


def _why_not(dtype: Any) -> str:
    return {
        "ZONED_TIMESTAMP": "keeps the zone of each time, and columns of history do not. Declare "
        "UnixTimestamp with tags={'unit': 'iso8601'}, or String",
        "SCALAR_MAP": "has keys other than texts, and DynamoDB's maps have not. Declare Map",
    }.get(getattr(dtype, "name", ""), "no value of DynamoDB is. Declare another type")


SET_OF = {"S": "SS", "N": "NS", "B": "BS"}


def _set_kind(dtype: Any, tags: Mapping[str, str], where: str) -> ValueKind:
    element = kind_of(dtype.base_type, tags, where)
    accepts = tuple(SET_OF[kind] for kind in element.accepts if kind in SET_OF)
    if not accepts or element.name == "json":
        raise UnsupportedTypeError(
            f"{where} is declared as {dtype}; DynamoDB's sets are of texts (SS), numbers (NS) or "
            f"bytes (BS). Declare Array({dtype.base_type}), which takes lists (L), or Json."
        )
    return ValueKind("set", pa.list_(element.arrow), accepts, str(dtype), element=element)


def time_kind(unit: str) -> ValueKind:
    """Times of a unit; numbers of seconds may also stand as digits in a text."""
    accepts = ("S",) if unit == "iso8601" else ("N", "S")
    return ValueKind("time", MOMENT, accepts, f"UnixTimestamp of unit {unit}", unit=unit)


IN_UTC = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?(Z|\+00:00)?)?"
)
"""How a key that is a time of ISO 8601 may be written where nothing else is said."""

SHORTEST = r"0|-?[1-9][0-9]*|-?(0|[1-9][0-9]*)\.[0-9]*[1-9]"
"""How a key that is a number in a text is written: each number in one spelling."""

EXAMPLE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:(?P<between>[T ])[0-9]{2}:[0-9]{2}(?P<second>:[0-9]{2})?"
    r"(?:(?P<open>\[)?\.(?P<fraction>[0-9]{1,9})(?(open)\]))?"
    r"(?P<zone>Z|[+-][0-9]{2}(?::?[0-9]{2})?)?)?",
    re.ASCII,
)


def spelling_of(example: str, where: str) -> str:
    """An expression of all times that are written as one is: no time is in two spellings.

    Args:
        example: a time of ISO 8601. Its zone is that of all. In brackets, a fraction is left out
            where it is zero: `2026-03-01T00:00:00[.000000]+00:00`.
        where: the field, for messages.

    Raises:
        ConfigError: it is none.
    """
    found = EXAMPLE.fullmatch(example)
    if found is None or (found["fraction"] and not found["second"]):
        raise ConfigError(
            f"{where}: tag `spelling` is `{example}`, and not a time as they are written: "
            "`2026-03-01T00:00:00.000Z`, or `2026-03-01T00:00:00[.000000]+00:00` where a "
            "fraction of zero is left out."
        )
    made = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
    if found["between"]:
        made += f"{found['between']}[0-9]{{2}}:[0-9]{{2}}"
    made += ":[0-9]{2}" if found["second"] else ""
    digits = len(found["fraction"] or "")
    if found["open"]:
        some = (f"0{{{at}}}[1-9][0-9]{{{digits - at - 1}}}" for at in range(digits))
        made += rf"(\.({'|'.join(some)}))?"
    elif digits:
        made += rf"\.[0-9]{{{digits}}}"
    return made + (found["zone"] or "").replace("+", r"\+")


def _time(tags: Mapping[str, str], where: str) -> ValueKind:
    unit, example = tags.get("unit"), tags.get("spelling")
    if unit not in TIME_UNITS:
        said = "has no unit" if unit is None else f"has the unit `{unit}`"
        raise ConfigError(
            f"{where} is declared as UnixTimestamp and {said}. Say what its values are: "
            f"tags={{'unit': ...}}, one of {', '.join(TIME_UNITS)}."
        )
    if example is None:
        return time_kind(unit)
    if unit != "iso8601":
        raise ConfigError(
            f"{where}: tag `spelling` is of times of unit `iso8601`, and its unit is `{unit}`."
        )
    return replace(time_kind(unit), spelling=spelling_of(example, where))


def _decimal(tags: Mapping[str, str], where: str) -> ValueKind:
    given = [tags.get(name) for name in ("precision", "scale")]
    if given == [None, None]:
        return ValueKind("decimal_text", pa.string(), ("N",), "Decimal")
    try:
        precision, scale = (int(text) for text in given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        precision = scale = -1
    if not 0 <= scale <= precision <= MOST_DIGITS or not precision:
        raise ConfigError(
            f"{where}: a decimal has both tags `precision`, from 1 to {MOST_DIGITS}, and `scale`, "
            "from 0 to the precision; or neither, to be kept as text with all its digits."
        )
    label = f"Decimal({precision}, {scale})"
    return ValueKind("decimal", pa.decimal128(precision, scale), ("N",), label)


def _json(tags: Mapping[str, str], where: str) -> ValueKind:
    form = tags.get("json", "plain")
    if form not in {"plain", "dynamodb"}:
        raise ConfigError(f"{where}: tag `json` is `plain` or `dynamodb`, not `{form}`.")
    return ValueKind("json", pa.string(), TYPES, "Json", unit=form)


def _plain(
    name: str, arrow: pa.DataType, accepts: str, label: str
) -> Callable[[Mapping[str, str], str], ValueKind]:
    kind = ValueKind(name, arrow, (accepts,), label)
    return lambda _tags, _where: kind


KINDS: dict[str, Callable[[Mapping[str, str], str], ValueKind]] = {
    "STRING": _plain("text", pa.string(), "S", "String"),
    "BYTES": _plain("bytes", pa.binary(), "B", "Bytes"),
    "PDF_BYTES": _plain("bytes", pa.binary(), "B", "PdfBytes"),
    "IMAGE_BYTES": _plain("bytes", pa.binary(), "B", "ImageBytes"),
    "BOOL": _plain("bool", pa.bool_(), "BOOL", "Bool"),
    "INT32": _plain("int32", pa.int32(), "N", "Int32"),
    "INT64": _plain("int64", pa.int64(), "N", "Int64"),
    "FLOAT32": _plain("float32", pa.float32(), "N", "Float32"),
    "FLOAT64": _plain("float64", pa.float64(), "N", "Float64"),
    "UUID": _plain("uuid", pa.string(), "S", "Uuid"),
    "TIME_UUID": _plain("uuid", pa.string(), "S", "TimeUuid"),
    "MAP": _plain("map", pa.map_(pa.string(), pa.string()), "M", "Map"),
    "UNIX_TIMESTAMP": _time,
    "DECIMAL": _decimal,
    "JSON": _json,
}
"""Feast's scalar types by name -> what their values are; `Array`, `Set` and `Struct` hold them."""
