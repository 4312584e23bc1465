"""SageMaker training jobs: the request, checked before it is sent; start; status."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import ConfigError, TrainingSetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.aws import AwsSettings


# Limits of CreateTrainingJob, from the API's model.
MOST_HYPERPARAMETERS = 100
MOST_HYPERPARAMETER_NAME_CHARS = 256
MOST_HYPERPARAMETER_CHARS = 2_500
MOST_CHANNELS = 20
MOST_TAGS = 50
MOST_IMAGE_CHARS = 255
MOST_S3_URI_CHARS = 1_024
JOB_NAME = r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"
MOST_JOB_NAME_CHARS = 63
CHANNEL_NAME = r"[A-Za-z0-9\.\-_]{1,64}"
ROLE_ARN = r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+"


@dataclass(frozen=True)
class TrainingJob:
    """A training job as SageMaker describes it.

    Attributes:
        status: `InProgress`, `Completed`, `Failed`, `Stopping` or `Stopped`.
        secondary_status: what it is doing, for example `Downloading`.
        failure_reason: empty unless it failed.
        model_artifacts: S3 URI of model.tar.gz; empty until there is one.
        billable_s: seconds that are billed, so far 0 while it runs.
    """

    name: str
    arn: str
    status: str
    secondary_status: str
    failure_reason: str
    model_artifacts: str
    billable_s: int


def training_job_request(
    name: str,
    *,
    role_arn: str,
    image: str,
    channels: Sequence[Mapping[str, Any]],
    output_path: str,
    instance_type: str = "ml.m5.xlarge",
    instance_count: int = 1,
    volume_gb: int = 30,
    max_runtime_s: int = 86_400,
    hyperparameters: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The request of CreateTrainingJob, as a plain dict to which anything else can be added.

    Args:
        name: at most 63 letters, digits and hyphens, unique in account and region.
        role_arn: role that SageMaker assumes; it reads the channels and writes the output.
        image: URI of the training image in ECR.
        channels: `TrainingSet.channels()`, and others if need be; at most 20.
        output_path: S3 URI below which `<name>/output/model.tar.gz` is written.
        instance_type: for example `ml.m5.xlarge`.
        instance_count: at least 1.
        volume_gb: disk of each instance, in GB; in File mode it holds the channels.
        max_runtime_s: seconds after which the job is stopped.
        hyperparameters: at most 100; see `hyperparameter_strings`.
        tags: at most 50.

    Raises:
        ConfigError: a value beyond SageMaker's limits.
        TrainingSetError: channels beyond them.
    """
    _check_text("job name", name, JOB_NAME, MOST_JOB_NAME_CHARS)
    _check_text("role_arn", role_arn, ROLE_ARN, 2_048)
    _check_text("image", image, r"\S+", MOST_IMAGE_CHARS)
    _check_text("output_path", output_path, r"s3://[^/]+/?.*", MOST_S3_URI_CHARS)
    _check_text("instance_type", instance_type, r"ml\.[a-z0-9-]+\.[a-z0-9]+", 64)
    for field, number in (
        ("instance_count", instance_count),
        ("volume_gb", volume_gb),
        ("max_runtime_s", max_runtime_s),
    ):
        if number < 1:
            raise ConfigError(f"Training job `{name}`: {field} is {number}; it must be 1 or more.")
    _check_channels(name, channels)
    if len(tags or {}) > MOST_TAGS:
        raise ConfigError(f"Training job `{name}` has {len(tags or {})} tags; the most are 50.")
    return {
        "TrainingJobName": name,
        "RoleArn": role_arn,
        "AlgorithmSpecification": {"TrainingImage": image, "TrainingInputMode": "File"},
        "HyperParameters": hyperparameter_strings(hyperparameters or {}),
        "InputDataConfig": [dict(channel) for channel in channels],
        "OutputDataConfig": {"S3OutputPath": output_path},
        "ResourceConfig": {
            "InstanceType": instance_type,
            "InstanceCount": instance_count,
            "VolumeSizeInGB": volume_gb,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": max_runtime_s},
        "Tags": [{"Key": key, "Value": value} for key, value in (tags or {}).items()],
    }


def hyperparameter_strings(hyperparameters: Mapping[str, Any]) -> dict[str, str]:
    """Hyperparameters as SageMaker takes them: strings as they are, other values as JSON.

    Raises:
        ConfigError: more than 100, a name over 256 or a value over 2,500 characters, or a value
            that JSON cannot hold.
    """
    if len(hyperparameters) > MOST_HYPERPARAMETERS:
        raise ConfigError(
            f"{len(hyperparameters)} hyperparameters: SageMaker takes {MOST_HYPERPARAMETERS}. "
            "Put some of them into one JSON value, or into a file of a channel."
        )
    return {name: _hyperparameter(name, value) for name, value in hyperparameters.items()}


def _hyperparameter(name: str, value: Any) -> str:
    if len(name) > MOST_HYPERPARAMETER_NAME_CHARS:
        raise ConfigError(
            f"Hyperparameter `{name[:40]}...` has a name of {len(name)} characters; the most are "
            f"{MOST_HYPERPARAMETER_NAME_CHARS}."
        )
    try:
        text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"Hyperparameter `{name}` cannot be written as JSON: {error}. "
            "Give it as a string, number, boolean, list or mapping of these."
        ) from error
    if len(text) > MOST_HYPERPARAMETER_CHARS:
        raise ConfigError(
            f"Hyperparameter `{name}` has {len(text)} characters; SageMaker takes "
            f"{MOST_HYPERPARAMETER_CHARS}. Put it into a file of a channel."
        )
    return text


def create_training_job(request: Mapping[str, Any], aws: AwsSettings) -> str:
    """Start a training job.

    Args:
        request: of `training_job_request`, with whatever was added to it.
        aws: how to reach SageMaker.

    Returns:
        The job's ARN.

    Raises:
        AwsError: SageMaker refused; the message names the job.
    """
    client = aws_access.client("sagemaker", aws)
    with aws_access.translated("sagemaker", f"training job `{request['TrainingJobName']}`"):
        arn: str = client.create_training_job(**request)["TrainingJobArn"]
        return arn


def describe_training_job(name: str, aws: AwsSettings) -> TrainingJob:
    """A training job's status.

    Raises:
        AwsError: SageMaker refused, or knows no such job.
    """
    client = aws_access.client("sagemaker", aws)
    with aws_access.translated("sagemaker", f"training job `{name}`"):
        found = client.describe_training_job(TrainingJobName=name)
    return TrainingJob(
        name=found["TrainingJobName"],
        arn=found["TrainingJobArn"],
        status=found["TrainingJobStatus"],
        secondary_status=found.get("SecondaryStatus", ""),
        failure_reason=found.get("FailureReason", ""),
        model_artifacts=found.get("ModelArtifacts", {}).get("S3ModelArtifacts", ""),
        billable_s=found.get("BillableTimeInSeconds", 0),
    )


def _check_text(field: str, value: str, pattern: str, most_chars: int) -> None:
    if len(value) > most_chars:
        raise ConfigError(
            f"Training job: {field} `{value}` has {len(value)} characters; the most are "
            f"{most_chars}."
        )
    if not re.fullmatch(pattern, value):
        raise ConfigError(f"Training job: {field} `{value}` does not match `{pattern}`.")


def _check_channels(job: str, channels: Sequence[Mapping[str, Any]]) -> None:
    if not 1 <= len(channels) <= MOST_CHANNELS:
        raise TrainingSetError(
            f"Training job `{job}` has {len(channels)} channels; it needs 1 to {MOST_CHANNELS}."
        )
    names = [channel["ChannelName"] for channel in channels]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TrainingSetError(f"Training job `{job}` has more than one channel {repeated}.")
    for name in names:
        if not re.fullmatch(CHANNEL_NAME, name):
            raise TrainingSetError(
                f"Training job `{job}`: channel `{name}` does not match `{CHANNEL_NAME}`."
            )
