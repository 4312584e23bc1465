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

from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.retrieval.inputs import History, MatchInput, key_names
from feast_dynamo_ext.retrieval.join import prune
from feast_dynamo_ext.retrieval.spark.carried import carried_type, carry, spark_type
from feast_dynamo_ext.retrieval.spark.relations import in_chunks, read_by_executors
from feast_dynamo_ext.retrieval.spark.source_parts import head_of, parts_of
from feast_dynamo_ext.timestamps import NANOSECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.inputs import EntityRows
    from feast_dynamo_ext.retrieval.plan import PitPlan, ViewPlan
    from feast_dynamo_ext.retrieval.spark.source_parts import SourceHead, SourcePart
    from feast_dynamo_ext.timestamps import Axis

NUMBER = "n"
"""The column of an entity row's number, and of a history row's position."""

OF_HISTORY, OF_ENTITY = 0, 1
"""Which side a row is of; at one time, history comes first."""

TIME_BITS = "decimal(30, 0)"
"""Of times in nanoseconds, where two units meet."""


@dataclass(frozen=True)
class ViewOnSpark:
    """One view of a join, ready to be read by executors.

    Attributes:
        at: its number in the plan.
        view: its plan.
        history: its narrow columns.
        match: the entity rows as they are compared with it.
        head: what the parts of its source have in common.
        parts: these.
        tie: the column whose greatest value wins among rows of equal times; None for positions.
    """

    at: int
    view: ViewPlan
    history: History
    match: MatchInput
    head: SourceHead
    parts: tuple[SourcePart, ...]
    tie: str | None

    @classmethod
    def from_plan(
        cls, at: int, plan: PitPlan, source: ParquetSource, entities: EntityRows
    ) -> ViewOnSpark:
        """One view of a plan.

        Raises:
            OfflineStoreError: what is not joined on Spark yet, by name; see also its subclasses.
        """
        view = plan.views[at]
        _refuse_what_is_missing(view, source)
        pruned = prune(view, source, entities)
        history = History.from_view(view, pruned)
        match = MatchInput.from_entities(
            entities, history, created_by_entity_time=plan.created_by_entity_time
        )
        tie = source.ties.sequence if source.ties is not None else None
        columns = {*view.narrow_columns, *view.feature_columns, *([tie] if tie else [])}
        parts = tuple(parts_of(pruned, columns))
        return cls(at, view, history, match, head_of(pruned), parts, tie)

    @property
    def key_types(self) -> list[pa.DataType]:
        """The types in which keys travel."""
        return [carried_type(key.type) for key in self.match.keys]

    @property
    def features(self) -> list[tuple[str, pa.DataType]]:
        """(column of the source, its type)."""
        schema = self.history.source.schema
        return [(name, schema.field(name).type) for name in self.view.feature_columns]

    def is_like(self, other: ViewOnSpark) -> bool:
        """Whether the entity rows are compared with both in the same way."""
        mine, theirs = self.match, other.match
        return (
            self.key_types == other.key_types
            and (mine.known is None) == (theirs.known is None)
            and self.history.axis == other.history.axis
            and self.history.created_axis == other.history.created_axis
            and bool((mine.latest == theirs.latest).all())
            and all(map(_are_equal, mine.keys, theirs.keys))
        )


def _are_equal(one: Any, other: Any) -> bool:
    return bool(carry(one).equals(carry(other)))


def _refuse_what_is_missing(view: ViewPlan, source: ParquetSource) -> None:
    """Refuse what one machine joins and Spark does not yet."""
    why = ""
    if view.derived is not None:
        why = "it is derived of events (`recent`, `windows`)"
    elif view.has_eras:
        why = "items of the table that its source captures were deleted, which ends their features"
    elif source.ties is not None and not _is_decided(source, source.ties.sequence):
        why = (
            "its source is an Iceberg table in which not every row has a sequence, so what rows "
            "hold decides between equal ones"
        )
    if why:
        raise OfflineStoreError(
            f"Feature view `{view.view}` is not joined on Spark yet: {why}. Set `engine: local` "
            "in the offline_store block of feature_store.yaml, or leave its features out."
        )


def _is_decided(source: ParquetSource, sequence: str | None) -> bool:
    bounds = source.parts.bounds
    if sequence is None or bounds is None:
        return False
    return not any(bounds.may_hold_null(file.path, sequence) for file in source.files)


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

    def found(self, spark: Any) -> Any:
        """Each entity row's number, and the columns v0_0, v0_1 ... of what it sees, by view."""
        from pyspark.sql import Window
        from pyspark.sql import functions as f

        relations = [self._history(spark, one) for one in self.views]
        relations.append(self._questions(spark))
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
            *[f"lo{one.at}" for one in self.views if one.view.ttl],
            *[newest[one.at].alias(f"m{one.at}") for one in self.views],
        ).where(f.col("s") == OF_ENTITY)
        columns = []
        for one in self.views:
            for place in range(len(one.features)):
                value = f.col(f"m{one.at}")[f"f{place}"]
                if one.view.ttl:
                    value = f.when(f.col(f"m{one.at}")["t"] >= f.col(f"lo{one.at}"), value)
                columns.append(value.alias(f"v{one.at}_{place}"))
        return seen.select(NUMBER, *columns)

    @property
    def _units(self) -> tuple[str, str] | None:
        """The units of event and created time, where both count."""
        history = self._first.history
        if self._first.match.known is None or history.created_axis is None:
            return None
        return history.axis.unit, history.created_axis.unit

    def _questions(self, spark: Any) -> Any:
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
        return in_chunks(spark, pa.table(columns))

    def _history(self, spark: Any, one: ViewOnSpark) -> Any:
        row = [("t", "bigint")]
        row += [
            (f"f{at}", spark_type(carried_type(kind))) for at, (_, kind) in enumerate(one.features)
        ]
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
        reader = PartReader(
            one.at,
            one.view,
            one.head,
            one.parts,
            one.history.axis,
            one.history.created_axis,
            one.tie,
            self._units,
        )
        return read_by_executors(spark, len(one.parts), reader, columns)


@dataclass(frozen=True)
class PartReader:
    """Reads parts of one view's history, on executors.

    Attributes:
        at: the view's number in the plan.
        view: its plan.
        head: what the parts have in common.
        parts: these.
        axis: of event times.
        created_axis: of created times; None where there are none.
        tie: see `ViewOnSpark`.
        units: of event and created time, where rows count once both are past.
    """

    at: int
    view: ViewPlan
    head: SourceHead
    parts: tuple[SourcePart, ...]
    axis: Axis
    created_axis: Axis | None
    tie: str | None
    units: tuple[str, str] | None

    def __call__(self, number: int) -> Iterator[pa.RecordBatch]:
        """The rows of a part that count.

        Raises:
            SourceReadError: a file cannot be read, or changed since it was listed.
            ColumnTypeError: a key or a time that cannot be compared.
        """
        part = self.parts[number]
        source = part.open(self.head)
        history = History(self.view, source, self.axis, self.created_axis)
        names = self.view.feature_columns
        beside = [*names, *([self.tie] if self.tie else [])]

        def made(narrow: pa.RecordBatch, start: int) -> pa.RecordBatch:
            return self._made(narrow, part.start + start, len(names))

        yield from history.each(made, 1, beside)
        source.check_unchanged()

    def _made(self, narrow: pa.RecordBatch, start: int, features: int) -> pa.RecordBatch:
        keys = key_names(self.view)
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


# The result


def groups_of(
    plan: PitPlan, sources: Sequence[ParquetSource], entities: EntityRows
) -> list[Group]:
    """The views of a plan, by how they are compared.

    Raises:
        OfflineStoreError: what is not joined on Spark yet, by name; see also its subclasses.
    """
    groups: list[list[ViewOnSpark]] = []
    for at, source in enumerate(sources):
        one = ViewOnSpark.from_plan(at, plan, source, entities)
        for group in groups:
            if group[0].is_like(one):
                group.append(one)
                break
        else:
            groups.append([one])
    return [Group(tuple(group), entities) for group in groups]


def joined(spark: Any, groups: Sequence[Group], entities: EntityRows) -> Any:
    """Entity rows, e0, e1 ..., and what each sees, v0_0 ..., with their numbers n; in no order."""
    table = entities.table
    own = {f"e{at}": column for at, column in enumerate(table.columns)}
    numbers = pa.array(np.arange(table.num_rows))
    relation = in_chunks(spark, pa.table({NUMBER: numbers, **own}))
    for group in groups:
        relation = relation.join(group.found(spark), NUMBER)
    return relation
