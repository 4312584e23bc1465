"""Work that nobody waits for any more ends soon: between batches, and inside DuckDB.

A thread cannot be torn out of its work, and a program must not end under one: Arrow and DuckDB
abort it then. So a call with a timeout runs in a thread that the program's end waits for, and that
looks, wherever it is about to begin with something, whether it is to end.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from feast_dynamo_ext.errors import RetrievalTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import duckdb

P = ParamSpec("P")
T = TypeVar("T")

INTERRUPT_EVERY_S = 0.1
MOST_ABANDONED = 4
"""Calls that ran out of their time and have not ended yet, of the whole process."""


class _Call:
    """A call with a timeout."""

    def __init__(self) -> None:
        self.is_given_up = False
        self.done: Future[Any] = Future()
        self.connections: set[duckdb.DuckDBPyConnection] = set()

    def check(self) -> None:
        if self.is_given_up:
            raise RetrievalTimeoutError("Nobody waits for these rows any more.")

    def give_up(self) -> None:
        self.is_given_up = True
        _ABANDONED.add(self.done)
        threading.Thread(
            target=self._interrupt, name="feast-dynamo-interrupt", daemon=True
        ).start()

    def _interrupt(self) -> None:
        # Again and again: between two statements there is nothing to interrupt.
        while wait([self.done], INTERRUPT_EVERY_S).not_done:
            for connection in list(self.connections):
                connection.interrupt()
        _ABANDONED.discard(self.done)


_CALL: ContextVar[_Call | None] = ContextVar("_CALL", default=None)
_ABANDONED: set[Future[Any]] = set()


def within(timeout_s: float | None, work: Callable[[], T]) -> T:
    """Do work, and give up waiting for it after some seconds.

    Args:
        timeout_s: seconds; None for no limit.
        work: what to do; it calls `check` where it can end.

    Raises:
        RetrievalTimeoutError: it was not done by then.
    """
    if timeout_s is None:
        return work()
    if len(_ABANDONED) >= MOST_ABANDONED:
        wait(list(_ABANDONED), timeout_s, return_when=FIRST_COMPLETED)
        if sum(not done.done() for done in list(_ABANDONED)) >= MOST_ABANDONED:
            raise RetrievalTimeoutError(
                f"{MOST_ABANDONED} retrievals that were not done in time have not ended within "
                f"the {timeout_s:g} s of this one's `timeout`. Give them more time, or ask for "
                "fewer rows."
            )
    call = _Call()

    def run() -> None:
        _CALL.set(call)
        try:
            call.done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            call.done.set_exception(error)

    threading.Thread(target=run, name="feast-dynamo-retrieval", daemon=False).start()
    try:
        is_late = bool(wait([call.done], timeout_s).not_done)
    except BaseException:  # Ctrl-C
        call.give_up()
        raise
    if is_late:
        call.give_up()
        raise RetrievalTimeoutError(
            f"The retrieval was not done after the {timeout_s:g} s of its `timeout`. Give it "
            "more time, or ask for fewer rows; `job.explain()` says what it reads."
        )
    result: T = call.done.result()
    return result


def check() -> None:
    """End here if nobody waits for what this thread does.

    Raises:
        RetrievalTimeoutError: nobody does.
    """
    call = _CALL.get()
    if call is not None:
        call.check()


def in_threads(work: Callable[P, T]) -> Callable[P, T]:
    """The same function for other threads, in which `check` ends it as it would in this one."""
    call = _CALL.get()
    if call is None:
        return work

    def run(*args: P.args, **named: P.kwargs) -> T:
        token = _CALL.set(call)
        try:
            call.check()
            return work(*args, **named)
        finally:
            _CALL.reset(token)

    return run


@contextlib.contextmanager
def interruptible(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Have what a connection does interrupted once nobody waits for it.

    Raises:
        RetrievalTimeoutError: nobody does.
    """
    call = _CALL.get()
    if call is None:
        yield
        return
    call.check()
    call.connections.add(connection)
    try:
        yield
    except Exception:
        call.check()
        raise
    finally:
        call.connections.discard(connection)
