"""feast-dynamo table optimize, expire, history, rollback, tag and erase: tables are tended."""

from __future__ import annotations

import dataclasses
import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext.cli.named_table import (
    Named,
    answer_on_stdout,
    dry_run_option,
    memory_of,
    named_table,
    sources_of,
    store_of,
    table_option,
    view_argument,
    views_of,
)
from feast_dynamo_ext.cli.repo import Output, json_option, repo_option, time_in
from feast_dynamo_ext.cli.repo import table as text_table
from feast_dynamo_ext.errors import ConfigError, FeastDynamoError, ViewsFailedError
from feast_dynamo_ext.figures import counted
from feast_dynamo_ext.progress import Steps, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pyarrow as pa

    from feast_dynamo_ext.parquet.iceberg.optimize import OptimizeReport


AGE = re.compile(r"(\d+)([smhd])")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
PINNED = 'tags={"feast-dynamo.snapshot": "%s"}'


def age_option(_context: Any, _option: Any, given: str) -> timedelta:
    """An age such as 24h or 7d.

    Raises:
        click.BadParameter: it is none.
    """
    found = AGE.fullmatch(given)
    if found is None:
        raise click.BadParameter(f"`{given}` is no age. Write it as 90s, 30m, 24h or 7d.")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def key_values(_context: Any, _option: Any, given: Sequence[str]) -> dict[str, str]:
    """Join keys and their values.

    Raises:
        click.BadParameter: one has no value, or two.
    """
    keys: dict[str, str] = {}
    for text in given:
        name, has_value, value = text.partition("=")
        if not name or not has_value or name in keys:
            raise click.BadParameter(
                f"`{text}`: write each join key once, as NAME=VALUE, for example customer_id=5. "
                "Several entities go into --keys-file."
            )
        keys[name] = value
    return keys


def _version(text: str) -> int | str | datetime:
    """The id of a snapshot, a time, or the name of a tag."""
    if re.fullmatch(r"\d{5,19}", text):
        return int(text)
    return time_in(text) if re.match(r"\d{4}-\d\d-\d\d", text) else text


@click.command(short_help="Make small files large, sorted ones.")
@click.argument("view", metavar="[VIEW]", required=False)
@click.option("--all", "all_", is_flag=True, help="The tables of all views.")
@table_option
@dry_run_option
@repo_option
@json_option
def optimize(
    view: str | None,
    all_: bool,
    table: str | None,
    output: Output,
    repo: Path,
    *,
    dry_run: bool,
) -> None:
    """Rewrite small files of a table into large, sorted ones, partition by partition.

    No answer of a retrieval changes. Readers and writers may be at work: a large partition is one
    commit, small ones are one together, and a partition that another writer keeps changing is
    left for the next run. The files that were replaced stay until `feast-dynamo table expire`. It
    takes `memory_limit` of the offline store (default 1GB), and the disk beyond. Of a captured
    source name the source.

    \b
    feast-dynamo table optimize --all
    feast-dynamo table optimize customer_orders --dry-run
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.parquet.iceberg import optimize as work

    if bool(view) == all_:
        raise click.UsageError("Name a feature view, or pass --all.")
    chosen = _every_table(repo) if view is None else [named_table(repo, view, table)]

    def one(named: Named, steps: Steps) -> OptimizeReport:
        config: Any = named.store.config.offline_store
        memory = memory_of(named.store)
        return work.optimize(
            named.handle, memory, config.spill_folder, steps.reach, dry_run=dry_run
        )

    done, failures = _each(chosen, one, output)
    output.show(
        [{"view": name, **dataclasses.asdict(report)} for name, report in done.items()],
        _optimized(done),
    )
    if failures:
        raise failures[view] if view in failures else _failed(failures, len(chosen))


def _failed(failures: dict[str, FeastDynamoError], of: int) -> ViewsFailedError:
    named = " ".join(f"{name}: {error}" for name, error in failures.items())
    return ViewsFailedError(
        f"{len(failures)} of {of} tables failed. {named}", failures=dict(failures)
    )


def _every_table(repo: Path) -> list[Named]:
    """The tables that sources of views name, and those of captured sources, each once."""
    from feast_dynamo_ext.parquet.iceberg.catalog import is_iceberg
    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle

    store = store_of(repo)
    found: dict[tuple[Any, ...], Named] = {}
    for view in views_of(store).values():
        if is_iceberg(view.batch_source):
            handle = TableHandle.from_source(view.batch_source, store.config)
            place = (*handle.address.identity, handle.name)
            found.setdefault(place, Named(store, view, handle))
    for source in sources_of(store):
        handle = TableHandle.from_source(source, store.config)
        found.setdefault((*handle.address.identity, handle.name), Named(store, None, handle))
    if not found:
        raise ConfigError(
            "No feature view has an Iceberg table as its source. Make one: `feast-dynamo table "
            "import VIEW`."
        )
    return list(found.values())


def _each(
    chosen: Sequence[Named], do: Callable[[Named, Steps], Any], output: Output
) -> tuple[dict[str, Any], dict[str, FeastDynamoError]]:
    """Answers and errors by view: a table that fails does not stop the others."""
    done: dict[str, Any] = {}
    failures: dict[str, FeastDynamoError] = {}
    for named in chosen:
        steps = Steps(named.view_name, 0, "rows")
        try:
            with answer_on_stdout(output), shown(steps):
                done[named.view_name] = do(named, steps)
        except FeastDynamoError as error:
            failures[named.view_name] = error
    return done, failures


def _optimized(done: dict[str, OptimizeReport]) -> str:
    rows = []
    for report in done.values():
        rows += [
            (
                report.table,
                part.partition or "(all)",
                f"{part.rows:,}",
                f"{part.files_before:,}",
                f"{part.files_after:,}",
                f"{part.bytes_before:,}",
                f"{part.bytes_after:,}",
                part.skipped,
            )
            for part in report.partitions
        ]
        if not report.partitions:
            rows.append((report.table, "nothing to do", "", "", "", "", "", ""))
    headers = ("table", "partition", "rows", "files", "now", "bytes", "now", "skipped")
    return text_table(headers, rows)


@click.command(short_help="Let go of old versions, and delete what only they held.")
@view_argument
@click.option(
    "--older-than",
    metavar="AGE",
    default="5d",
    show_default=True,
    callback=age_option,
    help="Age of the versions that are let go of.",
)
@click.option(
    "--keep-last",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Versions that stay whatever their age.",
)
@click.option(
    "--keep", type=int, multiple=True, metavar="SNAPSHOT", help="Id of a version that stays."
)
@click.option(
    "--training-set",
    "training_sets",
    multiple=True,
    metavar="FOLDER",
    help="Folder or s3:// URI of a training set: the versions that it was made of stay.",
)
@table_option
@dry_run_option
@repo_option
@json_option
def expire(
    view: str,
    older_than: timedelta,
    keep_last: int,
    keep: tuple[int, ...],
    training_sets: tuple[str, ...],
    table: str | None,
    output: Output,
    repo: Path,
    *,
    dry_run: bool,
) -> None:
    """Let go of a table's old versions, and delete the files that only they held.

    Tagged versions stay, and the current one. Files are deleted that a version named which is
    gone, and no other one names; no folder is listed. A read of an old version that is under way
    fails, so let --older-than be longer than a read takes.

    \b
    feast-dynamo table expire customer_orders --dry-run
    feast-dynamo table expire customer_orders --older-than 30d
    feast-dynamo table expire customer_orders --training-set s3://bucket/training/2026-01
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.parquet.iceberg import expire as work

    named = named_table(repo, view, table)
    keep += _made_of(named, training_sets)
    report = work.expire(
        named.handle, datetime.now(timezone.utc) - older_than, keep_last, keep, dry_run=dry_run
    )
    would = "would be " if dry_run else ""
    files = report.data_files + report.delete_files + report.metadata_files
    kept = "".join(f"\nKept: {number}, {why}." for number, why in report.kept_by.items())
    output.show(
        dataclasses.asdict(report),
        f"{report.table}: {len(report.expired):,} versions {would}expired, {report.kept:,} left; "
        f"{files:,} files {would}deleted, {report.data_files:,} of them of data.{kept}",
    )


def _made_of(named: Named, training_sets: Sequence[str]) -> tuple[int, ...]:
    """Snapshots of a table that training sets were made of."""
    if not training_sets:
        return ()
    from feast_dynamo_ext.sagemaker.manifest import load_manifest

    config: Any = named.store.config.offline_store
    made_of = [
        found
        for output in training_sets
        for found in load_manifest(output, config.aws()).provenance.snapshots.values()
    ]
    return tuple(int(found.snapshot) for found in made_of if found.table == named.handle.name)


@click.command(short_help="List the versions of a table.")
@view_argument
@table_option
@repo_option
@json_option
def history(view: str, table: str | None, output: Output, repo: Path) -> None:
    """List the versions of a table, the newest first.

    A source reads one of them by its tag `feast-dynamo.snapshot`.

    \b
    feast-dynamo table history customer_orders
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.parquet.iceberg import snapshots

    found = snapshots.history(named_table(repo, view, table).handle)
    output.show(
        [{**dataclasses.asdict(info), "time": info.time.isoformat()} for info in found],
        text_table(
            ("snapshot", "time", "what", "added", "removed", "rows", "files", "names"),
            [
                (
                    str(info.snapshot_id),
                    f"{info.time:%Y-%m-%d %H:%M:%S}",
                    info.operation,
                    f"{info.rows_added:,}",
                    f"{info.rows_removed:,}",
                    "" if info.rows is None else f"{info.rows:,}",
                    "" if info.files is None else f"{info.files:,}",
                    ", ".join([*(["current"] if info.is_current else []), *info.tags]),
                )
                for info in found
            ],
        ),
    )


@click.command(short_help="Go back to an earlier version.")
@view_argument
@click.argument("version", metavar="SNAPSHOT_TAG_OR_TIME")
@table_option
@repo_option
@json_option
def rollback(view: str, version: str, table: str | None, output: Output, repo: Path) -> None:
    """Make an earlier version of a table the current one, for all readers.

    Later versions stay in the history until they expire. To read an earlier version without
    changing the table, tag it and name the tag in the source.

    \b
    feast-dynamo table rollback customer_orders 2026-01-31T12:00:00
    feast-dynamo table rollback customer_orders 6203744418261947562
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.parquet.iceberg.import_record import go_back

    named = named_table(repo, view, table)
    info = go_back(named.handle, _version(version))
    pin = _pin(named.view)
    pinned = (
        f"\nIn definitions.py the source still reads the version `{pin}`: take its tag "
        "`feast-dynamo.snapshot` out, or change it, and run `feast apply`."
        if pin
        else "\nNothing is to be changed in definitions.py."
    )
    output.show(
        {"table": named.handle.name, "snapshot": info.snapshot_id, "time": info.time.isoformat()},
        f"{named.handle.name} is again as it was at {info.time:%Y-%m-%d %H:%M:%S} UTC, snapshot "
        f"{info.snapshot_id}.{pinned} What was materialized since is still online: materialize "
        "the views again.",
    )


def _pin(view: Any) -> str | None:
    """The version that a view's source names."""
    tags = view.batch_source.tags if view is not None else None
    return (tags or {}).get("feast-dynamo.snapshot")


@click.command(short_help="Name a version, which then stays.")
@view_argument
@click.argument("name")
@click.option(
    "--snapshot",
    metavar="SNAPSHOT_TAG_OR_TIME",
    help="The version.  [default: the current one]",
)
@click.option("--remove", is_flag=True, help="Take the tag away.")
@table_option
@repo_option
@json_option
def tag(
    view: str,
    name: str,
    snapshot: str | None,
    table: str | None,
    output: Output,
    repo: Path,
    *,
    remove: bool,
) -> None:
    """Give a version of a table a NAME; it then stays until the tag is removed.

    \b
    What a training set was built from, to be built again later:
      feast-dynamo table tag customer_orders training-2026-01
      feast-dynamo table tag customer_orders training-2026-01 --remove
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.parquet.iceberg import snapshots

    named = named_table(repo, view, table)
    if remove:
        snapshots.untag(named.handle, name)
        output.show({"removed": name}, f"{named.handle.name} has no tag `{name}` any more.")
        return
    info = snapshots.tag(named.handle, name, None if snapshot is None else _version(snapshot))
    output.show(
        {"table": named.handle.name, "tag": name, "snapshot": info.snapshot_id},
        f"`{name}` is snapshot {info.snapshot_id} of {named.handle.name}. A source reads it with "
        f"{PINNED % name}.",
    )


@click.command(short_help="Erase entities from a table.")
@view_argument
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="NAME=VALUE",
    callback=key_values,
    help="A join key of the entity, in the table's names; once for each of several.",
)
@click.option(
    "--keys-file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="PATH",
    help="Parquet or CSV file with a column for each join key, an entity a row.",
)
@click.option(
    "--expire-now",
    is_flag=True,
    help="Let go of all older versions too: no file that the table lists has the entities then.",
)
@click.option("--drop-tags", is_flag=True, help="With --expire-now: tagged versions as well.")
@table_option
@dry_run_option
@repo_option
@json_option
def erase(
    view: str,
    keys: dict[str, str],
    keys_file: str | None,
    table: str | None,
    output: Output,
    repo: Path,
    **choices: bool,
) -> None:
    """Erase all rows of some entities from a table.

    The files that hold them are written anew without them. Older versions hold them until they
    expire; --expire-now lets go of all of these at once.

    What no version of the table lists is yours to erase: the folder that was imported, training
    sets, the online store, and files of writers that were killed before their commit, which
    nobody reads but which lie in the table's folder.

    \b
    feast-dynamo table erase customer_orders --key customer_id=5 --expire-now
    feast-dynamo table erase customer_orders --keys-file gone.csv --dry-run
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.parquet.iceberg import erase as work

    if bool(keys) == bool(keys_file):
        raise click.UsageError("Give --key NAME=VALUE, or --keys-file.")
    named = named_table(repo, view, table)
    gone = _keys(named, keys, keys_file)
    steps = Steps(named.view_name, 0, "files")
    with answer_on_stdout(output), shown(steps):
        report = work.erase(named.handle, gone, steps.reach, **choices)
    would = "would be " if choices["dry_run"] else ""
    old = [info.snapshot_id for info in report.remaining]
    left = (
        f"\n{counted(len(old), 'older version')} may still hold them: run it with --expire-now, "
        "or `feast-dynamo table expire` later."
        if old
        else ""
    )
    output.show(
        {
            "table": report.table,
            "rows": report.rows,
            "files": report.files,
            "new_files": report.new_files,
            "remaining": old,
            "expired": list(report.expired.expired) if report.expired else [],
        },
        f"{counted(report.rows, 'row')} of {counted(gone.num_rows, 'entity', 'entities')} "
        f"{would}erased from {report.table}, in {counted(report.files, 'file')}.{left}",
    )


def _keys(named: Named, given: dict[str, str], path: str | None) -> pa.Table:
    """Join keys in the types of the table.

    Raises:
        ConfigError: a text is no value of its column, or the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    from feast_dynamo_ext.columns import stored_names

    stored = stored_names(named.view.batch_source) if named.view is not None else {}
    columns = named.handle.columns()
    types = {column.name: column.type for column in columns}
    types |= {new: types[old] for new, old in stored.items() if old in types}
    try:
        if path is None:
            found = pa.table(
                {
                    name: pa.array([text]).cast(types.get(name, pa.string()))
                    for name, text in given.items()
                }
            )
        elif path.endswith(".csv"):
            found = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types))
        else:
            found = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        what = path or ", ".join(given)
        raise ConfigError(f"The keys to erase, {what}, cannot be read: {error}.") from error
    return found.rename_columns([stored.get(name, name) for name in found.column_names])
