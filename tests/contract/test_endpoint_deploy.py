"""Endpoints on SageMaker: made and deleted on moto, updated against a server that records."""

from __future__ import annotations

import json
import uuid

import boto3
import pytest
from click.testing import CliRunner
from repos import REGION

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import (
    ConfigError,
    RequestError,
    ResourceNotFoundError,
    ServingError,
)
from feast_dynamo_ext.sagemaker.request_check import request_problems
from feast_dynamo_ext.sagemaker.serving.deploy import (
    Canary,
    EndpointSpec,
    Serverless,
    deletable,
    delete,
    deploy,
    endpoint_requests,
    invoke,
)

ROLE = "arn:aws:iam::123456789012:role/endpoint"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/churn:1"


def spec(name="churn", **more) -> EndpointSpec:
    return EndpointSpec(
        **{"name": name, "image": IMAGE, "model_data": "s3://b/m.tar.gz", "role_arn": ROLE, **more}
    )


@pytest.fixture
def aws(moto_endpoint):
    return AwsSettings(REGION, moto_endpoint)


@pytest.fixture
def client(moto_endpoint):
    return boto3.client("sagemaker", region_name=REGION, endpoint_url=moto_endpoint)


@pytest.fixture
def name():
    return f"e{uuid.uuid4().hex[:10]}"


def test_an_endpoint_is_made_once_and_deleted_with_what_was_made_for_it(aws, client, name):
    made = deploy(spec(name, tags={"team": "a"}), aws)
    assert made.action == "created"
    assert deploy(spec(name, tags={"team": "a"}), aws).action == "unchanged"
    found = client.describe_endpoint(EndpointName=name)
    assert found["EndpointConfigName"] == made.config
    config = client.describe_endpoint_config(EndpointConfigName=made.config)
    (variant,) = config["ProductionVariants"]
    assert (variant["ModelName"], variant["InstanceType"]) == (made.model, "ml.m5.large")
    model = client.describe_model(ModelName=made.model)["PrimaryContainer"]
    assert model["ModelDataUrl"] == "s3://b/m.tar.gz"
    assert model["Environment"]["SAGEMAKER_PROGRAM"] == "serve_features.py"
    # Of a like name, but of others: it stays.
    others = f"{name}-0123456789ab"
    client.create_model(ModelName=others, ExecutionRoleArn=ROLE, PrimaryContainer={"Image": IMAGE})

    listed = deletable(name, aws)
    assert listed.names == [
        f"endpoint {name}",
        f"endpoint config {made.config}",
        f"model {made.model}",
    ]
    delete(listed, aws)
    with pytest.raises(ResourceNotFoundError, match=f"There is no endpoint `{name}`"):
        deletable(name, aws)
    assert client.describe_model(ModelName=others)["ModelName"] == others


def test_an_endpoint_of_others_is_not_deleted(aws, client, name):
    client.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer={"Image": IMAGE})
    variant = {
        "VariantName": "a",
        "ModelName": name,
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
    }
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    client.create_endpoint(EndpointName=name, EndpointConfigName=name)
    with pytest.raises(ServingError, match="another tool made it"):
        deletable(name, aws)


def test_an_update_shifts_traffic_as_a_canary(scripted_http):
    absent = (400, {"__type": "ValidationException", "message": "Could not find model x"})
    endpoint = {
        "EndpointName": "churn",
        "EndpointArn": "arn:aws:sagemaker:us-east-1:123456789012:endpoint/churn",
        "EndpointConfigName": "churn-before",
        "EndpointStatus": "InService",
        "CreationTime": 1.0,
        "LastModifiedTime": 1.0,
    }
    url = scripted_http(
        [
            (200, endpoint),
            absent,
            (200, {"ModelArn": "arn:aws:sagemaker:us-east-1:123456789012:model/m"}),
            absent,
            (200, {"EndpointConfigArn": "arn:aws:sagemaker:us-east-1:123456789012:c/c"}),
            (200, {"EndpointArn": endpoint["EndpointArn"]}),
        ]
    )
    canary = Canary(20, 600, 60, alarms=("errors",))
    done = deploy(spec(canary=canary), AwsSettings(REGION, url))
    assert (done.action, done.before) == ("updated", "churn-before")
    operations = [h["X-Amz-Target"].partition(".")[2] for h in scripted_http.headers]
    assert operations == [
        "DescribeEndpoint",
        "DescribeModel",
        "CreateModel",
        "DescribeEndpointConfig",
        "CreateEndpointConfig",
        "UpdateEndpoint",
    ]
    assert json.loads(scripted_http.requests[-1]) == {
        "EndpointName": "churn",
        "EndpointConfigName": done.config,
        "DeploymentConfig": {
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": {
                    "Type": "CANARY",
                    "WaitIntervalInSeconds": 600,
                    "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 20},
                },
                "TerminationWaitInSeconds": 60,
            },
            "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "errors"}]},
        },
    }


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"name": "a_b"}, ConfigError, "letters, digits and hyphens"),
        ({"name": "a" * 51}, ConfigError, "51 characters; the most are 50"),
        ({"serverless": Serverless(5_000)}, ConfigError, "not 5000"),
        ({"serverless": Serverless(), "canary": Canary()}, ConfigError, "takes no canary"),
        ({"subnets": ("subnet-1",)}, ConfigError, "both subnets and security groups"),
        ({"instance_type": "ml.m9.huge"}, RequestError, "InstanceType"),
        ({"role_arn": "me"}, RequestError, "ExecutionRoleArn"),
        ({"canary": Canary(wait_s=9_000)}, RequestError, "WaitIntervalInSeconds"),
    ],
)
def test_what_is_refused_before_anything_is_sent(more, error, words):
    with pytest.raises(error, match=words):
        deploy(spec(**more), AwsSettings(REGION, "http://127.0.0.1:9"))


def test_every_kind_passes_the_service_model():
    vpc = {"subnets": ("subnet-1",), "security_groups": ("sg-1",), "kms_key_id": "key"}
    for one in (spec(), spec(**vpc), spec(serverless=Serverless()), spec(canary=Canary())):
        requests = endpoint_requests(one)
        assert request_problems("CreateModel", requests.model) == ()
        assert request_problems("UpdateEndpoint", requests.update) == ()
    names = {endpoint_requests(one).model["ModelName"] for one in (spec(), spec(workers=2))}
    assert len(names) == 2


def test_a_refusal_of_the_model_keeps_its_sentence(scripted_http):
    refusal = {"Message": "m", "OriginalMessage": '{"error": "Row 1 lacks `id`."}'}
    url = scripted_http(
        [
            (200, b"1\n", {"x-Amzn-SageMaker-Custom-Attributes": "missing=1"}),
            (424, refusal, {"x-amzn-errortype": "ModelError"}),
        ]
    )
    aws = AwsSettings(REGION, url)
    assert invoke("churn", b"{}", aws) == (b"1\n", "missing=1")
    with pytest.raises(ServingError, match=r"Row 1 lacks `id`\."):
        invoke("churn", b"{}", aws)


def test_the_commands(aws, moto_endpoint, name, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    monkeypatch.setenv("AWS_REGION", REGION)
    run = CliRunner().invoke
    given = ["--archive", "s3://b/m.tar.gz", "--image", IMAGE, "--role", ROLE]
    dry = run(main, ["endpoint", "deploy", name, *given, "--dry-run", "--serverless", "--json"])
    assert dry.exit_code == 0, dry.output
    variant = json.loads(dry.output)["config"]["ProductionVariants"][0]
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 4096, "MaxConcurrency": 5}
    done = run(main, ["endpoint", "deploy", name, *given, "--env", "A=b"])
    assert done.output.startswith(f"Endpoint {name}: created, config {name}-")
    listed = run(main, ["endpoint", "delete", name, "--json"])
    assert json.loads(listed.output)["deleted"] is False
    assert deletable(name, aws).endpoint == name
    deleted = run(main, ["endpoint", "delete", name, "--yes"])
    assert (deleted.exit_code, deleted.output.count(name)) == (0, 3)
    again = run(main, ["endpoint", "delete", name])
    assert (again.exit_code, again.stderr.count("There is no endpoint")) == (1, 1)
