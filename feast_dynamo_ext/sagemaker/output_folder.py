"""Where a training set is kept, and who may write there.

Nothing is a training set without its manifest. A build that begins to write puts a claim in the
manifest's place, on the condition that what is there is what it has seen; it writes files where
there are none, and puts its manifest in the place of its own claim, on the condition that this is
still there. So a set that is there is the work of one build::

    build A   claim A ........ files ........ manifest A in place of claim A: refused
    build B              claim B in place of claim A, A's files deleted, files, manifest B

A build that comes later takes over, as it cannot know whether the one before was killed; that one
finds its claim gone with its next file. What is overwritten is gone once the claim is there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from feast_dynamo_ext.aws import scheme_and_path
from feast_dynamo_ext.errors import (
    DestinationError,
    DestinationExistsError,
    FeastDynamoError,
    ResourceNotFoundError,
    TrainingSetError,
)
from feast_dynamo_ext.sagemaker.split_rule import SPLITS
from feast_dynamo_ext.storage import FileReplacedError, LocalFiles, files_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.storage import Files, NewFile


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LAYOUT_FOLDERS = (*SPLITS, "rows")

_OWN_FILE = re.compile(
    r"(train|validation|test)/(csv|parquet|recordio|libsvm)/part-\d{5}\.(csv|parquet|recordio|libsvm)"
    r"|(train|validation|test)/csv/categorical_index\.json"
    r"|rows/(train|validation|test)(/part-\d{5})?\.parquet"
    r"|rows/entity_rows\.parquet"
)
AT_WORK_S = 60
"""A manifest is written and renamed in a moment."""

_KILLED = re.compile(r"(.*/)?\.[^/]+\.[0-9a-f]{32}\.tmp")
"""What a writer that was killed leaves on a disk."""

_CLAIM = b'{"building": '


@dataclass(frozen=True)
class OutputFolder:
    """Where a training set is kept; paths are relative to it, with forward slashes.

    Attributes:
        uri: `s3://bucket/prefix` or an absolute local path, without a slash at the end.
        storage: what lists, reads and writes files there.
    """

    uri: str
    storage: Files

    @contextlib.contextmanager
    def new_file(self, path: str, *, replaces: bool = True) -> Iterator[NewFile]:
        """A file that appears where the block ends without error.

        Args:
            path: of the file.
            replaces: whether it may take the place of another.

        Raises:
            DestinationExistsError: there is one, and it may not.
        """
        uri = self.uri_of(path)
        with _explained(uri), self.storage.new_file(uri, replaces=replaces) as file:
            yield file

    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's bytes, at most 1 MiB at a time.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with _explained(self.uri_of(path)):
            yield from self.storage.chunks(self.uri_of(path))

    def exists(self, path: str) -> bool:
        """Whether there is a file at the path."""
        with _explained(self.uri_of(path)):
            return self.storage.find(self.uri_of(path)) is not None

    def files(self) -> list[str]:
        """Paths of all files in the folders of a training set, sorted."""
        start = len(self.uri) + 1
        with _explained(self.uri):
            found = [uri for name in LAYOUT_FOLDERS for uri in self.storage.at(self.uri_of(name))]
        return sorted(uri[start:] for uri in found)

    def unreadable(self) -> list[str]:
        """Paths there, on a disk, that are neither files nor folders: links to nothing, pipes."""
        if not isinstance(self.storage, LocalFiles):
            return []
        base = Path(self.uri)
        return sorted(
            (Path(folder) / name).relative_to(base).as_posix()
            for of_set in LAYOUT_FOLDERS
            for folder, _, names in os.walk(base / of_set)
            for name in names
            if not (Path(folder) / name).is_file()
        )

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files."""
        with _explained(self.uri):
            self.storage.delete([self.uri_of(path) for path in paths])

    def uri_of(self, path: str) -> str:
        """URI of a file."""
        return f"{self.uri}/{path}"

    def manifest(self) -> bytes | None:
        """What stands in the manifest's place, a claim too; None where there is nothing."""
        with _explained(self.uri_of(MANIFEST)), contextlib.suppress(ResourceNotFoundError):
            return self.storage.read(self.uri_of(MANIFEST))
        return None  # nor is there such a bucket

    def has_set(self) -> bool:
        """Whether there is the manifest of a complete training set."""
        found = self.manifest()
        return found is not None and not found.startswith(_CLAIM)

    def manifest_text(self) -> bytes:
        """The manifest of the training set.

        Raises:
            TrainingSetError: there is none, or a build has begun and has not ended.
        """
        with _explained(self.uri_of(MANIFEST)):
            try:
                found = self.storage.read(self.uri_of(MANIFEST))
            except ResourceNotFoundError as error:
                raise TrainingSetError(f"{self.uri}: there is no such bucket. {error}") from error
        if found is None:
            raise TrainingSetError(
                f"{self.uri} has no {MANIFEST}: no training set was written there, or writing it "
                "was interrupted. Write it again."
            )
        if found.startswith(_CLAIM):
            raise TrainingSetError(
                f"{self.uri} holds no complete training set: {_begun(found)}, and has not ended, "
                "or was interrupted. Wait for it, or write the set again."
            )
        return found


def open_folder(output: str, settings: AwsSettings) -> OutputFolder:
    """The folder of a URI or local path.

    Raises:
        TrainingSetError: the output is empty.
        ConfigError: neither S3 nor a local path.
    """
    if not output:
        raise TrainingSetError("`output` is empty. Name an s3://bucket/prefix or a local folder.")
    if "\0" in output:
        raise TrainingSetError(f"`output` is {output!r}, which is no path: it has a NUL in it.")
    storage, path = files_of(output, settings), scheme_and_path(output)[1]
    if isinstance(storage, LocalFiles):
        return OutputFolder(str(Path(path).resolve()), storage)
    if path.startswith("/") or "//" in path.strip("/"):
        raise TrainingSetError(
            f"`output` is {output}, with an empty name before a slash. Write s3://bucket/prefix "
            "with single slashes."
        )
    return OutputFolder(f"s3://{path.strip('/')}", storage)


@contextlib.contextmanager
def _explained(resource: str) -> Iterator[None]:
    try:
        yield
    except FileReplacedError:
        raise
    except DestinationError as error:
        raise TrainingSetError(str(error)) from error
    except (FeastDynamoError, FileNotFoundError):
        raise
    except OSError as error:
        raise TrainingSetError(
            f"{resource}: {error}. Check the path, its permissions and the free space."
        ) from error


# Who may write there


def refuse_existing(folder: OutputFolder, *, overwrite: bool) -> bytes | None:
    """What a build finds in the manifest's place, which it may claim later.

    Raises:
        TrainingSetError: a training set that is not to be replaced, or files of others, which a
            job would read as data.
    """
    found = folder.manifest()
    if found is not None and not found.startswith(_CLAIM) and not overwrite:
        raise TrainingSetError(
            f"{folder.uri} holds a training set already. Choose another output, or pass "
            "overwrite=True to replace it."
        )
    files = folder.files()
    foreign = sorted({*files, *folder.unreadable()} - set(_replaceable(found, files)))
    if foreign and folder.manifest() != found:
        return refuse_existing(folder, overwrite=overwrite)  # another build has begun since
    if foreign:
        raise TrainingSetError(
            f"{folder.uri} holds {len(foreign)} files that no training set wrote, and a job would "
            f"read as data: {', '.join(foreign[:5])}. Choose another output, or move them away."
        )
    return found


def _replaceable(found: bytes | None, files: Sequence[str]) -> list[str]:
    """Those files that are certainly of the set, or of the build, in the manifest's place.

    Where a build has begun, it has seen that there were no files of others. Without a claim and
    without a manifest, a part's name proves nothing.
    """
    if found is None or found.startswith(_CLAIM):
        named = {path for path in files if found is not None and _OWN_FILE.fullmatch(path)}
    else:
        named = {path for path in _named_files(found) if _OWN_FILE.fullmatch(path)}
    return [path for path in files if path in named or _KILLED.fullmatch(path)]


def own_files(folder: OutputFolder) -> list[str]:
    """Files that lie there and are certainly of the set whose manifest is there."""
    return _replaceable(folder.manifest(), folder.files())


def _named_files(manifest: bytes) -> set[str]:
    """The files that a manifest names; none where it cannot be read."""
    try:
        return {file["path"] for file in json.loads(manifest)["files"]}
    except (ValueError, LookupError, TypeError, RecursionError):
        return set()


@dataclass(frozen=True)
class Claim:
    """A build's right to write a training set, which ends where another build takes over.

    Attributes:
        folder: where it writes.
        text: of the claim, in the manifest's place.
        ours: files that it may delete: those that it found and replaces, and those that it wrote.
    """

    folder: OutputFolder
    text: bytes
    ours: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def new_file(self, path: str) -> Iterator[NewFile]:
        """A file of the set, which appears where the block ends without error.

        Raises:
            TrainingSetError: another build writes here.
        """
        replaced = path in self.ours
        self.ours.add(path)
        try:
            with self.folder.new_file(path, replaces=False) as file:
                yield file
                if not self.is_held():
                    raise self._lost()
        except DestinationExistsError as error:
            if not replaced:
                self.ours.discard(path)
            raise self._lost() from error
        except TrainingSetError as error:
            # A disk's own file, under its hidden name, is nobody's to delete.
            refusal = error.__cause__ and error.__cause__.__cause__
            if isinstance(refusal, FileNotFoundError):
                raise self._disturbed("deleted files in") from error
            raise

    def publish(self, manifest: bytes, files: Sequence[str]) -> None:
        """Put the manifest in the place of the claim: from then on the set is there.

        Args:
            manifest: its text.
            files: paths of all files that it names.

        Raises:
            TrainingSetError: other files are there, or another build has taken over.
        """
        found, ours = set(self.folder.files()), set(files)
        if found != ours:
            raise self._disturbed(f"changed {len(found ^ ours)} files of")
        try:
            self._swap(self.text, manifest)
        except FileReplacedError as error:
            raise self._lost() from error

    def is_held(self) -> bool:
        """Whether no other build has taken over."""
        return self.folder.manifest() == self.text

    def make_room(self) -> None:
        """Delete what builds before have left, and what this one has written.

        Raises:
            TrainingSetError: another build has taken over, whose files they may be.
        """
        left = [
            path for path in self.folder.files() if path in self.ours or _KILLED.fullmatch(path)
        ]
        if not self.is_held():
            raise self._lost()
        self.folder.delete(left)
        if isinstance(self.folder.storage, LocalFiles):
            # Manifests that were not renamed, which are outside of the set's folders.
            beside = Path(self.folder.uri).glob(f".{MANIFEST}.*.tmp")
            killed = [path.name for path in beside if _KILLED.fullmatch(path.name)]
            self.folder.delete([name for name in killed if _is_old(Path(self.folder.uri, name))])

    def give_up(self, error: BaseException) -> None:
        """Leave nothing of the build, which has failed.

        Raises:
            TrainingSetError: another build has taken over, which is why; all is left to that one.
        """
        try:
            is_held = self.is_held()
            if is_held:
                self.make_room()
                self.folder.delete([MANIFEST])
        except FeastDynamoError as failure:
            # The error that is on its way is the one that helps.
            logger.warning("%s: files of a failed build are left: %s", self.folder.uri, failure)
            return
        if not is_held and isinstance(error, Exception):
            raise self._lost() from error

    def _swap(self, old: bytes, new: bytes) -> None:
        with _explained(self.folder.uri):
            self.folder.storage.swap(self.folder.uri_of(MANIFEST), old, new)

    def _take(self, found: bytes | None) -> None:
        uri = self.folder.uri_of(MANIFEST)
        try:
            if found is not None:
                self._swap(found, self.text)
                return
            with _explained(uri):
                self.folder.storage.create(uri, self.text)
        except (DestinationExistsError, FileReplacedError) as error:
            if self.is_held():  # a request whose answer was lost, and that was sent again
                return
            raise _meanwhile(self.folder) from error

    def _disturbed(self, did: str) -> TrainingSetError:
        return TrainingSetError(
            f"Another process {did} {self.folder.uri} while this training set was written. Build "
            "one set at a time there, and run it again."
        )

    def _lost(self) -> TrainingSetError:
        return TrainingSetError(
            f"Another build has taken over {self.folder.uri} meanwhile, and this one has ended. "
            "Build one set at a time there; run it again when the other one has ended."
        )


def _is_old(path: Path) -> bool:
    """Whether a manifest that was not renamed is of a build that ended, and not of one at work."""
    try:
        return time.time() - path.stat().st_mtime > AT_WORK_S
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def claimed(folder: OutputFolder, seen: bytes | None) -> Iterator[Claim]:
    """A claim to write a training set; where the block raises, nothing is left of what it wrote.

    Args:
        folder: where.
        seen: what `refuse_existing` found when the build began.

    Raises:
        TrainingSetError: another build has written a training set there since then, which is left
            as it is, or takes over at the same moment.
    """
    now = folder.manifest()
    if now is not None and now != seen and not now.startswith(_CLAIM):
        raise _meanwhile(folder)
    claim = Claim(folder, _claim_text())
    claim._take(now)
    try:
        # Listed once the claim is there: a build that is at work may have written until now.
        claim.ours.update(_replaceable(now, folder.files()))
        claim.make_room()
        yield claim
    except BaseException as error:
        claim.give_up(error)
        raise


def _meanwhile(folder: OutputFolder) -> TrainingSetError:
    return TrainingSetError(
        f"Another process wrote a training set to {folder.uri} meanwhile, or has begun to. It is "
        "left as it is. Verify that one, or run this again with overwrite=True."
    )


def _claim_text() -> bytes:
    values = {
        "building": uuid.uuid4().hex,
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": platform.node(),
        "process": os.getpid(),
    }
    return json.dumps(values).encode()


def _begun(text: bytes) -> str:
    try:
        claim = json.loads(text)
        return (
            f"process {claim['process']} of {claim['host']} has begun to write one at "
            f"{claim['since']}"
        )
    except (ValueError, LookupError, TypeError, RecursionError):
        return "a process has begun to write one"
