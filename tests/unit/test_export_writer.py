"""The exports that other tests read: laid out as the service documents them."""

from __future__ import annotations

import base64
import datetime as dt
import functools
import gzip
import hashlib
import json

import botocore.session
import pytest
from botocore.validate import validate_parameters
from export_writer import (
    NEW,
    Change,
    ExportedTable,
    ExportPlace,
    into_folder,
    items_after,
    net_changes,
    write_full,
    write_increment,
)

md5 = functools.partial(hashlib.md5, usedforsecurity=False)
TABLE = ExportedTable(partitions=3)


def at(minute: int) -> dt.datetime:
    return dt.datetime(2026, 1, 5, 10, minute, 0, 250_000, tzinfo=dt.timezone.utc)


def item(key: str, number: int) -> dict:
    return {"id": {"S": key}, "n": {"N": str(number)}}


def change(key: str, old: int | None, new: int | None, minute: int) -> Change:
    images = [None if number is None else item(key, number) for number in (old, new)]
    return Change({"id": {"S": key}}, *images, at(minute))


LOG = [
    change("a", None, 1, 1),
    change("b", None, 1, 2),
    change("a", 1, 2, 20),
    change("a", 2, 3, 21),
    change("b", 1, None, 22),
    change("c", None, 1, 23),
    change("c", 1, None, 24),
]


def lines_of(export) -> list[dict]:
    return [
        json.loads(line)
        for file in export.files
        for line in gzip.decompress(file.data).splitlines()
    ]


def test_a_window_holds_one_net_change_an_item():
    assert net_changes(LOG, at(0), at(20)) == LOG[:2]
    assert net_changes(LOG, at(20), at(30)) == [change("a", 1, 3, 21), change("b", 1, None, 22)]
    assert items_after(LOG, at(22)) == [item("a", 3), item("b", 1)]
    assert items_after(LOG, at(30)) == [item("a", 3)]


@pytest.mark.parametrize("prefix", [None, "raw/of day"])
def test_the_layout_of_full_and_incremental_exports(tmp_path, prefix):
    place = ExportPlace(into_folder(tmp_path), prefix=prefix)
    full = write_full(place, TABLE, items_after(LOG, at(20)), at(20))
    exports = [write_increment(place, TABLE, LOG, at(20), at(40))]
    exports += [write_increment(place, TABLE, LOG, at(20), at(40), NEW)]
    root = tmp_path / (prefix or "") / "AWSDynamoDB"
    assert {path.name for path in root.iterdir()} == {
        "data", full.id, *(export.id for export in exports)
    }  # fmt: skip
    assert len(list((root / "data").iterdir())) == 6
    assert {str(path.relative_to(root / full.id)) for path in (root / full.id).iterdir()} == {
        "_started", "data", "manifest-files.json", "manifest-files.md5",
        "manifest-summary.json", "manifest-summary.md5",
    }  # fmt: skip
    for export in (full, *exports):
        summary = (tmp_path / export.summary_key).read_bytes()
        digest = (tmp_path / export.summary_key.replace(".json", ".md5")).read_bytes()
        assert base64.b64decode(digest) == md5(summary).digest()
        assert json.loads(summary) == export.summary
        listed = [
            json.loads(line) for line in (tmp_path / export.files_key).read_text().splitlines()
        ]
        assert [line["itemCount"] for line in listed] == [file.count for file in export.files]
        for line in listed:
            data = (tmp_path / line["dataFileS3Key"]).read_bytes()
            assert base64.b64decode(line["md5Checksum"]) == md5(data).digest()
            assert gzip.decompress(data).count(b"\n") == line["itemCount"]
            assert line["etag"].endswith("-1")
        assert export.summary["itemCount"] == export.count == 2
    # Three files for two items: one of them is of an empty partition.
    assert 0 in [file.count for file in full.files]
    assert full.summary["version"] == "2020-06-30"
    assert full.summary["exportTime"] == "2026-01-05T10:20:00.250Z"
    assert exports[0].summary["exportToTime"] == "2026-01-05T10:40:00.250Z"


def test_the_records_of_both_views(tmp_path):
    place = ExportPlace(into_folder(tmp_path))
    update, deletion = (
        {
            "Metadata": {"WriteTimestampMicros": {"N": written}},
            "Keys": {"id": {"S": key}},
        }
        for key, written in (("a", "1767608460250000"), ("b", "1767608520250000"))
    )
    both = lines_of(write_increment(place, TABLE, LOG, at(20), at(40)))
    assert sorted(both, key=str) == sorted(
        [
            update | {"OldImage": item("a", 1), "NewImage": item("a", 3)},
            deletion | {"OldImage": item("b", 1)},
        ],
        key=str,
    )
    new = lines_of(write_increment(place, TABLE, LOG, at(20), at(40), NEW))
    assert sorted(new, key=str) == sorted([update | {"NewImage": item("a", 3)}, deletion], key=str)
    assert lines_of(write_full(place, TABLE, [item("a", 3)], at(40))) == [{"Item": item("a", 3)}]


def test_a_description_is_what_the_service_may_answer(tmp_path):
    place = ExportPlace(into_folder(tmp_path), prefix="raw")
    export = write_increment(place, TABLE, LOG, at(20), at(40))
    model = botocore.session.get_session().get_service_model("dynamodb")
    shape = model.operation_model("DescribeExport").output_shape.members["ExportDescription"]
    assert set(export.description) <= set(shape.members)
    validate_parameters(export.description, shape)
    spec = export.description["IncrementalExportSpecification"]
    assert (spec["ExportFromTime"], spec["ExportToTime"]) == (at(20), at(40))


def test_bytes_are_written_as_base64(tmp_path):
    place = ExportPlace(into_folder(tmp_path), compressed=False)
    export = write_full(place, TABLE, [{"id": {"B": b"\xff\x00"}}], at(0))
    assert b"".join(file.data for file in export.files) == b'{"Item":{"id":{"B":"/wA="}}}\n'
