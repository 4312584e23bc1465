"""What the package answers at its outer edges, compared with committed records.

Nothing here names an inner module. `GOLDEN=write make test ARGS=tests/golden` writes the records
anew, where an answer is meant to change; the diff of the commit then says how it did.
"""

from __future__ import annotations

import asyncio

import boto3
import pytest
from golden_cli import cli_record
from golden_items import items_record
from golden_names import names_record
from golden_proxy import RecordingProxy
from golden_record import compare, replaced
from golden_retrievals import retrievals_record
from golden_training import training_record
from golden_wire import finished, materialize_record, reads_record, writes_record

PROJECT = "golden"


@pytest.fixture
def client(dynamodb_local):
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb_local)
    yield client
    client.close()


@pytest.mark.dynamodb_local
def test_items(open_store, dynamodb_local, client, tmp_path):
    store = open_store("items", online={"region": "us-east-1", "endpoint_url": dynamodb_local})
    record = items_record(store, client)
    compare("items", replaced(record, {str(tmp_path): "<folder>"}))
    store.teardown()
    asyncio.run(store.close())


@pytest.mark.dynamodb_local
@pytest.mark.parametrize("area", ["writes", "reads", "materialize"])
def test_wire(area, open_store, dynamodb_local, moto_endpoint, client, tmp_path):
    with RecordingProxy(dynamodb_local) as proxy:
        found = {
            "writes": lambda: writes_record(open_store, proxy, client),
            "reads": lambda: reads_record(open_store, proxy),
            "materialize": lambda: materialize_record(open_store, proxy, client, moto_endpoint),
        }[area]()
        record = finished({"scenarios": found, "headers": proxy.headers()}, tmp_path, proxy)
    compare(f"wire_{area}", record)


def test_names(tmp_path):
    compare("names", replaced(names_record(tmp_path), {str(tmp_path): "<folder>"}))


@pytest.mark.slow
def test_retrievals(tmp_path):
    compare("retrievals", replaced(retrievals_record(tmp_path), {str(tmp_path): "<folder>"}))


def test_cli(moto_endpoint, tmp_path):
    compare("cli", cli_record(tmp_path, moto_endpoint))


def test_training(moto_endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto_endpoint)
    record = training_record(tmp_path, moto_endpoint)
    compare("training", replaced(record, {str(tmp_path): "<folder>", moto_endpoint: "<aws>"}))
