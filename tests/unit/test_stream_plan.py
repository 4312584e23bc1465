"""More rows of one event time than are kept to be decided later."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FileSource
from pit_cases import plan_config

from feast_dynamo_ext.parquet.source import ParquetSource
from feast_dynamo_ext.retrieval.engines import one_pass
from feast_dynamo_ext.retrieval.inputs import EntityRows, History, MatchInput
from feast_dynamo_ext.retrieval.plan import ViewPlan

KEYS = 5


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1_000, one_pass.MOST_EQUAL + 5_000])
def test_of_rows_of_one_event_time_the_last_created_wins(tmp_path, rows):
    generator = np.random.default_rng(6)
    keys, created = generator.integers(0, KEYS, rows), generator.integers(0, 50, rows)
    history = pa.table(
        {
            "k": keys,
            "t": pa.array(np.zeros(rows, np.int64)).cast(pa.timestamp("us")),
            "c": pa.array(created).cast(pa.timestamp("us")),
        }
    )
    pq.write_table(history, tmp_path / "history.parquet", row_group_size=rows // 3)
    source = FileSource(name="s", path=str(tmp_path / "history.parquet"), timestamp_field="t")
    view = ViewPlan("v", source, (("k", "k"),), "t", "c", (), dt.timedelta(days=1))
    asked = list(range(KEYS + 1))
    entities = EntityRows.from_frame(
        pa.table({"k": asked, "event_timestamp": pa.array([7] * len(asked), pa.timestamp("us"))})
    )
    opened = History.from_view(view, ParquetSource.open(source, plan_config()))
    found = one_pass.match(
        MatchInput.from_entities(entities, opened, created_by_entity_time=False), opened, threads=2
    )
    expected = [
        max(np.flatnonzero(keys == key), key=lambda at: (created[at], at)) for key in range(KEYS)
    ]
    assert found.tolist() == [*expected, -1]
