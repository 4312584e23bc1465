"""The hosts of a training job on this machine: a process each, and the folder that they share.

A host runs AWS's toolkit, which runs the script: both are one group of processes, that signals go
to. What a script leaves in its folder of checkpoints is copied to where the job keeps them while
it runs, and is there when a job begins, so that one that was interrupted goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from feast_dynamo_ext.errors import AwsUnavailableError, ThrottledError, TrainingSetError
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from feast_dynamo_ext.aws import AwsSettings

logger = logging.getLogger(__name__)

TOOLKIT = "sagemaker_training"
STOP_S = 120.0
"""Seconds between SIGTERM and SIGKILL, as SageMaker gives a container."""

SYNC_S = 1.0
"""Seconds between two looks at the folders of checkpoints."""

OF_A_KILLED_WRITER = re.compile(r"\..*\.[0-9a-f]{32}\.tmp")


@dataclass(frozen=True)
class Ran:
    """What became of the hosts.

    Attributes:
        exit_codes: by host; of one that a signal ended, 128 and the signal's number.
        is_stopped: whether the time was over.
        failed: the host that failed first; None where none did.
        log: file of all lines, each with its host.
    """

    exit_codes: Mapping[str, int]
    is_stopped: bool
    failed: str | None
    log: Path


class Hosts:
    """The hosts of a job, a process each; where one fails the others are stopped."""

    def __init__(
        self,
        folder: Path,
        environments: Mapping[str, Mapping[str, str]],
        on_line: Callable[[str, str], None] | None,
    ) -> None:
        self._folder, self._environments, self._on_line = folder, environments, on_line
        self._lock = threading.Lock()

    def run(self, limit_s: float) -> Ran:
        """Run all hosts to their end, for at most so many seconds.

        An exception meanwhile, as of Ctrl-C, stops them as SageMaker does: SIGTERM, a wait,
        SIGKILL. Another one while they are waited for kills them.
        """
        path = self._folder / "log.txt"
        command = [sys.executable, "-m", f"{TOOLKIT}.cli.train"]
        processes: dict[str, subprocess.Popen[str]] = {}
        readers: dict[Future[int], str] = {}
        try:
            with (
                path.open("w", encoding="utf-8") as file,
                ThreadPoolExecutor(len(self._environments)) as pool,
            ):
                try:
                    for host, environment in self._environments.items():
                        process = _started(command, self._folder / host, environment)
                        processes[host] = process
                        readers[pool.submit(self._read, host, process, file)] = host
                    is_stopped, failed = self._until_done(readers, processes, limit_s)
                except BaseException:
                    _stop({reader: processes[host] for reader, host in readers.items()})
                    raise
            codes = {host: process.wait() for host, process in processes.items()}
        finally:
            for process in processes.values():
                if process.stdout is not None:
                    process.stdout.close()
        shown = {host: code if code >= 0 else 128 - code for host, code in codes.items()}
        return Ran(shown, is_stopped, failed, path)

    def _read(self, host: str, process: subprocess.Popen[str], file: TextIO) -> int:
        for line in process.stdout or ():
            with self._lock:
                file.write(f"{host} | {line}")
                file.flush()
                if self._on_line is not None:
                    self._on_line(host, line.rstrip("\n"))
        return process.wait()

    def _until_done(
        self,
        readers: Mapping[Future[int], str],
        processes: Mapping[str, subprocess.Popen[str]],
        limit_s: float,
    ) -> tuple[bool, str | None]:
        """Whether the hosts were stopped by the clock, and the one that failed first."""
        deadline = time.monotonic() + limit_s
        waiting = set(readers)
        while waiting:
            left_s = max(0.0, deadline - time.monotonic())
            done, waiting = wait(waiting, timeout=left_s, return_when=FIRST_COMPLETED)
            failed = next((readers[one] for one in done if one.result()), None)
            if failed is None and done:
                continue
            _stop({reader: processes[readers[reader]] for reader in waiting})
            return failed is None, failed
        return False, None


def _started(
    command: list[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - running the caller's script is the purpose
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def _stop(running: Mapping[Future[int], subprocess.Popen[str]]) -> None:
    """SIGTERM, a wait, SIGKILL: to all whose output has not ended.

    A script may live on where its toolkit does not, so output tells, and not the toolkit's end.
    """
    try:
        _signal(running, signal.SIGTERM)
        wait(running, timeout=STOP_S)
    finally:
        _signal(running, signal.SIGKILL)


def _signal(running: Mapping[Future[int], subprocess.Popen[str]], number: signal.Signals) -> None:
    for reader, process in running.items():
        if not reader.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


# -- checkpoints ------------------------------------------------------------------------------


class Checkpoints:
    """The hosts' folders of checkpoints, and the prefix of S3, or folder, that they are kept in.

    As on SageMaker all hosts share the prefix: a file's name has the host's in it, or one host
    writes. What a script deletes stays there. A file that is written to while it is copied is
    copied again; one that takes its name once it is complete is never kept by half.
    """

    def __init__(self, uri: str, folders: Sequence[Path], aws: AwsSettings) -> None:
        self._uri, self._folders = uri.rstrip("/"), folders
        self._files = files_of(uri, aws)
        self._copied: dict[Path, tuple[int, int]] = {}

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Bring what is kept to the hosts, and keep what they write until the block ends.

        Raises:
            AwsError: S3 refused. Where it is busy or away, it is asked again.
        """
        self._restore()
        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self._follow, ended)
            try:
                yield
            finally:
                ended.set()
                following.result()
                self._sync()

    def _follow(self, ended: threading.Event) -> None:
        while not ended.wait(SYNC_S):
            try:
                self._sync()
            except (AwsUnavailableError, ThrottledError) as error:  # noqa: PERF203 - each by itself
                logger.warning("Checkpoints are kept later: %s", error)

    def _restore(self) -> None:
        for uri in self._files.at(self._uri):
            within = uri.removeprefix(f"{self._uri}/")
            if OF_A_KILLED_WRITER.fullmatch(uri.rpartition("/")[2]):
                continue
            if ".." in within.split("/"):
                raise TrainingSetError(f"`{uri}` would be written outside of the checkpoints.")
            for folder in self._folders:
                target = folder / within
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    for chunk in self._files.chunks(uri):
                        file.write(chunk)
                self._copied[target] = _state(target)

    def _sync(self) -> None:
        for folder in self._folders:
            for path in sorted(folder.rglob("*")):
                # A script may rename or delete a file at any time.
                with contextlib.suppress(FileNotFoundError):
                    if path.is_file() and self._copied.get(path) != _state(path):
                        self._keep(path, f"{self._uri}/{path.relative_to(folder).as_posix()}")

    def _keep(self, path: Path, uri: str) -> None:
        with path.open("rb") as source:
            seen = _state(path)
            with self._files.new_file(uri) as file:
                while chunk := source.read(1 << 20):
                    file.write(chunk)
        self._copied[path] = seen


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
