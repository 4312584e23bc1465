"""DynamoDB's JSON protocol over signed, kept-alive connections.

botocore resolves credentials, region and endpoint; its shape-driven parser, which costs more
client CPU than the network, is left out: aiohttp carries the request, orjson decodes the answer.
Figures in docs/explanation/decisions/d06-signed-http.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import sys
import time
import weakref
import zlib
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import orjson
from yarl import URL

from feast_dynamo_ext.aws import (
    aws_error,
    ca_bundle,
    is_on_loopback,
    local_advice,
    no_credentials,
    proxy_of,
    translated,
)
from feast_dynamo_ext.dynamo.event_loops import ConnectionLimit, LoopShare
from feast_dynamo_ext.dynamo.signing import Endpoint, Signer
from feast_dynamo_ext.errors import AwsError, AwsUnavailableError
from feast_dynamo_ext.forks import renew_in_children

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    import boto3
    from aiohttp.connector import Connection
    from botocore.credentials import ReadOnlyCredentials
    from multidict import CIMultiDictProxy


logger = logging.getLogger(__name__)

Answer = dict[str, Any]

HTTP_OK, HTTP_FORBIDDEN, HTTP_SERVER_ERROR = 200, 403, 500

# Codes that a later, identical request may get past; 5xx answers count too.
RETRYABLE_CODES = frozenset(
    {
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ThrottlingException",
        "Throttling",
        "InternalServerError",
        "InternalFailure",
        "ServiceUnavailable",
    }
)

# What AWS answers when this machine's clock is off, among other reasons.
SKEW_CODES = frozenset(
    {"InvalidSignatureException", "RequestTimeTooSkewed", "RequestExpired", "SignatureExpired"}
)
MAX_UNSEEN_SKEW_S = 60
"""Seconds of difference that cannot be the reason: AWS accepts 5 minutes."""


MAX_BODY_BYTES = 32 * 1_024 * 1_024
"""Of an answer: DynamoDB's hold at most 16 MB of items, and their bytes are base64 there."""

NO_TIMEOUT = aiohttp.ClientTimeout()
CLOSE_TIMEOUT_S = 1.0

CONNECTION_LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


@dataclass(frozen=True)
class TransportSettings:
    """How connections behave. Times in seconds.

    Attributes:
        connect_timeout_s: until a connection is open, TLS and a proxy's tunnel included.
        read_timeout_s: from a request to the end of its answer.
        max_connections: connections that are open at once, on all event loops together.
        keepalive_s: idle time after which a connection is not used again.
    """

    connect_timeout_s: float
    read_timeout_s: float
    max_connections: int
    keepalive_s: float


class NoAnswerError(ConnectionError):
    """No complete answer came."""


class NoConnectionError(NoAnswerError):
    """Nothing was sent."""


class HttpAnswer(NamedTuple):
    """An answer as it came."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class DynamoTransport:
    """Sends one operation and gives back its decoded answer.

    Safe to share between threads and event loops; each loop has connections of its own.

    Attributes:
        limit: how many are open at once, of all loops.
    """

    def __init__(self, session: boto3.Session, endpoint: str, settings: TransportSettings) -> None:
        with translated("dynamodb", endpoint):
            self._credentials: Any = session.get_credentials()
        if self._credentials is None:
            raise no_credentials("dynamodb", endpoint)
        self._endpoint = Endpoint.from_url(endpoint)
        self._signer = Signer(self._endpoint, session.region_name)
        self._settings = settings
        is_tls = self._endpoint.scheme == "https"
        self._tls = ssl.create_default_context(cafile=ca_bundle(session)) if is_tls else None
        self._proxy = proxy_of(endpoint) if is_tls else None
        self.limit = ConnectionLimit(settings.max_connections)
        self._clients: dict[asyncio.AbstractEventLoop, HttpClient] = {}
        # Callers whose loop has ended cannot close what they had open on it.
        weakref.finalize(self, _close_ended, self._clients)
        renew_in_children(self)

    def after_fork(self) -> None:
        """Keep what the parent uses: what is closed in the child would be closed for both."""
        _OF_PARENT.append(self._clients.copy())

    @property
    def is_on_loopback(self) -> bool:
        """Whether requests stay on this machine, as those to a stand-in of DynamoDB do."""
        return is_on_loopback(self._endpoint.url)

    async def call(
        self, operation: str, body: Any, resource: str, timeout_s: float = float("inf")
    ) -> Answer:
        """Send one request.

        Args:
            operation: API operation, for example ``BatchGetItem``.
            body: its input, as the JSON protocol has it.
            resource: what it is about, for errors: the tables' names.
            timeout_s: give up after that, if the read timeout is not sooner.

        Raises:
            AwsUnavailableError: no usable answer came (timeout, reset, corrupted body, 5xx).
            ThrottledError: AWS asked to slow down.
            AwsError: AWS refused the request; see the subclasses.
        """
        data = orjson.dumps(body)
        signed_with_s = self._signer.skew_s
        answer = await self._post(operation, data, resource, timeout_s)
        if answer.status == HTTP_OK:
            return _decoded(answer, operation, resource)
        error = _refusal(answer, operation, resource)
        if error.code in SKEW_CODES and self._corrects_clock(answer, signed_with_s):
            answer = await self._post(operation, data, resource, timeout_s)
            if answer.status == HTTP_OK:
                return _decoded(answer, operation, resource)
            error = _refusal(answer, operation, resource)
        raise error

    async def warm_up(self, count: int) -> None:
        """Resolve credentials and open connections on the running event loop.

        Raises:
            AwsUnavailableError: the endpoint cannot be reached.
            CredentialsError: there are no credentials to be had.
        """
        await self._current_credentials()
        try:
            await (await self._client()).warm_up(count)
        except NoAnswerError as error:
            raise AwsUnavailableError(
                f"dynamodb: {error}.{self._advice(error)}", service="dynamodb"
            ) from error

    async def _post(
        self, operation: str, data: bytes, resource: str, timeout_s: float
    ) -> HttpAnswer:
        headers = self._signer.headers(operation, data, await self._current_credentials())
        try:
            client = await self._client()
            return await client.post(headers, data, timeout_s)
        except NoAnswerError as error:
            raise AwsUnavailableError(
                f"dynamodb {operation} on {resource}: no answer: {error}.{self._advice(error)}",
                service="dynamodb",
                operation=operation,
            ) from error

    def _advice(self, error: NoAnswerError) -> str:
        is_down = isinstance(error, NoConnectionError)
        return local_advice(self._endpoint.url) if is_down else ""

    async def _current_credentials(self) -> ReadOnlyCredentials:
        credentials = self._credentials
        if getattr(credentials, "refresh_needed", bool)():
            # Renewing them is a request of its own, which must not hold up the loop.
            loop = asyncio.get_running_loop()
            with translated("sts", "the credentials"):
                return await loop.run_in_executor(None, credentials.get_frozen_credentials)
        frozen: ReadOnlyCredentials = credentials.get_frozen_credentials()
        return frozen

    def _corrects_clock(self, answer: HttpAnswer, signed_with_s: float) -> bool:
        """Take over AWS's time where it is far from the one that was signed; whether it was.

        Of several requests in flight the first one corrects it for all, but each was refused.
        """
        dates = answer.headers.getall("Date", [])
        if not dates:
            return False
        skew_s = parsedate_to_datetime(dates[-1]).timestamp() - time.time()
        if abs(skew_s - signed_with_s) < MAX_UNSEEN_SKEW_S:
            return False
        logger.warning(
            "this machine's clock is %.0f s off AWS's; requests are signed with AWS's time", skew_s
        )
        self._signer.skew_s = skew_s
        return True

    async def _client(self) -> HttpClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            _close_ended(self._clients)
            client = HttpClient(self._endpoint, self._settings, self._tls, self._proxy, self.limit)
            self._clients[loop] = client
            await client.open()
        return client

    async def close_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections of one loop; runs on it."""
        client = self._clients.pop(loop, None)
        if client is not None:
            await client.close()

    def close(self) -> None:
        """Close all connections, of loops that run on other threads too."""
        _close_ended(self._clients)
        for loop in list(self._clients):
            asyncio.run_coroutine_threadsafe(self.close_loop(loop), loop)


_OF_PARENT: list[Any] = []
"""Of a forked child: clients that it must neither use nor close."""


def _close_ended(clients: dict[asyncio.AbstractEventLoop, HttpClient]) -> None:
    """Forget the clients of loops that are closed."""
    for loop in [loop for loop in list(clients) if loop.is_closed()]:
        client = clients.pop(loop, None)
        if client is not None:
            client.abandon()


class HttpClient:
    """The connections of one event loop to one endpoint: an aiohttp session without its extras.

    aiohttp keeps connections and frames messages. Deadlines are ours, and so are two decisions
    about a connection that is used again. A request on one that was closed while it was idle is
    sent again, which aiohttp does for no POST. One on which something came while it was idle is
    closed, where aiohttp would take that for the answer of the next request.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: TransportSettings,
        tls: ssl.SSLContext | None,
        proxy: str | None,
        limit: ConnectionLimit,
    ) -> None:
        self._settings, self._limit = settings, limit
        self._share = LoopShare(limit, asyncio.get_running_loop(), self._close_idle)
        self._authority = endpoint.authority
        self._url = URL(endpoint.url, encoded=True)
        self._proxy = None if proxy is None else URL(proxy)
        self._connector = aiohttp.TCPConnector(
            limit=settings.max_connections,
            keepalive_timeout=settings.keepalive_s,
            ssl=True if tls is None else tls,
            # Not the one that aiohttp takes where aiodns happens to be installed.
            resolver=aiohttp.ThreadedResolver(),
        )
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=NO_TIMEOUT,
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            request_class=_Request,
        )
        self._used: weakref.WeakSet[Any] = weakref.WeakSet()
        self._in_use: set[Any] = set()
        self._lifetime = self._open()

    async def open(self) -> None:
        """Have the connections closed when the loop ends.

        `asyncio.run` ends the asynchronous generators of its loop before it closes it, so that
        nothing is left open by a caller who has no other place to close it.
        """
        await self._lifetime.__anext__()

    async def _open(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            # A connection closes once all is sent, which a server that does not read prevents.
            closing = asyncio.ensure_future(self._session.close())
            await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT_S)
            self._limit.leave(self._share)

    async def post(self, headers: Mapping[str, str], body: bytes, timeout_s: float) -> HttpAnswer:
        """Send a request and wait for its answer.

        A connection that turns out to have been closed while idle is replaced; every request of
        this package may be sent twice.

        Args:
            headers: all of the request's.
            body: its body.
            timeout_s: from now to the end of the answer, at most `read_timeout_s`.

        Raises:
            NoAnswerError: no connection, a reset, a timeout, or an answer that is not HTTP.
        """
        until_s = asyncio.get_running_loop().time() + timeout_s
        while True:
            exchange = _Exchange(self._settings, self._used, self._in_use, until_s)
            try:
                with exchange:
                    await self._share.enter(exchange.waits)
                    try:
                        return await self._exchange(headers, body)
                    finally:
                        exchange.ended()
                        self._share.leave()
            except (aiohttp.ClientError, OSError) as error:
                if not (exchange.is_reused and isinstance(error, CONNECTION_LOST)):
                    # aiohttp's own messages quote the answer, which may hold feature values.
                    raise self._no_answer(error) from None

    async def _exchange(self, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
        async with self._session.post(
            self._url,
            data=_Body(body),
            headers=headers,
            proxy=self._proxy,
            allow_redirects=False,
        ) as response:
            chunks, size = [], 0
            while chunk := await response.content.readany():
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    response.close()
                    raise NoAnswerError(f"the answer has more than {MAX_BODY_BYTES:,} bytes")
            return HttpAnswer(response.status, response.headers, b"".join(chunks))

    async def warm_up(self, count: int) -> None:
        """Open connections and keep them.

        Raises:
            NoAnswerError: the endpoint cannot be reached.
        """
        count = min(count, self._settings.max_connections)
        connections = await asyncio.gather(
            *(self._connected() for _ in range(count)), return_exceptions=True
        )
        for connection in connections:
            if not isinstance(connection, BaseException):
                self._used.add(connection.protocol)
                connection.release()
                self._share.leave()
        for connection in connections:
            if isinstance(connection, BaseException):
                raise connection

    async def _connected(self) -> Connection:
        """A connection, which counts as busy."""
        request = _Request(
            "POST", self._url, proxy=self._proxy, proxy_headers={}, session=self._session
        )
        exchange = _Exchange(self._settings, self._used, self._in_use, float("inf"))
        try:
            with exchange:
                await self._share.enter(exchange.waits)
                try:
                    return await self._connector.connect(request, traces=[], timeout=NO_TIMEOUT)
                except BaseException:
                    self._share.leave()
                    raise
        except (aiohttp.ClientError, OSError) as error:
            raise self._no_answer(error) from error

    def _close_idle(self, kept: int) -> None:
        idle = [one for one in self._used if one not in self._in_use and one.is_connected()]
        for protocol in idle[: max(0, len(idle) - kept)]:
            protocol.close()

    def _no_answer(self, error: Exception) -> NoAnswerError:
        if isinstance(error, NoAnswerError):
            return error
        if isinstance(error, aiohttp.ClientConnectorError):
            # Of a certificate that is refused, the cause says why.
            why = error.__cause__ or error
            return NoConnectionError(f"no connection to {self._authority}: {why}")
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return NoAnswerError(f"the proxy answered {error.status} {error.message}")
        if isinstance(error, aiohttp.ClientResponseError):
            return NoAnswerError("the answer is not HTTP")
        lost = (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError)
        is_unwritten = isinstance(error, aiohttp.ClientOSError) and error.errno is None
        if is_unwritten or isinstance(error, lost):
            return NoAnswerError("the connection was closed before the answer's end")
        return NoAnswerError(str(error))

    async def close(self) -> None:
        """Close all connections."""
        await self._lifetime.aclose()

    def abandon(self) -> None:
        """Forget the connections of a loop that is closed."""
        # Nothing is waited for: nothing can happen on that loop any more.
        with contextlib.suppress(StopIteration):
            self._session.close().send(None)
        self._limit.leave(self._share)


class _Exchange:
    """One request on its way, and the limit of its present phase: a context manager.

    Attributes:
        is_reused: whether it got a connection that had been open before.
    """

    def __init__(
        self,
        settings: TransportSettings,
        used: weakref.WeakSet[Any],
        in_use: set[Any],
        until_s: float,
    ) -> None:
        self.is_reused = False
        self._settings = settings
        self._used, self._in_use, self._protocol = used, in_use, None
        self._waits = False
        self._until_s = until_s
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._timed_out = ""

    def __enter__(self) -> None:
        _EXCHANGE.set(self)
        self._limit(self._settings.connect_timeout_s, "connecting timed out after {:g} s")

    def waits(self) -> None:
        """Note that the request waits until it may have a connection, which is connecting too."""
        if self._waits:
            return
        self._waits = True
        self._limit(
            self._settings.connect_timeout_s,
            "no connection was free within {:g} s: all that `max_pool_connections` allows are "
            "in use (timed out)",
        )

    def ended(self) -> None:
        """Note that the connection carries the request no more."""
        self._in_use.discard(self._protocol)

    def connected(self, protocol: Any) -> None:
        """Note that the request is about to be sent on a connection.

        Raises:
            ServerDisconnectedError: something came on it while it was idle.
        """
        self.is_reused = protocol in self._used
        self._in_use.add(protocol)
        self._protocol = protocol
        if protocol.should_close:
            raise aiohttp.ServerDisconnectedError
        self._used.add(protocol)
        self._limit(self._settings.read_timeout_s, "no answer within {:g} s (timed out)")

    def _limit(self, seconds: float, message: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now_s = self._loop.time()
        limit_s = max(0.0, min(seconds, self._until_s - now_s))
        self._timer = self._loop.call_at(now_s + limit_s, self._time_out, message, limit_s)

    def _time_out(self, message: str, limit_s: float) -> None:
        self._timed_out = message.format(limit_s)
        if self._task is not None:
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._timed_out:
            return
        # The task may have been cancelled by somebody else too; that counts from Python 3.11 on.
        is_ours = self._task is None or sys.version_info < (3, 11) or not self._task.uncancel()
        if is_ours and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise NoAnswerError(self._timed_out) from None


_EXCHANGE: ContextVar[_Exchange] = ContextVar("_EXCHANGE")


class _Request(aiohttp.ClientRequest):
    """A request that says when it is sent, and on which connection."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        _EXCHANGE.get().connected(conn.protocol)
        return await super().send(conn)


class _Body(aiohttp.Payload):
    """Bytes in memory, of whatever size: aiohttp's own class warns of more than 1 MB."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._size = len(data)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: Any) -> None:
        await writer.write(self._value)


def _decoded(answer: HttpAnswer, operation: str, resource: str) -> Answer:
    request_id = answer.headers.get("x-amzn-RequestId", "")
    checksum = answer.headers.get("x-amz-crc32")
    if checksum is not None and int(checksum) != zlib.crc32(answer.body):
        raise AwsUnavailableError(
            f"dynamodb {operation} on {resource}: the answer was corrupted on its way "
            f"(x-amz-crc32 does not match; request id {request_id}).",
            service="dynamodb",
            operation=operation,
            request_id=request_id,
        )
    try:
        decoded: Answer = orjson.loads(answer.body)
    except orjson.JSONDecodeError as error:
        raise AwsUnavailableError(
            f"dynamodb {operation} on {resource}: HTTP {answer.status} with a body that is not "
            f"JSON (Content-Type: {answer.headers.get('Content-Type', 'none')}, Server: "
            f"{answer.headers.get('Server', 'none')}). Is the endpoint really DynamoDB? A proxy's "
            "login page may be in its place.",
            service="dynamodb",
            operation=operation,
            request_id=request_id,
        ) from error
    return decoded


def _refusal(answer: HttpAnswer, operation: str, resource: str) -> AwsError:
    """The error that an answer other than 200 is.

    Raises:
        AwsUnavailableError: it cannot be read.
    """
    try:
        decoded = _decoded(answer, operation, resource)
    except AwsUnavailableError:
        if answer.status != HTTP_FORBIDDEN:
            raise
        # Proxies and endpoints refuse in HTML or XML.
        decoded = {"__type": "AccessDeniedException"}
    code = str(decoded.get("__type", "Unknown")).rpartition("#")[2]
    if answer.status >= HTTP_SERVER_ERROR and code not in RETRYABLE_CODES:
        code = "InternalServerError"
    return aws_error(
        code,
        str(decoded.get("message") or decoded.get("Message") or f"HTTP {answer.status}"),
        service="dynamodb",
        operation=operation,
        resource=resource,
        request_id=answer.headers.get("x-amzn-RequestId", ""),
    )
