"""Runs a contender to its end, or kills it when it takes too much.

RLIMIT_AS would not do: it counts address space, of which Arrow and DuckDB reserve far more than
they use.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness import Command

LOOK_S = 0.2
PARENT, RESIDENT = 1, 21  # fields of /proc/PID/stat, counted from the state


@dataclass(frozen=True)
class Limits:
    """What a process may take.

    Attributes:
        seconds: wall clock.
        memory_mb: resident memory.
        free_disk_mb: of the disk it spills to, so much must stay free.
    """

    seconds: float
    memory_mb: float
    free_disk_mb: float


@dataclass(frozen=True)
class Ended:
    """How it ended.

    Attributes:
        printed: on stdout.
        failure: what it was killed for, or its exit code and last line; nothing if it did well.
        peak_mb: the most memory that it was seen with, or all of its processes together.
    """

    printed: str
    failure: str
    peak_mb: float


def watched(command: Command, folder: Path, limits: Limits) -> Ended:
    """Run a command under limits; `folder` is on the disk it spills to."""
    with command.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder) as process:
        try:
            return _watch(process, folder, limits)
        finally:
            process.kill()


def _watch(process: subprocess.Popen[str], folder: Path, limits: Limits) -> Ended:
    started, peak_mb, reason = time.monotonic(), 0.0, ""
    while True:
        try:
            printed, said = process.communicate(timeout=LOOK_S)
            break
        except subprocess.TimeoutExpired:
            peak_mb = max(peak_mb, peak_mb_of(process.pid), memory_mb(process.pid))
            reason = reason or _exceeded(limits, time.monotonic() - started, process.pid, folder)
            if reason:
                process.kill()
    last = said.strip().splitlines()[-1:] or ["it said nothing"]
    if process.returncode and not reason:
        reason = f"exit code {process.returncode}: {last[0]}"
    return Ended(printed, reason, peak_mb)


def _exceeded(limits: Limits, seconds: float, pid: int, folder: Path) -> str:
    if seconds > limits.seconds:
        return f"killed after {limits.seconds:,.0f} s"
    if memory_mb(pid) > limits.memory_mb:
        return f"killed at {limits.memory_mb:,.0f} MB"
    if shutil.disk_usage(folder).free < limits.free_disk_mb * 2**20:
        return "killed: it had filled the disk"
    return ""


def memory_mb(pid: int) -> float:
    """Resident memory of a process and of all that it started; 0 once it has ended."""
    pages, children = {}, defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # From the state on: the name before may hold blanks.
            fields = path.read_text().rpartition(")")[2].split()
            pages[int(path.parent.name)] = int(fields[RESIDENT])
            children[int(fields[PARENT])].append(int(path.parent.name))
    found = [pid] if pid in pages else []
    for one in found:
        found += children[one]
    return sum(pages[one] for one in found) * resource.getpagesize() / 2**20


def peak_mb_of(pid: int) -> float:
    """0 for a process that has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0
