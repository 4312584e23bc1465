"""feast-dynamo compact: many small files of a source into sorted ones of a good size."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext.cli.repo import Output, json_option, open_store, repo_option, table
from feast_dynamo_ext.errors import CompactionError, ConfigError, OfflineStoreError
from feast_dynamo_ext.progress import Steps, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from feast import FeatureStore
    from feast.data_source import DataSource

    from feast_dynamo_ext.parquet.compaction.compaction import Figures, Plan
    from feast_dynamo_ext.parquet.compaction.layout import LayoutRequest
    from feast_dynamo_ext.parquet.compaction.snapshot import Target
    from feast_dynamo_ext.retrieval.plan import ViewPlan


def targets(store: FeatureStore, names: Sequence[str]) -> list[Target]:
    """The folders behind sources and views, each once.

    Args:
        store: the feature store.
        names: names of sources or feature views; none for all sources of views.

    Raises:
        ConfigError: there is no such source or view.
        CompactionError: sources of one folder name different columns of time.
    """
    from feast_dynamo_ext.retrieval.plan import plan_view

    every: list[Any] = list(store.list_all_feature_views())
    views = [view for view in every if getattr(view, "batch_source", None) is not None]
    sources = {view.batch_source.name: view.batch_source for view in views}
    sources |= {source.name: source for source in store.list_data_sources()}
    wanted = _wanted(names, views, sources)
    by_uri: dict[str, list[ViewPlan]] = {}
    for view in views:
        uri = _uri(view.batch_source, store, strict=False)
        by_uri.setdefault(uri, []).append(plan_view(view, [], full_feature_names=False))
    found: dict[str, Target] = {}
    for source in wanted:
        uri = _uri(source, store, strict=bool(names))
        if uri and uri not in found:
            found[uri] = _target(source, by_uri.get(uri, []))
    return list(found.values())


def _uri(source: DataSource, store: FeatureStore, *, strict: bool) -> str:
    """Where a source is; empty for one that this store does not read, if not strict."""
    from feast_dynamo_ext.parquet.source import uri_of

    try:
        return uri_of(source, store.config).rstrip("/")
    except OfflineStoreError:
        if strict:
            raise
        return ""


def _wanted(
    names: Sequence[str], views: Sequence[Any], sources: dict[str, DataSource]
) -> list[DataSource]:
    by_view = {view.name: view.batch_source for view in views}
    if not names:
        return list({source.name: source for source in by_view.values()}.values())
    known = by_view | sources
    missing = [name for name in names if name not in known]
    if missing:
        from feast_dynamo_ext.config import did_you_mean

        hint = did_you_mean(missing[0], known, "There are")
        raise ConfigError(f"There is no source or feature view `{missing[0]}`. {hint}")
    return [known[name] for name in names]


def _target(source: DataSource, views: Sequence[ViewPlan]) -> Target:
    import pyarrow as pa

    from feast_dynamo_ext.parquet.compaction.snapshot import Target

    if not views:
        return _unread(source)
    times = {(view.event_time, view.created_time) for view in views}
    if len(times) > 1:
        raise CompactionError(
            f"The folder of source `{source.name}` is read by the feature views "
            f"{', '.join(sorted(view.view for view in views))} with different columns of time: "
            f"{sorted(times, key=str)}. It cannot be sorted for all of them; use one source."
        )
    ((event_time, created_time),) = times
    keys = set.intersection(*({column for _, column in view.keys} for view in views))
    readers = {view.view for view in views} | {view.source.name for view in views}
    declared: dict[str, Any] = {}
    for view in views:
        for name, kind in view.folder_types.items():
            # What views declare differently is kept as the text that it is.
            declared[name] = kind if declared.get(name, kind) == kind else pa.string()
    return Target(
        source, event_time, created_time, tuple(sorted(keys)), tuple(sorted(readers)), declared
    )


def _unread(source: DataSource) -> Target:
    from feast_dynamo_ext.columns import stored_times
    from feast_dynamo_ext.parquet.compaction.snapshot import Target

    return Target(source, *stored_times(source), (), (source.name,))


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


@click.command(short_help="Rewrite a source's small files into larger, sorted ones.")
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
    metavar="SIZE",
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
    metavar="AGE",
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
    The replaced files stay until --remove-replaced, for readers that have them open.

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


def _asked(store: FeatureStore, older_than_s: float, choices: dict[str, Any]) -> LayoutRequest:
    from feast_dynamo_ext.errors import ConfigError
    from feast_dynamo_ext.offline_store import S3ParquetOfflineStoreConfig
    from feast_dynamo_ext.parquet.compaction.layout import LayoutRequest

    config: Any = store.config.offline_store
    if not isinstance(config, S3ParquetOfflineStoreConfig):
        raise ConfigError(
            f"The offline store of this repo is `{config.type}`, which does not know compacted "
            "files. Set `type: feast_dynamo_ext.S3ParquetOfflineStore` in offline_store of "
            "feature_store.yaml."
        )
    return LayoutRequest(
        memory_bytes=size_in(config.memory_limit or DEFAULT_MEMORY),
        spill_folder=config.spill_folder,
        orphans_older_than_s=older_than_s,
        **choices,
    )


def _compact(
    store: FeatureStore,
    names: tuple[str, ...],
    asked: LayoutRequest,
    output: Output,
    *,
    dry_run: bool,
) -> None:
    from feast_dynamo_ext.parquet.compaction import compaction

    plans = [compaction.plan(target, store.config, asked) for target in targets(store, names)]
    after: list[Figures | None] = []
    for plan in plans:
        if not output.as_json:
            output.note(_sentence(plan))
        if dry_run:
            after.append(None)
            continue
        steps = Steps(plan.snapshot.target.source.name, 2 * plan.rows, "rows read and written")
        with shown(steps):
            after.append(compaction.run(plan, steps.advance))
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
    from feast_dynamo_ext.parquet.compaction.snapshot import remove_replaced, replaced_files

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
