"""A training set's report of made-up rows: 50 features of all kinds, some of them shifted."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
from split_rows import TablesBySplit

from feast_dynamo_ext.duckdb_connection import Limits
from feast_dynamo_ext.sagemaker.column_statistics import label_of
from feast_dynamo_ext.sagemaker.distributions import statistics
from feast_dynamo_ext.sagemaker.leakage import Keys, leakage
from feast_dynamo_ext.sagemaker.over_time import ages, over_time
from feast_dynamo_ext.sagemaker.set_report import Feature, SetReport, SplitFigures

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
LIMITS = Limits(memory_limit="300MB", threads=2)
CITIES = ("Ulm", "Bonn", "Köln", "<script>alert(1)</script>", "A city with a very long name, " * 3)


def made_rows(features: int, rows: int = 4_000) -> TablesBySplit:
    """Three splits by time; the label leans on the first features."""
    random = np.random.default_rng(11)
    tables = {}
    for split, first, share in (("train", 0, 0.6), ("validation", 110, 0.2), ("test", 150, 0.2)):
        count = int(rows * share)
        days = np.sort(random.uniform(first, first + 200 * share, count))
        moments = [START + dt.timedelta(days=float(day)) for day in days]
        label = (random.random(count) < 0.1 + 0.001 * days).astype(np.int64)
        seen = [
            moment - dt.timedelta(hours=float(h))
            for moment, h in zip(moments, random.exponential(30, count), strict=True)
        ]
        table = {
            "customer_id": pa.array(random.integers(0, 900, count)),
            "event_timestamp": pa.array(moments, pa.timestamp("us", "UTC")),
            "orders_time": pa.array(
                seen, pa.timestamp("us", "UTC"), mask=random.random(count) < 0.05
            ),
            "churned": pa.array(label),
            "city": pa.array(random.integers(0, 5, count).astype(np.int32)),
        }
        for at, city in enumerate(CITIES):
            table[f"home={city}"] = pa.array((random.integers(0, 5, count) == at).astype(np.int8))
        for at in range(features - 2):
            values = random.lognormal(0.05 * at * (split == "test"), 0.6, count)
            values = np.round(values * 10 ** (at % 6 - 2), 3) + label * (0.5 if at % 7 == 0 else 0)
            missing = random.random(count) < (at % 5) * 0.04
            table[f"orders__spend_of_{at}_days"] = pa.array(values, mask=missing)
        tables[split] = pa.table(table)
    return TablesBySplit(tables, 1_000)


def made_report(features: int = 50) -> SetReport:
    """The report of `made_rows`."""
    rows = made_rows(features)
    label = label_of(rows, "churned")
    columns = rows.schema.names[4:]
    found = statistics(rows, columns, label, LIMITS)
    of_views = tuple(ages(rows.every(), "event_timestamp", ["orders_time"]))
    made = [
        Feature(
            "home",
            "string as one-hot",
            tuple(found[f"home={city}"] for city in CITIES),
            {f"home={city}": city for city in CITIES},
            categories=True,
        ),
        Feature("city", "string as codes", (found["city"],), dict(enumerate(CITIES))),
        *(Feature(name, "double", (found[name],)) for name in columns[6:]),
    ]
    return SetReport(
        "churn <b>2026-07</b>",
        (
            ("Output", "s3://my-lake/training/churn/2026-07"),
            ("Label", "churned"),
            ("Split", "time: validation from 2026-04-21, test from 2026-05-31"),
            ("Feature service", "churn_v3"),
            ("Built with", "feast 0.67.0, pyarrow 26.0.1, duckdb 2.0.0, python 3.11.7"),
        ),
        tuple(_figures(rows, split) for split in rows.splits),
        label,
        over_time(rows, "event_timestamp", label),
        of_views,
        leakage(
            rows, Keys("event_timestamp", ("customer_id",), "time"), label, found, of_views, LIMITS
        ),
        tuple(made),
    )


def _figures(rows: TablesBySplit, split: str) -> SplitFigures:
    table = rows.tables[split]
    times, labels = table["event_timestamp"].to_pylist(), table["churned"].to_numpy()
    mean = float(labels.mean())
    return SplitFigures(
        split,
        table.num_rows,
        f"{times[0]:%Y-%m-%d %H:%M}",
        f"{times[-1]:%Y-%m-%d %H:%M}",
        mean,
        0,
        1,
    )
