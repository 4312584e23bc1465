"""A declared set, built by the command, behind an endpoint: the same numbers, over HTTP."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import psutil
import pytest
import urllib3
import yaml
from click.testing import CliRunner
from examples import cases
from feast import FeatureStore
from hypothesis import given
from hypothesis import strategies as st
from model_server import free_ports, running
from served_set import (
    AWS,
    CUSTOMER,
    CUSTOMERS,
    NOW,
    PLACE,
    ServedSet,
    files_of_set,
    make_repo,
    package,
    service,
    views,
)

from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import ServingError
from feast_dynamo_ext.sagemaker.manifest import load_manifest
from feast_dynamo_ext.sagemaker.serving.app import create_app
from feast_dynamo_ext.sagemaker.serving.handler import COUNTS_HEADER, Received
from feast_dynamo_ext.sagemaker.serving.opening import open_handler

pytestmark = [
    pytest.mark.dynamodb_local,
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:.* experimental feature.*:RuntimeWarning"),
]
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
HEADERS = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def served(tmp_path_factory, dynamodb_local):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        repo = tmp_path_factory.mktemp("repo")
        store, rows = make_repo(repo, dynamodb_local, f"s{uuid.uuid4().hex[:12]}")
        built = CliRunner().invoke(
            main, ["training-set", "build", "everything", "-c", str(repo)], catch_exceptions=False
        )
        assert built.exit_code == 0, built.output
        folder = repo / "unpacked"
        package(store, repo, folder)
        manifest = load_manifest(str(repo / "sets" / "everything"), AWS)
        expected = files_of_set(repo, manifest)
        yield ServedSet(
            repo, store, manifest, folder, rows.set_index("customer_id", drop=False), expected
        )
        store.teardown()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def handler(served):
    opened = open_handler(served.folder)
    yield opened
    opened.close()


def test_every_encoding_is_in_the_set(served):
    kinds = {each.kind for each in served.manifest.encodings.values()}
    assert kinds == {
        "number", "boolean", "ordinal", "one_hot", "hash", "epoch", "age", "list",
    }  # fmt: skip
    assert sorted(served.expected.index) == list(range(CUSTOMERS))


@given(customers=st.lists(st.integers(0, CUSTOMERS - 1), min_size=1, max_size=80))
@cases(25)
def test_online_answers_are_encoded_to_the_numbers_in_the_files(served, handler, customers):
    """Also in more rows than are encoded one by one; ages count from the files' event time."""
    body = json.dumps(served.request(customers)).encode()
    received = handler.receive(body, "application/json")
    (found,) = handler.predict([Received(received.rows, NOW)])
    np.testing.assert_array_equal(found.values, served.expected.loc[customers].to_numpy())


def answers(handler, body):
    answer = handler.answer(json.dumps(body).encode(), "application/json", None)
    return answer.status, json.loads(answer.body)


def test_a_request_names_the_keys_as_the_service_does(served, handler):
    assert [(each.name, each.kind, each.nullable) for each in handler.settings.columns] == [
        ("customer_id", "int", False),
        ("home_id", "string", False),
        ("work_id", "string", False),
        ("amount", "float", True),
        ("channel", "string", True),
    ]
    (row,) = served.request([3])
    status, answer = answers(handler, row)
    swapped = {**row, "home_id": row["work_id"], "work_id": row["home_id"]}
    _, other = answers(handler, swapped)
    assert status == 200
    sizes = [served.manifest.outputs.index(f"{of}__size") for of in ("home", "work")]
    home, work = (answer["predictions"][0]["score"][at] for at in sizes)
    assert [other["predictions"][0]["score"][at] for at in sizes] == [work, home]
    assert home != work


@pytest.mark.parametrize("name", ["customer_id", "work_id", "amount", "channel"])
def test_a_value_that_is_not_in_the_request_is_named(served, handler, name):
    good, bad = served.request([1, 2])
    del bad[name]
    status, answer = answers(handler, [good, bad])
    assert (status, answer) == (422, {"error": f"Row 2 lacks `{name}`."})


def test_request_data_reaches_the_on_demand_view(served, handler):
    (row,) = served.request([1])
    at = served.manifest.outputs.index("ratio__of_total")
    total = pd.read_parquet(served.repo / "person.parquet")["total"].fillna(1.0)[1]
    for amount in (10.0, 20.0):
        status, answer = answers(handler, {**row, "amount": amount})
        assert status == 200
        assert answer["predictions"][0]["score"][at] == amount / (total + 1)
    status, answer = answers(handler, {**row, "amount": None})
    assert (status, answer["predictions"][0]["score"][at]) == (200, None)
    assert answer["features"]["missing"]["ratio__of_total"] == 1


def test_a_feature_service_that_changes_stops_the_start_with_words(served, tmp_path):
    """The registry that workers compare with is the repo's own; the model stays as it is."""
    folder = tmp_path / "live"
    registry = str(served.repo / "registry.db")
    package(served.store, served.repo, folder, live_registry=registry)
    open_handler(folder).close()
    before = served.store.get_feature_service("everything")
    try:
        changed = FeatureStore(repo_path=str(served.repo)).get_feature_service("everything")
        homes = changed.feature_view_projections[1]
        assert homes.join_key_map == {"place_id": "home_id"}
        homes.join_key_map = {"place_id": "work_id"}
        served.store.registry.apply_feature_service(changed, served.store.project)
        with pytest.raises(
            ServingError, match="feature service `everything` names its join keys otherwise"
        ):
            open_handler(folder)
        del homes.features[0]
        served.store.registry.apply_feature_service(changed, served.store.project)
        with pytest.raises(ServingError, match="feature service `everything` has other features"):
            open_handler(folder)
        homes.join_key_map = {"place_id": "elsewhere_id"}
        homes.features = before.feature_view_projections[1].features
        served.store.registry.apply_feature_service(changed, served.store.project)
        with pytest.raises(ServingError, match="looked up by `elsewhere_id`, by which the"):
            package(served.store, served.repo, tmp_path / "other")
    finally:
        served.store.registry.apply_feature_service(before, served.store.project)
    open_handler(folder).close()


def test_the_same_definitions_applied_again_are_no_change(served, tmp_path):
    folder = tmp_path / "again"
    registry = str(served.repo / "registry.db")
    package(served.store, served.repo, folder, live_registry=registry)
    made = views(served.repo)
    served.store.apply([CUSTOMER, PLACE, *made, service(*made)])
    open_handler(folder).close()


BROKEN = "The model could not answer; the endpoint's log says why."


@pytest.mark.parametrize(
    ("code", "accept", "status", "answered"),
    [
        ("raise MemoryError('secret')", "application/json", 500, BROKEN),
        ("return matrix[:1]", "application/json", 500, BROKEN),
        ("return [1 + 2j] * len(matrix)", "application/json", 500, BROKEN),
        ("return [[1, 2], [3]]", "application/json", 500, BROKEN),
        ("return None", "text/csv", 500, BROKEN),
        ("return [float('nan'), float('inf')]", "application/json", 200, [None, None]),
        ("return [float('nan'), 2]", "text/csv", 200, "nan\n2.0\n"),
        ("return ['yes', 'no']", "application/json", 200, ["yes", "no"]),
        ("import sys; sys.exit(3)", "application/json", 500, BROKEN),
    ],
)
def test_what_a_model_of_ones_own_does_is_an_answer(
    served, tmp_path, caplog, code, accept, status, answered
):
    folder = tmp_path / "model"
    shutil.copytree(served.folder, folder)
    (folder / "code" / "inference.py").write_text(f"def predict(matrix):\n    {code}\n")
    opened = open_handler(folder)
    body = json.dumps(served.request([1, 2])).encode()
    if "sys.exit" in code:  # it could end a server
        with running(create_app(opened)) as (url, _):
            for _ in range(2):
                answer = urllib3.request("POST", f"{url}/invocations", body=body, headers=HEADERS)
                assert answer.status == status
        found = answer.data
    else:
        answer = opened.answer(body, "application/json", accept)
        assert answer.status == status
        found = answer.body
        opened.close()
    if status == 500:
        assert json.loads(found) == {"error": answered}
        assert caplog.records[-1].exc_info is not None
        assert opened.counters["requests"] == opened.counters["errors_500"] > 0
    elif accept == "text/csv":
        assert found.decode() == answered
    else:
        assert [each["score"] for each in json.loads(found)["predictions"]] == answered


# Several workers


@pytest.mark.slow
@pytest.mark.timeout(900)  # four processes import Feast, one after the other
def test_two_workers_answer_and_one_that_is_killed_is_replaced(served, tmp_path):
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "feast_dynamo_ext.cli.main", "endpoint", "serve"]
    given = ["--model-dir", str(served.folder), "--workers", "2", "--host", "127.0.0.1"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *given],
            env={**os.environ, **CREDENTIALS, "SAGEMAKER_BIND_TO_PORT": str(port)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    body = json.dumps(served.request([1, 2]))
    ages = [name.endswith("__seen") for name in served.manifest.outputs]

    def ask(_) -> dict:
        """Counters of the worker that answers on a fresh connection."""
        with urllib3.PoolManager(retries=urllib3.Retry(9, backoff_factor=0.1)) as http:
            answer = http.request("POST", f"{url}/invocations", body=body, headers=HEADERS)
            assert answer.status == 200, answer.data
            scores = [each["score"] for each in answer.json()["predictions"]]
            known = np.where(ages, np.nan, np.array(scores, float))
            expected = served.expected.loc[[1, 2]].to_numpy()
            np.testing.assert_array_equal(known, np.where(ages, np.nan, expected))
            return http.request("GET", f"{url}/counters").json()

    def workers() -> dict[int, dict]:
        """Counters by process, of many requests at once until two have answered."""
        found, until = {}, time.monotonic() + 120
        with ThreadPoolExecutor(16) as threads:
            while len(found) < 2 and time.monotonic() < until:
                found |= {each["process"]: each for each in threads.map(ask, range(32))}
        return found

    try:
        with urllib3.PoolManager() as http:
            some = urllib3.Retry(900, backoff_factor=0.1, backoff_max=0.3)
            assert http.request("GET", f"{url}/ping", retries=some).status == 200
        first = workers()
        assert len(first) == 2
        assert all(counters["batches"] >= 1 for counters in first.values())
        children = {child.pid for child in psutil.Process(process.pid).children()}
        assert {*first} <= children
        killed = min(first)
        psutil.Process(killed).kill()
        psutil.wait_procs([psutil.Process(killed)] if psutil.pid_exists(killed) else [], 30)
        second = workers()
        assert len(second) == 2
        assert killed not in second
    finally:
        process.terminate()
        process.wait(60)
    assert "Traceback" not in log.read_text()


# Unread features, slow clients, a server that stops


class WithholdingProxy:
    """DynamoDB with a table that it leaves unprocessed, or that it answers when it is let go."""

    def __init__(self, backend):
        self.withheld, self.gate, self.held = set(), threading.Event(), threading.Event()
        self.gate.set()
        pool = urllib3.PoolManager()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                unprocessed = {}
                if self.headers["X-Amz-Target"].endswith("BatchGetItem"):
                    if not proxy.gate.is_set():
                        proxy.held.set()
                        proxy.gate.wait(60)
                    asked = json.loads(body)
                    for table in [*asked["RequestItems"]]:
                        if table.rpartition(".")[2] in proxy.withheld:
                            unprocessed[table] = asked["RequestItems"].pop(table)
                    body = json.dumps(asked).encode()
                    if not asked["RequestItems"]:
                        self.answer(200, {"Responses": {}, "UnprocessedKeys": unprocessed}, {})
                        return
                kept = ("X-Amz-Target", "Content-Type", "Authorization", "X-Amz-Date")
                headers = {name: self.headers[name] for name in kept if self.headers[name]}
                found = pool.request("POST", backend, body=body, headers=headers)
                data = found.json()
                if unprocessed:
                    data["UnprocessedKeys"] = unprocessed
                self.answer(found.status, data, found.headers)

            def answer(self, status, data, headers):
                text = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Type", headers.get("content-type", "application/json"))
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args):
                """Nothing is logged."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def behind(served, tmp_path, dynamodb_local):
    """The packaged model on DynamoDB behind the proxy, which marks what is unread."""
    proxy = WithholdingProxy(dynamodb_local)
    folder = tmp_path / "behind"
    shutil.copytree(served.folder, folder)
    path = folder / "features" / "feature_store.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["online_store"] |= {
        "endpoint_url": proxy.url,
        "on_partial": "mark",
        "read_deadline_ms": 1_500,
    }
    path.write_text(yaml.safe_dump(settings))
    yield folder, proxy
    proxy.close()


def test_unread_features_are_counted_each_and_missing_to_the_model(served, behind):
    folder, proxy = behind
    handler = open_handler(folder)
    whole = answers(handler, served.request([1, 2]))[1]
    proxy.withheld = {"place"}
    answer = handler.answer(
        json.dumps(served.request([1, 2])).encode(), "application/json", "application/json"
    )
    assert answer.status == 200
    found = json.loads(answer.body)
    fields = ("home__size", "home__kind", "work__size", "work__kind")
    assert found["features"]["unread"] == dict.fromkeys(fields, 2)
    missing = found["features"]["missing"]
    assert not {*missing} & {*fields}
    unread = sum(found["features"]["unread"].values())
    assert answer.headers[COUNTS_HEADER] == (
        f"missing={sum(missing.values())}; expired=0; unread={unread}"
    )
    assert handler.counters["unread"] == 8
    for row, other in zip(found["predictions"], whole["predictions"], strict=True):
        for name, value, before in zip(
            served.manifest.outputs, row["score"], other["score"], strict=True
        ):
            if name.startswith(("home", "work")):
                assert value is None
            elif not name.endswith("__seen"):
                assert value == before
    handler.close()


def test_a_request_is_answered_though_the_server_stops_meanwhile(served, behind):
    folder, proxy = behind
    proxy.gate.clear()
    app = create_app(open_handler(folder))
    body = json.dumps(served.request([1])).encode()
    with running(app) as (url, server), ThreadPoolExecutor(1) as threads:
        sent = threads.submit(
            urllib3.request, "POST", f"{url}/invocations", body=body, headers=HEADERS
        )
        assert proxy.held.wait(30)
        server.should_exit = True
        proxy.gate.set()
        assert sent.result(30).status == 200


def test_slow_and_broken_clients_hold_up_nobody(served, handler, caplog):
    opened = open_handler(served.folder)
    body = json.dumps(served.request([1])).encode()
    head = (
        b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    with running(create_app(opened)) as (url, _), contextlib.ExitStack() as open_sockets:
        port = int(url.rpartition(":")[2])
        halves = [
            open_sockets.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(20)
        ]
        for each in halves:
            each.sendall(head + body[:20])
        whole = urllib3.request("POST", f"{url}/invocations", body=body, headers=HEADERS)
        assert whole.status == 200
        # In chunks, the second half of one that was slow, and one that goes away.
        chunked = urllib3.request(
            "POST", f"{url}/invocations", body=iter([body[:9], body[9:]]), headers=HEADERS
        )
        assert chunked.json()["predictions"][0].keys() == {"score"}
        halves[0].sendall(body[20:])
        assert halves[0].recv(15) == b"HTTP/1.1 200 OK"
        halves[1].close()
        packed = {**HEADERS, "Content-Encoding": "gzip"}
        squeezed = urllib3.request(
            "POST", f"{url}/invocations", body=gzip.compress(body), headers=packed
        )
        assert (squeezed.status, "not compressed" in squeezed.json()["error"]) == (415, True)
        nonsense = socket.create_connection(("127.0.0.1", port))
        nonsense.sendall(b"\x16\x03\x01\x00\r\n\r\n")
        assert nonsense.recv(12) == b"HTTP/1.1 400"
        nonsense.close()
        for each in halves[2:]:
            each.close()
        assert urllib3.request("GET", f"{url}/ping").status == 200
    assert opened.counters["errors_500"] == 0
    assert opened.counters["errors_400"] == 19
    assert not [record for record in caplog.records if record.exc_info]
