"""Endpoints on SageMaker: a model, its endpoint config, and the endpoint, through boto3.

Model and config are named after the endpoint and a hash of what they say, so that deploying the
same again changes nothing, and an update leaves what served before in place to go back to.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import ConfigError, ResourceNotFoundError, ServingError
from feast_dynamo_ext.sagemaker.request_check import check_request
from feast_dynamo_ext.sagemaker.serving.package import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.aws import AwsSettings

VARIANT = "AllTraffic"
HASH_CHARS = 12
MOST_NAME_CHARS = 63 - HASH_CHARS - 1
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
OWNER_TAG = "feast-dynamo:endpoint"
SERVERLESS_MB = (1_024, 2_048, 3_072, 4_096, 5_120, 6_144)


@dataclass(frozen=True)
class Serverless:
    """Capacity that follows the requests.

    Attributes:
        memory_mb: 1024 to 6144, in steps of 1024.
        max_concurrency: requests at once.
    """

    memory_mb: int = 4_096
    max_concurrency: int = 5


@dataclass(frozen=True)
class Canary:
    """How an update shifts traffic: a part first, all of it when no alarm went off.

    Attributes:
        percent: of the capacity, 5 to 50.
        wait_s: seconds until the rest follows.
        keep_old_s: seconds that the old fleet is kept after that.
        alarms: CloudWatch alarms, any of which rolls the update back.
    """

    percent: int = 10
    wait_s: int = 300
    keep_old_s: int = 120
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True)
class EndpointSpec:
    """An endpoint as it should be.

    Attributes:
        name: at most 50 letters, digits and hyphens.
        image: URI of the container's image in ECR.
        model_data: s3:// URI of the packaged archive.
        role_arn: role of the endpoint: it reads the archive and the DynamoDB tables.
        instance_type: of a real-time endpoint, for example `ml.m5.large`.
        instance_count: of it.
        serverless: in place of instances.
        environment: further variables of the container.
        workers: of the model server, each with a store of its own.
        subnets: of a VPC, with `security_groups`.
        kms_key_id: key of the instances' volumes.
        canary: how an update shifts traffic; None for all at once.
        tags: of all three.
    """

    name: str
    image: str
    model_data: str
    role_arn: str
    instance_type: str = "ml.m5.large"
    instance_count: int = 1
    serverless: Serverless | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    workers: int = 1
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    kms_key_id: str | None = None
    canary: Canary | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EndpointRequests:
    """The requests that make an endpoint, as boto3 takes them."""

    model: dict[str, Any]
    config: dict[str, Any]
    endpoint: dict[str, Any]
    update: dict[str, Any]


@dataclass(frozen=True)
class Deployed:
    """What a deployment did.

    Attributes:
        name: of the endpoint.
        action: `created`, `updated` or `unchanged`.
        model: name of the model.
        config: name of the endpoint config.
        before: config that served before an update.
    """

    name: str
    action: str
    model: str
    config: str
    before: str | None = None


def endpoint_requests(spec: EndpointSpec) -> EndpointRequests:
    """The requests of an endpoint, each held against AWS's service model.

    Raises:
        ConfigError: a setting that contradicts another.
        RequestError: naming all that AWS would refuse.
    """
    _check(spec)
    tags = [
        {"Key": key, "Value": value} for key, value in {**spec.tags, OWNER_TAG: spec.name}.items()
    ]
    model = _model_request(spec)
    variant = _variant(spec)
    config: dict[str, Any] = {"ProductionVariants": [variant]}
    if spec.kms_key_id:
        config["KmsKeyId"] = spec.kms_key_id
    digest = hashlib.sha256(json.dumps([model, config], sort_keys=True).encode()).hexdigest()
    name = f"{spec.name}-{digest[:HASH_CHARS]}"
    variant["ModelName"] = name
    model |= {"ModelName": name, "Tags": tags}
    config |= {"EndpointConfigName": name, "Tags": tags}
    endpoint = {"EndpointName": spec.name, "EndpointConfigName": name, "Tags": tags}
    update: dict[str, Any] = {"EndpointName": spec.name, "EndpointConfigName": name}
    if spec.canary is not None:
        update["DeploymentConfig"] = _canary(spec.canary)
    found = EndpointRequests(model, config, endpoint, update)
    for operation, request in (
        ("CreateModel", model),
        ("CreateEndpointConfig", config),
        ("CreateEndpoint", endpoint),
        ("UpdateEndpoint", update),
    ):
        check_request(operation, request, subject=f"endpoint `{spec.name}`")
    return found


def _check(spec: EndpointSpec) -> None:
    _check_name(spec.name)
    if len(spec.name) > MOST_NAME_CHARS:
        raise ConfigError(
            f"Endpoint name `{spec.name}` has {len(spec.name)} characters; the most are "
            f"{MOST_NAME_CHARS}, as model and config are named after it and a hash."
        )
    if spec.serverless is not None:
        if spec.serverless.memory_mb not in SERVERLESS_MB:
            raise ConfigError(
                f"Endpoint `{spec.name}`: a serverless endpoint has 1024 to 6144 MB in steps of "
                f"1024, not {spec.serverless.memory_mb}."
            )
        if spec.canary is not None or spec.subnets or spec.kms_key_id:
            raise ConfigError(
                f"Endpoint `{spec.name}`: a serverless endpoint takes no canary, VPC or KMS key."
            )
    if bool(spec.subnets) != bool(spec.security_groups):
        raise ConfigError(f"Endpoint `{spec.name}`: a VPC needs both subnets and security groups.")


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"Endpoint name `{name}`: use letters, digits and hyphens, none at an end."
        )


def _model_request(spec: EndpointSpec) -> dict[str, Any]:
    container = {
        "Image": spec.image,
        "ModelDataUrl": spec.model_data,
        "Environment": {
            "SAGEMAKER_PROGRAM": PROGRAM,
            "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
            # Each is a process that imports Feast and opens the store.
            "SAGEMAKER_MODEL_SERVER_WORKERS": str(spec.workers),
            **spec.environment,
        },
    }
    request: dict[str, Any] = {"PrimaryContainer": container, "ExecutionRoleArn": spec.role_arn}
    if spec.subnets:
        request["VpcConfig"] = {
            "Subnets": [*spec.subnets],
            "SecurityGroupIds": [*spec.security_groups],
        }
    return request


def _variant(spec: EndpointSpec) -> dict[str, Any]:
    if spec.serverless is not None:
        serverless = {
            "MemorySizeInMB": spec.serverless.memory_mb,
            "MaxConcurrency": spec.serverless.max_concurrency,
        }
        return {"VariantName": VARIANT, "ServerlessConfig": serverless}
    return {
        "VariantName": VARIANT,
        "InstanceType": spec.instance_type,
        "InitialInstanceCount": spec.instance_count,
        "InitialVariantWeight": 1.0,
    }


def _canary(canary: Canary) -> dict[str, Any]:
    config: dict[str, Any] = {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": {
                "Type": "CANARY",
                "WaitIntervalInSeconds": canary.wait_s,
                "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": canary.percent},
            },
            "TerminationWaitInSeconds": canary.keep_old_s,
        }
    }
    if canary.alarms:
        config["AutoRollbackConfiguration"] = {
            "Alarms": [{"AlarmName": name} for name in canary.alarms]
        }
    return config


def deploy(spec: EndpointSpec, aws: AwsSettings) -> Deployed:
    """Create an endpoint, or bring it to what it should be; returns before it is in service.

    Raises:
        ConfigError, RequestError: as `endpoint_requests`; nothing was sent.
        AwsError: SageMaker refused.
    """
    requests = endpoint_requests(spec)
    client = aws_access.client("sagemaker", aws)
    name = str(requests.model["ModelName"])
    with aws_access.translated("sagemaker", f"endpoint `{spec.name}`"):
        serving = _config_of(client, spec.name)
        if serving == name:
            return Deployed(spec.name, "unchanged", name, name)
        if not _exists(client.describe_model, ModelName=name):
            client.create_model(**requests.model)
        if not _exists(client.describe_endpoint_config, EndpointConfigName=name):
            client.create_endpoint_config(**requests.config)
        if serving is None:
            client.create_endpoint(**requests.endpoint)
            return Deployed(spec.name, "created", name, name)
        client.update_endpoint(**requests.update)
        return Deployed(spec.name, "updated", name, name, before=serving)


def _found(describe: Any, **name: str) -> dict[str, Any] | None:
    """What SageMaker describes; it says that there is none as a ValidationException."""
    from botocore.exceptions import ClientError

    try:
        found: dict[str, Any] = describe(**name)
    except ClientError as error:
        details = error.response.get("Error", {})
        is_absent = "Could not find" in details.get("Message", "")
        if details.get("Code") == "ValidationException" and is_absent:
            return None
        raise
    return found


def _exists(describe: Any, **name: str) -> bool:
    return _found(describe, **name) is not None


def _config_of(client: Any, endpoint: str) -> str | None:
    found = _found(client.describe_endpoint, EndpointName=endpoint)
    return None if found is None else str(found["EndpointConfigName"])


@dataclass(frozen=True)
class Deletable:
    """What the deletion of an endpoint deletes.

    Attributes:
        endpoint: its name; None where it is gone already.
        configs: names of endpoint configs that were made for it.
        models: names of models that were made for it.
    """

    endpoint: str | None
    configs: tuple[str, ...]
    models: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All of it, in words."""
        return [
            *([f"endpoint {self.endpoint}"] if self.endpoint else []),
            *(f"endpoint config {name}" for name in self.configs),
            *(f"model {name}" for name in self.models),
        ]


def deletable(name: str, aws: AwsSettings) -> Deletable:
    """List what `deploy` has made for an endpoint, by its tag: nothing else is ever deleted.

    Raises:
        ResourceNotFoundError: there is nothing of that name.
        ServingError: the endpoint was made by others.
        AwsError: SageMaker refused.
    """
    _check_name(name)
    client = aws_access.client("sagemaker", aws)
    with aws_access.translated("sagemaker", f"endpoint `{name}`"):
        found = _found(client.describe_endpoint, EndpointName=name)
        if found is not None and not _is_owned(client, found["EndpointArn"], name):
            raise ServingError(
                f"Endpoint `{name}` lacks the tag `{OWNER_TAG}`: another tool made it, and should "
                "delete it."
            )
        configs = _owned(
            client, "list_endpoint_configs", "EndpointConfigs", "EndpointConfig", name
        )
        models = _owned(client, "list_models", "Models", "Model", name)
    if found is None and not configs and not models:
        raise ResourceNotFoundError(f"There is no endpoint `{name}`, nor anything made for it.")
    return Deletable(name if found else None, configs, models)


def _owned(client: Any, operation: str, members: str, kind: str, name: str) -> tuple[str, ...]:
    pages = client.get_paginator(operation).paginate(NameContains=f"{name}-")
    ours = re.compile(f"{re.escape(name)}-[0-9a-f]{{{HASH_CHARS}}}")
    return tuple(
        found[f"{kind}Name"]
        for page in pages
        for found in page[members]
        if ours.fullmatch(found[f"{kind}Name"]) and _is_owned(client, found[f"{kind}Arn"], name)
    )


def _is_owned(client: Any, arn: str, name: str) -> bool:
    tags: Sequence[dict[str, str]] = client.list_tags(ResourceArn=arn)["Tags"]
    return {"Key": OWNER_TAG, "Value": name} in tags


def delete(found: Deletable, aws: AwsSettings) -> None:
    """Delete what `deletable` has listed: the endpoint first, which what is left served.

    Raises:
        AwsError: SageMaker refused; what is left can be listed again.
    """
    client = aws_access.client("sagemaker", aws)
    with aws_access.translated("sagemaker", f"endpoint `{found.endpoint}`"):
        if found.endpoint is not None:
            client.delete_endpoint(EndpointName=found.endpoint)
        for name in found.configs:
            client.delete_endpoint_config(EndpointConfigName=name)
        for name in found.models:
            client.delete_model(ModelName=name)


def invoke(
    name: str,
    body: bytes,
    aws: AwsSettings,
    *,
    content_type: str = "application/json",
    accept: str = "application/json",
) -> tuple[bytes, str]:
    """Send a request to an endpoint.

    Returns:
        The answer, and what the features of its rows lack (of the header).

    Raises:
        ServingError: the model refused; with its own sentence.
        AwsError: SageMaker refused.
    """
    from botocore.exceptions import ClientError

    client = aws_access.client("sagemaker-runtime", aws)
    with aws_access.translated("sagemaker", f"endpoint `{name}`"):
        try:
            answer = client.invoke_endpoint(
                EndpointName=name, Body=body, ContentType=content_type, Accept=accept
            )
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != "ModelError":
                raise
            message = error.response.get("OriginalMessage", str(error))
            raise ServingError(f"Endpoint `{name}` answered: {message}") from error
        return answer["Body"].read(), answer.get("CustomAttributes", "")
