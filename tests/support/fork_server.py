"""A process that has imported Feast, and forks a program a message that it reads.

Started by `programs.py`, which says what a program is. Messages are lines of JSON, over the socket
whose descriptor is the only argument; the first has the program's standard streams::

    {"start": {"argv": [...], "cwd": path, "env": {...}}}  -> {"pid": 12}
    {"poll": 12}                                           -> {"status": null}
    {"poll": 12}                                           -> {"status": -9}

A status is as of `subprocess`: minus the signal that ended it, or its exit code.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import socket
import sys
import time
import warnings
from importlib.metadata import entry_points
from pathlib import Path

# What most programs need, without a thread of any library having been started.
import boto3  # noqa: F401
import duckdb  # noqa: F401
import feast  # noqa: F401
import pandas as pd  # noqa: F401
import pyarrow.dataset  # noqa: F401

import feast_dynamo_ext.cli.materialize
import feast_dynamo_ext.materialize.engine
import feast_dynamo_ext.offline_store
import feast_dynamo_ext.provider  # noqa: F401

MOST_BYTES = 1 << 20
STREAMS = 3


def serve(channel: socket.socket) -> dict | None:
    """Answer messages until the other side is gone; in a forked process, the program to be."""
    while True:
        data, streams, _, _ = socket.recv_fds(channel, MOST_BYTES, STREAMS)
        if not data:
            return None
        while not data.endswith(b"\n"):
            data += channel.recv(MOST_BYTES)
        message = json.loads(data)
        if "start" in message:
            pid = os.fork()
            if pid == 0:
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                    os.close(stream)
                channel.close()
                return message["start"]
            for stream in streams:
                os.close(stream)
            answer = {"pid": pid}
        else:
            found, status = os.waitpid(message["poll"], os.WNOHANG)
            answer = {"status": os.waitstatus_to_exitcode(status) if found else None}
        channel.sendall(json.dumps(answer).encode() + b"\n")


def become(program: dict) -> None:
    """Run a program as the interpreter does, which afterwards comes to its own end."""
    os.chdir(program["cwd"])
    os.environ.clear()
    os.environ.update(program["env"])
    time.tzset()
    if os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(os.environ["PYTHONWARNINGS"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    name, *arguments = program["argv"]
    if name == "-c":
        code, *arguments = arguments
        sys.argv = ["-c", *arguments]
        sys.path.insert(0, "")
        exec(compile(code, "<string>", "exec"), sys.modules["__main__"].__dict__)  # noqa: S102
    elif name.endswith(".py"):
        sys.argv = [name, *arguments]
        sys.path.insert(0, str(Path(name).parent))
        runpy.run_path(name, run_name="__main__")
    else:
        # Feast's command quietens the loggers that it finds, among which ours are not yet.
        for logger in [*logging.root.manager.loggerDict]:
            if logger.startswith("feast_dynamo_ext"):
                del logging.root.manager.loggerDict[logger]
        (command,) = entry_points(group="console_scripts", name=name)
        sys.argv = [str(Path(sys.executable).with_name(name)), *arguments]
        sys.exit(command.load()())


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        program = serve(channel)
    if program is not None:
        become(program)
