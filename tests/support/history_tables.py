"""History tables of an SQL catalog in a folder, for tests of what is done with them."""

from __future__ import annotations

import datetime as dt
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast.infra.data_sources.contrib.iceberg_catalog import IcebergSource
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
)
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _FastAppendFiles
from repos import repo_config

from feast_dynamo_ext.parquet.iceberg.catalog import CatalogAddress, opened
from feast_dynamo_ext.parquet.iceberg.commits import Change, TableHandle, new_commit_id
from feast_dynamo_ext.parquet.iceberg.data_files import DataFiles, in_order, partitions_of
from feast_dynamo_ext.parquet.iceberg.table_schema import SEQUENCE, TableLayout, create_table

UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 1, tzinfo=UTC)
HOUR = dt.timedelta(hours=1)
NAME = "shop.orders"
TIMES = pa.timestamp("us", "UTC")
COLUMNS = pa.schema(
    [
        ("cid", pa.int64()),
        ("event", TIMES),
        ("created", TIMES),
        ("amount", pa.float64()),
        ("note", pa.string()),
    ]
)


def places(folder: Path) -> dict[str, str]:
    """Where an SQL catalog in a folder is, in pyiceberg's words."""
    return {"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}


def source_of(folder: Path, **more: Any) -> IcebergSource:
    """The table in a folder as a source."""
    at = places(folder)
    settings = {
        "name": "orders",
        "catalog_type": "sql",
        "endpoint": at["uri"],
        "warehouse": at["warehouse"],
        "namespace": "shop",
        "table": "orders",
        "timestamp_field": "event",
        "created_timestamp_column": "created",
    }
    return IcebergSource(**{**settings, **more})


def handle_of(folder: Path) -> TableHandle:
    """The table in a folder."""
    return TableHandle.from_source(source_of(folder), repo_config(folder))


def new_table(
    folder: Path,
    partition: str = "none",
    keys: tuple[str, ...] = ("cid",),
    columns: pa.Schema = COLUMNS,
    times: tuple[str, str | None] = ("event", "created"),
    **properties: str,
) -> TableHandle:
    """A table in a folder, without rows; `times` are its columns of event and created time."""
    handle = handle_of(folder)
    made = create_table(
        opened(
            CatalogAddress.from_source(source_of(folder), repo_config(folder)), handle.settings
        ),
        NAME,
        columns,
        TableLayout(keys, *times, partition),
    )
    if properties:
        with made.transaction() as transaction:
            transaction.set_properties(properties)
    return handle


def rows(*values: tuple[Any, ...]) -> pa.Table:
    """Rows of (cid, hour, hour of creation or None, amount, note)."""
    made = [
        (cid, START + hour * HOUR, None if created is None else START + created * HOUR, *rest)
        for cid, hour, created, *rest in values
    ]
    columns = list(zip(*made, strict=True)) or [[]] * len(COLUMNS)
    return pa.table(
        {
            field.name: pa.array(part, field.type)
            for field, part in zip(COLUMNS, columns, strict=True)
        },
        schema=COLUMNS,
    )


def contents(handle: TableHandle, snapshot: int | None = None) -> list[str]:
    """All rows but the sequence, as texts in order, by pyiceberg's own scan."""
    found = handle.load().scan(snapshot_id=snapshot).to_arrow()
    names = [name for name in found.column_names if name != "_feast_sequence"]
    return sorted(map(str, found.select(names).to_pylist()))


def append_sequenced(handle: TableHandle, new: pa.Table, sequence: list[int]) -> None:
    """Append rows with a sequence, as a commit that begins from another version of the table."""
    table = handle.load()
    layout = TableLayout.from_table(table)
    assert layout is not None
    files = DataFiles(table, handle.settings)
    ordered = in_order(new.append_column(SEQUENCE, pa.array(sequence, pa.int64())), layout)
    written: list[Any] = []
    for partition, part in partitions_of(table, ordered):
        written += files.write(partition, [part], is_sorted=True)
    handle.commit(Change(written), new_commit_id())


def append_unsequenced(handle: TableHandle, new: pa.Table) -> None:
    """Append rows as another engine does, which knows nothing of the sequence."""
    handle.load().append(new.append_column(SEQUENCE, pa.nulls(len(new), pa.int64())))


def delete_rows(handle: TableHandle, path: str, positions: list[int]) -> None:
    """Delete rows of a data file by their positions, as other engines do."""
    table = handle.load()
    (task,) = (task for task in table.scan().plan_files() if task.file.file_path == path)
    local = f"{table.location().removeprefix('file://')}/data/{uuid.uuid4().hex}.parquet"
    schema = pa.schema(
        [
            pa.field("file_path", pa.string(), False, {"PARQUET:field_id": "2147483546"}),
            pa.field("pos", pa.int64(), False, {"PARQUET:field_id": "2147483545"}),
        ]
    )
    pq.write_table(
        pa.table({"file_path": [path] * len(positions), "pos": positions}, schema=schema), local
    )
    file = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=f"file://{local}",
        file_format=FileFormat.PARQUET,
        partition=task.file.partition,
        record_count=len(positions),
        file_size_in_bytes=Path(local).stat().st_size,
        equality_ids=None,
    )
    file.spec_id = task.file.spec_id
    with table.transaction() as transaction:
        producer = _AddDeletes(Operation.DELETE, transaction, table.io)
        producer.files = [file]
        producer.commit()


class _AddDeletes(_FastAppendFiles):
    """A commit of files of deleted rows, which pyiceberg reads and does not write."""

    files: list[Any] = []  # noqa: RUF012

    def _manifests(self) -> list[Any]:
        spec = self.spec(self.files[0].spec_id)
        output = self.new_manifest_output()
        writer = ManifestWriterV2(spec, self.schema(), output, self._snapshot_id, "deflate")
        writer.content = lambda: ManifestContent.DELETES
        with writer:
            for file in self.files:
                writer.add(
                    ManifestEntry.from_args(
                        status=ManifestEntryStatus.ADDED,
                        snapshot_id=self._snapshot_id,
                        data_file=file,
                    )
                )
        return [writer.to_manifest_file(), *self._existing_manifests()]
