"""From what a table is and what it should be to the requests that lead there; nothing is changed.

`SETTINGS` has a row for each setting, which says how it is read, compared, shown and changed. One
request a change: DynamoDB takes one kind of UpdateTable at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.dynamo.layouts.packed import EXPIRY
from feast_dynamo_ext.dynamo.tables.describe import (
    Change,
    Request,
    Skipped,
    TableState,
    key_in_use,
    read_key_arn,
    read_recovery,
    read_tags,
    read_tie_breaker,
    read_ttl,
    tie_breaker_item,
)
from feast_dynamo_ext.dynamo.tables.layout import (
    change_cohorts,
    cohorts_of,
    key_and_indexes,
    names_text,
)
from feast_dynamo_ext.errors import ConfigError, TableLayoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from feast_dynamo_ext.dynamo.tables.describe import TableClients, TableSpec
    from feast_dynamo_ext.view_settings import TableSettings


TABLE_CLASS = {"standard": "STANDARD", "infrequent_access": "STANDARD_INFREQUENT_ACCESS"}
NO_CEILING = -1  # DynamoDB's own word for it


@dataclass(frozen=True)
class TableSetting:
    """A setting, or several that DynamoDB takes together. Values are of the setting's own kind.

    Attributes:
        names: in `TableSettings`; those of them that are set name a change.
        wanted: the value that a spec asks for; None leaves the table as it is.
        held: the value that a table has; None where it cannot be compared now.
        text: a value, for people.
        parameters: a value as CreateTable and UpdateTable take it; None where another operation
            sets it, once the table is there.
        requests: what changes a table from one value to another; None for one UpdateTable.
        absent: the value that a new table has by itself, which CreateTable is not given.
        read: asks AWS for what DescribeTable does not say.
        new_table: the value that a new table gets where nothing is set. `read` is not asked then.
        compared: what is held and what is wanted, without what is not to be compared.
        denied_ok: an identity that may not make the change does without.
    """

    names: tuple[str, ...]
    wanted: Callable[[TableSpec], Any]
    held: Callable[[TableSpec, TableState], Any]
    text: Callable[[Any], str]
    parameters: Callable[[Any], Mapping[str, Any]] | None = None
    requests: Callable[[TableSpec, TableState, Any, Any], Iterable[Request]] | None = None
    absent: Any = None
    read: Callable[[TableClients, TableSpec, Mapping[str, Any]], Any] | None = None
    new_table: Any = None
    compared: Callable[[Any, Any], tuple[Any, Any]] = lambda held, wanted: (held, wanted)
    denied_ok: bool = False

    def change(self, spec: TableSpec, state: TableState) -> Change | None:
        """What makes a table's value the wanted one; None where it is, or cannot be compared."""
        wanted = self.wanted(spec)
        unset = wanted is None
        if unset and state.new:
            wanted = self.new_table
        if wanted is None or any(skipped.setting == self.names[0] for skipped in state.skipped):
            return None
        held = self.held(spec, state)
        if held is None:
            return None
        before, after = self.compared(held, wanted)
        if before == after:
            return None
        return Change(
            self._title(spec.settings),
            self.text(before),
            self.text(after),
            self._requests(spec, state, before, after),
            # What nobody has set is done where it may be.
            denied_ok=self.denied_ok or unset,
        )

    def at_creation(self, spec: TableSpec) -> Mapping[str, Any]:
        """What CreateTable takes of it."""
        wanted = self.wanted(spec)
        if self.parameters is None or wanted in (None, self.absent):
            return {}
        return self.parameters(wanted)

    def _requests(
        self, spec: TableSpec, state: TableState, before: Any, after: Any
    ) -> tuple[Request, ...]:
        if self.requests is not None:
            return tuple(self.requests(spec, state, before, after))
        return (_update(spec, self.parameters(after)),) if self.parameters is not None else ()

    def _title(self, settings: TableSettings) -> str:
        given = [name for name in self.names if getattr(settings, name, None) is not None]
        return ", ".join(given) or self.names[0]


def _update(spec: TableSpec, parameters: Mapping[str, Any]) -> Request:
    return Request("update_table", {"TableName": spec.name, **parameters})


def _on_off(enabled: bool) -> str:
    return "on" if enabled else "off"


def refuse_without_units(spec: TableSpec) -> None:
    """Refuse to make a table provisioned without saying how many units it gets.

    Raises:
        ConfigError: `billing: provisioned`, and no units.
    """
    if spec.settings.billing == "provisioned" and spec.settings.read_units is None:
        raise ConfigError(
            f"Feature view `{spec.view}`: `billing: provisioned` needs `read_units` and "
            f"`write_units` to make table {spec.name} so; only the units of a table that is "
            "provisioned already can be left to others."
        )


def _billing(settings: TableSettings) -> dict[str, Any]:
    """What CreateTable and UpdateTable take."""
    if settings.billing == "provisioned":
        units = {
            "ReadCapacityUnits": settings.read_units,
            "WriteCapacityUnits": settings.write_units,
        }
        given = settings.read_units is not None
        return {
            "BillingMode": "PROVISIONED",
            **({"ProvisionedThroughput": units} if given else {}),
        }
    ceilings = {
        name: NO_CEILING if most == "off" else most
        for name, most in (
            ("MaxReadRequestUnits", settings.max_read_units),
            ("MaxWriteRequestUnits", settings.max_write_units),
        )
        if most is not None
    }
    return {
        "BillingMode": "PAY_PER_REQUEST",
        **({"OnDemandThroughput": ceilings} if ceilings else {}),
    }


def _held_billing(spec: TableSpec, state: TableState) -> dict[str, Any]:
    """The parameters that the table answers to, of those that the settings name."""
    mode = state.table.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED")
    wanted = _billing(spec.settings)
    if mode == "PROVISIONED":
        if wanted == {"BillingMode": mode}:
            return wanted
        held = state.table["ProvisionedThroughput"]
        units = {name: held[name] for name in ("ReadCapacityUnits", "WriteCapacityUnits")}
        return {"BillingMode": mode, "ProvisionedThroughput": units}
    given = state.table.get("OnDemandThroughput", {})
    ceilings = {name: given.get(name, NO_CEILING) for name in wanted.get("OnDemandThroughput", {})}
    return {"BillingMode": mode, **({"OnDemandThroughput": ceilings} if ceilings else {})}


def _change_billing(
    spec: TableSpec, _: TableState, before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[Request]:
    # DynamoDB counts switches of the mode: one that is in use is not named.
    same = after["BillingMode"] == before["BillingMode"]
    sent = {name: value for name, value in after.items() if not (same and name == "BillingMode")}
    yield _update(spec, sent)


def _billing_text(parameters: Mapping[str, Any]) -> str:
    if parameters["BillingMode"] == "PROVISIONED":
        units = parameters.get("ProvisionedThroughput")
        if units is None:
            return "provisioned"
        read, write = units["ReadCapacityUnits"], units["WriteCapacityUnits"]
        return f"provisioned ({read} read, {write} write units)"
    ceilings = parameters.get("OnDemandThroughput", {})
    texts = [
        f"{word} {'off' if ceilings[name] == NO_CEILING else ceilings[name]}"
        for word, name in (
            ("max_read_units", "MaxReadRequestUnits"),
            ("max_write_units", "MaxWriteRequestUnits"),
        )
        if name in ceilings
    ]
    return f"on_demand ({', '.join(texts)})" if texts else "on_demand"


def _held_class(_: TableSpec, state: TableState) -> str:
    now = state.table.get("TableClassSummary", {}).get("TableClass", "STANDARD")
    (name,) = (name for name, value in TABLE_CLASS.items() if value == now)
    return name


def _held_key(spec: TableSpec, state: TableState) -> str:
    """The settings' own word for the key, where it is that one; else its ARN."""
    wanted = str(spec.settings.kms_key)
    now = key_in_use(state.table)
    if now is None:
        return "aws_owned"
    return wanted if now in (state.answers.get("kms_key"), wanted) else now


def _encryption(key: str) -> dict[str, Any]:
    if key == "aws_owned":
        return {"SSESpecification": {"Enabled": False}}
    own = {} if key == "aws_managed" else {"KMSMasterKeyId": key}
    return {"SSESpecification": {"Enabled": True, "SSEType": "KMS", **own}}


def _held_stream(_: TableSpec, state: TableState) -> str:
    now = state.table.get("StreamSpecification", {})
    return str(now["StreamViewType"]).lower() if now.get("StreamEnabled") else "off"


def _stream(view: str) -> dict[str, Any]:
    if view == "off":
        return {"StreamSpecification": {"StreamEnabled": False}}
    return {"StreamSpecification": {"StreamEnabled": True, "StreamViewType": view.upper()}}


def _change_stream(spec: TableSpec, _: TableState, before: str, after: str) -> Iterator[Request]:
    # A stream that is there shows what it shows: another view of changes is another stream.
    if before != "off":
        yield _update(spec, _stream("off"))
    if after != "off":
        yield _update(spec, _stream(after))


def _warm(spec: TableSpec) -> dict[str, int]:
    units = {
        "ReadUnitsPerSecond": spec.settings.warm_read_units,
        "WriteUnitsPerSecond": spec.settings.warm_write_units,
    }
    return {name: value for name, value in units.items() if value is not None}


def _held_warm(_: TableSpec, state: TableState) -> dict[str, int] | None:
    now = state.table.get("WarmThroughput", {})
    names = ("ReadUnitsPerSecond", "WriteUnitsPerSecond")
    if now.get("Status") == "UPDATING":
        return None
    return {name: now[name] for name in names if name in now}


def _compared_warm(
    held: dict[str, int], wanted: dict[str, int]
) -> tuple[dict[str, int], dict[str, int]]:
    # It grows by itself too, and never shrinks.
    grown = {name: max(units, held.get(name, 0)) for name, units in wanted.items()}
    return held, {**held, **grown}


def _change_warm(
    spec: TableSpec, _: TableState, __: Mapping[str, int], after: Mapping[str, int]
) -> Iterator[Request]:
    yield _update(spec, {"WarmThroughput": {name: after[name] for name in _warm(spec)}})


def _warm_text(units: Mapping[str, int]) -> str:
    read, write = (units.get(f"{kind}UnitsPerSecond", "?") for kind in ("Read", "Write"))
    return f"{read} read, {write} write units"


def _ttl_attribute(state: TableState) -> str | None:
    """The attribute by which the table's items are deleted now, if any are."""
    ttl = state.answers.get("ttl", {})
    if ttl.get("TimeToLiveStatus") not in ("ENABLED", "ENABLING"):
        return None
    return str(ttl.get("AttributeName", EXPIRY))


def _held_ttl(spec: TableSpec, state: TableState) -> bool:
    attribute = _ttl_attribute(state)
    if spec.settings.ttl is not False and attribute not in (None, EXPIRY):
        raise TableLayoutError(
            f"DynamoDB table {spec.name} (feature view `{spec.view}`) deletes items by attribute "
            f"`{attribute}`; this store keeps the expiry in `{EXPIRY}`. Turn TTL off on the "
            "table, wait the hour that DynamoDB needs for it, and run `feast apply` again."
        )
    return attribute is not None


def _change_ttl(spec: TableSpec, state: TableState, _: bool, after: bool) -> Iterator[Request]:
    rule = {"Enabled": after, "AttributeName": _ttl_attribute(state) or EXPIRY}
    yield Request("update_time_to_live", {"TableName": spec.name, "TimeToLiveSpecification": rule})


@dataclass(frozen=True)
class Recovery:
    """Point-in-time recovery; `days` None: not on, or as many as DynamoDB takes."""

    enabled: bool
    days: int | None = None

    def __str__(self) -> str:
        return f"on ({self.days} days)" if self.enabled and self.days else _on_off(self.enabled)


def _recovery(spec: TableSpec) -> Recovery | None:
    enabled = spec.settings.point_in_time_recovery
    return None if enabled is None else Recovery(enabled, spec.settings.recovery_days)


def _held_recovery(_: TableSpec, state: TableState) -> Recovery:
    held = state.answers["point_in_time_recovery"]
    enabled = held.get("PointInTimeRecoveryStatus") == "ENABLED"
    return Recovery(enabled, held.get("RecoveryPeriodInDays"))


def _compared_recovery(held: Recovery, wanted: Recovery) -> tuple[Recovery, Recovery]:
    # Days that are not set are as they are.
    same_days = not wanted.enabled or wanted.days in (None, held.days)
    return held, held if same_days and held.enabled == wanted.enabled else wanted


def _change_recovery(
    spec: TableSpec, _: TableState, __: Recovery, after: Recovery
) -> Iterator[Request]:
    period = {"RecoveryPeriodInDays": after.days} if after.enabled and after.days else {}
    rule = {"PointInTimeRecoveryEnabled": after.enabled, **period}
    yield Request(
        "update_continuous_backups",
        {"TableName": spec.name, "PointInTimeRecoverySpecification": rule},
    )


def _compared_tags(
    held: Mapping[str, str], wanted: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    # Tags that others set are theirs.
    changed = {name: value for name, value in wanted.items() if held.get(name) != value}
    return {name: held[name] for name in changed if name in held}, changed


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": name, "Value": value} for name, value in tags.items()]


def _tags_text(tags: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in tags.items()) or "none"


def _change_tags(
    _: TableSpec, state: TableState, __: Mapping[str, str], after: Mapping[str, str]
) -> Iterator[Request]:
    yield Request(
        "tag_resource", {"ResourceArn": state.table["TableArn"], "Tags": _tag_list(after)}
    )


def _held_tie_breaker(spec: TableSpec, state: TableState) -> str:
    held = str(state.answers.get("tie_breaker") or "")
    wanted = ",".join(spec.tie_breaker)
    if held and held != wanted:
        raise TableLayoutError(
            f"Feature view `{spec.view}`: the tie-breaker is declared as {wanted}, and the events "
            f"of DynamoDB table {spec.name} are told apart by {held}: the same event would be "
            "there twice. Take the change back; or give the view another name, materialize it and "
            "move its readers; or delete the table, run `feast apply`, and materialize again."
        )
    return held


def _note_tie_breaker(spec: TableSpec, _: TableState, __: str, after: str) -> Iterator[Request]:
    yield Request("put_item", tie_breaker_item(spec, after))


# In an order that DynamoDB takes.
SETTINGS = (
    TableSetting(
        names=("deletion_protection",),
        wanted=lambda spec: spec.settings.deletion_protection,
        held=lambda _, state: bool(state.table.get("DeletionProtectionEnabled")),
        text=_on_off,
        parameters=lambda protected: {"DeletionProtectionEnabled": protected},
    ),
    TableSetting(
        names=("billing",),
        wanted=lambda spec: None if spec.settings.billing is None else _billing(spec.settings),
        held=_held_billing,
        text=_billing_text,
        parameters=dict,
        requests=_change_billing,
    ),
    TableSetting(
        names=("table_class",),
        wanted=lambda spec: spec.settings.table_class,
        held=_held_class,
        text=str,
        parameters=lambda name: {"TableClass": TABLE_CLASS[name]},
    ),
    TableSetting(
        names=("kms_key",),
        wanted=lambda spec: spec.settings.kms_key,
        held=_held_key,
        text=str,
        parameters=_encryption,
        absent="aws_owned",
        read=read_key_arn,
    ),
    TableSetting(
        names=("stream",),
        wanted=lambda spec: spec.settings.stream,
        held=_held_stream,
        text=str,
        parameters=_stream,
        requests=_change_stream,
        absent="off",
    ),
    TableSetting(
        names=("warm_read_units", "warm_write_units"),
        wanted=lambda spec: _warm(spec) or None,
        held=_held_warm,
        text=_warm_text,
        parameters=lambda units: {"WarmThroughput": units},
        requests=_change_warm,
        compared=_compared_warm,
    ),
    TableSetting(
        names=("cohorts",),
        wanted=lambda spec: tuple(sorted(spec.cohorts)),
        held=lambda _, state: cohorts_of(state.table),
        text=names_text,
        requests=change_cohorts,
    ),
    TableSetting(
        names=("tie_breaker",),
        wanted=lambda spec: ",".join(spec.tie_breaker) if spec.is_series else None,
        held=_held_tie_breaker,
        text=lambda text: text or "none noted",
        requests=_note_tie_breaker,
        read=read_tie_breaker,
        denied_ok=True,
    ),
    TableSetting(
        names=("ttl",),
        wanted=lambda spec: spec.settings.ttl,
        held=_held_ttl,
        text=_on_off,
        requests=_change_ttl,
        read=read_ttl,
        new_table=True,
    ),
    TableSetting(
        names=("point_in_time_recovery",),
        wanted=_recovery,
        held=_held_recovery,
        text=str,
        requests=_change_recovery,
        read=read_recovery,
        compared=_compared_recovery,
    ),
    TableSetting(
        names=("tags",),
        wanted=lambda spec: spec.tags or None,
        held=lambda _, state: state.answers["tags"],
        text=_tags_text,
        requests=_change_tags,
        read=read_tags,
        compared=_compared_tags,
        denied_ok=True,
    ),
)


def read_state(
    clients: TableClients, spec: TableSpec, described: Mapping[str, Any], *, new: bool = False
) -> TableState:
    """What the settings of a spec are compared with; nothing else is asked for.

    Args:
        clients: AWS clients.
        spec: what the table should be.
        described: DescribeTable's answer.
        new: the table was created just now.

    Raises:
        AwsError: AWS refused.
    """
    answers = {
        setting.names[0]: setting.read(clients, spec, described)
        for setting in SETTINGS
        if setting.read is not None
        and setting.wanted(spec) is not None
        and not (new and setting.new_table is not None)
    }
    skipped = tuple(answer for answer in answers.values() if isinstance(answer, Skipped))
    known = {name: answer for name, answer in answers.items() if not isinstance(answer, Skipped)}
    return TableState(described, known, skipped, new)


def create_parameters(spec: TableSpec) -> dict[str, Any]:
    """What CreateTable takes for a spec; the rest is changed once the table is there.

    Raises:
        ConfigError: the table is to be provisioned, and no units are set.
    """
    refuse_without_units(spec)
    wanted: dict[str, Any] = {
        "TableName": spec.name,
        **key_and_indexes(spec),
        "BillingMode": "PAY_PER_REQUEST",
    }
    for setting in SETTINGS:
        wanted |= setting.at_creation(spec)
    if tags := {**spec.owner_tags, **spec.tags}:
        wanted["Tags"] = _tag_list(tags)
    return wanted


def changes(spec: TableSpec, state: TableState) -> tuple[Change, ...]:
    """What makes a table that is there as its spec wants it, in an order that DynamoDB takes.

    Raises:
        TableLayoutError: TTL is on an attribute of somebody else.
    """
    found = (setting.change(spec, state) for setting in SETTINGS)
    return tuple(change for change in found if change is not None)
