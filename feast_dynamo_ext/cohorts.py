"""Finds the entities of a cohort by a global index.

::

    for customer in cohort(store, "purchases", category="books", start=last_month, limit=1_000):
        ...  # {"customer_id": 7}

The index has the keys alone, of each row or event whose value is not null: the newest first. One
partition key of an index serves at most 3,000 read units a second, 24 MB of keys, and takes 1,000
write units: a value that most rows have is a limit to all of its readers and writers. A warning
says where one cohort takes more than a hundred pages of 1 MB.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from binascii import a2b_base64
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.dynamo.key_bounds import typed
from feast_dynamo_ext.dynamo.keys import text
from feast_dynamo_ext.dynamo.layouts.packed import EVENT_TIME, KEY, RESERVED_PREFIX, entity_of
from feast_dynamo_ext.dynamo.layouts.series import (
    COHORT,
    COHORT_INDEX,
    SORT,
    cohort_text,
    time_bytes,
)
from feast_dynamo_ext.dynamo.query import items_of
from feast_dynamo_ext.dynamo.retry import send
from feast_dynamo_ext.dynamo.series_read import read_moment
from feast_dynamo_ext.errors import (
    AwsError,
    ConfigError,
    ItemFormatError,
    TableLayoutError,
)
from feast_dynamo_ext.range_read import dynamo_store
from feast_dynamo_ext.timestamps import MICROSECOND, micros_of
from feast_dynamo_ext.view_settings import ViewSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from feast import FeatureStore

    from feast_dynamo_ext.dynamo.client import Connection
    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem

logger = logging.getLogger(__name__)

MANY_PAGES = 100
"""Pages of 1 MB of one value's keys, from which on a warning is logged."""

LEAST_PAGE, LARGEST_PAGE = 25, 4_000
"""Keys of a page that a limit makes smaller than 1 MB, at least and at most."""

PAGE_GROWTH = 4
"""By how much the next page is larger: events of a few entities may fill many small ones."""

NO_INDEX = {"ValidationException", "ResourceNotFoundException"}
"""What DynamoDB answers, and what stands in for it, of an index that is not there."""


def cohort(
    store: FeatureStore,
    view: str,
    *,
    limit: int | None = None,
    start: datetime | None = None,
    token: str | None = None,
    **by: Any,
) -> Cohort:
    """The entities whose rows or events have a value, those of the newest first, each once.

    ::

        books = cohort(store, "purchases", category="books", limit=100)
        first = list(books)
        more = list(cohort(store, "purchases", category="books", token=books.token))

    The view declares the feature as a cohort: `Series(cohorts=("category",))` where it keeps every
    event, `ViewSettings(cohorts=("segment",))` where it keeps the newest row. Rows that were
    written before that are found once they are written again. Global indexes are eventually
    consistent. Events and rows past the view's ttl, or kept longer than `keep_for`, do not count,
    whether or not DynamoDB has deleted them yet.

    Nothing is read before the first entity is taken; then a page at a time (1 MB of keys, some
    8,000). A page that cannot be read raises, and the next call of `next` tries it again.

    Args:
        store: the feature store.
        view: name of the feature view.
        limit: at most so many entities.
        start: only events, or rows, from this time on count; without a zone it is UTC.
        token: `token` of another iterator over the same cohort, in this process or another: go on
            after the entity that was its last. Of a series, what was gone through already is read
            once more, to know which entities were in it. An event that came late into that part
            may leave its entity out.
        by: one feature and its value.

    Raises:
        ConfigError: no such cohort, a value of another type, a token of another cohort.
        FeatureViewNotFoundException: Feast's, of an unknown view.
    """
    online = dynamo_store(store)
    connection = online.connection(store.config)
    found = store.registry.get_any_feature_view(view, store.project, allow_cache=True)
    settings = ViewSettings.from_view(found)
    name, value = _declared(found, settings, by)
    known = connection.views.known(found, store.config)
    if limit is not None and not (isinstance(limit, int) and limit >= 1):
        raise ConfigError(f"Feature view `{view}`: `limit` must be a whole number of at least 1.")
    if not isinstance(start, (datetime, type(None))):
        raise ConfigError(f"Feature view `{view}`: `start` must be a datetime.")
    now_us, _ = read_moment()
    firsts = [] if start is None else [micros_of(start)]
    if known.ttl_s is not None and (known.is_series or not known.with_expired):
        firsts.append(now_us - known.ttl_s * 1_000_000)
    if settings.series is not None and settings.series.keep_for is not None:
        firsts.append(now_us - settings.series.keep_for // MICROSECOND)
    index = CohortIndex(
        view, known.table, name, value, max(firsts, default=None), is_series=known.is_series
    )

    async def refuse_anothers() -> None:
        unknown = connection.answered.unknown([known])
        if unknown:
            await connection.answered.refuse_anothers(
                unknown, connection.reader, is_series=known.is_series
            )

    return Cohort(connection, index, limit, index.resumed(token), refuse_anothers)


def _declared(view: Any, settings: ViewSettings, by: Mapping[str, Any]) -> tuple[str, str]:
    """The feature of a cohort, and the partition key of its value.

    Raises:
        ConfigError: says what to declare or to pass.
    """
    subject = f"Feature view `{view.name}`"
    series = settings.series
    names = settings.cohorts if series is None else series.cohorts
    if len(by) != 1:
        given = f"`{'`, `'.join(by)}`" if by else "nothing"
        example = f"{names[0] if names else 'category'}=..."
        raise ConfigError(
            f"{subject}: a cohort is one feature and its value, {example}, and {given} was passed."
        )
    ((name, value),) = by.items()
    types = {
        field.name: field.dtype.to_value_type().name for field in getattr(view, "features", ())
    }
    if settings.derived is not None:
        raise ConfigError(
            f"{subject} is derived, and has no cohorts. Find the entities by its base view, "
            f"`{settings.derived.base}`."
        )
    if name not in names:
        if name not in types:
            raise ConfigError(
                f"{subject} has no feature `{name}`. {did_you_mean(name, types, 'It has')}"
            )
        kept = json.dumps([*names, name])
        declare = f"ViewSettings(cohorts={kept})" if series is None else f"Series(cohorts={kept})"
        raise ConfigError(
            f"{subject}: entities cannot be found by `{name}`, which has no index. Declare "
            f"{declare}, run `feast apply`, and write the rows again that are to be found."
        )
    text = cohort_text(typed(value, types[name], f"{subject}: the value of `{name}`"))
    if text is None:
        raise AssertionError(name)
    return name, text


# The index


@dataclass(frozen=True)
class Position:
    """A place in a cohort.

    Attributes:
        key: serialized entity key, in base64.
        sort: the event's sort key, or the row's event time, in DynamoDB JSON.
        top: that of the newest one when the cohort was begun.
    """

    key: str
    sort: JsonValue
    top: JsonValue


JsonValue = dict[str, str]


@dataclass(frozen=True)
class CohortIndex:
    """The keys of one value in a global index.

    Attributes:
        view: name of the feature view.
        table: table name.
        feature: by which entities are found.
        value: the value as partition key.
        first_us: the first event time that counts, microseconds since 1970 UTC; None for any.
        is_series: whether the table keeps every event.
    """

    view: str
    table: str
    feature: str
    value: str
    first_us: int | None
    is_series: bool

    @property
    def name(self) -> str:
        """Of the index."""
        return COHORT_INDEX + self.feature

    @property
    def sort(self) -> str:
        """The attribute that is its sort key."""
        return SORT if self.is_series else EVENT_TIME

    def request(
        self, last: JsonValue | None = None, first: JsonValue | None = None
    ) -> dict[str, Any]:
        """The Query of its keys, the newest first, up to `last` and from `first` on."""
        values = {":g": {"S": self.value}}
        condition = "#g = :g"
        lowest = first or self._lowest()
        if last is not None and lowest is not None:
            condition += f" AND {self.sort} BETWEEN :l AND :h"
            values |= {":l": lowest, ":h": last}
        elif lowest is not None:
            condition += f" AND {self.sort} >= :l"
            values |= {":l": lowest}
        return {
            "TableName": self.table,
            "IndexName": self.name,
            "KeyConditionExpression": condition,
            "ExpressionAttributeNames": {"#g": COHORT + self.feature},
            "ExpressionAttributeValues": values,
            "ProjectionExpression": f"{KEY},{self.sort}",
            "ScanIndexForward": False,
        }

    def _lowest(self) -> JsonValue | None:
        if self.first_us is None:
            return None
        if not self.is_series:
            return {"N": str(self.first_us)}
        return {"B": text(time_bytes(self.first_us))}

    def start_key(self, position: Position) -> JsonItem:
        """The key of a place, as DynamoDB has it of a page's end."""
        return {
            KEY: {"B": position.key},
            self.sort: position.sort,
            COHORT + self.feature: {"S": self.value},
        }

    def is_below(self, position: Position) -> bool:
        """Whether a place is before the first event time that counts."""
        lowest = self._lowest()
        if lowest is None:
            return False
        if self.is_series:
            return a2b_base64(position.sort["B"]) < a2b_base64(lowest["B"])
        return int(position.sort["N"]) < int(lowest["N"])

    # Tokens

    def token(self, position: Position) -> str:
        """A place as text. It holds an entity's key: keep it as you keep those."""
        fields = [1, *self._named(), position.key, position.sort, position.top]
        return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()

    def resumed(self, token: str | None) -> Position | None:
        """The place of a token.

        Raises:
            ConfigError: it is no token, or one of another cohort.
        """
        if token is None:
            return None
        subject = f"Feature view `{self.view}`, cohort by `{self.feature}`"
        try:
            version, table, index, value, key, sort, top = json.loads(
                base64.b64decode(token, altchars=b"-_", validate=True)
            )
            a2b_base64(key)
            position = Position(key, self._checked(sort), self._checked(top))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{subject}: the token is none, or was cut. Pass `token` of a cohort as it was."
            ) from error
        if (version, [table, index, value]) != (1, self._named()):
            raise ConfigError(
                f"{subject}: the token is of another cohort (table {table}, index {index}"
                f"{', another value' if [table, index] == self._named()[:2] else ''}). Pass the "
                "view and value that it was made with."
            )
        return position

    def _named(self) -> list[str]:
        digest = hashlib.sha256(self.value.encode()).hexdigest()[:16]
        return [self.table, self.name, digest]

    def _checked(self, sort: Any) -> JsonValue:
        if self.is_series:
            a2b_base64(sort["B"])
            return {"B": sort["B"]}
        int(sort["N"])
        return {"N": sort["N"]}


class Cohort(Iterator[dict[str, Any]]):
    """The entities of a cohort, each as join keys and their values.

    Attributes:
        token: the place after the last entity that was given, to go on from in another process;
            None before the first one. It holds that entity's key.
    """

    def __init__(
        self,
        connection: Connection,
        index: CohortIndex,
        limit: int | None,
        position: Position | None,
        before_reading: Callable[[], Any],
    ) -> None:
        """Nothing is read yet; see `cohort`."""
        self._connection, self._index, self._left = connection, index, limit
        self._position, self._before_reading = position, before_reading
        self._seen: set[str] = set()
        self._pages, self._is_begun = 0, False
        self._page_keys = None if limit is None else max(limit, LEAST_PAGE)
        self._page: Iterator[JsonItem] = iter(())
        self._next_key = None if position is None else index.start_key(position)
        self._has_more = position is None or not index.is_below(position)

    @property
    def token(self) -> str | None:
        """See the class."""
        return None if self._position is None else self._index.token(self._position)

    def __next__(self) -> dict[str, Any]:
        """The next entity.

        Raises:
            TableLayoutError: the table has no such index yet.
            TableTakenError: the table is another view's or project's.
            AwsError: DynamoDB does not answer, or refuses; called again, it tries again.
        """
        if self._left == 0:
            raise StopIteration
        while True:
            for item in self._page:
                key = item[KEY]["B"]
                if key in self._seen:
                    continue
                self._seen.add(key)
                sort = item[self._index.sort]
                top = sort if self._position is None else self._position.top
                self._position = Position(key, sort, top)
                entity = self._entity(key)
                if entity is None:
                    continue
                if self._left is not None:
                    self._left -= 1
                return entity
            if not self._has_more:
                raise StopIteration
            self._page = iter(self._connection.loops.run(self._read_page()))

    def _entity(self, key: str) -> dict[str, Any] | None:
        data = a2b_base64(key)
        if data.startswith(RESERVED_PREFIX):
            return None
        try:
            return entity_of(data)
        except Exception as error:
            raise ItemFormatError(
                f"Table `{self._index.table}` holds an item whose key is no entity key of this "
                "store's. Point `table_name_template` to tables that only this store writes."
            ) from error

    async def _read_page(self) -> list[JsonItem]:
        if not self._is_begun:
            await self._before_reading()
            if self._position is not None and self._index.is_series:
                await self._go_through_again(self._position)
            self._is_begun = True
        request = self._index.request()
        if self._page_keys is not None and self._page_keys <= LARGEST_PAGE:
            request["Limit"] = self._page_keys
        items, self._next_key = await self._query(request, self._next_key)
        self._has_more = self._next_key is not None
        if self._page_keys is not None:
            self._page_keys *= PAGE_GROWTH
        return items

    async def _go_through_again(self, position: Position) -> None:
        """Note the entities of all events down to a place."""
        request = self._index.request(position.top, position.sort)
        self._seen.add(position.key)
        beside: list[str] = []
        start: JsonItem | None = None
        while True:
            items, start = await self._query(request, start)
            for item in items:
                if item[self._index.sort] != position.sort:
                    self._seen.add(item[KEY]["B"])
                    continue
                # Of the same time and tie-breaker, as the event of the place itself.
                beside.append(item[KEY]["B"])
                if beside[-1] == position.key:
                    self._seen.update(beside)
                    return
            if start is None:
                return

    async def _query(
        self, request: dict[str, Any], start: JsonItem | None
    ) -> tuple[list[JsonItem], JsonItem | None]:
        """One page, and where the next one starts."""
        reader, index = self._connection.reader, self._index
        if start is not None:
            request = {**request, "ExclusiveStartKey": start}
        try:
            attempts = reader.policy.start()
            answer = await send(reader.transport, "Query", request, [index.table], attempts)
            items = items_of(answer, index.table, sort=index.sort)
        except AwsError as error:
            said = str(error.__cause__ or error)
            if error.code in NO_INDEX and "index" in said.lower():
                raise TableLayoutError(
                    f"Feature view `{index.view}`: table {index.table} cannot be read by the "
                    f"index `{index.name}`. If `feast apply` has not made it yet, run it; a new "
                    f"index can be read when DynamoDB has filled it. DynamoDB says: {said}"
                ) from error
            raise
        self._pages += "Limit" not in request
        if self._pages == MANY_PAGES + 1:
            logger.warning(
                "feature view %s: one value of `%s` has more than %d pages of keys in the index "
                "of table %s: readers and writers of that value share 3,000 read units and 1,000 "
                "write units a second. Make cohorts of a feature with more values, or pass "
                "`start`",
                index.view, index.feature, MANY_PAGES, index.table,
            )  # fmt: skip
        return items, answer.get("LastEvaluatedKey")
