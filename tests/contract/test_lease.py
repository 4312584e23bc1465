"""One run at a time on a view: leases in the view's table, on moto and on DynamoDB Local."""

from __future__ import annotations

import datetime as dt
import logging
import queue
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError

from feast_dynamo_ext.errors import (
    AlreadyRunningError,
    AwsUnavailableError,
    ItemFormatError,
    LeaseLostError,
    ResourceNotFoundError,
)
from feast_dynamo_ext.materialize.lease import (
    Holder,
    Lease,
    LeaseSettings,
    Process,
    holder,
    is_gone,
)

KEY = b"\xff\xff\xff\xfflease"
ALICE = Process("alice-laptop", 11, None, "feast materialize a b")
BOB = Process("bob-laptop", 22, None, "feast materialize c d")


@pytest.fixture
def client(dynamodb):
    made = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb.endpoint)
    yield made
    made.close()


@pytest.fixture
def table(client) -> str:
    """An empty table of this test's own."""
    name = f"lease-{uuid.uuid4().hex[:12]}"
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "k", "AttributeType": "B"}],
        BillingMode="PAY_PER_REQUEST",
    )
    yield name
    client.delete_table(TableName=name)


class Clock:
    """A machine's monotonic clock: it goes on when somebody sleeps."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.started_s = self.now_s = now_s
        self.at_sleep = lambda: None

    @property
    def slept_s(self) -> float:
        return self.now_s - self.started_s

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.at_sleep()


class Run:
    """A run on a machine of its own, with that machine's clock; beats when the test says so."""

    def __init__(self, client, table, process=ALICE, now_s=0.0, **settings) -> None:
        self.client, self.table, self.clock = client, table, Clock(now_s)
        self.settings = LeaseSettings(
            **{
                "clock": self.clock,
                "sleep": self.clock.sleep,
                "pause": lambda stop, _: stop.wait(),
                "process": lambda: process,
                "is_dead": lambda _: False,
                **settings,
            }
        )

    def acquire(self) -> Lease:
        return Lease.acquire(self.client, self.table, "orders", self.settings)


@pytest.fixture
def run(client, table):
    """Makes runs on the test's table."""
    return lambda process=ALICE, now_s=0.0, **more: Run(
        more.pop("client", client), table, process, now_s, **more
    )


class Repeating:
    """A client whose first answer to each write is lost, so that it is sent again."""

    def __init__(self, client) -> None:
        self._client = client

    def __getattr__(self, name):
        call = getattr(self._client, name)
        if name not in ("put_item", "update_item", "delete_item"):
            return call

        def twice(**request):
            call(**request)
            return call(**request)

        return twice


class Unreachable:
    """A client that has no network while `is_down`."""

    def __init__(self, client) -> None:
        self._client, self.is_down = client, False

    def __getattr__(self, name):
        def call(**request):
            if self.is_down:
                raise EndpointConnectionError(endpoint_url="http://dynamodb")
            return getattr(self._client, name)(**request)

        return call


def item(client, table):
    return client.get_item(TableName=table, Key={"k": {"B": KEY}}, ConsistentRead=True).get("Item")


def test_the_item_says_who_holds_the_lease(run, client, table):
    process = Process("alice-laptop", 11, "12345", "feast materialize a b")
    lease = run(process).acquire()
    held = item(client, table)
    owner, beat, started_at = (held.pop(name)["S"] for name in ("owner", "beat", "started_at"))
    beat_at = int(held.pop("beat_at")["N"])
    assert beat_at == dt.datetime.fromisoformat(started_at).timestamp()
    assert held == {
        "k": {"B": KEY},
        "kind": {"S": "lease of the run that materializes this view"},
        "view": {"S": "orders"},
        "lease_s": {"N": "30"},
        "host": {"S": "alice-laptop"},
        "pid": {"N": "11"},
        "born": {"S": "12345"},
        "command": {"S": "feast materialize a b"},
    }
    assert holder(client, table) == Holder(
        "orders", owner, beat, 30.0, process, started_at, beat_at
    )
    lease.release()


def test_a_released_lease_is_free_at_once(run, client, table):
    with run().acquire() as lease:
        lease.check()
    assert holder(client, table) is None
    lease.release()
    second = run(BOB)
    with second.acquire():
        assert holder(client, table).process == BOB
    assert second.clock.slept_s == 0


def test_a_lease_is_released_when_the_run_fails(run, client, table):
    with pytest.raises(ZeroDivisionError), run().acquire():
        1 / 0  # noqa: B018
    assert holder(client, table) is None


def test_a_second_run_is_refused_at_the_first_sign_of_life(run):
    with run().acquire() as first:
        second = run(BOB)
        second.clock.at_sleep = lambda: second.clock.now_s >= 10 and first.beat()
        with pytest.raises(AlreadyRunningError) as refused:
            second.acquire()
        first.check()
    assert second.clock.slept_s == 10
    assert str(refused.value) == (
        "Feature view `orders` is being materialized by `feast materialize a b` (pid 11 on host "
        f"alice-laptop, since {first.holder.started_at}). Run this again when that has ended, or "
        "stop that process, or set `if_running: wait` under `batch_engine` in feature_store.yaml "
        "to wait for it."
    )


@pytest.mark.parametrize("skew_s", [-1e9, 0.0, 1e9])
@pytest.mark.parametrize("if_running", ["refuse", "wait"])
def test_a_silent_run_is_taken_over_after_its_lease_whatever_the_clocks_say(
    run, client, table, skew_s, if_running, caplog
):
    first = run(lease_s=60).acquire()
    second = run(BOB, now_s=skew_s, if_running=if_running)
    with caplog.at_level(logging.INFO), second.acquire() as lease:
        assert second.clock.slept_s == 60
        assert holder(client, table).owner == lease.holder.owner
    told = (
        f"`feast materialize a b` (pid 11 on host alice-laptop, since {first.holder.started_at})"
    )
    assert [record.getMessage() for record in caplog.records if "lease" in record.name] == [
        f"{told} holds the lease of orders: waiting for it",
        f"took over the lease of orders from {told}: no sign of life for 60 s",
    ]


def test_a_run_on_a_machine_with_a_wrong_wall_clock_keeps_its_lease(run, client, table):
    lease = run().acquire()
    client.update_item(
        TableName=table,
        Key={"k": {"B": KEY}},
        UpdateExpression="SET started_at = :long_ago",
        ExpressionAttributeValues={":long_ago": {"S": "1970-01-01T00:00:00+00:00"}},
    )
    second = run(BOB)
    second.clock.at_sleep = lease.beat
    with pytest.raises(AlreadyRunningError, match="since 1970-01-01T00:00:00"):
        second.acquire()
    lease.release()


def test_the_longest_that_a_beat_may_be_late_is_the_lease(run):
    lease, second = run().acquire(), run(BOB)
    second.clock.at_sleep = lambda: second.clock.now_s >= 29 and lease.beat()
    with pytest.raises(AlreadyRunningError):
        second.acquire()
    assert second.clock.slept_s == 29
    lease.release()


def test_a_waiting_run_waits_until_the_lease_is_released(run):
    first = run().acquire()
    second = run(BOB, if_running="wait")

    def at_sleep() -> None:
        if second.clock.now_s == 90:
            first.release()
        elif second.clock.now_s % 10 == 0:
            first.beat()

    second.clock.at_sleep = at_sleep
    second.acquire().release()
    assert second.clock.slept_s == 90


# moto does not check a condition and write in one step when requests come at once.
@pytest.mark.parametrize(
    "dynamodb",
    [pytest.param("dynamodb_local", marks=pytest.mark.dynamodb_local)],
    indirect=True,
)
@pytest.mark.parametrize("killed_before", [False, True])
def test_of_many_runs_at_once_one_gets_the_lease(run, client, table, killed_before):
    if killed_before:
        run().acquire()
    leases = []

    def acquire(_):
        one = run(BOB, is_dead=lambda process: process == ALICE)
        one.clock.at_sleep = lambda: [lease.beat() for lease in leases]
        try:
            leases.append(one.acquire())
        except AlreadyRunningError:
            return "refused"
        return "held"

    with ThreadPoolExecutor(8) as pool:
        outcomes = sorted(pool.map(acquire, range(8)))
    assert outcomes == ["held"] + ["refused"] * 7
    assert [lease.holder.owner for lease in leases] == [holder(client, table).owner]
    leases[0].check()
    leases[0].release()


KILLED = """
import sys, boto3
from feast_dynamo_ext.materialize.lease import LeaseSettings
from feast_dynamo_ext.materialize.lease import Lease
endpoint, table = sys.argv[1:]
client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=endpoint)
Lease.acquire(client, table, "orders", LeaseSettings(lease_s=3600))
print("held", flush=True)
input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it waits for the lease to expire")
def test_a_run_that_was_killed_on_this_machine_is_taken_over_at_once(
    run, client, table, dynamodb, caplog, fork_server
):
    with fork_server.start("-c", KILLED, dynamodb.endpoint, table) as first:
        assert first.stdout.readline() == "held\n"
        first.kill()
        first.wait()
    assert holder(client, table).process.pid == first.pid
    second = run(is_dead=Process.is_dead)
    assert is_gone(client, table, second.settings)
    second.acquire().release()
    assert second.clock.slept_s == 0
    assert "its process is gone" in caplog.text


def test_a_run_that_was_taken_over_is_told_by_whom_and_leaves_the_lease_alone(run, client, table):
    first, second = run().acquire(), run(BOB).acquire()
    first.beat()
    with pytest.raises(LeaseLostError) as lost:
        first.check()
    assert str(lost.value) == (
        f"Feature view `orders`: this run has lost its lease on table {table}: `feast materialize "
        f"c d` (pid 22 on host bob-laptop, since {second.holder.started_at}) has it now. What it "
        "wrote stays. Run it again when no other run is at it: finished parts are skipped."
    )
    first.release()
    assert holder(client, table).owner == second.holder.owner
    second.check()
    second.release()


def test_a_lease_whose_item_was_deleted_is_lost(run, client, table):
    lease = run().acquire()
    client.delete_item(TableName=table, Key={"k": {"B": KEY}})
    lease.beat()
    with pytest.raises(LeaseLostError, match="somebody deleted it"):
        lease.check()
    assert item(client, table) is None


def test_beats_that_fail_are_tolerated_for_as_long_as_nobody_can_have_the_lease(run, client):
    network = Unreachable(client)
    first = run(client=network)
    with first.acquire() as lease:
        network.is_down = True
        first.clock.now_s = 29.9
        lease.beat()
        lease.check()
        first.clock.now_s = 30
        with pytest.raises(LeaseLostError, match="could not renew it for 30 s") as lost:
            lease.check()
        assert isinstance(lost.value.__cause__, AwsUnavailableError)
        network.is_down = False
        lease.beat()
        lease.check()  # nobody wanted it


def test_a_run_that_was_stopped_for_too_long_knows_without_asking(run):
    first = run()
    with first.acquire() as lease:
        first.clock.now_s = 30
        with pytest.raises(LeaseLostError, match="could not renew it for 30 s"):
            lease.check()


def test_a_lease_that_cannot_be_released_expires(run, client, caplog):
    network = Unreachable(client)
    lease = run(client=network).acquire()
    network.is_down = True
    lease.release()
    assert "the lease of orders could not be released" in caplog.text
    network.is_down = False
    second = run(BOB)
    second.acquire().release()
    assert second.clock.slept_s == 30


def test_a_request_whose_answer_was_lost_is_no_other_run(run, client, table):
    with run(client=Repeating(client)).acquire() as lease:
        lease.beat()
        lease.check()
    assert holder(client, table) is None
    run(BOB).acquire()
    with run(client=Repeating(client), is_dead=lambda _: True).acquire() as lease:
        assert holder(client, table).owner == lease.holder.owner


def test_a_thread_beats_three_times_a_lease(run, client, table):
    pauses, go_on = queue.Queue(), queue.Queue()

    def pause(stop, seconds):
        pauses.put(seconds)
        go_on.get()
        return stop.is_set()

    lease = run(pause=pause, lease_s=27).acquire()
    beats = set()
    for _ in range(3):
        assert pauses.get(timeout=60) == 9
        beats.add(holder(client, table).beat)
        go_on.put(None)
    assert pauses.get(timeout=60) == 9
    assert len(beats | {holder(client, table).beat}) == 4
    lease.release()
    go_on.put(None)


def test_a_run_is_gone_when_nobody_holds_the_lease_or_its_holder_is_silent(run, client, table):
    reader = run(BOB)
    assert is_gone(client, table, reader.settings)
    assert reader.clock.slept_s == 0
    run().acquire()
    assert is_gone(client, table, reader.settings)
    assert reader.clock.slept_s == 30


def test_a_run_that_gives_a_sign_of_life_is_not_gone(run, client, table):
    with run().acquire() as lease:
        reader = run(BOB)
        reader.clock.at_sleep = lease.beat
        assert not is_gone(client, table, reader.settings)
        assert reader.clock.slept_s == 1


def test_a_run_that_ends_meanwhile_is_gone(run, client, table):
    lease, reader = run().acquire(), run(BOB)
    reader.clock.at_sleep = lease.release
    assert is_gone(client, table, reader.settings)


def test_without_its_table_there_is_no_lease(client):
    with pytest.raises(ResourceNotFoundError, match=r"no-such-table\. Run `feast apply`"):
        Run(client, "no-such-table").acquire()


def test_without_its_table_no_run_is_alive(client):
    assert is_gone(client, "no-such-table", LeaseSettings())


def test_an_item_that_is_no_lease_is_named(run, client, table):
    client.put_item(TableName=table, Item={"k": {"B": KEY}, "owner": {"S": "me"}})
    with pytest.raises(ItemFormatError, match=f"table {table} has no 'host'"):
        run().acquire()


# The item, whose layout other versions rely on

OLD_ITEM = {
    "k": {"B": KEY},
    "kind": {"S": "lease of the run that materializes this view"},
    "view": {"S": "orders"},
    "owner": {"S": "0123456789abcdef0123456789abcdef"},
    "beat": {"S": "fedcba9876543210fedcba9876543210"},
    "lease_s": {"N": "30"},
    "host": {"S": "alice-laptop"},
    "pid": {"N": "11"},
    "command": {"S": "feast materialize a b"},
    "started_at": {"S": "2026-01-31T12:00:00+00:00"},
    "kernel": {"S": "6ab7c2c0-91b1-4c2e-9d8f-3f6f3a3a1f51 pid:[4026531836]"},
    "born": {"S": "54321"},
}
"""As the first version wrote it, boot id and namespace of pids included."""


def test_the_lease_of_an_older_version_is_read_and_taken_over(run, client, table):
    client.put_item(TableName=table, Item=OLD_ITEM)
    assert holder(client, table) == Holder(
        view="orders",
        owner="0123456789abcdef0123456789abcdef",
        beat="fedcba9876543210fedcba9876543210",
        lease_s=30.0,
        process=Process("alice-laptop", 11, "54321", "feast materialize a b"),
        started_at="2026-01-31T12:00:00+00:00",
    )
    waiting = run(BOB)
    with waiting.acquire() as lease:
        assert waiting.clock.slept_s == 30
        assert holder(client, table).owner == lease.holder.owner


def test_an_older_version_that_beats_is_left_alone(run, client, table):
    client.put_item(TableName=table, Item=OLD_ITEM)
    second = run(BOB)

    def beat():
        client.update_item(
            TableName=table,
            Key={"k": {"B": KEY}},
            UpdateExpression="SET beat = :b",
            ExpressionAttributeValues={":b": {"S": f"beat at {second.clock.now_s}"}},
        )

    second.clock.at_sleep = beat
    with pytest.raises(AlreadyRunningError, match="pid 11 on host alice-laptop"):
        second.acquire()


@pytest.mark.parametrize("born", [None, "54321"])
def test_what_is_written_is_of_the_old_layout_and_the_time_of_the_beat(run, client, table, born):
    me = Process("bob-laptop", 22, born, "feast materialize c d")
    with run(me).acquire() as lease:
        (item,) = client.scan(TableName=table)["Items"]
    held = lease.holder
    written = {**OLD_ITEM, "owner": {"S": held.owner}, "beat": {"S": held.beat}}
    written |= {"host": {"S": "bob-laptop"}, "pid": {"N": "22"}}
    written |= {"command": {"S": "feast materialize c d"}, "started_at": {"S": held.started_at}}
    written |= {"beat_at": {"N": str(held.beat_at)}}
    del written["kernel"]
    if born is None:
        del written["born"]
    assert item == written
