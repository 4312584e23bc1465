"""Runs coroutines for callers that have no event loop.

All reading and writing is written once, for event loops. A thread that calls the store borrows a
loop, runs it itself and gives it back with its open connections: no other thread is woken, and
threads never wait for each other.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine


# A poll keeps nothing in the kernel that a forked child would share with its parent, as epoll
# does; for the few connections of one loop it is no slower.
Selector: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)

Loop = asyncio.AbstractEventLoop
T = TypeVar("T")


class Loops:
    """Event loops that threads borrow. Safe to share between threads.

    `on_close` runs on each loop that is about to close, to close what is open on it.
    """

    def __init__(self, on_close: Callable[[Loop], Awaitable[None]]) -> None:
        self._on_close = on_close
        self._lock = threading.Lock()
        self._idle: list[Loop] = []
        # Runs the calls that are made inside a loop.
        self._threads = ThreadPoolExecutor(thread_name_prefix="feast-dynamo")
        # A store that nobody closes must not leave connections open either.
        self._finalizer = weakref.finalize(self, _end_all, self._idle, on_close)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its result, on this thread.

        Where an event loop already runs on this thread, as in a notebook, another thread does it:
        the call blocks that loop all the same, which is what calling it there means.
        """
        if _is_in_a_loop():
            return self._threads.submit(self._run, work).result()
        return self._run(work)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        loop = self._borrow()
        try:
            result = loop.run_until_complete(work)
        except Exception:
            self._give_back(loop)
            raise
        except BaseException:
            # Ctrl-C leaves the work unfinished: its loop must not be run again.
            _end(loop, self._on_close)
            raise
        self._give_back(loop)
        return result

    def _borrow(self) -> Loop:
        with self._lock:
            # The one used last: it has the freshest connections.
            loop = self._idle.pop() if self._idle else None
        if loop is None:
            return asyncio.SelectorEventLoop(Selector())
        # Nobody has looked at its connections meanwhile: one round notices those that were closed,
        # and those on which something came, before a request is sent on them.
        loop.call_soon(loop.stop)
        loop.run_forever()
        return loop

    def _give_back(self, loop: Loop) -> None:
        with self._lock:
            if self._finalizer.alive:
                self._idle.append(loop)
                return
        _end(loop, self._on_close)

    def close(self) -> None:
        """Close all loops, and with them their connections."""
        with self._lock:
            self._finalizer()
        self._threads.shutdown()


def _is_in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _end_all(idle: list[Loop], on_close: Callable[[Loop], Awaitable[None]]) -> None:
    while idle:
        _end(idle.pop(), on_close)


def _end(loop: Loop, on_close: Callable[[Loop], Awaitable[None]]) -> None:
    # A finalizer may run while another loop runs on this thread.
    if _is_in_a_loop():
        thread = threading.Thread(target=_settle, args=(loop, on_close))
        thread.start()
        thread.join()
    else:
        _settle(loop, on_close)
    loop.close()


def _settle(loop: Loop, on_close: Callable[[Loop], Awaitable[None]]) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(_closed(loop, on_close))


async def _closed(loop: Loop, on_close: Callable[[Loop], Awaitable[None]]) -> None:
    await on_close(loop)
    # Once more round, so that cancelled tasks and closed connections are really gone.
    await asyncio.sleep(0)
