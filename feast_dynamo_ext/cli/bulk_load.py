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
    json_option,
    open_store,
    repo_option,
    time_in,
    views_option,
)
from feast_dynamo_ext.errors import FeastDynamoError, ViewsFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from feast_dynamo_ext.materialize.bulk_import.load import BulkResult, BulkSettings
    from feast_dynamo_ext.materialize.bulk_import.view_loads import Comparison

MB = 1_000_000
SAID_EVERY_BYTES = 500 * MB


@click.command("bulk-load")
@click.argument("start", metavar="START_TS", callback=lambda _context, _of, text: time_in(text))
@click.argument("end", metavar="END_TS", callback=lambda _context, _of, text: time_in(text))
@click.option(
    "--output",
    "files",
    metavar="S3_URI",
    help="s3://bucket/prefix for the files; needed unless --dry-run.",
)
@views_option
@click.option(
    "--way",
    type=click.Choice(["auto", "import", "bulk-put"]),
    default="auto",
    show_default=True,
    help="import makes a new table, bulk-put writes into one that exists; auto looks which.",
)
@click.option(
    "--replace-empty",
    is_flag=True,
    help="Delete a table that holds no rows, as `feast apply` leaves it, so that it is imported.",
)
@click.option(
    "--max-write-units",
    type=click.IntRange(min=1_024),
    metavar="N",
    help="Write units a second of a bulk put, 1,024 or more.  [default: as fast as DynamoDB goes]",
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
@click.option("--dry-run", is_flag=True, help="Load nothing; compare what the three ways cost.")
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

    For a first load of many rows. The rows are written as gzipped DynamoDB JSON; DynamoDB then
    loads the files by itself: an import makes a new table out of them, without write units; a bulk
    put writes them into a table that exists, where rows that are newer stay. The command waits for
    the end, and fails if DynamoDB could not load each row.

    \b
    What each way would cost, and which to take:
      feast-dynamo bulk-load 2024-01-01 2026-01-01 --dry-run
    Right after `feast apply`, whose tables are still empty:
      feast-dynamo bulk-load 2024-01-01 2026-01-01 --output s3://my-bucket/load --replace-empty
    Into a table that is being read, leaving it room:
      feast-dynamo bulk-load 2024-01-01 2026-01-01 --output s3://my-bucket/load \\
        -v orders --way bulk-put --max-write-units 5000

    A bulk put needs botocore 1.44.5 or newer; Ctrl-C cancels it. An import cannot be cancelled.
    """  # noqa: D301 - click keeps the lines after \b as they are
    if start > end:
        raise click.UsageError(f"START_TS ({start}) is after END_TS ({end}).")
    if files is None and not dry_run:
        raise click.UsageError("Give --output s3://bucket/prefix, or --dry-run.")
    stdout = contextlib.redirect_stdout(sys.stderr) if output.as_json else contextlib.nullcontext()
    with stdout:
        store = open_store(repo)
        chosen = _with_history(chosen_views(store, views or None, None), output)
        from feast_dynamo_ext.materialize.bulk_import.view_loads import BulkLoader

        with BulkLoader(store) as loader:
            if dry_run:
                done, failures = _each(
                    chosen, lambda view: loader.compare(view, start, end), output
                )
            else:
                settings = _settings(files or "", file_size, choices)
                done, failures = _each(
                    chosen,
                    lambda view: loader.load(view, start, end, settings, Said(view.name, output)),
                    output,
                )
    show = _show_comparisons if dry_run else _show_results
    show(done, failures, output)
    _raise(failures, len(chosen))


def _with_history(views: Sequence[Any], output: Output) -> list[Any]:
    """The views whose rows are read from history; others are named."""
    from feast import OnDemandFeatureView

    computed = [view.name for view in views if isinstance(view, OnDemandFeatureView)]
    if computed:
        output.note(f"Left out, as Feast computes them: {', '.join(computed)}.")
    return [view for view in views if not isinstance(view, OnDemandFeatureView)]


def _settings(files: str, file_size: int, choices: dict[str, Any]) -> BulkSettings:
    from feast_dynamo_ext.materialize.bulk_import.load import BulkSettings

    return BulkSettings(files, file_bytes=file_size * MB, **choices)


def _each(
    views: Sequence[Any], do: Callable[[Any], Any], output: Output
) -> tuple[list[Any], dict[str, FeastDynamoError]]:
    """Answers, and errors by view: a view that fails does not stop the others."""
    answers: list[Any] = []
    failures: dict[str, FeastDynamoError] = {}
    for view in views:
        try:
            answers.append(do(view))
        except FeastDynamoError as error:  # noqa: PERF203 - one view's failure is its own
            failures[view.name] = error
            if len(views) > 1:
                output.note(f"{view.name}: {error}")
    return answers, failures


def _raise(failures: dict[str, FeastDynamoError], count: int) -> None:
    """Raise the error of a view that is alone; else one that names the views.

    Raises:
        FeastDynamoError: a view failed.
    """
    if failures and count == 1:
        raise next(iter(failures.values()))
    if failures:
        raise ViewsFailedError(
            f"{len(failures)} of {count} feature views failed: {', '.join(failures)}. What is "
            "said of each above says what to do.",
            failures=failures,
        )


class Said:
    """Says on stderr how far a load is."""

    def __init__(self, view: str, output: Output) -> None:
        self._view, self._output = view, output
        self._items = self._bytes = self._said = 0
        self._last = ""

    def wrote(self, items: int, raw_bytes: int) -> None:
        """Say it now and then."""
        self._items += items
        self._bytes += raw_bytes
        if self._bytes >= self._said + SAID_EVERY_BYTES:
            self._said = self._bytes
            self.note(f"{self._items:,} items, {self._bytes / 1e9:,.1f} GB written to files")

    def status(self, text: str) -> None:
        """Say what has changed."""
        if text != self._last:
            self._last = text
            self.note(text)

    def note(self, text: str) -> None:
        """Say it."""
        self._output.note(f"{self._view}: {text}")


def _show_results(
    results: Sequence[BulkResult], failures: dict[str, FeastDynamoError], output: Output
) -> None:
    from feast_dynamo_ext.figures import count, duration, table

    rows = [
        [
            one.view,
            one.table,
            one.way,
            count(one.rows),
            count(one.files),
            f"{one.raw_bytes / 1e9:,.2f}",
            duration(one.seconds),
        ]
        for one in results
    ]
    headers = ["feature view", "table", "way", "rows", "files", "GB", "time"]
    for one in results:
        for skipped in one.skipped:
            output.note(f"{one.view}: `{skipped.setting}` is left as it is: {skipped.reason}")
    data = {
        "views": [dataclasses.asdict(one) for one in results],
        "failed": _texts(failures),
    }
    output.show(data, table(headers, rows, words=headers[:3]) if rows else "Nothing is loaded.")


def _show_comparisons(
    compared: Sequence[Comparison], failures: dict[str, FeastDynamoError], output: Output
) -> None:
    from feast_dynamo_ext.cost.prices import AS_OF, REGION

    data = {
        "region": REGION,
        "as_of": AS_OF,
        "views": [_comparison(one) for one in compared],
        "failed": _texts(failures),
    }
    note = f"Dollars: on demand, {REGION}, {AS_OF}; of rows that the table does not hold yet."
    output.show(data, "\n\n".join([*map(_comparison_text, compared), note]))


def _texts(failures: dict[str, FeastDynamoError]) -> dict[str, str]:
    return {view: str(error) for view, error in failures.items()}


def _comparison(one: Comparison) -> dict[str, Any]:
    return {
        "view": one.view,
        "table": one.table,
        "table_exists": one.exists,
        **dataclasses.asdict(one.sizes),
        "raw_bytes": one.sizes.raw_bytes,
        "ways": {cost.way: {"dollars": round(cost.dollars, 6)} for cost in one.costs},
        "recommended": one.recommendation.way,
        "why": one.recommendation.why,
    }


def _comparison_text(one: Comparison) -> str:
    from feast_dynamo_ext.figures import count, dollars, table

    there = "exists" if one.exists else "is new"
    rows = [[cost.way, dollars(cost.dollars), cost.how] for cost in one.costs]
    headers = ["way", "dollars", "for"]
    return (
        f"{one.view}: {count(one.sizes.items)} rows, {one.sizes.item_bytes / 1e9:,.2f} GB; table "
        f"{one.table} {there}.\n{table(headers, rows, words=('way', 'for'))}\n"
        f"Recommended: {one.recommendation.way}. {one.recommendation.why}"
    )
