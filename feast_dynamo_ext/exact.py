"""Casts that keep each value.

A value is cast only where it comes back equal, within what the target means: 1.0 becomes the
integer 1, 5.5 is refused. The one rounding is that of a number into a float32, to the nearest and
never to infinity. NaN, as which pandas writes a missing number, is null in everything but floats.
Errors count values and never show them.
"""

from __future__ import annotations

import json
import uuid
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import (
    EXACT_BITS,
    PER_SECOND,
    SECONDS_PER_DAY,
    UUID_BYTES,
    is_bytes,
    is_list,
    is_number,
    is_text,
    is_time,
    is_uuid,
    numbers,
    plain,
    present,
    uuid_texts,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from numpy.typing import NDArray

    Column: TypeAlias = pa.Array | pa.ChunkedArray
    Mask: TypeAlias = NDArray[np.bool_]

MOST_COUNTED = 1_000
"""Values that are counted one by one for an error; beyond it says "at least"."""


def cast_exact(column: Column, target: pa.DataType) -> Column:
    """A column in another type, each value equal to what it was.

    From numbers and booleans to each other, to texts and to decimals; between texts and bytes;
    between times, of which those without a zone are UTC. Texts are not read as numbers or times,
    nor numbers as times. Lists, structs and maps are cast by what they hold, their nulls kept.

    Args:
        column: of any type; one that holds nothing but nulls can be cast to all.
        target: any type; for a dictionary, the values are cast to that of its values.

    Raises:
        ValueError: says how many values do not fit, and shows none.
    """
    if column.type == target:
        return column
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([cast_exact(chunk, target) for chunk in column.chunks], target)
    if column.null_count == len(column):
        return pa.nulls(len(column), target)
    if pa.types.is_dictionary(target):
        encoded = cast_exact(column, target.value_type).dictionary_encode()
        indices = encoded.indices.cast(target.index_type)
        return pa.DictionaryArray.from_arrays(indices, encoded.dictionary, ordered=target.ordered)
    column = plain(column)
    if column.type == target:
        return column
    for matches, rule in RULES:
        if matches(target):
            return rule(column, target)
    raise refused(column, target)


def cast_unrounded(array: pa.Array, target: pa.DataType) -> pa.Array:
    """`cast_exact`, of which a float32 rounds nothing either.

    Raises:
        ValueError: counts the values that do not fit.
    """
    made = cast_exact(array, target)
    if pa.types.is_float32(target) and array.type != target:
        wide = cast_exact(array, pa.float64())
        _where(array, _equal(numbers(made).astype(np.float64), numbers(wide)), target)
    return made


def inexact_count(column: pa.Array, cast: Callable[[pa.Array], object]) -> int:
    """How many elements a cast refuses; it stops at a thousand."""
    try:
        cast(column)
    except (pa.ArrowException, ValueError):
        if len(column) == 1:
            return 1
        half = len(column) // 2
        found = inexact_count(column.slice(0, half), cast)
        if found < MOST_COUNTED:
            found += inexact_count(column.slice(half), cast)
        return found
    return 0


def refused(
    array: pa.Array, target: pa.DataType | str, count: int | None = None, of: int | None = None
) -> ValueError:
    """The error of a column of which a count of values, by default all, cannot be cast."""
    of = len(array) - array.null_count if of is None else of
    count = of if count is None else count
    least = "at least " if MOST_COUNTED <= count < of else ""
    return ValueError(
        f"{least}{count:,} of {of:,} values of type {array.type} cannot be {target} without a "
        "change"
    )


def _by_arrow(
    array: pa.Array, target: pa.DataType, cast: Callable[[pa.Array], pa.Array] | None = None
) -> pa.Array:
    """By Arrow's own cast, or another, where it is exact."""
    cast = cast or (lambda part: part.cast(target))
    try:
        return cast(array)
    except (pa.ArrowException, ValueError) as error:
        raise refused(array, target, inexact_count(array, cast)) from error


def _where(array: pa.Array, fits: Mask, target: pa.DataType | str) -> None:
    """Refuse those elements that do not fit; nulls do.

    Raises:
        ValueError: counts them.
    """
    bad = ~fits
    mask = present(array)
    if mask is not None:
        bad &= mask
    if bad.any():
        raise refused(array, target, int(bad.sum()))


def without_nan(array: pa.Array) -> pa.Array:
    """Floats with null for NaN; any other array as it is."""
    if not pa.types.is_floating(array.type):
        return array
    missing = pc.is_nan(array)
    if not pc.any(missing).as_py():
        return array
    return pc.if_else(missing, pa.scalar(None, array.type), array)


def refuse_inexact_integers(array: pa.Array) -> None:
    """Refuse floats that may have been another integer, as keys must not.

    Raises:
        ValueError: counts them.
    """
    bits = EXACT_BITS[array.type.bit_width]
    values = np.abs(numbers(array).astype(np.float64))
    bad = int((values >= 2.0**bits).sum())
    if bad:
        raise ValueError(
            f"{bad:,} of {len(array):,} floats are 2**{bits} or more, where each {array.type} "
            "stands for several integers; use an integer type (in pandas Int64, which holds "
            "missing values)"
        )


def _numbers_as(array: pa.Array, values: NDArray[Any], target: pa.DataType) -> pa.Array:
    mask = present(array)
    return pa.array(values, target, mask=None if mask is None else ~mask)


def _to_integer(array: pa.Array, target: pa.DataType) -> pa.Array:
    kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        return _by_arrow(array, target)
    if not pa.types.is_floating(kind):
        raise refused(array, target)
    array = without_nan(array)
    values = numbers(array).astype(np.float64, copy=False)
    limits = np.iinfo(target.to_pandas_dtype())
    # The highest integer may be no float; the power of two behind it is.
    fits = (values == np.trunc(values)) & (values >= float(limits.min))
    _where(array, fits & (values < float(limits.max // 2 + 1) * 2), target)
    return _numbers_as(array, values.astype(target.to_pandas_dtype()), target)


def _to_float(array: pa.Array, target: pa.DataType) -> pa.Array:
    kind = array.type
    if pa.types.is_boolean(kind):
        return array.cast(pa.uint8()).cast(target)
    if pa.types.is_decimal(kind):
        return _decimal_to_float(array, target)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = numbers(array)
        with np.errstate(over="ignore"):
            cast = values.astype(target.to_pandas_dtype())
        finite = np.isfinite(cast) | ~np.isfinite(values)
        fits = finite if pa.types.is_float32(target) else finite & _equal(cast, values)
        _where(array, fits, target)
        return _numbers_as(array, cast, target)
    raise refused(array, target)


def _equal(cast: NDArray[Any], values: NDArray[Any]) -> Mask:
    """Whether floats are what they were cast from, also where that is an integer over 2**53."""
    if values.dtype.kind == "f":
        same: Mask = (cast == values) | np.isnan(values)
        return same
    # The highest integers are rounded up to a power of two that no integer of the type is.
    wide = cast.astype(np.float64, copy=False)
    within = np.isfinite(wide) & (wide < float(np.iinfo(values.dtype).max // 2 + 1) * 2)
    equal: Mask = within & (np.where(within, wide, 0).astype(values.dtype) == values)
    return equal


# Any decimal of so many digits comes back from a double.
DIGITS_OF_A_DOUBLE = 15


EVERY_DIGIT = Context(prec=400)


def _decimal_to_float(array: pa.Array, target: pa.DataType) -> pa.Array:
    """The nearest float, which must give the decimal back, but for the rounding of a float32.

    By texts: Arrow's own cast makes 0.30000000000000004 of 0.3.
    """
    cast = array.cast(pa.string()).cast(target)
    if pa.types.is_float32(target):
        _where(array, np.isfinite(numbers(cast)), target)
    elif array.type.precision > DIGITS_OF_A_DOUBLE or pa.types.is_float16(target):
        quantum = Decimal(1).scaleb(-array.type.scale)
        pairs = zip(array.to_pylist(), cast.to_pylist(), strict=True)
        fits = [value is None or _gives_back(number, value, quantum) for value, number in pairs]
        _where(array, np.array(fits, bool), target)
    return cast


def _gives_back(number: float, value: Decimal, quantum: Decimal) -> bool:
    """Whether a float is a whole number itself, or a fraction when rounded to its decimals."""
    if not np.isfinite(number):
        return False
    if value == value.to_integral_value(context=EVERY_DIGIT):
        return Decimal(number) == value
    return EVERY_DIGIT.quantize(Decimal(repr(float(number))), quantum) == value


def _to_bool(array: pa.Array, target: pa.DataType) -> pa.Array:
    if not is_number(array.type):
        raise refused(array, target)
    array = without_nan(array)
    if pa.types.is_decimal(array.type):
        array = _to_integer(array, pa.int64())
    values = numbers(array)
    _where(array, (values == 0) | (values == 1), target)
    return _numbers_as(array, values.astype(bool), target)


def _to_decimal(array: pa.Array, target: pa.DataType) -> pa.Array:
    kind = array.type
    if pa.types.is_decimal(kind):
        return _between_decimals(array, target)
    if pa.types.is_integer(kind):
        # Arrow asks for room for the highest integer of the type.
        return _between_decimals(array.cast(pa.decimal256(20, 0)), target)
    if pa.types.is_floating(kind):
        return _by_arrow(without_nan(array), target, lambda part: _from_floats(part, target))
    raise refused(array, target)


def _between_decimals(array: pa.Array, target: pa.DataType) -> pa.Array:
    """By Arrow's cast, which wraps around where digits and scale are more than the width holds."""
    kind, room = array.type, target.precision - target.scale
    if kind.precision - kind.scale > room:
        # The least number that has no room, or the least that there is.
        least = Decimal(10) ** max(room, -kind.scale)
        if kind.scale < 0:  # which Arrow does not compare
            cells = (cell is None or abs(cell) < least for cell in array.to_pylist())
            fits = np.fromiter(cells, bool, len(array))
        else:
            fits = np.asarray(pc.less(pc.abs(array), pa.scalar(least, kind)).fill_null(True))
        _where(array, fits, target)
    made = _by_arrow(array, target)
    if target.scale < 0:  # where Arrow drops digits
        pairs = zip(made.to_pylist(), array.to_pylist(), strict=True)
        _where(
            array, np.fromiter((one == other for one, other in pairs), bool, len(array)), target
        )
    return made


def _from_floats(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Whole numbers as they are, fractions as the shortest decimal that gives the float back."""
    if not np.isfinite(numbers(array)).all():
        raise refused(array, target)
    shortest = array.type.to_pandas_dtype()
    cells = [
        value if value is None else Decimal(value if value.is_integer() else str(shortest(value)))
        for value in array.to_pylist()
    ]
    made = pa.array(cells, target)
    if made.to_pylist() != cells:  # Arrow makes 0 of 1e-82
        raise refused(array, target)
    return made


def _to_text(array: pa.Array, target: pa.DataType) -> pa.Array:
    kind = array.type
    if is_uuid(kind):
        return uuid_texts(array.storage).cast(target)
    if is_bytes(kind) or is_text(kind):
        # Only the cast from bytes looks at them: files may hold texts that are not UTF-8.
        return _by_arrow(array.cast(pa.large_binary()), target)
    if is_number(kind) or pa.types.is_boolean(kind) or is_time(kind):
        return without_nan(array).cast(target)
    raise refused(array, target)


def _to_bytes(array: pa.Array, target: pa.DataType) -> pa.Array:
    if is_uuid(array.type):
        array = array.storage
    if not (is_bytes(array.type) or is_text(array.type)):
        raise refused(array, target)
    return _by_arrow(array.cast(pa.large_binary()), target)


def _to_time(array: pa.Array, target: pa.DataType) -> pa.Array:
    if not is_time(array.type):
        raise refused(array, target)
    if not pa.types.is_date(target):
        return _by_arrow(array, target)
    if pa.types.is_timestamp(array.type):
        # Arrow cuts off the hours of a timestamp that becomes a date.
        ticks = numbers(array.cast(pa.int64()))
        _where(array, ticks % (PER_SECOND[array.type.unit] * SECONDS_PER_DAY) == 0, target)
    return array.cast(target)


def _to_time_of_day(array: pa.Array, target: pa.DataType) -> pa.Array:
    if not pa.types.is_time(array.type):
        raise refused(array, target)
    return _by_arrow(array, target)


def _to_list(array: pa.Array, target: pa.DataType) -> pa.Array:
    if not is_list(array.type):
        raise refused(array, target)
    return with_elements(array, elements_of(array), target)


def elements_of(array: pa.Array) -> pa.Array:
    """The elements of all lists, one after the other; a null has none."""
    return plain(pc.list_flatten(array))


def with_elements(array: pa.Array, elements: pa.Array, target: pa.DataType) -> pa.Array:
    """Lists of another type, whose elements are those of `elements_of` after a change of each.

    Raises:
        ValueError: counts lists or elements that do not fit.
    """
    if pa.types.is_fixed_size_list(target):
        sizes = numbers(pc.list_value_length(array).fill_null(target.list_size))
        _where(array, sizes == target.list_size, target)
    lengths = numbers(pc.list_value_length(array))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    elements = cast_exact(elements, target.value_type)
    missing = array.is_null() if array.null_count else None
    made = pa.LargeListArray.from_arrays(pa.array(offsets), elements, mask=missing)
    if not pa.types.is_fixed_size_list(target) or missing is None:
        return made.cast(target)
    # A null list of fixed size has elements all the same.
    size = target.list_size
    places = np.where(numbers(missing)[:, None] == 1, -1, offsets[:-1, None] + np.arange(size))
    taken = elements.take(pa.array(places.ravel(), mask=places.ravel() < 0))
    return pa.FixedSizeListArray.from_arrays(taken, type=target, mask=missing)


def _to_struct(array: pa.Array, target: pa.DataType) -> pa.Array:
    is_struct = pa.types.is_struct(array.type)
    names = [field.name for field in array.type] if is_struct else []
    wanted = {field.name for field in target}
    if not is_struct or len(set(names)) < len(names) or not set(names) <= wanted:
        raise refused(array, target)
    found = dict(zip(names, array.flatten(), strict=True))
    fields = [
        cast_exact(found.get(field.name, pa.nulls(len(array))), field.type) for field in target
    ]
    return pa.StructArray.from_arrays(fields, fields=list(target), mask=array.is_null())


def _to_map(array: pa.Array, target: pa.DataType) -> pa.Array:
    if not pa.types.is_map(array.type):
        raise refused(array, target)
    entries = array.cast(pa.large_list(entry_type(array.type)))
    return map_of(_to_list(entries, pa.list_(entry_type(target))), target)


def map_of(entries: pa.ListArray, target: pa.MapType) -> pa.MapArray:
    """Lists of entries as maps."""
    keys, items = entries.values.flatten()
    missing = entries.is_null() if entries.null_count else None
    return pa.MapArray.from_arrays(entries.offsets, keys, items, target, mask=missing)


def entry_type(kind: pa.MapType) -> pa.StructType:
    """The type of a map's entries."""
    return pa.struct(
        [pa.field("key", kind.key_type, nullable=False), pa.field("value", kind.item_type)]
    )


def _to_uuid(array: pa.Array, target: pa.DataType) -> pa.Array:
    if is_text(array.type):
        made = [None if text is None else _uuid_of(text) for text in array.to_pylist()]
        _where(array, np.array([data != b"" for data in made], bool), "UUIDs")
        array = pa.array(made, pa.binary(UUID_BYTES))
    elif is_bytes(array.type):
        array = _by_arrow(array, pa.binary(UUID_BYTES))
    else:
        raise refused(array, target)
    return pa.ExtensionArray.from_storage(target, array)


def _uuid_of(text: str) -> bytes:
    """The bytes of a UUID's text; none where it is none."""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        return b""


def _to_json(array: pa.Array, target: pa.DataType) -> pa.Array:
    storage = cast_exact(array, target.storage_type)
    check_json(storage)
    return pa.ExtensionArray.from_storage(target, storage)


def _is_json_type(kind: pa.DataType) -> bool:
    return getattr(kind, "extension_name", None) == "arrow.json"


DOCUMENTS = 100
"""Of JSON that are parsed together; a thousand took longer, as their values fill the caches."""


def check_json(texts: pa.Array) -> None:
    """Refuse texts that are not JSON.

    All are put into lists, between two documents a text that none of them can know. Where each
    second element of a list is that text, each other element is one whole document. A parse of
    each on its own took one and a half times as long.

    Raises:
        ValueError: counts them.
    """
    documents = texts.cast(pa.large_binary())
    if documents.null_count:
        documents = documents.drop_null()
    between = uuid.uuid4().hex
    starts = [*range(0, len(documents), DOCUMENTS), len(documents)]
    rows = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), documents)
    lists = pc.binary_join(rows, pa.scalar(f',"{between}",'.encode(), pa.large_binary()))
    bad: list[bytes] = []
    for some, joined in zip(rows, lists, strict=True):
        if not _are_json(joined.as_py(), between, len(some)):
            bad += [document for document in some.as_py() if not _is_json(document)]
    if bad:
        has_nan = any(_is_json(document, parse_constant=None) for document in bad)
        what = "JSON (which has no NaN and no infinity)" if has_nan else "JSON"
        raise refused(texts, what, len(bad))


def _are_json(joined: bytes, between: str, count: int) -> bool:
    """Whether all of some documents are JSON; False also where some may be."""
    try:
        found = orjson.loads(b"[%b]" % joined)
    except orjson.JSONDecodeError:
        return False
    return len(found) == 2 * count - 1 and found[1::2] == [between] * (count - 1)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _is_json(
    document: bytes, parse_constant: Callable[[str], object] | None = _no_constant
) -> bool:
    try:
        orjson.loads(document)
    except orjson.JSONDecodeError:
        # Halves of surrogate pairs and the like, which Feast takes and reads. It takes NaN, too,
        # of which others make a null or an error.
        try:
            json.loads(document.decode(), parse_constant=parse_constant)
        except (ValueError, RecursionError):
            return False
    return True


# What matches a target -> how any array becomes one.
RULES: tuple[
    tuple[Callable[[pa.DataType], bool], Callable[[pa.Array, pa.DataType], pa.Array]], ...
] = (
    (pa.types.is_integer, _to_integer),
    (pa.types.is_floating, _to_float),
    (pa.types.is_boolean, _to_bool),
    (pa.types.is_decimal, _to_decimal),
    (is_text, _to_text),
    (is_uuid, _to_uuid),
    (_is_json_type, _to_json),
    (is_bytes, _to_bytes),
    (is_time, _to_time),
    (pa.types.is_time, _to_time_of_day),
    (is_list, _to_list),
    (pa.types.is_struct, _to_struct),
    (pa.types.is_map, _to_map),
)
