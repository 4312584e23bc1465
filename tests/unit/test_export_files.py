"""Exports as they lie there: manifests and data files, whole or refused."""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import hashlib
import json
import shutil
from typing import TYPE_CHECKING

import pytest
from export_writer import (
    Change,
    ExportedTable,
    ExportPlace,
    into_folder,
    write_full,
    write_increment,
)

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.capture.exports.export_files import DataStream, exports_below, read_export
from feast_dynamo_ext.errors import CaptureError

if TYPE_CHECKING:
    from pathlib import Path

T0 = dt.datetime(2026, 3, 1, tzinfo=dt.timezone.utc)
HOUR = dt.timedelta(hours=1)
TABLE = ExportedTable(partitions=3)
ITEMS = [{"id": {"S": name}, "n": {"N": str(at)}} for at, name in enumerate("abcde")]
LOG = [
    Change({"id": {"S": "a"}}, ITEMS[0], {"id": {"S": "a"}, "n": {"N": "7"}}, T0 + HOUR / 2),
    Change({"id": {"S": "b"}}, ITEMS[1], None, T0 + HOUR / 3),
    Change({"id": {"S": "z"}}, None, {"id": {"S": "z"}}, T0 + 3 * HOUR / 2),
]
AWS = AwsSettings()


def place(folder: Path, prefix: str | None = None, *, keys: bool = True) -> ExportPlace:
    return ExportPlace(into_folder(folder), prefix=prefix, keys_with_prefix=keys)


def lines(folder: str) -> list[dict]:
    """All records of an export; who reads a data file checks its MD5."""
    found = []
    for file in read_export(folder, AWS).files:
        with DataStream(file, AWS) as stream:
            data = stream.readall()
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        if base64.b64encode(digest).decode() != file.md5:
            raise CaptureError("not what the manifest says")
        read = gzip.decompress(data).splitlines()
        assert len(read) == file.items
        found += [json.loads(line) for line in read]
    return found


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("prefix", [None, "raw", "raw/of/shop"])
def test_a_full_export_is_read_with_a_prefix_and_without(
    tmp_path: Path, prefix: str | None, keys: bool
):
    made = write_full(place(tmp_path, prefix, keys=keys), TABLE, ITEMS, T0)
    found = read_export(f"{tmp_path}/{made.folder}", AWS)
    assert (found.is_full, found.end, found.items, found.view) == (True, T0, 5, None)
    assert (found.table, found.table_id, found.arn) == ("purchases", TABLE.table_id, made.arn)
    assert sorted(line["Item"]["id"]["S"] for line in lines(found.uri)) == list("abcde")


def test_increments_share_a_folder_and_are_told_apart(tmp_path: Path):
    first = write_increment(place(tmp_path), TABLE, LOG, T0, T0 + HOUR)
    second = write_increment(place(tmp_path), TABLE, LOG, T0 + HOUR, T0 + 2 * HOUR)
    for made, keys in ((first, ["a", "b"]), (second, ["z"])):
        found = read_export(f"{tmp_path}/{made.folder}", AWS)
        assert (found.end - found.start, found.view) == (HOUR, "NEW_AND_OLD_IMAGES")
        assert sorted(line["Keys"]["id"]["S"] for line in lines(found.uri)) == keys


def test_all_exports_below_a_folder_are_found_in_order(tmp_path: Path):
    made = [
        write_full(place(tmp_path, "one"), TABLE, ITEMS, T0),
        write_increment(place(tmp_path, "two"), TABLE, LOG, T0, T0 + HOUR),
    ]
    assert exports_below(str(tmp_path), AWS) == [f"{tmp_path}/{each.folder}" for each in made]
    named = f"{tmp_path}/{made[1].summary_key}"
    assert exports_below(named, AWS) == [f"{tmp_path}/{made[1].folder}"]


def test_an_export_that_was_moved_is_read_where_it_lies(tmp_path: Path):
    made = write_full(place(tmp_path / "bucket", "raw"), TABLE, ITEMS, T0)
    shutil.move(tmp_path / "bucket" / "raw", tmp_path / "elsewhere")
    moved = f"{tmp_path}/elsewhere/{made.folder.removeprefix('raw/')}"
    assert len(lines(moved)) == 5


def test_an_unfinished_export_is_named(tmp_path: Path):
    made = write_full(place(tmp_path), TABLE, ITEMS, T0)
    (tmp_path / made.summary_key).unlink()
    with pytest.raises(CaptureError, match=r"no complete export.*1 are begun and not finished"):
        exports_below(str(tmp_path), AWS)
    with pytest.raises(CaptureError, match="not finished, or failed"):
        read_export(f"{tmp_path}/{made.folder}", AWS)


def test_each_byte_that_changes_is_found(tmp_path: Path):
    made = write_full(place(tmp_path), TABLE, ITEMS[:2], T0)
    folder = f"{tmp_path}/{made.folder}"
    whole = lines(folder)
    tried = 0
    for path in sorted(tmp_path.rglob("*")):
        # An empty file that only says that the export began, and files without items.
        if not path.is_file() or not path.stat().st_size:
            continue
        if path.suffix == ".gz" and not any(
            path.name == file.name for file in read_export(folder, AWS).files
        ):
            continue
        data = path.read_bytes()
        for at in range(len(data)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(CaptureError):
                lines(folder)
            tried += 1
        path.write_bytes(data)
    assert lines(folder) == whole
    assert tried > 1_300  # all bytes of seven files


@pytest.mark.parametrize("what", ["manifest-files.md5", "manifest-summary.md5"])
def test_a_missing_checksum_is_named(tmp_path: Path, what: str):
    made = write_full(place(tmp_path), TABLE, ITEMS, T0)
    (tmp_path / made.folder / what).unlink()
    with pytest.raises(CaptureError, match="lacks the MD5"):
        read_export(f"{tmp_path}/{made.folder}", AWS)


def test_a_missing_data_file_is_named(tmp_path: Path):
    made = write_full(place(tmp_path), TABLE, ITEMS, T0)
    gone = next(file for file in made.files if file.count)
    (tmp_path / gone.key).unlink()
    with pytest.raises(CaptureError, match=r"gone, which an export's manifest names"):
        lines(f"{tmp_path}/{made.folder}")


@pytest.mark.parametrize(
    "key", ["AWSDynamoDB/../../secret.json", "/etc/passwd", "AWSDynamoDB/data/../x.json.gz", ""]
)
def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, key: str):
    made = write_full(place(tmp_path), TABLE, ITEMS, T0)
    path = tmp_path / made.files_key
    said = [json.loads(line) for line in path.read_text().splitlines()]
    said[0]["dataFileS3Key"] = key
    data = "\n".join(map(json.dumps, said)).encode()
    path.write_bytes(data)
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    path.with_suffix(".md5").write_bytes(base64.b64encode(digest))
    with pytest.raises(CaptureError, match="does not have the form"):
        read_export(f"{tmp_path}/{made.folder}", AWS)
