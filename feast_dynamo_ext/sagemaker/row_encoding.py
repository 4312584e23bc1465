"""An encoding of a few values without Arrow, whose fixed costs a column are 50 us.

`row_plan` makes a plan of a `FittedEncoding`: what a null or a category becomes it asks of the
encoding itself, and it passes over every value that is not of the plainest kind. What it gives is
what the encoding gives, bit for bit; where it gives nothing, the encoding is used.
"""

from __future__ import annotations

import functools
import math
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import EXACT_BITS, PER_SECOND
from feast_dynamo_ext.sagemaker.encodings import arrow_type, bucket_of, per_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from feast_dynamo_ext.sagemaker.encodings import FittedEncoding

    Cells = tuple[float, ...]
    Convert = Callable[[Any, datetime | None], Cells]

MOST_REMEMBERED = 4_096
"""Categories of one column whose numbers are remembered."""

EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=timezone.utc), timedelta(microseconds=1)
MOST_EXACT = 2**53
_FLOATS = {"float": 32, "double": 64}


class _BeyondPlanError(Exception):
    """A value that only the encoding itself can judge."""


class RowPlan:
    """A compiled encoding; see `row_plan`."""

    def __init__(self, convert: Convert, missing: Cells) -> None:
        self._convert = convert
        self._missing = missing

    def cells(
        self, values: Sequence[Any], event_times: Sequence[datetime] | None
    ) -> list[Cells] | None:
        """The numbers of each value, NaN for missing; None where the encoding is to be used.

        Args:
            values: Python's own, as Feast answers them.
            event_times: of the rows, with a zone; needed for an age.
        """
        convert, missing = self._convert, self._missing
        times = event_times or (None,) * len(values)
        try:
            return [
                missing if value is None else convert(value, at)
                for value, at in zip(values, times, strict=True)
            ]
        except _BeyondPlanError:
            return None


def row_plan(encoding: FittedEncoding) -> RowPlan | None:
    """The plan of an encoding; None for one that has none."""
    try:
        kind = arrow_type(encoding.input_type)
    except ValueError:
        kind = None
    make = _PLANS.get(encoding.kind)
    if make is None or not all(_is_number(arrow_type(each)) for each in encoding.types):
        return None
    times = pa.array([EPOCH], pa.timestamp("us", "UTC"))
    missing = _numbers(encoding, pa.nulls(1, kind or pa.null()), times)
    convert = make(encoding, kind, missing)
    return None if convert is None else RowPlan(convert, missing)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _numbers(encoding: FittedEncoding, value: pa.Array, times: pa.Array | None = None) -> Cells:
    """What the encoding makes of one value."""
    columns = encoding.encode(value, times)
    return tuple(math.nan if (cell := each[0].as_py()) is None else cell for each in columns)


def _remembered(encoding: FittedEncoding, kind: pa.DataType | None, _: Cells) -> Convert | None:
    """Of categories and booleans: what the encoding made of the value before."""
    allowed = {pa.string(): str, pa.large_string(): str, pa.bool_(): bool}.get(kind)
    if allowed is None and kind is not None and pa.types.is_integer(kind):
        allowed = int
    if allowed is None:
        return None

    @functools.lru_cache(MOST_REMEMBERED)
    def look_up(value: Any) -> Cells:
        try:
            return _numbers(encoding, pa.array([value], kind))
        except (ValueError, OverflowError, pa.ArrowException) as error:
            raise _BeyondPlanError from error

    def convert(value: Any, _: datetime | None) -> Cells:
        if type(value) is not allowed:
            raise _BeyondPlanError
        return look_up(value)

    return convert


def _hash(encoding: FittedEncoding, kind: pa.DataType | None, _: Cells) -> Convert | None:
    if kind not in (pa.string(), pa.large_string()):
        return _remembered(encoding, kind, _)
    buckets = encoding.state["buckets"]

    def convert(value: Any, _: datetime | None) -> Cells:
        if type(value) is not str:
            raise _BeyondPlanError
        try:
            return (bucket_of(value, buckets),)
        except UnicodeEncodeError as error:
            raise _BeyondPlanError from error

    return convert


def _number(encoding: FittedEncoding, kind: pa.DataType | None, missing: Cells) -> Convert | None:
    if kind is not None and pa.types.is_boolean(kind):
        return _remembered(encoding, kind, missing)
    one = _plain_number(kind, arrow_type(encoding.types[0]), missing[0])
    return None if one is None else lambda value, _: (one(value),)


def _plain_number(
    given: pa.DataType | None, wanted: pa.DataType, missing: float
) -> Callable[[Any], float] | None:
    """A finite number that both types and a double hold as it is; NaN is missing."""
    if given is None:
        return None
    if pa.types.is_integer(given):
        bounds = [_bounds(given), _bounds(wanted), (-MOST_EXACT, MOST_EXACT)]
        least, most = max(low for low, _ in bounds), min(high for _, high in bounds)

        def whole(value: Any) -> float:
            if type(value) is not int or not least <= value <= most:
                raise _BeyondPlanError
            return value

        return whole
    if str(given) not in _FLOATS or _FLOATS.get(str(wanted), 0) < _FLOATS[str(given)]:
        return None
    is_single = _FLOATS[str(given)] < _FLOATS["double"]

    def real(value: Any) -> float:
        if type(value) is not float or math.isinf(value):
            raise _BeyondPlanError
        if value != value:  # noqa: PLR0124 - NaN
            return missing
        if is_single and not (abs(value) < _MOST_SINGLE and float(np.float32(value)) == value):
            raise _BeyondPlanError
        return value

    return real


_MOST_SINGLE = float(np.finfo(np.float32).max)


def _bounds(kind: pa.DataType) -> tuple[int, int]:
    """Whole numbers that a type holds, each of them."""
    if pa.types.is_floating(kind):
        most = 2 ** EXACT_BITS[kind.bit_width]
        return -most, most
    if pa.types.is_signed_integer(kind):
        return -(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1
    return 0, 2**kind.bit_width - 1


def _ticks_of(kind: pa.DataType | None) -> Callable[[Any], int] | None:
    """Whole units of a timestamp's type since 1970."""
    if kind is None or not pa.types.is_timestamp(kind) or kind.unit not in ("us", "ns"):
        return None
    per_us = PER_SECOND[kind.unit] // PER_SECOND["us"]

    def ticks(value: Any) -> int:
        if type(value) is not datetime or value.tzinfo is None:
            raise _BeyondPlanError
        found = (value - EPOCH) // MICROSECOND * per_us
        if not -(2**62) < found < 2**62:
            raise _BeyondPlanError
        return found

    return ticks


def _epoch(encoding: FittedEncoding, kind: pa.DataType | None, _: Cells) -> Convert | None:
    ticks_of = _ticks_of(kind)
    if ticks_of is None or kind is None:
        return None
    over, times = per_unit(encoding.state["unit"], kind.unit)
    least, most = _bounds(arrow_type(encoding.types[0]))
    least, most = max(least, -MOST_EXACT), min(most, MOST_EXACT)

    def convert(value: Any, _: datetime | None) -> Cells:
        found = ticks_of(value) * times // over
        if not least <= found <= most:
            raise _BeyondPlanError
        return (found,)

    return convert


def _age(encoding: FittedEncoding, kind: pa.DataType | None, _: Cells) -> Convert | None:
    ticks_of, until_of = _ticks_of(kind), _ticks_of(kind)
    if ticks_of is None or until_of is None or kind is None or encoding.types != ("double",):
        return None
    over, times = per_unit(encoding.state["unit"], kind.unit)

    def convert(value: Any, at: datetime | None) -> Cells:
        # In the order in which the encoding multiplies and divides doubles.
        return (float(until_of(at) - ticks_of(value)) * float(times) / float(over),)

    return convert


def _list(encoding: FittedEncoding, _: pa.DataType | None, missing: Cells) -> Convert | None:
    text = encoding.input_type
    inner = {f"list<{name}: {kind}>": kind for name in ("item", "element") for kind in _ELEMENTS}
    if text not in inner or {*encoding.types} != {"double"}:
        return None
    length, pad = encoding.state["length"], encoding.state["pad"]
    is_cut = encoding.state["longer"] != "refuse"
    element = _plain_number(arrow_type(inner[text]), pa.float64(), missing[0])
    if element is None:
        return None
    behind = missing[0] if pad is None else float(pad)

    def convert(value: Any, _: datetime | None) -> Cells:
        if type(value) is not list or (len(value) > length and not is_cut):
            raise _BeyondPlanError
        found = [missing[0] if each is None else element(each) for each in value]
        return (*found[:length], *[behind] * (length - len(found)))

    return convert


_ELEMENTS = ("double", "float", "int64", "int32")

_PLANS: dict[str, Callable[[FittedEncoding, pa.DataType | None, Cells], Convert | None]] = {
    "number": _number,
    "boolean": _remembered,
    "ordinal": _remembered,
    "one_hot": _remembered,
    "hash": _hash,
    "epoch": _epoch,
    "age": _age,
    "list": _list,
}
