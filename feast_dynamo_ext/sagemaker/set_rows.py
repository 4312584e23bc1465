"""The rows of a training set that is there, read split by split as often as needed.

Encoded columns come from the files of one format, keys and times from `rows/`, whose rows are in
the same order. Parquet is read where it is. Of a set without Parquet, CSV, RecordIO or libsvm is
read once and kept as Parquet on disk meanwhile.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from feast_dynamo_ext.aws import filesystem
from feast_dynamo_ext.duckdb_connection import spill_folder
from feast_dynamo_ext.errors import TrainingSetError
from feast_dynamo_ext.sagemaker.encodings import arrow_type
from feast_dynamo_ext.sagemaker.format_readers import read_batches
from feast_dynamo_ext.sagemaker.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.sagemaker.manifest import Manifest

READ_ROWS = 65_536


@dataclass(frozen=True)
class SetRows:
    """A set's rows; `SplitRows` of the statistics.

    Attributes:
        splits: names of its splits, in order.
        written: schema of the encoded columns.
        beside: schema of entity columns, event time and helpers.
        files: (filesystem, paths) of the encoded columns by split.
        row_files: of `rows/` by split.
    """

    splits: tuple[str, ...]
    written: pa.Schema
    beside: pa.Schema
    files: Mapping[str, tuple[fs.FileSystem, tuple[str, ...]]]
    row_files: Mapping[str, tuple[fs.FileSystem, tuple[str, ...]]]

    @property
    def schema(self) -> pa.Schema:
        """All columns; one that is in both is as it is trained on."""
        names = set(self.written.names)
        return pa.schema(
            [*self.written, *(each for each in self.beside if each.name not in names)]
        )

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `SplitRows.batches`.

        Raises:
            TrainingSetError: a file that cannot be read, or fewer rows here than there.
        """
        encoded = [name for name in columns if name in self.written.names]
        others = [name for name in columns if name not in self.written.names]
        sides = [
            _read(*place[split], names)
            for place, names in ((self.files, encoded), (self.row_files, others))
            if names
        ]
        for parts in sides[0] if len(sides) == 1 else _beside(*sides):
            found = {name: parts.column(name) for name in columns}
            yield pa.record_batch(list(found.values()), names=list(found))


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise TrainingSetError(
            f"{path} cannot be read: {error}. `feast-dynamo training-set verify` says which "
            "files of the training set are not as they were written."
        ) from error


def _read(
    system: fs.FileSystem, paths: Sequence[str], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with _readable(path), pq.ParquetFile(path, filesystem=system) as file:
            yield from file.iter_batches(READ_ROWS, columns=list(columns))


def _beside(one: Iterator[pa.RecordBatch], other: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The columns of both, row by row, where they come in batches of their own sizes."""
    left, right = next(one, None), next(other, None)
    while left is not None and right is not None:
        count = min(left.num_rows, right.num_rows)
        pair = left.slice(0, count), right.slice(0, count)
        columns = [column for batch in pair for column in batch.columns]
        names = [name for batch in pair for name in batch.schema.names]
        if count:
            yield pa.record_batch(columns, names=names)
        left = left.slice(count) if left.num_rows > count else next(one, None)
        right = right.slice(count) if right.num_rows > count else next(other, None)
    if left is not None or right is not None:
        raise TrainingSetError(
            "The files in `rows/` and those of the split have different numbers of rows. Write "
            "the training set again."
        )


@contextlib.contextmanager
def opened_rows(
    output: str, manifest: Manifest, aws: AwsSettings, folder: str | None = None
) -> Iterator[SetRows]:
    """The rows of a training set.

    Args:
        output: where it is.
        manifest: its manifest.
        aws: how to reach S3.
        folder: where other formats are kept as Parquet meanwhile; None for the system's.

    Raises:
        TrainingSetError: a file that cannot be read.
    """
    system, base = filesystem(output, aws)
    # In the order of the rule: JSON has them in that of their names.
    splits = tuple(name for name in manifest.split.splits if name in manifest.splits)
    row_files = {
        name: (system, _paths(base, manifest, f"rows/{name}")) for name in manifest.splits
    }
    beside = _schema(*row_files[splits[0]])
    if "parquet" in manifest.formats:
        files = {name: (system, _paths(base, manifest, f"{name}/parquet")) for name in splits}
        yield SetRows(splits, _schema(*files[splits[0]]), beside, files, row_files)
        return
    # CSV comes first: it holds texts, and numbers as they are.
    kind = next(each for each in FORMATS if each in manifest.formats)
    with spill_folder(folder) as spilled:
        local = fs.LocalFileSystem()
        files = {}
        for name in splits:
            path = str(Path(spilled) / f"{name}.parquet")
            _convert(system, _paths(base, manifest, f"{name}/{kind}"), kind, manifest, path)
            files[name] = (local, (path,))
        yield SetRows(splits, _schema(*files[splits[0]]), beside, files, row_files)


def _paths(base: str, manifest: Manifest, folder: str) -> tuple[str, ...]:
    """Paths of the part files of a folder, or of the file that stands for it in version 1."""
    return tuple(
        f"{base.rstrip('/')}/{file.path}"
        for file in manifest.files
        if file.path == f"{folder}.parquet" or file.path.startswith(f"{folder}/part-")
    )


def _schema(system: fs.FileSystem, paths: Sequence[str]) -> pa.Schema:
    if not paths:
        raise TrainingSetError("The manifest names no file of a split. Build the set again.")
    with _readable(paths[0]):
        return pq.read_schema(paths[0], filesystem=system)


def _convert(
    system: fs.FileSystem, paths: Sequence[str], kind: str, manifest: Manifest, target: str
) -> None:
    types = {name: arrow_type(text) for name, text in manifest.types.items()}
    schema = pa.schema([(name, types[name]) for name in manifest.written])
    with pq.ParquetWriter(target, schema) as writer:
        for path in paths:
            with _readable(path), system.open_input_stream(path) as stream:
                for batch in read_batches(
                    kind, stream, schema, weight=manifest.weight is not None
                ):
                    writer.write_batch(batch)
