"""Feast's online store on DynamoDB: the config, and Feast's methods, which delegate to `dynamo`.

Feast finds a store through the module of its config class, so both stand here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods

from feast_dynamo_ext.config import warn_of_other_provider, warn_of_unknown_keys
from feast_dynamo_ext.dynamo import read, series_read
from feast_dynamo_ext.dynamo.client import Connection
from feast_dynamo_ext.dynamo.event_loops import off_loop
from feast_dynamo_ext.dynamo.layouts.packed import (
    PACKED,
    VALUES_BYTES_THAT_FIT,
    Row,
    RowSchema,
    last_written_per_key,
    newest_per_key,
    to_item,
)
from feast_dynamo_ext.dynamo.layouts.series import (
    SERIES,
    CohortMarker,
    EventMaker,
    cohort_attributes,
    marks_of,
    newest_per_event,
)
from feast_dynamo_ext.dynamo.precomputed import maintain
from feast_dynamo_ext.dynamo.precomputed.lookup import ServiceCache, ServiceRequest
from feast_dynamo_ext.dynamo.precomputed.maintain import with_vectors
from feast_dynamo_ext.dynamo.row_batch import Outcome
from feast_dynamo_ext.dynamo.settings import OnlineSettings
from feast_dynamo_ext.dynamo.views import (
    GRACE_S,
    FeastRequest,
    kept_seconds,
    table_name,
    value_types,
)
from feast_dynamo_ext.dynamo.write import (
    FeastRow,
    latest_event_us,
    packed_rows,
    refuse_future,
    schema_of_rows,
)
from feast_dynamo_ext.errors import (
    AwsError,
    EntityKeyError,
    FeastDynamoError,
    IncompleteReadError,
    IncompleteWriteError,
    OnlineStoreError,
)
from feast_dynamo_ext.forks import Lock
from feast_dynamo_ext.view_settings import ViewSettings, series_in, series_of, view_tombstones

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from feast import Entity, FeatureView, RepoConfig
    from feast.infra.infra_object import InfraObject
    from feast.online_response import OnlineResponse
    from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
    from feast.protos.feast.types.Value_pb2 import Value as ValueProto
    from feast.value_type import ValueType

    from feast_dynamo_ext.dynamo.encoding.requests import Order
    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.dynamo.layouts.series import Event
    from feast_dynamo_ext.dynamo.precomputed.vectors import Refs, ServiceSpec
    from feast_dynamo_ext.dynamo.write import WriteMethod

logger = logging.getLogger(__name__)

WARM_CONNECTIONS = 4
MAY_BE_TOO_LARGE = VALUES_BYTES_THAT_FIT - 64 * 1_024
"""Bytes of a row's values over which its item is looked at before any is written: attributes of
orders and cohorts take less than the rest."""

LARGE_REQUEST = 1_000
"""Rows, of all views together, whose keys and answers are made beside a caller's event loop."""


class DynamoOnlineStoreConfig(OnlineSettings):
    """The `online_store` block of feature_store.yaml.

    Names that Feast's own DynamoDB store has mean the same here.
    """

    type: Literal["feast_dynamo_ext.DynamoOnlineStore"] = "feast_dynamo_ext.DynamoOnlineStore"
    """Selects this store."""


class DynamoOnlineStore(OnlineStore):
    """Features in DynamoDB, one packed item per row, all views of a request read together."""

    # Without it Feast imports every store it ships on the first request, and refuses versions.
    _versioned_read_supported = True

    def __init__(self) -> None:
        self._lock = Lock()
        self._opened: tuple[int, Connection] | None = None
        self._services = ServiceCache()

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reads and writes never block the event loop."""
        return SupportedAsyncMethods(read=True, write=True)

    # Tables

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],  # noqa: ARG002 - Feast's interface
        entities_to_keep: Sequence[Entity],  # noqa: ARG002 - Feast's interface
        partial: bool,  # noqa: ARG002 - Feast's interface
    ) -> None:
        """Make the tables of views as they should be; keep or delete those of views that are gone.

        Raises:
            ConfigError: settings of a view that cannot be; nothing is done then.
            TablesDifferError: with `manage_tables: verify`, a table is missing or differs.
            TableLayoutError: a table of that name is not in this store's layout.
            TableProtectedError: a table to be deleted is protected.
            AwsError: AWS refused.
            TablesFailedError: several tables failed; the others are as they should be.
        """
        from feast_dynamo_ext.dynamo.tables import apply

        connection = self.connection(config)
        apply.update(
            connection.client, config, tables_to_keep, tables_to_delete, connection.forget
        )

    def plan(self, config: RepoConfig, desired_registry_proto: RegistryProto) -> list[InfraObject]:
        """What `update` would do to tables: logged, and as Feast's objects; nothing is changed.

        Raises: as `update`.
        """
        from feast_dynamo_ext.dynamo.tables import apply

        client = self.connection(config).client
        return [*apply.plan(client, config, desired_registry_proto)]

    def teardown(
        self,
        config: RepoConfig,
        tables: Sequence[FeatureView],
        entities: Sequence[Entity],  # noqa: ARG002 - Feast's interface
    ) -> None:
        """Delete the tables of the given views; those that are not ours are left alone.

        Raises:
            TableProtectedError: a table's deletion protection is on.
            AwsError: AWS refused.
            TablesFailedError: several of these; the other tables are deleted.
        """
        from feast_dynamo_ext.dynamo.tables import apply

        connection = self.connection(config)
        apply.teardown(connection.client, config, tables, connection.forget)

    # Writes

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows; of several rows with one key in `data` the newest is written.

        Raises:
            EntityKeyError: a key over 2,048 bytes, or null.
            ColumnTypeError: a row without event time.
            WindowError: event times further ahead than `max_future`.
            ItemTooLargeError: a row over 400 KB. Nothing of `data` is written then.
            IncompleteWriteError: rows left unwritten at the deadline, named.
            TableTakenError: the table is another view's or project's.
        """
        self.write_feast_rows(config, table, data, progress)

    def write_feast_rows(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> Outcome:
        """The same; says how many were written, and how many the table has newer ones of.

        Raises: as `online_write_batch`.
        """
        schema = schema_of_rows(table, data)
        rows = packed_rows(table.name, schema, data)
        return self.write_rows(config, table, schema, rows, progress)

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """The same on an event loop, which packing many rows does not block either.

        Raises: as `online_write_batch`.
        """
        await self.connection(config).refuse_anothers(config, table)

        def packed() -> tuple[RowSchema, Sequence[Row | Event]]:
            schema = schema_of_rows(table, data)
            return schema, winners(config, table, schema, packed_rows(table.name, schema, data))

        schema, rows = await asyncio.to_thread(packed)
        await self._write(config, table, schema, rows, progress)

    async def write_rows_async(
        self, config: RepoConfig, view: FeatureView, schema: RowSchema, rows: Iterable[Row]
    ) -> Outcome:
        """See `write_rows`.

        Raises: as `online_write_batch`.
        """
        await self.connection(config).refuse_anothers(config, view)
        newest = await asyncio.to_thread(winners, config, view, schema, rows)
        return await self._write(config, view, schema, newest, None)

    def write_rows(
        self,
        config: RepoConfig,
        view: FeatureView,
        schema: RowSchema,
        rows: Iterable[Row],
        progress: Callable[[int], Any] | None = None,
    ) -> Outcome:
        """Write packed rows, the newest per key.

        Returns:
            How many were written, and how many the table has newer ones of.

        Raises: as `online_write_batch`.
        """
        newest = winners(config, view, schema, rows)
        self.refuse_anothers(config, view)
        return self.connection(config).loops.run(
            self._write(config, view, schema, newest, progress)
        )

    def refuse_anothers(self, config: RepoConfig, *views: Any) -> None:
        """Refuse to write into tables of other views or projects; each is looked at once.

        Raises:
            TableTakenError: one is another's.
            AwsError: AWS refused.
        """
        connection = self.connection(config)
        for view in views:
            connection.written.refuse_anothers(connection.client, config, view)

    async def _write(
        self,
        config: RepoConfig,
        view: FeatureView,
        schema: RowSchema,
        rows: Sequence[Row | Event],
        progress: Callable[[int], Any] | None,
    ) -> Outcome:
        latest_us = latest_event_us(config)
        if latest_us is not None:
            ahead = sum(row.event_us > latest_us for row in rows)
            refuse_future(ahead, len(rows), view.name)
        connection = self.connection(config)
        name, kept_s = table_name(config, view), kept_seconds(config, view)
        own = ViewSettings.from_view(view)
        series, cohorts = own.series, own.cohorts
        layout = PACKED if series is None else SERIES
        marks: Iterable[JsonItem | None] = itertools.repeat(None)
        if cohorts:
            mark = CohortMarker.from_names(view.name, cohorts, schema)
            marks = [mark(row) for row in rows]  # raises before any is written

        def item(row: Any, marks: JsonItem | None, until_s: int) -> JsonItem:
            if marks is None:
                return layout.put(row, schema, kept_s, view.name, until_s)
            return to_item(row, schema, kept_s, view.name, until_s, marks)

        copies = 1 if series is None else 1 + len(series.orders)
        for row, of_row in zip(rows, marks, strict=False):
            if len(row.values) * copies > MAY_BE_TOO_LARGE:
                item(row, of_row, 0)  # raises before any is written
        try:
            await connection.schemas.declare(
                name, schema, connection.writer, is_series=series is not None
            )
        except IncompleteWriteError as error:
            # What is missing to the caller is the rows.
            left = tuple(row.key for row in rows)
            return Outcome(unwritten=left, cause=error).checked(name)
        until_s = int(time.time()) + GRACE_S
        items = (item(row, of_row, until_s) for row, of_row in zip(rows, marks, strict=False))
        method, order = write_method(config, view), write_order(view)
        optional = marks_of(series) if series is not None else cohort_attributes(cohorts)
        write = connection.writer.write(name, items, progress, method, order, optional)
        if series is not None:
            return await write
        return await with_vectors(
            connection, name, schema, lambda: [row.key for row in rows], write
        )

    # Reads

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[read.ReadRow]:
        """Event time and values of each entity key, or (None, None) where there is no row.

        Raises:
            IncompleteReadError: keys left unread at the deadline.
        """
        return self.connection(config).loops.run(
            self.online_read_async(config, table, entity_keys, requested_features)
        )

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[read.ReadRow]:
        """The same on an event loop.

        Raises: as `online_read`.
        """
        connection = self.connection(config)
        view = connection.views.known(table, config)
        read.refuse_too_many(len(entity_keys), config.online_store.max_rows_per_request)
        view_read = read.of_keys(view, entity_keys, requested_features)
        if view.is_series:
            found = await series_read.read_series([view_read], connection, may_be_partial=False)
            return [series_read.read_row(view_read, row) for row in found.rows_of(view_read)]
        answers = await read.read([view_read], connection, may_be_partial=False)
        return [read.read_row(view_read, row) for row in answers.rows_of(view_read)]

    def _read_features_per_fv(self, config: RepoConfig, *args: Any, **kwargs: Any) -> None:
        """Read all views of a request together and append them to the response.

        Raises:
            RequestTooLargeError: more rows than `max_rows_per_request`.
            EntityKeyError: the request lacks a join key, or has one that cannot be a key.
            IncompleteReadError: keys left unread at the deadline (`on_partial: error`).
        """
        self.connection(config).loops.run(
            self._read_features_per_fv_async(config, *args, **kwargs)
        )

    async def _read_features_per_fv_async(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: dict[str, list[ValueProto]],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: Any,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        """The same on an event loop.

        Raises: as `_read_features_per_fv`.
        """
        connection, settings = self.connection(config), config.online_store
        request = _REQUEST.get()
        if request is not None and config.registry.enable_online_feature_view_versioning:
            request.restore_versions(view for view, _ in grouped_refs)
        known = [connection.views.known(view, config) for view, _ in grouped_refs]
        rows = max(map(len, join_key_values.values()), default=0)
        read.refuse_too_many(rows, settings.max_rows_per_request)
        is_large = rows * len(known) >= LARGE_REQUEST
        requested = [names for _, names in grouped_refs]

        def of_columns(columns: Mapping[str, Sequence[ValueProto]]) -> list[read.ViewRead]:
            if request is not None:
                request.check_keys(known, entity_name_to_join_key_map, rows)
            return read.of_columns(known, requested, columns)

        try:
            reads = (
                await off_loop(of_columns, join_key_values)
                if is_large
                else of_columns(join_key_values)
            )
        except EntityKeyError:
            if request is None:
                raise
            columns = request.completed(known, join_key_values, online_features_response)
            if columns is None:
                raise
            reads = of_columns(columns)
        answers, of_series = await _read(reads, connection, settings)

        def answer() -> None:
            for (view, names), held, view_read in zip(grouped_refs, known, reads, strict=True):
                prefix = f"{held.answers_as}__" if full_feature_names else ""
                called = [prefix + name for name in names]
                if of_series is not None and held.is_series:
                    rows = of_series.rows_of(view_read)
                    series_read.add_rows(online_features_response, rows, called)
                elif answers is not None:
                    read.add_view(online_features_response, answers.rows_of(view_read), called)
                if include_feature_view_version_metadata:
                    read.add_version(online_features_response, view)

        if is_large:
            await off_loop(answer)
        else:
            answer()

    @staticmethod
    def _build_feature_types(
        grouped_refs: list[tuple[FeatureView, list[str]]],
    ) -> dict[str, ValueType]:
        # Feast's own goes over every field of every view at each request: a fifth of the client
        # CPU of a read of 25 views.
        return value_types(grouped_refs)

    # Precomputed services

    def get_online_features(
        self,
        config: RepoConfig,
        features: Any,
        entity_rows: Any,
        registry: Any,
        project: str,
        *args: Any,
        **kwargs: Any,
    ) -> OnlineResponse:
        """Features of entities; of a precomputed service, from one item an entity.

        Raises: as `_read_features_per_fv`.
        """
        given = (features, entity_rows, registry, project, *args)
        with _request(*given, **kwargs) as request:
            service = _service_request(*given, **kwargs)
            if service is None:
                return request.finish(super().get_online_features(config, *given, **kwargs))
            connection = self.connection(config)
            return connection.loops.run(
                service.answer(
                    config, connection, self._services, request, self._read_features_per_fv_async
                )
            )

    async def get_online_features_async(
        self,
        config: RepoConfig,
        features: Any,
        entity_rows: Any,
        registry: Any,
        project: str,
        *args: Any,
        **kwargs: Any,
    ) -> OnlineResponse:
        """The same on an event loop.

        Raises: as `get_online_features`.
        """
        given = (features, entity_rows, registry, project, *args)
        with _request(*given, **kwargs) as request:
            service = _service_request(*given, **kwargs)
            if service is None:
                read = super().get_online_features_async
                return request.finish(await read(config, *given, **kwargs))
            connection = self.connection(config)
            return await service.answer(
                config, connection, self._services, request, self._read_features_per_fv_async
            )

    def declare_services(
        self,
        config: RepoConfig,
        services: Mapping[str, Refs],
        view: FeatureView,
        *,
        replace: bool,
    ) -> list[ServiceSpec]:
        """Have the vectors of a view's precomputed services kept from now on.

        Args:
            config: the repo's.
            services: all precomputed services of the project.
            view: whose services are meant.
            replace: whether services that have changed are declared anew, and vectors of those
                that are gone deleted; both read the table that holds them whole.

        Returns:
            The services of which not every entity has got its vector yet: see `fill_service`.

        Raises:
            AwsError: AWS refused.
        """
        if series_of(view) is not None:
            # No vector holds features of a series: each of its services is read from its views.
            replace = False
        connection = self.connection(config)
        # A service is declared beside the rows of all its views.
        of_services = ([one for one, _ in refs] for refs in services.values())
        for views in of_services:
            if any(one.name == view.name for one in views):
                self.refuse_anothers(config, *views)
        self.refuse_anothers(config, view)
        return connection.loops.run(
            self._services.declare(connection, config, services, view, replace=replace)
        )

    def fill_service(self, config: RepoConfig, spec: ServiceSpec) -> int:
        """Write the vector of each entity that has none; returns how many were written.

        Raises:
            StaleVectorsError: rows changed all the time.
            AwsError: AWS refused.
        """
        connection = self.connection(config)
        return connection.loops.run(maintain.fill(connection, spec))

    def write_precomputed_vector(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Refused: this store makes the vectors itself, of the rows it holds.

        Raises:
            OnlineStoreError: always.
        """
        raise OnlineStoreError(
            "DynamoOnlineStore makes the vectors of precomputed services itself, at each write of "
            "rows. To write those that are missing, call `precompute_feature_service` of "
            "DynamoProvider."
        )

    # Connection

    async def initialize(self, config: RepoConfig) -> None:
        """Called when a feature server starts."""
        connection = self.connection(config)
        if config.online_store.warmup_connections:
            try:
                await connection.transport.warm_up(WARM_CONNECTIONS)
            except AwsError as error:
                # A slow first request is no reason not to serve.
                logger.warning("no connection could be warmed up: %s", error)

    async def close(self) -> None:
        """Called when a feature server stops."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            await opened[1].close_async()

    def connection(self, config: RepoConfig) -> Connection:
        """The way to DynamoDB of this process; opened at the first call."""
        # A forked worker must not share its parent's sockets.
        opened = self._opened
        if opened is not None and opened[0] == os.getpid():
            return opened[1]
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                warn_of_other_provider(config)
                warn_of_unknown_keys(config)
                connection = Connection.open(config.online_store.connection())
                self._opened = (os.getpid(), connection)
            return self._opened[1]


async def _read(
    reads: Sequence[read.ViewRead], connection: Connection, settings: DynamoOnlineStoreConfig
) -> tuple[read.Answers | None, series_read.SeriesAnswers | None]:
    """What a request finds in tables of newest rows and of series, read side by side.

    Raises: as `read.read` and `series_read.read_series`.
    """
    may_be_partial = settings.on_partial == "mark"
    packed = [one for one in reads if not one.view.is_series]
    series = [one for one in reads if one.view.is_series]
    if not series:
        return await read.read(packed, connection, may_be_partial=may_be_partial), None
    events = series_read.read_series(series, connection, may_be_partial=may_be_partial)
    if not packed:
        return None, await events
    rows = read.read(packed, connection, may_be_partial=may_be_partial)
    # Both end before an error is raised: none is left behind in flight.
    found = await asyncio.gather(rows, events, return_exceptions=True)
    failed = [one for one in found if isinstance(one, BaseException)]
    if len(failed) > 1 and all(isinstance(one, IncompleteReadError) for one in failed):
        raise _both(*failed) from failed[0]
    if failed:
        # What AWS refuses is mended first.
        raise min(failed, key=lambda one: isinstance(one, IncompleteReadError))
    answers, of_series = found
    return answers, of_series  # type: ignore[return-value]


def _both(rows: Any, events: Any) -> IncompleteReadError:
    """One error that names what two parts of a read left."""
    return IncompleteReadError(f"{rows} {events}", unread={**rows.unread, **events.unread})


# What Feast raises of entity rows that it cannot convert, and of much else.
BAD_ROWS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)

_REQUEST: ContextVar[FeastRequest | None] = ContextVar("_REQUEST", default=None)


@contextlib.contextmanager
def _request(
    features: Any,
    rows: Any,
    registry: Any,
    project: str,
    full_feature_names: bool = False,
    *_: Any,
    **__: Any,
) -> Iterator[FeastRequest]:
    """The request of the thread or task, as long as it is answered.

    Raises:
        EntityKeyError: Feast cannot convert its entity rows.
        FeatureNotFoundError: it names a feature that there is not.
    """
    request = FeastRequest.checked(registry, project, rows)
    token = _REQUEST.set(request)
    try:
        yield request
    except FeastDynamoError:
        raise
    except BAD_ROWS:
        request.explain(features, full_feature_names=full_feature_names)
        raise
    finally:
        _REQUEST.reset(token)


def _service_request(features: Any, *args: Any, **kwargs: Any) -> ServiceRequest | None:
    """The request for a precomputed service that Feast's arguments are, if they are one."""
    if not getattr(features, "precompute_online", False):
        return None
    return ServiceRequest.from_arguments(features, *args, **kwargs)


def write_order(view: Any) -> Order:
    """Which row of an entity wins online.

    Items of a captured table have one state at a time, and so have the entities that they are:
    what was written last, of whatever event time.
    """
    if ViewSettings.from_view(view).series is not None:
        return "event"  # of one event
    tombstones = view_tombstones(view)
    return "written" if tombstones is not None and tombstones.is_applied else "event"


def winners(
    config: RepoConfig, view: Any, schema: RowSchema, rows: Iterable[Row]
) -> Sequence[Row | Event]:
    """Of rows of a view the one of each key that wins; of a series the one of each event.

    Raises:
        ColumnTypeError: a row that is no event of the series.
        OfflineStoreError, AwsError: see `series_in`.
    """
    series = series_in(config, view)
    if series is not None:
        return newest_per_event(map(EventMaker.from_series(view.name, series, schema), rows))
    by_written = write_order(view) == "written"
    return last_written_per_key(rows) if by_written else newest_per_key(rows)


def write_method(config: RepoConfig, view: Any) -> WriteMethod:
    """How a view's rows are written: the view's own setting, else the store's."""
    store = config.online_store
    mode = ViewSettings.from_view(view).write_mode or store.write_mode
    method: WriteMethod = "overwrite" if mode == "overwrite" else store.newest_wins_with
    return method
