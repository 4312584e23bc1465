"""Which exports that lie on S3 or a disk hold somebody's records, and the removal of these.

A record cannot be taken out of an export, whose manifest has the MD5 of each file: an export goes
as a whole, once it is captured. What is deleted was listed before: the folder of the export, and
of the folder that increments share those files that its manifest names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.aws import scheme_and_path
from feast_dynamo_ext.capture.exports.export_files import (
    DATA_FILE,
    EXPORT_ID,
    ROOT,
    SUMMARY,
    DataStream,
    read_export,
)
from feast_dynamo_ext.capture.exports.export_rows import export_records
from feast_dynamo_ext.errors import CaptureError, ResourceNotFoundError, SourceReadError
from feast_dynamo_ext.parquet.iceberg.snapshot_files import delete_files
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.capture.erasure.person import Person
    from feast_dynamo_ext.capture.exports.export_files import Export
    from feast_dynamo_ext.capture.exports.windows import CaptureState


@dataclass(frozen=True)
class ExportedTable:
    """Whose exports are looked for.

    Attributes:
        name: of the table.
        arn: its ARN; None where it is not known.
    """

    name: str
    arn: str | None = None

    def has(self, export: Export) -> bool | None:
        """Whether an export is of it; None where nobody can say."""
        if export.table != self.name:
            return False
        return None if self.arn is None else export.table_arn == self.arn


@dataclass(frozen=True)
class RawExport:
    """An export that holds somebody, or of which that cannot be known.

    Attributes:
        folder: of the export.
        what: which one it is, in words.
        records: how many are theirs.
        files: all of it that lies there, the manifests last.
        kept: why it is not removed; empty where it may be.
    """

    folder: str
    what: str
    records: int
    files: tuple[str, ...]
    kept: str = ""


def holding(
    places: Iterable[str],
    table: ExportedTable,
    person: Person,
    state: CaptureState | None,
    settings: AwsSettings,
    advance: Callable[[int, int], object] = lambda _done, _total: None,
) -> list[RawExport]:
    """The exports below some folders that hold somebody.

    Args:
        places: folders of exports, or folders above them, beside those that were captured; a
            folder that is not there is passed over.
        table: the table; exports of others are passed over, and those that may be of another one
            of its name are kept.
        person: who.
        state: how far capture is: what is not captured yet is kept.
        settings: how S3 is reached.
        advance: called with numbers of exports, done and of all.

    Raises:
        AwsError: S3 refused. ConfigError: a URI of neither S3 nor a disk.
    """
    folders: dict[str, list[str]] = {}
    captured = () if state is None else tuple(state.exports.values())
    for place in (*places, *captured):
        for folder, names in _folders(place, settings).items():
            folders.setdefault(folder, names)
    found = []
    for done, (folder, names) in enumerate(sorted(folders.items())):
        one = _looked_at(folder, names, table, person, state, settings)
        if one is not None:
            found.append(one)
        advance(done + 1, len(folders))
    return found


def remove(export: RawExport, settings: AwsSettings) -> None:
    """Delete the files of an export, its manifests last: what is interrupted is found again.

    Raises:
        AwsError: S3 refused. DestinationError: a disk did.
    """
    delete_files(export.files[:-1], settings)
    delete_files(export.files[-1:], settings)


def _folders(place: str, settings: AwsSettings) -> dict[str, list[str]]:
    """By the folder of each export at or below a place, the files that lie there."""
    place = place.rstrip("/")
    before, is_export, after = place.partition(f"/{ROOT}")
    if is_export and EXPORT_ID.fullmatch(after.partition("/")[0]):
        place = f"{before}/{ROOT}{after.partition('/')[0]}"
    scheme = "s3://" if scheme_and_path(place)[0] else ""
    try:
        names = [f"{scheme}{file.path}" for file in files_of(place, settings).below(place)]
    except ResourceNotFoundError:
        return {}  # no such bucket: nothing is there
    found: dict[str, list[str]] = {}
    for name in names:
        root, is_there, tail = name.rpartition(f"/{ROOT}")
        export_id = tail.partition("/")[0]
        if is_there and EXPORT_ID.fullmatch(export_id):
            found.setdefault(f"{root}/{ROOT}{export_id}", []).append(name)
    return found


def _looked_at(
    folder: str,
    names: list[str],
    table: ExportedTable,
    person: Person,
    state: CaptureState | None,
    settings: AwsSettings,
) -> RawExport | None:
    if f"{folder}/{SUMMARY}" not in names:
        why = "it is not finished, or failed: nobody knows what its files hold"
        return RawExport(folder, "an export without manifest", 0, tuple(names), why)
    try:
        export = read_export(folder, settings)
    except CaptureError as error:
        return RawExport(folder, "an export", 0, tuple(names), str(error))
    is_known = state is not None and folder in state.exports.values()
    is_of_table = is_known or table.has(export)
    if is_of_table is False:
        return None
    files = _there(export.files, folder, settings)
    records = 0
    try:
        for file in files:
            with DataStream(file, settings) as stream:
                of_file: Any = stream
                records += sum(map(person.is_in, export_records(of_file, file.uri)))
    except (SourceReadError, CaptureError) as error:
        return RawExport(folder, str(export), 0, tuple(names), str(error))
    # One of which files are gone was removed before, but not to its end.
    if not records and len(files) == len(export.files):
        return None
    is_pending = state is not None and any(each.arn == export.arn for each in state.pending)
    is_captured = state is not None and state.until is not None and export.end <= state.until
    kept = "" if is_captured and not is_pending else "it is not captured yet"
    if is_of_table is None:
        kept = f"nobody can say whether {export.table_arn} is the source's table"
    manifests = [name for name in names if name.endswith(f"/{SUMMARY}")]
    data = [file.uri for file in files]
    others = [name for name in names if name not in manifests and name not in data]
    return RawExport(folder, str(export), records, (*data, *others, *manifests), kept)


def _there(files: Iterable[Any], folder: str, settings: AwsSettings) -> list[Any]:
    """Of the data files that a manifest names those that a listing has."""
    wanted = list(files)
    root, _, _ = folder.rpartition(ROOT)
    listed: set[str] = set()
    for place in {file.uri.rpartition("/")[0] for file in wanted}:
        scheme = "s3://" if scheme_and_path(place)[0] else ""
        listed |= {f"{scheme}{file.path}" for file in files_of(place, settings).below(place)}
    return [
        file
        for file in wanted
        if file.uri in listed and DATA_FILE.fullmatch(file.uri.removeprefix(root))
    ]
