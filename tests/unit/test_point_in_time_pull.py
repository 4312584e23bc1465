"""pull_latest and pull_all against plain loops: generated keys and times of all kinds."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from examples import cases
from feast import FileSource
from hypothesis import given
from hypothesis import strategies as st
from pit_cases import (
    HOUR,
    MICROSECOND,
    SECOND,
    US,
    key_array,
    names_in_files,
    plan_config,
    write_history,
)
from pit_oracle import latest, within
from pit_strategies import DST, FAMILIES, views_of

from feast_dynamo_ext.offline_store import S3ParquetOfflineStore

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
ZONE = dt.timezone(dt.timedelta(hours=5, minutes=30))
steps = st.integers(-5, 17)


def moment(ns: int) -> dt.datetime:
    """A time of whole microseconds, far from UTC on purpose."""
    return (EPOCH + ns // US * MICROSECOND).astimezone(ZONE)


@st.composite
def pulls(draw):
    """A history, and two moments in ns between which its rows are wanted."""
    pools = draw(st.lists(st.sampled_from(sorted(FAMILIES)), max_size=2))
    values = {
        name: draw(st.lists(st.sampled_from(FAMILIES[name].values), min_size=1, max_size=3))
        for name in sorted(set(pools))
    }
    step = draw(st.sampled_from([HOUR, SECOND, US]))
    bounds = sorted(DST + draw(st.integers(-5, 17)) * step for _ in range(2))
    return draw(views_of(pools, values, DST, step)), bounds


@cases(20)
@given(case=pulls())
def test_pull_latest_and_pull_all_equal_plain_loops(case):
    view, (start, end) = case
    *keys, value, at, made = names_in_files(view)
    made = made if view.created is not None else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "history"
        write_history(view, path)
        stored = pq.read_schema(path / "part-0.parquet")
        newest, everything = (
            pull(
                config=plan_config(),
                data_source=FileSource(path=str(path), timestamp_field=at),
                join_key_columns=keys,
                feature_name_columns=[value],
                timestamp_field=at,
                created_timestamp_column=made,
                start_date=moment(start),
                end_date=moment(end),
            ).to_arrow()
            for pull in (
                S3ParquetOfflineStore.pull_latest_from_table_or_query,
                S3ParquetOfflineStore.pull_all_from_table_or_query,
            )
        )
    expected = latest(view.rows, start, end)
    assert sorted(newest.column(value).to_pylist()) == expected
    assert everything.column(value).to_pylist() == within(view.rows, start, end)
    for result in (newest, everything):
        assert result.column_names == [*keys, value, at, *([made] if made else [])]
        assert result.schema.types == [stored.field(name).type for name in result.column_names]
        at_rows = [view.rows[position] for position in result.column(value).to_pylist()]
        for number, (name, kind) in enumerate(zip(keys, view.kinds, strict=True)):
            written = key_array([row.keys[number] for row in at_rows], kind)
            assert result.column(name).to_pylist() == written.to_pylist()
