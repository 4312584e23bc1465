"""DuckDB in this process, within the memory and the disk that the config gives it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import duckdb

from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.offline.spill import spill_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


class Limits(Protocol):
    """What a connection may use; `DuckDbEngine` says what each means."""

    @property
    def memory_limit(self) -> str | None:
        """DuckDB's memory limit."""

    @property
    def threads(self) -> int | None:
        """Threads."""

    @property
    def spill_folder(self) -> str | None:
        """Where it spills."""


@contextlib.contextmanager
def connected(limits: Limits, what: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to an empty database; what it spills is removed afterwards.

    Args:
        limits: memory, threads and spill folder.
        what: what it is for, for messages.

    Raises:
        OfflineStoreError: memory or disk were not enough, or there can be no spill folder.
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
            with duckdb.connect(":memory:", config=config) as connection:
                yield connection
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise OfflineStoreError(
                f"{what} ran out of memory or of disk at {spill}: {error}. Raise `memory_limit`, "
                "or point `spill_folder` to a larger disk."
            ) from error


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
