"""What can go wrong between us and DynamoDB, answered by a server that does it on purpose."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import gzip
import json
import sys
import threading
import traceback
import zlib
from email.utils import format_datetime
from urllib.parse import urlsplit

import boto3
import psutil
import pytest
from botocore.credentials import DeferredRefreshableCredentials

from feast_dynamo_ext import __version__
from feast_dynamo_ext.dynamo.event_loops import Loops
from feast_dynamo_ext.dynamo.transport import DynamoTransport, TransportSettings
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsError,
    AwsUnavailableError,
    CredentialsError,
    ThrottledError,
)

GOOD = json.dumps({"Responses": {}}).encode()


class SyncWire:
    """A transport for tests that are not coroutines: each call on the same borrowed loop."""

    def __init__(self, transport: DynamoTransport) -> None:
        self.transport, self.loops = transport, Loops(transport.close_loop)

    def call(self, operation: str, body: dict, resource: str) -> dict:
        return self.loops.run(self.transport.call(operation, body, resource))


@pytest.fixture
def transport_to():
    """Opens transports; closes them after the test."""
    transports = []

    def transport_to(
        endpoint: str, read_timeout_s: float = 20.0, keepalive_s: float = 30.0
    ) -> SyncWire:
        settings = TransportSettings(
            connect_timeout_s=20.0,
            read_timeout_s=read_timeout_s,
            max_connections=4,
            keepalive_s=keepalive_s,
        )
        session = boto3.Session(region_name="us-east-1")
        transports.append(SyncWire(DynamoTransport(session, endpoint, settings)))
        return transports[-1]

    yield transport_to
    for transport in transports:
        transport.loops.close()


def refusal(code: str, message: str = "no") -> dict:
    return {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": message}


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (None, AwsUnavailableError, "no answer"),
        ((500, refusal("InternalServerError")), AwsUnavailableError, "InternalServerError"),
        (
            (503, b"<html>busy</html>"),
            AwsUnavailableError,
            "HTTP 503 with a body that is not JSON",
        ),
        ((200, b"<html>hello</html>"), AwsUnavailableError, "Is the endpoint really DynamoDB"),
        ((200, b'{"Responses": {'), AwsUnavailableError, "not JSON"),
        ((200, GOOD[:5], {"Content-Length": str(len(GOOD))}), AwsUnavailableError, "no answer"),
        (
            (200, GOOD, {"x-amz-crc32": str(zlib.crc32(GOOD) ^ 1)}),
            AwsUnavailableError,
            "corrupted on its way",
        ),
        (
            (400, refusal("ProvisionedThroughputExceededException")),
            ThrottledError,
            "ProvisionedThroughputExceededException",
        ),
        ((400, refusal("ThrottlingException")), ThrottledError, "ThrottlingException"),
        ((400, refusal("ExpiredTokenException")), CredentialsError, "sts get-caller-identity"),
        ((400, refusal("AccessDeniedException")), AccessDeniedError, "IAM policy"),
        ((403, b"<html>no</html>"), AccessDeniedError, "AccessDeniedException: HTTP 403"),
        ((400, refusal("ValidationException", "too long")), AwsError, "ValidationException: too"),
    ],
)
def test_a_bad_answer_is_an_error_that_says_what_and_where(
    transport_to, scripted_http, answer, error, message
):
    transport = transport_to(scripted_http([answer]))
    with pytest.raises(
        error, match=rf"dynamodb BatchGetItem on shop\.orders.*{message}"
    ) as caught:
        transport.call("BatchGetItem", {"RequestItems": {}}, "shop.orders")
    assert "secret" not in str(caught.value).lower()
    assert "test" not in str(caught.value)


def test_the_request_id_is_kept_for_aws_support(transport_to, scripted_http):
    headers = {"x-amzn-RequestId": "ABC123"}
    transport = transport_to(scripted_http([(400, refusal("ValidationException"), headers)]))
    with pytest.raises(AwsError) as caught:
        transport.call("BatchGetItem", {}, "t")
    assert (caught.value.request_id, caught.value.code) == ("ABC123", "ValidationException")
    assert (caught.value.service, caught.value.operation) == ("dynamodb", "BatchGetItem")


def test_a_good_answer_is_decoded_and_its_checksum_is_checked(transport_to, scripted_http):
    headers = {"x-amz-crc32": str(zlib.crc32(GOOD))}
    transport = transport_to(scripted_http([(200, GOOD, headers), (200, GOOD)]))
    assert transport.call("BatchGetItem", {"RequestItems": {"t": 1}}, "t") == {"Responses": {}}
    assert transport.call("BatchGetItem", {}, "t") == {"Responses": {}}
    assert json.loads(scripted_http.requests[0]) == {"RequestItems": {"t": 1}}


def test_an_answer_that_takes_too_long_is_given_up(transport_to):
    import socket

    # It accepts connections into its backlog and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = transport_to(f"http://127.0.0.1:{silent.getsockname()[1]}", read_timeout_s=0.1)
        with pytest.raises(AwsUnavailableError, match=r"no answer.*timed out"):
            transport.call("BatchGetItem", {}, "t")


def test_a_connection_closed_while_idle_is_replaced_without_a_word(transport_to, scripted_http):
    # The second answer's None drops the connection that carried the first one.
    transport = transport_to(scripted_http([(200, GOOD), None, (200, GOOD)]))
    for _ in range(2):
        assert transport.call("BatchGetItem", {}, "t") == {"Responses": {}}
    assert len(scripted_http.requests) == 3


def test_a_request_waits_for_its_own_answer_after_one_that_came_late(transport_to, scripted_http):
    late, own = {"Responses": {"late": []}}, {"Responses": {"own": []}}
    server = scripted_http([(200, late, {"x-test-delay": "0.3"}), (200, own)])
    transport = transport_to(server, read_timeout_s=0.1)
    with pytest.raises(AwsUnavailableError, match="timed out"):
        transport.call("BatchGetItem", {}, "t")
    assert transport.call("BatchGetItem", {}, "t") == own


@pytest.mark.parametrize("hours", [-3, 5])
def test_a_wrong_clock_is_corrected_by_what_aws_says(transport_to, scripted_http, hours, caplog):
    theirs = dt.datetime.now(tz=dt.timezone.utc) + dt.timedelta(hours=hours)
    refused = (
        400,
        refusal("InvalidSignatureException", "Signature expired"),
        {"Date": format_datetime(theirs, usegmt=True)},
    )
    transport = transport_to(scripted_http([refused, (200, GOOD), (200, GOOD)]))
    for _ in range(2):
        assert transport.call("BatchGetItem", {}, "t") == {"Responses": {}}
    assert len(scripted_http.requests) == 3
    stamps = [headers["X-Amz-Date"] for headers in scripted_http.headers]
    for stamp in stamps[1:]:
        signed_at = dt.datetime.strptime(stamp, "%Y%m%dT%H%M%S%z")
        assert abs(signed_at - theirs) < dt.timedelta(minutes=1)
    assert "clock" in caplog.text


def test_a_wrong_signature_is_not_taken_for_a_wrong_clock(transport_to, scripted_http):
    now = format_datetime(dt.datetime.now(tz=dt.timezone.utc), usegmt=True)
    transport = transport_to(
        scripted_http([(400, refusal("InvalidSignatureException"), {"Date": now})])
    )
    with pytest.raises(CredentialsError, match="InvalidSignatureException"):
        transport.call("BatchGetItem", {}, "t")
    assert len(scripted_http.requests) == 1


def test_https_with_a_certificate_that_nobody_vouches_for_is_refused(transport_to, tls_server):
    with pytest.raises(AwsUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        transport_to(tls_server.url).call("BatchGetItem", {}, "t")


def test_https_with_a_certificate_of_the_configured_bundle(transport_to, tls_server, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls_server.certificate))
    transport = transport_to(tls_server.url)
    for _ in range(2):
        assert transport.call("BatchGetItem", {}, "t") == {"Responses": {}}


def test_https_through_a_proxy(transport_to, tls_server, connect_proxy, monkeypatch):
    if connect_proxy.scheme == "https" and sys.version_info < (3, 11):
        pytest.skip("asyncio speaks TLS within TLS from Python 3.11 on")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls_server.certificate))
    proxy = f"{connect_proxy.scheme}://user:pass%20word@localhost:{connect_proxy.port}"
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "")
    assert transport_to(tls_server.url).call("BatchGetItem", {}, "t") == {"Responses": {}}
    (request,) = connect_proxy.requests
    assert request.startswith(f"CONNECT localhost:{tls_server.port} HTTP/1.")
    assert "Proxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=" in request


def test_a_host_of_no_proxy_is_reached_without_one(transport_to, tls_server, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls_server.certificate))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert transport_to(tls_server.url).call("BatchGetItem", {}, "t") == {"Responses": {}}


def test_a_proxy_that_refuses_is_named(transport_to, raw_http, monkeypatch):
    refusing = raw_http([b""])
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{refusing.port}")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(AwsUnavailableError, match="no answer"):
        transport_to("https://localhost:1").call("BatchGetItem", {}, "t")


def answer(name: str, status: str = "200 OK", extra: str = "") -> bytes:
    """An answer that holds a name."""
    body = json.dumps({"Responses": {name: []}})
    return f"HTTP/1.1 {status}\r\n{extra}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def names(transport, count: int) -> list[str]:
    """The names that as many requests were answered."""
    return [
        name for _ in range(count) for name in transport.call("BatchGetItem", {}, "t")["Responses"]
    ]


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"


@pytest.mark.parametrize("interim", [INTERIM, EARLY_HINTS, INTERIM + EARLY_HINTS])
def test_an_interim_answer_is_not_taken_for_the_final_one(transport_to, raw_http, interim):
    server = raw_http([interim + answer("first"), answer("second"), interim + answer("third")])
    assert names(transport_to(server.url), 3) == ["first", "second", "third"]
    assert server.connections == 1


@pytest.mark.parametrize("more", [answer("nobody's"), b"HTTP/1.1 200 "])
def test_what_follows_an_answer_is_nobodys(transport_to, raw_http, more):
    server = raw_http([answer("first") + more, answer("second"), answer("third")])
    assert names(transport_to(server.url), 3) == ["first", "second", "third"]


def test_an_answer_that_is_not_http_is_not_quoted(transport_to, raw_http):
    server = raw_http([answer("a secret") + b"\0\0\0\0", answer("second"), answer("third")])
    transport = transport_to(server.url)
    with pytest.raises(AwsUnavailableError, match="the answer is not HTTP") as caught:
        transport.call("BatchGetItem", {}, "t")
    assert "a secret" not in "".join(traceback.format_exception(caught.value))
    assert names(transport, 2) == ["second", "third"]
    assert server.connections == 2


@pytest.mark.parametrize("more", [answer("nobody's"), b"\0\0\0\0"])
@pytest.mark.parametrize("loop_runs", [True, False])
def test_what_comes_while_a_connection_is_idle_is_nobodys(transport_to, raw_http, more, loop_runs):
    go_on, sent = threading.Event(), threading.Event()

    def send(connection):
        connection.sendall(answer("first"))
        go_on.wait(10)
        connection.sendall(more)
        sent.set()

    server = raw_http([send, answer("second"), answer("third")])
    transport = transport_to(server.url)
    first = names(transport, 1)

    async def wait_for_more():
        go_on.set()
        await asyncio.to_thread(sent.wait, 10)

    if loop_runs:
        transport.loops.run(wait_for_more())
    else:
        go_on.set()
        sent.wait(10)
    assert [*first, *names(transport, 2)] == ["first", "second", "third"]
    assert server.connections == 2


def test_an_answer_without_end_is_given_up(transport_to, raw_http):
    def send(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"100000\r\n" + b" " * 2**20 + b"\r\n")

    transport = transport_to(raw_http([send, answer("own")]).url, read_timeout_s=60)
    with pytest.raises(AwsUnavailableError, match="more than 33,554,432 bytes"):
        transport.call("BatchGetItem", {}, "t")
    assert names(transport, 1) == ["own"]


def test_a_body_is_not_decompressed(transport_to, raw_http):
    packed = gzip.compress(GOOD)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    with pytest.raises(AwsUnavailableError, match="not JSON"):
        transport_to(raw_http([head.encode() + packed]).url).call("BatchGetItem", {}, "t")


@pytest.mark.parametrize("size", [1, 3_000_000])
def test_a_request_is_sent_as_it_is_signed(transport_to, raw_http, size):
    server = raw_http([answer("one", extra="Set-Cookie: a=b\r\n"), answer("two")])
    transport = transport_to(f"{server.url}/a b/./c")
    body = {"RequestItems": {"t": "x" * size}}
    for _ in range(2):
        transport.call("BatchGetItem", body, "t")
    for head, sent in server.requests:
        line, *lines = head.decode().splitlines()
        assert line == "POST /a%20b/c HTTP/1.1"
        headers = dict(entry.split(": ", 1) for entry in lines)
        assert sorted(headers) == [
            "Accept-Encoding",
            "Authorization",
            "Content-Length",
            "Content-Type",
            "Host",
            "User-Agent",
            "X-Amz-Date",
            "X-Amz-Target",
        ]
        assert headers["Host"] == f"127.0.0.1:{server.port}"
        assert headers["Content-Type"] == "application/x-amz-json-1.0"
        assert headers["Accept-Encoding"] == "identity"
        assert headers["User-Agent"] == f"feast-dynamo-ext/{__version__}"
        assert json.loads(sent) == body


def test_requests_beyond_the_limit_wait_for_a_connection(transport_to, raw_http):
    server = raw_http([answer(f"a{number}") for number in range(20)])
    transport = transport_to(server.url)

    async def at_once():
        calls = (transport.transport.call("BatchGetItem", {}, "t") for _ in range(20))
        return await asyncio.gather(*calls)

    found = {name for result in transport.loops.run(at_once()) for name in result["Responses"]}
    assert found == {f"a{number}" for number in range(20)}
    assert server.connections == server.most_open == 4


def test_a_warmed_up_connection_is_used(transport_to, raw_http):
    server = raw_http([answer("first"), answer("second")])
    transport = transport_to(server.url)
    transport.loops.run(transport.transport.warm_up(2))
    assert names(transport, 2) == ["first", "second"]
    assert server.connections == 2


def test_warming_up_says_why_there_is_no_connection(transport_to):
    transport = transport_to("http://127.0.0.1:1")
    with pytest.raises(AwsUnavailableError, match=r"no connection to 127.0.0.1:1: .*refused|fail"):
        transport.loops.run(transport.transport.warm_up(2))


def open_connections_to(url: str) -> int:
    """How many connections this process has to a server on this machine."""
    port = urlsplit(url).port
    there = psutil.Process().net_connections("tcp")
    return sum(
        bool(each.raddr) and each.raddr.port == port and each.status == "ESTABLISHED"
        for each in there
    )


def test_loops_of_callers_that_ended_leave_no_connections(raw_http, caplog):
    server = raw_http([answer(f"a{number}") for number in range(5)])
    settings = TransportSettings(20.0, 20.0, 4, 30.0)
    transport = DynamoTransport(boto3.Session(region_name="us-east-1"), server.url, settings)
    for _ in range(5):
        asyncio.run(transport.call("BatchGetItem", {}, "t"))
        assert open_connections_to(server.url) == 0
    assert server.connections == 5
    transport.close()
    del transport
    gc.collect()
    assert caplog.text == ""


def test_credentials_that_expire_are_renewed_off_the_event_loop(scripted_http):
    renewed_on = []

    def renew():
        renewed_on.append(threading.current_thread())
        expiry = dt.datetime.now(tz=dt.timezone.utc) + dt.timedelta(hours=1)
        return {
            "access_key": f"key{len(renewed_on)}",
            "secret_key": "s",
            "token": "t",
            "expiry_time": expiry.isoformat(),
        }

    session = boto3.Session(region_name="us-east-1")
    session._session._credentials = DeferredRefreshableCredentials(renew, "test")
    settings = TransportSettings(20.0, 20.0, 4, 30.0)
    transport = DynamoTransport(session, scripted_http([(200, GOOD)] * 2), settings)

    async def calls():
        for _ in range(2):
            await transport.call("BatchGetItem", {}, "t")
        await transport.close_loop(asyncio.get_running_loop())

    asyncio.run(calls())
    (thread,) = renewed_on
    assert thread is not threading.main_thread()
    assert all("Credential=key1/" in head["Authorization"] for head in scripted_http.headers)
    assert all(head["X-Amz-Security-Token"] == "t" for head in scripted_http.headers)


def test_a_store_reads_on_through_failures_and_throttling(open_store, scripted_http):
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.types import Float64

    answers = [
        None,
        (400, refusal("ProvisionedThroughputExceededException")),
        (500, refusal("InternalServerError")),
        (200, {"Responses": {"p.v": []}, "UnprocessedKeys": {}}),
    ]
    online = {"region": "us-east-1", "endpoint_url": scripted_http(answers)}
    store = open_store(online=online)
    view = FeatureView(
        name="v",
        entities=[Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)],
        schema=[Field(name="total", dtype=Float64)],
        source=FileSource(path="nowhere", timestamp_field="t"),
    )
    key = EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=1)])
    assert store.provider.online_read(store.config, view, [key]) == [(None, None)]
    assert len(scripted_http.requests) == 4
    assert len(set(scripted_http.requests)) == 1
