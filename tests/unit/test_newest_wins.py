"""Older rows never replace newer ones, whatever DynamoDB answers and whoever writes beside us."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from collections import Counter
from dataclasses import dataclass, field

import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.aws import aws_error
from feast_dynamo_ext.dynamo.encoding.requests import Try, put_request, statement
from feast_dynamo_ext.dynamo.layouts.packed import Row, RowSchema, to_item
from feast_dynamo_ext.dynamo.retry import RetryPolicy
from feast_dynamo_ext.dynamo.row_batch import Outcome
from feast_dynamo_ext.dynamo.write import Writer
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsError,
    AwsUnavailableError,
    IncompleteWriteError,
    ResourceNotFoundError,
    ThrottledError,
)

SCHEMA = RowSchema(("a",), ("DOUBLE",))
PASSING = (
    "ProvisionedThroughputExceeded",
    "ThrottlingError",
    "RequestLimitExceeded",
    "TransactionConflict",
    "InternalServerError",
)
WAYS = ("partiql", "put_item")


@dataclass
class Clock:
    """Time that passes only when somebody sleeps."""

    now_s: float = 0.0

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)

    def policy(self, deadline_s: float = 60.0, max_failures: int | None = None) -> RetryPolicy:
        return RetryPolicy(
            deadline_s,
            max_failures=max_failures,
            sleep=self.sleep,
            clock=lambda: self.now_s,
            jitter=lambda: 1.0,
        )


def item(key: int, event_us: int, created_us: int | None = None, ttl_s: int | None = None) -> dict:
    # The values tell rows of one key apart.
    values = f"{event_us}/{created_us}/{ttl_s}".encode()
    return to_item(Row(b"%d" % key, values, event_us, created_us), SCHEMA, ttl_s, "v")


def age(stored: dict) -> tuple[int, int]:
    return int(stored["t"]["N"]), int(stored.get("c", {"N": -1})["N"])


def text(key: int) -> str:
    return base64.b64encode(b"%d" % key).decode()


class Refused(Exception):  # noqa: N818 - how the fake tells a failed condition
    def __init__(self, code: str, met: dict | None = None) -> None:
        self.code = code
        self.met = met


@dataclass
class FakeDynamo:
    """A table in memory behind a transport that also throttles, fails or loses its answer.

    Statements and conditions are read from their text, not taken from the code that made them.

    Attributes:
        table: items by key in base64.
        moods: what to do with each request in turn: "ok", "throttle", "reset" (nothing is done),
            "lost" (all is done, then reset), "some" (every other row fails with a passing code).
        rivals: items that other writers put, one before each request, if they are newer.
        shows_rows: whether a failed UPDATE shows the row it met, as AWS does and DynamoDB Local
            does not.
        refusals: an exception for every request of an operation.
        codes: an error code for every statement, or for the rows of some keys.
    """

    table: dict[str, dict] = field(default_factory=dict)
    moods: list[str] = field(default_factory=list)
    rivals: list[dict] = field(default_factory=list)
    shows_rows: bool = True
    refusals: dict[str, AwsError] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    calls: Counter = field(default_factory=Counter)
    passing: int = 0

    async def call(self, operation, body, resource, timeout_s=float("inf")):
        assert resource == "t"
        self.calls[operation] += 1
        await asyncio.sleep(0)
        if self.rivals:
            self._rival(self.rivals.pop(0))
        if operation in self.refusals:
            raise self.refusals[operation]
        mood = self.moods.pop(0) if self.moods else "ok"
        if mood == "throttle":
            raise ThrottledError("slow down")
        if mood == "reset":
            raise AwsUnavailableError("connection reset")
        answer = getattr(self, f"_{operation}")(body, mood == "some")
        if mood == "lost":
            raise AwsUnavailableError("no answer in time")
        return answer

    def _rival(self, rival: dict) -> None:
        held = self.table.get(rival["k"]["B"])
        if held is None or age(rival) >= age(held):
            self.table[rival["k"]["B"]] = rival

    def _BatchWriteItem(self, body, some):  # noqa: N802 - named as the operation
        puts = body["RequestItems"]["t"]
        for put in puts[: 1 if some else None]:
            self.table[put["PutRequest"]["Item"]["k"]["B"]] = put["PutRequest"]["Item"]
        return {"UnprocessedItems": {"t": puts[1:]} if some and puts[1:] else {}}

    def _BatchExecuteStatement(self, body, some):  # noqa: N802
        assert 1 <= len(body["Statements"]) <= 25
        keys = [self._key(one) for one in body["Statements"]]
        assert len(set(keys)) == len(keys)
        responses = []
        for at, (one, key) in enumerate(zip(body["Statements"], keys, strict=True)):
            if some and at % 2:
                self.passing += 1
                code = PASSING[self.passing % len(PASSING)]
                responses.append({"Error": {"Code": code, "Message": "later"}, "TableName": "t"})
                continue
            try:
                self._refuse(key)
                self._execute(one["Statement"], one["Parameters"])
                responses.append({"TableName": "t"})
            except Refused as refused:
                error = {"Code": refused.code, "Message": "no"}
                if (
                    refused.met
                    and self.shows_rows
                    and "ReturnValuesOnConditionCheckFailure" in one
                ):
                    error["Item"] = refused.met
                responses.append({"Error": error, "TableName": "t"})
        return {"Responses": responses}

    def _refuse(self, key) -> None:
        if key in self.codes:
            raise Refused(self.codes[key])

    @staticmethod
    def _key(one) -> str:
        if one["Statement"].startswith("INSERT"):
            return one["Parameters"][0]["B"]
        return one["Parameters"][one["Statement"].count("SET ")]["B"]

    def _execute(self, statement, parameters):
        assert statement.count("?") == len(parameters)
        if statement.startswith('INSERT INTO "t" VALUE {'):
            new = dict(zip(re.findall(r"'(\w)':\?", statement), parameters, strict=True))
            if new["k"]["B"] in self.table:
                raise Refused("DuplicateItem")
            self.table[new["k"]["B"]] = new
            return
        clauses, _, condition = statement.removeprefix('UPDATE "t" ').partition(" WHERE k=? AND ")
        names = re.findall(r"SET (\w)=\?", clauses)
        new = dict(zip(names, parameters, strict=False))
        key, *compared = [next(iter(each.values())) for each in parameters[len(names) :]]
        held = self.table.get(key)
        newer_time = held is not None and int(held["t"]["N"]) < int(compared[0])
        tie = held is not None and int(held["t"]["N"]) == int(compared[1])
        if condition == "(t<? OR (t=? AND c IS MISSING) OR t IS MISSING)":
            tie = tie and "c" not in held
        else:
            assert condition == "(t<? OR (t=? AND (c IS MISSING OR c<=?)) OR t IS MISSING)"
            tie = tie and ("c" not in held or int(held["c"]["N"]) <= int(compared[2]))
        if not (newer_time or tie):
            raise Refused("ConditionalCheckFailed", held)
        for name in re.findall(r"REMOVE (\w)", clauses):
            held = {other: value for other, value in held.items() if other != name}
        self.table[key] = {**held, **new}

    def _PutItem(self, body, some):  # noqa: N802
        key = body["Item"]["k"]["B"]
        if some or key in self.codes:
            raise aws_error(
                "TransactionConflictException" if some else self.codes[key],
                "no",
                service="dynamodb",
                operation="PutItem",
                resource="t",
            )
        held, values = self.table.get(key), body["ExpressionAttributeValues"]
        names = {"#t": "t", "#c": "c"}
        assert body["ExpressionAttributeNames"] == names
        if held is not None:
            older, tie = age(held)[0] < int(values[":t"]["N"]), held["t"] == values[":t"]
            if body["ConditionExpression"] == (
                "attribute_not_exists(#t) OR #t < :t OR (#t = :t AND attribute_not_exists(#c))"
            ):
                tie = tie and "c" not in held
            else:
                assert body["ConditionExpression"] == (
                    "attribute_not_exists(#t) OR #t < :t OR "
                    "(#t = :t AND (attribute_not_exists(#c) OR #c <= :c))"
                )
                tie = tie and ("c" not in held or age(held)[1] <= int(values[":c"]["N"]))
            if not (older or tie):
                raise AwsError("newer", code="ConditionalCheckFailedException")
        self.table[key] = body["Item"]
        return {}


def write(dynamo, items, how="auto", policy=None, progress=None, writer=None) -> Outcome:
    writer = writer or Writer(dynamo, policy or Clock().policy(), workers=3)
    return asyncio.run(writer.write("t", items, progress, how))


moods = st.lists(st.sampled_from(["ok", "throttle", "reset", "lost", "some"]), max_size=10)
created = st.none() | st.integers(0, 3)
rows = st.builds(
    item,
    st.integers(0, 40),
    st.integers(0, 5),
    created,
    st.none() | st.integers(1, 9),
)
distinct = st.lists(rows, max_size=60, unique_by=lambda one: one["k"]["B"])


@cases()
@given(
    how=st.sampled_from(["auto", *WAYS]),
    held=distinct,
    new=distinct,
    moods=moods,
    shows_rows=st.booleans(),
)
def test_each_key_ends_with_its_newest_row(how, held, new, moods, shows_rows):
    before = {one["k"]["B"]: one for one in held}
    dynamo = FakeDynamo(dict(before), list(moods), shows_rows=shows_rows)
    settled: list[int] = []
    outcome = write(dynamo, new, how, progress=settled.append)
    expected = dict(before)
    older = 0
    for one in new:
        if one["k"]["B"] in before and age(before[one["k"]["B"]]) > age(one):
            older += 1
        else:
            expected[one["k"]["B"]] = one
    assert dynamo.table == expected
    assert outcome.written + outcome.older == len(new) == sum(settled)
    # A request whose answer was lost has settled its rows: sent again it meets them, which are
    # as old, and they count as written all the same.
    assert outcome == Outcome(len(new) - older, older)


@cases()
@given(
    how=st.sampled_from(["auto", *WAYS]),
    held=distinct,
    new=distinct,
    rivals=st.lists(rows, max_size=30),
    moods=moods,
    shows_rows=st.booleans(),
)
def test_rivals_between_requests_change_nothing_about_it(
    how, held, new, rivals, moods, shows_rows
):
    before = {one["k"]["B"]: one for one in held}
    dynamo = FakeDynamo(dict(before), list(moods), list(rivals), shows_rows)
    outcome = write(dynamo, new, how)
    came = rivals[: len(rivals) - len(dynamo.rivals)]
    for key, one in dynamo.table.items():
        ages = [age(other) for other in [*held, *new, *came] if other["k"]["B"] == key]
        assert age(one) == max(ages)
    assert {one["k"]["B"] for one in [*held, *new, *came]} == set(dynamo.table)
    assert outcome.written + outcome.older == len(new)


@cases()
@given(
    shares=st.lists(distinct, min_size=2, max_size=4),
    moods=moods,
    hows=st.lists(st.sampled_from(["auto", *WAYS]), min_size=4, max_size=4),
    shows_rows=st.booleans(),
)
def test_writers_on_one_event_loop_end_with_the_newest_row(shares, moods, hows, shows_rows):
    dynamo = FakeDynamo(moods=list(moods), shows_rows=shows_rows)

    async def write_all():
        policy = Clock().policy()
        writes = [
            Writer(dynamo, policy, workers=2).write("t", share, None, how)
            for share, how in zip(shares, hows, strict=False)
        ]
        await asyncio.gather(*writes)

    asyncio.run(write_all())
    every = [one for share in shares for one in share]
    newest = {key: max(age(one) for one in every if one["k"]["B"] == key) for key in dynamo.table}
    assert {key: age(one) for key, one in dynamo.table.items()} == newest
    assert {one["k"]["B"] for one in every} == set(dynamo.table)


def test_rows_that_are_there_take_one_request_and_new_ones_a_second():
    dynamo = FakeDynamo({text(n): item(n, 1) for n in range(20)})
    assert write(dynamo, [item(n, 2) for n in range(25)]) == Outcome(25)
    assert dynamo.calls == {"BatchExecuteStatement": 2}


def test_a_first_load_is_inserted_at_once_after_its_first_batch():
    dynamo = FakeDynamo()
    assert write(dynamo, [item(n, 1) for n in range(250)]) == Outcome(250)
    assert dynamo.calls == {"BatchExecuteStatement": 2 + 9}


def test_the_guess_follows_the_data():
    dynamo, clock = FakeDynamo(), Clock()
    writer = Writer(dynamo, clock.policy(), workers=1)
    write(dynamo, [item(n, 1) for n in range(50)], writer=writer)
    dynamo.calls.clear()
    # The first batch meets rows: INSERT, then REPLACE; the second is updated at once.
    assert write(dynamo, [item(n, 2) for n in range(50)], writer=writer) == Outcome(50)
    assert dynamo.calls == {"BatchExecuteStatement": 2 + 1}


def test_an_older_row_costs_one_statement_where_the_server_shows_what_it_met():
    for shows_rows, requests in ((True, 1), (False, 3)):
        dynamo = FakeDynamo({text(1): item(1, 5)}, shows_rows=shows_rows)
        assert write(dynamo, [item(1, 4)]) == Outcome(older=1)
        assert dynamo.calls == {"BatchExecuteStatement": requests}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    ("held", "new", "wins"),
    [
        (item(1, 5, 3), item(1, 5, 4), True),
        (item(1, 5, 3), item(1, 5, 3, ttl_s=7), True),  # as old: a correction goes through
        (item(1, 5, 3), item(1, 5, 2), False),
        (item(1, 5, 3), item(1, 5), False),  # without created time: the oldest
        (item(1, 5), item(1, 5, 0), True),
        (item(1, 5), item(1, 5, ttl_s=7), True),
        (item(1, 5, 0), item(1, 6), True),  # event time first
        (item(1, 5, 0, ttl_s=7), item(1, 6), True),  # created time and expiry go
        (item(1, -5), item(1, -6), False),
        (item(1, 9), item(1, 10), True),  # numbers, not texts
    ],
)
def test_which_of_two_rows_stays(how, held, new, wins):
    dynamo = FakeDynamo({text(1): held})
    outcome = write(dynamo, [new], how)
    assert dynamo.table == {text(1): new if wins else held}
    assert outcome == (Outcome(written=1) if wins else Outcome(older=1))


@pytest.mark.parametrize(
    ("new", "how", "expected", "parameters"),
    [
        (
            item(1, 5),
            Try.UPDATE,
            'UPDATE "my.table-1" SET v=? SET t=? SET f=? REMOVE c REMOVE x '
            "WHERE k=? AND (t<? OR (t=? AND c IS MISSING) OR t IS MISSING)",
            "vtfktt",
        ),
        (
            item(1, 5, 6, ttl_s=7),
            Try.REPLACE,
            'UPDATE "my.table-1" SET v=? SET t=? SET f=? SET c=? SET x=? '
            "WHERE k=? AND (t<? OR (t=? AND (c IS MISSING OR c<=?)) OR t IS MISSING)",
            "vtfcxkttc",
        ),
        (
            item(1, 5, 6),
            Try.INSERT,
            "INSERT INTO \"my.table-1\" VALUE {'k':?,'v':?,'t':?,'f':?,'c':?}",
            "kvtfc",
        ),
    ],
)
def test_statements_have_no_values_in_their_text(new, how, expected, parameters):
    made = statement("my.table-1", new, how)
    assert made["Statement"] == expected
    assert made["Parameters"] == [new[name] for name in parameters]
    assert len(expected) < 8_192


def test_a_put_request():
    assert put_request("t", item(1, 5, 6)) == {
        "TableName": "t",
        "Item": item(1, 5, 6),
        "ConditionExpression": "attribute_not_exists(#t) OR #t < :t OR "
        "(#t = :t AND (attribute_not_exists(#c) OR #c <= :c))",
        "ExpressionAttributeNames": {"#t": "t", "#c": "c"},
        "ExpressionAttributeValues": {":t": {"N": "5"}, ":c": {"N": "6"}},
    }


@pytest.mark.parametrize("code", PASSING)
def test_rows_that_stay_throttled_are_named(code):
    dynamo = FakeDynamo(codes={text(2): code, text(30): code})
    with pytest.raises(IncompleteWriteError, match="Table t: 2 of 40 rows") as caught:
        write(dynamo, [item(n, 1) for n in range(40)], "partiql", Clock().policy(5.0))
    assert sorted(caught.value.unwritten) == [b"2", b"30"]
    assert set(dynamo.table) == {text(n) for n in range(40)} - {text(2), text(30)}
    assert isinstance(caught.value.__cause__, AwsError)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("partiql", "ValidationError"),
        ("partiql", "ItemCollectionSizeLimitExceeded"),
        ("partiql", "SomethingNew"),
        ("put_item", "ValidationException"),
        ("put_item", "ItemCollectionSizeLimitExceededException"),
    ],
)
def test_a_row_that_is_refused_is_named_and_the_others_are_written(how, code):
    dynamo = FakeDynamo(codes={text(7): code})
    with pytest.raises(IncompleteWriteError, match=f"1 of 30 rows .*{code[:10]}") as caught:
        write(dynamo, [item(n, 1) for n in range(30)], how)
    assert caught.value.unwritten == [b"7"]
    assert len(dynamo.table) == 29


@pytest.mark.parametrize("how", [*WAYS, "overwrite"])
def test_rows_of_requests_that_are_never_answered_are_named(how):
    dynamo = FakeDynamo(moods=["reset"] * 1_000)
    with pytest.raises(IncompleteWriteError, match=r"30 of 30 rows .*connection reset") as caught:
        write(dynamo, [item(n, 1) for n in range(30)], how, Clock().policy(max_failures=3))
    assert sorted(caught.value.unwritten) == sorted(b"%d" % n for n in range(30))
    assert isinstance(caught.value.__cause__, AwsUnavailableError)


def denied(operation: str) -> AwsError:
    return aws_error(
        "AccessDeniedException",
        "User x is not authorized to perform: dynamodb:PartiQLUpdate",
        service="dynamodb",
        operation=operation,
        resource="t",
    )


def test_a_statement_that_is_denied_or_has_no_table_ends_the_write():
    items = [item(n, 1) for n in range(3)]
    with pytest.raises(AccessDeniedError, match="BatchExecuteStatement on t"):
        write(FakeDynamo(codes={text(1): "AccessDenied"}), items, "partiql")
    with pytest.raises(ResourceNotFoundError, match=r"table not found: t\. Run `feast apply`"):
        write(FakeDynamo(codes={text(1): "ResourceNotFound"}), items, "partiql")


def test_no_request_is_in_flight_after_an_error():
    dynamo = FakeDynamo(codes={text(0): "AccessDenied"})
    with pytest.raises(AccessDeniedError):
        write(dynamo, [item(n, 1) for n in range(1_000)], "partiql")
    # Three workers: the two others finish their batches and begin no more.
    assert sorted(dynamo.table) == sorted(map(text, range(25, 75)))


@pytest.mark.parametrize("error", [denied("x"), AwsUnavailableError("HTTP 500"), None])
def test_put_item_takes_over_where_partiql_does_not_work(error, caplog):
    error = error or AwsError("what?", code="UnknownOperationException")
    dynamo = FakeDynamo(refusals={"BatchExecuteStatement": error})
    writer = Writer(dynamo, Clock().policy(), workers=3)
    with caplog.at_level(logging.WARNING):
        assert write(dynamo, [item(n, 1) for n in range(60)], writer=writer) == Outcome(60)
        tried = dynamo.calls["BatchExecuteStatement"]
        assert write(dynamo, [item(n, 2) for n in range(60)], writer=writer) == Outcome(60)
    assert dynamo.calls["BatchExecuteStatement"] == tried <= 3
    assert len(dynamo.table) == 60
    assert [record.message[:50] for record in caplog.records] == [
        "table t: rows are written one a request (PutItem),"
    ]


def test_partiql_is_tried_again_after_ten_minutes():
    clock = Clock()
    dynamo = FakeDynamo(refusals={"BatchExecuteStatement": AwsUnavailableError("HTTP 500")})
    writer = Writer(dynamo, clock.policy(), workers=3)
    write(dynamo, [item(1, 1)], writer=writer)
    dynamo.refusals.clear()
    dynamo.calls.clear()
    clock.now_s += 599
    write(dynamo, [item(1, 2)], writer=writer)
    assert dynamo.calls == {"PutItem": 1}
    clock.now_s += 2
    write(dynamo, [item(1, 3)], writer=writer)
    assert dynamo.calls == {"PutItem": 1, "BatchExecuteStatement": 1}
    assert dynamo.table == {text(1): item(1, 3)}


def test_passing_failures_decide_nothing():
    dynamo = FakeDynamo(moods=["reset", "reset"])
    writer = Writer(dynamo, Clock().policy(), workers=3)
    assert write(dynamo, [item(1, 1)], writer=writer) == Outcome(1)
    assert dynamo.calls["PutItem"] == 0

    down = AwsUnavailableError("HTTP 503")
    dynamo.refusals = {"BatchExecuteStatement": down, "PutItem": down}
    writer = Writer(dynamo, Clock().policy(max_failures=3), workers=3)
    with pytest.raises(IncompleteWriteError, match=r"1 of 1 rows .*HTTP 503"):
        write(dynamo, [item(1, 2)], writer=writer)
    dynamo.refusals, dynamo.calls = {}, Counter()
    assert write(dynamo, [item(1, 2)], writer=writer) == Outcome(1)
    assert dynamo.calls == {"BatchExecuteStatement": 1}


def test_an_identity_that_may_do_neither_is_told_of_partiql():
    refusals = {name: denied(name) for name in ("BatchExecuteStatement", "PutItem")}
    with pytest.raises(AccessDeniedError, match="dynamodb:PartiQLUpdate") as caught:
        write(FakeDynamo(refusals=refusals), [item(1, 1)])
    assert caught.value.operation == "BatchExecuteStatement"


def test_partiql_that_worked_once_is_not_given_up_for_an_outage():
    dynamo = FakeDynamo()
    writer = Writer(dynamo, Clock().policy(max_failures=3), workers=3)
    write(dynamo, [item(1, 1)], writer=writer)
    dynamo.refusals = {"BatchExecuteStatement": AwsUnavailableError("HTTP 500")}
    with pytest.raises(IncompleteWriteError, match="HTTP 500"):
        write(dynamo, [item(1, 2)], writer=writer)
    assert dynamo.calls["PutItem"] == 0


def test_a_write_of_nothing_sends_nothing():
    dynamo = FakeDynamo()
    for how in ("auto", "overwrite", *WAYS):
        assert write(dynamo, [], how) == Outcome()
    assert dynamo.calls == {}


def test_a_given_way_is_the_only_one_taken():
    items = [item(n, n % 9) for n in range(60)]
    for how, operation, requests in (
        ("partiql", "BatchExecuteStatement", 6),
        ("put_item", "PutItem", 60),
        ("overwrite", "BatchWriteItem", 3),
    ):
        dynamo = FakeDynamo()
        assert write(dynamo, items, how) == Outcome(60)
        assert dynamo.calls == {operation: requests}
