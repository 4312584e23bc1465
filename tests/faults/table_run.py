"""A process that appends to a history table, or keeps it up; `test_table_kills` kills it.

Arguments: ``append``, the table's folder, the writer's number, its number of appends; or
``upkeep`` and the folder. A writer goes on after the last append that it knows to be done.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from history_tables import contents, handle_of, rows

from feast_dynamo_ext.parquet.iceberg.expire import expire
from feast_dynamo_ext.parquet.iceberg.ledger import Progress
from feast_dynamo_ext.parquet.iceberg.optimize import optimize

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 7


def new_rows(writer: int, number: int) -> pa.Table:
    """What a writer appends: rows that are alike in all but their notes."""
    return rows(
        *[
            (row % 3, 24 * (row % 2) + number % 2, None, 0.0, f"{writer}-{number}-{row}")
            for row in range(ROWS)
        ]
    )


def progress_of(folder: Path, writer: int) -> Path:
    """The file with the number of appends that a writer knows to be done."""
    return folder / f"writer-{writer}"


def done(folder: Path, writer: int) -> int:
    """How many appends a writer knows to be done."""
    file = progress_of(folder, writer)
    return int(file.read_text()) if file.exists() else 0


def append(folder: Path, writer: int, count: int) -> None:
    """Append what is not known to be done, the first of it perhaps again.

    What came before is appended once more, as by a writer that was thought to be dead.
    """
    handle, file = handle_of(folder), progress_of(folder, writer)
    for number in range(done(folder, writer), count):
        for each in (number, number - 1) if number else (number,):
            progress = Progress(f"writer {writer}", each or None, each + 1)
            handle.append(new_rows(writer, each), f"{writer}-{each}", progress)
        new = file.with_suffix(".new")
        new.write_text(str(number + 1))
        new.replace(file)


def upkeep(folder: Path) -> None:
    """Optimize and expire until the file `stop` is there."""
    handle = handle_of(folder)
    while not (folder / "stop").exists():
        optimize(handle, memory_bytes=1)
        expire(handle, dt.datetime.now(dt.timezone.utc))
    contents(handle)


if __name__ == "__main__":
    kind, place, *more = sys.argv[1:]
    if kind == "append":
        append(Path(place), *map(int, more))
    else:
        upkeep(Path(place))
    # An interpreter takes a while to end, in which a kill would meet a run that is done.
    os._exit(0)
