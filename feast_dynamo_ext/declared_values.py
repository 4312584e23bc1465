"""Values as their declared types keep them: columns of any type, nested ones, and JSON of these.

Arrow gives all structs of a column the same fields, with nulls where a value has none. Declared
fields of a Struct may be null so; a map of no declared fields has its own keys, and is JSON where
Arrow would add others.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.types import Struct
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import (
    VIEW_TO_PLAIN,
    is_bytes,
    is_list,
    is_text,
    numbers,
    plain,
    plain_type,
)
from feast_dynamo_ext.declared import (
    JSON_KINDS,
    LISTS_OF_MAPS,
    MAPS,
    SCALARS,
    UUIDS,
    declared_as,
    declared_type,
    element_kind,
    has_form,
    in_json,
    is_checked,
    is_set,
    is_wider,
    list_of,
    name_of,
    scalar_exact,
)
from feast_dynamo_ext.exact import (
    cast_exact,
    check_json,
    elements_of,
    entry_type,
    map_of,
    refused,
    with_elements,
    without_nan,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from feast_dynamo_ext.declared import Declared, Nested
    from feast_dynamo_ext.exact import Column


def nested_exact(array: pa.Array, declared: Declared) -> pa.Array:
    """A column of lists of lists, structs or lists of structs as their declared types keep it.

    Nulls stay. Fields that are not declared stay as they are, as Feast keeps them too. An object
    of JSON has all declared fields, those that it lacks as nulls.

    Args:
        array: the column, or JSON of it in texts or bytes. JSON stays JSON where maps have
            several sets of keys.
        declared: a nested type; of a value type, see `scalar_exact`.

    Raises:
        ValueError: says how many values of a part do not fit, and shows none.
    """
    array = plain(array)
    if pa.types.is_null(array.type):
        return array
    if isinstance(declared, ValueType):
        return _part_exact(array, declared)
    if is_text(array.type) or is_bytes(array.type):
        return _parsed_exact(array, declared)
    if isinstance(declared, Struct):
        return _fields_exact(array, declared)
    if not is_list(array.type):
        raise refused(array, name_of(declared))
    elements = nested_exact(elements_of(array), declared_as(declared.base_type))
    return with_elements(array, elements, list_of(array.type, elements.type))


def _parsed_exact(array: pa.Array, declared: Nested) -> pa.Array:
    cells = _documents(array, lists=not isinstance(declared, Struct))
    filled = with_fields(cells, declared)
    parsed = _array_of(filled)
    exact = nested_exact(parsed, declared)
    if not may_have_more(exact, declared):
        return exact
    if exact.equals(parsed):
        # Each map with its own keys, which Feast reads.
        return pa.array([cell and json.dumps(cell) for cell in filled], pa.large_string())
    raise ValueError("its JSON has keys that are not declared, and are not in every row")


class NotAsDeclaredError(ValueError):
    """What a value is, or has, is not what its type declares."""


def with_fields(cells: list[Any], declared: Declared, *, strict: bool = False) -> list[Any]:
    """Values of a nested type with all fields that are declared, None where they lack them.

    Args:
        cells: dicts and lists of Python.
        declared: what they are declared as.
        strict: refuse fields that are not declared.

    Raises:
        NotAsDeclaredError: names such fields.
    """
    fill = _filling(declared, strict=strict)
    return cells if fill is None else [fill(cell) for cell in cells]


def _filling(declared: Declared, *, strict: bool) -> Callable[[Any], Any] | None:
    """What fills the structs of one value; None where the type has no structs."""
    if declared is ValueType.JSON:
        return json_text
    if isinstance(declared, ValueType):
        is_list_of_json = declared in JSON_KINDS
        return (lambda cell: _each(cell, json_text)) if is_list_of_json else None
    if not isinstance(declared, Struct):
        inner = _filling(declared_as(declared.base_type), strict=strict)
        return inner and (lambda cell: _each(cell, inner))
    missing = dict.fromkeys(declared.fields)
    found = (
        (name, _filling(declared_as(kind), strict=strict))
        for name, kind in declared.fields.items()
    )
    inside = [(name, fill) for name, fill in found if fill is not None]

    def fill_struct(cell: Any) -> Any:
        if not isinstance(cell, dict):
            return cell
        made = missing | cell
        if strict and len(made) > len(missing):
            unknown = sorted(map(str, made.keys() - missing.keys()))
            raise NotAsDeclaredError(
                f"its fields {unknown} are not declared. Declare them, or leave them out"
            )
        for name, fill in inside:
            made[name] = fill(made[name])
        return made

    return fill_struct


def _each(cell: Any, change: Callable[[Any], Any]) -> Any:
    is_sequence = isinstance(cell, (list, tuple, set, frozenset, np.ndarray))
    return [change(part) for part in cell] if is_sequence else cell


def json_text(cell: Any) -> str | None:
    """Text as it is, in bytes too; anything else as the JSON of it.

    Raises:
        TypeError: JSON has no form for it. UnicodeDecodeError: bytes that are no text.
    """
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bytes):
        return cell.decode()
    if is_missing(cell):
        return None
    if isinstance(cell, Decimal) and cell.is_finite():
        return format(cell, "f")
    return json.dumps(cell, default=_listed)


def _listed(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"JSON has no form for {type(value).__name__}")


def is_missing(cell: Any) -> bool:
    """Whether an object of Python stands for a missing value."""
    return cell is None or (isinstance(cell, (float, Decimal)) and math.isnan(cell))


def may_have_more(array: pa.Array, declared: Declared, *, where_open: bool = False) -> bool:
    """Whether Arrow may have given a map a key, with a null, that another row's map has.

    Args:
        array: the column.
        declared: what it is declared as; its own fields may be null.
        where_open: look at maps of no declared fields alone, not at fields beside declared ones.
    """
    array = plain(array)
    if isinstance(declared, ValueType):
        return declared in MAPS | LISTS_OF_MAPS | JSON_KINDS and _has_null_fields(array)
    if not isinstance(declared, Struct):
        inner = declared_as(declared.base_type)
        is_flat = not is_list(array.type)
        return not is_flat and may_have_more(elements_of(array), inner, where_open=where_open)
    if not pa.types.is_struct(array.type):
        return False
    there = array.filter(array.is_valid())
    return any(
        may_have_more(part, declared_as(declared.fields[field.name]), where_open=where_open)
        if field.name in declared.fields
        else not where_open and part.null_count > 0
        for field, part in zip(there.type, there.flatten(), strict=True)
    )


def _has_null_fields(array: pa.Array) -> bool:
    array = plain(array)
    if is_list(array.type):
        return _has_null_fields(elements_of(array))
    if not pa.types.is_struct(array.type):
        return False
    there = array.filter(array.is_valid())
    # All keys of a single map are its own.
    return any(
        (part.null_count > 0 and len(there) > 1) or _has_null_fields(part)
        for part in there.flatten()
    )


def _part_exact(array: pa.Array, kind: ValueType) -> pa.Array:
    """Scalars, lists or maps inside of a nested column."""
    element = element_kind(kind)
    if element is not None:
        if not is_list(array.type):
            raise refused(array, kind.name)
        elements = _part_exact(elements_of(array), element)
        return with_elements(array, elements, list_of(array.type, elements.type))
    if kind not in SCALARS:
        return array
    exact = scalar_exact(array, kind)
    # As whose values Feast reads them: what is inside has no type but its own.
    return cast_exact(exact, pa.uuid()) if kind in UUIDS else exact


def _fields_exact(array: pa.Array, declared: Struct) -> pa.Array:
    own, kinds = array.type, {name: declared_as(kind) for name, kind in declared.fields.items()}
    if pa.types.is_struct(own):
        parts = [
            nested_exact(part, kinds[field.name]) if field.name in kinds else part
            for field, part in zip(own, array.flatten(), strict=True)
        ]
        names = [field.name for field in own]
        return pa.StructArray.from_arrays(parts, names=names, mask=array.is_null())
    if not (pa.types.is_map(own) and is_text(plain_type(own.key_type))):
        raise refused(array, name_of(declared))
    if len(set(kinds.values())) == 1:
        entries = array.cast(pa.large_list(entry_type(own)))
        keys, items = pc.list_flatten(entries).flatten()
        items = nested_exact(items, next(iter(kinds.values())))
        made = pa.StructArray.from_arrays([keys, items], names=["key", "value"])
        target = pa.map_(own.key_type, items.type)
        return map_of(with_elements(entries, made, pa.list_(entry_type(target))), target)
    for name, kind in kinds.items():
        # One type of items is of several declared types: they fit, or they do not.
        found = pc.map_lookup(array, pa.scalar(name, own.key_type), "last")
        exact = nested_exact(found, kind)
        back = without_nan(cast_exact(exact, found.type))
        if exact.null_count > found.null_count or not back.equals(without_nan(found)):
            raise refused(found, name_of(kind))
    return array


def parsed_json(array: pa.Array, *, lists: bool, declared: Declared) -> pa.Array:
    """Lists or structs that are kept as JSON in texts or bytes; nulls of no type where all are.

    What is declared as Json inside of them is text again.

    Raises:
        ValueError: a text that is something else, or values of several types.
    """
    return _array_of(with_fields(_documents(array, lists=lists), declared))


def _documents(array: pa.Array, *, lists: bool) -> list[Any]:
    cells = documents(array)
    if not all(cell is None or isinstance(cell, list if lists else dict) for cell in cells):
        raise ValueError(f"its JSON is not {'a list' if lists else 'an object'}")
    return cells


def documents(array: pa.Array) -> list[Any]:
    """What texts or bytes say as JSON.

    Raises:
        ValueError: counts the texts that are none.
    """
    try:
        return [cell if cell is None else json.loads(cell) for cell in array.to_pylist()]
    except (ValueError, RecursionError):
        check_json(array)
        raise ValueError("its JSON is nested too deeply") from None


def check_collections(array: pa.Array, kind: ValueType) -> None:
    """Refuse JSON that says something else than the lists or maps that are declared.

    Raises:
        ValueError: says how many values, or elements, do not fit.
    """
    if kind in MAPS | LISTS_OF_MAPS:
        maps_of(array, lists=kind in LISTS_OF_MAPS)
        return
    lists = parsed_json(array, lists=True, declared=kind)
    if pa.types.is_null(lists.type):
        return
    if not has_form(lists.type, kind):
        raise ValueError("its JSON is not a list of lists")
    any_exact(lists, kind)


def maps_of(array: pa.Array, *, lists: bool) -> list[Any]:
    """What JSON of maps, or of lists of maps, says.

    Raises:
        ValueError: counts the texts that are something else.
    """
    if is_bytes(array.type):
        array = cast_exact(array, pa.large_string())
    cells = documents(array)
    is_right = _is_list_of_maps if lists else _is_map
    bad = sum(cell is not None and not is_right(cell) for cell in cells)
    if bad:
        raise refused(array, "JSON of lists of maps" if lists else "JSON of maps", bad)
    bad = sum(not all(map(_fits_a_map, (cell or ()) if lists else [cell])) for cell in cells)
    if bad:
        raise refused(array, KEPT_MAPS, bad)
    return cells


KEPT_MAPS = "maps as Feast keeps them (numbers of 64 bits; lists of one type, and not empty)"


def _is_map(cell: Any) -> bool:
    return isinstance(cell, dict)


def _is_list_of_maps(cell: Any) -> bool:
    return isinstance(cell, list) and all(isinstance(part, dict) for part in cell)


def _fits_a_map(part: Any) -> bool:
    """Whether Feast has a value for what a map holds: JSON may say more."""
    if isinstance(part, dict):
        return all(map(_fits_a_map, part.values()))
    if isinstance(part, list):
        kinds = {type(each) for each in part}
        is_of_one = len(kinds) == 1 and not kinds & {list, type(None)}
        return is_of_one and all(map(_fits_a_map, part))
    return not isinstance(part, int) or -(2**63) <= part < 2**63


def _array_of(cells: list[Any]) -> pa.Array:
    try:
        return pa.array(cells)
    except (pa.ArrowException, OverflowError):
        # Arrow's words show the value.
        raise ValueError("its JSON holds values of several types") from None


def as_declared(column: Column, declared: Declared) -> Column:
    """A column of a feature in its `declared_type`.

    Raises:
        ValueError: says how many values do not fit, and shows none.
    """
    target = declared_type(declared, column.type)
    is_same = target == column.type and not is_wider(declared, target)
    if is_same and not is_checked(declared, target):
        return column
    if isinstance(column, pa.ChunkedArray):
        given = column.chunks
        made = [as_declared(chunk, declared) for chunk in given]
        is_kept = is_same and all(one is other for one, other in zip(made, given, strict=True))
        return column if is_kept else pa.chunked_array(made, target)
    array = plain(column)
    if pa.types.is_null(array.type):
        return column
    exact = any_exact(array, declared)
    is_scalar = isinstance(declared, ValueType) and declared in SCALARS
    is_json = not is_scalar and (is_text(array.type) or is_bytes(array.type))
    # Lists and maps that are kept as JSON stay the text that they are.
    return column if is_same and (is_json or exact is array) else cast_exact(exact, target)


def any_exact(array: pa.Array, declared: Declared) -> pa.Array:
    """Values of any declared type as a push takes them."""
    if not isinstance(declared, ValueType):
        return nested_exact(array, declared)
    if in_json(array.type, declared):
        check_collections(array, declared)
        return array
    element = element_kind(declared)
    if element is None and declared in SCALARS:
        return scalar_exact(array, declared)
    is_right = has_form(array.type, declared) if element is None else is_list(array.type)
    if not is_right:
        raise refused(array, name_of(declared))
    if element is None:
        return array
    given = elements_of(array)
    elements = scalar_exact(given, element)
    if is_set(declared):
        array, elements = without_repeats(array, elements, element)
    if elements is given:
        return array
    return with_elements(array, elements, list_of(array.type, elements.type))


def without_repeats(
    array: pa.Array, elements: pa.Array, kind: ValueType
) -> tuple[pa.Array, pa.Array]:
    """Lists, and all their elements, with the first of each list's equal elements alone.

    Args:
        array: the lists, of which only the lengths and nulls count.
        elements: theirs, one after the other.
        kind: value type of the elements.
    """
    lengths = numbers(pc.list_value_length(array))
    first, sizes = first_of_equal(elements, lengths, kind)
    if len(first) == len(elements):
        return array, elements
    # Arrow takes no elements of a view.
    elements = elements.cast(VIEW_TO_PLAIN.get(elements.type, elements.type))
    elements = elements.take(pa.array(first))
    missing = array.is_null() if array.null_count else None
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    made = pa.LargeListArray.from_arrays(pa.array(offsets), elements, mask=missing)
    return made.cast(pa.list_(elements.type)), elements


def first_of_equal(
    elements: pa.Array, lengths: NDArray[Any], kind: ValueType
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the first of each list's equal elements, and how many each list has."""
    codes, count = codes_of(_compared(elements) if kind is ValueType.DECIMAL else elements)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    keys = rows * count + codes
    ordered = np.sort(keys)
    if not (ordered[1:] == ordered[:-1]).any():  # seldom; half the time of what follows
        return np.arange(len(keys)), np.asarray(lengths, np.int64)
    _, first = np.unique(keys, return_index=True)
    first.sort()
    return first, np.bincount(rows[first], minlength=len(lengths))


def _compared(decimals: pa.Array) -> pa.Array:
    """A number for each decimal, the same for equal ones, as 1.1 and 1.10; null for null."""
    if is_bytes(decimals.type):
        decimals = decimals.cast(pa.large_string())
    seen: dict[Decimal | str, int] = {}
    cells = (None if cell is None else Decimal(cell) for cell in decimals.to_pylist())
    keys = (str(cell) if cell is not None and cell.is_nan() else cell for cell in cells)
    return pa.array([key if key is None else seen.setdefault(key, len(seen)) for key in keys])


def codes_of(array: pa.Array) -> tuple[NDArray[np.int64], int]:
    """A number for each element, the same for equal ones and nulls, and how many there are."""
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    if pa.types.is_floating(array.type):
        array = pc.add(array, pa.scalar(0.0, array.type))  # -0.0 equals 0.0
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.large_string())
    encoded = array.dictionary_encode("encode")
    return numbers(encoded.indices).astype(np.int64), max(1, len(encoded.dictionary))
