"""Which files a block opens, as the kernel saw it (inotify): whoever opened them, and however."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPENED, OVERFLOWN, OF_FOLDER = 0x20, 0x4000, 0x4000_0000
EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
READ_BYTES = 1 << 20


@contextlib.contextmanager
def files_opened(folder: Path) -> Iterator[list[Path]]:
    """A list that holds, once the block is left, each opening of a file below a folder.

    Raises:
        RuntimeError: the kernel cannot watch so many folders, or has dropped events.
    """
    kernel = ctypes.CDLL(None, use_errno=True)
    queue = kernel.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    opened: list[Path] = []
    try:
        watched = {}
        for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            watch = kernel.inotify_add_watch(queue, os.fsencode(path), OPENED)
            if watch < 0:
                reason = os.strerror(ctypes.get_errno())
                raise RuntimeError(f"{path} cannot be watched: {reason}.")
            watched[watch] = path
        yield opened
        for watch, mask, name in _events(queue):
            if mask & OVERFLOWN:
                raise RuntimeError(f"{folder}: more files were opened than the kernel counts.")
            if not mask & OF_FOLDER:
                opened.append(watched[watch] / name)
    finally:
        os.close(queue)


def _events(queue: int) -> Iterator[tuple[int, int, str]]:
    with contextlib.suppress(BlockingIOError):
        while True:
            read, at = os.read(queue, READ_BYTES), 0
            while at < len(read):
                watch, mask, _, length = EVENT.unpack_from(read, at)
                at += EVENT.size
                yield watch, mask, os.fsdecode(read[at : at + length].rstrip(b"\0"))
                at += length
