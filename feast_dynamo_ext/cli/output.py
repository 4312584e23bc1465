"""How a command answers: text for a person, JSON for a program.

The answer goes to stdout. What a person should know besides goes to stderr, so that stdout stays
the answer alone and can be piped or evaluated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from tabulate import tabulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Command = TypeVar("Command", bound="Callable[..., Any]")


@dataclass(frozen=True)
class Output:
    """Where a command's answer goes: `as_json` is what the caller asked for with --json."""

    as_json: bool = False

    def show(self, data: Any, text: str) -> None:
        """Print the answer: `data`, of JSON's own types, or `text`."""
        click.echo(json.dumps(data, indent=2) if self.as_json else text)

    def note(self, text: str) -> None:
        """Tell a person something besides the answer."""
        click.echo(text, err=True)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as a text table; values are printed as they are."""
    return str(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True))


def json_option(command: Command) -> Command:
    """Give a command `--json`, and its choice as the parameter `output`."""
    return click.option(
        "--json",
        "output",
        is_flag=True,
        callback=lambda _context, _option, chosen: Output(chosen),
        help="Print JSON instead of text.",
    )(command)
