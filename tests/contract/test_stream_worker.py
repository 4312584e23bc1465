"""A table's stream is followed: online at once, and in history once, on real streams."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import random
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ConnectionClosedError
from fake_streams import FakeStreams, error
from followed import QUICK, FollowedShop, create_table, following, source_of, until
from repos import REGION

from feast_dynamo_ext.capture.exports.windows import CaptureState
from feast_dynamo_ext.capture.status import status_of
from feast_dynamo_ext.capture.stream.stream_positions import second, shard_source
from feast_dynamo_ext.capture.stream.stream_shards import ShardReader, list_shards
from feast_dynamo_ext.errors import AccessDeniedError, AwsUnavailableError, CaptureError
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.ledger import Progress

if TYPE_CHECKING:
    from feast_dynamo_ext.capture.stream.stream_worker import StreamWorker

pytestmark = pytest.mark.server


def open_shop(open_store: Any, endpoint: str, tmp_path: Any, **online: Any) -> FollowedShop:
    name = f"orders{uuid.uuid4().hex[:12]}"
    online |= {"endpoint_url": endpoint, "region": REGION}
    store = open_store(name, online=online, offline={"catalog": {"type": "sql"}})
    return FollowedShop.make(store, endpoint, name, tmp_path)


@pytest.fixture
def shop(open_store: Any, dynamodb: Any, tmp_path: Any) -> FollowedShop:
    """A table on each DynamoDB, with the stream that is there."""
    # Moto takes no binary values in PartiQL.
    more = {"newest_wins_with": "put_item"} if dynamodb.name == "moto" else {}
    return open_shop(open_store, dynamodb.endpoint, tmp_path, **more)


@pytest.fixture
def sharded(open_store: Any, moto_endpoint: str, tmp_path: Any) -> FollowedShop:
    """A table whose stream has the shards that a test gives it."""
    return open_shop(open_store, moto_endpoint, tmp_path, newest_wins_with="put_item")


@pytest.fixture
def streams(sharded: FollowedShop) -> FakeStreams:
    made = FakeStreams()
    sharded.log = made.log
    return made


def test_changes_are_online_and_in_history(shop: FollowedShop):
    with following(shop.worker()) as worker:
        shop.put(1, at=10, amount=5)
        shop.put(2, at=10, amount=6)
        shop.put(3, at=10, amount=7)
        until(lambda: shop.online([1, 2, 3]) == [5, 6, 7])
        shop.put(1, at=10, amount=8)  # an update
        shop.put(2, at=20, amount=9)  # which moves the event
        shop.delete(3)
        shop.put(4, at=10, amount=1, gone_since=int(time.time()) - 3600)
        shop.delete(4)  # after its own TTL
        shop.put(5, at=10, amount=None)
        until(lambda: shop.online([1, 2, 3, 4]) == [8, 9, None, 1])
        assert shop.online([3, 4], "all") == [7, 1]
        until(shop.is_captured)
    assert shop.rows() == shop.expected()
    assert shop.expected()[2] == [(10, 6, "put"), (10, 6, "move"), (20, 9, "put")]
    assert shop.expected()[4][-1] == (10, 1, "expire")
    assert worker.figures.committed.rows == sum(map(len, shop.expected().values()))
    assert worker.leases.held == []


def test_a_clean_stop_commits_all_that_was_read(shop: FollowedShop):
    slow = dataclasses.replace(QUICK, history_s=600)
    with following(shop.worker(slow)):
        for order in range(50):
            shop.put(order, at=1, amount=order)
        until(lambda: shop.online(list(range(50))) == list(range(50)))
        assert shop.history.rows() == 0
    assert shop.rows() == shop.expected()
    commits = len(shop.history.handle.load().snapshots())
    # The next worker goes on from there, and has nothing to do.
    with following(shop.worker()):
        shop.put(1, at=2, amount=99)
        until(lambda: shop.online([1]) == [99])
    assert shop.rows() == shop.expected()
    assert len(shop.history.handle.load().snapshots()) == commits + 1


# What does not fit, and what is there already


def test_a_poison_record_is_in_quarantine_and_the_rest_proceeds(shop: FollowedShop):
    with following(shop.worker()):
        for order in range(5):
            shop.put(order, at=1, amount="?" if order == 2 else order)
        until(lambda: shop.online([0, 1, 3, 4]) == [0, 1, 3, 4])
        until(shop.is_captured)
    assert shop.rows() == shop.expected()
    # Killed after the quarantine's commit: all is read once more, by a history of before.
    (one,) = shop.history.quarantine.load().scan().to_arrow().to_pylist()
    assert (one["attribute"], one["_feast_change"]) == ("amount", "put")
    shard = next(iter(shop.history.stream().shards))
    assert one["origin"].startswith(f"{shard}/")
    source = shard_source(shard)
    before = shop.history.handle.state(source)
    forgotten = {"at": before["at"]}
    shop.history.handle.append(iter(()), "again", Progress(source, before, forgotten))
    with following(shop.worker()):
        shop.put(9, at=1, amount=9)
        until(lambda: shop.online([9]) == [9])
    assert shop.rows() == shop.expected()
    assert shop.history.quarantined() == shop.misfits() == 1


def test_what_lambda_has_brought_is_not_there_twice(shop: FollowedShop):
    for order in range(6):
        shop.put(order, at=1, amount=order if order else "?")
    worker = shop.worker()
    (shard,) = list_shards(worker.client, worker.current_arn()).shards
    reader = ShardReader(worker.client, worker.current_arn(), shard.id, None)
    records = reader.read().records
    assert len(records) == 6
    shop.history.add_changes(worker.convert(records[:4], "lambda"))
    with following(worker):
        until(lambda: shop.online([1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5])
        until(shop.is_captured)
    assert shop.rows() == shop.expected()
    assert shop.history.quarantined() == 1
    assert worker.figures.committed.rows == 2


# A network that fails


class Faulty:
    """A client whose calls fail now and then, before they are sent or after."""

    def __init__(self, client: Any, seed: int) -> None:
        self._client, self._dice = client, random.Random(seed)  # noqa: S311 - no secret
        self.meta, self.failures = client.meta, 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def perhaps(**request: Any) -> Any:
            what = self._dice.random()
            if name == "describe_stream" or what > 0.3:
                return call(**request)
            self.failures += 1
            if what < 0.1:
                raise error("LimitExceededException", name)
            if what < 0.15:
                raise error("InternalServerError", name)
            if what < 0.2 and name == "get_records":
                raise error("ExpiredIteratorException", name)
            call(**request)
            raise ConnectionClosedError(endpoint_url="http://127.0.0.1")

        return perhaps


def test_throttling_and_resets_lose_nothing(shop: FollowedShop):
    worker = shop.worker()
    client = Faulty(worker.client, 3)
    with following(shop.worker(client=client)):
        for number in range(60):
            shop.put(number % 7, at=number % 11, amount=number)
            if number % 5 == 4:
                shop.delete(number % 7)
            if number % 20 == 19:
                until(shop.is_captured)
    assert client.failures > 3
    assert shop.rows() == shop.expected()
    assert shop.online(list(range(7))) == shop.held(list(range(7)))


# Commits that are slow, refused, or not answered


@dataclass(frozen=True)
class Gated(TableHandle):
    """A history table that takes no commit until the gate is open."""

    gate: threading.Event = field(default_factory=threading.Event)

    def append(self, *args: Any, **more: Any) -> Any:
        self.gate.wait()
        return super().append(*args, **more)


def test_reading_waits_where_commits_are_slow(sharded: FollowedShop):
    streams = FakeStreams(most=20)
    streams.shard("a")
    for order in range(3_000):
        streams.put("a", order, at=order, amount=order)
    settings = dataclasses.replace(QUICK, history_bytes=20_000, poll_s=0.001)
    plain = sharded.worker(settings, client=streams, current_arn=lambda: streams.arn)
    plain.prepare()
    handle = sharded.history.handle
    gated = Gated(handle.address, handle.name, handle.settings)
    history = dataclasses.replace(sharded.history, handle=gated)
    worker = dataclasses.replace(plain, history=history, write_online=lambda made: None)
    with following(worker):

        def read() -> int:
            return worker.figures.records

        until(lambda: read() > 100)
        seen = [-1]

        def stands() -> bool:
            seen.append(read())
            return len(seen) > 20 and len(set(seen[-20:])) == 1

        until(stands)  # for as long as no commit is made
        assert read() < 1_500
        assert worker.commits.largest <= 2 * 20_000 + 10_000
        gated.gate.set()
        until(lambda: sharded.history.rows() == 3_000)
    assert worker.commits.largest <= 2 * 20_000 + 10_000
    sharded.log = streams.log
    assert sharded.rows() == sharded.expected()


@dataclass(frozen=True)
class Unanswered(TableHandle):
    """A history table whose commits are made, but some of the answers are lost."""

    numbers: Any = field(default_factory=itertools.count)

    def append(self, *args: Any, **more: Any) -> Any:
        found = super().append(*args, **more)
        if next(self.numbers) % 2 == 0:
            raise AwsUnavailableError("the connection was reset")
        return found


def test_a_commit_whose_answer_was_lost_is_not_made_twice(shop: FollowedShop):
    plain = shop.worker()
    plain.prepare()
    handle = shop.history.handle
    made = Unanswered(handle.address, handle.name, handle.settings)
    worker = dataclasses.replace(plain, history=dataclasses.replace(shop.history, handle=made))
    with following(worker):
        for number in range(30):
            shop.put(number % 3, at=1, amount=number)
            if number % 10 == 9:
                until(shop.is_captured)
    assert shop.rows() == shop.expected()


# Shards, and several workers


def of_shards(shop: FollowedShop, streams: FakeStreams, **more: Any) -> StreamWorker:
    settings = more.pop("settings", QUICK)
    return shop.worker(settings, client=streams, current_arn=lambda: streams.arn, **more)


def test_children_follow_their_parents(sharded: FollowedShop, streams: FakeStreams):
    """An order goes on in another shard; its changes stay in order."""
    streams.shard("a")
    for amount in range(30):
        streams.put("a", order=amount % 4, at=amount, amount=amount)
    streams.split("a", "b", "c")
    for amount in range(30, 60):
        order = amount % 4
        streams.put("bc"[order % 2], order, at=100 - amount, amount=amount)
    streams.split("b", "d")
    streams.put("d", 0, at=1, amount=61)
    streams.delete("c", 1)
    with following(of_shards(sharded, streams)) as worker:
        until(sharded.is_captured)
        # While it is followed, too.
        streams.split("d", "e", "f")
        streams.put("e", 0, at=2, amount=62)
        streams.put("f", 2, at=2, amount=63)
        until(lambda: sharded.online([0, 1, 2, 3]) == sharded.held([0, 1, 2, 3]))
        until(sharded.is_captured)
    assert sharded.rows() == sharded.expected()
    positions = sharded.history.stream().shards
    assert {shard for shard, position in positions.items() if not position.is_done} == {
        "c", "e", "f"
    }  # fmt: skip
    assert "a" not in positions  # what its children say is enough
    # One that was trimmed since is not missed.
    for shard in "abd":
        streams.forget(shard)
    streams.put("c", 1, at=3, amount=64)
    with following(of_shards(sharded, streams)) as worker:
        until(sharded.is_captured)
    assert sharded.rows() == sharded.expected()
    assert worker.figures.committed.rows == 1


def test_workers_share_shards_and_one_takes_over_from_another(
    sharded: FollowedShop, streams: FakeStreams
):
    for shard in "abcd":
        streams.shard(shard)
        for order in range(3):
            streams.put(shard, "abcd".index(shard) * 10 + order, at=1, amount=1)
    with following(of_shards(sharded, streams, lease_s=3.0)) as one:
        until(lambda: one.leases.held == list("abcd"))
        with following(of_shards(sharded, streams, lease_s=3.0)) as two:
            until(lambda: len(one.leases.held) == len(two.leases.held) == 2)
            for amount in range(2, 40):
                for place, shard in enumerate("abcd"):
                    streams.put(shard, place * 10 + amount % 3, at=amount, amount=amount)
            until(sharded.is_captured)
            assert one.figures.committed.rows
            assert two.figures.committed.rows
        until(lambda: one.leases.held == list("abcd"))
        streams.put("d", 30, at=50, amount=99)
        until(lambda: sharded.online([30]) == [99])
    assert sharded.rows() == sharded.expected()


def test_a_worker_that_lost_its_lease_commits_nothing(sharded: FollowedShop, streams: FakeStreams):
    """It stands still while it commits, for longer than its lease; then it goes on."""
    streams.shard("a")
    streams.put("a", 1, at=1, amount=1)
    first = of_shards(sharded, streams)
    first.prepare()
    handle = sharded.history.handle
    gated = Gated(handle.address, handle.name, handle.settings)
    slow = dataclasses.replace(first, history=dataclasses.replace(sharded.history, handle=gated))
    with following(slow):
        until(lambda: slow.figures.records == 1)
        # Another sees a lease without beats: its process is gone, it thinks.
        gone = dataclasses.replace(first.leases.settings, is_dead=lambda _: True)
        second = of_shards(sharded, streams)
        second = dataclasses.replace(
            second, leases=dataclasses.replace(second.leases, settings=gone)
        )
        with following(second):
            until(lambda: second.leases.held == ["a"])
            until(sharded.is_captured)  # the very commit at which the slow one stands
            streams.put("a", 1, at=1, amount=2)
            until(sharded.is_captured)
        gated.gate.set()
        until(lambda: slow.leases.held == ["a"])  # as the other one has ended
    assert sharded.rows() == sharded.expected()
    assert (slow.figures.committed.rows, second.figures.committed.rows) == (0, 2)


# A gap


def test_what_was_trimmed_is_said_and_what_is_there_goes_on(
    sharded: FollowedShop, streams: FakeStreams, caplog: Any
):
    streams.shard("a")
    streams.shard("b")
    streams.put("a", 1, at=1, amount=1)
    streams.put("b", 2, at=1, amount=2)
    began = streams.now
    with following(of_shards(sharded, streams)):
        until(sharded.is_captured)
    streams.now += dt.timedelta(hours=20)
    streams.put("b", 2, at=2, amount=20)
    with following(of_shards(sharded, streams)):
        until(sharded.is_captured)
    kept = sharded.expected()
    # Nobody follows it for more than a day: `a` is trimmed as a whole, `b` in part.
    streams.put("a", 1, at=3, amount=3)
    streams.put("b", 2, at=3, amount=4)
    streams.now += dt.timedelta(hours=25)
    streams.trim("b")
    streams.forget("a")
    streams.put("b", 2, at=4, amount=5)
    with following(of_shards(sharded, streams)), caplog.at_level("WARNING"):
        until(lambda: sharded.online([2]) == [5])
    assert "capture sync" in caplog.text
    assert sharded.rows() == {**kept, 2: [*kept[2], (3, 4, "move"), (4, 5, "put")]}
    found = sharded.history.stream()
    assert list(found.shards) == ["b"]
    *closed, (since, end) = found.stream.spans
    # Of 24 hours one is left as a margin.
    kept_s = dt.timedelta(hours=23)
    assert closed == [(began - kept_s, began)]
    assert (since, end) == (streams.now - kept_s, None)
    # What an export before the gap says is followed by one that closes it.
    assert found.captured_until(began) == began
    assert found.gap(began) == (began, since)
    status = status_of(
        sharded.history,
        sharded.source,
        streams.now,
    )
    assert status.until is None
    sharded.history.keep(None, CaptureState("an-id", (), began), "exported")
    status = status_of(sharded.history, sharded.source, streams.now)
    assert status.gap == (began, since)
    assert "exports what the stream lacks" in status.next


def test_a_table_that_does_not_change_is_not_behind(sharded: FollowedShop, streams: FakeStreams):
    streams.shard("a")
    streams.put("a", 1, at=1, amount=1)
    quiet = dataclasses.replace(QUICK, idle_s=0.1)
    with following(of_shards(sharded, streams, settings=quiet)) as worker:
        until(sharded.is_captured)
        began = sharded.history.stream().floor
        assert began == streams.now
        calls = len(streams.calls)
        until(lambda: len(streams.calls) > calls + 5)
        streams.now += dt.timedelta(hours=30)
        # What was written in the last minute may not be seen yet.
        seen = streams.now - dt.timedelta(minutes=1)
        until(lambda: sharded.history.stream().floor == seen)
        streams.put("a", 1, at=1, amount=2)
        until(sharded.is_captured)
    assert worker.figures.floor == streams.now
    assert sharded.rows() == sharded.expected()


def test_who_is_half_a_day_behind_warns(sharded: FollowedShop, streams: FakeStreams, caplog: Any):
    streams.shard("a")
    streams.put("a", 1, at=1, amount=1)
    streams.now += dt.timedelta(hours=13)
    streams.put("a", 1, at=1, amount=2)
    streams.most = 1
    with caplog.at_level("WARNING"), following(of_shards(sharded, streams)):
        until(sharded.is_captured)
    warned = [record for record in caplog.records if "24 hours" in record.getMessage()]
    assert len(warned) == 1
    assert "shard a is 13 h" in warned[0].getMessage()


def test_figures_are_a_line(sharded: FollowedShop, streams: FakeStreams):
    streams.shard("a")
    for order in range(5):
        streams.put("a", order, at=1, amount="?" if order == 0 else 1)
    lines: list[str] = []
    often = dataclasses.replace(QUICK, line_s=0.2)
    worker = of_shards(sharded, streams, settings=often, say=lines.append)
    with following(worker):
        until(lambda: any("4 rows" in line for line in lines))
    name = sharded.source.name
    line = next(line for line in lines if "4 rows" in line)
    assert line.startswith(f"{name}: 1 shard, ")
    assert "1 in quarantine" in line
    said = worker.figures.to_json()
    assert (said["records"], said["rows"], said["quarantined"]) == (5, 4, 1)


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_stream_that_was_switched_off_and_on(
    sharded: FollowedShop, streams: FakeStreams, caplog: Any, is_made_anew: bool
):
    # Of a table that was deleted the stream can be read for a day.
    said: list[str] = []
    tables = ["first"]
    streams.shard("a")
    streams.put("a", 1, at=1, amount=1)
    with following(of_shards(sharded, streams, table=lambda: tables[0])) as worker:
        until(sharded.is_captured)
        again = FakeStreams(arn=f"{streams.arn}-2", now=streams.now + dt.timedelta(minutes=5))
        again.shard("z")
        again.put("z", 2, at=2, amount=2)
        arns = {streams.arn: streams, again.arn: again}
        current = [streams.arn]

        class Both:
            def describe_stream(self, **request: Any) -> Any:
                return arns[request["StreamArn"]].describe_stream(**request)

            def get_shard_iterator(self, **request: Any) -> Any:
                return arns[request["StreamArn"]].get_shard_iterator(**request)

            def get_records(self, **request: Any) -> Any:
                return arns[current[0]].get_records(**request)

    following_both = sharded.worker(
        QUICK,
        client=Both(),
        current_arn=lambda: current[0],
        table=lambda: tables[0],
        say=said.append,
    )
    with following(following_both) as worker, caplog.at_level("WARNING"):
        until(lambda: worker.figures.shards == 1)
        streams.close()
        until(lambda: worker.figures.shards == 0)
        tables[0] = "second" if is_made_anew else "first"
        current[0] = again.arn
        until(lambda: sharded.online([2]) == [2])
        sharded.log = [*streams.log, *again.log]
        until(sharded.is_captured)
    assert "capture sync" in caplog.text
    assert ("deleted and made anew" in caplog.text) == is_made_anew
    assert any("switched off and on" in line for line in said) != is_made_anew
    found = sharded.history.stream()
    assert (found.stream.arn, found.stream.table) == (again.arn, tables[0])
    assert list(found.shards) == ["z"]


@pytest.mark.dynamodb_local
def test_a_table_that_was_made_anew_is_said_so(
    open_store: Any, dynamodb_local: str, tmp_path: Any, caplog: Any
):
    shop = open_shop(open_store, dynamodb_local, tmp_path)
    name = shop.source.table

    def which() -> str:
        found = shop.client.describe_table(TableName=name)["Table"]
        assert "TableId" not in found
        return str(found["CreationDateTime"].timestamp())

    said: list[str] = []
    with following(shop.worker(say=said.append)):
        shop.put(1, at=1, amount=1)
        until(lambda: shop.online([1]) == [1])
        until(shop.is_captured)
    first = which()
    assert shop.history.stream().stream.table == first
    shop.client.delete_table(TableName=name)
    create_table(shop.client, name)
    shop.log.clear()
    with caplog.at_level("WARNING"), following(shop.worker(say=said.append)):
        shop.put(2, at=2, amount=2)
        until(lambda: shop.online([2]) == [2])
    assert (
        f"source `{name}`: the table {name} was deleted and made anew: the stream of the new one "
        "is followed from now on. What the old one had stays in the history and online until the "
        f"new table is captured as a whole: `feast-dynamo capture sync {name} --full`, or --scan "
        "for a small one, and then `feast materialize`"
    ) in caplog.messages
    assert not any("switched off and on" in line for line in said)
    found = shop.history.stream()
    assert found.stream.table == which() != first
    assert shop.online([1]) == [1]
    assert {order: len(rows) for order, rows in shop.rows().items()} == {1: 1, 2: 1}


def test_a_table_that_was_made_anew_after_its_export_is_said_so(shop: FollowedShop, caplog: Any):
    worker = shop.worker(table=lambda: "another")
    state = CaptureState("of the export", (("order", "N"),), second(5))
    shop.history.keep(None, state, "exported")
    with caplog.at_level("WARNING"):
        worker.prepare()
    assert "was deleted and made anew" in caplog.text
    assert shop.history.stream().stream.table == "another"


def test_a_table_without_a_stream_is_refused(shop: FollowedShop):
    name = f"{shop.source.table}plain"
    create_table(shop.client, name, stream=False)
    source = source_of(name, shop.store.repo_path)
    plain = FollowedShop(shop.store, shop.client, source)
    with pytest.raises(CaptureError, match=r"aws dynamodb update-table .*StreamEnabled=true"):
        plain.worker()


def test_a_stream_that_is_switched_off_ends_the_worker(
    sharded: FollowedShop, streams: FakeStreams
):
    streams.shard("a")
    streams.put("a", 1, at=1, amount=1)
    arns = [streams.arn]
    worker = sharded.worker(QUICK, client=streams, current_arn=lambda: arns[0])

    def followed() -> None:
        with following(worker):
            until(sharded.is_captured)
            arns[0] = ""
            streams.close()
            until(lambda: worker.is_ending)

    with pytest.raises(CaptureError, match="was switched off"):
        followed()
    assert sharded.rows() == sharded.expected()


# What may pass and what does not


def test_an_error_that_no_repetition_mends_ends_the_worker(
    sharded: FollowedShop, streams: FakeStreams
):
    streams.shard("a")
    streams.put("a", 1, at=1, amount=1)
    is_refused = threading.Event()

    def refuse(operation: str, shard: str) -> None:
        if is_refused.is_set() and operation == "GetRecords":
            raise error("AccessDeniedException", operation)

    streams.on_call = refuse
    slow = dataclasses.replace(QUICK, history_s=600)
    worker = of_shards(sharded, streams, settings=slow)

    def followed() -> None:
        with following(worker):
            until(lambda: worker.figures.records == 1)
            is_refused.set()
            until(lambda: worker.is_ending)

    with pytest.raises(AccessDeniedError):
        followed()
    # What was read before is in the history.
    assert sharded.rows() == sharded.expected()
