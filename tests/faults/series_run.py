"""One run of pushes and reads of series through the failing proxy, each answer checked.

An event says by its number whose it is, when it was and what it cost. A read must bring all events
that were written for certain before it began, and none that nobody has tried to write.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
import threading
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from fault_shop import micros
from feast.aggregation import Aggregation
from feast.data_source import PushMode
from feast.infra.key_encoding_utils import deserialize_entity_key
from series_shop import CUSTOMER, DAY, customers_view, purchases_view

from feast_dynamo_ext import cohort, online_series, online_series_async
from feast_dynamo_ext.derived import recent, windows
from feast_dynamo_ext.errors import (
    AwsUnavailableError,
    IncompleteReadError,
    IncompleteWriteError,
    ThrottledError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CUSTOMERS, CATEGORIES = 24, 3
NOW = dt.datetime.now(tz=dt.timezone.utc).replace(microsecond=0)
EVERY = ["amount_last_500", "event_time_last_500"]
LAST = ["amount_last_5", "event_time_last_5"]
SPEND = ["count_30d", "sum_amount_30d"]
FEATURES = {"every": EVERY, "lately": LAST, "spend": SPEND, "customers": ["visits"]}
REFS = [f"{view}:{name}" for view, names in FEATURES.items() for name in names]
PASSING = (ThrottledError, AwsUnavailableError)

# An event's number says everything else of it.


def customer_of(event: int) -> int:
    return event % CUSTOMERS


def time_of(event: int) -> dt.datetime:
    """Two events of a customer at each moment, apart by their tie-breakers."""
    return NOW - dt.timedelta(minutes=1 + event // (2 * CUSTOMERS))


def amount_of(event: int) -> float:
    return event + 0.5


def category_of(event: int) -> str:
    return f"category {event // CUSTOMERS % CATEGORIES}"


def newest_first(events: Any) -> list[int]:
    """As a sort key of event time, then number, has them."""
    return sorted(events, key=lambda event: (time_of(event), event), reverse=True)


def definitions(folder: Any) -> list[Any]:
    base = purchases_view(
        "purchases", folder, keep_for=30 * DAY, orders=["amount"], cohorts=["category"]
    )
    sums = [
        Aggregation(function="count", time_window=30 * DAY),
        Aggregation(column="amount", function="sum", time_window=30 * DAY),
    ]
    return [
        CUSTOMER,
        base,
        recent(base, name="every", last=500, features=["amount"]),
        recent(base, name="lately", last=5, features=["amount"]),
        windows(base, name="spend", aggregations=sums),
        customers_view("customers", folder),
    ]


def frame_of(events: Any) -> pd.DataFrame:
    rows = [
        {
            "customer_id": customer_of(event),
            "event_timestamp": time_of(event),
            "created": time_of(event),
            "purchase_id": event,
            "amount": amount_of(event),
            "category": category_of(event),
            "note": f"event {event}",
        }
        for event in events
    ]
    return pd.DataFrame(rows)


@dataclass
class SeriesTotals:
    """What a run came to.

    Attributes:
        reads: entities that were asked for.
        writes: events that were to be written.
        marked: answers of one view and entity that say that it is unread.
        lists: lists of events that were answered, each held against what is known.
        errors: how many calls ended with each error.
        faults: how many requests met each kind of fault.
        wrong: what cannot be right.
    """

    reads: int = 0
    writes: int = 0
    marked: int = 0
    lists: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class EventOracle:
    """Which events are there for certain, and which somebody has tried to write."""

    def __init__(self, *, may_mark: bool) -> None:
        self.totals = SeriesTotals()
        self.confirmed: dict[int, set[int]] = defaultdict(set)
        self.attempted: dict[int, set[int]] = defaultdict(set)
        self._may_mark, self._lock = may_mark, threading.Lock()

    @contextlib.contextmanager
    def writing(self, events: list[int]) -> Iterator[None]:
        """Around a push: events of the customers that its error names are not certain."""
        with self._lock:
            self.totals.writes += len(events)
            for event in events:
                self.attempted[customer_of(event)].add(event)
        unwritten: set[int] = set()
        try:
            yield
        except IncompleteWriteError as error:
            unwritten = {_customer(key) for key in error.unwritten}
            self._failed(error)
            if not unwritten or not unwritten <= set(map(customer_of, events)):
                self.totals.wrong.append(f"an error names {unwritten} of a push of {events}")
            if ".purchases" not in str(error):
                self.totals.wrong.append(f"no table in: {error}")
        with self._lock:
            for event in events:
                if customer_of(event) not in unwritten:
                    self.confirmed[customer_of(event)].add(event)

    @contextlib.contextmanager
    def reading(self, customers: list[int]) -> Iterator[dict[int, set[int]]]:
        """Around a read and its checks: gives what must be there."""
        with self._lock:
            self.totals.reads += len(customers)
            floors = {customer: set(self.confirmed[customer]) for customer in customers}
        try:
            yield floors
        except IncompleteReadError as error:
            self._failed(error)
            tables = {table.partition(".")[2] for table in error.unread}
            if not tables or not tables <= {"purchases", "customers"}:
                self.totals.wrong.append(f"an error names {error.unread}")
            if not all(table in str(error) for table in error.unread):
                self.totals.wrong.append(f"not all tables in: {error}")

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self.totals.errors[type(error).__name__] += 1

    def failed(self, error: Exception) -> None:
        """Count an error that names nothing but a request."""
        self._failed(error)

    def is_marked(self, values: list[Any]) -> bool:
        """Whether an entity is answered as unread."""
        if any(value is not None for value in values):
            return False
        with self._lock:
            self.totals.marked += 1
            if not self._may_mark:
                self.totals.wrong.append("an entity without an answer")
        return True

    def check(
        self,
        customer: int,
        floor: set[int],
        amounts: list[float],
        times: list[int],
        *,
        limit: int | None = None,
        by_amount: bool = False,
    ) -> None:
        """Hold a list of events against what is known."""
        with self._lock:
            ceiling = set(self.attempted[customer])
            self.totals.lists += 1
        events = [int(amount) for amount in amounts]
        in_order = sorted(events, reverse=True) if by_amount else newest_first(events)
        faults = [
            fault
            for fault, is_met in {
                "an event that nobody wrote": not set(events) <= ceiling,
                "an event twice": len(set(events)) < len(events),
                "another amount": amounts != [amount_of(event) for event in events],
                "another time": times != [micros(time_of(event)) for event in events],
                "another order": events != in_order,
                "too many": limit is not None and len(events) > limit,
                "an event is missing": bool(
                    _missing(events, floor, limit=limit, by_amount=by_amount)
                ),
            }.items()
            if is_met
        ]
        if faults:
            with self._lock:
                self.totals.wrong.append(f"{faults} of customer {customer}: {events}")

    def check_equal(self, one: Any, other: Any) -> None:
        """What must be the same."""
        if one != other:
            with self._lock:
                self.totals.wrong.append(f"{one} is not {other}")


def _missing(
    events: list[int], floor: set[int], *, limit: int | None, by_amount: bool
) -> set[int]:
    left = floor - set(events)
    if limit is None or len(events) < limit:
        return left
    last = events[-1]
    if by_amount:
        return {event for event in left if event > last}
    return {event for event in left if newest_first([event, last])[0] == event}


def _customer(key: bytes) -> int:
    (value,) = deserialize_entity_key(key, entity_key_serialization_version=3).entity_values
    return int(value.int64_val)


# Calls


def calls_of(seed: int, events: int, reads: int) -> list[list[Any]]:
    """Pushes (lists of events) and reads (tuples of customers), in three rounds."""
    dice = random.Random(seed)  # noqa: S311 - the same each time
    numbers = list(range(events))
    dice.shuffle(numbers)
    rounds = []
    for at in range(3):
        left, calls = numbers[at::3], []
        while left:
            size = dice.choice((1, 5, 30, 100))
            # Some events are written again: it makes no difference.
            calls.append(left[:size] + dice.sample(numbers[at::3], min(5, size)))
            del left[:size]
        wanted = reads // 3
        while wanted > 0:
            size = dice.choice((1, 1, 3, CUSTOMERS))
            calls.append(tuple(dice.sample(range(CUSTOMERS), size)))
            wanted -= size
        dice.shuffle(calls)
        rounds.append(calls)
    return rounds


def check_features(oracle: EventOracle, customers: Any, floors: Any, answer: Any) -> None:
    found = answer.to_dict()
    for at, customer in enumerate(customers):
        amounts, times = (found[name][at] for name in EVERY)
        if not oracle.is_marked([amounts, times, found["count_30d"][at]]):
            oracle.check(customer, floors[customer], amounts, times)
            last, moments = (found[name][at] for name in LAST)
            oracle.check(customer, floors[customer], last, moments, limit=5)
            oracle.check_equal(last, amounts[:5])
            oracle.check_equal(found["count_30d"][at], len(amounts))
            oracle.check_equal(found["sum_amount_30d"][at], sum(amounts) if amounts else None)
        if not oracle.is_marked([found["visits"][at]]):
            oracle.check_equal(found["visits"][at], customer)


def check_series(
    oracle: EventOracle, customers: Any, floors: Any, answer: Any, bounds: dict[str, Any]
) -> None:
    by_amount = "order" in bounds
    limit = bounds.get("last", bounds.get("limit"))
    for at, customer in enumerate(customers):
        amounts, times = answer.features["amount"][at], answer.event_us[at]
        if answer.statuses[at] == "unread":
            oracle.is_marked([amounts, times])
            continue
        oracle.check(customer, floors[customer], amounts, times, limit=limit, by_amount=by_amount)
        oracle.check_equal(answer.statuses[at], "found" if amounts else "none")


BOUNDS = ({}, {"last": 3}, {"within": DAY}, {"order": "amount", "limit": 7}, {"order": "amount"})


def in_turn(store: Any, oracle: EventOracle, left: deque[Any], dice: random.Random) -> None:
    """Take calls, one after the other."""
    while (call := _next(left)) is not None:
        if isinstance(call, list):
            with oracle.writing(call):
                store.push("purchases_push", frame_of(call), to=PushMode.ONLINE)
            continue
        rows = [{"customer_id": customer} for customer in call]
        kind = dice.randrange(3)
        if kind == 2:
            read_cohort(store, oracle, dice.randrange(CATEGORIES))
            continue
        with oracle.reading(call) as floors:
            if kind == 0:
                check_features(oracle, call, floors, store.get_online_features(REFS, rows))
            else:
                bounds = dice.choice(BOUNDS)
                answer = online_series(store, ["purchases:amount"], rows, **bounds)
                check_series(oracle, call, floors, answer, bounds)


async def in_turn_async(
    store: Any, oracle: EventOracle, left: deque[Any], dice: random.Random
) -> None:
    """The same on an event loop."""
    while (call := _next(left)) is not None:
        if isinstance(call, list):
            with oracle.writing(call):
                await store.push_async("purchases_push", frame_of(call), to=PushMode.ONLINE)
            continue
        rows = [{"customer_id": customer} for customer in call]
        with oracle.reading(call) as floors:
            if dice.random() < 0.5:
                answer = await store.get_online_features_async(REFS, rows)
                check_features(oracle, call, floors, answer)
            else:
                bounds = dice.choice(BOUNDS)
                found = await online_series_async(store, ["purchases:amount"], rows, **bounds)
                check_series(oracle, call, floors, found, bounds)


def read_cohort(store: Any, oracle: EventOracle, number: int) -> None:
    """All customers of a category; a page that fails is asked for again."""

    def of_category(events: dict[int, set[int]]) -> set[int]:
        wanted = f"category {number}"
        return {
            customer
            for customer, of_customer in events.items()
            if any(category_of(event) == wanted for event in of_customer)
        }

    with oracle._lock:
        floor = of_category(oracle.confirmed)
    entities, found = cohort(store, "purchases", category=f"category {number}"), []
    for _ in range(100):
        try:
            while True:
                found.append(next(entities)["customer_id"])
        except StopIteration:  # noqa: PERF203 - the next page is another try
            break
        except PASSING as error:
            oracle.failed(error)
            if "purchases" not in str(error):
                oracle.totals.wrong.append(f"no table in: {error}")
    with oracle._lock:
        ceiling = of_category(oracle.attempted)
        oracle.totals.reads += len(found)
        if len(set(found)) < len(found) or not floor <= set(found) <= ceiling:
            oracle.totals.wrong.append(f"a cohort of {found}, of at least {floor}")


def _next(left: deque[Any]) -> Any:
    with contextlib.suppress(IndexError):
        return left.popleft()
    return None


@dataclass
class SeriesFaults:
    """A project on DynamoDB Local, and stores that reach it through the proxy.

    Attributes:
        direct: without the proxy.
        project: of all stores.
        proxy: that fails.
        client: boto3's, without the proxy.
        open_store: opens stores.
    """

    direct: Any
    project: str
    proxy: Any
    client: Any
    open_store: Any

    def store(self, **online: Any) -> Any:
        """A store through the proxy."""
        settings = {"region": "us-east-1", "endpoint_url": self.proxy.endpoint, **online}
        return self.open_store(self.project, online=settings)

    def events(self) -> list[int]:
        """The numbers of all events that the table holds, without any code of ours."""
        pages = self.client.get_paginator("scan").paginate(
            TableName=f"{self.project}.purchases", ConsistentRead=True
        )
        # The tie-breaker: an integer of 64 bits, counted from the lowest.
        return sorted(
            int.from_bytes(item["s"]["B"][8:], "big") - 2**63
            for page in pages
            for item in page["Items"]
            if "v" in item and "g_category" in item
        )

    def check(self, oracle: EventOracle) -> None:
        """Hold the table against what is known."""
        held = self.events()
        known = set().union(*oracle.attempted.values())
        certain = set().union(*oracle.confirmed.values())
        oracle.check_equal(len(held), len(set(held)))
        oracle.check_equal(sorted(certain - set(held)), [])
        oracle.check_equal(sorted(set(held) - known), [])


def run(
    shop: SeriesFaults, plan: dict[str, Any], events: int, reads: int, seed: int, **online: Any
) -> SeriesTotals:
    """Push and read under a plan of faults, and check everything."""
    oracle = EventOracle(may_mark=online.get("on_partial") == "mark")
    visits = [
        {"customer_id": n, "event_timestamp": NOW, "created": NOW, "segment": "a", "visits": n}
        for n in range(CUSTOMERS)
    ]
    shop.direct.push("customers_push", pd.DataFrame(visits), to=PushMode.ONLINE)
    ours, theirs = shop.store(**online), shop.store(**online)
    loop = asyncio.new_event_loop()

    async def at_once(left: deque[Any], number: int) -> None:
        dice = [random.Random(f"{seed}:{number}:a{n}") for n in range(3)]  # noqa: S311
        await asyncio.gather(*(in_turn_async(theirs, oracle, left, one) for one in dice))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    try:
        shop.proxy.plan(seed=seed, **plan)
        with ThreadPoolExecutor(4) as threads:
            for number, calls in enumerate(calls_of(seed, events, reads)):
                left = deque(calls)
                dice = [random.Random(f"{seed}:{number}:{n}") for n in range(3)]  # noqa: S311
                work = [threads.submit(in_turn, ours, oracle, left, one) for one in dice]
                work.append(threads.submit(loop.run_until_complete, at_once(left, number)))
                for one in work:
                    one.result()
                report = shop.proxy.report()
        oracle.totals.faults = report.faults
        shop.proxy.plan()
        shop.check(oracle)
        # As the errors say: written again, nothing is lost, and nothing is there twice.
        uncertain = set().union(*oracle.attempted.values()) - set().union(
            *oracle.confirmed.values()
        )
        if uncertain:
            with oracle.writing(sorted(uncertain)):
                shop.direct.push("purchases_push", frame_of(sorted(uncertain)), to=PushMode.ONLINE)
        oracle.check_equal(shop.events(), list(range(events)))
    finally:
        shop.proxy.plan()
        asyncio.run(ours.close())
        loop.run_until_complete(theirs.close())
        loop.close()
    return oracle.totals
