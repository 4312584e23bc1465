"""How commands show a job that they follow, and end where somebody ends them."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import click

if TYPE_CHECKING:
    from collections.abc import Iterator


class ShownJob(Protocol):
    """A job as it was looked at."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def status(self) -> str:
        """The service's word."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        ...


class JobProgress:
    """A line of progress on stderr, which a terminal shows in place, below the job's log."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last = ""
        self._is_terminal = sys.stderr.isatty()

    def status(self, job: ShownJob) -> None:
        """Show a job's status: in a terminal each time, else where it has changed."""
        within = getattr(job, "secondary_status", "")
        text = f"{job.name}: {job.status}{f', {within}' if within else ''}"
        after = f" {time.monotonic() - self._started:,.0f} s"
        if self._is_terminal:
            click.echo(f"\r\x1b[K{text}{after}", err=True, nl=job.has_ended)
        elif text != self._last:
            click.echo(f"{text}{after}", err=True)
        self._last = text

    def line(self, host: str, text: str) -> None:
        """Show a line of the job's log."""
        if self._is_terminal:
            click.echo("\r\x1b[K", err=True, nl=False)
        click.echo(f"{host} | {text}", err=True)


@contextlib.contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, with what the block does then."""

    def leave(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
