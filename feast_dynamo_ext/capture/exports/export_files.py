"""An export of a DynamoDB table as it lies on S3 or on a disk: its manifests, read and checked.

::

    [prefix/]AWSDynamoDB/<ExportId>/manifest-summary.json   + .md5: what was exported, and when
                                    manifest-files.json     + .md5: a line for each data file
                         <ExportId>/data/*.json.gz                 of a full export
                         data/*.json.gz                            of all increments together

Data files are those that the manifest names, and never those that a folder lists: increments share
one. Each is checked by its MD5 while it is read, so a byte that changed on the way is an error.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import io
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.errors import CaptureError, ResourceNotFoundError
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.storage import Files


SUMMARY, LISTED = "manifest-summary.json", "manifest-files.json"
ROOT = "AWSDynamoDB/"
"""The folder of all exports, below the prefix."""

DATA_FILE = re.compile(r"AWSDynamoDB/(?:[\w-]+/)?data/[\w.-]+\.json(?:\.gz)?")
EXPORT_ID = re.compile(r"\d{14}-[0-9a-f]{8}")

FULL, INCREMENTAL = "FULL_EXPORT", "INCREMENTAL_EXPORT"
NEW_AND_OLD, NEW = "NEW_AND_OLD_IMAGES", "NEW_IMAGE"
VIEWS = (NEW_AND_OLD, NEW)


@dataclass(frozen=True)
class DataFile:
    """A data file as the manifest names it.

    Attributes:
        uri: where it lies.
        items: how many lines it has.
        md5: base64 of the MD5 of its bytes as they lie there.
    """

    uri: str
    items: int
    md5: str

    @property
    def name(self) -> str:
        """Its last part."""
        return self.uri.rpartition("/")[2]


@dataclass(frozen=True)
class Export:
    """A complete export.

    Attributes:
        uri: its folder.
        arn: DynamoDB's name of it.
        table_arn: the table's.
        table_id: of the table; a table that is made anew has another one.
        start: of an increment, the first moment that counts; None of a full export.
        end: of an increment, the first moment that counts no more; of a full export, the moment
            that it shows.
        view: which images an increment has; None of a full export.
        items: how many there are.
        billed_bytes: what DynamoDB charges for.
        files: the data files, those without items left out.
    """

    uri: str
    arn: str
    table_arn: str
    table_id: str
    start: dt.datetime | None
    end: dt.datetime
    view: str | None
    items: int
    billed_bytes: int
    files: tuple[DataFile, ...] = field(repr=False)

    @property
    def is_full(self) -> bool:
        """Whether it has all items of the table, and not only those that changed."""
        return self.start is None

    @property
    def table(self) -> str:
        """The table's name."""
        return self.table_arn.rpartition("/")[2]

    def __str__(self) -> str:
        if self.start is None:
            return f"the full export of {self.table} as of {self.end.isoformat()}"
        window = f"{self.start.isoformat()} to {self.end.isoformat()}"
        return f"the increment of {self.table} from {window}"


def exports_below(uri: str, settings: AwsSettings) -> list[str]:
    """Folders of complete exports: one that is named itself, or all that are below a folder.

    Args:
        uri: s3:// or a local path: an export's folder, its `manifest-summary.json`, or a folder
            above.
        settings: how S3 is reached.

    Returns:
        In the order of their ids, which begin with the time.

    Raises:
        CaptureError: there is none; says whether one is unfinished.
        AwsError: S3 refuses. ConfigError: a URI of neither S3 nor a disk.
    """
    uri = uri.rstrip("/").removesuffix(f"/{SUMMARY}")
    files = files_of(uri, settings)
    if EXPORT_ID.fullmatch(uri.rpartition("/")[2]):
        return [uri]
    scheme = "s3://" if uri.startswith("s3") else ""
    names = [f"{scheme}{file.path}" for file in files.below(uri)]
    found = {
        name.removesuffix(f"/{SUMMARY}")
        for name in names
        if name.endswith(f"/{SUMMARY}") and EXPORT_ID.fullmatch(name.split("/")[-2])
    }
    if not found:
        begun = sum(name.endswith("/_started") for name in names)
        raise CaptureError(
            f"{uri} holds no complete export of a DynamoDB table"
            + (f"; {begun} are begun and not finished" if begun else "")
            + f". Name the folder that has `AWSDynamoDB/<ExportId>/{SUMMARY}` in it."
        )
    return sorted(found, key=lambda folder: folder.rpartition("/")[2])


def read_export(uri: str, settings: AwsSettings) -> Export:
    """Read an export's manifests.

    Args:
        uri: the export's folder, ``.../AWSDynamoDB/<ExportId>``.
        settings: how S3 is reached.

    Raises:
        CaptureError: the export is not finished, failed, or is not DynamoDB JSON; a manifest is
            not what its MD5 says, or not of the form that DynamoDB writes.
        AwsError: S3 refuses.
    """
    uri = uri.rstrip("/").removesuffix(f"/{SUMMARY}")
    manifests = _Manifests(uri, files_of(uri, settings))
    summary = manifests.summary()
    files = tuple(manifests.files())
    found = _export(uri, summary, files)
    listed = sum(file.items for file in files)
    if listed != found.items:
        raise CaptureError(
            f"The export {uri}: `{LISTED}` counts {listed:,} items, but `{SUMMARY}` "
            f"{found.items:,}. Copy the export anew from where DynamoDB wrote it."
        )
    return found


class _Manifests:
    """The two manifests of an export, each checked by its MD5."""

    def __init__(self, uri: str, files: Files) -> None:
        self._uri, self._files = uri, files
        root, is_there, _ = uri.rpartition(ROOT)
        if not is_there:
            raise CaptureError(
                f"{uri} is not below a folder `AWSDynamoDB`, as DynamoDB lays exports out. "
                "Keep the folders of an export together when you copy it."
            )
        self._root = root

    def summary(self) -> Mapping[str, Any]:
        found = self._json(SUMMARY, self._checked(SUMMARY))
        if not isinstance(found, dict):
            raise self._malformed(SUMMARY)
        kind = found.get("outputFormat")
        if kind != "DYNAMODB_JSON":
            raise CaptureError(
                f"The export {self._uri} has the format {kind}; DYNAMODB_JSON is read. Export the "
                "table with `--export-format DYNAMODB_JSON`."
            )
        return found

    def files(self) -> Iterator[DataFile]:
        for line in self._checked(LISTED).splitlines():
            found = self._json(LISTED, line)
            try:
                items, md5, key = found["itemCount"], found["md5Checksum"], found["dataFileS3Key"]
                is_right = isinstance(items, int) and len(base64.b64decode(md5, validate=True))
            except (KeyError, TypeError, ValueError, binascii.Error):
                raise self._malformed(LISTED) from None
            # With the prefix or without: what lies below `AWSDynamoDB` is the same.
            _, is_there, tail = str(key).rpartition(ROOT)
            name = f"{ROOT}{tail}"
            if not (is_right and is_there and DATA_FILE.fullmatch(name)):
                raise self._malformed(LISTED)
            if items:
                yield DataFile(self._root + name, items, md5)

    def _checked(self, name: str) -> bytes:
        uri = f"{self._uri}/{name}"
        data = self._files.read(uri)
        if data is None:
            is_begun = self._files.find(f"{self._uri}/_started") is not None
            why = "the export is not finished, or failed" if is_begun else "nothing is there"
            raise CaptureError(
                f"The export {self._uri} has no `{name}`: {why}. `aws dynamodb describe-export` "
                "says how far it is."
            )
        given = self._files.read(f"{uri.removesuffix('.json')}.md5")
        if given is None:
            given = self._files.read(f"{uri}.md5")
        if given is None:
            raise CaptureError(
                f"The export {self._uri} lacks the MD5 of `{name}`, which DynamoDB writes beside "
                "it. Copy the folder whole."
            )
        found = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest())
        if found != given.rstrip(b"\n"):
            raise CaptureError(
                f"The export {self._uri}: `{name}` is not what its MD5 says, so it changed after "
                "DynamoDB wrote it. Copy it anew, or export once more."
            )
        return data

    def _json(self, name: str, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise self._malformed(name) from None

    def _malformed(self, name: str) -> CaptureError:
        return CaptureError(
            f"The export {self._uri}: `{name}` does not have the form that DynamoDB writes. Was "
            "it made by another program? Only exports by ExportTableToPointInTime are read."
        )


def _export(uri: str, summary: Mapping[str, Any], files: tuple[DataFile, ...]) -> Export:
    try:
        is_increment = summary.get("exportType", FULL) == INCREMENTAL
        view = summary["outputView"] if is_increment else None
        found = Export(
            uri,
            str(summary["exportArn"]),
            str(summary["tableArn"]),
            str(summary["tableId"]),
            _moment(summary["exportFromTime"]) if is_increment else None,
            _moment(summary["exportToTime" if is_increment else "exportTime"]),
            view,
            int(summary["itemCount"]),
            int(summary["billedSizeBytes"]),
            tuple(files),
        )
    except (KeyError, TypeError, ValueError):
        found = None
    # The prose of the documentation has NEW_IMAGES.
    if found is None or (found.view is not None and found.view not in VIEWS):
        raise CaptureError(
            f"The export {uri}: `{SUMMARY}` does not have the form that DynamoDB writes. Was it "
            "made by another program? Only exports by ExportTableToPointInTime are read."
        )
    return found


def _moment(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment.astimezone(dt.timezone.utc)


class DataStream(io.RawIOBase):
    """The bytes of a data file, read once and in order; who reads them checks their MD5.

    Raises:
        CaptureError: while reading: the file is gone. AwsError: S3 refuses.
    """

    def __init__(self, file: DataFile, settings: AwsSettings) -> None:
        super().__init__()
        self._uri = file.uri
        self._chunks = files_of(file.uri, settings).chunks(file.uri)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        if not self._left:
            self._left = memoryview(self._next())
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    def _next(self) -> bytes:
        try:
            with translated("s3", self._uri):
                return next(self._chunks, b"")
        except (FileNotFoundError, ResourceNotFoundError) as error:
            raise CaptureError(
                f"The data file {self._uri} is gone, which an export's manifest names. Export "
                "once more, or copy the export whole."
            ) from error
