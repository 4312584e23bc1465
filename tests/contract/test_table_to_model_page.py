"""docs/tutorial/from-table-to-model.md runs as it stands, and what it says is so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial" / "from-table-to-model.md").read_text()
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STEP = re.compile(r"^([A-Z]\w+) +(done|skipped) +(?:-|[0-9.]+ (?:s|min [0-9]+ s)) +(.*)$")
# What the table has, read beside the package.
SCAN = """
import boto3, json
pages = boto3.client("dynamodb").get_paginator("scan").paginate(TableName="orders")
items = [item for page in pages for item in page["Items"]]
print(json.dumps([{name: value["N"] for name, value in item.items()} for item in items]))
"""
# An application's ordinary work: each order of a customer is written again, with another amount.
UPDATE = """
import boto3
from boto3.dynamodb.conditions import Key
table = boto3.resource("dynamodb").Table("orders")
for order in table.query(KeyConditionExpression=Key("customer_id").eq(3))["Items"]:
    table.put_item(Item={**order, "amount": order["amount"] + 1})
    print(order["order_id"])
"""


def script() -> str:
    """The page as a reader goes through it; orders change, and the table is read in the end."""
    commands = "".join(body for kind, body in BLOCK.findall(PAGE) if kind == "bash")
    first, refresh, more = commands.partition("feast-dynamo refresh\n")
    commands = f"{first}{refresh}python - > updated.txt <<'END'\n{UPDATE}END\n{more}"
    before, down, rest = commands.partition("feast-dynamo local down")
    assert not rest.strip()
    return f"set -e\n{before}python - > orders.json <<'END'\n{SCAN}END\n{down}\n"


def tables(output: str) -> list[dict[str, tuple[str, str]]]:
    """Outcome and reason of each step, run by run."""
    found: list[dict[str, tuple[str, str]]] = []
    for line in output.splitlines():
        step = re.match(
            r"^([A-Z]\w+) +(done|skipped) +(?:-|[0-9.]+ (?:s|min [0-9]+ s)) +(.*)$", line
        )
        if step and step[1] == "Capture":
            found.append({})
        if step:
            found[-1][step[1]] = step[2], step[3]
    return found


def test_the_page_runs_to_a_model_and_again(tmp_path):
    checkout, shop = tmp_path / "checkout", tmp_path / "shop"
    checkout.mkdir()
    try:
        done = subprocess.run(
            ["bash"],
            input=script(),
            cwd=checkout,
            env=os.environ | {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"]])},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        down = [BIN / "feast-dynamo", "local", "down", "--folder", shop]
        subprocess.run(down, check=True)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    assert "Traceback" not in done.stdout + done.stderr

    first, second, third = tables(done.stdout)
    assert {outcome for outcome, _ in first.values()} == {"done"}
    assert {name for name, (outcome, _) in second.items() if outcome == "done"} == set(first)
    assert second["Prepare"] == ("done", "changed: the captured table orders")
    assert {name for name, (outcome, _) in third.items() if outcome == "done"} == {"Capture"}
    # What the page shows is what is said.
    for shown in tables(PAGE):
        for name, step in shown.items():
            assert step in (first[name], third[name])
    captured = re.findall(r"^Capture: done .*orders: (.*)$", done.stderr, re.MULTILINE)
    updated = len((shop / "updated.txt").read_text().split())
    assert updated > 20
    assert captured == [
        "4,000 items, 4,000 new rows",
        f"4,300 items, {300 + updated} new rows",
        "4,300 items, 0 new rows",
    ]

    # The features of the last day, counted from the table itself.
    orders = json.loads((shop / "orders.json").read_text())
    history = pq.read_table(shop / "history" / "orders").to_pylist()
    day = max(row["event_timestamp"] for row in history)
    until = int(day.timestamp() * 1000)
    for row in history:
        if row["event_timestamp"] == day:
            counts = [
                sum(
                    int(order["customer_id"]) == row["customer_id"]
                    and until - days * 86_400_000 <= int(order["ordered_at"]) < until
                    for order in orders
                )
                for days in (7, 28)
            ]
            assert counts == [row["orders_7d"], row["orders_28d"]]
    packages = (shop / ".pipelines" / "repurchase" / "packages").glob("*.json")
    entries = [json.loads(file.read_text()) for file in packages]
    assert len({entry["model"]["sha256"] for entry in entries}) == 2
    assert all(entry["metric"]["value"] > 0.55 for entry in entries)
