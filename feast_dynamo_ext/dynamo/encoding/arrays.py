"""Arrow arrays brought to the few shapes that the encoder knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.dynamo.encoding.protobuf import binary, offsets_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feast_dynamo_ext.dynamo.encoding.protobuf import Integers, Mask

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
SECONDS_PER_DAY = 86_400
HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), "S2")
UUID_GROUPS = (4, 2, 2, 2, 6)  # bytes between the hyphens


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    is_string: bool = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return is_string or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes."""
    tests = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(test(kind) for test in tests)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(test(kind) for test in tests)


def is_uuid(kind: pa.DataType) -> bool:
    """Whether a column holds UUIDs as 16 bytes each (Parquet's and Arrow's UUID)."""
    return getattr(kind, "extension_name", None) == "arrow.uuid"


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of `plain`'s answer."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if getattr(kind, "extension_name", None) == "arrow.json":
        return kind.storage_type
    return kind


def plain(array: pa.Array) -> pa.Array:
    """Without dictionary, and JSON documents as the texts that they are."""
    if pa.types.is_dictionary(array.type):
        return plain(pc.cast(array, array.type.value_type))
    return array if plain_type(array.type) == array.type else array.storage


def present(array: pa.Array) -> Mask | None:
    """Which elements are not null; None for all of them."""
    if not array.null_count:
        return None
    mask: Mask = array.is_valid().to_numpy(zero_copy_only=False)
    return mask


def numbers(array: pa.Array) -> NDArray[Any]:
    """The numbers of an array, with a zero for each null."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    filled = array.fill_null(0) if array.null_count else array
    values: NDArray[Any] = filled.to_numpy(zero_copy_only=False)
    return values


def texts(array: pa.Array, kind: pa.DataType | None = None) -> pa.LargeBinaryArray:
    """The bytes of texts or bytes, with nothing for each null.

    Args:
        array: the column.
        kind: what it is cast to first: Arrow turns numbers into texts; None for bytes as they are.

    Raises:
        pyarrow.ArrowInvalid: a text that is not UTF-8.
    """
    data = array.cast(pa.large_binary()) if is_text(array.type) or is_bytes(array.type) else array
    if kind is not None:
        # Only the cast from bytes looks at them: files may hold texts that are none.
        data = data.cast(kind)
    return data.cast(pa.large_binary()).fill_null(b"")


def uuid_texts(array: pa.Array) -> pa.Array:
    """UUIDs of 16 bytes as texts."""
    storage = array.storage.fill_null(bytes(16))
    data = np.frombuffer(storage.buffers()[1], np.uint8)[16 * storage.offset :][: 16 * len(array)]
    digits = HEX[data].view(np.uint8).reshape(len(array), 32)
    hyphen = np.full((len(array), 1), ord("-"), np.uint8)
    columns = []
    for start, size in zip(np.cumsum((0, *UUID_GROUPS)), UUID_GROUPS, strict=False):
        columns += [digits[:, 2 * start : 2 * (start + size)], hyphen]
    cells = np.ascontiguousarray(np.concatenate(columns[:-1], axis=1))
    filled = binary(offsets_of(np.full(len(array), cells.shape[1])), cells)
    return pc.if_else(array.is_valid(), filled.cast(pa.large_string()), None)


def flattened(array: pa.Array) -> tuple[pa.Array, Integers]:
    """The elements of all lists, and where those of each list start and the last ones end.

    A null has no elements.
    """
    lengths = numbers(pc.list_value_length(array)).astype(np.int64)
    return pc.list_flatten(array), offsets_of(lengths)


def rows_of(offsets: Integers) -> Integers:
    """Of each element, the row of its list."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def codes_of(array: pa.Array) -> tuple[Integers, int]:
    """A number for each element, the same for equal ones, and how many numbers there are."""
    if pa.types.is_floating(array.type):
        array = pa.array(numbers(array) + 0.0)  # -0.0 equals 0.0
    encoded = array.dictionary_encode()
    return numbers(encoded.indices).astype(np.int64), max(1, len(encoded.dictionary))


def map_entries(array: pa.MapArray) -> tuple[pa.Array, pa.Array, Integers]:
    """The keys and the values of all maps, and where those of each map start.

    Raises:
        ValueError: a map that has a key twice.
    """
    entry = pa.struct([pa.field("key", array.type.key_type, nullable=False),
                       pa.field("value", array.type.item_type)])  # fmt: skip
    entries, offsets = flattened(array.cast(pa.list_(entry)))
    keys, values = entries.flatten()
    keys = plain(keys)
    codes, count = codes_of(uuid_texts(keys) if is_uuid(keys.type) else keys)
    if len(np.unique(rows_of(offsets) * count + codes)) < len(codes):
        raise ValueError("a map has a key twice")
    return keys, values, offsets


def seconds(array: pa.Array, *, toward_zero: bool = False) -> pa.Int64Array:
    """Whole seconds since 1970 UTC, the resolution of Feast's timestamps.

    Args:
        array: whole numbers (taken as seconds), dates or timestamps of any unit and zone.
        toward_zero: Feast cuts off the fraction of times in lists and maps; elsewhere rounding is
            down, which differs before 1970 alone.
    """
    if pa.types.is_integer(array.type):
        return array.cast(pa.int64())
    if pa.types.is_date32(array.type):
        return pc.multiply(array.cast(pa.int32()).cast(pa.int64()), SECONDS_PER_DAY)
    if not (pa.types.is_timestamp(array.type) or pa.types.is_date64(array.type)):
        raise ValueError(f"{array.type} is not a time")
    per_second = PER_SECOND["ms" if pa.types.is_date64(array.type) else array.type.unit]
    ticks = numbers(array.cast(pa.int64()))
    whole = ticks // per_second
    if toward_zero:
        whole += (ticks < 0) & (whole * per_second != ticks)
    missing = None if array.null_count == 0 else ~present(array)  # type: ignore[operator]
    return pa.array(whole, mask=missing)
