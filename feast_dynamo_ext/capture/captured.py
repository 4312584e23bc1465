"""A declared source, ready to be captured: its table, its history, what makes rows of records."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.capture.apply_checks import (
    IMAGES,
    about_stream,
    captured_columns,
    make_history,
)
from feast_dynamo_ext.capture.dynamo_table import dynamodb_client
from feast_dynamo_ext.capture.exports.export_files import DataStream
from feast_dynamo_ext.capture.exports.export_rows import DataFile as Conversion
from feast_dynamo_ext.capture.exports.missing_items import MissingItems
from feast_dynamo_ext.capture.exports.sync import Capture, CaptureProgress
from feast_dynamo_ext.capture.history import CapturedHistory
from feast_dynamo_ext.capture.stream.online_changes import OnlineChanges, dynamo_store
from feast_dynamo_ext.capture.stream.online_events import event_columns
from feast_dynamo_ext.capture.stream.stream_leases import (
    ShardLeases,
    lease_table,
    make_lease_table,
)
from feast_dynamo_ext.capture.stream.stream_records import (
    WITH_NEW_IMAGES,
    converted,
    stream_records,
)
from feast_dynamo_ext.capture.stream.stream_shards import stream_arn, table_identity
from feast_dynamo_ext.capture.stream.stream_worker import StreamWorker
from feast_dynamo_ext.capture.values.change_rows import RecordReader, as_of
from feast_dynamo_ext.errors import CaptureError, SourceNotFoundError
from feast_dynamo_ext.materialize.lease import LeaseSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from feast import FeatureStore, RepoConfig

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.capture.dynamo_table import DynamoTable
    from feast_dynamo_ext.capture.exports.export_files import DataFile, Export
    from feast_dynamo_ext.capture.stream.stream_worker import StreamSettings
    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource
    from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns
    from feast_dynamo_ext.capture.values.change_rows import Converted


logger = logging.getLogger(__name__)


def capture_of(source: DynamoDBTableSource, table: DynamoTable, config: RepoConfig) -> Capture:
    """What captures a source; its history table is made where there is none.

    Args:
        source: the declaration.
        table: as DynamoDB describes it.
        config: the repo's config.

    Raises:
        CaptureError: the source has no schema.
        ConfigError: a declaration that contradicts the table.
        OfflineStoreError: the catalog refuses.
    """
    columns, history = history_of(source, table, config)
    settings = config.offline_store.aws()

    def missing(export: Export) -> MissingItems:
        spill_folder = config.offline_store.spill_folder
        moment = as_of(export.end)
        return MissingItems(history.handle, history.quarantine, columns, moment, spill_folder)

    return Capture(
        history,
        table,
        _Rows(columns, settings),
        settings,
        missing,
        columns.projection,
        progress=CaptureProgress(source.name),
    )


def history_of(
    source: DynamoDBTableSource, table: DynamoTable, config: RepoConfig
) -> tuple[CapturedColumns, CapturedHistory]:
    """The columns of a source, and its history table, made, or evolved, to have them.

    Raises:
        CaptureError: the history is of another key than the table.
        And as `capture_of`.
    """
    columns = columns_of(source, table)
    history = CapturedHistory.from_source(source, config)
    try:
        history.check_key(columns.keys, table.keys)
        history.evolve(columns.history_schema)
    except SourceNotFoundError:
        make_history(source, columns.history_schema, columns.keys, config)
    return columns, history


def worker_of(
    source: DynamoDBTableSource,
    table: DynamoTable,
    store: FeatureStore,
    settings: StreamSettings,
    lease_s: float = LeaseSettings.lease_s,
) -> StreamWorker:
    """What follows the stream of a source's table; history and leases are made where missing.

    Args:
        source: the declaration.
        table: as DynamoDB describes it.
        store: the feature store: views over the source that are online get its changes.
        settings: how the stream is followed.
        lease_s: seconds without a sign of life after which others take a worker's shards.

    Raises:
        CaptureError: the table has no stream that shows what items become.
        ConfigError, OfflineStoreError: as `capture_of`.
        AwsError: AWS refuses.
    """
    config: Any = store.config
    subject = f"DynamoDBTableSource `{source.name}`"
    if table.stream not in WITH_NEW_IMAGES:
        raise CaptureError(f"{subject}: {about_stream(table)}")
    if table.stream != IMAGES:
        logger.warning("%s: %s", subject, about_stream(table))
    columns, history = history_of(source, table, config)
    reader = RecordReader(with_event_columns(columns, source, store))
    client = dynamodb_client(config)
    leases = ShardLeases(client, lease_table(config), source.name, LeaseSettings(lease_s=lease_s))
    make_lease_table(client, leases.table)
    # Where the online store is another, the history alone takes changes.
    online = OnlineChanges.from_store(store, source) if dynamo_store(store) else None

    def convert(records: Sequence[Mapping[str, Any]], shard: str) -> Converted:
        return converted(reader, stream_records(records, shard))

    def write_online(made: Converted) -> None:
        if online is not None:
            online.apply(made.rows).checked()

    return StreamWorker(
        history,
        dynamodb_client(config, "dynamodbstreams"),
        lambda: stream_arn(client, table.name),
        convert,
        write_online,
        leases,
        settings,
        table=lambda: table_identity(client, table.name),
    )


def with_event_columns(
    columns: CapturedColumns, source: DynamoDBTableSource, store: FeatureStore
) -> CapturedColumns:
    """The columns of a source, and which of them tell events of the registry's series apart.

    Raises:
        OfflineStoreError, AwsError: see `series_in`.
    """
    views = [
        view
        for view in store.list_all_feature_views()
        if getattr(view, "batch_source", None) == source
    ]
    known = {each.name for each in columns.columns} - {*columns.keys, columns.event_time}
    found = event_columns(store.config, views) & known
    return replace(columns, event_columns=found)


def columns_of(source: DynamoDBTableSource, table: DynamoTable) -> CapturedColumns:
    """The columns that a source's items fill.

    Raises:
        CaptureError: the source has no schema, or the TTL attribute may not be seen.
        ConfigError: a declaration that contradicts the table.
    """
    subject = f"DynamoDBTableSource `{source.name}`"
    if not source.schema:
        raise CaptureError(
            f"{subject} has no `schema`. `feast-dynamo capture infer {source.name}` reads items "
            "of the table, and writes one."
        )
    if table.expiry is None:
        raise CaptureError(
            f"{subject}: the TTL attribute of table {table.name} may not be seen, by which an "
            "expiry is known from a deletion. Allow `dynamodb:DescribeTimeToLive`."
        )
    return captured_columns(source, table)


@dataclass(frozen=True)
class _Rows:
    """Makes rows of a data file of an export; see `Capture.convert`."""

    columns: CapturedColumns
    settings: AwsSettings

    def __call__(self, export: Export, file: DataFile) -> Iterator[Converted]:
        stream: Any = DataStream(file, self.settings)
        at = as_of(export.end) if export.is_full else None
        with stream:
            return (
                yield from Conversion(
                    stream,
                    self.columns,
                    file.uri,
                    exported_at=at,
                    md5=file.md5,
                    records=file.items,
                ).batches()
            )
