"""The outputs of a derived view of ranges of events: an Arrow column each, one row a range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import PER_SECOND, naming, one_array, seconds
from feast_dynamo_ext.declared import name_of
from feast_dynamo_ext.declared_values import as_declared
from feast_dynamo_ext.errors import ColumnTypeError
from feast_dynamo_ext.retrieval.windows.aggregates import SumOverflowError, aggregated
from feast_dynamo_ext.retrieval.windows.event_lists import listed_values, lists
from feast_dynamo_ext.retrieval.windows.event_ranges import EventColumn
from feast_dynamo_ext.timestamps import NANOSECONDS, Axis

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import timedelta

    from numpy.typing import NDArray

    from feast_dynamo_ext.declared import Declared
    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.inputs import History
    from feast_dynamo_ext.retrieval.windows.derived_plan import DerivedPlan, Output
    from feast_dynamo_ext.retrieval.windows.event_ranges import Ranges
    from feast_dynamo_ext.retrieval.windows.event_rows import Events

    Numbers = NDArray[np.int64]
    Columns = list[pa.Array | pa.ChunkedArray]
    Read = Callable[[ParquetSource, Sequence[str], Numbers, int], dict[str, pa.Array]]

FAR_S = 1 << 33
"""Seconds whose nanoseconds 64 bits hold, at least."""


@dataclass(frozen=True)
class Moments:
    """Times of entity rows, one a range.

    Attributes:
        times: in `unit`.
        unit: ``s``, ``ms``, ``us`` or ``ns``.
    """

    times: Numbers
    unit: str


@dataclass(frozen=True)
class EventOutputs:
    """Events with the values that the outputs of a view need.

    Attributes:
        view: name of the view, for messages.
        plan: what is computed.
        axis: of event times.
        events: in order.
        columns: values of events, by column of the source.
        listed: of a view of lists what is listed, one a list.
    """

    view: str
    plan: DerivedPlan
    axis: Axis
    events: Events
    columns: Mapping[str, EventColumn]
    listed: tuple[pa.Array, ...]

    @classmethod
    def read(
        cls, history: History, plan: DerivedPlan, events: Events, read: Read, threads: int
    ) -> EventOutputs:
        """Read what the outputs need of events.

        Args:
            history: theirs.
            plan: what is computed.
            events: in order.
            read: see `join.read_features`.
            threads: how many threads read.

        Raises:
            ColumnTypeError: a value does not fit the type that the base view declares.
            SourceReadError: a file cannot be read, or changed since it was listed.
        """
        view = history.view.view
        names = [name for name, _ in plan.value_columns if name not in events.values]
        if not names:
            history.source.check_unchanged()
        found = dict(events.values)
        if names:
            found.update(read(history.source, names, events.row, threads))
        columns = {}
        for name, kind in plan.value_columns:
            column = found.pop(name)
            with naming(name, name_of(kind), column.type, view):
                values = one_array(as_declared(column, kind))
                columns[name] = EventColumn(_as_online(values, kind))
        listed = []
        for output in plan.outputs:
            if output.is_list and output.column:
                listed.append(listed_values(columns[output.column].values, output, view))
            elif output.is_list:
                times = events.clock.time(events.code)
                listed.append(pa.array(Axis("us").floor(times, history.axis.unit)))
        return cls(view, plan, history.axis, events, columns, tuple(listed))

    def of_ranges(self, ranges: Mapping[timedelta | None, Ranges], moments: Moments) -> Columns:
        """The outputs, of ranges by how far they go back.

        Raises:
            ColumnTypeError: a sum of integers is beyond 64 bits, or a null in a list without
                `fill`; names the feature.
        """
        plan = self.plan
        if self.listed:
            return [
                *lists(
                    self.listed,
                    ranges[plan.reach],
                    plan.outputs,
                    self.view,
                    newest_first=plan.newest_first,
                )
            ]
        return [self._aggregate(output, ranges[output.span], moments) for output in plan.outputs]

    def _aggregate(self, output: Output, ranges: Ranges, moments: Moments) -> pa.Array:
        if output.function == "time_since_last":
            return self._since_last(ranges, moments)
        column = self.columns[output.column] if output.column else None
        try:
            found = aggregated(output.function, column, ranges)
        except SumOverflowError:
            raise ColumnTypeError(
                f"Feature view `{self.view}`, feature `{output.feature}`: a sum of "
                f"`{output.column}` is beyond the integers of 64 bits. Make the window shorter, "
                "or declare the column as Float64."
            ) from None
        kind = output.arrow_type(column.values.type if column is not None else None)
        return found if found.type == kind else found.cast(kind)

    def _since_last(self, ranges: Ranges, moments: Moments) -> pa.Array:
        """Seconds from the newest event of each range to its entity row."""
        nothing = ranges.counts == 0
        if not len(self.events):
            return pa.nulls(len(ranges), pa.float64())
        newest = self.events.time(ranges.number(np.where(nothing, 0, ranges.end - 1)))
        whole, rest = (
            ours - theirs
            for ours, theirs in zip(
                _seconds(moments.times, moments.unit),
                _seconds(newest, self.axis.unit),
                strict=True,
            )
        )
        per_second = NANOSECONDS["s"]
        seconds = np.where(
            np.abs(whole) < FAR_S,
            (whole * per_second + rest) / per_second,
            whole + rest / per_second,
        )
        return pa.array(seconds, mask=nothing)


def _as_online(values: pa.Array, kind: Declared) -> pa.Array:
    """Values as events have them online, where times are whole seconds."""
    if kind is not ValueType.UNIX_TIMESTAMP or not pa.types.is_timestamp(values.type):
        return values
    ticks = pc.multiply(seconds(values), PER_SECOND[values.type.unit])
    return ticks.cast(values.type)


def _seconds(times: Numbers, unit: str) -> tuple[Numbers, Numbers]:
    """Times as whole seconds, and nanoseconds beside them."""
    per_second = NANOSECONDS["s"] // NANOSECONDS[unit]
    whole = times // per_second
    return whole, (times - whole * per_second) * NANOSECONDS[unit]
