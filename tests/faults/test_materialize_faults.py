"""Materializations whose requests fail: they end complete, or say what is missing and resume."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.feature_view import FeatureViewState
from feast.infra.key_encoding_utils import deserialize_entity_key
from rule_proxy import RESET, THROTTLED, RuleProxy
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.dynamo.control_items import ControlItem
from feast_dynamo_ext.errors import AwsUnavailableError, IncompleteWriteError, LeaseLostError
from feast_dynamo_ext.materialize.lease import LEASE

if TYPE_CHECKING:
    from pathlib import Path

    from feast import FeatureStore
    from rule_proxy import Asked

pytestmark = pytest.mark.dynamodb_local

START = dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)
END = START + dt.timedelta(days=1)
RESERVED = b"\xff\xff\xff\xff"
MODES = ["overwrite", "newest_wins"]


@dataclass(frozen=True)
class Repo:
    """A repo whose runs reach DynamoDB Local through a proxy.

    Attributes:
        store: through the proxy.
        direct: the same without it, and without short deadlines.
        client: of the tables, without it.
        rows: keys of each view.
    """

    store: FeatureStore
    direct: FeatureStore
    client: Any
    rows: int

    def materialize(self) -> list[Any]:
        """A run; the reports of its views, also where it fails."""
        engine = self.store.provider.batch_engine
        try:
            self.store.materialize(START, END)
        finally:
            reports = engine.report.views
        return reports

    @property
    def reports(self) -> list[Any]:
        return self.store.provider.batch_engine.report.views

    def table(self, view: str = "orders") -> str:
        return f"{self.store.project}.{view}"

    def items(self, view: str = "orders") -> list[dict[str, Any]]:
        pages = self.client.get_paginator("scan").paginate(
            TableName=self.table(view), ConsistentRead=True
        )
        return [item for page in pages for item in page["Items"]]

    def keys(self, view: str = "orders") -> set[int]:
        """Customers that have a row; each has the newest event time."""
        found = set()
        for item in self.items(view):
            key = item["k"]["B"]
            if not key.startswith(RESERVED):
                assert item["t"]["N"] == str(1_735_689_600_000_000 + 3_600_000_000)
                entity = deserialize_entity_key(key, entity_key_serialization_version=3)
                found.add(entity.entity_values[0].int64_val)
        return found

    def assert_complete(self, *views: str) -> None:
        """All rows are there, and nothing of a run is left."""
        for view in views or ("orders",):
            assert (view, self.keys(view)) == (view, set(range(self.rows)))
            assert (view, self.control_items(view)) == (view, [])
            applied = self.direct.get_feature_view(view)
            assert applied.state == FeatureViewState.AVAILABLE_ONLINE

    def control_items(self, view: str = "orders") -> list[dict[str, Any]]:
        """Lease and progress."""
        return [item for item in self.items(view) if "kind" in item]

    def totals(self, cid: int) -> list[float]:
        return self.direct.get_online_features(["orders:total"], [{"cid": cid}]).to_dict()["total"]


@pytest.fixture
def rule_proxy(dynamodb_local):
    proxy = RuleProxy(dynamodb_local)
    yield proxy
    proxy.stop()


@pytest.fixture
def open_repo(open_store, dynamodb_local, tmp_path):
    """Opens repos with two rows of history a key, behind a proxy."""
    opened = []

    def open_repo(endpoint: str, rows: int, *views: str, online=None, **engine: Any) -> Repo:
        project, near = f"x{uuid.uuid4().hex[:12]}", {"region": "us-east-1"}
        block = {"type": "feast_dynamo_ext.DynamoComputeEngine", **engine}
        direct = open_store(
            project, online={**near, "endpoint_url": dynamodb_local}, batch_engine=block
        )
        keep_history(tmp_path, rows)
        history = parquet_files(tmp_path / "history.parquet", "t")
        direct.apply([CUSTOMER, *(customer_view(name, history) for name in views or ["orders"])])
        far = {**near, "endpoint_url": endpoint, "newest_wins_with": "partiql", **(online or {})}
        store = open_store(project, online=far, batch_engine=block)
        client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb_local)
        opened.append(Repo(store, direct, client, rows))
        return opened[-1]

    yield open_repo
    for repo in opened:
        repo.direct.teardown()
        for store in (repo.store, repo.direct):
            asyncio.run(store.close())
        repo.client.close()


def keep_history(folder: Path, rows: int) -> None:
    hours = [0] * rows + [1] * rows
    columns = {
        "cid": [*range(rows), *range(rows)],
        "t": pa.array([START + dt.timedelta(hours=hour) for hour in hours]).cast(
            pa.timestamp("us", "UTC")
        ),
        "total": [float(number) for number in range(2 * rows)],
    }
    pq.write_table(pa.table(columns), folder / "history.parquet")


# Trouble that passes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", ["throttled", "unprocessed"])
def test_a_run_that_is_throttled_ends_complete_and_counts_it(open_repo, fault_proxy, mode, fault):
    fault_proxy.plan()
    # botocore's adaptive mode slows all calls about leases down after one is throttled.
    online = {"retry_mode": "standard"}
    repo = open_repo(
        fault_proxy.endpoint, 1_000, online=online, write_mode=mode, rows_per_bucket=300
    )
    fault_proxy.plan(seed=7, chances={fault: 0.2})
    (report,) = repo.materialize()
    faults = fault_proxy.report().faults
    fault_proxy.plan()
    assert (report.written + report.older, report.failed) == (1_000, 0)
    # Requests for the lease and progress are throttled too.
    assert 5 <= report.throttles <= faults[fault]
    repo.assert_complete()
    assert repo.totals(7) == [1_007.0]


@pytest.mark.parametrize("mode", MODES)
def test_a_run_through_a_network_that_fails_ends_complete(open_repo, fault_proxy, mode):
    fault_proxy.plan()
    patient = {"read_timeout": 0.5, "total_max_retry_attempts": 12}
    repo = open_repo(
        fault_proxy.endpoint, 1_500, online=patient, write_mode=mode, rows_per_bucket=400
    )
    chances = {"reset": 0.06, "failed": 0.06, "truncated": 0.04, "slow": 0.01, "refused": 0.05}
    fault_proxy.plan(seed=3, chances=chances, slow_s=0.8)
    (report,) = repo.materialize()
    assert set(fault_proxy.report().faults) >= {"reset", "failed", "truncated"}
    fault_proxy.plan()
    assert (report.written + report.older, report.failed) == (1_500, 0)
    repo.assert_complete()
    assert repo.totals(1_499) == [2_999.0]


# Trouble that lasts


class Until:
    """A rule: requests that write rows of a table are passed on until there were so many."""

    def __init__(self, table: str, requests: int, then: Any) -> None:
        self.table, self.left, self.then = table, requests, then

    def __call__(self, asked: Asked) -> Any:
        if not asked.rows or f'"{self.table}"' not in asked.body.replace("\\", ""):
            return None
        self.left -= 1
        return None if self.left >= 0 else self.then


@pytest.mark.parametrize("mode", MODES)
def test_a_table_that_stays_throttled_is_named_and_the_next_run_goes_on(
    open_repo, rule_proxy, mode
):
    repo = open_repo(
        rule_proxy.endpoint,
        1_000,
        # A busy machine answers within it, too.
        online={"write_deadline_ms": 6_000},
        write_mode=mode,
        rows_per_bucket=125,
    )
    rule_proxy.rule = Until(repo.table(), 30, THROTTLED)
    with pytest.raises(IncompleteWriteError, match=f"{repo.table()}: .* rows are not written"):
        repo.materialize()
    (report,) = repo.reports
    assert report.throttles > 0
    assert report.failed > 0
    assert report.written == len(repo.keys()) < 1_000
    assert repo.direct.get_feature_view("orders").state != FeatureViewState.MATERIALIZING
    (progress,) = repo.control_items()
    recorded = int(progress["rows_done"]["N"])
    assert 0 < recorded <= report.written
    repo.direct.materialize(START, END)
    (report,) = repo.direct.provider.batch_engine.report.views
    assert (report.resumed, report.failed) == (recorded, 0)
    assert report.written + report.older == 1_000 - recorded
    repo.assert_complete()


@pytest.mark.parametrize("mode", MODES)
def test_where_one_request_was_given_up_others_do_not_wait_for_their_deadline_too(
    open_repo, rule_proxy, mode
):
    """Throttling leaves a place or two for requests: all 40 would be at it for 40 deadlines."""
    repo = open_repo(
        rule_proxy.endpoint, 1_000, online={"write_deadline_ms": 200}, write_mode=mode
    )
    rule_proxy.rule = Until(repo.table(), 0, THROTTLED)
    with pytest.raises(IncompleteWriteError, match=f"{repo.table()}: .* rows are not written"):
        repo.materialize()
    (report,) = repo.reports
    assert report.written == 0
    # The first window is of 4 requests.
    assert 25 <= report.failed <= 4 * 25
    assert repo.keys() == set()


def test_a_view_that_cannot_be_reached_does_not_stop_the_others(open_repo, rule_proxy):
    repo = open_repo(
        rule_proxy.endpoint,
        300,
        "lost",
        "orders",
        "visits",
        online={"total_max_retry_attempts": 2},
    )
    rule_proxy.rule = lambda asked: RESET if repo.table("lost") in asked.body else None
    with pytest.raises(AwsUnavailableError, match="lost"):
        repo.materialize()
    assert [(one.view, one.step) for one in repo.reports] == [
        ("lost", "failed"),
        ("orders", "done"),
        ("visits", "done"),
    ]
    repo.assert_complete("orders", "visits")
    rule_proxy.rule = lambda asked: None
    assert repo.keys("lost") == set()
    repo.materialize()
    repo.assert_complete("lost", "orders", "visits")


# The ceiling


def test_the_ceiling_holds_for_all_views_together(open_repo, rule_proxy):
    repo = open_repo(
        rule_proxy.endpoint,
        100,
        "orders",
        "visits",
        write_mode="overwrite",
        max_write_units_per_s=100,
    )
    reports = repo.materialize()
    assert [one.units for one in reports] == [100.0, 100.0]
    repo.assert_complete("orders", "visits")
    writes = rule_proxy.writes
    assert [one.rows for one in writes] == [25] * 8
    # The last of 8 requests of 25 units is sent when the 7 before it have had their time.
    assert writes[-1].at_s - writes[0].at_s >= 7 * 0.25 * 0.9


# The lease


@pytest.mark.parametrize("mode", MODES)
def test_a_run_whose_lease_another_has_taken_stops(open_repo, rule_proxy, mode):
    """It is told at the next beat, a second later; at 100 units a second all would take 5 s."""
    repo = open_repo(
        rule_proxy.endpoint,
        500,
        write_mode=mode,
        rows_per_bucket=250,
        max_write_units_per_s=100,
        lease_s=3,
    )
    item = ControlItem(repo.client, repo.table(), LEASE)

    def stolen_at_the_second_write(asked: Asked) -> None:
        if len(rule_proxy.writes) == 2 and item.read()["owner"] != "another":
            assert item.update({"owner": "another", "beat": "x"}, {"view": "orders"})

    rule_proxy.rule = stolen_at_the_second_write
    with pytest.raises(LeaseLostError, match=r"`orders`.*has it now"):
        repo.materialize()
    (report,) = repo.reports
    assert 25 <= report.written + report.older < 500
    assert len(repo.keys()) == report.written
    # The other run's lease is not released with it.
    assert item.read()["owner"] == "another"
