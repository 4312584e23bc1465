"""Runs coroutines for callers that have no event loop, and shares connections among loops.

All reading and writing is written once, for event loops. A thread that calls the store borrows a
loop, runs it itself and gives it back with its open connections: no other thread is woken, and
threads wait for each other only where there are more of them than connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import sys
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from feast_dynamo_ext.errors import AwsUnavailableError
from feast_dynamo_ext.forks import Lock, renew_in_children

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine


# A poll keeps nothing in the kernel that a forked child would share with its parent, as epoll
# does; for the few connections of one loop it is no slower.
Selector: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)

Loop = asyncio.AbstractEventLoop
T = TypeVar("T")

SETTLED_S = 0.5
"""A loop that has been idle for so long gives up its connections to one that wants more."""


class ConnectionLimit:
    """How many connections all event loops together have open. Safe to share between threads.

    A loop has a `LoopShare` of them. Where all are open and one loop wants more, loops with more
    than an equal part close what they do not use: so no loop waits for ever, and none opens a
    connection for each request.

    Attributes:
        most: connections that are open at once.
        hungry: the loops that wait for one, in order.
        reclaim: a weak method, called when a loop waits, to end loops that nobody runs.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.hungry: dict[LoopShare, None] = {}
        self.reclaim: Callable[[], Callable[[], object] | None] | None = None
        self._open = 0
        self._shares: set[LoopShare] = set()
        self._lock = Lock()

    @property
    def equal_part(self) -> int:
        """Connections of a loop, were all loops to have the same."""
        return self.most // max(1, len(self._shares))

    @property
    def is_starving(self) -> bool:
        """Whether a loop waits that has no connection at all."""
        return any(not share.places for share in list(self.hungry))

    def join(self, share: LoopShare) -> None:
        """Note a new loop."""
        with self._lock:
            self._shares.add(share)

    def take(self) -> bool:
        """One connection more, if there may be one."""
        with self._lock:
            if self._open >= self.most:
                return False
            self._open += 1
            return True

    def give(self, count: int) -> None:
        """Give back so many connections, and wake loops that wait for one."""
        with self._lock:
            self._open -= count
            hungry = list(self.hungry)[:count]
        for share in hungry:
            share.poke()

    def want(self, share: LoopShare) -> None:
        """Note that a loop waits for a connection, and have others give up what they can."""
        with self._lock:
            self.hungry[share] = None
            others = [other for other in self._shares if other is not share]
        for other in others:
            if other.places > max(other.busy, self.equal_part):
                other.poke()
        reclaim = self.reclaim() if self.reclaim is not None else None
        if reclaim is not None:
            reclaim()

    def sated(self, share: LoopShare) -> None:
        """Note that a loop waits no more."""
        with self._lock:
            self.hungry.pop(share, None)

    def wanted_by_others(self, share: LoopShare) -> int:
        """How many requests on other loops wait for a connection."""
        return sum(other.waiting for other in list(self.hungry) if other is not share)

    def leave(self, share: LoopShare) -> None:
        """Note that a loop has ended; its connections are free."""
        with self._lock:
            self._shares.discard(share)
            self.hungry.pop(share, None)
        places, share.places = share.places, 0
        if places:
            self.give(places)


class LoopShare:
    """The connections of one event loop; all but `poke` are called on it.

    Attributes:
        places: how many it may have open.
        busy: how many of them carry a request.
    """

    def __init__(
        self, limit: ConnectionLimit, loop: Loop, close_idle: Callable[[int], None]
    ) -> None:
        """It has none yet.

        Args:
            limit: of all loops.
            loop: the loop.
            close_idle: closes idle connections but for so many.
        """
        self.places = self.busy = 0
        self._limit, self._loop, self._close_idle = limit, loop, close_idle
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_poked = False
        limit.join(self)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    async def enter(self, on_wait: Callable[[], object]) -> None:
        """Wait until a request may be sent; `leave` must follow.

        Args:
            on_wait: called if there is no connection for it yet.
        """
        while self.busy >= self.places:
            if self._limit.take():
                self.places += 1
                break
            on_wait()
            await self._wait()
        self.busy += 1

    def leave(self) -> None:
        """Note that a request is over."""
        self.busy -= 1
        if self._limit.hungry:
            self._settle()

    def poke(self) -> None:
        """Have the loop look at what it and others wait for; from any thread."""
        if not self._is_poked:
            self._is_poked = True
            with contextlib.suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        """Give others what they want of more than an equal part, then go on with own requests."""
        self._is_poked = False
        spare = self.places - max(self.busy, min(self.places, self._limit.equal_part))
        given = min(spare, self._limit.wanted_by_others(self)) if spare > 0 else 0
        if given > 0:
            self.places -= given
            self._close_idle(self.places - self.busy)
            self._limit.give(given)
        free = self.places - self.busy
        while self._waiting and (free > 0 or self._limit.take()):
            if free <= 0:
                self.places += 1
                free += 1
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                free -= 1
        if not self._waiting:
            self._limit.sated(self)

    async def _wait(self) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(future)
        self._limit.want(self)
        try:
            await future
        except BaseException:
            if future in self._waiting:
                self._waiting.remove(future)
            # It may have been its turn: then it is the next one's now.
            self._settle()
            raise


async def off_loop(work: Callable[..., T], *args: Any) -> T:
    """The result of work that would hold up a caller's event loop; of a borrowed one, it may."""
    if isinstance(asyncio.get_running_loop(), _Loop):
        return work(*args)
    return await asyncio.to_thread(work, *args)


class _Loop(asyncio.SelectorEventLoop):
    """A loop whose blocking calls, such as looking up names, share one thread with all others."""

    def __init__(self, blocking: ThreadPoolExecutor) -> None:
        super().__init__(_native_selector() if _has_greenlets() else Selector())
        self._blocking = blocking

    def run_in_executor(  # type: ignore[override]  # typed by what each call returns
        self, executor: Any, func: Any, *args: Any
    ) -> Any:
        if executor is None and _has_greenlets():
            # Its threads would be greenlets of this thread, which waits for them in the kernel.
            done = self.create_future()
            try:
                done.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                done.set_exception(error)
            return done
        return super().run_in_executor(executor or self._blocking, func, *args)


class Loops:
    """Event loops that threads borrow. Safe to share between threads.

    `on_close` runs on each loop that is about to close, to close what is open on it.
    """

    def __init__(
        self,
        on_close: Callable[[Loop], Awaitable[None]],
        limit: ConnectionLimit | None = None,
        *,
        keepalive_s: float = 30.0,
        wait_s: float = 5.0,
    ) -> None:
        """There is no loop yet.

        Args:
            on_close: see above.
            limit: of the connections on the loops; there are at most as many loops.
            keepalive_s: a loop that nobody has run for so long is closed.
            wait_s: how long a thread waits where all loops are in use.
        """
        self._on_close, self._keepalive_s, self._wait_s = on_close, keepalive_s, wait_s
        self._limit = limit or ConnectionLimit(50)
        self._limit.reclaim = weakref.WeakMethod(self.reclaim)
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        self._waiting: deque[object] = deque()
        self._idle: deque[tuple[Loop, float]] = deque()
        self._count = 0
        self._is_reclaiming = False
        # Runs the calls that are made inside a loop.
        self._threads = ThreadPoolExecutor(thread_name_prefix="feast-dynamo")
        self._blocking = ThreadPoolExecutor(1, "feast-dynamo-blocking")
        # A store that nobody closes must not leave connections open either.
        self._finalizer = weakref.finalize(self, _end_all, self._idle, on_close)
        renew_in_children(self)

    def after_fork(self) -> None:
        """Leave the loops to the parent: what is closed in the child would be closed for both."""
        self._finalizer.detach()
        _OF_PARENT.append(self._idle)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its result, on this thread.

        Where an event loop already runs on this thread, as in a notebook, another thread does it:
        the call blocks that loop all the same, which is what calling it there means. So it is
        where gevent has made threads of greenlets, of which one at a time may run a loop.

        Raises:
            AwsUnavailableError: all loops are in use, and none was given back in time.
        """
        result: T
        if _has_greenlets():
            result = _in_native_thread(self._run, work)
        elif _is_in_a_loop():
            result = self._threads.submit(self._run, work).result()
        else:
            result = self._run(work)
        return result

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            loop = self._borrow()
        except BaseException:
            work.close()
            raise
        try:
            result = loop.run_until_complete(work)
        except Exception:
            self._give_back(loop)
            raise
        except BaseException:
            # Ctrl-C leaves the work unfinished: its loop must not be run again.
            self._forget(1)
            _end(loop, self._on_close)
            raise
        self._give_back(loop)
        return result

    def _borrow(self) -> Loop:
        loop = None
        with self._lock:
            # Who comes now does not overtake those who wait.
            if self._waiting or (not self._idle and self._count >= self._limit.most):
                self._wait_for_one()
            if self._idle:
                # The one used last: it has the freshest connections.
                loop, _ = self._idle.pop()
            else:
                self._count += 1
        if loop is None:
            return _Loop(self._blocking)
        # Nobody has looked at its connections meanwhile: one round notices those that were closed,
        # and those on which something came, before a request is sent on them.
        loop.call_soon(loop.stop)
        loop.run_forever()
        return loop

    def _wait_for_one(self) -> None:
        ticket = object()

        def it_is_this_ones_turn() -> bool:
            there_is_one = bool(self._idle) or self._count < self._limit.most
            return there_is_one and self._waiting[0] is ticket

        self._waiting.append(ticket)
        others = len(self._waiting) - 1
        try:
            is_there = self._free.wait_for(it_is_this_ones_turn, self._wait_s)
        finally:
            self._waiting.remove(ticket)
            self._free.notify_all()
        if not is_there:
            raise AwsUnavailableError(
                f"dynamodb: all {self._limit.most} connections were in use for "
                f"{self._wait_s:g} s, and {others} other threads waited for one before this. "
                "Raise `max_pool_connections`, or use fewer threads.",
                service="dynamodb",
            )

    def _give_back(self, loop: Loop) -> None:
        now_s = time.monotonic()
        with self._lock:
            is_kept = self._finalizer.alive
            if is_kept:
                self._idle.append((loop, now_s))
                is_old = self._idle[0][1] <= now_s - self._keepalive_s
                if self._waiting:
                    self._free.notify_all()
        if not is_kept:
            self._forget(1)
            _end(loop, self._on_close)
        elif is_old or self._limit.hungry:
            self.reclaim()

    def reclaim(self) -> None:
        """End loops that nobody has run for long; where others wait for connections, sooner."""
        with self._lock:
            if self._is_reclaiming or not self._has_outlasted():
                return
            self._is_reclaiming = True
        # On another thread: a loop may run on this one.
        _start_native(self._end_outlasted)

    def _has_outlasted(self) -> bool:
        """Whether the loop that has been idle longest is to end."""
        idle_s = self._keepalive_s
        if self._limit.hungry:
            idle_s = 0.0 if self._limit.is_starving else min(idle_s, SETTLED_S)
        return bool(self._idle) and self._idle[0][1] <= time.monotonic() - idle_s

    def _end_outlasted(self) -> None:
        while True:
            with self._lock:
                self._is_reclaiming = self._has_outlasted()
                if not self._is_reclaiming:
                    return
                loop, _ = self._idle.popleft()
            self._forget(1)
            _end(loop, self._on_close)

    def _forget(self, count: int) -> None:
        with self._free:
            self._count -= count
            self._free.notify_all()

    def close(self) -> None:
        """Close all loops, and with them their connections."""
        with self._free:
            self._count -= len(self._idle)
            self._finalizer()
        self._threads.shutdown()
        self._blocking.shutdown()


_OF_PARENT: list[Any] = []
"""Of a forked child: what it must neither use nor close."""


def _is_in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _end_all(idle: deque[tuple[Loop, float]], on_close: Callable[[Loop], Awaitable[None]]) -> None:
    while idle:
        _end(idle.pop()[0], on_close)


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


# gevent


def _has_greenlets() -> bool:
    """Whether gevent has made greenlets of threads."""
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _native_selector() -> selectors.BaseSelector:
    """A selector that waits in the kernel: gevent's poll would run greenlets on the loop's thread.

    gevent puts its own poll into the module `select`, where `selectors` has taken it from.
    """
    from gevent import monkey

    class NativeSelector(selectors.PollSelector):
        _selector_cls = staticmethod(monkey.get_original("select", "poll"))

    return NativeSelector()


def _in_native_thread(work: Callable[..., T], *args: Any) -> T:
    """The result of a call in a native thread; meanwhile other greenlets run."""
    import gevent

    def outcome() -> Future[T]:
        # gevent prints what its threads raise.
        done: Future[T] = Future()
        try:
            done.set_result(work(*args))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(error)
        return done

    result: T = gevent.get_hub().threadpool.apply(outcome).result()
    return result


def _start_native(work: Callable[[], object]) -> None:
    """Call something in a thread of its own."""
    if _has_greenlets():
        from gevent import monkey

        monkey.get_original("_thread", "start_new_thread")(work, ())
    else:
        threading.Thread(target=work, name="feast-dynamo-closing").start()
