"""What is captured of a DynamoDB table, declared as a data source of Feast.

Features are defined on it as on any Parquet source: what its readers see is an Iceberg table, the
table's history, which `capture` writes. To Feast's registry it is a custom source, so that it
comes back as what it is; to all that reads history it is an `IcebergSource`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, get_args

from feast import Field, type_map
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.protos.feast.core.Feature_pb2 import FeatureSpecV2
from feast.types import UnixTimestamp
from feast.value_type import ValueType
from google.protobuf.json_format import MessageToDict, ParseDict

from feast_dynamo_ext.columns import DELETE, EXPIRE, RESERVED, WRITTEN, Tombstones
from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from feast import RepoConfig

TimeUnit = Literal["s", "ms", "us", "ns", "iso8601"]
Expiry = Literal["keep", "delete"]
Partition = Literal["day", "month", "none"]

# Where Feast's registry finds the class again; stays when the module moves.
CLASS_TYPE = "feast_dynamo_ext.DynamoDBTableSource"

_ITEM_KEYS: dict[tuple[str, ...], tuple[str, ...]] = {}

TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")
OTHER_SCHEME = re.compile(r"(?!s3://)[A-Za-z][A-Za-z0-9+.-]+:")
S3_URI = re.compile(r"s3://[a-z0-9][a-z0-9.-]+/.+")


class DynamoDBTableSource(IcebergSource):
    """A table of an application in DynamoDB, whose changes are captured into a history.

    Each change of an item is a row of the history: its attributes, its event time, when it was
    written, and whether it was a `put` or a tombstone. The history is an Iceberg table in the
    `catalog` of the offline store's block, named as the source, in the namespace given there.

    Attributes:
        table: name of the DynamoDB table.
        event_time: the attribute that says when what an item tells happened; the column is
            `timestamp_field`.
        event_time_unit: how that attribute says it.
        schema: the columns of the history; empty where they are not known yet:
            `feast-dynamo capture infer` writes them.
        history: where the history's files lie: an s3:// URI or a folder, which counts from the
            feature repo where it is relative.
        expiry: whether an item that was deleted after its own TTL ends its entity's features
            (`delete`), or was merely tidied away (`keep`).
        partition: how the history's files are cut by event time: `day`, `month` or `none`.
    """

    def __init__(
        self,
        *,
        name: str,
        table: str,
        event_time: str,
        event_time_unit: TimeUnit,
        history: str,
        schema: Sequence[Field] | None = None,
        expiry: Expiry = "keep",
        partition: Partition = "day",
        field_mapping: dict[str, str] | None = None,
        description: str = "",
        tags: dict[str, str] | None = None,
        owner: str = "",
    ) -> None:
        """Declare a table.

        Args:
            name: the source's name, and that of its history table.
            table: name of the DynamoDB table.
            event_time: the attribute of event time. An item without it is not lost, but goes to
                quarantine.
            event_time_unit: `s`, `ms`, `us` or `ns` since 1970 of a number, or `iso8601` of text.
            history: where the history's files are put.
            schema: columns with their types, each of the attribute of its name or of its tag
                `attribute`; key attributes need not be among them. Without a schema nothing is
                captured yet: `feast-dynamo capture infer` writes one.
            expiry: what the deletion of an item after its own TTL means.
            partition: a file of the history has event times of one `day`, of one `month`, or of
                any time (`none`). A small table over a long time wants months: each file costs a
                request. It counts where the history is made.
            field_mapping: names of attributes -> names in feature views.
            description: for people.
            tags: for people and programs.
            owner: for people.

        Raises:
            ConfigError: an argument that cannot be, or that contradicts another; names it.
        """
        super().__init__(
            name=name,
            # The catalog is that of the offline store's block: see `CatalogAddress.from_source`.
            catalog_type="",
            warehouse=history,
            namespace="",
            table=name,
            timestamp_field=_column_of(schema or (), event_time),
            field_mapping=field_mapping,
            description=description,
            tags=tags,
            owner=owner,
        )
        self.table = table
        self.event_time = event_time
        self.event_time_unit = event_time_unit
        self.schema = tuple(schema or ())
        self.expiry = expiry
        self.partition = partition
        self._check()
        self.created_timestamp_column = WRITTEN

    @property
    def fields(self) -> tuple[Field, ...]:
        """The schema, the event time with its unit: the source says that itself."""
        return tuple(
            Field(
                name=field.name,
                dtype=field.dtype,
                tags={"unit": self.event_time_unit, **(field.tags or {})},
            )
            if attribute_of(field) == self.event_time
            else field
            for field in self.schema
        )

    def column_of(self, attribute: str) -> str:
        """The column of the history that has an attribute."""
        return _column_of(self.schema, attribute)

    @property
    def history(self) -> str:
        """Where the history's files lie."""
        return str(self.warehouse)

    @property
    def tombstones(self) -> Tombstones:
        """How rows of the history say that items are gone."""
        return Tombstones(
            ends=frozenset({DELETE, EXPIRE} if self.expiry == "delete" else {DELETE})
        )

    def item_keys(self, config: RepoConfig) -> tuple[str, ...]:
        """Columns of the history that have the table's key attributes, the partition key first.

        The history says it, else DynamoDB; both are asked once in a process.

        Raises:
            ConfigError: there is no such table.
            OfflineStoreError: the catalog refuses. AwsError: DynamoDB did.
        """
        known = (str(config.repo_path), config.project, self.name, self.table, self.history)
        if known not in _ITEM_KEYS:
            _ITEM_KEYS[known] = self._item_keys(config)
        return _ITEM_KEYS[known]

    def _item_keys(self, config: RepoConfig) -> tuple[str, ...]:
        from feast_dynamo_ext.capture.dynamo_table import DynamoTable, dynamodb_client
        from feast_dynamo_ext.errors import SourceNotFoundError
        from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
        from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout

        try:
            return TableLayout.item_keys(TableHandle.from_source(self, config).load())
        except SourceNotFoundError:
            facts = DynamoTable.from_table(dynamodb_client(config), self)
            return facts.key_columns(self)

    def _check(self) -> None:
        for problem in _problems(self):
            raise ConfigError(f"DynamoDBTableSource `{self.name}`: {problem}")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, DynamoDBTableSource)
            and bool(super().__eq__(other))  # type: ignore[no-untyped-call]
            and self._options() == other._options()
        )

    def __hash__(self) -> int:
        return hash((self.name, self.table, self.history))

    def __repr__(self) -> str:
        given = {
            "name": self.name,
            "table": self.table,
            "event_time": self.event_time,
            "event_time_unit": self.event_time_unit,
            "schema": [f"{field.name}: {field.dtype}" for field in self.schema],
            "history": self.history,
            "expiry": self.expiry,
            "partition": self.partition,
        }
        return (
            f"DynamoDBTableSource({', '.join(f'{key}={text!r}' for key, text in given.items())})"
        )

    # To and from Feast's registry

    @staticmethod
    def from_proto(data_source: Any) -> DynamoDBTableSource:
        """The source that a registry kept."""
        options = json.loads(data_source.custom_options.configuration)
        fields = [ParseDict(each, FeatureSpecV2()) for each in options.pop("schema")]
        return DynamoDBTableSource(
            name=data_source.name,
            schema=[Field.from_proto(each) for each in fields],
            field_mapping=dict(data_source.field_mapping),
            description=data_source.description,
            tags=dict(data_source.tags),
            owner=data_source.owner,
            **options,
        )

    def _to_proto_impl(self) -> Any:
        return DataSourceProto(
            name=self.name,
            # Of BATCH_ICEBERG Feast would make its own class, whatever the class type says.
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type=CLASS_TYPE,
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            field_mapping=self.field_mapping,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
            custom_options=DataSourceProto.CustomSourceOptions(
                configuration=json.dumps(self._options(), sort_keys=True).encode()
            ),
        )

    def _options(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "event_time": self.event_time,
            "event_time_unit": self.event_time_unit,
            "history": self.history,
            "schema": [MessageToDict(field.to_proto()) for field in self.schema],
            "expiry": self.expiry,
            "partition": self.partition,
        }

    # Its columns

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:
        """Names and types of what a view may infer: the declared attributes, else the history's.

        Raises:
            ConfigError: there is neither a schema nor a history yet.
            OfflineStoreError: the history cannot be read.
        """
        if self.schema:
            return [(field.name, field.dtype.to_value_type().name) for field in self.schema]
        from feast_dynamo_ext.errors import SourceNotFoundError
        from feast_dynamo_ext.parquet.iceberg.commits import TableHandle

        try:
            columns = TableHandle.from_source(self, config).columns()
        except SourceNotFoundError as error:
            raise ConfigError(
                f"DynamoDBTableSource `{self.name}` has no `schema` and no history yet, so "
                "nothing says which features there are. Declare its `schema`, or the features of "
                f"its views; or run `feast-dynamo capture infer {self.name}`, which writes one."
            ) from error
        return [
            (column.name, str(column.type))
            for column in columns
            if not column.name.startswith(RESERVED)
        ]

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        """From what `get_table_column_names_and_types` calls a type to Feast's."""

        def value_type(name: str) -> ValueType:
            found: ValueType = (
                ValueType[name]
                if name in ValueType.__members__
                else type_map.pa_to_feast_value_type(name)
            )
            return found

        return value_type

    def validate(self, config: RepoConfig) -> None:
        """`feast apply` checks the table; see `apply_checks`."""


def _column_of(fields: Iterable[Field], attribute: str) -> str:
    """The name of the field whose attribute this is; its own where none is."""
    named = (field.name for field in fields if attribute_of(field) == attribute)
    return str(next(named, attribute))


def attribute_of(field: Field) -> str:
    """The attribute that a field is of, by its tag `attribute`; see `attribute_types`."""
    return str((field.tags or {}).get("attribute", field.name))


def _problems(source: DynamoDBTableSource) -> Iterable[str]:
    """What is wrong with a declaration, in words."""
    if not TABLE_NAME.fullmatch(source.table):
        yield (
            f"`table` is `{source.table}`, which is no name of a DynamoDB table: 3 to 255 "
            "letters, digits, `_`, `-` and `.`. Give the name alone, without ARN or region."
        )
    choices = (
        ("event_time_unit", source.event_time_unit, get_args(TimeUnit)),
        ("expiry", source.expiry, get_args(Expiry)),
        ("partition", source.partition, get_args(Partition)),
    )
    for argument, given, known in choices:
        if given not in known:
            hint = did_you_mean(given, known, "Choose one of")
            yield f"there is no `{argument}` `{given}`. {hint}"
    yield from _problems_of_place(source.history)
    yield from _problems_of_schema(source)


def _problems_of_place(history: str) -> Iterable[str]:
    is_on_s3 = history.lower().startswith(("s3:", "s3a:", "s3n:"))
    if not history or (is_on_s3 and not S3_URI.fullmatch(history)):
        yield (
            f"`history` is `{history}`. Write where the history's files lie as "
            "`s3://bucket/prefix`, or as a folder."
        )
    elif OTHER_SCHEME.match(history) and not history.startswith("file:///"):
        yield (
            f"`history` is `{history}`, which is neither on S3 (`s3://bucket/prefix`) nor a "
            "folder. A history lies in one of these."
        )


def _problems_of_schema(source: DynamoDBTableSource) -> Iterable[str]:
    names = [field.name for field in source.schema]
    attributes = [attribute_of(field) for field in source.schema]
    for name in (source.event_time, *names):
        if not name:
            yield "an attribute without a name. Name each, and `event_time`."
        if name.lower().startswith(RESERVED):
            yield (
                f"the attribute `{name}` begins as columns do that capture adds to a history "
                f"(`{RESERVED}...`). It cannot be captured under this name; leave it out."
            )
    for name, times in Counter(names).items():
        if times > 1:
            yield f"`schema` has `{name}` {times} times. Declare it once."
    alike: dict[str, str] = {}
    for name in (*names, *([] if source.schema else [source.event_time])):
        other = alike.setdefault(name.lower(), name)
        if other != name:
            yield (
                f"`schema` has `{other}` and `{name}`, whose names differ in case only. To "
                "DynamoDB these are two attributes, to most catalogs one column: leave one out."
            )
    if names and source.event_time not in attributes:
        hint = did_you_mean(source.event_time, attributes, "There are")
        yield (
            f"its `event_time` `{source.event_time}` is not in `schema`. {hint} Or add "
            f'`Field(name="{source.event_time}", dtype=UnixTimestamp)`.'
        )
    for field in source.schema:
        if attribute_of(field) == source.event_time and field.dtype != UnixTimestamp:
            yield (
                f"its `event_time` `{field.name}` is declared as {field.dtype}. Declare it as "
                "UnixTimestamp: `event_time_unit` says how the attribute has it."
            )
