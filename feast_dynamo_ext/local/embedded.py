"""The embedded AWS of a folder: up, down, status."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from feast_dynamo_ext.errors import LocalError
from feast_dynamo_ext.local import dynamodb_local as ddb
from feast_dynamo_ext.local import moto_server, state
from feast_dynamo_ext.local.process import Server, stop

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class LocalAws:
    """The servers of one embedded AWS.

    Attributes:
        servers: moto, then DynamoDB Local if it was asked for.
        died: servers of an earlier `up` that were found dead and cleared away by this call; their
            logs are kept beside the new ones.
    """

    servers: tuple[Server, ...]
    died: tuple[Server, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether every server runs."""
        return bool(self.servers) and all(server.alive for server in self.servers)

    def environment(self) -> dict[str, str]:
        """The environment variables that point AWS's libraries and Feast at these servers."""
        endpoints = {server.name: server.endpoint for server in self.servers}
        variables = {
            "AWS_ENDPOINT_URL": endpoints[moto_server.NAME],
            "FEAST_S3_ENDPOINT_URL": endpoints[moto_server.NAME],
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            # Else a library without credentials asks the network for some, and waits.
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        if ddb.NAME in endpoints:
            variables["AWS_ENDPOINT_URL_DYNAMODB"] = endpoints[ddb.NAME]
        return variables


def up(folder: Path, *, dynamodb_local: bool = False) -> LocalAws:
    """Start the embedded AWS of a folder; it runs until `down`, also when this process ends.

    Args:
        folder: state and logs go into its `.feast-dynamo`; it is created if needed.
        dynamodb_local: use Amazon's DynamoDB Local, on Java, for DynamoDB; moto has the rest.

    Raises:
        LocalError: it runs already, another command is at work on it, or a server does not start
            (then none is left running).
        DependencyError: moto, psutil, java or DynamoDB Local is not installed.
    """
    with state.locked(folder):
        earlier = state.read(folder)
        if LocalAws(earlier).alive:
            raise _runs_already(folder, earlier)
        died = _clear_away(folder, earlier)
        servers = _start(folder, dynamodb_local=dynamodb_local)
    return LocalAws(servers, died)


def _runs_already(folder: Path, servers: tuple[Server, ...]) -> LocalError:
    where = ", ".join(f"{server.name} at {server.endpoint}" for server in servers)
    return LocalError(
        f"The embedded AWS of {folder.resolve()} runs already: {where}. Use it (`feast-dynamo "
        "local env` prints its environment), or stop it first: feast-dynamo local down"
    )


def _clear_away(folder: Path, servers: tuple[Server, ...]) -> tuple[Server, ...]:
    died = tuple(_with_log_kept(server) for server in servers if not server.alive)
    for server in servers:
        stop(server)
    state.remove(folder)
    return died


def _with_log_kept(server: Server) -> Server:
    kept = server.log.with_suffix(".died.log")
    if server.log.exists():
        server.log.replace(kept)
    return replace(server, log=kept)


def _start(folder: Path, *, dynamodb_local: bool) -> tuple[Server, ...]:
    logs = state.state_folder(folder)
    # DynamoDB Local first: it is the one that may not be installed, and says so at once.
    starts = [*([ddb.start_dynamodb_local] if dynamodb_local else []), moto_server.start_moto]
    servers: tuple[Server, ...] = ()
    try:
        for start in starts:
            servers = (start(logs), *servers)
        state.write(folder, servers)
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
    if not state.state_file(folder).exists():
        return None
    with state.locked(folder):
        servers = state.read(folder)
        running = tuple(server for server in servers if server.alive)
        died = _clear_away(folder, servers)
    return LocalAws(running, died) if servers else None


def status(folder: Path) -> LocalAws | None:
    """The servers that were started for a folder and not stopped; None if there are none.

    Ask each server's `alive`: it may have died since.
    """
    servers = state.read(folder)
    return LocalAws(servers) if servers else None
