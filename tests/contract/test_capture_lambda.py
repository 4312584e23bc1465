"""The function of Lambda: events as Lambda delivers them, again and cut otherwise, count once."""

from __future__ import annotations

import base64
import http.server
import importlib.util
import json
import os
import queue
import re
import subprocess
import sys
import threading
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import captured
import pytest
import stream_events
import urllib3
from feast import FeatureStore
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from repos import REGION, write_repo_yaml

from feast_dynamo_ext.capture.history import CapturedHistory
from feast_dynamo_ext.capture.lambda_handler import Function
from feast_dynamo_ext.capture.stream.lambda_image import TEMPLATE
from feast_dynamo_ext.dynamo.views import table_name
from feast_dynamo_ext.errors import (
    CaptureError,
    ConfigError,
    ResourceNotFoundError,
    SourceNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECOND = 1_767_608_400


@dataclass
class Repo:
    """A feature repo over tables of an application, and a function that captures them."""

    folder: Path
    store: FeatureStore
    client: Any
    streams: Any
    sources: list[Any]

    @property
    def environment(self) -> dict[str, str]:
        return {"FEAST_DYNAMO_CAPTURE_REPO": str(self.folder)}

    def function(self, **more: str) -> Function:
        return Function({**self.environment, **more})

    def history(self, number: int = 0) -> CapturedHistory:
        return CapturedHistory.from_source(self.sources[number], self.store.config)

    def rows(self, number: int = 0) -> list[tuple[Any, ...]]:
        """(customer, value, change) of the history in the order of its rows, by pyiceberg."""
        found = self.history(number).handle.load().scan().to_arrow().sort_by("_feast_sequence")
        return [(row["customer"], row["value"], row["_feast_change"]) for row in found.to_pylist()]

    def online(self, view: str, number: int = 0) -> dict[int, Any]:
        rows = [{"customer": key} for key in range(1, 6)]
        name = f"{view}{number}"
        found = self.store.get_online_features([f"{name}:value"], rows).to_dict()
        values = zip(found["customer"], found["value"], strict=True)
        return {key: value for key, value in values if value is not None}

    def put(self, customer: int, value: str | int) -> None:
        kind = "N" if isinstance(value, int) else "S"
        item = {"customer": {"N": str(customer)}, "bought": {"N": "5"}}
        self.client.put_item(
            TableName=self.sources[0].table, Item={**item, "value": {kind: str(value)}}
        )

    def delete(self, customer: int) -> None:
        key = {"customer": {"N": str(customer)}}
        self.client.delete_item(TableName=self.sources[0].table, Key=key)

    def records(self) -> list[dict[str, Any]]:
        """All of the first table's stream, as Lambda delivers them."""
        table = self.sources[0].table
        found = stream_events.stream_of(self.client, self.streams, table)
        return [stream_events.as_lambda(record, table) for record in found]

    def record(
        self, number: int, customer: int, value: str | None = "1", table: int = 0
    ) -> dict[str, Any]:
        """A record that is written out: of a put, or of a deletion."""
        item = {"customer": {"N": str(customer)}, "bought": {"N": "5"}}
        item["value"] = {"N": value or "0"}
        images = {"new": item} if value else {"old": item}
        name = self.sources[table].table
        return stream_events.record(
            number, float(SECOND + number), keys=("customer",), table=name, **images
        )


def event(records: list[Any]) -> dict[str, Any]:
    """As it comes: through JSON."""
    return json.loads(json.dumps({"Records": records}))


def numbers_of(records: list[Any]) -> list[str]:
    return [record["dynamodb"]["SequenceNumber"] for record in records]


def failures(answer: Any) -> list[str]:
    return [each["itemIdentifier"] for each in answer["batchItemFailures"]]


def open_repo(tmp_path: Path, endpoint: str, **online: Any) -> Repo:
    # Workers of a run share the servers.
    number = uuid.uuid4().hex[:10]
    folder = tmp_path / f"repo{number}"
    folder.mkdir()
    aws = {"endpoint_url": endpoint, "region": REGION}
    write_repo_yaml(
        folder,
        project=f"lambda{number}",
        registry={"path": "registry.db", "cache_ttl_seconds": 60},
        online={**aws, "max_future": None, **online},
        offline={"region": REGION, "catalog": {"type": "sql"}},
    )
    client = boto3.client("dynamodb", region_name=REGION, endpoint_url=endpoint)
    sources = []
    for at in range(2):
        name = f"purchases{number}x{at}"
        client.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "customer", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "customer", "AttributeType": "N"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )
        sources.append(captured.source_of(name=name, table=name, history=f"data/{name}"))
    store = FeatureStore(str(folder))
    store.apply(
        [captured.CUSTOMER]
        + [captured.view_of(source, f"applies{at}") for at, source in enumerate(sources)]
        + [
            captured.view_of(source, f"ignores{at}", deletes="ignore")
            for at, source in enumerate(sources)
        ]
    )
    streams = boto3.client("dynamodbstreams", region_name=REGION, endpoint_url=endpoint)
    return Repo(folder, store, client, streams, sources)


@pytest.fixture
def repo(tmp_path: Path, moto_endpoint: str) -> Repo:
    return open_repo(tmp_path, moto_endpoint)


def test_changes_of_a_real_stream_go_online_and_into_the_history(tmp_path, dynamodb):
    repo = open_repo(tmp_path, dynamodb.endpoint)
    repo.put(1, 1)
    repo.put(2, 2)
    repo.put(1, 3)
    repo.delete(2)
    repo.put(3, "?")
    records = repo.records()
    function = repo.function()
    assert function(event(records[:2]), None) == {"batchItemFailures": []}
    assert repo.online("applies") == {1: 1, 2: 2}
    assert function(event(records[2:]), None) == {"batchItemFailures": []}
    wanted = [(1, 1, "put"), (2, 2, "put"), (1, 3, "put"), (2, 2, "delete")]
    assert Counter(repo.rows()) == Counter(wanted)
    assert repo.online("applies") == {1: 3}
    assert repo.online("ignores") == {1: 3, 2: 2}
    (bad,) = repo.history().quarantine.load().scan().to_arrow().to_pylist()
    assert (bad["attribute"], bad["_feast_change"]) == ("value", "put")
    assert json.loads(bad["item"])["NewImage"]["value"] == {"S": "?"}
    assert bad["origin"] == f"lambda/{numbers_of(records)[4]}"
    ids = repo.history().handle.load().scan().to_arrow()["_feast_change_id"].to_pylist()
    assert sorted([*ids, bad["_feast_change_id"]]) == sorted(each["eventID"] for each in records)


CUTS = {
    "the same batch again": [(0, 6), (0, 6)],
    "its halves, after it was committed": [(0, 6), (0, 3), (3, 6)],
    "smaller and smaller": [(0, 6), (0, 3), (0, 1), (1, 3), (3, 6)],
    "overlapping": [(0, 3), (2, 5), (4, 6), (1, 6)],
    "one by one, then whole": [*((at, at + 1) for at in range(6)), (0, 6)],
}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_whatever_lambda_delivers_again_counts_once(repo, cuts):
    records = [
        repo.record(0, 1, "1"),
        repo.record(1, 2, "2"),
        repo.record(2, 3, "1.5"),  # does not fit
        repo.record(3, 1, None),
        repo.record(4, 2, "3"),
        repo.record(5, 3, "4"),
    ]
    function = repo.function()
    for start, end in cuts:
        assert function(event(records[start:end])) == {"batchItemFailures": []}
    rows = [(1, 1, "put"), (2, 2, "put"), (1, 0, "delete"), (2, 3, "put"), (3, 4, "put")]
    assert sorted(repo.rows()) == sorted(rows)
    assert repo.history().quarantined() == 1
    assert repo.online("applies") == {2: 3, 3: 4}


def test_a_commit_that_fails_fails_all_and_the_next_time_all_is_there_once(repo):
    records = [repo.record(0, 1, "1"), repo.record(1, 2, "2")]
    function = repo.function()
    function(event(records[:1]))
    handle = repo.history().handle
    catalog = handle.load().catalog
    catalog.rename_table(handle.name, f"{handle.name}_away")
    # All of it failed: an error, so that the batch stays whatever the mapping reports.
    with pytest.raises(SourceNotFoundError, match="the catalog has no table"):
        function(event(records))
    assert repo.online("applies") == {1: 1, 2: 2}
    # Of another source's records in the batch nothing failed.
    others = [repo.record(7, 4, "4", table=1)]
    answer = function(event([*others, *records]))
    assert failures(answer) == numbers_of(records)
    catalog.rename_table(f"{handle.name}_away", handle.name)
    assert function(event([*others, *records])) == {"batchItemFailures": []}
    assert repo.rows() == [(1, 1, "put"), (2, 2, "put")]
    assert repo.rows(1) == [(4, 4, "put")]


def test_what_does_not_go_online_is_named_and_is_in_the_history_once(repo):
    poison, records = repo.record(0, 9, "1.5"), [repo.record(1, 1, "1"), repo.record(2, 1, None)]
    function = repo.function()
    view = repo.store.get_feature_view("applies0")
    repo.client.delete_table(TableName=table_name(repo.store.config, view))
    # The record that does not fit is in quarantine, which is its place.
    assert failures(function(event([poison, *records]))) == numbers_of(records)
    with pytest.raises(ResourceNotFoundError):
        function(event(records))
    # Deletions are nothing to the other view: only what concerns the missing table is named.
    repo.store.apply([view])
    assert function(event(records[:1])) == {"batchItemFailures": []}
    assert repo.online("applies") == {1: 1}
    assert function(event([poison, *records])) == {"batchItemFailures": []}
    assert (repo.online("applies"), repo.online("ignores")) == ({}, {1: 1})
    assert repo.rows() == [(1, 1, "put"), (1, 0, "delete")]
    assert repo.history().quarantined() == 1


class Throttling(http.server.BaseHTTPRequestHandler):
    """In front of moto: throttles writes of items that have one of the keys in `refused`."""

    protocol_version = "HTTP/1.1"
    endpoint: str
    refused: set[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_write = not self.headers["X-Amz-Target"].endswith("BatchGetItem")
        if is_write and any(key in body for key in self.refused):
            code = "ProvisionedThroughputExceededException"
            status, answer = 400, json.dumps({"__type": code, "message": "later"}).encode()
        else:
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            with urllib3.PoolManager() as pool:
                found = pool.request("POST", f"{self.endpoint}/", body=body, headers=headers)
            status, answer = found.status, found.data
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def throttling(moto_endpoint: str) -> Iterator[tuple[str, set[bytes]]]:
    """Its address, and what it refuses requests for."""
    refused: set[bytes] = set()
    handler = type("Handler", (Throttling,), {"endpoint": moto_endpoint, "refused": refused})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", refused
    server.shutdown()
    thread.join()
    server.server_close()


def test_entities_that_are_throttled_are_named_alone(tmp_path, throttling):
    endpoint, refused = throttling
    quick = {"newest_wins_with": "put_item", "write_deadline_ms": 1_000}
    repo = open_repo(tmp_path, endpoint, **quick)
    records = [repo.record(number, number + 1, str(number)) for number in range(4)]
    records.append(repo.record(4, 2, None))
    records.append(repo.record(5, 2, "5"))
    key = EntityKey(join_keys=["customer"], entity_values=[Value(int64_val=2)])
    refused.add(base64.b64encode(serialize_entity_key(key, 3)))
    function = repo.function()
    named = failures(function(event(records)))
    assert named == numbers_of([records[1], records[4], records[5]])
    assert repo.online("applies") == {1: 0, 3: 2, 4: 3}
    assert len(repo.rows()) == 6
    refused.clear()
    # Lambda goes on from the first that is named.
    assert function(event(records[1:])) == {"batchItemFailures": []}
    assert repo.online("applies") == repo.online("ignores") == {1: 0, 2: 5, 3: 2, 4: 3}
    assert len(repo.rows()) == 6


def test_two_functions_one_for_each_of_both(repo):
    records = [repo.record(0, 1, "1"), repo.record(1, 2, "2")]
    online = repo.function(FEAST_DYNAMO_CAPTURE_WRITES="online")
    assert online(event(records)) == {"batchItemFailures": []}
    assert (repo.online("applies"), repo.rows()) == ({1: 1, 2: 2}, [])
    history = repo.function(FEAST_DYNAMO_CAPTURE_WRITES="history")
    assert history(event([repo.record(2, 1, None), *records])) == {"batchItemFailures": []}
    assert repo.online("applies") == {1: 1, 2: 2}
    assert len(repo.rows()) == 3


def test_a_table_is_captured_by_all_sources_that_are_chosen(repo):
    function = repo.function(FEAST_DYNAMO_CAPTURE_SOURCES=repo.sources[1].name)
    function(event([repo.record(0, 1, "1", table=1)]))
    assert repo.rows(1) == [(1, 1, "put")]
    with pytest.raises(CaptureError, match="which no source of the function captures"):
        function(event([repo.record(0, 1, "1", table=1), repo.record(0, 1, "1")]))


def test_what_is_declared_later_is_known_when_the_registry_is_read_again(repo):
    seconds = [0.0]
    function = Function(repo.environment, clock=lambda: seconds[0])
    record = repo.record(0, 1, "1")
    record["dynamodb"]["NewImage"]["colour"] = {"S": "red"}
    function(event([record]))
    source = repo.sources[0]
    schema = [*source.schema, captured.Field(name="colour", dtype=captured_string())]
    repo.store.apply(
        captured.source_of(
            name=source.name, table=source.table, history=source.history, schema=schema
        )
    )
    again = json.loads(json.dumps(record).replace(record["eventID"], "another"))
    seconds[0] = 61.0
    function(event([again]))
    found = repo.history().handle.load().scan().to_arrow().sort_by("_feast_sequence")
    assert found["colour"].to_pylist() == [None, "red"]


def captured_string() -> Any:
    from feast.types import String

    return String


EVENTS = [
    ({}, "The event has no `Records`"),
    ([], "The event has no `Records`"),
    ({"Records": {}}, "The event has no `Records`"),
    ({"Records": [{"eventSource": "aws:sqs", "body": "{}"}]}, "no stream of a DynamoDB table"),
    ({"Records": [5]}, "no stream of a DynamoDB table"),
    (
        {"Records": [{"eventSourceARN": stream_events.ARN.format("orders")}]},
        "of the table `orders`, which no source of the function captures. The function captures",
    ),
]


@pytest.mark.parametrize(("given", "message"), EVENTS)
def test_an_event_of_something_else_is_an_error_in_words(repo, given, message):
    with pytest.raises(CaptureError, match=message):
        repo.function()(given)


def test_a_stream_without_new_images_is_an_error_in_words(repo):
    record = repo.record(0, 1, "1")
    record["dynamodb"]["StreamViewType"] = "KEYS_ONLY"
    with pytest.raises(CaptureError, match="The stream shows KEYS_ONLY"):
        repo.function()(event([record]))


def test_what_is_set_wrongly_is_an_error_in_words_at_each_event(repo, tmp_path):
    wrong = [
        ({"FEAST_DYNAMO_CAPTURE_SOURCE": "x"}, "Did you mean `FEAST_DYNAMO_CAPTURE_SOURCES`"),
        ({"FEAST_DYNAMO_CAPTURE_WRITES": "offline"}, "must be online, history, or both"),
        ({"FEAST_DYNAMO_CAPTURE_WRITES": ""}, "must be online, history, or both"),
        ({"FEAST_DYNAMO_CAPTURE_SOURCES": "purchase"}, "there is no captured source `purchase`"),
        ({"FEAST_DYNAMO_CAPTURE_REPO": str(tmp_path)}, "There is no .*feature_store.yaml. Copy"),
        ({"AWS_LAMBDA_FUNCTION_NAME": "f"}, "`registry` of feature_store.yaml is the file"),
    ]
    for variables, message in wrong:
        function = repo.function(**variables)
        for _ in range(2):
            with pytest.raises(ConfigError, match=message):
                function(event([repo.record(0, 1, "1")]))


def test_a_repo_without_captured_tables_is_an_error_in_words(tmp_path, moto_endpoint):
    aws = {"endpoint_url": moto_endpoint, "region": REGION}
    write_repo_yaml(tmp_path, online=aws, offline={"region": REGION, "catalog": {"type": "sql"}})
    FeatureStore(str(tmp_path)).apply([captured.CUSTOMER])
    function = Function({"FEAST_DYNAMO_CAPTURE_REPO": str(tmp_path)})
    with pytest.raises(ConfigError, match="The registry has no `DynamoDBTableSource`"):
        function({"Records": []})


# By AWS's own runtime interface client


class RuntimeApi(http.server.BaseHTTPRequestHandler):
    """Lambda's Runtime API, as a function in a container speaks to it."""

    protocol_version = "HTTP/1.1"
    events: queue.Queue[Any]
    answers: queue.Queue[Any]

    def do_GET(self) -> None:
        number, given = self.events.get()
        body = json.dumps(given).encode()
        self.send_response(200)
        self.send_header("Lambda-Runtime-Aws-Request-Id", f"request-{number}")
        self.send_header("Lambda-Runtime-Deadline-Ms", "4102444800000")
        self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:x:1:function:f")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answers.put((self.path, json.loads(body)))
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def runtime_api() -> Iterator[tuple[str, Any, Any]]:
    """Its address, events to be given, and what the function answers."""
    events: queue.Queue[Any] = queue.Queue()
    answers: queue.Queue[Any] = queue.Queue()
    handler = type("Handler", (RuntimeApi,), {"events": events, "answers": answers})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", events, answers
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("has_folder", [True, False])
def test_awss_own_runtime_runs_the_images_entry_point(repo, runtime_api, has_folder):
    if importlib.util.find_spec("awslambdaric") is None and not os.environ.get("CI"):
        pytest.skip("missing: awslambdaric, of the extra `dev`")
    address, events, answers = runtime_api
    environment = {**os.environ, "AWS_LAMBDA_RUNTIME_API": address, "AWS_REGION": REGION}
    if has_folder:
        environment["LAMBDA_TASK_ROOT"] = str(repo.folder)
    else:
        text = (repo.folder / "feature_store.yaml").read_text()
        for name in ("registry.db", "data/iceberg.db", "data/warehouse"):
            text = text.replace(name, str(repo.folder / name))
        uri = f"type: sql\n    uri: sqlite:///{repo.folder}/data/iceberg.db"
        text = text.replace("type: sql", uri)
        environment["FEATURE_STORE_YAML_BASE64"] = base64.b64encode(text.encode()).decode()
    (entry,) = re.findall(r'^CMD \["(.+)"\]$', TEMPLATE.read_text(), re.MULTILINE)
    command = [sys.executable, "-m", "awslambdaric", entry]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            records = [repo.record(0, 1, "1"), repo.record(1, 2, "2")]
            for number, given in enumerate([event(records), event(records[1:]), {}]):
                events.put((number, given))
            found = [answers.get(timeout=120) for _ in range(3)]
        finally:
            process.kill()
        output = process.stdout.read()
    path = "/2018-06-01/runtime/invocation/request-"
    assert found[0] == (f"{path}0/response", {"batchItemFailures": []}), output
    assert found[1] == (f"{path}1/response", {"batchItemFailures": []})
    assert found[2][0] == f"{path}2/error"
    assert found[2][1]["errorType"] == "CaptureError"
    assert "The event has no `Records`" in found[2][1]["errorMessage"]
    assert repo.rows() == [(1, 1, "put"), (2, 2, "put")]
    assert repo.online("applies") == {1: 1, 2: 2}
    assert "2 records, 2 rows new in the history" in output
    assert "1 records, 0 rows new in the history" in output


def test_credentials_of_the_environment_are_not_shown():
    assert "hidden" not in repr(Function({"AWS_SECRET_ACCESS_KEY": "hidden"}))
