"""Writes exports of a DynamoDB table as ExportTableToPointInTime lays them out.

    place = ExportPlace(into_folder(path), bucket="exports", prefix="raw")
    full = write_full(place, TABLE, items, export_time=T0)
    log = [Change(keys, old, new, written), ...]      # every write of the table, in order
    increment = write_increment(place, TABLE, log, T0, T1)      # one net change an item
    increment.summary_key      # "raw/AWSDynamoDB/01767608400250-5f2e9a31/manifest-summary.json"
    increment.arn, increment.count, increment.files[0].key, increment.description

Items, keys and images are DynamoDB JSON: ``{"id": {"S": "a"}, "n": {"N": "1"}}``; bytes are base64
text, or bytes as boto3 gives them. `Export.description` is what DescribeExport answers for it.
`items_after` gives the table's items after a log, `net_changes` what a window holds.

As the service does: a folder `[prefix/]AWSDynamoDB/<ExportId>/` with `_started`, both manifests,
and a `.md5` beside each; the data of a full export in its own `data/`, of increments in the one
`AWSDynamoDB/data/` of all; a file for each partition of the table, empty ones too; an `etag` that
is of a multipart upload, and no MD5. An export of the same table and times has the same id.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

Item: TypeAlias = "Mapping[str, Mapping[str, Any]]"

NEW_AND_OLD, NEW = "NEW_AND_OLD_IMAGES", "NEW_IMAGE"
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class ExportedTable:
    """A table as its exports name it; `partitions` is the number of data files of each export."""

    name: str = "purchases"
    region: str = "us-east-1"
    account: str = "123456789012"
    table_id: str = "12345a12-abcd-123a-ab12-1234abc12345"
    partitions: int = 4

    @property
    def arn(self) -> str:
        return f"arn:aws:dynamodb:{self.region}:{self.account}:table/{self.name}"


@dataclass(frozen=True)
class ExportPlace:
    """Where exports go.

    Attributes:
        put: writes one object, given its key in the bucket and its bytes.
        bucket: its name, for the manifests.
        prefix: before `AWSDynamoDB/`, without a slash at its end; None for no prefix.
        keys_with_prefix: whether `dataFileS3Key` and `manifestFilesS3Key` begin with the prefix.
            Seen both; a reader has to try.
        compressed: data files are `.json.gz`, as the service writes them, or plain `.json`.
    """

    put: Callable[[str, bytes], None]
    bucket: str = "exports"
    prefix: str | None = None
    keys_with_prefix: bool = True
    compressed: bool = True

    def write(self, key: str, data: bytes) -> None:
        self.put(f"{self.prefix}/{key}" if self.prefix else key, data)

    def named(self, key: str) -> str:
        """A key as manifests say it."""
        return f"{self.prefix}/{key}" if self.prefix and self.keys_with_prefix else key


def into_folder(folder: Path) -> Callable[[str, bytes], None]:
    """`put` of a folder on disk, which stands for the bucket."""

    def put(key: str, data: bytes) -> None:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return put


def into_bucket(client: Any, bucket: str) -> Callable[[str, bytes], None]:
    """`put` of a bucket, with boto3's S3 client."""

    def put(key: str, data: bytes) -> None:
        client.put_object(Bucket=bucket, Key=key, Body=data)

    return put


@dataclass(frozen=True)
class Change:
    """One write of an item: `old` is None for an insert, `new` for a deletion.

    Attributes:
        keys: the key attributes.
        old: the item before it.
        new: the item after it.
        written: when, by the table's clock; exports have microseconds.
    """

    keys: Item
    old: Item | None
    new: Item | None
    written: datetime


@dataclass(frozen=True)
class DataFile:
    """One line of manifest-files.json, with the key as it is in the bucket."""

    key: str
    count: int
    md5: str
    etag: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Export:
    """What was written. Keys are as they are in the bucket, prefix and all."""

    id: str
    arn: str
    folder: str
    summary_key: str
    files_key: str
    files: tuple[DataFile, ...]
    summary: dict[str, Any]
    description: dict[str, Any]

    @property
    def count(self) -> int:
        return sum(file.count for file in self.files)


def write_full(
    place: ExportPlace, table: ExportedTable, items: Iterable[Item], export_time: datetime
) -> Export:
    """A full export: the table's items as of a moment."""
    records = [({"Item": item}, item) for item in items]
    return _write(
        place, table, records, {"exportTime": _iso(export_time)}, export_time, "FULL_EXPORT"
    )


def write_increment(
    place: ExportPlace,
    table: ExportedTable,
    log: Iterable[Change],
    start: datetime,
    end: datetime,
    view: str = NEW_AND_OLD,
) -> Export:
    """An incremental export: what changed from `start`, inclusive, to `end`, exclusive.

    Args:
        place: where it goes.
        table: the table.
        log: every write in the order of its time; those of other windows are left out.
        start: of the window.
        end: of the window.
        view: `NEW_AND_OLD_IMAGES` or `NEW_IMAGE`.
    """
    records = [(_record(change, view), change.keys) for change in net_changes(log, start, end)]
    window = {"exportFromTime": _iso(start), "exportToTime": _iso(end)}
    return _write(place, table, records, window, end, "INCREMENTAL_EXPORT", view)


def net_changes(log: Iterable[Change], start: datetime, end: datetime) -> list[Change]:
    """One change an item: from before the window to its end. One that came and went is none."""
    found: dict[str, Change] = {}
    for change in log:
        if not start <= change.written < end:
            continue
        key = _text(change.keys)
        before = found[key].old if key in found else change.old
        found[key] = Change(change.keys, before, change.new, change.written)
    return [change for change in found.values() if (change.old, change.new) != (None, None)]


def items_after(log: Iterable[Change], at: datetime) -> list[Item]:
    """The table's items after all writes before a moment."""
    items: dict[str, Item] = {}
    for change in log:
        if change.written < at:
            if change.new is not None:
                items[_text(change.keys)] = change.new
            else:
                items.pop(_text(change.keys), None)
    return list(items.values())


def micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def line(record: Any) -> bytes:
    """A record as a line of a data file: compact, in UTF-8, bytes as base64."""
    return _text(record).encode() + b"\n"


def _record(change: Change, view: str) -> dict[str, Any]:
    record: dict[str, Any] = {
        "Metadata": {"WriteTimestampMicros": {"N": str(micros(change.written))}},
        "Keys": change.keys,
    }
    if change.old is not None and view == NEW_AND_OLD:
        record["OldImage"] = change.old
    if change.new is not None:
        record["NewImage"] = change.new
    return record


def _write(
    place: ExportPlace,
    table: ExportedTable,
    records: Sequence[tuple[dict[str, Any], Item]],
    times: dict[str, str],
    at: datetime,
    kind: str,
    view: str | None = None,
) -> Export:
    is_full = kind == "FULL_EXPORT"
    token = hashlib.sha256(f"{table.arn} {kind} {times} {view}".encode()).hexdigest()
    export_id = f"{micros(at) // 1_000:014d}-{token[:8]}"
    folder = f"AWSDynamoDB/{export_id}"
    data_folder = f"{folder}/data" if is_full else "AWSDynamoDB/data"
    place.write(f"{folder}/_started", b"")
    files = []
    for number, lines in enumerate(_partitions(records, table.partitions)):
        name = hashlib.sha256(f"{token} {number}".encode()).hexdigest()[:26]
        data = b"".join(lines)
        if place.compressed:
            data = gzip.compress(data, mtime=0)
        key = f"{data_folder}/{name}.json{'.gz' if place.compressed else ''}"
        place.write(key, data)
        etag = _digest(_digest(data)).hex() + "-1"
        files.append(DataFile(key, len(lines), _md5(data), etag, data))
    listed = b"".join(
        line(
            {
                "itemCount": file.count,
                "md5Checksum": file.md5,
                "etag": file.etag,
                "dataFileS3Key": place.named(file.key),
            }
        )
        for file in files
    )
    arn = f"{table.arn}/export/{export_id}"
    summary = {
        "version": "2020-06-30" if is_full else "2023-08-01",
        "exportArn": arn,
        "startTime": _iso(at),
        "endTime": _iso(at),
        "tableArn": table.arn,
        "tableId": table.table_id,
        **times,
        "s3Bucket": place.bucket,
        "s3Prefix": place.prefix,
        "s3SseAlgorithm": "AES256",
        "s3SseKmsKeyId": None,
        "manifestFilesS3Key": place.named(f"{folder}/manifest-files.json"),
        "billedSizeBytes": sum(len(line(record)) for record, _ in records),
        "itemCount": len(records),
        "outputFormat": "DYNAMODB_JSON",
    }
    if not is_full:
        summary |= {"outputView": view, "exportType": kind}
    for name, data in (
        ("manifest-files.json", listed),
        ("manifest-summary.json", _text(summary).encode()),
    ):
        place.write(f"{folder}/{name}", data)
        place.write(f"{folder}/{name.removesuffix('.json')}.md5", _md5(data).encode())
    before = f"{place.prefix}/" if place.prefix else ""
    return Export(
        export_id,
        arn,
        before + folder,
        f"{before}{folder}/manifest-summary.json",
        f"{before}{folder}/manifest-files.json",
        tuple(
            DataFile(before + file.key, file.count, file.md5, file.etag, file.data)
            for file in files
        ),
        summary,
        _description(table, summary, at, kind, place.bucket, place.prefix),
    )


def _description(
    table: ExportedTable,
    summary: dict[str, Any],
    at: datetime,
    kind: str,
    bucket: str,
    prefix: str | None,
) -> dict[str, Any]:
    """What DescribeExport answers once it is done; times are datetimes, as boto3 gives them."""
    found: dict[str, Any] = {
        "ExportArn": summary["exportArn"],
        "ExportStatus": "COMPLETED",
        "StartTime": at,
        "EndTime": at,
        "ExportManifest": summary["manifestFilesS3Key"].replace("-files.", "-summary."),
        "TableArn": table.arn,
        "TableId": table.table_id,
        "ExportTime": at,
        "S3Bucket": bucket,
        "S3SseAlgorithm": "AES256",
        "ExportFormat": "DYNAMODB_JSON",
        "BilledSizeBytes": summary["billedSizeBytes"],
        "ItemCount": summary["itemCount"],
        "ExportType": kind,
    }
    if prefix:
        found["S3Prefix"] = prefix
    if kind == "INCREMENTAL_EXPORT":
        found["IncrementalExportSpecification"] = {
            "ExportFromTime": datetime.fromisoformat(summary["exportFromTime"][:-1] + "+00:00"),
            "ExportToTime": datetime.fromisoformat(summary["exportToTime"][:-1] + "+00:00"),
            "ExportViewType": summary["outputView"],
        }
    return found


def _partitions(
    records: Sequence[tuple[dict[str, Any], Item]], partitions: int
) -> list[list[bytes]]:
    """The lines of each file: an item is in the partition of its partition key."""
    lines: list[list[bytes]] = [[] for _ in range(partitions)]
    for record, keyed in records:
        # The first attribute; any rule that spreads items will do.
        first = next(iter(keyed.items()), ())
        place = int.from_bytes(_digest(_text(first).encode())[:4], "big")
        lines[place % partitions].append(line(record))
    return lines


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_base64)


def _base64(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if hasattr(value, "value"):  # boto3's Binary
        return _base64(value.value)
    raise TypeError(f"{type(value).__name__} is not DynamoDB JSON")


def _md5(data: bytes) -> str:
    return base64.b64encode(_digest(data)).decode()


def _digest(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _iso(moment: datetime) -> str:
    text = moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
