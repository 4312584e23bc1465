"""One view's rows, by way of files on S3, into its table.

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
from typing import TYPE_CHECKING

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.dynamo.item import KEY, to_schema_item
from feast_dynamo_ext.dynamo.tables.table import delete_table
from feast_dynamo_ext.errors import BulkLoadError, ConfigError, FeastDynamoError
from feast_dynamo_ext.materialize.bulk.bulk_put import BulkPut, bulk_put_request
from feast_dynamo_ext.materialize.bulk.empty import require_empty
from feast_dynamo_ext.materialize.bulk.files import Folder, Written, delete_files, write_files
from feast_dynamo_ext.materialize.bulk.follow import follow
from feast_dynamo_ext.materialize.bulk.import_table import Import, finish
from feast_dynamo_ext.materialize.bulk.probe import probe
from feast_dynamo_ext.materialize.bulk.progress import NoProgress
from feast_dynamo_ext.materialize.bulk.records import line, newest_wins_lines, plain_lines
from feast_dynamo_ext.materialize.bulk.values import (
    BulkAws,
    BulkResult,
    BulkSettings,
    Items,
    LoadWay,
    Target,
)
from feast_dynamo_ext.materialize.bulk.way import choose_way

if TYPE_CHECKING:
    from feast_dynamo_ext.dynamo.tables.state import Skipped
    from feast_dynamo_ext.materialize.bulk.follow import Operation, Status
    from feast_dynamo_ext.materialize.bulk.progress import Progress

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
        progress: is told how far it is.

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
    way = choose_way(aws.tables, target, settings)
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
