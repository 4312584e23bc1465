"""What a training job runs, packed: the script with what lies beside it, and a model's files."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import stat
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.storage import files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.storage import NewFile

MOST_SOURCE_BYTES = 500_000_000


@dataclass(frozen=True)
class SourceCode:
    """A training script, and what lies beside it, packed.

    Attributes:
        entry: path of the script within it, for example `train.py`.
        archive: tar.gz; equal files give equal bytes.
        sha256: of the archive before it was compressed, as compressors differ.
    """

    entry: str
    archive: bytes = field(repr=False)
    sha256: str

    def hyperparameters(self, uri: str) -> dict[str, str]:
        """What SageMaker's training toolkit finds the script by, its archive being at a URI."""
        return {"sagemaker_program": self.entry, "sagemaker_submit_directory": uri}


LEFT_OUT = frozenset({"__pycache__", ".git", ".venv", ".ipynb_checkpoints", ".mypy_cache"})
ENTRY = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._+-]*(/[A-Za-z0-9._+-]+)*")  # of the toolkit


def pack_source(path: Path, entry: str | None = None) -> SourceCode:
    """Pack a training script, or a folder that holds one, for script mode.

    Args:
        path: the script, which is packed alone, or a folder, which is packed whole but for
            caches and `.git`.
        entry: of a folder: the script's path within it; by default `train.py`.

    Raises:
        ConfigError: no such file, a link, a name that the training toolkit refuses, or more than
            500 MB.
    """
    if not path.exists():
        raise ConfigError(f"There is no training script {path}.")
    if path.is_file() and entry not in (None, path.name):
        raise ConfigError(f"{path} is a file: name its folder to start `{entry}` of it.")
    folder = path.parent if path.is_file() else path
    entry = path.name if path.is_file() else (entry or "train.py")
    files = [path] if path.is_file() else list(files_in(folder))
    by_name = {file.relative_to(folder).as_posix(): file for file in files}
    if not ENTRY.fullmatch(entry) or {".", ".."} & set(entry.split("/")):
        raise ConfigError(
            f"`{entry}` cannot be the name of a training script: SageMaker's toolkit takes "
            "letters, digits, `.`, `_`, `+`, `-` and `/`."
        )
    if entry not in by_name:
        raise ConfigError(f"There is no `{entry}` in {folder}. Name the script: --entry FILE.")
    size = sum(file.stat().st_size for file in files)
    if size > MOST_SOURCE_BYTES:
        raise ConfigError(
            f"{folder} holds {size / 1e6:,.0f} MB, too much for the source of a script. Name the "
            "script alone, or a folder of sources."
        )
    packed = archive_of(by_name)
    return SourceCode(entry, packed.data, packed.sha256)


@dataclass(frozen=True)
class Archive:
    """Files packed as tar.gz; equal files give equal bytes.

    Attributes:
        data: the tar.gz.
        sha256: of the tar before it was compressed, as compressors differ.
    """

    data: bytes = field(repr=False)
    sha256: str


def archive_of(by_name: Mapping[str, Path]) -> Archive:
    """Pack files by their path within the archive."""
    buffer = io.BytesIO()
    _tar(by_name, buffer)
    packed = buffer.getvalue()
    return Archive(gzip.compress(packed, mtime=0), hashlib.sha256(packed).hexdigest())


def write_archive(by_name: Mapping[str, Path], file: NewFile) -> None:
    """Write a tar.gz of files by their path within it; equal files give equal bytes."""
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        _tar(by_name, packed)


def files_in(
    folder: Path, leaves_out: Callable[[Path], bool] = lambda _path: False
) -> Iterator[Path]:
    """The files of a folder and of those below it, in order, but for caches and `.git`.

    Args:
        folder: the folder.
        leaves_out: whether a file, or a folder with all that is in it, is passed over besides.

    Raises:
        ConfigError: a link, which would lead nowhere.
    """
    for found in sorted(folder.iterdir()):
        if found.name in LEFT_OUT or leaves_out(found):
            continue
        if found.is_symlink():
            raise ConfigError(
                f"{found} is a link, which a container cannot follow. Copy the file."
            )
        if found.is_dir():
            yield from files_in(found, leaves_out)
        elif found.is_file():
            yield found


def _tar(by_name: Mapping[str, Path], target: io.BufferedIOBase) -> None:
    """A tar of files without what differs from one checkout to another: times, owners, umask."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(by_name):
            with by_name[name].open("rb") as file:
                state = os.fstat(file.fileno())
                member = tarfile.TarInfo(name)
                member.size = state.st_size
                member.mode = 0o755 if state.st_mode & stat.S_IXUSR else 0o644
                archive.addfile(member, file)


def upload_source(source: SourceCode, folder: str, aws: AwsSettings) -> str:
    """Put an archive below an S3 URI by its hash, once.

    Returns:
        Its URI: `<folder>/<sha256>/sourcedir.tar.gz`.

    Raises:
        AwsError: S3 refused.
        ConfigError: not an S3 URI.
    """
    if not folder.startswith("s3://"):
        raise ConfigError(f"Sources of a job are uploaded to S3, and `{folder}` is not on it.")
    uri = f"{folder.rstrip('/')}/{source.sha256}/sourcedir.tar.gz"
    upload_once(uri, source.archive, "application/gzip", aws)
    return uri


def upload_once(uri: str, data: bytes, content_type: str, aws: AwsSettings) -> bool:
    """Write a file whose name has the hash of its content, unless it is there.

    Returns:
        Whether it was written.

    Raises:
        AwsError: S3 refused.
    """
    storage = files_of(uri, aws)
    if storage.find(uri) is not None:
        return False
    with storage.new_file(uri, content_type) as file:
        file.write(data)
    return True
