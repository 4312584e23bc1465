"""Waiting for what a service does by itself, in minutes or hours, by polling."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from feast_dynamo_ext.errors import AwsUnavailableError, ThrottledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Poll:
    """How often to poll.

    Attributes:
        first_s: the first pause, seconds; each is half as long again as the one before.
        most_s: the longest pause, seconds.
        max_failures: requests in a row that may fail (throttled, timeouts, 5xx).
        sleep: waits the given seconds.
    """

    first_s: float = 1.0
    most_s: float = 30.0
    max_failures: int = 20
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def pauses(self) -> Iterator[float]:
        """The pauses, seconds, without an end."""
        pause = self.first_s
        while True:
            yield pause
            pause = min(self.most_s, pause * 1.5)

    def until(
        self,
        ask: Callable[[], T],
        has_ended: Callable[[T], bool],
        name: str,
        say: Callable[[str], object],
        text_of: Callable[[T], str] = str,
    ) -> T:
        """The first status that is the end.

        Args:
            ask: asks for the status.
            has_ended: whether a status changes no more.
            name: of what is waited for.
            say: called with each new status, as a text.
            text_of: a status as a text.

        Raises:
            AwsError: AWS refuses to say.
        """
        pauses, failures, last = self.pauses(), 0, None
        while True:
            try:
                status = ask()
            except (ThrottledError, AwsUnavailableError) as error:
                # The service goes on all the same: giving up would only hide how it ends.
                failures += 1
                if failures >= self.max_failures:
                    raise
                logger.info("%s: no status (%s)", name, error.code or type(error).__name__)
            else:
                failures = 0
                if text_of(status) != last:
                    last = text_of(status)
                    say(f"{name}: {last}")
                if has_ended(status):
                    return status
            self.sleep(next(pauses))
