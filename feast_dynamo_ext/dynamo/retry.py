"""When to send again: full-jitter backoff under a deadline, as a value that is passed in.

Full jitter: wait a random time between 0 and min(cap, base * 2^attempt), see
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@dataclass(frozen=True)
class RetryPolicy:
    """How long and how often to try.

    Attributes:
        deadline_s: seconds from the first request until the call gives up.
        base_s: upper bound of the first wait, seconds.
        cap_s: upper bound of any wait, seconds.
        max_failures: how many requests in a row may fail outright (timeouts, resets, 5xx) before
            the call gives up; None for no limit but the deadline. Throttling and unprocessed keys
            are answers, not failures: only the deadline ends them.
        sleep: waits the given seconds, on an event loop.
        clock: seconds of a monotonic clock.
        jitter: a random number of [0, 1).
    """

    deadline_s: float
    base_s: float = 0.025
    cap_s: float = 2.0
    max_failures: int | None = 3
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    # Spreads retries of many clients; nothing secret depends on it.
    jitter: Callable[[], float] = field(default=random.random, repr=False)

    def start(self) -> Attempts:
        """Begin a call."""
        return Attempts(self, self.clock())


@dataclass
class Attempts:
    """The state of one call under a policy."""

    policy: RetryPolicy
    started_s: float
    waits: int = 0
    failures: int = 0

    def failed(self) -> bool:
        """Count a request that failed outright; whether another may be sent."""
        self.failures += 1
        limit = self.policy.max_failures
        return limit is None or self.failures < limit

    def answered(self) -> None:
        """Note an answer: failures are counted in a row."""
        self.failures = 0

    def left_s(self) -> float:
        """Seconds until the deadline, not less than none."""
        return max(0.0, self.policy.deadline_s - (self.policy.clock() - self.started_s))

    def next_pause_s(self) -> float | None:
        """How long to wait before the next request; None where the deadline would pass."""
        bound = min(self.policy.cap_s, self.policy.base_s * 2.0**self.waits)
        pause = bound * self.policy.jitter()
        if pause > self.left_s():
            return None
        self.waits += 1
        return pause

    async def wait(self) -> bool:
        """Wait before the next request; False, at once, where the deadline would pass."""
        pause = self.next_pause_s()
        if pause is None:
            return False
        await self.policy.sleep(pause)
        return True
