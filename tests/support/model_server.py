"""Served models on this machine: an app in a thread, ports for processes."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def running(app: Any) -> Iterator[tuple[str, uvicorn.Server]]:
    """The app on uvicorn, in a thread; its URL, and what stops it."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join()


def free_ports(count: int) -> list[int]:
    """Ports that are free now; the server takes none from 49,151 on, where the system's begin."""
    found = []
    for port in range(20_000 + os.getpid() % 10_000, 49_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found
