"""The servers of `make bench` that stand for S3: what clients read from them is what is there."""

from __future__ import annotations

import sys
from pathlib import Path

import boto3
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from pyarrow import fs

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import offline_plain
import offline_s3
import offline_stores
from offline_client import Task
from offline_data import Dataset

pytestmark = pytest.mark.server  # they start servers of their own

TINY = Dataset(views=2, rows=600, files=3, features=2, keys=20, entities=50)


@pytest.fixture(params=sorted(offline_s3.SERVERS))
def served(request, tmp_path):
    """Folder of a history, and the URL of a server that has it."""
    folder = tmp_path / "data"
    TINY.write(folder / TINY.name)
    with offline_s3.SERVERS[request.param](folder, [TINY.name]) as endpoint:
        yield folder, endpoint


def filesystem(endpoint: str) -> fs.S3FileSystem:
    return fs.S3FileSystem(endpoint_override=endpoint, region="us-east-1")


def test_files_and_ranges_are_those_of_the_folder(served):
    folder, endpoint = served
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    key = f"{TINY.name}/view_00/000.parquet"
    content = (folder / key).read_bytes()
    answers = {
        range_: s3.get_object(Bucket=offline_s3.BUCKET, Key=key, Range=range_)["Body"].read()
        for range_ in ("bytes=0-3", "bytes=-8", "bytes=100-", "bytes=7-7")
    }
    assert answers == {
        "bytes=0-3": b"PAR1",
        "bytes=-8": content[-8:],
        "bytes=100-": content[100:],
        "bytes=7-7": content[7:8],
    }
    whole = s3.get_object(Bucket=offline_s3.BUCKET, Key=key)
    assert (whole["ContentLength"], whole["Body"].read()) == (len(content), content)
    with pytest.raises(ClientError, match="NoSuchKey"):
        s3.get_object(Bucket=offline_s3.BUCKET, Key="nothing")


def test_a_listing_has_the_files_below_a_prefix(served):
    _, endpoint = served
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    prefix = f"{TINY.name}/view_01/"
    found = s3.list_objects_v2(Bucket=offline_s3.BUCKET, Prefix=prefix)["Contents"]
    assert [each["Key"] for each in found] == [f"{prefix}00{n}.parquet" for n in range(3)]
    folders = s3.list_objects_v2(Bucket=offline_s3.BUCKET, Prefix=f"{TINY.name}/", Delimiter="/")[
        "CommonPrefixes"
    ]
    assert [each["Prefix"] for each in folders] == [f"{TINY.name}/view_0{n}/" for n in range(2)]


def test_our_store_and_a_scan_read_the_history_there(served, tmp_path):
    folder, endpoint = served
    task = Task(
        dataset=TINY,
        folder=folder / TINY.name,
        views=2,
        out=None,
        scratch=tmp_path,
        history=f"{offline_s3.BUCKET}/{TINY.name}",
        endpoint=endpoint,
    )
    assert task.files_of("view_00", "/*") == f"s3://{offline_s3.BUCKET}/{TINY.name}/view_00/*"
    joined = offline_stores.retrieval(offline_stores.OURS, task)()
    local = Task(TINY, folder / TINY.name, 2, None, tmp_path / "local")
    local.scratch.mkdir()
    assert joined.equals(offline_stores.retrieval(offline_stores.OURS, local)())
    assert joined.num_rows == pq.read_metadata(task.entities).num_rows == 50
    offline_plain.scan_pyarrow(task)
    read = ds.dataset(
        task.files_of("view_00").removeprefix("s3://"), filesystem=filesystem(endpoint)
    ).to_table()
    assert read.equals(pq.read_table(folder / TINY.name / "view_00"))
