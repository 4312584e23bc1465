"""Signatures, against botocore's own signer."""

from __future__ import annotations

import datetime as dt

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.dynamo.signing import Endpoint, Signer

printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
urls = st.sampled_from(
    [
        "https://dynamodb.eu-west-1.amazonaws.com",
        "https://dynamodb.eu-west-1.amazonaws.com:443/",
        "http://127.0.0.1:8000",
        "http://[::1]:8000/",
        "https://proxy.internal:8443/a b/./dynamodb/",
    ]
)


def signed_by_botocore(url, region, credentials, body, headers) -> str:
    """The Authorization header that botocore gives the same request at the same time."""
    request = AWSRequest(method="POST", url=url, data=body, headers=headers)
    signer = SigV4Auth(credentials, "dynamodb", region)
    request.context["timestamp"] = headers["X-Amz-Date"]
    canonical = signer.canonical_request(request)
    signature = signer.signature(signer.string_to_sign(request, canonical), request)
    names = signer.signed_headers(signer.headers_to_sign(request))
    scope = signer.scope(request)
    return f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={signature}"


@given(
    url=urls,
    region=st.sampled_from(["eu-west-1", "us-gov-west-1"]),
    access_key=printable,
    secret=printable,
    token=st.none() | printable,
    operation=st.sampled_from(["BatchGetItem", "BatchExecuteStatement"]),
    body=st.binary(min_size=1, max_size=300),
)
def test_equals_botocores_signature(url, region, access_key, secret, token, operation, body):
    credentials = ReadOnlyCredentials(access_key, secret, token, None)
    endpoint = Endpoint.from_url(url)
    headers = Signer(endpoint, region).headers(operation, body, credentials)
    unsigned = {"User-Agent", "Accept-Encoding", "Authorization", "Content-Length", "Host"}
    to_sign = {name: value for name, value in headers.items() if name not in unsigned}
    assert headers["Authorization"] == signed_by_botocore(url, region, credentials, body, to_sign)
    assert headers["Content-Length"] == str(len(body))
    assert headers["X-Amz-Target"] == f"DynamoDB_20120810.{operation}"
    assert ("X-Amz-Security-Token" in headers) == (token is not None)
    assert headers["Host"] == endpoint.authority


def test_requests_carry_the_time_that_aws_said():
    signer = Signer(Endpoint.from_url("http://127.0.0.1:1"), "eu-west-1", skew_s=7_200.0)
    headers = signer.headers("Query", b"{}", ReadOnlyCredentials("a", "b", None, None))
    stamp = dt.datetime.strptime(headers["X-Amz-Date"], "%Y%m%dT%H%M%S%z")
    ahead = stamp - dt.datetime.now(tz=dt.timezone.utc)
    assert 7_100 < ahead.total_seconds() < 7_300


def test_a_key_is_worked_out_anew_for_other_credentials():
    signer = Signer(Endpoint.from_url("http://127.0.0.1:1"), "eu-west-1")
    heads = [
        signer.headers("Query", b"{}", ReadOnlyCredentials("a", secret, None, None))
        for secret in ("one", "two", "one")
    ]
    signatures = [(head["X-Amz-Date"], head["Authorization"].rpartition("=")[2]) for head in heads]
    assert signatures[0][1] != signatures[1][1]
    assert signatures[0][1] == signatures[2][1] or signatures[0][0] != signatures[2][0]


def test_the_host_header_names_a_port_only_where_it_is_not_the_schemes_own():
    assert Endpoint.from_url("https://a.b").authority == "a.b"
    assert Endpoint.from_url("https://a.b:443/").authority == "a.b"
    assert Endpoint.from_url("http://a.b:443/x").authority == "a.b:443"
    assert Endpoint.from_url("http://[::1]:80").authority == "[::1]"
