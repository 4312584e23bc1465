"""What a bulk load is given, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from feast_dynamo_ext.dynamo.tables.wait import WAIT
from feast_dynamo_ext.materialize.bulk.files import MB
from feast_dynamo_ext.materialize.bulk.follow import POLL

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from feast_dynamo_ext.dynamo.item import RowSchema
    from feast_dynamo_ext.dynamo.tables.clients import TableClients
    from feast_dynamo_ext.dynamo.tables.state import Skipped, TableSpec
    from feast_dynamo_ext.dynamo.tables.wait import Wait
    from feast_dynamo_ext.materialize.bulk.follow import Poll

LoadWay = Literal["import", "bulk-put"]


class Items(Protocol):
    """Gives a view's items: DynamoDB JSON, the newest row of each key, in random key order."""

    def __call__(self) -> Iterator[pa.LargeBinaryArray]:
        """The items, in batches, from the first one on."""


@dataclass(frozen=True)
class BulkSettings:
    """How to load.

    Attributes:
        output: ``s3://bucket/prefix`` that takes the files.
        way: ``import`` (the table is not there yet), ``bulk-put`` (it is), or ``auto``.
        file_bytes: compressed bytes of a file.
        max_write_units: write units a second that a bulk put may take, 1,024 or more.
        replace_empty: delete a table without rows first, so that it can be imported.
        keep_files: leave the files where they are once they are loaded.
    """

    output: str
    way: Literal["auto", "import", "bulk-put"] = "auto"
    file_bytes: int = 100 * MB
    max_write_units: int | None = None
    replace_empty: bool = False
    keep_files: bool = False


@dataclass(frozen=True)
class Target:
    """What is loaded.

    Attributes:
        spec: the view's table, as `feast apply` would make it.
        schema: what its rows' values stand for.
        newest_wins: whether a row may replace only older ones.
        may_create: whether this package makes tables (`manage_tables: create`).
    """

    spec: TableSpec
    schema: RowSchema
    newest_wins: bool = True
    may_create: bool = True


@dataclass(frozen=True)
class BulkAws:
    """Clients, and how patient to be.

    Attributes:
        tables: DynamoDB's client, and those that table settings need.
        s3: boto3's client of S3.
        poll: how often to ask how far DynamoDB is.
        wait: how to wait for a table's settings.
    """

    tables: TableClients
    s3: Any
    poll: Poll = POLL
    wait: Wait = WAIT


@dataclass(frozen=True)
class BulkResult:
    """What was loaded.

    Attributes:
        view: the feature view.
        table: its table.
        way: how.
        arn: the import or bulk operation.
        folder: URI of the run's folder.
        rows: rows in the files.
        files: how many files.
        raw_bytes: their bytes before compression.
        gzip_bytes: their bytes on S3.
        seconds: what it took.
        files_kept: whether they are still there.
        skipped: settings that the table is left without, and why.
    """

    view: str
    table: str
    way: LoadWay
    arn: str
    folder: str
    rows: int
    files: int
    raw_bytes: int
    gzip_bytes: int
    seconds: float
    files_kept: bool
    skipped: tuple[Skipped, ...] = field(default=())
