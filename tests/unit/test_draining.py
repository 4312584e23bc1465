"""Unprocessed keys and items, throttling and failures: nothing is lost without a word."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field, replace

import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.dynamo.batch_get import Reader, TableKeys
from feast_dynamo_ext.dynamo.layouts.packed import Row, RowSchema, to_item
from feast_dynamo_ext.dynamo.limiter import AdaptiveLimiter
from feast_dynamo_ext.dynamo.retry import RetryBudget, RetryPolicy, ServingLimiter
from feast_dynamo_ext.dynamo.write import Writer
from feast_dynamo_ext.errors import (
    AwsUnavailableError,
    CredentialsError,
    IncompleteReadError,
    IncompleteWriteError,
    ThrottledError,
)

SCHEMA = RowSchema(("a",), ("DOUBLE",))


@dataclass
class Clock:
    """Time that passes only when somebody sleeps."""

    now_s: float = 0.0
    slept: list = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def policy(self, deadline_s: float = 10.0, **more) -> RetryPolicy:
        return RetryPolicy(
            deadline_s, sleep=self.sleep, clock=lambda: self.now_s, jitter=lambda: 1.0, **more
        )


@dataclass
class FlakyDynamo:
    """Tables in memory behind a transport that does part of the work, throttles or fails.

    Attributes:
        moods: what to do with each request in turn: "ok", "part" (process one key or item of each
            table), "throttle", "reset"; "ok" once they are used up.
    """

    tables: dict[str, dict[str, dict]]
    moods: list[str]
    calls: list[tuple[str, int]] = field(default_factory=list)

    async def call(self, operation, body, resource, timeout_s=None):
        requested = body["RequestItems"]
        self.calls.append((operation, sum(map(self._size, requested.values()))))
        mood = self.moods.pop(0) if self.moods else "ok"
        if mood == "throttle":
            raise ThrottledError("slow down")
        if mood == "reset":
            raise AwsUnavailableError("connection reset")
        if mood == "denied":
            raise CredentialsError("expired")
        limit = {"part": 1, "full": 40}.get(mood)
        if operation == "BatchGetItem":
            return self._get(requested, limit)
        return self._write(requested, limit)

    @staticmethod
    def _size(entry):
        return len(entry["Keys"] if isinstance(entry, dict) else entry)

    def _get(self, requested, limit):
        answer = {"Responses": {}, "UnprocessedKeys": {}}
        for table, entry in requested.items():
            keys = [key["k"]["B"] for key in entry["Keys"]]
            assert len(set(keys)) == len(keys)
            found = [self.tables[table][key] for key in keys[:limit] if key in self.tables[table]]
            answer["Responses"][table] = found
            if limit is not None and keys[limit:]:
                rest = [{"k": {"B": key}} for key in keys[limit:]]
                answer["UnprocessedKeys"][table] = {**entry, "Keys": rest}
        return answer

    def _write(self, requested, limit):
        unprocessed = {}
        for table, puts in requested.items():
            for put in puts[:limit]:
                item = put["PutRequest"]["Item"]
                self.tables[table][item["k"]["B"]] = item
            if limit is not None and puts[limit:]:
                unprocessed[table] = puts[limit:]
        return {"UnprocessedItems": unprocessed}


def text(number: int) -> str:
    return base64.b64encode(b"%d" % number).decode()


def items(count: int) -> list[dict]:
    return [to_item(Row(b"%d" % n, b"", n, None), SCHEMA, None, "v") for n in range(count)]


def read(reader: Reader, wanted: list[TableKeys]):
    return asyncio.run(reader.read(wanted))


moods = st.lists(st.sampled_from(["ok", "part", "throttle", "reset"]), max_size=12)


@cases()
@given(moods=moods, stored=st.integers(0, 8), asked=st.integers(1, 12), batch=st.integers(1, 5))
def test_a_read_is_complete_or_an_error(moods, stored, asked, batch):
    held = {item["k"]["B"]: item for item in items(stored)}
    dynamo = FlakyDynamo({"one": held, "two": dict(held)}, list(moods))
    clock = Clock()
    reader = Reader(dynamo, clock.policy(60, max_failures=None), batch_size=batch)
    wanted = [TableKeys(name, tuple(map(text, range(asked)))) for name in ("one", "two")]
    found = read(reader, wanted)
    expected = {text(n): held[text(n)] for n in range(min(stored, asked))}
    assert found == {"one": expected, "two": expected}


@cases()
@given(moods=moods, count=st.integers(1, 60))
def test_a_write_is_complete_or_an_error(moods, count):
    dynamo = FlakyDynamo({"t": {}}, list(moods))
    done: list[int] = []
    writer = Writer(dynamo, Clock().policy(60, max_failures=None))
    asyncio.run(writer.write("t", items(count), done.append))
    assert set(dynamo.tables["t"]) == set(map(text, range(count)))
    assert sum(done) == count


def test_keys_of_all_tables_share_requests_of_at_most_100_keys():
    dynamo = FlakyDynamo({f"t{n}": {} for n in range(5)}, [])
    keys = tuple(map(text, range(50)))
    read(Reader(dynamo, Clock().policy()), [TableKeys(f"t{n}", keys) for n in range(5)])
    assert dynamo.calls == [("BatchGetItem", 100), ("BatchGetItem", 100), ("BatchGetItem", 50)]


def test_a_read_that_is_throttled_past_its_deadline_names_what_is_missing():
    dynamo = FlakyDynamo({"orders": {}, "visits": {}}, ["part", *["throttle"] * 100])
    clock = Clock()
    reader = Reader(dynamo, clock.policy(5.0))
    keys = tuple(map(text, range(3)))
    with pytest.raises(
        IncompleteReadError,
        match=r"2 keys of feature view buys \(table orders\), 2 keys of visits",
    ) as caught:
        read(reader, [TableKeys("visits", keys), TableKeys("orders", keys, view="buys")])
    assert caught.value.unread == {"orders": 2, "visits": 2}
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value.__cause__, ThrottledError)
    assert clock.now_s <= 5.0
    # base 25 ms, doubled up to the cap of 2 s; the next 2 s would pass the deadline
    assert clock.slept == [0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]


def test_a_write_that_is_throttled_past_its_deadline_names_the_rows():
    dynamo = FlakyDynamo({"orders": {}}, ["part", *["throttle"] * 100])
    entity_items = items(3)
    with pytest.raises(IncompleteWriteError, match="Table orders: 2 of 3 rows") as caught:
        asyncio.run(Writer(dynamo, Clock().policy(5.0)).write("orders", entity_items))
    assert caught.value.unwritten == [b"1", b"2"]
    assert set(dynamo.tables["orders"]) == {text(0)}


def test_requests_that_fail_outright_are_given_up_after_the_set_number():
    dynamo = FlakyDynamo({"t": {}}, ["reset"] * 10)
    reader = Reader(dynamo, Clock().policy(max_failures=3))
    with pytest.raises(IncompleteReadError, match="connection reset"):
        read(reader, [TableKeys("t", (text(1),))])
    assert len(dynamo.calls) == 3


def test_a_refusal_is_not_tried_again():
    dynamo = FlakyDynamo({"t": {}}, ["denied"])
    with pytest.raises(CredentialsError):
        read(Reader(dynamo, Clock().policy()), [TableKeys("t", (text(1),))])
    assert len(dynamo.calls) == 1


def test_what_answers_is_given_and_the_rest_is_named_as_unread():
    held = {item["k"]["B"]: item for item in items(3)}
    dynamo = FlakyDynamo({"t": held}, ["part", *["throttle"] * 100])
    reader = Reader(dynamo, Clock().policy(5.0))
    wanted = [TableKeys("t", tuple(map(text, range(3))))]
    result = asyncio.run(reader.read_partial(wanted))
    assert result.found == {"t": {text(0): held[text(0)]}}
    assert result.unread == {"t": [text(1), text(2)]}
    assert isinstance(result.cause, ThrottledError)


def test_no_request_is_left_in_flight_by_a_read_that_fails():
    dynamo = FlakyDynamo({"t": {}}, ["denied"])
    reader = Reader(dynamo, Clock().policy(), batch_size=1)

    async def check():
        with pytest.raises(CredentialsError):
            await reader.read([TableKeys("t", tuple(map(text, range(5))))])
        return asyncio.all_tasks()

    assert len(asyncio.run(check())) == 1
    assert len(dynamo.calls) == 5


def large_items(count: int, size: int) -> list[dict]:
    return [to_item(Row(b"%d" % n, bytes(size), n, None), SCHEMA, None, "v") for n in range(count)]


def test_requests_become_smaller_where_items_are_large():
    held = {item["k"]["B"]: item for item in large_items(100, 300_000)}
    dynamo = FlakyDynamo({"large": held, "small": {}}, [])
    reader = Reader(dynamo, Clock().policy())
    keys = tuple(map(text, range(100)))
    assert len(read(reader, [TableKeys("large", keys)])["large"]) == 100
    assert dynamo.calls == [("BatchGetItem", 100)]
    dynamo.calls.clear()
    # 8 MB of the 16 MB that one answer holds: 27 items of 300,000 bytes
    found = read(reader, [TableKeys("large", keys), TableKeys("small", keys)])
    assert len(found["large"]) == 100
    assert [size for _, size in dynamo.calls] == [27, 27, 27, 100, 19]


def test_what_did_not_fit_into_an_answer_is_asked_for_at_once():
    held = {item["k"]["B"]: item for item in large_items(100, 390_000)}
    dynamo = FlakyDynamo({"t": held}, ["full"])
    clock = Clock()
    keys = tuple(map(text, range(100)))
    assert len(read(Reader(dynamo, clock.policy()), [TableKeys("t", keys)])["t"]) == 100
    assert clock.slept == []


@dataclass
class SlowDynamo:
    """Answers each request after the next of `delays_s`, or fails where that is an error."""

    delays_s: list
    asked: int = 0
    ended: int = 0

    async def call(self, operation, body, resource, timeout_s=None):
        self.asked += 1
        number, delay = self.asked, self.delays_s.pop(0)
        try:
            if isinstance(delay, Exception):
                raise delay
            await asyncio.sleep(delay)
        finally:
            self.ended += 1
        (key,) = body["RequestItems"]["t"]["Keys"]
        return {"Responses": {"t": [{**key, "by": {"N": str(number)}}]}}


@pytest.mark.parametrize(
    ("delays_s", "by", "asked"),
    [
        ([0.0], 1, 1),
        ([60.0, 0.0], 2, 2),
        ([0.05, 60.0], 1, 2),
        ([0.05, ThrottledError("slow down")], 1, 2),
        ([60.0, ThrottledError("slow down"), 0.0], 3, 3),
    ],
    ids=["fast", "again", "first after all", "first after a refusal", "retried"],
)
def test_the_first_answer_of_a_request_sent_twice_wins(delays_s, by, asked):
    # The last case: the first attempt never answers; it is given up when its read timeout comes.
    if len(delays_s) == 3:
        delays_s[0] = AwsUnavailableError("timed out")
    dynamo = SlowDynamo(delays_s)
    reader = Reader(dynamo, Clock().policy(), hedge_after_s=0.01)
    found = read(reader, [TableKeys("t", (text(0),))])
    assert found["t"][text(0)]["by"] == {"N": str(by)}
    assert (dynamo.asked, dynamo.ended) == (asked, asked)


def test_one_request_of_a_read_is_sent_twice_and_no_more():
    dynamo = SlowDynamo([0.05] * 6)
    reader = Reader(dynamo, Clock().policy(), batch_size=1, hedge_after_s=0.01)
    read(reader, [TableKeys("t", tuple(map(text, range(5))))])
    assert dynamo.asked == 6


@dataclass
class OutOfStep:
    """A connection that gives each request the answer of the one before, `count` times.

    Attributes:
        behind: the answers that are still to come.
    """

    behind: list[dict]
    asked: int = 0

    async def call(self, operation, body, resource, timeout_s=None):
        self.asked += 1
        keys = body["RequestItems"]["t"]["Keys"]
        own = [{**key, "v": {"B": ""}} for key in keys]
        return self.behind.pop(0) if self.behind else {"Responses": {"t": own}}


OTHERS_ANSWERS = {
    "another key": {"Responses": {"t": [{"k": {"B": text(9)}}]}, "UnprocessedKeys": {}},
    "one key too many": {"Responses": {"t": [{"k": {"B": text(n)}} for n in (1, 9)]}},
    "another table": {"Responses": {"u": []}, "UnprocessedKeys": {}},
    "another unprocessed key": {
        "Responses": {},
        "UnprocessedKeys": {"t": {"Keys": [{"k": {"B": text(9)}}]}},
    },
    "another unprocessed table": {
        "Responses": {},
        "UnprocessedKeys": {"u": {"Keys": [{"k": {"B": text(1)}}]}},
    },
    "a write": {"UnprocessedItems": {}},
    "an item without key": {"Responses": {"t": [{"v": {"B": ""}}]}},
    "no object": [],
}


@pytest.mark.parametrize("answer", OTHERS_ANSWERS.values(), ids=list(OTHERS_ANSWERS))
def test_another_requests_answer_is_asked_for_again(answer):
    dynamo = OutOfStep([answer])
    found = read(Reader(dynamo, Clock().policy()), [TableKeys("t", (text(1), text(2)))])
    assert found == {"t": {text(n): {"k": {"B": text(n)}, "v": {"B": ""}} for n in (1, 2)}}
    assert dynamo.asked == 2


def test_answers_that_stay_those_of_others_are_an_error_and_not_missing_rows():
    dynamo = OutOfStep([OTHERS_ANSWERS["another key"]] * 3)
    with pytest.raises(IncompleteReadError, match="not the one to this request") as refused:
        read(Reader(dynamo, Clock().policy()), [TableKeys("t", (text(1), text(2)))])
    assert refused.value.unread == {"t": 2}


def test_a_key_that_does_not_exist_is_no_strange_answer():
    dynamo = OutOfStep([{"Responses": {"t": []}, "UnprocessedKeys": {}}])
    assert read(Reader(dynamo, Clock().policy()), [TableKeys("t", (text(1),))]) == {"t": {}}
    assert dynamo.asked == 1


def test_waits_are_jittered_over_their_whole_range():
    pauses = []
    draws = iter([0.0, 0.5, 0.25])

    async def sleep(seconds):
        pauses.append(seconds)

    policy = RetryPolicy(
        10, base_s=1.0, sleep=sleep, clock=lambda: 0.0, jitter=lambda: next(draws)
    )
    attempts = policy.start()

    async def wait_three_times():
        return [await attempts.wait() for _ in range(3)]

    assert asyncio.run(wait_three_times()) == [True, True, True]
    assert pauses == [0.0, 1.0, 0.5]  # of 1, 2 and the cap of 2 seconds


def test_the_deadline_is_that_of_all_requests_of_a_read_together():
    clock = Clock()
    dynamo = FlakyDynamo({"t": {}}, ["throttle"] * 100)
    reader = Reader(dynamo, clock.policy(5.0), batch_size=1, workers=1)
    with pytest.raises(IncompleteReadError, match="3 keys of t within 5 s"):
        read(reader, [TableKeys("t", tuple(map(text, range(3))))])
    assert clock.now_s <= 5.0
    assert len(dynamo.calls) == 19  # 8 of the first request, and what fits in the time it leaves


def test_reads_of_one_call_share_its_deadline():
    clock = Clock()
    reader = Reader(FlakyDynamo({"t": {}}, ["throttle"] * 100), clock.policy(5.0))
    for _ in range(2):
        with pytest.raises(IncompleteReadError):
            asyncio.run(reader.read([TableKeys("t", (text(1),))], started_s=0.0))
    assert clock.now_s <= 5.0


def test_a_process_whose_requests_are_not_answered_soon_sends_none_again():
    budget, policy = RetryBudget(), Clock().policy(60.0)
    dynamo = FlakyDynamo({"t": {}}, ["reset"] * 1_000)
    reader = Reader(dynamo, replace(policy, budget=budget))
    for _ in range(100):
        with pytest.raises(IncompleteReadError):
            read(reader, [TableKeys("t", (text(1),))])
    # 100 requests, and of 500 units 10 for each that was sent again.
    assert len(dynamo.calls) == 150
    with pytest.raises(IncompleteReadError, match="this process may send no more again"):
        read(reader, [TableKeys("t", (text(1),))])
    # Answers give back what is needed to try again.
    dynamo.moods[:] = ["ok"] * 10
    for _ in range(10):
        read(reader, [TableKeys("t", (text(1),))])
    dynamo.moods[:] = ["reset", "ok"]
    assert read(reader, [TableKeys("t", (text(1),))]) == {"t": {}}
    assert budget.left == 10.0


def test_throttling_that_passes_leaves_the_budget_as_it_was():
    budget, policy = RetryBudget(10.0), Clock().policy(60.0)
    held = {item["k"]["B"]: item for item in items(8)}
    for mood in ("throttle", "part"):
        for _ in range(10):
            dynamo = FlakyDynamo({"t": dict(held)}, [mood])
            reader = Reader(dynamo, replace(policy, budget=budget))
            found = read(reader, [TableKeys("t", tuple(map(text, range(8))))])
            assert found == {"t": held}
    assert budget.left == 10.0


def test_a_run_of_writes_has_no_budget():
    policy = replace(Clock().policy(60.0), budget=RetryBudget(0.0), limiter=ServingLimiter(2))
    writer = Writer(FlakyDynamo({"t": {}}, ["throttle"]), policy)
    with pytest.raises(IncompleteWriteError):
        asyncio.run(writer.write("t", items(1)))
    dynamo = FlakyDynamo({"t": {}}, ["throttle"])
    run = replace(writer, transport=dynamo).limited_by(AdaptiveLimiter(2))
    assert asyncio.run(run.write("t", items(1))).written == 1


def test_a_table_that_is_throttled_has_fewer_requests_in_flight():
    limiter = ServingLimiter(8, clock=lambda: 1.0)
    assert limiter.enter(["t"]) == []
    limiter.throttled(["t"], 0.0)
    turns = [limiter.enter(["t", "other"]) for _ in range(5)]
    assert [turn is not None for turn in turns] == [True] * 4 + [False]
    limiter.throttled(["t"], 0.5)  # sent before it was halved
    assert limiter.windows["t"].size == 4.0
    limiter.throttled(["t"], 1.5)
    assert limiter.windows["t"].size == 2.0
    for turn in turns[:4]:
        limiter.leave(turn)
    answers = 0
    while turn := limiter.enter(["t"]):
        limiter.answered(turn)
        limiter.leave(turn)
        answers += 1
    assert limiter.windows == {}
    assert 25 <= answers <= 35  # 2 + 3 + ... + 7, and a little


def test_a_read_waits_for_its_turn_until_its_deadline():
    clock = Clock()
    limiter = ServingLimiter(2, clock=lambda: clock.now_s)
    limiter.throttled(["t"], 0.0)
    limiter.enter(["t"])
    dynamo = FlakyDynamo({"t": {}}, [])
    reader = Reader(dynamo, replace(clock.policy(1.0), limiter=limiter))
    with pytest.raises(IncompleteReadError, match="others wait for the same tables"):
        read(reader, [TableKeys("t", (text(1),))])
    assert dynamo.calls == []
    limiter.leave([limiter.windows["t"]])
    clock.now_s = 0.0
    assert read(reader, [TableKeys("t", (text(1),))]) == {"t": {}}
