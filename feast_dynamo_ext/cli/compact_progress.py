"""Shows how far a compaction is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LINE_EVERY_S = 10.0


@contextlib.contextmanager
def shown(name: str, steps: int) -> Iterator[Callable[[int], object]]:
    """What is to be told of each step done, as long as the block lasts.

    Args:
        name: of the source.
        steps: rows to be read and rows to be written.
    """
    if not sys.stderr.isatty():
        yield Lines(name, steps).advance
        return
    with tqdm(total=steps, desc=name, unit=" rows", unit_scale=True, leave=False) as bar:
        yield bar.update


class Lines:
    """Lines on stderr."""

    def __init__(self, name: str, steps: int) -> None:
        self._name, self._steps = name, max(1, steps)
        self._done = 0
        self._shown_s = time.monotonic()

    def advance(self, steps: int) -> None:
        """Count steps; write a line if the last one is long ago."""
        self._done += steps
        if time.monotonic() - self._shown_s >= LINE_EVERY_S:
            self._shown_s = time.monotonic()
            click.echo(f"{self._name}: {self._done / self._steps:.0%} done", err=True)
