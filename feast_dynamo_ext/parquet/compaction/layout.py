"""Which rows come together: by partition, or by buckets of join keys. Nothing is read here.

What a retrieval finds must not depend on it. Of rows that are equal in join keys and times the one
of the highest position wins, so compaction keeps the order of such rows: all of them go into one
bucket, or their partitions keep the order that they had.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feast_dynamo_ext.errors import CompactionError
from feast_dynamo_ext.parquet.pointer import MOST_BUCKETS, Buckets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from feast_dynamo_ext.parquet.pointer import CompactedFile


BUCKET_BYTES = 32 << 20
"""Of Parquet that a bucket has about: a few keys open a small file, and S3 answers in one go."""

MOST_BY_DEFAULT = 256


@dataclass(frozen=True)
class InputFile:
    """A file that counts now.

    Attributes:
        path: relative to the source's folder.
        size: bytes.
        version: tells it from a later file of the same path.
        folder: the folders of its partition, ``day=2026-01-31``; empty where it has none.
        rows: how many.
        row_groups: how many.
        plain_bytes: bytes before compression.
        first: its first event time, as a number; None where its footer does not say.
        last: its last event time.
        columns: that are in the file itself.
        compacted: what the pointer says of it; None for a plain file.
    """

    path: str
    size: int
    version: str
    folder: str
    rows: int
    row_groups: int
    plain_bytes: int
    first: int | None
    last: int | None
    columns: frozenset[str]
    compacted: CompactedFile | None


@dataclass(frozen=True)
class LayoutRequest:
    """What a caller wants.

    Attributes:
        buckets: number of buckets; None where it was not said.
        by_partition: keep partitions, whatever the data is.
        target_bytes: of a file, about.
        memory_bytes: that may be used, about.
        spill_folder: for rows that do not fit; None for the system's folder for temporary files.
        orphans_older_than_s: age of what dead runs left behind before it is removed.
    """

    buckets: int | None = None
    by_partition: bool = False
    target_bytes: int = 256 << 20
    memory_bytes: int = 1 << 30
    spill_folder: str | None = None
    orphans_older_than_s: float = 24 * 3600.0


@dataclass(frozen=True)
class Shape:
    """How files are to be laid out.

    Attributes:
        buckets: by join keys; None for by partition.
        why: one sentence for a person.
    """

    buckets: Buckets | None
    why: str


@dataclass(frozen=True)
class Unit:
    """Files whose rows are sorted together.

    Attributes:
        folder: of their partition; empty where there is none, and for buckets.
        layer: number of the pass over partitions, see `by_partition`.
        files: in the order of their rows' positions.
    """

    folder: str
    layer: int
    files: tuple[InputFile, ...]

    @property
    def is_done(self) -> bool:
        """Whether all of it was compacted before."""
        return all(file.compacted is not None for file in self.files)


def choose(
    asked: LayoutRequest, before: Buckets | None, files: Sequence[InputFile], keys: tuple[str, ...]
) -> Shape:
    """How to lay out files.

    Args:
        asked: what the caller wants.
        before: the buckets that the source has now.
        files: its files.
        keys: the columns that are join keys of every feature view that reads it.

    Raises:
        CompactionError: buckets are asked for, and there is no such column.
    """
    folders = sorted({file.folder for file in files} - {""})
    size = sum(file.size for file in files)
    if asked.by_partition:
        shape = Shape(None, "asked for")
    elif asked.buckets is not None:
        shape = Shape(_buckets(keys, asked.buckets), "asked for")
    elif before is not None:
        shape = Shape(_buckets(keys, before.count), "it has these buckets")
    elif folders:
        shape = Shape(None, f"its folders are partitions, such as {folders[0]}")
    elif not keys:
        shape = Shape(None, "no join key is common to all feature views that read it")
    elif size < 2 * BUCKET_BYTES:
        shape = Shape(None, "it is small: buckets would be smaller than is worth a request")
    else:
        shape = Shape(_buckets(keys, _count_for(size)), "it has no partitions, and is large")
    return shape


def _count_for(size: int) -> int:
    """A power of two."""
    return min(MOST_BY_DEFAULT, 1 << (-(-size // BUCKET_BYTES) - 1).bit_length())


def _buckets(keys: tuple[str, ...], count: int) -> Buckets:
    if not keys:
        raise CompactionError(
            "Rows cannot be put into buckets: no column is a join key of every feature view that "
            "reads this source, so rows that are equal for one of them would lose their order. "
            "Use --by-partition."
        )
    if not 1 <= count <= MOST_BUCKETS:
        raise CompactionError(f"{count} buckets: give a number from 1 to {MOST_BUCKETS}.")
    return Buckets(keys, count)


def by_partition(files: Sequence[InputFile]) -> list[Unit]:
    """The files of each partition, in an order that keeps that of equal rows.

    Where partitions share no event time, none of their rows are equal, and each is one unit. Else
    a partition whose files do not follow each other (of country=DE, country=FR and then country=DE
    again, which was appended) is a unit in each layer that it is in.
    """
    if _share_no_time(files):
        return _units(files, 0)
    units: list[Unit] = []
    layer: list[InputFile] = []
    number = 0
    for file in files:
        known = {other.folder for other in layer}
        if file.folder in known and layer[-1].folder != file.folder:
            units += _units(layer, number)
            layer, number = [], number + 1
        layer.append(file)
    return units + _units(layer, number)


def _units(files: Iterable[InputFile], layer: int) -> list[Unit]:
    grouped: dict[str, list[InputFile]] = {}
    for file in files:
        grouped.setdefault(file.folder, []).append(file)
    return [Unit(folder, layer, tuple(found)) for folder, found in grouped.items()]


def _share_no_time(files: Sequence[InputFile]) -> bool:
    ranges: dict[str, tuple[int, int]] = {}
    for file in files:
        if not file.rows:
            continue
        if file.first is None or file.last is None:
            return len({other.folder for other in files}) == 1
        first, last = ranges.get(file.folder, (file.first, file.last))
        ranges[file.folder] = min(first, file.first), max(last, file.last)
    ordered = sorted(ranges.values())
    return all(one[1] < two[0] for one, two in itertools.pairwise(ordered))
