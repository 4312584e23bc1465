"""What a run did, when it has ended: a table for a person, a dict for a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.cost.prices import write_dollars
from feast_dynamo_ext.errors import FeastDynamoError
from feast_dynamo_ext.figures import count, dollars, duration, table

if TYPE_CHECKING:
    from feast_dynamo_ext.materialize.report import RunReport, ViewReport

# Attributes of a ViewReport, and headers of the table.
COUNTS = ("read", "written", "older", "expired", "failed", "resumed", "throttles", "units")
ONLY_IF_ANY = ("resumed", "throttles")

# What a step is called once nothing goes on any more.
STATES = {
    "waiting": "not begun",
    "reading": "stopped",
    "writing": "stopped",
    "done": "done",
    "failed": "failed",
}


def as_text(report: RunReport) -> str:
    """The table of a run that has ended, and below it why views failed.

    Columns: rows of history read; rows written, skipped as older than what the table holds,
    skipped as past their ttl, failed, and resumed (written by an earlier run that was killed);
    requests throttled; write units consumed and their price on demand; wall-clock time; state.
    """
    if not report.views:
        return "There was no feature view to materialize."
    shown = [name for name in COUNTS if name not in ONLY_IF_ANY or _sum(report.views, name)]
    rows = [_row(view.view, [view], shown, STATES[view.step]) for view in report.views]
    several = len(report.views) > 1
    total = _row("total", report.views, shown, _overall(report)) if several else None
    headers = ["feature view", *shown, "dollars", "time", "state"]
    text = table(headers, rows, total, words=("feature view", "state"))
    return "\n".join([text, *(f"\n{line}" for line in failures(report))])


def as_json(report: RunReport) -> dict[str, Any]:
    """The same of JSON's own types.

    Returns:
        ``{"views": [...], "total": {...}}``. A view has ``view``, ``table``, ``start`` and
        ``end`` (ISO 8601), ``state``, ``to_write`` (null where it was not known yet), ``error``
        (null or a text), and as the total has: ``read``, ``written``, ``older``, ``expired``,
        ``failed``, ``resumed`` (rows), ``throttles`` (requests), ``units``, ``dollars``,
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
    """An error in one line. One that is not ours gets its type: `'x'` alone says nothing."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FeastDynamoError) else f"{type(error).__name__}: {text}"


def _row(label: str, views: list[ViewReport], shown: list[str], state: str) -> list[str]:
    figures = _figures(views)
    counts = [count(figures[name]) for name in shown]
    return [label, *counts, dollars(figures["dollars"]), duration(figures["seconds"]), state]


def _figures(views: list[ViewReport]) -> dict[str, Any]:
    counts = {name: _sum(views, name) for name in COUNTS}
    seconds = _seconds(views)
    return {
        **counts,
        "dollars": round(write_dollars(counts["units"]), 9),
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
        "error": None if view.error is None else reason(view.error),
    }
