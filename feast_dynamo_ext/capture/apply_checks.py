"""What `feast apply` checks of captured tables and of the views over them, and what it makes.

Nothing is changed in DynamoDB. What is missing there is said with the command that mends it; only
what nothing could work with is refused. The history table is made here where there is none: its
keys are the table's, so that its readers need no call to DynamoDB.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.capture.dynamo_table import DynamoTable, dynamodb_client
from feast_dynamo_ext.capture.erasure.erased_keys import ERASED_SUFFIX
from feast_dynamo_ext.capture.history import QUARANTINE_SUFFIX, changed_columns
from feast_dynamo_ext.capture.table_source import DynamoDBTableSource, attribute_of
from feast_dynamo_ext.capture.values.attribute_types import CapturedColumns
from feast_dynamo_ext.columns import WRITTEN, join_keys, stored_names
from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.dynamo.layouts.series import IN_BYTES
from feast_dynamo_ext.errors import (
    ConfigError,
    ResourceNotFoundError,
    SourceNotFoundError,
)
from feast_dynamo_ext.parquet.iceberg.catalog import (
    catalog_errors,
    folder_uri,
    is_iceberg,
    opened,
)
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.table_schema import (
    ITEM_KEYS_PROPERTY,
    TableLayout,
    create_table,
)
from feast_dynamo_ext.parquet.iceberg.view_table import full_name
from feast_dynamo_ext.view_settings import ViewSettings, beside_event, derived_of, series_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow as pa
    from feast import RepoConfig

logger = logging.getLogger(__name__)

IMAGES = "NEW_AND_OLD_IMAGES"

KEPT_BESIDE = {QUARANTINE_SUFFIX: "what does not fit", ERASED_SUFFIX: "who was erased"}
"""Tables beside a history, by how their names end."""


# The table


def check_table(source: DynamoDBTableSource, facts: DynamoTable) -> Iterator[str]:
    """What capturing will lack, in words with the command that mends it."""
    where = f"DynamoDBTableSource `{source.name}`"
    if facts.has_recovery is None:
        yield (
            f"{where}: whether point-in-time recovery of the table `{facts.name}` is on may not "
            "be seen; exports need it. Allow `dynamodb:DescribeContinuousBackups`."
        )
    elif not facts.has_recovery:
        turn_on = facts.command(
            "update-continuous-backups",
            "--point-in-time-recovery-specification",
            "PointInTimeRecoveryEnabled=true",
        )
        yield (
            f"{where}: point-in-time recovery of the table `{facts.name}` is off, so it cannot be "
            f"exported: capture would have to scan it. Turn it on: {turn_on}"
        )
    if facts.stream != IMAGES:
        yield f"{where}: {about_stream(facts)}"
    if dict(facts.keys).get(source.event_time) == "S" and source.event_time_unit == "iso8601":
        of_time = [each for each in source.fields if attribute_of(each) == source.event_time]
        if not any("spelling" in (each.tags or {}) for each in of_time):
            yield (
                f"{where}: the event time `{source.event_time}` is of the table's key, as a text. "
                "Two items of one time that is written in two ways, as with Z and +00:00, would "
                "be one in the history. Say how it is written: Field(name="
                f"{source.event_time!r}, dtype=UnixTimestamp, tags={{'unit': 'iso8601', "
                "'spelling': '2026-03-01T00:00:00.000Z'})"
            )
    if source.expiry == "delete" and not facts.expiry:
        seen = "may not be seen" if facts.expiry is None else "is not set"
        yield (
            f'{where} has `expiry="delete"`, but the TTL attribute of the table `{facts.name}` '
            f"{seen}: no deletion can be told to be an expiry. Set it, or allow "
            "`dynamodb:DescribeTimeToLive`."
        )


def about_stream(facts: DynamoTable) -> str:
    """What the stream of a table lacks, in words with the command that mends it."""
    turn_on = facts.command(
        "update-table", "--stream-specification", f"StreamEnabled=true,StreamViewType={IMAGES}"
    )
    if facts.stream is None:
        return (
            f"the table `{facts.name}` has no stream, so its changes cannot be followed; exports "
            f"can be read all the same. Turn it on: {turn_on}"
        )
    turn_off = facts.command("update-table", "--stream-specification", "StreamEnabled=false")
    return (
        f"the stream of the table `{facts.name}` shows {facts.stream}, but what a deletion or a "
        f"change of event time ends is in {IMAGES} alone. A stream's view cannot be changed: turn "
        f"it off, which ends what reads it now, and on again: {turn_off} && {turn_on}"
    )


def captured_columns(source: DynamoDBTableSource, facts: DynamoTable) -> CapturedColumns:
    """The columns of the history, as the declaration and the table's keys say.

    Raises:
        ConfigError: they contradict each other.
        UnsupportedTypeError: a type that no attribute can be kept as.
    """
    where = f"DynamoDBTableSource `{source.name}`"
    names = {attribute_of(field).lower(): attribute_of(field) for field in source.schema}
    for name, _ in facts.keys:
        other = names.get(name.lower(), name)
        if other != name:
            raise ConfigError(
                f"{where}: the key attribute of the table is `{name}`, and `schema` has "
                f"`{other}`. Names of attributes are told apart by their case: correct it."
            )
    return CapturedColumns.from_fields(
        source.fields,
        keys=dict(facts.keys),
        event_time=source.event_time,
        event_time_unit=source.event_time_unit,
        expiry=facts.expiry or None,
        subject=where,
    )


# The views


def check_view(view: Any, facts: DynamoTable) -> None:
    """Refuse a view that deletions could empty, though not all of its entity's items are gone.

    Raises:
        ConfigError: says what to write.
    """
    if series_of(view) is not None:
        _check_events(view, facts)
        return
    stored, of_table = stored_names(view.batch_source), facts.key_columns(view.batch_source)
    keys = {stored[name] for name in join_keys(view)}
    if ViewSettings.from_view(view).deletes == "ignore" or keys == set(of_table):
        return
    listed = ", ".join(f"`{name}`" for name in sorted(keys)) or "no join key"
    raise ConfigError(
        f"Feature view `{view.name}` is known by {listed}, but an item of the table "
        f"`{facts.name}`, which its source captures, by "
        f"{', '.join(f'`{name}`' for name in of_table)}: deleting one of several items "
        "would end the features of their entity. Say that deletions change nothing: "
        '`tags=ViewSettings(deletes="ignore").tags()`. Or give the entity the key of the table.'
    )


def _check_events(view: Any, facts: DynamoTable) -> None:
    """Refuse a series whose sort keys would not tell all items of the table apart.

    Raises:
        ConfigError: says what to write.
    """
    series = series_of(view)
    if series is None:
        return
    where = f"Feature view `{view.name}` keeps every event of the table `{facts.name}`"
    of_table = facts.key_columns(view.batch_source)
    needed = beside_event(view, of_table)
    named = series.tie_breaker or needed
    missing = [name for name in needed if name not in named]
    if missing:
        raise ConfigError(
            f"{where}, and its `tie_breaker` {list(named)} leaves out `{missing[0]}` of the "
            "table's key: two items could be one event. Name it too, or leave `tie_breaker` out: "
            "it is the rest of the table's key then."
        )
    types = {field.name: field.dtype.to_value_type().name for field in view.features}
    for name in needed:
        if name not in types:
            raise ConfigError(
                f"{where}, whose items are told apart by `{name}` of the table's key, which is "
                "no feature of the view. Add it to the view's `schema`."
            )
        if types[name] not in IN_BYTES - {"UNIX_TIMESTAMP"}:
            raise ConfigError(
                f"{where}, whose items are told apart by `{name}` of the table's key, a "
                f"{types[name]}, of which no sort key is made. Declare it as Int64, String or "
                "Bytes."
            )


def check_features(view: Any, source: DynamoDBTableSource, facts: DynamoTable) -> None:
    """Refuse features that no declared attribute has; a view that computes its own has others.

    Raises:
        ConfigError: names the feature, and the attribute that may be meant.
    """
    if not source.schema or getattr(view, "feature_transformation", None):
        return
    if getattr(view, "aggregations", None):
        return
    stored = stored_names(source)
    known = {*(field.name for field in source.schema), *facts.key_columns(source)}
    for field in view.features:
        if stored[field.name] not in known:
            raise ConfigError(
                f"Feature view `{view.name}`: its feature `{field.name}` is no attribute that "
                f"DynamoDBTableSource `{source.name}` declares. "
                f"{did_you_mean(stored[field.name], known, 'There are')}"
            )


# Names


def check_name(source: DynamoDBTableSource) -> None:
    """Refuse a source whose history could be a table that is kept beside that of another.

    Raises:
        ConfigError: says how names may not end.
    """
    for suffix, what in KEPT_BESIDE.items():
        if source.name.endswith(suffix):
            raise ConfigError(
                f"DynamoDBTableSource `{source.name}`: its history would be a table of this "
                f"name, and `...{suffix}` is the table of {what} of another captured source. "
                "Give the source a name that does not end so."
            )


def check_other(view: Any, sources: Iterable[str]) -> None:
    """Refuse a view whose own history table would be one that is kept beside a captured one.

    Raises:
        ConfigError: says which.
    """
    for name in sources:
        for suffix, what in KEPT_BESIDE.items():
            if view.name == f"{name}{suffix}":
                raise ConfigError(
                    f"Feature view `{view.name}`: its history table would have this name, under "
                    f"which the table of {what} of DynamoDBTableSource `{name}` is kept. Give "
                    "the view another name."
                )


# All of them


def captured_views(views: Iterable[Any]) -> dict[str, list[Any]]:
    """Views over captured tables, by the names of their sources."""
    found: dict[str, list[Any]] = {}
    for view in views:
        source = getattr(view, "batch_source", None)
        if isinstance(source, DynamoDBTableSource):
            found.setdefault(source.name, []).append(view)
    return found


def check_captured(
    views: Iterable[Any], config: RepoConfig, *, client: Any = None, makes: bool = True
) -> None:
    """Check captured tables and the views over them, and make history tables that are missing.

    Args:
        views: all views; those over other sources are passed over.
        config: the repo's config.
        client: of DynamoDB, by default a new one as the online store's.
        makes: whether history tables are made; after all checks.

    Raises:
        ConfigError: what cannot work.
        UnsupportedTypeError: a declared type that no attribute can be kept as.
        CaptureError: a declared type that a history's column does not become.
        AwsError: DynamoDB or the catalog refused. OfflineStoreError: the catalog, see there.
    """
    views = tuple(views)
    by_source = captured_views(views)
    if not by_source:
        return
    if not hasattr(config.offline_store, "catalog_config"):
        raise ConfigError(
            f"DynamoDBTableSource {sorted(by_source)}: histories of captured tables are read by "
            "S3ParquetOfflineStore. Set `offline_store` in feature_store.yaml to "
            "`type: feast_dynamo_ext.S3ParquetOfflineStore`."
        )
    client = client or dynamodb_client(config)
    for view in views:
        source = getattr(view, "batch_source", None)
        # Others have no table of their name: they read one that is there.
        if source is not None and not is_iceberg(source):
            check_other(view, by_source)
    found: list[tuple[DynamoDBTableSource, CapturedColumns]] = []
    for of_source in by_source.values():
        source = of_source[0].batch_source
        check_name(source)
        facts = DynamoTable.from_table(client, source)
        columns = captured_columns(source, facts)
        for warning in check_table(source, facts):
            logger.warning("%s", warning)
        for view in of_source:
            if derived_of(view) is not None:
                continue  # it has the columns of its base view
            check_view(view, facts)
            check_features(view, source, facts)
        full_name(f"DynamoDBTableSource `{source.name}`", source.name, config, '`name="%s"`')
        found.append((source, columns))
    for source, columns in found:
        _history_of(source, columns, config, makes=makes)


def _history_of(
    source: DynamoDBTableSource, columns: CapturedColumns, config: RepoConfig, *, makes: bool
) -> None:
    """Check the history table, or make it.

    Raises:
        ConfigError: it is another table's.
        CaptureError: it has a column of a type that does not become the declared one.
    """
    handle, keys = TableHandle.from_source(source, config), columns.keys
    try:
        table = handle.load()
    except SourceNotFoundError:
        if not source.schema:
            logger.warning(
                "DynamoDBTableSource `%s` has no `schema`, so it has no history yet. "
                "`feast-dynamo capture infer %s` reads items of the table, and writes one",
                source.name,
                source.name,
            )
        elif makes:
            make_history(source, columns.history_schema, keys, config)
        return
    check_history(source, table, keys, folder_uri(source.history, "sql", config))
    if source.schema:
        changed_columns(source.name, table, columns.history_schema)


def check_history(
    source: DynamoDBTableSource, table: Any, keys: tuple[str, ...], place: str
) -> None:
    """Refuse a table that is no history of a source, or of other keys.

    Args:
        source: the source.
        table: pyiceberg's.
        keys: the columns of the captured table's key attributes.
        place: where the source says that its files lie.

    Raises:
        ConfigError: it is another table's.
    """
    name, of_history = ".".join(table.name()), TableLayout.item_keys(table)
    if ITEM_KEYS_PROPERTY not in table.properties:
        raise ConfigError(
            f"DynamoDBTableSource `{source.name}`: the catalog has a table {name} already, which "
            "is no history of a captured table. Rename the source, or drop that table."
        )
    if of_history != keys:
        raise ConfigError(
            f"DynamoDBTableSource `{source.name}`: its history {name} is of a table with the keys "
            f"{list(of_history)}, but `{source.table}` has {list(keys)} now. Its old rows are of "
            "other items: capture it under another name of the source."
        )
    location = str(table.location()).rstrip("/").removeprefix("file://")
    if location != place.rstrip("/").removeprefix("file://"):
        logger.warning(
            "DynamoDBTableSource `%s` has `history=` %s, but its history table lies at %s "
            "already, and stays there",
            source.name,
            source.history,
            table.location(),
        )


def make_history(
    source: DynamoDBTableSource, columns: pa.Schema, keys: Sequence[str], config: RepoConfig
) -> Any:
    """Make the history table of a source, in the catalog of the offline store's block.

    Args:
        source: the declaration.
        columns: names and types, without the sequence; see `captured_columns`.
        keys: the columns of the table's key attributes, the partition key first.
        config: the repo's config.

    Returns:
        It, as pyiceberg has it; the one that another made at the same time.

    Raises:
        OfflineStoreError: the catalog refuses. AwsError: AWS did.
    """
    from pyiceberg.exceptions import TableAlreadyExistsError

    handle = TableHandle.from_source(source, config)
    event_time = source.timestamp_field
    joined = tuple(name for name in keys if name != event_time)
    layout = TableLayout(joined, event_time, WRITTEN, source.partition)
    try:
        with catalog_errors(handle.address, handle.name):
            catalog = opened(handle.address, handle.settings)
            try:
                return create_table(
                    catalog,
                    handle.name,
                    columns,
                    layout,
                    location=folder_uri(source.history, "sql", config),
                    further={ITEM_KEYS_PROPERTY: json.dumps(list(keys))},
                )
            except TableAlreadyExistsError:
                return catalog.load_table(handle.name)
    except ResourceNotFoundError as error:
        raise ResourceNotFoundError(
            f"DynamoDBTableSource `{source.name}` has `history={source.history}`: {error}",
            service=error.service,
            operation=error.operation,
            code=error.code,
            request_id=error.request_id,
        ) from error
