"""Where Feast puts what is no feature view's history, as Iceberg tables: logs and saved datasets.

Feast has such classes for files alone. Both say their table by an `IcebergSource`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast.feature_logging import LoggingDestination
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.protos.feast.core.FeatureService_pb2 import LoggingConfig as LoggingConfigProto
from feast.saved_dataset import SavedDatasetStorage

from feast_dynamo_ext._feast import custom_storage_proto
from feast_dynamo_ext.errors import (
    ColumnTypeError,
    DestinationExistsError,
    SourceNotFoundError,
)
from feast_dynamo_ext.parquet.iceberg.catalog import (
    EVENT_TIME_PROPERTY,
    catalog_errors,
    ensure_namespace,
    opened,
)
from feast_dynamo_ext.parquet.iceberg.commits import Change, TableHandle, new_commit_id, planned
from feast_dynamo_ext.parquet.iceberg.data_files import DataFiles, table_columns
from feast_dynamo_ext.parquet.iceberg.table_schema import TABLE_PROPERTIES, storable

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa
    from feast import RepoConfig
    from feast.data_source import DataSource
    from feast.protos.feast.core.SavedDataset_pb2 import (
        SavedDatasetStorage as SavedDatasetStorageProto,
    )


class IcebergLoggingDestination(LoggingDestination):
    """Logged features as rows of an Iceberg table, which is made when the first are written.

    Args:
        source: the table; its event time is the time of the log.
    """

    _proto_kind = "feast_dynamo_ext.IcebergLoggingDestination"

    def __init__(self, *, source: IcebergSource) -> None:
        self.source = source

    @classmethod
    def from_proto(cls, config_proto: LoggingConfigProto) -> IcebergLoggingDestination:
        """See Feast."""
        text = config_proto.custom_destination.config["source"]
        return cls(source=_parsed(text.encode()))

    def to_proto(self) -> LoggingConfigProto:
        """See Feast."""
        return LoggingConfigProto(
            custom_destination=LoggingConfigProto.CustomDestination(
                kind=self._proto_kind, config={"source": _text(self.source)}
            )
        )

    def to_data_source(self) -> DataSource:
        """See Feast."""
        return self.source


class SavedDatasetIcebergStorage(SavedDatasetStorage):
    """A saved dataset as an Iceberg table, replaced in one commit: its snapshots stay.

    Args:
        source: the table.
    """

    _proto_attr_name = "custom_storage"

    def __init__(self, *, source: IcebergSource) -> None:
        self.source = source

    @staticmethod
    def from_proto(storage_proto: SavedDatasetStorageProto) -> SavedDatasetIcebergStorage:
        """See Feast."""
        return SavedDatasetIcebergStorage(
            source=_parsed(storage_proto.custom_storage.configuration)
        )

    def to_proto(self) -> SavedDatasetStorageProto:
        """See Feast."""
        options = DataSourceProto.CustomSourceOptions(configuration=_text(self.source).encode())
        found: SavedDatasetStorageProto = custom_storage_proto(self, options)
        return found

    def to_data_source(self) -> DataSource:
        """See Feast."""
        return self.source


def _text(source: IcebergSource) -> str:
    return json.dumps({"source": source.to_proto().SerializeToString().hex()})


def _parsed(text: bytes) -> IcebergSource:
    data = bytes.fromhex(json.loads(text)["source"])
    found: IcebergSource = IcebergSource.from_proto(DataSourceProto.FromString(data))
    return found


def found_or_made(handle: TableHandle, columns: pa.Schema) -> Any:
    """A table, made with these columns where there is none.

    Two that make it at once get the same one.

    Raises: as `TableHandle.load`.
    """
    from pyiceberg.exceptions import TableAlreadyExistsError

    try:
        return handle.load()
    except SourceNotFoundError:
        with catalog_errors(handle.address, handle.name):
            catalog = opened(handle.address, handle.settings)
            ensure_namespace(catalog, handle.name.rpartition(".")[0])
            try:
                return catalog.create_table(handle.name, columns, properties=TABLE_PROPERTIES)
            except TableAlreadyExistsError:
                return catalog.load_table(handle.name)


@dataclass(frozen=True)
class SavedTable:
    """Where a saved dataset is kept, as a table; as `saved.SavedPlace` is for files."""

    handle: TableHandle

    @classmethod
    def from_source(cls, source: Any, config: RepoConfig) -> SavedTable:
        """The table that a storage names."""
        return cls(TableHandle.from_source(source, config))

    def checked(self, *, allow_overwrite: bool) -> list[Any]:
        """What is there and may be replaced.

        Raises:
            DestinationExistsError: it may not.
        """
        try:
            old = list(planned(self.handle.load()).values())
        except SourceNotFoundError:
            return []
        if old and not allow_overwrite:
            raise DestinationExistsError(
                f"The Iceberg table {self.handle.name} has rows already. Pass "
                "`allow_overwrite=True` to replace them, or choose another table."
            )
        return old

    def write(
        self,
        old: list[Any],
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        event_time: str | None,
    ) -> None:
        """Replace what the table holds, in one commit.

        Raises:
            ColumnTypeError: the table has other columns.
            NotCommittedError: another writer changed it meanwhile.
        """
        table = found_or_made(self.handle, storable(schema))
        wanted = table_columns(table.schema())
        if wanted.names != schema.names:
            raise ColumnTypeError(
                f"The Iceberg table {self.handle.name} has the columns {wanted.names}, and not "
                f"those of the dataset, {schema.names}. Choose another table."
            )
        files = DataFiles(table, self.handle.settings)
        with catalog_errors(self.handle.address, self.handle.name):
            added = files.write(None, batches, is_sorted=False)
        summary = {EVENT_TIME_PROPERTY: event_time or ""}
        self.handle.commit_files(files, Change(added, old, summary), new_commit_id())
