"""The range of time whose changes are asked for, from what Feast passes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from feast.utils import make_tzaware

from feast_dynamo_ext.errors import EntityRowsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast_dynamo_ext.offline.plan import PitPlan, ViewPlan


@dataclass(frozen=True)
class Window:
    """The range whose changes are asked for, both bounds included.

    Attributes:
        start: the first event time that counts.
        end: the last one.
    """

    start: datetime
    end: datetime

    @classmethod
    def of(cls, start: datetime | None, end: datetime | None, plan: PitPlan) -> Window:
        """The range that Feast's `start_date` and `end_date` mean; naive ones are UTC.

        Args:
            start: None for the end less the longest ttl of the views, as in Feast's other stores.
            end: None for now.
            plan: the views.

        Raises:
            EntityRowsError: no datetimes, a start after the end, or no start and no ttl.
        """
        end = _moment("end_date", end) if end is not None else datetime.now(tz=timezone.utc)
        if start is not None:
            start = _moment("start_date", start)
        else:
            start = end - _longest_ttl(plan.views)
        if start > end:
            raise EntityRowsError(
                f"`start_date` {start} is after `end_date` {end}. Exchange them."
            )
        return cls(start, end)


def _moment(name: str, given: datetime) -> datetime:
    if not isinstance(given, datetime):
        raise EntityRowsError(
            f"`{name}` is a {type(given).__name__}. Give a datetime; without a zone it is UTC."
        )
    moment: datetime = make_tzaware(given)
    return moment


def _longest_ttl(views: Sequence[ViewPlan]) -> timedelta:
    longest = max((view.ttl or timedelta() for view in views), default=timedelta())
    if not longest:
        raise EntityRowsError(
            "Retrieval without entity rows needs a `start_date`: no view of the request has a ttl "
            "that says how far back to go. Give it, or pass `entity_df`."
        )
    return longest
