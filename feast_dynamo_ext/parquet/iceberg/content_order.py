"""Which of rows that are equal in keys, times and sequence is the newest: by what they hold.

The order is that of values, column by column in the order of the columns' names, so that neither
the order of files nor their layout changes it, and SQL can say the same: nulls first, false before
true, numbers and times ascending (NaN last, -0.0 before 0.0), texts and bytes by their bytes,
lists and structs by what they hold, maps by their entries in the order of the keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import is_bytes, is_list, is_text, one_array, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    Ranks = NDArray[np.int64]

RANK_BYTES = 8


def content_ranks(rows: pa.Table) -> Ranks:
    """Numbers that order rows by what they hold: the greater one wins, equal rows have the same.

    Args:
        rows: of any types, dictionaries and nested ones included; without the sequence column,
            whose values a rewrite by others may not keep.

    Returns:
        A number a row, ascending without gaps from 0. Chunks, slices, dictionaries and the order
        of the columns do not change it; neither do columns without any value.
    """
    return _combined((_ranks(rows.column(name)) for name in sorted(rows.column_names)), len(rows))


def _combined(columns: Iterable[Ranks], rows: int) -> Ranks:
    """The order of rows by several ranks, the first one first."""
    found = np.zeros(rows, dtype=np.int64)
    highest = 0
    for ranks in columns:
        if highest == rows - 1:
            break  # no two are equal any more
        # Both are less than the number of rows + 1, whose square fits for three thousand million.
        found = _dense(found * (int(ranks.max(initial=0)) + 1) + ranks)
        highest = int(found.max(initial=0))
    return found


def _dense(numbers: NDArray[np.int64] | NDArray[np.uint64]) -> Ranks:
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64, copy=False)


def _ranks(column: pa.ChunkedArray | pa.Array) -> Ranks:
    """Ranks of a column's values, from 1; nulls have 0."""
    array = plain(one_array(column))
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if array.null_count == len(array):
        return np.zeros(len(array), dtype=np.int64)
    # Nulls have any of these.
    ranks = next(rule for matches, rule in RULES if matches(array.type))(array)
    if not array.null_count:
        return ranks + 1
    return np.where(np.asarray(array.is_valid()), ranks + 1, 0)


def _of_bytes(array: pa.Array) -> Ranks:
    return _of_comparable(array.cast(pa.large_binary()))


def _of_comparable(array: pa.Array) -> Ranks:
    filled = array.fill_null(array.drop_null()[0])
    ranks: Ranks = pc.rank(filled, "ascending", tiebreaker="dense").to_numpy().astype(np.int64)
    return ranks - 1


def _of_booleans(array: pa.Array) -> Ranks:
    return _of_integers(array.cast(pa.uint8()))


def _of_integers(array: pa.Array) -> Ranks:
    return _dense((array.fill_null(0) if array.null_count else array).to_numpy())


def _of_floats(array: pa.Array) -> Ranks:
    wide = array.cast(pa.float32()) if pa.types.is_float16(array.type) else array
    wide = wide.cast(pa.float64())
    values = (wide.fill_null(0.0) if wide.null_count else wide).to_numpy().copy()
    values[np.isnan(values)] = np.nan  # one of the many
    bits = values.view(np.int64)
    # Of negative ones all other bits count down.
    return _dense(bits ^ ((bits >> 63) & np.int64(2**63 - 1)))


def _of_struct(array: pa.StructArray) -> Ranks:
    fields = {array.type.field(at).name: part for at, part in enumerate(array.flatten())}
    return _combined((_ranks(fields[name]) for name in sorted(fields)), len(array))


def _of_map(array: pa.MapArray) -> Ranks:
    entry = pa.struct([array.type.key_field, array.type.item_field])
    lists = array.cast(pa.list_(entry))
    lengths = _lengths(lists)
    keys, items = (_ranks(part) for part in pc.list_flatten(lists).flatten())
    row = np.repeat(np.arange(len(array)), lengths)
    order = np.lexsort((keys, row))
    return _of_parts(_combined((part[order] for part in (keys, items)), len(row)), lengths)


def _of_lists(array: pa.Array) -> Ranks:
    # pyarrow 26 does not flatten the views of a slice; Python's values are the same.
    if "view" in str(array.type):
        array = pa.array(array.to_pylist(), pa.large_list(array.type.value_field))
    return _of_parts(_ranks(pc.list_flatten(array)), _lengths(array))


def _lengths(array: pa.Array) -> NDArray[np.int64]:
    lengths = pc.list_value_length(array).cast(pa.int64())
    found: NDArray[np.int64] = (lengths.fill_null(0) if lengths.null_count else lengths).to_numpy()
    return found


def _of_parts(ranks: Ranks, lengths: NDArray[np.int64]) -> Ranks:
    """The order of sequences of ranks: by the first that differs, the shorter of two first."""
    data = ranks.astype(">u8")  # whose bytes have the order of the numbers
    offsets = np.concatenate([[0], lengths.cumsum()]) * RANK_BYTES
    parts = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    return _ranks(parts)


RULES: list[tuple[Callable[[pa.DataType], bool], Callable[[Any], Ranks]]] = [
    (pa.types.is_boolean, _of_booleans),
    (pa.types.is_integer, _of_integers),
    (pa.types.is_floating, _of_floats),
    (lambda kind: is_text(kind) or is_bytes(kind), _of_bytes),
    (pa.types.is_struct, _of_struct),
    (pa.types.is_map, _of_map),
    (is_list, _of_lists),
    (lambda _: True, _of_comparable),  # decimals, dates, times, durations
]
"""Which types -> ranks of their values from 0."""
