"""What was imported stays known: whatever expires, is erased, or is rolled back."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.types import Int64
from repos import repo_config
from views import customer_view, parquet_files

from feast_dynamo_ext.errors import SourceReadError, TableImportError
from feast_dynamo_ext.parquet.iceberg.erase import erase
from feast_dynamo_ext.parquet.iceberg.expire import expire
from feast_dynamo_ext.parquet.iceberg.import_files import run_import
from feast_dynamo_ext.parquet.iceberg.import_plan import plan_import
from feast_dynamo_ext.parquet.iceberg.import_record import go_back
from feast_dynamo_ext.parquet.iceberg.snapshot_files import tidy_after_append
from feast_dynamo_ext.parquet.iceberg.snapshots import history, rollback, tag
from feast_dynamo_ext.parquet.iceberg.view_table import IMPORTED, handle_of

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
FAR = dt.datetime(2999, 1, 1, tzinfo=dt.timezone.utc)


def rows(*keys: int) -> pa.Table:
    """A row of each key."""
    times = pa.array([START] * len(keys), pa.timestamp("us", "UTC"))
    return pa.table({"cid": pa.array(keys, pa.int64()), "event_timestamp": times, "value": keys})


class Case:
    """A view with one file, which is imported."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, repo_config(folder, catalog="sql")
        self.view = customer_view(source=parquet_files(folder / "orders"), value=Int64)
        self.write("a", 1, 2)
        self.handle = handle_of(self.view, self.config)
        assert self.import_() == 1

    def write(self, name: str, *keys: int) -> None:
        path = self.folder / "orders" / f"cid={name}"
        path.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows(*keys), path / "part.parquet")

    def import_(self) -> int:
        return run_import(plan_import(self.view, self.config), self.config).files

    def append(self, *keys: int) -> None:
        self.handle.append(rows(*keys))

    @property
    def keys(self) -> list[int]:
        return sorted(self.handle.load().scan().to_arrow().column("cid").to_pylist())

    @property
    def newest(self) -> int:
        return history(self.handle)[0].snapshot_id


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


@pytest.mark.parametrize("is_tagged", [True, False])
def test_an_import_is_not_repeated_after_its_snapshot_is_expired(case, is_tagged):
    if is_tagged:  # then it stays, and what came of it is expired
        tag(case.handle, "v1")
    case.append(7)
    case.append(8)
    assert erase(case.handle, {"cid": 2}).rows == 1
    assert expire(case.handle, FAR).expired
    assert len(history(case.handle)) == 1 + is_tagged
    assert case.import_() == 0
    assert case.keys == [1, 7, 8]
    case.write("b", 3)
    assert case.import_() == 1
    assert case.keys == [1, 3, 7, 8]
    case.write("a", 1, 2, 5)
    with pytest.raises(TableImportError, match=r"cid=a/part\.parquet was replaced after it was"):
        case.import_()


def test_an_import_is_not_repeated_after_the_tidying_of_appends(case):
    tag(case.handle, "v1")
    for _ in range(4):
        case.append(9)
    tidy_after_append(case.handle.load(), case.handle.settings, most=2, kept=1)
    assert [info.tags for info in history(case.handle)] == [(), ("v1",)]
    assert case.import_() == 0
    assert case.keys == [1, 2, 9, 9, 9, 9]


def test_what_a_rollback_undid_can_be_imported_again_after_it_is_expired(case):
    before = case.newest
    case.write("b", 3)
    assert case.import_() == 1
    go_back(case.handle, before)
    case.append(8)
    expire(case.handle, FAR)
    assert len(history(case.handle)) == 1
    for files in (1, 0):
        assert case.import_() == files
        assert case.keys == [1, 2, 3, 8]
    # Undone by another program, and expired since, so that nobody knows.
    before = case.newest
    case.write("c", 4)
    assert case.import_() == 1
    rollback(case.handle, before)
    case.append(9)
    expire(case.handle, FAR)
    assert case.import_() == 0


def test_a_version_beside_the_line_that_is_gone_back_to_has_its_imports(case):
    first = case.newest
    case.write("b", 3)
    assert case.import_() == 1
    case.append(4)
    tag(case.handle, "v1")
    go_back(case.handle, first)
    case.append(8)
    case.append(9)
    expire(case.handle, FAR)
    # The import is undone in this line, and its own snapshot is gone.
    assert [info.tags for info in history(case.handle)] == [(), ("v1",)]
    go_back(case.handle, "v1")
    assert case.keys == [1, 2, 3, 4]
    assert case.import_() == 0


def test_the_record_of_imports_names_no_path(case):
    record = Path(case.handle.load().properties[IMPORTED].removeprefix("file://"))
    said = json.loads(record.read_text())
    ((digest, imports),) = said["files"].items()
    assert [len(digest), *map(len, imports.values()), said["undone"]] == [64, 64, []]
    below = [path for path in (case.folder / "data").rglob("*") if path.is_file()]
    assert below
    assert not any(b"cid=a" in path.read_bytes() for path in below)


def test_engines_that_delete_orphans_leave_the_record(case):
    """They delete what no version lists in the folder of the table."""
    table = case.handle.load()
    listed = {
        table.metadata_location,
        *(each.metadata_file for each in table.metadata.metadata_log),
    }
    for snapshot in table.snapshots():
        listed.add(snapshot.manifest_list)
        for manifest in snapshot.manifests(table.io):
            listed.add(manifest.manifest_path)
            entries = manifest.fetch_manifest_entry(table.io)
            listed |= {entry.data_file.file_path for entry in entries}
    folder = Path(table.location().removeprefix("file://"))
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if f"file://{path}" not in listed:
            path.unlink()
    assert case.import_() == 0
    case.write("b", 3)
    assert case.import_() == 1
    assert case.keys == [1, 2, 3]


def test_a_record_that_is_gone_is_said_and_stops_imports_alone(case):
    before = case.newest
    case.append(7)
    Path(case.handle.load().properties[IMPORTED].removeprefix("file://")).unlink()
    with pytest.raises(SourceReadError, match=r"nobody knows which files are in the table"):
        case.import_()
    go_back(case.handle, before)
    assert case.keys == [1, 2]
    with case.handle.load().transaction() as transaction:
        transaction.remove_properties(IMPORTED)
    case.write("b", 3)
    assert case.import_() == 2  # then all count as new
    assert case.keys == [1, 1, 2, 2, 3]
