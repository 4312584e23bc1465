"""What a retrieval job gives: tables, batches, files; and when it gives up."""

from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureView, Field, FileSource, RepoConfig, RequestSource
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float64, Int64, String
from repos import open_repo_config
from views import CUSTOMER

from feast_dynamo_ext.errors import (
    ColumnTypeError,
    ConfigError,
    DestinationError,
    DestinationExistsError,
    EntityRowsError,
    OfflineStoreError,
    RetrievalTimeoutError,
)
from feast_dynamo_ext.offline_store import S3ParquetOfflineStore
from feast_dynamo_ext.retrieval.engines.base import Result
from feast_dynamo_ext.retrieval.job import ParquetRetrievalJob

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
FRAME = pd.DataFrame({"cid": [3, 1, 9], "event_timestamp": [pd.Timestamp(START)] * 3})
TOTALS = [3.0, 1.0, None]
ROWS = pa.table({"x": list(range(10))})


class Registry:
    """A registry with these on-demand views, which is all a retrieval asks it for."""

    def __init__(self, *odfvs):
        self.odfvs = odfvs

    def list_on_demand_feature_views(self, *args, **kwargs):
        return list(self.odfvs)


def repo_config(folder, **offline) -> RepoConfig:
    return open_repo_config(folder, project="shop", offline=offline)


@pytest.fixture
def orders(tmp_path) -> FeatureView:
    (tmp_path / "orders").mkdir()
    table = pa.table(
        {
            "cid": [1, 2, 3],
            "event_timestamp": pa.array([START] * 3, pa.timestamp("us", "UTC")),
            "total": [1.0, 2.0, 3.0],
        }
    )
    pq.write_table(table, tmp_path / "orders" / "a.parquet")
    return FeatureView(
        name="orders",
        entities=[CUSTOMER],
        schema=[Field(name="cid", dtype=Int64), Field(name="total", dtype=Float64)],
        source=FileSource(path="orders", timestamp_field="event_timestamp"),
        ttl=dt.timedelta(0),
    )


def retrieve(folder, views, refs=("orders:total",), registry=None, **offline):
    return S3ParquetOfflineStore.get_historical_features(
        repo_config(folder, **offline), views, list(refs), FRAME, registry or Registry(), "shop"
    )


def doubled(view: FeatureView):
    @on_demand_feature_view(
        sources=[view], schema=[Field(name="doubled", dtype=Float64)], mode="pandas"
    )
    def twice(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"doubled": inputs["total"] * 2})

    return twice


def job_of(folder, run, **offline) -> ParquetRetrievalJob:
    return ParquetRetrievalJob(config=repo_config(folder, **offline), run=run)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def saved(path) -> SavedDatasetFileStorage:
    return SavedDatasetFileStorage(path=str(path))


# The same rows in every form


def test_tables_frames_and_batches_are_the_same_rows(tmp_path, orders):
    job = retrieve(tmp_path, [orders])
    table = job.to_arrow()
    assert table.column("total").to_pylist() == TOTALS
    pd.testing.assert_frame_equal(job.to_df(), table.to_pandas())
    assert pa.Table.from_batches(job.to_arrow_batches()).equals(table)


def test_batches_are_bounded(tmp_path):
    job = job_of(tmp_path, lambda: Result.from_table(ROWS))
    batches = list(job.to_arrow_batches(max_rows=4))
    assert [batch.num_rows for batch in batches] == [4, 4, 2]
    assert pa.Table.from_batches(batches).equals(ROWS)


def test_matching_happens_once(tmp_path):
    runs = []

    def run():
        runs.append(1)
        return Result.from_table(ROWS)

    job = job_of(tmp_path, run)
    assert job.to_arrow().equals(ROWS)
    assert job.to_df(timeout=60)["x"].tolist() == list(range(10))
    assert next(iter(job.to_arrow_batches())).num_rows == 10
    assert runs == [1]


def test_on_demand_views_are_in_tables_and_files_and_refused_in_batches(tmp_path, orders):
    twice = doubled(orders)
    refs = ["orders:total", "twice:doubled"]
    job = retrieve(tmp_path, [orders], refs, Registry(twice), staging_location="staging")
    assert job.to_arrow().column("doubled").to_pylist() == [6.0, 2.0, None]
    with pytest.raises(OfflineStoreError, match=r"\['twice'\] are computed on all rows at once"):
        job.to_arrow_batches()
    (uri,) = job.to_remote_storage()
    assert pq.read_table(uri).column("doubled").to_pylist() == [6.0, 2.0, None]


@pytest.mark.parametrize(
    ("dtype", "factor", "expected"),
    [
        (Int64, 2, [6, 2, None]),  # pandas has floats beside a null
        (Float64, 0.5, [1.5, 0.5, None]),
        (Int64, 0.5, None),
        (Bool, 2, None),
        (String, 2, ["6", "2", None]),
    ],
)
def test_on_demand_features_are_of_their_declared_types(tmp_path, orders, dtype, factor, expected):
    @on_demand_feature_view(
        sources=[orders], schema=[Field(name="made", dtype=dtype)], mode="pandas"
    )
    def computed(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"made": inputs["total"] * factor})

    job = retrieve(tmp_path, [orders], ["orders:total", "computed:made"], Registry(computed))
    if expected is None:
        with pytest.raises(ColumnTypeError, match=r"`computed`.*`made` is declared as"):
            job.to_arrow()
        return
    assert job.to_arrow().column("made").to_pylist() == expected


# Timeouts


@pytest.fixture
def on_request(open_store):
    """A store whose one view is computed from the entity rows alone."""
    given = RequestSource(name="given", schema=[Field(name="amount", dtype=Int64)])

    @on_demand_feature_view(
        sources=[given], schema=[Field(name="twice", dtype=Int64)], mode="pandas"
    )
    def computed(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"twice": inputs["amount"] * 2})

    store = open_store(online={"region": "us-east-1"})
    store.apply([computed])
    return store


@pytest.mark.filterwarnings("ignore:.* experimental feature.*:RuntimeWarning")
def test_a_view_of_request_data_alone(on_request):
    times = [pd.Timestamp(START), pd.Timestamp(START) + pd.Timedelta(days=1)]
    entity_df = pd.DataFrame({"event_timestamp": times, "amount": [1, 2]})
    job = on_request.get_historical_features(entity_df, ["computed:twice"])
    assert job.to_df().to_dict("list") == {
        "event_timestamp": times,
        "amount": [1, 2],
        "twice": [2, 4],
    }
    explanation = job.explain()
    assert (explanation.entity_rows, explanation.views) == (2, ())
    assert "2 entity rows at once, 1 pass" in explanation.memory
    assert duckdb.sql(job.to_sql()).to_df()["amount"].to_list() == [1, 2]
    with pytest.raises(EntityRowsError, match="no feature view with a history"):
        on_request.get_historical_features(
            None, ["computed:twice"], start_date=START, end_date=START
        )


def test_a_timeout_is_kept_while_matching_and_the_next_call_has_what_it_found(tmp_path):
    go_on = threading.Event()

    def run():
        go_on.wait()
        return Result.from_table(ROWS)

    job = job_of(tmp_path, run)
    with pytest.raises(RetrievalTimeoutError, match=r"after the 0\.01 s of its `timeout`"):
        job.to_df(timeout=0.01)
    with pytest.raises(TimeoutError):
        job.persist(saved(tmp_path / "saved"), timeout=0.01)
    assert not (tmp_path / "saved").exists()
    go_on.set()
    assert job.to_arrow(timeout=60).equals(ROWS)


def test_a_timeout_stops_the_reading_of_features(tmp_path):
    asked, go_on, read = threading.Event(), threading.Event(), []

    def batches():
        for batch in ROWS.to_batches(1):
            read.append(batch)
            asked.set()
            go_on.wait()
            yield batch

    job = job_of(tmp_path, lambda: Result(ROWS.schema, 10, batches))
    with pytest.raises(RetrievalTimeoutError):
        job.to_arrow(timeout=0.01)
    assert asked.wait(60)
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "feast-dynamo-retrieval":
            thread.join()
    assert len(read) == 1


ENDLESS = """
import sys
import subprocess
import sys
import threading
import time

from feast_dynamo_ext.cancellation import within
from feast_dynamo_ext.duckdb_connection import Limits, connected
from feast_dynamo_ext.errors import RetrievalTimeoutError

began = threading.Event()


def count():
    with connected(Limits(), "Counting") as duck:
        began.set()
        for _ in range(1_000):
            numbers = "range(20000000)"
            duck.sql(f"SELECT count(*) FROM {numbers} a JOIN {numbers} b USING (range)").fetchall()


for _ in range(6):
    try:
        within(0.5, count)
    except RetrievalTimeoutError as error:
        print(error, file=sys.stderr)
assert began.is_set()
print("end", flush=True)
"""


def test_a_program_may_end_after_a_timeout_inside_duckdb(tmp_path, fork_server):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    done = fork_server.run(script, timeout=60)
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
    assert done.stderr.count("was not done after the 0.5 s of its `timeout`") == 6


def test_retrievals_that_do_not_end_are_bounded(tmp_path):
    go_on, running = threading.Event(), []

    def run():
        running.append(1)
        go_on.wait()
        return Result.from_table(ROWS)

    for _ in range(4):
        with pytest.raises(RetrievalTimeoutError, match="was not done"):
            job_of(tmp_path, run).to_arrow(timeout=0.01)
    with pytest.raises(RetrievalTimeoutError, match="4 retrievals that were not done in time"):
        job_of(tmp_path, run).to_arrow(timeout=0.01)
    assert len(running) == 4
    go_on.set()
    assert job_of(tmp_path, run).to_arrow(timeout=60).equals(ROWS)


def test_an_error_is_the_same_with_a_timeout(tmp_path):
    def run():
        raise OfflineStoreError("this is what went wrong")

    for timeout in (None, 60):
        with pytest.raises(OfflineStoreError, match="this is what went wrong"):
            job_of(tmp_path, run).to_arrow(timeout=timeout)


# To remote storage


def test_each_export_has_a_folder_of_its_own(tmp_path, orders):
    job = retrieve(tmp_path, [orders], staging_location="staging")
    assert job.supports_remote_storage_export()
    (first,), (second,) = job.to_remote_storage(), job.to_remote_storage()
    assert Path(first).parent != Path(second).parent
    assert Path(first).parents[1] == tmp_path / "staging" / "shop"
    assert pq.read_table(first).column("total").to_pylist() == TOTALS


def test_an_export_needs_a_place(tmp_path, orders):
    job = retrieve(tmp_path, [orders])
    assert not job.supports_remote_storage_export()
    with pytest.raises(ConfigError, match="`staging_location`"):
        job.to_remote_storage()


def test_an_export_that_fails_leaves_nothing(tmp_path):
    def batches():
        yield from ROWS.to_batches(1)
        raise OfflineStoreError("a file cannot be read")

    job = job_of(tmp_path, lambda: Result(ROWS.schema, 10, batches), staging_location="staging")
    with pytest.raises(OfflineStoreError, match="a file cannot be read"):
        job.to_remote_storage()
    assert files_in(tmp_path / "staging") == []


def test_an_export_without_rows_has_the_schema(tmp_path):
    job = job_of(tmp_path, lambda: Result.from_table(ROWS.slice(0, 0)), staging_location="staging")
    (uri,) = job.to_remote_storage()
    assert pq.read_table(uri).equals(ROWS.slice(0, 0))


# Saved datasets


def test_the_guard_looks_before_anything_is_matched(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "_SUCCESS").write_text("")

    def run():
        raise AssertionError("nothing is to be matched")

    with pytest.raises(DestinationExistsError, match=r"saved exists already.*allow_overwrite"):
        job_of(tmp_path, run).persist(saved(tmp_path / "saved"))


@pytest.mark.parametrize("name", ["rows.parquet", "rows"])
def test_replacing_leaves_the_new_rows_alone(tmp_path, name):
    for rows in (ROWS, ROWS.slice(3)):
        job_of(tmp_path, lambda rows=rows: Result.from_table(rows)).persist(
            saved(tmp_path / "sets" / name), allow_overwrite=True
        )
    assert pq.read_table(tmp_path / "sets" / name).equals(ROWS.slice(3))
    assert len(files_in(tmp_path / "sets")) == 1


@pytest.mark.parametrize("name", ["rows.parquet", "rows"])
def test_a_replacement_that_fails_leaves_the_old_rows(tmp_path, name):
    job_of(tmp_path, lambda: Result.from_table(ROWS)).persist(saved(tmp_path / name))

    def batches():
        yield from ROWS.to_batches(1)
        raise OfflineStoreError("a file cannot be read")

    broken = job_of(tmp_path, lambda: Result(ROWS.schema, 10, batches))
    with pytest.raises(OfflineStoreError, match="a file cannot be read"):
        broken.persist(saved(tmp_path / name), allow_overwrite=True)
    assert pq.read_table(tmp_path / name).equals(ROWS)


def test_a_folder_that_holds_other_things_is_not_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.docx").write_text("")
    job = job_of(tmp_path, lambda: Result.from_table(ROWS))
    with pytest.raises(DestinationExistsError, match=r"thesis\.docx, which is no Parquet file"):
        job.persist(saved(tmp_path / "home"), allow_overwrite=True)
    assert files_in(tmp_path / "home") == ["thesis.docx"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    job = job_of(tmp_path, lambda: Result.from_table(ROWS))
    with pytest.raises(DestinationError, match=r"file/rows\.parquet cannot be written"):
        job.persist(saved(tmp_path / "file" / "rows.parquet"))


INTEGERS = {
    "int8": (pa.int8(), "Int8"),
    "int32": (pa.int32(), "Int32"),
    "int64": (pa.int64(), "Int64"),
    "uint64": (pa.uint64(), "UInt64"),
}


@pytest.mark.parametrize(("kind", "name"), INTEGERS.values(), ids=INTEGERS)
def test_integers_with_nulls_are_pandas_own(tmp_path, kind, name):
    top = 2 ** (kind.bit_width - name.startswith("Int")) - 1
    table = pa.table(
        {
            "with_null": pa.array([top, None, 0], kind),
            "without": pa.array([top, 1, 0], kind),
            "number": [0.5, None, 1.0],
        }
    )
    job = ParquetRetrievalJob(repo_config(tmp_path), lambda: Result.from_table(table))
    frame = job.to_df()
    assert [str(dtype) for dtype in frame.dtypes] == [name, name.lower(), "float64"]
    assert frame["with_null"].tolist() == [top, pd.NA, 0]
    assert frame["without"].tolist() == [top, 1, 0]
