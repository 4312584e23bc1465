"""What is measured beside the stores: DuckDB's own ASOF JOIN, and reading the columns once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb
import pyarrow.dataset as ds
from offline_client import REGION
from offline_data import CREATED_TIME, ENTITY_TIME, EVENT_TIME, LABEL, TTL_DAYS
from pyarrow import fs
from workload import JOIN_KEY

if TYPE_CHECKING:
    import pyarrow as pa
    from offline_client import Task


def asof(task: Task) -> pa.Table | None:
    """All columns of all views in one ASOF JOIN; where two rows have one event time, either."""
    selected, joins = [f"e.{JOIN_KEY}, e.{ENTITY_TIME}, e.{LABEL}"], []
    for view in task.joined:
        alive = f"{view}.{EVENT_TIME} >= e.{ENTITY_TIME} - INTERVAL {TTL_DAYS} DAY"
        selected += [
            f"CASE WHEN {alive} THEN {view}.{name} END AS {name}"
            for name in task.dataset.features_of(view)
        ]
        joins.append(
            f"ASOF LEFT JOIN read_parquet('{task.folder / view}/*.parquet') AS {view} "
            f"ON e.{JOIN_KEY} = {view}.{JOIN_KEY} AND e.{ENTITY_TIME} >= {view}.{EVENT_TIME}"
        )
    statement = (
        f"SELECT {', '.join(selected)} FROM read_parquet('{task.entities}') AS e "  # noqa: S608 - our own names
        f"{' '.join(joins)}"
    )
    return connect(task).sql(statement).to_arrow_table()


def scan_pyarrow(task: Task) -> None:
    """Reads and decodes every column of the views, and keeps none."""
    filesystem = None
    if task.endpoint:
        filesystem = fs.S3FileSystem(endpoint_override=task.endpoint, region=REGION)
    for view in task.joined:
        columns = [JOIN_KEY, EVENT_TIME, CREATED_TIME, *task.dataset.features_of(view)]
        path = task.files_of(view).removeprefix("s3://")
        for _ in ds.dataset(path, filesystem=filesystem).to_batches(columns=columns):
            pass


def scan_duckdb(task: Task) -> None:
    connection = connect(task)
    for view in task.joined:
        columns = [JOIN_KEY, EVENT_TIME, CREATED_TIME, *task.dataset.features_of(view)]
        # What decodes them and costs least beyond that.
        most = ", ".join(f"max({name})" for name in columns)
        connection.execute(
            f"SELECT {most} FROM read_parquet('{task.folder / view}/*.parquet')"  # noqa: S608 - our own names
        ).fetchall()


def connect(task: Task) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"temp_directory": str(task.scratch)})


CONTENDERS = {"asof": asof, "scan_pyarrow": scan_pyarrow, "scan_duckdb": scan_duckdb}
