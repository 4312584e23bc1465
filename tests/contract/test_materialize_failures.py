"""Several views in one call, of which some fail: the others are done, and the failed are named."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from beside_feast import CUSTOMERS, END, ORDERS, START, history
from feast.feature_view import FeatureViewState
from feast.types import Float64
from repos import REGION, write_repo_yaml
from views import CUSTOMER, customer_view, parquet_files

from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    ColumnTypeError,
    FeastDynamoError,
    SourceNotFoundError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from feast import FeatureView

GOOD = ["a_first", "m_middle", "z_last"]
TOTALS = [2.0, 3.5, 4.0, None]


def view(folder: Path, name: str, source: str = "orders", **features) -> FeatureView:
    history = parquet_files(
        folder / source, "hour", name=f"history_in_{source}", created_timestamp_column="made"
    )
    return customer_view(name, history, **features)


def keep(folder: Path, name: str, table: pa.Table) -> None:
    (folder / name).mkdir()
    pq.write_table(table, folder / name / "part-0.parquet")


@pytest.fixture
def store(open_store, dynamodb, tmp_path, request):
    """A store without views, and history for them."""
    keep(tmp_path, "orders", history(ORDERS))
    online = {"region": REGION, "endpoint_url": dynamodb.endpoint}
    if dynamodb.name == "moto":  # it takes no binary values in PartiQL
        online["newest_wins_with"] = "put_item"
    opened = open_store(f"f{abs(hash(request.node.nodeid)):x}", online=online)
    yield opened
    opened.teardown()


def apply(store, folder, *bad) -> None:
    """The good views, and the bad ones between them in the order in which Feast goes on them."""
    store.apply([CUSTOMER, view(folder, "a_first")])
    for one in bad:
        store.apply([one])
    store.apply([view(folder, "m_middle"), view(folder, "z_last")])


def said_by(error: BaseException) -> str:
    """What a person is told by an error and its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def kinds_of(error: BaseException) -> set[type]:
    """Its class, and those of the errors that it stands for."""
    return {
        type(error),
        type(error.__cause__),
        *map(type, getattr(error, "failures", {}).values()),
    }


def totals(store, name):
    response = store.get_online_features(features=[f"{name}:total"], entity_rows=CUSTOMERS)
    return response.to_dict()["total"]


def assert_the_others_are_done(store, failed):
    for name in GOOD:
        assert (name, totals(store, name)) == (name, TOTALS)
        done = store.get_feature_view(name)
        assert done.state == FeatureViewState.AVAILABLE_ONLINE
        assert done.materialization_intervals == [(START, END)]
    for name in failed:
        left = store.get_feature_view(name)
        assert left.state != FeatureViewState.MATERIALIZING
        assert left.materialization_intervals == []


def no_source(folder):
    return view(folder, "bad", source="nowhere")


def no_column(folder):
    return view(folder, "bad", total=Float64, discount=Float64)


def wrong_type(folder):
    keep(folder, "texts", history({**ORDERS, "total": ["a", "b", "c", "d", "e", "f"]}))
    return view(folder, "bad", source="texts")


def wrong_time(folder):
    table = history(ORDERS)
    hours = pa.array([f"hour {hour}" for hour in ORDERS["hour"]])
    keep(folder, "untimely", table.set_column(1, "hour", hours))
    return view(folder, "bad", source="untimely")


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (no_source, SourceNotFoundError, "nowhere"),
        (no_column, ColumnNotFoundError, "discount"),
        (wrong_type, ColumnTypeError, "total"),
        (wrong_time, ColumnTypeError, "hour"),
    ],
)
def test_a_failing_view_does_not_stop_the_others(store, tmp_path, bad, kind, message):
    apply(store, tmp_path, bad(tmp_path))
    with pytest.raises(FeastDynamoError, match=message) as caught:
        store.materialize(START, END)
    assert "bad" in said_by(caught.value)
    assert kind in kinds_of(caught.value)
    assert_the_others_are_done(store, ["bad"])


def test_all_views_that_fail_are_named(store, tmp_path, dynamodb, capsys, caplog):
    caplog.set_level(logging.INFO)
    apply(store, tmp_path, no_source(tmp_path), view(tmp_path, "gone"))
    client = boto3.client("dynamodb", region_name=REGION, endpoint_url=dynamodb.endpoint)
    client.delete_table(TableName=f"{store.project}.gone")
    with pytest.raises(FeastDynamoError, match="bad") as caught:
        store.materialize(START, END)
    # Feast raises the error of the first alone; the run's summary names the others.
    told = said_by(caught.value) + capsys.readouterr().err + caplog.text
    assert "gone" in told
    assert_the_others_are_done(store, ["bad", "gone"])


def test_what_failed_is_done_by_the_same_call_once_it_is_mended(store, tmp_path):
    apply(store, tmp_path, no_source(tmp_path))
    with pytest.raises(FeastDynamoError, match="nowhere"):
        store.materialize(START, END)
    keep(tmp_path, "nowhere", history(ORDERS))
    store.materialize(START, END)
    assert totals(store, "bad") == TOTALS
    assert store.get_feature_view("bad").state == FeatureViewState.AVAILABLE_ONLINE


# The real commands


@pytest.mark.parametrize("command", ["feast", "feast-dynamo"])
def test_the_command_exits_1_names_the_view_and_does_the_others(
    store, tmp_path, dynamodb, fork_server, command
):
    apply(store, tmp_path, no_source(tmp_path))
    online = {"region": REGION, "endpoint_url": dynamodb.endpoint}
    write_repo_yaml(tmp_path, project=store.project, online=online, offline={"region": REGION})
    given = [START.isoformat(), END.isoformat()]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    result = fork_server.run(command, "materialize", *given, cwd=tmp_path, env=environment)
    assert result.returncode == 1, result.stderr
    assert "bad" in result.stderr + result.stdout
    assert "nowhere" in result.stderr + result.stdout
    store.refresh_registry()
    assert_the_others_are_done(store, ["bad"])
