"""Area `retrievals`: what the offline store answers, by every plan."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from feast import FeatureService
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.monitoring.monitoring_service import MonitoringService
from golden_history import DAY, HOUR, START, customers, hours, open_stores, write_histories
from golden_record import frame_record, outcome, table_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast import FeatureStore

UTC = dt.timezone.utc
GENERATED = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}"
)
ALL = ["ties:total", "ties:note", "recent:total", "pairs:amount", "world:rate", "hive:value"]


def cases(folder: Path) -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """Name -> entity rows, features and options of a retrieval."""
    rows = customers()
    frame = rows.to_pandas()
    full = {"full_feature_names": True}
    devices = pa.table(
        {"did": [b"\xff", b"", b"\x00a", b"?"], "event_timestamp": hours(0, 0, 1, 24)}
    )
    friends = pa.table(
        {
            "cid": [1, 2],
            "friend_id": [2, 1],
            "price": [10.0, 20.0],
            "event_timestamp": hours(2, 3),
        }
    )
    dates = {"start_date": START - DAY, "end_date": START + 2 * HOUR}
    nanoseconds = rows.set_column(
        3, "event_timestamp", pa.array([1_736_467_200_000_000_001 + 3_600_000_000_000 * at
                                        for at in range(10)], pa.timestamp("ns")),
    )  # fmt: skip
    rows_file, csv_file = folder / "asked" / "rows.parquet", folder / "asked" / "rows.csv"
    rows_file.parent.mkdir()
    pq.write_table(rows.slice(0, 4), rows_file, row_group_size=2)
    pyarrow.csv.write_csv(rows.slice(0, 4), csv_file)
    rows_file = str(rows_file.relative_to(folder))
    return {
        "arrow": (rows, ALL, full),
        "pandas": (frame, ["ties:total", "pairs:amount"], {}),
        "created by then": (rows, ["ties:total", "recent:total"], {
            **full, "filter_by_created_timestamp": True}),
        "times without a zone": (customers("ms", None), ["ties:total"], {}),
        "times of Berlin": (customers("s", "Europe/Berlin"), ["ties:total"], {}),
        "times in ns": (nanoseconds, ["ties:total", "pairs:amount"], {}),
        "all types": (rows, ["pairs:amount", "pairs:many", "pairs:exact", "pairs:moment",
                             "pairs:record"], {}),
        "hive": (rows, ["hive:value", "hive:region"], {}),
        "days": (rows, ["daily:value", "daily:dt"], {}),
        "months and a field mapping": (rows, ["monthly:worth"], {}),
        "files of two schemas": (rows, ["widening:count", "widening:extra"], {}),
        "bytes and dates": (devices, ["bytes:seen"], {}),
        "without entities": (rows.select(["event_timestamp"]), ["world:rate"], {}),
        "on demand": (friends, ["ties:total", "priced:priced", "priced:mean"], {}),
        "a service": (friends, "friends", full),
        "a reader": (lambda: rows.to_reader(max_chunksize=3), ["ties:total"], {}),
        "Parquet": (rows_file, ["ties:total"], {}),
        "CSV": (str(csv_file), ["ties:total"], {}),
        "SQL": (
            "SELECT cid, t + INTERVAL 1 HOUR AS event_timestamp, max(total) AS most FROM ties "
            "WHERE cid IS NOT NULL AND t IS NOT NULL GROUP BY ALL ORDER BY cid, event_timestamp",
            ["ties:total", "world:rate"], {}),
        "every change": (None, ["ties:total", "world:rate"], dates),
        "every change of pairs": (None, ["pairs:amount", "ties:total"], {**full, **dates}),
        "every change created by then": (None, ["ties:total"], {
            **dates, "filter_by_created_timestamp": True}),
        "no change": (None, ["ties:total"], {
            "start_date": START - 9 * DAY, "end_date": START - 8 * DAY}),
        # Errors
        "no such files": (rows, ["lost:value"], {}),
        "no such column": (rows, ["lacking:missing"], {}),
        "no key": (rows.drop_columns("sid"), ["pairs:amount"], {}),
        "no event time": (rows.drop_columns("event_timestamp"), ["ties:total"], {}),
        "no rows": (rows.slice(0, 0), ["ties:total"], {}),
        "keys of another type": (
            rows.set_column(0, "cid", rows["cid"].cast(pa.string())), ["ties:total"], {}),
        "a name twice": (rows.rename_columns(
            ["cid", "sid", "total", "event_timestamp"]), ["ties:total"], {}),
        "no request data": (friends.drop_columns("price"), ["priced:priced"], {}),
        "two features of one name": (rows, ["ties:total", "recent:total"], {}),
        "SQL that reads a file": (
            "SELECT * FROM read_parquet('asked/rows.parquet')", ["ties:total"], {}),
        "SQL of an unknown table": ("SELECT * FROM tiez", ["ties:total"], {}),
        "no such file of rows": ("asked/none.parquet", ["ties:total"], {}),
    }  # fmt: skip


def retrievals_record(folder: Path) -> dict[str, Any]:
    write_histories(folder)
    stores = open_stores(folder)
    found: dict[str, Any] = {}
    for name, (rows, features, options) in cases(folder).items():
        # DuckDB finds the rows itself where there are none or SQL; 2 KB are too few for it.
        is_found = rows is None or str(rows).startswith("SELECT")
        answers = {
            plan: outcome(_answer(store, rows, features, options))
            for plan, store in stores.items()
            if plan != "stream in blocks" or not is_found
        }
        first = answers["stream"]
        found[name] = {"answer": first} | {
            f"answer of {plan}": answer for plan, answer in answers.items() if answer != first
        }
    store = stores["stream"]
    found |= {
        "statement: " + name: outcome(lambda name=name: _by_statement(store, name, folder))
        for name in ("arrow", "created by then", "hive", "days", "months and a field mapping",
                     "files of two schemas", "without entities", "Parquet", "every change")
    }  # fmt: skip
    # A folder of each, as their results are files.
    (folder / "written").mkdir()
    return {"point in time": found, "other": _others(stores, folder)}


def _others(stores: dict[str, FeatureStore], folder: Path) -> dict[str, Any]:
    """What else the offline store does: ranges, explanations, files that it writes, metrics."""
    store = stores["stream"]
    found: dict[str, Any] = {}
    found |= _pulls(store)
    rows = customers()
    for plan, one in stores.items():
        job = one.get_historical_features(
            rows,
            ["ties:total", "daily:value", "hive:value", "world:rate"],
            full_feature_names=True,
        )
        found[f"explain, {plan}"] = {"text": str(job.explain()).split("\n"),
                                     "dict": job.explain().to_dict()}  # fmt: skip
    job = store.get_historical_features(rows, ["ties:total", "ties:note"])
    found["to_df"] = frame_record(job.to_df())
    found["batches of at most 4 rows"] = [
        table_record(pa.Table.from_batches([batch])) for batch in job.to_arrow_batches(4)
    ]
    found["metadata"] = outcome(lambda: vars(job.metadata))
    found["files of to_remote_storage"] = [
        file_record(path) for path in map(_local, job.to_remote_storage())
    ]
    found |= _saved(store, folder)
    found |= _appended(store, folder)
    found |= _logged(store, folder)
    found["metrics"] = _metrics(store)
    return found


def _local(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def file_record(path: Path) -> dict[str, Any]:
    """Rows of a Parquet file, and how they are kept; sizes are left out."""
    file = pq.ParquetFile(path)
    table = file.read()
    metadata = file.metadata
    kept = [
        metadata.row_group(0).column(at).compression for at in range(metadata.num_columns)
    ] if metadata.num_row_groups else []  # fmt: skip
    own = {
        name.decode(): text.decode()
        for name, text in (table.schema.metadata or {}).items()
        if name != b"ARROW:schema"
    }
    return table_record(table) | {
        "row groups": [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)],
        "compression": sorted(set(kept)),
        "metadata": own,
    }


def tree_record(folder: Path) -> dict[str, Any]:
    """Every file below a folder, by path; generated names are replaced."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        name = GENERATED.sub("<id>", str(path.relative_to(folder)))
        one = file_record(path) if path.suffix == ".parquet" else path.read_bytes()
        found.setdefault(name, []).append(one)
    return {name: sorted(files, key=repr) for name, files in found.items()}


def _pulls(store: FeatureStore) -> dict[str, Any]:
    """`pull_latest` and `pull_all`, which materialization and transformations call."""
    offline, found = store.provider.offline_store, {}
    for name, keys, features, made in (
        ("ties", ["cid"], ["total", "note"], "made"),
        ("pairs", ["sid", "cid"], ["amount", "many"], None),
        ("daily", ["cid"], ["value", "dt"], None),
        ("monthly", ["customer_number"], ["VALUE"], None),
        ("world", [], ["rate"], None),
        ("widening", ["cid"], ["count", "extra"], None),
    ):
        source = store.get_feature_view(name).batch_source
        given = (source, keys, features, "t", made, START - 9 * DAY, START + HOUR)
        newest = offline.pull_latest_from_table_or_query(store.config, *given)
        every = offline.pull_all_from_table_or_query(store.config, *given)
        everything = offline.pull_all_from_table_or_query(
            store.config, source, keys, [], "t", None, None, None
        )
        found[f"pull_latest of {name}"] = outcome(
            lambda job=newest: _sorted_record(table_record(job.to_arrow()))
        )
        found[f"pull_all of {name}"] = outcome(lambda job=every: table_record(job.to_arrow()))
        found[f"pull_all of {name}, all columns"] = outcome(
            lambda job=everything: table_record(job.to_arrow())
        )
        found[f"explain of pull_latest of {name}"] = outcome(
            lambda job=newest: str(job.explain()).split("\n")
        )
        for kind, job in (("pull_latest", newest), ("pull_all", every)):
            found[f"statement: {kind} of {name}"] = outcome(
                lambda job=job: _sorted_record(statement_record(job.to_sql(), None))
            )
    return found


def _sorted_record(record: dict[str, Any]) -> dict[str, Any]:
    """Rows in an order of their own: that of pull_latest is free."""
    return {**record, "rows": sorted(record["rows"], key=repr)}


def _saved(store: FeatureStore, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, path in (("one", "written/one.parquet"), ("many", "written/many")):
        storage = SavedDatasetFileStorage(path=str(folder / path))
        rows = customers().slice(0, 3)

        def save(
            overwrite: bool, name: str = name, storage: Any = storage, rows: Any = rows
        ) -> Any:
            store.create_saved_dataset(
                from_=store.get_historical_features(rows, ["ties:total"]),
                name=name, storage=storage, allow_overwrite=overwrite,
            )  # fmt: skip
            return frame_record(store.get_saved_dataset(name).to_df())

        found[f"saved dataset {name}"] = outcome(lambda: save(False))
        found[f"saved dataset {name} again"] = outcome(lambda: save(False))
        found[f"saved dataset {name}, replaced"] = outcome(lambda: save(True))
    found["entity rows of a saved dataset, by SQL"] = outcome(lambda: table_record(
        store.get_historical_features(
            "SELECT cid, event_timestamp FROM many ORDER BY cid, event_timestamp", ["ties:total"]
        ).to_arrow()))  # fmt: skip
    return found | {"files of saved datasets": tree_record(folder / "written")}


def _appended(store: FeatureStore, folder: Path) -> dict[str, Any]:
    """Rows written to history, as by a push to the offline store."""
    one, two = {"cid": [7], "t": hours(5)}, {"cid": [7, 8], "t": hours(5, 30)}
    given: dict[str, dict[str, Any]] = {
        "ties": {**one, "made": hours(6), "total": [1.0], "note": ["n"]},
        "hive": {**two, "value": [1, 2], "dt": ["2025-01-10"] * 2, "region": ["eu", None]},
        "daily": {**two, "value": [3, 4], "region": ["us", "us"]},
        "monthly": {"customer_number": [7], "t": hours(5), "VALUE": [1]},
        "lost": {**one, "value": [1]},
        "pairs": one,
        "widening": {**one, "count": ["much"], "extra": ["x"]},
        "bytes": {"did": [b"x"], "t": hours(5), "seen": [1]},
    }
    rows = {name: pa.table(columns) for name, columns in given.items()}
    answers = {}
    for name, table in rows.items():
        view = store.get_feature_view(name)
        answers[name] = outcome(
            lambda view=view, table=table: store.provider.offline_store.offline_write_batch(
                store.config, view, table, None
            )
        )
    found: dict[str, Any] = {}
    for name in ("ties", "hive", "months", "nowhere", "widening"):
        if not (folder / name).exists():
            continue
        found |= {
            f"{name}/{path}": files
            for path, files in tree_record(folder / name).items()
            if "<id>" in path
        }
    return {"answers of offline_write_batch": answers, "appended files": found}


def _logged(store: FeatureStore, folder: Path) -> dict[str, Any]:
    view = store.get_feature_view("ties")
    times = hours(0, 24)
    logs = pa.table(
        {
            "cid": [1, 2],
            "ties__total": pa.nulls(2),  # nothing was found: a chunk has no type of its own
            "ties__total__timestamp": times,
            "ties__total__status": [1, 1],
            "__log_timestamp": times,
            "__log_date": [START.date(), (START + DAY).date()],
            "__request_id": ["r1", "r2"],
        }
    )
    found: dict[str, Any] = {}
    for name, columns in (("plain", None), ("parted", ["__log_date"])):
        path = folder / "logs" / name
        destination = FileLoggingDestination(path=str(path), partition_by=columns)
        service = FeatureService(
            name=f"logged_{name}", features=[view[["total"]]],
            logging_config=LoggingConfig(destination),
        )  # fmt: skip
        store.registry.apply_feature_service(service, "p")
        store.write_logged_features(logs, service)
        answer = store.provider.retrieve_feature_service_logs(
            service, START, START + HOUR, store.config, store.registry
        )
        table = answer.to_arrow()  # Feast asks for the columns of a set
        found[f"logs read back, {name}"] = table_record(table.select(sorted(table.column_names)))
        found[f"files of logs, {name}"] = tree_record(path)
    wrong = logs.drop_columns("__request_id")
    found["logs that lack a column"] = outcome(lambda: store.write_logged_features(wrong, service))
    return found


def _metrics(store: FeatureStore) -> dict[str, Any]:
    offline, found = store.provider.offline_store, {}
    for name, columns in (
        ("ties", [("total", "numeric"), ("note", "categorical")]),
        ("pairs", [("amount", "numeric"), ("exact", "numeric"), ("sid", "categorical")]),
        ("widening", [("count", "numeric"), ("extra", "categorical"), ("nothing", "numeric")]),
        ("hive", [("value", "numeric"), ("region", "categorical"), ("value", "categorical")]),
        ("bytes", [("seen", "numeric")]),
        ("world", [("rate", "numeric")]),
        ("ties", [("note", "numeric")]),
    ):
        source = store.get_feature_view(name).batch_source
        for window in ((None, None), (START, START + HOUR), (START - 9 * DAY, START - 8 * DAY)):
            words = ["any time" if one is None else str(one) for one in window]
            found[f"{name} {columns} {words}"] = outcome(
                lambda source=source, columns=columns, window=window: (
                    offline.compute_monitoring_metrics(
                        store.config, source, columns, "t", *window, histogram_bins=4, top_n=2
                    )
                )
            )
        found[f"newest event of {name}"] = offline.get_monitoring_max_timestamp(
            store.config, source, "t"
        )
    service = MonitoringService(store)
    computed = service.compute_baseline("p", "ties")
    found["baseline of ties"] = {**computed, "duration_ms": "<now>"}
    found["baseline read back"] = [
        {**row, "computed_at": "<now>", "metric_date": "<today>"}
        for row in service.get_baseline("p", "ties")
    ]
    return found


def _answer(store: FeatureStore, *asked: Any) -> Callable[[], Any]:
    return lambda: table_record(_job(store, *asked).to_arrow())


def _job(store: FeatureStore, rows: Any, features: Any, options: dict[str, Any]) -> Any:
    rows = rows() if callable(rows) else rows
    asked = store.get_feature_service(features) if isinstance(features, str) else features
    return store.get_historical_features(rows, asked, **options)


_CASES: dict[str, Any] = {}


def _by_statement(store: FeatureStore, name: str, folder: Path) -> Any:
    """What DuckDB answers to `to_sql`, as texts: its types are its own."""
    if not _CASES.get(str(folder)):
        for path in (folder / "asked").iterdir():
            path.unlink()
        (folder / "asked").rmdir()
        _CASES.clear()
        _CASES[str(folder)] = cases(folder)
    rows, features, options = _CASES[str(folder)][name]
    job = _job(store, rows, features, options)
    statement, entity_df = job.to_sql(), job.entities.table
    return statement_record(statement, entity_df)


def statement_record(statement: str, entity_df: Any) -> dict[str, Any]:
    connection = duckdb.connect()
    try:
        if entity_df is not None:
            connection.register("entity_df", entity_df)
        connection.execute("SET TimeZone = 'UTC'")
        return table_record(connection.sql(statement).to_arrow_table())
    finally:
        connection.close()
