"""Which event times a run reads."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext._feast import FIRST_INCREMENTAL
from feast_dynamo_ext.errors import WindowError

if TYPE_CHECKING:
    from feast.infra.common.materialization_job import MaterializationTask

CLOCK_TOLERANCE = timedelta(minutes=1)
"""By which an end may be ahead of this machine's clock."""

SAME_START = timedelta(minutes=1)

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Window:
    """Event times from `start` to `end`, both included."""

    start: datetime
    end: datetime

    @property
    def micros(self) -> tuple[int, int]:
        """Both as microseconds since 1970 UTC."""
        step = timedelta(microseconds=1)
        return (self.start - EPOCH) // step, (self.end - EPOCH) // step


def window_of(task: MaterializationTask, lookback_s: int, now: datetime) -> Window:
    """The event times that a task of Feast's reads.

    An incremental run starts where the last one ended. Rows that came into history since then with
    an earlier event time would never be read, so it starts `lookback_s` before that.

    Raises:
        WindowError: an incremental run to a time that has not come, or before its start.
    """
    start, end = _aware(task.start_time), _aware(task.end_time)
    if not is_incremental(task, now):
        return Window(start, end)
    view = task.feature_view.name
    if end > now + CLOCK_TOLERANCE:
        raise WindowError(
            f"Feature view `{view}`: the end of the incremental materialization, "
            f"{end.isoformat()}, is in the future: it is {now.isoformat(timespec='seconds')}. "
            "Feast would note all up to then as done, and rows that are yet to come would be left "
            "out. Pass the time of now."
        )
    if start > end and task.feature_view.most_recent_end_time is None:
        raise WindowError(
            f"Feature view `{view}`: its first incremental materialization starts at "
            f"{start.isoformat()}, as its ttl says, which is after the end, {end.isoformat()}. To "
            "write older rows, use `feast materialize` with their start and end."
        )
    if start > end:
        raise WindowError(
            f"Feature view `{view}` is materialized up to {start.isoformat()} already, which is "
            f"after {end.isoformat()}. To write rows before that again, use `feast materialize` "
            "with their start and end."
        )
    return Window(_before(start, lookback_s), end)


def _before(moment: datetime, seconds: int) -> datetime:
    first = datetime.min.replace(tzinfo=timezone.utc)
    return moment - timedelta(seconds=min(seconds, (moment - first) // timedelta(seconds=1)))


def is_incremental(task: MaterializationTask, now: datetime) -> bool:
    """Whether a task starts where the last one ended, or, the first one, at the ttl.

    Feast's tasks do not say it; these are the starts that `materialize_incremental` takes.
    """
    view: Any = task.feature_view
    start, last = _aware(task.start_time), view.most_recent_end_time
    if last is not None:
        return start == _aware(last)
    # Feast works its start out a moment before it calls us.
    first = now - (view.ttl or FIRST_INCREMENTAL)
    return not task.disable_event_timestamp and abs(start - first) < SAME_START


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
