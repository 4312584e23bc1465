"""Which stretches of a table's time are exported next.

DynamoDB exports increments of 15 minutes to 24 hours, of the time in which the table can be
restored: the last 35 days at most, up to about five minutes ago. A full export comes first and
shows one moment, from which the first increment goes on::

    |----------- full -----------|-- 24 h --|-- 24 h --|-- rest --|   < 15 min: the next run's
                                 ^ captured until                 ^ restorable until
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST, SHORTEST = dt.timedelta(hours=24), dt.timedelta(minutes=15)


@dataclass(frozen=True)
class Window:
    """A stretch of time, and the export of it.

    Attributes:
        start: the first moment that counts; None for a full export.
        end: the first moment that counts no more; of a full export the moment that it shows.
        arn: of its export; empty until it is started.
        failed: exports of it that failed.
        run: tells a table that is captured whole once more from the time before, which may have
            shown the same moment; empty for others.
    """

    start: dt.datetime | None
    end: dt.datetime
    arn: str = ""
    failed: int = 0
    run: str = ""

    @property
    def id(self) -> str:
        """What tells it from the other windows of its table; the commit of its rows bears it."""
        return f"{self._times}-{self.run}" if self.run else self._times

    @property
    def _times(self) -> str:
        start = "full" if self.start is None else _exact(self.start)
        return f"{start}-{_exact(self.end)}"

    def token(self, table_id: str, place: str) -> str:
        """The same for the same export: for 8 hours DynamoDB starts none of one token twice."""
        text = f"{table_id} {self._times} {place} {self.failed}"
        return hashlib.sha256(text.encode()).hexdigest()[:36]

    def __str__(self) -> str:
        if self.start is None:
            return f"the whole table as of {_minute(self.end)}"
        return f"{_minute(self.start)} to {_minute(self.end)}"

    def to_json(self) -> dict[str, Any]:
        """As the state of a history table keeps it."""
        start = None if self.start is None else self.start.isoformat()
        return {
            "start": start,
            "end": self.end.isoformat(),
            "arn": self.arn,
            "failed": self.failed,
            **({"run": self.run} if self.run else {}),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Window:
        """What `to_json` made."""
        start = found["start"]
        return cls(
            None if start is None else dt.datetime.fromisoformat(start),
            dt.datetime.fromisoformat(found["end"]),
            found["arn"],
            found["failed"],
            found.get("run", ""),
        )


def _exact(moment: dt.datetime) -> str:
    """To the second where it is a whole one: exports of others end within one."""
    part = f"{moment:.%f}" if moment.microsecond else ""
    return f"{moment:%Y%m%dT%H%M%S}{part}Z"


def _minute(moment: dt.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}Z"


@dataclass(frozen=True)
class CaptureState:
    """How far a table's changes are in its history; kept in the history table with the rows.

    Attributes:
        table_id: of the table; one that is made anew has another.
        keys: names and types of its key attributes, the partition key first.
        until: all that was written before is in the history; None before the first export.
        pending: windows that are exported and not yet in the history, in order.
        exports: by the id of a captured window, the folder of its export: the newest of them.
        erased: when somebody was erased last, ISO 8601. Who goes on from a state of before is
            refused, as its rows may be theirs.
    """

    table_id: str
    keys: tuple[tuple[str, str], ...]
    until: dt.datetime | None = None
    pending: tuple[Window, ...] = ()
    exports: Mapping[str, str] = field(default_factory=dict)
    erased: str | None = None

    def planned(self, windows: tuple[Window, ...]) -> CaptureState:
        """With windows that are to be exported."""
        return replace(self, pending=windows)

    def started(self, window: Window, arn: str) -> CaptureState:
        """With the export of a window."""
        pending = (replace(each, arn=arn) if each == window else each for each in self.pending)
        return replace(self, pending=tuple(pending))

    def failed(self, window: Window) -> CaptureState:
        """With a window that is to be exported once more."""
        again = replace(window, arn="", failed=window.failed + 1)
        pending = (again if each == window else each for each in self.pending)
        return replace(self, pending=tuple(pending))

    def captured(self, window: Window, folder: str) -> CaptureState:
        """With the first pending window in the history."""
        exports = [*self.exports.items(), (window.id, folder)][-KEPT_EXPORTS:]
        left = tuple(each for each in self.pending if each.id != window.id)
        return replace(self, until=window.end, pending=left, exports=dict(exports))

    def to_json(self) -> dict[str, Any]:
        """For the history table."""
        return {
            "table_id": self.table_id,
            "keys": [list(key) for key in self.keys],
            "until": None if self.until is None else self.until.isoformat(),
            "pending": [window.to_json() for window in self.pending],
            # In order, which a mapping of JSON need not keep.
            "exports": [list(export) for export in self.exports.items()],
            **({} if self.erased is None else {"erased": self.erased}),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> CaptureState:
        """What `to_json` made."""
        until = found["until"]
        return cls(
            found["table_id"],
            tuple((name, kind) for name, kind in found["keys"]),
            None if until is None else dt.datetime.fromisoformat(until),
            tuple(map(Window.from_json, found["pending"])),
            dict(found["exports"]),
            found.get("erased"),
        )


KEPT_EXPORTS = 100
"""Of captured windows, whose exports are still known."""


@dataclass(frozen=True)
class Restorable:
    """The time in which a table can be restored, and so exported."""

    first: dt.datetime
    last: dt.datetime


def next_windows(
    table: str, until: dt.datetime | None, restorable: Restorable
) -> tuple[Window, ...]:
    """What there is to export, in order; nothing where all is captured but the last minutes.

    Args:
        table: its name, for messages.
        until: what is captured already; None for nothing, then the whole table is.
        restorable: what DynamoDB can export.

    Raises:
        CaptureError: changes that were never captured cannot be exported any more.
    """
    # Exports of others may end within a second; DynamoDB takes whole ones.
    last = restorable.last.replace(microsecond=0)
    if until is None:
        return (Window(None, last),)
    if until < restorable.first:
        raise CaptureError(
            f"Table {table}: captured until {_minute(until)}, but its changes can be exported "
            f"only from {_minute(restorable.first)} on: point-in-time recovery keeps 35 days, and "
            "begins anew when it is switched off and on. What was written between is lost to "
            "increments. Begin again with the whole table: `feast-dynamo capture sync --full`; "
            "rows that are in the history stay."
        )
    until = until.replace(microsecond=0)
    left = last - until
    if left < SHORTEST:
        return ()
    count = -(-left // LONGEST)
    # All but the last two are of 24 hours; the last two share what is left where the last would
    # be too short.
    ends = [until + LONGEST * number for number in range(1, count)] + [last]
    if count > 1 and ends[-1] - ends[-2] < SHORTEST:
        ends[-2] -= SHORTEST
    starts = [until, *ends[:-1]]
    return tuple(Window(*each) for each in zip(starts, ends, strict=True))
