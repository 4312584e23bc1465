"""What reads and writes need to know of a feature view, worked out once per view object."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from feast.infra.online_stores.helpers import compute_versioned_name

from feast_dynamo_ext.columns import ENTITYLESS_JOIN_KEYS, ENTITYLESS_VALUES, request_columns
from feast_dynamo_ext.dynamo.keys import KeyEncoder, text
from feast_dynamo_ext.dynamo.layouts.packed import RowSchema
from feast_dynamo_ext.errors import EntityKeyError
from feast_dynamo_ext.view_settings import ViewSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from feast import RepoConfig
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.value_type import ValueType

T = TypeVar("T")

MOST_REQUESTS = 1_000
"""Choices of features of one view that are remembered."""


@dataclass(frozen=True)
class KnownView:
    """A feature view as this store sees it.

    Attributes:
        table: name of its table.
        answers_as: the name under which a request knows it: its alias, with its version if it
            has one.
        schema: its current features.
        ttl_s: its ttl in whole seconds, rounded up; None where it has none (or a zero one).
        columns: (join key, the request's column that holds it), for each join key.
        encode: serializes its entity keys, from values in the order of `columns`.
        consistent: whether it is read strongly consistent.
        with_expired: whether rows past their ttl answer their values.
        projections: what `read` works out once for each kind of row and request.
    """

    table: str
    answers_as: str
    schema: RowSchema
    ttl_s: int | None
    columns: tuple[tuple[str, str], ...]
    encode: KeyEncoder
    consistent: bool
    with_expired: bool
    projections: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def oldest_us(self, now_s: float) -> float:
        """The event time from which on rows are within the ttl (the ttl itself counts)."""
        if not self.ttl_s:
            return float("-inf")
        # Whole seconds, as the expiry that DynamoDB deletes by: see `packed.expiry_s`.
        return (int(now_s) - self.ttl_s) * 1_000_000

    @classmethod
    def from_view(cls, view: Any, config: RepoConfig) -> KnownView:
        """Work it out.

        Raises:
            ConfigError: a tag of the view that is a setting and cannot be one.
        """
        columns, store = request_columns(view), config.online_store
        settings = ViewSettings.from_view(view)
        consistent, expired = settings.consistent_reads, settings.expired
        return cls(
            table=table_name(config, view),
            answers_as=view.projection.name_to_use(),
            schema=RowSchema.from_view(view),
            ttl_s=ttl_seconds(view),
            columns=columns,
            encode=KeyEncoder([name for name, _ in columns] or ENTITYLESS_JOIN_KEYS, view.name),
            consistent=store.consistent_reads if consistent is None else consistent,
            with_expired=(expired or store.expired) == "value",
        )


def keys_of_request(
    view: KnownView, values: Mapping[str, Sequence[Value]], rows: int
) -> tuple[str | None, ...]:
    """The key of each row of a request, in base64; None where a join key is null.

    Args:
        view: the feature view.
        values: the request's columns.
        rows: number of rows of the request.

    Raises:
        EntityKeyError: the request has no rows or lacks a join key of the view, or a key is too
            long.
    """
    if not rows:
        raise EntityKeyError(
            f"The request for feature view `{view.answers_as}` has no entity rows. "
            "Pass at least one, with the view's join keys."
        )
    missing = [column for _, column in view.columns if column not in values]
    if missing:
        raise EntityKeyError(
            f"Feature view `{view.answers_as}` needs the join keys {missing}, which "
            f"the request lacks; it has {sorted(values)}. Add them to every entity row."
        )
    encode = view.encode
    if not view.columns:
        return (text(encode(ENTITYLESS_VALUES)),) * rows
    return tuple(
        [
            None if None in [value.WhichOneof("val") for value in row] else text(encode(row))
            for row in zip(*[values[column] for _, column in view.columns], strict=True)
        ]
    )


class ByView(Generic[T]):
    """Something that is worked out once per view object. Safe to share between threads.

    Feast hands out the same view objects until its registry is refreshed; what belongs to the old
    ones is forgotten with them.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[weakref.ref[Any], T]] = {}

    def get(self, view: Any, make: Callable[[], T]) -> T:
        """What was made for a view, made now where it was not yet."""
        held = self._held.get(id(view))
        if held is not None and held[0]() is view:
            return held[1]
        made, key, entries = make(), id(view), self._held

        def forget(gone: weakref.ref[Any]) -> None:
            # By then another view may have the same id.
            if key in entries and entries[key][0] is gone:
                del entries[key]

        entries[key] = (weakref.ref(view, forget), made)
        return made


class KnownViews(ByView[KnownView]):
    """What is known of the feature views of one store."""

    def known(self, view: Any, config: RepoConfig) -> KnownView:
        """What is known of a view.

        Raises:
            ConfigError: a tag of the view that is a setting and cannot be one.
        """
        return self.get(view, lambda: KnownView.from_view(view, config))


ValueTypes = dict[str, "ValueType"]
_VALUE_TYPES: ByView[dict[tuple[str, ...], ValueTypes]] = ByView()


def value_types(refs: Iterable[tuple[Any, Iterable[str]]]) -> ValueTypes:
    """Feast's value type of each requested feature, by its name and by its full name."""
    found: ValueTypes = {}
    for view, requested in refs:
        of_view, names = _VALUE_TYPES.get(view, dict), tuple(requested)
        if names not in of_view:
            if len(of_view) >= MOST_REQUESTS:
                of_view.clear()
            of_view[names] = _value_types(view, set(names))
        found.update(of_view[names])
    return found


def _value_types(view: Any, requested: set[str]) -> ValueTypes:
    prefix = f"{view.projection.name_to_use()}__"
    kinds = {
        field.name: field.dtype.to_value_type()
        for field in view.features
        if field.name in requested
    }
    return {**kinds, **{prefix + name: kind for name, kind in kinds.items()}}


def table_name(config: RepoConfig, view: Any) -> str:
    """The name of a view's table; a version of a view has a table of its own."""
    versioned = config.registry.enable_online_feature_view_versioning
    name: str = config.online_store.table_name_template.format(
        project=config.project, table_name=compute_versioned_name(view, versioned)
    )
    return name


def ttl_seconds(view: Any) -> int | None:
    """A view's ttl in whole seconds, rounded up; None where it has none (or a zero one)."""
    ttl: timedelta | None = getattr(view, "ttl", None)
    return -(-ttl // timedelta(seconds=1)) if ttl else None
