"""What became of the rows of a write."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feast_dynamo_ext.dynamo.item import KEY
from feast_dynamo_ext.errors import IncompleteWriteError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from feast_dynamo_ext.dynamo.item import JsonItem


@dataclass(frozen=True)
class Outcome:
    """What became of the rows of a write.

    Attributes:
        written: rows that are in the table now.
        older: rows that are not, because the table held a newer one of their key.
        unwritten: serialized entity keys of rows that could not be written.
        cause: why the last of `unwritten` could not.
    """

    written: int = 0
    older: int = 0
    unwritten: tuple[bytes, ...] = ()
    cause: Exception | None = None

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.written + other.written,
            self.older + other.older,
            self.unwritten + other.unwritten,
            other.cause or self.cause,
        )

    @property
    def settled(self) -> int:
        """Rows that need nothing more."""
        return self.written + self.older

    def checked(self, table: str) -> Outcome:
        """Itself, if nothing is left unwritten.

        Raises:
            IncompleteWriteError: rows are, named.
        """
        if not self.unwritten:
            return self
        total = self.settled + len(self.unwritten)
        why = f" Last answer: {self.cause}" if self.cause is not None else ""
        raise IncompleteWriteError(
            f"Table {table}: {len(self.unwritten):,} of {total:,} rows are not written; their "
            f"keys are in the error's `unwritten`.{why} The others are: write the same rows "
            "again.",
            unwritten=list(self.unwritten),
        ) from self.cause


def keys_of(items: Iterable[JsonItem]) -> tuple[bytes, ...]:
    """The serialized entity keys of items."""
    return tuple(base64.b64decode(item[KEY]["B"]) for item in items)
