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
from typing import TYPE_CHECKING, Protocol, TextIO

from feast_dynamo_ext.materialize.figures import short
from feast_dynamo_ext.materialize.speed import (
    DEFAULT,
    Intervals,
    Speeds,
    at_work,
    line,
    overall,
    reading,
    time_left,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tqdm import tqdm

    from feast_dynamo_ext.materialize.report import RunReport, ViewReport

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
        speed = self._speeds.of(view)
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
            f"{view.view}: {line(view, self._speeds.of(view))}" for view in at_work(self._report)
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
