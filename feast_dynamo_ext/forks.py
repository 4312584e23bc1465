"""What a forked child must not take over from its parent.

A child has one thread. A lock that another thread of the parent held at the fork is never released
in it, and connections that both of them use carry the bytes of both.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType


class Inherited(Protocol):
    """Something that a child makes anew."""

    def after_fork(self) -> None:
        """Called in the child, before any other code of its own runs."""
        ...


_INHERITED: weakref.WeakSet[Inherited] = weakref.WeakSet()


def renew_in_children(inherited: Inherited) -> None:
    """Have `after_fork` called in forked children, as long as the object is there."""
    _INHERITED.add(inherited)


def _after_fork() -> None:
    for inherited in list(_INHERITED):
        inherited.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Lock:
    """A lock that is free in a forked child; a context manager, as `threading.Lock`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        renew_in_children(self)

    def after_fork(self) -> None:
        """Nobody holds it in the child."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()
