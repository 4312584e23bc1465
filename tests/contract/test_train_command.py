"""feast-dynamo train and what is below it: jobs with stages, faults, logs, links and reruns."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import signal
import tarfile
from pathlib import Path

import boto3
import pyarrow as pa
import pytest
from click.testing import CliRunner
from job_server import JobServer
from repos import write_repo_yaml

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import ConfigError, RequestError, ThrottledError, TrainingJobError
from feast_dynamo_ext.sagemaker import Provenance, TimeSplit, write_training_set
from feast_dynamo_ext.sagemaker.job_submission import (
    Shown,
    follow_training_job,
    submit_training_job,
)
from feast_dynamo_ext.sagemaker.request_check import request_problems
from feast_dynamo_ext.sagemaker.training_job import training_job_request

ROLE = "arn:aws:iam::123456789012:role/train"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/churn:1"
STAGES = [
    ("InProgress", "Starting"),
    ("InProgress", "Training"),
    ("InProgress", "Training"),
    ("Completed", "Completed"),
]
LINES = {"algo-1": [f"round {n}" for n in range(5)], "algo-2": ["waiting"]}


@pytest.fixture
def jobs(monkeypatch):
    # Faults are waited out by the package, not by botocore, whose waits are seconds.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    server = JobServer(list(STAGES), {host: list(lines) for host, lines in LINES.items()})
    yield server
    server.close()


@pytest.fixture
def aws(jobs) -> AwsSettings:
    return AwsSettings(region="us-east-1", endpoint_url=jobs.endpoint)


def request(name: str = "churn-july", **options) -> dict:
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://lake/train/"}
    return training_job_request(
        name,
        role_arn=ROLE,
        image=IMAGE,
        channels=[{"ChannelName": "train", "DataSource": {"S3DataSource": source}}],
        output_path="s3://lake/models",
        **options,
    )


class News:
    """What a job that is followed has shown."""

    def __init__(self) -> None:
        self.statuses, self.lines, self.notes = [], [], []
        self.shown = Shown(
            lambda job: self.statuses.append((job.status, job.secondary_status)),
            lambda host, text: self.lines.append((host, text)),
            self.notes.append,
        )


def test_a_job_is_followed_through_its_stages_with_the_log_of_its_hosts(jobs, aws):
    jobs.extra = {
        "ModelArtifacts": {"S3ModelArtifacts": "s3://lake/models/churn-july/output/model.tar.gz"},
        "FinalMetricDataList": [{"MetricName": "auc", "Value": 0.5, "Timestamp": 1.0}],
        "BillableTimeInSeconds": 61,
    }
    assert submit_training_job(request(), aws).is_new
    news = News()
    job = follow_training_job("churn-july", aws, news.shown, poll_s=0)
    assert news.statuses == STAGES[1:]
    assert [text for host, text in news.lines if host == "algo-1"] == LINES["algo-1"]
    assert [text for host, text in news.lines if host == "algo-2"] == LINES["algo-2"]
    assert (job.status, job.metrics, job.billable_s) == ("Completed", {"auc": 0.5}, 61)
    assert job.model_artifacts == "s3://lake/models/churn-july/output/model.tar.gz"


@pytest.mark.parametrize(
    ("ended", "extra", "message"),
    [
        (
            ("Failed", "Failed"),
            {"FailureReason": "AlgorithmError: no rows, exit code: 1"},
            "Training job `churn-july` failed (Failed): AlgorithmError: no rows, exit code: 1. "
            "The end of its log: round 0 | round 1 | round 2 | waiting | round 3 | round 4",
        ),
        (
            ("Stopped", "MaxRuntimeExceeded"),
            {"SecondaryStatusTransitions": [{"Status": "Stopped", "StartTime": 1.0,
              "StatusMessage": "Training job runtime exceeded"}]},
            "was stopped (MaxRuntimeExceeded): Training job runtime exceeded. The end of its log",
        ),
    ],
)  # fmt: skip
def test_a_job_that_fails_or_stops_is_one_error_with_its_reason(jobs, aws, ended, extra, message):
    jobs.stages, jobs.extra = [*STAGES[:2], ended], extra
    jobs.lines_a_look = 3
    submit_training_job(request(), aws)
    with pytest.raises(TrainingJobError) as error:
        follow_training_job("churn-july", aws, News().shown, poll_s=0)
    assert message.split("The end")[0] in str(error.value)
    assert "The end of its log: " in str(error.value)
    assert "round 4" in str(error.value)
    assert (error.value.name, error.value.status) == ("churn-july", ended[0])


def test_throttling_is_waited_out_and_lost_permission_to_the_log_is_said_once(jobs, aws):
    submit_training_job(request(), aws)
    jobs.faults = [("DescribeTrainingJob", "ThrottlingException")] * 6 + [
        ("DescribeLogStreams", "AccessDeniedException")
    ]
    news = News()
    assert follow_training_job("churn-july", aws, news.shown, poll_s=0).status == "Completed"
    assert jobs.faults == []
    assert news.lines == []
    (note,) = news.notes
    assert "followed without its log" in note


def test_throttling_without_end_is_an_error(jobs, aws):
    submit_training_job(request(), aws)
    jobs.faults = [("DescribeTrainingJob", "ThrottlingException")] * 20
    with pytest.raises(ThrottledError):
        follow_training_job("churn-july", aws, News().shown, poll_s=0)
    assert jobs.faults == []


def test_the_same_request_starts_one_job_and_another_of_its_name_is_refused(jobs, aws):
    assert submit_training_job(request(), aws).is_new
    again = submit_training_job(request(tags={"a": "b"}), aws)
    assert (again.is_new, again.job.name) == (False, "churn-july")
    assert jobs.count("CreateTrainingJob") == 1
    with pytest.raises(ConfigError, match="already, with other values of hyperparameters"):
        submit_training_job(request(hyperparameters={"depth": 3}), aws)
    assert jobs.count("CreateTrainingJob") == 1


def test_two_that_start_a_job_at_once_follow_the_same(jobs, aws):
    made = request()
    jobs.CreateTrainingJob(made)
    jobs.faults = [("DescribeTrainingJob", "ValidationException")]

    def unknown(body, known=jobs.DescribeTrainingJob):
        jobs.DescribeTrainingJob = known
        said = "Requested resource not found."
        return 400, {"__type": "ValidationException", "message": said}

    jobs.faults, jobs.DescribeTrainingJob = [], unknown
    assert not submit_training_job(made, aws).is_new
    assert jobs.count("CreateTrainingJob") == 1


def test_nothing_is_sent_of_a_request_with_a_fault(jobs, aws):
    made = request()
    made["InputDataConfig"][0]["InputMode"] = "Fast"
    with pytest.raises(RequestError, match=r"InputDataConfig\[0\]\.InputMode"):
        submit_training_job(made, aws)
    assert jobs.requests == []


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def training_set(moto_endpoint, bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    monkeypatch.chdir(tmp_path)
    return write_set(f"s3://{bucket}/churn/july")


def write_set(output: str):
    table = pa.table(
        {
            "label": [0, 1] * 6,
            "t": pa.array(range(12), pa.timestamp("us", "UTC")),
            "spend": [float(number) for number in range(12)],
        }
    )
    return write_training_set(
        table,
        label="label",
        event_timestamp="t",
        entity_columns=[],
        features=["spend"],
        split=TimeSplit(table["t"][8].as_py(), table["t"][10].as_py()),
        output=output,
        aws=AwsSettings(),
        provenance=Provenance("shop", ("sales:spend",), {}, (), "cd"),
        parts=2,
    )


def run(*arguments, code: int = 0):
    result = CliRunner().invoke(main, ["train", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_a_set_is_trained_on_linked_to_its_model_and_found_again(
    training_set, bucket, jobs, monkeypatch, tmp_path
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", jobs.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", jobs.endpoint)
    s3 = boto3.client("s3")
    model = f"s3://{bucket}/churn/models/x/output/model.tar.gz"
    s3.put_object(Bucket=bucket, Key="churn/models/x/output/model.tar.gz", Body=b"model")
    jobs.extra = {
        "ModelArtifacts": {"S3ModelArtifacts": model},
        "FinalMetricDataList": [{"MetricName": "auc", "Value": 0.75, "Timestamp": 1.0}],
    }
    script = tmp_path / "train.py"
    script.write_text("print('hello')\n")
    command = [training_set.output, "--algorithm", "xgboost", "--version", "1.7-1"]
    command += ["--script", script, "--role", ROLE, "--set", "max_depth=3"]
    command += ["--env", "PASSWORD=hunter2", "--metric", "auc=auc=([0-9.]+)"]
    command += ["--instances", "2", "--sharded", "--spot", "48h", "--poll", "0", "--json"]
    first = run(*command)
    answer = json.loads(first.stdout)
    assert (answer["status"], answer["metrics"], answer["model"]) == (
        "Completed",
        {"auc": 0.75},
        model,
    )
    assert "algo-1 | round 4" in first.stderr
    (created,) = (body for operation, body in jobs.requests if operation == "CreateTrainingJob")
    assert request_problems("CreateTrainingJob", created) == ()
    assert created["AlgorithmSpecification"]["TrainingImage"].endswith("sagemaker-xgboost:1.7-1")
    assert created["StoppingCondition"]["MaxWaitTimeInSeconds"] == 172_800
    uri = created["HyperParameters"]["sagemaker_submit_directory"]
    assert s3.head_object(Bucket=bucket, Key=uri.removeprefix(f"s3://{bucket}/"))
    manifest = s3.get_object(Bucket=bucket, Key="churn/july/manifest.json")["Body"].read()
    tags = {tag["Key"]: tag["Value"] for tag in created["Tags"]}
    digest = hashlib.sha256(manifest).hexdigest()
    assert tags["feast-dynamo:training-set"] == training_set.output
    assert tags["feast-dynamo:manifest"] == digest
    assert created["TrainingJobName"].endswith(tags["feast-dynamo:token"][:12])
    lineage = s3.get_object(Bucket=bucket, Key="churn/models/x/output/lineage.json")["Body"].read()
    assert answer["lineage"] == f"s3://{bucket}/churn/models/x/output/lineage.json"
    known = json.loads(lineage)
    assert known["training_set"] == {
        "output": training_set.output,
        "manifest_sha256": digest,
        "project": "shop",
        "features": ["sales:spend"],
    }
    etag = s3.head_object(Bucket=bucket, Key="churn/models/x/output/model.tar.gz")["ETag"]
    assert known["model"] == {"uri": model, "etag": etag.strip('"')}
    assert known["job"]["request"]["HyperParameters"] == created["HyperParameters"]
    assert b"hunter2" not in lineage
    assert "hunter2" not in first.output

    again = run(*command)
    assert "Found training job" in again.stderr
    assert json.loads(again.stdout) == answer
    assert jobs.count("CreateTrainingJob") == 1
    run(*command, "--token", "2", "--no-wait")
    assert jobs.count("CreateTrainingJob") == 2
    script.write_text("print('another')\n")
    run(*command, "--no-wait")
    assert jobs.count("CreateTrainingJob") == 3


def test_moto_takes_the_job(training_set):
    done = run(
        training_set.output, "--algorithm", "xgboost", "--role", ROLE, "--no-wait", "--json"
    )
    name = json.loads(done.stdout)["name"]
    described = boto3.client("sagemaker").describe_training_job(TrainingJobName=name)
    assert described["RoleArn"] == ROLE
    again = run(training_set.output, "--algorithm", "xgboost", "--role", ROLE, "--no-wait")
    assert f"Found training job {name}." in again.stderr


def test_a_set_that_was_changed_starts_nothing(training_set, bucket):
    boto3.client("s3").put_object(
        Bucket=bucket, Key="churn/july/train/csv/part-00000.csv", Body=b"0,9\n"
    )
    done = run(training_set.output, "--algorithm", "xgboost", "--role", ROLE, code=1)
    assert "(changed: train/csv/part-00000.csv). Nothing was started" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--role", ROLE], 2, "Give --image URI or --algorithm NAME."),
        (["--algorithm", "xgboost"], 1, "error: A job needs a role: --role ARN"),
        (["--algorithm", "xgboost", "--image", "i"], 2, "not both"),
        (["--algorithm", "sklearn", "--role", ROLE], 1, "trains nothing by itself"),
        (["--algorithm", "lightgbm", "--role", ROLE], 1, "is an algorithm of JumpStart"),
        (["--set", "depth"], 2, "`depth` is not KEY=VALUE."),
        (["--checkpoints", "s3://b/c", "--image", "i", "--role", ROLE], 2, "give --spot AGE"),
        (
            ["--image", "i", "--role", ROLE, "--instance-type", "m5.large", "--subnet", "s_1"],
            1,
            "has 3 faults, and nothing was sent",
        ),
        (
            ["--algorithm", "xgboost", "--role", ROLE, "--split", "train", "--split", "test"],
            1,
            "xgboost has no channel for the split test",
        ),
        (
            ["--image", "i", "--role", ROLE, "--instances", "3", "--sharded"],
            1,
            "and the train split has 2",
        ),
        (["--algorithm", "xgboost", "--local"], 1, "runs in its container alone. Give it a"),
    ],
)
def test_a_call_that_cannot_work_is_refused_in_a_sentence(
    training_set, tmp_path, arguments, code, message
):
    if "--local" in arguments and importlib.util.find_spec("sagemaker_training") is None:
        pytest.skip("sagemaker-training is not installed")
    done = run(training_set.output, *arguments, code=code)
    assert message in " ".join(done.stderr.split())


def test_a_dry_run_prints_the_request_and_starts_nothing(training_set, jobs, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", jobs.endpoint)
    done = run(
        training_set.output, "--algorithm", "xgboost", "--role", ROLE, "--dry-run"
    )  # fmt: skip
    assert request_problems("CreateTrainingJob", json.loads(done.stdout)) == ()
    assert jobs.requests == []


SCRIPT = """
import os, pathlib
rows = sum(len(f.read_text().splitlines()) for f in pathlib.Path(os.environ["SM_CHANNEL_TRAIN"]).iterdir())
print(f"auc=0.5 rows={rows}")
pathlib.Path(os.environ["SM_MODEL_DIR"], os.environ["SM_CURRENT_HOST"]).write_text(str(rows))
"""  # noqa: E501


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("sagemaker_training") is None,
    reason="sagemaker-training is not installed",
)
def test_the_job_runs_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = write_set(str(tmp_path / "churn/july"))
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [made.output, "--script", "train.py", "--local", "--instances", "2", "--sharded"]
    done = run(*command, "--metric", "auc=auc=([0-9.]+)", "--work-dir", tmp_path / "w", "--json")
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["metrics"]) == ("Completed", {"auc": 0.5})
    assert answer["model"].startswith(f"file://{tmp_path}/churn/models/churn-july-")
    assert Path(answer["model"].removeprefix("file://")).exists()
    assert "algo-2 | auc=0.5 rows=4" in done.stderr
    (tmp_path / "train.py").write_text("raise SystemExit('no luck')\n")
    failed = run(*command, code=1)
    assert "failed on this machine: AlgorithmError: ExecuteUserScriptError" in failed.stderr
    assert "no luck" in failed.stderr


GOES_ON = """
import json, os, pathlib, signal, time
config = pathlib.Path(os.environ["SM_INPUT_CONFIG_DIR"], "checkpointconfig.json")
file = pathlib.Path(json.loads(config.read_text())["LocalPath"], "epoch")
if file.exists():
    pathlib.Path(os.environ["SM_MODEL_DIR"], "model").write_text(file.read_text())
else:
    def leave(*_):
        file.write_text("7")
        raise SystemExit("taken away")
    signal.signal(signal.SIGTERM, leave)
    os.kill(COMMAND, signal.SIGTERM)
    signal.pause()
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("sagemaker_training") is None,
    reason="sagemaker-training is not installed",
)
def test_a_folder_of_a_repo_is_named_without_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_repo_yaml(tmp_path, registry=str(tmp_path / "r.db"), offline={"region": "us-east-1"})
    write_set(str(tmp_path / "july"))
    done = run("july", "--image", IMAGE, "--local", "--script", __file__, "--dry-run")
    made = json.loads(done.stdout)
    uri = made["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"]
    assert uri == f"file://{tmp_path}/july/train/csv/"
    assert "declares no training set" in run("june", "--image", IMAGE, "--local", code=1).stderr


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("sagemaker_training") is None,
    reason="sagemaker-training is not installed",
)
def test_a_command_that_is_terminated_stops_its_job_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = write_set(str(tmp_path / "churn/july"))
    (tmp_path / "train.py").write_text(GOES_ON.replace("COMMAND", str(os.getpid())))
    command = [made.output, "--script", "train.py", "--local", "--work-dir", "w"]
    command += ["--spot", "48h", "--checkpoints", "kept"]
    before = signal.getsignal(signal.SIGTERM)
    stopped = run(*command, code=143)
    kept = f"file://{tmp_path}/kept"
    assert f"The job was stopped. The same command goes on from {kept}." in stopped.stderr
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "kept/epoch").read_text() == "7"
    done = json.loads(run(*command, "--json").stdout)
    with tarfile.open(done["model"].removeprefix("file://")) as archive:
        assert archive.extractfile("model").read() == b"7"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("sagemaker_training") is None,
    reason="sagemaker-training is not installed",
)
def test_the_python_of_the_page_runs(training_set, tmp_path, capsys):
    boto3.client("s3").create_bucket(Bucket="my-lake")
    (tmp_path / "train.py").write_text(SCRIPT)
    page = Path(__file__).parents[2] / "docs" / "how-to" / "train-jobs.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(compile(block, str(page), "exec"), {"training_set": training_set})  # noqa: S102
    model = "s3://my-lake/models/churn-2026-07/output/model.tar.gz"
    assert capsys.readouterr().out.splitlines()[-1] == f"Completed {model}"
    key = model.removeprefix("s3://my-lake/")
    assert boto3.client("s3").head_object(Bucket="my-lake", Key=key)["ContentLength"] > 0
