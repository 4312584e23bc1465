"""A request for a precomputed service, from Feast's arguments to Feast's answer.

Each feature vector is put together as bytes (see `cells`) and parsed by protobuf once.
"""

from __future__ import annotations

import logging
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from feast.feature_service import FeatureService
from feast.online_response import OnlineResponse

from feast_dynamo_ext import _feast
from feast_dynamo_ext.dynamo.layouts.packed import split, uniform_columns
from feast_dynamo_ext.dynamo.precomputed import maintain as tables
from feast_dynamo_ext.dynamo.precomputed.vectors import (
    NO_ROW,
    UNREAD_ROW,
    ServiceSpec,
    VectorRead,
    spec_of,
)
from feast_dynamo_ext.dynamo.read import (
    NOT_FOUND,
    NULL_CELL,
    OUTSIDE_MAX_AGE,
    PRESENT,
    UNREAD,
    add_version,
    refuse_too_many,
    status_entries,
    time_entry,
    vector_head,
)
from feast_dynamo_ext.dynamo.views import keys_of_request, value_types

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from feast import RepoConfig

    from feast_dynamo_ext.dynamo.client import Connection
    from feast_dynamo_ext.dynamo.precomputed.vectors import Refs, Vector
    from feast_dynamo_ext.dynamo.views import FeastRequest, KnownView

    ReadPlainly = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class RequestedView:
    """What a request asks of one view of a service.

    Attributes:
        view: the view's name in the service.
        features: feature names, in the order of the answer.
        oldest_us: the event time from which on rows are within the view's ttl.
        with_expired: answer the values of rows past their ttl too.
    """

    view: str
    features: Sequence[str]
    oldest_us: float = float("-inf")
    with_expired: bool = False


def add_vectors(
    response: Any,
    spec: ServiceSpec,
    vectors: Sequence[Vector],
    asked: Iterable[RequestedView],
    *,
    full_names: bool,
) -> None:
    """Append one feature vector per requested feature, as reading the views would.

    Args:
        response: the answer to extend.
        spec: what the vectors stand for.
        vectors: one a row of the request.
        asked: what is wanted of each view.
        full_names: answer features under their view's name and their own.
    """
    event_us = np.frombuffer(b"".join([vector.head for vector in vectors]), dtype="<i8")
    event_us = event_us.reshape(len(vectors), len(spec.views))
    columns = _Columns(spec, vectors)
    for one in asked:
        place = spec.places[one.view]
        answer = _ViewAnswer.from_request(event_us[:, place.index], one)
        prefix = f"{one.view}__" if full_names else ""
        response.metadata.feature_names.val.extend([prefix + name for name in one.features])
        merged: list[bytes] = []
        for name in one.features:
            position = place.positions[name]
            values = columns.cell(position, answer.hidden)
            tail = answer.tail(columns.lacking(position))
            merged += (vector_head(len(values) + len(tail)), values, tail)
        response.MergeFromString(b"".join(merged))


@dataclass(frozen=True)
class _ViewAnswer:
    """What all features of a view answer for the rows of a request, apart from values.

    Attributes:
        statuses: of each row.
        times: event times, as entries of a feature vector.
        hidden: rows whose values are not answered; None for none.
        plain_tail: what follows the values of a feature that no row lacks.
    """

    statuses: Any
    times: bytes
    hidden: Any
    plain_tail: bytes

    @classmethod
    def from_request(cls, event_us: Any, asked: RequestedView) -> _ViewAnswer:
        statuses = np.full(len(event_us), PRESENT)
        expired = event_us < asked.oldest_us
        statuses[expired] = OUTSIDE_MAX_AGE
        statuses[event_us == NO_ROW] = NOT_FOUND
        statuses[event_us == UNREAD_ROW] = UNREAD
        entries: Mapping[int, bytes] = {
            micros: time_entry(None if micros <= UNREAD_ROW else micros)
            for micros in set(event_us.tolist())
        }
        times = b"".join([entries[micros] for micros in event_us.tolist()])
        hidden = expired if expired.any() and not asked.with_expired else None
        return cls(statuses, times, hidden, status_entries(tuple(statuses.tolist())) + times)

    def tail(self, lacking: Any) -> bytes:
        """What follows the values of a feature.

        A row that is past its ttl says so of features that it lacks too, as long as it hides the
        others.
        """
        if lacking is None:
            return self.plain_tail
        not_found = lacking if self.hidden is None else lacking & ~self.hidden
        statuses = np.where(not_found, NOT_FOUND, self.statuses)
        return status_entries(tuple(statuses.tolist())) + self.times


class _Columns:
    """The values of a request's rows, feature by feature."""

    def __init__(self, spec: ServiceSpec, vectors: Sequence[Vector]) -> None:
        self._vectors = vectors
        self._uniform = uniform_columns([vector.packed for vector in vectors], range(spec.width))
        self._ragged: list[list[bytes]] | None = None
        self._lacks: Any = None
        if any(vector.lacks for vector in vectors):
            data = b"".join([vector.lacks or bytes(spec.width) for vector in vectors])
            self._lacks = np.frombuffer(data, dtype=np.uint8).reshape(len(vectors), spec.width) > 0

    def cell(self, position: int, hidden: Any) -> bytes:
        """One feature of all rows, as entries of field 1; null in hidden rows."""
        if self._uniform is not None and hidden is None:
            return self._uniform[position]
        if self._ragged is None:
            self._ragged = [split(vector.packed) for vector in self._vectors]
        if hidden is None:
            return b"".join([row[position] for row in self._ragged])
        return b"".join(
            [
                NULL_CELL if is_hidden else row[position]
                for row, is_hidden in zip(self._ragged, hidden.tolist(), strict=True)
            ]
        )

    def lacking(self, position: int) -> Any:
        """Rows that lack a feature; None for none."""
        if self._lacks is None or not self._lacks[:, position].any():
            return None
        return self._lacks[:, position]


logger = logging.getLogger(__name__)

MOST_SERVICES = 1_000


@dataclass
class ServiceCache:
    """The specs of the services that one store has seen. Threads share it safely.

    Feast hands out the same view objects until its registry is refreshed.
    """

    _held: dict[str, tuple[tuple[weakref.ref[Any], ...], ServiceSpec | str]] = field(
        default_factory=dict
    )
    _told: set[tuple[str, str]] = field(default_factory=set)
    _declared: set[str] = field(default_factory=set)

    def spec_of(
        self, service: str, refs: Refs, known_of: Callable[[Any], KnownView]
    ) -> ServiceSpec | None:
        """The spec of a service as it is now; None where it is read from its views."""
        held = self._held.get(service)
        if held is None or not _are(held[0], refs):
            if len(self._held) >= MOST_SERVICES:
                self._held.clear()
            views = tuple(weakref.ref(view) for view, _ in refs)
            held = self._held[service] = (views, spec_of(service, refs, known_of))
        if isinstance(held[1], ServiceSpec):
            return held[1]
        self.tell(service, held[1])
        return None

    async def declare(
        self,
        connection: Connection,
        config: RepoConfig,
        services: Mapping[str, Refs],
        view: Any,
        *,
        replace: bool,
    ) -> list[ServiceSpec]:
        """Declare the services of a view; those of which vectors are still missing."""
        unfilled, kept = [], set()
        for service, refs in services.items():
            if all(one.name != view.name for one, _ in refs):
                continue
            spec = spec_of(service, refs, lambda one: connection.views.known(one, config))
            if isinstance(spec, str):
                self.tell(service, spec)
                continue
            kept.add(service)
            if not replace and spec.text in self._declared:
                continue
            if await tables.declare(connection, spec, replace=replace):
                unfilled.append(spec)
            self._declared.add(spec.text)
        if replace:
            table = connection.views.known(view, config).table
            for spec in await tables.declared_services(connection, table):
                if spec.service not in kept:
                    logger.warning("feature service %s is not precomputed any more", spec.service)
                    self._declared.discard(spec.text)
                    await tables.retire(connection, spec)
        return unfilled

    def tell(self, service: str, what: str) -> None:
        """Warn of something about a service, once a process."""
        if (service, what) not in self._told:
            self._told.add((service, what))
            logger.warning("feature service %s is read from its views: %s", service, what)


def _are(held: tuple[weakref.ref[Any], ...], refs: Refs) -> bool:
    return len(held) == len(refs) and all(
        ref() is view for ref, (view, _) in zip(held, refs, strict=True)
    )


@dataclass(frozen=True)
class ServiceRequest:
    """What Feast makes of a request's arguments.

    Attributes:
        service: name of the service.
        columns: values by join key.
        refs: the views and what is wanted of each.
        join_keys: join keys by entity name.
        names: what the answer holds.
        response: the answer so far: the join keys.
        full_names: answer features under their view's name and their own.
        with_versions: say which version of each view answered.
    """

    service: str
    columns: dict[str, Any]
    refs: Refs
    join_keys: dict[str, str]
    names: set[str]
    response: Any
    full_names: bool
    with_versions: bool

    @classmethod
    def from_arguments(
        cls,
        features: Any,
        entity_rows: Any,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> ServiceRequest | None:
        """None where the request is not for a precomputed service.

        On-demand views are computed from the answer, so Feast reads their services plainly.
        """
        if not isinstance(features, FeatureService) or not features.precompute_online:
            return None
        if _feast.has_on_demand_views(
            registry, project, features, full_feature_names=full_feature_names
        ):
            return None
        prepared = _feast.prepare_request(
            registry, project, features, entity_rows, full_feature_names=full_feature_names
        )
        return cls(
            features.name,
            prepared.columns,
            prepared.refs,
            prepared.join_keys,
            prepared.names,
            prepared.response,
            full_feature_names,
            include_feature_view_version_metadata,
        )

    async def answer(
        self,
        config: RepoConfig,
        connection: Connection,
        book: ServiceCache,
        request: FeastRequest,
        read_plainly: ReadPlainly,
    ) -> OnlineResponse:
        """Read the vectors, or the views where there can be none.

        Raises:
            EntityKeyError: the request lacks a join key, or has one that cannot be a key.
            IncompleteReadError: keys left unread at the deadline (`on_partial: error`).
        """
        started_s = time.monotonic()
        if config.registry.enable_online_feature_view_versioning:
            request.restore_versions(view for view, _ in self.refs)
        known = [connection.views.known(view, config) for view, _ in self.refs]
        of_view = {id(view): one for (view, _), one in zip(self.refs, known, strict=True)}
        spec = book.spec_of(self.service, self.refs, lambda view: of_view[id(view)])
        if spec is None:
            await read_plainly(
                config,
                self.refs,
                self.columns,
                self.join_keys,
                self.response,
                self.full_names,
                self.with_versions,
            )
        else:
            await self._read_vectors(config, connection, book, spec, known, request)
        _feast.track_online_read(time.monotonic() - started_s)
        types = value_types(self.refs)
        _feast.drop_unneeded_columns(self.response, self.names)
        return OnlineResponse(self.response, feature_types=types)

    async def _read_vectors(
        self,
        config: RepoConfig,
        connection: Connection,
        book: ServiceCache,
        spec: ServiceSpec,
        known: Sequence[KnownView],
        request: FeastRequest,
    ) -> None:
        count = max(map(len, self.columns.values()), default=0)
        refuse_too_many(count, config.online_store.max_rows_per_request)
        request.completed(known, self.columns, self.response)
        request.check_keys(known, self.join_keys, count)
        if unknown := connection.answered.unknown(known):
            await connection.answered.refuse_anothers(unknown, connection.reader)
        read = VectorRead(
            spec,
            keys_of_request(known[0], self.columns, count),
            consistent=any(view.consistent for view in known),
            mark=config.online_store.on_partial == "mark",
        )
        vectors, without = await read.run(connection.reader, connection.schemas)
        if without and without == len({key for key in read.rows if key is not None}):
            book.tell(
                self.service,
                "none of a request's entities has a vector; `feast materialize` writes them, if "
                "feature_store.yaml has `provider: feast_dynamo_ext.DynamoProvider`",
            )
        now_s = time.time()
        asked = [
            RequestedView(view.answers_as, names, view.oldest_us(now_s), view.with_expired)
            for view, (_, names) in zip(known, self.refs, strict=True)
        ]
        add_vectors(self.response, spec, vectors, asked, full_names=self.full_names)
        if self.with_versions:
            for view, _ in self.refs:
                add_version(self.response, view)
