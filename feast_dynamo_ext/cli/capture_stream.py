"""feast-dynamo capture stream: changes of a table as they happen."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext.cli.named_table import (
    answer_on_stdout,
    read_units_option,
    source_argument,
    source_of,
    store_of,
)
from feast_dynamo_ext.cli.repo import FiniteFloat, Output, json_option, repo_option, size_in
from feast_dynamo_ext.figures import count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from feast import FeatureStore

    from feast_dynamo_ext.capture.dynamo_table import DynamoTable
    from feast_dynamo_ext.capture.stream.stream_figures import StreamFigures
    from feast_dynamo_ext.capture.stream.stream_worker import StreamWorker
    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource


BETWEEN_SYNCS_S = 60


@click.command(short_help="Follow the stream of a table: online at once, and into history.")
@source_argument
@click.option("--bootstrap", is_flag=True, help="Capture beside it what was in the table before.")
@click.option("--scan", is_flag=True, help="Of --bootstrap: scan the table, without exports.")
@read_units_option
@click.option(
    "--exports",
    metavar="S3_URI",
    help="Of --bootstrap: where DynamoDB writes the export.  [default: the source's `history`, "
    "with -exports]",
)
@click.option(
    "--history-every",
    "history_s",
    type=FiniteFloat(0.1),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between two commits of the history.",
)
@click.option(
    "--history-size",
    default="64MB",
    show_default=True,
    metavar="SIZE",
    help="Rows in memory that make a commit before its time.",
)
@click.option(
    "--lease",
    "lease_s",
    type=FiniteFloat(1),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="Without a sign of life for so long, other workers take the shards of this one.",
)
@repo_option
@json_option
def stream(
    source: str,
    exports: str | None,
    read_units: float | None,
    history_s: float,
    history_size: str,
    lease_s: float,
    output: Output,
    repo: Path,
    *,
    bootstrap: bool,
    scan: bool,
) -> None:
    """Follow the stream of the table of SOURCE until SIGTERM or Ctrl-C.

    Each change is in the online store within a second, in all views over SOURCE that are online,
    and in the history within a minute. In history it is once, whatever happens to this process;
    the rows are those of an export of the same changes. Several workers share the shards: start
    the same command again, on any machine. DynamoDB keeps a stream for 24 hours: what a worker
    missed that was away for longer, `feast-dynamo capture sync` exports.

    A history without rows begins with the table's content (--bootstrap), which is exported while
    the stream is followed. Every 10 seconds a line of figures is written to stderr. At the end
    what was read is committed, and its figures are printed.

    \b
    feast-dynamo capture stream purchases --bootstrap
    feast-dynamo capture stream purchases --history-every 300 --json
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.capture.captured import worker_of
    from feast_dynamo_ext.capture.dynamo_table import DynamoTable, dynamodb_client
    from feast_dynamo_ext.capture.stream.stream_worker import StreamSettings

    if not bootstrap and (scan or exports is not None):
        raise click.UsageError(
            "--scan and --exports are of --bootstrap, which captures what was in the table before."
        )
    if scan and exports is not None:
        raise click.UsageError("--exports is of exports, and --scan makes none.")
    if read_units is not None and not scan:
        raise click.UsageError("--read-units is of --scan: exports take no read units.")
    store = store_of(repo)
    found = source_of(store, source)
    settings = StreamSettings(history_s=history_s, history_bytes=size_in(history_size))
    with answer_on_stdout(output):
        table = DynamoTable.from_table(dynamodb_client(store.config), found)
        worker = worker_of(found, table, store, settings, lease_s)
        worker.say = output.note
        worker.prepare()
        begin = None
        if bootstrap:
            begin = _bootstrap(store, found, table, exports, read_units, is_scan=scan)
        figures = _followed(worker, begin, output)
    output.show(
        figures.to_json(),
        f"{count(figures.records)} changes read; {count(figures.committed.rows)} rows new in the "
        f"history in {count(figures.committed.commits)} commits, "
        f"{count(figures.committed.quarantined)} more in quarantine.",
    )


def _followed(
    worker: StreamWorker, bootstrap: Callable[[], object] | None, output: Output
) -> StreamFigures:
    """Follow the stream until a signal comes.

    The worker runs in a thread: signals are handled in the main one, which must hold no lock.
    """
    state = worker.history.state()
    is_empty = state is None or state.until is None
    name = worker.history.source.name
    if is_empty and bootstrap is None:
        output.note(
            f"The history of {name} lacks what was in the table before. Run `feast-dynamo capture "
            f"sync {name}` beside this, or begin with --bootstrap."
        )
    done: list[StreamFigures] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            done.append(worker.run())
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    def begin(bootstrap: Callable[[], object]) -> None:
        try:
            bootstrap()
            output.note(f"{name}: what was in the table before is captured.")
        except BaseException as error:  # noqa: BLE001 - raised by the worker
            worker.fail(error)

    with _signals(worker.stop):
        thread = threading.Thread(target=run, name="stream")
        thread.start()
        if is_empty and bootstrap is not None:
            threading.Thread(target=begin, args=(bootstrap,), daemon=True).start()
        while thread.is_alive():
            thread.join(1.0)
    if failures:
        raise failures[0]
    return done[0]


def _bootstrap(
    store: FeatureStore,
    source: DynamoDBTableSource,
    table: DynamoTable,
    exports: str | None,
    read_units: float | None,
    *,
    is_scan: bool,
) -> Callable[[], object]:
    """What captures the table as it is."""
    from feast_dynamo_ext.capture.captured import capture_of, columns_of
    from feast_dynamo_ext.capture.dynamo_table import dynamodb_client
    from feast_dynamo_ext.capture.exports.export_jobs import ExportTarget
    from feast_dynamo_ext.capture.exports.table_scan import scan

    client: Any = dynamodb_client(store.config)
    capture = capture_of(source, table, store.config)
    if is_scan:
        columns = columns_of(source, table)
        return lambda: scan(client, table, columns, capture.history, units_per_s=read_units)
    target = ExportTarget.from_uri(exports or f"{source.history.rstrip('/')}-exports")

    def exported() -> None:
        # What is exported ends minutes ago: where the stream begins later, as it is new, an
        # increment closes the gap once it is long enough.
        pause = threading.Event()
        while True:
            result = capture.sync(client, table, target)
            if capture.history.stream().gap(result.until) is None:
                return
            pause.wait(BETWEEN_SYNCS_S)

    return exported


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGTERM or SIGINT stops cleanly; the next one ends the process."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def handle(_number: int, _frame: Any) -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop()

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
