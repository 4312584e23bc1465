"""One step of the benchmark of history tables, in a process of its own.

`tables_client.py DO SETTINGS` does one of `STEPS` and prints its figures as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import offline_client
import offline_stores
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore
from offline_data import CREATED_TIME, ENTITY_TIME, EVENT_TIME, LABEL, START_S, Dataset
from opens import files_opened
from workload import JOIN_KEY

from feast_dynamo_ext.parquet.iceberg.catalog import opened
from feast_dynamo_ext.parquet.iceberg.commits import (
    Change,
    TableHandle,
    new_commit_id,
    planned,
)
from feast_dynamo_ext.parquet.iceberg.data_files import DataFiles
from feast_dynamo_ext.parquet.iceberg.table_schema import (
    SEQUENCE,
    TableLayout,
    create_table,
    first_sequence,
)
from feast_dynamo_ext.parquet.iceberg.view_table import Extent, partition_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from offline_client import Task

KEYS = (JOIN_KEY,)
ORDER = (JOIN_KEY, EVENT_TIME, CREATED_TIME, SEQUENCE)
TIMES = pa.timestamp("us", tz="UTC")
DAY_US, HOUR_US = 86_400_000_000, 3_600_000_000


def main() -> None:
    do, settings = sys.argv[1], json.loads(sys.argv[2])
    # Whatever spills does it where it is watched and removed.
    tempfile.tempdir = settings["scratch"]
    with offline_client.quiet():
        figures = STEPS[do](settings)
    print(json.dumps(figures))


def handle_of(folder: str, table: str, scratch: str) -> TableHandle:
    """A table of the SQL catalog in a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    config = offline_stores.config(offline_stores.OURS, Path(scratch))
    return TableHandle.from_source(offline_stores.table_source(table, Path(folder)), config)


def make(handle: TableHandle, columns: pa.Schema, partition: str) -> Any:
    catalog = opened(handle.address, handle.settings)
    layout = TableLayout(KEYS, EVENT_TIME, CREATED_TIME, partition)
    return create_table(catalog, handle.name, columns, layout)


def columns_of(features: Sequence[pa.Field]) -> pa.Schema:
    times = [pa.field(name, TIMES) for name in (EVENT_TIME, CREATED_TIME)]
    return pa.schema([pa.field(JOIN_KEY, pa.int64()), *times, *features])


def rows_at(
    dice: np.random.Generator, micros: NDArray[np.int64], keys: int, features: Sequence[str]
) -> pa.Table:
    """Rows with these event times, microseconds since the start; all else is drawn."""
    count, event = len(micros), micros + START_S * 1_000_000
    created = event + dice.integers(0, HOUR_US, count)
    values = [pa.array(dice.random(count)) for _ in features]
    drawn = [pa.array(dice.integers(0, keys, count))]
    drawn += [pa.array(times, TIMES) for times in (event, created)]
    schema = columns_of([pa.field(name, pa.float64()) for name in features])
    return pa.table([*drawn, *values], schema=schema)


# Training sets


def write(settings: dict[str, Any]) -> dict[str, Any]:
    """The history of `offline_data.py` into tables, one append a file, by Feast's own call."""
    done: dict[str, Any] = {}
    for which in ("warm", "measured"):
        done = write_views(offline_client.task(settings, which))
    return done


def write_views(task: Task) -> dict[str, Any]:
    store = offline_stores.declared(offline_stores.OURS, task)
    rows, seconds, partition = 0, 0.0, ""
    for view in task.dataset.view_names():
        paths = sorted((task.folder / view).iterdir())
        handle = handle_of(str(task.tables), view, str(task.scratch))
        partition = partition_of(paths)
        make(handle, columns_of(list(pq.read_schema(paths[0]))[3:]), partition)
        for path in paths:
            given = pd.read_parquet(path)
            started = time.perf_counter()
            store.write_to_offline_store(view, given)
            seconds += time.perf_counter() - started
            rows += len(given)
    return {"seconds": seconds, "rows": rows, "partition": partition}


def partition_of(paths: Sequence[Path]) -> str:
    """What `feast-dynamo table create` takes where these files are the history."""
    times = [pc.min_max(pq.read_table(path, columns=[EVENT_TIME])[EVENT_TIME]) for path in paths]
    first, last = (
        fold(one[end].value for one in times) for end, fold in (("min", min), ("max", max))
    )
    return partition_for(Extent(sum(path.stat().st_size for path in paths), first, last))[0]


# A week of two years


def week_data(settings: dict[str, Any]) -> dict[str, Any]:
    """Each day's rows as a plain file, and all in a table by day, one append for 30 of them."""
    for name, days in settings["days"].items():
        features = week_view(settings, name).features_of(name)
        folder = Path(settings["folder"], name)
        plain = folder / "plain"
        plain.mkdir(parents=True)
        handle = handle_of(str(folder), name, settings["scratch"])
        dice = np.random.default_rng((67, days))
        of_days = []
        for day in range(days):
            micros = np.sort(dice.integers(day * DAY_US, (day + 1) * DAY_US, settings["rows"]))
            of_days.append(rows_at(dice, micros, settings["keys"], features))
            pq.write_table(of_days[-1], plain / f"{day:03}.parquet", use_dictionary=False)
        make(handle, of_days[0].schema, "day")
        for first in range(0, days, APPENDED_DAYS):
            handle.append(pa.concat_tables(of_days[first : first + APPENDED_DAYS]))
    return {}


APPENDED_DAYS = 30


def week_view(settings: dict[str, Any], view: str) -> Dataset:
    days = settings["days"][view]
    rows = days * settings["rows"]
    return Dataset(1, rows, days, settings["features"], settings["keys"], settings["entities"])


def week(settings: dict[str, Any]) -> dict[str, Any]:
    """A training set of one week, and which data files were opened for it."""
    retrieve(settings, settings["warm"], 0)()
    run = retrieve(settings, settings["view"], settings["first_day"])
    folder = Path(settings["folder"], settings["view"])
    data = folder / ("warehouse" if settings["is_table"] else "plain")
    every = [path for path in data.rglob("*.parquet") if "metadata" not in path.parts]
    with files_opened(data) as seen:
        measured, table = offline_client.measure(run)
    features = week_view(settings, settings["view"]).features_of(settings["view"])
    return {
        **measured,
        "files": len(every),
        "opened": len(set(every) & set(seen)),
        "digest": offline_client.digest_of(table, [LABEL, *features]),
        "found": table.num_rows - table[features[0]].null_count,
    }


def retrieve(settings: dict[str, Any], view: str, first_day: int) -> Any:
    """The retrieval of a week of entity rows, from a table or from plain files."""
    folder, scratch = Path(settings["folder"], view), Path(settings["scratch"], view)
    scratch.mkdir()
    source = (
        offline_stores.table_source(view, folder)
        if settings["is_table"]
        else offline_stores.file_source(view, f"{folder}/plain")
    )
    declared = offline_stores.view_of(
        week_view(settings, view), view, source, ttl_days=settings["ttl_days"]
    )
    store = FeatureStore(config=offline_stores.config(offline_stores.OURS, scratch))
    store.apply([offline_stores.CUSTOMER, declared])
    dice, count = np.random.default_rng(67), settings["entities"]
    micros = dice.integers(first_day * DAY_US, (first_day + 7) * DAY_US, count)
    entities = pd.DataFrame(
        {
            JOIN_KEY: dice.integers(0, settings["keys"], count),
            ENTITY_TIME: pd.to_datetime(micros + START_S * 1_000_000, unit="us", utc=True),
            LABEL: dice.random(count),
        }
    )
    wanted = [f"{view}:{name}" for name in week_view(settings, view).features_of(view)]
    return lambda: store.get_historical_features(entities, wanted).to_arrow()


# Many appends


def append(settings: dict[str, Any]) -> dict[str, Any]:
    """Appends of an hour's rows each: milliseconds of each, and what metadata is left."""
    features = Dataset(1, 1, 1, settings["features"], 1, 1).features_of("appended")
    dice = np.random.default_rng(67)
    handle = handle_of(settings["folder"], "appended", settings["scratch"])
    columns = columns_of([pa.field(name, pa.float64()) for name in features])
    if settings["is_ours"]:
        make(handle, columns, "month")
        add = handle.append
    else:
        catalog = opened(handle.address, handle.settings)
        catalog.create_namespace_if_not_exists("bench")
        add = catalog.create_table(handle.name, columns).append
    times_ms = []
    for hour in range(settings["appends"]):
        micros = dice.integers(hour * HOUR_US, (hour + 1) * HOUR_US, settings["rows"])
        rows = rows_at(dice, micros, settings["keys"], features)
        started = time.perf_counter()
        add(rows)
        times_ms.append((time.perf_counter() - started) * 1_000)
    folder = Path(settings["folder"], "warehouse")
    metadata = [path for path in folder.rglob("metadata/*") if path.is_file()]
    counted = sum(task.file.record_count for task in planned(handle.load()).values())
    if counted != settings["appends"] * settings["rows"]:
        raise RuntimeError(f"{counted:,} rows are in the table: not all that were appended, once.")
    return {
        "times_ms": times_ms,
        "metadata_files": len(metadata),
        "metadata_bytes": sum(path.stat().st_size for path in metadata),
    }


# Optimize


def fill(settings: dict[str, Any]) -> dict[str, Any]:
    """A table of a size in many small files whose rows are in no order."""
    handle = handle_of(settings["folder"], settings["table"], settings["scratch"])
    names = [f"feature_{number:02}" for number in range(settings["features"])]
    doubles, texts = names[::2], names[1::2]
    fields = [pa.field(name, pa.float64()) for name in doubles]
    make(handle, columns_of([*fields, *(pa.field(name, pa.string()) for name in texts)]), "none")
    dice, size = np.random.default_rng(67), 0
    while size < settings["bytes"]:
        table = handle.load()
        files, written = DataFiles(table, handle.settings), []
        count = settings["files"] * settings["rows"]
        start = first_sequence(table.metadata.last_sequence_number, count)
        sequence = pa.array(np.arange(start, start + count))
        for first in range(0, count, settings["rows"]):
            rows = _unordered(dice, settings["rows"], settings["keys"], doubles, texts)
            of_file = sequence.slice(first, settings["rows"])
            batch = rows.append_column(pa.field(SEQUENCE, pa.int64()), of_file)
            written += files.write(None, [batch], is_sorted=False)
        handle.commit(Change(written), new_commit_id())
        size += sum(file.file_size_in_bytes for file in written)
    return {}


def _unordered(
    dice: np.random.Generator, count: int, keys: int, doubles: Sequence[str], texts: Sequence[str]
) -> pa.Table:
    rows = rows_at(dice, dice.integers(0, 365 * DAY_US, count), keys, doubles)
    for name in texts:
        numbers = pa.array(dice.integers(10**15, 10**18, count))
        rows = rows.append_column(pa.field(name, pa.string()), numbers.cast(pa.string()))
    return rows


def optimize(settings: dict[str, Any]) -> dict[str, Any]:
    """`feast-dynamo table optimize` with its defaults."""
    from feast_dynamo_ext.parquet.iceberg.optimize import optimize as rewrite

    handles = [
        handle_of(settings["folder"], table, settings["scratch"]) for table in settings["tables"]
    ]
    before = [_files(handle) for handle in handles]

    def run() -> None:
        for handle in handles:
            rewrite(handle)

    measured, _ = offline_client.measure(run)
    after = [_files(handle) for handle in handles]
    return {
        **measured,
        "bytes": sum(size for sizes in before for size in sizes),
        "files_before": sum(map(len, before)),
        "files_after": sum(map(len, after)),
    }


def _files(handle: TableHandle) -> list[int]:
    return [task.file.file_size_in_bytes for task in planned(handle.load()).values()]


def sorted_copy(settings: dict[str, Any]) -> dict[str, Any]:
    """The same rows in the same order by DuckDB, as plain files."""
    handle = handle_of(settings["folder"], settings["table"], settings["scratch"])
    sizes, paths = _files(handle), list(_paths(handle))
    out = Path(settings["scratch"], "sorted")
    connection = _duckdb(settings)
    order = ", ".join(ORDER)
    statement = (
        f"COPY (SELECT * FROM read_parquet({paths}) ORDER BY {order}) TO '{out}' "  # noqa: S608 - our own names
        "(FORMAT parquet, COMPRESSION zstd, FILE_SIZE_BYTES '128MB')"
    )

    def run() -> None:
        connection.execute(statement)

    measured, _ = offline_client.measure(run)
    return {
        **measured,
        "bytes": sum(sizes),
        "files_before": len(sizes),
        "files_after": len(list(out.iterdir())),
    }


def checksum(settings: dict[str, Any]) -> dict[str, Any]:
    """Of all rows of a table with their sequence, in whatever order."""
    handle = handle_of(settings["folder"], settings["table"], settings["scratch"])
    names = ", ".join(column.name for column in handle.load().schema().fields)
    rows, total = (
        _duckdb(settings)
        .execute(
            f"SELECT count(*), sum(hash({names})) FROM read_parquet({list(_paths(handle))})"  # noqa: S608 - our own names
        )
        .fetchone()
    )
    return {"rows": rows, "sum": str(total)}


def _paths(handle: TableHandle) -> Iterator[str]:
    for path in planned(handle.load()):
        yield path.removeprefix("file://")


def _duckdb(settings: dict[str, Any]) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(
        config={"temp_directory": settings["scratch"], "memory_limit": settings["memory"]}
    )


STEPS = {
    "write": write,
    "week data": week_data,
    "week": week,
    "append": append,
    "fill": fill,
    "optimize": optimize,
    "sorted copy": sorted_copy,
    "checksum": checksum,
}

if __name__ == "__main__":
    main()
