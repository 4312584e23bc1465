"""Values in the types of a history's files: equal to what they were, by what they are declared as.

What a push takes is taken here too, and means the same: 16 bytes are a UUID, a number of seconds
is a time. Read back by its declared type, a value is what the push wrote to the online store.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.types import Array, Set, Struct
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import (
    UUID_BYTES,
    is_bytes,
    is_list,
    is_number,
    is_text,
    is_time,
    one_array,
    plain,
    plain_type,
)
from feast_dynamo_ext.declared import (
    LISTS,
    LISTS_OF_MAPS,
    MAPS,
    OPEN_KINDS,
    SCALARS,
    SECONDS,
    UUIDS,
    as_json,
    declared_arrow,
    declared_as,
    element_kind,
    has_form,
    is_set,
    name_of,
    scalar_exact,
    value_type,
)
from feast_dynamo_ext.declared_values import (
    any_exact,
    documents,
    maps_of,
    may_have_more,
    parsed_json,
    without_repeats,
)
from feast_dynamo_ext.errors import ColumnTypeError
from feast_dynamo_ext.exact import (
    cast_exact,
    cast_unrounded,
    elements_of,
    entry_type,
    map_of,
    refused,
    with_elements,
)

if TYPE_CHECKING:
    from feast_dynamo_ext.declared import Declared
    from feast_dynamo_ext.exact import Column


def first_type(declared: Declared, own: pa.DataType) -> pa.DataType:
    """The type in which a history begins a column, so that it holds what a push may bring.

    Args:
        declared: what the feature or join key is declared as.
        own: the type of the first rows; null where there are none. It says what maps hold; what
            they leave open is null, and `grown_type` with later rows.
    """
    own = plain_type(own)
    if isinstance(declared, Struct):
        kinds = {name: declared_as(kind) for name, kind in declared.fields.items()}
        types = {field.name: field.type for field in own} if pa.types.is_struct(own) else {}
        return pa.struct(
            [(name, first_type(kind, types.get(name, pa.null()))) for name, kind in kinds.items()]
        )
    if not isinstance(declared, ValueType):
        element: Declared | None = declared_as(declared.base_type)
    else:
        element = MAPS_OF.get(declared) or element_kind(declared)
    if declared in MAPS_OF and (is_text(own) or is_bytes(own)):
        return pa.large_string()
    if element is not None:
        return pa.list_(first_type(element, own.value_type if is_list(own) else pa.null()))
    return _first_of(value_type(declared), own)


def _first_of(kind: ValueType, own: pa.DataType) -> pa.DataType:
    if kind in MAPS:
        return _first_map(own)
    if kind not in SCALARS:
        return own
    if kind in TIME_KINDS:
        return TIMES
    return pa.large_string() if kind is ValueType.JSON else declared_arrow(kind)


TIMES = pa.timestamp("us", "UTC")
TIME_KINDS = {ValueType.UNIX_TIMESTAMP, ValueType.ZONED_TIMESTAMP}


def _first_map(own: pa.DataType) -> pa.DataType:
    """A map of values of one type; JSON, in texts, of values of several."""
    if is_text(own) or is_bytes(own):
        return pa.large_string()
    if not pa.types.is_struct(own):
        return own
    items = [_first_item(field.type) for field in own]
    known = {item for item in items if not _is_unknown(item)}
    if len(known) > 1:
        return pa.large_string() if _fits_json(own) else own
    return pa.map_(pa.string(), *(known or [pa.null()]))


def _first_item(own: pa.DataType) -> pa.DataType:
    if is_list(own):
        return pa.list_(_first_item(own.value_type))
    return _first_map(own) if pa.types.is_struct(own) else own


def _is_unknown(kind: pa.DataType) -> bool:
    """Whether a column holds nothing of which anyone knows the type."""
    if is_list(kind):
        return _is_unknown(kind.value_type)
    if pa.types.is_map(kind):
        return _is_unknown(kind.item_type)
    return bool(pa.types.is_null(kind))


def _fits_json(kind: pa.DataType) -> bool:
    if is_list(kind):
        return _fits_json(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_fits_json(field.type) for field in kind)
    is_number_of_json = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(
        is_number_of_json or pa.types.is_boolean(kind) or pa.types.is_null(kind) or is_text(kind)
    )


def leaves_open(kind: pa.DataType, declared: Declared) -> bool:
    """Whether a column's type leaves open what others of its files may say."""
    return _is_unknown(kind) or grown_type(kind, declared, pa.null()) != kind


def grown_type(kind: pa.DataType, declared: Declared, own: pa.DataType) -> pa.DataType:
    """The type of a column that is there, with what it leaves open.

    A column of nulls alone has its `first_type`, a struct all fields that are declared.
    """
    if _is_unknown(kind):
        return first_type(declared, own)
    if isinstance(declared, (Array, Set)) and is_list(kind):
        inner = own.value_type if is_list(own) else pa.null()
        grown = grown_type(kind.value_type, declared_as(declared.base_type), inner)
        return kind if grown == kind.value_type else pa.list_(grown)
    if not (isinstance(declared, Struct) and pa.types.is_struct(kind)):
        return kind
    kinds = {name: declared_as(dtype) for name, dtype in declared.fields.items()}
    there = {field.name: field.type for field in kind}
    given = {field.name: field.type for field in own} if pa.types.is_struct(own) else {}
    parts = there | {name: there.get(name, pa.null()) for name in kinds}
    return pa.struct(
        [
            (name, grown_type(part, kinds[name], given.get(name, pa.null())))
            if name in kinds
            else (name, part)
            for name, part in parts.items()
        ]
    )


def fitted(
    values: pa.ChunkedArray,
    kind: pa.DataType,
    name: str,
    column: str,
    there: str,
    declared: Declared | None = None,
) -> pa.ChunkedArray:
    """Values in the type of a column that is there, each equal to what it was.

    Args:
        values: the values.
        kind: the type of the column.
        name: of the column.
        column: what it is called in messages.
        there: where it is.
        declared: what the feature or join key is declared as; None where nobody says. Then no
            value is taken for one of another family, and a float32 rounds nothing.

    Raises:
        ColumnTypeError: the type is of another family, or a value would not come back equal.
    """
    if values.null_count == len(values):
        return pa.chunked_array([pa.nulls(len(values), kind)])
    is_open = declared is None or value_type(declared) in OPEN_KINDS
    try:
        if is_open and _is_of_another_family(values.type, kind, declared):
            raise refused(values, kind)
        if declared is not None:
            return stored_as(values, declared, kind)
        return pa.chunked_array([_as_item(chunk, kind) for chunk in values.chunks], kind)
    except ValueError as error:
        advice = "Cast it, so that you choose what is lost."
        if isinstance(error, OtherTextError):
            advice = f"Give it as {kind}, whose text is the same online and in history."
        if is_time(kind) and is_number(values.type) and declared is not ValueType.UNIX_TIMESTAMP:
            advice = (
                f"Say what the numbers count: `pd.to_datetime(rows['{name}'], unit=\"s\", "
                "utc=True)`."
            )
        if declared is not None:
            column += f", declared as {name_of(declared)},"
        raise ColumnTypeError(
            f"{column} is {values.type}, and does not fit the {kind} of {there}: {error}. {advice}"
        ) from error


def _is_of_another_family(
    given: pa.DataType, kind: pa.DataType, declared: Declared | None = None
) -> bool:
    """Whether an exact cast would change what values are: 7 is no text. Inside of lists, too.

    What is declared as Json is text whatever it was.
    """
    given, kind = plain_type(given), plain_type(kind)
    if declared is ValueType.JSON:
        return False
    if is_list(given) and is_list(kind):
        inner = declared_as(declared.base_type) if isinstance(declared, (Array, Set)) else None
        return _is_of_another_family(given.value_type, kind.value_type, inner)
    if pa.types.is_struct(given) and pa.types.is_struct(kind):
        types = {field.name: field.type for field in kind}
        fields = declared.fields if isinstance(declared, Struct) else {}
        kinds = {name: declared_as(dtype) for name, dtype in fields.items()}
        return any(
            _is_of_another_family(
                field.type, types.get(field.name, field.type), kinds.get(field.name)
            )
            for field in given
        )
    if pa.types.is_map(given) and pa.types.is_map(kind):
        return _is_of_another_family(given.key_type, kind.key_type) or _is_of_another_family(
            given.item_type, kind.item_type
        )
    return is_text(kind) and (
        is_number(given) or is_time(given) or bool(pa.types.is_boolean(given))
    )


def stored_as(column: Column, declared: Declared, target: pa.DataType) -> Column:
    """Values of a feature as a file has them; read back, they are what a push makes of them.

    Args:
        column: the values, as a push may have them.
        declared: what the feature is declared as.
        target: the type of the column in the files.

    Raises:
        ValueError: says how many values do not fit, and shows none.
    """
    if isinstance(column, pa.ChunkedArray):
        chunks = [stored_as(chunk, declared, target) for chunk in column.chunks]
        return pa.chunked_array(chunks, target)
    array = plain(column)
    if array.null_count == len(array):
        return pa.nulls(len(array), target)
    if pa.types.is_dictionary(target):
        return cast_exact(stored_as(array, declared, target.value_type), target)
    if isinstance(declared, ValueType) and declared in SCALARS:
        return _scalar_stored(array, declared, target)
    if isinstance(declared, ValueType) and not has_form(array.type, declared):
        raise refused(array, name_of(declared))
    if is_list(array.type) and is_list(target) and isinstance(declared, ValueType):
        element = MAPS_OF.get(declared) or element_kind(declared) or ValueType.UNKNOWN
        elements = elements_of(array)
        if is_set(declared):
            array, elements = without_repeats(array, scalar_exact(elements, element), element)
        return with_elements(array, stored_as(elements, element, target.value_type), target)
    return _collection_stored(array, declared, target)


MAPS_OF = {ValueType.MAP_LIST: ValueType.MAP, ValueType.STRUCT_LIST: ValueType.STRUCT}


def _collection_stored(array: pa.Array, declared: Declared, target: pa.DataType) -> pa.Array:
    """Lists, structs and maps, some of which are kept as JSON; and what nobody declared."""
    if declared is ValueType.UNKNOWN:
        return _as_item(array, target)
    in_json, to_json = (is_text(kind) or is_bytes(kind) for kind in (array.type, target))
    is_open = value_type(declared) in MAPS | LISTS_OF_MAPS and isinstance(declared, ValueType)
    if not in_json:
        _refuse_added_keys(array, declared, None if to_json else target)
        array = any_exact(array, declared)
        if not to_json:
            return _as_item(array, target)
        texts = as_json(array)
        if is_open:
            maps_of(texts, lists=declared in LISTS_OF_MAPS)  # as whoever reads them
        return cast_exact(texts, target)
    if is_open:
        cells = maps_of(array, lists=declared in LISTS_OF_MAPS)
        return cast_exact(array, target) if to_json else _of_documents(array, cells, target)
    is_of_lists = is_list(target) or value_type(declared) in LISTS
    parsed = parsed_json(array, lists=is_of_lists, declared=declared)
    exact = any_exact(parsed, declared) if not pa.types.is_null(parsed.type) else parsed
    if to_json:
        return cast_exact(array, target)
    _refuse_added_keys(exact, declared, target)
    return _as_item(exact, target)


def _of_documents(array: pa.Array, cells: list[Any], target: pa.DataType) -> pa.Array:
    """What JSON says in another type, where each map has the keys that it has in its text.

    Raises:
        ValueError: it does not fit, or a map lacks a key that the type gives to all.
    """
    try:
        made = pa.array(cells, target)
    except (pa.ArrowException, OverflowError, TypeError):
        raise refused(array, target) from None
    if made.to_pylist(maps_as_pydicts="strict") != cells:
        raise refused(array, target)
    return made


def _scalar_stored(array: pa.Array, kind: ValueType, target: pa.DataType) -> pa.Array:
    own = array.type
    if kind is ValueType.DECIMAL and is_number(own) and pa.types.is_decimal(target):
        return cast_exact(array, target)
    exact = given = scalar_exact(array, kind)
    if kind in UUIDS:
        if pa.types.is_binary(target) or target in (pa.large_binary(), pa.binary(UUID_BYTES)):
            exact = cast_exact(exact, pa.uuid())
    elif kind is ValueType.JSON:
        exact = _json_stored(array, exact, target)
    elif kind is ValueType.DECIMAL:
        if is_text(exact.type) and pa.types.is_decimal(target):
            exact = _parsed_decimals(exact, target)
    elif kind is ValueType.UNIX_TIMESTAMP:
        if is_number(target):
            exact = array if is_number(own) else cast_exact(exact, SECONDS).cast(pa.int64())
    elif not (is_text(target) or is_bytes(target)):
        exact = array  # not by a float32 into a double
    if kind not in TEXTS:
        rounds = kind is ValueType.FLOAT
        stored = cast_exact(exact, target) if rounds else cast_unrounded(exact, target)
        scalar_exact(plain(stored), kind)  # a text is no number, even if it looks like one
        return stored
    stored = cast_exact(exact, target)
    if not (is_text(target) or is_bytes(target)):
        kept = scalar_exact(plain(stored), kind)
        if bad := _other_texts(given, kept, of_documents=pa.types.is_nested(target)):
            raise OtherTextError(bad, array, target)
    return stored


TEXTS = {ValueType.STRING, ValueType.JSON}
"""Value types whose values are texts, whatever the type of a column: 7.0 is `7`, true `true`."""


class OtherTextError(ValueError):
    """Values that would have one text in history and another online."""

    def __init__(self, bad: int, array: pa.Array, target: pa.DataType) -> None:
        count = len(array) - array.null_count
        super().__init__(
            f"{bad:,} of {count:,} values of type {array.type} have another text than they would "
            f"have as {target}, and a push writes the text"
        )


def other_texts(values: pa.ChunkedArray, stored: pa.ChunkedArray) -> int:
    """How many values that are declared as String have another text than what is stored."""
    given = scalar_exact(plain(one_array(values)), ValueType.STRING)
    return _other_texts(given, one_array(stored))


def _other_texts(given: pa.Array, kept: pa.Array, *, of_documents: bool = False) -> int:
    """How many texts differ; documents of JSON may be written in another order, or with spaces."""
    given, kept = given.cast(pa.large_binary()), kept.cast(pa.large_binary())
    if given.equals(kept):
        return 0
    is_same = pc.fill_null(pc.equal(given, kept), False)
    others = pc.invert(pc.or_(is_same, pc.and_(given.is_null(), kept.is_null())))
    pairs = zip(given.filter(others).to_pylist(), kept.filter(others).to_pylist(), strict=True)
    return sum(not (of_documents and _is_same_json(*pair)) for pair in pairs)


def _is_same_json(given: bytes | None, kept: bytes | None) -> bool:
    """Whether two texts are one document: of the same numbers, 7 is not 7.0, in any order."""
    if given is None or kept is None:
        return False
    one, other = (json.dumps(json.loads(text), sort_keys=True) for text in (given, kept))
    return one == other


def _json_stored(array: pa.Array, texts: pa.Array, target: pa.DataType) -> pa.Array:
    """JSON as a column keeps it: as texts, as one of the few scalars, or as what it says."""
    own = array.type
    if not pa.types.is_nested(target):
        if is_number(target) or pa.types.is_boolean(target):
            return array
        _refuse_added_keys(array, ValueType.MAP, None)
        return texts
    if is_text(own) or is_bytes(own):
        return _of_documents(array, documents(array), target)
    _refuse_added_keys(array, ValueType.MAP, target)
    return array


ADDED_KEYS = (
    "maps of several sets of keys came as structs, in which a key that is missing is null as "
    "well; give them as texts of JSON (`json.dumps`)"
)


def _refuse_added_keys(array: pa.Array, declared: Declared, target: pa.DataType | None) -> None:
    """Refuse maps to which Arrow may have added keys, or to which a struct would add them.

    Raises:
        ValueError: a null that may stand for a missing key, or a type of other keys.
    """
    if may_have_more(array, declared, where_open=True):
        raise ValueError(ADDED_KEYS)
    if target is None:
        return
    if isinstance(declared, ValueType):
        if declared in MAPS | LISTS_OF_MAPS and not _has_same_keys(array.type, target):
            raise refused(array, target)
        return
    if isinstance(declared, Struct):
        _refuse_unknown_fields(array.type, declared, target)


def _refuse_unknown_fields(own: pa.DataType, declared: Struct, target: pa.DataType) -> None:
    if not (pa.types.is_struct(own) and pa.types.is_struct(target)):
        return
    types = {field.name: field.type for field in target}
    unknown = [field.name for field in own if field.name not in types]
    if unknown:
        raise ValueError(f"its fields {unknown} are not declared. Declare them, or leave them out")
    for field in own:
        kind = declared.fields.get(field.name)
        is_open = kind is not None and declared_as(kind) in MAPS | LISTS_OF_MAPS
        if is_open and not _has_same_keys(field.type, types[field.name]):
            raise ValueError(f"maps of its field `{field.name}` have other keys than those there")


def _has_same_keys(own: pa.DataType, target: pa.DataType) -> bool:
    own, target = plain_type(own), plain_type(target)
    if is_list(own) and is_list(target):
        return _has_same_keys(own.value_type, target.value_type)
    if not (pa.types.is_struct(own) and pa.types.is_struct(target)):
        return True
    types = {field.name: field.type for field in target}
    return {field.name for field in own} == types.keys() and all(
        _has_same_keys(field.type, types[field.name]) for field in own
    )


def numbers_missing_in(values: pa.ChunkedArray, declared: Declared) -> int:
    """How many nulls are beside numbers in lists of JSON: each may be a NaN of pandas."""
    return sum(_missing_in_json(chunk, declared) for chunk in values.chunks)


def _missing_in_json(array: pa.Array, declared: Declared) -> int:
    array = plain(array)
    if declared is ValueType.JSON:
        return _numbers_missing(array)
    if isinstance(declared, Struct) and pa.types.is_struct(array.type):
        parts = zip(array.type, array.flatten(), strict=True)
        kinds = {name: declared_as(kind) for name, kind in declared.fields.items()}
        return sum(
            _missing_in_json(part, kinds[field.name])
            for field, part in parts
            if field.name in kinds
        )
    if not is_list(array.type):
        return 0
    if declared is ValueType.JSON_LIST:
        # A missing element is a whole document, null, of a push too.
        return _missing_in_json(elements_of(array), ValueType.JSON)
    if isinstance(declared, (Array, Set)):
        return _missing_in_json(elements_of(array), declared_as(declared.base_type))
    return 0


def _numbers_missing(array: pa.Array) -> int:
    array = plain(array)
    if pa.types.is_struct(array.type):
        return sum(map(_numbers_missing, array.flatten()))
    if not is_list(array.type):
        return 0
    elements = elements_of(array)
    if is_number(elements.type) or pa.types.is_null(elements.type):
        return int(elements.null_count)
    return _numbers_missing(elements)


def _as_map(array: pa.Array, target: pa.MapType) -> pa.Array:
    """Maps, or structs, as which maps of Python come, as maps.

    Raises:
        ValueError: values that do not fit.
    """
    if pa.types.is_map(array.type):
        entries = array.cast(pa.large_list(entry_type(array.type)))
        return map_of(_as_item(entries, pa.list_(entry_type(target))), target)
    if not pa.types.is_struct(array.type):
        return cast_exact(array, target)
    names, parts = [field.name for field in array.type], array.flatten()
    if any(_is_of_another_family(part.type, target.item_type) for part in parts):
        raise refused(array, target)
    # Of each row the values of all keys, one after the other.
    rows, count = len(array), len(names)
    order = np.arange(count * rows).reshape(count, rows).T.ravel()
    items = [_as_item(part, target.item_type) for part in parts]
    items = pa.concat_arrays([*items, pa.array([], target.item_type)])
    keys = cast_exact(pa.array(names * rows, pa.string()), target.key_type)
    offsets = pa.array(np.arange(rows + 1) * count, pa.int32())
    missing = array.is_null() if array.null_count else None
    return pa.MapArray.from_arrays(
        offsets, keys, items.take(pa.array(order)), target, mask=missing
    )


def _as_item(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Values in another type, and structs as maps where it has maps."""
    array = plain(array)
    if pa.types.is_map(target):
        return _as_map(array, target)
    if is_list(array.type) and is_list(target):
        return with_elements(array, _as_item(elements_of(array), target.value_type), target)
    if not (pa.types.is_struct(array.type) and pa.types.is_struct(target)):
        return cast_unrounded(array, target)
    found = dict(zip([field.name for field in array.type], array.flatten(), strict=True))
    types = {field.name: field.type for field in target}
    made = {name: _as_item(part, types.get(name, part.type)) for name, part in found.items()}
    parts = pa.StructArray.from_arrays([*made.values()], names=[*made], mask=array.is_null())
    return cast_exact(parts, target)


def _parsed_decimals(texts: pa.Array, target: pa.DataType) -> pa.Array:
    """Texts of decimals in a type that holds each of them.

    Raises:
        ValueError: counts those that it does not hold.
    """
    cells = [None if text is None else Decimal(text) for text in texts.to_pylist()]

    def fits(cell: Decimal | None) -> bool:
        try:
            return cell is None or pa.scalar(cell, target).as_py() == cell
        except pa.ArrowException:
            return False

    bad = sum(not fits(cell) for cell in cells)
    if bad:
        raise refused(texts, target, bad)
    return pa.array(cells, target)
