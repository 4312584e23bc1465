"""The fields of the `online_store` block of feature_store.yaml, each with what it means.

`docs/reference/configuration.md` is generated from them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, StrictBool, StrictStr, field_validator

from feast_dynamo_ext.config import AwsConfigModel
from feast_dynamo_ext.dynamo.client import ConnectionSettings
from feast_dynamo_ext.dynamo.retry import RetryPolicy
from feast_dynamo_ext.dynamo.transport import TransportSettings
from feast_dynamo_ext.view_settings import TableSettings


class TableConfig(AwsConfigModel):
    """The fields of the `online_store` block that are about tables."""

    manage_tables: Literal["create", "verify", "never"] = "create"
    """What `feast apply` does about tables: `create` and change them to what is set here, `verify`
    that each is there and as set, or `never` look. Rows are never written into a table of another
    project or view."""

    on_remove: Literal["retain", "delete"] = "retain"
    """What `feast apply` does with the table of a view that is gone. `feast teardown` always
    deletes."""

    tags: dict[str, str] | None = None
    """Tags of every table; a view's own tags win. Tags that others set are never removed."""

    table: TableSettings | None = None
    """Settings of every table; a view's own (`ViewSettings`) win."""

    @field_validator("table", mode="before")
    @classmethod
    def _table_says_where_it_stands(cls, value: Any) -> Any:
        if value is None or isinstance(value, TableSettings):
            return value
        return TableSettings.model_validate(value, context={"subject": "`online_store.table`"})

    @field_validator("table")
    @classmethod
    def _table_is_complete(cls, value: TableSettings | None) -> TableSettings | None:
        if value is not None:
            value.refuse_incomplete("`online_store.table`")
        return value


class OnlineSettings(TableConfig):
    """Fields of the `online_store` block: names, reads, writes and connections."""

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

    write_mode: Literal["newest_wins", "overwrite"] = "newest_wins"
    """Whether a row replaces only an older one of its key, by event time, then created time, or
    whatever is there (cheaper for a first load into an empty table). A view's own setting wins."""

    newest_wins_with: Literal["auto", "partiql", "put_item"] = "auto"
    """How `newest_wins` writes: 25 rows a request with PartiQL, or one with a conditional PutItem.
    `auto` takes PartiQL, and PutItem where PartiQL is refused."""

    max_future: int | float | None = Field(default=86_400, ge=0)
    """Seconds by which an event time may be ahead of this machine's clock. A row from further
    ahead would win against all rows to come: a push with one is refused, a view with one is not
    materialized. Null for no limit, for feeds of forecasts."""

    on_partial: Literal["error", "mark"] = "error"
    """What a read answers when keys are left unread at the deadline: an error that names views and
    counts, or null values with the status INVALID."""

    expired: Literal["status", "value"] = "status"
    """What a row older than its view's ttl answers: null with the status OUTSIDE_MAX_AGE, or its
    value with that status. With `value`, materialize writes such rows too, and DynamoDB deletes no
    row that is written from then on."""

    hedge_after_ms: int | None = Field(default=None, ge=1)
    """Milliseconds after which the slowest request of a read is sent once more; the first answer
    wins. Near the 99th percentile of your reads, one read in a hundred pays for one request more.
    Default: never."""

    read_deadline_ms: int = Field(default=10_000, ge=1)
    """Milliseconds that a call may read, all its requests together. What is missing then is
    named."""

    max_rows_per_request: int | None = Field(default=100_000, ge=1)
    """Rows that one request for features may have; more are refused before anything is read. Set
    it lower where others send requests to a feature server; null for no limit."""

    write_deadline_ms: int = Field(default=60_000, ge=1)
    """Milliseconds after which a write request that is still being throttled fails, naming the
    rows."""

    connect_timeout: int | float = Field(default=5, gt=0)
    """Seconds to wait for a connection, TLS and a proxy's tunnel included."""

    read_timeout: int | float = Field(default=10, gt=0)
    """Seconds to wait for an answer."""

    total_max_retry_attempts: int | None = Field(default=3, ge=1)
    """Attempts of one request that fails outright (timeout, reset, 5xx), the first included; null
    for no limit but the deadline. Throttling does not count: it ends at the deadline."""

    retry_mode: Literal["legacy", "standard", "adaptive"] | None = "adaptive"
    """botocore's retry mode for calls about tables; those about rows retry by the deadlines."""

    max_pool_connections: int = Field(default=50, ge=1)
    """Connections to DynamoDB that a process has open at once, of all its threads and event loops;
    further requests wait for one."""

    keepalive_timeout: int | float = Field(default=30.0, gt=0)
    """Seconds without a request after which open connections are not used again."""

    warmup_connections: StrictBool = True
    """Open connections when a feature server starts, so that its first requests do not wait."""

    session_based_auth: bool = False
    """Accepted so that a configuration moves unchanged; a session is always used here."""

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
            transport=TransportSettings(
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
            hedge_after_s=self.hedge_after_ms / 1_000 if self.hedge_after_ms else None,
            retry_mode=self.retry_mode,
        )
