"""The feature repo: definitions, and history and labels against counting by hand."""

from __future__ import annotations

import datetime as dt
import importlib
import importlib.util
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import boto3
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import yaml
from feast.repo_operations import get_repo_files
from feast.type_map import feast_value_type_to_pa

from feast_dynamo_ext.aws import AwsSettings, filesystem
from feast_dynamo_ext.errors import ColumnNotFoundError, ColumnTypeError, DependencyError

REPO = Path(__file__).parents[2] / "feature_repo"
MODULES = ("purchases", "history", "labels", "definitions")
VIEWS = ("customer_90d", "customer_lifetime", "customer_purchases", "customer_segment")
DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def repo():
    """The repo's modules, imported as a script in that folder would import them."""
    sys.path.insert(0, str(REPO))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    sys.path.remove(str(REPO))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def cdnow(repo):
    return repo.purchases.load_purchases()


@pytest.fixture(scope="module")
def cdnow_history(repo, cdnow):
    return repo.history.build_history(cdnow)


@pytest.fixture(scope="module")
def sampled(cdnow):
    """200 customers, each with the purchases [(day, items, cents), ...] in order."""
    customers = set(random.Random(11).sample(range(1, 23_571), 200))  # noqa: S311
    bought: dict[int, list[tuple[dt.date, int, int]]] = {}
    for row in cdnow.to_pylist():
        if row["customer_id"] in customers:
            purchase = (row["date"], row["items"], round(row["amount"] * 100))
            bought.setdefault(row["customer_id"], []).append(purchase)
    assert len(bought) == 200
    return {customer: sorted(purchases) for customer, purchases in bought.items()}


def midnight(day):
    return dt.datetime(day.year, day.month, day.day, tzinfo=dt.timezone.utc)


def purchases_of(*rows):
    return pd.DataFrame(rows, columns=["customer_id", "date", "items", "amount"])


def d(text):
    return dt.date.fromisoformat(text)


def rows_of(table, *columns):
    return list(zip(*(table[column].to_pylist() for column in columns), strict=True))


# history: a table small enough to write the answer down


SMALL = (
    (7, d("2024-01-10"), 2, 10.10),
    (8, d("2024-04-30"), 1, 5.00),  # the last known day
    (7, d("2024-04-09"), 3, 20.20),  # 90 days later: this one comes in as the first two leave
    (7, d("2024-01-10"), 1, 0.0),
    (9, d("2024-01-05"), 1, 1.00),
)


def test_90_day_rows_of_a_small_shop(repo):
    table = repo.history.build_history(purchases_of(*SMALL))["customer_90d"]
    table = table.append_column("day", table["event_timestamp"].cast(pa.timestamp("us")))
    table = table.set_column(table.num_columns - 1, "day", table["day"].cast(pa.date32()))
    names = ("customer_id", "day", "orders_90d", "items_90d", "spend_90d", "mean_basket_90d")
    assert rows_of(table, *names, "days_since_last_purchase") == [
        (7, d("2024-01-11"), 2, 3, 10.1, 5.05, 0),
        (7, d("2024-01-25"), 2, 3, 10.1, 5.05, 14),
        (7, d("2024-02-08"), 2, 3, 10.1, 5.05, 28),
        (7, d("2024-02-22"), 2, 3, 10.1, 5.05, 42),
        (7, d("2024-03-07"), 2, 3, 10.1, 5.05, 56),
        (7, d("2024-03-21"), 2, 3, 10.1, 5.05, 70),
        (7, d("2024-04-04"), 2, 3, 10.1, 5.05, 84),
        (7, d("2024-04-10"), 1, 3, 20.2, 20.2, 0),
        (7, d("2024-04-24"), 1, 3, 20.2, 20.2, 14),
        (8, d("2024-05-01"), 1, 1, 5.0, 5.0, 0),
        (9, d("2024-01-06"), 1, 1, 1.0, 1.0, 0),
        (9, d("2024-01-20"), 1, 1, 1.0, 1.0, 14),
        (9, d("2024-02-03"), 1, 1, 1.0, 1.0, 28),
        (9, d("2024-02-17"), 1, 1, 1.0, 1.0, 42),
        (9, d("2024-03-02"), 1, 1, 1.0, 1.0, 56),
        (9, d("2024-03-16"), 1, 1, 1.0, 1.0, 70),
        (9, d("2024-03-30"), 1, 1, 1.0, 1.0, 84),
        (9, d("2024-04-05"), 0, 0, 0.0, None, 90),
    ]


def test_lifetime_rows_of_a_small_shop(repo):
    table = repo.history.build_history(purchases_of(*SMALL))["customer_lifetime"]
    assert table.drop_columns("created_timestamp").to_pylist() == [
        {
            "customer_id": customer,
            "lifetime_orders": orders,
            "lifetime_spend": spend,
            "first_purchase_age_days": age,
            "mean_gap_days": gap,
            "event_timestamp": midnight(d(day)),
        }
        for customer, orders, spend, age, gap, day in [
            (7, 2, 10.1, 0, None, "2024-01-11"),
            (7, 3, 30.3, 90, 90.0, "2024-04-10"),
            (8, 1, 5.0, 0, None, "2024-05-01"),
            (9, 1, 1.0, 0, None, "2024-01-06"),
        ]
    ]


# history: the real shop


def count_90d(purchases, day):
    """What the window that ends with a day holds: (orders, items, cents)."""
    inside = [p for p in purchases if day - 90 * DAY < p[0] <= day]
    return len(inside), sum(p[1] for p in inside), sum(p[2] for p in inside)


def expected_90d(customer, purchases, last_day):
    """Walk through the days one by one and write down the rows."""
    days = {p[0] for p in purchases}
    day, changed_on = min(days), None
    while day <= last_day:
        orders, items, cents = count_90d(purchases, day)
        if day in days or day - 90 * DAY in days:
            changed_on = day
        if day == changed_on or (orders and (day - changed_on).days % 14 == 0):
            yield {
                "customer_id": customer,
                "orders_90d": orders,
                "items_90d": items,
                "spend_90d": cents / 100,
                "mean_basket_90d": cents / (100 * orders) if orders else None,
                "days_since_last_purchase": (day - max(b for b in days if b <= day)).days,
                "event_timestamp": midnight(day) + DAY,
                "created_timestamp": midnight(day) + DAY + dt.timedelta(hours=2),
            }
        day += DAY


def expected_lifetime(customer, purchases):
    days = sorted({p[0] for p in purchases})
    for number, day in enumerate(days, 1):
        so_far = [p for p in purchases if p[0] <= day]
        age = (day - days[0]).days
        yield {
            "customer_id": customer,
            "lifetime_orders": len(so_far),
            "lifetime_spend": sum(p[2] for p in so_far) / 100,
            "first_purchase_age_days": age,
            "mean_gap_days": age / (number - 1) if number > 1 else None,
            "event_timestamp": midnight(day) + DAY,
            "created_timestamp": midnight(day) + DAY + dt.timedelta(hours=2),
        }


def expected_purchases(customer, purchases):
    numbers: dict[dt.date, int] = {}
    for day, items, cents in purchases:
        numbers[day] = numbers.get(day, 0) + 1
        yield {
            "customer_id": customer,
            "number": numbers[day],
            "items": items,
            "amount": cents / 100,
            "event_timestamp": midnight(day) + DAY - dt.timedelta(microseconds=1),
            "created_timestamp": midnight(day) + DAY + dt.timedelta(hours=2),
        }


def expected_segment(customer, purchases):
    before = None
    for day in sorted({p[0] for p in purchases}):
        orders = sum(p[0] <= day for p in purchases)
        segment = "new" if orders < 2 else "returning" if orders < 10 else "loyal"
        if segment != before:
            yield {
                "customer_id": customer,
                "segment": segment,
                "event_timestamp": midnight(day) + DAY,
                "created_timestamp": midnight(day) + DAY + dt.timedelta(hours=2),
            }
        before = segment


def test_cdnow_is_what_the_docs_say(cdnow):
    assert cdnow.num_rows == 69_659
    assert pc.count_distinct(cdnow["customer_id"]).as_py() == 23_570
    assert pc.min_max(cdnow["date"]).as_py() == {"min": d("1997-01-01"), "max": d("1998-06-30")}
    assert pc.sum(pc.equal(cdnow["amount"], 0)).as_py() == 80


def test_row_counts_of_the_real_shop(cdnow_history):
    assert {view: table.num_rows for view, table in cdnow_history.items()} == {
        "customer_90d": 361_014,
        "customer_lifetime": 67_591,
        "customer_purchases": 69_659,
        "customer_segment": 36_035,
    }


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_history_of_200_customers_equals_counting_by_hand(cdnow_history, sampled, view):
    table = cdnow_history[view]
    found = table.filter(pc.is_in(table["customer_id"], pa.array(sampled))).to_pylist()
    expected = []
    for customer in sorted(sampled):
        if view == "customer_90d":
            expected += expected_90d(customer, sampled[customer], d("1998-06-30"))
        else:
            expected += {
                "customer_lifetime": expected_lifetime,
                "customer_purchases": expected_purchases,
                "customer_segment": expected_segment,
            }[view](customer, sampled[customer])
    assert found == expected


def test_no_row_looks_ahead(repo, cdnow, cdnow_history):
    until = d("1997-09-15")
    for view, table in repo.history.build_history(cdnow, until).items():
        full = cdnow_history[view]
        known = pc.less_equal(full["event_timestamp"], pa.scalar(midnight(until + DAY)))
        assert table.equals(full.filter(known)), view
        assert table.num_rows > 30_000


def test_the_order_of_the_purchases_does_not_matter(repo, cdnow, cdnow_history):
    shuffled = cdnow.take(np.random.default_rng(5).permutation(cdnow.num_rows)).to_pandas()
    for view, table in repo.history.build_history(shuffled).items():
        assert table.equals(cdnow_history[view]), view


# the files of the history


def test_history_is_one_sorted_file_a_month(repo, tmp_path):
    history = repo.history.build_history(purchases_of(*SMALL))
    repo.history.write_history(history, str(tmp_path))
    files = sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file())
    assert files == [
        "customer_90d/event_month=2024-01/part-0.parquet",
        "customer_90d/event_month=2024-02/part-0.parquet",
        "customer_90d/event_month=2024-03/part-0.parquet",
        "customer_90d/event_month=2024-04/part-0.parquet",
        "customer_90d/event_month=2024-05/part-0.parquet",
        "customer_lifetime/event_month=2024-01/part-0.parquet",
        "customer_lifetime/event_month=2024-04/part-0.parquet",
        "customer_lifetime/event_month=2024-05/part-0.parquet",
        "customer_purchases/event_month=2024-01/part-0.parquet",
        "customer_purchases/event_month=2024-04/part-0.parquet",
        "customer_segment/event_month=2024-01/part-0.parquet",
        "customer_segment/event_month=2024-05/part-0.parquet",
    ]
    january = pq.read_table(tmp_path / files[0], partitioning=None)
    assert january.schema.equals(history["customer_90d"].schema)
    assert january["customer_id"].to_pylist() == [7, 7, 9, 9]
    assert pq.read_metadata(tmp_path / files[0]).row_group(0).column(0).compression == "ZSTD"


def test_writing_again_changes_no_byte(repo, tmp_path):
    history = repo.history.build_history(purchases_of(*SMALL))
    contents = []
    for _ in range(2):
        repo.history.write_history(history, str(tmp_path))
        contents.append({f: f.read_bytes() for f in tmp_path.rglob("*.parquet")})
    assert contents[0] == contents[1]


@pytest.fixture
def s3(monkeypatch, moto_endpoint):
    """A client of the local S3 that the environment points to, with a bucket `feature-repo`."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto_endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="feature-repo")
    return client


def test_history_on_s3_reads_back_as_it_was_built(repo, cdnow_history, s3):
    repo.history.write_history(cdnow_history, "s3://feature-repo/history")
    target, path = filesystem(
        "s3://feature-repo/history/customer_90d/", AwsSettings(region="us-east-1")
    )
    read = pads.dataset(path, filesystem=target, partitioning="hive")
    assert len(read.files) == 19  # January 1997 to July 1998
    assert "event_month" in read.schema.names
    table = read.to_table(columns=cdnow_history["customer_90d"].column_names)
    by_time = [("customer_id", "ascending"), ("event_timestamp", "ascending")]
    assert table.sort_by(by_time).equals(cdnow_history["customer_90d"])
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket="feature-repo")["Contents"]]
    assert all(key.endswith(".parquet") for key in keys), "folder markers are no history"


# labels


def test_entity_rows_of_a_small_shop(repo):
    purchases = purchases_of(
        (1, d("2023-01-01"), 1, 1.0),  # the first known day: so 2023-04-01 is the first cutoff
        (2, d("2023-03-31"), 1, 1.0),
        (2, d("2023-04-01"), 1, 1.0),  # the cutoff's own day is after it
        (3, d("2023-05-31"), 1, 1.0),  # 60 days after 2023-04-01: outside its label window
        (4, d("2023-03-31"), 1, 1.0),
        (4, d("2023-05-30"), 1, 1.0),  # 59 days after it: inside
        (5, d("2023-06-29"), 1, 1.0),  # the last known day: 2023-05-01 + 60 days is the next
    )
    rows = repo.labels.entity_rows(purchases)
    april, may = pd.Timestamp("2023-04-01", tz="UTC"), pd.Timestamp("2023-05-01", tz="UTC")
    assert rows.to_dict("tight")["data"] == [
        [1, april, 0],
        [2, april, 1],
        [4, april, 1],
        [1, may, 0],
        [2, may, 0],
        [4, may, 1],
    ]
    assert {name: str(dtype) for name, dtype in rows.dtypes.items()} == {
        "customer_id": "int64",
        "event_timestamp": "datetime64[us, UTC]",
        "bought_again_60d": "int64",
    }


def test_a_customer_leaves_the_entity_rows_after_180_days(repo):
    purchases = purchases_of(
        (1, d("2023-01-01"), 1, 1.0),
        (2, d("2023-01-02"), 1, 1.0),
        (3, d("2023-08-30"), 1, 1.0),
    )
    rows = repo.labels.entity_rows(purchases)
    at_cutoff = rows[rows["event_timestamp"] == pd.Timestamp("2023-07-01", tz="UTC")]
    assert at_cutoff["customer_id"].tolist() == [2]  # 181 and 180 days before 1 July


CUTOFFS = [dt.date(1997 + m // 12, m % 12 + 1, 1) for m in range(3, 17)]


def test_labels_of_200_customers_equal_counting_by_hand(repo, cdnow, sampled):
    rows = repo.labels.entity_rows(cdnow)
    assert len(rows) == 174_937
    found = rows[rows["customer_id"].isin(list(sampled))].itertuples(index=False, name=None)
    expected = []
    for cutoff in CUTOFFS:
        for customer in sorted(sampled):
            days = [p[0] for p in sampled[customer]]
            if any(cutoff - 180 * DAY <= day < cutoff for day in days):
                again = any(cutoff <= day < cutoff + 60 * DAY for day in days)
                expected.append((customer, midnight(cutoff), int(again)))
    assert list(found) == expected
    assert (CUTOFFS[0], CUTOFFS[-1]) == (d("1997-04-01"), d("1998-05-01"))


def test_features_at_a_cutoff_count_the_90_days_before_it(repo, cdnow, cdnow_history, sampled):
    history = cdnow_history["customer_90d"].to_pandas().sort_values("event_timestamp")
    joined = pd.merge_asof(
        repo.labels.entity_rows(cdnow), history, on="event_timestamp", by="customer_id"
    ).dropna(subset="orders_90d")
    assert len(joined) == 174_937  # every entity row finds its features
    checked = joined[joined["customer_id"].isin(list(sampled))]
    assert len(checked) > 1_000
    for row in checked.itertuples():
        before = row.event_timestamp.date() - DAY
        orders, items, cents = count_90d(sampled[row.customer_id], before)
        assert (row.orders_90d, row.items_90d, row.spend_90d) == (orders, items, cents / 100)


# purchases


def test_without_lifetimes_the_error_says_what_to_install(repo, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(DependencyError, match=r"`pip install lifetimes==0\.11\.3`"):
        repo.purchases.load_purchases()


@pytest.mark.parametrize(
    ("column", "values", "error", "message"),
    [
        ("amount", None, ColumnNotFoundError, "no column `amount`, only customer_id, date, items"),
        ("items", [1.0, None], ColumnTypeError, "`items` has 1 nulls"),
        ("items", [1.0, 2.5], ColumnTypeError, "`items` is double and does not convert to int64"),
        ("customer_id", ["1", "x"], ColumnTypeError, "`customer_id` is .*string"),
    ],
)
def test_purchases_that_cannot_be_counted_are_refused(repo, column, values, error, message):
    frame = purchases_of((1, d("2024-01-01"), 1, 1.0), (2, d("2024-01-02"), 1, 1.0))
    frame = frame.drop(columns=column) if values is None else frame.assign(**{column: values})
    with pytest.raises(error, match=message):
        repo.history.build_history(frame)


# definitions


def test_feast_imports_only_the_definitions():
    assert [file.name for file in get_repo_files(REPO)] == ["definitions.py"]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_the_columns_of_its_history(repo, view):
    feature_view = getattr(repo.definitions, view)
    declared = {
        field.name: feast_value_type_to_pa(field.dtype.to_value_type())
        for field in feature_view.schema
    }
    written = {field.name: field.type for field in repo.history.SCHEMAS[view]}
    utc = pa.timestamp("us", tz="UTC")
    assert written == declared | {"event_timestamp": utc, "created_timestamp": utc}
    assert feature_view.batch_source.timestamp_field == "event_timestamp"
    assert feature_view.batch_source.created_timestamp_column == "created_timestamp"


def test_the_service_computes_the_inputs_that_the_model_was_trained_on(repo):
    service = importlib.import_module("service")
    features = pd.DataFrame(
        {
            "mean_gap_days": [None, 11.5],
            "first_purchase_age_days": [0, 23],
            "lifetime_spend": [7.5, 60.0],
            "lifetime_orders": [1, 3],
            # Nothing in 90 days; and twice, the newest at the end of the day before yesterday.
            "time_since_last_90d": [None, 2 * 86_400.000001],
            "mean_amount_90d": [None, 20.25],
            "sum_amount_90d": [None, 40.5],
            "sum_items_90d": [None, 5],
            "count_90d": [0, 2],
        }
    )
    made = service.inputs(features)
    of_views = (repo.definitions.customer_90d, repo.definitions.customer_lifetime)
    assert list(made) == [field.name for view in of_views for field in view.features]
    nulls = ["mean_basket_90d", "mean_gap_days"]
    assert made.loc[0, nulls].isna().all()
    assert made.loc[0].drop(nulls).tolist() == [0, 0, 0, 90, 1, 7.5, 0]
    assert made.loc[1].tolist() == [2, 5, 40.5, 20.25, 2, 3, 60.0, 23, 11.5]


def test_sources_are_in_the_bucket_of_the_environment(monkeypatch):
    monkeypatch.setenv("FEATURE_BUCKET", "my-bucket")
    spec = importlib.util.spec_from_file_location("definitions_mine", REPO / "definitions.py")
    definitions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(definitions)
    source = definitions.customer_90d_source
    assert source.path == "s3://my-bucket/history/customer_90d/"
    source = definitions.customer_lifetime_source
    assert source.path == "s3://my-bucket/history/customer_lifetime/"


def test_the_yaml_takes_bucket_and_region_from_the_environment(monkeypatch):
    monkeypatch.setenv("FEATURE_BUCKET", "my-bucket")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    text = os.path.expandvars((REPO / "feature_store.yaml").read_text())
    assert yaml.safe_load(text) == {
        "project": "shop",
        "provider": "feast_dynamo_ext.DynamoProvider",
        "registry": {
            "path": "s3://my-bucket/registry.db",
            "cache_ttl_seconds": 60,
            "serve_features_while_materializing": True,
        },
        "online_store": {"type": "feast_dynamo_ext.DynamoOnlineStore", "region": "eu-west-1"},
        "offline_store": {
            "type": "feast_dynamo_ext.S3ParquetOfflineStore",
            "region": "eu-west-1",
            "catalog": {
                "type": "sql",
                "uri": "sqlite:///../.feast-dynamo/demo/iceberg.db",
                "warehouse": "s3://my-bucket/tables",
            },
        },
        "entity_key_serialization_version": 3,
    }
