"""What a job of one command is made of, and where each file of it is on S3.

Below the destination, each by its content, so that nothing is uploaded twice::

    wheels/<sha256>/feast_dynamo_ext-0.1.0-py3-none-any.whl    this package
    repos/<sha256>/repo.tar.gz                                 the feature repo
    entry/<sha256>/run_command.py                              what the job starts
    jobs/<sha256>/job.json                                     the command, and the two above
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.sagemaker.job_source import upload_once
from feast_dynamo_ext.storage import READ_BYTES, files_of
from feast_dynamo_ext.submit import run_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.submit.repo_archive import RepoArchive
    from feast_dynamo_ext.submit.wheel import Wheel

ENTRY = Path(run_command.__file__)
BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?")
Package = Literal["installed", "unpack", "install"]
"""How the package comes into the job: the service installs it, or `run_command` does."""


@dataclass(frozen=True)
class Upload:
    """A file of a job.

    Attributes:
        uri: where it belongs.
        data: its bytes.
        content_type: of the object.
    """

    uri: str
    data: bytes | Path = field(repr=False)
    content_type: str

    @property
    def name(self) -> str:
        """Its last part."""
        return self.uri.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The prefix that it is alone in."""
        return f"{self.uri.rpartition('/')[0]}/"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.data.stat().st_size if isinstance(self.data, Path) else len(self.data)

    def send(self, aws: AwsSettings) -> bool:
        """Upload it, unless it is there; gives whether it was.

        Raises:
            AwsError: S3 refused.
            ConfigError: the file cannot be read.
        """
        if isinstance(self.data, bytes):
            return upload_once(self.uri, self.data, self.content_type, aws)
        storage = files_of(self.uri, aws)
        if storage.find(self.uri) is not None:
            return False
        with storage.new_file(self.uri, self.content_type) as target, _opened(self.data) as source:
            while chunk := source.read(READ_BYTES):
                target.write(chunk)
        return True


def file_upload(destination: str, kind: str, path: Path) -> Upload:
    """A file of this disk as one of a job, by its content.

    Args:
        destination: S3 URI that all files are below.
        kind: the folder below it.
        path: the file.

    Raises:
        ConfigError: it cannot be read, or has a name that a list would be cut at.
    """
    if set(path.name) & set(" ,#"):
        raise ConfigError(f"{path}: rename it; a job takes no space, comma or # in a name.")
    digest = hashlib.sha256()
    with _opened(path) as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    uri = f"{destination.rstrip('/')}/{kind}/{digest.hexdigest()}/{path.name}"
    return Upload(uri, path, "application/octet-stream")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        if error.filename is None:  # not of this file
            raise
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}.") from error


@dataclass(frozen=True)
class JobFiles:
    """The files of a job.

    Attributes:
        entry: the script that the job starts.
        job: job.json, which the script reads.
        repo: the feature repo.
        wheel: this package.
    """

    entry: Upload
    job: Upload
    repo: Upload
    wheel: Upload

    @property
    def uploads(self) -> tuple[Upload, ...]:
        """All of them; what job.json names comes before it."""
        return (self.wheel, self.repo, self.entry, self.job)


@dataclass(frozen=True)
class JobBundle:
    """A command with what it runs in.

    Attributes:
        command: for example `("feast-dynamo", "materialize", "2026-01-01", "2026-02-01")`.
        repo: the feature repo.
        wheel: this package.
        requirements: of the package, as pip takes them.
        environment: variables of the command.
        region: that the command has where the job has none.
        destination: S3 URI that all files are below.
    """

    command: tuple[str, ...]
    repo: RepoArchive
    wheel: Wheel
    requirements: tuple[str, ...]
    environment: Mapping[str, str]
    region: str
    destination: str

    def __post_init__(self) -> None:
        if not BUCKET.fullmatch(self.destination):
            raise ConfigError(
                f"A job's files are uploaded to S3, and `{self.destination}` is not on it. Write "
                "the destination as s3://bucket/prefix."
            )

    def files(self, package: Package) -> JobFiles:
        """The files of the job.

        Args:
            package: how the package comes into the job. To be unpacked it is named as a zip file,
                as Spark adds no other to the path of its executors.
        """
        base, wheel = self.destination.rstrip("/"), self.wheel
        name = f"feast_dynamo_ext-{wheel.version}.zip" if package == "unpack" else wheel.name
        packed = Upload(f"{base}/wheels/{wheel.sha256}/{name}", wheel.data, "application/zip")
        repo = Upload(
            f"{base}/repos/{self.repo.sha256}/repo.tar.gz", self.repo.data, "application/gzip"
        )
        job = {
            "format": run_command.FORMAT,
            "command": list(self.command),
            "repo": repo.uri,
            "repo_sha256": self.repo.sha256,
            "package": package,
            "wheel": packed.uri,
            "requirements": list(self.requirements),
            "environment": dict(self.environment),
            "region": self.region,
        }
        data = (json.dumps(job, indent=2, sort_keys=True) + "\n").encode()
        return JobFiles(
            entry=self.upload("entry", ENTRY.name, ENTRY.read_bytes(), "text/x-python"),
            job=self.upload("jobs", "job.json", data, "application/json"),
            repo=repo,
            wheel=packed,
        )

    def upload(self, kind: str, name: str, data: bytes, content_type: str) -> Upload:
        """A file below the destination, by its content."""
        digest = hashlib.sha256(data).hexdigest()
        uri = f"{self.destination.rstrip('/')}/{kind}/{digest}/{name}"
        return Upload(uri, data, content_type)

    @property
    def title(self) -> str:
        """The command as a person writes it, as far as a description has room for it."""
        return " ".join(self.command)[:200]

    @property
    def base_name(self) -> str:
        """What a job of the command is called: its first words."""
        words = []
        for word in self.command:
            if not re.fullmatch(r"[a-z][a-z-]*", word):
                break
            words.append(word)
        return "-".join(words[:3]) or "feast-dynamo"
