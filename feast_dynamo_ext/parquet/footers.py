"""What Parquet files say in their footers: schema, row groups, least and greatest values.

Footers are small and far away, so many are read at once; each is read once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds

from feast_dynamo_ext.arrow_types import is_time
from feast_dynamo_ext.timestamps import Axis

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime


FOOTERS_AT_ONCE = 16

DAY_S, DAY_MS = 86_400, 86_400_000


@dataclass(frozen=True)
class Footer:
    """What a file says of itself.

    Attributes:
        path: path within the filesystem.
        schema: names and types of its columns, without those of its folders.
        part: the row groups that may hold what was asked for, as a fragment.
    """

    path: str
    schema: pa.Schema
    part: Any


def read_footers(
    fragments: Sequence[Any], reading: Callable[[str], AbstractContextManager[object]]
) -> list[Footer]:
    """The footers of files.

    Args:
        fragments: the files.
        reading: what a file is read in, given its path; names the file in errors.
    """

    def read(fragment: Any) -> Footer:
        with reading(fragment.path):
            fragment.ensure_complete_metadata()
            schema = fragment.physical_schema.remove_metadata()
            return Footer(fragment.path, schema, fragment)

    if len(fragments) == 1:
        return [read(fragments[0])]
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        return list(pool.map(read, fragments))


def part_within(
    footer: Footer, column: str, first: datetime | None, last: datetime | None
) -> Footer | None:
    """The row groups of a file that may hold rows of a range of time; None where none may."""
    condition = None
    if column in footer.schema.names:
        # In the file's own unit and zone: Arrow compares no others with its statistics.
        condition = range_condition(footer.schema.field(column), first, last)
    if condition is None:
        return footer if footer.part.row_groups else None
    part = footer.part.subset(condition, schema=footer.schema)
    return Footer(footer.path, footer.schema, part) if part.row_groups else None


def range_condition(
    column: pa.Field, first: datetime | None, last: datetime | None
) -> ds.Expression | None:
    """Whether first <= column <= last, in the column's type; None where it cannot be asked."""
    kind = column.type
    if not is_time(kind) or (first is None and last is None):
        return None
    axis, field = Axis.from_type(kind), ds.field(column.name)
    condition = None
    if first is not None:
        condition = field >= _point(axis.first_at_or_after(first), kind, up=True)
    if last is not None:
        upper = field <= _point(axis.last_at_or_before(last), kind, up=False)
        condition = upper if condition is None else condition & upper
    return condition


def _point(number: int, kind: pa.DataType, *, up: bool) -> pa.Scalar:
    """A point of a column's axis in its type; a date is its midnight, so seconds are rounded."""
    if pa.types.is_timestamp(kind):
        return pa.scalar(number, pa.int64()).cast(kind)
    days = -(-number // DAY_S) if up else number // DAY_S
    if pa.types.is_date32(kind):
        return pa.scalar(days, pa.int32()).cast(kind)
    return pa.scalar(days * DAY_MS, pa.int64()).cast(kind)


def limits(
    fragments: Sequence[Any],
    column: str,
    kind: pa.DataType,
    reading: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> pa.Array | None:
    """What footers say of a column of times; see `ParquetSource.limits`."""
    found = [pa.array([], kind)]
    for fragment in fragments:
        with reading(fragment.path):
            of_file = _file_limits(fragment, column)
        if of_file is None:
            return None
        try:
            found.append(of_file.cast(kind))
        except pa.ArrowException:
            return None
    return pa.concat_arrays(found)


def _file_limits(fragment: Any, column: str) -> pa.Array | None:
    """The limits of a file's row groups, in the file's type; see `ParquetSource.limits`."""
    metadata = fragment.metadata
    leaves = [metadata.schema.column(at) for at in range(metadata.num_columns)]
    at = next((at for at, leaf in enumerate(leaves) if leaf.path == column), None)
    if at is None:
        return None
    kind = fragment.physical_schema.field(column).type
    if pa.types.is_null(kind):
        return pa.array([], kind)
    # As numbers: Python's own times end in the year 9999, and know no nanoseconds.
    numbers: list[int] = []
    for group in fragment.row_groups:
        says = metadata.row_group(group.id).column(at).statistics
        if says is not None and says.has_min_max:
            numbers += [says.min_raw, says.max_raw]
        elif says is None or not says.has_null_count or says.null_count < group.num_rows:
            return None
    stored = pa.int32() if leaves[at].physical_type == "INT32" else pa.int64()
    return pa.array(numbers, stored).cast(kind)
