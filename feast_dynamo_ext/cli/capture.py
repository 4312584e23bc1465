"""feast-dynamo capture: tables of an application become history."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext.cli.erase_person import erase
from feast_dynamo_ext.cli.named_table import (
    answer_on_stdout,
    read_units_option,
    source_argument,
    source_of,
    sources_of,
    store_of,
)
from feast_dynamo_ext.cli.repo import InOrder, Output, json_option, repo_option
from feast_dynamo_ext.errors import AccessDeniedError, ConfigError
from feast_dynamo_ext.figures import count, counted, dollars, duration
from feast_dynamo_ext.figures import table as aligned
from feast_dynamo_ext.progress import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from feast import FeatureStore

    from feast_dynamo_ext.capture.exports.sync import Capture, SyncResult
    from feast_dynamo_ext.capture.status import CaptureStatus, Sign
    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource


@click.group(cls=InOrder, short_help="DynamoDB tables of an application become history.")
def capture() -> None:
    """Capture the changes of an application's DynamoDB table into history.

    A `DynamoDBTableSource` in definitions.py names the table. Its items become rows of an Iceberg
    table, each change with its event time and the time when it was written; features are defined
    on it, materialized and joined as on any other source.

    \b
    The whole table once, then what changed since; run it again, or on a schedule:
      feast-dynamo capture sync purchases
    How far each source is:
      feast-dynamo capture status
    """  # noqa: D301 - click keeps the lines after \b as they are


@capture.command(short_help="Export what changed in a table, and capture it.")
@source_argument
@click.option(
    "--exports",
    metavar="S3_URI",
    help="Where DynamoDB writes the exports.  [default: the source's `history`, with -exports]",
)
@click.option("--kms-key", metavar="KEY", help="Encrypt the exports with this KMS key.")
@click.option("--full", is_flag=True, help="Begin with the whole table again.")
@click.option(
    "--scan", is_flag=True, help="Scan the table instead: for small ones, without exports."
)
@read_units_option
@repo_option
@json_option
def sync(
    source: str,
    exports: str | None,
    kms_key: str | None,
    read_units: float | None,
    output: Output,
    repo: Path,
    *,
    full: bool,
    scan: bool,
) -> None:
    """Export what changed in the table of SOURCE since the last run, and capture it.

    The first run exports the whole table, the next ones what changed, in windows of 15 minutes to
    24 hours, up to 35 days back. DynamoDB writes the files to S3 from its backups: no read
    capacity is taken. Each is checked against its MD5, and the number of records against the
    manifest. A window is one commit of the history: a run that was interrupted is gone on with,
    one that is repeated does nothing. Items that do not fit go to quarantine, with the reason.

    The table needs point-in-time recovery. DynamoDB takes some minutes for an export, and charges
    $0.10 a GB. A small table can be scanned instead (--scan), which takes read units: what is
    there is compared with the history, so that changes between two scans are seen as one.

    \b
    feast-dynamo capture sync purchases
    feast-dynamo capture sync purchases --scan --read-units 500
    feast-dynamo capture sync purchases --exports s3://bucket/exports --json
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.capture.captured import capture_of
    from feast_dynamo_ext.capture.dynamo_table import DynamoTable, dynamodb_client
    from feast_dynamo_ext.capture.exports.export_jobs import ExportTarget

    if scan and (full or exports is not None or kms_key is not None):
        raise click.UsageError(
            "--full, --exports and --kms-key are of exports, and --scan makes none: it reads the "
            "whole table each time."
        )
    if read_units is not None and not scan:
        raise click.UsageError("--read-units is of --scan: exports take no read units.")
    store = store_of(repo)
    found = source_of(store, source)
    client = dynamodb_client(store.config)
    if scan:
        _scan(store, found, client, read_units, output)
        return
    target = ExportTarget.from_uri(exports or f"{found.history.rstrip('/')}-exports", kms_key)
    with answer_on_stdout(output):
        table = DynamoTable.from_table(client, found)
        run = capture_of(found, table, store.config)
        with shown(run.progress):
            result = run.sync(client, table, target, full=full)
    _show(result, run, output)


@capture.command(short_help="Capture exports that lie on S3 or a disk.")
@source_argument
@click.argument("path", metavar="PATH")
@repo_option
@json_option
def convert(source: str, path: str, output: Output, repo: Path) -> None:
    """Capture exports of the table of SOURCE that were made before and lie below PATH.

    PATH is the folder of one export, or a folder with several: a full one, and increments that
    follow each other. What is captured already is passed over.

    \b
    feast-dynamo capture convert purchases s3://bucket/exports
    feast-dynamo capture convert purchases exports/AWSDynamoDB/01767608400250-5f2e9a31
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.capture.captured import capture_of
    from feast_dynamo_ext.capture.dynamo_table import DynamoTable, dynamodb_client

    store = store_of(repo)
    found = source_of(store, source)
    client = dynamodb_client(store.config)
    with answer_on_stdout(output):
        run = capture_of(found, DynamoTable.from_table(client, found), store.config)
        with shown(run.progress):
            result = run.convert_exports(path)
    _show(result, run, output)


@capture.command(short_help="Write a schema that takes the items of a table.")
@click.argument("table", metavar="TABLE")
@click.option("--event-time", metavar="ATTRIBUTE", help="Which attribute is the event time.")
@click.option("--from", "exports", metavar="PATH", help="Read an export on S3 or a disk instead.")
@click.option(
    "--items",
    "most",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="How many items are looked at.",
)
@click.option("--flatten", is_flag=True, help="A column for each value inside of maps.")
@repo_option
@json_option
def infer(
    table: str,
    event_time: str | None,
    exports: str | None,
    most: int,
    output: Output,
    repo: Path,
    *,
    flatten: bool,
) -> None:
    """Look at items of the DynamoDB table TABLE, or of the source of that name; write a schema.

    What is printed takes every item that was looked at: numbers that are always whole are Int64,
    others Float64 or Decimal by their digits, and an attribute of several types is Json. The
    report says what is missing, what has several types, and what may be meant by a text or a
    number that could be a time. Paste it into definitions.py as `schema=` of a
    `DynamoDBTableSource`. Nothing is written. Items are read by a scan, which takes read units.

    \b
    feast-dynamo capture infer purchases --event-time purchased_at
    feast-dynamo capture infer purchases --from s3://bucket/exports
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.capture.dynamo_table import dynamodb_client
    from feast_dynamo_ext.capture.inference import SchemaInference, add_exported, add_scanned

    store = store_of(repo)
    known = {each.name: each for each in sources_of(store)}
    name = known[table].table if table in known else table
    time = event_time or (known[table].event_time if table in known else None)
    found = SchemaInference()
    if exports is not None:
        settings: Any = store.config.offline_store
        add_exported(found, exports, name, settings.aws(), most)
    else:
        add_scanned(found, dynamodb_client(store.config), name, most)
    schema = found.schema(event_time=time, flatten=flatten)
    output.note(schema.report())
    output.show(
        {"table": name, "items": schema.items, "declaration": schema.declaration()},
        schema.declaration(),
    )


@capture.command(short_help="Try records in quarantine again.")
@source_argument
@repo_option
@json_option
def retry(source: str, output: Output, repo: Path) -> None:
    """Try the records of SOURCE that are in quarantine again, after its schema was mended.

    Change the type of a field in definitions.py, run `feast apply`, then this. Records that fit
    now become rows of the history, as of when they were written; the others stay, with the reason.

    \b
    feast-dynamo capture retry purchases
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.capture.captured import history_of
    from feast_dynamo_ext.capture.dynamo_table import DynamoTable, dynamodb_client
    from feast_dynamo_ext.capture.quarantine import retry as tried_again

    store = store_of(repo)
    found = source_of(store, source)
    table = DynamoTable.from_table(dynamodb_client(store.config), found)
    columns, history = history_of(found, table, store.config)
    result = tried_again(history, columns)
    reasons = sorted(result.reasons.items(), key=lambda each: -each[1])
    rows = [(attribute, reason, count(number)) for (attribute, reason), number in reasons]
    words = ("attribute", "reason")
    text = f"{count(result.taken)} records fit now, {count(result.left)} do not."
    output.show(
        {
            "source": source,
            "taken": result.taken,
            "left": result.left,
            "reasons": [
                {"attribute": attribute, "reason": reason, "records": number}
                for (attribute, reason), number in reasons
            ],
        },
        f"{text}\n{aligned((*words, 'records'), rows, words=words)}" if rows else text,
    )


@capture.command(short_help="Write the image of a Lambda function that follows streams.")
@click.argument("folder", metavar="FOLDER", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--requirement",
    metavar="TEXT",
    help="What pip installs.  [default: this version of feast-dynamo-ext]",
)
@repo_option
@json_option
def lambda_image(folder: Path, requirement: str | None, output: Output, repo: Path) -> None:
    """Write a new FOLDER from which `docker build` makes the image of an AWS Lambda function.

    The function takes the changes of captured tables from their streams: it writes them to the
    online store and appends them to the history, each once. The folder has a Dockerfile on AWS's
    base image for Python, the versions of the packages that are installed here, and the repo's
    feature_store.yaml, whose registry, catalog and histories must be where the function reaches
    them. Wheels of packages that are on no index go into FOLDER/wheels.

    \b
    feast-dynamo capture lambda-image image
    docker build --platform linux/amd64 --provenance=false --tag feast-dynamo-capture image
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.capture.stream.lambda_image import write_image

    files = write_image(store_of(repo), folder, requirement)
    output.show(
        {"folder": str(folder), "files": files},
        f"{folder} has {', '.join(files)}. Build the image, push it to ECR, make a function of it "
        "and map the streams of the tables to it: `feast-dynamo docs capture`.",
    )


@capture.command(short_help="How far each source is.")
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@repo_option
@json_option
def status(sources: tuple[str, ...], output: Output, repo: Path) -> None:
    """Print how far captured sources are: until when, rows, quarantine, the next window.

    `stream` says how far behind the shards of a followed stream are in the history; with --json
    each shard has its own position and lag. `next` says so where no worker follows it now.

    \b
    feast-dynamo capture status
    feast-dynamo capture status purchases --json
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.capture.history import CapturedHistory
    from feast_dynamo_ext.capture.status import status_of

    store = store_of(repo)
    chosen = [source_of(store, name) for name in sources] or sources_of(store)
    found = [
        status_of(
            CapturedHistory.from_source(each, store.config), each, sign=_signs(store, each, output)
        )
        for each in chosen
    ]
    if not found:
        raise ConfigError(
            "The registry has no `DynamoDBTableSource`. Declare one in definitions.py, define a "
            "view on it, and run `feast apply`."
        )
    rows = [
        (
            each.source,
            each.table,
            "-" if each.until is None else f"{each.until:%Y-%m-%d %H:%M:%S}Z",
            "-" if each.lag is None else duration(each.lag.total_seconds()),
            count(each.rows),
            count(each.quarantined),
            _stream_of(each),
            each.next,
        )
        for each in found
    ]
    heads = ("source", "table", "captured until", "lag", "rows", "quarantined", "stream", "next")
    due = "".join(
        f"\n{each.source}: {count(each.small_files)} small or unsorted files make reads slow: "
        f"`feast-dynamo table optimize {each.source}`."
        for each in found
        if each.is_optimize_due
    )
    output.show([each.to_json() for each in found], f"{aligned(heads, rows)}{due}")


def _signs(
    store: FeatureStore, source: DynamoDBTableSource, output: Output
) -> Callable[[Sequence[str]], Sign | None]:
    """What says whether a worker follows the stream of a source."""
    from feast_dynamo_ext.capture.dynamo_table import dynamodb_client
    from feast_dynamo_ext.capture.stream.stream_leases import last_sign, lease_table
    from feast_dynamo_ext.materialize.lease import LeaseSettings

    def sign(shards: Sequence[str]) -> Sign | None:
        client, table = dynamodb_client(store.config), lease_table(store.config)
        try:
            return last_sign(client, table, source.name, shards, LeaseSettings())
        except AccessDeniedError as error:
            output.note(f"Whether a worker follows {source.name} cannot be seen: {error}")
            return None

    return sign


def _stream_of(status: CaptureStatus) -> str:
    if status.stream is None:
        return "-"
    lags = [lag.total_seconds() for lag in status.shard_lags.values()]
    if not lags:
        return "ended"
    behind = duration(min(lags))
    if len(lags) > 1:
        behind = f"{behind} to {duration(max(lags))}"
    return f"{counted(len(lags), 'shard')}, {behind} behind"


def _scan(
    store: FeatureStore,
    source: DynamoDBTableSource,
    client: Any,
    read_units: float | None,
    output: Output,
) -> None:
    from feast_dynamo_ext.capture.captured import capture_of, columns_of
    from feast_dynamo_ext.capture.dynamo_table import DynamoTable
    from feast_dynamo_ext.capture.exports.table_scan import scan as scanned
    from feast_dynamo_ext.progress import Steps

    table = DynamoTable.from_table(client, source)
    with answer_on_stdout(output):
        history = capture_of(source, table, store.config).history
        steps = Steps(source.name, table.items, "items")
        with shown(steps):
            found = scanned(
                client,
                table,
                columns_of(source, table),
                history,
                units_per_s=read_units,
                read=steps.advance,
            )
    output.show(
        {
            "source": source.name,
            "until": found.until.isoformat(),
            "items": found.items,
            "rows": found.rows,
            "quarantined": found.quarantined,
            "read_units": found.units,
            "dollars": found.dollars,
        },
        f"{count(found.items)} items, {count(found.rows)} rows new in the history, "
        f"{count(found.quarantined)} more in quarantine. {count(found.units)} read units "
        f"({dollars(found.dollars)} on demand).",
    )


def _why_nothing(result: SyncResult) -> str:
    followed = "Nothing is exported, as the table's stream is followed"
    return followed if result.is_followed else "Nothing is new"


def _show(result: SyncResult, run: Capture, output: Output) -> None:
    rows = [
        (
            str(each.window),
            count(each.counts.records),
            count(each.counts.rows),
            count(each.counts.quarantined),
            f"{each.billed_bytes / 1e9:,.3f} GB",
            dollars(each.dollars),
        )
        for each in result.captured
    ]
    heads = ("window", "items", "rows", "quarantined", "exported", "price")
    quarantined = sum(each.counts.quarantined for each in result.captured)
    after = (
        f"\n{count(quarantined)} records did not fit: they are in "
        f"{run.history.quarantine.name}, with the reason. `feast-dynamo capture retry "
        f"{result.source}` takes them once the schema is mended."
        if quarantined
        else ""
    )
    erased = sum(each.counts.erased for each in result.captured)
    if erased:
        after += f"\n{count(erased)} rows and records of people who were erased are left out."
    until = "" if result.until is None else f"{result.until:%Y-%m-%d %H:%M:%S}Z"
    text = (
        f"{aligned(heads, rows)}\nCaptured until {until}.{after}"
        if rows
        else f"{_why_nothing(result)}: captured until {until}."
    )
    output.show(
        {
            "source": result.source,
            "until": until,
            "is_followed": result.is_followed,
            "windows": [
                {
                    "window": each.window.id,
                    "folder": each.folder,
                    "items": each.counts.records,
                    "rows": each.counts.rows,
                    "quarantined": each.counts.quarantined,
                    "erased": each.counts.erased,
                    "billed_bytes": each.billed_bytes,
                    "dollars": each.dollars,
                }
                for each in result.captured
            ],
        },
        text,
    )


capture.add_command(erase)
