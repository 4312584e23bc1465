"""Provisioned units that follow the load: Application Auto Scaling's targets and policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.dynamo.tables.settings import DEFAULT_TARGET_PERCENT
from feast_dynamo_ext.dynamo.tables.state import Change, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from feast_dynamo_ext.dynamo.tables.settings import TableSettings
    from feast_dynamo_ext.dynamo.tables.state import TableSpec, TableState

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
