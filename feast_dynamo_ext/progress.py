"""Shows work while it lasts: a bar for each task on a terminal, a line now and then elsewhere.

A thread of its own reads the tasks, so that nothing which does the work waits for a terminal. It
writes to stderr: stdout is for what Feast prints and for answers.
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
    from collections.abc import Callable, Iterator, Sequence

    from tqdm import tqdm


@dataclass(frozen=True)
class Task:
    """One piece of work that is under way.

    Attributes:
        name: unique among those of the work.
        text: what is known of it while there is no total.
        done: rows that need nothing more.
        total: rows in all; None or 0 where there is nothing to measure by.
        unit: what `done` and `total` count.
        earlier: rows of `done` that were done before it began, and so say nothing of its speed.
        counts: further figures and what they count, for example units.
    """

    name: str
    text: str = ""
    done: int = 0
    total: int | None = None
    unit: str = "rows"
    earlier: int = 0
    counts: tuple[tuple[float, str], ...] = ()


class Work(Protocol):
    """What is shown. Read from another thread than those that do it."""

    @property
    def logger(self) -> logging.Logger:
        """Takes the lines where it shows INFO."""

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks that are under way now."""

    @property
    def overview(self) -> str:
        """One line of all tasks; empty where there is only one."""


class Steps:
    """Work of one task, which counts its own rows."""

    logger = logging.getLogger(__name__)
    overview = ""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self._name, self._total, self._unit, self._done = name, total, unit, 0

    def advance(self, rows: int) -> None:
        """So many more are done."""
        self._done += rows

    def reach(self, done: int, total: int) -> None:
        """So many of so many are done."""
        self._done, self._total = done, total

    @property
    def tasks(self) -> list[Task]:
        """The one task."""
        return [Task(self._name, "at work", self._done, self._total, self._unit)]


@dataclass(frozen=True)
class Intervals:
    """How often work is looked at, and over how long its speed is averaged.

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
    """Rows per second of one task."""

    def __init__(self, rate_s: float) -> None:
        self._rate_s = rate_s
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, now_s: float, rows: int) -> None:
        """Note how many rows are done by now."""
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
    """The speed of each task."""

    def __init__(self, intervals: Intervals) -> None:
        self._intervals = intervals
        self._speeds: dict[str, Speed] = {}

    def rate(self, task: Task) -> float:
        """Rows per second of a task, brought up to date."""
        speed = self._speeds.setdefault(task.name, Speed(self._intervals.rate_s))
        if task.total is not None:
            speed.see(self._intervals.clock(), task.done - task.earlier)
        return speed.rate


def line(task: Task, rate: float) -> str:
    """Where a task is, in words."""
    if not task.total:
        return task.text
    return ", ".join(
        [
            f"{count(task.done)} of {count(task.total)} {task.unit} "
            f"({task.done * 100 // task.total}%)",
            f"{count(rate)} rows/s",
            _time_left(task, rate),
            *(f"{count(number)} {what}" for number, what in task.counts),
        ]
    )


def _bar_layout(task: Task, rate: float) -> str:
    """The same on a bar of tqdm, where there is little room."""
    if not task.total:
        return f"{{desc}} {task.text}"
    figures = ", ".join(
        [
            f"{short(task.done)}/{short(task.total)} {task.unit}",
            f"{short(rate)}/s",
            _time_left(task, rate),
            *(f"{short(number)} {what}" for number, what in task.counts),
        ]
    )
    return f"{{desc}} {{percentage:3.0f}}%|{{bar}}| {figures}"


def _time_left(task: Task, rate: float) -> str:
    if not rate or task.total is None:
        return "time left unknown"
    return f"{duration((task.total - task.done) / rate)} left"


LOOKS_PER_LINE = 10  # or the first line would not know how fast it goes


@contextlib.contextmanager
def shown(
    work: Work,
    stream: TextIO | None = None,
    intervals: Intervals = DEFAULT,
    *,
    bars: bool = True,
) -> Iterator[None]:
    """Show work as long as the block lasts, however it ends.

    Args:
        work: changed by other threads meanwhile.
        stream: where to; default: stderr. Lines go to the work's logger instead where that shows
            INFO.
        intervals: how often.
        bars: whether a terminal gets bars; other streams get lines.
    """
    target = sys.stderr if stream is None else stream
    with contextlib.ExitStack() as stack:
        display: Bars | Lines
        if bars and _is_terminal(target):
            display, every_s = Bars(work, target, intervals), intervals.bar_s
            stack.enter_context(_logs_above_bars())
        else:
            display = Lines(work, target, intervals)
            every_s = intervals.line_s / LOOKS_PER_LINE
        stack.enter_context(_polled(display, every_s, work.logger))
        yield


def _is_terminal(stream: TextIO) -> bool:
    """Whether bars can be drawn: not on a pseudo-terminal that has no size, as containers get."""
    return stream.isatty() and min(os.get_terminal_size(stream.fileno())) > 0


@contextlib.contextmanager
def _polled(display: Bars | Lines, every_s: float, logger: logging.Logger) -> Iterator[None]:
    """Look at the work from a thread, until the block ends."""
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


class Bars:
    """A bar for each task that is under way, below one line of all where there are several.

    They are wiped when they are done: what became of the work is said elsewhere.
    """

    def __init__(self, work: Work, stream: TextIO, intervals: Intervals = DEFAULT) -> None:
        self._work, self._stream = work, stream
        self._speeds = Speeds(intervals)
        self._bars: dict[str, tqdm] = {}

    def look(self) -> None:
        """Draw the bars anew."""
        tasks = self._work.tasks
        for name in self._bars.keys() - {task.name for task in tasks} - {""}:
            self._bars.pop(name).close()
        overview = self._work.overview
        if overview:
            self._draw("", overview)
        for task in tasks:
            bar = self._bar(task.name)
            if task.total:
                bar.total, bar.n = task.total, task.done
            self._draw(task.name, _bar_layout(task, self._speeds.rate(task)))

    def close(self) -> None:
        """Wipe the bars."""
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()

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
    """A line for each task that is under way, after one of all where there are several."""

    def __init__(self, work: Work, stream: TextIO, intervals: Intervals = DEFAULT) -> None:
        self._work, self._stream, self._intervals = work, stream, intervals
        self._speeds = Speeds(intervals)
        self._written_s = intervals.clock()

    def look(self) -> None:
        """Write the lines, if it is time to; else only note how fast it goes."""
        lines = [
            f"{task.name}: {line(task, self._speeds.rate(task))}" for task in self._work.tasks
        ]
        now_s = self._intervals.clock()
        if now_s - self._written_s < self._intervals.line_s:
            return
        self._written_s = now_s
        overview = self._work.overview
        for text in [overview, *lines] if overview else lines:
            self._write(text)

    def close(self) -> None:
        """Nothing is left open."""

    def _write(self, text: str) -> None:
        # It does under `feast`, and elsewhere if somebody set it so.
        logger = self._work.logger
        if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
            logger.info("%s", text)
        else:
            print(text, file=self._stream, flush=True)
