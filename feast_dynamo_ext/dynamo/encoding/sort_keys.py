"""Sort keys of events, and their marks of orders and cohorts, column by column.

The bytes are those of `layouts.series.EventMaker`, which has them of one row: property tests hold
one against the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import naming, numbers, one_array, plain, seconds
from feast_dynamo_ext.declared_values import as_declared
from feast_dynamo_ext.dynamo.encoding.marks import cohort_texts
from feast_dynamo_ext.dynamo.encoding.protobuf import (
    Message,
    concat_elements,
    fixed,
    lengths_of,
)
from feast_dynamo_ext.dynamo.layouts.series import (
    COHORT,
    MAX_SORT_BYTES,
    ORDER,
    SORT,
    check_key_bytes,
    cohort_attributes,
)
from feast_dynamo_ext.errors import ColumnTypeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast.value_type import ValueType

    from feast_dynamo_ext.series_settings import Series

SIGN = np.uint64(1 << 63)


def time_column(event_us: pa.Int64Array) -> pa.LargeBinaryArray:
    """Event times in 8 bytes in the order of time."""
    return _eight(numbers(event_us))


def _eight(values: Any) -> pa.LargeBinaryArray:
    """Integers of 64 bits in 8 bytes in their order."""
    bits = values.astype(np.int64, copy=False).view(np.uint64) ^ SIGN
    return Message.from_part(fixed(bits.astype(">u8"))).to_array()


def _doubles(array: pa.Array) -> pa.LargeBinaryArray:
    values = numbers(array.cast(pa.float64())) + 0.0  # -0.0 is 0.0
    bits = values.view(np.int64)
    return _eight(np.where(bits >= 0, bits, np.int64(-(2**63)) - bits - 1))


def _ended(array: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """Bytes of any length, so that what follows them does not count in their order."""
    escaped = pc.replace_substring(array, b"\0", b"\0\xff")
    return concat_elements(escaped, pa.scalar(b"\0\0", pa.large_binary()))


def value_column(column: Any, kind: ValueType, *, is_last: bool) -> pa.LargeBinaryArray:
    """Values in bytes in their order; null of a null, and of NaN.

    Args:
        column: in the declared type.
        kind: the declared type.
        is_last: whether nothing follows them.
    """
    array = plain(one_array(column))
    missing = array.is_null(nan_is_null=kind.name in {"FLOAT", "DOUBLE"})
    if kind.name in {"STRING", "BYTES"}:
        made = array.cast(pa.large_string()) if kind.name == "STRING" else array
        made = made.cast(pa.large_binary()).fill_null(b"")
        made = made if is_last else _ended(made)
    elif kind.name == "BOOL":
        made = Message.from_part(fixed(numbers(array).astype(np.uint8))).to_array()
    elif kind.name in {"FLOAT", "DOUBLE"}:
        made = _doubles(array.fill_null(0.0))
    else:
        made = _eight(numbers(seconds(array) if kind.name == "UNIX_TIMESTAMP" else array))
    return pc.if_else(missing, pa.scalar(None, pa.large_binary()), made)


@dataclass(frozen=True)
class EventColumns:
    """Makes sort keys and marks of the columns of a view's history.

    Attributes:
        view: name of the feature view, for errors.
        series: its settings.
        kinds: what its features are declared as, by name.
        stored: what they are called in batches, by name.
    """

    view: str
    series: Series
    kinds: Mapping[str, ValueType]
    stored: Mapping[str, str]

    @property
    def mark_types(self) -> dict[str, str]:
        """Attributes that events have besides, and DynamoDB's types of them."""
        orders, cohorts = (ORDER + name for name in self.series.orders), self.series.cohorts
        return {
            SORT: "B",
            **dict.fromkeys(orders, "B"),
            **dict.fromkeys(cohort_attributes(cohorts), "S"),
        }

    def sort_keys(self, batch: pa.RecordBatch, event_us: pa.Int64Array) -> pa.LargeBinaryArray:
        """The sort key of each row.

        Raises:
            ColumnTypeError: a tie-breaker is null, or a key would be too long.
        """
        names, parts = self.series.tie_breaker, [time_column(event_us)]
        for at, name in enumerate(names):
            part = self._bytes(batch, name, is_last=at == len(names) - 1)
            if part.null_count:
                raise ColumnTypeError(
                    f"Feature view `{self.view}`: the tie-breaker `{name}` of "
                    f"{part.null_count:,} events is null, so nothing tells them from others of "
                    "their time. Fill it, or leave the rows out of the source."
                )
            parts.append(part)
        made = parts[0] if len(parts) == 1 else concat_elements(*parts)
        self._check(made, MAX_SORT_BYTES, ", ".join(names))
        return made

    def marks(
        self, batch: pa.RecordBatch, event_us: pa.Int64Array
    ) -> dict[str, tuple[str, pa.Array]]:
        """By attribute its type and its values, null where an event has none.

        Raises:
            ColumnTypeError: a tie-breaker is null, or a key would be too long.
        """
        made: dict[str, tuple[str, pa.Array]] = {SORT: ("B", self.sort_keys(batch, event_us))}
        time = time_column(event_us) if self.series.orders else None
        for name in self.series.orders:
            values = concat_elements(self._bytes(batch, name, is_last=False), time)
            self._check(values, MAX_SORT_BYTES, name)
            made[ORDER + name] = ("B", values)
        for name in self.series.cohorts:
            column, kind = batch.column(self.stored[name]), self.kinds[name]
            made[COHORT + name] = ("S", cohort_texts(column, kind, name, self.view))
        return made

    def _bytes(self, batch: pa.RecordBatch, name: str, *, is_last: bool) -> pa.LargeBinaryArray:
        return value_column(self._column(batch, name), self.kinds[name], is_last=is_last)

    def _column(self, batch: pa.RecordBatch, name: str) -> Any:
        column, kind = batch.column(self.stored[name]), self.kinds[name]
        with naming(name, kind, column.type, self.view):
            return as_declared(column, kind)

    def _check(self, keys: pa.LargeBinaryArray, most: int, names: str) -> None:
        check_key_bytes(self.view, names, int(lengths_of(keys).max(initial=0)), most)
