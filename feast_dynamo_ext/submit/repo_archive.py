"""A feature repo, packed: what belongs into it, without caches, environments and secrets."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from feast_dynamo_ext.config import secret_keys
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.figures import short
from feast_dynamo_ext.sagemaker.job_source import archive_of, files_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MOST_BYTES = 200_000_000
MOST_NAMED = 3

CACHES = frozenset(
    {
        *(".hg", ".svn", ".tox", ".nox", ".pytest_cache", ".ruff_cache", ".hypothesis", ".eggs"),
        *(".idea", ".vscode", ".terraform", ".feast-dynamo", "node_modules", "spark-warehouse"),
        *(".DS_Store", ".coverage", ".python-version"),
    }
)
"""Files and folders that machines and editors leave; `files_in` knows more."""

ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")
"""What a virtual environment of Python has at its top."""

SECRETS = (
    *(".env", ".env.*", "*.env", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.ppk"),
    *("*.kdbx", "*.keystore", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc"),
    *(".pypirc", ".npmrc", ".pgpass", ".git-credentials", ".aws", ".ssh", ".gnupg", ".kube"),
    *(".docker", "credentials", "credentials.json", "service-account*.json", "secrets.y*ml"),
)
"""Patterns of names, of files and folders, that hold secrets by custom."""


@dataclass(frozen=True)
class RepoArchive:
    """A feature repo as tar.gz; equal repos give equal bytes.

    Attributes:
        data: the tar.gz.
        sha256: of the tar before it was compressed.
        files: paths of what is in it, in order.
        secrets: paths of what was left out because its name says that it is secret.
    """

    data: bytes = field(repr=False)
    sha256: str
    files: tuple[str, ...]
    secrets: tuple[str, ...]


def pack_repo(
    folder: Path, *, exclude: Sequence[str] = (), most_bytes: int = MOST_BYTES
) -> RepoArchive:
    """Pack a feature repo.

    Args:
        folder: its folder.
        exclude: patterns of names or of paths within it, as `*.parquet` or `notebooks/*`, that are
            left out besides.
        most_bytes: that its files may have together.

    Raises:
        ConfigError: a link, no feature_store.yaml, or more bytes than that.
    """
    secrets: list[str] = []

    def leaves_out(path: Path) -> bool:
        within = path.relative_to(folder).as_posix()
        if any(fnmatch.fnmatchcase(path.name.lower(), pattern) for pattern in SECRETS):
            secrets.append(within)
            return True
        return (
            path.name in CACHES
            or path.name.endswith((".egg-info", ".pyc"))
            or any((path / mark).exists() for mark in ENVIRONMENT_MARKS)
            or any(
                fnmatch.fnmatchcase(path.name, pattern) or fnmatch.fnmatchcase(within, pattern)
                for pattern in exclude
            )
        )

    try:
        by_name = {
            path.relative_to(folder).as_posix(): path for path in files_in(folder, leaves_out)
        }
        if "feature_store.yaml" not in by_name:
            raise ConfigError(f"There is no feature_store.yaml in {folder} that would be packed.")
        sizes = {name: path.stat().st_size for name, path in by_name.items()}
        _refuse_large(folder, sizes, most_bytes)
        packed = archive_of(by_name)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder} cannot be read: {error.strerror}."
        ) from error
    return RepoArchive(packed.data, packed.sha256, tuple(sorted(by_name)), tuple(secrets))


def _refuse_large(folder: Path, sizes: dict[str, int], most_bytes: int) -> None:
    total = sum(sizes.values())
    if total <= most_bytes:
        return
    largest = sorted(sizes, key=lambda name: -sizes[name])[:MOST_NAMED]
    named = ", ".join(f"{name} ({short(sizes[name])}B)" for name in largest)
    raise ConfigError(
        f"{folder} holds {short(total)}B, and {short(most_bytes)}B are the most. The "
        f"largest: {named}. Data belongs on S3: move it there, leave it out (--exclude PATTERN), "
        "or allow more (--max-size)."
    )


def refuse_written_secrets(path: Path) -> None:
    """Refuse a feature_store.yaml with a secret in it, which would be uploaded.

    Values that name a variable, as `${PASSWORD}`, are none.

    Raises:
        ConfigError: it has one.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    for where in secret_keys("", _without_variables(values or {})):
        raise ConfigError(
            f"{path}: `{where}` holds a secret, which would be uploaded with the repo. Give the "
            "job's role the permission instead, or have the value read from a variable: "
            "`${NAME}`."
        )


def _without_variables(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_variables(inner) for key, inner in value.items()}
    return "" if isinstance(value, str) and value.startswith("$") else value
