"""What a table is now, and what it should be: described and waited for."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from botocore.exceptions import ClientError

from feast_dynamo_ext import aws
from feast_dynamo_ext.aws import ERROR_BY_CODE, translated
from feast_dynamo_ext.dynamo.control_items import ABSENT, ControlItem
from feast_dynamo_ext.dynamo.layouts.packed import OWNER_ITEM
from feast_dynamo_ext.dynamo.layouts.series import SORT, TIE_BREAKER_ITEM
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsUnavailableError,
    ResourceNotFoundError,
    TableTakenError,
    ThrottledError,
)
from feast_dynamo_ext.forks import Lock
from feast_dynamo_ext.view_settings import TableSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from feast_dynamo_ext.aws import AwsSettings


logger = logging.getLogger(__name__)

AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")

# Tags that tell the tables of two projects, or of two views, apart that name theirs alike.
OWNER, OWNER_VIEW = "feast_dynamo_ext.project", "feast_dynamo_ext.view"

# The setting of a change that makes a table say whose it is.
OWNERSHIP = "owner"

# What DynamoDB Local answers to what it does not have.
UNSUPPORTED = {"UnknownOperationException", "InvalidAction"}
NOTHING_TO_UPDATE = "Nothing to update"


class TableClients:
    """DynamoDB's client, and KMS's once it is needed. Safe to share between threads.

    Args:
        dynamodb: DynamoDB's client.
        settings: how to reach AWS, for the client that is built here.
        kms: KMS's client, to be used instead of a new one.
    """

    def __init__(self, dynamodb: Any, settings: AwsSettings, kms: Any = None) -> None:
        self.dynamodb = dynamodb
        self._settings = settings
        self._lock = Lock()
        self._given = kms
        self._built: Any = None

    @property
    def kms(self) -> Any:
        """KMS's client; only a table with a key by alias or id needs one."""
        if self._given is not None:
            return self._given
        with self._lock:
            if self._built is None:
                self._built = self._build("kms")
            return self._built

    def close(self) -> None:
        """Close the client that was built here."""
        if self._built is not None:
            self._built.close()

    def _build(self, service: str) -> Any:
        # `endpoint_url` of the block is DynamoDB's. An emulator, though, is asked for everything:
        # what it refuses must not end up in somebody's real account.
        session = aws.session(self._settings)
        elsewhere = dataclasses.replace(self._settings, endpoint_url=None)
        found = aws.endpoint_url(service, elsewhere, session)
        if found is None and not _is_aws(self.dynamodb.meta.endpoint_url):
            found = self.dynamodb.meta.endpoint_url
        return aws.client(
            service, dataclasses.replace(elsewhere, endpoint_url=found), given=session
        )


def _is_aws(url: str) -> bool:
    return (urlparse(url).hostname or "").endswith(AWS_DOMAINS)


@dataclass(frozen=True)
class TableSpec:
    """What a table should be.

    Attributes:
        name: table name.
        view: name of the feature view it keeps, for messages.
        project: Feast's project, which a new table is tagged with.
        tags: tags to add or change; tags of others are left alone.
        settings: what else was asked for; what is None stays as it is.
        may_be_anothers: whether another view, or a view of another project, may have a table of
            this name.
        is_series: whether it keeps every event, and not the newest rows alone.
        tie_breaker: of a series the features that tell events of one time apart.
        orders: of a series the features by which its events are in order too.
        cohorts: the features by whose value entities are found.
    """

    name: str
    view: str
    project: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    settings: TableSettings = field(default_factory=TableSettings)
    may_be_anothers: bool = False
    is_series: bool = False
    tie_breaker: tuple[str, ...] = ()
    orders: tuple[str, ...] = ()
    cohorts: tuple[str, ...] = ()

    def control_item(self, client: Any, name: bytes) -> ControlItem:
        """A control item of the table."""
        return ControlItem(client, self.name, name, self.is_series)

    @property
    def owner_tags(self) -> dict[str, str]:
        """The tags of a new table that say whose it is."""
        if not self.project:
            return {}
        view = {OWNER_VIEW: self.view} if self.may_be_anothers else {}
        return {OWNER: self.project, **view}


@dataclass(frozen=True)
class Skipped:
    """A setting that was asked for and left out, and why."""

    setting: str
    reason: str


@dataclass(frozen=True)
class Request:
    """A call of DynamoDB's client.

    Attributes:
        operation: the client's method, for example ``update_table``.
        parameters: what it takes.
    """

    operation: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """One setting that is to be changed.

    Attributes:
        setting: its name.
        before: what it is now, for people.
        after: what it should be.
        requests: what changes it, in this order.
        denied_ok: an identity that may not make the change does without.
    """

    setting: str
    before: str
    after: str
    requests: tuple[Request, ...]
    denied_ok: bool = False

    def __str__(self) -> str:
        return f"{self.setting}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class TableState:
    """A table as AWS describes it.

    Attributes:
        table: DescribeTable.
        answers: what else was asked for, by setting.
        skipped: settings that cannot be compared.
        new: the table was created just now.
    """

    table: Mapping[str, Any]
    answers: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    new: bool = False


def key_in_use(described: Mapping[str, Any]) -> str | None:
    """The ARN of the key that a table is encrypted with; None with the key that DynamoDB owns."""
    sse = described.get("SSEDescription", {})
    return None if sse.get("Status") in (None, "DISABLED", "DISABLING") else sse["KMSMasterKeyArn"]


def is_denied(error: ClientError) -> bool:
    """Whether AWS refused a call because the identity may not make it."""
    return ERROR_BY_CODE.get(str(error.response["Error"]["Code"])) is AccessDeniedError


def attempt(
    setting: str, service: str, name: str, call: Callable[[], Any], *, denied_ok: bool = False
) -> Any | Skipped:
    """A call's answer, or why it does without: the service has no such thing, or may not say.

    Args:
        setting: what the call is for.
        service: AWS service id.
        name: table name, for errors.
        call: sends the request.
        denied_ok: an identity that may not make the call does without, too.

    Raises:
        AwsError: AWS refused for any other reason.
    """
    with translated(service, f"table {name}"):
        try:
            return call()
        except ClientError as error:
            code = error.response["Error"]["Code"]
            message = error.response["Error"].get("Message", "")
            if code in UNSUPPORTED or message == NOTHING_TO_UPDATE:
                return Skipped(setting, "this endpoint does not support it")
            if denied_ok and is_denied(error):
                return Skipped(setting, f"the identity may not call {error.operation_name}")
            raise


@dataclass(frozen=True)
class Owner:
    """Whose a table is, as the table itself says, in an item and in its tags.

    The item is what counts: it is written on the condition that there is none, and whoever may
    use the table's rows may see it. Tags are there first, and outlive the items of a table.

    Attributes:
        item: project and view in the item; None where there is none, or it may not be read.
        tags: the table's tags; None where they cannot be had.
    """

    item: Mapping[str, Any] | None = None
    tags: Mapping[str, str] | None = None

    @property
    def project(self) -> str:
        """Feast's project; empty where nothing says."""
        return next((project for project, _ in self._said if project), "")

    @property
    def _said(self) -> tuple[tuple[str, str], ...]:
        item, tags = self.item or {}, self.tags or {}
        return (
            (str(item.get("project", "")), str(item.get("view", ""))),
            (tags.get(OWNER, ""), tags.get(OWNER_VIEW, "")),
        )

    def disputes(self, spec: TableSpec) -> str:
        """Why the table is not a spec's, or nothing."""
        for project, view in self._said:
            if project not in ("", spec.project):
                return f"it belongs to Feast project {project}"
            if spec.view and view not in ("", spec.view):
                return f"it belongs to feature view `{view}`"
        return ""

    def refuse_anothers(self, spec: TableSpec) -> None:
        """Refuse a table that is not a spec's.

        Raises:
            TableTakenError: it is another view's, or another project's.
        """
        if dispute := self.disputes(spec):
            raise TableTakenError(
                f"Feature view `{spec.view}` of project {spec.project} would share DynamoDB table "
                f"{spec.name}: {dispute}. Rename the view, or set a `table_name_template` in "
                "feature_store.yaml that names their tables differently; delete the table only "
                "if nobody needs its rows."
            )


def read_owner(
    clients: TableClients, spec: TableSpec, described: Mapping[str, Any] | None
) -> Owner:
    """Whose a table is.

    Its tags are not looked at where it may not be described (None), nor the item where tags say
    it and no other view could have a table of this name.
    """
    tags = Skipped("tags", "") if described is None else read_tags(clients, spec, described)
    known = None if isinstance(tags, Skipped) else tags
    looks = known is None or spec.may_be_anothers
    if described is not None:
        # Its own keys, whatever a view of this name is declared as now, or none is.
        keys = {each["AttributeName"] for each in described["KeySchema"]}
        spec = dataclasses.replace(spec, is_series=SORT in keys)
    return Owner(_owner_item(clients, spec) if looks else None, known)


def _owner_item(clients: TableClients, spec: TableSpec) -> Mapping[str, Any] | None:
    try:
        return spec.control_item(clients.dynamodb, OWNER_ITEM).read()
    except (AccessDeniedError, ResourceNotFoundError) as error:
        # It may not be read, or the table is still being made: nothing says whose it is.
        logger.debug("table %s: %s", spec.name, error)
        return None


def refuse_anothers(
    dynamodb: Any, settings: AwsSettings, spec: TableSpec, *, claims: bool = True
) -> bool:
    """Refuse a table of another view or project; whether it was looked at.

    A table that nothing is known of is the spec's from now on, so that of two projects one alone
    writes into a table that neither has made. An identity that may not look at the table, or not
    write that item, may write rows all the same, and so may everybody while looking is throttled:
    DynamoDB shows tags ten times a second, to a whole account.

    Args:
        dynamodb: DynamoDB's client.
        settings: how to reach AWS.
        spec: whose it should be.
        claims: whether to write into the table whose it is, if it does not say.

    Raises:
        TableTakenError: in the words of `feast apply`.
        AwsError: AWS refused.
    """
    clients = TableClients(dynamodb, settings)
    try:
        owner = Owner(_owner_item(clients, spec))
        if owner.item is None:
            try:
                with translated("dynamodb", f"table {spec.name}"):
                    described = describe(dynamodb, spec.name)
                if described is None:
                    return False  # which a write says, and what to do
                tags = read_tags(clients, spec, described)
                owner = Owner(None, None if isinstance(tags, Skipped) else tags)
            except AccessDeniedError as error:
                logger.debug("table %s: %s", spec.name, error)
        owner.refuse_anothers(spec)
        if owner.item is None and claims:
            _claim_now(clients, spec)
    except ThrottledError as error:
        logger.warning("rows are written without a look at whose table it is: %s", error)
        return False
    return True


def _claim_now(clients: TableClients, spec: TableSpec) -> None:
    try:
        if spec.control_item(clients.dynamodb, OWNER_ITEM).put(_says(spec), ABSENT):
            logger.info("table %s is project %s's from now on", spec.name, spec.project)
            return
    except (AccessDeniedError, ResourceNotFoundError) as error:
        logger.debug("table %s: %s", spec.name, error)
        return
    refuse_faster(clients, spec)


def refuse_faster(clients: TableClients, spec: TableSpec) -> None:
    """Refuse a table that another process has claimed meanwhile, for another than the spec.

    Raises:
        TableTakenError: in the words of `feast apply`.
        AwsError: AWS refused.
    """
    Owner(_owner_item(clients, spec)).refuse_anothers(spec)


def _says(spec: TableSpec) -> dict[str, str]:
    return {"project": spec.project, "view": spec.view}


def claim(spec: TableSpec, described: Mapping[str, Any], owner: Owner) -> tuple[Change, ...]:
    """What makes a table say whose it is; nothing where its item does.

    Tags are added where they can be had: the table may be emptied, and its items with it.
    """
    if owner.item is not None:
        return ()
    put = spec.control_item(None, OWNER_ITEM).put_request(_says(spec), ABSENT)
    requests = [Request("put_item", put)]
    if owner.tags is not None and not spec.owner_tags.items() <= owner.tags.items():
        tags = [{"Key": name, "Value": value} for name, value in spec.owner_tags.items()]
        resource = {"ResourceArn": described["TableArn"], "Tags": tags}
        requests.append(Request("tag_resource", resource))
    before = f"project {owner.project}, in tags alone" if owner.project else "unknown"
    text = f"project {spec.project}, feature view {spec.view}"
    return tuple(
        Change(OWNERSHIP, before, text, (request,), denied_ok=True) for request in requests
    )


# What DescribeTable does not say. Each takes its answer, for settings that need more to compare.


def read_ttl(clients: TableClients, spec: TableSpec, _: Mapping[str, Any]) -> Any:
    """DescribeTimeToLive's answer."""

    def call() -> Any:
        answer = clients.dynamodb.describe_time_to_live(TableName=spec.name)
        return answer["TimeToLiveDescription"]

    return attempt("ttl", "dynamodb", spec.name, call)


def read_recovery(clients: TableClients, spec: TableSpec, _: Mapping[str, Any]) -> Any:
    """Point-in-time recovery, of DescribeContinuousBackups."""

    def call() -> Any:
        answer = clients.dynamodb.describe_continuous_backups(TableName=spec.name)
        return answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})

    return attempt("point_in_time_recovery", "dynamodb", spec.name, call)


def read_tags(clients: TableClients, spec: TableSpec, described: Mapping[str, Any]) -> Any:
    """Tags by name."""

    def call() -> dict[str, str]:
        pages = clients.dynamodb.get_paginator("list_tags_of_resource").paginate(
            ResourceArn=described["TableArn"]
        )
        return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}

    return attempt("tags", "dynamodb", spec.name, call, denied_ok=True)


def read_key_arn(clients: TableClients, spec: TableSpec, described: Mapping[str, Any]) -> Any:
    """The ARN of the KMS key that the settings name; None where DynamoDB's own key is in use."""
    key = spec.settings.kms_key or ""
    if key_in_use(described) is None:
        return None
    if key == "aws_owned" or ":key/" in key:
        return key
    alias = "alias/aws/dynamodb" if key == "aws_managed" else key

    def call() -> Any:
        return clients.kms.describe_key(KeyId=alias)["KeyMetadata"]["Arn"]

    return attempt("kms_key", "kms", spec.name, call, denied_ok=True)


def read_tie_breaker(clients: TableClients, spec: TableSpec, _: Mapping[str, Any]) -> Any:
    """By which features the events of a series are told apart; None where that is not noted."""

    def call() -> Any:
        item = spec.control_item(clients.dynamodb, TIE_BREAKER_ITEM).read()
        return None if item is None else item.get("tie_breaker")

    return attempt("tie_breaker", "dynamodb", spec.name, call, denied_ok=True)


def tie_breaker_item(spec: TableSpec, text: str) -> dict[str, Any]:
    """The PutItem that notes by which features events are told apart, where nobody has yet."""
    values = {"tie_breaker": text}
    return spec.control_item(None, TIE_BREAKER_ITEM).put_request(values, ABSENT)


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
        is_active = answers[0].get("TableStatus") == "ACTIVE" and all(
            index.get("IndexStatus", "ACTIVE") == "ACTIVE"
            for index in answers[0].get("GlobalSecondaryIndexes", ())
        )
        return is_active and encryption in ("ENABLED", "DISABLED")

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
