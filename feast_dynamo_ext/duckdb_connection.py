"""DuckDB in this process: its memory, its disk, and the folders that it spills to.

Whoever uses a folder holds a lock on a file in it, which the kernel drops with the process.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from feast_dynamo_ext.cancellation import interruptible
from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.storage import open_plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

logger = logging.getLogger(__name__)

PREFIX, LOCK, SPILLED = "feast-dynamo-", "lock", "spilled"

CAN_LOCK = os.name == "posix"
"""Elsewhere folders are removed after use, and what killed processes left stays."""

SETTLED_S = 60
"""A folder that is younger may not be locked yet."""


@contextlib.contextmanager
def spill_folder(parent: str | None) -> Iterator[str]:
    """An empty folder for as long as the context lasts.

    Args:
        parent: where it is made; None for the system's folder for temporary files.

    Raises:
        OSError: there can be none.
    """
    _remove_left(Path(parent or tempfile.gettempdir()))
    folder = tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent)
    with _in_use(Path(folder.name)), folder:
        spilled = Path(folder.name) / SPILLED
        spilled.mkdir()
        yield str(spilled)


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    if not CAN_LOCK:
        yield
        return
    import fcntl

    with (folder / LOCK).open("w") as lock:
        lock.write(platform.node())
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_left(parent: Path) -> None:
    """Remove what killed processes of this machine left."""
    if not CAN_LOCK:
        return
    for folder in parent.glob(f"{PREFIX}*"):
        # The folder for temporary files is everybody's: what another user puts there is theirs.
        with contextlib.suppress(OSError):  # gone meanwhile
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    import fcntl

    try:
        with open(open_plain(folder / LOCK, os.O_RDWR), "r+", errors="replace") as file:  # noqa: PTH123 - it is opened already
            is_ours = file.read() == platform.node()
            if not is_ours or time.time() - os.fstat(file.fileno()).st_mtime < SETTLED_S:
                return
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return  # in use; no such folder, or gone meanwhile; of another user
    except OSError as error:
        logger.warning("%s, which a killed process left, stays: %s", folder, error)
    else:
        logger.info("%s was removed, which a killed process had left", folder)


@dataclass(frozen=True)
class Limits:
    """What a retrieval may use.

    Attributes:
        memory_limit: DuckDB's memory limit, for example ``2GB``; None for its own default (80% of
            the machine's memory).
        threads: threads; None for one a core.
        spill_folder: where DuckDB spills; None for the system's folder for temporary files.
    """

    memory_limit: str | None = None
    threads: int | None = None
    spill_folder: str | None = None

    @property
    def workers(self) -> int:
        """How many threads read and match."""
        return self.threads or os.cpu_count() or 1

    @property
    def entity_bytes(self) -> int:
        """How much memory entity rows and their features may take up at once."""
        if self.memory_limit is not None:
            return _bytes(self.memory_limit)
        return _default_bytes() // 2


LIMIT = re.compile(r"([\d.]+) ?([KMGT])(i?)B")


@functools.cache
def _default_bytes() -> int:
    """DuckDB's own limit: 80% of the machine's memory, or of what its container may have."""
    with duckdb.connect(":memory:") as connection:
        ((limit,),) = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    return _bytes(limit)


def _bytes(limit: str) -> int:
    """A memory limit as DuckDB reads it and says it: KB is 1,000 bytes, KiB 1,024."""
    ((number, prefix, binary),) = LIMIT.findall(limit)
    return int(float(number) * (1024 if binary else 1000) ** (1 + "KMGT".index(prefix)))


@contextlib.contextmanager
def connected(limits: Limits, what: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to an empty database; what it spills is removed afterwards.

    Args:
        limits: memory, threads and spill folder.
        what: what it is for, for messages.

    Raises:
        OfflineStoreError: memory or disk were not enough, or there can be no spill folder.
        RetrievalTimeoutError: nobody waits for the result any more.
    """
    with _spilling(limits.spill_folder) as spill:
        config: dict[str, Any] = {
            "temp_directory": spill,
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            # SQL finds what was registered, never a variable of the Python code around.
            "python_enable_replacements": "false",
        }
        if limits.memory_limit is not None:
            config["memory_limit"] = limits.memory_limit
        if limits.threads is not None:
            config["threads"] = str(limits.threads)
        try:
            with (
                duckdb.connect(":memory:", config=config) as connection,
                interruptible(connection),
            ):
                yield connection
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise OfflineStoreError(
                f"{what} ran out of memory or of disk at {spill}: {error}. Raise `memory_limit`, "
                "or point `spill_folder` to a larger disk."
            ) from error


@contextlib.contextmanager
def registered(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    rows: pa.Table | pa.RecordBatchReader,
    failures: Sequence[Exception] = (),
) -> Iterator[None]:
    """Rows of Arrow are a relation of SQL while the context lasts.

    Args:
        connection: to the database.
        name: of the relation.
        rows: a table, or a reader, which one statement can read.
        failures: where the reader notes what it raises. DuckDB wraps that; the reader's own error
            is the one that helps, and is raised in its place.
    """
    connection.register(name, rows)
    try:
        yield
    except duckdb.Error as error:
        helps = failures[0] if failures else error
        raise helps from helps.__cause__
    finally:
        connection.unregister(name)


@contextlib.contextmanager
def _spilling(folder: str | None) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        try:
            spill = stack.enter_context(spill_folder(folder))
        except OSError as error:
            raise OfflineStoreError(
                f"There can be no folder for what does not fit in memory: {error}. Point "
                "`spill_folder` of the offline store to a folder that is there and can be written."
            ) from error
        yield spill
