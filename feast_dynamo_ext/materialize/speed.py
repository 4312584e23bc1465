"""How fast a view is written, and where it is, in words."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from feast_dynamo_ext.materialize.figures import count, duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast_dynamo_ext.materialize.report import RunReport, ViewReport


@dataclass(frozen=True)
class Intervals:
    """How often a run is looked at, and over how long its speed is averaged.

    Attributes:
        bar_s: seconds between two looks on a terminal.
        line_s: seconds between two lines elsewhere.
        rate_s: seconds over which rows per second are averaged.
        clock: seconds of a monotonic clock.
    """

    bar_s: float = 0.15
    line_s: float = 10.0
    rate_s: float = 10.0
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)


DEFAULT = Intervals()


class Speed:
    """Rows per second of one view, those of an earlier run left out."""

    def __init__(self, rate_s: float) -> None:
        self._rate_s = rate_s
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, now_s: float, rows: int) -> None:
        """Note how many rows are written by now."""
        self._seen.append((now_s, rows))
        # One that is as old as the span is kept: the average is over all of it.
        while len(self._seen) > 2 and self._seen[1][0] <= now_s - self._rate_s:  # noqa: PLR2004
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Rows per second over the last seconds; 0 before there is anything to say."""
        if not self._seen:
            return 0.0
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


class Speeds:
    """The speed of each view."""

    def __init__(self, intervals: Intervals) -> None:
        self._intervals = intervals
        self._speeds: dict[str, Speed] = {}

    def of(self, view: ViewReport) -> Speed:
        """The speed of a view, brought up to date."""
        speed = self._speeds.setdefault(view.view, Speed(self._intervals.rate_s))
        if view.to_write is not None:
            speed.see(self._intervals.clock(), view.settled - view.resumed)
        return speed


def at_work(report: RunReport) -> list[ViewReport]:
    """The views that are begun and not ended."""
    return [
        view
        for view in report.views
        if view.started_s is not None and view.step in ("waiting", "reading", "writing")
    ]


def overall(report: RunReport) -> str:
    """How many of a run's views are done."""
    steps = [view.step for view in report.views]
    failed = f", {count(steps.count('failed'))} failed" if "failed" in steps else ""
    return f"{steps.count('done')} of {len(steps)} views done{failed}"


def line(view: ViewReport, speed: Speed) -> str:
    """Where a view is, in words."""
    if not view.to_write:
        return reading(view)
    return (
        f"{count(view.settled)} of {count(view.to_write)} rows "
        f"({view.settled * 100 // view.to_write}%), {count(speed.rate)} rows/s, "
        f"{time_left(view, speed)}, {count(view.units)} units, {count(view.throttles)} throttles"
    )


def reading(view: ViewReport) -> str:
    """What is known of a view before anything is written."""
    if view.step == "waiting":
        return "waiting for its turn"
    # How many rows there are is known when all have been looked at.
    return f"reading history: {count(view.read)} rows" if view.read else "reading history"


def time_left(view: ViewReport, speed: Speed) -> str:
    """How long a view will take at its speed of now."""
    if not speed.rate or view.to_write is None:
        return "time left unknown"
    return f"{duration((view.to_write - view.settled) / speed.rate)} left"
