"""Texts of DynamoDB's values as columns, a whole column at a time.

Each rule takes what it is sure of and calls the rest doubtful: `item_values` decides that, value
by value. What is taken is what `item_values` would have made of it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import numbers
from feast_dynamo_ext.capture.values.attribute_types import MOMENT, PER_UNIT_NS
from feast_dynamo_ext.capture.values.item_values import DIGITS_OF_A_DOUBLE
from feast_dynamo_ext.declared import PLAIN_DECIMAL, scalar_exact
from feast_dynamo_ext.timestamps import EARLIEST_US, LATEST_US

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from feast_dynamo_ext.capture.values.attribute_types import ValueKind

    Doubtful = NDArray[np.bool_] | None
    Found = tuple[pa.Array, Doubtful]

WHOLE, PLAIN, ANY = b"-0123456789", b"-.0123456789", b"+-.eE0123456789"
NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"
UUID = "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
ZONE = "([Zz]|[+-][0-9]{2}(:?[0-9]{2})?)$"
CERTAIN_ISO = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
    r"[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])?$"
)
TINY = 1e-290
MOST_DECIMALS = 38


def column_of(kind: ValueKind, texts: pa.StringArray) -> Found:
    """Texts as a column of a scalar kind, and which of them are doubtful, if any.

    Args:
        kind: any that is made of texts.
        texts: what stands under the name of its DynamoDB type; null where nothing does.
    """
    if texts.null_count == len(texts):
        return pa.nulls(len(texts), kind.arrow), None
    if kind.name == "time":
        made, doubtful = _iso(texts) if kind.unit == "iso8601" else _epoch(texts, kind.unit)
        if kind.spelling:
            is_so = pc.match_substring_regex(texts, f"^({kind.spelling})$")
            doubtful = _either(doubtful, _mask(pc.invert(is_so)))
        return made, doubtful
    if kind.name == "decimal":
        return _decimal(texts, kind.arrow)
    return RULES[kind.name](texts)


def _characters(texts: pa.StringArray) -> bytes:
    """All texts, one after the other."""
    _, offsets, data = texts.buffers()
    if data is None:
        return b""
    ends = np.frombuffer(offsets, np.int32)[[texts.offset, texts.offset + len(texts)]]
    return memoryview(data)[ends[0] : ends[1]].tobytes()


def _cast(texts: pa.StringArray, kind: pa.DataType, characters: bytes, sure: str) -> Found:
    """By Arrow's cast, where it is known to be exact.

    Args:
        texts: the column.
        kind: what it becomes.
        characters: Arrow reads nothing wrong where there are no others.
        sure: an expression of texts that it surely reads.
    """
    if not _characters(texts).translate(None, characters):
        with contextlib.suppress(pa.ArrowInvalid):
            return texts.cast(kind), None
    return _cast_sure(texts, pc.match_substring_regex(texts, sure), kind)


def _cast_sure(texts: pa.StringArray, sure: pa.BooleanArray, kind: pa.DataType) -> Found:
    made = pc.if_else(sure, texts, pa.scalar(None, texts.type)).cast(kind)
    return made, _mask(pc.invert(sure))


def _mask(array: pa.BooleanArray) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = array.fill_null(False).to_numpy(zero_copy_only=False)
    return found


def _either(one: Doubtful, other: Doubtful) -> Doubtful:
    if one is None or other is None:
        return one if other is None else other
    return one | other


def _text(texts: pa.StringArray) -> Found:
    return texts, None


def _int64(texts: pa.StringArray) -> Found:
    return _cast(texts, pa.int64(), WHOLE, "^-?[0-9]{1,18}$")


def _int32(texts: pa.StringArray) -> Found:
    return _cast(texts, pa.int32(), WHOLE, "^-?[0-9]{1,9}$")


def _float64(texts: pa.StringArray) -> Found:
    made, doubtful = _cast(texts, pa.float64(), ANY, NUMBER)
    values = numbers(made)
    size = np.abs(values)
    bad = ~np.isfinite(values)
    if (size < TINY).any():
        # So small a number is none of DynamoDB's, unless it is zero.
        bad |= (size < TINY) & _mask(pc.match_substring_regex(texts, "[1-9]"))
    long = _mask(pc.greater(pc.binary_length(texts), DIGITS_OF_A_DOUBLE))
    if long.any():
        which = np.flatnonzero(long)
        some = texts.take(pa.array(which))
        # The shortest text that gives the double back.
        same = pc.equal(made.take(pa.array(which)).cast(pa.string()), some)
        bad[which[~_mask(same)]] = True
    return made, _either(doubtful, bad if bad.any() else None)


def _float32(texts: pa.StringArray) -> Found:
    made, doubtful = _cast(texts, pa.float32(), ANY, NUMBER)
    bad = ~np.isfinite(numbers(made))
    return made, _either(doubtful, bad if bad.any() else None)


def _decimal(texts: pa.StringArray, kind: pa.Decimal128Type) -> Found:
    before, after = kind.precision - kind.scale, kind.scale
    decimals = rf"(\.[0-9]{{1,{after}}})?" if after else ""
    sure = rf"^-?[0-9]{{1,{before}}}{decimals}$" if before else rf"^-?0?\.[0-9]{{1,{after}}}$"
    longest = pc.max(pc.binary_length(texts)).as_py()
    # Beyond 38 digits, those of the scale included, Arrow wraps around, silently.
    if longest + after > MOST_DECIMALS:
        return _cast_sure(texts, pc.match_substring_regex(texts, sure), kind)
    return _cast(texts, kind, PLAIN, sure)


def _decimal_text(texts: pa.StringArray) -> Found:
    plain = pc.match_substring_regex(texts, PLAIN_DECIMAL)
    if pc.all(plain).as_py():
        return texts, None
    return texts, _mask(pc.invert(plain))


def _epoch(texts: pa.StringArray, unit: str) -> Found:
    made, doubtful = _int64(texts)
    ticks = numbers(made)
    nanoseconds = PER_UNIT_NS[unit]
    if nanoseconds >= PER_UNIT_NS["us"]:
        factor = nanoseconds // PER_UNIT_NS["us"]
        bad = (ticks < -(-EARLIEST_US // factor)) | (ticks > LATEST_US // factor)
        micros = np.where(bad, 0, ticks) * factor
    else:
        factor = PER_UNIT_NS["us"] // nanoseconds
        micros, rest = np.divmod(ticks, factor)
        bad = (rest != 0) | (micros < EARLIEST_US) | (micros > LATEST_US)
    missing = made.is_null() if made.null_count else None
    if doubtful is not None and unit in DECIMALS:
        micros, doubtful, missing = _with_fractions(texts, micros, doubtful, unit)
    times = pa.array(micros, pa.int64(), mask=None if missing is None else _mask(missing))
    return times.cast(MOMENT), _either(doubtful, bad if bad.any() else None)


DECIMALS = {"s": 6, "ms": 3}


def _with_fractions(
    texts: pa.StringArray, micros: NDArray[np.int64], doubtful: NDArray[np.bool_], unit: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_], pa.BooleanArray]:
    """Numbers of seconds with decimals, as many programs write them."""
    kind = pa.decimal128(24, DECIMALS[unit])
    # Of any years up to 9999.
    sure = pc.match_substring_regex(
        texts, rf"^-?[0-9]{{1,{17 - kind.scale - 1}}}\.[0-9]{{1,{kind.scale}}}$"
    )
    which = np.flatnonzero(_mask(sure))
    some = texts.take(pa.array(which)).cast(kind)
    # The digits of a decimal are a whole number; of microseconds, here.
    found = np.frombuffer(some.buffers()[1], np.int64)[0 : 2 * len(some) : 2]
    within = (found >= EARLIEST_US) & (found <= LATEST_US)
    micros = micros.copy()
    micros[which[within]] = found[within]
    doubtful = doubtful.copy()
    doubtful[which[within]] = False
    return micros, doubtful, texts.is_null()


def _iso(texts: pa.StringArray) -> Found:
    made, doubtful = _iso_cast(texts)
    values = numbers(made.cast(pa.int64()))
    bad = (values < EARLIEST_US) | (values > LATEST_US)
    return made, _either(doubtful, bad if bad.any() else None)


def _iso_cast(texts: pa.StringArray) -> Found:
    for kind in (MOMENT, pa.timestamp("us")):
        with contextlib.suppress(pa.ArrowInvalid):
            return _in_utc(texts.cast(kind)), None
    sure = pc.match_substring_regex(texts, CERTAIN_ISO)
    with_zone = pc.match_substring_regex(texts, ZONE)
    none = pa.scalar(None, texts.type)
    zoned = pc.if_else(pc.and_(sure, with_zone), texts, none).cast(MOMENT)
    naive = pc.if_else(pc.and_(sure, pc.invert(with_zone)), texts, none).cast(pa.timestamp("us"))
    return pc.coalesce(zoned, _in_utc(naive)), _mask(pc.invert(sure))


def _in_utc(times: pa.TimestampArray) -> pa.TimestampArray:
    return times.cast(pa.int64()).cast(MOMENT)


def _uuid(texts: pa.StringArray) -> Found:
    try:
        return scalar_exact(texts, ValueType.UUID).cast(pa.string()), None
    except ValueError:
        sure = pc.match_substring_regex(texts, UUID)
        some = pc.if_else(sure, texts, pa.scalar(None, texts.type))
        return scalar_exact(some, ValueType.UUID).cast(pa.string()), _mask(pc.invert(sure))


def _bytes(texts: pa.StringArray) -> Found:
    made = [_from_base64(text) for text in texts.to_pylist()]
    bad = np.array([each is INVALID for each in made])
    if not bad.any():
        return pa.array(made, pa.binary()), None
    return pa.array([None if each is INVALID else each for each in made], pa.binary()), bad


INVALID = object()


def _from_base64(text: str | None) -> object:
    try:
        return None if text is None else base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return INVALID


RULES: dict[str, Callable[[pa.StringArray], Found]] = {
    "text": _text,
    "bytes": _bytes,
    "int32": _int32,
    "int64": _int64,
    "float32": _float32,
    "float64": _float64,
    "decimal_text": _decimal_text,
    "uuid": _uuid,
}
