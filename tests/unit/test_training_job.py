from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest
from examples import cases
from hypothesis import given
from hypothesis import strategies as st
from sagemaker_sdk import importable

from feast_dynamo_ext.aws import AwsSettings, service_model
from feast_dynamo_ext.errors import ConfigError, RequestError, TrainingSetError
from feast_dynamo_ext.sagemaker.job_source import pack_source, upload_source
from feast_dynamo_ext.sagemaker.request_check import request_problems
from feast_dynamo_ext.sagemaker.training_images import ACCOUNTS, ALGORITHMS, image_uri
from feast_dynamo_ext.sagemaker.training_job import (
    Spot,
    Vpc,
    hyperparameter_strings,
    job_name,
    request_token,
    training_job_request,
)

if TYPE_CHECKING:
    from pathlib import Path

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


def test_every_option_is_in_the_request_and_the_service_model_takes_it():
    request = training_job_request(
        **JOB,
        kms_key="alias/models",
        volume_kms_key="alias/volumes",
        vpc=Vpc(["subnet-1", "subnet-2"], ["sg-1"]),
        spot=Spot(max_wait_s=90_000, checkpoints="s3://lake/checkpoints"),
        retries=3,
        environment={"LOG_LEVEL": "info"},
        metrics={"validation:auc": r"validation-auc[:=]([0-9.]+)"},
        network_isolation=True,
        encrypt_traffic=True,
    )
    assert request_problems("CreateTrainingJob", request) == ()
    plain = training_job_request(**JOB)
    assert {key: value for key, value in request.items() if plain.get(key) != value} == {
        "AlgorithmSpecification": {
            "TrainingImage": JOB["image"],
            "TrainingInputMode": "File",
            "MetricDefinitions": [
                {"Name": "validation:auc", "Regex": "validation-auc[:=]([0-9.]+)"}
            ],
        },
        "OutputDataConfig": {"S3OutputPath": "s3://lake/models/", "KmsKeyId": "alias/models"},
        "ResourceConfig": plain["ResourceConfig"] | {"VolumeKmsKeyId": "alias/volumes"},
        "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1", "subnet-2"]},
        "StoppingCondition": {"MaxRuntimeInSeconds": 86_400, "MaxWaitTimeInSeconds": 90_000},
        "EnableManagedSpotTraining": True,
        "CheckpointConfig": {
            "S3Uri": "s3://lake/checkpoints",
            "LocalPath": "/opt/ml/checkpoints",
        },
        "RetryStrategy": {"MaximumRetryAttempts": 3},
        "Environment": {"LOG_LEVEL": "info"},
        "EnableNetworkIsolation": True,
        "EnableInterContainerTrafficEncryption": True,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a" * 64}, "`TrainingJobName` has 64 characters; the most are 63"),
        ({"name": "churn_2026"}, "`TrainingJobName` is `churn_2026`, which does not match"),
        ({"name": "churn-"}, "`TrainingJobName` is `churn-`, which does not match"),
        ({"name": ""}, "`TrainingJobName` has 0 characters; the least is 1"),
        ({"role_arn": "train"}, "`RoleArn` has 5 characters; the least is 20"),
        ({"image": "i" * 256}, "`AlgorithmSpecification.TrainingImage` has 256 characters"),
        ({"output_path": "models/"}, "`OutputDataConfig.S3OutputPath` is `models/`, which"),
        ({"output_path": "https://lake/models"}, "writes to `https://lake/models`, which is no"),
        ({"instance_type": "m5.large"}, "is `m5.large`. Did you mean `ml.m5.large`?"),
        ({"instance_count": 0}, "`ResourceConfig.InstanceCount` is 0; it must be 1 or more"),
        ({"volume_gb": 0}, "`ResourceConfig.VolumeSizeInGB` is 0; it must be 1 or more"),
        ({"max_runtime_s": -1}, "`StoppingCondition.MaxRuntimeInSeconds` is -1; the least is 1"),
        ({"tags": {str(n): "" for n in range(51)}}, "`Tags` has 51 items; the most are 50"),
        ({"tags": {"aws:team": "x"}}, "has tags ['aws:team']: a key may be there once"),
        ({"hyperparameters": {str(n): n for n in range(101)}}, "101 hyperparameters: SageMaker"),
        ({"hyperparameters": {"x": "a" * 2501}}, "`x` has 2501 characters"),
        ({"hyperparameters": {"x" * 257: 1}}, "as a key has 257 characters; the most are 256"),
        ({"hyperparameters": {"x": float("nan")}}, "`x` cannot be written as JSON"),
        ({"hyperparameters": {"x": {1, 2}}}, "`x` cannot be written as JSON"),
        ({"spot": Spot(3_600)}, "may run for 86400 s and wait for 3600 s in all"),
        ({"retries": 31}, "`RetryStrategy.MaximumRetryAttempts` is 31; the most is 30"),
        ({"metrics": {"auc": "auc=.*"}}, "the pattern `auc=.*` without a group"),
        ({"metrics": {"auc": "auc=("}}, "the pattern `auc=(`: missing )"),
        ({"environment": {"1A": ""}}, "`Environment['1A']` as a key is a value that is not shown"),
        ({"vpc": Vpc([], ["sg-1"])}, "`VpcConfig.Subnets` has 0 items; the least is 1"),
        ({"channels": [CHANNEL | {"ChannelName": "a b"}]}, "`InputDataConfig[0].ChannelName` is"),
        (
            {"channels": [CHANNEL | {"ChannelName": f"c{n}"} for n in range(21)]},
            "`InputDataConfig` has 21 items; the most are 20",
        ),
        ({"channels": []}, "`InputDataConfig` has 0 items; the least is 1"),
    ],
)
def test_a_value_beyond_a_limit_is_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        training_job_request(**JOB | changes)
    assert message in str(error.value)


def test_two_channels_of_one_name_are_refused():
    with pytest.raises(TrainingSetError, match=r"more than one channel \['train'\]"):
        training_job_request(**JOB | {"channels": [CHANNEL, CHANNEL]})


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(RequestError) as error:
        training_job_request(**JOB | {"name": "a_b", "instance_type": "m5", "retries": 99})
    assert len(error.value.problems) == 3


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


# -- images: beside the tables of SageMaker's Python SDK --------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "region", "version", "uri"),
    [
        (
            "xgboost",
            "us-east-1",
            "1.7-1",
            "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1",
        ),
        (
            "xgboost",
            "cn-north-1",
            None,
            "450853457545.dkr.ecr.cn-north-1.amazonaws.com.cn/sagemaker-xgboost:3.2-0",
        ),
        (
            "xgboost",
            "us-isob-east-1",
            "3.2-0",
            "281123927165.dkr.ecr.us-isob-east-1.sc2s.sgov.gov/sagemaker-xgboost:3.2-0",
        ),
        (
            "sklearn",
            "us-gov-west-1",
            "1.4-2",
            "414596584902.dkr.ecr.us-gov-west-1.amazonaws.com/sagemaker-scikit-learn:1.4-2-cpu-py3",
        ),
        (
            "linear-learner",
            "us-iso-east-1",
            None,
            "490574956308.dkr.ecr.us-iso-east-1.c2s.ic.gov/linear-learner:1",
        ),
        (
            "pca",
            "ca-west-1",
            None,
            "190319476487.dkr.ecr.ca-west-1.amazonaws.com/pca:1",
        ),
    ],
)
def test_an_image_is_that_of_sagemakers_sdk(algorithm, region, version, uri):
    assert image_uri(algorithm, region, version) == uri


def test_the_tables_of_images_are_those_of_sagemakers_sdk():
    with importable() as folder:
        tables = {
            name: json.loads((folder / f"image_uri_config/{name}.json").read_text())
            for name in ALGORITHMS
        }
    for name, algorithm in ALGORITHMS.items():
        table = tables[name]
        versions = table.get("training", table)["versions"]
        for version in algorithm.versions:
            found = versions[version]
            assert found["repository"] == algorithm.repository
            side = 0 if algorithm.is_framework else 1
            assert found["registries"] == {region: two[side] for region, two in ACCOUNTS.items()}


@pytest.mark.parametrize(
    ("algorithm", "region", "version", "message"),
    [
        ("xgbost", "eu-west-1", None, "No image of `xgbost` is known here. Known: xgboost"),
        ("xgboost", "eu-west-1", "9.9", "no version `9.9` that is known here. Known: 1.2-1"),
        ("xgboost", "mars-1", None, "in region `mars-1` is not known here. Pass image="),
        ("lightgbm", "eu-west-1", None, "is an algorithm of JumpStart"),
    ],
)
def test_an_image_that_is_not_known_is_to_be_passed(algorithm, region, version, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        image_uri(algorithm, region, version)


# -- names ------------------------------------------------------------------------------------


@cases(200)
@given(
    base=st.text(max_size=90),
    rounds=st.integers(1, 999),
    count=st.integers(1, 20),
    tags=st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.just("x"), max_size=3),
)
def test_the_same_inputs_have_the_same_name_and_others_another(base, rounds, count, tags):
    def request(name: str, rounds: int, **more) -> dict:
        options = {"hyperparameters": {"num_round": rounds}, "instance_count": count}
        return training_job_request(**JOB | {"name": name} | options | more)

    token = request_token(request("x", rounds), "manifest")
    name = job_name(base, token)
    again = request(name, rounds, tags=tags)
    assert len(name) <= 63
    assert request_problems("CreateTrainingJob", again) == ()
    assert job_name(base, request_token(again, "manifest")) == name
    others = [
        request_token(request("x", rounds + 1), "manifest"),
        request_token(request("x", rounds), "another manifest"),
    ]
    assert len({name, *(job_name(base, other) for other in others)}) == 3


# -- sources ----------------------------------------------------------------------------------


def make_sources(folder: Path) -> Path:
    (folder / "lib").mkdir(parents=True)
    (folder / "train.py").write_text("import lib.model\n")
    (folder / "lib/model.py").write_text("depth = 3\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o775)
    return folder


def test_a_folder_is_packed_whole_and_equal_files_give_equal_bytes(tmp_path):
    one, other = make_sources(tmp_path / "one"), make_sources(tmp_path / "other")
    (other / "lib/__pycache__").mkdir()
    (other / "lib/__pycache__/model.pyc").write_bytes(b"cache")
    (other / "train.py").chmod(0o600)
    os.utime(other / "train.py", (1, 1))
    packed = pack_source(one)
    assert packed == pack_source(other)
    # Read by another program than ours.
    listed = subprocess.run(
        ["tar", "-tvzf", "-", "--utc"], input=packed.archive, capture_output=True, check=True
    ).stdout.decode()
    assert [(line.split()[0], line.split()[-1]) for line in listed.splitlines()] == [
        ("-rw-r--r--", "lib/model.py"),
        ("-rwxr-xr-x", "run.sh"),
        ("-rw-r--r--", "train.py"),
    ]
    (other / "lib/model.py").write_text("depth = 4\n")
    assert pack_source(other).sha256 != packed.sha256


def test_a_script_is_packed_alone(tmp_path):
    packed = pack_source(make_sources(tmp_path / "one") / "train.py")
    assert packed.entry == "train.py"
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed.archive))) as archive:
        assert archive.getnames() == ["train.py"]
    assert packed.hyperparameters("s3://lake/s.tar.gz") == {
        "sagemaker_program": "train.py",
        "sagemaker_submit_directory": "s3://lake/s.tar.gz",
    }


def test_what_cannot_be_a_source_is_refused(tmp_path):
    folder = make_sources(tmp_path / "one")
    with pytest.raises(ConfigError, match=r"There is no training script .*nothing\.py"):
        pack_source(tmp_path / "nothing.py")
    with pytest.raises(ConfigError, match=r"There is no `main\.py` in .*one\. Name the script"):
        pack_source(folder, "main.py")
    for entry in ("../train.py", "-c", "a b.py", "lib/../train.py"):
        with pytest.raises(ConfigError, match="cannot be the name of a training script"):
            pack_source(folder, entry)
    (folder / "data").symlink_to("/")
    with pytest.raises(ConfigError, match="is a link, which a container cannot follow"):
        pack_source(folder)
    with pytest.raises(ConfigError, match="is not on it"):
        upload_source(pack_source(folder / "train.py"), str(tmp_path), AwsSettings())


def test_the_limits_in_words_are_those_of_the_service_model():
    from feast_dynamo_ext.sagemaker import training_job

    shape = service_model("sagemaker").shape_for
    assert shape("HyperParameters").metadata["max"] == training_job.MOST_HYPERPARAMETERS
    assert shape("HyperParameterValue").metadata["max"] == training_job.MOST_HYPERPARAMETER_CHARS
    assert shape("TrainingJobName").metadata["max"] == training_job.MOST_JOB_NAME_CHARS
