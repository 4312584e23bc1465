"""Feast's online store on DynamoDB: the config, and Feast's methods, which delegate to `dynamo`.

Feast finds a store through the module of its config class, so both stand here.
"""

from __future__ import annotations

import base64
import logging
import os
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from feast.infra.online_stores.helpers import compute_versioned_name
from feast.infra.online_stores.online_store import OnlineStore
from pydantic import Field, StrictBool, StrictStr, field_validator

from feast_dynamo_ext.aws import AwsConfigModel
from feast_dynamo_ext.dynamo import entity_keys, response, table
from feast_dynamo_ext.dynamo.connection import Connection, ConnectionSettings
from feast_dynamo_ext.dynamo.item import (
    Row,
    RowSchema,
    key_bytes,
    newest_per_key,
    to_item,
    to_schema_item,
)
from feast_dynamo_ext.dynamo.reader import TableKeys
from feast_dynamo_ext.dynamo.retry import RetryPolicy
from feast_dynamo_ext.dynamo.rows import (
    FeastRow,
    ReadRow,
    packed_row,
    read_row,
    schema_of_rows,
)
from feast_dynamo_ext.dynamo.wire import WireSettings
from feast_dynamo_ext.errors import AwsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from feast import Entity, FeatureView, RepoConfig
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
    from feast.protos.feast.types.Value_pb2 import Value as ValueProto

logger = logging.getLogger(__name__)


class DynamoOnlineStoreConfig(AwsConfigModel):
    """The `online_store` block of feature_store.yaml.

    Names that Feast's own DynamoDB store has mean the same here.
    """

    type: Literal["feast_dynamo_ext.DynamoOnlineStore"] = "feast_dynamo_ext.DynamoOnlineStore"
    """Selects this store."""

    table_name_template: StrictStr = "{project}.{table_name}"
    """Name of a view's table, from `{project}` and `{table_name}` (the view's name). DynamoDB
    takes 3 to 255 characters of a-z, A-Z, 0-9, `_`, `-` and `.`."""

    consistent_reads: StrictBool = False
    """Strongly consistent reads: see every finished write, at twice the read units."""

    batch_size: int = Field(default=100, ge=1, le=100)
    """Keys in one BatchGetItem request; DynamoDB takes at most 100, of all views together."""

    max_read_workers: int = Field(default=10, ge=1)
    """Requests of one read that are in flight at once."""

    max_write_workers: int = Field(default=8, ge=1)
    """Requests of one write that are in flight at once."""

    read_deadline_ms: int = Field(default=10_000, ge=1)
    """Milliseconds after which a read that is still being throttled fails, naming what is
    missing."""

    write_deadline_ms: int = Field(default=60_000, ge=1)
    """Milliseconds after which a write request that is still being throttled fails, naming the
    rows."""

    connect_timeout: int | float = Field(default=5, gt=0)
    """Seconds to wait for a connection."""

    read_timeout: int | float = Field(default=10, gt=0)
    """Seconds to wait for an answer."""

    total_max_retry_attempts: int | None = Field(default=3, ge=1)
    """Attempts of one request that fails outright (timeout, reset, 5xx), the first included; null
    for no limit but the deadline. Throttling does not count: it ends at the deadline."""

    retry_mode: Literal["legacy", "standard", "adaptive"] | None = "adaptive"
    """botocore's retry mode for calls about tables; reads and writes of rows retry by the
    deadlines above, with full jitter."""

    max_pool_connections: int = Field(default=50, ge=1)
    """Connections kept open to DynamoDB."""

    keepalive_timeout: int | float = Field(default=30.0, gt=0)
    """Seconds without a request after which open connections are not used again."""

    warmup_connections: StrictBool = False
    """Open a connection when a feature server starts, so that its first request does not wait."""

    tags: dict[str, str] | None = None
    """Tags of every table; a view's own tags win. Tags that others set are never removed."""

    session_based_auth: bool = False
    """Accepted so that a configuration moves unchanged; a session is always used here."""

    on_remove: Literal["retain", "delete"] = "retain"
    """What `feast apply` does with the table of a view that is gone: keep it and say so, or delete
    it. `feast teardown` always deletes."""

    @field_validator("table_name_template")
    @classmethod
    def _template_names_tables(cls, template: str) -> str:
        try:
            one, two = (template.format(project="p", table_name=name) for name in ("a", "b"))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"may hold only {{project}} and {{table_name}}: {error}") from error
        if one == two:
            raise ValueError("must contain {table_name}, or all views would share one table")
        return template

    def connection(self) -> ConnectionSettings:
        """How to reach DynamoDB, as a value."""
        return ConnectionSettings(
            aws=self.aws(),
            wire=WireSettings(
                connect_timeout_s=self.connect_timeout,
                read_timeout_s=self.read_timeout,
                max_connections=self.max_pool_connections,
                keepalive_s=self.keepalive_timeout,
            ),
            read_policy=RetryPolicy(
                self.read_deadline_ms / 1_000, max_failures=self.total_max_retry_attempts
            ),
            write_policy=RetryPolicy(
                self.write_deadline_ms / 1_000, max_failures=self.total_max_retry_attempts
            ),
            batch_size=self.batch_size,
            read_workers=self.max_read_workers,
            write_workers=self.max_write_workers,
            retry_mode=self.retry_mode,
        )


class DynamoOnlineStore(OnlineStore):
    """Features in DynamoDB, one packed item per row, all views of a request read together."""

    # Without it Feast imports every store it ships on the first request, and refuses versions.
    _versioned_read_supported = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: tuple[int, Connection] | None = None

    # Tables

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],  # noqa: ARG002 - Feast's interface
        entities_to_keep: Sequence[Entity],  # noqa: ARG002 - Feast's interface
        partial: bool,  # noqa: ARG002 - Feast's interface
    ) -> None:
        """Create the tables of new views; keep or delete those of views that are gone.

        Raises:
            TableLayoutError: a table of that name is not in this store's layout.
            AwsError: AWS refused.
        """
        connection = self._connection(config)
        for view in tables_to_keep:
            tags = {**(config.online_store.tags or {}), **(view.tags or {})}
            spec = table.TableSpec(table_name(config, view), view.name, tags)
            if table.ensure_table(connection.client, spec):
                connection.schemas.forget(spec.name)
        for view in tables_to_delete:
            name = table_name(config, view)
            if config.online_store.on_remove == "delete":
                table.delete_table(connection.client, name)
                connection.schemas.forget(name)
            else:
                logger.warning(
                    "feature view %s is gone; its table %s is kept (on_remove: retain)",
                    view.name,
                    name,
                )

    def teardown(
        self,
        config: RepoConfig,
        tables: Sequence[FeatureView],
        entities: Sequence[Entity],  # noqa: ARG002 - Feast's interface
    ) -> None:
        """Delete the tables of the given views."""
        connection = self._connection(config)
        for view in tables:
            name = table_name(config, view)
            table.delete_table(connection.client, name)
            connection.schemas.forget(name)

    # Writes

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows; of several rows with one key in `data` the newest is written.

        Raises:
            EntityKeyError: a key over 2,048 bytes, or null.
            ItemTooLargeError: a row over 400 KB. Nothing of `data` is written then.
            IncompleteWriteError: rows left unwritten at the deadline, named.
        """
        schema = schema_of_rows(table, data)
        rows = (packed_row(table.name, schema, row) for row in data)
        self.write_rows(config, table, schema, rows, progress)

    def write_rows(
        self,
        config: RepoConfig,
        view: FeatureView,
        schema: RowSchema,
        rows: Iterable[Row],
        progress: Callable[[int], Any] | None = None,
    ) -> int:
        """Write packed rows, the newest per key; returns how many.

        Raises: as `online_write_batch`.
        """
        connection = self._connection(config)
        name = table_name(config, view)
        ttl_s = ttl_seconds(view)
        items = [to_item(row, schema, ttl_s, view.name) for row in newest_per_key(rows)]
        if (name, schema.fingerprint_text) not in connection.schemas.written:
            # Before the first row, so that no reader ever meets a fingerprint nothing explains.
            connection.writer.write(name, [to_schema_item(schema)])
            connection.schemas.written.add((name, schema.fingerprint_text))
        connection.writer.write(name, items, progress)
        return len(items)

    # Reads

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """Event time and values of each entity key, or (None, None) where there is no row.

        Raises:
            IncompleteReadError: keys left unread at the deadline.
        """
        keys = tuple(_text(key_bytes(key, table.name)) for key in entity_keys)
        requested = requested_features or [field.name for field in table.features]
        view = self._view_read(config, table, requested, keys)
        found = self._read(config, [view])[view.table]
        book = self._connection(config).schemas
        return [
            read_row(view, stored)
            for stored in response.read_items(view, found, book, time.time())
        ]

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: dict[str, list[ValueProto]],
        entity_name_to_join_key_map: dict[str, str],  # noqa: ARG002 - Feast's interface
        online_features_response: Any,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        """Read all views of a request together and append them to the response."""
        count = max(map(len, join_key_values.values()), default=0)
        cache: dict[tuple[tuple[str, str], ...], tuple[str | None, ...]] = {}
        views = []
        for view, requested in grouped_refs:
            columns = entity_keys.request_columns(view)
            if columns not in cache:
                cache[columns] = entity_keys.keys_of_request(view, join_key_values, count)
            views.append(self._view_read(config, view, requested, cache[columns]))
        found = self._read(config, views)
        book = self._connection(config).schemas
        now_s = time.time()
        for (view, requested), read in zip(grouped_refs, views, strict=True):
            prefix = f"{view_name(view)}__" if full_feature_names else ""
            names = [prefix + name for name in requested]
            rows = response.read_items(read, found[read.table], book, now_s)
            response.add_view(online_features_response, rows, names)
            if include_feature_view_version_metadata:
                response.add_version(online_features_response, view)

    def _view_read(
        self,
        config: RepoConfig,
        view: FeatureView,
        requested: Sequence[str],
        keys: tuple[str | None, ...],
    ) -> response.ViewRead:
        schema = self._connection(config).schemas.schema_of(view)
        return response.ViewRead(table_name(config, view), schema, tuple(requested), keys)

    def _read(
        self, config: RepoConfig, views: Sequence[response.ViewRead]
    ) -> dict[str, dict[str, Any]]:
        connection = self._connection(config)
        for view in views:
            connection.schemas.learn(view.table, view.schema)
        wanted: dict[str, dict[str, None]] = {}
        for view in views:
            keys = wanted.setdefault(view.table, {})
            keys.update((key, None) for key in view.rows if key is not None)
        found = connection.reader.read(
            [
                TableKeys(name, tuple(keys), config.online_store.consistent_reads)
                for name, keys in wanted.items()
            ]
        )
        connection.schemas.fetch_missing(found, connection.reader)
        return found

    # Connection

    async def initialize(self, config: RepoConfig) -> None:
        """Called when a feature server starts."""
        connection = self._connection(config)
        if config.online_store.warmup_connections:
            try:
                connection.wire.call("DescribeLimits", {}, "this account")
            except AwsError as error:
                # A slow first request is no reason not to serve.
                logger.warning("no connection could be warmed up: %s", error)

    async def close(self) -> None:
        """Called when a feature server stops."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened[1].close()

    def _connection(self, config: RepoConfig) -> Connection:
        # A forked worker must not share its parent's sockets.
        opened = self._opened
        if opened is not None and opened[0] == os.getpid():
            return opened[1]
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                connection = Connection.open(config.online_store.connection())
                self._opened = (os.getpid(), connection)
            return self._opened[1]


def table_name(config: RepoConfig, view: Any) -> str:
    """The name of a view's table; a version of a view has a table of its own."""
    versioned = config.registry.enable_online_feature_view_versioning
    name: str = config.online_store.table_name_template.format(
        project=config.project, table_name=compute_versioned_name(view, versioned)
    )
    return name


def view_name(view: Any) -> str:
    """The name under which a request knows a view: its alias, with its version if it has one."""
    name: str = view.projection.name_to_use()
    return name


def ttl_seconds(view: Any) -> int | None:
    """A view's ttl in whole seconds, rounded up; None where it has none (or a zero one)."""
    ttl: timedelta | None = getattr(view, "ttl", None)
    return -(-ttl // timedelta(seconds=1)) if ttl else None


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()
