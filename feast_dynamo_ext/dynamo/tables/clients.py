"""The AWS clients that tables need: DynamoDB's, and those of KMS and Application Auto Scaling."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from feast_dynamo_ext import aws

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast_dynamo_ext.aws import AwsSettings

AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")


class TableClients:
    """Clients by service, built when first asked for. Safe to share between threads.

    Args:
        dynamodb: DynamoDB's client.
        settings: how to reach AWS, for clients that are built here.
        given: other clients by service id, to be used instead of new ones.
    """

    def __init__(
        self, dynamodb: Any, settings: AwsSettings, given: Mapping[str, Any] | None = None
    ) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._given = {"dynamodb": dynamodb, **(given or {})}
        self._built: dict[str, Any] = {}

    def of(self, service: str) -> Any:
        """The client of a service."""
        if service in self._given:
            return self._given[service]
        with self._lock:
            if service not in self._built:
                self._built[service] = self._build(service)
            return self._built[service]

    @property
    def dynamodb(self) -> Any:
        """DynamoDB's client."""
        return self._given["dynamodb"]

    def close(self) -> None:
        """Close the clients that were built here."""
        for client in self._built.values():
            client.close()

    def _build(self, service: str) -> Any:
        # `endpoint_url` of the block is DynamoDB's. An emulator, though, is asked for everything:
        # what it refuses must not end up in somebody's real account.
        session = aws.session(self._settings)
        elsewhere = dataclasses.replace(self._settings, endpoint_url=None)
        found = aws.endpoint_url(service, elsewhere, session)
        if found is None and not _is_aws(self.dynamodb.meta.endpoint_url):
            found = self.dynamodb.meta.endpoint_url
        return aws.client(
            service, dataclasses.replace(elsewhere, endpoint_url=found), given=session
        )


def _is_aws(url: str) -> bool:
    return (urlparse(url).hostname or "").endswith(AWS_DOMAINS)
