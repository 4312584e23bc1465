"""A first load of views: their newest rows as files on S3, which DynamoDB imports into new tables.

``<output>/<view>/<run id>/files/`` holds the files of one run alone, so that what a broken run
has left is never read.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from botocore.config import Config

from feast_dynamo_ext import aws
from feast_dynamo_ext.cost.estimate import Cost, Recommendation, Sizes, load_costs, recommend
from feast_dynamo_ext.dynamo.encoding.requests import EncodedRows
from feast_dynamo_ext.dynamo.layouts.packed import KEY, RESERVED_PREFIX, RowSchema, to_schema_item
from feast_dynamo_ext.dynamo.layouts.series import to_series_schema_item
from feast_dynamo_ext.dynamo.precomputed.vectors import precomputed_services
from feast_dynamo_ext.dynamo.tables.apply import table_spec
from feast_dynamo_ext.dynamo.tables.describe import WAIT, TableClients, describe
from feast_dynamo_ext.dynamo.tables.layout import check_layout
from feast_dynamo_ext.dynamo.tables.table import delete_table
from feast_dynamo_ext.errors import (
    AlreadyRunningError,
    BulkLoadError,
    ConfigError,
    FeastDynamoError,
)
from feast_dynamo_ext.figures import count
from feast_dynamo_ext.materialize.bulk_import.files import (
    MB,
    Folder,
    Written,
    delete_files,
    row_lines,
    schema_line,
    write_files,
)
from feast_dynamo_ext.materialize.bulk_import.import_table import POLL, Import, finish, follow
from feast_dynamo_ext.materialize.engine import DynamoComputeEngine
from feast_dynamo_ext.materialize.lease import LeaseSettings, is_gone
from feast_dynamo_ext.materialize.newest_rows import Window
from feast_dynamo_ext.offline_store import S3ParquetOfflineStoreConfig
from feast_dynamo_ext.online_store import DynamoOnlineStoreConfig, write_method
from feast_dynamo_ext.progress import Task
from feast_dynamo_ext.view_settings import series_of

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore

    from feast_dynamo_ext.dynamo.tables.describe import Skipped, TableSpec, Wait
    from feast_dynamo_ext.materialize.bulk_import.import_table import Status
    from feast_dynamo_ext.materialize.newest_rows import ViewReading
    from feast_dynamo_ext.polling import Poll


logger = logging.getLogger(__name__)


class Items(Protocol):
    """Gives a view's items: DynamoDB JSON, the newest row of each key, in random key order."""

    def __call__(self) -> Iterator[pa.LargeBinaryArray]:
        """The items, in batches, from the first one on."""


class LoadProgress:
    """How far the load of a view is: rows in files as a task, and texts for a person.

    Args:
        view: name of the feature view.
        say: takes each text: DynamoDB's status when it changes, what a person should know.
    """

    logger = logger
    overview = ""

    def __init__(self, view: str, say: Callable[[str], object] = logger.info) -> None:
        self._view, self._say = view, say
        self._items = self._raw_bytes = 0
        self._is_writing = False

    @property
    def tasks(self) -> list[Task]:
        """Writing the files, while that lasts."""
        text = f"{count(self._items)} items, {self._raw_bytes / 1e9:,.1f} GB written to files"
        return [Task(self._view, text)] if self._is_writing else []

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[int, int], None]]:
        """Count items, and their bytes before compression, as they are written to files."""
        self._is_writing = True
        try:
            yield self._on_written
        finally:
            self._is_writing = False

    def say(self, text: str) -> None:
        """Hand a text on."""
        self._say(f"{self._view}: {text}")

    def _on_written(self, items: int, raw_bytes: int) -> None:
        self._items += items
        self._raw_bytes += raw_bytes


@dataclass(frozen=True)
class BulkSettings:
    """What a load does.

    Attributes:
        output: ``s3://bucket/prefix`` that takes the files.
        file_bytes: compressed bytes of a file.
        replace_empty: delete a table without rows first, so that it can be imported.
        keep_files: leave the files where they are once they are loaded.
    """

    output: str
    file_bytes: int = 100 * MB
    replace_empty: bool = False
    keep_files: bool = False


@dataclass(frozen=True)
class Target:
    """What is loaded.

    Attributes:
        spec: the view's table, as `feast apply` would make it.
        schema: what its rows' values stand for.
        newest_wins: whether the other methods of loading let a row replace only older rows.
        may_create: whether this package makes tables (`manage_tables: create`).
    """

    spec: TableSpec
    schema: RowSchema
    newest_wins: bool = True
    may_create: bool = True


@dataclass(frozen=True)
class BulkAws:
    """Clients, and the intervals of waiting.

    Attributes:
        tables: DynamoDB's client, and those that table settings need.
        s3: boto3's client of S3.
        poll: how often to poll an import.
        wait: of a table's settings.
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
        arn: the import.
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

    DynamoDB's own item count is six hours old, so the table is scanned.

    Raises:
        ConfigError: it holds a row.
        AlreadyRunningError: a run is about to write some.
        AwsError: AWS refused.
    """
    with aws.translated("dynamodb", f"table {spec.name}"):
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
                    "replaced. Load into it with `feast materialize`."
                )
    if not is_gone(client, spec.name, LeaseSettings(), is_series=spec.is_series):
        raise AlreadyRunningError(
            f"Feature view `{spec.view}` is being materialized into table {spec.name}, so it is "
            "not replaced. Wait for that run."
        )


def require_importable(tables: TableClients, target: Target, *, replace_empty: bool) -> None:
    """Refuse a table that an import cannot make.

    Args:
        tables: DynamoDB's client.
        target: the table.
        replace_empty: whether a table without rows may be deleted for it.

    Raises:
        ConfigError: the table is there, or is made elsewhere.
        AlreadyRunningError: a run is about to write rows.
        TableLayoutError: another program's table is in the way.
        AwsError: AWS refused.
    """
    name = f"table {target.spec.name} (feature view `{target.spec.view}`)"
    if table_exists(tables, target):
        if not replace_empty:
            raise ConfigError(
                f"An import makes a new table, but {name} is there. If it holds no "
                "rows, as after `feast apply`, --replace-empty deletes it first; else load with "
                "`feast materialize`."
            )
        require_empty(tables.dynamodb, target.spec)
    if not target.may_create:
        raise ConfigError(
            f"An import would make {name}, but `manage_tables` in feature_store.yaml "
            "says that tables are made elsewhere. Set it to `create`, or make the table and load "
            "with `feast materialize`."
        )


def table_exists(tables: TableClients, target: Target) -> bool:
    """Whether the table is there.

    Raises:
        TableLayoutError: it is another program's.
        AwsError: AWS refused.
    """
    with aws.translated("dynamodb", f"table {target.spec.name}"):
        described = describe(tables.dynamodb, target.spec.name)
    if described is not None:
        check_layout(target.spec, described)
    return described is not None


def load(
    clients: BulkAws,
    target: Target,
    items: Items,
    settings: BulkSettings,
    progress: LoadProgress | None = None,
) -> BulkResult:
    """Load a view's rows.

    Args:
        clients: of AWS.
        target: table and schema.
        items: gives the items.
        settings: what to do.
        progress: how far it is.

    Raises:
        ConfigError: the table is there, or settings that cannot be.
        TableLayoutError: another program's table is in the way.
        TableProtectedError: the empty table may not be deleted.
        BulkLoadError: DynamoDB did not load all of it.
        AwsError: AWS refused.
    """
    started = time.monotonic()
    run = _Run(clients, target, settings, progress or LoadProgress(target.spec.view))
    require_importable(clients.tables, target, replace_empty=settings.replace_empty)
    written = run.write(items)
    status = run.loaded(written)
    skipped = run.finished()
    kept = settings.keep_files or not run.deleted_files()
    return BulkResult(
        view=target.spec.view,
        table=target.spec.name,
        arn=status.arn,
        folder=run.folder.uri,
        rows=written.items - 1,  # that of the schema
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
        self, clients: BulkAws, target: Target, settings: BulkSettings, progress: LoadProgress
    ) -> None:
        self._clients, self._target, self._settings = clients, target, settings
        self._progress = progress
        now = dt.datetime.now(tz=dt.timezone.utc)
        self.id = f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        self.folder = Folder.parse(settings.output).inside(target.spec.view, self.id)
        self._files = self.folder.inside("files")

    def write(self, items: Items) -> Written:
        """Write the files."""
        batches = (batch for batch in items() if len(batch))
        first = next(batches, None)
        if first is None:
            raise BulkLoadError(
                f"Feature view `{self._target.spec.view}` has no row in this window that is not "
                "past its ttl: there is nothing to load."
            )
        is_series = self._target.spec.is_series
        schema_item = to_series_schema_item if is_series else to_schema_item
        schema = schema_line(schema_item(self._target.schema))
        lines = itertools.chain([schema], map(row_lines, itertools.chain([first], batches)))
        s3, file_bytes = self._clients.s3, self._settings.file_bytes
        with self._progress.writing() as on_written:
            return write_files(s3, self._files, lines, file_bytes, on_written)

    def loaded(self, written: Written) -> Status:
        """Have the files imported, and wait for it."""
        operation = self._import()
        logger.info("%s: %s", operation.name, self.folder.uri)
        return follow(operation, written.items, self._progress.say, self._clients.poll)

    def deleted_files(self) -> bool:
        """Delete what is not needed any more; whether that could be done."""
        try:
            delete_files(self._clients.s3, self.folder)
        except FeastDynamoError as error:
            # Every row is loaded: what is left costs cents, and is said.
            self._progress.say(f"the files are still in {self.folder.uri}: {error}")
            return False
        return True

    def finished(self) -> tuple[Skipped, ...]:
        """Give an imported table its settings."""
        try:
            return finish(self._clients.tables, self._target.spec, self._clients.wait)
        except FeastDynamoError:
            self._progress.say(
                f"All rows are in table {self._target.spec.name}, but not all of its settings are "
                "made: TTL and tags come last. Mend what follows, set `ttl: true` under "
                "`online_store.table`, and run `feast apply`; there is no need to load again."
            )
            raise

    def _import(self) -> Import:
        spec, tables = self._target.spec, self._clients.tables
        if self._settings.replace_empty:
            # Once more: writing the files may have taken hours.
            require_empty(tables.dynamodb, spec)
            refused = delete_table(tables, spec, self._clients.wait)
            if refused is not None:
                raise ConfigError(f"Table {spec.name} is not deleted for the import: {refused}.")
        return Import.start(tables.dynamodb, spec, self._files, self.id)


def newest_rows(
    store: FeatureStore, view: Any, start: dt.datetime, end: dt.datetime
) -> Iterator[EncodedRows]:
    """The newest row of each key, those past their ttl left out, by key bucket.

    All rows are encoded, onto a local disk, before the first one is given.

    Args:
        store: the feature store.
        view: a feature view whose rows go into its table as they are.
        start: first event time.
        end: last event time.

    Raises:
        ConfigError: another engine materializes the repo.
        OfflineStoreError: the source cannot be read.
        EntityKeyError: a row without key, or with one that DynamoDB cannot hold.
        ItemTooLargeError: a row over DynamoDB's 400 KB an item.
    """
    reading = _reading(store, view, start, end)
    with reading.spooled(None, frozenset(), _unheard, lambda _rows: None) as spool:
        for bucket in spool.todo:
            # Nothing is in a new table that deletions of a captured table could end.
            yield from (rows for rows in spool.blocks(bucket) if isinstance(rows, EncodedRows))


def counted_rows(
    store: FeatureStore, view: Any, start: dt.datetime, end: dt.datetime
) -> Iterator[EncodedRows]:
    """The same rows in the order of the files, without going over a disk.

    Raises: as `newest_rows`.
    """
    yield from _reading(store, view, start, end).rows(_unheard)


def _reading(store: FeatureStore, view: Any, start: dt.datetime, end: dt.datetime) -> ViewReading:
    engine: Any = getattr(store.provider, "batch_engine", None)
    if not isinstance(engine, DynamoComputeEngine):
        raise ConfigError(
            "Another engine materializes this repo. In feature_store.yaml, set `provider: "
            "feast_dynamo_ext.DynamoProvider` and no other engine's `type` in batch_engine."
        )
    return engine.reading(view, Window(start, end))


def _unheard(_newest: object) -> None:
    """Takes counts that are not needed."""


RowsOf = Callable[["FeatureStore", Any, "dt.datetime", "dt.datetime"], Iterator[EncodedRows]]
"""Gives the rows of a view in a window: the newest of each key, in random key order."""

# Many requests of hours, some of which meet throttling: botocore sends these again.
PATIENT = Config(retries={"mode": "standard", "total_max_attempts": 5}, max_pool_connections=10)


@dataclass(frozen=True)
class Comparison:
    """What loading one view costs.

    Attributes:
        view: name of the feature view.
        table: its table.
        exists: whether the table is there.
        sizes: what is to be loaded.
        costs: of each method.
        recommendation: which to take, and why.
    """

    view: str
    table: str
    exists: bool
    sizes: Sizes
    costs: tuple[Cost, ...]
    recommendation: Recommendation


class BulkLoader:
    """Loads and compares views of one feature store. A context manager: it closes its clients.

    Args:
        store: the feature store; its online store must be DynamoOnlineStore.
        rows_of: where rows come from.
        poll: how often to poll an import.

    Raises:
        ConfigError: the online store is another.
    """

    def __init__(
        self, store: FeatureStore, rows_of: RowsOf = newest_rows, poll: Poll = POLL
    ) -> None:
        config = store.config
        if not isinstance(config.online_store, DynamoOnlineStoreConfig):
            raise ConfigError(
                f"The online store of this repo is `{config.online_store.type}`. Set `type: "
                "feast_dynamo_ext.DynamoOnlineStore` in online_store of feature_store.yaml."
            )
        self._store, self._rows_of = store, rows_of
        settings = config.online_store.aws()
        self._dynamodb = aws.client("dynamodb", settings, config=PATIENT)
        self._tables = TableClients(self._dynamodb, settings)
        self._s3 = aws.client("s3", _s3_settings(config), config=PATIENT)
        self._aws = BulkAws(self._tables, self._s3, poll)

    def __enter__(self) -> BulkLoader:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.ExitStack() as stack:
            for client in (self._dynamodb, self._s3, self._tables):
                stack.callback(client.close)

    def target(self, view: Any) -> Target:
        """What is loaded of a view.

        Raises:
            ConfigError: a view that cannot be bulk loaded, or settings that cannot be.
        """
        self._refuse(view)
        config = self._store.config
        return Target(
            table_spec(config, view),
            RowSchema.from_view(view),
            newest_wins=write_method(config, view) != "overwrite",
            may_create=config.online_store.manage_tables == "create",
        )

    def load(
        self,
        view: Any,
        start: dt.datetime,
        end: dt.datetime,
        settings: BulkSettings,
        progress: LoadProgress | None = None,
    ) -> BulkResult:
        """Load the newest rows of a window, and record it in the registry.

        Raises: as `load`, and as `newest_rows`.
        """
        target = self.target(view)
        result = load(
            self._aws,
            target,
            lambda: (rows.item_json() for rows in self._rows_of(self._store, view, start, end)),
            settings,
            progress,
        )
        # So that an incremental materialization goes on from there.
        self._store.registry.apply_materialization(view, self._store.project, start, end)
        return result

    def compare(self, view: Any, start: dt.datetime, end: dt.datetime) -> Comparison:
        """What each method would cost for a view; reads its rows, writes nothing.

        Raises: as `newest_rows`.
        """
        target = self.target(view)
        sizes = Sizes.from_batches(
            rows.sizes() for rows in counted_rows(self._store, view, start, end)
        )
        costs = load_costs(sizes, newest_wins=target.newest_wins)
        exists = table_exists(self._tables, target)
        advice = recommend(costs, table_exists=exists)
        return Comparison(view.name, target.spec.name, exists, sizes, costs, advice)

    def _refuse(self, view: Any) -> None:
        if _is_transformed(view):
            raise ConfigError(
                f"Feature view `{view.name}` is transformed on its way into the table, which "
                "`feast materialize` does and a bulk load does not."
            )
        series = series_of(view)
        if series is not None and series.orders:
            raise ConfigError(
                f"Feature view `{view.name}` has `orders`, which are local indexes, and an import "
                "makes a table without any. Use `feast materialize`, or leave `orders` out."
            )
        services = precomputed_services(self._store.registry, self._store.project, view=view.name)
        if services:
            raise ConfigError(
                f"Feature view `{view.name}` is part of the precomputed services "
                f"{sorted(services)}, whose vectors a bulk load would leave as they are. Use "
                "`feast materialize`, or load before you set `precompute_online`."
            )


def _is_transformed(view: Any) -> bool:
    return (
        bool(getattr(view, "source_views", None))
        or getattr(view, "feature_transformation", None) is not None
        or bool(getattr(view, "aggregations", None))
        or getattr(view, "batch_source", None) is None
    )


def _s3_settings(config: Any) -> aws.AwsSettings:
    if isinstance(config.offline_store, S3ParquetOfflineStoreConfig):
        return config.offline_store.aws()
    online = config.online_store.aws()
    # That block's endpoint is DynamoDB's.
    return aws.AwsSettings(online.region, None, online.profile, online.role_arn)
