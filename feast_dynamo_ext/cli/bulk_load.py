"""feast-dynamo bulk-load: a first load through files on S3."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext.cli.repo import (
    Output,
    chosen_views,
    each_view,
    json_option,
    open_store,
    raise_failed,
    repo_option,
    time_in,
    views_option,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from feast_dynamo_ext.errors import FeastDynamoError
    from feast_dynamo_ext.materialize.bulk_import.load import (
        BulkLoader,
        BulkResult,
        BulkSettings,
        Comparison,
    )

MB = 1_000_000


def _only_imports(_context: Any, _option: Any, method: str | None) -> None:
    """Let pass what asks for an import: there is nothing else any more.

    Raises:
        click.BadParameter: bulk puts.
    """
    if method not in (None, "auto", "import"):
        raise click.BadParameter(
            f"`{method}` is gone: nothing could test what StartBulkPutItems does with the "
            "conditions of rows. A table that exists is loaded by `feast-dynamo materialize`; a "
            "new or an empty one is imported, without --way."
        )


def _no_bulk_put_rate(_context: Any, _option: Any, units: int | None) -> None:
    """Refuse the rate of bulk puts.

    Raises:
        click.BadParameter: it is given.
    """
    if units is not None:
        raise click.BadParameter(
            "it was the rate of bulk puts, which are gone: an import takes no write units. "
            "`feast-dynamo materialize --max-write-units N` loads a table that exists."
        )


@click.command("bulk-load", short_help="Load many rows into new tables, through S3.")
@click.argument("start", metavar="START_TS", callback=lambda _context, _of, text: time_in(text))
@click.argument("end", metavar="END_TS", callback=lambda _context, _of, text: time_in(text))
@click.option(
    "--output",
    "files",
    metavar="S3_URI",
    help="s3://bucket/prefix for the files; needed unless --dry-run.",
)
@views_option
@click.option("--way", hidden=True, expose_value=False, callback=_only_imports)
@click.option(
    "--replace-empty",
    is_flag=True,
    help="Delete a table that holds no rows, as `feast apply` leaves it, so that it is imported.",
)
@click.option(
    "--max-write-units", type=int, hidden=True, expose_value=False, callback=_no_bulk_put_rate
)
@click.option(
    "--file-size",
    type=click.IntRange(min=1, max=5_000),
    metavar="MB",
    default=100,
    show_default=True,
    help="Size of a file, compressed.",
)
@click.option(
    "--keep-files/--delete-files",
    default=False,
    help="What becomes of files that are loaded.  [default: delete]",
)
@click.option(
    "--dry-run", is_flag=True, help="Load nothing; compare what an import and writing rows cost."
)
@repo_option
@json_option
def bulk_load(
    start: datetime,
    end: datetime,
    files: str | None,
    output: Output,
    repo: Path,
    views: tuple[str, ...],
    *,
    dry_run: bool,
    file_size: int,
    **choices: Any,
) -> None:
    """Load the newest row of each entity through files on S3.

    For a first load of many rows. The rows are written as gzipped DynamoDB JSON to a bucket of
    yours; DynamoDB then imports the files by itself into a new table, without write units. The
    command waits for the end, deletes the files, and fails if DynamoDB could not load each row.
    An import cannot be cancelled.

    \b
    What that and `feast-dynamo materialize` would cost, and which to take:
      feast-dynamo bulk-load 2024-01-01 2026-01-01 --dry-run
    Right after `feast apply`, whose tables are still empty:
      feast-dynamo bulk-load 2024-01-01 2026-01-01 --output s3://my-bucket/load --replace-empty
    """  # noqa: D301 - click keeps the lines after \b as they are
    if start > end:
        raise click.UsageError(f"START_TS ({start}) is after END_TS ({end}).")
    if files is None and not dry_run:
        raise click.UsageError("Give --output s3://bucket/prefix, or --dry-run.")
    if files:
        from feast_dynamo_ext.materialize.bulk_import.files import Folder

        Folder.parse(files)
    stdout = contextlib.redirect_stdout(sys.stderr) if output.as_json else contextlib.nullcontext()
    with stdout:
        store = open_store(repo)
        chosen = _with_history(chosen_views(store, views or None, None), output)
        from feast_dynamo_ext.materialize.bulk_import.load import BulkLoader, BulkSettings

        settings = BulkSettings(files or "", file_bytes=file_size * MB, **choices)
        with BulkLoader(store) as loader:
            if dry_run:
                done, failures = each_view(
                    chosen, lambda view: loader.compare(view, start, end), output
                )
            else:
                window = (start, end)
                done, failures = each_view(
                    chosen, lambda view: _load(loader, view, window, settings, output), output
                )
    show = _show_comparisons if dry_run else _show_results
    show(done, failures, output)
    raise_failed(failures, len(chosen))


def _with_history(views: Sequence[Any], output: Output) -> list[Any]:
    """The views whose rows are read from history; others are named."""
    from feast import OnDemandFeatureView

    computed = [view.name for view in views if isinstance(view, OnDemandFeatureView)]
    if computed:
        output.note(f"Left out, as Feast computes them: {', '.join(computed)}.")
    return [view for view in views if not isinstance(view, OnDemandFeatureView)]


def _load(
    loader: BulkLoader,
    view: Any,
    window: tuple[datetime, datetime],
    settings: BulkSettings,
    output: Output,
) -> BulkResult:
    """Load a view, and show how far it is. Lines alone: DynamoDB's statuses come between."""
    from feast_dynamo_ext.materialize.bulk_import.load import LoadProgress
    from feast_dynamo_ext.progress import shown

    progress = LoadProgress(view.name, output.note)
    with shown(progress, bars=False):
        return loader.load(view, *window, settings, progress)


def _show_results(
    results: Sequence[BulkResult], failures: dict[str, FeastDynamoError], output: Output
) -> None:
    from feast_dynamo_ext.figures import count, duration, table

    rows = [
        [
            result.view,
            result.table,
            count(result.rows),
            count(result.files),
            f"{result.raw_bytes / 1e9:,.2f}",
            duration(result.seconds),
        ]
        for result in results
    ]
    headers = ["feature view", "table", "rows", "files", "GB", "time"]
    for result in results:
        for skipped in result.skipped:
            output.note(f"{result.view}: `{skipped.setting}` is left as it is: {skipped.reason}")
    data = {
        "views": [{**dataclasses.asdict(result), "way": "import"} for result in results],
        "failed": _texts(failures),
    }
    output.show(data, table(headers, rows, words=headers[:2]) if rows else "Nothing is loaded.")


def _show_comparisons(
    compared: Sequence[Comparison], failures: dict[str, FeastDynamoError], output: Output
) -> None:
    from feast_dynamo_ext.cost.estimate import LOAD_PRICES_AS_OF
    from feast_dynamo_ext.cost.prices import REGION

    data = {
        "region": REGION,
        "as_of": LOAD_PRICES_AS_OF,
        "views": [_comparison(view) for view in compared],
        "failed": _texts(failures),
    }
    note = (
        f"Dollars: on demand, {REGION}, {LOAD_PRICES_AS_OF}; of rows that the table does not hold "
        "yet."
    )
    output.show(data, "\n\n".join([*map(_comparison_text, compared), note]))


def _texts(failures: dict[str, FeastDynamoError]) -> dict[str, str]:
    return {view: str(error) for view, error in failures.items()}


def _comparison(view: Comparison) -> dict[str, Any]:
    return {
        "view": view.view,
        "table": view.table,
        "table_exists": view.exists,
        **dataclasses.asdict(view.sizes),
        "raw_bytes": view.sizes.raw_bytes,
        "ways": {cost.method: {"dollars": round(cost.dollars, 6)} for cost in view.costs},
        "recommended": view.recommendation.method,
        "why": view.recommendation.why,
    }


def _comparison_text(view: Comparison) -> str:
    from feast_dynamo_ext.figures import count, dollars, table

    there = "exists" if view.exists else "is new"
    rows = [[cost.method, dollars(cost.dollars), cost.basis] for cost in view.costs]
    headers = ["method", "dollars", "for"]
    return (
        f"{view.view}: {count(view.sizes.items)} rows, {view.sizes.item_bytes / 1e9:,.2f} GB; "
        f"table {view.table} {there}.\n{table(headers, rows, words=('method', 'for'))}\n"
        f"Recommended: {view.recommendation.method}. {view.recommendation.why}"
    )
