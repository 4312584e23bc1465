"""What can go wrong between us and DynamoDB, answered by a server that does it on purpose."""

from __future__ import annotations

import json
import zlib

import boto3
import pytest

from feast_dynamo_ext.dynamo.wire import DynamoWire, WireSettings
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsError,
    AwsUnavailableError,
    CredentialsError,
    ThrottledError,
)

GOOD = json.dumps({"Responses": {}}).encode()


@pytest.fixture
def wire_to():
    """Opens wires; closes them after the test."""
    wires = []

    def wire_to(endpoint: str, read_timeout_s: float = 5.0) -> DynamoWire:
        settings = WireSettings(
            connect_timeout_s=1.0, read_timeout_s=read_timeout_s, max_connections=4, keepalive_s=30
        )
        wires.append(DynamoWire(boto3.Session(region_name="us-east-1"), endpoint, settings))
        return wires[-1]

    yield wire_to
    for wire in wires:
        wire.close()


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
        ((400, refusal("ValidationException", "too long")), AwsError, "ValidationException: too"),
    ],
)
def test_a_bad_answer_is_an_error_that_says_what_and_where(
    wire_to, scripted_http, answer, error, message
):
    wire = wire_to(scripted_http([answer]))
    with pytest.raises(
        error, match=rf"dynamodb BatchGetItem on shop\.orders.*{message}"
    ) as caught:
        wire.call("BatchGetItem", {"RequestItems": {}}, "shop.orders")
    assert "secret" not in str(caught.value).lower()
    assert "test" not in str(caught.value)


def test_the_request_id_is_kept_for_aws_support(wire_to, scripted_http):
    headers = {"x-amzn-RequestId": "ABC123"}
    wire = wire_to(scripted_http([(400, refusal("ValidationException"), headers)]))
    with pytest.raises(AwsError) as caught:
        wire.call("BatchGetItem", {}, "t")
    assert (caught.value.request_id, caught.value.code) == ("ABC123", "ValidationException")
    assert (caught.value.service, caught.value.operation) == ("dynamodb", "BatchGetItem")


def test_a_good_answer_is_decoded_and_its_checksum_is_checked(wire_to, scripted_http):
    headers = {"x-amz-crc32": str(zlib.crc32(GOOD))}
    wire = wire_to(scripted_http([(200, GOOD, headers), (200, GOOD)]))
    assert wire.call("BatchGetItem", {"RequestItems": {"t": 1}}, "t") == {"Responses": {}}
    assert wire.call("BatchGetItem", {}, "t") == {"Responses": {}}
    assert json.loads(scripted_http.requests[0]) == {"RequestItems": {"t": 1}}


def test_an_answer_that_takes_too_long_is_given_up(wire_to):
    import socket

    # It accepts connections into its backlog and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        wire = wire_to(f"http://127.0.0.1:{silent.getsockname()[1]}", read_timeout_s=0.1)
        with pytest.raises(AwsUnavailableError, match=r"no answer.*timed out"):
            wire.call("BatchGetItem", {}, "t")


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
