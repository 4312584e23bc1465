"""Windows and lists of events as parts of one statement, beside `engines.sql`.

A derived view is a range join of its entity rows with events, grouped by entity row::

    history_0    rows of the history, as of any view
    events_0     one for each event that can be told apart; since and until when it counts
    counting_0   entity rows paired with the events that any window of theirs has
    seen_0       one row an entity row that has some: an aggregate or a list each

Sums of floats are DuckDB's compensated ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from feast.value_type import ValueType

from feast_dynamo_ext.arrow_types import is_time
from feast_dynamo_ext.retrieval.engines.sql_dialects import literal, type_name
from feast_dynamo_ext.retrieval.windows.item_puts import puts
from feast_dynamo_ext.timestamps import MICROSECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from feast_dynamo_ext.declared import Declared
    from feast_dynamo_ext.retrieval.windows.derived_plan import DerivedPlan, Output


@dataclass(frozen=True)
class EventsSql:
    """A derived view in SQL.

    Attributes:
        at: number of the view in the statement.
        view: its name, for messages.
        plan: what is computed.
        keys: names of the key columns of history and entity rows.
        value: the expression of a column of history in its declared type, and that type.
        epoch_us: the expression of a time as microseconds.
        ns: whether times are nanoseconds.
        known: whether only what was created by the entity row's time counts.
        has_ties: whether a column x decides between equal rows.
        lowest: what a null created time counts as.
        items: names of the columns of items' keys; none where events are no items.
    """

    at: int
    view: str
    plan: DerivedPlan
    keys: Sequence[str]
    value: Callable[[str, Declared], tuple[str, pa.DataType]]
    epoch_us: Callable[[str, pa.DataType], str]
    ns: bool
    known: bool
    has_ties: bool
    lowest: int
    items: Sequence[str]

    def parts(self, history: str, *, has_eras: bool) -> list[str]:
        """The common table expressions from the history's rows on.

        Args:
            history: the relation of its rows: of items of all changes, else of those that count.
            has_eras: whether deletions end items.
        """
        events = self._items(history, has_eras=has_eras) if self.items else self._rows(history)
        at = self.at
        return [
            f"events_{at} AS (\n  {events}\n)",
            f"counting_{at} AS (\n  {self._counting()}\n)",
            f"seen_{at} AS (\n  {self._seen()}\n)",
        ]

    def columns(self, quoted: Callable[[str], str]) -> list[str]:
        """The columns of the result."""
        found = []
        for place, output in enumerate(self.plan.outputs):
            column = f"seen_{self.at}.o{place}"
            nothing = {"count": "0", "count_distinct": "0", "list": "[]"}.get(output.function)
            if nothing is not None:
                missing = " OR ".join(f"requested_{self.at}.{key} IS NULL" for key in self.keys)
                column = f"CASE WHEN {missing} THEN NULL ELSE coalesce({column}, {nothing}) END"
            found.append(f"{column} AS {quoted(output.name)}")
        return found

    def joins(self, number: str) -> str:
        """What joins the result to the entity rows, whose number is an expression."""
        return (
            f"\nLEFT JOIN requested_{self.at} ON requested_{self.at}.r = {number}"
            f"\nLEFT JOIN seen_{self.at} ON seen_{self.at}.entity = {number}"
        )

    # Events

    @property
    def _ties(self) -> list[str]:
        """Expressions of `h` that tell events of one key and time apart, in their order."""
        found = []
        for column, kind in self.plan.tie_breaker:
            expression, stored = self.value(column, kind)
            # As sort keys of items have them: seconds of times, and one zero of floats.
            if pa.types.is_floating(stored):
                expression = f"({expression} + 0)"
            elif kind is ValueType.UNIX_TIMESTAMP and is_time(stored):
                expression = _floored(self.epoch_us(expression, stored), 1_000_000)
            found.append(expression)
        return found

    def _rows(self, history: str) -> str:
        one = ", ".join([*(f"h.{key}" for key in self.keys), "h.t", *self._ties])
        rank = ", ".join(
            [f"coalesce(h.c, {self.lowest})", *(["h.x"] if self.has_ties else []), "h.r"]
        )
        if self.known:
            later = f"lead(h.c) OVER (PARTITION BY {one} ORDER BY row({rank}))"
            return (
                f"SELECT *, h.c AS since, {later} AS until FROM {history} AS h "  # noqa: S608 - names of our own
                "WHERE h.c IS NOT NULL"
            )
        return (
            f"SELECT * FROM {history} AS h QUALIFY row_number() OVER "  # noqa: S608 - as above
            f"(PARTITION BY {one} ORDER BY row({rank}) DESC) = 1"
        )

    def _items(self, history: str, *, has_eras: bool) -> str:
        has_keys = " AND ".join(f"h.{name} IS NOT NULL" for name in ["p", *self.items])
        changes = f"(SELECT * FROM {history} AS h WHERE {has_keys}) AS h"  # noqa: S608 - as above
        usable = " AND ".join(f"{name} IS NOT NULL" for name in ["t", *self.keys])
        found = puts(changes, list(self.items), has_eras=has_eras, known=self.known)
        return f"SELECT * FROM ({found}) WHERE {usable}"  # noqa: S608 - as above

    def _counting(self) -> str:
        on = [f"e.{key} = h.{key}" for key in self.keys]
        on.append("h.t < e.hi" if self.plan.exclude_current else "h.t <= e.hi")
        if self.plan.reach is not None:
            on.append("h.t >= e.lo")
        columns = ["e.r AS entity", "e.hi", "h.t", "h.r"]
        columns += [f"{tie} AS b{place}" for place, tie in enumerate(self._ties)]
        for place, (column, kind) in enumerate(self.plan.value_columns):
            expression, stored = self.value(column, kind)
            if kind is ValueType.UNIX_TIMESTAMP and pa.types.is_timestamp(stored):
                # Online, times are whole seconds.
                name = type_name(stored)
                expression = f"CAST(date_trunc('second', {expression}) AS {name})"
            columns.append(f"{expression} AS v{place}")
        if self.known or self.items:
            on.append("h.since <= e.known AND (h.until IS NULL OR e.known < h.until)")
        return (
            f"SELECT {', '.join(columns)}\n  FROM requested_{self.at} AS e "  # noqa: S608 - as above
            f"JOIN events_{self.at} AS h\n  ON {' AND '.join(on)}"
        )

    # Outputs

    def _seen(self) -> str:
        outputs = [
            f"{self._output(output)} AS o{place}" for place, output in enumerate(self.plan.outputs)
        ]
        return (
            f"SELECT entity, {', '.join(outputs)}\n  FROM counting_{self.at} AS h GROUP BY entity"  # noqa: S608 - as above
        )

    def _output(self, output: Output) -> str:
        within = self._within(output.span)
        if output.is_list:
            return self._list(output, within)
        if not output.column:
            since = f"(any_value(h.hi) - max(h.t){_filter(within)}) / {self._second}"
            return since if output.function == "time_since_last" else f"count(*){_filter(within)}"
        value, kind = self._value(output)
        if output.function in {"first", "last"}:
            return f"{output.function}({value} ORDER BY {self._order()}){_filter(within)}"
        is_value = [f"{value} IS NOT NULL"]
        if pa.types.is_floating(kind):
            is_value.append(f"NOT isnan({value})")
        return _aggregate(output.function, value, kind, _filter([*within, *is_value]))

    def _list(self, output: Output, within: list[str]) -> str:
        made = "h.t" if not self.ns else _floored("h.t", 1_000)
        element = "BIGINT"
        if output.column:
            made, kind = self._value(output)
            element = type_name(output.arrow_type(None).value_type)
            made = self.epoch_us(made, kind) if is_time(kind) else made
        cell = f"CAST({made} AS {element})"
        if output.fill is not None or element in {"FLOAT", "DOUBLE"}:
            fill = "'NaN'" if output.fill is None else _text(output.fill, element)
            cell = f"coalesce({cell}, CAST({fill} AS {element}))"
        found = f"list({cell} ORDER BY {self._order(newest_first=True)}){_filter(within)}"
        if self.plan.last is not None:
            found = f"({found})[1:{self.plan.last}]"
        if not self.plan.newest_first:
            found = f"list_reverse({found})"
        if output.fill is not None or not output.column or element in {"FLOAT", "DOUBLE"}:
            return found
        refused = literal(
            f"feature view {self.view}, feature {output.feature}: an event that is listed has "
            f"no {output.column}, and `fill` does not say what stands for it"
        )
        nulls = f"len(list_filter({found}, lambda cell: cell IS NULL))"
        return f"CASE WHEN {nulls} > 0 THEN error({refused}) ELSE {found} END"

    def _value(self, output: Output) -> tuple[str, pa.DataType]:
        """The column of `counting` that has an output's values, and their type."""
        names = [name for name, _ in self.plan.value_columns]
        return f"h.v{names.index(output.column)}", self.value(output.column, output.kind)[1]

    def _order(self, *, newest_first: bool = False) -> str:
        ties = [f"h.b{place}" for place in range(len(self._ties))]
        order = "DESC NULLS LAST" if newest_first else "ASC NULLS FIRST"
        return ", ".join(f"{name} {order}" for name in ["h.t", *ties, "h.r"])

    def _within(self, span: timedelta | None) -> list[str]:
        if span is None or span == self.plan.reach:
            return []
        length = span // MICROSECOND * (1_000 if self.ns else 1)
        return [f"h.t >= h.hi - {length} /* {span} */"]

    @property
    def _second(self) -> str:
        return "1000000000.0::DOUBLE" if self.ns else "1000000.0::DOUBLE"


def _aggregate(function: str, value: str, kind: pa.DataType, some: str) -> str:
    """An aggregate of some values."""
    number = f"CAST({value} AS DOUBLE)"
    total = f"sum({number}){some}"
    # Compensated sums make NaN of infinity.
    exact = f"CASE WHEN isfinite({total}) THEN fsum({number}){some} ELSE {total} END"
    is_integer = pa.types.is_integer(kind)
    found = {
        "count_distinct": f"count(DISTINCT {value}{' + 0' * pa.types.is_floating(kind)}){some}",
        "std": f"stddev_samp({number}){some}",
        "mean": f"avg({value}){some}" if is_integer else f"({exact}) / count({number}){some}",
        "sum": f"CAST(sum({value}){some} AS BIGINT)" if is_integer else exact,
    }
    return found.get(function, f"{function}({value}){some}")


def _floored(number: str, by: int) -> str:
    """An integer divided by another, rounded down: DuckDB rounds towards zero."""
    return f"(({number}) - ((({number}) % {by}) + {by}) % {by}) // {by}"


def _filter(conditions: Sequence[str]) -> str:
    return f" FILTER (WHERE {' AND '.join(conditions)})" if conditions else ""


def _text(fill: bool | float | str, element: str) -> str:
    """A value that stands for nulls."""
    if isinstance(fill, bool):
        return str(fill).lower()
    if isinstance(fill, str):
        return f"encode({literal(fill)})" if element == "BLOB" else literal(fill)
    return repr(fill) if element not in {"FLOAT", "DOUBLE"} else literal(repr(fill))
