"""One view of a join on Spark: how entity rows are compared with it, and its parts to be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.retrieval.inputs import History, MatchInput
from feast_dynamo_ext.retrieval.join import prune
from feast_dynamo_ext.retrieval.spark.carried import carried_type, carry
from feast_dynamo_ext.retrieval.spark.source_parts import head_of, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.inputs import EntityRows
    from feast_dynamo_ext.retrieval.plan import PitPlan, ViewPlan
    from feast_dynamo_ext.retrieval.spark.source_parts import SourceHead, SourcePart
    from feast_dynamo_ext.timestamps import Axis

NUMBER = "n"
"""The column of an entity row's number, and of a history row's position."""

OF_HISTORY, OF_ENTITY = 0, 1
"""Which side a row is of; at one time, history comes first."""


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
        is_decided: whether it, or positions, say which of equal rows wins, and not what they hold.
    """

    at: int
    view: ViewPlan
    history: History
    match: MatchInput
    head: SourceHead
    parts: tuple[SourcePart, ...]
    tie: str | None
    is_decided: bool

    @classmethod
    def from_plan(
        cls, at: int, plan: PitPlan, source: ParquetSource, entities: EntityRows
    ) -> ViewOnSpark:
        """One view of a plan.

        Raises:
            OfflineStoreError: what is not joined on Spark yet, by name; see also its subclasses.
        """
        view = plan.views[at]
        _refuse_what_is_missing(view)
        pruned = prune(view, source, entities)
        history = History.from_view(view, pruned)
        match = MatchInput.from_entities(
            entities, history, created_by_entity_time=plan.created_by_entity_time
        )
        tie = source.ties.sequence if source.ties is not None else None
        columns = {*view.narrow_columns, *view.feature_columns, *([tie] if tie else [])}
        parts = tuple(parts_of(pruned, columns))
        is_decided = source.ties is None or _is_decided(source, tie)
        return cls(at, view, history, match, head_of(pruned), parts, tie, is_decided)

    @property
    def in_buckets(self) -> bool:
        """Whether it is joined bucket by bucket; see `buckets`."""
        return self.view.derived is not None or self.view.has_eras or not self.is_decided

    @property
    def key_types(self) -> list[pa.DataType]:
        """The types in which keys travel."""
        return [carried_type(key.type) for key in self.match.keys]

    @property
    def outputs(self) -> list[pa.DataType]:
        """The types of v0_0, v0_1 ...: of the view's columns, or of what is computed of them."""
        schema, derived = self.history.source.schema, self.view.derived
        if derived is None:
            return [schema.field(name).type for name in self.view.feature_columns]
        stored = [
            schema.field(each.column).type if each.column else None for each in derived.outputs
        ]
        return [each.arrow_type(kind) for each, kind in zip(derived.outputs, stored, strict=True)]

    def for_executors(self) -> Parts:
        """What executors need to read it."""
        history = self.history
        return Parts(self.view, self.head, self.parts, history.axis, history.created_axis)

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


def _refuse_what_is_missing(view: ViewPlan) -> None:
    """Refuse what one machine joins and Spark does not yet."""
    if view.has_events_of_items:
        raise OfflineStoreError(
            f"Feature view `{view.view}` is not joined on Spark yet: its events are items of a "
            "captured table, whose changes count together. Set `engine: local` in the "
            "offline_store block of feature_store.yaml, or leave its features out."
        )


def _is_decided(source: ParquetSource, sequence: str | None) -> bool:
    bounds = source.parts.bounds
    if sequence is None or bounds is None:
        return False
    return not any(bounds.may_hold_null(file.path, sequence) for file in source.files)


@dataclass(frozen=True)
class Parts:
    """The parts of a view's history, for executors.

    Attributes:
        view: its plan.
        head: what the parts have in common.
        parts: these.
        axis: of event times.
        created_axis: of created times; None where there are none.
    """

    view: ViewPlan
    head: SourceHead
    parts: tuple[SourcePart, ...]
    axis: Axis
    created_axis: Axis | None

    def each(
        self,
        number: int,
        work: Callable[[pa.RecordBatch, int], pa.RecordBatch],
        beside: Sequence[str],
    ) -> Iterator[pa.RecordBatch]:
        """What a function makes of a part's narrow columns, given the position of the first row.

        Args:
            number: of the part.
            work: the function.
            beside: columns of the source that follow the narrow ones; see `History.each`.

        Raises:
            SourceReadError: a file cannot be read, or changed since it was listed.
            ColumnTypeError: a key or a time that cannot be compared.
        """
        part = self.parts[number]
        source = part.open(self.head)
        history = History(self.view, source, self.axis, self.created_axis)
        yield from history.each(lambda rows, at: work(rows, part.start + at), 1, beside)
        source.check_unchanged()
