"""One run at a time on a view: a lease with a heartbeat, as an item in the view's table.

Who holds it is in the item, with a random value, `beat`, that the holder replaces every third of
the lease's length. Who wants the lease compares no time in the item with a clock, so clocks may
differ as they like: it watches the item on its own monotonic clock and takes the lease over
once it has seen no new beat for the lease's length::

    holder     beat 1 ....... beat 2 ... killed
    the other  ......... sees 2 ........ sees 2, lease_s later: takes over, if it is still 2
                         |<--------- lease_s -------->|

A holder that cannot send its beat counts from when it sent the last good one, which is before
anybody could see it. So it knows that it may have lost the lease before another can have it.
`check` says so; between two checks a request may still be on its way, which newest-wins makes
harmless. A holder on a machine of this name, whose process is gone (no such pid, or a process of
another start time), is taken over at once.

Who only wants to know whether a view is being materialized, as a reader does that cannot watch,
may judge by the time of the last beat: see `Holder.is_silent`.

This is how AWS's own lock client works,
https://aws.amazon.com/blogs/database/building-distributed-locks-with-the-dynamodb-lock-client/
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from feast_dynamo_ext.dynamo.control_items import ABSENT, ControlItem
from feast_dynamo_ext.errors import (
    AlreadyRunningError,
    AwsError,
    ItemFormatError,
    LeaseLostError,
    ResourceNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from feast_dynamo_ext.dynamo.control_items import Value


PROC = Path("/proc")
MOST_COMMAND = 200
"""Characters of a command that are kept."""

# Fields of /proc/<pid>/stat after the command's name, see proc_pid_stat(5).
STATE, START_TIME = 0, 19
ENDED = {"Z", "X"}


@dataclass(frozen=True)
class Process:
    """A process on some machine.

    Attributes:
        host: the machine's name.
        pid: its number.
        born: when it started, in ticks since the machine's start; distinguishes it from a later
            process of the same pid. None outside Linux.
        command: the command line that started it.
    """

    host: str
    pid: int
    born: str | None
    command: str

    @classmethod
    def this(cls) -> Process:
        """The process that runs this."""
        pid = os.getpid()
        _, born = _stat(pid) or (None, None)
        return cls(socket.gethostname(), pid, born, _command())

    def is_dead(self) -> bool:
        """Whether it is surely gone. False where it runs, and where this machine cannot know."""
        if self.born is None or self.host != socket.gethostname():
            return False
        found = _stat(self.pid)
        if found is None:
            return not _exists(self.pid)
        state, born = found
        return state in ENDED or born != self.born


def _stat(pid: int) -> tuple[str, str] | None:
    """A process's state and start; None where there is none, or it may not be looked at."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The command's name is in parentheses and may hold any character, these included.
    fields = text.rpartition(")")[2].split()
    return fields[STATE], fields[START_TIME]


def _exists(pid: int) -> bool:
    """Whether a pid is taken, even by a process that /proc hides (mount option hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _command() -> str:
    program, *arguments = sys.argv or [""]
    return shlex.join([Path(program).name, *arguments])[:MOST_COMMAND]


LEASE = b"lease"
LOOKS_PER_LEASE, MOST_BETWEEN_LOOKS_S = 10, 1.0

CLOCKS_DIFFER_S = 60
"""By which clocks of machines are taken to differ at most, where only that can be compared."""


@dataclass(frozen=True)
class LeaseSettings:
    """Of holding a lease. Times in seconds.

    Attributes:
        lease_s: seconds without a beat after which others may take the lease.
        if_running: what to do while another run holds it: fail, or wait for it.
        clock: seconds of a monotonic clock.
        wall_clock: seconds since 1970, to compare with other machines'.
        sleep: waits the given seconds, for who wants the lease.
        pause: waits the given seconds between beats, less if the event is set; whether it is.
        process: the process that wants the lease.
        is_dead: whether a process is surely gone.
    """

    lease_s: float = 30
    if_running: Literal["refuse", "wait"] = "refuse"
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    wall_clock: Callable[[], float] = field(default=time.time, repr=False)
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
        beat_at: when it sent the beat by its own clock, seconds since 1970; None where another
            version of this package holds the lease.
    """

    view: str
    owner: str
    beat: str
    lease_s: float
    process: Process
    started_at: str
    beat_at: int | None = None

    def __str__(self) -> str:
        process = self.process
        return (
            f"`{process.command}` (pid {process.pid} on host {process.host}, since "
            f"{self.started_at})"
        )

    @classmethod
    def new(cls, view: str, settings: LeaseSettings, owner: str | None = None) -> Holder:
        """This process, as it will hold the lease; by default of an owner of its own."""
        now_s = int(settings.wall_clock())
        now = datetime.fromtimestamp(now_s, tz=timezone.utc).isoformat(timespec="seconds")
        process, beat = settings.process(), random_text()
        return cls(view, owner or random_text(), beat, settings.lease_s, process, now, now_s)

    def is_silent(self, now_s: float) -> bool:
        """Whether it has surely sent no beat for the lease's length.

        For who cannot watch, and to whom a wrong answer does no harm: clocks may be wrong.
        """
        if self.beat_at is None:
            return False
        return now_s - self.beat_at >= self.lease_s + CLOCKS_DIFFER_S

    @classmethod
    def parse(cls, values: Mapping[str, Any], table: str) -> Holder:
        """The inverse of `values`; attributes that other versions wrote besides are ignored.

        Raises:
            ItemFormatError: another program wrote the item.
        """
        try:
            process = Process(
                values["host"],
                values["pid"],
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
                values.get("beat_at"),
            )
        except KeyError as error:
            raise ItemFormatError(
                f"The lease item of table {table} has no {error}: another program wrote it. If no "
                "run materializes the view, delete the item that has an attribute `owner`."
            ) from error

    def values(self) -> dict[str, Value]:
        """The attributes of the lease item."""
        process = self.process
        more: dict[str, Value] = {} if self.beat_at is None else {"beat_at": self.beat_at}
        if process.born is not None:
            more["born"] = process.born
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
            **more,
        }


def holder(client: Any, table: str, *, is_series: bool = False) -> Holder | None:
    """Who holds the lease of a view's table now, dead or alive; None for nobody.

    Args:
        client: boto3's client of DynamoDB.
        table: the view's table.
        is_series: whether it keeps every event.

    Raises:
        AwsError: AWS refused, or there is no such table.
    """
    values = ControlItem(client, table, LEASE, is_series).read()
    return None if values is None else Holder.parse(values, table)


def is_gone(client: Any, table: str, settings: LeaseSettings, *, is_series: bool = False) -> bool:
    """Whether no run is alive that holds the lease of a view's table.

    Answers at once where nobody holds it, its holder's process was on this machine, or there is
    no such table; else once a sign of life is seen, at the latest after the holder's `lease_s`.

    Raises:
        AwsError: AWS refused.
    """
    watch = Watch(settings)
    while (held := _holder_if_any(client, table, is_series=is_series)) is not None:
        is_alive = watch.look(held)
        if is_alive is not None:
            return not is_alive
        settings.sleep(look_again_s(held))
    return True


def _holder_of(item: ControlItem) -> Holder | None:
    return holder(item.client, item.table, is_series=item.is_series)


def _holder_if_any(client: Any, table: str, *, is_series: bool) -> Holder | None:
    try:
        return holder(client, table, is_series=is_series)
    except ResourceNotFoundError:
        return None


class Watch:
    """Judges, by this machine's own clock, whether the holder of a lease is alive."""

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


logger = logging.getLogger(__name__)

BEATS_PER_LEASE = 3


class Lease:
    """The lease of one view, held by this process. A context manager: its end releases it.

    Safe to share between threads.
    """

    def __init__(
        self, item: ControlItem, holder: Holder, settings: LeaseSettings, sent_s: float
    ) -> None:
        self.holder = holder
        self._item, self._settings = item, settings
        self._good_s = sent_s
        self._failure: AwsError | None = None
        self._lost: str | None = None
        self._stop = threading.Event()
        name = f"lease of {holder.view}"
        threading.Thread(target=self._keep_beating, name=name, daemon=True).start()

    @classmethod
    def acquire(
        cls,
        client: Any,
        table: str,
        view: str,
        settings: LeaseSettings,
        *,
        is_series: bool = False,
    ) -> Lease:
        """Get the lease of a view, and keep it by a heartbeat in a thread of its own.

        Args:
            client: boto3's client of DynamoDB.
            table: the view's table.
            view: name of the feature view, for messages.
            settings: how long, and what to do while another run holds it.
            is_series: whether the table keeps every event.

        Raises:
            AlreadyRunningError: another run holds it, and `if_running` is `refuse`.
            AwsError: AWS refused, or there is no such table.
        """
        item, me, watch = (
            ControlItem(client, table, LEASE, is_series),
            Holder.new(view, settings),
            Watch(settings),
        )
        while True:
            gone = _wait_until_free(item, view, watch, settings)
            where = {"owner": gone.owner, "beat": gone.beat} if gone else ABSENT
            sent_s = settings.clock()
            if item.put(me.values(), where) or _is_held_by(item, me):
                if gone:
                    _log_takeover(gone, settings)
                return cls(item, me, settings, sent_s)

    def check(self) -> None:
        """Return if the lease is held; cheap, for between any two requests.

        Raises:
            LeaseLostError: another run has it, or may have it by now.
        """
        if self._lost is not None:
            raise self._lost_error(self._lost)
        silent_s = self._settings.clock() - self._good_s
        if silent_s >= self._settings.lease_s:
            reason = f"it could not renew it for {silent_s:.0f} s, so another run may have it"
            raise self._lost_error(reason) from self._failure

    def beat(self) -> None:
        """Give one sign of life; the lease's own thread does so every third of its length."""
        sent_s = self._settings.clock()
        try:
            sign: dict[str, Value] = {
                "beat": random_text(),
                "beat_at": int(self._settings.wall_clock()),
            }
            renewed = self._item.update(sign, {"owner": self.holder.owner})
            now = None if renewed else _holder_of(self._item)
        except AwsError as error:
            # `check` raises, if it lasts.
            self._failure = error
            logger.warning("the lease of %s could not be renewed yet: %s", self.holder.view, error)
            return
        if renewed or (now is not None and now.owner == self.holder.owner):
            self._good_s, self._failure = sent_s, None
        elif not self._stop.is_set():
            self._lost = f"{now} has it now" if now else "somebody deleted it"

    def release(self) -> None:
        """Let others have the lease. Once it is lost, or released, this does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        try:
            self._item.delete({"owner": self.holder.owner})
        except AwsError as error:
            # The work is done; the next run only has to wait for the lease to expire.
            logger.warning("the lease of %s could not be released: %s", self.holder.view, error)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _keep_beating(self) -> None:
        pause_s = self._settings.lease_s / BEATS_PER_LEASE
        while self._lost is None and not self._settings.pause(self._stop, pause_s):
            self.beat()

    def _lost_error(self, reason: str) -> LeaseLostError:
        return LeaseLostError(
            f"Feature view `{self.holder.view}`: this run has lost its lease on table "
            f"{self._item.table}: {reason}. What it wrote stays. Run it again when "
            "no other run is at it: finished parts are skipped."
        )


def _wait_until_free(
    item: ControlItem, view: str, watch: Watch, settings: LeaseSettings
) -> Holder | None:
    """The holder that is gone, or None where there is none any more."""
    waits_for = None
    while (held := _holder_of(item)) is not None:
        is_alive = watch.look(held)
        if is_alive is False:
            return held
        if is_alive and settings.if_running == "refuse":
            raise _already_running(view, held)
        if held.owner != waits_for:
            waits_for = held.owner
            logger.info("%s holds the lease of %s: waiting for it", held, view)
        settings.sleep(look_again_s(held))
    return None


def _is_held_by(item: ControlItem, me: Holder) -> bool:
    held = _holder_of(item)
    return held is not None and held.owner == me.owner


def _log_takeover(gone: Holder, settings: LeaseSettings) -> None:
    dead = settings.is_dead(gone.process)
    why = "its process is gone" if dead else f"no sign of life for {gone.lease_s:g} s"
    logger.warning("took over the lease of %s from %s: %s", gone.view, gone, why)


def _already_running(view: str, held: Holder) -> AlreadyRunningError:
    return AlreadyRunningError(
        f"Feature view `{view}` is being materialized by {held}. Run this again when that has "
        "ended, or stop that process, or set `if_running: wait` under `batch_engine` in "
        "feature_store.yaml to wait for it."
    )
