"""Training sets that hold somebody, or that were made of a version that goes when they are erased.

A set keeps the entity columns of its rows beside, in `rows/`: by these it is known whom it holds.
Of a set without such columns only what it was made of is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feast_dynamo_ext.aws import filesystem, scheme_and_path
from feast_dynamo_ext.errors import ResourceNotFoundError, TrainingSetError
from feast_dynamo_ext.sagemaker.manifest import read_manifest
from feast_dynamo_ext.sagemaker.output_folder import MANIFEST, open_folder, own_files
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.output_folder import OutputFolder


@dataclass(frozen=True)
class SetOfPerson:
    """A training set.

    Attributes:
        output: where it is.
        rows: of somebody in it; None where its rows do not say whose they are.
        snapshot: version of the table that it was made of; None of another table.
        kept: why it is not removed; empty where it may be.
    """

    output: str
    rows: int | None
    snapshot: str | None
    kept: str = ""


def sets_below(places: Iterable[str], settings: AwsSettings) -> list[str]:
    """Folders at or below some places that have a training set's manifest.

    Raises:
        AwsError: S3 refused. ConfigError: neither S3 nor a local path.
    """
    found: dict[str, None] = {}
    for place in places:
        scheme = "s3://" if scheme_and_path(place)[0] in ("s3", "s3a", "s3n") else ""
        try:
            names = [f"{scheme}{file.path}" for file in files_of(place, settings).below(place)]
        except ResourceNotFoundError:
            continue  # no such bucket
        for name in sorted(names):
            if name.rpartition("/")[2] == MANIFEST:
                found[name.rpartition("/")[0]] = None
    return list(found)


def sets_of_person(
    outputs: Iterable[str], table: str, wanted: Mapping[str, Any], settings: AwsSettings
) -> list[SetOfPerson]:
    """Which of some sets hold somebody, or were made of a table.

    Args:
        outputs: the sets.
        table: name of the history table, with its namespace.
        wanted: by column of the history, the value; with the names of features that it has.
        settings: how S3 is reached.

    Raises:
        AwsError: S3 refused.
    """
    found = []
    for output in outputs:
        folder = open_folder(output, settings)
        try:
            manifest = read_manifest(folder)
        except TrainingSetError as error:
            found.append(SetOfPerson(folder.uri, None, None, str(error)))
            continue
        pins = [
            read.snapshot for read in manifest.provenance.snapshots.values() if read.table == table
        ]
        rows = _rows_in(folder, wanted, settings)
        if rows or (pins and rows is None):
            kept = "" if rows else "its rows do not say whose they are"
            found.append(SetOfPerson(folder.uri, rows, pins[0] if pins else None, kept))
        elif pins:
            kept = "it holds nothing of them, but cannot be built again"
            found.append(SetOfPerson(folder.uri, 0, pins[0], kept))
    return found


def remove_set(output: str, settings: AwsSettings) -> tuple[str, ...]:
    """Delete a training set: the files that its manifest names, as a listing has them; then that.

    What is interrupted is found again by its manifest.

    Returns:
        Files in its folders that it does not name, which are left.

    Raises:
        AwsError: S3 refused. TrainingSetError: a disk did.
    """
    folder = open_folder(output, settings)
    listed = folder.files()
    ours = own_files(folder)
    folder.delete(ours)
    folder.delete([MANIFEST])
    return tuple(folder.uri_of(path) for path in sorted({*listed} - {*ours}))


def _rows_in(folder: OutputFolder, wanted: Mapping[str, Any], settings: AwsSettings) -> int | None:
    """How many rows of the files beside are of somebody; None where no file says whose."""
    count: int | None = None
    for path in folder.files():
        if path.startswith("rows/") and path.endswith(".parquet"):
            system, name = filesystem(folder.uri_of(path), settings)
            with pq.ParquetFile(name, filesystem=system) as file:
                columns = _columns(file.schema_arrow, wanted)
                if columns is None:
                    continue
                count = count or 0
                for batch in file.iter_batches(columns=list(columns)):
                    count += sum(_is_theirs(batch, columns))
    return count


def _columns(schema: pa.Schema, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """Columns of a file that have what is wanted, and the value; None where one has not."""
    found = {}
    for column, value in wanted.items():
        names = [name for name in schema.names if name == column or name.endswith(f"__{column}")]
        if not names:
            return None
        found[names[0]] = value
    return found


def _is_theirs(batch: pa.RecordBatch, columns: Mapping[str, Any]) -> Iterator[bool]:
    same = pa.array([True] * batch.num_rows)
    for name, value in columns.items():
        column = batch.column(name)
        try:
            equal = pc.equal(column, pa.scalar(value).cast(column.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            equal = pc.equal(column.cast(pa.string()), str(value))
        same = pc.and_(same, pc.fill_null(equal, False))
    yield from same.to_pylist()
