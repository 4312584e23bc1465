"""The folder or S3 prefix that a training set is written to."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pyarrow import fs

from feast_dynamo_ext import aws
from feast_dynamo_ext.errors import FeastDynamoError, TrainingSetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class OutputFolder:
    """A local folder or S3 prefix; paths are relative to it, with forward slashes.

    Attributes:
        uri: `s3://bucket/prefix` or an absolute local path, without a slash at the end.
        root: the same as a path of `filesystem`.
    """

    uri: str
    root: str
    filesystem: fs.FileSystem
    settings: aws.AwsSettings

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[HashingFile]:
        """Open a new file; its size and hash are known once it is closed."""
        with _explained(f"{self.uri}/{path}"):
            target = f"{self.root}/{path}"
            if self.is_local:  # on S3 this would leave an empty object, which a channel would read
                Path(target).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(
                HashingFile(self.filesystem.open_output_stream(target, compression=None))
            ) as file:
                yield file

    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's bytes, at most 1 MiB at a time.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with (
            _explained(f"{self.uri}/{path}"),
            self.filesystem.open_input_stream(f"{self.root}/{path}", compression=None) as stream,
        ):
            while chunk := stream.read(_READ_BYTES):
                yield chunk

    def exists(self, path: str) -> bool:
        """Whether there is a file at the path."""
        with _explained(f"{self.uri}/{path}"):
            found = self.filesystem.get_file_info(f"{self.root}/{path}")
            return bool(found.type == fs.FileType.File)

    def files(self, folder: str) -> list[str]:
        """Paths of all files below a folder, sorted; none if there is no such folder."""
        selector = fs.FileSelector(f"{self.root}/{folder}", recursive=True, allow_not_found=True)
        with _explained(f"{self.uri}/{folder}"):
            infos = self.filesystem.get_file_info(selector)
        start = len(self.root) + 1
        return sorted(info.path[start:] for info in infos if info.type == fs.FileType.File)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files."""
        if self.is_local:
            for path in paths:
                with _explained(f"{self.uri}/{path}"):
                    self.filesystem.delete_file(f"{self.root}/{path}")
            return
        # Not through pyarrow: it leaves an empty object in place of each folder it empties, and a
        # channel would read it.
        bucket, _, prefix = self.root.partition("/")
        client = aws.client("s3", self.settings)
        for path in paths:
            with aws.translated("s3", f"{self.uri}/{path}"):
                client.delete_object(Bucket=bucket, Key=f"{prefix}/{path}".lstrip("/"))


class HashingFile:
    """A binary file being written that counts and hashes its bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: Any) -> int:
        """Write the bytes of a buffer."""
        view = memoryview(data)
        self._stream.write(view)
        self._digest.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Hand what is buffered to the file system."""
        self._stream.flush()

    def close(self) -> None:
        """Complete the file."""
        self._stream.close()

    @property
    def closed(self) -> bool:
        """Whether it is complete."""
        return self._stream.closed

    @property
    def sha256(self) -> str:
        """Hash of the bytes written so far, in hex."""
        return self._digest.hexdigest()


def open_folder(output: str, settings: aws.AwsSettings) -> OutputFolder:
    """The folder of a URI or local path.

    Raises:
        TrainingSetError: the output is empty.
        ConfigError: neither S3 nor a local path.
    """
    if not output:
        raise TrainingSetError("`output` is empty. Name an s3://bucket/prefix or a local folder.")
    filesystem, root = aws.filesystem(output, settings)
    if isinstance(filesystem, fs.LocalFileSystem):
        path = str(Path(root).resolve())
        return OutputFolder(path, path, filesystem, settings)
    root = root.strip("/")
    return OutputFolder(f"s3://{root}", root, filesystem, settings)


@contextlib.contextmanager
def _explained(resource: str) -> Iterator[None]:
    try:
        with aws.s3_translated(resource):
            yield
    except (FeastDynamoError, FileNotFoundError):
        raise
    except OSError as error:
        raise TrainingSetError(
            f"{resource}: {error}. Check the path, its permissions and the free space."
        ) from error
