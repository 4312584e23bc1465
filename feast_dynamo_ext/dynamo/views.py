"""What reads and writes need to know of a feature view, worked out once per view object."""

from __future__ import annotations

import base64
import re
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from feast.infra.online_stores.helpers import compute_versioned_name
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from google.protobuf.timestamp_pb2 import Timestamp

from feast_dynamo_ext import _feast
from feast_dynamo_ext.columns import ENTITYLESS_JOIN_KEYS, ENTITYLESS_VALUES, request_columns
from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.dynamo.batch_get import TableKeys
from feast_dynamo_ext.dynamo.keys import (
    AS_THEY_ARE,
    KeyEncoder,
    are_as_they_are,
    refuse_inexact,
    text,
)
from feast_dynamo_ext.dynamo.layouts.packed import OWNER_ITEM, RESERVED_PREFIX, RowSchema
from feast_dynamo_ext.errors import ConfigError, EntityKeyError, FeatureNotFoundError
from feast_dynamo_ext.view_settings import ViewSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from feast import RepoConfig
    from feast.online_response import OnlineResponse
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.value_type import ValueType

    from feast_dynamo_ext.dynamo.batch_get import Reader
    from feast_dynamo_ext.series_settings import (
        Derived,
        Recent,
        RecentFeature,
        WindowFeature,
        Windows,
    )

T = TypeVar("T")

GRACE_S = 86_400
"""Seconds for which rows past their ttl can still be read, at least."""

OWNER_KEY = base64.b64encode(RESERVED_PREFIX + OWNER_ITEM).decode()

MOST_REQUESTS = 1_000
"""Choices of features of one view that are remembered."""


def _key_encoder(view: Any, names: Sequence[str]) -> KeyEncoder:
    if not names:
        return KeyEncoder(ENTITYLESS_JOIN_KEYS, view.name)
    types = {column.name: column.dtype.to_value_type().name for column in view.entity_columns}
    return KeyEncoder(names, view.name, [types[name] for name in names])


_KEY_KINDS: dict[Any, int] = {}


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
        owner: its table, project and name, if another project or view could have that table.
        is_series: whether its table keeps every event.
        derived: what it computes of the events of the table, which is that of its base view.
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
    owner: tuple[str, str, str] | None = None
    is_series: bool = False
    derived: KnownDerived | None = None
    projections: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def key_kind(self) -> int:
        """A number that views share whose keys of one request are alike."""
        return _KEY_KINDS.setdefault((self.columns, self.encode.types), len(_KEY_KINDS))

    @cached_property
    def typed_columns(self) -> tuple[tuple[str, str], ...]:
        """The request's columns of its keys, with their declared types."""
        pairs = zip(self.columns, self.encode.types, strict=True) if self.columns else ()
        return tuple((column, kind) for (_, column), kind in pairs if kind in AS_THEY_ARE)

    def oldest_us(self, now_s: float) -> float:
        """The event time from which on rows are within the ttl (the ttl itself counts)."""
        if not self.ttl_s:
            return float("-inf")
        # Whole seconds, as of the expiry that DynamoDB deletes by: see `packed.expiry_s`.
        return (int(now_s) - self.ttl_s) * 1_000_000

    @classmethod
    def from_view(cls, view: Any, config: RepoConfig) -> KnownView:
        """Work it out.

        Raises:
            ConfigError: a tag of the view that is a setting and cannot be one.
        """
        columns, store = request_columns(view), config.online_store
        derived = ViewSettings.from_view(view).derived
        # A derived view has no table: it reads that of its base view.
        base = view if derived is None else _base_of(view)
        settings = ViewSettings.from_view(base)
        consistent, table = settings.consistent_reads, table_name(config, base)
        is_shared = may_be_anothers(config, table)
        return cls(
            table=table,
            answers_as=view.projection.name_to_use(),
            schema=RowSchema.from_view(base),
            ttl_s=ttl_seconds(base),
            columns=columns,
            encode=_key_encoder(view, [name for name, _ in columns]),
            consistent=store.consistent_reads if consistent is None else consistent,
            with_expired=answers_expired(config, base),
            owner=(table, config.project, base.name) if is_shared else None,
            is_series=settings.series is not None or derived is not None,
            derived=None if derived is None else KnownDerived.from_view(view, derived),
        )


def _base_of(view: Any) -> Any:
    """The base of a derived view, as the registry carries it with the view.

    It says which table to read; what the table's items hold, they say themselves.

    Raises:
        ConfigError: there is none.
    """
    for base in getattr(view, "source_views", ()):
        return base
    raise ConfigError(
        f"Feature view `{view.name}` is derived, and has no base view. Make it with `recent` or "
        "`windows` of feast_dynamo_ext."
    )


@dataclass(frozen=True)
class KnownDerived:
    """What a derived view computes.

    Attributes:
        features: windows or lists, by the name of the feature.
        types: the features' types, by name.
        definition: the whole.
    """

    features: Mapping[str, WindowFeature | RecentFeature]
    types: Mapping[str, str]
    definition: Windows | Recent

    @classmethod
    def from_view(cls, view: Any, derived: Derived) -> KnownDerived:
        """Of a view's fields and its tag."""
        what = derived.what
        return cls(
            {feature.name: feature for feature in what.features},
            {field.name: field.dtype.to_value_type().name for field in view.features},
            what,
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


ROWS = (
    "Pass a list of dictionaries, one a row, or a dictionary of lists, with the views' join keys."
)


def _kind_of(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _is_column(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, (str, bytes))


def refuse_unknown_features(registry: Any, project: str, features: Any) -> None:
    """Refuse references of features that there are not; a feature service is as it was applied.

    Raises:
        FeatureNotFoundError: naming the reference, and the nearest feature.
        FeatureViewNotFoundException: Feast's, of an unknown view.
    """
    if hasattr(features, "feature_view_projections"):
        return
    if not isinstance(features, list):
        raise FeatureNotFoundError(
            f"The request's features are a {type(features).__name__}. Pass a list that names each "
            "as `view:feature`, or a feature service."
        )
    for reference in features or [""]:
        name, _, feature = reference.partition(":")
        if not feature:
            raise FeatureNotFoundError(
                f"The request names a feature `{reference}`. Name each as `view:feature`."
                if reference
                else "The request names no feature. Name each as `view:feature`."
            )
        view = registry.get_any_feature_view(name.partition("@")[0], project, allow_cache=True)
        known = [field.name for field in view.features]
        if feature not in known:
            hint = did_you_mean(feature, known, "It has")
            raise FeatureNotFoundError(f"Feature view `{name}` has no feature `{feature}`. {hint}")


@dataclass
class FeastRequest:
    """What Feast was given for a request, and does not hand on to who reads its views.

    Attributes:
        registry: Feast's.
        project: its project.
        rows: the entity rows, as a list of rows or as columns.
        shared: join keys that are data of the request too, which Feast took for that alone.
    """

    registry: Any
    project: str
    rows: Any
    shared: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def checked(cls, registry: Any, project: str, rows: Any) -> FeastRequest:
        """The request.

        Raises:
            EntityKeyError: it has no entity rows.
        """
        try:
            are_none = not len(rows) or (isinstance(rows, list) and rows[0] == {})
        except TypeError:
            raise EntityKeyError(
                f"The request's entity rows are {_kind_of(rows)}. {ROWS}"
            ) from None
        if are_none:
            raise EntityKeyError(
                "The request has no entity rows. Pass at least one, with the views' join keys."
            )
        return cls(registry, project, rows)

    def check_keys(
        self, views: Iterable[KnownView], names: Mapping[str, str], answered: int
    ) -> None:
        """Refuse values that Feast has made another key of: an integer of 1.5, for example.

        Args:
            views: the views that are read.
            answered: how many rows Feast answers: it drops rows that lack their keys.
            names: join keys by entity name, which a request may have in their place.

        Raises:
            EntityKeyError: naming the join key and the row.
        """
        if isinstance(self.rows, list) and len(self.rows) != answered:
            self._refuse_shape()
        seen = set()
        for view in views:
            if view.key_kind not in seen:
                seen.add(view.key_kind)
                for column, kind in view.typed_columns:
                    values = self._values(column, names)
                    if not are_as_they_are(values, kind):
                        refuse_inexact(values, kind, column)

    def explain(self, features: Any, *, full_feature_names: bool) -> None:
        """Say why Feast refused the request, if that is its features or its entity rows.

        Raises:
            FeatureNotFoundError: naming the reference.
            EntityKeyError: naming the join key and the row.
        """
        refuse_unknown_features(self.registry, self.project, features)
        kinds, names = _feast.key_types(
            self.registry, self.project, features, full_feature_names=full_feature_names
        )
        self._refuse_shape()
        for column, kind in kinds.items():
            if kind in AS_THEY_ARE:
                refuse_inexact(self._values(column, names), kind, column)

    def _refuse_shape(self) -> None:
        rows = self.rows
        if isinstance(rows, list):
            for at, row in enumerate(rows):
                if not isinstance(row, Mapping):
                    raise EntityKeyError(
                        f"Row {at} of the request (counted from 0) is {_kind_of(row)}. {ROWS}"
                    )
            lengths = {len(row) for row in rows}
            what = "rows with different columns"
        else:
            is_mapping = isinstance(rows, Mapping)
            given = rows.values() if is_mapping else ()
            columns = [getattr(column, "val", column) for column in given]
            if not is_mapping or not all(map(_is_column, columns)):
                raise EntityKeyError(
                    "The columns of the request's entity rows must be lists: of an array or a "
                    "series pass `tolist()`, of a data frame `to_dict('records')`."
                )
            lengths = {len(column) for column in columns}
            what = f"columns of {' and '.join(map(str, sorted(lengths)))} rows"
        if len(lengths) > 1:
            raise EntityKeyError(
                f"The request has {what}. Give every entity row the same join keys, None where "
                "it has no entity."
            )

    def _values(self, column: str, names: Mapping[str, str]) -> Sequence[Any]:
        """The request's values of a join key, as they came."""
        rows = self.rows
        first = rows[0] if isinstance(rows, list) else rows
        if column not in first:
            others = [name for name, join_key in names.items() if join_key == column]
            column = next((name for name in others if name in first), column)
        if isinstance(rows, list):
            return [row.get(column) for row in rows]
        values = rows.get(column, ())
        found: Sequence[Any] = getattr(values, "val", values)
        if isinstance(found, (str, bytes)):
            self._refuse_shape()  # Feast takes each of its characters for a row
        return found

    def restore_versions(self, views: Iterable[Any]) -> None:
        """Give views their versions: the copies that Feast makes of a view have none.

        It copies the views of services, and those that on-demand views are computed from.
        """
        for view in views:
            if view.current_version_number is None and view.projection.version_tag is None:
                whole = self.registry.get_any_feature_view(
                    view.name, self.project, allow_cache=True
                )
                # A number in any case, so that the registry is asked once.
                view.current_version_number = whole.current_version_number or 0

    def completed(
        self, views: Iterable[KnownView], values: Mapping[str, Sequence[Value]], response: Any
    ) -> Mapping[str, Sequence[Value]] | None:
        """A request's columns with the join keys that are data of the request too.

        Args:
            views: the views that are read.
            values: the columns that Feast took for join keys.
            response: the answer so far, which has the request's data.

        Returns:
            None where no join key is missing.

        Raises:
            EntityKeyError: one is missing from the request altogether, which names it.
        """
        lacking = {
            column: view for view in views for _, column in view.columns if column not in values
        }
        names = list(response.metadata.feature_names.val)
        self.shared.update(
            (column, response.results[names.index(column)].values)
            for column in lacking
            if column in names
        )
        missing = [column for column in lacking if column not in self.shared]
        if missing:
            rows = self.rows[:1] if isinstance(self.rows, list) else [self.rows]
            given = sorted({name for row in rows for name in row})
            raise EntityKeyError(
                f"Feature view `{lacking[missing[0]].answers_as}` needs {_quoted(missing)}, which "
                f"the request lacks; it has {_quoted(given)}. Add the join key to every entity "
                "row."
            )
        return {**values, **self.shared} if lacking else None

    def finish(self, answer: OnlineResponse) -> OnlineResponse:
        """The answer, with the join keys that Feast has dropped as data of the request."""
        if not self.shared:
            return answer
        response = answer.proto
        answered = set(response.metadata.feature_names.val)
        for name, values in self.shared.items():
            if name not in answered:
                response.metadata.feature_names.val.append(name)
                response.results.add(
                    values=values,
                    statuses=[FieldStatus.PRESENT] * len(values),
                    event_timestamps=[Timestamp()] * len(values),
                )
        return answer


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"


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


VERSION = re.compile(r"_v[1-9]\d*$")
"""How the table of a view's later version ends: see Feast's `compute_versioned_name`."""


def may_be_anothers(config: RepoConfig, table: str) -> bool:
    """Whether a table's name may be that of a view of another name, or of another project."""
    template = config.online_store.table_name_template
    before, between, after = around_names(template)
    own = table.removeprefix(before).removesuffix(after)
    # `between` stands between project and view; where it stands twice, the name can be cut twice.
    cuts = own.count(between) if between else 0
    return cuts != 1 or bool(VERSION.search(own))


def around_names(template: str) -> tuple[str, str, str]:
    """What stands before, between and after project and view in a template.

    All are empty where it has not each of them once.
    """
    parts = re.split(r"\{(project|table_name)\}", template)
    if sorted(parts[1::2]) != ["project", "table_name"]:
        return "", "", ""
    return parts[0], parts[2], parts[4]


@dataclass
class WrittenTables:
    """Whose the tables are that a process writes into; each is looked at before its first row.

    `feast apply` may have been refused, may have come before the table (`manage_tables: never`),
    or was run by another project since. Only tables whose names may be another's are looked at;
    of nobody's, the first writer is the owner. Threads share it safely.
    """

    _ours: set[tuple[str, str, str]] = field(default_factory=set)

    def forget(self, table: str) -> None:
        """Look again at a table that may be new."""
        self._ours -= {one for one in self._ours if one[0] == table}

    def is_unknown(self, config: RepoConfig, view: Any) -> bool:
        """Whether a view's table is still to be looked at."""
        key = (table_name(config, view), config.project, view.name)
        if key not in self._ours and not may_be_anothers(config, key[0]):
            self._ours.add(key)
        return key not in self._ours

    def refuse_anothers(self, dynamodb: Any, config: RepoConfig, view: Any) -> None:
        """Refuse to write a view's rows into a table of another view or project.

        Raises:
            TableTakenError: in the words of `feast apply`.
            AwsError: AWS refused.
        """
        if self.is_unknown(config, view):
            # Who reads does without it, and who writes under names of his own.
            from feast_dynamo_ext.dynamo.tables import describe

            table = table_name(config, view)
            is_series = ViewSettings.from_view(view).series is not None
            spec = describe.TableSpec(
                table, view.name, config.project, may_be_anothers=True, is_series=is_series
            )
            if describe.refuse_anothers(dynamodb, config.online_store.aws(), spec):
                self._ours.add((table, config.project, view.name))


LOOK_AGAIN_S = 60.0
"""A table that said nothing of whose it is may have been claimed since."""


@dataclass
class ReadTables:
    """Whose the tables are that a process reads; each is looked at before its first answer.

    Tables whose names only one view can have are not looked at. Threads share it safely.
    """

    _next_look_s: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def unknown(
        self, views: Iterable[KnownView], now_s: float | None = None
    ) -> list[tuple[str, str, str]]:
        """The tables, projects and views that are still to be looked at."""
        owners = [view.owner for view in views if view.owner is not None]
        if not owners:
            return owners
        now_s = time.monotonic() if now_s is None else now_s
        return [owner for owner in owners if self._next_look_s.get(owner, 0.0) <= now_s]

    async def refuse_anothers(
        self,
        owners: Sequence[tuple[str, str, str]],
        reader: Reader,
        started_s: float | None = None,
        *,
        is_series: bool = False,
    ) -> None:
        """Refuse to answer rows of another view or project.

        Raises:
            TableTakenError: a table is another's, in the words of `feast apply`.
            AwsError: AWS refused.
        """
        tables = {one[0] for one in owners}
        keys = [TableKeys(table, (OWNER_KEY,), is_series=is_series) for table in tables]
        result = await reader.read_partial(keys, started_s)
        for owner in owners:
            table, project, view = owner
            item = result.found[table].get(OWNER_KEY)
            if item is not None:
                from feast_dynamo_ext.dynamo.tables import describe

                said = {name: item.get(name, {}).get("S", "") for name in ("project", "view")}
                spec = describe.TableSpec(table, view, project)
                describe.Owner(said).refuse_anothers(spec)
                self._next_look_s[owner] = float("inf")
            elif table not in result.unread:
                self._next_look_s[owner] = time.monotonic() + LOOK_AGAIN_S


def answers_expired(config: RepoConfig, view: Any) -> bool:
    """Whether rows past their view's ttl answer their values: the view's own setting wins."""
    store = config.online_store
    return (ViewSettings.from_view(view).expired or getattr(store, "expired", None)) == "value"


def kept_seconds(config: RepoConfig, view: Any) -> int | None:
    """How long after its event time DynamoDB keeps a row; None for as long as the table lives.

    A day longer than the ttl, so that readers meet a row that is past it before it is gone. Of a
    series as long as its `keep_for` says.
    """
    series = ViewSettings.from_view(view).series
    if series is not None:
        return None if series.keep_for is None else -(-series.keep_for // timedelta(seconds=1))
    ttl_s = ttl_seconds(view)
    return None if ttl_s is None or answers_expired(config, view) else ttl_s + GRACE_S


def ttl_seconds(view: Any) -> int | None:
    """A view's ttl in whole seconds, rounded up; None where it has none (or a zero one)."""
    ttl: timedelta | None = getattr(view, "ttl", None)
    return -(-ttl // timedelta(seconds=1)) if ttl else None
