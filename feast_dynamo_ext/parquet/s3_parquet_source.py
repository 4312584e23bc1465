"""A data source of Feast for Parquet on S3 whose folders say which time they hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from feast import type_map
from feast.data_source import DataSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.parquet.listing import DEFAULT_FORMAT, DatePartitioned, period_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from feast import RepoConfig
    from feast.value_type import ValueType


# Where Feast's registry finds the class again; stays when the module moves.
CLASS_TYPE = "feast_dynamo_ext.S3ParquetSource"


class S3ParquetSource(DatePartitioned, DataSource):
    """Parquet files on S3 or a local disk, with folders by time.

    A retrieval opens only files whose folders can hold event times that it needs.

    Attributes:
        path: s3:// URI or local path of a folder, a file, or a glob; a relative path counts from
            the feature repo.
        date_partition_column_format: how folders are named, in strftime's directives; empty where
            they say no time.
        s3_endpoint_override: S3's URL for this source alone; empty for the offline store's.
    """

    def __init__(
        self,
        *,
        path: str,
        name: str | None = None,
        timestamp_field: str = "",
        created_timestamp_column: str = "",
        field_mapping: dict[str, str] | None = None,
        date_partition_column: str = "",
        date_partition_column_format: str = "",
        s3_endpoint_override: str = "",
        description: str = "",
        tags: dict[str, str] | None = None,
        owner: str = "",
    ) -> None:
        """A source of Parquet files.

        Args:
            path: where they are.
            name: the source's name; the path by default.
            timestamp_field: column of event time.
            created_timestamp_column: column of created time, if there is one.
            field_mapping: names of columns in the files -> names in feature views.
            date_partition_column: the hive column whose folders (``dt=2025-01-31``) each hold the
                event times of one period, UTC.
            date_partition_column_format: how its values are written; `%Y-%m-%d` by default.
                Without `date_partition_column` the format is of whole folder names:
                ``year=%Y/month=%m/day=%d`` (hive) or ``%Y/%m/%d`` (the first folders of the path).
            s3_endpoint_override: S3's URL for this source alone.
            description: for people.
            tags: for people and programs.
            owner: for people.

        Raises:
            ConfigError: a format that does not name periods.
        """
        super().__init__(
            name=name or path,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            field_mapping=field_mapping,
            description=description,
            tags=tags,
            owner=owner,
            date_partition_column=date_partition_column,
        )
        self.path = path
        self.s3_endpoint_override = s3_endpoint_override
        if date_partition_column and not date_partition_column_format:
            date_partition_column_format = DEFAULT_FORMAT
        self.date_partition_column_format = date_partition_column_format
        if self.folder_format:
            _check_format(self)

    @property
    def folder_format(self) -> str:
        """How folders below the path are named; empty where they say no time."""
        if self.date_partition_column:
            return f"{self.date_partition_column}={self.date_partition_column_format}"
        return self.date_partition_column_format

    @property
    def derived_columns(self) -> dict[str, str]:
        """Hive columns that follow from the event time, and the format of each."""
        if "=" not in self.folder_format:
            return {}
        pairs = [part.partition("=") for part in self.folder_format.split("/")]
        return {name: form for name, _, form in pairs}

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, S3ParquetSource)
            and bool(super().__eq__(other))  # type: ignore[no-untyped-call]
            and self._options() == other._options()
        )

    def __hash__(self) -> int:
        return hash((self.name, self.path, self.timestamp_field))

    def source_type(self) -> Any:
        """Feast's name for a source that is not its own."""
        return DataSourceProto.CUSTOM_SOURCE

    @staticmethod
    def from_proto(data_source: Any) -> S3ParquetSource:
        """The source that a registry kept."""
        return S3ParquetSource(
            name=data_source.name,
            timestamp_field=data_source.timestamp_field,
            created_timestamp_column=data_source.created_timestamp_column,
            field_mapping=dict(data_source.field_mapping),
            date_partition_column=data_source.date_partition_column,
            description=data_source.description,
            tags=dict(data_source.tags),
            owner=data_source.owner,
            **json.loads(data_source.custom_options.configuration),
        )

    def _to_proto_impl(self) -> Any:
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type=CLASS_TYPE,
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            field_mapping=self.field_mapping,
            date_partition_column=self.date_partition_column,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
            custom_options=DataSourceProto.CustomSourceOptions(
                configuration=json.dumps(self._options(), sort_keys=True).encode()
            ),
        )

    def _options(self) -> dict[str, str]:
        return {
            "path": self.path,
            "date_partition_column_format": self.date_partition_column_format,
            "s3_endpoint_override": self.s3_endpoint_override,
        }

    def validate(self, config: RepoConfig) -> None:
        """Check that the files and the columns of time are there.

        Raises:
            OfflineStoreError: they are not; see the subclasses.
        """
        from feast_dynamo_ext.parquet.source import check_times

        check_times(self, config)

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        """From the name of an Arrow type to Feast's type."""
        convert: Callable[[str], ValueType] = type_map.pa_to_feast_value_type
        return convert

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:
        """Names and Arrow types of the columns that rows bring; see `source.columns_of`."""
        from feast_dynamo_ext.parquet.source import columns_of

        return columns_of(self, config)


def _check_format(source: S3ParquetSource) -> None:
    given, folders = source.date_partition_column_format, source.folder_format
    period_length(folders)
    hive = {"=" in part for part in folders.split("/")}
    of_values = bool(source.date_partition_column)
    if len(hive) > 1 or (of_values and ("=" in given or "/" in given)):
        raise ConfigError(
            f"Source `{source.name}`: `date_partition_column_format` is `{given}`. Beside "
            "`date_partition_column` it is the format of that column's values; alone it is that "
            "of whole folder names, all of them with a `=`, or none."
        )
