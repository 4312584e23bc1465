"""What a derived view computes of events, as frozen values: from Feast's views, before any data.

The base view's rows are read, and what it declares counts; what the derived view asks for are
`Output`s of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.errors import FeatureViewNotFoundException
from feast.value_type import ValueType

from feast_dynamo_ext.declared import (
    WHOLE_NUMBERS,
    declared_arrow,
    declared_as,
    declared_type,
    element_kind,
)
from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.series_settings import Recent, WindowFeature
from feast_dynamo_ext.view_settings import derived_of, series_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from feast import FeatureView
    from feast.infra.registry.base_registry import BaseRegistry

    from feast_dynamo_ext.declared import Declared
    from feast_dynamo_ext.series_settings import RecentFeature

LIST = "list"
"""The function of a list of values; those of aggregates are `WindowFeature.function`."""


@dataclass(frozen=True)
class Output:
    """One feature of a derived view.

    Attributes:
        feature: its name in the view, for messages.
        name: of the result's column.
        function: that of an aggregate, or `LIST`.
        column: the source's column; empty for events as such, and for their times in lists.
        kind: what the base view declares the column as.
        declared: what the feature is declared as.
        span: how far back events count, the bound included; None for no limit.
        fill: what stands for a null in a list.
    """

    feature: str
    name: str
    function: str
    column: str
    kind: Declared
    declared: Declared
    span: timedelta | None
    fill: Any = None

    @property
    def is_list(self) -> bool:
        """Whether it lists values."""
        return self.function == LIST

    def arrow_type(self, stored: pa.DataType | None) -> pa.DataType:
        """The type of the result's column.

        Args:
            stored: that of the source's column; None where there is none.
        """
        if self.is_list:
            element = self.declared if isinstance(self.declared, ValueType) else None
            kind = element_kind(element) if element is not None else None
            if kind is None:
                raise AssertionError(self.declared)
            return pa.list_(declared_arrow(kind))
        if self.function in {"count", "count_distinct"}:
            return pa.int64()
        if self.function in {"mean", "std", "time_since_last"}:
            return pa.float64()
        if self.function == "sum":
            return pa.int64() if self.kind in WHOLE_NUMBERS else pa.float64()
        if stored is None:
            raise AssertionError(self.function)
        return declared_type(self.kind, stored)


@dataclass(frozen=True)
class DerivedPlan:
    """What is computed of the events of a view.

    Attributes:
        base: name of the view whose events they are.
        outputs: what is computed, in the order of the result.
        tie_breaker: (column of the source, what it is declared as), in whose order events of one
            entity and time stand, and which tell them apart.
        last: how many events are listed, at most; None for all that count.
        newest_first: the order of lists.
        exclude_current: leave out events of the very moment.
        ttl: the base view's.
    """

    base: str
    outputs: tuple[Output, ...]
    tie_breaker: tuple[tuple[str, Declared], ...] = ()
    last: int | None = None
    newest_first: bool = True
    exclude_current: bool = False
    ttl: timedelta | None = None

    @property
    def spans(self) -> tuple[timedelta | None, ...]:
        """How far back events count, the longest first, each once."""
        spans = dict.fromkeys(output.span for output in self.outputs)
        limits = sorted((span for span in spans if span is not None), reverse=True)
        return (*([None] if None in spans else []), *limits)

    @property
    def reach(self) -> timedelta | None:
        """How far back any event counts; None for no limit."""
        return self.spans[0]

    @property
    def value_columns(self) -> list[tuple[str, Declared]]:
        """(column of the source, what it is declared as), each once."""
        return list(
            {
                each.column: (each.column, each.kind) for each in self.outputs if each.column
            }.values()
        )


def base_of(view: Any, registry: BaseRegistry | None, project: str) -> FeatureView:
    """The view whose events a derived view is computed of, as the registry has it now.

    Raises:
        OfflineStoreError: it keeps no events any more, or is not known.
    """
    derived = derived_of(view)
    if derived is None:
        raise AssertionError(view.name)
    found: Any = None
    # What a derived view carries of its base may be older than what was applied last.
    lookup = getattr(registry, "get_any_feature_view", None)
    if lookup is not None:
        try:
            found = lookup(derived.base, project, allow_cache=True)
        except FeatureViewNotFoundException:
            found = None
    if found is None:
        found = next((each for each in view.source_views or [] if each.name == derived.base), None)
    subject = f"Feature view `{view.name}` is derived from the events of `{derived.base}`"
    if found is None:
        raise OfflineStoreError(f"{subject}, which is not in the registry. Apply it.")
    if series_of(found) is None:
        raise OfflineStoreError(
            f"{subject}, which keeps the newest row of each entity alone. Give it a "
            "`ViewSettings(series=Series(...))` again, or remove the derived view."
        )
    return found  # type: ignore[no-any-return]


def outputs_of(
    view: Any,
    base: Any,
    wanted: Sequence[tuple[str, str]],
    stored: Mapping[str, str],
) -> DerivedPlan:
    """What some features of a derived view need.

    Args:
        view: the derived view.
        base: the view that it is derived from, as it is now.
        wanted: (feature, column of the result).
        stored: names of the base view's columns in the files.

    Raises:
        OfflineStoreError: a feature, or a column of it, that is not there any more.
    """
    derived = derived_of(view)
    if derived is None:
        raise AssertionError(view.name)
    what = derived.what
    known: dict[str, WindowFeature | RecentFeature] = {each.name: each for each in what.features}
    kinds = {field.name: declared_as(field.dtype) for field in base.features}
    declared = {field.name: declared_as(field.dtype) for field in view.features}
    ttl = base.ttl or None
    outputs = []
    for feature, name in wanted:
        if feature not in known or feature not in declared:
            raise OfflineStoreError(
                f"Feature view `{view.name}`: its definition says nothing of `{feature}`. Make "
                "the view with `windows` or `recent`, and apply it."
            )
        each = known[feature]
        if each.column and each.column not in kinds:
            raise OfflineStoreError(
                f"Feature view `{view.name}`, feature `{feature}`: `{base.name}` has no feature "
                f"`{each.column}` any more. Declare it there, or define the view anew."
            )
        outputs.append(
            Output(
                feature=feature,
                name=name,
                function=each.function if isinstance(each, WindowFeature) else LIST,
                column=stored[each.column] if each.column else "",
                kind=kinds.get(each.column, ValueType.UNKNOWN),
                declared=declared[feature],
                span=_least(each.window if isinstance(each, WindowFeature) else what.longest, ttl),
                fill=None if isinstance(each, WindowFeature) else each.fill,
            )
        )
    series = series_of(base)
    breaker = series.tie_breaker if series is not None else ()
    return DerivedPlan(
        base=base.name,
        outputs=tuple(outputs),
        tie_breaker=tuple((stored[name], kinds.get(name, ValueType.UNKNOWN)) for name in breaker),
        last=what.last if isinstance(what, Recent) else None,
        newest_first=what.newest_first if isinstance(what, Recent) else True,
        exclude_current=what.exclude_current,
        ttl=ttl,
    )


def newest_times(plan: DerivedPlan, view: Any, event_time: str, name: str) -> DerivedPlan:
    """The same plan, of which the event time of each entity row's newest event is all there is."""
    derived = derived_of(view)
    longest = derived.what.longest if derived is not None else None
    output = Output(
        feature=name,
        name=name,
        function="last",
        column=event_time,
        kind=ValueType.UNKNOWN,
        declared=ValueType.UNKNOWN,
        span=_least(longest, plan.ttl),
    )
    return DerivedPlan(
        base=plan.base,
        outputs=(output,),
        tie_breaker=plan.tie_breaker,
        exclude_current=plan.exclude_current,
        ttl=plan.ttl,
    )


def _least(*spans: timedelta | None) -> timedelta | None:
    return min((span for span in spans if span is not None), default=None)
