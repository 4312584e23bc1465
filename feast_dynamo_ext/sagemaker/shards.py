"""The files of a training set while they are written: equal shards of each split.

A shard is a part of a split: one file in each format, and one of its rows' entities and times.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feast_dynamo_ext.arrow_types import plain
from feast_dynamo_ext.sagemaker.content_hash import ColumnHash
from feast_dynamo_ext.sagemaker.fitting import ExactSum, present_numbers
from feast_dynamo_ext.sagemaker.formats import FileRoles, part_name, writer
from feast_dynamo_ext.sagemaker.manifest import LabelStatistics, OutputFile, SplitSummary
from feast_dynamo_ext.sagemaker.row_spool import Blocks
from feast_dynamo_ext.sagemaker.split_by_time import event_range
from feast_dynamo_ext.sagemaker.targets import target_of, writer_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.sagemaker.output_folder import Claim
    from feast_dynamo_ext.storage import NewFile

MOST_LABEL_VALUES = 20
"""Distinct labels that are classes, which are counted and whose balance shards keep."""


def deal(
    assigned: NDArray[np.int8], splits: int, parts: int, labels: pa.Array | None
) -> NDArray[np.int32]:
    """The shard of each row: `split * parts + part`, or -1.

    Shards of a split have the same number of rows, to within one. Where labels are classes, so
    have they of each class; else a shard is a run of rows.

    Args:
        assigned: what the split assigned to each row.
        splits: number of splits.
        parts: shards of a split.
        labels: of each row; not needed for one part.
    """
    shards = np.where(assigned < 0, np.int32(-1), assigned.astype(np.int32) * parts)
    if parts == 1 or labels is None:
        return shards
    encoded = plain(labels).dictionary_encode()
    classes = np.asarray(encoded.indices)
    for split in range(splits):
        rows = np.flatnonzero(assigned == split)
        if len(encoded.dictionary) <= MOST_LABEL_VALUES:
            # Dealt like cards, class after class.
            places = np.empty(len(rows), np.int64)
            places[np.argsort(classes[rows], kind="stable")] = np.arange(len(rows))
            shards[rows] += (places % parts).astype(np.int32)
        else:
            ends = [len(rows) * part // parts for part in range(1, parts)]
            part = np.searchsorted(ends, np.arange(len(rows)), side="right")
            shards[rows] += part.astype(np.int32)
    return shards


@dataclass(frozen=True)
class ShardFormat:
    """What every shard's files hold.

    Attributes:
        formats: one file each.
        schema: columns of the encoded rows.
        roles: what these are.
        kept: columns of `rows/`.
        target: what the files are for; None for no algorithm in particular.
    """

    formats: tuple[str, ...]
    schema: pa.Schema
    roles: FileRoles
    kept: pa.Schema
    target: str | None = None

    def paths(self, split: str, part: int) -> list[str]:
        """The files of a shard."""
        files = [f"{split}/{each}/{part_name(each, part)}" for each in self.formats]
        return [*files, f"rows/{split}/{part_name('parquet', part)}"]

    def options(self, format: str) -> dict[str, Any]:  # noqa: A002 - as channels
        """Options of the writer of a format."""
        return writer_options(self.target, format) if self.target else {}

    @property
    def has_index(self) -> bool:
        """Whether a file beside CSV says which columns are categories."""
        reads = self.target is not None and target_of(self.target).categories
        return reads and "csv" in self.formats and bool(self.roles.categorical)

    @property
    def row_bytes(self) -> int:
        """Of a row in memory while its row group is not full, about."""
        return 8 * (len(self.schema) + 4 * len(self.kept)) * (len(self.formats) + 1)


class HashingFile:
    """A new file whose bytes are hashed as they are written."""

    def __init__(self, new: NewFile) -> None:
        """Nothing was written yet."""
        self.new, self.written, self.closed = new, 0, False
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Add bytes."""
        self._digest.update(data)
        size = self.new.write(data)
        self.written += size
        return size

    def flush(self) -> None:
        """Nothing, as `NewFile.flush`."""

    def close(self) -> None:
        """Nothing, as `NewFile.close`."""

    @property
    def sha256(self) -> str:
        """Of all that was written, in hex."""
        return self._digest.hexdigest()


class ParquetFile:
    """Rows as they are, in row groups of one size; for what no algorithm reads."""

    def __init__(self, file: NewFile, schema: pa.Schema) -> None:
        """Nothing was written yet."""
        self._blocks = Blocks(schema)
        # Every choice that shows in the bytes is spelled out: a default may change with pyarrow.
        self._writer = pq.ParquetWriter(
            pa.PythonFile(file, mode="w"),
            schema,
            version="2.6",
            data_page_version="1.0",
            compression="snappy",
            use_dictionary=True,
            write_statistics=True,
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        for block in self._blocks.add(batch):
            self._writer.write_batch(block)

    def close(self) -> None:
        """Write what is left."""
        for block in self._blocks.rest():
            self._writer.write_batch(block)
        self._writer.close()


class Shard:
    """One shard being written: a context manager, whose files appear where it ends without error.

    Attributes:
        rows: that were written.
    """

    def __init__(self, claim: Claim, paths: Sequence[str], form: ShardFormat, stack: Any) -> None:
        """Open its files on the stack, which closes them."""
        self.rows = 0
        self._hashes = [ColumnHash(each.name, each.type) for each in form.schema]
        self._files = [
            (path, HashingFile(stack.enter_context(claim.new_file(path)))) for path in paths
        ]
        *formatted, (_, beside) = self._files
        self._writers: list[Any] = [
            writer(each, file, form.schema, form.roles, **form.options(each))
            for each, (_, file) in zip(form.formats, formatted, strict=True)
        ]
        self._beside = ParquetFile(beside, form.kept)

    def write(self, encoded: pa.RecordBatch, kept: pa.RecordBatch) -> None:
        """Append rows: the encoded ones, and their entities and times."""
        self.rows += encoded.num_rows
        for each, column in zip(self._hashes, encoded.columns, strict=True):
            each.add(column)
        for each in self._writers:
            each.write(encoded)
        self._beside.write(kept)

    def close(self) -> tuple[list[OutputFile], list[str]]:
        """Complete the files: what they are, and the hash of each column's values."""
        for each in (*self._writers, self._beside):
            each.close()
        files = [
            OutputFile(path, file.written, self.rows, file.sha256) for path, file in self._files
        ]
        return files, [each.hexdigest() for each in self._hashes]


def hash_of_parts(digests: Sequence[str]) -> str:
    """The hash of a split's column: that of its only part, or of the parts' hashes in order."""
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


class SplitTally:
    """Counts the rows of one split as they pass."""

    def __init__(self) -> None:
        """Nothing has passed."""
        self._rows, self._sum = 0, ExactSum()
        self._counts: collections.Counter[Any] | None = collections.Counter()
        self._bounds: list[Any] = []
        self._times: list[pa.Array] = []

    def add(self, labels: pa.Array, event_times: pa.Array) -> None:
        """Count rows, of which none lacks label or event time."""
        self._rows += len(labels)
        self._sum.add(present_numbers(labels))
        bounds = pc.min_max(labels).as_py()
        self._bounds = [
            min([bounds["min"], *self._bounds]),
            max([bounds["max"], *self._bounds]),
        ]
        times = pc.min_max(event_times)
        self._times.append(pa.array([times["min"], times["max"]], event_times.type))
        if self._counts is not None:
            for pair in pc.value_counts(labels).to_pylist():
                self._counts[pair["values"]] += pair["counts"]
            if len(self._counts) > MOST_LABEL_VALUES:
                self._counts = None

    def summary(self) -> SplitSummary:
        """What was counted."""
        first, last = event_range(pa.concat_arrays(self._times))
        counts = None
        if self._counts is not None:
            counts = {str(value): count for value, count in sorted(self._counts.items())}
        mean = self._sum.mean
        label = LabelStatistics(self._rows, mean or 0.0, self._bounds[0], self._bounds[1], counts)
        return SplitSummary(self._rows, first, last, label)


class OpenShards:
    """Several shards that are written side by side; files appear where the block ends well."""

    def __init__(self, claim: Claim, form: ShardFormat) -> None:
        """None is open yet."""
        self._claim, self._form = claim, form
        self._stack = contextlib.ExitStack()
        self._shards: dict[int, Shard] = {}

    def open(self, number: int, split: str, part: int) -> None:
        """Open a shard under a number."""
        paths = self._form.paths(split, part)
        self._shards[number] = Shard(self._claim, paths, self._form, self._stack)

    def write(self, number: int, encoded: pa.RecordBatch, kept: pa.RecordBatch) -> None:
        """Append rows to a shard."""
        self._shards[number].write(encoded, kept)

    def close(self) -> dict[int, tuple[list[OutputFile], list[str]]]:
        """Complete all files: what `Shard.close` gives of each."""
        return {number: shard.close() for number, shard in self._shards.items()}

    def __enter__(self) -> OpenShards:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stack.__exit__(kind, error, trace)
