"""Requests held against AWS's service model; its patterns beside Java itself."""

from __future__ import annotations

import base64
import copy
import enum
import functools
import io
import json
import logging
import re
import shutil
import subprocess
from datetime import date, datetime, timezone
from decimal import Decimal

import boto3
import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st

from feast_dynamo_ext.aws import service_model
from feast_dynamo_ext.errors import ConfigError, RequestError
from feast_dynamo_ext.sagemaker.request_check import (
    EQUALS,
    check_request,
    java_pattern,
    request_problems,
)

ROLE = "arn:aws:iam::123456789012:role/service-role/train"
GROUP = "arn:aws:sagemaker:eu-west-1:123456789012:model-package-group/churn"
PLAN = "arn:aws:sagemaker:eu-west-1:123456789012:training-plan/churn-in-july"
JOB = {
    "TrainingJobName": "churn-2026-07-01",
    "HyperParameters": {"objective": "binary:logistic", "num_round": "200", "eta": "0.1"},
    "AlgorithmSpecification": {
        "TrainingImage": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/churn:1",
        "TrainingInputMode": "FastFile",
        "MetricDefinitions": [{"Name": "auc", "Regex": "auc=([0-9.]+)"}],
        "EnableSageMakerMetricsTimeSeries": True,
        "ContainerEntrypoint": ["train"],
        "ContainerArguments": ["--fast", ""],
        "TrainingImageConfig": {
            "TrainingRepositoryAccessMode": "Vpc",
            "TrainingRepositoryAuthConfig": {
                "TrainingRepositoryCredentialsProviderArn": (
                    "arn:aws:lambda:eu-west-1:123456789012:function:login"
                )
            },
        },
    },
    "RoleArn": ROLE,
    "InputDataConfig": [
        {
            "ChannelName": "train",
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": "S3Prefix",
                    "S3Uri": "s3://lake/train/",
                    "S3DataDistributionType": "ShardedByS3Key",
                    "AttributeNames": ["line"],
                    "ModelAccessConfig": {"AcceptEula": True},
                }
            },
            "ContentType": "text/csv",
            "CompressionType": "None",
            "RecordWrapperType": "None",
            "InputMode": "File",
            "ShuffleConfig": {"Seed": 7},
        },
        {
            "ChannelName": "validation",
            "DataSource": {
                "FileSystemDataSource": {
                    "FileSystemId": "fs-01234567",
                    "FileSystemAccessMode": "ro",
                    "FileSystemType": "EFS",
                    "DirectoryPath": "/validation",
                }
            },
        },
    ],
    "OutputDataConfig": {
        "S3OutputPath": "s3://lake/models",
        "KmsKeyId": "alias/models",
        "CompressionType": "GZIP",
    },
    "ResourceConfig": {
        "InstanceType": "ml.m5.xlarge",
        "InstanceCount": 2,
        "VolumeSizeInGB": 30,
        "VolumeKmsKeyId": "alias/volumes",
        "KeepAlivePeriodInSeconds": 600,
        "TrainingPlanArn": PLAN,
    },
    "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1", "subnet-2"]},
    "StoppingCondition": {
        "MaxRuntimeInSeconds": 3600,
        "MaxWaitTimeInSeconds": 7200,
        "MaxPendingTimeInSeconds": 7200,
    },
    "Tags": [{"Key": "team", "Value": "growth"}, {"Key": "größe", "Value": ""}],
    "EnableNetworkIsolation": False,
    "EnableInterContainerTrafficEncryption": True,
    "EnableManagedSpotTraining": True,
    "CheckpointConfig": {"S3Uri": "s3://lake/checkpoints", "LocalPath": "/opt/ml/checkpoints"},
    "DebugHookConfig": {
        "S3OutputPath": "s3://lake/debug",
        "HookParameters": {"save_interval": "10"},
        "CollectionConfigurations": [{"CollectionName": "losses"}],
    },
    "DebugRuleConfigurations": [
        {
            "RuleConfigurationName": "overfit",
            "RuleEvaluatorImage": "1.dkr.ecr.eu-west-1.amazonaws.com/rules:1",
            "InstanceType": "ml.t3.medium",
            "VolumeSizeInGB": 10,
        }
    ],
    "TensorBoardOutputConfig": {"S3OutputPath": "s3://lake/tensorboard"},
    "ExperimentConfig": {"ExperimentName": "churn", "TrialName": "july"},
    "ProfilerConfig": {
        "S3OutputPath": "s3://lake/profile",
        "ProfilingIntervalInMilliseconds": 500,
    },
    "Environment": {"LOG_LEVEL": "info"},
    "RetryStrategy": {"MaximumRetryAttempts": 2},
    "RemoteDebugConfig": {"EnableRemoteDebug": False},
    "InfraCheckConfig": {"EnableInfraCheck": True},
    "SessionChainingConfig": {"EnableSessionTagChaining": False},
    "MlflowConfig": {
        "MlflowResourceArn": (
            "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-tracking-server/churn"
        )
    },
    "ModelPackageConfig": {"ModelPackageGroupArn": GROUP},
}

GONE = object()
TRAIN = "InputDataConfig.0"
S3_OF_TRAIN = f"{TRAIN}.DataSource.S3DataSource"
FILES = "InputDataConfig.1.DataSource.FileSystemDataSource"
IMAGE = "AlgorithmSpecification"
# Where (indices among the names), what is put there, and the kind of fault that it is.
FAULTS = [
    ("TrainingJobName", "churn_2026", "pattern"),
    ("RoleArn", "arn:aws:iam::12345678901:role/train", "pattern"),
    ("RolArn", ROLE, "unknown"),
    ("HyperParameters.eta", 0.1, "type"),
    ("HyperParameters.num_round", "2" * 2501, "length"),
    ("HyperParameters.objective", "binary\nlogistic", "pattern"),
    ("HyperParameters." + "h" * 257, "1", "length"),
    (f"{IMAGE}.TrainingImage", "i" * 256, "length"),
    (f"{IMAGE}.TrainingInputMode", "Fast", "enum"),
    (f"{IMAGE}.MetricDefinitions.0.Regex", GONE, "missing"),
    (f"{IMAGE}.MetricDefinitions.0.Name", "", "length"),
    (f"{IMAGE}.EnableSageMakerMetricsTimeSeries", "yes", "type"),
    (f"{IMAGE}.ContainerEntrypoint", [], "length"),
    (f"{IMAGE}.ContainerArguments", ["a"] * 101, "length"),
    (f"{IMAGE}.TrainingImageConfig.TrainingRepositoryAccessMode", "VPC", "enum"),
    (
        f"{IMAGE}.TrainingImageConfig.TrainingRepositoryAuthConfig."
        "TrainingRepositoryCredentialsProviderArn",
        "arn:a_b:lambda:eu-west-1:123456789012:function:login",
        "pattern",
    ),
    (f"{TRAIN}.ChannelName", "the train", "pattern"),
    (f"{S3_OF_TRAIN}.S3DataType", "Foo", "enum"),
    (f"{S3_OF_TRAIN}.S3Uri", "s3//lake/train/", "pattern"),
    (f"{S3_OF_TRAIN}.S3DataDistributionType", "Sharded", "enum"),
    (f"{S3_OF_TRAIN}.AttributeNames", ["a"] * 17, "length"),
    (f"{S3_OF_TRAIN}.ModelAccessConfig.AcceptEula", 1, "type"),
    (f"{TRAIN}.ContentType", "c" * 257, "length"),
    (f"{TRAIN}.CompressionType", "gzip", "enum"),
    (f"{TRAIN}.RecordWrapperType", b"None", "type"),
    (f"{TRAIN}.InputMode", None, "null"),
    (f"{TRAIN}.ShuffleConfig.Seed", 2**63, "range"),
    (f"{FILES}.FileSystemId", "fs-1", "length"),
    (f"{FILES}.FileSystemAccessMode", "r", "enum"),
    (f"{FILES}.FileSystemType", GONE, "missing"),
    (f"{FILES}.DirectoryPath", "/" * 4097, "length"),
    ("OutputDataConfig.S3OutputPath", "s3:///models", "pattern"),
    ("OutputDataConfig.KmsKeyId", "alias/mo dels", "pattern"),
    ("OutputDataConfig.CompressionType", "ZIP", "enum"),
    ("ResourceConfig.InstanceType", "ml.m5.tiny", "enum"),
    ("ResourceConfig.InstanceCount", -1, "range"),
    ("ResourceConfig.VolumeSizeInGB", 30.0, "type"),
    ("ResourceConfig.KeepAlivePeriodInSeconds", 21_601, "range"),
    ("ResourceConfig.TrainingPlanArn", "arn:aws:sagemaker", "length"),
    ("VpcConfig.SecurityGroupIds", ["sg"] * 6, "length"),
    ("VpcConfig.Subnets.1", "subnet_2", "pattern"),
    ("StoppingCondition.MaxRuntimeInSeconds", 0, "range"),
    ("StoppingCondition.MaxWaitTimeInSeconds", True, "type"),
    ("StoppingCondition.MaxPendingTimeInSeconds", 1_799, "range"),
    ("Tags.0.Key", "team!", "pattern"),
    ("Tags.0.Value", 5, "type"),
    ("Tags.1.Name", "x", "unknown"),
    ("EnableNetworkIsolation", "false", "type"),
    ("CheckpointConfig.S3Uri", GONE, "missing"),
    ("DebugHookConfig.HookParameters", {str(n): "" for n in range(21)}, "length"),
    ("DebugHookConfig.CollectionConfigurations.0.CollectionName", "", "length"),
    ("DebugRuleConfigurations.0.RuleEvaluatorImage", GONE, "missing"),
    ("DebugRuleConfigurations.0.InstanceType", "ml.m5.xlarg", "enum"),
    ("TensorBoardOutputConfig", "s3://lake/tensorboard", "type"),
    ("ExperimentConfig.ExperimentName", "churn-", "pattern"),
    ("ProfilerConfig.ProfilingIntervalInMilliseconds", Decimal(500), "type"),
    ("Environment.1ST", "x", "pattern"),
    ("RetryStrategy.MaximumRetryAttempts", 31, "range"),
    ("MlflowConfig.MlflowResourceArn", "mlflow", "pattern"),
    ("ModelPackageConfig.ModelPackageGroupArn", GROUP.replace("eu-west-1", "eu"), "pattern"),
]


def seeded(request: dict, path: str, value: object) -> dict:
    """The request with one place of it changed."""
    request = copy.deepcopy(request)
    *folders, last = path.split(".")
    place = request
    for name in folders:
        place = place[int(name)] if isinstance(place, list) else place[name]
    if value is GONE:
        del place[last]
    elif isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return request


def shown(path: str) -> str:
    """A path as problems show it."""
    text = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path)
    return re.sub(
        r"^(HyperParameters|Environment)\.(.*)",
        lambda found: f"{found[1]}[{found[2][:60] + '...' * (len(found[2]) > 60)!r}]",
        text,
    )


def test_a_full_request_of_a_training_job_has_no_fault():
    assert request_problems("CreateTrainingJob", JOB) == ()
    check_request("CreateTrainingJob", JOB)


@pytest.mark.parametrize(("path", "value", "kind"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_is_found_where_it_is_and_nothing_else(path, value, kind):
    found = request_problems("CreateTrainingJob", seeded(JOB, path, value))
    assert [(problem.path, problem.kind) for problem in found] == [(shown(path), kind)]


def test_sixty_faults_at_once_are_sixty_problems():
    request = JOB
    for path, value, _ in FAULTS:
        request = seeded(request, path, value)
    found = request_problems("CreateTrainingJob", request)
    assert len(FAULTS) == len({path for path, _, _ in FAULTS}) == 60
    assert sorted((problem.path, problem.kind) for problem in found) == sorted(
        (shown(path), kind) for path, _, kind in FAULTS
    )
    with pytest.raises(RequestError) as error:
        check_request("CreateTrainingJob", request, subject="training job `churn`")
    assert isinstance(error.value, ConfigError)
    assert len(error.value.problems) == 60
    message = str(error.value)
    assert message.startswith(
        "The CreateTrainingJob request of training job `churn` has 60 faults, and nothing was "
        "sent: `TrainingJobName` is `churn_2026`, which does not match"
    )
    assert all(f"`{shown(path)}` " in message for path, _, _ in FAULTS)


PACKAGE = {
    "ModelPackageGroupName": "churn",
    "ModelPackageDescription": "Kündigungen: Juli",
    "InferenceSpecification": {
        "Containers": [
            {
                "Image": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/churn:1",
                "ModelDataUrl": "s3://lake/models/model.tar.gz",
                "FrameworkVersion": "1.7-1",
            }
        ],
        "SupportedContentTypes": ["text/csv"],
        "SupportedResponseMIMETypes": ["text/csv"],
        "SupportedRealtimeInferenceInstanceTypes": ["ml.m5.large"],
    },
    "ModelApprovalStatus": "PendingManualApproval",
    "CustomerMetadataProperties": {"set": "s3://lake/sets/july"},
    "ModelMetrics": {
        "ModelQuality": {
            "Statistics": {"ContentType": "application/json", "S3Uri": "s3://lake/metrics.json"}
        }
    },
}
CONFIG = {
    "EndpointConfigName": "churn",
    "ProductionVariants": [
        {
            "VariantName": "all",
            "ModelName": "churn",
            "InitialVariantWeight": 1.0,
            "ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": 5},
        }
    ],
    "DataCaptureConfig": {
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": "s3://lake/captured",
        "CaptureOptions": [{"CaptureMode": "Input"}],
    },
}
PIPELINE = {
    "PipelineName": "churn",
    "PipelineDefinition": '{"Version": "2020-12-01",\n "Steps": []}',
    "RoleArn": ROLE,
    "ParallelismConfiguration": {"MaxParallelExecutionSteps": 2},
}
SCHEDULE = {
    "Name": "churn-nightly",
    "ScheduleExpression": "rate(1 day)",
    "StartDate": datetime(2026, 7, 1, tzinfo=timezone.utc),
    "FlexibleTimeWindow": {"Mode": "OFF"},
    "Target": {
        "Arn": "arn:aws:sagemaker:eu-west-1:123456789012:pipeline/churn",
        "RoleArn": ROLE,
        "SageMakerPipelineParameters": {"PipelineParameterList": [{"Name": "n", "Value": "1"}]},
    },
}
CREATED = {
    "CreateModelPackage": ("sagemaker", PACKAGE),
    "CreateEndpointConfig": ("sagemaker", CONFIG),
    "CreatePipeline": ("sagemaker", PIPELINE),
    "CreateSchedule": ("scheduler", SCHEDULE),
}
FAULTS_OF_OTHERS = [
    ("CreateModelPackage", "ModelPackageDescription", "a\nb", "pattern"),
    ("CreateModelPackage", "InferenceSpecification.Containers", [], "length"),
    ("CreateModelPackage", "InferenceSpecification.Containers.0.Image", "a b", "pattern"),
    ("CreateModelPackage", "InferenceSpecification.Containers.0.FrameworkVersion", "1", "length"),
    ("CreateModelPackage", "ModelApprovalStatus", "Pending", "enum"),
    ("CreateModelPackage", "ModelMetrics.ModelQuality.Statistics.ContentType", GONE, "missing"),
    ("CreateModelPackage", "ModelMetric", {}, "unknown"),
    ("CreateEndpointConfig", "ProductionVariants.0.InitialVariantWeight", -0.5, "range"),
    ("CreateEndpointConfig", "ProductionVariants.0.InitialVariantWeight", float("nan"), "range"),
    ("CreateEndpointConfig", "ProductionVariants.0.InitialVariantWeight", "1", "type"),
    (
        "CreateEndpointConfig",
        "ProductionVariants.0.ServerlessConfig.MemorySizeInMB",
        1000,
        "range",
    ),
    ("CreateEndpointConfig", "DataCaptureConfig.CaptureOptions.0.CaptureMode", "Both", "enum"),
    ("CreateEndpointConfig", "ProductionVariants.0.VariantName", "a_b", "pattern"),
    ("CreatePipeline", "PipelineDefinition", "", "length"),
    ("CreatePipeline", "ParallelismConfiguration.MaxParallelExecutionSteps", 0, "range"),
    ("CreatePipeline", "ClientRequestToken", "short", "length"),
    ("CreatePipeline", "RoleArn", GONE, "missing"),
    ("CreateSchedule", "FlexibleTimeWindow.Mode", "off", "enum"),
    ("CreateSchedule", "StartDate", "the first of July", "type"),
    ("CreateSchedule", "Target.RetryPolicy", {"MaximumRetryAttempts": 186}, "range"),
]


CLUSTER = {
    "ClusterName": "churn",
    "InstanceGroups": [
        {
            "InstanceCount": 1,
            "InstanceGroupName": "a",
            "InstanceType": "ml.m5.large",
            "ExecutionRole": ROLE,
            "LifeCycleConfig": {"SourceS3Uri": "s3://sagemaker-x", "OnCreate": "on.sh"},
            "InstanceStorageConfigs": [{"EbsVolumeConfig": {"VolumeSizeInGB": 10}}],
        }
    ],
}
MODEL = {
    "ModelName": "churn",
    "ExecutionRoleArn": ROLE,
    "PrimaryContainer": {"Image": "churn:1", "Environment": {"STAGE": "test"}},
}
CREATED |= {
    "CreateCluster": ("sagemaker", CLUSTER),
    "CreateModel": ("sagemaker", MODEL),
    "InvokeEndpoint": ("sagemaker-runtime", {"EndpointName": "churn", "Body": b"1"}),
    "BatchWriteItem": ("dynamodb", {"RequestItems": {"t": [{"PutRequest": {"Item": {}}}]}}),
}


class Mode(str, enum.Enum):
    OFF = "off"


STORAGE = "InstanceGroups.0.InstanceStorageConfigs"
EBS = {"EbsVolumeConfig": {"VolumeSizeInGB": 10}}
FSX = {
    "FsxLustreConfig": {"DnsName": "fs-0123456789ab.fsx.eu-west-1.amazonaws.com", "MountName": "a"}
}
WEIGHT = "ProductionVariants.0.InitialVariantWeight"
# Kinds of fault that the sixty have not: where, what, and what is found there.
MORE_FAULTS = [
    ("CreateCluster", f"{STORAGE}.0", EBS | FSX, "union"),
    ("CreateCluster", f"{STORAGE}.0", {}, "union"),
    ("CreateCluster", f"{STORAGE}.0.EbsVolumeConfig", None, "null"),
    ("CreateCluster", f"{STORAGE}.0.EbsVolumeConfig.VolumeSizeInGB", 10**30, "range"),
    ("CreateCluster", "InstanceGroups", {1, 2}, "type"),
    ("CreateCluster", "InstanceGroups", [], "length"),
    ("CreateCluster", "InstanceGroups.0", None, "null"),
    ("CreateCluster", "InstanceGroups.0.InstanceCount", 1.0, "type"),
    ("CreateCluster", "InstanceGroups.0.InstanceGroupName", "a\n", "pattern"),
    ("CreateModel", "PrimaryContainer", '{"Image": "churn:1"}', "type"),
    ("CreateModel", "PrimaryContainer.Environment", [("STAGE", "test")], "type"),
    ("CreateEndpointConfig", WEIGHT, 10**400, "range"),
    ("CreateEndpointConfig", WEIGHT, 1e39, "range"),
    ("CreateEndpointConfig", WEIGHT, Decimal("1.5"), "type"),
    ("CreateEndpointConfig", WEIGHT, float("-inf"), "range"),
    ("CreateModelPackage", "CustomerMetadataProperties.set", "\ud800", "type"),
    ("CreateSchedule", "FlexibleTimeWindow.Mode", Mode.OFF, "enum"),
    ("CreateSchedule", "StartDate", date(2026, 7, 1), "type"),
    ("CreateSchedule", "StartDate", float("inf"), "type"),
    ("CreateSchedule", "StartDate", "2026-07", "type"),
    ("CreateSchedule", "StartDate", "tomorrow", "type"),
    ("CreateSchedule", "StartDate", "2026-02-30", "type"),
    ("CreateSchedule", "StartDate", b"2026-07-01", "type"),
    ("CreateSchedule", "EndDate", True, "type"),
    ("InvokeEndpoint", "Body", b"x" * 6_291_457, "length"),
    ("InvokeEndpoint", "Body", io.StringIO("x"), "type"),
    ("InvokeEndpoint", "Body", [1, 2], "type"),
    ("BatchWriteItem", "RequestItems.t", [], "length"),
    ("BatchWriteItem", "RequestItems", {}, "length"),
]


@pytest.mark.parametrize(("operation", "path", "value", "kind"), MORE_FAULTS)
def test_faults_of_other_kinds_are_found(operation, path, value, kind):
    service, request = CREATED[operation]
    found = request_problems(operation, seeded(request, path, value), service=service)
    shown_path = shown(path).replace("Properties.set", "Properties['set']")
    shown_path = shown_path.replace("RequestItems.t", "RequestItems['t']")
    assert [(problem.path, problem.kind) for problem in found] == [(shown_path, kind)]


@pytest.mark.parametrize(
    ("path", "key", "kind"),
    [("Environment", "1A", "pattern"), ("Environment", 5, "type"), ("Environment", "", "pattern")],
)
def test_keys_of_mappings_are_held_against_their_shape(path, key, kind):
    request = seeded(MODEL, f"PrimaryContainer.{path}", {key: "x"})
    (problem,) = request_problems("CreateModel", request)
    assert (problem.path, problem.kind) == (f"PrimaryContainer.{path}[{str(key)!r}]", kind)
    assert problem.message.startswith("as a key ")


def test_a_misspelt_member_of_a_union_is_one_problem():
    request = seeded(CLUSTER, f"{STORAGE}.0", {"EbsVolumeConfi": {"VolumeSizeInGB": 10}})
    (problem,) = request_problems("CreateCluster", request)
    assert problem.kind == "unknown"
    assert "Did you mean `EbsVolumeConfig`?" in problem.message


@pytest.mark.parametrize(
    "moment",
    ["2026-07-01", "2026-07-01T12:00:00Z", "2026-07-01T12:00:00.5+02:00", 1.5, "1767225600"],
)
def test_a_moment_may_be_text_or_a_number(moment):
    request = SCHEDULE | {"StartDate": moment}
    assert request_problems("CreateSchedule", request, service="scheduler") == ()
    client = boto3.client("scheduler", region_name="eu-west-1")
    model = client.meta.service_model.operation_model("CreateSchedule")
    body = client._convert_to_request_dict(request, model, "https://x", {})["body"]
    assert isinstance(json.loads(body)["StartDate"], (int, float))


@pytest.mark.parametrize("operation", CREATED)
def test_other_requests_have_no_fault(operation):
    service, request = CREATED[operation]
    assert request_problems(operation, request, service=service) == ()


@pytest.mark.parametrize(("operation", "path", "value", "kind"), FAULTS_OF_OTHERS)
def test_faults_of_other_requests_are_found(operation, path, value, kind):
    service, request = CREATED[operation]
    found = request_problems(operation, seeded(request, path, value), service=service)
    paths = [f"{shown(path)}{'.MaximumRetryAttempts' * path.endswith('Policy')}"]
    assert [problem.path for problem in found] == paths
    assert [problem.kind for problem in found] == [kind]


def test_a_union_takes_one_of_its_members():
    model = {"AutoMLProblemTypeConfig": {}}
    assert [
        (problem.path, problem.kind)
        for problem in request_problems("CreateAutoMLJobV2", model)
        if problem.kind != "missing"
    ] == [("AutoMLProblemTypeConfig", "union")]
    two = {name: {} for name in ("ImageClassificationJobConfig", "TextGenerationJobConfig")}
    (problem,) = (
        problem
        for problem in request_problems("CreateAutoMLJobV2", {"AutoMLProblemTypeConfig": two})
        if problem.kind == "union"
    )
    assert "has 2 members; it takes one of ImageClassificationJobConfig, " in problem.message
    one = {"AutoMLProblemTypeConfig": {"ImageClassificationJobConfig": {}}}
    assert "union" not in {problem.kind for problem in request_problems("CreateAutoMLJobV2", one)}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "ResourceConfig.InstanceTyp",
            "ml.m5.large",
            "is not known. Did you mean `InstanceType`?",
        ),
        ("OutputDataConfig.CompressionType", "lz4", "is `lz4`. Known: GZIP, NONE"),
        ("ResourceConfig.InstanceType", "?", r"is `\?`. botocore [\d.]+ knows \d+ others"),
        ("VpcConfig.Subnets", "subnet-1", "is of type str; it takes a list"),
        ("TrainingJobName", "x" * 64, "has 64 characters; the most are 63"),
        ("TrainingJobName", None, "is None: leave it out"),
    ],
)
def test_a_problem_says_what_was_there_and_what_may_be(path, value, message):
    (problem,) = request_problems("CreateTrainingJob", seeded(JOB, path, value))
    assert re.search(message, problem.message)


def test_no_value_that_may_be_a_secret_is_shown():
    request = seeded(JOB, "Environment", {"DATABASE": "pass\0word" * 57, "9": "hunter2"})
    request = seeded(request, "HyperParameters.token", "hunter2\n")
    with pytest.raises(RequestError) as error:
        check_request("CreateTrainingJob", request)
    assert len(error.value.problems) == 3
    assert "hunter2" not in str(error.value)
    assert "word" not in str(error.value)


def test_what_a_pipeline_fills_in_later_is_left_alone():
    step = seeded(JOB, "TrainingJobName", GONE)
    step["RoleArn"] = {"Get": "Parameters.Role"}
    step["ResourceConfig"]["InstanceCount"] = {"Get": "Parameters.Count"}
    step["InputDataConfig"][0]["DataSource"] = {"Get": "Steps.build.DataSource"}

    def is_reference(value: object) -> bool:
        return isinstance(value, dict) and value.keys() == {"Get"}

    assert len(request_problems("CreateTrainingJob", step)) == 4
    found = request_problems(
        "CreateTrainingJob", step, optional=("TrainingJobName",), is_reference=is_reference
    )
    assert found == ()


def test_no_such_service_and_no_such_operation():
    with pytest.raises(ConfigError, match="knows no service `sagemakr`"):
        check_request("CreateTrainingJob", {}, service="sagemakr")
    with pytest.raises(ConfigError, match=r"no operation `CreateTrainJob`\. Did you mean"):
        check_request("CreateTrainJob", {})


# -- patterns ---------------------------------------------------------------------------------


@functools.cache
def patterns() -> tuple[str, ...]:
    """All patterns of the services that we send requests to, and of some that we do not."""
    found = set()
    for service in ("sagemaker", "scheduler", "s3", "logs", "iam", "events", "ecr"):
        model = service_model(service)
        for name in model.shape_names:
            found.add(model.shape_for(name).metadata.get("pattern"))
    return tuple(sorted(found - {None}))


# Of Java's constructs, those that AWS's models may come to use.
MORE_PATTERNS = (
    r"[\p{L}\p{Nd}]+\P{L}",
    r"\p{IsL}+\p{Lu}\P{Z}",
    r"[\P{L}]+",
    r"\p{Punct}\p{XDigit}\p{Space}?",
    r"(?<a>x+)-\k<a>",
    r"\Qa.b\E.",
    r"[\w-_]+",
    r"[\x{41}-\x{5A}\x{1F600}]+",
    r"\h+\R?",
    r"\Aab\z|cd\Z|ef$",
    r"[]a]+",
    r"[^]a~&|-]+",
    r"a.c",
    r"(?i)AbC",
    r"\d+\s\w+\b",
    r"x${1,3}",
    r"[\uD800\uDC00-\uDBFF\uDFFF]+",
)
JAVA = r"""
import java.io.*; import java.nio.charset.StandardCharsets; import java.util.*;
import java.util.regex.*;
public class Matcher {
  static String text(String s) {
    return new String(Base64.getDecoder().decode(s), StandardCharsets.UTF_8);
  }
  /** A text that can be looked at so often: some patterns have ways through it without end. */
  static class Bounded implements CharSequence {
    final String text; long left = 20_000_000;
    Bounded(String text) { this.text = text; }
    public int length() { return text.length(); }
    public String toString() { return text; }
    public CharSequence subSequence(int start, int end) { return text.substring(start, end); }
    public char charAt(int at) {
      if (--left < 0) throw new IllegalStateException();
      return text.charAt(at);
    }
  }
  public static void main(String[] args) throws IOException {
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
    for (String line; (line = in.readLine()) != null; System.out.flush()) {
      String[] parts = line.split("\t", -1);
      String answer;
      try {
        answer = String.valueOf(Pattern.matches(text(parts[0]), new Bounded(text(parts[1]))));
      }
      catch (PatternSyntaxException error) { answer = "error"; }
      catch (IllegalStateException error) { answer = "endless"; }
      System.out.println(answer);
    }
  }
}
"""


@pytest.fixture(scope="module")
def java(tmp_path_factory):
    """Asks Java itself whether a pattern matches a text."""
    if shutil.which("javac") is None:
        pytest.skip("no Java compiler")
    source = tmp_path_factory.mktemp("java") / "Matcher.java"
    source.write_text(JAVA)
    with subprocess.Popen(
        ["java", "-XX:TieredStopAtLevel=1", str(source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def matches(pattern: str, text: str) -> str:
            words = (base64.b64encode(word.encode()).decode() for word in (pattern, text))
            process.stdin.write("\t".join(words) + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield matches
        process.kill()


def test_java_is_asked_no_longer_than_it_answers(java):
    urls = r"https://([.\-_a-zA-Z0-9]+/?){3,1016}"
    assert urls in EQUALS
    assert java(urls, "https://" + "a/b" * 200 + ":") == "endless"
    assert java(urls, "https://" + "a/b" * 200) == "true"


def test_every_pattern_of_these_services_can_be_checked():
    assert len(patterns()) > 300
    assert [one for one in patterns() if java_pattern(one) is None] == []
    assert [one for one in patterns() if java_pattern(one, is_ascii=True) is None] == []


# Letters that only one of both takes for letters: Unicode has grown between their versions.
AGREED = st.characters(codec="utf-8", max_codepoint=0x2FFF)
TEXTS = st.text(AGREED | st.sampled_from("\n\r\x85\u2028 -_./:@aZ09äß٣😀\u00a0"), max_size=8)


@st.composite
def pattern_and_text(draw):
    pattern = draw(st.sampled_from((*patterns(), *MORE_PATTERNS)))
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return pattern, draw(TEXTS)
    compiled = java_pattern(pattern, is_ascii=True)
    try:
        text = draw(st.from_regex(compiled, fullmatch=True))[:300]
    except ValueError:  # of a lookbehind that it cannot generate for
        text = draw(TEXTS)
    if kind == 1:
        return pattern, text
    place = draw(st.integers(0, len(text)))
    return pattern, text[:place] + draw(TEXTS) + text[place + kind - 2 :]


@pytest.mark.slow
@cases(600)
@given(drawn=pattern_and_text())
def test_a_pattern_matches_what_java_matches(java, drawn):
    pattern, text = drawn
    expected = java(pattern, text)
    if expected == "endless":
        assert pattern in EQUALS  # ours is another pattern, which has one way
        return
    compiled = java_pattern(pattern, is_ascii=text.isascii())
    assert str(compiled.fullmatch(text) is not None).lower() == expected
    assert (java_pattern(pattern).fullmatch(text) is not None) == (expected == "true")


@pytest.mark.parametrize("pattern", ["[a-z&&[def]]", "[a[bc]]", r"\p{IsGreek}", r"\X", "(", "a**"])
def test_a_pattern_without_counterpart_is_none(pattern):
    assert java_pattern(pattern) is None


LONG = {
    "words": ("a\nb \r" * 400, "a b" * 400 + "\u2028"),
    "names": ("https://" + "a/b" * 200, "https://" + "a/b" * 200 + ":"),
    "paths": ("a.b" * 400, "a.b" * 400 + "!"),
    "hyphens": ("a-b" * 400, "a-b" * 400 + "-"),
    "spaced": ("a \t b" * 200, "a \t b" * 200 + "\x7f"),
}
"""By kind a text that matches, and one that does not."""
KINDS = ("words", "words", "spaced", "spaced", "paths", "hyphens", "names")


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [*zip(EQUALS, KINDS, strict=True)],
)
def test_a_text_of_a_kilobyte_is_matched_at_once(pattern, kind):
    matching, other = LONG[kind]
    assert java_pattern(pattern).fullmatch(matching)
    assert java_pattern(pattern).fullmatch(other) is None


def test_no_pattern_takes_long_where_it_does_not_match():
    """A minute for all of them is enough; one with too many ways through a text takes days."""
    for pattern in patterns():
        compiled = java_pattern(pattern, is_ascii=True)
        for text in ("a", "a.", "a/", "a ", "a-a_", "0"):
            for before in ("", "arn:aws:", "https://", "s3://", "/"):
                compiled.fullmatch(before + text * (40 // len(text)) + "\x7f")


def test_a_pattern_that_cannot_be_checked_is_logged_by_name(caplog):
    from feast_dynamo_ext.sagemaker import request_check

    with caplog.at_level(logging.WARNING):
        assert request_check._matches("TrainingJobName", "[a[b]]", "zzz")
    assert "'[a[b]]' of TrainingJobName is not one that can be checked" in caplog.text
