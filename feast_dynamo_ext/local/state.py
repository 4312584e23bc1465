"""What runs for a folder, in `<folder>/.feast-dynamo/local.json`."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from feast_dynamo_ext.errors import LocalError
from feast_dynamo_ext.local.process import Server

if TYPE_CHECKING:
    from collections.abc import Iterator


def state_folder(folder: Path) -> Path:
    """Where state, lock and logs of a folder's servers are."""
    return folder / ".feast-dynamo"


def state_file(folder: Path) -> Path:
    """The file that says which servers were started for a folder."""
    return state_folder(folder) / "local.json"


def read(folder: Path) -> tuple[Server, ...]:
    """The servers that were started and not stopped; they may have died. Empty: none.

    Raises:
        LocalError: the file is not one that `write` wrote.
    """
    path = state_file(folder)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            Server(
                name=str(one["name"]),
                endpoint=str(one["endpoint"]),
                pid=int(one["pid"]),
                started_at=float(one["started_at"]),
                log=Path(one["log"]),
            )
            for one in found["servers"]
        )
    except FileNotFoundError:
        return ()
    except (ValueError, KeyError, TypeError) as error:
        raise LocalError(
            f"{path} cannot be read as the state of the embedded AWS ({error!r}). Stop what still "
            "runs by its process id, delete the file, and run `feast-dynamo local up`."
        ) from error


def write(folder: Path, servers: tuple[Server, ...]) -> None:
    """Replace the state as a whole: a reader sees the old one or the new one."""
    path = state_file(folder)
    content = json.dumps(
        {"servers": [{**vars(server), "log": str(server.log)} for server in servers]}, indent=2
    )
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix="local.json.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content + "\n")
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def remove(folder: Path) -> None:
    """Forget the servers of a folder; their logs stay."""
    state_file(folder).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other commands from changing the folder's servers meanwhile.

    The kernel drops the lock with the process that holds it, so none is ever stale. The file
    stays: deleting it would let two processes lock two files of the same name.

    Raises:
        LocalError: another command holds the lock, or the folder cannot be written.
    """
    import fcntl  # not on Windows, where the embedded AWS runs inside WSL

    with _lock_file(folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise LocalError(
                f"Another `feast-dynamo local` command (pid {file.read().strip()}) is starting or "
                f"stopping the servers of {folder.resolve()}. Let it end, then run this again."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock_file(folder: Path) -> TextIO:
    own = state_folder(folder)
    try:
        own.mkdir(parents=True, exist_ok=True)
        (own / ".gitignore").write_text("*\n", encoding="utf-8")
        return (own / "local.lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise LocalError(
            f"{own.resolve()} cannot be written: {error.strerror}. "
            "Choose another folder with --folder."
        ) from error
