"""moto's server: S3, DynamoDB, SageMaker's control plane and more, in memory."""

from __future__ import annotations

import importlib.util
import socket
import sys
from typing import TYPE_CHECKING

from feast_dynamo_ext.local.process import PortInUseError, Server, launch, missing_extra

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

NAME = "moto"
ATTEMPTS = 3


def start_moto(log_folder: Path, *, ports: Iterable[int] | None = None) -> Server:
    """Start moto's server on 127.0.0.1 and wait until it listens (about a second).

    A port that is free now can be taken a moment later, so a port that is refused is followed by
    the next. Port 0 would do too, but moto tells its own services the port it was given.

    Args:
        log_folder: folder for `moto.log`; it is created if needed.
        ports: ports to try in turn. Default: three that are free now.

    Raises:
        DependencyError: moto or its server's packages are not installed.
        LocalError: it does not start; the message has the end of its log.
    """
    for package in ("moto", "flask", "flask_cors"):
        if importlib.util.find_spec(package) is None:
            raise missing_extra("moto[server]")
    *others, last = ports or _free_ports()
    for port in others:
        try:
            return _start(log_folder, port)
        except PortInUseError:  # noqa: PERF203 - beside a process, a try costs nothing
            continue
    return _start(log_folder, last)


def _start(log_folder: Path, port: int) -> Server:
    command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return launch(NAME, command, log_folder / "moto.log", environment={"MOTO_PORT": str(port)})


def _free_ports() -> Iterator[int]:
    for _ in range(ATTEMPTS):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            yield probe.getsockname()[1]
