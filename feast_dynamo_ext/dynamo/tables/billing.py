"""How a table is paid for: on demand up to a ceiling, or for provisioned units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.dynamo.tables.autoscaling import READ, WRITE, most_units
from feast_dynamo_ext.dynamo.tables.state import Change, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from feast_dynamo_ext.dynamo.tables.settings import TableSettings
    from feast_dynamo_ext.dynamo.tables.state import TableSpec, TableState

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
    """The parameters that the table of now answers to, of those that the settings name."""
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
