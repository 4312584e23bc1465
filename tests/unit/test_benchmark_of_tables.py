"""What `make bench` needs for history tables: its steps on a few rows, its bars and reports."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import bars
import offline_client
import offline_stores
import report
import tables_client
from offline import DUCKDB, OPTIMIZED, OURS, TABLES, Joined, OfflineCase
from offline_data import LABEL, Dataset
from offline_limits import memory_mb
from opens import files_opened
from tables import PLAIN, SORTED, Appended, Opened, Rewritten, Sizes, TableRuns

TINY = Dataset(views=2, rows=600, files=3, features=2, keys=20, entities=50)
WEEK = {
    "days": {"warm": 8, "week": 12},
    "rows": 20,
    "keys": 5,
    "features": 2,
    "entities": 40,
    "ttl_days": 1,
    "warm": "warm",
    "view": "week",
    "first_day": 4,
}


def settings_in(folder: Path, **more) -> dict:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return {"folder": str(folder / "data"), "scratch": str(scratch), **more}


# Steps


def test_tables_give_the_rows_of_the_plain_files(tmp_path):
    dataset = dataclasses.replace(TINY, views=1, rows=60, files=2)
    dataset.write(tmp_path / dataset.name)
    place = {"dataset": vars(dataset), "folder": str(tmp_path / dataset.name)}
    settings = {
        **settings_in(tmp_path),
        "endpoint": None,
        "views": 1,
        "to_parquet": False,
        "tables": str(tmp_path / "tables"),
        "measured": place,
    }
    tables = offline_client.task(settings, "measured")
    made = tables_client.write_views(tables)
    assert (made["rows"], made["seconds"] > 0) == (60, True)
    plain = offline_client.task({**settings, "tables": None}, "measured")
    assert (plain.tables, tables.tables) == (None, tmp_path / "tables" / dataset.name)
    digests = set()
    for task in (plain, tables):
        table = offline_stores.retrieval(offline_stores.OURS, task)()
        assert offline_client.check(table, task) == ""
        digests.add(offline_client.digest_of(table, task.compared))
    assert len(digests) == 1


def test_tables_are_partitioned_as_the_package_would(tmp_path):
    dataclasses.replace(TINY, views=1).write(tmp_path / "data")
    found = tables_client.partition_of(sorted((tmp_path / "data" / "view_00").iterdir()))
    assert found == "none"  # some kilobytes


def test_a_week_opens_its_own_files_and_those_of_the_ttl(tmp_path):
    settings = settings_in(tmp_path, **WEEK)
    tables_client.week_data(settings)
    figures = {}
    for is_table in (False, True):
        scratch = tmp_path / f"scratch {is_table}"
        scratch.mkdir()
        given = {**settings, "scratch": str(scratch), "is_table": is_table}
        figures[is_table] = tables_client.week(given)
    assert (figures[True]["opened"], figures[True]["files"]) == (8, 12)
    assert figures[False]["files"] == 12
    assert figures[True]["digest"] == figures[False]["digest"]
    assert 0 < figures[True]["found"] <= 40


@pytest.mark.parametrize("is_ours", [True, False])
def test_appends_are_timed_and_their_metadata_is_counted(tmp_path, is_ours):
    more = {"appends": 3, "rows": 5, "keys": 4, "features": 1, "is_ours": is_ours}
    settings = settings_in(tmp_path, **more)
    figures = tables_client.append(settings)
    assert len(figures["times_ms"]) == 3
    metadata = list(
        (tmp_path / "data" / "warehouse" / "bench" / "appended" / "metadata").iterdir()
    )
    assert figures["metadata_files"] == len(metadata) >= 7  # a table's, and three of a commit
    assert figures["metadata_bytes"] == sum(path.stat().st_size for path in metadata)


@pytest.fixture
def large(tmp_path):
    return settings_in(
        tmp_path,
        table="large",
        tables=["large"],
        bytes=1.0,
        files=3,
        rows=40,
        keys=7,
        features=4,
        memory="100MB",
    )


def test_a_table_to_optimize_is_many_files_in_no_order(large):
    tables_client.fill(large)
    rows = tables_client.handle_of(large["folder"], "large", large["scratch"]).load()
    found = rows.scan().to_arrow()
    assert found.schema.names == [
        *("customer", "event_time", "created_time"),
        *("feature_00", "feature_02", "feature_01", "feature_03"),
        "_feast_sequence",
    ]
    assert [str(kind) for kind in found.schema.types[3:7]] == ["double"] * 2 + ["string"] * 2
    assert tables_client.checksum(large)["rows"] == 120
    copied = tables_client.sorted_copy(large)
    assert (copied["files_before"], copied["files_after"]) == (3, 1)
    assert copied["bytes"] > 3_000


@pytest.mark.skipif(
    importlib.util.find_spec("feast_dynamo_ext.parquet.iceberg.optimize") is None,
    reason="this version has no optimize",
)
def test_optimized_rows_are_the_same_in_fewer_files(large):
    tables_client.fill(large)
    before = tables_client.checksum(large)
    done = tables_client.optimize(large)
    assert (done["files_before"], done["files_after"]) == (3, 1)
    assert tables_client.checksum(large) == before


# What is counted


def test_opened_files_are_counted_whoever_opens_them(tmp_path):
    (tmp_path / "day" / "deep").mkdir(parents=True)
    (tmp_path / "day" / "deep" / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    (tmp_path / "c").write_text("c")
    with files_opened(tmp_path) as opened:
        pa.OSFile(str(tmp_path / "day" / "deep" / "a")).close()
        subprocess.run(["cat", tmp_path / "b"], check=True, capture_output=True)
        list((tmp_path / "day").iterdir())
    assert opened == [tmp_path / "day" / "deep" / "a", tmp_path / "b"]


def test_memory_is_that_of_children_too():
    child = "import sys; held = b'1' * 100_000_000; print(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        of_child, of_both = memory_mb(process.pid), memory_mb(os.getpid())
        process.stdin.close()
    assert 95 < of_child < of_both
    assert memory_mb(process.pid) == 0.0


def test_a_digest_is_of_the_rows_whatever_their_order():
    table = pa.table({LABEL: [0.3, 0.1, 0.2], "a": [1.0, None, 3.0]})
    digest = offline_client.digest_of(table, [LABEL, "a"])
    assert offline_client.digest_of(table.take([2, 0, 1]), [LABEL, "a"]) == digest
    by_pandas = table.set_column(1, "a", pa.array(np.array([1.0, np.nan, 3.0])))
    assert offline_client.digest_of(by_pandas, [LABEL, "a"]) == digest
    other = table.set_column(1, "a", pa.array([1.0, 2.0, 3.0]))
    assert offline_client.digest_of(other, [LABEL, "a"]) != digest


# Figures, bars, reports


def test_scaled_sizes_keep_the_two_years():
    assert Sizes.scaled(1) == Sizes()
    small = Sizes.scaled(0.001)
    assert (small.days, small.rows_a_day, small.appends) == (730, 10, 18)
    assert (small.history.rows, small.optimized_bytes, small.file_rows) == (10_000, 5e6, 500)


def test_an_append_is_the_median_of_those_around_it():
    appended = Appended(TABLES, [float(number) for number in range(1, 31)], 5, 100)
    assert (appended.ms_at(10), appended.ms_at(30)) == (10.0, 26.0)  # of 6 to 14, of 22 to 30
    assert (appended.growth, appended.timed) == (2.6, [10, 30])
    thousand = Appended(TABLES, [1.0] * 1_000, 5, 100)
    assert thousand.timed == [10, 100, 500, 1_000]


def joined(case: str, contender: str, *seconds: float | None, answer: str = "") -> list[Joined]:
    made = OfflineCase(case, TINY, ())
    return [Joined(made, contender, one, 2.0, 100.0, 1_000.0, answer) for one in seconds]


def opened_by(contender: str, *opened: int) -> list[Opened]:
    more = {"files": 730, "wanted": 8, "found": 9, "digest": ""}
    return [Opened(contender, 1.0, 0.5, 90.0, 200.0, opened=one, **more) for one in opened]


RUNS = TableRuns(
    joined={
        "3 views, tables": {
            OURS: joined("3 views, tables", OURS, 2.0, 2.0),
            TABLES: joined("3 views, tables", TABLES, 2.0, 3.0),
        },
        "3 views, optimized": {
            OURS: joined("3 views, optimized", OURS, 2.0, 2.0),
            OPTIMIZED: joined("3 views, optimized", OPTIMIZED, 2.0, 2.0),
            DUCKDB: joined("3 views, optimized", DUCKDB, 8.0, 10.0),
        },
    },
    writes=["written"],
    weeks={PLAIN: opened_by(PLAIN, 730, 730), TABLES: opened_by(TABLES, 8, 9)},
    appends={TABLES: [Appended(TABLES, [10.0] * 14 + [20.0] * 5, 60, 1_500_000)]},
    rewrites={
        SORTED: [Rewritten(SORTED, 50.0, 60.0, 90.0, 1_400.0, 5_000_000_000, 900, 40)],
        TABLES: [Rewritten(TABLES, 100.0, 150.0, 90.0, 1_501.0, 5_000_000_000, 900, 38)],
    },
    skipped=["this"],
)


def test_every_bar_of_tables():
    held = bars.of_tables(RUNS)
    assert [(bar.name, bar.limit, figure.median, bar.is_met(figure)) for bar, figure in held] == [
        ("ours, tables/ours", 1.2, 1.25, False),  # 1 and 1.5
        ("ours, optimized/Feast, duckdb", 0.3, 0.225, True),  # 0.25 and 0.2
        ("data files opened, a week of 730 days", 8, 8.5, False),
        ("last/tenth of 19 appends", 2.0, 2.0, True),
        ("peak, optimize of 5.0 GB", 1_500.0, 1_501.0, False),
    ]


def test_what_was_not_run_or_did_not_end_holds_no_bar():
    assert bars.of_tables(TableRuns()) == []
    killed = joined("3 views, optimized", DUCKDB, None, 8.0, answer="killed after 120 s")
    of_case = {**RUNS.joined["3 views, optimized"], DUCKDB: killed}
    assert bars.of_tables(TableRuns({"3 views, optimized": of_case})) == []


def test_the_report_has_a_table_for_each_kind_of_case():
    printed = report.tables_report(RUNS)
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for line in (
        "written",
        "3 views, optimized Feast, duckdb 9.0 2.0 100 1000 right",
        "ours, plain files 730 730 1.00 0.50 200",
        "ours, tables 8.5 730 1.00 0.50 200",
        "ours, tables 10.0 20.0 2.00 (2.00-2.00) 60 1.5",
        "DuckDB, sorted copy 5.00 50.0 100 900 40 90 1400",
        "ours, tables 5.00 100.0 50 900 38 90 1501",
        "Skipped: this",
    ):
        assert line in lines
    as_json = json.loads(json.dumps(report.tables_as_json(RUNS)))
    assert as_json["week"][TABLES][1]["opened"] == 9
    assert as_json["3 views, tables"][OURS][0]["seconds"] == 2.0
