"""Programs in processes of their own, which start with Feast imported.

Importing Feast takes five seconds of CPU, so one process does it for all of a worker's tests, and
forks. A fork is just as much a process: it can be killed, and ends as an interpreter does. What
must start from nothing (which modules are loaded, which patches come first) uses `subprocess`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_BYTES = 1 << 16
POLL_S = 0.005


class Program:
    """A running program; with what its users need of `subprocess.Popen`.

    Attributes:
        pid: of its process.
        returncode: as of `subprocess`; None while it runs, as far as is known.
        stdin, stdout, stderr: our ends of pipes; None where it has something else.
    """

    def __init__(
        self, server: ForkServer, pid: int, stdin: IO | None, stdout: IO | None, stderr: IO | None
    ) -> None:
        self._server = server
        self.pid, self.stdin, self.stdout, self.stderr = pid, stdin, stdout, stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})["status"]
            if self.returncode is not None and self.stdin:
                self.stdin.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""
        began = time.monotonic()
        while self.poll() is None:
            if timeout is not None and time.monotonic() - began >= timeout:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(POLL_S)  # only the server is told of its end
        return self.returncode  # type: ignore[return-value]

    def send_signal(self, number: int) -> None:
        # Until it was polled its number is nobody else's.
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Close its standard input, read the rest of its output, and wait for its end."""
        if self.stdin:
            self.stdin.close()
        read: dict[str, str] = {}

        def drain(name: str, stream: IO) -> None:
            with stream:
                read[name] = stream.read()

        streams = {"stdout": self.stdout, "stderr": self.stderr}
        threads = [
            threading.Thread(target=drain, args=(name, stream), daemon=True)
            for name, stream in streams.items()
            if stream and not stream.closed
        ]
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join()
        return read.get("stdout"), read.get("stderr")

    def __enter__(self) -> Program:
        return self

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        if error is not None:
            self.kill()
        self.communicate()


class ForkServer:
    """Starts programs; see fork_server.py.

    An argv is ``["-c", code, ...]``, ``["some.py", ...]``, or a command that a package of this
    environment installs, such as ``["feast", ...]``.
    """

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._one_at_a_time = threading.Lock()
        program = Path(__file__).with_name("fork_server.py")
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(program), str(number)], pass_fds=[number]
            )

    def start(
        self,
        *argv: str | Path,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: int | IO = subprocess.PIPE,
        stderr: int | IO = subprocess.PIPE,
    ) -> Program:
        """Begin a program, with a pipe as its standard input.

        Args:
            argv: what to run.
            cwd: its working directory; default: this one.
            env: its environment; default: this one.
            stdout: a pipe, or a file.
            stderr: a pipe, a file, or `subprocess.STDOUT`.
        """
        theirs_in, ours_in = os.pipe()
        to_close, fds, ours = [theirs_in], [theirs_in], [os.fdopen(ours_in, "w")]
        for stream in (stdout, stderr):
            if stream == subprocess.PIPE:
                read, write = os.pipe()
                ours.append(os.fdopen(read))
                to_close.append(write)
                fds.append(write)
            else:
                ours.append(None)  # type: ignore[arg-type]
                fds.append(fds[1] if stream == subprocess.STDOUT else stream.fileno())  # type: ignore[union-attr]
        message = {
            "argv": [str(part) for part in argv],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
        }
        pid = self.ask({"start": message}, fds)["pid"]
        for number in to_close:
            os.close(number)
        return Program(self, pid, *ours)

    def run(
        self, *argv: str | Path, timeout: float | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; options as of `start`."""
        with self.start(*argv, **options) as program:
            said, errors = program.communicate(timeout)
        return subprocess.CompletedProcess(list(argv), program.returncode or 0, said, errors)

    def ask(self, message: dict[str, Any], streams: list[int] | None = None) -> dict[str, Any]:
        """One message there, one back."""
        data = json.dumps(message).encode() + b"\n"
        with self._one_at_a_time:
            sent = socket.send_fds(self._channel, [data], streams or [])
            self._channel.sendall(data[sent:])
            answer = b""
            while not answer.endswith(b"\n"):
                part = self._channel.recv(MOST_BYTES)
                assert part, "the fork server is gone"
                answer += part
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """End the server."""
        self._channel.close()
        self._process.wait(timeout=30)
