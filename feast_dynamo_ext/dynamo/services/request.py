"""A request for a precomputed service, from Feast's arguments to Feast's answer."""

from __future__ import annotations

import logging
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feast.feature_service import FeatureService
from feast.online_response import OnlineResponse

from feast_dynamo_ext import _feast
from feast_dynamo_ext.dynamo.entity_keys import keys_of_request
from feast_dynamo_ext.dynamo.response import add_version
from feast_dynamo_ext.dynamo.services import declare as tables
from feast_dynamo_ext.dynamo.services.answer import Asked, add_vectors
from feast_dynamo_ext.dynamo.services.spec import ServiceSpec, spec_of
from feast_dynamo_ext.dynamo.services.vectors import VectorRead
from feast_dynamo_ext.dynamo.views import value_types

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from feast import RepoConfig

    from feast_dynamo_ext.dynamo.connection import Connection
    from feast_dynamo_ext.dynamo.services.spec import Refs
    from feast_dynamo_ext.dynamo.views import KnownView

    ReadPlainly = Callable[..., Awaitable[None]]

logger = logging.getLogger(__name__)

MOST_SERVICES = 1_000


@dataclass
class ServiceBook:
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
            spec = spec_of(service, refs, lambda one: connection.view(one, config))
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
            table = connection.view(view, config).table
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
    def of(
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
        book: ServiceBook,
        read_plainly: ReadPlainly,
    ) -> OnlineResponse:
        """Read the vectors, or the views where there can be none.

        Raises:
            EntityKeyError: the request lacks a join key, or has one that cannot be a key.
            IncompleteReadError: keys left unread at the deadline (`on_partial: error`).
        """
        started_s = time.monotonic()
        known = [connection.view(view, config) for view, _ in self.refs]
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
            await self._read_vectors(config, connection, book, spec, known)
        _feast.track_online_read(time.monotonic() - started_s)
        types = value_types(self.refs)
        _feast.drop_unneeded_columns(self.response, self.names)
        return OnlineResponse(self.response, feature_types=types)

    async def _read_vectors(
        self,
        config: RepoConfig,
        connection: Connection,
        book: ServiceBook,
        spec: ServiceSpec,
        known: Sequence[KnownView],
    ) -> None:
        count = max(map(len, self.columns.values()), default=0)
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
            Asked(view.answers_as, names, view.oldest_us(now_s), view.with_expired)
            for view, (_, names) in zip(known, self.refs, strict=True)
        ]
        add_vectors(self.response, spec, vectors, asked, full_names=self.full_names)
        if self.with_versions:
            for view, _ in self.refs:
                add_version(self.response, view)
