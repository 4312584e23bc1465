"""Describes a table, and waits until it is ready or gone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.errors import AwsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from feast_dynamo_ext.dynamo.tables.clients import TableClients
    from feast_dynamo_ext.dynamo.tables.state import TableSpec


@dataclass(frozen=True)
class Wait:
    """How to wait for a table: at first briskly, for the engines of a laptop.

    Attributes:
        deadline_s: seconds to wait in all. A new table takes seconds, a change of billing or of
            the key up to minutes.
        first_s: the first pause, seconds; each is half as long again as the one before.
        most_s: the longest pause, seconds.
        answer_s: seconds to repeat a request that the table is not ready for.
        sleep: waits the given seconds; True where waiting is to end.
        clock: seconds of a monotonic clock.
    """

    deadline_s: float = 900
    first_s: float = 0.02
    most_s: float = 2.0
    answer_s: float = 60
    sleep: Callable[[float], bool | None] = field(default=time.sleep, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def pauses(self, deadline_s: float) -> Iterator[bool]:
        """Pauses, and gives True, until the deadline."""
        end, pause = self.clock() + deadline_s, self.first_s
        while self.clock() + pause < end and not self.sleep(pause):
            yield True
            pause = min(self.most_s, pause * 1.5)


WAIT = Wait()


def describe(client: Any, name: str) -> dict[str, Any] | None:
    """DescribeTable's answer, or None where the table does not exist."""
    try:
        described: dict[str, Any] = client.describe_table(TableName=name)["Table"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            return None
        raise
    return described


def status(clients: TableClients, spec: TableSpec) -> str | None:
    """DynamoDB's word for what a table is up to; None where it does not exist."""
    described = describe(clients.dynamodb, spec.name)
    return None if described is None else str(described["TableStatus"])


def wait_ready(clients: TableClients, spec: TableSpec, wait: Wait) -> dict[str, Any]:
    """Wait until a table, its key included, takes requests; DescribeTable's answer.

    Raises: as `wait_until`.
    """
    answers: list[dict[str, Any]] = []

    def ready() -> bool:
        answers[:] = [describe(clients.dynamodb, spec.name) or {}]
        encryption = answers[0].get("SSEDescription", {}).get("Status", "ENABLED")
        return answers[0].get("TableStatus") == "ACTIVE" and encryption in ("ENABLED", "DISABLED")

    with translated("dynamodb", f"table {spec.name}"):
        wait_until(ready, spec, wait)
    return answers[0]


def wait_until(done: Callable[[], bool], spec: TableSpec, wait: Wait) -> None:
    """Wait until something is done.

    Raises:
        AwsUnavailableError: it is not at the deadline.
    """
    pauses = wait.pauses(wait.deadline_s)
    while not done():
        if not next(pauses, False):
            raise AwsUnavailableError(
                f"DynamoDB table {spec.name} (feature view `{spec.view}`) is still being changed "
                f"after {wait.deadline_s:g} s. Run it again once `aws dynamodb describe-table "
                f"--table-name {spec.name}` shows it ACTIVE, or gone.",
                service="dynamodb",
            )
