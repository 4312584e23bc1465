"""Reads of a view that a killed run has left MATERIALIZING, through the store of a server."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
import time
import uuid
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.feature_view import FeatureViewState
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.dynamo.control_items import ABSENT, ControlItem
from feast_dynamo_ext.dynamo.views import table_name
from feast_dynamo_ext.errors import FeastDynamoError
from feast_dynamo_ext.materialize.lease import (
    CLOCKS_DIFFER_S,
    LEASE,
    Holder,
    Lease,
    LeaseSettings,
    Process,
)
from feast_dynamo_ext.materialize.registry_state import StaleStateResetter

if TYPE_CHECKING:
    from feast import FeatureStore

START = dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)
END = START + dt.timedelta(days=1)
MATERIALIZING, AVAILABLE_ONLINE, GENERATED = (
    FeatureViewState.MATERIALIZING,
    FeatureViewState.AVAILABLE_ONLINE,
    FeatureViewState.GENERATED,
)
ELSEWHERE = Process("another-host", 11, None, "feast materialize a b")


@dataclass
class Clock:
    """A machine's clocks, which go on when the test says so."""

    now_s: float = 1_000.0
    behind_s: float = field(default_factory=lambda: time.time() - 1_000.0)

    def __call__(self) -> float:
        return self.now_s

    def wall(self) -> float:
        """Seconds since 1970."""
        return self.behind_s + self.now_s

    def set_wall(self) -> None:
        """Let it be what the clock of the registry is."""
        self.behind_s = time.time() - self.now_s


@dataclass
class Shop:
    """A repo with materialized views, a run that was killed, and a server that reads.

    Attributes:
        store: of the runs.
        client: of the tables.
        open_server: opens another store, of a process that only serves.
        clock: of the servers.
        opened: the servers' stores.
    """

    store: FeatureStore
    client: Any
    open_server: Any
    clock: Clock = field(default_factory=Clock)
    opened: list[FeatureStore] = field(default_factory=list)

    def kill_a_run(self, name: str = "orders", by: Process | None = None) -> None:
        """What a run leaves that was killed: a state, and a lease where it got that far."""
        view = self.store.registry.get_feature_view(name, self.store.project)
        view.state = MATERIALIZING
        self.store.registry.apply_feature_view(view, self.store.project, commit=True)
        self.clock.set_wall()
        if by is not None:
            settings = LeaseSettings(wall_clock=self.clock.wall)
            held = replace(Holder.new(name, settings), process=by)
            assert self.lease_item(name).put(held.values(), ABSENT)

    def lease_item(self, name: str = "orders") -> ControlItem:
        return ControlItem(self.client, f"{self.store.project}.{name}", LEASE)

    def server(self, **registry: Any) -> FeatureStore:
        """A store that has read the registry as it is now, and watches leases by `clock`."""
        store = self.open_server(registry=registry)
        self.opened.append(store)
        settings = LeaseSettings(clock=self.clock, wall_clock=self.clock.wall)
        table_of = partial(table_name, store.config)
        store.provider._healer = StaleStateResetter(lambda: self.client, table_of, settings)
        return store

    def state(self, name: str = "orders") -> tuple:
        view = self.store.registry.get_feature_view(name, self.store.project, allow_cache=False)
        return view.state, view.materialization_intervals


@pytest.fixture
def shop(open_store, moto_endpoint, tmp_path):
    columns = {"cid": [1], "t": pa.array([START], pa.timestamp("us", "UTC")), "total": [1.5]}
    pq.write_table(pa.table(columns), tmp_path / "history.parquet")
    near = {"region": "us-east-1", "endpoint_url": moto_endpoint}
    online = {**near, "newest_wins_with": "put_item"}  # moto takes no binary values in PartiQL
    project = f"h{uuid.uuid4().hex[:12]}"
    store = open_store(project, online=online)
    history = parquet_files(tmp_path / "history.parquet", "t")
    store.apply([CUSTOMER, customer_view("orders", history), customer_view("visits", history)])
    store.materialize(START, END)
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=moto_endpoint)
    shop = Shop(store, client, partial(open_store, project, online=online))
    yield shop
    store.teardown()
    for each in (store, *shop.opened):
        asyncio.run(each.close())
    client.close()


REQUEST = {"features": ["orders:total"], "entity_rows": [{"cid": 1}]}
ANSWER = {"cid": [1], "total": [1.5]}


def read(store):
    return store.get_online_features(**REQUEST).to_dict()


def read_async(store):
    async def once():
        try:
            return (await store.get_online_features_async(**REQUEST)).to_dict()
        finally:
            await store.close()

    return asyncio.run(once())


def assert_refused(store, read=read):
    with pytest.raises(ValueError, match="'orders' is in state 'MATERIALIZING'"):
        read(store)


@pytest.fixture
def dead(fork_server):
    """A process of this machine that has come to its end."""
    code = (
        "from feast_dynamo_ext.materialize.lease import Process as P; me = P.this(); "
        "print(me.host, me.pid, me.born, sep='|')"
    )
    done = fork_server.run("-c", code)
    assert done.returncode == 0, done.stderr
    host, pid, born = done.stdout.strip().split("|")
    return Process(host, int(pid), born, "feast materialize a b")


@pytest.mark.parametrize("read", [read, read_async])
def test_without_a_lease_it_is_served_once_a_run_had_time_to_get_one(shop, read):
    shop.kill_a_run()
    server = shop.server()
    assert_refused(server, read)
    shop.clock.now_s += 29
    assert_refused(server, read)
    assert shop.state() == (MATERIALIZING, [(START, END)])
    shop.clock.now_s += 1
    assert read(server) == ANSWER
    assert shop.state() == (AVAILABLE_ONLINE, [(START, END)])
    assert read(server) == ANSWER


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a dead process is not told")
@pytest.mark.parametrize("read", [read, read_async])
def test_the_lease_of_a_dead_process_of_this_host_keeps_nobody_waiting(shop, dead, read, caplog):
    shop.kill_a_run(by=dead)
    assert read(shop.server()) == ANSWER
    assert shop.state() == (AVAILABLE_ONLINE, [(START, END)])
    assert "feature view orders is AVAILABLE_ONLINE, no longer MATERIALIZING" in caplog.text


@pytest.mark.parametrize("read", [read, read_async])
def test_a_run_that_is_alive_is_left_alone(shop, read):
    shop.kill_a_run()
    server = shop.server()
    settings = LeaseSettings(pause=lambda stop, _: stop.wait())
    table = f"{shop.store.project}.orders"
    with Lease.acquire(shop.client, table, "orders", settings) as lease:
        for _ in range(4):
            assert_refused(server, read)
            lease.beat()
            shop.clock.now_s += 29
        assert shop.state() == (MATERIALIZING, [(START, END)])
        # Another view may be read meanwhile.
        found = server.get_online_features(["visits:total"], [{"cid": 1}]).to_dict()
        assert found == ANSWER


@pytest.mark.parametrize("read", [read, read_async])
def test_a_run_on_another_host_that_has_stopped_beating(shop, read):
    shop.kill_a_run(by=ELSEWHERE)
    server = shop.server()
    assert_refused(server, read)
    shop.clock.now_s += 29
    assert_refused(server, read)
    shop.clock.now_s += 1
    assert read(server) == ANSWER
    assert shop.state() == (AVAILABLE_ONLINE, [(START, END)])


def test_a_run_on_another_host_that_beats_again_is_waited_for_again(shop):
    shop.kill_a_run(by=ELSEWHERE)
    server, item = shop.server(), shop.lease_item()
    assert_refused(server)
    shop.clock.now_s += 29
    assert item.update({"beat": "another"}, {"host": "another-host"})
    assert_refused(server)
    shop.clock.now_s += 29
    assert_refused(server)
    shop.clock.now_s += 1
    assert read(server) == ANSWER


def test_a_run_that_ends_properly_meanwhile(shop):
    """The server holds the registry of before for as long as its cache lasts, as one on S3."""
    shop.kill_a_run()
    server = shop.server(cache_mode="thread", cache_ttl_seconds=600)
    assert_refused(server)
    shop.store.materialize(START, END + dt.timedelta(days=1), feature_views=["orders"])
    assert shop.state()[0] == AVAILABLE_ONLINE
    assert_refused(server)  # the registry is read anew once a second at most
    shop.clock.now_s += 1
    assert read(server) == ANSWER
    assert len(shop.state()[1]) == 2


def test_a_server_that_was_refused_before_gives_the_next_run_time_too(shop):
    shop.kill_a_run()
    server = shop.server()
    assert_refused(server)
    shop.clock.now_s += 30
    assert read(server) == ANSWER
    shop.clock.now_s += 3_600
    shop.kill_a_run()
    server.refresh_registry()
    assert_refused(server)
    shop.clock.now_s += 30
    assert read(server) == ANSWER


def test_all_views_of_a_read_are_put_right(shop, dead):
    shop.kill_a_run("orders", by=dead)
    shop.kill_a_run("visits", by=dead)
    found = shop.server().get_online_features(
        ["orders:total", "visits:total"], [{"cid": 1}], full_feature_names=True
    )
    assert found.to_dict() == {"cid": [1], "orders__total": [1.5], "visits__total": [1.5]}
    assert [shop.state(name)[0] for name in ("orders", "visits")] == [AVAILABLE_ONLINE] * 2


def test_another_error_of_a_read_is_told_as_it_is(shop):
    with pytest.raises(Exception, match="nothing"):
        shop.server().get_online_features(["orders:nothing"], [{"cid": 1}])
    assert shop.state() == (AVAILABLE_ONLINE, [(START, END)])


# Runs


def test_a_run_of_another_view_puts_it_right(shop, dead):
    shop.kill_a_run("orders", by=dead)
    shop.store.materialize(START, END, feature_views=["visits"])
    assert shop.state("orders") == (AVAILABLE_ONLINE, [(START, END)])
    assert read(shop.server()) == ANSWER
    shop.kill_a_run("orders")
    shop.lease_item().delete({"host": dead.host})
    shop.store.materialize(START, END, feature_views=["visits"])
    assert shop.state("orders")[0] == AVAILABLE_ONLINE


def test_a_run_of_another_view_leaves_one_on_another_host_alone(shop):
    shop.kill_a_run("orders", by=ELSEWHERE)
    shop.store.materialize(START, END, feature_views=["visits"])
    assert shop.state("orders") == (MATERIALIZING, [(START, END)])
    assert shop.state("visits")[0] == AVAILABLE_ONLINE


def test_a_run_of_the_view_itself_puts_it_right(shop, dead):
    shop.kill_a_run("orders", by=dead)
    shop.store.materialize(START, END, feature_views=["orders"])
    assert shop.state("orders")[0] == AVAILABLE_ONLINE
    assert read(shop.server()) == ANSWER
    assert shop.lease_item().read() is None


def test_a_run_of_the_view_itself_that_fails_as_well(shop, dead, tmp_path):
    """Feast sets the view GENERATED then, which it refuses to readers too."""
    shop.kill_a_run("orders", by=dead)
    (tmp_path / "history.parquet").rename(tmp_path / "elsewhere.parquet")
    with pytest.raises(FeastDynamoError, match=r"history\.parquet"):
        shop.store.materialize(START, END, feature_views=["orders"])
    assert shop.state("orders")[0] == GENERATED
    assert read(shop.server()) == ANSWER  # no run begins with that state
    assert shop.state() == (AVAILABLE_ONLINE, [(START, END)])


# Programs that read once and end: none remembers what another has seen


def test_without_a_lease_the_registrys_time_says_how_long_no_run_has_got_one(shop):
    shop.kill_a_run()
    shop.clock.now_s += 25
    assert_refused(shop.server())
    assert shop.state()[0] == MATERIALIZING
    shop.clock.now_s += 10
    assert read(shop.server()) == ANSWER
    assert shop.state() == (AVAILABLE_ONLINE, [(START, END)])


def test_of_a_run_on_another_host_the_last_beat_says_that_it_is_gone(shop):
    shop.kill_a_run(by=ELSEWHERE)
    shop.clock.now_s += 30 + CLOCKS_DIFFER_S - 5
    assert_refused(shop.server())
    shop.clock.now_s += 10
    assert read(shop.server()) == ANSWER
    assert shop.state() == (AVAILABLE_ONLINE, [(START, END)])


def test_a_run_that_beats_is_alive_however_long_ago_it_began(shop):
    shop.kill_a_run()
    settings = LeaseSettings(pause=lambda stop, _: stop.wait(), wall_clock=shop.clock.wall)
    table = f"{shop.store.project}.orders"
    with Lease.acquire(shop.client, table, "orders", settings) as lease:
        shop.clock.now_s += 3_600
        lease.beat()
        assert_refused(shop.server())
    assert shop.state()[0] == MATERIALIZING
