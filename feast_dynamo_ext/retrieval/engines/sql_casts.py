"""Columns in their declared types in SQL, as `declared_values.as_declared` has them.

Each expression gives what a retrieval gives, or is the statement's error. Where SQL cannot do so
there is no expression, and the statement is refused before it is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
from feast.types import Struct
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import (
    SCALAR_ARROW,
    is_list,
    is_number,
    is_text,
    without_dictionary,
)
from feast_dynamo_ext.declared import (
    MAPS,
    OPEN_KINDS,
    UUIDS,
    declared_as,
    declared_type,
    element_kind,
    in_json,
    is_checked,
    is_set,
    is_wider,
    name_of,
)
from feast_dynamo_ext.errors import ColumnTypeError
from feast_dynamo_ext.retrieval.engines.sql_dialects import DUCKDB, literal, type_name

if TYPE_CHECKING:
    from feast_dynamo_ext.declared import Declared


def cast_as_declared(
    expression: str, stored: pa.DataType, kind: Declared, column: str, view: str
) -> str:
    """A feature's column in its declared type.

    Args:
        expression: the column.
        stored: its type.
        kind: what it is declared as.
        column: its name, for messages.
        view: that of its view.

    Raises:
        ColumnTypeError: the column cannot be cast in SQL as it is in a retrieval.
    """
    target = declared_type(kind, stored)
    not_of_kind = f"`{column}` is not {name_of(kind)}"
    if isinstance(kind, ValueType) and in_json(stored, kind):
        cast = _checked_maps(expression, kind, stored, not_of_kind)
        if cast is None:
            raise ColumnTypeError(
                f"Feature view `{view}`: `{column}` is declared as {name_of(kind)} and kept as "
                f"JSON in {stored}, of which SQL does not check what a retrieval does. Use "
                "`to_arrow()`, or keep it as lists."
            )
        return cast
    cast = _cast(expression, stored, kind, not_of_kind)
    if cast is not None and isinstance(kind, ValueType) and is_set(kind):
        cast = _without_repeats(cast, kind, target)
    if cast is None:
        raise ColumnTypeError(
            f"Feature view `{view}`: `{column}` is declared as {name_of(kind)}, but its column is "
            f"{stored}, which SQL does not turn into {target} as a retrieval does. Correct the "
            "dtype in the view, or use `to_arrow()`."
        )
    return cast


def _cast(expression: str, stored: pa.DataType, kind: Declared, message: str) -> str | None:
    target = declared_type(kind, stored)
    wider, checked = is_wider(kind, target), is_checked(kind, target)
    element = element_kind(kind) if isinstance(kind, ValueType) and is_list(target) else None
    if element is not None:
        checked = is_checked(element, target.value_type)
    if isinstance(kind, ValueType) and wider:
        return _narrowed(expression, target, kind)
    if isinstance(kind, ValueType) and kind not in OPEN_KINDS and target == stored:
        return _checked(expression, kind, message) if checked else expression
    if target == stored and not (wider or checked):
        return expression
    # Of an open value type, the column is of another form.
    is_open = isinstance(kind, ValueType) and kind in OPEN_KINDS
    return None if is_open else _part(expression, kind, stored, message)


def _without_repeats(lists: str, kind: ValueType, target: pa.DataType) -> str | None:
    """Sets with the first of equal elements; None of texts that may be equal decimals."""
    if element_kind(kind) is ValueType.DECIMAL and is_text(target.value_type):
        return None
    return f"list_filter({lists}, lambda cell, place: list_position({lists}, cell) = place)"


NUMBER_TYPES = {
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
}


def _narrowed(expression: str, kind: pa.DataType, declared: ValueType) -> str:
    """Numbers, or lists of them, as a narrower type has them, in their own; or an error."""
    element = element_kind(declared)
    narrow = NUMBER_TYPES[SCALAR_ARROW[element or declared]]
    own = without_dictionary(kind)
    wide = str(type_name(own.value_type if element else own))
    brackets = "[]" if element else ""
    return f"CAST(CAST({expression} AS {narrow}{brackets}) AS {wide}{brackets})"


UUID_TEXT = r"^(urn:uuid:)?\{?[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\}?$"
# As Python's Decimal writes them: those in other forms are another text in a retrieval.
DECIMAL_TEXT = (
    r"^(-?(0(\.0{1,6}|\.0{0,5}[1-9][0-9]*)?|[1-9][0-9]*(\.[0-9]+)?"
    r"|[0-9]E\+[1-9][0-9]*|([0-9]|[1-9]\.[0-9]+)E-([7-9]|[1-9][0-9]+)|Infinity)|NaN)$"
)
# DuckDB takes commas before a closing bracket, and any writing of NaN and infinity. What is left
# of JSON without its texts and words shows them.
JSON_PARTS = r'"(\\.|[^"\\])*"|true|false|null'
NO_JSON = r"[A-DF-Za-df-z]|,\s*[\]}]"


def _checked(expression: str, kind: ValueType, message: str) -> str:
    """Texts, or lists of them, that must be UUIDs, decimals or JSON; or an error."""
    element = element_kind(kind)

    def fits(cell: str) -> str:
        text = f"CAST({cell} AS VARCHAR)"
        if (element or kind) in UUIDS:
            return f"regexp_matches({text}, {literal(UUID_TEXT)})"
        if (element or kind) is ValueType.DECIMAL:
            return f"regexp_matches({text}, {literal(DECIMAL_TEXT)})"
        rest = f"regexp_replace({text}, {literal(JSON_PARTS)}, '0', 'g')"
        return f"json_valid({text}) AND NOT regexp_matches({rest}, {literal(NO_JSON)})"

    bad = f"NOT ({fits(expression)})"
    if element:
        others = f"list_filter({expression}, lambda cell: NOT ({fits('cell')}))"
        bad = f"len({others}) > 0"
    return f"CASE WHEN {bad} THEN error({literal(message)}) ELSE {_in_form(expression, kind)} END"


def _in_form(expression: str, kind: ValueType) -> str:
    """Texts of UUIDs, or lists of them, in lower case and with hyphens; others as they are."""
    element = element_kind(kind)
    if (element or kind) not in UUIDS:
        return expression
    cell = "cell" if element else expression
    digits = f"regexp_replace(CAST({cell} AS VARCHAR), '^urn:uuid:|[{{}}-]', '', 'g')"
    groups, parts = "^(.{8})(.{4})(.{4})(.{4})(.{12})$", r"\1-\2-\3-\4-\5"
    form = f"lower(regexp_replace({digits}, '{groups}', '{parts}'))"
    return f"list_transform({expression}, lambda cell: {form})" if element else form


def _checked_maps(
    expression: str, kind: ValueType, stored: pa.DataType, message: str
) -> str | None:
    """Texts that must be JSON of maps, or an error; None of anything else that is JSON.

    Of lists in maps, and of long integers, SQL does not say if Feast's maps hold them.
    """
    if kind not in MAPS or not is_text(without_dictionary(stored)):
        return None
    checked = _checked(expression, ValueType.JSON, message)
    rest = f"regexp_replace({expression}, {literal(JSON_PARTS)}, '0', 'g')"
    doubtful = f"{message} that SQL can check: use to_arrow()"
    return (
        f"CASE WHEN json_type({checked}) <> 'OBJECT' THEN error({literal(message)}) "
        rf"WHEN regexp_matches({rest}, '\[|[0-9]{{19}}') THEN error({literal(doubtful)}) "
        f"ELSE {expression} END"
    )


def _part(
    expression: str, kind: Declared, stored: pa.DataType, message: str, depth: int = 0
) -> str | None:
    """A column, or what is inside of one, in its declared type; None where SQL has no such cast.

    Args:
        expression: the column, or a variable that holds what is inside.
        kind: what it is declared as.
        stored: its type.
        message: of the error of the statement where a value does not fit.
        depth: how many lists it is inside of.
    """
    if isinstance(kind, Struct):
        return _fields(expression, kind, stored, message, depth)
    inner: Declared | None
    if not isinstance(kind, ValueType):
        inner = declared_as(kind.base_type)
    elif (inner := element_kind(kind)) is None:
        return _scalar(expression, kind, stored, message)
    if not is_list(stored) or pa.types.is_fixed_size_list(stored):
        return None
    cell = f"cell_{depth}"
    part = _part(cell, inner, stored.value_type, message, depth + 1)
    return part and f"list_transform({expression}, lambda {cell}: {part})"


def _scalar(expression: str, kind: ValueType, stored: pa.DataType, message: str) -> str | None:
    target = declared_type(kind, stored)
    if is_wider(kind, target):
        return _narrowed(expression, target, kind)
    if target != stored:
        return exact_cast(expression, stored, target, message)
    # Of maps inside of others nobody declares more than that they are maps.
    is_free = kind in OPEN_KINDS or not is_checked(kind, target)
    return expression if is_free else _checked(expression, kind, message)


def _fields(
    expression: str, kind: Struct, stored: pa.DataType, message: str, depth: int
) -> str | None:
    if not pa.types.is_struct(stored):
        return None
    kinds = {name: declared_as(declared) for name, declared in kind.fields.items()}
    parts: dict[str, str | None] = {}
    for field in stored:
        part = f"struct_extract({expression}, {literal(field.name)})"
        is_open = field.name not in kinds
        parts[field.name] = (
            part if is_open else _part(part, kinds[field.name], field.type, message, depth)
        )
    if None in parts.values():
        return None
    packed = ", ".join([f"{DUCKDB.quoted(name)} := {part}" for name, part in parts.items()])
    return f"CASE WHEN {expression} IS NULL THEN NULL ELSE struct_pack({packed}) END"


def exact_cast(
    expression: str, stored: pa.DataType, target: pa.DataType, message: str
) -> str | None:
    """Numbers and booleans as `exact.cast_exact` casts them, or an error of the statement.

    None where SQL has no such cast: texts of numbers, times, lists, and long decimals.
    """
    stored = without_dictionary(stored)
    name = NUMBER_TYPES.get(target)
    is_bool, is_decimal = pa.types.is_boolean(stored), pa.types.is_decimal(stored)
    if name is None or not (is_bool or is_number(stored)):
        return None
    cast, fits = f"CAST({expression} AS {name})", "true"
    if pa.types.is_floating(target):
        if is_decimal:
            return None
        if pa.types.is_integer(stored) and pa.types.is_float64(target):
            fits = f"CAST({cast} AS HUGEINT) = {expression}"
        # DuckDB refuses to make infinity of a number.
    elif pa.types.is_boolean(target):
        fits = f"{expression} IN (0, 1)"
    elif not is_bool and not pa.types.is_integer(stored):
        fits = f"{expression} = trunc({expression})"
    missing = f"{expression} IS NULL"
    if pa.types.is_floating(stored) and not pa.types.is_floating(target):
        missing += f" OR isnan({expression})"
    return (
        f"CASE WHEN {missing} THEN NULL WHEN {fits} THEN {cast} ELSE error({literal(message)}) END"
    )
