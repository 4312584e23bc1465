"""The local servers as processes: start them detached, know them again, stop them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from feast_dynamo_ext.errors import DependencyError, LocalError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.05
LOG_TAIL_LINES = 5

# The kernel's boot time, which psutil adds to a process's age, moves with clock corrections.
SAME_START_S = 2.0

# Each server writes the address it listens on to its log, once it does.
LISTENING = re.compile(r"127\.0\.0\.1:(\d+)\D")
PORT_IN_USE = "Address already in use"


class PortInUseError(LocalError):
    """Another process took the port first; the next port may do."""


@dataclass(frozen=True)
class Server:
    """A server process that was started here.

    Attributes:
        name: `moto` or `dynamodb-local`.
        endpoint: URL for boto3, for example `http://127.0.0.1:40693`.
        pid: process id; only together with `started_at` does it name one process.
        started_at: when the process started, epoch seconds.
        log: file with what the server printed.
    """

    name: str
    endpoint: str
    pid: int
    started_at: float
    log: Path

    @property
    def alive(self) -> bool:
        """Whether this very process runs: not a zombie, not another one with its old pid."""
        psutil = load_psutil()
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < SAME_START_S
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # not ours, if we may not look at it
            return False


def load_psutil() -> Any:
    """The psutil module.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import psutil
    except ImportError as error:
        raise missing_extra("psutil") from error
    return psutil


def missing_extra(package: str) -> DependencyError:
    """The error for a package of the extra `local` that is not installed."""
    return DependencyError(
        f"The embedded AWS needs the package `{package}`, which is not installed. "
        "Run: pip install 'moto[server]>=5.1.20' 'psutil>=5.9'"
    )


def launch(
    name: str,
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> Server:
    """Start a server that outlives this process, and wait until it listens on 127.0.0.1.

    It runs in a session of its own, so that Ctrl-C in the caller's terminal does not reach it,
    and in the log's folder, so that no module of the caller's folder shadows one of its own.

    Args:
        name: what messages call it.
        command: program and arguments; it must print `127.0.0.1:PORT` once it listens.
        log: file for its output, replaced if there is one.
        environment: variables on top of those of this process.
        timeout_s: seconds until it must listen.

    Raises:
        PortInUseError: the port it was told to listen on is taken.
        LocalError: it ended, or did not listen in time; nothing is left running.
    """
    psutil = load_psutil()
    log = log.resolve()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - the callers' own fixed commands
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        port = _wait_until_listening(name, process, log, timeout_s)
        started_at = float(psutil.Process(process.pid).create_time())
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.returncode = 0  # else Popen warns, when collected, that its process still runs
    return Server(name, f"http://127.0.0.1:{port}", process.pid, started_at, log)


def _wait_until_listening(
    name: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float
) -> int:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _ended(name, process.returncode, log)
        found = LISTENING.search(log.read_text(errors="replace"))
        if found:
            return int(found[1])
        time.sleep(POLL_S)
    raise LocalError(
        f"{name} did not listen within {timeout_s:g} s and was stopped. {_log_end(log)}"
    )


def _ended(name: str, code: int, log: Path) -> LocalError:
    end = _log_end(log)
    kind = PortInUseError if PORT_IN_USE in end else LocalError
    return kind(f"{name} ended with exit code {code} before it listened. {end}")


def _log_end(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    tail = " | ".join([line for line in lines if line][-LOG_TAIL_LINES:])
    return f"The end of its log {log}: {tail or '(empty)'}"


def stop(server: Server, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Stop a server and wait until it is gone; one that is gone already is left alone.

    Its pid is signalled only while it is the process that was started, never a later one.

    Args:
        server: what to stop.
        timeout_s: seconds until it is killed, and then until that must have worked.

    Raises:
        LocalError: it runs on, even after a kill.
    """
    if not server.alive:
        return
    psutil = load_psutil()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself just now
            psutil.Process(server.pid).send_signal(number)
        if _wait_until_gone(server, timeout_s):
            return
    raise LocalError(
        f"{server.name} (pid {server.pid}) runs on {2 * timeout_s:g} s after it was told to "
        f"stop and killed. See `ps -p {server.pid}`, end it, and run this again."
    )


def _wait_until_gone(server: Server, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        alive = server.alive
        with contextlib.suppress(ChildProcessError):  # only its parent can, and must, reap it
            os.waitpid(server.pid, os.WNOHANG)
        if not alive:
            return True
        time.sleep(POLL_S)
    return False


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


def read_ports(folder: Path) -> dict[str, int]:
    """Where the servers of a folder listened last, by name; also of those that were stopped."""
    try:
        found = json.loads(state_file(folder).read_text(encoding="utf-8"))
        return {str(name): int(port) for name, port in found.get("ports", {}).items()}
    except FileNotFoundError:
        return {}


def write(folder: Path, servers: tuple[Server, ...]) -> None:
    """Replace the state as a whole: a reader sees the old one or the new one."""
    path = state_file(folder)
    ports = {server.name: int(server.endpoint.rpartition(":")[2]) for server in servers}
    state = {
        "servers": [{**vars(server), "log": str(server.log)} for server in servers],
        "ports": read_ports(folder) | ports,
    }
    content = json.dumps(state, indent=2)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix="local.json.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content + "\n")
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def remove(folder: Path) -> None:
    """Forget the servers of a folder, but not their ports; their logs stay."""
    if state_file(folder).exists():
        write(folder, ())


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
