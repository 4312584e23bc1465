"""The headers of a signed request: Signature Version 4 for the one kind of request we send.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html

botocore resolves and renews the credentials; its SigV4Auth, made for any request of any service,
takes 390 us a request where this takes 30. It is the oracle of the tests.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from feast_dynamo_ext import __version__
from feast_dynamo_ext.aws import normal_path

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials

SERVICE = "dynamodb"
TARGET = "DynamoDB_20120810"
CONTENT_TYPE = "application/x-amz-json-1.0"
USER_AGENT = f"feast-dynamo-ext/{__version__}"
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Endpoint:
    """Where requests go.

    Attributes:
        scheme: ``http`` or ``https``.
        authority: the Host header: host, and port where it is not the scheme's own.
        path: path of every request, encoded.
    """

    scheme: str
    authority: str
    path: str

    @property
    def url(self) -> str:
        """Where every request is sent, encoded."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @classmethod
    def from_url(cls, url: str) -> Endpoint:
        """The endpoint of a URL."""
        parts = urlsplit(url)
        host, default = parts.hostname or "", DEFAULT_PORTS[parts.scheme]
        named = f"[{host}]" if ":" in host else host
        port = parts.port or default
        return cls(
            parts.scheme,
            named if port == default else f"{named}:{port}",
            quote(normal_path(parts.path or "/"), safe="/~"),
        )


@dataclass
class Signer:
    """Signs requests to one endpoint. Safe to share between threads.

    Attributes:
        endpoint: where they go.
        region: AWS region name.
        skew_s: seconds that AWS's clock is ahead of this machine's, once AWS said so.
    """

    endpoint: Endpoint
    region: str
    skew_s: float = 0.0
    # The key of a day: four HMACs of six a request.
    _key: tuple[tuple[str, str], bytes] = field(default=(("", ""), b""), repr=False)

    def headers(
        self, operation: str, body: bytes, credentials: ReadOnlyCredentials
    ) -> dict[str, str]:
        """All headers of a request, to be sent as they are."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + self.skew_s))
        scope = f"{stamp[:8]}/{self.region}/{SERVICE}/aws4_request"
        target, authority, token = (
            f"{TARGET}.{operation}",
            self.endpoint.authority,
            credentials.token,
        )
        headers = {
            "Host": authority,
            "Content-Type": CONTENT_TYPE,
            "Content-Length": str(len(body)),
            "User-Agent": USER_AGENT,
            "Accept-Encoding": "identity",
            "X-Amz-Date": stamp,
            "X-Amz-Target": target,
        }
        names = "content-type;host;x-amz-date;"
        signed = f"content-type:{CONTENT_TYPE}\nhost:{authority}\nx-amz-date:{stamp}\n"
        if token:
            headers["X-Amz-Security-Token"] = token
            names += "x-amz-security-token;"
            signed += f"x-amz-security-token:{token}\n"
        names += "x-amz-target"
        signed += f"x-amz-target:{target}\n"
        canonical = f"POST\n{self.endpoint.path}\n\n{signed}\n{names}\n{_sha256(body)}"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{_sha256(canonical.encode())}"
        key = self._key_of(credentials.secret_key, stamp[:8])
        signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}"
        )
        return headers

    def _key_of(self, secret: str, day: str) -> bytes:
        held, key = self._key
        if held != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self.region, SERVICE, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            # One assignment: another thread sees the old pair or the new one.
            self._key = ((secret, day), key)
        return key


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
