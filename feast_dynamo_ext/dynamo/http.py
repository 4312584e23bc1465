"""One request, one answer, over a kept-alive HTTP/1.1 connection on an event loop.

asyncio moves the bytes and does TLS, httptools (llhttp, as in uvicorn) parses. A request of five
keys costs 0.15 ms of client CPU here, and 0.9 ms through urllib3 (docs/design.md, D6).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

import httptools


class NoAnswerError(ConnectionError):
    """No complete answer came.

    Attributes:
        is_stale: nothing at all came, on a connection that had been used before: the other side
            closed it while it was idle, as it may at any time.
    """

    def __init__(self, reason: str, *, is_stale: bool = False) -> None:
        super().__init__(reason)
        self.is_stale = is_stale


@dataclass
class HttpAnswer:
    """An answer as it came: status, headers (names in lower case) and body."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""


class Exchange:
    """One request's answer, as httptools tells of it.

    Attributes:
        answer: what has come; complete when the future is done.
        future: the answer, or the NoAnswerError that ended it.
        is_complete: whether all has come.
        keeps_alive: whether the connection can carry another request then.
    """

    def __init__(self) -> None:
        self.answer = HttpAnswer()
        self.future: asyncio.Future[HttpAnswer] = asyncio.get_running_loop().create_future()
        self.is_complete = self.keeps_alive = False
        self._chunks: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Parse what came.

        Raises:
            httptools.HttpParserError: it is not HTTP.
        """
        self._parser.feed_data(data)

    def fail(self, error: NoAnswerError) -> None:
        """End without an answer."""
        if not self.future.done():
            self.future.set_exception(error)

    # httptools calls these

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header is complete."""
        self.answer.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The status is known."""
        self.answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Part of the body came."""
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        """The answer is complete."""
        self.answer.body = b"".join(self._chunks)
        self.is_complete = True
        self.keeps_alive = self._parser.should_keep_alive()
        if not self.future.done():
            self.future.set_result(self.answer)


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self.idle_since_s = 0.0
        self._is_used = False
        self._exchange: Exchange | None = None

    @property
    def is_open(self) -> bool:
        """Whether the other side has not closed it, as far as this side has heard."""
        return not self._transport.is_closing()

    def send(self, request: bytes) -> asyncio.Future[HttpAnswer]:
        """Send a request; the future is its answer or a NoAnswerError."""
        self._exchange = Exchange()
        if self._transport.is_closing():
            # Reset as soon as it was open: nothing would ever tell of a request on it.
            self._exchange.fail(NoAnswerError("the connection was closed before the request"))
        self._transport.write(request)
        return self._exchange.future

    def close(self) -> None:
        """Close at once, whatever is in flight."""
        self._transport.abort()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Part of an answer came."""
        exchange = self._exchange
        if exchange is None:
            # An answer to nothing: whatever it is, the connection cannot be trusted.
            self.close()
            return
        try:
            exchange.feed(data)
        except httptools.HttpParserError as error:
            exchange.fail(NoAnswerError(f"the answer is not HTTP ({error})"))
            self.close()
            return
        if exchange.is_complete:
            self._exchange, self._is_used = None, True
            if not exchange.keeps_alive:
                self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        exchange = self._exchange
        if exchange is not None:
            stale = self._is_used and not exchange.answer.status
            reason = str(error) if error else "the connection was closed before the answer's end"
            exchange.fail(NoAnswerError(reason, is_stale=stale))
