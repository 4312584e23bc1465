"""What `feast apply`, `plan` and `teardown` do about tables."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from feast import FeatureStore

from feast_dynamo_ext.dynamo.tables.clients import TableClients
from feast_dynamo_ext.dynamo.tables.infra import DynamoTable, planned_views, say_plan
from feast_dynamo_ext.dynamo.tables.many import (
    apply_tables,
    delete_tables,
    plan_tables,
    raise_failures,
    verify_tables,
)
from feast_dynamo_ext.dynamo.tables.settings import TableSettings
from feast_dynamo_ext.dynamo.tables.state import TableSpec
from feast_dynamo_ext.dynamo.view_settings import ViewSettings, aws_tags
from feast_dynamo_ext.dynamo.views import table_name
from feast_dynamo_ext.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from feast import RepoConfig
    from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto

logger = logging.getLogger(__name__)


def table_spec(config: RepoConfig, view: Any) -> TableSpec:
    """What the table of a view should be: the store's settings, and the view's over them.

    Raises:
        ConfigError: a tag of the view that is not a setting, or settings that cannot be together.
    """
    store = config.online_store
    settings = ViewSettings.of(view).table.over(
        store.table or TableSettings(), f"Feature view `{view.name}`"
    )
    tags = {**(store.tags or {}), **aws_tags(getattr(view, "tags", None))}
    return TableSpec(table_name(config, view), view.name, config.project, tags, settings)


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
        touched: is told the name of each table that may be new or gone afterwards.

    Raises:
        ConfigError: settings of a view that cannot be; nothing is done then.
        TablesDifferError: with `manage_tables: verify`, a table is missing or differs.
        TableLayoutError: a table of another layout is in the place of one of ours.
        TableProtectedError: a table to be deleted is protected.
        AwsError: AWS refused.
        TablesFailedError: several of these; what could be done to other tables is done.
    """
    store = config.online_store
    wanted = {spec.name: spec for spec in (table_spec(config, view) for view in views)}
    # A view that became one of another kind is gone and there at once, with one table.
    leaving = [spec for spec in _specs_of_gone(config, gone) if spec.name not in wanted]
    if store.manage_tables == "never":
        _say_kept(leaving, "manage_tables: never")
        return
    with _clients(dynamodb, config) as clients:
        if store.manage_tables == "verify":
            verify_tables(clients, list(wanted.values()))
            _say_kept(leaving, "manage_tables: verify")
            return
        failures = apply_tables(clients, list(wanted.values()))
        if store.on_remove == "delete":
            failures |= delete_tables(clients, leaving)
        else:
            _say_kept(leaving, "on_remove: retain")
    for spec in (*wanted.values(), *leaving):
        touched(spec.name)
    raise_failures(failures, len(wanted) + len(leaving))


def teardown(
    dynamodb: Any, config: RepoConfig, views: Iterable[Any], touched: Callable[[str], None]
) -> None:
    """Delete the tables of views; those that are not ours are named and left alone.

    Args:
        dynamodb: the store's boto3 client.
        config: the repo's.
        views: the views.
        touched: is told the name of each table that may be gone afterwards.

    Raises:
        TableProtectedError: a table's deletion protection is on.
        AwsError: AWS refused.
        TablesFailedError: several of these; the other tables are deleted.
    """
    leaving, manage = _specs_of_gone(config, views), config.online_store.manage_tables
    if manage != "create":
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
    wanted = (table_spec(config, view) for view in views if view.online)
    specs = {spec.name: spec for spec in wanted}
    if store.manage_tables == "never":
        logger.info("DynamoDB tables are not looked at (manage_tables: never)")
        return [DynamoTable(spec.name, spec.view) for spec in specs.values()]
    with _clients(dynamodb, config) as clients:
        plans = plan_tables(clients, list(specs.values()))
    on_remove = store.on_remove if store.manage_tables == "create" else "retain"
    kept = {table_name(config, view) for view in views}
    say_plan(plans, _gone(config, kept), on_remove)
    return [DynamoTable.of(one) for one in plans]


def _gone(config: RepoConfig, wanted: Iterable[str]) -> list[tuple[str, str]]:
    """Table and name of each view that the registry has and the plan has not."""
    store = FeatureStore(repo_path=str(config.repo_path or "."), config=config)
    views = (*store.list_feature_views(), *store.list_stream_feature_views())
    named = ((table_name(config, view), view.name) for view in views)
    return [(table, name) for table, name in named if table not in wanted]


def _specs_of_gone(config: RepoConfig, views: Iterable[Any]) -> list[TableSpec]:
    specs = {}
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
