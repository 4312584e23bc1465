"""The shards of a table's stream: which there are, which may be read, and their records.

A shard is written for some hours, then closed; its children have what comes after. An item's
changes are in order only where a shard is read after its parent is in the history::

    parent (closed) --+-- child             ready: listed, not done, and its parent is done
                      +-- child             done:  all in the history; so is whatever has a
                            +-- child              descendant with a position

Records last 24 hours. Afterwards a shard is listed no more, and an iterator into it is refused:
then changes are missing, which `TrimmedError` says.
"""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext import aws
from feast_dynamo_ext.capture.stream.stream_positions import RETENTION, second
from feast_dynamo_ext.errors import AwsError, CaptureError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from feast_dynamo_ext.capture.stream.stream_positions import ShardPosition

logger = logging.getLogger(__name__)

PAGE = 1_000
"""Records of one GetRecords, at most; DynamoDB gives 1 MB of them at most."""

MARGIN, STARTED = dt.timedelta(hours=1), dt.timedelta(minutes=5)
"""How much before their time records are taken to go, and after its time a stream to begin."""

EXPIRED, TRIMMED = "ExpiredIteratorException", "TrimmedDataAccessException"

NO_FILTER = frozenset({"ValidationException", "SerializationException"})
"""What an endpoint answers that knows no filter of shards."""


class TrimmedError(CaptureError):
    """Records of a shard that were not read are gone.

    Attributes:
        shard: its id.
    """

    def __init__(self, shard: str) -> None:
        super().__init__(
            f"The records of shard {shard} after those that were read are gone: DynamoDB keeps "
            "them for 24 hours."
        )
        self.shard = shard


@dataclass(frozen=True)
class Shard:
    """A shard, as DynamoDB describes it.

    Attributes:
        id: its id.
        parent: the id of the shard before it; None for none. It may be listed no more.
        is_closed: whether nothing comes after what is in it.
    """

    id: str
    parent: str | None = None
    is_closed: bool = False

    @classmethod
    def from_answer(cls, said: Mapping[str, Any]) -> Shard:
        """As DescribeStream names it."""
        ending = said.get("SequenceNumberRange", {}).get("EndingSequenceNumber")
        return cls(said["ShardId"], said.get("ParentShardId"), ending is not None)


@dataclass
class ShardTree:
    """The shards of a stream, as they are listed at the moment.

    Attributes:
        shards: by id.
    """

    shards: dict[str, Shard] = field(default_factory=dict)

    def add(self, found: Iterable[Shard]) -> None:
        """Shards that are listed as well."""
        for shard in found:
            known = self.shards.get(shard.id)
            is_closed = shard.is_closed or (known is not None and known.is_closed)
            self.shards[shard.id] = replace(shard, is_closed=is_closed)

    def done(self, positions: Mapping[str, ShardPosition]) -> set[str]:
        """Shards that are in the history as a whole, listed or not."""
        found = {shard for shard, position in positions.items() if position.is_done}
        for shard in positions:
            # A child is begun when its parent is done.
            before = self._parent(shard)
            while before is not None and before not in found:
                found.add(before)
                before = self._parent(before)
        return found

    def ready(self, positions: Mapping[str, ShardPosition]) -> list[str]:
        """Shards that may be read, in the order of their ids."""
        done = self.done(positions)
        return sorted(
            shard.id
            for shard in self.shards.values()
            if shard.id not in done
            and (shard.parent is None or shard.parent not in self.shards or shard.parent in done)
        )

    def superfluous(self, positions: Mapping[str, ShardPosition]) -> list[str]:
        """Positions of done shards that say nothing which those of their children do not."""
        return sorted(
            shard
            for shard, position in positions.items()
            if position.is_done
            and (children := self.children(shard))
            and all(child in positions or self._follows(child, positions) for child in children)
        )

    def lost(self, positions: Mapping[str, ShardPosition]) -> list[str]:
        """Positions of shards that are not done, and listed no more."""
        done = self.done(positions)
        return sorted(
            shard for shard in positions if shard not in done and shard not in self.shards
        )

    def children(self, shard: str) -> list[str]:
        """The listed shards that come after one."""
        return sorted(each.id for each in self.shards.values() if each.parent == shard)

    def _follows(self, shard: str, positions: Collection[str]) -> bool:
        """Whether a descendant of a shard has a position."""
        return any(
            child in positions or self._follows(child, positions) for child in self.children(shard)
        )

    def _parent(self, shard: str) -> str | None:
        known = self.shards.get(shard)
        return None if known is None else known.parent


@dataclass(frozen=True)
class Listing:
    """The shards of a stream.

    Attributes:
        shards: those that are listed.
        at: when, by DynamoDB's clock.
        created: when the stream was switched on; None for not known.
    """

    shards: Sequence[Shard]
    at: dt.datetime
    created: dt.datetime | None = None

    @property
    def complete_since(self) -> dt.datetime:
        """All that was written from then on is in the shards, where they are read from the start.

        Records are kept for 24 hours at least; a stream that is new begins some moments after it
        was asked for.
        """
        since = self.at - RETENTION + MARGIN
        if self.created is not None:
            since = max(since, self.created.replace(microsecond=0) + STARTED)
        return min(since, self.at)


def answered_at(said: Mapping[str, Any]) -> dt.datetime:
    """When an answer was given, by the clock of who gave it; by this machine's if it says none."""
    header = said.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if header:
        return parsedate_to_datetime(header).astimezone(dt.timezone.utc)
    return dt.datetime.now(dt.timezone.utc).replace(microsecond=0)


def stream_arn(client: Any, table: str) -> str:
    """The ARN of the stream that a table has now; empty for none.

    Raises:
        AwsError: DynamoDB refuses.
    """
    with aws.translated("dynamodb", f"table {table}"):
        found = client.describe_table(TableName=table)["Table"]
    is_on = (found.get("StreamSpecification") or {}).get("StreamEnabled")
    return str(found.get("LatestStreamArn", "")) if is_on else ""


def table_identity(client: Any, table: str) -> str:
    """What a table of the same name that is made later does not have.

    Its id; where the endpoint says none, as DynamoDB Local, when it was made.

    Raises:
        AwsError: DynamoDB refuses.
    """
    with aws.translated("dynamodb", f"table {table}"):
        found = client.describe_table(TableName=table)["Table"]
    return str(found.get("TableId") or found["CreationDateTime"].timestamp())


def list_shards(client: Any, arn: str, *, children_of: str | None = None) -> Listing:
    """The shards of a stream, all pages.

    Args:
        client: boto3's of DynamoDB Streams.
        arn: of the stream.
        children_of: only those that come after this one, where the endpoint can filter; all
            otherwise.

    Raises:
        ResourceNotFoundError: there is no such stream any more.
        AwsError: DynamoDB refuses.
    """
    request: dict[str, Any] = {"StreamArn": arn}
    if children_of is not None:
        request["ShardFilter"] = {"Type": "CHILD_SHARDS", "ShardId": children_of}
    found: list[Shard] = []
    while True:
        try:
            with aws.translated("dynamodbstreams", f"stream {arn}"):
                answer = client.describe_stream(**request)
        except AwsError as error:
            if children_of is None or error.code not in NO_FILTER:
                raise
            return list_shards(client, arn)
        said = answer["StreamDescription"]
        found += map(Shard.from_answer, said.get("Shards", ()))
        if not said.get("LastEvaluatedShardId"):
            return Listing(found, answered_at(answer), said.get("CreationRequestDateTime"))
        request["ExclusiveStartShardId"] = said["LastEvaluatedShardId"]


@dataclass(frozen=True)
class Page:
    """What one call read of a shard.

    Attributes:
        records: in order, as DynamoDB gives them.
        is_last: whether the shard is closed, and these are its last.
        at: when it was answered, by DynamoDB's clock in whole seconds: this machine's may be off.
    """

    records: Sequence[Mapping[str, Any]]
    is_last: bool
    at: dt.datetime

    @property
    def written(self) -> dt.datetime:
        """When the last of its records was written."""
        moment = self.records[-1]["dynamodb"]["ApproximateCreationDateTime"]
        if isinstance(moment, dt.datetime):
            return moment.astimezone(dt.timezone.utc).replace(microsecond=0)
        return second(int(moment))

    @property
    def sequence(self) -> str:
        """Sequence number of the last of its records."""
        return str(self.records[-1]["dynamodb"]["SequenceNumber"])


class ShardReader:
    """Reads a shard from where it was left.

    What a call reads is read again by the next one, until `take` says that it is taken: whoever
    fails between loses nothing.

    Args:
        client: boto3's of DynamoDB Streams.
        arn: of the stream.
        shard: its id.
        after: sequence number of the last record that is known; None for all that is there.
    """

    def __init__(self, client: Any, arn: str, shard: str, after: str | None) -> None:
        self.shard = shard
        self._client, self._arn, self._after = client, arn, after
        self._iterator: str | None = None
        self._next: str | None = None

    def read(self) -> Page:
        """The next records; none where nothing is new, or not yet found.

        Raises:
            TrimmedError: they are gone.
            AwsError: DynamoDB refuses, throttles or does not answer.
        """
        try:
            return self._read()
        except AwsError as error:
            if error.code == TRIMMED:
                raise TrimmedError(self.shard) from error
            if error.code != EXPIRED:
                raise
        # Iterators last 15 minutes: a writer may have waited longer for its commit.
        self._iterator = None
        try:
            return self._read()
        except AwsError as error:
            if error.code == TRIMMED:
                raise TrimmedError(self.shard) from error
            raise

    def take(self, page: Page) -> None:
        """Go on after a page that `read` gave."""
        if page.records:
            self._after = page.sequence
        self._iterator = self._next

    def _read(self) -> Page:
        with aws.translated("dynamodbstreams", f"shard {self.shard}"):
            if self._iterator is None:
                self._iterator = self._client.get_shard_iterator(**self._start())["ShardIterator"]
            said = self._client.get_records(ShardIterator=self._iterator, Limit=PAGE)
        self._next = said.get("NextShardIterator")
        return Page(said.get("Records", ()), self._next is None, answered_at(said))

    def _start(self) -> dict[str, Any]:
        where = {"StreamArn": self._arn, "ShardId": self.shard}
        if self._after is None:
            return {**where, "ShardIteratorType": "TRIM_HORIZON"}
        return {
            **where,
            "ShardIteratorType": "AFTER_SEQUENCE_NUMBER",
            "SequenceNumber": self._after,
        }
