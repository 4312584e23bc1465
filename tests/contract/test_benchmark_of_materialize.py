"""What `make bench` needs for materialization: its history, its sink, its bars and tables."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import bars
import materialize
import report
from bench_history import HistoryFile, newest
from materialize import Materialized

from feast_dynamo_ext.local import stop
from feast_dynamo_ext.local.process import launch

pytestmark = pytest.mark.server  # they start servers of their own

# Figures


def materialized(name: str, seconds: float, cpu_s: float, peak_mb: float) -> Materialized:
    (case,) = (one for one in materialize.cases() if one.name == name)
    return Materialized(case, seconds, cpu_s, start_mb=250.0, peak_mb=peak_mb)


RUNS = {
    one.case.name: [one]
    for one in (
        materialized("Local, overwrite", 40.0, 12.0, 400.0),
        materialized("Local, Feast", 160.0, 100.0, 480.0),
        materialized("Local, newest wins", 80.0, 24.0, 400.0),
        materialized("sink, newest wins", 10.0, 18.0, 400.0),
        materialized("sink, overwrite", 40.0, 60.0, 500.0),
        materialized("sink, x 10", 100.0, 120.0, 600.0),
    )
}


def test_every_bar_of_materialization():
    held = bars.of_materialize(RUNS)
    assert [(bar.name, bar.limit, figure.median, bar.is_met(figure)) for bar, figure in held] == [
        ("ours/Feast, rows/s, materialize", 3.0, 4.0, True),  # 5,000 and 1,250 a second
        ("CPU a materialized row, Local, overwrite", 70.0, pytest.approx(60.0), True),
        ("CPU a materialized row, Local, newest wins", 110.0, pytest.approx(120.0), False),
        ("rows into the sink", 20_000, 25_000.0, True),
        ("peak memory, 10 M rows, 1 M keys", 700, 600.0, True),
        ("its peak, 10 M/1 M rows", 1.15, 1.2, False),
    ]


def test_rows_a_second_are_those_written():
    last = report.materialize_table(RUNS).splitlines()[-1]
    cells = "sink ours, overwrite 10,000,000 1,000,000 100.0 10,000 120 250 600"
    assert last.split() == cells.split()


def test_a_run_that_was_stopped_has_no_speed():
    (case,) = (one for one in materialize.cases() if one.name == "sink, Feast")
    stopped = Materialized(case, 90.0, 80.0, 250.0, 8_000.0, is_stopped=True)
    last = report.materialize_table({"sink, Feast": [stopped]}).splitlines()[-1]
    cells = "sink Feast, overwrite 1,000,000 first 1,000 90.0 - - 250 8000"
    assert last.split() == cells.split()


def test_into_dynamodb_local_all_write_the_same_rows():
    local = [one for one in materialize.cases() if one.to == "Local"]
    assert {(one.source, one.rows, one.keys) for one in local} == {
        ("one.parquet", 200_000, 200_000)
    }
    assert [(one.client, one.write_mode) for one in local] == [
        ("ours", "overwrite"),
        ("Feast", "overwrite"),
        ("ours", "newest_wins"),
    ]
    assert {one.limit for one in materialize.cases(full=True)} == {None}


# History


def test_a_file_holds_each_key_once(tmp_path):
    everything = HistoryFile(str(tmp_path / "new" / "all"), keys=10, features=["a"], seed=1)
    everything.write()
    table = pq.read_table(everything.path)
    assert table.column_names == ["customer", "event_time", "created_time", "a"]
    keys = table["customer"].to_pylist()
    assert sorted(keys) == list(range(10))
    assert keys != list(range(10))


def test_the_newest_rows_are_found_in_all_files(tmp_path):
    for seed in (1, 2, 3):
        HistoryFile(str(tmp_path / str(seed)), keys=10, features=["a"], seed=seed).write()
    rows = pq.read_table(tmp_path).to_pylist()
    of_seven = [row for row in rows if row["customer"] == 7]
    assert len(of_seven) == 3
    last = max(of_seven, key=lambda row: row["event_time"])
    assert newest(str(tmp_path), [7]) == {7: {"a": last["a"]}}


# Sink


@pytest.fixture
def sink(tmp_path):
    """Asks a sink that takes four rows."""
    script = Path(materialize.__file__).with_name("sink.py")
    server = launch("sink", [sys.executable, str(script), "4"], tmp_path / "sink.log")
    connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc)

    def ask(operation: str | None = None, body: dict | None = None) -> tuple[int, dict]:
        headers = {"x-amz-target": f"DynamoDB_20120810.{operation}"} if operation else {}
        connection.request("POST" if operation else "GET", "/", json.dumps(body or {}), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    yield ask, server.endpoint
    connection.close()
    stop(server)


PUT = {"PutRequest": {"Item": {"k": {"B": "aw=="}}}}
STATEMENT = {"Statement": 'UPDATE "a.b" SET t=? WHERE k=?', "Parameters": []}


def test_the_sink_takes_rows_and_counts_them(sink):
    ask, _ = sink
    two = {"RequestItems": {"a.b": [PUT, PUT]}}
    assert ask("BatchWriteItem", two) == (200, {"UnprocessedItems": {}})
    assert ask("BatchExecuteStatement", {"Statements": [STATEMENT]}) == (200, {"Responses": [{}]})
    assert ask("GetItem", {"TableName": "a.b"}) == (200, {})
    status, counts = ask()
    assert (status, counts["rows"], counts["requests"]) == (200, 3, 3)
    assert counts["cpu_s"] > 0


def test_the_sink_says_what_was_consumed_when_asked(sink):
    ask, _ = sink
    consumed = [{"TableName": "a.b", "CapacityUnits": 2.0}]
    total = {"ReturnConsumedCapacity": "TOTAL"}
    _, written = ask("BatchWriteItem", {"RequestItems": {"a.b": [PUT, PUT]}, **total})
    assert written["ConsumedCapacity"] == consumed
    _, updated = ask("BatchExecuteStatement", {"Statements": [STATEMENT] * 2, **total})
    assert updated == {"Responses": [{}, {}], "ConsumedCapacity": consumed}


def test_the_sink_refuses_rows_after_so_many(sink):
    ask, _ = sink
    for rows, status in ((3, 200), (1, 200), (1, 400)):
        assert ask("BatchWriteItem", {"RequestItems": {"a.b": [PUT] * rows}})[0] == status
    assert ask("GetItem", {"TableName": "a.b"}) == (200, {})
    assert ask("CreateGlobalTable", {})[0] == 400


def test_the_sink_waits_for_all_of_a_request(sink):
    ask, endpoint = sink
    body = json.dumps({"RequestItems": {"a.b": [PUT]}}).encode()
    head = b"POST / HTTP/1.1\r\nX-Amz-Target: DynamoDB_20120810.BatchWriteItem\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    parts = urlsplit(endpoint)
    with socket.create_connection((parts.hostname, parts.port)) as plain:
        # In pieces of which none ends where a part of the request does, then two at once.
        for piece in (request[:9], request[9:70], request[70:-5], request[-5:] + request * 2):
            plain.sendall(piece)
            # Time for the sink to read the piece alone, and no clock.
            ask("GetItem", {})
        answers = b""
        while answers.count(b'{"UnprocessedItems":{}}') < 3:
            answers += plain.recv(10_000)
    assert answers.count(b"HTTP/1.1 200 OK") == 3
