"""Captures a table by exports: the whole of it once, then what changed, a window at a time.

Each step is noted in the history table before the next, so that a run that ends anywhere is gone
on with by the next one, and one that is repeated does nothing::

    windows planned -> exports started -> each followed, read, checked, committed in order
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from feast_dynamo_ext.capture.exports.export_files import exports_below, read_export
from feast_dynamo_ext.capture.exports.export_jobs import (
    POLL,
    Exports,
    ExportTarget,
    restorable,
)
from feast_dynamo_ext.capture.exports.windows import CaptureState, Window, next_windows
from feast_dynamo_ext.cost.prices import EXPORT_BYTES
from feast_dynamo_ext.errors import CaptureError
from feast_dynamo_ext.parquet.iceberg.commits import new_commit_id
from feast_dynamo_ext.progress import Task

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterator, Sequence

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.capture.dynamo_table import DynamoTable
    from feast_dynamo_ext.capture.exports.export_files import DataFile, Export
    from feast_dynamo_ext.capture.exports.missing_items import MissingItems
    from feast_dynamo_ext.capture.history import CapturedHistory, Counts
    from feast_dynamo_ext.capture.values.change_rows import Converted
    from feast_dynamo_ext.polling import Poll


logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Windows that are exported at the same time; more follow once these are captured."""

T = TypeVar("T")


@dataclass(frozen=True)
class Captured:
    """What a window brought.

    Attributes:
        window: the window.
        folder: of its export.
        counts: records, rows and quarantine.
        billed_bytes: what DynamoDB charges for.
    """

    window: Window
    folder: str
    counts: Counts
    billed_bytes: int

    @property
    def dollars(self) -> float:
        """What the export costs."""
        return EXPORT_BYTES.cost(self.billed_bytes)


@dataclass(frozen=True)
class SyncResult:
    """What a run did.

    Attributes:
        source: name of the source.
        until: all that was written before is in the history.
        captured: by window, in order.
        left: how long ago the history ends, for a table that is exported; None for files.
        is_followed: whether the table's stream brought what exports did not.
    """

    source: str
    until: dt.datetime | None
    captured: tuple[Captured, ...] = ()
    left: dt.timedelta | None = None
    is_followed: bool = False


@dataclass
class CaptureProgress:
    """How far a run is; see `progress.Work`.

    Attributes:
        source: name of the source.
        say: takes texts for a person.
    """

    source: str
    say: Callable[[str], object] = logger.info
    logger: Any = logger
    overview: str = ""
    _task: Task | None = None

    @property
    def tasks(self) -> list[Task]:
        """The window that is worked on."""
        return [] if self._task is None else [self._task]

    def waiting(self, window: Window, number: int, total: int) -> None:
        """DynamoDB exports a window, the so manyth of those that are known."""
        which = f", window {number} of {total}" if total > 1 else ""
        self._task = Task(self.source, f"DynamoDB exports {window}{which}")

    def reading(self, export: Export) -> None:
        """An export is read."""
        self._task = Task(self.source, "", 0, export.items, "items")

    def read(self, records: int) -> None:
        """So many more of its records are read."""
        if self._task is not None:
            self._task = replace(self._task, done=self._task.done + records)

    def done(self) -> None:
        """Nothing is worked on."""
        self._task = None


@dataclass(frozen=True)
class Capture:
    """Captures one source.

    Attributes:
        history: where to.
        table: the source's table, as DynamoDB describes it.
        convert: what becomes of a data file of an export.
        settings: how AWS is reached.
        missing: finds items of the history that a full export does not have; None: they stay.
        projection: attributes that are exported; empty for all.
        workers: files that are read at once.
        progress: how far it is.
    """

    history: CapturedHistory
    table: DynamoTable
    convert: Callable[[Export, DataFile], Iterator[Converted]]
    settings: AwsSettings
    missing: Callable[[Export], MissingItems] | None = None
    projection: tuple[str, ...] = ()
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    progress: CaptureProgress = field(default_factory=lambda: CaptureProgress(""))

    # From the table

    def sync(
        self,
        client: Any,
        table: DynamoTable,
        target: ExportTarget,
        *,
        full: bool = False,
        poll: Poll = POLL,
    ) -> SyncResult:
        """Export what is not captured yet, and capture it.

        Args:
            client: boto3's of DynamoDB.
            table: as DynamoDB describes it now.
            target: where exports are written.
            full: begin with the whole table again.
            poll: how often to poll.

        Returns:
            All windows up to what could be exported when it began.

        Raises:
            CaptureError: what cannot be exported, or another run captures the source; says what
                to do. What was captured before stays.
            AwsError: AWS refuses.
        """
        there = self.history.state()
        state = self._checked(there, table, full=full)
        span = restorable(client, table.name)
        exports = Exports(client, table, target, poll, self.projection)
        captured: list[Captured] = []
        total, begins_anew, is_followed = len(state.pending), full, False
        while True:
            until = state.until
            if begins_anew or not state.pending:
                # What the stream brought is not exported as well.
                stream = self.history.stream()
                until = None if begins_anew else stream.captured_until(state.until)
                windows = next_windows(table.name, until, span)
                if begins_anew:
                    # The time before may have shown the same moment, with other columns.
                    run = new_commit_id()[:8]
                    windows = tuple(replace(window, run=run) for window in windows)
                total = len(captured) + len(windows)
                state = state.planned(windows[:AT_ONCE])
                is_followed = stream.stream is not None and stream.gap(state.until) is None
                begins_anew = False
            if not state.pending:
                break
            # Noted before DynamoDB is asked: the same windows have the same tokens.
            self.history.keep(there, state, new_commit_id())
            there = self._started(state, exports)
            state = there
            for window in state.pending:
                self.progress.waiting(window, len(captured) + 1, total)
                state, one = self._window(window, state, exports, table)
                captured.append(one)
            there = state
        self.progress.done()
        left = None if until is None else span.last - until
        return SyncResult(
            self.history.source.name,
            state.until if captured else until,
            tuple(captured),
            left,
            is_followed=is_followed and not captured,
        )

    def _started(self, before: CaptureState, exports: Exports) -> CaptureState:
        """With the exports of all pending windows, which is noted."""
        state = before
        for window in before.pending:
            if not window.arn:
                state = state.started(window, exports.start(window))
        if state != before:
            self.history.keep(before, state, new_commit_id())
        return state

    def _checked(
        self, state: CaptureState | None, table: DynamoTable, *, full: bool
    ) -> CaptureState:
        if state is None:
            return CaptureState(table.id, table.keys)
        name = f"Source `{self.history.source.name}`"
        state = self._of_key(state, table)
        if state.table_id != table.id and not full:
            raise CaptureError(
                f"{name}: table {table.name} was deleted and made anew (its id is {table.id}, and "
                f"that of the captured one {state.table_id}), so increments do not follow each "
                "other. Begin with the whole new table: `feast-dynamo capture sync --full`; what "
                "is in the history stays."
            )
        return replace(state, table_id=table.id)

    def _of_key(self, state: CaptureState, table: DynamoTable) -> CaptureState:
        """The state, where its history is of a table of the same key."""
        self.history.check_key(table.key_columns(self.history.source), table.keys)
        # Earlier versions noted no key with exports that were converted.
        return replace(state, keys=table.keys)

    def _window(
        self, window: Window, state: CaptureState, exports: Exports, table: DynamoTable
    ) -> tuple[CaptureState, Captured]:
        try:
            folder = exports.followed(window, self.progress.say)
        except CaptureError:
            # The next run exports it once more.
            self.history.keep(state, state.failed(window), new_commit_id())
            raise
        export = read_export(folder, self.settings)
        if (export.table_arn, export.start, export.end) != (table.arn, window.start, window.end):
            raise CaptureError(
                f"{folder} is {export}, and not that of {window} of {table.arn}, which was asked "
                "for. Was the folder copied over?"
            )
        return self._committed(window, state, state, export)

    def _committed(
        self, window: Window, there: CaptureState | None, state: CaptureState, export: Export
    ) -> tuple[CaptureState, Captured]:
        """Capture an export; how far capture is goes from what is there on in the same commit."""
        after = state.captured(window, export.uri)
        self.progress.reading(export)
        parts = self._parts(export)
        if export.is_full and self.missing is not None:
            parts = self.missing(export).added_to(parts)
        counts = self.history.commit(
            parts, export.items, there, after, f"{state.table_id}/{window.id}"
        )
        if self.history.state() == there:
            # The rows are known of a commit before, which left how far capture is as it was.
            self.history.keep(there, after, new_commit_id())
        return after, Captured(window, export.uri, counts, export.billed_bytes)

    # From files

    def convert_exports(self, uri: str) -> SyncResult:
        """Capture exports that lie on S3 or on a disk already.

        Args:
            uri: one export's folder, or a folder with several of one table.

        Raises:
            CaptureError: they are of another table, do not follow each other, or changed on the
                way. What was captured before stays, and the one that failed leaves nothing.
            AwsError: S3 refuses.
        """
        exports = [read_export(each, self.settings) for each in exports_below(uri, self.settings)]
        exports.sort(key=lambda export: (export.end, not export.is_full))
        state, captured = self.history.state(), []
        for export in exports:
            there, state = state, self._follows(state, export)
            if _is_captured(state, export):
                continue
            window = Window(export.start, export.end, export.arn)
            state, one = self._committed(window, there, state, export)
            captured.append(one)
        self.progress.done()
        until = None if state is None else state.until
        return SyncResult(self.history.source.name, until, tuple(captured))

    def _follows(self, state: CaptureState | None, export: Export) -> CaptureState:
        """The state, where an export of it goes on from there."""
        name, table = f"Source `{self.history.source.name}`", self.table.name
        # A name says little: other regions and accounts have a table of it too.
        if export.table_arn != self.table.arn:
            raise CaptureError(
                f"{name} captures the table {self.table.arn}, but {export.uri} is an export of "
                f"another table, {export.table_arn}. Name the exports of one table."
            )
        if state is None:
            if not export.is_full:
                raise CaptureError(
                    f"{name}: the first of the exports is {export}. Begin with a full export: an "
                    "increment has only what changed."
                )
            return CaptureState(export.table_id, self.table.keys)
        state = self._of_key(state, self.table)
        if state.table_id != export.table_id:
            raise CaptureError(
                f"{name}: {export.uri} is of a table {table} that was made anew (its id is "
                f"{export.table_id}, and that of the captured one {state.table_id}). Declare a "
                "source of another name for it."
            )
        if export.start is not None and (state.until is None or export.start > state.until):
            raise CaptureError(
                f"{name}: captured until {state.until}, and the next of the exports is {export}. "
                "What changed between is missing: name the exports of that time as well."
            )
        return state

    # Records

    def _parts(self, export: Export) -> Iterator[Converted]:
        def of_file(file: DataFile) -> Iterator[Converted]:
            return self.convert(export, file)

        for part in side_by_side(of_file, export.files, self.workers):
            self.progress.read(part.records)
            yield part


def _is_captured(state: CaptureState, export: Export) -> bool:
    return state.until is not None and export.end <= state.until


def side_by_side(
    work: Callable[[Any], Iterator[T]], tasks: Sequence[Any], workers: int
) -> Iterator[T]:
    """What several threads yield, as it comes; few of it are held.

    An error of one ends all, and is raised here.
    """
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    found: queue.Queue[Any] = queue.Queue(maxsize=workers)
    is_over = threading.Event()
    end = object()

    def put(what: Any) -> None:
        while not is_over.is_set():
            with contextlib.suppress(queue.Full):
                found.put(what, timeout=0.1)
                return

    def run() -> None:
        try:
            while not is_over.is_set():
                for each in work(waiting.get_nowait()):
                    put((each, None))
                    if is_over.is_set():
                        return
        except queue.Empty:
            put((end, None))
        except BaseException as error:  # noqa: BLE001 - raised again by who asked
            put((end, error))

    threads = [
        threading.Thread(target=run, daemon=True) for _ in range(min(workers, len(tasks)) or 1)
    ]
    for thread in threads:
        thread.start()
    left = len(threads)
    try:
        while left:
            each, error = found.get()
            if error is not None:
                raise error
            if each is end:
                left -= 1
            else:
                yield each
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
