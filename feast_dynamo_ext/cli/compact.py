"""feast-dynamo compact: many small files of a source into sorted ones of a good size."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext.cli.output import Output, json_option, table
from feast_dynamo_ext.cli.repo import open_store, repo_option

if TYPE_CHECKING:
    from pathlib import Path

    from feast import FeatureStore

    from feast_dynamo_ext.offline.compact.compaction import Figures, Plan
    from feast_dynamo_ext.offline.compact.layout import Asked

SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B")
AGE = re.compile(r"(\d+)([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
DEFAULT_MEMORY = "1GB"
HEADERS = ("source", "", "files", "rows", "bytes", "row groups")


def size_in(text: str) -> int:
    """Bytes of a size such as 256MB, 1.5 GiB.

    Raises:
        click.BadParameter: it is none.
    """
    found = SIZE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"`{text}` is no size. Write it as 256MB or 1GiB.")
    number, letter, binary = found.groups()
    power = "KMGT".index(letter) + 1 if letter else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def age_in(text: str) -> float:
    """Seconds of an age such as 24h or 7d.

    Raises:
        click.BadParameter: it is none.
    """
    found = AGE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"`{text}` is no age. Write it as 90s, 30m, 24h or 7d.")
    return float(int(found[1]) * SECONDS[found[2]])


@click.command()
@click.argument("names", nargs=-1, metavar="[SOURCES_OR_VIEWS]...")
@click.option("--all", "all_", is_flag=True, help="Every source of a feature view.")
@click.option(
    "--buckets",
    type=click.IntRange(min=1),
    metavar="N",
    help="Spread rows over N buckets by a hash of their join keys.",
)
@click.option(
    "--by-partition", is_flag=True, help="Keep hive partitions; sort by time within each."
)
@click.option(
    "--target-size",
    "target_bytes",
    default="256MB",
    show_default=True,
    callback=lambda _context, _option, given: size_in(given),
    help="Size of a file, about.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done and why; change nothing.")
@click.option(
    "--remove-replaced",
    is_flag=True,
    help="Instead, delete files that earlier runs have replaced.",
)
@click.option(
    "--older-than",
    "older_than_s",
    default="24h",
    show_default=True,
    callback=lambda _context, _option, given: age_in(given),
    help="Age of replaced files, and of what killed runs left behind, before they are deleted.",
)
@repo_option
@json_option
def compact(
    names: tuple[str, ...],
    output: Output,
    repo: Path,
    *,
    all_: bool,
    remove_replaced: bool,
    dry_run: bool,
    older_than_s: float,
    **choices: Any,
) -> None:
    """Rewrite the small files of a source into sorted ones of a good size.

    Retrieval then opens fewer files, and only those that can hold what it needs; what it finds is
    the same. Without --buckets or --by-partition the data decides; --dry-run says what and why.

    \b
    What would be done to all sources, and why:
      feast-dynamo compact --all --dry-run
    One source in 64 buckets by join key; its views may be named as well:
      feast-dynamo compact orders --buckets 64
    A day later, delete the files that are not read any more:
      feast-dynamo compact orders --remove-replaced

    Readers and writers may be at work: they see the old files or the new ones, and what is
    appended meanwhile stays. Killed, it leaves the old files as they were. Of two runs at once one
    is refused.
    """  # noqa: D301 - click keeps the lines after \b as they are
    if bool(names) == all_:
        raise click.UsageError("Name sources or feature views, or pass --all.")
    if choices["buckets"] and choices["by_partition"]:
        raise click.UsageError("--buckets and --by-partition exclude each other.")
    store = open_store(repo)
    if remove_replaced:
        _remove(store, names, older_than_s, output, dry_run=dry_run)
    else:
        _compact(store, names, _asked(store, older_than_s, choices), output, dry_run=dry_run)


def _asked(store: FeatureStore, older_than_s: float, choices: dict[str, Any]) -> Asked:
    from feast_dynamo_ext.errors import ConfigError
    from feast_dynamo_ext.offline.compact.layout import Asked
    from feast_dynamo_ext.offline_store import S3ParquetOfflineStoreConfig

    config: Any = store.config.offline_store
    if not isinstance(config, S3ParquetOfflineStoreConfig):
        raise ConfigError(
            f"The offline store of this repo is `{config.type}`, which does not know compacted "
            "files. Set `type: feast_dynamo_ext.S3ParquetOfflineStore` in offline_store of "
            "feature_store.yaml."
        )
    return Asked(
        memory_bytes=size_in(config.memory_limit or DEFAULT_MEMORY),
        spill_folder=config.spill_folder,
        orphans_older_than_s=older_than_s,
        **choices,
    )


def _compact(
    store: FeatureStore, names: tuple[str, ...], asked: Asked, output: Output, *, dry_run: bool
) -> None:
    from feast_dynamo_ext.cli.compact_progress import shown
    from feast_dynamo_ext.offline.compact import compaction
    from feast_dynamo_ext.offline.compact.targets import targets

    plans = [compaction.plan(target, store.config, asked) for target in targets(store, names)]
    after: list[Figures | None] = []
    for plan in plans:
        if not output.as_json:
            output.note(_sentence(plan))
        if dry_run:
            after.append(None)
            continue
        with shown(plan.snapshot.target.source.name, 2 * plan.rows) as advance:
            after.append(compaction.run(plan, advance))
    output.show(
        [_as_json(plan, done) for plan, done in zip(plans, after, strict=True)],
        _as_table(plans, after),
    )


def _sentence(plan: Plan) -> str:
    name = plan.snapshot.target.source.name
    shape = plan.shape
    how = "by partition and time"
    if shape.buckets:
        how = f"{shape.buckets.count} buckets of {', '.join(shape.buckets.columns)}"
    if not plan.todo:
        return f"{name}: nothing to do; it is compacted, {how} ({shape.why})."
    return (
        f"{name}: {how} ({shape.why}); {plan.rows:,} of {plan.before.rows:,} rows are rewritten."
    )


def _as_json(plan: Plan, after: Figures | None) -> dict[str, Any]:
    from dataclasses import asdict

    buckets = plan.shape.buckets
    return {
        "source": plan.snapshot.target.source.name,
        "uri": plan.snapshot.source.uri,
        "buckets": asdict(buckets) if buckets else None,
        "why": plan.shape.why,
        "rows_to_rewrite": plan.rows,
        "before": asdict(plan.before),
        "after": asdict(after) if after else None,
    }


def _as_table(plans: list[Plan], after: list[Figures | None]) -> str:
    rows = []
    for plan, done in zip(plans, after, strict=True):
        name = plan.snapshot.target.source.name
        rows.append((name, "before", *_cells(plan.before)))
        if done:
            rows.append(("", "after", *_cells(done)))
    return table(HEADERS, rows)


def _cells(figures: Figures) -> list[str]:
    return [
        f"{number:,}" for number in (figures.files, figures.rows, figures.size, figures.row_groups)
    ]


def _remove(
    store: FeatureStore,
    names: tuple[str, ...],
    older_than_s: float,
    output: Output,
    *,
    dry_run: bool,
) -> None:
    from feast_dynamo_ext.offline.compact.removal import remove_replaced, replaced_files
    from feast_dynamo_ext.offline.compact.targets import targets

    work = replaced_files if dry_run else remove_replaced
    removed = {
        target.source.name: work(target, store.config, older_than_s)
        for target in targets(store, names)
    }
    output.show(
        [
            {"source": name, "files": len(files), "size": sum(file.size for file in files)}
            for name, files in removed.items()
        ],
        table(
            ("source", "to delete" if dry_run else "deleted", "bytes"),
            [
                (name, f"{len(files):,}", f"{sum(file.size for file in files):,}")
                for name, files in removed.items()
            ],
        ),
    )
