"""Requests of submitted jobs, held against AWS's service models; commands that cannot work."""

from __future__ import annotations

import json

import click
import pytest
from submit_repo import COMMAND, ROLE, bundle_of, write_submit_repo

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.cli.submit import check_command
from feast_dynamo_ext.errors import ConfigError, RequestError
from feast_dynamo_ext.sagemaker.request_check import request_problems
from feast_dynamo_ext.sagemaker.training_images import spark_image_uri
from feast_dynamo_ext.sagemaker.training_job import Vpc
from feast_dynamo_ext.submit.emr_serverless_job import EmrServerlessJob, EmrServerlessSettings
from feast_dynamo_ext.submit.glue_job import GlueJob, GlueSettings, glue_modules
from feast_dynamo_ext.submit.processing_job import ProcessingJob, ProcessingSettings
from feast_dynamo_ext.submit.submitted_job import console_url

AWS = AwsSettings(region="us-east-1")
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/features:1"
SERVICES = {"glue": "glue", "emr": "emr-serverless", "processing": "sagemaker"}


@pytest.fixture
def bundle(tmp_path):
    return bundle_of(write_submit_repo(tmp_path))


def job(kind: str, bundle, *, token: str = "", name: str | None = None, tags=None, **settings):
    named = {"token": token, "name": name, "tags": tags}
    if kind == "glue":
        return GlueJob(bundle, GlueSettings(**{"role": ROLE, **settings}), AWS, **named)
    if kind == "emr":
        given = {"application": "00f1abc2", "role": ROLE, **settings}
        return EmrServerlessJob(bundle, EmrServerlessSettings(**given), AWS, AWS, **named)
    given = {"role": ROLE, "image": IMAGE, **settings}
    return ProcessingJob(bundle, ProcessingSettings(**given), AWS, **named)


def test_a_glue_job_installs_the_wheel_and_starts_the_entry_script(bundle):
    made = job("glue", bundle)
    wheel, repo, entry, description = made.uploads
    assert repo.name == "repo.tar.gz"
    assert made.requests == {
        "CreateJob": {
            "Name": made.name,
            "Description": "feast-dynamo materialize 2026-01-01 2026-02-01",
            "Role": ROLE,
            "ExecutionProperty": {"MaxConcurrentRuns": 1},
            "Command": {"Name": "glueetl", "ScriptLocation": entry.uri, "PythonVersion": "3"},
            "DefaultArguments": {
                "--job-language": "python",
                "--additional-python-modules": (
                    f"{wheel.uri},feast==0.67.0,"
                    "pyiceberg[glue]==0.12.0,pyiceberg[sql-sqlite]==0.12.0"
                ),
                "--feast-dynamo-job": description.uri,
                "--feast-dynamo-on-failure": "raise",
            },
            "MaxRetries": 0,
            "Timeout": 1_440,
            "GlueVersion": "5.1",
            "WorkerType": "G.1X",
            "NumberOfWorkers": 2,
            "ExecutionClass": "STANDARD",
        },
        "StartJobRun": {"JobName": made.name},
    }
    assert json.loads(description.data) == {
        "format": 1,
        "command": list(COMMAND),
        "repo": repo.uri,
        "repo_sha256": bundle.repo.sha256,
        "package": "installed",
        "wheel": wheel.uri,
        "requirements": ["feast==0.67.0", "pyiceberg[glue,sql-sqlite]==0.12.0"],
        "environment": {},
        "region": "us-east-1",
    }


def test_an_emr_serverless_job_has_the_environment_of_an_archive(bundle):
    made = job("emr", bundle, archive="s3://my-features/env.tar.gz", spark={"spark.x": "1"})
    wheel, _, entry, description = made.uploads
    (request,) = made.requests.values()
    python = "./environment/bin/python"
    assert request["jobDriver"]["sparkSubmit"] == {
        "entryPoint": entry.uri,
        "entryPointArguments": ["--feast-dynamo-job", description.uri],
        "sparkSubmitParameters": (
            f"--py-files {wheel.uri} "
            "--conf spark.archives=s3://my-features/env.tar.gz#environment "
            f"--conf spark.emr-serverless.driverEnv.PYSPARK_DRIVER_PYTHON={python} "
            f"--conf spark.emr-serverless.driverEnv.PYSPARK_PYTHON={python} "
            f"--conf spark.executorEnv.PYSPARK_PYTHON={python} --conf spark.x=1"
        ),
    }
    assert request["configurationOverrides"] == {
        "monitoringConfiguration": {
            "s3MonitoringConfiguration": {"logUri": "s3://my-features/jobs/logs/"}
        }
    }
    assert (request["name"], len(request["clientToken"])) == (made.name, 64)
    assert json.loads(description.data)["package"] == "unpack"


def test_a_processing_job_finds_its_files_below_its_inputs(bundle):
    made = job("processing", bundle, outputs={"sets": "s3://my-features/out"})
    (request,) = made.requests.values()
    inputs = {one["InputName"]: one["S3Input"] for one in request["ProcessingInputs"]}
    folders = {upload.name: upload.folder for upload in made.uploads}
    assert {name: one["S3Uri"] for name, one in inputs.items()} == {
        "entry": folders["run_command.py"],
        "job": folders["job.json"],
        "repo": folders["repo.tar.gz"],
        "wheel": folders["feast_dynamo_ext-0.1.0-py3-none-any.whl"],
    }
    assert inputs["job"]["LocalPath"] == "/opt/ml/processing/input/job"
    assert request["AppSpecification"] == {
        "ImageUri": IMAGE,
        "ContainerEntrypoint": ["python3", "/opt/ml/processing/input/entry/run_command.py"],
        "ContainerArguments": [
            *("--feast-dynamo-job", "/opt/ml/processing/input/job/job.json"),
            *("--feast-dynamo-inputs", "/opt/ml/processing/input"),
            *("--feast-dynamo-message", "/opt/ml/output/message"),
        ],
    }
    assert request["ProcessingOutputConfig"]["Outputs"] == [
        {
            "OutputName": "sets",
            "S3Output": {
                "S3Uri": "s3://my-features/out",
                "LocalPath": "/opt/ml/processing/output/sets",
                "S3UploadMode": "EndOfJob",
            },
        }
    ]


def test_the_spark_container_is_started_by_smspark_submit_with_its_settings(bundle):
    image = spark_image_uri("eu-west-1")
    made = job("processing", bundle, image=image, is_spark=True, instances=4, spark={"a.b": "1"})
    (request,) = made.requests.values()
    assert image == (
        "571004829621.dkr.ecr.eu-west-1.amazonaws.com/sagemaker-spark-processing:3.5-cpu-py312-v1"
    )
    assert request["AppSpecification"]["ContainerEntrypoint"][0] == "smspark-submit"
    conf = made.uploads[0]
    assert (conf.name, json.loads(conf.data)) == (
        "configuration.json",
        [{"Classification": "spark-defaults", "Properties": {"a.b": "1"}}],
    )
    assert request["ProcessingInputs"][-1]["S3Input"]["S3Uri"] == conf.folder
    with pytest.raises(ConfigError, match=r"region `mars-1` is not known here"):
        spark_image_uri("mars-1")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (
            "glue",
            {
                "flex": True,
                "py_files": ["s3://my-features/a.py"],
                "spark": {"spark.a": "1", "spark.b": "2"},
                "arguments": {"--enable-metrics": "true"},
                "connections": ["vpc"],
                "security_configuration": "ours",
                "worker_type": "R.2X",
                "workers": 20,
            },
        ),
        (
            "emr",
            {"py_files": ["s3://b/a.py"], "log_group": "/emr/jobs", "timeout_minutes": 5},
        ),
        (
            "processing",
            {
                "inputs": {"rates": "s3://my-features/rates/"},
                "outputs": {"sets": "s3://my-features/out"},
                "vpc": Vpc(["subnet-1"], ["sg-1"]),
                "kms_key": "alias/outputs",
                "volume_kms_key": "alias/disks",
                "max_runtime_s": 3_600,
            },
        ),
    ],
)
def test_every_setting_is_in_a_request_that_the_service_model_takes(bundle, kind, settings):
    made = job(kind, bundle, tags={"team": "growth"}, **settings)
    for operation, request in made.requests.items():
        assert request_problems(operation, request, service=SERVICES[kind]) == ()
    made.check()
    text = json.dumps(made.requests)
    for value in settings.values():
        for each in value if isinstance(value, (list, dict)) else []:
            assert each in text
    assert "growth" in text
    assert made.name != job(kind, bundle).name


@pytest.mark.parametrize("kind", SERVICES)
def test_a_name_follows_from_what_runs_and_is_another_for_another_token(bundle, tmp_path, kind):
    made = job(kind, bundle)
    assert made.name == job(kind, bundle, tags={"a": "b"}).name
    assert made.name.startswith("feast-dynamo-materialize-")
    assert job(kind, bundle, name="nightly").name.startswith("nightly-")
    others = {job(kind, bundle, token="2").name}
    (tmp_path / "views.py").write_text("VIEWS = 2\n")
    others.add(job(kind, bundle_of(tmp_path)).name)
    others.add(job(kind, bundle_of(tmp_path, environment={"A": "1"})).name)
    assert len({made.name, *others}) == 4


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("glue", {"worker_type": "G1X"}, "`WorkerType` is `G1X`. Did you mean `G.1X`?"),
        ("glue", {"glue_version": "five"}, "`GlueVersion` is `five`, which does not match"),
        ("glue", {"timeout_minutes": 0}, "`Timeout` is 0; the least is 1"),
        ("emr", {"role": "features"}, "`executionRoleArn` has 8 characters; the least is 20"),
        ("emr", {"application": "my-app"}, "`applicationId` is `my-app`, which does not match"),
        ("emr", {"log_group": "a b"}, "logGroupName` is `a b`, which does not match"),
        ("processing", {"role": "r" * 30}, "`RoleArn` is `rrr"),
        ("processing", {"instance_type": "m5.large"}, "is `m5.large`. Did you mean `ml.m5.large`"),
        ("processing", {"volume_gb": 0}, "VolumeSizeInGB` is 0; the least is 1"),
        ("processing", {"max_runtime_s": 900_000}, "is 900000; the most is 777600"),
        (
            "processing",
            {"inputs": {f"i{n}": "s3://b/k" for n in range(7)}},
            "`ProcessingInputs` has 11 items; the most are 10",
        ),
    ],
)
def test_what_the_service_model_refuses_is_refused_before_anything_is_sent(
    bundle, kind, settings, message
):
    with pytest.raises(RequestError) as error:
        job(kind, bundle, **settings).check()
    assert "and nothing was sent" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("glue", {"workers": 1}, "has 1 worker; Glue takes 2 or more"),
        ("glue", {"arguments": {"--conf": "a=b"}}, "--conf of a Glue job are set by this command"),
        ("emr", {"timeout_minutes": 4}, "may run for 4 min; EMR Serverless takes 5 or more"),
        ("emr", {"spark": {"spark.a": "b c"}}, "`spark.a=b c` has a space in it"),
        (
            "emr",
            {"archive": "s3://b/env.rar"},
            "`s3://b/env.rar` is no archive that Spark unpacks",
        ),
        ("processing", {"instances": 2}, "without it each instance would run the command"),
        ("processing", {"spark": {"a": "b"}}, "Settings of Spark, and several instances, are for"),
        (
            "processing",
            {"inputs": {"repo": "s3://b/k"}},
            "The inputs repo of a processing job are",
        ),
    ],
)
def test_what_the_service_refuses_and_its_model_does_not_say_is_refused(
    bundle, kind, settings, message
):
    with pytest.raises(ConfigError, match=message):
        job(kind, bundle, **settings).check()


def test_glue_is_given_requirements_without_commas():
    assert glue_modules(["a==1", "b[x,y]==2"]) == ["a==1", "b[x]==2", "b[y]==2"]
    with pytest.raises(ConfigError, match=r"`c<3,>=2` has one in it. Name one version"):
        glue_modules(["c<3,>=2"])


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-west-1", "eu-west-1.console.aws.amazon.com"),
        ("cn-north-1", "cn-north-1.console.amazonaws.cn"),
        ("us-gov-west-1", "us-gov-west-1.console.amazonaws-us-gov.com"),
    ],
)
def test_the_console_is_that_of_the_partition(region, host):
    assert console_url(region, "x") == f"https://{host}/x"


# -- commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "feast-dynamo materialize 2026-01-01 2026-02-01 --views orders",
        "feast-dynamo training-set build churn",
        "feast-dynamo docs quickstart",
        "feast materialize-incremental 2026-02-01",
        "feast --log-level INFO apply",
        "python backfill.py --from 2026-01-01",
    ],
)
def test_a_command_that_there_is_is_taken(command):
    check_command(command.split(), main)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("ls -l", "and not `ls`. Write `-- feast-dynamo materialize ...`"),
        ("feast-dynamo", "`feast-dynamo` needs a command of its own after it"),
        ("feast-dynamo materialise 2026-01-01", "Did you mean `materialize`?"),
        ("feast-dynamo training-set bild churn", "`feast-dynamo training-set` has no command"),
        ("feast-dynamo training-set build", "`feast-dynamo training-set build` misses"),
        ("feast-dynamo training-set build churn --forze", "No such option '?--forze"),
        ("feast-dynamo docs quickstart reference", "`feast-dynamo docs` takes no `reference`"),
        ("feast-dynamo submit glue", "`feast-dynamo submit` is for this machine"),
        ("feast materialise", "`feast` has no command `materialise`"),
        ("feast materialize --viws x", "No such option '?--viws"),
    ],
)
def test_a_command_that_would_only_fail_there_is_refused_here(command, message):
    with pytest.raises(click.UsageError, match=message):
        check_command(command.split(), main)
