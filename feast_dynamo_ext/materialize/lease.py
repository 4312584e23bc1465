"""One run at a time on a view: a lease with a heartbeat, as an item in the view's table.

Who holds it is in the item, with a random value, `beat`, that the holder replaces every third of
the lease's length. No time in the item is ever compared with a clock, so clocks may differ as they
like: whoever wants the lease watches the item on its own monotonic clock and takes it over once it
has seen no new beat for the lease's length::

    holder     beat 1 ....... beat 2 ... killed
    the other  ......... sees 2 ........ sees 2, lease_s later: takes over, if it is still 2
                         |<--------- lease_s -------->|

A holder that cannot send its beat counts from when it sent the last good one, which is before
anybody could see it. So it knows that it may have lost the lease before another can have it.
`check` says so; between two checks a request may still be on its way, which newest-wins makes
harmless. A holder whose process on this very machine is gone is taken over at once.

This is how AWS's own lock client works,
https://aws.amazon.com/blogs/database/building-distributed-locks-with-the-dynamodb-lock-client/
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.dynamo.control import ABSENT, ControlItem
from feast_dynamo_ext.errors import AlreadyRunningError, AwsError, LeaseLostError
from feast_dynamo_ext.materialize.holder import (
    LEASE,
    Holder,
    Watch,
    holder,
    look_again_s,
    random_text,
)

if TYPE_CHECKING:
    from types import TracebackType

    from feast_dynamo_ext.materialize.holder import LeaseSettings

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
    def acquire(cls, client: Any, table: str, view: str, settings: LeaseSettings) -> Lease:
        """Get the lease of a view, and keep it by a heartbeat in a thread of its own.

        Args:
            client: boto3's client of DynamoDB.
            table: the view's table.
            view: name of the feature view, for messages.
            settings: how long, and what to do while another run holds it.

        Raises:
            AlreadyRunningError: another run holds it, and `if_running` is `refuse`.
            AwsError: AWS refused, or there is no such table.
        """
        item, me, watch = (
            ControlItem(client, table, LEASE),
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
            renewed = self._item.update({"beat": random_text()}, {"owner": self.holder.owner})
            now = None if renewed else holder(self._item.client, self._item.table)
        except AwsError as error:
            # `check` tells, if it lasts.
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
    while (held := holder(item.client, item.table)) is not None:
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
    held = holder(item.client, item.table)
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
