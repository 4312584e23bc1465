"""What is seen of a run while it lasts: bars on a terminal, lines elsewhere, nothing left over."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import re
import select
import struct
import termios
import threading
from datetime import datetime, timezone

import pytest

from feast_dynamo_ext.materialize.report import RunReport, ViewReport
from feast_dynamo_ext.progress import Bars, Intervals, Lines, Speed, Steps, shown

DAY = datetime(2026, 1, 1, tzinfo=timezone.utc)
LOGGER = "feast_dynamo_ext.materialize"
SOON_S = 10  # by when a thread has done what takes it no time


def view(name="orders", **fields):
    started_s = None if fields.get("step", "waiting") == "waiting" else 1.0
    return ViewReport(name, f"shop.{name}", DAY, DAY, **{"started_s": started_s, **fields})


class Clock:
    """Tells the time that it is given."""

    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def intervals(clock):
    return Intervals(line_s=0, clock=clock)


class Terminal:
    """A pseudo-terminal: a stream to write to, and what has been written."""

    def __init__(self, rows, columns):
        self._reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.stream = os.fdopen(writer, "w")

    def written(self):
        """What has been written since the last call."""
        self.stream.flush()
        parts = []
        while select.select([self._reader], [], [], 0)[0]:
            parts.append(os.read(self._reader, 65_536))
        return b"".join(parts).decode()

    def close(self):
        self.stream.close()
        os.close(self._reader)


@pytest.fixture
def terminal():
    opened = Terminal(30, 100)
    yield opened
    opened.close()


def texts(written):
    """The lines drawn on a terminal, in order, without moves of the cursor."""
    plain = re.sub(r"\x1b\[\w", "", written)
    return [text.strip() for text in re.split(r"[\r\n]+", plain) if text.strip()]


class Noted(io.StringIO):
    """A stream that is no terminal, and says when something is written."""

    def __init__(self):
        super().__init__()
        self.changed = threading.Event()

    def write(self, text):
        written = super().write(text)
        self.changed.set()
        return written


# Lines


def test_lines_of_a_view_from_reading_to_its_end(clock, intervals, caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    stream, orders = io.StringIO(), view()
    lines = Lines(RunReport([orders]), stream, intervals)
    lines.look()
    orders.started_s = 90.0
    lines.look()
    orders.step = "reading"
    lines.look()
    orders.read = 12_000
    lines.look()
    orders.step, orders.to_write, orders.resumed = "writing", 5_000, 1_000
    lines.look()
    clock.now_s, orders.written, orders.units, orders.throttles = 110.0, 1_000, 2_000.0, 3
    lines.look()
    orders.step = "done"
    lines.look()
    lines.close()
    assert stream.getvalue().splitlines() == [
        "orders: waiting for its turn",
        "orders: reading history",
        "orders: reading history: 12,000 rows",
        "orders: 1,000 of 5,000 rows (20%), 0 rows/s, time left unknown, 0 units, 0 throttles",
        "orders: 2,000 of 5,000 rows (40%), 100 rows/s, 30.0 s left, 2,000 units, 3 throttles",
    ]


def test_a_line_is_written_when_it_is_time_to_and_knows_the_speed_by_then(clock, caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    stream, orders = io.StringIO(), view(step="writing", to_write=1_000)
    lines = Lines(RunReport([orders]), stream, Intervals(clock=clock))
    for second in range(1, 30):
        clock.now_s, orders.written = 100.0 + second, 20 * second
        lines.look()
    assert stream.getvalue().splitlines() == [
        "orders: 200 of 1,000 rows (20%), 20 rows/s, 40.0 s left, 0 units, 0 throttles",
        "orders: 400 of 1,000 rows (40%), 20 rows/s, 30.0 s left, 0 units, 0 throttles",
    ]


def test_lines_of_several_views_begin_with_the_run(intervals, caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    stream = io.StringIO()
    report = RunReport(
        [view(step="done"), view("baskets", step="failed"), view("visits", step="reading")]
    )
    Lines(report, stream, intervals).look()
    assert stream.getvalue().splitlines() == [
        "1 of 3 views done, 1 failed",
        "visits: reading history",
    ]


def test_where_the_logger_shows_info_the_lines_go_there_alone(intervals, caplog):
    caplog.set_level(logging.INFO, LOGGER)
    stream = io.StringIO()
    Lines(RunReport([view(step="reading", read=7)]), stream, intervals).look()
    assert caplog.record_tuples == [(LOGGER, logging.INFO, "orders: reading history: 7 rows")]
    assert stream.getvalue() == ""


def test_a_view_without_rows_to_write_divides_nothing(intervals, terminal, caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    report = RunReport([view(step="writing", read=9, to_write=0)])
    stream = io.StringIO()
    Lines(report, stream, intervals).look()
    assert stream.getvalue() == "orders: reading history: 9 rows\n"
    bars = Bars(report, terminal.stream, intervals)
    bars.look()
    bars.close()
    assert "orders reading history: 9 rows" in texts(terminal.written())


def test_lines_of_work_that_counts_its_own_steps(clock, intervals, caplog):
    caplog.set_level(logging.WARNING, "feast_dynamo_ext.progress")
    stream = io.StringIO()
    steps = Steps("orders", 2_000, "rows read and written")
    lines = Lines(steps, stream, intervals)
    lines.look()
    steps.advance(400)
    steps.advance(600)
    clock.now_s = 110.0
    lines.look()
    assert stream.getvalue().splitlines() == [
        "orders: 0 of 2,000 rows read and written (0%), 0 rows/s, time left unknown",
        "orders: 1,000 of 2,000 rows read and written (50%), 100 rows/s, 10.0 s left",
    ]


# Bars


def test_a_bar_of_work_that_counts_its_own_steps(clock, intervals, terminal):
    steps = Steps("orders", 2_000, "rows read and written")
    bars = Bars(steps, terminal.stream, intervals)
    bars.look()
    steps.advance(500)
    clock.now_s = 105.0
    bars.look()
    assert re.sub(r"\|.*\|", "|", texts(terminal.written())[-1]) == (
        "orders  25%| 500/2k rows read and written, 100/s, 15.0 s left"
    )
    bars.close()


def test_lines_alone_where_bars_are_not_wanted(terminal, caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    report = RunReport([view(step="reading", read=5)])
    lines = ""
    with shown(report, terminal.stream, Intervals(line_s=0.001), bars=False):
        while not lines:
            lines = terminal.written()
    assert lines.splitlines()[0] == "orders: reading history: 5 rows"


def test_bars_of_a_view_from_reading_to_its_end(clock, intervals, terminal):
    orders = view(step="reading", read=12_000)
    bars = Bars(RunReport([orders]), terminal.stream, intervals)
    bars.look()
    assert texts(terminal.written())[-1] == "orders reading history: 12,000 rows"
    orders.step, orders.to_write = "writing", 200_000
    bars.look()
    clock.now_s, orders.written, orders.units, orders.throttles = 105.0, 50_000, 50_000.0, 2
    bars.look()
    last = texts(terminal.written())[-1]
    assert re.sub(r"\|.*\|", "|", last) == (
        "orders  25%| 50k/200k rows, 10k/s, 15.0 s left, 50k units, 2 throttles"
    )
    assert len(last) <= 100
    orders.step = "done"
    bars.look()
    assert texts(terminal.written()) == []  # nothing but spaces over the bar
    bars.close()


def test_bars_are_of_the_views_at_work_below_a_line_of_the_run(intervals, terminal):
    report = RunReport(
        [
            view("a", step="done"),
            view("b", step="reading", read=1),
            view("c", step="reading", read=2),
            view("d"),
        ]
    )
    bars = Bars(report, terminal.stream, intervals)
    bars.look()
    terminal.written()
    bars.look()
    assert texts(terminal.written()) == [
        "1 of 4 views done",
        "b reading history: 1 rows",
        "c reading history: 2 rows",
    ]
    bars.close()
    assert texts(terminal.written()) == []


# The run of a display


def test_lines_are_written_from_a_thread_until_the_block_ends(caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    stream = Noted()
    with shown(RunReport([view(step="reading", read=5)]), stream, Intervals(line_s=0.001)):
        assert stream.changed.wait(SOON_S)
    ended = stream.getvalue()
    assert set(ended.splitlines()) == {"orders: reading history: 5 rows"}
    assert "feast-dynamo-progress" not in {thread.name for thread in threading.enumerate()}


def test_a_short_run_writes_no_line():
    stream = io.StringIO()
    with shown(RunReport([view(step="reading")]), stream):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_or_ctrl_c_ends_the_bars(error, terminal):
    report = RunReport([view(step="reading", read=5)])
    with pytest.raises(error), shown(report, terminal.stream, Intervals(bar_s=0.001)):
        raise error
    assert "feast-dynamo-progress" not in {thread.name for thread in threading.enumerate()}
    terminal.written()
    print("after", file=terminal.stream)
    assert terminal.written() == "after\r\n"


def test_log_lines_do_not_cut_the_bars(terminal):
    handlers = list(logging.root.handlers)
    with shown(RunReport([view(step="reading")]), terminal.stream):
        assert "TqdmLoggingHandler" in type(logging.root.handlers[-1]).__name__
    assert logging.root.handlers == handlers


def test_a_terminal_without_a_size_gets_lines(caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    sizeless = Terminal(0, 0)
    intervals = Intervals(bar_s=3_600, line_s=0.001)
    lines = ""
    with shown(RunReport([view(step="reading", read=5)]), sizeless.stream, intervals):
        while not lines:
            lines = sizeless.written()
    assert lines.splitlines()[0] == "orders: reading history: 5 rows"
    sizeless.close()


def test_a_stream_that_is_gone_does_not_end_the_run(caplog):
    caplog.set_level(logging.WARNING, LOGGER)
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    os.close(reader)
    warned = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record):
            warned.set()

    handler = Handler()
    logging.getLogger(LOGGER).addHandler(handler)
    with shown(RunReport([view(step="reading")]), stream, Intervals(line_s=0.001)):
        assert warned.wait(SOON_S)
    logging.getLogger(LOGGER).removeHandler(handler)
    assert caplog.messages == [
        "The progress of this run is not shown any more: [Errno 32] Broken pipe"
    ]
    with pytest.raises(BrokenPipeError):
        stream.close()


# Speed


def test_speed_is_that_of_the_last_seconds():
    speed = Speed(rate_s=10.0)
    assert speed.rate == 0.0
    for second in range(31):
        speed.see(float(second), 100 * second if second <= 20 else 2_000 + 10 * (second - 20))
    assert speed.rate == 10.0


def test_speed_averages_looks_that_are_far_apart():
    speed = Speed(rate_s=10.0)
    speed.see(0.0, 0)
    assert speed.rate == 0.0
    speed.see(60.0, 1_200)
    assert speed.rate == 20.0
    speed.see(60.0, 1_200)
    speed.see(120.0, 1_260)
    assert speed.rate == 1.0
