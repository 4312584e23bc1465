"""`feast-dynamo submit` on moto, as far as it knows the calls: uploads, starts, follows, finds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from feast import FeatureStore
from submit_repo import COMMAND, ROLE, write_submit_repo
from submit_server import SubmitServer

from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.submit.job_bundle import ENTRY

KINDS = ("glue", "emr-serverless", "processing")


@pytest.fixture
def repo(moto_endpoint, bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    monkeypatch.chdir(tmp_path)
    return write_submit_repo(tmp_path / "repo", bucket)


@pytest.fixture
def options(repo, bucket):
    """The options of each service, on moto."""

    def options(kind: str) -> list[str]:
        more: list[str] = []
        if kind == "emr-serverless":
            client = boto3.client("emr-serverless")
            made = client.create_application(type="SPARK", releaseLabel="emr-7.9.0", name="a")
            more = ["--application", made["applicationId"]]
        given = ["--role", ROLE, "--destination", f"s3://{bucket}/jobs", "-c", str(repo)]
        return [kind, *given, "--poll", "0", *more]

    return options


def run(*arguments, code: int = 0):
    result = CliRunner().invoke(main, ["submit", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def keys(bucket: str) -> list[str]:
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_moto_takes_the_job_which_is_followed_and_found_again(kind, options, bucket, repo):
    command = [*options(kind), "--json", "--token", "1", "--", *COMMAND]
    first = run(*command)
    answer = json.loads(first.stdout)
    assert answer["name"].startswith("feast-dynamo-materialize-")
    assert "Uploaded 4 files" in first.stderr
    assert "Started " in first.stderr
    assert answer["console"] in first.stderr
    if kind == "glue":
        job = boto3.client("glue").get_job(JobName=answer["name"])["Job"]
        assert (job["Role"], job["GlueVersion"]) == (ROLE, "5.1")
        assert answer["status"] == "SUCCEEDED"
    elif kind == "processing":
        described = boto3.client("sagemaker").describe_processing_job(
            ProcessingJobName=answer["name"]
        )
        assert described["RoleArn"] == ROLE
        assert answer["status"] == "Completed"
    else:
        assert answer["status"] == "SUCCESS"
    before = keys(bucket)
    kinds = {key.split("/")[1] for key in before}
    assert kinds == {"wheels", "repos", "entry", "jobs"}
    again = run(*command)
    assert json.loads(again.stdout)["id"] == answer["id"]
    assert "Found " in again.stderr
    assert "Uploaded" not in again.stderr
    assert keys(bucket) == before
    without = [word for word in command if word not in ("--token", "1")]
    nightly = [json.loads(run(*without).stdout) for _ in range(3)]
    assert len({job["id"] for job in nightly}) == 3
    assert keys(bucket) == before
    (repo / "views.py").write_text("VIEWS = 2\n")
    other = run(*command)
    assert "Uploaded 2 files" in other.stderr
    assert json.loads(other.stdout)["name"] != answer["name"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_prints_the_requests_and_sends_nothing(kind, options, bucket):
    done = run(*options(kind), "--dry-run", *COMMAND)
    requests = json.loads(done.stdout)
    assert (
        list(requests)[-1]
        == {
            "glue": "StartJobRun",
            "emr-serverless": "StartJobRun",
            "processing": "CreateProcessingJob",
        }[kind]
    )
    assert keys(bucket) == []


def test_no_wait_prints_the_id_alone(options):
    done = run(*options("glue"), "--no-wait", *COMMAND)
    assert done.stdout.startswith("jr_")
    assert len(done.stdout.split()) == 1


def test_files_of_this_disk_are_uploaded_and_named_in_the_request(options, bucket, tmp_path):
    (tmp_path / "rates.py").write_text("RATES = 1\n")
    (tmp_path / "environment.tar.gz").write_bytes(b"x" * 2_000_000)
    given = ["--py-files", "rates.py", "--py-files", "s3://other/more.zip", "--no-wait"]
    given += ["--environment", "environment.tar.gz", "--conf", "spark.a=1", "--env", "A=b"]
    run(*options("emr-serverless"), *given, *COMMAND)
    found = {key.split("/")[1]: key for key in keys(bucket)}
    client = boto3.client("emr-serverless")
    parameters = json.loads(run(*options("emr-serverless"), *given, "--dry-run", *COMMAND).stdout)
    text = parameters["StartJobRun"]["jobDriver"]["sparkSubmit"]["sparkSubmitParameters"]
    assert f"s3://{bucket}/{found['modules']},s3://other/more.zip --conf" in text
    assert f"spark.archives=s3://{bucket}/{found['environments']}#environment" in text
    body = boto3.client("s3").get_object(Bucket=bucket, Key=found["jobs"])["Body"].read()
    assert json.loads(body)["environment"] == {"A": "b"}
    assert client.list_applications()["applications"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["glue", *COMMAND], 2, "Missing option '--role'"),
        (["glue", "--role", ROLE, "--destination", "jobs", *COMMAND], 2, "`jobs` is not on S3"),
        (["glue", "--role", ROLE, "--destination", "s3://b/jobs"], 2, "Missing argument"),
        (["GLUE", "feast-dynamo", "materialise"], 2, "Did you mean `materialize`?"),
        (["GLUE", "--workers", "1", *COMMAND], 1, "has 1 worker; Glue takes 2 or more"),
        (["GLUE", "--worker-type", "G1X", *COMMAND], 1, "Did you mean `G.1X`?"),
        (["GLUE", "--requirement", "a b", *COMMAND], 1, "`a b` is no requirement of pip's"),
        (["GLUE", "--extra", "iceburg", *COMMAND], 1, "Did you mean `iceberg`?"),
        (["GLUE", "--max-size", "10B", *COMMAND], 1, "Data belongs on S3"),
        (["GLUE", "--py-files", "no.py", *COMMAND], 1, "no.py cannot be read: No such file"),
        (["GLUE", "--conf", "spark.a", *COMMAND], 2, "`spark.a` is not KEY=VALUE."),
    ],
)
def test_a_call_that_cannot_work_is_refused_in_a_sentence(
    options, bucket, arguments, code, message
):
    given = options("glue") + arguments[1:] if arguments[0] == "GLUE" else arguments
    done = run(*given, code=code)
    assert message in " ".join(done.stderr.split())
    assert keys(bucket) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"registry": "registry.db"},
            "`registry` of feature_store.yaml is the file `registry.db`",
        ),
        (
            {"offline": {"region": "us-east-1", "endpoint_url": "http://127.0.0.1:5000"}},
            "`endpoint_url` of offline_store is `http://127.0.0.1:5000`, which is this machine",
        ),
        (
            {"offline": {"catalog": {"type": "sql", "warehouse": "s3://b/tables"}}},
            "`catalog` is a file of SQLite",
        ),
        ({"online": {"region": "us-east-1", "role_arn": "${ROLE}"}}, ""),
    ],
)
def test_a_repo_that_a_job_elsewhere_could_not_work_with_is_refused(
    options, repo, bucket, settings, message, monkeypatch
):
    monkeypatch.setenv("ROLE", ROLE)
    given = options("glue")
    write_submit_repo(repo, bucket, **settings)
    done = run(*given, "--dry-run", *COMMAND, code=1 if message else 0)
    assert message in " ".join(done.stderr.split())
    if "copy-local" in done.stderr:
        run(*given, "--copy-local", "--dry-run", *COMMAND)


def test_a_bucket_that_is_not_there_is_one_clear_error(options, repo):
    given = ["glue", "--role", ROLE, "--destination", "s3://no-such-bucket/jobs", "-c", repo]
    done = run(*given, *COMMAND, code=1)
    assert "NoSuchBucket" in done.stderr
    assert "make the bucket: `aws s3 mb s3://no-such-bucket`" in done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.slow
def test_the_job_that_was_uploaded_runs_from_s3(options, bucket, moto_endpoint, tmp_path):
    """The entry script, by itself and with what moto holds, as the service would start it."""
    command = ["python", "-c", "import feast_dynamo_ext; print(feast_dynamo_ext.__version__)"]
    run(*options("emr-serverless"), "--no-wait", "--", *command)
    (key,) = [key for key in keys(bucket) if key.endswith("job.json")]
    done = subprocess.run(
        [sys.executable, ENTRY, "--feast-dynamo-job", f"s3://{bucket}/{key}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0.1.0"
    missing = f"s3://{bucket}/jobs/none.json"
    failed = subprocess.run(
        [sys.executable, ENTRY, "--feast-dynamo-job", missing],
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 70
    assert f"{missing} cannot be read: " in failed.stderr
    assert "needs s3:GetObject" in failed.stderr


VIEWS = """
from datetime import timedelta

from feast import Entity, FeatureView, Field
from feast.types import Float64, Int64
from feast.value_type import ValueType

from feast_dynamo_ext import S3ParquetSource

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
orders = FeatureView(
    name="orders",
    entities=[customer],
    schema=[Field(name="customer_id", dtype=Int64), Field(name="spend", dtype=Float64)],
    source=S3ParquetSource(path="s3://{bucket}/history/", timestamp_field="event_timestamp"),
    ttl=timedelta(0),
)
"""


@pytest.mark.slow
def test_a_repo_is_applied_and_materialized_by_the_jobs_that_were_submitted(
    options, repo, bucket, tmp_path
):
    """What each service would start, started here: package and repo come from S3 alone."""
    put_item = {"region": "us-east-1", "newest_wins_with": "put_item"}  # moto's PartiQL
    write_submit_repo(repo, bucket, project=f"p{abs(hash(bucket)):x}"[:12], online=put_item)
    (repo / "views.py").write_text(VIEWS.replace("{bucket}", bucket))
    times = [datetime(2026, 1, day, tzinfo=timezone.utc) for day in (2, 3, 20)]
    history = pa.table({"customer_id": [1, 2, 1], "event_timestamp": times, "spend": [1.0, 2, 3]})
    pq.write_table(history, tmp_path / "part.parquet")
    boto3.client("s3").upload_file(tmp_path / "part.parquet", bucket, "history/part.parquet")
    application = options("emr-serverless")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    known: set[str] = set()
    for command in (["feast", "apply"], [*COMMAND]):
        run(*application, "--no-wait", "--", *command)
        (key,) = {key for key in keys(bucket) if key.endswith("/job.json")} - known
        known.add(key)
        done = subprocess.run(
            [sys.executable, "-I", ENTRY, "--feast-dynamo-job", f"s3://{bucket}/{key}"],
            capture_output=True,
            text=True,
            cwd=elsewhere,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    store = FeatureStore(repo_path=str(repo))
    answer = store.get_online_features(["orders:spend"], [{"customer_id": n} for n in (1, 2, 3)])
    assert answer.to_dict()["spend"] == [3.0, 2.0, None]
    assert sorted(path.name for path in repo.iterdir()) == ["feature_store.yaml", "views.py"]


PROGRAM = "from feast_dynamo_ext.cli.main import main; main(prog_name='feast-dynamo')"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "stops", "note"),
    [
        (signal.SIGINT, False, "The job goes on. The same command follows it again; this stops"),
        (signal.SIGINT, True, "Stopping Glue job"),
        (signal.SIGTERM, True, "Stopping Glue job"),
    ],
)
def test_an_interrupt_says_how_to_stop_the_job_or_stops_it(
    options, monkeypatch, number, stops, note
):
    server = SubmitServer(["RUNNING"])
    environment = {**os.environ, "AWS_ENDPOINT_URL_GLUE": server.endpoint}
    environment["AWS_ENDPOINT_URL_CLOUDWATCH_LOGS"] = server.endpoint
    given = [*options("glue"), *(["--stop-on-interrupt"] if stops else []), *COMMAND]
    given[given.index("--poll") + 1] = "0.05"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "submit", *given],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        pause = threading.Event()
        while server.count("GetJobRun") < 3:
            assert process.poll() is None, process.stderr.read()
            pause.wait(0.05)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        server.close()
    assert process.returncode != 0
    assert note in error
    assert "Traceback" not in error
    assert server.count("BatchStopJobRun") == int(stops)
    if not stops:
        assert "aws glue batch-stop-job-run --job-name feast-dynamo-materialize-" in error


def test_the_help_of_each_service_has_an_example():
    for kind in KINDS:
        shown = run(kind, "--help").output
        assert f"feast-dynamo submit {kind} " in shown
    assert Path(ENTRY).exists()
