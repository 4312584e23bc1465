"""What became of the rows of a run, view by view: filled while it runs, shown by `progress.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from datetime import datetime

Step = Literal["waiting", "reading", "writing", "done", "failed"]


@dataclass
class ViewReport:
    """One view of a run. Written by one run's threads, each field by one of them.

    Attributes:
        view: name of the feature view.
        table: its DynamoDB table.
        start: first event time of the window, `lookback` included.
        end: last event time of the window.
        step: where it is.
        read: rows of history in the window, those without keys left out.
        to_write: newest rows of their keys that are not past their ttl; None until it is known.
        expired: newest rows of their keys that are past their ttl, and so not written.
        written: rows that are in the table now.
        older: rows that are not, because the table holds newer ones.
        resumed: rows of `to_write` that an earlier, killed run had written.
        failed: rows that could not be written.
        throttles: requests that DynamoDB throttled, in whole or in part.
        units: write units consumed, as DynamoDB counts them; where it does not say, as the sizes
            of the items that were sent to it say.
        started_s: when work on it began, seconds of a monotonic clock; None before.
        ended_s: when it ended; None before.
        error: why it failed.
    """

    view: str
    table: str
    start: datetime
    end: datetime
    step: Step = "waiting"
    read: int = 0
    to_write: int | None = None
    expired: int = 0
    written: int = 0
    older: int = 0
    resumed: int = 0
    failed: int = 0
    throttles: int = 0
    units: float = 0.0
    started_s: float | None = None
    ended_s: float | None = None
    error: BaseException | None = None

    def note_use(self, units: float, throttles: int) -> None:
        """Take over what requests consumed so far."""
        self.units, self.throttles = units, throttles

    @property
    def settled(self) -> int:
        """Rows of `to_write` that need nothing more."""
        return self.written + self.older + self.resumed


@dataclass
class RunReport:
    """A run: its views, in the order in which they were asked for."""

    views: list[ViewReport] = field(default_factory=list)

    @property
    def failed_views(self) -> list[ViewReport]:
        """The views that failed."""
        return [view for view in self.views if view.error is not None]
