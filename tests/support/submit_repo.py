"""A feature repo that may be submitted, and a command in it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from repos import REGION, write_repo_yaml

from feast_dynamo_ext.submit.job_bundle import JobBundle
from feast_dynamo_ext.submit.repo_archive import pack_repo
from feast_dynamo_ext.submit.wheel import installed_wheel

if TYPE_CHECKING:
    from pathlib import Path

    from feast_dynamo_ext.submit.wheel import Wheel

COMMAND = ("feast-dynamo", "materialize", "2026-01-01", "2026-02-01")
ROLE = "arn:aws:iam::123456789012:role/features"


def write_submit_repo(folder: Path, bucket: str = "my-features", **settings: Any) -> Path:
    """A repo whose registry is on S3."""
    folder.mkdir(parents=True, exist_ok=True)
    write_repo_yaml(
        folder,
        **{
            "registry": f"s3://{bucket}/registry.db",
            "online": {"region": REGION},
            "offline": {"region": REGION},
            **settings,
        },
    )
    (folder / "views.py").write_text("VIEWS = 1\n")
    return folder


@functools.cache
def wheel() -> Wheel:
    """Of this package; made once."""
    return installed_wheel()


def bundle_of(repo: Path, destination: str = "s3://my-features/jobs", **more: Any) -> JobBundle:
    """A command in a repo, with this package."""
    given: dict[str, Any] = {
        "command": COMMAND,
        "repo": pack_repo(repo),
        "wheel": wheel(),
        "requirements": ("feast==0.67.0", "pyiceberg[glue,sql-sqlite]==0.12.0"),
        "environment": {},
        "region": REGION,
        "destination": destination,
    }
    return JobBundle(**{**given, **more})
