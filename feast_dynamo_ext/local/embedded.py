"""The embedded AWS of a folder: up, down, status."""

from __future__ import annotations

import importlib.util
import socket
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from feast_dynamo_ext.errors import LocalError
from feast_dynamo_ext.local import dynamodb_local as ddb
from feast_dynamo_ext.local import process
from feast_dynamo_ext.local.process import PortInUseError, Server, launch, missing_extra, stop

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
            return _start_moto_on(log_folder, port)
        except PortInUseError:  # noqa: PERF203 - beside a process, a try costs nothing
            continue
    return _start_moto_on(log_folder, last)


def _start_moto_on(log_folder: Path, port: int) -> Server:
    command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return launch(NAME, command, log_folder / "moto.log", environment={"MOTO_PORT": str(port)})


def _free_ports() -> Iterator[int]:
    for _ in range(ATTEMPTS):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            yield probe.getsockname()[1]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: connections of the one before may linger.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class LocalAws:
    """The servers of one embedded AWS.

    Attributes:
        servers: moto, then DynamoDB Local if it was asked for.
        died: servers of an earlier `up` that were found dead and cleared away by this call; their
            logs are kept beside the new ones.
        ran_already: whether `up` found them running.
    """

    servers: tuple[Server, ...]
    died: tuple[Server, ...] = ()
    ran_already: bool = False

    @property
    def alive(self) -> bool:
        """Whether every server runs."""
        return bool(self.servers) and all(server.alive for server in self.servers)

    def environment(self) -> dict[str, str]:
        """The environment variables that point AWS's libraries and Feast at these servers."""
        endpoints = {server.name: server.endpoint for server in self.servers}
        dynamodb = endpoints.get(ddb.NAME, endpoints[NAME])
        return {
            "AWS_ENDPOINT_URL": endpoints[NAME],
            # Also where it is the same: a shell may have that of an `up` before.
            "AWS_ENDPOINT_URL_DYNAMODB": dynamodb,
            "AWS_ENDPOINT_URL_DYNAMODB_STREAMS": dynamodb,
            "FEAST_S3_ENDPOINT_URL": endpoints[NAME],
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            # Else a library without credentials asks the network for some, and waits.
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def up(folder: Path, *, dynamodb_local: bool | None = None) -> LocalAws:
    """Start the embedded AWS of a folder; it runs until `down`, also when this process ends.

    Where it runs already, that is what is returned. Servers listen where they did in the folder
    before, unless another program has the port now.

    Args:
        folder: state and logs go into its `.feast-dynamo`; it is created if needed.
        dynamodb_local: use Amazon's DynamoDB Local, on Java, for DynamoDB; moto has the rest.
            Default: where it is installed.

    Raises:
        LocalError: it runs already with another DynamoDB than is wanted, another command is at
            work on it, or a server does not start (then none is left running).
        DependencyError: moto, psutil, java or DynamoDB Local is not installed.
    """
    with process.locked(folder):
        earlier = process.read(folder)
        if LocalAws(earlier).alive:
            has_it = any(server.name == ddb.NAME for server in earlier)
            if dynamodb_local not in (None, has_it):
                raise _runs_otherwise(folder, earlier)
            return LocalAws(earlier, ran_already=True)
        died = _clear_away(folder, earlier)
        with_it = ddb.can_run() if dynamodb_local is None else dynamodb_local
        servers = _start(folder, dynamodb_local=with_it)
    return LocalAws(servers, died)


def _runs_otherwise(folder: Path, servers: tuple[Server, ...]) -> LocalError:
    where = ", ".join(f"{server.name} at {server.endpoint}" for server in servers)
    return LocalError(
        f"The embedded AWS of {folder.resolve()} runs already, with another DynamoDB than is "
        f"wanted: {where}. Use it (`feast-dynamo local env` prints its environment), or stop it "
        "first, which forgets what it holds: feast-dynamo local down"
    )


def _clear_away(folder: Path, servers: tuple[Server, ...]) -> tuple[Server, ...]:
    died = tuple(_with_log_kept(folder, server) for server in servers if not server.alive)
    for server in servers:
        stop(server)
    process.remove(folder)
    return died


def _with_log_kept(folder: Path, server: Server) -> Server:
    if server.log.resolve().parent != process.state_folder(folder).resolve():
        return server  # the state file of a repo that others wrote may name any file
    kept = server.log.with_suffix(".died.log")
    if server.log.exists():
        server.log.replace(kept)
    return replace(server, log=kept)


def _start(folder: Path, *, dynamodb_local: bool) -> tuple[Server, ...]:
    logs = process.state_folder(folder)
    # DynamoDB Local first: it is the one that may not be installed, and says so at once.
    ports = process.read_ports(folder)
    servers: tuple[Server, ...] = ()
    try:
        if dynamodb_local:
            kept = ports.get(ddb.NAME, 0)
            port = kept if kept and _is_free(kept) else 0
            servers = (ddb.start_dynamodb_local(logs, port=port),)
        kept_first = [ports[NAME]] if NAME in ports else []
        servers = (start_moto(logs, ports=[*kept_first, *_free_ports()]), *servers)
        process.write(folder, servers)
    except BaseException:
        for server in servers:
            stop(server)
        raise
    return servers


def down(folder: Path) -> LocalAws | None:
    """Stop the servers of a folder, and wait until they are gone.

    Returns:
        Those it stopped, and those it found dead; None if there were none.

    Raises:
        LocalError: another command is at work on it, or a server cannot be stopped.
    """
    if not process.state_file(folder).exists():
        return None
    with process.locked(folder):
        servers = process.read(folder)
        running = tuple(server for server in servers if server.alive)
        died = _clear_away(folder, servers)
    return LocalAws(running, died) if servers else None


def status(folder: Path) -> LocalAws | None:
    """The servers that were started for a folder and not stopped; None if there are none.

    Ask each server's `alive`: it may have died since.
    """
    servers = process.read(folder)
    return LocalAws(servers) if servers else None
