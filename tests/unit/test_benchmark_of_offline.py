"""What `make bench` needs for training sets: its history, contenders, limits, bars and tables."""

from __future__ import annotations

import dataclasses
import json
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import offline
import offline_bars
import offline_client
import offline_plain
import offline_stores
import report
from harness import Command
from offline import ASOF, DASK, DUCKDB, OURS, SCANS, Joined, OfflineCase
from offline_client import Task
from offline_data import Dataset
from offline_limits import Limits, watched

TINY = Dataset(views=2, rows=600, files=3, features=2, keys=20, entities=50)

# History


def test_the_history_is_the_same_each_time(tmp_path):
    for name in ("one", "two"):
        TINY.write(tmp_path / name)
    paths = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert [str(path) for path in paths] == [
        "entities.parquet",
        "expected.json",
        *(f"view_0{view}/00{file}.parquet" for view in range(2) for file in range(3)),
    ]
    for path in paths:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_other_settings_are_another_folder():
    names = {
        dataclasses.replace(TINY, **change).name
        for change in ({}, {"hot_keys": 1}, {"seed": 1}, {"features": 3}, {"entities": 51})
    }
    assert len(names) == 5


def test_a_view_s_files_hold_its_rows_in_no_order(tmp_path):
    TINY.write(tmp_path / "data")
    table = pq.read_table(tmp_path / "data" / "view_01")
    assert table.column_names == [
        "customer",
        "event_time",
        "created_time",
        "view_01_f000",
        "view_01_f001",
    ]
    assert table.num_rows == 600
    event, created = (table[name].to_numpy() for name in ("event_time", "created_time"))
    assert (created >= event).all()
    assert np.datetime64("2024-01-01") <= event.min() < event.max() < np.datetime64("2024-12-31")
    assert (np.diff(event) < np.timedelta64(0)).any()
    assert set(table["customer"].to_pylist()) == set(range(20))


def test_hot_keys_hold_their_share(tmp_path):
    dataclasses.replace(TINY, keys=1_000_000, rows=6_000, hot_keys=1).write(tmp_path / "data")
    keys = pq.read_table(tmp_path / "data" / "view_00")["customer"].to_numpy()
    assert 0.55 < (keys == 0).mean() < 0.65


def test_expected_rows_are_the_newest_within_the_ttl(tmp_path):
    day, hour = np.timedelta64(1, "D"), np.timedelta64(1, "h")
    now = np.datetime64("2024-06-01T00:00:00", "us")

    def write(file: int, rows: list[tuple[int, np.datetime64, np.datetime64, float]]) -> None:
        keys, event, created, values = (np.array(held) for held in zip(*rows, strict=True))
        columns = {"customer": keys, "event_time": event, "created_time": created}
        pq.write_table(pa.table(columns | {name: values}), tmp_path / "view_00" / f"{file}")

    one = dataclasses.replace(TINY, views=1, features=1)
    (name,) = one.features_of("view_00")
    (tmp_path / "view_00").mkdir()
    write(0, [(1, now, now, 1.0), (1, now - day, now, 2.0), (2, now + hour, now, 3.0)])
    write(1, [(1, now, now, 4.0), (2, now - 30 * day, now, 5.0)])
    write(2, [(1, now, now - hour, 6.0), (3, now - 30 * day - hour, now, 7.0)])
    pq.write_table(
        pa.table({"customer": [1, 2, 3], "seen_at": [now] * 3, "label": [0.1, 0.2, 0.3]}),
        tmp_path / "entities.parquet",
    )
    assert one.expected(tmp_path) == [
        {"label": 0.1, name: 4.0},  # of equal times the later file's
        {"label": 0.2, name: 5.0},  # the ttl's bound is included
        {"label": 0.3, name: None},
    ]


# Contenders


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline") / "data"
    TINY.write(folder)
    return folder


def a_task(data: Path, scratch: Path, **more) -> Task:
    return Task(
        **{"dataset": TINY, "folder": data, "views": 2, "out": None, **more, "scratch": scratch}
    )


def test_ours_makes_the_right_table(data, tmp_path):
    task = a_task(data, tmp_path)
    table = offline_stores.retrieval(offline_stores.OURS, task)()
    assert table.num_rows == 50
    assert offline_client.check(table, task) == ""


def test_ours_makes_the_right_files(data, tmp_path):
    task = a_task(data, tmp_path, out=tmp_path / "out")
    assert offline_stores.retrieval(offline_stores.OURS, task)() is None
    assert offline_client.check(None, task) == ""


def test_the_plain_join_is_right_of_one_view_too(data, tmp_path):
    task = a_task(data, tmp_path, views=1)
    table = offline_plain.asof(task)
    assert table.column_names[3:] == ["view_00_f000", "view_00_f001"]
    assert offline_client.check(table, task) == ""


def test_a_wrong_training_set_is_told_from_a_right_one(data, tmp_path):
    task = a_task(data, tmp_path)
    table = offline_plain.asof(task)
    assert offline_client.check(table.slice(1), task) == "49 rows of 50"
    by_another = table.set_column(3, "view_00_f000", table["view_00_f001"])
    expected = json.loads((data / "expected.json").read_text())
    seen = sum(row["view_00_f000"] is not None for row in expected)
    assert offline_client.check(by_another, task) == f"{seen} of 40 rows wrong"
    unsorted = table.take(np.random.default_rng(1).permutation(50))
    assert offline_client.check(unsorted, task) == ""


@pytest.mark.slow
def test_a_whole_run(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    case = OfflineCase("3 views", TINY, (ASOF, SCANS[0]), once=(ASOF, SCANS[0]))
    runs = offline.run(2, [case])
    assert {name: len(done) for name, done in runs["3 views"].items()} == {ASOF: 1, SCANS[0]: 1}
    (scan,) = runs["3 views"][SCANS[0]]
    assert (scan.answer, scan.seconds > 0, scan.peak_mb >= scan.start_mb > 20) == ("", True, True)
    # Kept for the next run, and nothing else.
    assert TINY.name in {path.name for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 2


# Limits


@pytest.mark.parametrize(
    ("script", "limits", "failure"),
    [
        ("signal.pause()", Limits(0.3, 9_000, 0), "killed after 0 s"),
        ("a = b'1' * 200_000_000; signal.pause()", Limits(60, 150, 0), "killed at 150 MB"),
        ("signal.pause()", Limits(60, 9_000, 1e12), "killed: it had filled the disk"),
        ("sys.exit('no such table')", Limits(60, 9_000, 0), "exit code 1: no such table"),
        ("print('done')", Limits(60, 9_000, 0), ""),
    ],
)
def test_a_contender_s_limits(tmp_path, script, limits, failure):
    command = Command("it", Path(sys.executable), ("-c", f"import signal, sys; {script}"))
    ended = watched(command, tmp_path, limits)
    assert (ended.failure, ended.printed) == (failure, "" if failure else "done\n")


# Cases, bars, tables


def test_cases_of_one_dataset_stand_together():
    todo = offline.cases(full=True)
    datasets = [dataset for dataset, _ in groupby(todo, key=lambda case: case.dataset)]
    assert len(datasets) == len(set(datasets)) == 6
    assert [case.name for case in todo if "100 M" in case.name] == ["100 M rows"]
    assert "100 M rows" not in {case.name for case in offline.cases()}


def test_scaled_rows_fill_their_files():
    scaled = offline.scaled(offline.SKEWED, 0.00013)
    assert (scaled.rows, scaled.keys, scaled.entities, scaled.hot_keys) == (1_300, 65, 130, 1)
    assert offline.scaled(offline.YEAR, 1) == offline.YEAR


def joined(name: str, contender: str, seconds: list[float | None], peak_mb: float, answer=""):
    (case,) = (one for one in offline.cases(full=True) if one.name == name)
    return [Joined(case, contender, one, 2.0, 100.0, peak_mb, answer) for one in seconds]


RUNS = {
    "3 views": {
        OURS: joined("3 views", OURS, [4.0, 6.0, 5.0], 1_100.0),
        DUCKDB: joined("3 views", DUCKDB, [10.0, 12.0, 20.0], 1_600.0),
        DASK: joined("3 views", DASK, [None], 20_001.0, "killed at 20,000 MB"),
        SCANS[0]: joined("3 views", SCANS[0], [1.0, 2.0, 2.0], 500.0),
        SCANS[1]: joined("3 views", SCANS[1], [2.0, 1.0, 3.0], 500.0),
    },
    "even keys": {OURS: joined("even keys", OURS, [2.0, 2.0, 2.0], 500.0)},
    "one key hot": {OURS: joined("one key hot", OURS, [3.0, 5.0, 5.0], 500.0)},
    "1,000 features": {OURS: joined("1,000 features", OURS, [9.0, 9.5, 9.9], 1_600.0)},
    "100 M rows": {OURS: joined("100 M rows", OURS, [90.0], 2_900.0)},
}


def test_every_bar_of_training_sets():
    held = offline_bars.of_offline(RUNS)
    assert [(bar.name, bar.limit, figure.median, bar.is_met(figure)) for bar, figure in held] == [
        ("ours/Feast duckdb, 3 views", 0.33, 0.4, False),  # 0.4, 0.5 and 0.25
        ("ours/fastest scan, 3 views", 4.0, 4.0, True),  # 4/1, 6/1 and 5/2
        ("ours/even keys, one key hot", 2.0, 2.5, False),
        ("time, 1,000 features", 10.0, 9.5, True),
        ("peak, 3 views", 1_200.0, 1_100.0, True),
        ("peak, 1,000 features", 1_500.0, 1_600.0, False),
        ("peak, 100 M rows", 3_000.0, 2_900.0, True),
    ]


def test_what_did_not_end_holds_no_bar():
    killed = joined("3 views", DUCKDB, [None, 12.0, 20.0], 1_600.0, "killed after 120 s")
    held = offline_bars.of_offline({"3 views": {**RUNS["3 views"], DUCKDB: killed}})
    assert [bar.name for bar, _ in held] == ["ours/fastest scan, 3 views", "peak, 3 views"]


def test_the_table_says_who_failed_and_how():
    lines = report.offline_table({"3 views": RUNS["3 views"]}).splitlines()[2:]
    assert [" ".join(line.split()) for line in lines] == [
        "3 views ours 5.0 2.0 100 1100 right",
        "3 views Feast, duckdb 12.0 2.0 100 1600 right",
        "3 views Feast, dask - - - 20001 killed at 20,000 MB",
        "3 views scan, pyarrow 2.0 2.0 100 500 -",
        "3 views scan, DuckDB 2.0 2.0 100 500 -",
    ]
