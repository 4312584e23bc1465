"""Precomputed feature services: what they consist of, and their vectors, one item an entity.

Vectors are items of a view's own table under a reserved key, as schema items are: the first of
the service's views is their home. So a service needs no table, no IAM action on other resources
and no apply of its own, inherits encryption, backups and tags, is removed by `feast teardown`,
and a vector is found from its entity key alone, which erasure needs::

    ff ff ff ff "vector:" + 7 bytes of the service's name, hashed + serialized entity key
    ff ff ff ff "services"      names the services that a table's view is part of

====  ====  ===============================================================================
name  type  meaning
====  ====  ===============================================================================
k     B     see `service_spec`
v     B     the values of all views in the order of the spec, one `RepeatedValue` message
h     B     the event time of each view's row, microseconds since 1970 UTC: an int64 a view,
            little-endian; the least int64 for no row
l     B     a byte for each feature, 1 where the view's row was written before the view had
            it; absent where that is so nowhere
f     B     fingerprint of the service's spec: a vector of another spec is not read
x     N     the latest expiry of the rows, if all of them have one (DynamoDB's TTL attribute)
====  ====  ===============================================================================

A vector is nothing but the views' rows side by side, so it answers what reading the views would:
values past their view's ttl are OUTSIDE_MAX_AGE and null, times are the rows' event times. An
entity without a vector is read from the views themselves.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import struct
from binascii import a2b_base64
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from feast.on_demand_feature_view import OnDemandFeatureView

from feast_dynamo_ext.dynamo.batch_get import TableKeys
from feast_dynamo_ext.dynamo.layouts.packed import (
    EXPIRY,
    FINGERPRINT,
    KEY,
    MAX_ITEM_BYTES,
    MAX_KEY_BYTES,
    PACKED,
    RESERVED_PREFIX,
    VALUES,
    RowSchema,
    cells_of,
    item_bytes,
)
from feast_dynamo_ext.dynamo.read import NULL_CELL
from feast_dynamo_ext.errors import ItemFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from feast_dynamo_ext.dynamo.batch_get import Found, Reader, ReadResult
    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.dynamo.schemas import SchemaCache
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
    # Which Feast's copy has not.
    projected.current_version_number = view.current_version_number
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
    of_series = [known.answers_as for known, _ in known_refs if known.is_series]
    if of_series:
        return f"features of {of_series} are computed of events at each request"
    views = {known.answers_as: (known, names) for known, names in known_refs}
    columns = {name: known.columns for name, (known, _) in views.items()}
    if len(set(columns.values())) > 1:
        keys = {name: [column for _, column in pairs] for name, pairs in columns.items()}
        return f"its views have different join keys: {keys}"
    types = {name: known.encode.types for name, (known, _) in views.items()}
    if len(set(types.values())) > 1:
        kinds = {name: list(kind) for name, kind in types.items()}
        return f"its views declare their join keys as different types: {kinds}"
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


HEAD, LACKS = "h", "l"
NO_ROW, UNREAD_ROW = -(2**63), -(2**63) + 1
"""Instead of an event time: there is no row, or it could not be read."""

VOID_FINGERPRINT = base64.b64encode(bytes(8)).decode()


@dataclass(frozen=True)
class Vector:
    """One entity's values of all views.

    Attributes:
        packed: the values of all views.
        head: event time of each view's row, packed.
        lacks: which features the views' rows lack; empty for none.
    """

    packed: bytes
    head: bytes
    lacks: bytes = b""

    @classmethod
    def empty(cls, spec: ServiceSpec, instead: int = NO_ROW) -> Vector:
        """The vector of an entity that is in no view, or whose rows could not be read."""
        return cls(NULL_CELL * spec.width, struct.pack("<q", instead) * len(spec.views))


Rows = tuple["JsonItem | None", ...]
"""An entity's rows, one a view of the service; None where a view has none."""


def rows_of(spec: ServiceSpec, key: str, found: Found) -> Rows:
    """The rows of an entity key (base64) among those found."""
    return tuple([found[view.table].get(key) for view in spec.views])


def vector_of(
    spec: ServiceSpec,
    rows: Rows,
    book: SchemaCache,
    unread: Collection[str] = (),
    *,
    mark: bool = False,
) -> Vector:
    """The vector of an entity.

    Args:
        spec: the service.
        rows: the entity's rows.
        book: what the rows' values stand for.
        unread: tables whose row could not be read.
        mark: take a row that cannot be explained for one that could not be read.

    Raises:
        ItemFormatError: a row is not in this store's layout, and `mark` is off.
    """
    packed, times, lacks = [], [], []
    for view, row in zip(spec.views, rows, strict=True):
        found = None if row is None else _values(view, row, book, mark=mark)
        if found is None:
            packed.append(NULL_CELL * len(view.schema.names))
            is_there = row is not None or view.table in unread
            times.append(UNREAD_ROW if is_there else NO_ROW)
            lacks.append(bytes(len(view.schema.names)))
            continue
        values, event_us, lacking = found
        packed.append(values)
        times.append(event_us)
        lacks.append(lacking)
    head, lack = struct.pack(f"<{len(times)}q", *times), b"".join(lacks)
    return Vector(b"".join(packed), head, lack if any(lack) else b"")


def _values(
    view: ServiceView, row: JsonItem, book: SchemaCache, *, mark: bool
) -> tuple[bytes, int, bytes] | None:
    """What the service takes of a row, its event time, and which features the row lacks."""
    try:
        _, packed, event_us = PACKED.decode(row, view.table)
        columns = book.columns_of(view.table, row, view.schema, view.schema.names)
        cells = cells_of(packed, view.table)
        wanted = [NULL_CELL if column is None else column.cell_of(cells) for column in columns]
    except ItemFormatError as error:
        if not mark:
            raise
        book.warn(view.table, error)
        return None
    return b"".join(wanted), event_us, bytes([column is None for column in columns])


def to_item(spec: ServiceSpec, vector_key: str, rows: Rows, book: SchemaCache) -> JsonItem:
    """The item of an entity's vector.

    Where it would be too large, or a row cannot be explained, it is an item that no reader takes
    for a vector: readers of the entity then read its views.
    """
    void: JsonItem = {KEY: {"B": vector_key}, FINGERPRINT: {"B": VOID_FINGERPRINT}}
    try:
        vector = vector_of(spec, rows, book)
    except ItemFormatError as error:
        book.warn(spec.home, error)
        return void
    item: JsonItem = {
        KEY: {"B": vector_key},
        VALUES: {"B": base64.b64encode(vector.packed).decode()},
        HEAD: {"B": base64.b64encode(vector.head).decode()},
        FINGERPRINT: {"B": spec.fingerprint_text},
    }
    if vector.lacks:
        item[LACKS] = {"B": base64.b64encode(vector.lacks).decode()}
    there = [row for row in rows if row is not None]
    if there and all(EXPIRY in row for row in there):
        item[EXPIRY] = {"N": str(max(int(row[EXPIRY]["N"]) for row in there))}
    return void if item_bytes(item) > MAX_ITEM_BYTES else item


def from_item(spec: ServiceSpec, item: JsonItem) -> Vector | None:
    """The inverse of `to_item`; None where the item is a vector of another spec, or none."""
    try:
        if item[FINGERPRINT]["B"] != spec.fingerprint_text:
            return None
        lacks = a2b_base64(item[LACKS]["B"]) if LACKS in item else b""
        return Vector(a2b_base64(item[VALUES]["B"]), a2b_base64(item[HEAD]["B"]), lacks)
    except (KeyError, ValueError):
        return None


@dataclass(frozen=True)
class VectorRead:
    """What a request asks of a service.

    Attributes:
        spec: the service.
        rows: each row's entity key in base64; None where a join key is null.
        consistent: strongly consistent reads.
        mark: answer what could not be read as unread, instead of failing.
    """

    spec: ServiceSpec
    rows: tuple[str | None, ...]
    consistent: bool = False
    mark: bool = False

    async def run(self, reader: Reader, book: SchemaCache) -> tuple[list[Vector], int]:
        """The vector of each row, and how many entities were read from the views instead.

        Raises:
            IncompleteReadError: keys were left unread at the deadline, and `mark` is off.
        """
        spec, started_s = self.spec, reader.policy.clock()
        keys = {key: spec.vector_key(key) for key in self.rows if key is not None}
        wanted = tuple([key for key in keys.values() if key is not None])
        of_home = [TableKeys(spec.home, wanted, self.consistent)]
        result = await self._read(reader, of_home, started_s)
        items, unread = result.found[spec.home], set(result.unread.get(spec.home, ()))
        held: dict[str | None, Vector] = {}
        for key, vector_key in keys.items():
            item = items.get(vector_key or "")
            vector = from_item(spec, item) if item else None
            if vector is not None:
                held[key] = vector
            elif vector_key in unread:
                held[key] = Vector.empty(spec, UNREAD_ROW)
        missing = tuple([key for key in keys if key not in held])
        if missing:
            held.update(await self._from_views(missing, reader, book, started_s))
        nothing = Vector.empty(spec)
        return [held.get(key, nothing) for key in self.rows], len(missing)

    async def _from_views(
        self, keys: tuple[str, ...], reader: Reader, book: SchemaCache, started_s: float
    ) -> dict[str, Vector]:
        spec = self.spec
        wanted = [TableKeys(table, keys, self.consistent) for table in spec.tables]
        result = await self._read(reader, wanted, started_s)
        await book.fetch_missing(result.found, reader, started_s)
        lost: dict[str, set[str]] = {}
        for table, unread in result.unread.items():
            for key in unread:
                lost.setdefault(key, set()).add(table)
        return {
            key: vector_of(
                spec, rows_of(spec, key, result.found), book, lost.get(key, ()), mark=True
            )
            for key in keys
        }

    async def _read(
        self, reader: Reader, wanted: Sequence[TableKeys], started_s: float
    ) -> ReadResult:
        result = await reader.read_partial(wanted, started_s)
        if result.unread and not self.mark:
            raise reader.incomplete(result) from result.cause
        return result
