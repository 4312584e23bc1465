"""Who holds the lease of a view's table, and whether that run is still alive."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from feast_dynamo_ext.dynamo.control import ControlItem
from feast_dynamo_ext.errors import ItemFormatError, ResourceNotFoundError
from feast_dynamo_ext.materialize.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from feast_dynamo_ext.dynamo.control import Value

LEASE = b"lease"
LOOKS_PER_LEASE, MOST_BETWEEN_LOOKS_S = 10, 1.0


@dataclass(frozen=True)
class LeaseSettings:
    """How to hold a lease. Times in seconds.

    Attributes:
        lease_s: seconds without a beat after which others may take the lease.
        if_running: what to do while another run holds it: fail, or wait for it.
        clock: seconds of a monotonic clock.
        sleep: waits the given seconds, for who wants the lease.
        pause: waits the given seconds between beats, less if the event is set; whether it is.
        process: the process that wants the lease.
        is_dead: whether a process is surely gone.
    """

    lease_s: float = 30
    if_running: Literal["refuse", "wait"] = "refuse"
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False)
    pause: Callable[[threading.Event, float], bool] = field(
        default=threading.Event.wait, repr=False
    )
    process: Callable[[], Process] = field(default=Process.this, repr=False)
    is_dead: Callable[[Process], bool] = field(default=Process.is_dead, repr=False)


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as its item says.

    Attributes:
        view: name of the feature view.
        owner: random, one a lease that was acquired.
        beat: random, one a sign of life.
        lease_s: seconds without a new beat after which it is gone.
        process: where it runs.
        started_at: when it acquired the lease by its own clock, for people only.
    """

    view: str
    owner: str
    beat: str
    lease_s: float
    process: Process
    started_at: str

    def __str__(self) -> str:
        process = self.process
        return (
            f"`{process.command}` (pid {process.pid} on host {process.host}, since "
            f"{self.started_at})"
        )

    @classmethod
    def new(cls, view: str, settings: LeaseSettings) -> Holder:
        """This process, as it will hold the lease."""
        now = datetime.now(tz=timezone.utc).isoformat(timespec="seconds")
        return cls(view, random_text(), random_text(), settings.lease_s, settings.process(), now)

    @classmethod
    def parse(cls, values: Mapping[str, Any], table: str) -> Holder:
        """The inverse of `values`.

        Raises:
            ItemFormatError: another program wrote the item.
        """
        try:
            process = Process(
                values["host"],
                values["pid"],
                values.get("kernel"),
                values.get("born"),
                values["command"],
            )
            return cls(
                values["view"],
                values["owner"],
                values["beat"],
                float(values["lease_s"]),
                process,
                values["started_at"],
            )
        except KeyError as error:
            raise ItemFormatError(
                f"The lease item of table {table} has no {error}: another program wrote it. If no "
                "run materializes the view, delete the item that has an attribute `owner`."
            ) from error

    def values(self) -> dict[str, Value]:
        """The attributes of the lease item."""
        process = self.process
        told = {"kernel": process.kernel, "born": process.born}
        return {
            "kind": "lease of the run that materializes this view",
            "view": self.view,
            "owner": self.owner,
            "beat": self.beat,
            "lease_s": Decimal(str(self.lease_s)),
            "host": process.host,
            "pid": process.pid,
            "command": process.command,
            "started_at": self.started_at,
            **{name: value for name, value in told.items() if value is not None},
        }


def holder(client: Any, table: str) -> Holder | None:
    """Who holds the lease of a view's table now, dead or alive; None for nobody.

    Raises:
        AwsError: AWS refused, or there is no such table.
    """
    values = ControlItem(client, table, LEASE).read()
    return None if values is None else Holder.parse(values, table)


def is_gone(client: Any, table: str, settings: LeaseSettings) -> bool:
    """Whether no run is alive that holds the lease of a view's table.

    Answers at once where nobody holds it, its holder's process was on this machine, or there is
    no such table; else once a sign of life is seen, at the latest after the holder's `lease_s`.

    Raises:
        AwsError: AWS refused.
    """
    watch = Watch(settings)
    while (held := _holder_if_any(client, table)) is not None:
        is_alive = watch.look(held)
        if is_alive is not None:
            return not is_alive
        settings.sleep(look_again_s(held))
    return True


def _holder_if_any(client: Any, table: str) -> Holder | None:
    try:
        return holder(client, table)
    except ResourceNotFoundError:
        return None


class Watch:
    """Tells, on this machine's own clock, whether the holder of a lease is alive."""

    def __init__(self, settings: LeaseSettings) -> None:
        self._settings = settings
        self._seen: tuple[str, str] | None = None
        self._since_s = 0.0

    def look(self, held: Holder) -> bool | None:
        """Whether it is, by what the item says now; None where that is not known yet."""
        if self._settings.is_dead(held.process):
            return False
        now_s, sign = self._settings.clock(), (held.owner, held.beat)
        if sign == self._seen:
            return False if now_s - self._since_s >= held.lease_s else None
        is_first = self._seen is None
        self._seen, self._since_s = sign, now_s
        return None if is_first else True


def look_again_s(held: Holder) -> float:
    """Seconds between two looks at a lease."""
    return min(MOST_BETWEEN_LOOKS_S, held.lease_s / LOOKS_PER_LEASE)


def random_text() -> str:
    """For owners and beats."""
    return uuid.uuid4().hex
