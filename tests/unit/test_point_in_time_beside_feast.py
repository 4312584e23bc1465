"""The point-in-time join beside Feast's DuckDB store, on cases that Feast's answers rightly.

Left out are those that it does not: equal event and created times (it takes any of the rows), and
views without entities. Its rows come in no order.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import cases
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Int64, String
from hypothesis import given
from hypothesis import strategies as st
from pit_cases import HOUR, of_every_plan, time_array
from repos import NoRegistry, open_repo_config

pytest.importorskip("ibis", reason="Feast's DuckDB store needs ibis-framework[duckdb]")

from feast.infra.offline_stores.duckdb import DuckDBOfflineStore

NOW = 500_000 * HOUR
KIND = pa.timestamp("us", "UTC")

hours = st.integers(-4, 16)
customers, shops = st.none() | st.integers(0, 2), st.none() | st.sampled_from(["", "a", "ä"])
histories = st.lists(
    st.tuples(customers, shops, hours, st.integers(0, 16)),
    max_size=30,
    unique_by=lambda row: row,
)
entities = st.lists(st.tuples(customers, shops, hours), min_size=1, max_size=10)


def write(folder: Path, name: str, rows: list[tuple]) -> str:
    """Rows of (customer, shop, event hour, created hour), numbered."""
    customer, shop, at, made = zip(*rows, strict=True) if rows else ((), (), (), ())
    columns = {
        "customer": pa.array(customer, pa.int64()),
        "shop": pa.array(shop, pa.string()),
        "at": time_array([NOW + hour * HOUR for hour in at], KIND),
        "made": time_array([NOW + hour * HOUR for hour in made], KIND),
        name: pa.array(range(len(rows)), pa.int64()),
    }
    path = folder / f"{name}.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return str(path)


def view(name: str, path: str, keys: list[str], ttl) -> FeatureView:
    kinds = {"customer": (Int64, ValueType.INT64), "shop": (String, ValueType.STRING)}
    return FeatureView(
        name=f"{name}_view",
        entities=[Entity(name=key, join_keys=[key], value_type=kinds[key][1]) for key in keys],
        schema=[
            *(Field(name=key, dtype=kinds[key][0]) for key in keys),
            Field(name=name, dtype=Int64),
        ],
        source=FileSource(
            name=name, path=path, timestamp_field="at", created_timestamp_column="made"
        ),
        ttl=ttl,
    )


def of_feast(folder: str, views, refs, frame, **kwargs) -> pa.Table:
    config = open_repo_config(
        folder, provider="local", offline_store={"type": "duckdb"}, online_store=None
    )
    job = DuckDBOfflineStore.get_historical_features(
        config, views, refs, frame.copy(), NoRegistry(), "p", **kwargs
    )
    return job.to_arrow().sort_by("row")


# Of ibis, with DuckDB 2.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")
@cases(5)
@given(
    orders=histories,
    visits=histories,
    asked=entities,
    ttl=st.sampled_from([dt.timedelta(0), dt.timedelta(hours=3), dt.timedelta(hours=8)]),
    known=st.booleans(),
    full=st.booleans(),
)
def test_answers_as_feasts_duckdb_store(orders, visits, asked, ttl, known, full):
    customer, shop, at = zip(*asked, strict=True)
    frame = pd.DataFrame(
        {
            "customer": pd.array(customer, dtype="Int64"),
            "shop": pd.array(shop, dtype="string"),
            "event_timestamp": [pd.Timestamp(NOW + hour * HOUR, tz="UTC") for hour in at],
            "row": range(len(asked)),
        }
    )
    frame["event_timestamp"] = frame["event_timestamp"].dt.as_unit("us")
    with tempfile.TemporaryDirectory() as folder:
        views = [
            view("orders", write(Path(folder), "orders", orders), ["customer"], ttl),
            view("visits", write(Path(folder), "visits", visits), ["customer", "shop"], ttl),
        ]
        refs = ["orders_view:orders", "visits_view:visits"]
        options = {"full_feature_names": full, "filter_by_created_timestamp": known}
        feast = of_feast(folder, views, refs, frame, **options)
        for plan, ours in of_every_plan(views, refs, frame, **options):
            assert ours.column_names == feast.column_names, plan
            assert ours.column("row").to_pylist() == list(range(len(asked))), plan
            for name in feast.column_names[4:]:
                assert ours.column(name).to_pylist() == feast.column(name).to_pylist(), plan
