"""Rows of a key are erased from all files of a history table, and from what is said of them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from history_tables import (
    COLUMNS,
    HOUR,
    START,
    TIMES,
    contents,
    delete_rows,
    handle_of,
    new_table,
    rows,
    source_of,
)
from repos import repo_config

from feast_dynamo_ext.errors import ColumnNotFoundError, ColumnTypeError, OfflineStoreError
from feast_dynamo_ext.parquet.iceberg.catalog import CatalogAddress, opened
from feast_dynamo_ext.parquet.iceberg.erase import erase
from feast_dynamo_ext.parquet.iceberg.optimize import optimize
from feast_dynamo_ext.parquet.iceberg.snapshots import history, tag
from feast_dynamo_ext.parquet.iceberg.table_schema import SEQUENCE

PEOPLE = pa.schema(
    [("name", pa.string()), ("event", TIMES), ("created", TIMES), ("amount", pa.float64())]
)
# As people are called, the first and the last of their files, so that bounds name them.
WANTED, FIRST, LAST = "zoe-4711", "abel", "zoe-4711"


def people(*names, at=0):
    count = len(names)
    events = [START + (at + hour) * HOUR for hour in range(count)]
    return pa.table(
        {
            "name": list(names),
            "event": events,
            "created": [None] * count,
            "amount": [float(at)] * count,
        },
        schema=PEOPLE,
    )


def places_of(folder, text):
    """Files below a folder that hold a text, by their bytes or in what they unpack to."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        held = path.read_bytes()
        if path.suffix == ".parquet":
            footer = pq.read_metadata(path)
            held += str(footer.to_dict()).encode()
            held += str(pq.read_table(path, partitioning=None).to_pylist()).encode()
        if text.encode() in held:
            found.append(path.name)
    return found


@pytest.fixture
def handle(tmp_path):
    """Four appends in two partitions, then sorted; manifests as they are, unpacked."""
    handle = new_table(
        tmp_path,
        "day",
        keys=("name",),
        columns=PEOPLE,
        **{"write.avro.compression-codec": "null"},
    )
    for at in range(4):
        names = [FIRST, *(f"person-{number}" for number in range(28)), WANTED]
        handle.append(people(*names, at=at))
    optimize(handle)
    handle.append(people(WANTED, "bert", at=30))
    return handle


def test_a_key_is_in_no_file_and_no_statistic_afterwards(tmp_path, handle):
    rows_before = [row for row in contents(handle) if WANTED not in row]
    erased = len(contents(handle)) - len(rows_before)
    before = places_of(tmp_path, WANTED)
    assert {name.rpartition(".")[2] for name in before} == {"parquet", "avro"}
    steps = []
    report = erase(
        handle,
        {"name": WANTED},
        lambda done, total: steps.append((done, total)),
        expire_now=True,
    )
    assert places_of(tmp_path, WANTED) == []
    assert places_of(tmp_path, "person-5") != []
    assert contents(handle) == rows_before
    assert (report.rows, report.files) == (erased, 2)
    assert report.expired is not None
    assert len(report.expired.expired) == 7
    assert report.remaining == ()
    assert steps[-1][0] == steps[-1][1]
    assert [info.operation for info in history(handle)] == ["clean manifests"]
    # Order and sequence are as they were.
    table = handle.load()
    assert {task.file.sort_order_id for task in table.scan().plan_files()} == {
        table.sort_order().order_id
    }
    assert table.scan().to_arrow().column(SEQUENCE).null_count == 0


def test_older_versions_are_named_and_tagged_ones_need_a_word(tmp_path, handle):
    count = len(contents(handle))
    pinned = tag(handle, "training-7")
    with pytest.raises(OfflineStoreError, match=r"tag `training-7`.*Nothing was changed"):
        erase(handle, {"name": WANTED}, expire_now=True)
    assert len(contents(handle)) == count
    report = erase(handle, {"name": WANTED})
    assert report.expired is None
    assert {info.snapshot_id for info in report.remaining} >= {pinned.snapshot_id}
    assert [info.tags for info in report.remaining if info.tags] == [("training-7",)]
    assert places_of(tmp_path, WANTED) != []
    report = erase(handle, {"name": WANTED}, expire_now=True, drop_tags=True)
    assert (report.rows, report.files, report.remaining) == (0, 0, ())
    assert places_of(tmp_path, WANTED) == []


def test_rows_that_were_deleted_by_their_positions_are_still_there_and_go(tmp_path, handle):
    plans = list(handle.load().scan().plan_files())
    for task in plans:
        held = pq.read_table(task.file.file_path.removeprefix("file://"), partitioning=None)
        places = [at for at, name in enumerate(held["name"].to_pylist()) if name == WANTED]
        if places:
            delete_rows(handle, task.file.file_path, places)
    assert not any(WANTED in row for row in contents(handle))
    assert places_of(tmp_path, WANTED) != []
    before = contents(handle)
    report = erase(handle, {"name": WANTED}, expire_now=True)
    assert report.rows == 0
    assert report.files == 2
    assert contents(handle) == before
    assert places_of(tmp_path, WANTED) == []
    assert not any(task.delete_files for task in handle.load().scan().plan_files())


def test_rows_that_are_appended_meanwhile_go_too(handle):
    added = []

    def advance(*_):
        if not added:
            added.append(handle.append(people(WANTED, "late", at=50)))

    report = erase(handle, {"name": WANTED}, advance)
    assert not any(WANTED in row for row in contents(handle))
    assert any("late" in row for row in contents(handle))
    assert report.files == 3


def test_a_dry_run_counts_and_changes_nothing(handle):
    before = handle.load().metadata_location
    report = erase(handle, {"name": FIRST}, dry_run=True)
    assert (report.rows, report.files) == (4, 1)
    assert handle.load().metadata_location == before


def test_several_keys(tmp_path):
    handle = new_table(tmp_path, keys=("cid", "note"))
    values = [(cid, 1, None, 1.0, note) for cid in (1, 2, 3) for note in "abc"]
    handle.append(rows(*values))
    erase(handle, pa.table({"note": ["a", "b"], "cid": [1, 2]}))
    left = handle.load().scan().to_arrow().select(["cid", "note"]).to_pylist()
    pairs = {(row["cid"], row["note"]) for row in left}
    assert pairs == {(cid, note) for cid in (1, 2, 3) for note in "abc"} - {(1, "a"), (2, "b")}
    # One of the keys alone: whatever the other is.
    assert erase(handle, {"cid": 3}).rows == 3
    assert erase(handle, {"cid": 77}).files == 0


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"amount": 1.0}, ColumnNotFoundError, r"\['amount'\] cannot be erased by.*\['cid'\]"),
        ({}, ColumnNotFoundError, "nothing cannot be erased by"),
        ({"cid": None}, ColumnTypeError, "1 values of `cid` to erase are null"),
        ({"cid": "5"}, ColumnTypeError, "`cid` to erase: .*int64"),
        ({"cid": 1.5}, ColumnTypeError, "`cid` to erase"),
        ({"cid": object()}, ColumnTypeError, "`cid` is no int64"),
    ],
)
def test_what_cannot_be_erased_is_refused(tmp_path, keys, error, said):
    handle = new_table(tmp_path)
    handle.append(rows((1, 1, None, 1.0, "a")))
    with pytest.raises(error, match=said):
        erase(handle, keys)
    assert len(contents(handle)) == 1


def test_tables_of_others_by_any_column_also_under_an_older_partitioning(tmp_path):
    catalog = opened(
        CatalogAddress.from_source(source_of(tmp_path), repo_config(tmp_path)),
        handle_of(tmp_path).settings,
    )
    catalog.create_namespace("shop")
    table = catalog.create_table("shop.orders", COLUMNS)
    table.append(rows(*[(cid, cid, None, 1.0, f"n{cid % 3}") for cid in range(6)]))
    with table.update_spec() as update:
        update.add_field("note", "identity")
    table.append(rows(*[(cid, cid, None, 2.0, f"n{cid % 3}") for cid in range(6)]))
    handle = handle_of(tmp_path)
    report = erase(handle, {"cid": 4}, expire_now=True)
    assert (report.rows, report.files) == (2, 2)
    found = handle.load().scan().to_arrow()
    assert sorted(found["cid"].to_pylist()) == sorted([0, 1, 2, 3, 5] * 2)
    assert handle.load().scan("note = 'n0'").to_arrow().num_rows == 4
