"""The demo's step with the service of service.py: what it answers, beside history.

The windows that are computed of purchases at the request are those of training, and those that the
batch job computed; the scores of a segment are the model's of the history.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.dataset as pads
import xgboost as xgb
from commands import REPO, fail, feast_dynamo, got, served
from service import SERVICE, booster_of, inputs

from feast_dynamo_ext import aws

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BUCKET = "feast-dynamo-demo"
PURCHASES, SEGMENTS = "customer_purchases", "customer_segment"
# What the batch job computes, and the same of the purchases.
BOTH = {
    "orders_90d": "count_90d",
    "items_90d": "sum_items_90d",
    "spend_90d": "sum_amount_90d",
    "mean_basket_90d": "mean_amount_90d",
}
SEGMENT = "loyal"
COMPARED = 200


def open_store() -> Any:
    """The feature store of this repo."""
    from feast import FeatureStore

    return FeatureStore(REPO)


def newest_rows(view: str, settings: aws.AwsSettings) -> pd.DataFrame:
    """Offline: each customer's newest row, straight from the files, with none of our join."""
    filesystem, path = aws.filesystem(f"s3://{BUCKET}/history/{view}", settings)
    rows = pads.dataset(path, filesystem=filesystem, partitioning="hive").to_table().to_pandas()
    newest = rows.sort_values(["event_timestamp", "created_timestamp"], kind="stable")
    times = ["event_timestamp", "created_timestamp", "event_month"]
    return newest.groupby("customer_id").tail(1).set_index("customer_id").drop(columns=times)


def when_known(later: list[dict[str, Any]]) -> pd.Timestamp:
    """When the last purchases are known: 2 h after the midnight that ends their day."""
    last = pd.Timestamp(int(later[-1]["purchased_at"]["N"]), unit="ms", tz="UTC")
    return last.floor("D") + pd.Timedelta(days=1, hours=2)


def in_training(store: Any, customers: list[int], moment: pd.Timestamp) -> pd.DataFrame:
    """The features of customers as of a moment, from the history: a row each, by customer."""
    rows = pd.DataFrame({"customer_id": sorted({*customers}), "event_timestamp": moment})
    service = store.get_feature_service(SERVICE)
    found = store.get_historical_features(rows, service).to_df().set_index("customer_id")
    return found.drop(columns="event_timestamp")


def same_in_training(store: Any, settings: aws.AwsSettings) -> int:
    """Compare both kinds of numbers at each entity row of the training set; gives their number."""
    filesystem, path = aws.filesystem(f"s3://{BUCKET}/labels/repurchase.parquet", settings)
    rows = pads.dataset(path, filesystem=filesystem).to_table().to_pandas()
    features = [f"customer_90d:{name}" for name in BOTH]
    features += [f"purchases_90d:{name}" for name in BOTH.values()]
    found = store.get_historical_features(
        rows[["customer_id", "event_timestamp"]], features
    ).to_df()
    for name, of_window in BOTH.items():
        # A window without purchases has no sum; the batch job says 0.
        pair = found[[name, of_window]].astype("float64").fillna(0)
        apart = (pair[name] - pair[of_window]).abs() > 1e-9 * pair[name].abs().clip(lower=1)
        if apart.any():
            fail(f"{of_window} is not {name} in {apart.sum()} rows: {found[apart].head(3)}")
    return len(found)


def close(served: Any, known: Any) -> bool:
    """Whether numbers are the same but for the order in which they were added up."""
    if pd.isna(known):
        return served is None
    return served is not None and math.isclose(served, known, rel_tol=1e-9, abs_tol=1e-9)


@dataclass(frozen=True)
class Answers:
    """What the service answered.

    Attributes:
        customers: the answer of /predict by customer.
        cohort: the scores of /cohort by customer.
        predict_ms: the median of what a /predict took.
        cohort_s: how long the /cohort took.
    """

    customers: dict[int, dict[str, Any]]
    cohort: dict[int, float]
    predict_ms: float
    cohort_s: float


def materialize_purchases(moment: pd.Timestamp) -> None:
    """Write what the service reads: of the purchases those of the windows as of a moment."""
    since = moment - pd.Timedelta(days=90)
    feast_dynamo("materialize", since.isoformat(), moment.isoformat(), "--views", PURCHASES)
    feast_dynamo(*("materialize", "--all", "--views", SEGMENTS), *("--write-mode", "overwrite"))


def answers_of(asked: Sequence[int], moment: pd.Timestamp, model: Path) -> Answers:
    """Start the service, as of a moment, and ask it."""
    command = ["uvicorn", "service:app", "--host", "127.0.0.1", "--no-access-log"]
    variables = {"SHOP_NOW": moment.isoformat(), "SHOP_MODEL": str(model)}
    with served(command, "UVICORN_PORT", "/health", variables) as url:
        got(f"{url}/predict/{asked[0]}")  # the first one learns what the tables hold
        customers, took_ms = {}, []
        for customer in asked:
            started = time.monotonic()
            customers[customer] = got(f"{url}/predict/{customer}")
            took_ms.append(1e3 * (time.monotonic() - started))
        started = time.monotonic()
        cohort = {each["customer_id"]: each["score"] for each in got(f"{url}/cohort/{SEGMENT}")}
        cohort_s = time.monotonic() - started
    return Answers(customers, cohort, sorted(took_ms)[len(took_ms) // 2], cohort_s)


def compare_service(
    model: Path, moment: pd.Timestamp, settings: aws.AwsSettings
) -> list[tuple[str, str]]:
    """Ask the service for customers and a segment, and compare each answer; gives the figures.

    Args:
        model: the archive of a model.
        moment: as of when; the data are of 1998.
        settings: how to reach S3.

    Raises:
        FeastDynamoError: an answer is not that of the history.
    """
    store = open_store()
    rows = same_in_training(store, settings)
    batch = newest_rows("customer_90d", settings)
    chosen = random.Random(9)  # noqa: S311 - a sample
    asked = [
        customer
        for some in (batch["orders_90d"] > 0, batch["orders_90d"] == 0)
        for customer in chosen.sample(batch.index[some].tolist(), COMPARED // 2)
    ]
    answers = answers_of(asked, moment, model)
    segments = newest_rows(SEGMENTS, settings)["segment"]
    members = segments.index[segments == SEGMENT].tolist()
    if answers.cohort.keys() != {*members}:
        fail(f"/cohort/{SEGMENT}: {len(answers.cohort):,} customers, not {len(members):,}")
    offline = in_training(store, [*asked, *members], moment)
    scores = booster_of(model).predict(xgb.DMatrix(inputs(offline).to_numpy()))
    expected = dict(zip(offline.index, scores.tolist(), strict=True))
    for customer, answer in answers.customers.items():
        features = answer["features"]
        for name, known in offline.loc[customer].items():
            if not close(features[name], known):
                fail(f"/predict/{customer}: {name}: {features[name]}, in training {known}")
        for name, of_window in BOTH.items():
            # A window without purchases has no sum; the batch job says 0.
            known = batch.loc[customer, name]
            if not close(features[of_window] or 0, 0 if pd.isna(known) else known):
                fail(f"/predict/{customer}: {of_window}: {features[of_window]}, {name} {known}")
    found = {each: answer["score"] for each, answer in answers.customers.items()} | answers.cohort
    wrong = [each for each, score in found.items() if not close(score, expected[each])]
    if wrong:
        fail(f"the scores of {len(wrong)} customers are not the model's: {wrong[:5]}")
    return [
        ("as of", f"{moment}, when the last purchases are known"),
        ("rows of training where both kinds of 90 days agree", f"{rows:,}"),
        ("/predict: customers as in training", f"{len(asked)}"),
        ("/predict: p50, one after another", f"{answers.predict_ms:.1f} ms"),
        (f"/cohort/{SEGMENT}: customers scored", f"{len(members):,}"),
        (f"/cohort/{SEGMENT}: took", f"{answers.cohort_s:.1f} s"),
    ]


def read_units(dynamodb: Any) -> list[tuple[str, str]]:
    """What reading the purchases of 100 customers takes, as DynamoDB counts it."""
    table = f"shop.{PURCHASES}"
    schema = dynamodb.describe_table(TableName=table)["Table"]["KeySchema"]
    key, sort = (each["AttributeName"] for each in schema)
    scanned = dynamodb.scan(TableName=table, Limit=1_000)["Items"]
    # The item that says what the rows stand for is no customer's.
    keys = {item[key]["B"]: item[key] for item in scanned if "v" in item}
    counted = {"ReturnConsumedCapacity": "TOTAL"}
    by_query, by_get, items = 0.0, 0.0, 0
    for value in list(keys.values())[:100]:
        page = dynamodb.query(
            TableName=table,
            KeyConditionExpression="#k = :k",
            ExpressionAttributeNames={"#k": key},
            ExpressionAttributeValues={":k": value},
            **counted,
        )
        by_query += page["ConsumedCapacity"]["CapacityUnits"]
        items += len(page["Items"])
        alone = [{key: item[key], sort: item[sort]} for item in page["Items"]]
        for start in range(0, len(alone), 100):
            answer = dynamodb.batch_get_item(
                RequestItems={table: {"Keys": alone[start : start + 100]}}, **counted
            )
            by_get += sum(each["CapacityUnits"] for each in answer["ConsumedCapacity"])
    return [
        (f"read units: {items} purchases of {min(len(keys), 100)} customers, a Query each",
         f"{by_query:g}"),
        ("read units: the same items by BatchGetItem", f"{by_get:g}"),
    ]  # fmt: skip
