from __future__ import annotations

import botocore.session
import pytest

from feast_dynamo_ext.errors import ConfigError, TrainingSetError
from feast_dynamo_ext.sagemaker import hyperparameter_strings, training_job, training_job_request

CHANNEL = {
    "ChannelName": "train",
    "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://lake/train/"}},
}
JOB = {
    "name": "churn-2026-07-01",
    "role_arn": "arn:aws:iam::123456789012:role/service-role/train",
    "image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/xgboost:1.7-1",
    "channels": [CHANNEL],
    "output_path": "s3://lake/models/",
}


@pytest.fixture(scope="module")
def shapes():
    """Shapes of the API's own model."""
    model = botocore.session.get_session().get_service_model("sagemaker")
    return model.shape_for


def test_the_request_is_that_of_create_training_job():
    assert training_job_request(
        **JOB,
        instance_type="ml.c7i.2xlarge",
        instance_count=2,
        volume_gb=50,
        max_runtime_s=7200,
        hyperparameters={"max_depth": 5, "eta": 0.1, "objective": "binary:logistic"},
        tags={"team": "growth"},
    ) == {
        "TrainingJobName": "churn-2026-07-01",
        "RoleArn": "arn:aws:iam::123456789012:role/service-role/train",
        "AlgorithmSpecification": {
            "TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/xgboost:1.7-1",
            "TrainingInputMode": "File",
        },
        "HyperParameters": {"max_depth": "5", "eta": "0.1", "objective": "binary:logistic"},
        "InputDataConfig": [CHANNEL],
        "OutputDataConfig": {"S3OutputPath": "s3://lake/models/"},
        "ResourceConfig": {
            "InstanceType": "ml.c7i.2xlarge",
            "InstanceCount": 2,
            "VolumeSizeInGB": 50,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 7200},
        "Tags": [{"Key": "team", "Value": "growth"}],
    }


def test_limits_and_patterns_are_those_of_the_api(shapes):
    assert shapes("HyperParameters").metadata["max"] == training_job.MOST_HYPERPARAMETERS
    assert (
        shapes("HyperParameterKey").metadata["max"] == training_job.MOST_HYPERPARAMETER_NAME_CHARS
    )
    assert shapes("HyperParameterValue").metadata["max"] == training_job.MOST_HYPERPARAMETER_CHARS
    assert shapes("InputDataConfig").metadata["max"] == training_job.MOST_CHANNELS
    assert shapes("TagList").metadata["max"] == training_job.MOST_TAGS
    assert shapes("AlgorithmImage").metadata["max"] == training_job.MOST_IMAGE_CHARS
    assert shapes("S3Uri").metadata["max"] == training_job.MOST_S3_URI_CHARS
    assert shapes("TrainingJobName").metadata["max"] == training_job.MOST_JOB_NAME_CHARS
    assert shapes("TrainingJobName").metadata["pattern"] == training_job.JOB_NAME
    assert shapes("RoleArn").metadata["pattern"] == training_job.ROLE_ARN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a" * 64}, f"job name `{'a' * 64}` has 64 characters; the most are 63"),
        ({"name": "churn_2026"}, "job name `churn_2026` does not match"),
        ({"name": "churn-"}, "job name `churn-` does not match"),
        ({"name": ""}, "job name `` does not match"),
        ({"role_arn": "train"}, "role_arn `train` does not match"),
        ({"image": ""}, "image `` does not match"),
        ({"output_path": "models/"}, "output_path `models/` does not match"),
        ({"instance_type": "m5.large"}, "instance_type `m5.large` does not match"),
        ({"instance_count": 0}, "instance_count is 0; it must be 1 or more"),
        ({"volume_gb": 0}, "volume_gb is 0"),
        ({"max_runtime_s": -1}, "max_runtime_s is -1"),
        ({"tags": {str(n): "" for n in range(51)}}, "has 51 tags; the most are 50"),
        ({"hyperparameters": {str(n): n for n in range(101)}}, "101 hyperparameters: SageMaker"),
        ({"hyperparameters": {"x": "a" * 2501}}, "`x` has 2501 characters"),
        ({"hyperparameters": {"x" * 257: 1}}, "has a name of 257 characters; the most are 256"),
        ({"hyperparameters": {"x": float("nan")}}, "`x` cannot be written as JSON"),
        ({"hyperparameters": {"x": {1, 2}}}, "`x` cannot be written as JSON"),
    ],
)
def test_a_value_beyond_a_limit_is_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        training_job_request(**JOB | changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([], "has 0 channels; it needs 1 to 20"),
        ([CHANNEL | {"ChannelName": f"c{n}"} for n in range(21)], "has 21 channels"),
        ([CHANNEL, CHANNEL], r"has more than one channel ['train']"),
        ([CHANNEL | {"ChannelName": "a b"}], "channel `a b` does not match"),
    ],
)
def test_channels_beyond_a_limit_are_refused(channels, message):
    with pytest.raises(TrainingSetError) as error:
        training_job_request(**JOB | {"channels": channels})
    assert message in str(error.value)


def test_values_at_the_limits_pass():
    request = training_job_request(
        **JOB
        | {
            "name": "a" * 63,
            "channels": [CHANNEL | {"ChannelName": f"c{n}"} for n in range(20)],
            "hyperparameters": {f"h{n}": "a" * 2500 for n in range(100)},
        }
    )
    assert len(request["InputDataConfig"]) == 20
    assert len(request["HyperParameters"]) == 100


def test_hyperparameters_are_strings_as_they_are_and_other_values_as_json():
    values = {
        "text": "binary:logistic",
        "digits": "5",
        "whole": 5,
        "part": 0.1,
        "flag": True,
        "none": None,
        "list": ["auc", "error"],
        "mapping": {"a": 1},
    }
    assert hyperparameter_strings(values) == {
        "text": "binary:logistic",
        "digits": "5",
        "whole": "5",
        "part": "0.1",
        "flag": "true",
        "none": "null",
        "list": '["auc", "error"]',
        "mapping": '{"a": 1}',
    }
