"""The tutorial on series and cohorts runs as it stands, and prints what it says."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import boto3
import pandas as pd
import pytest
from feast import FeatureStore
from repos import REGION

pytestmark = pytest.mark.server  # it starts servers of its own

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial" / "series-and-cohorts.md").read_text()
SNIPPETS = ROOT / "docs" / "snippets" / "shop"
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path):
    """Where the tutorial begins."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    yield folder
    command = [BIN / "feast-dynamo", "local", "down", "--folder", tmp_path / "shop"]
    subprocess.run(command, check=True)


def test_the_tutorial_runs_and_prints_what_it_says(checkout, tmp_path):
    named = re.findall(r"^Save as `([\w.]+)`", PAGE, re.MULTILINE)
    assert {*named} == {file.name for file in SNIPPETS.iterdir() if file.is_file()}
    first, *others = blocks("bash")
    assert first == "mkdir ../shop\ncd ../shop\n"
    shutil.copytree(SNIPPETS, tmp_path / "shop")  # what the page says to save
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        ["bash"],
        input="set -e\ncd ../shop\n" + "".join(others),
        cwd=checkout,
        env=os.environ
        | {
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(paths),
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    install, *outputs = blocks("text")
    assert install.startswith("python3 -m venv .venv\n")
    assert len(outputs) == 4
    assert [output for output in outputs if output not in done.stdout] == []
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("purchases  ")]
    assert line.split()[1:3] == ["2,000", "2,000"]
    for word in ("Traceback", "WARNING"):
        assert word not in done.stderr
    # What a customer's windows and lists say is counted by hand.
    bought = pd.read_parquet(tmp_path / "shop" / "data" / "purchases.parquet")
    of_7 = bought[bought["customer_id"] == 7].sort_values("purchased_at", ascending=False)
    age = datetime.now(tz=timezone.utc) - of_7["purchased_at"]
    month = of_7[age <= pd.Timedelta(days=30)]
    assert of_7["price"].head(3).tolist() == [7.28, 16.68, 29.49]
    assert (round(month["price"].sum(), 2), len(month)) == (207.03, 7)
    assert of_7["price"].nlargest(3).tolist() == [76.75, 74.3, 65.37]


COUNTED = {"ReturnConsumedCapacity": "TOTAL"}


def query_units(client, key: bytes) -> float:
    page = client.query(
        TableName="units.purchases",
        KeyConditionExpression="k = :k",
        ExpressionAttributeValues={":k": {"B": key}},
        **COUNTED,
    )
    assert "LastEvaluatedKey" not in page
    return page["ConsumedCapacity"]["CapacityUnits"]


def get_units(client, items: list) -> float:
    keys = [{"k": item["k"], "s": item["s"]} for item in items]
    answers = [
        client.batch_get_item(
            RequestItems={"units.purchases": {"Keys": keys[start : start + 100]}}, **COUNTED
        )
        for start in range(0, len(keys), 100)
    ]
    assert [answer["UnprocessedKeys"] for answer in answers] == [{}] * len(answers)
    return sum(each["CapacityUnits"] for answer in answers for each in answer["ConsumedCapacity"])


def test_the_read_units_on_the_page_are_those_that_dynamodb_local_counts(
    dynamodb, tmp_path, monkeypatch
):
    if dynamodb.name == "moto":
        pytest.skip("moto counts no bytes")
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    said = {int(number.replace(",", "")): [float(q), float(g)] for number, q, g in rows}
    assert [*said] == [20, 100, 1_000]
    shutil.copytree(SNIPPETS, tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    yaml = Path("feature_store.yaml")
    online = "  type: feast_dynamo_ext.DynamoOnlineStore\n"
    settings = f"  region: {REGION}\n  endpoint_url: {dynamodb.endpoint}\n"
    project = "project: units\n"
    text = yaml.read_text().replace(online, online + settings)
    yaml.write_text(text.replace("project: shop\n", project))
    monkeypatch.syspath_prepend(str(tmp_path / "shop"))
    shown = runpy.run_path("definitions.py")
    store = FeatureStore(".")
    store.apply([shown["customer"], shown["purchases"]])
    client = boto3.client("dynamodb", region_name=REGION, endpoint_url=dynamodb.endpoint)
    now = datetime.now(tz=timezone.utc)
    for number in said:
        store.write_to_online_store(
            "purchases",
            df=pd.DataFrame(
                {
                    "customer_id": number,
                    "purchase_id": range(number),
                    "purchased_at": [now - pd.Timedelta(minutes=each) for each in range(number)],
                    "price": 12.5,
                    "category": "books",
                }
            ),
        )
    of_customer: dict[bytes, list] = {}
    for page in client.get_paginator("scan").paginate(TableName="units.purchases"):
        for item in page["Items"]:
            of_customer.setdefault(item["k"]["B"], []).append(item)
    counted = {}
    for key, items in of_customer.items():
        if len(items) in said:
            counted[len(items)] = [query_units(client, key), get_units(client, items)]
    assert counted == said
    store.teardown()
