"""What a bulk load tells of itself while it runs."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Somebody who watches. Told by one thread."""

    def wrote(self, items: int, raw_bytes: int) -> None:
        """So many more items are in the files, in so many bytes before compression."""

    def status(self, text: str) -> None:
        """What DynamoDB is at; the same text may come again."""

    def note(self, text: str) -> None:
        """Something that a person should know."""


class NoProgress:
    """Nobody watches."""

    def wrote(self, items: int, raw_bytes: int) -> None:
        """Say nothing."""

    def status(self, text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
