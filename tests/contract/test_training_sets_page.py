"""The code of docs/how-to/train-on-sagemaker.md runs, in order, against moto."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "train-on-sagemaker.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def store(open_store, moto_endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    history = pa.table(
        {
            "customer_id": [1, 2],
            "event_timestamp": [START, START],
            "spend": [9.5, 3.25],
            "visits": [4, 1],
        }
    )
    pq.write_table(history, tmp_path / "sales.parquet")
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    sales = FeatureView(
        name="sales",
        entities=[customer],
        schema=[
            Field(name="customer_id", dtype=Int64),
            Field(name="spend", dtype=Float64),
            Field(name="visits", dtype=Int64),
        ],
        source=FileSource(path=str(tmp_path / "sales.parquet"), timestamp_field="event_timestamp"),
        ttl=timedelta(0),
        online=False,
    )
    store = open_store("shop")
    store.apply([customer, sales])
    return store


def test_every_block_of_the_page_runs(store, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sagemaker_training")
    monkeypatch.chdir(tmp_path)
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="my-lake")
    Path("train.py").write_text("import os; print(os.listdir(os.environ['SM_CHANNEL_TRAIN']))")
    days = [START + timedelta(days=day) for day in range(0, 150, 5)]
    rows = pd.DataFrame(
        {
            "customer_id": [1 + day % 2 for day in range(30)],
            "event_timestamp": days,
            "churned": [day % 3 == 0 for day in range(30)],
        }
    )
    names = {"store": store, "entity_rows": rows}
    assert len(BLOCKS) == 3
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102 - running it is the test
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("'")[3] for line in lines[:3]] == ["train", "validation", "test"]
    assert lines[3] == "Completed"
    status, log = lines[-1].split()
    assert status == "Completed"
    assert "algo-1 | ['part-00000.csv']" in Path(log).read_text()
    manifest = names["training_set"].manifest
    assert manifest.features == ("spend", "visits")
    assert [file.path for file in manifest.provenance.source_files] == [
        str(tmp_path / "sales.parquet")
    ]
