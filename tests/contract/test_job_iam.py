"""The policies of jobs and pipelines on a moto that enforces IAM: enough, and not too much."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import boto3
import pyarrow as pa
import pytest
import urllib3
from botocore.exceptions import ClientError
from click.testing import CliRunner
from enforced_iam import enforce, policy_of, statements
from repos import write_repo_yaml
from submit_repo import write_submit_repo
from submit_server import SubmitServer

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.errors import AccessDeniedError, FeastDynamoError
from feast_dynamo_ext.local import start_moto, stop
from feast_dynamo_ext.sagemaker import Provenance, TimeSplit, write_training_set
from feast_dynamo_ext.sagemaker.job_source import pack_source, upload_source
from feast_dynamo_ext.sagemaker.local_job import run_training_job
from feast_dynamo_ext.sagemaker.pipeline.declared_steps import pipeline_steps
from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import parse_pipeline
from feast_dynamo_ext.sagemaker.pipeline.registration import register_model
from feast_dynamo_ext.sagemaker.pipeline.repo_parts import read_parts
from feast_dynamo_ext.sagemaker.pipeline.steps import OPERATIONS, all_steps
from feast_dynamo_ext.sagemaker.training_job import Spot, training_job_request
from feast_dynamo_ext.submit.job_bundle import ENTRY

pytestmark = pytest.mark.server  # a moto of its own, that refuses

ROLE = "arn:aws:iam::111122223333:role/sagemaker-training"
SET = "s3://my-features/training/churn"
# What moto does not ask for: roles that are handed over, tags of a new job, uploads that are given
# up, and a service that works for itself.
UNCHECKED = {"iam:PassRole", "sagemaker:AddTags", "s3:AbortMultipartUpload"}
# What moto does not know, or a job that ends well does not ask for.
OF_A_STOP = {"glue:BatchStopJobRun", "emr-serverless:CancelJobRun", "sagemaker:StopProcessingJob"}
OF_SAGEMAKER = ("ecr:", "logs:", "cloudwatch:")


def actions(name: str) -> list[tuple[str, str]]:
    """Sid and action of all that a policy allows and moto asks for."""
    return [
        (statement["Sid"], action)
        for statement in statements(name)
        for action in statement["Action"]
        if action not in UNCHECKED
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = start_moto(tmp_path_factory.mktemp("moto"))
    yield found
    stop(found)


@pytest.fixture(autouse=True)
def bucket(server, monkeypatch) -> None:
    """A training set on a moto that asks nobody, until `as_user`."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "admin")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    octets = {"Content-Type": "application/octet-stream"}
    # So many requests are free of it.
    reset = f"{server.endpoint}/moto-api/reset-auth"
    urllib3.request("POST", reset, body=b"1000000", headers=octets)
    boto3.client("s3").create_bucket(Bucket="my-features")
    write_set(SET)


def write_set(output: str):
    times = [datetime(2026, 1, 1 + day, tzinfo=timezone.utc) for day in range(12)]
    table = pa.table({"y": [day % 2 for day in range(12)], "t": times, "x": range(12)})
    return write_training_set(
        table,
        label="y",
        event_timestamp="t",
        entity_columns=[],
        features=["x"],
        split=TimeSplit(times[8], times[8] + timedelta(days=2)),
        output=output,
        aws=AwsSettings(),
        provenance=Provenance("shop", ("stats:x",), {"stats": "ab"}, (), "cd"),
        overwrite=True,
    )


@pytest.fixture
def as_user(server, monkeypatch):
    """Act with a policy, from which one action may be taken."""
    made = 0

    def as_user(name: str, sid: str = "", action: str = "") -> None:
        nonlocal made
        made += 1
        policy = json.loads(policy_of(name))
        for statement in policy["Statement"]:
            if statement["Sid"] == sid:
                statement["Action"].remove(action)
        policy["Statement"] = [each for each in policy["Statement"] if each["Action"]]
        user = hashlib.sha256(f"{name}{sid}{action}{made}".encode()).hexdigest()[:16]
        iam = boto3.client("iam")
        iam.create_user(UserName=user)
        document = json.dumps(policy)
        iam.put_user_policy(UserName=user, PolicyName=user, PolicyDocument=document)
        key = iam.create_access_key(UserName=user)["AccessKey"]
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        enforce(server.endpoint)

    return as_user


@pytest.fixture
def train(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("print('trains')\n")
    options = ["train", SET, "--algorithm", "xgboost", "--role", ROLE, "--script", "train.py"]
    options += ["--output-path", "s3://my-features/models", "--poll", "0"]

    def train(token: str):
        dry = CliRunner().invoke(main, [*options, "--token", token, "--dry-run"])
        assert dry.exit_code == 0, dry.output
        name = json.loads(dry.stdout)["TrainingJobName"]
        stream = {"logGroupName": "/aws/sagemaker/TrainingJobs"}
        with contextlib.suppress(boto3.client("logs").exceptions.ResourceAlreadyExistsException):
            boto3.client("logs").create_log_group(**stream)
        stream["logStreamName"] = f"{name}/algo-1-1690000000"
        boto3.client("logs").create_log_stream(**stream)
        return lambda: CliRunner().invoke(main, [*options, "--token", token])

    return train


@pytest.mark.parametrize(("sid", "action"), [("", ""), *actions("train")])
def test_a_job_is_started_and_followed_with_its_policy_and_not_with_less(
    sid, action, as_user, train, tmp_path
):
    (tmp_path / "train.py").write_text(f"print({sid + action!r})\n")  # uploaded by each of them
    run = train(f"{sid}{action}")
    as_user("train", sid, action)
    found = run()
    if not action:
        assert found.exit_code == 0, found.output
        assert "lineage: s3://my-features/models/" in found.stdout
    elif action.startswith("logs:"):
        assert found.exit_code == 0, found.output
        assert "The job is followed without its log" in found.stderr
    else:
        assert found.exit_code == 1, (sid, action)
        assert "AccessDenied" in found.stderr
        assert "Traceback" not in found.output


@pytest.fixture
def repo(tmp_path) -> Path:
    write_repo_yaml(tmp_path)
    (tmp_path / "training_sets").mkdir()
    (tmp_path / "training_sets" / "churn.yaml").write_text(
        "feature_service: churn_v1\nentity_rows: {path: labels.parquet}\nlabel: bought\n"
        "split: {rule: time, validation_from: 2026-01-11, test_from: 2026-01-21}\n"
        "output: training\n"
    )
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "train.py").write_text("print(1)\n")
    (tmp_path / "evaluate.py").write_text("print(2)\n")
    return tmp_path


def pipeline_text(name: str) -> str:
    return f"""
name: {name}
role: arn:aws:iam::111122223333:role/sagemaker-pipeline
output: s3://my-features/pipelines/{name}
image: features:1
materialize: {{}}
training_set: {{name: churn}}
train: {{script: train.py, image: "xgboost:1"}}
evaluate: {{script: evaluate.py}}
condition: {{metric: auc, at_least: 0.7}}
package: {{group: {name}, image: "serve:1"}}
deploy: {{endpoint: churn}}
schedule: {{expression: rate(1 day), role: arn:aws:iam::111122223333:role/start-pipelines}}
"""


class Scheduler(BaseHTTPRequestHandler):
    """An EventBridge Scheduler that keeps schedules: moto refuses every signature for its own."""

    schedules: ClassVar[dict[str, dict]] = {}
    operations: ClassVar[set[str]] = set()

    def answer(self) -> None:
        made = {
            "GET": "GetSchedule",
            "POST": "CreateSchedule",
            "PUT": "UpdateSchedule",
            "DELETE": "DeleteSchedule",
        }
        self.operations.add(f"scheduler:{made[self.command]}")
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size) or b"{}")
        path = self.path.partition("?")[0]
        if body:
            self.schedules[path] = body
        is_there = path in self.schedules
        found = self.schedules.get(path, {"Message": "there is none"})
        if self.command == "DELETE":
            self.schedules.pop(path, None)
        data = json.dumps(found | {"ScheduleArn": "arn:aws:scheduler:::x"}).encode()
        self.send_response(200 if is_there else 404)
        if not is_there:
            self.send_header("x-amzn-ErrorType", "ResourceNotFoundException")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - as the server calls them

    def log_message(self, *args) -> None:
        """Nothing is logged."""


@pytest.fixture
def scheduler(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scheduler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_SCHEDULER", address)
    Scheduler.operations.clear()
    yield Scheduler
    server.shutdown()
    server.server_close()


def whole_use(repo: Path, name: str) -> str:
    """Make, start, schedule and change a pipeline, and register a model; gives the first error."""
    file = repo / "pipelines" / "churn.yaml"
    file.write_text(pipeline_text(name))

    def commands(*lines: str) -> str:
        for line in lines:
            found = CliRunner().invoke(main, [*line.split(), "-c", str(repo)])
            if found.exit_code:
                assert "Traceback" not in found.output
                return found.stderr
        return ""

    schedule = "refresh churn --schedule"
    error = commands("pipeline upsert churn", "pipeline start churn", schedule)
    if error:
        return error
    file.write_text(pipeline_text(name).replace("rate(1 day)", "rate(2 days)"))
    (repo / "evaluate.py").write_text(f"print('{name}')\n")
    return commands(schedule, "refresh churn --remove") or register(repo, name)


def register(repo: Path, name: str) -> str:
    made = write_local_set(repo)
    for file, content in (("model.tar.gz", name), ("evaluation.json", '{"auc": 0.8}')):
        (repo / file).write_text(content)
    hashes = {file: sha256(repo / file) for file in ("model.tar.gz", "evaluation.json")}
    entry = {
        "model": {"path": str(repo / "model.tar.gz"), "sha256": hashes["model.tar.gz"]},
        "manifest_sha256": sha256(made / "manifest.json"),
        "training_set": str(made),
        "metric": {"value": 0.8},
    }
    declaration = parse_pipeline(pipeline_text(name), "x.yaml")
    definition = read_parts(declaration, repo).definition
    evaluation = {"path": str(repo / "evaluation.json"), "sha256": hashes["evaluation.json"]}
    try:
        register_model(declaration, definition, entry, evaluation, AwsSettings())
    except AccessDeniedError as error:
        return str(error)
    return ""


def write_local_set(repo: Path) -> Path:
    write_set(str(repo / "set"))
    return repo / "set"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("sid", "action"),
    [("", "")] + [each for each in actions("pipeline") if not each[1].startswith("scheduler:")],
)
def test_a_pipeline_is_made_and_used_with_its_policy_and_not_with_less(
    sid, action, as_user, server, repo, scheduler
):
    name = f"p-{sid}-{action.partition(':')[2]}".rstrip("-")
    as_user("pipeline", sid, action)
    error = whole_use(repo, name)
    if action:
        assert "AccessDenied" in error, (sid, action)
    else:
        assert error == ""
        of_policy = {allowed for sid, allowed in actions("pipeline") if sid == "Schedules"}
        assert scheduler.operations == of_policy


def test_the_role_of_a_schedule_starts_its_pipeline_and_does_nothing_else(repo, as_user):
    (repo / "pipelines" / "churn.yaml").write_text(pipeline_text("scheduled"))
    made = CliRunner().invoke(main, ["pipeline", "upsert", "churn", "-c", str(repo)])
    assert made.exit_code == 0, made.stderr
    as_user("schedule_role")
    sagemaker = boto3.client("sagemaker")
    started = sagemaker.start_pipeline_execution(PipelineName="scheduled")
    assert ":pipeline/scheduled/execution/" in started["PipelineExecutionArn"].lower()
    for refused in (sagemaker.describe_pipeline, sagemaker.delete_pipeline):
        with pytest.raises(ClientError, match="AccessDenied"):
            refused(PipelineName="scheduled")
    (statement,) = statements("schedule_role")
    assert statement["Resource"].endswith(":pipeline/churn")
    (trust,) = statements("schedule_trust")
    assert trust["Principal"] == {"Service": "scheduler.amazonaws.com"}


def test_the_role_of_a_pipeline_may_do_what_its_steps_do_and_no_more(repo):
    declaration = parse_pipeline(pipeline_text("churn"), "x.yaml")
    steps = all_steps(pipeline_steps(declaration, read_parts(declaration, repo)))
    operations = {OPERATIONS[step.type][0] for step in steps if step.type in OPERATIONS}
    needed = operations | {name.replace("Create", "Describe") for name in operations}
    jobs = {name for name in operations if name.endswith("Job")}
    needed |= {name.replace("Create", "Stop") for name in jobs}
    needed |= {"UpdateEndpoint", "AddTags"}  # an endpoint that is there; what SageMaker marks
    found = {action for statement in statements("pipeline_role") for action in statement["Action"]}
    assert found - {"iam:PassRole"} == {f"sagemaker:{name}" for name in needed}


@pytest.mark.skipif(
    importlib.util.find_spec("sagemaker_training") is None,
    reason="sagemaker-training is not installed",
)
@pytest.mark.parametrize(
    ("sid", "action"),
    [("", "")]
    + [each for each in actions("sagemaker_role") if not each[1].startswith(OF_SAGEMAKER)],
)
def test_a_job_reads_and_writes_with_its_role_and_not_with_less(
    sid, action, as_user, server, tmp_path
):
    """The job on this machine, with the rights that SageMaker would have on S3."""
    (tmp_path / "train.py").write_text(
        "import json, os, pathlib\n"
        "config = pathlib.Path(os.environ['SM_INPUT_CONFIG_DIR'], 'checkpointconfig.json')\n"
        "folder = pathlib.Path(json.loads(config.read_text())['LocalPath'])\n"
        "(folder / 'epoch').write_text('1')\n"
        "pathlib.Path(os.environ['SM_MODEL_DIR'], 'model').write_text('x')\n"
    )
    source = pack_source(tmp_path / "train.py")
    uri = upload_source(source, "s3://my-features/models/sources", AwsSettings())
    made = training_job_request(
        f"job-{sid}-{action.partition(':')[2]}".rstrip("-"),
        role_arn=ROLE,
        image="churn:1",
        channels=write_set(SET).channels(),
        output_path="s3://my-features/models",
        hyperparameters=source.hyperparameters(uri),
        spot=Spot(90_000, "s3://my-features/models/checkpoints"),
    )
    as_user("sagemaker_role", sid, action)
    if action:
        with pytest.raises(FeastDynamoError, match="AccessDenied"):
            run_training_job(made, work_dir=tmp_path / "w", aws=AwsSettings())
    else:
        done = run_training_job(made, work_dir=tmp_path / "w", aws=AwsSettings())
        assert done.job.status == "Completed"


# -- submitted commands -----------------------------------------------------------------------

SUBMIT = {
    "submit_glue": "glue",
    "submit_emr_serverless": "emr-serverless",
    "submit_processing": "processing",
}


@pytest.fixture
def submit(server, tmp_path, monkeypatch):
    """Submits a command, which is another one for each token; with a log that may be read."""
    write_submit_repo(tmp_path)
    monkeypatch.chdir(tmp_path)
    logs = boto3.client("logs")
    for group in ("test/log/output", "/aws/sagemaker/ProcessingJobs"):
        with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_group(logGroupName=group)

    def submit(policy: str, token: str):
        options = ["submit", SUBMIT[policy], "--role", JOB_ROLE, "--poll", "0", "--token", token]
        options += ["--destination", "s3://my-features/jobs", "--env", f"TOKEN={token}"]
        if policy == "submit_emr_serverless":
            client = boto3.client("emr-serverless")
            made = client.create_application(type="SPARK", releaseLabel="emr-7.9.0", name="a")
            options += ["--application", made["applicationId"]]
            # A log that is there for whichever run.
            client.start_job_run(
                applicationId=made["applicationId"], clientToken="t", executionRoleArn=JOB_ROLE
            )
        return lambda: CliRunner().invoke(main, [*options, "feast-dynamo", "docs"])

    return submit


JOB_ROLE = "arn:aws:iam::123456789012:role/features-job"


@pytest.mark.parametrize(
    ("policy", "sid", "action"),
    [
        (policy, sid, action)
        for policy in ("submit_glue", "submit_processing")  # moto misreads EMR's signatures
        for sid, action in [("", ""), *actions(policy)]
        if action not in OF_A_STOP and sid != "ReadLogs"
    ],
)
def test_a_command_is_submitted_with_its_policy_and_not_with_less(
    policy, sid, action, as_user, submit
):
    run = submit(policy, f"{policy}{sid}{action}".replace(":", "-"))
    as_user(policy, sid, action)
    found = run()
    if not action:
        assert found.exit_code == 0, found.output
        assert "without its log" not in found.stderr
    else:
        assert found.exit_code == 1, (sid, action, found.output)
        assert "AccessDenied" in found.stderr
        assert "Traceback" not in found.output


@pytest.mark.parametrize("policy", ["submit_glue", "submit_processing"])
def test_a_submitted_command_is_followed_without_its_log_where_that_may_not_be_read(
    policy, as_user, submit
):
    run = submit(policy, f"{policy}-log")
    as_user(policy, "ReadLogs", "logs:DescribeLogStreams")
    found = run()
    assert found.exit_code == 0, found.output
    assert "The job is followed without its log" in found.stderr


@pytest.mark.parametrize("policy", SUBMIT)
def test_a_policy_of_submit_allows_what_is_called_and_no_more(policy, submit, monkeypatch):
    kind = SUBMIT[policy]
    services = {"glue": "glue", "emr-serverless": "emr-serverless", "processing": "sagemaker"}
    ends = {"glue": "SUCCEEDED", "emr-serverless": "SUCCESS", "processing": "Completed"}
    run = submit(policy, f"calls-{kind}")
    calls = SubmitServer([ends[kind]])
    name = services[kind].replace("-", "_").upper()
    monkeypatch.setenv(f"AWS_ENDPOINT_URL_{name}", calls.endpoint)
    try:
        assert run().exit_code == 0
    finally:
        calls.close()
    found = {operation.replace("GetEmrRun", "GetJobRun") for operation, _ in calls.requests}
    of_policy = {action for _, action in actions(policy) if action not in OF_A_STOP}
    allowed = {action for action in of_policy if action.startswith(f"{services[kind]}:")}
    assert {f"{services[kind]}:{operation}" for operation in found} == allowed
    stops = {action for _, action in actions(policy)} & OF_A_STOP
    assert len(stops) == 1


@pytest.mark.parametrize("action", ["", "s3:GetObject"])
def test_the_role_of_a_job_reads_what_was_uploaded(action, as_user, submit, tmp_path):
    submit("submit_glue", f"role-{action}")()
    listed = boto3.client("s3").list_objects_v2(Bucket="my-features", Prefix="jobs/jobs/")
    newest = max(listed["Contents"], key=lambda entry: entry["LastModified"])["Key"]
    as_user("submit_role", "ReadJobs" if action else "", action)
    given = [sys.executable, ENTRY, "--feast-dynamo-job", f"s3://my-features/{newest}"]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    if action:
        assert done.returncode == 70
        assert "AccessDenied" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "Quickstart" in done.stdout
