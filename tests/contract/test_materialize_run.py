"""What a run does, counts and says: which rows win, what is left out, how many views at once."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import os
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    RepoConfig,
)
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.passthrough_provider import PassthroughProvider
from feast.types import Float64, Int64, String
from repos import open_repo_config, table_names, write_repo_yaml
from views import CUSTOMER

from feast_dynamo_ext.dynamo.layouts.packed import expiry_s
from feast_dynamo_ext.errors import ColumnTypeError, ConfigError, WindowError
from feast_dynamo_ext.parquet.s3_parquet_source import S3ParquetSource
from feast_dynamo_ext.provider import DynamoProvider
from feast_dynamo_ext.view_settings import ViewSettings

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

UTC = dt.timezone.utc
START = dt.datetime(2025, 1, 1, tzinfo=UTC)
END = START + dt.timedelta(hours=10)
ENGINE = "feast_dynamo_ext.DynamoComputeEngine"
RESERVED = b"\xff\xff\xff\xff"


def at(hour: float) -> dt.datetime:
    return START + dt.timedelta(hours=hour)


@dataclass(frozen=True)
class Repo:
    """A store, its tables and its history."""

    store: FeatureStore
    client: Any
    folder: Path

    @property
    def engine(self) -> Any:
        return self.store.provider.batch_engine

    def view(self, name: str = "orders", **options: Any) -> FeatureView:
        """A view of the history of its name."""
        source = FileSource(path=str(self.folder / name), timestamp_field="t")
        fields = [Field(name="cid", dtype=Int64), Field(name="total", dtype=Float64)]
        given = {"schema": fields, "source": source, "ttl": dt.timedelta(0), **options}
        return FeatureView(name=name, entities=[CUSTOMER], **given)

    def keep(self, rows: list[tuple], name: str = "orders", part: str = "a") -> None:
        """Add a file of (customer, event time, total) to the history of a view."""
        cid, moments, total = zip(*rows, strict=True)
        columns = {
            "cid": pa.array(cid, pa.int64()),
            "t": pa.array(moments, pa.timestamp("us", "UTC")),
            "total": pa.array(total, pa.float64()),
        }
        (self.folder / name).mkdir(exist_ok=True, parents=True)
        pq.write_table(pa.table(columns), self.folder / name / f"{part}.parquet")

    def push(self, cid: int, moment: dt.datetime, total: float) -> None:
        """Write one row as a service would."""
        frame = pd.DataFrame({"cid": [cid], "t": [moment], "total": [total]})
        self.store.write_to_online_store("orders", frame)

    def materialize(self, *views: str) -> list[Any]:
        """Materialize from START to END; the reports of the views."""
        self.store.materialize(START, END, feature_views=list(views) or None)
        return self.engine.report.views

    def totals(self, *cids: int, of: str = "orders") -> list[float | None]:
        rows = [{"cid": cid} for cid in cids]
        return self.store.get_online_features([f"{of}:total"], rows).to_dict()["total"]

    def items(self, table: str = "orders") -> list[dict[str, Any]]:
        """The rows of a table, as they are."""
        pages = self.client.get_paginator("scan").paginate(
            TableName=f"{self.store.project}.{table}", ConsistentRead=True
        )
        found = [item for page in pages for item in page["Items"]]
        return [item for item in found if not item["k"]["B"].startswith(RESERVED)]

    def task(self, name: str = "orders") -> MaterializationTask:
        view = self.store.get_feature_view(name)
        return MaterializationTask(self.store.project, view, START, END, tqdm_builder=None)


@pytest.fixture
def open_repo(open_store, dynamodb, tmp_path):
    """Opens repos on each DynamoDB, with `online` fields and anything of RepoConfig."""
    opened = []

    def open_repo(online: dict | None = None, **more: Any) -> Repo:
        given = {"region": "us-east-1", "endpoint_url": dynamodb.endpoint}
        if dynamodb.name == "moto":  # it takes no binary values in PartiQL
            given["newest_wins_with"] = "put_item"
        store = open_store(f"m{uuid.uuid4().hex[:12]}", online={**given, **(online or {})}, **more)
        client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=dynamodb.endpoint)
        opened.append(Repo(store, client, tmp_path))
        return opened[-1]

    yield open_repo
    for repo in opened:
        repo.store.teardown()
        asyncio.run(repo.store.close())
        repo.client.close()


@pytest.fixture
def repo(open_repo):
    """A repo with the view `orders`; customer 1 has two rows, customer 2 one."""
    repo = open_repo()
    repo.keep([(1, at(1), 1.0), (1, at(3), 2.0), (2, at(2), 3.0)])
    repo.store.apply([CUSTOMER, repo.view()])
    return repo


# Which row wins


def counts(report: Any) -> dict[str, int]:
    names = ("read", "to_write", "written", "older", "expired", "resumed", "failed")
    return {name: getattr(report, name) for name in names}


def test_a_newer_row_that_was_pushed_before_stays(repo):
    repo.push(1, at(8), 9.0)
    (report,) = repo.materialize()
    assert repo.totals(1, 2) == [9.0, 3.0]
    assert counts(report) == {
        "read": 3, "to_write": 2, "written": 1, "older": 1, "expired": 0, "resumed": 0,
        "failed": 0,
    }  # fmt: skip


def test_an_older_row_that_was_pushed_before_is_replaced(repo):
    repo.push(1, at(2.5), 9.0)
    (report,) = repo.materialize()
    assert repo.totals(1, 2) == [2.0, 3.0]
    assert (report.written, report.older) == (2, 0)


def test_running_again_changes_nothing(repo):
    repo.materialize()
    before = {item["k"]["B"]: item for item in repo.items()}
    (report,) = repo.materialize()
    assert (len(before), report.written + report.older) == (2, 2)
    assert {item["k"]["B"]: item for item in repo.items()} == before


@pytest.mark.parametrize(
    ("engine", "view", "store", "winner"),
    [
        (None, None, "newest_wins", "pushed"),
        (None, None, "overwrite", "history"),
        (None, "overwrite", "newest_wins", "history"),
        (None, "newest_wins", "overwrite", "pushed"),
        ("overwrite", "newest_wins", "newest_wins", "history"),
        ("newest_wins", "overwrite", "overwrite", "pushed"),
    ],
)
def test_write_mode_is_the_engines_else_the_views_else_the_stores(
    open_repo, engine, view, store, winner
):
    block = {"type": ENGINE, "write_mode": engine} if engine else "local"
    repo = open_repo({"write_mode": store}, batch_engine=block)
    tags = ViewSettings(write_mode=view).tags()
    repo.store.apply([CUSTOMER, repo.view(tags=tags)])
    repo.keep([(1, at(3), 2.0)])
    repo.push(1, at(8), 9.0)
    (report,) = repo.materialize()
    assert (winner, repo.totals(1)) == (winner, [{"pushed": 9.0, "history": 2.0}[winner]])
    assert (report.written, report.older) == {"pushed": (0, 1), "history": (1, 0)}[winner]


# Rows past their ttl


def test_rows_past_their_ttl_are_not_written(open_repo):
    """Seconds around the limit, of which none is part kept and part not."""
    repo, ttl_s = open_repo(), 3_600
    repo.store.apply([CUSTOMER, repo.view(ttl=dt.timedelta(seconds=ttl_s))])
    now = dt.datetime.now(tz=UTC).replace(microsecond=0)
    limit = now - dt.timedelta(seconds=ttl_s)
    micros = (0, 1, 999_999)
    moments = {
        cid: limit + dt.timedelta(seconds=cid // 3 - 10, microseconds=micros[cid % 3])
        for cid in range(120)
    }
    repo.keep([(cid, moment, 1.0) for cid, moment in moments.items()])
    before_s = int(dt.datetime.now(tz=UTC).timestamp())
    repo.store.materialize(now - dt.timedelta(days=1), now)
    after_s = int(dt.datetime.now(tz=UTC).timestamp())
    (report,) = repo.engine.report.views
    ends = sorted(expiry_s(round(moment.timestamp() * 1e6), ttl_s) for moment in moments.values())
    kept_s = 86_400  # longer than that: readers meet rows past their ttl
    # It was looked at in one of these seconds.
    expired = {sum(end <= now_s for end in ends): now_s for now_s in range(before_s, after_s + 1)}
    assert report.expired in expired
    assert counts(report) == {
        "read": 120, "to_write": 120 - report.expired, "written": 120 - report.expired,
        "older": 0, "expired": report.expired, "resumed": 0, "failed": 0,
    }  # fmt: skip
    written = Counter(end for end in ends if end > expired[report.expired])
    held = Counter(int(item["x"]["N"]) - kept_s for item in repo.items())
    assert held == written


def test_a_newest_row_past_its_ttl_hides_no_older_one(open_repo):
    """The older one is past its ttl all the more; and what the table holds stays."""
    repo = open_repo()
    repo.store.apply([CUSTOMER, repo.view(ttl=dt.timedelta(days=1))])
    repo.keep([(1, at(1), 1.0), (1, at(3), 2.0)])
    (report,) = repo.materialize()
    assert (report.read, report.to_write, report.expired, report.units) == (2, 0, 1, 0.0)
    assert repo.items() == []
    assert repo.store.get_feature_view("orders").materialization_intervals == [(START, END)]


def test_rows_without_key_or_event_time_are_counted(open_repo, capsys):
    repo = open_repo()
    repo.store.apply([CUSTOMER, repo.view()])
    nulls = {
        "cid": pa.array([1, None, 2, None, 3], pa.int64()),
        "t": pa.array(
            [at(1), at(2), None, END + dt.timedelta(days=1), at(3)], pa.timestamp("us", "UTC")
        ),
        "total": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
    (repo.folder / "orders").mkdir()
    pq.write_table(pa.table(nulls), repo.folder / "orders" / "a.parquet")
    (report,) = repo.materialize()
    # The row after the window is none of this run's.
    assert (report.read, report.incomplete, report.written) == (2, 2, 2)
    header, orders = table_of(capsys.readouterr().out)
    assert header[2:5] == ["read", "incomplete", "written"]
    assert orders[1:4] == ["2", "2", "2"]


class Feasts(PassthroughProvider):
    """Somebody's own, which leaves the conversion of rows to Feast."""


class Ours(DynamoProvider):
    """Somebody's own, of this package's."""


@pytest.mark.parametrize(
    ("provider", "said"),
    [
        ("aws", "is Feast's."),
        (f"{__name__}.Feasts", "is built on Feast's."),
        (f"{__name__}.Ours", None),
    ],
)
def test_a_provider_that_has_feast_convert_rows_is_warned_of(open_repo, caplog, provider, said):
    repo = open_repo(provider=provider)
    repo.store.apply([CUSTOMER, repo.view(schema=[Field(name="total", dtype=Int64)])])
    repo.store.apply([CUSTOMER])
    found = [r.getMessage() for r in caplog.records if r.name == "feast_dynamo_ext.config"]
    if said is None:
        assert found == []
        with pytest.raises(ColumnTypeError, match=r"`total` is declared as INT64"):
            repo.push(1, at(1), 5.5)
        return
    assert len(found) == 1
    assert found[0].startswith(f"feature_store.yaml: `provider: {provider}` {said}")
    assert "5.5 is 5 in an Int64, and a key 1.5 writes the row of key 1" in found[0]
    assert "feast_dynamo_ext.DynamoProvider" in found[0]
    # As the warning has it.
    repo.push(1, at(1), 5.5)
    assert repo.totals(1) == [5]
    repo.push(1.5, at(2), 6.0)
    assert repo.totals(1) == [6]


def test_rows_past_their_ttl_are_written_where_their_values_are_answered(open_repo):
    repo = open_repo()
    tags = ViewSettings(expired="value").tags()
    repo.store.apply([CUSTOMER, repo.view(ttl=dt.timedelta(days=1), tags=tags)])
    repo.keep([(1, at(1), 1.0), (2, at(3), 2.0)])
    (report,) = repo.materialize()
    assert (report.read, report.to_write, report.written, report.expired) == (2, 2, 2, 0)
    assert [item for item in repo.items() if "x" in item] == []
    answer = repo.store.get_online_features(["orders:total"], [{"cid": 1}, {"cid": 2}])
    assert answer.to_dict()["total"] == [1.0, 2.0]


def test_a_run_that_leaves_out_every_row_says_so_in_words(open_repo, caplog):
    repo = open_repo()
    repo.store.apply([CUSTOMER, repo.view(ttl=dt.timedelta(days=1))])
    repo.keep([(1, at(1), 1.0), (2, at(3), 2.0)])
    repo.materialize()
    said = [record.getMessage() for record in caplog.records if "past" in record.getMessage()]
    assert said == [
        "feature view orders: each of its 2 entities' newest rows is past the view's ttl of "
        "1 day, 0:00:00, so nothing is written. Is the source up to date? To serve rows of that "
        "age, raise the ttl, or set `expired: value` for the view or in feature_store.yaml."
    ]


EMPTY = "feature view orders: no row of its source is from {start} to {end}"
NEWEST = ", so nothing is written. Its newest event time is 2025-01-01T03:00:00+00:00."


def schema_with(kind: pa.DataType) -> pa.Schema:
    return pa.schema([("cid", pa.int64()), ("t", kind), ("total", pa.float64())])


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.timestamp("us", "UTC")], ids=str)
def test_a_run_without_a_row_says_why_in_words(open_repo, caplog, kind):
    repo = open_repo()
    repo.store.apply([CUSTOMER, repo.view()])
    (repo.folder / "orders").mkdir()

    def said(start: dt.datetime, end: dt.datetime) -> list[str]:
        caplog.clear()
        repo.store.materialize(start, end)
        assert repo.items() == []
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    none = schema_with(kind).empty_table()
    pq.write_table(none, repo.folder / "orders" / "a.parquet")
    nothing = "feature view orders: its source holds no rows, so nothing is written."
    assert said(START, END) == [nothing]

    times = pa.array([at(1), at(3)], pa.timestamp("us", "UTC")).cast(kind)
    rows = pa.table([[1, 2], times, [1.0, 2.0]], schema_with(kind))
    pq.write_table(rows, repo.folder / "orders" / "b.parquet")
    between = EMPTY.format(start="2025-01-01T01:30:00+00:00", end="2025-01-01T02:30:00+00:00")
    assert said(at(1.5), at(2.5)) == [between + NEWEST]
    after = EMPTY.format(start="2025-01-01T04:00:00+00:00", end="2025-01-01T10:00:00+00:00")
    assert said(at(4), END) == [after + NEWEST]

    lacking = pa.table([[None], times[:1], [3.0]], schema_with(kind))
    pq.write_table(lacking, repo.folder / "orders" / "c.parquet")
    lacks = EMPTY.format(start="2025-01-01T00:30:00+00:00", end="2025-01-01T00:45:00+00:00")
    assert said(at(0.5), at(0.75)) == [lacks + NEWEST]
    times = pa.array([at(5)], pa.timestamp("us", "UTC")).cast(kind)
    pq.write_table(lacking.set_column(1, "t", times), repo.folder / "orders" / "d.parquet")
    (without_key,) = said(at(4), END)
    assert without_key == (
        f"{after} and has its join keys; 1 rows lack a key or event time, so nothing is written."
    )


def test_a_corrupt_file_outside_of_the_window_fails_no_run_without_rows(open_repo, caplog):
    repo = open_repo()
    for day, moment in (("2024-11-01", at(-24 * 61)), ("2025-01-01", at(3))):
        repo.keep([(1, moment, 1.0)], f"orders/dt={day}")
    (repo.folder / "orders" / "dt=2024-12-01").mkdir()
    (repo.folder / "orders" / "dt=2024-12-01" / "a.parquet").write_bytes(b"PAR1 no footer PAR1")
    source = S3ParquetSource(
        path=str(repo.folder / "orders"),
        timestamp_field="t",
        date_partition_column="dt",
        date_partition_column_format="%Y-%m-%d",
    )
    repo.store.apply([CUSTOMER, repo.view(source=source)])
    repo.store.materialize(at(4), END)
    (view,) = repo.engine.report.views
    assert (view.step, view.error) == ("done", None)
    after = EMPTY.format(start="2025-01-01T04:00:00+00:00", end="2025-01-01T10:00:00+00:00")
    assert f"{after}, so nothing is written." in [r.getMessage() for r in caplog.records]


def test_an_incremental_run_that_finds_nothing_new_is_no_warning(open_repo, caplog):
    """But the first is: its window is a year, or the ttl."""
    repo = open_repo()
    repo.store.apply([CUSTOMER, repo.view(ttl=dt.timedelta(days=1))])
    repo.keep([(1, at(1), 1.0)])
    caplog.set_level(logging.INFO, "feast_dynamo_ext.materialize")
    said = []
    for _ in range(2):
        caplog.clear()
        repo.store.materialize_incremental(dt.datetime.now(tz=UTC))
        logged = [r for r in caplog.records if "orders: no row" in r.getMessage()]
        said += [(r.levelname, r.getMessage().partition("+00:00, ")[2]) for r in logged]
    assert said == [
        (
            "WARNING",
            "so nothing is written. Its newest event time is 2025-01-01T01:00:00+00:00.",
        ),
        ("INFO", "so nothing is written."),
    ]


# What is said


def table_of(text: str) -> list[list[str]]:
    """The cells of a run's summary, without its lines."""
    lines = text[text.index("feature view  ") :].splitlines()
    return [line.split() for line in lines if line and not line.startswith("---")]


def test_the_summary_says_what_became_of_the_rows(open_repo, capsys):
    repo, now = open_repo(), dt.datetime.now(tz=UTC)
    repo.store.apply([CUSTOMER, repo.view(ttl=dt.timedelta(days=2)), repo.view("visits")])
    ago = {days: now - dt.timedelta(days=days) for days in range(5)}
    repo.keep([(1, ago[4], 1.0), (1, ago[1], 2.0), (2, ago[1], 3.0), (3, ago[3], 4.0)])
    repo.keep([(1, ago[4], 1.0)], "visits")
    repo.push(2, now, 9.0)
    capsys.readouterr()
    repo.store.materialize(now - dt.timedelta(days=30), now)
    header, orders, visits, total = table_of(capsys.readouterr().out)
    names = "read written older expired failed units dollars time state"
    assert header == ["feature", "view", *names.split()]
    assert orders[:6] == ["orders", "4", "1", "1", "1", "0"]
    assert visits[:6] == ["visits", "1", "1", "0", "0", "0"]
    assert total[:6] == ["total", "5", "2", "1", "1", "0"]
    assert [line[-1] for line in (orders, visits, total)] == ["done"] * 3
    of_orders, of_visits = repo.engine.report.views
    assert [of_orders.units, of_visits.units] == [float(orders[6]), float(visits[6])]
    # A failed condition is a write as well, and a first statement may not fit.
    assert 2 <= of_orders.units <= 4
    assert 1 <= of_visits.units <= 2


def test_nothing_is_said_where_it_is_not_to_be_shown(repo, capsys):
    repo.engine.show = False
    capsys.readouterr()
    (job,) = repo.engine.materialize(repo.store.registry, repo.task())
    assert capsys.readouterr() == ("", "")
    assert job.status() == MaterializationJobStatus.SUCCEEDED
    assert (job.error(), repo.engine.report.views[0].written) == (None, 2)


def test_a_window_without_rows(repo):
    repo.store.materialize(at(100), at(101))
    (report,) = repo.engine.report.views
    assert (report.read, report.to_write, report.written, report.units) == (0, 0, 0, 0.0)
    assert (repo.totals(1), repo.items()) == ([None], [])


# Several views


def most_at_once(views: list[Any]) -> int:
    return max(
        sum(other.started_s <= view.started_s < other.ended_s for other in views) for view in views
    )


def test_more_views_than_at_once(open_repo):
    repo = open_repo(batch_engine={"type": ENGINE, "views_at_once": 2})
    names = ["a", "b", "c", "d", "e"]
    for number, name in enumerate(names):
        repo.keep([(cid, at(cid % 9), float(number)) for cid in range(20)], name)
    repo.store.apply([CUSTOMER, *map(repo.view, names)])
    reports = repo.materialize()
    assert [(one.view, one.written, one.step) for one in reports] == [
        (name, 20, "done") for name in names
    ]
    assert most_at_once(reports) <= 2
    for number, name in enumerate(names):
        assert (name, repo.totals(0, 19, of=name)) == (name, [float(number)] * 2)


def test_vectors_of_services_after_several_views_at_once(open_repo):
    repo = open_repo()
    views = [repo.view(name) for name in ("a", "b", "c")]
    service = FeatureService(name="all", features=views, precompute_online=True)
    plain = FeatureService(name="plain", features=views)
    repo.store.apply([CUSTOMER, *views, service, plain])
    # Each customer is in two of the views, and some are pushed in between.
    for skipped, name in enumerate(("a", "b", "c")):
        rows = [(cid, at(1 + skipped), cid + skipped / 10) for cid in range(24)]
        repo.keep([row for row in rows if row[0] % 3 != skipped], name)
    rows = [{"cid": cid} for cid in range(25)]
    repo.materialize()
    assert answers(repo.store, "all", rows) == answers(repo.store, "plain", rows)
    # The second time the services are declared, and each write renews its vectors.
    for name in ("a", "b", "c"):
        repo.keep([(cid, at(5), -1.0 * cid) for cid in range(0, 24, 2)], name, part="b")
    repo.materialize()
    found = answers(repo.store, "all", rows)
    assert found == answers(repo.store, "plain", rows)
    assert {name: values[4] for name, values in found.items()} == {
        "a__total": -4.0, "b__total": -4.0, "c__total": -4.0, "cid": 4
    }  # fmt: skip
    assert {name: values[5] for name, values in found.items()} == {
        "a__total": 5.0, "b__total": 5.1, "c__total": None, "cid": 5
    }  # fmt: skip
    kept = repo.client.scan(TableName=f"{repo.store.project}.a", ConsistentRead=True)["Items"]
    assert sum(item["k"]["B"].startswith(RESERVED + b"vector:") for item in kept) == 24


def answers(store: FeatureStore, service: str, rows: list[dict]) -> dict[str, list]:
    asked = store.get_feature_service(service)
    return store.get_online_features(asked, rows, full_feature_names=True).to_dict()


# Incremental runs


def test_an_incremental_run_picks_up_rows_that_came_late(open_repo):
    repo = open_repo(batch_engine={"type": ENGINE, "lookback_s": 3_600})
    repo.store.apply([CUSTOMER, repo.view()])
    repo.keep([(1, at(5), 1.0)])
    repo.materialize()
    # Both came after the run; one is within the hour before its end, one is not.
    repo.keep([(2, END - dt.timedelta(minutes=59), 2.0), (3, at(8), 3.0)], part="late")
    repo.store.materialize_incremental(END + dt.timedelta(hours=1))
    (report,) = repo.engine.report.views
    assert (report.start, report.end) == (at(9), at(11))
    assert repo.totals(1, 2, 3) == [1.0, 2.0, None]


def test_an_incremental_run_to_a_time_to_come_is_refused(repo):
    repo.materialize()
    with pytest.raises(WindowError, match=r"^The end of the incremental .* is in the future"):
        repo.store.materialize_incremental(dt.datetime.now(tz=UTC) + dt.timedelta(hours=1))
    assert repo.store.get_feature_view("orders").materialization_intervals == [(START, END)]
    assert repo.totals(1) == [2.0]


# The estimate


@pytest.mark.parametrize("mode", ["overwrite", "newest_wins"])
def test_an_estimate_is_what_a_run_then_writes(open_repo, dynamodb, mode):
    repo = open_repo(batch_engine={"type": ENGINE, "write_mode": mode})
    fields = [Field(name="cid", dtype=Int64), Field(name="text", dtype=String)]
    repo.store.apply([CUSTOMER, repo.view(schema=fields)])
    columns = {
        "cid": list(range(40)),
        "t": [at(1)] * 40,
        "text": ["x" * (cid * 90) for cid in range(40)],  # items of up to 4 units
    }
    (repo.folder / "orders").mkdir()
    pq.write_table(pa.table(columns), repo.folder / "orders" / "a.parquet")
    (estimate,) = repo.engine.estimate([repo.task()])
    assert repo.items() == []
    (report,) = repo.materialize()
    assert (estimate.read, estimate.rows, estimate.expired) == (40, 40, 0)
    assert (report.read, report.written, report.expired) == (40, 40, 0)
    assert estimate.max_bytes == max(map(size_of, repo.items()))
    assert estimate.mean_bytes == sum(map(size_of, repo.items())) / 40
    assert estimate.units == sum(-(-size_of(item) // 1024) for item in repo.items())
    if dynamodb.name == "moto":  # it says one unit a table and request, whatever is written
        assert report.units > 0
    elif mode == "overwrite":
        assert report.units == estimate.units
    else:
        assert estimate.units <= report.units <= estimate.max_units


def size_of(item: dict[str, Any]) -> int:
    """Bytes of an item by DynamoDB's rule, of what boto3 makes of it."""
    return sum(len(name) + value_size(value) for name, value in item.items())


def value_size(value: dict[str, Any]) -> int:
    ((kind, held),) = value.items()
    return len(held) if kind == "B" else (len(held) + 1) // 2 + 1


# Versions of a view


def test_a_version_of_a_view_is_materialized_into_its_own_table(open_repo):
    repo = open_repo(registry={"enable_online_feature_view_versioning": True})
    repo.keep([(1, at(3), 2.0)])
    repo.store.apply([CUSTOMER, repo.view()])
    fields = [*repo.view().schema, Field(name="cid2", dtype=Int64)]
    columns = {"cid": [1], "t": [at(3)], "total": [2.0], "cid2": [7]}
    pq.write_table(pa.table(columns), repo.folder / "orders" / "a.parquet")
    repo.store.apply([CUSTOMER, repo.view(schema=fields)])
    repo.store.materialize(START, END, feature_views=["orders"], version="v0")
    assert [one.table for one in repo.engine.report.views] == [f"{repo.store.project}.orders"]
    assert (len(repo.items("orders")), len(repo.items("orders_v1"))) == (1, 0)
    repo.store.materialize(START, END, feature_views=["orders"], version="v1")
    assert [one.table for one in repo.engine.report.views] == [f"{repo.store.project}.orders_v1"]
    answer = repo.store.get_online_features(
        ["orders@v0:total", "orders@v1:total", "orders@v1:cid2"],
        [{"cid": 1}],
        full_feature_names=True,
    ).to_dict()
    assert answer == {
        "cid": [1],
        "orders@v0__total": [2.0],
        "orders@v1__total": [2.0],
        "orders@v1__cid2": [7],
    }


# Other stores


def test_another_offline_store_with_our_online_store(open_repo):
    repo = open_repo()
    config = repo.store.config.model_dump(by_alias=True, exclude_none=True)
    for name in ("batch_engine", "offline_store", "repo_path"):
        config.pop(name, None)
    store = FeatureStore(config=RepoConfig(**config, offline_store={"type": "file"}))
    other = Repo(store, repo.client, repo.folder)
    (repo.folder / "orders").mkdir()
    other.keep([(1, at(1), 1.0), (1, at(3), 2.0), (2, at(2), 3.0), (3, at(11), 4.0)])
    store.apply([CUSTOMER, other.view()])
    other.push(2, at(8), 9.0)
    (report,) = other.materialize()
    assert other.totals(1, 2, 3) == [2.0, 9.0, None]
    assert (report.written, report.older) == (1, 1)
    other.materialize()
    assert other.totals(1, 2, 3) == [2.0, 9.0, None]
    asyncio.run(store.close())


def test_another_online_store_with_our_provider(tmp_path, moto_endpoint):
    online = {"type": "sqlite", "path": str(tmp_path / "online.db")}
    config = open_repo_config(tmp_path, online_store=online, offline={"region": "us-east-1"})
    repo = Repo(FeatureStore(config=config), None, tmp_path)
    repo.keep([(1, at(1), 1.0), (1, at(3), 2.0), (2, at(2), 3.0)])
    repo.store.apply([CUSTOMER, repo.view(), repo.view("visits")])
    repo.keep([(1, at(1), 5.0)], "visits")
    reports = repo.materialize()
    assert (repo.totals(1, 2), repo.totals(1, of="visits")) == ([2.0, 3.0], [5.0])
    assert [one.step for one in reports] == ["done", "done"]
    repo.store.teardown()


# feature_store.yaml


@pytest.fixture
def yaml_repo(tmp_path, moto_endpoint):
    """Opens a repo whose feature_store.yaml has these lines more in `batch_engine`."""

    def open_repo(**settings: Any) -> Repo:
        aws = {"region": "us-east-1", "endpoint_url": moto_endpoint}
        write_repo_yaml(
            tmp_path,
            project=f"y{uuid.uuid4().hex[:12]}",
            online={**aws, "newest_wins_with": "put_item"},
            offline={"region": "us-east-1"},
            batch_engine={"type": "feast_dynamo_ext.DynamoComputeEngine", **settings},
        )
        return Repo(FeatureStore(repo_path=str(tmp_path)), None, tmp_path)

    return open_repo


@pytest.fixture
def feast(fork_server):
    def feast(repo: Repo, *arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        return fork_server.run("feast", *arguments, cwd=repo.folder, env=environment)

    return feast


def test_the_settings_of_feature_store_yaml_hold_for_the_feast_command(yaml_repo, feast):
    repo = yaml_repo(lookback_s=3_600, write_mode="overwrite", rows_per_bucket=10)
    repo.store.apply([CUSTOMER, repo.view()])
    repo.keep([(1, at(5), 1.0)])
    repo.materialize()
    repo.keep([(2, END - dt.timedelta(minutes=59), 2.0), (3, at(8), 3.0)], part="late")
    repo.push(2, at(20), 9.0)
    result = feast(repo, "materialize-incremental", at(11).strftime("%Y-%m-%dT%H:%M:%S"))
    assert result.returncode == 0, result.stderr
    assert table_of(result.stdout)[1][:6] == ["orders", "1", "1", "0", "0", "0"]
    repo.store.refresh_registry()
    assert repo.totals(1, 2, 3) == [1.0, 2.0, None]
    repo.store.teardown()
    asyncio.run(repo.store.close())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lookback": 60}, "there is no setting `lookback`. Did you mean `lookback_s`?"),
        ({"lookback_s": -1}, "`lookback_s`: Input should be greater than or equal to 0."),
        ({"views_at_once": 0}, "`views_at_once`: Input should be greater than or equal to 1."),
        ({"resume": "perhaps"}, "`resume`: Input should be a valid boolean."),
        ({"if_running": "kill"}, "`if_running`: Input should be 'refuse' or 'wait'."),
        ({"memory_limit": "2 gigs"}, "`memory_limit`: must be a size such as 128MB, 2GB or"),
        ({"write_mode": "append"}, "`write_mode`: Input should be 'newest_wins' or 'overwrite'."),
    ],
)
def test_a_setting_that_cannot_be_is_one_clear_error(yaml_repo, settings, message):
    with pytest.raises(ConfigError) as caught:
        yaml_repo(**settings).store.materialize(START, END)
    told = str(caught.value)
    assert told.startswith(f"feature_store.yaml, batch_engine: {message}")
    assert "\n" not in told


def test_of_a_stand_in_where_partiql_does_not_work_nothing_is_said(
    tmp_path, moto_endpoint, caplog
):
    aws = {"region": "us-east-1", "endpoint_url": moto_endpoint}
    write_repo_yaml(tmp_path, project=f"y{uuid.uuid4().hex[:12]}", online=aws)
    repo = Repo(FeatureStore(repo_path=str(tmp_path)), None, tmp_path)
    repo.store.apply([CUSTOMER, repo.view()])
    repo.keep([(1, at(5), 1.0)])
    with caplog.at_level(logging.WARNING, logger="feast_dynamo_ext"):
        repo.materialize()
    assert repo.totals(1) == [1.0]
    assert [record.message for record in caplog.records if "PartiQL" in record.message] == []
    repo.store.teardown()
    asyncio.run(repo.store.close())


def test_settings_that_cannot_be_are_refused_before_a_table_is_made(yaml_repo, moto_endpoint):
    repo = yaml_repo(if_runing="wait")
    with pytest.raises(ConfigError, match="Did you mean `if_running`"):
        repo.store.apply([CUSTOMER, repo.view()])
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=moto_endpoint)
    tables = table_names(client)
    client.close()
    assert not any(name.startswith(f"{repo.store.project}.") for name in tables)
