"""Makes, changes and deletes one table."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.dynamo.tables.describe import (
    OWNERSHIP,
    WAIT,
    Skipped,
    attempt,
    claim,
    describe,
    is_denied,
    read_owner,
    refuse_faster,
    status,
    wait_ready,
    wait_until,
)
from feast_dynamo_ext.dynamo.tables.diff import (
    changes,
    create_parameters,
    read_state,
    refuse_without_units,
)
from feast_dynamo_ext.dynamo.tables.layout import check_layout, has_our_layout, key_text
from feast_dynamo_ext.errors import AwsError, TableProtectedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from feast_dynamo_ext.dynamo.tables.describe import (
        Change,
        Request,
        TableClients,
        TableSpec,
        Wait,
    )

logger = logging.getLogger(__name__)

# Of a table that was made just now, or that another change is still on.
NOT_YET = {"ContinuousBackupsUnavailableException", "ResourceInUseException"}

# DynamoDB's answer to a write whose condition is that there is no such item.
TAKEN = "ConditionalCheckFailedException"


@dataclass(frozen=True)
class TablePlan:
    """What there is to do about one table.

    Attributes:
        spec: what the table should be.
        exists: whether it is there, and not about to go.
        ready: whether it takes requests; False where another apply is still at it.
        changes: what is to be changed where it is.
        skipped: settings that cannot be compared.
    """

    spec: TableSpec
    exists: bool
    ready: bool = True
    changes: tuple[Change, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def to_do(self) -> bool:
        """Whether anything is to be created, changed or waited for."""
        return self.differs or not self.ready

    @property
    def differs(self) -> bool:
        """Whether the table is not what it should be."""
        return bool(self.changes) or not self.exists

    def refuse_without_units(self) -> None:
        """Refuse to create a table, or to change its billing, without the units that takes.

        Raises:
            ConfigError: `billing: provisioned`, and no units.
        """
        if not self.exists or any(change.setting == "billing" for change in self.changes):
            refuse_without_units(self.spec)


def plan_table(clients: TableClients, spec: TableSpec) -> TablePlan:
    """Compare a table with what it should be; only describes.

    Raises:
        TableLayoutError: a table of that name has another key.
        TableTakenError: it is another view's.
        AwsError: AWS refused.
    """
    with translated("dynamodb", f"table {spec.name}"):
        described = describe(clients.dynamodb, spec.name)
    if described is None or described["TableStatus"] == "DELETING":
        return TablePlan(spec, exists=False)
    return _plan(clients, spec, described)


def _plan(
    clients: TableClients, spec: TableSpec, described: Mapping[str, Any], *, new: bool = False
) -> TablePlan:
    check_layout(spec, described)
    claimed = _claimed(clients, spec, described) if spec.may_be_anothers else ()
    state = read_state(clients, spec, described, new=new)
    return TablePlan(
        spec,
        exists=True,
        ready=described["TableStatus"] == "ACTIVE",
        changes=(*claimed, *changes(spec, state)),
        skipped=state.skipped,
    )


def _claimed(
    clients: TableClients, spec: TableSpec, described: Mapping[str, Any]
) -> tuple[Change, ...]:
    owner = read_owner(clients, spec, described)
    owner.refuse_anothers(spec)
    return claim(spec, described, owner)


def carry_out(clients: TableClients, plan: TablePlan, wait: Wait = WAIT) -> tuple[Skipped, ...]:
    """Do what a plan says, and wait until it is done.

    Args:
        clients: AWS clients.
        plan: what `plan_table` gave.
        wait: how to wait for the table.

    Returns:
        The settings that were asked for and left out.

    Raises:
        TableLayoutError: somebody was faster and made another table.
        TableTakenError: somebody was faster and took it for another view or project.
        AwsError: AWS refused, or the table is still not ready at the deadline.
        ConfigError: the table is to be provisioned, and no units are set.
    """
    spec = plan.spec
    skipped: list[Skipped] = []
    if not plan.exists:
        described, new = _create(clients, spec, wait)
        plan = _plan(clients, spec, described, new=new)
    elif not plan.ready:
        plan = _plan(clients, spec, wait_ready(clients, spec, wait))
    plan.refuse_without_units()
    skipped += plan.skipped
    made: list[Change] = []
    for change in plan.changes:
        try:
            refused = _send(clients, spec, change, wait)
        except AwsError as error:
            if change.setting != OWNERSHIP or error.code != TAKEN:
                raise
            refuse_faster(clients, spec)
            continue
        if refused is None:
            made.append(change)
            logger.info("table %s: %s", spec.name, change)
        else:
            skipped.append(refused)
    return (*skipped, *_without_effect(clients, spec, made))


def delete_table(clients: TableClients, spec: TableSpec, wait: Wait = WAIT) -> str | None:
    """Delete a table of ours and wait until it is gone.

    Returns:
        Why the table was left alone, or None where it is gone or was not there.

    Raises:
        TableProtectedError: its deletion protection is on.
        AwsError: AWS refused.
    """
    client = clients.dynamodb
    with translated("dynamodb", f"table {spec.name}"):
        described = describe(client, spec.name)
    if described is None:
        return None
    if strange := _not_ours(clients, spec, described):
        return strange
    _refuse_protected(spec, described)
    with translated("dynamodb", f"table {spec.name}"):
        if described["TableStatus"] != "DELETING":
            client.delete_table(TableName=spec.name)
        wait_until(lambda: describe(client, spec.name) is None, spec, wait)
    if spec.view:
        logger.info("deleted DynamoDB table %s of feature view %s", spec.name, spec.view)
    else:
        logger.warning("deleted DynamoDB table %s, which a removed view had left", spec.name)
    return None


def _create(clients: TableClients, spec: TableSpec, wait: Wait) -> tuple[dict[str, Any], bool]:
    """The new table, and whether it is of our making."""
    with translated("dynamodb", f"table {spec.name}"):
        new = _send_create(clients.dynamodb, create_parameters(spec))
        if not new:
            # In the way is the table of a faster apply, or one that is still being deleted.
            wait_until(lambda: status(clients, spec) != "DELETING", spec, wait)
            new = status(clients, spec) is None and _send_create(
                clients.dynamodb, create_parameters(spec)
            )
    if new:
        logger.info("created DynamoDB table %s for feature view %s", spec.name, spec.view)
    return wait_ready(clients, spec, wait), new


def _send_create(client: Any, parameters: dict[str, Any]) -> bool:
    try:
        client.create_table(**parameters)
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceInUseException":
            return False
        # With tags, CreateTable needs the right to tag as well.
        if not is_denied(error) or "Tags" not in parameters:
            raise
        client.create_table(**{name: parameters[name] for name in parameters if name != "Tags"})
    return True


def _send(clients: TableClients, spec: TableSpec, change: Change, wait: Wait) -> Skipped | None:
    for request in change.requests:
        answer = _send_one(clients, spec, change, request, wait)
        if isinstance(answer, Skipped):
            return answer
        if request.operation == "update_table":
            wait_ready(clients, spec, wait)
    return None


def _send_one(
    clients: TableClients, spec: TableSpec, change: Change, request: Request, wait: Wait
) -> Any | Skipped:
    call = getattr(clients.dynamodb, request.operation)
    pauses = wait.pauses(wait.answer_s)

    def patient() -> Any:
        while (answer := _unless_not_yet(call, request)) is None:
            if not next(pauses, False):
                return call(**request.parameters)
        return answer

    return attempt(change.setting, "dynamodb", spec.name, patient, denied_ok=change.denied_ok)


def _unless_not_yet(call: Callable[..., Any], request: Request) -> Any | None:
    try:
        return call(**request.parameters)
    except ClientError as error:
        if error.response["Error"]["Code"] in NOT_YET:
            return None
        raise


def _without_effect(
    clients: TableClients, spec: TableSpec, made: Iterable[Change]
) -> list[Skipped]:
    """Settings of the table itself that were taken, and are not there all the same."""
    sent = {
        change.setting
        for change in made
        if any(request.operation == "update_table" for request in change.requests)
    }
    if not sent:
        return []
    left = plan_table(clients, spec).changes
    return [
        Skipped(change.setting, "DynamoDB took it and does not show it")
        for change in left
        if change.setting in sent
    ]


def _not_ours(clients: TableClients, spec: TableSpec, described: Mapping[str, Any]) -> str | None:
    if not has_our_layout(described):
        return f"its key is {key_text(described)}, so another program made it"
    owner = read_owner(clients, spec, described)
    if dispute := owner.disputes(spec):
        return dispute
    if not spec.view and not owner.project:
        return "nothing says which project made it"
    return None


def _refuse_protected(spec: TableSpec, described: Mapping[str, Any]) -> None:
    if described.get("DeletionProtectionEnabled"):
        raise TableProtectedError(
            f"DynamoDB table {spec.name} (feature view `{spec.view}`) is protected against "
            "deletion. To delete it, set `deletion_protection: false` under "
            "`online_store.table` or in the view's TableSettings and run `feast apply` first, or "
            f"run `aws dynamodb update-table --table-name {spec.name} "
            "--no-deletion-protection-enabled`."
        )
