"""The point-in-time join on Spark: rows and questions in one relation, and a window over it.

Views whose keys and times are compared alike are one group, sorted once::

    parts of view 0 --> keys, t, 0, c, x, n, struct(t, features) -+
    parts of view 1 --> the same, in a struct of its own ---------+-> by keys, sorted by t, side:
    entity rows ------> keys, t, 1, -, -, n ----------------------+   the last struct of each view
                                                                          |
    the columns of the entity rows, by n <---------- join by n -----------+--> ttl

History is read on the executors by the code that one machine reads it with, so that keys, times
and values are the same: Spark sees integers and bytes. Each view is read once. With
`filter_by_created_timestamp` rows are sorted by when both their times are past, and the greatest
(t, c, x, n) so far wins. The newest row that an entity row sees decides, its nulls included; only
then is it asked whether it is older than the ttl.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.retrieval.inputs import key_names
from feast_dynamo_ext.retrieval.spark.carried import carried_type, carry, spark_type
from feast_dynamo_ext.retrieval.spark.relations import in_chunks, read_by_executors
from feast_dynamo_ext.retrieval.spark.spark_view import NUMBER, OF_ENTITY, OF_HISTORY
from feast_dynamo_ext.timestamps import NANOSECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feast_dynamo_ext.retrieval.inputs import EntityRows
    from feast_dynamo_ext.retrieval.spark.spark_view import Parts, ViewOnSpark

TIME_BITS = "decimal(30, 0)"
"""Of times in nanoseconds, where two units meet."""


@dataclass(frozen=True)
class Group:
    """Views whose keys and times are compared alike.

    Attributes:
        views: these.
        entities: the entity rows.
    """

    views: tuple[ViewOnSpark, ...]
    entities: EntityRows

    @property
    def _first(self) -> ViewOnSpark:
        return self.views[0]

    @property
    def _keys(self) -> list[tuple[str, str]]:
        types = map(spark_type, self._first.key_types)
        return [(f"k{at}", kind) for at, kind in enumerate(types)]

    def found(self, spark: Any, own: pa.Table | None = None) -> Any:
        """Each entity row's number, and the columns v0_0, v0_1 ... of what it sees, by view.

        Args:
            spark: the session.
            own: columns of the entity rows that go along.
        """
        from pyspark.sql import Window
        from pyspark.sql import functions as f

        relations = [self._history(spark, one) for one in self.views]
        relations.append(self._questions(spark, own))
        along = own.column_names if own is not None else []
        united = reduce(lambda one, other: one.unionByName(other, True), relations)
        by_keys = Window.partitionBy(*[name for name, _ in self._keys])
        # Spark puts nulls first, which lose to every value.
        order = ["t", "s", "c", "x", NUMBER]
        if self._first.match.known is not None:
            order = ["a", "s", NUMBER]
        so_far = by_keys.orderBy(*order).rowsBetween(Window.unboundedPreceding, Window.currentRow)
        newest = {}
        for one in self.views:
            row = f.col(f"p{one.at}")
            if one.match.known is None:
                newest[one.at] = f.last(row, ignorenulls=True).over(so_far)
            else:
                rank = f.when(row.isNotNull(), f.struct("t", "c", "x", NUMBER))
                newest[one.at] = f.max_by(row, rank).over(so_far)
        seen = united.select(
            NUMBER,
            "s",
            *along,
            *[f"lo{one.at}" for one in self.views if one.view.ttl],
            *[newest[one.at].alias(f"m{one.at}") for one in self.views],
        ).where(f.col("s") == OF_ENTITY)
        columns = []
        for one in self.views:
            for place in range(len(one.outputs)):
                value = f.col(f"m{one.at}")[f"f{place}"]
                if one.view.ttl:
                    value = f.when(f.col(f"m{one.at}")["t"] >= f.col(f"lo{one.at}"), value)
                columns.append(value.alias(f"v{one.at}_{place}"))
        return seen.select(NUMBER, *along, *columns)

    @property
    def _units(self) -> tuple[str, str] | None:
        """The units of event and created time, where both count."""
        history = self._first.history
        if self._first.match.known is None or history.created_axis is None:
            return None
        return history.axis.unit, history.created_axis.unit

    def _questions(self, spark: Any, own: pa.Table | None) -> Any:
        match = self._first.match
        rows = len(match.latest)
        columns: dict[str, Any] = {f"k{at}": key for at, key in enumerate(match.keys)}
        columns["t"] = match.latest
        columns["s"] = pa.array(np.full(rows, OF_ENTITY, dtype=np.int8))
        columns[NUMBER] = pa.array(np.arange(rows))
        for one in self.views:
            if one.view.ttl:
                columns[f"lo{one.at}"] = one.match.earliest
        if self._units is not None:
            columns["a"] = match.latest
            if len({*self._units}) > 1:
                columns["a"] = _in_ns(pa.array(self.entities.times), self.entities.unit)
        if own is not None:
            columns |= dict(zip(own.column_names, own.columns, strict=True))
        return in_chunks(spark, pa.table(columns))

    def _history(self, spark: Any, one: ViewOnSpark) -> Any:
        row = [("t", "bigint")]
        row += [(f"f{at}", spark_type(carried_type(kind))) for at, kind in enumerate(one.outputs)]
        struct = f"struct<{', '.join(f'{name}: {kind}' for name, kind in row)}>"
        columns = [
            *self._keys,
            ("t", "bigint"),
            ("s", "tinyint"),
            ("c", "bigint"),
            ("x", "bigint"),
        ]
        columns += [(NUMBER, "bigint"), (f"p{one.at}", struct)]
        if self._units is not None:
            columns.append(("a", "bigint" if len({*self._units}) == 1 else TIME_BITS))
        reader = NewestReader(one.at, one.for_executors(), one.tie, self._units)
        return read_by_executors(spark, len(one.parts), reader, columns)


@dataclass(frozen=True)
class NewestReader:
    """Makes rows of history of a view's parts, on executors.

    Attributes:
        at: the view's number in the plan.
        parts: its history.
        tie: see `ViewOnSpark`.
        units: of event and created time, where rows count once both are past.
    """

    at: int
    parts: Parts
    tie: str | None
    units: tuple[str, str] | None

    def __call__(self, number: int) -> Iterator[pa.RecordBatch]:
        """The rows of a part that count.

        Raises: as `Parts.each`.
        """
        names = self.parts.view.feature_columns
        beside = [*names, *([self.tie] if self.tie else [])]
        return self.parts.each(number, self._made, beside)

    def _made(self, narrow: pa.RecordBatch, start: int) -> pa.RecordBatch:
        keys, features = key_names(self.parts.view), len(self.parts.view.feature_columns)
        t, c = narrow.column("t"), narrow.column("c")
        position = pa.array(np.arange(start, start + narrow.num_rows))
        values = [narrow.column(f"v{at}") for at in range(features)]
        tie = narrow.column(f"v{features}").cast(pa.int64()) if self.tie else None
        columns = {f"k{at}": carry(narrow.column(name)) for at, name in enumerate(keys)}
        columns["t"] = t
        columns["s"] = pa.array(np.full(narrow.num_rows, OF_HISTORY, dtype=np.int8))
        columns["c"] = c
        columns["x"] = pa.nulls(narrow.num_rows, pa.int64()) if tie is None else tie
        columns[NUMBER] = position
        fields = ["t", *(f"f{at}" for at in range(features))]
        columns[f"p{self.at}"] = pa.StructArray.from_arrays([t, *map(carry, values)], fields)
        counted = [*[*columns][: len(keys)], "t"]
        if self.units is not None:
            columns["a"] = _available(t, c, *self.units)
            counted.append("c")
        counts = reduce(pc.and_, (columns[name].is_valid() for name in counted))
        made = pa.RecordBatch.from_arrays([*columns.values()], names=[*columns])
        return made if pc.all(counts).as_py() else made.filter(counts)


def _available(t: pa.Array, c: pa.Array, event_unit: str, created_unit: str) -> pa.Array:
    """When both times of a row are past."""
    if event_unit != created_unit:
        t, c = _in_ns(t, event_unit), _in_ns(c, created_unit)
    return pc.if_else(pc.greater(t, c), t, c)


def _in_ns(times: pa.Array, unit: str) -> pa.Array:
    """Times in nanoseconds, which 64 bits do not hold of all units."""
    step = pa.scalar(Decimal(NANOSECONDS[unit]), pa.decimal128(10, 0))
    return pc.multiply(times.cast(pa.decimal128(19, 0)), step).cast(pa.decimal128(30, 0))
