"""The commands and servers that the demo starts, and stops."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from feast_dynamo_ext.errors import FeastDynamoError

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = Path(__file__).resolve().parent
WORK = REPO.parent / ".feast-dynamo" / "demo"


def feast(*arguments: str) -> None:
    """Run the real `feast` command in the repo."""
    print(f"      $ feast {' '.join(arguments)}", flush=True)
    subprocess.run([Path(sys.executable).parent / "feast", *arguments], cwd=REPO, check=True)


def feast_dynamo(*arguments: str) -> None:
    """Run the real `feast-dynamo` command in the repo."""
    print(f"      $ feast-dynamo {' '.join(arguments)}", flush=True)
    command = [Path(sys.executable).parent / "feast-dynamo", *arguments]
    subprocess.run(command, cwd=REPO, check=True)


@contextlib.contextmanager
def following(table: str) -> Iterator[subprocess.Popen[bytes]]:
    """A really started `feast-dynamo capture stream`, which commits what it read at its end."""
    command = ["feast-dynamo", "capture", "stream", table]
    print(f"      $ {' '.join(command)}", flush=True)
    with (WORK / "stream.log").open("w") as log:
        worker = subprocess.Popen(
            [Path(sys.executable).parent / command[0], *command[1:]],
            cwd=REPO,
            stdout=None,
            stderr=log,
        )
        try:
            yield worker
        finally:
            worker.terminate()
            code = worker.wait(timeout=60)
    if code:
        fail(f"following the stream ended with {code}; its log: {WORK / 'stream.log'}")


def feast_serve() -> contextlib.AbstractContextManager[str]:
    """A really started `feast serve` on a free port; gives its URL."""
    return served(["feast", "serve", "-h", "127.0.0.1", "--no-access-log"], "", "/health")


@contextlib.contextmanager
def served(
    command: list[str],
    port_variable: str,
    health: str,
    variables: dict[str, str] | None = None,
) -> Iterator[str]:
    """A server on a free port, which an environment variable or else `-p` says; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    command = command if port_variable else [*command, "-p", port]
    print(f"      $ {' '.join(command)}", flush=True)
    log_path = WORK / f"{command[0]}-{command[1]}.log"
    with log_path.open("w") as log:
        server = subprocess.Popen(
            [Path(sys.executable).parent / command[0], *command[1:]],
            cwd=REPO,
            env=os.environ | ({port_variable: port} if port_variable else {}) | (variables or {}),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_healthy(server, f"{url}{health}", log_path)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=30)


def wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        if is_healthy(url):
            return
        time.sleep(0.2)
    fail(f"The server did not answer; its log: {log}")


def is_healthy(url: str) -> bool:
    """Whether a server answers."""
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own
    except OSError:
        return False
    return True


def got(url: str) -> Any:
    """What a server of ours answers."""
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - our own server
        return json.load(answer)


def posted(url: str, body: dict[str, Any]) -> Any:
    """What a server of ours answers to JSON."""
    request = urllib.request.Request(  # noqa: S310 - our own server
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own server
        return json.load(answer)


def fail(message: str) -> NoReturn:
    """End the demo with an error."""
    raise FeastDynamoError(message)
