"""Lists of events' values: of each entity row those of its last events.

Feast's lists hold no nulls: of floats they are NaN, of others what the view says, or an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import is_time, naming, plain
from feast_dynamo_ext.declared import name_of
from feast_dynamo_ext.errors import ColumnTypeError
from feast_dynamo_ext.exact import cast_exact
from feast_dynamo_ext.timestamps import Axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.retrieval.windows.derived_plan import Output
    from feast_dynamo_ext.retrieval.windows.event_ranges import Ranges


def listed_values(values: pa.Array, output: Output, view: str) -> pa.Array:
    """A column of events as it stands in lists: in the type of their elements, nulls and all.

    Raises:
        ColumnTypeError: a value does not fit.
    """
    target = output.arrow_type(None).value_type
    array = plain(values)
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), target)
    if is_time(array.type):
        return microseconds(array)
    with naming(output.feature, name_of(output.declared), array.type, view):
        return array if array.type == target else cast_exact(array, target)


def microseconds(times: pa.Array) -> pa.Int64Array:
    """Times as microseconds since 1970 UTC, rounded down."""
    axis = Axis.from_type(times.type)
    ticks = axis.cast(times)
    micros = Axis("us").floor(ticks.fill_null(0).to_numpy(zero_copy_only=False), axis.unit)
    missing = np.asarray(ticks.is_null()) if ticks.null_count else None
    return pa.array(micros, mask=missing)


def lists(
    columns: Sequence[pa.Array],
    ranges: Ranges,
    outputs: Sequence[Output],
    view: str,
    *,
    newest_first: bool,
) -> list[pa.ChunkedArray]:
    """Several columns' values of each range; which events these are is found once.

    Args:
        columns: of all events; see `listed_values`.
        ranges: of events.
        outputs: what is listed, one a column.
        view: name of the view, for messages.
        newest_first: the order of each list; else the oldest first.

    Raises:
        ColumnTypeError: a null of a feature without `fill`.
    """
    chunks: list[list[pa.Array]] = [[] for _ in outputs]
    for start, end in ranges.parts():
        of_range, place = ranges.written_out(start, end)
        if newest_first:
            both = ranges.first[start:end] + ranges.end[start:end] - 1
            place = both.take(of_range) - place
        event, counts = pa.array(ranges.number(place)), ranges.counts[start:end]
        for made, values, output in zip(chunks, columns, outputs, strict=True):
            made.append(_of(_without_nulls(values.take(event), output, view), counts))
    return [
        pa.chunked_array(made, output.arrow_type(None))
        for made, output in zip(chunks, outputs, strict=True)
    ]


def _of(listed: pa.Array, counts: NDArray[np.int64]) -> pa.ListArray:
    offsets = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), listed)


def _without_nulls(listed: pa.Array, output: Output, view: str) -> pa.Array:
    if not listed.null_count:
        return listed
    fill: Any = output.fill
    if fill is None and pa.types.is_floating(listed.type):
        fill = float("nan")
    if fill is None:
        raise ColumnTypeError(
            f"Feature view `{view}`, feature `{output.feature}`: {listed.null_count:,} of the "
            f"events that are listed have no `{output.column}`, and Feast's lists hold no nulls. "
            "Say in `recent` what stands for them, as "
            f'`fill={{"{output.column}": ...}}`, or leave the feature out.'
        )
    if pa.types.is_binary(listed.type) and isinstance(fill, str):
        fill = fill.encode()
    return listed.fill_null(pa.scalar(fill, listed.type))
