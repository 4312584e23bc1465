"""Files of a bulk load: cut to size, whole or not at all."""

from __future__ import annotations

import gzip
import random
from datetime import datetime, timezone

import boto3
import pyarrow as pa
import pytest
from botocore.stub import Stubber

from feast_dynamo_ext.errors import AccessDeniedError, AwsError, ConfigError
from feast_dynamo_ext.materialize.bulk_import.files import (
    Folder,
    Written,
    delete_files,
    list_files,
    write_files,
)
from feast_dynamo_ext.storage import S3Files


@pytest.fixture
def s3(moto_endpoint):
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=moto_endpoint)
    yield client
    client.close()


@pytest.fixture
def stubbed():
    client = boto3.client("s3", region_name="us-east-1")
    with Stubber(client) as stub:
        yield client, stub
        stub.assert_no_pending_responses()
    client.close()


def lines(*texts: bytes) -> pa.LargeBinaryArray:
    return pa.array(texts, pa.large_binary())


def unwatched(_items: int, _raw_bytes: int) -> None:
    """Counts that nobody looks at."""


def noise(length: int) -> bytes:
    """Bytes that gzip makes no smaller."""
    return random.Random(length).randbytes(length) + b"\n"  # noqa: S311 - nothing secret


def contents(s3, bucket, prefix="run/") -> list[bytes]:
    found = list_files(s3, Folder(bucket, prefix))
    names = [uri.removeprefix(f"s3://{bucket}/") for uri in found]
    return [
        gzip.decompress(s3.get_object(Bucket=bucket, Key=name)["Body"].read()) for name in names
    ]


def test_files_are_cut_at_their_size(s3, bucket):
    batches = [lines(noise(3_000_000), noise(2_999_999)), lines(noise(2_999_998))]
    written = write_files(s3, Folder(bucket, "run/"), batches, 3_500_000, unwatched)
    assert (written.files, written.items, written.raw_bytes) == (2, 3, 9_000_000)
    assert contents(s3, bucket) == [
        noise(3_000_000) + noise(2_999_999),
        noise(2_999_998),
    ]
    sizes = [found["Size"] for found in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert sum(sizes) == written.gzip_bytes
    assert s3.head_object(Bucket=bucket, Key="run/00000.json.gz")["ContentType"] == (
        "application/gzip"
    )


def test_a_slice_of_a_batch_is_written_alone(s3, bucket):
    batch = lines(b"1\n", b"2\n", b"3\n", b"4\n").slice(1, 2)
    write_files(s3, Folder(bucket, "run/"), [batch, batch.slice(1)], 1_000, unwatched)
    assert contents(s3, bucket) == [b"2\n3\n3\n"]


def test_large_files_go_up_in_parts(s3, bucket):
    # moto, as S3, takes parts of 5 MiB and more.
    batches = [lines(*(noise(1_000_000 + number) for number in range(12)))]
    written = write_files(
        s3, Folder(bucket, "run/"), batches, 10**9, unwatched, part_bytes=6 * 1024**2
    )
    assert written.files == 1
    assert contents(s3, bucket) == [b"".join(batches[0].to_pylist())]
    etag = s3.head_object(Bucket=bucket, Key="run/00000.json.gz")["ETag"]
    assert etag.endswith('-2"')


def test_the_same_lines_give_the_same_bytes(s3, bucket):
    for prefix in ("one/", "two/"):
        write_files(s3, Folder(bucket, prefix), [lines(b"1\n", noise(99))], 10, unwatched)
    one, two = (
        s3.get_object(Bucket=bucket, Key=f"{prefix}/00000.json.gz")["Body"].read()
        for prefix in ("one", "two")
    )
    assert one == two


def test_no_lines_no_files(s3, bucket):
    assert write_files(s3, Folder(bucket, "run/"), [], 10, unwatched) == Written()
    assert list_files(s3, Folder(bucket, "")) == []


def test_a_source_that_breaks_leaves_no_file(s3, bucket):
    def batches():
        yield lines(noise(5_000_000))
        yield lines(noise(5_000_001))
        raise RuntimeError("no more")

    s3.put_object(Bucket=bucket, Key="other/file", Body=b"")
    with pytest.raises(RuntimeError, match="no more"):
        write_files(s3, Folder(bucket, "run/"), batches(), 1_000_000, unwatched)
    assert list_files(s3, Folder(bucket, "")) == [f"s3://{bucket}/other/file"]
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_more_files_than_dynamodb_takes_are_refused(s3, bucket):
    batches = [lines(noise(200_000 + number)) for number in range(3)]
    with pytest.raises(ConfigError, match=r"more than 2 files of 0\.1 MB.*--file-size"):
        write_files(s3, Folder(bucket, "run/"), batches, 100_000, unwatched, max_files=2)
    assert list_files(s3, Folder(bucket, "")) == []


def test_an_upload_that_fails_is_aborted(stubbed):
    client, stub = stubbed
    where = {"Bucket": "b", "Key": "k"}
    stub.add_response(
        "create_multipart_upload", {"UploadId": "u"}, {**where, "ContentType": "application/gzip"}
    )
    stub.add_client_error("upload_part", "AccessDenied")
    stub.add_response("abort_multipart_upload", {}, {**where, "UploadId": "u"})
    with (
        pytest.raises(AccessDeniedError, match="s3://b/k"),
        S3Files(client, 4).new_file("s3://b/k", "application/gzip") as upload,
    ):
        upload.write(b"12345")


def test_parts_are_put_together_in_order(stubbed):
    client, stub = stubbed
    stub.add_response("create_multipart_upload", {"UploadId": "u"})
    sent = {"Bucket": "b", "Key": "k", "UploadId": "u"}
    stub.add_response("upload_part", {"ETag": "e1"}, {**sent, "PartNumber": 1, "Body": b"12345"})
    parts = {"Parts": [{"PartNumber": 1, "ETag": "e1"}]}
    stub.add_response("complete_multipart_upload", {}, {**sent, "MultipartUpload": parts})
    with S3Files(client, 5).new_file("s3://b/k") as upload:
        upload.write(b"123")
        upload.write(b"45")


def test_files_that_may_not_be_deleted_are_an_error(stubbed):
    client, stub = stubbed
    written = {"Size": 1, "ETag": '"e"', "LastModified": datetime(2026, 1, 1, tzinfo=timezone.utc)}
    listed = [{"Key": "run/1", **written}, {"Key": "run/2", **written}]
    stub.add_response("list_objects_v2", {"Contents": listed})
    denied = {"Key": "run/2", "Code": "AccessDenied", "Message": "no"}
    stub.add_response("delete_objects", {"Errors": [denied]}, ANY_DELETE)
    with pytest.raises(AwsError, match=r"DeleteObjects on s3://b/run/2: AccessDenied"):
        delete_files(client, Folder("b", "run/"))


ANY_DELETE = {
    "Bucket": "b",
    "Delete": {"Objects": [{"Key": "run/1"}, {"Key": "run/2"}], "Quiet": True},
}
