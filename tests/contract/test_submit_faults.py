"""Submitted jobs on services that go through stages, fail, throttle and lose answers."""

from __future__ import annotations

import gzip

import boto3
import pytest
from submit_repo import ROLE, bundle_of, write_submit_repo
from submit_server import SubmitServer

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsError,
    AwsUnavailableError,
    RequestError,
    SubmittedJobError,
    ThrottledError,
)
from feast_dynamo_ext.submit.emr_serverless_job import EmrServerlessJob, EmrServerlessSettings
from feast_dynamo_ext.submit.glue_job import GlueJob, GlueSettings
from feast_dynamo_ext.submit.processing_job import ProcessingJob, ProcessingSettings
from feast_dynamo_ext.submit.submitted_job import JobNews, follow_job, submit_job

KINDS = ("glue", "emr", "processing")
WELL = {
    "glue": ["STARTING", "RUNNING", "RUNNING", "SUCCEEDED"],
    "emr": ["SUBMITTED", "RUNNING", "RUNNING", "SUCCESS"],
    "processing": ["InProgress", "InProgress", "InProgress", "Completed"],
}
BADLY = {
    "glue": ("FAILED", {"ErrorMessage": "JobError: no rows"}),
    "emr": ("FAILED", {"stateDetails": "JobError: no rows"}),
    "processing": (
        "Failed",
        {"FailureReason": "AlgorithmError", "ExitMessage": "JobError: no rows"},
    ),
}
START = {"glue": "StartJobRun", "emr": "StartJobRun", "processing": "CreateProcessingJob"}
LOOK = {"glue": "GetJobRun", "emr": "GetEmrRun", "processing": "DescribeProcessingJob"}
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/features:1"


@pytest.fixture
def server(monkeypatch):
    # Faults are waited out by the package, not by botocore, whose waits are seconds.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    made = SubmitServer([])
    yield made
    made.close()


@pytest.fixture
def job(server, tmp_path):
    """Makes a job on the server, which goes through the stages of one that ends well."""
    aws = AwsSettings(region="us-east-1", endpoint_url=server.endpoint)
    bundle = bundle_of(write_submit_repo(tmp_path))

    def job(kind: str, *, s3: AwsSettings = aws, **settings):
        server.states = list(WELL[kind])
        if kind == "glue":
            return GlueJob(bundle, GlueSettings(ROLE, **settings), aws)
        if kind == "emr":
            given = EmrServerlessSettings("00f", ROLE, **{"log_group": "/emr", **settings})
            return EmrServerlessJob(bundle, given, aws, s3)
        return ProcessingJob(bundle, ProcessingSettings(ROLE, IMAGE, **settings), aws)

    return job


class News:
    """What a job that is followed has shown."""

    def __init__(self) -> None:
        self.statuses, self.lines, self.notes = [], [], []
        self.news = JobNews(
            lambda job: self.statuses.append(job.status),
            lambda host, text: self.lines.append((host, text)),
            self.notes.append,
        )


def logged(server: SubmitServer, kind: str, name: str) -> str:
    """Gives the job a log, with streams that are not the command's; the host of its lines."""
    others = ["not of the command"]
    if kind == "glue":
        server.lines = {
            "/aws-glue/jobs/output jr_1": ["one", "two"],
            "/aws-glue/jobs/output jr_1_g-0123": others,
        }
        return "driver"
    if kind == "emr":
        place = "/emr /applications/00f/jobs/1"
        server.lines = {
            f"{place}/SPARK_DRIVER/stdout": ["one", "two"],
            f"{place}/SPARK_DRIVER/stderr": others,
        }
        return "driver"
    server.lines = {f"/aws/sagemaker/ProcessingJobs {name}/algo-1-1690000000": ["one", "two"]}
    return "algo-1"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_is_started_once_and_followed_with_its_log_to_its_end(kind, server, job):
    made = job(kind)
    found = submit_job(made, poll_s=0)
    assert found.is_new
    host = logged(server, kind, made.name)
    news = News()
    ended = follow_job(made, found.job, news.news, poll_s=0)
    assert [found.job.status, *news.statuses] == WELL[kind]
    assert news.lines == [(host, "one"), (host, "two")]
    assert (ended.name, ended.has_succeeded) == (made.name, True)
    assert ended.console.startswith("https://us-east-1.console.aws.amazon.com/")
    assert server.count(START[kind]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_job_is_found_while_it_runs_and_started_anew_when_it_has_ended(kind, server, job):
    made = job(kind)
    first = submit_job(made, poll_s=0)
    again = submit_job(made, poll_s=0)
    assert (again.is_new, again.job.id) == (False, first.job.id)
    follow_job(made, first.job, News().news, poll_s=0)
    once = submit_job(made, only_once=True, poll_s=0)
    assert (once.is_new, once.job.id, once.job.has_ended) == (False, first.job.id, True)
    assert server.count(START[kind]) == 1
    # An answer that is lost starts no third one.
    server.faults = [(START[kind], None)]
    second = submit_job(made, poll_s=0)
    assert second.is_new
    assert second.job.id != first.job.id
    assert server.runs == [first.job.id, second.job.id]
    found = submit_job(made, poll_s=0)
    assert (found.is_new, found.job.id) == (False, second.job.id)
    assert server.count(START[kind]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_that_start_the_next_job_at_once_follow_one(kind, server, job):
    made = job(kind)
    first = submit_job(made, poll_s=0).job
    first = follow_job(made, first, News().news, poll_s=0)
    one = made.start(first)
    if kind == "glue":
        server.runs.reverse()  # the newest is not listed yet
        with pytest.raises(AwsError, match=r"ConcurrentRunsExceeded"):
            made.start(first)
        server.runs.reverse()
    assert made.start(first).id == one.id
    assert server.runs == [first.id, one.id]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_fails_is_one_error_with_its_own_reason_and_the_end_of_its_log(
    kind, server, job
):
    made = job(kind)
    found = submit_job(made, poll_s=0).job
    status, server.extra = BADLY[kind]
    server.states = ["RUNNING" if kind != "processing" else "InProgress", status]
    server.looks = 0
    logged(server, kind, made.name)
    with pytest.raises(SubmittedJobError) as error:
        follow_job(made, found, News().news, poll_s=0)
    text = str(error.value)
    assert f"`{made.name}` ended as {status}: " in text
    assert "JobError: no rows. The end of its log: one | two" in text
    assert (error.value.name, error.value.status) == (made.name, status)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_throttling_while_a_job_is_followed_is_waited_out(kind, server, job):
    made = job(kind)
    found = submit_job(made, poll_s=0).job
    server.faults = [(LOOK[kind], "ThrottlingException")] * 5
    server.faults += [(LOOK[kind], "InternalServerException"), (LOOK[kind], None)]
    news = News()
    assert follow_job(made, found, news.news, poll_s=0).has_succeeded
    assert server.faults == []
    server.looks, server.faults = 0, [(LOOK[kind], "ThrottlingException")] * 20
    with pytest.raises(ThrottledError):
        follow_job(made, found, news.news, poll_s=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_was_lost_starts_nothing_twice(kind, server, job):
    made = job(kind)
    server.faults = [(START[kind], None)]
    found = submit_job(made, poll_s=0)
    assert found.is_new
    assert server.faults == []
    assert server.count(START[kind]) == 1
    assert len(server.runs or server.jobs) == 1


def test_a_glue_job_whose_definition_was_made_and_its_answer_lost_is_run(server, job):
    made = job("glue")
    server.faults = [("CreateJob", None), ("GetJobRuns", "EntityNotFoundException")]
    assert submit_job(made, poll_s=0).job.id == "jr_1"
    assert server.count("StartJobRun") == 1
    assert list(server.jobs) == [made.name]


def test_two_that_start_a_glue_job_at_once_follow_one_run(server, job):
    made = job("glue")
    server.CreateJob(made.requests["CreateJob"])
    server.runs.append("jr_1")
    # The run of the other was not listed yet.
    server.faults = [("GetJobRuns", "EntityNotFoundException")]
    assert submit_job(made, poll_s=0).job.id == "jr_1"
    assert server.runs == ["jr_1"]


def test_two_that_start_a_processing_job_at_once_follow_one(server, job):
    made = job("processing")
    server.CreateProcessingJob(made.requests["CreateProcessingJob"])
    # That of the other was not listed yet.
    server.ListProcessingJobs = lambda _body: (200, {"ProcessingJobSummaries": []})
    assert submit_job(made, poll_s=0).job.name == made.name
    assert server.runs == [made.name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_that_keeps_failing_is_an_error_after_few_starts(kind, server, job):
    server.faults = [(START[kind], "InternalServerException")] * 10
    with pytest.raises(AwsUnavailableError):
        submit_job(job(kind), poll_s=0)
    assert server.count(START[kind]) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_denied_and_wrong_roles_are_one_clear_error(kind, server, job):
    made = job(kind)
    server.faults = [(START[kind], "AccessDeniedException")]
    with pytest.raises(AccessDeniedError, match=r"Add the missing action to the identity's IAM"):
        submit_job(made, poll_s=0)
    said = "Role is not authorized to perform sts:AssumeRole"
    setattr(server, START[kind], lambda _body: (400, {"__type": "X", "message": said}))
    with pytest.raises(AwsError) as error:
        submit_job(made, poll_s=0)
    text = str(error.value)
    assert f"Role `{ROLE}` has to be one that " in text
    assert ".amazonaws.com may assume, and whoever starts the job needs iam:PassRole" in text
    assert error.value.code == "X"
    assert server.count(START[kind]) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_sent_of_a_request_with_a_fault(kind, server, job):
    settings = {
        "glue": {"worker_type": "huge"},
        "emr": {"log_group": "a b"},
        "processing": {"instance_type": "huge"},
    }
    with pytest.raises(RequestError):
        submit_job(job(kind, **settings[kind]), poll_s=0)
    assert server.requests == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_is_followed_without_a_log_that_may_not_be_read(kind, server, job):
    made = job(kind)
    found = submit_job(made, poll_s=0).job
    server.faults = [("DescribeLogStreams", "AccessDeniedException")]
    news = News()
    assert follow_job(made, found, news.news, poll_s=0).has_succeeded
    (note,) = news.notes
    assert "followed without its log" in note


@pytest.mark.parametrize(
    ("kind", "operation", "body"),
    [
        ("glue", "BatchStopJobRun", {"JobRunIds": ["jr_1"]}),
        ("emr", "CancelJobRun", {"applicationId": "00f", "jobRunId": "1"}),
        ("processing", "StopProcessingJob", {}),
    ],
)
def test_a_job_is_stopped_by_its_id_and_the_command_for_it_names_it(
    kind, operation, body, server, job
):
    made = job(kind)
    found = submit_job(made, poll_s=0).job
    made.stop(found.id)
    sent = server.requests[-1]
    assert (sent[0], {**sent[1], **body}) == (operation, sent[1])
    assert found.id in made.stop_command(found.id)


def test_a_run_that_glue_does_not_stop_is_an_error(server, job):
    made = job("glue")
    found = submit_job(made, poll_s=0).job
    detail = {"ErrorCode": "JobRunNotInTerminalStateException", "ErrorMessage": "it has ended"}
    server.BatchStopJobRun = lambda _body: (200, {"Errors": [{"ErrorDetail": detail}]})
    with pytest.raises(AwsError, match=r"it has ended"):
        made.stop(found.id)


def test_the_log_of_emr_serverless_is_read_from_s3_as_it_grows(
    server, job, moto_endpoint, bucket, monkeypatch, tmp_path
):
    s3 = AwsSettings(region="us-east-1", endpoint_url=moto_endpoint)
    bundle = bundle_of(write_submit_repo(tmp_path), f"s3://{bucket}/jobs")
    aws = AwsSettings(region="us-east-1", endpoint_url=server.endpoint)
    made = EmrServerlessJob(bundle, EmrServerlessSettings("00f", ROLE), aws, s3)
    server.states = list(WELL["emr"])
    found = submit_job(made, poll_s=0).job
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)
    key = "jobs/logs/applications/00f/jobs/1/SPARK_DRIVER/stdout.gz"
    texts = iter([b"one\ntwo\n", b"one\ntwo\nthree\n"])
    look = made.look

    def grow(job_id: str):
        text = next(texts, None)
        if text is not None:
            # Two members, of which the last breaks off.
            data = gzip.compress(text[:4]) + gzip.compress(text[4:])[:-8]
            client.put_object(Bucket=bucket, Key=key, Body=data)
        return look(job_id)

    made.look = grow
    news = News()
    assert follow_job(made, found, news.news, poll_s=0).has_succeeded
    assert [text for _, text in news.lines] == ["one", "two", "three"]
