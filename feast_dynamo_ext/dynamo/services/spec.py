"""What a precomputed feature service consists of, and under which keys its vectors are kept.

Vectors are items of a view's own table under a reserved key, as schema items are: the first of
the service's views is their home. So a service needs no table, no IAM action on other resources
and no apply of its own, inherits encryption, backups and tags, is removed by `feast teardown`,
and a vector is found from its entity key alone, which erasure needs::

    ff ff ff ff "vector:" + 7 bytes of the service's name, hashed + serialized entity key
    ff ff ff ff "services"      names the services that a table's view is part of
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from feast.on_demand_feature_view import OnDemandFeatureView

from feast_dynamo_ext.dynamo.item import MAX_KEY_BYTES, RESERVED_PREFIX, RowSchema

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from feast_dynamo_ext.dynamo.views import KnownView

VECTOR_PREFIX = RESERVED_PREFIX + b"vector:"
SERVICES_KEY = base64.b64encode(RESERVED_PREFIX + b"services").decode()
"""Key of the item that names the services of a table's view, in base64."""

SERVICE_ATTRIBUTE = "p:"
"""Its attributes: this and a service's name; the value is the service's spec."""

FILLED_ATTRIBUTE = "d:"
"""The same: the fingerprint of the spec under which every entity has got its vector."""

# 18 bytes before the entity key: a multiple of 3, so that base64 texts can be joined.
NAME_BYTES = 7

Refs = list[tuple[Any, list[str]]]
"""Views of a request and the features asked of each, as Feast groups them."""


@dataclass(frozen=True)
class ServiceView:
    """A view's part of a service.

    Attributes:
        name: the name under which the service knows the view: its alias, with its version.
        table: table name.
        schema: the features that the service takes of it, in the order the view declares them.
    """

    name: str
    table: str
    schema: RowSchema


@dataclass(frozen=True)
class Place:
    """Where a view is in a vector.

    Attributes:
        index: among the views.
        positions: where each of its features is among the values, by name.
    """

    index: int
    positions: dict[str, int]


@dataclass(frozen=True)
class ServiceSpec:
    """What a service's vectors stand for.

    Attributes:
        service: name of the feature service.
        views: its views, in the order of their names.
    """

    service: str
    views: tuple[ServiceView, ...]

    @cached_property
    def text(self) -> str:
        """The spec as canonical JSON, as tables keep it."""
        views = [[view.name, view.table, view.schema.text] for view in self.views]
        return json.dumps([self.service, views], separators=(",", ":"))

    @staticmethod
    @lru_cache(maxsize=1_000)
    def parse(text: str) -> ServiceSpec:
        """The inverse of `text`."""
        service, views = json.loads(text)
        return ServiceSpec(
            service,
            tuple(ServiceView(name, table, RowSchema.parse(of)) for name, table, of in views),
        )

    @cached_property
    def fingerprint_text(self) -> str:
        """The first 8 bytes of the SHA-256 of `text`, in base64, as vectors carry them."""
        return base64.b64encode(hashlib.sha256(self.text.encode()).digest()[:8]).decode()

    @property
    def home(self) -> str:
        """The table that keeps the vectors."""
        return self.views[0].table

    @cached_property
    def tables(self) -> tuple[str, ...]:
        """The views' tables, the home first, each once."""
        return tuple(dict.fromkeys(view.table for view in self.views))

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where each view is in a vector, by the view's name."""
        places, start = {}, 0
        for index, view in enumerate(self.views):
            positions = {name: start + at for at, name in enumerate(view.schema.names)}
            places[view.name] = Place(index, positions)
            start += len(positions)
        return places

    @cached_property
    def width(self) -> int:
        """Number of features of a vector."""
        return sum(len(view.schema.names) for view in self.views)

    @cached_property
    def key_prefix(self) -> str:
        """What the keys of this service's vectors start with, in base64."""
        digest = hashlib.sha256(self.service.encode()).digest()[:NAME_BYTES]
        return base64.b64encode(VECTOR_PREFIX + digest).decode()

    def vector_key(self, entity_key: str) -> str | None:
        """The key of an entity's vector, in base64; None where it would be too long a key."""
        key = self.key_prefix + entity_key
        return key if len(key) // 4 * 3 - key.count("=") <= MAX_KEY_BYTES else None

    def entity_key(self, vector_key: str) -> str:
        """The inverse of `vector_key`."""
        return vector_key[len(self.key_prefix) :]


def is_reserved(key: str) -> bool:
    """Whether a key (base64) is one of this store's own items, not an entity's row."""
    return base64.b64decode(key[:8])[:4] == RESERVED_PREFIX


def precomputed_services(
    registry: Any, project: str, *, view: str | None = None, allow_cache: bool = False
) -> dict[str, Refs]:
    """The views of each service that is declared with `precompute_online`, by its name.

    Args:
        registry: Feast's.
        project: its project.
        view: only services that this view is part of.
        allow_cache: as the registry holds them, without asking whether they have changed.
    """
    services = registry.list_feature_services(project, allow_cache=allow_cache)
    return {
        service.name: [
            _projected(registry, project, projection, allow_cache)
            for projection in service.feature_view_projections
        ]
        for service in services
        if service.precompute_online
        and (
            view is None
            or any(projection.name == view for projection in service.feature_view_projections)
        )
    }


def _projected(
    registry: Any, project: str, projection: Any, allow_cache: bool
) -> tuple[Any, list[str]]:
    # As Feast does for a request, which it refuses while a view is being materialized.
    if projection.version_tag is None:
        view = registry.get_any_feature_view(projection.name, project, allow_cache)
    else:
        view = registry.get_feature_view_by_version(
            projection.name, project, projection.version_tag, allow_cache
        )
    projected = view.with_projection(copy.copy(projection))
    return projected, [field.name for field in projection.features]


def spec_of(service: str, refs: Refs, known_of: Callable[[Any], KnownView]) -> ServiceSpec | str:
    """The spec of a service, or why its views cannot be kept as one vector an entity.

    Args:
        service: its name.
        refs: its views and the features it takes of each, in any order.
        known_of: what the store knows of a view.
    """
    if not refs:
        return "it has no feature views"
    computed = [view.name for view, _ in refs if isinstance(view, OnDemandFeatureView)]
    if computed:
        return f"{computed} are on-demand feature views"
    known_refs = [(known_of(view), names) for view, names in refs]
    views = {known.answers_as: (known, names) for known, names in known_refs}
    columns = {name: known.columns for name, (known, _) in views.items()}
    if len(set(columns.values())) > 1:
        keys = {name: [column for _, column in pairs] for name, pairs in columns.items()}
        return f"its views have different join keys: {keys}"
    return ServiceSpec(
        service,
        tuple(
            ServiceView(name, known.table, _part(known.schema, names))
            for name, (known, names) in sorted(views.items())
        ),
    )


def _part(schema: RowSchema, names: Collection[str]) -> RowSchema:
    """The schema of some features of a view, in the order the view declares them."""
    pairs = zip(schema.names, schema.types, strict=True)
    held = [pair for pair in pairs if pair[0] in names]
    return RowSchema(tuple(name for name, _ in held), tuple(kind for _, kind in held))
