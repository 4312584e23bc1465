"""feast-dynamo capture erase: somebody is erased from all that was captured of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from feast_dynamo_ext.cli.named_table import (
    answer_on_stdout,
    dry_run_option,
    source_argument,
    source_of,
    store_of,
    views_of,
)
from feast_dynamo_ext.cli.repo import Output, json_option, repo_option
from feast_dynamo_ext.cli.table_upkeep import age_option, key_values
from feast_dynamo_ext.errors import AccessDeniedError, ConfigError
from feast_dynamo_ext.figures import count, counted
from feast_dynamo_ext.progress import Steps, shown

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from feast import FeatureStore

    from feast_dynamo_ext.capture.erasure.erase_online import OnlineRows
    from feast_dynamo_ext.capture.erasure.erasure import ErasePlan, EraseResult, Erasure
    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource
    from feast_dynamo_ext.sagemaker.sets_of_person import SetOfPerson


@click.command(short_help="Erase a person from all that was captured.")
@source_argument
@click.option(
    "--key",
    "key",
    multiple=True,
    metavar="ATTRIBUTE=VALUE",
    callback=key_values,
    help="The table's key, once for each attribute; or its partition key alone: all items of it.",
)
@click.option(
    "--where",
    "where",
    multiple=True,
    metavar="ATTRIBUTE=VALUE",
    callback=key_values,
    help="Another attribute that says whose an item is: all items with this value.",
)
@click.option(
    "--exports",
    multiple=True,
    metavar="URI",
    help="Further folders with raw exports.  [default: those that were captured, and the source's "
    "`history`, with -exports]",
)
@click.option(
    "--training-sets",
    multiple=True,
    metavar="URI",
    help="Folders with training sets, beside those that the feature repo declares, and those of "
    "its pipelines' runs on this machine.",
)
@click.option("--keep-exports", is_flag=True, help="Name raw exports, and leave them.")
@click.option("--keep-sets", is_flag=True, help="Name training sets, and leave them.")
@click.option(
    "--settled",
    metavar="AGE",
    default="15m",
    show_default=True,
    callback=age_option,
    help="Age of files that no version names, after which they are no writer's at work.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@repo_option
@json_option
def erase(
    source: str,
    key: dict[str, str],
    where: dict[str, str],
    exports: tuple[str, ...],
    training_sets: tuple[str, ...],
    settled: timedelta,
    output: Output,
    repo: Path,
    *,
    keep_exports: bool,
    keep_sets: bool,
    yes: bool,
    dry_run: bool,
) -> None:
    """Erase a person from all that was captured of the table of SOURCE.

    It says first what it found, and asks. Then it erases their rows from the history and the
    quarantine, with all older versions; from the online store, by all views over the source, and
    by those over others whose join keys are the key; and deletes the raw exports and the training
    sets that it named. In the end all files that are left of history and quarantine are searched.
    What was written before is not captured again, by whichever export.

    Delete their items from the table first. Tags of training sets go with the versions that they
    keep: such a set can then not be built again. Where it is interrupted, run it again.

    \b
    All items of one partition key; what would be done, then doing it:
      feast-dynamo capture erase purchases --key customer_id=5 --dry-run
      feast-dynamo capture erase purchases --key customer_id=5
    One item, and a table whose key is finer than a person:
      feast-dynamo capture erase purchases --key customer_id=5 --key order_id=77
      feast-dynamo capture erase orders --where customer_id=5 --training-sets s3://bucket/sets
    """  # noqa: D301 - click keeps the lines after \b as they are
    from feast_dynamo_ext.capture.dynamo_table import dynamodb_client
    from feast_dynamo_ext.capture.erasure.erasure import check_done
    from feast_dynamo_ext.sagemaker.sets_of_person import remove_set

    if bool(key) == bool(where):
        raise click.UsageError("Give --key ATTRIBUTE=VALUE, or --where ATTRIBUTE=VALUE.")
    if output.as_json and not (yes or dry_run):
        raise click.UsageError("With --json it cannot ask: pass --yes, or --dry-run.")
    store = store_of(repo)
    found = source_of(store, source)
    steps = Steps(found.name, 0, "files")
    with answer_on_stdout(output), shown(steps):
        erasure = _erasure(store, found, key or where, exports, is_key=bool(key))
        erasure = _telling(erasure, steps)
        plan = erasure.plan(dynamodb_client(store.config))
        sets = _sets(store, repo, erasure, training_sets)
        beyond = _beyond(store, repo, erasure, training_sets)
        # One who was erased before is looked for to the end: in older versions, in all files.
        is_nobody = plan.has_nothing and not any(each.rows for each in sets)
        is_nobody = is_nobody and not erasure.is_begun()
    planned, text = _planned(plan, sets, beyond), _plan_text(plan, sets, beyond)
    planned["found"] = not is_nobody
    if is_nobody:
        output.show(
            planned,
            f"Nobody of that key was found: nothing of source {plan.source} has {plan.person}, "
            "neither history and quarantine nor the online store, raw exports and training sets. "
            "Nothing was changed.",
        )
        return
    if dry_run:
        output.show(planned, text)
        return
    output.note(text)
    if not yes:
        click.confirm("Erase all of this?", abort=True, err=True)
    with answer_on_stdout(output), shown(steps):
        result = erasure.run(plan, remove_exports=not keep_exports, settled=settled)
        settings: Any = store.config.offline_store
        gone = [each for each in sets if not (each.kept or keep_sets)]
        left = [path for each in gone for path in remove_set(each.output, settings.aws())]
    output.show(
        {
            **planned,
            "erased": _done(result),
            "removed_sets": [each.output for each in gone],
            "left_in_sets": left,
        },
        _result_text(result, [each.output for each in gone], left, beyond),
    )
    check_done(result)


def _erasure(
    store: FeatureStore,
    source: DynamoDBTableSource,
    given: dict[str, str],
    exports: tuple[str, ...],
    *,
    is_key: bool,
) -> Erasure:
    from feast_dynamo_ext.capture.erasure.erase_online import OnlineViews, views_by_keys
    from feast_dynamo_ext.capture.erasure.erasure import Erasure
    from feast_dynamo_ext.capture.erasure.person import Person, columns_of_history
    from feast_dynamo_ext.capture.history import CapturedHistory
    from feast_dynamo_ext.online_store import DynamoOnlineStore, DynamoOnlineStoreConfig

    history = CapturedHistory.from_source(source, store.config)
    state = history.state()
    known = () if state is None else state.keys
    columns = columns_of_history(source, history.handle.load(), known)
    person = Person.from_texts(source, columns, given)
    if is_key and not (person.has_partition_key and set(person.names) <= set(columns.keys)):
        listed = ", ".join(f"`{name}`" for name in columns.keys)
        raise click.UsageError(
            f"The key of table {source.table} is {listed}: give all of it, or the first alone. By "
            "another attribute: --where."
        )
    every = views_of(store).values()
    views = [
        view
        for view in every
        if view.batch_source.name == source.name and getattr(view, "online", False)
    ]
    views += views_by_keys(every, source, person)[0]
    is_ours = isinstance(store.config.online_store, DynamoOnlineStoreConfig)
    online = OnlineViews(store.config, DynamoOnlineStore(), views, source) if is_ours else None
    settings: Any = store.config.offline_store
    beside = f"{source.history.rstrip('/')}-exports"
    places, arn = (*exports, beside), _arn_of(store, source)
    return Erasure(history, person, online, settings.aws(), places, arn)


def _arn_of(store: FeatureStore, source: DynamoDBTableSource) -> str | None:
    """The ARN of a source's table; None where there is none of the name, or nobody may look."""
    from feast_dynamo_ext.capture.dynamo_table import DynamoTable, dynamodb_client

    try:
        return DynamoTable.from_table(dynamodb_client(store.config), source).arn
    except (ConfigError, AccessDeniedError):
        return None


def _telling(erasure: Erasure, steps: Steps) -> Erasure:
    from dataclasses import replace

    return replace(erasure, say=lambda _what, done, total: steps.reach(done, total))


def _sets(
    store: FeatureStore, repo: Path, erasure: Erasure, places: tuple[str, ...]
) -> list[SetOfPerson]:
    """Sets that the feature repo declares, those of its runs here, and those below some places."""
    from feast_dynamo_ext.sagemaker.declared_sets import load_definitions
    from feast_dynamo_ext.sagemaker.output_folder import open_folder
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import RESULTS
    from feast_dynamo_ext.sagemaker.sets_of_person import sets_below, sets_of_person

    settings: Any = store.config.offline_store
    aws = settings.aws()
    declared = [each.definition.output_in(repo) for each in load_definitions(repo).values()]
    built = [place for place in declared if open_folder(place, aws).manifest() is not None]
    of_runs = sorted(str(each) for each in (repo.absolute() / RESULTS).glob("*/sets"))
    below = sets_below([*of_runs, *places], aws)
    outputs = {open_folder(each, aws).uri: None for each in [*built, *below]}
    source, person = erasure.history.source, erasure.person
    called = source.field_mapping or {}
    (values,) = person.table.to_pylist()
    wanted = {called.get(name, name): value for name, value in values.items()}
    return sets_of_person(list(outputs), erasure.history.handle.name, wanted, aws)


def _beyond(
    store: FeatureStore, repo: Path, erasure: Erasure, places: tuple[str, ...]
) -> list[str]:
    """Where the repo may have them beside, and what takes them out of it, in words."""
    from feast_dynamo_ext.capture.erasure.erase_online import views_by_keys
    from feast_dynamo_ext.columns import join_keys

    source, person = erasure.history.source, erasure.person
    every = sorted(views_of(store).values(), key=lambda view: str(view.name))
    found, others = views_by_keys(every, source, person)
    sources = {view.batch_source.name: view for view in (*found, *others)}
    paths = [str(getattr(view.batch_source, "path", "")) for view in sources.values()]
    of_pipelines, has_steps = _of_pipelines(repo, list(filter(None, paths)), places)
    return [
        *of_pipelines,
        *(line for view in sources.values() if (line := _of_source(view, has_steps=has_steps))),
        *(
            f"online, view {view.name}: its join keys {', '.join(join_keys(view))} are not what "
            f"{person.words()} says; delete such rows yourself"
            for view in others
            if getattr(view, "online", False)
        ),
    ]


def _of_source(view: Any, *, has_steps: bool) -> str:
    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource
    from feast_dynamo_ext.parquet.iceberg.catalog import is_iceberg

    source, of = view.batch_source, f"source {view.batch_source.name} of view {view.name}"
    if isinstance(source, DynamoDBTableSource):
        return f"{of}: run `feast-dynamo capture erase {source.name}`"
    if is_iceberg(source):
        return f"{of}: run `feast-dynamo table erase {view.name}` with --expire-now"
    path = getattr(source, "path", "")
    if path and has_steps:
        return ""  # named as a file of a step
    again = ", or they come back online" if getattr(view, "online", False) else ""
    return f"{of}{f', {path}' if path else ''}: make it anew without them{again}"


def _of_pipelines(repo: Path, paths: list[str], places: tuple[str, ...]) -> tuple[list[str], bool]:
    """What the repo's pipelines made, in words; and whether one prepares files."""
    from feast_dynamo_ext.sagemaker.declared_sets import load_definitions
    from feast_dynamo_ext.sagemaker.pipeline.pipeline_definition import FOLDER, read_pipeline

    sets, lines, has_steps = load_definitions(repo), [], False
    for file in sorted((repo / FOLDER).glob("*.yaml")):
        pipeline = read_pipeline(repo, file.stem)
        if pipeline.prepare is not None:
            has_steps = True
            declared = sets.get(pipeline.training_set.name)
            rows = None if declared is None else declared.definition.entity_rows
            made = [
                *paths,
                *([str(rows["path"])] if isinstance(rows, dict) and "path" in rows else []),
            ]
            such = f", such as {', '.join(dict.fromkeys(made))}" if made else ""
            lines.append(
                f"files that `{' '.join(pipeline.prepare.command)}` of pipeline {pipeline.name} "
                f"made{such}: run `feast-dynamo refresh {file.stem}` again, before the views over "
                "them are materialized otherwise"
            )
        if not any(pipeline.output.startswith(place) for place in places):
            lines.append(
                f"training sets of pipeline {pipeline.name} that SageMaker built: give "
                f"--training-sets {pipeline.output}"
            )
    return lines, has_steps


def _planned(plan: ErasePlan, sets: list[SetOfPerson], beyond: list[str]) -> dict[str, Any]:
    from feast_dynamo_ext.capture.erasure.erasure import BEYOND

    return {
        "source": plan.source,
        "person": plan.person,
        "rows": plan.rows,
        "quarantined": plan.quarantined,
        "items_in_table": plan.items_in_table,
        "online": [
            {"view": each.view, "entities": each.entities, "source": each.source or plan.source}
            for each in plan.online
        ],
        "exports": [
            {"folder": each.folder, "records": each.records, "kept": each.kept}
            for each in plan.exports
        ],
        "training_sets": [
            {
                "output": each.output,
                "rows": each.rows,
                "snapshot": each.snapshot,
                "kept": each.kept,
            }
            for each in sets
        ],
        "tags": list(plan.tags),
        "versions": plan.versions,
        "beyond": [*beyond, *BEYOND],
    }


def _plan_text(plan: ErasePlan, sets: list[SetOfPerson], beyond: list[str]) -> str:
    from feast_dynamo_ext.capture.erasure.erasure import BEYOND

    lines = [
        f"All items with {plan.person} of source {plan.source}:",
        f"  history: {counted(plan.rows, 'row')}; quarantine: "
        f"{counted(plan.quarantined, 'record')}",
        f"  older versions that go with them: {count(plan.versions)}"
        + (f", with the tags {', '.join(plan.tags)}" if plan.tags else ""),
    ]
    lines += [
        f"  online, view {each.view}{_of_other(each)}: rows of {_entities(each)}"
        for each in plan.online
    ]
    for export in plan.exports:
        why = f"; stays: {export.kept}" if export.kept else ""
        lines.append(
            f"  raw export {export.folder}, {export.what}: {counted(export.records, 'record')} "
            f"of them; the whole export goes{why}"
            if not export.kept
            else f"  raw export {export.folder}, {export.what}{why}"
        )
    for each in sets:
        rows = "" if each.rows is None else f"{counted(each.rows, 'row')} of them"
        of = f"made of version {each.snapshot}" if each.snapshot else ""
        what = ", ".join(text for text in (rows, of) if text)
        why = f"; stays: {each.kept}" if each.kept else "; the whole set goes"
        lines.append(f"  training set {each.output}: {what}{why}")
    if plan.items_in_table:
        lines.append(
            f"  The DynamoDB table has {counted(plan.items_in_table, 'item')} of them still: "
            "delete these first, or they are captured again with the next full export, scan or "
            "change."
        )
    lines.append("Out of reach:")
    lines += [f"  {each}" for each in (*beyond, *BEYOND)]
    return "\n".join(lines)


def _of_other(rows: OnlineRows) -> str:
    return f" over source {rows.source}" if rows.source else ""


def _entities(rows: OnlineRows) -> str:
    return counted(rows.entities, "entity", "entities")


def _done(result: EraseResult) -> dict[str, Any]:
    return {
        "at": result.at.isoformat(),
        "rows": result.rows,
        "quarantined": result.quarantined,
        "online": [
            {
                "view": each.view,
                "entities": each.entities,
                "later": each.later,
                "shared": each.shared,
            }
            for each in result.online
        ],
        "removed_exports": list(result.removed),
        "kept_exports": [each.folder for each in result.kept],
        "versions": result.expired,
        "files_searched": result.searched,
        "orphans": list(result.orphans),
        "traces": [
            {"file": each.uri, "kind": each.kind, "listed": each.is_listed}
            for each in result.traces
        ],
    }


def _result_text(result: EraseResult, sets: list[str], left: list[str], beyond: list[str]) -> str:
    lines = [
        f"Erased: {counted(result.rows, 'row')} of history, "
        f"{counted(result.quarantined, 'record')} of quarantine, "
        f"{counted(result.expired, 'older version')}, "
        f"{counted(len(result.removed), 'raw export')}, {counted(len(sets), 'training set')}."
    ]
    for each in result.online:
        later = f"; left, as written after the erasure: {count(each.later)}" if each.later else ""
        shared = (
            f"; {count(each.shared)} of these with other rows: materialize the view over all of "
            "its time to bring these back"
            if each.shared
            else ""
        )
        lines.append(
            f"Online, view {each.view}{_of_other(each)}: rows of {_entities(each)}{later}{shared}."
        )
    if result.orphans:
        lines.append(f"Deleted: {counted(len(result.orphans), 'file')} that no version named.")
    lines += [
        f"Left, it holds them: {each.folder}: {each.kept or 'kept'}." for each in result.kept
    ]
    lines += [f"Left in the folder of a training set: {path}." for path in left]
    lines.append(
        f"Searched: {counted(result.searched, 'file')} of history and quarantine, "
        + (
            "nothing of them is left in these."
            if not result.traces
            else "of which some hold them."
        )
    )
    if beyond:
        lines.append("Not searched, and may hold them:")
        lines += [f"  {each}" for each in beyond]
    return "\n".join(lines)
