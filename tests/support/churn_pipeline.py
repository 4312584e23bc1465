"""A feature repo with a pipeline whose model is a mean, so that what each step makes is known."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureService
from feast.types import Float64, Int64
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.sagemaker.pipeline.local_run import run_pipeline_locally
from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import parse_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from feast import FeatureStore

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.pipeline.local_run import LocalPipelineRun

DAY = dt.timedelta(days=1)
START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
SET = """
feature_service: churn_v1
entity_rows: {path: labels.parquet}
label: bought
split: {rule: time, validation_from: 2026-01-11, test_from: 2026-01-21}
formats: [csv]
output: training
"""
PIPELINE = """
name: churn
role: arn:aws:iam::123456789012:role/pipeline
output: s3://BUCKET/churn
image: features:1
materialize: {views: [orders]}
training_set: {name: churn}
train: {script: train.py, image: "xgboost:1", hyperparameters: {add: 1}}
evaluate: {script: evaluate.py}
condition: {metric: "metrics.mean[0].value", at_least: 2.5}
package: {group: churn, image: "serve:1"}
"""
# The model is the mean of the first feature on the train split, and what the job adds.
TRAIN = """
import argparse, csv, json, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--add", type=float)
add = parser.parse_args().add
folder = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"])
rows = [row for file in sorted(folder.iterdir()) for row in csv.reader(file.open())]
mean = sum(float(row[1]) for row in rows) / len(rows)
model = pathlib.Path(os.environ["SM_MODEL_DIR"], "model.json")
model.write_text(json.dumps({"mean": mean + add}))
"""
EVALUATE = """
import argparse, csv, json, pathlib, tarfile
parser = argparse.ArgumentParser()
for name in ("model", "test", "output"):
    parser.add_argument("--" + name, type=pathlib.Path)
given = parser.parse_args()
with tarfile.open(given.model / "model.tar.gz") as archive:
    model = json.load(archive.extractfile("model.json"))
rows = [row for file in sorted(given.test.iterdir()) for row in csv.reader(file.open())]
metrics = {"mean": [{"value": model["mean"]}], "rows": len(rows)}
(given.output / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
"""
ALL = ["Materialize", "BuildTrainingSet", "Train", "Evaluate", "CheckMetric", "RegisterModel"]


def history(folder: Path, name: str, *totals: float) -> None:
    table = pa.table(
        {
            "cid": [1, 2],
            "event_timestamp": pa.array([START, START], pa.timestamp("us", tz="UTC")),
            "total": totals,
            "orders": [1, 2],
        }
    )
    pq.write_table(table, folder / name)


def labels(repo: Path, *, bought: int = 1, first: int = 1) -> None:
    """Two rows of train, of which `first` is the first's label, one of validation, one of test."""
    times = [START + days * DAY for days in (5, 6, 15, 25)]
    rows = {"cid": [1, 2, 1, 2], "bought": [first, 0, 0, bought]}
    times = pa.array(times, pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table(rows | {"event_timestamp": times}), repo / "labels.parquet")


def make_repo(repo: Path) -> Path:
    (repo / "training_sets").mkdir(parents=True)
    (repo / "training_sets" / "churn.yaml").write_text(SET)
    (repo / "train.py").write_text(TRAIN)
    (repo / "evaluate.py").write_text(EVALUATE)
    (repo / "orders").mkdir()
    history(repo / "orders", "a.parquet", 1.0, 3.0)
    labels(repo)
    return repo


def applied(store: FeatureStore, repo: Path, description: str = "") -> FeatureStore:
    view = customer_view(source=parquet_files(repo / "orders"), total=Float64, orders=Int64)
    view.description = description
    store.apply([CUSTOMER, view, FeatureService(name="churn_v1", features=[view])])
    return store


def runner(
    repo: Path, store: FeatureStore, folder: Path, aws: AwsSettings, bucket: str
) -> Callable[..., LocalPipelineRun]:
    def run(text: str = PIPELINE, **options) -> LocalPipelineRun:
        declaration = parse_pipeline(text.replace("BUCKET", bucket), "pipelines/churn.yaml")
        return run_pipeline_locally(declaration, repo, store, folder=folder, aws=aws, **options)

    return run


def done(found: LocalPipelineRun) -> list[str]:
    return [step.name for step in found.steps if step.outcome == "done"]
