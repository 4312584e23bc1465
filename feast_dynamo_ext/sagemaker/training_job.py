"""SageMaker training jobs: names, and the request, checked before it is sent."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import ConfigError, TrainingSetError
from feast_dynamo_ext.sagemaker.request_check import check_request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast_dynamo_ext.aws import AwsSettings


MOST_JOB_NAME_CHARS = 63
DIGEST_CHARS = 12
"""Of a job's name: 48 bits of what makes two jobs the same."""

# What the service model says of these, for messages that know more than the model.
MOST_HYPERPARAMETERS = 100
MOST_HYPERPARAMETER_CHARS = 2_500


@dataclass(frozen=True)
class Vpc:
    """The network that a job's instances are in."""

    subnets: Sequence[str]
    security_groups: Sequence[str]


@dataclass(frozen=True)
class Spot:
    """Instances that AWS may take away, at a lower price.

    Attributes:
        max_wait_s: seconds that job and waiting for instances may take together; at least
            `max_runtime_s`.
        checkpoints: S3 URI that `local_path` is copied to while the job runs, and from when it
            goes on. Without one an interrupted job begins anew.
        local_path: the folder in the container.
    """

    max_wait_s: int
    checkpoints: str | None = None
    local_path: str = "/opt/ml/checkpoints"


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
    kms_key: str | None = None,
    volume_kms_key: str | None = None,
    vpc: Vpc | None = None,
    spot: Spot | None = None,
    retries: int = 0,
    environment: Mapping[str, str] | None = None,
    metrics: Mapping[str, str] | None = None,
    network_isolation: bool = False,
    encrypt_traffic: bool = False,
) -> dict[str, Any]:
    """The request of CreateTrainingJob, as a plain dict to which anything else can be added.

    It is held against AWS's service model; see `check_request`.

    Args:
        name: at most 63 letters, digits and hyphens, unique in account and region; `job_name`
            makes one.
        role_arn: role that SageMaker assumes; it reads the channels and writes the output.
        image: URI of the training image in ECR; `image_uri` knows AWS's own.
        channels: `TrainingSet.channels()`, and others if need be; at most 20.
        output_path: S3 URI below which `<name>/output/model.tar.gz` is written.
        instance_type: for example `ml.m5.xlarge`.
        instance_count: at least 1.
        volume_gb: disk of each instance, in GB; in File mode it holds the channels.
        max_runtime_s: seconds after which the job is stopped.
        hyperparameters: at most 100; see `hyperparameter_strings`.
        tags: at most 50.
        kms_key: KMS key (ARN, id or alias) that encrypts what the job writes to S3.
        volume_kms_key: KMS key that encrypts the instances' disks.
        vpc: the job's network; without one it is SageMaker's own.
        spot: run on spot instances.
        retries: how often a job that fails by a fault of SageMaker's is begun again, 0 to 30.
        environment: variables of the container.
        metrics: a regular expression by metric name, which SageMaker reads the log with; its
            first group is the value.
        network_isolation: the container reaches no network at all, S3 for a script included.
        encrypt_traffic: between the instances of one job.

    Raises:
        RequestError: what AWS's service model does not allow, all of it.
        ConfigError: a value beyond SageMaker's limits that its model does not state.
        TrainingSetError: two channels of one name, or none.
    """
    request: dict[str, Any] = {
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
    if metrics:
        request["AlgorithmSpecification"]["MetricDefinitions"] = [
            {"Name": metric, "Regex": regex} for metric, regex in metrics.items()
        ]
    if kms_key is not None:
        request["OutputDataConfig"]["KmsKeyId"] = kms_key
    if volume_kms_key is not None:
        request["ResourceConfig"]["VolumeKmsKeyId"] = volume_kms_key
    if vpc is not None:
        request["VpcConfig"] = {
            "SecurityGroupIds": list(vpc.security_groups),
            "Subnets": list(vpc.subnets),
        }
    if spot is not None:
        request["EnableManagedSpotTraining"] = True
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = spot.max_wait_s
        if spot.checkpoints is not None:
            checkpoints = {"S3Uri": spot.checkpoints, "LocalPath": spot.local_path}
            request["CheckpointConfig"] = checkpoints
    if retries:
        request["RetryStrategy"] = {"MaximumRetryAttempts": retries}
    if environment:
        request["Environment"] = dict(environment)
    if network_isolation:
        request["EnableNetworkIsolation"] = True
    if encrypt_traffic:
        request["EnableInterContainerTrafficEncryption"] = True
    check_training_job(request)
    return request


def check_training_job(request: Mapping[str, Any]) -> None:
    """Refuse a request of CreateTrainingJob that SageMaker would refuse.

    Raises: as `training_job_request`.
    """
    subject = f"training job `{request.get('TrainingJobName')}`"
    check_request("CreateTrainingJob", request, subject=subject)
    # What SageMaker refuses as well, and its model does not say.
    resources = request.get("ResourceConfig", {})
    for member in ("InstanceCount", "VolumeSizeInGB"):
        if resources.get(member, 1) < 1:
            raise ConfigError(
                f"The {subject}: `ResourceConfig.{member}` is {resources[member]}; it must be 1 "
                "or more."
            )
    names = Counter(channel["ChannelName"] for channel in request.get("InputDataConfig", []))
    repeated = sorted(name for name, times in names.items() if times > 1)
    if repeated or not names:
        what = f"more than one channel {repeated}" if repeated else "no channel"
        raise TrainingSetError(f"The {subject} has {what}.")
    _check_time(subject, request)
    _check_tags(subject, request.get("Tags", []))
    for uri in (request["OutputDataConfig"]["S3OutputPath"],):
        if not uri.startswith("s3://"):
            raise ConfigError(f"The {subject} writes to `{uri}`, which is no s3:// URI.")
    for metric in request.get("AlgorithmSpecification", {}).get("MetricDefinitions", []):
        _check_metric(subject, metric)


def _check_time(subject: str, request: Mapping[str, Any]) -> None:
    limits = request.get("StoppingCondition", {})
    wait_s, runtime_s = limits.get("MaxWaitTimeInSeconds"), limits.get("MaxRuntimeInSeconds", 0)
    is_spot = request.get("EnableManagedSpotTraining", False)
    if is_spot != (wait_s is not None):
        raise ConfigError(
            f"The {subject}: a job on spot instances needs `StoppingCondition."
            "MaxWaitTimeInSeconds`, and no other job takes it."
        )
    if wait_s is not None and wait_s < runtime_s:
        raise ConfigError(
            f"The {subject} may run for {runtime_s} s and wait for {wait_s} s in all: the wait "
            "holds the run, so it must be as long at least."
        )


def _check_tags(subject: str, tags: Sequence[Mapping[str, str]]) -> None:
    keys = Counter(tag["Key"] for tag in tags)
    wrong = sorted(key for key, times in keys.items() if times > 1 or key.startswith("aws:"))
    if wrong:
        raise ConfigError(
            f"The {subject} has tags {wrong}: a key may be there once, and not begin with `aws:`."
        )


def _check_metric(subject: str, metric: Mapping[str, str]) -> None:
    try:
        groups = re.compile(metric["Regex"]).groups
    except re.error as error:
        raise ConfigError(
            f"The {subject}: metric `{metric['Name']}` has the pattern `{metric['Regex']}`: "
            f"{error}."
        ) from error
    if not groups:
        raise ConfigError(
            f"The {subject}: metric `{metric['Name']}` has the pattern `{metric['Regex']}` "
            "without a group; what the first one finds is the value, as in `auc=([0-9.]+)`."
        )


def request_token(request: Mapping[str, Any], salt: str = "") -> str:
    """SHA-256 of what makes two jobs the same: the request without its name and tags.

    Args:
        request: of `training_job_request`.
        salt: what else tells jobs apart, as the hash of a training set's manifest.
    """
    inputs = {key: value for key, value in request.items() if key not in NOT_OF_THE_JOB}
    text = json.dumps([inputs, salt], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


NOT_OF_THE_JOB = frozenset({"TrainingJobName", "Tags"})


def job_name(base: str, token: str) -> str:
    """A job's name: the same for the same token, at most 63 letters, digits and hyphens.

    Args:
        base: for people, for example the training set's name; what SageMaker does not take
            becomes a hyphen.
        token: of `request_token`.
    """
    words = re.sub(r"[^A-Za-z0-9]+", "-", base).strip("-") or "job"
    digest = token[:DIGEST_CHARS]
    return f"{words[: MOST_JOB_NAME_CHARS - len(digest) - 1].rstrip('-')}-{digest}"


def hyperparameter_strings(hyperparameters: Mapping[str, Any]) -> dict[str, str]:
    """Hyperparameters as SageMaker takes them: strings as they are, other values as JSON.

    Raises:
        ConfigError: more than 100, a value over 2,500 characters, or one that JSON cannot hold.
    """
    if len(hyperparameters) > MOST_HYPERPARAMETERS:
        raise ConfigError(
            f"{len(hyperparameters)} hyperparameters: SageMaker takes {MOST_HYPERPARAMETERS}. "
            "Put some of them into one JSON value, or into a file of a channel."
        )
    return {name: _hyperparameter(name, value) for name, value in hyperparameters.items()}


def _hyperparameter(name: str, value: Any) -> str:
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


@dataclass(frozen=True)
class TrainingJob:
    """A training job as SageMaker describes it.

    Attributes:
        status: `InProgress`, `Completed`, `Failed`, `Stopping` or `Stopped`.
        secondary_status: what it is doing, for example `Downloading`.
        failure_reason: empty unless it failed.
        model_artifacts: S3 URI of model.tar.gz; empty until there is one.
        billable_s: seconds that are billed, so far 0 while it runs.
        metrics: last value of each metric that SageMaker read in the log.
        last_message: what its last stage said.
        description: SageMaker's whole answer.
    """

    name: str
    arn: str
    status: str
    secondary_status: str
    failure_reason: str
    model_artifacts: str
    billable_s: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    last_message: str = ""
    description: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ("Completed", "Failed", "Stopped")


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
        metrics={
            metric["MetricName"]: metric["Value"]
            for metric in found.get("FinalMetricDataList", [])
        },
        last_message=(found.get("SecondaryStatusTransitions") or [{}])[-1].get(
            "StatusMessage", ""
        ),
        description=found,
    )
