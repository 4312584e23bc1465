"""Feast's monitoring service, and its validation of retrieved rows, on this store."""

from __future__ import annotations

import datetime as dt

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.dqm.errors import ValidationFailed
from feast.dqm.profilers.profiler import Profile, ValidationError, ValidationReport
from feast.monitoring.monitoring_service import MonitoringService
from feast.types import Float64, Int64, String

UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(open_store, tmp_path):
    """A history of a row a day, of ten days; the amount is the day."""
    days = range(1, 11)
    rows = {
        "shop": pa.array(days, pa.int64()),
        "at": pa.array(
            [START + dt.timedelta(days=day) for day in days], pa.timestamp("us", "UTC")
        ),
        "amount": [float(day) for day in days],
        "country": ["de" if day < 8 else "fr" for day in days],
    }
    (tmp_path / "history").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "history" / "a.parquet")
    shop = Entity(name="shop", value_type=ValueType.INT64)
    view = FeatureView(
        name="sales",
        entities=[shop],
        schema=[
            Field(name="shop", dtype=Int64),
            Field(name="amount", dtype=Float64),
            Field(name="country", dtype=String),
        ],
        source=FileSource(path="history", timestamp_field="at"),
        online=False,
    )
    found = open_store()
    found.registry.apply_entity(shop, "p")
    found.registry.apply_feature_view(view, "p")
    found.registry.apply_feature_service(FeatureService(name="all", features=[view]), "p")
    return found


@pytest.mark.slow
def test_automatic_metrics_and_baselines_are_computed_kept_and_read_back(store):
    service = MonitoringService(store)
    done = service.auto_compute()
    assert (done["computed_feature_views"], done["computed_features"]) == (1, 10)
    assert done["baseline_features"] == 2
    weekly = service.get_feature_metrics("p", feature_name="amount", granularity="weekly")
    assert [(row["metric_date"], row["row_count"], row["mean"]) for row in weekly] == [
        ("2026-01-04", 8, 6.5)
    ]
    assert weekly[0]["max_event_timestamp"] == "2026-01-11T00:00:00+00:00"
    baselines = {row["feature_name"]: row for row in service.get_baseline("p", "sales")}
    assert baselines["amount"]["row_count"] == 10
    assert baselines["country"]["histogram"]["values"] == [
        {"value": "de", "count": 7},
        {"value": "fr", "count": 3},
    ]
    (of_service,) = service.get_feature_service_metrics("p", "all", granularity="daily")
    assert (of_service["total_features"], of_service["total_feature_views"]) == (2, 1)
    assert service.auto_compute()["baseline_features"] == 0
    assert len(service.get_feature_metrics("p", granularity="weekly")) == 2


class AtMost(Profile):
    """Amounts are at most a limit."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def validate(self, dataset: pd.DataFrame) -> ValidationReport:
        over = [value for value in dataset.amount if value > self.limit]
        return Report(
            [ValidationError("at most", "amount", unexpected_count=len(over)) for _ in over]
        )


class Report(ValidationReport):
    def __init__(self, errors: list[ValidationError]) -> None:
        self._errors = errors

    is_success = property(lambda self: not self._errors)
    errors = property(lambda self: self._errors)


class Reference:
    """What Feast takes of a validation reference."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile


def test_retrieved_rows_are_validated(store):
    rows = pd.DataFrame({"shop": [3, 10], "event_timestamp": [START + dt.timedelta(days=30)] * 2})
    job = store.get_historical_features(rows, ["sales:amount"])
    with pytest.warns(RuntimeWarning, match="experimental"):
        assert job.to_df(validation_reference=Reference(AtMost(10.0))).amount.tolist() == [3, 10]
    with (
        pytest.warns(RuntimeWarning, match="experimental"),
        pytest.raises(ValidationFailed) as failed,
    ):
        job.to_arrow(validation_reference=Reference(AtMost(9.0)))
    assert [error.column_name for error in failed.value.report.errors] == ["amount"]
