"""Progress of runs in the view's table, on moto and on DynamoDB Local."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import uuid
from concurrent.futures import ThreadPoolExecutor

import boto3
import pandas as pd
import pytest
from feast import FeatureService
from views import CUSTOMER, customer_view

from feast_dynamo_ext.errors import LeaseLostError, ResourceNotFoundError
from feast_dynamo_ext.materialize.checkpoint import Checkpoint, RunIdentity
from feast_dynamo_ext.materialize.lease import Lease, LeaseSettings

# 1998-06-30 and 1998-07-01, in microseconds
IDENTITY = RunIdentity(899164800000000, 899251200000000, "files 1", "view 1", "newest_wins")
KEY = b"\xff\xff\xff\xffprogress:899164800000000:899251200000000"
NOW_S = 1_700_000_000.9


@pytest.fixture
def client(dynamodb):
    made = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb.endpoint)
    yield made
    made.close()


@pytest.fixture
def table(client) -> str:
    """An empty table of this test's own."""
    name = f"progress-{uuid.uuid4().hex[:12]}"
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "k", "AttributeType": "B"}],
        BillingMode="PAY_PER_REQUEST",
    )
    yield name
    client.delete_table(TableName=name)


@pytest.fixture
def open_run(client, table):
    """Opens the progress of a run, as the engine does."""

    def open_run(identity=IDENTITY, *, resume=True, client=client):
        return Checkpoint.open(client, table, identity, resume=resume, now_s=lambda: NOW_S)

    return open_run


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


def items(client, table) -> list[dict]:
    return client.scan(TableName=table, ConsistentRead=True)["Items"]


def killed(run, buckets=4, done=(1, 3)) -> None:
    """A run that got so far: ten rows a bucket."""
    run.begin(buckets, rows=buckets * 10)
    for bucket in done:
        run.finish(bucket, rows=10)


def state(run) -> tuple:
    return run.buckets, run.done, run.rows_done


FRESH = (None, frozenset(), 0)
HALF = (4, frozenset({1, 3}), 20)


def test_the_item_says_how_far_the_run_is(open_run, client, table):
    run = open_run()
    assert state(run) == FRESH
    assert items(client, table) == []
    killed(run)
    assert state(run) == HALF
    (item,) = items(client, table)
    assert len(item.pop("run")["S"]) == 32
    assert sorted(item.pop("done")["NS"]) == ["1", "3"]
    assert item == {
        "k": {"B": KEY},
        "kind": {"S": "progress of a materialization of this view"},
        "start": {"S": "1998-06-30T00:00:00+00:00"},
        "end": {"S": "1998-07-01T00:00:00+00:00"},
        "source": {"S": "files 1"},
        "definition": {"S": "view 1"},
        "write_mode": {"S": "newest_wins"},
        "buckets": {"N": "4"},
        "rows": {"N": "40"},
        "rows_done": {"N": "20"},
        "updated_at": {"S": "2023-11-14T22:13:20+00:00"},
        "x": {"N": "1700604800"},
    }


def test_the_next_run_goes_on_where_the_last_one_was_killed(open_run, client, table):
    killed(open_run())
    second = open_run()
    assert state(second) == HALF
    second.finish(0, rows=10)
    third = open_run()
    assert state(third) == (4, frozenset({0, 1, 3}), 30)
    third.finish(2, rows=10)
    assert state(third) == (4, frozenset({0, 1, 2, 3}), 40)
    third.remove()
    assert items(client, table) == []
    assert state(open_run()) == FRESH


def test_a_run_that_was_killed_before_its_first_bucket_is_gone_on_with(open_run):
    killed(open_run(), done=())
    assert state(open_run()) == (4, frozenset(), 0)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"source": "files 2"}, "the files of its source"),
        ({"view": "view 2"}, "the definition of the view"),
        ({"write_mode": "overwrite"}, "its write_mode"),
        (
            {"source": "files 2", "view": "view 2"},
            "the files of its source, the definition of the view",
        ),
    ],
)
def test_what_was_finished_of_something_else_does_not_count(
    open_run, client, table, changed, why, caplog
):
    killed(open_run())
    with caplog.at_level(logging.INFO):
        other = open_run(dataclasses.replace(IDENTITY, **changed))
    assert state(other) == FRESH
    assert caplog.messages == [
        f"table {table}: starting over, not from 2 buckets: changed since: {why}"
    ]
    killed(other, buckets=2, done=(0,))
    assert len(items(client, table)) == 1
    assert state(open_run(dataclasses.replace(IDENTITY, **changed))) == (2, frozenset({0}), 10)
    assert state(open_run()) == FRESH


def test_a_run_that_is_to_start_over_starts_over(open_run, caplog):
    killed(open_run())
    with caplog.at_level(logging.INFO):
        run = open_run(resume=False)
    assert state(run) == FRESH
    assert "starting over, not from 2 buckets: asked for" in caplog.text
    run.begin(8, rows=80)
    assert state(open_run()) == (8, frozenset(), 0)


def test_going_on_is_logged_with_counts(open_run, table, caplog):
    killed(open_run())
    with caplog.at_level(logging.INFO):
        open_run()
    assert caplog.messages == [
        f"table {table}: going on after 2 of 4 buckets (20 rows), which a run up to "
        "2023-11-14T22:13:20+00:00 finished"
    ]


def test_runs_of_other_windows_do_not_disturb_it(open_run, client, table):
    killed(open_run())
    later = open_run(dataclasses.replace(IDENTITY, end_us=IDENTITY.end_us + 1))
    assert state(later) == FRESH
    killed(later, buckets=1, done=(0,))
    assert len(items(client, table)) == 2
    later.remove()
    assert state(open_run()) == HALF


def test_windows_before_1970_and_without_end_are_windows(open_run):
    window = dataclasses.replace(
        IDENTITY, start_us=-62_135_596_800_000_000, end_us=253_402_300_799_999_999
    )
    killed(open_run(window))
    assert state(open_run(window)) == HALF


def test_a_run_that_was_taken_over_can_add_nothing(open_run, client, table):
    first = open_run()
    killed(first)
    second = open_run()
    with pytest.raises(LeaseLostError) as lost:
        first.finish(0, rows=10)
    assert str(lost.value) == (
        f"Table {table}: the progress of the window 1998-06-30T00:00:00+00:00 to "
        "1998-07-01T00:00:00+00:00 belongs to another run by now, or was removed. What this run "
        "wrote stays. Run it again when no other run is at it."
    )
    with pytest.raises(LeaseLostError):
        first.finish(1, rows=10)  # though it is finished
    with pytest.raises(LeaseLostError):
        first.begin(4, rows=40)
    first.remove()
    assert state(first) == HALF
    second.finish(2, rows=10)
    assert state(open_run()) == (4, frozenset({1, 2, 3}), 30)


def test_of_two_runs_that_start_at_once_one_begins(open_run):
    first, second = open_run(), open_run()
    second.begin(4, rows=40)
    with pytest.raises(LeaseLostError):
        first.begin(2, rows=40)
    second.finish(0, rows=10)
    assert state(open_run()) == (4, frozenset({0}), 10)


def test_progress_that_somebody_removed_is_not_added_to(open_run, client, table):
    run = open_run()
    run.begin(4, rows=40)
    client.delete_item(TableName=table, Key={"k": {"B": KEY}})
    with pytest.raises(LeaseLostError, match="or was removed"):
        run.finish(0, rows=10)
    assert items(client, table) == []


def test_a_request_whose_answer_was_lost_counts_once(open_run, client):
    killed(open_run(client=Repeating(client)))
    run = open_run(client=Repeating(client))
    assert state(run) == HALF
    run.finish(0, rows=10)
    assert state(run) == state(open_run()) == (4, frozenset({0, 1, 3}), 30)
    run.remove()


def test_a_bucket_that_is_finished_twice_counts_once(open_run):
    run = open_run()
    killed(run, done=(1, 1))
    assert state(run) == state(open_run()) == (4, frozenset({1}), 10)


def test_threads_may_finish_buckets_at_once(open_run, client, table):
    run = open_run()
    run.begin(256, rows=256 * 255 // 2)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda bucket: run.finish(bucket, rows=bucket), range(256)))
    assert state(run) == state(open_run()) == (256, frozenset(range(256)), 32_640)
    (item,) = items(client, table)
    assert len(str(item)) < 3_000


def test_without_its_table_there_is_no_progress(client):
    with pytest.raises(ResourceNotFoundError, match=r"no-such-table\. Run `feast apply`"):
        Checkpoint.open(client, "no-such-table", IDENTITY, resume=True)


def test_reads_and_precomputed_services_never_meet_what_runs_keep(open_store, client, dynamodb):
    project = f"c{uuid.uuid4().hex[:12]}"
    store = open_store(project, online={"region": "us-east-1", "endpoint_url": dynamodb.endpoint})
    orders = customer_view()
    store.apply([CUSTOMER, orders])
    rows = {"cid": [1, 2], "t": [dt.datetime.now(tz=dt.timezone.utc)] * 2, "total": [1.5, 2.5]}
    store.write_to_online_store("orders", pd.DataFrame(rows))
    with Lease.acquire(client, f"{project}.orders", "orders", LeaseSettings()):
        run = Checkpoint.open(client, f"{project}.orders", IDENTITY, resume=True)
        killed(run)
        store.apply([FeatureService(name="churn", features=[orders], precompute_online=True)])
        assert store._get_provider().precompute_feature_service() == 2
        asked = {"cid": [1, 2, 3]}
        expected = {**asked, "total": [1.5, 2.5, None]}
        read = store.get_online_features(store.get_feature_service("churn"), asked)
        assert read.to_dict() == expected
        assert store.get_online_features(["orders:total"], asked).to_dict() == expected
        run.finish(0, rows=10)
    run.remove()
    store.teardown()
