"""What became of the rows of a run, view by view.

Filled while the run lasts, when `progress.py` shows it; at its end a table for a person, and a
dict for a program.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from feast_dynamo_ext.cost.prices import WRITE_UNITS
from feast_dynamo_ext.errors import FeastDynamoError
from feast_dynamo_ext.figures import count, dollars, duration, table
from feast_dynamo_ext.materialize.hot_keys import hot_lines
from feast_dynamo_ext.progress import Task

if TYPE_CHECKING:
    from collections.abc import Mapping
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
        read: rows of history in the window, incomplete ones left out.
        incomplete: rows without event time, and those of the window that lack a key; they are
            nobody's, and are left out.
        to_write: newest rows of their keys that are not past their ttl; None until it is known.
        expired: newest rows of their keys that are past their ttl, and so not written.
        written: rows that are in the table now.
        older: rows that are not, because the table holds newer ones.
        deleted: entities of a captured table that were deleted, and have no row any more.
        resumed: rows of `to_write` that an earlier, killed run had written.
        failed: rows that could not be written; see `left`.
        throttles: requests that DynamoDB throttled, in whole or in part.
        units: write units consumed, as DynamoDB counts them; where it does not say, as the sizes
            of the items that were sent to it say.
        hot: write units of the partition keys that had so many that they set the run's pace, one
            of each cohort and of the table; see `hot_keys`.
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
    incomplete: int = 0
    to_write: int | None = None
    expired: int = 0
    written: int = 0
    older: int = 0
    deleted: int = 0
    resumed: int = 0
    failed: int = 0
    throttles: int = 0
    units: float = 0.0
    hot: Mapping[str, int] = field(default_factory=dict)
    started_s: float | None = None
    ended_s: float | None = None
    error: BaseException | None = None

    def note_use(self, units: float, throttles: int) -> None:
        """Take over what requests consumed so far."""
        self.units, self.throttles = units, throttles

    @property
    def settled(self) -> int:
        """Rows of `to_write` that need nothing more."""
        return self.written + self.older + self.deleted + self.resumed

    @property
    def left(self) -> int | None:
        """Rows that could not be written, or were not tried any more once the view had failed.

        None where it failed before it was known how many there are.
        """
        if self.step != "failed":
            return self.failed
        return None if self.to_write is None else max(self.failed, self.to_write - self.settled)

    @property
    def task(self) -> Task:
        """What is shown of it while it is under way."""
        return Task(
            self.view,
            self._reading,
            self.settled,
            self.to_write,
            earlier=self.resumed,
            counts=((self.units, "units"), (self.throttles, "throttles")),
        )

    @property
    def _reading(self) -> str:
        if self.step == "waiting":
            return "waiting for its turn"
        # How many rows there are is known when all have been looked at.
        return f"reading history: {count(self.read)} rows" if self.read else "reading history"


@dataclass
class RunReport:
    """A run: its views, in the order of the call."""

    logger: ClassVar = logging.getLogger("feast_dynamo_ext.materialize")

    views: list[ViewReport] = field(default_factory=list)

    @property
    def failed_views(self) -> list[ViewReport]:
        """The views that failed."""
        return [view for view in self.views if view.error is not None]

    @property
    def tasks(self) -> list[Task]:
        """The views that are begun and not ended."""
        return [
            view.task
            for view in self.views
            if view.started_s is not None and view.step in ("waiting", "reading", "writing")
        ]

    @property
    def overview(self) -> str:
        """How many views are done; empty where there is only one."""
        if len(self.views) < 2:  # noqa: PLR2004 - one line says it all
            return ""
        steps = [view.step for view in self.views]
        failed = f", {count(steps.count('failed'))} failed" if "failed" in steps else ""
        return f"{steps.count('done')} of {len(steps)} views done{failed}"


# Attributes of a ViewReport, and headers of the table.
COUNTS = (
    "read",
    "incomplete",
    "written",
    "older",
    "expired",
    "deleted",
    "failed",
    "resumed",
    "throttles",
    "units",
)
ONLY_IF_ANY = ("incomplete", "deleted", "resumed", "throttles")

# What a step is called once nothing goes on any more.
STATES = {
    "waiting": "not begun",
    "reading": "stopped",
    "writing": "stopped",
    "done": "done",
    "failed": "failed",
}


def as_text(report: RunReport) -> str:
    """The table of a run that has ended, and below it hot partition keys, and why views failed.

    Columns: rows of history read; incomplete rows, without a key or event time, which are left
    out; rows written, skipped as older than what the table holds, skipped as past their ttl,
    deleted since their items in a captured table were,
    failed ("-" where a view failed before it was known how many there are), and resumed (written
    by an earlier run that was killed); requests throttled; write units consumed and their price on
    demand; wall-clock time; state.
    """
    if not report.views:
        return "There was no feature view to materialize."
    shown = [name for name in COUNTS if name not in ONLY_IF_ANY or _sum(report.views, name)]
    rows = [_row(view.view, [view], shown, STATES[view.step]) for view in report.views]
    several = len(report.views) > 1
    total = _row("total", report.views, shown, _overall(report)) if several else None
    headers = ["feature view", *shown, "dollars", "time", "state"]
    text = table(headers, rows, total, words=("feature view", "state"))
    hot = [line for view in report.views for line in hot_lines(view.view, view.hot)]
    return "\n".join([text, *(f"\n{line}" for line in (*hot, *failures(report)))])


def as_json(report: RunReport) -> dict[str, Any]:
    """The same of JSON's own types.

    Returns:
        ``{"views": [...], "total": {...}}``. A view has ``view``, ``table``, ``start`` and
        ``end`` (ISO 8601), ``state``, ``to_write`` (null where it was not known yet), ``hot_keys``
        (``cohort``, null for the table's own key, and ``units`` of each), ``error`` (null or a
        text), and as the total has: ``read``, ``incomplete``, ``written``, ``older``,
        ``expired``, ``deleted``, ``failed`` (null where a view failed before it was known how many
        there are), ``resumed`` (rows), ``throttles`` (requests), ``units``, ``dollars``,
        ``seconds`` (null where it did not begin).
    """
    return {
        "views": [_view_json(view) for view in report.views],
        "total": _figures(report.views),
    }


def failures(report: RunReport) -> list[str]:
    """One line for each view that failed: its name and why."""
    return [f"{view.view}: {reason(view.error)}" for view in report.views if view.error]


def reason(error: BaseException) -> str:
    """An error in one line. Errors of others get their type: `'x'` alone says nothing."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FeastDynamoError) else f"{type(error).__name__}: {text}"


def _row(label: str, views: list[ViewReport], shown: list[str], state: str) -> list[str]:
    figures = _figures(views)
    counts = ["-" if figures[name] is None else count(figures[name]) for name in shown]
    return [label, *counts, dollars(figures["dollars"]), duration(figures["seconds"]), state]


def _figures(views: list[ViewReport]) -> dict[str, Any]:
    counts: dict[str, Any] = {name: _sum(views, name) for name in COUNTS}
    left = [view.left for view in views]
    counts["failed"] = None if None in left else sum(filter(None, left))
    seconds = _seconds(views)
    return {
        **counts,
        "dollars": round(WRITE_UNITS.cost(counts["units"]), 9),
        "seconds": None if seconds is None else round(seconds, 3),
    }


def _sum(views: list[ViewReport], name: str) -> float:
    total: float = sum(getattr(view, name) for view in views)
    return total


def _seconds(views: list[ViewReport]) -> float | None:
    """From the first beginning to the last end; views overlap."""
    spans = [(view.started_s, view.ended_s) for view in views]
    started = [start for start, _ in spans if start is not None]
    ended = [end for start, end in spans if start is not None and end is not None]
    return max(ended) - min(started) if ended else None


def _overall(report: RunReport) -> str:
    states = [STATES[view.step] for view in report.views]
    done = states.count("done")
    return "done" if done == len(states) else f"{done} of {len(states)} done"


def _view_json(view: ViewReport) -> dict[str, Any]:
    return {
        "view": view.view,
        "table": view.table,
        "start": view.start.isoformat(),
        "end": view.end.isoformat(),
        "state": STATES[view.step],
        "to_write": view.to_write,
        **_figures([view]),
        "hot_keys": [{"cohort": name or None, "units": units} for name, units in view.hot.items()],
        "error": None if view.error is None else reason(view.error),
    }
