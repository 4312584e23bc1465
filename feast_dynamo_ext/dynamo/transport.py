"""DynamoDB's JSON protocol over signed, kept-alive connections.

botocore resolves credentials, region and endpoint; its shape-driven parser, which costs more
client CPU than the network, is left out: the answer is decoded with orjson. Figures in
docs/design.md, D6.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
import zlib
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import orjson

from feast_dynamo_ext.aws import aws_error, ca_bundle, https_proxy, no_credentials, translated
from feast_dynamo_ext.dynamo.http import HttpAnswer, NoAnswerError
from feast_dynamo_ext.dynamo.http_pool import HttpPool, HttpSettings
from feast_dynamo_ext.dynamo.signing import Endpoint, Signer
from feast_dynamo_ext.errors import AwsError, AwsUnavailableError

if TYPE_CHECKING:
    import boto3
    from botocore.credentials import ReadOnlyCredentials


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


@dataclass(frozen=True)
class TransportSettings:
    """How the connection behaves. Times in seconds."""

    connect_timeout_s: float
    read_timeout_s: float
    max_connections: int
    keepalive_s: float


class DynamoTransport:
    """Sends one operation and gives back its decoded answer.

    Safe to share between threads and event loops; each loop has connections of its own.
    """

    def __init__(self, session: boto3.Session, endpoint: str, settings: TransportSettings) -> None:
        with translated("dynamodb", endpoint):
            self._credentials: Any = session.get_credentials()
        if self._credentials is None:
            raise no_credentials("dynamodb", endpoint)
        self._endpoint = Endpoint.from_url(endpoint)
        self._signer = Signer(self._endpoint, session.region_name)
        self._settings = _http_settings(session, endpoint, settings)
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, HttpPool] = WeakKeyDictionary()

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
            await self._pool().warm_up(count)
        except NoAnswerError as error:
            raise AwsUnavailableError(f"dynamodb: {error}.", service="dynamodb") from error

    async def _post(
        self, operation: str, data: bytes, resource: str, timeout_s: float
    ) -> HttpAnswer:
        head = self._signer.head(operation, data, await self._current_credentials())
        try:
            return await self._pool().post(head + data, timeout_s)
        except NoAnswerError as error:
            raise AwsUnavailableError(
                f"dynamodb {operation} on {resource}: no answer: {error}.",
                service="dynamodb",
                operation=operation,
            ) from error

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
        theirs = answer.headers.get(b"date")
        if theirs is None:
            return False
        skew_s = parsedate_to_datetime(theirs.decode()).timestamp() - time.time()
        if abs(skew_s - signed_with_s) < MAX_UNSEEN_SKEW_S:
            return False
        logger.warning(
            "this machine's clock is %.0f s off AWS's; requests are signed with AWS's time", skew_s
        )
        self._signer.skew_s = skew_s
        return True

    def _pool(self) -> HttpPool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            pool = self._pools[loop] = HttpPool(self._endpoint, self._settings)
        return pool

    def close_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections of one loop; called on its thread."""
        pool = self._pools.pop(loop, None)
        if pool is not None:
            pool.close()

    def close(self) -> None:
        """Close all connections, of loops that run on other threads too."""
        for loop, pool in list(self._pools.items()):
            if not loop.is_closed():
                loop.call_soon_threadsafe(pool.close)
        self._pools.clear()


def _http_settings(
    session: boto3.Session, endpoint: str, settings: TransportSettings
) -> HttpSettings:
    is_tls = urlsplit(endpoint).scheme == "https"
    return HttpSettings(
        connect_timeout_s=settings.connect_timeout_s,
        read_timeout_s=settings.read_timeout_s,
        max_connections=settings.max_connections,
        keepalive_s=settings.keepalive_s,
        proxy=https_proxy(endpoint) if is_tls else None,
        tls=ssl.create_default_context(cafile=ca_bundle(session)) if is_tls else None,
    )


def _decoded(answer: HttpAnswer, operation: str, resource: str) -> Answer:
    request_id = answer.headers.get(b"x-amzn-requestid", b"").decode("latin-1")
    checksum = answer.headers.get(b"x-amz-crc32")
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
            f"JSON (request id {request_id}). Is the endpoint really DynamoDB?",
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
        request_id=answer.headers.get(b"x-amzn-requestid", b"").decode("latin-1"),
    )
