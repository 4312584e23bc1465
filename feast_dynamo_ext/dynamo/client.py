"""One store's way to DynamoDB: connection, reader, writer and what they share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from botocore.config import Config

from feast_dynamo_ext import aws
from feast_dynamo_ext.dynamo.batch_get import Reader
from feast_dynamo_ext.dynamo.event_loops import Loops, off_loop
from feast_dynamo_ext.dynamo.retry import RetryBudget, ServingLimiter
from feast_dynamo_ext.dynamo.schemas import SchemaCache
from feast_dynamo_ext.dynamo.transport import DynamoTransport, TransportSettings
from feast_dynamo_ext.dynamo.views import KnownViews, ReadTables, WrittenTables
from feast_dynamo_ext.dynamo.write import Writer

if TYPE_CHECKING:
    from feast import RepoConfig

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.dynamo.retry import RetryPolicy


@dataclass(frozen=True)
class ConnectionSettings:
    """How a store talks to DynamoDB. Times in seconds."""

    aws: AwsSettings
    transport: TransportSettings
    read_policy: RetryPolicy
    write_policy: RetryPolicy
    batch_size: int
    read_workers: int
    write_workers: int
    hedge_after_s: float | None
    retry_mode: str | None


@dataclass(frozen=True)
class Connection:
    """What reads, writes and tables of one store go through. Safe to share between threads.

    Attributes:
        client: boto3's client, for calls about tables.
        transport: for reads and writes, on event loops.
        loops: runs reads and writes for callers without an event loop.
        reader: reads items.
        writer: writes items.
        schemas: what items' values stand for.
        views: what is known of feature views.
        written: whose the tables are that rows are written into.
        answered: whose the tables are that rows are read from.
    """

    client: Any
    transport: DynamoTransport
    loops: Loops
    reader: Reader
    writer: Writer
    schemas: SchemaCache = field(default_factory=SchemaCache)
    views: KnownViews = field(default_factory=KnownViews)
    written: WrittenTables = field(default_factory=WrittenTables)
    answered: ReadTables = field(default_factory=ReadTables)

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
        transport = DynamoTransport(session, client.meta.endpoint_url, settings.transport)
        budget, most = RetryBudget(), settings.transport.max_connections
        return cls(
            client,
            transport,
            Loops(
                transport.close_loop,
                transport.limit,
                keepalive_s=settings.transport.keepalive_s,
                wait_s=settings.transport.connect_timeout_s,
            ),
            Reader(
                transport,
                replace(settings.read_policy, budget=budget, limiter=ServingLimiter(most)),
                settings.batch_size,
                settings.read_workers,
                settings.hedge_after_s,
            ),
            Writer(
                transport,
                replace(settings.write_policy, budget=budget, limiter=ServingLimiter(most)),
                settings.write_workers,
            ),
        )

    def forget(self, table: str) -> None:
        """Forget what was seen of a table that may be new or gone."""
        self.schemas.forget(table)
        self.written.forget(table)

    async def refuse_anothers(self, config: RepoConfig, view: Any) -> None:
        """See `WrittenTables.refuse_anothers`; a caller's event loop is not held up."""
        if self.written.is_unknown(config, view):
            await off_loop(self.written.refuse_anothers, self.client, config, view)

    def close(self) -> None:
        """Close all connections that no event loop of a caller holds."""
        self.loops.close()
        self.transport.close()
        self.client.close()

    async def close_async(self) -> None:
        """Close all connections, those of the running event loop included."""
        await self.transport.close_loop(asyncio.get_running_loop())
        # Other loops are run once more to close, which takes a thread that runs none. Meanwhile
        # this one closes its connections.
        await asyncio.to_thread(self.close)


def _client_config(settings: ConnectionSettings) -> Config:
    retries: dict[str, Any] = {}
    if settings.retry_mode is not None:
        retries["mode"] = settings.retry_mode
    if settings.read_policy.max_failures is not None:
        retries["total_max_attempts"] = settings.read_policy.max_failures
    return Config(
        connect_timeout=settings.transport.connect_timeout_s,
        read_timeout=settings.transport.read_timeout_s,
        max_pool_connections=settings.transport.max_connections,
        retries=retries or None,
    )
