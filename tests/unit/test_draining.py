"""Unprocessed keys and items, throttling and failures: nothing is lost without a word."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_dynamo_ext.dynamo.item import Row, RowSchema, to_item
from feast_dynamo_ext.dynamo.reader import Reader, TableKeys
from feast_dynamo_ext.dynamo.retry import RetryPolicy
from feast_dynamo_ext.dynamo.writer import Writer
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

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def policy(self, deadline_s: float = 10.0, **more) -> RetryPolicy:
        return RetryPolicy(
            deadline_s, sleep=self.sleep, clock=lambda: self.now_s, jitter=lambda: 1.0, **more
        )


@dataclass
class FlakyDynamo:
    """Tables in memory behind a wire that does part of the work, throttles or fails.

    Attributes:
        moods: what to do with each request in turn: "ok", "part" (process one key or item of each
            table), "throttle", "reset"; "ok" once they are used up.
    """

    tables: dict[str, dict[str, dict]]
    moods: list[str]
    calls: list[tuple[str, int]] = field(default_factory=list)

    def call(self, operation, body, resource):
        requested = body["RequestItems"]
        self.calls.append((operation, sum(map(self._size, requested.values()))))
        mood = self.moods.pop(0) if self.moods else "ok"
        if mood == "throttle":
            raise ThrottledError("slow down")
        if mood == "reset":
            raise AwsUnavailableError("connection reset")
        if mood == "denied":
            raise CredentialsError("expired")
        if operation == "BatchGetItem":
            return self._get(requested, 1 if mood == "part" else None)
        return self._write(requested, 1 if mood == "part" else None)

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


@pytest.fixture(scope="module")
def executor():
    with ThreadPoolExecutor(1) as pool:
        yield pool


moods = st.lists(st.sampled_from(["ok", "part", "throttle", "reset"]), max_size=12)


@settings(deadline=None)
@given(moods=moods, stored=st.integers(0, 8), asked=st.integers(1, 12), batch=st.integers(1, 5))
def test_a_read_is_complete_or_an_error(moods, stored, asked, batch):
    held = {item["k"]["B"]: item for item in items(stored)}
    dynamo = FlakyDynamo({"one": held, "two": dict(held)}, list(moods))
    clock = Clock()
    with ThreadPoolExecutor(1) as pool:
        reader = Reader(dynamo, clock.policy(60, max_failures=None), pool, batch_size=batch)
        wanted = [TableKeys(name, tuple(map(text, range(asked)))) for name in ("one", "two")]
        found = reader.read(wanted)
    expected = {text(n): held[text(n)] for n in range(min(stored, asked))}
    assert found == {"one": expected, "two": expected}


@settings(deadline=None)
@given(moods=moods, count=st.integers(1, 60))
def test_a_write_is_complete_or_an_error(moods, count):
    dynamo = FlakyDynamo({"t": {}}, list(moods))
    done: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        writer = Writer(dynamo, Clock().policy(60, max_failures=None), pool)
        writer.write("t", items(count), done.append)
    assert set(dynamo.tables["t"]) == set(map(text, range(count)))
    assert sum(done) == count


def test_keys_of_all_tables_share_requests_of_at_most_100_keys(executor):
    dynamo = FlakyDynamo({f"t{n}": {} for n in range(5)}, [])
    keys = tuple(map(text, range(50)))
    Reader(dynamo, Clock().policy(), executor).read([TableKeys(f"t{n}", keys) for n in range(5)])
    assert dynamo.calls == [("BatchGetItem", 100), ("BatchGetItem", 100), ("BatchGetItem", 50)]


def test_a_read_that_is_throttled_past_its_deadline_names_what_is_missing(executor):
    dynamo = FlakyDynamo({"orders": {}, "visits": {}}, ["part", *["throttle"] * 100])
    clock = Clock()
    reader = Reader(dynamo, clock.policy(5.0), executor)
    keys = tuple(map(text, range(3)))
    with pytest.raises(
        IncompleteReadError, match=r"orders \(2 keys\), visits \(2 keys\)"
    ) as caught:
        reader.read([TableKeys("visits", keys), TableKeys("orders", keys)])
    assert caught.value.unread == {"orders": 2, "visits": 2}
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value.__cause__, ThrottledError)
    assert clock.now_s <= 5.0
    # base 25 ms, doubled up to the cap of 2 s; the next 2 s would pass the deadline
    assert clock.slept == [0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]


def test_a_write_that_is_throttled_past_its_deadline_names_the_rows(executor):
    dynamo = FlakyDynamo({"orders": {}}, ["part", *["throttle"] * 100])
    entity_items = items(3)
    with pytest.raises(IncompleteWriteError, match="Table orders: 2 of 3 rows") as caught:
        Writer(dynamo, Clock().policy(5.0), executor).write("orders", entity_items)
    assert caught.value.unwritten == [b"1", b"2"]
    assert set(dynamo.tables["orders"]) == {text(0)}


def test_requests_that_fail_outright_are_given_up_after_the_set_number(executor):
    dynamo = FlakyDynamo({"t": {}}, ["reset"] * 10)
    reader = Reader(dynamo, Clock().policy(max_failures=3), executor)
    with pytest.raises(IncompleteReadError, match="connection reset"):
        reader.read([TableKeys("t", (text(1),))])
    assert len(dynamo.calls) == 3


def test_a_refusal_is_not_tried_again(executor):
    dynamo = FlakyDynamo({"t": {}}, ["denied"])
    with pytest.raises(CredentialsError):
        Reader(dynamo, Clock().policy(), executor).read([TableKeys("t", (text(1),))])
    assert len(dynamo.calls) == 1


def test_waits_are_jittered_over_their_whole_range():
    pauses = []
    draws = iter([0.0, 0.5, 0.25])
    policy = RetryPolicy(
        10, base_s=1.0, sleep=pauses.append, clock=lambda: 0.0, jitter=lambda: next(draws)
    )
    attempts = policy.start()
    assert [attempts.wait() for _ in range(3)] == [True, True, True]
    assert pauses == [0.0, 1.0, 0.5]  # of 1, 2 and the cap of 2 seconds
