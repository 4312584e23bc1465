"""What to join, as frozen values: from Feast's views and references, before any data is read.

A plan names columns and says what counts; the rows that it is run on are not part of it (see
`inputs`), nor is how an engine runs it. All engines run the same plan.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Union

from feast.value_type import ValueType

from feast_dynamo_ext.columns import (
    Tombstones,
    request_columns,
    stored_names,
    stored_times,
    tombstones_of,
)
from feast_dynamo_ext.declared import declared_as, folder_types
from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.retrieval.windows.derived_plan import base_of, newest_times, outputs_of
from feast_dynamo_ext.timestamps import EARLIEST
from feast_dynamo_ext.view_settings import derived_of, view_tombstones

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    import pyarrow as pa
    from feast import FeatureView
    from feast.data_source import DataSource

    from feast_dynamo_ext.declared import Declared
    from feast_dynamo_ext.retrieval.windows.derived_plan import DerivedPlan


@dataclass(frozen=True)
class ViewPlan:
    """How one view joins.

    Attributes:
        view: name of the view as requested, for messages.
        source: its batch source.
        keys: (column of the entity rows, column of the source) a join key; none for a view
            without entities.
        event_time: the source's column of event time.
        created_time: the source's column of created time, or None.
        features: (column of the source, column of the result) a feature.
        ttl: how old a row may be at the entity row's time, the bound included; None for no limit.
        kinds: what each feature is declared as; empty for the columns' own types.
        key_kinds: what each key is declared as; empty where no view is known.
        folder_types: types of the source's columns as the view declares them, for those that only
            folders' names say; empty where no view is known.
        tombstones: how rows of the source say that items are gone; None where all rows count.
        derived: what is computed of the rows, which are events then; None where the newest row's
            features are the result. `features` are what this needs, under the source's names.
    """

    view: str
    source: DataSource
    keys: tuple[tuple[str, str], ...]
    event_time: str
    created_time: str | None
    features: tuple[tuple[str, str], ...]
    ttl: timedelta | None
    kinds: tuple[Declared, ...] = ()
    key_kinds: tuple[ValueType, ...] = ()
    folder_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    tombstones: Tombstones | None = None
    derived: DerivedPlan | None = None

    @property
    def has_eras(self) -> bool:
        """Whether deletions end what an entity sees; see `eras`."""
        return self.tombstones is not None and self.tombstones.is_applied

    @property
    def has_events_of_items(self) -> bool:
        """Whether its events are items of a captured table, of which all rows count together."""
        return self.derived is not None and self.tombstones is not None

    @property
    def results(self) -> list[str]:
        """Names of the result's columns."""
        if self.derived is not None:
            return [output.name for output in self.derived.outputs]
        return [name for _, name in self.features]

    @property
    def tie_breaks(self) -> tuple[str, ...]:
        """Columns that decide between rows of one key and event time: the greatest value wins.

        A null loses to every value. Among rows that are equal here too, the highest position
        wins: the later row of the later path.
        """
        return (self.created_time,) if self.created_time else ()

    @property
    def narrow_columns(self) -> list[str]:
        """The columns of the source that matching needs: keys, times, and which rows count."""
        keys = [column for _, column in self.keys]
        change = [self.tombstones.change] if self.tombstones else []
        return list(dict.fromkeys([*keys, self.event_time, *self.tie_breaks, *change]))

    @property
    def feature_columns(self) -> list[str]:
        """The columns of the source that the result needs, each once."""
        return list(dict.fromkeys(column for column, _ in self.features))

    @property
    def declared_keys(self) -> list[tuple[str, ValueType]]:
        """(column of the source, what it is declared as) a join key."""
        kinds = self.key_kinds or (ValueType.UNKNOWN,) * len(self.keys)
        return [(column, kind) for (_, column), kind in zip(self.keys, kinds, strict=True)]

    @property
    def declared(self) -> Iterator[tuple[str, str, Declared]]:
        """(column of the source, column of the result, what it is declared as) a feature."""
        kinds = self.kinds or (ValueType.UNKNOWN,) * len(self.features)
        return ((*names, kind) for names, kind in zip(self.features, kinds, strict=True))

    def visible(self, first: datetime, last: datetime) -> tuple[datetime | None, datetime]:
        """The first and the last event time that entity rows between two moments can see."""
        if not self.ttl:
            return None, last
        return (EARLIEST if first - EARLIEST < self.ttl else first - self.ttl), last


def without_eras(view: ViewPlan) -> ViewPlan:
    """A plan for which deletions end nothing; tombstones are no features all the same."""
    if view.tombstones is None:
        return view
    return replace(view, tombstones=replace(view.tombstones, is_applied=False))


@dataclass(frozen=True)
class PitPlan:
    """A point-in-time join.

    Attributes:
        views: one plan a view, in the order of the result.
        created_by_entity_time: only rows that were created by the entity row's time count.
    """

    views: tuple[ViewPlan, ...]
    created_by_entity_time: bool = False


@dataclass(frozen=True)
class RowsPlan:
    """Rows of one source with start <= event time <= end.

    Attributes:
        view: the columns.
        start: first event time that counts; None for no limit.
        end: the last one.
        newest: the newest row of each key alone.
    """

    view: ViewPlan
    start: datetime | None
    end: datetime | None
    newest: bool


Plan = Union[PitPlan, RowsPlan]  # noqa: UP007 - evaluated on Python 3.10 at run time


def plan_views(
    views: Sequence[FeatureView],
    refs: Sequence[str],
    *,
    full_feature_names: bool,
    created_by_entity_time: bool = False,
    bases: Mapping[str, FeatureView] | None = None,
) -> PitPlan:
    """The plan of a `get_historical_features` call.

    Args:
        views: the views that the references name, projections applied.
        refs: feature references, ``view:feature``.
        full_feature_names: name results ``view__feature``.
        created_by_entity_time: Feast's `filter_by_created_timestamp`.
        bases: of derived views the views that they are derived from, by the derived view's name;
            see `bases_of`.
    """
    plans = []
    for view in views:
        base = bases.get(view.name) if bases else None
        plan = plan_view if base is None else partial(plan_derived, base=base)
        plans.append(plan(view, refs, full_feature_names=full_feature_names))
    return PitPlan(tuple(plans), created_by_entity_time)


def bases_of(views: Sequence[Any], registry: Any, project: str) -> dict[str, FeatureView]:
    """Of derived views the views that they are derived from, by the derived view's name.

    Raises:
        OfflineStoreError: a base view that keeps no events any more, or is not known.
    """
    return {
        view.name: base_of(view, registry, project)
        for view in views
        if derived_of(view) is not None
    }


def plan_view(view: Any, refs: Sequence[str], *, full_feature_names: bool) -> ViewPlan:
    """The plan of one view; a source's field mapping is undone, since files have its old names."""
    source = view.batch_source
    if source is None:
        raise OfflineStoreError(
            f"Feature view `{view.name}` has no batch source, so it has no history to retrieve. "
            "Give it one, or leave its features out of the request."
        )
    named = view.projection.name_to_use()
    wanted = [ref.split(":", 1)[1] for ref in refs if ref.split(":", 1)[0] == named]
    kinds = {field.name: declared_as(field.dtype) for field in view.features}
    key_kinds = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
    stored, (event_time, created_time) = stored_names(source), stored_times(source)
    features = tuple(
        (stored[name], result_name(view, name, full_feature_names=full_feature_names))
        for name in wanted
    )
    if _TIMES_ALONE.get():
        wanted, features = [""], ((event_time, f"{named}{EVENT_TIME}"),)
    return ViewPlan(
        view=named,
        source=source,
        keys=tuple((column, stored[name]) for name, column in request_columns(view)),
        event_time=event_time,
        created_time=created_time,
        features=features,
        ttl=view.ttl or None,
        kinds=tuple(kinds.get(name, ValueType.UNKNOWN) for name in wanted),
        key_kinds=tuple(key_kinds[name] for name, _ in request_columns(view)),
        folder_types=declared_columns(view),
        tombstones=view_tombstones(view),
    )


def plan_derived(
    view: Any, refs: Sequence[str], *, full_feature_names: bool, base: Any
) -> ViewPlan:
    """The plan of a derived view: the events of its base view, and what is computed of them."""
    plan = plan_view(base, [], full_feature_names=full_feature_names)
    named = view.projection.name_to_use()
    wanted = [
        (name, result_name(view, name, full_feature_names=full_feature_names))
        for name in (ref.split(":", 1)[1] for ref in refs if ref.split(":", 1)[0] == named)
    ]
    stored = stored_names(plan.source)
    derived = outputs_of(view, base, wanted, stored)
    if _TIMES_ALONE.get():
        derived = newest_times(derived, view, plan.event_time, f"{named}{EVENT_TIME}")
    columns = dict([*derived.value_columns, *derived.tie_breaker])
    return replace(
        plan,
        view=named,
        keys=tuple((column, stored[name]) for name, column in request_columns(view)),
        features=tuple((name, name) for name in columns),
        kinds=tuple(columns.values()),
        ttl=derived.reach,
        derived=derived,
    )


def declared_columns(view: Any) -> dict[str, pa.DataType]:
    """The types that a view declares its columns as, by the names of its source's files."""
    return folder_types([*view.entity_columns, *view.features], stored_names(view.batch_source))


def result_name(view: Any, feature: str, *, full_feature_names: bool) -> str:
    """What a feature of a view, on-demand or not, is called in the result."""
    if not full_feature_names:
        return feature
    return f"{view.projection.name_alias or view.name}__{feature}"


def plan_rows(
    data_source: DataSource,
    join_keys: Sequence[str],
    features: Sequence[str],
    event_time: str,
    created_time: str | None,
) -> ViewPlan:
    """A plan whose result has the source's own columns: keys, features and times, in their types.

    All names are those of the source's files.
    """
    times = [event_time, created_time] if created_time else [event_time]
    columns = dict.fromkeys([*join_keys, *features, *times])
    return ViewPlan(
        view=data_source.name,
        source=data_source,
        keys=tuple((name, name) for name in join_keys),
        event_time=event_time,
        created_time=created_time or None,
        features=tuple((name, name) for name in columns),
        ttl=None,
        tombstones=tombstones_of(data_source),
    )


_MATERIALIZED: ContextVar[Any] = ContextVar("materialized_view", default=None)


@contextlib.contextmanager
def materialized_by_feast(view: Any) -> Iterator[None]:
    """While another engine materializes a view: to an offline store it names columns alone."""
    token = _MATERIALIZED.set(view)
    try:
        yield
    finally:
        _MATERIALIZED.reset(token)


EVENT_TIME = "__event_timestamp"
"""Behind a view's name: the result's column of the event time of the row that was found."""

_TIMES_ALONE: ContextVar[bool] = ContextVar("event_times_alone", default=False)


@contextlib.contextmanager
def event_times_alone() -> Iterator[None]:
    """Joins that are planned in the block give, of each view, its rows' event time alone.

    Rows are found as always, so this says how old features were.
    """
    token = _TIMES_ALONE.set(True)
    try:
        yield
    finally:
        _TIMES_ALONE.reset(token)


def with_declared_kinds(plan: ViewPlan) -> ViewPlan:
    """A plan of `plan_rows` with what the view that is materialized declares; else itself.

    Itself also for a view that transforms or aggregates: it declares what comes out of that.
    """
    view = _MATERIALIZED.get()
    source = getattr(view, "batch_source", None)
    is_derived = getattr(view, "feature_transformation", None) or getattr(
        view, "aggregations", None
    )
    if source is None or source.name != plan.source.name:
        return plan
    if is_derived:
        return replace(plan, tombstones=view_tombstones(view))
    stored = stored_names(source)
    columns = [*view.entity_columns, *view.features]
    kinds = {stored[column.name]: declared_as(column.dtype) for column in columns}
    return replace(
        plan,
        view=view.name,
        kinds=tuple(kinds.get(name, ValueType.UNKNOWN) for name, _ in plan.features),
        folder_types=declared_columns(view),
        tombstones=view_tombstones(view),
    )
