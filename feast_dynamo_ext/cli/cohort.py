"""feast-dynamo cohort: the entities of which rows or events have a value."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext._feast import feasts_errors
from feast_dynamo_ext.cli.named_table import view_argument, view_of
from feast_dynamo_ext.cli.repo import (
    Output,
    json_option,
    open_store,
    repo_option,
    table,
    time_in,
)

if TYPE_CHECKING:
    import datetime as dt
    from pathlib import Path

MOST = 100
"""Entities that are listed unless a number is given."""


@click.command(short_help="List the entities of a cohort, as their index has them.")
@view_argument
@click.option(
    "--by",
    required=True,
    metavar="FEATURE=VALUE",
    help="The feature and its value.",
    callback=lambda _context, _option, given: _pair(given),
)
@click.option(
    "--start",
    metavar="TS",
    help="Only rows or events from then on count.",
    callback=lambda _context, _option, given: None if given is None else time_in(given),
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=MOST,
    show_default=True,
    metavar="N",
    help="At most so many entities.",
)
@click.option("--token", metavar="TEXT", help="Go on where an earlier call ended.")
@repo_option
@json_option
def cohort(
    view: str,
    by: tuple[str, str],
    start: dt.datetime | None,
    limit: int,
    token: str | None,
    output: Output,
    repo: Path,
) -> None:
    """List the entities whose rows or events have a value, those of the newest first.

    VIEW declares the feature among its `cohorts`. Each entity is listed once. Where there may be
    more, a token is printed, on stderr or in the JSON: it goes on from there.

    \b
    feast-dynamo cohort purchases --by category=books
    feast-dynamo cohort purchases --by category=books --start 2026-01-31 --limit 1000 --json
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext import cohorts

    store = open_store(repo)
    found = view_of(store, view)
    name, value = by
    with feasts_errors():
        entities = cohorts.cohort(
            store, view, limit=limit, start=start, token=token, **{name: _typed(found, *by)}
        )
        rows = [_in_json(entity) for entity in entities]
    more = entities.token if len(rows) == limit else None
    text = table(list(rows[0]), [list(map(str, row.values())) for row in rows]) if rows else ""
    output.show({"entities": rows, "token": more}, text or f"No entity has `{name}` = {value}.")
    if more and not output.as_json:
        output.note(f"There may be more: --token {more}")


def _pair(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"`{given}` is no feature and value. Write it as category=books.")
    return name, value


def _typed(view: Any, name: str, value: str) -> Any:
    """The value as the feature's type; as it is where it is none, which is refused later."""
    kinds = {field.name: field.dtype.to_value_type().name for field in view.features}
    kind = kinds.get(name)
    if kind == "BOOL":
        return {"true": True, "false": False}.get(value.lower(), value)
    if kind in {"INT32", "INT64"} and value.removeprefix("-").isdecimal():
        return int(value)
    return value


def _in_json(entity: dict[str, Any]) -> dict[str, Any]:
    """Join keys and values; bytes as base64."""
    return {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in entity.items()
    }
