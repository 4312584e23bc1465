"""What a retrieval says of itself before it reads rows."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureView, FileSource
from repos import NoRegistry, repo_config
from views import customer_view

from feast_dynamo_ext import S3ParquetSource
from feast_dynamo_ext.errors import ColumnNotFoundError
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore

if TYPE_CHECKING:
    from pathlib import Path

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
FRAME = pd.DataFrame({"cid": [1, 2], "event_timestamp": [START + 3 * DAY, START + 4 * DAY]})


@pytest.fixture
def daily(tmp_path) -> Path:
    """Ten days, a folder each, with two row groups of 100 rows."""
    for day in range(10):
        at = START + day * DAY
        folder = tmp_path / "daily" / f"dt={at:%Y-%m-%d}"
        folder.mkdir(parents=True)
        table = pa.table(
            {
                "cid": list(range(200)),
                "event_timestamp": pa.array([at] * 200, pa.timestamp("us", "UTC")),
                "total": [float(day)] * 200,
                "note": [f"{day} {row}" for row in range(200)],
            }
        )
        pq.write_table(table, folder / "a.parquet", row_group_size=100)
    return tmp_path / "daily"


def view_of(source, ttl) -> FeatureView:
    return customer_view("totals", source, ttl=ttl)


def explained(folder, view, **offline):
    return S3ParquetOfflineStore.get_historical_features(
        repo_config(folder, **offline), [view], ["totals:total"], FRAME, NoRegistry(), "p"
    ).explain()


def stored_bytes(path: Path, columns) -> int:
    metadata = pq.read_metadata(path)
    return sum(
        metadata.row_group(group).column(at).total_compressed_size
        for group in range(metadata.num_row_groups)
        for at in range(metadata.num_columns)
        if metadata.schema.column(at).path in columns
    )


@pytest.mark.parametrize("kind", [FileSource, S3ParquetSource])
def test_files_row_groups_and_bytes_are_those_of_the_window(tmp_path, daily, kind):
    more = {"date_partition_column": "dt"} if kind is S3ParquetSource else {}
    source = kind(path="daily", timestamp_field="event_timestamp", **more)
    found = explained(tmp_path, view_of(source, DAY))
    (view,) = found.views
    assert (view.files, view.files_listed) == (3, 10)
    assert (view.folders, view.folders_listed) == (3, 10)
    assert (view.row_groups, view.row_groups_opened, view.rows) == (6, 6, 600)
    opened = [daily / f"dt=2026-01-0{day}" / "a.parquet" for day in (3, 4, 5)]
    assert view.match_bytes == sum(
        stored_bytes(path, ("cid", "event_timestamp")) for path in opened
    )
    assert view.feature_bytes == sum(stored_bytes(path, ("total",)) for path in opened)
    assert (view.first, view.last) == ("2026-01-03T00:00:00+00:00", "2026-01-05T00:00:00+00:00")
    assert view.ttl_s == 86_400
    assert (found.entity_rows, found.views[0].view) == (2, "totals")


def test_a_table_for_people_and_a_dict_for_programs(tmp_path, daily):
    source = FileSource(path="daily", timestamp_field="event_timestamp")
    found = explained(tmp_path, view_of(source, dt.timedelta(0)), memory_limit="2GB")
    text = str(found)
    assert "5 of 10" in text
    assert "any time .. 2026-01-05T00:00:00+00:00" in text
    assert "2 entity rows" in text
    assert "`memory_limit` 2GB" in text
    as_json = json.loads(json.dumps(found.to_dict()))
    assert as_json["views"][0]["files"] == 5
    assert as_json["views"][0]["ttl_s"] is None


def test_no_rows_are_read(tmp_path, daily):
    for path in daily.rglob("*.parquet"):
        whole = path.read_bytes()
        footer = 8 + int.from_bytes(whole[-8:-4], "little")
        # The rows' bytes are gone; the footer still says where they were.
        path.write_bytes(b"PAR1" + bytes(len(whole) - footer - 4) + whole[-footer:])
    source = FileSource(path="daily", timestamp_field="event_timestamp")
    assert explained(tmp_path, view_of(source, DAY)).views[0].rows == 600


def test_pulls_are_explained_too(tmp_path, daily):
    job = S3ParquetOfflineStore.pull_latest_from_table_or_query(
        repo_config(tmp_path),
        FileSource(name="daily", path="daily", timestamp_field="event_timestamp"),
        ["cid"],
        ["total"],
        "event_timestamp",
        None,
        START,
        START + DAY,
    )
    found = job.explain()
    assert (found.views[0].plan, found.views[0].files, found.entity_rows) == ("newest", 2, None)


def test_a_missing_column_is_named(tmp_path, daily):
    source = FileSource(path="daily", timestamp_field="at")
    message = r"\['at'\].*Correct `timestamp_field` or `created_timestamp_column` of the source"
    with pytest.raises(ColumnNotFoundError, match=message):
        explained(tmp_path, view_of(source, DAY))
