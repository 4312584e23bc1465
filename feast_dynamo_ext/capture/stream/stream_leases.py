"""Which worker reads which shard: a lease a shard, in a small table of the online store's.

Whoever wants a lease compares no time in it with a clock: it watches the holder's beats on its own
monotonic clock, see `materialize.lease`. A holder counts from its last good beat, so it knows that
it may have lost a lease before another can have it. Leases spread shards; what is committed they
do not guard: there a worker that lost its lease is refused by the shard's position.

A worker with less than its share asks the one with the most, which commits what it has read and
gives the shard up::

    A     holds 1, 2 ............. reads `wanted`: commits, gives 2 up
    B     ......... asks A for 2 ......................... takes 2
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.dynamo.control_items import ABSENT, ControlItem
from feast_dynamo_ext.dynamo.layouts.packed import KEY
from feast_dynamo_ext.errors import AwsError, LeaseLostError, ResourceNotFoundError
from feast_dynamo_ext.materialize.lease import Holder, LeaseSettings, Watch, random_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from feast import RepoConfig

logger = logging.getLogger(__name__)

TABLE = "feast_capture_leases"
"""What the table of leases is named, in the place of a view's name."""

KIND = "lease of the worker that reads this shard"

WANTED = "wanted"
"""Attribute of a lease: who asks for it."""


def lease_table(config: RepoConfig) -> str:
    """Name of the table of leases of a project."""
    template = getattr(config.online_store, "table_name_template", "{project}.{table_name}")
    return str(template.format(project=config.project, table_name=TABLE))


def make_lease_table(client: Any, name: str) -> None:
    """Make the table of leases, where there is none; paid by request.

    Raises:
        AwsError: DynamoDB refuses.
    """
    with translated("dynamodb", f"table {name}"):
        try:
            client.describe_table(TableName=name)
        except client.exceptions.ResourceNotFoundException:
            try:
                client.create_table(
                    TableName=name,
                    KeySchema=[{"AttributeName": KEY, "KeyType": "HASH"}],
                    AttributeDefinitions=[{"AttributeName": KEY, "AttributeType": "B"}],
                    BillingMode="PAY_PER_REQUEST",
                )
            except client.exceptions.ResourceInUseException:
                logger.debug("another worker makes the table %s", name)
        client.get_waiter("table_exists").wait(
            TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 120}
        )


def last_sign(
    client: Any, table: str, source: str, shards: Sequence[str], settings: LeaseSettings
) -> tuple[bool, dt.datetime | None]:
    """Whether a worker that reads one of some shards is alive, and the last sign of one.

    For people: whoever wants a lease watches its beats instead, see `Watch`.

    Args:
        client: boto3's of DynamoDB.
        table: of leases; it need not be there.
        source: name of the captured source.
        shards: ids.
        settings: the clock, and what knows dead processes.

    Returns:
        False where all that hold leases are surely gone, or none does; and when the last beat of
        them was sent by their own clock, None where no lease says it.

    Raises:
        AwsError: DynamoDB refuses.
    """
    leases = ShardLeases(client, table, source, settings)
    held = [found for shard in shards if (found := leases.holder(shard)) is not None]
    now_s = settings.wall_clock()
    is_alive = any(not (settings.is_dead(each.process) or each.is_silent(now_s)) for each in held)
    beats = [each.beat_at for each in held if each.beat_at is not None]
    last = dt.datetime.fromtimestamp(max(beats), dt.timezone.utc) if beats else None
    return is_alive, last


@dataclass
class _Held:
    """A lease that this worker has.

    Attributes:
        holder: what its item says.
        good_s: when its last good beat was sent, by the monotonic clock.
        lost: why it is lost; empty while it is held.
    """

    holder: Holder
    good_s: float
    lost: str = ""


@dataclass
class ShardLeases:
    """The leases of one worker on the shards of a source's stream. Safe between threads.

    Attributes:
        client: boto3's of DynamoDB.
        table: of leases.
        source: name of the captured source.
        settings: how long, and by which clocks.
    """

    client: Any
    table: str
    source: str
    settings: LeaseSettings = field(default_factory=LeaseSettings)
    _held: dict[str, _Held] = field(default_factory=dict)
    _watches: dict[str, Watch] = field(default_factory=dict)
    _asking: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _me: str = field(default_factory=random_text)

    @property
    def held(self) -> list[str]:
        """Shards whose lease this worker has, or may have."""
        with self._lock:
            return sorted(shard for shard, held in self._held.items() if not held.lost)

    @property
    def lost(self) -> list[str]:
        """Shards whose lease another has, or may have by now."""
        with self._lock:
            found = [shard for shard in self._held if self._why_lost(shard)]
        return sorted(found)

    def take(self, shards: Sequence[str]) -> tuple[list[str], list[str]]:
        """Take what is free, up to this worker's share, and ask for one of who has too many.

        Args:
            shards: that may be read now.

        Returns:
            The shards that were taken, and those that were asked for.

        Raises:
            AwsError: DynamoDB refuses.
        """
        mine = set(self.held)
        others: dict[str, str] = {}
        free: list[tuple[str, Holder | None]] = []
        for shard in shards:
            if shard in mine:
                continue
            holder = self.holder(shard)
            if holder is None or self._watch(shard).look(holder) is False:
                free.append((shard, holder))
            else:
                others[shard] = holder.owner
        counts = Counter(others.values())
        now_s = self.settings.clock()
        # Who asked has nothing yet, or too little: what is given up is for that one.
        asking = {
            owner for owner, at_s in self._asking.items() if now_s - at_s < self.settings.lease_s
        }
        share = -(-len(shards) // (len({*counts, *asking}) + 1))
        taken: list[str] = []
        for shard, gone in free:
            if len(mine) + len(taken) >= share:
                break
            if self._take(shard, gone):
                taken.append(shard)
        return taken, self._wanted(others, counts, len(mine) + len(taken))

    def beat(self) -> list[str]:
        """Give a sign of life for each lease; the shards that others ask for.

        A lease whose beat fails is lost once it is as old as it may become; see `check`.
        """
        wanted = []
        for shard in self.held:
            sent_s = self.settings.clock()
            try:
                said = self._item(shard).read()
                if said is None or said.get("owner") != self._me:
                    self._lose(shard, said)
                    continue
                sign: dict[str, Any] = {
                    "beat": random_text(),
                    "beat_at": int(self.settings.wall_clock()),
                }
                if not self._item(shard).update(sign, {"owner": self._me}):
                    self._lose(shard, self._item(shard).read())
                    continue
            except AwsError as error:
                logger.warning("the lease of shard %s could not be renewed yet: %s", shard, error)
                continue
            with self._lock:
                if shard in self._held:
                    self._held[shard].good_s = sent_s
            if WANTED in said:
                self._asking[said[WANTED]] = sent_s
                wanted.append(shard)
        return wanted

    def check(self, shard: str) -> None:
        """Return if the lease of a shard is held; cheap, for before each request.

        Raises:
            LeaseLostError: another worker has it, or may have it by now.
        """
        with self._lock:
            why = self._why_lost(shard)
        if why:
            raise LeaseLostError(
                f"Source `{self.source}`: this worker has lost its lease of shard {shard}: {why}. "
                "The other one goes on from what is in the history."
            )

    def release(self, shards: Collection[str]) -> None:
        """Let others have leases. What is lost already is only forgotten."""
        for shard in shards:
            with self._lock:
                held = self._held.pop(shard, None)
            if held is None or held.lost:
                continue
            try:
                self._item(shard).delete({"owner": self._me})
            except AwsError as error:
                # Others only have to wait until it has expired.
                logger.warning("the lease of shard %s could not be released: %s", shard, error)

    def _why_lost(self, shard: str) -> str:
        held = self._held.get(shard)
        if held is None:
            return "it was given up"
        silent_s = self.settings.clock() - held.good_s
        if not held.lost and silent_s >= self.settings.lease_s:
            held.lost = f"it could not renew it for {silent_s:.0f} s, so another may have it"
        return held.lost

    def _lose(self, shard: str, said: dict[str, Any] | None) -> None:
        why = "somebody deleted it"
        if said is not None:
            why = f"{Holder.parse(said, self.table)} has it now"
        with self._lock:
            if shard in self._held:
                self._held[shard].lost = why

    def _take(self, shard: str, gone: Holder | None) -> bool:
        me = Holder.new(shard, self.settings, self._me)
        where = ABSENT if gone is None else {"owner": gone.owner, "beat": gone.beat}
        sent_s = self.settings.clock()
        is_mine = self._item(shard).put({**me.values(), "kind": KIND}, where)
        if not is_mine:
            # The same is answered to a repeated request whose first answer was lost.
            found = self.holder(shard)
            is_mine = found is not None and found.owner == self._me
        if not is_mine:
            return False
        if gone is not None:
            logger.warning("took over the lease of shard %s from %s", shard, gone)
        with self._lock:
            self._held[shard] = _Held(me, sent_s)
        self._watches.pop(shard, None)
        return True

    def _wanted(self, others: dict[str, str], counts: Counter[str], mine: int) -> list[str]:
        """Ask the worker with the most for one shard, where this one has two less."""
        if not counts:
            return []
        owner, most = max(counts.items(), key=lambda each: (each[1], each[0]))
        if most < mine + 2:
            return []
        shard = min(shard for shard, of in others.items() if of == owner)
        self._item(shard).update({WANTED: self._me}, {"owner": owner})
        return [shard]

    def holder(self, shard: str) -> Holder | None:
        """Who has the lease of a shard, dead or alive; None for nobody, or for no table.

        Raises:
            AwsError: DynamoDB refuses.
        """
        try:
            said = self._item(shard).read()
        except ResourceNotFoundError:
            return None
        return None if said is None else Holder.parse(said, self.table)

    def _watch(self, shard: str) -> Watch:
        if shard not in self._watches:
            self._watches[shard] = Watch(self.settings)
        return self._watches[shard]

    def _item(self, shard: str) -> ControlItem:
        return ControlItem(self.client, self.table, f"stream:{self.source}:{shard}".encode())
