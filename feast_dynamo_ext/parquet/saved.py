"""Saved datasets: where they are, what guards them, how they are replaced."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feast_dynamo_ext._feast import SAVED_DATASET_EVENT_TIME
from feast_dynamo_ext.errors import DestinationExistsError
from feast_dynamo_ext.parquet.iceberg.catalog import EVENT_TIME_PROPERTY
from feast_dynamo_ext.parquet.listing import is_hidden
from feast_dynamo_ext.parquet.source import uri_of
from feast_dynamo_ext.parquet.writer import write_file, write_parts
from feast_dynamo_ext.storage import files_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa
    from feast import RepoConfig
    from feast.data_source import DataSource

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.storage import Files


EVENT_TIME_KEY = b"feast_dynamo_ext.event_time"
"""Key in a file's metadata, where the name of its event time is kept."""


@dataclass(frozen=True)
class SavedPlace:
    """Where a saved dataset is kept.

    Attributes:
        uri: of the file or folder.
        files: of the S3 or disk that it is on.
    """

    uri: str
    files: Files

    @classmethod
    def from_source(cls, data_source: DataSource, config: RepoConfig) -> SavedPlace:
        """The place that a storage names.

        Raises:
            OfflineStoreError: not a `FileSource`, or not Parquet.
        """
        uri = uri_of(data_source, config).rstrip("/")
        return cls(uri, files_of(uri, settings_of(data_source, config)))

    def checked(self, *, allow_overwrite: bool) -> list[str]:
        """The files that are there and may be replaced.

        Raises:
            DestinationExistsError: they may not.
        """
        old = self.files.at(self.uri)
        if old and not allow_overwrite:
            raise DestinationExistsError(
                f"{self.uri} exists already. Pass `allow_overwrite=True` to replace it, or choose "
                "another."
            )
        foreign = [name for name in old if name != self.uri and not _is_ours(name, self.uri)]
        if foreign:
            raise DestinationExistsError(
                f"{self.uri} holds {foreign[0]}, which is no Parquet file: it is not replaced, "
                "since that would delete it. Choose a folder that holds the dataset alone."
            )
        return old

    def write(
        self,
        old: list[str],
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        event_time: str | None,
    ) -> None:
        """Write the dataset, then delete the old files that it does not take the place of."""
        if event_time is not None:
            schema = schema.with_metadata(
                {**(schema.metadata or {}), EVENT_TIME_KEY: event_time.encode()}
            )
        is_file = old == [self.uri] if old else self.uri.endswith(".parquet")
        if is_file:
            write_file(self.files, self.uri, schema, batches)
            return
        # Other names than any before, so that readers of the old files are not disturbed.
        write_parts(self.files, self.uri, f"part-{uuid.uuid4().hex}", schema, batches)
        self.files.delete(old)


def event_time_of(source: ParquetSource, column: str) -> str:
    """The event time of a saved dataset, which Feast always asks by the same name."""
    if column != SAVED_DATASET_EVENT_TIME or column in source.schema.names:
        return column
    if source.parts.table is not None:
        return source.parts.table.summary.get(EVENT_TIME_PROPERTY) or column
    first = next(iter(source.dataset.get_fragments()))
    kept = (first.physical_schema.metadata or {}).get(EVENT_TIME_KEY)
    return kept.decode() if kept else column


def _is_ours(name: str, uri: str) -> bool:
    """Whether a file is Parquet, or one that readers pass over."""
    return name.endswith(".parquet") or is_hidden(name[len(uri) :].strip("/"))
