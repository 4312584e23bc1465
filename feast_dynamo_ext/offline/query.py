"""What a retrieval job is asked for, as values: for its statement in SQL and its explanation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from feast_dynamo_ext.offline.entities.rows import EntityRows
    from feast_dynamo_ext.offline.plan import PitPlan, ViewPlan


@dataclass(frozen=True)
class PointInTime:
    """Entity rows with the features that each of them sees.

    Attributes:
        plan: the views.
        entities: the rows.
    """

    plan: PitPlan
    entities: EntityRows


@dataclass(frozen=True)
class SourceRows:
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


EARLIEST = datetime.min.replace(tzinfo=timezone.utc)

Query = Union[PointInTime, SourceRows]  # noqa: UP007 - evaluated on Python 3.10 at run time


def window(query: Query, view: ViewPlan) -> tuple[datetime | None, datetime | None]:
    """The first and the last event time of a view's history that can count; None for no limit."""
    if isinstance(query, SourceRows):
        return query.start, query.end
    return visible(query.entities, view)


def visible(entities: EntityRows, view: ViewPlan) -> tuple[datetime | None, datetime]:
    """The first and the last event time that any of the entity rows sees."""
    first, last = entities.range()
    if not view.ttl:
        return None, last
    return (EARLIEST if first - EARLIEST < view.ttl else first - view.ttl), last
