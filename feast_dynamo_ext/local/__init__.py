"""The embedded AWS for a laptop: start, stop, status.

moto's server stands in for S3, SageMaker's control plane and the rest, and for DynamoDB where
Amazon's own DynamoDB Local is not installed, which runs on Java. Both listen on 127.0.0.1 only,
keep everything in memory, and run on their own until they are stopped::

    aws = up(Path("."))
    os.environ.update(aws.environment())
    ...
    down(Path("."))

Tests that want servers without a state file use `start_moto`, `start_dynamodb_local` and `stop`.
"""

from __future__ import annotations

from feast_dynamo_ext.local.dynamodb_local import (
    can_be_installed,
    dynamodb_local_folder,
    install_dynamodb_local,
    start_dynamodb_local,
)
from feast_dynamo_ext.local.embedded import LocalAws, down, start_moto, status, up
from feast_dynamo_ext.local.process import Server, stop

__all__ = [
    "LocalAws",
    "Server",
    "can_be_installed",
    "down",
    "dynamodb_local_folder",
    "install_dynamodb_local",
    "start_dynamodb_local",
    "start_moto",
    "status",
    "stop",
    "up",
]
