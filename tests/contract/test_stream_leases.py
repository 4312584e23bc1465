"""Which worker reads which shard: leases in a table, on moto and on DynamoDB Local."""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError

from feast_dynamo_ext.capture.stream.stream_leases import (
    ShardLeases,
    last_sign,
    make_lease_table,
)
from feast_dynamo_ext.errors import LeaseLostError
from feast_dynamo_ext.materialize.lease import LeaseSettings, Process

SHARDS = [f"shard-{number}" for number in range(5)]
LEASE_S = 30.0

pytestmark = pytest.mark.server


@pytest.fixture
def client(dynamodb):
    made = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb.endpoint)
    yield made
    made.close()


@pytest.fixture
def table(client):
    name = f"leases-{uuid.uuid4().hex[:12]}"
    make_lease_table(client, name)
    make_lease_table(client, name)  # another worker, at the same time
    yield name
    client.delete_table(TableName=name)


class Machine:
    """A worker on a machine of its own, with that machine's clocks."""

    def __init__(self, client: Any, table: str, name: str, *, now_s: float = 0.0) -> None:
        self.now_s, self.wall_s, self.is_dead = now_s, 1_767_600_000.0, False
        process = Process(name, 1, None, "feast-dynamo capture stream purchases")
        self.leases = ShardLeases(
            client,
            table,
            "purchases",
            LeaseSettings(
                lease_s=LEASE_S,
                clock=lambda: self.now_s,
                wall_clock=lambda: self.wall_s,
                process=lambda: process,
                is_dead=lambda other: False,
            ),
        )

    def take(self, shards=SHARDS) -> list[str]:
        return self.leases.take(shards)[0]

    @property
    def held(self) -> list[str]:
        return self.leases.held


@pytest.fixture
def machines(client, table):
    def make(name: str, **how: Any) -> Machine:
        return Machine(client, table, name, **how)

    return make


def test_a_worker_alone_reads_all(machines):
    one = machines("one")
    assert one.take() == SHARDS
    assert one.take() == []
    for shard in SHARDS:
        one.leases.check(shard)
    two = machines("two")
    assert two.take() == []


def test_whether_a_worker_lives_is_seen_by_its_last_beat(machines, client, table):
    """For who looks once, a minute more than the lease: clocks of machines differ."""
    one = machines("one")
    settings = one.leases.settings
    began = dt.datetime(2026, 1, 5, 8, 0, tzinfo=dt.timezone.utc)  # by `wall_s`
    look = (client, table, "purchases", SHARDS, settings)
    assert last_sign(*look) == (False, None)
    one.take()
    assert last_sign(*look) == (True, began)
    assert last_sign(*look[:2], "another", *look[3:]) == (False, None)
    one.wall_s += 20
    one.leases.beat()
    beat = began + dt.timedelta(seconds=20)
    one.wall_s += LEASE_S + 59
    assert last_sign(*look) == (True, beat)
    one.wall_s += 1
    assert last_sign(*look) == (False, beat)
    one.wall_s -= 60
    gone = dataclasses.replace(settings, is_dead=lambda process: process.host == "one")
    assert last_sign(*look[:4], gone) == (False, beat)
    one.leases.release(SHARDS)
    assert last_sign(*look) == (False, None)
    assert last_sign(client, "no-such-table", *look[2:]) == (False, None)


def test_what_is_given_up_is_free_at_once(machines):
    one, two = machines("one"), machines("two")
    one.take()
    one.leases.release(SHARDS[:2])
    assert one.held == SHARDS[2:]
    with pytest.raises(LeaseLostError, match="given up"):
        one.leases.check(SHARDS[0])
    assert two.take() == SHARDS[:2]


def test_a_new_worker_gets_its_share_and_no_more(machines):
    one, two = machines("one"), machines("two")
    one.take()
    for _ in range(10):
        taken, asked = two.leases.take(SHARDS)
        if not (taken or asked):
            break
        wanted = one.leases.beat()
        # It commits, gives them up, and does not take them back.
        one.leases.release(wanted)
        assert one.take() == []
    assert sorted(one.held + two.held) == SHARDS
    assert {len(one.held), len(two.held)} == {2, 3}
    # From then on nobody asks.
    for _ in range(3):
        assert two.leases.take(SHARDS) == ([], [])
        assert one.leases.take(SHARDS) == ([], [])
        assert (one.leases.beat(), two.leases.beat()) == ([], [])


def test_what_was_asked_for_and_is_not_taken_is_taken_back(machines):
    one, two = machines("one"), machines("two")
    one.take()
    two.leases.take(SHARDS)
    wanted = one.leases.beat()
    one.leases.release(wanted)
    assert one.take() == []
    one.now_s += LEASE_S  # and the other one is gone
    assert one.take() == wanted


def test_a_killed_worker_is_followed_after_its_lease(machines):
    one, two = machines("one"), machines("two", now_s=1e6)
    one.take()
    assert two.take() == []
    two.now_s += LEASE_S - 0.1
    assert two.take() == []
    two.now_s += 0.1
    assert two.take() == SHARDS
    # It was not killed, only slow: it knows by its own clock, before it looks.
    one.now_s += LEASE_S
    for shard in SHARDS:
        with pytest.raises(LeaseLostError, match="another may have it"):
            one.leases.check(shard)
    assert one.leases.lost == SHARDS
    one.leases.release(SHARDS)
    assert two.leases.beat() == []
    assert two.held == SHARDS


def test_a_beat_is_a_sign_of_life(machines):
    one, two = machines("one"), machines("two")
    one.take()
    two.take()
    for _ in range(5):
        one.now_s += LEASE_S / 3
        one.leases.beat()
        two.now_s += LEASE_S / 3
        assert two.take() == []
        one.leases.check(SHARDS[0])
    two.now_s += LEASE_S
    assert two.take() == SHARDS
    assert one.leases.beat() == []
    assert one.leases.lost == SHARDS
    with pytest.raises(LeaseLostError, match="two"):
        one.leases.check(SHARDS[0])


@pytest.mark.parametrize("hours", [-1, 1])
def test_clocks_of_machines_may_differ(machines, hours):
    """Neither the time of day nor the monotonic clock of another machine says anything."""
    one, two = machines("one", now_s=5e5), machines("two", now_s=10.0)
    two.wall_s += hours * 3600
    one.take()
    assert two.take() == []
    for _ in range(3):
        for each in (one, two):
            each.now_s += LEASE_S / 3
            each.wall_s += LEASE_S / 3
        one.leases.beat()
        assert two.take() == []
        one.leases.check(SHARDS[0])
    two.now_s += LEASE_S
    assert two.take() == SHARDS


def test_who_cannot_send_its_beat_counts_from_the_last_good_one(machines, monkeypatch, client):
    one = machines("one")
    one.take()

    def unreachable(**_: Any) -> None:
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1")

    monkeypatch.setattr(client, "get_item", unreachable)
    one.now_s += LEASE_S - 0.1
    assert one.leases.beat() == []
    one.leases.check(SHARDS[0])
    one.now_s += 0.2
    with pytest.raises(LeaseLostError, match="could not renew it for 30 s"):
        one.leases.check(SHARDS[0])


def test_a_lease_of_a_process_that_is_gone_is_taken_at_once(client, table):
    def leases(*, is_dead: bool) -> ShardLeases:
        return ShardLeases(client, table, "purchases", LeaseSettings(is_dead=lambda _: is_dead))

    leases(is_dead=False).take(SHARDS)
    assert leases(is_dead=True).take(SHARDS) == (SHARDS, [])


def test_sources_have_leases_of_their_own(client, table):
    assert ShardLeases(client, table, "one").take(SHARDS)[0] == SHARDS
    assert ShardLeases(client, table, "another").take(SHARDS)[0] == SHARDS
