"""A Delta Lake table as files: which are active, and the schema, come from its log.

The library `deltalake` reads the log; the files are read as all others are. Its own client of S3
trusts no certificates but the system's and takes credentials that do not renew themselves, so of a
table on S3 it is given a copy of the log on the local disk.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from feast_dynamo_ext.arrow_types import is_bytes
from feast_dynamo_ext.cancellation import in_threads
from feast_dynamo_ext.errors import (
    DependencyError,
    FeastDynamoError,
    ResourceNotFoundError,
    SourceNotFoundError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.listing import TableChangedError, TableFiles, settled
from feast_dynamo_ext.storage import FileState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feast_dynamo_ext.parquet.listing import Place


LOG = "_delta_log"

LAST_CHECKPOINT = f"{LOG}/_last_checkpoint"
"""Names a version of which the log has a checkpoint: what is older is not needed to read it."""

LOG_FILE = re.compile(rf"{LOG}/(_sidecars/)?\w[\w.-]*", re.ASCII)
"""What a log consists of. Other names are not copied: with `..` they lead out of the folder."""

BACKTRACE = re.compile(r"\n\s+0: ")

COPIED_AT_ONCE = 16


def read_delta(place: Place, source: str, folder: str | None = None) -> TableFiles:
    """The newest version of a table.

    Args:
        place: the table's folder.
        source: the source's name, for messages.
        folder: where the copy of a log is kept on the disk while it is read; None for the system's
            folder for temporary files.

    Raises:
        DependencyError: `deltalake` is not installed.
        SourceNotFoundError: there is no table.
        SourceReadError: its log cannot be read, or it needs what is not supported: deletion
            vectors, column mapping.
    """
    deltalake = _library(source)
    return settled(lambda: _read(deltalake, place, source, folder))


def _read(deltalake: Any, place: Place, source: str, folder: str | None) -> TableFiles:
    with _readable_log(place, source, folder) as path:
        try:
            table = deltalake.DeltaTable(path)
            _check_supported(table, place.uri, source)
            added = pa.table(table.get_add_actions(flatten=True))
            schema = pa.schema(table.schema().to_arrow())
        except FeastDynamoError:
            raise  # some are OSErrors too
        except deltalake.exceptions.TableNotFoundError as error:
            raise _no_table(place, source) from error
        except (deltalake.exceptions.DeltaError, OSError) as error:
            # The library adds its own stack.
            said = BACKTRACE.split(str(error).replace(path, place.uri))[0].rstrip(". \n")
            raise SourceReadError(
                f"Source `{source}`: the log of the Delta table {place.uri} cannot be read: "
                f"{said}. Repair the table, or restore its log."
            ) from error
    names = [name.partition(".")[2] for name in added.column_names if _is_partition(name)]
    partitions = {name: schema.field(name).type for name in names}
    return TableFiles(_files(place, added, partitions, source), schema, partitions)


def _chunks(place: Place, uri: str) -> Iterator[bytes]:
    try:
        yield from place.storage.chunks(uri)
    except FileNotFoundError as error:
        raise TableChangedError(
            f"{place.uri}: {uri} was removed while the table's log was being read. Run it again."
        ) from error


def _no_table(place: Place, source: str) -> SourceNotFoundError:
    return SourceNotFoundError(
        f"Source `{source}`: there is no Delta table at {place.uri}. Check the path, the bucket's "
        "name and region."
    )


@contextlib.contextmanager
def _readable_log(place: Place, source: str, folder: str | None) -> Iterator[str]:
    """Where the library finds the table's log on a disk."""
    if not place.is_on_s3 and "%" not in place.root:  # the library takes `%20` for a space
        yield place.uri
        return
    root = f"s3://{place.root}" if place.is_on_s3 else place.root
    try:
        files = place.storage.below(f"{root}/{LOG}")
        names = {file.path.removeprefix(f"{place.root}/") for file in files}
    except ResourceNotFoundError as error:
        raise _no_table(place, source) from error
    listed = {name for name in names if LOG_FILE.fullmatch(name)}
    if not listed:
        raise _no_table(place, source)
    with contextlib.ExitStack() as undo:
        try:
            temporary = tempfile.TemporaryDirectory(prefix="feast-dynamo-delta-", dir=folder)
            copy = undo.enter_context(temporary)
            _copy(place, root, _needed(place, root, listed), Path(copy))
        except FeastDynamoError:
            raise  # as above: S3 refused, or a file of the log is gone meanwhile
        except OSError as error:
            raise SourceReadError(
                f"Source `{source}`: the log of the Delta table {place.uri} cannot be kept in "
                f"{folder or tempfile.gettempdir()}: {error}. Free space there, or point "
                "`spill_folder` of the offline store to a larger disk."
            ) from error
        yield copy


def _needed(place: Place, root: str, listed: set[str]) -> set[str]:
    """Names of those of a log's files that say the newest version."""
    if LAST_CHECKPOINT not in listed:
        return listed
    found = place.storage.read(f"{root}/{LAST_CHECKPOINT}")
    try:
        first = int(json.loads(found)["version"]) if found else -1
    except (ValueError, KeyError, TypeError):
        first = -1  # it is a hint alone
    if not any(name.startswith(f"{LOG}/{first:020}.checkpoint") for name in listed):
        return listed - {LAST_CHECKPOINT}
    return {
        name
        for name in listed
        if not (at := re.match(rf"{LOG}/(\d{{20}})\.", name)) or int(at[1]) >= first
    }


def _copy(place: Place, root: str, names: set[str], folder: Path) -> None:
    for parent in {(folder / name).parent for name in names}:
        parent.mkdir(parents=True, exist_ok=True)

    def copy(name: str) -> None:
        with (folder / name).open("wb") as file:
            for chunk in _chunks(place, f"{root}/{name}"):
                file.write(chunk)

    with ThreadPoolExecutor(COPIED_AT_ONCE) as pool:
        for _ in pool.map(in_threads(copy), sorted(names)):
            pass


def _library(source: str) -> Any:
    try:
        import deltalake
        import deltalake.exceptions
    except ImportError as error:
        raise DependencyError(
            f"Source `{source}` is a Delta table, which the library `deltalake` reads. Run "
            "`pip install 'deltalake>=1.2'`."
        ) from error
    return deltalake


def _check_supported(table: Any, uri: str, source: str) -> None:
    refused = ""
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        refused = "names its columns anew (column mapping)"
    elif "deletionVectors" in (table.protocol().reader_features or ()) and _has_vectors(table):
        refused = "has deletion vectors (run `REORG TABLE ... APPLY (PURGE)`)"
    if refused:
        raise SourceReadError(
            f"Source `{source}`: the Delta table {uri} {refused}, which S3ParquetOfflineStore "
            "does not read. Write a plain copy of the table and point the source there."
        )


def _has_vectors(table: Any) -> bool:
    from deltalake.exceptions import DeltaError

    try:
        return next(iter(table.deletion_vectors()), None) is not None
    except DeltaError:
        return True  # one that cannot be read


def _is_partition(name: str) -> bool:
    return name.startswith("partition.")


ESCAPED = re.compile(r"\\u([0-9A-Fa-f]{4})")


def _bytes_text(text: str | None) -> str | None:
    """Bytes of a partition as a text; the log has an escape such as `U+0001` of each byte."""
    if text is None:
        return None
    plain = ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
    return plain.encode("latin-1").decode(errors="surrogateescape")


def _partition_texts(column: pa.ChunkedArray, kind: pa.DataType) -> list[str | None]:
    texts: list[str | None] = column.cast(pa.string()).to_pylist()
    return [_bytes_text(text) for text in texts] if is_bytes(kind) else texts


def _path(place: Place, name: str, source: str) -> str:
    """Where a file of the log is: below the table's folder.

    Raises:
        SourceReadError: it is elsewhere, as those of a shallow clone.
    """
    found = name
    if re.match(r"/|[A-Za-z][A-Za-z0-9+.-]*:/", name):
        found = re.sub(r"^(file:(//)?(?=/)|s3[an]?://)", "", name)
        if not found.startswith(f"{place.root}/"):
            raise SourceReadError(
                f"Source `{source}`: the Delta table {place.uri} names files outside of its "
                f"folder, such as {name}, as a shallow clone does, which S3ParquetOfflineStore "
                "does not read. Write a plain copy of the table and point the source there."
            )
        found = found.removeprefix(f"{place.root}/")
    return f"{place.root}/{found}"


def _files(
    place: Place, added: pa.Table, partitions: dict[str, pa.DataType], source: str
) -> tuple[FileState, ...]:
    values = {
        name: _partition_texts(added.column(f"partition.{name}"), kind)
        for name, kind in partitions.items()
    }
    columns = zip(
        added.column("path").to_pylist(),
        added.column("size_bytes").to_pylist(),
        zip(*values.values(), strict=True) if values else [()] * added.num_rows,
        strict=True,
    )
    states = {file.path: file for file in place.everything()}
    found = []
    for name, size, texts in columns:
        path = _path(place, unquote(name), source)
        if path not in states or states[path].size != size:
            raise TableChangedError(
                f"{place.uri}: {path}, which the table's log names, is not there or not of "
                f"{size} bytes. Repair the table."
            )
        state = states[path]
        partition = tuple(zip(partitions, texts, strict=True))
        found.append(FileState(path, size, state.mtime_ns, state.etag, partition))
    return tuple(sorted(found, key=lambda file: file.path))
