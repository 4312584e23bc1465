"""DynamoDB's JSON protocol over a signed, kept-alive connection.

botocore resolves credentials and endpoint and signs (its SigV4Auth); its shape-driven parser,
which costs more client CPU than the network, is left out: the answer is decoded with orjson.
Figures in docs/design.md, D6.
"""

from __future__ import annotations

import threading
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.httpsession import get_cert_path

from feast_dynamo_ext.aws import aws_error, no_credentials
from feast_dynamo_ext.errors import AwsUnavailableError

if TYPE_CHECKING:
    import boto3

Answer = dict[str, Any]

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


@dataclass(frozen=True)
class WireSettings:
    """How the connection behaves. Times in seconds."""

    connect_timeout_s: float
    read_timeout_s: float
    max_connections: int
    keepalive_s: float


class DynamoWire:
    """Sends one operation and gives back its decoded answer. Safe to share between threads."""

    def __init__(self, session: boto3.Session, endpoint: str, settings: WireSettings) -> None:
        credentials = session.get_credentials()
        if credentials is None:
            raise no_credentials("dynamodb", endpoint)
        self._credentials = credentials
        self._region = session.region_name
        self._url = endpoint.rstrip("/") + "/"
        self._keepalive_s = settings.keepalive_s
        self._last_used = time.monotonic()
        self._lock = threading.Lock()
        core = session._session
        self._pool = urllib3.PoolManager(
            num_pools=1,
            maxsize=settings.max_connections,
            timeout=urllib3.Timeout(
                connect=settings.connect_timeout_s, read=settings.read_timeout_s
            ),
            retries=False,
            cert_reqs="CERT_REQUIRED",
            ca_certs=core.get_config_variable("ca_bundle") or get_cert_path(True),
        )

    def call(self, operation: str, body: Any, resource: str) -> Answer:
        """Send one request.

        Args:
            operation: API operation, for example ``BatchGetItem``.
            body: its input, as the JSON protocol has it.
            resource: what it is about, for errors: the tables' names.

        Raises:
            AwsUnavailableError: no usable answer came (timeout, reset, corrupted body, 5xx).
            ThrottledError: AWS asked to slow down.
            AwsError: AWS refused the request; see the subclasses.
        """
        data = orjson.dumps(body)
        try:
            answer = self._pool_in_use().urlopen(
                "POST", self._url, body=data, headers=self._signed(operation, data)
            )
        except urllib3.exceptions.HTTPError as error:
            raise AwsUnavailableError(
                f"dynamodb {operation} on {resource}: no answer: {error}.",
                service="dynamodb",
                operation=operation,
            ) from error
        return _decoded(answer, operation, resource)

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    def _pool_in_use(self) -> urllib3.PoolManager:
        now = time.monotonic()
        with self._lock:
            idle, self._last_used = now - self._last_used, now
            if idle > self._keepalive_s:
                self._pool.clear()
        return self._pool

    def _signed(self, operation: str, data: bytes) -> dict[str, str]:
        request = AWSRequest(
            method="POST",
            url=self._url,
            data=data,
            headers={
                "Content-Type": "application/x-amz-json-1.0",
                "X-Amz-Target": f"DynamoDB_20120810.{operation}",
            },
        )
        frozen = self._credentials.get_frozen_credentials()
        SigV4Auth(frozen, "dynamodb", self._region).add_auth(request)
        return dict(request.headers)


def _decoded(answer: urllib3.BaseHTTPResponse, operation: str, resource: str) -> Answer:
    request_id = answer.headers.get("x-amzn-RequestId", "")
    checksum = answer.headers.get("x-amz-crc32")
    if checksum is not None and int(checksum) != zlib.crc32(answer.data):
        raise AwsUnavailableError(
            f"dynamodb {operation} on {resource}: the answer was corrupted on its way "
            f"(x-amz-crc32 does not match; request id {request_id}).",
            service="dynamodb",
            operation=operation,
            request_id=request_id,
        )
    try:
        decoded: Answer = orjson.loads(answer.data)
    except orjson.JSONDecodeError as error:
        raise AwsUnavailableError(
            f"dynamodb {operation} on {resource}: HTTP {answer.status} with a body that is not "
            f"JSON (request id {request_id}). Is the endpoint really DynamoDB?",
            service="dynamodb",
            operation=operation,
            request_id=request_id,
        ) from error
    if answer.status == 200:  # noqa: PLR2004 - HTTP's OK
        return decoded
    code = str(decoded.get("__type", "Unknown")).rpartition("#")[2]
    if answer.status >= 500 and code not in RETRYABLE_CODES:  # noqa: PLR2004 - HTTP's 5xx
        code = "InternalServerError"
    raise aws_error(
        code,
        str(decoded.get("message") or decoded.get("Message") or f"HTTP {answer.status}"),
        service="dynamodb",
        operation=operation,
        resource=resource,
        request_id=request_id,
    )
