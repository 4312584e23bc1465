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
from datetime import datetime, timedelta, timezone
from pathlib import Path

import boto3
import pandas as pd
import pytest
from enforced_iam import enforce, new_user
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    ValueType,
)
from feast.types import Float64, Int64
from repos import REGION, write_repo_yaml

from feast_dynamo_ext import cohort
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.local import start_moto, stop
from feast_dynamo_ext.sagemaker import (
    TimeSplit,
    create_training_job,
    create_training_set,
    describe_training_job,
    load_training_set,
    training_job_request,
)

pytestmark = pytest.mark.server  # they start servers of their own

ROOT = Path(__file__).parents[2]
SNIPPETS = ROOT / "docs" / "snippets"
BIN = Path(sys.executable).parent
CDNOW = "lifetimes/datasets/CDNOW_master.txt"
PORT = "6566"
SPLITS = ("train ", "validation ", "test ")

QUICKSTART = (ROOT / "docs" / "tutorial" / "quickstart.md").read_text()
_, _, EMBEDDED = QUICKSTART.partition("## 2. On the embedded AWS\n")
EMBEDDED, _, _ = EMBEDDED.partition("\n## ")


CUSTOMERS = [{"customer_id": 4}, {"customer_id": 21}]


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
    """Where the quickstart begins."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    yield folder
    command = [BIN / "feast-dynamo", "local", "down", "--folder", tmp_path / "shop"]
    subprocess.run(command, check=True)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environment(*packages: Path) -> dict[str, str]:
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    before = os.environ.get("PYTHONPATH")
    found = os.pathsep.join([*map(str, packages), *([before] if before else [])])
    return os.environ | {"PATH": path, "PYTHONPATH": found}


def test_the_quickstart_runs_and_prints_what_it_says(checkout, tmp_path):
    stop_serve = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
    script = "set -e\n" + stop_serve + "".join(blocks("bash")).replace(PORT, free_port())
    result = subprocess.run(
        ["bash"],
        input=script,
        cwd=checkout,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    outputs = blocks("text")
    assert len(outputs) == 1
    assert [output for output in outputs if output not in result.stdout] == []
    served, _ = json.JSONDecoder().raw_decode(result.stdout, result.stdout.index('{"results":'))
    spend = served["metadata"]["feature_names"].index("spend_7d")
    assert served["results"][spend]["values"] == [8.01, 107.82]
    for word in ("Traceback", "WARNING"):
        assert word not in result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("customer_orders  ")]
    assert line.split()[1:3] == ["9,000", "100"]
    history = pd.read_parquet(tmp_path / "shop" / "history" / "orders")
    newest = history[history["event_timestamp"] == history["event_timestamp"].max()]
    assert list(newest["spend_7d"][:3]) == [8.01, 0.0, 107.82]
    built = [line.split() for line in result.stdout.splitlines() if line.startswith(SPLITS)]
    assert [(line[0], line[1], line[4]) for line in built] == [
        ("train", "600", "0.51"),
        ("validation", "200", "0.56"),
        ("test", "200", "0.575"),
    ]
    made = load_training_set(str(tmp_path / "shop" / "training" / "repurchase"), AwsSettings())
    assert made.manifest.name == "repurchase"


# Moving from Feast's stores


OWN_YAML = """
project: shop
provider: local
registry: registry.db
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
"""


# What Feast's store does with sqlite3.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_answers_of_both_repos_are_compared(tmp_path, moto_endpoint, monkeypatch, capsys):
    """Customers 1 and 2 are as before, 3 has another value, 4 is missing, 5 past its ttl."""
    monkeypatch.chdir(tmp_path)
    now = datetime.now(tz=timezone.utc)
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    orders = FeatureView(
        name="orders",
        entities=[customer],
        schema=[Field(name="customer_id", dtype=Int64), Field(name="total", dtype=Int64)],
        source=FileSource(path=str(tmp_path / "no.parquet"), timestamp_field="event_timestamp"),
        ttl=timedelta(days=7),
    )
    rows = pd.DataFrame(
        {
            "customer_id": [1, 2, 3, 4, 5],
            "event_timestamp": [now] * 4 + [now - timedelta(days=30)],
            "total": [10, 20, 30, 40, 50],
        }
    )
    Path("feature_repo").mkdir()
    Path("feature_repo", "feature_store.yaml").write_text(OWN_YAML)
    Path("packed_repo").mkdir()
    write_repo_yaml(
        Path("packed_repo"),
        project="shop",
        online={
            "table_name_template": "{project}.packed.{table_name}",
            "region": REGION,
            "endpoint_url": moto_endpoint,
        },
    )
    for folder, written in (
        ("feature_repo", rows),
        ("packed_repo", rows[rows["customer_id"] != 4].replace({"total": {30: 31}})),
    ):
        store = FeatureStore(folder)
        store.apply([customer, orders, FeatureService(name="churn", features=[orders])])
        store.write_to_online_store("orders", written)
    capsys.readouterr()
    runpy.run_path(str(SNIPPETS / "compare.py"))
    first, *_, third, fourth, fifth = capsys.readouterr().out.splitlines()
    assert first == "3 of 1000 differ; 995 have no value in either"
    assert [line.split() for line in (third, fourth, fifth)] == [
        ["3", "30.0", "31.0"], ["4", "40.0", "NaN"], ["5", "50.0", "NaN"],
    ]  # fmt: skip


# IAM policies


def without_captured_table(definitions: Path) -> None:
    """What captured tables need beside is tried in test_capture_policies.py."""
    text = definitions.read_text()
    for first, after in (
        ("purchases = DynamoDBTableSource(", "customer_90d_source = "),
        ("last_purchase = FeatureView(", "customer_90d = "),
    ):
        before, found, rest = text.partition(first)
        assert found
        text = before + rest[rest.index(after) :]
    definitions.write_text(text)


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
    without_captured_table(Path("feature_repo", "definitions.py"))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    boto3.client("s3").create_bucket(Bucket="my-features")
    for script in (["history.py"], ["labels.py", "entity_rows.parquet"]):
        fork_server.run(
            f"feature_repo/{script[0]}", *script[1:], env=environment(small_shop)
        ).check_returncode()
    keys = {name: new_user(name) for name in NAMES}
    for name, actions in OF_SERIES.items():
        statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        boto3.client("iam").put_user_policy(
            UserName=f"{name}-None", PolicyName="series", PolicyDocument=document
        )
    enforce(server.endpoint)

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

# What the page says that series need beside; the repo has one.
OF_SERIES = {
    "apply": ["dynamodb:GetItem", "dynamodb:PutItem"],
    "plan": ["dynamodb:GetItem"],
    "serve": ["dynamodb:Query"],
}


# Feast's registry on S3 leaves its temporary files to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_each_command_runs_under_its_policy(as_user, small_shop, fork_server):
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

    as_user("push")
    store = FeatureStore("feature_repo")
    view = store.get_feature_view("customer_lifetime")
    old = datetime(1997, 1, 1, tzinfo=timezone.utc)
    row = {field.name: [0.0 if field.dtype == Float64 else 0] for field in view.features}
    times = {"event_timestamp": [old], "created_timestamp": [old]}
    old_row = pd.DataFrame({"customer_id": [4], **times, **row})
    store.write_to_online_store("customer_lifetime", old_row)

    as_user("serve")
    store = FeatureStore("feature_repo")
    service = store.get_feature_service("repurchase_v1")
    served = store.get_online_features(features=service, entity_rows=CUSTOMERS).to_dict()
    assert (served["orders_90d"], served["lifetime_spend"]) == ([0, 0], [100.5, 75.11])
    at_request = store.get_feature_service("repurchase_at_request")
    served = store.get_online_features(features=at_request, entity_rows=CUSTOMERS).to_dict()
    assert (served["count_90d"], served["lifetime_spend"]) == ([0, 0], [100.5, 75.11])
    assert len([*cohort(store, "customer_segment", segment="returning", limit=2)]) == 2

    as_user("historical")
    moments = pd.to_datetime(["1997-03-01", "1997-09-01"], utc=True)
    rows = pd.DataFrame({"customer_id": [4, 4], "event_timestamp": moments})
    features = ["customer_90d:orders_90d", "customer_lifetime:lifetime_spend"]
    history = FeatureStore("feature_repo").get_historical_features(rows, features).to_df()
    assert list(history["orders_90d"]) == [2, 1]
    assert list(history["lifetime_spend"]) == [59.06, 74.02]

    as_user("training_set")
    rows = pd.read_parquet("entity_rows.parquet")
    # Labels look 60 days ahead: a month between the parts belongs to none of them.
    between = pd.to_datetime(["1997-10-01", "1998-01-01"], utc=True)
    training_set = create_training_set(
        FeatureStore("feature_repo"),
        entity_rows=rows[~rows["event_timestamp"].isin(between)],
        features=service,
        label="bought_again_60d",
        output="s3://my-features/training/repurchase_v1",
        split=TimeSplit(
            validation_from=datetime(1997, 11, 1, tzinfo=timezone.utc),
            test_from=datetime(1998, 2, 1, tzinfo=timezone.utc),
        ),
    )
    assert training_set.output == "s3://my-features/training/repurchase_v1"

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
