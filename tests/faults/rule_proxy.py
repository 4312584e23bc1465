"""A proxy in front of DynamoDB, in a thread of the test, that does with each request as told.

Unlike `fault_proxy.py` nothing is left to chance: a rule sees each request and says what it meets.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fault_http import Backend, Request, linger_no_more, read_message
from fault_kinds import Plain, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

RESET = Plain(0, b"")
THROTTLED = refusal("com.amazonaws.dynamodb.v20120810#ThrottlingException", "Slow down.")


def pass_on(asked: Asked) -> Plain | None:
    """The rule of a proxy that does nothing."""
    return None


@dataclass(frozen=True)
class Asked:
    """A request as a rule sees it.

    Attributes:
        operation: for example `BatchWriteItem`.
        body: what was sent, as a text.
        at_s: when it came, on the monotonic clock.
    """

    operation: str
    body: str
    at_s: float

    @property
    def parts(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed

    @property
    def rows(self) -> int:
        """Rows that it would write; schema and control items are none."""
        if self.operation == "BatchWriteItem":
            (puts,) = self.parts["RequestItems"].values()
            return sum("t" in put["PutRequest"]["Item"] for put in puts)
        if self.operation == "BatchExecuteStatement":
            return len(self.parts["Statements"])
        return 0


@dataclass
class RuleProxy:
    """A running proxy.

    Attributes:
        backend: URL of DynamoDB.
        rule: gives an answer, RESET, or None to pass a request on; called for one at a time.
        asked: requests that came, in their order.
    """

    backend: str
    rule: Callable[[Asked], Plain | None] = pass_on
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._real = Backend(self.backend)
        self._started, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait()

    @property
    def writes(self) -> list[Asked]:
        """Requests that would write rows."""
        return [one for one in self.asked if one.rows]

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._talk, "127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        self._loop.run_forever()
        server.close()
        talks = asyncio.all_tasks(self._loop)
        for talk in talks:
            talk.cancel()
        self._loop.run_until_complete(asyncio.gather(*talks, return_exceptions=True))
        for _, writer in self._real._idle:
            writer.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = Request(*await read_message(reader))
                asked = Asked(request.operation, request.body.decode(), time.monotonic())
                self.asked.append(asked)
                answer = self.rule(asked)
                if answer is RESET:
                    linger_no_more(writer)
                    return
                if answer is None:
                    answer = await self._real.send(request.with_body(request.body))
                writer.write(answer.sent())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            writer.close()
