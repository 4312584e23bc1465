"""Training sets on S3 and training jobs, against moto's server."""

from __future__ import annotations

import json
import re
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import boto3
import numpy as np
import pyarrow as pa
import pytest
import urllib3

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsError,
    AwsUnavailableError,
    ResourceNotFoundError,
    TrainingSetError,
)
from feast_dynamo_ext.sagemaker import (
    Provenance,
    SourceFile,
    TimeSplit,
    create_training_job,
    describe_training_job,
    load_training_set,
    training_job_request,
    verify,
    write_training_set,
)
from feast_dynamo_ext.sagemaker.channels import write_manifest_files


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=timezone.utc)


ROWS = pa.table(
    {
        "customer_id": [1, 2, 3, 4, 5],
        "event_timestamp": [
            utc(2026, 3, 1),
            utc(2026, 1, 5),
            utc(2026, 4, 2),
            utc(2026, 1, 7),
            utc(2026, 1, 6),
        ],
        "churned": [True, False, True, True, False],
        "spend": [0.5, None, 2.25, 4.0, -1.5],
    }
)
ONE_PART = [
    "manifest.json",
    "rows/test/part-00000.parquet",
    "rows/train/part-00000.parquet",
    "rows/validation/part-00000.parquet",
    "test/csv/part-00000.csv",
    "test/parquet/part-00000.parquet",
    "train/csv/part-00000.csv",
    "train/parquet/part-00000.parquet",
    "validation/csv/part-00000.csv",
    "validation/parquet/part-00000.parquet",
]
ROLE = "arn:aws:iam::123456789012:role/train"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/xgboost:1.7-1"


@pytest.fixture
def aws(moto_endpoint) -> AwsSettings:
    return AwsSettings(region="us-east-1", endpoint_url=moto_endpoint)


@pytest.fixture
def s3(aws):
    return boto3.client("s3", region_name=aws.region, endpoint_url=aws.endpoint_url)


@pytest.fixture
def more_rows() -> pa.Table:
    """Two rows at least in every split."""
    return pa.concat_tables([ROWS, ROWS])


def write(output, aws, table=ROWS, **changes):
    options = {
        "label": "churned",
        "event_timestamp": "event_timestamp",
        "entity_columns": ["customer_id"],
        "features": ["spend"],
        "split": TimeSplit(utc(2026, 2, 1), utc(2026, 4, 1)),
        "provenance": Provenance(
            "shop", ("sales:spend",), {"sales": "ab"}, (SourceFile("s3://x/y", 1, "e"),), "cd"
        ),
    }
    return write_training_set(table, output=str(output), aws=aws, **options | changes)


def objects(s3, bucket: str, prefix: str) -> dict[str, bytes]:
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return {
        found["Key"].removeprefix(prefix): s3.get_object(Bucket=bucket, Key=found["Key"])[
            "Body"
        ].read()
        for found in listed
    }


def test_s3_holds_the_same_bytes_as_a_folder_and_nothing_else(aws, s3, bucket, tmp_path):
    training_set = write(f"s3://{bucket}/sets/july/", aws)
    local = write(tmp_path, aws)
    assert training_set.output == f"s3://{bucket}/sets/july"
    assert training_set.manifest == local.manifest
    stored = objects(s3, bucket, "sets/july/")
    assert sorted(stored) == ONE_PART
    assert stored == {path: (tmp_path / path).read_bytes() for path in ONE_PART}
    assert stored["train/csv/part-00000.csv"] == b"0,\n1,4\n0,-1.5\n"
    assert load_training_set(f"s3://{bucket}/sets/july", aws) == training_set


def test_a_training_set_may_fill_a_whole_bucket(aws, s3, bucket):
    training_set = write(f"s3://{bucket}", aws)
    assert sorted(objects(s3, bucket, "")) == ONE_PART
    assert training_set.channels()[0]["DataSource"]["S3DataSource"]["S3Uri"] == (
        f"s3://{bucket}/train/csv/"
    )
    write(f"s3://{bucket}", aws, overwrite=True)
    assert sorted(objects(s3, bucket, "")) == ONE_PART


def test_overwriting_leaves_no_stale_file_and_no_empty_folder_objects(aws, s3, bucket, more_rows):
    output = f"s3://{bucket}/set"
    write(output, aws, more_rows, parts=2)
    assert "train/csv/part-00001.csv" in objects(s3, bucket, "set/")
    with pytest.raises(TrainingSetError, match=f"{output} holds a training set already"):
        write(output, aws)
    write(output, aws, overwrite=True)
    assert sorted(objects(s3, bucket, "set/")) == ONE_PART
    assert verify(output, aws).ok


def test_manifest_files_list_what_was_written_and_not_what_came_later(aws, s3, bucket, more_rows):
    output = f"s3://{bucket}/set"
    training_set = write(output, aws, more_rows, parts=2)
    s3.put_object(Bucket=bucket, Key="set/train/csv/part-00009.csv", Body=b"0,1\n")
    written = write_manifest_files(training_set, aws)
    channels = training_set.channels(data_type="ManifestFile", distribution="ShardedByS3Key")
    sources = [channel["DataSource"]["S3DataSource"] for channel in channels]
    assert {source["S3DataType"] for source in sources} == {"ManifestFile"}
    assert [source["S3Uri"] for source in sources] == list(written.values())
    key = written["train"].removeprefix(f"s3://{bucket}/")
    listed = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    assert listed == [
        {"prefix": f"{output}/train/csv/"},
        "part-00000.csv",
        "part-00001.csv",
    ]
    s3.delete_object(Bucket=bucket, Key="set/train/csv/part-00009.csv")
    assert verify(output, aws).ok


def test_verify_finds_what_changed_on_s3(aws, s3, bucket):
    write(f"s3://{bucket}/set", aws)
    s3.put_object(Bucket=bucket, Key="set/train/csv/part-00000.csv", Body=b"0,\n1,4\n0,-1.4\n")
    s3.put_object(Bucket=bucket, Key="set/train/csv/part-00001.csv", Body=b"1,1\n")
    s3.delete_object(Bucket=bucket, Key="set/rows/test/part-00000.parquet")
    report = verify(f"s3://{bucket}/set", aws)
    assert report.missing == ("rows/test/part-00000.parquet",)
    assert report.changed == ("train/csv/part-00000.csv",)
    assert report.unexpected == ("train/csv/part-00001.csv",)


def test_the_prefix_of_each_channel_matches_its_files_alone(aws, s3, bucket, more_rows):
    training_set = write(f"s3://{bucket}/set", aws, more_rows, parts=2)
    s3.put_object(Bucket=bucket, Key="set/train/csv-old/part-00000.csv", Body=b"1,1\n")
    for channel in training_set.channels(splits=("train", "validation", "test")):
        uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
        prefix = uri.removeprefix(f"s3://{bucket}/")
        assert sorted(objects(s3, bucket, prefix)) == ["part-00000.csv", "part-00001.csv"]


def test_a_job_is_created_on_the_channels_and_described(aws, bucket):
    training_set = write(f"s3://{bucket}/set", aws)
    request = training_job_request(
        "churn-1",
        role_arn=ROLE,
        image=IMAGE,
        channels=training_set.channels(format="parquet"),
        output_path=f"s3://{bucket}/models/",
        hyperparameters={"max_depth": 5, "objective": "binary:logistic"},
        tags={"team": "growth"},
    )
    arn = create_training_job(request | {"EnableNetworkIsolation": True}, aws)
    assert arn == "arn:aws:sagemaker:us-east-1:123456789012:training-job/churn-1"
    job = describe_training_job("churn-1", aws)
    assert (job.name, job.arn, job.status, job.failure_reason) == ("churn-1", arn, "Completed", "")
    assert job.model_artifacts == f"s3://{bucket}/models/churn-1/output/model.tar.gz"

    client = boto3.client("sagemaker", region_name="us-east-1", endpoint_url=aws.endpoint_url)
    stored = client.describe_training_job(TrainingJobName="churn-1")
    assert stored["InputDataConfig"] == training_set.channels(format="parquet")
    assert stored["HyperParameters"] == {"max_depth": "5", "objective": "binary:logistic"}
    assert stored["EnableNetworkIsolation"] is True
    assert client.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "growth"}]


def test_an_unknown_job_is_an_error_that_names_it(aws):
    with pytest.raises(AwsError, match="on training job `nowhere`"):
        describe_training_job("nowhere", aws)


def test_a_bucket_that_is_not_there_is_named(aws):
    with pytest.raises(ResourceNotFoundError, match=r"no-such-bucket/set/.*NoSuchBucket"):
        write("s3://no-such-bucket/set", aws)
    with pytest.raises(TrainingSetError, match="no-such-bucket/set: there is no such bucket"):
        verify("s3://no-such-bucket/set", aws)


class Refusing(BaseHTTPRequestHandler):
    """An S3 that refuses everything."""

    BODY = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"

    def refuse(self) -> None:
        body = self.BODY
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse  # noqa: N815 - http.server's names

    def log_message(self, *args) -> None:
        """Keep quiet."""


@pytest.fixture
def refusing():
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_s3_that_refuses_or_does_not_answer_is_an_error_of_aws(refusing):
    denied = AwsSettings(region="us-east-1", endpoint_url=refusing)
    with pytest.raises(AccessDeniedError, match=r"s3://lake/set/manifest\.json"):
        write("s3://lake/set", denied)
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        closed = f"http://127.0.0.1:{server.server_port}"
    absent = AwsSettings(region="us-east-1", endpoint_url=closed)
    with pytest.raises(AwsUnavailableError, match=r"s3://lake/set/manifest.json.*the network"):
        verify("s3://lake/set", absent)


# A write that fails


class RefusingSome(BaseHTTPRequestHandler):
    """An S3 that refuses the requests whose target fits a pattern; moto answers all others."""

    moto = refused = ""
    protocol_version = "HTTP/1.1"

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if re.search(self.refused, self.path):
            status, headers, data = 403, {}, Refusing.BODY
        else:
            answer = urllib3.request(
                self.command,
                f"{self.moto}{self.path}",
                body=body,
                headers=dict(self.headers),
                preload_content=False,
                decode_content=False,
            )
            status, headers, data = answer.status, answer.headers, answer.read()
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815 - http.server's names

    def log_message(self, *args) -> None:
        """Keep quiet."""


@pytest.fixture
def refusing_some(moto_endpoint):
    """Starts an S3 that refuses the requests of a pattern; gives how to reach it."""
    servers = []

    def start(pattern: str) -> AwsSettings:
        handler = type("Handler", (RefusingSome,), {"moto": moto_endpoint, "refused": pattern})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append((server, threading.Thread(target=server.serve_forever)))
        servers[-1][1].start()
        return AwsSettings("us-east-1", f"http://127.0.0.1:{server.server_port}")

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def left(s3, bucket: str) -> tuple[list[str], list[str]]:
    """Keys of a bucket, and of its uploads that are neither completed nor aborted."""
    uploads = s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return sorted(objects(s3, bucket, "")), [upload["Key"] for upload in uploads]


def test_an_error_in_the_middle_of_a_file_leaves_nothing(aws, s3, bucket):
    # Arrow has no Parquet type for it, which shows once the file is open.
    interval = pa.array([pa.MonthDayNano([1, 2, 3])] * 5, pa.month_day_nano_interval())
    with pytest.raises(pa.ArrowNotImplementedError, match="Unhandled type"):
        write(
            f"s3://{bucket}/set",
            aws,
            ROWS.append_column("since", interval),
            entity_columns=["customer_id", "since"],
        )
    assert left(s3, bucket) == ([], [])


def test_a_refusal_after_other_files_were_written_leaves_nothing(refusing_some, s3, bucket):
    with pytest.raises(AccessDeniedError, match=r"set/test/parquet/part-00000\.parquet"):
        write(f"s3://{bucket}/set", refusing_some("test/parquet"))
    assert left(s3, bucket) == ([], [])


def test_a_refused_part_of_a_large_file_leaves_nothing(refusing_some, s3, bucket):
    rows = 1_000_000  # 20 MB of CSV
    numbers = np.random.default_rng(3).normal(size=rows)
    table = pa.table(
        {
            "customer_id": np.arange(rows),
            "event_timestamp": [*[utc(2026, 1, 5)] * (rows - 2), utc(2026, 3, 1), utc(2026, 4, 2)],
            "churned": np.arange(rows) % 2,
            "spend": numbers,
        }
    )
    with pytest.raises(AccessDeniedError, match=r"set/train/csv/part-00000\.csv"):
        write(f"s3://{bucket}/set", refusing_some(r"csv\?.*\bpartNumber=2\b"), table)
    assert left(s3, bucket) == ([], [])
