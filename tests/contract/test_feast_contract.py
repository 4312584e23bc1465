"""Feast is as `_feast.PRIVATE_NAMES` records it, and its own calls reach what we override.

Run with another Feast (`make test FEAST=pre`), a failure names the part that has changed.
"""

from __future__ import annotations

import ast
import asyncio
import datetime as dt
import importlib.metadata
import inspect
import logging
import pkgutil
import sys
import textwrap
import uuid
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, FeatureView, Field, FileSource, metrics
from feast.batch_feature_view import BatchFeatureView
from feast.data_source import PushSource
from feast.infra.common.materialization_job import MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.passthrough_provider import PassthroughProvider
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_contents import RepoContents
from feast.types import Float64, Int64
from views import CUSTOMER, customer_view

from feast_dynamo_ext import (
    DynamoComputeEngine,
    DynamoOnlineStore,
    DynamoProvider,
    S3ParquetOfflineStore,
    S3ParquetSource,
    _feast,
)
from feast_dynamo_ext.retrieval.job import ParquetRetrievalJob

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

SEEN = f"feast {importlib.metadata.version('feast')}"
START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
END = START + dt.timedelta(days=1)
ROWS = [{"cid": 1}, {"cid": 2}]

pytestmark = pytest.mark.filterwarnings("ignore:.* are experimental features:RuntimeWarning")


# The table


def owner_of(row: _feast.PrivateName):
    try:
        return pkgutil.resolve_name(row.owner)
    except (AttributeError, ImportError) as error:
        pytest.fail(f"{SEEN} has no {row.owner} ({row.why}): {error}")


def member_of(row: _feast.PrivateName):
    found = getattr(owner_of(row), row.name, None)
    if found is None:
        pytest.fail(f"{SEEN}: {row.owner} has no {row.name} ({row.why})")
    return found


def rows_of(*kinds: str):
    rows = [row for row in _feast.PRIVATE_NAMES if row.kind in kinds]
    return pytest.mark.parametrize("row", rows, ids=lambda row: f"{row.name} {row.kind}")


def is_statement(row: _feast.PrivateName) -> bool:
    return not row.recorded.startswith("(")


def signature(function) -> str:
    """As text, without annotations: their text differs between versions of Python."""
    found = inspect.signature(function)
    empty = inspect.Parameter.empty
    bare = [one.replace(annotation=empty) for one in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=empty))


@rows_of("called", "overridden", "imitated")
def test_functions_have_the_recorded_signature(row):
    if is_statement(row):
        assert first_assignment(row) == row.recorded, f"{SEEN}: {row.owner}.{row.name}"
    else:
        assert signature(member_of(row)) == row.recorded, f"{SEEN}: {row.owner}.{row.name}"


@rows_of("attribute")
def test_attributes_are_assigned_as_recorded(row):
    assert first_assignment(row) == row.recorded, f"{SEEN}: {row.owner}.{row.name}"


def first_assignment(row: _feast.PrivateName) -> str:
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner_of(row))))
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else ()
        if isinstance(node, ast.AnnAssign):
            targets = (node.target,)
        for target in targets:
            if getattr(target, "attr", getattr(target, "id", None)) == row.name:
                return ast.unparse(node)
    pytest.fail(f"{SEEN}: {row.owner} never assigns {row.name} ({row.why})")


@pytest.mark.parametrize(
    "row", [row for row in _feast.PRIVATE_NAMES if row.returns], ids=lambda row: row.name
)
def test_what_is_unpacked_by_position_is_returned_in_that_order(row):
    tree = ast.parse(textwrap.dedent(inspect.getsource(member_of(row))))
    tuples = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, (ast.Return, ast.Assign)) and isinstance(node.value, ast.Tuple)
    ]
    assert row.returns in [tuple(map(ast.unparse, found.elts)) for found in tuples], SEEN


def test_what_is_missing_is_named_with_the_feast_that_lacks_it():
    row = _feast.PrivateName("feast.utils", "_gone", "called", "()", "to see it missed")
    with pytest.raises(pytest.fail.Exception) as failure:
        member_of(row)
    assert str(failure.value) == f"{SEEN}: feast.utils has no _gone (to see it missed)"
    row = _feast.PrivateName("feast.utils:Gone", "_gone", "called", "()", "to see it missed")
    with pytest.raises(pytest.fail.Exception, match=r"has no feast\.utils:Gone"):
        owner_of(row)


@rows_of("text")
def test_texts_are_in_the_source_of_their_owner(row):
    assert row.recorded in inspect.getsource(owner_of(row)), f"{SEEN}: {row.owner}: {row.name}"


# Calls


class CallsByFeast:
    """Records, in a `with` block, which functions Feast's own code calls."""

    def __init__(self) -> None:
        self._codes: set[CodeType] = set()

    def __enter__(self) -> CallsByFeast:
        sys.setprofile(self._see)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, _argument: object) -> None:
        caller = frame.f_back
        if event == "call" and caller is not None:
            module = caller.f_globals.get("__name__", "")
            if module.split(".")[0] == "feast":
                self._codes.add(frame.f_code)

    def reached(self, owner: type, name: str) -> bool:
        member = inspect.getattr_static(owner, name)
        if isinstance(member, property):
            member = member.fget
        function = inspect.unwrap(getattr(member, "__func__", member))
        return function.__code__ in self._codes


def add_one(frame):
    return frame.assign(more=frame["total"] + 1)


def of(feature: str) -> dict:
    """Options of a view of customers with one feature."""
    fields = [Field(name="cid", dtype=Int64), Field(name=feature, dtype=Float64)]
    return {"entities": [CUSTOMER], "schema": fields, "online": True}


class Repo:
    """Views of each kind of source, one of them transformed, and a precomputed service."""

    def __init__(self, store, folder) -> None:
        self.store, self.folder = store, folder
        for name, feature in (("orders", "total"), ("visits", "pages")):
            columns = {
                "cid": pa.array([1, 2], pa.int64()),
                "t": pa.array([START, START], pa.timestamp("us", tz="UTC")),
                feature: [1.5, 2.5],
            }
            (folder / name).mkdir()
            pq.write_table(pa.table(columns), folder / name / "part-0.parquet")
        batch = FileSource(name="orders", path=str(folder / "orders"), timestamp_field="t")
        self.orders = FeatureView(
            name="orders", source=PushSource(name="orders_push", batch_source=batch), **of("total")
        )
        self.visits = FeatureView(
            name="visits",
            source=S3ParquetSource(
                name="visits", path=str(folder / "visits"), timestamp_field="t"
            ),
            **of("pages"),
        )
        self.more = BatchFeatureView(
            name="more",
            source=batch,
            mode="pandas",
            udf=add_one,
            udf_string="add_one",
            **of("more"),
        )
        self.precomputed = FeatureService(
            name="churn", features=[self.orders, self.visits], precompute_online=True
        )
        self.objects = [CUSTOMER, self.orders, self.visits, self.more, self.precomputed]

    def apply(self) -> None:
        self.store.apply(self.objects)

    def plan(self) -> None:
        self.store.plan(
            RepoContents(
                projects=[],
                data_sources=[],
                feature_views=[self.orders, self.visits],
                on_demand_feature_views=[],
                stream_feature_views=[],
                label_views=[],
                entities=[CUSTOMER],
                feature_services=[],
                permissions=[],
            )
        )

    def materialize(self) -> None:
        self.store.materialize(START, END)

    def push(self) -> None:
        self.store.push("orders_push", self.row(1, 3.5))

    def push_async(self) -> None:
        asyncio.run(self.store.push_async("orders_push", self.row(2, 4.5)))

    def write(self) -> None:
        """As Feast's own engines write rows."""
        key = EntityKey(join_keys=["cid"], entity_values=[Value(int64_val=1)])
        rows = [(key, {"total": Value(double_val=3.5)}, END, None)]
        provider, config = self.store.provider, self.store.config
        provider.online_write_batch(config, self.orders, rows, None)
        asyncio.run(provider.online_write_batch_async(config, self.orders, rows, None))

    def push_offline(self) -> None:
        from feast.data_source import PushMode

        self.store.push("orders_push", self.row(2, 4.5), to=PushMode.OFFLINE)

    def row(self, cid: int, total: float) -> pd.DataFrame:
        return pd.DataFrame({"cid": [cid], "t": [END], "total": [total]})

    def read(self) -> dict:
        return self.store.get_online_features(["orders:total", "more:more"], ROWS).to_dict()

    def read_async(self) -> None:
        async def read_and_close() -> None:
            assert self.store.provider.async_supported.online.read
            await self.store.initialize()
            await self.store.get_online_features_async(["orders:total"], ROWS)
            await self.store.close()

        asyncio.run(read_and_close())

    def read_service(self) -> dict:
        service = self.store.get_feature_service("churn")
        return self.store.get_online_features(service, ROWS).to_dict()

    def retrieve(self) -> pa.Table:
        entities = pd.DataFrame({"cid": [1], "event_timestamp": [START]})
        return self.store.get_historical_features(entities, ["visits:pages"]).to_arrow()

    def teardown(self) -> None:
        self.store.teardown()


# What a call of Feast's reaches, step by step: the order is that of a repo's life.
STEPS = {
    "plan": [(DynamoOnlineStore, "plan")],
    "apply": [
        (DynamoProvider, "update_infra"),
        (DynamoOnlineStore, "update"),
        (S3ParquetSource, "_to_proto_impl"),
    ],
    "materialize": [
        (DynamoProvider, "batch_engine"),
        (DynamoComputeEngine, "supports_batch"),
        (DynamoComputeEngine, "materialize"),
        (DynamoComputeEngine, "get_execution_context"),
        (S3ParquetOfflineStore, "pull_all_from_table_or_query"),
    ],
    "push": [(DynamoProvider, "ingest_df")],
    "push_async": [(DynamoProvider, "ingest_df_async")],
    "write": [
        (DynamoOnlineStore, "online_write_batch"),
        (DynamoOnlineStore, "online_write_batch_async"),
    ],
    "push_offline": [
        (DynamoProvider, "get_table_column_names_and_types_from_data_source"),
        (DynamoProvider, "ingest_df_to_offline_store"),
        (S3ParquetOfflineStore, "offline_write_batch"),
    ],
    "read": [
        (DynamoProvider, "get_online_features"),
        (DynamoOnlineStore, "get_online_features"),
        (DynamoOnlineStore, "_read_features_per_fv"),
        (DynamoOnlineStore, "_build_feature_types"),
    ],
    "read_async": [
        (DynamoOnlineStore, "async_supported"),
        (DynamoOnlineStore, "initialize"),
        (DynamoProvider, "get_online_features_async"),
        (DynamoOnlineStore, "get_online_features_async"),
        (DynamoOnlineStore, "_read_features_per_fv_async"),
        (DynamoOnlineStore, "_build_feature_types"),
        (DynamoOnlineStore, "close"),
    ],
    "read_service": [(DynamoOnlineStore, "get_online_features")],
    "retrieve": [
        (S3ParquetOfflineStore, "get_historical_features"),
        (ParquetRetrievalJob, "_to_arrow_internal"),
        (ParquetRetrievalJob, "on_demand_feature_views"),
    ],
    "teardown": [(DynamoOnlineStore, "teardown")],
}
# Feast's class is abstract without it, and calls the other one alone.
NEVER_CALLED = {"_to_df_internal"}
# Not a function: see `test_versioned_reads_are_allowed_without_asking_which_store_it_is`.
ATTRIBUTES = {"_versioned_read_supported", "_proto_kind", "_proto_attr_name"}


@pytest.fixture
def new_repo(open_store, moto_endpoint, tmp_path) -> Callable[[], Repo]:
    def new_repo() -> Repo:
        # moto takes no binary values in PartiQL.
        online = {
            "region": "us-east-1",
            "endpoint_url": moto_endpoint,
            "newest_wins_with": "put_item",
        }
        return Repo(open_store(f"c{uuid.uuid4().hex[:12]}", online=online), tmp_path)

    return new_repo


@pytest.fixture
def repo(new_repo):
    made = new_repo()
    made.apply()
    yield made
    made.teardown()


def test_feasts_own_calls_reach_the_overrides(new_repo):
    repo, missed = new_repo(), []
    for step, overrides in STEPS.items():
        with CallsByFeast() as calls:
            getattr(repo, step)()
        missed += [
            f"{step}: {owner.__name__}.{name}"
            for owner, name in overrides
            if not calls.reached(owner, name)
        ]
    assert missed == [], SEEN


def test_every_override_in_the_table_is_among_these():
    reached = {name for overrides in STEPS.values() for _, name in overrides}
    overridden = {row.name for row in _feast.PRIVATE_NAMES if row.kind == "overridden"}
    assert overridden - reached == NEVER_CALLED | ATTRIBUTES


def test_a_call_that_is_not_feasts_does_not_count():
    with CallsByFeast() as calls:
        DynamoOnlineStore._build_feature_types([])
    assert not calls.reached(DynamoOnlineStore, "_build_feature_types")


def test_versioned_reads_are_allowed_without_asking_which_store_it_is(repo):
    with CallsByFeast() as calls:
        repo.read()
    assert calls.reached(OnlineStore, "_check_versioned_read_support")
    assert not calls.reached(OnlineStore, "_is_versioned_read_supported")


# What the functions of `_feast` give


def test_a_prepared_request_holds_what_feast_made_of_it(repo):
    service = repo.store.get_feature_service("churn")
    options = {"full_feature_names": True}
    registry, project = repo.store.registry, repo.store.project
    assert not _feast.has_on_demand_views(registry, project, service, **options)
    prepared = _feast.prepare_request(registry, project, service, ROWS, **options)
    assert prepared.columns == {"cid": [Value(int64_val=1), Value(int64_val=2)]}
    assert [(view.name, names) for view, names in prepared.refs] == [
        ("orders", ["total"]),
        ("visits", ["pages"]),
    ]
    assert prepared.join_keys == {"customer": "cid", "__dummy": "__dummy_id"}
    assert prepared.names == {"cid", "orders__total", "visits__pages"}
    assert isinstance(prepared.response, GetOnlineFeaturesResponse)
    assert list(prepared.response.metadata.feature_names.val) == ["cid"]
    prepared.response.metadata.feature_names.val.append("not_requested")
    prepared.response.results.add()
    _feast.drop_unneeded_columns(prepared.response, prepared.names)
    assert list(prepared.response.metadata.feature_names.val) == ["cid"]
    assert len(prepared.response.results) == 1


def test_reads_are_counted_where_feasts_histogram_is_on(repo, monkeypatch):
    before = reads_counted()
    repo.read_service()
    assert reads_counted() - before == 0
    monkeypatch.setattr(metrics, "_config", metrics.build_metrics_flags())
    repo.read_service()
    assert reads_counted() - before == 1


def reads_counted() -> float:
    families = metrics.online_store_read_duration_seconds.collect()
    samples = [sample for family in families for sample in family.samples]
    return sum(sample.value for sample in samples if sample.labels.get("le") == "+Inf")


def test_an_engine_of_the_provider_is_kept_as_feast_keeps_one(repo):
    provider = repo.store.provider
    engine = provider.batch_engine
    assert isinstance(engine, DynamoComputeEngine)
    assert PassthroughProvider.batch_engine.fget(provider) is engine


def test_feasts_local_engine_names_its_jobs_so(two_repos):
    feasts = two_repos.feasts
    orders = customer_view(source=feasts.source())
    feasts.store.apply([CUSTOMER, orders])
    engine = feasts.store.provider.batch_engine
    assert type(engine) is LocalComputeEngine
    task = MaterializationTask(
        project=feasts.store.project, feature_view=orders, start_time=START, end_time=END
    )
    (job,) = engine.materialize(feasts.store.registry, [task])
    assert job.job_id() == _feast.job_id(task)
    assert job.job_id() == "orders-2026-01-01 00:00:00+00:00-2026-01-02 00:00:00+00:00"


def test_views_to_materialize_are_feasts_choice(repo):
    named = [view.name for view in _feast.views_to_materialize(repo.store, None, None)]
    assert sorted(named) == ["more", "orders", "visits"]
    (orders,) = _feast.views_to_materialize(repo.store, ["orders"], None)
    assert orders.name == "orders"
    with pytest.raises(ValueError, match="version"):
        _feast.views_to_materialize(repo.store, ["orders", "visits"], "v1")


def test_a_repo_is_opened_as_feast_opens_it(tmp_path):
    yaml_file = tmp_path / "other.yaml"
    yaml_file.write_text(
        "project: shop\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\nentity_key_serialization_version: 3\n"
    )
    store = _feast.open_feature_store(tmp_path, yaml_file)
    assert (store.project, store.repo_path) == ("shop", tmp_path)


# Logs


def test_feast_really_logs_what_the_filter_drops_and_it_drops_it(repo, caplog):
    made: list[logging.LogRecord] = []
    plain = logging.getLogRecordFactory()

    def keep(*args, **kwargs) -> logging.LogRecord:
        record = plain(*args, **kwargs)
        if record.name == "feast.feature_store" and record.levelno >= logging.WARNING:
            made.append(record)
        return record

    logging.setLogRecordFactory(keep)
    try:
        repo.materialize()
        repo.push()
    finally:
        logging.setLogRecordFactory(plain)
    texts = (_feast.SCANNING_TEXT, _feast.PRECOMPUTE_FAILED_TEXT)
    # Once after materialize and once after push; which of both depends on the redis package.
    assert len(made) == 2
    assert all(record.getMessage().startswith(texts) for record in made)
    assert [record for record in caplog.records if record.name == "feast.feature_store"] == []
    assert repo.read_service() == {"cid": [1, 2], "total": [3.5, 2.5], "pages": [1.5, 2.5]}
