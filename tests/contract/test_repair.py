"""What a killed run leaves in Feast's registry is put right, so that views can be read again."""

from __future__ import annotations

import datetime as dt
import uuid

import pandas as pd
import pytest
from feast import Entity, FeatureView, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.feature_view import FeatureViewState
from feast.types import Float64, Int64

from feast_dynamo_ext.errors import AccessDeniedError
from feast_dynamo_ext.materialize.registry_state import reset_stale_states

NOW = dt.datetime(2024, 5, 6, 7, 8, 9, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
CUSTOMER = Entity(name="customer", join_keys=["cid"], value_type=ValueType.INT64)
MATERIALIZING = FeatureViewState.MATERIALIZING
AVAILABLE_ONLINE = FeatureViewState.AVAILABLE_ONLINE
GENERATED = FeatureViewState.GENERATED


def view(name="orders", **more) -> FeatureView:
    source = FileSource(name=f"{name}_batch", path="nowhere", timestamp_field="t")
    fields = more.pop("fields", [Field(name="total", dtype=Float64)])
    return FeatureView(
        name=name,
        entities=[CUSTOMER],
        schema=[Field(name="cid", dtype=Int64), *fields],
        source=PushSource(name=f"{name}_push", batch_source=source),
        **more,
    )


@pytest.fixture(params=["file", "sql"])
def store(open_store, dynamodb, request, tmp_path):
    """A store with an empty registry of each kind."""
    registry = {"cache_ttl_seconds": 0}
    if request.param == "sql":
        registry |= {"registry_type": "sql", "path": f"sqlite:///{tmp_path}/registry.sqlite"}
    online = {"region": "us-east-1", "endpoint_url": dynamodb.endpoint}
    opened = open_store(f"r{uuid.uuid4().hex[:12]}", online=online, registry=registry)
    opened.registry_kind = request.param
    yield opened
    opened.teardown()


def killed_run(store, name="orders") -> None:
    """What Feast does before a run; nothing comes after it."""
    found = store.registry.get_any_feature_view(name, store.project)
    found.state = MATERIALIZING
    store.registry.apply_feature_view(found, store.project, commit=True)


def materialized(store, name="orders", *, end=NOW) -> None:
    """What Feast does after a run."""
    found = store.registry.get_any_feature_view(name, store.project)
    store.registry.apply_materialization(found, store.project, end - DAY, end)


def run_reset(store, is_gone=lambda view: True) -> list[str]:
    views = store.registry.list_all_feature_views(store.project, allow_cache=False)
    return reset_stale_states(store.registry, store.project, views, is_gone)


def state(store, name="orders") -> tuple:
    found = store.registry.get_any_feature_view(name, store.project, allow_cache=False)
    return found.state, found.materialization_intervals


def read(store):
    return store.get_online_features(["orders:total"], [{"cid": 1}]).to_dict()


def test_a_view_whose_run_was_killed_can_be_read_again(store, caplog):
    store.apply([CUSTOMER, view()])
    store.write_to_online_store("orders", pd.DataFrame({"cid": [1], "t": [NOW], "total": [1.5]}))
    materialized(store, end=NOW - DAY)
    materialized(store)
    intervals = [(NOW - 2 * DAY, NOW - DAY), (NOW - DAY, NOW)]
    assert state(store) == (AVAILABLE_ONLINE, intervals)
    killed_run(store)
    if store.registry_kind == "sql":
        # Feast's SQL registry takes no change of the state alone, so nothing is ever stuck there.
        assert state(store) == (AVAILABLE_ONLINE, intervals)
        assert run_reset(store) == []
    else:
        with pytest.raises(ValueError, match="is in state 'MATERIALIZING'"):
            read(store)
        assert run_reset(store) == ["orders"]
        assert "feature view orders is AVAILABLE_ONLINE, no longer MATERIALIZING" in caplog.text
    assert read(store) == {"cid": [1], "total": [1.5]}
    assert state(store) == (AVAILABLE_ONLINE, intervals)
    assert run_reset(store) == []


@pytest.fixture
def stuck(open_store, moto_endpoint):
    """Makes a store with a file registry in which the run of each given view was killed."""
    opened = open_store(
        f"r{uuid.uuid4().hex[:12]}",
        online={"region": "us-east-1", "endpoint_url": moto_endpoint},
        registry={"cache_ttl_seconds": 0},
    )

    def stuck(*views):
        opened.apply([CUSTOMER, *views])
        for one in views:
            materialized(opened, one.name)
            killed_run(opened, one.name)
            assert state(opened, one.name)[0] == MATERIALIZING
        return opened

    yield stuck
    opened.teardown()


def test_a_view_whose_run_is_alive_is_left_alone(stuck):
    store, asked = stuck(view("orders"), view("visits"), view("returns")), []
    materialized(store, "returns")

    def is_gone(found):
        asked.append(found.name)
        return found.name == "visits"

    assert run_reset(store, is_gone) == ["visits"]
    assert sorted(asked) == ["orders", "visits"]
    assert state(store, "orders") == (MATERIALIZING, [(NOW - DAY, NOW)])
    assert state(store, "visits") == (AVAILABLE_ONLINE, [(NOW - DAY, NOW)])


def test_a_view_whose_lease_cannot_be_read_is_logged_and_the_others_are_put_right(stuck, caplog):
    store = stuck(view("orders"), view("visits"))

    def is_gone(found):
        if found.name == "orders":
            raise AccessDeniedError("no GetItem")
        return True

    assert run_reset(store, is_gone) == ["visits"]
    assert state(store, "orders")[0] == MATERIALIZING
    assert (
        "feature view orders, which a killed run has left MATERIALIZING, could not be put right: "
        "no GetItem"
    ) in caplog.text


def test_a_run_that_ends_while_it_is_looked_at_keeps_what_it_said(stuck):
    store = stuck(view())

    def is_gone(_):
        materialized(store, end=NOW + DAY)
        return True

    assert run_reset(store, is_gone) == []
    assert state(store) == (AVAILABLE_ONLINE, [(NOW - DAY, NOW), (NOW, NOW + DAY)])


def test_what_another_program_changed_meanwhile_stays(stuck, open_store):
    store = stuck(view())
    other = open_store(store.project, online=store.config.online_store.model_dump())

    def is_gone(_):
        other.apply([view("orders", description="all of them"), view("visits")])
        return True

    assert run_reset(store, is_gone) == ["orders"]
    found = store.registry.get_any_feature_view("orders", store.project, allow_cache=False)
    assert (found.description, found.state) == ("all of them", AVAILABLE_ONLINE)
    assert store.get_feature_view("visits").name == "visits"


def test_a_view_whose_next_run_failed_is_put_right(stuck, caplog):
    store = stuck(view())
    found = store.get_feature_view("orders")
    store._transition_fv_to_materializing(found, [], previous := {})
    store._rollback_fv_states([found], previous)
    assert state(store) == (GENERATED, [(NOW - DAY, NOW)])
    assert run_reset(store) == ["orders"]
    assert state(store) == (AVAILABLE_ONLINE, [(NOW - DAY, NOW)])
    assert "feature view orders is AVAILABLE_ONLINE, no longer GENERATED" in caplog.text


def test_a_view_that_was_never_materialized_is_as_before(open_store, moto_endpoint):
    online = {"region": "us-east-1", "endpoint_url": moto_endpoint}
    store = open_store(f"r{uuid.uuid4().hex[:12]}", online=online)
    store.apply([CUSTOMER, view()])
    killed_run(store)
    assert run_reset(store) == ["orders"]
    assert state(store) == (GENERATED, [])
    store.teardown()


def test_a_view_that_was_pinned_to_a_version_since_is_put_right(stuck):
    store = stuck(view())
    store.apply([view(version="v0")])
    assert state(store) == (MATERIALIZING, [(NOW - DAY, NOW)])
    assert run_reset(store) == ["orders"]
    found, intervals = state(store)
    assert found == AVAILABLE_ONLINE
    assert set(intervals) == {(NOW - DAY, NOW)}
    assert store.get_feature_view("orders").version == "v0"


@pytest.mark.filterwarnings("ignore:Stream feature views are experimental:RuntimeWarning")
def test_a_stream_view_is_put_right(stuck):
    source = FileSource(name="clicks_batch", path="nowhere", timestamp_field="t")
    clicks = StreamFeatureView(
        name="clicks",
        entities=[CUSTOMER],
        schema=[Field(name="cid", dtype=Int64), Field(name="total", dtype=Float64)],
        source=PushSource(name="clicks_push", batch_source=source),
        ttl=DAY,
        timestamp_field="t",
    )
    store = stuck(clicks)
    assert run_reset(store) == ["clicks"]
    assert state(store, "clicks") == (AVAILABLE_ONLINE, [(NOW - DAY, NOW)])
