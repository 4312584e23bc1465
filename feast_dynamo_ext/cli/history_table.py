"""feast-dynamo table: history tables, which are Iceberg tables, of feature views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext.cli.named_table import (
    answer_on_stdout,
    dry_run_option,
    memory_of,
    named_table,
    other_readers,
    store_of,
    table_option,
    view_argument,
    view_of,
    views_of,
)
from feast_dynamo_ext.cli.repo import InOrder, Output, json_option, repo_option
from feast_dynamo_ext.cli.table_upkeep import erase, expire, history, optimize, rollback, tag
from feast_dynamo_ext.errors import ConfigError
from feast_dynamo_ext.figures import count
from feast_dynamo_ext.progress import Steps, shown

if TYPE_CHECKING:
    from pathlib import Path

    from feast import FeatureStore

    from feast_dynamo_ext.parquet.iceberg.import_plan import ImportPlan
    from feast_dynamo_ext.parquet.iceberg.view_table import NewTable


partition_option = click.option(
    "--partition",
    type=click.Choice(["day", "month", "none"]),
    help="Of the event time, in UTC.  [default: by how much there is a day]",
)


@click.group("table", cls=InOrder, short_help="History tables: make, import, tend, erase.")
def table() -> None:
    """Keep the history of feature views in Iceberg tables.

    A folder of Parquet files is enough for a history that only grows. A table is for more: small
    files are made large ones, a person is erased, several writers append at once, and a training
    set is built again as of then. Athena, Glue, EMR and SageMaker read the same tables.

    The catalog is that of `offline_store` in feature_store.yaml: `catalog: {type: glue, warehouse:
    s3://bucket/prefix}`, or `catalog: sql` for a file on this machine.

    \b
    From a folder to a table, then tend it now and then:
      feast-dynamo table import customer_orders
      feast-dynamo table optimize --all
      feast-dynamo table expire customer_orders
    """  # noqa: D301 - click keeps the lines after \b as they are


@table.command(short_help="Make an empty table for a view.")
@view_argument
@table_option
@partition_option
@dry_run_option
@repo_option
@json_option
def create(
    view: str,
    table: str | None,
    partition: str | None,
    output: Output,
    repo: Path,
    *,
    dry_run: bool,
) -> None:
    """Make an empty table for VIEW, and print the source that reads it.

    The columns are the view's, in the types of its schema; maps and JSON are kept as text. Rows
    are sorted by join keys and event time, and partitioned by it: by day where the view's files
    have 32 MB a day or more, by month where they have as much in all or there are none, else not
    at all. To take over the files that there are, use `feast-dynamo table import` instead, which
    makes the table as well.

    \b
    feast-dynamo table create customer_orders
    feast-dynamo table create customer_orders --partition day --dry-run
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.parquet.iceberg import view_table
    from feast_dynamo_ext.parquet.iceberg.import_plan import read_history

    store = store_of(repo)
    found = view_of(store, view)
    _check_no_table(store, found, table)
    history = read_history(found, store.config)
    if history.problems:
        output.note(
            "The files that there are could not be imported as they are; `feast-dynamo table "
            f"import {view} --dry-run` says why."
        )
    new = view_table.plan_table(
        found,
        store.config,
        readers=other_readers(store, found),
        there=history.schema,
        extent=history.extent(),
        table=table,
        partition=partition,
    )
    if not dry_run:
        view_table.make(new)
    made = "would be made" if dry_run else "is made"
    _show_new(store, found, new, f"The table {new.handle.name} {made}", {}, output)


def _check_no_table(store: FeatureStore, view: Any, table: str | None) -> None:
    """Refuse to make a table for a view that has one; that of its source may be missing.

    Raises:
        ConfigError: its source is a table, which is there.
    """
    from feast_dynamo_ext.parquet.iceberg.catalog import is_iceberg, table_name
    from feast_dynamo_ext.parquet.iceberg.view_table import exists, handle_of

    source = view.batch_source
    if is_iceberg(source) and table is None and exists(handle_of(view, store.config)):
        raise ConfigError(
            f"The source of feature view `{view.name}` is the Iceberg table "
            f"{table_name(source, store.config)} already. To make another one, name it: "
            "--table NAME."
        )


def _show_new(
    store: FeatureStore,
    view: Any,
    new: NewTable,
    what: str,
    more: dict[str, Any],
    output: Output,
    *,
    is_there: bool = False,
) -> None:
    """What was made, and what to change in definitions.py."""
    from feast_dynamo_ext.parquet.iceberg.view_table import readers_of, source_code

    is_source = bool(readers_of([view], new.handle, store.config))
    code = "" if is_source else source_code(view.batch_source, new.handle.name, store.config)
    change = (
        f"In definitions.py, write this in place of the source `{view.batch_source.name}`, then "
        f"run `feast apply`:\n\n{code}"
        if code
        else "It is the view's source: nothing is to be changed in definitions.py."
    )
    by = "" if new.layout.partition == "none" else f"by {new.layout.partition} of "
    partitions = f"partitioned {by}{new.layout.event_time}" if by else "without partitions"
    made = "which was there already" if is_there else f"{partitions} ({new.why})"
    output.show(
        {
            "view": view.name,
            "table": new.handle.name,
            "partition": new.layout.partition,
            "why": new.why,
            "columns": {column.name: str(column.type) for column in new.columns},
            **more,
            "source": code,
        },
        f"{what}, {made}.\n{change}",
    )


@table.command("import", short_help="Make a table of the files that a view has.")
@click.argument("view", metavar="VIEW_OR_FOLDER")
@click.option(
    "--into",
    metavar="VIEW",
    help="Of a FOLDER: the view whose table takes its files, in the columns of its source.",
)
@table_option
@partition_option
@click.option(
    "--register",
    is_flag=True,
    help="Take the files as they are, where they are, instead of copying the rows.",
)
@dry_run_option
@repo_option
@json_option
def import_(
    view: str,
    into: str | None,
    output: Output,
    repo: Path,
    *,
    dry_run: bool,
    **choices: Any,
) -> None:
    """Make the Parquet files of a view, or of a FOLDER that a view's source names, its table's.

    The footers of all files are read first. All that stands in the way is named at once: mixed
    types, columns that are missing, names that differ in case only, files that are not whole.
    Then the rows are copied, sorted, and counted in by one commit: a run that is interrupted
    leaves nothing that counts, and one that is repeated takes only files that came since.

    By default rows are copied, as only copies keep the rule of folders, by which of equal rows
    the later file's wins, and only copies are sorted. --register takes the files themselves, and
    is done in seconds. Then of rows that are equal in keys and times what they hold decides, and
    they belong to the table: `optimize`, `expire` and `drop --purge` delete them in time. Columns
    must be in the files, not only in folders' names; nanoseconds, INT96 and unsigned integers
    cannot be registered.

    \b
    What would be done, or what stands in the way:
      feast-dynamo table import customer_orders --dry-run
    All rows; once more after the writers write to the table, for files that came meanwhile:
      feast-dynamo table import customer_orders
      feast-dynamo table import s3://bucket/history/orders --into customer_orders
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.parquet.iceberg.import_files import Room, run_import
    from feast_dynamo_ext.parquet.iceberg.import_plan import plan_import

    store = store_of(repo)
    found, files_of = _imported(store, view, into, choices["table"])
    with answer_on_stdout(output):
        plan = plan_import(
            found, store.config, files_of=files_of, readers=other_readers(store, found), **choices
        )
        config: Any = store.config.offline_store
        room = Room(min(128 << 20, memory_of(store) // 6), spill_folder=config.spill_folder)
        written = 0
        if not dry_run:
            steps = Steps(found.name, 2 * plan.rows, "rows read and written")
            with shown(steps):
                written = run_import(plan, store.config, steps.advance, room).written
    _show_import(store, found, plan, written, output, dry_run=dry_run)


def _imported(
    store: FeatureStore, name: str, into: str | None, table: str | None
) -> tuple[Any, Any]:
    """The view whose table takes files, and a view whose source has them."""
    from feast import FileSource

    from feast_dynamo_ext.parquet.iceberg.catalog import is_iceberg
    from feast_dynamo_ext.parquet.iceberg.import_plan import with_folder
    from feast_dynamo_ext.parquet.source import uri_of

    if into is not None:
        view = view_of(store, into)
        return view, with_folder(view, name)
    views = views_of(store)
    if name not in views:
        plain = {each: view for each, view in views.items() if not is_iceberg(view.batch_source)}
        config = store.config
        places = {uri_of(view.batch_source, config): view for view in plain.values()}
        # As a source names it: a path on this machine counts from the repo.
        place = uri_of(FileSource(path=name), config).rstrip("/")
        at = next((view for uri, view in places.items() if uri.rstrip("/") == place), None)
        if at is None and "/" in name:
            raise ConfigError(
                f"No feature view has {name} as its source. Say whose table takes its files: "
                "--into VIEW."
            )
        name = at.name if at is not None else name
    view = view_of(store, name)
    _check_no_table(store, view, table)
    if is_iceberg(view.batch_source):
        raise ConfigError(
            f"The source of feature view `{name}` is an Iceberg table, which has no files to "
            "import. Name the folder that has them: `feast-dynamo table import FOLDER --into "
            f"{name}`."
        )
    return view, view


def _show_import(
    store: FeatureStore,
    view: Any,
    plan: ImportPlan,
    written: int,
    output: Output,
    *,
    dry_run: bool,
) -> None:
    how = "registered" if plan.register else "copied"
    figures = {
        "files": len(plan.files),
        "rows": plan.rows,
        "earlier": plan.record.count,
        "how": how,
        "written": written,
    }
    what = (
        f"{count(plan.rows)} rows of {count(len(plan.files))} files "
        f"{'would be' if dry_run else 'are'} {how} into the table {plan.new.handle.name}"
    )
    if not plan.files:
        what = f"Nothing is new: all files are in the table {plan.new.handle.name}"
    if not (plan.register or dry_run):
        output.note(
            "The files themselves stay where they are. Delete them when nothing reads or writes "
            "there any more; what is erased from the table is still in them."
        )
    is_there = plan.table is not None
    _show_new(store, view, plan.new, what, figures, output, is_there=is_there)


table.add_command(optimize)
table.add_command(expire)
table.add_command(history)
table.add_command(rollback)
table.add_command(tag)
table.add_command(erase)


@table.command(short_help="Take a table out of its catalog.")
@view_argument
@click.option("--yes", is_flag=True, help="Also where the source of a view is this table.")
@click.option(
    "--purge", is_flag=True, help="Delete the files that its metadata lists, and no others."
)
@table_option
@repo_option
@json_option
def drop(
    view: str, table: str | None, output: Output, repo: Path, *, yes: bool, purge: bool
) -> None:
    """Take the table of VIEW out of its catalog, or the table NAMESPACE.NAME.

    Its files stay, so that it can be registered again, unless --purge is given. Files that were
    registered where they are (`import --register`) are among those that --purge deletes.

    \b
    feast-dynamo table drop customer_orders
    feast-dynamo table drop shop.customer_orders --purge
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.parquet.iceberg import view_table

    named = named_table(repo, view, table)
    views = views_of(named.store).values()
    readers = view_table.readers_of(views, named.handle, named.store.config)
    if readers and not yes:
        raise ConfigError(
            f"The table {named.handle.name} is the source of the feature views "
            f"{', '.join(readers)}. Give them another source in definitions.py and run `feast "
            "apply`, or pass --yes."
        )
    deleted = view_table.drop(named.handle, purge=purge)
    after = (
        f"\nIn definitions.py, give another source to: {', '.join(readers)}; then run `feast "
        "apply`."
        if readers
        else "\nNo view has it as its source: nothing is to be changed in definitions.py."
    )
    files = f"{deleted:,} files are deleted" if purge else "its files stay"
    output.show(
        {"table": named.handle.name, "deleted": deleted, "readers": readers},
        f"The table {named.handle.name} is dropped; {files}.{after}",
    )
