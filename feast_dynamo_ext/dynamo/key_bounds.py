"""Values that a caller compares features with: as Feast's, and as bounds of an index's sort keys.

The sort key of an order is a value's bytes, then the event time's. No value's bytes begin those of
another one, so all events of a value stand between its bytes and the next bytes of that length::

    = v     [v, next(v))        > v     [next(v), ...)      < v     (..., v)
    >= v    [v, ...)            <= v    (..., next(v))
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from feast.protos.feast.types.Value_pb2 import Value

from feast_dynamo_ext.arrow_types import VALUE_FIELD
from feast_dynamo_ext.dynamo.layouts.series import value_bytes
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.timestamps import EPOCH, assume_utc

if TYPE_CHECKING:
    from collections.abc import Mapping

OPERATORS = ("=", "<", "<=", ">", ">=", "between")
BITS = {"INT32": 32, "INT64": 64}
FLOATS = {"FLOAT", "DOUBLE"}
PYTHON: dict[str, type] = {"STRING": str, "BYTES": bytes, "BOOL": bool}
LARGEST_FLOAT32 = 3.4028235677973366e38
"""From here on, a double is infinity as a float32."""


def typed(given: Any, kind: str, subject: str) -> Value:
    """A value of a caller's as Feast's, exactly; a double in a Float32 is the nearest one.

    Args:
        given: the value.
        kind: name of the feature's value type, of `IN_BYTES`.
        subject: what it is, for errors; the value itself is not shown.

    Raises:
        ConfigError: it is no value of the type.
    """
    found: Any = None
    if isinstance(given, np.generic):
        given = given.item()
    is_whole = isinstance(given, int) and not isinstance(given, bool)
    if kind in BITS:
        if is_whole and -(2 ** (BITS[kind] - 1)) <= given < 2 ** (BITS[kind] - 1):
            found = given
    elif kind in FLOATS:
        found = _float(given, kind) if is_whole or isinstance(given, float) else None
    elif kind == "UNIX_TIMESTAMP":
        found = _seconds(given) if isinstance(given, datetime) else given if is_whole else None
    elif isinstance(given, PYTHON[kind]):
        found = given
    if found is None:
        wanted = " Pass a datetime of whole seconds." if kind == "UNIX_TIMESTAMP" else ""
        raise ConfigError(
            f"{subject} is of Python's type {type(given).__name__}, and no value of {kind} that "
            f"events could be compared with.{wanted}"
        )
    try:
        return Value(**{VALUE_FIELD[kind]: found})
    except (ValueError, TypeError) as error:  # a lone surrogate, a number of 65 bits
        raise ConfigError(f"{subject} is no value of {kind}: {error}.") from error


def _float(given: float, kind: str) -> float | None:
    try:
        number = float(given)
    except OverflowError:
        return None
    is_lost = isinstance(given, int) and int(number) != given
    is_infinite = kind == "FLOAT" and LARGEST_FLOAT32 <= abs(number) < float("inf")
    return None if number != number or is_lost or is_infinite else number  # noqa: PLR0124 - NaN


def _seconds(given: datetime) -> int | None:
    since = assume_utc(given) - EPOCH
    is_whole = not since.microseconds and not getattr(given, "nanosecond", 0)
    return since.days * 86_400 + since.seconds if is_whole else None


@dataclass(frozen=True)
class KeyBounds:
    """Sort keys of an index.

    Attributes:
        low: the least one; None for no limit.
        high: the first one beyond; None for no limit.
        is_empty: there is none.
    """

    low: bytes | None = None
    high: bytes | None = None
    is_empty: bool = False


def bounds_of(condition: Any, name: str, kind: str, subject: str) -> KeyBounds:
    """The sort keys of an order's index whose values meet a condition.

    Args:
        condition: (operator, value), or ("between", (lowest, highest)), both included.
        name: of the feature.
        kind: name of its value type.
        subject: whose condition it is, for errors.

    Raises:
        ConfigError: it is no condition, or a value is of another type.
    """
    where = f"{subject}: `where` of `{name}`"
    if not isinstance(condition, (tuple, list)) or len(condition) != 2:  # noqa: PLR2004
        raise ConfigError(
            f"{where} is no pair of operator and value. Write it as "
            f'where={{"{name}": (">=", value)}}.'
        )
    operator, given = condition
    if operator not in OPERATORS:
        raise ConfigError(
            f"{where} has the operator `{operator}`. There are {', '.join(OPERATORS)}."
        )
    if operator != "between":
        return _compared(operator, _bytes(given, kind, where))
    if not isinstance(given, (tuple, list)) or len(given) != 2:  # noqa: PLR2004
        raise ConfigError(
            f'{where}: `between` takes a pair: where={{"{name}": ("between", (lowest, highest))}}.'
        )
    lowest, highest = (_bytes(each, kind, where) for each in given)
    if lowest > highest:
        raise ConfigError(f"{where}: the lower end of `between` is above the upper one.")
    return KeyBounds(lowest, after(highest))


def _bytes(given: Any, kind: str, where: str) -> bytes:
    found = value_bytes(typed(given, kind, where), is_last=False)
    if found is None:
        raise AssertionError(kind)
    return found


def _compared(operator: str, value: bytes) -> KeyBounds:
    beyond = after(value)
    if operator == ">":
        return KeyBounds(beyond, None, is_empty=beyond is None)
    if operator == "<":
        return KeyBounds(None, value)
    if operator == "<=":
        return KeyBounds(None, beyond)
    return KeyBounds(value, beyond if operator == "=" else None)


def after(prefix: bytes) -> bytes | None:
    """The first bytes that come after all that begin with these; None where there are none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,)) if kept else None


def refuse_other_columns(where: Mapping[str, Any], order: str | None, subject: str) -> None:
    """Refuse conditions on what is not the order: DynamoDB would read all, and then filter.

    Raises:
        ConfigError: names the feature.
    """
    for name in where:
        if name != order:
            instead = (
                f'Pass order="{name}" with it.'
                if order is None
                else f"Here that is `{order}`; compare others in what is answered."
            )
            raise ConfigError(
                f"{subject}: `where` names `{name}`. Events are chosen by the feature that they "
                f"are ordered by. {instead}"
            )
