"""One store's way to DynamoDB: connection, reader, writer and what they share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.config import Config

from feast_dynamo_ext import aws
from feast_dynamo_ext.dynamo.reader import Reader
from feast_dynamo_ext.dynamo.schemas import SchemaBook
from feast_dynamo_ext.dynamo.wire import DynamoWire, WireSettings
from feast_dynamo_ext.dynamo.writer import Writer

if TYPE_CHECKING:
    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.dynamo.retry import RetryPolicy


@dataclass(frozen=True)
class ConnectionSettings:
    """How a store talks to DynamoDB. Times in seconds."""

    aws: AwsSettings
    wire: WireSettings
    read_policy: RetryPolicy
    write_policy: RetryPolicy
    batch_size: int
    read_workers: int
    write_workers: int
    retry_mode: str | None


@dataclass(frozen=True)
class Connection:
    """What reads, writes and tables of one store go through. Safe to share between threads."""

    client: Any
    wire: DynamoWire
    reader: Reader
    writer: Writer
    executors: tuple[ThreadPoolExecutor, ...]
    schemas: SchemaBook = field(default_factory=SchemaBook)

    @classmethod
    def open(cls, settings: ConnectionSettings) -> Connection:
        """Resolve credentials and endpoint; no request is sent yet.

        Raises:
            ConfigError: no region, or no such profile.
            CredentialsError: no credentials.
        """
        session = aws.session(settings.aws)
        client = aws.client(
            "dynamodb", settings.aws, config=_client_config(settings), given=session
        )
        wire = DynamoWire(session, client.meta.endpoint_url, settings.wire)
        reads = ThreadPoolExecutor(settings.read_workers, "feast-dynamo-read")
        writes = ThreadPoolExecutor(settings.write_workers, "feast-dynamo-write")
        return cls(
            client,
            wire,
            Reader(wire, settings.read_policy, reads, settings.batch_size),
            Writer(wire, settings.write_policy, writes),
            (reads, writes),
        )

    def close(self) -> None:
        """Finish what is in flight and close all connections."""
        for executor in self.executors:
            executor.shutdown()
        self.wire.close()
        self.client.close()


def _client_config(settings: ConnectionSettings) -> Config:
    retries: dict[str, Any] = {}
    if settings.retry_mode is not None:
        retries["mode"] = settings.retry_mode
    if settings.read_policy.max_failures is not None:
        retries["total_max_attempts"] = settings.read_policy.max_failures
    return Config(
        connect_timeout=settings.wire.connect_timeout_s,
        read_timeout=settings.wire.read_timeout_s,
        max_pool_connections=settings.wire.max_connections,
        retries=retries or None,
    )
