"""Engines are twins: the functions of the protocol, in its order; what one lacks is declared."""

from __future__ import annotations

import datetime as dt
import inspect

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FileSource
from pit_cases import plan_config

from feast_dynamo_ext.offline_store import S3ParquetOfflineStoreConfig, engine_for
from feast_dynamo_ext.parquet.source import ParquetSource
from feast_dynamo_ext.retrieval.engines.base import NO_ROW, Engine, gaps
from feast_dynamo_ext.retrieval.engines.duckdb import DuckDbEngine
from feast_dynamo_ext.retrieval.engines.one_pass import OnePassEngine
from feast_dynamo_ext.retrieval.inputs import EntityRows
from feast_dynamo_ext.retrieval.plan import ViewPlan

ENGINES = (OnePassEngine, DuckDbEngine)
FUNCTIONS = ["explain", "matcher", "newest", "within"]
each_engine = pytest.mark.parametrize("engine", ENGINES)


def functions_of(kind: type) -> list[str]:
    """The public functions that a class defines, in its order, gaps included."""
    missing = gaps(kind)
    return [
        name
        for name, value in vars(kind).items()
        if not name.startswith("_") and (inspect.isfunction(value) or name in missing)
    ]


@each_engine
def test_an_engine_has_the_functions_of_the_protocol_in_its_order(engine):
    assert functions_of(Engine) == FUNCTIONS
    assert functions_of(engine) == FUNCTIONS


def test_gaps_are_declared_and_say_why():
    assert gaps(DuckDbEngine) == set()
    assert gaps(OnePassEngine) == {"newest", "within"}
    with pytest.raises(NotImplementedError, match=r"`OnePassEngine\.newest` is not there: .*"):
        OnePassEngine().newest()


@pytest.mark.parametrize(
    ("join_plan", "function", "engine"),
    [
        ("auto", "matcher", OnePassEngine),
        ("stream", "matcher", OnePassEngine),
        ("duckdb", "matcher", DuckDbEngine),
        ("auto", "newest", DuckDbEngine),
        ("stream", "within", DuckDbEngine),
        ("duckdb", "newest", DuckDbEngine),
    ],
)
def test_the_store_takes_the_first_engine_that_has_a_function(join_plan, function, engine):
    config = S3ParquetOfflineStoreConfig(
        join_plan=join_plan, memory_limit="1GB", threads=3, spill_folder="/spill"
    )
    assert engine_for(config, function) == engine("1GB", 3, "/spill")


@each_engine
def test_a_matcher_gives_positions_of_one_view_after_the_other(tmp_path, engine):
    day = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
    times = pa.array([day, day, day + dt.timedelta(days=1)], pa.timestamp("us", "UTC"))
    made = pa.array([day, None, None], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"k": [1, 1, 2], "t": times, "c": made}), tmp_path / "a.parquet")
    source = FileSource(name="s", path=str(tmp_path / "a.parquet"), timestamp_field="t")
    opened = ParquetSource.open(source, plan_config())
    entities = EntityRows.from_frame(
        pa.table({"k": [2, 1, 3], "event_timestamp": pa.array([day] * 3)})
    )
    match = engine("256MB", 1).matcher(entities, created_by_entity_time=False)
    with_created = ViewPlan("v", source, (("k", "k"),), "t", "c", (), None)
    without = ViewPlan("w", source, (("k", "k"),), "t", None, (), None)
    assert match(with_created, opened, 1).tolist() == [NO_ROW, 0, NO_ROW]
    assert match(without, opened, 1).tolist() == [NO_ROW, 1, NO_ROW]
