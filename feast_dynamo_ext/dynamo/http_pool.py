"""The connections of one event loop: kept alive, opened when needed, through a proxy or not."""

from __future__ import annotations

import asyncio
import base64
import http.client
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from feast_dynamo_ext.dynamo.http import Connection, HttpAnswer, NoAnswerError

if TYPE_CHECKING:
    import socket

    from feast_dynamo_ext.dynamo.signing import Endpoint


@dataclass(frozen=True)
class HttpSettings:
    """How connections behave. Times in seconds.

    Attributes:
        connect_timeout_s: until a connection is open, TLS included.
        read_timeout_s: from a request to the end of its answer.
        max_connections: idle connections that are kept, per event loop.
        keepalive_s: idle time after which a connection is not used again.
        proxy: URL of an HTTP proxy to tunnel through, or None.
        tls: certificate checks; None for plain HTTP.
    """

    connect_timeout_s: float
    read_timeout_s: float
    max_connections: int
    keepalive_s: float
    proxy: str | None = None
    tls: ssl.SSLContext | None = None


class HttpPool:
    """The connections of one event loop to one endpoint."""

    def __init__(self, endpoint: Endpoint, settings: HttpSettings) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._idle: list[Connection] = []

    async def post(self, request: bytes, timeout_s: float) -> HttpAnswer:
        """Send a request and wait for its answer.

        A connection that turns out to have been closed while idle is replaced once; every
        request of this package may be sent twice.

        Args:
            request: head and body.
            timeout_s: from now to the end of the answer, at most `read_timeout_s`.

        Raises:
            NoAnswerError: no connection, a reset, a timeout, or an answer that is not HTTP.
        """
        until_s = time.monotonic() + timeout_s
        connection = self._reusable() or await self._connect(until_s)
        try:
            return await self._exchange(connection, request, until_s)
        except NoAnswerError as error:
            if not error.is_stale:
                raise
        return await self._exchange(await self._connect(until_s), request, until_s)

    async def warm_up(self, count: int) -> None:
        """Open connections and keep them.

        Raises:
            NoAnswerError: the endpoint cannot be reached.
        """
        for connection in await asyncio.gather(*(self._connect() for _ in range(count))):
            self._keep(connection)

    async def _exchange(
        self, connection: Connection, request: bytes, until_s: float
    ) -> HttpAnswer:
        limit_s = min(_left_s(until_s), self._settings.read_timeout_s)
        waiter = connection.send(request)
        timer = asyncio.get_running_loop().call_later(limit_s, _time_out, waiter, limit_s)
        try:
            answer = await waiter
        except BaseException:
            # What comes late must not be taken for the answer of the next request.
            connection.close()
            raise
        finally:
            timer.cancel()
        self._keep(connection)
        return answer

    def _reusable(self) -> Connection | None:
        oldest_s = time.monotonic() - self._settings.keepalive_s
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.idle_since_s >= oldest_s:
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        if connection.is_open and len(self._idle) < self._settings.max_connections:
            connection.idle_since_s = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    async def _connect(self, until_s: float = float("inf")) -> Connection:
        limit_s = min(_left_s(until_s), self._settings.connect_timeout_s)
        try:
            return await asyncio.wait_for(self._open(), limit_s)
        except asyncio.TimeoutError:
            raise NoAnswerError(f"connecting timed out after {limit_s:g} s") from None
        except (OSError, ssl.SSLError) as error:
            raise NoAnswerError(f"no connection to {self._endpoint.authority}: {error}") from error

    async def _open(self) -> Connection:
        loop, tls, there = asyncio.get_running_loop(), self._settings.tls, self._endpoint
        name = there.host if tls else None
        if self._settings.proxy is None:
            _, connection = await loop.create_connection(
                Connection, there.host, there.port, ssl=tls, server_hostname=name
            )
            return connection
        tunnel = await loop.run_in_executor(
            None, _tunnel, self._settings.proxy, there, self._settings.connect_timeout_s
        )
        _, connection = await loop.create_connection(
            Connection, sock=tunnel, ssl=tls, server_hostname=name
        )
        return connection

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._idle.pop().close()


def _left_s(until_s: float) -> float:
    return max(0.0, until_s - time.monotonic())


def _time_out(waiter: asyncio.Future[HttpAnswer], limit_s: float) -> None:
    if not waiter.done():
        waiter.set_exception(NoAnswerError(f"no answer within {limit_s:g} s (timed out)"))


def _tunnel(proxy: str, there: Endpoint, timeout_s: float) -> socket.socket:
    """A connection to the endpoint through an HTTP proxy (CONNECT)."""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    headers = {}
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(login).decode()}"
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port or 80, timeout=timeout_s
    )
    connection.set_tunnel(there.host, there.port, headers)
    connection.connect()
    tunnel = connection.sock
    tunnel.setblocking(False)
    return tunnel
