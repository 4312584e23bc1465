"""One view's rows, by way of files on S3, into its table.

A bulk put that ignored them would replace newer rows by older ones, and nobody could tell. No
emulator has bulk puts, so what this package writes is tried on the table itself: on a key that no
reader asks for, with a condition that no item meets.

``<output>/<view>/<run id>/`` holds what belongs to this run alone, so that what a broken run has
left is never read: ``files/``, which DynamoDB loads, ``output/``, its report of a bulk put, and
``probe/``, see `probe.py`.
"""

from __future__ import annotations

import base64
import datetime as dt
import itertools
import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.dynamo.layouts.packed import KEY, RESERVED_PREFIX, to_schema_item
from feast_dynamo_ext.dynamo.tables.describe import WAIT, describe
from feast_dynamo_ext.dynamo.tables.diff import check_layout
from feast_dynamo_ext.dynamo.tables.table import delete_table
from feast_dynamo_ext.errors import (
    AlreadyRunningError,
    BulkLoadError,
    ConfigError,
    FeastDynamoError,
)
from feast_dynamo_ext.materialize.bulk_import.bulk_put import (
    BulkPut,
    bulk_put_request,
    require_support,
)
from feast_dynamo_ext.materialize.bulk_import.files import (
    MB,
    NEVER_HOLDS,
    Folder,
    NoProgress,
    Written,
    delete_files,
    line,
    newest_wins_lines,
    plain_lines,
    write_files,
)
from feast_dynamo_ext.materialize.bulk_import.import_table import POLL, Import, finish, follow
from feast_dynamo_ext.materialize.lease import LeaseSettings, is_gone

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from feast_dynamo_ext.dynamo.layouts.packed import RowSchema
    from feast_dynamo_ext.dynamo.tables.describe import Skipped, TableClients, TableSpec, Wait
    from feast_dynamo_ext.materialize.bulk_import.files import Progress
    from feast_dynamo_ext.materialize.bulk_import.import_table import Operation, Poll, Status


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


def require_empty(client: Any, spec: TableSpec) -> None:
    """Refuse a table with rows; items of this package's own (schemas, leases) are none.

    DynamoDB's own item count is six hours old, so the table is asked.

    Raises:
        ConfigError: it holds a row.
        AlreadyRunningError: a run is about to write some.
        AwsError: AWS refused.
    """
    with translated("dynamodb", f"table {spec.name}"):
        if describe(client, spec.name) is None:
            return
        pages = client.get_paginator("scan").paginate(
            TableName=spec.name,
            ConsistentRead=True,
            ProjectionExpression="#k",
            ExpressionAttributeNames={"#k": KEY},
        )
        for page in pages:
            if any(not item[KEY]["B"].startswith(RESERVED_PREFIX) for item in page["Items"]):
                raise ConfigError(
                    f"Table {spec.name} (feature view `{spec.view}`) holds rows, so it is not "
                    "replaced. Load into it with --way bulk-put."
                )
    if not is_gone(client, spec.name, LeaseSettings()):
        raise AlreadyRunningError(
            f"Feature view `{spec.view}` is being materialized into table {spec.name}, so it is "
            "not replaced. Wait for that run, or load with --way bulk-put."
        )


def choose_load(tables: TableClients, target: Target, settings: BulkSettings) -> LoadWay:
    """How to load: an import makes a table, a bulk put needs one.

    Raises:
        ConfigError: the way that was asked for does not fit the table.
        DependencyError: a bulk put, and botocore is too old.
        TableLayoutError: another program's table is in the way.
        AwsError: AWS refused.
    """
    exists = table_exists(tables, target)
    if exists and settings.replace_empty and settings.way != "bulk-put":
        require_empty(tables.dynamodb, target.spec)
        _require_may_create(target)
        return "import"
    if settings.way == "import" or (settings.way == "auto" and not exists):
        if exists:
            raise ConfigError(
                f"An import makes a new table, but {_table(target)} is there. If it holds no "
                "rows, as after `feast apply`, --replace-empty deletes it first; else load with "
                "--way bulk-put."
            )
        _require_may_create(target)
        return "import"
    if not exists:
        raise ConfigError(
            f"A bulk put needs a table, but {_table(target)} is not there. Run `feast apply` "
            "first, or load with --way import, which makes it."
        )
    require_support(tables.dynamodb)
    return "bulk-put"


def table_exists(tables: TableClients, target: Target) -> bool:
    """Whether the table is there.

    Raises:
        TableLayoutError: it is another program's.
        AwsError: AWS refused.
    """
    with translated("dynamodb", f"table {target.spec.name}"):
        described = describe(tables.dynamodb, target.spec.name)
    if described is not None:
        check_layout(target.spec, described)
    return described is not None


def _require_may_create(target: Target) -> None:
    if not target.may_create:
        raise ConfigError(
            f"An import would make {_table(target)}, but `manage_tables` in feature_store.yaml "
            "says that tables are made elsewhere. Set it to `create`, or make the table and load "
            "with --way bulk-put."
        )


def _table(target: Target) -> str:
    return f"table {target.spec.name} (feature view `{target.spec.view}`)"


KEY_PREFIX = RESERVED_PREFIX + b"bulk-probe:"
CONDITION = {"ConditionExpression": NEVER_HOLDS, "ExpressionAttributeNames": {"#k": KEY}}


def probe(
    client: Any,
    s3: Any,
    spec: TableSpec,
    folder: Folder,
    run: str,
    progress: Progress,
    poll: Poll = POLL,
) -> None:
    """Try a bulk put of one item that must not be written.

    Args:
        client: boto3's client of DynamoDB.
        s3: boto3's client of S3.
        spec: the table.
        folder: a folder of this probe's own.
        run: the run's id.
        progress: called with the operation's status, and to cancel it when a person gives up.
        poll: how often to ask.

    Raises:
        BulkLoadError: the condition was ignored, or the line refused; no row has been loaded.
        AwsError: AWS refused.
    """
    key = KEY_PREFIX + run.encode()
    files, output = folder.inside("files"), folder.inside("output")
    item = {KEY: {"B": base64.b64encode(key).decode()}}
    written = write_files(s3, files, [line(item, CONDITION)], 1, NoProgress())
    request = bulk_put_request(spec.name, files, output, f"{run}-probe")
    operation = BulkPut.start(client, s3, spec, request, output)
    try:
        follow(operation, written.items, progress, poll)
    except BulkLoadError as error:
        raise BulkLoadError(
            "Before any row was loaded, DynamoDB did not take the line by which this package sees "
            f"whether conditions are heeded: {error}. {INSTEAD}",
            arn=operation.arn,
        ) from error
    if _was_written(client, spec, key):
        raise BulkLoadError(
            f"Table {spec.name} (feature view `{spec.view}`): a bulk put wrote an item whose "
            "condition does not hold, so older rows could replace newer ones. Nothing was loaded. "
            f"{INSTEAD}",
            arn=operation.arn,
        )


INSTEAD = (
    "Load with `feast materialize`; or, into a table that holds no newer rows, with `write_mode: "
    "overwrite`."
)


def _was_written(client: Any, spec: TableSpec, key: bytes) -> bool:
    found = {"TableName": spec.name, "Key": {KEY: {"B": key}}}
    with translated("dynamodb", f"table {spec.name}"):
        if "Item" not in client.get_item(**found, ConsistentRead=True):
            return False
        client.delete_item(**found)
    return True


logger = logging.getLogger(__name__)


def load(
    aws: BulkAws,
    target: Target,
    items: Items,
    settings: BulkSettings,
    progress: Progress | None = None,
) -> BulkResult:
    """Load a view's rows.

    Args:
        aws: clients.
        target: table and schema.
        items: gives the items.
        settings: how to load.
        progress: called with how far it is.

    Raises:
        ConfigError: the way does not fit the table, or settings that cannot be.
        DependencyError: a bulk put, and botocore is too old.
        TableLayoutError: another program's table is in the way.
        TableProtectedError: the empty table may not be deleted.
        BulkLoadError: DynamoDB did not load all of it.
        AwsError: AWS refused.
    """
    started = time.monotonic()
    run = _Run(aws, target, settings, progress or NoProgress())
    way = choose_load(aws.tables, target, settings)
    if way == "bulk-put" and target.newest_wins:
        run.probe()
    written = run.write(items, way)
    status = run.loaded(way, written)
    skipped = run.finished() if way == "import" else ()
    kept = settings.keep_files or not run.deleted_files()
    return BulkResult(
        view=target.spec.view,
        table=target.spec.name,
        way=way,
        arn=status.arn,
        folder=run.folder.uri,
        rows=written.items - (way == "import"),
        files=written.files,
        raw_bytes=written.raw_bytes,
        gzip_bytes=written.gzip_bytes,
        seconds=time.monotonic() - started,
        files_kept=kept,
        skipped=skipped,
    )


class _Run:
    """One load: its id, folder and steps."""

    def __init__(
        self, aws: BulkAws, target: Target, settings: BulkSettings, progress: Progress
    ) -> None:
        self._aws, self._target, self._settings = aws, target, settings
        self._progress = progress
        now = dt.datetime.now(tz=dt.timezone.utc)
        self.id = f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        self.folder = Folder.parse(settings.output).inside(target.spec.view, self.id)
        self._files = self.folder.inside("files")
        self._output = self.folder.inside("output")
        # Refuses settings that cannot be before anything is written.
        self._request = bulk_put_request(
            target.spec.name, self._files, self._output, self.id, settings.max_write_units
        )

    def probe(self) -> None:
        """See whether conditions are heeded."""
        self._progress.status("seeing on one item whether DynamoDB heeds conditions")
        spec, aws = self._target.spec, self._aws
        folder = self.folder.inside("probe")
        probe(aws.tables.dynamodb, aws.s3, spec, folder, self.id, self._progress, aws.poll)

    def write(self, items: Items, way: LoadWay) -> Written:
        """Write the files."""
        batches = (batch for batch in items() if len(batch))
        first = next(batches, None)
        if first is None:
            raise BulkLoadError(
                f"Feature view `{self._target.spec.view}` has no row in this window that is not "
                "past its ttl: there is nothing to load."
            )
        conditional = way == "bulk-put" and self._target.newest_wins
        to_lines = newest_wins_lines if conditional else plain_lines
        lines = map(to_lines, itertools.chain([first], batches))
        # A table that is there gets its schema's item before its first row; a new one, with them.
        schemas = [line(to_schema_item(self._target.schema))] if way == "import" else []
        return write_files(
            self._aws.s3,
            self._files,
            itertools.chain(schemas, lines),
            self._settings.file_bytes,
            self._progress,
        )

    def loaded(self, way: LoadWay, written: Written) -> Status:
        """Have the files loaded, and wait for it."""
        if way == "bulk-put":
            self._put_schema()
        operation = self._import() if way == "import" else self._bulk_put()
        logger.info("%s: %s", operation.name, self.folder.uri)
        return follow(operation, written.items, self._progress, self._aws.poll)

    def _put_schema(self) -> None:
        spec, dynamodb = self._target.spec, self._aws.tables.dynamodb
        item = to_schema_item(self._target.schema)
        key = {KEY: {"B": base64.b64decode(item[KEY]["B"])}}
        with translated("dynamodb", f"table {spec.name}"):
            dynamodb.put_item(TableName=spec.name, Item={**item, **key})

    def deleted_files(self) -> bool:
        """Delete what is not needed any more; whether that could be done."""
        try:
            delete_files(self._aws.s3, self.folder)
        except FeastDynamoError as error:
            # Every row is loaded: what is left costs cents, and is said.
            self._progress.note(f"the files are still in {self.folder.uri}: {error}")
            return False
        return True

    def finished(self) -> tuple[Skipped, ...]:
        """Give an imported table its settings."""
        try:
            return finish(self._aws.tables, self._target.spec, self._aws.wait)
        except FeastDynamoError:
            self._progress.note(
                f"All rows are in table {self._target.spec.name}, but not all of its settings are "
                "made: TTL and tags come last. Mend what follows, set `ttl: true` under "
                "`online_store.table`, and run `feast apply`; there is no need to load again."
            )
            raise

    def _import(self) -> Operation:
        spec, tables = self._target.spec, self._aws.tables
        if self._settings.replace_empty:
            # Once more: writing the files may have taken hours.
            require_empty(tables.dynamodb, spec)
            refused = delete_table(tables, spec, self._aws.wait)
            if refused is not None:
                raise ConfigError(f"Table {spec.name} is not deleted for the import: {refused}.")
        return Import.start(tables.dynamodb, spec, self._files, self.id)

    def _bulk_put(self) -> Operation:
        return BulkPut.start(
            self._aws.tables.dynamodb, self._aws.s3, self._target.spec, self._request, self._output
        )
