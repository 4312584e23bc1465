"""Serving: the real `feast serve`, loaded over HTTP from another process."""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3
import uvloop
import yaml
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    ValueType,
)
from feast.feature_view import FeatureViewState
from feast.types import Int64, String
from feature_server import FeastServe, Gate, Server, serving, start_gate
from views import customer_view, pushed

from feast_dynamo_ext.aws import AwsSettings, filesystem

ROOT = Path(__file__).parents[2]
LOAD = ROOT / "tests" / "benchmarks" / "serve_load.py"
NOW = pd.Timestamp("2026-03-01", tz="UTC")
USERS = 100
UNKNOWN = 10_000

pytestmark = pytest.mark.dynamodb_local


# A project


USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)


def view(name: str, **features) -> FeatureView:
    return customer_view(name, pushed(name), entities=[USER], **features)


VIEWS = [
    view("profile", age=Int64, city=String),
    view("orders", count=Int64, sum=Int64),
    view("clicks", last=Int64),
]
ORDERS = ["orders:count", "orders:sum"]


def rows_of_all() -> dict[str, pd.DataFrame]:
    keys = {"user_id": range(USERS), "t": [NOW] * USERS}
    return {
        "profile": pd.DataFrame(
            {**keys, "age": range(20, 20 + USERS), "city": [f"c{n}" for n in range(USERS)]}
        ),
        "orders": pd.DataFrame(
            {**keys, "count": range(USERS), "sum": range(0, 7 * USERS, 7)},
        ),
        "clicks": pd.DataFrame({**keys, "last": range(1_000, 1_000 + USERS)}),
    }


@pytest.fixture
def make_repo(tmp_path, dynamodb_local):
    """Makes a repo with tables and rows, read and written at an endpoint."""
    made = []

    def make_repo(endpoint: str = dynamodb_local, **online) -> Path:
        settings = {
            "project": f"s{uuid.uuid4().hex[:12]}",
            "provider": "feast_dynamo_ext.DynamoProvider",
            "registry": {"path": str(tmp_path / "registry.db")},
            "online_store": {
                "type": "feast_dynamo_ext.DynamoOnlineStore",
                "region": "us-east-1",
                "endpoint_url": dynamodb_local,
                **online,
            },
            "entity_key_serialization_version": 3,
        }
        file = tmp_path / "feature_store.yaml"
        file.write_text(yaml.safe_dump(settings))
        store = FeatureStore(str(tmp_path))
        store.apply([USER, *VIEWS, FeatureService(name="ranking", features=VIEWS)])
        for name, rows in rows_of_all().items():
            store.write_to_online_store(name, rows)
        made.append(store)
        settings["online_store"]["endpoint_url"] = endpoint
        file.write_text(yaml.safe_dump(settings))
        return tmp_path

    yield make_repo
    for store in made:
        store.teardown()
        asyncio.run(store.close())


@pytest.fixture
def serve():
    """Starts feature servers."""
    started: list[FeastServe] = []

    def serve(repo: Path, *options: str, workers: int = 1) -> FeastServe:
        started.append(FeastServe(repo, *options, workers=workers))
        return started[-1]

    yield serve
    for server in started:
        if server.process.returncode is None:
            server.stop()


@pytest.fixture
def gate(dynamodb_local):
    """A gate in front of DynamoDB Local."""
    gate = Gate(dynamodb_local)
    server = start_gate(gate)
    yield gate
    gate.release()
    server.shutdown()
    server.server_close()


# Load


def cases() -> list[dict]:
    """Reads of one view, and one in 50 of the whole service; each has an unknown user."""
    found = []
    for n in range(USERS):
        present, absent = ["PRESENT", "NOT_FOUND"], None
        answer = {"count": [[n, absent], present], "sum": [[7 * n, absent], present]}
        body = {"features": ORDERS, "entities": {"user_id": [n, UNKNOWN + n]}}
        if n % 50 == 0:
            body = {"feature_service": "ranking", "entities": body["entities"]}
            answer["age"] = [[20 + n, absent], present]
            answer["city"] = [[f"c{n}", absent], present]
            answer["last"] = [[1_000 + n, absent], present]
        found.append({"body": body, "answer": answer})
    return found


def start_load(server: FeastServe, repo: Path, *options: str) -> subprocess.Popen:
    file = repo / "cases.json"
    file.write_text(json.dumps(cases()))
    return subprocess.Popen(
        [sys.executable, LOAD, server.url, file, *options], stdout=subprocess.PIPE, text=True
    )


def report_of(load: subprocess.Popen) -> dict:
    printed, _ = load.communicate(timeout=240)
    return json.loads(printed)


def push(server: Server, user: int, seconds: int, last: int) -> None:
    time = (NOW + pd.Timedelta(seconds=seconds)).isoformat()
    rows = {"user_id": [user], "t": [time], "last": [last]}
    server.post("/push", {"push_source_name": "clicks_push", "df": rows})


def last_of(server: Server, users: list[int]) -> list[int | None]:
    return server.read(users, ["clicks:last"])["last"]


def test_ten_thousand_requests_are_answered_right_and_leave_nothing_behind(make_repo, serve):
    repo = make_repo()
    # Feast starts a worker anew after 1,000 requests, which would hide what one leaves behind.
    server = serve(repo, "--max-requests", "0")
    (worker,) = server.workers
    load = start_load(
        server, repo, "--requests", "10000", "--sample-after", "1000", "--pid", str(worker.pid)
    )
    for n in range(1, 31):
        push(server, 500, n, 2 * n)
        push(server, 500, n - 10, -1)  # late: changes nothing
        assert last_of(server, [500, 501]) == [2 * n, None]
    report = report_of(load)
    assert (report["errors"], report["requests"], report["reconnects"]) == ([], 10_000, 0)
    early, late = report["samples"]
    assert (early["requests"], late["requests"]) == (1_000, 10_000)
    assert late["rss_mb"] - early["rss_mb"] < 15
    # The load's own 16, and at most as many to DynamoDB as requests were under way at once.
    assert late["sockets"] - early["sockets"] <= 4
    assert late["descriptors"] - early["descriptors"] <= 4
    assert late["sockets"] <= 2 * (16 + 4)

    assert server.stop() == 0
    unwanted = "Traceback|ResourceWarning|never awaited|was destroyed|Exception"
    assert [line for line in server.log if re.search(unwanted, line)] == []


def sockets_to(process: psutil.Process, endpoint: str) -> set[int]:
    port = urlsplit(endpoint).port
    found = process.net_connections("tcp")
    return {one.laddr.port for one in found if one.raddr and one.raddr.port == port}


def answered(server: FeastServe, features: list[str], **entities: list) -> tuple[int, str]:
    """The status of a request, and the message of its error."""
    body = {"features": features, "entities": entities}
    answer = urllib3.request("POST", f"{server.url}/get-online-features", json=body)
    return answer.status, json.loads(answer.json())["message"]


def test_errors_are_answered_with_their_status_and_what_to_do(make_repo, serve, dynamodb_local):
    repo = make_repo()
    server = serve(repo)
    status, message = answered(server, ORDERS, usr_id=[1])
    assert (status, "`user_id`" in message, "`usr_id`" in message) == (400, True, True)
    store = FeatureStore(str(repo))
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb_local)
    client.delete_table(TableName=f"{store.project}.orders")
    status, message = answered(server, ORDERS, user_id=[1])
    assert (status, "Run `feast apply`" in message) == (404, True)
    assert server.read([1], ["clicks:last"]) == {"last": [1_001]}
    server.stop()


def read_of(entities: dict, features: list[str] = ORDERS, **more: str) -> tuple[str, dict]:
    return "get-online-features", {"features": features, "entities": entities, **more}


def push_of(**columns: list) -> tuple[str, dict]:
    df = {"count": [1], "sum": [1], **columns}
    return "push", {"push_source_name": "orders_push", "df": df}


SERIAL = ["2026-03-02T00:00:00Z"]
MISTAKES = [
    (*read_of({}), 400, "EntityKeyError"),
    (*read_of({"user_id": []}), 400, "EntityKeyError"),
    (*read_of({"user_id": ["abc"]}), 400, "EntityKeyError"),
    (*read_of({"user_id": [1.5]}), 400, "EntityKeyError"),
    (*read_of({"user_id": [True]}), 400, "EntityKeyError"),
    (*read_of({"user_id": [2**64]}), 400, "EntityKeyError"),
    (*read_of({"user_id": [1], "x": [1, 2]}), 400, "EntityKeyError"),
    (*read_of({"user_id": [1.5]}, [], feature_service="ranking"), 400, "EntityKeyError"),
    (*read_of({"user_id": [1]}, ["orders:nope"]), 404, "FeatureNotFoundError"),
    (*read_of({"user_id": [1]}, ["orders"]), 404, "FeatureNotFoundError"),
    (*read_of({"user_id": [1]}, []), 404, "FeatureNotFoundError"),
    (*read_of({"user_id": [1]}, ["orders:sum"] * 2), 400, None),  # Feast's own, and its words
    (*push_of(user_id=["abc"], t=SERIAL), 400, "ColumnTypeError"),
    (*push_of(user_id=[1.5], t=SERIAL), 400, "ColumnTypeError"),
    (*push_of(user_id=[1], t=["soon"]), 400, "ColumnTypeError"),
    (*push_of(t=SERIAL), 400, "ColumnNotFoundError"),
    (*push_of(user_id=[1], t=["2100-01-01T00:00:00Z"]), 400, "WindowError"),
    ("materialize-incremental", {"end_ts": "2999-01-01"}, 400, "WindowError"),
]


ROW = {"user_id": [1], "t": SERIAL}
OF_FEAST = [
    (*push_of(user_id=[1, 2], t=SERIAL), 500, "All arrays must be of the same length"),
    ("push", {"push_source_name": "orders_push", "df": {**ROW, "sum": [1]}}, 500, "not in index"),
    ("push", {"push_source_name": "orders_push", "df": ROW}, 500, "are in the [columns]"),
    ("push", {**push_of(**ROW)[1], "to": "both"}, 500, "both is not a supported push format"),
    ("push", {"df": ROW}, 422, "Field required"),
    ("materialize", {"start_ts": "soon", "end_ts": "2026-01-01"}, 500, "Invalid timestamp"),
    ("materialize", {"start_ts": "2026-01-02", "end_ts": "2026-01-01"}, 500, "must be before"),
    ("materialize", {"start_ts": "2026-01-02"}, 500, "are required"),
    ("materialize-incremental", {"end_ts": "soon"}, 500, "Unknown string format: soon"),
]
"""What Feast's server or feature store refuses before a store or a provider is called."""


def test_mistakes_of_clients_are_4xx_and_say_which_error_they_are(make_repo):
    store = FeatureStore(str(make_repo()))
    with serving(store) as server:

        def post(path: str, body: dict) -> urllib3.BaseHTTPResponse:
            # Feast's server hangs up after an error.
            return urllib3.request(
                "POST", f"{server.url}/{path}", json=body, headers={"connection": "close"}
            )

        for path, body, status, error in MISTAKES:
            answer = post(path, body)
            assert (answer.status, json.loads(answer.json()).get("error")) == (status, error), body
        for path, body, status, words in OF_FEAST:
            answer = post(path, body)
            assert (answer.status, words in answer.data.decode()) == (status, True), answer.data
        assert server.read([7], ORDERS) == {"count": [7], "sum": [49]}
    asyncio.run(store.close())


def test_an_endpoint_that_does_not_answer_is_503(make_repo, serve):
    server = serve(make_repo("http://127.0.0.1:1", read_deadline_ms=300))
    status, message = answered(server, ORDERS, user_id=[1])
    assert (status, "Check that the endpoint can be reached" in message) == (503, True)


def test_workers_have_connections_of_their_own_and_may_be_replaced(
    make_repo, serve, dynamodb_local
):
    repo = make_repo()
    server = serve(repo, "--max-requests", "150", "--max-requests-jitter", "0", workers=2)
    master, (one, other) = psutil.Process(server.process.pid), server.workers
    report = report_of(start_load(server, repo, "--requests", "100"))
    assert (report["errors"], report["requests"]) == ([], 100)
    of_one, of_other = (sockets_to(worker, dynamodb_local) for worker in (one, other))
    assert of_one
    assert of_other
    assert not of_one & of_other
    assert not sockets_to(master, dynamodb_local)

    report = report_of(start_load(server, repo, "--requests", "500"))
    assert (report["errors"], report["requests"]) == ([], 500)
    # Each of four workers that end closes what is open to it: at most all connections.
    assert report["reconnects"] <= 4 * 16
    server.wait_for("Booting worker", 4)
    assert server.stop() == 0


# The event loop


def test_a_slow_dynamodb_holds_up_nobody_else(make_repo, gate):
    store = FeatureStore(str(make_repo(gate.url)))
    with serving(store) as server, ThreadPoolExecutor() as threads:
        gate.hold("BatchGetItem")
        slow = [threads.submit(server.read, [n], ORDERS) for n in range(3)]
        gate.wait_for(lambda gate: len(gate.requests) == 3)
        assert server.is_healthy()
        assert not any(read.done() for read in slow)
        gate.release()
        assert [read.result() for read in slow] == [
            {"count": [0], "sum": [0]},
            {"count": [1], "sum": [7]},
            {"count": [2], "sum": [14]},
        ]

        gate.hold("BatchExecuteStatement")
        slow = threads.submit(push, server, 7, 1, 70)
        gate.wait_for_request("BatchExecuteStatement")
        assert server.is_healthy()
        assert last_of(server, [7, 8]) == [1_007, 1_008]
        assert not slow.done()
        gate.release()
        slow.result()
        assert last_of(server, [7, 8]) == [70, 1_008]
    gate.wait_for(lambda gate: gate.open == 0)


# Connections


@pytest.mark.parametrize("new_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
@pytest.mark.parametrize(("warm", "opened"), [(True, 4), (False, 0)], ids=["warm", "cold"])
def test_connections_are_open_before_the_first_request_and_closed_at_the_end(
    make_repo, gate, new_loop, warm, opened
):
    store = FeatureStore(str(make_repo(gate.url, warmup_connections=warm)))
    loop = new_loop()
    loop.run_until_complete(store.initialize())
    gate.wait_for(lambda gate: gate.accepted == opened)
    assert gate.requests == []
    for n in (5, 6):
        response = loop.run_until_complete(
            store.get_online_features_async(features=ORDERS, entity_rows=[{"user_id": n}])
        )
        assert response.to_dict()["sum"] == [7 * n]
    assert [operation for _, operation in gate.requests] == ["BatchGetItem"] * 2
    assert gate.accepted == max(opened, 1)
    loop.run_until_complete(store.close())
    gate.wait_for(lambda gate: gate.open == 0)
    loop.close()


def test_a_server_starts_without_an_answer_from_dynamodb(open_store, caplog):
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    store = open_store(online={"region": "us-east-1", "endpoint_url": f"http://127.0.0.1:{port}"})
    asyncio.run(store.initialize())
    (record,) = [one for one in caplog.records if one.name.startswith("feast_dynamo_ext")]
    assert "no connection could be warmed up: dynamodb: no connection to" in record.getMessage()
    asyncio.run(store.close())


# While a view is being materialized


def shipped_repo(folder: Path, bucket: str, endpoint: str, monkeypatch) -> tuple[Path, list]:
    """A copy of feature_repo/ in that bucket, and what its definitions declare."""
    repo = folder / "feature_repo"
    shutil.copytree(ROOT / "feature_repo", repo)
    for name, value in {
        "FEATURE_BUCKET": bucket,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "FEAST_S3_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("shipped", repo / "definitions.py")
    definitions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(definitions)
    names = ("customer", "customer_90d", "customer_lifetime", "repurchase_v1")
    return repo, [getattr(definitions, name) for name in names]


def write_lifetime(bucket: str, orders: int) -> None:
    """History of one customer."""
    time = pa.array([NOW + pd.Timedelta(days=orders)], pa.timestamp("us", tz="UTC"))
    table = pa.table(
        {
            "customer_id": pa.array([4], pa.int64()),
            "lifetime_orders": pa.array([orders], pa.int64()),
            "lifetime_spend": pa.array([100.5]),
            "first_purchase_age_days": pa.array([11], pa.int64()),
            "mean_gap_days": pa.array([None], pa.float64()),
            "event_timestamp": time,
            "created_timestamp": time,
        }
    )
    s3, path = filesystem(
        f"s3://{bucket}/history/customer_lifetime/{orders}.parquet", AwsSettings()
    )
    pq.write_table(table, path, filesystem=s3)


LIFETIME = ["customer_lifetime:lifetime_orders", "customer_lifetime:lifetime_spend"]


# Feast's registry on S3 leaves its temporary files to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_the_repo_we_ship_serves_a_view_that_is_being_materialized(
    tmp_path, bucket, moto_endpoint, gate, monkeypatch
):
    repo, objects = shipped_repo(tmp_path, bucket, moto_endpoint, monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", gate.url)
    store = FeatureStore(str(repo))
    store.apply(objects)
    span = {"start_date": NOW.to_pydatetime(), "end_date": dt.datetime.now(tz=dt.timezone.utc)}
    write_lifetime(bucket, 1)
    store.materialize(feature_views=["customer_lifetime"], **span)
    write_lifetime(bucket, 2)

    asked = {"features": LIFETIME, "entity_rows": [{"customer_id": 4}]}
    with ThreadPoolExecutor() as threads:
        gate.hold("BatchExecuteStatement")
        run = threads.submit(store.materialize, feature_views=["customer_lifetime"], **span)
        gate.wait_for_request("BatchExecuteStatement")
        reader = FeatureStore(str(repo))
        assert reader.get_feature_view("customer_lifetime").state == FeatureViewState.MATERIALIZING
        assert reader.get_online_features(**asked).to_dict() == {
            "customer_id": [4],
            "lifetime_orders": [1],
            "lifetime_spend": [100.5],
        }
        without = FeatureStore(str(repo))
        without.registry.serve_features_while_materializing = False
        with pytest.raises(ValueError, match=r"is in state 'MATERIALIZING'"):
            without.get_online_features(**asked)
        gate.release()
        run.result()

    # As a run that was killed leaves it
    killed = store.get_feature_view("customer_lifetime")
    killed.state = FeatureViewState.MATERIALIZING
    store.registry.apply_feature_view(killed, store.project)
    with serving(FeatureStore(str(repo))) as server:
        assert server.read([4], LIFETIME, "customer_id") == {
            "lifetime_orders": [2],
            "lifetime_spend": [100.5],
        }
    for opened in (store, reader):
        asyncio.run(opened.close())
