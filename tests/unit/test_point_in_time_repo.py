"""Point-in-time retrieval as users ask for it: through Feast, with a registry, by every plan."""

from __future__ import annotations

import datetime as dt

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import cases
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    RepoConfig,
    RequestSource,
    ValueType,
)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64
from hypothesis import given
from hypothesis import strategies as st
from pit_cases import HOUR, PLANS, time_array
from pit_oracle import HistoryRow, seen_by
from repos import open_repo_config
from views import CUSTOMER

NOW = 500_000 * HOUR
KIND = pa.timestamp("us", "UTC")
SHOP = Entity(name="shop", join_keys=["sid"], value_type=ValueType.INT64)


def write(path, rows: list[tuple[int | None, int, int]], key: str) -> None:
    """Rows of (key, hours after NOW, value)."""
    columns = {
        key: pa.array([row[0] for row in rows], pa.int64()),
        "at": time_array([NOW + row[1] * HOUR for row in rows], KIND),
        "value": pa.array([row[2] for row in rows], pa.int64()),
    }
    pq.write_table(pa.table(columns), path, row_group_size=2)


def view(name: str, entity: Entity, path, *, version: str = "latest", ttl_hours: int = 0):
    (key,) = [entity.join_key]
    return FeatureView(
        name=name,
        entities=[entity],
        schema=[Field(name=key, dtype=Int64), Field(name="value", dtype=Int64)],
        source=FileSource(name=f"{path.stem}", path=str(path), timestamp_field="at"),
        ttl=dt.timedelta(hours=ttl_hours),
        version=version,
    )


def config_of(folder, plan: dict) -> RepoConfig:
    return open_repo_config(
        folder,
        provider="local",
        registry={
            "path": str(folder / "registry.db"),
            "enable_online_feature_view_versioning": True,
        },
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        offline=plan,
    )


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repo's folder, and a store for each plan, which share the registry."""
    folder = tmp_path_factory.mktemp("repo")
    for name, key in (("orders", "cid"), ("visits", "sid"), ("corrected", "cid")):
        write(folder / f"{name}.parquet", [(1, 0, 0)], key)
    orders = view("orders", CUSTOMER, folder / "orders.parquet", ttl_hours=3)
    visits = view("visits", SHOP, folder / "visits.parquet")
    request = RequestSource(name="basket", schema=[Field(name="price", dtype=Int64)])

    @on_demand_feature_view(
        sources=[orders, request], schema=[Field(name="with_price", dtype=Float64)]
    )
    def priced(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"with_price": inputs["value"].astype("float64") + inputs["price"]})

    stores = [FeatureStore(config=config_of(folder, plan)) for plan in PLANS]
    objects = [CUSTOMER, SHOP, orders, visits, priced]
    stores[0].apply([*objects, FeatureService(name="plain", features=[orders, priced])])
    # Feast cannot compare services in which one view stands both with and without another name.
    near = visits.with_name("near_visits")
    far = visits.with_name("far_visits").with_join_key_map({"sid": "far_sid"})
    stores[0].apply([FeatureService(name="twice", features=[near, far, orders])])
    # The second version reads corrected history, and without a limit.
    stores[0].apply([view("orders", CUSTOMER, folder / "corrected.parquet", version="v1")])
    return folder, stores


def ask(repo, frame, features, **kwargs):
    """The answer of the first plan; that of the others must be the same."""
    _, stores = repo
    tables = [
        store.get_historical_features(frame, features, **kwargs).to_arrow() for store in stores
    ]
    for table in tables[1:]:
        assert table.equals(tables[0])
    return tables[0]


def frame_of(hours: list[int], **columns) -> pd.DataFrame:
    times = [pd.Timestamp(NOW + hour * HOUR, tz="UTC") for hour in hours]
    frame = pd.DataFrame({name: pd.array(column) for name, column in columns.items()})
    return frame.assign(event_timestamp=times)


def test_request_data_and_an_on_demand_view(repo):
    folder, _ = repo
    write(folder / "corrected.parquet", [(1, 0, 10), (1, 2, 20), (2, 0, 30)], "cid")
    frame = frame_of([1, 2, -1, 5], cid=[1, 1, 2, 2], price=[100, 200, 300, 400])
    table = ask(repo, frame, ["orders:value", "priced:with_price"])
    assert table.column_names == ["cid", "price", "event_timestamp", "value", "with_price"]
    assert table.column("value").to_pylist() == [10, 20, None, 30]
    assert table.column("with_price").to_pylist() == [110.0, 220.0, None, 430.0]
    assert table.column("cid").to_pylist() == [1, 1, 2, 2]


def test_an_on_demand_view_alone_brings_the_features_it_needs(repo):
    folder, _ = repo
    write(folder / "corrected.parquet", [(1, 0, 10)], "cid")
    table = ask(repo, frame_of([1, 1], cid=[1, 9], price=[100, 200]), ["priced:with_price"])
    assert table.column("with_price").to_pylist() == [110.0, None]


def test_a_feature_service_with_a_view_under_two_names(repo):
    folder, stores = repo
    write(folder / "visits.parquet", [(1, 0, 10), (2, 0, 20), (2, 4, 21)], "sid")
    write(folder / "corrected.parquet", [(7, 0, 70)], "cid")
    frame = frame_of([0, 5, 5], sid=[1, 2, 3], far_sid=[2, 2, 1], cid=[7, 8, 7])
    service = stores[0].get_feature_service("twice")
    table = ask(repo, frame, service, full_feature_names=True)
    assert table.column_names == [
        *["sid", "far_sid", "cid", "event_timestamp"],
        *["near_visits__value", "far_visits__value", "orders__value"],
    ]
    assert table.column("near_visits__value").to_pylist() == [10, 21, None]
    assert table.column("far_visits__value").to_pylist() == [20, 21, 10]
    assert table.column("orders__value").to_pylist() == [70, None, 70]


def test_a_feature_service_with_an_on_demand_view(repo):
    folder, stores = repo
    write(folder / "corrected.parquet", [(1, 0, 10)], "cid")
    frame = frame_of([1, -1], cid=[1, 1], price=[5, 6])
    table = ask(repo, frame, stores[0].get_feature_service("plain"), full_feature_names=True)
    assert table.column("orders__value").to_pylist() == [10, None]
    assert table.column("priced__with_price").to_pylist() == [15.0, None]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("version", "expected"), [("@v0", [1, None]), ("@v1", [2, 2]), ("@latest", [2, 2])]
)
def test_a_versioned_reference_reads_the_history_and_the_ttl_of_its_version(
    repo, version, expected, full
):
    folder, _ = repo
    write(folder / "orders.parquet", [(1, 0, 1)], "cid")
    write(folder / "corrected.parquet", [(1, 0, 2)], "cid")
    frame = frame_of([3, 4], cid=[1, 1])
    table = ask(repo, frame, [f"orders{version}:value"], full_feature_names=full)
    name = "orders__value" if full else "value"
    assert table.column_names == ["cid", "event_timestamp", name]
    assert table.column(name).to_pylist() == expected


rows = st.lists(
    st.tuples(st.none() | st.integers(0, 2), st.integers(-3, 8), st.integers(0, 10**6)),
    max_size=12,
)


@cases(5)
@given(
    orders=rows,
    visits=rows,
    asked=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(-4, 9)),
        min_size=1,
        max_size=6,
    ),
)
def test_a_service_over_a_registry_equals_plain_loops(repo, orders, visits, asked):
    folder, stores = repo
    write(folder / "corrected.parquet", orders, "cid")
    write(folder / "visits.parquet", visits, "sid")
    cid, sid, far, hours = (list(column) for column in zip(*asked, strict=True))
    frame = frame_of(hours, cid=cid, sid=sid, far_sid=far)
    service = stores[0].get_feature_service("twice")
    table = ask(repo, frame, service, full_feature_names=True)
    for name, keys, history in (
        ("orders__value", cid, orders),
        ("near_visits__value", sid, visits),
        ("far_visits__value", far, visits),
    ):
        known = [HistoryRow((key,), NOW + hour * HOUR) for key, hour, _ in history]
        seen = [
            seen_by((key,), NOW + hour * HOUR, known)
            for key, hour in zip(keys, hours, strict=True)
        ]
        expected = [None if at is None else history[at][2] for at in seen]
        assert table.column(name).to_pylist() == expected, name
    assert table.column("sid").to_pylist() == sid
