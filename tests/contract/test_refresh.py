"""From a table of an application to a model: what a refresh runs when the table has changed."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from churn_pipeline import ALL, DAY, EVALUATE, PIPELINE, SET, START, TRAIN, labels
from click.testing import CliRunner
from export_service import ExportService
from export_writer import ExportedTable
from feast import FeatureService, FeatureStore, FeatureView, Field, FileSource
from feast.types import Float64, Int64, UnixTimestamp
from repos import REGION, write_repo_yaml
from views import CUSTOMER

from feast_dynamo_ext import DynamoDBTableSource, ViewSettings
from feast_dynamo_ext.cli.main import main
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# Totals by customer, of the captured orders: what a team's own SQL would make.
PREPARED = """
import pathlib, duckdb
from feast import FeatureStore
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
if __name__ == "__main__":
    store = FeatureStore(".")
    handle = TableHandle.from_source(store.get_data_source("SOURCE"), store.config)
    orders = handle.load().scan().to_arrow()
    pathlib.Path("totals").mkdir(exist_ok=True)
    duckdb.sql('''
        COPY (SELECT cid, min(ordered) AS event_timestamp, sum(total)::DOUBLE AS total, count(*)
              AS orders FROM orders GROUP BY cid ORDER BY cid) TO 'totals/a.parquet'
    ''')
"""
STEPS = ["Capture", "Prepare", *ALL]


class Shop:
    """A repo, its store, the table of an application with its exports, and the command."""

    def __init__(
        self, repo: Path, store: FeatureStore, service: ExportService, source: Any
    ) -> None:
        self.repo, self.store, self.service, self.source = repo, store, service, source
        self.steps: dict[str, Any] = {}

    def put(self, customer: int, day: int, total: float) -> None:
        at = int((START + day * DAY).timestamp() * 1000)
        key = {"cid": {"N": str(customer)}, "ordered": {"N": str(at)}}
        self.service.put(key | {"total": {"N": str(total)}})
        self.service.clock.forward(minutes=20)

    def declare(self, capture: str, bucket: str) -> None:
        text = PIPELINE.replace("BUCKET", bucket).replace("[orders]", "[orders], all: true")
        text += f"capture: {{sources: [{self.source.name}], {capture}}}\n"
        text += "prepare: {command: [python, prepare.py], files: [prepare.py]}\n"
        (self.repo / "pipelines" / "churn.yaml").write_text(text)

    def refresh(self, *more: str) -> list[str]:
        """Names of the steps that ran."""
        command = ["refresh", "--json", "-c", str(self.repo), *more]
        found = CliRunner().invoke(main, command)
        assert found.exit_code == 0, found.stderr
        self.answer = json.loads(found.stdout)
        self.steps = {step["name"]: step for step in self.answer["steps"]}
        return [name for name, step in self.steps.items() if step["outcome"] == "done"]


@pytest.fixture
def shop(tmp_path, moto_endpoint, bucket, monkeypatch) -> Iterator[Shop]:
    name = f"orders{bucket.replace('-', '')}"
    repo = tmp_path / "repo"
    for folder in ("training_sets", "pipelines"):
        (repo / folder).mkdir(parents=True)
    for file, text in {
        "training_sets/churn.yaml": SET,
        "train.py": TRAIN,
        "evaluate.py": EVALUATE,
        "prepare.py": PREPARED.replace("SOURCE", name),
    }.items():
        (repo / file).write_text(text)
    labels(repo)
    python_path = [str(tmp_path.cwd()), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(python_path))
    clients = {
        service: boto3.client(service, region_name=REGION, endpoint_url=moto_endpoint)
        for service in ("dynamodb", "s3")
    }
    clients["dynamodb"].create_table(
        TableName=name,
        KeySchema=[
            {"AttributeName": "cid", "KeyType": "HASH"},
            {"AttributeName": "ordered", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": key, "AttributeType": "N"} for key in ("cid", "ordered")
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    arn = clients["dynamodb"].describe_table(TableName=name)["Table"]["TableArn"]
    table = ExportedTable(name, REGION, arn.split(":")[4], partitions=2)
    source = DynamoDBTableSource(
        name=name,
        table=name,
        event_time="ordered",
        event_time_unit="ms",
        schema=[
            Field(name="cid", dtype=Int64),
            Field(name="ordered", dtype=UnixTimestamp),
            Field(name="total", dtype=Float64),
        ],
        history=str(tmp_path / "history"),
    )
    orders = FeatureView(
        name="orders",
        entities=[CUSTOMER],
        schema=[Field(name="total", dtype=Float64), Field(name="orders", dtype=Int64)],
        source=FileSource(path=str(repo / "totals"), timestamp_field="event_timestamp"),
    )
    last = FeatureView(
        name="last_order",
        entities=[CUSTOMER],
        schema=[Field(name="total", dtype=Float64)],
        source=source,
        tags=ViewSettings(deletes="ignore").tags(),
    )
    with ExportService(
        moto_endpoint, clients["dynamodb"], clients["s3"], table, ("cid", "ordered"), polls=0
    ) as service:
        online = {"region": REGION, "endpoint_url": service.url}
        offline = {
            "region": REGION,
            "endpoint_url": moto_endpoint,
            "catalog": {"type": "sql", "warehouse": str(tmp_path / "tables")},
        }
        registry = str(tmp_path / "registry.db")
        write_repo_yaml(repo, registry=registry, online=online, offline=offline)
        store = FeatureStore(str(repo))
        shop = Shop(repo, store, service, source)
        shop.put(1, 0, 1.0)
        shop.put(2, 1, 3.0)
        (repo / "totals").mkdir()
        churn = FeatureService(name="churn_v1", features=[orders])
        store.apply([CUSTOMER, source, last, orders, churn])
        yield shop
        store.teardown()


@pytest.mark.parametrize("how", ["scan: true", "exports: s3://BUCKET/exports"])
def test_what_is_new_in_the_table_runs_all_that_follows_and_nothing_else_does(shop, bucket, how):
    shop.declare(how.replace("BUCKET", bucket), bucket)
    assert shop.refresh() == STEPS
    assert shop.answer["metric"] == 3.0  # the mean of 1 and 3, and 1
    name = shop.source.name
    assert shop.steps["Capture"]["detail"].startswith(f"{name}: 2 ")
    assert "2 new rows" in shop.steps["Capture"]["detail"]

    # Nothing is new, and nothing follows; though capture notes in the history how far it is.
    assert shop.refresh() == ["Capture"]
    assert {step["why"] for step in list(shop.steps.values())[1:]} == {
        "nothing that it reads has changed"
    }
    handle = TableHandle.from_source(shop.source, shop.store.config)
    before = handle.load().current_snapshot().snapshot_id
    shop.service.clock.forward(hours=1)
    assert shop.refresh() == ["Capture"]
    assert handle.load().current_snapshot().snapshot_id != before

    shop.put(1, 3, 4.0)
    assert shop.refresh() == STEPS
    assert "1 new rows" in shop.steps["Capture"]["detail"]
    assert shop.steps["Prepare"]["why"] == f"changed: the captured table {name}"
    assert shop.steps["Materialize"]["why"] == "changed: the history of orders"
    assert shop.answer["metric"] == 5.0  # the mean of 1 + 4 and 3, and 1
    assert shop.answer["metrics"]["metrics.mean[0].value"] == {"before": 3.0, "now": 5.0}
    online = shop.store.get_online_features(["orders:total"], [{"cid": 1}]).to_dict()
    assert online["total"] == [5.0]

    # A definition that has changed runs what follows from it, though nothing is new.
    prepare = shop.repo / "prepare.py"
    prepare.write_text(prepare.read_text() + "# a comment\n")
    assert shop.refresh() == ["Capture", "Prepare"]
    assert shop.steps["Prepare"]["why"] == "changed: prepare.py"
    (shop.repo / "train.py").write_text(TRAIN.replace("mean + add", "mean"))
    assert shop.refresh() == ["Capture", "Train", "Evaluate", "CheckMetric", "RegisterModel"]


def test_a_capture_that_fails_ends_the_run_and_the_next_one_goes_on(shop, bucket):
    shop.declare("exports: s3://BUCKET/exports".replace("BUCKET", bucket), bucket)
    shop.service.recovery_since = None
    found = CliRunner().invoke(main, ["refresh", "-c", str(shop.repo)])
    assert found.exit_code == 1
    assert found.stderr.splitlines()[-1].startswith(
        "error: Step Capture of pipeline churn failed: "
    )
    assert "update-continuous-backups" in found.stderr
    shop.service.recovery_since = shop.service.clock.now
    shop.service.clock.forward(hours=1)
    assert shop.refresh() == STEPS


def test_the_step_of_capture_runs_where_sagemaker_runs_it(shop, bucket):
    shop.declare("scan: true", bucket)
    command = ["pipeline", "capture", "churn", "--json", "-c", str(shop.repo)]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout) == {shop.source.name: "2 items, 2 new rows"}
    text = (shop.repo / "pipelines" / "churn.yaml").read_text()
    (shop.repo / "pipelines" / "churn.yaml").write_text(text[: text.index("capture:")])
    found = CliRunner().invoke(main, command)
    assert "churn declares no `capture`" in found.stderr


def test_who_is_erased_is_in_nothing_that_a_run_made_and_what_is_out_of_reach_is_named(
    shop, bucket
):
    shop.declare("scan: true", bucket)
    assert shop.refresh() == STEPS
    shop.store.materialize(START - DAY, START + 40 * DAY, feature_views=["last_order"])
    (run,) = (shop.repo / ".pipelines" / "churn" / "sets").iterdir()
    row = {"features": ["orders:total", "last_order:total"], "entity_rows": [{"cid": 2}]}
    assert shop.store.get_online_features(**row, full_feature_names=True).to_dict() == {
        "cid": [2],
        "orders__total": [3.0],
        "last_order__total": [3.0],
    }
    ordered = {"N": str(int((START + DAY).timestamp() * 1000))}
    shop.service.delete({"cid": {"N": "2"}, "ordered": ordered})
    command = ["capture", "erase", shop.source.name, "--key", "cid=2", "-c", str(shop.repo)]

    def erase(*more: str) -> Any:
        found = CliRunner().invoke(main, [*command, *more])
        assert found.exit_code == 0, found.stderr
        return found

    plan = json.loads(erase("--dry-run", "--json").stdout)
    assert [(each["output"], each["rows"]) for each in plan["training_sets"]] == [(str(run), 2)]
    assert {each["view"]: (each["entities"], each["source"]) for each in plan["online"]} == {
        "last_order": (1, shop.source.name),
        "orders": (1, str(shop.repo / "totals")),
    }
    beyond = [
        f"files that `python prepare.py` of pipeline churn made, such as {shop.repo / 'totals'}, "
        "labels.parquet: run `feast-dynamo refresh churn` again, before the views over them are "
        "materialized otherwise",
        f"training sets of pipeline churn that SageMaker built: give --training-sets "
        f"s3://{bucket}/churn",
    ]
    assert plan["beyond"][:2] == beyond

    said = erase("--yes", "--settled", "0s").stdout
    assert f"Online, view orders over source {shop.repo / 'totals'}: rows of 1 entity." in said
    closing = said[said.index("Searched: ") :].splitlines()
    assert closing[0].endswith(
        " files of history and quarantine, nothing of them is left in these."
    )
    assert closing[1:] == ["Not searched, and may hold them:", *(f"  {each}" for each in beyond)]
    assert not list(run.rglob("*.parquet"))
    assert shop.store.get_online_features(**row, full_feature_names=True).to_dict() == {
        "cid": [2],
        "orders__total": [None],
        "last_order__total": [None],
    }
    # What the step made holds them, until it runs again.
    assert pq.read_table(shop.repo / "totals")["cid"].to_pylist() == [1, 2]
    of_labels = pq.read_table(shop.repo / "labels.parquet").to_pylist()
    of_first = pa.Table.from_pylist([{**row, "cid": 1} for row in of_labels])
    pq.write_table(of_first, shop.repo / "labels.parquet")
    shop.put(1, 3, 4.0)
    assert "BuildTrainingSet" in shop.refresh()
    assert pq.read_table(shop.repo / "totals")["cid"].to_pylist() == [1]
    online = shop.store.get_online_features(**row, full_feature_names=True).to_dict()
    assert online["orders__total"] == [None]
