"""Sessions, roles, profiles and endpoints, against moto's STS and S3."""

from __future__ import annotations

import os

import boto3
import pytest

from feast_dynamo_ext import aws
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import ConfigError, CredentialsError, ResourceNotFoundError
from feast_dynamo_ext.storage import files_of

ROLE = "arn:aws:iam::123456789012:role/features"


@pytest.fixture
def profile(moto_endpoint, tmp_path, monkeypatch) -> str:
    """A named profile that alone knows the endpoint and the credentials."""
    config, credentials = tmp_path / "config", tmp_path / "credentials"
    config.write_text(f"[profile shop]\nregion = eu-west-1\nendpoint_url = {moto_endpoint}\n")
    credentials.write_text("[shop]\naws_access_key_id = AKIASHOP\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    return "shop"


def test_a_profile_gives_region_credentials_and_endpoint(profile, moto_endpoint):
    settings = AwsSettings(profile=profile)
    session = aws.session(settings)
    assert session.region_name == "eu-west-1"
    assert session.get_credentials().access_key == "AKIASHOP"
    assert aws.endpoint_url("s3", settings, session) == moto_endpoint
    assert aws.client("dynamodb", settings).meta.endpoint_url == moto_endpoint


def test_a_role_is_assumed_with_the_profile_and_keeps_its_endpoint(profile, moto_endpoint):
    settings = AwsSettings(profile=profile, role_arn=ROLE)
    session = aws.session(settings)
    assert session.get_credentials().access_key.startswith("ASIA")
    assert session.get_credentials().get_frozen_credentials().token
    assert aws.endpoint_url("s3", settings, session) == moto_endpoint
    identity = aws.client("sts", settings, given=session).get_caller_identity()
    assert identity["Arn"] == "arn:aws:sts::123456789012:assumed-role/features/feast-dynamo-ext"


def test_a_program_that_gives_no_credentials_is_named(profile, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    (tmp_path / "config").write_text(
        "[profile shop]\nregion = eu-west-1\ncredential_process = false\n"
    )
    with pytest.raises(CredentialsError, match=r"profile shop: .*custom-process.*get-caller-id"):
        aws.client("dynamodb", AwsSettings(profile=profile))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"AWS_ENDPOINT_URL": "http://a"}, "http://a"),
        ({"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b"}, "http://b"),
        ({"AWS_ENDPOINT_URL_DYNAMODB": "http://c"}, None),
        (
            {"AWS_ENDPOINT_URL": "http://a", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
            None,
        ),
    ],
)
def test_endpoints_of_the_environment_are_found_as_botocore_finds_them(
    monkeypatch, variables, expected
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = AwsSettings(region="us-east-1")
    session = aws.session(settings)
    assert aws.endpoint_url("s3", settings, session) == expected
    by_botocore = session.client("s3").meta.endpoint_url
    assert by_botocore == (expected or "https://s3.amazonaws.com")


def test_a_file_is_written_and_read_with_an_assumed_role(moto_endpoint, bucket):
    settings = AwsSettings("us-east-1", moto_endpoint, role_arn=ROLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_STS", moto_endpoint)
        filesystem, path = aws.filesystem(f"s3://{bucket}/a/b.bin", settings)
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"hello")
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)
    assert client.get_object(Bucket=bucket, Key="a/b.bin")["Body"].read() == b"hello"


@pytest.mark.parametrize(
    ("uri", "scheme", "path"),
    [
        ("s3://bucket/a?b#c/d", "s3", "bucket/a?b#c/d"),
        ("S3://bucket", "s3", "bucket"),
        ("file:///data/a#1", "file", "/data/a#1"),
        ("/data/a?b", "", "/data/a?b"),
        ("data/x=1", "", "data/x=1"),
    ],
)
def test_nothing_in_a_path_is_a_query(uri, scheme, path):
    assert aws.scheme_and_path(uri) == (scheme, path)


def test_odd_keys_are_written_and_read_as_they_are(moto_endpoint, bucket):
    settings = AwsSettings("us-east-1", moto_endpoint)
    uri = f"s3://{bucket}/odd #1?x=2/b.bin"
    files = files_of(uri, settings)
    with files.new_file(uri) as file:
        file.write(b"hello")
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)
    assert client.get_object(Bucket=bucket, Key="odd #1?x=2/b.bin")["Body"].read() == b"hello"
    filesystem, path = aws.filesystem(uri, settings)
    with filesystem.open_input_stream(path) as stream:
        assert stream.readall() == b"hello"
    assert files.at(uri) == [uri]
    files.delete([uri])
    assert files.at(uri) == []


def test_errors_of_pyarrows_s3_are_ours(moto_endpoint):
    settings = AwsSettings("us-east-1", moto_endpoint)
    filesystem, path = aws.filesystem("s3://no-such-bucket-here/a", settings)
    with (
        pytest.raises(ResourceNotFoundError, match=r"s3 .*on s3://no-such-bucket-here/a"),
        aws.s3_translated("s3://no-such-bucket-here/a"),
        filesystem.open_output_stream(path) as stream,
    ):
        stream.write(b"hello")


def test_the_uri_of_a_file_is_named_where_the_resource_is_none(moto_endpoint):
    filesystem, path = aws.filesystem(
        "s3://no-such-bucket-here/it's a/b.bin", AwsSettings("us-east-1", moto_endpoint)
    )
    for resource, named in (
        ("shop.purchases", "s3://no-such-bucket-here/it's a/b.bin (shop.purchases)"),
        ("s3://no-such-bucket-here/it's a", "s3://no-such-bucket-here/it's a"),
    ):
        with pytest.raises(ResourceNotFoundError) as error, aws.s3_translated(resource):  # noqa: SIM117
            with filesystem.open_output_stream(path) as stream:
                stream.write(b"hello")
        said = str(error.value)
        assert said.startswith(f"s3 PutObject on {named}: NoSuchBucket: The specified bucket does")
        assert said.endswith(
            "Correct the URI where it is declared, or make the bucket: `aws s3 mb "
            "s3://no-such-bucket-here`."
        )


def test_a_scheme_that_is_not_s3_is_refused():
    with pytest.raises(ConfigError, match="not gs://"):
        aws.filesystem("gs://bucket/a", AwsSettings("us-east-1"))
