"""The examples of README.md and docs/ run: the quickstart as it stands, and under its policies."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import boto3
import pandas as pd
import pytest
import urllib3
from feast import FeatureStore
from feast.types import Float64

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.local import start_moto, stop
from feast_dynamo_ext.sagemaker import (
    create_training_job,
    describe_training_job,
    training_job_request,
)

pytestmark = pytest.mark.server  # they start servers of their own

ROOT = Path(__file__).parents[2]
SNIPPETS = ROOT / "docs" / "snippets"
BIN = Path(sys.executable).parent
CDNOW = "lifetimes/datasets/CDNOW_master.txt"
PORT = "6566"

QUICKSTART = (ROOT / "docs" / "tutorial" / "quickstart.md").read_text()
_, _, EMBEDDED = QUICKSTART.partition("## 2. On the embedded AWS\n")
EMBEDDED, _, _ = EMBEDDED.partition("\n## ")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", EMBEDDED, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def small_shop(tmp_path_factory):
    """A `lifetimes` with 300 of the 23,570 customers, to be found before the real one."""
    folder = tmp_path_factory.mktemp("lifetimes")
    source = Path(importlib.metadata.distribution("lifetimes").locate_file(CDNOW))
    header, *purchases = source.read_text().splitlines()
    few = [line for line in purchases if int(line.split()[0]) <= 300]
    (folder / CDNOW).parent.mkdir(parents=True)
    (folder / CDNOW).write_text("\n".join([header, *few]) + "\n")
    info = folder / "lifetimes-0.11.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lifetimes\nVersion: 0.11.3\n")
    return folder


@pytest.fixture
def checkout(tmp_path):
    """What the quickstart copies from."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "feature_repo", folder / "feature_repo")
    shutil.copytree(SNIPPETS, folder / "docs" / "snippets")
    yield folder
    command = [BIN / "feast-dynamo", "local", "down", "--folder", tmp_path / "shop"]
    subprocess.run(command, check=True)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environment(small_shop: Path) -> dict[str, str]:
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(small_shop)}


def test_the_quickstart_runs_and_prints_what_it_says(checkout, small_shop):
    stop_serve = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
    script = "set -e\n" + stop_serve + "".join(blocks("bash")).replace(PORT, free_port())
    result = subprocess.run(
        ["bash"],
        input=script,
        cwd=checkout,
        env=environment(small_shop),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    outputs = blocks("text")
    assert len(outputs) == 2
    assert [output for output in outputs if output not in result.stdout] == []
    served, _ = json.JSONDecoder().raw_decode(result.stdout, result.stdout.index('{"results":'))
    spend = served["metadata"]["feature_names"].index("lifetime_spend")
    assert served["results"][spend]["values"] == [100.5, 75.11]


# IAM policies


def policy_of(name: str) -> str:
    """A policy of docs/reference/iam.md in the terms that moto enforces."""
    policy = json.loads((SNIPPETS / "iam" / f"{name}.json").read_text())
    for statement in policy["Statement"]:
        if "s3:ListBucket" in statement["Action"]:
            statement["Action"].append("s3:HeadBucket")  # AWS has no such action, moto has
        if not statement["Action"][0].startswith("s3:"):
            statement["Resource"] = "*"  # moto compares names of resources for S3 alone
        if "dynamodb:PartiQLUpdate" in statement["Action"]:
            statement["Action"].append("dynamodb:PutItem")  # moto's PartiQL takes no binary values
    return json.dumps(policy)


@pytest.fixture
def as_user(tmp_path, small_shop, monkeypatch, fork_server):
    """A bucket with history on a moto that enforces IAM; acts as the user of a policy."""
    server = start_moto(tmp_path / "moto")
    for name in ("AWS_ENDPOINT_URL", "FEAST_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, server.endpoint)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    monkeypatch.setenv("FEATURE_BUCKET", "my-features")
    shutil.copytree(ROOT / "feature_repo", tmp_path / "feature_repo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    boto3.client("s3").create_bucket(Bucket="my-features")
    for script in (["history.py"], ["labels.py", "entity_rows.parquet"]):
        fork_server.run(
            f"feature_repo/{script[0]}", *script[1:], env=environment(small_shop)
        ).check_returncode()
    keys = {name: new_user(name) for name in NAMES}
    no_request_is_free = {"Content-Type": "application/octet-stream"}
    urllib3.request(
        "POST", f"{server.endpoint}/moto-api/reset-auth", body=b"0", headers=no_request_is_free
    )

    def as_user(name: str) -> None:
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[name]["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[name]["SecretAccessKey"])

    yield as_user
    stop(server)


NAMES = (
    "apply",
    "plan",
    "materialize",
    "push",
    "serve",
    "historical",
    "training_set",
    "training_job",
    "teardown",
)


def new_user(name: str) -> dict[str, str]:
    iam = boto3.client("iam")
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy_of(name))
    return iam.create_access_key(UserName=name)["AccessKey"]


# Feast's registry on S3 leaves its temporary files to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_each_command_runs_under_its_policy(as_user, small_shop, fork_server, capsys):
    def feast(command: str) -> None:
        run = ("feast", "-c", "feature_repo", command)
        done = fork_server.run(*run, env=environment(small_shop))
        assert done.returncode == 0, done.stdout + done.stderr

    as_user("apply")
    feast("apply")

    as_user("plan")
    feast("plan")

    as_user("materialize")
    start, end = (datetime(year, 7, 2, tzinfo=timezone.utc) for year in (1996, 1998))
    FeatureStore("feature_repo").materialize(start_date=start, end_date=end)
    capsys.readouterr()

    as_user("push")
    store = FeatureStore("feature_repo")
    view = store.get_feature_view("customer_lifetime")
    old = datetime(1997, 1, 1, tzinfo=timezone.utc)
    row = {field.name: [0.0 if field.dtype == Float64 else 0] for field in view.features}
    times = {"event_timestamp": [old], "created_timestamp": [old]}
    old_row = pd.DataFrame({"customer_id": [4], **times, **row})
    store.write_to_online_store("customer_lifetime", old_row)

    as_user("serve")
    runpy.run_path(str(SNIPPETS / "online.py"))
    assert capsys.readouterr().out == blocks("text")[0]

    as_user("historical")
    runpy.run_path(str(SNIPPETS / "historical.py"))
    assert capsys.readouterr().out == blocks("text")[1]

    as_user("training_set")
    training_set = runpy.run_path(str(SNIPPETS / "training_set.py"))["training_set"]
    *_, where = capsys.readouterr().out.splitlines()
    assert where == "s3://my-features/training/repurchase_v1"

    as_user("training_job")
    request = training_job_request(
        "repurchase-1",
        role_arn="arn:aws:iam::123456789012:role/sagemaker-training",
        image="683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1",
        channels=training_set.channels(),
        output_path="s3://my-features/models",
    )
    create_training_job(request, AwsSettings())
    assert describe_training_job("repurchase-1", AwsSettings()).status == "Completed"
    gc.collect()

    as_user("teardown")
    feast("teardown")
