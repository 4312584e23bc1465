"""Which process it is that holds a lease, and whether it is surely gone."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
MOST_COMMAND = 200
"""Characters of a command that are kept."""

# Fields of /proc/<pid>/stat after the command's name, see proc_pid_stat(5).
STATE, START_TIME = 0, 19
ENDED = {"Z", "X"}


@dataclass(frozen=True)
class Process:
    """A process on some machine.

    Attributes:
        host: the machine's name, for people: many machines are called alike.
        pid: its number.
        kernel: what is the same only for processes that can see each other: the boot id of the
            machine and the namespace of pids (each container has its own). None where the system
            does not tell, as outside Linux.
        born: when it started, in ticks of that kernel; tells it from a later one of the same pid.
        command: how it was started.
    """

    host: str
    pid: int
    kernel: str | None
    born: str | None
    command: str

    @classmethod
    def this(cls) -> Process:
        """The process that runs this."""
        pid = os.getpid()
        _, born = _stat(pid) or (None, None)
        return cls(socket.gethostname(), pid, _kernel(), born, _command())

    def is_dead(self) -> bool:
        """Whether it is surely gone. False where it runs, and where that cannot be told here."""
        if self.kernel is None or self.born is None:
            return False
        if (self.kernel, self.host) != (_kernel(), socket.gethostname()):
            return False
        found = _stat(self.pid)
        if found is None:
            return not _exists(self.pid)
        state, born = found
        return state in ENDED or born != self.born


def _kernel() -> str | None:
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return None


def _stat(pid: int) -> tuple[str, str] | None:
    """A process's state and start; None where there is none, or it may not be looked at."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The command's name is in parentheses and may hold any character, these included.
    fields = text.rpartition(")")[2].split()
    return fields[STATE], fields[START_TIME]


def _exists(pid: int) -> bool:
    """Whether a pid is taken, even by a process that /proc hides (mount option hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _command() -> str:
    program, *arguments = sys.argv or [""]
    return shlex.join([Path(program).name, *arguments])[:MOST_COMMAND]
