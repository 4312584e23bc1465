"""Sends the slowest request of a read once more, and takes the first answer.

Of many requests one is slow now and then, for reasons of one connection or one host of the
service; the same request sent again rarely is. Dean and Barroso, "The Tail at Scale", 2013.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feast_dynamo_ext.dynamo.batch import Wire
    from feast_dynamo_ext.dynamo.wire import Answer


@dataclass
class HedgedWire:
    """The connection, as one read sees it.

    Attributes:
        wire: the connection.
        after_s: a request that has no answer by then is sent again.
        left: how many times this read may still do that. One: when the whole service is slow,
            the load grows by one request a read and not by all.
    """

    wire: Wire
    after_s: float
    left: int = 1

    async def call(
        self, operation: str, body: Any, resource: str, timeout_s: float = float("inf")
    ) -> Answer:
        """Send one request, perhaps twice, and give back the first answer."""
        first = asyncio.ensure_future(self.wire.call(operation, body, resource, timeout_s))
        sent = {first}
        try:
            answered, _ = await asyncio.wait(sent, timeout=self.after_s)
            if not answered and self.left:
                self.left -= 1
                again = self.wire.call(operation, body, resource, timeout_s)
                sent.add(asyncio.ensure_future(again))
            return await _first_good(sent)
        finally:
            for request in sent:
                request.cancel()
            await asyncio.gather(*sent, return_exceptions=True)


async def _first_good(sent: set[asyncio.Task[Answer]]) -> Answer:
    """The first answer; an error only where there is nothing else to wait for."""
    waiting = set(sent)
    while True:
        answered, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for request in answered:
            if request.exception() is None:
                return request.result()
        if not waiting:
            return answered.pop().result()
