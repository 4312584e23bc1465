"""What a local run keeps from one time to the next: what steps made, and hashes of files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from feast_dynamo_ext.aws import AwsSettings

STATE, STATE_VERSION = "state.json", 2
HASHES = "hashes.json"
SETTLED_NS = 2 * 10**9
"""A file that changed less than that before it was hashed is hashed again the next time: another
change in the same tick of the disk's clock would leave its times as they are."""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else runs a pipeline in a folder; the system unlocks what a killed run had.

    Raises:
        ConfigError: somebody does.
    """
    import fcntl

    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            whose = file.read(200).strip()
            raise ConfigError(
                f"Another run of this pipeline is under way in {folder}"
                f"{f' ({whose})' if whose else ''}. Wait for it, or choose another --output."
            ) from error
        file.truncate(0)
        now = datetime.now(tz=timezone.utc).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()}, begun {now}\n")
        file.flush()
        yield


@dataclass
class State:
    """What steps were last made of; written after each of them, whole or not at all."""

    path: Path
    aws: AwsSettings
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, aws: AwsSettings) -> State:
        """The state of a folder, empty where there is none.

        Raises:
            ConfigError: the file is no state, or of another version.
        """
        text = files_of(str(path), aws).read(str(path))
        if text is None:
            return cls(path, aws)
        try:
            values = json.loads(text)
            if values["version"] != STATE_VERSION:
                raise ConfigError(
                    f"{path} is of version {values['version']}, and this package reads "
                    f"{STATE_VERSION}. Choose another folder, or delete this file."
                )
            return cls(path, aws, {str(name): dict(of) for name, of in values["steps"].items()})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path} is no state of a pipeline. Delete it, and every step runs again."
            ) from error

    def keep(
        self, step: str, key: str, result: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> None:
        """Note what a step was made of, and made; a hash of each thing that it reads."""
        self.steps[step] = {"key": key, "result": dict(result), "inputs": dict(inputs)}
        text = json.dumps({"version": STATE_VERSION, "steps": self.steps}, indent=1)
        with files_of(str(self.path), self.aws).new_file(str(self.path)) as file:
            file.write(text.encode())


class FileHashes:
    """SHA-256 of local files, read again only where the disk says that they have changed.

    A hash is taken again for the same path, size, inode, and times of the last change of content
    and of inode, which no program can set. What cannot be read of the cache is hashed again.
    """

    def __init__(self, folder: Path, aws: AwsSettings) -> None:
        self._path, self._aws = folder / HASHES, aws
        self._known: dict[str, list[Any]] = {}
        self._used: dict[str, list[Any]] = {}
        text = files_of(str(self._path), aws).read(str(self._path))
        with contextlib.suppress(ValueError):
            found = json.loads(text or b"{}")
            self._known = found if isinstance(found, dict) else {}

    def sha256(self, path: Path) -> str:
        """The hash of a file's content, as hex."""
        now_ns = time.time_ns()
        found = path.stat()
        state = [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
        known = self._known.get(str(path))
        if isinstance(known, list) and known[:-1] == state:
            digest = str(known[-1])
        else:
            digest = file_hash(path)
        if max(found.st_mtime_ns, found.st_ctime_ns) < now_ns - SETTLED_NS:
            self._used[str(path)] = [*state, digest]
        return digest

    def keep(self) -> None:
        """Write the hashes that were asked for, for the next run."""
        known = {path: of for path, of in self._known.items() if path not in self._used}
        # Files that are gone stay out.
        kept = {path: of for path, of in known.items() if Path(path).exists()} | self._used
        if kept == self._known:
            return
        self._known = kept
        with files_of(str(self._path), self._aws).new_file(str(self._path)) as file:
            file.write(json.dumps(kept).encode())


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
