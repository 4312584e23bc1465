"""What reads and writes must come to: each answer is checked against what was written.

A read must bring a version that is at least the newest one that was written for certain before the
read began, and that somebody has at least tried to write. The table itself must hold one, too.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fault_shop import FEATURES, Key, Read, Write, contents, micros, number_of, times
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value

from feast_dynamo_ext.errors import (
    CredentialsError,
    IncompleteReadError,
    IncompleteWriteError,
    StaleVectorsError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PRESENT, NOT_FOUND, INVALID = (
    FieldStatus.Value(name) for name in ("PRESENT", "NOT_FOUND", "INVALID")
)


@dataclass
class Totals:
    """What a run came to.

    Attributes:
        reads: keys that were asked for.
        writes: rows that were to be written.
        unread: keys of calls that ended with an error instead.
        marked: keys that were answered as unread.
        unwritten: rows that an error named.
        requests: requests that the proxy was sent.
        access_keys: how many access keys signed them.
        faults: how many requests met each kind of fault.
        errors: how many calls ended with each error.
        wrong: answers that cannot be right.
        missing: rows that the table should hold and does not.
    """

    reads: int = 0
    writes: int = 0
    unread: int = 0
    marked: int = 0
    unwritten: int = 0
    requests: int = 0
    access_keys: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __add__(self, other: Totals) -> Totals:
        mine, theirs = vars(self), vars(other)
        return Totals(**{name: mine[name] + theirs[name] for name in mine})

    def row(self, name: str) -> str:
        """A row of the printed table; docs/explanation/reliability.md shows that of all runs."""
        faults = ", ".join(f"{count:,} {kind}" for kind, count in self.faults.most_common())
        errors = ", ".join(f"{count:,} {kind}" for kind, count in self.errors.most_common())
        marked = f" ({self.marked:,} marked)" if self.marked else ""
        cells = (
            name,
            f"{self.reads:,}{marked}",
            f"{self.writes:,}",
            f"{self.requests:,}",
            faults or "none",
            errors or "none",
            len(self.wrong),
            len(self.missing),
        )
        return f"| {' | '.join(map(str, cells))} |"


class Oracle:
    """What is known of each key: the version it holds at least, and the newest anybody tried."""

    def __init__(self, totals: Totals, may_mark: bool = False) -> None:
        self.confirmed: dict[Key, int] = {}
        self.attempted: dict[Key, int] = {}
        self.totals = totals
        self._may_mark = may_mark
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def writing(self, write: Write) -> Iterator[None]:
        """Around a call that writes: only what its error names may be missing."""
        newest = write.newest
        with self._lock:
            _raise_to(self.attempted, newest)
            self.totals.writes += len(write.rows)
        try:
            yield
        except IncompleteWriteError as error:
            named = {(write.view, number_of(write.view, key)) for key in error.unwritten}
            self._failed(error, unwritten=len(named))
            _check_unwritten(error, write.view, named, newest)
            newest = {key: version for key, version in newest.items() if key not in named}
        except StaleVectorsError as error:
            self._failed(error)
        except CredentialsError as error:
            self._failed(error, unwritten=len(newest))
            newest = {}
        with self._lock:
            _raise_to(self.confirmed, newest)

    @contextlib.contextmanager
    def reading(self, read: Read) -> Iterator[Callable[[Any], None]]:
        """Around a call that reads: gives what the answer is to be handed to."""
        with self._lock:
            floors = {key: self.confirmed.get(key) for key in read.distinct()}
            self.totals.reads += len(floors)
        try:
            yield lambda answer: self._check(read, seen_in(answer, read), floors)
        except IncompleteReadError as error:
            self._failed(error, unread=len(floors))
            _check_unread(error, read)
        except CredentialsError as error:
            self._failed(error, unread=len(floors))

    def _failed(self, error: Exception, unread: int = 0, unwritten: int = 0) -> None:
        with self._lock:
            self.totals.errors[type(error).__name__] += 1
            self.totals.unread += unread
            self.totals.unwritten += unwritten

    def _check(self, read: Read, seen: Iterable[Seen], floors: dict[Key, int | None]) -> None:
        with self._lock:
            ceilings = {key: self.attempted.get(key, -1) for key in floors}
            unread = set()
            for one in seen:
                if one.status == INVALID and one.is_null and self._may_mark:
                    unread.add(one.key)
                elif not one.is_right(floors[one.key], ceilings[one.key]):
                    self.totals.wrong.append(f"{one} not in {floors[one.key], ceilings[one.key]}")
            self.totals.marked += len(unread)

    def check_table(self, view: str, held: dict[int, Seen]) -> None:
        """Check all that a table holds."""
        for key in self.attempted:
            if key[0] != view:
                continue
            one = held.get(key[1], Seen(key, NOT_FOUND, None, None))
            if not one.is_right(self.confirmed.get(key), self.attempted[key]):
                self.totals.missing.append(f"{one}: {self.confirmed.get(key)} was written")
        assert {(view, number) for number in held} <= self.attempted.keys()

    def unsettled(self) -> list[Write]:
        """The newest version of each key that was not written for certain, as calls."""
        rows: dict[str, list[tuple[int, int]]] = {}
        for key, version in self.attempted.items():
            if self.confirmed.get(key) != version:
                rows.setdefault(key[0], []).append((key[1], version))
        return [Write(view, some) for view, some in rows.items()]


def _check_unwritten(
    error: IncompleteWriteError, view: str, named: set[Key], newest: dict[Key, int]
) -> None:
    assert named
    assert named <= newest.keys()
    assert len(named) == len(error.unwritten)
    assert f".{view}: {len(named):,} of {len(newest):,} rows are not written" in str(error)


def _check_unread(error: IncompleteReadError, read: Read) -> None:
    assert error.unread
    for table, count in error.unread.items():
        view = table.rpartition(".")[2]
        assert view in read.views
        assert 0 < count <= len(set(read.keys(view)))
        assert f"{count} keys of feature view {view} (table {table})" in str(error)


def _raise_to(versions: dict[Key, int], newest: dict[Key, int]) -> None:
    for key, version in newest.items():
        versions[key] = max(version, versions.get(key, -1))


@dataclass(frozen=True)
class Seen:
    """What an answer or a table holds for one key."""

    key: Key
    status: int
    values: tuple[int, float, str] | None
    event_us: int | None

    @property
    def is_null(self) -> bool:
        return self.values is None

    def is_right(self, floor: int | None, ceiling: int) -> bool:
        if self.status == NOT_FOUND:
            return self.is_null and floor is None
        if self.status != PRESENT or self.values is None:
            return False
        view, number = self.key
        version = self.values[0]
        is_whole = self.values == contents(view, number, version)
        at = micros(times(view, version)[0])
        return is_whole and at == self.event_us and (floor or 0) <= version <= ceiling


def seen_in(answer: Any, read: Read) -> Iterator[Seen]:
    """What an answer of `get_online_features` or `online_read` holds."""
    if isinstance(answer, list):
        for key, (event_time, values) in zip(read.keys(read.views[0]), answer, strict=True):
            if values is None:
                yield Seen(key, NOT_FOUND, None, None)
            else:
                found = [values[name] for name in FEATURES]
                yield Seen(key, PRESENT, _plain(found), micros(event_time))
        return
    names = answer.proto.metadata.feature_names.val
    vectors = dict(zip(names, answer.proto.results, strict=True))
    for view in read.views:
        columns = [vectors[f"{view}__{name}"] for name in FEATURES]
        for at, key in enumerate(read.keys(view)):
            (status,) = {column.statuses[at] for column in columns}
            found = [column.values[at] for column in columns]
            moment = columns[0].event_timestamps[at]
            event_us = moment.seconds * 1_000_000 + moment.nanos // 1_000
            yield Seen(key, status, _plain(found), event_us)


def _plain(values: list[Value]) -> tuple[int, float, str] | None:
    whole, score, text = values
    if all(value.WhichOneof("val") is None for value in values):
        return None
    return whole.int64_val, score.double_val, text.string_val


def table_contents(client: Any, table: str, view: str) -> dict[int, Seen]:
    """All rows of a table, read by boto3 and decoded by Feast's own protobufs."""
    held = {}
    for page in client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        for item in page["Items"]:
            if item["k"]["B"].startswith(b"\xff"):
                continue  # the schema
            number = number_of(view, item["k"]["B"])
            values = _plain(list(RepeatedValue.FromString(item["v"]["B"]).val))
            held[number] = Seen((view, number), PRESENT, values, int(item["t"]["N"]))
    return held
