"""Shows a run while it lasts: a bar for each view on a terminal, a line now and then elsewhere.

A thread of its own looks at the run's report, so that nothing which does the work waits for a
terminal. It writes to stderr: stdout is for what Feast prints and for answers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TextIO

from feast_dynamo_ext.figures import count, duration, short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tqdm import tqdm

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

    def get(self, view: ViewReport) -> Speed:
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
    """How long a view will take at its current speed."""
    if not speed.rate or view.to_write is None:
        return "time left unknown"
    return f"{duration((view.to_write - view.settled) / speed.rate)} left"


logger = logging.getLogger("feast_dynamo_ext.materialize")

LOOKS_PER_LINE = 10  # or the first line would not know how fast it goes
BAR = "{desc} {percentage:3.0f}%|{bar}| "


@contextlib.contextmanager
def shown(
    report: RunReport, stream: TextIO | None = None, intervals: Intervals = DEFAULT
) -> Iterator[None]:
    """Show a run as long as the block lasts, however it ends.

    Args:
        report: the run; filled by other threads meanwhile.
        stream: where to; default: stderr. Bars if it is a terminal; else lines, which go to the
            logger `feast_dynamo_ext.materialize` instead where that shows INFO.
        intervals: how often.
    """
    target = sys.stderr if stream is None else stream
    with contextlib.ExitStack() as stack:
        display: Display
        if _is_terminal(target):
            display, every_s = Bars(report, target, intervals), intervals.bar_s
            stack.enter_context(_logs_above_bars())
        else:
            display = Lines(report, target, intervals)
            every_s = intervals.line_s / LOOKS_PER_LINE
        stack.enter_context(_polled(display, every_s))
        yield


def _is_terminal(stream: TextIO) -> bool:
    """Whether bars can be drawn: not on a pseudo-terminal that has no size, as containers get."""
    return stream.isatty() and min(os.get_terminal_size(stream.fileno())) > 0


@contextlib.contextmanager
def hidden(report: RunReport) -> Iterator[None]:  # noqa: ARG001 - stands in for `shown`
    """Show nothing of a run."""
    yield


@contextlib.contextmanager
def _polled(display: Display, every_s: float) -> Iterator[None]:
    """Look at the report from a thread, until the block ends."""
    over = threading.Event()

    def look() -> None:
        try:
            while not over.wait(every_s):
                display.look()
            display.close()
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            logger.warning("The progress of this run is not shown any more: %s", error)

    thread = threading.Thread(target=look, name="feast-dynamo-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _logs_above_bars() -> contextlib.AbstractContextManager[None]:
    """Log lines of this process go above the bars, not into them."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    redirect: contextlib.AbstractContextManager[None] = logging_redirect_tqdm()
    return redirect


class Display(Protocol):
    """Shows a report on a stream."""

    def look(self) -> None:
        """Show what the report says now."""

    def close(self) -> None:
        """Leave the stream as others expect it."""


class Bars:
    """A bar for each view that is being worked on, and one line of the run where it has several.

    They are wiped when they are done: the summary says what became of them.
    """

    def __init__(self, report: RunReport, stream: TextIO, intervals: Intervals = DEFAULT) -> None:
        self._report = report
        self._stream = stream
        self._speeds = Speeds(intervals)
        self._bars: dict[str, tqdm] = {}

    def look(self) -> None:
        """Draw the bars anew."""
        shown_now = at_work(self._report)
        for name in self._bars.keys() - {view.view for view in shown_now} - {""}:
            self._bars.pop(name).close()
        if len(self._report.views) > 1:
            self._draw("", overall(self._report))
        for view in shown_now:
            self._draw_view(view)

    def close(self) -> None:
        """Wipe the bars."""
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()

    def _draw_view(self, view: ViewReport) -> None:
        speed = self._speeds.get(view)
        if not view.to_write:
            self._draw(view.view, f"{{desc}} {reading(view)}")
            return
        bar = self._bar(view.view)
        bar.total, bar.n = view.to_write, view.settled
        done = f"{short(view.settled)}/{short(view.to_write)} rows, {short(speed.rate)}/s"
        used = f"{short(view.units)} units, {short(view.throttles)} throttles"
        self._draw(view.view, f"{BAR}{done}, {time_left(view, speed)}, {used}")

    def _draw(self, name: str, layout: str) -> None:
        bar = self._bar(name)
        bar.bar_format = layout
        bar.refresh()

    def _bar(self, name: str) -> tqdm:
        from tqdm import tqdm

        if name not in self._bars:
            self._bars[name] = tqdm(
                file=self._stream, leave=False, dynamic_ncols=True, bar_format="{desc}", desc=name
            )
        return self._bars[name]


class Lines:
    """A line for each view that is being worked on."""

    def __init__(self, report: RunReport, stream: TextIO, intervals: Intervals = DEFAULT) -> None:
        self._report = report
        self._stream = stream
        self._speeds = Speeds(intervals)
        self._intervals = intervals
        self._written_s = intervals.clock()

    def look(self) -> None:
        """Write the lines, if it is time to; else only note how fast it goes."""
        lines = [
            f"{view.view}: {line(view, self._speeds.get(view))}" for view in at_work(self._report)
        ]
        now_s = self._intervals.clock()
        if now_s - self._written_s < self._intervals.line_s:
            return
        self._written_s = now_s
        if len(self._report.views) > 1:
            self._write(overall(self._report))
        for text in lines:
            self._write(text)

    def close(self) -> None:
        """Nothing is left open."""

    def _write(self, text: str) -> None:
        # It does under `feast`, and elsewhere if somebody set it so.
        if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
            logger.info("%s", text)
        else:
            print(text, file=self._stream, flush=True)
