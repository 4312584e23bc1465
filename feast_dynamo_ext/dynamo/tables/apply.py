"""What `feast apply`, `plan` and `teardown` do about tables, many at once.

They are looked at and worked on in parallel. One that fails does not stop the others; at the end
one error names all that did.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.config import FEASTS_PROVIDERS
from feast_dynamo_ext.dynamo.tables.describe import (
    OWNERSHIP,
    TableClients,
    TableSpec,
    Wait,
    refuse_anothers,
)
from feast_dynamo_ext.dynamo.tables.infra import (
    DynamoTable,
    RegisteredViews,
    planned_views,
    say_plan,
)
from feast_dynamo_ext.dynamo.tables.table import carry_out, delete_table, plan_table
from feast_dynamo_ext.dynamo.views import (
    VERSION,
    around_names,
    may_be_anothers,
    table_name,
)
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    AwsError,
    ConfigError,
    CredentialsError,
    FeastDynamoError,
    TableLayoutError,
    TablesDifferError,
    TablesFailedError,
    TableTakenError,
)
from feast_dynamo_ext.view_settings import TableSettings, ViewSettings, aws_tags, series_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from feast import RepoConfig
    from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto

    from feast_dynamo_ext.dynamo.tables.describe import Skipped
    from feast_dynamo_ext.dynamo.tables.table import TablePlan


logger = logging.getLogger(__name__)

# DynamoDB takes 500 tables at a time that are being created, changed or deleted.
MOST_WORKERS = 16

# Fewer are done before anybody looks.
SHOW_PROGRESS_FROM = 5

MOST_NAMES = 5

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Outcomes:
    """Answers and errors by table name."""

    answers: Mapping[str, Any]
    failures: Mapping[str, FeastDynamoError]


def plan_tables(clients: TableClients, specs: Sequence[TableSpec]) -> list[TablePlan]:
    """What applying would do to each table; only describes.

    Raises:
        TableLayoutError: a table of another layout is in the place of one of ours.
        AwsError: AWS refused.
        TablesFailedError: several of these.
        ConfigError: a table is to be made provisioned, and no units are set.
    """
    outcomes = _look(clients, specs)
    raise_failures(outcomes.failures, len(specs))
    for plan in outcomes.answers.values():
        plan.refuse_without_units()
    return list(outcomes.answers.values())


def apply_tables(
    clients: TableClients, specs: Sequence[TableSpec]
) -> tuple[dict[str, FeastDynamoError], list[TableSpec]]:
    """Create the tables that are missing, change those that differ, leave the others alone.

    Returns:
        The error of each table that failed, see `raise_failures`; and the tables that were made.
    """
    looked, stopped = _look(clients, specs), threading.Event()
    plans = [plan for plan in looked.answers.values() if plan.to_do or plan.skipped]
    done = _each(
        "tables",
        [(plan.spec.name, plan) for plan in plans],
        lambda plan: carry_out(clients, plan, Wait(sleep=stopped.wait)),
        stopped,
    )
    _say_skipped(done.answers)
    made = [plan.spec for plan in plans if not plan.exists and plan.spec.name in done.answers]
    return {**looked.failures, **done.failures}, made


def verify_tables(clients: TableClients, specs: Sequence[TableSpec]) -> None:
    """Compare all tables with what they should be, and change nothing.

    Raises:
        TablesDifferError: naming every table that is missing or differs, and in what.
        AwsError: AWS refused.
        TablesFailedError: it did so several times.
    """
    outcomes = _look(clients, specs)
    _say_skipped({plan.spec.name: plan.skipped for plan in outcomes.answers.values()})
    strange = {
        name: (str(error),)
        for name, error in outcomes.failures.items()
        if isinstance(error, TableLayoutError)
    }
    raise_failures(
        {name: error for name, error in outcomes.failures.items() if name not in strange},
        len(specs),
    )
    differing = {
        plan.spec.name: what for plan in outcomes.answers.values() if (what := _differences(plan))
    }
    if differences := {**strange, **differing}:
        raise TablesDifferError(
            f"{len(differences)} of {len(specs)} tables are not as feature_store.yaml and the "
            "views have them (`manage_tables: verify` changes nothing):"
            + "".join(f"\n- {name}: {'; '.join(what)}" for name, what in differences.items())
            + "\nChange the tables, or run `feast apply` with `manage_tables: create`.",
            differences=differences,
        )


def delete_tables(
    clients: TableClients, specs: Sequence[TableSpec]
) -> dict[str, FeastDynamoError]:
    """Delete the tables that are ours; say which are not, and leave those alone.

    Returns:
        The error of each table that failed; see `raise_failures`.
    """
    stopped = threading.Event()
    done = _each(
        "tables",
        [(spec.name, spec) for spec in specs],
        lambda spec: delete_table(clients, spec, Wait(sleep=stopped.wait)),
        stopped,
    )
    for name, reason in done.answers.items():
        if reason is not None:
            logger.warning("table %s is not deleted: %s", name, reason)
    return dict(done.failures)


def _differences(plan: TablePlan) -> tuple[str, ...]:
    if not plan.exists:
        return (f"missing (feature view `{plan.spec.view}`)",)
    return tuple(
        f"{change.setting} is {change.before}, not {change.after}"
        for change in plan.changes
        if change.setting != OWNERSHIP  # verify changes nothing, not even what it may
    )


def _look(clients: TableClients, specs: Iterable[TableSpec]) -> Outcomes:
    work = [(spec.name, spec) for spec in specs]
    return _each("", work, lambda spec: plan_table(clients, spec), threading.Event())


def _each(
    progress: str,
    work: Sequence[tuple[str, Subject]],
    do: Callable[[Subject], Any],
    stopped: threading.Event,
) -> Outcomes:
    """Do something for each name in parallel; answers come in the order of the names.

    Args:
        progress: what a progress bar counts; empty for none.
        work: names and what is handed to `do`.
        do: raises a FeastDynamoError where it cannot.
        stopped: is set where the work ends early, by Ctrl-C for example.
    """
    answers: dict[str, Any] = {}
    failures: dict[str, FeastDynamoError] = {}
    # None: no bar where nobody watches.
    hidden = None if progress and len(work) >= SHOW_PROGRESS_FROM else True
    with (
        ThreadPoolExecutor(MOST_WORKERS, "feast-dynamo-tables") as executor,
        tqdm(total=len(work), desc=progress, disable=hidden, leave=False) as bar,
    ):
        names = {executor.submit(do, subject): name for name, subject in work}
        try:
            for future in as_completed(names):
                try:
                    answers[names[future]] = future.result()
                except FeastDynamoError as error:
                    failures[names[future]] = error
                bar.update()
        except BaseException:
            stopped.set()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    ordered = {name: answers[name] for name, _ in work if name in answers}
    return Outcomes(ordered, {name: failures[name] for name, _ in work if name in failures})


def _say_skipped(skipped: Mapping[str, Iterable[Skipped]]) -> None:
    """One warning a setting, however many tables go without it."""
    names: dict[Skipped, list[str]] = {}
    for name, reasons in skipped.items():
        for reason in dict.fromkeys(reasons):
            names.setdefault(reason, []).append(name)
    for reason, tables in names.items():
        logger.warning(
            "%s: `%s` is left as it is: %s", _listed(tables), reason.setting, reason.reason
        )


def _listed(tables: Sequence[str]) -> str:
    shown = ", ".join(tables[:MOST_NAMES])
    more = f" and {len(tables) - MOST_NAMES} more" if len(tables) > MOST_NAMES else ""
    return f"{'tables' if len(tables) > 1 else 'table'} {shown}{more}"


def raise_failures(failures: Mapping[str, FeastDynamoError], count: int) -> None:
    """Raise what happened, if anything did: the error itself, or one that names all.

    Args:
        failures: errors by table name.
        count: how many tables there are in all.

    Raises:
        FeastDynamoError: of a failure that is alone, or of credentials.
        TablesFailedError: of several.
    """
    if not failures:
        return
    first = next(iter(failures.values()))
    # Credentials are nobody's table's fault: what is wrong with one is wrong with all.
    if len(failures) == 1 or isinstance(first, CredentialsError):
        raise first
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name, error in failures.items():
        alike.setdefault(_kind(name, error), []).append(name)
    lines = [
        f"\n- {failures[names[0]]}" + (f" The same of {_listed(names[1:])}." if names[1:] else "")
        for names in alike.values()
    ]
    raise TablesFailedError(
        f"{len(failures)} of {count} tables failed:{''.join(lines)}\n"
        "What could be done to the others is done; run the command again after mending these.",
        failures=failures,
    ) from first


def _kind(name: str, error: FeastDynamoError) -> tuple[Any, ...]:
    if isinstance(error, AwsError) and error.code:
        return (type(error), error.operation, error.code)
    return (type(error), name)


def table_spec(config: RepoConfig, view: Any) -> TableSpec:
    """What the table of a view should be: the store's settings, and the view's over them.

    Raises:
        ConfigError: a tag of the view that is not a setting, or settings that cannot be together.
    """
    store, own = config.online_store, ViewSettings.from_view(view)
    settings = own.table.with_defaults(
        store.table or TableSettings(), f"Feature view `{view.name}`"
    )
    series = series_in(config, view)
    tags = {**(store.tags or {}), **aws_tags(getattr(view, "tags", None))}
    name = table_name(config, view)
    return TableSpec(
        name,
        view.name,
        config.project,
        tags,
        settings,
        may_be_anothers(config, name),
        is_series=series is not None,
        tie_breaker=series.tie_breaker if series else (),
        orders=series.orders if series else (),
        cohorts=series.cohorts if series else own.cohorts,
    )


def update(
    dynamodb: Any,
    config: RepoConfig,
    views: Iterable[Any],
    gone: Iterable[Any],
    touched: Callable[[str], None],
) -> None:
    """Make the tables of views as they should be; keep or delete those of views that are gone.

    Args:
        dynamodb: the store's boto3 client.
        config: the repo's.
        views: views that are to have a table.
        gone: views that are no more.
        touched: called with the name of each table that may be new or gone afterwards.

    Raises:
        ConfigError: settings of a view that cannot be; nothing is done then.
        TablesDifferError: with `manage_tables: verify`, a table is missing or differs.
        TableLayoutError: a table of another layout is in the place of one of ours.
        TableProtectedError: a table to be deleted is protected.
        AwsError: AWS refused.
        TablesFailedError: several of these; what could be done to other tables is done.
    """
    store, gone = config.online_store, list(gone)
    specs = [table_spec(config, view) for view in views]
    names_gone = {view.name for view in gone}
    refuse_shared(config, specs, lambda name: name not in names_gone)
    wanted = {spec.name: spec for spec in specs}
    # A view that became one of another kind is gone and there at once, with one table.
    leaving = [spec for spec in _specs_of_gone(config, gone) if spec.name not in wanted]
    if store.manage_tables == "never":
        _refuse_taken(dynamodb, config, wanted.values(), claims=True)
        _say_kept(leaving, "manage_tables: never")
        return
    with _clients(dynamodb, config) as clients:
        if store.manage_tables == "verify":
            verify_tables(clients, list(wanted.values()))
            _say_kept(leaving, "manage_tables: verify")
            return
        failures, made = apply_tables(clients, list(wanted.values()))
        if store.on_remove == "delete":
            failures |= delete_tables(clients, leaving)
        else:
            _say_kept(leaving, "on_remove: retain")
    for spec in (*wanted.values(), *leaving):
        touched(spec.name)
    if made:
        _say_empty(config, made)
    raise_failures(failures, len(wanted) + len(leaving))


def refuse_shared(
    config: RepoConfig, specs: Iterable[TableSpec], stays: Callable[[str], bool]
) -> None:
    """Refuse views of one project that would share a table: one would read the other's rows.

    Args:
        config: the repo's.
        specs: the tables that are to be.
        stays: whether a view of the registry will be there too, by its name.

    Raises:
        ConfigError: naming both views and the table.
    """
    views: dict[str, str] = {}
    for spec in specs:
        _take(views, spec.name, spec.view)
    _, _, after = around_names(config.online_store.table_name_template)
    # Only the table of a version can be that of a view of another name too.
    if not any(VERSION.search(table.removesuffix(after)) for table in views):
        return
    registered = RegisteredViews.of_repo(config)
    for view in registered.views:
        if stays(view.name) and getattr(view, "online", True):
            for version in registered.versions(view):
                _take(views, table_name(config, version), view.name)


def _refuse_taken(
    dynamodb: Any, config: RepoConfig, specs: Iterable[TableSpec], *, claims: bool
) -> None:
    """Refuse tables that are made elsewhere and have rows of another view or project.

    Raises:
        TableTakenError: one is another's.
        TablesFailedError: several are.
    """
    work = [(spec.name, spec) for spec in specs if spec.may_be_anothers]
    settings = config.online_store.aws()
    looked = _each(
        "",
        work,
        lambda spec: refuse_anothers(dynamodb, settings, spec, claims=claims),
        threading.Event(),
    )
    taken = {}
    for name, error in looked.failures.items():
        if isinstance(error, TableTakenError):
            taken[name] = error
        else:
            # Apply needs no DynamoDB where it makes no tables; writers look before their rows.
            logger.warning("whose table %s is was not looked at: %s", name, error)
    raise_failures(taken, len(work))


def _take(views: dict[str, str], table: str, view: str) -> None:
    holder = views.setdefault(table, view)
    if holder != view:
        raise ConfigError(
            f"Feature views `{holder}` and `{view}` would share the DynamoDB table {table}: a "
            "version of a view has a table named after the view and `_v` and its number. Rename "
            "the newer of the two views, and run `feast apply` again."
        )


def _say_empty(config: RepoConfig, made: Iterable[TableSpec]) -> None:
    """Warn of views whose table is new while the registry takes their rows for written."""
    until = RegisteredViews.of_repo(config).materialized_until()
    empty = [spec for spec in made if spec.view in until]
    if not empty:
        return
    views = ",".join(dict.fromkeys(spec.view for spec in empty))
    command = "feast materialize START END"
    if config.provider not in FEASTS_PROVIDERS:
        chosen = "" if len(empty) == len(until) else f" --views {views}"
        command = f"feast-dynamo materialize --all{chosen}"
    logger.warning(
        "%s new and empty, but the registry has %s as materialized until %s, where `feast "
        "materialize-incremental` would go on. Run `%s`, which writes all of history again: until "
        "then reads find nothing. Rows that are not in history have to be pushed again.",
        f"{_listed([spec.name for spec in empty])} {'are' if len(empty) > 1 else 'is'}",
        views,
        max(until[spec.view] for spec in empty).isoformat(timespec="seconds"),
        command,
    )


def teardown(
    dynamodb: Any, config: RepoConfig, views: Iterable[Any], touched: Callable[[str], None]
) -> None:
    """Delete the tables of all views and of all their versions, and those that removed views left.

    Feast names a part of the views; the registry has them all. Tables of views that are no more
    are found by their names, and deleted where the table says that it is this project's. Those
    that are not ours are named and left alone.

    Args:
        dynamodb: the store's boto3 client.
        config: the repo's.
        views: the views.
        touched: called with the name of each table that may be gone afterwards.

    Raises:
        TableProtectedError: a table's deletion protection is on.
        AwsError: AWS refused.
        TablesFailedError: several of these; the other tables are deleted.
    """
    manage, registered = config.online_store.manage_tables, RegisteredViews.of_repo(config)
    leaving = _specs_of_gone(config, [*views, *registered.views], registered)
    if manage == "create":
        leaving += _left_behind(dynamodb, config, {spec.name for spec in leaving})
    else:
        for spec in leaving:
            logger.warning("table %s is not deleted (manage_tables: %s)", spec.name, manage)
        return
    with _clients(dynamodb, config) as clients:
        failures = delete_tables(clients, leaving)
    for spec in leaving:
        touched(spec.name)
    raise_failures(failures, len(leaving))


def plan(dynamodb: Any, config: RepoConfig, desired: RegistryProto) -> list[DynamoTable]:
    """What `update` would do for a registry, logged, and as objects; nothing is changed.

    Raises: as `update`, but for what only a change can meet.
    """
    store = config.online_store
    views = list(planned_views(desired))
    wanted = [table_spec(config, view) for view in views if view.online]
    names = {view.name for view in views}
    refuse_shared(config, wanted, names.__contains__)
    specs = {spec.name: spec for spec in wanted}
    if store.manage_tables == "never":
        _refuse_taken(dynamodb, config, specs.values(), claims=False)
        logger.info("DynamoDB tables are not compared (manage_tables: never)")
        return [DynamoTable(spec.name, spec.view) for spec in specs.values()]
    with _clients(dynamodb, config) as clients:
        plans = plan_tables(clients, list(specs.values()))
    on_remove = store.on_remove if store.manage_tables == "create" else "retain"
    say_plan(plans, _gone(config, {view.name for view in views}), on_remove)
    return [DynamoTable.from_plan(one) for one in plans]


def _left_behind(dynamodb: Any, config: RepoConfig, known: Collection[str]) -> list[TableSpec]:
    """Tables that are named as this project's, of views that the registry does not know."""
    before, after = config.online_store.table_name_template.format(
        project=config.project, table_name="\0"
    ).split("\0")
    if config.project not in before + after:
        # Any table of the account has such a name.
        return []
    try:
        with translated("dynamodb", "the account's tables"):
            pages = dynamodb.get_paginator("list_tables").paginate()
            names = [name for page in pages for name in page["TableNames"]]
    except AccessDeniedError as error:
        logger.warning("tables of views that were removed before are not looked for: %s", error)
        return []
    return [
        TableSpec(name, "", config.project)
        for name in names
        if name not in known and name.startswith(before) and name.endswith(after)
    ]


def _gone(config: RepoConfig, names: Collection[str]) -> list[tuple[str, str]]:
    """Table and name of each view that the registry has and the plan has not, by version."""
    registered = RegisteredViews.of_repo(config)
    gone = [view for view in registered.views if view.name not in names]
    return [(spec.name, spec.view) for spec in _specs_of_gone(config, gone, registered)]


def _specs_of_gone(
    config: RepoConfig, views: Iterable[Any], registered: RegisteredViews | None = None
) -> list[TableSpec]:
    """The tables of all versions of views."""
    views, specs = list(views), {}
    versioned = config.registry.enable_online_feature_view_versioning
    if versioned and views:
        registered = registered or RegisteredViews.of_repo(config)
        views += [version for view in views for version in registered.versions(view)]
    for view in views:
        name = table_name(config, view)
        try:
            specs[name] = table_spec(config, view)
        except ConfigError:
            # A registry may hold settings of another version; a view can be removed all the same.
            specs[name] = TableSpec(name, view.name, config.project)
    return list(specs.values())


def _say_kept(specs: Iterable[TableSpec], why: str) -> None:
    for spec in specs:
        logger.warning(
            "feature view %s is gone; its table %s is kept (%s)", spec.view, spec.name, why
        )


@contextlib.contextmanager
def _clients(dynamodb: Any, config: RepoConfig) -> Iterator[TableClients]:
    clients = TableClients(dynamodb, config.online_store.aws())
    with contextlib.closing(clients):
        yield clients
