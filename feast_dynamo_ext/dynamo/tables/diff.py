"""From what a table is and what it should be to the requests that lead there; nothing is sent.

One request a change: DynamoDB takes one kind of UpdateTable at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.dynamo.layouts.packed import EXPIRY, KEY
from feast_dynamo_ext.dynamo.tables.describe import Change, Request
from feast_dynamo_ext.dynamo.tables.table_settings import DEFAULT_TARGET_PERCENT
from feast_dynamo_ext.errors import TableLayoutError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from feast_dynamo_ext.dynamo.tables.describe import TableSpec, TableState
    from feast_dynamo_ext.dynamo.tables.table_settings import TableSettings


SERVICE = "application-autoscaling"


@dataclass(frozen=True)
class Dimension:
    """Read or write units of a table, under the names that settings and services have for them."""

    kind: str
    units: str
    ceiling: str
    capacity: str
    dimension: str
    metric: str


READ = Dimension(
    "read",
    "read_units",
    "max_read_units",
    "ReadCapacityUnits",
    "dynamodb:table:ReadCapacityUnits",
    "DynamoDBReadCapacityUtilization",
)
WRITE = Dimension(
    "write",
    "write_units",
    "max_write_units",
    "WriteCapacityUnits",
    "dynamodb:table:WriteCapacityUnits",
    "DynamoDBWriteCapacityUtilization",
)


def most_units(settings: TableSettings, dimension: Dimension) -> int | None:
    """What autoscaling may go up to; None where units are fixed."""
    most = getattr(settings, dimension.ceiling)
    return most if isinstance(most, int) else None


def scaling_changes(spec: TableSpec, state: TableState) -> Iterator[Change]:
    """The changes that make targets and policies those of the settings."""
    if spec.settings.billing != "provisioned" or state.targets is None:
        return
    for dimension in (READ, WRITE):
        target = _held(state.targets, dimension)
        policy = _held_policy(state, dimension)
        if getattr(spec.settings, dimension.ceiling) == "off" and target is not None:
            yield _off(spec, dimension, target)
        elif most_units(spec.settings, dimension) is not None:
            yield from _on(spec, dimension, target, policy)


def deregistrations(name: str, settings: TableSettings) -> tuple[Request, ...]:
    """What removes the targets of a table that goes away, and their policies and alarms."""
    if settings.billing != "provisioned":
        return ()
    return tuple(
        Request("deregister_scalable_target", _of_table(name, dimension), SERVICE)
        for dimension in (READ, WRITE)
        if most_units(settings, dimension) is not None
    )


def _on(
    spec: TableSpec,
    dimension: Dimension,
    target: Mapping[str, Any] | None,
    policy: Mapping[str, Any] | None,
) -> Iterator[Change]:
    least, most = getattr(spec.settings, dimension.units), most_units(spec.settings, dimension)
    percent = spec.settings.target_percent or DEFAULT_TARGET_PERCENT
    before, after = _range(target, policy), f"{least} to {most} units, {percent}% in use"
    if before == after:
        return
    of_table = _of_table(spec.name, dimension)
    register = {**of_table, "MinCapacity": least, "MaxCapacity": most}
    follow = {
        **of_table,
        # AWS takes one policy a metric: somebody's own is changed under its name.
        "PolicyName": policy["PolicyName"] if policy else f"{spec.name}-{dimension.kind}",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            **(policy["TargetTrackingScalingPolicyConfiguration"] if policy else {}),
            "TargetValue": float(percent),
            "PredefinedMetricSpecification": {"PredefinedMetricType": dimension.metric},
        },
    }
    requests = (
        Request("register_scalable_target", register, SERVICE),
        Request("put_scaling_policy", follow, SERVICE),
    )
    yield Change(f"{dimension.kind} autoscaling", before, after, requests)


def _off(spec: TableSpec, dimension: Dimension, target: Mapping[str, Any]) -> Change:
    request = Request("deregister_scalable_target", _of_table(spec.name, dimension), SERVICE)
    return Change(f"{dimension.kind} autoscaling", _range(target, None), "off", (request,))


def _of_table(name: str, dimension: Dimension) -> dict[str, Any]:
    return {
        "ServiceNamespace": "dynamodb",
        "ResourceId": f"table/{name}",
        "ScalableDimension": dimension.dimension,
    }


def _held(
    targets: tuple[Mapping[str, Any], ...], dimension: Dimension
) -> Mapping[str, Any] | None:
    same = (held for held in targets if held["ScalableDimension"] == dimension.dimension)
    return next(same, None)


def _held_policy(state: TableState, dimension: Dimension) -> Mapping[str, Any] | None:
    for policy in state.policies:
        rule = policy.get("TargetTrackingScalingPolicyConfiguration", {})
        metric = rule.get("PredefinedMetricSpecification", {}).get("PredefinedMetricType")
        if metric == dimension.metric:
            return policy
    return None


def _range(target: Mapping[str, Any] | None, policy: Mapping[str, Any] | None) -> str:
    if target is None:
        return "off"
    text = f"{target['MinCapacity']} to {target['MaxCapacity']} units"
    if policy is None:
        return text
    percent = policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"]
    return f"{text}, {percent:g}% in use"


NO_CEILING = -1  # DynamoDB's own word for it


def billing_changes(spec: TableSpec, state: TableState) -> Iterator[Change]:
    """The change that makes a table's billing, units and ceilings those of the settings."""
    if spec.settings.billing is None:
        return
    before = _parameters_of(spec.settings, state.table)
    wanted = billing_parameters(spec.settings)
    sent = dict(wanted)
    if wanted["BillingMode"] == before["BillingMode"]:
        wanted = _units_left_to_autoscaling(spec.settings, before, wanted)
        sent = {name: value for name, value in wanted.items() if name != "BillingMode"}
    if wanted != before:
        request = Request("update_table", {"TableName": spec.name, **sent})
        yield Change("billing", _text(before), _text(wanted), (request,))


def billing_parameters(settings: TableSettings) -> dict[str, Any]:
    """What CreateTable and UpdateTable take for billing; a new table is on demand by default."""
    if settings.billing == "provisioned":
        units = {part.capacity: getattr(settings, part.units) for part in (READ, WRITE)}
        return {"BillingMode": "PROVISIONED", "ProvisionedThroughput": units}
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


def _parameters_of(settings: TableSettings, table: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that the current table answers to, of those that the settings name."""
    mode = table.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED")
    if mode == "PROVISIONED":
        held = table["ProvisionedThroughput"]
        units = {part.capacity: held[part.capacity] for part in (READ, WRITE)}
        return {"BillingMode": mode, "ProvisionedThroughput": units}
    asked = billing_parameters(settings).get("OnDemandThroughput", {})
    given = table.get("OnDemandThroughput", {})
    ceilings = {name: given.get(name, NO_CEILING) for name in asked}
    return {"BillingMode": mode, **({"OnDemandThroughput": ceilings} if ceilings else {})}


def _units_left_to_autoscaling(
    settings: TableSettings, before: Mapping[str, Any], wanted: dict[str, Any]
) -> dict[str, Any]:
    if "ProvisionedThroughput" not in wanted:
        return wanted
    units = dict(wanted["ProvisionedThroughput"])
    for part in (READ, WRITE):
        most, now = most_units(settings, part), before["ProvisionedThroughput"][part.capacity]
        if most is not None:
            units[part.capacity] = min(max(now, units[part.capacity]), most)
    return {**wanted, "ProvisionedThroughput": units}


def _text(parameters: Mapping[str, Any]) -> str:
    if "ProvisionedThroughput" in parameters:
        units = parameters["ProvisionedThroughput"]
        read, write = units[READ.capacity], units[WRITE.capacity]
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


KEY_SCHEMA = [{"AttributeName": KEY, "KeyType": "HASH"}]
ATTRIBUTES = [{"AttributeName": KEY, "AttributeType": "B"}]

TABLE_CLASS = {"standard": "STANDARD", "infrequent_access": "STANDARD_INFREQUENT_ACCESS"}


def has_our_layout(described: Mapping[str, Any]) -> bool:
    """Whether a table has this store's key, and no other key attributes."""
    return bool(
        described["KeySchema"] == KEY_SCHEMA and described["AttributeDefinitions"] == ATTRIBUTES
    )


def key_text(described: Mapping[str, Any]) -> str:
    """A table's key attributes, for people."""
    return ", ".join(
        f"{attribute['AttributeName']} ({attribute['AttributeType']})"
        for attribute in described["AttributeDefinitions"]
    )


def check_layout(spec: TableSpec, described: Mapping[str, Any]) -> None:
    """Refuse a table whose rows would not be ours.

    Raises:
        TableLayoutError: its key is another.
    """
    if not has_our_layout(described):
        raise TableLayoutError(
            f"DynamoDB table {spec.name} exists with the key {key_text(described)}, not with this "
            f"store's {KEY} (B): another program made it, perhaps Feast's own DynamoDB store. Set "
            "another `table_name_template` in feature_store.yaml for feature view "
            f"`{spec.view}`, or delete the table, then run `feast apply` and `feast materialize` "
            "again."
        )


def create_parameters(spec: TableSpec) -> dict[str, Any]:
    """What CreateTable takes for a spec; the rest is changed once the table is there."""
    settings = spec.settings
    wanted: dict[str, Any] = {
        "TableName": spec.name,
        "KeySchema": KEY_SCHEMA,
        "AttributeDefinitions": ATTRIBUTES,
        **billing_parameters(settings),
    }
    if settings.table_class is not None:
        wanted["TableClass"] = TABLE_CLASS[settings.table_class]
    if settings.kms_key not in (None, "aws_owned"):
        wanted["SSESpecification"] = _encryption(settings)
    if settings.stream not in (None, "off"):
        wanted["StreamSpecification"] = _stream(settings.stream)
    if settings.deletion_protection is not None:
        wanted["DeletionProtectionEnabled"] = settings.deletion_protection
    if warm := _warm(settings):
        wanted["WarmThroughput"] = warm
    if tags := {**spec.owner_tags, **spec.tags}:
        wanted["Tags"] = _tag_list(tags)
    return wanted


def changes(spec: TableSpec, state: TableState) -> tuple[Change, ...]:
    """What makes a table that is there as its spec wants it, in an order that DynamoDB takes.

    Raises:
        TableLayoutError: TTL is on an attribute of somebody else.
    """
    return tuple(
        change
        for part in (
            _protection,
            billing_changes,
            _table_class,
            _kms_key,
            _streaming,
            _warm_throughput,
            _ttl,
            _recovery,
            _tagging,
            scaling_changes,
        )
        for change in part(spec, state)
    )


def _update(spec: TableSpec, **parameters: Any) -> tuple[Request, ...]:
    return (Request("update_table", {"TableName": spec.name, **parameters}),)


def _protection(spec: TableSpec, state: TableState) -> Iterator[Change]:
    wanted, now = spec.settings.deletion_protection, state.table.get("DeletionProtectionEnabled")
    if wanted is not None and wanted != bool(now):
        requests = _update(spec, DeletionProtectionEnabled=wanted)
        yield Change("deletion_protection", _on_off(bool(now)), _on_off(wanted), requests)


def _table_class(spec: TableSpec, state: TableState) -> Iterator[Change]:
    wanted = spec.settings.table_class
    now = state.table.get("TableClassSummary", {}).get("TableClass", "STANDARD")
    if wanted is not None and TABLE_CLASS[wanted] != now:
        (before,) = (name for name, value in TABLE_CLASS.items() if value == now)
        yield Change("table_class", before, wanted, _update(spec, TableClass=TABLE_CLASS[wanted]))


def _kms_key(spec: TableSpec, state: TableState) -> Iterator[Change]:
    wanted, now = spec.settings.kms_key, state.encryption.get("KMSMasterKeyArn")
    if wanted is None:
        return
    same = now is None if wanted == "aws_owned" else now in (state.key_arn, wanted) and now
    unknown = any(skipped.setting == "kms_key" for skipped in state.skipped)
    if not same and not (unknown and now):
        requests = _update(spec, SSESpecification=_encryption(spec.settings))
        yield Change("kms_key", now or "aws_owned", wanted, requests)


def _encryption(settings: TableSettings) -> dict[str, Any]:
    if settings.kms_key == "aws_owned":
        return {"Enabled": False}
    key = {} if settings.kms_key == "aws_managed" else {"KMSMasterKeyId": settings.kms_key}
    return {"Enabled": True, "SSEType": "KMS", **key}


def _streaming(spec: TableSpec, state: TableState) -> Iterator[Change]:
    wanted = spec.settings.stream
    now = state.table.get("StreamSpecification", {})
    before = now["StreamViewType"].lower() if now.get("StreamEnabled") else "off"
    if wanted is None or wanted == before:
        return
    # A stream that is there shows what it shows: another view of changes is another stream.
    stop = _update(spec, StreamSpecification={"StreamEnabled": False}) if before != "off" else ()
    start = _update(spec, StreamSpecification=_stream(wanted)) if wanted != "off" else ()
    yield Change("stream", before, wanted, (*stop, *start))


def _stream(view: str | None) -> dict[str, Any]:
    return {"StreamEnabled": True, "StreamViewType": str(view).upper()}


def _warm_throughput(spec: TableSpec, state: TableState) -> Iterator[Change]:
    wanted, now = _warm(spec.settings), state.table.get("WarmThroughput", {})
    # It grows by itself too, and never shrinks.
    if now.get("Status") != "UPDATING" and any(
        units > now.get(name, 0) for name, units in wanted.items()
    ):
        after = {name: max(units, now.get(name, 0)) for name, units in wanted.items()}
        requests = _update(spec, WarmThroughput=after)
        names = ", ".join(
            name
            for name in ("warm_read_units", "warm_write_units")
            if getattr(spec.settings, name) is not None
        )
        yield Change(names, _warm_text(now), _warm_text({**now, **after}), requests)


def _warm(settings: TableSettings) -> dict[str, int]:
    units = {
        "ReadUnitsPerSecond": settings.warm_read_units,
        "WriteUnitsPerSecond": settings.warm_write_units,
    }
    return {name: value for name, value in units.items() if value is not None}


def _warm_text(units: Mapping[str, Any]) -> str:
    read, write = (units.get(f"{kind}UnitsPerSecond", "?") for kind in ("Read", "Write"))
    return f"{read} read, {write} write units"


def _ttl(spec: TableSpec, state: TableState) -> Iterator[Change]:
    if state.ttl is None:
        return
    wanted = spec.settings.ttl is not False
    now = state.ttl.get("TimeToLiveStatus") in ("ENABLED", "ENABLING")
    attribute = state.ttl.get("AttributeName")
    if wanted and now and attribute not in (None, EXPIRY):
        raise TableLayoutError(
            f"DynamoDB table {spec.name} (feature view `{spec.view}`) deletes items by attribute "
            f"`{attribute}`; this store keeps the expiry in `{EXPIRY}`. Turn TTL off on the "
            "table, wait the hour that DynamoDB needs for it, and run `feast apply` again."
        )
    if wanted != now:
        rule = {"Enabled": wanted, "AttributeName": attribute if now else EXPIRY}
        request = Request(
            "update_time_to_live", {"TableName": spec.name, "TimeToLiveSpecification": rule}
        )
        yield Change("ttl", _on_off(now), _on_off(wanted), (request,))


def _recovery(spec: TableSpec, state: TableState) -> Iterator[Change]:
    wanted, days = spec.settings.point_in_time_recovery, spec.settings.recovery_days
    if wanted is None or state.recovery is None:
        return
    now = state.recovery.get("PointInTimeRecoveryStatus") == "ENABLED"
    held = state.recovery.get("RecoveryPeriodInDays")
    if wanted == now and (not wanted or days in (None, held)):
        return
    period = {"RecoveryPeriodInDays": days} if wanted and days else {}
    rule = {"PointInTimeRecoveryEnabled": wanted, **period}
    request = Request(
        "update_continuous_backups",
        {"TableName": spec.name, "PointInTimeRecoverySpecification": rule},
    )
    before, after = _recovery_text(now, held), _recovery_text(wanted, days)
    yield Change("point_in_time_recovery", before, after, (request,))


def _recovery_text(enabled: bool, days: int | None) -> str:
    return f"on ({days} days)" if enabled and days else _on_off(enabled)


def _tagging(spec: TableSpec, state: TableState) -> Iterator[Change]:
    if state.tags is None:
        return
    changed = {name: value for name, value in spec.tags.items() if state.tags.get(name) != value}
    if changed:
        request = Request(
            "tag_resource", {"ResourceArn": state.table["TableArn"], "Tags": _tag_list(changed)}
        )
        before = {name: state.tags[name] for name in changed if name in state.tags}
        yield Change("tags", _tags_text(before), _tags_text(changed), (request,))


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": name, "Value": value} for name, value in tags.items()]


def _tags_text(tags: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in tags.items()) or "none"


def _on_off(enabled: bool) -> str:
    return "on" if enabled else "off"
