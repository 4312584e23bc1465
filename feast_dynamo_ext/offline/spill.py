"""Folders for what DuckDB spills: removed after use, and those of killed processes by later ones.

Whoever uses a folder holds a lock on a file in it, which the kernel drops with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

PREFIX, LOCK, SPILLED = "feast-dynamo-", "lock", "spilled"

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
    with (Path(folder.name) / LOCK).open("w") as lock, folder:
        lock.write(platform.node())
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        spilled = Path(folder.name) / SPILLED
        spilled.mkdir()
        yield str(spilled)


def _remove_left(parent: Path) -> None:
    """Remove what killed processes of this machine left."""
    for folder in parent.glob(f"{PREFIX}*"):
        _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    lock = folder / LOCK
    try:
        is_ours = lock.read_text(errors="replace") == platform.node()
        if not is_ours or time.time() - lock.stat().st_mtime < SETTLED_S:
            return
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    except (BlockingIOError, FileNotFoundError, NotADirectoryError, PermissionError):
        return  # in use; no such folder, or gone meanwhile; of another user
    except OSError as error:
        logger.warning("%s, which a killed process left, stays: %s", folder, error)
    else:
        logger.info("%s was removed, which a killed process had left", folder)
