"""Metrics that are kept: newest of a key wins, writers lose nothing, many files become one."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pytest
from feast.monitoring.dqm_job_manager import DQMJobManager
from repos import repo_config

from feast_dynamo_ext import S3ParquetOfflineStore
from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import ColumnNotFoundError, OfflineStoreError, SourceReadError
from feast_dynamo_ext.monitoring.metrics_tables import MetricsStorage, MetricsTable

UTC = dt.timezone.utc
DAY = dt.date(2026, 1, 5)
NOON = dt.datetime(2026, 1, 6, 12, tzinfo=UTC)


@pytest.fixture
def storage(tmp_path) -> MetricsStorage:
    return MetricsStorage(str(tmp_path / "metrics"), AwsSettings())


def feature(name="x", mean=1.0, baseline=False, day=DAY, view="v", **more) -> dict:
    return {
        "project_id": "p",
        "feature_view_name": view,
        "feature_name": name,
        "metric_date": day,
        "granularity": "daily",
        "data_source_type": "batch",
        "computed_at": NOON,
        "max_event_timestamp": None,
        "is_baseline": baseline,
        "feature_type": "numeric",
        "row_count": 2,
        "mean": mean,
        "histogram": {"bins": [0.0, 1.0], "counts": [2], "bin_width": 1.0},
        **more,
    }


def means(storage, project="p", **filters) -> list[tuple[str, float]]:
    return [
        (row["feature_name"], row["mean"]) for row in storage.query("feature", project, filters)
    ]


def test_what_was_saved_is_read_as_feast_has_it(storage):
    storage.prepare()
    storage.save("feature", [feature()])
    assert storage.query("feature", "p", {"feature_name": "x", "granularity": None}) == [
        {
            **feature(),
            "metric_date": "2026-01-05",
            "computed_at": "2026-01-06T12:00:00+00:00",
            **dict.fromkeys(("null_count", "null_rate", "stddev", "min_val", "max_val")),
            **dict.fromkeys(("p50", "p75", "p90", "p95", "p99")),
        }
    ]


def test_the_newest_of_a_key_wins(storage):
    storage.save("feature", [feature(mean=1.0), feature("y", mean=5.0)])
    storage.save("feature", [feature(mean=2.0), feature(mean=3.0)])
    storage.save("feature", [])
    assert means(storage) == [("y", 5.0), ("x", 3.0)]


def test_metrics_come_by_date_and_within_a_range_of_dates(storage):
    days = [DAY + dt.timedelta(days=at) for at in range(4)]
    storage.save("feature", [feature(day=day, mean=float(day.day)) for day in reversed(days)])
    found = storage.query("feature", "p", {}, days[1], days[2])
    assert [row["metric_date"] for row in found] == ["2026-01-06", "2026-01-07"]


def test_a_project_sees_its_own_and_none_means_all(storage):
    storage.save("feature", [feature(), feature("y", project_id="q")])
    assert means(storage) == [("x", 1.0)]
    assert len(means(storage, project="")) == 2


def test_a_cleared_baseline_is_none_and_keeps_its_figures(storage):
    storage.save("feature", [feature(baseline=True), feature("y", baseline=True, view="w")])
    storage.clear_baseline({"project_id": "p", "feature_view_name": "v", "feature_name": None})
    assert means(storage, is_baseline=True) == [("y", 1.0)]
    assert means(storage, is_baseline=False) == [("x", 1.0)]
    storage.save("feature", [feature(mean=2.0, baseline=True)])
    assert means(storage, is_baseline=True) == [("y", 1.0), ("x", 2.0)]


def test_clearing_does_not_undo_what_was_written_since_it_read():
    table = MetricsTable.from_type("feature")
    first, second = (
        table.rows([feature(mean=mean, baseline=True)], at) for mean, at in ((1.0, 10), (9.0, 11))
    )
    at = first.schema.get_field_index("is_baseline")
    cleared = first.set_column(at, first.schema.field(at), pa.array([False]))
    for written in ([first, second, cleared], [cleared, first, second], [second, cleared]):
        assert table.newest(pa.concat_tables(written)).column("mean").to_pylist() == [9.0]
    for written in ([first, cleared], [cleared, first]):
        assert table.newest(pa.concat_tables(written)).column(at).to_pylist() == [False]


def test_many_files_become_one_with_the_same_metrics(storage):
    storage = replace(storage, fold_from=5)
    for at in range(5):
        storage.save("feature", [feature(f"f{at % 2}", mean=float(at))])
    assert means(storage) == [("f1", 3.0), ("f0", 4.0)]
    assert len(storage.files("feature")) == 5
    storage.prepare()
    assert len(storage.files("feature")) == 1
    assert means(storage) == [("f1", 3.0), ("f0", 4.0)]


def test_the_same_on_s3(bucket, moto_endpoint):
    settings = AwsSettings(region="us-east-1", endpoint_url=moto_endpoint)
    storage = MetricsStorage(f"s3://{bucket}/team/metrics", settings, fold_from=3)
    storage.save("feature", [feature(mean=1.0, baseline=True)])
    storage.save("feature", [feature("y", mean=2.0, baseline=True)])
    storage.clear_baseline({"project_id": "p", "feature_name": "x"})
    assert len(storage.files("feature")) == 3
    storage.prepare()
    assert len(storage.files("feature")) == 1
    assert means(storage, is_baseline=True) == [("y", 2.0)]
    assert means(storage) == [("x", 1.0), ("y", 2.0)]


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    storage = MetricsStorage(str(tmp_path), AwsSettings(), fold_from=4)

    def write(at: int) -> None:
        storage.save("feature", [feature(f"f{at}", mean=float(at))])
        storage.prepare()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(16)))
    assert sorted(means(storage)) == sorted((f"f{at}", float(at)) for at in range(16))


def test_jobs_as_feast_moves_them_from_state_to_state(tmp_path):
    class Service:
        def auto_compute(self, **asked) -> dict:
            return {"computed": asked["feature_view_name"]}

    manager = DQMJobManager(S3ParquetOfflineStore(), repo_config(tmp_path))
    manager.ensure_table()
    job = manager.submit("p", "auto_compute", "v", {"allowed_feature_view_names": ["v"]})
    assert manager.get_job(job, project="q") is None
    assert manager.execute_job(job, Service()) == {"computed": "v"}
    found = manager.get_job(job, project="p")
    assert found["status"] == "completed"
    assert found["parameters"] == {"allowed_feature_view_names": ["v"]}
    assert found["result_summary"] == {"computed": "v"}
    assert found["started_at"] <= found["completed_at"]


@pytest.mark.parametrize(
    ("location", "folder"),
    [(None, "feast_monitoring"), ("metrics", "metrics"), ("s3://b/metrics/", None)],
)
def test_where_metrics_are_kept(tmp_path, location, folder):
    offline = {"monitoring_location": location} if location else {}
    expected = str(tmp_path / folder) if folder else "s3://b/metrics"
    assert MetricsStorage.from_config(repo_config(tmp_path, **offline)).uri == expected


def test_what_cannot_be_asked(tmp_path):
    storage = MetricsStorage(str(tmp_path), AwsSettings())
    with pytest.raises(ColumnNotFoundError, match=r"filtered by \['colour'\]"):
        storage.query("feature", "p", {"colour": "red"})
    with pytest.raises(OfflineStoreError, match="no metrics of type `colour`"):
        storage.save("colour", [{}])


def test_a_spoilt_file_is_named(tmp_path):
    storage = MetricsStorage(str(tmp_path), AwsSettings())
    storage.save("feature", [feature()])
    (path,) = tmp_path.rglob("*.parquet")
    path.write_bytes(b"spoilt")
    with pytest.raises(SourceReadError, match=path.name):
        storage.query("feature", "p", {})


def test_a_bucket_that_is_not_there(moto_endpoint):
    settings = AwsSettings(region="us-east-1", endpoint_url=moto_endpoint)
    with pytest.raises(LookupError, match="NoSuchBucket"):
        MetricsStorage("s3://nowhere-at-all/metrics", settings).prepare()
